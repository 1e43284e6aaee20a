"""Pages of history: complete, in order, bounded, and at a cost proportional to their content."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.backend.local import LocalLog
from multichat.journal.base import iterate_backwards
from multichat.journal.memory import MemoryJournal
from multichat.protocol.ids import message_id
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import SaidBlock
from multichat.server.broadcast import Block
from multichat.server.history_pages import MAX_HISTORY_BYTES, MAX_HISTORY_MESSAGES, read_history
from multichat.server.recent_messages import Ring, RingBudget
from multichat.testing import run_on_mock_clock
from tests.support.journals import DelegatingRoom, encode

pytestmark = pytest.mark.unit


class CountingRoom(DelegatingRoom):
    """Counts the text read from a room of a memory journal."""

    def __init__(self) -> None:
        super().__init__(MemoryJournal().room("lobby"))
        self.read_bytes = 0

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        raise NotImplementedError

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        blocks = await super().read_before(stop, max_messages=max_messages, max_bytes=max_bytes)
        self.read_bytes += sum(len(block.text.encode()) for block in blocks)
        return blocks


def made(blocks: Sequence[Sequence[str]], *, ring_bytes: int) -> tuple[CountingRoom, Ring]:
    """Return a room's journal and ring with messages."""
    journal = CountingRoom()
    ring = Ring(RingBudget(1 << 40, ring_bytes=ring_bytes), 0)
    for texts in blocks:
        said = encode(journal, *texts)
        journal.append(said)
        ring.add(Block(said, len(texts)))
    return journal, ring


texts = st.sampled_from(["", "a", '"quoted"', "é" * 100, "x" * 30_000, "\\" * 60_000])


@given(
    st.lists(st.lists(texts, min_size=1, max_size=8), min_size=1, max_size=20),
    st.sampled_from([0, 2_000, 100_000, 1 << 30]),
    st.integers(0, 170),
    st.integers(1, 120),
)
def test_a_page_is_the_same_whether_the_ring_or_the_journal_has_it(
    blocks: list[list[str]], ring_bytes: int, stop: int, limit: int
) -> None:
    async def main() -> None:
        journal, ring = made(blocks, ring_bytes=ring_bytes)
        page = await read_history(LocalLog(journal), ring, min(stop, journal.next), limit, 7)
        said = [text for texts in blocks for text in texts][:stop]
        wanted: list[str] = []
        size = 0
        for text in reversed(said[-min(limit, MAX_HISTORY_MESSAGES) :]):
            size += len(JSON.encode_said(encode(journal, text)))
            if size > MAX_HISTORY_BYTES and wanted:
                break
            wanted.insert(0, text)
        assert [message.text for message in page.messages] == wanted
        first = len(said) - len(wanted)
        assert [message.id for message in page.messages] == [
            message_id(journal.epoch, number) for number in range(first, len(said))
        ]
        assert page.more == (first > 0 and bool(wanted))
        assert page.nonce == 7

    run_on_mock_clock(main)


@pytest.mark.parametrize("in_ring", [0, 2, 3, 200])
async def test_a_page_of_long_messages_reads_and_encodes_only_its_content(in_ring: int) -> None:
    """Regression: for a page of four messages, 6.4 MB were read and encoded twice."""
    journal, ring = made([["x" * 63_000]] * 100, ring_bytes=in_ring * 64_000)
    page = await read_history(LocalLog(journal), ring, 100, 100)
    assert len(page.messages) == 4
    assert journal.read_bytes <= (2 if in_ring <= 2 else 1 if in_ring == 3 else 0) * 63_000
    assert len(JSON.encode(page)) <= MAX_HISTORY_BYTES + 100


async def test_recent_history_is_not_read_from_the_journal() -> None:
    journal, ring = made([["short"]] * 300, ring_bytes=1 << 20)
    for stop, count in ((300, 100), (200, 100), (50, 50)):
        page = await read_history(LocalLog(journal), ring, stop, 100)
        assert len(page.messages) == count
    assert journal.read_bytes == 0


class CountingList(list[int]):
    """Counts accesses to its items."""

    looks = 0

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        self.looks += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("stop", [0, 1, 25_000, 50_000, 99_999])
def test_old_messages_are_found_without_looking_at_all_newer_ones(stop: int) -> None:
    items = CountingList(range(100_000))
    found = iterate_backwards(items, stop, int)
    assert [next(found, None) for _ in range(3)] == [
        number if number >= 0 else None for number in range(stop - 1, stop - 4, -1)
    ]
    assert items.looks <= 17 + 3
