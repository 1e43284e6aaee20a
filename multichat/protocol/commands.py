"""The table of typed commands, used by help, completion and the text codec.  Pure.

Defines each command, its names and the request it makes.  A line is a command if its first
character is a slash and its second is not.  Lines that only look like one are in
`multichat.protocol.typed_lines`.  Pure; requests are carried out elsewhere.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

from multichat.errors import InvalidRequest, UnknownRequest
from multichat.protocol.messages import (
    LOBBY,
    MAX_TOKEN_CHARACTERS,
    Act,
    Announce,
    Ban,
    Bans,
    ChangePassphrase,
    Direct,
    Exit,
    Help,
    History,
    Invalid,
    Join,
    Kick,
    Login,
    Logout,
    Ping,
    Quit,
    Register,
    Rename,
    Reply,
    Request,
    Rooms,
    SetTopic,
    Unban,
    Who,
    room_of,
)

__all__ = [
    "ADMIN_COMMANDS",
    "COMMANDS",
    "FOREVER",
    "NAME_WORD",
    "Command",
    "CommandTable",
    "parse_ban",
    "parse_command",
    "parse_kick",
    "shortened",
    "split_command",
    "split_target",
    "split_who",
    "unknown_command",
    "usage",
]

# With `[Server] ` in front, a help line fits in 60 columns.
_MAX_HELP_CHARACTERS = 51

# The help of a longer usage begins further right.
_WIDEST_USAGE = 14

# Enough of a mistyped command to recognize it; a 64 KiB "/aaaa…" need not come back whole.
_SHOWN_CHARACTERS = 40

# Finds `/who` for `/whi` and `/join` for `/jion`, but nothing for `/usr`.
_MIN_RESEMBLANCE = 0.75

# With its slash; any short word resembles a shorter command.
_MIN_SUGGESTED = 4

# No client has a longer number.
_MAX_NUMBER_DIGITS = 15

# A client without a name is called "Client 7", in two words.
_ADDRESSED = re.compile(
    r"\s*@?(?:[Cc][Ll][Ii][Ee][Nn][Tt]\s+(?=\d+\s))?([^\s@]\S*)\s(.+)", re.DOTALL
)
_UNNAMED = re.compile(r"\s*@?[Cc][Ll][Ii][Ee][Nn][Tt]\s+\d+\s*")

NAME_WORD = "name"
"""The word before a name that is the target of a ban."""

FOREVER = "forever"
"""The time of a ban without an end."""

_COMMAND = re.compile(r"(/\S*)\s?(.*)", re.DOTALL)


class Command(NamedTuple):
    """One command: its *name*, its *arguments* for the usage line, and its *help*.

    *aliases* are its other names.  A command without *help* is left out of the list.  *completes*
    says what the first argument is, for completion: `name`, `room`, `text`, or empty for none.
    *local* says which of our clients run it themselves: `all`, `terminal`, or empty for none.
    *parse* turns what follows the name into a request, or into the text of a message; it returns
    None for invalid arguments.  Without it the server answers with the usage.  The help lists
    commands *for_operators* by name only.  The arguments of a command that *has_secret* are neither
    kept nor shown again.
    """

    name: str
    arguments: str = ""
    help: str = ""
    aliases: tuple[str, ...] = ()
    completes: str = ""
    local: str = ""
    parse: Callable[[str], Request | str | None] | None = None
    for_operators: bool = False
    has_secret: bool = False

    @property
    def is_client_only(self) -> bool:
        """Whether the command is unknown to the server."""
        return bool(self.local) and self.parse is None


class CommandTable:
    """The commands that can be typed in one place, in the order of the help.

    *unavailable* are commands of other chats that have no counterpart, with the answer to each.
    """

    def __init__(self, *commands: Command, unavailable: dict[str, str] | None = None) -> None:
        self.unavailable = unavailable or {}
        self._commands = commands
        self._by_name = {name: each for each in commands for name in (each.name, *each.aliases)}
        self.names = frozenset((*self._by_name, *self.unavailable))
        self._suggested = [
            name
            for name, each in self._by_name.items()
            if (each.help or each.for_operators) and len(name) >= _MIN_SUGGESTED
        ]

    def __iter__(self) -> Iterator[Command]:
        return iter(self._commands)

    def find(self, word: str) -> Command | None:
        """Return the command called *word*, under any of its names and in any case."""
        return self._by_name.get(word.lower())

    def local_names(self, *, terminal: bool) -> list[str]:
        """Return the names of the commands that a client runs itself, on a terminal or not."""
        return [each.name for each in self if each.local and (terminal or each.local == "all")]

    def similar(self, name: str, rest: str) -> str | None:
        """Return the command that *name*, which is unknown, looks like, if there is one.

        It may be mistyped as `/ msg`, or have letters of another script, each of which counts as
        any letter: how much they look alike depends on the font.
        """
        if name == "/":
            name = f"/{rest.split(maxsplit=1)[0].lower()}" if rest.strip() else name
            return name if name in self._by_name else None
        if name.isascii() or len(name) > _SHOWN_CHARACTERS:
            return None
        plain = unicodedata.normalize("NFKC", name[1:]).lower()
        if not any(map(str.isascii, plain)):
            return None
        pattern = re.compile("/" + "".join(re.escape(c) if c.isascii() else "." for c in plain))
        return next(filter(pattern.fullmatch, self._by_name), None)

    def closest(self, name: str) -> str | None:
        """Return the command that *name* may have been meant for, if it resembles only one."""
        if len(name) > _SHOWN_CHARACTERS:
            return None
        from difflib import get_close_matches  # rarely needed

        found = get_close_matches(name.lower(), self._suggested, 2, _MIN_RESEMBLANCE)
        return found[0] if len(found) == 1 else None

    def plain_help_lines(self) -> list[str]:
        """Return a help line for each command without its slash, as it is given to a program."""
        shown = [(usage(each).removeprefix("/"), each.help) for each in self]
        width = max(len(typed) for typed, _ in shown)
        return [f"{typed:{width}}  {text}" for typed, text in shown]

    def help_lines(self, *, local: bool = False) -> list[str]:
        """Return a help line for each command that the server runs, or for each client-only one."""
        shown = [(usage(each), each) for each in self if each.is_client_only is local and each.help]
        width = max(len(typed) for typed, _ in shown if len(typed) <= _WIDEST_USAGE)
        lines = [f"{typed:{width}}  {each.help}" for typed, each in shown]
        if not local:
            lines.append(f"{'//TEXT':{width}}  send a line that starts with /")
            if operators := [each.name for each in self if each.for_operators]:
                lines.append(f"operators: {' '.join(operators)}")
            lines.append("also")
            for alias in (alias for _, each in shown for alias in each.aliases):
                if len(lines[-1]) + len(alias) >= _MAX_HELP_CHARACTERS:
                    lines.append("    ")
                lines[-1] += f" {alias}"
        return lines


def parse_command(line: str) -> Request | str:
    """Return the request that *line*, which is a command, makes, or its text as a message.

    Raises nothing: a mistake is an `Invalid`.
    """
    name, rest = split_command(line)
    command = COMMANDS.find(name)
    if command is None or command.is_client_only:
        return Invalid.because(UnknownRequest(unknown_command(name, rest)))
    request = command.parse(rest) if command.parse is not None else None
    if request is None:
        hint = _usage_hint(command, name.lower(), rest.strip())
        return Invalid.because(InvalidRequest(hint))
    return request


def _parse_history(rest: str) -> Request | None:
    word = rest.strip()
    if not word:
        return History()
    number = _number(word)
    return History(number) if number else None


def _parse_direct(rest: str) -> Request | None:
    addressed = None if _UNNAMED.fullmatch(rest) else _ADDRESSED.fullmatch(rest)
    if addressed is None:
        return None
    to = addressed[1].rstrip(":,") or addressed[1]
    number = _number(to)
    return Direct(to if number is None else number, addressed[2])


def _parse_login(rest: str) -> Request | None:
    name, _, passphrase = rest.lstrip().partition(" ")
    return Login(name, passphrase) if name and passphrase else None


def split_who(text: str) -> tuple[str, str]:
    """Split off a client: a number, a name, or two words such as `Client 7`."""
    who, _, rest = text.strip().partition(" ")
    rest = rest.lstrip()
    if who.lower() == "client" and rest:
        number, _, others = rest.partition(" ")
        if number.isdecimal():
            return f"{who} {number}", others.lstrip()
    return who.removeprefix("@"), rest


def split_target(text: str) -> tuple[str, str]:
    """Split off the target of a ban, which may be `name NAME`; either part may be empty."""
    word, _, rest = text.strip().partition(" ")
    rest = rest.lstrip()
    if word == NAME_WORD and rest:
        name, _, rest = rest.partition(" ")
        return f"{NAME_WORD} {name}", rest.lstrip()
    return word, rest


def parse_kick(rest: str) -> Kick | None:
    """Return the request of `/kick`: the client, and perhaps a reason."""
    who, reason = split_who(rest)
    return Kick(who, reason) if who else None


def parse_ban(rest: str) -> Ban | None:
    """Return the request of `/ban`; a word that starts with a digit is a time."""
    what, terms = split_target(rest)
    if " " not in what:
        what, terms = split_who(rest)
    time, _, reason = terms.partition(" ")
    if not (time[:1].isdecimal() or time.lower() == FOREVER):
        time, reason = "", terms
    return Ban(what, time, reason.lstrip()) if what else None


def _parse_ping(rest: str) -> Request:
    if len(rest) > MAX_TOKEN_CHARACTERS:
        reason = f"a token has at most {MAX_TOKEN_CHARACTERS} characters"
        return Invalid.because(InvalidRequest(reason))
    return Ping(rest)


def _number(word: str) -> int | None:
    is_number = word.isdecimal() and len(word) <= _MAX_NUMBER_DIGITS
    return int(word) if is_number else None


COMMANDS = CommandTable(
    Command("/name", "NAME", "change your name to NAME", ("/nick",), "text",
            parse=lambda rest: Rename(rest.strip()) if rest.strip() else None),
    Command("/me", "TEXT", "say what you do: * NAME TEXT", (), "text",
            parse=lambda rest: Act(rest) if rest else None),
    Command("/msg", "WHO TEXT", "tell one person, by name or number",
            ("/m", "/w", "/tell", "/query", "/whisper"), "name", parse=_parse_direct),
    Command("/r", "TEXT", "answer your last private message", ("/reply",), "text",
            parse=lambda rest: Reply(rest) if rest else None),
    Command("/who", "[ROOM]", "list who is here, with their numbers", ("/names",),
            parse=lambda rest: Who(room_of(rest.strip()) or None)),
    Command("/rooms", "", "list the rooms", ("/list",), parse=lambda _: Rooms()),
    Command("/join", "ROOM", "go to another room", ("/j",), "room",
            parse=lambda rest: Join(room_of(rest.strip())) if rest.strip() else None),
    Command("/part", "[ROOM]", "leave the room", ("/leave",), "room",
            parse=lambda rest: Exit(room_of(rest.split()[0])) if rest.strip() else Join(LOBBY)),
    Command("/topic", "[TEXT]", "show the topic; an operator sets it", (), "text",
            parse=lambda rest: SetTopic(rest.strip() or None)),
    Command("/history", "[N]", "show the latest messages", parse=_parse_history),
    Command("/ping", "", "check the connection", parse=_parse_ping),
    Command("/help", "", "show this list", parse=lambda _: Help()),
    Command("/quit", "", "leave the chat", ("/exit",), local="all",
            parse=lambda rest: None if rest.strip() else Quit()),
    Command("/register", "PASSPHRASE", "register your name", has_secret=True,
            parse=lambda rest: Register(rest) if rest else None),
    Command("/login", "NAME PASSPHRASE", "log in to your account", has_secret=True,
            parse=_parse_login),
    Command("/logout", "", "log out of your account",
            parse=lambda rest: None if rest.strip() else Logout()),
    Command("/passphrase", "NEW", "change your passphrase", has_secret=True,
            parse=lambda rest: ChangePassphrase(rest) if rest else None),
    Command("/kick", "WHO [REASON]", completes="name", for_operators=True,
            parse=parse_kick),
    Command("/ban", "WHAT [TIME] [REASON]", completes="name", for_operators=True,
            parse=parse_ban),
    Command("/unban", "WHAT", for_operators=True,
            parse=lambda rest: Unban(rest.strip()) if rest.strip() else None),
    Command("/bans", "", for_operators=True,
            parse=lambda rest: None if rest.strip() else Bans()),
    Command("/announce", "TEXT", completes="text", for_operators=True,
            parse=lambda rest: Announce(rest) if rest.strip() else None),
    Command("/say", "TEXT", completes="text", parse=lambda rest: rest or None),
    Command("/auth", "PASSWORD", has_secret=True,
            parse=lambda _: Invalid.because(InvalidRequest("no password is required"))),
    Command("/json"),
    Command("/status", "", "show the room and the connection", local="all"),
    Command("/clear", "", "clear the screen", local="terminal"),
    Command("/ignore", "NAME", "hide the messages of NAME, or show them again", (), "name",
            local="terminal"),
    unavailable={
        "/whois": "there is no /whois; /who lists who is here",
        "/away": "there is no /away; put it in your name: /name bob_away",
        "/mode": "only the server's operator can do that",
        "/op": "only the server's operator can do that",
    },
)  # fmt: skip
"""What a client can type."""

ADMIN_COMMANDS = CommandTable(
    Command("/who", "[ROOM]", "list the clients (of ROOM)", ("/clients",)),
    Command("/rooms", "", "list the rooms and their sizes"),
    Command("/stats", "", "show what the server does"),
    Command("/announce", "TEXT", "send a message to everybody", completes="text"),
    Command("/send", "WHO TEXT", "send a message to one client", completes="name"),
    Command("/kick", "WHO [REASON]", "disconnect a client", completes="name"),
    Command("/ban", "WHAT [TIME] [REASON]", "disconnect and keep out", completes="name"),
    Command("/unban", "WHAT", "lift a ban", completes="name"),
    Command("/bans", "", "list the bans"),
    Command("/topic", "ROOM [TEXT]", "show or set a room's topic", completes="room"),
    Command("/reload", "", "read the server's files again"),
    Command("/drain", "[SECONDS]", "have all reconnect, then end"),
    Command("/account", "ACTION", "add NAME PASSPHRASE, remove NAME or list", has_secret=True),
    Command("/help", "", "show this list"),
    Command("/quit", "", "shut down the server"),
)
"""What the operator can type at the server's terminal, or give to `multichat ctl`."""


