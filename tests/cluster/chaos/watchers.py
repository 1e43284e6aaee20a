"""A silent client on each node, which records departures while the others are away.

It connects to its node itself, so that faults of clients' connections do not hit it.  Imports
nothing from multichat: the reference is docs/protocol.md.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio

from tests.support.processes import LOOPBACK

from .client import PATIENT_SECONDS
from .departures import Departure
from .line import Cut, Line

__all__ = ["Watcher"]

_PING_SECONDS = 5.0
_RETRY_SECONDS = 0.2


class Watcher:
    """Is in *rooms* of the node at *port*, as a new client after each connection that ends."""

    def __init__(self, port: int, rooms: Sequence[str]) -> None:
        self.seen: list[Departure] = []
        self.ended: list[float] = []  # when its connections did
        self._port, self._rooms = port, rooms
        self._line: Line | None = None
        self._has_left = False

    @property
    def is_watching(self) -> bool:
        return self._line is not None

    async def run(self) -> None:
        """Watch until `leave`."""
        while not self._has_left:
            with suppress(OSError):
                stream = await trio.open_tcp_stream(LOOPBACK, self._port)
                try:
                    await self._watch(Line(stream, PATIENT_SECONDS))
                except* Cut:
                    pass
                finally:
                    self._line = None
                    self.ended.append(trio.current_time())
                    await trio.aclose_forcefully(stream)
            await trio.sleep(_RETRY_SECONDS)

    async def leave(self) -> None:
        """Leave the rooms for good, and return soon."""
        self._has_left = True
        if self._line is not None:
            with suppress(Cut):
                await self._line.send({"type": "quit"})

    async def _watch(self, line: Line) -> None:
        await line.hello({"protocol": 1, "rooms": {room: {} for room in self._rooms}})
        _, events = await line.until("welcome")
        self._line = line
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping, line)
            while True:
                self._take(events)
                events = await line.receive()

    async def _ping(self, line: Line) -> None:
        while True:
            await trio.sleep(_PING_SECONDS)
            await line.send({"type": "ping"})

    def _take(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            if event["type"] == "goodbye":  # a node that drains waits for its clients
                raise Cut(f"goodbye {event['code']}")
            if (departure := Departure.of(event, trio.current_time())) is not None:
                self.seen.append(departure)
