"""Watches the event loop of a server: how late it wakes a task, and what the server does a second.

Both are samples of one task that mostly sleeps, so that nothing is done per message.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import trio

from multichat.net.durations import DurationRecorder

__all__ = ["LoopWatch", "Rates", "WatchTimes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchTimes:
    """How often the loop is sampled, and over which time, in seconds.

    A stall is noticed if it lasts into the next sample: one of a tenth of a second is noticed in
    two of five cases, one that is longer than the interval always.
    """

    interval: float = 0.25
    window: float = 10.0


class Rates(NamedTuple):
    """What a server did a second, on average over the window."""

    messages: float = 0.0
    deliveries: float = 0.0


class _Sample(NamedTuple):
    at: float
    lag: float
    messages: int
    deliveries: int


class LoopWatch:
    """Samples the event loop, and the totals of *count*: messages and deliveries so far.

    *lag* has how late each wake-up was; see `longest_lag` for the window.  Time is trio's.
    """

    def __init__(
        self, count: Callable[[], tuple[int, int]], times: WatchTimes = WatchTimes()
    ) -> None:
        self._count, self._times = count, times
        self.lag = DurationRecorder()
        self._samples: deque[_Sample] = deque()
        self._clock: Callable[[], float] = time.perf_counter  # of trio, once it runs

    async def run(self) -> None:
        """Sample until cancelled."""
        self._clock = clock = trio.lowlevel.current_clock().current_time
        self._samples.append(_Sample(clock(), 0.0, *self._count()))
        try:
            while True:
                due = clock() + self._times.interval
                await trio.sleep_until(due)
                now = clock()
                lag = max(0.0, now - due)
                self.lag.note(lag)
                self._samples.append(_Sample(now, lag, *self._count()))
                # The oldest may be older than the window: it is where the first interval begins.
                while self._samples[1].at <= now - self._times.window:
                    self._samples.popleft()
        finally:
            self._samples.clear()

    @property
    def longest_lag(self) -> float:
        """How late the latest wake-up of the window was, in seconds; 0 while it does not run."""
        if not self._samples:
            return 0.0
        overdue = self._clock() - self._samples[-1].at - self._times.interval
        return max(overdue, 0.0, *(sample.lag for sample in self._samples))

    def rates(self) -> Rates:
        """Return the rates; 0 while it does not run."""
        if not self._samples:
            return Rates()
        oldest = self._samples[0]
        seconds = self._clock() - oldest.at
        if seconds <= 0:
            return Rates()
        messages, deliveries = self._count()
        return Rates(
            (messages - oldest.messages) / seconds, (deliveries - oldest.deliveries) / seconds
        )
