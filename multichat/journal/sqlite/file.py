"""The file of a SQLite journal: how it is opened, and whether it is one of ours.

Owns the checks of a file before anything is written to it.  A file that is not a journal, is in
use, was made by a newer version, or is visibly damaged is refused with one line and not changed.

1. Checks read only.
2.  One process writes: it holds a lock (`multichat.journal.sqlite.file_lock`), which ends with the
   process.
3. Nothing reads the whole file: opening takes as long for a million messages as for none.

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
    "describe_error",
    "is_busy",
    "is_damage",
    "open_file",
    "open_for_reading",
    "typed",
    "with_advice",
]

# How long SQLite waits for another program, such as one that makes a copy; after that the journal
# itself tries again.
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


# No number of ours is larger, and JSON has no larger one.
MAX_NUMBER = 2**53

_SHOWN_CHARACTERS = 100


# The second: SQLite's error message quotes bytes of a damaged file that Python cannot decode.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)


class DamagedRow(sqlite3.DatabaseError):
    """A row holds what no server has written there: SQLite keeps anything in any column."""

    def __init__(self) -> None:
        super().__init__(DAMAGED)


def typed(row: Any, *kinds: type) -> Any:
    """Return *row* if its values are of just these *kinds*, its numbers from 0 to 2**53.

    Raises `DamagedRow`.
    """
    if row is None or tuple(map(type, row)) != kinds:
        raise DamagedRow
    for value in row:
        if type(value) is int and not 0 <= value <= MAX_NUMBER:
            raise DamagedRow
    return row


# Of a part of the file: the rest of it may be whole.  A constraint fails where a row contradicts
# another one.
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_CONSTRAINT", "SQLITE_IOERR_READ", "SQLITE_IOERR_SHORT_READ")


def is_damage(error: BaseException) -> bool:
    """Return whether *error* is about one part of the file, so that others can still be used."""
    if isinstance(error, DamagedRow | UnicodeDecodeError):
        return True
    name = getattr(error, "sqlite_errorname", None) or ""
    return name.startswith(_DAMAGE) or (not name and "UTF-8" in str(error))


def is_busy(failure: JournalFailed) -> bool:
    """Whether another program has locked the file, for a while at least."""
    name = getattr(failure.__cause__, "sqlite_errorname", None) or ""
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _text_or_bytes(data: bytes) -> str | bytes:
    """Return text as it is in the file; bytes, which `typed` refuses, if it is not UTF-8.

    A `text_factory`: SQLite's own raises, and then no row behind that one can be read.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def describe_error(error: Exception) -> str:
    """Return in a few words why SQLite, or the system, failed; clean, and in one line."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    # "SQLITE_IOERR_WRITE" is one of "SQLITE_IOERR".
    name = "_".join((getattr(error, "sqlite_errorname", None) or "").split("_")[:2])
    if isinstance(error, UnicodeDecodeError) or (not name and "UTF-8" in str(error)):
        return DAMAGED  # the message quotes what cannot be decoded
    return _REASONS.get(name) or clean(str(error))[:_SHOWN_CHARACTERS]


_ADVICE = {
    DISK_FULL: "make room on it, the server needs no restart",
    DISK_FAILS: "check the disk, the server needs no restart",
    _BUSY: "end that program, the server needs no restart",
    DAMAGED: "restore a backup, or save the rest by sqlite3's .recover",
}


def with_advice(reason: str) -> str:
    """Return *reason* with what the operator of a server can do about it."""
    advice = _ADVICE.get(reason)
    return f"{reason}; {advice}" if advice else reason


# Of the files beside a journal.
_SUFFIXES = ("-wal", "-shm", "-lock", "-journal", "-reserve")

# Of those that SQLite overwrites in place, and with them whatever else has their inode.
_WRITTEN_IN_PLACE = ("-wal", "-shm")


class OpenFile(NamedTuple):
    """A journal that is ours to write: its connection, and the lock, which is closed last.

    *warning* says what is missing from the WAL of a killed server, if anything.
    """

    connection: sqlite3.Connection
    lock: FileLock
    warning: str


class FileToRead(NamedTuple):
    """A journal opened for reading; *wal_damage* says which part of its WAL could not be read."""

    connection: sqlite3.Connection
    wal_damage: str


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Connect to *path*, for one thread at a time; *mode* is the end of SQLite's URI for it.

    No transaction begins by itself.  Text that is not UTF-8 is returned as bytes.
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
    """Open, or make, the journal at *path*, to write to it; the caller closes both of what it gets.

    *durable*: each commit waits for the disk.  A new file can be read by its owner alone.  Raises
    `JournalFailed`.
    """
    with _failing(path):
        real = _resolved(path)  # two names of one file have one lock
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
                # A server that was killed while it made the file left what has to be undone first.
                mode = "rw" if _bytes_beside(real, "-journal") else "ro"
                _inspect(path, real, mode, migrations, beginning=True)
                _check_names(path, real)
            warning = _wal_warning(real) if exists else ""
            connection = connect(real, "rw")
            try:
                _prepare(connection, durable=durable)
                migrate(connection, migrations)
                lock.watch()
            except BaseException:
                connection.close()
                raise
        except BaseException:
            lock.close()
            raise
    return OpenFile(connection, lock, warning)


def _inspect_unlocked(path: Path, real: Path, migrations: Sequence[Sequence[str]]) -> None:
    """Inspect the file without a lock: beside another program's file no lock file is made."""
    try:
        _inspect(path, real, "ro&immutable=1", migrations, beginning=True)
    except JournalFailed as failure:
        # Of what a killed server, or a running one, was about to write, a part may be missing.
        unfinished = _bytes_beside(real, "-wal") or _bytes_beside(real, "-journal")
        if not (isinstance(failure.__cause__, SQLITE_ERRORS) and unfinished):
            raise


