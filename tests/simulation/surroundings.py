"""What a run puts around servers: a seeded scheduler, a mock clock, and recorded logs.

So that a run depends only on its plan: see `tests.simulation.world`.
"""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from random import Random
from typing import TypeVar
from unittest import mock

import trio
import trio.testing
from trio._core import _run as trio_run

from multichat.log import LogWriter
from multichat.server.client import Client
from multichat.server.config import AccountLimits
from multichat.server.passphrases import Hasher
from multichat.server.registry import Registry

from .history import DAY_BEGINS_SECONDS, Visit
from .wire import Kernel

__all__ = [
    "StandstillGuard",
    "VirtualHasher",
    "direct_writes",
    "log_on_full_disk",
    "log_to",
    "numbered",
    "same_schedule",
    "seeded_tokens",
    "time_of_day",
    "watch_numbers",
]

T = TypeVar("T")

# The connection whose task this is.
_visit: ContextVar[Visit | None] = ContextVar("visit", default=None)

# The most scheduler steps at one virtual time; the busiest runs take a few thousand.
_MOST_STEPS_AT_ONCE = 100_000


@contextlib.contextmanager
def same_schedule(seed: int) -> Iterator[None]:
    with mock.patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", new=True):
        trio_run._r.seed(seed)
        yield


@contextlib.contextmanager
def time_of_day(clock: trio.testing.MockClock) -> Iterator[None]:
    def now() -> float:
        return DAY_BEGINS_SECONDS + clock.current_time()

    with mock.patch.object(time, "time", now):
        yield


@contextlib.contextmanager
def seeded_tokens(seed: int) -> Iterator[None]:
    """Make session tokens depend on the seed."""
    rng = Random(f"{seed} tokens")

    with (
        mock.patch.object(secrets, "token_hex", lambda size=16: rng.randbytes(size).hex()),
        mock.patch.object(secrets, "token_bytes", rng.randbytes),
    ):
        yield


@contextlib.contextmanager
def log_to(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger("multichat")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)  # tracebacks are logged at that level
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


@contextlib.contextmanager
def numbered(visit: Visit) -> Iterator[None]:
    """Give *visit* the number of the client whose task is started in the block."""
    token = _visit.set(visit)
    try:
        yield
    finally:
        _visit.reset(token)


@contextlib.contextmanager
def watch_numbers() -> Iterator[dict[Client, Visit]]:
    """Note which number each visit gets when it is connected, and which client; see `numbered`."""
    add = Registry.add
    visits: dict[Client, Visit] = {}

    def watched_add(registry: Registry, client: Client) -> None:
        visit = _visit.get()
        if visit is not None and not visit.killed:
            visit.server_number = client.number
            visits[client] = visit
        add(registry, client)

    with mock.patch.object(Registry, "add", watched_add):
        yield visits


@contextlib.contextmanager
def log_on_full_disk() -> Iterator[None]:
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(fd)
    writer.start()
    try:
        with log_to(writer):
            yield
    finally:
        writer.close()
        os.close(fd)


@contextlib.contextmanager
def direct_writes(kernel: Kernel) -> Iterator[None]:
    """Let send queues write directly to simulated connections, as to sockets."""
    with (
        mock.patch("multichat.net.send_queue.eager_fileno", kernel.eager_fileno),
        mock.patch("multichat.net.send_queue.write", kernel.write),
    ):
        yield


class StandstillGuard(trio.abc.Instrument):
    """Cancels *scope* when tasks run endlessly while the clock stands still."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._seconds = 0.0
        self._steps = 0

    def before_io_wait(self, timeout: float) -> None:
        now = trio.current_time()
        self._steps = self._steps + 1 if now == self._seconds else 0
        self._seconds = now
        if self._steps > _MOST_STEPS_AT_ONCE:
            self._scope.cancel(reason="the clock stands still")


class VirtualHasher(Hasher):
    """Hashes at once, and takes up to *seconds* of the virtual time for it."""

    def __init__(self, limits: AccountLimits, seconds: float, rng: Random) -> None:
        super().__init__(limits)
        self._seconds, self._rng = seconds, rng

    async def run(self, work: Callable[[], T]) -> T:
        """Return what *work* returns, after a while, also if it is cancelled meanwhile."""
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            await trio.sleep(self._rng.uniform(0, self._seconds))
        return work()
