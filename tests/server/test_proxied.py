"""Behind a load balancer: PROXY headers on the chat's port and on the page's."""

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

import multichat
from multichat import Server, ServerConfig, WebConfig
from multichat.testing import ScriptedClient
from tests.support.log import LogRecorder
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    program,
    serve,
)
from tests.support.proxy_headers import tlv, v1, v2, v2_local
from tests.support.web import WebSocketClient, http, parse_answer, read_all

pytestmark = pytest.mark.process

CLIENT = "192.0.2.7"
DIRECT = "127.0.0.2"  # not the balancer's address


@asynccontextmanager
async def behind_balancer(
    *,
    tls: ssl.SSLContext | None = None,
    web: int | None = None,
    config_web: WebConfig | None = None,
    **settings: Any,
) -> AsyncIterator[Server]:
    """Run a server whose load balancer is at 127.0.0.1."""
    config = ServerConfig(proxies=(LOOPBACK,), web=config_web or WebConfig(), **settings)
    async with trio.open_nursery() as nursery:
        run = partial(multichat.serve, 0, host=LOOPBACK, config=config, tls=tls, web=web)
        yield await nursery.start(run)
        nursery.cancel_scope.cancel(reason="the test has ended")


async def arrive(
    server: Server,
    stack: AsyncExitStack,
    *pieces: bytes,
    tls: ssl.SSLContext | None = None,
    source: str = LOOPBACK,
) -> ScriptedClient:
    """Connect, and send *pieces*, each by itself."""
    tcp = await trio.open_tcp_stream(LOOPBACK, server.port, local_address=source)
    tcp.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    for piece in pieces:
        await tcp.send_all(piece)
        await trio.sleep(0.01 if len(pieces) > 1 else 0)
    stream: Any = tcp
    if tls is not None:
        stream = trio.SSLStream(tcp, tls, server_hostname="chat.example")
    stack.push_async_callback(trio.aclose_forcefully, stream)
    return ScriptedClient(stream)


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    """Return the data until the connection is closed, or reset."""
    try:
        return await read_all(stream)
    except trio.BrokenResourceError:
        return b""


def whereabouts(server: Server) -> set[str]:
    return {member.address for member in server.members}


@pytest.mark.parametrize(
    "header",
    [
        v1(CLIENT, 50000),
        v2(CLIENT, 50000),
        v2(CLIENT, 50000, tls=True),
        v2(CLIENT, 50000, more=tlv(0xEE, b"x" * 3000)),
        v1(f"::ffff:{CLIENT}", 50000),
    ],
)
async def test_the_address_of_the_header_is_the_clients(header: bytes) -> None:
    async with behind_balancer() as server, AsyncExitStack() as stack:
        for pieces in (header + b"hello\n/ping\n",), (header, b"hello\n/ping\n"):
            client = await arrive(server, stack, *pieces)
            assert await client.line() == "[Server] pong"
        torn = [bytes([byte]) for byte in header[:200]]
        client = await arrive(server, stack, *torn, header[200:] + b"/ping\n")
        assert await client.line() in ("[Client 1] hello", "[Client 2] hello", "[Server] pong")
        assert whereabouts(server) == {f"{CLIENT}:50000"}


@pytest.mark.parametrize("header", [v1(CLIENT), v2(CLIENT)])
async def test_a_client_of_another_address_is_not_believed(header: bytes, log: LogRecorder) -> None:
    async with behind_balancer() as server, AsyncExitStack() as stack:
        client = await arrive(server, stack, header, source=DIRECT)
        assert await client.rest() == [
            "[Server] goodbye: this server does not expect the PROXY header of its load balancer"
        ]
    reason = "its load balancer sends a PROXY header: give the balancer's address to --proxy"
    assert f"[INFO] [server] [STATE] Client 1 disconnected ({reason})" in log.lines
    assert not any(CLIENT in line for line in log.lines)


async def test_an_unexpected_header_before_tls_is_explained_in_the_log(log: LogRecorder) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("chat.example").configure_cert(context)
    async with behind_balancer(tls=context) as server, AsyncExitStack() as stack:
        client = await arrive(server, stack, v2(CLIENT) + b"\x16\x03\x01", source=DIRECT)
        await client.rest()
    reason = "its load balancer sends a PROXY header: give the balancer's address to --proxy"
    [line] = [line for line in log.lines if "Refused" in line]
    assert line.startswith(f"[INFO] [server] [STATE] Refused {DIRECT}:")
    assert line.endswith(f": {reason}")


