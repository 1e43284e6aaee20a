"""Budgets of time.  Pure: whoever has a clock says how many seconds went by."""

import math

__all__ = ["Patience"]

# A member that is slow one second in eleven is an ordinary one; slower than that, it sets the
# room's pace.
_EARNED_PER_SECOND = 0.1


class Patience:
    """How much longer a room will wait for one member whose mailbox is full.

    A budget of *seconds*: the room's waiting spends it, time in which nothing waits for the
    member earns it back at a tenth.  So a reader that trickles cannot set a room's pace for ever,
    and one that was away for a moment is forgiven.
    """

    __slots__ = ("_full", "_left", "_spent_until")

    def __init__(self, seconds: float) -> None:
        self._full = self._left = seconds
        self._spent_until = -math.inf

    @property
    def left_seconds(self) -> float:
        """What is left; zero or less when the member has to go."""
        return self._left

    def spend(self, seconds: float) -> None:
        """Take off *seconds* that the room has waited for this member."""
        self._left -= seconds

    def spend_together(self, since: float, now: float) -> None:
        """Take off the time from *since* to *now*, but none that this has taken off before.

        For several that wait at once, and independently; what is left is not below zero after it.
        """
        seconds = now - max(since, self._spent_until)
        self._left -= min(max(0, seconds), max(0, self._left))
        self._spent_until = max(now, self._spent_until)

    def earn(self, seconds: float) -> None:
        """Give back a tenth of *seconds* in which nothing waited for this member."""
        self._left = min(self._full, self._left + seconds * _EARNED_PER_SECOND)
