"""The journal in a SQLite file, which survives restarts and kills of the server.

Nothing is done per message: a block is a row.  All jobs that arrive while the disk is busy are
written in one transaction, so that many senders wait for the disk only once.

Invariants:

1. Jobs are in one queue, in the order of the calls, and leave it only when they are committed or
   have failed: a cancelled task loses nothing.
2. After jobs have failed, the numbers of their rooms continue from the last committed message.
3. One thread writes, another one reads, and they do not wait for each other.
"""

import math
import os
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from contextlib import ExitStack, suppress
from itertools import islice
from logging import ERROR, WARNING
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from multichat.errors import JournalFailed, NotRead, StorageFailed, TooManyRooms
from multichat.journal.base import (
    MAX_TIME_EPOCH,
    AccountRecord,
    Journal,
    PendingWrite,
    RoomJournal,
    SavedSession,
    SessionRecord,
)
from multichat.journal.failure_log import FailureLog
from multichat.journal.retention import Retention, SteadyClock, SteadyTime
from multichat.journal.sqlite.accounts import read_accounts_and_topics
from multichat.journal.sqlite.deletion import (
    NOT_DELETED,
    STEP_BLOCKS,
    DeletionLog,
    DeletionResult,
    Deletions,
)
from multichat.journal.sqlite.file import (
    DAMAGED,
    DISK_FAILS,
    DISK_FULL,
    SQLITE_ERRORS,
    OpenFile,
    connect,
    describe_error,
    is_locked_out,
    open_file,
    with_advice,
)
from multichat.journal.sqlite.file_lock import FileLock
from multichat.journal.sqlite.jobs import (
    AccountJob,
    Job,
    NonceJob,
    NumbersJob,
    SaidJob,
    SessionJob,
    TopicJob,
    effect_on,
    subject_of,
    write_jobs,
)
from multichat.journal.sqlite.limits import Durability, SqliteLimits
from multichat.journal.sqlite.queries import Head, Rows, SessionRow
from multichat.journal.sqlite.queue import JobQueue, job_bytes
from multichat.journal.sqlite.reading import read_recent_sessions, read_session
from multichat.journal.sqlite.reserve import Reserve
from multichat.journal.sqlite.room import SqliteRoom
from multichat.log import Log
from multichat.net.durations import DurationRecorder
from multichat.protocol.messages import LOBBY, Nonce, SaidBlock
from multichat.protocol.timestamps import read_clocks

__all__ = ["Durability", "Retention", "SqliteJournal", "SqliteLimits"]

T = TypeVar("T")

_RETRY_PAUSE_SECONDS = 0.05

_EPOCH_GAP = 1 << 20  # milliseconds: 17 minutes

_TOO_SLOW = "the disk does not keep up"

_CLOSED = "the server is closing its journal"

# The reason for clients when a file of the journal was moved; the log has its path.
_NOT_IN_PLACE = "the server cannot store messages"
_OVERWRITTEN = (
    "another program has replaced the contents of {}, as SQLite's .restore does; stop the server "
    "with SIGTERM, and start it again"
)

# How often to try to close the file in order; each attempt waits for `BUSY_SECONDS`.
_END_TRIES = 4

# The most deletions between two transactions while the file is too large.  Each deletes more than a
# transaction writes, so that the file does not grow.
_MAX_DELETIONS = 20


