"""Draining: listeners first, a pause, goodbyes spread over the time, and then the shutdown."""

import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import multichat
from multichat import ServerConfig, Slow
from multichat.errors import LocalProtocolError, Refused
from multichat.protocol.messages import Goodbye
from multichat.server.config import MAX_DRAIN_SECONDS, ServerTimeouts
from multichat.server.server import Server
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.hub import Hub
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK, WAIT_SECONDS
from tests.support.sockets import open_client
from tests.support.web import ask, http, upgrade

pytestmark = pytest.mark.unit

GOODBYE = "[Server] goodbye: the server is about to shut down"
SHUTDOWN = "[Server] goodbye: the server is shutting down"


class Leaver:
    """A client that reads until the server closes: *last* is its last line, *after* how long."""

    def __init__(self, client: ScriptedClient, started: float) -> None:
        self._client, self._started = client, started
        self.last = ""
        self.after = -1.0

    @property
    def goodbye(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.last)
        return found

    async def run(self) -> None:
        self.last = (await self._client.rest())[-1]
        self.after = trio.current_time() - self._started


async def json_client(network: MemoryServer) -> ScriptedClient:
    client = ScriptedClient(network.connect())
    await client.send("/json")
    assert json.loads(await client.line())["type"] == "welcome"
    return client


async def leavers(
    network: MemoryServer, clients: list[ScriptedClient], nursery: trio.Nursery
) -> list[Leaver]:
    found = [Leaver(client, trio.current_time()) for client in clients]
    for each in found:
        nursery.start_soon(each.run)
    await trio.testing.wait_all_tasks_blocked()
    return found


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[ScriptedClient]:
    """A client over TCP that the server knows."""
    client = await open_client(port, LOOPBACK)
    async with client.stream:
        await client.send("/ping")
        assert await client.line() == "[Server] pong"
        yield client


async def ended(server: Server) -> float:
    """Wait until the drain has ended; return how long it took."""
    started = trio.current_time()
    while not server.shutting_down:
        await trio.sleep(0.01)
    return trio.current_time() - started


async def test_each_client_gets_a_goodbye_that_says_how_much_time_is_left(
    autojump_clock: MockClock, log: LogRecorder
) -> None:
    async with memory_server() as network, trio.open_nursery() as nursery:
        clients = [await json_client(network) for _ in range(5)]
        gone = await leavers(network, clients, nursery)
        network.server.drain(12)
        assert (network.server.draining, network.server.shutting_down) == (True, False)
        assert await ended(network.server) == pytest.approx(4 + 8 * 4 / 5, abs=0.2)
        assert (network.server.draining, network.server.shutting_down) == (False, True)
        times = [each.after for each in gone]
        assert times == pytest.approx([4 + 8 * i / 5 for i in range(5)], abs=0.2)
        for each in gone:
            fields = {key: each.goodbye[key] for key in ("code", "reconnect")}
            assert fields == {"code": "draining", "reconnect": True}
            assert each.goodbye["after"] == pytest.approx(12 - each.after, abs=0.1)
    assert (
        "[INFO] [server] [stop] Draining: 5 clients are told to reconnect within 12 s" in log.lines
    )


async def test_a_thousand_goodbyes_are_spread_evenly(autojump_clock: MockClock) -> None:
    config = ServerConfig(max_clients=1000, timeouts=ServerTimeouts(drain_pause=2.0))
    async with memory_server(config) as network, trio.open_nursery() as nursery:
        clients = [ScriptedClient(network.connect()) for _ in range(1000)]
        await trio.testing.wait_all_tasks_blocked()
        gone = await leavers(network, clients, nursery)
        network.server.drain(12)
        assert await ended(network.server) == pytest.approx(12, abs=0.2)
        with trio.fail_after(5):
            while any(each.after < 0 for each in gone):
                await trio.sleep(0.01)
    assert {each.last for each in gone} == {GOODBYE}
    assert min(each.after for each in gone) >= 2
    # The last ones wait for their time in the grace period to end, not for the drain.
    each_second = Counter(int(each.after) for each in gone)
    assert sum(each_second[second] for second in range(2, 12)) >= 990
    assert all(90 <= each_second[second] <= 110 for second in range(2, 12)), each_second
    moments = sorted({round(each.after, 2) for each in gone})
    assert max(late - early for early, late in pairwise(moments)) <= 0.11


