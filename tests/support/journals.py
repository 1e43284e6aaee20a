"""Writing to and reading from journals, in tests."""

import itertools
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import trio

from multichat.errors import NotRead
from multichat.journal.base import Journal, PendingWrite, RoomJournal, SessionRecord
from multichat.journal.memory import MemoryJournal
from multichat.journal.sqlite.file import open_file
from multichat.journal.sqlite.journal import Retention, SqliteJournal
from multichat.protocol.ids import message_id
from multichat.protocol.messages import Nonce, SaidBlock

LOTS = 1 << 40  # bytes
ALICE = SessionRecord(digest=b"a" * 32, client=7, name="alice", rooms=("den",))
OLD_TOKENS = {"alice": f"{1:032x}", "bob": f"{2:032x}"}


@asynccontextmanager
async def running(journal: Journal) -> AsyncGenerator[Any]:
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        yield journal
        nursery.cancel_scope.cancel(reason="the test is over")


def encode(room: RoomJournal, *texts: str, client: int = 7, time: str = "now") -> SaidBlock:
    return SaidBlock(room.epoch, room.next, time, "Lobby", client, "alice", "\n".join(texts))


async def tidy(journal: SqliteJournal) -> None:
    """Run deletion until there is nothing more to delete."""
    while await journal._tidy():
        pass


async def wait_stored(pending: PendingWrite | None) -> None:
    if pending is not None:
        await pending.wait()


async def say(room: RoomJournal, *texts: str, nonces: tuple[Nonce | None, ...] = ()) -> SaidBlock:
    said = encode(room, *texts)
    await wait_stored(room.append(said, nonces))
    return said


async def record_of(journal: Journal, digest: bytes) -> SessionRecord | None:
    """Return the stored record of that session."""
    kept = await journal.session(digest)
    return None if kept is None else kept.record


async def nonces_of(journal: Journal, record: SessionRecord) -> list[tuple[Nonce, str, int]]:
    """Store a session, and return its nonces with the ids of their messages."""
    journal.save_session(record, connected=True)
    kept = await journal.session(record.digest)
    return [] if kept is None else [(each.nonce, each.epoch, each.number) for each in kept.nonces]


async def texts_of(room: RoomJournal, start: int, stop: int, max_bytes: int = LOTS) -> list[str]:
    """Read messages, and check that their numbers have no gaps."""
    blocks = await room.read(start, stop, max_bytes=max_bytes)
    return _checked(room, blocks, start, stop)


async def all_texts(path: Path, name: str = "lobby") -> list[str]:
    """What is read from a room of the journal at *path*, from the first message on."""
    async with running(SqliteJournal(path)) as journal:
        room = journal.room(name)
        found = await texts_of(room, 0, room.next)
        assert len(found) == room.next - room.first
        return found


async def write(path: Path, *texts: str, retention: Retention | None = None) -> None:
    """Write *texts* to the lobby of the journal at *path*."""
    async with running(SqliteJournal(path, retention=retention)) as journal:
        for text in texts:
            await say(journal.room("lobby"), text)


