"""Rate limits, idle limits, and the memory limit of clients."""

import pytest
import trio
import trio.testing

from multichat import Notice, Said, Server, ServerConfig, Slow
from multichat.net.send_queue import MAX_WAITING_BYTES
from multichat.testing import ScriptedClient, memory_server
from tests.support.log import LogRecorder
from tests.support.processes import WAIT_SECONDS
from tests.support.sockets import open_client

pytestmark = pytest.mark.unit

SLOWED = "[Server] slowed down: 10 messages per second is the limit for each client"


async def timed(client: ScriptedClient, count: int) -> list[float]:
    """Return when each numbered message of Client 1 arrived, in seconds from now."""
    started = trio.current_time()
    times = []
    for number in range(count):
        assert await client.line() == f"[Client 1] {number}"
        times.append(trio.current_time() - started)
    return times


@pytest.mark.parametrize("json", [False, True])
async def test_a_burst_passes_at_once_and_the_rest_at_the_rate(
    json: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server(ServerConfig(rate=10, burst=50)) as server:
        alice, bob = await server.join(), await server.join()
        lines = [str(number) for number in range(100)]
        if json:
            await alice.send("/json")
            await alice.line()
            lines = [f'{{"type":"say","text":"{line}"}}' for line in lines]
        await alice.send(*lines)
        times = await timed(bob, 100)
        allowed = 50 - json  # the hello counts too
        assert times[allowed - 1] == 0
        for late, at in enumerate(times[allowed:], 1):
            assert at == pytest.approx(late / 10, abs=0.01)
        told = await alice.line()
        assert told == SLOWED or "slowed down: 10 messages per second" in told


async def test_repeated_messages_are_rate_limited(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_server(ServerConfig(rate=10, burst=50)) as server:
        alice = await server.join()
        await alice.send("/json")
        await alice.line()
        await alice.send(*100 * ['{"type":"say","text":"once","nonce":1}'])
        started = trio.current_time()
        accepted = 0
        while accepted < 100:
            accepted += '"accepted"' in await alice.line()
        assert trio.current_time() - started == pytest.approx(5.1, abs=0.01)


async def test_a_paste_of_500_lines_arrives_whole_and_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(rate=1)) as server:
        alice, bob = await server.join(), await server.join()
        await alice.send(*map(str, range(500)))
        assert max(await timed(bob, 500)) == 0
        await alice.send("/ping")
        started = trio.current_time()
        assert await alice.line() == SLOWED.replace("10 messages", "1 message")
        assert await alice.line() == "[Server] pong"
        assert trio.current_time() - started == pytest.approx(1)


async def test_slowing_down_is_reported_once_a_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(rate=10, burst=1)) as server:
        alice, bob = await server.join(), await server.join()
        await alice.send(*map(str, range(100)))
        await timed(bob, 100)
        await alice.send("/ping")
        assert await alice.lines(2) == [SLOWED, "[Server] pong"]
        await trio.sleep(60)
        await alice.send("a", "b", "/ping")
        assert await alice.lines(2) == [SLOWED, "[Server] pong"]


async def test_every_request_counts_for_the_rate(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_server(ServerConfig(rate=1, burst=1, max_line_bytes=100)) as server:
        alice = await server.join()
        started = trio.current_time()
        await alice.send(
            "/ping", "/who", "/name alice", "/nonsense", "x" * 101, "/me waves", "/ping 2"
        )
        while await alice.line() != "[Server] pong 2":
            pass
        assert trio.current_time() - started == pytest.approx(6)


async def test_a_rate_limited_client_delays_no_other_and_can_be_kicked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(rate=1, burst=1)) as server:
        alice, bob, carol = [await server.join() for _ in range(3)]
        await alice.send(*map(str, range(1000)))
        assert await carol.line() == "[Client 1] 0"
        assert await bob.line() == "[Client 1] 0"
        started = trio.current_time()
        await bob.send("hello")
        assert await carol.line() == "[Client 2] hello"
        assert trio.current_time() == started
        server.server.kick(1, "flooding")
        assert (await alice.rest())[-1] == "[Server] goodbye: flooding"
        assert trio.current_time() == started


