"""The commands that people type: one table for both protocols, the help, completion and terminal.

Owns which commands there are, under which names they can be typed, what a typed line asks, and
which lines look like a command without being one.  Pure; requests are carried out elsewhere.

A line is a command if its first character is a slash and its second is not.  A line that begins
with something else and would read as a command to a person (` /msg bob secret`, with a space, an
invisible character or another slash in front, or ` /login bob secret`) is *disguised*: it is
neither run nor said, unless whoever typed it confirms that.  In a pipe (`say_unless_command`) the
sender is told, too, but an unknown command, such as a path, is said.
"""

import re
import unicodedata
from collections.abc import Collection
from typing import NamedTuple

from multichat.errors import InvalidRequest, UnknownRequest
from multichat.protocol.messages import (
    LOBBY,
    MAX_TOKEN_CHARACTERS,
    Act,
    Direct,
    Help,
    History,
    Invalid,
    Join,
    Ping,
    Quit,
    Rename,
    Reply,
    Request,
    Rooms,
    Who,
    room_of,
)

__all__ = [
    "COMMANDS",
    "UNAVAILABLE",
    "Command",
    "disguised_command",
    "find_command",
    "help_lines",
    "looks_like",
    "may_be_disguised",
    "parse_line",
    "say_literally",
    "say_unless_command",
    "shortened",
    "split_command",
    "usage",
    "why_not_said",
]


class Command(NamedTuple):
    """A command: its *name*, its *arguments* for the usage line, and what it is for.

    *aliases* do the same.  *takes* says what the first argument is, for completion: `name`, `room`,
    `text`, or empty for nothing that can be completed.  *is_local* commands are the terminal
    client's own, the others the server's; without a *purpose* it is left out of the help.
    """

    name: str
    arguments: str
    purpose: str
    aliases: tuple[str, ...] = ()
    takes: str = ""
    is_local: bool = False


COMMANDS = (
    Command("/name", "NAME", "be called NAME", ("/nick",), takes="text"),
    Command("/me", "TEXT", "say what you do: * NAME TEXT", takes="text"),
    Command(
        "/msg",
        "WHO TEXT",
        "tell one person, by name or number",
        ("/m", "/w", "/tell", "/query", "/whisper"),
        takes="name",
    ),
    Command("/r", "TEXT", "answer your last private message", ("/reply",), takes="text"),
    Command("/who", "[ROOM]", "who is here, with their numbers", ("/names",)),
    Command("/rooms", "", "which rooms there are", ("/list",)),
    Command("/join", "ROOM", "go to another room", ("/j",), takes="room"),
    Command("/part", "", "go back to the lobby", ("/leave",)),
    Command("/history", "[N]", "what was said here last"),
    Command("/ping", "", "is anybody there?"),
    Command("/help", "", "this list"),
    Command("/quit", "", "leave", ("/exit",)),
    Command("/say", "TEXT", "", takes="text"),
    Command("/auth", "PASSWORD", ""),
    Command("/json", "", ""),
    Command("/status", "", "where we are, and since when", is_local=True),
    Command("/clear", "", "an empty screen", is_local=True),
    Command("/ignore", "NAME", "hide what NAME says, or show it again", takes="name",
            is_local=True),
)  # fmt: skip
"""In the order of the help."""

UNAVAILABLE = {
    "/topic": "rooms have no topic",
    "/whois": "there is no /whois; /who lists who is here",
    "/away": "there is no /away; a name can say it: /name bob_away",
    "/kick": "only the server's operator can do that",
    "/ban": "only the server's operator can do that",
    "/mode": "only the server's operator can do that",
    "/op": "only the server's operator can do that",
}
"""Commands of other chats that have no counterpart, and what to say about them."""

# A line of the help fits 60 columns behind the tag.
_MAX_HELP_CHARACTERS = 51

_BY_NAME = {name: each for each in COMMANDS for name in (each.name, *each.aliases)}

# Enough of a mistyped command to recognise it; a 64 KiB "/aaaa…" need not come back whole.
_SHOWN_CHARACTERS = 40

# No client has a longer number.
_MAX_NUMBER_DIGITS = 15

# Who has no name is called "Client 7", in two words.
_ADDRESSED = re.compile(
    r"\s*@?(?:[Cc][Ll][Ii][Ee][Nn][Tt]\s+(?=\d+\s))?([^\s@]\S*)\s(.+)", re.DOTALL
)
_UNNAMED = re.compile(r"\s*@?[Cc][Ll][Ii][Ee][Nn][Tt]\s+\d+\s*")

_COMMAND = re.compile(r"(/\S*)\s?(.*)", re.DOTALL)

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
# What such a line begins with; looked for first, because it takes a third of the time.
_LATER_START = re.compile(r"\n[^0-9A-Za-z_]")

