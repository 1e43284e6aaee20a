"""The metrics equal the counts of a checker outside of the server."""

import json
import os
import signal
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.registry import DuplicateTimeseries
from trio.testing import MockClock, wait_all_tasks_blocked

import multichat
from multichat import AdmissionRequest, Server, ServerConfig, WebConfig
from multichat.log import Log
from multichat.net.durations import BOUNDS
from multichat.net.turns import Turns
from multichat.server import metrics_port as ports
from multichat.server.admission import MAX_PENDING
from multichat.server.metrics import make_registry, render
from multichat.server.refusals import DISCONNECT_CODES, RefusedFor
from multichat.testing import memory_server
from multichat.web.http import HttpError, Request, Response
from tests.support.metrics import (
    Metrics,
    ask_metrics,
    metrics_of,
    metrics_port,
    scrape,
    scrape_until,
)
from tests.support.processes import (
    BIN,
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    serve,
)
from tests.support.sockets import open_client
from tests.support.web import http, read_all

FAILURES = "multichat_admission_failures_total"
DISCONNECTS = "multichat_disconnects_total"


# --- What there is --------------------------------------------------------------------------------


@pytest.mark.unit
async def test_there_is_every_metric_with_its_kind_and_bounded_labels() -> None:
    async with memory_server() as network:
        metrics = metrics_of(network.server)
    assert (
        metrics.kinds.items()
        >= {
            "multichat_info": "gauge",
            "multichat_ready": "gauge",
            "multichat_clients": "gauge",
            "multichat_rooms": "gauge",
            "multichat_send_queue_bytes": "gauge",
            "multichat_lagging_clients": "gauge",
            "multichat_admitted_clients": "counter",
            "multichat_messages": "counter",
            "multichat_deliveries": "counter",
            "multichat_missed_messages": "counter",
            "multichat_disconnects": "counter",
            "multichat_admission_failures": "counter",
            "multichat_loop_lag_seconds": "histogram",
            "multichat_turn_wait_seconds": "histogram",
            "multichat_journal_write_seconds": "histogram",
            "multichat_engine_round_trip_seconds": "histogram",
        }.items()
    )
    assert metrics.labels("multichat_clients") == [{}]
    assert metrics.labels("multichat_info") == [{"version": multichat.__version__}]
    assert [each["code"] for each in metrics.labels(DISCONNECTS)] == [*DISCONNECT_CODES]
    assert [each["reason"] for each in metrics.labels(FAILURES)] == [it.value for it in RefusedFor]


