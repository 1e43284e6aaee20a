"""A connection to the engine for a single command, outside any node.

There is no reconnect: after the loss of the connection the user runs the command again.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from multichat.cluster.address import ClusterAddress
from multichat.cluster.calls import Call, Tail, tails
from multichat.cluster.connection import Connection, ConnectionConfig, Lost, Ready, Retrying
from multichat.cluster.errors import (
    EngineAway,
    EngineRefused,
    EngineUnavailable,
    FateUnknown,
    NotOurs,
    reading_answer,
)
from multichat.cluster.library import (
    LibraryRefused,
    find_library,
    load_command,
    load_library,
)
from multichat.cluster.link import Link
from multichat.errors import JournalFailed

__all__ = ["EngineSession", "open_session"]

T = TypeVar("T")

# How many rooms one request asks for: the reply has some 100 KiB.
_ROOMS_AT_ONCE = 500


class EngineSession:
    """The engine at *address*; each method raises `JournalFailed` on failure."""

    def __init__(self, address: ClusterAddress, link: Link) -> None:
        self.address = address
        self._link = link

    def failed(self, reason: str) -> JournalFailed:
        """Return an error that names this engine."""
        return JournalFailed(self.address, reason)

    async def command(self, *words: str | bytes | int) -> Any:
        """Send a command and return its reply."""
        try:
            return await self._link.call(*words)
        except (EngineAway, FateUnknown) as error:
            raise self.failed(f"{error.reason}; run the command again") from None
        except EngineRefused as error:
            raise self.failed(error.meaning.reason) from None

    async def call(self, call: Call[T]) -> T:
        """Call a function of the library."""
        reply = await self.command(*call.words)
        try:
            return call.read(reply)
        except EngineRefused as error:
            raise self.failed(error.meaning.reason) from None

    async def rooms(self) -> list[str]:
        """Return the keys of the rooms that have messages, the one with the oldest first."""
        reply = await self.command("ZRANGE", "multichat:oldest", 0, -1)
        try:
            with reading_answer():
                return [key.decode() for key in reply]
        except NotOurs as error:
            raise self.failed(error.meaning.reason) from None

    async def load_library(self, *, write: bool) -> bool:
        """Return whether the engine has the library; with *write*, load it if it is missing."""
        try:
            if write:
                await load_library(self._link)
                return True
            found = await find_library(self._link)
            load_command(found)
        except (EngineAway, FateUnknown) as error:
            raise self.failed(error.reason) from None
        except EngineRefused as error:
            raise self.failed(error.meaning.reason) from None
        except LibraryRefused as error:
            raise self.failed(str(error)) from None
        return found is not None

    async def tails(self, rooms: Sequence[str]) -> dict[str, Tail]:
        """Return the tail of the log of each room."""
        found: dict[str, Tail] = {}
        for start in range(0, len(rooms), _ROOMS_AT_ONCE):
            some = rooms[start : start + _ROOMS_AT_ONCE]
            answers = await self.call(tails([(room, "") for room in some]))
            found.update(zip(some, answers, strict=True))
        return found


@asynccontextmanager
async def open_session(config: ConnectionConfig) -> AsyncGenerator[EngineSession]:
    """Connect to the engine; raises `JournalFailed`."""
    address = config.address
    connection = Connection(config)
    try:
        async with connection.open():
            match await connection.receive():
                case Ready(link=link):
                    yield EngineSession(address, link)
                case Lost(reason=reason) | Retrying(reason=reason):
                    raise JournalFailed(address, reason)
    except EngineUnavailable as error:
        raise JournalFailed(address, error.reason) from None
