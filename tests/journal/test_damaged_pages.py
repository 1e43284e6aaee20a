"""Each page of a journal is damaged once: everything that does not need it works."""

import itertools
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock

from multichat.cli.history import show_history
from multichat.errors import JournalFailed, NotRead, StorageFailed
from multichat.journal.base import AccountRecord, PendingWrite, SessionRecord
from multichat.journal.sqlite.journal import Durability, Retention, SqliteJournal, SqliteLimits
from multichat.protocol.messages import SaidBlock
from tests.support.journals import LOTS, running, tidy, wait_stored, write_wrong_index
from tests.support.log import LogRecorder

pytestmark = pytest.mark.unit

PAGE_BYTES = 4096
ROOMS = 24
MESSAGES = 25
SESSIONS = 150

# Of the rooms, so many may be on one page of the index of messages, and some more on a page above.
MOST_CONCERNED = ROOMS // 2

# Pages that each message needs and that are not among the first: the last one of the messages, and
# those of the two indexes of epochs.
MOST_LAST_PAGES = 3

MANY_ROOMS = 600

# Of messages, on one page of their index; and so many are found from one side of it only.
MOST_ON_A_PAGE = 400
MOST_BESIDE = 2

OLD = "2025-01-15T10:30:45.123Z"
NOW = 1_800_000_000.0


class Whole(NamedTuple):
    """A journal without damage; *first_pages* is the last page at which a table or index begins."""

    data: bytes
    first_pages: int


def record_of(client: int) -> SessionRecord:
    digest = client.to_bytes(2, "big") * 16
    return SessionRecord(digest=digest, client=client, name=f"member {client}", rooms=("room 1",))


def open_journal(path: Path, **retention: float) -> SqliteJournal:
    return SqliteJournal(
        path,
        durability=Durability.NORMAL,
        retention=Retention(**retention),  # type: ignore[arg-type]
        limits=SqliteLimits(retry_seconds=0.1, steady_seconds=0.0),
        clocks=lambda: (NOW, NOW),
    )


def said_in(room: object, text: str, client: int, time: str) -> SaidBlock:
    return SaidBlock(room.epoch, room.next, time, room.name, client, "alice", text)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    path = tmp_path_factory.mktemp("whole") / "chat.db"

    async def run() -> None:
        for server in range(2):  # so that there are earlier epochs
            async with running(open_journal(path)) as journal:
                for client in range(1, SESSIONS + 1):
                    journal.save_session(record_of(client), connected=server == 0)
                    hash_ = f"$argon2id${'x' * 80}"
                    journal.save_account(
                        f"member{client}", AccountRecord(name=f"Member{client}", hash=hash_)
                    )
                rooms = [journal.room(f"room {number}") for number in range(ROOMS)]
                pending_writes: list[PendingWrite | None] = []
                for number, room in itertools.product(range(MESSAGES), rooms):
                    client = 1 + len(pending_writes) % SESSIONS
                    said = said_in(room, f"{number} {'x' * 100}", client, OLD)
                    pending_writes.append(room.append(said, (number,)))
                for pending in pending_writes:
                    await wait_stored(pending)

    trio.run(run, clock=MockClock(autojump_threshold=0.01))
    with closing(sqlite3.connect(path)) as connection:
        [last] = connection.execute("SELECT max(rootpage) FROM sqlite_master").fetchone()
    return Whole(path.read_bytes(), last)


