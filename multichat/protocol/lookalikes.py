"""Names that look alike: skeletons and scripts, after Unicode Technical Standard 39.  Pure.

Two texts with equal skeletons can be mistaken for each other.  The tables of confusable characters
and of scripts are those of `confusable_homoglyphs`; both are loaded on first use.

`NameIndex` finds the holder of a name, and the holders of names that look like it.
"""

import re
import unicodedata
from collections.abc import Hashable
from functools import cache, lru_cache
from typing import Generic, TypeVar

__all__ = [
    "NameIndex",
    "fold_name",
    "lookalike_keys",
    "may_mix",
    "readings",
    "script_of",
    "skeleton",
]

# The profile "highly restrictive" of UTS 39, section 5.2: one script, or one of these mixes.
_MIXES = (
    frozenset(("LATIN", "HAN", "HIRAGANA", "KATAKANA")),
    frozenset(("LATIN", "HAN", "BOPOMOFO")),
    frozenset(("LATIN", "HAN", "HANGUL")),
)
_ANY_SCRIPT = frozenset(("COMMON", "INHERITED"))

# A combining dot on an i or j is not visible; marks below the letter may precede it.
_DOTTED = re.compile("([ij][\u0316-\u0333]*)\u0307+")

# Folding and mapping can each enable the other; no character needs more than three rounds.
_MAX_ROUNDS = 4

# A Hangul letter outside a syllable is a stroke or a circle: beside Latin it reads as l, o, L or E.
_LONE_JAMO = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\ud7b0-\ud7ff]")

# Entries that the table lacks or has wrong.
_CORRECTIONS = {
    ord("\u04cf"): "l",  # CYRILLIC SMALL LETTER PALOCHKA: drawn like l, and not like i
    ord("\u13c6"): "l",  # CHEROKEE LETTER QUA: drawn like a capital I
    ord("\u4e28"): "l",  # the ideograph that is one vertical stroke
}

# Neither a name nor its skeleton is longer.
_MAX_FOLDED = 256

# A name is parsed a few times in a row when it is claimed; the cache is bounded because there are a
# million characters.
_REMEMBERED_NAMES = 1024
_REMEMBERED_CHARACTERS = 4096

_Holder = TypeVar("_Holder", bound=Hashable)


@cache
def _prototypes() -> dict[int, str]:
    """Return the prototype of each confusable character.

    The library's table has every pair in both directions, first from the character to its
    prototype.  A prototype has no entry.
    """
    from confusable_homoglyphs.confusables import confusables_data  # type: ignore[import-untyped]

    prototypes: dict[int, str] = {}
    targets: set[str] = set()
    for key, lookalikes in confusables_data.items():
        # Without the marks that keep a table with right-to-left letters readable.
        character, target = (text.replace("\u200e", "") for text in (key, lookalikes[0]["c"]))
        if len(lookalikes) == 1 and character not in targets:
            prototypes[ord(character)] = target
            targets.add(target)
    corrected = {code: text.translate(_CORRECTIONS) for code, text in prototypes.items()}
    return corrected | _CORRECTIONS


def fold_name(text: str) -> str:
    """Return *text* in the form that is equal for two names that differ only in case or NFKC.

    Text that is too long for a name is returned unchanged: normalizing takes quadratic time.
    """
    if len(text) > _MAX_FOLDED:
        return text
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def skeleton(text: str) -> str:
    """Return the skeleton of *text*, a key that is equal for two texts that look alike."""
    mapped = unicodedata.normalize("NFD", text).translate(_prototypes())
    return _DOTTED.sub(r"\1", unicodedata.normalize("NFD", mapped))


def _folded_skeleton(text: str) -> str:
    for _ in range(_MAX_ROUNDS):
        before, text = text, fold_name(skeleton(text))
        if text == before:
            break
    return text


@lru_cache(_REMEMBERED_NAMES)
def readings(name: str) -> tuple[str, ...]:
    """Return how *name* can be read, in lower case.

    The first is how the folded name looks, which all spellings of one name share.  The second, if
    it differs, is how the name looks as written: `aIice`, with a capital I, is read as alice.
    """
    folded, written = _folded_skeleton(fold_name(name)), _folded_skeleton(name)
    return (folded,) if written == folded else (folded, written)


@lru_cache(_REMEMBERED_NAMES)
def lookalike_keys(name: str) -> tuple[str, ...]:
    """Return the keys of *name*: it can be mistaken for any name that shares one of them.

    They are its `readings`, and its skeletons as written, in capitals and in title case.
    `DAVlD`, with a small L, looks like `DAVID`, and `lvan` like `Ivan`.  A skeleton keeps the case,
    so `NEIL` and `NELL` differ: only a small L looks like a capital I.
    """
    kept = unicodedata.normalize("NFKC", name)
    forms = (kept, kept.upper(), kept.title())
    shapes = (unicodedata.normalize("NFC", skeleton(form)) for form in forms)
    return tuple(dict.fromkeys((*readings(name), *shapes)))


@lru_cache(_REMEMBERED_CHARACTERS)
def script_of(character: str) -> str:
    """Return the script of *character* in capitals; COMMON or INHERITED if it is in many."""
    from confusable_homoglyphs.categories import alias  # type: ignore[import-untyped]

    script: str = alias(character)
    return script.upper()


def may_mix(text: str) -> bool:
    """Return whether the scripts of *text*, in NFKC, may be mixed in one name."""
    scripts = {script_of(character) for character in text} - _ANY_SCRIPT
    if "LATIN" in scripts and _LONE_JAMO.search(text):
        return False
    return len(scripts) <= 1 or any(scripts <= mix for mix in _MIXES)


class NameIndex(Generic[_Holder]):
    """An index of holders by their names: finds a name, and the names that look like it.

    Each holder has one name, and no two have the same; names may look alike.  The time of a lookup
    does not depend on the number of names.
    """

    def __init__(self) -> None:
        self._names: dict[_Holder, str] = {}
        self._by_name: dict[str, _Holder] = {}
        self._by_key: dict[str, dict[_Holder, None]] = {}  # mostly one for each key

    def __contains__(self, holder: _Holder) -> bool:
        """Return whether *holder* has a name."""
        return holder in self._names

    def find(self, name: str) -> _Holder | None:
        """Return the holder of *name* in any case or form, not of one that only looks like it."""
        return self._by_name.get(fold_name(name))

    def lookalikes(self, name: str) -> list[_Holder]:
        """Return the holders of names that look like *name*, mostly none or one."""
        keys = lookalike_keys(name)
        return list(dict.fromkeys(each for key in keys for each in self._by_key.get(key, ())))

    def add(self, holder: _Holder, name: str) -> None:
        """Give *name*, which no other holder may have, to *holder*; replaces the name it had."""
        self.discard(holder)
        self._names[holder] = name
        self._by_name[fold_name(name)] = holder
        for key in lookalike_keys(name):
            self._by_key.setdefault(key, {})[holder] = None

    def discard(self, holder: _Holder) -> None:
        """Remove the name of *holder*, if it has one."""
        name = self._names.pop(holder, None)
        if name is not None:
            del self._by_name[fold_name(name)]
            for key in lookalike_keys(name):
                del self._by_key[key][holder]
                if not self._by_key[key]:
                    del self._by_key[key]
