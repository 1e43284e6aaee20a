"""What a typed line is: a message, a command, or a line that only looks like a command.  Pure.

A line that does not begin with a slash and yet looks like a command (such as ` /msg bob secret`,
with a space, an invisible character or a look-alike of the slash in front) is *disguised*: it is
neither run nor sent as a message, unless the user confirms that.  In a pipe, disguised commands are
dropped; unknown commands, such as paths, are sent as messages (`say_unless_command`).
"""

import re
import unicodedata

from multichat.errors import InvalidRequest
from multichat.protocol.commands import (
    ADMIN_COMMANDS,
    COMMANDS,
    CommandTable,
    parse_command,
    shortened,
    split_command,
)
from multichat.protocol.messages import MIN_PASSPHRASE_CHARACTERS, Invalid, Request
from multichat.protocol.names import fold_name

__all__ = [
    "disguised_command",
    "lacks_slash",
    "looks_like",
    "masked",
    "may_be_disguised",
    "may_hold_secret",
    "parse_line",
    "say_literally",
    "say_unless_command",
    "why_not_said",
    "without_slash",
]

# No command has a longer name; only the beginning of a longer word is compared.
_MAX_NAME_CHARACTERS = 40

# Commands with a password or a passphrase, also those of other chats, and how similar a mistyped
# one, such as `/regsiter`, has to be.
_SECRET_COMMANDS = (
    *(each.name for table in (COMMANDS, ADMIN_COMMANDS) for each in table if each.has_secret),
    "/identify",
    "/nickserv",
    "/password",
    "/passwd",
)
_LIKE_SECRET = 0.8
_MAX_SECRET_CHARACTERS = 20
# A command without the space after it, as in `/loginalice`; `/login.html` is a path.
_RUN_TOGETHER = re.compile(r"/(?:login|register|passphrase|password)\w")
_NEW_ACCOUNT = re.compile(r"(?i)(\s*/account\s+add\s+\S+)\s.*", re.DOTALL)
_NO_SLASH = re.compile(r"\s*(?:login|register|passphrase|auth|account\s+add)\s+\S", re.IGNORECASE)

# Slashes, and what looks like one or stands on the same key (Unicode, confusables.txt).
_SLASHES = (
    "/\\\uff0f\u2044\u2215\u2571\u27cb\u29f8\u2afd\u1735\u2041\u2cc6\u3033\u30ce\uff89\u31d3\u4e3f"
    "\u2f03\U0001d23a\uff3c\ufe68\u2216\u27cd\u29f5\u29f9\u2572\u31d4\u4e36\u2f02\U0001d20f\U0001d23b"
)
_ANY_SLASH = re.escape(_SLASHES)
_SLASH = re.compile(f"[{_ANY_SLASH}]")
_SLASH_BEFORE_WORDS = rf"[^\w\n{_ANY_SLASH}]*+[{_ANY_SLASH}]"
_SLASH_FIRST = re.compile(_SLASH_BEFORE_WORDS)
_SLASH_LATER = re.compile(rf"\n{_SLASH_BEFORE_WORDS}")
# A cheap test for such a line, three times as fast as `_SLASH_LATER`.
_LATER_START = re.compile(r"\n[^0-9A-Za-z_]")

# Letters that a terminal shows as nothing, and other characters that it shows as nothing or as a
# box; for the rest of them see `_is_blank`.  U+FFFD stands for bytes that are not UTF-8.
_FILLERS = "\u115f\u1160\u3164\uffa0"
_BLANK_SYMBOLS = frozenset(f"{_FILLERS}\u2800\ufffc\ufffd\U0001d159")
_CONTROL_PICTURES = range(0x2400, 0x2422)

# What `clean` makes of keys that a terminal passes on unhandled: Escape, with which arrow and
# function keys begin, Backspace, Ctrl+U and Ctrl+W.
_ESCAPE = "␛"
_EDITING = f"{_ESCAPE}␈␡␕␗"
_NOT_WORDS = f"{_EDITING}{_FILLERS}"
_KEY = re.compile(rf"{_ESCAPE}(?:\[\[?[0-9;?]*[@-~]|O?\w)?")

