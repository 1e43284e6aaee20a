"""What was typed before: a file of lines, newest last, that nobody else can read.

Owns the file's bounds and its permissions.  Never keeps a line that holds a password, and never
makes it anybody's problem that a file cannot be read or written: a history is a convenience.
Blocks on the disk: call it from a thread.
"""

import os
from pathlib import Path

from multichat.preamble import read_password

__all__ = ["MAX_LINES", "History", "keeps"]

# Weeks of conversation; a tenth of a second to search through.
MAX_LINES = 1000

# A thousand of the longest lines that a server takes would be 64 MiB to read at each start.
_MAX_BYTES = 1024 * 1024


class History:
    """The lines in the file at *path*; *failure* is why it could not be read or written last."""

    def __init__(self, path: Path) -> None:
        self.failure: OSError | None = None
        self._path = path

    def load(self) -> list[str]:
        """Return at most `MAX_LINES` lines, the oldest first; the file is cut down to them."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            self.failure = error
            return []
        lines = [line for line in data.decode("utf-8", "replace").split("\n") if line]
        kept = lines[-MAX_LINES:]
        while sum(map(len, kept)) > _MAX_BYTES:
            kept = kept[1 + len(kept) // 10 :]
        # Not at each start: who opens two clients at once should hardly ever lose a line by it.
        if len(lines) > 2 * MAX_LINES or len(data) > 2 * _MAX_BYTES:
            self._rewrite(kept)
        return kept

    def append(self, *lines: str) -> None:
        """Add *lines*, which have no line breaks."""
        text = "".join(f"{line}\n" for line in lines if keeps(line))
        if not text:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(self._path, os.O_APPEND, text)
        except OSError as error:
            self.failure = error

    def _rewrite(self, lines: list[str]) -> None:
        # Beside it and then in its place: whoever reads meanwhile sees all or all.
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._write(beside, os.O_TRUNC, "".join(f"{line}\n" for line in lines))
            beside.replace(self._path)
        except OSError as error:
            self.failure = error

    def _write(self, path: Path, how: int, text: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | how
        with open(os.open(path, flags, 0o600), "ab") as file:  # noqa: PTH123 - with its mode at once
            file.write(text.encode("utf-8", "replace"))


def keeps(line: str) -> bool:
    """Say whether *line* is kept: empty ones are not, nor is what only its server should know."""
    return bool(line.strip()) and read_password(line.lstrip()) is None
