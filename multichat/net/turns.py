"""Turns at the event loop: measures what each connection uses of it, and has them wait.

Who is next is decided by `fair_share`.  Each connection of a server has a `Meter`, which drives the
connection's coroutines and takes a turn whenever something was read in them: by `receive_some`,
whichever layer calls it.
"""

import time
import types
from collections.abc import Callable, Coroutine, Generator, Hashable
from contextvars import ContextVar
from functools import cached_property
from typing import Any, TypeVar

import trio

from multichat.net.fair_share import Account, FairShare, Shares

__all__ = ["Meter", "Turns", "current_meter", "end_turn", "next_turn"]

T = TypeVar("T")

# While others talk, a turn is for so much: 1.5 ms, where it is binary noise.
TURN_BYTES = 8 * 1024

# The meter of the connection that this task serves, if it does.
current_meter: ContextVar["Meter | None"] = ContextVar("current_meter", default=None)


async def next_turn() -> None:
    """Begin another turn of the connection that this task serves, if it does; a checkpoint."""
    end_turn()
    await trio.lowlevel.checkpoint()
    if (meter := current_meter.get()) is not None:
        await meter.take()


def end_turn() -> None:
    """End the turn of the connection that this task serves, if it has one."""
    if (meter := current_meter.get()) is not None:
        meter.end()


class Turns(trio.abc.Instrument):
    """The turns of all connections of one server; `run` runs while there are any.

    Made anywhere, and used in one run of trio.
    """

    def __init__(
        self, shares: Shares | None = None, *, cpu_clock: Callable[[], float] = time.thread_time
    ) -> None:
        self.cpu_clock = cpu_clock
        self.fair_share = FairShare(shares)
        self._woken = trio.Event()

    @cached_property
    def clock(self) -> Callable[[], float]:
        """Trio's clock, of which `trio.current_time` takes three times as long."""
        return trio.lowlevel.current_clock().current_time

    def wake(self) -> None:
        """Have `run` look again who is next."""
        self._woken.set()

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
        """Note that the sockets were polled; trio calls this."""
        self.fair_share.asked_at = None

    async def run(self) -> None:
        """Have those who wait take their turns, until cancelled."""
        clock, fair_share = self.clock, self.fair_share
        trio.lowlevel.add_instrument(self)
        try:
            while True:
                self._woken = trio.Event()
                now = clock()
                if (at := fair_share.next_at(now)) > now:
                    with trio.move_on_at(at):
                        await self._woken.wait()
                # The sockets are polled before the next turns begin: a connection that has sent
                # something meanwhile asks for its turn in the same step.
                await trio.lowlevel.checkpoint()
                for account in fair_share.next(clock()):
                    assert isinstance(account, Meter)  # noqa: S101 - there are no others
                    account.begin()
        finally:
            trio.lowlevel.remove_instrument(self)


class Meter(Account):
    """Measures what a connection from *place* uses of the event loop, and takes its turns.

    With *accepts*, it is a listener's.
    """

    __slots__ = ("_begun", "_cpu_started", "_ran", "_turns")

    def __init__(self, turns: Turns, place: Hashable, *, accepts: bool = False) -> None:
        super().__init__(place, turns.fair_share.shares, accepts=accepts)
        self._turns = turns
        self._begun: trio.Event | None = None
        self._cpu_started = 0.0
        # While the coroutine is suspended: for how long it has run in this turn, or since the last.
        # While it runs: when it would have begun to, had it not been suspended; without a turn that
        # is just now.
        self._ran = 0.0

    @types.coroutine
    def measure(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run *coroutine*, and count the time that it takes without that in which it waits.

        Its turn ends with it.
        """
        clock = self._turns.clock
        self._ran = clock() - self._ran
        try:
            trap = coroutine.send(None)
            while True:
                self._ran = clock() - self._ran
                # What it is resumed with may be an error, which refers to this frame by its
                # traceback: in a variable, it would be a reference cycle.
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
        """Return a meter for another task of the same connection, with no more credit."""
        meter = Meter(self._turns, self.place)
        meter.is_new, meter.credit, meter.credit_at = self.is_new, self.credit, self.credit_at
        return meter

    def most_bytes(self, max_bytes: int) -> int:
        """Return how much of *max_bytes* to read for one turn; right after `take` or `end`."""
        if self._turns.fair_share.others_talk(self, self._ran):
            return min(max_bytes, TURN_BYTES)
        return max_bytes

    @property
    def has_short_turn(self) -> bool:
        """Whether it has a turn that is not long yet."""
        turns = self._turns
        return self.turn and turns.clock() - self._ran <= turns.fair_share.shares.short_seconds

    async def take(self) -> None:
        """Wait for the next turn, unless there is one that is not long yet; called in `measure`.

        A checkpoint only if it has to wait.
        """
        if self.has_short_turn:
            return
        self.end()
        turns = self._turns
        if not turns.fair_share.ask(self, self._ran):
            self._begun = trio.Event()
            turns.wake()
            try:
                await self._begun.wait()
            finally:
                self._begun = None
                turns.fair_share.withdraw(self)
        self._cpu_started = turns.cpu_clock()

    def begin(self) -> None:
        """Let it take its turn."""
        if self._begun is not None:
            self._begun.set()

    def end(self) -> None:
        """End the turn, if it has one: there is nothing more to do in it."""
        if not self.turn:
            return
        turns = self._turns
        now = turns.clock()
        seconds, self._ran = now - self._ran, now
        if seconds > turns.fair_share.shares.short_seconds:
            # Or did others have the processor?
            seconds = min(seconds, turns.cpu_clock() - self._cpu_started)
        turns.fair_share.end(self, seconds, now)
        if turns.fair_share.anybody_waits:
            turns.wake()
