"""Replays: rings of the newest blocks, pages of older ones, and counts of missed messages."""

import sys
from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import example, given

from multichat.backend.local import LocalLog
from multichat.errors import NotRead
from multichat.journal.memory import MemoryJournal
from multichat.protocol.codec import Codec
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import Missed, Notice, Said, SaidBlock
from multichat.protocol.text_codec import TEXT
from multichat.server.broadcast import Block
from multichat.server.lag import Lag, encode_next
from multichat.server.page_cache import PageCache
from multichat.server.recent_messages import Ring, RingBudget
from tests.support.journals import HeldRoom, say

pytestmark = pytest.mark.unit

EPOCH = "00000000001"
CODECS = st.sampled_from([TEXT, JSON])
ME = 7


def block(first: int, messages: int, *, client: int = 1, length: int = 1) -> Block:
    """Return a block whose texts are the messages' numbers, padded to *length*."""
    texts = [str(number).ljust(length, ".") for number in range(first, first + messages)]
    said = SaidBlock(EPOCH, first, "now", "lobby", client, f"c{client}", "\n".join(texts))
    return Block(said, messages)


def follow(codec: Codec, data: bytes) -> list[int | tuple[str, int]]:
    """Parse what a client received: numbers of messages, and counts of missed ones."""
    heard: list[int | tuple[str, int]] = []
    for event in codec.parse_events(data.decode().removesuffix("\n")) if data else ():
        match event:
            case Said(text=text):
                heard.append(int(text.rstrip(".")))
            case Missed(count):
                heard.append(("missed", count))
            case Notice(text=text) if codec is TEXT and text.endswith(" skipped"):
                heard.append(("missed", int(text.split()[0])))
            case _:
                pytest.fail(f"unexpected {event}")
    return heard


# --- Lag ------------------------------------------------------------------------------------------


def test_the_messages_of_others_are_counted_as_missed() -> None:
    lag = Lag(10)
    assert lag.skip_to(15) == 5
    assert lag.position == 15
    assert lag.skip_to(15) == 0


def test_a_lag_says_how_much_memory_it_takes() -> None:
    lag = Lag(10)
    assert lag.held_bytes == 0
    for first in range(10, 30, 2):
        lag.note_own(first, first + 1)
    assert lag.held_bytes >= 10 * sys.getsizeof((10, 11))


def test_own_messages_are_not_counted_as_missed() -> None:
    lag = Lag(10)
    lag.note_own(12, 14)
    lag.note_own(14, 16)
    lag.note_own(20, 30)
    assert lag.skip_to(13) == 2
    assert lag.skip_to(15) == 0
    assert lag.skip_to(25) == 4
    assert lag.skip_to(40) == 10


def test_own_messages_that_were_sent_again_are_not_counted_as_missed() -> None:
    lag = Lag(10)
    lag.note_own(12, 16)
    assert lag.skip_to(20) == 6
    lag.position = 10  # the send queue was full
    assert lag.skip_to(20) == 6


@given(
    start=st.integers(0, 20),
    gaps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=20),
    steps=st.lists(st.integers(0, 15), max_size=20),
)
def test_the_count_of_missed_messages_is_exact(
    start: int, gaps: list[tuple[int, int]], steps: list[int]
) -> None:
    lag, own, end = Lag(start), set[int](), start
    for gap, messages in gaps:
        first, end = end + gap, end + gap + messages
        own.update(range(first, end))
        lag.note_own(first, end)
    for position in accumulate(steps, initial=start):
        others = set(range(lag.position, position)) - own
        assert lag.skip_to(position) == len(others)
        assert lag.position == position


def test_a_client_that_sends_all_the_time_while_it_lags_takes_bounded_memory() -> None:
    lag = Lag(0)
    for first in range(0, 100_000, 2):
        lag.note_own(first, first + 1)
    assert 50_000 <= lag.skip_to(100_000) <= 100_000  # an upper bound


