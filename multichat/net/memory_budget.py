"""The memory budget of connected clients.  Pure."""

import math
from collections.abc import Callable

__all__ = ["MemoryBudget"]


class MemoryBudget:
    """Counts the memory held for connected clients: send queues, partial lines, nonces.

    Bytes that several send queues share are counted once: a block that is queued for a thousand
    members costs as much as one copy.  While more than *limit_bytes* are held, *on_over* is called
    synchronously, possibly often.
    """

    # Above this part of the limit, send queues are limited to the size for lagging members.
    TIGHT_PART = 0.5

    __slots__ = ("_holders", "_on_over", "held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: float = math.inf, on_over: Callable[[], object] = int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._on_over = on_over
        self._holders: dict[int, int] = {}  # by `id`, which is unique while the bytes are held

    @property
    def over(self) -> bool:
        """Whether more than the limit is held."""
        return self.held_bytes > self.limit_bytes

    @property
    def tight(self) -> bool:
        """Whether so much is held that send queues are limited to a smaller size."""
        return self.held_bytes > self.limit_bytes * self.TIGHT_PART

    def add(self, size: int) -> None:
        """Add *size* bytes, which may be negative, of memory that is not shared."""
        self.held_bytes += size
        if size > 0 and self.over:
            self._on_over()

    def hold(self, data: bytes) -> None:
        """Add a holder of *data*."""
        holders = self._holders.get(id(data), 0)
        self._holders[id(data)] = holders + 1
        if not holders:
            self.add(len(data))

    def release(self, data: bytes) -> None:
        """Remove a holder of *data*."""
        holders = self._holders[id(data)] - 1
        if holders:
            self._holders[id(data)] = holders
        else:
            del self._holders[id(data)]
            self.add(-len(data))
