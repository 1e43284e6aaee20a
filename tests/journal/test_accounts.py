"""Accounts and topics in the journal's file: what is stored, what survives, what is damaged."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from multichat.errors import StorageFailed
from multichat.journal.base import AccountRecord
from multichat.journal.retention import Retention
from multichat.journal.sqlite.accounts import read_accounts_and_topics
from multichat.journal.sqlite.journal import SqliteJournal
from multichat.journal.sqlite.schema import MIGRATIONS
from tests.support.journals import (
    ALICE,
    back_up,
    damage_table,
    old_journal,
    record_of,
    running,
    say,
    tidy,
    wait_stored,
)
from tests.support.log import LogRecorder

pytestmark = pytest.mark.unit

HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$aGFzaA"


def account(name: str, hash_: str = HASH) -> AccountRecord:
    return AccountRecord(name=name, hash=hash_)


async def stored(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the state of the next server: the names of the accounts, and the topics."""
    async with running(SqliteJournal(path)) as journal:
        return sorted(each.name for each in journal.accounts), {**journal.topics}


async def write_accounts(path: Path, *names: str, topics: dict[str, str] | None = None) -> None:
    async with running(SqliteJournal(path)) as journal:
        for name in names:
            await wait_stored(journal.save_account(name.lower(), account(name)))
        for room, topic in (topics or {}).items():
            await wait_stored(journal.save_topic(room, topic))


async def test_accounts_and_topics_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write_accounts(path, "Alice", "bob", topics={"lobby": "tea at four", "den": "hush"})
    assert await stored(path) == (["Alice", "bob"], {"lobby": "tea at four", "den": "hush"})
    async with running(SqliteJournal(path)) as journal:
        assert journal.accounts[0] == account("Alice")
        await wait_stored(journal.save_account("bob", None))
        await wait_stored(journal.save_account("alice", account("ALICE")))
        await wait_stored(journal.save_topic("lobby", "tea at five"))
        await wait_stored(journal.save_topic("den", ""))
    assert await stored(path) == (["ALICE"], {"lobby": "tea at five"})


async def test_accounts_and_topics_are_in_the_file_once_they_are_reported_as_stored(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        await wait_stored(journal.save_account("alice", account("alice")))
        await wait_stored(journal.save_topic("lobby", "tea"))
        with closing(sqlite3.connect(path)) as connection:  # as after a kill
            found = read_accounts_and_topics(connection)
    assert (found.accounts, found.topics) == ([account("alice")], {"lobby": "tea"})


async def test_a_session_keeps_its_login(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    record = type(ALICE)(
        digest=ALICE.digest, client=7, name="alice", rooms=("den",), login="x alice"
    )
    async with running(SqliteJournal(path)) as journal:
        journal.save_session(record, connected=False)
        await journal.reserve_client_numbers(8)
    async with running(SqliteJournal(path)) as journal:
        assert await record_of(journal, ALICE.digest) == record


async def test_retention_keeps_accounts_and_topics(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write_accounts(path, "alice", topics={"den": "hush"})
    retention = Retention(max_messages=1, max_age_seconds=1, max_bytes=1 << 20)
    async with running(SqliteJournal(path, retention=retention)) as journal:
        for _ in range(40):
            await say(journal.room("den"), "x" * 64_000)
        await tidy(journal)
        assert journal.room("den").first > 0
    assert await stored(path) == (["alice"], {"den": "hush"})


async def test_a_backup_has_accounts_and_topics(tmp_path: Path) -> None:
    path, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    async with running(SqliteJournal(path)) as journal:
        await wait_stored(journal.save_account("alice", account("alice")))
        await wait_stored(journal.save_topic("lobby", "tea"))
        back_up(path, backup)
        await wait_stored(journal.save_account("alice", None))
    assert await stored(backup) == (["alice"], {"lobby": "tea"})
    assert await stored(path) == ([], {"lobby": "tea"})


async def test_the_passphrases_hash_is_in_no_representation() -> None:
    assert HASH not in repr(account("alice"))


async def test_a_reader_finds_no_accounts_in_a_file_of_an_earlier_version(tmp_path: Path) -> None:
    path = old_journal(tmp_path / "chat.db", version=len(MIGRATIONS) - 1)
    assert await stored(path) == ([], {})


# --- Damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_", ["", "plain text", "$argon2id$a\x00b", 7, b"\xff", "x" * 99_999])
async def test_a_damaged_passphrase_leaves_its_name_reserved(
    hash_: object, tmp_path: Path, log: LogRecorder
) -> None:
    path = tmp_path / "chat.db"
    await write_accounts(path, "Alice", "bob")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE accounts SET hash = ? WHERE name = 'alice'", (hash_,))
    async with running(SqliteJournal(path)) as journal:
        assert {each.name: each.hash for each in journal.accounts} == {"Alice": "", "bob": HASH}
    assert any("1 account without a readable passphrase: " in line for line in log.lines)


@pytest.mark.parametrize(
    ("shown", "name"),
    [("Bob", "alice"), (b"\xff", "alice"), (7, "alice"), ("ALICE\x1b[2J", "alice")],
)
async def test_an_account_whose_shown_name_is_damaged_has_its_folded_name(
    shown: object, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "chat.db"
    await write_accounts(path, "Alice")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE accounts SET shown = ?", (shown,))
    assert await stored(path) == ([name], {})


@pytest.mark.parametrize("name", [b"\xff", 7, "Client 7", "", "a\x1b[2J", "x" * 99_999])
async def test_invalid_rows_of_accounts_are_skipped(
    name: object, tmp_path: Path, log: LogRecorder
) -> None:
    path = tmp_path / "chat.db"
    await write_accounts(path, "alice", "bob", topics={"lobby": "tea", "den": "hush"})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE accounts SET name = ?, shown = 'x' WHERE id = 1", (name,))
        connection.execute("UPDATE topics SET topic = ? WHERE room = 'den'", (b"\xff",))
    assert await stored(path) == (["bob"], {"lobby": "tea"})
    assert any("accounts cannot be read in 1 place" in line for line in log.lines)
    assert any("topics of rooms cannot be read in 1 place" in line for line in log.lines)


async def test_messages_are_stored_even_if_accounts_are_damaged(
    tmp_path: Path, log: LogRecorder
) -> None:
    path = tmp_path / "chat.db"
    await write_accounts(path, "alice", topics={"lobby": "tea"})
    for table in ("accounts", "topics"):
        damage_table(path, table)
    async with running(SqliteJournal(path)) as journal:
        assert (journal.accounts, journal.topics) == ([], {})
        writes = journal.save_account("bob", account("bob")), journal.save_topic("den", "hush")
        await say(journal.room("lobby"), "hello")
        for write in writes:
            with pytest.raises(StorageFailed):
                await wait_stored(write)
    assert any("accounts cannot be written" in line for line in log.lines)
    assert any("topics cannot be written" in line for line in log.lines)
