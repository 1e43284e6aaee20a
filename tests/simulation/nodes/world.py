"""Runs a plan with several nodes on one engine, on a mock clock; see `..world`.

Everything is in one process and one trio run.  A node that is killed ends at once, and what it had
sent to the engine may still arrive.  A node that is frozen takes nothing and sends nothing, to its
clients and to the engine, and continues when it is woken.
"""

import contextlib
import hashlib
import logging
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from unittest import mock

import trio
import trio.testing

from multichat import Server
from multichat.errors import MultichatError
from multichat.net.fair_share import NO_PAUSES
from multichat.server.bans import Ban, parse_target
from multichat.server.client import Client
from multichat.server.passphrases import is_passphrase
from tests.simulation.history import Visit
from tests.simulation.invariants import Violation
from tests.simulation.plan import Ending, GivenAccount
from tests.simulation.returning import LeftBehind, Return, Since, Token
from tests.simulation.rooms.clients import Keys, RoomsNotebook
from tests.simulation.rooms.plan import Guest
from tests.simulation.slow_backend import SlowBackend
from tests.simulation.surroundings import (
    StandstillGuard,
    VirtualHasher,
    direct_writes,
    log_to,
    numbered,
    same_schedule,
    seeded_tokens,
    time_of_day,
    watch_numbers,
)
from tests.simulation.wire import Connection, Kernel

from .checker import NodesHistory, Present, Rest, nodes_violations
from .clients import NodesClient
from .engine import SharedEngine
from .plan import Act, NodesPlan

__all__ = ["NodesOutcome", "simulate_nodes"]

# A node that was killed is started again after at most this time.
_RESTART_SECONDS = 15.0

# How long a client waits before it tries another node.
_RETRY_SECONDS = 0.5

# How long the answers to the last requests may take.
_LAST_ANSWERS_SECONDS = 20.0

# How long the remaining clients continue after the end; and how long a node may take to carry out
# what a client sent before it left, over a slow link.
_AFTERMATH_SECONDS = 2.0
_LAST_REQUESTS_SECONDS = 120.0

_node: ContextVar[int] = ContextVar("node", default=-1)


@dataclass(frozen=True)
class NodesOutcome:
    """The result of a run; two runs of one plan have the same *digest*."""

    history: NodesHistory
    violations: list[Violation]
    digest: str


