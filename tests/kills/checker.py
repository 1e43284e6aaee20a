"""Clients on raw sockets that check the guarantees of a server that is killed.

Imports nothing from multichat: the reference is docs/protocol.md.

Writers send numbered messages with nonces; after each reconnect they send the unaccepted ones again
with the same nonces.  Writers and readers, each in one room or in several, resume their sessions
with the id of the last message that they received in each.  Each member must receive each message
of the others in its room exactly once and none of other rooms, all members of a room in the same
order, and an accepted message must have the id with which the others received it.
"""

import json
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self

__all__ = [
    "LOOPBACK",
    "Client",
    "Dial",
    "Link",
    "Member",
    "Rooms",
    "SocketLink",
    "Wrong",
    "check_room",
    "dial_tcp",
]

LOOPBACK = "127.0.0.1"

# Below the limit of unaccepted messages.
_MAX_UNACCEPTED = 128

_MAX_BURST = 20
_PAUSE_SECONDS = 0.05
_RETRY_SECONDS = 0.05
_REFUSED_SECONDS = 0.5
_ANSWER_SECONDS = 60.0

# By then, duplicates would have arrived.
_AFTER_SECONDS = 1.0

_EVERYTHING = 2**31 - 1


class Wrong(Exception):
    """The server broke a guarantee."""


class _Cut(Exception):
    """The connection was lost."""


class Link(Protocol):
    """A connection of any kind to the server."""

    def send(self, data: bytes) -> None:
        """Send whole lines; raises `OSError`."""

    def receive(self, seconds: float) -> bytes | None:
        """Return what has arrived, empty at the end, or None if nothing does; raises `OSError`."""

    def close(self) -> None:
        """Close it."""


Dial = Callable[[], Link]
"""Connects; raises `OSError`."""


class SocketLink:
    """A connection over a socket, maybe with TLS."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.settimeout(_ANSWER_SECONDS)

    def send(self, data: bytes) -> None:
        """Send *data*."""
        self._socket.sendall(data)

    def receive(self, seconds: float) -> bytes | None:
        """Return what has arrived."""
        # A TLS record may be decrypted already, which `select` does not see.
        decrypted = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
        if not decrypted and not select.select([self._socket], [], [], seconds)[0]:
            return None
        return self._socket.recv(1 << 18)

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def dial_tcp(port: int) -> SocketLink:
    """Connect to a TCP port of loopback."""
    return SocketLink(socket.create_connection((LOOPBACK, port), _ANSWER_SECONDS))


class _Lines:
    """The JSON lines of one connection.

    With a *password* the hello is sent as our clients do it: before the password, which the token
    of a session in it makes right, and after it.
    """

    def __init__(self, dial: Dial, patience: float = _ANSWER_SECONDS, password: str = "") -> None:
        self._link = dial()
        self._patience, self._password = patience, password
        self._rest = b""
        self._early: list[dict[str, Any]] = []

    def send(self, *requests: dict[str, Any]) -> None:
        self._send(b"".join(json.dumps(each).encode() + b"\n" for each in requests))

    def _send(self, data: bytes) -> None:
        try:
            self._link.send(data)
        except OSError as error:
            raise _Cut from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def hello(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Send a hello; return the welcome."""
        hello = f"/json {json.dumps(fields)}\n"
        asked = f"{hello}/auth {self._password}\n" if self._password else ""
        self._send(f"{asked}{hello}".encode())
        return self.answer("welcome")

    def answer(self, kind: str) -> dict[str, Any]:
        """Wait for an event of a *kind* and return it; other events are returned by `receive`."""
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            # Also among what came with an earlier answer.
            for number, event in enumerate(self._early):
                if event["type"] == kind:
                    del self._early[number]
                    return event
            self._early += self.receive(1.0)
        if self._patience < _ANSWER_SECONDS:
            raise _Cut
        raise Wrong(f"no answer `{kind}` in {_ANSWER_SECONDS:g} s")

    def take_early(self) -> list[dict[str, Any]]:
        """Return the events that `answer` has skipped."""
        early, self._early = self._early, []
        return early

    def receive(self, seconds: float) -> list[dict[str, Any]]:
        """Return the events of a read; none if nothing arrives within *seconds*."""
        try:
            data = self._link.receive(seconds)
        except OSError as error:
            raise _Cut from error
        if data is None:
            return []
        if not data:
            raise _Cut
        *lines, self._rest = (self._rest + data).split(b"\n")
        # Messages of the lobby may arrive as text before the server has read the hello.
        return [json.loads(line) for line in lines if line.startswith(b"{")]


