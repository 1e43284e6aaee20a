"""Slow members: waiting, the wait budget, lagging, and disconnecting."""

import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from multichat import ServerConfig, Slow
from multichat.server.broadcast import Delivery
from multichat.server.config import ReplayLimits
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.journals import HeldJournal
from tests.support.log import LogRecorder

pytestmark = pytest.mark.unit

# A send queue of one batch, and one more in the writer: the third batch finds it full.
BATCHES_BEFORE_FULL = 2


def config(slow: Slow, **kwargs: float | ReplayLimits) -> ServerConfig:
    return ServerConfig(slow=slow, send_queue_batches=1, **kwargs)  # type: ignore[arg-type]


async def say_all(sender: ScriptedClient, texts: list[str]) -> float:
    """Send each of *texts* in a separate publish; return how long the room took."""
    started = trio.current_time()
    for text in texts:
        await sender.send(text, f"/ping {text[:9]}")
        assert await sender.line() == f"[Server] pong {text[:9]}"
    return trio.current_time() - started


async def stall_and_fill(network: MemoryServer, sender: ScriptedClient) -> ScriptedClient:
    stalled = await network.join(lockstep=True)
    assert await say_all(sender, ["0", "1"]) == 0
    await trio.testing.wait_all_tasks_blocked()
    return stalled


@asynccontextmanager
async def slow_room(
    config: ServerConfig,
) -> AsyncIterator[tuple[MemoryServer, ScriptedClient, ScriptedClient]]:
    """Yield a server with a sender, a fast member, and one whose send queue is full."""
    async with memory_server(config) as network:
        sender = await network.join()
        await network.join()
        yield network, sender, await stall_and_fill(network, sender)


async def test_wait_delays_the_sender_until_the_slow_client_reads(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        sender = await network.join()
        healthy = await network.join()
        slow = await stall_and_fill(network, sender)
        received: list[str] = []

        async def read_later() -> None:
            await trio.sleep(1.5)
            received.extend(await slow.lines(3))

        nursery.start_soon(read_later)
        assert await say_all(sender, ["2"]) == 1.5
        assert await healthy.lines(3) == [f"[Client 1] {i}" for i in range(3)]
    assert received == [f"[Client 1] {i}" for i in range(3)]
    assert not any("Client 3 disconnected (too slow)" in line for line in log.lines)


async def test_after_the_wait_budget_a_slow_client_lags_and_gets_the_rest_when_it_reads(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.WAIT)) as network:
        sender = await network.join()
        healthy = await network.join()
        slow = await stall_and_fill(network, sender)
        assert await say_all(sender, ["2"]) == 2.0
        assert await say_all(sender, ["3", "4", "5"]) == 0  # the room no longer waits for it
        assert await healthy.lines(6) == [f"[Client 1] {i}" for i in range(6)]
        assert await slow.lines(6) == [f"[Client 1] {i}" for i in range(6)]
        await trio.testing.wait_all_tasks_blocked()
        await say_all(sender, ["6"])  # it is live again
        assert await slow.line() == "[Client 1] 6"
        assert network.server.statistics().too_slow == 0
    assert not any("too slow" in line for line in log.lines)


async def test_a_delivery_that_waited_is_released_when_the_slow_client_has_caught_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with slow_room(config(Slow.WAIT)) as (_, sender, slow):
        assert await say_all(sender, ["kept by nobody"]) == 2.0
        await slow.lines(3)
        await trio.testing.wait_all_tasks_blocked()
        deliveries = [each for each in gc.get_objects() if isinstance(each, Delivery)]
        assert not [each for each in deliveries if each.said.text == "kept by nobody"]