def open_for_reading(path: Path) -> FileToRead:
    """Open the journal at *path* to read it, whether a server writes to it or not.

    Also where nothing can be written.  The caller closes the connection.  Raises `JournalFailed`.
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
            # Readers and writers share a -shm, which cannot be made here: so no server writes to
            # this file.  Messages that are only in the WAL must not be left out in silence.
            if _bytes_beside(real, "-wal"):
                raise JournalFailed(
                    path, "its server did not end well; copy it, with its -wal, to read it"
                ) from cause
            mode = "ro&immutable=1"
            _inspect(path, real, mode, MIGRATIONS)
            if _bytes_beside(real, "-journal"):
                raise JournalFailed(
                    path, "what was written to it last was not finished; start its server first"
                ) from cause
        wal_damage = "" if is_locked(real) else describe_wal_damage(real)
        if wal_damage and is_locked(real):  # by a server that has started meanwhile
            wal_damage = ""
        connection = connect(real, mode)
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version < EPOCHS_VERSION:  # and not ours to change: each room has one epoch
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("CREATE TEMP TABLE epochs (room, next, epoch)")
        return FileToRead(connection, wal_damage)


def _check_unlocked(check: Callable[[Path, Path], None], path: Path, real: Path) -> None:
    """Do *check*, but not beside a server: it has done so, and a checkpoint may change the file."""
    if not is_locked(real):
        try:
            check(path, real)
        except JournalFailed:
            if not is_locked(real):  # by a server that started during the check
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
        if each.exists() and not each.is_file():  # opening a FIFO waits for ever
            raise JournalFailed(each, "not a file")
    for each in (Path(f"{real}{suffix}") for suffix in _WRITTEN_IN_PLACE if writing):
        if each.is_symlink() or (each.exists() and each.stat().st_nlink > 1):
            advice = "put a copy of it in its place" if each.exists() else "move it away"
            raise JournalFailed(each, f"a link to another file, which SQLite overwrites; {advice}")
    if writing and not os.access(folder, os.W_OK | os.X_OK):
        raise JournalFailed(path, f"nothing can be written to {folder}")
    wal = _wal_of(real)
    if _bytes_beside(real, "-wal") and not (real.exists() and real.stat().st_size):
        # SQLite would make a new file and delete the WAL.
        what = "empty" if real.exists() else "missing"
        raise JournalFailed(
            path,
            f"the file is {what}, but {wal} has messages of it; put the file back, or move the "
            "-wal away to begin a new journal",
        )
    if not real.exists():
        return False
    if not os.access(real, os.R_OK):
        raise JournalFailed(path, "permission denied")
    if writing and not os.access(real, os.W_OK):
        raise JournalFailed(path, _REASONS["SQLITE_READONLY"])
    size = real.stat().st_size
    if size == 1:  # SQLite would take it for an empty one
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


# Of a journal without stamps: one of version 1, or one that has no tables yet.
_NO_STAMP = _Stamp("", 2)

# In the header: versions of the file format.  2 is one that is used with a WAL.
_FORMAT_OFFSET, _WAL_FORMAT = 18, b"\2\2"


def _check_wal(path: Path, real: Path) -> None:
    """Raise `JournalFailed` if the WAL belongs to another file, as after a backup was copied here.

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
            f"{wal.name} is not of this file, as after a backup was copied over it, or a start "
            f"under another name of the file; move {wal.name} and {real.name}-shm away to go on "
            "with this file, or put the other file back",
        )


def _check_names(path: Path, real: Path) -> None:
    """Raise `JournalFailed` if the file has hard links and its WAL may be beside another name."""
    if real.stat().st_nlink > 1 and _lacks_wal(real):
        raise JournalFailed(
            path,
            f"the file has hard links, and there is no {_wal_of(real).name}: use the name that has "
            "a -wal beside it; if none has, or to go on without the messages in that -wal, put a "
            "copy of the file in the place of this one",
        )


def _wal_warning(real: Path) -> str:
    """Return a warning if the WAL of a killed server is missing or damaged, empty if not."""
    if _lacks_wal(real):
        return (
            f"The last server was killed, and {_wal_of(real)} is not there: messages that were in "
            "it are missing, unless another program has written it into the file"
        )
    return describe_wal_damage(real)


