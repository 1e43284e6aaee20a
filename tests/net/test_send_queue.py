"""A send queue: order, bounds, and waking senders when there is space."""

import weakref

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from multichat.net.memory_budget import MemoryBudget
from multichat.net.send_queue import MAX_WAITING_BYTES, SendQueue, SendResult
from multichat.protocol.messages import Missed
from multichat.protocol.text_codec import TEXT
from tests.support.collector import collector_off
from tests.support.sockets import tcp_pair

pytestmark = pytest.mark.unit


def send_queue_on(
    stream: trio.abc.Stream, max_batches: int = 2, budget: MemoryBudget | None = None
) -> SendQueue:
    return SendQueue(
        stream,
        max_batches=max_batches,
        encode_missed=lambda missed: TEXT.encode(Missed(sum(missed.values()))),
        budget=budget,
    )


async def read_until_eof(stream: trio.abc.Stream) -> bytes:
    received = bytearray()
    async for data in stream:
        received += data
    return bytes(received)


async def test_batches_are_written_in_order_and_the_goodbye_last() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    send_queue = send_queue_on(ours)
    assert send_queue.try_send(b"a\n") is SendResult.QUEUED
    assert send_queue.try_send(b"b\n") is SendResult.QUEUED
    assert send_queue.try_send(b"c\n") is SendResult.FULL
    assert send_queue.waiting_bytes == 4
    send_queue.close(b"bye\n")
    send_queue.close(b"never\n")
    assert send_queue.try_send(b"d\n") is SendResult.CLOSED
    await send_queue.run()
    assert send_queue.drained
    assert send_queue.waiting_bytes == 0
    await ours.send_eof()
    assert await read_until_eof(theirs) == b"a\nb\nbye\n"


async def test_a_client_that_missed_nothing_gets_no_notice() -> None:
    send_queue = send_queue_on(trio.testing.memory_stream_pair()[0])
    send_queue.miss(0, "lobby")  # it was behind its own messages only
    assert send_queue.take_missed() == b""
    send_queue.miss(2, "lobby")
    assert b"2" in send_queue.take_missed()


async def test_while_memory_is_tight_send_queues_are_shorter() -> None:
    budget = MemoryBudget(2 * MAX_WAITING_BYTES)
    ours, _ = trio.testing.memory_stream_pair()
    send_queue = send_queue_on(ours, 64, budget)
    assert send_queue.try_send(b"x" * 256 * 1024) is SendResult.QUEUED
    assert send_queue.try_send(b"y") is SendResult.QUEUED
    assert send_queue.replay_bound(80) == 80
    send_queue.note(MAX_WAITING_BYTES)
    assert send_queue.held_bytes == budget.held_bytes > MAX_WAITING_BYTES
    assert send_queue.try_send(b"z") is SendResult.FULL
    assert not send_queue.has_room(1)
    assert send_queue.replay_bound(80) == 10
    assert send_queue.replay_bound(1) == 1  # else nothing would ever be replayed
    send_queue.note(0)
    assert send_queue.try_send(b"z") is SendResult.QUEUED
    send_queue.note(MAX_WAITING_BYTES)
    send_queue.close()
    assert budget.held_bytes == send_queue.waiting_bytes
    await send_queue.run()
    send_queue.note(1)
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


async def test_queued_batches_are_joined_into_one_write() -> None:
    stream = Recorder()
    send_queue = send_queue_on(stream, max_batches=64)
    for i in range(5):
        send_queue.try_send(b"%d\n" % i)
    send_queue.try_send(b"x" * 300_000)
    send_queue.try_send(b"y")
    send_queue.close()
    await send_queue.run()
    # Joined, but not without end: a write that is large enough is not made larger.
    assert stream.writes == [b"0\n1\n2\n3\n4\n" + b"x" * 300_000, b"y"]


async def test_while_memory_is_tight_queued_batches_are_not_joined() -> None:
    """What members share would be each one's own."""
    stream, budget = Recorder(), MemoryBudget(1000)
    budget.add(900)
    send_queue = send_queue_on(stream, 64, budget)
    for i in range(3):
        send_queue.try_send(b"%d\n" % i)
    send_queue.close()
    await send_queue.run()
    assert stream.writes == [b"0\n", b"1\n", b"2\n"]


@pytest.mark.process
async def test_while_nothing_is_queued_bytes_go_straight_to_the_kernel() -> None:
    ours, theirs = await tcp_pair()
    async with ours, theirs:
        send_queue = send_queue_on(ours)
        assert send_queue.try_send(b"now\n") is SendResult.SENT
        assert send_queue.waiting_bytes == 0
        assert await theirs.receive_some(100) == b"now\n"


