"""How much memory is held for connected clients.  Pure."""

import math
from collections.abc import Callable

__all__ = ["MemoryBudget"]


class MemoryBudget:
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
