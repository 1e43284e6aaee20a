"""RESP3, the protocol of Valkey and Redis: packs requests and decodes replies.  Pure.

`hiredis` packs and parses.  It allocates the size that a header announces, so each header is
checked before `hiredis` gets it: a reply has at most `ReplyLimits.bytes` bytes and
`ReplyLimits.elements` elements, whatever the peer announces or sends.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import hiredis

from multichat.cluster.errors import BadReply, EngineRefused, shorten

__all__ = ["Push", "ReplyDecoder", "ReplyLimits", "Value", "Word", "pack"]

# A word of a request; text is sent as UTF-8.
Word = bytes | str | int

# A reply: bytes, int, float, bool, None, `EngineRefused`, or a list or dict of these.
Value = Any

# Headers are short; errors of the engine's functions may contain a few hundred bytes of arguments.
_MAX_LINE = 16 * 1024

# The limit of hiredis.
_MAX_DEPTH = 8

_MAX_INTEGER = 2**63

# Digits of a number in a header; no limit needs more.
_MAX_DIGITS = 10

_STRINGS = frozenset(b"$=")
_LISTS = frozenset(b"*~>")
_MAP = ord("%")
_LINES = frozenset(b"+-:,#_")
_KINDS = _STRINGS | _LISTS | _LINES | {_MAP}

# The first bytes of other protocols, and what the operator reads.
_OTHERS: Final = (
    (b"\x15\x03", "it uses TLS: write valkeys:// instead of valkey://"),
    (b"HTTP/", "it is a web server, not Valkey or Redis"),
    (b"SSH-", "it is an SSH server, not Valkey or Redis"),
)


@dataclass(frozen=True, slots=True)
class Push:
    """Data that the engine sends unrequested: its *kind*, such as b"message", and *items*."""

    kind: bytes
    items: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyLimits:
    """The limits of one reply.

    A page of history is far below them; 32 MiB is also the engine's buffer for a subscriber.
    """

    bytes: int = 32 * 1024 * 1024
    elements: int = 1_000_000


def pack(words: tuple[Word, ...]) -> bytes:
    """Pack a request of these *words*.

    Raises `OverflowError` for a number of more than 64 bits, because numbers of some thousand bits
    crash `hiredis`, and with it the process.
    """
    for word in words:
        if isinstance(word, int) and not -_MAX_INTEGER <= word < _MAX_INTEGER:
            raise OverflowError(f"a number of {word.bit_length()} bits cannot be sent")
    return hiredis.pack_command(words)  # type: ignore[no-any-return, arg-type]


class ReplyDecoder:
    """Decodes the bytes of a connection, split in any way."""

    def __init__(self, limits: ReplyLimits | None = None) -> None:
        self._limits = limits or ReplyLimits()
        self._reader = hiredis.Reader(
            protocolError=BadReply, replyError=EngineRefused.parse, notEnoughData=Ellipsis
        )
        self._header = b""  # the received part of a header
        self._string_bytes = 0  # the missing bytes of a string
        self._missing: list[int] = []  # missing elements of each open list or map, outermost first
        self._bytes = 0  # of the current reply
        self._elements = 0
        self._is_first = True

    def feed(self, data: bytes | bytearray) -> Iterator[Value | Push]:
        """Add *data*, and yield the replies that it completes.

        Raises `BadReply` at the first invalid reply; the decoder MUST NOT be used after that.
        """
        self._check(data)
        self._reader.feed(bytes(data))
        while (reply := self._next()) is not Ellipsis:
            yield _as_push(reply) if type(reply) is hiredis.PushNotification else reply

    def _next(self) -> Value:
        try:
            return self._reader.gets()
        except (hiredis.HiredisError, TypeError, ValueError, MemoryError) as error:
            # TypeError: a map whose key is a list.
            raise BadReply(f"it sends an invalid reply: {shorten(str(error))}") from None

    def _check(self, data: bytes | bytearray) -> None:
        """Follow the structure of *data*; raises `BadReply` above a limit."""
        if self._header:
            data = self._header + data
            self._header = b""
        position, end = 0, len(data)
        while position < end:
            if self._string_bytes:
                step = min(self._string_bytes, end - position)
                position += step
                self._string_bytes -= step
                if not self._string_bytes:
                    self._end_element()
                continue
            stop = data.find(b"\r\n", position, position + _MAX_LINE)
            if stop < 0:
                self._header = bytes(data[position:])
                self._check_start(self._header)
                if len(self._header) >= _MAX_LINE:
                    raise BadReply(f"it sends a line of more than {_MAX_LINE} bytes")
                return
            self._read_header(bytes(data[position:stop]))
            position = stop + 2

    def _check_start(self, header: bytes) -> None:
        """Raise `BadReply` for another protocol, which might never send the end of a line."""
        kind = header[:1]
        if kind and kind[0] not in _KINDS:
            for start, reason in _OTHERS:
                if self._is_first and header.startswith(start[: len(header)]):
                    raise BadReply(reason)
            if not self._is_first and kind == b"(":
                raise BadReply("it sends a number of more than 64 bits")
            raise BadReply("it does not speak the protocol of Valkey and Redis")

    def _read_header(self, header: bytes) -> None:
        self._check_start(header)
        if not header:
            raise BadReply("it sends an empty line")
        kind = header[0]
        count = 0 if kind in _LINES else self._number(header)
        self._is_first = False
        self._bytes += len(header) + 2
        if kind in _STRINGS:
            self._bytes += count
        elif kind not in _LINES:
            self._elements += count * (2 if kind == _MAP else 1)
        if self._bytes > self._limits.bytes:
            raise BadReply(f"it sends a reply of more than {self._limits.bytes} bytes")
        if self._elements > self._limits.elements:
            raise BadReply(f"it sends a reply of more than {self._limits.elements} elements")
        if kind in _STRINGS and count >= 0:
            self._string_bytes = count + 2
        elif kind in _LINES or count <= 0:
            self._end_element()
        else:
            if len(self._missing) == _MAX_DEPTH:
                raise BadReply(f"it sends a reply of more than {_MAX_DEPTH} levels")
            self._missing.append(count * (2 if kind == _MAP else 1))

    def _number(self, header: bytes) -> int:
        """Return the number in the header of a string, list or map; -1 for no value."""
        digits = header[1:]
        if digits == b"-1":
            return -1
        if not digits.isdigit() or len(digits) > _MAX_DIGITS:
            raise BadReply(f"it sends an invalid reply: {shorten(header.decode('latin-1'))}")
        return int(digits)

    def _end_element(self) -> None:
        while self._missing:
            self._missing[-1] -= 1
            if self._missing[-1]:
                return
            self._missing.pop()
        self._bytes = self._elements = 0


def _as_push(reply: list[Value]) -> Push:
    if not reply or type(reply[0]) is not bytes:
        raise BadReply("it sends a push without a kind")
    return Push(reply[0], tuple(reply[1:]))