@pytest.mark.process
@settings(max_examples=50)
@given(st.lists(st.integers(1, 400_000), max_size=20), st.integers(10_000, 400_000))
async def test_bytes_never_overtake_each_other(sizes: list[int], read_bytes: int) -> None:
    """Written at once, in part, or by the writer task, in whatever order these take turns."""
    ours, theirs = await tcp_pair()
    async with ours, theirs, trio.open_nursery() as nursery:
        send_queue = send_queue_on(ours, max_batches=4)
        nursery.start_soon(send_queue.run)
        sent = bytearray()
        received = bytearray()

        async def read() -> None:
            while data := await theirs.receive_some(read_bytes):
                received.extend(data)

        nursery.start_soon(read)
        for i, size in enumerate(sizes):
            data = b"%08d" % i + bytes([i % 256]) * size
            if i % 3:
                await send_queue.put(data)
                sent += data
            elif send_queue.try_send(data) is not SendResult.FULL:
                sent += data
        send_queue.close(b"the end")
        while not send_queue.drained:
            await trio.lowlevel.checkpoint()
        await ours.send_eof()
    assert received == sent + b"the end"


async def test_bytes_are_bounded_but_one_large_message_always_fits() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    send_queue = send_queue_on(ours, max_batches=100)
    assert send_queue.try_send(b"x" * (MAX_WAITING_BYTES + 1)) is SendResult.QUEUED
    assert send_queue.try_send(b"y") is SendResult.FULL


async def test_put_waits_for_space_and_takes_nothing_if_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    send_queue = send_queue_on(ours, max_batches=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_queue.run)
        await send_queue.put(b"1")
        await trio.testing.wait_all_tasks_blocked()
        await send_queue.put(b"2")
        with trio.move_on_after(1) as scope:
            await send_queue.put(b"never")
        assert scope.cancelled_caught
        assert not send_queue._space_callbacks  # nothing is left behind
        nursery.start_soon(send_queue.put, b"3")
        await trio.testing.wait_all_tasks_blocked()
        received = b""
        while len(received) < 3:
            received += await theirs.receive_some(10)
        assert received == b"123"
        send_queue.close()


async def test_put_is_a_checkpoint_even_with_space() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    send_queue = send_queue_on(ours)
    with trio.CancelScope() as scope:
        scope.cancel()
        await send_queue.put(b"never")
    assert scope.cancelled_caught
    assert send_queue.waiting_bytes == 0


async def test_waiting_senders_are_woken_when_the_queue_closes() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    send_queue = send_queue_on(ours, max_batches=1)
    send_queue.try_send(b"1")
    results: list[SendResult] = []

    async def put() -> None:
        while (try_send := await send_queue.put(b"2")) is not SendResult.CLOSED:
            pass
        results.append(try_send)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()
        await send_queue.run()
    assert results == [SendResult.CLOSED]
    assert send_queue.failure == "connection broken"
    assert not send_queue.drained
    called: list[bool] = []
    send_queue.call_when_space(lambda: called.append(True))
    assert called == [True]


async def test_a_broken_send_queue_is_released_without_the_collector() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    send_queue = send_queue_on(ours)
    send_queue.try_send(b"1")
    await theirs.aclose()
    await send_queue.run()
    assert send_queue.failure
    stream = weakref.ref(ours)
    with collector_off():
        del ours, send_queue
        assert stream() is None


async def test_cancelling_the_writer_closes_the_send_queue() -> None:
    ours, _ = trio.testing.lockstep_stream_pair()
    send_queue = send_queue_on(ours)
    send_queue.try_send(b"x")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_queue.run)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert send_queue.closed
    assert not send_queue.drained
    assert send_queue.failure == ""
    assert send_queue.waiting_bytes == 0


async def test_the_writer_starts_when_something_is_queued_for_the_first_time() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    asked: list[str] = []
    send_queue = SendQueue(
        ours,
        max_batches=2,
        encode_missed=lambda missed: TEXT.encode(Missed(sum(missed.values()))),
        on_waiting=lambda: asked.append("now"),
    )
    assert asked == []
    assert send_queue.try_send(b"a\n") is SendResult.QUEUED
    assert send_queue.try_send(b"b\n") is SendResult.QUEUED
    assert asked == ["now"]


async def test_the_goodbye_is_written_even_if_nothing_was_ever_queued() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    send_queue = send_queue_on(ours)
    send_queue.close(b"bye\n")
    await send_queue.run()
    assert send_queue.drained
    await ours.send_eof()
    assert await read_until_eof(theirs) == b"bye\n"
