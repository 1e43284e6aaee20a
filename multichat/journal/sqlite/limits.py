"""Settings of a SQLite journal without a command-line option, and its durability."""

import enum
from dataclasses import dataclass

__all__ = ["Durability", "SqliteLimits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SqliteLimits:
    """Timeouts and limits of a SQLite journal; tests pass other values."""

    # While the disk is full or another program has locked the file, messages wait this long before
    # they are refused.  Later ones fail immediately, until a write succeeds.  A start waits as long
    # for the other program.
    retry_seconds: float = 3.0

    # For how long a failure counts as a fault of the journal, if nothing was tried since: a server
    # without readiness gets no clients, whose messages could show that it works again.
    fault_seconds: float = 30.0

    # How long it retries at shutdown.
    close_seconds: float = 5.0

    # The interval of deletions.  While there is more to delete, a step follows each commit, and up
    # to twenty if the file is too large.
    tidy_seconds: float = 5.0

    # Messages are deleted by age when the wall clock has been steady for this long, or for the age
    # itself if that is shorter: longer than a wrong clock usually goes unnoticed, and shorter than
    # most servers run.
    steady_seconds: float = 6 * 3600.0

    # The minimum interval of log lines about deletions, or about failures of the same kind.
    tell_seconds: float = 60.0

    # How often to check for moved or truncated files: while nothing is written, and before a
    # transaction, where it takes some microseconds.  The WAL is checked before every transaction,
    # which would restore the size of a truncated one.
    watch_seconds: float = 1.0
    watch_again_seconds: float = 0.05

    # The maximum size of the queue: four full reads from each of a thousand clients.
    waiting_bytes: int = 256 * 1024 * 1024

    # A hundred times the rooms of a server; their heads take 30 MB.  Above this, no new room opens,
    # because that would evict the messages of another.
    rooms: int = 100_000

    # The lifetime of sessions of disconnected clients, the same as in memory.
    session_seconds: float = 24 * 3600.0

    # The limit on all sessions and nonces in the file; with `Retention.max_bytes`, at most a
    # quarter of that.
    session_bytes: int = 256 * 1024 * 1024


class Durability(enum.Enum):
    """What a stored message survives; see docs/journal.md."""

    FULL = "full"  # a power cut: each transaction waits for the disk
    NORMAL = "normal"  # a `kill -9`: the kernel has it; a power cut loses the last moments