async def test_without_clients_a_drain_ends_at_once(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        network.server.drain(600)
        assert await ended(network.server) < 0.1


async def test_a_drain_ends_when_the_last_client_has_left(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        client = await network.join()
        network.server.drain(600)
        await trio.sleep(1)
        await client.send("/quit")
        assert await ended(network.server) < 0.1


async def test_clients_chat_until_their_goodbye(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        alice, bob = await network.join(), await network.join()
        network.server.drain(9)
        await trio.sleep(2.9)
        await alice.send("still here")
        assert await bob.line() == "[Client 1] still here"
        assert await alice.line() == GOODBYE
        await bob.send("alone")
        await trio.testing.wait_all_tasks_blocked()
        assert (await bob.rest()) == [GOODBYE]
        assert network.server.statistics().messages == 2


async def test_a_new_client_gets_a_goodbye_that_allows_it_to_reconnect(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        await network.join()
        network.server.drain(9)
        late = await network.join()
        assert await late.rest() == [GOODBYE]
        known = Goodbye(GOODBYE.removeprefix("[Server] goodbye: ")).known()
        assert (known.code, known.reconnect) == ("draining", True)


async def test_a_web_page_and_its_checks_are_answered_but_no_websocket(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        await network.join()
        network.server.drain(9)
        assert (await ask(network, http("/"))).status == 200
        for request in (upgrade(), http("/ws", method="OPTIONS")):
            refused = await ask(network, request)
            assert (refused.status, refused.fields["Retry-After"]) == (503, "9")
            assert refused.body == b"the server is about to shut down\n"


async def test_a_client_that_lags_gets_the_rest_first(autojump_clock: MockClock) -> None:
    config = ServerConfig(send_queue_batches=1, slow_timeout_seconds=0)
    async with memory_server(config) as network:
        slow, talker = await network.stalled(), await network.join()
        for number in range(20):
            await talker.send(str(number))
            await trio.testing.wait_all_tasks_blocked()
        assert network.server.members[0].behind
        network.server.drain(9)
        await trio.sleep(8)
        assert len(network.server.members) == 1
        slow.recover()
        assert await slow.rest() == [*(f"[Client 2] {number}" for number in range(20)), GOODBYE]


async def test_clients_that_have_caught_up_leave_evenly_in_the_time_that_is_left(
    autojump_clock: MockClock,
) -> None:
    config = ServerConfig(send_queue_batches=1, slow_timeout_seconds=0)
    async with memory_server(config) as network, trio.open_nursery() as nursery:
        slow, talker = [await network.stalled() for _ in range(20)], await network.join()
        for number in range(20):
            await talker.send(str(number))
            await trio.testing.wait_all_tasks_blocked()
        assert all(each.behind for each in network.server.members[:20])
        network.server.drain(15)
        await trio.sleep(5.5)
        assert len(network.server.members) == 20  # only the talker has left
        for client in slow:
            client.recover()
            nursery.start_soon(client.rest)
        for seconds in (2.5, 2.5, 2.5):
            before = len(network.server.members)
            await trio.sleep(seconds)
            assert 3 <= before - len(network.server.members) <= 7


async def test_a_client_that_lags_to_the_end_of_the_drain_is_left_to_the_shutdown(
    autojump_clock: MockClock,
) -> None:
    config = ServerConfig(send_queue_batches=1, slow_timeout_seconds=0)
    async with memory_server(config) as network:
        slow, talker = await network.stalled(), await network.join()
        for number in range(20):
            await talker.send(str(number))
            await trio.testing.wait_all_tasks_blocked()
        network.server.drain(9)
        assert await ended(network.server) == pytest.approx(9, abs=0.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.server.close)
            await trio.testing.wait_all_tasks_blocked()
            slow.recover()
            assert await slow.rest() == [
                *(f"[Client 2] {number}" for number in range(20)),
                SHUTDOWN,
            ]


async def test_bots_stay_until_the_shutdown(autojump_clock: MockClock) -> None:
    async def bot(chat: multichat.Chat) -> None:
        async for event in chat:
            if isinstance(event, multichat.Said):
                await chat.say("heard")

    async with memory_server() as network:
        with trio.fail_after(60):
            client = await network.join()
            await network.server.start_bot(bot, name="bot")
            network.server.drain(9)
            await trio.sleep(1)
            await client.send("hello")
            assert await client.line() == "[bot] heard"
            assert await client.rest() == [GOODBYE]
            assert await ended(network.server) < 0.1
            assert [member.name for member in network.server.members] == ["bot"]
            with pytest.raises(Refused):
                await network.server.start_bot(bot, name="late")


async def test_a_drain_announces_only_the_clients_that_it_disconnects(log: LogRecorder) -> None:
    for names in ([], ["bot"]):
        async with memory_server() as network:
            for name in names:
                await network.server.start_bot(_idle, name=name)
            assert network.server.admin.drain(9) == "draining: no client is connected"
            with trio.fail_after(5):
                await ended(network.server)
    assert not [line for line in log.lines if "Draining" in line]
    async with memory_server() as network:
        await network.server.start_bot(_idle, name="bot")
        await network.join()
        network.server.drain(9)
        network.server.shutdown()
    announced = [line for line in log.lines if "Draining" in line]
    assert announced == [
        "[INFO] [server] [stop] Draining: 1 client is told to reconnect within 9 s"
    ]


async def _idle(_: multichat.Chat) -> None:
    await trio.sleep_forever()


async def test_a_second_drain_changes_nothing_and_a_shutdown_ends_it(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        await network.join()
        server = network.server
        assert server.admin.drain(30) == "draining: 1 client is told to reconnect within 30 s"
        await trio.sleep(2)
        assert server.admin.drain(1) == "draining already: 28 s are left"
        assert server.ending.seconds_left == pytest.approx(28)
        server.shutdown()
        assert (server.draining, server.ending.seconds_left) == (False, 0)
        assert server.admin.drain() == "the server is shutting down"
        await trio.sleep(1)
        assert len(server.members) == 1  # `close` sends a goodbye


@pytest.mark.parametrize("seconds", [-1, MAX_DRAIN_SECONDS + 1, float("nan"), float("inf")])
async def test_a_drain_has_a_bounded_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="drain_seconds must be "):
        ServerConfig(drain_seconds=seconds)
    async with memory_server() as network:
        with pytest.raises(LocalProtocolError, match="a drain has 0 to 86400 seconds"):
            network.server.drain(seconds)
        assert not network.server.shutting_down


@pytest.mark.parametrize(
    ("configured", "is_node", "seconds"), [(None, False, 0), (None, True, 15), (3, True, 3)]
)
async def test_the_time_of_a_drain_by_default(
    configured: float | None, is_node: bool, seconds: float, autojump_clock: MockClock
) -> None:
    config = ServerConfig(drain_seconds=configured)
    async with memory_server(config, backend=Hub().node("one") if is_node else None) as network:
        await network.join()
        network.server.drain()
        assert network.server.ending.seconds_left == seconds
        assert network.server.shutting_down == (not seconds)


@pytest.mark.process
async def test_listeners_are_closed_first_and_the_page_last() -> None:
    async with trio.open_nursery() as nursery:
        server = Server()
        await nursery.start(partial(server.run, 0, host=LOOPBACK, web=0))
        web = int(server.web_url.rstrip("/").rpartition(":")[2])
        async with opened(server.port) as client:
            server.drain(60)
            with trio.fail_after(WAIT_SECONDS):
                while True:
                    try:
                        (await trio.open_tcp_stream(LOOPBACK, server.port)).socket.close()
                    except OSError:
                        break
            async with await trio.open_tcp_stream(LOOPBACK, web) as page:
                await page.send_all(http("/"))
                assert b" 200 OK" in await page.receive_some()
            server.shutdown()
            assert await client.rest() == [SHUTDOWN]
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream(LOOPBACK, web)


@pytest.mark.process
@pytest.mark.parametrize("begins", ["drain", "shutdown"])
async def test_an_abort_sends_a_goodbye_to_clients_that_read_and_waits_for_none(
    begins: str,
) -> None:
    config = ServerConfig(grace_seconds=600, send_queue_batches=1, slow=Slow.DROP)
    async with trio.open_nursery() as nursery:
        server = Server(config)
        await nursery.start(partial(server.run, 0, host=LOOPBACK))
        async with opened(server.port) as reader, opened(server.port) as stalled:
            assert isinstance(stalled.stream, trio.SocketStream)
            stalled.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with trio.fail_after(WAIT_SECONDS):
                while not server.statistics().skipped:
                    await server.broadcast("x" * 60_000)
                    await reader.line()
            if begins == "drain":
                server.drain(600)
            else:
                server.shutdown()
            await trio.sleep(0.1)
            started = trio.current_time()
            server.abort()
            assert await reader.rest() == [SHUTDOWN]
            with trio.fail_after(WAIT_SECONDS):
                while server.members:
                    await trio.sleep(0.01)
            assert trio.current_time() - started < 5