@pytest.mark.unit
async def test_a_histogram_has_cumulative_buckets(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        await trio.sleep(5)
        metrics = metrics_of(network.server)
        lag = network.server.statistics().loop_lag
        count = lag.count
        assert count >= 19
        assert metrics.buckets("multichat_loop_lag_seconds")[:-1] == [(it, count) for it in BOUNDS]
        assert metrics["multichat_loop_lag_seconds_count"] == count
        assert metrics["multichat_loop_lag_seconds_sum"] == lag.total_seconds == 0


@pytest.mark.unit
async def test_the_openmetrics_format_is_sent_on_request() -> None:
    from prometheus_client.openmetrics import parser

    parse: Callable[[str], Iterable[Any]] = parser.text_string_to_metric_families
    async with memory_server() as network:
        registry = make_registry(network.server)
        data, content_type = render(registry, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert "multichat_clients" in [family.name for family in parse(data.decode())]


@pytest.mark.unit
async def test_a_registry_of_an_embedding_program_has_the_metrics_of_one_server() -> None:
    registry = CollectorRegistry()
    server = Server()
    registry.register(multichat.ServerCollector(server))
    assert registry.get_sample_value("multichat_ready") == 0
    async with server.open():
        assert registry.get_sample_value("multichat_ready") == 1
    assert registry.get_sample_value("multichat_clients") == 0
    with pytest.raises(DuplicateTimeseries):
        registry.register(multichat.ServerCollector(Server()))


# --- Counts of a checker -------------------------------------------------------------------------


class Person:
    """A client over a real connection that counts what it sends, receives and misses."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.said = self.heard = self.missed = self.accepted = 0
        self.goodbyes: list[str] = []
        self._nonce = 0

    async def ask(self, *requests: dict[str, Any]) -> None:
        await self.stream.send_all("".join(json.dumps(it) + "\n" for it in requests).encode())

    async def say(self, *texts: str) -> None:
        self.said += len(texts)
        for text in texts:
            self._nonce += 1
            await self.ask({"type": "say", "text": text, "nonce": self._nonce})

    async def listen(self) -> None:
        """Count events until the connection ends."""
        data = b""
        while True:
            try:
                piece = await self.stream.receive_some(1 << 16)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not piece:
                return
            *lines, data = (data + piece).split(b"\n")
            for line in lines:
                event = json.loads(line) if line.startswith(b"{") else {}
                match event.get("type"):
                    case "said":
                        self.heard += 1
                    case "accepted":
                        self.accepted += 1
                    case "missed":
                        self.missed += event["count"]
                    case "goodbye":
                        self.goodbyes.append(event["code"])


@asynccontextmanager
async def people(
    port: int, count: int, room: str = "lobby", *, listening: bool = True
) -> AsyncIterator[list[Person]]:
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        made = []
        for _ in range(count):
            stream = await stack.enter_async_context(await trio.open_tcp_stream(LOOPBACK, port))
            person = Person(stream)
            await stream.send_all(f'/json {{"protocol":1,"room":"{room}"}}\n'.encode())
            if listening:
                nursery.start_soon(person.listen)
            made.append(person)
        yield made
        nursery.cancel_scope.cancel(reason="the block is over")


async def reset(person: Person) -> None:
    """Close the connection with a reset, as a client that crashes."""
    linger = struct.pack("ii", 1, 0)
    person.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    person.stream.socket.close()


@pytest.mark.process
async def test_the_metrics_equal_the_counts_of_the_clients(tmp_path: Path) -> None:
    journal = ("--journal", str(tmp_path / "chat.db"))
    async with (
        serve(tmp_path, "--metrics", "0", *journal) as server,
        people(server.port, 5) as lobby,
        people(server.port, 3, "kitchen") as kitchen,
    ):
        port = await metrics_port(server)
        await scrape_until(port, clients=8, rooms=2)
        for number, person in enumerate((*lobby, *kitchen)):
            await person.say(*(f"message {number}.{i}" for i in range(10 + number)))
        everybody = (*lobby, *kitchen)
        said = sum(person.said for person in everybody)
        with trio.fail_after(WAIT_SECONDS):
            for room in lobby, kitchen:
                in_room = sum(person.said for person in room)
                for person in room:
                    while person.heard < in_room - person.said or person.accepted < person.said:
                        await trio.sleep(0.01)
        metrics = await scrape(port)
        assert metrics["multichat_clients"] == metrics["multichat_admitted_clients_total"] == 8
        assert metrics["multichat_messages_total"] == said
        assert metrics["multichat_deliveries_total"] == sum(it.heard for it in everybody)
        assert metrics["multichat_missed_messages_total"] == 0
        assert metrics["multichat_lagging_clients"] == metrics["multichat_send_queue_bytes"] == 0
        assert metrics["multichat_ready"] == 1
        writes = metrics.buckets("multichat_journal_write_seconds")[-1][1]
        assert 1 <= writes <= said + 4 * 8  # messages; numbers and sessions of clients
        assert metrics.buckets("multichat_loop_lag_seconds")
        assert metrics.by("code", DISCONNECTS) == metrics.by("reason", FAILURES) == {}

        # They leave, each in its own way, and a client that uses HTTP connects.
        await lobby[0].ask({"type": "quit"})
        await lobby[1].stream.send_eof()
        await lobby[3].stream.send_eof()
        # A server that writes to a connection that was reset reads an end of input after it.
        await scrape_until(port, clients=5)
        await reset(lobby[2])
        stranger = await open_client(server.port)
        async with stranger.stream:
            await stranger.stream.send_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            await read_all(stranger.stream)
        metrics = await scrape_until(port, clients=4)
        left = {"quit": 1, "closed": 2, "lost": 1, "protocol-error": 1}
        assert metrics.by("code", DISCONNECTS) == left
        with trio.fail_after(WAIT_SECONDS):
            while not lobby[0].goodbyes:
                await trio.sleep(0.01)
        assert lobby[0].goodbyes == ["quit"]
        server.signal(signal.SIGTERM)
        with trio.fail_after(WAIT_SECONDS):
            while not all(person.goodbyes for person in (lobby[4], *kitchen)):
                await trio.sleep(0.01)
        assert Counter(kitchen[0].goodbyes) == {"shutdown": 1}
        assert await server.wait() == 0


@pytest.mark.process
async def test_missed_messages_are_those_that_were_reported_to_clients(tmp_path: Path) -> None:
    options = ("--metrics", "0", "--slow", "drop", "--log-rate", "1", "--send-queue", "2")
    async with (
        serve(tmp_path, *options) as server,
        people(server.port, 1) as [speaker],
        people(server.port, 1, listening=False) as [slow],
    ):
        port = await metrics_port(server)
        await scrape_until(port, clients=2)
        await fill(speaker, port, until="multichat_missed_messages_total")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.listen)
            with trio.fail_after(WAIT_SECONDS):
                while slow.heard + slow.missed < speaker.said:
                    await trio.sleep(0.05)
            metrics = await scrape(port)
            assert metrics["multichat_missed_messages_total"] == slow.missed > 0
            assert metrics["multichat_deliveries_total"] == slow.heard
            assert metrics["multichat_messages_total"] == speaker.said
            nursery.cancel_scope.cancel(reason="all was seen")


@pytest.mark.process
async def test_a_client_that_does_not_read_lags_until_it_has_read(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, "--metrics", "0", "--slow-timeout", "0.2", "--log-rate", "1") as server,
        people(server.port, 2) as [speaker, _],
        people(server.port, 1, listening=False) as [slow],
    ):
        port = await metrics_port(server)
        await scrape_until(port, clients=3)
        await fill(speaker, port, until="multichat_lagging_clients")
        assert (await scrape(port))["multichat_send_queue_bytes"] > 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.listen)
            metrics = await scrape_until(port, lagging_clients=0, send_queue_bytes=0)
            with trio.fail_after(WAIT_SECONDS):
                while slow.heard + slow.missed < speaker.said:
                    await trio.sleep(0.05)
            metrics = await scrape(port)
            assert metrics["multichat_missed_messages_total"] == slow.missed
            nursery.cancel_scope.cancel(reason="all was seen")


async def fill(speaker: Person, port: int, *, until: str) -> None:
    """Say long messages until the metric *until* is not 0."""
    with trio.fail_after(WAIT_SECONDS):
        while not (await scrape(port))[until]:
            await speaker.say(*["x" * 10_000] * 100)
            while speaker.accepted < speaker.said:
                await trio.sleep(0.01)


# --- Why connections are rejected -----------------------------------------------------------------


class Entrance:
    """A server with real listeners, and ways to be rejected by it."""

    def __init__(self, server: Server, stack: AsyncExitStack) -> None:
        self.server, self._stack = server, stack

    async def knock(self, *pieces: bytes, port: int = 0) -> trio.SocketStream:
        """Connect, and send *pieces*."""
        stream = await trio.open_tcp_stream(LOOPBACK, port or self.server.port)
        self._stack.push_async_callback(trio.aclose_forcefully, stream)
        for piece in pieces:
            await stream.send_all(piece)
        return stream

    async def be_rejected(self, *pieces: bytes, port: int = 0) -> None:
        """Connect, send *pieces*, and wait until the server closes."""
        stream = await self.knock(*pieces, port=port)
        with trio.fail_after(WAIT_SECONDS):
            with suppress(trio.BrokenResourceError):
                await read_all(stream)

    @property
    def web(self) -> int:
        return int(self.server.web_url.rpartition(":")[2].strip("/"))


async def ask_the_banned(entrance: Entrance) -> None:
    entrance.server.ban(multichat.Ban(target=multichat.parse_target(LOOPBACK)))
    await entrance.be_rejected()
    await entrance.be_rejected(http(), port=entrance.web)


async def be_one_too_many(entrance: Entrance) -> None:
    await entrance.knock(b"hello\n")
    with trio.fail_after(WAIT_SECONDS):
        while not entrance.server.members:
            await trio.sleep(0.01)
    await entrance.be_rejected()


async def speak_no_tls(entrance: Entrance) -> None:
    await entrance.be_rejected(b"hello\n")


async def send_no_header(entrance: Entrance) -> None:
    await entrance.be_rejected(b"hello, hello, hello\r\n")


async def try_passwords(entrance: Entrance) -> None:
    await entrance.be_rejected(b"/auth one\n/auth two\n/auth three\n")


async def leave_without_a_password(entrance: Entrance) -> None:
    stream = await entrance.knock()
    await stream.send_eof()
    await read_all(stream)


async def ask_for_a_page(entrance: Entrance) -> None:
    await entrance.be_rejected(b"GET / HTTP/1.1\r\n\r\n")


async def ask_the_wrong_host(entrance: Entrance) -> None:
    await entrance.be_rejected(http(host="evil.example"), port=entrance.web)


async def just_come(entrance: Entrance) -> None:
    await entrance.be_rejected()


async def wait_until_it_shuts_down(entrance: Entrance) -> None:
    stream = await entrance.knock()
    await stream.receive_some(100)  # the question for the password
    await entrance.server.close()
    await read_all(stream)


async def refuse(request: AdmissionRequest) -> bool:
    return False


CAUSES: dict[str, tuple[Callable[[Entrance], Awaitable[None]], dict[str, Any], dict[str, int]]] = {
    "banned": (ask_the_banned, {}, {"banned": 2}),
    "full": (be_one_too_many, {"max_clients": 1}, {"full": 1}),
    "address": (
        be_one_too_many,
        {"max_clients_per_address": 1},
        {"too-many-from-address": 1},
    ),
    "wrong password": (try_passwords, {"password": "right"}, {"wrong-password": 1}),
    "no password": (leave_without_a_password, {"password": "right"}, {"no-password": 1}),
    "HTTP": (ask_for_a_page, {"password": "right"}, {"other-protocol": 1}),
    "no header": (send_no_header, {"proxies": (LOOPBACK,)}, {"proxy-header": 1}),
    "host": (ask_the_wrong_host, {}, {"web-request": 1}),
    "shutdown": (wait_until_it_shuts_down, {"password": "right"}, {"shutdown": 1}),
    "not authenticated": (just_come, {"authenticate": refuse}, {"not-authenticated": 1}),
    "no TLS": (speak_no_tls, {"tls": True}, {"tls": 1}),
}


@pytest.mark.process
@pytest.mark.parametrize("cause", CAUSES)
async def test_rejected_connections_are_counted_by_their_real_cause(cause: str) -> None:
    reject, settings, expected = CAUSES[cause]
    authenticate = settings.get("authenticate")
    context = None
    if settings.get("tls"):
        import ssl

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert("chat.example").configure_cert(context)
    config = {key: settings[key] for key in settings if key not in ("authenticate", "tls")}
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        run = partial(
            multichat.serve,
            0,
            host=LOOPBACK,
            web=0,
            tls=context,
            config=ServerConfig(web=WebConfig(), **config),
            authenticate=authenticate,
        )
        server = await nursery.start(run)
        await reject(Entrance(server, stack))
        statistics = server.statistics()
        assert metrics_of(server).by("reason", FAILURES) == expected
        assert statistics.refused == sum(expected.values())
        nursery.cancel_scope.cancel(reason="all was seen")


@pytest.mark.unit
async def test_slots_that_were_needed_and_attempts_that_wait_too_long_are_counted(
    autojump_clock: MockClock,
) -> None:
    async with memory_server(ServerConfig(password="right")) as network:
        streams = [network.connect() for _ in range(MAX_PENDING + 3)]
        await wait_all_tasks_blocked()
        assert metrics_of(network.server).by("reason", FAILURES) == {"too-many-pending": 3}
        for stream in streams:
            await trio.aclose_forcefully(stream)


# --- The port -------------------------------------------------------------------------------------


@asynccontextmanager
async def port_of_metrics(config: ServerConfig | None = None) -> AsyncIterator[tuple[Server, int]]:
    """Run a server with metrics; yields it and the port."""
    server = Server(config)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.run, 0, host=LOOPBACK, metrics=0))
        yield server, int(server.metrics_url.partition("/metrics")[0].rpartition(":")[2])
        nursery.cancel_scope.cancel(reason="the block is over")


@pytest.mark.process
async def test_the_port_has_metrics_and_health_and_nothing_else() -> None:
    async with port_of_metrics() as (_, port):
        answer = await ask_metrics(port)
        assert answer.status == 200
        assert answer.fields["Content-Type"].startswith("text/plain; version=0.0.4")
        assert Metrics(answer.body.decode())["process_open_fds"] > 3
        head = await ask_metrics(port, method="HEAD")
        assert (head.status, head.body) == (200, b"")
        for path in "/live", "/ready", "/healthz":
            assert (await ask_metrics(port, path)).body == b"ok\n"
        assert (await ask_metrics(port, "/")).status == 404
        assert (await ask_metrics(port, "/metrics", method="POST")).status == 405
        assert (await ask_metrics(port, "/ready", method="DELETE")).status == 405
        assert (await ask_metrics(port, "/metrics", "X: " + "x" * 100_000)).status == 431


@pytest.mark.process
async def test_a_page_that_makes_its_name_resolve_to_this_machine_gets_no_metrics() -> None:
    async with port_of_metrics() as (_, port):
        for host in "127.0.0.1", f"127.0.0.1:{port}", "localhost:1", "[::1]", socket.gethostname():
            assert (await ask_metrics(port, host=host)).status == 200
        for host in "evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhostx":
            answer = await ask_metrics(port, host=host)
            assert (answer.status, b"multichat_" in answer.body) == (421, False)
            assert (await ask_metrics(port, "/ready", host=host)).status == 200
        assert (await ask_metrics(port, host="a b")).status == 400


@pytest.mark.process
async def test_to_other_machines_the_metrics_have_any_name() -> None:
    fields = (("host", "prometheus.example"),)
    request = Request(method="GET", path="/metrics", fields=fields)
    async with memory_server() as network:
        port = ports.MetricsPort(network.server, Turns(), Log("server"))
        assert (await port.answer(request, is_local=False)).status == 200
        with pytest.raises(HttpError, match=r"not for prometheus\.example"):
            await port.answer(request, is_local=True)


@pytest.mark.unit
@given(
    st.one_of(
        st.text(),
        st.builds(
            "{};version={};escaping={};q={}".format,
            st.sampled_from(["application/openmetrics-text", "text/plain", "*/*"]),
            st.one_of(st.text(), st.sampled_from(["1.0.0", "1.x", "9" * 5000, "%", "\u0661.0"])),
            st.one_of(st.text(), st.sampled_from(["allow-utf-8", "underscores", "\xe9"])),
            st.text(),
        ),
    )
)
def test_any_header_accept_gets_the_metrics(accept: str) -> None:
    body, content_type = render(CollectorRegistry(), accept)
    assert body in (b"", b"# EOF\n")
    Response(status=200, headers={"Content-Type": content_type}).encode(date="")


@pytest.mark.process
async def test_the_web_port_has_health_and_no_metrics(tmp_path: Path) -> None:
    async with serve(tmp_path, "--metrics", "0", "--web", "0") as server:
        web, port = await server.web_port(), await metrics_port(server)
        for path in "/live", "/ready", "/healthz":
            assert (await ask_metrics(web, path)).body == b"ok\n"  # whatever its host is called
        found = await ask_metrics(web, "/metrics", "Host: localhost")
        assert found.status in (400, 404, 421)
        assert b"multichat_clients" not in found.body
        assert (await scrape(port))["multichat_clients"] == 0


@pytest.mark.process
async def test_connections_that_send_nothing_do_not_block_other_requests() -> None:
    config = ServerConfig(handshake_seconds=3600)
    async with port_of_metrics(config) as (_, port), AsyncExitStack() as stack:
        idle = []
        for _ in range(3 * ports.MAX_CONNECTIONS):
            stream = await trio.open_tcp_stream(LOOPBACK, port)
            idle.append(await stack.enter_async_context(stream))
            await stream.send_all(b"GET /metrics HTTP/1.1\r\n")
        for _ in range(5):
            assert (await ask_metrics(port)).status == 200
        with trio.fail_after(WAIT_SECONDS):
            for stream in idle[: 2 * ports.MAX_CONNECTIONS]:
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some(1) == b""


@pytest.mark.process
async def test_an_incomplete_request_has_a_deadline() -> None:
    async with port_of_metrics(ServerConfig(handshake_seconds=0.2)) as (_, port):
        stream = await trio.open_tcp_stream(LOOPBACK, port)
        async with stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\n")
            with trio.fail_after(WAIT_SECONDS):
                assert b" 408 " in await read_all(stream)


@pytest.mark.process
async def test_garbage_ends_the_connection_and_nothing_else(tmp_path: Path) -> None:
    async with serve(tmp_path, "--metrics", "0") as server:
        port = await metrics_port(server)
        for garbage in b"\x16\x03\x01", b"hello\n", b"GET\n\n", os.urandom(2000), b"":
            stream = await trio.open_tcp_stream(LOOPBACK, port)
            async with stream:
                await stream.send_all(garbage)
                await stream.send_eof()
                with trio.fail_after(WAIT_SECONDS):
                    with suppress(trio.BrokenResourceError):
                        await read_all(stream)
        assert (await scrape(port))["multichat_ready"] == 1
        assert "crashed" not in server.out


@pytest.mark.process
async def test_while_the_server_says_goodbye_it_is_live_and_not_ready() -> None:
    """A client that reads nothing keeps it from ending, within the grace period."""
    async with (
        port_of_metrics(ServerConfig(grace_seconds=WAIT_SECONDS)) as (server, port),
        people(server.port, 1) as [speaker],
        people(server.port, 1, listening=False) as [slow],
    ):
        await scrape_until(port, clients=2)
        while not (await scrape(port))["multichat_lagging_clients"]:
            await speaker.say(*["x" * 10_000] * 100)
        server.shutdown()
        with trio.fail_after(WAIT_SECONDS):
            while (await ask_metrics(port, "/ready")).status == 200:
                await trio.sleep(0.01)
        ready = await ask_metrics(port, "/ready")
        assert (ready.status, ready.body) == (503, b"shutting down\n")
        assert (await ask_metrics(port, "/live")).status == 200
        assert (await scrape(port))["multichat_ready"] == 0
        assert slow.goodbyes == []


@pytest.mark.process
async def test_metrics_on_other_addresses_are_warned_about(tmp_path: Path) -> None:
    options = ("--metrics", "0", "--metrics-host", "0.0.0.0")
    async with serve(tmp_path, *options) as server:
        await server.wait_for("The metrics can be read from other machines, without a password")
        assert (await scrape(await metrics_port(server)))["multichat_clients"] == 0
    async with serve(tmp_path, "--metrics", "0") as server:
        await server.wait_for("Metrics at http://127.0.0.1:")
        assert "can be read from other machines" not in server.out


@pytest.mark.process
async def test_without_the_package_one_line_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from multichat.__main__ import main; sys.argv[1:] = ['serve', '0', '--metrics', '0']\n"
        "main()"
    )
    async with Command(tmp_path, str(BIN / "python"), "-c", program) as command:
        assert await command.wait() == 2
        assert command.err.splitlines()[-1].endswith(
            "--metrics needs the extra multichat-trio[metrics]: pip install prometheus-client"
        )
        assert "Traceback" not in command.err


@pytest.mark.process
async def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    async with serve(tmp_path, "--metrics", "0") as server:
        port = await metrics_port(server)
        argv = (MULTICHAT, "serve", "0", "--host", LOOPBACK, "--metrics", str(port))
        async with Command(tmp_path, *argv) as command:
            assert await command.wait() == 1
            assert f"{LOOPBACK}:{port}" in command.err or str(port) in command.err
            assert "Traceback" not in command.err
