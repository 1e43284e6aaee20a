"""Runs many schedules, or replays one.

    python -m tests.simulation --seeds 500            seeds 0 to 499, in as many processes as cores
    python -m tests.simulation --seeds 500 --start N  from N on
    python -m tests.simulation --seed N               one, with its log

There are these kinds of schedules: clients in `one` room each, clients in `several`, with accounts
(`rooms`), and several `nodes` on one engine (`nodes`).  In `owners`, otherwise like `several`, and
`node-owners`, otherwise like `nodes`, operators add accounts with the names of clients, and their
owners log in.  Without nodes, they run with two backends: the `local` one, and one that decides
late (`slow_backend`).  So that a run takes minutes, every second seed runs with the slow backend,
every fourth with several nodes, and every eighth in which owners log in.  `--kind KIND` or
`--backend BACKEND` runs these only, and all seeds; so does `--seed`, which means the first by
default.

Each schedule that violates an invariant is printed with the command that replays it, and repeated.
The exit status is 1 if any schedule also fails the second time.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple

from .nodes.plan import NodesPlan, make_nodes_plan, make_owners_nodes_plan
from .nodes.world import NodesOutcome, simulate_nodes
from .plan import Plan, make_plan, with_slow_backend
from .rooms.plan import make_owners_plan, make_rooms_plan
from .rooms.world import simulate_rooms
from .world import Outcome, simulate

# CPU time, so that a busy machine causes no failure; most runs take a tenth of a second.
_RUN_SECONDS = 120

# The number of seeds that a process takes at a time, and between two reports of progress.
_CHUNK = 4
_PROGRESS_SECONDS = 10.0


# How to make a plan of each kind, and how to run it.
_KINDS: dict[str, tuple[Callable[[int], Plan], Callable[[Plan], Outcome]]] = {
    "one": (make_plan, simulate),
    "several": (make_rooms_plan, simulate_rooms),
    "owners": (make_owners_plan, simulate_rooms),
}

# The same with several nodes, which `simulate_nodes` runs.
_NODES_KINDS: dict[str, Callable[[int], NodesPlan]] = {
    "nodes": make_nodes_plan,
    "node-owners": make_owners_nodes_plan,
}

_BACKENDS: dict[str, Callable[[Plan], Plan]] = {
    "local": lambda plan: plan,
    "slow": with_slow_backend,
}


# Of how many seeds one runs, because of what it costs.
_EVERY = {"local": 1, "slow": 2, "nodes": 4, "owners": 8, "node-owners": 8}


class Variant(NamedTuple):
    """A kind of schedules with a backend; several nodes always have a slow one."""

    kind: str = "one"
    backend: str = "local"

    @property
    def options(self) -> str:
        """The options that choose it, as far as they are no defaults."""
        kind = "" if self.kind == "one" else f" --kind {self.kind}"
        needed = self.backend != "local" and not self.has_nodes
        return kind + (f" --backend {self.backend}" if needed else "")

    @property
    def has_nodes(self) -> bool:
        """Whether there are several nodes."""
        return self.kind in _NODES_KINDS

    @property
    def every(self) -> int:
        """Of how many seeds one runs."""
        return max(_EVERY.get(self.kind, 1), 1 if self.has_nodes else _EVERY[self.backend])

    def make(self, seed: int) -> Plan:
        """Return the plan of *seed*, not of several nodes."""
        return _BACKENDS[self.backend](_KINDS[self.kind][0](seed))

    def run(self, plan: Plan) -> Outcome:
        """Run *plan*."""
        return _KINDS[self.kind][1](plan)


VARIANTS = [
    *(Variant(kind, backend) for kind in _KINDS for backend in _BACKENDS),
    *(Variant(kind, "slow") for kind in _NODES_KINDS),
]


@dataclass(frozen=True)
class Figures:
    """The result of one seed of a variant, small enough to pass between processes."""

    variant: Variant
    seed: int
    seconds: float
    people: int
    messages: int
    deliveries: int
    resumes: int
    kills: int
    restores: int
    evictions: int
    violations: tuple[str, ...]


def _figures(variant: Variant, outcome: Outcome) -> Figures:
    history = outcome.history
    reasons = [departure.reason for departure in history.chronicle.departures.values()]
    return Figures(
        variant=variant,
        seed=history.plan.seed,
        seconds=history.seconds,
        people=len(history.visits),
        messages=history.messages,
        deliveries=sum(len(visit.heard_said) for visit in history.visits),
        resumes=len(history.chronicle.resumed),
        kills=len({kill.seconds for each in history.branches for kill in each.kills}),
        restores=len(history.lost),
        evictions=sum(reason in ("too slow", "too far behind") for reason in reasons),
        violations=tuple(map(str, outcome.violations)),
    )


def _nodes_figures(variant: Variant, outcome: NodesOutcome) -> Figures:
    history = outcome.history
    talkings = history.talkings
    return Figures(
        variant=variant,
        seed=history.plan.seed,
        seconds=history.seconds,
        people=len(history.visits),
        messages=sum(map(len, history.rooms.values())),
        deliveries=sum(talking.heard for talking in talkings),
        resumes=sum(bool(each.welcome and each.welcome["resumed"]) for each in talkings),
        kills=len(history.plan.kills),
        restores=0,
        evictions=0,
        violations=tuple(map(str, outcome.violations)),
    )


def _run_seed(variant: Variant, seed: int) -> Figures:
    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {_RUN_SECONDS} s of work")

    signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, _RUN_SECONDS)
    try:
        if variant.has_nodes:
            return _nodes_figures(variant, simulate_nodes(_NODES_KINDS[variant.kind](seed)))
        return _figures(variant, variant.run(variant.make(seed)))
    except Exception as error:  # noqa: BLE001 - a seed that we cannot judge has failed
        return Figures(variant, seed, 0, 0, 0, 0, 0, 0, 0, 0, (f"ends_in_time: {error!r}",))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _run_seeds(
    seeds: range, jobs: int, variants: Sequence[Variant], *, every: bool
) -> Iterator[Figures]:
    pairs = [
        (variant, seed)
        for seed in seeds
        for variant in variants
        if every or seed % variant.every == 0
    ]
    each, of_seed = [variant for variant, _ in pairs], [seed for _, seed in pairs]
    if jobs == 1:
        yield from map(_run_seed, each, of_seed)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_run_seed, each, of_seed, chunksize=_CHUNK)


def _tell(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _tell_failure(figures: Figures) -> None:
    for violation in figures.violations:
        _tell(f"seed {figures.seed}: {violation}")
    options = figures.variant.options
    _tell(f"replay it: python -m tests.simulation --seed {figures.seed}{options}")


def _summary(all_figures: list[Figures], seconds: float) -> str:
    failed = sum(bool(each.violations) for each in all_figures)
    return (
        f"{len(all_figures)} schedules, {sum(each.seconds for each in all_figures) / 60:.0f} "
        f"virtual minutes, {sum(each.people for each in all_figures)} clients, "
        f"{sum(each.messages for each in all_figures)} messages, "
        f"{sum(each.deliveries for each in all_figures)} deliveries, "
        f"{sum(each.resumes for each in all_figures)} resumes, "
        f"{sum(each.kills for each in all_figures)} kills, "
        f"{sum(each.restores for each in all_figures)} restores, "
        f"{sum(each.evictions for each in all_figures)} evictions, "
        f"{failed} with violations; {seconds:.1f} s"
    )


def run_many(
    seeds: range, jobs: int, variants: Sequence[Variant] = (Variant(),), *, every: bool = True
) -> int:
    """Run *seeds* of these *variants*, *every* one or as many as `Variant.every` says.

    Return the exit status.
    """
    failed = False
    started = told_at = time.perf_counter()
    done: list[Figures] = []
    for figures in _run_seeds(seeds, jobs, variants, every=every):
        done.append(figures)
        if figures.violations:
            _tell_failure(figures)
            if _run_seed(figures.variant, figures.seed).violations:
                failed = True
            else:
                _tell(f"seed {figures.seed}: no violation the second time: see why they differ")
        now = time.perf_counter()
        if now - told_at > _PROGRESS_SECONDS:
            told_at = now
            _tell(f"… {_summary(done, now - started)}")
    _tell(_summary(done, time.perf_counter() - started))
    return int(failed)


def replay(seed: int, variant: Variant) -> int:
    """Run one *seed* and print its log and result; return the exit status."""
    if variant.has_nodes:
        return _replay_nodes(seed, variant)
    plan = variant.make(seed)
    _tell(plan.config)
    _tell(f"rooms {', '.join(plan.rooms)}; {plan.server_ending.name}; eager: {plan.eager}")
    outcome = variant.run(plan)
    if plan.link is not None:
        _tell(plan.link)
    _tell(f"{plan.journal.name}, {plan.faults}, killed at {plan.kills}, restores {plan.restores}")
    for history in outcome.history.branches:
        _tell("--- undone by a restore:" if history is not outcome.history else "---")
        for visit in history.visits:
            each = visit.plan
            _tell(f"{visit}: {each.reading.name}, {each.ending.name}, {each.actions} actions")
        for position, entry in enumerate(history.log):
            _tell(f"{position:5} {entry.seconds:9.4f} {entry.text}")
    _tell(f"digest {outcome.digest}")
    if outcome.violations:
        _tell_failure(_figures(variant, outcome))
    return int(bool(outcome.violations))


def _replay_nodes(seed: int, variant: Variant) -> int:
    plan = _NODES_KINDS[variant.kind](seed)
    _tell(plan.config)
    for number, link in enumerate(plan.links):
        _tell(f"node {number}: {link}")
    _tell(f"rooms {', '.join(plan.rooms)}; killed at {plan.kills}, frozen at {plan.freezes}")
    outcome = simulate_nodes(plan)
    history = outcome.history
    for visit in history.visits:
        node = history.nodes_of[id(visit)]
        _tell(f"{visit}: node {node}, {visit.plan.reading.name}, {visit.plan.ending.name}")
    for seconds, node, text in history.log:
        _tell(f"{seconds:9.4f} {node} {text}")
    _tell(f"digest {outcome.digest}")
    if outcome.violations:
        _tell_failure(_nodes_figures(variant, outcome))
    return int(bool(outcome.violations))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=500, help="how many schedules")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay this one alone, with its log")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument(
        "--kind", choices=[*_KINDS, *_NODES_KINDS], help="this kind of schedules only"
    )
    parser.add_argument("--backend", choices=[*_BACKENDS], help="this backend only")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed, Variant(options.kind or "one", options.backend or "local"))
    seeds = range(options.start, options.start + options.seeds)
    variants = [
        each
        for each in VARIANTS
        if options.kind in (None, each.kind) and options.backend in (None, each.backend)
    ]
    chosen = options.kind or options.backend
    return run_many(seeds, options.jobs, variants, every=bool(chosen))


if __name__ == "__main__":
    sys.exit(main())