@dataclass
class Member:
    """A client in one of its rooms, where it may write, and what it has received there."""

    client: "Client"
    room: str
    said: int = 0
    heard: list[tuple[str, str]] = field(default_factory=list)  # ids and texts
    accepted: dict[str, str] = field(default_factory=dict)  # texts, and their ids
    unaccepted: dict[int, str] = field(default_factory=dict)  # nonces, and their texts
    repeated: set[str] = field(default_factory=set)  # texts that were sent more than once
    was_refused: bool = False
    since: str | None = None

    @property
    def name(self) -> str:
        return self.client.name

    def start(self) -> dict[str, Any]:
        """Return where a new connection begins in the room."""
        return {"replay": _EVERYTHING} if self.since is None else {"since": self.since}

    def say(self, nonce: int) -> dict[str, Any]:
        """Return the request for the next message; from here on it must be delivered."""
        text = f"{self.room} {self.name} {self.said}"
        self.said += 1
        self.unaccepted[nonce] = text
        return self._say(nonce, text)

    def say_again(self) -> list[dict[str, Any]]:
        """Return the requests for the messages that are not accepted."""
        self.repeated.update(self.unaccepted.values())
        return [self._say(nonce, text) for nonce, text in self.unaccepted.items()]

    def _say(self, nonce: int, text: str) -> dict[str, Any]:
        say = {"type": "say", "text": text, "nonce": nonce}
        return say if len(self.client.members) == 1 else say | {"room": self.room}


