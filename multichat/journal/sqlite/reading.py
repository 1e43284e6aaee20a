"""Reads messages and sessions from a SQLite journal.

For one thread at a time.  Rows that no server can have written are damaged: messages are skipped
and their numbers returned; a damaged session is an error.
"""

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from hashlib import sha256
from typing import Any

import msgspec

from multichat.journal.base import SavedNonce, SavedSession, SessionRecord
from multichat.journal.sqlite.file import MAX_NUMBER, SQLITE_ERRORS, DamagedRow, is_damage, typed
from multichat.journal.sqlite.queries import SessionRow
from multichat.journal.sqlite.repair import EPOCH, MAX_COUNTER
from multichat.journal.sqlite.salvage import BLOCKS_OF_ROOM, Row, rows_around_damage
from multichat.protocol.framing import clean, clean_lines
from multichat.protocol.messages import MAX_DECOMPOSED, MAX_UNACCEPTED, Nonce, SaidBlock
from multichat.protocol.names import fold_name

__all__ = [
    "BLOCK_COLUMNS",
    "first_missing",
    "first_of",
    "read_blocks",
    "read_blocks_backwards",
    "read_recent_sessions",
    "read_session",
    "said_block",
]

# Presence announces that a client left before it has been away for that long.
_RECENT_SECONDS, _MAX_RECENT = 3600.0, 10_000

# The columns of a block.  Its epoch is the first one that ended after it, or the room's current
# one.
BLOCK_COLUMNS = """
    coalesce(
        (SELECT epoch FROM epochs WHERE room = runs.room AND next > runs.first
            AND length(epoch) = 11 AND epoch NOT GLOB '*[^0-9a-f]*' ORDER BY next LIMIT 1),
        (SELECT epoch FROM rooms WHERE id = runs.room)
    ),
    (SELECT name FROM rooms WHERE id = runs.room),
    runs.first, runs.time, runs.shown, runs.client, runs.name, runs.text, runs.act, runs.messages
"""


def read_blocks(
    connection: sqlite3.Connection, room: int, start: int, stop: int, damaged: list[int]
) -> Generator[SaidBlock, None, None]:
    """Yield the blocks of *room* with messages from number *start* up to *stop*.

    Damaged blocks are skipped, and their first numbers appended to *damaged*.  Close it if it is
    not read to the end.
    """
    begin = start
    try:  # the block that contains *start*
        sql = (
            f"SELECT entry.first FROM {BLOCKS_OF_ROOM} WHERE entry.room = ? AND entry.first <= ? "  # noqa: S608 - our own words
            "ORDER BY entry.first DESC LIMIT 1"
        )
        found = connection.execute(sql, (room, start)).fetchone()
    except SQLITE_ERRORS as error:
        if not is_damage(error):
            raise
    else:
        if found is not None and type(found[0]) is int:
            [begin] = found
    return _read_blocks(connection, room, begin, stop - 1, damaged)


def read_blocks_backwards(
    connection: sqlite3.Connection, room: int, stop: int, damaged: list[int]
) -> Generator[SaidBlock, None, None]:
    """Yield the blocks of *room* with messages below number *stop*, the newest first.

    For the rest see `read_blocks`.
    """
    return _read_blocks(connection, room, 0, stop - 1, damaged, backwards=True)


def _read_blocks(
    connection: sqlite3.Connection,
    room: int,
    low: int,
    high: int,
    damaged: list[int],
    *,
    backwards: bool = False,
) -> Generator[SaidBlock, None, None]:
    """Yield the blocks of *room* whose first number is from *low* to *high*."""
    order = "DESC" if backwards else "ASC"
    sql = (
        f"SELECT {BLOCK_COLUMNS} FROM {BLOCKS_OF_ROOM} "  # noqa: S608 - our own words
        "WHERE entry.room = ? AND entry.first BETWEEN ? AND ? "
        f"ORDER BY entry.first {order} LIMIT ?"
    )

    def select(position: int, limit: int) -> sqlite3.Cursor:
        bounds = (low, -position) if backwards else (position, high)
        return connection.execute(sql, (room, *bounds, limit))

    def key_of(row: Row) -> object:
        first = row[2]
        return -first if backwards and isinstance(first, int | float) else first

    unreadable: list[range] = []
    rows = rows_around_damage(select, key_of, -high if backwards else low, unreadable)
    try:
        with closing(rows):
            for row in rows:
                try:
                    yield said_block(row)
                except DamagedRow:
                    damaged.append(row[2] if type(row[2]) is int else low)
    finally:
        begins = (-keys[-1] if backwards else keys[0] for keys in unreadable)
        damaged += (begin for begin in begins if low <= begin <= high)


def first_missing(
    connection: sqlite3.Connection, room: int, blocks: Sequence[SaidBlock], start: int, stop: int
) -> int | None:
    """Return the first number from *start* on that *room* should have but *blocks* do not.

    Checked up to the last of *blocks*, or to *stop* if there are none.  Messages that retention has
    deleted meanwhile are not missing.
    """
    begins = [said.first for said in blocks] or [stop]
    ends = [start, *(said.first + said.text.count("\n") + 1 for said in blocks)]
    for end, begin in zip(ends, begins, strict=False):
        if begin > end and (first := max(end, first_of(connection, room))) < begin:
            return first
    return None


