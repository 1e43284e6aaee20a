"""The journal in a SQLite file: what rooms say outlives the server, and a `kill -9`.

`append` numbers a run at once and leaves it to the one task that writes.  Whatever waits by then is
one transaction, so that many who speak pay for one wait for the disk.  Nothing is done per message:
a run is a row.

Invariants: what is reported kept is committed; where a transaction cannot be, all that waits for it
or behind it fails, and numbers go on from what is committed; readers never wait for the writer.
"""

import enum
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec
import trio

from multichat.errors import JournalFailed, NotKept
from multichat.journal import Journal, Keeping, RoomJournal, SessionRecord, part_of, within
from multichat.journal import sqlite_rows as rows
from multichat.journal.sqlite_file import Found, connect, open_file, reason_of
from multichat.messages import Nonce, SaidRun

__all__ = ["Durability", "Retention", "SqliteJournal"]

# How long what cannot be written is tried again before those who said it are told: a disk that is
# being cleaned up, a backup that holds the file.
RETRY_SECONDS = 3.0
_PAUSE_SECONDS = 0.1

# How often what is too old or too much is looked for.
TIDY_SECONDS = 5.0
_VACUUM_PAGES = 1000

# Heads of rooms in which nothing is left; each is 300 bytes in memory.
MAX_ROOMS = 100_000

# What the end of the server waits for the disk.
CLOSE_SECONDS = 10.0

# What sessions are kept for if their server does not come back; it decides for how long they count.
_SESSION_SECONDS = 7 * 24 * 3600.0

T = TypeVar("T")

_RUN_COLUMNS = "first, messages, time, shown, client, name, act, text"


