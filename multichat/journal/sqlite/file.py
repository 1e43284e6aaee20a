"""Opens the file of a SQLite journal, after checking that it is a valid journal.

A file that is not a journal, is in use, was made by a newer version, or is visibly damaged is
refused with one line, and not changed.

1. Checks read only.
2. Only one process writes: it holds a lock (`multichat.journal.sqlite.file_lock`), which ends with
   the process.
3. Nothing reads the whole file: the time to open it does not depend on the number of messages.

Source: https://www.sqlite.org/fileformat2.html, https://www.sqlite.org/wal.html
"""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from multichat.errors import JournalFailed
from multichat.journal.sqlite.file_lock import FileLock, is_locked
from multichat.journal.sqlite.schema import (
    APPLICATION_ID,
    EPOCHS_VERSION,
    MIGRATIONS,
    compare_schemas,
    expected_schema,
    migrate,
    read_plain_indexes,
    read_schema,
)
from multichat.journal.sqlite.wal_damage import describe_wal_damage
from multichat.protocol.framing import clean

__all__ = [
    "DAMAGED",
    "DISK_FAILS",
    "DISK_FULL",
    "MAX_NUMBER",
    "SQLITE_ERRORS",
    "DamagedRow",
    "FileToRead",
    "OpenFile",
    "connect",
    "contents_of",
    "describe_error",
    "is_damage",
    "is_locked_out",
    "newest_stamp",
    "open_file",
    "open_for_reading",
    "typed",
    "with_advice",
]

# How long SQLite waits for a lock of another program, such as a backup; after that the journal
# itself retries.
BUSY_SECONDS = 0.25

DISK_FULL = "the disk is full"
DISK_FAILS = "the disk fails"
DAMAGED = "the file is damaged"
_BUSY = "another program is using it"
_NOT_OURS = "not a journal of multichat"

_REASONS = {
    "SQLITE_BUSY": _BUSY,
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_CONSTRAINT": DAMAGED,
    "SQLITE_CORRUPT": DAMAGED,
    "SQLITE_FULL": DISK_FULL,
    "SQLITE_IOERR": DISK_FAILS,
    "SQLITE_LOCKED": _BUSY,
    "SQLITE_NOTADB": _NOT_OURS,
    "SQLITE_PERM": "permission denied",
    "SQLITE_READONLY": "cannot be written to",
}


# The largest integer that is exact in JSON; no number in a journal is larger.
MAX_NUMBER = 2**53

_SHOWN_CHARACTERS = 100


# UnicodeDecodeError: SQLite's error message can quote undecodable bytes of a damaged file.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)


class DamagedRow(sqlite3.DatabaseError):
    """A row has values that no server has written: SQLite accepts any type in any column."""

    def __init__(self) -> None:
        super().__init__(DAMAGED)


def typed(row: Any, *kinds: type) -> Any:
    """Return *row* if its values have exactly these *kinds*, and its numbers are from 0 to 2**53.

    Raises `DamagedRow`.
    """
    if row is None or tuple(map(type, row)) != kinds:
        raise DamagedRow
    for value in row:
        if type(value) is int and not 0 <= value <= MAX_NUMBER:
            raise DamagedRow
    return row


# Errors about a part of the file: the rest may be intact.  A constraint fails if rows contradict
# each other.
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_CONSTRAINT", "SQLITE_IOERR_READ", "SQLITE_IOERR_SHORT_READ")


def is_damage(error: BaseException) -> bool:
    """Return whether *error* is about one part of the file, so that the rest can be used."""
    if isinstance(error, DamagedRow | UnicodeDecodeError):
        return True
    name = getattr(error, "sqlite_errorname", None) or ""
    return name.startswith(_DAMAGE) or (not name and "UTF-8" in str(error))


