"""The queries of a SQLite journal that load its state at the start and write to it.

For one thread at a time; does not wait, retry, or assign numbers.
Each statement finds its rows by an index, so its cost does not depend on the size of the file.
"""

import enum
import math
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from multichat.journal.base import SessionRecord
from multichat.journal.sqlite.file import (
    SQLITE_ERRORS,
    DamagedRow,
    contents_of,
    is_damage,
    is_locked_out,
    newest_stamp,
    typed,
)
from multichat.journal.sqlite.repair import (
    EPOCH,
    MAX_COUNTER,
    ROOMS,
    are_heads,
    is_whole,
    repair,
)
from multichat.journal.sqlite.schema import APPLICATION_ID
from multichat.protocol.messages import MAX_UNACCEPTED, SaidBlock

__all__ = ["Head", "RoomHead", "Rows", "SessionRow"]

# The size of a session, or of a row of nonces, in the file besides its texts, with indexes.
_SESSION_BYTES = 250
_NONCES_BYTES = 60

_SESSION_SIZE = f"{_SESSION_BYTES} + length(name) + length(room) + length(login)"
_NONCES_SIZE = f"{_NONCES_BYTES} + length(CAST(nonces AS BLOB)) + length(checks)"

# How many clients' nonce counts are remembered; others are counted again.
_MAX_COUNTED = 20_000

# How often the clock of the file is written, in seconds; a kill loses at most this much.
_CLOCK_SECONDS = 60.0

# The size of a short transaction in the WAL: about six pages.
_TRANSACTION_BYTES = 24 * 1024

# A server does not know ids of older epochs; `history --since` knows all epochs in the file.
_MAX_EPOCHS = 100_000

# In how many rooms a start tries to write a message before it is refused.
_MAX_TRIED = 100


class Head(NamedTuple):
    """The state of a room without its messages; see `RoomJournal`."""

    id: int
    name: str
    epoch: str
    first: int
    next: int
    earlier: Mapping[str, int]


@dataclass(slots=True)
class _Tried:
    """A room in which a start tries to write a message; see `RoomHead`."""

    id: int
    name: str
    epoch: str
    first: int
    begins: int
    earlier: Mapping[str, int]


class _Undo(Exception):
    """Rolls back a transaction."""


class RoomHead(Protocol):
    """A room to which messages are written; *begins* is the first number of its epoch."""

    id: int
    name: str
    epoch: str
    first: int
    begins: int
    earlier: Mapping[str, int]


class SessionRow(NamedTuple):
    """A session, and when it was last *seen*, on the file's clock.

    *seen* is infinite while it is connected.
    """

    record: SessionRecord
    seen: float


class _Wal(enum.Enum):
    """The state of the WAL before the next transaction."""

    IN_USE = enum.auto()
    SEALED = enum.auto()  # a checkpoint has copied a part of it into the file
    COPIED = enum.auto()  # a checkpoint has copied all of it


class _Overwritten(sqlite3.DatabaseError):
    """Another program has replaced the contents of the file."""

    def __init__(self) -> None:
        super().__init__("the file was overwritten")


