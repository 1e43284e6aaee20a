"""Broadcasts: batches that are encoded once for each protocol, and receipts of their delivery."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from multichat.protocol.codec import Codec
from multichat.protocol.ids import message_id
from multichat.protocol.messages import SaidBlock

__all__ = ["MAX_BATCH_BYTES", "Batch", "Block", "Counts", "Receipt", "cut"]

# What one publish may add to a send queue in one piece; more is cut between two messages, so that
# members take turns and a send queue's bound in bytes means something.
MAX_BATCH_BYTES = 256 * 1024

# What a block takes beside its text and its encodings: its objects, and their places.
_BLOCK_BYTES = 500


class Batch:
    """Events that are delivered in one piece, encoded once for each protocol.

    *messages* is what a member misses who does not get it.
    """

    __slots__ = ("_encode", "_spelled", "messages")

    def __init__(self, messages: int, encode: Callable[[Codec], bytes]) -> None:
        self.messages = messages
        self._encode = encode
        self._spelled: dict[Codec, bytes] = {}

    def spelled(self, codec: Codec) -> bytes:
        """Return its bytes in *codec*; none if that protocol is not told of it."""
        data = self._spelled.get(codec)
        if data is None:
            self._spelled[codec] = data = self._encode(codec)
        return data


class Block(Batch):
    """The messages of one publish, or some of them, as all members and every replay share them."""

    __slots__ = ("counted_bytes", "said")

    def __init__(self, said: SaidBlock, messages: int) -> None:
        super().__init__(messages, lambda codec: codec.encode_said(said))
        self.said = said
        self.counted_bytes = 0  # of `size`, by the ring that it is in

    @property
    def end(self) -> int:
        """The number of the message behind the last one."""
        return self.said.first + self.messages

    @property
    def size(self) -> int:
        """How many bytes it takes in memory, about."""
        size = _BLOCK_BYTES + sys.getsizeof(self.said.text)
        for data in self._spelled.values():
            size += len(data)
        return size

    def is_small(self, codec: Codec) -> bool:
        """Return whether it has at most `MAX_BATCH_BYTES` in *codec*."""
        # Most that does not fit is found without encoding it in vain.
        least_bytes = len(self.said.text) + self.messages * codec.least_said_bytes
        return least_bytes <= MAX_BATCH_BYTES and len(self.spelled(codec)) <= MAX_BATCH_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What became of a publish: one for each member, and for each of the blocks it was cut into.

    A single message is always one block, so that for it these are members.

    *delivered*: the operating system has all of it.  *queued*: it waits in the member's send queue.
    *lagging*: the member gets it later, when it has caught up.  *dropped*: the member missed it, or
    was disconnected because of it.  *epoch* and *first* are what the messages' ids are made of;
    empty if nothing was said, or nothing that has an id.
    """

    delivered: int = 0
    queued: int = 0
    lagging: int = 0
    dropped: int = 0
    epoch: str = field(default="", compare=False)
    first: int = field(default=0, compare=False)

    def id_of(self, message: int) -> str:
        """Return the id of the publish's message of that number, from 0."""
        return message_id(self.epoch, self.first + message)

    def __add__(self, other: "Receipt") -> "Receipt":
        """Return what became of the same words in two rooms."""
        return Receipt(
            delivered=self.delivered + other.delivered,
            queued=self.queued + other.queued,
            lagging=self.lagging + other.lagging,
            dropped=self.dropped + other.dropped,
        )


@dataclass(slots=True)
class Counts:
    """What the rooms of a server have done since it began; see `ServerStatistics`."""

    messages: int = 0
    deliveries: int = 0
    skipped: int = 0
    too_slow: int = 0


def cut(said: SaidBlock, messages: int, codecs: Iterable[Codec]) -> Iterator[Block]:
    """Make blocks of at most `MAX_BATCH_BYTES`, in each of the *codecs*, of what one publish says.

    That is so many *messages*: to count them takes as long as to tag them.  A single message above
    that is a block of its own.
    """
    block = Block(said, messages)
    if messages == 1 or all(map(block.is_small, codecs)):
        yield block
    else:
        texts = said.text.split("\n")
        middle = messages // 2
        halves = (said.first, texts[:middle]), (said.first + middle, texts[middle:])
        for first, half in halves:
            part = msgspec.structs.replace(said, first=first, text="\n".join(half))
            yield from cut(part, len(half), codecs)
