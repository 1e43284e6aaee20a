"""A mailbox: order, bounds, and who is told when there is room."""

import weakref

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from multichat.net.memory_budget import MemoryBudget
from multichat.net.send_queue import MAX_WAITING_BYTES, Mailbox, Offer
from multichat.protocol.codecs import TEXT
from multichat.protocol.messages import Missed

from .support.collector import collector_off
from .support.sockets import tcp_pair

pytestmark = pytest.mark.unit


def mailbox_on(
    stream: trio.abc.Stream, max_batches: int = 2, budget: MemoryBudget | None = None
) -> Mailbox:
    return Mailbox(
        stream,
        max_batches=max_batches,
        spell_missed=lambda count: TEXT.spell(Missed(count)),
        budget=budget,
    )


async def read_until_eof(stream: trio.abc.Stream) -> bytes:
    received = bytearray()
    async for data in stream:
        received += data
    return bytes(received)


async def test_what_is_offered_is_written_in_order_and_the_last_words_last() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    mailbox = mailbox_on(ours)
    assert mailbox.offer(b"a\n") is Offer.QUEUED
    assert mailbox.offer(b"b\n") is Offer.QUEUED
    assert mailbox.offer(b"c\n") is Offer.FULL
    assert mailbox.waiting_bytes == 4
    mailbox.close(b"bye\n")
    mailbox.close(b"never\n")
    assert mailbox.offer(b"d\n") is Offer.CLOSED
    await mailbox.run()
    assert mailbox.drained
    assert mailbox.waiting_bytes == 0
    await ours.send_eof()
    assert await read_until_eof(theirs) == b"a\nb\nbye\n"


async def test_while_memory_is_tight_send_queues_are_shorter() -> None:
    budget = MemoryBudget(2 * MAX_WAITING_BYTES)
    ours, _ = trio.testing.memory_stream_pair()
    mailbox = mailbox_on(ours, 64, budget)
    assert mailbox.offer(b"x" * 256 * 1024) is Offer.QUEUED
    assert mailbox.offer(b"y") is Offer.QUEUED
    assert mailbox.fit(80) == 80
    mailbox.note(MAX_WAITING_BYTES)
    assert mailbox.held_bytes == budget.held_bytes > MAX_WAITING_BYTES
    assert mailbox.offer(b"z") is Offer.FULL
    assert not mailbox.has_room(1)
    assert mailbox.fit(80) == 10
    assert mailbox.fit(1) == 1  # else nothing would ever be replayed
    mailbox.note(0)
    assert mailbox.offer(b"z") is Offer.QUEUED
    mailbox.note(MAX_WAITING_BYTES)
    mailbox.close()
    assert budget.held_bytes == mailbox.waiting_bytes
    await mailbox.run()
    mailbox.note(1)
    assert budget.held_bytes == 0


class Recorder(trio.abc.Stream):
    def __init__(self) -> None:
        self.writes: list[bytes] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.writes.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_what_waits_is_joined_into_one_write() -> None:
    stream = Recorder()
    mailbox = mailbox_on(stream, max_batches=64)
    for i in range(5):
        mailbox.offer(b"%d\n" % i)
    mailbox.offer(b"x" * 300_000)
    mailbox.offer(b"y")
    mailbox.close()
    await mailbox.run()
    # Joined, but not without end: a write that is large enough is not made larger.
    assert stream.writes == [b"0\n1\n2\n3\n4\n" + b"x" * 300_000, b"y"]


async def test_while_memory_is_tight_what_waits_is_not_copied_into_one_write() -> None:
    """What members share would be each one's own."""
    stream, budget = Recorder(), MemoryBudget(1000)
    budget.add(900)
    mailbox = mailbox_on(stream, 64, budget)
    for i in range(3):
        mailbox.offer(b"%d\n" % i)
    mailbox.close()
    await mailbox.run()
    assert stream.writes == [b"0\n", b"1\n", b"2\n"]


@pytest.mark.process
async def test_while_nothing_waits_bytes_go_straight_to_the_kernel() -> None:
    ours, theirs = await tcp_pair()
    async with ours, theirs:
        mailbox = mailbox_on(ours)
        assert mailbox.offer(b"now\n") is Offer.SENT
        assert mailbox.waiting_bytes == 0
        assert await theirs.receive_some(100) == b"now\n"


