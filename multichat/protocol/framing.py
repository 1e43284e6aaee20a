"""Decodes bytes to lines, incrementally and within bounds.  Pure: no I/O, no clock, no trio.

Owns where a line ends, how long it may be, and which characters may be shown to other users.  It
does not know what a line means.

1. A line ends with LF and nothing else, however the bytes were split into packets.
2. The output does not depend on how the input was split.
3. At most one line within the limit (and the CR of its ending) is buffered.
4. No character of the output moves a cursor, ends a log line or reorders the text.
5. Any bytes are valid input; none raise an exception.
"""

import re
from dataclasses import dataclass
from itertools import compress
from typing import ClassVar, Protocol, Self, TypeAlias

from multichat.errors import LineTooLong
from multichat.protocol.telnet import TelnetResponder, remove_commands

__all__ = [
    "Decoder",
    "Ending",
    "Filtered",
    "LineDecoder",
    "Part",
    "behind",
    "clean",
    "clean_lines",
    "marked",
]

Part: TypeAlias = str | LineTooLong
"""An item of the decoder's output: a block of lines, or the error for a line that was dropped.

A block is one string: whole lines, none of them empty, separated by LF, without one at the end.
One read is usually one block, and processing a block costs little more than a single line.
"""

# Bytes that need no filter: LF, TAB and the printable part of ASCII.
_PLAIN = b"\n\t" + bytes(range(0x20, 0x7F))

_REPLACEMENTS: dict[int, str] = {
    **{c: chr(0x2400 + c) for c in range(0x20) if c not in b"\t\n"},  # ESC becomes ␛
    0x7F: "␡",
    **dict.fromkeys(range(128, 160), "�"),  # C1: CSI in one character
    **dict.fromkeys((8232, 8233), " "),  # some programs break lines there
    **dict.fromkeys((*range(8234, 8239), *range(8294, 8298)), ""),  # bidi controls
    0xFEFF: "",  # a byte order mark, which UTF-8 does not need
    **dict.fromkeys(range(55296, 57344), "�"),  # surrogates, which are not text
}
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def clean(text: str) -> str:
    """Return *text* with every character that could harm a terminal made visible or harmless.

    Controls except TAB become their pictures (ESC becomes ␛, LF becomes ␊), C1 controls and lone
    surrogates U+FFFD, line and paragraph separators a space; bidi overrides, isolates and byte
    order marks are dropped.  White space is not trimmed.  Idempotent.
    """
    return clean_lines(text).replace("\n", "␊")


def clean_lines(text: str) -> str:
    """Clean each line of *text* as `clean` does; an LF stays an LF."""
    return text.translate(_REPLACEMENTS) if _UNFIT.search(text) else text


def marked(text: str) -> str:
    """Return *text* with U+FFFD for every character that `clean_lines` would replace or drop."""
    return _UNFIT.sub("\ufffd", text)


class Filtered(str):
    """A block that the filter has changed; *raw* has the same lines as they were sent."""

    __slots__ = ("raw",)

    raw: str

    def __new__(cls, text: str, raw: str) -> Self:
        """Create a block from the clean *text* and from *raw*."""
        text = super().__new__(cls, text)
        text.raw = raw
        return text


def behind(text: str, lines: int) -> str:
    """Return *text* without its first *lines*; it MUST have more."""
    rest = text.split("\n", lines)[lines]
    return (
        Filtered(rest, text.raw.split("\n", lines)[lines]) if isinstance(text, Filtered) else rest
    )


# A more precise pattern takes ten times as long, and `in` twice.
_EMPTY_LINE = re.compile("\n\n")


def _decode(block: bytes) -> str:
    """Decode whole lines, the last one without its LF, and drop the empty ones."""
    if b"\r" in block:
        block = (block + b"\n").replace(b"\r\n", b"\n")[:-1]
    # The common case first: deleting the plain bytes costs a table look-up per byte, decoding and
    # filtering twenty times that.
    if block.isascii() and not block.translate(None, _PLAIN):
        raw = text = block.decode("ascii")
    else:
        block = remove_commands(block)
        # Filtered after decoding: continuation bytes of UTF-8 look like C1 controls.
        raw = block.decode("utf-8", "replace")
        text = clean_lines(raw)
    if text.startswith("\n") or text.endswith("\n") or _EMPTY_LINE.search(text):
        lines = text.split("\n")
        raw = "\n".join(compress(raw.split("\n"), lines))
        text = "\n".join(filter(None, lines))
    return text if raw == text else Filtered(text, raw)