def is_locked_out(error: BaseException | None) -> bool:
    """Return whether the file is locked by another program, which may end soon."""
    name = getattr(error, "sqlite_errorname", None) or ""
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _text_or_bytes(data: bytes) -> str | bytes:
    """Decode text from the file; return bytes, which `typed` refuses, if it is not UTF-8.

    A `text_factory`: the default one raises, and then no later row can be read.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def describe_error(error: Exception) -> str:
    """Return a short reason for an error of SQLite or the system, cleaned, in one line."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    # "SQLITE_IOERR_WRITE" is one of "SQLITE_IOERR".
    name = "_".join((getattr(error, "sqlite_errorname", None) or "").split("_")[:2])
    if isinstance(error, UnicodeDecodeError) or (not name and "UTF-8" in str(error)):
        return DAMAGED  # the message quotes undecodable bytes
    return _REASONS.get(name) or clean(str(error))[:_SHOWN_CHARACTERS]


_ADVICE = {
    DISK_FULL: "free some space; the server needs no restart",
    DISK_FAILS: "check the disk; the server needs no restart",
    _BUSY: "end that program; the server needs no restart",
    DAMAGED: "restore a backup, or recover the rest with sqlite3's .recover",
}


def with_advice(reason: str) -> str:
    """Return *reason* with advice to the operator."""
    advice = _ADVICE.get(reason)
    return f"{reason}; {advice}" if advice else reason


# The suffixes of the files beside a journal.
_SUFFIXES = ("-wal", "-shm", "-lock", "-journal", "-reserve")

# The suffixes of files that SQLite overwrites in place, and with them any hard links.
_WRITTEN_IN_PLACE = ("-wal", "-shm")


class OpenFile(NamedTuple):
    """A journal opened for writing; *pin* is a connection that only reads.

    *warning* says what is missing from the WAL of a killed server, if anything.
    """

    connection: sqlite3.Connection
    pin: sqlite3.Connection
    lock: FileLock
    warning: str

    def close(self, *, checkpoint: bool = True) -> None:
        """Close all of it; with *checkpoint* what is in the WAL is copied into the file."""
        # SQLite makes a checkpoint when the last connection is closed, if that may write.
        order = [self.pin, self.connection] if checkpoint else [self.connection, self.pin]
        for connection in order:
            with suppress(*SQLITE_ERRORS):
                connection.close()
        self.lock.close()


