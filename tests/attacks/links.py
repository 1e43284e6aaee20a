"""Readers on slow links: what they receive while others are faster.

Each function returns errors as lines; none means success.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
)
from tests.support.proxy import SlowLink

from .measure import hostile

__all__ = ["MBIT", "flood", "pipe", "private_messages"]

MBIT = 125_000  # bytes a second

_READER = Path(__file__).parent / "reader.py"
_PADDING = b"x" * 1000

# The capacity of the server's queue and the kernel's buffers on both sides.
_BUFFERED_BYTES = 16_000_000

# The time for readers to receive the rest; the slowest may not finish.
_DRAIN_SECONDS = 60.0


class _Reader:
    """A reader in a process of its own, behind a slow link."""

    def __init__(self, name: str, link: SlowLink, command: Command) -> None:
        self.name, self.link, self.command = name, link, command

    async def finish(self, seconds: float) -> dict[str, Any]:
        """Wait for its end, with a timeout; return the result."""
        with trio.move_on_after(seconds):
            while self.command.process.poll() is None:
                await trio.sleep(0.02)
        self.command.process.terminate()
        await self.command.wait()
        assert not self.command.err, self.command.err
        return dict(json.loads(self.command.out.splitlines()[-1]))


@asynccontextmanager
async def _readers(folder: Path, port: int, links: Sequence[float]) -> AsyncIterator[list[_Reader]]:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        readers = []
        for i, bytes_per_second in enumerate(links):
            link = SlowLink(port, bytes_per_second)
            await nursery.start(link.run)
            name = f"reader-{i}" if len(links) > 1 else "victim"
            readers.append(_Reader(name, link, await _read(stack, folder, link.port, name)))
        yield readers
        nursery.cancel_scope.cancel(reason="all was read")


async def _read(
    stack: AsyncExitStack, folder: Path, port: int, name: str, since: str = ""
) -> Command:
    argv = [sys.executable, "-S", "-E", str(_READER), str(port), name, since]
    command = Command(folder, *argv, stdin=subprocess.DEVNULL)
    await stack.enter_async_context(command)
    await command.wait_for("reading")
    return command


def _serve(folder: Path, command: str, options: str) -> ServerCommand:
    return ServerCommand(folder, command, "serve", "0", "--host", LOOPBACK, *options.split())


def _numbered(first: int, count: int) -> bytes:
    return b"".join(b"%d %s\n" % (first + i, _PADDING) for i in range(count))


class _Speaker:
    """A sender of numbered messages on a raw socket."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((LOOPBACK, port), WAIT_SECONDS)
        self.said = 0

    def flood(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._socket.sendall(_numbered(self.said, 64))
            self.said += 64

    def say(self, text: str) -> None:
        self._socket.sendall(f"{text}\n".encode())

    def end(self) -> None:
        """Send the last message, and wait until the server has delivered it."""
        self._socket.sendall(b"end\n/ping\n")
        answer = b""
        while b"pong\n" not in answer:
            data = self._socket.recv(1 << 16)
            assert data, "the speaker was disconnected"
            answer += data

    def ask(self, line: str) -> str:
        self.say(line)
        return self._socket.recv(1 << 16).decode()

    def close(self) -> None:
        self._socket.close()


def _trouble_of(name: str, found: dict[str, Any], said: int, *, at_end: bool) -> list[str]:
    if found["trouble"]:
        return [f"{name}: {found['trouble']}"]
    if at_end and found["said"] + found["missed"] != said:
        return [f"{name}: {found['said']} heard and {found['missed']} missed of {said}"]
    return []


async def flood(
    folder: Path,
    *,
    links: Sequence[float],
    seconds: float,
    command: str = MULTICHAT,
    options: str = "",
    show: Callable[[str], object] = str,
) -> list[str]:
    """One sender floods readers on *links* (in bytes a second).

    They stay connected.  Each receives everything that the history has at the end, and the exact
    number of messages that it missed before.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(_serve(folder, command, options))
        readers = await stack.enter_async_context(_readers(folder, server.port, links))
        speaker = _Speaker(server.port)
        stack.callback(speaker.close)
        await trio.to_thread.run_sync(speaker.flood, seconds)
        passed = [reader.link.passed for reader in readers]
        await trio.to_thread.run_sync(speaker.end)
        results = await _finish(readers, _DRAIN_SECONDS)
        since = next((found["first"] for found in results.values() if found["first"]), "")
        newcomer = await _read(stack, folder, server.port, "newcomer", since)
        [kept] = (await _finish([_Reader("newcomer", readers[0].link, newcomer)], 60)).values()
        kept_from = kept["last"] - kept["said"] + 1
    trouble = []
    for reader, bytes_passed in zip(readers, passed, strict=True):
        found = results[reader.name]
        show(
            f"{reader.name}: {bytes_passed / seconds / MBIT:.0f} Mbit/s, {found['said']} heard, "
            f"{found['missed']} missed of {speaker.said}, all from {found['whole_from']} on; "
            f"kept from {kept_from} on {found['trouble']}"
        )
        trouble += _trouble_of(reader.name, found, speaker.said, at_end=True)
        if found["whole_from"] > kept_from:
            trouble.append(f"{reader.name} missed messages that the history still has")
    return trouble


async def _finish(readers: Sequence[_Reader], seconds: float) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}

    async def finish(reader: _Reader) -> None:
        results[reader.name] = await reader.finish(seconds)

    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(finish, reader)
    return results


async def private_messages(
    folder: Path,
    *,
    link: float,
    seconds: float,
    command: str = MULTICHAT,
    options: str = "",
    show: Callable[[str], object] = str,
) -> list[str]:
    """A victim on a slow link gets endless private messages, and one message a second in its room.

    It stays connected, receives every message of the room, and keeps its name.
    """
    trouble = []
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(_serve(folder, command, options))
        [victim] = await stack.enter_async_context(_readers(folder, server.port, [link]))
        speaker = _Speaker(server.port)
        stack.callback(speaker.close)
        async with hostile(server, folder, "private", ""):
            for _ in range(round(seconds)):
                await trio.to_thread.run_sync(speaker.say, str(speaker.said))
                speaker.said += 1
                await trio.sleep(1)
            answer = await trio.to_thread.run_sync(speaker.ask, "/name victim")
            if "is taken" not in answer:
                trouble.append(f"somebody else could take its name: {answer!r}")
        await trio.to_thread.run_sync(speaker.end)
        found = (await _finish([victim], _DRAIN_SECONDS))["victim"]
    show(f"victim: {found['said']} heard of {speaker.said}, {found['direct']} private messages")
    trouble += _trouble_of("victim", found, speaker.said, at_end=True)
    if found["missed"]:
        trouble.append(f"the victim missed {found['missed']}")
    return trouble


async def pipe(
    folder: Path,
    *,
    links: Sequence[float],
    megabytes: int,
    command: str = MULTICHAT,
    options: str = "",
    show: Callable[[str], object] = str,
) -> list[str]:
    """A file is piped into a room of readers on *links* (in bytes a second).

    The sender is as fast as the fastest reader, which misses nothing; the others receive the exact
    number of messages that they missed.
    """
    path = folder / "file"
    count = megabytes * 1_000_000 // (len(_PADDING) + 8)
    path.write_bytes(_numbered(0, count) + b"end\n")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(_serve(folder, command, options))
        readers = await stack.enter_async_context(_readers(folder, server.port, links))
        fastest = max(zip(links, readers, strict=True), key=lambda pair: pair[0])[1]
        with path.open("rb") as data:
            argv = [command, "connect", LOOPBACK, str(server.port)]
            sender = Command(folder, *argv, stdin=data.fileno())
            await stack.enter_async_context(sender)
        started = time.monotonic()
        with trio.fail_after(10 * WAIT_SECONDS):
            while sender.process.poll() is None:
                await trio.sleep(0.01)
        elapsed = time.monotonic() - started
        passed = fastest.link.passed
        fast = (await _finish([fastest], _DRAIN_SECONDS))[fastest.name]
        ahead = fastest.link.passed - passed
        others = [reader for reader in readers if reader is not fastest]
        results = {fastest.name: fast, **await _finish(others, 1.0)}
    trouble = [f"the sender: {sender.err}"] if sender.err or sender.process.returncode else []
    show(f"sent in {elapsed:.1f} s, {ahead / 1e6:.1f} MB ahead of the fastest reader")
    if ahead > _BUFFERED_BYTES:
        trouble.append(f"the sender was {ahead / 1e6:.1f} MB ahead of the fastest reader")
    for name, found in sorted(results.items()):
        show(f"{name}: {found['said']} heard, {found['missed']} missed of {count}")
        trouble += _trouble_of(name, found, count, at_end=found is fast)
    if fast["missed"]:
        trouble.append(f"the fastest reader missed {fast['missed']}")
    return trouble
