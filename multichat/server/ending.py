"""How a server ends: it drains, shuts down, or ends at once.

Owns whether a server drains or shuts down, and when a drain says goodbye to whom.  Closes nothing:
the server stops accepting when `begun` is set, and shuts down when `shut_down` is.

1. It only goes forward: `drain`, `shutdown`, `abort`; each may be left out, and each is idempotent.
2. A drain ends with the shutdown, after its seconds at the latest, and before if no client is left.
3. A client that lags is disconnected when it has caught up; the shutdown disconnects the others.
"""

import math

import trio

from multichat.errors import LocalProtocolError
from multichat.log import Log
from multichat.protocol.goodbyes import DRAINING
from multichat.protocol.messages import Goodbye
from multichat.server.admission import Admission
from multichat.server.config import DRAIN_SECONDS, MAX_DRAIN_SECONDS, ServerConfig
from multichat.server.registry import Registry

__all__ = ["Ending"]

# How often a drain looks who is left.  Goodbyes that are due within one step are said together, so
# that thousands of clients do not make thousands of steps.
_STEP_SECONDS = 0.05

# The part of a drain in which nobody gets a goodbye; see `ServerTimeouts.drain_pause`.
_PAUSE_SHARE = 1 / 3

# The time for goodbyes that `abort` leaves: enough to hand them to the kernel.
_LAST_WORDS_SECONDS = 0.1


class Ending:
    """The end of one server, whose clients are in *registry*; constructing it starts nothing.

    With *is_node* the server is a node of a cluster, which drains by default.

    *begun* is set when the server drains or shuts down, *shut_down* when it shuts down.
    """

    def __init__(
        self,
        config: ServerConfig,
        registry: Registry,
        admission: Admission,
        log: Log,
        *,
        is_node: bool,
    ) -> None:
        self._config, self._registry, self._log = config, registry, log
        self._admission = admission
        self._default_seconds = DRAIN_SECONDS if is_node else 0.0
        if config.drain_seconds is not None:
            self._default_seconds = config.drain_seconds
        self.begun = trio.Event()
        self.shut_down = trio.Event()
        self._ends_at = math.inf  # of the drain, on trio's clock
        self._pause = 0.0
        self._aborted_at = math.inf
        self._limited: list[tuple[trio.CancelScope, float]] = []

    @property
    def draining(self) -> bool:
        """Whether it drains, and does not shut down yet."""
        return self.begun.is_set() and not self.shut_down.is_set()

    @property
    def seconds_left(self) -> float:
        """Seconds until the drain has ended; 0 without one."""
        return max(0.0, self._ends_at - trio.current_time()) if self.draining else 0.0

    def drain(self, seconds: float | None = None) -> bool:
        """Begin to drain for *seconds*; return whether `run` MUST be called now, in a task.

        By default, *seconds* are those of the configuration.  With 0 seconds it shuts down.  Once
        it drains or shuts down, this does nothing.  Raises `LocalProtocolError` if *seconds* is
        negative or more than a day.
        """
        seconds = self._default_seconds if seconds is None else seconds
        if not 0 <= seconds <= MAX_DRAIN_SECONDS:
            raise LocalProtocolError(f"a drain has 0 to {MAX_DRAIN_SECONDS} seconds")
        if self.begun.is_set():
            return False
        if not seconds:
            self.shutdown()
            return False
        self._ends_at = trio.current_time() + seconds
        self._pause = min(seconds * _PAUSE_SHARE, self._config.timeouts.drain_pause)
        self.begun.set()
        self._admission.refuse(DRAINING)
        count = len(self._registry)
        clients = "1 client is" if count == 1 else f"{count} clients are"
        self._log.line("stop", f"Draining: {clients} told to reconnect within {seconds:g} s")
        return True

    async def run(self) -> None:
        """Pause, say goodbye to one client after the other, and begin the shutdown.

        Cancelled, it begins the shutdown at once.
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
        due, rate = 1.0, 0.0  # goodbyes that are due, and how many more are in each second
        while clients := [each for each in self._registry.clients if not each.is_trusted]:
            ready = [each for each in clients if not each.lagging()]
            if now >= first_at and ready:
                left = self.seconds_left
                count = int(due) if left > _STEP_SECONDS else len(ready)
                needed = len(ready) / max(left, _STEP_SECONDS)
                # It rises at once when clients have caught up, and falls only with a goodbye.
                rate = needed if count else max(rate, needed)
                due -= count
                for client in ready[:count]:
                    self._registry.disconnect(client, self._goodbye())
            elif not ready:
                due = min(due, 1.0)  # not saved up while all that are left lag
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
        """Begin the shutdown, and end all that `limit` limits."""
        self.shutdown()
        if self._aborted_at == math.inf:
            self._aborted_at = trio.current_time()
        for scope, rest in self._limited:
            scope.deadline = min(scope.deadline, self._aborted_at + rest)

    def limit_closing(self, scope: trio.CancelScope, deadline: float) -> None:
        """Cancel *scope*, in which all goodbyes are said, at *deadline* or when aborted."""
        self._limit(scope, deadline, 0.0)

    def limit_clients(self, scope: trio.CancelScope, deadline: float) -> None:
        """Cancel *scope*, in which the clients are, at *deadline*, or soon after an abort."""
        self._limit(scope, deadline, _LAST_WORDS_SECONDS)

    def _limit(self, scope: trio.CancelScope, deadline: float, rest: float) -> None:
        scope.deadline = min(deadline, self._aborted_at + rest)
        self._limited.append((scope, rest))