# --- Encoding the next part -----------------------------------------------------------------------

# A block: number of messages, sender, length, and how many messages are missing before it.
_BLOCKS = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from([1, 2, ME]),
        st.sampled_from([8, 100]),
        st.sampled_from([0, 0, 0, 1, 7]),
    ),
    max_size=12,
)


def make_blocks(plan: Iterable[tuple[int, int, int, int]], first: int = 3) -> list[Block]:
    blocks: list[Block] = []
    for messages, client, length, missing in plan:
        first += missing
        blocks.append(block(first, messages, client=client, length=length))
        first += messages
    return blocks


@given(
    plan=_BLOCKS, skip=st.integers(0, 30), codec=CODECS, max_bytes=st.sampled_from([1, 300, 9999])
)
def test_a_replay_sends_the_messages_of_others_once_in_order_and_counts_missing_ones(
    plan: list[tuple[int, int, int, int]], skip: int, codec: Codec, max_bytes: int
) -> None:
    blocks = make_blocks(plan)
    end = blocks[-1].end if blocks else 0
    lag = Lag(skip)
    heard: list[int | tuple[str, int]] = []
    while lag.position < end:
        before = lag.position
        part = encode_next(blocks, lag, codec, ME, max_bytes=max_bytes)
        assert lag.position > before
        heard += follow(codec, part)
    expected: list[int | tuple[str, int]] = []
    position = skip
    for each in blocks:
        if each.end <= position:
            continue
        if (missing := each.said.first - position) > 0:
            expected.append(("missed", missing))
        if each.said.client != ME:
            expected += range(max(position, each.said.first), each.end)
        position = each.end
    assert heard == expected


@given(plan=_BLOCKS, codec=CODECS)
@example(plan=[(1, 1, 8, 1)] * 60, codec=TEXT)
def test_one_part_of_a_replay_has_about_the_requested_size(
    plan: list[tuple[int, int, int, int]], codec: Codec
) -> None:
    blocks = make_blocks(plan)
    largest = max((len(each.encoded(codec)) for each in blocks), default=0)
    lag = Lag(0)
    while blocks and lag.position < blocks[-1].end:
        assert len(encode_next(blocks, lag, codec, ME, max_bytes=500)) <= 500 + largest + 100


def test_a_large_block_is_replayed_in_pieces() -> None:
    """Each piece continues where the previous one ended."""
    large = [block(0, 40, length=60_000)]
    lag, parts = Lag(5), []
    while lag.position < 40:
        parts.append(encode_next(large, lag, JSON, ME, max_bytes=1))
    assert [number for part in parts for number in follow(JSON, part)] == [*range(5, 40)]
    assert all(len(part) <= 256 * 1024 for part in parts)


def test_a_block_is_encoded_once_for_all_replays() -> None:
    blocks = [block(0, 3), block(3, 3)]
    encode_next(blocks, Lag(0), TEXT, ME, max_bytes=9999)
    encoded = [each.encoded(TEXT) for each in blocks]
    encode_next(blocks, Lag(0), TEXT, ME, max_bytes=9999)
    assert [each.encoded(TEXT) for each in blocks] == encoded
    assert all(one is two.encoded(TEXT) for one, two in zip(encoded, blocks, strict=True))


# --- RingBudget -----------------------------------------------------------------------------------


MANY_BYTES = 1 << 30


def fill(ring: Ring, blocks: int, *, length: int = 100) -> None:
    for _ in range(blocks):
        ring.add(block(ring.next, 1, length=length))


def test_an_encoding_made_for_another_replay_is_counted() -> None:
    ring = Ring(RingBudget(MANY_BYTES, ring_bytes=0), 0)
    fill(ring, 3)
    oldest = ring._blocks[0]
    oldest.encoded(JSON)
    ring.encode(Lag(2), TEXT, ME, max_bytes=9999)
    fill(ring, 1)
    assert oldest not in ring._blocks
    assert ring.bytes == sum(each.size for each in ring._blocks)
    ring.clear()
    assert ring.bytes == 0


