"""The rows of a SQLite journal: what is written, and what is read.

For one thread at a time; nothing here knows of waiting, of trying again, or of numbering.
Each statement finds its rows by an index: none takes longer because there is much in the file.
"""

import secrets
import sqlite3
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

import msgspec

from multichat.framing import clean, clean_lines
from multichat.journal import KeptNonce, KeptSession, SessionRecord
from multichat.journal.sqlite_file import SQLITE_ERRORS, DamagedRow, is_damage, text_or_bytes, typed
from multichat.journal.sqlite_repair import (
    EPOCH,
    MAX_COUNTER,
    ROOMS,
    are_heads,
    is_whole,
    repair,
)
from multichat.messages import MAX_DECOMPOSED, MAX_UNACCEPTED, Nonce, SaidRun
from multichat.names import fold_name

__all__ = [
    "RUN_COLUMNS",
    "Head",
    "RoomHead",
    "Rows",
    "SessionRow",
    "read_runs",
    "read_runs_backwards",
    "read_session",
    "said_run",
]

# Clients whose nonces we have counted; of others they are counted anew.
_MAX_COUNTED = 20_000

# How often the clock of the file is written: a server that is killed loses as much of it.
_CLOCK_SECONDS = 60.0

# What a short transaction writes to the WAL: some six pages.
_TRANSACTION_BYTES = 24 * 1024

# Ids of older epochs are unknown to a server; `history --since` knows all that are in the file.
_MAX_EPOCHS = 100_000

# Those of a run; its epoch is the one that ended first behind it, or else the room's present one.
RUN_COLUMNS = """
    coalesce(
        (SELECT epoch FROM epochs WHERE room = runs.room AND next > runs.first
            AND length(epoch) = 11 AND epoch NOT GLOB '*[^0-9a-f]*' ORDER BY next LIMIT 1),
        (SELECT epoch FROM rooms WHERE id = runs.room)
    ),
    (SELECT name FROM rooms WHERE id = runs.room),
    first, time, shown, client, name, text, act, messages
"""

# In how many rooms a start tries to say something before it gives up.
_MAX_TRIED = 100

# Where rows are damaged, so many numbers are looked up one by one: some milliseconds.
_MAX_LOOKUPS = 2000

# What no name has, and what would end a string in JSON.
_QUOTES = str.maketrans({'"': "\ufffd", "\\": "\ufffd"})


class Head(NamedTuple):
    """What is known of a room without reading what was said there; see `RoomJournal`."""

    id: int
    name: str
    epoch: str
    first: int
    next: int
    earlier: Mapping[str, int]


@dataclass(slots=True)
class _Tried:
    """A room in which it is tried to say something; see `RoomHead`."""

    id: int
    name: str
    epoch: str
    first: int
    begins: int
    earlier: Mapping[str, int]


class _Undo(Exception):
    """A transaction is not committed."""


class RoomHead(Protocol):
    """The same, of a room in which something is said; *begins* is the first of its epoch."""

    id: int
    name: str
    epoch: str
    first: int
    begins: int
    earlier: Mapping[str, int]


class SessionRow(NamedTuple):
    """A session, and when the clock of the file stood there as it was *seen* last.

    Infinite while it is connected.
    """

    record: SessionRecord
    seen: float


