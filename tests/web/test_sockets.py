"""The web port over real sockets: addresses, proxies, TLS, limits, and the command line."""

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

import multichat
from multichat.net.certificates import server_tls
from multichat.server.bans import Ban, parse_target
from multichat.server.config import ServerConfig
from multichat.server.server import Server
from multichat.web.config import WebConfig
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK, Command, program, serve
from tests.support.web import TOKEN, Answer, WebSocketClient, http, parse_answer, read_all

pytestmark = pytest.mark.process


def web_port(server: Server) -> int:
    found = re.fullmatch(r"https?://127\.0\.0\.1:(\d+)/", server.web_url)
    assert found, server.web_url
    return int(found[1])


@asynccontextmanager
async def running(
    config: ServerConfig | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    async with trio.open_nursery() as nursery:
        server = Server(config)

        async def run(*, task_status: trio.TaskStatus[Server]) -> None:
            await server.run(0, host=LOOPBACK, web=0, tls=tls, task_status=task_status)

        yield await nursery.start(run)
        nursery.cancel_scope.cancel(reason="the test is over")


async def ask(server: Server, data: bytes) -> Answer:
    stream = await trio.open_tcp_stream(LOOPBACK, web_port(server))
    async with stream:
        await stream.send_all(data)
        return parse_answer(await read_all(stream))


async def test_the_page_has_an_address_in_the_log_and_on_the_chat_port(log: LogRecorder) -> None:
    async with running() as server:
        assert f"[INFO] [server] [start] Web page at {server.web_url}" in log.lines
        assert (await ask(server, http(host=f"127.0.0.1:{web_port(server)}"))).status == 200
        stream = await trio.open_tcp_stream(LOOPBACK, server.port)
        async with stream:
            await stream.send_all(http())
            assert server.web_url.encode() in await read_all(stream)


async def test_serve_takes_a_web_port() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda *, task_status: multichat.serve(0, host=LOOPBACK, web=0, task_status=task_status)
        )
        assert (await ask(server, http("/healthz"))).body == b"ok\n"
        server.shutdown()


async def test_a_banned_address_gets_the_reason_only() -> None:
    async with running(ServerConfig(web=WebConfig(webhook_tokens=(TOKEN,)))) as server:
        server.ban(Ban(target=parse_target(LOOPBACK), reason="spam"))
        for path in ("/", "/ws", "/rooms/lobby/messages"):
            answer = await ask(server, http(path))
            assert answer.status == 403
            assert b"banned" in answer.body
            assert b"spam" in answer.body


async def test_connections_are_limited_by_address_with_those_of_the_chat() -> None:
    async with running(ServerConfig(max_clients_per_address=2)) as server:
        first = await trio.open_tcp_stream(LOOPBACK, server.port)
        second = await trio.open_tcp_stream(LOOPBACK, web_port(server))
        async with first, second:
            client = WebSocketClient(second)
            await client.open(host=LOOPBACK, early="/json {}")
            assert (await client.event())["type"] == "welcome"
            answer = await ask(server, http())
            assert answer.status == 503
            assert answer.body == b"too many clients from your address (at most 2)\n"
            assert answer.fields["Retry-After"] == "60"
        with trio.fail_after(60):
            while (await ask(server, http())).status != 200:
                await trio.sleep(0.01)


def forwarded(address: str, *fields: str) -> bytes:
    return http("/", f"X-Forwarded-For: {address}", *fields)


async def test_a_forwarded_address_counts_from_a_trusted_proxy_only() -> None:
    ban = Ban(target=parse_target("203.0.113.7"))
    async with running(ServerConfig(web=WebConfig(proxies=(LOOPBACK,)))) as server:
        server.ban(ban)
        assert (await ask(server, forwarded("203.0.113.7"))).status == 403
        assert (await ask(server, forwarded("203.0.113.8"))).status == 200
        # The client behind the proxy has invented what comes first.
        assert (await ask(server, forwarded("198.51.100.9, 203.0.113.7"))).status == 403
    async with running() as server:
        server.ban(ban)
        assert (await ask(server, forwarded("203.0.113.7"))).status == 200
        server.ban(Ban(target=parse_target(LOOPBACK)))
        assert (await ask(server, forwarded("203.0.113.8"))).status == 403


async def test_each_client_behind_a_proxy_is_limited_by_its_own_address() -> None:
    config = ServerConfig(max_clients_per_address=1, web=WebConfig(proxies=(LOOPBACK,)))
    async with running(config) as server:
        streams = [await trio.open_tcp_stream(LOOPBACK, web_port(server)) for _ in range(3)]
        for i, stream in enumerate(streams[:2]):
            client = WebSocketClient(stream)
            await client.open(f"X-Forwarded-For: 203.0.113.{i}", early="/json {}")
            assert (await client.event())["type"] == "welcome"
        assert [each.address for each in server.members] == ["203.0.113.0:0", "203.0.113.1:0"]
        again = WebSocketClient(streams[2])
        assert (await again.open("X-Forwarded-For: 203.0.113.1")).status == 503
        for stream in streams:
            await stream.aclose()


