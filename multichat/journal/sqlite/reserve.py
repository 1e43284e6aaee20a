"""The reserve: a file beside a journal that keeps disk space for deletions on a full disk.

Deleting needs space, because deletions are first written to the write-ahead log.  While the reserve
exists, that space is available; after it had to be released, only deletions are written.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["Reserve"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """The file at *path* of *size* bytes; if that is 0, there is no file."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def hold(self) -> bool:
        """Create the reserve; return whether there is space for it."""
        if not self._size or self._is_there():
            return True
        try:
            self._make()
        except OSError as error:
            self.release()
            # On a file system that does not support it, there is no reserve.
            return error.errno not in _FULL
        return True

    def release(self) -> bool:
        """Release the space for deletions; return whether the reserve existed."""
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
        with suppress(FileNotFoundError):  # remove a file of another size
            self._path.unlink()
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, self._size)
            else:
                os.write(file, bytes(self._size))
        finally:
            os.close(file)
