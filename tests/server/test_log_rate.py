"""The limit on logged messages of each client, and the count of the rest."""

import logging
import re
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from multichat import ServerConfig
from multichat.log import Log
from multichat.log_format import NO_FIELDS, Fields
from multichat.protocol.messages import SaidBlock
from multichat.server.log_rate import BURST_SECONDS, ClientLog, LogRates
from multichat.testing import memory_server, run_on_mock_clock
from tests.support.log import LogRecorder
from tests.support.processes import serve, tcp

pytestmark = pytest.mark.unit

RATE = 100
BURST = int(RATE * BURST_SECONDS)

LEFT_OUT = re.compile(
    r"\[INFO\] \[server\] \[LOG\] \.\.\. ([\d,]+) more messages? of Client 1 not logged"
)


def said(log: LogRecorder, text: str = "") -> int:
    """Return how many lines of Client 1 with *text* are logged."""
    return sum(line.startswith(f"[INFO] [server] [RX] [Client 1] {text}") for line in log.lines)


def left_out(log: LogRecorder) -> list[int]:
    """Return the logged counts of omitted lines."""
    found = map(LEFT_OUT.fullmatch, log.lines)
    return [int(match[1].replace(",", "")) for match in found if match]


async def test_a_paste_of_500_lines_is_logged_whole(log: LogRecorder) -> None:
    async with memory_server() as network:
        client = await network.join()
        await client.send(*(f"line {number}" for number in range(500)))
        await client.finish()
        await client.rest()
    assert said(log, "line ") == 500
    assert log.lines.count("[INFO] [server] [BROADCAST] Broadcasting to 1 clients") == 500
    assert left_out(log) == []


