"""A journal that cannot store anything says so, and its server is not ready."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from multichat.errors import StorageFailed
from multichat.journal.sqlite.journal import SqliteJournal, SqliteLimits
from tests.support.journals import encode, running, say, wait_stored
from tests.support.metrics import ask_metrics, metrics_port, scrape
from tests.support.processes import WAIT_SECONDS, serve

pytestmark = pytest.mark.process

FAULT = "the journal cannot store messages"


async def test_a_failure_is_a_fault_until_a_write_succeeds(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "chat.db", limits=SqliteLimits(retry_seconds=0.05))
    async with running(journal):
        room = journal.room("lobby")
        await say(room, "first")
        assert journal.fault == ""
        before = journal.commits
        assert before == journal._write_times.snapshot().count
        await fail_once(journal, tmp_path)
        assert journal.fault == FAULT
        assert journal._write_times.snapshot().count == before
        await say(room, "second")
        assert journal.fault == ""
        assert journal._write_times.snapshot().count == journal.commits > before


async def test_without_another_write_a_failure_is_forgotten(tmp_path: Path) -> None:
    """A server that is not ready gets no clients, and so nothing may be written."""
    limits = SqliteLimits(retry_seconds=0.05, fault_seconds=0.5)
    journal = SqliteJournal(tmp_path / "chat.db", limits=limits)
    async with running(journal):
        await fail_once(journal, tmp_path)
        assert journal.fault == FAULT
        with trio.fail_after(WAIT_SECONDS):
            while journal.fault:
                await trio.sleep(0.05)


async def fail_once(journal: SqliteJournal, folder: Path) -> None:
    """Have the journal fail to store a message, because another program has locked the file."""
    room = journal.room("lobby")
    with closing(sqlite3.connect(folder / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageFailed):
            await wait_stored(room.append(encode(room, "refused")))
        other.execute("ROLLBACK")


async def test_a_server_whose_journal_was_moved_is_not_ready_until_it_is_back(
    tmp_path: Path,
) -> None:
    path, away = tmp_path / "chat.db", tmp_path / "away.db"
    async with serve(tmp_path, "--journal", str(path), "--metrics", "0") as server:
        port = await metrics_port(server)
        assert (await ask_metrics(port, "/ready")).status == 200
        path.rename(away)
        with trio.fail_after(WAIT_SECONDS):
            while (answer := await ask_metrics(port, "/ready")).status == 200:
                await trio.sleep(0.05)
            assert (answer.status, answer.body) == (503, f"{FAULT}\n".encode())
            assert (await ask_metrics(port, "/live")).status == 200
            assert (await scrape(port))["multichat_ready"] == 0
            away.rename(path)
            while (await ask_metrics(port, "/ready")).status != 200:
                await trio.sleep(0.05)
