"""The newest messages of each room, in memory: a ring of blocks, whatever the journal is.

A replay ends here, without waiting: a ring has every message up to the last one delivered, without
a gap, and each block is encoded once for all members that it is replayed to.
"""

from collections import deque
from collections.abc import Iterable
from itertools import takewhile
from operator import attrgetter

from multichat.journal.base import iterate_backwards, slice_block, take_newest
from multichat.protocol.codec import Codec
from multichat.protocol.messages import SaidBlock
from multichat.server.broadcast import Block
from multichat.server.config import ReplayLimits
from multichat.server.lag import Lag, encode_next

__all__ = ["Ring", "RingBudget"]

# Two, so that a member that lags for one block need not wait for a disk.
_MIN_BLOCKS = 2


class RingBudget:
    """How many bytes the rings of a server may hold together, and each of them.

    Above this, the ring that has not been used for longest is cleared.
    """

    def __init__(self, max_bytes: int, ring_bytes: int = ReplayLimits().ring_bytes) -> None:
        self.ring_bytes = ring_bytes
        self._max_bytes = max_bytes
        self._bytes = 0
        self._used: dict[Ring, None] = {}  # not empty; the one used last is last

    def grow(self, ring: "Ring", more_bytes: int) -> None:
        """Note that *ring* was used and has grown by *more_bytes*, which may be negative."""
        self._bytes += more_bytes
        self._used.pop(ring, None)
        self._used[ring] = None
        while self._bytes > self._max_bytes and len(self._used) > 1:
            oldest = next(iter(self._used))
            del self._used[oldest]
            self._bytes -= oldest.clear()

    def discard(self, ring: "Ring") -> None:
        """Release *ring*, which is not used any more."""
        self._used.pop(ring, None)
        self._bytes -= ring.clear()


class Ring:
    """The newest messages of one room, as blocks; bounded by *budget*.

    *next* is the number after the last message.
    """

    __slots__ = ("_blocks", "_budget", "bytes", "next")

    def __init__(self, budget: RingBudget, next_: int) -> None:
        self.next = next_
        self.bytes = 0
        self._budget = budget
        self._blocks: deque[Block] = deque()

    @property
    def first(self) -> int:
        """The number of the oldest message in it."""
        return self._blocks[0].said.first if self._blocks else self.next

    def add(self, block: Block) -> None:
        """Add the *block* that follows."""
        self._blocks.append(block)
        self.next = block.end
        self._count([block])

    def truncate(self, next_: int) -> None:
        """Forget the messages from number *next_* on: others will have these numbers."""
        self.next = min(self.next, next_)
        while self._blocks and self._blocks[-1].end > next_:
            block = self._blocks.pop()
            self.bytes -= block.counted_bytes
            self._budget.grow(self, -block.counted_bytes)
            if (kept := slice_block(block.said, block.said.first, next_)) is not None:
                self.add(Block(kept, next_ - kept.first))

    def skip_to(self, next_: int) -> None:
        """Continue at number *next_*, if that is later: everything before it was deleted."""
        if next_ > self.next:
            self._budget.grow(self, -self.clear())
            self.next = next_

    def newest(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        """Return the newest messages with numbers below *stop*; see `RoomJournal.read_before`."""
        blocks = iterate_backwards(self._blocks, stop, attrgetter("said.first"))
        stored = (block.said for block in blocks)
        return take_newest(stored, stop, max_messages=max_messages, max_bytes=max_bytes)

    def encode(
        self, lag: Lag, codec: Codec, client: int, *, max_bytes: int, room: str = ""
    ) -> bytes:
        """Return what *client* gets next; see `encode_next`.  *lag* MUST be at `first` or later."""
        behind = list(takewhile(lambda block: block.end > lag.position, reversed(self._blocks)))
        data = encode_next(reversed(behind), lag, codec, client, max_bytes=max_bytes, room=room)
        self._count(behind)  # some are encoded only now
        return data

    def _count(self, blocks: Iterable[Block]) -> None:
        before = self.bytes
        for block in blocks:
            size = block.size
            self.bytes += size - block.counted_bytes
            block.counted_bytes = size
        while self.bytes > self._budget.ring_bytes and len(self._blocks) > _MIN_BLOCKS:
            self.bytes -= self._blocks.popleft().counted_bytes
        self._budget.grow(self, self.bytes - before)

    def clear(self) -> int:
        """Drop all blocks; return how many bytes they took."""
        cleared, self.bytes = self.bytes, 0
        self._blocks.clear()
        return cleared
