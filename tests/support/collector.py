"""Tools for tests of reference cycles."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_off() -> Iterator[None]:
    """Disable garbage collection in the block, so that only reference counting frees objects."""
    gc.collect()  # earlier garbage
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_cycles(*kinds: type) -> list[object]:
    """Return all objects of *kinds* that are garbage in reference cycles."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return [each for each in gc.garbage if isinstance(each, kinds)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