async def test_limits_count_for_the_clients_address_and_not_for_the_balancers() -> None:
    async with behind_balancer(max_clients_per_address=1) as server, AsyncExitStack() as stack:
        for number in range(5):
            client = await arrive(server, stack, v1(f"192.0.2.{number}"))
            await client.send("/ping")
            assert await client.line() == "[Server] pong"
        refused = await arrive(server, stack, v2("192.0.2.3"))
        assert await refused.rest() == [
            "[Server] goodbye: too many clients from your address (at most 1)"
        ]
        other = await arrive(server, stack, v2("2001:db8::1"))
        await other.send("/ping")
        assert await other.line() == "[Server] pong"
        same_network = await arrive(server, stack, v2("2001:db8::2"))
        assert "too many clients" in (await same_network.rest())[0]
    assert not server._admission._connections


async def test_bans_are_about_the_clients_address(log: LogRecorder) -> None:
    async with behind_balancer() as server, AsyncExitStack() as stack:
        server.admin.ban(CLIENT)
        refused = await arrive(server, stack, v1(CLIENT))
        assert "banned" in (await refused.rest())[0]
        client = await arrive(server, stack, v1("192.0.2.8"))
        await client.send("/ping")
        assert await client.line() == "[Server] pong"
    [line] = [line for line in log.lines if "Refused" in line]
    assert f"Refused {CLIENT}:50000: banned" in line


async def test_passwords_are_tried_per_client() -> None:
    async with behind_balancer(password="secret") as server, AsyncExitStack() as stack:
        client = await arrive(server, stack, v1(CLIENT))
        assert "password" in await client.line()
        await client.send("/auth secret", "/ping")
        assert (await client.lines(2))[1] == "[Server] pong"


@pytest.mark.parametrize(
    ("header", "private"),
    [
        (v1(CLIENT), False),
        (v2(CLIENT), False),
        (v2(CLIENT, tls=True), True),
        (v1(LOOPBACK), True),
        (v2("::1"), True),
    ],
)
async def test_only_a_header_that_says_tls_makes_a_connection_private(
    header: bytes, private: bool
) -> None:
    async with behind_balancer() as server, AsyncExitStack() as stack:
        client = await arrive(server, stack, header)
        await client.send("/name alice", "/register correct horse battery staple")
        answers = await client.lines(2)
        assert ("passphrases are accepted over TLS only" in answers[1]) is not private


async def test_tls_to_the_server_begins_after_the_header(tmp_path: Path) -> None:
    ca = trustme.CA()
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("chat.example").configure_cert(ours)
    theirs = ssl.create_default_context()
    ca.configure_trust(theirs)
    async with behind_balancer(tls=ours) as server, AsyncExitStack() as stack:
        for header in v1(CLIENT, 50000), v2(CLIENT, 50000):
            client = await arrive(server, stack, header, tls=theirs)
            await client.send("/name alice", "/register correct horse battery staple")
            assert "passphrases are accepted" not in "".join(await client.lines(2))
            assert whereabouts(server) == {f"{CLIENT}:50000"}
            await client.stream.aclose()
            with trio.fail_after(WAIT_SECONDS):
                while whereabouts(server):
                    await trio.sleep(0.01)
        plain = await arrive(server, stack, v1(CLIENT), b"hello\n")
        assert "TLS" in (await plain.rest())[0]


