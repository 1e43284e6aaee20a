"""What a node asks the directory for: changes in numbered batches.  Pure.

1. Changes are sent in the order of `add`: at once, together only while many are in flight.
2. A batch stays until it is answered: after a lost connection it is repeated as it was, with its
   number, before anything new is sent.
3. What waits is bounded.  While the engine is away, reports of what clients are now are not kept:
   the whole is sent afterwards, see `resume`.
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

# The engine takes 10 ms for as many, and everybody waits for it.
_MAX_CHANGES = 200

# Of clients that have left while the engine was away, the latest are reported in order; of the
# others the engine only learns that they are gone.
_MAX_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """Changes with the number *sequence*, each with who waits for its result, or None."""

    sequence: int
    changes: tuple[tuple[Change, T | None], ...]

    @property
    def wanted(self) -> list[Change]:
        """The changes alone."""
        return [change for change, _ in self.changes]


@dataclass(frozen=True, slots=True)
class Dropped(Generic[T]):
    """Who waits no longer for a change: for one that was *sent*, which may be made, or *unsent*."""

    sent: list[T]
    unsent: list[T]


class Batches(Generic[T]):
    """The changes that a node asks for in one run; with `begin` another run begins.

    *answered_up_to* is the number of the last batch that was answered; they are answered in order.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Change, T | None]] = deque()
        self._sequence = 0
        self._in_flight: dict[int, Batch[T]] = {}
        self._unsent: deque[int] = deque()  # of those in flight, to be repeated
        self._is_away = False
        self.answered_up_to = 0

    def __len__(self) -> int:
        """How many changes wait or are in flight."""
        return len(self._queue) + sum(len(each.changes) for each in self._in_flight.values())

    @property
    def is_in_flight(self) -> bool:
        """Whether a batch has not been answered."""
        return bool(self._in_flight)

    def add(self, change: Change, waiting: T | None = None) -> None:
        """Ask for *change* after all others; *waiting* waits for its result."""
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
        """Take *batch* back, which `take` has just returned: it could not be sent."""
        self._unsent.appendleft(batch.sequence)

    def answered(self, batch: Batch[T]) -> Batch[T] | None:
        """Note that *batch* was answered; return it with who waits now, None if it is known."""
        self.answered_up_to = max(self.answered_up_to, batch.sequence)
        return self._in_flight.pop(batch.sequence, None)

    def repeat(self) -> None:
        """Send everything that is in flight again, on a new connection."""
        self._unsent = deque(self._in_flight)

    def drop_waiting(self, *, also_sent: bool = True) -> Dropped[T]:
        """Return who waits for a result, and let nobody wait any more.

        What was never sent of that is dropped; what is in flight may still be made, and is waited
        for unless *also_sent* is True.
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
        """Note that the engine is away; otherwise as `drop_waiting`."""
        self._is_away = True
        dropped = self.drop_waiting()
        self._queue = deque(each for each in self._queue if _is_kept(each[0]))
        return dropped

    def resume(self, whole: Iterable[Change]) -> None:
        """Note that the engine is back; *whole* is all that it has to know, sent after the rest."""
        self._is_away = False
        self._queue.extend((change, None) for change in whole)

    def begin(self) -> Dropped[T]:
        """Begin another run; return who waits for a result.

        What was asked for is dropped, but bans: nothing else tells the others of them, and to add
        or lift one twice is harmless.
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
    """Return whether *change* is not part of the whole that is sent after a time away."""
    match change:
        case PutClient():
            return False
        case SaveSession(connected=connected):
            return not connected
    return True
