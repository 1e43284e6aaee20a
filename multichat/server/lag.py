"""Tracks how far a member lags behind its room, and encodes the next part of its replay."""

from collections import deque
from collections.abc import Iterable

from multichat.journal.base import slice_block
from multichat.protocol.codec import Codec
from multichat.protocol.messages import Missed
from multichat.server.broadcast import MAX_BATCH_BYTES, Block, encode_blocks

__all__ = ["Lag", "encode_next"]

# Bounds a lagging client that sends all the time; above this, `missed` counts some of its own
# messages.
_MAX_OWN_RANGES = 1024
_OWN_RANGE_BYTES = 128  # two numbers in a tuple


class Lag:
    """How far a member is behind: *position* is the number of the next message that it gets.

    Messages before *gap_end* cannot be read: before its next message, the member gets their number
    it missed.  A member that lags again has another `Lag`: its identity says whether a replay is
    still current.  *missed* is how many messages it is told that it missed.
    """

    __slots__ = ("_own", "gap_end", "missed", "position")

    def __init__(self, position: int) -> None:
        self.missed = 0
        self.position = self.gap_end = position
        self._own: deque[tuple[int, int]] = deque(maxlen=_MAX_OWN_RANGES)

    @property
    def held_bytes(self) -> int:
        """How much memory it takes, in bytes."""
        return len(self._own) * _OWN_RANGE_BYTES

    def note_own(self, first: int, end: int) -> None:
        """Note that the member itself sent the messages from *first* to before *end*."""
        # Only here, not in `skip_to`: a replay whose next part does not fit in the send queue goes
        # back to where that part begins, and must still find the ranges in it.
        while self._own and self._own[0][1] <= self.position:
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

    def go_back(self, position: int) -> None:
        """Continue no later than at *position*: the messages from there on are other ones now."""
        self.position, self.gap_end = min(self.position, position), min(self.gap_end, position)
        while self._own and self._own[-1][1] > position:
            first, _ = self._own.pop()
            if first < position:
                self._own.append((first, position))

    def skip_to(self, position: int) -> int:
        """Continue at *position*; return how many messages of others that skips."""
        missed = self.behind(position)
        self.position = position
        return missed


def encode_next(
    blocks: Iterable[Block],
    lag: Lag,
    codec: Codec,
    client: int,
    *,
    max_bytes: int,
    room: str = "",
) -> bytes:
    """Return what *client* gets next of *blocks*, encoded, and advance *lag* past it.

    About *max_bytes*, but at least one block.  Its own messages are left out; a gap before a block
    becomes the number of messages that it missed, in *room* as it is named to the client.
    """
    pieces: list[bytes] = []
    size = 0
    for block in blocks:
        if block.end <= lag.position:
            continue
        if size >= max_bytes:
            break
        if block.said.first > lag.position and (missed := lag.skip_to(block.said.first)):
            lag.missed += missed
            pieces.append(codec.encode(Missed(missed, room)))
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
    part = slice_block(block.said, max(position, block.said.first), block.end)
    return [] if part is None else encode_blocks(part, block.end - part.first, [codec])
