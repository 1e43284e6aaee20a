"""Bounds what share of the event loop's time some of the server's work gets, by waiting before it.

Owns the time at which that work may continue.  For connections that take no turns with the clients
(`multichat.net.turns`), because an answer to the operator must not wait for a flood of theirs.

1. What was measured is followed by so long a pause that it was at most its share of the time.
2. Waiting tasks continue in the order in which they came.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from multichat.net.listeners import WaitingListener

__all__ = ["Pace", "PacedListener"]

# What the event loop takes for a step besides what is measured: polling, waking a task, a system
# call.  For a new connection, a task as well.
_STEP_SECONDS = 0.0001
_CONNECTION_SECONDS = 0.0005


class Pace:
    """Bounds the *share* of time that is spent in `measure`; *clock* returns seconds."""

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self._share, self._clock = share, clock
        self._next_at = 0.0
        self._turn = trio.Lock()

    async def wait(self) -> None:
        """Wait until the work may continue; always a checkpoint."""
        async with self._turn:  # in the order in which they came
            await trio.sleep(max(0.0, self._next_at - self._clock()))
            self.spend(_STEP_SECONDS)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Measure the block, which must not wait."""
        started = self._clock()
        try:
            yield
        finally:
            self.spend(self._clock() - started)

    def spend(self, seconds: float) -> None:
        """Count that many *seconds* of the event loop's time."""
        pause = seconds * (1 / self._share - 1)
        self._next_at = max(self._next_at, self._clock()) + pause


class PacedListener(WaitingListener):
    """A *listener* whose new connections keep to a *pace*."""

    def __init__(self, listener: trio.abc.Listener[trio.SocketStream], pace: Pace) -> None:
        super().__init__(listener, pace.wait)
        self._pace = pace

    async def accept(self) -> trio.SocketStream:
        """Return the next connection when the pace allows it; raises the listener's errors."""
        stream = await super().accept()
        self._pace.spend(_CONNECTION_SECONDS)
        return stream
