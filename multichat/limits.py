"""Budgets of time.  Pure: whoever has a clock says how many seconds went by."""

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

    __slots__ = ("_full", "_left")

    def __init__(self, seconds: float) -> None:
        self._full = self._left = seconds

    @property
    def left_seconds(self) -> float:
        """What is left; zero or less when the member has to go."""
        return self._left

    def spend(self, seconds: float) -> None:
        """Take off *seconds* that the room has waited for this member."""
        self._left -= seconds

    def earn(self, seconds: float) -> None:
        """Give back a tenth of *seconds* in which nothing waited for this member."""
        self._left = min(self._full, self._left + seconds * _EARNED_PER_SECOND)
