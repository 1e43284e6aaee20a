"""Which names people and rooms may have, and when two names are the same.  Pure.

A name is shown before messages on other people's terminals.  It must be short and on one line, and
must not be mistaken for another user's name, for the server, or for an argument of a command.

1. A name is stored in its NFKC form: full-width letters and ligatures become ordinary letters.
2. Two names are the same if they are equal after case folding.
3. 1 to 32 letters, digits, `-`, `_` and `.`; marks only where a script writes its vowels with them.
4. Letters of different scripts do not mix, except those of Chinese, Japanese or Korean with Latin.
5. A person's name has a letter, and does not look like a name of the server or of its operator, nor
   like a number, an address, a duration or another argument of a command.

Which names look alike is up to `multichat.protocol.lookalikes`.

Sources: Unicode Technical Standard 39 (skeletons, the profile "highly restrictive"), Unicode
Standard Annex 15, RFC 5893 (section 2, rule 1: a right-to-left name starts with its letters).
"""

import re
import unicodedata
from functools import cache

import msgspec

from multichat.errors import InvalidName
from multichat.protocol.lookalikes import (
    fold_name,
    lookalike_keys,
    may_mix,
    readings,
    script_of,
    skeleton,
)
from multichat.protocol.messages import (
    MAX_DECOMPOSED,
    MAX_NAME_CHARACTERS,
    Event,
    HistoryPage,
    MemberName,
    Members,
    RoomList,
    RoomSize,
)

__all__ = [
    "MAX_DECOMPOSED",
    "MAX_NAME_CHARACTERS",
    "SERVER_NAME",
    "default_name",
    "fold_name",
    "load_tables",
    "lookalike_room",
    "normalize_name",
    "parse_name",
    "parse_person_name",
    "parse_room_name",
    "visible_name",
    "with_visible_names",
]

SERVER_NAME = "Server"

_PUNCTUATION = "-_."

# Letters and marks that are invisible: fillers, variation selectors.
_FILLERS = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164"
    "\ufe00-\ufe0f\uffa0\U00016fe4\U000e0100-\U000e01ef"
)
_INVISIBLE = re.compile(f"[{_FILLERS}]")

# The same, and invisible characters that are not letters: joiners, direction marks, tags.
_UNSEEN = re.compile(
    f"[{_FILLERS}\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb\U000e0000-\U000e0fff]"
)

# The most marks on one letter, as in Burmese words.
_MAX_MARKS = 4
# The most accents on one letter, which any letter can have: Yoruba needs no more.
_ACCENT = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
_OVERLAY = re.compile("[\u0334-\u0338\u20d0-\u20ff]")  # strike the letter out; none allowed

# Letters of these scripts have no marks of other scripts.
_WESTERN = ("LATIN", "GREEK", "CYRILLIC")

# Phonetic letters that look like small capitals are read as ordinary letters.
_PHONETIC = re.compile("[\u1d00-\u1dbf]")
_SMALL_CAPITAL = "SMALL CAPITAL"

# Words that claim to be the server or its operator: alone, joined, or as one word of a name.
_AUTHORITIES = (
    "server", "system", "console", "multichat", "admin", "admins", "administrator", "sysadmin",
    "operator", "sysop", "moderator", "mod", "mods", "owner", "root", "staff", "support",
)  # fmt: skip

# These only as a whole name: DevOps and co-op are allowed.
_AUTHORITIES_ALONE = ("op", "ops")

# Digits that are read as letters; 0 and 1 are replaced in every reading.
_DIGITS_AS_LETTERS = str.maketrans("3457", "east")

# Commands, and people, use these words for something other than a person.
_WORDS = (
    "all", "everyone", "everybody", "anyone", "anybody", "here", "nobody", "me", "you", "name",
    "forever", "localhost",
)  # fmt: skip

# One word ends where another begins with a capital: ServerAdmin.
_BETWEEN_WORDS = re.compile(r"[-_.\d]+|(?<=[a-z])(?=[A-Z])")

# In a reading (see `readings`) 0 and 1 have become letters.  These are all spellings of an IPv4
# address that `inet_aton` reads, numbers among them, and what
# `multichat.server.bans.parse_duration` does.
_DIGIT = r"[\dlo]"
_ADDRESS = re.compile(rf"(?:ox[\da-flo]*|{_DIGIT}+)(?:\.(?:ox[\da-flo]*|{_DIGIT}+))*\.?")
_DURATION = re.compile(rf"{_DIGIT}+(?:s|rn|rnin|h|d|w)")


def load_tables() -> None:
    """Load the tables of characters; otherwise parsing the first name takes 50 ms."""
    parse_person_name("alice")


def default_name(client: int) -> str:
    """Return the name of *client* until it chooses one."""
    return f"Client {client}"


def normalize_name(name: str, kind: str = "a name") -> str:
    """Return *name* in the form in which names are stored; raises `InvalidName`.

    Only the characters are checked, so that a ban may name what `parse_name` refuses.  *kind* is
    the subject of the error.
    """
    if len(name) > MAX_DECOMPOSED:
        raise InvalidName(f"{kind} has at most {MAX_NAME_CHARACTERS} characters")
    name = unicodedata.normalize("NFKC", name)
    if not name:
        raise InvalidName(f"{kind} has at least one character")
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidName(f"{kind} has at most {MAX_NAME_CHARACTERS} characters")
    if _INVISIBLE.search(name) or _OVERLAY.search(name) or not _are_letters(name):
        raise InvalidName(f"{kind} consists of letters, digits, '-', '_' and '.'")
    return name


