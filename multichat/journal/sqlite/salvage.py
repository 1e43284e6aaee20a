"""Reads around damaged pages of a SQLite journal.

SQLite raises an error when a query meets a damaged page, and cannot continue after it.  A query
that starts after the page works; that key is found by trying the next keys, first one by one, then
in doubling steps.
"""

import math
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeAlias

from multichat.journal.sqlite.file import MAX_NUMBER, SQLITE_ERRORS, is_damage

__all__ = [
    "BLOCKS_OF_ROOM",
    "Row",
    "behind",
    "first_readable",
    "is_readable",
    "rows_around_damage",
    "table_rows",
]

Row: TypeAlias = tuple[Any, ...]

# The blocks of rooms, found by the index, whose columns are `entry`.  A wrong index entry, which
# leads to a block of another room or number, is left out.
BLOCKS_OF_ROOM = """
    runs AS entry CROSS JOIN runs
    ON runs.seq = entry.seq AND +runs.room = entry.room AND +runs.first = entry.first
"""

# How many keys are tried one by one, which takes some milliseconds; larger steps can skip readable
# rows between damaged ones.
_ONE_BY_ONE = 500


def is_readable(read: Callable[[], object]) -> bool:
    """Return whether *read* succeeds without damage; raises other errors of SQLite."""
    try:
        read()
    except SQLITE_ERRORS as error:
        if not is_damage(error):
            raise
        return False
    return True


def behind(key: object) -> int | None:
    """Return the lowest integer above *key*, which may be damaged; None if there is none.

    SQLite orders other types after all numbers.
    """
    if isinstance(key, int | float) and key < MAX_NUMBER:
        return math.floor(key) + 1
    return None


def first_readable(damaged: int, can_read_from: Callable[[int], bool]) -> int | None:
    """Return the lowest key above *damaged* from which rows can be read; None if there is none.

    *can_read_from* reads the first row that has that key or a higher one.
    """
    low, high, width = damaged, damaged + 1, 1
    while not can_read_from(high):
        if high == MAX_NUMBER:
            return None
        if high - damaged >= _ONE_BY_ONE:
            width *= 2
        low, high = high, min(high + width, MAX_NUMBER)
    while high - low > 1:
        middle = (low + high) // 2
        if can_read_from(middle):
            high = middle
        else:
            low = middle
    return high


def rows_around_damage(
    select: Callable[[int, int], sqlite3.Cursor],
    key_of: Callable[[Row], object],
    start: int,
    unreadable: list[range] | None = None,
) -> Generator[Row, None, None]:
    """Yield rows in the order of their keys, from *start* on, without unreadable ones.

    *select* returns rows from a key on, with a limit that is negative for none; *key_of* returns
    the key of a row.  The possible keys of skipped rows are appended to *unreadable*.  If keys are
    not unique, rows after an unreadable one with the same key are skipped, too.
    """

    def can_read_from(position: int) -> bool:
        return is_readable(lambda: select(position, 1).fetchone())

    position: int | None = start
    limit = -1
    while position is not None:
        row: Row | None = None
        try:
            with closing(select(position, limit)) as cursor:
                for row in cursor:
                    # It rises with each row, whatever the row's key is, so no row is read twice.
                    position = behind(key_of(row))
                    yield row
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
            # Python reads one row ahead, and raises before it returns the last readable row.
            if limit == 1 and position is not None:
                begin, position = position, first_readable(position, can_read_from)
                if unreadable is not None:
                    unreadable.append(range(begin, MAX_NUMBER if position is None else position))
            limit = -1 if limit == 1 else 1
        else:
            if limit == -1 or row is None:
                return
            limit = -1


def table_rows(
    connection: sqlite3.Connection,
    table: str,
    key: str,
    columns: str,
    unreadable: list[range] | None = None,
) -> Generator[Row, None, None]:
    """Yield the rows of *table* in the order of *key*, its primary key, without unreadable ones.

    *key* is the first of the *columns*.  For *unreadable* see `rows_around_damage`.
    """
    sql = f"SELECT {columns} FROM {table} WHERE {key} >= ? ORDER BY {key} LIMIT ?"  # noqa: S608 - our own words
    return rows_around_damage(
        lambda *which: connection.execute(sql, which), lambda row: row[0], -(2**63), unreadable
    )
