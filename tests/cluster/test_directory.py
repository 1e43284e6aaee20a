"""The events of the directory, as the server receives them."""

from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from multichat.backend.events import Announced, Event, NodeAdded
from multichat.cluster.changes import Announcement, Fed, Settings
from multichat.cluster.directory import Directory, DirectoryConfig
from multichat.cluster.event_queue import EventQueue
from multichat.cluster.link import Link

pytestmark = pytest.mark.unit


async def test_receiving_many_events_lets_other_tasks_run_and_keeps_the_order() -> None:
    directory = Directory("a", DirectoryConfig(settings=Settings()))
    sent = [NodeAdded(str(number)) for number in range(1000)]
    for event in sent:
        directory.tell(event)
    received: list[Event] = []
    turns: list[int] = []  # how many were received at each turn of another task

    async def note_turns() -> None:
        while len(received) < len(sent):
            turns.append(len(received))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note_turns)
        for _ in sent:
            received.append(await directory.receive())  # noqa: PERF401 - others count them
    assert received == sent
    assert len(turns) > 10


async def test_a_cancelled_receive_loses_no_event() -> None:
    directory = Directory("a", DirectoryConfig(settings=Settings()))
    received: list[Event] = []
    for number in range(100):
        directory.tell(NodeAdded(str(number)))
        with trio.CancelScope() as scope:
            scope.cancel(reason="the test")
            received.append(await directory.receive())
    while len(received) < 100:
        received.append(await directory.receive())
    assert received == [NodeAdded(str(number)) for number in range(100)]


class Feed:
    """A link to an engine that has as many events as are asked for."""

    def __init__(self) -> None:
        self.event = msgspec.msgpack.encode(Fed("b", Announcement("x" * 1000)))
        self.pages = 0

    async def call(self, *words: Any) -> list[Any]:
        _, function, _, after, count = words
        assert function == "multichat_events"
        self.pages += 1
        await trio.lowlevel.checkpoint()
        return [each for n in range(count) for each in (after + 1 + n, self.event)]


async def test_a_flood_of_events_is_not_read_faster_than_the_server_receives_them() -> None:
    config = DirectoryConfig(settings=Settings(), events_bytes=10_000_000)
    directory, feed = Directory("a", config), Feed()
    link = cast("Link", feed)

    async def receive(count: int) -> None:
        for _ in range(count):
            assert isinstance(await directory.receive(), Announced)

    async def flood() -> int:
        before = directory.replica.number
        for number in range(before + 1, before + 30_001):
            await directory.take(link, b"%d %s" % (number, feed.event))
        return directory.replica.number - before

    pushed = await flood()
    assert 6000 < pushed < 10_000  # bytes, and something for each
    await directory.catch_up(link)
    assert feed.pages == 0
    await receive(pushed)
    with trio.fail_after(60):
        await directory.catch_up(link)  # ends, though there is always more
    assert 1 < feed.pages < 10
    await directory.take(link, b"%d %s" % (directory.replica.number + 9, feed.event))
    assert feed.pages < 10
    await receive(directory.replica.number + 1 - pushed)
    assert await flood() == pytest.approx(pushed, rel=0.01)


async def test_a_snapshot_waits_until_the_events_of_the_last_one_are_received() -> None:
    events = EventQueue(1000)
    events.put(NodeAdded("a"))
    events.put(NodeAdded("b"))
    events.has_snapshot = True
    done: list[str] = []

    async def load() -> None:
        await events.wait_empty()
        done.append("loaded")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        await events.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert (done, events.has_snapshot) == ([], True)
        await events.receive()
    assert (done, events.has_snapshot) == (["loaded"], False)