async def test_behind_a_proxy_only_https_is_private() -> None:
    async with running(ServerConfig(web=WebConfig(proxies=(LOOPBACK,)))) as server:
        for scheme, answered in (("https", "logged-in"), ("http", "error")):
            stream = await trio.open_tcp_stream(LOOPBACK, web_port(server))
            async with stream:
                client = WebSocketClient(stream)
                origin = f"Origin: {scheme}://localhost"
                fields = ("X-Forwarded-For: 203.0.113.7", f"X-Forwarded-Proto: {scheme}", origin)
                early = f'/json {{"name":"{scheme}"}}'
                assert (await client.open(*fields, early=early)).status == 101
                assert (await client.event())["type"] == "welcome"
                await client.send('{"type":"register","passphrase":"correct horse battery"}')
                event = await client.event()
                assert event["type"] == answered, event
        # The page of one scheme cannot connect by the other.
        stream = await trio.open_tcp_stream(LOOPBACK, web_port(server))
        async with stream:
            client = WebSocketClient(stream)
            answer = await client.open("Origin: http://localhost", "X-Forwarded-Proto: https")
            assert answer.status == 403


async def test_a_certificate_covers_the_web_port(tmp_path: Path) -> None:
    ca = trustme.CA()
    pem = tmp_path / "server.pem"
    ca.issue_cert(LOOPBACK, "localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    ca.configure_trust(context)
    async with running(tls=server_tls(pem)) as server:
        assert server.web_url.startswith("https://")
        stream = await trio.open_ssl_over_tcp_stream(
            LOOPBACK, web_port(server), ssl_context=context, https_compatible=True
        )
        client = WebSocketClient(stream)
        origin = f"Origin: https://localhost:{web_port(server)}"
        await client.open(origin, host=f"localhost:{web_port(server)}", early="/json {}")
        assert (await client.event())["type"] == "welcome"
        await trio.aclose_forcefully(stream)
        plain = await ask(server, http())
        assert plain.status == 400
        assert b"https://" in plain.body


async def test_curl_posts_a_message(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# for the build server\n{TOKEN}\n\n", "utf-8")
    tokens.chmod(0o600)
    options = ("--web", "0", "--webhook-token-file", str(tokens))
    async with serve(tmp_path, *options) as server:
        await server.wait_for("Web page at ")
        found = re.search(r"Web page at (\S+)", server.out)
        assert found
        curl = [program("curl"), "-s", "-H", f"Authorization: Bearer {TOKEN}"]
        url = f"{found[1]}rooms/lobby/messages"
        async with Command(tmp_path, *curl, "-d", "build 42 passed", url) as command:
            assert await command.wait() == 0
            assert re.fullmatch(r'{"id":"[^"]+"}\n', command.out)
        body = '{"name":"ci","text":"hi"}'
        async with Command(tmp_path, *curl, "--json", body, url) as command:
            assert await command.wait() == 0
        await server.wait_for("[INFO] [server] [RX] [webhook] build 42 passed")
        await server.wait_for("[INFO] [server] [RX] [ci] hi")
        assert TOKEN not in server.out


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", ": it contains no token"),
        (b"# only this\n", ": it contains no token"),
        (b"# \n\nshort\n", " line 3: a webhook's token has 16 to 1024 characters"),
        (b"\xff\xfe\0", ": UTF-16; save it as UTF-8"),
    ],
)
async def test_a_file_without_usable_tokens_is_one_clear_line(
    contents: bytes, said: str, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_bytes(contents)
    multichat_command = serve(tmp_path, "--web", "0", "--webhook-token-file", str(tokens))
    async with Command(tmp_path, *multichat_command.argv) as command:
        assert await command.wait() == 2
        assert command.err == f"multichat: {tokens}{said}\n"


async def test_tokens_that_others_can_read_are_warned_of(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n", "utf-8")
    tokens.chmod(0o644)
    async with serve(tmp_path, "--web", "0", "--webhook-token-file", str(tokens)) as server:
        assert f"{tokens} can be read by other users: chmod 600 {tokens}" in server.out


async def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    async with serve(tmp_path, "--web", "0") as server:
        await server.wait_for("Web page at ")
        found = re.search(r"Web page at http://127\.0\.0\.1:(\d+)/", server.out)
        assert found
        other = serve(tmp_path, "--web", found[1])
        async with Command(tmp_path, *other.argv) as command:
            assert await command.wait() == 1
            assert command.err == (
                f"multichat: cannot listen on 127.0.0.1 port {found[1]}: address already in use\n"
            )