def _lacks_wal(real: Path) -> bool:
    """Return whether the last server was killed, or runs, and its WAL is not here."""
    if _bytes_beside(real, "-wal"):
        return False
    stamp = _last_stamp(real)
    if real.stat().st_nlink > 1:  # the WAL may be elsewhere: to be on the safe side
        return stamp is None or stamp.sealed != 2 or stamp == _NO_STAMP
    return stamp is not None and stamp.sealed != 2


def _last_stamp(real: Path) -> _Stamp | None:
    """Return the last stamp of the file itself, without its WAL; None if that is damaged."""
    try:
        with closing(connect(real, "ro&immutable=1")) as alone:
            return _stamps(alone)[-1]
    except SQLITE_ERRORS:
        return None


def _wal_belongs(real: Path) -> bool:
    """Return whether a WAL belongs to its file; raises one of `SQLITE_ERRORS`, or `OSError`.

    SQLite cannot tell, and would mix the two.  So the server gives the file a stamp, a *seal*,
    before each checkpoint, and another one with the first transaction after that: the WAL holds all
    stamps that its file can have.

    While a server runs, the stamp in the file itself is a seal: see `Rows.checkpoint`.  If it is
    none, the file is a backup, or another program has made a checkpoint after the server was
    killed; then the file has all messages.

    What is not noticed is a backup that was made during a checkpoint, or after the last message.
    It differs from the file in nothing but pages that are in the WAL: nothing is mixed.

    A `VACUUM` moves tables.  A backup from before has its own stamps where those of the WAL are not
    found; the WAL has the first page of the file, and with it the number of the schema, which is
    another one then.
    """
    with real.open("rb") as file:
        file.seek(_FORMAT_OFFSET)
        if file.read(len(_WAL_FORMAT)) != _WAL_FORMAT:  # such as `VACUUM INTO` makes
            return False
    with closing(connect(real, "ro&immutable=1")) as alone, closing(connect(real, "ro")) as both:
        try:
            found = _stamps(alone)[-1]
        except SQLITE_ERRORS:  # damaged, or the server was killed during a checkpoint
            return True
        try:
            both.execute("BEGIN")
            *earlier, last = _stamps(both)
            if found != last:
                return bool(found in earlier and found.sealed)
            return found == _NO_STAMP or (
                _schema_version(alone) == _schema_version(both)
                and bool(found.sealed or _newest_block(alone) == _newest_block(both))
            )
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
            return False  # the file can be read, but not together with the WAL


def _stamps(connection: sqlite3.Connection) -> list[_Stamp]:
    """Return the stamps of a file, the newest last."""
    try:
        rows = connection.execute("SELECT stamp, sealed FROM stamps ORDER BY id")
        return [_Stamp(*row) for row in rows] or [_NO_STAMP]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_ERROR":
            raise
        return [_NO_STAMP]  # there is no such table


def _schema_version(connection: sqlite3.Connection) -> object:
    return connection.execute("PRAGMA schema_version").fetchone()


def _newest_block(connection: sqlite3.Connection) -> object:
    return connection.execute("SELECT max(seq) FROM runs").fetchone()


def _inspect(
    path: Path,
    real: Path,
    mode: str,
    migrations: Sequence[Sequence[str]],
    *,
    beginning: bool = False,
) -> None:
    """Raise `JournalFailed` if it is seen that the file is not a whole journal of ours.

    *beginning*: one that has no tables yet will do.
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
        # A server may have ended, or be, between making the file and its tables.
        if not beginning:
            raise JournalFailed(path, "nothing is in it yet")
    elif application != APPLICATION_ID:
        raise JournalFailed(path, _NOT_OURS)
    if version > len(migrations):
        reason = f"made by a newer multichat: version {version}, this one knows {len(migrations)}"
        raise JournalFailed(path, reason)
    if tables and (fault := compare_schemas(schema, expected_schema(migrations[:version]), plain)):
        raise JournalFailed(path, fault)
    # A page is cut in two; SQLite itself reports whole pages that are missing.  Where there is a
    # WAL, the missing pages may be in it.
    if not _bytes_beside(real, "-wal") and real.stat().st_size < pages * page_bytes:
        raise JournalFailed(path, DAMAGED)


def _create(real: Path) -> None:
    """Make an empty file, for the owner alone; SQLite gives those beside it the same permissions.

    After a power cut it is there: the directory is waited for.
    """
    with suppress(FileExistsError):
        os.close(os.open(real, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError:  # some file systems cannot, and need not
            pass
        finally:
            os.close(folder)


def _prepare(connection: sqlite3.Connection, *, durable: bool) -> None:
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        # In a file that has tables it would change nothing, and write all the same.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    [mode] = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":  # a file system on which processes cannot share memory
        raise OSError(0, "SQLite cannot keep a WAL there")
    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    if durable:  # where a plain fsync stops at the disk's own memory, as on macOS
        connection.execute("PRAGMA fullfsync=1")
    connection.execute("PRAGMA checkpoint_fullfsync=1")
    connection.execute("PRAGMA wal_autocheckpoint=0")  # see `Rows.checkpoint`
