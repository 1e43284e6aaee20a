"""The web port over memory streams: one request a connection, its deadlines, and WebSockets."""

from typing import cast

import pytest
import trio
import trio.testing

from multichat.server.config import ServerConfig
from multichat.server.listening import Listeners
from multichat.server.start_log import Starting
from multichat.testing import MemoryServer, memory_server
from multichat.web.config import WebConfig
from tests.support.log import LogRecorder
from tests.support.web import (
    WebSocketClient,
    ask,
    http,
    parse_answer,
    read_all,
    upgrade,
    web_connection,
)

pytestmark = pytest.mark.unit


class _Listener:
    def __init__(self, *name: object) -> None:
        self.socket, self._name = self, name

    def getsockname(self) -> tuple[object, ...]:
        return self._name


@pytest.mark.parametrize(
    ("name", "encrypted", "url"),
    [
        (("127.0.0.1", 8080), False, "http://127.0.0.1:8080/"),
        (("192.0.2.7", 80), False, "http://192.0.2.7/"),
        (("192.0.2.7", 80), True, "https://192.0.2.7:80/"),
        (("2001:db8::7", 443, 0, 0), True, "https://[2001:db8::7]/"),
        (("0.0.0.0", 8080), False, "http://box:8080/"),
        (("::", 8080, 0, 0), False, "http://box:8080/"),
    ],
)
def test_the_page_is_where_people_can_open_it(
    name: tuple[object, ...], encrypted: bool, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    listener = cast("trio.SocketListener", _Listener(*name))
    starting = Starting(Listeners(web=[listener]), is_encrypted=encrypted)
    assert starting.web_url(None) == url
    assert starting.web_url("https://chat.example/") == "https://chat.example/"
    assert Starting(Listeners()).web_url("https://chat.example/") == ""


async def raw(server: MemoryServer, data: bytes) -> bytes:
    async with web_connection(server) as stream:
        await stream.send_all(data)
        return await read_all(stream)


async def test_the_page_is_served_with_its_policy() -> None:
    async with memory_server() as server:
        page = await ask(server, http())
        assert page.status == 200
        assert page.fields["Content-Type"] == "text/html; charset=utf-8"
        assert "frame-ancestors 'none'" in page.fields["Content-Security-Policy"]
        assert page.fields["Connection"] == "close"
        assert page.body.lstrip().lower().startswith(b"<!doctype html>")
        head = await ask(server, http(method="HEAD"))
        assert head.fields["Content-Length"] == str(len(page.body))
        assert head.body == b""
        again = await ask(server, http("/", f"If-None-Match: {page.fields['ETag']}"))
        assert (again.status, again.body) == (304, b"")


async def test_the_page_names_nothing_from_elsewhere() -> None:
    """All that it loads it names relative to itself, so that it works under a prefix."""
    async with memory_server() as server:
        page = await ask(server, http())
        for attribute in (b'src="', b'href="'):
            for rest in page.body.split(attribute)[1:]:
                target = rest.partition(b'"')[0].decode()
                assert not target.startswith(("/", "http:", "https:", "data:")), target
                if not target.startswith("#"):
                    found = await ask(server, http(f"/{target.removeprefix('./')}"))
                    assert found.status == 200, target


async def test_each_connection_answers_one_request() -> None:
    async with memory_server() as server:
        data = await raw(server, http("/healthz") + http("/healthz"))
        assert data.count(b"HTTP/1.1 200 OK") == 1
        smuggled = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        data = await raw(server, http("/", f"Content-Length: {len(smuggled)}") + smuggled)
        assert data.count(b"HTTP/1.1") == 1


async def test_health_is_answered_for_any_client() -> None:
    async with memory_server() as server:
        assert (await ask(server, http("/healthz", host="10-0-0-7.pods"))).body == b"ok\n"
        server.server.shutdown()
        assert (await ask(server, http("/healthz"))).status == 503


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (http(host="evil.example"), 421),
        (http("/../../etc/passwd"), 404),
        (http("/%2e%2e/%2e%2e/etc/passwd"), 404),
        (http("/..%5c..%5cetc%5cpasswd"), 404),
        (http("http://localhost/"), 400),
        (upgrade("Origin: http://evil.example"), 403),
        (upgrade("Origin: null"), 403),
        (http("/ws"), 426),
        (http("/", "Content-Length: 1", "Transfer-Encoding: chunked"), 400),
        (b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, 431),
        (http("/rooms/lobby/messages", method="POST", body=b"x"), 404),
    ],
)
async def test_a_refused_request_is_answered_with_one_line(
    data: bytes, status: int, log: LogRecorder
) -> None:
    async with memory_server() as server:
        answer = parse_answer(await raw(server, data))
    assert answer.status == status
    assert answer.body.endswith(b"\n")
    assert answer.body.count(b"\n") == 1
    assert not any("crash" in line or "Traceback" in line for line in log.lines)


