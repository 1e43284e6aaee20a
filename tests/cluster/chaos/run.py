"""One run: a cluster, a crowd of clients, a fault again and again, and what was found."""

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import trio

from .checker import Heard, Missed, check_room
from .client import Crowd
from .cluster import Cluster, Node, Plan, running_cluster
from .departures import check_departures
from .directs import check_directs
from .faults import Fault
from .line import Cut, probe, replay
from .operators import Office
from .watchers import Watcher

__all__ = ["Outcome", "run", "settled"]

# Generous, for a shared machine; reached only if something is wrong.
_START_SECONDS = 60.0
_SETTLE_SECONDS = 60.0  # without any progress

# By then, duplicates would have arrived.
_AFTER_SECONDS = 1.0

# In which all nodes must agree on who is there.
_AGREE_SECONDS = 15.0


@dataclass
class Outcome:
    """The result of a run."""

    fault: str
    seed: int
    violations: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        figures = ", ".join(f"{value} {name}" for name, value in self.figures.items())
        verdict = f"{len(self.violations)} VIOLATIONS" if self.violations else "ok"
        return f"{self.fault}, seed {self.seed}: {verdict}: {figures}"


async def run(name: str, fault: Fault, plan: Plan, folder: Path, *, seconds: float) -> Outcome:
    """Cause *fault* at least once, for about *seconds*; return what was found."""
    plan = replace(plan, replica=fault.replica, sentinel=fault.sentinel)
    if fault.keep_messages is not None:
        plan = replace(plan, options=("--keep-messages", str(fault.keep_messages)))
    seed = plan.seed
    outcome = Outcome(name, seed)
    started = trio.current_time()
    dice = random.Random(f"{seed} {name}")
    async with running_cluster(plan, folder) as cluster, trio.open_nursery() as nursery:
        crowd = Crowd(
            cluster.front.port,
            seed,
            plan.clients,
            plan.rooms,
            lossy=fault.lossy,
            quiet=fault.quiet,
            patient=fault.patient,
        )
        office = Office(cluster.front.port, seed)
        watchers = [Watcher(node.port, crowd.room_names) for node in cluster.nodes]
        for chatter in crowd.chatters:
            nursery.start_soon(chatter.run)
        for watcher in watchers:
            nursery.start_soon(watcher.run)
        nursery.start_soon(office.run)
        try:
            office.working = True
            with trio.fail_after(_START_SECONDS):
                while not all(each.is_watching for each in watchers):
                    await trio.sleep(0.05)
            times = await _disturb(cluster, crowd, fault, dice, seconds, outcome)
            office.working = False
            await _settle(crowd, outcome)
            for watcher in watchers:
                await watcher.leave()
            await _check(cluster, crowd, watchers, fault, outcome)
            members = {each.name: each.directs for each in crowd.chatters}
            outcome.violations += check_directs(members, lossy=fault.lossy)
            if not fault.lossy:
                outcome.violations += await office.check([node.port for node in cluster.nodes])
            outcome.figures |= office.figures()
            crowd.over = office.over = True
            nursery.cancel_scope.cancel(reason="the run has ended")
        except trio.TooSlowError:
            outcome.violations.append("a part of the run took too long")
            outcome.violations += crowd.missing()
            times = 0
            nursery.cancel_scope.cancel(reason="the run took too long")
        outcome.violations += cluster.faults_told()
        outcome.details += [f"{node.name}:\n{node.states}" for node in cluster.nodes]
    outcome.figures |= {"faults": times} | _figures(crowd, outcome)
    outcome.figures["s"] = round(trio.current_time() - started, 1)
    return outcome


async def _disturb(
    cluster: Cluster,
    crowd: Crowd,
    fault: Fault,
    dice: random.Random,
    seconds: float,
    outcome: Outcome,
) -> int:
    with trio.fail_after(_START_SECONDS):
        while not crowd.connected:
            await trio.sleep(0.05)
        crowd.talking = True
        while not crowd.each_accepted:  # from here on, sessions must be stored
            await trio.sleep(0.05)
    until, times = trio.current_time() + seconds, 0
    while not times or trio.current_time() < until:
        await trio.sleep(dice.uniform(0.3, 1.5))
        await fault.cause(cluster, dice)
        times += 1
        if fault.lossy or fault.replica:  # the next one is another fault
            await _all(crowd)
    await trio.sleep(0.5)
    return times


async def _all(crowd: Crowd) -> None:
    with trio.fail_after(_SETTLE_SECONDS):
        while not crowd.connected:
            await trio.sleep(0.05)


async def _settle(crowd: Crowd, outcome: Outcome) -> None:
    """Wait until everything has arrived; what has not is found by the check."""
    crowd.talking = False
    missing = await settled(crowd, _SETTLE_SECONDS)
    outcome.violations += [f"nothing came for {_SETTLE_SECONDS:g} s: {each}" for each in missing]
    await trio.sleep(_AFTER_SECONDS)


class _Settling(Protocol):
    """A check in which more and more is *decided*, until nothing is missing."""

    @property
    def decided(self) -> int: ...
    def missing(self) -> list[str]: ...