class Rows:
    """What one thread writes, through *connection*, which it has for itself.

    *clients_ever* and *last_epoch* are the highest that are in the file; *loaded_seq* is that of
    the last run before it was opened.

    The clock of the file says for how many seconds servers have run with it: a session's age is
    counted in these, because the system's clock may be wrong at any time.  *loaded_clock* is where
    it stood when the file was opened.  *new_sessions* is how many may have come since it was set.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        connection.text_factory = text_or_bytes
        self.repaired: list[str] = []
        self.clients_ever = self.last_epoch = 0
        self.loaded_clock = self._written_clock = 0.0
        self.new_sessions = 0
        self._seq = self.loaded_seq = 0
        self._nonce_counts: dict[int, int] = {}  # of each client, since they were last trimmed
        self.unkept_nonces: set[int] = set()  # clients whose nonces are on a damaged page
        # Of the transaction that is being made.
        self._runs: list[tuple[object, ...]] = []
        self._heads: dict[int, tuple[object, ...]] = {}
        self._ended: list[tuple[object, ...]] = []
        self._highest_client = self._highest_epoch = 0
        # The next transaction is the first since the WAL was written back: in full, or in part?
        self._written_back: bool | None = None
        self._has_stamps = True
        self._wal_bytes = 0  # about
        self.long_wal_bytes = 4 * 1024 * 1024  # about, after which it is written back

    def load(self) -> list[Head]:
        """Read where the last server stopped; return all rooms, the longest silent first.

        What is damaged of that is repaired first; *repaired* says what was done.  Raises one of
        `SQLITE_ERRORS` where nothing could be said with this file.
        """
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
            with suppress(DamagedRow):  # the ids of that epoch are unknown
                room, next_, epoch = typed(row, int, int, str)
                if EPOCH.fullmatch(epoch):
                    earlier.setdefault(room, {})[epoch] = next_
        heads = [
            Head(id_, name, epoch, first, next_, earlier.get(id_, {}))
            for id_, name, epoch, first, next_, *_ in rooms
        ]
        self._try_to_say(heads)
        with suppress(*SQLITE_ERRORS), self.transaction():  # those of clients that were connected
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
        """Return the earlier epochs of *rooms*, those of each oldest first, as far as readable."""
        sql = "SELECT room, next, epoch FROM epochs WHERE room = ? ORDER BY next DESC LIMIT ?"
        found: list[tuple[Any, ...]] = []
        for room in rooms:
            with suppress(*SQLITE_ERRORS):
                found += self.connection.execute(sql, (room, _MAX_EPOCHS)).fetchall()[::-1]
        return found

    def _try_to_say(self, heads: list[Head]) -> None:
        """Raise one of `SQLITE_ERRORS` if a message can be said in none of the rooms.

        Each message needs some pages, such as the one behind the last message; where one of them is
        damaged, a server is of no use.
        """
        unused = f"{MAX_COUNTER:011x}"  # an epoch
        tried = heads[:: max(1, len(heads) // _MAX_TRIED)] or [Head(1, "\n", unused, 0, 0, {})]
        failure: Exception | None = None
        for head in tried:
            earlier = {**head.earlier, head.epoch: head.next} if heads else {}
            said = SaidRun(unused, head.next, "", head.name, 0, "", "")
            room = _Tried(head.id, head.name, unused, head.first, head.next, earlier)
            try:
                with suppress(_Undo), self.transaction():
                    self._stamp(0)
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
        """Commit what is done in the block, or nothing of it; raises one of `SQLITE_ERRORS`.

        *clock* is where the clock of the file stands now.
        """
        execute = self.connection.execute
        seq = self._seq
        self._highest_client, self._highest_epoch = self.clients_ever, self.last_epoch
        execute("BEGIN IMMEDIATE")
        try:
            if self._written_back is not None and self._has_stamps:
                if self._written_back:
                    execute("DELETE FROM stamps WHERE id < (SELECT max(id) FROM stamps)")
                self._stamp(0)
            yield
            self._flush()
            if (self._highest_client, self._highest_epoch) != (self.clients_ever, self.last_epoch):
                highest = self._highest_client, self._highest_epoch
                execute("UPDATE heads SET clients_ever = ?, last_epoch = ?", highest)
            if is_later := clock - self._written_clock >= _CLOCK_SECONDS:
                execute("UPDATE heads SET clock = ?", (clock,))
            execute("COMMIT")
        except BaseException:
            self._seq = seq
            self._clear()
            if self.connection.in_transaction:  # some failures have ended it already
                with suppress(*SQLITE_ERRORS):
                    execute("ROLLBACK")
            raise
        self.clients_ever, self.last_epoch = self._highest_client, self._highest_epoch
        if is_later:
            self._written_clock = clock
        self._written_back = None
        self.note_written(_TRANSACTION_BYTES)

    def note_written(self, size: int) -> None:
        """Note that the WAL is *size* bytes longer, about; write it back if it is long."""
        self._wal_bytes += size
        if self._wal_bytes > self.long_wal_bytes and not self.connection.in_transaction:
            self.write_back()

    def write_back(self, *, truncate: bool = False, end_clock: float | None = None) -> None:
        """Write the WAL back into the file, as far as no reader is in the way.

        With *truncate* it waits for readers, and the WAL takes no place on the disk after that.
        *end_clock* is where the clock of the file stands at the end, if nothing is written later.
        Whatever goes wrong is tried again next time.  The file is sealed before with a stamp that
        no earlier backup has; see `sqlite_file._wal_belongs`.
        """
        self._wal_bytes = 0
        try:
            with self.transaction():
                self._stamp(1 if end_clock is None else 2)
                if end_clock is not None:
                    self.connection.execute("UPDATE heads SET clock = ?", (end_clock,))
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                return
            self._has_stamps = False  # damaged: no reason to keep nothing
        self._written_back = False
        with suppress(*SQLITE_ERRORS):
            busy, in_wal, written = self.connection.execute(
                f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'PASSIVE'})"
            ).fetchone()
            self._written_back = not busy and in_wal == written

    def _stamp(self, sealed: int) -> None:
        self.connection.execute(
            "INSERT INTO stamps (stamp, sealed) VALUES (?, ?)", (secrets.token_hex(8), sealed)
        )

    def _clear(self) -> None:
        self._runs.clear()
        self._heads.clear()
        self._ended.clear()
        self._nonce_counts.clear()

    def say(self, room: RoomHead, said: SaidRun, messages: int, size: int) -> None:
        """Keep *said*, which is so many *messages* and bytes, behind all that was said before."""
        self._seq += 1
        self._wal_bytes += size
        self._runs.append(
            (
                *(self._seq, room.id, said.first, messages, size, said.time),
                *(said.room, said.client, said.name, said.act, said.run),
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

    # --- Clients and who may come back ------------------------------------------------------------

    def give_numbers(self, clients_ever: int) -> None:
        """Keep that numbers up to *clients_ever* are somebody's."""
        self._highest_client = max(self._highest_client, clients_ever)

    def keep_session(self, row: SessionRow) -> None:
        """Keep it instead of what was kept of that session."""
        record = row.record
        self._highest_client = max(self._highest_client, record.client)
        self.new_sessions += 1
        values = (record.digest, record.client, record.name, record.room, row.seen)
        self.connection.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?)", values)

    def forget_session(self, digest: bytes) -> None:
        """Forget that session, and the nonces of its client."""
        execute = self.connection.execute
        row = execute("SELECT client FROM sessions WHERE digest = ?", (digest,)).fetchone()
        if row is not None:
            execute("DELETE FROM sessions WHERE digest = ?", (digest,))
            execute("DELETE FROM nonces WHERE client = ?", row)
            self._nonce_counts.pop(row[0], None)

    def use_nonces(
        self, client: int, epoch: str, first: int, nonces: str, count: int, checks: bytes
    ) -> None:
        """Keep with which *nonces*, *count* of them spelled as JSON, *client* said a run.

        *epoch* is empty for a private message.
        """
        self.connection.execute(
            "INSERT INTO nonces (client, count, epoch, first, nonces, checks) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (client, count, epoch, first, nonces, checks),
        )
        # Of a client that we have not counted yet, there may be as many as may be.
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


