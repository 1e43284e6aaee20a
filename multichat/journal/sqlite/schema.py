"""The schema of a SQLite journal, its migrations, and which additional indexes are allowed.

A file that defines anything else, such as a trigger, is refused, because the server would run it.
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

# The application id in the file's header, which `file` and other programs show: "mchj".
APPLICATION_ID = 0x6D63686A

# Each migrates a file from the version that is its index in this list to the next.  Released
# migrations are never changed, because files made by them exist.
MIGRATIONS: tuple[Sequence[str], ...] = (
    (
        # One row: the highest client number that may be taken, and the highest epoch of any room.
        "CREATE TABLE heads (clients_ever INTEGER NOT NULL, last_epoch INTEGER NOT NULL)",
        "INSERT INTO heads VALUES (0, 0)",
        # `seq` is that of the room's last block: the room without a message for longest is first.
        """CREATE TABLE rooms (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            epoch TEXT NOT NULL UNIQUE,
            first INTEGER NOT NULL,
            next INTEGER NOT NULL,
            seq INTEGER NOT NULL
        )""",
        # A row is a block of messages; `seq` is the order over all rooms.  The text is the last
        # column, so that queries of other columns do not read it.
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
        # One row for each block with nonces: a JSON array of them, null for a message without one.
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
        # How many seconds servers have run with this file: sessions age by this clock, because the
        # system's clock may be set.
        "ALTER TABLE heads ADD COLUMN clock REAL NOT NULL DEFAULT 0.0",
        "UPDATE sessions SET seen = 0",  # seconds since 1970 until now
        "CREATE INDEX sessions_by_client ON sessions (client)",
        # Four bytes for each nonce: the CRC-32 of its message.  Empty for older nonces.
        "ALTER TABLE nonces ADD COLUMN checks BLOB NOT NULL DEFAULT x''",
        # Each server starts a new epoch in a room with its first message there; `next` is the
        # number of that message.
        """CREATE TABLE epochs (
            room INTEGER NOT NULL,
            next INTEGER NOT NULL,
            epoch TEXT NOT NULL UNIQUE,
            PRIMARY KEY (room, next)
        ) WITHOUT ROWID""",
        # Stamps identify the WAL of the file, and whether there is one: `sealed` is 1 for a stamp
        # before a checkpoint, 2 if the server ends after that, otherwise 0.
        """CREATE TABLE stamps (
            id INTEGER PRIMARY KEY,
            stamp TEXT NOT NULL,
            sealed INTEGER NOT NULL
        )""",
        "INSERT INTO stamps VALUES (1, '', 2)",
    ),
    (
        # `name` is case-folded; `shown` is the name in its owner's spelling.
        """CREATE TABLE accounts (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            shown TEXT NOT NULL,
            hash TEXT NOT NULL
        )""",
        """CREATE TABLE topics (
            id INTEGER PRIMARY KEY,
            room TEXT NOT NULL UNIQUE,
            topic TEXT NOT NULL
        )""",
        # To an account; empty without one.
        "ALTER TABLE sessions ADD COLUMN login TEXT NOT NULL DEFAULT ''",
    ),
)

EPOCHS_VERSION = 2  # the first version with a table of epochs

Schema = set[tuple[Any, ...]]

_SHOWN_CHARACTERS = 50

# Without SQLite's own tables, which `ANALYZE` creates.
_SCHEMA = """
    SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql NOT NULL
    AND NOT (type = 'table' AND name LIKE 'sqlite\\_%' ESCAPE '\\')
"""
# Indexes that only affect the speed of queries.  A unique index could reject messages, and
# expressions and the conditions of partial indexes are evaluated for each message.
_PLAIN_INDEXES = """
    SELECT s.name FROM sqlite_master AS s JOIN pragma_index_list(s.tbl_name) AS i USING (name)
    WHERE s.type = 'index' AND NOT i."unique" AND NOT i.partial
    AND NOT EXISTS (SELECT 1 FROM pragma_index_info(s.name) AS c WHERE c.cid = -2)
"""


def read_schema(connection: sqlite3.Connection) -> Schema:
    """Return the schema of the file: type, name, table and SQL of each object."""
    return set(connection.execute(_SCHEMA))


def read_plain_indexes(connection: sqlite3.Connection) -> set[Any]:
    """Return the names of the additional indexes that are allowed."""
    return {name for (name,) in connection.execute(_PLAIN_INDEXES)}


def compare_schemas(found: Schema, expected: Schema, plain: set[Any]) -> str:
    """Describe what is wrong with a schema; empty if nothing is.  *plain* indexes are allowed."""
    for kind, name, *_ in sorted(expected - found, reverse=True):
        return f"its {kind} {name} is missing or changed"
    for kind, name, *_ in found - expected:
        if kind != "index" or name not in plain:
            article = "an" if kind == "index" else "a"
            thing = clean(f"{article} {kind} {name}")[:_SHOWN_CHARACTERS]
            return f"it has {thing} that multichat did not make; drop it"
    return ""


def expected_schema(migrations: Sequence[Sequence[str]]) -> Schema:
    """Return the schema that *migrations* create in an empty file."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statements in migrations:
            for statement in statements:
                connection.execute(statement)
        return read_schema(connection)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]]) -> None:
    """Migrate the file to our version; each migration is one transaction."""
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
