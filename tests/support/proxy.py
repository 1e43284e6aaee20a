"""TCP proxies: one cuts, stalls and resets connections, the other limits their bandwidth.

`Proxy` injects random faults from a seed.

The fault of a connection depends only on the seed and its index, so the same seed causes the same
faults; their timing depends on the machine.
"""

import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import trio

__all__ = ["Proxy", "SlowLink"]

LOOPBACK = "127.0.0.1"

_READ_BYTES = 16 * 1024

# The buffer of a link; the kernel's default would be megabytes.
_LINK_BYTES = 64 * 1024

# Longer than a room waits for a stalled client, and than a client waits for the welcome, so that
# both cases occur.
_STALL_SECONDS = 12.0


class _Fate:
    """The fault of one connection, and after how long or how many bytes it occurs."""

    def __init__(self, dice: random.Random, calm: bool) -> None:
        self.pauses = [
            (dice.expovariate(1), dice.uniform(0.1, 1)) for _ in range(dice.choice([0, 2]))
        ]
        self.kind = dice.choices(["cut", "reset", "torn", "stall"], [4, 4, 4, 1])[0]
        self.after_seconds = dice.expovariate(1 / 2)
        # A cut can be in the middle of any line, including the hello and the welcome.
        self.after_bytes = dice.choice([3, 40, 250, 1000, 5000, 20_000])
        self.stall_seconds = dice.uniform(1, _STALL_SECONDS)
        if calm:
            self.pauses, self.kind = [], "none"


class _Relay:
    """Listens on `port` of loopback, and passes on each connection as `_handle` does."""

    port = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        [listener] = await trio.open_tcp_listeners(0, host=LOOPBACK)
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._handle, [listener])

    async def _handle(self, client: trio.SocketStream) -> None:
        raise NotImplementedError


class Proxy(_Relay):
    """Listens on `port` and forwards to the loopback port that *target* returns.

    Set `calm` to stop injecting faults, also in existing connections.  *faults* counts the faults.
    """

    def __init__(self, target: Callable[[], int], seed: int) -> None:
        self.calm = trio.Event()
        self.faults: Counter[str] = Counter()
        self._target = target
        self._seed = seed
        self._connections = 0

    async def _handle(self, client: trio.SocketStream) -> None:
        self._connections += 1
        dice = random.Random(f"{self._seed} {self._connections}")
        fate = _Fate(dice, self.calm.is_set())
        try:
            server = await trio.open_tcp_stream(LOOPBACK, self._target())
        except OSError:
            self.faults["no server"] += 1
            await trio.aclose_forcefully(client)
            return
        async with client, server:
            gate = _Gate()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass, client, server, fate, gate, nursery.cancel_scope)
                nursery.start_soon(self._pass, server, client, fate, gate, nursery.cancel_scope)
                await self._befall(fate, gate)
                if gate.torn or not self.calm.is_set():
                    nursery.cancel_scope.cancel(reason="its fate")
            if gate.torn or fate.kind == "reset":
                for stream in client, server:
                    _reset(stream)

    async def _befall(self, fate: _Fate, gate: "_Gate") -> None:
        for after_seconds, seconds in fate.pauses:
            await self._wait(after_seconds)
            await self._pause("pause", seconds, gate)
        with trio.move_on_after(fate.after_seconds):
            await (gate.torn_now.wait() if fate.kind == "torn" else self.calm.wait())
        if fate.kind == "stall":
            await self._pause("stall", fate.stall_seconds, gate)
        elif not self.calm.is_set():
            self.faults[fate.kind] += 1

    async def _pause(self, kind: str, seconds: float, gate: "_Gate") -> None:
        if not self.calm.is_set():
            self.faults[kind] += 1
            gate.open = trio.Event()
            await self._wait(seconds)
            gate.open.set()

    async def _wait(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.calm.wait()

    async def _pass(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        fate: _Fate,
        gate: "_Gate",
        scope: trio.CancelScope,
    ) -> None:
        passed = 0
        try:
            while data := await source.receive_some(_READ_BYTES):
                await gate.open.wait()
                if fate.kind == "torn" and not self.calm.is_set():
                    data = data[: max(0, fate.after_bytes - passed)]
                await sink.send_all(data)
                passed += len(data)
                if fate.kind == "torn" and passed >= fate.after_bytes and not self.calm.is_set():
                    gate.torn = True
                    gate.torn_now.set()
                    return
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel(reason="one side has ended")


class _Gate:
    """Forwards both directions of a connection."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.open.set()
        self.torn = False
        self.torn_now = trio.Event()


def _reset(stream: trio.SocketStream) -> None:
    """Make closing the stream send a reset, which discards unsent data."""
    with suppress(OSError):  # closed already
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class SlowLink(_Relay):
    """Listens on `port` and forwards to the loopback port *target*.

    All connections together get at most *bytes_per_second*; *passed* counts the bytes.
    """

    def __init__(self, target: int, bytes_per_second: float) -> None:
        self.passed = 0
        self._target = target
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0

    async def _handle(self, client: trio.SocketStream) -> None:
        with trio.socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LINK_BYTES)
            await plain.connect((LOOPBACK, self._target))
            server = trio.SocketStream(plain)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_slowly, server, client, nursery.cancel_scope)
                with suppress(trio.BrokenResourceError):
                    async for data in client:
                        await server.send_all(data)
                nursery.cancel_scope.cancel(reason="the client has ended")

    async def _pass_slowly(
        self, server: trio.SocketStream, client: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await server.receive_some(_LINK_BYTES):
                self._free_at = max(self._free_at, trio.current_time())
                self._free_at += len(data) / self._bytes_per_second
                await trio.sleep_until(self._free_at)
                await client.send_all(data)
                self.passed += len(data)
        scope.cancel(reason="the server has ended")
