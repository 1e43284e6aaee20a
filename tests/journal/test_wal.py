"""The write-ahead log of a journal: damaged, truncated, or used by other programs."""

import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from functools import partial
from logging import WARNING
from pathlib import Path

import pytest
import trio

from multichat.cli.history import show_history
from multichat.errors import JournalFailed, StorageFailed
from multichat.journal.sqlite.journal import Durability, SqliteJournal, SqliteLimits
from multichat.journal.sqlite.reader import open_reader
from tests.support.journal_files import dump, refusal, save, wal_of
from tests.support.journals import (
    ALICE,
    all_texts,
    back_up,
    encode,
    running,
    say,
    texts_of,
    wait_stored,
)
from tests.support.processes import Command, serve
from tests.support.speaker import speaking

pytestmark = pytest.mark.process

MIB = 1024 * 1024


async def run_elsewhere(path: Path, sql: str, *, timeout: float = 0.1) -> None:
    """Execute *sql* in another process; it waits *timeout* seconds for locks."""
    program = "import sqlite3, sys; _, path, sql, timeout = sys.argv; "
    program += "sqlite3.connect(path, timeout=float(timeout)).execute(sql)"
    await trio.run_process([sys.executable, "-c", program, str(path), sql, str(timeout)])


async def wait_until_locked(path: Path) -> None:
    """Wait until another program has the write lock; SQLite does not notify, so this polls."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return
            await trio.sleep(0.01)


# --- Checkpoints of other programs ----------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        *(f"PRAGMA wal_checkpoint({mode})" for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE")),
        "VACUUM",
    ],
)
async def test_a_backup_is_detected_even_if_another_program_made_a_checkpoint_since(
    sql: str, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    path, backup = tmp_path / "server" / "chat.db", tmp_path / "backup.db"
    async with running(SqliteJournal(path, durability=Durability.NORMAL)) as journal:
        room = journal.room("lobby")
        for n in range(50):
            await say(room, f"early {n} " + "x" * 300)
        back_up(path, backup)
        for n in range(50):
            await say(room, f"late {n} " + "x" * 300)
        for _ in range(2):
            await run_elsewhere(path, sql)
        journal.save_session(ALICE, connected=True)  # a transaction without a message
        await journal.reserve_client_numbers(9)
        only_sessions = save(path, tmp_path / "only sessions")
        await say(room, "the last")
        killed = save(path, tmp_path / "killed")
        told = await texts_of(room, 0, room.next)
    for crashed, texts in ((only_sessions, told[:-1]), (killed, told)):
        assert await all_texts(save(crashed, tmp_path / f"{crashed.parent.name} alone")) == texts
        for later in (crashed, wal_of(crashed)):
            shutil.copy(backup, crashed)
            os.utime(later)
            assert "does not belong to this file" in await refusal(crashed)


async def test_the_stamp_in_the_file_is_a_seal_after_any_checkpoint(tmp_path: Path) -> None:
    """Also while a reader holds a transaction during the checkpoint."""
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            for is_held in (False, True, False):
                await say(room, "before the checkpoint")
                if is_held:
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM runs").fetchone()
                await say(room, "behind the reader")
                async with journal._writing:
                    await trio.to_thread.run_sync(journal._rows.checkpoint)
                if is_held:
                    reader.execute("ROLLBACK")
                await say(room, "after the checkpoint")
                for mode in ("PASSIVE", "TRUNCATE"):
                    await run_elsewhere(path, f"PRAGMA wal_checkpoint({mode})")
                # Copied here, it would release the locks of this process.
                alone = tmp_path / "alone.db"
                await trio.run_process(["cp", str(path), str(alone)])
                with closing(sqlite3.connect(alone)) as connection:
                    stamps = connection.execute("SELECT sealed FROM stamps ORDER BY id").fetchall()
                assert stamps[-1] == (1,)


async def test_only_the_server_restarts_the_wal(tmp_path: Path) -> None:
    """It stays as short as it was: see docs/journal.md."""
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path, durability=Durability.NORMAL)) as journal:
        room = journal.room("lobby")
        longest = 0
        for n in range(60):
            for _ in range(10):
                pending = room.append(encode(room, "x" * 50_000))
            await wait_stored(pending)
            if n % 10 == 5:
                await run_elsewhere(path, "PRAGMA wal_checkpoint(TRUNCATE)")
            longest = max(longest, wal_of(path).stat().st_size)
        assert longest < 7 * MIB
        assert path.stat().st_size > 20 * MIB


# --- Damage ---------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno == WARNING]
    caplog.clear()
    return found


async def killed_journal(folder: Path, *, messages: int) -> Path:
    """Return the journal of a server that was killed after it stored that many messages."""
    path = folder / "chat.db"
    async with running(SqliteJournal(path, durability=Durability.NORMAL)) as journal:
        for n in range(messages):
            await say(journal.room("lobby"), f"{n}")
        return save(path, folder / "killed")


# In the header of the WAL: magic number, page size, salts, checksum.  In that of its first frame:
# page number, size of the file, salts, checksum.  In its page; further on.
PLACES = [0, 9, 17, 25, 33, 37, 41, 49, 32 + 24 + 100, 0.1, 0.5, 0.9, "zeros", "short"]


@pytest.mark.parametrize("place", PLACES)
async def test_a_start_reports_the_transactions_lost_in_a_damaged_wal(
    place: float | str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = await killed_journal(tmp_path, messages=30)
    data = bytearray(wal_of(path).read_bytes())
    match place:
        case "zeros":
            data = bytearray(len(data))
        case "short":
            del data[31:]
        case int():
            data[place] ^= 0x55
        case float():
            data[int(place * len(data))] ^= 0x55
    wal_of(path).write_bytes(data)
    caplog.clear()
    out = tmp_path / "out"
    with out.open("wb") as file, pytest.raises(JournalFailed, match="cannot be read in 1 place"):
        show_history(path, file.fileno())
    shown = out.read_text("utf-8").splitlines()
    assert wal_of(path).read_bytes() == data
    kept = await all_texts(path)
    assert kept == [f"{n}" for n in range(len(shown))]
    assert len(kept) < 30
    [line] = warnings(caplog)
    assert line.startswith(f"[STATE] {path}-wal is damaged, or the machine lost power: ")
    if isinstance(place, int | float) and place:
        assert int(line.split("lost power: ")[1].split()[0]) >= 30 - len(kept)
    else:
        assert "in it could not be read" in line
    assert await all_texts(path) == kept
    assert warnings(caplog) == []


async def test_an_unfinished_transaction_at_the_end_of_the_wal_is_not_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = await killed_journal(tmp_path, messages=10)
    data = wal_of(path).read_bytes()
    caplog.clear()
    for cut in (1, 4096, 4119, 4120, 4121, 12_000):
        copy = save(path, tmp_path / f"cut-{cut}")
        wal_of(copy).write_bytes(data[:-cut])
        with open_reader(copy) as reader:
            list(reader.read())
            assert not reader.damaged
        assert len(await all_texts(copy)) >= 7
    assert warnings(caplog) == []


async def test_old_transactions_after_the_end_of_a_restarted_wal_are_not_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """These are from before a checkpoint, or were rolled back."""
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path, durability=Durability.NORMAL)) as journal:
        room, rows = journal.room("lobby"), journal._rows
        for n in range(30):
            await say(room, f"{n}")
        async with journal._writing:
            await trio.to_thread.run_sync(rows.checkpoint)
        copies = [save(path, tmp_path / "anew")]
        rows.connection.execute("PRAGMA cache_size=10")
        rows.connection.execute("BEGIN")
        for _ in range(30):
            rows.connection.execute("INSERT INTO stamps (stamp, sealed) VALUES (zeroblob(9999), 0)")
        copies.append(save(path, tmp_path / "spilled"))
        rows.connection.execute("ROLLBACK")
        await say(room, "30")
        copies.append(save(path, tmp_path / "rolled back"))
    caplog.clear()
    for copy in copies:
        assert len(await all_texts(copy)) in (30, 31)
    assert warnings(caplog) == []


@pytest.mark.parametrize("mode", ["FULL", "RESTART", "TRUNCATE"])
async def test_messages_are_stored_although_a_checkpoint_of_another_program_waits_for_the_server(
    mode: str, tmp_path: Path
) -> None:
    path = tmp_path / "chat.db"
    said = 0
    async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as one:
        for _ in range(3):
            assert await one.say(f"{(said := said + 1)}") == "accepted"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(run_elsewhere, path, f"PRAGMA wal_checkpoint({mode})", timeout=60)
                )
                await wait_until_locked(path)
                for _ in range(5):
                    assert await one.say(f"{(said := said + 1)}") == "accepted"
        assert "cannot store" not in server.out
        server.signal(signal.SIGKILL)
        await server.wait()
    assert await all_texts(path) == [f"{n + 1}" for n in range(said)]


@pytest.mark.parametrize("later", [0, 3])
async def test_a_killed_server_starts_after_another_program_copied_the_wal_and_reads_on(
    later: int, tmp_path: Path
) -> None:
    """A checkpoint and then a backup, which keeps the server's own checkpoint from copying."""
    path, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as one:
        assert await one.say("1") == "accepted"
        back_up(path, backup)
        assert await one.say("2") == "accepted"
        program = "import sqlite3, sys; program = sqlite3.connect(sys.argv[1], timeout=60);"
        program += "print(program.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone());"
        program += "program.execute('BEGIN'); program.execute('SELECT * FROM runs').fetchone();"
        program += "print('reading', flush=True); sys.stdin.read()"
        async with Command(tmp_path, sys.executable, "-c", program, str(path)) as reader:
            await wait_until_locked(path)
            said = 2
            while "reading" not in reader.out:
                assert await one.say(f"{(said := said + 1)}") == "accepted"
            for _ in range(later):
                assert await one.say(f"{(said := said + 1)}") == "accepted"
            server.signal(signal.SIGKILL)
            await server.wait()
            killed = save(path, tmp_path / "killed")
            copy = save(path, tmp_path / "with an older backup")
            shutil.copy(backup, copy)
            assert "chat.db-wal does not belong to this file" in await refusal(copy)
    assert await all_texts(killed) == [f"{n + 1}" for n in range(said)]


