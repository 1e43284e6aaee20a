"""Earlier messages: a ring of the newest ones in memory, and older ones in pages from a journal.

Owns what one room keeps in memory beside its journal, how far behind a member is, and what a
replay sends next.  It waits for nothing but the journal, and knows of no connection.

Invariants:

1. A ring holds the newest messages without a gap, up to the last one that was told.
2. A block is encoded once for each protocol, however many members it is replayed to.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import takewhile
from operator import attrgetter

import trio

from multichat.errors import NotRead
from multichat.journal.base import RoomJournal, backwards_from, newest_of, part_of
from multichat.protocol.codec import Codec
from multichat.protocol.messages import Missed, SaidBlock
from multichat.server.broadcast import MAX_BATCH_BYTES, Block, encode_blocks
from multichat.server.config import ReplayLimits

__all__ = ["Lag", "PageCache", "Ring", "Rings", "encode"]

_LIMITS = ReplayLimits()

# Two, so that a member that lags for one block need not wait for a disk.
_MIN_BLOCKS = 2

# A page is at most half a batch before it is encoded.
_PAGE_BYTES = MAX_BATCH_BYTES // 2

# A lagging client that sends all the time: beyond this, `missed` counts some of its own messages.
_MAX_OWN_RANGES = 1024
_OWN_RANGE_BYTES = 128  # two numbers in a tuple


class Lag:
    """How far a member is behind: *position* is the number of the next message that it gets.

    Up to *gap_end* nothing can be read: the member is told how many messages it missed in front of
    the next that it gets.  A member that lags again has another one: its identity says whether a
    replay is still current.
    """

    __slots__ = ("_own", "gap_end", "position")

    def __init__(self, position: int) -> None:
        self.position = self.gap_end = position
        self._own: deque[tuple[int, int]] = deque(maxlen=_MAX_OWN_RANGES)

    @property
    def held_bytes(self) -> int:
        """How much memory it takes."""
        return len(self._own) * _OWN_RANGE_BYTES

    def note_own(self, first: int, end: int) -> None:
        """Note that the member itself said the messages from *first* to before *end*."""
        while self._own and self._own[0][1] <= self.position:  # not sooner: a replay may go back
            self._own.popleft()
        if self._own and self._own[-1][1] == first:
            first = self._own.pop()[0]
        self._own.append((first, end))

    def behind(self, position: int) -> int:
        """Return how many messages of others there are before *position*."""
        count = position - self.position
        for first, end in self._own:
            count -= max(0, min(end, position) - max(first, self.position))
        return count

    def skip_to(self, position: int) -> int:
        """Go on at *position*; return how many messages of others are skipped by that."""
        missed = self.behind(position)
        self.position = position
        return missed


def encode(
    blocks: Iterable[Block], lag: Lag, codec: Codec, client: int, *, max_bytes: int
) -> bytes:
    """Return what *client* gets next out of *blocks*, and move *lag* behind it.

    About *max_bytes*, but one piece at least.  Its own messages are left out; where there is a gap
    before a block, it is told how many messages it missed.
    """
    pieces: list[bytes] = []
    size = 0
    for block in blocks:
        if block.end <= lag.position:
            continue
        if size >= max_bytes:
            break
        if block.said.first > lag.position and (missed := lag.skip_to(block.said.first)):
            pieces.append(codec.encode(Missed(missed)))
            size += len(pieces[-1])
        if block.said.client == client:
            lag.skip_to(block.end)
            continue
        for piece in _rest_of(block, lag.position, codec):
            pieces.append(piece.encoded(codec))
            lag.skip_to(piece.end)
            size += len(pieces[-1])
            if size >= max_bytes:
                break
    return b"".join(pieces)


def _rest_of(block: Block, position: int, codec: Codec) -> Iterable[Block]:
    """Return the messages of *block* from *position* on, in pieces that are not too large."""
    is_whole = position <= block.said.first
    if is_whole and (block.messages == 1 or block.encode_within(MAX_BATCH_BYTES, [codec])):
        return [block]
    part = part_of(block.said, max(position, block.said.first), block.end)
    return [] if part is None else encode_blocks(part, block.end - part.first, [codec])


class Rings:
    """What the rings of a server may hold together, in bytes, and each of them.

    The room in which nothing was said for longest is the first to keep nothing.
    """

    def __init__(self, max_bytes: int, ring_bytes: int = _LIMITS.ring_bytes) -> None:
        self.ring_bytes = ring_bytes
        self._max_bytes = max_bytes
        self._bytes = 0
        self._used: dict[Ring, None] = {}  # those that keep something; the one used last is last

    def grow(self, ring: "Ring", more_bytes: int) -> None:
        """Note that *ring* is in use, and has *more_bytes* than before, or fewer."""
        self._bytes += more_bytes
        self._used.pop(ring, None)
        self._used[ring] = None
        while self._bytes > self._max_bytes and len(self._used) > 1:
            oldest = next(iter(self._used))
            del self._used[oldest]
            self._bytes -= oldest.clear()

    def discard(self, ring: "Ring") -> None:
        """Forget *ring*, which is not used any more."""
        self._used.pop(ring, None)
        self._bytes -= ring.clear()


class Ring:
    """The newest messages of one room, as blocks; *rings* is what it shares its bound with.

    *next* is the number behind the last message.
    """

    __slots__ = ("_blocks", "_rings", "bytes", "next")

    def __init__(self, rings: Rings, next_: int) -> None:
        self.next = next_
        self.bytes = 0
        self._rings = rings
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

    def newest(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        """Return the newest messages with numbers below *stop*; see `RoomJournal.read_before`."""
        blocks = backwards_from(self._blocks, stop, attrgetter("said.first"))
        stored = (block.said for block in blocks)
        return newest_of(stored, stop, max_messages=max_messages, max_bytes=max_bytes)

    def encode(self, lag: Lag, codec: Codec, client: int, *, max_bytes: int) -> bytes:
        """Return what *client* gets next; see `encode`.  Its *lag* MUST NOT begin before us."""
        behind = list(takewhile(lambda block: block.end > lag.position, reversed(self._blocks)))
        data = encode(reversed(behind), lag, codec, client, max_bytes=max_bytes)
        self._count(behind)  # some are encoded only now
        return data

    def _count(self, blocks: Iterable[Block]) -> None:
        before = self.bytes
        for block in blocks:
            size = block.size
            self.bytes += size - block.counted_bytes
            block.counted_bytes = size
        while self.bytes > self._rings.ring_bytes and len(self._blocks) > _MIN_BLOCKS:
            self.bytes -= self._blocks.popleft().counted_bytes
        self._rings.grow(self, self.bytes - before)

    def clear(self) -> int:
        """Forget all blocks; return how many bytes they were."""
        cleared, self.bytes = self.bytes, 0
        self._blocks.clear()
        return cleared


class _Page:
    __slots__ = ("blocks", "done", "failure")

    def __init__(self) -> None:
        self.blocks: list[Block] | None = None  # none, too, if whoever read it was cancelled
        self.failure = ""
        self.done = trio.Event()


class PageCache:
    """Pages of messages from the journals of a server's rooms, shared by all who replay them.

    A page begins where a replay is and ends at a multiple of *page_messages*, so that all replays
    go on with the same ones, unless messages are so long that a page ends sooner.  At most
    *max_pages* are kept.
    """

    def __init__(self, page_messages: int = _LIMITS.page_messages, max_pages: int = 32) -> None:
        self._page_messages = page_messages
        self._max_pages = max_pages
        self._pages: OrderedDict[tuple[str, int], _Page] = OrderedDict()

    def page_end(self, number: int) -> int:
        """Return where the page ends that the message of that *number* is in."""
        return number - number % self._page_messages + self._page_messages

    async def read(self, journal: RoomJournal, start: int, told: int) -> list[Block]:
        """Return messages from number *start* on, at most to the end of its page, nor to *told*.

        What the journal has no more is left out.  Raises `NotRead` if it cannot be read.
        """
        key = journal.epoch, start
        while True:
            if (page := self._pages.get(key)) is None:
                return await self._read(key, journal, start, told)
            self._pages.move_to_end(key)
            await page.done.wait()
            if page.failure:
                raise NotRead(page.failure)
            if page.blocks is not None:
                return page.blocks

    async def _read(
        self, key: tuple[str, int], journal: RoomJournal, start: int, told: int
    ) -> list[Block]:
        page = self._pages[key] = _Page()
        if len(self._pages) > self._max_pages:
            self._pages.popitem(last=False)
        stop = min(told, self.page_end(start))
        try:
            stored = await journal.read(start, stop, max_bytes=_PAGE_BYTES)
            page.blocks = [Block(said, said.text.count("\n") + 1) for said in stored]
        except NotRead as error:
            page.failure = error.reason
            raise
        finally:
            if not page.blocks and self._pages.get(key) is page:
                del self._pages[key]
            page.done.set()
        return page.blocks
