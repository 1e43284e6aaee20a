"""How what happens in a chat looks on a terminal: events to styled text.  Pure.

A line is a list of pairs, a style and a text, in which the style is ours alone and the text is
nothing but text: no markup and no escape sequence of anybody's is ever interpreted.  The styles
are those of prompt_toolkit, which this module does not need.

Invariants:

1. A line has no line break, no TAB, and no character that `framing.clean` would have replaced.
2. A name has the same colour always and everywhere, and it can be read on black and on white.
3. A line that mentions us says so; whether anything rings is up to whoever shows it.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, tzinfo
from typing import NamedTuple

from multichat.client.status import describe_connection
from multichat.protocol.framing import clean
from multichat.protocol.messages import (
    Act,
    Direct,
    Directed,
    Disconnected,
    Entered,
    Error,
    Event,
    Goodbye,
    HistoryPage,
    Joined,
    Left,
    Missed,
    Notice,
    Presence,
    Reconnected,
    Renamed,
    Request,
    Said,
    SayBlock,
    Welcome,
)
from multichat.protocol.names import SERVER_NAME, fold_name
from multichat.protocol.text_codec import TEXT
from multichat.terminal.mention import find_mentions
from multichat.terminal.wrap import Fragments

__all__ = [
    "DIM",
    "NAME_COLORS",
    "STATES",
    "WARNING",
    "Fragments",
    "Line",
    "Renderer",
    "Us",
    "mentions",
    "name_style",
]

# Of the colours that every terminal with 256 has, those whose contrast is at least 4 to 1 on black
# and on white alike (WCAG 2.1, 1.4.3 asks 3 of large text and 4.5 of small; 4.5 on both leaves
# three), and that are neither grey nor the red of what goes wrong.
NAME_COLORS = (
    "#af5f5f", "#af5f00", "#5f8700", "#008700", "#00875f", "#008787", "#0087af", "#005fff",
    "#5f5fff", "#875fd7", "#875faf", "#af00ff", "#af5faf", "#d700af", "#d70087", "#af5f87",
)  # fmt: skip

# The grey in the middle: 4.5 to 1 on both.
DIM = "#767676"
WARNING = "#d7005f"

_MENTION = "bold reverse"

# Whoever makes a server say longer names does not fill our screen with them.
_SHOWN_NAME_CHARACTERS = 40

# As long as the longest line of our own server: what a hostile one sends does not scroll for pages.
_SHOWN_CHARACTERS = 64 * 1024

# What a terminal makes of a TAB depends on where it stands; this is the same everywhere.
_TAB_COLUMNS = 4

# 32-bit FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/): Python's own hash of a string is
# another one in each process.
_FNV_OFFSET, _FNV_PRIME = 2166136261, 16777619

# What is told of people, and not said by one.
STATES = (Welcome, Entered, Joined, Left, Renamed, Presence, Disconnected, Reconnected)


class Us(NamedTuple):
    """Who we are: our number, 0 if it is unknown, and our name, empty if it is."""

    client: int = 0
    name: str = ""


class Line(NamedTuple):
    """A line as it is shown, and whether it is meant for us in particular."""

    fragments: Fragments
    calls: bool = False


def name_style(name: str) -> str:
    """Return the colour of *name*: the same for all spellings that are the same name."""
    value = _FNV_OFFSET
    for byte in fold_name(name).encode(errors="surrogatepass"):
        value = (value ^ byte) * _FNV_PRIME % 2**32
    # The low bits of so short a hash are its worst.
    return NAME_COLORS[(value ^ value >> 16) % len(NAME_COLORS)]


class Renderer:
    """The lines of one conversation, which knows what day it is there.

    *zone* is where times are shown, None for here.
    """

    def __init__(self, zone: tzinfo | None = None) -> None:
        self._zone = zone
        self._day: tuple[int, int, int] | None = None

    def event(self, event: Event, us: Us, now: datetime) -> list[Line]:
        """Spell what we are told, and before it the day if that is another one than before."""
        time = self._time_of(event, now)
        match event:
            case Said(name=name, text=text, act=act):
                is_ours = bool(us.client) and event.client == us.client
                calls = not is_ours and mentions(text, us.name)
                shown = self._said(time, name, text, us, act=act, is_ours=is_ours)
                return self._on_its_day(time, [Line(shown, calls)])
            case Directed(name=name, text=text):
                who = [(f"{name_style(name)} bold", _shown(name)), (DIM, " → "), ("bold", "you")]
                shown = [*_start(time), *who, ("", "  "), *_text(text, us.name)]
                return self._on_its_day(time, [Line(shown, calls=True)])
            case HistoryPage(messages=messages, missed=missed):
                return self._page(messages, missed, us, now)
            case Notice(text=text, nonce=None):  # nobody has asked: the server says something
                shown = [*_start(time), ("bold", SERVER_NAME), ("", "  "), *_text(text, us.name)]
                return self._on_its_day(time, [Line(shown, mentions(text, us.name))])
            case Disconnected(failures=0):
                style, sign = WARNING, "!"
            case Error() | Missed() | Goodbye():
                style, sign = WARNING, "!"
            case _ if isinstance(event, STATES):
                style, sign = DIM, "·"
            case _:
                style, sign = "", "·"
        if isinstance(event, Disconnected | Reconnected):
            words = describe_connection(event)
        else:
            words = TEXT.describe(event)
        return self._on_its_day(time, [self._told(time, text, sign, style) for text in words])

    def typed(
        self, request: Request, us: Us, now: datetime, *, pending: bool = False
    ) -> list[Line]:
        """Spell what we said ourselves; *pending* as long as nobody has accepted it."""
        time = self._local(now)
        own = us.name or "you"
        lines: list[Fragments] = []
        match request:
            case SayBlock(text=block):
                lines = [
                    self._said(time, own, text, us, act=False, is_ours=True)
                    for text in block.split("\n")
                ]
            case Act(text=text):
                lines = [self._said(time, own, text, us, act=True, is_ours=True)]
            case Direct(to=to, text=text):
                person = _shown(str(to))
                who = [("bold", "you"), (DIM, " → "), (f"{name_style(person)} bold", person)]
                lines = [[*_start(time), *who, ("", "  "), *_text(text, "")]]
        if pending:
            return [Line([(DIM, "".join(text for _, text in line))]) for line in lines]
        return self._on_its_day(time, [Line(line) for line in lines])

    def told(self, text: str, now: datetime, *, warning: bool = False) -> list[Line]:
        """Spell something that the client itself has to say."""
        time = self._local(now)
        line = self._told(time, text, "!" if warning else "·", WARNING if warning else DIM)
        return self._on_its_day(time, [line])

    def _said(
        self, time: datetime, name: str, text: str, us: Us, *, act: bool, is_ours: bool
    ) -> Fragments:
        # What one says oneself mentions nobody.
        said = _text(text, "" if is_ours else us.name)
        if not name:  # the other side does not say who, and anybody may have begun it with a name
            return [*_start(time), (DIM, "| "), *said]
        style = f"{name_style(name)} bold underline" if is_ours else f"{name_style(name)} bold"
        if act:
            return [*_start(time), (DIM, "* "), (style, _shown(name)), ("", " "), *said]
        return [*_start(time), (style, _shown(name)), ("", "  "), *said]

    def _page(self, messages: Sequence[Said], missed: int, us: Us, now: datetime) -> list[Line]:
        """Show what was said earlier as it was shown then; it calls nobody any more."""
        count = {0: "no messages", 1: "the last message:"}.get(
            len(messages), f"the last {len(messages)} messages:"
        )
        if missed:
            count += f" ({missed} more cannot be read)"
        lines = self.told(count, now)
        for said in messages:
            lines += [line._replace(calls=False) for line in self.event(said, us, now)]
        return lines

    def _told(self, time: datetime, text: str, sign: str, style: str) -> Line:
        return Line([*_start(time), (style, f"{sign} {_flat(text)}")])

    def _on_its_day(self, time: datetime, lines: Iterable[Line]) -> list[Line]:
        day = (time.year, time.month, time.day)
        changed = self._day is not None and day != self._day
        self._day = day
        # strftime's names of days and months are those of the reader's language.
        date = [Line([(DIM, f"— {clean(time.strftime('%A, %x'))} —")])] if changed else []
        return [*date, *lines]

    def _time_of(self, event: Event, now: datetime) -> datetime:
        time = event.time if isinstance(event, Said | Directed) else None
        if time is not None:
            with suppress(ValueError, OverflowError, OSError):  # a hostile server's time
                return self._local(time)
        return self._local(now)

    def _local(self, time: datetime) -> datetime:
        return time.astimezone(self._zone)


def mentions(text: str, name: str) -> bool:
    """Say whether *text* mentions *name*; see `multichat.terminal.mention`."""
    return next(find_mentions(text, name), None) is not None


def _start(time: datetime) -> Fragments:
    return [(DIM, f"{time:%H:%M} ")]


def _shown(name: str) -> str:
    name = _flat(name)
    if len(name) <= _SHOWN_NAME_CHARACTERS:
        return name
    return name[: _SHOWN_NAME_CHARACTERS - 1] + "…"


def _flat(text: str) -> str:
    text = clean(text)
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[:_SHOWN_CHARACTERS]}… ({len(text) - _SHOWN_CHARACTERS} more characters)"
    return text.expandtabs(_TAB_COLUMNS)


def _text(text: str, own_name: str) -> Fragments:
    text = _flat(text)
    if not own_name:
        return [("", text)]
    fragments: list[tuple[str, str]] = []
    end = 0
    for start, stop in find_mentions(text, own_name):
        fragments += [("", text[end:start]), (_MENTION, text[start:stop])]
        end = stop
    return [*fragments, ("", text[end:])]