class Rows:
    """Writes to the file through *connection*, which belongs to one thread.

    *pin* is a second, read-only connection: see `checkpoint`.

    *clients_ever* and *last_epoch* are the highest values in the file; *loaded_seq* is the `seq` of
    the last block before it was opened.

    The clock of the file counts the seconds in which servers have run with it: sessions age by it,
    because the system's clock may be wrong.  *loaded_clock* is its value when the file was opened.

    *session_bytes* is an upper bound of `count_session_bytes`.

    *is_marked*: a checkpoint has recorded in the file that a server is using it; at a start, a
    reader can delay that.

    *is_overwritten*: another program has replaced the contents of the file, and nothing more may be
    written.
    """

    def __init__(self, connection: sqlite3.Connection, pin: sqlite3.Connection) -> None:
        self.connection, self._pin = connection, pin
        self.repaired: list[str] = []
        self.clients_ever = self.last_epoch = 0
        self.loaded_clock = self._written_clock = 0.0
        self.session_bytes = math.inf  # not counted yet
        self._seq = self.loaded_seq = 0
        self._nonce_counts: dict[int, int] = {}  # by client, since the last trim
        self.unkept_nonces: set[int] = set()  # clients whose nonces are on a damaged page
        # For the current transaction.
        self._runs: list[tuple[object, ...]] = []
        self._heads: dict[int, tuple[object, ...]] = {}
        self._ended: list[tuple[object, ...]] = []
        self._highest_client = self._highest_epoch = 0
        self._wal = _Wal.IN_USE
        self.is_marked = self.is_overwritten = False
        self._has_stamps = True
        self._own_stamp = ""  # the last one that is committed
        self._seen_version = 0  # of the file; another one after another program's write
        self._lock_error: Exception | None = None  # the pin was released for it
        self._pin_lost = False  # since the last seal
        self._may_be_shorter = False
        self._wal_bytes = 0  # approximate
        self.long_wal_bytes = 4 * 1024 * 1024  # approximate size for a checkpoint

    def load(self) -> list[Head]:
        """Load the state of the last server; return all rooms, the longest silent first.

        Repairs damage in it first; *repaired* describes the repairs.  Raises one of `SQLITE_ERRORS`
        if no message could be written to this file.
        """
        self._pin_wal()
        try:
            self._load_heads()
            rooms = self.connection.execute(ROOMS).fetchall()
            is_damaged = not all(map(is_whole, rooms))
            epochs = self._load_epochs()
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
            is_damaged = True
        if is_damaged:
            rooms, self.repaired = repair(self.connection)
            self._load_heads()
            epochs = self._load_epochs_of([row[0] for row in rooms])
        [newest] = self.connection.execute(
            "SELECT coalesce(max(seq), 0) FROM runs WHERE seq <= ?", (MAX_COUNTER,)
        ).fetchone()
        self._seq = self.loaded_seq = max([newest, *(row[5] for row in rooms)])
        earlier: dict[int, dict[str, int]] = {}
        for row in epochs:
            with suppress(DamagedRow):  # ids of that epoch are unknown
                room, next_, epoch = typed(row, int, int, str)
                if EPOCH.fullmatch(epoch):
                    earlier.setdefault(room, {})[epoch] = next_
        heads = [
            Head(id_, name, epoch, first, next_, earlier.get(id_, {}))
            for id_, name, epoch, first, next_, *_ in rooms
        ]
        self._try_to_say(heads)
        with suppress(*SQLITE_ERRORS), self.transaction():  # sessions of connected clients
            values = self.loaded_clock, self.loaded_clock
            self.connection.execute("UPDATE sessions SET seen = ? WHERE seen > ?", values)
        return heads

    def _load_heads(self) -> None:
        sql = "SELECT clients_ever, last_epoch, clock FROM heads LIMIT 2"
        rows = self.connection.execute(sql).fetchall()
        if not are_heads(rows):
            raise DamagedRow
        self.clients_ever, self.last_epoch, self.loaded_clock = rows[0]
        self._written_clock = self.loaded_clock

    def _load_epochs(self) -> list[tuple[Any, ...]]:
        """Return the newest earlier epochs of all rooms, oldest first."""
        sql = "SELECT room, next, epoch FROM epochs ORDER BY epoch DESC LIMIT ?"
        return self.connection.execute(sql, (_MAX_EPOCHS,)).fetchall()[::-1]

    def _load_epochs_of(self, rooms: list[int]) -> list[tuple[Any, ...]]:
        """Return the readable earlier epochs of *rooms*, for each the oldest first."""
        sql = "SELECT room, next, epoch FROM epochs WHERE room = ? ORDER BY next DESC LIMIT ?"
        found: list[tuple[Any, ...]] = []
        for room in rooms:
            with suppress(*SQLITE_ERRORS):
                found += self.connection.execute(sql, (room, _MAX_EPOCHS)).fetchall()[::-1]
        return found

    def _try_to_say(self, heads: list[Head]) -> None:
        """Raise one of `SQLITE_ERRORS` if no message can be written to any room.

        Every message needs certain pages, such as the last one of the messages; if one of them is
        damaged, a server is useless.
        """
        unused = 11 * "f"  # an epoch that sorts after all others, like the next one
        tried = heads[:: max(1, len(heads) // _MAX_TRIED)] or [Head(1, "\n", unused, 0, 0, {})]
        failure: Exception | None = None
        for head in tried:
            earlier = {**head.earlier, head.epoch: head.next} if heads else {}
            said = SaidBlock(unused, head.next, "", head.name, 0, "", "")
            room = _Tried(head.id, head.name, unused, head.first, head.next, earlier)
            try:
                with suppress(_Undo), self.transaction():
                    self.say(room, said, 1, 0)
                    self._flush()
                    raise _Undo
            except SQLITE_ERRORS as error:
                if not is_damage(error):
                    raise
                failure = error
            else:
                return
        if failure is not None:
            raise failure

    @contextmanager
    def transaction(self, clock: float = 0.0) -> Iterator[None]:
        """Run the block as a transaction; raises one of `SQLITE_ERRORS`, with nothing changed.

        *clock* is the current time of the file's clock.
        """
        execute = self.connection.execute
        seq, own_stamp = self._seq, self._own_stamp
        self._highest_client, self._highest_epoch = self.clients_ever, self.last_epoch
        self._begin()
        try:
            self._check_overwritten()
            if self._wal is not _Wal.IN_USE and self._has_stamps:
                if self._wal is _Wal.COPIED:
                    execute("DELETE FROM stamps WHERE id < (SELECT max(id) FROM stamps)")
                self._stamp(0)
                # No change, but it writes the first page; see `file._wal_belongs`.
                execute(f"PRAGMA application_id={APPLICATION_ID}")
            yield
            self._flush()
            if (self._highest_client, self._highest_epoch) != (self.clients_ever, self.last_epoch):
                highest = self._highest_client, self._highest_epoch
                execute("UPDATE heads SET clients_ever = ?, last_epoch = ?", highest)
            if is_later := clock - self._written_clock >= _CLOCK_SECONDS:
                execute("UPDATE heads SET clock = ?", (clock,))
            execute("COMMIT")
        except BaseException:
            self._seq, self._own_stamp = seq, own_stamp
            self._clear()
            if self.connection.in_transaction:  # some failures end it
                with suppress(*SQLITE_ERRORS):
                    execute("ROLLBACK")
            raise
        self.clients_ever, self.last_epoch = self._highest_client, self._highest_epoch
        if is_later:
            self._written_clock = clock
        self._wal = _Wal.IN_USE
        self.note_written(_TRANSACTION_BYTES)

    def _begin(self) -> None:
        """Begin a transaction, and one of *pin*; see `checkpoint`.

        A checkpoint of another program can hold the lock and wait for *pin*.  So the transaction of
        *pin* is ended when the file is locked.  That program may then have copied and restarted the
        WAL, so the next transaction makes a checkpoint first.
        """
        if self._lock_error is not None:
            self._lock_error = None
            self.checkpoint()
            if self._lock_error is not None:
                raise self._lock_error
        self._pin_wal()
        try:
            self.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if is_locked_out(error):
                self._pin.rollback()
                self._pin_lost = self._may_be_shorter = True
                self._lock_error = error
            raise

    def _check_overwritten(self) -> None:
        """Raise `_Overwritten` if the file does not have our last write, as after `.restore`."""
        [version] = self.connection.execute("PRAGMA data_version").fetchone()
        if version != self._seen_version:  # another program has written
            if self._own_stamp and self._has_stamps:
                try:
                    [newest] = self.connection.execute(
                        "SELECT max((SELECT coalesce(max(seq), 0) FROM runs), "
                        "(SELECT coalesce(max(seq), 0) FROM rooms WHERE typeof(seq) = 'integer'))"
                    ).fetchone()
                    is_own = newest_stamp(self.connection) == self._own_stamp
                    self.is_overwritten = not (is_own and newest >= self._seq)
                except SQLITE_ERRORS as error:
                    if not is_damage(error):
                        raise
            if self.is_overwritten:
                raise _Overwritten
            self._seen_version = version

    def note_written(self, size: int) -> None:
        """Record that the WAL has grown by about *size* bytes; make a checkpoint if it is long."""
        self._wal_bytes += size
        if self._wal_bytes > self.long_wal_bytes and not self.connection.in_transaction:
            self.checkpoint()

    def checkpoint(self, *, truncate: bool = False, end_clock: float | None = None) -> bool:
        """Copy the WAL into the file, as far as readers allow; return whether that was tried.

        With *truncate* it waits for readers, and truncates the WAL before the next stamp.
        *end_clock* is the final time of the file's clock, if nothing is written later.  Failures
        are retried the next time.  The file is sealed before with a stamp that no earlier backup
        has, and gets another stamp afterwards; see `file._wal_belongs`.

        Between two checkpoints, *pin* holds a read transaction on the state after the first.  So no
        other program can restart the WAL, or copy later writes into the file; `_begin` has the
        exception.
        """
        self._wal_bytes = 0
        if not self.is_overwritten:  # what another program has written is copied without a seal
            try:
                self._seal(end_clock)
            except SQLITE_ERRORS as error:
                if not is_damage(error):
                    return False
                self._has_stamps = False  # damaged, which must not prevent storing messages
        self._wal = _Wal.SEALED
        self._may_be_shorter = True
        with suppress(*SQLITE_ERRORS):
            self._pin.rollback()
            busy, in_wal, written = self.connection.execute(
                f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'PASSIVE'})"
            ).fetchone()
            if not busy and in_wal == written:
                self._wal = _Wal.COPIED
                self.is_marked = True
        if end_clock is None:
            with suppress(*SQLITE_ERRORS), self.transaction():  # with the next stamp
                pass
        return True

    def _pin_wal(self) -> None:
        if not self._pin.in_transaction:
            self._pin.execute("BEGIN")
            try:
                self._pin.execute("PRAGMA user_version").fetchone()
            except BaseException:
                self._pin.rollback()
                raise

    def may_be_shorter(self) -> bool:
        """Return whether a checkpoint may have shortened the files since the last call."""
        may_be = self._may_be_shorter
        # Without a pin that holds the WAL another program may do so.
        self._may_be_shorter = self._wal is not _Wal.IN_USE or self._lock_error is not None
        return may_be

    def _seal(self, end_clock: float | None) -> None:
        with self.transaction():
            self._stamp(1 if end_clock is None else 2)
            if end_clock is not None:
                self.connection.execute("UPDATE heads SET clock = ?", (end_clock,))
        self._pin_lost = False

    def _stamp(self, sealed: int) -> None:
        self._own_stamp = secrets.token_hex(8)
        if self._pin_lost:  # another program may have copied all that is there now
            self._own_stamp += f" after {contents_of(self.connection)}"
        self.connection.execute(
            "INSERT INTO stamps (stamp, sealed) VALUES (?, ?)", (self._own_stamp, sealed)
        )

    def _clear(self) -> None:
        self._runs.clear()
        self._heads.clear()
        self._ended.clear()
        self._nonce_counts.clear()

    def say(self, room: RoomHead, said: SaidBlock, messages: int, size: int) -> None:
        """Append *said*, a block of *messages* messages and *size* bytes."""
        self._seq += 1
        self._wal_bytes += size
        self._runs.append(
            (
                *(self._seq, room.id, said.first, messages, size, said.time),
                *(said.room, said.client, said.name, said.act, said.text),
            )
        )
        self._heads[room.id] = (
            *(room.id, room.name, room.epoch, room.first),
            *(said.first + messages, self._seq),
        )
        if room.begins == said.first and room.earlier:
            self._ended.append((room.id, said.first, [*room.earlier][-1], room.epoch))
        self._highest_client = max(self._highest_client, said.client)
        self._highest_epoch = max(self._highest_epoch, int(room.epoch, 16))

    def _flush(self) -> None:
        execute = self.connection.execute
        if self._runs:
            self.connection.executemany(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._runs
            )
            self.connection.executemany(
                "INSERT INTO rooms VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET next = excluded.next, seq = excluded.seq",
                self._heads.values(),
            )
            for room, end, ended, epoch in self._ended:
                execute("INSERT OR REPLACE INTO epochs VALUES (?, ?, ?)", (room, end, ended))
                execute("UPDATE rooms SET epoch = ? WHERE id = ?", (epoch, room))
            self._ended.clear()
            self._runs.clear()
            self._heads.clear()

    # --- Sessions and nonces ----------------------------------------------------------------------

    def reserve_client_numbers(self, clients_ever: int) -> None:
        """Store that client numbers up to *clients_ever* are taken."""
        self._highest_client = max(self._highest_client, clients_ever)

    def save_session(self, row: SessionRow) -> None:
        """Store a session, replacing its previous state."""
        record = row.record
        self._highest_client = max(self._highest_client, record.client)
        rooms = "\n".join(record.rooms)  # no name has an LF
        name, login = record.name, record.login
        self.session_bytes += _SESSION_BYTES + len(name) + len(rooms) + len(login)
        values = (record.digest, record.client, name, rooms, row.seen, login)
        self.connection.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?)", values)

    def forget_session(self, digest: bytes, client: int | None = None) -> None:
        """Delete that session and its client's nonces; *client* is for a missing session."""
        execute = self.connection.execute
        row = execute("SELECT client FROM sessions WHERE digest = ?", (digest,)).fetchone()
        if row is not None:
            execute("DELETE FROM sessions WHERE digest = ?", (digest,))
            [client] = row
        if client is not None:
            execute("DELETE FROM nonces WHERE client = ?", (client,))
            self._nonce_counts.pop(client, None)

    def count_session_bytes(self) -> int:
        """Return the approximate size of all sessions and nonces in the file, in bytes."""
        execute = self.connection.execute
        sessions, nonces = (
            execute(f"SELECT total({size}) FROM {table}").fetchone()[0]  # noqa: S608 - our own words
            for table, size in (("sessions", _SESSION_SIZE), ("nonces", _NONCES_SIZE))
        )
        return int(sessions + nonces)

    def oldest_sessions(self, before: float) -> sqlite3.Cursor:
        """Select the digests and sizes of sessions last seen *before*, the oldest first.

        The sizes include their nonces.
        """
        sql = (
            f"SELECT digest, {_SESSION_SIZE} + (SELECT total({_NONCES_SIZE}) FROM nonces "  # noqa: S608 - our own words
            "WHERE client = sessions.client) FROM sessions WHERE seen <= ? ORDER BY seen"
        )
        return self.connection.execute(sql, (before,))

    def forget_oldest_nonces(self, size: float, most: int) -> tuple[int, int]:
        """Delete the oldest nonces that take *size* bytes, at most *most* rows.

        Return how many bytes and how many nonces were deleted.
        """
        sql = f"SELECT seq, count, {_NONCES_SIZE} FROM nonces ORDER BY seq LIMIT ?"  # noqa: S608 - our own words
        freed, nonces, gone = 0, 0, []
        for seq, count, bytes_ in self.connection.execute(sql, (most,)):
            if freed >= size:
                break
            freed += bytes_
            nonces += count if type(count) is int else 1
            gone.append((seq,))
        self.connection.executemany("DELETE FROM nonces WHERE seq = ?", gone)
        return freed, nonces

    def use_nonces(
        self, client: int, epoch: str, first: int, nonces: str, count: int, checks: bytes
    ) -> None:
        """Store the *nonces* of a block of *client*, as JSON; *count* is their number.

        *epoch* is empty for a private message.
        """
        self.session_bytes += _NONCES_BYTES + len(nonces.encode()) + len(checks)
        self.connection.execute(
            "INSERT INTO nonces (client, count, epoch, first, nonces, checks) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (client, count, epoch, first, nonces, checks),
        )
        # For a client that has not been counted yet, assume the maximum.
        counted = self._nonce_counts.get(client, MAX_UNACCEPTED) + count
        if counted > MAX_UNACCEPTED:
            self._trim_nonces(client)
            counted = 0
        if len(self._nonce_counts) >= _MAX_COUNTED:
            self._nonce_counts.clear()
        self._nonce_counts[client] = counted

    def _trim_nonces(self, client: int) -> None:
        total = 0
        for seq, count in self.connection.execute(
            "SELECT seq, count FROM nonces WHERE client = ? ORDER BY seq DESC", (client,)
        ):
            total += count if type(count) is int else 0
            if total >= MAX_UNACCEPTED:
                self.connection.execute(
                    "DELETE FROM nonces WHERE client = ? AND seq < ?", (client, seq)
                )
                return
