"""Private messages between nodes: each is delivered at most once, and its outcome is reported.

The first part calls the functions in the engine as nodes do, the second runs nodes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

import pytest
import trio

from multichat import ServerConfig
from multichat.backend.base import DirectFate
from multichat.backend.events import ClientPut, DirectReceived
from multichat.cluster.backend import ValkeyBackend
from multichat.cluster.changes import (
    ClaimDirect,
    DirectDone,
    DirectSent,
    FinishDirect,
    SendDirect,
    Settings,
    WithdrawDirect,
)
from multichat.cluster.library import library_text
from multichat.errors import NonceReused, StorageFailed
from multichat.log import Log
from multichat.protocol.messages import Directed
from multichat.testing import MemoryServer
from tests.support.nodes import nodes_on
from tests.support.processes import WAIT_SECONDS
from tests.support.programs import join

from .engine import Engine, Engines
from .functions import calling, mutated
from .running_backend import Node, cluster_config, run_node
from .scripted_node import ScriptedNode

pytestmark = pytest.mark.process

Start: TypeAlias = Callable[..., Awaitable[ScriptedNode]]

_HELLO = Directed(client=1, name="alice", text="hello")
_KNOWN = ["7", "0a0b0c0d - 0 "]


@pytest.fixture
async def start(engine: Engine) -> Start:
    """Start nodes on one engine that has the library."""
    await engine.call("FUNCTION", "LOAD", library_text())

    async def one(name: str, **settings: int) -> ScriptedNode:
        node = ScriptedNode(engine, name, Settings(**settings))
        await node.join()
        return node

    return one


def _to_bob(
    id_: str, *, nonce: str = "", check: str = "0a0b0c0d", generation: int = 1
) -> SendDirect:
    """Return a message of client 1 to client 2."""
    return SendDirect(id_, 2, "hello", 1, generation, nonce, check)


async def _done(node: ScriptedNode) -> list[DirectDone]:
    events = [each.event for each in await node.events()]
    return [each for each in events if isinstance(each, DirectDone)]


# The functions ------------------------------------------------------------------------------------


async def test_a_private_message_is_claimed_and_delivered_once(start: Start) -> None:
    a, b = await start("a"), await start("b")
    assert await a.one(_to_bob("x")) == ["refused", "unknown-client"]
    await b.put(2)
    assert await a.one(_to_bob("x")) == ["ok", "x", False]
    assert (await b.events())[-1].event == DirectSent("x", 2, "b", "hello")
    assert await a.one(ClaimDirect("x")) == ["refused", "withdrawn"]  # another's
    assert await b.one(ClaimDirect("x")) == ["ok"]
    assert await b.one(ClaimDirect("x")) == ["refused", "withdrawn"]
    assert await a.one(WithdrawDirect("x")) == ["refused", "claimed"]
    assert await b.one(FinishDirect("x", True)) == ["ok"]
    assert await b.one(FinishDirect("x", True)) == ["ok"]
    assert await _done(a) == [DirectDone("x", "a", "delivered")]
    assert await a.one(WithdrawDirect("x")) == ["refused", "settled"]


async def test_a_message_to_a_client_of_the_same_node_is_claimed_at_once(start: Start) -> None:
    a = await start("a")
    await a.put(2)
    assert await a.one(_to_bob("x", nonce="7")) == ["ok", "x", True]
    assert await a.one(WithdrawDirect("x")) == ["refused", "claimed"]
    await a.one(FinishDirect("x", True))
    assert await _done(a) == [DirectDone("x", "a", "delivered")]


async def test_a_private_message_whose_sender_waits_no_longer_is_not_delivered(
    start: Start,
) -> None:
    a, b = await start("a"), await start("b")
    await b.put(2)
    await a.one(_to_bob("x", nonce="7"))
    assert await b.one(WithdrawDirect("x")) == ["refused", "claimed"]  # another's
    assert await a.one(WithdrawDirect("x")) == ["ok"]
    assert await b.one(ClaimDirect("x")) == ["refused", "withdrawn"]
    assert await a.one(_to_bob("y", nonce="7")) == ["ok", "y", False]  # it may be sent again


async def test_the_feed_has_the_text_of_a_private_message_only_while_it_is_under_way(
    start: Start,
) -> None:
    a, b = await start("a"), await start("b")
    await b.put(2)
    async with calling(b.engine) as caller:
        await caller.subscribe_to("multichat:directory")
        await a.one(_to_bob("x"))
        assert b"hello" in (await caller.push())[2]
    # A node that has missed the push reads it.
    assert (await b.events())[-1].event == DirectSent("x", 2, "b", "hello")
    await b.one(ClaimDirect("x"))
    assert (await b.events())[-1].event == DirectSent("x", 2, "b", "hello")
    before = await b.engine.call("MEMORY", "USAGE", "multichat:directory:log", "SAMPLES", 0)
    await b.one(FinishDirect("x", True))
    for number in range(100):
        await a.one(SendDirect(f"{number}", 2, "x" * 10_000, 1, 1, "", ""))
        await a.one(WithdrawDirect(f"{number}"))
    after = await b.engine.call("MEMORY", "USAGE", "multichat:directory:log", "SAMPLES", 0)
    assert after - before < 100_000
    assert DirectSent("x", 2, "b", "") in [each.event for each in await b.events()]


async def test_messages_that_a_lost_node_had_claimed_are_unknown(start: Start) -> None:
    a, b = await start("a"), await start("b", lease=1)
    await b.put(2)
    await a.change(_to_bob("x", nonce="7"), _to_bob("y", nonce="8"), _to_bob("z"))
    await b.one(ClaimDirect("x"))
    await trio.sleep(0.01)
    await a.renew()
    assert set(await _done(a)) == {
        DirectDone("x", "a", "unknown"),
        DirectDone("y", "a", "not-delivered"),
        DirectDone("z", "a", "not-delivered"),
    }
    assert await a.one(_to_bob("x2", nonce="7")) == ["refused", "unknown"]
    assert await a.one(_to_bob("y2", nonce="8")) == ["refused", "unknown-client"]
    assert await a.engine.call("HLEN", "multichat:directs") == 0
    assert await a.engine.call("HLEN", "multichat:directs:nonces") == 0


async def test_a_sender_who_resumed_elsewhere_waits_for_the_first_message(start: Start) -> None:
    a, b, c = await start("a"), await start("b"), await start("c")
    await a.put(1)
    await a.save_session(1, "token")
    await b.put(2)
    await a.one(_to_bob("x", nonce="7"))
    await b.one(ClaimDirect("x"))
    taken = await c.take_session("token")
    assert taken[4] == []  # its fate is open
    assert await a.one(_to_bob("y", nonce="8")) == ["refused", "fenced"]
    again = _to_bob("z", nonce="7", generation=2)
    assert await c.one(again) == ["ok", "x", False]
    await b.one(FinishDirect("x", True))
    assert await _done(c) == [DirectDone("x", "c", "delivered")]
    assert await c.one(again) == ["refused", "delivered"]
    other = _to_bob("z", nonce="7", check="00000000", generation=2)
    assert await c.one(other) == ["refused", "nonce-reused"]
    assert (await c.session("token"))[4] == _KNOWN


async def test_an_undelivered_message_may_be_sent_again_with_its_nonce(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await b.put(2)
    await a.one(_to_bob("x", nonce="7"))
    await b.one(ClaimDirect("x"))
    await b.one(FinishDirect("x", False))
    assert await _done(a) == [DirectDone("x", "a", "not-delivered")]
    assert await a.one(_to_bob("y", nonce="7")) == ["ok", "y", False]


async def test_the_nonce_of_a_room_message_is_refused_for_a_private_one(start: Start) -> None:
    a = await start("a")
    await a.put(2)
    await a.engine.call("HSET", "multichat:nonces:1", "7", "0a0b0c0d 0000000000a 4 lobby")
    assert await a.one(_to_bob("x", nonce="7")) == ["refused", "nonce-reused"]


# Nodes --------------------------------------------------------------------------------------------


@asynccontextmanager
async def _nodes(engine: Engine, *, direct: float = 5.0) -> AsyncIterator[tuple[Node, Node]]:
    """Run nodes a and b; client 2 is on b."""
    async with (
        run_node(cluster_config(engine, "a", direct=direct, lease=0.5, renew=0.1)) as a,
        run_node(cluster_config(engine, "b", lease=0.5, renew=0.1)) as b,
    ):
        b.put(2)
        await a.wait_for(ClientPut)
        yield a, b


async def _send(node: Node, *, nonce: int | None = 7, check: bytes = b"1234") -> DirectFate:
    return await node.backend.send_direct(2, _HELLO, generation=1, nonce=nonce, check=check)


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_private_message_is_delivered_on_another_node_or_not(
    engine: Engine, delivered: bool
) -> None:
    expected = DirectFate.DELIVERED if delivered else DirectFate.NOT_DELIVERED
    async with _nodes(engine) as (a, b), trio.open_nursery() as nursery:

        async def answer() -> None:
            received = await b.answer_direct(delivered=delivered)
            assert (received.to, received.message) == (2, _HELLO)

        nursery.start_soon(answer)
        assert await _send(a) is expected
        unknown = await a.backend.send_direct(9, _HELLO, generation=1)
        assert unknown is DirectFate.NOT_DELIVERED


async def test_a_claimed_message_that_is_not_answered_is_of_unknown_fate(engine: Engine) -> None:
    async with _nodes(engine, direct=0.1) as (a, b):
        assert await _send(a) is DirectFate.UNKNOWN
        received = await b.wait_for(DirectReceived)
        # The outcome comes later, and a repetition gets it.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.answer_direct)
            b.heard.append(received)
            b.backend.answer_direct(received, delivered=True)
            while await _send(a) is not DirectFate.DELIVERED:
                pass
            nursery.cancel_scope.cancel(reason="it is known")
        assert not any(isinstance(each, DirectReceived) for each in b.heard[1:])


async def test_the_outcome_of_a_message_is_reported_again_to_an_engine_that_has_lost_it(
    engine: Engine,
) -> None:
    async with _nodes(engine, direct=0.1) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(_send, a)
        received = await b.wait_for(DirectReceived)
        [(id_, claimed)] = (await engine.call("HGETALL", "multichat:directs")).items()
        [nonce] = await engine.call("HGETALL", "multichat:directs:nonces")
        b.backend.answer_direct(received, delivered=True)
        with trio.fail_after(WAIT_SECONDS):
            while await engine.call("HLEN", "multichat:directs"):
                await trio.sleep(0.01)
        # A replica that lacks the report becomes the primary.
        await engine.call("DEL", "multichat:nonces:1")
        await engine.call("HSET", "multichat:directs", id_, claimed)
        await engine.call("HSET", "multichat:directs:nonces", nonce, id_)
        assert await _send(a) is DirectFate.UNKNOWN
        await engine.call("REPLICAOF", "127.0.0.1", "1")
        await engine.call("REPLICAOF", "NO", "ONE")  # this begins another replication id
        await engine.call("CLIENT", "KILL", "TYPE", "pubsub")
        with trio.fail_after(WAIT_SECONDS):
            while await engine.call("HLEN", "multichat:directs"):
                await trio.sleep(0.01)
        assert await _send(a) is DirectFate.DELIVERED
        assert not any(isinstance(each, DirectReceived) for each in b.heard)


async def test_two_that_send_one_nonce_at_once_deliver_one_message(engine: Engine) -> None:
    fates: list[DirectFate] = []
    async with _nodes(engine) as (a, b):

        async def send() -> None:
            fates.append(await _send(a))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            received = await b.wait_for(DirectReceived)
            nursery.start_soon(send)
            await trio.sleep(0.1)
            b.backend.answer_direct(received, delivered=True)
            while not fates:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel(reason="the one that was replaced waits in vain")
        assert fates[0] is DirectFate.DELIVERED
        assert not any(isinstance(each, DirectReceived) for each in b.heard)
        with pytest.raises(NonceReused):
            await _send(a, check=b"4321")


async def test_without_an_engine_what_was_not_sent_failed_and_the_rest_is_unknown(
    engine: Engine,
) -> None:
    async with (
        run_node(cluster_config(engine, "a", unavailable=0.5)) as a,
        trio.open_nursery() as nursery,
    ):
        a.put(2)
        assert await a.backend.session(b"\0") is None
        engine.freeze()
        fates: list[DirectFate] = []

        async def send() -> None:
            fates.append(await _send(a))

        nursery.start_soon(send)
        with trio.fail_after(WAIT_SECONDS):
            while not fates:
                await trio.sleep(0.05)
        assert fates == [DirectFate.UNKNOWN]
        with pytest.raises(StorageFailed):
            await _send(a, nonce=8)
        engine.thaw()
        received = await a.wait_for(DirectReceived)  # it was sent: it is delivered once
        a.backend.answer_direct(received, delivered=True)
        with trio.fail_after(WAIT_SECONDS):
            while not a.backend.available:
                await trio.sleep(0.05)
        assert await _send(a) is DirectFate.DELIVERED
        assert not any(isinstance(each, DirectReceived) for each in a.heard)


async def test_a_full_engine_certainly_does_not_send(engines: Engines) -> None:
    engine = await engines.start()
    async with run_node(cluster_config(engine, "a")) as a:
        a.put(2)
        assert await a.backend.session(b"\0") is None
        await engine.call("CONFIG", "SET", "maxmemory", "1mb")
        with pytest.raises(StorageFailed, match="engine of the cluster is full"):
            await _send(a)
        await engine.call("CONFIG", "SET", "maxmemory", "0")
        await trio.sleep(0.6)
        assert not any(isinstance(each, DirectReceived) for each in a.heard)


# Servers ------------------------------------------------------------------------------------------


def _servers(engine: Engine) -> AbstractAsyncContextManager[list[MemoryServer]]:
    log, config = Log("server"), ServerConfig(away_seconds=5.0)
    backends = [ValkeyBackend(cluster_config(engine, name), log) for name in "abc"]
    return nodes_on(*backends, config=config, seconds=WAIT_SECONDS)


async def _heard_after_a_resume(engine: Engine, *, on_own_node: bool) -> list[str]:
    """Send a private message, and again after resuming on another node, which nothing delays.

    Returns the texts that its recipient got, which is on the sender's first or on a third node.
    """
    async with _servers(engine) as (a, b, c):
        alice = await join(a, name="alice")
        bob = await join(a if on_own_node else b, name="bob")
        number = bob.welcome["client"]
        for each in (alice, await join(c)):
            while not any(m["name"] == "bob" for m in (await each.ask("who"))["members"]):
                await trio.sleep(0.02)
        once = {"to": number, "text": "once", "nonce": "n"}
        await alice.send({"type": "direct", **once})
        again = await join(c, session=alice.welcome["session"])
        assert again.welcome["resumed"]
        answer = await again.ask("direct", **once)
        assert answer["type"] == "accepted", answer
        await again.ask("direct", to=number, text="last")
        texts = [(await bob.hear("direct"))["text"]]
        while texts[-1] != "last":
            texts.append((await bob.hear("direct"))["text"])
        return texts


@pytest.mark.parametrize("on_own_node", [True, False])
async def test_a_sender_that_resumes_elsewhere_at_once_is_delivered_once(
    engine: Engine, on_own_node: bool
) -> None:
    for _ in range(10):  # the first one may or may not be under way
        texts = await _heard_after_a_resume(engine, on_own_node=on_own_node)
        assert texts == ["once", "last"]


# Mutations ----------------------------------------------------------------------------------------


async def _repeated_while_claimed(engine: Engine, library: str) -> int:
    """Send a message again while it is claimed; return how many are under way."""
    await engine.call("FUNCTION", "LOAD", library)
    a, b = ScriptedNode(engine, "a"), ScriptedNode(engine, "b")
    await a.join(), await b.join()
    await b.put(2)
    await a.one(_to_bob("x", nonce="7"))
    await b.one(ClaimDirect("x"))
    await b.one(_to_bob("y", nonce="7"))
    count: int = await engine.call("HLEN", "multichat:directs")
    return count


async def test_without_noting_the_nonce_with_the_message_it_would_be_delivered_twice(
    engines: Engines,
) -> None:
    notes = "            call('HSET', DIRECT_NONCES, nonce_of(client, nonce), id)\n"
    whole, broken = await engines.start(), await engines.start()
    assert await _repeated_while_claimed(whole, library_text()) == 1
    assert await _repeated_while_claimed(broken, mutated((notes, ""))) == 2
