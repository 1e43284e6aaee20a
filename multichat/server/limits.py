"""Budgets: of time, messages, memory.  Pure: whoever has a clock says `now`."""

import math
from collections.abc import Callable, Hashable

__all__ = [
    "READ_BYTES",
    "READ_COST",
    "SLOW_READ_BYTES",
    "SMALL_READ_BYTES",
    "Bucket",
    "Budget",
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


class Budget:
    """How much memory is held for connected clients: send queues, unfinished lines, nonces.

    What several send queues share is counted once: a block that a thousand members have still to
    take costs what one copy costs.  *on_over* is called, synchronously and perhaps often, while
    more than *limit_bytes* are held.
    """

    # Above this part of the limit nobody's send queue grows beyond what a lagging member's does.
    TIGHT_PART = 0.5

    __slots__ = ("_holders", "_on_over", "held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: float = math.inf, on_over: Callable[[], object] = int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._on_over = on_over
        self._holders: dict[int, int] = {}  # by the identity of what is held, and so stays itself

    @property
    def over(self) -> bool:
        """Whether more is held than may be."""
        return self.held_bytes > self.limit_bytes

    @property
    def tight(self) -> bool:
        """Whether clients should be held to less than they may have at other times."""
        return self.held_bytes > self.limit_bytes * self.TIGHT_PART

    def add(self, size: int) -> None:
        """Note *size* bytes more, or fewer, that nobody shares."""
        self.held_bytes += size
        if size > 0 and self.over:
            self._on_over()

    def hold(self, data: bytes) -> None:
        """Note that one more holds *data*."""
        holders = self._holders.get(id(data), 0)
        self._holders[id(data)] = holders + 1
        if not holders:
            self.add(len(data))

    def release(self, data: bytes) -> None:
        """Note that one of those who held *data* does not any more."""
        holders = self._holders[id(data)] - 1
        if holders:
            self._holders[id(data)] = holders
        else:
            del self._holders[id(data)]
            self.add(-len(data))
