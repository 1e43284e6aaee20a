"""An operator and the owners of an account, who work on a cluster in the chaos.

The operator bans, lifts bans and sets topics on whichever node it gets; the owners take one account
from each other, and an intruder asks for its name.  Afterwards all nodes must agree, and have what
was acknowledged.  Imports nothing from multichat: the reference is docs/protocol.md.
"""

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.support.processes import LOOPBACK

from .line import Cut, Line

__all__ = ["ACCOUNT", "OPERATOR", "PASSPHRASE", "Office"]

OPERATOR, ACCOUNT, PASSPHRASE = "boss", "owned", "correct horse battery"

_PAUSE_SECONDS = 0.3
_RETRY_SECONDS = 0.2
_ANSWER_SECONDS = 8.0

# Above the `wait` that a welcome tells, after which a client may give up a connection.
_WAIT_SECONDS = 40.0

# A login costs a node a tenth of a second.
_LOGIN_SECONDS = 2.0

# Passphrases are compared at a low priority, one after the other: on a machine whose processors are
# busy with other things, one took 17 s, and a node may have four to compare.
_LOGIN_ANSWER_SECONDS = 120.0

# In which the nodes agree, unless one look, which needs a login at each, takes longer.
_AGREE_SECONDS = 20.0
_LEAST_LOOKS = 2

# Errors of a login that may succeed later.
_PASSING = ("storage-failed", "too-many-attempts")


