"""Write to and read from any journal, in tests."""

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import trio

from multichat.journal import Journal, Keeping, RoomJournal, SessionRecord
from multichat.journal.sqlite_file import open_file
from multichat.messages import Nonce, SaidRun

LOTS = 1 << 40  # bytes
ALICE = SessionRecord(digest=b"a" * 32, client=7, name="alice", room="den", seen=4e9)


@asynccontextmanager
async def running(journal: Journal) -> AsyncGenerator[Any]:
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        yield journal
        nursery.cancel_scope.cancel(reason="the test is over")


def spell(room: RoomJournal, *texts: str, client: int = 7, time: str = "now") -> SaidRun:
    return SaidRun(room.epoch, room.next, time, "Lobby", client, "alice", "\n".join(texts))


async def wait_kept(keeping: Keeping | None) -> None:
    if keeping is not None:
        await keeping.wait()


async def say(room: RoomJournal, *texts: str, nonces: tuple[Nonce | None, ...] = ()) -> SaidRun:
    said = spell(room, *texts)
    await wait_kept(room.append(said, nonces))
    return said


async def texts_of(room: RoomJournal, start: int, stop: int, max_bytes: int = LOTS) -> list[str]:
    """What is read, having looked that its numbers have no gaps."""
    runs = await room.read(start, stop, max_bytes=max_bytes)
    return _checked(room, runs, start, stop)


async def texts_before(
    room: RoomJournal, stop: int, *, max_messages: int, max_bytes: int = LOTS
) -> list[str]:
    """The same, read backwards."""
    runs = await room.read_before(stop, max_messages=max_messages, max_bytes=max_bytes)
    return _checked(room, runs, 0, stop)


def _checked(room: RoomJournal, runs: list[SaidRun], start: int, stop: int) -> list[str]:
    for one, two in itertools.pairwise(runs):
        assert two.first == one.first + one.run.count("\n") + 1
    for run in runs:
        assert run.epoch == room.epoch
        assert start <= run.first < stop
    return [text for run in runs for text in run.run.split("\n")]


def make_journal(path: Path) -> Path:
    """Make a journal of a few messages in two rooms at *path*."""
    opened = open_file(path, durable=False)
    with closing(opened.connection) as connection, closing(opened.lock):
        connection.execute("UPDATE heads SET clients_ever = 2, last_epoch = 5")
        rooms = [(1, "lobby", "00000000001", 0, 2, 2), (2, "den", "00000000002", 0, 1, 3)]
        connection.executemany("INSERT INTO rooms VALUES (?, ?, ?, ?, ?, ?)", rooms)
        time = "2025-01-15T10:30:45.123Z"
        runs = [
            (1, 1, 0, 1, 5, time, "lobby", 1, "alice", 0, "hello"),
            (2, 1, 1, 1, 5, time, "lobby", 2, "bob", 1, "waves"),
            (3, 2, 0, 1, 5, time, "den", 2, "bob", 0, "psst"),
        ]
        connection.executemany("INSERT INTO runs VALUES (?,?,?,?,?,?,?,?,?,?,?)", runs)
        connection.execute(
            "INSERT INTO sessions VALUES (?, 1, 'alice', 'lobby', 4e9)", (b"\0" * 32,)
        )
        connection.execute("INSERT INTO nonces VALUES (1, 1, 1, '00000000001', 0, '[1]')")
    return path