def damaged_files(
    whole: Whole, path: Path, kinds: str = "zeros random", every: int = 1
) -> Iterator[int]:
    """Write, for each page but that of the schema, a file in which it is damaged."""
    random = Random(1)
    for page in range(2, len(whole.data) // PAGE_BYTES + 1, every):
        for kind in kinds.split():
            noise = bytes(PAGE_BYTES) if kind == "zeros" else random.randbytes(PAGE_BYTES)
            for beside in path.parent.glob(f"{path.name}*"):
                beside.unlink()
            start = (page - 1) * PAGE_BYTES
            path.write_bytes(whole.data[:start] + noise + whole.data[start + PAGE_BYTES :])
            yield page


async def say_in_rooms(
    journal: SqliteJournal, nonce: int | None, numbers: Iterable[int] = range(ROOMS)
) -> list[bool]:
    """Say something in rooms of these *numbers*; return where it is kept."""
    kept = []
    pending_writes = []
    for number in numbers:
        room = journal.room(f"room {number}")
        said = said_in(room, "hello", 1 + number, OLD)
        pending_writes.append(room.append(said, () if nonce is None else (nonce,)))
    for pending in pending_writes:
        try:
            assert pending is not None
            await pending.wait()
        except StorageFailed:
            kept.append(False)
        else:
            kept.append(True)
    return kept


async def test_other_rooms_work_whichever_page_is_damaged(
    whole: Whole, tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """Before and after a restart, with and without nonces; all returning clients get an answer."""
    path = tmp_path / "chat.db"
    pages: set[int] = set()
    refused: set[int] = set()
    for page in damaged_files(whole, path):
        pages.add(page)
        log.lines.clear()
        for server in range(2):
            if not await does_start(open_journal(path), partial(check_talk, server=server)):
                refused.add(page)
                break
        assert len([line for line in log.lines if "sessions cannot be written" in line]) <= 2
        assert len([line for line in log.lines if "nonces cannot be written" in line]) <= 2
        assert len(log.lines) < 40
    assert len([page for page in refused if page > whole.first_pages]) <= MOST_LAST_PAGES
    assert len(pages - refused) > len(pages) // 2


async def does_start(
    journal: SqliteJournal, check: Callable[[SqliteJournal], Awaitable[None]]
) -> bool:
    """Run *check* while the journal is open; return whether it could be opened."""
    reason = ""
    try:
        async with running(journal):
            await check(journal)
    except* JournalFailed as failures:
        reason = str(failures.exceptions[0])
    assert not reason or "the file is damaged" in reason
    return not reason


async def check_talk(journal: SqliteJournal, server: int) -> None:
    for client in range(1, 20):
        with suppress(NotRead):
            await journal.session(record_of(client).digest)
        journal.save_session(record_of(client), connected=True)
    for nonce in (None, 1000 + server):
        kept = await say_in_rooms(journal, nonce)
        assert kept.count(False) <= MOST_CONCERNED


@pytest.fixture(scope="module")
def many_rooms(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A journal of so many rooms that each index of them has several pages."""
    path = tmp_path_factory.mktemp("many") / "chat.db"

    async def run() -> None:
        for _ in range(2):
            async with running(open_journal(path)) as journal:
                assert all(await say_in_rooms(journal, None, range(MANY_ROOMS)))

    trio.run(run, clock=MockClock(autojump_threshold=0.01))
    with closing(sqlite3.connect(path)) as connection:
        [last] = connection.execute("SELECT max(rootpage) FROM sqlite_master").fetchone()
    return Whole(path.read_bytes(), last)


async def test_a_start_is_refused_only_if_no_room_can_store_messages(
    many_rooms: Whole, tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """It was refused for a page that no message needs, and not for one that each message needs."""
    path = tmp_path / "chat.db"
    kept: list[bool] = []

    async def talk(journal: SqliteJournal) -> None:
        kept[:] = await say_in_rooms(journal, None, range(0, MANY_ROOMS, 20))

    refused, started = set(), 0
    for page in damaged_files(many_rooms, path, "zeros"):
        if page <= many_rooms.first_pages:
            continue
        if not await does_start(open_journal(path), talk):
            refused.add(page)
        else:
            started += 1
            # Pages that are full are split, which needs those beside them, too.
            assert kept.count(True) > len(kept) // 4, page
    assert len(refused) <= MOST_LAST_PAGES < started


async def read_everything(journal: SqliteJournal) -> None:
    """Read each room forwards and backwards; only damaged messages are left out."""
    forwards = backwards = 0
    rooms = list(journal._rooms.values())
    for room in rooms:
        for start in range(0, room.next, 20):
            runs = await room.read(start, min(room.next, start + 20), max_bytes=LOTS)
            assert all(start <= said.first < start + 20 for said in runs)
            forwards += len(runs)
        stop = room.next
        while runs := await room.read_before(stop, max_messages=20, max_bytes=LOTS):
            backwards += len(runs)
            stop = runs[0].first
    assert abs(forwards - backwards) <= MOST_BESIDE
    assert forwards >= len(rooms) * 2 * MESSAGES - MOST_ON_A_PAGE


async def test_messages_beside_a_damaged_page_are_read(
    whole: Whole, tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """By clients that resume, and by those that ask for the history."""
    path = tmp_path / "chat.db"
    started = [
        await does_start(open_journal(path), read_everything)
        for _ in damaged_files(whole, path, "zeros")
    ]
    assert started.count(False) <= whole.first_pages + MOST_LAST_PAGES
    assert started.count(True) > len(started) // 2


@pytest.mark.parametrize("number", ["150.5", "'150'", "x'ff'", "9e999", "-1", "1 << 60"])
@pytest.mark.parametrize("column", ["first", "room", "seq"])
async def test_a_damaged_number_beside_a_damaged_page_does_not_make_reading_endless(
    column: str, number: str, tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """The same message was read again and again; each is read once, from both ends."""
    path, out = tmp_path / "chat.db", tmp_path / "out"
    texts = [f"{each} {'y' * 900}" for each in range(200)]
    async with running(open_journal(path)) as journal:
        room = journal.room("lobby")
        for text in texts:
            pending = room.append(said_in(room, text, 7, OLD))
        await wait_stored(pending)
    with closing(sqlite3.connect(path)) as connection, suppress(sqlite3.IntegrityError):
        connection.execute(f"UPDATE runs SET {column} = {number} WHERE first = 150")
        connection.commit()
    data = path.read_bytes()
    at = {each: data.find(texts[each].encode()) // PAGE_BYTES for each in (150, 151, 152, 153)}
    page = next(each for each in at.values() if each != at[150])
    start = page * PAGE_BYTES
    path.write_bytes(data[:start] + b"\xff" * PAGE_BYTES + data[start + PAGE_BYTES :])
    readable = [text for each, text in enumerate(texts) if not 140 < each < 160]

    async def read(journal: SqliteJournal) -> None:
        room = journal.room("lobby")
        for runs in (
            await room.read(0, room.next, max_bytes=LOTS),
            await room.read_before(room.next, max_messages=200, max_bytes=LOTS),
        ):
            found = [said.text for said in runs]
            assert len(set(found)) == len(found)
            assert set(readable) <= set(found)

    assert await does_start(open_journal(path), read)
    for room_name in (None, "lobby"):
        with out.open("wb") as file, suppress(JournalFailed):
            show_history(path, file.fileno(), room=room_name)
        lines = out.read_text().splitlines()
        assert len(set(lines)) == len(lines)
        assert len(lines) >= len(readable)
    assert await does_start(open_journal(path, max_messages=20), tidy)


async def test_the_command_shows_messages_beside_a_damaged_page(
    whole: Whole, tmp_path: Path
) -> None:
    """Also where no server starts: the last page of messages, which each new one needs."""
    path, out = tmp_path / "chat.db", tmp_path / "out"
    for page in damaged_files(whole, path, "zeros"):
        if page <= whole.first_pages:
            continue
        with out.open("wb") as file, suppress(JournalFailed):
            show_history(path, file.fileno())
        assert len(out.read_text().splitlines()) >= ROOMS * 2 * MESSAGES - MOST_ON_A_PAGE


@pytest.mark.parametrize("retention", [{"max_messages": 3}, {"max_age_seconds": 3600.0}])
async def test_messages_after_damage_are_deleted(
    whole: Whole,
    retention: dict[str, float],
    tmp_path: Path,
    log: LogRecorder,
    thread_clock: MockClock,
) -> None:
    path = tmp_path / "chat.db"
    started: list[bool] = []
    for page in damaged_files(whole, path, "zeros", every=4):
        log.lines.clear()
        started.append(await does_start(open_journal(path, **retention), check_deletion))
        assert len([line for line in log.lines if "not deleted" in line]) <= 1, page
    assert started.count(False) <= whole.first_pages // 4 + MOST_LAST_PAGES + 1
    assert started.count(True) > len(started) // 2


async def check_deletion(journal: SqliteJournal) -> None:
    steps = 0
    while await journal._tidy():
        steps += 1
        assert steps < 5000
    rooms = [journal.room(f"room {number}") for number in range(ROOMS)]
    # Most is deleted in the other rooms: SQLite merges a page of an index with those beside it, and
    # cannot where that is the damaged one.
    kept = [room.next - room.first for room in rooms]
    assert len([count for count in kept if count > 40]) <= MOST_CONCERNED


async def test_a_room_is_kept_though_an_index_does_not_find_its_messages(
    whole: Whole, tmp_path: Path, log: LogRecorder, thread_clock: MockClock
) -> None:
    """Single bytes of the pages of indexes are changed: rooms and their numbers stay."""
    path = tmp_path / "chat.db"
    path.write_bytes(whole.data)
    with closing(sqlite3.connect(path)) as connection:
        rooms = {row[0]: row for row in connection.execute("SELECT * FROM rooms")}
    # By their first byte: the pages of indexes.
    starts_of_pages = range(PAGE_BYTES, len(whole.data), PAGE_BYTES)
    pages = [start for start in starts_of_pages if whole.data[start] in (2, 10)]
    assert len(pages) > 3
    random = Random(1)
    starts = 0
    for _ in range(120):
        does_start = True
        data = bytearray(whole.data)
        at = random.choice(pages) + random.randrange(8, PAGE_BYTES)
        data[at] = random.choice((data[at] ^ 0xA0, data[at] + 3 & 0xFF, 0xFF))
        for beside in path.parent.glob(f"{path.name}*"):
            beside.unlink()
        path.write_bytes(data)
        try:
            async with running(open_journal(path, max_messages=MESSAGES // 2)) as journal:
                await say_in_rooms(journal, None)
                for _, name, *_ in rooms.values():
                    room = journal.room(name)
                    with suppress(NotRead):
                        await room.read(room.first, room.next, max_bytes=LOTS)
                        await room.read_before(room.next, max_messages=9, max_bytes=LOTS)
                await tidy(journal)
        except* JournalFailed:
            does_start = False
        if does_start:
            starts += 1
            with closing(sqlite3.connect(path)) as connection:
                sql = "SELECT * FROM rooms NOT INDEXED"
                kept = {row[0]: row for row in connection.execute(sql)}
            assert {row[:2] for row in kept.values()} >= {row[:2] for row in rooms.values()}, at
            # No id is given twice: in the same epoch numbers do not go back.
            ends = {row[2]: row[4] for row in rooms.values()}
            assert all(row[4] >= ends.get(row[2], 0) for row in kept.values()), at
    assert starts > 60


async def test_a_refused_start_changes_nothing_in_the_file(
    whole: Whole, tmp_path: Path, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    refused = 0
    for _ in damaged_files(whole, path, "random"):
        before = path.read_bytes()
        try:
            async with running(open_journal(path)):
                pass
        except* JournalFailed:
            refused += 1
            assert path.read_bytes() == before
    assert refused > 3


@pytest.mark.parametrize(
    "wrong",
    [
        "(room, first) WHERE room <> 2",  # the index has none of them
        "(room + 999 * (room = 2), first)",  # it has them as those of a room that there is not
    ],
)
async def test_a_room_is_not_deleted_where_the_index_does_not_find_its_messages(
    wrong: str, whole: Whole, tmp_path: Path, thread_clock: MockClock
) -> None:
    path = tmp_path / "chat.db"
    path.write_bytes(whole.data)
    with closing(sqlite3.connect(path)) as connection:
        [(name, *row)] = connection.execute("SELECT name, * FROM rooms WHERE id = 2")
    write_wrong_index(path, wrong)
    async with running(open_journal(path)) as journal:
        room = journal.room(name)
        assert (room.first, room.next) == (0, 2 * MESSAGES)
        await say_in_rooms(journal, None, [int(name.removeprefix("room "))])
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT * FROM rooms NOT INDEXED WHERE id = 2").fetchall()
        [runs] = connection.execute(
            "SELECT count(*) FROM runs NOT INDEXED WHERE room = 2"
        ).fetchone()
    assert [each[:2] for each in found] == [tuple(row[:2])]
    assert runs >= 2 * MESSAGES
