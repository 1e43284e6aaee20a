"""Budgets: of time, messages, memory, turns.  Pure: whoever has a clock says `now`."""

import math
from collections.abc import Callable

__all__ = ["Bucket", "Budget", "Effort", "Turns", "WaitBudget"]

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


class Effort:
    """How much work a client has given in the last moments, whatever the pieces it came in.

    Work is counted in bytes; a line costs as much as `LINE_BYTES` more, a command as `ASK_BYTES`.
    What one line takes, as people type them, is free however often it comes: so those who talk with
    each other as fast as they hear are none who flood.  Beyond `MOST_BYTES` at once or
    `BYTES_A_SECOND` for long a client *floods*, until it has been quiet for a second.
    """

    LINE_BYTES = 64
    ASK_BYTES = 64
    FREE_BYTES = 256
    MOST_BYTES = 48 * 1024  # a paste of 500 lines
    BYTES_A_SECOND = 8 * 1024

    __slots__ = ("_at", "_bytes")

    def __init__(self) -> None:
        self._bytes = 0.0
        self._at = -math.inf

    def spend(self, work: int, now: float) -> None:
        """Note a read that was so much *work*, and not free."""
        self._bytes = min(self._left(now) + work, self.MOST_BYTES + self.BYTES_A_SECOND)
        self._at = now

    def floods(self, now: float) -> bool:
        """Whether it has given more than one who talks."""
        return self._bytes > self.MOST_BYTES and self._left(now) > self.MOST_BYTES

    def _left(self, now: float) -> float:
        return max(0.0, self._bytes - (now - self._at) * self.BYTES_A_SECOND)


class Turns:
    """How much of the event loop is for those who flood while others say a word.

    Work for whoever sends as fast as it is read is *heavy*: it has a twentieth of the time, one
    after the other, while anybody has done light work in the last moment.  Newcomers are let in one
    after the other, too, with a pause between two, which is longer while those who talk need much
    of the time.  While nobody says a word, both have all of it.
    """

    # With half of it, on a machine that others wanted, too, those who talked were not heard for a
    # moment now and then, and all who flood went on at once.
    MOMENT_SECONDS = 0.1
    HEAVY_SHARE = 0.05

    # One who comes, says a word and goes costs half a millisecond, and twice that where others have
    # the processor's caches: so they have a quarter of the time of those who need it, and where
    # these leave most of it, the 4,000 that the kernel's queue holds are in within four seconds.
    NEWCOMER_SECONDS = 0.001
    NEWCOMER_SECONDS_BUSY = 0.004
    BUSY_SHARE = 0.25
    NEWCOMERS_AT_ONCE = 4  # a sleep is longer than asked for, and what is lost by it comes back

    __slots__ = ("_busy", "_free_at", "_light_at", "_light_seconds", "_moment_at", "_opens_at")

    def __init__(self) -> None:
        self._light_at = self._free_at = self._opens_at = self._moment_at = -math.inf
        self._light_seconds = 0.0
        self._busy = False

    def light(self, seconds: float, now: float) -> None:
        """Note that somebody who does not flood was heard, whose last word took so long."""
        self._light_at = now
        self._light_seconds += seconds
        if (elapsed := now - self._moment_at) >= self.MOMENT_SECONDS:
            self._busy = self._light_seconds >= self.BUSY_SHARE * elapsed
            self._light_seconds, self._moment_at = 0.0, now

    def _somebody_talks(self, now: float) -> bool:
        return now - self._light_at <= self.MOMENT_SECONDS

    def reserve(self, seconds: float, now: float) -> float:
        """Take a turn for about so many *seconds* of heavy work; return when, in seconds."""
        if not self._somebody_talks(now):
            return 0.0
        start = max(now, self._free_at)
        self._free_at = start + seconds / self.HEAVY_SHARE
        return start - now

    def let_in(self, now: float) -> None:
        """Note that a newcomer was let in."""
        if self._somebody_talks(now):
            pause = self.NEWCOMER_SECONDS_BUSY if self._busy else self.NEWCOMER_SECONDS
            saved = (self.NEWCOMERS_AT_ONCE - 1) * pause
            self._opens_at = max(now - saved, self._opens_at) + pause

    def until_next_newcomer(self, now: float) -> float:
        """Return how long the next newcomer has to wait, in seconds."""
        return max(0.0, self._opens_at - now) if self._somebody_talks(now) else 0.0
