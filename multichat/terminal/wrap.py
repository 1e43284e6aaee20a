"""Measures the columns of text on a terminal, and breaks lines into rows.  Pure.

Invariants of `wrap`:

1. A row never exceeds the available columns on any terminal: where terminals disagree about the
   width of a character, the larger width counts.
2. Only the first row of a line starts in the first column, so that wrapped text cannot be mistaken
   for a new line.
3. White space at a break, or at the end of a line that is broken, is dropped; every other character
   is in exactly one row.
4. The time is linear in the length of a line, for any input.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

__all__ = ["Fragments", "columns_of", "wrap"]

Fragments: TypeAlias = Sequence[tuple[str, str]]
"""One line, as (style, text) pairs."""

# The width of the time and two more columns.
_INDENT = 8

# Chinese and Japanese have no spaces and break anywhere; Korean has them.
_IDEOGRAPHS = (
    "\u2e80-\u2fff\u3001-\u303f\u3041-\u30ff\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60"
    "\U00020000-\U0003fffd"
)
_WORD = re.compile(rf"(\s*)([{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+)")


def columns_of(text: str) -> int:
    """Return the most columns that *text* takes on any terminal."""
    return len(text) if text.isascii() else sum(map(_columns, text))


@lru_cache(maxsize=4096)
def _columns(character: str) -> int:
    # U+FE0F turns the previous character into an emoji, which is wide.
    if character == "\ufe0f":
        return 1
    # Some terminals draw spacing marks and conjoining jamo in a cell of their own.
    if character == "\u200d" or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    # A terminal may know newer emoji than Python does, and draws half of a flag as wide as a flag.
    wide = (
        unicodedata.east_asian_width(character) in "WF" or "\U0001f000" <= character < "\U0001fc00"
    )
    return 1 + wide


def wrap(line: Fragments, columns: int) -> list[Fragments]:
    """Break *line* between words into rows of at most *columns*; all but the first are indented.

    A word that is longer than a row is broken anywhere.
    """
    text = "".join(part for _, part in line)
    if columns_of(text) <= columns:
        return [line]
    indent = min(_INDENT, columns // 4)
    first, *others = _break(text, columns, columns - indent)
    blank = ("", " " * indent)
    return [_cut(line, *first), *([blank, *_cut(line, *span)] for span in others)]


def _break(text: str, first_room: int, room: int) -> list[tuple[int, int]]:
    """Return the start and end index of each row in *text*."""
    spans: list[tuple[int, int]] = []
    start = end = 0
    left = first_room
    # Without trailing white space, in which the pattern would search for a word at each index.
    for match in _WORD.finditer(text, 0, len(text.rstrip())):
        begin = match.start(2)
        gap, width = columns_of(match[1]), columns_of(match[2])
        if gap + width <= left:
            end, left = match.end(), left - gap - width
            continue
        if end > start and (width <= room or gap >= left):
            spans.append((start, end))
            start, left = begin, room
        else:
            left -= gap
        for index, character in enumerate(match[2], begin):
            used = _columns(character)
            if used > left and index > start:
                # Keep an emoji together with its variation selector.
                together = character == "\ufe0f" != text[index - 1] and index - 1 > start
                spans.append((start, index - together))
                start = index - together
                left = room - columns_of(text[start:index])
            left -= used
        end = match.end()
    return [*spans, (start, end)]


def _cut(line: Fragments, start: int, end: int) -> list[tuple[str, str]]:
    """Return the part of *line* from *start* to *end*."""
    cut: list[tuple[str, str]] = []
    at = 0
    for style, text in line:
        if part := text[max(0, start - at) : max(0, end - at)]:
            cut.append((style, part))
        at += len(text)
    return cut
