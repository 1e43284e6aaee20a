"""What all exceptions of multichat have in common, and one of a group.  Pure."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

__all__ = [
    "MultichatError",
    "Remedy",
    "lone_exception",
]


class Remedy(Enum):
    """What may help against an error; a front end says how it is done there."""

    USE_TLS = auto()
    OMIT_TLS = auto()
    PERHAPS_OMIT_TLS = auto()
    TRUST_ISSUER = auto()
    NAME_CERTIFICATE = auto()
    PERHAPS_SPEAK_TEXT = auto()
    SPEAK_TEXT = auto()


class MultichatError(Exception):
    """The base class of all exceptions of multichat; *remedy* is what may help, if known."""

    remedy: Remedy | None = None


@contextmanager
def lone_exception() -> Iterator[None]:
    """Replace an exception group that leaves the block by its only exception.

    For nurseries that are an implementation detail: the caller sees `OSError`, not a group of one.
    Of several `MultichatError`s, as when both directions of a connection are lost, it raises the
    first; any other group passes unchanged.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        all_ours = group.split(MultichatError)[1] is None
        while isinstance(error, BaseExceptionGroup) and (all_ours or len(error.exceptions) == 1):
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__
