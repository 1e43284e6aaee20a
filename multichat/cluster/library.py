"""The function library of the engine: its text, and whether an engine has to load it.

Assembles `library.lua` and what follows it into one library.  A node calls
`VERSION_CALL` on each new connection, and sends what `load_command` returns for the answer: an
engine that was replaced may have lost the library.  Does no I/O but reading its own files.
"""

from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, NamedTuple

from multichat.cluster.calls import Call
from multichat.errors import MultichatError

__all__ = ["VERSION_CALL", "LibraryTooNew", "Version", "library_text", "load_command"]

# What `library.lua` says; a library with a higher number may do something else for the same call.
_VERSION = 1

_FILES = ("library.lua", "sessions.lua", "directory.lua", "import.lua")


class LibraryTooNew(MultichatError):
    """The engine has a newer function library than this program."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"a newer multichat uses this engine (function library {version}, ours is {_VERSION}):"
            " upgrade this node as well"
        )
        self.version = version


@cache
def library_text() -> str:
    """Return the text of the library, with its digest in it."""
    folder = files("multichat.cluster")
    text = "\n".join(
        (folder / name).read_text("utf-8") for name in _FILES if (folder / name).is_file()
    )
    return text.replace("DIGEST = ''", f"DIGEST = '{_digest(text)}'")


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


class Version(NamedTuple):
    """The version of the library that an engine has, and the digest of its text."""

    number: int
    digest: str


def _version(reply: Any) -> Version:
    number, digest = reply
    return Version(number, digest.decode())


VERSION_CALL = Call("multichat_version", (), _version, writes=False)
"""Asks for the version; the engine answers with an error if it has no library."""


def load_command(found: Version | None) -> tuple[str, ...] | None:
    """Return the command that loads the library, or None if the one that was *found* will do.

    *found* is None if there is none.  Raises `LibraryTooNew`.
    """
    text = library_text()
    if found is not None:
        if found.number > _VERSION:
            raise LibraryTooNew(found.number)
        if found.number == _VERSION and f"DIGEST = '{found.digest}'" in text:
            return None
    return ("FUNCTION", "LOAD", "REPLACE", text)
