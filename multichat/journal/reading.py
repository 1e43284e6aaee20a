"""Reads a SQLite journal without its server, or beside it.

A page at a time: no more of it is in memory, and a server that writes to the file meanwhile can
have it cleaned up in between.  What is read ends with what was there at the beginning.
"""

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from multichat.errors import JournalFailed, UnknownId
from multichat.ids import message_number
from multichat.journal import part_of
from multichat.journal.sqlite_file import (
    MAX_NUMBER,
    SQLITE_ERRORS,
    is_damage,
    open_for_reading,
    reason_of,
    typed,
)
from multichat.journal.sqlite_reading import RUN_COLUMNS, said_run
from multichat.messages import SaidRun
from multichat.names import fold_name

__all__ = ["Reader", "open_reader"]

# A page: what one transaction reads.
_PAGE_RUNS = 500
_PAGE_BYTES = 1024 * 1024

_FAR = 1 << 62


@contextmanager
def open_reader(path: Path) -> Iterator["Reader"]:
    """Open the journal at *path* to read it; raises `JournalFailed`, in the block as well."""
    with closing(open_for_reading(path)) as connection:
        try:
            yield Reader(path, connection)
        except SQLITE_ERRORS as error:
            raise JournalFailed(path, reason_of(error)) from error


@dataclass(frozen=True, slots=True)
class _Order:
    """The runs *where* they are, in the order of the column *key*, which is theirs alone."""

    key: str
    where: str
    parameters: tuple[object, ...]

    def sql(self, columns: str, condition: str, end: str = "") -> str:
        return f"SELECT {columns} FROM runs WHERE {self.where} AND {condition} {end}"  # noqa: S608 - our own words


