"""What happened in a run: sent and received messages, and the log, without any judgement.

What clients sent and received is parsed from the bytes on their connections; what they should have
received follows from the log (`chronicle`).
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from math import inf
from typing import Any, NamedTuple

import msgspec

from multichat import Slow
from multichat.protocol.framing import clean
from multichat.protocol.goodbyes import SHUTTING_DOWN

from .chronicle import KILLED, Chronicle, Departure, Kill, LogEntry, Stay, key_of
from .journal import AccountSaved, Taken
from .plan import PersonPlan, Plan, Reading
from .replays import LagRecord, Wait
from .wire import Connection

__all__ = [
    "CANCELLED",
    "DAY_BEGINS_SECONDS",
    "SAME_SECONDS",
    "TOO_FAR_BEHIND",
    "Heard",
    "History",
    "Section",
    "Sent",
    "Visit",
]

# 2023-11-14T22:13:20Z, the wall clock at the start of every run.
DAY_BEGINS_SECONDS = 1_700_000_000

# Tolerance for times that are the same sum in another order.
SAME_SECONDS = 1e-6


# --- Received lines -------------------------------------------------------------------------------


class Heard(NamedTuple):
    """One line that a client received.

    *kind* is `said`, `direct`, `missed`, `accepted`, `goodbye`, `error`, `welcome`, `joined`,
    `left`, `history`, `server` for other lines of the server, or `broken` for an invalid line.
    *key* identifies a message.  In a welcome, and in the answer to a join, *id* is that of the
    room's last message.
    """

    kind: str
    key: str = ""
    name: str = ""
    text: str = ""
    act: bool = False
    number: int | None = None  # the client's, if the protocol contains it
    id: str = ""
    room: str = ""
    messages: int = 0  # the number of missed messages
    nonce: object = None


_TEXT_SAID = re.compile(r"(?:\[([^\]]+)\]|(\*) (Client \d+|[^\s\]]+)) (.*)", re.DOTALL)
_TEXT_DIRECT = re.compile(r"\[([^\]]+) → you\] (.*)", re.DOTALL)
_TEXT_MISSED = re.compile(r"(\d+) messages? skipped")


def _read_text(line: str) -> Heard:
    if direct := _TEXT_DIRECT.fullmatch(line):
        return Heard("direct", key_of(direct[1], direct[2]), direct[1], direct[2])
    said = _TEXT_SAID.fullmatch(line)
    if said is None:
        return Heard("broken", text=line)
    name, text = said[1] or said[3], said[4]
    if name != "Server":
        return Heard("said", key_of(name, text), name, text, act=bool(said[2]))
    return _read_server(text)


def _read_server(text: str) -> Heard:
    if missed := _TEXT_MISSED.fullmatch(text):
        return Heard("missed", messages=int(missed[1]))
    if text.startswith("goodbye: "):
        return Heard("goodbye", text=text.removeprefix("goodbye: "))
    if text.startswith("s0."):
        return Heard("said", key_of("Server", text), "Server", text)
    return Heard("server", text=text)


def _read_json(line: str) -> Heard:
    try:
        event: dict[str, Any] = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return Heard("broken", text=line)
    text = event.get("text", "")
    match event["type"]:
        case "said" | "direct" as kind:
            return Heard(
                kind,
                key_of(event["name"], text),
                event["name"],
                text,
                act=event.get("act", False),
                number=event["client"],
                id=event.get("id", ""),
                room=event.get("room", ""),
            )
        case "missed":
            return Heard("missed", messages=event["count"])
        case "accepted":
            return Heard("accepted", id=event.get("id", ""), nonce=event["nonce"])
        case "goodbye":
            return Heard("goodbye", text=event["reason"])
        case "welcome" | "joined" as kind:
            return Heard(
                kind,
                name=event["name"],
                text=event.get("session", ""),
                act=event.get("resumed", False),
                number=event["client"],
                id=event.get("last") or "",
                room=event.get("room", ""),
                nonce=event.get("nonce"),
            )
        case "left":
            return Heard("left", number=event["client"], text=event["reason"])
        case "error":
            return Heard("error", text=event["code"], nonce=event.get("nonce"))
        case "history":
            return Heard("history", text=line)
        case "notice" if text.startswith("s0."):
            return Heard("said", key_of("Server", text), "Server", text)
    return Heard("server", text=line)


def _read_line(line: bytes) -> Heard:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return Heard("broken", text=repr(line))
    return _read_json(text) if text.startswith("{") else _read_text(text)


# --- Sent messages --------------------------------------------------------------------------------


class Sent(NamedTuple):
    """One complete message from a client: private *to* a recipient, or to its room."""

    key: str
    text: str
    act: bool = False
    nonce: object = None
    to: int | None = None


def _read_requests(lines: list[bytes], max_line_bytes: int) -> Iterator[Sent]:
    """Yield the messages in the *lines* that a client sent."""
    speaks_json = False
    for line in lines:
        line = line.removesuffix(b"\r")
        text = clean(line.decode("utf-8", "replace"))
        if len(line) > max_line_bytes or not text:
            continue
        if speaks_json:
            try:
                request = msgspec.json.decode(text)
            except msgspec.DecodeError:
                continue
            if isinstance(request, dict):
                if request["type"] == "quit":
                    return
                yield from _read_json_request(request)
        elif text.startswith("/json"):
            speaks_json = True
        elif text.startswith("/quit"):
            return
        else:
            yield from _read_text_request(text)


def _read_json_request(request: dict[str, Any]) -> Iterator[Sent]:
    text, nonce = clean(request.get("text", "")), request.get("nonce")
    key = key_of("", text)
    match request["type"]:
        case "say" | "act" as kind:
            yield Sent(key, text, kind == "act", nonce)
        case "direct":
            yield Sent(key, text, False, nonce, request["to"])


def _read_text_request(text: str) -> Iterator[Sent]:
    if not text.startswith("/") or text.startswith("//"):
        text = text[text.startswith("//") :]
        yield Sent(key_of("", text), text)
    elif text.startswith("/me ") and text[4:]:
        yield Sent(key_of("", text[4:]), text[4:], act=True)
    elif direct := re.fullmatch(r"/msg (\d+) (.+)", text):
        yield Sent(key_of("", direct[2]), direct[2], to=int(direct[1]))


# --- Connections ----------------------------------------------------------------------------------


class Cut(NamedTuple):
    """How many bytes of a connection count: sent by the client, sent to it, and read by it."""

    sent: int
    told: int
    heard: int


@dataclass
class Visit:
    """One connection of a person, with its index, as the run recorded it.

    *server_number* is the number that it got first; a resume changes it.  *cut* is set if only the
    beginning of the connection is part of a history: see `History.back_up`.
    """

    plan: PersonPlan
    number: int
    connection: Connection | None = None
    server_number: int | None = None
    refused: bool = False
    heard_the_end: bool = False
    session_ended_seconds: float | None = None
    killed: bool = False  # it was connected when the server was killed
    heard: list[Heard] = field(default_factory=list)
    told: list[Heard] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    hello: dict[str, Any] = field(default_factory=dict)
    joins: dict[str, str] = field(default_factory=dict)  # the `since` of each join, by nonce
    cut: Cut | None = None

    def __str__(self) -> str:
        again = f", {self.number}" if self.number else ""
        return f"c{self.plan.number} (client {self.server_number}{again})"

    @property
    def attentive(self) -> bool:
        """Whether it always read immediately, until the server's EOF."""
        return self.plan.reading is Reading.ATTENTIVE and self.heard_the_end

    @property
    def broke_off(self) -> bool:
        """Whether the client broke the connection, or closed it before the server did."""
        connection = self.connection
        return connection is not None and (
            connection.reset_by is connection.client or connection.to_client.abandoned
        )

    def read(self, cache: dict[bytes, Heard], max_line_bytes: int) -> None:
        """Parse the bytes of its connection; *cache* shares the lines that many received."""
        if self.connection is None:
            return
        sent, told, heard = self.cut or self._sizes()
        pipe = self.connection.to_client
        self.heard = _read_lines(bytes(pipe.written[:heard]), cache)
        self.told = self.heard
        if heard < told:
            self.told = _read_lines(bytes(pipe.written[:told]), cache)
        pipe = self.connection.to_server
        lines = bytes(pipe.written[:sent]).split(b"\n")
        if self.cut or not pipe.ended:  # text after the last LF is not a line
            lines.pop()
        self.sent = list(_read_requests(lines, max_line_bytes))
        self._read_wishes(lines)
        if self._is_refused():
            self.hello.pop("since", None)
            self.hello.pop("replay", None)

    def _is_refused(self) -> bool:
        """Return whether its room could not be entered: then that room is not replayed."""
        for i, heard in enumerate(self.told):
            if heard.kind == "welcome":
                errors = takewhile(lambda each: each.kind == "error", self.told[i + 1 :])
                full = heard.act and ("too-many-rooms", None) in ((e.text, e.nonce) for e in errors)
                return full or self.hello.get("room", heard.room).lower() != heard.room.lower()
        return False

    def _sizes(self) -> Cut:
        assert self.connection is not None
        to_server, to_client = self.connection.to_server, self.connection.to_client
        return Cut(len(to_server.written), len(to_client.written), to_client.read_bytes)

    def cut_off(self) -> "Visit":
        """Return a copy of its current state, as if it had been killed now."""
        return Visit(
            self.plan,
            self.number,
            self.connection,
            self.server_number,
            killed=True,
            cut=self._sizes(),
        )

    def wish(self, heard: Heard) -> tuple[str | None, int] | None:
        """Return `since` and `replay` of the request that *heard* answers; None without them."""
        if heard.kind == "welcome":
            return self.hello.get("since"), self.hello.get("replay", 0)
        if heard.kind == "joined" and heard.room:
            return self.joins.get(str(heard.nonce)), 0
        return None

    def _read_wishes(self, lines: list[bytes]) -> None:
        """Parse the requests for a replay."""
        for line in lines:
            with suppress(msgspec.DecodeError):  # the line was never completed
                self._read_wish(line)

    def _read_wish(self, line: bytes) -> None:
        if line.startswith(b"/json {"):
            self.hello = msgspec.json.decode(line[6:])
        elif line.startswith(b'{"type": "join"') and b'"since"' in line:
            wish = msgspec.json.decode(line)
            self.joins[wish["nonce"]] = wish["since"]

    @property
    def sent_bytes(self) -> bytes:
        """All bytes that it sent."""
        return b"" if self.connection is None else bytes(self.connection.to_server.written)

    @cached_property
    def heard_said(self) -> list[Heard]:
        """The messages that it received."""
        return [heard for heard in self.heard if heard.kind == "said"]