class _Person:
    """A connection that asks one request at a time; `talk` is what it does with it."""

    def __init__(self, office: "Office", name: str) -> None:
        self.office, self.name = office, name
        self.dice = random.Random(f"{office.seed} {name}")
        self.client = 0
        self.former: set[int] = set()  # the numbers of connections that have ended
        self._line: Line | None = None
        self._nonce = 0

    async def run(self, talk: Callable[[], Awaitable[None]]) -> None:
        while not self.office.over:
            try:
                stream = await trio.open_tcp_stream(LOOPBACK, self.office.port)
            except OSError:
                await trio.sleep(_RETRY_SECONDS)
                continue
            try:
                self._line = Line(stream, _ANSWER_SECONDS)
                rooms: dict[str, Any] = {room: {} for room in ("lobby", *self.office.rooms)}
                await self._line.hello({"protocol": 1, "rooms": rooms})
                welcome, _ = await self._line.until("welcome")
                self.client = welcome["client"]
                await talk()
            except Cut:
                pass
            finally:
                self.former.add(self.client)
                self.client = 0
                await trio.aclose_forcefully(stream)
            await trio.sleep(_RETRY_SECONDS)

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a request, and return its answer; `hear` gets all events."""
        assert self._line is not None
        self._nonce += 1
        nonce = f"{self.name} {self._nonce}"
        await self._line.send({"type": kind, "nonce": nonce, **fields})
        seconds = _LOGIN_ANSWER_SECONDS if kind == "login" else _WAIT_SECONDS
        with trio.move_on_after(seconds):
            while True:
                answer = None
                for event in await self._line.receive():
                    if event.get("nonce") == nonce:
                        answer = event
                    self.hear(event)
                if answer is not None:
                    return answer
        self.office.failures.append(f"{kind} of {self.name} was not answered in {seconds:g} s")
        raise Cut("no answer")

    def hear(self, event: dict[str, Any]) -> None:
        """Take each event, in order; answers are returned by `ask` as well."""
        if event["type"] == "goodbye":
            raise Cut(f"goodbye {event['code']}")


class _Owner(_Person):
    """One of the clients of an account; *has_it* says whether its last answer was a login."""

    has_it = False

    async def talk(self) -> None:
        self.has_it = False
        while True:
            if not self.has_it and self.office.working:
                answer = await self.ask("login", name=ACCOUNT, passphrase=PASSPHRASE)
                if answer.get("code", "storage-failed") not in _PASSING:
                    self.office.failures.append(f"{self.name} got {answer}")
            until = trio.current_time() + self.dice.uniform(0.5, 2) * _LOGIN_SECONDS
            while trio.current_time() < until:
                await self.ask("ping", token="x")
                await trio.sleep(_PAUSE_SECONDS)

    def hear(self, event: dict[str, Any]) -> None:
        super().hear(event)
        if event["type"] in ("logged-in", "logged-out"):  # both may come in one read
            self.has_it = event["type"] == "logged-in"


class _Intruder(_Person):
    """Asks for the name of the account, which it must never get."""

    async def talk(self) -> None:
        while True:
            answer = await self.ask("name", name=ACCOUNT)
            if answer["type"] != "error" or answer["code"] not in ("name-taken", "storage-failed"):
                self.office.failures.append(f"an intruder who asked for {ACCOUNT} got {answer}")
            self.office.intrusions += 1
            await trio.sleep(_PAUSE_SECONDS)


class _Operator(_Person):
    """Bans, lifts bans, and sets topics; the office records the answers."""

    async def talk(self) -> None:
        office = self.office
        answer = await self.ask("login", name=OPERATOR, passphrase=PASSPHRASE)
        if answer["type"] != "logged-in":
            raise Cut("not logged in")
        targets: list[str] = []  # in force, according to the answers on this connection
        while True:
            if not office.working:
                await self.ask("ping", token="x")
                await trio.sleep(_PAUSE_SECONDS)
                continue
            lifts = bool(targets) and self.dice.random() < 0.4
            target = targets.pop(0) if lifts else office.new_target()
            office.bans[target] = {True, False}
            answer = await self.ask("unban" if lifts else "ban", what=target)
            told = answer["type"] == "notice"
            # Calls of a node take effect in their order: with the topic the ban is in the engine.
            if await self._set_topic() and told:
                office.bans[target] = {not lifts}
                if not lifts:
                    targets.append(target)
            await trio.sleep(_PAUSE_SECONDS)

    async def _set_topic(self) -> bool:
        office = self.office
        room, text = self.dice.choice(office.rooms), f"topic {office.count()}"
        office.topics[room].append(text)  # unsure until it is acknowledged
        answer = await self.ask("topic", text=text, room=room)
        if answer["type"] == "topic":
            office.topics[room].remove(text)
            office.acknowledged[room] = text
            return True
        return False


@dataclass
class Office:
    """All of them, who connect to *port*; *topics* are those that may be set, by room.

    *bans* has for each target whether it may be banned, and whether it may not be.
    """

    port: int
    seed: int
    rooms: Sequence[str] = ("office0", "office1")
    working: bool = False
    over: bool = False
    failures: list[str] = field(default_factory=list)
    topics: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    acknowledged: dict[str, str] = field(default_factory=dict)
    bans: dict[str, set[bool]] = field(default_factory=dict)
    intrusions: int = 0
    _counted: int = 0

    def __post_init__(self) -> None:
        self.owners = [_Owner(self, f"owner{number}") for number in (1, 2)]
        self._operator, self._intruder = _Operator(self, "operator"), _Intruder(self, "intruder")

    def count(self) -> int:
        self._counted += 1
        return self._counted

    def new_target(self) -> str:
        return f"name villain{self.count()}"

    async def run(self) -> None:
        """Work until `over`."""
        async with trio.open_nursery() as nursery:
            for each in self.owners:
                nursery.start_soon(each.run, each.talk)
            nursery.start_soon(self._operator.run, self._operator.talk)
            nursery.start_soon(self._intruder.run, self._intruder.talk)

    def figures(self) -> dict[str, object]:
        """Return how much was done."""
        firm = [target for target, may in self.bans.items() if len(may) == 1]
        return {
            "bans": len(firm),
            "topics": self._counted - len(self.bans),
            "intrusions": self.intrusions,
        }

    async def check(self, ports: Sequence[int]) -> list[str]:
        """Return what the nodes at *ports* still disagree about, or lack, after a while."""
        wrong, looks = ["nobody has answered"], 0
        until = trio.current_time() + _AGREE_SECONDS
        while wrong and (looks < _LEAST_LOOKS or trio.current_time() < until):
            wrong = await self._differences(ports)
            looks += 1
            await trio.sleep(_RETRY_SECONDS)
        return self.failures + wrong

    async def _differences(self, ports: Sequence[int]) -> list[str]:
        holders = [each.client for each in self.owners if each.has_it]
        found = [f"{len(holders)} clients have {ACCOUNT}: {holders}"] if len(holders) > 1 else []
        seen = []
        for port in ports:
            try:
                seen.append(await self._look(port))
            except (Cut, OSError, trio.TooSlowError) as error:
                found.append(f"the node at {port} does not answer: {error}")
        for bans, topics, named in seen:
            # Its node may not have noticed that the connection of the last holder has ended.
            former = set().union(*(each.former for each in self.owners))
            if named != holders and not (named and not holders and former.issuperset(named)):
                found.append(f"{ACCOUNT} is {named}, and {holders} were told so")
            found += [
                f"{target} is {'' if target in bans else 'not '}banned"
                for target, may in self.bans.items()
                if (target in bans) not in may
            ]
            found += [
                f"the topic of {room} is {topics[room]!r}, and {text!r} was set"
                for room, text in self.acknowledged.items()
                if topics[room] not in (text, *self.topics[room])
            ]
        if any(each[:2] != seen[0][:2] for each in seen):
            found.append("the nodes have different bans or topics")
        return found

    async def _look(self, port: int) -> tuple[set[str], dict[str, str], list[int]]:
        """Return the bans, the topics, and who has the account, as the node at *port* says."""
        async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
            line = Line(stream, _LOGIN_ANSWER_SECONDS)
            login = {"name": OPERATOR, "passphrase": PASSPHRASE}
            rooms: dict[str, Any] = {room: {} for room in ("lobby", *self.rooms)}
            await line.hello({"protocol": 1, "rooms": rooms, "login": login})
            welcome, _ = await line.until("welcome")
            topics = {room: welcome["rooms"][room].get("topic", "") for room in self.rooms}
            await line.send({"type": "bans"}, {"type": "who", "room": "lobby"})
            listed, rest = await line.until("bans")
            members = next((each for each in rest if each["type"] == "members"), None)
            if members is None:
                members, _ = await line.until("members")
            await line.send({"type": "quit"})
            named = [each["client"] for each in members["members"] if each["name"] == ACCOUNT]
            return {each["what"] for each in listed["bans"]}, topics, named
