"""The log of a run, read: who was where, and what was told in which order.

The log is the order of things: it says who came, who went to which room, who was called what and
what was told, each in the step in which it happened.  From it follows who should have heard what.
Between its lines stands what the journal took, from whom: what is told then, in its room's turn,
may be from somebody who has left, and under a name that is somebody else's by now.
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
    """Return what is equal for two names that are the same, or look alike, in the simulation."""
    return name.casefold().replace("0", "o").replace("rn", "m")


def key_of(name: str, text: str) -> str:
    """Return what names a message: its tag, or all of it where it has none."""
    tag = _TAG.match(text)
    return tag[0][:-1] if tag else f"{name}: {text}"


@dataclass(frozen=True)
class LogEntry:
    """One record of the log, without its time of day."""

    seconds: float
    level: int
    text: str


@dataclass
class Publish:
    """Messages that were sent at once; *position* is their place in the log.

    *speaker* is the server's number of who said it, None for the server itself; *first* the number
    of the first in its room.
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
    """From where to where in the log a client was in a room, and as which number."""

    room: str
    start: int
    client: int
    end: float = inf


@dataclass(frozen=True)
class Departure:
    """Where in the log a client left, when, and why."""

    position: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class Kill:
    """Where in the log, and when, the server was killed; *sessions* is what the next one knew.

    Each with the time since when its client is disconnected.
    """

    position: int
    seconds: float
    sessions: dict[int, tuple[SessionRecord, float]]


class Told(NamedTuple):
    """A message that was told: where, with which number there, and its key."""

    room: str
    number: int
    key: str


# Ids have as many digits from the first number on.
_FIRST_ID = 10**9

# What stands in the log of a run where its server was killed.
KILLED = "[killed]"

_LINE = re.compile(r"\[STATE\] Client (\d+) (connected|disconnected|joined|is now called|is)(.*)")
_AGAIN = re.compile(r" Client (\d+) again")
_SAID = re.compile(r"\[(RX|TX)\] (?:\[([^\]]+)\]|(\*) (Client \d+|[^\s\]]+)) (.*)", re.DOTALL)


class Chronicle:
    """The log, read: who was where, who was called what, what was said in which order.

    Connections are known by the number that they got when they came, also when they become somebody
    who was there before.  *hellos* are the rooms that each wished for, and was welcomed in: a
    session keeps a room that could not be entered, of which the log says nothing.

    *forged* is what was taken as somebody's who is not called so, or is not
    there; *ghosts* what was done by who had left; *untaken* what was told that the journal had not
    taken, or not yet in its room's turn; *early* what was told before it was kept; *misnumbered*
    what was not numbered in its room's order.  *numbered* are the keys of what was told in each
    room, by their numbers; *ids* is the same by ids; *taken_from* is what each connection said,
    *busy_seconds* when the last of that had its turn.
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
        self.order: dict[str, int] = {}  # of each message: the how manieth it is
        self.shared_names: list[str] = []
        self.ghosts: list[str] = []
        self.forged: list[str] = []
        self.untaken: list[str] = []
        self.misnumbered: list[str] = []
        self.early: list[str] = []
        self.taken_from: dict[int, list[Taken]] = {}
        self.renamed_away: set[int] = set()  # where somebody came back whose name another had taken
        self._replaced: set[int] = set()
        self.busy_seconds: dict[int, float] = {}
        self.resumed: dict[int, int] = {}  # who each connection that came back is
        self._max_rooms = max_rooms
        self._hellos = hellos or {}
        self._refused: dict[int, str] = {}  # the room that each client could not enter, maybe
        self._who: dict[int, int] = {}  # which connection a client has
        self._displaced: dict[int, int] = {}  # which it had, until that is told to go
        self._away: dict[int, tuple[str, str]] = {}  # what it was called, and where it was
        self._names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._taken_from: dict[int, int] = {}
        self._turns: dict[str, deque[Taken]] = {}  # of each room: what is not told yet
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
        """What was taken and not told, though it is kept."""
        return [taken for turns in self._turns.values() for taken in turns if taken.kept]

    # --- Who is there -----------------------------------------------------------------------------

    def _change(self, position: int, seconds: float, client: int, what: str, rest: str) -> None:
        if what == "connected":
            self._who[client] = client
            self.stays[client] = [Stay(LOBBY, position, client)]
            self._call(client, f"Client {client}")
            self._wish(client, client)
            return
        if what == "disconnected" and client in self._displaced:
            connection = self._displaced.pop(client)
            self.departures[connection] = Departure(position, seconds, rest.strip(" ()"))
            return
        if client not in self._who:
            self.ghosts.append(f"client {client} {what}{rest}")
            return
        connection = self._who[client]
        stays = self.stays[connection]
        if what == "disconnected":
            self._go(client, position)
            self.departures[connection] = Departure(position, seconds, rest.strip(" ()"))
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
            self._refused[client] = room  # unless it is told to have joined it

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
        """Everybody is gone at once; of what was pending some is kept, and told to nobody."""
        for client, connection in list(self._who.items()):
            self._go(client, position)
            self.departures[connection] = Departure(position, kill.seconds, KILLED)
        self._refused.clear()
        self._away = {
            client: (record.name, record.room.lower())
            for client, (record, _) in kill.sessions.items()
        }
        for turns in self._turns.values():
            while turns:
                if (taken := turns.popleft()).kept:
                    said = taken.said
                    texts = said.text.split("\n")
                    self._publish(position, taken, said.name, texts, act=said.act)

    # --- What is said -----------------------------------------------------------------------------

    def _take(self, taken: Taken) -> None:
        said = taken.said
        room, client = said.room.lower(), said.client
        self._turns.setdefault(room, deque()).append(taken)
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
                turns.popleft()  # it was told to its sender that it was not said
            said = turns[0].said if turns else None
            if said is not None and (said.name, said.text, said.act) == (name, run, act):
                return turns.popleft()
        self.untaken.append(f"{name}: {run[:20]}")
        return None

    def number_of(self, id_: str | None) -> int:
        """Return the number of the message with that id; -1 if nothing was told with it."""
        return self.ids[id_].number if id_ in self.ids else -1

    def told(self, room: str, position: float) -> int:
        """Return how many messages had been told in *room* before *position* in the log."""
        publishes = [each for each in self.by_room.get(room, []) if each.speaker is not None]
        index = bisect_left(publishes, position, key=lambda publish: publish.position)
        return publishes[index - 1].first + len(publishes[index - 1].keys) if index else 0

    def done(self, publish: Publish) -> float:
        """Return until where in the log *publish* may have been going on: the next one."""
        publishes = self.by_room[publish.room]
        after = bisect_right(publishes, publish.position, key=lambda each: each.position)
        return publishes[after].position if after < len(publishes) else inf

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