class SqliteJournal(Journal):
    """Stores everything in the file at *path*, to which only one server at a time writes.

    *clocks* returns the wall clock and a monotonic one.  *commits* counts the transactions that
    stored something.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        durability: Durability = Durability.FULL,
        retention: Retention | None = None,
        limits: SqliteLimits | None = None,
        clocks: Callable[[], tuple[float, float]] = read_clocks,
    ) -> None:
        self.path = Path(path)
        self.location = str(path)
        self.durability = durability
        self.retention = retention or Retention()
        self._limits = limits or SqliteLimits()
        self._clocks = clocks
        steady_seconds = self._limits.steady_seconds
        self._clock = SteadyClock(min(steady_seconds, self.retention.max_age_seconds or math.inf))
        self._log = Log("server")
        self._deletion_log = DeletionLog(self._log, self.retention, self._limits.tell_seconds)
        self._failure_log = FailureLog(self._log, self._limits.tell_seconds)
        self._is_refusal_told = False
        self.commits = 0
        self._write_times = self.writes = DurationRecorder()
        self._rows: Rows  # used only by the writer's thread
        self._deletions: Deletions
        self._lock: FileLock
        self._file_fault = ""  # which file was moved or truncated, and what to do
        self._watched_at = -math.inf  # when the writer checked the files
        self._reader: sqlite3.Connection
        self._opened: OpenFile
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(1)
        self._open = False
        self._failing = self._is_ending = False
        self._failed_at = -math.inf
        self._queue = JobQueue(self.retention.step_bytes)
        self._woken = trio.Event()
        # Rooms with messages; the room of the latest message is last.
        self._rooms: OrderedDict[str, SqliteRoom] = OrderedDict()
        self._by_id: dict[int, SqliteRoom] = {}
        self._untidy: set[SqliteRoom] = set()  # rooms that may exceed `max_messages`
        self._last_room = self._last_epoch = 0

    # --- Writing ----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the file, report that, and write jobs until cancelled; see `Journal.run`."""
        await self._open_in_time()
        try:
            self._open = True
            task_status.started()
            await self._write_until_cancelled()
        finally:
            self._open = False
            with trio.CancelScope(shield=True):
                try:
                    give_up_at = trio.current_time() + self._limits.close_seconds
                    while self._queue and await self._write_waiting(give_up_at):
                        pass
                finally:
                    self._fail(_CLOSED)
                    self._deletion_log.flush()
                    async with self._reading:  # wait for the last read
                        await trio.to_thread.run_sync(self._close_file, limiter=self._writing)

    async def _open_in_time(self) -> None:
        give_up_at = trio.current_time() + self._limits.retry_seconds
        while True:
            try:
                # Bounded by the disk, and must not be interrupted.
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._open_file, limiter=self._writing)
            except JournalFailed as failure:
                if failure.reason == DAMAGED:
                    raise JournalFailed(self.path, with_advice(DAMAGED)) from failure
                if not is_locked_out(failure.__cause__):
                    raise
                if trio.current_time() >= give_up_at:
                    reason = "another program has locked it; end that program, and start again"
                    raise JournalFailed(self.path, reason) from failure
            else:
                return
            await trio.sleep(_RETRY_PAUSE_SECONDS)

    async def _write_until_cancelled(self) -> None:
        tidy_at = watch_at = trio.current_time()
        while True:
            with trio.move_on_at(min(tidy_at, watch_at)):
                await self._woken.wait()
            self._woken = trio.Event()
            retry_seconds = 0 if self._failing else self._limits.retry_seconds
            if await self._write_waiting(trio.current_time() + retry_seconds) and self._queue:
                self._woken.set()
            if trio.current_time() >= watch_at:
                await self._watch()
                watch_at = trio.current_time() + self._limits.watch_seconds
            if trio.current_time() >= tidy_at or self._deletions.is_too_large:
                more = False
                is_off = self._file_fault or self._is_ending
                for _ in range(0 if is_off else _MAX_DELETIONS):
                    more = await self._tidy()
                    if not (more and self._deletions.is_too_large):
                        break
                tidy_at = trio.current_time() + (0 if more else self._limits.tidy_seconds)

    async def _watch(self) -> None:
        """Check whether the files were moved or truncated; log changes."""
        # In a thread, because a hung file system would block the server.
        fault = await trio.to_thread.run_sync(self._find_fault, limiter=self._writing)
        if fault and fault != self._file_fault:
            self._log.line("STATE", f"The journal cannot store messages: {fault}", ERROR)
        elif self._file_fault and not fault:
            self._log.line("STATE", "The files of the journal are in place again")
        self._file_fault = fault

    def _log_failure(self, what: str, reason: str, kind: Hashable = None) -> None:
        text = f"{what}: {with_advice(reason)}"
        self._failure_log.note(text, trio.current_time(), kind)

    async def _write_waiting(self, give_up_at: float) -> bool:
        """Write the queue, up to the size of one transaction, or fail all of it at *give_up_at*.

        If the file is damaged, jobs that need the damaged part fail, and the jobs after them in the
        same room.  Returns whether the rest was written.
        """
        written = self._queue.first()
        if not written:
            return True
        refused: dict[object, str] = {}
        started = trio.current_time()
        while failure := await trio.to_thread.run_sync(
            self._write, written, self._clock_of_file(), refused, limiter=self._writing
        ):
            is_moved = failure == _NOT_IN_PLACE
            if is_moved or trio.current_time() >= give_up_at:
                if is_moved:
                    await self._watch()
                else:
                    self._log_failure("The journal cannot store messages", failure)
                self._fail(failure)
                self._failing, self._failed_at = True, time.monotonic()
                return False
            if self._deletions.is_full:
                await self._tidy()
            await trio.sleep(_RETRY_PAUSE_SECONDS)
        self._failing = False
        self.commits += 1
        self._write_times.note(trio.current_time() - started)
        jobs = self._queue.remove(written, refused)
        for job in jobs:
            if isinstance(job, SaidJob):
                if job.room in refused:
                    job.room.next = job.room.kept
                else:
                    job.room.kept = job.said.first + job.messages
                    self._untidy.add(job.room)
        for job in jobs:
            job.pending.resolve(refused.get(subject_of(job), ""))
        for subject, failure in refused.items():
            name = getattr(subject, "name", "")
            effect = effect_on(subject, name, damaged=failure == DAMAGED)
            kind = getattr(subject, "table", type(subject).__name__)
            self._log_failure(effect, failure, kind)
        return True

    def _fail(self, failure: str) -> None:
        """Fail all jobs; sessions stay for the next transaction."""
        jobs = self._queue.clear()
        for job in jobs:
            if isinstance(job, SaidJob):
                job.room.next = job.room.kept
        for job in jobs:
            job.pending.resolve(failure)

    async def _tidy(self) -> bool:
        """Run one step of deletions; return whether there is more to delete."""
        most = self.retention.max_messages
        full: dict[int, int] = {}
        if most is not None:
            self._untidy = {room for room in self._untidy if room.kept - room.first > most}
            full = {room.id: room.kept - most for room in self._untidy}
        else:
            self._untidy.clear()
        # If there are too many rooms, rooms without messages are deleted, the oldest first.
        empty: dict[int, SqliteRoom] = {}
        if len(self._rooms) >= self._limits.rooms:
            silent = (room for room in self._rooms.values() if room.first == room.next)
            empty = {room.id: room for room in islice(silent, STEP_BLOCKS)}
        now = self._clock.observe(*self._clocks())
        changed = self._queue.kept_sessions()
        result = await trio.to_thread.run_sync(
            self._delete, full, [*empty], now, changed, limiter=self._writing
        )
        if result is None:  # the disk is full, or another program has locked or moved the file
            return False
        for id_, first in result.firsts.items():
            if (found := self._by_id.get(id_)) is not None:
                found.first = first
        for room in empty.values():
            # Its members do not notice: the next message stores it again.
            is_gone = room.id in result.rooms and room.first == room.next
            if is_gone and self._rooms.get(room.name) is room:
                del self._rooms[room.name], self._by_id[room.id]
        if result.damage:
            self._failure_log.note_once(NOT_DELETED)
        self._deletion_log.note(result, now, trio.current_time())
        return result.more

    # --- In the writer's thread -------------------------------------------------------------------

    def _open_file(self) -> None:
        durable = self.durability is Durability.FULL
        beside = Path(f"{os.path.realpath(self.path)}-reserve")
        reserve = Reserve(beside, self.retention.reserve_bytes)
        try:
            opened = open_file(self.path, durable=durable)
        except JournalFailed as failure:
            # Opening needs some disk space, too.
            if failure.reason not in (DISK_FULL, DISK_FAILS) or not reserve.release():
                raise
            opened = open_file(self.path, durable=durable)
        self._lock = opened.lock
        if opened.warning:
            self._log.line("STATE", opened.warning, WARNING)
        if not self.retention.reserve_bytes:
            reserve.release()  # of a former server
        self._opened = opened
        try:
            with ExitStack() as on_failure:
                on_failure.callback(opened.close, checkpoint=False)
                self._reader = connect(self.path.resolve(), "ro")
                on_failure.callback(self._reader.close)
                self._rows = Rows(opened.connection, opened.pin)
                heads = self._rows.load()
                self.accounts, self.topics, damaged = read_accounts_and_topics(opened.connection)
                clock = self._rows.loaded_clock
                self.recent_sessions = read_recent_sessions(opened.connection, clock)
                self._deletions = Deletions(self._rows, self.retention, reserve, self._limits)
                self._rows.checkpoint()
                # SQLite opens the WAL on the first read, which must not be when file descriptors
                # are short.
                self._reader.execute("SELECT 1 FROM heads").fetchall()
                on_failure.pop_all()
        except SQLITE_ERRORS as error:
            raise JournalFailed(self.path, describe_error(error)) from error
        for each in (*self._rows.repaired, *damaged):
            self._log.line("STATE", f"The journal was damaged: {each}", WARNING)
        self.clients_ever = self._rows.clients_ever
        self._last_epoch = self._rows.last_epoch
        if self._last_epoch >= int(self._clocks()[0] * 1000):
            # The clock is behind.  The gap is for a server that started with a copy of this file.
            self._last_epoch += secrets.randbelow(_EPOCH_GAP)
        for head in heads:
            room = SqliteRoom(self, head, is_begun=False)
            self._rooms[head.name] = self._by_id[head.id] = room
            self._untidy.add(room)
            self._last_room = max(self._last_room, head.id)

    def _close_file(self) -> None:
        self._find_fault()
        may_write = not self._lock.lasting_fault
        if may_write and not any(
            self._rows.checkpoint(end_clock=self._clock_of_file()) for _ in range(_END_TRIES)
        ):
            text = "The journal could not be closed in order: the disk is full, or another program"
            self._log.line("STATE", f"{text} has locked it; no message is lost", WARNING)
        with suppress(*SQLITE_ERRORS):
            self._reader.close()
        self._opened.close(checkpoint=may_write)

    def _write(self, jobs: list[Job | SessionJob], clock: float, refused: dict[object, str]) -> str:
        """Write *jobs* in one transaction; return a short reason if that failed.

        If only a part of the file is damaged, add the subjects that were not written to *refused*.
        """
        rows = self._rows
        now = time.monotonic()
        is_recent = now - self._watched_at < self._limits.watch_again_seconds
        if self._find_fault(wal_alone=is_recent):
            self._watched_at = -math.inf
            return _NOT_IN_PLACE
        if not is_recent:
            self._watched_at = now
        refused.clear()
        if not self._deletions.may_write():
            return DISK_FULL
        try:
            write_jobs(rows, jobs, clock, refused)
        except SQLITE_ERRORS as error:
            reason = describe_error(error)
            self._deletions.is_full = reason in (DISK_FULL, DISK_FAILS)
            return reason
        self._deletions.check_size()
        return ""

    def _delete(
        self, full: dict[int, int], empty: list[int], now: SteadyTime, changed: Collection[bytes]
    ) -> DeletionResult | None:
        """Run one step of deletions, unless a file was moved or truncated."""
        return None if self._find_fault() else self._deletions.step(full, empty, now, changed)

    def _find_fault(self, *, wal_alone: bool = False) -> str:
        if self._rows.is_overwritten:
            return _OVERWRITTEN.format(self.path)
        may_be_shorter = self._rows.may_be_shorter()
        return self._lock.fault(may_be_shorter=may_be_shorter, wal_alone=wal_alone)

    @property
    def fault(self) -> str:
        """See `Journal.fault`; a failure counts for `SqliteLimits.fault_seconds`."""
        is_recent = time.monotonic() - self._failed_at < self._limits.fault_seconds
        is_failing = bool(self._file_fault) or (self._failing and is_recent)
        return "the journal cannot store messages" if is_failing else ""

    def before_shutdown(self) -> None:
        """See `Journal.before_shutdown`."""
        self._is_ending = True
        self._deletion_log.flush()

    # --- Called by others -------------------------------------------------------------------------

    def room(self, name: str) -> RoomJournal:
        """Return the journal of that room; a new room is stored with its first message."""
        room = self._rooms.get(name)
        if room is None:
            if len(self._rooms) >= (most := self._limits.rooms) and name != LOBBY:
                if not self._is_refusal_told:
                    self._is_refusal_told = True
                    text = f"The journal has {most} rooms and accepts no new ones"
                    remedy = "limit the days of its history, or start a new file"
                    self._log.line("STATE", f"{text}: {remedy}", ERROR)
                raise TooManyRooms(most)
            self._last_room += 1
            room = SqliteRoom(self, Head(self._last_room, name, self._next_epoch(), 0, 0, {}))
        elif not room.is_begun:
            room.begin(self._next_epoch())
        return room

    def _next_epoch(self) -> str:
        """Return a new epoch: a time, so that ids rise even in a room that was deleted."""
        self._last_epoch = max(
            self._last_epoch + 1, min(int(self._clocks()[0] * 1000), MAX_TIME_EPOCH)
        )
        return f"{self._last_epoch:011x}"

    def take(self, job: SaidJob) -> PendingWrite:
        """Queue *job*; called only by `SqliteRoom`.  Raises `StorageFailed`."""
        if not self._open:
            raise StorageFailed(_CLOSED)
        if self._queue.bytes + job_bytes(job) > self._limits.waiting_bytes and self._queue.bytes:
            self._log_failure("The journal cannot store messages", _TOO_SLOW)
            raise StorageFailed(_TOO_SLOW)
        if self._rooms.setdefault(job.room.name, job.room) is not job.room:
            raise RuntimeError(f"the new room {job.room.name} was opened twice")
        self._by_id[job.room.id] = job.room
        self._rooms.move_to_end(job.room.name)
        self._put(job)
        return job.pending

    def _put(self, job: Job) -> None:
        self._queue.put(job)
        self._woken.set()

    async def reserve_client_numbers(self, clients_ever: int) -> None:
        """See `Journal.reserve_client_numbers`."""
        if not self._open:
            raise StorageFailed(_CLOSED)
        job = NumbersJob(clients_ever)
        self._put(job)
        await job.pending.wait()

    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """See `Journal.save_session`."""
        seen = math.inf if connected else self._clock_of_file()
        self._put_session(SessionJob(record.digest, SessionRow(record, seen)))

    def forget_session(self, digest: bytes) -> None:
        """See `Journal.forget_session`."""
        waiting = self._queue.session(digest)
        if waiting is None:
            self._put_session(SessionJob(digest, None))
        elif waiting.row is not None:
            self._put_session(SessionJob(digest, None, waiting.row.record.client))

    def save_nonce(self, client: int, nonce: Nonce, check: bytes) -> PendingWrite | None:
        """See `Journal.save_nonce`."""
        return self._queue_job(NonceJob(client, msgspec.json.encode([nonce]).decode(), check))

    def save_account(self, name: str, record: AccountRecord | None) -> PendingWrite | None:
        """See `Journal.save_account`."""
        return self._queue_job(AccountJob(name, record))

    def save_topic(self, room: str, topic: str) -> PendingWrite | None:
        """See `Journal.save_topic`."""
        return self._queue_job(TopicJob(room, topic))

    def _queue_job(self, job: Job) -> PendingWrite:
        if self._open:
            self._put(job)
        else:
            job.pending.resolve(_CLOSED)
        return job.pending

    def _put_session(self, job: SessionJob) -> None:
        if self._open:
            self._queue.put_session(job)
            self._woken.set()

    async def session(self, digest: bytes) -> SavedSession | None:
        """See `Journal.session`."""
        waiting, clock = self._queue.session(digest), self._clock_of_file()
        if waiting is not None and waiting.row is None:
            return None
        row = None if waiting is None else waiting.row
        return await self._read(
            "A session cannot be resumed", lambda reader: read_session(reader, digest, row, clock)
        )

    def _clock_of_file(self) -> float:
        """Return how many seconds servers have run with this file."""
        return self._rows.loaded_clock + self._clock.observe(*self._clocks()).run

    async def read_room(
        self,
        room: SqliteRoom,
        read: Callable[[sqlite3.Connection, list[int]], list[SaidBlock]],
    ) -> list[SaidBlock]:
        """Return the result of *read*, which appends the numbers of damaged blocks to its list.

        Called only by `SqliteRoom`.
        """
        damaged: list[int] = []
        blocks = await self._read(
            "The history cannot be read", lambda reader: read(reader, damaged)
        )
        if damaged:
            what = f"Messages of {room.name} cannot be read, the first is number {min(damaged)}"
            self._log_failure(what, DAMAGED, "messages")
        return blocks

    async def _read(self, what: str, read: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of *read*; on failure, *what* begins the log line."""
        if not self._open:
            raise NotRead(_CLOSED)
        try:
            return await trio.to_thread.run_sync(self._read_file, read, limiter=self._reading)
        except SQLITE_ERRORS as error:
            reason = describe_error(error)
            self._log_failure(what, reason)
            raise NotRead(reason) from error

    def _read_file(self, read: Callable[[sqlite3.Connection], T]) -> T:
        if self._lock.lasting_fault:  # a truncated -shm would end the process
            raise NotRead(_NOT_IN_PLACE)
        return read(self._reader)