def test_an_empty_ring_begins_where_the_next_message_will_be() -> None:
    ring = Ring(RingBudget(MANY_BYTES), 42)
    assert (ring.first, ring.next) == (42, 42)
    assert ring.encode(Lag(42), TEXT, ME, max_bytes=100) == b""


def test_a_ring_forgets_its_oldest_blocks() -> None:
    ring = Ring(RingBudget(MANY_BYTES, ring_bytes=10_000), 0)
    fill(ring, 100)
    assert ring.next == 100
    assert 10 <= 100 - ring.first < 20
    assert ring.bytes <= 10_000
    first = ring.first
    heard = follow(TEXT, ring.encode(Lag(first), TEXT, ME, max_bytes=1 << 20))
    assert heard == [*range(first, 100)]
    assert ring.first > first  # encoded blocks count too
    assert ring.bytes <= 10_000


def test_the_ring_that_was_used_last_has_its_newest_two_blocks() -> None:
    ring = Ring(RingBudget(0, ring_bytes=0), 0)
    fill(ring, 5, length=10_000)
    assert (ring.first, ring.next) == (3, 5)


@pytest.mark.parametrize("kept", [0, 1, 7, 10])
def test_a_ring_forgets_messages_whose_numbers_are_given_again(kept: int) -> None:
    rings = RingBudget(MANY_BYTES)
    ring = Ring(rings, 0)
    for _ in range(2):
        ring.add(block(ring.next, 5))
    lag = Lag(8)
    lag.note_own(0, 1)
    lag.note_own(4, 9)
    ring.truncate(kept)
    lag.go_back(kept)
    assert (ring.next, lag.position) == (kept, min(8, kept))
    assert ring.bytes == sum(each.size for each in ring._blocks) == rings._bytes
    fill(ring, 3)
    assert follow(TEXT, ring.encode(Lag(0), TEXT, ME, max_bytes=1 << 20)) == [*range(kept + 3)]
    assert lag.behind(kept + 3) == 3 + kept - lag.position - max(0, min(9, kept) - 8)


def test_the_rings_of_quiet_rooms_are_emptied_first() -> None:
    rings = RingBudget(30_000, ring_bytes=20_000)
    quiet, busy = Ring(rings, 0), Ring(rings, 0)
    fill(quiet, 20)
    fill(busy, 25)
    assert quiet.first == 0
    fill(busy, 200)
    assert (quiet.first, quiet.bytes) == (20, 0)
    assert 190 < busy.first < 200


def test_a_closed_room_gives_its_memory_back() -> None:
    rings = RingBudget(30_000, ring_bytes=20_000)
    gone, quiet, busy = Ring(rings, 0), Ring(rings, 0), Ring(rings, 0)
    fill(gone, 25)
    rings.discard(gone)
    rings.discard(gone)
    fill(quiet, 10)
    fill(busy, 200)
    assert quiet.first == 0


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 2),  # in which ring
            st.integers(1, 4),
            st.sampled_from([1, ME]),
            st.sampled_from([8, 400]),
            st.sampled_from([None, TEXT, JSON]),  # the codec of a replay from the start
        ),
        max_size=40,
    ),
    ring_bytes=st.sampled_from([0, 3000, 100_000]),
    max_bytes=st.sampled_from([0, 5000, 100_000]),
)
def test_rings_keep_the_newest_messages_within_their_bounds(
    steps: list[tuple[int, int, int, int, Codec | None]], ring_bytes: int, max_bytes: int
) -> None:
    rings = RingBudget(max_bytes, ring_bytes=ring_bytes)
    all_rings = [Ring(rings, 10 * number) for number in range(3)]
    added: list[list[Block]] = [[], [], []]
    for number, messages, client, length, codec in steps:
        ring = last = all_rings[number]
        new = block(ring.next, messages, client=client, length=length)
        added[number].append(new)
        ring.add(new)
        if codec is not None:
            ring.encode(Lag(ring.first), codec, ME, max_bytes=1000)
        for ring, blocks in zip(all_rings, added, strict=True):
            left = [each for each in blocks if each.said.first >= ring.first]
            assert left == blocks[len(blocks) - len(left) :]
            assert left or ring is not last
            assert ring.next == (blocks[-1].end if blocks else ring.first)
            assert ring.bytes == sum(each.size for each in left)
            assert ring.bytes <= ring_bytes or len(left) <= 2
        others = sum(each.bytes for each in all_rings if each is not last)
        assert others + last.bytes <= max_bytes or not others


