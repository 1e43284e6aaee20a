"""Parses the log of a run: which client was in which room, and the order of the messages.

The log records connects, joins, names and messages in the order in which they happened, so it
determines what each client should have received.  Between its lines are the messages that the
journal took, and their senders: when such a message is delivered, its sender may have left, and its
name may belong to another client.
"""

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from multichat.journal.base import SessionRecord
from multichat.protocol.messages import LOBBY

from .journal import Taken

__all__ = [
    "KILLED",
    "Chronicle",
    "Departure",
    "Kill",
    "LogEntry",
    "Publish",
    "Stay",
    "Told",
    "key_of",
]

# `c7.12: …` is the twelfth message of client 7, `d7.12: …` a private one, `s0.1: …` the server's.
_TAG = re.compile(r"([cds])(\d+)\.(\d+):")


def _fold(name: str) -> str:
    """Return a key that is equal for names that are the same, or look alike, in the simulation."""
    return name.casefold().replace("0", "o").replace("rn", "m")


def key_of(name: str, text: str) -> str:
    """Return the key of a message: its tag, or the whole text if it has no tag."""
    tag = _TAG.match(text)
    return tag[0][:-1] if tag else f"{name}: {text}"


@dataclass(frozen=True)
class LogEntry:
    """One record of the log, without the time."""

    seconds: float
    level: int
    text: str


@dataclass
class Publish:
    """Messages that were published together; *position* is their index in the log.

    *speaker* is the sender's client number, None for the server; *first* is the number of the first
    message in its room.
    """

    position: int
    room: str
    speaker: int | None
    name: str
    act: bool
    keys: list[str]
    texts: list[str]
    first: int = 0


@dataclass
class Stay:
    """A client's stay in a room: from and until which position in the log, and its number."""

    room: str
    start: int
    client: int
    end: float = inf


@dataclass(frozen=True)
class Departure:
    """A client's departure: its position in the log, the time and the reason."""

    position: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class Kill:
    """The position and the time of a kill of the server; *sessions* is what the next server knew.

    Each session has the time since which its client is disconnected.
    """

    position: int
    seconds: float
    sessions: dict[int, tuple[SessionRecord, float]]


class Told(NamedTuple):
    """A delivered message: its room, its number there, and its key."""

    room: str
    number: int
    key: str


# Ids always have the same number of digits.
_FIRST_ID = 10**9

# The line in the log of a run where its server was killed.
KILLED = "[killed]"

_LINE = re.compile(
    r"\[STATE\] Client (\d+) "
    r"(connected|disconnected|joined|left|is now called|is|logged in as|logged out of)(.*)"
)
_AGAIN = re.compile(r" Client (\d+) again")
_SAID = re.compile(r"\[(RX|TX)\] (?:\[([^\]]+)\]|(\*) (Client \d+|[^\s\]]+)) (.*)", re.DOTALL)


def reason_of(rest: str, name: str = "") -> str:
    """Return the reason in the rest of a line about a client that left, as ` (alice) (too slow)`.

    Without a reason, there may be its *name*.
    """
    parts = rest.strip()[1:-1].split(") (")
    return "" if parts == [name] else parts[-1]