async def test_a_flood_is_logged_up_to_the_rate_and_the_rest_counted_once_a_second(
    log: LogRecorder, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server() as network:
        client = await network.join()
        await client.send(*["a"] * 20_000)
        await trio.testing.wait_all_tasks_blocked()
        assert said(log) == BURST
        assert left_out(log) == []
        await trio.sleep(2)
        assert left_out(log) == [20_000 - BURST]
        await client.send("b")
        await trio.sleep(2)
        assert log.lines[-2:] == [
            "[INFO] [server] [RX] [Client 1] b",
            "[INFO] [server] [BROADCAST] Broadcasting to 1 clients",
        ]


async def test_a_lasting_flood_is_logged_at_the_rate_and_other_clients_completely(
    log: LogRecorder, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server() as network:
        client, other = await network.join(), await network.join()
        for _ in range(600):  # a minute
            await client.send(*["a"] * 1000)
            await other.send("a word")
            await trio.sleep(0.1)
        await trio.sleep(2)
    words = [line for line in log.lines if line.endswith("[RX] [Client 2] a word")]
    assert len(words) == 600
    assert said(log) + sum(left_out(log)) == 600_000
    assert BURST + 50 * RATE <= said(log) <= BURST + 62 * RATE
    assert 50 <= len(left_out(log)) <= 62  # not one for each logged line
    # Everything that the flood adds to the log.
    assert len(log.lines) < 2 * (BURST + 62 * RATE) + 62 + 2 * 600 + 10


async def test_skipped_lines_are_counted_before_the_disconnect_line(
    log: LogRecorder,
) -> None:
    async with memory_server() as network:
        client = await network.join()
        await client.send(*["a"] * 5000)
        await client.finish()
        await client.rest()
    assert log.lines[-2:] == [
        f"[INFO] [server] [LOG] ... {5000 - BURST:,} more messages of Client 1 not logged",
        "[INFO] [server] [STATE] Client 1 disconnected",
    ]


async def test_a_reconnect_brings_no_new_burst_of_log_lines(
    log: LogRecorder, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server() as network:
        for _ in range(20):
            client = await network.join()
            await client.send(*["a"] * BURST)
            await client.finish()
            await client.rest()
        logged = sum("[RX]" in line for line in log.lines)
        assert BURST <= logged < BURST + 20
        await trio.sleep(BURST_SECONDS)
        client = await network.join()
        await client.send(*["b"] * BURST)
        await client.finish()
        await client.rest()
    assert sum(line.endswith("] b") for line in log.lines) == BURST


@pytest.mark.parametrize("commands", [["/join a", "/join b"], ["/name ab", "/name cd"]])
async def test_new_names_and_rooms_without_end_are_counted_too(
    commands: list[str], log: LogRecorder, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server(ServerConfig(max_new_rooms=10_000)) as network:
        client = await network.join()
        for _ in range(2 * BURST // 100):
            await client.send(*commands * 50)
            await client.lines(100)
        await trio.sleep(2)
        assert len(log.lines) == 1 + BURST + 1  # the connect, the burst, and the count
        assert left_out(log) == [BURST]


async def test_a_long_line_counts_as_several(
    log: LogRecorder, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server() as network:
        client = await network.join()
        for _ in range(100):
            await client.send("x" * 60_000)
        await trio.sleep(2)
    assert said(log) == BURST * 1024 // 60_000
    assert left_out(log) == [100 - said(log)]


async def test_without_a_limit_every_line_is_logged(log: LogRecorder) -> None:
    async with memory_server(ServerConfig(log_rate=None)) as network:
        client = await network.join()
        await client.send(*["a"] * 20_000)
        await client.finish()
        await client.rest()
    assert said(log) == 20_000


async def test_a_low_rate_logs_a_line_of_any_length(
    log: LogRecorder, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server(ServerConfig(log_rate=0.5)) as network:
        client = await network.join()
        for _ in range(5):
            await client.send("x" * 60_000)
            await trio.sleep(60)
    assert said(log) == 5
    assert left_out(log) == []


@pytest.mark.process
async def test_the_log_of_a_real_server_stays_readable_while_a_client_floods(
    tmp_path: Path,
) -> None:
    async with serve(tmp_path, "--log-file", str(tmp_path / "log")) as server:
        async with tcp(server) as flooding, tcp(server) as other:
            await server.wait_for("Client 2 connected")
            await flooding.send_all(b"/join den\n")  # because the other client does not read
            for number in range(10):
                await flooding.send_all(b"a\n" * 50_000)  # 1 MB in all
                await other.send_all(b"word %d\n" % number)
                await server.wait_for(f"[Client 2] word {number}\n")
            await flooding.send_all(b"/ping\n")
            while b"pong" not in await flooding.receive_some():
                pass
        await server.wait_for("disconnected", 2)
        log = (tmp_path / "log").read_text("utf-8")
        counts = [int(count.replace(",", "")) for count in re.findall(r"\.\.\. ([\d,]+) more", log)]
        assert log.count("[Client 1] a\n") + sum(counts) == 500_000
        assert len(log) < 1_000_000  # a hundred seconds' worth; without the limit it was 68 MB


def block_of(texts: list[str]) -> SaidBlock:
    return SaidBlock("", 0, "", "lobby", 1, "Client 1", "\n".join(texts))


class Counter(Log):
    """Counts lines and characters of messages."""

    def __init__(self) -> None:
        super().__init__("server")
        self.runs: list[str] = []
        self.left_out = 0

    def said(
        self,
        speaker: str,
        block: str,
        clients: int,
        tag: str = "RX",
        *,
        fields: Fields = NO_FIELDS,
    ) -> None:
        self.runs.append(block)

    def line(
        self, tag: str, text: str, level: int = logging.INFO, *, fields: Fields = NO_FIELDS
    ) -> None:
        self.left_out += int(text.split()[1].replace(",", ""))


def test_a_flood_is_cut_once_for_each_batch() -> None:
    async def main() -> None:
        log = Counter()
        async with trio.open_nursery() as nursery:
            client = LogRates(log, RATE, nursery.start_soon).open(1, None)
            for _ in range(100):
                client.said("[Client 1]", block_of(["a"] * 20_000), 20_000, 1)
            nursery.cancel_scope.cancel()
        assert [block.count("a") for block in log.runs] == [BURST]

    run_on_mock_clock(main)


blocks = st.lists(st.sampled_from(["a", "bc" * 1000, "d" * 5000]), min_size=1, max_size=300)
steps = st.lists(st.tuples(blocks, st.sampled_from([0.0, 0.01, 0.3, 1.5])), max_size=15)


@given(steps, st.sampled_from([1.0, 7.5, 100.0]))
def test_each_line_is_logged_or_counted_and_the_log_stays_within_its_rate(
    told: list[tuple[list[str], float]], rate: float
) -> None:
    async def main() -> None:
        log, seconds, messages = Counter(), 0.0, 0
        async with trio.open_nursery() as nursery:
            rates = LogRates(log, rate, nursery.start_soon)
            client: ClientLog = rates.open(1, None)
            for texts, pause in told:
                before = len(log.runs)
                client.said("[Client 1]", block_of(texts), len(texts), 1)
                assert "\n".join(texts).startswith("".join(log.runs[before:]))
                messages += len(texts)
                logged = sum(block.count("\n") + 1 for block in log.runs)
                most = rate * (seconds + BURST_SECONDS) + 1e-6
                assert logged <= most
                long = max(0.0, 5 - rate * BURST_SECONDS)  # a single line is always logged
                assert sum(map(len, log.runs)) <= (most + len(log.runs) * (1 + long)) * 1024
                await trio.sleep(pause)
                seconds += pause
            rates.close(client)
            assert log.left_out == messages - sum(block.count("\n") + 1 for block in log.runs)
            nursery.cancel_scope.cancel()

    run_on_mock_clock(main)
