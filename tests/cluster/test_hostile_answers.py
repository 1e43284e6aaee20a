"""Answers of a hostile engine to a node that runs: they end neither the node nor a client's task.

Each is a failure of the connection, or fails what one client has asked for; the node works again
as soon as the engine does.  The engine is scripted on memory streams, with a mock clock.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from multichat.backend.base import DirectFate
from multichat.backend.events import AvailabilityChanged, BanRecord, NodeFenced
from multichat.cluster.calls import Block, Call, append, begin_era, read, read_before, tails, trim
from multichat.cluster.changes import (
    Change,
    ClaimName,
    PutBan,
    ReadSession,
    SendDirect,
    SetTopic,
    StoreAccount,
    TakeNumbers,
    TakeSession,
    read_event,
    read_snapshot,
)
from multichat.cluster.errors import NotOurs
from multichat.cluster.library import VERSION_CALL
from multichat.cluster.results import read_results, refusal_of
from multichat.cluster.saved_sessions import read_session
from multichat.errors import InvalidRequest, NameTaken, NotRead, StorageFailed, TooManyRegistrations
from multichat.journal.base import AccountRecord
from multichat.protocol.messages import Directed, SaidBlock

from .hostile import HostileEngine, encode
from .running_backend import Node, run_node

pytestmark = pytest.mark.unit

_DIGEST = b"d" * 32
_HELLO = Directed(client=1, name="alice", text="hello")
_SAID = SaidBlock("", 0, "2026-01-01T00:00:00.000Z", "lobby", 1, "alice", "hello")


async def _number(node: Node) -> None:
    for _ in range(100):  # more than a block
        assert 0 < await node.backend.give_client_number() < 2**53


async def _claim(node: Node) -> None:
    await node.claim(1, "alice")


async def _session(node: Node) -> None:
    await node.backend.session(_DIGEST)


async def _take_session(node: Node) -> None:
    await node.backend.take_session(_DIGEST, 1)


async def _direct(node: Node) -> None:
    fate = await node.backend.send_direct(2, _HELLO, generation=1, nonce="n", check=b"1234")
    assert fate in DirectFate


async def _account(node: Node) -> None:
    await node.backend.save_account("alice", AccountRecord(name="alice", hash="h"), former=None)


async def _topic(node: Node) -> None:
    await node.backend.save_topic("lobby", "soup", 1, "alice")


async def _ban(node: Node) -> None:
    node.backend.add_ban(BanRecord(target="name eve"))
    node.put(1)
    node.backend.remove_client(1, 1, "gone", keep_seconds=None)


async def _say(node: Node) -> None:
    pending = node.backend.load_room("lobby")
    if pending is not None:
        await pending.wait()
    log = node.backend.room("lobby")
    proposal = log.propose(_SAID, ("n",), b"1234")
    assert proposal.pending is not None
    with trio.move_on_after(5):  # sent requests are pending until their outcome is known
        await proposal.pending.wait()


async def _read(node: Node) -> None:
    pending = node.backend.load_room("lobby")
    if pending is not None:
        await pending.wait()
    log = node.backend.room("lobby")
    with trio.move_on_after(5):  # reading waits until the engine is back
        await log.read(0, 10, max_bytes=1000)
        await log.read_before(10, max_messages=5, max_bytes=1000)


Ask = Callable[[Node], Awaitable[None]]
ASKS: dict[str, Ask] = {
    each.__name__.strip("_"): each
    for each in (_number, _claim, _session, _take_session, _direct, _account, _topic, _ban)
}

# The errors that a client's task can report.
_EXPECTED = (StorageFailed, NotRead, NameTaken, InvalidRequest, TooManyRegistrations)


async def _ask(node: Node, ask: Ask) -> None:
    try:
        await ask(node)
    except _EXPECTED as error:
        line = str(error)
        assert line.isprintable()
        assert len(line) < 300


def _packed(*results: Any) -> bytes:
    return encode([0, msgspec.msgpack.encode(list(results))])


_LONG = "x" * 100_000

# Answers to a batch with one change.
RESULTS = {
    "no result": [],
    "nothing": [[]],
    "no code": [["refused"]],
    "ok alone": [["ok"]],
    "ok with numbers": [["ok", -1, 2**63, 3.5, None]],
    "ok with texts": [["ok", _LONG, _LONG, _LONG, _LONG]],
    "ok with lists": [["ok", [], {}, [[]]]],
    "ok with a huge number": [["ok", 2**53 + 1]],
    "another kind": [["perhaps", 1]],
    "a number": [[7]],
    "refused with a list": [["refused", [1]]],
    "refused with long texts": [["refused", _LONG, _LONG]],
    "a long error": [["refused", "error", _LONG]],
    "a strange error": [["refused", "error", ["\x1b[31m"]]],
    "a strange holder": [["refused", "name-taken", [1], {}]],
    "a long holder": [["refused", "name-taken", _LONG, True]],
    "no holder": [["refused", "name-taken"]],
    "fenced": [["refused", "fenced"]],
    "two results": [["ok"], ["ok"]],
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
async def test_a_strange_result_fails_at_most_the_request_of_one_client(
    result: list[Any], ask: Ask, autojump_clock: MockClock
) -> None:
    engine = HostileEngine()
    async with engine.serve() as config, run_node(config) as node:
        engine.answers["multichat_change"] = _packed(*result)
        with trio.move_on_after(60) as bounded:
            await _ask(node, ask)
        # A session is waited for while the engine is away.
        assert not bounded.cancelled_caught or ask is _session
        del engine.answers["multichat_change"]
        with trio.fail_after(60):
            await _works(node)
        assert not any(isinstance(each, NodeFenced) for each in node.heard)


async def _works(node: Node) -> None:
    """Wait until the node can decide something again."""
    while True:
        try:
            await node.claim(2, "bob")
        except StorageFailed:
            await trio.sleep(0.5)
        else:
            return


ANSWERS = {
    "OK": b"+OK\r\n",
    "null": b"_\r\n",
    "a number": b":7\r\n",
    "infinity": b",inf\r\n",
    "a text": encode(b"\xff" * 1000),
    "a map": encode({b"a": 1}),
    "an empty list": encode([]),
    "a list": encode([b"a", [1, None], b"b"]),
    "numbers": encode([2**62, 2**62]),
    "no msgpack": encode([0, b"\xc1"]),
    "lists in lists": encode([0, b"\x91\x91" + b"\x91" * 100_000]),
    "a huge array": encode([0, b"\xdd\xff\xff\xff\xff"]),
    "a push": b">2\r\n$3\r\nfoo\r\n:1\r\n",
    "nothing": b"",
    "an error": b"-WHAT " + b"x" * 10_000 + b"\r\n",
    "a fence": b"-FENCED\r\n",
}

STEPS = {
    "multichat_change": _claim,
    "multichat_renew": None,
    "multichat_events": None,
    "multichat_tails": _say,
    "multichat_append": _say,
    "multichat_read": _read,
    "multichat_read_before": _read,
    "multichat_trim": None,
    "HMGET": None,
    "PING": None,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_engine_that_answers_nonsense_is_away_and_returns(
    answer: str, step: str, autojump_clock: MockClock
) -> None:
    ask = STEPS[step] or _claim
    engine = HostileEngine({"multichat_renew": encode([1, 0])})  # an event that was missed
    if step == "HMGET":
        fenced = iter((b"-FENCED\r\n", encode(0)))
    async with engine.serve() as config, run_node(config) as node:
        node.put(1)
        await trio.sleep(1)
        engine.answers[step] = ANSWERS[answer]
        if step == "HMGET":  # asked when the node begins another run
            engine.answers["multichat_renew"] = b"-FENCED\r\n"
            engine.answers["multichat_join"] = lambda _: next(fenced, encode(0))
        with trio.fail_after(120):
            await _ask(node, ask)
        await trio.sleep(5)
        engine.answers.clear()
        with trio.fail_after(120):
            await _works(node)
            while not node.backend.available:
                await trio.sleep(1)


async def test_without_an_answer_that_is_ours_the_engine_is_away_and_that_is_logged_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = HostileEngine()
    async with engine.serve() as config, run_node(config) as node:
        engine.answers["multichat_change"] = b"+OK\r\n"
        with pytest.raises(StorageFailed, match="the engine of the cluster is away"):
            await node.claim(1, "alice")
        gone = await node.wait_for(AvailabilityChanged)
        assert not gone.available
        assert "the engine's answer is not ours" in gone.reason
        await trio.sleep(100)
        for _ in range(3):  # also a claim while it is connected in between
            with pytest.raises(StorageFailed):
                await node.claim(1, "alice")
            await trio.sleep(0.7)
        assert engine.asked["HELLO"] > 20
        engine.answers.clear()
        assert (await node.wait_for(AvailabilityChanged)).available
        await node.claim(1, "alice")
    lost = [each for each in caplog.messages if "Lost the connection" in each]
    assert len(lost) <= 10  # until the engine counts as away


async def test_an_engine_that_lets_no_node_join_again_is_away(autojump_clock: MockClock) -> None:
    """Each connection succeeds, and ends at once."""
    engine = HostileEngine()
    async with engine.serve() as config, run_node(config) as node:
        engine.answers["multichat_join"] = b"-NOPERM no\r\n"
        for stream in list(engine.streams):
            await stream.aclose()
        assert not (await node.wait_for(AvailabilityChanged)).available
        with pytest.raises(StorageFailed):
            await node.claim(1, "alice")
        engine.answers.clear()
        assert (await node.wait_for(AvailabilityChanged)).available
        await node.claim(1, "alice")


# --- The readers alone, with anything -------------------------------------------------------------

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=20),
)
_REPLIES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.binary(max_size=3), inner),
    max_leaves=20,
)
_PACKED = st.recursive(
    st.one_of(_SCALARS, st.text(max_size=10), st.sampled_from(["ok", "refused", "error"])),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)
_CALLS: list[Call[Any]] = [
    append("a", "run", 1, [Block.of("lobby", 1, _SAID)], nonce_seconds=1),
    begin_era("primary", era=0, epoch=""),
    tails([("lobby", "")]),
    read("lobby", 0, 10, max_bytes=1000),
    read_before("lobby", 10, max_messages=5, max_bytes=1000),
    trim("0"),
    VERSION_CALL,
    Call("multichat_snapshot", (), read_snapshot),
]
_CHANGES: list[Change] = [
    TakeNumbers(1),
    ClaimName.of(1, 1, "alice"),
    ReadSession("d"),
    TakeSession("d", 1),
    SendDirect("id", 2, "{}", 1, 1, "", "-"),
    StoreAccount("a", "A", "h", (), "", 1),
    SetTopic("lobby", "soup", 1, "alice", 1),
    PutBan(BanRecord(target="name eve"), 1),
]


_READERS: list[Callable[[Any], object]] = [
    *(each.read for each in _CALLS),
    partial(read_results, changes=_CHANGES[:1]),
    partial(read_session, _DIGEST),
]


@settings(max_examples=50)
@given(_REPLIES)
def test_any_answer_is_read_or_not_ours(reply: Any) -> None:
    for reader in _READERS:
        with suppress(NotOurs):
            reader(reply)


@settings(max_examples=50)
@given(
    st.lists(_PACKED, max_size=6) | st.tuples(st.just("ok"), *[_PACKED] * 4).map(list),
    st.sampled_from(_CHANGES),
)
def test_any_result_fits_its_change_or_is_a_refusal(result: list[Any], change: Change) -> None:
    try:
        packed = msgspec.msgpack.encode([result])
        _, [found] = read_results([0, packed], [change])
    except (NotOurs, OverflowError):
        return
    assert found[0] in ("ok", "refused")
    if found[0] == "refused":
        assert isinstance(found[1], str)
        refusal_of(found)
    elif isinstance(change, SendDirect):
        assert [type(each) for each in found] == [str, str, bool]
    elif isinstance(change, TakeSession | ReadSession):
        client, generation, record, nonces, *_ = found[1:]
        assert [*map(type, (client, generation, record, nonces))] == [int, int, str, list]
    else:
        assert len(found) == (2 if isinstance(change, TakeNumbers) else 1)


@settings(max_examples=50)
@given(st.binary(max_size=100) | _PACKED.map(msgspec.msgpack.encode))
def test_any_event_is_read_or_passed_over(packed: bytes) -> None:
    read_event(packed)
