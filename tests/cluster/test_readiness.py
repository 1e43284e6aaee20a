"""Whether a node is ready: not while its engine cannot be reached, and what its metrics say."""

from pathlib import Path

import pytest
import trio

from tests.support.metrics import ask_metrics, metrics_port, scrape, scrape_until
from tests.support.processes import WAIT_SECONDS, serve
from tests.support.sockets import open_client

from .engine import Engine, EngineConfig, Engines

pytestmark = pytest.mark.process

AWAY = b"the engine of the cluster cannot be reached\n"


async def wait_status(port: int, status: int) -> bytes:
    """Wait until `/ready` has that *status*; return its body."""
    with trio.fail_after(WAIT_SECONDS):
        while (answer := await ask_metrics(port, "/ready")).status != status:
            await trio.sleep(0.05)
        return answer.body


async def test_a_node_is_not_ready_while_its_engine_hangs_and_disconnects_no_client(
    engine: Engine, tmp_path: Path
) -> None:
    async with serve(tmp_path, "--cluster", engine.url, "--metrics", "0", "--web", "0") as node:
        port, web = await metrics_port(node), await node.web_port()
        assert await wait_status(port, 200) == b"ok\n"
        client = await open_client(node.port)
        async with client.stream:
            await client.send("hello", "/ping")
            assert await client.line() == "[Server] pong"
            engine.freeze()
            try:
                assert await wait_status(port, 503) == await wait_status(web, 503) == AWAY
                assert (await ask_metrics(port, "/live")).status == 200
                metrics = await scrape(port)
                assert metrics["multichat_ready"] == 0
                assert metrics["multichat_clients"] == 1
                late = await open_client(node.port)
                async with late.stream:
                    assert "it cannot reach its storage" in (await late.rest())[-1]
                failures = (await scrape(port)).by("reason", "multichat_admission_failures_total")
                assert failures == {"unavailable": 1}
            finally:
                engine.thaw()
            await wait_status(port, 200)
            assert "cannot reach its storage" in await client.line()
            await client.send("/ping again")
            assert await client.line() == "[Server] pong again"
            metrics = await scrape_until(port, clients=1, ready=1)
            assert metrics.by("code", "multichat_disconnects_total") == {}
            trips = metrics.buckets("multichat_engine_round_trip_seconds")
            assert trips[-1][1] > 10
            slow = trips[-1][1] - dict(trips)[1.0]
            assert slow >= 1, "what waited for the engine took more than a second"


async def test_a_node_is_not_ready_while_its_engine_is_gone(
    engines: Engines, tmp_path: Path
) -> None:
    engine = await engines.start(EngineConfig(aof="always"))
    async with serve(tmp_path, "--cluster", engine.url, "--metrics", "0") as node:
        port = await metrics_port(node)
        await wait_status(port, 200)
        engine.kill()
        assert await wait_status(port, 503) == AWAY
        await engine.start()
        assert await wait_status(port, 200) == b"ok\n"
