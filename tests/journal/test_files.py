"""The files of a journal: created, copied, renamed, linked, locked and damaged by others.

Real processes, real SQLite.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from logging import ERROR
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from multichat.errors import JournalFailed, NotRead, StorageFailed
from multichat.journal.sqlite.file import open_file
from multichat.journal.sqlite.file_lock import FileLock, is_locked
from multichat.journal.sqlite.journal import Durability, Retention, SqliteJournal, SqliteLimits
from multichat.journal.sqlite.reader import open_reader
from multichat.journal.sqlite.schema import MIGRATIONS
from multichat.server.config import ReplayLimits, ServerConfig
from multichat.testing import memory_server
from tests.support.disks import file_size_limit
from tests.support.journal_files import dump, reader_refusal, refusal, save, wal_of
from tests.support.journals import (
    all_texts,
    back_up,
    encode,
    running,
    say,
    texts_of,
    tidy,
    wait_stored,
    write,
)
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK, MULTICHAT, Command, serve
from tests.support.speaker import speaking

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]

WRITTEN_BY_OTHERS = [
    *(f"PRAGMA wal_checkpoint({mode})" for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE")),
    "VACUUM",
]

linux = pytest.mark.skipif(sys.platform != "linux", reason="what is tested is Linux's")


# --- Killed while the file is made ----------------------------------------------------------------


@linux
async def test_a_server_killed_at_any_system_call_can_start_again_and_has_lost_nothing(
    tmp_path: Path,
) -> None:
    """Also while it makes the file, makes a checkpoint, or closes it."""
    folder = tmp_path / "killed"
    folder.mkdir()
    argv = [sys.executable, "-m", "tests.support.system_calls", str(folder)]
    done = await trio.run_process(argv, check=False, capture_stderr=True, cwd=ROOT)
    if done.returncode == 77:
        pytest.skip("processes cannot be traced here")
    assert done.returncode == 0, done.stderr
    states = sorted(folder.iterdir(), key=lambda each: int(each.name))
    assert len(states) > 50
    half_made = sessions = 0
    for state in states:
        path = state / "chat.db"
        half_made += path.exists() and Path(f"{path}-journal").exists()
        try:
            with open_reader(path) as reader:
                assert list(reader.read()) == []
        except JournalFailed as failure:
            assert "\n" not in str(failure)  # noqa: PT017
        async with running(SqliteJournal(path, durability=Durability.NORMAL)) as journal:
            with closing(sqlite3.connect(path)) as reader:
                [kept] = reader.execute("SELECT count(*) FROM sessions").fetchone()
            assert kept in (sessions, sessions + 1)
            sessions = kept
            room = journal.room("lobby")
            await say(room, "one")
            assert await texts_of(room, 0, room.next) == ["one"]
    assert half_made
    assert sessions == 4


# --- A WAL and a file that do not belong together -------------------------------------------------


async def test_a_backup_copied_over_the_journal_of_a_killed_server_is_noticed(
    tmp_path: Path,
) -> None:
    (tmp_path / "server").mkdir()
    path = tmp_path / "server" / "chat.db"
    await write(path, "the first server")
    backups = [tmp_path / "0.db"]
    shutil.copy(path, backups[0])
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        killed: list[Path] = []
        for n in range(1, 6):
            for i in range(40):
                await say(room, f"{n}.{i} " + "x" * 5000)
            backups.append(tmp_path / f"{n}.db")
            back_up(path, backups[-1])
            await say(room, f"after the backup {n}")
            killed.append(save(path, tmp_path / f"killed-{n}"))
            async with journal._writing:
                await trio.to_thread.run_sync(journal._rows.checkpoint)
            await say(room, f"after the checkpoint {n}")
        told = await texts_of(room, 0, room.next)
    for n, crashed in enumerate(killed, 1):
        for backup in backups[: n + 1]:
            copy = tmp_path / f"{crashed.parent.name}-with-{backup.name}" / "chat.db"
            shutil.copytree(crashed.parent, copy.parent)
            shutil.copy(backup, copy)
            expected = (
                "chat.db-wal does not belong to this file, as after a backup was copied over it, a "
                "start under another name of the file, or a change by another program; to continue "
                "with this file, move chat.db-wal and chat.db-shm away, or put the other file back"
            )
            assert await refusal(copy) == expected
            assert reader_refusal(copy) == expected
            for suffix in ("-wal", "-shm"):
                Path(f"{copy}{suffix}").unlink(missing_ok=True)
            with closing(sqlite3.connect(backup)) as connection:
                [count] = connection.execute("SELECT sum(messages) FROM runs").fetchone()
            assert await all_texts(copy) == told[:count]
        texts = await all_texts(crashed)  # nothing was copied over this one
        assert texts == told[: len(texts)]
        assert texts[-1] == f"after the backup {n}"


async def test_a_killed_server_starts_again_wherever_it_was_in_a_checkpoint(
    tmp_path: Path,
) -> None:
    """Also with readers in the way, and after several kills."""
    path = tmp_path / "chat.db"
    readers: list[sqlite3.Connection] = []
    number = 0
    with closing(sqlite3.connect(":memory:")):
        async with running(SqliteJournal(path)) as journal:
            room = journal.room("lobby")
            for step in range(12):
                for _ in range(30):
                    await say(room, f"{number} " + "x" * 3000)
                    number += 1
                if step % 3 == 1:
                    readers.append(sqlite3.connect(path, isolation_level=None))
                    readers[-1].execute("BEGIN")
                    readers[-1].execute("SELECT count(*) FROM runs").fetchone()
                if step % 4 == 3:
                    readers.pop().close()
                async with journal._writing:
                    await trio.to_thread.run_sync(journal._rows.checkpoint)
                if step % 5 == 2:  # so does another program
                    await say(room, f"{number} x")
                    number += 1
                    with closing(sqlite3.connect(path)) as other:
                        other.execute("PRAGMA wal_checkpoint")
                if step % 2:
                    await say(room, f"{number} x")
                    number += 1
                copy = save(path, tmp_path / f"killed-{step}")
                for _ in range(2):
                    assert [t.split()[0] for t in await all_texts(copy)] == [
                        str(n) for n in range(number)
                    ]
            for reader in readers:
                reader.close()


async def test_a_backup_is_refused_or_changes_nothing_whenever_it_was_made(tmp_path: Path) -> None:
    """Any backup with the `-wal` of any later kill, and other programs: nothing is ever mixed.

    A backup that was made after the last message may not be detected; then the start continues with
    the killed server's files.
    """
    rng = Random(1)
    path = tmp_path / "chat.db"
    backups: list[Path] = []
    killed: list[tuple[Path, int]] = []
    retention = Retention(max_messages=500)
    async with running(SqliteJournal(path, retention=retention)) as journal:
        journal._rows.long_wal_bytes = 512 * 1024
        rooms = [journal.room(name) for name in "abcdef"]
        for _ in range(150):
            for _ in range(rng.randrange(1, 60)):
                room = rng.choice(rooms)
                pending = room.append(encode(room, "x" * rng.randrange(20, 900)))
            await wait_stored(pending)
            if rng.random() < 0.5:
                await journal._tidy()
            if rng.random() < 0.12:
                backups.append(tmp_path / f"{len(backups)}.db")
                back_up(path, backups[-1])
            if rng.random() < 0.2:
                with closing(sqlite3.connect(path, isolation_level=None)) as other:
                    other.execute(rng.choice(WRITTEN_BY_OTHERS)).fetchall()
            if rng.random() < 0.12:
                killed.append((save(path, tmp_path / f"killed-{len(killed)}"), len(backups)))
    refused = 0
    copy = tmp_path / "copy" / "chat.db"
    for crashed, count in killed:
        shutil.copytree(crashed.parent, copy.parent, dirs_exist_ok=True)
        expected = dump(copy)
        for backup in backups[:count]:
            shutil.rmtree(copy.parent, ignore_errors=True)
            copy.parent.mkdir()
            shutil.copy(wal_of(crashed), wal_of(copy))
            shutil.copy(backup, copy)
            try:
                opened = open_file(copy, durable=False)
            except JournalFailed as failure:
                assert "does not belong to this file" in str(failure)  # noqa: PT017
                refused += 1
            else:
                opened.close()
                assert dump(copy) == expected
    assert refused > 50


async def test_a_backup_is_detected_even_if_messages_cannot_be_read_with_the_wal(
    tmp_path: Path,
) -> None:
    """As when the last thing that the killed server did was to delete old ones."""
    path, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    limits = SqliteLimits(tidy_seconds=1e6)
    retention = Retention(max_messages=50)
    async with running(SqliteJournal(path, retention=retention, limits=limits)) as journal:
        room = journal.room("lobby")
        await say(room, "one")
        back_up(path, backup)
        for n in range(100):
            await say(room, f"{n} " + "x" * 3000)
        async with journal._writing:
            await trio.to_thread.run_sync(journal._rows.checkpoint)
        await journal._tidy()
        crashed = save(path, tmp_path / "killed")
    shutil.copy(backup, crashed)
    assert "does not belong to this file" in await refusal(crashed)


async def test_a_backup_with_different_pages_is_detected_at_any_time(tmp_path: Path) -> None:
    """As `VACUUM INTO` makes it: also if it was made since the `-wal` began."""
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        for n in range(20):
            await say(room, f"{n} " + "x" * 3000)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
        crashed = save(path, tmp_path / "killed")
    shutil.copy(tmp_path / "copy.db", crashed)
    assert "does not belong to this file" in await refusal(crashed)


async def test_no_checkpoint_is_made_without_a_seal(tmp_path: Path) -> None:
    """As on a full disk: an earlier backup could not be distinguished from the file."""
    path, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    async with running(SqliteJournal(path, durability=Durability.NORMAL)) as journal:
        room, rows = journal.room("lobby"), journal._rows
        await say(room, *["one " + "x" * 500] * 50)
        back_up(path, backup)
        await say(room, *["two " + "x" * 500] * 50)
        before = path.read_bytes()
        async with journal._writing:
            with file_size_limit(wal_of(path).stat().st_size):
                rows.checkpoint()
        assert path.read_bytes() == before
        async with journal._writing:
            rows.checkpoint()
        assert path.read_bytes() != before
        await say(room, "three")
        crashed = save(path, tmp_path / "killed")
    shutil.copy(backup, crashed)
    assert "does not belong to this file" in await refusal(crashed)


async def test_messages_are_stored_even_if_the_stamps_are_damaged(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.db"
    await write(path, "one")
    with closing(sqlite3.connect(path)) as connection:
        [size] = connection.execute("PRAGMA page_size").fetchone()
        [page] = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'stamps'"
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    async with running(SqliteJournal(path, durability=Durability.NORMAL)) as journal:
        room = journal.room("lobby")
        journal._rows.long_wal_bytes = 128 * 1024
        for _ in range(50):
            await say(room, "x" * 10_000)
        assert wal_of(path).stat().st_size < 1024 * 1024
    assert len(await all_texts(path)) == 51


async def test_history_can_be_read_wherever_a_server_is_in_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        for n in range(30):
            await say(room, f"{n} " + "x" * 300)
        async with journal._writing:
            await trio.to_thread.run_sync(journal._rows.checkpoint)
        await say(room, "the last")
        killed = save(path, tmp_path / "killed")
        before, wal = killed.read_bytes(), wal_of(killed).read_bytes()
    with closing(sqlite3.connect(killed)) as connection:
        connection.execute("PRAGMA wal_checkpoint")
        after = killed.read_bytes()
    size = 4096
    assert len(after) % size == 0
    lock = FileLock(killed, killed)
    with closing(lock):
        for n in range(0, len(after) + size, size):
            for suffix in ("-wal", "-shm"):
                Path(f"{killed}{suffix}").unlink(missing_ok=True)
            wal_of(killed).write_bytes(wal)
            killed.write_bytes(after[:n] + before[n:])
            with open_reader(killed) as reader:
                assert len(list(reader.read())) == 31


def test_a_reader_that_probes_the_lock_does_not_block_a_server(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    FileLock(path, path).close()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            is_locked(path)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(100):
            with closing(FileLock(path, path)):
                assert is_locked(path)
            assert not is_locked(path)
    finally:
        over.set()
        thread.join()


# --- Moved, deleted or replaced -------------------------------------------------------------------


MOVED = "was renamed, deleted or replaced; put it back, or stop the server and restore a backup"
NOT_IN_PLACE = "messages cannot be stored now: the server cannot store messages"


@linux
async def test_a_journal_that_is_renamed_and_put_back_while_the_server_runs(
    tmp_path: Path,
) -> None:
    path, elsewhere = tmp_path / "chat.db", tmp_path / "elsewhere.db"
    async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as one:
        assert await one.say("one") == "accepted"
        path.rename(elsewhere)
        await server.wait_for(f"The journal cannot store messages: {path} {MOVED}")  # without one
        for type_ in ("say", "act"):
            answer = await one.say("two", type_)
            assert NOT_IN_PLACE in answer
            assert "storage-failed" in answer
            assert str(tmp_path) not in answer
        elsewhere.rename(path)
        await server.wait_for("The files of the journal are in place again")
        assert server.out.count("The journal cannot store messages") == 1
        assert server.out.count("are in place again") == 1
        assert await one.say("three") == "accepted"
        server.signal(signal.SIGTERM)
        await server.wait()
    assert await all_texts(path) == ["one", "three"]


async def test_the_files_are_watched_in_a_thread(tmp_path: Path) -> None:
    """A file system that hangs does not stop the server."""
    limits = SqliteLimits(watch_seconds=0.01, watch_again_seconds=0.0)
    threads: list[bool] = []
    watched = trio.Event()
    async with running(SqliteJournal(tmp_path / "chat.db", limits=limits)) as journal:
        lock = journal._lock
        token = trio.lowlevel.current_trio_token()

        class Recorder:
            close, lasting_fault = lock.close, ""

            def fault(self, *, may_be_shorter: bool, wal_alone: bool) -> str:
                is_thread = threading.current_thread() is not threading.main_thread()
                threads.append(is_thread)
                if len(threads) >= 10:
                    token.run_sync_soon(watched.set)
                return str(lock.fault(may_be_shorter=may_be_shorter, wal_alone=wal_alone))

        journal._lock = Recorder()
        await say(journal.room("lobby"), "hello")
        with trio.fail_after(60):
            await watched.wait()
    assert all(threads)


@linux
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
async def test_a_start_without_the_file_of_a_wal_is_refused_and_loses_nothing(
    end: signal.Signals, tmp_path: Path
) -> None:
    path, elsewhere = tmp_path / "chat.db", tmp_path / "elsewhere.db"
    async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as one:
        assert await one.say("one") == "accepted"
        path.rename(elsewhere)
        server.signal(end)
        await server.wait()
    reason = (
        f"the file is missing, but {path}-wal has messages of it; put the file back, or move "
        "the -wal away to start a new journal"
    )
    assert await refusal(path) == reason
    assert reader_refusal(path) == reason
    path.touch()
    assert await refusal(path) == reason.replace("missing", "empty")
    elsewhere.rename(path)
    assert await all_texts(path) == ["one"]


@linux
@pytest.mark.parametrize("what", ["deleted", "replaced", "overwritten folder", "its -wal"])
async def test_messages_are_refused_when_the_files_of_the_journal_are_gone(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, and the log says once what to do."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "chat.db"
    limits = SqliteLimits(retry_seconds=1e6, watch_again_seconds=0)  # it does not wait for that
    async with running(SqliteJournal(path, limits=limits)) as journal:
        room = journal.room("lobby")
        await say(room, "one")
        match what:
            case "deleted":
                path.unlink()
            case "replaced":
                back_up(path, tmp_path / "copy.db")
                (tmp_path / "copy.db").rename(path)
            case "its -wal":
                wal_of(path).unlink()
            case _:
                (tmp_path / "folder").rename(tmp_path / "other")
                (tmp_path / "folder").mkdir()
        with trio.fail_after(60), pytest.raises(StorageFailed, match=NOT_IN_PLACE):
            await wait_stored(room.append(encode(room, "two")))
        assert room.next == 1
    [line] = [record.getMessage() for record in caplog.records if record.levelno == ERROR]
    advice = "SIGTERM, which saves what was in it" if what == "its -wal" else MOVED
    assert advice in line
    if what == "its -wal":
        assert await all_texts(path) == ["one"]


@pytest.mark.parametrize("lost", ["deleted", "not copied"])
async def test_a_start_without_the_wal_of_a_killed_server_says_that_messages_may_be_missing(
    lost: str, tmp_path: Path
) -> None:
    path = tmp_path / "chat.db"
    async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as one:
        assert await one.say("one") == "accepted"
        server.process.kill()
        await server.wait()
    found = path
    if lost == "deleted":
        wal_of(path).unlink()
    else:
        found = tmp_path / "other.db"
        shutil.copy(path, found)
    async with serve(tmp_path, "--journal", str(found)) as server:
        await server.wait_for(f"{found}-wal is not there: messages that were in it are missing")
        server.signal(signal.SIGTERM)
        await server.wait()
    for _ in range(2):  # logged once; and a server that ended in order has lost nothing
        async with serve(tmp_path, "--journal", str(found)) as server:
            assert "is not there" not in server.out
            server.signal(signal.SIGTERM)
            await server.wait()


async def test_a_client_is_admitted_eventually_while_another_program_holds_the_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its number cannot be stored; the log says once what to do."""
    path = tmp_path / "chat.db"
    journal = SqliteJournal(path, limits=SqliteLimits(retry_seconds=0))
    async with memory_server(journal=journal) as network:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with trio.fail_after(60):
                for _ in range(2):
                    client = await network.join()
                    await client.send("/ping")
                    while await client.line() != "[Server] pong":
                        pass
    [line] = [record.getMessage() for record in caplog.records if record.levelno == ERROR]
    assert "another program is using it; end that program; the server needs no restart" in line