class Client:
    """A client in one or several rooms; `run` runs in a thread of its own.

    In one room it speaks the protocol of a program that knows no more.
    """

    def __init__(self, everything: "Rooms", name: str, rooms: list[str], *, writes: bool) -> None:
        self.name = name
        self.members = [Member(self, room) for room in rooms]
        self.resumed = self.said_again = 0
        self.failure = ""
        self.connected = False
        self._everything, self._writes = everything, writes
        self._by_room = {each.room: each for each in self.members}
        self._nonce = 0
        self._came = False
        self._is_trusted = False  # the session has accepted a message, so it must be stored
        self._session = ""
        self._refused: list[dict[str, Any]] = []  # sent again later
        self._again_at = 0.0

    def run(self) -> None:
        """Connect and reconnect until the end."""
        dice = random.Random(f"{self._everything.seed} {self.name}")
        try:
            while not self._everything.over.is_set():
                try:
                    lines = self._everything.open_lines(self, dice)
                except OSError as error:
                    self._everything.not_connected.append(error)
                    time.sleep(_RETRY_SECONDS)
                    continue
                with lines:
                    try:
                        self._greet(lines)
                        self._talk(lines, dice)
                    except _Cut:
                        self.connected = False
                        time.sleep(_RETRY_SECONDS)
        except Exception as error:  # noqa: BLE001 - reported by `Rooms`
            self.failure = f"{self.name}: {error!r}"
            self._everything.over.set()

    def _greet(self, lines: _Lines) -> None:
        if not self._came:
            self._come(lines)
        else:
            self._come_back(lines)
        if again := [say for member in self.members for say in member.say_again()]:
            self.said_again += len(again)
            lines.send(*again)
        for event in lines.take_early():
            self._hear(event)
        self._refused.clear()
        self.connected = True

    def _come(self, lines: _Lines) -> None:
        """Join the room, or enter the rooms, via the lobby: a session remembers its rooms."""
        welcome = lines.hello({"protocol": 1, "name": self.name})
        if welcome["name"] != self.name:
            raise _Cut  # our last connection still has the name
        for member in self.members:
            kind = "join" if member is self.members[0] else "enter"
            lines.send({"type": kind, "room": member.room, "nonce": member.room})
            joined = lines.answer("joined")
            while joined["client"] != welcome["client"]:
                joined = lines.answer("joined")
            member.since = joined.get("last")
        self._session, self._came = welcome["session"], True

    def _come_back(self, lines: _Lines) -> None:
        current = self.members[-1]
        fields: dict[str, Any] = {"protocol": 1}
        if len(self.members) == 1:
            fields |= current.start()
        else:
            fields["rooms"] = {each.room: each.start() for each in self.members}
        if self._session:
            welcome = lines.hello(fields | {"session": self._session})
        else:
            welcome = lines.hello(fields | {"name": self.name, "room": current.room})
        is_right = (welcome["name"], welcome["room"]) == (self.name, current.room)
        if len(self.members) > 1:
            is_right = is_right and set(welcome["rooms"]) == set(self._by_room)
        if is_right and (welcome["resumed"] or not self._session):
            self.resumed += bool(self._session)
            self._session = welcome["session"]
            return
        if self._is_trusted:
            kind = "resumed" if welcome["resumed"] else "new"
            rooms = welcome.get("rooms", welcome["room"])
            raise Wrong(f"a {kind} session is {welcome['name']} in {rooms}")
        self._session = ""  # it accepted nothing, so it need not have been stored
        raise _Cut

    def _talk(self, lines: _Lines, dice: random.Random) -> None:
        next_at = ping_at = 0.0
        heard_at = time.monotonic()
        patience = self._everything.patience
        while not self._everything.over.is_set():
            now = time.monotonic()
            if now - heard_at > patience:
                raise _Cut
            if now >= ping_at and patience < _ANSWER_SECONDS:
                ping_at = now + patience / 4
                lines.send({"type": "ping"})
            if self._may_say() and now >= next_at:
                next_at = now + dice.uniform(0, 2 * _PAUSE_SECONDS)
                requests = []
                for _ in range(dice.randint(1, _MAX_BURST)):
                    requests.append(dice.choice(self.members).say(self._nonce))
                    self._nonce += 1
                lines.send(*requests)
            for event in lines.receive(_PAUSE_SECONDS / 2):
                heard_at = now
                self._hear(event)
            if self._refused and now >= self._again_at:
                lines.send(*self._refused)
                self.said_again += len(self._refused)
                self._refused.clear()

    def _may_say(self) -> bool:
        quiet = self._everything.hushed.is_set() or not self._everything.begun.is_set()
        unaccepted = sum(len(each.unaccepted) for each in self.members)
        return self._writes and not quiet and unaccepted < _MAX_UNACCEPTED

    def _hear(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "said":
                member = self._by_room.get(event["room"])
                if member is None or event["text"].split(" ")[0] != member.room:
                    raise Wrong(f"heard in {', '.join(self._by_room)}: {event}")
                member.since = event["id"]
                member.heard.append((event["id"], event["text"]))
            case "accepted":
                for member in self.members:
                    if (text := member.unaccepted.pop(event["nonce"], None)) is not None:
                        member.accepted[text] = event["id"]
                        self._is_trusted = True
                        return
                raise Wrong(f"accepted and not asked: {event}")
            case "joined" | "left" | "renamed" | "presence" | "pong" | "notice":
                pass
            case "goodbye" if event["reconnect"]:
                raise _Cut
            case "error" if event["code"] == "storage-failed" and event.get("nonce") is not None:
                for member in self.members:
                    if (text := member.unaccepted.get(event["nonce"])) is not None:
                        member.was_refused = True
                        member.repeated.add(text)
                        self._refused.append(member._say(event["nonce"], text))
                        self._again_at = time.monotonic() + _REFUSED_SECONDS
            case _:
                raise Wrong(str(event))


class Rooms:
    """*rooms* rooms, each with *writers* and *readers*, on *port*, from one *seed*.

    With *others*, each connection is to one of these ports and *port*.  With *dials*, each client
    has one of these ways to connect instead.  *password* is sent with each hello.  *not_connected*
    are the errors of attempts to connect.  A client that has heard nothing for *patience*
    seconds, not even answers to its pings, connects again.

    Each client is in *rooms_each* of them, so that a room has as many times the members.  Writers
    start when `begun` is set, and send nothing new after `hushed`.
    """

    def __init__(
        self,
        port: int,
        seed: int,
        *,
        rooms: int = 10,
        writers: int = 2,
        readers: int = 1,
        rooms_each: int = 1,
        others: Sequence[int] = (),
        patience: float = _ANSWER_SECONDS,
        dials: Sequence[Dial] = (),
        password: str = "",
    ) -> None:
        self.port, self.seed = port, seed
        self.ports, self.patience = (port, *others), patience
        self.dials, self.password = dials, password
        self.not_connected: list[OSError] = []
        self.begun, self.hushed, self.over = (threading.Event() for _ in range(3))
        self.clients = [
            Client(
                self,
                f"r{room}m{number}",
                [f"room{(room + other) % rooms}" for other in range(rooms_each)],
                writes=number < writers,
            )
            for room in range(rooms)
            for number in range(writers + readers)
        ]
        self.members = [member for client in self.clients for member in client.members]
        self._threads = [
            threading.Thread(target=client.run, daemon=True) for client in self.clients
        ]

    def open_lines(self, client: Client, dice: random.Random) -> _Lines:
        """Connect *client*; raises `OSError`."""
        if self.dials:
            dial = self.dials[self.clients.index(client) % len(self.dials)]
        else:
            dial = partial(dial_tcp, dice.choice(self.ports))
        return _Lines(dial, self.patience, self.password)

    def start(self) -> None:
        """Start all members."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop all members."""
        self.over.set()
        for thread in self._threads:
            thread.join()

    def wait_connected(self, seconds: float) -> None:
        """Wait until all are connected; raises `Wrong`."""
        self._wait(seconds, self._unconnected)
        self.begun.set()

    def _unconnected(self) -> list[Member]:
        return [each for each in self.members if not each.client.connected]

    def wait_heard(self, seconds: float) -> None:
        """Wait until all messages are accepted and received; raises `Wrong`."""
        self.hushed.set()
        self._wait(
            seconds,
            lambda: [
                each
                for each in self.members
                if each.unaccepted or len(each.heard) < self._expected(each)
            ],
        )
        time.sleep(_AFTER_SECONDS)

    def _wait(self, seconds: float, missing: Any) -> None:
        until = time.monotonic() + seconds
        while not self.over.is_set() and missing() and time.monotonic() < until:
            time.sleep(0.02)
        self.raise_failures()
        if late := missing():
            raise Wrong(
                f"after {seconds:g} s: "
                + ", ".join(
                    f"{each.name} {'has' if each.client.connected else 'had'} heard "
                    f"{len(each.heard)} of {self._expected(each)} in {each.room}, "
                    f"{len(each.unaccepted)} unaccepted"
                    for each in late
                )
            )

    def raise_failures(self) -> None:
        """Raise `Wrong` for the failures of clients."""
        if failures := [each.failure for each in self.clients if each.failure]:
            raise Wrong("; ".join(failures))

    def _others(self, member: Member) -> Iterator[Member]:
        return (each for each in self.members if each.room == member.room and each is not member)

    def _expected(self, member: Member) -> int:
        return sum(each.said for each in self._others(member))

    def check(self) -> None:
        """Raise `Wrong` unless every message was received once, in one order, in its room."""
        self.raise_failures()
        for room in sorted({member.room for member in self.members}):
            members = [each for each in self.members if each.room == room]
            check_room(room, members, self._history(room))

    def _history(self, room: str) -> list[tuple[str, str]]:
        """Return the complete history of *room*, as replayed to a new client."""
        count = sum(each.said for each in self.members if each.room == room)
        dial = self.dials[0] if self.dials else partial(dial_tcp, self.port)
        with _Lines(dial, password=self.password) as lines:
            fields = {"protocol": 1, "room": room, "replay": _EVERYTHING}
            last = lines.hello(fields)["last"]
            events = lines.take_early()
            until = time.monotonic() + _ANSWER_SECONDS
            while time.monotonic() < until:
                history = [(each["id"], each["text"]) for each in events if each["type"] == "said"]
                if len(history) >= count and (not history or history[-1][0] == last):
                    break
                events += lines.receive(1.0)
            return history

    def statistics(self) -> str:
        """Return one line of statistics."""
        said = sum(each.said for each in self.members)
        heard = sum(len(each.heard) for each in self.members)
        resumed = sum(each.resumed for each in self.clients)
        again = sum(each.said_again for each in self.clients)
        return f"{said} said, {heard} heard, {resumed} resumed, {again} said again"


def check_room(room: str, members: list[Member], history: list[tuple[str, str]]) -> None:
    """Raise `Wrong` unless *members* of *room* and its *history* agree.

    Where messages were refused, one that was sent again may come after later ones: its refusal may
    have been lost with the connection, on which those were accepted.
    """
    was_refused = any(each.was_refused for each in members)
    texts = [text for _, text in history]
    everything = {f"{room} {each.name} {i}" for each in members for i in range(each.said)}
    if len(texts) != len(set(texts)) or set(texts) != everything:
        raise Wrong(f"{room}: the history is not what was said, each line once")
    ids = {text: id_ for id_, text in history}
    if len(set(ids.values())) != len(history):
        raise Wrong(f"{room}: an id was given twice")
    for member in members:
        mine = f"{room} {member.name} "
        if member.heard != [each for each in history if not each[1].startswith(mine)]:
            raise Wrong(f"{member.name} did not hear each line of the history once, in order")
        repeated = member.repeated if was_refused else ()
        newest = -1
        for text in texts:
            if text.startswith(mine):
                number = int(text.removeprefix(mine))
                if number < newest and text not in repeated:
                    raise Wrong(f"the lines of {member.name} were put in another order")
                newest = max(newest, number)
        if any(ids[text] != id_ for text, id_ in member.accepted.items()):
            raise Wrong(f"{member.name} was told another id than the others")