async def settled(what: _Settling, seconds: float) -> list[str]:
    """Wait until nothing is missing in *what*, or nothing is decided for *seconds*.

    Return what is missing then.  The whole time depends on the machine, so it has no limit.
    """
    decided, at = what.decided, trio.current_time()
    while missing := what.missing():
        if what.decided != decided:
            decided, at = what.decided, trio.current_time()
        elif trio.current_time() - at >= seconds:
            break
        await trio.sleep(0.05)
    return missing


async def _check(
    cluster: Cluster, crowd: Crowd, watchers: list[Watcher], fault: Fault, outcome: Outcome
) -> None:
    seen = [one for chatter in crowd.chatters for one in chatter.seen]
    seen += [one for watcher in watchers for one in watcher.seen]
    if fault.quiet:
        members = [each.presence for each in crowd.chatters]
        others = [at for each in watchers for at in each.ended]
        outcome.violations += check_departures(seen, members, others)
    outcome.violations += [
        f"{each.name} was disconnected: {dict(each.ends)}"
        for each in crowd.chatters
        if each.is_patient and each.ends and not fault.disconnects
    ]
    outcome.figures["left seen"] = len(seen)  # from here on, we join and leave ourselves
    lost = told_lost = 0
    for room in crowd.room_names:
        records = [each.records[room] for each in crowd.of(room)]
        histories = []
        for node in cluster.nodes:
            history = await _history(node, room)
            if isinstance(history, str):
                outcome.violations.append(f"no history of {room} on {node.name}: {history}")
            else:
                histories.append(history)
        retained = fault.keep_messages is not None
        if any(each != histories[0] for each in histories) and not retained:
            outcome.violations.append(f"{room}: the nodes have different histories")
        if histories:
            found, count = check_room(
                room, records, histories[0], lossy=fault.lossy, retained=retained
            )
            told = max(each.told_lost(room) for each in crowd.of(room))
            if told < count:
                found.append(f"{room}: {count} messages are lost, and {told} told as lost")
            outcome.violations += found
            lost += count
            told_lost += told
    outcome.figures |= {"lost": lost, "told as lost": told_lost}
    outcome.violations += [one for each in crowd.chatters for one in each.failures]
    outcome.violations += await _ghosts(cluster, crowd)


async def _history(node: Node, room: str) -> list[Heard] | str:
    """Return the history of *room* on *node*, or why there is none.

    On a busy machine an engine may just have been silent for so long that its nodes refuse clients.
    """
    why = "no answer"
    with trio.move_on_after(_AGREE_SECONDS):
        while True:
            try:
                return await replay(node.port, room)
            except (Cut, OSError) as error:
                why = str(error)
            await trio.sleep(0.2)
    return why


async def _ghosts(cluster: Cluster, crowd: Crowd) -> list[str]:
    """Compare who is there on each node with who is; it may take a moment."""
    wrong = ["nobody has answered"]
    numbers = Counter(each.client for each in crowd.chatters)
    twice = [
        f"{count} clients are number {number}" for number, count in numbers.items() if count > 1
    ]
    names = Counter(each.called for each in crowd.chatters)
    twice += [f"{count} clients are called {name}" for name, count in names.items() if count > 1]
    with trio.move_on_after(_AGREE_SECONDS):
        while wrong:
            wrong = await _differences(cluster, crowd)
            await trio.sleep(0.2)
    return twice + wrong


async def _differences(cluster: Cluster, crowd: Crowd) -> list[str]:
    rooms = crowd.room_names
    found = []
    for node in cluster.nodes:
        asked = [{"type": "who", "room": room} for room in rooms]
        try:
            answers = await probe(node.port, asked, "members")
        except (Cut, OSError) as error:
            found.append(f"{node.name} does not answer: {error}")
            continue
        for room, answer in zip(rooms, answers, strict=True):
            there = {(each["client"], each["name"]) for each in answer["members"]}
            right = {(each.client, each.called) for each in crowd.of(room)}
            if there != right:
                more, less = sorted(there - right), sorted(right - there)
                found.append(f"who of {room} on {node.name}: too many {more}, missing {less}")
    return found


def _figures(crowd: Crowd, outcome: Outcome) -> dict[str, object]:
    every = crowd.chatters
    records = [record for each in every for record in each.records.values()]
    outcome.details.append(f"notices: {Counter(n for each in every for n in each.notices)}")
    ends = Counter(end for each in every for end in each.ends.elements())
    outcome.details.append(f"connections ended: {ends}")
    return {
        "said": sum(len(record.said) for record in records),
        "delivered": sum(len(record.messages()) for record in records),
        "accepted": sum(len(record.accepted) for record in records),
        "refused": sum(len(record.refused) for record in records),
        "unsure": sum(len(record.unsure) for record in records),
        "missed": sum(e.count for r in records for e in r.heard if isinstance(e, Missed)),
        "resumes": sum(each.resumed for each in every),
        "renames": sum(each.renames for each in every),
        "new sessions": sum(each.new_sessions for each in every),
        "private": sum(len(each.directs.sent) for each in every),
        **_fates(crowd),
        "s longest absence": round(max(each.presence.longest_absence for each in every), 1),
    }


def _fates(crowd: Crowd) -> dict[str, int]:
    fates = Counter(one.fate for each in crowd.chatters for one in each.directs.sent.values())
    heard = sum(len(each.directs.heard) for each in crowd.chatters)
    return {
        "private heard": heard,
        "private refused": fates["refused"],
        "private unknown": fates["unknown"],
    }
