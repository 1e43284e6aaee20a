"""A client of its own for the chaos: it chats in several rooms, reconnects and resumes anywhere.

Imports nothing from multichat: the reference is docs/protocol.md.  It repeats what is not
acknowledged, in order and with its nonces, and gives up a connection that is silent.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.support.processes import LOOPBACK

from .checker import Heard, Missed, Record
from .departures import Departure, Presence
from .directs import Direct, Directs
from .line import EVERYTHING, SILENT_SECONDS, Cut, Line

__all__ = ["PATIENT_SECONDS", "Chatter", "Crowd"]

# Pauses between the messages of a client are up to twice as long.
_PAUSE_SECONDS = 0.15

_MAX_BURST = 4

# Below the limit of 256 of docs/protocol.md.
_MAX_UNACCEPTED = 64

# Silence after which a patient client gives up a connection: above the `wait` that a welcome tells,
# 32 s, for as long as a private message may keep a node silent while the engine is away.
PATIENT_SECONDS = 40.0

# The same of private messages and of names: on a busy machine a client may ask faster than nodes
# answer, and each of these waits for the engine, so that the last ones are answered minutes later.
_MAX_UNANSWERED = 16

_PING_SECONDS = 1.0
_RETRY_SECONDS = 0.1

# Pause before a message that was refused may be repeated.
_REFUSED_SECONDS = 0.5

# How often a message has no nonce: it is published at most once, and nothing else prevents a second
# time than the cluster itself.
_BARE_CHANCE = 0.2

# How often a client that speaks asks for another name, of these: more than there are clients, or
# nobody could change.
_RENAME_CHANCE = 0.1
_NAMES = ("red", "green", "blue", "black", "white", "brown", "grey", "pink", "orange", "violet")

# How often a client that speaks sends a private message, and how often it asks what has become of
# one whose fate is unknown.
_DIRECT_CHANCE = 0.25
_MAX_TRIES = 6

# How many of its last events are printed with a violation.
_STORY = 20

# After these a private message is certainly not delivered.
_NOT_DELIVERED = ("not-delivered", "nobody-there")


@dataclass
class _Unaccepted:
    room: str
    text: str
    sent: int = 1
    refused_at: float | None = None


@dataclass
class Chatter:
    """A client called *name* in *rooms*; `run` runs until `Crowd.over`."""

    crowd: "Crowd"
    name: str
    rooms: Sequence[str]
    is_patient: bool = False
    client: int = 0
    called: str = ""  # its present name; *name* is in its messages
    connected: bool = False
    connections: int = 0
    resumed: int = 0
    renames: int = 0
    new_sessions: int = 0
    failures: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    goodbyes: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)  # how connections ended
    seen: list[Departure] = field(default_factory=list)
    presence: Presence = field(init=False)
    records: dict[str, Record] = field(default_factory=dict)
    unaccepted: dict[int, _Unaccepted] = field(default_factory=dict)
    directs: Directs = field(default_factory=Directs)

    def __post_init__(self) -> None:
        self.records = {room: Record(self.name) for room in self.rooms}
        self.presence = Presence(self.name)
        self._since: dict[str, str] = {}
        self._asked: dict[str, str] = {}  # names, by nonce
        self._had: set[str] = {self.name}  # names since its last accepted message
        self._story: list[str] = []  # of its name
        self._session = ""
        self._nonce = 0
        self._wait = 0.0
        self._heard_at = 0.0
        self._dice = random.Random(f"{self.crowd.seed} {self.name}")

    def told_lost(self, room: str) -> int:
        """How many messages of *room* a notice has told it to be lost."""
        found = [re.match(rf"(\d+) messages? .* lost in {room}:", each) for each in self.notices]
        return sum(int(each[1]) for each in found if each)

    async def run(self) -> None:
        """Connect and reconnect until the end."""
        while not self.crowd.over:
            try:
                stream = await trio.open_tcp_stream(LOOPBACK, self.crowd.port)
            except OSError:
                await trio.sleep(_RETRY_SECONDS)
                continue
            try:
                await self._talk(
                    Line(stream, PATIENT_SECONDS if self.is_patient else SILENT_SECONDS)
                )
            except* Cut as cuts:
                self.ends[str(cuts.exceptions[0])] += 1
            finally:
                self.connected = False
                now = trio.current_time()
                self.directs.cuts.append(now)
                if not self._session:
                    self.presence.strays.append(now)
                await trio.aclose_forcefully(stream)
            await trio.sleep(max(_RETRY_SECONDS, self._wait) * self._dice.uniform(0.5, 1.5))
            self._wait = 0.0

    async def _talk(self, line: Line) -> None:
        events = await self._greet(line)
        self.connected = True
        self._hear(events)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, line)
            nursery.start_soon(self._speak, line)

    async def _greet(self, line: Line) -> list[dict[str, Any]]:
        fields: dict[str, Any] = {"protocol": 1, "rooms": self._rooms()}
        fields |= {"session": self._session} if self._session else {"name": self.name}
        await line.hello(fields)
        try:
            welcome, events = await line.until("welcome")
        except Cut as cut:
            if str(cut).startswith("goodbye"):
                self.goodbyes[str(cut).removeprefix("goodbye ")] += 1
            raise
        now = trio.current_time()
        if self.connections:
            self.presence.absences.append((self._heard_at, now))
        self._heard_at = now
        self.connections += 1
        self._welcome(welcome)
        if again := self._say_again():
            await line.send(*again)
        return events

    def _rooms(self) -> dict[str, Any]:
        return {
            room: {"since": since} if (since := self._since.get(room)) else {"replay": EVERYTHING}
            for room in self.rooms
        }

    def _welcome(self, welcome: dict[str, Any]) -> None:
        first, was = not self._session, self._session
        self._session = welcome["session"]
        if not first and welcome["resumed"]:
            self.resumed += 1
            if welcome["client"] != self.client:
                self._fail(f"has resumed as client {welcome['client']}, was {self.client}")
        elif not first:
            self.new_sessions += 1
            self._begin_again(welcome, was)
        if first and welcome["name"] != self.name:  # a connection before has the name still
            self._session = ""
            raise Cut("the name is taken")
        self._take_name(welcome)
        if set(welcome["rooms"]) != set(self.rooms):
            self._fail(f"is in {', '.join(welcome['rooms'])}, not in {', '.join(self.rooms)}")
        self.client = self.presence.client = welcome["client"]

    def _take_name(self, welcome: dict[str, Any]) -> None:
        """Another client of the same address may have taken its name while it was away."""
        allowed = {*self._had, *self._asked.values(), f"Client {welcome['client']}"}
        if welcome["name"] not in allowed and not self.crowd.lossy:
            story = ", ".join(self._story[-_STORY:])
            self._fail(f"is called {welcome['name']}, not {' or '.join(allowed)}; {story}")
        self._story.append(f"welcome {welcome['name']}")
        self.called = welcome["name"]
        self._had = {self.called}
        self._asked.clear()

    def _begin_again(self, welcome: dict[str, Any], was: str) -> None:
        """The session is gone: unacknowledged messages may be published or not."""
        if not self.crowd.lossy:
            self._fail(f"the session {was[:6]} was lost: is client {welcome['client']} now")
        for each in self.unaccepted.values():
            self.records[each.room].unsure.add(each.text)
        self.unaccepted.clear()
        for direct in self.open_directs.values():
            direct.fate = "unknown"
        self._session = ""
        raise Cut("the session was lost")

    def _say_again(self) -> list[dict[str, Any]]:
        for each in self.unaccepted.values():
            each.sent += 1
            each.refused_at = None
            record = self.records[each.room]
            record.repeated[each.text] = len(record.said)
        if self.crowd.lossy:
            self._give_up_directs()
        return [
            *(self._say(nonce) for nonce in self.unaccepted),
            *(self._direct_again(nonce) for nonce in self.open_directs),
        ]

    # --- Private messages -------------------------------------------------------------------------

    @property
    def open_directs(self) -> dict[str, Direct]:
        """The private messages whose fate is not decided, by nonce."""
        return {nonce: one for nonce, one in self.directs.sent.items() if one.fate == "open"}

    def _give_up_directs(self) -> None:
        """Give up a message that was sent again so often: the engine may have lost its outcome.

        Its sender then waits for longer than these clients, and gets `delivery-unknown`.
        """
        for direct in self.open_directs.values():
            if direct.tries >= _MAX_TRIES:
                direct.fate = "unknown"

    def _new_direct(self) -> dict[str, Any]:
        to = self._dice.choice([each for each in self.crowd.chatters if each is not self])
        text = f"to {to.name} from {self.name} {len(self.directs.sent)}"
        now, nonce = trio.current_time(), f"direct {len(self.directs.sent)}"
        self.directs.sent[nonce] = Direct(text, to.name, (now, now))
        return {"type": "direct", "to": to.client, "text": text, "nonce": nonce}

    def _direct_again(self, nonce: str) -> dict[str, Any]:
        """Send a private message again, to whichever number its recipient had."""
        direct = self.directs.sent[nonce]
        direct.tries += 1
        direct.retry_at = None
        direct.times = direct.times[0], trio.current_time()
        to = next(each for each in self.crowd.chatters if each.name == direct.to)
        return {"type": "direct", "to": to.client, "text": direct.text, "nonce": nonce}

    def _decide_direct(self, event: dict[str, Any]) -> None:
        direct = self.directs.sent[event["nonce"]]
        direct.times = direct.times[0], trio.current_time()
        if direct.fate != "open":
            self._fail(f"got {event} for a message that is {direct.fate}")
        elif event["type"] == "accepted":
            direct.fate = "accepted"
        elif event["code"] in _NOT_DELIVERED or (
            event["code"] == "storage-failed" and direct.tries == 1
        ):
            direct.fate = "refused"
        elif event["code"] in ("storage-failed", "delivery-unknown"):
            direct.retry_at = trio.current_time() + _REFUSED_SECONDS
            if event["code"] == "delivery-unknown" and direct.tries >= _MAX_TRIES:
                direct.fate = "unknown"
        else:
            self._fail(f"got {event}")

    def _say(self, nonce: int) -> dict[str, Any]:
        each = self.unaccepted[nonce]
        return {"type": "say", "text": each.text, "room": each.room, "nonce": nonce}

    async def _speak(self, line: Line) -> None:
        ping_at = trio.current_time() + _PING_SECONDS
        while True:
            await trio.sleep(self._dice.uniform(0, 2 * _PAUSE_SECONDS))
            now = trio.current_time()
            requests = self._repeat_refused(now)
            if self.crowd.talking and len(self.unaccepted) < _MAX_UNACCEPTED:
                requests += [self._new() for _ in range(self._dice.randint(1, _MAX_BURST))]
            if self._may_ask(self._asked, _RENAME_CHANCE):
                requests.append(self._rename())
            if self._may_ask(self.open_directs, _DIRECT_CHANCE):
                requests.append(self._new_direct())
            requests += [
                self._direct_again(nonce)
                for nonce, each in self.open_directs.items()
                if each.retry_at is not None and now >= each.retry_at
            ]
            if now >= ping_at:
                ping_at = now + _PING_SECONDS
                requests.append({"type": "ping"})
            if requests:
                await line.send(*requests)

    def _may_ask(self, unanswered: Sized, chance: float) -> bool:
        return (
            self.crowd.talking
            and len(unanswered) < _MAX_UNANSWERED
            and self._dice.random() < chance
        )

    def _repeat_refused(self, now: float) -> list[dict[str, Any]]:
        requests = []
        for nonce, each in self.unaccepted.items():
            if each.refused_at is not None and now - each.refused_at > _REFUSED_SECONDS:
                each.refused_at = None
                each.sent += 1
                requests.append(self._say(nonce))
        return requests

    def _rename(self) -> dict[str, Any]:
        self._nonce += 1
        nonce = f"name {self._nonce}"
        # The name of a client that is away can be taken, and then the client is announced as left.
        own = f"{self.name}-{self._nonce}"
        self._asked[nonce] = own if self.crowd.quiet else self._dice.choice(_NAMES)
        self._story.append(f"asks for {self._asked[nonce]}")
        return {"type": "name", "name": self._asked[nonce], "nonce": nonce}

    def _new(self) -> dict[str, Any]:
        room = self._dice.choice(self.rooms)
        record = self.records[room]
        text = f"{room} {self.name} {len(record.said)}"
        record.said.append(text)
        if self._dice.random() < _BARE_CHANCE:
            record.unsure.add(text)
            return {"type": "say", "text": text, "room": room}
        self._nonce += 1
        self.unaccepted[self._nonce] = _Unaccepted(room, text)
        return self._say(self._nonce)

    async def _listen(self, line: Line) -> None:
        while True:
            events = await line.receive()
            self._heard_at = trio.current_time()
            self._hear(events)

    def _hear(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            self._hear_one(event)

    def _hear_one(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "said":
                self._said(event["room"], event["id"], event["text"])
            case "direct":
                self.directs.heard.append(event["text"])
            case "accepted" | "error" if event.get("nonce") in self.directs.sent:
                self._decide_direct(event)
            case "missed":
                self.records[event["room"]].heard.append(Missed(event["count"]))
            case "accepted":
                self._accepted(event)
            case "joined" | "left" | "presence":
                if (departure := Departure.of(event, trio.current_time())) is not None:
                    self.seen.append(departure)
            case "notice":
                self.notices.append(event["text"])
            case "error":
                self._error(event)
            case "goodbye":
                self.goodbyes[event["code"]] += 1
                # Other nodes are there while one drains: `after` is when this one is back.
                self._wait = 0.0 if event["code"] == "draining" else event.get("after", 0.0)
                if not event["reconnect"]:
                    self._fail(f"was told goodbye: {event}")
                raise Cut(f"goodbye {event['code']}")
            case "renamed" if event["client"] == self.client:
                self._asked.pop(event.get("nonce", ""), None)
                self.renames += 1
                self.called = event["name"]
                self._had.add(self.called)
                self._story.append(f"renamed {self.called}")
            case "renamed" | "pong":
                pass
            case _:
                self._fail(f"got {event}")

    def _said(self, room: str, id_: str, text: str) -> None:
        if room not in self.records or not text.startswith(f"{room} "):
            self._fail(f"heard in {room}: {text}")
            return
        self._since[room] = id_
        self.records[room].heard.append(Heard(id_, text))

    def _accepted(self, event: dict[str, Any]) -> None:
        each = self.unaccepted.pop(event["nonce"], None)
        if each is None:
            self._fail(f"was told of no message of its own: {event}")
        else:
            self.records[each.room].accepted[each.text] = event["id"]
            self._had = {self.called}
            if not (self._story and self._story[-1].startswith("accepted")):
                self._story.append(f"accepted as {self.called}")

    def _error(self, event: dict[str, Any]) -> None:
        """A message that was sent once is certainly not published; else its fate is open."""
        name = self._asked.pop(str(event.get("nonce")), None)
        if name is not None or "nonce" not in event:
            self._story.append(f"error {event['code']} {name}")
        if name is not None and event["code"] in ("name-taken", "storage-failed"):
            return
        if event["code"] == "name-taken" and "nonce" not in event:  # of its session: see above
            return
        if event["code"] == "storage-failed" and "nonce" not in event:
            return
        if event["code"] == "unknown-id" and self.crowd.lossy:  # and no message was sent since
            return
        each = self.unaccepted.get(event.get("nonce", 0))
        if event["code"] != "storage-failed" or each is None:
            self._fail(f"got {event}")
        elif each.sent == 1:
            self.records[each.room].refused.add(each.text)
            del self.unaccepted[event["nonce"]]
        else:
            self.records[each.room].late.add(each.text)
            each.refused_at = trio.current_time()

    def _fail(self, what: str) -> None:
        self.failures.append(f"{self.name} {what}")


@dataclass
class Crowd:
    """The clients of a run, which connect to *port*; *lossy* and *quiet* are as in `Fault`."""

    port: int
    seed: int
    clients: int = 6
    rooms: int = 3
    rooms_each: int = 2
    lossy: bool = False
    quiet: bool = False
    patient: bool = False  # every second client, at least
    talking: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        self.chatters = [
            Chatter(
                self,
                f"chatter{number}",
                [f"room{(number + other) % self.rooms}" for other in range(self.rooms_each)],
                is_patient=self.patient and number % 2 == 0,
            )
            for number in range(self.clients)
        ]

    @property
    def connected(self) -> bool:
        return all(each.connected for each in self.chatters)

    @property
    def each_accepted(self) -> bool:
        return all(r.accepted for each in self.chatters for r in each.records.values())

    def of(self, room: str) -> list[Chatter]:
        return [each for each in self.chatters if room in each.rooms]

    @property
    def room_names(self) -> list[str]:
        return sorted({room for each in self.chatters for room in each.rooms})

    @property
    def decided(self) -> int:
        """How much has arrived or was answered: it stops changing once no client sends."""
        records = [record for each in self.chatters for record in each.records.values()]
        messages = sum(len(each.heard) + len(each.accepted) + len(each.refused) for each in records)
        directs = [one for each in self.chatters for one in each.directs.sent.values()]
        fates = sum(each.fate != "open" for each in directs)
        return messages + fates + sum(each.renames for each in self.chatters)

    def missing(self) -> list[str]:
        """Return what must still arrive before the run can be checked."""
        found = [f"{each.name} is not connected" for each in self.chatters if not each.connected]
        found += [
            f"{each.name} has {len(each.unaccepted)} unacknowledged messages"
            for each in self.chatters
            if each.unaccepted
        ]
        found += [
            f"{each.name} has {len(each.open_directs)} private messages of unknown fate"
            for each in self.chatters
            if each.open_directs
        ]
        for room in self.room_names:
            every = set() if self.lossy else self._accepted_in(room)
            for each in self.of(room):
                record = each.records[room]
                heard = {one.text for one in record.messages()} | set(record.said)
                missed = sum(one.count for one in record.heard if isinstance(one, Missed))
                if (late := len(every - heard) - missed) > 0:
                    found.append(f"{each.name} waits for {late} messages in {room}")
        return found

    def _accepted_in(self, room: str) -> set[str]:
        return {text for each in self.of(room) for text in each.records[room].accepted}
