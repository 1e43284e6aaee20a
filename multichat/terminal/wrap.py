"""Breaks lines into the rows of a terminal.  Pure.

Invariants of `wrap`:

1. A row never exceeds the available columns on any terminal: see `columns`.
2. Only the first row of a line starts in the first column, so that wrapped text cannot be mistaken
   for a new line, unless the caller wants no indent.
3. A row never breaks a grapheme cluster, unless the cluster is wider than a row.
4. White space at a break, or at the end of a line that is broken, is dropped; every other character
   is in exactly one row.
5. The time is linear in the length of a line, for any input.
"""

import re
from collections.abc import Iterator

from multichat.terminal.columns import Fragments, columns_of
from multichat.terminal.graphemes import clusters

__all__ = ["wrap"]

# The width of the time and two more columns.
_INDENT = 8

# Chinese and Japanese have no spaces and break anywhere; Korean has them.
_IDEOGRAPHS = (
    "\u2e80-\u2fff\u3001-\u303f\u3041-\u30ff\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60"
    "\U00020000-\U0003fffd"
)
# Marks and variation selectors that belong to the ideograph before them.
_MARKS = "\u0300-\u036f\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
_WORD = re.compile(rf"(\s*)([{_IDEOGRAPHS}][{_MARKS}]*|[^\s{_IDEOGRAPHS}]+)")


def wrap(line: Fragments, columns: int, *, indent: int = _INDENT) -> list[Fragments]:
    """Break *line* between words into rows of at most *columns*; all but the first are indented.

    A word that is longer than a row is broken anywhere.
    """
    text = "".join(part for _, part in line)
    if columns_of(text) <= columns:
        return [line]
    indent = min(indent, columns // 4)
    first, *others = _break(text, columns, columns - indent)
    blank = [("", " " * indent)] if indent else []
    return [_cut(line, *first), *([*blank, *_cut(line, *span)] for span in others)]


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
        index = begin
        for piece in _pieces(match[2], room):
            used = columns_of(piece)
            if used > left and index > start:
                spans.append((start, index))
                start, left = index, room
            left -= used
            index += len(piece)
        end = match.end()
    return [*spans, (start, end)]


def _pieces(word: str, room: int) -> Iterator[str]:
    """Yield the clusters of *word*, or the code points of a cluster that is wider than *room*."""
    for cluster in clusters(word):
        if columns_of(cluster) <= room:
            yield cluster
        else:
            yield from cluster


def _cut(line: Fragments, start: int, end: int) -> list[tuple[str, str]]:
    """Return the part of *line* from *start* to *end*."""
    cut: list[tuple[str, str]] = []
    at = 0
    for style, text in line:
        if part := text[max(0, start - at) : max(0, end - at)]:
            cut.append((style, part))
        at += len(text)
    return cut
