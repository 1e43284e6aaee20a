"""The invariants of a run with several nodes; each yields the violations that it finds.

Independent of the servers: what counts is what the engine has stored (`NodesHistory.rooms`), and
the bytes on each connection, whichever node it was to.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from math import inf
from typing import Any

from tests.simulation.chronicle import _fold, key_of
from tests.simulation.history import Visit
from tests.simulation.invariants import Violation
from tests.simulation.rooms.wire import Request, Talk

from .plan import LEASE_SECONDS, NodesPlan

__all__ = [
    "LAST_WHO",
    "NODES_INVARIANTS",
    "Line",
    "NodesHistory",
    "Present",
    "Rest",
    "Talking",
    "nodes_violations",
]

# The most violations of one invariant that are reported for a run.
_MOST_TOLD = 3

# How the nonces of the requests begin that clients make when everything is quiet.
LAST_WHO = "last"

# From this time without its engine on, a node refuses messages; see docs/cluster.md.
_AWAY_SECONDS = 3.0


# --- What happened --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """One message that the engine has stored; its place in its room's list is its number."""

    id: str
    client: int
    name: str
    text: str
    act: bool
    nonce: object
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Present:
    """A client that was connected when everything was quiet, as its node knows it."""

    visit: Visit
    client: int
    name: str
    rooms: frozenset[str]
    account: str = ""


@dataclass(frozen=True, kw_only=True)
class Rest:
    """The bans and topics of a node, or of the engine, when everything was quiet."""

    bans: frozenset[str]
    topics: dict[str, str]


@dataclass
class Section:
    """What a client got in one *room*, from entering it on; see `rooms.walk.RoomSection`.

    *place* is the number of the message that is next.
    """

    room: str
    client: int
    place: int
    is_over: bool = False


@dataclass
class NodesHistory:
    """One completed run.

    *rooms* has the messages of each room in the order of the engine, *ends* how many there were
    when everything was quiet: a client that reads again when it leaves may say more.  *present* are
    the clients that were connected then, before the last ones left; *away* the times at
    which a node, by its number, did not reach the engine.  *problems* are what the engine has
    noticed, *left_behind* what the servers did not release.
    """

    plan: NodesPlan
    visits: list[Visit] = field(default_factory=list)
    nodes_of: dict[int, int] = field(default_factory=dict)  # by id of the visit
    came_at: dict[int, float] = field(default_factory=dict)  # the same
    rooms: dict[str, list[Line]] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    present: list[Present] = field(default_factory=list)
    away: list[tuple[int, float, float]] = field(default_factory=list)
    rests: dict[str, Rest] = field(default_factory=dict)  # by whose they are
    accounts: frozenset[str] = frozenset()
    # By account, clients that had its name when it was stored, or when they resumed on a node that
    # did not know it; until somebody logs in to it.
    early_holders: set[tuple[str, int]] = field(default_factory=set)
    firm_bans: set[str] = field(default_factory=set)  # of nodes that lived on, and never lifted
    problems: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    log: list[tuple[float, int, str]] = field(default_factory=list)
    talkings: "list[Talking]" = field(default_factory=list)
    crash: str = ""
    ended_in_time: bool = False
    seconds: float = 0.0

    def finish(self) -> None:
        """Follow all connections, once the run is over."""
        cache: dict[bytes, dict[str, Any]] = {}
        self.talks = {id(visit): _talk(visit, cache) for visit in self.visits}
        self.numbers = {
            line.id: (room, number)
            for room, lines in self.rooms.items()
            for number, line in enumerate(lines)
        }
        self.talkings = [Talking(self, visit) for visit in self.visits]


def _talk(visit: Visit, cache: dict[bytes, dict[str, Any]]) -> Talk:
    if visit.connection is None:
        return Talk()
    to_server = visit.connection.to_server
    lines = bytes(to_server.written).split(b"\n")
    if not to_server.ended:  # text after the last LF is not a line
        lines.pop()
    return Talk.of(lines, bytes(visit.connection.to_client.written), cache)


