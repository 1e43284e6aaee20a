"""What happened in a run: what was sent, what was heard, what the log says; read, not judged.

The log is the order of things: it says who came, who went to which room, who was called what and
what was told, each in the step in which it happened.  From it follows who should have heard what.
Between its lines stands what the journal took, from whom: what is told then, in its room's turn,
may be from somebody who has left, and under a name that is somebody else's by now.
What clients sent and heard are the bytes that went over their connections, whatever they believe.
"""

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

import msgspec

from multichat.framing import clean

from .journal import Taken
from .plan import PersonPlan, Plan, Reading
from .wire import Connection

__all__ = ["Chronicle", "Heard", "History", "LogEntry", "Person", "Publish", "Sent", "Stay"]

# Times that are sums of the same parts in another order.
_SAME_SECONDS = 1e-6

# `c7.12: …` is the twelfth message of client 7, `d7.12: …` a private one, `s0.1: …` the server's.
_TAG = re.compile(r"([cds])(\d+)\.(\d+):")


# --- What a client heard --------------------------------------------------------------------------


class Heard(NamedTuple):
    """One line that a client was told.

    *kind* is `said`, `direct`, `missed`, `accepted`, `goodbye`, `server` for whatever else the
    server tells, or `broken` for what is no line of the protocol.  *key* names a message.
    """

    kind: str
    key: str = ""
    name: str = ""
    text: str = ""
    act: bool = False
    number: int | None = None  # the client's, where the voice says it
    id: str = ""
    room: str = ""
    messages: int = 0  # so many were missed
    nonce: object = None


_TEXT_SAID = re.compile(r"(?:\[([^\]]+)\]|(\*) (Client \d+|[^\s\]]+)) (.*)", re.DOTALL)
_TEXT_DIRECT = re.compile(r"\[([^\]]+) → you\] (.*)", re.DOTALL)
_TEXT_MISSED = re.compile(r"(\d+) messages? skipped")


def key_of(name: str, text: str) -> str:
    """Return what names a message: its tag, or all of it where it has none."""
    tag = _TAG.match(text)
    return tag[0][:-1] if tag else f"{name}: {text}"


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
        case "notice" if text.startswith("s0."):
            return Heard("said", key_of("Server", text), "Server", text)
    return Heard("server", text=line)


def _read_line(line: bytes) -> Heard:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return Heard("broken", text=repr(line))
    return _read_json(text) if text.startswith("{") else _read_text(text)


# --- What a client sent ---------------------------------------------------------------------------


class Sent(NamedTuple):
    """One message that a client sent whole: *to* somebody, or to its room."""

    key: str
    text: str
    act: bool = False
    nonce: object = None
    to: int | None = None


def _read_requests(lines: list[bytes], max_line_bytes: int) -> Iterator[Sent]:
    """Yield what is said with the *lines* that a client sent."""
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


# --- One person -----------------------------------------------------------------------------------


@dataclass
class Person:
    """A client as the run recorded it; *server_number* is the one that the server gave it."""

    plan: PersonPlan
    connection: Connection | None = None
    server_number: int | None = None
    refused: bool = False
    heard_the_end: bool = False
    session_ended_seconds: float | None = None
    heard: list[Heard] = field(default_factory=list)
    told: list[Heard] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def __str__(self) -> str:
        return f"c{self.plan.number} (client {self.server_number})"

    @property
    def attentive(self) -> bool:
        """Whether it read at once whatever came, until the server's end."""
        return self.plan.reading is Reading.ATTENTIVE and self.heard_the_end

    @property
    def broke_off(self) -> bool:
        """Whether it was the client who broke the connection, or closed it before the server."""
        connection = self.connection
        return connection is not None and (
            connection.reset_by is connection.client or connection.to_client.abandoned
        )

    def read(self, cache: dict[bytes, Heard], max_line_bytes: int) -> None:
        """Read what went over its connection; the *cache* is for what many were told."""
        if self.connection is None:
            return
        pipe = self.connection.to_client
        self.heard = _read_lines(bytes(pipe.written[: pipe.read_bytes]), cache)
        self.told = self.heard
        if pipe.read_bytes < len(pipe.written):
            self.told = _read_lines(bytes(pipe.written), cache)
        pipe = self.connection.to_server
        lines = bytes(pipe.written).split(b"\n")
        if not pipe.ended:  # what stands behind the last LF is no line
            lines.pop()
        self.sent = list(_read_requests(lines, max_line_bytes))

    @cached_property
    def heard_said(self) -> list[Heard]:
        """The messages among what it heard."""
        return [heard for heard in self.heard if heard.kind == "said"]


