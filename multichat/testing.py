"""For tests of chats and bots: a server without sockets, and clients that follow a script.

All of it runs over `trio.testing` memory streams, so that a test needs no port, and with a mock
clock no time.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
import trio.testing

from multichat.config import ServerConfig
from multichat.errors import lone_exception
from multichat.server import Server

__all__ = ["MemoryServer", "ScriptedClient", "memory_server"]

_READ_BYTES = 64 * 1024


class ScriptedClient:
    """The far end of a connection, in the hands of a test; knows nothing of the protocol.

    A client that is never asked for a line is one that has stalled.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream):
        self.stream = stream
        self._received = bytearray()

    async def send(self, *lines: str) -> None:
        """Send each of *lines*, with its LF, in one piece."""
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
        """Half-close: this client has nothing more to say."""
        await self.stream.send_eof()


class MemoryServer:
    """A server that clients reach through memory; made by `memory_server`."""

    def __init__(self, server: Server, nursery: trio.Nursery) -> None:
        self.server = server
        self._nursery = nursery

    def accept(self, stream: trio.abc.Stream) -> None:
        """Have the server treat *stream* as a client that has just connected."""
        self._nursery.start_soon(self.server.handle, stream)

    async def join(self, *, lockstep: bool = False) -> ScriptedClient:
        """Connect a client and return its far end once it is in the room.

        With *lockstep* the connection holds nothing: each write waits until it has been read.
        """
        pair = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        ours, theirs = pair()
        self.accept(ours)
        await trio.testing.wait_all_tasks_blocked()
        return ScriptedClient(theirs)


@asynccontextmanager
async def memory_server(config: ServerConfig | None = None) -> AsyncGenerator[MemoryServer]:
    """Run a server without listeners while the block runs; it is cancelled at the end."""
    with lone_exception():
        async with trio.open_nursery() as nursery:
            yield MemoryServer(Server(config), nursery)
            nursery.cancel_scope.cancel(reason="the block is over")