# Letters that a terminal shows as nothing, and other characters that it shows as nothing or as a
# box; for the rest of them see `_is_blank`.  U+FFFD stands for bytes that are not UTF-8.
_FILLERS = "\u115f\u1160\u3164\uffa0"
_BLANK_SYMBOLS = frozenset(f"{_FILLERS}\u2800\ufffc\ufffd\U0001d159")
_CONTROL_PICTURES = range(0x2400, 0x2422)

# Keys that reach the server as characters where the terminal does not know them, cleaned: Escape,
# with which arrow and function keys begin, Backspace, Ctrl+U and Ctrl+W.
_ESCAPE = "␛"
_EDITING = f"{_ESCAPE}␈␡␕␗"
_NOT_WORDS = f"{_EDITING}{_FILLERS}"
_KEY = re.compile(rf"{_ESCAPE}(?:\[\[?[0-9;?]*[@-~]|O?\w)?")

# The name of a command, which is followed by white space, punctuation or nothing.  Behind a path,
# a pattern or code there is something else.
_NAMED = re.compile(r"([^\W\d_][\w.-]*+)(?![/\\{}()\[\]<>=*+|$^&%~])([^\w]*+)(.*)", re.DOTALL)
_TOKEN = re.compile(r"(\s*+)(\S*+)(.*)", re.DOTALL)


def parse_line(line: str) -> Request | str:
    """Return what a typed line asks for, or the text that it says.

    Nothing is raised: what cannot be asked for is `Invalid`.  A hello is not recognized here.
    """
    if line[0] != "/":
        command = disguised_command(line)
        if command is None:
            return line
        return Invalid.because(InvalidRequest(why_not_said(command)))
    if line.startswith("//"):
        return line[1:]
    name, rest = split_command(line)
    found = find_command(name)
    if found is not None and found.name == "/say" and rest:
        return rest
    return _parse_command(name, rest)


def _parse_command(name: str, rest: str) -> Request:
    command, argument = find_command(name), rest.strip()
    match command and command.name:
        case "/help":
            return Help()
        case "/auth":
            return Invalid.because(InvalidRequest("no password is required"))
        case "/ping":
            if len(rest) > MAX_TOKEN_CHARACTERS:
                reason = f"a token has at most {MAX_TOKEN_CHARACTERS} characters"
                return Invalid.because(InvalidRequest(reason))
            return Ping(rest)
        case "/quit" if not argument:
            return Quit()
        case "/who":
            return Who(room_of(argument)) if argument else Who()
        case "/rooms":
            return Rooms()
        case "/name" if argument:
            return Rename(argument)
        case "/join" if argument:
            return Join(room_of(argument))
        case "/part":
            return Join(LOBBY)
        case "/me" if rest:
            return Act(rest)
        case "/history" if not argument:
            return History()
        case "/history" if (limit := _count(argument)) is not None:
            return History(limit)
        case "/msg" if not _UNNAMED.fullmatch(rest) and (to := _ADDRESSED.fullmatch(rest)):
            return Direct(_person(to[1].rstrip(":,") or to[1]), to[2])
        case "/r" if rest:
            return Reply(rest)
    if command is not None and not command.is_local:
        return Invalid.because(InvalidRequest(_usage_hint(command, name.lower(), argument)))
    if name.lower() in UNAVAILABLE:
        return Invalid.because(UnknownRequest(UNAVAILABLE[name.lower()]))
    meant = _meant_command(name, rest)
    hint = "/help lists them" if meant is None else f"did you mean {meant}?"
    return Invalid.because(
        UnknownRequest(
            f"unknown command {shortened(name)}; {hint}; "
            "start with // to say a line that starts with /"
        )
    )


def _usage_hint(command: Command, name: str, argument: str) -> str:
    """Return what to answer to a command with too few words behind it, or too many."""
    if name == "/query" and argument and len(argument.split()) == 1:
        return f"/query does not open a conversation; type /msg {shortened(argument)} TEXT"
    hint = f"usage: {usage(command, name)}"
    if argument and not command.arguments:
        hint += f"; type /{name} {shortened(argument)} to say it"
    return hint


def _meant_command(name: str, rest: str) -> str | None:
    """Return the command that *name*, which is none, looks like: `/ msg`, or in other letters."""
    if name == "/":
        name = f"/{rest.split(maxsplit=1)[0].lower()}" if rest.strip() else name
        return name if name in _BY_NAME else None
    if name.isascii() or len(name) > _SHOWN_CHARACTERS:
        return None
    # Letters of other scripts stand for any: how much they look alike depends on the font.
    plain = unicodedata.normalize("NFKC", name[1:]).lower()
    if not any(map(str.isascii, plain)):
        return None
    pattern = re.compile("/" + "".join(re.escape(c) if c.isascii() else "." for c in plain))
    return next(filter(pattern.fullmatch, _BY_NAME), None)