async def test_the_byte_rate_limits_any_input(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(byte_rate=48 * 1024)) as server:
        alice, bob = await server.join(), await server.join()
        started = trio.current_time()
        await alice.send("x" * 48 * 1024 * 10, "done")  # a line that is too long
        assert await bob.line() == "[Client 1] done"
        assert trio.current_time() - started == pytest.approx(9, abs=0.1)
        assert await alice.lines(2) == [
            "[Server] slowed down: 49152 bytes per second is the limit for each client",
            "[Server] the line was longer than 65536 bytes and was dropped",
        ]


async def test_slowing_down_is_a_notice_in_json(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        memory_server(ServerConfig(rate=100, burst=1)) as server,
        server.chat() as chat,
        server.chat() as other,
    ):
        await other.send("one", "two", "three")
        assert isinstance(await anext(other), Notice)
        said: list[str] = []
        while len(said) < 3:
            event = await anext(chat)
            if isinstance(event, Said):
                said.append(event.text)
        assert said == ["one", "two", "three"]


async def test_an_idle_client_is_disconnected_after_the_idle_limit(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    """Even if it receives messages or has sent part of a line; not if it sends messages."""
    async with memory_server(ServerConfig(idle_seconds=60)) as server:
        alice, bob = await server.join(), await server.join()
        await bob.stream.send_all(b"half a l")
        for _ in range(3):
            await trio.sleep(50)
            await alice.send("hello", "/ping")
            await alice.line()
        assert await bob.rest() == [
            "[Client 1] hello",
            "[Server] goodbye: idle for 60 s",
        ]
        assert "Client 2 disconnected (idle for 60 s)" in "\n".join(log.lines)


# --- Memory ---------------------------------------------------------------------------------------


@pytest.mark.process
async def test_the_slowest_client_is_disconnected_when_memory_is_full(log: LogRecorder) -> None:
    """Unread answers are not shared: each takes its own memory."""
    config = ServerConfig(memory_bytes=2 * MAX_WAITING_BYTES // 4, send_queue_batches=100_000)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(multichat_server, config)
        greedy = [await open_client(server.port) for _ in range(4)]
        honest = await open_client(server.port)
        await honest.send("/join elsewhere")
        await honest.line()
        async with trio.open_nursery() as asking:
            for client in greedy:
                asking.start_soon(ask_and_never_read, client)
            with trio.fail_after(WAIT_SECONDS):
                while server.statistics().too_slow < 2:
                    assert server._registry.budget.held_bytes <= config.memory_bytes
                    await trio.sleep(0.01)
            await honest.send("/ping")
            assert await honest.line() == "[Server] pong"
            asking.cancel_scope.cancel()
        assert 5 in [member.client for member in server.members]
        gone = [line for line in log.lines if "disconnected" in line]
        assert gone
        assert all("(too far behind)" in line for line in gone)
        nursery.cancel_scope.cancel()
    for client in [*greedy, honest]:
        await trio.aclose_forcefully(client.stream)


async def multichat_server(
    config: ServerConfig, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED
) -> None:
    await Server(config).run(0, host="127.0.0.1", task_status=task_status)


async def ask_and_never_read(client: ScriptedClient) -> None:
    try:
        while True:
            await client.send(*["/help"] * 1000)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def test_clients_with_long_unfinished_lines_are_disconnected_when_memory_is_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(memory_bytes=400_000)) as server:
        honest, *others = [await server.join() for _ in range(4)]
        for client in others:
            await client.stream.send_all(b"x" * 40_000)
            await trio.testing.wait_all_tasks_blocked()
        assert len(server.server.members) == 3
        assert server.server._registry.budget.held_bytes == 2 * 40_000
        await honest.send("/ping")
        assert await honest.line() == "[Server] pong"
        assert "[Server] goodbye: too far behind" in await others[0].rest()
        for client in others[1:]:
            await client.send("y")
            await honest.line()
        await trio.testing.wait_all_tasks_blocked()
        assert server.server._registry.budget.held_bytes == 0


async def test_a_read_whose_messages_wait_counts_for_memory(
    autojump_clock: trio.testing.MockClock,
) -> None:
    config = ServerConfig(
        send_queue_batches=1, stall_timeout_seconds=1e6, slow_timeout_seconds=1000
    )
    async with memory_server(config) as server:
        alice = await server.join()
        stalled = await server.stalled()
        budget = server.server._registry.budget
        for _ in range(2):
            await alice.send("x" * 1000)
            await trio.testing.wait_all_tasks_blocked()
        held = budget.held_bytes
        await alice.send("y" * 10_000)  # the room waits
        await trio.testing.wait_all_tasks_blocked()
        assert budget.held_bytes - held > 10_000
        stalled.recover()
        assert [len(line) for line in [await stalled.line() for _ in range(3)]] == [
            1011,
            1011,
            10_011,
        ]
        await trio.testing.wait_all_tasks_blocked()
        assert budget.held_bytes == 0


async def test_nonces_of_connected_clients_count_until_they_leave() -> None:
    async with memory_server() as server:
        alice = await server.join()
        await alice.send("/json", *(f'{{"type":"say","text":"x","nonce":{n}}}' for n in range(300)))
        await alice.lines(301)
        budget = server.server._registry.budget
        assert 256 * 200 < budget.held_bytes < 256 * 300
        server.server.kick(1)
        await trio.testing.wait_all_tasks_blocked()
        assert budget.held_bytes == 0


async def test_an_answer_that_waits_for_space_counts_for_memory(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(send_queue_batches=1, grace_seconds=1)) as server:
        stalled = await server.stalled()
        budget = server.server._registry.budget
        await stalled.send("/help", "/help", "/help", "/help")
        await trio.testing.wait_all_tasks_blocked()
        assert budget.held_bytes > server.server.members[0].waiting_bytes
        server.server.kick(1)
        await trio.sleep(5)
        assert budget.held_bytes == 0


async def test_a_client_disconnected_for_memory_gets_the_reason_if_it_reads(
    autojump_clock: trio.testing.MockClock,
) -> None:
    config = ServerConfig(memory_bytes=40_000, slow=Slow.DROP, grace_seconds=50)
    async with memory_server(config) as server:
        alice, bob = await server.join(), await server.join()
        stalled = await server.stalled()
        await alice.send("x" * 600)
        await trio.testing.wait_all_tasks_blocked()
        await alice.send("y" * 9600)
        assert await bob.lines(2) == ["[Client 1] " + "x" * 600, "[Client 1] " + "y" * 9600]
        await trio.testing.wait_all_tasks_blocked()
        assert [member.client for member in server.server.members] == [1, 2]
        stalled.recover()
        # It gets the batch that was being written, but nothing that waited after it.
        assert await stalled.rest() == [
            "[Client 1] " + "x" * 600,
            "[Server] goodbye: too far behind",
        ]


async def test_a_block_shared_by_members_counts_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(memory_bytes=80_000)) as server:
        alice = await server.join()
        stalled = [await server.stalled() for _ in range(100)]
        await alice.send("x" * 10_000)
        await trio.testing.wait_all_tasks_blocked()
        assert server.server._registry.budget.held_bytes == 10_000 + len("[Client 1] \n")
        assert len(server.server.members) == 101
        for each in stalled:
            each.recover()
        assert [await each.line() for each in stalled] == ["[Client 1] " + "x" * 10_000] * 100
        await trio.testing.wait_all_tasks_blocked()
        assert server.server._registry.budget.held_bytes == 0


async def test_nothing_is_held_for_disconnected_clients(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(grace_seconds=1)) as server:
        alice = await server.join()
        await server.stalled()
        await alice.send(*["x" * 1000] * 50)
        await alice.send("again")
        await trio.testing.wait_all_tasks_blocked()
        budget = server.server._registry.budget
        assert budget.held_bytes > 50_000
        server.server.kick(2)
        await trio.sleep(5)
        assert budget.held_bytes == 0
        assert not budget._holders