def back_up(path: Path, copy: Path) -> None:
    """Copy a journal as `sqlite3 FILE ".backup COPY"` does."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


async def texts_before(
    room: RoomJournal, stop: int, *, max_messages: int, max_bytes: int = LOTS
) -> list[str]:
    """The same, read backwards."""
    blocks = await room.read_before(stop, max_messages=max_messages, max_bytes=max_bytes)
    return _checked(room, blocks, 0, stop)


def _checked(room: RoomJournal, blocks: list[SaidBlock], start: int, stop: int) -> list[str]:
    for one, two in itertools.pairwise(blocks):
        assert two.first == one.first + one.text.count("\n") + 1
    for block in blocks:
        assert room.number_of(message_id(block.epoch, block.first)) == block.first
        assert start <= block.first < stop
    return [text for block in blocks for text in block.text.split("\n")]


class DelegatingRoom(RoomJournal):
    """A room's journal that does as another *room*'s; for subclasses."""

    def __init__(self, room: RoomJournal) -> None:
        self._room = room
        self.epoch, self.earlier = room.epoch, room.earlier

    @property
    def first(self) -> int:  # type: ignore[override]
        return self._room.first

    @property
    def next(self) -> int:  # type: ignore[override]
        return self._room.next

    def append(
        self, said: SaidBlock, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> PendingWrite | None:
        return self._room.append(said, nonces, checks)

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        return await self._room.read(start, stop, max_bytes=max_bytes)

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        return await self._room.read_before(stop, max_messages=max_messages, max_bytes=max_bytes)


class HeldRoom(DelegatingRoom):
    """Wraps a room's journal so that reads wait for `release`; *reads* counts started reads.

    Reads do not wait before `hold`.
    """

    def __init__(self, room: RoomJournal) -> None:
        super().__init__(room)
        self.reads: list[tuple[int, int]] = []
        self.failure = ""
        self._released = trio.Event()
        self._released.set()

    def hold(self) -> None:
        """Block all reads from now on."""
        if self._released.is_set():
            self._released = trio.Event()

    def release(self, failure: str = "") -> None:
        """Unblock reads; with *failure* these and all later reads raise `NotRead`."""
        self.failure = failure
        self._released.set()

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        self.reads.append((start, stop))
        await self._released.wait()
        if self.failure:
            raise NotRead(self.failure)
        return await super().read(start, stop, max_bytes=max_bytes)


class HeldJournal(MemoryJournal):
    """A journal in memory whose rooms are `HeldRoom`s of that *kind*; *held* has them by name."""

    kind = HeldRoom

    def __init__(self, *, max_room_bytes: int = LOTS) -> None:
        super().__init__(max_room_bytes=max_room_bytes)
        self.held: dict[str, HeldRoom] = {}

    def room(self, name: str) -> RoomJournal:
        """Return the `HeldRoom` of that name."""
        room = super().room(name)
        held = self.held.get(name)
        if held is None or held.epoch != room.epoch:
            held = self.held[name] = self.kind(room)
        return held


def old_journal(path: Path, *, version: int) -> Path:
    """Create at *path* a journal of a former version of the schema.

    The files `tests/data/journal-*.sql` have messages of alice in the kitchen, whose session token
    is `OLD_TOKENS["alice"]`, and of bob in the lobby.
    """
    dump = Path(__file__).parents[1] / "data" / f"journal-{version}.sql"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(dump.read_text(encoding="utf-8"))
    return path


def make_journal(path: Path) -> Path:
    """Create a journal with a few messages in two rooms at *path*."""
    with closing(open_file(path, durable=False)) as opened:
        connection = opened.connection
        connection.execute("UPDATE heads SET clients_ever = 2, last_epoch = 5")
        rooms = [(1, "lobby", "00000000001", 0, 2, 2), (2, "den", "00000000002", 0, 1, 3)]
        connection.executemany("INSERT INTO rooms VALUES (?, ?, ?, ?, ?, ?)", rooms)
        time = "2025-01-15T10:30:45.123Z"
        blocks = [
            (1, 1, 0, 1, 5, time, "lobby", 1, "alice", 0, "hello"),
            (2, 1, 1, 1, 5, time, "lobby", 2, "bob", 1, "waves"),
            (3, 2, 0, 1, 5, time, "den", 2, "bob", 0, "psst"),
        ]
        connection.executemany("INSERT INTO runs VALUES (?,?,?,?,?,?,?,?,?,?,?)", blocks)
        connection.execute(
            "INSERT INTO sessions VALUES (?, 1, 'alice', 'lobby', 4e9, '')", (b"\0" * 32,)
        )
        connection.execute("INSERT INTO nonces VALUES (1, 1, 1, '00000000001', 0, '[1]', x'')")
    return path


def write_wrong_index(path: Path, wrong: str) -> None:
    """Write *wrong* columns, and maybe a condition, to the index of `runs` by room and number."""

    def define(old: str, new: str) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema=ON")
            connection.execute(
                "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = 'runs_by_number'",
                (old, new),
            )

    define("(room, first)", wrong)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("REINDEX runs_by_number")
    define(wrong, "(room, first)")


def damage_table(path: Path, table: str) -> None:
    """Overwrite the root pages of *table* and its indexes."""
    with closing(sqlite3.connect(path)) as connection:
        sql = "SELECT rootpage FROM sqlite_master WHERE tbl_name = ?"
        pages = [page for (page,) in connection.execute(sql, [table])]
        [size] = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    for page in pages:
        data[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(data)
