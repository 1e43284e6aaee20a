"""Formats chat events as styled text for a terminal.  Pure.

A line is a list of (style, text) pairs.  Only this module chooses styles, and text is never
interpreted as markup or escape sequences.  Styles use prompt_toolkit's syntax, but this module does
not import it.

Invariants:

1. A line contains no line break, no TAB, and no character that `framing.clean` would replace.
2. A name always has the same colour, which is readable on black and on white.
3. A line that mentions us is marked with `is_alert`; the caller decides whether to ring the bell.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, tzinfo
from typing import NamedTuple

from multichat.client.descriptions import describe_event
from multichat.protocol.counts import counted
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
from multichat.terminal.columns import Fragments
from multichat.terminal.mention import find_mentions

__all__ = [
    "DIM",
    "NAME_COLORS",
    "STATES",
    "WARNING",
    "Fragments",
    "Identity",
    "Line",
    "Renderer",
    "mentions",
    "name_style",
]

# Those of the standard 256 colours whose contrast is at least 4:1 on both black and white (WCAG
# 2.1, 1.4.3 requires 3:1 for large and 4.5:1 for small text; only three colours have 4.5:1 on both)
# and that are neither grey nor the red of warnings.
NAME_COLORS = (
    "#af5f5f", "#af5f00", "#5f8700", "#008700", "#00875f", "#008787", "#0087af", "#005fff",
    "#5f5fff", "#875fd7", "#875faf", "#af00ff", "#af5faf", "#d700af", "#d70087", "#af5f87",
)  # fmt: skip

# The grey with a contrast of 4.5:1 on both.
DIM = "#767676"
WARNING = "#d7005f"

_MENTION = "bold reverse"

# Longer names, which only a hostile server sends, are truncated.
_SHOWN_NAME_CHARACTERS = 40

# The maximum line length of our own server; longer text from a hostile one is truncated.
_SHOWN_CHARACTERS = 64 * 1024

# A TAB's width on a terminal depends on its column; it is replaced by this many spaces at most.
_TAB_COLUMNS = 4

# 32-bit FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/), because Python's own string hash
# differs between processes.
_FNV_OFFSET, _FNV_PRIME = 2166136261, 16777619

# Events about members and the connection, as opposed to messages.
STATES = (Welcome, Entered, Joined, Left, Renamed, Presence, Disconnected, Reconnected)


class Identity(NamedTuple):
    """Our client number and name; 0 and empty if unknown."""

    client: int = 0
    name: str = ""


class Line(NamedTuple):
    """A line to show, and whether it should alert the user (a mention or a private message).

    A line without fragments only alerts.
    """

    fragments: Fragments
    is_alert: bool = False


def name_style(name: str) -> str:
    """Return the style of *name*, which is the same for all spellings of the same name."""
    value = _FNV_OFFSET
    for byte in fold_name(name).encode(errors="surrogatepass"):
        value = (value ^ byte) * _FNV_PRIME % 2**32
    # The low bits of a 32-bit FNV hash are poorly distributed.
    return NAME_COLORS[(value ^ value >> 16) % len(NAME_COLORS)]


class Renderer:
    """Formats the events of one conversation, with a line whenever the date changes.

    *zone* is the time zone for display; None for the local one.
    """

    def __init__(self, zone: tzinfo | None = None) -> None:
        self._zone = zone
        self._day: tuple[int, int, int] | None = None

    def event(self, event: Event, me: Identity, now: datetime) -> list[Line]:
        """Format a received event, preceded by the date if it has changed."""
        time = self._time_of(event, now)
        match event:
            case Said(name=name, text=text, act=act):
                is_ours = bool(me.client) and event.client == me.client
                is_alert = not is_ours and mentions(text, me.name)
                shown = self._message(time, name, text, me, act=act, is_ours=is_ours)
                return self._with_date(time, [Line(shown, is_alert)])
            case Directed(name=name, text=text):
                who = [(f"{name_style(name)} bold", _shown(name)), (DIM, " → "), ("bold", "you")]
                shown = [*_start(time), *who, ("", "  "), *_text(text, me.name)]
                return self._with_date(time, [Line(shown, is_alert=True)])
            case HistoryPage(messages=messages, missed=missed):
                return self._page(messages, missed, me, now)
            case Notice(text=text, nonce=None):  # unsolicited: a message from the server
                shown = [*_start(time), ("bold", SERVER_NAME), ("", "  "), *_text(text, me.name)]
                return self._with_date(time, [Line(shown, mentions(text, me.name))])
            case Disconnected() | Error() | Missed() | Goodbye():
                style, sign = WARNING, "!"
            case _ if isinstance(event, STATES):
                style, sign = DIM, "·"
            case _:
                style, sign = "", "·"
        return self._with_date(
            time, [self._notice(time, text, sign, style) for text in describe_event(event)]
        )

    def typed(
        self,
        request: Request,
        me: Identity,
        now: datetime,
        *,
        pending: bool = False,
        refused: bool = False,
    ) -> list[Line]:
        """Format a message of our own; *pending* until the server acknowledges it.

        It is dimmed until then, and stays so if it is *refused*.
        """
        time = self._local(now)
        own = me.name or "you"
        lines: list[Fragments] = []
        match request:
            case SayBlock(text=block):
                lines = [
                    self._message(time, own, text, me, act=False, is_ours=True)
                    for text in block.split("\n")
                ]
            case Act(text=text):
                lines = [self._message(time, own, text, me, act=True, is_ours=True)]
            case Direct(to=to, text=text):
                person = _shown(str(to))
                who = [("bold", "you"), (DIM, " → "), (f"{name_style(person)} bold", person)]
                lines = [[*_start(time), *who, ("", "  "), *_text(text, "")]]
        if pending:
            return [Line([(DIM, "".join(text for _, text in line))]) for line in lines]
        if refused:
            lines = [[(DIM, text) for _, text in line] for line in lines]
        return self._with_date(time, [Line(line) for line in lines])

    def notice(self, text: str, now: datetime, *, warning: bool = False) -> list[Line]:
        """Format a line from the client itself."""
        time = self._local(now)
        line = self._notice(time, text, "!" if warning else "·", WARNING if warning else DIM)
        return self._with_date(time, [line])

    def _message(
        self, time: datetime, name: str, text: str, me: Identity, *, act: bool, is_ours: bool
    ) -> Fragments:
        # Our own messages never mention us.
        said = _text(text, "" if is_ours else me.name)
        if not name:  # the server does not name the sender; a name within the text proves nothing
            return [*_start(time), (DIM, "| "), *said]
        style = f"{name_style(name)} bold underline" if is_ours else f"{name_style(name)} bold"
        if act:
            return [*_start(time), (DIM, "* "), (style, _shown(name)), ("", " "), *said]
        return [*_start(time), (style, _shown(name)), ("", "  "), *said]

    def _page(
        self, messages: Sequence[Said], missed: int, me: Identity, now: datetime
    ) -> list[Line]:
        """Format a page of history like live messages, but without alerts."""
        count = {0: "no messages", 1: "the last message:"}.get(
            len(messages), f"the last {len(messages)} messages:"
        )
        if missed:
            count += f" ({missed} more cannot be read)"
        lines = self.notice(count, now)
        for said in messages:
            lines += [line._replace(is_alert=False) for line in self.event(said, me, now)]
        return lines

    def _notice(self, time: datetime, text: str, sign: str, style: str) -> Line:
        return Line([*_start(time), (style, f"{sign} {_flat(text)}")])

    def _with_date(self, time: datetime, lines: Iterable[Line]) -> list[Line]:
        day = (time.year, time.month, time.day)
        changed = self._day is not None and day != self._day
        self._day = day
        # strftime uses the names of days and months of the user's locale.
        date = [Line([(DIM, f"— {clean(time.strftime('%A, %x'))} —")])] if changed else []
        return [*date, *lines]

    def _time_of(self, event: Event, now: datetime) -> datetime:
        time = event.time if isinstance(event, Said | Directed) else None
        if time is not None:
            with suppress(ValueError, OverflowError, OSError):  # an invalid time from the server
                return self._local(time)
        return self._local(now)

    def _local(self, time: datetime) -> datetime:
        return time.astimezone(self._zone)


def mentions(text: str, name: str) -> bool:
    """Return whether *text* mentions *name*; see `multichat.terminal.mention`."""
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
        more = counted(len(text) - _SHOWN_CHARACTERS, "more character")
        text = f"{text[:_SHOWN_CHARACTERS]}… ({more})"
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
