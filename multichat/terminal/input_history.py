"""The input history: a private file of typed lines, the newest last.

Owns the file's size limit and its permissions.  Never stores a line that contains a password.  A
file that cannot be read or written is not an error: the history is a convenience.  Blocks on disk
I/O; call it from a thread.
"""

import os
import stat
import sys
from pathlib import Path

from multichat.files import open_regular, replace_file
from multichat.protocol.typed_lines import lacks_slash, may_hold_secret

__all__ = ["MAX_LINES", "History", "belongs_in_history"]

# Weeks of chat; searching it takes a tenth of a second.
MAX_LINES = 1000

# A thousand lines of the maximum length would be 64 MiB to read at each start.
_MAX_BYTES = 1024 * 1024

# Of a larger file, which another program must have written, only the end is read.
_MAX_READ_BYTES = 4 * _MAX_BYTES

_MODE = 0o600
_FOLDER_MODE = 0o700


class History:
    """The lines in the file at *path*; `failure` is the last error of reading or writing it."""

    def __init__(self, path: Path) -> None:
        self.failure: OSError | None = None
        self._path = path

    def load(self) -> list[str]:
        """Return at most `MAX_LINES` lines, the oldest first; truncate a file that is too large."""
        try:
            with os.fdopen(open_regular(self._path), "rb") as file:
                _make_private(file.fileno())
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _MAX_READ_BYTES))
                data = file.read(_MAX_READ_BYTES)
        except FileNotFoundError:
            return []
        except OSError as error:
            self.failure = error
            return []
        # An editor may have added a byte order mark or CRLF line ends.
        text = data.decode("utf-8-sig", "replace").replace("\r\n", "\n")
        lines = [line for line in text.split("\n") if line]
        if size > _MAX_READ_BYTES:
            del lines[:1]  # it may be incomplete
        kept = lines[-MAX_LINES:]
        while sum(map(len, kept)) > _MAX_BYTES:
            kept = kept[1 + len(kept) // 10 :]
        # Not at every start: rewriting can lose a line that another client appends meanwhile.
        if len(lines) > 2 * MAX_LINES or size > 2 * _MAX_BYTES:
            self._rewrite(kept)
        return kept

    def append(self, *lines: str) -> None:
        """Add *lines*, which have no line breaks."""
        text = "".join(f"{line}\n" for line in lines if belongs_in_history(line))
        if not text:
            return
        try:
            self._path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            self._append(text)
        except OSError as error:
            self.failure = error

    def _rewrite(self, lines: list[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        try:
            replace_file(self._path, text.encode("utf-8", "replace"), mode=_MODE)
        except OSError as error:
            self.failure = error

    def _append(self, text: str) -> None:
        fd = open_regular(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _MODE)
        with open(fd, "ab") as file:  # noqa: PTH123 - with its mode at once
            _make_private(fd)
            file.write(text.encode("utf-8", "replace"))


def _make_private(fd: int) -> None:
    """Remove the permissions of other users from a file that we own."""
    if sys.platform == "win32":  # where files inherit the folder's permissions
        return
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_mode & 0o077:
        os.fchmod(fd, _MODE)


def belongs_in_history(line: str) -> bool:
    """Return whether *line* belongs in the history: not if it is empty or may hold a secret.

    A command with a secret that lacks only its slash does not either, even if it was sent on
    purpose.
    """
    return bool(line.strip()) and not may_hold_secret(line) and not lacks_slash(line)
