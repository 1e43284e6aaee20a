"""What is deleted from a SQLite journal, a bounded number of rows at a time, and nonces."""

import sqlite3
from collections.abc import Iterator

import msgspec

from multichat.messages import Nonce

__all__ = [
    "AT_ONCE",
    "MAX_NONCES",
    "delete_of_room",
    "delete_oldest",
    "first_of",
    "forget",
    "forget_sessions",
    "nonces",
    "trim_nonces",
    "used_bytes",
]

# In one transaction: a commit waits no longer for that than for any other.
AT_ONCE = 500

# Of each client's, as many as can be asked for.
MAX_NONCES = 1024


def delete_of_room(connection: sqlite3.Connection, room: int, before: int) -> list[int]:
    """Delete the first runs of a room that end before that number."""
    rows = connection.execute(
        "DELETE FROM runs WHERE seq IN (SELECT seq FROM runs WHERE room = ? AND first < ? "
        "AND first + messages <= ? ORDER BY first LIMIT ?) RETURNING room",
        (room, before, before, AT_ONCE),
    )
    return [room for (room,) in rows]


def delete_oldest(connection: sqlite3.Connection, before: str) -> list[int]:
    """Delete the first runs up to one that was said at that time or later; return whose."""
    # Nothing but a beginning: should the clock have been set back, no room gets a gap.
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS oldest (seq INTEGER, time TEXT)")
    connection.execute("DELETE FROM oldest")
    connection.execute(
        "INSERT INTO oldest SELECT seq, time FROM runs ORDER BY seq LIMIT ?", (AT_ONCE,)
    )
    rows = connection.execute(
        "DELETE FROM runs WHERE seq IN (SELECT seq FROM oldest WHERE seq < "
        "coalesce((SELECT min(seq) FROM oldest WHERE time >= ?), 1 << 62)) RETURNING room",
        (before,),
    )
    return [room for (room,) in rows]


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return how much of the file holds something."""
    [[pages]] = connection.execute("PRAGMA page_count")
    [[free]] = connection.execute("PRAGMA freelist_count")
    [[page_bytes]] = connection.execute("PRAGMA page_size")
    return int((pages - free) * page_bytes)


def forget_sessions(connection: sqlite3.Connection, before: float) -> None:
    """Forget a bounded number of sessions that were last seen before that time."""
    for (digest,) in connection.execute(
        "SELECT digest FROM sessions WHERE seen < ? LIMIT ?", (before, AT_ONCE)
    ).fetchall():
        forget(connection, digest)


def first_of(connection: sqlite3.Connection, room: int) -> int:
    """Return the number of the first message that is left of a room, or of its next one."""
    query = (
        "SELECT coalesce((SELECT min(first) FROM runs WHERE room = id), next) "
        "FROM rooms WHERE id = ?"
    )
    [[first]] = connection.execute(query, (room,))
    return int(first)


def nonces(
    connection: sqlite3.Connection, client: int, limit: int
) -> Iterator[tuple[Nonce, str, int]]:
    """Yield the last *limit* that *client* used, the last first."""
    rows = connection.execute(
        "SELECT epoch, first, nonces FROM nonces WHERE client = ? ORDER BY seq DESC", (client,)
    )
    for epoch, first, spelled in rows:
        nonces = msgspec.json.decode(spelled, type=list[Nonce | None])
        for number in reversed(range(len(nonces))):
            if (nonce := nonces[number]) is None:
                continue
            if limit <= 0:
                return
            limit -= 1
            yield nonce, epoch, first + number


def trim_nonces(connection: sqlite3.Connection, client: int) -> None:
    """Forget the nonces of *client* that are too many."""
    # One row holds at least one: what stands behind so many rows nobody will ask for.
    connection.execute(
        "DELETE FROM nonces WHERE client = ? AND seq < (SELECT seq FROM nonces WHERE client = ? "
        "ORDER BY seq DESC LIMIT 1 OFFSET ?)",
        (client, client, MAX_NONCES - 1),
    )


def forget(connection: sqlite3.Connection, digest: bytes) -> None:
    """Forget a session, if it is there, and the nonces of its client."""
    connection.execute(
        "DELETE FROM nonces WHERE client = (SELECT client FROM sessions WHERE digest = ?)",
        (digest,),
    )
    connection.execute("DELETE FROM sessions WHERE digest = ?", (digest,))
