"""What a server counts: how clients leave, what lagging clients missed, the loop, and readiness."""

import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from multichat import Server, ServerConfig, Slow
from multichat.journal.memory import MemoryJournal
from multichat.net.fair_share import Shares
from multichat.net.transport import has_ended
from multichat.net.turns import Meter, Turns
from multichat.server.config import ReplayLimits
from multichat.server.loop_watch import LoopWatch, WatchTimes
from multichat.server.refusals import DISCONNECT_CODES
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.journals import HeldJournal
from tests.support.log import LogRecorder
from tests.support.sockets import tcp_pair

pytestmark = pytest.mark.unit


# --- How clients leave ----------------------------------------------------------------------------


async def quit_(network: MemoryServer, client: ScriptedClient) -> None:
    await client.send("/quit")


async def close(network: MemoryServer, client: ScriptedClient) -> None:
    await client.finish()


async def be_kicked(network: MemoryServer, client: ScriptedClient) -> None:
    network.server.kick(network.server.members[-1].client)


async def be_idle(network: MemoryServer, client: ScriptedClient) -> None:
    await trio.sleep(61)


async def speak_http(network: MemoryServer, client: ScriptedClient) -> None:
    await client.send("GET / HTTP/1.1")


async def speak_tls(network: MemoryServer, client: ScriptedClient) -> None:
    await client.stream.send_all(b"\x16\x03\x01")


async def be_replaced(network: MemoryServer, client: ScriptedClient) -> None:
    await client.send("/json {}")
    session = json.loads(await client.line())["session"]
    again = await network.join()
    await again.send("/json " + json.dumps({"session": session}))
    await again.line()
    await again.send('{"type":"quit"}')


async def shut_down(network: MemoryServer, client: ScriptedClient) -> None:
    await network.server.close()


@pytest.mark.parametrize(
    ("leave", "codes"),
    [
        (quit_, ["quit"]),
        (close, ["closed"]),
        (be_kicked, ["kicked"]),
        (be_idle, ["idle"]),
        (speak_http, ["protocol-error"]),
        (speak_tls, ["protocol-error"]),
        (be_replaced, ["replaced", "quit"]),
        (shut_down, ["shutdown"]),
    ],
)
async def test_clients_that_leave_are_counted_by_code(
    leave: Callable[[MemoryServer, ScriptedClient], Any],
    codes: list[str],
    autojump_clock: MockClock,
) -> None:
    async with memory_server(ServerConfig(idle_seconds=60)) as network:
        client = await network.join()
        assert set(network.server.statistics().disconnects) == set(DISCONNECT_CODES)
        await leave(network, client)
        await client.rest()
        await wait_all_tasks_blocked()
        statistics = network.server.statistics()
        counted = {code: count for code, count in statistics.disconnects.items() if count}
        assert counted == {code: codes.count(code) for code in codes}
        assert sum(counted.values()) == statistics.clients_ever - statistics.clients


@pytest.mark.process
@pytest.mark.parametrize(("reset", "code"), [(True, "lost"), (False, "closed")])
async def test_a_connection_to_which_the_server_writes_is_lost_only_if_it_was_reset(
    reset: bool, code: str, log: LogRecorder
) -> None:
    async with memory_server() as network:
        ours, theirs = await tcp_pair()
        network.accept(ours)
        client = ScriptedClient(theirs)
        await client.send("/ping")
        assert await client.line() == "[Server] pong"
        if reset:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.socket.close()
        deadline = time.monotonic() + 60
        while not has_ended(ours):  # does not wait: the server writes before it can read
            assert time.monotonic() < deadline
        [member] = network.server._registry.clients
        for _ in range(2):
            member.send_queue.try_send(b"hello\n")
        with trio.fail_after(60):
            while not network.server.statistics().disconnects[code]:
                await trio.sleep(0.01)
        counted = network.server.statistics().disconnects
        assert sum(counted.values()) == counted[code] == 1
    [line] = [line for line in log.lines if "disconnected" in line]
    assert line.endswith("disconnected (connection reset)" if reset else "Client 1 disconnected")


async def test_a_client_that_is_too_slow_is_counted_as_such(autojump_clock: MockClock) -> None:
    config = ServerConfig(slow=Slow.DISCONNECT, send_queue_batches=1)
    async with memory_server(config) as network:
        speaker = await network.join()
        await network.join(lockstep=True)
        for text in "0123":
            await speaker.send(text)
            await wait_all_tasks_blocked()
        statistics = network.server.statistics()
        assert statistics.disconnects["too-slow"] == statistics.too_slow == 1


async def test_a_session_that_is_cancelled_is_aborted() -> None:
    async with memory_server() as network:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                ours, theirs = trio.testing.memory_stream_pair()
                nursery.start_soon(network.server.handle, ours)
                await wait_all_tasks_blocked()
                scope.cancel(reason="the test says so")
        assert network.server.statistics().disconnects["aborted"] == 1
        await theirs.aclose()


# --- Lagging clients ------------------------------------------------------------------------------