# The name of a command, which is followed by white space, punctuation or nothing.  In a path, a
# pattern or code, another character follows.
_NAMED = re.compile(r"([^\W\d_][\w.-]*+)(?![/\\{}()\[\]<>=*+|$^&%~])([^\w]*+)(.*)", re.DOTALL)
_TOKEN = re.compile(r"(\s*+)(\S*+)(.*)", re.DOTALL)


def parse_line(line: str) -> Request | str:
    """Return the request that a typed line makes, or its text as a message.

    Raises nothing: a mistake is an `Invalid`.  A hello is not recognized here.
    """
    if line[0] != "/":
        command = disguised_command(line)
        if command is None:
            return line
        return Invalid.because(InvalidRequest(why_not_said(command)))
    return line[1:] if line.startswith("//") else parse_command(line)


def why_not_said(command: str, table: CommandTable = COMMANDS) -> str:
    """Return the answer to a line that looks like *command*, and so was not sent."""
    name, _ = split_command(command)
    if name in table.names:
        return f"not sent, because it looks like {name}: type {name} to run it, /{name} to say it"
    name = shortened(name)
    return (
        f"not sent, because it looks like a command, and there is no {name}: type /{name} to say it"
    )


def may_hold_secret(line: str) -> bool:
    """Return whether *line* may hold a password or a passphrase, and so is neither kept nor shown.

    That is a command that takes one, or a line that resembles such a command; never a message.
    """
    line = disguised_command(line) or line
    if not line.startswith("/") or line.startswith("//"):
        return False
    word, rest = split_command(f"/{line[1:].lstrip()}")
    command = COMMANDS.find(word) or ADMIN_COMMANDS.find(word)
    if command is None:
        return _is_like_secret(word, rest)
    return command.has_secret and bool(rest)


def masked(line: str) -> str:
    """Return *line* of the operator's console as it is shown, without what may be a passphrase.

    That is the passphrase of a new account, and what follows a mistyped command.
    """
    if _NEW_ACCOUNT.match(line):
        return _NEW_ACCOUNT.sub(r"\1 …", line)
    word = line.split(maxsplit=1)[0] if line.strip() else ""
    if ADMIN_COMMANDS.find(word) or not (may_hold_secret(line) or lacks_slash(line)):
        return line
    return f"{word} …"


def lacks_slash(line: str) -> bool:
    """Return whether *line* would be a command with a secret if it began with a slash."""
    return _NO_SLASH.match(line) is not None


def _is_like_secret(word: str, rest: str) -> bool:
    """Return whether *word*, an unknown command, and *rest* may be a mistyped one with a secret."""
    word = word.lower()
    if _RUN_TOGETHER.match(word):
        return True
    if not rest or len(word) > _MAX_SECRET_CHARACTERS or "/" in word[1:]:
        return False
    from difflib import get_close_matches  # rarely needed

    return bool(get_close_matches(word, _SECRET_COMMANDS, 1, _LIKE_SECRET))


def without_slash(line: str, own_name: str = "") -> str | None:
    """Return the command with a passphrase that *line* would be with a slash, or None.

    `login alice PASSPHRASE` is one if it is too long for a remark of three words, or names
    *own_name*; `register soon` is not.
    """
    if not lacks_slash(line):
        return None
    word, *rest = line.split()
    command = COMMANDS.find(f"/{word}")
    if command is None or not rest:
        return None
    takes_name = command.name == "/login"
    is_own = takes_name and len(rest) > 1 and fold_name(rest[0]) == fold_name(own_name)
    is_long = len(rest) == 1 + takes_name and len(rest[-1]) >= MIN_PASSPHRASE_CHARACTERS
    return f"/{line.lstrip()}" if is_own or is_long else None


