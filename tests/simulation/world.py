"""Runs a plan (a server, its clients and faults) on a mock clock, and records the events.

Call `simulate`.  A run depends only on its plan: trio's scheduler is seeded, the time of day is the
mock clock's, and nothing iterates over objects that are hashed by identity.
"""

import contextlib
import hashlib
import logging
import re
import traceback
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from random import Random
from unittest import mock

import trio
import trio.testing

from multichat import Server
from multichat.backend.base import Backend
from multichat.backend.local import LocalBackend
from multichat.errors import MultichatError, UnknownClient
from multichat.journal.base import AccountRecord, Journal, PendingWrite
from multichat.journal.memory import MemoryJournal
from multichat.net.fair_share import NO_PAUSES
from multichat.net.transport import LINGER_SECONDS
from multichat.protocol.messages import Nonce, SaidBlock
from multichat.server.config import ServerTimeouts
from multichat.server.passphrases import is_passphrase
from multichat.server.room import Room

from .chronicle import KILLED, Kill, LogEntry
from .clients import Client
from .history import Heard, History, Visit
from .invariants import Violation, violations
from .journal import AccountSaved, Disk, FaultyJournal, Taken, Witness
from .local_engine import LocalEngine
from .plan import GivenAccount, JournalKind, PersonPlan, Plan, ServerEnding
from .replays import NOTICE, WaitMeter, watch_rooms
from .returning import Notebook, Return
from .slow_backend import SlowBackend
from .surroundings import (
    StandstillGuard,
    VirtualHasher,
    direct_writes,
    log_on_full_disk,
    log_to,
    numbered,
    same_schedule,
    seeded_tokens,
    time_of_day,
    watch_numbers,
)
from .wire import Connection, Kernel

__all__ = ["Family", "Outcome", "simulate"]

# How long the remaining clients continue after the server's end.
_AFTERMATH_SECONDS = 2.0

# The listener's connections: each becomes a client, or is refused, before the next one.
_MOST_STEPS_TO_ACCEPT = 100


_CONNECTED = re.compile(r"\[STATE\] Client (\d+) connected")


