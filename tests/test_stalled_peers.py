"""Over real sockets: one who stops reading and one who trickles, among those who read."""

import re
from pathlib import Path

import pytest
import trio

from multichat.framing import LineDecoder

from .support.processes import ServerCommand, serve, tcp

pytestmark = pytest.mark.stress

# More than a busy machine keeps this process from reading.
SLOW_TIMEOUT = 5.0
LINE = b"x" * 999 + b"\n"
TOTAL_BYTES = 100_000_000
SKIPPED = re.compile(r"\[Server\] (\d+) messages? skipped")


def peak_memory_bytes(server: ServerCommand) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize("policy", [("--slow-timeout", str(SLOW_TIMEOUT)), ("--slow", "drop")])
async def test_the_slow_cost_the_others_a_bounded_wait(
    policy: tuple[str, str], tmp_path: Path
) -> None:
    async with (
        serve(tmp_path, *policy) as server,
        tcp(server) as healthy,
        tcp(server) as stalled,
    ):
        await server.wait_for("Client 2 connected")
        async with tcp(server) as trickling:
            await server.wait_for("Client 3 connected")
            async with tcp(server) as sender:
                await server.wait_for("Client 4 connected")
                before = peak_memory_bytes(server)
                await _flood(healthy, trickling, sender)
                assert peak_memory_bytes(server) - before < 64 * 1024 * 1024
        await stalled.aclose()
        # Behind all that was logged before.
        await server.wait_for("Client 4 disconnected")
        assert "too slow" not in server.out  # they lag, or missed some


async def _flood(
    healthy: trio.SocketStream, trickling: trio.SocketStream, sender: trio.SocketStream
) -> None:
    """Send much while all of *healthy* is read, and little of *trickling*.

    Returns when *healthy* has accounted for every message, got or skipped; were the stalled ones
    waited for without a bound, that would be never.
    """
    lines = TOTAL_BYTES // len(LINE)

    async def listen() -> None:
        decoder = LineDecoder(10_000)
        accounted = 0
        while accounted < lines:
            data = await healthy.receive_some(1 << 20)
            assert data
            for run in decoder.feed(data):
                assert isinstance(run, str)
                for line in run.split("\n"):
                    skipped = SKIPPED.fullmatch(line)
                    assert skipped or line == f"[Client 4] {LINE.decode()}".rstrip("\n")
                    accounted += int(skipped[1]) if skipped else 1
        assert accounted == lines

    async def trickle() -> None:
        while await trickling.receive_some(6400):
            await trio.sleep(0.1)

    async with trio.open_nursery() as trickler:
        trickler.start_soon(trickle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for _ in range(lines // 100):
                await sender.send_all(LINE * 100)
        trickler.cancel_scope.cancel()
