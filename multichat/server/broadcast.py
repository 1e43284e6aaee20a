"""Broadcasts: batches that are encoded once for each codec, and what becomes of them."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from multichat.protocol.codec import Codec
from multichat.protocol.ids import message_id
from multichat.protocol.messages import Notice, SaidBlock

if TYPE_CHECKING:
    from multichat.server.log_rate import ClientLog
    from multichat.server.member import Member
    from multichat.server.stored_session import Submission

__all__ = ["MAX_BATCH_BYTES", "Batch", "Block", "Counts", "Delivery", "Receipt", "encode_blocks"]

# What one publish adds to a send queue at most in one piece; more is split between two messages, so
# that members take turns and the bound of a send queue holds.
MAX_BATCH_BYTES = 256 * 1024

# What a block takes in memory besides its text and its encodings.
_BLOCK_BYTES = 500


class Batch:
    """Events that are delivered in one piece, encoded once for each codec.

    *messages* is how many messages a member misses if it does not get this batch.
    """

    __slots__ = ("_encode", "_encoded", "messages")

    def __init__(self, messages: int, encode: Callable[[Codec], bytes]) -> None:
        self.messages = messages
        self._encode = encode
        self._encoded: dict[Codec, bytes] = {}

    def encoded(self, codec: Codec) -> bytes:
        """Return it in *codec*, encoded once; empty if that codec has no such event."""
        data = self._encoded.get(codec)
        if data is None:
            self._encoded[codec] = data = self._encode(codec)
        return data


class Block(Batch):
    """The messages of one publish, or some of them, shared by all members and replays."""

    __slots__ = ("counted_bytes", "said")

    def __init__(self, said: SaidBlock, messages: int) -> None:
        super().__init__(messages, lambda codec: codec.encode_said(said))
        self.said = said
        self.counted_bytes = 0  # the `size` that its ring has counted

    @property
    def end(self) -> int:
        """The number of the message after the last one."""
        return self.said.first + self.messages

    @property
    def size(self) -> int:
        """How many bytes it takes in memory, approximately."""
        size = _BLOCK_BYTES + sys.getsizeof(self.said.text)
        for data in self._encoded.values():
            size += len(data)
        return size

    def encode_within(self, max_bytes: int, codecs: Iterable[Codec]) -> bool:
        """Encode it in *codecs*; return whether it has at most *max_bytes* in each of them.

        Stops at the first that is too large, mostly without encoding it.
        """
        for codec in codecs:
            least_bytes = len(self.said.text) + self.messages * codec.least_said_bytes
            if least_bytes > max_bytes or len(self.encoded(codec)) > max_bytes:
                return False
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What became of a publish, counted for each member and each block of it.

    A single message is one block: for it, these are numbers of members.

    *delivered*: the operating system has all of it.  *queued*: it is in the member's send queue.
    *lagging*: the member gets it later, by replay.  *dropped*: the member missed it, or was
    disconnected because of it.  *epoch* and *first* make up the ids of the messages; *epoch* is
    empty if nothing was published, or nothing that has an id.  *ids* has one for each message if
    some of them had been published before; *reused* are the numbers of those that were refused,
    because their nonce is another message's.
    """

    delivered: int = 0
    queued: int = 0
    lagging: int = 0
    dropped: int = 0
    epoch: str = field(default="", compare=False)
    first: int = field(default=0, compare=False)
    ids: tuple[str, ...] = field(default=(), compare=False)
    reused: frozenset[int] = field(default=frozenset(), compare=False)

    def id_of(self, message: int) -> str:
        """Return the id of the message with that number in the publish, from 0."""
        return self.ids[message] if self.ids else message_id(self.epoch, self.first + message)

    def __add__(self, other: "Receipt") -> "Receipt":
        """Return what became of the same message in two rooms."""
        return Receipt(
            delivered=self.delivered + other.delivered,
            queued=self.queued + other.queued,
            lagging=self.lagging + other.lagging,
            dropped=self.dropped + other.dropped,
        )


@dataclass(slots=True)
class Delivery:
    """A publish under way: *said* from *sender*, or a *notice* of the server's, and its counts.

    *sender* is None for an author that is not a client; *log* is where the messages are logged.

    *to* are the members that get it, by codec, if these are not all live ones.  *messages* is how
    many there are; *submission* is set if they have nonces.  Until *free_until*, set by the first
    wait, waiting for slow members may be free.
    """

    said: SaidBlock
    messages: int
    sender: "Member | None" = None
    log: "ClientLog | None" = None
    notice: Notice | None = None
    to: "Mapping[Codec, Mapping[int, Member]] | None" = None
    submission: "Submission | None" = None
    free_until: float | None = None
    delivered: int = 0
    queued: int = 0
    lagging: int = 0
    dropped: int = 0

    def receipt(self) -> Receipt:
        """Return what became of it."""
        return Receipt(
            delivered=self.delivered,
            queued=self.queued,
            lagging=self.lagging,
            dropped=self.dropped,
            epoch=self.said.epoch,
            first=self.said.first,
        )


@dataclass(slots=True)
class Counts:
    """What the rooms of a server have done since it started; see `ServerStatistics`."""

    messages: int = 0
    deliveries: int = 0
    skipped: int = 0
    missed: int = 0
    too_slow: int = 0


def encode_blocks(said: SaidBlock, messages: int, codecs: Sequence[Codec]) -> Iterator[Block]:
    """Yield *said* as blocks that are encoded in *codecs*, each of at most `MAX_BATCH_BYTES`.

    *messages* is how many there are: counting them takes as long as encoding them.  A single
    message above the bound is a block of its own.
    """
    block = Block(said, messages)
    if messages == 1 or block.encode_within(MAX_BATCH_BYTES, codecs):
        yield block
        return
    texts = said.text.split("\n")
    middle = messages // 2
    for first, half in (said.first, texts[:middle]), (said.first + middle, texts[middle:]):
        part = msgspec.structs.replace(said, first=first, text="\n".join(half))
        yield from encode_blocks(part, len(half), codecs)
