"""What every journal promises: one suite for all of them."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from multichat.journal import Journal, RoomJournal, SessionRecord, part_of, within
from multichat.journal.memory import MemoryJournal
from multichat.journal.sqlite import Durability, SqliteJournal
from multichat.messages import Nonce, SaidRun

MANY_BYTES = 1 << 40

MakeJournal: TypeAlias = Callable[[], Journal]


@pytest.fixture(params=["memory", "sqlite full", "sqlite normal"])
def make_journal(request: pytest.FixtureRequest, tmp_path: Path) -> MakeJournal:
    """Return what makes a journal; those of SQLite are of one file."""
    kind, _, durability = request.param.partition(" ")
    if kind == "memory":
        return MemoryJournal
    return lambda: SqliteJournal(tmp_path / "chat.db", durability=Durability(durability))


@asynccontextmanager
async def running(journal: Journal) -> AsyncGenerator[Journal]:
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        yield journal
        nursery.cancel_scope.cancel(reason="the test is over")


async def append(room: RoomJournal, *texts: str, nonces: tuple[Nonce | None, ...] = ()) -> SaidRun:
    said = SaidRun(room.epoch, room.next, "now", "Lobby", 7, "alice", "\n".join(texts))
    keeping = room.append(said, nonces)
    if keeping is not None:
        await keeping.wait()
    return said


async def texts(room: RoomJournal, start: int, stop: int, max_bytes: int = MANY_BYTES) -> list[str]:
    runs = await room.read(start, stop, max_bytes=max_bytes)
    number = start
    for run in runs:
        assert (run.epoch, run.first) == (room.epoch, number)
        number += run.run.count("\n") + 1
    return [text for run in runs for text in run.run.split("\n")]


async def test_what_is_appended_is_numbered_and_read_again(make_journal: MakeJournal) -> None:
    async with running(make_journal()) as journal:
        room = journal.room("lobby")
        assert (room.first, room.next) == (0, 0)
        assert await texts(room, 0, 10) == []
        one = await append(room, "one")
        acted = SaidRun(room.epoch, room.next, "then", "Lobby", 8, "bob", "waves", act=True)
        keeping = room.append(acted)
        if keeping is not None:
            await keeping.wait()
        await append(room, "three", "four", "")
        assert (room.first, room.next) == (0, 5)
        assert await texts(room, 0, 5) == ["one", "waves", "three", "four", ""]
        assert (await room.read(0, 2, max_bytes=MANY_BYTES)) == [one, acted]


async def test_pages_begin_and_end_within_runs(make_journal: MakeJournal) -> None:
    async with running(make_journal()) as journal:
        room = journal.room("lobby")
        for start in range(0, 30, 3):
            await append(room, *map(str, range(start, start + 3)))
        for start in range(30):
            for stop in range(start, 31):
                assert await texts(room, start, stop) == [*map(str, range(start, stop))]
        assert await texts(room, 28, 99) == ["28", "29"]
        assert await texts(room, 30, 99) == []


async def test_a_page_is_bounded_but_never_empty(make_journal: MakeJournal) -> None:
    async with running(make_journal()) as journal:
        room = journal.room("lobby")
        await append(room, *["é" * 50] * 10)
        await append(room, "x" * 1000)
        assert len(await texts(room, 0, 11, max_bytes=1)) == 1
        assert len(await texts(room, 0, 11, max_bytes=101)) == 1
        assert len(await texts(room, 0, 11, max_bytes=202)) == 2
        assert len(await texts(room, 10, 11, max_bytes=1)) == 1


async def test_rooms_have_epochs_and_numbers_of_their_own(make_journal: MakeJournal) -> None:
    async with running(make_journal()) as journal:
        rooms = [journal.room(name) for name in ("lobby", "den", "küche")]
        for room in rooms:
            await append(room, "x")
        assert len({room.epoch for room in rooms}) == 3
        assert [room.epoch for room in rooms] == sorted(room.epoch for room in rooms)
        assert [room.next for room in rooms] == [1, 1, 1]


async def test_a_room_that_is_asked_for_again_goes_on(make_journal: MakeJournal) -> None:
    async with running(make_journal()) as journal:
        room = journal.room("lobby")
        await append(room, "one")
        again = journal.room("lobby")
        assert (again.epoch, again.first, again.next) == (room.epoch, 0, 1)
        await append(again, "two")
        assert await texts(again, 0, 2) == ["one", "two"]
        # Nothing was said in this one, so that nothing is kept of it.
        assert journal.room("den").epoch != journal.room("den").epoch


async def test_many_who_append_at_once_are_kept_in_their_order(make_journal: MakeJournal) -> None:
    async with running(make_journal()) as journal:
        room = journal.room("lobby")
        order: list[str] = []

        async def speak(who: int) -> None:
            for number in range(20):
                order.append(f"{who}.{number}")
                await append(room, order[-1])

        async with trio.open_nursery() as nursery:
            for who in range(20):
                nursery.start_soon(speak, who)
        assert await texts(room, 0, 400) == order


async def test_what_was_taken_is_kept_when_it_is_cancelled(make_journal: MakeJournal) -> None:
    journal = make_journal()
    async with running(journal):
        room = journal.room("lobby")
        said = SaidRun(room.epoch, 0, "now", "lobby", 1, "a", "at the last moment")
        keeping = room.append(said)
    if keeping is not None:
        await keeping.wait()
    if isinstance(journal, SqliteJournal):
        async with running(make_journal()) as again:
            assert await texts(again.room("lobby"), 0, 1) == ["at the last moment"]


async def test_sessions_and_nonces_are_there_after_a_restart(make_journal: MakeJournal) -> None:
    alice = SessionRecord(digest=b"a" * 32, client=7, name="alice", room="den", seen=1000.0)
    bob = SessionRecord(digest=b"b" * 32, client=8, name="", room="lobby", seen=2000.0)
    journal = make_journal()
    async with running(journal):
        journal.keep_session(bob)
        journal.keep_session(alice)
        await append(journal.room("den"), "x", "y", "z", nonces=("n", None, 5))
        await append(journal.room("den"), "no nonce")
        await append(journal.room("den"), "w", nonces=("5",))
        await journal.give_numbers(200)
    if isinstance(journal, MemoryJournal):
        return
    async with running(make_journal()) as again:
        assert again.clients_ever == 200
        assert await again.sessions(0, 10) == [alice, bob]
        assert await again.sessions(0, 1) == [bob]
        assert await again.sessions(1500, 10) == [bob]
        epoch = again.room("den").epoch
        assert await again.nonces(7, 10) == [("n", epoch, 0), (5, epoch, 2), ("5", epoch, 4)]
        assert await again.nonces(7, 2) == [(5, epoch, 2), ("5", epoch, 4)]
        assert await again.nonces(8, 10) == []
        again.forget_session(alice.digest)
        await append(again.room("den"), "later")
        assert await again.sessions(0, 10) == [bob]
        assert await again.nonces(7, 10) == []


async def test_memory_forgets_the_oldest_of_a_room_first() -> None:
    async with running(MemoryJournal(max_messages=5)) as journal:
        room = journal.room("lobby")
        for number in range(10):
            await append(room, str(number))
        assert (room.first, room.next) == (5, 10)
        assert await texts(room, 5, 10) == ["5", "6", "7", "8", "9"]
        assert (await room.read(0, 10, max_bytes=MANY_BYTES))[0].first == 5
        await append(room, *map(str, range(10, 30)))  # more at once than there may be
        assert (room.first, room.next) == (10, 30)


async def test_memory_is_bounded_for_each_room_and_for_all() -> None:
    async with running(MemoryJournal(max_room_bytes=10_000, max_bytes=25_000)) as journal:
        rooms = [journal.room(name) for name in "abc"]
        for room in rooms:
            for number in range(20):
                await append(room, f"{number} " + "x" * 1000)
        quiet, _, loud = rooms
        assert quiet.first == quiet.next == 20  # the one in which nothing was said for longest
        assert 12 <= loud.first < loud.next == 20
        await append(quiet, "again")
        assert await texts(quiet, 20, 21) == ["again"]


@given(
    st.lists(st.text(alphabet="aé😀", max_size=5), min_size=1, max_size=20),
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 60),
)
def test_parts_of_runs(lines: list[str], start: int, stop: int, max_bytes: int) -> None:
    said = SaidRun("e", 40, "now", "lobby", 1, "a", "\n".join(lines))
    wanted = [text for n, text in enumerate(lines, 40) if start <= n < stop]
    part = part_of(said, start, stop)
    assert ([] if part is None else part.run.split("\n")) == wanted
    assert part is None or part.first == max(40, start)
    [short] = within([said], max_bytes)
    assert len(short.run.encode()) <= max_bytes or "\n" not in short.run
    assert said.run.startswith(short.run)
