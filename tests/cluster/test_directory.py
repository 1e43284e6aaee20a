"""The events of the directory, as the server receives them."""

import pytest
import trio

from multichat.backend.events import Event, NodeAdded
from multichat.cluster.changes import Settings
from multichat.cluster.directory import Directory, DirectoryConfig

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
