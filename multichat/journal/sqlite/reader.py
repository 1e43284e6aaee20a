"""Reads a SQLite journal, with or without a running server.

Reads one page at a time, so that memory is bounded and a running server can make checkpoints in
between.  Reading ends at the last message that existed at the beginning.
"""

import math
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from multichat.errors import JournalFailed, UnknownId
from multichat.journal.base import slice_block
from multichat.journal.sqlite.file import (
    MAX_NUMBER,
    SQLITE_ERRORS,
    DamagedRow,
    describe_error,
    is_damage,
    open_for_reading,
    typed,
)
from multichat.journal.sqlite.reading import BLOCK_COLUMNS, first_of, said_block
from multichat.journal.sqlite.salvage import (
    BLOCKS_OF_ROOM,
    Row,
    behind,
    rows_around_damage,
    table_rows,
)
from multichat.protocol.ids import message_number
from multichat.protocol.messages import SaidBlock
from multichat.protocol.names import fold_name

__all__ = ["Reader", "open_reader"]

# The page that one transaction reads.
_PAGE_BLOCKS = 500
_PAGE_BYTES = 1024 * 1024

_FAR = 1 << 62


@contextmanager
def open_reader(path: Path) -> Iterator["Reader"]:
    """Open the journal at *path* for reading; raises `JournalFailed`, also from the block."""
    opened = open_for_reading(path)
    with closing(opened.connection) as connection:
        try:
            yield Reader(path, connection, damaged=1 if opened.wal_damage else 0)
        except SQLITE_ERRORS as error:
            raise JournalFailed(path, describe_error(error)) from error


@dataclass(frozen=True, slots=True)
class _Order:
    """The blocks of *source* that match *where*, in the order of the unique column *key*."""

    key: str
    source: str
    where: str
    parameters: tuple[object, ...]

    def sql(self, columns: str, condition: str, end: str = "") -> str:
        return f"SELECT {columns} FROM {self.source} WHERE {self.where} AND {condition} {end}"  # noqa: S608 - our own words


class _Numbers:
    """Counts the gaps in what is read of *room*, or of all rooms, by the rows of `rooms`.

    *expected* is the next number of each room; *gaps* counts the places where a later one came.
    """

    def __init__(self, connection: sqlite3.Connection, room: int | None) -> None:
        self.expected: dict[int, int] = {}
        self.gaps = 0
        self._connection = connection
        self._ends: dict[int, int] = {}
        for row in table_rows(connection, "rooms", "id", "id, first, next"):
            with suppress(DamagedRow):
                id_, first, end = typed(row, int, int, int)
                if room in (None, id_):
                    self.expected[id_], self._ends[id_] = first, end

    def note(self, room: int, begin: int, end: int) -> None:
        """Record that the messages from *begin* up to *end* were read."""
        expected = self.expected.get(room, begin)
        # Messages that a server has deleted meanwhile are not a gap.
        if expected < begin and first_of(self._connection, room) < begin:
            self.gaps += 1
        self.expected[room] = max(expected, end)

    def note_end(self) -> None:
        """Record that everything was read."""
        for room, end in self._ends.items():
            if room in self.expected:
                self.note(room, end, end)