async def test_a_lagging_client_that_takes_nothing_is_disconnected_after_the_stall_timeout(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with slow_room(config(Slow.WAIT, stall_timeout_seconds=30)) as (network, sender, slow):
        await say_all(sender, ["2"])
        await trio.sleep(29)
        assert len(network.server.members) == 3
        await trio.sleep(3)
        assert "[INFO] [server] [STATE] Client 3 disconnected (too slow)" in log.lines
        # It gets the queued data and then the reason, within the grace period.
        assert await slow.rest() == [
            "[Client 1] 0",
            "[Client 1] 1",
            "[Server] goodbye: too slow",
        ]
        assert network.server.statistics().too_slow == 1


async def test_a_lagging_client_that_reads_a_little_within_the_stall_timeout_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with slow_room(config(Slow.WAIT, stall_timeout_seconds=30)) as (network, sender, slow):
        await say_all(sender, [str(i) for i in range(2, 20)])
        for i in range(20):
            await trio.sleep(25)
            assert await slow.line() == f"[Client 1] {i}"
        assert len(network.server.members) == 3


async def test_a_client_that_cannot_take_another_byte_is_only_logged(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.WAIT, stall_timeout_seconds=30)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        await say_all(sender, ["2"])
        await trio.sleep(network.server.config.grace_seconds + 40.1)
        assert not any("goodbye" in line for line in await slow.rest())
        with pytest.raises(trio.BrokenResourceError):
            await slow.send("hello?")


async def test_full_members_share_one_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network:
        sender = await network.join()
        await network.join()
        for _ in range(10):
            await network.join(lockstep=True)
        await say_all(sender, ["0", "1"])
        assert await say_all(sender, ["2"]) == 2.0  # and not twenty
        assert await say_all(sender, ["3"]) == 0


async def test_a_trickling_reader_cannot_slow_a_room_down_forever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        sender = await network.join()
        healthy = await network.join()
        slow = await network.join(lockstep=True)
        read: list[str] = []

        async def trickle() -> None:
            while len(read) < 100:
                await trio.sleep(0.3)
                read.append(await slow.line())

        nursery.start_soon(trickle)
        texts = [str(i) for i in range(100)]
        held_up = await say_all(sender, texts)
        assert 1.9 <= held_up <= 2.0 + 0.3
        assert await healthy.lines(100) == [f"[Client 1] {i}" for i in texts]
    assert read == [f"[Client 1] {i}" for i in texts]


async def test_the_wait_budget_refills_at_a_fifteenth_of_real_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with slow_room(config(Slow.WAIT)) as (_, sender, slow):
        assert await say_all(sender, ["2"]) == 2.0
        await slow.lines(3)
        for _ in range(3):
            await trio.sleep(15 - 2 / 3)
            await say_all(sender, ["0", "1"])
            assert 0.9 < await say_all(sender, ["2"]) < 1.1
            await slow.lines(3)
            await trio.testing.wait_all_tasks_blocked()


async def test_less_than_fifty_milliseconds_of_budget_is_kept_until_there_is_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with slow_room(config(Slow.WAIT)) as (_, sender, slow):
        assert await say_all(sender, ["2"]) == 2.0
        await slow.lines(3)
        for pause, wait in ((0.7, 0.0), (0.1, 0.8 / 15)):
            await trio.sleep(pause)
            assert await say_all(sender, ["0", "1"]) == 0
            assert await say_all(sender, ["2"]) == pytest.approx(wait)
            await slow.lines(3)
            await trio.testing.wait_all_tasks_blocked()


async def test_new_slow_connections_share_the_wait_budget(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network:
        sender = await network.join()
        await network.join()
        started, held_up = trio.current_time(), 0.0
        for _ in range(40):
            stalled = await network.join(lockstep=True)
            await stalled.send("/help")  # whose answer it does not read
            await trio.testing.wait_all_tasks_blocked()
            held_up += await say_all(sender, ["0", "1", "2"])
            await trio.sleep(1.5)
        assert held_up <= 2.0 + (trio.current_time() - started) / 15


async def test_a_room_is_as_fast_as_its_fastest_reader_and_no_slower(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Waiting is free while all others are slow and one of them reads."""
    # Longer than the fast reader takes for one write of the server, 256 KiB: without a socket,
    # smaller progress is not visible.
    async with (
        memory_server(ServerConfig(slow_timeout_seconds=6)) as network,
        trio.open_nursery() as nursery,
    ):
        sender = await network.join()
        readers = {seconds: await network.join(lockstep=True) for seconds in (1.0, 2.9)}
        texts = [f"{i} {'x' * 60_000}" for i in range(200)]  # three times the send queue
        read: dict[float, list[str]] = {seconds: [] for seconds in readers}

        async def read_slowly(seconds: float) -> None:
            while len(read[seconds]) < len(texts):
                await trio.sleep(seconds)
                read[seconds].append(await readers[seconds].line())

        for seconds in readers:
            nursery.start_soon(read_slowly, seconds)
        took = await say_all(sender, texts)
        queued = len(texts) - len(read[1.0])
        assert took == pytest.approx(len(read[1.0]), abs=5)
        assert queued <= 4 * 1024 * 1024 / 60_000 + 5
    assert all(each == [f"[Client 1] {text}" for text in texts] for each in read.values())


async def test_a_room_whose_only_readers_take_nothing_continues_after_a_bounded_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network:
        sender = await network.join()
        await stall_and_fill(network, sender)
        held_up = await say_all(sender, ["2"])  # without progress, and then for the budget
        assert held_up == pytest.approx(2.0 + 2.0, abs=0.1)
        assert await say_all(sender, ["3", "4"]) == 0


async def test_waiting_is_no_longer_free_when_a_fast_reader_joins(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        sender = await network.join()
        await stall_and_fill(network, sender)

        async def join() -> None:
            await trio.sleep(0.5)
            await network.join()

        nursery.start_soon(join)
        assert await say_all(sender, ["2"]) == pytest.approx(0.5 + 2.0, abs=0.1)


async def test_waiting_is_no_longer_free_once_a_slow_reader_has_everything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        sender = await network.join()
        reader = await network.join(lockstep=True)
        await stall_and_fill(network, sender)

        async def read() -> None:
            await trio.sleep(0.505)
            await reader.lines(3)

        nursery.start_soon(read)
        assert await say_all(sender, ["2"]) == pytest.approx(0.505 + 2.0, abs=0.001)


async def test_a_lagging_client_that_half_closes_still_gets_everything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with slow_room(config(Slow.WAIT)) as (_, sender, slow):
        await say_all(sender, [str(i) for i in range(2, 20)])
        await slow.finish()
        await trio.testing.wait_all_tasks_blocked()
        assert await slow.rest() == [f"[Client 1] {i}" for i in range(20)]


async def test_messages_missed_before_the_hello_arrive_with_the_welcome(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """In the protocol in which they were missed; the requested replay follows."""
    async with memory_server(config(Slow.DROP)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        await say_all(sender, ["2"])
        heard = [await slow.line()]  # now its send queue has space for one batch
        await slow.send('/json {"replay": 2}')
        await trio.testing.wait_all_tasks_blocked()
        heard += [await slow.line() for _ in range(5)]
        assert heard[:3] == ["[Client 1] 0", "[Client 1] 1", "[Server] 1 message skipped"]
        kinds = [json.loads(line).get("type") for line in heard[3:]]
        assert kinds == ["welcome", "said", "said"]


@pytest.mark.parametrize("hello", ["{}", '{"rooms": {"lobby": {}}}', '{"since": "unknown"}'])
async def test_all_messages_after_the_last_id_of_a_welcome_follow_it_and_none_before(
    hello: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Also for a client that lags in the lobby when it changes to JSON."""
    one_at_a_time = ReplayLimits(queue_bytes=1)
    async with slow_room(config(Slow.WAIT, replay=one_at_a_time)) as (_, sender, slow):
        await say_all(sender, [str(i) for i in range(2, 20)])
        await slow.send(f"/json {hello}")
        texts = []
        while not (line := await slow.line()).startswith("{"):
            texts.append(line.removeprefix("[Client 1] "))
        welcome = json.loads(line)
        events = [json.loads(await slow.line()) for _ in range(20 - len(texts))]
        said = [event for event in events if event["type"] == "said"]
        assert texts == [str(i) for i in range(len(texts))]
        assert said
        assert [event["text"] for event in said] == [str(i) for i in range(len(texts), 20)][
            : len(said)
        ]
        last = int(welcome["last"].partition("-")[2])
        assert int(said[0]["id"].partition("-")[2]) == last + 1
        for state in welcome.get("rooms", {}).values():
            assert state["last"] == welcome["last"]


async def test_messages_that_are_read_while_a_client_changes_to_json_are_in_json(
    autojump_clock: trio.testing.MockClock,
) -> None:
    journal = HeldJournal()
    from_journal = config(Slow.WAIT, replay=ReplayLimits(ring_bytes=0))
    async with memory_server(from_journal, journal=journal) as network:
        sender = await network.join()
        await network.join()
        slow = await stall_and_fill(network, sender)
        lobby = journal.held["lobby"]
        lobby.hold()
        await say_all(sender, ["2", "3", "4"])
        assert await slow.line() == "[Client 1] 0"
        assert await slow.line() == "[Client 1] 1"
        await trio.testing.wait_all_tasks_blocked()
        assert lobby.reads
        await slow.send('/json {"rooms": {"lobby": {}}}')
        assert json.loads(await slow.line())["type"] == "welcome"
        lobby.release()
        events = [json.loads(await slow.line()) for _ in range(3)]
        assert [event["text"] for event in events] == ["2", "3", "4"]


async def test_the_last_id_of_a_member_precedes_messages_that_it_has_not_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with slow_room(config(Slow.WAIT)) as (network, sender, slow):
        member = network.server._registry.clients[-1].current
        room = member.room
        assert member.last_id == room.last_id == room.id_before(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_all, sender, ["2"])
            await trio.testing.wait_all_tasks_blocked()
            assert member.lag is None
            assert (member.last_id, room.last_id) == (room.id_before(2), room.id_before(3))
            assert await slow.lines(3) == ["[Client 1] 0", "[Client 1] 1", "[Client 1] 2"]
        assert member.last_id == room.last_id


async def test_the_last_id_of_a_welcome_is_the_room_s_if_it_asks_for_a_replay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one_at_a_time = ReplayLimits(queue_bytes=1)
    async with slow_room(config(Slow.WAIT, replay=one_at_a_time)) as (_, sender, slow):
        await say_all(sender, [str(i) for i in range(2, 20)])
        await slow.send('/json {"replay": 3}')
        while not (line := await slow.line()).startswith("{"):
            pass
        said = [json.loads(await slow.line()) for _ in range(3)]
        assert [event["text"] for event in said] == ["17", "18", "19"]
        assert json.loads(line)["last"] == said[-1]["id"]


async def test_a_client_that_half_closes_while_the_room_waits_for_it_gets_everything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A message and a notice of the server; the room stops waiting."""
    async with memory_server(config(Slow.WAIT)) as network:
        for notice in False, True:
            sender = await network.join()
            await network.join()
            slow = await stall_and_fill(network, sender)
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                if notice:
                    nursery.start_soon(network.server.broadcast, "dinner")
                else:
                    nursery.start_soon(say_all, sender, ["2"])
                await trio.testing.wait_all_tasks_blocked()
                await slow.finish()
            assert trio.current_time() == started
            heard = [line.partition("] ")[2] for line in await slow.rest()]
            assert heard == ["0", "1", "dinner" if notice else "2"]


async def test_a_server_notice_waits_for_a_lagging_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with slow_room(config(Slow.WAIT)) as (network, sender, slow):
        await say_all(sender, ["2"])
        receipts = [await network.server.broadcast(f"notice {i}") for i in range(20)]
        assert {(each.delivered + each.queued, each.lagging) for each in receipts} == {(2, 1)}
        assert await slow.lines(3) == [f"[Client 1] {i}" for i in range(3)]
        assert await slow.lines(16) == [f"[Server] notice {i}" for i in range(4, 20)]


async def test_server_notices_wait_until_the_send_queue_takes_them_while_memory_is_tight(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network:
        budget = network.server._registry.budget
        budget.add(int(budget.limit_bytes * 3 / 4))
        assert budget.tight
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        await say_all(sender, ["2"])
        notices = [str(i) * 60_000 for i in range(5)]
        for notice in notices:
            assert (await network.server.broadcast(notice)).lagging == 1
        assert await slow.lines(3) == [f"[Client 1] {i}" for i in range(3)]
        with trio.fail_after(60):
            assert await slow.lines(5) == [f"[Server] {notice}" for notice in notices]


async def test_private_messages_to_a_slow_client_delay_their_sender_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with slow_room(config(Slow.WAIT)) as (network, sender, slow):
        attacker = await network.join()
        started = trio.current_time()
        for _ in range(10):
            await attacker.send("/msg 3 psst")
            assert "not delivered" in await attacker.line()
        assert trio.current_time() - started == 2.0  # the first waits, the others fail at once
        assert await say_all(sender, ["2"]) == 2.0  # the room has all of its budget
        assert len(network.server.members) == 4
        assert await slow.lines(3) == [f"[Client 1] {i}" for i in range(3)]


@pytest.mark.parametrize("attackers", [1, 4])
async def test_a_flood_of_private_messages_does_not_delay_the_room(
    attackers: int, autojump_clock: trio.testing.MockClock
) -> None:
    """To a client on a slow link; they are 60 KB each, and it is sent 80 KB a second."""
    async with memory_server(ServerConfig()) as network, trio.open_nursery() as nursery:
        speaker = await network.join()
        victim = await network.join(lockstep=True)
        heard: list[tuple[float, float]] = []

        async def attack() -> None:
            attacker = await network.join()
            await attacker.send("/join attic")
            nursery.start_soon(attacker.rest)
            while True:
                await attacker.send("/msg 2 " + "p" * 60_000)
                await trio.sleep(0.05)

        async def read() -> None:
            data = b""
            while True:
                data += await victim.stream.receive_some(8_000)
                await trio.sleep(0.1)
                *lines, data = data.split(b"\n")
                heard.extend(
                    (trio.current_time(), float(line.split()[-1]))
                    for line in lines
                    if line.startswith(b"[Client 1] at ")
                )

        for _ in range(attackers):
            nursery.start_soon(attack)
        nursery.start_soon(read)
        nursery.start_soon(speaker.rest)
        for _ in range(240):
            await speaker.send(f"at {trio.current_time()}")
            await trio.sleep(0.25)
        delays = [at - said for at, said in heard]
        assert len(heard) >= 20
        # The time to send half of the send queue, 2 MiB, and the current write.
        assert max(delays) <= 45
        nursery.cancel_scope.cancel()


async def test_a_slow_reader_that_floods_others_is_still_a_slow_reader(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        honest = await network.join()
        flooder = await network.join(lockstep=True)
        received: list[str] = []

        async def flood() -> None:
            while True:
                await flooder.send(*["spam"] * 10)
                await trio.sleep(0.01)

        async def listen() -> None:
            while len([line for line in received if "pong" in line]) < 5:
                received.append(await honest.line())

        nursery.start_soon(flood)
        started = trio.current_time()
        async with trio.open_nursery() as listening:
            listening.start_soon(listen)
            for i in range(5):
                await honest.send(f"hello {i}", f"/ping {i}")
        assert trio.current_time() - started < 5
        nursery.cancel_scope.cancel(reason="all were answered")
    assert [line for line in received if "pong" in line] == [f"[Server] pong {i}" for i in range(5)]


async def _read_after(seconds: float, client: ScriptedClient) -> None:
    await trio.sleep(seconds)
    await client.lines(3)


async def test_space_taken_by_another_message_is_waited_for_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The member's own answer takes the space first; the room continues to wait, in order."""
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        nursery.start_soon(slow.send, "/ping")
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as reading:
            reading.start_soon(_read_after, 1.0, slow)
            assert await say_all(sender, ["2"]) == 1.0
        assert await slow.line() in ("[Server] pong", "[Client 1] 2")


async def test_drop_skips_messages_and_reports_the_count_in_their_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.DROP)) as network:
        sender = await network.join()
        healthy = await network.join()
        slow = await stall_and_fill(network, sender)
        assert await say_all(sender, ["2", "3", "4"]) == 0
        assert await slow.lines(2) == ["[Client 1] 0", "[Client 1] 1"]
        await say_all(sender, ["5"])
        assert await slow.lines(2) == ["[Server] 3 messages skipped", "[Client 1] 5"]
        assert await healthy.lines(6) == [f"[Client 1] {i}" for i in range(6)]
        assert network.server.statistics().skipped == 3


async def test_drop_reports_the_count_as_soon_as_the_queue_is_empty(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Because there may be no message for long."""
    async with memory_server(config(Slow.DROP)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        await say_all(sender, ["2", "3", "4"])
        assert await slow.lines(3) == [
            "[Client 1] 0",
            "[Client 1] 1",
            "[Server] 3 messages skipped",
        ]
        await say_all(sender, ["5"])
        assert await slow.line() == "[Client 1] 5"


async def test_drop_reports_the_count_before_the_goodbye_at_the_latest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.DROP)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        await say_all(sender, ["2"])
        network.server.kick(2)
        assert await slow.rest() == [
            "[Client 1] 0",
            "[Client 1] 1",
            "[Server] 1 message skipped",
            "[Server] goodbye: kicked",
        ]


async def test_disconnect_does_not_wait(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.DISCONNECT)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        assert await say_all(sender, ["2"]) == 0
        assert "[INFO] [server] [STATE] Client 2 disconnected (too slow)" in log.lines
        assert (await slow.rest())[-1] == "[Server] goodbye: too slow"


async def test_a_client_that_does_not_read_its_answers_is_not_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        greedy = await network.join(lockstep=True)
        asked = 0

        async def ask() -> None:
            nonlocal asked
            while asked < 100:
                await greedy.send("/ping")
                asked += 1

        nursery.start_soon(ask)
        await trio.sleep(60)
        assert asked <= BATCHES_BEFORE_FULL + 2
        assert len(network.server.members) == 1  # it is harmless, so it stays
        assert await greedy.lines(100) == ["[Server] pong"] * 100


async def test_a_message_whose_sender_is_kicked_while_waiting_reaches_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Cancelling the sender does not cancel an accepted message."""
    async with memory_server(config(Slow.WAIT)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        await sender.send("2")
        await trio.testing.wait_all_tasks_blocked()
        network.server.kick(1)
        await trio.sleep(1)
        assert await slow.lines(3) == [f"[Client 1] {i}" for i in range(3)]


async def test_messages_before_a_kick_are_published_in_order(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.WAIT)) as network:
        first = await network.join()
        second = await network.join()
        slow = await stall_and_fill(network, first)
        await first.send("2")
        await second.send("my last word")
        await trio.testing.wait_all_tasks_blocked()
        network.server.kick(2)
        await trio.sleep(1)
        assert await slow.lines(3) == [f"[Client 1] {i}" for i in range(3)]
        assert await slow.line() == "[Client 2] my last word"
    assert "[RX] [Client 2] my last word" in "\n".join(log.lines)


async def test_memory_for_a_stalled_member_is_bounded_in_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    many = ServerConfig(slow=Slow.DROP, send_queue_batches=10_000)
    async with memory_server(many) as network:
        sender = await network.join()
        await network.join(lockstep=True)
        for _ in range(200):
            await sender.send("x" * 60_000)
        await trio.testing.wait_all_tasks_blocked()
        assert 3_000_000 < network.server.statistics().waiting_bytes <= 4 * 1024 * 1024
        assert network.server.statistics().skipped > 100


async def test_the_grace_period_begins_when_the_client_leaves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Simulation, seed 269: it began only after earlier messages had been delivered."""
    patient = config(Slow.WAIT, slow_timeout_seconds=10, grace_seconds=1)
    async with memory_server(patient) as network, trio.open_nursery() as nursery:
        sender = await network.join()
        stalled = await stall_and_fill(network, sender)
        deaf = await network.join(lockstep=True)
        nursery.start_soon(say_all, sender, ["2"])
        await trio.testing.wait_all_tasks_blocked()
        await deaf.send("in its turn")
        await trio.testing.wait_all_tasks_blocked()
        network.server.kick(3)
        await trio.sleep(1.5)
        said = [*(f"[Client 1] {i}" for i in range(3)), "[Client 3] in its turn"]
        assert await stalled.lines(4) == said
        assert not any("goodbye" in line for line in await deaf.rest())


async def test_a_topic_while_the_room_waits_for_a_slow_client_skips_no_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        sender, _ = await network.join(), await network.join()
        slow = await network.join(lockstep=True)
        await slow.send('/json {"rooms":{"lobby":{}}}')
        assert json.loads(await slow.line())["type"] == "welcome"
        texts = [str(number) for number in range(4)]
        nursery.start_soon(say_all, sender, texts)
        await trio.sleep(1)  # the room waits for it
        topics = [f"topic {number}" for number in range(3)]
        for topic in topics:
            await network.server.admin.topic(f"lobby {topic}")
        with trio.fail_after(60):
            events = [json.loads(await slow.line()) for _ in range(4 + 3)]
        assert [each["text"] for each in events if each["type"] == "said"] == texts
        assert [each["text"] for each in events if each["type"] == "topic"] == topics
