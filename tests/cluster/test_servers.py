"""Servers in memory as nodes on a real engine: what their clients have of the log."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from multichat.cluster.backend import ClusterConfig, ValkeyBackend
from multichat.cluster.calls import trim
from multichat.errors import JournalFailed
from multichat.log import Log
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.processes import LOOPBACK, WAIT_SECONDS
from tests.support.programs import JsonClient, join

from .engine import Engine, EngineConfig, Engines
from .functions import mutated
from .relay import Relay
from .running_backend import cluster_config

pytestmark = pytest.mark.process


@asynccontextmanager
async def node(config: ClusterConfig) -> AsyncGenerator[MemoryServer]:
    async with memory_server(backend=ValkeyBackend(config, Log("server"))) as server:
        yield server


def through(config: ClusterConfig, relay: Relay) -> ClusterConfig:
    """Return *config* with the relay instead of the engine."""
    connection = config.connection
    address = replace(connection.address, hosts=((LOOPBACK, relay.port),))
    return replace(config, connection=replace(connection, address=address))


@asynccontextmanager
async def relayed(engine: Engine) -> AsyncGenerator[Relay]:
    relay = Relay(engine)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        yield relay
        nursery.cancel_scope.cancel(reason="the test has ended")


async def hears(client: JsonClient, *types: str) -> dict[str, Any]:
    with trio.fail_after(WAIT_SECONDS):
        return await client.hear(*types)


async def texts(client: JsonClient, last: str) -> list[str]:
    """Return the messages that *client* receives, up to the one that ends with *last*."""
    heard: list[str] = []
    while not heard or not heard[-1].endswith(last):
        event = await hears(client, "said", "missed")
        heard.append(event["text"] if event["type"] == "said" else f"missed {event['count']}")
    return heard


async def test_a_client_that_resumes_on_another_node_gets_each_message_once(
    engine: Engine,
) -> None:
    """The messages are too large to be pushed: the other node has to read each."""
    async with node(cluster_config(engine, "a")) as a, node(cluster_config(engine, "b")) as b:
        await join(b, name="stays")
        alice = await join(a, name="alice")
        bob = await join(a, name="bob")
        session = bob.welcome["session"]
        for number in range(30):
            server = (b, a)[number % 2]
            await alice.say(f"{'x' * 20_000} {number}")
            said = await hears(bob, "said")
            assert said["text"].endswith(f" {number}")
            bob = await join(server, session=session, since=said["id"])
            session = bob.welcome["session"]
        await alice.say("last")
        assert await texts(bob, "last") == ["last"]


async def test_a_client_that_resumes_on_a_node_that_is_behind_waits_for_it(engine: Engine) -> None:
    async with node(cluster_config(engine, "a")) as a, node(cluster_config(engine, "b")) as b:
        await join(b, name="stays")
        alice, bob = await join(a, name="alice"), await join(a, name="bob")
        await alice.say("one", "two")
        while (said := await hears(bob, "said"))["text"] != "two":
            pass
        room = b.server._registry.rooms.find("lobby")
        assert room is not None

        async def resume() -> None:
            nonlocal bob
            bob = await join(b, session=bob.welcome["session"], since=said["id"])

        async with trio.open_nursery() as nursery, room._order:  # as for a slow member
            await alice.say("three", "four")
            while (said := await hears(bob, "said"))["text"] != "four":
                pass
            nursery.start_soon(resume)
            await trio.sleep(0.3)
        await alice.say("last")
        assert await texts(bob, "last") == ["last"]


async def test_a_client_that_comes_while_the_last_one_leaves_is_welcomed(engine: Engine) -> None:
    async with node(cluster_config(engine, "a")) as a:
        for _ in range(5):
            one = ScriptedClient(a.connect())
            await one.send("/name one")
            assert "is now one" in await one.line()
            two = ScriptedClient(a.connect())
            await two.send("/ping")
            with trio.fail_after(WAIT_SECONDS):
                while not _loads(a):  # it waits for the lobby, which is open
                    await trio.lowlevel.checkpoint()
                await one.stream.aclose()
                assert await two.line() == "[Server] pong"
            await two.stream.aclose()


def _loads(server: MemoryServer) -> bool:
    backend = server.server._backend
    assert isinstance(backend, ValkeyBackend)
    return any(log.loads for log in backend._rooms._logs.values())


# --- What the engine loses, or has deleted --------------------------------------------------------


async def test_the_log_and_the_members_say_what_an_engine_has_lost(
    engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await engines.start()
    async with node(cluster_config(engine, "a")) as a:
        alice, bob = await join(a, name="alice"), await join(a, name="bob")
        await alice.say("one", "two")
        engine.kill()
        await engine.start()
        notice = await hears(bob, "notice")
        assert "2 messages were lost in lobby" in notice["text"]
        line = "The cluster: the newest data of the engine was lost: 2 messages, 2 in lobby"
        with trio.fail_after(WAIT_SECONDS):
            while line not in caplog.text:
                await trio.sleep(0.05)
        await say_until_accepted(alice, "three")
        assert await texts(bob, "three") == ["three"]


async def say_until_accepted(client: JsonClient, text: str) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while (await client.ask("say", text=text))["type"] != "accepted":
            await trio.sleep(0.05)


async def test_messages_deleted_before_a_node_had_them_are_missed(
    engine: Engine,
) -> None:
    """The node's connection is held while others speak, and retention deletes the first of that."""
    config = cluster_config(engine, "b", lease=60)
    async with (
        relayed(engine) as relay,
        node(cluster_config(engine, "a")) as a,
        node(through(config, relay)) as b,
    ):
        alice, bob = await join(a, name="alice"), await join(b, name="bob")
        await alice.say("before")
        await texts(bob, "before")
        relay.hold_replies()
        for number in range(10):
            await alice.say(f"{number}")
        await engine.call(*trim("0", max_messages=3).words)
        relay.cut()
        assert await texts(bob, "9") == ["missed 7", "7", "8", "9"]
        await alice.say("last")
        assert await texts(bob, "last") == ["last"]