class Reader:
    """A journal opened for reading, for one thread; created by `open_reader`.

    *damaged* is, after everything was read, how many blocks could not be read and were skipped:
    approximate if pages are damaged; a gap in the index counts as one, and so does a WAL whose
    end cannot be read.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, damaged: int = 0) -> None:
        self.damaged = damaged
        self._path = path
        self._connection = connection

    def has_several_rooms(self) -> bool:
        """Whether more than one room has messages."""
        rows = table_rows(self._connection, "rooms", "id", "id")
        return len(list(islice(rows, 2))) > 1

    def read(
        self, *, room: str | None = None, since: float | str | None = None, limit: int | None = None
    ) -> Iterator[SaidBlock]:
        """Yield messages in the order in which they were stored.

        Of *room*, or of all rooms.  *since* is a time, in seconds since 1970, or the id of a
        message, which implies its room: only later messages are read.  At most *limit* messages are
        read: the first ones after *since* or, without *since*, the last ones.  If the clock was set
        back, everything after the first message since that time is read.

        Raises `JournalFailed` if there is no such room, `UnknownId` for an id of another room.
        """
        if isinstance(since, str):
            room_id, start = self._locate(since, room)
            order = self._order(room_id)
            block = self._last_key(order, start)  # the message may be within it
            numbers = _Numbers(self._connection, room_id)
            numbers.expected[room_id] = start
            return self._pages(order, start if block is None else block, start, limit, numbers)
        found = None if room is None else self._find(room)
        order, numbers = self._order(found), _Numbers(self._connection, found)
        if since is None:
            return self._last(order, limit, numbers)
        key = self._first_since(order, since)
        if key:
            numbers.expected.clear()
        if found is not None and (end := self._end_before(order, key)) is not None:
            numbers.expected[found] = end
        return self._pages(order, key, 0, limit, numbers)

    def _find(self, room: str) -> int:
        folded = fold_name(room)
        for id_, name in table_rows(self._connection, "rooms", "id", "id, name"):
            if name == folded:
                return int(id_)
        raise JournalFailed(self._path, f"it has no room {room}")

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
            return _Order("seq", "runs", "1", ())
        return _Order("entry.first", BLOCKS_OF_ROOM, "entry.room = ?", (room,))

    def _last(self, order: _Order, limit: int | None, numbers: _Numbers) -> Iterator[SaidBlock]:
        if limit is None:
            return self._pages(order, 0, 0, None, numbers)
        start, total = _FAR, 0
        with closing(self._select(order, "runs.messages", 0, MAX_NUMBER, backwards=True)) as rows:
            for key, messages in rows:
                start = math.floor(key)
                total += messages if type(messages) is int else 0  # damaged blocks are skipped
                if total >= limit:
                    break
        if total >= limit:
            numbers.expected.clear()
        skipped = max(0, total - limit)
        return self._pages(order, start, 0, limit, numbers, skipped=skipped, to_end=True)

    def _select(
        self,
        order: _Order,
        columns: str,
        low: int,
        high: int,
        unreadable: list[range] | None = None,
        *,
        backwards: bool = False,
    ) -> Generator[Row, None, None]:
        """Yield the key and *columns* of the blocks with keys from *low* to *high*.

        For *unreadable* see `rows_around_damage`.
        """
        key, execute = order.key, self._connection.execute
        direction = "DESC" if backwards else "ASC"
        sql = order.sql(
            f"{key}, {columns}", f"{key} BETWEEN ? AND ?", f"ORDER BY {key} {direction} LIMIT ?"
        )

        def select(position: int, limit: int) -> sqlite3.Cursor:
            bounds = (low, -position) if backwards else (position, high)
            return execute(sql, (*order.parameters, *bounds, limit))

        def key_of(row: Row) -> object:
            return -row[0] if backwards and isinstance(row[0], int | float) else row[0]

        return rows_around_damage(select, key_of, -high if backwards else low, unreadable)

    def _last_key(
        self, order: _Order, high: int = MAX_NUMBER, unreadable: list[range] | None = None
    ) -> int | None:
        """Return the highest readable key up to *high*; None if there is none."""
        with closing(self._select(order, "1", 0, high, unreadable, backwards=True)) as rows:
            return next((int(key) for key, _ in rows), None)

    def _end_before(self, order: _Order, key: int) -> int | None:
        """Return the number at which the block before *key* ends; None if there is none."""
        with closing(self._select(order, "runs.messages", 0, key - 1, backwards=True)) as rows:
            row = next(rows, None)
        return None if row is None or type(row[1]) is not int else int(row[0]) + row[1]

    def _first_since(self, order: _Order, since: float) -> int:
        """Return the key of the first block at *since* or later, by bisection."""
        moment = datetime.fromtimestamp(since, UTC)
        formatted = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
        last = self._last_key(order)
        low, high = 0, 0 if last is None else last + 1  # all blocks from `high` on are later
        while low < high:
            middle = (low + high) // 2
            with closing(self._select(order, "runs.time", middle, high)) as rows:
                # Damaged blocks are skipped, because their time may be anything.
                times = (row for row in rows if type(row[1]) is str and row[1][:1].isdigit())
                key, time = next(times, (middle, formatted))
            if time >= formatted:
                high = middle
            else:
                low = behind(key) or high
        return int(low)

    def _pages(
        self,
        order: _Order,
        key: int,
        start: int,
        limit: int | None,
        numbers: _Numbers,
        *,
        skipped: int = 0,
        to_end: bool = False,
    ) -> Iterator[SaidBlock]:
        """Yield the blocks from *key* on, and of them the messages from number *start* on.

        *skipped* messages of the first block are left out.  *to_end*: the *limit* is not reached
        before the last message that existed when *numbers* was made.
        """
        left = _FAR if limit is None else limit
        unreadable: list[range] = []
        last = self._last_key(order, MAX_NUMBER, unreadable)
        self.damaged += bool(unreadable) + self._count_outside(order)
        while last is not None and left > 0 and key <= last:
            page, key = self._page(order, key, last)
            for room, said in page:
                numbers.note(room, said.first, said.first + said.text.count("\n") + 1)
                part = slice_block(said, max(start, said.first + skipped), _FAR)
                skipped = 0
                if (
                    part is not None
                    and (part := slice_block(part, 0, part.first + left)) is not None
                ):
                    left -= part.text.count("\n") + 1
                    yield part
        if to_end or left > 0:
            numbers.note_end()
        self.damaged = max(self.damaged, numbers.gaps)

    def _count_outside(self, order: _Order) -> int:
        """Return how many readable blocks have a key that no server has written."""
        sql = order.sql("count(*)", f"({order.key} < 0 OR {order.key} > ?)")
        try:
            [count] = self._connection.execute(sql, (*order.parameters, MAX_NUMBER)).fetchone()
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
            return 0
        return int(count)

    def _page(self, order: _Order, key: int, last: int) -> tuple[list[tuple[int, SaidBlock]], int]:
        """Return the blocks of one page from *key* on, and the first key of the next page.

        Damaged blocks are skipped and counted.
        """
        page: list[tuple[int, SaidBlock]] = []
        unreadable: list[range] = []
        size = 0
        columns = f"runs.room, {BLOCK_COLUMNS}"
        with closing(self._select(order, columns, key, last, unreadable)) as rows:
            for row in rows:
                try:
                    page.append((row[1], said_block(row[2:])))
                except DamagedRow:
                    self.damaged += 1
                else:
                    size += len(page[-1][1].text)
                if size > _PAGE_BYTES or len(page) == _PAGE_BLOCKS:
                    key = behind(row[0]) or last + 1
                    break
            else:
                key = last + 1
        for keys in unreadable:
            self.damaged += len(range(keys.start, min(keys.stop, last + 1)))
        return page, key
