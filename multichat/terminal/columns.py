"""How many columns text takes on a terminal.  Pure.

Where terminals disagree about the width of a character, the larger width counts.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

__all__ = ["Fragments", "columns_of"]

Fragments: TypeAlias = Sequence[tuple[str, str]]
"""One line, as (style, text) pairs."""


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
