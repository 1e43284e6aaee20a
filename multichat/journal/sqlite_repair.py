"""Rebuilds the heads and the list of rooms of a SQLite journal from its messages.

Owns what happens where a row of these two tables is damaged.  Nothing in them is known there alone
but the epoch of a room: if that is lost the room gets another one, and the ids that clients know
from the last server are unknown.  Slow, and for damaged files only.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from multichat.framing import clean
from multichat.journal.sqlite_file import DamagedRow, typed
from multichat.names import MAX_DECOMPOSED, fold_name

__all__ = ["EPOCH", "MAX_COUNTER", "MAX_SECONDS", "ROOMS", "are_heads", "is_whole", "repair"]

# Of a room: milliseconds since 1970, in hexadecimal.
EPOCH = re.compile("[0-9a-f]{11}")

# Numbers of clients, and places in the order over all rooms: what is larger is damaged.
MAX_COUNTER = 2**48

# In seconds since 1970, which is longer ago than any server has run.
MAX_SECONDS = 1e11

# Numbers of messages: with more, ids would not be ordered as strings.
MAX_NUMBER = 8_000_000_000

# More messages than one run can have.
MAX_GAP = 2**17

# All rooms, with the first message that is left of each, and the end of its last run.
ROOMS = f"""
    SELECT rooms.id, rooms.name, rooms.epoch, rooms.first, rooms.next, rooms.seq,
        (SELECT min(first) FROM runs WHERE room = rooms.id AND first BETWEEN 0 AND {MAX_NUMBER}),
        runs.first + iif(runs.messages BETWEEN 1 AND {MAX_GAP}, CAST(runs.messages AS INTEGER), 1)
    FROM rooms LEFT JOIN runs ON runs.seq = (
        SELECT seq FROM runs WHERE room = rooms.id AND first BETWEEN 0 AND {MAX_NUMBER}
        ORDER BY first DESC LIMIT 1
    )
    ORDER BY rooms.seq
"""  # noqa: S608 - our own words


def is_name(name: object) -> bool:
    """Return whether *name* can be the folded name of a room."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_DECOMPOSED:
        return False
    return clean(name) == name == fold_name(name)


def are_heads(rows: list[tuple[Any, ...]]) -> bool:
    """Return whether *rows* can be all that a server has written into `heads`."""
    try:
        [row] = rows
        clients_ever, last_epoch, clock = typed(row, int, int, float)
    except (ValueError, DamagedRow):
        return False
    return bool(max(clients_ever, last_epoch) <= MAX_COUNTER and 0 <= clock <= MAX_SECONDS)


def is_whole(room: tuple[Any, ...]) -> bool:
    """Return whether a row of `ROOMS` can be what a server has written, and fits its messages."""
    try:
        id_, name, epoch, first, next_, seq = typed(room[:6], int, str, str, int, int, int)
    except DamagedRow:
        return False
    begin, end = room[6:]
    return (
        is_name(name)
        and EPOCH.fullmatch(epoch) is not None
        and max(id_, seq) <= MAX_COUNTER
        and next_ <= MAX_NUMBER
        and (first == next_ if end is None else first == begin and end <= next_ <= end + MAX_GAP)
    )


