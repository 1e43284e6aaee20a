"""The file of bans; for its format see `multichat.server.bans`.

A new file replaces the old one in one step, so that there is always a complete one: a full disk
loses the change, not the bans.
"""

from collections.abc import Sequence
from pathlib import Path

from multichat.files import read_file, replace_file
from multichat.server.bans import Ban, format_bans, read_bans

__all__ = ["BanFile"]

# The maximum number of bans takes less; the rest is for comments.
_MAX_BYTES = 16 * 1024 * 1024

# Addresses are personal data.
_MODE = 0o600


class BanFile:
    """The file at *path*, which need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> list[Ban]:
        """Return the bans in it; raises `OSError`, or `InvalidBanFile`, which names the line."""
        try:
            return read_bans(self._read(), str(self.path))
        except FileNotFoundError:
            return []

    def _read(self) -> bytes:
        return read_file(self.path, max_bytes=_MAX_BYTES)

    def save(self, bans: Sequence[Ban]) -> None:
        """Save exactly *bans*, and keep the comments; blocks until they are on the disk.

        Raises as `load` does; the file is unchanged then.
        """
        try:
            old = self._read()
            mode = self.path.stat().st_mode & 0o777
            data = format_bans(bans, old)
        except FileNotFoundError:
            mode = _MODE
            data = format_bans(bans)
        replace_file(self.path, data, mode=mode)
