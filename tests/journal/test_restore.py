"""A journal that is restored from a backup: real servers, killed or ended, and SQLite's backups.

A client that has messages that the backup lacks gets an error, and never misses any silently.
"""

import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from logging import WARNING
from pathlib import Path

import pytest

from multichat.errors import StorageFailed
from multichat.journal.base import RoomJournal
from multichat.journal.sqlite.file import open_file
from multichat.journal.sqlite.journal import SqliteJournal, SqliteLimits
from multichat.journal.sqlite.reader import open_reader
from multichat.journal.sqlite.schema import MIGRATIONS
from multichat.protocol.ids import message_id
from tests.support.journal_files import refusal
from tests.support.journals import all_texts, back_up, running, say, texts_of, write
from tests.support.processes import LOOPBACK, MULTICHAT, Command, serve
from tests.support.programs import program
from tests.support.speaker import speaking
from tests.support.terminals import Terminal

pytestmark = pytest.mark.process


def remove_beside(path: Path) -> None:
    """Do what docs/journal.md requires before a backup is restored."""
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
@pytest.mark.parametrize("place", ["over it", "elsewhere", "whole folder"])
async def test_after_a_restore_lost_ids_are_unknown_and_older_ones_still_resume(
    end: signal.Signals, place: str, tmp_path: Path
) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    path, backup = folder / "chat.db", tmp_path / "backup.db"
    snapshot = tmp_path / "snapshot"
    async with serve(tmp_path, "--journal", str(path)) as server:
        async with program(server, name="alice") as alice:
            await alice.say("one", "two")
            back_up(path, backup)
            if place == "whole folder":  # as a snapshot of the file system has it
                shutil.copytree(folder, snapshot)
            await alice.say("three", "four", "five")
            before = alice.ids
        server.process.send_signal(end)
        await server.wait()
    match place:
        case "over it":
            shutil.copy(backup, path)
            if end is signal.SIGKILL:  # SQLite would write what it had into the backup
                argv = (MULTICHAT, "serve", "0", "--host", LOOPBACK, "--journal", str(path))
                async with Command(tmp_path, *argv) as refused:
                    assert await refused.wait() == 1
                    [line] = refused.err.splitlines()
                    assert (
                        "to continue with this file, move chat.db-wal and chat.db-shm away" in line
                    )
            remove_beside(path)
        case "elsewhere":
            path = tmp_path / "chat.db"
            shutil.copy(backup, path)
        case _:
            shutil.rmtree(folder)
            shutil.copytree(snapshot, folder)
    async with serve(tmp_path, "--journal", str(path)) as server:
        async with program(server, since=before["five"]) as early:
            assert (await early.hear("error"))["code"] == "unknown-id"
        async with program(server, name="bob") as bob:
            await bob.say("6", "7", "8", "9")
            after = bob.ids
        assert not set(before.values()) & set(after.values())
        assert min(after.values()) > max(before.values())
        for text in ("three", "four", "five"):
            async with program(server, since=before[text]) as lost:
                assert (await lost.hear("error"))["code"] == "unknown-id"
        for text, missing in (("one", ["two"]), ("two", [])):
            async with program(server, since=before[text]) as back:
                for wanted in (*missing, "6", "7", "8", "9"):
                    said = await back.hear("said", "error", "missed")
                    assert (said.get("text"), said.get("id")) == (
                        wanted,
                        before.get(wanted, after.get(wanted)),
                    )


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
@pytest.mark.parametrize("is_recent", [False, True])
async def test_a_restore_into_the_file_of_a_running_server_is_detected(
    is_recent: bool, end: signal.Signals, tmp_path: Path
) -> None:
    """As by SQLite's `.restore`, which writes through the WAL."""
    path, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    await write(path, "one")
    back_up(path, backup)
    async with serve(tmp_path, "--journal", str(path)) as server, speaking(server) as speaker:
        if is_recent:  # made since the last checkpoint
            back_up(path, backup)
        assert await speaker.say("two") == "accepted"
        back_up(backup, path)
        for text in ("three", "four"):
            assert "storage-failed" in await speaker.say(text)
        await server.wait_for(f"another program has replaced the contents of {path}")
        server.signal(end)
        await server.wait()
    if end is signal.SIGKILL and not is_recent:
        assert "chat.db-wal does not belong to this file" in await refusal(path)
    else:
        assert await all_texts(path) == ["one"]


