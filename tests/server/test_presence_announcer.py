"""Announcements of joins and leaves take at most two tasks for each room."""

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from multichat import Renamed
from multichat.net.send_queue import SendQueue, SendResult
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import Missed
from multichat.protocol.names import default_name
from multichat.protocol.text_codec import TEXT
from multichat.server.absences import Absence
from multichat.server.client import Client
from multichat.server.member import Member
from multichat.server.presence import MAX_TOLD_ONE_BY_ONE
from multichat.server.presence_announcer import PresenceAnnouncer
from multichat.testing import ScriptedClient, memory_server, run_on_mock_clock

pytestmark = pytest.mark.unit

AWAY_SECONDS = 30.0

NO_ROOM: Any = None  # the announcer asks nothing of it


def make_member(number: int) -> Member:
    near, _ = trio.testing.memory_stream_pair()
    send_queue = SendQueue(
        near, max_batches=4, encode_missed=lambda missed: JSON.encode(Missed(sum(missed.values())))
    )
    client = Client(
        number, default_name(number), send_queue, "", lambda _: None, lambda: None, JSON
    )
    return Member(client, NO_ROOM)


def test_repeated_leaves_and_resumes_do_not_accumulate_tasks() -> None:
    async def main() -> None:
        running: list[Callable[[], Awaitable[None]]] = []
        watcher, visitor = make_member(1), make_member(2)
        members = {1: watcher}

        async def run(task: Callable[[], Awaitable[None]]) -> None:
            try:
                await task()
            finally:
                running.remove(task)

        async with trio.open_nursery() as nursery:

            def start_soon(task: Callable[[], Awaitable[None]]) -> None:
                running.append(task)
                nursery.start_soon(run, task)

            announcer = PresenceAnnouncer(
                "lobby",
                members,
                {TEXT: {}, JSON: {1: watcher}},
                to_text=False,
                away_seconds=AWAY_SECONDS,
                start_soon=start_soon,
            )
            announcer.entered(watcher)
            for _ in range(100):
                members[2] = visitor
                announcer.entered(visitor)
                await trio.sleep(0.01)
                del members[2]
                announcer.left(visitor, "reset", away=True)
                await trio.sleep(0.01)
                assert len(running) <= 2
            with trio.fail_after(2 * AWAY_SECONDS):  # including the last one
                while running:
                    await trio.sleep(1)

    run_on_mock_clock(main)


class CountingMembers(dict[int, Member]):
    """Members that count how often one is looked up."""

    lookups = 0

    def get(self, key: int, default: Any = None) -> Any:
        self.lookups += 1
        return super().get(key, default)


async def test_while_no_client_receives_presence_each_new_client_costs_the_same(
    autojump_clock: MockClock,
) -> None:
    members = CountingMembers()
    text: dict[int, Member] = {}
    announcer = PresenceAnnouncer(
        "lobby",
        members,
        {TEXT: text},
        to_text=False,
        away_seconds=AWAY_SECONDS,
        start_soon=lambda _: None,
    )
    for number in range(1, 501):
        text[number] = members[number] = member = make_member(number)
        member.client.codec = TEXT
        member.client.arriving_until = trio.current_time() + 1
        announcer.entered(member)
    assert members.lookups < 5 * len(members)


async def test_a_new_name_of_a_client_that_is_away_is_announced(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat(name="bob") as bob:
        stream = network.connect()
        client = ScriptedClient(stream)
        await client.send('/json {"protocol":1,"name":"alice"}')
        await trio.sleep(5)  # it has been announced
        await client.send('{"type":"name","name":"alicia"}')
        await client.lines(2)
        await trio.aclose_forcefully(stream)
        with trio.fail_after(60):
            while not isinstance(event := await anext(bob), Renamed):
                pass
        assert event.name == "alicia"


class RecordingQueue:
    """Stands for a send queue that takes everything; *told* gets the events."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def try_send(self, data: bytes) -> SendResult:
        self.told += map(json.loads, data.splitlines())
        return SendResult.SENT


@pytest.mark.parametrize("count", [3, MAX_TOLD_ONE_BY_ONE])
async def test_a_new_member_gets_joined_for_members_that_were_away_when_it_entered(
    count: int,
) -> None:
    members: dict[int, Member] = {}
    queues: dict[int, RecordingQueue] = defaultdict(RecordingQueue)
    announcer = PresenceAnnouncer(
        "lobby",
        members,
        {TEXT: {}, JSON: members},
        to_text=False,
        away_seconds=AWAY_SECONDS,
        start_soon=lambda _: None,
    )

    def enter(*numbers: int) -> None:
        for number in numbers:
            members[number] = make_member(number)
            members[number].send_queue = cast("SendQueue", queues[number])
            announcer.entered(members[number])

    early = range(1, count + 1)
    until = trio.current_time() + AWAY_SECONDS
    announcer.expect({number: Absence(f"{number}", "", until) for number in early})
    enter(1000, 1001)
    announcer.encode_who(members[1000].client, None)  # now the other one is known
    announcer.left(members.pop(1001), "reset", away=True)
    enter(1002, *early, 1001)
    announcer.introduce(9999, "somebody else")
    told = {
        number: [each.get("client", each.get("joined")) for each in queues[number].told]
        for number in members
    }
    many = [*early, 1001] if count < MAX_TOLD_ONE_BY_ONE else [count + 1]
    early_ones: dict[int, list[int]] = {number: [] for number in early}
    assert told == {**early_ones, 1000: [*early], 1001: [*early], 1002: many}
