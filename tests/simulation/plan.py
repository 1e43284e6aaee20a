"""The plan of a run, generated from its seed: settings, people and faults.

Plans are values without streams or clocks.  Two plans of one seed are equal, and a test may change
a part of one (`dataclasses.replace`).
"""

import enum
import math
from dataclasses import dataclass, replace
from random import Random

import msgspec
import trio

from multichat import ServerConfig, Slow
from multichat.server.config import Message, ReplayLimits

from .journal import Faults
from .link import LinkFaults
from .returning import Return, make_returns

__all__ = [
    "AWAY_SECONDS",
    "HUSH",
    "SHOUT",
    "SHOUTED",
    "SLEEPY",
    "Ending",
    "GivenAccount",
    "JournalKind",
    "PersonPlan",
    "Plan",
    "Reading",
    "ServerEnding",
    "make_plan",
    "with_slow_backend",
]

# Marks in a message to which the filters of a run react.
HUSH, SHOUT, SLEEPY = "(hush)", "(shout)", "(sleepy)"
SHOUTED = "(SHOUTED)"

_FILTER_SECONDS = 0.2

# Without an engine for this long, a server refuses messages; see docs/cluster.md.
AWAY_SECONDS = 3.0


class Reading(enum.Enum):
    """How a client reads."""

    ATTENTIVE = "at once, always"
    TRICKLING = "a few bytes at a time, with pauses"
    STALLING = "at once, but for one long pause"
    DEAF = "never"


class Ending(enum.Enum):
    """How a client leaves after its last action."""

    STAYS = "half-closes when the run is over"
    HALF_CLOSES = "half-closes"
    QUITS = "asks to leave"
    RESETS = "resets the connection"
    RESETS_IN_MID_LINE = "resets it in the middle of a line"
    CLOSES = "closes without reading the rest"


class ServerEnding(enum.Enum):
    """How the server ends."""

    OUTLIVES = "everybody leaves before it"
    SHUTS_DOWN = "it is shut down while they talk"
    IS_CANCELLED = "its tasks are cancelled while they talk"


class JournalKind(enum.Enum):
    """The kind of journal."""

    MEMORY = "memory"
    SMALL = "memory, and little of it"
    SLOW = "a disk that takes its time"
    FULL = "a disk that is full for a while"
    TORN = "a slow disk, and the server is killed and started again on what is there"


