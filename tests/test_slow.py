"""Slow members: who waits, how long in total, who is told, who goes."""

import pytest
import trio
import trio.testing

from multichat import ServerConfig, Slow
from multichat.testing import MemoryServer, ScriptedClient, memory_server

from .support.log import LogRecorder

pytestmark = pytest.mark.unit

# A mailbox of one batch, the writer holding another: the third batch finds it full.
BATCHES_BEFORE_FULL = 2


def config(slow: Slow, **kwargs: float) -> ServerConfig:
    return ServerConfig(slow=slow, mailbox_batches=1, **kwargs)  # type: ignore[arg-type]


async def say_all(sender: ScriptedClient, texts: list[str]) -> float:
    """Say each of *texts* in a publish of its own; return how long the room took over it."""
    started = trio.current_time()
    for text in texts:
        await sender.send(text, f"/ping {text}")
        assert await sender.line() == f"[Server] pong {text}"
    return trio.current_time() - started


async def stall_and_fill(network: MemoryServer, sender: ScriptedClient) -> ScriptedClient:
    stalled = await network.join(lockstep=True)
    assert await say_all(sender, ["0", "1"]) == 0
    await trio.testing.wait_all_tasks_blocked()
    return stalled


async def test_wait_holds_the_sender_until_the_slow_one_reads(
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


async def test_wait_gives_up_when_patience_is_spent_and_says_why(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.WAIT)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        assert await say_all(sender, ["2"]) == 2.0
        assert "[INFO] [server] [STATE] Client 2 disconnected (too slow)" in log.lines
        assert await say_all(sender, ["3", "4", "5"]) == 0  # nobody waits for who is gone
        # What was queued for it, and then why, for as long as the grace period lasts.
        assert await slow.rest() == [
            "[Client 1] 0",
            "[Client 1] 1",
            "[Server] goodbye: too slow",
        ]
        assert network.server.statistics().too_slow == 1


async def test_who_cannot_take_another_byte_is_only_logged(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.WAIT)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        await say_all(sender, ["2"])
        await trio.sleep(network.server.config.grace_seconds + 0.1)
        assert not any("goodbye" in line for line in await slow.rest())
        with pytest.raises(trio.BrokenResourceError):
            await slow.send("hello?")


async def test_full_members_are_waited_for_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network:
        sender = await network.join()
        for _ in range(10):
            await network.join(lockstep=True)
        await say_all(sender, ["0", "1"])
        assert await say_all(sender, ["2"]) == 2.0  # and not twenty
        assert [member.client for member in network.server.members] == [1]


async def test_a_reader_that_trickles_cannot_set_the_pace_for_ever(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        sender = await network.join()
        healthy = await network.join()
        slow = await network.join(lockstep=True)

        async def trickle() -> None:
            with pytest.raises(EOFError):
                while True:
                    await trio.sleep(0.3)
                    await slow.line()

        nursery.start_soon(trickle)
        texts = [str(i) for i in range(100)]
        held_up = await say_all(sender, texts)
        assert 1.9 <= held_up <= 2.0 + 0.3
        assert await healthy.lines(100) == [f"[Client 1] {i}" for i in texts]
        assert "[INFO] [server] [STATE] Client 3 disconnected (too slow)" in log.lines


async def test_patience_is_earned_back_while_the_mailbox_is_empty(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        sender = await network.join()
        slow = await network.join(lockstep=True)
        for _ in range(5):  # 1.5 s each time: without earning it would be gone after the first
            await say_all(sender, ["0", "1"])
            nursery.start_soon(_read_after, 1.5, slow)
            assert await say_all(sender, ["2"]) == 1.5
            await trio.sleep(15)
        assert len(network.server.members) == 2


async def _read_after(seconds: float, client: ScriptedClient) -> None:
    await trio.sleep(seconds)
    await client.lines(3)


async def test_a_slow_reader_that_floods_others_is_still_a_slow_reader(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        honest = await network.join()
        flooder = await network.join(lockstep=True)
        received: list[str] = []

        async def flood() -> None:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await flooder.send(*["spam"] * 10)
                    await trio.sleep(0.01)

        async def listen() -> None:
            while len([line for line in received if "pong" in line]) < 5:
                received.append(await honest.line())

        nursery.start_soon(flood)
        nursery.start_soon(listen)
        started = trio.current_time()
        for i in range(5):
            await honest.send(f"hello {i}", f"/ping {i}")
        await trio.sleep(2.5)
        assert trio.current_time() - started < 3
        assert "[INFO] [server] [STATE] Client 2 disconnected (too slow)" in log.lines
    assert [line for line in received if "pong" in line] == [f"[Server] pong {i}" for i in range(5)]


async def test_room_that_somebody_else_took_is_waited_for_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The member's own answer slips in where the room was about to: it waits on, in order."""
    async with memory_server(config(Slow.WAIT)) as network, trio.open_nursery() as nursery:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        nursery.start_soon(slow.send, "/ping")
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as reading:
            reading.start_soon(_read_after, 1.0, slow)
            assert await say_all(sender, ["2"]) == 1.0
        assert await slow.line() in ("[Server] pong", "[Client 1] 2")


async def test_drop_skips_and_says_how_much_in_its_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(config(Slow.DROP)) as network:
        sender = await network.join()
        healthy = await network.join()
        slow = await stall_and_fill(network, sender)
        assert await say_all(sender, ["2", "3", "4"]) == 0
        assert await slow.lines(2) == ["[Client 1] 0", "[Client 1] 1"]
        await trio.testing.wait_all_tasks_blocked()
        await say_all(sender, ["5"])
        assert await slow.lines(2) == ["[Server] 3 messages skipped", "[Client 1] 5"]
        assert await healthy.lines(6) == [f"[Client 1] {i}" for i in range(6)]
        assert network.server.statistics().skipped == 3


async def test_drop_tells_at_the_latest_with_the_goodbye(
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


async def test_disconnect_waits_for_nobody(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    async with memory_server(config(Slow.DISCONNECT)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        assert await say_all(sender, ["2"]) == 0
        assert "[INFO] [server] [STATE] Client 2 disconnected (too slow)" in log.lines
        assert (await slow.rest())[-1] == "[Server] goodbye: too slow"


async def test_who_does_not_read_its_answers_is_not_read(
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
        assert len(network.server.members) == 1  # it hurts nobody: it may stay
        assert await greedy.lines(100) == ["[Server] pong"] * 100


async def test_a_sender_that_is_kicked_while_it_waits_has_been_heard_by_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Accepted is accepted: cancelling the sender does not cancel what it said."""
    async with memory_server(config(Slow.WAIT)) as network:
        sender = await network.join()
        slow = await stall_and_fill(network, sender)
        await sender.send("2")
        await trio.testing.wait_all_tasks_blocked()
        network.server.kick(1)
        await trio.sleep(1)
        assert await slow.lines(3) == [f"[Client 1] {i}" for i in range(3)]


async def test_what_a_sender_said_before_it_was_kicked_is_said_in_its_turn(
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
    many = ServerConfig(slow=Slow.DROP, mailbox_batches=10_000)
    async with memory_server(many) as network:
        sender = await network.join()
        await network.join(lockstep=True)
        for _ in range(200):
            await sender.send("x" * 60_000)
        await trio.testing.wait_all_tasks_blocked()
        assert 3_000_000 < network.server.statistics().waiting_bytes <= 4 * 1024 * 1024
        assert network.server.statistics().skipped > 100


async def test_the_grace_period_begins_when_one_leaves_even_if_what_it_said_has_to_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Simulation, seed 269: it began when what was numbered before had been told."""
    patient = config(Slow.WAIT, patience_seconds=10, grace_seconds=1)
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
