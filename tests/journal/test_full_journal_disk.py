"""A journal on a full disk: retention frees space."""

import json
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from multichat.errors import StorageFailed
from multichat.journal.base import RoomJournal
from multichat.journal.sqlite.journal import Durability, Retention, SqliteJournal, SqliteLimits
from multichat.testing import ScriptedClient
from tests.support.disks import file_size_limit, mounted
from tests.support.journals import LOTS, encode, running, texts_of, wait_stored
from tests.support.processes import WAIT_SECONDS, ServerCommand, serve, tcp

pytestmark = pytest.mark.process

MIB = 1024 * 1024
ONE_MIB = Retention(max_bytes=MIB)


async def say_all(room: RoomJournal, texts: list[str]) -> list[str]:
    """Say *texts* at once; return those that were kept."""
    kept = []
    for text, pending in [(text, room.append(encode(room, text))) for text in texts]:
        with suppress(StorageFailed):
            await wait_stored(pending)
            kept.append(text)
    return kept


async def say_until_kept(room: RoomJournal, text: str) -> None:
    """Send *text* again and again, as a client does that gets `storage-failed`."""
    with trio.fail_after(60):
        while not await say_all(room, [text]):
            await trio.sleep(0.05)


@pytest.mark.parametrize("size", [1, 1000, 100_000])
async def test_a_burst_on_a_small_disk_is_stored_within_the_retention_limits(
    tmp_path: Path, size: int
) -> None:
    with mounted(tmp_path / "disk", "size=6m") as disk:
        path = disk / "chat.db"
        journal = SqliteJournal(path, durability=Durability.NORMAL, retention=ONE_MIB)
        async with running(journal):
            room = journal.room("lobby")
            for burst in range(3):
                number = min(8 * MIB // size, 20_000)
                texts = [f"{burst}.{n} ".ljust(size, "x") for n in range(number)]
                assert await say_all(room, texts) == texts
            await say_until_kept(room, "the last")
            left = await texts_of(room, 0, LOTS)
            assert left[-1] == "the last"
            assert Path(f"{path}-wal").stat().st_size < 2 * MIB
        assert path.stat().st_size < 3 * MIB


async def test_retention_deletes_messages_on_a_disk_filled_by_others(
    tmp_path: Path,
) -> None:
    now = [1_750_000_000.0, 0.0]
    with mounted(tmp_path / "disk", "size=24m") as disk:
        journal = SqliteJournal(
            disk / "chat.db",
            retention=Retention(max_age_seconds=100),
            limits=SqliteLimits(retry_seconds=0, tidy_seconds=0.05),
            clocks=lambda: (now[0], now[1]),
        )
        async with running(journal):
            room = journal.room("lobby")
            for n in range(50):
                said = encode(room, f"{n} " + "x" * 100_000, time="2025-06-15T15:06:40.000Z")
                await wait_stored(room.append(said))
            fill(disk / "somebody else's")
            assert len(await say_all(room, ["x" * 500_000] * 20)) < 20
            with trio.fail_after(60):
                while len(await say_all(room, ["there is room again ".ljust(500_000)] * 6)) < 6:
                    now = [each + 30 for each in now]
                    await trio.sleep(0.05)


async def test_a_smaller_limit_frees_space_on_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=24m") as disk:
        path = disk / "chat.db"
        limits = SqliteLimits(retry_seconds=0, tidy_seconds=0.05)
        large = SqliteJournal(path, retention=Retention(max_bytes=12 * MIB), limits=limits)
        async with running(large) as journal:
            room = journal.room("lobby")
            for n in range(20):
                await wait_stored(room.append(encode(room, f"{n} " + "x" * 400_000)))
        fill(disk / "somebody else's")
        async with running(SqliteJournal(path, retention=ONE_MIB, limits=limits)) as journal:
            room = journal.room("lobby")
            await say_until_kept(room, "there is room again")
            assert (await texts_of(room, 0, LOTS))[-1] == "there is room again"


async def test_the_reserve_exists_while_retention_is_enabled(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    reserve = Path(f"{path}-reserve")
    for retention, size in ((ONE_MIB, MIB), (Retention(max_messages=9), 8 * MIB)):
        async with running(SqliteJournal(path, retention=retention)) as journal:
            await say_until_kept(journal.room("lobby"), "x")
            assert reserve.stat().st_size == size
            assert stat.S_IMODE(reserve.stat().st_mode) == 0o600
    async with running(SqliteJournal(path)) as journal:
        await say_until_kept(journal.room("lobby"), "x")
        assert not reserve.exists()


async def test_a_burst_is_written_in_transactions_of_a_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    async with running(SqliteJournal(path)) as journal:
        room = journal.room("lobby")
        texts = [f"{n} ".ljust(100_000, "x") for n in range(400)]
        assert await say_all(room, texts) == texts
        assert journal.commits > 15
        assert Path(f"{path}-wal").stat().st_size < 12 * MIB


@asynccontextmanager
async def joined(
    server: ServerCommand, **fields: object
) -> AsyncIterator[tuple[ScriptedClient, dict[str, Any]]]:
    """A client that has sent its hello, and its welcome."""
    async with tcp(server) as stream:
        client = ScriptedClient(stream)
        await client.send(f"/json {json.dumps(fields)}")
        yield client, await answer(client, "welcome")


async def answer(client: ScriptedClient, *types: str) -> dict[str, Any]:
    with trio.fail_after(WAIT_SECONDS):
        while (event := json.loads(await client.line()))["type"] not in types:
            pass
    return dict(event)


async def say_until_refused(client: ScriptedClient) -> int:
    """Say large messages; return how many were accepted before one was refused."""
    for accepted in range(400):
        said = {"type": "say", "text": f"{accepted} ".ljust(60_000, "x"), "nonce": accepted}
        await client.send(json.dumps(said))
        event = await answer(client, "accepted", "error")
        if event["type"] == "error":
            assert event["code"] == "storage-failed"
            return accepted
    pytest.fail("the disk was never full")


@pytest.mark.parametrize(
    ("kind", "ending"), [("tmpfs", "SIGKILL"), ("limit", "SIGKILL"), ("limit", "SIGTERM")]
)
async def test_a_server_starts_on_a_full_disk_without_retention(
    tmp_path: Path, kind: str, ending: str
) -> None:
    """Its messages can be read and its sessions resumed; new messages are refused."""
    is_limit = kind == "limit"
    with nullcontext(tmp_path) if is_limit else mounted(tmp_path / "disk", "size=6m") as disk:
        options = ("--journal", str(disk / "chat.db"), "--durability", "normal")

        def limited(size: int) -> AbstractContextManager[None]:
            return file_size_limit(size) if is_limit else nullcontext()

        with limited(3 * MIB):
            async with serve(tmp_path, *options) as server:
                async with joined(server, room="kitchen") as (client, welcome):
                    accepted = await say_until_refused(client)
                    assert accepted > 10
                server.signal(signal.Signals[ending])
                await server.wait()
        with limited(max(each.stat().st_size for each in disk.glob("chat.db*"))):
            if not is_limit:
                fill(disk / "somebody else's")
            async with serve(tmp_path, *options) as server:
                session = welcome["session"]
                async with joined(server, session=session) as (client, welcome):
                    assert welcome["resumed"]
                    more = await say_until_refused(client)  # there may be room in the WAL
                    await client.send(json.dumps({"type": "history"}))
                    page = await answer(client, "history")
                last = (more or accepted) - 1
                assert page["messages"][-1]["text"].startswith(f"{last} ")


def fill(path: Path) -> None:
    """Write to *path* until the disk is full."""
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
