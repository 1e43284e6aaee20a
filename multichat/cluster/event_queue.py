"""The events of the directory that wait for the server.

Invariant: what waits is bounded by what the feed may spend, one page or push more, and one
snapshot.  Above that the directory skips reading the feed until all that waits is received, and
reads the messages of rooms, which come on the same link.  Only before a second snapshot does it
wait.
"""

from collections import deque

import trio

from multichat.backend.events import Event

__all__ = ["EventQueue"]

# Added for each event, for its object.
_EVENT_BYTES = 500

# How many events are returned before a checkpoint.
_RECEIVED_AT_ONCE = 16


class EventQueue:
    """Events in order, for one task; *most_bytes* is what those of the feed may spend."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._events: deque[Event] = deque()
        self._has_some, self._is_empty = trio.Event(), trio.Event()
        self._received = 0
        self._spent_bytes = 0  # since it was empty
        self.has_snapshot = False
        """Whether events of a snapshot may wait."""

    @property
    def is_full(self) -> bool:
        """Whether the feed has spent what it may, until all events are received."""
        return self._spent_bytes > self._most_bytes

    def put(self, event: Event) -> None:
        """Add *event*."""
        self._events.append(event)
        self._has_some.set()

    def spend(self, size: int) -> None:
        """Count an event of the feed, which came in *size* bytes."""
        if self._events:
            self._spent_bytes += size + _EVENT_BYTES

    async def receive(self) -> Event:
        """Return the next event; if cancelled, it stays the next one."""
        # A snapshot has thousands of events, which must not keep other tasks waiting.
        self._received = (self._received + 1) % _RECEIVED_AT_ONCE
        if not self._received:
            await trio.lowlevel.checkpoint()
        while not self._events:
            self._has_some = trio.Event()
            await self._has_some.wait()
        event = self._events.popleft()
        if not self._events:
            self._spent_bytes, self.has_snapshot = 0, False
            self._is_empty.set()
        return event

    async def wait_empty(self) -> None:
        """Wait until all events are received."""
        while self._events:
            self._is_empty = trio.Event()
            await self._is_empty.wait()