class Reader:
    """A journal that is open to be read; of one thread.  Made by `open_reader`.

    *damaged* is how many runs could not be read so far, and were left out.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.damaged = 0
        self._path = path
        self._connection = connection

    def has_several_rooms(self) -> bool:
        """Whether something was said in more than one room."""
        found = self._connection.execute("SELECT 1 FROM rooms LIMIT 2").fetchall()
        return len(found) > 1

    def read(
        self, *, room: str | None = None, since: float | str | None = None, limit: int | None = None
    ) -> Iterator[SaidRun]:
        """Yield what was said, in the order in which it was kept.

        In *room* alone, or in all of them.  *since* is a time, in seconds since 1970, or the id of
        a message, which says the room, too: what was said after it.  At most *limit* messages: the
        first since then, or without *since* the last that there are.  If the clock was set back,
        what follows the first message since that time is all read.

        Raises `JournalFailed` if there is no such room, `UnknownId` for an id of another one.
        """
        if isinstance(since, str):
            room_id, start = self._locate(since, room)
            order = self._order(room_id)
            sql = order.sql("max(first)", "first <= ?")
            run = self._one(sql, (*order.parameters, start))
            return self._pages(order, start if run is None else run, start, limit)
        order = self._order(None if room is None else self._find(room))
        if since is not None:
            return self._pages(order, self._first_since(order, since), 0, limit)
        return self._last(order, limit)

    def _find(self, room: str) -> int:
        row = self._connection.execute(
            "SELECT id FROM rooms WHERE name = ?", (fold_name(room),)
        ).fetchone()
        if row is None:
            raise JournalFailed(self._path, f"nothing was said in a room {room}")
        [id_] = typed(row, int)
        return int(id_)

    def _one(self, sql: str, parameters: tuple[object, ...] = ()) -> int | None:
        """Return the number that is asked for, None if there is none; raises `DamagedRow`."""
        row = self._connection.execute(sql, parameters).fetchone()
        if row == (None,):
            return None
        [number] = typed(row, int)
        return int(number)

    def _locate(self, id_: str, room: str | None) -> tuple[int, int]:
        """Return the room of the message with that id, and the number of the next one."""
        epoch = id_.partition("-")[0]
        row = self._connection.execute(
            "SELECT id, next FROM rooms WHERE epoch = :epoch "
            "UNION ALL SELECT room, next FROM epochs WHERE epoch = :epoch",
            {"epoch": epoch},
        ).fetchone()
        number = message_number(epoch, id_)
        if row is None or number is None:
            raise UnknownId
        its_room, next_number = typed(row, int, int)
        if number >= next_number or (room is not None and its_room != self._find(room)):
            raise UnknownId
        return its_room, number + 1

    def _order(self, room: int | None) -> _Order:
        if room is None:
            return _Order("seq", "1", ())
        return _Order("first", "room = ?", (room,))

    def _last(self, order: _Order, limit: int | None) -> Iterator[SaidRun]:
        if limit is None:
            return self._pages(order, 0, 0, None)
        start, total = _FAR, 0
        key = order.key
        sql = order.sql(f"{key}, messages", f"{key} BETWEEN 0 AND ?", f"ORDER BY {key} DESC")
        with closing(self._connection.execute(sql, (*order.parameters, MAX_NUMBER))) as rows:
            for start, messages in rows:  # noqa: B007 - used behind the loop
                total += messages if type(messages) is int else 0  # what is damaged is left out
                if total >= limit:
                    break
        return self._pages(order, start, 0, limit, skipped=max(0, total - limit))

    def _first_since(self, order: _Order, since: float) -> int:
        """Return the key of the first run that was said at *since* or later, by halving."""
        moment = datetime.fromtimestamp(since, UTC)
        spelled = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
        key, execute = order.key, self._connection.execute
        # What is damaged is not looked at: its time may be anything.
        sql = order.sql(
            f"{key}, time", f"{key} >= ? AND time GLOB '[0-9]*'", f"ORDER BY {key} LIMIT 1"
        )
        # Each of the two is at an end of an index; asked for together, all between them is read.
        low = self._one(order.sql(f"min({key})", f"{key} >= 0"), order.parameters)
        high = self._one(order.sql(f"max({key})", f"{key} <= {MAX_NUMBER}"), order.parameters)
        if low is None or high is None:
            return 0
        high += 1  # from there on all is since then; before low nothing is
        while low < high:
            middle = (low + high) // 2
            found = execute(sql, (*order.parameters, middle)).fetchone()
            if found is None or type(found[1]) is not str or found[1] >= spelled:
                high = middle
            else:
                low = found[0] + 1
        return int(low)

    def _pages(
        self, order: _Order, key: int, start: int, limit: int | None, *, skipped: int = 0
    ) -> Iterator[SaidRun]:
        """Yield what was said from *key* on, and of it what is numbered *start* or more.

        Of the first run so many messages are *skipped*.
        """
        left = _FAR if limit is None else limit
        last = self._one("SELECT max(seq) FROM runs WHERE seq <= ?", (MAX_NUMBER,)) or 0
        sql = order.sql(f"max({order.key})", f"{order.key} BETWEEN 0 AND ? AND seq <= ?")
        end = self._one(sql, (*order.parameters, MAX_NUMBER, last))
        sql = order.sql("count(*)", f"({order.key} < 0 OR {order.key} > ?)")
        self.damaged += self._one(sql, (*order.parameters, MAX_NUMBER)) or 0
        while left > 0 and end is not None and key <= end:
            page, key = self._page(order, key, end, last)
            for said in page:
                part = part_of(said, max(start, said.first + skipped), _FAR)
                skipped = 0
                if part is not None and (part := part_of(part, 0, part.first + left)) is not None:
                    left -= part.run.count("\n") + 1
                    yield part

    def _page(self, order: _Order, key: int, end: int, last: int) -> tuple[list[SaidRun], int]:
        """Return the runs with keys from *key* on, and the key with which the next page begins.

        Damaged ones are left out and counted.
        """
        page: list[SaidRun] = []
        size = 0
        try:
            for its_key, said in self._runs(order, f"BETWEEN ? AND {end}", key, last):
                page.append(said)
                key = its_key + 1
                size += len(said.run)
                if size > _PAGE_BYTES:
                    return page, key
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
        else:
            return page, key if len(page) == _PAGE_RUNS else end + 1
        stop = min(key + _PAGE_RUNS, end + 1)
        for each in range(key, stop):
            try:
                page += [said for _, said in self._runs(order, "= ?", each, last)]
            except SQLITE_ERRORS as error:
                if not is_damage(error):
                    raise
                self.damaged += 1
        return page, stop

    def _runs(
        self, order: _Order, which: str, key: int, last: int
    ) -> Generator[tuple[int, SaidRun], None, None]:
        sql = order.sql(
            f"{order.key}, {RUN_COLUMNS}",
            f"{order.key} {which} AND seq <= ?",
            f"ORDER BY {order.key} LIMIT {_PAGE_RUNS}",
        )
        with closing(self._connection.execute(sql, (*order.parameters, key, last))) as rows:
            for row in rows:
                [its_key] = typed(row[:1], int)
                yield its_key, said_run(row[1:])