async def test_a_chat_client_on_the_web_port_gets_a_line_that_says_so() -> None:
    async with memory_server() as server:
        data = await raw(server, b'/json {"name":"alice"}\n')
        assert data == (
            b"[Server] goodbye: this is the web port: "
            b"chat clients use the other port of the server\n"
        )


async def test_a_request_that_does_not_come_is_a_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(handshake_seconds=3)) as server:
        for part in (b"", b"GET", http()[:-2]):
            started = trio.current_time()
            async with web_connection(server) as stream:
                if part:
                    await stream.send_all(part)
                assert parse_answer(await read_all(stream)).status == 408
            assert trio.current_time() - started == pytest.approx(3, abs=0.1)


async def test_a_request_that_comes_byte_by_byte_has_no_more_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        memory_server(ServerConfig(handshake_seconds=3)) as server,
        web_connection(server) as stream,
    ):
        with trio.move_on_after(60) as in_time, pytest.raises(trio.BrokenResourceError):
            for byte in http("/", f"X: {'x' * 1000}"):
                await stream.send_all(bytes([byte]))
                await trio.sleep(1)
        assert not in_time.cancelled_caught


async def test_a_client_that_leaves_ends_its_connection_quietly(log: LogRecorder) -> None:
    async with memory_server() as server:
        for part in (b"", b"GET / HT", http(), upgrade()):
            async with web_connection(server) as stream:
                if part:
                    await stream.send_all(part)
        assert server.server.statistics().refused == 0
    assert not any("crash" in line for line in log.lines)


async def test_a_client_of_websocket_is_a_member_like_all_others() -> None:
    async with memory_server() as server, web_connection(server) as stream:
        listener = await server.join()
        client = WebSocketClient(stream)
        answer = await client.open(early='/json {"name":"alice"}')
        assert answer.status == 101
        welcome = await client.event()
        assert (welcome["type"], welcome["name"]) == ("welcome", "alice")
        await client.send('{"type":"say","text":"hi","nonce":1}')
        assert await listener.line() == "[alice] hi"
        assert (await client.event())["type"] == "accepted"
        await listener.send("hello")
        assert (await client.event())["text"] == "hello"


async def test_the_server_requires_its_password_over_websocket_too() -> None:
    async with (
        memory_server(ServerConfig(password="correct horse")) as server,
        web_connection(server) as stream,
    ):
        client = WebSocketClient(stream)
        await client.open("Sec-WebSocket-Protocol: multichat.lines")
        assert b"a password is required" in (await client.message())[1]
        await client.send("/auth correct horse")
        assert b"password accepted" in (await client.message())[1]
        await client.send("/json {}")
        assert (await client.event())["type"] == "welcome"


async def test_a_full_server_says_so_over_websocket() -> None:
    async with memory_server(ServerConfig(max_clients=1)) as server:
        await server.join()
        async with web_connection(server) as stream:
            client = WebSocketClient(stream)
            await client.open()
            assert b"the server is full" in (await client.message())[1]
        assert (await ask(server, http())).status == 200


async def test_a_name_to_listen_on_is_the_servers_own() -> None:
    async with memory_server() as server:
        server.server._web_names = ("chat.lan",)  # of a system that resolves it
        assert (await ask(server, http(host="chat.lan:8080"))).status == 200
        assert (await ask(server, http(host="other.lan:8080"))).status == 421


async def test_the_configured_address_is_answered() -> None:
    config = ServerConfig(web=WebConfig(url="https://chat.example/talk/"))
    async with memory_server(config) as server, web_connection(server) as stream:
        assert (await ask(server, http(host="chat.example"))).status == 200
        client = WebSocketClient(stream)
        answer = await client.open("Origin: https://chat.example", host="chat.example")
        assert answer.status == 101
