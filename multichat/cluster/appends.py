"""What a node wants to append, in numbered calls, each repeated until its fate is known.  Pure.

1. Blocks are appended in the order of `add`, in calls with rising sequences.
2. A call in flight stays until it is answered: after a reconnect it is repeated as it was, before
   anything new is sent.  One that is repeated may be done already: refused, it is repeated again.
3. A block is sent in one call only; what was never sent can be taken back.
4. What waits and what is in flight is bounded by `AppendLimits`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from multichat.cluster.calls import MAX_CALLS, Block

__all__ = ["AppendLimits", "Appends", "AppendsCall"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class AppendLimits:
    """How much is sent at once and in all.

    A call keeps the engine for about 3 µs a message, and everybody waits for it: a call has at most
    *call_blocks* and *call_bytes*.  *calls* are in flight at most, *bytes* wait.
    """

    calls: int = 16
    call_blocks: int = 200
    call_bytes: int = 512 * 1024
    bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if not 1 <= self.calls <= MAX_CALLS:
            raise ValueError(f"calls must be from 1 to {MAX_CALLS}")


@dataclass(frozen=True, slots=True)
class AppendsCall(Generic[T]):
    """A call: its *run* and *sequence*, and its blocks, each with what they were added with."""

    run: str
    sequence: int
    entries: tuple[tuple[Block, T], ...]


class Appends(Generic[T]):
    """The blocks that a node appends, as the calls of one *run* after the other."""

    def __init__(self, limits: AppendLimits) -> None:
        self._limits = limits
        self.run = ""
        self._sequence = 0
        self._queue: deque[tuple[Block, T]] = deque()
        self._bytes = 0
        self._in_flight: dict[tuple[str, int], AppendsCall[T]] = {}  # in order
        self._unsent: deque[AppendsCall[T]] = deque()  # to be repeated
        self._doubtful: set[tuple[str, int]] = set()  # of those in flight, which may be done

    def __len__(self) -> int:
        """How many blocks wait or are in flight."""
        return len(self._queue) + sum(len(call.entries) for call in self._in_flight.values())

    @property
    def is_full(self) -> bool:
        """Whether too much waits for another block."""
        return self._bytes >= self._limits.bytes

    def add(self, block: Block, tag: T) -> None:
        """Append *block* after all others; *tag* comes back with its call."""
        self._queue.append((block, tag))
        self._bytes += block.size

    def begin(self, run: str) -> None:
        """Make new calls as those of *run*, from the first sequence on if it is a new one."""
        if run != self.run:
            self.run, self._sequence = run, 0

    def reconnected(self) -> None:
        """Repeat what is in flight, on a new connection.

        That includes the calls of a former run: the engine knows whether they were done, and does
        nothing for an ended run.
        """
        self._unsent = deque(self._in_flight.values())
        self._doubtful = set(self._in_flight)

    def next_call(self, *, only_repeat: bool = False) -> AppendsCall[T] | None:
        """Return the call to send now, or None if there is none or enough are in flight."""
        if self._unsent:
            return self._unsent.popleft()
        if only_repeat or not (self._queue and self.run):
            return None
        if len(self._in_flight) >= self._limits.calls:
            return None
        self._sequence += 1
        call = AppendsCall(self.run, self._sequence, tuple(self._take()))
        self._in_flight[call.run, call.sequence] = call
        return call

    def _take(self) -> Iterator[tuple[Block, T]]:
        left = self._limits.call_bytes
        for number in range(min(len(self._queue), self._limits.call_blocks)):
            size = self._queue[0][0].size
            left -= size
            if left < 0 and number:
                break
            self._bytes -= size
            yield self._queue.popleft()

    def not_sent(self, call: AppendsCall[T]) -> None:
        """Take *call* back, which `next_call` has just returned: it could not be sent."""
        self._unsent.appendleft(call)

    def may_be_done(self, call: AppendsCall[T]) -> bool:
        """Whether *call* was sent before, on a connection that has ended without an answer."""
        return (call.run, call.sequence) in self._doubtful

    def repeat(self, call: AppendsCall[T]) -> None:
        """Send *call* again, which is in flight, before anything new."""
        unsent = {(one.run, one.sequence) for one in (*self._unsent, call)}
        self._unsent = deque(one for key, one in self._in_flight.items() if key in unsent)

    def answered(self, call: AppendsCall[T]) -> None:
        """Note that the fate of *call* is known: it is not sent again."""
        self._in_flight.pop((call.run, call.sequence), None)
        if call in self._unsent:
            self._unsent.remove(call)
        self._doubtful.discard((call.run, call.sequence))

    def take_back(self) -> list[T]:
        """Drop what was never sent; return what it was added with."""
        dropped = [tag for _, tag in self._queue]
        self._queue.clear()
        self._bytes = 0
        return dropped

    def give_up(self) -> list[T]:
        """Drop everything, also what is in flight; return what it was added with."""
        in_flight = [tag for call in self._in_flight.values() for _, tag in call.entries]
        self._in_flight.clear()
        self._unsent.clear()
        self._doubtful.clear()
        return in_flight + self.take_back()
