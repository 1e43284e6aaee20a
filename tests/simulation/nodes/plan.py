"""The plan of a run with several nodes, generated from its seed; see `..plan`.

All nodes share one engine.  Clients connect to any node and resume on any other.  Nodes are killed
and started again, or frozen for a while; links to the engine are late and cut, and the engine goes
away and comes back.
"""

from dataclasses import dataclass, replace
from random import Random

from multichat import ServerConfig, Slow
from multichat.server.config import ReplayLimits
from tests.simulation.link import LinkFaults
from tests.simulation.plan import Ending, GivenAccount, Reading
from tests.simulation.returning import LeftBehind, Return, Since, Token
from tests.simulation.rooms.plan import CHEAP, Guest, Speaks, give_accounts, with_owners

__all__ = [
    "LEASE_SECONDS",
    "Act",
    "NodesPlan",
    "make_nodes_plan",
    "make_owners_nodes_plan",
]

_ROOMS = ("lobby", "den", "attic")

# How long a node's lease lasts without being renewed, and how often it is; see docs/cluster.md.
LEASE_SECONDS = 10.0

# After the last fault: clients have come back, leases of killed nodes have ended, and all is
# replayed.
_QUIET_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Act:
    """At *seconds* the operator of *node* does this: a `topic` for a room, a `ban`, or an `unban`.

    *what* is the room, or the target of the ban.
    """

    seconds: float
    node: int
    kind: str
    what: str


@dataclass(frozen=True, kw_only=True)
class NodesPlan:
    """One run.

    *links* has the faults of each node's link, *away* when the engine is away for all nodes: that
    takes none of them for dead.  *kills* and *freezes* are times and nodes, a freeze with the
    seconds that it lasts; *acts* are what operators do.  After *seconds* nothing fails any more;
    *quiet_seconds* later the clients that are still there leave.
    """

    seed: int
    config: ServerConfig
    people: tuple[Guest, ...]
    rooms: tuple[str, ...]
    links: tuple[LinkFaults, ...]
    away: tuple[tuple[float, float], ...]
    kills: tuple[tuple[float, int], ...]
    freezes: tuple[tuple[float, int, float], ...]
    seconds: float
    quiet_seconds: float
    eager: bool
    acts: tuple[Act, ...] = ()
    given: tuple[GivenAccount, ...] = ()
    hash_seconds: float = 0.0

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.links)


# Actions of clients and their weights.
_INCLINATIONS: tuple[tuple[tuple[str, int], ...], ...] = (
    (("say", 8), ("paste", 2), ("enter", 1), ("act", 1)),
    (("say", 4), ("paste", 4), ("flood", 1), ("enter", 2)),
    (("say", 6), ("enter", 4), ("exit", 3), ("join", 1), ("who", 1), ("history", 1)),
    (("say", 3), ("rename", 4), ("who", 2), ("enter", 1)),
    (("enter", 3), ("exit", 3), ("history", 3), ("who", 3), ("ping", 1), ("rooms", 1)),
    (("ping", 1), ("enter", 1)),
    (("whisper", 6), ("say", 2), ("rename", 1)),
    (("register", 2), ("login", 4), ("logout", 1), ("rename", 3), ("say", 2), ("whisper", 1)),
)


def make_nodes_plan(seed: int) -> NodesPlan:
    """Generate a plan from its *seed*."""
    rng = Random(f"multichat nodes {seed}")
    seconds = rng.uniform(5, 60)
    count = rng.choice([2, 3, 4, 6, 9])
    nodes = rng.choice([2, 2, 3])
    severity = rng.choice([0, 1, 2, 3])
    away = _away(rng, seconds) if severity >= 2 else ()
    return NodesPlan(
        seed=seed,
        config=_make_config(rng),
        people=tuple(_make_guest(rng, number, seconds) for number in range(1, count + 1)),
        rooms=_ROOMS[: rng.choice([1, 2, 3])],
        links=tuple(_make_link(rng, seconds, away, severity) for _ in range(nodes)),
        away=away,
        kills=tuple(
            sorted(
                (rng.uniform(0, seconds), rng.randrange(nodes))
                for _ in range(rng.choice([0, 1, 3]))
            )
            if severity >= 2
            else ()
        ),
        freezes=tuple(
            sorted(
                (rng.uniform(0, seconds), rng.randrange(nodes), rng.choice([1.0, 5.0, 15.0, 30.0]))
                for _ in range(rng.choice([0, 1, 2]))
            )
            if severity >= 3
            else ()
        ),
        seconds=seconds,
        quiet_seconds=_QUIET_SECONDS,
        eager=rng.random() < 0.5,
        acts=_make_acts(rng, seconds, nodes),
    )


