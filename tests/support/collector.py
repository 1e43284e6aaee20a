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
