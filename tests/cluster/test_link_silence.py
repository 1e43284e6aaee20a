"""How long the engine has not answered: messages are refused while it is away, not when it is back.

With a mock clock and an engine that is scripted on a memory stream.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from multichat.cluster.errors import FateUnknown
from multichat.cluster.handshake import EngineInfo
from multichat.cluster.link import EngineTimeouts, Link, LinkLimits
from multichat.cluster.resp import ReplyDecoder, ReplyLimits
from multichat.cluster.room_logs import AWAY, LogConfig, RoomLogs

pytestmark = pytest.mark.unit

AWAY_SECONDS = LogConfig(node="a").away_seconds

EngineStream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


@asynccontextmanager
async def scripted() -> AsyncIterator[tuple[Link, EngineStream]]:
    """Run a link; the other stream is the engine's end of it."""
    ours, engine = memory_stream_pair()
    link = Link(
        ours,
        EngineInfo(where="here", program="valkey", version="9", run_id="run", replication_id="one"),
        ReplyDecoder(ReplyLimits()),
        timeouts=EngineTimeouts(),
        limits=LinkLimits(),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await trio.testing.wait_all_tasks_blocked()
        yield link, engine
        nursery.cancel_scope.cancel(reason="the test has ended")


async def test_the_first_answer_after_a_silence_says_that_the_engine_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A message that was sent on that answer was refused, and the next one was accepted."""
    async with scripted() as (link, engine):
        logs = RoomLogs(LogConfig(node="a"))
        logs.connected(link, "run")
        first, second = link.request("PING"), link.request("PING")
        await trio.sleep(AWAY_SECONDS - 0.1)
        assert logs.refusal == ""
        await trio.sleep(0.2)
        assert logs.refusal == AWAY
        await engine.send_all(b"+PONG\r\n")
        assert await first.reply() == b"PONG"
        assert logs.refusal == ""
        await trio.sleep(AWAY_SECONDS + 0.1)
        assert logs.refusal == AWAY  # silent again, with the second in flight
        await engine.send_all(b"+PONG\r\n")
        assert await second.reply() == b"PONG"
        assert logs.refusal == ""


async def test_an_engine_that_answers_each_request_too_late_is_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is never silent for long, but a new request waits for all earlier ones."""
    async with scripted() as (link, engine):
        logs = RoomLogs(LogConfig(node="a"))
        logs.connected(link, "run")
        for _ in range(20):
            link.request("PING")
        for answers in range(10):
            await trio.sleep(0.5)
            await engine.send_all(b"+PONG\r\n")
            await trio.testing.wait_all_tasks_blocked()
            assert (logs.refusal == AWAY) is ((answers + 1) * 0.5 >= AWAY_SECONDS)


async def test_pushes_do_not_count_as_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with scripted() as (link, engine):
        logs = RoomLogs(LogConfig(node="a"))
        logs.connected(link, "run")
        link.request("PING")
        await trio.sleep(AWAY_SECONDS + 0.1)
        await engine.send_all(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert logs.refusal == AWAY


async def test_an_engine_that_says_other_things_and_answers_nothing_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with scripted() as (link, engine):
        request = link.request("PING")
        started = trio.current_time()
        while not link.reason:
            assert trio.current_time() - started < 2 * EngineTimeouts().overdue
            await engine.send_all(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n")
            await trio.sleep(1)
        assert link.reason == "the engine did not answer a request in 60 s"
        with pytest.raises(FateUnknown):
            await request.reply()


async def test_an_engine_that_answers_slowly_but_steadily_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with scripted() as (link, engine):
        for _ in range(20):
            link.request("PING")
        for _ in range(20):
            await trio.sleep(9)
            await engine.send_all(b"+PONG\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert not link.reason
