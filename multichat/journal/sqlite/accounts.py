"""Accounts and topics in a SQLite journal: small tables that are read completely at the start.

For one thread at a time.  Damaged rows are skipped, but the name of an account whose passphrase is
damaged stays reserved: nobody can log in until the operator has removed the account and added it
again.
"""

import re
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from multichat.errors import InvalidName
from multichat.journal.base import AccountRecord
from multichat.journal.sqlite.file import SQLITE_ERRORS, is_damage
from multichat.journal.sqlite.salvage import Row, table_rows
from multichat.protocol.counts import counted
from multichat.protocol.framing import clean
from multichat.protocol.messages import MAX_TOPIC_CHARACTERS
from multichat.protocol.names import fold_name, parse_person_name, parse_room_name

__all__ = ["AccountsAndTopics", "read_accounts_and_topics", "write_account", "write_topic"]

# As argon2 writes it, with its parameters and its salt.
_HASH = re.compile(r"\$argon2id\$[\x21-\x7e]{1,250}")


def write_account(connection: sqlite3.Connection, name: str, record: AccountRecord | None) -> None:
    """Store the account *name*, case-folded, or delete it if *record* is None."""
    if record is None:
        connection.execute("DELETE FROM accounts WHERE name = ?", (name,))
        return
    connection.execute(
        "INSERT INTO accounts (name, shown, hash) VALUES (?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET shown = excluded.shown, hash = excluded.hash",
        (name, record.name, record.hash),
    )


def write_topic(connection: sqlite3.Connection, room: str, topic: str) -> None:
    """Store the *topic* of *room*, case-folded, or delete it if it is empty."""
    if not topic:
        connection.execute("DELETE FROM topics WHERE room = ?", (room,))
        return
    connection.execute(
        "INSERT INTO topics (room, topic) VALUES (?, ?) "
        "ON CONFLICT (room) DO UPDATE SET topic = excluded.topic",
        (room, topic),
    )


class AccountsAndTopics(NamedTuple):
    """The *accounts*, the *topics* by room, case-folded, and what is *damaged*, for the log."""

    accounts: list[AccountRecord]
    topics: dict[str, str]
    damaged: list[str]


def read_accounts_and_topics(connection: sqlite3.Connection) -> AccountsAndTopics:
    """Return what is readable; raises one of `SQLITE_ERRORS` unless that is damage."""
    found = AccountsAndTopics([], {}, [])
    lost = locked = lost_topics = 0
    for row in _rows(connection, "accounts", "name, shown, hash"):
        if row is None or (record := _account(*row)) is None:
            lost += 1
        else:
            locked += not record.hash
            found.accounts.append(record)
    for row in _rows(connection, "topics", "room, topic"):
        if row is None or (topic := _topic(*row)) is None:
            lost_topics += 1
        else:
            found.topics[row[0]] = topic
    if lost:
        places = counted(lost, "place")
        found.damaged.append(f"accounts cannot be read in {places}, their names are free")
    if locked:
        them = "it" if locked == 1 else "them"
        text = f"without a readable passphrase: remove {them} and add {them} again"
        found.damaged.append(f"{counted(locked, 'account')} {text}")
    if lost_topics:
        found.damaged.append(f"topics of rooms cannot be read in {counted(lost_topics, 'place')}")
    return found


def _rows(connection: sqlite3.Connection, table: str, columns: str) -> Iterator[Row | None]:
    """Yield the *columns* of the rows of *table*; None for each place that cannot be read."""
    unreadable: list[range] = []
    try:
        for row in table_rows(connection, table, "id", f"id, {columns}", unreadable):
            yield row[1:]
    except SQLITE_ERRORS as error:
        if not is_damage(error):
            raise
        yield None
    for _ in unreadable:
        yield None


def _account(name: object, shown: object, hash_: object) -> AccountRecord | None:
    if not isinstance(name, str):
        return None
    if not isinstance(shown, str) or fold_name(shown) != name:
        shown = name
    try:
        shown = parse_person_name(shown)
    except InvalidName:
        return None
    is_hash = isinstance(hash_, str) and _HASH.fullmatch(hash_)
    return AccountRecord(name=shown, hash=str(hash_) if is_hash else "")


def _topic(room: object, topic: object) -> str | None:
    if not isinstance(room, str) or not isinstance(topic, str):
        return None
    try:
        is_room = fold_name(parse_room_name(room)) == room
    except InvalidName:
        return None
    return clean(topic)[:MAX_TOPIC_CHARACTERS] if is_room else None
