"""`--memory` bounds what a server takes, whatever its clients do: measured, not computed."""

import json
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from .support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, Command

pytestmark = pytest.mark.stress

MIB = 1024 * 1024
MEMORY_MIB = 128

# Of resident memory above the idle server's.  What is not counted: the connections themselves, what
# is in hand of a read, and what the allocator cannot give back.
MOST = 1.5

CLIENTS = 1000
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

    async def connect(self, *lines: str) -> trio.SocketStream:
        """Return a connection whose kernel holds little of what is not read."""
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream = trio.SocketStream(sock)
        self._streams.append(stream)
        with suppress(OSError):  # a full server
            await sock.connect((LOOPBACK, self._port))
        if lines:
            await send(stream, "".join(f"{line}\n" for line in lines).encode(), 30)
        return stream

    async def ping(self) -> None:
        """Return when the server answers."""
        with trio.fail_after(WAIT_SECONDS):
            while True:
                with suppress(OSError, trio.BrokenResourceError):
                    client = await self.connect("/ping")
                    heard = b""
                    while data := await client.receive_some(MIB):
                        heard = heard[-100:] + data
                        if b"pong" in heard:
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
            await server.ping()
            yield server
        finally:
            await server.close()


async def send(stream: trio.SocketStream, data: bytes, seconds: float) -> None:
    """Send what is taken within that time."""
    with trio.move_on_after(seconds):
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)


async def discard(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(MIB):
            pass


def hello(**wishes: object) -> str:
    return f"/json {json.dumps(wishes)}"


def say(text: str, nonce: object = None) -> str:
    return json.dumps({"type": "say", "text": text, "nonce": nonce}, ensure_ascii=False)


async def ask_and_never_read(server: Target) -> None:
    """Large answers; a kernel takes the first megabytes of them."""
    speaker = await server.connect()
    await send(speaker, b"".join(b"%d %b\n" % (i, b"x" * LINE) for i in range(100)), 30)
    async with trio.open_nursery() as nursery:
        for number in range(80):
            ask = '{"type":"history","limit":100}' if number % 2 else "/history 100"
            client = await server.connect(*([hello()] if number % 2 else []))
            nursery.start_soon(send, client, f"{ask}\n".encode() * 100, 15)
        await trio.sleep(15)


async def stall_in_one_room(server: Target) -> None:
    stalled = [await server.connect(*([hello()] if i % 2 else [])) for i in range(300)]
    async with trio.open_nursery() as nursery:
        for number in range(8):
            speaker = await server.connect()
            nursery.start_soon(discard, speaker)
            data = b"".join(b"%d %b\n" % (i, b"x" * 40 * number) for i in range(50_000))
            nursery.start_soon(send, speaker, data, 15)
        await trio.sleep(16)
        nursery.cancel_scope.cancel()
    for each in stalled:
        await trio.aclose_forcefully(each)


async def stall_in_many_rooms(server: Target) -> None:
    data = b"".join(b"%d %b\n" % (i, b"x" * 1000) for i in range(8_000))

    async def one(number: int) -> None:
        for i in range(2):
            wishes = [hello(room=f"room{number}")] if i else [f"/join room{number}"]
            await server.connect(*wishes)
        speaker = await server.connect(f"/join room{number}")
        await send(speaker, data, 20)

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(one, number)


async def send_half_lines(server: Target) -> None:
    """Again and again, from connections that are new where the old ones were closed."""

    async def one(number: int) -> None:
        for _ in range(3):
            client = await server.connect(*([hello()] if number % 2 else []))
            await send(client, b"x" * LINE, 5)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(CLIENTS):
            nursery.start_soon(one, number)


async def fill_rooms_with_history(server: Target) -> None:
    """In characters of each width that Python has, in long messages and in short ones."""
    async with trio.open_nursery() as nursery:
        for number in range(16):
            letter = "xé漢🙂"[number % 4]
            text = letter * (3 if number % 8 < 4 else 8000)

            async def speak(number: int = number, text: str = text) -> None:
                client = await server.connect()
                nursery.start_soon(discard, client)
                for room in range(60):
                    lines = [f"{i} {text}" for i in range(1_000_000 // (20 + len(text.encode())))]
                    data = "\n".join([f"/join room{number}x{room}", *lines, ""]).encode()
                    await send(client, data, 10)

            nursery.start_soon(speak)
        with trio.move_on_after(40):
            await trio.sleep_forever()
        nursery.cancel_scope.cancel()


async def fill_windows(server: Target) -> None:
    """In one read each, and one by one, from clients that stay and clients that leave."""

    async def one(number: int) -> None:
        wide = "漢" * 120 if number % 2 else ""
        says = [say("x", f"{wide}{i}") for i in range(300)]
        client = await server.connect(hello(room=f"room{number % 50}"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discard, client)
            step = 10 if number % 4 < 2 else len(says)
            for first in range(0, len(says), step):
                piece = "".join(f"{each}\n" for each in says[first : first + step])
                await send(client, piece.encode(), 5)
                await trio.sleep(0.1)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        if number % 3 == 0:
            await trio.aclose_forcefully(client)

    async with trio.open_nursery() as nursery:
        for number in range(CLIENTS):
            nursery.start_soon(one, number)


async def all_at_once(server: Target) -> None:
    async with trio.open_nursery() as nursery:
        for attack in ATTACKS:
            if attack is not all_at_once:
                nursery.start_soon(attack, server)


ATTACKS: list[Callable[[Target], Awaitable[None]]] = [
    ask_and_never_read,
    stall_in_one_room,
    stall_in_many_rooms,
    send_half_lines,
    fill_rooms_with_history,
    fill_windows,
    all_at_once,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_memory_stays_within_its_bound(
    attack: Callable[[Target], Awaitable[None]], tmp_path: Path
) -> None:
    async with target(tmp_path) as server:
        idle = server.resident_mib()
        await attack(server)
        taken = server.resident_mib(peak=True) - idle
        sys.stdout.write(f"{attack.__name__}: {taken:.0f} MiB above {idle:.0f}\n")
        assert taken <= MOST * MEMORY_MIB
        await server.close()
        await server.ping()