# --- Other programs that write -------------------------------------------------------------------


@pytest.mark.parametrize("sql", WRITTEN_BY_OTHERS)
async def test_a_checkpoint_or_vacuum_of_another_program_beside_a_server_loses_nothing(
    sql: str, tmp_path: Path
) -> None:
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        for n in range(3):
            await say(room, f"{n}")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute(sql).fetchall()
            await say(room, f"{n} again")
            killed = save(path, tmp_path / f"killed-{n}")
            assert await all_texts(killed) == await texts_of(room, 0, room.next)
    assert len(await all_texts(path)) == 6


@pytest.mark.parametrize("sql", WRITTEN_BY_OTHERS)
async def test_a_checkpoint_or_vacuum_of_the_file_of_a_killed_server_loses_nothing(
    sql: str, tmp_path: Path
) -> None:
    """The next server starts, although it cannot know why the `-wal` is missing."""
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        await say(journal.room("lobby"), "one")
        killed = save(path, tmp_path / "killed")
    with closing(sqlite3.connect(killed, isolation_level=None)) as other:
        other.execute(sql).fetchall()
    assert not wal_of(killed).exists()
    assert await all_texts(killed) == ["one"]


# --- Two names of one file ------------------------------------------------------------------------


@contextmanager
def bound(path: Path, other: Path) -> Iterator[None]:
    """Mount *path* as *other*, too; the test is skipped where that is not allowed."""
    other.touch()
    argv = ["mount", "--bind", str(path), str(other)]
    if shutil.which("mount") is None or subprocess.run(argv, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(other)], check=True)


