"""How a server ends: drain, shutdown, and abort.

Owns the state of ending, and the schedule of goodbyes in a drain.  Closes nothing: the server stops
accepting when `begun` is set, and shuts down when `shut_down` is set.

1. The state only moves forward: `drain`, `shutdown`, `abort`; each is optional and idempotent.
2. A drain ends with the shutdown, after its seconds at the latest, or once no client is left.
3. A lagging client is disconnected when it has caught up; the shutdown disconnects the others.
"""

import math
from collections.abc import Awaitable, Callable

import trio

from multichat.errors import LocalProtocolError
from multichat.log import Log
from multichat.protocol.goodbyes import DRAINING
from multichat.protocol.messages import Goodbye
from multichat.server.admission import Admission
from multichat.server.client import Client
from multichat.server.config import DRAIN_SECONDS, MAX_DRAIN_SECONDS, ServerConfig
from multichat.server.registry import Registry

__all__ = ["Ending"]

# The interval of a drain's steps.  All goodbyes that are due within a step are sent together, so
# that thousands of clients do not need thousands of steps.
_STEP_SECONDS = 0.05

# The part of a drain before the first goodbye; see `ServerTimeouts.drain_pause`.
_PAUSE_SHARE = 1 / 3

# The time that `abort` leaves for goodbyes: enough to hand them to the kernel.
_LAST_WORDS_SECONDS = 0.1


class Ending:
    """The end of one server, whose clients are in *registry*; constructing it starts nothing.

    *start_soon* starts tasks that outlive the call.  With *is_node* the server is a node of a
    cluster, which drains by default.

    *begun* is set when the server drains or shuts down, *shut_down* when it shuts down.
    """

    def __init__(
        self,
        config: ServerConfig,
        registry: Registry,
        admission: Admission,
        log: Log,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
        *,
        is_node: bool,
    ) -> None:
        self._config, self._registry, self._log = config, registry, log
        self._admission, self._start_soon = admission, start_soon
        self._default_seconds = DRAIN_SECONDS if is_node else 0.0
        if config.drain_seconds is not None:
            self._default_seconds = config.drain_seconds
        self.begun = trio.Event()
        self.shut_down = trio.Event()
        self._ends_at = math.inf  # when the drain ends, on trio's clock
        self._pause = 0.0
        self._aborted_at = math.inf
        self._limited: list[tuple[trio.CancelScope, float]] = []

    @property
    def draining(self) -> bool:
        """Whether the server drains, and does not yet shut down."""
        return self.begun.is_set() and not self.shut_down.is_set()

    @property
    def seconds_left(self) -> float:
        """Seconds until the end of the drain; 0 without one."""
        return max(0.0, self._ends_at - trio.current_time()) if self.draining else 0.0

    def drain(self, seconds: float | None = None) -> None:
        """Begin to drain for *seconds*; the shutdown begins at their end.

        *seconds* defaults to the configured time.  With 0 seconds the server shuts down.  Does
        nothing if the server already drains or shuts down.  Raises `LocalProtocolError` if
        *seconds* is negative or more than a day.
        """
        seconds = self._default_seconds if seconds is None else seconds
        if not 0 <= seconds <= MAX_DRAIN_SECONDS:
            raise LocalProtocolError(f"a drain has 0 to {MAX_DRAIN_SECONDS} seconds")
        if self.begun.is_set():
            return
        if not seconds:
            self.shutdown()
            return
        self._ends_at = trio.current_time() + seconds
        self._pause = min(seconds * _PAUSE_SHARE, self._config.timeouts.drain_pause)
        self.begun.set()
        self._admission.refuse(DRAINING)
        if count := len(self.clients):  # nobody is connected if the server has not started
            clients = "1 client is" if count == 1 else f"{count} clients are"
            self._log.line("stop", f"Draining: {clients} told to reconnect within {seconds:g} s")
        self._start_soon(self._drain)

    @property
    def clients(self) -> list[Client]:
        """The clients that a drain disconnects: all but the bots in the server."""
        return [each for each in self._registry.clients if not each.is_trusted]

    async def _drain(self) -> None:
        """Pause, send goodbyes to one client after another, and begin the shutdown.

        If cancelled, it begins the shutdown at once.
        """
        try:
            with trio.CancelScope(deadline=self._ends_at) as scope:
                self._limited.append((scope, 0.0))
                await self._say_goodbyes()
        finally:
            self.shutdown()

    async def _say_goodbyes(self) -> None:
        now = trio.current_time()
        first_at = now + self._pause
        due, rate = 1.0, 0.0  # goodbyes that are due, and how many become due each second
        while clients := self.clients:
            ready = [each for each in clients if not each.lagging()]
            if now >= first_at and ready:
                left = self.seconds_left
                count = int(due) if left > _STEP_SECONDS else len(ready)
                needed = len(ready) / max(left, _STEP_SECONDS)
                # The rate rises at once when clients have caught up, and falls only with a goodbye.
                rate = needed if count else max(rate, needed)
                due -= count
                for client in ready[:count]:
                    self._registry.disconnect(client, self._goodbye())
            elif not ready:
                due = min(due, 1.0)  # do not save up while all remaining clients lag
            await trio.sleep(_STEP_SECONDS)
            if self.shut_down.is_set():
                return
            before, now = now, trio.current_time()
            due += rate * (now - before)

    def _goodbye(self) -> Goodbye:
        return Goodbye.of("draining", DRAINING, after=round(self.seconds_left, 1))

    def shutdown(self) -> None:
        """Begin the shutdown; ends a drain."""
        self.begun.set()
        self.shut_down.set()

    def abort(self) -> None:
        """Begin the shutdown, and cut short the scopes of `limit_closing` and `limit_clients`."""
        self.shutdown()
        if self._aborted_at == math.inf:
            self._aborted_at = trio.current_time()
        for scope, rest in self._limited:
            scope.deadline = min(scope.deadline, self._aborted_at + rest)

    def limit_closing(self, scope: trio.CancelScope, deadline: float) -> None:
        """Cancel *scope*, in which all goodbyes are sent, at *deadline* or on an abort."""
        self._limit(scope, deadline, 0.0)

    def limit_clients(self, scope: trio.CancelScope, deadline: float) -> None:
        """Cancel *scope*, which runs the clients, at *deadline*, or soon after an abort."""
        self._limit(scope, deadline, _LAST_WORDS_SECONDS)

    def _limit(self, scope: trio.CancelScope, deadline: float, rest: float) -> None:
        scope.deadline = min(deadline, self._aborted_at + rest)
        self._limited.append((scope, rest))
