"""Calls of the engine's log functions: arguments, answers and packets.  Pure.

A `Call` can be sent on any connection.  A packet is a block of messages as the engine has it, in a
stream or pushed on a channel.  The functions themselves are in `library.lua`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from typing import Any, Generic, TypeVar

import msgspec

from multichat.cluster.errors import reading_answer
from multichat.errors import MultichatError
from multichat.protocol.fields import Nonce
from multichat.protocol.messages import SaidBlock
from multichat.protocol.nonces import short_nonce

__all__ = [
    "MAX_CALLS",
    "Answer",
    "Block",
    "Call",
    "Deleted",
    "Header",
    "InvalidPacket",
    "Known",
    "Packet",
    "Status",
    "Tail",
    "Trimmed",
    "append",
    "begin_era",
    "encode_nonce",
    "pack_block",
    "parse_packet",
    "parse_push",
    "read",
    "read_before",
    "tails",
    "trim",
]

T = TypeVar("T")

# How many calls of `append` may be unanswered at once, as in `library.lua`.
MAX_CALLS = 64

# Hexadecimal digits of an epoch, which is a time in milliseconds.
_MAX_EPOCH = 16

# Numbers are below this, like the engine's own.
_MAX_NUMBER = 2**63


class InvalidPacket(MultichatError):
    """The engine has an entry that was not written by multichat."""

    def __init__(self) -> None:
        super().__init__("the engine has an entry in a room's log that is not ours")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call of a function: its *arguments*, and the decoder of its answer."""

    function: str
    arguments: Sequence[str | bytes | int]
    decode: Callable[[Any], T]
    writes: bool = True

    @property
    def words(self) -> tuple[str | bytes | int, ...]:
        """The command to send."""
        return ("FCALL" if self.writes else "FCALL_RO", self.function, 0, *self.arguments)

    def read(self, reply: Any) -> T:
        """Decode *reply*; raises `NotOurs`."""
        with reading_answer():
            return self.decode(reply)


def _exactly(count: int, decode: Callable[[Any], list[T]]) -> Callable[[Any], list[T]]:
    """Return *decode*, changed to raise `ValueError` unless there are *count* results."""

    def decode_exactly(reply: Any) -> list[T]:
        found = decode(reply)
        if len(found) != count:
            raise ValueError(f"{len(found)} results instead of {count}")
        return found

    return decode_exactly


# --- Packets --------------------------------------------------------------------------------------


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The engine's header of a block: its numbers, epoch, time and the call that appended it."""

    first: int
    count: int
    epoch: str
    ms: int
    run: str
    sequence: int
    index: int

    @property
    def end(self) -> int:
        """The number after its last message."""
        return self.first + self.count


class Packet(msgspec.Struct, frozen=True, array_like=True):
    """A block of messages as the engine has it; *said* is None if it was too large for a push."""

    header: Header
    said: SaidBlock | None
    size: int


# Time, room, client, name, whether it is an action, text: `library.lua` relies on the position of
# the text.
_Fields = tuple[str, str, int, str, bool, str]
_pack_fields = msgspec.msgpack.Encoder().encode
_unpack_fields = msgspec.msgpack.Decoder(_Fields).decode


def pack_block(draft: SaidBlock) -> bytes:
    """Pack the part of *draft* that the engine does not interpret; raises `UnicodeEncodeError`."""
    return _pack_fields((draft.time, draft.room, draft.client, draft.name, draft.act, draft.text))


def parse_packet(packet: bytes) -> Packet:
    """Parse an entry of a stream; raises `InvalidPacket`."""
    line, _, payload = packet.partition(b"\n")
    try:
        first, count, epoch, ms, run, sequence, index = line.decode("ascii").split(" ")
        header = Header(int(first), int(count), epoch, int(ms), run, int(sequence), int(index))
        if max(map(abs, (header.end, header.first, header.ms, header.sequence))) >= _MAX_NUMBER:
            raise InvalidPacket
        if header.first < 0 or header.count < 1:
            raise InvalidPacket
        _hexadecimal(epoch)
        if not payload:
            return Packet(header, None, len(packet))
        time, room, client, name, act, text = _unpack_fields(payload)
        if text.count("\n") + 1 != header.count:
            raise InvalidPacket
    except (ValueError, msgspec.MsgspecError):
        raise InvalidPacket from None
    said = SaidBlock(epoch, header.first, time, room, client, name, text, act)
    return Packet(header, said, len(packet))


class Trimmed(msgspec.Struct, frozen=True):
    """The messages of a room before *first* were deleted."""

    first: int