class Durability(enum.Enum):
    """What a message that is reported kept survives; see docs/journal.md."""

    FULL = "full"  # a power cut too: the disk is waited for with each transaction
    NORMAL = "normal"  # a `kill -9`; of a power cut the last moments may be lost


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept: messages not older, not more of a room, a file not larger; None is no limit."""

    max_age_seconds: float | None = None
    max_messages: int | None = None
    max_bytes: int | None = None


@dataclass(slots=True)
class _Said:
    room: "_SqliteRoom"
    said: SaidRun
    messages: int
    nonces: tuple[Nonce | None, ...]
    keeping: Keeping = field(default_factory=Keeping)


@dataclass(slots=True)
class _Forget:
    digest: bytes


@dataclass(slots=True)
class _Numbers:
    clients_ever: int
    keeping: Keeping = field(default_factory=Keeping)


_Job: TypeAlias = _Said | SessionRecord | _Forget | _Numbers


class SqliteJournal(Journal):
    """Keeps everything in the file at *path*, which is one server's alone; see `Journal`.

    `commits` counts the transactions in which messages were kept.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability = Durability.FULL,
        retention: Retention | None = None,
    ) -> None:
        self.path = path
        self.place = str(path)
        self.commits = 0
        self._synchronous = durability.value.upper()
        self._retention = retention or Retention()
        self._found: Found
        self._reader: sqlite3.Connection
        self._writing, self._reading = trio.CapacityLimiter(1), trio.CapacityLimiter(1)
        self._rooms: dict[str, _SqliteRoom] = {}
        self._last_id = self._last_epoch = 0
        self._waiting: list[_Job] = []
        self._work = trio.Event()
        self._closed = True
        self._spoke: set[int] = (
            set()
        )  # with nonces, since these were trimmed; the writer's thread's

    # --- The task that writes ---------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the file, and write what comes until cancelled; see `Journal.run`."""
        await trio.to_thread.run_sync(self._open, limiter=self._writing)
        self._closed = False
        try:
            task_status.started()
            tidy_at = trio.current_time() + TIDY_SECONDS
            while True:
                with trio.move_on_at(tidy_at):
                    await self._work.wait()
                await self._write_waiting()
                if trio.current_time() >= tidy_at:
                    await self._tidy()
                    tidy_at = trio.current_time() + TIDY_SECONDS
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(CLOSE_SECONDS):
                    await self._write_waiting()
                self._closed = True
                self._fail(self._take_waiting(), "the server is closing its journal")
                await trio.to_thread.run_sync(self._close, limiter=self._writing)

    def _take_waiting(self) -> list[_Job]:
        jobs, self._waiting = self._waiting, []
        self._work = trio.Event()
        return jobs

    async def _write_waiting(self) -> None:
        jobs = self._take_waiting()
        if not jobs:
            return
        give_up_at = trio.current_time() + RETRY_SECONDS
        try:
            while failure := await trio.to_thread.run_sync(
                self._write, jobs, limiter=self._writing
            ):
                if trio.current_time() >= give_up_at:
                    self._fail([*jobs, *self._take_waiting()], failure)
                    return
                await trio.sleep(_PAUSE_SECONDS)
        except trio.Cancelled:  # before the thread had them: at the end they are written after all
            self._waiting[:0] = jobs
            raise
        for job in jobs:
            if isinstance(job, _Said):
                job.room.kept = job.said.first + job.messages
            if isinstance(job, _Said | _Numbers):
                job.keeping.resolve()

    def _fail(self, jobs: list[_Job], failure: str) -> None:
        for job in jobs:
            if isinstance(job, _Said):
                job.room.next = job.room.kept
        # Nobody waits for these, and the next transaction may have them: the last of each.
        others: dict[bytes, SessionRecord | _Forget] = {}
        for job in jobs:
            if isinstance(job, _Said | _Numbers):
                job.keeping.resolve(failure)
            else:
                others.pop(job.digest, None)
                others[job.digest] = job
        self._waiting += others.values()

    async def _tidy(self) -> None:
        more = True
        while more:
            firsts, more = await trio.to_thread.run_sync(self._tidy_up, limiter=self._writing)
            for room in self._rooms.values() if firsts else ():
                if (first := firsts.get(room.id)) is not None:
                    room.first = max(room.first, min(first, room.kept))
            await self._write_waiting()  # who speaks does not wait for all of it
        if len(self._rooms) > MAX_ROOMS:
            await self._forget_rooms()

    async def _forget_rooms(self) -> None:
        """Forget rooms of which nothing is left, the first that there were.

        Whoever is in one does not notice: it is kept again with the next word.
        """
        empty = [room for room in self._rooms.values() if room.first == room.next]
        gone = empty[: len(self._rooms) - MAX_ROOMS]
        for room in gone:
            del self._rooms[room.name]
        ids = [(room.id,) for room in gone]

        def forget() -> None:
            with suppress(sqlite3.Error):
                self._found.connection.executemany("DELETE FROM rooms WHERE id = ?", ids)

        await trio.to_thread.run_sync(forget, limiter=self._writing)

    # --- What others ask for ----------------------------------------------------------------------

    def room(self, name: str) -> RoomJournal:
        """Return the part of that room."""
        room = self._rooms.get(name)
        if room is None:
            # A time, and never one that was before, should the clock be set back.
            self._last_epoch = max(self._last_epoch + 1, int(time.time() * 1000))
            self._last_id += 1
            room = _SqliteRoom(self, self._last_id, name, f"{self._last_epoch:011x}", 0, 0)
        return room

    def take(self, job: _Said) -> Keeping:
        """Have *job* written; for the rooms of this journal."""
        if self._closed:
            raise NotKept("the server is closing its journal")
        self._rooms.setdefault(job.room.name, job.room)
        self._have_written(job)
        return job.keeping

    def _have_written(self, job: _Job) -> None:
        self._waiting.append(job)
        self._work.set()

    async def give_numbers(self, clients_ever: int) -> None:
        """See `Journal.give_numbers`."""
        if self._closed:
            raise NotKept("the server is closing its journal")
        job = _Numbers(clients_ever)
        self._have_written(job)
        await job.keeping.wait()

    def keep_session(self, record: SessionRecord) -> None:
        """See `Journal.keep_session`."""
        if not self._closed:
            self._have_written(record)

    def forget_session(self, digest: bytes) -> None:
        """See `Journal.forget_session`."""
        if not self._closed:
            self._have_written(_Forget(digest))

    async def sessions(self, since: float, limit: int) -> list[SessionRecord]:
        """See `Journal.sessions`."""

        def read() -> list[SessionRecord]:
            query = (
                "SELECT digest, client, name, room, seen FROM "
                "(SELECT * FROM sessions WHERE seen >= ? ORDER BY seen DESC LIMIT ?) ORDER BY seen"
            )
            return [
                SessionRecord(digest=digest, client=client, name=name, room=room, seen=seen)
                for digest, client, name, room, seen in self._reader.execute(query, (since, limit))
            ]

        return await self._read(read)

    async def nonces(self, client: int, limit: int) -> list[tuple[Nonce, str, int]]:
        """See `Journal.nonces`."""
        return (await self._read(lambda: list(rows.nonces(self._reader, client, limit))))[::-1]

    async def read_runs(self, room: int, start: int, stop: int, max_bytes: int) -> list[SaidRun]:
        """Read what `RoomJournal.read` returns; for the rooms of this journal."""

        def read() -> list[SaidRun]:
            [before] = self._reader.execute(
                "SELECT max(first) FROM runs WHERE room = ? AND first <= ?", (room, start)
            ).fetchone()
            [epoch] = self._reader.execute(
                "SELECT epoch FROM rooms WHERE id = ?", (room,)
            ).fetchone() or [""]
            found = self._reader.execute(
                f"SELECT {_RUN_COLUMNS} FROM runs "  # noqa: S608 - our own words
                "WHERE room = ? AND first >= ? AND first < ? ORDER BY first",
                (room, start if before is None else before, stop),
            )
            runs, size = [], 0
            for first, _, said_at, shown, client, name, act, text in found:
                said = SaidRun(epoch, first, said_at, shown, client, name, text, bool(act))
                if (part := part_of(said, start, stop)) is not None:
                    runs.append(part)
                    size += len(part.run)
                    if size > max_bytes:
                        break
            return within(runs, max_bytes)

        return await self._read(read)

    async def _read(self, read: "Callable[[], list[T]]") -> "list[T]":
        try:
            return await trio.to_thread.run_sync(read, limiter=self._reading)
        except sqlite3.Error as error:
            raise NotKept(f"what was kept cannot be read: {reason_of(error)}") from error

    # --- In the writer's thread -------------------------------------------------------------------

    def _open(self) -> None:
        self._found = open_file(self.path, self._synchronous)
        connection = self._found.connection
        try:
            self._reader = connect(self.path, read_only=True)
            self._load(connection)
        except BaseException as error:
            self._close()
            if isinstance(error, sqlite3.Error):
                raise JournalFailed(self.path, reason_of(error)) from error
            raise

    def _load(self, connection: sqlite3.Connection) -> None:
        [[self.clients_ever]] = connection.execute(
            "SELECT max((SELECT clients_ever FROM numbers), "
            "coalesce((SELECT max(client) FROM sessions), 0))"
        )
        heads = connection.execute(
            "SELECT id, name, epoch, next, (SELECT min(first) FROM runs WHERE room = id) FROM rooms"
        )
        for id_, name, epoch, next_, first in heads:
            first = next_ if first is None else first
            self._rooms[name] = _SqliteRoom(self, id_, name, epoch, first, next_)
            self._last_id = max(self._last_id, id_)
            self._last_epoch = max(self._last_epoch, int(epoch, 16))

    def _close(self) -> None:
        with suppress(AttributeError, sqlite3.Error):
            self._reader.close()
        with suppress(sqlite3.Error):
            self._found.connection.close()  # which writes the whole file, if it was the last
        with suppress(sqlite3.Error):
            self._found.lock.close()

    def _write(self, jobs: list[_Job]) -> str:
        """Write all of it in one transaction; return why it cannot be, if so."""
        connection = self._found.connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._execute(connection, jobs)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # some errors have done that themselves
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            return reason_of(error)
        self.commits += any(isinstance(job, _Said) for job in jobs)
        return ""

    def _execute(
        self,
        connection: sqlite3.Connection,
        jobs: list[_Job],
    ) -> None:
        heads: dict[int, tuple[int, str, str, int]] = {}
        runs, nonces = [], []
        for job in jobs:
            if isinstance(job, _Said):
                room, said = job.room, job.said
                end = said.first + job.messages
                heads[room.id] = room.id, room.name, room.epoch, end
                runs.append(
                    (
                        *(room.id, said.first, job.messages, said.time, said.room),
                        *(said.client, said.name, said.act, said.run),
                    )
                )
                if job.nonces:
                    spelled = msgspec.json.encode(job.nonces).decode()
                    nonces.append((said.client, said.epoch, said.first, spelled))
            elif isinstance(job, SessionRecord):
                connection.execute(
                    "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?)",
                    (job.digest, job.client, job.name, job.room, job.seen),
                )
            elif isinstance(job, _Forget):
                rows.forget(connection, job.digest)
            else:
                connection.execute(
                    "UPDATE numbers SET clients_ever = max(clients_ever, ?)", (job.clients_ever,)
                )
        connection.executemany("INSERT OR REPLACE INTO rooms VALUES (?, ?, ?, ?)", heads.values())
        connection.executemany(
            "INSERT INTO runs (room, first, messages, time, shown, client, name, act, text) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            runs,
        )
        connection.executemany(
            "INSERT INTO nonces (client, epoch, first, nonces) VALUES (?, ?, ?, ?)", nonces
        )
        self._spoke.update(client for client, *_ in nonces)

    def _tidy_up(self) -> tuple[dict[int, int], bool]:
        """Delete some of what need not be kept.

        Returns the first numbers of the rooms it was of, and whether there may be more.
        """
        connection = self._found.connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                for client in self._spoke:
                    rows.trim_nonces(connection, client)
                self._spoke.clear()
                rows.forget_sessions(connection, time.time() - _SESSION_SECONDS)
                deleted = self._delete(connection)
                firsts = {room: rows.first_of(connection, room) for room in set(deleted)}
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            if deleted:
                connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        except sqlite3.Error:
            return {}, False  # the next time then; what cannot be written says so itself
        return firsts, len(deleted) >= rows.AT_ONCE

    def _delete(self, connection: sqlite3.Connection) -> list[int]:
        """Delete a bounded number of the oldest runs; return of which rooms they were, each."""
        kept = self._retention
        deleted: list[int] = []
        if kept.max_messages is not None:
            for room in list(self._rooms.values()):
                if room.kept - room.first > kept.max_messages:
                    deleted += rows.delete_of_room(
                        connection, room.id, room.kept - kept.max_messages
                    )
        if kept.max_age_seconds is not None:
            since = time.gmtime(time.time() - kept.max_age_seconds)
            deleted += rows.delete_oldest(connection, time.strftime("%Y-%m-%dT%H:%M:%S", since))
        if kept.max_bytes is not None and rows.used_bytes(connection) > kept.max_bytes:
            deleted += rows.delete_oldest(connection, "9")  # later than any
        return deleted


class _SqliteRoom(RoomJournal):
    __slots__ = ("_journal", "epoch", "first", "id", "kept", "name", "next")

    def __init__(
        self, journal: SqliteJournal, id_: int, name: str, epoch: str, first: int, kept: int
    ) -> None:
        self._journal = journal
        self.id, self.name, self.epoch = id_, name, epoch
        self.first = first
        self.next = self.kept = kept  # up to which number it is committed

    def append(self, said: SaidRun, nonces: tuple[Nonce | None, ...] = ()) -> Keeping | None:
        messages = said.run.count("\n") + 1
        keeping = self._journal.take(_Said(self, said, messages, nonces))
        self.next += messages
        return keeping

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidRun]:
        return await self._journal.read_runs(self.id, start, min(stop, self.kept), max_bytes)
