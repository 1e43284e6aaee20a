"""A file beside a journal that takes place on the disk, so that a full disk can be deleted from.

Deleting needs room of its own: what is deleted is first written to the write-ahead log.  While the
reserve is there, that room is there; where it has had to go, nothing is written but deletions.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["Reserve"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """The file at *path*, of *size* bytes; nothing at all where that is 0."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def hold(self) -> bool:
        """Have the reserve; return whether there is room for it."""
        if not self._size or self._is_there():
            return True
        try:
            self._make()
        except OSError as error:
            self.release()
            # Where it cannot be made at all, on a file system of another kind, we go without it.
            return error.errno not in _FULL
        return True

    def release(self) -> bool:
        """Give the room away, for deletions; return whether it was there."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def _is_there(self) -> bool:
        try:
            found = self._path.lstat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == self._size

    def _make(self) -> None:
        with suppress(FileNotFoundError):  # one of another size
            self._path.unlink()
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, self._size)
            else:
                os.write(file, bytes(self._size))
        finally:
            os.close(file)