class Chronicle:
    """The parsed log: rooms, names, and the order of the messages.

    Connections are identified by the number that they got first, even after they resume a session.
    *hellos* has the rooms that each requested and was welcomed in: a session also keeps a room that
    could not be entered, which is not logged.

    *forged* has messages attributed to a client that has another name or is not connected; *ghosts*
    has actions of clients that had left; *untaken* has messages delivered before the journal took
    them, or out of their room's order; *early* has messages delivered before they were stored;
    *misnumbered* has messages with wrong numbers.  *numbered* has the keys of each room's messages
    by number, *ids* the same by id.  *taken_from* has the messages of each connection, and
    *busy_seconds* the time when the last of them was delivered.
    """

    def __init__(
        self,
        log: Sequence[LogEntry],
        taken: Sequence[Taken],
        kills: Sequence[Kill] = (),
        max_rooms: int = 1024,
        hellos: Mapping[int, tuple[str, str]] | None = None,
    ) -> None:
        self.stays: dict[int, list[Stay]] = {}
        self.departures: dict[int, Departure] = {}
        self.publishes: list[Publish] = []
        self.by_room: dict[str, list[Publish]] = {}
        self.numbered: dict[str, list[str]] = {}
        self.ids: dict[str, Told] = {}
        self.order: dict[str, int] = {}  # the index of each message
        self.shared_names: list[str] = []
        self.ghosts: list[str] = []
        self.forged: list[str] = []
        self.untaken: list[str] = []
        self.misnumbered: list[str] = []
        self.early: list[str] = []
        self.taken_from: dict[int, list[Taken]] = {}
        self.renamed_away: set[int] = (
            set()
        )  # resumes of a client whose name another client had taken
        self._replaced: set[int] = set()
        self.busy_seconds: dict[int, float] = {}
        self.resumed: dict[int, int] = {}  # the client number of each resumed connection
        self._max_rooms = max_rooms
        self._hellos = hellos or {}
        self._refused: dict[
            int, str
        ] = {}  # the room that each client may have been unable to enter
        self._who: dict[int, int] = {}  # the connection of each client
        self._displaced: dict[int, int] = {}  # its previous connection, until that is closed
        self._away: dict[int, tuple[str, str]] = {}  # its name and its room
        self._names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._taken_from: dict[int, int] = {}
        self._turns: dict[str, deque[Taken]] = {}  # by room: not delivered yet
        to_come = deque(taken)
        killed = {kill.position: kill for kill in kills}
        for position, entry in enumerate(log):
            while to_come and to_come[0].position <= position:
                self._take(to_come.popleft())
            if position in killed:
                self._kill(position, killed[position])
            elif state := _LINE.match(entry.text):
                self._change(position, entry.seconds, int(state[1]), state[2], state[3])
            elif said := _SAID.match(entry.text):
                self._say(position, entry.seconds, entry.text, said)
        for each in to_come:
            self._take(each)

    @property
    def never_told(self) -> list[Taken]:
        """What the journal stored, but was never delivered."""
        return [taken for turns in self._turns.values() for taken in turns if taken.kept]

    # --- Members ----------------------------------------------------------------------------------

    def _change(self, position: int, seconds: float, client: int, what: str, rest: str) -> None:
        if what == "connected":
            self._who[client] = client
            self.stays[client] = [Stay(LOBBY, position, client)]
            self._call(client, f"Client {client}")
            self._wish(client, client)
            return
        if what == "disconnected" and client in self._displaced:
            connection = self._displaced.pop(client)
            self.departures[connection] = Departure(position, seconds, reason_of(rest))
            return
        if client not in self._who:
            self.ghosts.append(f"client {client} {what}{rest}")
            return
        connection = self._who[client]
        stays = self.stays[connection]
        if what == "disconnected":
            reason = reason_of(rest, self._names[client])
            self._go(client, position)
            self.departures[connection] = Departure(position, seconds, reason)
        elif what == "joined":
            stays[-1].end = position
            stays.append(Stay(rest.strip().lower(), position, client))
            self._refused.pop(client, None)
        elif what == "is now called":
            self._call(client, rest.strip())
        elif again := _AGAIN.match(rest):
            self._come_back(position, client, int(again[1]))

    def _come_back(self, position: int, client: int, as_whom: int) -> None:
        connection = self._who[client]
        self._go(client, position)
        del self._away[client]
        if as_whom in self._who:
            self._displaced[as_whom] = self._who[as_whom]
            self._go(as_whom, position)
        if as_whom not in self._away:
            self.ghosts.append(f"client {client} is client {as_whom}, who cannot come back")
            return
        name, room = self._away.pop(as_whom)
        _, welcomed_in = self._hellos.get(connection, ("", ""))
        if self._refused.pop(as_whom, None) == welcomed_in:
            room = welcomed_in
        open_rooms = {self.stays[each][-1].room for each in self._who.values()}
        if room not in {LOBBY, *open_rooms} and len(open_rooms) >= self._max_rooms:
            self._refused[as_whom] = room
            room = LOBBY
        self._wish(connection, as_whom)
        self.resumed[connection] = as_whom
        self._who[as_whom] = connection
        self.stays[connection].append(Stay(room, position, as_whom))
        free = _fold(name) not in self._numbers
        self._call(as_whom, name if name and free else f"Client {as_whom}")
        if as_whom in self._replaced:
            self._replaced.remove(as_whom)
            self.renamed_away.add(position)

    def _wish(self, connection: int, client: int) -> None:
        room, _ = self._hellos.get(connection, ("", ""))
        if room:
            self._refused[client] = room  # unless a join is logged

    def _go(self, client: int, position: int) -> None:
        last = self.stays[self._who.pop(client)][-1]
        last.end = position
        name = self._names.pop(client)
        self._numbers.pop(_fold(name), None)
        self._away[client] = (name, last.room)

    def _call(self, client: int, name: str) -> None:
        if self._numbers.get(_fold(name), client) != client:
            self.shared_names.append(name)
        self._replaced.update(
            other
            for other, (its_name, _) in self._away.items()
            if other != client and _fold(its_name) == _fold(name)
        )
        self._numbers.pop(_fold(self._names.get(client, "")), None)
        self._names[client] = name
        self._numbers[_fold(name)] = client

    def _kill(self, position: int, kill: Kill) -> None:
        """Remove all members; some pending messages are stored, and delivered to no client."""
        for client, connection in list(self._who.items()):
            self._go(client, position)
            self.departures[connection] = Departure(position, kill.seconds, KILLED)
        self._refused.clear()
        self._away = {
            client: (record.name, record.rooms[-1].lower())
            for client, (record, _) in kill.sessions.items()
        }
        self._publish_rest(position)

    def _publish_rest(self, position: int) -> None:
        for turns in self._turns.values():
            while turns:
                if (taken := turns.popleft()).kept:
                    said = taken.said
                    texts = said.text.split("\n")
                    self._publish(position, taken, said.name, texts, act=said.act)

    # --- Messages ---------------------------------------------------------------------------------

    def _queue_turn(self, taken: Taken) -> None:
        self._turns.setdefault(taken.said.room.lower(), deque()).append(taken)

    def _take(self, taken: Taken) -> None:
        said = taken.said
        room, client = said.room.lower(), said.client
        self._queue_turn(taken)
        if client not in self._who:
            self.ghosts.append(f"client {client} said {said.text[:20]}")
            return
        self.taken_from.setdefault(self._who[client], []).append(taken)
        self._taken_from[id(taken)] = self._who[client]
        if taken.kept is False:
            self.busy_seconds[self._who[client]] = taken.known_seconds
        if self._names.get(client) != said.name:
            self.forged.append(f"client {client} is {self._names.get(client)}, not {said.name}")
        elif self.stays[self._who[client]][-1].room != room:
            self.forged.append(f"client {client} said {said.text[:20]} in {room}, and is elsewhere")

    def _say(self, position: int, seconds: float, record: str, said: re.Match[str]) -> None:
        name, act = said[2] or said[4], bool(said[3])
        start = record[: said.start(5)]
        lines = record.split("\n")
        texts = [line.removeprefix(start) for line in lines if line.startswith(start)]
        taken = self._whose_turn(name, "\n".join(texts), act=act) if said[1] == "RX" else None
        self._publish(position, taken, name, texts, act=act)
        if taken is not None:
            self.busy_seconds[self._taken_from[id(taken)]] = seconds
        if taken is not None and taken.known_seconds > seconds:
            self.early.append(f"{key_of(name, texts[0])} was told before it was kept")

    def _publish(
        self, position: int, taken: Taken | None, name: str, texts: list[str], *, act: bool
    ) -> None:
        speaker = None if taken is None else taken.said.client
        room = LOBBY if taken is None else taken.said.room.lower()
        keys = [key_of(name, text) for text in texts]
        publish = Publish(position, room, speaker, name, act, keys, texts)
        for key in keys:
            self.order.setdefault(key, len(self.order))
        self.publishes.append(publish)
        self.by_room.setdefault(room, []).append(publish)
        if taken is not None:
            numbered = self.numbered.setdefault(room, [])
            publish.first = taken.said.first
            if taken.said.first != len(numbered):
                self.misnumbered.append(f"{keys[0]} is {taken.said.first}, not {len(numbered)}")
            for key in keys:
                id_ = f"{taken.said.epoch}-{_FIRST_ID + len(numbered)}"
                self.ids[id_] = Told(room, len(numbered), key)
                numbered.append(key)

    def _whose_turn(self, name: str, run: str, *, act: bool) -> Taken | None:
        for turns in self._turns.values():
            while turns and turns[0].kept is False:
                turns.popleft()  # its sender got an error
            said = turns[0].said if turns else None
            if said is not None and (said.name, said.text, said.act) == (name, run, act):
                return turns.popleft()
        self.untaken.append(f"{name}: {run[:20]}")
        return None

    def number_of(self, id_: str | None) -> int:
        """Return the number of the message with that id; -1 if no delivered message has it."""
        return self.ids[id_].number if id_ in self.ids else -1

    def told(self, room: str, position: float) -> int:
        """Return how many messages had been delivered in *room* before *position* in the log."""
        publishes = [each for each in self.by_room.get(room, []) if each.speaker is not None]
        index = bisect_left(publishes, position, key=lambda publish: publish.position)
        return publishes[index - 1].first + len(publishes[index - 1].keys) if index else 0

    def done(self, publish: Publish) -> float:
        """Return the position of the next publish in the log: *publish* may last until then."""
        publishes = self.by_room[publish.room]
        after = bisect_right(publishes, publish.position, key=lambda each: each.position)
        return publishes[after].position if after < len(publishes) else inf

    def said_during(self, stay: Stay) -> list[Publish]:
        """Return the messages published in a room during a stay."""
        publishes = self.by_room.get(stay.room, [])
        start = bisect_left(publishes, stay.start, key=lambda publish: publish.position)
        end = bisect_right(publishes, stay.end, key=lambda publish: publish.position)
        return publishes[start:end]

    def said_before(self, stay: Stay) -> Publish | None:
        """Return the last publish before a stay, which may not have been finished."""
        publishes = self.by_room.get(stay.room, [])
        start = bisect_left(publishes, stay.start, key=lambda publish: publish.position)
        return publishes[start - 1] if start else None
