"""A simulated connection of a node to the engine: late, in bursts, cut, and away for a while.

A `Link` carries calls up, in order, and answers and pushes down, each kind in order: an answer may
come before or after the pushes that the same call caused.  When the link is cut, whatever is on its
way is lost.  Once it is back, the calls without an answer are sent again, each with its number, and
the engine executes none of them twice (see `Executor`): so an effect happens once, whether the call
or the answer was lost.  Pushes continue with the first that has not arrived, as if the node had
read what it missed.

Everything depends only on the faults and the random numbers, and takes virtual time.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Any

import trio

__all__ = ["Call", "Execution", "Executor", "Link", "LinkFaults"]


@dataclass(frozen=True, kw_only=True)
class LinkFaults:
    """How a link behaves.

    A call takes up to *up_seconds*, its answer and a push up to *down_seconds* and *push_seconds*.
    The share *bursts* of pushes is held for *burst_seconds*, with those behind it.  *cuts* are the
    times at which the link is cut, each with the seconds until it is back.
    """

    up_seconds: float = 0.0
    down_seconds: float = 0.0
    push_seconds: float = 0.0
    bursts: float = 0.0
    burst_seconds: float = 0.0
    cuts: tuple[tuple[float, float], ...] = ()


class Call:
    """One call: its *request*, its *number* among those of its node, and the *answer* to it.

    *run* is that of the node when it called.
    """

    __slots__ = ("answer", "number", "request", "run")

    def __init__(self, number: int, request: Any, run: int) -> None:
        self.number, self.request, self.run = number, request, run
        self.answer: Any = None


class Execution(ABC):
    """A call that the engine has carried out, or is storing."""

    @abstractmethod
    async def wait(self) -> Any:
        """Return the answer, once it is final."""


class Executor(ABC):
    """The engine's end of the links."""

    @abstractmethod
    def execute(self, link: "Link", call: Call) -> Execution:
        """Carry out *call*, unless it has been: then return the first execution."""


class _Lane:
    """Things on their way in one direction, in order, each with the time at which it arrives."""

    def __init__(self) -> None:
        self._items: deque[tuple[float, Any]] = deque()
        self._last = 0.0
        self._more = trio.Event()

    def put(self, item: Any, seconds: float) -> None:
        """Put *item* on its way, which takes *seconds*, or as long as what is before it."""
        self._last = max(self._last, trio.current_time() + seconds)
        self._items.append((self._last, item))
        self._more.set()

    @property
    def items(self) -> list[Any]:
        """What is on its way."""
        return [item for _, item in self._items]

    async def get(self) -> Any:
        """Return the next thing that arrives."""
        while not self._items:
            self._more = trio.Event()
            await self._more.wait()
        await trio.sleep_until(self._items[0][0])
        return self._items.popleft()[1]


class Link:
    """The connection of one node to *engine*.

    *answered* is called with each call that has its answer, *pushed* with each push, and *changed*
    when the link is up or down.  None of them may wait or raise.

    *away_since* is when the link was cut, None while it is up.
    """

    def __init__(
        self,
        engine: Executor,
        faults: LinkFaults,
        rng: Random,
        *,
        answered: Callable[[Call], None],
        pushed: Callable[[Any], None],
        changed: Callable[[], None],
    ) -> None:
        self._engine, self._faults, self._rng = engine, faults, rng
        self._answered, self._pushed, self._changed = answered, pushed, changed
        self._unanswered: dict[int, Call] = {}
        self._unseen: deque[Any] = deque()  # pushes that have not arrived
        self._numbers = 0
        self._up, self._down, self._pushes = _Lane(), _Lane(), _Lane()
        self._thawed = trio.Event()
        self._thawed.set()
        self._is_dropped = False
        self.away_since: float | None = None

    async def run(self) -> None:
        """Carry everything until cancelled."""
        cuts = deque(self._faults.cuts)
        while True:
            while cuts and cuts[0][0] <= trio.current_time():
                cuts.popleft()
            at, seconds = cuts.popleft() if cuts else (inf, 0.0)
            with trio.move_on_at(at):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry_up)
                    nursery.start_soon(self._carry_down)
                    nursery.start_soon(self._carry_pushes)
            await self._thawed.wait()  # a frozen node notices it once it is woken
            self.away_since = trio.current_time()
            self._up, self._down, self._pushes = _Lane(), _Lane(), _Lane()
            self._changed()
            await trio.sleep(seconds)
            self._come_back()

    def _come_back(self) -> None:
        self.away_since = None
        for call in self._unanswered.values():
            self._send(call)
        for item in self._unseen:
            self._send_push(item)
        self._changed()

    def drop(self, *, arriving: bool = False) -> None:
        """Carry nothing more, as when the node or the engine is killed.

        Some of the calls that are *arriving* are still carried out.
        """
        if arriving and not self._is_dropped:
            calls = self._up.items
            for call in calls[: self._rng.randint(0, len(calls))]:
                self._engine.execute(self, call)
        self._is_dropped = True
        self._unanswered.clear()
        self._up, self._down, self._pushes = _Lane(), _Lane(), _Lane()

    def freeze(self, *, frozen: bool) -> None:
        """Stop the node, or wake it: what arrives meanwhile waits for it."""
        if not frozen:
            self._thawed.set()
        elif self._thawed.is_set():
            self._thawed = trio.Event()

    @property
    def unanswered(self) -> list[Call]:
        """The calls without an answer, in order."""
        return list(self._unanswered.values())

    @property
    def unseen(self) -> list[Any]:
        """The pushes that have not arrived, in order."""
        return list(self._unseen)

    def call(self, request: Any, run: int = 0) -> Call:
        """Send *request* now, or once the link is back."""
        self._numbers += 1
        call = Call(self._numbers, request, run)
        if not self._is_dropped:
            self._unanswered[call.number] = call
            if self.away_since is None:
                self._send(call)
        return call

    def push(self, item: Any) -> None:
        """Send *item* to the node, now or once the link is back; for the engine."""
        if not self._is_dropped:
            self._unseen.append(item)
            if self.away_since is None:
                self._send_push(item)

    def _send(self, call: Call) -> None:
        self._up.put(call, self._rng.uniform(0, self._faults.up_seconds))

    def _send_push(self, item: Any) -> None:
        faults, rng = self._faults, self._rng
        held = faults.burst_seconds if rng.random() < faults.bursts else 0.0
        self._pushes.put(item, held + rng.uniform(0, faults.push_seconds))

    async def _carry_up(self) -> None:
        while True:
            call = await self._up.get()
            await self._thawed.wait()
            execution = self._engine.execute(self, call)
            self._down.put((call, execution), self._rng.uniform(0, self._faults.down_seconds))

    async def _carry_down(self) -> None:
        while True:
            call, execution = await self._down.get()
            call.answer = await execution.wait()
            await self._thawed.wait()
            if self._unanswered.pop(call.number, None) is not None:
                self._answered(call)

    async def _carry_pushes(self) -> None:
        while True:
            item = await self._pushes.get()
            await self._thawed.wait()
            if self._unseen and self._unseen[0] is item:
                self._unseen.popleft()
                self._pushed(item)