@dataclass(frozen=True)
class Outcome:
    """The result of a run; two runs of one plan have the same *digest*."""

    history: History
    violations: list[Violation]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of run: how its clients behave, and what is checked."""

    make_history: Callable[[Plan], History] = History
    make_client: Callable[..., Client] = Client
    make_notebook: Callable[[], Notebook] = Notebook
    check: Callable[[History], list[Violation]] = violations


def simulate(plan: Plan, family: Family = Family()) -> Outcome:
    """Run *plan*, and return which invariants of its *family* its history violates."""
    # A hash that is cached: it takes no random number later.
    is_passphrase("", "", plan.config.accounts)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(same_schedule(plan.seed))
        stack.enter_context(time_of_day(clock))
        stack.enter_context(seeded_tokens(plan.seed))
        world = _World(plan, family)
        stack.enter_context(log_to(_Recorder(world)))
        stack.enter_context(watch_numbers())
        stack.enter_context(watch_rooms(lambda: world.history, lambda: world.killed))
        stack.enter_context(
            mock.patch("multichat.net.send_queue.unsent_bytes", world.kernel.unsent_bytes)
        )
        if plan.full_disk:
            stack.enter_context(log_on_full_disk())
        if plan.eager:
            stack.enter_context(direct_writes(world.kernel))
        try:
            trio.run(world.run, clock=clock)
        except Exception:  # noqa: BLE001 - that is what we are here to find
            world.history.crash = traceback.format_exc()
    history = world.history
    cache: dict[bytes, Heard] = {}
    for visit in (visit for each in history.branches for visit in each.visits):
        visit.read(cache, plan.config.max_line_bytes)
    return Outcome(history, family.check(history), _digest(history))


def _digest(history: History) -> str:
    """Return a digest of everything observable."""
    digest = hashlib.sha256()
    for lost in history.lost:
        digest.update(_digest(lost).encode())
    for visit in history.visits:
        if visit.connection is not None:
            digest.update(visit.connection.to_server.written)
            digest.update(visit.connection.to_client.written)
            digest.update(repr(visit.connection.server.cut_off_at).encode())
        what = visit.server_number, visit.heard_the_end, visit.session_ended_seconds
        digest.update(repr(what).encode())
    for entry in history.log:
        digest.update(f"{entry.seconds} {entry.text}\n".encode())
    digest.update(repr((history.peak_bytes, history.seconds)).encode())
    return digest.hexdigest()


class _Recorder(logging.Handler):
    """Records the log, a batch as one record, and samples the send queues with each record."""

    takes_batches = True

    def __init__(self, world: "_World") -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + "".join(traceback.format_exception(record.exc_info[1]))
        self._world.note(record.levelno, text)


class _World:
    """One run of a plan."""

    def __init__(self, plan: Plan, family: Family) -> None:
        self.kernel = Kernel()
        self.history = family.make_history(plan)
        self._family = family
        self._plan = plan
        self._disk = Disk()
        self._backups: dict[
            int, tuple[Disk, History]
        ] = {}  # by the kill after which each is restored
        self._faulty: FaultyJournal | None = None
        self._slow: SlowBackend | None = None
        self._server = self._start_server()
        self._sessions: trio.Nursery
        self._admissions = trio.Event()  # open
        self._closed_for_good = False
        self.killed = False
        self._admission = trio.Lock()
        self._everybody_leaves = trio.Event()
        self._everybody_left = trio.Event()
        self._gone = 0
        self._sample_every = 1 + len(plan.people) // 20

    def _open_rooms(self) -> list[Room]:
        return [] if self.killed else list(self._server._registry.rooms)

    def _all_rooms(self) -> list[Room]:
        return list(self._server._registry.rooms._rooms.values())

    def _start_server(self) -> Server:
        backend = self._make_backend()
        timeouts = ServerTimeouts(session=self._plan.session_seconds)
        config = replace(self._plan.config, timeouts=timeouts)
        rng = Random(f"{self._plan.seed} {len(self.history.kills)}")
        hasher = VirtualHasher(config.accounts, self._plan.hash_seconds, rng)
        return Server(config, backend=backend, shares=NO_PAUSES, hasher=hasher)

    def _make_backend(self) -> Backend:
        plan, journal = self._plan, self._make_journal()
        self._journal = Witness(journal, self._note_taken, self._note_account)
        if plan.link is None:
            return LocalBackend(self._journal)
        rng = Random(f"{plan.seed} link {len(self.history.kills)}")
        self._slow = SlowBackend(
            LocalEngine(journal, self._note_taken),
            plan.link,
            rng,
            position=lambda: len(self.history.log),
            note_account=self._note_account,
        )
        return self._slow

    def _make_journal(self) -> Journal:
        plan = self._plan
        match plan.journal:
            case JournalKind.MEMORY:
                return MemoryJournal()
            case JournalKind.SMALL:
                return MemoryJournal(max_messages=plan.faults.max_messages or 1)
        rng = Random(f"{plan.seed} journal {len(self.history.kills)}")
        self._faulty = FaultyJournal(self._disk, plan.faults, rng)
        return self._faulty

    # --- Recording --------------------------------------------------------------------------------

    def note(self, level: int, text: str) -> None:
        """Record a log record; called synchronously by the server.

        Ignores the log of a server that was killed, and notices, see `watch_rooms`.
        """
        if (self.killed and "crashed" not in text) or text.startswith(NOTICE):
            return
        self.history.log.append(LogEntry(trio.current_time(), level, text))
        if connected := _CONNECTED.fullmatch(text):
            self.history.connected.add(int(connected[1]))
        if len(self.history.log) % self._sample_every == 0:
            self._sample()

    def _note_taken(
        self,
        said: SaidBlock,
        nonces: tuple[Nonce | None, ...],
        pending: PendingWrite | None,
        position: int | None = None,
    ) -> None:
        history = self.history
        at = len(history.log) if position is None else position
        history.taken.append(Taken(at, said, nonces, pending))

    def _note_account(
        self, key: str, record: AccountRecord | None, pending: PendingWrite | None
    ) -> None:
        if not self.killed:
            history = self.history
            now = trio.current_time()
            history.accounts.append(AccountSaved(len(history.log), now, key, record, pending))

    def _sample(self) -> None:
        peaks = self.history.peak_bytes
        for member in self._server.members:
            peaks[member.client] = max(peaks.get(member.client, 0), member.waiting_bytes)

    # --- Running ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the plan and record it."""
        plan = self._plan
        tasks = trio.lowlevel.current_statistics().tasks_living
        with trio.move_on_after(plan.patient_seconds) as timeout:
            trio.lowlevel.add_instrument(StandstillGuard(timeout))
            trio.lowlevel.add_instrument(WaitMeter(lambda: self.history, self._open_rooms))
            async with trio.open_nursery() as world:
                await self._serve(world)
                await trio.sleep(_AFTERMATH_SECONDS)
                self._everybody_leaves.set()
        history = self.history
        history.ended_in_time = not timeout.cancelled_caught
        history.seconds = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        self._look_for_what_is_left(tasks)
        counts = self._server.statistics()
        history.messages += counts.messages
        history.too_slow += counts.too_slow
        if self._slow is not None:
            history.handed_out = self._slow.handed_out

    def _look_for_what_is_left(self, tasks_before: int) -> None:
        counts = self._server.statistics()
        undecided = set() if self._slow is None else self._slow.undecided
        found = {
            "tasks": trio.lowlevel.current_statistics().tasks_living - tasks_before,
            "clients": counts.clients,
            # One is kept for messages whose fate the server did not live to know.
            "rooms": sum(room.key not in undecided for room in self._all_rooms()),
            "waiting bytes": counts.waiting_bytes,
            "connections open": sum(
                visit.connection is not None and not visit.connection.server.closed
                for visit in self.history.visits
            ),
        }
        self.history.left_behind = [f"{count} {what}" for what, count in found.items() if count]

    async def _serve(self, world: trio.Nursery) -> None:
        """Run the server until its planned end, and start clients and faults in *world*."""
        plan = self._plan
        for person in plan.people:
            world.start_soon(self._live, person)
        async with trio.open_nursery() as faults:
            for kick in plan.kicks:
                faults.start_soon(self._kick, *kick)
            for number, seconds in enumerate(plan.announcements, 1):
                faults.start_soon(self._announce, number, seconds)
            for given in plan.given:
                faults.start_soon(self._add_account, given)
            for backup in plan.restores:
                faults.start_soon(self._back_up, *backup)
            for number, seconds in enumerate(plan.kills):
                async with self._opened() as sessions:
                    with trio.move_on_at(seconds):
                        await self._everybody_left.wait()
                    self._kill(sessions)
                if number in self._backups:
                    self._restore(*self._backups.pop(number))
                self._server = self._start_server()
                self.killed = False
            async with self._opened() as sessions:
                await self._end(sessions)
            faults.cancel_scope.cancel(reason="the server has ended")

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncGenerator[trio.Nursery]:
        """Run a server that admits clients while the block runs, and wait for its end."""
        async with self._server.open(), trio.open_nursery() as self._sessions:
            self._admissions.set()
            yield self._sessions
            self._admissions = trio.Event()

    def _kill(self, sessions: trio.Nursery) -> None:
        """End the server like `kill -9`: nothing that it does from here on is observable."""
        history = self.history
        self.killed = True
        self._admissions = trio.Event()
        if self._faulty is not None:
            self._faulty.kill()
        if self._slow is not None:
            self._slow.end("the server was killed")
        self._note_kill()
        counts = self._server.statistics()
        history.messages += counts.messages
        history.too_slow += counts.too_slow
        for visit in history.visits:
            if visit.connection is not None and not visit.connection.server.closed:
                visit.connection.reset(visit.connection.server)
                visit.killed = True
            if visit.server_number not in history.connected:
                visit.server_number = None  # it was connecting, and the number is free
        sessions.cancel_scope.cancel(reason="the server is killed")

    def _note_kill(self) -> None:
        log, now = self.history.log, trio.current_time()
        sessions_left = {kept[0].client: kept for kept in self._disk.sessions.values()}
        self.history.kills.append(Kill(len(log), now, sessions_left))
        log.append(LogEntry(now, logging.INFO, KILLED))

    async def _back_up(self, seconds: float, kill: int) -> None:
        """Copy the disk at that time, to be restored after that kill."""
        await trio.sleep_until(seconds)
        messages, too_slow = self.history.messages, self.history.too_slow
        if not self.killed:
            counts = self._server.statistics()
            messages, too_slow = messages + counts.messages, too_slow + counts.too_slow
        history = self.history.back_up(messages=messages, too_slow=too_slow)
        self._backups[kill] = self._disk.copy(), history

    def _restore(self, disk: Disk, history: History) -> None:
        """Continue with a backup, as if the server had been killed when it was taken."""
        lost = self.history
        lost.seconds, lost.ended_in_time = trio.current_time(), True
        history.lost = lost.branches
        self.history = history
        disk.epochs = self._disk.epochs
        disk.disconnect_sessions()
        self._disk = disk
        self._note_kill()

    async def _end(self, sessions: trio.Nursery) -> None:
        """End the server as planned; its last sessions may still be running then."""
        plan = self._plan
        if plan.server_ending is ServerEnding.OUTLIVES:
            await trio.sleep_until(plan.seconds)
            self._everybody_leaves.set()
            await self._everybody_left.wait()
            return
        await trio.sleep_until(plan.server_ends_seconds)
        self._closed_for_good = True
        if plan.server_ending is ServerEnding.SHUTS_DOWN:
            # As `Server.run` does it.
            deadline = trio.current_time() + plan.config.grace_seconds
            with trio.move_on_at(deadline):
                await self._server.close()
            self.history.cancelled_seconds = deadline + LINGER_SECONDS
            sessions.cancel_scope.deadline = deadline + LINGER_SECONDS
        else:
            self.history.cancelled_seconds = trio.current_time()
            sessions.cancel_scope.cancel(reason="the server is cancelled")

    # --- Faults -----------------------------------------------------------------------------------

    async def _kick(self, seconds: float, number: int) -> None:
        await trio.sleep(seconds)
        with contextlib.suppress(UnknownClient):
            self._server.kick(number, f"kicked at {seconds:g}")

    async def _announce(self, number: int, seconds: float) -> None:
        await trio.sleep(seconds)
        await self._server.broadcast(f"s0.{number}: dinner is ready")

    async def _add_account(self, given: GivenAccount) -> None:
        """Add an account as an operator does, unless the server does not run then."""
        await trio.sleep_until(given.seconds)
        server = self._server

        async def add() -> None:
            with contextlib.suppress(MultichatError):
                await server.admin.account(f"add {given.name} {given.passphrase}")

        if self._admissions.is_set() and not self._closed_for_good:
            self._sessions.start_soon(add)  # it ends when the server is killed

    # --- People -----------------------------------------------------------------------------------

    async def _live(self, person: PersonPlan) -> None:
        """Run all connections of *person*."""
        notebook = self._family.make_notebook()
        comings: list[Return | None] = [None, *person.returns]
        pause = person.arrives_seconds
        async with trio.open_nursery() as connections:
            for number, coming in enumerate(comings):
                if coming is not None:
                    pause = coming.pause_seconds
                with trio.move_on_after(pause):
                    await self._everybody_leaves.wait()
                next_one = comings[number + 1] if number + 1 < len(comings) else None
                left = None if next_one is None else next_one.left
                visit = await self._come(person, number)
                if visit.connection is None:
                    break
                client = self._family.make_client(
                    person,
                    visit.connection.client,
                    self._plan.rooms,
                    self._everybody_leaves,
                    max_line_bytes=self._plan.config.max_line_bytes,
                    rng=self._rng("client", person, number),
                    notebook=notebook,
                    coming=coming,
                    left=left,
                )
                connections.start_soon(self._hold, visit, client)
                await client.left_off.wait()
                client.retire()
        self._gone += 1
        if self._gone == len(self._plan.people):
            self._everybody_left.set()

    async def _come(self, person: PersonPlan, number: int) -> Visit:
        """Connect *person*, if possible."""
        visit = Visit(person, number)
        async with self._admission:
            while not (
                self._admissions.is_set()
                or self._everybody_leaves.is_set()
                or self._closed_for_good
            ):
                with trio.move_on_after(1):
                    await self._everybody_leaves.wait()
            if (
                self._admissions.is_set()
                and not self._closed_for_good
                and not self._everybody_leaves.is_set()
            ):
                self.history.visits.append(visit)
                await self._connect(visit)
        return visit

    async def _hold(self, visit: Visit, client: Client) -> None:
        await client.run()
        visit.heard_the_end = client.heard_the_end

    def _rng(self, purpose: str, person: PersonPlan, number: int) -> Random:
        again = f" {number}" if number else ""
        return Random(f"{self._plan.seed} {purpose} {person.number}{again}")

    async def _connect(self, visit: Visit) -> None:
        """Connect like a listener, one client at a time, so that each client's number is known."""
        plan = visit.plan
        visit.connection = connection = Connection(
            to_server_bytes=plan.to_server_bytes,
            to_client_bytes=plan.to_client_bytes,
            rng=self._rng("connection", plan, visit.number),
        )
        if self._plan.eager:
            self.kernel.register(connection.server)
        before = self._server.statistics()
        with numbered(visit):
            self._sessions.start_soon(self._handle, visit, connection, self._server)
        if self._plan.link is not None:  # its number may take a while
            return
        for _ in range(_MOST_STEPS_TO_ACCEPT):
            now = self._server.statistics()
            if now.clients_ever > before.clients_ever:
                break
            if now.refused > before.refused:
                visit.refused = True
                break
            await trio.lowlevel.checkpoint()

    async def _handle(self, visit: Visit, connection: Connection, server: Server) -> None:
        try:
            await server.handle(connection.server)
            if visit.server_number is None:
                visit.refused = not visit.killed
            if (
                visit.server_number is not None
                and visit.server_number not in self.history.connected
            ):
                # There was a free place when it got its number, but not once that was stored.
                visit.server_number, visit.refused = None, True
        finally:
            visit.session_ended_seconds = trio.current_time()
