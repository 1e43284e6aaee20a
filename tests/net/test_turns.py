"""Turns at the event loop, with work of a simulated duration."""

import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trustme

from multichat.net import transport
from multichat.net.fair_share import Shares
from multichat.net.turns import Meter, Turns, current_meter, next_turn

pytestmark = pytest.mark.unit

SHARES = Shares()

MS = 0.001


@asynccontextmanager
async def running(cpu_clock: Callable[[], float] = trio.current_time) -> AsyncGenerator[Turns]:
    turns = Turns(cpu_clock=cpu_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await trio.testing.wait_all_tasks_blocked()
        yield turns
        nursery.cancel_scope.cancel(reason="the block is over")


async def work(
    meter: Meter, clock: trio.testing.MockClock, seconds: float, pause: float, done: list[float]
) -> None:
    """Take turns that last so long, each a pause after the last, until cancelled."""

    async def run() -> None:
        while True:
            meter.end()
            await trio.sleep(pause)
            await meter.take()
            clock.jump(seconds)
            done.append(trio.current_time())

    await meter.measure(run())


async def test_a_flood_is_delayed_only_while_others_talk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as turns, trio.open_nursery() as nursery:
        floods: list[float] = []
        for _ in range(3):
            meter = Meter(turns, "attacker")
            nursery.start_soon(work, meter, autojump_clock, 5 * MS, 0.0, floods)
        await trio.sleep(1.0)
        assert len(floods) >= 0.95 * 1.0 / (5 * MS)
        words: list[float] = []
        talk = trio.CancelScope()

        async def talking() -> None:
            with talk:
                await work(Meter(turns, "talker"), autojump_clock, 0.1 * MS, 1 * MS, words)

        nursery.start_soon(talking)
        await trio.sleep(1.0)
        floods.clear()
        words.clear()
        await trio.sleep(1.0)
        assert len(floods) <= (SHARES.long_lane + SHARES.credits_per_second) * 1.1 / (5 * MS)
        assert len(words) >= 400
        talk.cancel(reason="nobody talks any more")
        await trio.sleep(0.2)
        floods.clear()
        await trio.sleep(1.0)
        assert len(floods) >= 0.95 * 1.0 / (5 * MS)
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_only_the_time_between_two_suspensions_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as turns:
        meter = Meter(turns, "")

        async def run() -> None:
            await meter.take()
            autojump_clock.jump(3 * MS)
            await trio.sleep(1.0)
            autojump_clock.jump(4 * MS)
            meter.end()

        await meter.measure(run())
        assert meter.last == pytest.approx(7 * MS)


async def test_a_turn_is_not_charged_for_time_of_other_processes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(cpu_clock=lambda: 0.0) as turns:
        meter = Meter(turns, "")

        async def run() -> None:
            await meter.take()
            autojump_clock.jump(20 * MS)
            meter.end()

        await meter.measure(run())
        assert meter.last == 0


async def test_exceptions_and_results_of_a_measured_task_pass_through(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as turns:
        meter = Meter(turns, "")

        async def answer() -> int:
            await trio.sleep(1)
            return 42

        async def fail() -> None:
            await trio.sleep(1)
            raise ValueError("as it should")

        assert await meter.measure(answer()) == 42
        with pytest.raises(ValueError, match="as it should"):
            await meter.measure(fail())
        with trio.move_on_after(5) as scope:
            await meter.measure(trio.Event().wait())
        assert scope.cancelled_caught


@asynccontextmanager
async def lane_in_use(turns: Turns) -> AsyncGenerator[None]:
    """Have a connection in the lane of new ones that waits for something else meanwhile."""
    meter = Meter(turns, "somebody else")
    await meter.take()
    yield
    meter.end()


async def seconds_of(task: Callable[[], Awaitable[object]], meter: Meter) -> float:
    """Run *task* as one of the connection of *meter*; return how long it waited."""
    started = trio.current_time()
    current_meter.set(meter)

    async def run() -> None:
        await task()

    await meter.measure(run())
    return trio.current_time() - started


async def test_a_cancelled_waiter_gets_no_turn(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as turns, lane_in_use(turns):
        meter = Meter(turns, "")
        with trio.move_on_after(1 * MS) as scope:
            await meter.take()
        assert scope.cancelled_caught
        assert not meter.waits
        assert not turns.fair_share.has_waiting


async def test_a_read_is_returned_when_it_is_its_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as turns, lane_in_use(turns):
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(b"a line\n")
        waited = await seconds_of(lambda: transport.receive_some(ours, 100), Meter(turns, ""))
        assert waited == pytest.approx(SHARES.longest_seconds)


async def test_a_tls_record_is_decrypted_when_it_is_its_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    authority = trustme.CA()
    server, client = (
        ssl.create_default_context(purpose)
        for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH)
    )
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    ours, theirs = trio.testing.memory_stream_pair()
    encrypted = transport.encrypt(ours, server)
    async with running() as turns, trio.open_nursery() as nursery, lane_in_use(turns):
        peer = transport.encrypt(theirs, client, "localhost")
        nursery.start_soon(peer.do_handshake)
        waited = await seconds_of(encrypted.do_handshake, Meter(turns, ""))
        assert waited >= SHARES.longest_seconds


async def test_a_replay_takes_its_next_turn_after_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as turns, lane_in_use(turns):
        assert await seconds_of(next_turn, Meter(turns, "")) >= SHARES.longest_seconds


@pytest.mark.parametrize("pieces", [1, 5])
async def test_a_turn_continues_while_more_input_has_arrived(
    pieces: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with running() as turns:
        near, far = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        meter = Meter(turns, "")
        with far:
            far.sendall(b"x" * 100 * pieces)

            async def run() -> None:
                for _ in range(pieces):
                    assert len(await transport.receive_some(stream, 100)) == 100
                    autojump_clock.jump(0.04 * MS)
                far.close()
                assert await transport.receive_some(stream, 100) == b""
                meter.end()

            await seconds_of(run, meter)
            assert meter.last == pytest.approx(pieces * 0.04 * MS)
        await transport.close(stream)


async def test_reads_are_smaller_while_others_talk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as turns:
        talker, reader = Meter(turns, "talker"), Meter(turns, "reader")
        assert reader.most_bytes(48 * 1024) == 48 * 1024
        for _ in range(2):
            await talker.take()
            talker.end()
        assert reader.most_bytes(48 * 1024) == 8 * 1024
        assert reader.most_bytes(100) == 100
        assert talker.most_bytes(48 * 1024) == 48 * 1024