async def serve_refused(folder: Path, path: Path) -> str:
    """Start a server, which is refused; return its one line."""
    argv = (MULTICHAT, "serve", "0", "--host", LOOPBACK, "--journal", str(path))
    async with Command(folder, *argv) as command:
        assert await command.wait() == 1
        [line] = command.err.splitlines()
    return line


@linux
@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "bind mount"])
async def test_one_file_has_one_server_whatever_its_names(kind: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path, other = tmp_path / "chat.db", tmp_path / "other" / "name.db"
    await write(path, "one")
    with bound(path, other) if kind == "bind mount" else nullcontext():
        if kind == "hard link":
            os.link(path, other)
        elif kind == "symbolic link":
            other.symlink_to(path)
        async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as one:
            assert "another server is using it" in await serve_refused(tmp_path, other)
            assert await one.say("two") == "accepted"
            server.signal(signal.SIGTERM)
            await server.wait()
        async with serve(tmp_path, "--journal", str(other)) as server, speaking(server) as one:
            assert "another server is using it" in await serve_refused(tmp_path, path)
            assert await one.say("three") == "accepted"
            server.signal(signal.SIGTERM)
            await server.wait()
        assert await all_texts(path) == ["one", "two", "three"]


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_a_file_is_refused_while_its_wal_is_beside_another_name(
    checkpoint: bool, tmp_path: Path
) -> None:
    """As after a kill; nothing is lost, and both names work when the server has ended in order."""
    (tmp_path / "other").mkdir()
    path, other = tmp_path / "chat.db", tmp_path / "other" / "name.db"
    async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as one:
        assert await one.say("one") == "accepted"
        os.link(path, other)
        assert "name.db-wal is missing or empty" in reader_refusal(other)
        if checkpoint:  # by another program, after which the last message is in the -wal alone
            with closing(sqlite3.connect(path)) as program:
                program.execute("PRAGMA wal_checkpoint")
            assert await one.say("two") == "accepted"
        server.process.kill()
        await server.wait()
    reason = (
        "the file has hard links, and name.db-wal is missing or empty: use the name whose -wal is "
        "not empty; if there is none, or to continue without the messages in that -wal, replace "
        "this file by a copy"
    )
    assert await refusal(other) == reader_refusal(other) == reason
    assert reason in await serve_refused(tmp_path, other)
    texts = ["one", "two"] if checkpoint else ["one"]
    for name in (path, other, path):
        assert await all_texts(name) == texts


async def test_a_reader_at_the_start_does_not_hide_that_a_wal_is_missing_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chat.db"
    await write(path, "one")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM runs").fetchone()
        async with running(SqliteJournal(path)) as journal:
            await say(journal.room("lobby"), "two")
            reader.execute("ROLLBACK")
            await tidy(journal)
            await say(journal.room("lobby"), "three")
            killed = save(path, tmp_path / "killed")
    wal_of(killed).unlink()
    assert await all_texts(killed) == ["one", "two"]
    assert "chat.db-wal is not there" in caplog.text


@linux
@pytest.mark.parametrize("kind", ["symbolic link", "bind mount"])
async def test_after_a_kill_no_message_is_lost_by_a_start_under_another_name(
    kind: str, tmp_path: Path
) -> None:
    """A bind mount is not noticed, but in the log; then the advice is to keep the `-wal`."""
    (tmp_path / "other").mkdir()
    path, other = tmp_path / "chat.db", tmp_path / "other" / "name.db"
    await write(path, "one")
    if kind == "symbolic link":
        other.symlink_to(path)
    with bound(path, other) if kind == "bind mount" else nullcontext():
        async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as one:
            assert await one.say("two") == "accepted"
            server.process.kill()
            await server.wait()
        killed = save(path, tmp_path / "killed")
        async with serve(tmp_path, "--journal", str(other)) as server, speaking(server) as one:
            assert await one.say("three") == "accepted"
            assert (f"{other}-wal is not there" in server.out) == (kind == "bind mount")
            server.signal(signal.SIGTERM)
            await server.wait()
    if kind == "symbolic link":
        assert await all_texts(path) == ["one", "two", "three"]
        return
    reason = await refusal(path)
    assert "a start under another name of the file" in reason
    assert wal_of(path).read_bytes() == wal_of(killed).read_bytes()
    wal_of(path).rename(tmp_path / "away")
    assert await all_texts(path) == ["one", "three"]
    assert await all_texts(killed) == ["one", "two"]


async def test_a_copy_under_another_name_starts_without_its_wal(tmp_path: Path) -> None:
    path, other = tmp_path / "chat.db", tmp_path / "other.db"
    await write(path, "one")
    async with running(SqliteJournal(path)) as journal:
        await say(journal.room("lobby"), "two")
        killed = save(path, tmp_path / "killed")
    os.link(killed, other)
    assert "replace this file by a copy" in await refusal(other)
    shutil.copy(other, tmp_path / "copy.db")
    (tmp_path / "copy.db").rename(other)
    assert await all_texts(other) == ["one"]
    assert await all_texts(killed) == ["one", "two"]


@pytest.mark.parametrize("what", ["damaged page", "damaged stamp", "version 1"])
async def test_a_linked_file_that_may_have_a_wal_is_refused_without_it(
    what: str, tmp_path: Path
) -> None:
    path, other = tmp_path / "chat.db", tmp_path / "other.db"
    if what == "version 1":
        opened = open_file(path, durable=False, migrations=MIGRATIONS[:1])
        opened.close()
    else:
        await write(path, "one")
        with closing(sqlite3.connect(path)) as connection:
            [page] = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'stamps'"
            ).fetchone()
            connection.execute("UPDATE stamps SET sealed = 'x'")
            connection.commit()
        if what == "damaged page":
            with path.open("r+b") as file:
                file.seek((page - 1) * 4096)
                file.write(b"\xff" * 4096)
    os.link(path, other)
    reason = await refusal(other)
    assert "use the name whose -wal is not empty; if there is none" in reason
    assert reason.endswith("replace this file by a copy")
    assert await refusal(path) == reason.replace("other.db-wal", "chat.db-wal")
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").rename(other)
    await all_texts(other)


