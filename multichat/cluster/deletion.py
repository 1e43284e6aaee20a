"""Deletes messages above the retention limits from the engine, and logs what was deleted.

Every node does this, in small steps: it does not matter which of them comes first, so no node has
to be elected.  The engine's clock counts, once it has been steady for long enough.
"""

import math
from dataclasses import dataclass

import trio

from multichat.cluster.calls import trim
from multichat.cluster.room_logs import RoomLogs
from multichat.errors import NotRead
from multichat.journal.retention import Deleted, Retention, SteadyClock, SteadyTime, format_seconds
from multichat.log import Log

__all__ = ["Deletion", "DeletionConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeletionConfig:
    """Settings of the deletion; see `multichat.journal.sqlite.limits`."""

    # The interval between steps; a hundredth of it while there is more to delete.
    step_seconds: float = 5.0

    # The maximum of blocks in a step: these keep the engine busy for about 2 ms.
    step_blocks: int = 500

    # How long the engine's clock must have been steady before messages are deleted by age.
    steady_seconds: float = 6 * 3600.0

    # The minimum time between two lines in the log.
    tell_seconds: float = 60.0


class Deletion:
    """Deletes messages above *retention* from the engine of *logs*; `run` it beside them."""

    def __init__(
        self, logs: RoomLogs, retention: Retention, log: Log, config: DeletionConfig | None = None
    ) -> None:
        self._logs, self._retention, self._log = logs, retention, log
        self._config = config or DeletionConfig()
        self._clock = SteadyClock(
            min(self._config.steady_seconds, retention.max_age_seconds or math.inf)
        )
        self._now = SteadyTime(wall=0, wait=math.inf, run=0)
        self._cursor = "0"
        self._numbers: dict[str, int] = {}  # of rooms in `_deleted`
        self._deleted = Deleted()  # not logged yet
        self._told_at = -math.inf
        self._is_wait_told = False
        limits = retention.max_age_seconds, retention.max_messages, retention.max_bytes
        self._reasons = [
            f"older than {format_seconds(retention.max_age_seconds or 0)}",
            f"above {retention.max_messages} a room",
            f"above {(retention.max_bytes or 0) / 2**20:g} MiB",
        ]
        self._has_limits = limits != (None, None, None)

    async def run(self) -> None:
        """Delete until cancelled; returns at once without limits."""
        while self._has_limits:
            try:
                more = await self._step()
            except NotRead:
                more = False  # a message sent now is answered with the reason
            self.tell(at_once=False)
            await trio.sleep(self._config.step_seconds / (100 if more else 1))

    async def _step(self) -> bool:
        """Delete some messages; return whether there is more to delete."""
        retention, is_trusted = self._retention, self._now.wait <= 0
        result = await self._logs.call(
            trim(
                self._cursor,
                max_age_seconds=retention.max_age_seconds if is_trusted else None,
                max_messages=retention.max_messages,
                max_bytes=retention.max_bytes,
                max_blocks=self._config.step_blocks,
            )
        )
        self._now = self._clock.observe(result.ms / 1000, trio.current_time())
        self._cursor = result.cursor
        for reason, (count, rooms) in zip(self._reasons, result.counts, strict=True):
            if count:
                numbers = [self._numbers.setdefault(room, len(self._numbers)) for room in rooms]
                self._deleted.add(reason, count, numbers)
        return result.more

    def tell(self, *, at_once: bool = True) -> None:
        """Log what was deleted since the last such line, unless that is recent."""
        now = trio.current_time()
        if self._retention.max_age_seconds is not None and not self._is_wait_told:
            self._is_wait_told = True
            if 0 < self._now.wait < math.inf:
                wait = format_seconds(self._now.wait)
                text = f"Messages {self._reasons[0]} are deleted in {wait}"
                self._log.line("STATE", f"{text}, if the engine's clock is not set meanwhile")
        if self._deleted and (at_once or now - self._told_at >= self._config.tell_seconds):
            self._told_at = now
            self._log.line("STATE", f"Deleted from the engine: {self._deleted}")
            self._deleted = Deleted()
            self._numbers.clear()
