"""What a node knows of one room's log, and what it hands out next.  Pure.

Fed with pushes, answers, tails and reads, in the order in which the engine sent them; says what to
read.  Pushes are hints: what is handed out is contiguous, whatever was pushed, dropped or repeated.

1. Blocks are handed out in the order of their numbers, each once, as long as the engine has them;
   what was deleted before is skipped, also if nothing follows it.
2. A block of ours is handed out with its proposal, after the answer to it has come: a repeated call
   gets that answer.
3. What waits to be handed out is bounded by bytes; the rest is read again when there is room.
4. After `reconnected` nothing is handed out until a tail has said which blocks the engine still
   has.  Where its lineage of epochs leaves ours, our blocks from there on are lost.
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

# A busy room's messages of some seconds.
MAX_WAITING_BYTES = 1024 * 1024

# What a block takes besides its packet.
_BLOCK_BYTES = 500

# As many as `library.lua` keeps.
_MAX_EPOCHS = 100


class Place(NamedTuple):
    """Where a block of ours was in our calls."""

    run: str
    sequence: int
    block: int


@dataclass(frozen=True, slots=True)
class Handed(Generic[P]):
    """The next block; *proposal* is the one that it answers, if it is ours."""

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
    """What was before *next* was deleted; see `multichat.backend.base.Skipped`."""

    next: int
    own: Sequence[Handed[P]]


class _Own(Generic[P]):
    """A block that we have proposed; *said* is what of it is in the log, once that is known."""

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
    """The log of one room as this node knows it, from its first *tail* on.

    *next* is the number after the last block that was handed out; *epochs* are those of the handed
    out messages with their first numbers.
    """

    def __init__(self, tail: Tail, *, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self.next = tail.next
        self.epochs: list[tuple[str, int]] = list(tail.epochs)
        self._coming: list[tuple[str, int]] = []  # epochs from `next` on that a tail has told
        self._first = tail.first
        self._max_bytes = max_bytes
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._end = tail.next  # where the next block has to begin
        self._known = tail.next  # the engine has messages up to this number
        self._resumes: int | None = None  # where the log resumes, which has no message at `_end`
        self._own: dict[Place, _Own[P]] = {}
        self._lost: LostBlocks[P] | None = None
        self._deleted: list[Handed[P]] = []  # blocks of ours that are skipped
        self._gone: dict[str, int] = {}  # where the messages of an epoch ended that were lost
        self._is_stale = self._is_closed = False
        self._earlier: Mapping[str, int] | None = None

    # --- What is known of the log -----------------------------------------------------------------

    @property
    def first(self) -> int:
        """The number of the oldest message that is stored, at most *next*."""
        return min(self._first, self.next)

    @property
    def epoch(self) -> str:
        """The epoch of the last message; empty without any."""
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
        """Return the number of the message with that id; None if it is unknown.

        The id of a message that was lost is that of the last before it that was not.  Epochs rise:
        one that is between two of this room, and unknown here, was lost as a whole while this node
        was away.  The later of the two begins where what it followed ends, at the latest.
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

    # --- What we have proposed --------------------------------------------------------------------

    def propose(self, place: Place, draft: SaidBlock, proposal: P) -> None:
        """Note that *draft* is sent in that *place*, perhaps again."""
        self._own.setdefault(place, _Own(draft, proposal))

    def appended(self, place: Place, header: Header, without: Sequence[int] = ()) -> P | None:
        """Note the answer: the block has these numbers, *without* the messages of these indexes.

        Returns the proposal if the room is closed: its block is not handed out.
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
        """Skip a block of ours that the engine has deleted before it was handed out."""
        header = own.header
        if self._is_stale or own.said is None or header is None or header.first >= self._end:
            return
        at = bisect_left(self._waiting, header.first, key=attrgetter("header.first"))
        if at == len(self._waiting) or self._waiting[at].header.first != header.first:
            del self._own[place]
            self._deleted.append(Handed(own.said, own.proposal))

    def refused(self, place: Place) -> None:
        """Note that the block is not in the log, and never will be."""
        self._own.pop(place, None)

    def close(self) -> list[P]:
        """Hand nothing out any more; return the proposals whose blocks are in the log."""
        self._is_closed = True
        self._waiting.clear()
        skipped, self._deleted = [each.proposal for each in self._deleted], []
        done = [place for place, own in self._own.items() if own.said is not None]
        return [self._own.pop(place).proposal for place in done] + [
            each for each in skipped if each is not None
        ]

    # --- What the engine says ---------------------------------------------------------------------

    def push(self, packet: Packet) -> None:
        """Take a block that was pushed."""
        self._take(packet.header, packet.said, packet.size)

    def trimmed(self, first: int) -> None:
        """Note that the messages before *first* were deleted."""
        if not self._is_stale:
            self._first = max(self._first, first)

    def _take(self, header: Header, said: SaidBlock | None, size: int) -> None:
        self._known = max(self._known, header.end)
        if self._is_stale or self._is_closed or header.first != self._end:
            return  # a repetition, or there is a gap: it is read
        is_full = self._waiting and self._bytes + size + _BLOCK_BYTES > self._max_bytes
        if said is None or is_full:
            return  # too large to be pushed, or for us: it is read
        self._add(header, said, size)

    def _add(self, header: Header, said: SaidBlock, size: int) -> None:
        size += _BLOCK_BYTES
        self._waiting.append(_Waiting(header, said, size))
        self._bytes += size
        self._end = header.end

    @property
    def wanted(self) -> tuple[int, int] | None:
        """Which numbers have to be read now, from the first to without the second; None if none."""
        if self._is_stale or self._is_closed or self._resumes is not None:
            return None
        if self._known <= self._end:
            return None
        if self._waiting and self._bytes * 2 > self._max_bytes:
            return None  # once some are handed out
        return self._end, self._known

    def read(self, start: int, stop: int, packets: Sequence[Packet]) -> bool:
        """Take what was read from *start* to *stop*; return whether a tail is needed.

        It is if the next messages were deleted.
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
        """Hand nothing out until the next tail: the engine may have lost messages."""
        self._is_stale = True

    def tail(self, tail: Tail) -> None:
        """Take the tail of the log, asked for with `known_epoch`."""
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
        """Drop what the engine has no more, which has messages up to *next_* in these *epochs*."""
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
        """Return the number up to which a log with *theirs* epochs may have the same as we."""
        ours = self._lineage()
        if theirs:  # it may have forgotten older ones
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
        """Whether `hand_out` returns something."""
        if self._lost is not None:
            return True
        if self._is_stale or self._is_closed:
            return False
        if self._deleted or not self._waiting:
            return bool(self._deleted) or self._end > self.next
        if not self._own:  # mostly, on a node whose members listen
            return True
        own = self._own.get(_place(self._waiting[0].header))
        return own is None or own.said is not None

    def hand_out(self) -> Handed[P] | LostBlocks[P] | SkippedBlocks[P] | None:
        """Return what comes next in the log, and advance *next*; None if nothing does yet."""
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
            self._begin_epoch(*self._coming.pop(0))  # the first messages of some may be gone
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