@dataclass(frozen=True, kw_only=True)
class PersonPlan:
    """One client: when it connects, how it reads, what it does and how it leaves.

    *returns* are its later connections, if the server is running.
    """

    number: int
    arrives_seconds: float
    speaks_json: bool
    reading: Reading
    reads_bytes: int
    pauses_seconds: float
    stalls_after_seconds: float
    stalls_seconds: float
    actions: int
    talkativeness_seconds: float  # the approximate pause between two actions
    inclinations: tuple[tuple[str, int], ...]  # actions of `clients` and their weights
    types_slowly: bool  # its lines arrive in pieces
    ignores_eof: bool  # continues to send after the server's goodbye
    ending: Ending
    to_server_bytes: int
    to_client_bytes: int
    returns: tuple[Return, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GivenAccount:
    """An account that the operator of *node* adds; a client with its *name* keeps that for now.

    Its owner, who knows the *passphrase*, takes the name from that client by logging in.
    """

    seconds: float
    name: str
    passphrase: str
    node: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run."""

    seed: int
    config: ServerConfig
    people: tuple[PersonPlan, ...]
    rooms: tuple[str, ...]
    seconds: float  # after which all remaining clients leave
    server_ending: ServerEnding
    server_ends_seconds: float
    kicks: tuple[tuple[float, int], ...]  # times, and numbers of clients that may be connected
    announcements: tuple[float, ...]  # times of notices from the server
    eager: bool  # bytes are written directly to the connection, as to a socket
    full_disk: bool  # under the log
    journal: JournalKind
    faults: Faults
    kills: tuple[float, ...]  # when the server is killed, in order
    restores: tuple[tuple[float, int], ...]  # times of backups, and the kill after which to restore
    session_seconds: float  # the lifetime of sessions of disconnected clients
    hash_seconds: float = 0.0  # the longest time that hashing a passphrase takes
    link: LinkFaults | None = None  # to an engine; without one, the backend is the local one
    given: tuple[GivenAccount, ...] = ()

    @property
    def link_seconds(self) -> float:
        """The longest time that a call and its answer take while the link is up."""
        link = self.link
        return 0.0 if link is None else link.up_seconds + link.down_seconds

    @property
    def away(self) -> tuple[tuple[float, float], ...]:
        """When the engine was away for so long that new messages may have been refused."""
        cuts = () if self.link is None else self.link.cuts
        return tuple((start, start + time) for start, time in cuts if time >= AWAY_SECONDS)

    @property
    def patient_seconds(self) -> float:
        """The time after which a run must have ended: the sum of all slow clients and limits."""
        each = self.config.slow_timeout_seconds + self.config.filter_seconds + 1
        slow = 10 * (self.faults.slow_seconds + self.link_seconds) * len(self.people)
        return 1200 + slow + self.seconds + len(self.people) * each + self.config.grace_seconds


# --- The server -----------------------------------------------------------------------------------


async def _sleepy_filter(message: Message) -> Message | None:
    """React to the marks in *message*, to some of them after a delay."""
    if SLEEPY in message.text:
        await trio.sleep(_FILTER_SECONDS * 0.4 * (1 + len(message.text) % 5))
    if HUSH in message.text:
        return None
    if SHOUT in message.text:
        return msgspec.structs.replace(message, text=message.text.replace(SHOUT, SHOUTED))
    return message


def _make_config(rng: Random, people: int) -> ServerConfig:
    return ServerConfig(
        slow=rng.choice([Slow.WAIT, Slow.WAIT, Slow.DROP, Slow.DISCONNECT]),
        send_queue_batches=rng.choice([1, 1, 2, 3, 8, 64]),
        slow_timeout_seconds=rng.choice([0.0, 0.3, 1.0, 2.0, 3.0]),
        grace_seconds=rng.choice([0.0, 0.5, 2.0, 5.0]),
        announce=rng.random() < 0.4,
        max_line_bytes=rng.choice([80, 300, 2000, 64 * 1024]),
        max_clients=people - rng.randint(1, people // 2) if _one_in(rng, 8) else 1024,
        max_rooms=2 if _one_in(rng, 8) else 1024,
        rate=rng.choice([5.0, 50.0, 1000.0]) if _one_in(rng, 4) else None,
        burst=rng.choice([1, 10, 500]),
        byte_rate=rng.choice([2e3, 2e4, 1e6]) if _one_in(rng, 5) else None,
        memory_bytes=rng.choice([500, 5_000, 50_000]) if _one_in(rng, 6) else 2**30,
        idle_seconds=rng.choice([1.0, 10.0]) if _one_in(rng, 8) else None,
        filters=(_sleepy_filter,) if _one_in(rng, 4) else (),
        filter_seconds=_FILTER_SECONDS,
    )


def _one_in(rng: Random, count: int) -> bool:
    return rng.random() < 1 / count


# --- People ---------------------------------------------------------------------------------------

_INCLINATIONS: dict[str, tuple[tuple[str, int], ...]] = {
    "talker": (("say", 8), ("paste", 1), ("act", 1)),
    "chatterbox": (("say", 4), ("paste", 3), ("flood", 1), ("ping", 1)),
    "flooder": (("flood", 1),),
    "wanderer": (("say", 3), ("join", 4), ("who", 1), ("rooms", 1), ("history", 1)),
    "impostor": (("say", 2), ("rename", 4), ("forge", 2)),
    "whisperer": (("whisper", 5), ("say", 1)),
    "curious": (("who", 3), ("help", 3), ("ping", 3), ("rooms", 1), ("history", 3)),
    "vandal": (("noise", 3), ("overlong", 3), ("say", 2), ("nonsense", 2)),
    "listener": (("ping", 1),),
}
_CHARACTERS = [*_INCLINATIONS]
_WEIGHTS = [6, 4, 1, 3, 2, 2, 1, 2, 4]


def _make_person(rng: Random, number: int, *, crowd: bool, seconds: float) -> PersonPlan:
    character = rng.choices(_CHARACTERS, _WEIGHTS)[0]
    readings, endings = list(Reading), list(Ending)
    most = 3 if crowd else 8
    return PersonPlan(
        number=number,
        arrives_seconds=_arrival(rng, crowd=crowd, seconds=seconds),
        speaks_json=rng.random() < 0.4,
        reading=rng.choices(readings, [90, 4, 4, 2] if crowd else [60, 15, 15, 10])[0],
        reads_bytes=rng.choice([16, 100, 1000]),
        pauses_seconds=rng.choice([0.02, 0.1, 0.5]),
        stalls_after_seconds=rng.uniform(0, seconds / 2),
        stalls_seconds=rng.choice([0.2, 1.0, 4.0, 20.0]),
        actions=rng.randint(0, most),
        talkativeness_seconds=rng.choice([0.0, 0.1, seconds / most]),
        inclinations=_INCLINATIONS[character],
        types_slowly=_one_in(rng, 10),
        ignores_eof=_one_in(rng, 10),
        ending=rng.choices(endings, [6, 3, 2, 1, 1, 1])[0],
        # Small pipes in a crowd would dominate the cost of a run.
        to_server_bytes=rng.choice([4000 if crowd else 64, 1000, 64 * 1024]),
        to_client_bytes=rng.choice(
            [4000 if crowd else 64, 4000 if crowd else 1000, 4000, 64 * 1024]
        ),
    )


def _arrival(rng: Random, *, crowd: bool, seconds: float) -> float:
    if crowd:  # in storms
        return rng.choice([0.0, 0.0, seconds / 3]) + rng.random()
    return rng.choice([0.0, 0.0, rng.uniform(0, seconds)])


# --- The run --------------------------------------------------------------------------------------

_ROOMS = ("lobby", "den", "attic", "cellar")


def make_plan(seed: int) -> Plan:
    """Generate a plan from its *seed*."""
    rng = Random(f"multichat {seed}")
    smallest, largest = rng.choices([(2, 8), (9, 30), (31, 80), (150, 300)], [60, 34, 5, 1])[0]
    count = rng.randint(smallest, largest)
    crowd = count > 30
    seconds = rng.uniform(3, 90)
    rooms = _ROOMS[: rng.choice([1, 2, 4])]
    ending = rng.choices(list(ServerEnding), [5, 4, 2])[0]
    people = [
        _make_person(rng, number, crowd=crowd, seconds=seconds) for number in range(1, count + 1)
    ]
    plan = Plan(
        seed=seed,
        config=_make_config(rng, count),
        people=tuple(people),
        rooms=rooms,
        seconds=seconds,
        server_ending=ending,
        server_ends_seconds=_some_time(rng, seconds),
        kicks=tuple(
            (_some_time(rng, seconds), rng.randint(1, count)) for _ in range(rng.choice([0, 0, 3]))
        ),
        # A notice to several rooms has no single place in the order, and the log names no room.
        announcements=tuple(
            _some_time(rng, seconds) for _ in range(rng.choice([0, 4]) if len(rooms) == 1 else 0)
        ),
        eager=rng.random() < 0.6,
        full_disk=_one_in(rng, 10),
        journal=JournalKind.MEMORY,
        faults=Faults(),
        kills=(),
        restores=(),
        session_seconds=24 * 3600.0,
    )
    plan = _with_journal(plan, Random(f"multichat journal {seed}"), crowd=crowd)
    plan = _with_replays(plan, Random(f"multichat replays {seed}"))
    plan = _with_damage(plan, Random(f"multichat damage {seed}"))
    return _with_restores(plan, Random(f"multichat restores {seed}"))


def _with_restores(plan: Plan, rng: Random) -> Plan:
    """Restore a backup after some of the kills."""
    restores = [
        (max(0.0, seconds - rng.choice([0.1, 1.0, 5.0, 90.0]) * rng.random()), number)
        for number, seconds in enumerate(plan.kills)
        if _one_in(rng, 2)
    ]
    if not restores:
        return plan
    people = (
        _all_along(rng, each, plan.seconds) if each.returns and len(plan.people) <= 30 else each
        for each in plan.people
    )
    return replace(plan, restores=tuple(restores), people=tuple(people))


def _all_along(rng: Random, person: PersonPlan, seconds: float) -> PersonPlan:
    """Let *person* talk and reconnect during the whole run, and repeat some accepted messages."""
    returns = [*person.returns, *make_returns(rng, most=4)]
    return replace(
        person,
        talkativeness_seconds=seconds / 10,
        returns=tuple(
            replace(each, repeats_accepted=True, actions=rng.randint(2, 8)) for each in returns
        ),
    )


def _with_damage(plan: Plan, rng: Random) -> Plan:
    """Damage some of the stored data."""
    share = rng.choice([0.02, 0.2]) if _one_in(rng, 4) else 0.0
    return replace(plan, faults=replace(plan.faults, damaged_reads=share))


def _with_journal(plan: Plan, rng: Random, *, crowd: bool) -> Plan:
    """Add a journal to *plan*, and people who reconnect."""
    kind = rng.choices(list(JournalKind), [2, 2, 2, 2, 3])[0]
    seconds = plan.seconds
    full: list[tuple[float, float]] = []
    if kind is JournalKind.FULL:
        full = [
            (start, start + rng.choice([0.05, 1.0, 10.0]))
            for start in (_some_time(rng, seconds) for _ in range(rng.randint(1, 3)))
        ]
    slow = kind in (JournalKind.SLOW, JournalKind.FULL, JournalKind.TORN)
    ends = seconds
    if plan.server_ending is not ServerEnding.OUTLIVES:
        ends = plan.server_ends_seconds
    kills = [rng.uniform(0, ends) for _ in range(rng.randint(1, 3))]
    return replace(
        plan,
        config=replace(plan.config, away_seconds=rng.choice([0.0, 1.0, 5.0, 5.0])),
        people=tuple(
            replace(each, returns=make_returns(rng, most=1 if crowd else 5))
            # No client sends a token that it has not read, or that is too long for its line.
            if each.speaks_json
            and each.reading is not Reading.DEAF
            and plan.config.max_line_bytes >= 300
            else each
            for each in plan.people
        ),
        journal=kind,
        faults=Faults(
            slow_seconds=rng.choice([0.01, 0.1, 1.0]) if slow else 0.0,
            full=tuple(full),
            refuses=rng.random() < 0.5,
            max_messages=rng.choice([3, 10, 50])
            if kind is JournalKind.SMALL or _one_in(rng, 4)
            else None,
        ),
        kills=tuple(sorted(kills)) if kind is JournalKind.TORN else (),
        session_seconds=rng.choice([3.0, 20.0]) if _one_in(rng, 5) else plan.session_seconds,
    )


def _with_replays(plan: Plan, rng: Random) -> Plan:
    """Limit the memory of rooms, and the size of replays, to small values."""
    limits = ReplayLimits(
        queue_bytes=rng.choice([1, 300, 3000, 256 * 1024]),
        ring_bytes=rng.choice([1, 1, 2000, 1024 * 1024]),
        page_messages=rng.choice([1, 7, 500]),
    )
    stall = rng.choice([3.0, 10.0, 60.0, 300.0])
    # Everything must be logged, because the expected messages follow from the log.
    config = replace(plan.config, stall_timeout_seconds=stall, replay=limits, log_rate=None)
    announcements = plan.announcements
    if len(plan.rooms) == 1 and _one_in(rng, 3):
        announcements = tuple(_some_time(rng, plan.seconds) for _ in range(rng.choice([5, 40])))
    return replace(plan, config=config, announcements=announcements)


def _some_time(rng: Random, seconds: float) -> float:
    # Most events are near the beginning.
    return seconds * math.pow(rng.random(), 3)


# --- The link to an engine ------------------------------------------------------------------------


def with_slow_backend(plan: Plan) -> Plan:
    """Return *plan* with a backend that decides late; see `slow_backend`."""
    rng = Random(f"multichat link {plan.seed}")
    slow = rng.choice([0.0, 0.001, 0.01, 0.1, 0.5])
    cuts = [
        (rng.uniform(0, plan.seconds), rng.choice([0.0, 0.1, 1.0, 2.9, 3.1, 8.0]))
        for _ in range(rng.choice([0, 0, 1, 3, 6]))
    ]
    link = LinkFaults(
        up_seconds=slow,
        down_seconds=rng.choice([0.0, slow]),
        push_seconds=rng.choice([0.0, slow, 3 * slow]),
        bursts=rng.choice([0.0, 0.0, 0.1]),
        burst_seconds=rng.choice([0.1, 1.0]),
        cuts=tuple(sorted(cuts)),
    )
    return replace(plan, link=link)
