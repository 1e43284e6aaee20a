"""Connections of the chaos: JSON lines, and clients that connect for a few answers only.

Imports nothing from multichat: the reference is docs/protocol.md.
"""

import json
from collections.abc import Sequence
from typing import Any

import trio

from tests.support.processes import LOOPBACK

from .checker import Heard

__all__ = ["EVERYTHING", "SILENT_SECONDS", "Cut", "Line", "probe", "replay"]

# Silence after which a connection is given up: below `--away`, so that a client returns in time.
SILENT_SECONDS = 3.0

# A replay of this many messages is a replay of all.
EVERYTHING = 2**31 - 1


class Cut(Exception):
    """The connection has ended, in the way that the text describes."""


class Line:
    """JSON lines on a connection."""

    def __init__(self, stream: trio.SocketStream, silent_seconds: float = SILENT_SECONDS) -> None:
        self._stream, self._silent_seconds = stream, silent_seconds
        self._rest = b""

    async def send(self, *requests: dict[str, Any]) -> None:
        await self._send(b"".join(json.dumps(each).encode() + b"\n" for each in requests))

    async def hello(self, fields: dict[str, Any]) -> None:
        await self._send(f"/json {json.dumps(fields)}\n".encode())

    async def _send(self, data: bytes) -> None:
        try:
            with trio.move_on_after(self._silent_seconds) as sending:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Cut("broken") from error
        if sending.cancelled_caught:
            raise Cut("stalled")

    async def receive(self) -> list[dict[str, Any]]:
        """Return the events of a read.  Raises `Cut`, also after silence."""
        data = b""
        with trio.move_on_after(self._silent_seconds) as silence:
            try:
                data = bytes(await self._stream.receive_some(1 << 18))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Cut("broken") from error
        if not data:
            raise Cut("silent" if silence.cancelled_caught else "ended")
        *lines, self._rest = (self._rest + data).split(b"\n")
        # Before the welcome, lines of the text protocol may come.
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    async def until(self, kind: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Wait for an event of a *kind*; return it, and the events that came after it."""
        with trio.move_on_after(2 * self._silent_seconds):
            while True:
                events = await self.receive()
                for number, event in enumerate(events):
                    if event["type"] == kind:
                        return event, events[number + 1 :]
                    if event["type"] == "goodbye":
                        raise Cut(f"goodbye {event['code']}")
        raise Cut("no answer")


async def probe(
    port: int, requests: Sequence[dict[str, Any]], kind: str, hello: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Connect to the node at *port*; return the answers of a *kind* to *requests*, in order."""
    async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
        line = Line(stream)
        await line.hello({"protocol": 1} | (hello or {}))
        await line.until("welcome")
        answers = []
        for request in requests:
            await line.send(request)
            answer, _ = await line.until(kind)
            answers.append(answer)
        await line.send({"type": "quit"})
        return answers


async def replay(port: int, room: str) -> list[Heard]:
    """Return the whole history of *room*, as the node at *port* replays it to a new client."""
    heard: list[Heard] = []
    async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
        line = Line(stream)
        await line.hello({"protocol": 1, "rooms": {room: {"replay": EVERYTHING}}})
        welcome, events = await line.until("welcome")
        last = welcome["rooms"][room]["last"]
        while True:
            heard += [Heard(each["id"], each["text"]) for each in events if each["type"] == "said"]
            if last is None or (heard and heard[-1].id >= last):
                break
            events = await line.receive()
        await line.send({"type": "quit"})
        return heard