def parse_push(payload: bytes) -> list[Packet] | Trimmed:
    """Parse a push on a room's channel; raises `InvalidPacket`."""
    try:
        if payload.startswith(_TRIMMED):
            trimmed = Trimmed(int(payload[len(_TRIMMED) :]))
            if abs(trimmed.first) >= _MAX_NUMBER:
                raise InvalidPacket
            return trimmed
        packets: list[Packet] = []
        at = 0
        while at < len(payload):
            start = payload.index(b"\n", at) + 1
            at = start + int(payload[at : start - 1])
            packets.append(parse_packet(payload[start:at]))
    except ValueError:
        raise InvalidPacket from None
    return packets


_TRIMMED = b"trimmed "


# --- Appending ------------------------------------------------------------------------------------


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Messages to append: their *count*, and the result of `pack_block`.

    *nonces* has one entry for each message, empty where it has no nonce; or the list is empty.
    *checks* has eight hexadecimal digits for each nonce.
    """

    room: str
    client: int
    generation: int
    count: int
    payload: bytes
    nonces: Sequence[bytes] = ()
    checks: str = ""

    @classmethod
    def of(
        cls,
        room: str,
        generation: int,
        draft: SaidBlock,
        nonces: Sequence[Nonce | None] = (),
        checks: bytes = b"",
    ) -> "Block":
        """Build the block from the arguments of `RoomLog.propose`; raises `UnicodeEncodeError`."""
        count = draft.text.count("\n") + 1
        encoded = [b"" if nonce is None else encode_nonce(nonce) for nonce in nonces]
        return cls(room, draft.client, generation, count, pack_block(draft), encoded, checks.hex())

    @property
    def size(self) -> int:
        """Its approximate size in bytes."""
        return len(self.payload) + 20 * len(self.nonces) + 300


_encode = msgspec.json.Encoder().encode


def encode_nonce(nonce: Nonce) -> bytes:
    """Return *nonce* as the engine stores it: as JSON, or as its digest if it is long.

    Raises `UnicodeEncodeError`.
    """
    return _encode(short_nonce(nonce))


class Status:
    """The outcome of appending a block."""

    APPENDED, FENCED, FAILED, KNOWN = range(4)


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A message of a block whose nonce is already in the log.

    *index* is its position in the block; *epoch* is `-` for a private message.  If *same* is false,
    the nonce belongs to a different message.
    """

    index: int
    epoch: str
    number: int
    room: str
    same: int


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of appending a block: *epoch*, or the reason of a failure, and its numbers.

    The messages in *known* were left out.
    """

    status: int
    epoch: str
    first: int
    ms: int
    known: list[Known]


_unpack_answers = msgspec.msgpack.Decoder(list[Answer]).decode


def _check_answer(answer: Answer, count: int) -> None:
    """Raise `ValueError` unless *answer* can be that to a block of *count* messages."""
    if answer.status == Status.APPENDED:
        _hexadecimal(answer.epoch)
        if not 0 <= answer.first < _MAX_NUMBER - count:
            raise ValueError("a number that no message has")
    if answer.known or answer.status == Status.KNOWN:
        indexes = {known.index for known in answer.known}
        left = count - len(indexes)
        if len(indexes) != len(answer.known) or not indexes <= set(range(count)):
            raise ValueError("messages that were not sent")
        if (left > 0) is not (answer.status == Status.APPENDED):
            raise ValueError("messages without an answer")
        for known in answer.known:
            if known.epoch != "-":
                _hexadecimal(known.epoch)


def append(
    node: str, run: str, sequence: int, blocks: Iterable[Block], *, nonce_seconds: float
) -> Call[list[Answer]]:
    """Append *blocks* in order, as the call *sequence* of this *run* of *node*.

    A repeated call appends nothing and gets the first answer again.  A client's nonces expire
    *nonce_seconds* after its last one.  The engine refuses the call with `FENCED` if the node has
    another run, and with `FORGOTTEN` if the first answer is no longer stored.
    """
    arguments: list[str | bytes | int] = [node, run, sequence, int(nonce_seconds * 1000)]
    counts = []
    for block in blocks:
        counts.append(block.count)
        arguments += (block.room, block.client, block.generation, block.count, block.payload)
        arguments += (block.checks, len(block.nonces), *block.nonces)

    def decode(reply: bytes) -> list[Answer]:
        answers = _unpack_answers(reply)
        for answer, count in zip(answers, counts, strict=True):
            _check_answer(answer, count)
        return answers

    return Call("multichat_append", arguments, decode)


# --- Eras, tails, reading -------------------------------------------------------------------------


def begin_era(primary: str, *, era: int, epoch: str) -> Call[int]:
    """Return the era of *primary*: a new era if the latest one belongs to another primary.

    *era* and *epoch* are the highest that this node knows, so that both always rise.
    """
    return Call("multichat_begin_era", (primary, era, int(epoch or "0", 16)), index)


class Tail(msgspec.Struct, frozen=True, array_like=True):
    """The end of a room's log: its numbers, its epoch, and all *epochs* with their first numbers.

    *epochs* is empty if the caller already knew *epoch*; *epoch* is empty in a new room.
    """

    first: int
    next: int
    epoch: str
    epochs: tuple[tuple[str, int], ...]


def tails(rooms: Sequence[tuple[str, str]]) -> Call[list[Tail]]:
    """Return the tails of *rooms*, each with the epoch that the caller knows, possibly empty."""
    arguments = [word for room in rooms for word in room]
    return Call("multichat_tails", arguments, _exactly(len(rooms), _tails), writes=False)


def _tails(reply: list[list[Any]]) -> list[Tail]:
    return [
        Tail(index(first), index(next_), _hexadecimal(_text(epoch)), tuple(map(_epoch, epochs)))
        for first, next_, epoch, epochs in reply
    ]


def _epoch(line: bytes) -> tuple[str, int]:
    epoch, _, number = _text(line).partition(" ")
    return _hexadecimal(epoch), int(number)


def _hexadecimal(epoch: str) -> str:
    """Return *epoch*, which begins the next era; raises `ValueError` if none could follow it."""
    if len(epoch) > _MAX_EPOCH or int(epoch or "0", 16) < 0:
        raise ValueError("no epoch")
    return epoch


def _packets(reply: list[bytes]) -> Iterator[Packet]:
    for packet in reply:
        with suppress(InvalidPacket):  # a gap in the log, for the operator to explain
            yield parse_packet(packet)


def read(room: str, start: int, stop: int, *, max_bytes: int) -> Call[list[Packet]]:
    """Return the blocks that contain the messages from *start* up to, excluding, *stop*, in order.

    Stops before a block that would exceed *max_bytes*, but returns at least one.  The first and
    last blocks may contain messages outside that range.  Each block begins after the one before.
    """

    def decode(reply: list[bytes]) -> list[Packet]:
        packets: list[Packet] = []
        end = start
        for packet in _packets(reply):
            header = packet.header
            if header.end > start and header.first < stop and (header.first >= end or not packets):
                packets.append(packet)
                end = header.end
        return packets

    return Call("multichat_read", (room, start, stop, max_bytes), decode, writes=False)


def read_before(room: str, stop: int, *, max_messages: int, max_bytes: int) -> Call[list[Packet]]:
    """Return the blocks with the newest messages below *stop*, newest first.

    Returns at most one block more than *max_messages* and *max_bytes* require, each older than the
    one before.
    """

    def decode(reply: list[bytes]) -> list[Packet]:
        packets: list[Packet] = []
        first = stop
        for packet in _packets(reply):
            if packet.header.first < first:
                packets.append(packet)
                first = packet.header.first
        return packets

    arguments = (room, stop, max_messages, max_bytes)
    return Call("multichat_read_before", arguments, decode, writes=False)


# --- Retention ------------------------------------------------------------------------------------


class Deleted(msgspec.Struct, frozen=True, array_like=True):
    """What one step deleted: *counts* are messages and their rooms, by age, messages and bytes.

    *ms* is the engine's clock, *cursor* is passed to the next step, and *more* tells whether there
    is more to delete.
    """

    ms: int
    cursor: str
    more: bool
    counts: tuple[tuple[int, frozenset[str]], ...]


def trim(
    cursor: str,
    *,
    max_age_seconds: float | None = None,
    max_messages: int | None = None,
    max_bytes: int | None = None,
    max_blocks: int = 500,
) -> Call[Deleted]:
    """Delete the oldest blocks above the limits, at most about *max_blocks* of them.

    Each step checks only some of the rooms for *max_messages*: pass the cursor on, `0` at first.
    """
    age = int((max_age_seconds or 0) * 1000)
    arguments = (cursor, age, max_messages or 0, max_bytes or 0, max_blocks)
    return Call("multichat_trim", arguments, _deleted)


def _deleted(reply: Any) -> Deleted:
    ms, cursor, more, counts = reply
    age, messages, bytes_ = (
        (index(count), frozenset(map(_text, rooms))) for count, rooms in counts
    )
    found = (age, messages, bytes_)
    return Deleted(index(ms), _text(cursor), bool(more), found)


def _text(reply: bytes | str) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply
