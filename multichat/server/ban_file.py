"""The file in which an operator's bans are kept; what stands in it is `multichat.server.bans`'s.

A new file takes the old one's place in one step, so that there is always a whole one: a full disk
costs the change and not the bans that were there.
"""

from collections.abc import Sequence
from pathlib import Path

from multichat.files import read_file, replace_file
from multichat.server.bans import Ban, format_bans, read_bans

__all__ = ["BanFile"]

# The most bans that there may be take less; the rest is for comments.
_MAX_BYTES = 16 * 1024 * 1024

# Addresses are other people's data.
_MODE = 0o600


class BanFile:
    """The file at *path*, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> list[Ban]:
        """Return the bans in it; raises `OSError`, or `InvalidBanFile` which names the line."""
        try:
            return read_bans(self._read(), str(self.path))
        except FileNotFoundError:
            return []

    def _read(self) -> bytes:
        return read_file(self.path, max_bytes=_MAX_BYTES)

    def save(self, bans: Sequence[Ban]) -> None:
        """Have just *bans* in it, its comments kept; blocks until they are on the disk.

        Raises as `load` does, and then has changed nothing.
        """
        try:
            old = self._read()
            mode = self.path.stat().st_mode & 0o777
            data = format_bans(bans, old)
        except FileNotFoundError:
            mode = _MODE
            data = format_bans(bans)
        replace_file(self.path, data, mode=mode)