async def test_a_server_ends_in_order_although_a_checkpoint_of_another_program_waits_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chat.db"
    async with trio.open_nursery() as nursery, running(SqliteJournal(path)) as journal:
        await say(journal.room("lobby"), "one")
        nursery.start_soon(
            partial(run_elsewhere, path, "PRAGMA wal_checkpoint(TRUNCATE)", timeout=60)
        )
        await wait_until_locked(path)
    assert await all_texts(path) == ["one"]
    assert warnings(caplog) == []


async def test_a_refused_start_keeps_the_wal_of_a_killed_server(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path, durability=Durability.NORMAL)) as journal:
        room = journal.room("lobby")
        for n in range(200):
            pending = room.append(encode(room, f"{n} " + "x" * 500))
        await wait_stored(pending)
    async with running(SqliteJournal(path, durability=Durability.NORMAL)) as journal:
        await say(journal.room("attic"), "one")
        killed = save(path, tmp_path / "killed")
    with closing(sqlite3.connect(path)) as connection:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = 'runs'"
        [page] = connection.execute(sql).fetchone()
    data = bytearray(killed.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    killed.write_bytes(data)
    assert wal_of(killed).stat().st_size
    assert "the file is damaged; restore a backup" in await refusal(killed)


# --- Changed in place while a server runs ---------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    shutil.copy(path, f"{path}.copy")
    Path(f"{path}.copy").replace(path)


def rename(path: Path) -> None:
    path.rename(f"{path}.other")


CHANGES = [
    ("", truncate),
    ("-wal", truncate),
    ("-shm", truncate),
    ("-shm", rename),
    ("-shm", replace),
    ("-shm", Path.unlink),
]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a file cannot be changed")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
@pytest.mark.parametrize(
    ("suffix", "change"), CHANGES, ids=[f"{suffix} {each.__name__}" for suffix, each in CHANGES]
)
async def test_messages_are_refused_after_a_file_was_changed_in_place(
    suffix: str, change: object, end: signal.Signals, tmp_path: Path
) -> None:
    """The contents of the other files are not lost."""
    path = tmp_path / "chat.db"
    changed = Path(f"{path}{suffix}")
    async with running(SqliteJournal(path)) as journal:
        await say(journal.room("lobby"), "one")
    async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as one:
        assert await one.say("two") == "accepted"
        await trio.to_thread.run_sync(change, changed)  # type: ignore[arg-type]
        await server.wait_for(f"The journal cannot store messages: {changed} was ")  # without one
        assert "storage-failed" in await one.say("three")
        await one.say("before", "history")  # reading a truncated -shm would end the server
        if change is not truncate:  # there is another -shm then
            await run_elsewhere(path, "PRAGMA wal_checkpoint(TRUNCATE)")
            assert "storage-failed" in await one.say("four")
        advice = "restore a backup" if suffix == "" else "stop the server, and start it again"
        assert server.out.count("The journal cannot store messages") == 1
        assert advice in server.out
        server.signal(end)
        await server.wait()
    if suffix == "":
        assert "the file is empty" in await refusal(path)
        return
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        await say(room, "five")
        expected = ["one", "five"] if suffix == "-wal" else ["one", "two", "five"]
        assert await texts_of(room, 0, room.next) == expected
    dump(path)


async def test_a_truncated_wal_is_detected_before_the_next_message_makes_it_longer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.db"
    limits = SqliteLimits(watch_seconds=1e6, watch_again_seconds=1e6)
    journal = SqliteJournal(path, limits=limits, durability=Durability.NORMAL)
    async with running(journal):
        room = journal.room("lobby")
        await say(room, "one")
        await say(room, "two")
        os.truncate(wal_of(path), 0)
        pending = room.append(encode(room, "three"))
        with pytest.raises(StorageFailed, match="cannot store messages"):
            await wait_stored(pending)
    dump(path)
