"""`--memory` bounds the measured memory of a server, whatever its clients do."""

import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, Command

pytestmark = pytest.mark.stress

MIB = 1024 * 1024
MEMORY_MIB = 64

# The limit on resident memory above the idle server's, relative to `--memory`.  Connections
# themselves, and memory that the allocator cannot return, are not counted.
MOST = 1.5

# With the senders, as many as the server accepts with that much memory.
CLIENTS = 490

# An attack ends when the peak has not grown for this much of the server's CPU time, or when the
# server was found idle this often.
WORKED_SECONDS = 1.5
IDLE_LOOKS = 6

LINE = 64 * 1024 - 64


class Target:
    """A server as a process, and the connections to it."""

    def __init__(self, process: Command, port: int) -> None:
        self._process, self._port = process, port
        self._streams: list[trio.SocketStream] = []

    def resident_mib(self, *, peak: bool = False) -> float:
        name = "VmHWM:" if peak else "VmRSS:"
        status = Path(f"/proc/{self._process.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith(name)]
        return int(line.split()[1]) / 1024

    def worked_seconds(self) -> float:
        stat = Path(f"/proc/{self._process.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    async def idle_mib(self) -> float:
        """Wait until the server has finished starting; return its memory."""
        await self.ping()
        before, now = 0.0, self.resident_mib()
        while now > before:
            await trio.sleep(0.5)
            before, now = now, self.resident_mib()
        return now

    async def connect(self, *lines: str) -> trio.SocketStream:
        """Return a connection with a small receive buffer."""
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream = trio.SocketStream(sock)
        self._streams.append(stream)
        with suppress(OSError):  # a full server
            await sock.connect((LOOPBACK, self._port))
        if lines:
            await send(stream, "".join(f"{line}\n" for line in lines).encode())
        return stream

    async def ping(self) -> None:
        """Return when the server answers."""
        with trio.fail_after(WAIT_SECONDS):
            while True:
                with suppress(OSError, trio.BrokenResourceError):
                    client = await self.connect("/ping")
                    received = b""
                    while data := await client.receive_some(MIB):
                        received = received[-100:] + data
                        if b"pong" in received:
                            await client.aclose()
                            return
                await trio.sleep(0.1)

    async def close(self) -> None:
        for stream in self._streams:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def target(folder: Path) -> AsyncGenerator[Target]:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    options = f"--host {LOOPBACK} --memory {MEMORY_MIB} --log-level error"
    process = Command(folder, MULTICHAT, "serve", str(port), *options.split())
    async with process:
        server = Target(process, port)
        try:
            yield server
        finally:
            await server.close()


async def send(stream: trio.SocketStream, data: bytes) -> None:
    """Send *data*; the server may read it late, or close the connection."""
    with suppress(trio.BrokenResourceError):
        await stream.send_all(data)


async def discard(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(MIB):
            pass


def hello(**fields: object) -> str:
    return f"/json {json.dumps(fields)}"


def say(text: str, nonce: object = None) -> str:
    return json.dumps({"type": "say", "text": text, "nonce": nonce}, ensure_ascii=False)


def numbered(lines: int, text: str) -> bytes:
    return "".join(f"{i} {text}\n" for i in range(lines)).encode()


async def ask_and_never_read(server: Target, clients: int) -> None:
    """Request large answers without reading them; the kernel holds the first megabytes."""
    await send(await server.connect(), numbered(100, "x" * LINE))
    async with trio.open_nursery() as nursery:
        for number in range(min(clients, 60)):
            ask = '{"type":"history","limit":100}' if number % 2 else "/history 100"
            client = await server.connect(*([hello()] if number % 2 else []))
            nursery.start_soon(send, client, f"{ask}\n".encode() * 100)


async def stall_in_one_room(server: Target, clients: int) -> None:
    for number in range(clients):
        await server.connect(*([hello()] if number % 2 else []))
    async with trio.open_nursery() as nursery:
        for number in range(8):
            speaker = await server.connect()
            nursery.start_soon(discard, speaker)
            nursery.start_soon(send, speaker, numbered(50_000, "x" * 40 * number))


async def stall_in_many_rooms(server: Target, clients: int) -> None:
    data = numbered(8_000, "x" * 1000)

    async def one(number: int) -> None:
        for i in range(2):
            lines = [hello(room=f"room{number}")] if i else [f"/join room{number}"]
            await server.connect(*lines)
        await send(await server.connect(f"/join room{number}"), data)

    async with trio.open_nursery() as nursery:
        for number in range(clients // 3):
            nursery.start_soon(one, number)


async def send_half_lines(server: Target, clients: int) -> None:
    """Repeatedly send incomplete lines, on new connections if old ones were closed."""

    async def one(number: int) -> None:
        for _ in range(3):
            client = await server.connect(*([hello()] if number % 2 else []))
            with trio.move_on_after(5):
                await send(client, b"x" * LINE)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(clients):
            nursery.start_soon(one, number)


async def fill_rooms_with_history(server: Target, clients: int) -> None:
    """With characters of each width in Python's strings, in long and short messages."""

    async def speak(number: int) -> None:
        letter = "xé漢🙂"[number % 4]
        text = letter * (3 if number % 8 < 4 else 8000)
        lines = numbered(200_000 // (5 + len(text.encode())), text)
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discard, client)
            for room in range(30):
                await send(client, f"/join room{number}x{room}\n".encode() + lines)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for number in range(min(clients, 16)):
            nursery.start_soon(speak, number)


async def fill_windows(server: Target, clients: int) -> None:
    """Send nonces in one read and one by one, from clients that stay and clients that leave."""

    async def one(number: int) -> None:
        wide = "漢" * 120 if number % 2 else ""
        says = [say("x", f"{wide}{i}") for i in range(300)]
        client = await server.connect(hello(room=f"room{number % 50}"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discard, client)
            step = 10 if number % 4 < 2 else len(says)
            for first in range(0, len(says), step):
                piece = "".join(f"{each}\n" for each in says[first : first + step])
                with trio.move_on_after(5):
                    await send(client, piece.encode())
                await trio.sleep(0.1)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        if number % 3 == 0:
            await trio.aclose_forcefully(client)

    async with trio.open_nursery() as nursery:
        for number in range(clients):
            nursery.start_soon(one, number)


async def all_at_once(server: Target, clients: int) -> None:
    """History first, which stays; then the other attacks together."""
    await fill_rooms_with_history(server, clients)
    async with trio.open_nursery() as nursery:
        for attack in ATTACKS:
            if attack not in (fill_rooms_with_history, all_at_once):
                nursery.start_soon(attack, server, clients // 4)


ATTACKS: list[Callable[[Target, int], Awaitable[None]]] = [
    ask_and_never_read,
    stall_in_one_room,
    stall_in_many_rooms,
    send_half_lines,
    fill_rooms_with_history,
    fill_windows,
    all_at_once,
]


async def run_until_it_holds_no_more(
    attack: Callable[[Target, int], Awaitable[None]], server: Target
) -> None:
    """Run *attack* until the peak no longer grows, or the server is idle."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attack, server, CLIENTS)
        peak = since = worked = 0.0
        idle_looks = 0
        while worked - since < WORKED_SECONDS and idle_looks < IDLE_LOOKS:
            await trio.sleep(0.5)
            before, worked = worked, server.worked_seconds()
            idle_looks = idle_looks + 1 if worked - before < 0.02 else 0
            if (now := server.resident_mib(peak=True)) >= peak + 1:
                peak, since = now, worked
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_memory_stays_within_its_bound(
    attack: Callable[[Target, int], Awaitable[None]], tmp_path: Path
) -> None:
    async with target(tmp_path) as server:
        idle = await server.idle_mib()
        await run_until_it_holds_no_more(attack, server)
        await server.close()
        await server.ping()
        taken = server.resident_mib(peak=True) - idle
        sys.stdout.write(f"{attack.__name__}: {taken:.0f} MiB above {idle:.0f}\n")
        assert taken <= MOST * MEMORY_MIB
