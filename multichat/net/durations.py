"""Durations, counted by length for a histogram.  Pure.

Recording one takes less than half a microsecond, and the memory is bounded, so they can be recorded
for each batch, transaction and request, but not for each message.
"""

from bisect import bisect_left
from dataclasses import dataclass

__all__ = ["BOUNDS", "DurationRecorder", "Durations"]

BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""The upper bounds of the buckets, in seconds; one more bucket has longer durations."""


@dataclass(frozen=True, slots=True)
class Durations:
    """A snapshot: how many durations are in each bucket, and the sum of all in seconds.

    The bucket with index i has those up to `BOUNDS[i]` that are longer than `BOUNDS[i - 1]`, and
    the last bucket has the rest.
    """

    buckets: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    total_seconds: float = 0.0

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.buckets)

    @property
    def mean_seconds(self) -> float:
        """Their mean, in seconds; 0 if there are none."""
        return self.total_seconds / max(1, self.count)

    def at_most(self, part: float) -> float:
        """Return the bound, in seconds, that at least this *part* (0 to 1) of them does not exceed.

        0 if there are none, infinity if it is in the last bucket.
        """
        wanted, count = part * self.count, 0
        if not wanted:
            return 0.0
        for bound, more in zip(BOUNDS, self.buckets, strict=False):
            count += more
            if count >= wanted:
                return bound
        return float("inf")


class DurationRecorder:
    """Counts durations; `snapshot` returns those so far."""

    __slots__ = ("_buckets", "_total_seconds")

    def __init__(self) -> None:
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._total_seconds = 0.0

    def note(self, seconds: float) -> None:
        """Count one of *seconds*; a negative one, as after a step of the clock, counts as 0."""
        self._buckets[bisect_left(BOUNDS, seconds)] += 1
        if seconds > 0:
            self._total_seconds += seconds

    def snapshot(self) -> Durations:
        """Return a snapshot."""
        return Durations(tuple(self._buckets), self._total_seconds)
