"""The soak's people and a server in one process: what is left behind is counted."""

import random
from functools import partial

import pytest
import trio
import trio.testing
from trio.lowlevel import current_statistics

import multichat
from multichat.mailbox import Mailbox
from multichat.session import Session

from .soak.people import Circle, Visitor
from .support.collector import collector_off, in_cycles
from .support.processes import WAIT_SECONDS

pytestmark = pytest.mark.stress

VISITORS = 60
STAYING = 5
SECONDS = 5.0


async def test_who_came_and_went_left_no_task_and_no_garbage_behind() -> None:
    with collector_off():
        await _come_and_go()
        # The server's collector looks seldom: in cycles, those who left would be its memory.
        assert in_cycles(Session, Mailbox) == []


async def _come_and_go() -> None:
    chance = random.Random(3)
    async with trio.open_nursery() as nursery:
        serve = partial(multichat.serve, 0, host="127.0.0.1")
        server: multichat.Server = await nursery.start(serve)
        await trio.testing.wait_all_tasks_blocked()
        before = current_statistics().tasks_living
        circle = Circle(server.port, STAYING)
        visitors = [Visitor(server.port, i, chance.randrange(2**32)) for i in range(VISITORS)]
        async with trio.open_nursery() as people:
            await people.start(circle.run)
            async with trio.open_nursery() as guests:
                for visitor in visitors:
                    guests.start_soon(visitor.run, chance.random())
                await trio.sleep(SECONDS)
                guests.cancel_scope.cancel()
            with trio.fail_after(WAIT_SECONDS):
                await circle.finish()
            assert circle.troubles() == []
            people.cancel_scope.cancel()
        with trio.fail_after(WAIT_SECONDS):
            while current_statistics().tasks_living > before:
                await trio.sleep(0.05)
        statistics = server.statistics()
        assert (statistics.clients, statistics.waiting_bytes) == (0, 0)
        assert statistics.clients_ever >= VISITORS + STAYING
        server.shutdown()
