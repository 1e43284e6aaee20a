"""The file of bans; for its format see `multichat.server.bans`.

A new file replaces the old one in one step, so that there is always a complete one: a full disk
loses the change, not the bans.
"""

from collections.abc import Sequence
from pathlib import Path

from multichat.files import read_file, replace_file
from multichat.server.bans import Ban, format_bans, merge_bans, read_bans

__all__ = ["load_bans", "save_bans"]

# The maximum number of bans takes less; the rest is for comments.
_MAX_BYTES = 16 * 1024 * 1024

# Addresses are personal data.
_MODE = 0o600


def load_bans(path: Path, *, must_exist: bool = False) -> list[Ban]:
    """Return the bans in the file at *path*; its directory must exist, it only with *must_exist*.

    Raises `OSError`, or `InvalidBanFile`, which names the line.
    """
    try:
        return read_bans(read_file(path, max_bytes=_MAX_BYTES), str(path))
    except FileNotFoundError:
        if must_exist or not path.resolve().parent.is_dir():  # no ban could be saved
            raise
        return []


def save_bans(path: Path, bans: Sequence[Ban], before: Sequence[Ban] = ()) -> None:
    """Save *bans*, and keep the comments; blocks until they are on the disk.

    Edits of the file since it had the bans *before* are kept, too, for a reload.
    Raises as `load_bans` does; the file is unchanged then.
    """
    try:
        data = read_file(path, max_bytes=_MAX_BYTES)
        data = format_bans(merge_bans(bans, before, read_bans(data, str(path))), data)
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        data, mode = format_bans(bans), _MODE
    replace_file(path, data, mode=mode)
