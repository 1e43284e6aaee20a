"""Behind nginx and Caddy, with the configuration in docs/web.md and the real programs."""

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trustme

from tests.support.processes import LOOPBACK, WAIT_SECONDS, Command, ServerCommand, program, serve
from tests.support.web import (
    TOKEN,
    Answer,
    WebSocketClient,
    http,
    parse_answer,
    posting,
    read_all,
)

pytestmark = pytest.mark.process

PAGE = Path(__file__).parent.parent.parent / "docs" / "web.md"

# Not the address of the proxy, which is trusted.
CLIENT = "127.0.0.2"
BANNED = "127.0.0.3"
NAME = "chat.example"

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name {name};
        ssl_certificate {folder}/chain.pem;
        ssl_certificate_key {folder}/key.pem;
        {block}
    }}
}}
"""

CADDY = """
{{
    admin off
    auto_https off
}}
https://{name}:{port} {{
    bind 127.0.0.1
    tls {folder}/chain.pem {folder}/key.pem
    {block}
}}
"""


def documented(language: str) -> str:
    [block] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return str(block)


@dataclass
class Proxied:
    server: ServerCommand
    port: int
    context: ssl.SSLContext

    @property
    def host(self) -> str:
        return f"{NAME}:{self.port}"

    @asynccontextmanager
    async def connect(
        self, address: str = CLIENT
    ) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
        tcp = await trio.open_tcp_stream(LOOPBACK, self.port, local_address=address)
        stream = trio.SSLStream(tcp, self.context, server_hostname=NAME, https_compatible=True)
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)

    async def ask(self, data: bytes, *, address: str = CLIENT) -> Answer:
        """Send a request, whose path is below the prefix."""
        method, _, rest = data.partition(b" ")
        head, _, body = rest.partition(b"\r\n\r\n")
        request = b"%s /chat%s\r\nConnection: close\r\n\r\n%s" % (method, head, body)
        with trio.fail_after(WAIT_SECONDS):
            async with self.connect(address) as stream:
                await stream.send_all(request)
                return parse_answer(await read_all(stream))

    @asynccontextmanager
    async def websocket(self, *fields: str) -> AsyncIterator[WebSocketClient]:
        async with self.connect() as stream:
            client = WebSocketClient(stream, path="/chat/ws")
            await client.open(f"Origin: https://{self.host}", *fields, host=self.host)
            yield client


@pytest.fixture(params=["nginx", "caddy"])
async def proxied(
    request: pytest.FixtureRequest, tmp_path: Path, port: int
) -> AsyncIterator[Proxied]:
    name = request.param
    command = program(name)
    ca = trustme.CA()
    certificate = ca.issue_cert(NAME)
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "chain.pem").write_bytes(b"".join(p.bytes() for p in certificate.cert_chain_pems))
    context = ssl.create_default_context()
    ca.configure_trust(context)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n", "utf-8")
    tokens.chmod(0o600)
    bans = tmp_path / "bans"
    bans.write_text(f"{BANNED}\n", "utf-8")
    options = ("--web-proxy", LOOPBACK, "--web-url", f"https://{NAME}:{port}/chat/")
    async with serve(
        tmp_path,
        "--web",
        "0",
        *options,
        "--webhook-token-file",
        str(tokens),
        "--ban-file",
        str(bans),
    ) as server:
        await server.wait_for("Web page at ")
        found = re.search(r"Listening on 127\.0\.0\.1:(\d+) for the web page", server.out)
        assert found
        inner = found[1]
        block = documented(name).replace("127.0.0.1:8080", f"127.0.0.1:{inner}")
        assert inner in block
        template = NGINX if name == "nginx" else CADDY
        config = tmp_path / f"{name}.conf"
        config.write_text(
            template.format(folder=tmp_path, port=port, name=NAME, block=block), "utf-8"
        )
        # Caddy writes into the folders of its user.
        env = ["env", f"XDG_CONFIG_HOME={tmp_path}", f"XDG_DATA_HOME={tmp_path}"]
        argv = (
            [command, "-p", str(tmp_path), "-e", "stderr", "-c", str(config)]
            if name == "nginx"
            else [*env, command, "run", "--config", str(config), "--adapter", "caddyfile"]
        )
        async with Command(tmp_path, *argv) as proxy:
            with trio.move_on_after(WAIT_SECONDS):
                while proxy.process.poll() is None:
                    try:
                        await (await trio.open_tcp_stream(LOOPBACK, port)).aclose()
                        break
                    except OSError:
                        await trio.sleep(0.05)
            assert proxy.process.poll() is None, proxy.err
            yield Proxied(server, port, context)


async def test_the_page_and_its_files_are_below_the_prefix(proxied: Proxied) -> None:
    page = await proxied.ask(http(host=proxied.host))
    assert page.status == 200
    assert "frame-ancestors 'none'" in page.fields["Content-Security-Policy"]
    [script] = re.findall(rb'<script[^>]* src="([^"]+)"', page.body)
    path = "/" + script.decode().removeprefix("./")
    assert (await proxied.ask(http(path, host=proxied.host))).status == 200
    assert (await proxied.ask(http("", host=proxied.host))).status in (301, 302)


async def test_the_clients_real_address_counts_and_not_the_claimed_one(proxied: Proxied) -> None:
    claim = f"X-Forwarded-For: {BANNED}"
    assert (await proxied.ask(http("/", claim, host=proxied.host))).status == 200
    claim = f"X-Forwarded-For: {CLIENT}"
    request = http("/", claim, host=proxied.host)
    assert (await proxied.ask(request, address=BANNED)).status == 403


async def test_a_websocket_is_private(proxied: Proxied) -> None:
    async with proxied.websocket("X-Forwarded-For: 203.0.113.7") as client:
        await client.send('/json {"name":"alice"}')
        assert (await client.event())["name"] == "alice"
        await client.send('{"type":"register","passphrase":"correct horse battery"}')
        assert (await client.event())["type"] == "logged-in"


async def test_an_idle_websocket_with_large_messages_stays(proxied: Proxied) -> None:
    async with proxied.websocket() as one, proxied.websocket() as other:
        for client in (one, other):
            await client.send("/json {}")
            await client.event()
        await trio.sleep(1)
        text = "x" * 60_000
        await one.send(f'{{"type":"say","text":"{text}"}}')
        with trio.fail_after(WAIT_SECONDS):
            while (event := await other.event())["type"] != "said":
                pass
        assert event["text"] == text


async def test_a_page_from_elsewhere_cannot_connect(proxied: Proxied) -> None:
    async with proxied.connect() as stream:
        client = WebSocketClient(stream, path="/chat/ws")
        answer = await client.open("Origin: https://evil.example", host=proxied.host)
        assert answer.status == 403


async def test_a_message_is_posted(proxied: Proxied) -> None:
    text = b"y" * 60_000
    answer = await proxied.ask(posting(text, host=proxied.host))
    assert answer.status == 201
    refused = await proxied.ask(posting(text, host=proxied.host, token="wrong" * 4))
    assert refused.status == 401


async def test_an_ambiguous_length_is_refused(proxied: Proxied) -> None:
    smuggled = b"GET /chat/healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    fields = ("Transfer-Encoding: chunked", "Content-Length: 5")
    answer = await proxied.ask(posting(b"0\r\n\r\n" + smuggled, *fields, host=proxied.host))
    assert answer.status == 400  # by the proxy, or because the message is empty
    assert answer.body.count(b"HTTP/1.1 ") == 0
