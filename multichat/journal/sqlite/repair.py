"""Repairs a damaged SQLite journal: rebuilds the heads and the list of rooms from the messages.

Handles damaged rows of these two tables, and damaged pages that are read at the start.  Only the
epoch of a room is in no other table: if it is lost, the room gets a new one, and former ids are
unknown.

`repair` reads more than a start, and is only for damaged files.  `are_heads`, `is_whole` and
`ROOMS` detect damage at each start.
"""

import re
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

from multichat.journal.base import MAX_STORED_EPOCH
from multichat.journal.sqlite.file import SQLITE_ERRORS, DamagedRow, is_damage, typed
from multichat.journal.sqlite.salvage import first_readable, is_readable, table_rows
from multichat.protocol.framing import clean
from multichat.protocol.names import MAX_DECOMPOSED, fold_name

__all__ = [
    "EPOCH",
    "MAX_COUNTER",
    "MAX_SECONDS",
    "ROOMS",
    "Repaired",
    "are_heads",
    "is_whole",
    "repair",
]

# A room's epoch: milliseconds since 1970, in hexadecimal.
EPOCH = re.compile("[0-9a-f]{11}")

# Client numbers and positions in the order over all rooms; larger values are damaged.
MAX_COUNTER = 2**48

# Seconds since 1970: no server has run for longer.
MAX_SECONDS = 1e11

# Numbers of messages; with larger ones, ids would not be ordered as strings.
_MAX_MESSAGES = 8_000_000_000

# More messages than a block can have.
_MAX_GAP = 2**17

_BEGIN = f"""
    SELECT min(first) FROM runs WHERE room = rooms.id AND first BETWEEN 0 AND {_MAX_MESSAGES}
"""  # noqa: S608 - our own words
_LAST = f"""
    SELECT seq FROM runs WHERE room = rooms.id AND first BETWEEN 0 AND {_MAX_MESSAGES}
    ORDER BY first DESC LIMIT 1
"""  # noqa: S608 - our own words
_ROOM = f"""
    SELECT rooms.id, rooms.name, rooms.epoch, rooms.first, rooms.next, rooms.seq, ({_BEGIN}),
        runs.first + iif(runs.messages BETWEEN 1 AND {_MAX_GAP}, CAST(runs.messages AS INTEGER), 1)
"""

_COLUMNS = "id, name, epoch, first, next, seq"

# The last block, if it also belongs to the room in the table: an index may be wrong.
_LAST_RUN = f"LEFT JOIN runs ON runs.seq = ({_LAST}) AND +runs.room = rooms.id"

# All rooms, with the first remaining message of each, and the end of its last block.
ROOMS = f"{_ROOM} FROM rooms {_LAST_RUN} ORDER BY rooms.seq"

# The same for one room, whose row may be missing.
_FROM_ROOM = (
    f"{_ROOM} FROM (SELECT ? AS id, ? AS name, ? AS epoch, ? AS first, ? AS next, ? AS seq)"
)
_ONE_ROOM = f"{_FROM_ROOM} AS rooms {_LAST_RUN}"