@dataclass(frozen=True, slots=True)
class Ending:
    """Why nothing more is read: *reason* for the log, empty if the client closed in order.

    *last_words* are the last bytes to send on the connection.
    """

    reason: str
    last_words: bytes


class Decoder(Protocol):
    """One direction of one connection: bytes in, clean lines of text out; see `LineDecoder`.

    *reply* is to be sent after each `feed`, if there is one.  Once *ending* is set, nothing more is
    read.
    """

    reply: bytes

    @property
    def ending(self) -> Ending | None:
        """Why nothing more is read, otherwise None."""

    @property
    def buffered_bytes(self) -> int:
        """The bytes buffered of what is incomplete."""

    def feed(self, data: bytes | bytearray) -> list[Part]:
        """Take the next bytes and return the lines that they complete."""

    def forget(self) -> None:
        """Drop the buffered part of an incomplete line."""

    def finish(self) -> list[Part]:
        """Return the lines that the end of the input completes."""


class LineDecoder:
    """One direction of one connection: bytes in, clean lines of text out.

    *max_line_bytes* bounds a line as it came on the wire, without its ending.  A longer one is
    discarded up to its LF and reported once, in its place among the lines.

    *reply* is the answer to the telnet commands of the last `feed`, mostly empty.

    For one task at a time; there is nothing to close.
    """

    __slots__ = ("_discarding", "_max_line_bytes", "_partial", "_telnet", "reply")

    ending: ClassVar[None] = None  # only the end of the stream ends it

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._partial = bytearray()
        self._discarding = False
        self._telnet = TelnetResponder()
        self.reply = b""

    @property
    def buffered_bytes(self) -> int:
        """The bytes buffered of an incomplete line: at most the limit, and a CR."""
        return len(self._partial)

    def feed(self, data: bytes | bytearray) -> list[Part]:
        """Take the next bytes and return the lines that they complete, mostly as one block.

        Lines come without their endings, decoded, filtered (see `clean`) and never empty.
        """
        parts: list[Part] = []
        data = bytes(data)  # no copy if it is bytes already
        # In a quiet room mostly exactly one plain line: the general way takes ten times as long
        # there, where none of its code is in the CPU's cache.
        if (
            data.find(b"\n") == len(data) - 1 > 0
            and not (self._partial or self._discarding or self._telnet.is_amid_command)
            and len(data) <= self._max_line_bytes
            and data.isascii()
            and not data.translate(None, _PLAIN)
        ):
            self.reply = b""
            return [data[:-1].decode("ascii")]
        self.reply = self._telnet.answer(data)
        if self._discarding:
            _, end, data = data.partition(b"\n")
            if not end:
                return parts
            self._discarding = False
        block, end, rest = data.rpartition(b"\n")
        if end:
            if self._partial:
                block = bytes(self._partial) + block
                self._partial.clear()
            self._decode_within_limit(block, parts)
        # Checked first: a line over the limit is never buffered.
        held = len(self._partial) + len(rest)
        if self._too_long(held, ends_with_cr=(rest or self._partial).endswith(b"\r")):
            self._partial.clear()
            self._discarding = True
            parts.append(LineTooLong(self._max_line_bytes))
        else:
            self._partial += rest
        return parts

    def forget(self) -> None:
        """Drop the buffered part of an incomplete line."""
        self._partial = bytearray()

    def finish(self) -> list[Part]:
        """Return the text after the last LF, which is a line, too, at the end of the input.

        Afterwards the decoder can be used for another input.
        """
        parts: list[Part] = []
        self._discarding = False
        if self._partial:
            self._decode_within_limit(bytes(self._partial), parts)
            self._partial.clear()
        return parts

    def _too_long(self, length: int, *, ends_with_cr: bool) -> bool:
        return length - ends_with_cr > self._max_line_bytes

    def _decode_within_limit(self, block: bytes, parts: list[Part]) -> None:
        if len(block) <= self._max_line_bytes:  # so is each of its lines
            if text := _decode(block):
                parts.append(text)
            return
        lines: list[bytes] = []
        for line in block.split(b"\n"):
            if self._too_long(len(line), ends_with_cr=line.endswith(b"\r")):
                if text := _decode(b"\n".join(lines)):
                    parts.append(text)
                lines.clear()
                parts.append(LineTooLong(self._max_line_bytes))
            else:
                lines.append(line)
        if text := _decode(b"\n".join(lines)):
            parts.append(text)