async def test_missed_messages_are_counted_once_although_they_are_encoded_again(
    autojump_clock: MockClock,
) -> None:
    """While its page is read, an answer fills the send queue: the page does not fit in it."""
    config = ServerConfig(send_queue_batches=1, replay=ReplayLimits(ring_bytes=0))
    journal = HeldJournal()
    journal.max_messages = 5
    async with memory_server(config, journal=journal) as network:
        speaker = await network.join()
        slow = await network.join(lockstep=True)
        for number in range(20):
            await speaker.send(str(number), f"/ping {number}")
            assert await speaker.line() == f"[Server] pong {number}"
        before = network.server.statistics()
        assert (before.lagging, before.missed, before.skipped) == (1, 0, 0)
        lobby = journal.held["lobby"]
        lobby.hold()
        assert [await slow.line() for _ in range(2)] == ["[Client 1] 0", "[Client 1] 1"]
        await wait_all_tasks_blocked()
        assert lobby.reads == [(15, 20)]
        async with trio.open_nursery() as nursery:
            for answer in "ab":  # one is written, one waits in the queue
                nursery.start_soon(slow.send, f"/ping {answer}")
                await wait_all_tasks_blocked()
        lobby.release()
        await wait_all_tasks_blocked()
        assert network.server.statistics().missed == 0
        assert await slow.lines(3) == [
            "[Server] pong a",
            "[Server] pong b",
            "[Server] 13 messages skipped",
        ]
        assert await slow.lines(5) == [f"[Client 1] {number}" for number in range(15, 20)]
        await wait_all_tasks_blocked()
        after = network.server.statistics()
        assert (after.lagging, after.missed, after.skipped) == (0, 13, 0)


# --- The loop -------------------------------------------------------------------------------------


async def test_the_lag_of_the_loop_is_how_late_the_task_runs(mock_clock: MockClock) -> None:
    watch = LoopWatch(lambda: (0, 0), WatchTimes(interval=0.25, window=10))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await wait_all_tasks_blocked()
        mock_clock.jump(0.25)
        await wait_all_tasks_blocked()
        assert (watch.lag.snapshot().count, watch.longest_lag) == (1, 0.0)
        mock_clock.jump(2.25)
        assert watch.longest_lag == 2.0  # the task is overdue, and has not run yet
        await wait_all_tasks_blocked()
        assert watch.longest_lag == watch.lag.snapshot().total_seconds == 2.0
        for _ in range(41):
            mock_clock.jump(0.25)
            await wait_all_tasks_blocked()
        assert watch.longest_lag == 0.0  # it was before the window
        assert watch.lag.snapshot().total_seconds == 2.0
        nursery.cancel_scope.cancel(reason="all was seen")
    assert watch.longest_lag == 0.0


async def test_rates_are_means_over_the_window(mock_clock: MockClock) -> None:
    messages = 0
    watch = LoopWatch(lambda: (messages, 3 * messages), WatchTimes(interval=1, window=10))
    assert watch.rates() == (0, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await wait_all_tasks_blocked()
        assert watch.rates() == (0, 0)
        for _ in range(20):
            messages += 5
            mock_clock.jump(1)
            await wait_all_tasks_blocked()
        assert watch.rates() == (5, 15)
        for _ in range(10):
            mock_clock.jump(1)
            await wait_all_tasks_blocked()
        assert watch.rates() == (0, 0)
        nursery.cancel_scope.cancel(reason="all was seen")


async def test_an_open_server_samples_its_loop(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        await trio.sleep(10)
        assert network.server.statistics().loop_lag.count >= 39
        speaker = await network.join()
        await network.join()
        await speaker.send(*"abcde")
        await trio.sleep(4)
        rates = network.server.statistics()
        assert 0.4 < rates.messages_per_second <= 0.5
        assert rates.deliveries_per_second == rates.messages_per_second
    assert network.server.statistics().messages == 5  # also after trio has ended


async def test_a_connection_that_waits_for_its_turn_is_counted(autojump_clock: MockClock) -> None:
    turns = Turns(Shares(), cpu_clock=trio.current_time)
    first, second = Meter(turns, "a"), Meter(turns, "b")

    async def take(meter: Meter, seconds: float) -> None:
        await meter.take()
        await trio.sleep(seconds)
        meter.end()

    async def measure(meter: Meter, seconds: float) -> None:
        await meter.measure(take(meter, seconds))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        async with trio.open_nursery() as takers:
            for meter, seconds in (first, 0.02), (second, 0.0):
                takers.start_soon(measure, meter, seconds)
                await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="both had a turn")
    waits = turns.waits.snapshot()
    assert waits.count == 1
    assert waits.total_seconds == pytest.approx(0.02)


# --- Readiness ------------------------------------------------------------------------------------


async def test_a_server_is_ready_while_it_is_open_and_not_shutting_down() -> None:
    server = Server()
    assert server.why_not_ready() == "not running"
    async with server.open():
        assert server.why_not_ready() == ""
        server.shutdown()
        assert server.why_not_ready() == "shutting down"
    assert server.why_not_ready() == "not running"


async def test_a_closed_server_is_not_ready() -> None:
    async with memory_server() as network:
        await network.server.close()
        assert network.server.why_not_ready() == "shutting down"


class FailingJournal(MemoryJournal):
    failing = False

    @property
    def fault(self) -> str:
        return "the journal cannot store messages" * self.failing


async def test_a_server_whose_journal_fails_is_not_ready() -> None:
    journal = FailingJournal()
    async with memory_server(journal=journal) as network:
        assert network.server.why_not_ready() == ""
        journal.failing = True
        assert network.server.why_not_ready() == "the journal cannot store messages"
