"""Tests of reference cycles."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_off() -> Iterator[None]:
    """Have nothing but reference counting free what is let go of in the block."""
    gc.collect()  # what was there before
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_cycles(*kinds: type) -> list[object]:
    """Return all of those *kinds* that wait for the collector, and are in nobody's use."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return [each for each in gc.garbage if isinstance(each, kinds)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