class Talking:
    """Follows one connection, event by event; *problems* are by the name of the invariant."""

    def __init__(self, history: NodesHistory, visit: Visit) -> None:
        self.visit, self._history = visit, history
        self.problems: dict[str, list[str]] = {}
        self.open: dict[str, Section] = {}
        self.client = 0
        self.name = ""
        self.welcome: dict[str, Any] | None = None
        self.accepted: dict[object, str] = {}
        self.refused: Counter[object] = Counter()
        self.unanswered: list[Request] = []
        self.listed: dict[str, dict[int, str]] = {}  # the last answer to `who`, by room
        self.goodbye = ""
        self.heard = 0  # messages of others
        self.told_privately: list[str] = []
        self.direct_fates: list[tuple[Request, str]] = []  # private messages, and `accepted` or why
        self.fenced: dict[str, Any] | None = None
        talk = history.talks[id(visit)]
        self._follow(talk)

    def _problem(self, invariant: str, what: str) -> None:
        self.problems.setdefault(invariant, []).append(f"{self.visit}: {what}")

    def _follow(self, talk: Talk) -> None:
        answered: set[int] = set()
        for i, (event, request) in enumerate(talk.answers()):
            if event["type"] == "welcome":
                self._welcome(talk, event, talk.events[i + 1 :])
            elif self.welcome is None:
                continue
            elif request is not None:
                answered.add(request.index)
                self._answer(request, event, talk.events[i + 1 :])
            else:
                if event["type"] in ("accepted", "error") and "nonce" in event:
                    self._problem("fates_are_decided_once", f"got {event}, once too often")
                self._hear(event)
        self.unanswered = [
            each
            for each in talk.requests
            if each.index not in answered
            and each.kind != "quit"
            # Without a nonce only a private message that is not delivered is answered.
            and not (each.kind == "direct" and each.nonce is None)
        ]

    # --- Rooms ------------------------------------------------------------------------------------

    def _welcome(self, talk: Talk, event: dict[str, Any], rest: list[dict[str, Any]]) -> None:
        self.welcome, self.client, self.name = event, event["client"], event["name"]
        errors = [
            *takewhile(lambda each: each["type"] in ("error", "logged-out"), rest),
        ]
        starts = {name.lower(): dict(each) for name, each in talk.hello.get("rooms", {}).items()}
        wanted = [*starts]
        if "room" in talk.hello:
            wanted.append(talk.hello["room"].lower())
        bare = {key: talk.hello[key] for key in ("since", "replay") if key in talk.hello}
        current = wanted[-1] if wanted else event["room"].lower()
        starts[current] = {**bare, **starts.get(current, {})}
        for name, state in event.get("rooms", {}).items():
            self._begin(name.lower(), state["last"], starts.get(name.lower(), {}), errors)

    def _begin(
        self, room: str, last: str | None, start: dict[str, Any], errors: list[dict[str, Any]]
    ) -> None:
        told = self._number(room, last) + 1 if last is not None else 0
        place = told
        since = start.get("since")
        known = self._history.numbers.get(since or "")
        if since is not None and known is not None and known[0] == room and known[1] < told:
            place = known[1] + 1
        elif since is None and start.get("replay"):
            place = max(0, told - start["replay"])
        elif since is not None and not any(each.get("code") == "unknown-id" for each in errors):
            if known is not None and known[0] == room:
                # The engine has it, and this node has not applied it: that is more than it told.
                self._problem("nothing_missed_nor_twice", f"{since} is not known in {room} yet")
            elif len(errors) < len(self._history.talks[id(self.visit)].events):
                self._problem("unknown_ids_are_told", f"has {since} in {room}, without an error")
        self.open.pop(room, None)
        self.open[room] = Section(room, self.client, place)

    def _number(self, room: str, id_: str) -> int:
        known = self._history.numbers.get(id_)
        if known is None or known[0] != room:
            self._problem("ids_are_in_order", f"got {id_} as an id of {room}, which it is not")
            return -1
        return known[1]

    def _entered(self, request: Request, event: dict[str, Any], rest: list[dict[str, Any]]) -> None:
        room = event["room"].lower()
        if request.kind == "join":
            for other in [each for each in self.open if each != room]:
                del self.open[other]
        wishes = ("since", "replay")
        start = {key: value for key, value in request.fields.items() if key in wishes}
        if room in self.open and (request.kind == "enter" or not start):
            self.open[room] = self.open.pop(room)
            return
        errors = [*takewhile(lambda each: each["type"] == "error" and "nonce" not in each, rest)]
        self._begin(room, event.get("last"), start, errors)

    # --- Answers and events -----------------------------------------------------------------------

    def _answer(self, request: Request, event: dict[str, Any], rest: list[dict[str, Any]]) -> None:
        kind, code = event["type"], event.get("code", "")
        match request.kind:
            case "say" | "act" if kind == "accepted":
                self.accepted[request.nonce] = event["id"]
                self._check_accepted(request, event)
            case "say" | "act":
                self.refused[request.nonce] += 1
            case "direct":
                self.direct_fates.append((request, code or kind))
            case "enter" | "join" if kind == "joined":
                self._entered(request, event, rest)
            case "exit" if kind == "left":
                self.open.pop(event["room"].lower(), None)
            case "name" if kind == "renamed":
                self.name = event["name"]
            case "login" | "logout" if kind in ("logged-in", "logged-out"):
                self.name = event["name"]
            case "who" if kind == "members" and str(request.nonce).startswith(LAST_WHO):
                listed = {each["client"]: each["name"] for each in event["members"]}
                self.listed[event["room"].lower()] = listed
        if code == "storage-failed":
            self._check_away(event)

    def _check_accepted(self, request: Request, event: dict[str, Any]) -> None:
        known = self._history.numbers.get(event["id"])
        if known is None:
            self._problem("accepted_is_stored", f"had {request.fields} accepted as {event['id']}")
            return
        line = self._history.rooms[known[0]][known[1]]
        if (line.client, key_of("", line.text)) != (
            self.client,
            key_of("", request.fields["text"]),
        ):
            self._problem("accepted_is_stored", f"had {request.fields} accepted, which is {line}")

    def _check_away(self, event: dict[str, Any]) -> None:
        node = self._history.nodes_of[id(self.visit)]
        if "fenced" in event["text"]:  # it has resumed elsewhere: no later connection must be told
            self.fenced = event
            return
        if not any(
            each == node and end - start >= _AWAY_SECONDS for each, start, end in self._history.away
        ):
            self._problem("storage_fails_only_without_engine", f"got {event}")

    def _hear(self, event: dict[str, Any]) -> None:
        room = event.get("room", "").lower()
        match event["type"]:
            case "said":
                self._hear_said(event, room)
            case "direct":
                self.told_privately.append(event["text"])
            case "missed" if room in self.open:
                self._skip(self.open[room], event["count"])
            case "renamed" if event["client"] == self.client:
                self.name = event["name"]
            case "logged-out":
                self.name = event["name"]
            case "goodbye":
                self.goodbye = event["reason"]

    def _hear_said(self, event: dict[str, Any], room: str) -> None:
        self.heard += 1
        number = self._number(room, event["id"])
        if number < 0:
            return
        line = self._history.rooms[room][number]
        heard = event["client"], event["name"], event["text"]
        if heard != (line.client, line.name, line.text):
            self._problem("ids_are_in_order", f"heard {event}, which is {line}")
        if event["client"] == self.client:
            self._problem("no_echo", f"heard its own {event}")
        section = self.open.get(room)
        if section is None:
            self._problem("only_members_hear", f"is in {[*self.open]}, and heard {event}")
            return
        if not section.place <= number or not self._all_own(section, number):
            what = f"heard number {number} of {room}, where {section.place} is next"
            self._problem("nothing_missed_nor_twice", what)
        section.place = number + 1

    def _all_own(self, section: Section, end: int) -> bool:
        lines = self._history.rooms.get(section.room, [])
        return all(line.client == section.client for line in lines[section.place : end])

    def _skip(self, section: Section, count: int) -> None:
        lines = self._history.rooms.get(section.room, [])
        while count and section.place < len(lines):
            count -= lines[section.place].client != section.client
            section.place += 1
        if count:
            self._problem("nothing_missed_nor_twice", f"missed {count} too many in {section.room}")

    def lacks(self) -> Iterator[str]:
        """Yield what it has not got, of what was stored in its rooms when everything was quiet."""
        for section in self.open.values():
            end = self._history.ends.get(section.room, 0)
            if not self._all_own(section, end):
                yield f"{self.visit} got {section.room} up to {section.place} of {end}"


