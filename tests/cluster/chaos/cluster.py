"""The processes of a run: nodes, their engine, and the load balancers in front of both.

Clients reach the nodes through `front`; each node reaches the engine through a balancer of its own
(`Node.wire`), so that faults of one connection can be caused.  Everything is ended by its own
process id, at the latest by the kernel when this process ends.
"""

import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.cluster.balancer import Balancer
from tests.cluster.engine import Engine, EngineConfig, Engines, Kind, running_engines
from tests.support.processes import ENDS_WITH_US, LOOPBACK, MULTICHAT, WAIT_SECONDS

from .operators import ACCOUNT, OPERATOR, PASSPHRASE

__all__ = ["Cluster", "Node", "Plan", "running_cluster"]


# Of a log, with a violation.
_SHOWN_LINES = 60


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run is made up.  With *sentinel* the nodes ask a Sentinel for the engine."""

    kind: Kind = Kind.VALKEY
    nodes: int = 2
    clients: int = 6
    rooms: int = 3
    seed: int = 1
    replica: bool = False
    sentinel: bool = False
    options: Sequence[str] = ()  # of each node


class Node:
    """One `multichat serve --cluster`; it keeps its port over its lives."""

    def __init__(self, number: int, folder: Path, wire: Balancer, options: Sequence[str]) -> None:
        self.name = f"node{number}"
        self.wire = wire
        self._options = options
        self._log = folder / f"{self.name}.log"
        # Bound but not listening: no other process gets the port while the node is away.
        self._kept = socket.socket()
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind((LOOPBACK, 0))
        self.port: int = self._kept.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.lives = 0

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def states(self) -> str:
        """Return the end of its log without messages."""
        lines = (e for e in self.log.splitlines() if "[RX]" not in e and "[BROADCAST]" not in e)
        return "\n".join([*lines][-_SHOWN_LINES:])

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start it; return when it listens."""
        argv = [*ENDS_WITH_US, MULTICHAT, "serve", str(self.port), "--host", LOOPBACK]
        self.lives += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*argv, *self._options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        with trio.fail_after(WAIT_SECONDS):
            while self.log.count("Listening on") < self.lives:
                if not self.is_running:
                    raise RuntimeError(f"{self.name} does not start: {self.log[-1000:]}")
                await trio.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self.signal(signal.SIGTERM)
        with trio.fail_after(WAIT_SECONDS):
            while self.is_running:
                await trio.sleep(0.02)

    def close(self) -> None:
        self.kill()
        self._kept.close()


class Cluster:
    """The running parts; `primary` is the engine in use, `replica` follows it if there is one."""

    def __init__(self, plan: Plan, folder: Path, engines: Engines, primary: Engine) -> None:
        self.plan, self.folder, self.engines = plan, folder, engines
        self.primary = primary
        self.replica: Engine | None = None
        self.sentinel: Engine | None = None
        self.front = Balancer([])
        self.nodes: list[Node] = []

    async def open(self, nursery: trio.Nursery) -> None:
        """Start the rest."""
        if self.plan.replica:
            await self.add_replica()
        if self.plan.sentinel:
            self.sentinel = await self.engines.start_sentinel(self.primary)
        for number in range(1, self.plan.nodes + 1):
            wire = Balancer([self.primary.port])
            await nursery.start(wire.run)
            url = f"valkey://{LOOPBACK}:{wire.port}"
            if self.sentinel is not None:
                url = f"valkey+sentinel://{LOOPBACK}:{self.sentinel.port}/{Engine.name}"
            options = ("--cluster", url, "--operators", OPERATOR, *self.plan.options)
            self.nodes.append(Node(number, self.folder, wire, options))
        await self._add_operator()
        async with trio.open_nursery() as starting:
            for node in self.nodes:
                starting.start_soon(node.start)
        self.front.targets = [node.port for node in self.nodes]
        await nursery.start(self.front.run)

    async def _add_operator(self) -> None:
        """Add the accounts of the operator and of the clients that compete for one."""
        secret = self.folder / "passphrase"
        secret.write_text(PASSPHRASE, "utf-8")
        for name in (OPERATOR, ACCOUNT):
            words = ("account", "add", self.primary.url, name, "--passphrase-file", str(secret))
            await trio.run_process([MULTICHAT, *words], capture_stdout=True)

    async def add_replica(self) -> Engine:
        """Start a replica of the primary."""
        config = EngineConfig(aof="always", replica_of=self.primary)
        self.replica = await self.engines.start(config)
        return self.replica

    def use(self, engine: Engine) -> None:
        """Lead the nodes to another engine; their connections are as they were."""
        self.primary = engine
        for node in self.nodes:
            node.wire.targets = [engine.port]

    async def told_by_sentinel(self) -> int:
        """Return the port of the engine that the Sentinel says is the primary."""
        assert self.sentinel is not None
        address = await self.sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", Engine.name)
        return int(address[1])

    def faults_told(self) -> list[str]:
        """Return what in the logs is never right."""
        return [
            f"{node.name} logged a traceback: …{node.log.partition('Traceback')[2][-600:]}"
            for node in self.nodes
            if "Traceback" in node.log
        ]

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@asynccontextmanager
async def running_cluster(plan: Plan, folder: Path) -> AsyncIterator[Cluster]:
    """Run a cluster in the block, with its files in *folder*."""
    with running_engines(plan.kind, folder) as engines:
        primary = await engines.start(EngineConfig(aof="always"))
        cluster = Cluster(plan, folder, engines, primary)
        async with trio.open_nursery() as nursery:
            try:
                await cluster.open(nursery)
                yield cluster
            finally:
                cluster.close()
                nursery.cancel_scope.cancel(reason="the run has ended")
