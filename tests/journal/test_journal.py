"""The contract of a journal: one suite, run on each implementation."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from multichat.errors import StorageFailed
from multichat.journal.base import Journal, SessionRecord, slice_block, take_first, take_newest
from multichat.journal.memory import MemoryJournal
from multichat.journal.sqlite.journal import Durability, Retention, SqliteJournal
from multichat.protocol.ids import message_id
from multichat.protocol.messages import SaidBlock
from tests.simulation.journal import Disk, Faults, FaultyJournal
from tests.support.journals import (
    ALICE,
    LOTS,
    encode,
    nonces_of,
    record_of,
    running,
    say,
    texts_before,
    texts_of,
    wait_stored,
)
from tests.support.processes import WAIT_SECONDS

pytestmark = pytest.mark.unit


class Kind(NamedTuple):
    """How a journal of one kind is made; *outlives*: another one of it is the same one later."""

    make: Callable[..., Journal]
    outlives: bool


@pytest.fixture(params=["memory", "full", "normal", "simulated"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "memory":
        return Kind(MemoryJournal, outlives=False)
    if request.param == "simulated":  # the results of the simulation depend on its journal
        disk = Disk()

        def make_faulty(max_messages: int | None = None) -> Journal:
            faults = Faults(slow_seconds=0.001, max_messages=max_messages)
            return FaultyJournal(disk, faults, Random(0))

        return Kind(make_faulty, outlives=True)

    def make(max_messages: int | None = None) -> Journal:
        return SqliteJournal(
            tmp_path / "chat.db",
            durability=Durability(request.param),
            retention=Retention(max_messages=max_messages),
        )

    return Kind(make, outlives=True)


# --- Numbers and pages ----------------------------------------------------------------------------


async def test_appended_messages_are_numbered_at_once_and_read_back_unchanged(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        room = journal.room("lobby")
        assert (room.first, room.next) == (0, 0)
        assert await texts_of(room, 0, 10) == []
        one = encode(room, "one", time="2025-01-15T10:30:45.123Z")
        pending_writes = [room.append(one)]
        assert room.next == 1
        act = SaidBlock(room.epoch, room.next, "then", "LOBBY", 8, "", "wïnks 😀", act=True)
        pending_writes.append(room.append(act))
        assert room.next == 2
        more = encode(room, "three", "", "five")
        pending_writes.append(room.append(more))
        assert (room.first, room.next) == (0, 5)
        for pending in pending_writes:
            await wait_stored(pending)
        assert await room.read(0, 5, max_bytes=LOTS) == [one, act, more]


async def test_pages_may_begin_and_end_within_blocks(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        room = journal.room("lobby")
        for start in range(0, 12, 3):
            await say(room, *(str(number) for number in range(start, start + 3)))
        for start in range(13):
            for stop in range(14):
                wanted = [str(number) for number in range(start, min(stop, 12))]
                assert await texts_of(room, start, stop) == wanted


async def test_a_page_is_limited_in_bytes_but_has_at_least_one_message(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        room = journal.room("lobby")
        await say(room, *["é" * 50] * 10)
        await say(room, "x" * 1000)
        for max_bytes, count in ((1, 1), (201, 1), (202, 2), (1009, 10), (2009, 11), (LOTS, 11)):
            assert len(await texts_of(room, 0, 20, max_bytes)) == count
        assert len(await texts_of(room, 10, 20, 1)) == 1
        assert len(await texts_of(room, 8, 20, 300)) == 2


async def test_the_newest_messages_below_a_number_are_read_backwards(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        room = journal.room("lobby")
        assert await room.read_before(5, max_messages=3, max_bytes=LOTS) == []
        sizes = (1, 3, 1, 4, 3)
        blocks = [
            await say(room, *(f"{start}{n}" for n in range(size)))
            for start, size in zip("abcde", sizes, strict=True)
        ]
        texts = [text for block in blocks for text in block.text.split("\n")]
        for stop in range(15):
            for most in (1, 2, 5, 100):
                wanted = texts[max(0, min(stop, 12) - most) : stop]
                assert await texts_before(room, stop, max_messages=most) == wanted
                wanted = wanted[-2:]  # two of three bytes each, with their LF
                assert await texts_before(room, stop, max_messages=most, max_bytes=6) == wanted
        assert await texts_before(room, 12, max_messages=9, max_bytes=0) == ["e2"]
        assert await room.read_before(12, max_messages=8, max_bytes=LOTS) == blocks[2:]


async def test_reading_backwards_counts_utf_8_bytes(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        room = journal.room("lobby")
        await say(room, "a" * 1000, *["é" * 50] * 10)
        for max_bytes, count in ((1, 1), (201, 1), (202, 2), (1010, 10), (2010, 10), (2011, 11)):
            found = await texts_before(room, 11, max_messages=20, max_bytes=max_bytes)
            assert len(found) == count


@given(
    st.lists(st.lists(st.text("aé", max_size=5), min_size=1, max_size=5), max_size=8),
    st.integers(0, 45),
    st.integers(1, 45),
    st.integers(0, 100),
)
def test_reading_backwards_reads_no_block_that_it_does_not_need(
    said: list[list[str]], stop: int, max_messages: int, max_bytes: int
) -> None:
    blocks: list[SaidBlock] = []
    for texts in said:
        first = blocks[-1].first + blocks[-1].text.count("\n") + 1 if blocks else 0
        blocks.append(SaidBlock("e", first, "", "lobby", 1, "a", "\n".join(texts)))
    taken: list[SaidBlock] = []

    def backwards() -> Iterator[SaidBlock]:
        for block in reversed(blocks):
            if block.first < stop:
                taken.append(block)
            yield block

    found = take_newest(backwards(), stop, max_messages=max_messages, max_bytes=max_bytes)
    numbered = list(enumerate([text for texts in said for text in texts]))[:stop]
    wanted: list[tuple[int, str]] = []
    for number, text in reversed(numbered[-max_messages:]):
        max_bytes -= len(text.encode()) + 1
        if max_bytes < 0 and wanted:
            break
        wanted.insert(0, (number, text))
    assert [
        each for block in found for each in enumerate(block.text.split("\n"), block.first)
    ] == wanted
    assert len(taken) <= len(found) + 1


async def test_reading_past_either_end_returns_the_existing_messages(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        room = journal.room("lobby")
        await say(room, "a", "b")
        assert await texts_of(room, 2, 100) == []
        assert await texts_of(room, 100, 200) == []
        assert await texts_of(room, 1, 1) == []
        assert await texts_of(room, 1, 1 << 40) == ["b"]


async def test_retention_deletes_the_oldest_messages_first(kind: Kind) -> None:
    async with running(kind.make(max_messages=5)) as journal:
        room = journal.room("lobby")
        for start in range(0, 40, 2):
            await say(room, str(start), str(start + 1))
        with trio.fail_after(WAIT_SECONDS):
            while room.first < 34:
                # SQLite looks now and then; here that is now, which is what it does at its start.
                if isinstance(journal, SqliteJournal):
                    await journal._tidy()
                await trio.lowlevel.checkpoint()
        assert 34 <= room.first <= 36  # whole runs go: a little more is left, or less
        assert room.next == 40
        wanted = [str(number) for number in range(room.first, 40)]
        assert await texts_of(room, room.first, 40) == wanted
        assert await texts_of(room, 0, 40) == wanted
        await say(room, "40")
        assert await texts_of(room, 39, 99) == ["39", "40"]


# --- Rooms ----------------------------------------------------------------------------------------


async def test_each_room_has_an_epoch_and_numbers_of_its_own(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        rooms = [journal.room(name) for name in ("lobby", "den", "küche")]
        for room in rooms:
            await say(room, f"in {room.epoch}")
        epochs = [room.epoch for room in rooms]
        assert epochs == sorted(set(epochs))
        assert all(len(epoch) == 11 and int(epoch, 16) for epoch in epochs)
        for room in rooms:
            assert room.next == 1
            assert await texts_of(room, 0, 9) == [f"in {room.epoch}"]


async def test_a_reopened_room_continues_its_numbers(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        room = journal.room("lobby")
        await say(room, "one")
        again = journal.room("lobby")
        assert (again.epoch, again.first, again.next) == (room.epoch, 0, 1)
        # A room without messages has nothing to continue.
        assert journal.room("den").epoch < journal.room("den").epoch


async def test_each_server_has_its_own_epoch_in_a_room_and_knows_the_earlier_ones(
    kind: Kind,
) -> None:
    if not kind.outlives:
        pytest.skip("there is one server")
    told: list[str] = []
    for n in range(4):
        async with running(kind.make()) as journal:
            room = journal.room("lobby")
            assert [room.id_of(number) for number in range(room.next)] == told
            assert [room.number_of(id_) for id_ in told] == [*range(len(told))]
            if n != 1:  # a server that stores no message leaves no epoch
                said = await say(room, "one", "two")
                told += [message_id(said.epoch, said.first + i) for i in range(2)]
            epochs = [*dict.fromkeys(id_.partition("-")[0] for id_ in told)]
            # Messages of another server after a backup with which this one began.
            ends = [message_id(epoch, 2 * (i + 1)) for i, epoch in enumerate(epochs)]
            assert [room.number_of(id_) for id_ in ends] == [None] * len(ends)
    assert (len(epochs), told) == (3, sorted(told))


async def test_epochs_increase_even_if_the_clock_is_set_back(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = kind.make()
    epochs: list[str] = []
    for now in (1_700_000_000.0, 1_600_000_000.0, 1_700_000_000.0):
        monkeypatch.setattr("time.time", lambda now=now: now)
        if kind.outlives:
            journal = kind.make()
        async with running(journal):
            for n in range(3):
                room = journal.room(f"{len(epochs)}.{n}")
                await say(room, "x")
                epochs.append(room.epoch)
    assert epochs == sorted(set(epochs))


# --- Many at once, and the end --------------------------------------------------------------------


async def test_concurrent_appends_are_stored_in_call_order(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        rooms = [journal.room(name) for name in ("lobby", "den")]
        called: list[list[str]] = [[], []]

        async def speak(who: int) -> None:
            for number in range(10):
                which = (who + number) % 2
                text = f"{who}.{number}"
                called[which].append(text)
                await say(rooms[which], text)

        async with trio.open_nursery() as nursery:
            for who in range(30):
                nursery.start_soon(speak, who)
        for room, texts in zip(rooms, called, strict=True):
            assert await texts_of(room, 0, 1000) == texts


async def test_accepted_messages_are_stored_on_close(kind: Kind) -> None:
    journal = kind.make()
    async with running(journal):
        room = journal.room("lobby")
        pending_writes = [room.append(encode(room, f"last words {n}")) for n in range(100)]
    for pending in pending_writes:
        await wait_stored(pending)
    if kind.outlives:
        with pytest.raises(StorageFailed, match="closing"):
            room.append(encode(room, "too late"))
        assert room.next == 100
        async with running(kind.make()) as again:
            room = again.room("lobby")
            assert await texts_of(room, 0, 200) == [f"last words {n}" for n in range(100)]


async def test_unencodable_text_fails_its_caller_only(kind: Kind) -> None:
    async with running(kind.make()) as journal:
        room = journal.room("lobby")
        pending = room.append(encode(room, "before"))
        if kind.outlives:
            with pytest.raises(UnicodeEncodeError):
                room.append(encode(room, "half a pair: \ud83d"))
            with pytest.raises(UnicodeEncodeError):
                room.append(encode(room, "x"), ("\ud83d",))
        await wait_stored(pending)
        await say(room, "after")
        assert await texts_of(room, 0, 9) == ["before", "after"]


# --- Sessions, nonces, numbers --------------------------------------------------------------------

BOB = SessionRecord(digest=b"b" * 32, client=8, name="", rooms=("lobby",))


async def test_sessions_and_client_ids_survive_a_restart_if_the_journal_is_persistent(
    kind: Kind,
) -> None:
    journal = kind.make()
    assert journal.clients_ever == 0
    async with running(journal):
        journal.save_session(BOB, connected=True)
        journal.save_session(ALICE, connected=False)
        await journal.reserve_client_numbers(200)
        await journal.reserve_client_numbers(100)  # assigned numbers stay assigned
        for one in (ALICE, BOB):
            assert await record_of(journal, one.digest) == (one if kind.outlives else None)
    if not kind.outlives:
        return
    moved = SessionRecord(digest=ALICE.digest, client=7, name="al", rooms=("lobby",))
    async with running(kind.make()) as again:
        assert again.clients_ever == 200
        assert await record_of(again, ALICE.digest) == ALICE
        assert await record_of(again, BOB.digest) == BOB
        again.save_session(moved, connected=True)
        again.forget_session(BOB.digest)
        again.forget_session(b"nobody's")
        for _ in range(2):  # before it is written, and after
            assert await record_of(again, ALICE.digest) == moved
            assert await record_of(again, BOB.digest) is None
            await say(again.room("lobby"), "x")  # by then they are kept, too
    async with running(kind.make()) as again:
        assert await record_of(again, ALICE.digest) == moved
        assert await record_of(again, BOB.digest) is None


async def test_client_ids_that_were_used_are_never_reused(kind: Kind) -> None:
    if not kind.outlives:
        pytest.skip("its numbers begin anew")
    async with running(kind.make()) as journal:
        room = journal.room("lobby")
        await wait_stored(room.append(encode(room, "x", client=300)))
    async with running(kind.make()) as journal:
        assert journal.clients_ever == 300
        journal.save_session(
            SessionRecord(digest=b"c", client=301, name="", rooms=("x",)), connected=True
        )
        await say(journal.room("lobby"), "y")
    async with running(kind.make()) as journal:
        assert journal.clients_ever == 301


async def test_nonces_are_restored_unchanged_and_deleted_with_their_session(kind: Kind) -> None:
    journal = kind.make()
    async with running(journal):
        den = journal.room("den")
        journal.save_session(ALICE, connected=True)
        said = encode(den, "x", "y", "z")
        await wait_stored(den.append(said, ("n", None, 5), b"xxxxyyyyzzzz"))
        await say(den, "none")
        await say(den, "w", nonces=("5",))
        if not kind.outlives:
            assert await journal.session(ALICE.digest) is None
            return
        assert await nonces_of(journal, BOB) == []
    async with running(kind.make()) as journal:
        kept = await journal.session(ALICE.digest)
        assert kept is not None
        assert kept.nonces == [
            ("n", den.epoch, 0, "den", b"xxxx"),
            (5, den.epoch, 2, "den", b"zzzz"),
            ("5", den.epoch, 4, "den", b""),
        ]
        journal.forget_session(ALICE.digest)
        await say(journal.room("den"), "later")
        assert await nonces_of(journal, ALICE) == []


# --- Memory's own bounds --------------------------------------------------------------------------


async def test_memory_is_bounded_for_each_room_and_for_all() -> None:
    async with running(MemoryJournal(max_room_bytes=10_000, max_bytes=25_000)) as journal:
        rooms = [journal.room(name) for name in "abc"]
        for room in rooms:
            for number in range(20):
                await say(room, f"{number} " + "x" * 1000)
        quiet, _, loud = rooms
        assert quiet.first == quiet.next == 20  # the one that has been silent longest
        assert 10 <= loud.first < loud.next == 20
        await say(quiet, "again")
        assert await texts_of(quiet, 0, 30) == ["again"]


# --- What all of them build on --------------------------------------------------------------------

lines = st.lists(st.text(alphabet="aé😀", max_size=5), min_size=1, max_size=20)


@given(lines, st.integers(0, 100), st.integers(0, 100))
def test_a_slice_of_a_block_has_the_messages_with_those_numbers(
    texts: list[str], start: int, stop: int
) -> None:
    said = SaidBlock("e", 40, "now", "lobby", 1, "a", "\n".join(texts))
    wanted = [text for number, text in enumerate(texts, 40) if start <= number < stop]
    part = slice_block(said, start, stop)
    assert ([] if part is None else part.text.split("\n")) == wanted
    assert part is None or part.first == max(40, start)


@given(st.lists(lines, min_size=1, max_size=4), st.integers(0, 80))
def test_a_bounded_read_returns_the_messages_that_fit_and_at_least_one(
    blocks: list[list[str]], max_bytes: int
) -> None:
    whole: list[SaidBlock] = []
    first = 0
    for texts in blocks:
        whole.append(SaidBlock("e", first, "now", "lobby", 1, "a", "\n".join(texts)))
        first += len(texts)
    taken = take_first(whole, max_bytes)
    taken_texts = [text for said in taken for text in said.text.split("\n")]
    all_texts = [text for texts in blocks for text in texts]
    assert taken_texts == all_texts[: len(taken_texts)]
    assert taken_texts
    size = sum(len(said.text.encode()) for said in taken)
    assert size <= max_bytes or len(taken_texts) == 1