@given(
    blocks=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, ME])), max_size=20),
    ring_bytes=st.sampled_from([0, 3000, 100_000]),
    codec=CODECS,
    max_bytes=st.sampled_from([1, 400]),
)
def test_a_replay_from_a_ring_equals_live_delivery(
    blocks: list[tuple[int, int]], ring_bytes: int, codec: Codec, max_bytes: int
) -> None:
    """Even if the ring grows and drops blocks between two parts."""
    ring = Ring(RingBudget(MANY_BYTES, ring_bytes=ring_bytes), 0)
    lag: Lag | None = None
    heard: list[int | tuple[str, int]] = []
    live: list[int] = []
    for messages, client in blocks:
        new = block(ring.next, messages, client=client)
        if lag is None:
            lag = Lag(new.said.first)
        if client != ME:
            live += range(new.said.first, new.end)
        ring.add(new)
        if lag.position < ring.first:  # the journal has those messages
            missed = set(live) & {*range(lag.position, ring.first)}
            lag.skip_to(ring.first)
            live = [number for number in live if number not in missed]
        heard += follow(codec, ring.encode(lag, codec, ME, max_bytes=max_bytes))
    while lag is not None and lag.position < ring.next:
        heard += follow(codec, ring.encode(lag, codec, ME, max_bytes=max_bytes))
    assert heard == live


# --- Pages ----------------------------------------------------------------------------------------


async def make_room(messages: int, *, name: str = "lobby") -> HeldRoom:
    room = HeldRoom(MemoryJournal().room(name))
    for number in range(messages):
        await say(room, str(number))
    return room


def numbers(blocks: list[Block]) -> list[int]:
    assert all(one.end == two.said.first for one, two in pairwise(blocks))
    assert all(each.messages == each.said.text.count("\n") + 1 for each in blocks)
    return [int(text) for each in blocks for text in each.said.text.split("\n")]


async def test_a_page_ends_at_a_multiple_of_its_size() -> None:
    """So that replays that start anywhere share the following pages."""
    room = await make_room(1300)
    pages = PageCache()
    assert numbers(await pages.read(LocalLog(room), 20, 1300)) == [*range(20, 500)]
    assert numbers(await pages.read(LocalLog(room), 500, 1300)) == [*range(500, 1000)]
    assert room.reads == [(20, 500), (500, 1000)]
    await pages.read(LocalLog(room), 300, 1300)
    await pages.read(LocalLog(room), 500, 1300)
    assert room.reads == [(20, 500), (500, 1000), (300, 500)]


async def test_undelivered_messages_are_in_no_page() -> None:
    room = await make_room(30)
    assert numbers(await PageCache().read(LocalLog(room), 10, 20)) == [*range(10, 20)]


async def test_a_page_of_long_messages_is_bounded_by_its_size() -> None:
    room = await make_room(0)
    for _ in range(10):
        await say(room, "x" * 60_000)
    read = await PageCache().read(LocalLog(room), 0, 10)
    assert [(each.said.first, each.messages) for each in read] == [(0, 1), (1, 1)]


