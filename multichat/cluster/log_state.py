"""A node's state of one room's log, which decides what is handed out next.  Pure.

Its input is pushes, answers, tails and reads, in the order in which the engine sent them; it
determines what to read.  Pushes are hints: whatever was pushed, dropped or repeated, the blocks
that are handed out are contiguous.

1. Blocks are handed out in the order of their numbers, each once, as long as the engine has them;
   deleted ones are skipped, even if nothing follows them.
2. A block of this node is handed out with its proposal, and only after its answer has arrived: a
   repeated call gets that answer, too.
3. What waits to be handed out is bounded in bytes; the rest is read again when there is room.
4. After `reconnected` nothing is handed out until a tail has shown which blocks the engine still
   has.  Where the engine's lineage of epochs diverges from ours, our blocks from there on are lost.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

import msgspec

from multichat.cluster.calls import Header, Packet, Tail
from multichat.protocol.ids import message_number
from multichat.protocol.messages import SaidBlock

__all__ = ["Handed", "LostBlocks", "Place", "RoomState", "SkippedBlocks"]

P = TypeVar("P")

# Some seconds of messages in a busy room.
MAX_WAITING_BYTES = 1024 * 1024

# The size of a block without its packet.
_BLOCK_BYTES = 500

# As many as `library.lua` keeps.
_MAX_EPOCHS = 100


class Place(NamedTuple):
    """The position of a block in the calls of this node."""

    run: str
    sequence: int
    block: int


@dataclass(frozen=True, slots=True)
class Handed(Generic[P]):
    """The next block; *proposal* is its proposal if it is from this node."""

    said: SaidBlock
    proposal: P | None


@dataclass(frozen=True, slots=True)
class LostBlocks(Generic[P]):
    """The last *count* messages were lost; see `multichat.backend.base.Lost`."""

    next: int
    count: int
    proposals: Sequence[P]


@dataclass(frozen=True, slots=True)
class SkippedBlocks(Generic[P]):
    """The messages before *next* were deleted; see `multichat.backend.base.Skipped`."""

    next: int
    own: Sequence[Handed[P]]


class _Own(Generic[P]):
    """A block that this node proposed; *said* is the part of it in the log, once that is known."""

    __slots__ = ("draft", "header", "proposal", "said")

    def __init__(self, draft: SaidBlock, proposal: P) -> None:
        self.draft, self.proposal = draft, proposal
        self.said: SaidBlock | None = None
        self.header: Header | None = None


class _Waiting(NamedTuple):
    """A block that waits to be handed out."""

    header: Header
    said: SaidBlock
    size: int


class RoomState(Generic[P]):
    """The log of one room as this node knows it, starting from a first *tail*.

    *next* is the number after the last block that was handed out; *epochs* are the epochs of the
    messages that were handed out, with their first numbers.
    """

    def __init__(self, tail: Tail, *, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self.next = tail.next
        self.epochs: list[tuple[str, int]] = list(tail.epochs)
        self._coming: list[tuple[str, int]] = []  # epochs from `next` on, from a tail
        self._first = tail.first
        self._max_bytes = max_bytes
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._end = tail.next  # where the next block must begin
        self._known = tail.next  # the engine has messages up to this number
        self._resumes: int | None = None  # where the log resumes if it has no message at `_end`
        self._own: dict[Place, _Own[P]] = {}
        self._lost: LostBlocks[P] | None = None
        self._deleted: list[Handed[P]] = []  # our own blocks that are skipped
        self._gone: dict[str, int] = {}  # epochs that lost messages: where each ends
        self._is_stale = self._is_closed = False
        self._earlier: Mapping[str, int] | None = None

    # --- The state of the log ---------------------------------------------------------------------

    @property
    def first(self) -> int:
        """The number of the oldest message that is stored, at most *next*."""
        return min(self._first, self.next)

    @property
    def epoch(self) -> str:
        """The epoch of the last message; empty if there is none."""
        return self.epochs[-1][0] if self.epochs else ""

    @property
    def earlier(self) -> Mapping[str, int]:
        """The earlier epochs, each with the number at which the next one began."""
        if self._earlier is None:
            self._earlier = {epoch: start for (epoch, _), (_, start) in pairwise(self.epochs)}
        return self._earlier

    @property
    def known_epoch(self) -> str:
        """The epoch of the last message that was handed out or waits; for the next tail."""
        return self._waiting[-1].header.epoch if self._waiting else self.epoch

    def number_of(self, id_: str) -> int | None:
        """Return the number of the message with that id; None if the id is unknown.

        For a lost message this is the number of the last message before it that was not lost.
        Epochs rise: an unknown epoch between two of this room was lost as a whole while this node
        was away.  The later of the two begins no later than where the messages end that the lost
        epoch followed.
        """
        epoch = id_.partition("-")[0]
        number = message_number(epoch, id_)
        if number is None:
            return None
        is_current = epoch == self.epoch
        end = self.next if is_current else self.earlier.get(epoch)
        if end is None or (is_current and number >= end):
            end = self._gone.get(epoch)
        if end is None and self.epochs and epoch > self.epochs[0][0]:
            end = next((start for other, start in self.epochs if other > epoch), None)
        if end is None:
            return None
        return min(number, end - 1) if end else None

    # --- Proposals of this node -------------------------------------------------------------------

    def propose(self, place: Place, draft: SaidBlock, proposal: P) -> None:
        """Record that *draft* is sent at *place*, perhaps again."""
        self._own.setdefault(place, _Own(draft, proposal))

    def appended(self, place: Place, header: Header, without: Sequence[int] = ()) -> P | None:
        """Record the answer: the block has the numbers of *header*.

        The messages at the indexes *without* are not in it.  Returns the proposal if the room is
        closed, because its block is then not handed out.
        """
        own = self._own.get(place)
        if own is None:
            return None
        if self._is_closed:
            del self._own[place]
            return own.proposal
        text = own.draft.text
        if without:
            left_out = set(without)
            texts = enumerate(text.split("\n"))
            text = "\n".join(one for i, one in texts if i not in left_out)
        own.header = header
        own.said = msgspec.structs.replace(
            own.draft, epoch=header.epoch, first=header.first, text=text
        )
        self._take(header, own.said, len(text))
        self._note_deleted(place, own)
        return None

    def _note_deleted(self, place: Place, own: _Own[P]) -> None:
        """Skip a block of this node that the engine deleted before it was handed out."""
        header = own.header
        if self._is_stale or own.said is None or header is None or header.first >= self._end:
            return
        at = bisect_left(self._waiting, header.first, key=attrgetter("header.first"))
        if at == len(self._waiting) or self._waiting[at].header.first != header.first:
            del self._own[place]
            self._deleted.append(Handed(own.said, own.proposal))

    def refused(self, place: Place) -> None:
        """Record that the block is not in the log and never will be."""
        self._own.pop(place, None)

    def close(self) -> list[P]:
        """Stop handing out blocks; return the proposals whose blocks are in the log."""
        self._is_closed = True
        self._waiting.clear()
        skipped, self._deleted = [each.proposal for each in self._deleted], []
        done = [place for place, own in self._own.items() if own.said is not None]
        return [self._own.pop(place).proposal for place in done] + [
            each for each in skipped if each is not None
        ]

    # --- Input from the engine --------------------------------------------------------------------

    def push(self, packet: Packet) -> None:
        """Add a block that was pushed."""
        self._take(packet.header, packet.said, packet.size)

    def trimmed(self, first: int) -> None:
        """Record that the messages before *first* were deleted."""
        if not self._is_stale:
            self._first = max(self._first, first)

    def _take(self, header: Header, said: SaidBlock | None, size: int) -> None:
        self._known = max(self._known, header.end)
        if self._is_stale or self._is_closed or header.first != self._end:
            return  # a repetition, or a gap that is read
        is_full = self._waiting and self._bytes + size + _BLOCK_BYTES > self._max_bytes
        if said is None or is_full:
            return  # too large for a push, or for our queue: it is read
        self._add(header, said, size)

    def _add(self, header: Header, said: SaidBlock, size: int) -> None:
        size += _BLOCK_BYTES
        self._waiting.append(_Waiting(header, said, size))
        self._bytes += size
        self._end = header.end

    @property
    def wanted(self) -> tuple[int, int] | None:
        """The range of numbers to read now, excluding the second; None if there is none."""
        if self._is_stale or self._is_closed or self._resumes is not None:
            return None
        if self._known <= self._end:
            return None
        if self._waiting and self._bytes * 2 > self._max_bytes:
            return None  # not before some are handed out
        return self._end, self._known

    def read(self, start: int, stop: int, packets: Sequence[Packet]) -> bool:
        """Add what was read from *start* to *stop*; return whether a tail is needed.

        A tail is needed if the next messages were deleted.
        """
        if self._is_stale or self._is_closed or start != self._end:
            return False
        if not packets or packets[0].header.first > start:
            self._resumes = packets[0].header.first if packets else stop
            return True
        for packet in packets:
            header = packet.header
            if header.first == self._end and packet.said is not None:
                self._known = max(self._known, header.end)
                self._add(header, packet.said, packet.size)
        return False

    def reconnected(self) -> None:
        """Hand out nothing until the next tail: the engine may have lost messages."""
        self._is_stale = True

    def tail(self, tail: Tail) -> None:
        """Update the state from a tail of the log, which was requested with `known_epoch`."""
        epochs = list(tail.epochs) or (self._lineage() if tail.epoch else [])
        if self._is_stale:
            self._is_stale = False
            self._compare(tail.next, epochs)
        self._first, self._known = tail.first, tail.next
        self._coming = [(epoch, start) for epoch, start in epochs if start >= self.next]
        self._end = max(self._end, tail.first, min(self._resumes or 0, tail.next))
        self._resumes = None
        for place, own in list(self._own.items()):
            self._note_deleted(place, own)

    # --- What was lost ----------------------------------------------------------------------------

    def _compare(self, next_: int, epochs: Sequence[tuple[str, int]]) -> None:
        """Drop what the engine lost; it has messages up to *next_*, in these *epochs*."""
        common = min(next_, self._common(epochs))
        lost: list[P] = []
        while self._waiting and self._waiting[-1].header.end > common:
            self._bytes -= self._waiting.pop().size
        if self._end > common:
            self._end = self._waiting[-1].header.end if self._waiting else min(self.next, common)
        for place, own in list(self._own.items()):
            header = own.header
            if header is not None and header.end > min(_end_of(header.epoch, epochs), next_):
                del self._own[place]
                lost.append(own.proposal)
        count = max(0, self.next - common)
        if count:
            self.next = common
            while self.epochs:
                self._note_gone(self.epoch, common)
                if self.epochs[-1][1] < common:
                    break
                del self.epochs[-1]
            self._earlier = None
        if count or lost:
            before = self._lost or LostBlocks(0, 0, ())
            self._lost = LostBlocks(self.next, before.count + count, [*before.proposals, *lost])

    def _note_gone(self, epoch: str, end: int) -> None:
        self._gone[epoch] = min(end, self._gone.get(epoch, end))
        if len(self._gone) > _MAX_EPOCHS:
            del self._gone[next(iter(self._gone))]

    def _common(self, theirs: Sequence[tuple[str, int]]) -> int:
        """Return the number up to which a log with the epochs *theirs* can agree with ours."""
        ours = self._lineage()
        if theirs:  # older epochs may have been forgotten
            ours = [(epoch, start) for epoch, start in ours if start >= theirs[0][1]]
        same = 0
        while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
            same += 1
        our_end = ours[same][1] if same < len(ours) else self._end
        return min(our_end, theirs[same][1]) if same < len(theirs) else our_end

    def _lineage(self) -> list[tuple[str, int]]:
        """Return the epochs of all messages that were handed out or wait."""
        epochs, coming = list(self.epochs), deque(self._coming)
        for header in (waiting.header for waiting in self._waiting):
            while coming and coming[0][1] <= header.first:
                epochs.append(coming.popleft())
            if not epochs or epochs[-1][0] != header.epoch:
                epochs.append((header.epoch, header.first))
        return epochs

    # --- Handing out ------------------------------------------------------------------------------

    @property
    def can_hand_out(self) -> bool:
        """Whether `hand_out` would return something."""
        if self._lost is not None:
            return True
        if self._is_stale or self._is_closed:
            return False
        if self._deleted or not self._waiting:
            return bool(self._deleted) or self._end > self.next
        if not self._own:  # the usual case, on a node whose members only read
            return True
        own = self._own.get(_place(self._waiting[0].header))
        return own is None or own.said is not None

    def hand_out(self) -> Handed[P] | LostBlocks[P] | SkippedBlocks[P] | None:
        """Return the next part of the log and advance *next*; None if there is none yet."""
        if not self.can_hand_out:
            return None
        if self._lost is not None:
            lost, self._lost = self._lost, None
            return lost
        if self._deleted or not self._waiting:
            return self._skip()
        header, said, size = self._waiting.popleft()
        self._bytes -= size
        while self._coming and self._coming[0][1] <= header.first:
            self._begin_epoch(*self._coming.pop(0))  # its first messages may have been deleted
        self._begin_epoch(header.epoch, header.first)
        self.next = header.end
        own = self._own.pop(_place(header), None) if self._own else None
        if own is None:
            return Handed(said, None)
        return Handed(own.said or said, own.proposal)

    def _skip(self) -> SkippedBlocks[P]:
        deleted, self._deleted = self._deleted, []
        if not self._waiting:
            while self._coming and self._coming[0][1] < self._end:
                self._begin_epoch(*self._coming.pop(0))
            self.next = self._end
        return SkippedBlocks(self.next, deleted)

    def _begin_epoch(self, epoch: str, start: int) -> None:
        if epoch != self.epoch:
            self.epochs.append((epoch, start))
            del self.epochs[:-_MAX_EPOCHS]
            self._earlier = None


def _end_of(epoch: str, epochs: Sequence[tuple[str, int]]) -> float:
    """Return the number at which *epoch* ends among *epochs*."""
    starts = [start for _, start in epochs]
    place = next((i for i, (other, _) in enumerate(epochs) if other == epoch), None)
    return 0 if place is None else (*starts[place + 1 :], math.inf)[0]


def _place(header: Header) -> Place:
    return Place(header.run, header.sequence, header.index)