def _read_lines(data: bytes, cache: dict[bytes, Heard]) -> list[Heard]:
    lines = data.split(b"\n")[:-1]  # what is cut off may be anything
    for line in lines:
        if line not in cache:
            cache[line] = _read_line(line)
    return [cache[line] for line in lines]


# --- The log --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogEntry:
    """One record of the log, without its time of day."""

    seconds: float
    level: int
    text: str


@dataclass
class Publish:
    """Messages that were said at once; *position* is where in the log.

    *speaker* is the server's number of who said it, None for the server itself.
    """

    position: int
    room: str
    speaker: int | None
    name: str
    act: bool
    keys: list[str]
    texts: list[str]


@dataclass
class Stay:
    """From where to where in the log a client was in a room."""

    room: str
    start: int
    end: float = inf


@dataclass(frozen=True)
class Departure:
    """Where in the log a client left, when, and why."""

    position: int
    seconds: float
    reason: str


_LINE = re.compile(r"\[STATE\] Client (\d+) (connected|disconnected|joined|is now called)(.*)")
_SAID = re.compile(r"\[(RX|TX)\] (?:\[([^\]]+)\]|(\*) (Client \d+|[^\s\]]+)) (.*)", re.DOTALL)


class Chronicle:
    """The log, read: who was where, who was called what, what was said in which order.

    *forged* is what was taken as somebody's who is not called so, or is not there; *ghosts* what
    was done by who had left; *untaken* what was told that the journal had not taken, or not yet in
    its room's turn.
    """

    def __init__(self, log: Sequence[LogEntry], taken: Sequence[Taken]) -> None:
        self.stays: dict[int, list[Stay]] = {}
        self.departures: dict[int, Departure] = {}
        self.publishes: list[Publish] = []
        self.by_room: dict[str, list[Publish]] = {}
        self.order: dict[str, int] = {}  # of each message: the how manieth it is
        self.shared_names: list[str] = []
        self.ghosts: list[str] = []
        self.forged: list[str] = []
        self.untaken: list[str] = []
        self._names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._turns: dict[str, deque[Taken]] = {}  # of each room: what is not told yet
        to_come = deque(taken)
        for position, entry in enumerate(log):
            while to_come and to_come[0].position <= position:
                self._take(to_come.popleft())
            if state := _LINE.match(entry.text):
                self._change(position, entry.seconds, int(state[1]), state[2], state[3])
            elif said := _SAID.match(entry.text):
                self._say(position, entry.text, said)
        for each in to_come:
            self._take(each)

    @property
    def never_told(self) -> list[Taken]:
        """What was taken and not told."""
        return [taken for turns in self._turns.values() for taken in turns]

    def _take(self, taken: Taken) -> None:
        said = taken.said
        room, client = said.room.lower(), said.client
        self._turns.setdefault(room, deque()).append(taken)
        if client in self.departures:
            self.ghosts.append(f"client {client} said {said.run[:20]}")
        elif self._names.get(client) != said.name:
            self.forged.append(f"client {client} is {self._names.get(client)}, not {said.name}")
        elif self.stays[client][-1].room != room:
            self.forged.append(f"client {client} said {said.run[:20]} in {room}, and is elsewhere")

    def _change(self, position: int, seconds: float, client: int, what: str, rest: str) -> None:
        stays = self.stays.setdefault(client, [])
        if client in self.departures:
            self.ghosts.append(f"client {client} {what}{rest}")
            return
        if what in ("connected", "joined"):
            if stays:
                stays[-1].end = position
            stays.append(Stay(rest.strip().lower() or "lobby", position))
            if what == "connected":
                self._call(client, f"Client {client}")
        elif what == "disconnected":
            stays[-1].end = position
            self._numbers.pop(self._names.pop(client), None)
            self.departures[client] = Departure(position, seconds, rest.strip(" ()"))
        else:
            self._call(client, rest.strip())

    def _call(self, client: int, name: str) -> None:
        if self._numbers.get(name, client) != client:
            self.shared_names.append(name)
        self._numbers.pop(self._names.get(client, ""), None)
        self._names[client] = name
        self._numbers[name] = client

    def _say(self, position: int, record: str, said: re.Match[str]) -> None:
        name, act = said[2] or said[4], bool(said[3])
        start = record[: said.start(5)]
        lines = record.split("\n")
        texts = [line.removeprefix(start) for line in lines if line.startswith(start)]
        taken = self._whose_turn(name, "\n".join(texts), act=act) if said[1] == "RX" else None
        speaker = None if taken is None else taken.said.client
        room = "lobby" if taken is None else taken.said.room.lower()
        keys = [key_of(name, text) for text in texts]
        publish = Publish(position, room, speaker, name, act, keys, texts)
        for key in keys:
            self.order.setdefault(key, len(self.order))
        self.publishes.append(publish)
        self.by_room.setdefault(room, []).append(publish)

    def _whose_turn(self, name: str, run: str, *, act: bool) -> Taken | None:
        for turns in self._turns.values():
            if turns and (turns[0].said.name, turns[0].said.run, turns[0].said.act) == (
                name,
                run,
                act,
            ):
                return turns.popleft()
        self.untaken.append(f"{name}: {run[:20]}")
        return None

    def said_during(self, stay: Stay) -> list[Publish]:
        """Return what was said in a room while somebody was there."""
        publishes = self.by_room.get(stay.room, [])
        start = bisect_left(publishes, stay.start, key=lambda publish: publish.position)
        end = bisect_right(publishes, stay.end, key=lambda publish: publish.position)
        return publishes[start:end]

    def said_before(self, stay: Stay) -> Publish | None:
        """Return what was said last before somebody came: it may still be going on."""
        publishes = self.by_room.get(stay.room, [])
        start = bisect_left(publishes, stay.start, key=lambda publish: publish.position)
        return publishes[start - 1] if start else None


