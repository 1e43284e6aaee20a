"""Bytes to lines, incrementally and within bounds.  Pure: no I/O, no clock, no trio.

This module owns what stands between the wire and the first character anybody sees: where a line
ends, how long it may be, and which characters are fit to be shown to somebody else.  It knows
nothing of what a line means.

The rules it lives by:

1. A line ends with LF and nothing else, wherever a packet was cut and whatever came before it.
2. What comes out does not depend on how the bytes were cut on their way in.
3. No more than one line within the limit (and the CR of its ending) is ever held back.
4. No character comes out that could move a cursor, end a log line or reorder what is read.
5. Any bytes at all are an input; nothing is raised on account of them.
"""

import re
from itertools import compress
from typing import Self, TypeAlias

from multichat.errors import LineTooLong
from multichat.protocol.telnet import TelnetResponder, remove_commands

__all__ = ["Filtered", "LineDecoder", "Part", "behind", "clean", "clean_lines", "marked"]

Part: TypeAlias = str | LineTooLong
"""What a decoder returns in sequence: a run of lines, or the place of one it dropped.

A run is one string: whole lines, none of them empty, with an LF between two and none at the end.
One read is mostly one run, and what is done to a run costs little more than for a single line.
"""

# What a chunk may consist of and need no filter: LF, TAB and the visible part of ASCII.
_PLAIN = b"\n\t" + bytes(range(0x20, 0x7F))

_REPLACEMENTS: dict[int, str] = {
    **{c: chr(0x2400 + c) for c in range(0x20) if c not in b"\t\n"},  # ESC becomes ␛
    0x7F: "␡",
    **dict.fromkeys(range(128, 160), "�"),  # C1: CSI in one character
    **dict.fromkeys((8232, 8233), " "),  # line breaks to whoever believes in them
    **dict.fromkeys((*range(8234, 8239), *range(8294, 8298)), ""),  # bidi controls
    0xFEFF: "",  # a byte order mark, which has no meaning within UTF-8
    **dict.fromkeys(range(55296, 57344), "�"),  # surrogates: not text, and no UTF-8
}
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def clean(text: str) -> str:
    """Return *text* with every character that could harm a reader made visible or harmless.

    Controls but TAB become their pictures (ESC becomes ␛, LF becomes ␊), C1 controls and lone
    surrogates U+FFFD, line and paragraph separators a space; bidi overrides, isolates and byte
    order marks are dropped.  White space is not trimmed.  Idempotent; what is clean comes back as
    it is.
    """
    return clean_lines(text).replace("\n", "␊")


def clean_lines(text: str) -> str:
    """Do as `clean` does with each line of *text*: an LF stays an LF."""
    return text.translate(_REPLACEMENTS) if _UNFIT.search(text) else text


def marked(text: str) -> str:
    """Return *text* with U+FFFD for every character that `clean_lines` would replace or drop."""
    return _UNFIT.sub("\ufffd", text)


class Filtered(str):
    """A run that the filter has changed; *raw* has the same lines as they were sent."""

    __slots__ = ("raw",)

    raw: str

    def __new__(cls, text: str, raw: str) -> Self:
        """Make it of the clean *text* and of *raw*."""
        text = super().__new__(cls, text)
        text.raw = raw
        return text


def behind(text: str, lines: int) -> str:
    """Return what stands behind the first *lines* of *run*, which has more than that."""
    rest = text.split("\n", lines)[lines]
    return (
        Filtered(rest, text.raw.split("\n", lines)[lines]) if isinstance(text, Filtered) else rest
    )


# A pattern of two characters and nothing else: anything cleverer takes ten times as long, and `in`
# twice.
_EMPTY_LINE = re.compile("\n\n")


def _decode(block: bytes) -> str:
    """Decode whole lines, the last one without its LF, and leave out the empty ones."""
    if b"\r" in block:
        block = (block + b"\n").replace(b"\r\n", b"\n")[:-1]
    # The common case first: deleting what is plain costs a table look-up per byte, decoding and
    # filtering twenty times that.
    if block.isascii() and not block.translate(None, _PLAIN):
        raw = text = block.decode("ascii")
    else:
        block = remove_commands(block)
        # Filtered after decoding: the continuation bytes of honest characters look like C1.
        raw = block.decode("utf-8", "replace")
        text = clean_lines(raw)
    if text.startswith("\n") or text.endswith("\n") or _EMPTY_LINE.search(text):
        lines = text.split("\n")
        raw = "\n".join(compress(raw.split("\n"), lines))
        text = "\n".join(filter(None, lines))
    return text if raw == text else Filtered(text, raw)


class LineDecoder:
    """One direction of one connection: bytes in, clean lines of text out.

    *max_line_bytes* bounds a line as it came on the wire, its ending not counted.  A longer one
    is discarded up to its LF and reported once, in its place among the lines.

    *reply* is what the bytes of the last `feed` have a telnet client wait for, mostly nothing.

    Not safe for use by several tasks at once; it never blocks and owns nothing to close.
    """

    __slots__ = ("_discarding", "_max_line_bytes", "_partial", "_telnet", "reply")

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._partial = bytearray()
        self._discarding = False
        self._telnet = TelnetResponder()
        self.reply = b""

    @property
    def buffered_bytes(self) -> int:
        """How much of an unfinished line is held: at most the limit, and a CR."""
        return len(self._partial)

    def feed(self, data: bytes | bytearray) -> list[Part]:
        """Take the next bytes and return what they completed, in order; often one run of lines.

        Lines come without their endings, decoded, filtered (see `clean`) and never empty.
        """
        parts: list[Part] = []
        data = bytes(data)  # no copy where it is already
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
        # Measured before it is kept: what is over the limit is never buffered.
        held = len(self._partial) + len(rest)
        if self._too_long(held, ends_with_cr=(rest or self._partial).endswith(b"\r")):
            self._partial.clear()
            self._discarding = True
            parts.append(LineTooLong(self._max_line_bytes))
        else:
            self._partial += rest
        return parts

    def forget(self) -> None:
        """Drop what is held of an unfinished line."""
        self._partial = bytearray()

    def finish(self) -> list[Part]:
        """Return what stood after the last LF: at the end of input that is a line too.

        The decoder is as new afterwards.
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
        if len(block) <= self._max_line_bytes:  # then so is each of its lines
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
