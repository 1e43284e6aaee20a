"""A node's requests to the directory: changes in numbered batches.  Pure.

1. Changes are sent in the order of `add`, immediately; they are combined only while many batches
   are in flight.
2. A batch is kept until it is answered: after a lost connection it is repeated unchanged, under its
   number, before anything new is sent.
3. What waits is bounded.  While the engine is away, reports of the clients' state are not kept: the
   complete state is sent afterwards, see `resume`.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from multichat.cluster.changes import Change, DropBan, PutBan, PutClient, SaveSession

__all__ = ["Batch", "Batches", "Dropped"]

T = TypeVar("T")

# As `directory.lua` keeps answers.
MAX_IN_FLIGHT = 64

# The engine takes 10 ms for this many, and all other requests wait for it.
_MAX_CHANGES = 200

# Of the clients that left while the engine was away, the latest are reported in order; for the
# others, the engine learns only that they have left.
_MAX_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """Changes under the number *sequence*, each with the waiter for its result, or None."""

    sequence: int
    changes: tuple[tuple[Change, T | None], ...]

    @property
    def wanted(self) -> list[Change]:
        """The changes alone."""
        return [change for change, _ in self.changes]


@dataclass(frozen=True, slots=True)
class Dropped(Generic[T]):
    """The waiters of dropped changes: *sent* ones, which may still be made, and *unsent* ones."""

    sent: list[T]
    unsent: list[T]


class Batches(Generic[T]):
    """The changes that a node requests in one run; `begin` starts another run.

    *answered_up_to* is the number of the last answered batch; answers come in order.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Change, T | None]] = deque()
        self._sequence = 0
        self._in_flight: dict[int, Batch[T]] = {}
        self._unsent: deque[int] = deque()  # in flight, to be repeated
        self._is_away = False
        self.answered_up_to = 0

    def __len__(self) -> int:
        """Return the number of changes that wait or are in flight."""
        return len(self._queue) + sum(len(each.changes) for each in self._in_flight.values())

    @property
    def is_in_flight(self) -> bool:
        """Whether a batch has not been answered."""
        return bool(self._in_flight)

    def add(self, change: Change, waiting: T | None = None) -> None:
        """Queue *change* after all others; *waiting* is the waiter for its result."""
        if self._is_away and not _is_kept(change):
            return
        self._queue.append((change, waiting))
        if self._is_away and len(self._queue) > _MAX_KEPT:
            self._queue.popleft()

    def take(self) -> Batch[T] | None:
        """Return the batch to send now; None if nothing waits, or enough is in flight."""
        if self._unsent:
            return self._in_flight[self._unsent.popleft()]
        if not self._queue or len(self._in_flight) >= MAX_IN_FLIGHT:
            return None
        self._sequence += 1
        count = min(len(self._queue), _MAX_CHANGES)
        changes = tuple(self._queue.popleft() for _ in range(count))
        batch = self._in_flight[self._sequence] = Batch(self._sequence, changes)
        return batch

    def not_sent(self, batch: Batch[T]) -> None:
        """Put back *batch*, which `take` has just returned and which could not be sent."""
        self._unsent.appendleft(batch.sequence)

    def answered(self, batch: Batch[T]) -> Batch[T] | None:
        """Record that *batch* was answered.

        Returns it with its present waiters, or None if it was already answered.
        """
        self.answered_up_to = max(self.answered_up_to, batch.sequence)
        return self._in_flight.pop(batch.sequence, None)

    def repeat(self) -> None:
        """Send everything in flight again, on a new connection."""
        self._unsent = deque(self._in_flight)

    def drop_waiting(self, *, also_sent: bool = True) -> Dropped[T]:
        """Remove the waiters and return them.

        Their changes are dropped if they were never sent.  Changes in flight may still be made;
        their waiters are removed only if *also_sent* is True.
        """
        dropped: Dropped[T] = Dropped([], [])
        for batch in self._in_flight.values() if also_sent else ():
            dropped.sent.extend(each for _, each in batch.changes if each is not None)
            nobody = tuple((change, None) for change, _ in batch.changes)
            self._in_flight[batch.sequence] = Batch(batch.sequence, nobody)
        dropped.unsent.extend(each for _, each in self._queue if each is not None)
        self._queue = deque(each for each in self._queue if each[1] is None)
        return dropped

    def leave(self) -> Dropped[T]:
        """Record that the engine is away; otherwise like `drop_waiting`."""
        self._is_away = True
        dropped = self.drop_waiting()
        self._queue = deque(each for each in self._queue if _is_kept(each[0]))
        return dropped

    def resume(self, whole: Iterable[Change]) -> None:
        """Record that the engine is back; *whole*, the complete state, is sent after the rest."""
        self._is_away = False
        self._queue.extend((change, None) for change in whole)

    def begin(self) -> Dropped[T]:
        """Begin another run; return the waiters.

        All changes are dropped except bans: nothing else reports those to the other nodes, and
        adding or lifting a ban twice is harmless.
        """
        dropped = self.drop_waiting()
        asked = [each for batch in self._in_flight.values() for each in batch.changes]
        self._queue = deque(
            each for each in (*asked, *self._queue) if isinstance(each[0], PutBan | DropBan)
        )
        self._in_flight.clear()
        self._unsent.clear()
        self._sequence, self.answered_up_to, self._is_away = 0, 0, False
        return dropped


def _is_kept(change: Change) -> bool:
    """Return whether *change* is kept while the engine is away: `resume` does not repeat it."""
    match change:
        case PutClient():
            return False
        case SaveSession(connected=connected):
            return not connected
    return True
