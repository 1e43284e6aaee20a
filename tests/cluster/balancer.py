"""A TCP load balancer with faults: round robin over ports of loopback.

In a test it runs in the process, and the test causes the faults of each `Passage`.  As a process,
`python -m tests.cluster.balancer PORT… [--proxy 1|2]` prints its port and reads commands from
standard input, which apply to all connections: see `_COMMANDS`.

Between nodes and clients, or between a node and its engine.
"""

import argparse
import socket
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.support import proxy_headers
from tests.support.processes import LOOPBACK

__all__ = ["Balancer", "Passage", "balancing"]

_READ_BYTES = 64 * 1024

# How much is kept of a held direction; more stays in the kernel.
_HELD_BYTES = 1024 * 1024


class Passage:
    """One connection through the balancer: *client* to *server*, the node at *target*.

    The faults are methods; each applies from now on, to bytes that have not been passed yet.
    """

    def __init__(
        self, client: trio.SocketStream, server: trio.SocketStream, target: int, piece: int
    ) -> None:
        self.client, self.server, self.target = client, server, target
        self.delay = 0.0  # seconds before each piece is passed, in both directions
        self.piece = piece  # pieces have at most this many bytes
        self.ended = trio.Event()
        self._open = trio.Event()
        self._open.set()
        self._left: int | None = None  # bytes to the server before it is torn
        self._holding = False
        self._held = bytearray()
        self._scope = trio.CancelScope()

    def cut(self) -> None:
        """Close both sides; what is under way in the kernel still arrives."""
        self._scope.cancel(reason="cut")

    def reset(self) -> None:
        """Reset both sides."""
        for stream in self.client, self.server:
            _reset_on_close(stream)
        self._scope.cancel(reason="reset")

    def stall(self) -> None:
        """Pass nothing, in either direction, until `resume`."""
        if self._open.is_set():
            self._open = trio.Event()

    def resume(self) -> None:
        """End a stall."""
        self._open.set()

    def tear(self, more_bytes: int) -> None:
        """Pass only *more_bytes* more to the server, then close both sides."""
        self._left = more_bytes

    def hold(self) -> None:
        """Keep what the client sends from now on; see `detach` and `deliver`."""
        self._holding = True

    def detach(self) -> None:
        """Close the client's side alone: the server still believes in the connection."""
        self._holding = True
        self.client.socket.close()

    async def deliver(self) -> int:
        """Send what was held to the server, late, and close; return the number of bytes."""
        held = bytes(self._held)
        try:
            await self.server.send_all(held)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            held = b""
        self.cut()
        return len(held)

    async def run(self) -> None:
        """Pass bytes until one side ends or a fault does."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass, self.client, self.server)
                    nursery.start_soon(self._pass, self.server, self.client)
        finally:
            self.ended.set()
            for stream in self.client, self.server:
                stream.socket.close()

    async def _pass(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        to_server = sink is self.server
        try:
            while data := await source.receive_some(min(_READ_BYTES, self.piece)):
                await self._open.wait()
                if self.delay:
                    await trio.sleep(self.delay)
                if to_server and self._holding:
                    self._held += data
                    if len(self._held) >= _HELD_BYTES:
                        await trio.sleep_forever()
                    continue
                if to_server and self._left is not None:
                    data = data[: self._left]
                    self._left -= len(data)
                await sink.send_all(data)
                if to_server and self._left == 0:
                    self._scope.cancel(reason="torn")
            await self._open.wait()
            if not self._holding:
                await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if not self._holding:
                self._scope.cancel(reason="one side has ended")


class Balancer:
    """Listens on `port`, and passes each connection on to the next of *targets* that accepts it.

    *targets* may be changed at any time.  With *proxy* 1 or 2 a connection begins with a PROXY
    header of that version; with *tls* version 2 says that the client uses TLS.  `passages` are the
    open connections, the oldest first.  New ones get `delay` and `piece`.
    """

    def __init__(
        self, targets: Sequence[int], *, proxy: int = 0, tls: bool = False, port: int = 0
    ) -> None:
        self.targets = list(targets)
        self.passages: list[Passage] = []
        self.delay = 0.0
        self.piece = _READ_BYTES
        self.port = port
        self._proxy, self._tls = proxy, tls
        self._next = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        [listener] = await trio.open_tcp_listeners(self.port, host=LOOPBACK)
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._handle, [listener])

    async def _handle(self, client: trio.SocketStream) -> None:
        source = client.socket.getpeername()
        target, server = await self._connect()
        if server is None:
            client.socket.close()
            return
        passage = Passage(client, server, target, self.piece)
        passage.delay = self.delay
        self.passages.append(passage)
        try:
            await server.send_all(self._header(*source[:2]))
            await passage.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.passages.remove(passage)
            passage.ended.set()
            client.socket.close()
            server.socket.close()

    async def _connect(self) -> tuple[int, trio.SocketStream | None]:
        for _ in range(len(self.targets)):
            target = self.targets[self._next % len(self.targets)]
            self._next += 1
            try:
                return target, await trio.open_tcp_stream(LOOPBACK, target)
            except OSError:
                continue
        return 0, None

    def _header(self, host: str, port: int) -> bytes:
        match self._proxy:
            case 0:
                return b""
            case 1:
                return proxy_headers.v1(host, port)
        return proxy_headers.v2(host, port, tls=self._tls)


def _reset_on_close(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@asynccontextmanager
async def balancing(*targets: int, **options: Any) -> AsyncIterator[Balancer]:
    """Run a balancer over *targets*; for *options* see `Balancer`."""
    balancer = Balancer(targets, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(balancer.run)
        yield balancer
        nursery.cancel_scope.cancel(reason="the test has ended")


_COMMANDS = ("cut", "reset", "stall", "resume", "hold", "detach", "deliver", "targets PORT…")


async def _obey(balancer: Balancer, line: str) -> str:
    match line.split():
        case ["targets", *ports]:
            balancer.targets = list(map(int, ports))
        case [("cut" | "reset" | "stall" | "resume" | "hold" | "detach") as fault]:
            for passage in list(balancer.passages):
                getattr(passage, fault)()
        case ["deliver"]:
            return f"delivered {sum([await each.deliver() for each in list(balancer.passages)])}"
        case _:
            return f"unknown: {line.strip()}; there are {', '.join(_COMMANDS)}"
    return f"done: {line.strip()}"


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="+", type=int)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--proxy", type=int, choices=(1, 2), default=0)
    parser.add_argument("--tls", action="store_true")
    chosen = parser.parse_args()
    async with balancing(
        *chosen.targets, port=chosen.port, proxy=chosen.proxy, tls=chosen.tls
    ) as balancer:
        _say(f"Listening on port {balancer.port}")
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            _say(await _obey(balancer, line))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(_main)
