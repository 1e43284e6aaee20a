"""A node's queue of appends: numbered calls, each repeated until its outcome is known.  Pure.

1. Blocks are appended in the order of `add`, in calls with rising sequences.
2. A call in flight is kept until it is answered: after a reconnect it is repeated unchanged, before
   anything new is sent.  A repeated call may have been executed already; if it is refused, it is
   repeated again.
3. A block is sent in one call only; a block that was never sent can be taken back.
4. `AppendLimits` bounds what waits and what is in flight.
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
    """Limits of a call and of the queue.

    A call occupies the engine for about 3 µs per message, and all other requests wait for it, so a
    call has at most *call_blocks* blocks and *call_bytes* bytes.  At most *calls* calls are in
    flight, and at most *bytes* bytes are queued.
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
    """A call: its *run* and *sequence*, and its blocks, each with the tag passed to `add`."""

    run: str
    sequence: int
    entries: tuple[tuple[Block, T], ...]


class Appends(Generic[T]):
    """The blocks that a node appends, grouped into the calls of one *run* after another."""

    def __init__(self, limits: AppendLimits) -> None:
        self._limits = limits
        self.run = ""
        self._sequence = 0
        self._queue: deque[tuple[Block, T]] = deque()
        self._bytes = 0
        self._in_flight: dict[tuple[str, int], AppendsCall[T]] = {}  # in order
        self._unsent: deque[AppendsCall[T]] = deque()  # to be repeated
        self._doubtful: set[tuple[str, int]] = set()  # in flight, possibly executed already

    def __len__(self) -> int:
        """Return the number of blocks that wait or are in flight."""
        return len(self._queue) + sum(len(call.entries) for call in self._in_flight.values())

    @property
    def is_full(self) -> bool:
        """Whether the queue has no room for another block."""
        return self._bytes >= self._limits.bytes

    def add(self, block: Block, tag: T) -> None:
        """Queue *block* after all others; its call carries *tag*."""
        self._queue.append((block, tag))
        self._bytes += block.size

    def begin(self, run: str) -> None:
        """Use *run* for the next calls, starting at the first sequence if the run is new."""
        if run != self.run:
            self.run, self._sequence = run, 0

    def reconnected(self) -> None:
        """Repeat what is in flight, on a new connection.

        That includes the calls of an earlier run: the engine knows whether they were executed, and
        executes nothing for a run that has ended.
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
        """Put back *call*, which `next_call` has just returned and which could not be sent."""
        self._unsent.appendleft(call)

    def may_be_done(self, call: AppendsCall[T]) -> bool:
        """Whether *call* was sent before, on a connection that has ended without an answer."""
        return (call.run, call.sequence) in self._doubtful

    def repeat(self, call: AppendsCall[T]) -> None:
        """Send *call*, which is in flight, again before anything new."""
        unsent = {(one.run, one.sequence) for one in (*self._unsent, call)}
        self._unsent = deque(one for key, one in self._in_flight.items() if key in unsent)

    def answered(self, call: AppendsCall[T]) -> None:
        """Record that the outcome of *call* is known: it is not sent again."""
        self._in_flight.pop((call.run, call.sequence), None)
        if call in self._unsent:
            self._unsent.remove(call)
        self._doubtful.discard((call.run, call.sequence))

    def take_back(self) -> list[T]:
        """Drop the blocks that were never sent; return their tags."""
        dropped = [tag for _, tag in self._queue]
        self._queue.clear()
        self._bytes = 0
        return dropped

    def give_up(self) -> list[T]:
        """Drop all blocks, including those in flight; return their tags."""
        in_flight = [tag for call in self._in_flight.values() for _, tag in call.entries]
        self._in_flight.clear()
        self._unsent.clear()
        self._doubtful.clear()
        return in_flight + self.take_back()