async def test_nothing_is_reported_missing_from_a_backup_of_a_running_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    async with running(SqliteJournal(path)) as journal:
        await say(journal.room("lobby"), "one")
        back_up(path, backup)
        await say(journal.room("lobby"), "two")
    caplog.clear()
    assert await all_texts(backup) == ["one"]
    assert [each for each in caplog.records if each.levelno >= WARNING] == []


async def test_a_session_a_room_and_an_account_newer_than_a_restored_backup_are_unknown(
    tmp_path: Path,
) -> None:
    """A session, a room and an account that began after the backup; docs/service.md has a table."""
    path, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    async with serve(tmp_path, "--journal", str(path)) as server:
        async with program(server, name="bob") as bob:
            await bob.say("kept")
        back_up(path, backup)
        async with program(server, name="alice", room="den") as alice:
            await alice.say("lost")
            assert (await alice.ask("register", passphrase="correct horse"))["type"] == "logged-in"
            since, token = alice.ids["lost"], alice.welcome["session"]
        server.process.send_signal(signal.SIGTERM)
        await server.wait()
    remove_beside(path)
    shutil.copy(backup, path)
    fields = {"name": "alice", "rooms": {"den": {"since": since}}}
    async with (
        serve(tmp_path, "--journal", str(path)) as server,
        program(server, name="carol", room="den") as carol,
    ):
        await carol.say("unheard")
        # As for a client that returns: its session and its account are unknown.
        async with program(server, session=token, **fields) as alice:
            welcome = alice.welcome
            assert (welcome["resumed"], welcome["name"]) == (False, "alice")
            assert list(welcome["rooms"]) == ["den"]
            assert (await alice.hear("error"))["code"] == "unknown-id"
            await carol.say("heard")
            assert await alice.said() == ("den", "heard")
            again = await alice.ask("register", passphrase="another horse")
            assert again["type"] == "logged-in"
            assert since not in carol.ids.values()


MISSING = "messages that were said here meanwhile may be missing; /history shows the latest"


@asynccontextmanager
async def restored_while_away(
    folder: Path,
    port: int,
    end: signal.Signals,
    say: Callable[[str], Awaitable[object]],
    hear: Callable[[str], Awaitable[object]],
) -> AsyncIterator[None]:
    """A server with a restored backup, which lacks messages that a client sent and received.

    With *say* the client sends a message, *hear* waits until it shows one.
    """
    path = folder / "chat.db"
    async with serve(folder, "--journal", str(path), port=port) as server:
        await say("kept")
        await server.wait_for("] kept\n")
        back_up(path, folder / "backup.db")
        async with program(server, name="bob") as bob:
            await say("mine is lost")
            assert (await bob.hear("said"))["text"] == "mine is lost"
            await bob.say("lost, too")
            await hear("lost, too")  # so it knows that its own was accepted
        server.process.send_signal(end)
        await server.wait()
    remove_beside(path)
    shutil.copy(folder / "backup.db", path)
    await say("while away")
    unheard = [f"unheard {number}" for number in range(5)]
    async with serve(folder, "--journal", str(path)) as server:  # where the client is not
        async with program(server, name="bob") as bob:
            await bob.say(*unheard)
        server.process.send_signal(signal.SIGTERM)
        await server.wait()
    async with serve(folder, "--journal", str(path), port=port) as server:
        await server.wait_for("] while away\n")
        async with program(server, name="bob") as bob:
            await bob.say("said after the restore")
            await say("mine after the restore")
            assert (await bob.hear("said"))["text"] == "mine after the restore"
            later = ["while away", "said after the restore", "mine after the restore"]
            assert await bob.history() == ["kept", *unheard, *later]
            await hear("said after the restore")
            yield


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
async def test_a_piped_client_reports_possible_loss_after_a_restore(
    end: signal.Signals, port: int, tmp_path: Path
) -> None:
    command = (MULTICHAT, "connect", LOOPBACK, str(port), "--name", "alice", "--wait")
    async with Command(tmp_path, *command) as alice:

        async def say(text: str) -> None:
            await alice.type(f"{text}\n")

        async def hear(text: str) -> None:
            await alice.wait_for(f"[RX] [bob] {text}")

        async with restored_while_away(tmp_path, port, end, say, hear):
            out = alice.out
            assert "unheard" not in out
            await alice.type("/history\n")
            await alice.wait_for("[bob] unheard 4")
            alice.end_input()
            assert await alice.wait() == 0
    assert alice.err == ""
    shown = "[bob] lost, too", "Connected again", MISSING, "[bob] said after the restore"
    assert [out.count(text) for text in shown] == [1, 1, 1, 1]
    places = [out.index(text) for text in shown]
    assert places == sorted(places)


