"""The file of a SQLite journal: its tables, how it is opened, and what makes it nobody else's.

Opens a file only if it is ours, whole as far as can be seen at once, and not in use by another
server; where it is not, nothing in it is touched.

Source: https://www.sqlite.org/fileformat2.html and https://www.sqlite.org/wal.html
"""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from multichat.errors import JournalFailed

__all__ = ["Found", "connect", "open_file", "open_for_reading", "reason_of"]

# "mult", in the header of each of our files.
APPLICATION_ID = 0x6D756C74

_MAGIC = b"SQLite format 3\0"

# A reader that has just begun, or another program that looks into the file.
_BUSY_MILLISECONDS = 2000

# From each version to the next; those of older files are run when they are opened.
MIGRATIONS = (
    """
    CREATE TABLE rooms (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        epoch TEXT NOT NULL UNIQUE,
        next INTEGER NOT NULL
    );
    CREATE TABLE runs (
        seq INTEGER PRIMARY KEY,
        room INTEGER NOT NULL,
        first INTEGER NOT NULL,
        messages INTEGER NOT NULL,
        time TEXT NOT NULL,
        shown TEXT NOT NULL,
        client INTEGER NOT NULL,
        name TEXT NOT NULL,
        act INTEGER NOT NULL,
        text TEXT NOT NULL
    );
    CREATE UNIQUE INDEX runs_by_number ON runs (room, first);
    CREATE TABLE sessions (
        digest BLOB PRIMARY KEY,
        client INTEGER NOT NULL,
        name TEXT NOT NULL,
        room TEXT NOT NULL,
        seen REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX sessions_by_seen ON sessions (seen);
    CREATE TABLE nonces (
        seq INTEGER PRIMARY KEY,
        client INTEGER NOT NULL,
        epoch TEXT NOT NULL,
        first INTEGER NOT NULL,
        nonces TEXT NOT NULL
    );
    CREATE INDEX nonces_by_client ON nonces (client, seq);
    CREATE TABLE numbers (clients_ever INTEGER NOT NULL);
    INSERT INTO numbers VALUES (0);
    """,
)

_REASONS = {
    "SQLITE_FULL": "the disk is full",
    "SQLITE_BUSY": "it is in use by another program",
    "SQLITE_LOCKED": "it is in use by another program",
    "SQLITE_CORRUPT": "it is damaged",
    "SQLITE_NOTADB": "it is no journal of multichat's",
    "SQLITE_READONLY": "it may not be written to",
    "SQLITE_CANTOPEN": "it cannot be opened",
    "SQLITE_IOERR": "the disk has failed",
}


def reason_of(error: Exception) -> str:
    """Say in a few lower-case words what SQLite, or the system, has to complain about."""
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", None) or ""
        main = "_".join(name.split("_")[:2])  # SQLITE_IOERR_WRITE is one of SQLITE_IOERR
        return _REASONS.get(main) or str(error).lower()
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return str(error)


class Found(NamedTuple):
    """A file that is open: one *connection* to write, and the *lock*, which ends when it closes."""

    connection: sqlite3.Connection
    lock: sqlite3.Connection


def open_file(path: Path, synchronous: str) -> Found:
    """Open the journal at *path*, or begin one there; its *synchronous* is SQLite's word.

    A new file can be read by nobody else.  Raises `JournalFailed`.
    """
    try:
        is_new = not path.exists() or path.stat().st_size == 0
        if not is_new:
            _check(path)
        lock = _lock(path)
        try:
            if is_new:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = connect(path)
            try:
                _prepare(connection, synchronous, is_new=is_new)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            lock.close()
            raise
    except (OSError, sqlite3.Error) as error:
        raise JournalFailed(path, reason_of(error)) from error
    return Found(connection, lock)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open the journal at *path* to read alone, while a server writes it or not.

    Raises `JournalFailed`.
    """
    try:
        if not path.exists():
            raise FileNotFoundError(2, "")
        _check(path)
        return _connect_read_only(path)
    except (OSError, sqlite3.Error) as error:
        raise JournalFailed(path, reason_of(error)) from error


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Connect; used by one thread at a time, whichever it is.  No transaction begins by itself."""
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        check_same_thread=False,
        isolation_level=None,
    )
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
    return connection


def _connect_read_only(path: Path) -> sqlite3.Connection:
    connection = connect(path, read_only=True)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError:
        # A folder in which nothing may be written, not even what readers agree by.  Nobody writes
        # there then, and without what a writer left behind the file stands for itself.
        connection.close()
        wal = Path(f"{path}-wal")
        if wal.exists() and wal.stat().st_size:
            raise
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    return connection


def _check(path: Path) -> None:
    """Raise `JournalFailed` if that is not a journal that we can read, or one that is cut off."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise JournalFailed(path, _REASONS["SQLITE_NOTADB"])
    connection = _connect_read_only(path)
    try:
        [[application]] = connection.execute("PRAGMA application_id")
        [[version]] = connection.execute("PRAGMA user_version")
        [[pages]] = connection.execute("PRAGMA page_count")
        [[page_bytes]] = connection.execute("PRAGMA page_size")
    finally:
        connection.close()
    if application != APPLICATION_ID:
        raise JournalFailed(path, _REASONS["SQLITE_NOTADB"])
    if version > len(MIGRATIONS):
        raise JournalFailed(path, "it was made by a newer multichat")
    wal = Path(f"{path}-wal")
    # What has not been written back stands in the other file, and the first is shorter meanwhile.
    is_whole = wal.exists() and wal.stat().st_size > 0
    if not is_whole and path.stat().st_size < pages * page_bytes:
        raise JournalFailed(path, "it is damaged: its end is missing")


def _lock(path: Path) -> sqlite3.Connection:
    """Be the only server that writes there, until the process ends or this is closed.

    SQLite's own lock, on an empty file beside: it is let go of by a `kill -9`, works wherever
    SQLite does, and keeps out no reader.
    """
    beside = Path(f"{path}-lock")
    with suppress(FileExistsError):
        os.close(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    lock = sqlite3.connect(
        f"{beside.resolve().as_uri()}?mode=rw",
        uri=True,
        timeout=0,
        check_same_thread=False,
        isolation_level=None,
    )
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY":
            raise JournalFailed(path, "another server keeps its journal there") from error
        raise
    return lock


def _prepare(connection: sqlite3.Connection, synchronous: str, *, is_new: bool) -> None:
    if is_new:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    [[version]] = connection.execute("PRAGMA user_version")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in script.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
