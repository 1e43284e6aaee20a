"""The clients of the soak test: a circle of clients that stay, and visitors that come and go."""

import random
import socket
import struct

import trio

LOBBY = "lobby"
ROOMS = (LOBBY, "garden", "kitchen", "cellar", "attic")

# A room with so much traffic that a stalled client is soon too slow.
LOUD = "cellar"

_READ_BYTES = 64 * 1024

# Small, so that stalled clients are detected.
_RECEIVE_BUFFER_BYTES = 4096


class Circle:
    """The clients that stay in the lobby, with what each of them has sent and received.

    `run` runs them until cancelled; `finish` waits until each has received everything.
    """

    PAUSE_SECONDS = 0.5  # between two lines of one client

    def __init__(self, port: int, size: int) -> None:
        self._port = port
        self._size = size
        self._said = [0] * size
        # What each has received from the others, as (sender, number), in order.
        self._heard: list[list[tuple[int, int]]] = [[] for _ in range(size)]
        self._finishing = False
        self._troubles: list[str] = []

    @property
    def said(self) -> int:
        """The number of lines that were sent."""
        return sum(self._said)

    @property
    def heard(self) -> int:
        """The number of lines that were received, by all of them together."""
        return sum(map(len, self._heard))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and send and receive until cancelled."""
        streams = [await trio.open_tcp_stream("127.0.0.1", self._port) for _ in range(self._size)]
        try:
            for me, stream in enumerate(streams):
                await stream.send_all(f"/name stays-{me}\n/ping\n".encode())
                heard = b""
                while b"[Server] pong\n" not in heard:
                    heard += await stream.receive_some()
            async with trio.open_nursery() as nursery:
                for me, stream in enumerate(streams):
                    nursery.start_soon(self._listen, me, stream)
                    nursery.start_soon(self._talk, me, stream)
                task_status.started()
        finally:
            for stream in streams:
                stream.socket.close()  # with no checkpoint, which would be the last when cancelled

    async def _talk(self, me: int, stream: trio.SocketStream) -> None:
        await trio.sleep(self.PAUSE_SECONDS * me / self._size)
        try:
            while not self._finishing:
                await stream.send_all(f"number {self._said[me]}\n".encode())
                self._said[me] += 1
                await trio.sleep(self.PAUSE_SECONDS)
        except trio.BrokenResourceError:
            self._troubles.append(f"stays-{me} could not go on talking")

    async def _listen(self, me: int, stream: trio.SocketStream) -> None:
        half = b""
        try:
            while data := await stream.receive_some(_READ_BYTES):
                *lines, half = (half + data).split(b"\n")
                for line in lines:
                    if line.startswith(b"[stays-"):
                        who, _, number = line[7:].partition(b"] number ")
                        self._heard[me].append((int(who), int(number)))
        except trio.BrokenResourceError:
            pass
        self._troubles.append(f"stays-{me} was disconnected")

    async def finish(self) -> None:
        """Stop sending, and wait until everything has been received."""
        self._finishing = True
        await trio.sleep(2 * self.PAUSE_SECONDS)
        while self.heard < self.said * (self._size - 1):
            await trio.sleep(0.05)

    def troubles(self) -> list[str]:
        """Return lost, duplicate and reordered messages."""
        found = list(self._troubles)
        for me, heard in enumerate(self._heard):
            for who in range(self._size):
                numbers = [number for speaker, number in heard if speaker == who]
                if who != me and numbers != list(range(self._said[who])):
                    found.append(
                        f"stays-{me} heard {len(numbers)} of {self._said[who]} lines of "
                        f"stays-{who}, or not in order"
                    )
            # The two receive the same, except for their own messages.
            other = (me + 1) % self._size
            mine = [line for line in heard if line[0] != other]
            if mine != [line for line in self._heard[other] if line[0] != me]:
                found.append(f"stays-{me} and stays-{other} heard two orders")
        return found


class Visitor:
    """Connects, acts at random, leaves in a random way, and returns, until cancelled."""

    def __init__(self, port: int, number: int, seed: int) -> None:
        self._port = port
        self._number = number
        self._chance = random.Random(seed)
        self.here = False
        self.visits = 0

    async def run(self, first_seconds: float) -> None:
        """Connect for the first time after that many seconds."""
        await trio.sleep(first_seconds)
        while True:
            try:
                stream = await self._come()
                self.visits += 1
                self.here = True
                await self._visit(stream)
            except* (OSError, trio.BrokenResourceError):
                pass  # it was too slow, and may have received a goodbye
            finally:
                self.here = False
            await trio.sleep(self._chance.uniform(0, 1))

    async def _come(self) -> trio.SocketStream:
        plain = trio.socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        try:
            await plain.connect(("127.0.0.1", self._port))
        except BaseException:
            plain.close()
            raise
        return trio.SocketStream(plain)

    async def _visit(self, stream: trio.SocketStream) -> None:
        self._reading = trio.Event()
        self._reading.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, stream, nursery.cancel_scope)
                if self._chance.random() < 0.25:
                    await stream.send_all(b"/json {}\n")
                    self._say = '{{"type":"say","text":"{}"}}\n'
                    self._join = '{{"type":"join","room":"{}"}}\n'
                    self._rename = '{{"type":"name","name":"{}"}}\n'
                else:
                    self._say, self._join, self._rename = "{}\n", "/join {}\n", "/name {}\n"
                for _ in range(self._chance.randrange(3, 15)):
                    await self._act(stream)
                    await trio.sleep(self._chance.uniform(0, 2))
                await self._leave(stream)
                nursery.cancel_scope.cancel(reason="the visit is over")
        finally:
            await trio.aclose_forcefully(stream)

    async def _listen(self, stream: trio.SocketStream, visit: trio.CancelScope) -> None:
        while True:
            await self._reading.wait()
            if not await stream.receive_some(_READ_BYTES):
                break
        visit.cancel(reason="the server has closed")

    async def _act(self, stream: trio.SocketStream) -> None:
        match self._chance.choice(("talk", "talk", "loud", "rename", "move", "move", "stall")):
            case "talk":
                await self._send(stream, self._say, f"hello from {self._number}")
            case "loud":
                await self._send(stream, self._join, LOUD)
                for _ in range(5):
                    await self._send(stream, self._say, "x" * 300)
            case "rename":
                name = f"visitor-{self._number}-{self._chance.randrange(100)}"
                await self._send(stream, self._rename, name)
            case "move":
                await self._send(stream, self._join, self._chance.choice(ROOMS))
            case "stall":
                self._reading = trio.Event()
                await trio.sleep(self._chance.uniform(0, 8))
                self._reading.set()

    async def _send(self, stream: trio.SocketStream, form: str, text: str) -> None:
        await stream.send_all(form.format(text).encode())

    async def _leave(self, stream: trio.SocketStream) -> None:
        match self._chance.choice(("close", "half-close", "reset", "quit", "mid-line")):
            case "half-close":
                await stream.send_eof()
                await trio.sleep(1)  # unless the listener is closed before
            case "reset":
                linger = struct.pack("ii", 1, 0)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            case "quit":
                await stream.send_all(b"/quit\n")
                await trio.sleep(1)
            case "mid-line":
                await stream.send_all(b"as I was say")