async def test_a_health_check_does_not_count_as_a_client(log: LogRecorder) -> None:
    async with behind_balancer() as server, AsyncExitStack() as stack:
        check = await arrive(server, stack, v2_local())
        assert await check.rest() == []
        check = await arrive(server, stack)
        await check.finish()
        assert await check.rest() == []
        for unknown in b"PROXY UNKNOWN\r\n", v2_local().replace(b"\x20", b"\x21"):
            client = await arrive(server, stack, unknown + b"/ping\n")
            assert await client.line() == "[Server] pong"
        assert server.statistics().refused == 0
    assert not [line for line in log.lines if "Refused" in line]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no PROXY header: this server takes you for its load balancer"),
        (b"hello\n", "no PROXY header"),
        (b"PROXY TCP4 nobody\r\n", "an invalid PROXY header"),
        (b"PROXY UNKNOWN " + b"x" * 1000, "a PROXY header of more than 107 bytes"),
        (v2(CLIENT)[:14] + b"\xff\xff", "a PROXY header of more than 4096 bytes"),
    ],
)
async def test_bytes_that_are_not_a_header_are_refused_with_one_line(
    data: bytes, words: str, log: LogRecorder
) -> None:
    async with behind_balancer() as server, AsyncExitStack() as stack:
        client = await arrive(server, stack, data)
        [line] = await client.rest()
        assert line.startswith(f"[Server] goodbye: {words}")
    [line] = [line for line in log.lines if "Refused" in line]
    assert words.partition(":")[0] in line
    assert line.endswith(": if this is no load balancer, remove its address from --proxy")
    assert line.count("--proxy") == 1


async def test_tls_without_a_header_is_closed_with_one_line_in_the_log(log: LogRecorder) -> None:
    async with behind_balancer() as server, AsyncExitStack() as stack:
        client = await arrive(server, stack, b"\x16\x03\x01\x02\x00")
        assert await everything(client.stream) == b""
    [line] = [line for line in log.lines if "Refused" in line]
    assert line.endswith("no PROXY header before TLS (--proxy)")


async def test_the_time_for_the_header_is_limited(log: LogRecorder) -> None:
    async with behind_balancer(handshake_seconds=0.2) as server, AsyncExitStack() as stack:
        for data in b"", b"PROXY TCP4 ":
            client = await arrive(server, stack, data)
            assert "no PROXY header in 0.2 s" in (await client.rest())[0]
        torn = await arrive(server, stack, b"PROXY TCP4 ")
        await torn.finish()
        assert await torn.rest() == []
    assert len([line for line in log.lines if "Refused" in line]) == 3
    assert [line for line in log.lines if "a PROXY header that breaks off" in line]


# --- The page's port ------------------------------------------------------------------------------


async def ask(port: int, data: bytes) -> Any:
    tcp = await trio.open_tcp_stream(LOOPBACK, port)
    with trio.fail_after(WAIT_SECONDS):
        async with tcp:
            await tcp.send_all(data)
            return parse_answer(await read_all(tcp))


def web_port(server: Server) -> int:
    return int(server.web_url.rstrip("/").rpartition(":")[2])


async def test_the_page_behind_a_balancer(log: LogRecorder) -> None:
    close = "Connection: close"
    async with behind_balancer(web=0, max_clients_per_address=1) as server:
        port = web_port(server)
        host = f"{LOOPBACK}:{port}"
        page = http("/", close, host=host)
        for header in v1(CLIENT), v2(CLIENT, tls=True), v2_local(), b"PROXY UNKNOWN\r\n":
            assert (await ask(port, header + page)).status == 200
        server.admin.ban("192.0.2.9")
        assert (await ask(port, v1("192.0.2.9") + page)).status == 403
        tcp = await trio.open_tcp_stream(LOOPBACK, port)
        async with tcp:
            await tcp.send_all(v2(CLIENT, 50000))
            client = WebSocketClient(tcp)
            assert (await client.open(host=host)).status == 101
            await client.send("/json {}")
            assert (await client.event())["type"] == "welcome"
            assert whereabouts(server) == {f"{CLIENT}:50000"}
            assert (await ask(port, v1(CLIENT) + page)).status == 503
            assert (await ask(port, v1("192.0.2.8") + page)).status == 200
    refused = [line for line in log.lines if "Refused" in line]
    assert len(refused) == 2


async def test_a_request_without_a_header_is_refused(log: LogRecorder) -> None:
    async with behind_balancer(web=0) as server:
        tcp = await trio.open_tcp_stream(LOOPBACK, web_port(server))
        async with tcp:
            await tcp.send_all(http("/"))
            assert await everything(tcp) == b""
    [line] = [line for line in log.lines if "Refused" in line]
    assert "no PROXY header: if it is a health check, or HTTP without such a header, " in line
    assert "give its address to --web-proxy; if this is no load balancer" in line
    assert line.endswith("remove its address from --proxy")


