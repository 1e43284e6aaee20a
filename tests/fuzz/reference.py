"""Slow and simple reference implementations for the code under test.

Implements framing line by line and byte by byte from the rules in `docs/protocol.md`, and defines
which characters a terminal obeys.  Shares neither code nor tables with `multichat`.
"""

import unicodedata
from functools import cache

__all__ = ["TOO_LONG", "lines_of", "obeyed"]

TOO_LONG = None
"""What stands in the place of a line that was over the limit."""

_IAC, _SE, _SB, _GO_AHEAD, _WILL, _DONT = 0xFF, 0xF0, 0xFA, 0xF9, 0xFB, 0xFE
_BIDI = frozenset(["LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"])


def lines_of(data: bytes, max_line_bytes: int) -> list[str | None]:
    """Return the lines of a whole connection as they must be shown."""
    lines: list[str | None] = []
    for raw in data.split(b"\n"):
        raw = raw.removesuffix(b"\r")
        if len(raw) > max_line_bytes:
            lines.append(TOO_LONG)
        elif line := _visible(_without_telnet(raw).decode("utf-8", "replace")):
            lines.append(line)
    return lines


def _without_telnet(line: bytes) -> bytes:
    kept = bytearray()
    at = 0
    while at < len(line):
        command = line[at + 1] if line[at] == _IAC and at + 1 < len(line) else None
        if command is None:
            kept.append(line[at])
            at += 1
        elif command == _SB:
            at = _end_of_subnegotiation(line, at + 2)
        elif _WILL <= command <= _DONT:
            at += 3
        elif _SE <= command <= _GO_AHEAD or command == _IAC:
            at += 2
        else:
            kept.append(line[at])
            at += 1
    return bytes(kept)


def _end_of_subnegotiation(line: bytes, at: int) -> int:
    while at < len(line):
        if line[at] != _IAC:
            at += 1
        elif line[at + 1 : at + 2] == bytes([_SE]):
            return at + 2
        else:
            at += 2
    return at


_BYTE_ORDER_MARK = "\ufeff"


def _visible(text: str) -> str:
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character != "\t":
        return chr(ord("␀") + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in ("Zl", "Zp"):
        return " "
    if unicodedata.bidirectional(character) in _BIDI or character == _BYTE_ORDER_MARK:
        return ""
    return "�" if obeyed(character) else character


def obeyed(text: str) -> set[str]:
    """Return the characters of *text* that a terminal, a log or a reader's eye would obey."""
    return {character for character in set(text) if _is_obeyed(character)}


@cache
def _is_obeyed(character: str) -> bool:
    return character != "\t" and (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in _BIDI
        or character == _BYTE_ORDER_MARK
    )