async def test_the_pages_of_two_rooms_are_two() -> None:
    journal = MemoryJournal()
    one, two = journal.room("one"), journal.room("two")
    await say(one, "1")
    await say(two, "2")
    pages = PageCache()
    assert numbers(await pages.read(LocalLog(one), 0, 1)) == [1]
    assert numbers(await pages.read(LocalLog(two), 0, 1)) == [2]


async def test_the_number_of_cached_pages_is_limited() -> None:
    room = await make_room(10)
    pages = PageCache(max_pages=2)
    for start in (1, 2, 3, 2, 3, 2, 1, 2, 3):
        await pages.read(LocalLog(room), start, 10)
    assert [start for start, _ in room.reads] == [1, 2, 3, 1, 3]


async def read_together(
    room: HeldRoom,
    readers: int,
    *,
    then: Callable[[list[trio.CancelScope]], object],
    failure: str = "",
) -> list[list[int] | str]:
    """Let several tasks read one page, act while they wait, and return what each got."""
    got: list[list[int] | str] = ["cancelled"] * readers
    scopes = [trio.CancelScope() for _ in range(readers)]
    pages = PageCache()

    async def read(reader: int) -> None:
        with scopes[reader]:
            try:
                got[reader] = numbers(await pages.read(LocalLog(room), 0, room.next))
            except NotRead as error:
                got[reader] = error.reason

    room.hold()
    async with trio.open_nursery() as nursery:
        for reader in range(readers):
            nursery.start_soon(read, reader)
            await trio.testing.wait_all_tasks_blocked()
        then(scopes)
        await trio.testing.wait_all_tasks_blocked()
        room.release(failure)
    return got


async def test_readers_of_one_page_wait_for_one_read() -> None:
    room = await make_room(3)
    assert await read_together(room, 3, then=lambda _: None) == [[0, 1, 2]] * 3
    assert len(room.reads) == 1


@pytest.mark.parametrize("cancelled", [{0}, {1}, {0, 1}, {0, 2}, {0, 1, 2}])
async def test_a_reader_that_is_cancelled_takes_nothing_from_the_others(
    cancelled: set[int],
) -> None:
    room = await make_room(3)

    def cancel(scopes: list[trio.CancelScope]) -> None:
        for reader in cancelled:
            scopes[reader].cancel()

    got = await read_together(room, 3, then=cancel)
    assert got == ["cancelled" if reader in cancelled else [0, 1, 2] for reader in range(3)]
    assert len(room.reads) <= 2


async def test_a_reader_that_is_cancelled_leaves_nothing_behind() -> None:
    room = await make_room(3)
    await read_together(room, 1, then=lambda scopes: scopes[0].cancel())
    assert numbers(await PageCache().read(LocalLog(room), 0, 3)) == [0, 1, 2]


async def test_each_reader_of_an_unreadable_page_gets_the_error() -> None:
    room = await make_room(3)
    got = await read_together(room, 5, then=lambda _: None, failure="it cannot be read")
    assert got == ["it cannot be read"] * 5
    assert len(room.reads) == 1  # the waiting readers do not retry


async def test_a_page_that_could_not_be_read_is_read_again() -> None:
    room = await make_room(3)
    pages = PageCache()
    room.release("it cannot be read")
    with pytest.raises(NotRead):
        await pages.read(LocalLog(room), 0, 3)
    room.release()
    assert numbers(await pages.read(LocalLog(room), 0, 3)) == [0, 1, 2]


async def test_an_empty_page_is_not_cached() -> None:
    journal = MemoryJournal(max_room_bytes=0)
    room = HeldRoom(journal.room("lobby"))
    for number in range(3):
        await say(room, str(number))
    pages = PageCache()
    assert await pages.read(LocalLog(room), 0, 2) == []
    assert await pages.read(LocalLog(room), 0, 2) == []
    assert len(room.reads) == 2
    assert numbers(await pages.read(LocalLog(room), 0, 3)) == [2]
