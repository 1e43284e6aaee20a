"""Retention: the limits on stored messages, and when the wall clock is trusted.  Pure.

The wall clock may be wrong: before the first synchronization, after a battery failure, or because
it was set.  So nothing is deleted because of a single reading.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from multichat.protocol.counts import counted

__all__ = ["MIN_BYTES", "Deleted", "Retention", "SteadyClock", "SteadyTime", "format_seconds"]

# The tables alone take 60 KiB.
MIN_BYTES = 1024 * 1024

# The maximum size of the reserve on the disk.  Four steps fit in it: see `Retention.step_bytes`.
_RESERVE_BYTES = 8 * 1024 * 1024

# The drift at which the wall clock still counts as steady: hours of correction by NTP.
_MAX_DRIFT_SECONDS = 60.0

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The limits on stored messages: age, number in each room, bytes; None for no limit.

    Whole blocks are deleted, the oldest first, within some seconds; a room may exceed
    *max_messages* by the rest of a block.  *max_bytes* limits the used part of the file itself,
    without its WAL.  Raises `ValueError` for an invalid value.
    """

    max_age_seconds: float | None = None
    max_messages: int | None = None
    max_bytes: int | None = None

    @property
    def reserve_bytes(self) -> int:
        """The size of the reserve, which makes deletion possible on a full disk."""
        if (self.max_age_seconds, self.max_messages, self.max_bytes) == (None, None, None):
            return 0  # without retention nothing is deleted
        return 4 * self.step_bytes

    @property
    def step_bytes(self) -> int:
        """The approximate size of one transaction; two are in the WAL before a checkpoint.

        So the WAL and one more step fit in the reserve.
        """
        return min(_RESERVE_BYTES, self.max_bytes or _RESERVE_BYTES) // 4

    def __post_init__(self) -> None:
        if self.max_age_seconds is not None and not self.max_age_seconds > 0:
            raise ValueError("max_age_seconds must be more than 0")
        if self.max_messages is not None and self.max_messages < 1:
            raise ValueError("max_messages must be at least 1")
        if self.max_bytes is not None and self.max_bytes < MIN_BYTES:
            raise ValueError(f"max_bytes must be at least {MIN_BYTES}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SteadyTime:
    """The *wall* clock's time, in seconds since 1970, and how far it can be trusted.

    After *wait* more seconds, if it stays steady, messages may be deleted by age.  *run* is how
    long this journal has been open: messages that it stored itself are not older than that.
    """

    wall: float
    wait: float
    run: float


class SteadyClock:
    """Compares the wall clock with a monotonic one; the caller reads both.

    The wall clock is trusted when it has been steady for *seconds*, also after the start.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._run = self._steady = 0.0
        self._previous: float | None = None
        self._offset = 0.0  # the wall clock minus the monotonic one, since it was last set

    def observe(self, wall: float, monotonic: float) -> SteadyTime:
        """Return the current time and how far it can be trusted; call it every few seconds."""
        if self._previous is None:
            self._previous, self._offset = monotonic, wall - monotonic
        # If both clocks jump, as with simulated ones, count only a moment.
        passed = min(monotonic - self._previous, _MAX_DRIFT_SECONDS)
        self._run += passed
        self._steady += passed
        self._previous = monotonic
        if abs(wall - monotonic - self._offset) > _MAX_DRIFT_SECONDS:
            self._offset, self._steady = wall - monotonic, 0.0
        return SteadyTime(wall=wall, wait=max(0.0, self._seconds - self._steady), run=self._run)


class Deleted:
    """How many messages of which rooms, or how many sessions or nonces, were deleted, and why."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], tuple[int, set[int]]] = {}

    def __bool__(self) -> bool:
        """Return whether anything was deleted."""
        return bool(self.counts)

    def add(
        self, reason: str, count: int, rooms: Iterable[int] = (), *, noun: str = "message"
    ) -> None:
        """Add *count* messages of the *rooms* with these ids, or *count* of another *noun*."""
        known, of = self.counts.get((reason, noun), (0, set()))
        self.counts[reason, noun] = known + count, of.union(rooms)

    def update(self, other: "Deleted") -> None:
        """Add the counts of *other*."""
        for (reason, noun), (count, rooms) in other.counts.items():
            self.add(reason, count, rooms, noun=noun)

    def __str__(self) -> str:
        parts: list[str] = []
        for (reason, noun), (count, rooms) in self.counts.items():
            of = f" of {counted(len(rooms), 'room')}" if rooms else ""
            parts.append(f"{counted(count, noun)}{of} ({reason})")
        return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """Format a duration for people: `30 days`, `1 hour`, `1.5 minutes`."""
    name, size = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    return counted(round(seconds / size, 1), name)