# --- Invariants -----------------------------------------------------------------------------------

Check = Callable[[NodesHistory], Iterator[str]]


def _of_talkings(name: str, doc: str) -> Check:
    def check(history: NodesHistory) -> Iterator[str]:
        for talking in history.talkings:
            yield from talking.problems.get(name, ())

    check.__name__ = check.__qualname__ = name
    check.__doc__ = doc
    return check


nothing_missed_nor_twice = _of_talkings(
    "nothing_missed_nor_twice", "In each room all messages come once, in the order of the engine."
)
ids_are_in_order = _of_talkings(
    "ids_are_in_order", "All get a message with the id, sender and text that the engine has."
)
unknown_ids_are_told = _of_talkings(
    "unknown_ids_are_told", "A `since` that its room does not have is answered by an error."
)
accepted_is_stored = _of_talkings(
    "accepted_is_stored", "An accepted message is stored, with that id."
)
fates_are_decided_once = _of_talkings(
    "fates_are_decided_once", "A message is answered once each time that it was sent."
)
no_echo = _of_talkings("no_echo", "A sender does not get its own messages.")
only_members_hear = _of_talkings("only_members_hear", "Messages come only to members of the room.")
storage_fails_only_without_engine = _of_talkings(
    "storage_fails_only_without_engine", "`storage-failed` is the answer only without an engine."
)


