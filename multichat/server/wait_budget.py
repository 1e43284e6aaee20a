"""The time that a room may spend waiting for slow clients.  Pure."""

import math

__all__ = ["WaitBudget"]

# Slow clients cost a room at most this part of its time.
_REFILL_PER_SECOND = 1 / 15

# A shorter wait helps no client to catch up.
_SHORTEST_WAIT_SECONDS = 0.05


class WaitBudget:
    """How long a room may wait for slow clients: one budget for all of them.

    At most *seconds* at once, refilled at a fifteenth of real time.  The caller passes the time as
    `now`, in seconds, of any clock that does not go back.
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
