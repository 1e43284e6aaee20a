"""Formats the answers to the operator's commands as tables and lines for people.  Pure.

For the console and for `multichat ctl`.  The results that `ctl` gets have been through JSON, and
may be from a server of another version: fields may be missing, and unknown ones are ignored.  Does
not clean the text; its callers do.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, takewhile
from math import isfinite
from typing import Any

import msgspec

from multichat.net.durations import BOUNDS, Durations
from multichat.server.bans import host_of
from multichat.terminal.columns import columns_of

__all__ = ["format_answer"]

_GAP = "  "
_LEAST_COLUMN = 8

# Code points for each column; no language needs more on average in a long text.
_MARKS = 8


class _Client(msgspec.Struct):
    """What is shown of a client; see `multichat.server.client.MemberInfo`."""

    client: int
    name: str
    rooms: tuple[str, ...] = ()
    address: str = ""
    waiting_bytes: int = 0
    behind: int = 0

    def row(self) -> tuple[str, ...]:
        host = host_of(self.address) or self.address or "-"
        waiting = f"{self.behind:,} behind" if self.behind else _format_bytes(self.waiting_bytes)
        return str(self.client), self.name, ", ".join(self.rooms), host, waiting


class _Room(msgspec.Struct):
    """What is shown of a room; see `multichat.server.admin_commands.RoomInfo`."""

    room: str
    clients: int

    def row(self) -> tuple[str, ...]:
        return self.room, str(self.clients)


_TABLES: dict[str, tuple[tuple[str, ...], type[_Client | _Room]]] = {
    "/who": (("#", "name", "rooms", "address", "waiting"), _Client),
    "/rooms": (("room", "clients"), _Room),
}


def format_answer(
    command: str, lines: Sequence[str], result: Any, *, columns: int | None
) -> list[str]:
    """Return the answer to *command*, a name in `ADMIN_COMMANDS`, as lines.

    *result* is an object, or its decoded JSON.  Tables fit into *columns*, unless all of their own
    columns are narrower than eight, and lines of statistics are broken to fit; None: no limit.
    Raises `msgspec.ValidationError` for a result that is not one of *command*.
    """
    if command in _TABLES and result:
        heading, kind = _TABLES[command]
        items = msgspec.convert(result, list[Any])
        rows = [msgspec.convert(each, kind, from_attributes=True) for each in items]
        return _table([heading, *(row.row() for row in rows)], columns)
    if command == "/stats":
        return msgspec.convert(result, _Statistics, from_attributes=True).lines(columns)
    return list(lines)


def _format_bytes(count: int) -> str:
    for unit, size in (("MiB", 1024 * 1024), ("KiB", 1024)):
        if count >= size:
            return f"{count // size} {unit}"
    return f"{count} B"


class _Statistics(msgspec.Struct):
    """What is shown of `multichat.server.statistics.ServerStatistics`; see there."""

    clients: int = 0
    rooms: int = 0
    clients_ever: int = 0
    refused: int = 0
    messages: int = 0
    deliveries: int = 0
    skipped: int = 0
    waiting_bytes: int = 0
    missed: int = 0
    lagging: int = 0
    messages_per_second: float = 0.0
    deliveries_per_second: float = 0.0
    disconnects: dict[str, int] = {}
    refusals: dict[str, int] = {}
    loop_lag: Durations = Durations()
    longest_loop_lag: float = 0.0
    turn_waits: Durations = Durations()
    journal_writes: Durations | None = None
    engine_round_trips: Durations | None = None

    def lines(self, columns: int | None) -> list[str]:
        """Return it as lines, each with what it is about."""
        lag = f"{_format_seconds(self.longest_loop_lag)} at most in the last 10 s"
        shown = [
            ("clients", f"{self.clients:,} now, {self.clients_ever:,} ever"),
            ("rooms", f"{self.rooms:,}"),
            ("messages", f"{_format_rate(self.messages_per_second)}, {self.messages:,} ever"),
            ("deliveries", f"{_format_rate(self.deliveries_per_second)}, {self.deliveries:,} ever"),
            ("send queues", f"{_format_bytes(self.waiting_bytes)} waiting"),
            ("lagging", _count(self.lagging, "client")),
            ("missed", _count(self.missed + self.skipped, "message")),
            ("loop lag", f"{lag}, mean {_format_seconds(self.loop_lag.mean_seconds)}"),
            ("turn waits", _format_durations(self.turn_waits)),
        ]
        for name, durations in (
            ("journal", self.journal_writes),
            ("engine", self.engine_round_trips),
        ):
            if durations is not None:
                shown.append((name, _format_durations(durations)))
        left = ", ".join(_nonzero(self.disconnects))
        shown.append(("left", f"{sum(self.disconnects.values()):,}{left and f': {left}'}"))
        rejected = ", ".join(_nonzero(self.refusals))
        shown.append(("refused", f"{self.refused:,}{rejected and f': {rejected}'}"))
        width = max(len(name) for name, _ in shown)
        lines: list[str] = []
        for name, text in shown:
            lines += _wrapped(f"{name:{width}}{_GAP}", text, columns)
        return lines


def _nonzero(counts: Mapping[str, int]) -> list[str]:
    return [f"{name} {count:,}" for name, count in counts.items() if count]


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 or not rate else f"{rate:.1f}/s"


def _format_seconds(seconds: float) -> str:
    if seconds >= 1 or not seconds:
        return f"{seconds:.3g} s"
    return f"{seconds * 1000:.3g} ms"


def _format_durations(durations: Durations) -> str:
    if not durations.count:
        return "none yet"
    most = durations.at_most(0.99)
    within = f"in {_format_seconds(most)}" if isfinite(most) else f"in more than {BOUNDS[-1]:g} s"
    return f"{durations.count:,}, mean {_format_seconds(durations.mean_seconds)}, 99 % {within}"


def _wrapped(begin: str, text: str, columns: int | None) -> list[str]:
    """Return *text* after *begin*, broken at its commas so that it fits into *columns*."""
    if columns is None:
        return [begin + text]
    lines, line = [], begin
    for part in re.split("(?<=,) ", text):
        if len(line) + len(part) > columns and line[len(begin) :]:
            lines.append(line.rstrip())
            line = " " * len(begin)
        line += f"{part} "
    return [*lines, line.rstrip()]


def _table(rows: Sequence[tuple[str, ...]], columns: int | None) -> list[str]:
    """Format *rows* as a table, with numbers right-aligned and the widest columns truncated."""
    if columns is not None:  # the rest of a longer text is never shown
        rows = [tuple(_beginning(text, columns + 1) for text in row) for row in rows]
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    while columns is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > columns:
        widest = max(widths)
        if widest <= _LEAST_COLUMN:
            break
        widths[widths.index(widest)] -= 1
    lines: list[str] = []
    for row in rows:
        cells = [_fit(text, width) for text, width in zip(row, widths, strict=True)]
        for right in (0, -1) if len(cells) > 2 else (-1,):
            cells[right] = cells[right].rstrip().rjust(widths[right])
        lines.append(_GAP.join(cells))
    return lines


def _fit(text: str, width: int) -> str:
    if columns_of(text) > width:
        text = _cut(text, width - 1) + "…"
    return text + " " * (width - columns_of(text))


def _beginning(text: str, columns: int) -> str:
    shown = _cut(text, columns)
    return text if len(shown) == len(text) else shown + "…"


def _cut(text: str, columns: int) -> str:
    """Return the longest beginning of *text* that fits into *columns*.

    Looks only at the beginning of *text*, with a limited number of marks for each column, because
    clients choose the names in a table.
    """
    text = text[: columns * _MARKS]
    widths = accumulate(map(columns_of, text))
    return text[: sum(1 for _ in takewhile(lambda width: width <= columns, widths))]