def make_owners_nodes_plan(seed: int) -> NodesPlan:
    """Generate a plan, from its *seed*, in which owners of names take them from other clients."""
    plan = make_nodes_plan(seed)
    return replace(
        plan,
        people=with_owners(plan.people, plan.seconds),
        given=give_accounts(Random(f"multichat owners {seed}"), plan.seconds, plan.nodes),
    )


def _make_acts(rng: Random, seconds: float, nodes: int) -> tuple[Act, ...]:
    """Generate topics for a few rooms, and bans, of which some are lifted again."""
    acts = []
    for number in range(rng.choice([0, 2, 8])):
        at, target = rng.uniform(0, seconds), f"name villain{number}"
        acts.append(
            Act(seconds=at, node=rng.randrange(nodes), kind="topic", what=rng.choice(_ROOMS))
        )
        acts.append(Act(seconds=at, node=rng.randrange(nodes), kind="ban", what=target))
        if rng.random() < 0.3:
            later = rng.uniform(at, seconds)
            acts.append(Act(seconds=later, node=rng.randrange(nodes), kind="unban", what=target))
    return tuple(sorted(acts, key=lambda act: act.seconds))


def _away(rng: Random, seconds: float) -> tuple[tuple[float, float], ...]:
    """Return when the engine is away, for all nodes at once."""
    return tuple(
        (rng.uniform(0, seconds), rng.choice([0.2, 2.0, 5.0, 12.0]))
        for _ in range(rng.choice([0, 1, 2]))
    )


def _make_link(
    rng: Random, seconds: float, away: tuple[tuple[float, float], ...], severity: int
) -> LinkFaults:
    slow = rng.choice([0.0, 0.01, 0.1, 1.0])
    own = [
        (rng.uniform(0, seconds), rng.choice([0.0, 0.1, 2.0, 6.0]))
        for _ in range(rng.choice([0, 1, 4]) if severity else 0)
    ]
    return LinkFaults(
        up_seconds=slow,
        down_seconds=rng.choice([0.0, slow]),
        push_seconds=rng.choice([0.0, slow, 2 * slow]),
        bursts=rng.choice([0.0, 0.1]),
        burst_seconds=rng.choice([0.1, 1.0]),
        cuts=tuple(sorted([*away, *own])),
    )


def _make_config(rng: Random) -> ServerConfig:
    return ServerConfig(
        slow=Slow.WAIT,
        send_queue_batches=rng.choice([1, 2, 8, 64]),
        slow_timeout_seconds=rng.choice([0.0, 0.3, 2.0]),
        stall_timeout_seconds=3000.0,
        grace_seconds=rng.choice([0.5, 5.0]),
        away_seconds=rng.choice([0.0, 1.0, 5.0]),
        accounts=CHEAP,
        log_rate=None,
        replay=ReplayLimits(
            queue_bytes=rng.choice([1, 300, 256 * 1024]),
            ring_bytes=rng.choice([1, 2000, 1024 * 1024]),
            page_messages=rng.choice([1, 7, 500]),
        ),
    )


def _make_guest(rng: Random, number: int, seconds: float) -> Guest:
    returns = tuple(_make_return(rng) for _ in range(rng.choice([0, 1, 2, 5])))
    return Guest(
        number=number,
        arrives_seconds=rng.choice([0.0, rng.uniform(0, seconds * 0.6)]),
        speaks_json=True,
        speaks=Speaks.SEVERAL,
        reading=rng.choices([Reading.ATTENTIVE, Reading.TRICKLING, Reading.STALLING], [8, 1, 1])[0],
        reads_bytes=rng.choice([100, 1000]),
        pauses_seconds=rng.choice([0.02, 0.1]),
        stalls_after_seconds=rng.uniform(0, seconds / 2),
        stalls_seconds=rng.choice([0.2, 1.0, 4.0]),
        actions=rng.randint(2, 14),
        talkativeness_seconds=rng.choice([0.0, 0.1, seconds / 14, seconds / 14]),
        inclinations=rng.choice(_INCLINATIONS),
        types_slowly=False,
        ignores_eof=False,
        ending=Ending.STAYS if rng.random() < 0.8 else Ending.QUITS,
        to_server_bytes=rng.choice([64, 1000, 64 * 1024]),
        to_client_bytes=rng.choice([64, 1000, 4000, 64 * 1024]),
        returns=returns,
    )


def _make_return(rng: Random) -> Return:
    return Return(
        left=rng.choices(list(LeftBehind), [4, 1, 2, 2, 3, 2])[0],
        pause_seconds=rng.choice([0.0, 0.05, 0.5, 2.0, 6.0]),
        token=Token.OWN,
        since=Since.LAST,
        replay=0,
        repeats_accepted=rng.random() < 0.3,
        wishes_room=False,
        actions=rng.randint(0, 6),
    )
