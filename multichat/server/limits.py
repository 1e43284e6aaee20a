"""Rate limits and wait budgets.  Pure: the caller passes the time as `now`."""

import math
from collections.abc import Hashable

__all__ = [
    "READ_BYTES",
    "READ_COST",
    "SLOW_READ_BYTES",
    "SMALL_READ_BYTES",
    "Bucket",
    "NewRooms",
    "WaitBudget",
]

# One read, one batch: enough that a flood costs per batch and not per message, little enough that
# senders take turns, and that lines of 40 bytes and more fit, with their tags, into the 64 KiB that
# the kernel hands on as one piece: what spills over costs every member a second one.
READ_BYTES = 48 * 1024

# The same where messages are counted: what was read is said before anything else is noticed, even
# the end of the connection.
SLOW_READ_BYTES = 4096

# What a read takes in memory while its messages wait to be said, for each of its bytes: its text,
# its lines and the requests in them.  Measured 1 to 10.  Small reads are not counted.
READ_COST = 6
SMALL_READ_BYTES = 512

# A room that slow clients keep waiting all the time loses a fifteenth of it.
_REFILL_PER_SECOND = 1 / 15

# Shorter waits help no client to catch up, and there would be many of them.
_SHORTEST_WAIT_SECONDS = 0.05


class WaitBudget:
    """How long a room may still wait for slow clients, whoever they are.

    At most *seconds* at once, refilled at a fifteenth of real time.
    """

    __slots__ = ("_at", "_full", "_left")

    def __init__(self, seconds: float) -> None:
        self._full = self._left = seconds
        self._at = -math.inf

    def left(self, now: float) -> float:
        """Return for how many seconds the room may wait; 0 if that is too short to be useful."""
        self._refill(now)
        return self._left if self._left >= _SHORTEST_WAIT_SECONDS else 0.0

    def spend(self, seconds: float, now: float) -> None:
        """Subtract *seconds* that the room has waited until *now*."""
        self._refill(now)
        self._left = max(0.0, self._left - seconds)

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._left = min(self._full, self._left + (now - self._at) * _REFILL_PER_SECOND)
            self._at = now


class Bucket:
    """A token bucket: *rate* a second flow in, up to *burst* are kept for when they are needed.

    Whoever spends more than there is has to wait until the debt is paid.  `now` is any clock that
    does not go back, in seconds.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens = burst
        self._at = -math.inf

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now

    def take(self, wanted: int, now: float) -> int:
        """Take as many whole tokens as there are, at most *wanted*; return how many."""
        self._fill(now)
        taken = max(0, min(wanted, int(self._tokens)))
        self._tokens -= taken
        return taken

    def spend(self, tokens: float, now: float) -> float:
        """Take *tokens* whether they are there or not; return for how many seconds to wait."""
        self._fill(now)
        self._tokens -= tokens
        return max(0.0, -self._tokens / self._rate)

    def seconds_until_one(self) -> float:
        """Return how long after the last call there is a token to take, give or take a moment."""
        # The least for which a clock goes on: what lacks by a rounding error would take no time.
        moment = 4 * math.ulp(self._at)
        return max(moment, (1 - self._tokens) / self._rate)


class NewRooms:
    """How many new rooms each creator may open: *hourly* at once, and as many again in an hour."""

    # More than connect within an hour; who has opened none for an hour may open all of them.
    MAX_CREATORS = 10_000

    __slots__ = ("_buckets", "_hourly")

    def __init__(self, hourly: int) -> None:
        self._hourly = hourly
        self._buckets: dict[Hashable, Bucket] = {}  # who opened one last is last

    def take(self, creator: Hashable, now: float) -> float:
        """Return for how many seconds *creator* has to wait; 0 if it may open one, which counts."""
        bucket = self._buckets.pop(creator, None) or Bucket(self._hourly / 3600, self._hourly)
        self._buckets[creator] = bucket
        if len(self._buckets) > self.MAX_CREATORS:
            del self._buckets[next(iter(self._buckets))]
        return 0.0 if bucket.take(1, now) else bucket.seconds_until_one()
