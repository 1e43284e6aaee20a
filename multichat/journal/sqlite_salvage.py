"""Reading around damaged pages of a SQLite journal.

SQLite raises an error where a query meets a damaged page, and cannot go on behind it.  A query that
starts behind the page works: where that is, is found with a number of queries that is logarithmic
in the number of rows on the page.
"""

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from multichat.journal.sqlite_file import SQLITE_ERRORS, is_damage

__all__ = ["first_readable", "is_readable", "rows_around_damage"]

# No key is larger: see `sqlite_file.typed`.
_MAX_KEY = 2**53


def is_readable(read: Callable[[], object]) -> bool:
    """Return whether *read* meets no damage; raises other errors of SQLite."""
    try:
        read()
    except SQLITE_ERRORS as error:
        if not is_damage(error):
            raise
        return False
    return True


def first_readable(damaged: int, can_read_from: Callable[[int], bool]) -> int | None:
    """Return the lowest key above *damaged* from which on rows can be read; None if there is none.

    *can_read_from* reads the first row that has that key or a higher one.
    """
    low, high, width = damaged, damaged + 1, 1
    while not can_read_from(high):
        if high == _MAX_KEY:
            return None
        width *= 2
        low, high = high, min(high + width, _MAX_KEY)
    while high - low > 1:
        middle = (low + high) // 2
        if can_read_from(middle):
            high = middle
        else:
            low = middle
    return high


def rows_around_damage(
    connection: sqlite3.Connection, table: str, key: str, columns: str
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of *table* in the order of *key*, its primary key, without unreadable ones.

    *key* is the first of the *columns*; where it is not unique, rows that follow an unreadable one
    and have the same key are left out, too.
    """
    sql = f"SELECT {columns} FROM {table} WHERE {key} >= ? ORDER BY {key}"  # noqa: S608 - our own words

    def can_read_from(position: int) -> bool:
        return is_readable(lambda: connection.execute(f"{sql} LIMIT 1", (position,)).fetchone())

    position: int | None = -(2**63)
    limit = -1  # none
    while position is not None:
        row: tuple[Any, ...] | None = None
        try:
            for row in connection.execute(f"{sql} LIMIT {limit}", (position,)):
                if type(row[0]) is int:
                    position = row[0] + 1
                yield row
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
            # Python reads one row ahead, and raises before it returns the last readable one.
            if limit == 1:
                position = first_readable(position, can_read_from)
            limit = -1 if limit == 1 else 1
        else:
            if limit == -1 or row is None:
                return
            limit = -1