def _is_name(name: object) -> bool:
    """Return whether *name* can be the folded name of a room."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_DECOMPOSED:
        return False
    return clean(name) == name == fold_name(name)


def are_heads(rows: list[tuple[Any, ...]]) -> bool:
    """Return whether *rows* are a valid content of `heads`."""
    try:
        [row] = rows
        clients_ever, last_epoch, clock = typed(row, int, int, float)
    except (ValueError, DamagedRow):
        return False
    return bool(
        clients_ever <= MAX_COUNTER and last_epoch <= MAX_STORED_EPOCH and 0 <= clock <= MAX_SECONDS
    )


def is_whole(room: tuple[Any, ...]) -> bool:
    """Return whether a row of `ROOMS` is valid and consistent with its messages."""
    try:
        id_, name, epoch, first, next_, seq = typed(room[:6], int, str, str, int, int, int)
    except DamagedRow:
        return False
    begin, end = room[6:]
    if (begin is None) != (end is None):  # an index out of order is found from one side only
        return False
    return (
        _is_name(name)
        and _is_epoch(epoch)
        and max(id_, seq) <= MAX_COUNTER
        and next_ <= _MAX_MESSAGES
        and (first == next_ if end is None else first <= begin and end <= next_ <= end + _MAX_GAP)
    )


class Repaired(NamedTuple):
    """The result of a repair: the *rooms*, longest silent first, and what was *done*.

    *rooms* are corrected rows of `rooms`.  *done* is for the log.
    """

    rooms: list[tuple[Any, ...]]
    done: list[str]


def repair(connection: sqlite3.Connection) -> Repaired:
    """Rewrite damaged heads and rooms; return what is usable.

    A row on a damaged page is not rewritten, and a room whose row cannot be read is skipped.
    Raises one of `SQLITE_ERRORS` if the heads cannot be read or written.
    """
    done: list[str] = []
    # Read everything first: SQLite does not commit a transaction that has read a damaged page.
    heads = connection.execute("SELECT clients_ever, last_epoch, clock FROM heads").fetchall()
    if not are_heads(heads):
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            _rewrite_heads(connection)
        done.append("the client numbers continue from those in its messages and sessions")
    return Repaired(_repair_rooms(connection, done), done)


def _rewrite_heads(connection: sqlite3.Connection) -> None:
    [clients_ever] = connection.execute(
        "SELECT max(client) FROM (SELECT client FROM runs UNION ALL SELECT client FROM sessions "
        "UNION ALL SELECT client FROM nonces) WHERE client BETWEEN 0 AND ?",
        (MAX_COUNTER,),
    ).fetchone()
    [clock] = connection.execute(
        "SELECT max(seen) FROM sessions WHERE seen BETWEEN 0 AND ?", (MAX_SECONDS,)
    ).fetchone()
    connection.execute("DELETE FROM heads")
    connection.execute(
        "INSERT INTO heads (clients_ever, last_epoch, clock) VALUES (?, ?, ?)",
        (int(clients_ever or 0), _last_epoch(connection), float(clock or 0)),
    )


def _last_epoch(connection: sqlite3.Connection) -> int:
    """Return the highest readable epoch; `heads` contains it, too, unless damaged.

    Epochs that leave no room for later ones are ignored.
    """
    last = 0
    for table, columns in (("rooms", "id, epoch"), ("epochs", "room, epoch")):
        for _, epoch in table_rows(connection, table, columns.split(",")[0], columns):
            if _is_epoch(epoch) and int(epoch, 16) <= MAX_STORED_EPOCH:
                last = max(last, int(epoch, 16))
    return last


def _is_epoch(epoch: object) -> bool:
    return isinstance(epoch, str) and EPOCH.fullmatch(epoch) is not None


def _repair_rooms(connection: sqlite3.Connection, done: list[str]) -> list[tuple[Any, ...]]:
    """Rewrite rooms whose row is missing or contradicts the messages; return all rooms."""
    last_epoch = _last_epoch(connection)
    rows = _read_rooms(connection, done)
    rebuilt: dict[int, tuple[Any, ...]] = {}
    for id_, found in rows.items():
        if (row := _rebuilt(found, _shown(connection, id_))) is not None:
            rebuilt[id_] = row
    if removed := sum(id_ not in rebuilt and row[4] is not None for id_, row in rows.items()):
        done.append(f"rooms whose name or numbers are lost: {removed}")
    # Of two rows with the same name or epoch, the undamaged one keeps it.
    names: set[str] = set()
    epochs: set[str] = set()
    wanted: list[tuple[Any, ...]] = []
    # Messages that no index finds may belong to another row whose id is damaged.
    doubtful = {id_ for id_, row in rebuilt.items() if rows[id_][7] is None and row[3] != row[4]}
    lost = {row[1]: row for id_, row in rows.items() if id_ not in rebuilt or id_ in doubtful}

    def rank(each: tuple[int, tuple[Any, ...]]) -> tuple[bool, bool]:
        id_, row = each
        return id_ in doubtful, row != rows[id_][:6]

    for id_, row in sorted(rebuilt.items(), key=rank):
        _, name, epoch, first, next_, seq = row
        if name in names:
            done.append(f"the messages of a second room {name} are skipped")
            continue
        if not _is_epoch(epoch) and (former := lost.get(name)):
            # Unless numbers of that epoch would be reused.
            epoch = former[2] if type(former[4]) is int and former[4] <= next_ else None
        if not _is_epoch(epoch) or epoch in epochs:
            last_epoch += 1
            epoch = f"{last_epoch:011x}"
        names.add(name)
        epochs.add(epoch)
        wanted.append((id_, name, epoch, first, next_, seq))
    changed = [row for row in wanted if row != rows[row[0]][:6]]
    whole = {row[0] for row in wanted}.difference(row[0] for row in changed)
    _rewrite_rooms(connection, [(id_,) for id_ in rows if id_ not in whole], changed, done)
    return sorted(wanted, key=lambda row: row[5])


def _read_rooms(connection: sqlite3.Connection, done: list[str]) -> dict[int, tuple[Any, ...]]:
    """Return the readable rooms by id, as rows of `ROOMS`.

    If the first or last message of a room cannot be read, its row determines where it begins and
    ends.
    """
    rows = {row[0]: row for row in table_rows(connection, "rooms", "id", _COLUMNS)}
    unreadable = 0
    for id_ in _rooms_with_messages(connection):
        if id_ in rows:
            continue
        try:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM rooms WHERE id = ?",  # noqa: S608 - our own words
                (id_,),
            ).fetchone()
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
            unreadable += 1
        else:
            unknown = str(id_).encode()  # a blob, which is neither a name nor an epoch
            # Without messages the room does not exist: an index may be wrong.
            rows[id_] = row or (id_, unknown, unknown, 0, None, 0)
    if unreadable:
        done.append(f"rooms that cannot be read: {unreadable}")
    damaged = 0
    for id_, row in rows.items():
        try:
            rows[id_] = connection.execute(_ONE_ROOM, row).fetchone()
        except SQLITE_ERRORS as error:
            if not is_damage(error):
                raise
            damaged += 1
            first, next_ = row[3:5]
            rows[id_] = (*row, *((None, None) if first == next_ else (first, next_)))
    if damaged:
        done.append(f"rooms whose first or last messages cannot be read: {damaged}")
    return rows


def _rewrite_rooms(
    connection: sqlite3.Connection,
    stale: list[tuple[int]],
    changed: list[tuple[Any, ...]],
    done: list[str],
) -> None:
    """Delete the *stale* rows and insert the *changed* ones, except on damaged pages."""
    if not stale:
        return
    try:
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            connection.executemany("DELETE FROM rooms WHERE id = ?", stale)
            connection.executemany("INSERT INTO rooms VALUES (?, ?, ?, ?, ?, ?)", changed)
    except SQLITE_ERRORS as error:
        if not is_damage(error):
            raise
        if len(stale) == 1:
            return
        for id_ in stale:
            row = [row for row in changed if row[0] == id_[0]]
            _rewrite_rooms(connection, [id_], row, done)
    else:
        done += [f"the room {row[1]} was rebuilt from its messages" for row in changed]


def _rooms_with_messages(connection: sqlite3.Connection) -> Iterator[int]:
    sql = "SELECT room FROM runs WHERE room BETWEEN ? AND ? ORDER BY room LIMIT 1"

    def read_from(position: int) -> Any:
        return connection.execute(sql, (position, MAX_COUNTER)).fetchone()

    def can_read_from(position: int) -> bool:
        return is_readable(lambda: read_from(position))

    position: int | None = 0
    while position is not None:
        if not can_read_from(position):
            position = first_readable(position, can_read_from)
            continue
        if (row := read_from(position)) is None:
            return
        if type(row[0]) is int:
            yield row[0]
        position = int(row[0]) + 1


def _shown(connection: sqlite3.Connection, room: int) -> list[str]:
    """Return the folded names of *room* in its last blocks."""
    sql = "SELECT shown FROM runs WHERE room = ? ORDER BY first DESC LIMIT 5"
    names: list[str] = []
    try:
        for (shown,) in connection.execute(sql, (room,)):
            if isinstance(shown, str) and _is_name(name := fold_name(shown)):
                names.append(name)
    except SQLITE_ERRORS as error:
        if not is_damage(error):
            raise
    return names


def _rebuilt(found: tuple[Any, ...], shown: list[str]) -> tuple[Any, ...] | None:
    """Return the correct row of a room, given its row of `ROOMS`.

    None if nothing is known about it.  A damaged epoch is left unchanged.
    """
    id_, name, epoch, first, next_, seq, begin, end = found
    if not 0 <= id_ <= MAX_COUNTER:
        return None
    if shown and not _is_name(name):
        name = max(shown, key=shown.count)
    if not _is_name(name):
        return None
    whole = type(next_) is int and 0 <= next_ <= _MAX_MESSAGES
    if type(end) is int:
        next_ = next_ if whole and end <= next_ <= end + _MAX_GAP else end
    elif not whole:
        return None
    # Messages that an index does not find are reported as missing.
    limit = begin if type(begin) is int and 0 <= begin <= next_ else next_
    if type(first) is not int or not 0 <= first <= limit:
        first = limit
    if type(seq) is not int or not 0 <= seq <= MAX_COUNTER:
        seq = 0
    return id_, name, epoch, first, next_, seq
