"""Nodes as processes on a real engine, under faults, with an independent checker.

The checker (`tests.kills.checker`) demands that each message is received exactly once by every
other member of its room, in one order, and that every accepted message is in the history.  Here, in
addition: all nodes list the same members, each name once, and no ghosts.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM

import pytest
import trio

from tests.kills.checker import Rooms

from .engine import Engine, EngineConfig, Kind, running_engines
from .running_nodes import NodeProcess, names_in

# A busy machine needs most of it.
_SETTLE_SECONDS = 120.0

# As `multichat serve` has it.
_LEASE_SECONDS = 10.0


class _Cluster:
    """Nodes on one engine, and clients that connect to any of them."""

    def __init__(self, engine: Engine, nodes: list[NodeProcess], seed: int) -> None:
        self.engine, self.nodes = engine, nodes
        self.dice = random.Random(f"{seed} nodes")
        first, *others = (node.port for node in nodes)
        self.rooms = Rooms(first, seed, rooms=3, rooms_each=2, others=others, patience=4.0)

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        self.rooms.start()
        self.rooms.wait_connected(_SETTLE_SECONDS)

    def talk(self, seconds: float) -> None:
        """Let the clients talk for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.rooms.over.is_set():
            time.sleep(0.05)
        self.rooms.raise_failures()

    def check(self) -> None:
        """Let all messages arrive, and check them and the lists of members on all nodes."""
        self.rooms.wait_heard(_SETTLE_SECONDS)
        self.rooms.check()
        for room in sorted({member.room for member in self.rooms.members}):
            expected = sorted(each.name for each in self.rooms.members if each.room == room)
            for node in self.nodes:
                until = time.monotonic() + 2 * _LEASE_SECONDS
                while (names := sorted(names_in(node.port, room))) != expected:
                    assert time.monotonic() < until, f"{node.name} lists in {room}: {names}"
                    time.sleep(0.2)


@contextmanager
def _cluster(
    kind: Kind, folder: Path, seed: int, *, nodes: int = 2, aof: str | None = None
) -> Iterator[_Cluster]:
    """Run a cluster under load, and check it at the end of the block."""
    with running_engines(kind, folder) as engines:
        engine = trio.run(engines.start, EngineConfig(aof=aof))
        processes = [NodeProcess(folder, str(number), engine) for number in range(nodes)]
        cluster = _Cluster(engine, processes, seed)
        try:
            cluster.start()
            yield cluster
            cluster.check()
        except BaseException as error:
            for node in processes:
                error.add_note(f"the log of node {node.name} ends with:\n{node.log[-1500:]}")
            raise
        finally:
            cluster.rooms.stop()
            for node in processes:
                node.close()


@pytest.mark.process
def test_two_nodes_are_one_chat(engine_kind: Kind, tmp_path: Path) -> None:
    with _cluster(engine_kind, tmp_path, 1) as cluster:
        cluster.talk(2)


@pytest.mark.process
def test_nodes_that_are_killed_lose_nothing_that_was_accepted(
    engine_kind: Kind, tmp_path: Path
) -> None:
    with _cluster(engine_kind, tmp_path, 2) as cluster:
        for _ in range(4):
            cluster.talk(cluster.dice.uniform(0.5, 1.5))
            node = cluster.dice.choice(cluster.nodes)
            node.kill()
            cluster.talk(cluster.dice.uniform(0.2, 1.0))
            node.start()
        cluster.talk(1)


@pytest.mark.stress
def test_a_rolling_restart_loses_nothing(engine_kind: Kind, tmp_path: Path) -> None:
    with _cluster(engine_kind, tmp_path, 3) as cluster:
        for node in cluster.nodes:
            cluster.talk(1)
            node.signal(SIGTERM)
            assert node.wait() == 0, node.log
            node.start()
        cluster.talk(1)


@pytest.mark.stress
def test_an_engine_that_is_killed_and_restarted_loses_nothing(
    engine_kind: Kind, tmp_path: Path
) -> None:
    with _cluster(engine_kind, tmp_path, 4, aof="always") as cluster:
        for pause in (0.0, 4.5, 0.5):
            cluster.talk(1.5)
            cluster.engine.kill()
            cluster.talk(pause)
            trio.run(cluster.engine.start)
        cluster.talk(2)


@pytest.mark.stress
def test_an_engine_that_is_frozen_loses_nothing(engine_kind: Kind, tmp_path: Path) -> None:
    with _cluster(engine_kind, tmp_path, 5) as cluster:
        for seconds in (1.0, 5.0):
            cluster.talk(1)
            cluster.engine.freeze()
            cluster.talk(seconds)
            cluster.engine.thaw()
        cluster.talk(1)


@pytest.mark.stress
def test_a_node_that_is_frozen_for_longer_than_its_lease_is_fenced(
    engine_kind: Kind, tmp_path: Path
) -> None:
    with _cluster(engine_kind, tmp_path, 6) as cluster:
        cluster.talk(1)
        frozen = cluster.nodes[1]
        frozen.signal(SIGSTOP)
        cluster.talk(_LEASE_SECONDS + 4)
        frozen.signal(SIGCONT)
        cluster.talk(3)
        assert "taken for dead" in frozen.log