def visible_name(name: str) -> str:
    """Return *name*, as a server has sent it, without invisible characters."""
    return name if name.isascii() else _UNSEEN.sub("", name)


def parse_name(name: str, kind: str = "a name") -> str:
    """Return the name of a person or of a room as it is stored; raises `InvalidName`."""
    name = normalize_name(name, kind)
    # Folded, too: an iota subscript, for one, becomes a letter.
    if not may_mix(name + fold_name(name)):
        raise InvalidName(
            f"{kind} cannot mix scripts, except Latin with Chinese, Japanese or Korean"
        )
    if len({ord(digit) - int(digit) for digit in name if digit.isdecimal()}) > 1:
        raise InvalidName(f"{kind} cannot mix digits of different scripts")
    if any(map(_is_small_capital, name)):
        raise InvalidName(f"{kind} cannot contain phonetic letters that look like small capitals")
    if name.startswith("-") or not any(map(str.isalnum, name)):
        raise InvalidName(f"{kind} needs a letter or a digit, and cannot start with '-'")
    if _is_right_to_left(name) and not _is_right_to_left(name[0]):
        raise InvalidName(f"{kind} that is written from right to left must start with a letter")
    return name


def parse_room_name(name: str) -> str:
    """Return the name of a room as it is stored; raises `InvalidName`."""
    return parse_name(name, "a room's name")


def lookalike_room(name: str, other: str) -> InvalidName:
    """Return the error for a room *name* that would look like *other*, which is open."""
    return InvalidName(f"the room {name} would look like {other}, which is open")


def parse_person_name(name: str) -> str:
    """Return the name of a person as it is stored; raises `InvalidName`."""
    name = parse_name(name)
    if meaning := _mistaken_for(name):
        raise InvalidName(f"the name '{name}' is not allowed: it can be mistaken for {meaning}")
    return name


def _mistaken_for(name: str) -> str:
    """Return what *name* could be mistaken for; empty if nothing."""
    keys = readings(name)
    stem = name.rstrip("0123456789")
    for spelling in {name, stem.translate(_DIGITS_AS_LETTERS) + name[len(stem) :]}:
        whole = list(map(_bare, readings(spelling)))
        words = [_bare(key) for word in _BETWEEN_WORDS.split(spelling) for key in readings(word)]
        if any(map(_pattern("client", repeat="").fullmatch, whole)):
            return "a client without a name"
        if any(map(_pattern(*_AUTHORITIES).fullmatch, words)) or any(
            map(_pattern(*_AUTHORITIES, *_AUTHORITIES_ALONE).fullmatch, whole)
        ):
            return "the server or its operator"
    # As written, not in lower case: the name ALI is not the word ALL.
    if not {_bare(keys[0]), _bare(skeleton(name))}.isdisjoint(_words()):
        return "a word that commands use"
    if not any(map(str.isalpha, name)):
        return "a number or an address"
    for key in keys:
        # lol and ox are names, l0l and 0x are not.
        if any(map(str.isdecimal, name + key)) and (
            _ADDRESS.fullmatch(key) or _DURATION.fullmatch(key)
        ):
            return "a number, an address or a time"
    return ""


def _bare(key: str) -> str:
    """Return the letters and digits of *key* without accents and punctuation."""
    parts = unicodedata.normalize("NFD", key)
    return "".join(c for c in parts if unicodedata.category(c) in ("Ll", "Lo", "Lt", "Lu", "Nd"))


@cache
def _pattern(*words: str, repeat: str = "+") -> re.Pattern[str]:
    """Return the pattern of names that consist of *words*, however spelled, and digits."""
    keys = {key for word in words for form in (word, word.upper()) for key in readings(form)}
    return re.compile(rf"(?:{'|'.join(keys)}){repeat}{_DIGIT}*")


@cache
def _words() -> frozenset[str]:
    return frozenset(key for word in _WORDS for key in lookalike_keys(word))


def _is_small_capital(character: str) -> bool:
    return bool(_PHONETIC.match(character)) or _SMALL_CAPITAL in unicodedata.name(character, "")


def _is_right_to_left(text: str) -> bool:
    return any(unicodedata.bidirectional(character) in ("R", "AL") for character in text)


def _are_letters(name: str) -> bool:
    marks = _MAX_MARKS  # on the last letter; there is no letter yet
    western = False
    for character in name:
        category = unicodedata.category(character)
        if category[0] == "L":
            marks = 0
            western = script_of(character) in _WESTERN
        elif western and category == "Mn" and not _ACCENT.match(character):
            return False  # a mark of another script
        elif category == "Nd" or character in _PUNCTUATION:
            marks = _MAX_MARKS
        elif category in ("Mn", "Mc") and marks < _MAX_MARKS:
            marks = _MAX_MARKS if _ACCENT.match(character) else marks + 1
        else:
            return False
    return True


def with_visible_names(event: Event) -> Event:
    """Return *event* without invisible characters in its names: a server may be hostile."""
    changed: dict[str, object] = {}
    for field in ("name", "old", "room", "person_in"):
        name = getattr(event, field, "")
        if not name.isascii() and (visible := visible_name(name)) != name:
            changed[field] = visible
    match event:
        case Members(members=members):
            changed["members"] = [
                MemberName(each.client, visible_name(each.name)) for each in members
            ]
        case RoomList(rooms=rooms):
            changed["rooms"] = [RoomSize(visible_name(each.room), each.members) for each in rooms]
        case HistoryPage(messages=messages):
            changed["messages"] = list(map(with_visible_names, messages))
    return msgspec.structs.replace(event, **changed) if changed else event