async def test_a_proxy_of_the_page_at_the_same_address_sends_no_header() -> None:
    web = WebConfig(proxies=(LOOPBACK,))
    async with behind_balancer(web=0, config_web=web) as server:
        port = web_port(server)
        host = f"{LOOPBACK}:{port}"
        server.admin.ban(CLIENT)
        page = http("/", "Connection: close", f"X-Forwarded-For: {CLIENT}", host=host)
        assert (await ask(port, page)).status == 403


async def test_a_proxy_of_the_page_behind_the_balancer_is_believed() -> None:
    web = WebConfig(proxies=("10.0.0.7",))
    async with behind_balancer(web=0, config_web=web) as server:
        port = web_port(server)
        host = f"{LOOPBACK}:{port}"
        server.admin.ban(CLIENT)
        page = http("/", "Connection: close", f"X-Forwarded-For: {CLIENT}", host=host)
        assert (await ask(port, v1("10.0.0.7") + page)).status == 403
        assert (await ask(port, v1("10.0.0.8") + page)).status == 200


async def test_messages_of_a_connection_that_was_reset_before_it_was_accepted_are_not_published(
    log: LogRecorder,
) -> None:
    """It has no address any more, so no ban and no limit would apply."""
    async with behind_balancer(web=0) as server, AsyncExitStack() as stack:
        server.admin.ban(DIRECT)
        [listener] = await trio.open_tcp_listeners(0, host=LOOPBACK)
        stack.push_async_callback(listener.aclose)
        there = listener.socket.getsockname()
        for handle, data in (
            (server.handle, b"spam\n"),
            (server.handle, v1(DIRECT) + b"spam\n"),
            (server.handle_web, http("/", "Connection: close")),
        ):
            for source in LOOPBACK, DIRECT:
                tcp = await trio.open_tcp_stream(*there, local_address=source)
                await tcp.send_all(data)
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                tcp.socket.close()
                await handle(await listener.accept())
        assert not server.members
        assert server._connections.clients == 0
    assert "spam" not in "".join(log.lines)


# --- Real programs --------------------------------------------------------------------------------

HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen chat
    bind 127.0.0.1:{port} {bind}
    server node1 127.0.0.1:{node} {send} check inter 100
"""


@pytest.mark.parametrize(
    ("bind", "send"),
    [
        ("", "send-proxy"),
        ("", "send-proxy-v2"),
        ("ssl crt {folder}/both.pem", "send-proxy-v2-ssl"),
        ("ssl crt {folder}/both.pem", "send-proxy"),
    ],
)
async def test_behind_haproxy(tmp_path: Path, port: int, bind: str, send: str) -> None:
    command = program("haproxy")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ca.issue_cert("chat.example").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "both.pem"
    )
    async with serve(tmp_path, "--proxy", LOOPBACK, "--max-clients-per-address", "2") as server:
        config = tmp_path / "haproxy.cfg"
        bind = bind.format(folder=tmp_path)
        config.write_text(
            HAPROXY.format(port=port, bind=bind, node=server.port, send=send), "utf-8"
        )
        async with Command(tmp_path, command, "-db", "-f", str(config)) as haproxy:
            await listens(port, haproxy)
            tls = ("--tls-ca", str(tmp_path / "ca.pem"), "--tls-name", "chat.example")
            options = tls if bind else ()
            said = Command(tmp_path, MULTICHAT, "send", LOOPBACK, str(port), "hello", *options)
            async with said as sending:
                assert await sending.wait() == 0, sending.err
            await server.wait_for("hello")
            await trio.sleep(0.5)  # some checks of health
        assert "Refused" not in server.out
        if "v2" in send:  # of version 1, some checks look like clients
            assert server.out.count(" connected") <= 2  # with the one of `listens`
        assert f"Client {LOOPBACK}" not in server.out


async def listens(port: int, command: Command) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while True:
            assert command.process.poll() is None, command.err
            try:
                stream = await trio.open_tcp_stream(LOOPBACK, port)
            except OSError:
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return