def only_the_replaced_are_fenced(history: NodesHistory) -> Iterator[str]:
    """What a connection says is fenced only if its client has resumed, or its node was away.

    That is a node that was frozen, or one that was cut off and says that it was taken for dead.
    """
    frozen = {node for _, node, _ in history.plan.freezes}
    frozen |= {
        node
        for _, node, text in history.log
        if "taken for dead" in text
        and sum(time for _, time in history.plan.links[node].cuts) >= LEASE_SECONDS / 2
    }
    for talking in history.talkings:
        later = [
            other
            for other in history.talkings
            if other.client == talking.client and other.visit.number > talking.visit.number
        ]
        node = history.nodes_of[id(talking.visit)]
        if talking.fenced is not None and not later and node not in frozen:
            yield f"{talking.visit} was fenced: {talking.fenced}"


def stored_once(history: NodesHistory) -> Iterator[str]:
    """No message is stored twice, whatever was repeated by clients and nodes."""
    lines = [line for each in history.rooms.values() for line in each]
    nonces = Counter((line.client, line.nonce) for line in lines if line.nonce is not None)
    keys = Counter(key for line in lines if ": " not in (key := key_of(line.name, line.text)))
    for (client, nonce), count in nonces.items():
        if count > 1:
            yield f"nonce {nonce} of client {client} is stored {count} times"
    for key, count in keys.items():
        if count > 1:
            yield f"{key} is stored {count} times"


def refused_is_not_stored(history: NodesHistory) -> Iterator[str]:
    """A message that was refused each time that it was sent is not stored."""
    sent: Counter[tuple[int, object]] = Counter()
    refused: Counter[tuple[int, object]] = Counter()
    for talking in history.talkings:
        talk = history.talks[id(talking.visit)]
        for request in talk.requests:
            if request.kind in ("say", "act"):
                sent[talking.visit.plan.number, request.nonce] += 1
        for nonce, count in talking.refused.items():
            refused[talking.visit.plan.number, nonce] += count
    person_of = {talking.client: talking.visit.plan.number for talking in history.talkings}
    for lines in history.rooms.values():
        for line in lines:
            which = person_of.get(line.client, 0), line.nonce
            if line.nonce is not None and 0 < sent[which] <= refused[which]:
                yield f"{line} was refused"


def sender_order(history: NodesHistory) -> Iterator[str]:
    """The messages of a connection are stored in the order in which it sent them, in each room."""
    for talking in history.talkings:
        talk = history.talks[id(talking.visit)]
        places = {
            key_of("", each.fields["text"]): each.index
            for each in reversed(talk.requests)
            if each.kind in ("say", "act")
        }
        ids = {id_: nonce for nonce, id_ in talking.accepted.items()}
        for room, lines in history.rooms.items():
            last = -1
            for line in lines:
                place = places.get(key_of("", line.text), -1)
                if line.client != talking.client or line.id not in ids or place < 0:
                    continue
                if place < last and line.nonce not in _repeated(history, talking):
                    what = f"{line.text[:12]} in {room} before what is before it"
                    yield f"{talking.visit} sent {what}"
                last = max(last, place)