async def test_a_copy_of_a_linked_wal_has_its_messages(tmp_path: Path) -> None:
    """As after a copy of the folder that consists of hard links."""
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        await say(journal.room("lobby"), "one")
        killed = save(path, tmp_path / "killed")
    linked = tmp_path / "linked" / "chat.db"
    shutil.copytree(killed.parent, linked.parent, copy_function=os.link)
    assert "replace it by a copy" in await refusal(killed)
    shutil.copy(wal_of(killed), tmp_path / "copy")
    (tmp_path / "copy").rename(wal_of(killed))
    before = wal_of(linked).read_bytes()
    assert await all_texts(killed) == ["one"]
    assert wal_of(linked).read_bytes() == before


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("kind", ["hard link", "symbolic link", "link to nothing"])
async def test_no_file_is_overwritten_that_is_linked_beside_the_journal(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    """SQLite would overwrite the other file."""
    (tmp_path / "server").mkdir()
    path, other = tmp_path / "server" / "chat.db", tmp_path / "other"
    await write(path, "one")
    link = Path(f"{path}{suffix}")
    if kind == "link to nothing":
        link.symlink_to(other)
    else:
        other.write_bytes(b"somebody's" * 10_000)
        link.symlink_to(other) if kind == "symbolic link" else os.link(other, link)
    advice = "move it away" if kind == "link to nothing" else "replace it by a copy"
    reason = f"{link}: a link to another file, which SQLite overwrites; {advice}"
    assert await refusal(path) == reason
    assert not other.exists() or other.read_bytes() == b"somebody's" * 10_000
    link.unlink()
    assert await all_texts(path) == ["one"]


# --- Locked by another program --------------------------------------------------------------------


async def test_a_start_waits_for_a_program_that_has_locked_the_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    await write(path, "one")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("BEGIN EXCLUSIVE")
        reason = await refusal(path, SqliteLimits(retry_seconds=0))
        assert reason == "another program has locked it; end that program, and start again"
        started = trio.Event()

        async def start() -> None:
            async with running(SqliteJournal(path, limits=SqliteLimits(retry_seconds=60))):
                started.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await trio.sleep(1.5)  # longer than a start used to wait
            assert not started.is_set()
            other.execute("ROLLBACK")
    assert started.is_set()
    assert await all_texts(path) == ["one"]


REFUSED = [
    ({"type": "say", "text": "x"}, "messages cannot be stored now: another program is using it"),
    ({"type": "act", "text": "x"}, "messages cannot be stored now: another program is using it"),
    ({"type": "history"}, "the history cannot be read: Cannot operate on a closed database."),
]


@pytest.mark.parametrize(("request_", "told"), REFUSED, ids=["say", "act", "history"])
async def test_failed_writes_are_logged_with_their_reason(
    request_: dict[str, str], told: str, tmp_path: Path, log: LogRecorder
) -> None:
    """Once, however often it is requested, and with advice for the operator, where there is any."""
    path = tmp_path / "chat.db"
    config = ServerConfig(replay=ReplayLimits(ring_bytes=0))
    journal = SqliteJournal(path, limits=SqliteLimits(retry_seconds=0))
    async with memory_server(config, journal=journal) as network:
        client = await network.join()
        await client.send("/json")
        assert json.loads(await client.line())["type"] == "welcome"
        for text in "12345":  # more than are always in memory
            await client.send(json.dumps({"type": "say", "text": text, "nonce": text}))
            assert json.loads(await client.line())["type"] == "accepted"
        log.lines.clear()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with journal._reading:
                journal._reader.close()
            for nonce in range(3):
                await client.send(json.dumps({**request_, "nonce": nonce}))
                answer = json.loads(await client.line())
                assert (answer["code"], answer["text"]) == ("storage-failed", told)
            other.execute("ROLLBACK")
    [line] = [line for line in log.lines if "cannot be read" in line or "cannot store" in line]
    if request_["type"] != "history":
        expected = "another program is using it; end that program; the server needs no restart"
        assert line.endswith(f"The journal cannot store messages: {expected}")


async def test_the_same_failure_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For any failing write or read, however often."""
    path = tmp_path / "chat.db"
    limits = SqliteLimits(retry_seconds=0)
    async with running(SqliteJournal(path, limits=limits)) as journal:
        room = journal.room("lobby")
        await say(room, "one")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(3):
                with pytest.raises(StorageFailed):
                    await say(room, "two")
            other.execute("ROLLBACK")
        await say(room, "two")
        async with journal._reading:
            journal._reader.close()
        for _ in range(3):
            with pytest.raises(NotRead):
                await room.read(0, 1, max_bytes=1)
    errors = [record.getMessage() for record in caplog.records if record.levelno == ERROR]
    text = "another program is using it; end that program; the server needs no restart"
    assert errors[0].endswith(f"The journal cannot store messages: {text}")
    assert "The history cannot be read: " in errors[1]
    assert len(errors) == 2


def test_a_start_waits_for_a_lock_as_long_as_a_running_server() -> None:
    assert SqliteLimits().retry_seconds == 3.0
