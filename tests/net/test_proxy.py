"""Connections that are cut, stalled and reset at random: no message is lost.

MULTICHAT_PROXY_SECONDS says for how long, MULTICHAT_PROXY_SEED what happens; the seed is printed.
"""

import os
import sys
from functools import partial

import pytest
import trio

import multichat
from tests.support.crowd import LOOPBACK, Crowd
from tests.support.proxy import Proxy

pytestmark = pytest.mark.stress

SECONDS = float(os.environ.get("MULTICHAT_PROXY_SECONDS", "40"))

# Time for stalled data to arrive, and for the last client to reconnect.
SETTLE_SECONDS = 120

FAULTS = {"cut", "reset", "torn", "pause", "stall"}


async def test_every_message_arrives_once_whatever_happens_to_connections() -> None:
    seed = int(os.environ.get("MULTICHAT_PROXY_SEED", "1"))
    sys.stdout.write(f"seed {seed}\n")
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(multichat.serve, 0, host=LOOPBACK))
        proxy = Proxy(lambda: server.port, seed)
        await nursery.start(proxy.run)
        crowd = Crowd(proxy.port, seed, rooms=3, members=4, burst=10, pause_seconds=0.25)

        async def disturb() -> None:
            await trio.sleep(SECONDS)
            while not proxy.faults.keys() >= FAULTS:
                await trio.sleep(0.1)
            crowd.hush()
            proxy.calm.set()
            timeout.deadline = trio.current_time() + SETTLE_SECONDS

        with trio.CancelScope() as timeout:
            nursery.start_soon(disturb)
            await crowd.run()
        sys.stdout.write(f"{crowd.statistics()}; {dict(proxy.faults)}\n")
        if timeout.cancelled_caught:
            pytest.fail(f"seed {seed}: {crowd.waiting()}")
        crowd.check()
        nursery.cancel_scope.cancel(reason="all was received")