def simulate_nodes(plan: NodesPlan) -> NodesOutcome:
    """Run *plan*, and return which invariants its history violates."""
    is_passphrase("", "", plan.config.accounts)  # a hash that is cached
    clock = trio.testing.MockClock(autojump_threshold=0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(same_schedule(plan.seed))
        stack.enter_context(time_of_day(clock))
        stack.enter_context(seeded_tokens(plan.seed))
        world = _World(plan)
        stack.enter_context(log_to(_Recorder(world)))
        world.visits = stack.enter_context(watch_numbers())
        stack.enter_context(
            mock.patch("multichat.net.send_queue.unsent_bytes", world.kernel.unsent_bytes)
        )
        if plan.eager:
            stack.enter_context(direct_writes(world.kernel))
        try:
            trio.run(world.run, clock=clock)
        except Exception:  # noqa: BLE001 - that is what we are here to find
            world.history.crash = traceback.format_exc()
    history = world.history
    return NodesOutcome(history, nodes_violations(history), _digest(history))


def _digest(history: NodesHistory) -> str:
    digest = hashlib.sha256()
    for visit in history.visits:
        if visit.connection is not None:
            digest.update(visit.connection.to_server.written)
            digest.update(visit.connection.to_client.written)
    for entry in history.log:
        digest.update(f"{entry}\n".encode())
    digest.update(repr(history.rooms).encode())
    return digest.hexdigest()


class _Recorder(logging.Handler):
    """Records the log of all nodes, each line with its node."""

    takes_batches = True

    def __init__(self, world: "_World") -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + "".join(traceback.format_exception(record.exc_info[1]))
        self._world.note(text)


class _Node:
    """One node: its server while it runs, and the connections to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.server: Server | None = None
        self.backend: SlowBackend | None = None
        self.sessions: trio.Nursery | None = None
        self.connections: list[Visit] = []
        self.is_frozen = False
        self.scope = trio.CancelScope()
        self.starts = 0

    @property
    def is_up(self) -> bool:
        return self.sessions is not None

    def freeze(self, *, frozen: bool) -> None:
        self.is_frozen = frozen
        if self.backend is not None:
            self.backend.link.freeze(frozen=frozen)
        for visit in self.connections:
            if visit.connection is not None:
                visit.connection.server.freeze(frozen=frozen)


class _World:
    """One run of a plan."""

    def __init__(self, plan: NodesPlan) -> None:
        self.kernel = Kernel()
        self.history = NodesHistory(plan)
        self._plan = plan
        self.visits: dict[Client, Visit] = {}
        self._engine = SharedEngine(plan, self.history)
        self._nodes = [_Node(number) for number in range(plan.nodes)]
        self._is_calm, self._is_quiet = trio.Event(), trio.Event()
        self._everybody_leaves = trio.Event()
        self._everybody_left = trio.Event()
        self._gone = 0

    def note(self, text: str) -> None:
        """Record a line of the log of the node whose task writes it."""
        self.history.log.append((trio.current_time(), _node.get(), text))

    # --- Running ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the plan and record it."""
        plan, history = self._plan, self.history
        tasks = trio.lowlevel.current_statistics().tasks_living
        patience = plan.seconds + plan.quiet_seconds + 2000
        with trio.move_on_after(patience) as timeout:
            trio.lowlevel.add_instrument(StandstillGuard(timeout))
            async with trio.open_nursery() as world:
                world.start_soon(self._engine.run)
                for node in self._nodes:
                    world.start_soon(self._run_node, node)
                for kill in plan.kills:
                    world.start_soon(self._kill, *kill)
                for freeze in plan.freezes:
                    world.start_soon(self._freeze, *freeze)
                for act in plan.acts:
                    world.start_soon(self._act, act)
                for given in plan.given:
                    world.start_soon(self._add_account, given)
                for person in plan.people:
                    world.start_soon(self._live, person)
                await self._end()
                world.cancel_scope.cancel(reason="the run is over")
        history.away = [
            (node, start, start + time)
            for node, link in enumerate(plan.links)
            for start, time in link.cuts
        ]
        history.away += [(node, start, start + time) for start, node, time in plan.freezes]
        history.ended_in_time = not timeout.cancelled_caught
        history.seconds = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        left = trio.lowlevel.current_statistics().tasks_living - tasks
        if left:
            history.left_behind.append(f"{left} tasks")
        self._engine.record()

    async def _end(self) -> None:
        """Wait until everything is quiet, note who is there, and let everybody leave."""
        plan = self._plan
        await trio.sleep_until(plan.seconds)
        self._is_calm.set()
        await trio.sleep(plan.quiet_seconds)
        self._is_quiet.set()
        await trio.sleep(_LAST_ANSWERS_SECONDS)
        self._note_present()
        self._everybody_leaves.set()
        await self._everybody_left.wait()
        with trio.move_on_after(_LAST_REQUESTS_SECONDS):
            while any(node.server is not None and node.server.members for node in self._nodes):
                await trio.sleep(_AFTERMATH_SECONDS)
        await trio.sleep(_AFTERMATH_SECONDS)
        for node in self._nodes:
            if node.server is not None:
                counts = node.server.statistics()
                for what in ("clients", "rooms", "waiting_bytes"):
                    if count := getattr(counts, what):
                        self.history.left_behind.append(f"{count} {what} of node {node.number}")
        for room in self._engine.open_rooms:
            self.history.left_behind.append(f"the room {room} in the engine")

    def _note_present(self) -> None:
        history, engine = self.history, self._engine
        history.ends, history.accounts = engine.ends(), frozenset(engine.accounts)
        history.rests["the engine"] = Rest(bans=engine.bans, topics=dict(engine.topics))
        for node in self._nodes:
            if node.server is None:
                continue
            bans = frozenset(ban.subject for ban in node.server.bans)
            topics = dict(node.server._registry.rooms._topics)
            history.rests[f"node {node.number}"] = Rest(bans=bans, topics=topics)
            for client in node.server._registry.clients:
                present = Present(
                    visit=self.visits[client],
                    client=client.number,
                    name=client.name,
                    rooms=frozenset(client.memberships),
                    account=client.account,
                )
                self.history.present.append(present)

    # --- Nodes ------------------------------------------------------------------------------------

    async def _run_node(self, node: _Node) -> None:
        """Run *node*, and start it again whenever it was killed."""
        _node.set(node.number)
        rng = Random(f"{self._plan.seed} node {node.number}")
        while True:
            node.scope = trio.CancelScope()
            node.starts += 1
            config = self._plan.config
            hasher = VirtualHasher(config.accounts, 0.0, Random(f"{self._plan.seed} hashes"))
            node.backend = self._engine.backend(node.number, node.starts)
            server = Server(config, backend=node.backend, shares=NO_PAUSES, hasher=hasher)
            with node.scope:
                async with server.open(), trio.open_nursery() as sessions:
                    node.server, node.sessions = server, sessions
                    await trio.sleep_forever()
            node.server = node.sessions = None
            await trio.sleep(rng.uniform(0, _RESTART_SECONDS))

    async def _kill(self, seconds: float, number: int) -> None:
        """End a node like `kill -9`: nothing that it does from here on is observable."""
        await trio.sleep(seconds)
        node = self._nodes[number]
        if not node.is_up:
            return
        node.freeze(frozen=False)
        node.sessions = None
        assert node.backend is not None
        node.backend.end("the node was killed", arriving=True)
        for visit in node.connections:
            if visit.connection is not None and not visit.connection.server.closed:
                visit.connection.reset(visit.connection.server)
                visit.killed = True
        node.connections.clear()
        node.scope.cancel(reason="the node is killed")

    async def _freeze(self, seconds: float, number: int, duration: float) -> None:
        await trio.sleep(seconds)
        node = self._nodes[number]
        starts = node.starts
        if not node.is_up or node.is_frozen:
            return
        node.freeze(frozen=True)
        await trio.sleep(duration)
        if node.starts == starts and node.is_up:
            node.freeze(frozen=False)

    async def _act(self, act: Act) -> None:
        """Do what an operator does, unless the node is down or frozen then."""
        await trio.sleep_until(act.seconds)
        node = self._nodes[act.node]
        server, starts, firm = node.server, node.starts, self.history.firm_bans
        if server is None or not node.is_up or node.is_frozen:
            return
        token = _node.set(node.number)
        try:
            if act.kind == "topic":
                with contextlib.suppress(MultichatError):
                    await server.admin.topic(f"{act.what} set at {act.seconds:.3f}")
            elif act.kind == "ban":
                server.ban(Ban(target=parse_target(act.what)))
                firm.add(act.what)
            else:
                server.unban(act.what)
                firm.discard(act.what)
        finally:
            _node.reset(token)
        await self._is_quiet.wait()
        if node.starts != starts:  # it may have ended before it could report that
            firm.discard(act.what)

    async def _add_account(self, given: GivenAccount) -> None:
        """Add an account as an operator does, unless the node is down or frozen then."""
        await trio.sleep_until(given.seconds)
        node = self._nodes[given.node]
        if node.server is None or not node.is_up or node.is_frozen:
            return
        token = _node.set(node.number)
        try:
            with contextlib.suppress(MultichatError):
                await node.server.admin.account(f"add {given.name} {given.passphrase}")
        finally:
            _node.reset(token)

    # --- People -----------------------------------------------------------------------------------

    async def _live(self, person: Guest) -> None:
        """Run all connections of *person*, to any nodes."""
        notebook = RoomsNotebook(keys=Keys(self._plan.given))
        rng = Random(f"{self._plan.seed} person {person.number}")
        comings: list[Return | None] = [None, *person.returns]
        pause, number = person.arrives_seconds, 0
        async with trio.open_nursery() as connections:
            while number < len(comings):
                coming = comings[number]
                if coming is not None:
                    pause = coming.pause_seconds
                with trio.move_on_after(pause):
                    await self._everybody_leaves.wait()
                next_one = comings[number + 1] if number + 1 < len(comings) else None
                visit = await self._come(person, number, rng)
                if visit is None:
                    break
                assert visit.connection is not None
                client = NodesClient(
                    person,
                    visit.connection.client,
                    self._plan.rooms,
                    self._everybody_leaves,
                    max_line_bytes=self._plan.config.max_line_bytes,
                    rng=Random(f"{self._plan.seed} client {person.number} {number}"),
                    notebook=notebook,
                    coming=coming,
                    left=None if next_one is None else next_one.left,
                    is_calm=self._is_calm,
                    is_quiet=self._is_quiet,
                )
                connections.start_soon(self._hold, visit, client)
                await client.left_off.wait()
                client.retire()
                number += 1
                if number == len(comings) and person.ending is Ending.STAYS:
                    comings.append(_AGAIN)  # its connection was lost, or everybody leaves
        self._gone += 1
        if self._gone == len(self._plan.people):
            self._everybody_left.set()

    async def _come(self, person: Guest, number: int, rng: Random) -> Visit | None:
        """Connect *person* to some node that runs; None if everybody leaves."""
        while not self._everybody_leaves.is_set():
            node = rng.choice(self._nodes)
            if node.sessions is not None and node.server is not None:
                return self._connect(person, number, node, node.server, node.sessions)
            with trio.move_on_after(_RETRY_SECONDS):
                await self._everybody_leaves.wait()
        return None

    def _connect(
        self, person: Guest, number: int, node: _Node, server: Server, sessions: trio.Nursery
    ) -> Visit:
        visit = Visit(person, number)
        visit.connection = connection = Connection(
            to_server_bytes=person.to_server_bytes,
            to_client_bytes=person.to_client_bytes,
            rng=Random(f"{self._plan.seed} connection {person.number} {number}"),
        )
        connection.server.freeze(frozen=node.is_frozen)
        if self._plan.eager:
            self.kernel.register(connection.server)
        self.history.visits.append(visit)
        self.history.nodes_of[id(visit)] = node.number
        self.history.came_at[id(visit)] = trio.current_time()
        node.connections.append(visit)
        token = _node.set(node.number)
        with numbered(visit):
            sessions.start_soon(self._handle, visit, connection, server)
        _node.reset(token)
        return visit

    async def _handle(self, visit: Visit, connection: Connection, server: Server) -> None:
        await server.handle(connection.server)
        visit.session_ended_seconds = trio.current_time()

    async def _hold(self, visit: Visit, client: NodesClient) -> None:
        await client.run()
        visit.heard_the_end = client.heard_the_end


# How a client comes back whose last connection was lost before the end.
_AGAIN = Return(
    left=LeftBehind.OPEN,
    pause_seconds=0.5,
    token=Token.OWN,
    since=Since.LAST,
    replay=0,
    repeats_accepted=False,
    wishes_room=False,
    actions=1,
)
