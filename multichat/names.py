"""What people and rooms may be called, and when two names are the same.  Pure.

A name is shown in other people's terminals in front of what is said, so that it has to be short,
of one line, and not to be mistaken for somebody else's.

1. A name is kept in its NFKC form: full-width letters and ligatures are the letters they stand for.
2. Two names are the same if they are after case folding, too.
3. 1 to 32 letters, digits, `-`, `_` and `.`; marks only where a script writes its vowels with them.
4. Letters of the Latin, Greek and Cyrillic alphabets, which look alike, do not mix.
5. Nobody is called what the server calls itself, or those who have no name.

Source: Unicode Technical Report 36, section 2, and Standard Annex 15.
"""

import re
import unicodedata

from multichat.errors import InvalidName

__all__ = ["MAX_NAME_CHARACTERS", "SERVER_NAME", "default_name", "fold_name", "parse_name"]

SERVER_NAME = "Server"

# A tag of 32 leaves a line of 60 columns something to say.
MAX_NAME_CHARACTERS = 32

_PUNCTUATION = "-_."

# Letters and marks to Unicode, and nothing at all to whoever looks: fillers, variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U00016fe4\U000e0100-\U000e01ef]"
)

# Marks in a row on one letter: as many as Burmese words have.
_MAX_MARKS = 4
# Of the accents that any letter can be made to drip with, one: that is what Yoruba needs.
_ACCENT = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
_OVERLAY = re.compile("[\u0334-\u0338\u20d0-\u20ff]")  # and none that strikes it out

_LOOK_ALIKE = ("LATIN", "GREEK", "CYRILLIC")

# After folding, and without punctuation: "Client 7", "client_07", "CLIENT", "-server-".
_RESERVED = re.compile(r"client\d*|server")


def default_name(client: int) -> str:
    """Return what *client* is called until it says otherwise."""
    return f"Client {client}"


def fold_name(name: str) -> str:
    """Return what is equal for two names that are the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def parse_name(name: str) -> str:
    """Return the name of a person or of a room as it is kept; raises `InvalidName`."""
    if len(name) > 4 * MAX_NAME_CHARACTERS:  # what composes has no more parts than that
        raise InvalidName(f"a name has at most {MAX_NAME_CHARACTERS} characters")
    name = unicodedata.normalize("NFKC", name)
    if not name:
        raise InvalidName("a name has at least one character")
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidName(f"a name has at most {MAX_NAME_CHARACTERS} characters")
    if _INVISIBLE.search(name) or _OVERLAY.search(name) or not _are_letters(name):
        raise InvalidName("a name consists of letters, digits, '-', '_' and '.'")
    # Folded, too: of an iota below a letter, and of a Roman numeral, folding makes a letter.
    scripts = set(map(_script, name + fold_name(name)))
    if len(scripts.intersection(_LOOK_ALIKE)) > 1:
        raise InvalidName("a name does not mix Latin, Greek and Cyrillic letters")
    if _RESERVED.fullmatch(_bare(name)):
        raise InvalidName(f"nobody can be called {name}")
    return name


def _bare(name: str) -> str:
    """Return the letters and digits of *name*, without what makes them look a little different."""
    parts = unicodedata.normalize("NFD", fold_name(name)).replace("ı", "i")
    return "".join(c for c in parts if unicodedata.category(c) in ("Ll", "Lo", "Lt", "Lu", "Nd"))


def _are_letters(name: str) -> bool:
    marks = _MAX_MARKS  # that stand on one letter so far: there is none yet
    western = False
    for character in name:
        category = unicodedata.category(character)
        if category[0] == "L":
            marks = 0
            western = _script(character) in _LOOK_ALIKE
        elif western and category == "Mn" and not _ACCENT.match(character):
            return False  # a mark of another script's on a letter of ours
        elif category == "Nd" or character in _PUNCTUATION:
            marks = _MAX_MARKS
        elif category in ("Mn", "Mc") and marks < _MAX_MARKS:
            marks = _MAX_MARKS if _ACCENT.match(character) else marks + 1
        else:
            return False
    return True


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]