# --- Reading --------------------------------------------------------------------------------------


def read_runs(
    connection: sqlite3.Connection, room: int, start: int, stop: int, damaged: list[int]
) -> Generator[SaidRun, None, None]:
    """Yield the runs of *room* that have messages with numbers from *start* up to *stop*.

    Damaged rows are left out, and the first number of each is appended to *damaged*; raises only
    if nothing at all can be read.  To be closed by whoever does not read it to its end.
    """
    row = connection.execute(
        "SELECT max(first) FROM runs WHERE room = ? AND first <= ?", (room, start)
    ).fetchone()
    position = row[0] if type(row[0]) is int else start
    found = False
    try:
        which = "first >= ? AND first < ? ORDER BY first"
        for said in _read_runs(connection, room, which, position, stop):
            found = True
            position = said.first + 1
            yield said
    except SQLITE_ERRORS as error:
        numbers = range(max(0, position), stop)
        yield from _look_up(connection, room, numbers, damaged, error, found=found)


def read_runs_backwards(
    connection: sqlite3.Connection, room: int, stop: int, damaged: list[int]
) -> Generator[SaidRun, None, None]:
    """Yield the runs of *room* that have messages with numbers below *stop*, the newest first.

    The rest is as for `read_runs`.
    """
    position, found = stop, False
    try:
        which = "first < ? ORDER BY first DESC"
        for said in _read_runs(connection, room, which, position):
            found = True
            position = said.first
            yield said
    except SQLITE_ERRORS as error:
        numbers = range(position - 1, -1, -1)
        yield from _look_up(connection, room, numbers, damaged, error, found=found)


def _look_up(
    connection: sqlite3.Connection,
    room: int,
    numbers: range,
    damaged: list[int],
    error: Exception,
    *,
    found: bool,
) -> Generator[SaidRun, None, None]:
    """Yield the runs that begin at one of *numbers*, after *error*, without those that raise it.

    Where some runs were *found* before, it is not raised again.
    """
    if not is_damage(error):
        raise error
    for number in numbers[:_MAX_LOOKUPS]:
        try:
            for said in _read_runs(connection, room, "first = ?", number):
                found = True
                yield said
        except SQLITE_ERRORS as again:
            if not is_damage(again):
                raise
            damaged.append(number)
    if not found:
        raise error


