"""The events that wait for the program, and a condition variable for the tasks of a chat."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from multichat.protocol.messages import Event

__all__ = ["Condition", "EventQueue", "memory_of"]

# Estimates the memory of an event, or of a member in a list, besides its text: an object and the
# strings in it.
_OBJECT_BYTES = 200

# How much memory the events may take that wait for a busy program.  Above this we stop reading, and
# the server waits for us.
_WAITING_BYTES = 32 * 1024 * 1024

# The same while the program waits for an answer, which comes after these events.  Above this the
# call is given up, so that the program can receive.
_AWAITED_BYTES = 128 * 1024 * 1024

# A read of tiny lines holds 30,000 events.  They are queued in pieces, so that the program has
# checkpoints between them.
_EVENTS_AT_ONCE = 1000


def memory_of(block: str) -> int:
    """Return about how many bytes the events of a *block* take: one a line, or a JSON object."""
    return len(block) + _OBJECT_BYTES * (1 + block.count("\n") + block.count("{"))


class Condition:
    """A condition variable of tasks, which need no lock.

    *waiters* is how many of them wait for something that has to be read from the server first.
    """

    def __init__(self) -> None:
        self.waiters = 0
        self._changed = trio.Event()

    def notify(self) -> None:
        """Wake all who wait, because something may have changed."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        await self._changed.wait()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block among *waiters*."""
        self.waiters += 1
        self.notify()
        try:
            yield
        finally:
            self.waiters -= 1

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until *predicate* holds, as one of *waiters*."""
        await trio.lowlevel.checkpoint_if_cancelled()
        with self.waiting():
            while not predicate():
                await self._changed.wait()


class EventQueue:
    """The events that wait for the program; *changed* is notified of each change.

    False while nothing waits.  Bounded by memory: the reader checks `has_room` before each read.
    """

    def __init__(self, changed: Condition) -> None:
        self._changed = changed
        self._pieces: deque[tuple[int, list[Event]]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        """How many pieces wait, each of at most 1000 events."""
        return len(self._pieces)

    def put(self, events: list[Event], size: int = 0) -> None:
        """Append *events*, which take about *size* bytes of memory."""
        if not events:
            return
        for start in range(0, len(events), _EVENTS_AT_ONCE):
            self._pieces.append((size, events[start : start + _EVENTS_AT_ONCE]))
            self._bytes += size
            size = 0  # counted with the first piece
        self._changed.notify()

    def get(self) -> list[Event]:
        """Return the first piece; there MUST be one."""
        size, events = self._pieces.popleft()
        self._bytes -= size
        self._changed.notify()
        return events

    def has_room(self, *, awaited: bool = False) -> bool:
        """Return whether more may be read; the limit is higher while an answer is *awaited*."""
        return self._bytes < (_AWAITED_BYTES if awaited else _WAITING_BYTES)
