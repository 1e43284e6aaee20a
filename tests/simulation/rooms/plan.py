"""The plan of a run with several rooms and accounts, generated from its seed; see `..plan`."""

import enum
import math
from dataclasses import dataclass, replace
from random import Random

from multichat import ServerConfig, Slow
from multichat.server.config import AccountLimits, ReplayLimits
from tests.simulation.journal import Faults
from tests.simulation.plan import (
    Ending,
    GivenAccount,
    JournalKind,
    PersonPlan,
    Plan,
    Reading,
    ServerEnding,
)
from tests.simulation.returning import make_returns

__all__ = [
    "CHEAP",
    "NAMES",
    "PASSPHRASE",
    "Guest",
    "Speaks",
    "about_accounts",
    "give_accounts",
    "make_owners_plan",
    "make_rooms_plan",
    "with_owners",
]

_ROOMS = ("lobby", "den", "attic", "cellar", "shed")

# What clients call themselves; and a word that is in every passphrase, and nowhere else.
NAMES = ("ann", "Ann", "bob", "b0b", "cem", "cern", "éva")
PASSPHRASE = "sesame"

# Cheap hashes: a run has hundreds of them.
CHEAP = AccountLimits(hash_kib=8, hash_passes=1, hourly=1000)


class Speaks(enum.Enum):
    """What a client knows of rooms."""

    SEVERAL = "JSON, and is in several rooms"
    ONE = "JSON, and is in one room, as older programs"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class Guest(PersonPlan):
    """One client; *speaks* says what it knows of rooms."""

    speaks: Speaks


# Actions of `clients` and their weights.
_INCLINATIONS: tuple[tuple[tuple[str, int], ...], ...] = (
    (("say", 8), ("paste", 2), ("enter", 1), ("act", 1)),
    (("say", 4), ("paste", 4), ("flood", 1), ("enter", 2)),
    (("say", 6), ("enter", 4), ("exit", 3), ("join", 1), ("who", 1), ("history", 1)),
    (("say", 3), ("enter", 1), ("login", 4), ("register", 3), ("logout", 1), ("passphrase", 1)),
    (("say", 2), ("login", 3), ("rename", 3), ("passphrase", 2), ("register", 1)),
    (("say", 4), ("reuse", 3), ("enter", 2), ("join", 1)),
    (("enter", 3), ("exit", 3), ("history", 3), ("who", 3), ("ping", 1), ("rooms", 1)),
    (("ping", 1), ("enter", 1)),
)


# What everybody does in a run about accounts: see `about_accounts`.
_ACCOUNTS = (("say", 3), ("login", 4), ("register", 3), ("logout", 2), ("passphrase", 3))


def about_accounts(plan: Plan) -> Plan:
    """Return *plan* with clients who mostly log in, and come back."""
    people = [replace(each, inclinations=_ACCOUNTS) for each in plan.people]
    return replace(plan, people=tuple(people))


# In a run about owners, half of the clients have names, and half log in to accounts.
_HOLDS = (("say", 2), ("rename", 6))
_OWNED = (("ann", "Ann"), ("bob", "b0b"), ("cem", "cern"), ("éva",))  # at most one of each
_OWNS = (("say", 2), ("login", 5), ("logout", 1), ("passphrase", 1), ("register", 1))


def give_accounts(rng: Random, seconds: float, nodes: int = 1) -> tuple[GivenAccount, ...]:
    """Return accounts that the operators of *nodes* add while clients may have their names."""
    return tuple(
        GivenAccount(
            seconds=rng.uniform(0.1, 0.6) * seconds,
            name=rng.choice(names),
            passphrase=f"{PASSPHRASE} of an operator",
            node=rng.randrange(nodes),
        )
        for names in rng.sample(_OWNED, 3)
    )


def with_owners(people: tuple[Guest, ...], seconds: float) -> tuple[Guest, ...]:
    """Return *people* of whom each second one has names, and the others log in to accounts."""
    return tuple(
        replace(
            each,
            inclinations=_HOLDS if each.number % 2 else _OWNS,
            arrives_seconds=0.0 if each.number % 2 else each.arrives_seconds,
            actions=14,
            talkativeness_seconds=seconds / 14,
        )
        for each in people
    )


def make_owners_plan(seed: int) -> Plan:
    """Generate a plan, from its *seed*, in which owners of names take them from other clients."""
    plan = make_rooms_plan(seed)
    people = [each for each in plan.people if isinstance(each, Guest)]
    return replace(
        plan,
        people=with_owners(tuple(people), plan.seconds),
        given=give_accounts(Random(f"multichat owners {seed}"), plan.seconds),
    )