def _repeated(history: NodesHistory, talking: Talking) -> set[object]:
    """Return the nonces that its client has sent on more than one connection."""
    times: Counter[object] = Counter()
    for visit in history.visits:
        if visit.plan is talking.visit.plan:
            times.update({each.nonce for each in history.talks[id(visit)].requests})
    return {nonce for nonce, count in times.items() if count > 1}


def private_messages_come_once(history: NodesHistory) -> Iterator[str]:
    """A private message comes once, or not if each answer to its sender said so."""
    heard = Counter(text for talking in history.talkings for text in talking.told_privately)
    sent: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    with_nonce: set[str] = set()
    for talking in history.talkings:
        for request in history.talks[id(talking.visit)].requests:
            if request.kind == "direct":
                sent[request.fields["text"]] += 1
                if request.nonce is not None:
                    with_nonce.add(request.fields["text"])
        for request, fate in talking.direct_fates:
            text = request.fields["text"]
            refused[text] += fate not in ("accepted", "delivery-unknown")
            if fate == "accepted" and not heard[text] and _stayed(history, request.fields["to"]):
                to = request.fields["to"]
                yield f"{talking.visit} had {text!r} accepted, which client {to} lacks"
    for text, count in heard.items():
        if count > 1:
            yield f"{text!r} came {count} times"
        if text in with_nonce and 0 < sent[text] <= refused[text]:
            yield f"{text!r} came, and was refused"


def _stayed(history: NodesHistory, client: object) -> bool:
    """Whether that client has had one connection only, up to the end."""
    talkings = [each for each in history.talkings if each.client == client]
    visits = [each for each in history.visits for one in talkings if each.plan is one.visit.plan]
    there = {id(each.visit) for each in history.present}
    return len(visits) == 1 and id(visits[0]) in there


def bans_and_topics_are_the_same_everywhere(history: NodesHistory) -> Iterator[str]:
    """When everything is quiet, all nodes have the bans and topics that the engine has."""
    if (engine := history.rests.get("the engine")) is None:
        return
    for whose, rest in history.rests.items():
        if rest.bans != engine.bans:
            yield f"{whose} has the bans {sorted(rest.bans)}, the engine {sorted(engine.bans)}"
        if rest.topics != engine.topics:
            yield f"{whose} has the topics {rest.topics}, the engine {engine.topics}"
    if missing := history.firm_bans - engine.bans:
        yield f"the bans {sorted(missing)} were lost"


def registered_names_have_one_holder(history: NodesHistory) -> Iterator[str]:
    """When everything is quiet, only the client that is logged in has the name of an account.

    A client that had the name before it was registered keeps it until somebody logs in; so does one
    that has resumed on a node that did not know the account yet.
    """
    holders: dict[str, Present] = {}
    for each in history.present:
        name = each.name.casefold()
        is_early = (name, each.client) in history.early_holders
        if name in history.accounts and each.account != name and not is_early:
            yield f"client {each.client} is called {each.name}, which is registered"
        if each.account and holders.setdefault(each.account, each) is not each:
            other = holders[each.account].client
            yield f"clients {other} and {each.client} are both logged in to {each.account}"


def numbers_are_unique(history: NodesHistory) -> Iterator[str]:
    """No two clients have one number, whichever nodes they are connected to."""
    whose: dict[int, int] = {}
    for talking in history.talkings:
        person = talking.visit.plan.number
        if talking.client and whose.setdefault(talking.client, person) != person:
            yield f"c{person} and c{whose[talking.client]} are both client {talking.client}"


def sessions_hold(history: NodesHistory) -> Iterator[str]:
    """A token resumes the session of its client, until that has quit, and no other.

    A session for which nothing was accepted before may not have been stored.
    """
    issued: dict[str, int] = {}
    ended: set[int] = set()
    trusted: dict[int, float] = {}  # since when
    for talking in history.talkings:
        if (welcome := talking.welcome) is None:
            continue
        token = history.talks[id(talking.visit)].hello.get("session", "")
        if welcome["resumed"] and issued.get(token) not in (None, welcome["client"]):
            yield f"{talking.visit} resumed {welcome['client']} with the token of {issued[token]}"
        known = issued.get(token)
        came_at = history.came_at[id(talking.visit)]
        is_stored = trusted.get(known or 0, inf) < came_at
        if not welcome["resumed"] and is_stored and known not in ended:
            yield f"{talking.visit} was not let back as {known}"
        issued[welcome["session"]] = welcome["client"]
        for id_ in talking.accepted.values():
            if (place := history.numbers.get(id_)) is not None:
                at = history.rooms[place[0]][place[1]].seconds
                trusted[talking.client] = min(at, trusted.get(talking.client, inf))
        if "kicked" in talking.goodbye or "asked to leave" in talking.goodbye:
            ended.add(talking.client)


