"""One publish while it goes on: what becomes of it, and whether slow members take anything.

Knows nothing of rooms and clocks.
"""

from dataclasses import dataclass

from multichat.protocol.messages import Notice, SaidBlock
from multichat.server.broadcast import Receipt
from multichat.server.member import Member

__all__ = ["Delivery", "Progress"]


@dataclass(slots=True)
class Delivery:
    """What becomes of a publish, while it goes on.

    *notice* is set if it is one.  *free_until* is how long waiting may be free, from the first time
    on that it waits.
    """

    notice: Notice | None = None
    free_until: float | None = None
    logged: bool = False
    delivered: int = 0
    queued: int = 0
    lagging: int = 0
    dropped: int = 0

    def receipt(self, said: SaidBlock) -> Receipt:
        """Return it, of what *said* says."""
        return Receipt(
            delivered=self.delivered,
            queued=self.queued,
            lagging=self.lagging,
            dropped=self.dropped,
            epoch=said.epoch,
            first=said.first,
        )


class Progress:
    """When one of *members* took bytes last, as far as it was looked at; *at* begins with *now*."""

    def __init__(self, members: list[Member], now: float) -> None:
        self.at = now
        self._seen = {member: member.send_queue.progress for member in members}

    def look(self, now: float) -> None:
        """Look whether one of them has taken something since."""
        seen = {member: member.send_queue.progress for member in self._seen}
        if seen != self._seen:
            self._seen, self.at = seen, now