def unknown_command(name: str, rest: str, table: CommandTable = COMMANDS) -> str:
    """Return the answer to the command *name*, which is not in *table*, followed by *rest*."""
    if name.lower() in table.unavailable:
        return table.unavailable[name.lower()]
    similar = table.similar(name, rest) or table.closest(name)
    hint = "/help lists them" if similar is None else f"did you mean {similar}?"
    return (
        f"unknown command {shortened(name)}; {hint}; "
        "start with // to send a line that starts with /"
    )


def _usage_hint(command: Command, name: str, argument: str) -> str:
    """Return the answer to a command whose arguments are invalid."""
    if name == "/query" and argument and len(argument.split()) == 1:
        return f"/query does not open a conversation; type /msg {shortened(argument)} TEXT"
    hint = f"usage: {usage(command, name)}"
    if argument and not command.arguments and not command.has_secret:
        hint += f"; type /{name} {shortened(argument)} to say it"
    return hint


def usage(command: Command, name: str = "") -> str:
    """Return how *command* is typed, by default under its own name."""
    return f"{name or command.name} {command.arguments}".rstrip()


def shortened(text: str) -> str:
    """Return *text*, or enough of it to recognize it."""
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def split_command(line: str) -> tuple[str, str]:
    """Return the command at the beginning of *line* as it was typed, and the rest of the line."""
    command, rest = _COMMAND.findall(line)[0]
    return command, rest
