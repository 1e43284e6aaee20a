"""The settings of a SQLite journal that have no option, and its durability."""

import enum
from dataclasses import dataclass

__all__ = ["Durability", "SqliteLimits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SqliteLimits:
    """How long a journal waits for its file, and how much it holds; tests pass other values."""

    # While the disk is full or another program holds the file, messages wait this long before their
    # senders are told.  Later ones fail at once, until the disk accepts something again.  A start
    # waits as long for the program that holds the file.
    retry_seconds: float = 3.0

    # How long it tries when it is closed.
    close_seconds: float = 5.0

    # How often to delete what has expired.  While there is more, a step follows each commit, and up
    # to twenty where the file is too large.
    tidy_seconds: float = 5.0

    # Messages are deleted by age when the wall clock has been steady for this long, or for the age
    # itself where that is shorter: longer than a wrong clock goes unnoticed, and shorter than most
    # servers run.
    steady_seconds: float = 6 * 3600.0

    # How often a line of the log says what was deleted, or that the same thing has failed.
    tell_seconds: float = 60.0

    # How often to check whether the files are still in their place: while nothing is written, and
    # at most before a transaction, where it takes some microseconds.  The WAL is checked before
    # each: if somebody has truncated it, the transaction makes it as long as before.
    watch_seconds: float = 1.0
    watch_again_seconds: float = 0.05

    # What may wait for the disk: four full reads from each of a thousand clients.
    waiting_bytes: int = 256 * 1024 * 1024

    # A hundred times as many as a server has at a time; their heads take 30 MB.  Above this, no new
    # room opens: it would cost another one its messages.
    rooms: int = 100_000

    # Sessions of disconnected clients are kept for as long as in memory.
    session_seconds: float = 24 * 3600.0

    # All sessions and their nonces in the file; with `Retention.max_bytes`, at most a quarter of
    # that.
    session_bytes: int = 256 * 1024 * 1024


class Durability(enum.Enum):
    """What a message that is reported kept survives; see docs/journal.md."""

    FULL = "full"  # a power cut: each transaction waits until the disk has it
    NORMAL = "normal"  # a `kill -9`: the system has it; of a power cut, the last moments are lost
