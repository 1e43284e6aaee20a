"""Disconnects clients while they hold more memory than the server may use for them."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import trio

from multichat.net.memory_budget import MemoryBudget
from multichat.protocol.goodbyes import TOO_FAR_BEHIND
from multichat.protocol.messages import Goodbye
from multichat.server.broadcast import Counts
from multichat.server.client import Client

__all__ = ["Shedding"]

# Clients whose goodbye is still being written may hold this part of the memory.
_LEAVING_PART = 1 / 8


class Shedding:
    """Keeps the memory of *clients* within *limit_bytes*; *budget* counts it.

    *disconnect* disconnects a client, which *counts* count.  *start_soon* starts a task.
    """

    def __init__(
        self,
        clients: Mapping[int, Client],
        limit_bytes: float,
        counts: Counts,
        disconnect: Callable[[Client, Goodbye], None],
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self.budget = MemoryBudget(limit_bytes, self._shed_soon)
        self._clients, self._counts = clients, counts
        self._disconnect, self._start_soon = disconnect, start_soon
        self._shedding = False

    def _shed_soon(self) -> None:
        # Not at once: this is called while a publish iterates over the members.
        if not self._shedding:
            self._shedding = True
            self._start_soon(self._shed)

    async def _shed(self) -> None:
        """Disconnect the largest client of the largest address until the rest fits the budget."""
        budget = self.budget
        leaving = 0  # bytes for clients that may still read them, within the grace period
        try:
            while budget.held_bytes - leaving > budget.limit_bytes and self._clients:
                client = self._largest()
                if not client.send_queue.held_bytes:
                    return
                self._counts.too_slow += 1
                client.send_queue.forget()
                self._disconnect(client, Goodbye.of("too-slow", TOO_FAR_BEHIND))
                if leaving + client.send_queue.waiting_bytes <= budget.limit_bytes * _LEAVING_PART:
                    leaving += client.send_queue.waiting_bytes
                else:
                    await client.send_queue.abort()
                await trio.lowlevel.checkpoint()  # after this its memory is free
        finally:
            self._shedding = False

    def _largest(self) -> Client:
        """Return the client that holds most memory, of the address whose clients hold most."""
        held: Counter[str | int] = Counter()
        for client in self._clients.values():
            held[client.origin or client.number] += client.send_queue.held_bytes

        def size(client: Client) -> tuple[int, int]:
            return held[client.origin or client.number], client.send_queue.held_bytes

        return max(self._clients.values(), key=size)
