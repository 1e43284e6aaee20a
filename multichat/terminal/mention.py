"""Finds mentions of a name in a text, in scripts with and without spaces.  Pure.

Does not segment words with a dictionary: in a script written without spaces, a name matches
anywhere.

1. Text and name are compared folded (NFKC and case folding), so that composed and decomposed,
   full-width and half-width spellings are the same.  A match covers whole characters, marks
   included: `alice` is not in `alicé`.
2. A match begins and ends at a word boundary: beside a character that is not part of a word,
   beside a letter of another script, or beside one of a script written without spaces (Han, kana,
   Thai, Lao, Khmer, Burmese, Tibetan, ...).
3. Three scripts attach short words to names, and the boundary may follow those: Korean honorifics
   and particles (지민아), and Hebrew and Arabic one-letter prepositions and conjunctions (לדנה).
   Declension (Russian, Finnish, ...) changes the name and is not recognized.

The cost is linear in the length of the text, for any input.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from multichat.protocol.names import fold_name

__all__ = ["find_mentions"]

# The limit of our own server's lines; a hostile server can send 1 MiB.
_SEARCHED_CHARACTERS = 64 * 1024

# Further mentions in the same message are not highlighted.
_MAX_MENTIONS = 100

# The most combining marks that are folded together with their letter; Burmese needs four.
# Normalization takes quadratic time in the length of a sequence of marks.
_MAX_MARKS = 8

# Scripts written without spaces, by the first word of a character's Unicode name.
_UNSPACED = frozenset(
    (
        "CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO", "IDEOGRAPHIC", "YI",
        "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE", "TAI",
    )
)  # fmt: skip

_KOREAN_SUFFIX = re.compile(
    "(?:님|씨|군|양|이)?"
    "(?:아|야|여|이|가|은|는|을|를|의|에|도|만|과|와|랑|로|으로|에게|에게서|한테|한테서|께|께서"
    "|보다|처럼|까지|부터|마다|하고|이랑|이나|나|이야|이여|이요|요)?"
)
_MAX_SUFFIX = 5
_PREFIX_LETTERS = {"HEBREW": "ובכלמשה", "ARABIC": "وفبلكا"}
_MAX_PREFIX = 3


def find_mentions(text: str, name: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each mention of *name* in *text*, up to `_MAX_MENTIONS`."""
    if not name:
        return
    folded, places = _fold(text[:_SEARCHED_CHARACTERS])
    sought = fold_name(name)
    first, last = sought[:1], sought[-1:]
    found, start = 0, folded.find(sought)
    while start >= 0 and found < _MAX_MENTIONS:
        end = start + len(sought)
        if (
            places[start] != (places[start - 1] if start else -1)
            and places[end] != places[end - 1]
            and _begins(folded, start, first)
            and _ends(folded, end, last)
        ):
            found += 1
            yield places[start], places[end]
            start = folded.find(sought, end)
        else:
            start = folded.find(sought, start + 1)


_fold_character = lru_cache(4096)(fold_name)


def _fold(text: str) -> tuple[str, "range | list[int]"]:
    """Return the folded text, and for each index into it (and its end) the index into *text*."""
    if text.isascii():
        return text.casefold(), range(len(text) + 1)
    folded: list[str] = []
    places: list[int] = []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and end - start <= _MAX_MARKS and _continues(text[end]):
            end += 1
        some = _fold_character(text[start:end])
        folded.append(some)
        places += [start] * len(some)
        start = end
    places.append(len(text))
    return "".join(folded), places


@lru_cache(4096)
def _continues(character: str) -> bool:
    """Return whether *character* extends the previous one: a mark, or part of a syllable."""
    return (
        unicodedata.category(character)[0] == "M"
        or "\u1160" <= character <= "\u11ff"  # Korean vowels and final consonants
        or character in "\uff9e\uff9f"  # the sound marks of half-width katakana
    )


def _begins(text: str, start: int, first: str) -> bool:
    if not start or not _joined(text[start - 1], first):
        return True
    letters = _PREFIX_LETTERS.get(_script(first))
    if letters is None:
        return False
    begin = start
    while begin > max(0, start - _MAX_PREFIX) and text[begin - 1] in letters:
        begin -= 1
    return begin < start and not (begin and _joined(text[begin - 1], text[begin]))


def _ends(text: str, end: int, last: str) -> bool:
    if end == len(text) or not _joined(last, text[end]):
        return True
    if _script(last) != "HANGUL":
        return False
    # Any suffix that is followed by a boundary; the pattern alone would match only the first.
    rest = text[end : end + _MAX_SUFFIX + 1]
    return any(
        _KOREAN_SUFFIX.fullmatch(rest, 0, length)
        and (length == len(rest) or not _joined(rest[length - 1], rest[length]))
        for length in range(1, min(len(rest), _MAX_SUFFIX) + 1)
    )


def _joined(left: str, right: str) -> bool:
    """Return whether two adjacent characters can be part of one word."""
    if not (_is_word(left) and _is_word(right)):
        return False
    left_script, right_script = _script(left), _script(right)
    if left_script in _UNSPACED or right_script in _UNSPACED:
        return False
    return not (left_script and right_script) or left_script == right_script


@lru_cache(4096)
def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


@lru_cache(4096)
def _script(character: str) -> str:
    """Return the script of a letter; empty for characters common to all scripts (digits, marks)."""
    if not character.isalpha():
        return ""
    return unicodedata.name(character, "").partition(" ")[0]
