"""The turns of replays at the event loop: which client they are charged to."""

import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from multichat import ServerConfig
from multichat.net.fair_share import Shares
from multichat.net.transport import peer_address
from multichat.net.turns import Meter, Turns, current_meter
from multichat.server.config import ReplayLimits
from multichat.server.origin import Origin
from multichat.server.server import Server
from multichat.testing import MemoryServer, memory_server
from tests.support.processes import WAIT_SECONDS
from tests.support.sockets import tcp_pair

pytestmark = pytest.mark.unit

# No waiting, and the second batch finds the send queue full.
LAGGING = ServerConfig(slow_timeout_seconds=0, send_queue_batches=1)

# All turns are long: one at a time, without pauses.
LONG_TURNS = Shares(excess_seconds=0, long_lane=1.0, new_lane=1.0)


class MetersOf(trio.abc.Instrument):
    """Records on which meter the tasks of that name run."""

    def __init__(self, name: str) -> None:
        self.meters: set[Meter | None] = set()
        self._name = name

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith(self._name):
            self.meters.add(task.context.get(current_meter))


@asynccontextmanager
async def meters_of(name: str) -> AsyncGenerator[set[Meter | None]]:
    noted = MetersOf(name)
    trio.lowlevel.add_instrument(noted)
    try:
        yield noted.meters
    finally:
        trio.lowlevel.remove_instrument(noted)


@pytest.mark.process
@pytest.mark.parametrize("by", ["a message", "an announcement"])
async def test_a_replay_is_charged_to_its_own_client(by: str) -> None:
    async with memory_server(LAGGING) as network, meters_of("._replay") as meters:
        near, far = await tcp_pair()
        for end, option in ((near, socket.SO_SNDBUF), (far, socket.SO_RCVBUF)):
            end.socket.setsockopt(socket.SOL_SOCKET, option, 4096)
        origin = Origin.of(peer_address(near))
        assert origin is not None
        network.accept(near)
        await trio.testing.wait_all_tasks_blocked()
        sender = await network.join()  # its connection has no address
        with trio.fail_after(WAIT_SECONDS):
            async with meters_of("._write") as writers:
                while not meters:
                    if by == "a message":
                        await sender.send("x" * 8000, "/ping")
                        assert await sender.line() == "[Server] pong"
                    else:
                        await network.server.broadcast("x" * 8000)
                        await sender.line()
                    await trio.testing.wait_all_tasks_blocked()
            await far.aclose()
        assert {meter and meter.address for meter in meters} == {origin.address}
        assert writers == {None}, "who writes reads nothing, and takes no turns"


async def test_all_replays_of_a_connection_are_on_one_meter(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server() as network, meters_of("._replay") as meters:
        sender = await network.join()
        await sender.send("first", "second", "/ping")
        assert await sender.line() == "[Server] pong"
        reader = await network.join()
        await reader.send('/json {"protocol":1,"replay":2}')
        assert '"welcome"' in await reader.line()
        first = json.loads(await reader.line())
        assert '"second"' in await reader.line()
        for _ in range(2):
            await reader.send(
                json.dumps({"type": "join", "room": first["room"], "since": first["id"]})
            )
            assert '"joined"' in await reader.line()
            assert '"second"' in await reader.line()
            await trio.testing.wait_all_tasks_blocked()
    assert len(meters) == 1


async def test_a_replay_has_no_more_credit_than_its_connection() -> None:
    reader = Meter(Turns(), "")
    reader.is_new, reader.credit, reader.credit_at = False, 0.001, 5.0
    replay = reader.another()
    assert (replay.is_new, replay.credit, replay.credit_at) == (False, 0.001, 5.0)


async def have_a_turn(meter: Meter, until: trio.Event) -> None:
    async def run() -> None:
        await meter.take()
        await until.wait()

    await meter.measure(run())


async def test_a_part_is_encoded_in_a_turn_that_begins_when_the_client_can_take_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    config = ServerConfig(
        slow_timeout_seconds=0, send_queue_batches=1, replay=ReplayLimits(queue_bytes=1)
    )
    async with (
        Server(config, shares=LONG_TURNS).open() as server,
        trio.open_nursery() as nursery,
        meters_of("._replay") as meters,
    ):
        network = MemoryServer(server, nursery)
        sender = await network.join()
        slow = await network.join(lockstep=True)
        await trio.sleep(1)
        for i in range(9):
            await sender.send(str(i), "/ping")
            assert await sender.line() == "[Server] pong"
        [client] = [each for each in server._registry.clients if each.number == 2]
        for i in range(4):
            assert await slow.line() == f"[Client 1] {i}"
            await trio.sleep(1)
        assert client.lagging()
        [meter] = meters
        assert meter is not None
        assert not meter.has_turn, "while it waits for its client"
        release = trio.Event()
        nursery.start_soon(have_a_turn, Meter(server._turns, "somebody else"), release)
        await trio.testing.wait_all_tasks_blocked()
        assert await slow.line() == "[Client 1] 4"
        await trio.testing.wait_all_tasks_blocked()
        assert (meter.waits, client.send_queue.waiting_bytes) == (True, 0)
        release.set()
        assert await slow.lines(4) == [f"[Client 1] {i}" for i in range(5, 9)]
        nursery.cancel_scope.cancel(reason="the test is over")