def _read_lines(data: bytes, cache: dict[bytes, Heard]) -> list[Heard]:
    lines = data.split(b"\n")[:-1]  # the last line may be incomplete
    for line in lines:
        if line not in cache:
            cache[line] = _read_line(line)
    return [cache[line] for line in lines]


# The logged reason of clients whose server was cancelled: they get no goodbye.
CANCELLED = "the server ended the session"

# The logged reason of clients disconnected for memory: their send queues were dropped.
TOO_FAR_BEHIND = "too far behind"


class Section(NamedTuple):
    """What a client received in one room, from the welcome or the answer to its join.

    *start* is the number from which on it receives everything; None if that is unknown, because it
    got no message.  *told* is how many messages had been delivered in the room by then.
    *caught_up* says whether it got some of them by replay, *at_least* whether some of the first may
    have been deleted.  *until* is how many messages had been delivered to it in that room when the
    next section began; None if there is none, or it is in another room.
    """

    heard: list[Heard]
    stay: Stay
    client: int
    start: int | None = None
    told: int = 0
    caught_up: bool = False
    at_least: bool = False
    until: int | None = None


# --- Runs -----------------------------------------------------------------------------------------


@dataclass
class History:
    """One completed run, as far as the server's disk knows it.

    A restored backup undoes what happened after it was taken.  So *lost* has the histories that
    ended with a restore, each complete up to that, and this one continues from the last backup, as
    if the server had been killed when it was taken.

    *peak_bytes* is the maximum observed size of each send queue, by client number; *left_behind*
    names what the server did not release; *cancelled_seconds* is when its sessions were cancelled,
    if at all.  *messages* and *too_slow* are the server's statistics.  *connected* has all client
    numbers.  *handed_out* has the messages that the rooms of the last server were given by a
    backend that decides late, by room and first number.
    """

    plan: Plan
    visits: list[Visit] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    lags: list[LagRecord] = field(default_factory=list)
    accounts: list[AccountSaved] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    peak_bytes: dict[int, int] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)
    cancelled_seconds: float = inf
    seconds: float = 0.0
    ended_in_time: bool = False
    crash: str = ""
    messages: int = 0
    too_slow: int = 0
    handed_out: set[tuple[str, int]] | None = None
    connected: set[int] = field(default_factory=set)
    lost: list["History"] = field(default_factory=list)

    def back_up(self, *, messages: int, too_slow: int) -> "History":
        """Return the history that continues when a backup taken now is restored later.

        *messages* and *too_slow* are the server's statistics so far.
        """
        visits = []
        for visit in self.visits:
            if visit.connection is None or visit.connection.server.closed:
                visits.append(visit)
            elif visit.server_number in self.connected:
                visits.append(visit.cut_off())
        return replace(
            self,
            visits=visits,
            log=[*self.log],
            taken=[each.as_of_backup() for each in self.taken],
            kills=[*self.kills],
            lags=[*self.lags],
            accounts=[each.as_of_backup() for each in self.accounts],
            waits=[*self.waits],
            peak_bytes={**self.peak_bytes},
            messages=messages,
            too_slow=too_slow,
            connected={*self.connected},
        )

    @property
    def never_told(self) -> list[Taken]:
        """What is stored, and was never delivered, although the server had it before its end."""
        return [
            taken
            for taken in self.chronicle.never_told
            if self.handed_out is None
            or (taken.said.room.lower(), taken.said.first) in self.handed_out
        ]

    @property
    def branches(self) -> "list[History]":
        """The lost histories and this one."""
        return [*self.lost, self]

    def knows(self, id_: str, heard: Heard) -> bool:
        """Return whether that message had been delivered when *heard* welcomed a client."""
        told = self.chronicle.ids.get(id_)
        if told is None or told.room != heard.room.lower():
            return False
        return told.number <= self.chronicle.number_of(heard.id)

    @cached_property
    def chronicle(self) -> Chronicle:
        """The parsed log."""
        hellos = {
            visit.server_number: (visit.hello.get("room", "").lower(), heard.room.lower())
            for visit in self.visits
            if visit.server_number is not None
            for heard in visit.told
            if heard.kind == "welcome"
        }
        return Chronicle(self.log, self.taken, self.kills, self.plan.config.max_rooms, hellos)

    @cached_property
    def person_of(self) -> dict[int, int]:
        """The index of each person, by client number."""
        return {
            visit.server_number: visit.plan.number
            for visit in self.visits
            if visit.server_number is not None
        }

    def stays(self, visit: Visit) -> list[Stay]:
        """Return the stays of *visit* in order: its rooms and client numbers."""
        number = visit.server_number
        return [] if number is None else self.chronicle.stays.get(number, [])

    def sections(self, visit: Visit) -> list[Section]:
        """Return what *visit* received, by room, if it requested a replay.

        None if it did not: then everything is in the order of the log.
        """
        if not (visit.joins or visit.hello.keys() & {"since", "replay"}):
            return []
        return self._sections.setdefault(id(visit), [*self._cut(visit)])

    @cached_property
    def _sections(self) -> dict[int, list[Section]]:
        return {}

    def _cut(self, visit: Visit) -> Iterator[Section]:
        stays = self.stays(visit)
        if not stays:
            return
        where, begun = 0, 0
        section = Section([], stays[0], stays[0].client)
        for i, heard in enumerate(visit.heard):
            if (wish := visit.wish(heard)) is None:
                continue
            since, replay = wish
            if heard.kind == "welcome":
                where += heard.act  # it resumed its session
            where += heard.room.lower() != stays[min(where, len(stays) - 1)].room
            told = self.chronicle.number_of(heard.id) + 1
            stay = stays[min(where, len(stays) - 1)]
            same = stay is section.stay
            start = told
            if since is not None and self.knows(since, heard):
                start = self.chronicle.number_of(since) + 1
            elif since is None and replay:
                start = max(0, told - replay)
            elif same:
                continue  # nothing has changed
            until = self.reached_again(stay, told) if same else None
            yield section._replace(heard=visit.heard[begun:i], until=until)
            begun = i
            section = Section(
                [],
                stay,
                stay.client,
                start,
                told,
                caught_up=start < told,
                at_least=since is None and bool(replay),
            )
        yield section._replace(heard=visit.heard[begun:])

    def reached(self, stay: Stay) -> int | None:
        """Return up to which number the client had received everything when it left, if known.

        It had received everything if it was live and the room was not waiting for it.
        """
        return next((record.reached for record in self._leavings(stay)), None)

    def accounted(self, stay: Stay) -> int | None:
        """Return up to which number the client had received or been told all when it left.

        That is what it had `reached`, except at a shutdown.  Then the server is right to send no
        more than its grace period allows: `Registry.close` tells a client that still lags how many
        messages it missed, up to the last one delivered in the room.  (Not if it can resume from a
        journal with a location, which no simulated one has.)
        """
        for record in self._leavings(stay):
            departure = self.chronicle.departures.get(record.connection)
            if record.is_gone and departure is not None and departure.reason == SHUTTING_DOWN:
                return record.told
            return record.reached
        return None

    def left_untaken(self, stay: Stay) -> bool:
        """Whether the client left before it took a notice that had just been sent.

        A notice has no number and is not repeated; see "Resuming a session" in docs/protocol.md.
        """
        return any(record.untaken for record in self._leavings(stay))

    def _leavings(self, stay: Stay) -> Iterator[LagRecord]:
        for record in self._lags_of.get((stay.client, stay.room), []):
            if record.kind in ("left", "passed") and record.position - stay.end in (0, 1):
                yield record

    def reached_again(self, stay: Stay, told: int) -> int:
        """Return the same for its next request for a replay, when *told* had been delivered."""
        again = [
            record.reached
            for record in self._lags_of.get((stay.client, stay.room), [])
            if record.kind == "lag"
            and record.told == told
            and stay.start <= record.position <= stay.end
        ]
        return min(again, default=told)

    def lagging(self, stay: Stay) -> list[tuple[int, float]]:
        """Return the positions in the log between which the client lagged in *stay*."""
        spans: list[tuple[int, float]] = []
        start: int | None = None
        for record in self._lags_of.get((stay.client, stay.room), []):
            if not stay.start <= record.position <= stay.end + 1:
                continue
            if record.kind == "entered":
                continue
            if record.kind == "lag":
                start = record.position if start is None else start
            elif start is not None:
                spans.append((start, record.position if record.kind == "live" else inf))
                start = None
        return spans if start is None else [*spans, (start, inf)]

    @cached_property
    def _lags_of(self) -> dict[tuple[int, str], list[LagRecord]]:
        lags: dict[tuple[int, str], list[LagRecord]] = {}
        for record in self.lags:
            lags.setdefault((record.client, record.room), []).append(record)
        return lags

    def as_whom(self, visit: Visit) -> int | None:
        """Return the client number of *visit* at its end."""
        stays = self.stays(visit)
        return stays[-1].client if stays else None

    def visits_of(self, client: int) -> list[Visit]:
        """Return the visits that had the number *client* at some time."""
        return self._visits_of.get(client, [])

    @cached_property
    def _visits_of(self) -> dict[int, list[Visit]]:
        visits: dict[int, list[Visit]] = {}
        for visit in self.visits:
            for client in dict.fromkeys(stay.client for stay in self.stays(visit)):
                visits.setdefault(client, []).append(visit)
        return visits

    def departure(self, visit: Visit) -> Departure | None:
        """Return when and why *visit* ended, according to the log."""
        number = visit.server_number
        return None if number is None else self.chronicle.departures.get(number)

    def had_its_time(self, visit: Visit) -> bool:
        """Whether the server stopped writing to *visit* at the end of the grace period."""
        departure, connection = self.departure(visit), visit.connection
        if departure is None or connection is None:
            return False
        until = min(departure.seconds + self.plan.config.grace_seconds, self.cancelled_seconds)
        # In the middle of a write, or between two at the moment of the timeout.
        times = connection.server.cut_off_at, visit.session_ended_seconds
        if any(at is not None and abs(at - until) < SAME_SECONDS for at in times):
            return True
        # Or its last message was to be told first, which ends a session no sooner.
        busy = self.chronicle.busy_seconds.get(visit.server_number or 0, -inf)
        ended = visit.session_ended_seconds
        busy += self.plan.config.slow_timeout_seconds
        return ended is not None and ended >= until and busy >= until - SAME_SECONDS

    def heard_all(self, visit: Visit) -> bool:
        """Whether *visit* received everything that the server had for it."""
        return (
            visit.heard_the_end
            and visit.connection is not None
            and visit.connection.server.cut_off_at is None
            and not visit.broke_off
            and not visit.killed
            and not self.had_its_time(visit)
        )

    def heard_until_departure(self, visit: Visit) -> bool:
        """Whether *visit* received everything that was published while it was in the room."""
        departure = self.departure(visit)
        return (
            self.heard_all(visit)
            and departure is not None
            and departure.reason not in (KILLED, CANCELLED, TOO_FAR_BEHIND)
        )

    def may_be_cut_short(self, stay: Stay) -> bool:
        """Whether the last publish in *stay* may have been delivered only in part."""
        return stay.end != inf and self.plan.config.slow is not Slow.DROP
