"""Turns at the event loop: measures how long each connection runs, and makes connections wait.

`fair_share` decides which connection is next.  Each connection of a server has a `Meter`, which
drives the connection's coroutines and takes a turn whenever `transport.receive_some` has read
something in them.
"""

import time
import types
from collections.abc import Callable, Coroutine, Generator, Hashable
from contextvars import ContextVar
from functools import cached_property
from typing import Any, TypeVar

import trio

from multichat.net.durations import DurationRecorder
from multichat.net.fair_share import Account, FairShare, Shares

__all__ = ["Meter", "Turns", "current_meter", "end_turn", "next_turn"]

T = TypeVar("T")

# The most bytes of a turn while others take short turns: decoding binary noise takes 1.5 ms.
TURN_BYTES = 8 * 1024

# The meter of the connection that the current task serves, if any.
current_meter: ContextVar["Meter | None"] = ContextVar("current_meter", default=None)


async def next_turn() -> None:
    """Begin another turn of the connection that the current task serves, if any; a checkpoint."""
    end_turn()
    await trio.lowlevel.checkpoint()
    if (meter := current_meter.get()) is not None:
        await meter.take()


def end_turn() -> None:
    """End the turn of the connection that the current task serves, if any."""
    if (meter := current_meter.get()) is not None:
        meter.end()


class Turns(trio.abc.Instrument):
    """The turns of all connections of one server; `run` MUST run while there are connections.

    *waits* is how long connections waited for a turn that did not begin at once.

    May be created outside trio; belongs to the trio run in which it is first used.
    """

    def __init__(
        self, shares: Shares | None = None, *, cpu_clock: Callable[[], float] = time.thread_time
    ) -> None:
        self.cpu_clock = cpu_clock
        self.fair_share = FairShare(shares)
        self.waits = DurationRecorder()
        self._woken = trio.Event()

    @cached_property
    def clock(self) -> Callable[[], float]:
        """The clock of trio; `trio.current_time` takes three times as long."""
        return trio.lowlevel.current_clock().current_time

    def wake(self) -> None:
        """Make `run` check again which turn is next."""
        self._woken.set()

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
        """Record that the sockets were polled; called by trio."""
        self.fair_share.asked_at = None

    async def run(self) -> None:
        """Begin the turns of waiting connections, until cancelled."""
        clock, fair_share = self.clock, self.fair_share
        trio.lowlevel.add_instrument(self)
        try:
            while True:
                self._woken = trio.Event()
                now = clock()
                if (at := fair_share.next_at(now)) > now:
                    with trio.move_on_at(at):
                        await self._woken.wait()
                # Poll the sockets before the next turns begin, so that a connection whose data has
                # arrived meanwhile requests its turn in the same step.
                await trio.lowlevel.checkpoint()
                for account in fair_share.next(clock()):
                    assert isinstance(account, Meter)  # noqa: S101 - always
                    account.begin()
        finally:
            trio.lowlevel.remove_instrument(self)


class Meter(Account):
    """Measures how long a connection from *address* runs, and takes its turns.

    With *accepts*, it belongs to a listener.
    """

    __slots__ = ("_begun", "_cpu_started", "_ran", "_turns")

    def __init__(self, turns: Turns, address: Hashable, *, accepts: bool = False) -> None:
        super().__init__(address, turns.fair_share.shares, accepts=accepts)
        self._turns = turns
        self._begun: trio.Event | None = None
        self._cpu_started = 0.0
        # While the coroutine is suspended: how long it has run in this turn, or since the last one.
        # While it runs: now minus that duration.
        self._ran = 0.0

    @types.coroutine
    def measure(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run *coroutine*, and count the time that it runs, without the time that it waits.

        The turn ends with the coroutine.
        """
        clock = self._turns.clock
        self._ran = clock() - self._ran
        try:
            trap = coroutine.send(None)
            while True:
                self._ran = clock() - self._ran
                # The value sent in may be an error whose traceback refers to this frame: a local
                # variable would create a reference cycle.
                trap = coroutine.send(self._resumed((yield trap)))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            self.end()
            self._ran = clock() - self._ran

    def _resumed(self, result: T) -> T:
        self._ran = self._turns.clock() - self._ran
        return result

    def another(self) -> "Meter":
        """Return a meter for another task of the same connection, with the same credit."""
        meter = Meter(self._turns, self.address)
        meter.is_new, meter.credit, meter.credit_at = self.is_new, self.credit, self.credit_at
        return meter

    def most_bytes(self, max_bytes: int) -> int:
        """Return how much of *max_bytes* to read in one turn; call it after `take` or `end`."""
        if self._turns.fair_share.others_are_active(self, self._ran):
            return min(max_bytes, TURN_BYTES)
        return max_bytes

    @property
    def has_short_turn(self) -> bool:
        """Whether it has a turn that is still short."""
        turns = self._turns
        return self.has_turn and turns.clock() - self._ran <= turns.fair_share.shares.short_seconds

    async def take(self) -> None:
        """Wait for the next turn, unless the current one is still short; called in `measure`.

        A checkpoint only if it has to wait.
        """
        if self.has_short_turn:
            return
        self.end()
        turns = self._turns
        if not turns.fair_share.ask(self, self._ran):
            self._begun = trio.Event()
            turns.wake()
            asked_at = turns.clock()
            try:
                await self._begun.wait()
            finally:
                self._begun = None
                turns.fair_share.withdraw(self)
                turns.waits.note(turns.clock() - asked_at)
        self._cpu_started = turns.cpu_clock()

    def begin(self) -> None:
        """Begin its turn, for which it waits."""
        if self._begun is not None:
            self._begun.set()

    def end(self) -> None:
        """End the current turn, if any."""
        if not self.has_turn:
            return
        turns = self._turns
        now = turns.clock()
        seconds, self._ran = now - self._ran, now
        if seconds > turns.fair_share.shares.short_seconds:
            # Part of the time may have been spent in other processes.
            seconds = min(seconds, turns.cpu_clock() - self._cpu_started)
        turns.fair_share.end(self, seconds, now)
        if turns.fair_share.has_waiting:
            turns.wake()