def everything_arrives(history: NodesHistory) -> Iterator[str]:
    """When everything is quiet, the last connection of each client has got all of its rooms."""
    last = {visit.plan.number: visit for visit in history.visits}
    there = {id(each.visit) for each in history.present}
    for talking in history.talkings:
        visit = talking.visit
        is_last = last[visit.plan.number] is visit
        if id(visit) in there and is_last and talking.welcome is not None:
            yield from talking.lacks()
            for request in talking.unanswered:
                yield f"{talking.visit} got no answer to {request.fields}"


def names_are_unique(history: NodesHistory) -> Iterator[str]:
    """When everything is quiet, no two clients have names that are the same or look alike."""
    names: dict[str, Present] = {}
    for each in history.present:
        other = names.setdefault(_fold(each.name), each)
        if other is not each:
            yield f"clients {other.client} and {each.client} are called {each.name}"
    last = {visit.plan.number: visit for visit in history.visits}  # the others may read nothing
    for talking in history.talkings:
        for each in history.present:
            if last[each.visit.plan.number] is not each.visit:
                continue
            if each.visit is talking.visit and talking.name not in ("", each.name):
                yield f"{each.visit} is called {each.name}, and was told {talking.name}"


def presence_is_true(history: NodesHistory) -> Iterator[str]:
    """When everything is quiet, `who` lists exactly the members on all nodes: no ghosts."""
    there: dict[str, dict[int, str]] = {}
    for each in history.present:
        for room in each.rooms:
            there.setdefault(room, {})[each.client] = each.name
    for talking in history.talkings:
        if not any(each.visit is talking.visit for each in history.present):
            continue
        for room, listed in talking.listed.items():
            if room in talking.open and listed != there.get(room, {}):
                yield f"{talking.visit} was told that {listed} are in {room}: {there.get(room)}"


def one_connection_each(history: NodesHistory) -> Iterator[str]:
    """When everything is quiet, each client is connected to one node only."""
    for client, count in Counter(each.client for each in history.present).items():
        if count > 1:
            yield f"client {client} is connected {count} times"


def nothing_crashes(history: NodesHistory) -> Iterator[str]:
    """No unexpected exception is logged or raised, and the engine finds nothing wrong."""
    if history.crash:
        yield history.crash
    yield from history.problems
    for _, node, text in history.log:
        if "crashed" in text:
            yield f"node {node}: {text}"


def nothing_left_behind(history: NodesHistory) -> Iterator[str]:
    """At the end no task, member, room or connection is left."""
    for what in history.left_behind:
        yield f"{what} left"


def ends_in_time(history: NodesHistory) -> Iterator[str]:
    """The run ends by itself."""
    if not history.ended_in_time and not history.crash:
        yield f"it was not over, and given up after {history.seconds:.2f} virtual seconds"


NODES_INVARIANTS: tuple[Check, ...] = (
    nothing_crashes,
    stored_once,
    nothing_missed_nor_twice,
    everything_arrives,
    ids_are_in_order,
    unknown_ids_are_told,
    accepted_is_stored,
    only_the_replaced_are_fenced,
    refused_is_not_stored,
    fates_are_decided_once,
    no_echo,
    only_members_hear,
    storage_fails_only_without_engine,
    sender_order,
    private_messages_come_once,
    bans_and_topics_are_the_same_everywhere,
    registered_names_have_one_holder,
    numbers_are_unique,
    sessions_hold,
    names_are_unique,
    presence_is_true,
    one_connection_each,
    nothing_left_behind,
    ends_in_time,
)


def nodes_violations(history: NodesHistory) -> list[Violation]:
    """Return the violations in *history*, at most a few of each kind."""
    history.finish()
    found = [
        Violation(check.__name__, what)
        for check in NODES_INVARIANTS
        for what in islice(check(history), _MOST_TOLD)
    ]
    return [*dict.fromkeys(found)]