async def test_a_member_that_lags_gets_nothing_that_was_lost_from_a_cache(
    engines: Engines,
) -> None:
    """A page that was read before a failover is not replayed after it."""
    primary = await engines.start()
    replica = await engines.start(EngineConfig(replica_of=primary))
    async with relayed(primary) as relay:
        config = through(cluster_config(primary, "a"), relay)
        async with node(config) as a:
            alice = await join(a, name="alice")
            await alice.say("kept")
            await replica.in_sync()
            await replica.promote()
            await alice.say("lost")
            room = a.server._registry.rooms.find("lobby")
            assert room is not None
            room._rings.discard(room._ring)  # a replay has to read
            carol = await join(a, name="carol", replay=10)
            assert await texts(carol, "lost") == ["kept", "lost"]
            primary.kill()
            relay.engine = replica
            relay.cut()
            assert "1 message was lost" in (await hears(alice, "notice"))["text"]
            dave = await join(a, name="dave", replay=10)
            await say_until_accepted(alice, "new")
            assert await texts(dave, "new") == ["kept", "new"]


# --- The library ----------------------------------------------------------------------------------


async def test_a_node_beside_a_newer_library_says_so_in_one_line(engine: Engine) -> None:
    newer = mutated(("local VERSION = 1\n", "local VERSION = 2\n"))
    await engine.call("FUNCTION", "LOAD", "REPLACE", newer)
    with pytest.raises(JournalFailed, match="upgrade this node") as raised:
        async with node(cluster_config(engine, "a")):
            pass
    assert "\n" not in str(raised.value)


async def test_an_engine_whose_functions_were_flushed_gets_them_again(engine: Engine) -> None:
    async with node(cluster_config(engine, "a")) as a:
        alice, bob = await join(a, name="alice"), await join(a, name="bob")
        await alice.say("one")
        await engine.call("FUNCTION", "FLUSH")
        await say_until_accepted(alice, "two")
        assert await texts(bob, "two") == ["one", "two"]