async def test_a_terminal_client_reports_possible_loss_after_a_restore(
    terminal: Terminal, port: int, tmp_path: Path
) -> None:
    await terminal.open("t", MULTICHAT, "connect", "--wait", "--name", "alice", LOOPBACK, str(port))

    async def say(text: str) -> None:
        await terminal.type("t", text)

    async def hear(text: str) -> None:
        await terminal.wait_for("t", f"bob  {text}")

    async with restored_while_away(tmp_path, port, signal.SIGKILL, say, hear):
        screen = " ".join((await terminal.screen("t")).split())
    shown = [
        *("alice kept", "alice mine is lost", "bob lost, too"),
        *(MISSING, "alice while away", "bob said after the restore"),
    ]
    assert [screen.count(text) for text in shown] == [1] * len(shown)
    places = [screen.index(text) for text in shown]
    assert places == sorted(places)


async def all_ids(room: RoomJournal) -> list[str]:
    blocks = await room.read(0, room.next, max_bytes=1 << 30)
    return [
        message_id(block.epoch, block.first + n)
        for block in blocks
        for n in range(block.text.count("\n") + 1)
    ]


async def test_a_message_keeps_its_id_however_often_the_server_starts(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    told: list[str] = []
    for n in range(5):
        async with running(SqliteJournal(path)) as journal:
            room = journal.room("lobby")
            assert await all_ids(room) == told
            assert [room.number_of(id_) for id_ in told] == list(range(len(told)))
            if n:
                assert room.id_of(room.next - 1) == told[-1]
            if n != 3:  # a server that stores no message leaves no epoch
                await say(room, f"{n}.0", f"{n}.1")
                await say(room, f"{n}.2")
            told = await all_ids(room)
            assert [room.id_of(number) for number in range(room.next)] == told
            assert room.number_of(message_id(room.epoch, room.next)) is None
    assert sorted(told) == told
    assert len({id_.partition("-")[0] for id_ in told}) == 4
    with open_reader(path) as reader:
        for number, id_ in enumerate(told):
            texts = [t for said in reader.read(since=id_) for t in said.text.split("\n")]
            assert len(texts) == len(told) - number - 1


async def test_an_epoch_starts_with_its_first_stored_message(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        await say(journal.room("lobby"), "one")
    async with running(SqliteJournal(path, limits=SqliteLimits(retry_seconds=0))) as journal:
        room = journal.room("lobby")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageFailed):
                await say(room, "lost")
            other.execute("ROLLBACK")
        await say(room, "two", "three")
        await say(room, "four")
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        assert await texts_of(room, 0, 10) == ["one", "two", "three", "four"]
        assert len(room.earlier) == 2


async def test_two_servers_started_from_one_backup_use_different_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the clock was ahead when the backup was made."""
    path = tmp_path / "chat.db"
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 4e9)
        async with running(SqliteJournal(path)) as journal:
            await say(journal.room("lobby"), "one")
    ids = []
    for n in range(2):
        copy = tmp_path / f"copy-{n}.db"
        shutil.copy(path, copy)
        async with running(SqliteJournal(copy)) as journal:
            ids.append((await say(journal.room("lobby"), "two")).epoch)
    assert ids[0] != ids[1]


async def test_a_journal_of_version_1_continues_in_a_new_epoch(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with closing(open_file(path, durable=False, migrations=MIGRATIONS[:1])) as opened:
        connection = opened.connection
        connection.execute("UPDATE heads SET clients_ever = 2, last_epoch = 5")
        connection.execute("INSERT INTO rooms VALUES (1, 'lobby', '00000000005', 0, 2, 1)")
        connection.execute(
            "INSERT INTO runs VALUES (1, 1, 0, 2, 7, 'now', 'lobby', 1, 'alice', 0, ?)",
            ("one\ntwo",),
        )
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        await say(room, "three")
        assert await texts_of(room, 0, 10) == ["one", "two", "three"]
        ids = await all_ids(room)
    assert ids[:2] == ["00000000005-1000000000", "00000000005-1000000001"]
    assert not ids[2].startswith("00000000005")
