"""Turns at the event loop: measures what each connection uses of it, and has them wait.

Who is next is decided by `fair_share`.  Each connection of a server has a `Meter`, which drives the
connection's coroutines and takes a turn whenever something was read in them: by `receive_some`,
whichever layer calls it.
"""

import time
import types
from collections.abc import Callable, Coroutine, Generator, Hashable
from contextvars import ContextVar
from typing import Any, TypeVar

import trio

from multichat.fair_share import Account, FairShare, Shares

__all__ = ["Meter", "Turns", "current_meter", "end_turn", "next_turn"]

T = TypeVar("T")

# While anybody talks, a turn is for so much: 1.5 ms, where it is binary noise.
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
    """The turns of all connections of one server; `run` runs while there are any."""

    def __init__(
        self, shares: Shares | None = None, *, cpu_clock: Callable[[], float] = time.thread_time
    ) -> None:
        self._cpu_clock = cpu_clock
        self._fair_share = FairShare(shares)
        self._woken = trio.Event()

    def meter(self, place: Hashable, *, accepts: bool = False) -> "Meter":
        """Return a meter for a connection from *place*, or for a listener that *accepts*."""
        return Meter(self, self._fair_share, place, accepts=accepts, cpu_clock=self._cpu_clock)

    def wake(self) -> None:
        """Have `run` look again who is next."""
        self._woken.set()

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
        """Note that the sockets were polled; trio calls this."""
        self._fair_share.polled(trio.current_time())

    async def run(self) -> None:
        """Have those who wait take their turns, until cancelled."""
        trio.lowlevel.add_instrument(self)
        try:
            while True:
                self._woken = trio.Event()
                if (at := self._fair_share.next_at(trio.current_time())) > trio.current_time():
                    with trio.move_on_at(at):
                        await self._woken.wait()
                # The sockets are polled before the next turns begin: a connection that has sent
                # something meanwhile asks for its turn in the same step.
                await trio.lowlevel.checkpoint()
                for account in self._fair_share.next(trio.current_time()):
                    assert isinstance(account, Meter)  # noqa: S101 - there are no others
                    account.begin()
        finally:
            trio.lowlevel.remove_instrument(self)


class Meter(Account):
    """Measures what one connection uses of the event loop, and takes its turns.

    Made by `Turns.meter`.
    """

    __slots__ = (
        "_begun",
        "_clock",
        "_cpu_clock",
        "_cpu_started",
        "_fair_share",
        "_started",
        "_turns",
        "_used",
    )

    def __init__(
        self,
        turns: Turns,
        fair_share: FairShare,
        place: Hashable,
        *,
        accepts: bool,
        cpu_clock: Callable[[], float],
    ) -> None:
        super().__init__(place, fair_share.shares, accepts=accepts)
        self._cpu_clock = cpu_clock
        self._used = self._cpu_started = 0.0
        self._turns = turns
        self._fair_share = fair_share
        self._clock = trio.lowlevel.current_clock().current_time
        self._begun: trio.Event | None = None
        self._started = 0.0

    @types.coroutine
    def measure(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run *coroutine*, and count the time that it takes without that in which it waits."""
        clock = self._clock
        self._started = clock()
        try:
            trap = coroutine.send(None)
            while True:
                self._used += clock() - self._started
                # What it is resumed with may be an error, which refers to this frame by its
                # traceback: in a variable, it would be a reference cycle.
                trap = coroutine.send(self._resumed((yield trap)))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            self._used += clock() - self._started

    def _resumed(self, result: T) -> T:
        self._started = self._clock()
        return result

    def another(self) -> "Meter":
        """Return a meter for another task of the same connection, with no more credit."""
        meter = self._turns.meter(self.place)
        meter.is_new, meter.credit, meter.credit_at = self.is_new, self.credit, self.credit_at
        return meter

    def most_bytes(self, max_bytes: int) -> int:
        """Return how much of *max_bytes* to read for one turn; right after `end`."""
        if self._fair_share.somebody_talks(self._started):
            return min(max_bytes, TURN_BYTES)
        return max_bytes

    @property
    def has_short_turn(self) -> bool:
        """Whether it has a turn that is not long yet."""
        return self.turn and self._seconds(self._clock()) <= self._fair_share.shares.short_seconds

    async def take(self) -> None:
        """Wait for the next turn, unless there is one that is not long yet.

        A checkpoint only if it has to wait.
        """
        if self.has_short_turn:
            return
        self.end()
        if not self._fair_share.ask(self, self._started):
            self._begun = trio.Event()
            self._turns.wake()
            try:
                await self._begun.wait()
            finally:
                self._begun = None
                self._fair_share.withdraw(self)
        self._cpu_started = self._cpu_clock()

    def _seconds(self, now: float) -> float:
        return self._used + now - self._started

    def begin(self) -> None:
        """Let it take its turn."""
        if self._begun is not None:
            self._begun.set()

    def end(self) -> None:
        """End the turn, if it has one: there is nothing more to do in it."""
        if not self.turn:
            return
        now = self._clock()
        seconds = self._seconds(now)
        self._used, self._started = 0.0, now
        if seconds > self._fair_share.shares.short_seconds:
            # Or did others have the processor?
            seconds = min(seconds, self._cpu_clock() - self._cpu_started)
        self._fair_share.end(self, seconds, now)
        if self._fair_share.anybody_waits:
            self._turns.wake()
