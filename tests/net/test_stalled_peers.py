"""Over real sockets: members that stop reading or read slowly, among fast ones."""

import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

import pytest
import trio

from multichat.protocol.framing import LineDecoder
from tests.support.processes import ServerCommand, serve, tcp

pytestmark = pytest.mark.stress

# More than a busy machine keeps this process from reading.
SLOW_TIMEOUT = 5.0
LINE = b"x" * 999 + b"\n"
TOTAL_BYTES = 100_000_000
# A fifth of the members.
READERS, STALLED = 80, 20
TURNS, MOST_TURNS = 3, 15
TURN_SECONDS = 1.0

SKIPPED = re.compile(r"\[Server\] (\d+) messages? skipped")


def peak_memory_bytes(server: ServerCommand) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize("policy", [("--slow-timeout", str(SLOW_TIMEOUT)), ("--slow", "drop")])
async def test_slow_clients_cost_the_others_a_bounded_wait(
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


class _Crowd:
    """A room of readers, some members that never read, and one that floods it in turns."""

    def __init__(self, streams: list[trio.SocketStream]) -> None:
        self._sender, *self._readers = streams
        self._bytes = 0

    async def read(self) -> None:
        async def count(stream: trio.SocketStream) -> None:
            while data := await stream.receive_some(1 << 20):
                self._bytes += len(data)

        async with trio.open_nursery() as nursery:
            for each in self._readers:
                nursery.start_soon(count, each)

    async def rate(self, seconds: float) -> float:
        """Flood for so long; return how many bytes the readers got in each second of it."""
        started, before = trio.current_time(), self._bytes
        while trio.current_time() < started + seconds:
            await self._sender.send_all(LINE * 10)
        rate = (self._bytes - before) / (trio.current_time() - started)
        before = -1
        while before != self._bytes:  # what is on its way takes no time of the other's turn
            before = self._bytes
            await trio.sleep(0.2)
        return rate


@asynccontextmanager
async def _crowd(folder: Path, *, stalled: int) -> AsyncIterator[_Crowd]:
    folder.mkdir()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(folder))
        streams = [
            await stack.enter_async_context(tcp(server)) for _ in range(1 + READERS + stalled)
        ]
        await server.wait_for(f"Client {len(streams)} connected")
        crowd = _Crowd(streams[: 1 + READERS])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.read)
            yield crowd
            nursery.cancel_scope.cancel(reason="the test is over")


async def test_members_that_stall_take_a_tenth_of_the_others_throughput_at_most(
    tmp_path: Path,
) -> None:
    """Once the wait budget is spent, which is full when they stall."""
    async with (
        _crowd(tmp_path / "calm", stalled=0) as calm,
        _crowd(tmp_path / "burdened", stalled=STALLED) as burdened,
    ):
        for each in calm, burdened:
            await each.rate(3.0)
        kept: list[float] = []
        while len(kept) < TURNS or (median(kept) < 0.9 and len(kept) < MOST_TURNS):
            kept.append(await burdened.rate(TURN_SECONDS) / await calm.rate(TURN_SECONDS))
        assert median(kept) >= 0.9, kept
        sys.stdout.write(f"kept: {kept}\n")