def repair(connection: sqlite3.Connection) -> list[str]:
    """Write heads and rooms anew where they are damaged; return what was done, for the log.

    Raises one of `SQLITE_ERRORS`; then nothing has changed.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = [*_repair_rooms(connection), *_repair_heads(connection)]
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return done


def _repair_heads(connection: sqlite3.Connection) -> Iterator[str]:
    if are_heads(
        connection.execute("SELECT clients_ever, last_epoch, clock FROM heads").fetchall()
    ):
        return
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
    yield "the numbers of clients go on from those that its messages and sessions have"


def _last_epoch(connection: sqlite3.Connection) -> int:
    epochs = connection.execute("SELECT epoch FROM rooms UNION ALL SELECT epoch FROM epochs")
    return max((int(epoch, 16) for (epoch,) in epochs if _is_epoch(epoch)), default=0)


def _is_epoch(epoch: object) -> bool:
    return isinstance(epoch, str) and EPOCH.fullmatch(epoch) is not None


def _repair_rooms(connection: sqlite3.Connection) -> Iterator[str]:
    """Write each room anew whose row contradicts its messages, or is missing."""
    last_epoch = _last_epoch(connection)
    for id_ in list(_rooms_with_messages(connection)):
        unknown = str(id_).encode()  # a blob is no name, and no epoch
        connection.execute(
            "INSERT OR IGNORE INTO rooms VALUES (?, ?, ?, 0, 0, 0)", (id_, unknown, unknown)
        )
    rows: dict[int, tuple[Any, ...]] = {row[0]: row for row in connection.execute(ROOMS).fetchall()}
    rebuilt: dict[int, tuple[Any, ...]] = {}
    for id_, found in rows.items():
        if (row := _rebuilt(found, _shown(connection, id_))) is not None:
            rebuilt[id_] = row
    # Of two that claim a name, or an epoch, that one has it whose row was whole.
    names: set[str] = set()
    epochs: set[str] = set()
    wanted: list[tuple[Any, ...]] = []
    lost = {row[1]: row[2] for id_, row in rows.items() if id_ not in rebuilt}
    for id_, row in sorted(rebuilt.items(), key=lambda each: each[1] != rows[each[0]][:6]):
        _, name, epoch, *rest = row
        if name in names:
            yield f"what was said in a second room {name} is left out"
            continue
        if not _is_epoch(epoch):
            epoch = lost.get(name)
        if not _is_epoch(epoch) or epoch in epochs:
            last_epoch += 1
            epoch = f"{last_epoch:011x}"
        names.add(name)
        epochs.add(epoch)
        wanted.append((id_, name, epoch, *rest))
    changed = [row for row in wanted if row != rows[row[0]][:6]]
    whole = {row[0] for row in wanted}.difference(row[0] for row in changed)
    stale = [(id_,) for id_ in rows if id_ not in whole]
    connection.executemany("DELETE FROM rooms WHERE id = ?", stale)
    connection.executemany("INSERT INTO rooms VALUES (?, ?, ?, ?, ?, ?)", changed)
    for row in changed:
        yield f"the room {row[1]} was rebuilt from its messages"


def _rooms_with_messages(connection: sqlite3.Connection) -> Iterator[int]:
    room = -1
    while True:
        [room] = connection.execute(
            "SELECT min(room) FROM runs WHERE room > ? AND room <= ?", (room, MAX_COUNTER)
        ).fetchone()
        if room is None:
            return
        if type(room) is int:
            yield room


def _shown(connection: sqlite3.Connection, room: int) -> list[str]:
    """Return what the last runs of *room* call it, folded."""
    rows = connection.execute(
        "SELECT shown FROM runs WHERE room = ? ORDER BY first DESC LIMIT 5", (room,)
    )
    names = [fold_name(shown) for (shown,) in rows if isinstance(shown, str)]
    return [name for name in names if is_name(name)]


def _rebuilt(found: tuple[Any, ...], shown: list[str]) -> tuple[Any, ...] | None:
    """Return the row that a room should have, given what `ROOMS` says of it.

    None if nothing is known of it.  An epoch that is damaged is left as it is.
    """
    id_, name, epoch, first, next_, seq, begin, end = found
    if not 0 <= id_ <= MAX_COUNTER:
        return None
    if shown and not is_name(name):
        name = max(shown, key=shown.count)
    if not is_name(name):
        return None
    whole = type(next_) is int and 0 <= next_ <= MAX_NUMBER
    if end is None:
        if first != next_ or not whole:
            return None
    else:
        next_ = next_ if whole and end <= next_ <= end + MAX_GAP else end
        first = begin
    if type(seq) is not int or not 0 <= seq <= MAX_COUNTER:
        seq = 0
    return id_, name, epoch, first, next_, seq
