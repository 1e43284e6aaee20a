"""Locks a journal against other servers, and detects changes of its files by other programs."""

import os
import sqlite3
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from multichat.errors import JournalFailed

if sys.platform == "linux":
    import fcntl

__all__ = ["IN_USE", "FileLock", "is_locked"]

IN_USE = "another server is using it"

# A reader that checks for a running server (`is_locked`) holds the lock for less than this.
_PROBE_SECONDS = 0.25


@dataclass(slots=True)
class _Watched:
    """A watched file, and what to do if it was *moved* or *truncated*.

    *is_lasting*: after a move, other programs may have written without our locks.
    """

    path: str
    moved: str
    truncated: str
    is_lasting: bool = False
    identity: tuple[int, int] = (0, 0)
    size: int = 0


class FileLock:
    """Locks a journal against other servers, and detects whether its files were moved or truncated.

    One lock is on a file beside the journal, for its name, by which SQLite finds the WAL.
    The other is on the journal itself, which may have several names: hard links, bind mounts.  Both
    end with the process.  Close this after all connections to the journal: closing a file releases
    all locks that SQLite has on it in this process.

    *lasting_fault* is a fault that needs a restart: nothing may be written until then.
    """

    def __init__(self, path: Path, real: Path) -> None:
        """Take the lock of the name; raises `JournalFailed`, `OSError`, `sqlite3.Error`."""
        self._path, self._real = path, real
        self._file = -1
        self._files: list[_Watched] = []
        self.lasting_fault = ""
        with suppress(FileExistsError):
            os.close(os.open(f"{real}-lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        # SQLite's own locks are portable; on the journal itself they would block readers.
        self._beside = _connect(real, "rw", timeout=_PROBE_SECONDS)
        try:
            self._beside.execute("PRAGMA journal_mode=MEMORY")  # no third file for no content
            self._beside.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            self._beside.close()
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise JournalFailed(path, IN_USE) from None
            raise

    def lock_file(self) -> None:
        """Take the lock of the file, which exists; raises `JournalFailed`, `OSError`."""
        if sys.platform != "linux":  # elsewhere it may conflict with SQLite's own locks
            return
        self._file = os.open(self._real, os.O_RDONLY)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalFailed(self._path, f"{IN_USE}, by another name of the file") from None
        except OSError:  # the file system does not support it
            pass

    def watch(self) -> None:
        """Record which files the journal has now: see `fault`."""
        restart = "stop the server, and start it again"
        restore = "stop the server and restore a backup"
        self._files = [
            _Watched(str(self._path), f"put it back, or {restore}", restore),
            _Watched(
                f"{self._real}-wal",
                "put it back, or stop the server with SIGTERM, which saves what was in it, and "
                "start it again",
                f"{restart}: messages that were in it are lost, unless a backup has them",
            ),
            _Watched(f"{self._real}-shm", restart, restart, is_lasting=True),
        ]
        for each in self._files:
            each.identity = _identity(os.stat(each.path))  # noqa: PTH116 - as below

    def fault(self, *, may_be_shorter: bool = False, wal_alone: bool = False) -> str:
        """Return which file was changed by others, and what to do; empty if none was.

        A file was changed if it was renamed, deleted or replaced, or is shorter than at an earlier
        call.  *may_be_shorter*: we may have truncated the files ourselves since the last call.
        """
        if self.lasting_fault:
            return self.lasting_fault
        if may_be_shorter:
            for each in self._files:
                each.size = 0
        for each in self._files[1:2] if wal_alone else self._files:
            try:
                found = os.stat(each.path)  # noqa: PTH116 - before each transaction, and faster
            except (FileNotFoundError, NotADirectoryError):
                found = None
            except OSError:  # the directory is not readable: the open file is still valid
                continue
            if found is None or _identity(found) != each.identity:
                fault = f"{each.path} was renamed, deleted or replaced; {each.moved}"
                if each.is_lasting:
                    self.lasting_fault = fault
                return fault
            if found.st_size < each.size:
                self.lasting_fault = f"{each.path} was truncated; {each.truncated}"
                return self.lasting_fault
            each.size = found.st_size
        return ""

    def close(self) -> None:
        """Release both locks."""
        self._beside.close()
        if self._file >= 0:
            os.close(self._file)


def is_locked(real: Path) -> bool:
    """Return whether a server has the lock of the name *real*."""
    try:
        with closing(_connect(real, "ro", timeout=0)) as beside:
            beside.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
    return False


def _connect(real: Path, mode: str, *, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{Path(f'{real}-lock').as_uri()}?mode={mode}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