# --- All of it ------------------------------------------------------------------------------------


@dataclass
class History:
    """One run, when it is over.

    *peak_bytes* is the most that was seen waiting for each client, by its server's number;
    *left_behind* says what the server did not let go of; *cancelled_seconds* is when its sessions
    were cancelled, if they were.  *messages* and *too_slow* are the server's own figures.
    """

    plan: Plan
    people: list[Person] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    peak_bytes: dict[int, int] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)
    cancelled_seconds: float = inf
    seconds: float = 0.0
    ended_in_time: bool = False
    crash: str = ""
    messages: int = 0
    too_slow: int = 0

    @cached_property
    def chronicle(self) -> Chronicle:
        """The log, read."""
        return Chronicle(self.log, self.taken)

    @cached_property
    def by_number(self) -> dict[int, Person]:
        """The people by the numbers that the server gave them."""
        return {
            person.server_number: person
            for person in self.people
            if person.server_number is not None
        }

    def departure(self, person: Person) -> Departure | None:
        """Return when and why *person* left, as the log says."""
        number = person.server_number
        return None if number is None else self.chronicle.departures.get(number)

    def had_its_time(self, person: Person) -> bool:
        """Whether the server gave up writing to *person* when the grace period was over."""
        departure, connection = self.departure(person), person.connection
        if departure is None or connection is None:
            return False
        until = min(departure.seconds + self.plan.config.grace_seconds, self.cancelled_seconds)
        # In the middle of a write, or between two in the very moment in which its time was over.
        times = connection.server.cut_off_at, person.session_ended_seconds
        return any(at is not None and abs(at - until) < _SAME_SECONDS for at in times)

    def heard_all(self, person: Person) -> bool:
        """Whether *person* heard all that the server had for it."""
        return (
            person.heard_the_end
            and person.connection is not None
            and person.connection.server.cut_off_at is None
            and not person.broke_off
            and not self.had_its_time(person)
        )
