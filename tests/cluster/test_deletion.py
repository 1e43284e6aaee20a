"""Deleting from the engine: which messages, and what the log says."""

import logging

import pytest
import trio

from multichat.cluster.deletion import Deletion, DeletionConfig
from multichat.journal.retention import Retention
from multichat.log import Log
from tests.support.processes import WAIT_SECONDS

from .engine import Engine
from .nodes import running_node, said

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