def first_of(connection: sqlite3.Connection, room: int) -> int:
    """Return the first number of *room* now; above all numbers if that cannot be read."""
    row = None
    with suppress(*SQLITE_ERRORS):
        row = connection.execute("SELECT first FROM rooms WHERE id = ?", (room,)).fetchone()
    return row[0] if row is not None and type(row[0]) is int else MAX_NUMBER


def said_block(row: Sequence[object]) -> SaidBlock:
    """Return a row of `BLOCK_COLUMNS` as a `SaidBlock`.

    Its text is cleaned, because the file may have any origin, and its room is the one to which the
    row belongs.  Raises `DamagedRow`.
    """
    epoch, room, first, said_at, shown, client, name, text, act, messages = typed(
        row, str, str, int, str, str, int, str, str, int, int
    )
    if text.count("\n") + 1 != messages:
        raise DamagedRow
    epoch, said_at, shown, name = map(clean, (epoch, said_at, shown, name))
    if fold_name(shown) != room:
        shown = clean(room)
    return SaidBlock(epoch, first, said_at, shown, client, name, clean_lines(text), bool(act))


def read_recent_sessions(connection: sqlite3.Connection, clock: float) -> list[SavedSession]:
    """Return the sessions seen last, without their nonces, as far as they are readable.

    At most `_MAX_RECENT`, of the last `_RECENT_SECONDS` of the file's *clock*.
    """
    found: list[SavedSession] = []
    with suppress(*SQLITE_ERRORS):
        for row in connection.execute(
            "SELECT digest, client, name, room, seen, login FROM sessions "
            "WHERE seen >= ? ORDER BY seen DESC LIMIT ?",
            (clock - _RECENT_SECONDS, _MAX_RECENT),
        ):
            with suppress(DamagedRow):
                record, seen = _session(row)
                age = max(0.0, clock - seen)
                found.append(SavedSession(record=record, age_seconds=age, nonces=[]))
    return found[::-1]


def read_session(
    connection: sqlite3.Connection, digest: bytes, waiting: SessionRow | None, clock: float
) -> SavedSession | None:
    """Return that session with its last nonces; None if there is none.

    *waiting* is its queued state, if any, and *clock* the current time of the file's clock.  Also
    raises `DamagedRow` if any of its nonces is damaged, because repeated messages could not be
    recognized.
    """
    if waiting is None:
        row = connection.execute(
            "SELECT digest, client, name, room, seen, login FROM sessions WHERE digest = ?",
            (digest,),
        ).fetchone()
        if row is None:
            return None
        waiting = _session(row)
        # If two sessions claim one client number, it is unknown which one is right.
        others = connection.execute(
            "SELECT 1 FROM sessions WHERE client = ? AND digest != ?", (row[1], digest)
        )
        if others.fetchone() is not None:
            raise DamagedRow
    record, seen = waiting
    nonces = _read_nonces(connection, record.client, MAX_UNACCEPTED)
    return SavedSession(record=record, age_seconds=max(0.0, clock - seen), nonces=nonces)


def _session(row: tuple[Any, ...]) -> SessionRow:
    """Return a row of `sessions`; raises `DamagedRow`.

    A session with an invalid name can be resumed: the client gets an error and has no name.
    """
    digest, client, name, joined, seen, login = typed(row, bytes, int, str, str, float, str)
    rooms = tuple(joined.split("\n"))
    if not (
        len(digest) == sha256().digest_size
        and client <= MAX_COUNTER
        and all(0 < len(room) <= MAX_DECOMPOSED and clean(room) == room for room in rooms)
    ):
        raise DamagedRow
    name = clean(name[: MAX_DECOMPOSED + 1])
    record = SessionRecord(digest=digest, client=client, name=name, rooms=rooms, login=login)
    return SessionRow(record, seen)


def _read_nonces(connection: sqlite3.Connection, client: int, limit: int) -> list[SavedNonce]:
    """Return the last *limit* nonces of *client*, the oldest first."""
    found: list[SavedNonce] = []
    for row in connection.execute(
        "SELECT epoch, first, coalesce("
        "(SELECT name FROM rooms WHERE epoch = nonces.epoch), (SELECT name FROM rooms WHERE id = "
        "(SELECT room FROM epochs WHERE epoch = nonces.epoch)), ''), nonces, count, checks "
        "FROM nonces WHERE client = ? ORDER BY seq DESC LIMIT ?",
        (client, limit),
    ).fetchall():
        epoch, first, room, encoded, count, checks = typed(row, str, int, str, str, int, bytes)
        try:
            nonces = _decode_nonces(encoded)
        except (msgspec.MsgspecError, RecursionError):
            raise DamagedRow from None
        if (
            len(nonces) - nonces.count(None) != count
            or not (EPOCH.fullmatch(epoch) or epoch == "")
            or len(checks) not in (0, 4 * len(nonces))
        ):
            raise DamagedRow
        found += [
            SavedNonce(nonce, epoch, first + i, room, checks[4 * i : 4 * i + 4])
            for i, nonce in reversed(list(enumerate(nonces)))
            if nonce is not None
        ]
        if len(found) >= limit:
            break
    return found[:limit][::-1]


_decode_nonces = msgspec.json.Decoder(list[Nonce | None]).decode
