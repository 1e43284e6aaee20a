"""A token bucket, the mechanism of every rate limit and of the wait budget.  Pure."""

import math

__all__ = ["TokenBucket"]


class TokenBucket:
    """A token bucket: *rate* tokens a second are added, up to *burst* in all.

    `spend` may overdraw it.  The caller passes the time as `now`, in seconds, of any clock
    that does not go back.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens = burst
        self._at = -math.inf

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now

    def available(self, now: float) -> float:
        """Return how many tokens there are; less than 0 while it is overdrawn."""
        self._fill(now)
        return self._tokens

    def take(self, wanted: int, now: float) -> int:
        """Take as many whole tokens as there are, at most *wanted*; return how many."""
        self._fill(now)
        taken = max(0, min(wanted, int(self._tokens)))
        self._tokens -= taken
        return taken

    def spend(self, tokens: float, now: float) -> float:
        """Take *tokens*, overdrawing if needed; return the seconds until the debt is repaid."""
        self._fill(now)
        self._tokens -= tokens
        return max(0.0, -self._tokens / self._rate)

    def seconds_until_one(self) -> float:
        """Return how long after the last call a token will be available, in seconds."""
        # At least the resolution of a clock: waiting for a rounding error would take no time.
        moment = 4 * math.ulp(self._at)
        return max(moment, (1 - self._tokens) / self._rate)