class FileToRead(NamedTuple):
    """A journal opened for reading; *wal_damage* says which part of its WAL could not be read."""

    connection: sqlite3.Connection
    wal_damage: str


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Connect to *path*, for one thread at a time; *mode* is the end of SQLite's URI for it.

    Transactions are explicit.  Text that is not UTF-8 is returned as bytes.
    """
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )
    connection.text_factory = _text_or_bytes
    return connection


@contextmanager
def _failing(path: object) -> Iterator[None]:
    try:
        yield
    except (*SQLITE_ERRORS, OSError) as error:
        raise JournalFailed(path, describe_error(error)) from error


def open_file(
    path: Path, *, durable: bool, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> OpenFile:
    """Open or create the journal at *path* for writing; the caller closes what is returned.

    *durable*: each commit waits for the disk.  A new file is readable only by its owner.  Raises
    `JournalFailed`.
    """
    with _failing(path):
        real = _resolved(path)  # so that symbolic links share one lock
        exists = _exists(path, real, writing=True)
        if exists:
            _inspect_unlocked(path, real, migrations)
        with _failing(f"{real}-lock"):
            lock = FileLock(path, real)
        try:
            exists = exists and _exists(path, real, writing=True)
            if not exists:
                _create(real)
            lock.lock_file()
            if exists:
                _check_wal(path, real)
                # A server that was killed while creating the file left a rollback journal.
                mode = "rw" if _bytes_beside(real, "-journal") else "ro"
                _inspect(path, real, mode, migrations, beginning=True)
                _check_names(path, real)
            warning = _wal_warning(real) if exists else ""
            opened = OpenFile(connect(real, "rw"), connect(real, "ro"), lock, warning)
        except BaseException:
            lock.close()
            raise
        try:
            # SQLite opens the file with the first read.
            opened.pin.execute("SELECT 1 FROM sqlite_master").fetchall()
            _prepare(opened.connection, durable=durable)
            migrate(opened.connection, migrations)
            lock.watch()
        except BaseException:
            opened.close(checkpoint=False)
            raise
    return opened


def _inspect_unlocked(path: Path, real: Path, migrations: Sequence[Sequence[str]]) -> None:
    """Inspect the file without a lock, to create no lock file beside a file of another program."""
    try:
        _inspect(path, real, "ro&immutable=1", migrations, beginning=True)
    except JournalFailed as failure:
        # A part of the last write of a killed or running server may be missing.
        unfinished = _bytes_beside(real, "-wal") or _bytes_beside(real, "-journal")
        if not (isinstance(failure.__cause__, SQLITE_ERRORS) and unfinished):
            raise


def open_for_reading(path: Path) -> FileToRead:
    """Open the journal at *path* for reading, even while a server writes to it.

    Works on a read-only file system, too.  The caller closes the connection.  Raises
    `JournalFailed`.
    """
    with _failing(path):
        real = _resolved(path)
        if not _exists(path, real, writing=False):
            raise JournalFailed(path, _NOT_OURS if real.exists() else "no such file")
        mode = "ro"
        try:
            _check_unlocked(_check_wal, path, real)
            _inspect(path, real, mode, MIGRATIONS)
            _check_unlocked(_check_names, path, real)
        except JournalFailed as failure:
            cause = failure.__cause__
            code = getattr(cause, "sqlite_errorname", "") or ""
            if not code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                raise
            # Readers and writers share a -shm, which cannot be created here, so no server writes
            # to this file.  Messages that are only in the WAL must not be silently skipped.
            if _bytes_beside(real, "-wal"):
                raise JournalFailed(
                    path, "its server was killed; to read it, copy it together with its -wal"
                ) from cause
            mode = "ro&immutable=1"
            _inspect(path, real, mode, MIGRATIONS)
            if _bytes_beside(real, "-journal"):
                raise JournalFailed(
                    path, "its last write was not finished; start its server first"
                ) from cause
        wal_damage = "" if is_locked(real) else describe_wal_damage(real)
        if wal_damage and is_locked(real):  # a server has started meanwhile
            wal_damage = ""
        connection = connect(real, mode)
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version < EPOCHS_VERSION:  # not migrated by readers: each room has one epoch
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("CREATE TEMP TABLE epochs (room, next, epoch)")
        return FileToRead(connection, wal_damage)


def _check_unlocked(check: Callable[[Path, Path], None], path: Path, real: Path) -> None:
    """Run *check* unless a server is running, which has checked the file and may change it."""
    if not is_locked(real):
        try:
            check(path, real)
        except JournalFailed:
            if not is_locked(real):  # a server may have started during the check
                raise


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError:  # until Python 3.13
        raise JournalFailed(path, os.strerror(errno.ELOOP).lower()) from None


def _exists(path: Path, real: Path, *, writing: bool) -> bool:
    """Return whether the file has content; raises `JournalFailed` if it cannot be a journal."""
    folder = real.parent
    if not folder.is_dir():
        raise JournalFailed(path, f"there is no directory {folder}")
    for each in (path, *(Path(f"{real}{suffix}") for suffix in _SUFFIXES)):
        if each.exists() and not each.is_file():  # opening a FIFO would block
            raise JournalFailed(each, "not a file")
    for each in (Path(f"{real}{suffix}") for suffix in _WRITTEN_IN_PLACE if writing):
        if each.is_symlink() or (each.exists() and each.stat().st_nlink > 1):
            advice = "replace it by a copy" if each.exists() else "move it away"
            raise JournalFailed(each, f"a link to another file, which SQLite overwrites; {advice}")
    if writing and not os.access(folder, os.W_OK | os.X_OK):
        raise JournalFailed(path, f"nothing can be written to {folder}")
    wal = _wal_of(real)
    if _bytes_beside(real, "-wal") and not (real.exists() and real.stat().st_size):
        # SQLite would create a new file and delete the WAL.
        what = "empty" if real.exists() else "missing"
        raise JournalFailed(
            path,
            f"the file is {what}, but {wal} has messages of it; put the file back, or move the "
            "-wal away to start a new journal",
        )
    if not real.exists():
        return False
    if not os.access(real, os.R_OK):
        raise JournalFailed(path, "permission denied")
    if writing and not os.access(real, os.W_OK):
        raise JournalFailed(path, _REASONS["SQLITE_READONLY"])
    size = real.stat().st_size
    if size == 1:  # SQLite would treat it as empty
        raise JournalFailed(path, _NOT_OURS)
    return size > 0


def _wal_of(real: Path) -> Path:
    return Path(f"{real}-wal")


def _bytes_beside(real: Path, suffix: str) -> int:
    try:
        return Path(f"{real}{suffix}").stat().st_size
    except OSError:
        return 0


class _Stamp(NamedTuple):
    stamp: str
    sealed: int


# The stamp of a journal without stamps: one of version 1, or without tables.
_NO_STAMP = _Stamp("", 2)

# In the header, the versions of the file format: 2 is a file with a WAL.
_FORMAT_OFFSET, _WAL_FORMAT = 18, b"\2\2"


def _check_wal(path: Path, real: Path) -> None:
    """Raise `JournalFailed` if the WAL belongs to another file, such as one replaced by a backup.

    Not for a process that has the file open: see `FileLock`.
    """
    if not _bytes_beside(real, "-wal"):
        return
    with _failing(path):
        belongs = _wal_belongs(real)
    if not belongs:
        wal = _wal_of(real)
        raise JournalFailed(
            path,
            f"{wal.name} does not belong to this file, as after a backup was copied over it, a "
            "start under another name of the file, or a change by another program; to continue "
            f"with this file, move {wal.name} and {real.name}-shm away, or put the other file back",
        )


def _check_names(path: Path, real: Path) -> None:
    """Raise `JournalFailed` if the file has hard links and its WAL may be beside another name."""
    if real.stat().st_nlink > 1 and _lacks_wal(real):
        raise JournalFailed(
            path,
            f"the file has hard links, and {_wal_of(real).name} is missing or empty: use the name "
            "whose -wal is not empty; if there is none, or to continue without the messages in "
            "that -wal, replace this file by a copy",
        )


def _wal_warning(real: Path) -> str:
    """Return a warning if the WAL of a killed server is missing or damaged, empty if not."""
    if _lacks_wal(real):
        return (
            f"The last server was killed, and {_wal_of(real)} is not there: messages that were in "
            "it are missing"
        )
    return describe_wal_damage(real)


def _lacks_wal(real: Path) -> bool:
    """Return whether the last server was killed or is running, and its WAL is missing.

    The file itself has a seal then: see `_wal_belongs`.
    """
    if _bytes_beside(real, "-wal"):
        return False
    stamp = _last_stamp(real)
    if real.stat().st_nlink > 1:  # the WAL may be beside another name
        return stamp is None or stamp.sealed != 2 or stamp == _NO_STAMP
    return stamp is not None and stamp.sealed == 1


def _last_stamp(real: Path) -> _Stamp | None:
    """Return the last stamp in the file itself, without its WAL; None if that is damaged."""
    try:
        with closing(connect(real, "ro&immutable=1")) as alone:
            return _stamps(alone)[-1]
    except SQLITE_ERRORS:
        return None


def _wal_belongs(real: Path) -> bool:
    """Return whether a WAL belongs to its file; raises one of `SQLITE_ERRORS`, or `OSError`.

    SQLite cannot detect that, and would mix the two.  So the server writes a stamp, a *seal*,
    before each checkpoint, and another one in the first transaction after it: the WAL contains all
    stamps that its file can have.

    While a server runs, the stamp in the file itself is a seal: see `Rows.checkpoint`.  Otherwise
    the file is a backup, or another program has made a checkpoint after the server was killed; then
    the file has all messages.  Another program can also make one while the server waits for it;
    then the next seal says which contents the file may have since, until the server's own next
    checkpoint is complete.

    A backup made during a checkpoint, or after the last message, is not detected.  It differs from
    the file only in pages that are in the WAL, so nothing is mixed.

    A `VACUUM` moves tables, so a backup from before has its stamps in other pages than the WAL.
    The WAL contains the first page of the file with the number of the schema, which differs then.
    """
    with real.open("rb") as file:
        file.seek(_FORMAT_OFFSET)
        if file.read(len(_WAL_FORMAT)) != _WAL_FORMAT:  # such as a file made by `VACUUM INTO`
            return False
    with closing(connect(real, "ro&immutable=1")) as alone, closing(connect(real, "ro")) as both:
        try:
            found = _stamps(alone)[-1]
        except SQLITE_ERRORS:  # damaged, or the server was killed during a checkpoint
            return True
        try:
            both.execute("BEGIN")
            stamps = _stamps(both)
            if found not in stamps:
                return False
            if found == stamps[-1]:
                return found == _NO_STAMP or (
                    _schema_version(alone) == _schema_version(both)
                    and bool(found.sealed or contents_of(alone) == contents_of(both))
                )
            next_seal = stamps[stamps.index(found) + 1].stamp
            return bool(found.sealed) or next_seal.endswith(f" after {contents_of(alone)}")
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
            return False  # the file is readable, but not together with the WAL


def _stamps(connection: sqlite3.Connection) -> list[_Stamp]:
    """Return the stamps of a file, the newest last."""
    try:
        rows = connection.execute("SELECT stamp, sealed FROM stamps ORDER BY id")
        return [_Stamp(*row) for row in rows] or [_NO_STAMP]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_ERROR":
            raise
        return [_NO_STAMP]  # the table does not exist


def _schema_version(connection: sqlite3.Connection) -> object:
    return connection.execute("PRAGMA schema_version").fetchone()


def newest_stamp(connection: sqlite3.Connection) -> str:
    """Return the newest stamp of a file; raises one of `SQLITE_ERRORS`."""
    return _stamps(connection)[-1].stamp


def contents_of(connection: sqlite3.Connection) -> str:
    """Return a string that identifies the present contents of a file; see `_wal_belongs`."""
    [newest] = connection.execute("SELECT max(seq) FROM runs").fetchone()
    [schema] = connection.execute("PRAGMA schema_version").fetchone()
    return f"{newest} {schema}"


def _inspect(
    path: Path,
    real: Path,
    mode: str,
    migrations: Sequence[Sequence[str]],
    *,
    beginning: bool = False,
) -> None:
    """Raise `JournalFailed` if the file is visibly not a complete, valid journal.

    *beginning*: a file without tables is valid, too.
    """
    with _failing(path), closing(connect(real, mode)) as connection:
        [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        [application] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        [page_bytes] = connection.execute("PRAGMA page_size").fetchone()
        schema = read_schema(connection)
        plain = read_plain_indexes(connection)
    if not tables and application in (0, APPLICATION_ID):
        # A server may be between creating the file and its tables, or may have been killed there.
        if not beginning:
            raise JournalFailed(path, "it is still empty")
    elif application != APPLICATION_ID:
        raise JournalFailed(path, _NOT_OURS)
    if version > len(migrations):
        reason = f"made by a newer multichat: version {version}, this one knows {len(migrations)}"
        raise JournalFailed(path, reason)
    if tables and (fault := compare_schemas(schema, expected_schema(migrations[:version]), plain)):
        raise JournalFailed(path, fault)
    # A page is incomplete; SQLite itself detects missing pages.  If there is a WAL, the missing
    # pages may be in it.
    if not _bytes_beside(real, "-wal") and real.stat().st_size < pages * page_bytes:
        raise JournalFailed(path, DAMAGED)


def _create(real: Path) -> None:
    """Create an empty file with mode 0600; SQLite gives the files beside it the same mode.

    It survives a power cut, because the directory is synchronized.
    """
    with suppress(FileExistsError):
        os.close(os.open(real, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError:  # some file systems do not support it
            pass
        finally:
            os.close(folder)


def _prepare(connection: sqlite3.Connection, *, durable: bool) -> None:
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        # In a file with tables this would have no effect, but would write.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    [mode] = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":  # a file system without shared memory
        raise OSError(0, "SQLite cannot use a WAL there")
    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    if durable:  # on macOS, a plain fsync does not flush the disk's own cache
        connection.execute("PRAGMA fullfsync=1")
    connection.execute("PRAGMA checkpoint_fullfsync=1")
    connection.execute("PRAGMA wal_autocheckpoint=0")  # see `Rows.checkpoint`
