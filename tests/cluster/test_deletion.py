"""Deleting from the engine: which messages, and what the log says."""

import logging

import pytest
import trio

from multichat import ServerConfig
from multichat.backend.base import Skipped
from multichat.cluster.backend import ValkeyBackend
from multichat.cluster.calls import trim
from multichat.cluster.deletion import Deletion, DeletionConfig
from multichat.journal.retention import Retention
from multichat.log import Log
from multichat.testing import memory_server
from tests.support.processes import WAIT_SECONDS
from tests.support.programs import join

from .engine import Engine
from .nodes import relayed_node, running_node, said, say
from .running_backend import cluster_config

pytestmark = pytest.mark.process

QUICK = DeletionConfig(step_seconds=0.05, step_blocks=5, steady_seconds=0.2, tell_seconds=0)


async def test_two_nodes_delete_above_the_number_and_say_so(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here, there = await a.open(), await b.open("ops")
        for number in range(30):
            await said(here, f"{number}")
            await said(there, f"{number}")
        retention = Retention(max_messages=10)
        async with trio.open_nursery() as nursery:
            for node in (a, b):
                nursery.start_soon(Deletion(node.logs, retention, Log("server"), QUICK).run)
            with trio.fail_after(WAIT_SECONDS):
                while (here.log.first, there.log.first) != (20, 20):
                    await trio.sleep(0.01)
                while "10 messages" not in caplog.text and "Deleted" not in caplog.text:
                    await trio.sleep(0.01)
            await trio.sleep(0.2)
            nursery.cancel_scope.cancel(reason="the test has ended")
        assert (here.log.first, there.log.first) == (20, 20)
    lines = [one.getMessage() for one in caplog.records if "Deleted" in one.getMessage()]
    counts = [int(line.split("engine: ")[1].split(" ")[0]) for line in lines]
    assert sum(counts) == 40
    assert all("(above 10 a room)" in line for line in lines)


async def test_old_messages_are_deleted_once_the_engines_clock_is_steady(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_node(engine, "a") as a:
        room = await a.open()
        for number in range(12):
            await said(room, f"{number}")
        deletion = Deletion(a.logs, Retention(max_age_seconds=0.5), Log("server"), QUICK)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deletion.run)
            with trio.fail_after(WAIT_SECONDS):
                while room.log.first != 12:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel(reason="the test has ended")
        assert await room.log.read(0, 12, max_bytes=1000) == []
        await said(room, "new")
        assert room.said[-1][0] == room.log.id_of(12)
    assert "if the engine's clock is not set meanwhile" in caplog.text


async def test_without_limits_nothing_is_deleted(engine: Engine) -> None:
    async with running_node(engine, "a") as a:
        with trio.fail_after(WAIT_SECONDS):
            await Deletion(a.logs, Retention(), Log("server"), QUICK).run()


async def test_a_client_enters_an_open_room_of_which_its_node_missed_only_deleted_messages(
    engine: Engine,
) -> None:
    log, config = Log("server"), ServerConfig()
    backends = [ValkeyBackend(cluster_config(engine, name), log) for name in "ab"]
    async with (
        memory_server(config, backend=backends[0]) as a,
        memory_server(config, backend=backends[1]) as b,
    ):
        alice, bob = await join(a, name="alice"), await join(b, name="bob")
        await bob.say("0")
        assert (await alice.said())[1] == "0"
        link = backends[0]._link
        assert link is not None
        await link.unsubscribe("multichat:room:lobby").reply()
        await bob.say("1", "2", "3")
        await trio.sleep(0.01)
        await engine.call(*trim("0", max_age_seconds=0.001).words)
        with trio.fail_after(WAIT_SECONDS):
            carol = await join(a, name="carol", rooms={"lobby": {"since": bob.ids["3"]}})
            assert carol.welcome["rooms"]["lobby"]["last"] == bob.ids["3"]
            missed = await alice.hear("missed", "said")
            assert (missed["type"], missed["count"]) == ("missed", 3)
            # Nothing else is delivered twice or missed, on either node.
            await carol.say("4")
            assert [(await each.said())[1] for each in (alice, bob)] == ["4", "4"]
            assert carol.ids["4"].endswith("4")


async def test_a_message_that_is_deleted_before_its_node_has_it_back_is_accepted(
    engine: Engine,
) -> None:
    async with relayed_node(engine) as (a, relay), running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        await said(here, "0")
        relay.hold_replies()
        mine = say(here, "mine", "n")
        await there.until(2)
        await said(there, "2")
        await engine.call(*trim("0", max_messages=1).words)
        relay.cut()
        assert mine.pending is not None
        with trio.fail_after(WAIT_SECONDS):
            await mine.pending.wait()
            while here.log.next < 3:
                await trio.sleep(0.01)
        skipped = [each for fed in here.fed if isinstance(fed, Skipped) for each in fed.entries]
        assert [(each.said.first, each.proposal) for each in skipped] == [(1, mine)]