def _read_runs(
    connection: sqlite3.Connection, room: int, which: str, *parameters: int
) -> Generator[SaidRun, None, None]:
    sql = f"SELECT {RUN_COLUMNS} FROM runs WHERE room = ? AND {which}"  # noqa: S608 - our own words
    cursor = connection.execute(sql, (room, *parameters))
    try:
        for row in cursor:
            yield said_run(row)
    finally:
        cursor.close()


def said_run(row: Sequence[object]) -> SaidRun:
    """Return a row of `RUN_COLUMNS` as a server has it.

    The file may be anybody's: its text is cleaned, a name is a string in JSON as it is, and no row
    is said in another room than its own.  Raises `DamagedRow`.
    """
    epoch, room, first, said_at, shown, client, name, text, act, messages = typed(
        row, str, str, int, str, str, int, str, str, int, int
    )
    if text.count("\n") + 1 != messages:
        raise DamagedRow
    epoch, said_at, shown, name = (
        clean(each).translate(_QUOTES) for each in (epoch, said_at, shown, name)
    )
    if fold_name(shown) != room:
        shown = clean(room).translate(_QUOTES)
    return SaidRun(epoch, first, said_at, shown, client, name, clean_lines(text), bool(act))


def read_session(
    connection: sqlite3.Connection, digest: bytes, waiting: SessionRow | None, clock: float
) -> KeptSession | None:
    """Return that session with its last nonces, None if there is none.

    *waiting* is what is about to be written of it, if anything is, and *clock* where the clock of
    the file stands now.  Raises `DamagedRow` also if any of its nonces is damaged: what is said
    with it could not be told from what was said before.
    """
    if waiting is None:
        row = connection.execute(
            "SELECT digest, client, name, room, seen FROM sessions WHERE digest = ?", (digest,)
        ).fetchone()
        if row is None:
            return None
        waiting = _session(row)
        # Of two that claim one number it is not known whose that is.
        others = connection.execute(
            "SELECT 1 FROM sessions WHERE client = ? AND digest != ?", (row[1], digest)
        )
        if others.fetchone() is not None:
            raise DamagedRow
    record, seen = waiting
    nonces = _read_nonces(connection, record.client, MAX_UNACCEPTED)
    return KeptSession(record=record, age_seconds=max(0.0, clock - seen), nonces=nonces)


def _session(row: tuple[Any, ...]) -> SessionRow:
    """Return a row of `sessions`; raises `DamagedRow`.

    A name that nobody can have does not keep a client from coming back: it is told so, and comes
    back without it.
    """
    digest, client, name, room, seen = typed(row, bytes, int, str, str, float)
    if not (
        len(digest) == sha256().digest_size
        and client <= MAX_COUNTER
        and 0 < len(room) <= MAX_DECOMPOSED
        and clean(room) == room
    ):
        raise DamagedRow
    name = clean(name[: MAX_DECOMPOSED + 1])
    return SessionRow(SessionRecord(digest=digest, client=client, name=name, room=room), seen)


def _read_nonces(connection: sqlite3.Connection, client: int, limit: int) -> list[KeptNonce]:
    """Return the last *limit* nonces of *client*, the oldest first."""
    found: list[KeptNonce] = []
    for row in connection.execute(
        "SELECT epoch, first, coalesce("
        "(SELECT name FROM rooms WHERE epoch = nonces.epoch), (SELECT name FROM rooms WHERE id = "
        "(SELECT room FROM epochs WHERE epoch = nonces.epoch)), ''), nonces, count, checks "
        "FROM nonces WHERE client = ? ORDER BY seq DESC LIMIT ?",
        (client, limit),
    ).fetchall():
        epoch, first, room, spelled, count, checks = typed(row, str, int, str, str, int, bytes)
        try:
            nonces = _decode_nonces(spelled)
        except (msgspec.MsgspecError, RecursionError):
            raise DamagedRow from None
        if (
            len(nonces) - nonces.count(None) != count
            or not (EPOCH.fullmatch(epoch) or epoch == "")
            or len(checks) not in (0, 4 * len(nonces))
        ):
            raise DamagedRow
        found += [
            KeptNonce(nonce, epoch, first + i, room, checks[4 * i : 4 * i + 4])
            for i, nonce in reversed(list(enumerate(nonces)))
            if nonce is not None
        ]
        if len(found) >= limit:
            break
    return found[:limit][::-1]


_decode_nonces = msgspec.json.Decoder(list[Nonce | None]).decode