def make_rooms_plan(seed: int) -> Plan:
    """Generate a plan from its *seed*."""
    rng = Random(f"multichat rooms {seed}")
    count = rng.choice([2, 3, 4, 5, 6, 8, 12])
    seconds = rng.uniform(3, 60)
    ending = rng.choices(list(ServerEnding), [5, 4, 1])[0]
    ends = _some_time(rng, seconds)
    kind = rng.choices(list(JournalKind), [2, 1, 2, 2, 4])[0]
    last = seconds if ending is ServerEnding.OUTLIVES else ends
    kills = [rng.uniform(0, last) for _ in range(rng.randint(1, 3))]
    kills = sorted(kills) if kind is JournalKind.TORN else []
    plan = Plan(
        seed=seed,
        config=_make_config(rng),
        people=tuple(_make_guest(rng, number, seconds) for number in range(1, count + 1)),
        rooms=_ROOMS[: rng.choice([2, 3, 5])],
        seconds=seconds,
        server_ending=ending,
        server_ends_seconds=ends,
        kicks=tuple(
            (_some_time(rng, seconds), rng.randint(1, count)) for _ in range(rng.choice([0, 0, 2]))
        ),
        announcements=(),  # a notice has no place in the order of several rooms
        eager=rng.random() < 0.6,
        full_disk=False,
        journal=kind,
        faults=_make_faults(rng, kind, seconds),
        kills=tuple(kills),
        restores=tuple(
            (max(0.0, at - rng.choice([0.1, 1.0, 5.0, 30.0]) * rng.random()), number)
            for number, at in enumerate(kills)
            if rng.random() < 0.4
        ),
        session_seconds=rng.choice([3.0, 20.0]) if rng.random() < 0.15 else 24 * 3600.0,
        hash_seconds=rng.choice([0.0, 0.03, 0.5, 2.0]),
    )
    if plan.restores:  # they stay until after the restore
        people = [replace(each, talkativeness_seconds=seconds / 10) for each in plan.people]
        plan = replace(plan, people=tuple(people))
    return plan


def _make_faults(rng: Random, kind: JournalKind, seconds: float) -> Faults:
    full: list[tuple[float, float]] = []
    if kind is JournalKind.FULL:
        starts = [_some_time(rng, seconds) for _ in range(rng.randint(1, 2))]
        full = [(start, start + rng.choice([0.05, 1.0, 10.0])) for start in starts]
    is_slow = kind in (JournalKind.SLOW, JournalKind.FULL, JournalKind.TORN)
    limited = kind is JournalKind.SMALL or rng.random() < 0.2
    return Faults(
        slow_seconds=rng.choice([0.01, 0.1, 1.0]) if is_slow else 0.0,
        full=tuple(full),
        refuses=rng.random() < 0.5,
        max_messages=rng.choice([3, 10, 50]) if limited else None,
    )


def _make_config(rng: Random) -> ServerConfig:
    return ServerConfig(
        slow=rng.choice([Slow.WAIT, Slow.WAIT, Slow.WAIT, Slow.DROP, Slow.DISCONNECT]),
        send_queue_batches=rng.choice([1, 2, 8, 64]),
        slow_timeout_seconds=rng.choice([0.0, 0.3, 2.0]),
        stall_timeout_seconds=rng.choice([3.0, 60.0, 300.0]),
        grace_seconds=rng.choice([0.0, 0.5, 5.0]),
        max_rooms=rng.choice([2, 3]) if rng.random() < 0.15 else 1024,
        max_rooms_per_client=rng.choice([1, 2, 3, 32, 32]),
        rate=50.0 if rng.random() < 0.1 else None,
        away_seconds=rng.choice([0.0, 1.0, 5.0]),
        accounts=CHEAP,
        log_rate=None,  # everything must be logged: what is expected follows from the log
        replay=ReplayLimits(
            queue_bytes=rng.choice([1, 300, 256 * 1024]),
            ring_bytes=rng.choice([1, 2000, 1024 * 1024]),
            page_messages=rng.choice([1, 7, 500]),
        ),
    )


def _make_guest(rng: Random, number: int, seconds: float) -> Guest:
    speaks = rng.choices(list(Speaks), [7, 2, 1])[0]
    deaf = rng.choices(list(Reading), [70, 15, 13, 2])[0]
    returns = make_returns(rng, most=5)
    return Guest(
        number=number,
        arrives_seconds=rng.choice([0.0, rng.uniform(0, seconds * 0.6)]),
        speaks_json=speaks is not Speaks.TEXT,
        speaks=speaks,
        reading=deaf,
        reads_bytes=rng.choice([16, 100, 1000]),
        pauses_seconds=rng.choice([0.02, 0.1, 0.5]),
        stalls_after_seconds=rng.uniform(0, seconds / 2),
        stalls_seconds=rng.choice([0.2, 1.0, 4.0, 20.0]),
        actions=rng.randint(2, 14),
        talkativeness_seconds=rng.choice([0.0, 0.1, seconds / 14]),
        inclinations=rng.choice(_INCLINATIONS),
        types_slowly=rng.random() < 0.1,
        ignores_eof=rng.random() < 0.1,
        ending=rng.choices(list(Ending), [6, 3, 2, 1, 1, 1])[0],
        to_server_bytes=rng.choice([64, 1000, 64 * 1024]),
        to_client_bytes=rng.choice([64, 1000, 4000, 64 * 1024]),
        returns=returns if speaks is not Speaks.TEXT and deaf is not Reading.DEAF else (),
    )


def _some_time(rng: Random, seconds: float) -> float:
    return seconds * math.pow(rng.random(), 2)