@pytest.mark.process
@settings(max_examples=50)
@given(st.lists(st.integers(1, 400_000), max_size=20), st.integers(10_000, 400_000))
async def test_bytes_never_overtake_each_other(sizes: list[int], read_bytes: int) -> None:
    """Offered at once, in part, and by the writer task, in whatever order these take turns."""
    ours, theirs = await tcp_pair()
    async with ours, theirs, trio.open_nursery() as nursery:
        mailbox = mailbox_on(ours, max_batches=4)
        nursery.start_soon(mailbox.run)
        sent = bytearray()
        received = bytearray()

        async def read() -> None:
            while data := await theirs.receive_some(read_bytes):
                received.extend(data)

        nursery.start_soon(read)
        for i, size in enumerate(sizes):
            data = b"%08d" % i + bytes([i % 256]) * size
            if i % 3:
                await mailbox.put(data)
                sent += data
            elif mailbox.offer(data) is not Offer.FULL:
                sent += data
        mailbox.close(b"the end")
        while not mailbox.drained:
            await trio.lowlevel.checkpoint()
        await ours.send_eof()
    assert received == sent + b"the end"


async def test_bytes_are_bounded_but_one_large_message_always_fits() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    mailbox = mailbox_on(ours, max_batches=100)
    assert mailbox.offer(b"x" * (MAX_WAITING_BYTES + 1)) is Offer.QUEUED
    assert mailbox.offer(b"y") is Offer.FULL


async def test_put_waits_for_room_and_cancelled_has_taken_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    mailbox = mailbox_on(ours, max_batches=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.run)
        await mailbox.put(b"1")
        await trio.testing.wait_all_tasks_blocked()
        await mailbox.put(b"2")
        with trio.move_on_after(1) as scope:
            await mailbox.put(b"never")
        assert scope.cancelled_caught
        assert not mailbox._space_callbacks  # nothing is left behind
        nursery.start_soon(mailbox.put, b"3")
        await trio.testing.wait_all_tasks_blocked()
        received = b""
        while len(received) < 3:
            received += await theirs.receive_some(10)
        assert received == b"123"
        mailbox.close()


async def test_put_notices_cancellation_even_where_there_is_room() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    mailbox = mailbox_on(ours)
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.put(b"never")
    assert scope.cancelled_caught
    assert mailbox.waiting_bytes == 0


async def test_whoever_waits_for_room_is_woken_when_nobody_is_left() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    mailbox = mailbox_on(ours, max_batches=1)
    mailbox.offer(b"1")
    offers: list[Offer] = []

    async def put() -> None:
        while (offer := await mailbox.put(b"2")) is not Offer.CLOSED:
            pass
        offers.append(offer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()
        await mailbox.run()
    assert offers == [Offer.CLOSED]
    assert mailbox.failure == "connection broken"
    assert not mailbox.drained
    called: list[bool] = []
    mailbox.call_when_space(lambda: called.append(True))
    assert called == [True]


async def test_what_is_left_of_a_broken_one_does_not_wait_for_the_collector() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    mailbox = mailbox_on(ours)
    mailbox.offer(b"1")
    await theirs.aclose()
    await mailbox.run()
    assert mailbox.failure
    stream = weakref.ref(ours)
    with collector_off():
        del ours, mailbox
        assert stream() is None


async def test_cancelling_the_writer_closes_the_mailbox() -> None:
    ours, _ = trio.testing.lockstep_stream_pair()
    mailbox = mailbox_on(ours)
    mailbox.offer(b"x")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mailbox.run)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert mailbox.closed
    assert not mailbox.drained
    assert mailbox.failure == ""
    assert mailbox.waiting_bytes == 0


async def test_a_task_is_asked_for_when_something_waits_for_the_first_time() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    asked: list[str] = []
    mailbox = Mailbox(
        ours,
        max_batches=2,
        spell_missed=lambda count: TEXT.spell(Missed(count)),
        on_waiting=lambda: asked.append("now"),
    )
    assert asked == []
    assert mailbox.offer(b"a\n") is Offer.QUEUED
    assert mailbox.offer(b"b\n") is Offer.QUEUED
    assert asked == ["now"]


async def test_the_last_words_are_written_where_nothing_ever_waited() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    mailbox = mailbox_on(ours)
    mailbox.close(b"bye\n")
    await mailbox.run()
    assert mailbox.drained
    await ours.send_eof()
    assert await read_until_eof(theirs) == b"bye\n"
