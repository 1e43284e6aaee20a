"""Test tools for chats and bots: a server in memory, and scripted clients.

Everything runs over `trio.testing` memory streams, so that tests need no ports and, with a mock
clock, no waiting.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
import trio.testing

from multichat.backend.base import Backend
from multichat.client.chat import Chat
from multichat.client.connect import open_chat
from multichat.errors import lone_exception
from multichat.journal.base import Journal
from multichat.net.fair_share import NO_PAUSES
from multichat.server.authentication import Authenticate
from multichat.server.config import ServerConfig
from multichat.server.join_hook import OnJoin
from multichat.server.passphrases import Hasher
from multichat.server.server import Server

__all__ = ["MemoryServer", "ScriptedClient", "StalledClient", "memory_server", "run_on_mock_clock"]

T = TypeVar("T")

_READ_BYTES = 64 * 1024


class ScriptedClient:
    """The client's end of a connection, controlled by a test; does not know the protocol.

    Reads only when a test asks for a line, and stalls otherwise.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream):
        self.stream = stream
        self._received = bytearray()

    async def send(self, *lines: str) -> None:
        """Send *lines*, with an LF after each, in one call of `send_all`."""
        await self.stream.send_all("".join(f"{line}\n" for line in lines).encode())

    async def line(self) -> str:
        """Return the next line; raises `EOFError` when there is none."""
        while (end := self._received.find(b"\n")) < 0:
            data = await self.stream.receive_some(_READ_BYTES)
            if not data:
                raise EOFError("the server closed the connection")
            self._received += data
        line = self._received[:end].decode()
        del self._received[: end + 1]
        return line

    async def lines(self, count: int) -> list[str]:
        """Return the next *count* lines."""
        return [await self.line() for _ in range(count)]

    async def rest(self) -> list[str]:
        """Return all lines until the server closes."""
        lines: list[str] = []
        try:
            while True:
                lines.append(await self.line())
        except EOFError:
            return lines

    async def finish(self) -> None:
        """Half-close the connection."""
        await self.stream.send_eof()


class StalledClient(ScriptedClient):
    """A client that reads nothing until `recover` is called, so that the server's writes wait."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, gate: trio.Event):
        super().__init__(stream)
        self._gate = gate

    def recover(self) -> None:
        """Read everything from now on."""
        self._gate.set()


class MemoryServer:
    """A server whose clients connect through memory streams; created by `memory_server`."""

    def __init__(self, server: Server, nursery: trio.Nursery) -> None:
        self.server = server
        self._nursery = nursery

    def accept(self, stream: trio.abc.Stream) -> None:
        """Serve *stream* as a client that has just connected."""
        self._nursery.start_soon(self.server.handle, stream)

    def connect(self, *, lockstep: bool = False) -> trio.abc.HalfCloseableStream:
        """Connect a client and return its end of the connection, which the caller closes.

        With *lockstep* the connection has no buffer: each write waits until it has been read.
        """
        pair = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        ours, theirs = pair()
        self.accept(ours)
        return theirs

    async def join(self, *, lockstep: bool = False) -> ScriptedClient:
        """Connect a client and return it once it is in the room; see `connect`."""
        client = ScriptedClient(self.connect(lockstep=lockstep))
        await trio.testing.wait_all_tasks_blocked()
        return client

    async def stalled(self) -> StalledClient:
        """Connect a client that reads nothing, and return it once it is in the room."""
        ours, theirs = trio.testing.memory_stream_pair()
        gate = trio.Event()
        pump = ours.send_stream.send_all_hook  # passes written data to the other end
        assert pump is not None  # noqa: S101 - so trio makes it

        async def pump_in_time() -> None:
            await gate.wait()
            await pump()

        ours.send_stream.send_all_hook = pump_in_time
        self.accept(ours)
        await trio.testing.wait_all_tasks_blocked()
        return StalledClient(theirs, gate)

    @asynccontextmanager
    async def chat(
        self, *, name: str | None = None, room: str | None = None, plain: bool = False
    ) -> AsyncGenerator[Chat]:
        """Connect and yield a `Chat`; see `multichat.open_chat`."""
        async with open_chat(self.connect(), name=name, room=room, plain=plain) as chat:
            yield chat

    @asynccontextmanager
    async def bot(
        self,
        bot: Callable[[Chat], Awaitable[object]],
        *,
        name: str | None = None,
        room: str | None = None,
    ) -> AsyncGenerator[Chat]:
        """Run *bot* as a client while the block runs; its exceptions are raised from the block.

        Yields the bot's chat, for inspection.
        """
        async with self.chat(name=name, room=room) as chat:
            with lone_exception():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(bot, chat)
                    yield chat
                    nursery.cancel_scope.cancel(reason="the block is over")


@asynccontextmanager
async def memory_server(
    config: ServerConfig | None = None,
    *,
    journal: Journal | None = None,
    backend: Backend | None = None,
    authenticate: Authenticate | None = None,
    on_join: OnJoin | None = None,
    hasher: Hasher | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncGenerator[MemoryServer]:
    """Run a server without listeners while the block runs, and cancel it at the end.

    For the parameters see `Server`.  The server uses trio's clock: under `run_on_mock_clock` or
    pytest-trio's `autojump_clock`, hours of chat take no time.
    """
    made = Server(
        config,
        journal=journal,
        backend=backend,
        authenticate=authenticate,
        on_join=on_join,
        shares=NO_PAUSES,
        hasher=hasher,
        clock=clock,
    )
    async with made.open() as server:
        with lone_exception():
            async with trio.open_nursery() as nursery:
                yield MemoryServer(server, nursery)
                nursery.cancel_scope.cancel(reason="the block is over")


def run_on_mock_clock(main: Callable[[], Awaitable[T]]) -> T:
    """Run *main* like `trio.run`, with a clock that jumps whenever all tasks are blocked."""
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
