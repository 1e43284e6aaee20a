"""Times as people and programs read them, each spelled once however often it is asked for."""

import time
from collections.abc import Callable

__all__ = ["TimeFormatter", "read_clocks", "utc_now"]


class TimeFormatter:
    """Spells seconds since 1970 with milliseconds, in the zone of *convert*.

    *form* is for `time.strftime` and covers the second; *end* stands behind the milliseconds.
    One task or thread at a time.
    """

    __slots__ = ("_convert", "_end", "_form", "_millisecond", "_second", "_spelled", "_start")

    def __init__(
        self, convert: Callable[[float], time.struct_time], form: str, end: str = ""
    ) -> None:
        self._convert, self._form, self._end = convert, form, end
        self._second: int | None = None
        self._millisecond: int | None = None
        self._start = self._spelled = ""

    def encode(self, seconds: float) -> str:
        """Spell *seconds*, cut to the millisecond."""
        millisecond = int(seconds * 1000 // 1)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, fraction = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._start = time.strftime(self._form, self._convert(second))
            self._spelled = f"{self._start}.{fraction:03}{self._end}"
        return self._spelled


_utc = TimeFormatter(time.gmtime, "%Y-%m-%dT%H:%M:%S", "Z")


def utc_now() -> str:
    """Spell the time as it stands on the wire: RFC 3339, in UTC, with milliseconds."""
    return _utc.encode(time.time())


def read_clocks() -> tuple[float, float]:
    """Return the wall clock, and one that nobody sets, both in seconds."""
    # Linux has one that also runs while the machine is suspended.
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.time(), time.clock_gettime(clock)