def why_not_said(command: str) -> str:
    """Return what to tell the sender of a line that looks like *command*, and was not said."""
    name, _ = split_command(command)
    if name in _BY_NAME or name in UNAVAILABLE:
        return f"not said, because it looks like {name}: type {name} to run it, /{name} to say it"
    name = shortened(name)
    return (
        f"not said, because it looks like a command, and there is no {name}: type /{name} to say it"
    )


def _count(word: str) -> int | None:
    """Return the number, from 1 on, that *word* is; None if it is none."""
    if word.isdecimal() and len(word) <= _MAX_NUMBER_DIGITS and int(word):
        return int(word)
    return None


def _person(word: str) -> str | int:
    return int(word) if word.isdecimal() and len(word) <= _MAX_NUMBER_DIGITS else word


def shortened(text: str) -> str:
    """Return *text*, or enough of it to recognize it."""
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def say_literally(text: str) -> str:
    """Return the line that says *text*, even where it begins like a command."""
    if text.startswith("/"):
        return f"/{text}"
    return text if disguised_command(text) is None else f"/say {text}"


def say_unless_command(line: str) -> str | None:
    """Return what to send for *line* of a pipe: a command as it is, anything else as a message.

    In a pipe an unknown command, such as a path, is a message, unless it looks like a command that
    there is: that is answered.  Returns None for a disguised
    command, which is not said.
    """
    disguised = disguised_command(line)
    command = line if line[0] == "/" else disguised
    if command is None or line.startswith("//"):
        return line
    name, rest = split_command(command)
    if find_command(name):
        return line if disguised is None else None
    if _meant_command(name, rest) is not None:
        return line  # which is answered, and not said
    return f"/{line}" if disguised is None else f"/say {line}"


def split_command(line: str) -> tuple[str, str]:
    """Return the command that *line* begins with, as it was typed, and the rest of the line."""
    command, rest = _COMMAND.findall(line)[0]
    return command, rest


def find_command(word: str) -> Command | None:
    """Return the command called *word*, under whichever of its names and in whichever case."""
    return _BY_NAME.get(word.lower())


def usage(command: Command, name: str = "") -> str:
    """Return how *command* is typed, by default under its own name."""
    return f"{name or command.name} {command.arguments}".rstrip()


def may_be_disguised(lines: str) -> bool:
    """Say whether one of *lines*, with LF between two, may be a command or a disguised one.

    Fast: most messages hold no slash at all, few lines have one before the first letter or digit,
    and few hold what a key leaves.
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


def disguised_command(line: str, names: Collection[str] | None = None) -> str | None:
    """Return the command that *line* looks like and is not, as it should have been typed.

    None for a message, and for a line that is a command.  *names* are those of the commands, by
    default a client's.  A word behind `/` looks like a command even if there is none of that name;
    a word behind another slash, or behind `/` and a space, only if there is one.

    Only blanks may stand before the slash: what cannot be seen, and the keys that were pressed
    before it, with all that was typed before these.  Punctuation is visible: `> /msg bob` is a
    quotation.
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
    known = f"/{unicodedata.normalize('NFKC', word[:_SHOWN_CHARACTERS]).lower()}"
    is_known = known in names if names is not None else known in _BY_NAME or known in UNAVAILABLE
    if slash[0] != "/":
        is_known = is_known and not (punctuation or (gap and slash[0] != "\\"))
    if not is_known:
        return None if gap or slash[0] != "/" else f"/{word}{punctuation}{argument}{text}"
    return f"{known} {argument}{text}" if argument else f"{known}{text}"


def looks_like(line: str, names: Collection[str] | None = None) -> str | None:
    """Return the name of the command that *line* is or looks like; *names* as above."""
    command = disguised_command(f" {line}", names)
    return None if command is None else split_command(command)[0]


def _typed_last(text: str) -> str:
    """Return what stands in *text* behind the last key that edits a line, and its sequence."""
    last = max(map(text.rfind, _EDITING))
    key = _KEY.match(text, last) if last >= 0 else None
    return text[key.end() if key else last + 1 :]


def _is_blank(character: str) -> bool:
    """Say whether a terminal shows *character* as nothing, as white space or as a box."""
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


def help_lines(*, local: bool = False) -> list[str]:
    """Return a line for each command of the server, or of the terminal client."""
    shown = [(usage(each), each) for each in COMMANDS if each.is_local is local and each.purpose]
    width = max(len(typed) for typed, _ in shown)
    lines = [f"{typed:{width}}  {each.purpose}" for typed, each in shown]
    if not local:
        lines.append(f"{'//TEXT':{width}}  say a line that starts with /")
        lines.append("also")
        for alias in (alias for _, each in shown for alias in each.aliases):
            if len(lines[-1]) + len(alias) >= _MAX_HELP_CHARACTERS:
                lines.append("    ")
            lines[-1] += f" {alias}"
    return lines
