"""The tables of a SQLite journal, how its versions follow, and what a file may define besides.

Anything that a server would run without knowing it, a trigger for instance, is refused.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any

from multichat.protocol.framing import clean

__all__ = [
    "APPLICATION_ID",
    "EPOCHS_VERSION",
    "MIGRATIONS",
    "Schema",
    "compare_schemas",
    "expected_schema",
    "migrate",
    "read_plain_indexes",
    "read_schema",
]

# In the header of the file, where `file` and other programs look for the format: "mchj".
APPLICATION_ID = 0x6D63686A

# Each makes of a file of the version that is its place in this list, from 0, one of the next.  What
# is here once released is never changed: files that were made by it exist.
MIGRATIONS: tuple[Sequence[str], ...] = (
    (
        # One row: the highest number that a client may have, the highest epoch that a room had.
        "CREATE TABLE heads (clients_ever INTEGER NOT NULL, last_epoch INTEGER NOT NULL)",
        "INSERT INTO heads VALUES (0, 0)",
        # `seq` is that of the last run: the room in which nothing was said for longest goes first.
        """CREATE TABLE rooms (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            epoch TEXT NOT NULL UNIQUE,
            first INTEGER NOT NULL,
            next INTEGER NOT NULL,
            seq INTEGER NOT NULL
        )""",
        # `seq` is the order over all rooms.  The text is last, so that what is long is not read by
        # those who want to know how much there is.
        """CREATE TABLE runs (
            seq INTEGER PRIMARY KEY,
            room INTEGER NOT NULL,
            first INTEGER NOT NULL,
            messages INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            time TEXT NOT NULL,
            shown TEXT NOT NULL,
            client INTEGER NOT NULL,
            name TEXT NOT NULL,
            act INTEGER NOT NULL,
            text TEXT NOT NULL
        )""",
        "CREATE UNIQUE INDEX runs_by_number ON runs (room, first)",
        """CREATE TABLE sessions (
            digest BLOB PRIMARY KEY,
            client INTEGER NOT NULL,
            name TEXT NOT NULL,
            room TEXT NOT NULL,
            seen REAL NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX sessions_by_seen ON sessions (seen)",
        # One row for each run that was said with nonces: a JSON array of them, null for none.
        """CREATE TABLE nonces (
            seq INTEGER PRIMARY KEY,
            client INTEGER NOT NULL,
            count INTEGER NOT NULL,
            epoch TEXT NOT NULL,
            first INTEGER NOT NULL,
            nonces TEXT NOT NULL
        )""",
        "CREATE INDEX nonces_by_client ON nonces (client, seq)",
    ),
    (
        # For how many seconds servers have run with this file: the age of a session is counted in
        # these, because the system's clock may be set.
        "ALTER TABLE heads ADD COLUMN clock REAL NOT NULL DEFAULT 0.0",
        "UPDATE sessions SET seen = 0",  # seconds since 1970 until now
        "CREATE INDEX sessions_by_client ON sessions (client)",
        # Of each nonce four bytes: the CRC-32 of what was said with it.  Nothing for older ones.
        "ALTER TABLE nonces ADD COLUMN checks BLOB NOT NULL DEFAULT x''",
        # Each server gives a room a new epoch with its first message there; `next` is the number of
        # that message.
        """CREATE TABLE epochs (
            room INTEGER NOT NULL,
            next INTEGER NOT NULL,
            epoch TEXT NOT NULL UNIQUE,
            PRIMARY KEY (room, next)
        ) WITHOUT ROWID""",
        # By these it is known which WAL belongs to the file, and whether it has one: `sealed` is 1
        # for a stamp before a checkpoint, 2 where the server ends after that, else 0.
        """CREATE TABLE stamps (
            id INTEGER PRIMARY KEY,
            stamp TEXT NOT NULL,
            sealed INTEGER NOT NULL
        )""",
        "INSERT INTO stamps VALUES (1, '', 2)",
    ),
)

EPOCHS_VERSION = 2  # from which on there is a table of epochs

Schema = set[tuple[Any, ...]]

_SHOWN_CHARACTERS = 50

# SQLite's own tables, as `ANALYZE` makes them, are left out.
_SCHEMA = """
    SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql NOT NULL
    AND NOT (type = 'table' AND name LIKE 'sqlite\\_%' ESCAPE '\\')
"""
# They change nothing but the speed of queries.  A unique index can reject messages; expressions and
# the condition of a partial index are evaluated for each message.
_PLAIN_INDEXES = """
    SELECT s.name FROM sqlite_master AS s JOIN pragma_index_list(s.tbl_name) AS i USING (name)
    WHERE s.type = 'index' AND NOT i."unique" AND NOT i.partial
    AND NOT EXISTS (SELECT 1 FROM pragma_index_info(s.name) AS c WHERE c.cid = -2)
"""


def read_schema(connection: sqlite3.Connection) -> Schema:
    """Return what the file defines: type, name, table and SQL of each."""
    return set(connection.execute(_SCHEMA))


def read_plain_indexes(connection: sqlite3.Connection) -> set[Any]:
    """Return the names of the indexes that a file may have besides."""
    return {name for (name,) in connection.execute(_PLAIN_INDEXES)}


def compare_schemas(found: Schema, expected: Schema, plain: set[Any]) -> str:
    """Say what is wrong with a schema; empty if nothing is.  Additional *plain* indexes are not."""
    for kind, name, *_ in sorted(expected - found, reverse=True):
        return f"its {kind} {name} is missing or changed"
    for kind, name, *_ in found - expected:
        if kind != "index" or name not in plain:
            article = "an" if kind == "index" else "a"
            thing = clean(f"{article} {kind} {name}")[:_SHOWN_CHARACTERS]
            return f"it has {thing} that multichat did not make; drop it"
    return ""


def expected_schema(migrations: Sequence[Sequence[str]]) -> Schema:
    """Return what *migrations* make of an empty file."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statements in migrations:
            for statement in statements:
                connection.execute(statement)
        return read_schema(connection)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]]) -> None:
    """Bring the tables to our version: each step is done whole or not at all."""
    [version] = connection.execute("PRAGMA user_version").fetchone()
    for number, statements in enumerate(migrations[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={number}")
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
