"""A node starts on an engine that answers nonsense: it fails with one line, in a bounded time.

The engine is scripted on memory streams, with a mock clock.
"""

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from multichat.errors import JournalFailed, lone_exception

from .hostile import URL, HostileEngine, encode, info
from .running_backend import run_node

pytestmark = pytest.mark.unit

# As docs/cluster.md has it.
MOST_SECONDS = 30

_LONG = "\x1b[31m\n" + "x" * 100_000

ANSWERS = {
    "OK": b"+OK\r\n",
    "null": b"_\r\n",
    "a number": b":7\r\n",
    "a huge number": b":9223372036854775807\r\n",
    "infinity": b",inf\r\n",
    "a map": encode({b"a": 1}),
    "a list": encode([b"a", [1, None], b"b"]),
    "an empty list": encode([]),
    "a long text": encode(_LONG.encode()),
    "a push": b">2\r\n$3\r\nfoo\r\n:1\r\n",
    "a fence": b"-FENCED\r\n",
    "a long error": b"-WHAT " + b"x" * 10_000 + b"\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "nothing": b"",
}

STEPS = (
    *("HELLO", "INFO", "SUBSCRIBE", "HLEN", "HKEYS", "FUNCTION"),
    *("multichat_version", "multichat_begin_era", "multichat_join", "multichat_snapshot"),
)


async def start(engine: HostileEngine) -> str:
    """Start a node on *engine*; return the line with which that fails, or nothing."""
    started = trio.current_time()
    try:
        with lone_exception():
            async with AsyncExitStack() as stack:
                config = await stack.enter_async_context(engine.serve())
                await stack.enter_async_context(run_node(config))
    except JournalFailed as error:
        line = str(error)
        assert line.startswith(f"{URL}: ")
        assert line.isprintable()
        assert len(line) < 500
        return line
    finally:
        assert trio.current_time() - started <= MOST_SECONDS
    return ""


@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_engine_that_answers_everything_alike_fails_the_start_with_one_line(
    answer: str, autojump_clock: MockClock
) -> None:
    assert await start(HostileEngine(every=ANSWERS[answer]))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("answer", ANSWERS)
async def test_one_strange_answer_fails_the_start_with_one_line_or_does_not_matter(
    answer: str, step: str, autojump_clock: MockClock
) -> None:
    line = await start(HostileEngine({step: ANSWERS[answer]}))
    if answer in ("a push", "nothing"):  # which are no answer
        assert line or step in ("HKEYS", "FUNCTION")  # not asked


async def test_a_good_engine_lets_the_node_start(autojump_clock: MockClock) -> None:
    assert await start(HostileEngine()) == ""


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"SUBSCRIBE": b"+OK\r\n"}, "it replies to a subscription, which RESP3 does not"),
        ({"multichat_version": b"+OK\r\n"}, "the engine's answer is not ours: "),
        ({"multichat_join": b"-FENCED\r\n"}, "the engine's answer is not ours: it has fenced"),
        ({"multichat_snapshot": b""}, "the engine did not answer in 10 s"),
        ({"HELLO": b"+OK\r\n"}, "it does not speak RESP3: Valkey, or Redis 7 or later, is needed"),
        ({"HELLO": b""}, "no answer in 5 s"),
    ],
)
async def test_the_line_says_what_was_wrong(
    answers: dict[str, bytes], reason: str, autojump_clock: MockClock
) -> None:
    assert reason in await start(HostileEngine(answers))


async def test_an_engine_that_talks_and_answers_nothing_fails_the_start_in_time(
    autojump_clock: MockClock,
) -> None:
    engine = HostileEngine({"multichat_join": b""})

    async def talk() -> None:
        while True:
            await trio.sleep(1)
            for stream in engine.streams:
                await stream.send_all(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        assert "this node could not join in 20 s" in await start(engine)
        nursery.cancel_scope.cancel(reason="the test has ended")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("valkey_version", "9" + _LONG),
        ("valkey_version", "9" * 5000),
        ("role", "slave"),
        ("role", _LONG),
        ("maxmemory", "9" * 5000),
        ("maxmemory", "-1"),
        ("maxmemory_policy", _LONG),
        ("run_id", _LONG),
        ("master_replid", _LONG),
        ("second_repl_offset", "x"),
    ],
)
async def test_absurd_fields_of_info_are_short_in_log_and_error(
    field: str, value: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"master_host": _LONG, "master_port": _LONG, field: value}
    await start(HostileEngine({"INFO": info(**fields)}))
    assert all(len(each.getMessage()) < 500 for each in caplog.records)


async def test_an_engine_that_is_loading_its_data_is_waited_for_and_logged_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = HostileEngine({"HELLO": b"-LOADING it is loading\r\n"})

    async def finish_loading() -> None:
        await trio.sleep(60)
        del engine.answers["HELLO"]

    async with trio.open_nursery() as nursery, engine.serve() as config:
        nursery.start_soon(finish_loading)
        async with run_node(config):
            assert trio.current_time() >= 60
    lines = [each.getMessage() for each in caplog.records if "loading" in each.getMessage()]
    assert lines == [
        "[start] The cluster: waiting for the engine at engine.example:6379: it is loading its data"
    ]