def say_literally(text: str) -> str:
    """Return the line that sends *text* as a message, even if it begins like a command."""
    if text.startswith("/"):
        return f"/{text}"
    return text if disguised_command(text) is None else f"/say {text}"


def say_unless_command(line: str) -> str | None:
    """Return what to send for *line* of a pipe: a command as it is, anything else as a message.

    An unknown command, such as a path, is a message, unless it looks like a known one, or like a
    mistyped one with a passphrase: then it is sent as it is, and the server answers with a hint.
    Returns None for a disguised command, which is not sent.
    """
    disguised = disguised_command(line)
    command = line if line[0] == "/" else disguised
    if command is None or line.startswith("//"):
        return line
    name, rest = split_command(command)
    if COMMANDS.find(name):
        return line if disguised is None else None
    if COMMANDS.similar(name, rest) is not None or _is_like_secret(name, rest):
        return line
    return f"/{line}" if disguised is None else f"/say {line}"


def may_be_disguised(lines: str) -> bool:
    """Return whether one of *lines*, separated by LF, may be a command or a disguised one.

    Fast: most messages have no slash at all, few lines have one before the first letter or digit,
    and few have the residue of a key.
    """
    is_ascii = lines.isascii()
    if is_ascii and "/" not in lines and "\\" not in lines:
        return False
    if _SLASH_FIRST.match(lines):
        return True
    if not is_ascii and any(map(lines.__contains__, _NOT_WORDS)):
        return True
    if "\n" not in lines or not any(map(lines.__contains__, _SLASHES)):
        return False
    start = _LATER_START.search(lines)
    return start is not None and _SLASH_LATER.search(lines, start.start()) is not None


def disguised_command(line: str, table: CommandTable = COMMANDS) -> str | None:
    """Return the command that *line* only looks like, as it should have been typed.

    None for a message, and for a line that is a command.  A word after `/` looks like a command
    even if *table* has none of that name; a word after another slash, or after `/` and a space,
    only if it has.

    Only blanks may stand before the slash: invisible characters, and editing keys with all that was
    typed before them.  Punctuation is visible: `> /msg bob` is a quotation.
    """
    if line.startswith("/") or not may_be_disguised(line):
        return None
    slash = _SLASH.search(line)
    if slash is None or not _is_all_blank(_typed_last(line[: slash.start()])):
        return None
    gap, token, text = _TOKEN.findall(line[slash.end() :])[0]
    named = _NAMED.match(_without_blanks(_KEY.sub("", token)))
    if named is None:
        return None
    word, punctuation, argument = named.groups()
    word = word.rstrip(".-")
    known = f"/{unicodedata.normalize('NFKC', word[:_MAX_NAME_CHARACTERS]).lower()}"
    is_known = known in table.names
    if slash[0] != "/":
        is_known = is_known and not (punctuation or (gap and slash[0] != "\\"))
    if not is_known:
        return None if gap or slash[0] != "/" else f"/{word}{punctuation}{argument}{text}"
    return f"{known} {argument}{text}" if argument else f"{known}{text}"


def looks_like(line: str, table: CommandTable = COMMANDS) -> str | None:
    """Return the name of the command that *line* is or looks like."""
    command = disguised_command(f" {line}", table)
    return None if command is None else split_command(command)[0]


def _typed_last(text: str) -> str:
    """Return what follows the last key that edits a line, and its sequence, in *text*."""
    last = max(map(text.rfind, _EDITING))
    key = _KEY.match(text, last) if last >= 0 else None
    return text[key.end() if key else last + 1 :]


def _is_blank(character: str) -> bool:
    """Return whether a terminal shows *character* as nothing, as white space or as a box."""
    return (
        unicodedata.category(character)[0] in "ZCM"
        or character in _BLANK_SYMBOLS
        or ord(character) in _CONTROL_PICTURES
    )


def _is_all_blank(text: str) -> bool:
    return all(map(_is_blank, set(text)))


def _without_blanks(text: str) -> str:
    blanks = {ord(character): None for character in set(text) if _is_blank(character)}
    return text.translate(blanks) if blanks else text
