"""Reads the clock and formats times; each millisecond is formatted only once."""

import time
from collections.abc import Callable

__all__ = ["TimeFormatter", "read_clocks", "utc_now"]


class TimeFormatter:
    """Formats seconds since 1970 with milliseconds, in the time zone of *convert*.

    *form* is a format of `time.strftime`, down to the second; *end* follows the milliseconds.
    For one task or thread at a time.
    """

    __slots__ = ("_convert", "_end", "_form", "_formatted", "_millisecond", "_second", "_start")

    def __init__(
        self, convert: Callable[[float], time.struct_time], form: str, end: str = ""
    ) -> None:
        self._convert, self._form, self._end = convert, form, end
        self._second: int | None = None
        self._millisecond: int | None = None
        self._start = self._formatted = ""

    def format(self, seconds: float) -> str:
        """Format *seconds*, truncated to the millisecond."""
        millisecond = int(seconds * 1000 // 1)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, fraction = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._start = time.strftime(self._form, self._convert(second))
            self._formatted = f"{self._start}.{fraction:03}{self._end}"
        return self._formatted


_utc = TimeFormatter(time.gmtime, "%Y-%m-%dT%H:%M:%S", "Z")


def utc_now() -> str:
    """Return the time in the form of the wire: RFC 3339, in UTC, with milliseconds."""
    return _utc.format(time.time())


def read_clocks() -> tuple[float, float]:
    """Return the wall clock and a clock that cannot be set, both in seconds."""
    # This clock of Linux also runs while the machine is suspended.
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.time(), time.clock_gettime(clock)
