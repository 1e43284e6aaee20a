"""The function library of the engine: its text, and when an engine must load it.

Assembles `library.lua` and the files that follow it into one library.  A node calls `load_library`
on each new connection: an engine that was replaced may lack the library.

Invariant: a node starts to use an engine only if the engine has the node's own text.  A change of
the text after a release MUST raise the version; a different text of the same version is loaded only
if no other node is running.
"""

from functools import cache
from hashlib import sha256
from importlib.resources import files
from operator import index
from typing import Any, NamedTuple

from multichat.cluster.calls import Call
from multichat.cluster.errors import EngineRefused, reading_answer
from multichat.cluster.keys import NODES, lease_of
from multichat.cluster.link import Link
from multichat.errors import MultichatError

__all__ = [
    "VERSION_CALL",
    "LibraryDiffers",
    "LibraryRefused",
    "LibraryTooNew",
    "Version",
    "check_library",
    "find_library",
    "library_text",
    "load_command",
    "load_library",
]

# As in `library.lua`; a library with a higher number may give the same call another meaning.
_VERSION = 1

_FILES = ("library.lua", "sessions.lua", "directory.lua", "import.lua")


class LibraryRefused(MultichatError):
    """The engine has functions that this program cannot work with."""


class LibraryTooNew(LibraryRefused):
    """The engine has a newer function library than this program."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"a newer multichat uses this engine (function library {version}, ours is {_VERSION}):"
            " upgrade this node as well"
        )
        self.version = version


class LibraryDiffers(LibraryRefused):
    """Other nodes use a different text of the library under the same version."""

    def __init__(self) -> None:
        super().__init__(
            f"other nodes use it, or did until some seconds ago, with other functions of the same "
            f"version {_VERSION}: run the same multichat on all nodes"
        )


@cache
def library_text() -> str:
    """Return the text of the library, including its digest."""
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
    return Version(index(number), digest.decode())


VERSION_CALL = Call("multichat_version", (), _version, writes=False)
"""Asks for the version; the engine answers with an error if it has no library."""


def load_command(found: Version | None, *, in_use: bool = False) -> tuple[str, ...] | None:
    """Return the command that loads the library, or None if the *found* one is ours.

    *found* is None if the engine has none; *in_use* tells whether other nodes are running.  Raises
    `LibraryTooNew`, or `LibraryDiffers` if they use a different text of the same version.
    """
    text = library_text()
    if found is not None:
        if found.number > _VERSION:
            raise LibraryTooNew(found.number)
        if found.number == _VERSION and f"DIGEST = '{found.digest}'" in text:
            return None
        if found.number == _VERSION and in_use:
            raise LibraryDiffers
    return ("FUNCTION", "LOAD", "REPLACE", text)


async def load_library(link: Link, node: str = "") -> str:
    """Load the library for *node* unless the engine has it; return what to log, if anything.

    Raises `LibraryTooNew`, `LibraryDiffers`, and the errors of a link.
    """
    found = await find_library(link)
    command = load_command(found)
    if command is None:
        return ""
    if found is not None and found.number == _VERSION:
        command = load_command(found, in_use=await _is_in_use(link, node))
    await link.call(*(command or ()))
    if found is None:
        return ""
    return f"loaded our functions, version {_VERSION}, in place of version {found.number}"


async def check_library(link: Link) -> None:
    """Raise `LibraryTooNew` or `LibraryDiffers` unless the engine has our text.

    Called by a node after it has joined: before that, another node that started at the same time
    did not know of it, and may have loaded its own text.
    """
    if load_command(await find_library(link), in_use=True) is not None:
        raise LibraryDiffers


async def find_library(link: Link) -> Version | None:
    """Return the version that the engine has, or None.

    Raises the errors of a link, and `NotOurs` if another program has a function of that name.
    """
    try:
        reply = await link.call(*VERSION_CALL.words)
    except EngineRefused:  # it has none
        return None
    return VERSION_CALL.read(reply)


async def _is_in_use(link: Link, node: str) -> bool:
    """Return whether a node other than *node* has a lease: it runs, or did until recently."""
    reply = await link.call("HKEYS", NODES)
    with reading_answer():
        others = [name for each in reply if (name := each.decode()) != node]
    return bool(others and await link.call("EXISTS", *map(lease_of, others)))
