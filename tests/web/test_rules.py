"""Who may ask for what: hosts, origins, proxies, handshakes, the page's files and the site."""

import base64
import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.web.config import WebConfig
from multichat.web.forwarded import Peer, Proxies
from multichat.web.handshake import shake_hands
from multichat.web.hosts import Host, Hosts, own_names
from multichat.web.http import HttpError, Request, Response
from multichat.web.origins import WebAddress, is_own_origin
from multichat.web.page_files import PageFiles
from multichat.web.site import Health, Post, Route, Site, Upgrade

pytestmark = pytest.mark.unit

FILES = {"index.html": b"<p>page", "main.js": b"1", "parts/a.css": b"", "icon.bin": b"\0"}


def request(path: str = "/", method: str = "GET", **fields: str) -> Request:
    given = {"host": "localhost:8080", **{k.replace("_", "-"): v for k, v in fields.items()}}
    return Request(method=method, path=path, fields=tuple(given.items()))


# --- Hosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("localhost", Host("localhost", None, is_address=False)),
        ("LocalHost.:8080", Host("localhost", 8080, is_address=False)),
        ("192.0.2.7:80", Host("192.0.2.7", 80, is_address=True)),
        ("[::1]:8080", Host("::1", 8080, is_address=True)),
        ("[0:0::1]", Host("::1", None, is_address=True)),
        ("127.1", Host("127.1", None, is_address=False)),
    ],
)
def test_a_host_is_a_name_or_an_address_with_a_port(text: str, host: Host) -> None:
    assert Host.parse(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        ":80",
        "a:0",
        "a:65536",
        "a:b",
        "a b",
        "::1",
        "[::1",
        "[zz]",
        "user@localhost",
        "localhost/x",
        "localhost:80:80",
        "localhost\t",
        "münchen",
        "localhost#evil.example",
        "a" * 254,
    ],
)
def test_anything_else_is_not_a_host(text: str) -> None:
    with pytest.raises(ValueError):
        Host.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_host_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        Host.parse(text)


def test_only_addresses_localhost_and_own_names_are_answered() -> None:
    hosts = Hosts([*own_names("Box.example"), "chat.example."])
    for allowed in (
        "localhost",
        "127.0.0.1",
        "203.0.113.9:8080",
        "[2001:db8::1]",
        "box",
        "BOX.example:1",
        "box.local",
        "chat.example",
    ):
        assert hosts.allows(Host.parse(allowed)), allowed
    for other in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.1",
        "2130706433",
        "0x7f.1",
        "notlocalhost",
        "example",
        "sub.chat.example",
    ):
        assert not hosts.allows(Host.parse(other)), other


def test_a_machine_without_a_name_has_no_names() -> None:
    assert own_names("") == ()


# --- Origins --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "scheme", "host", "is_own"),
    [
        ("http://localhost:8080", "http", "localhost:8080", True),
        ("http://LOCALHOST:8080", "http", "localhost:8080", True),
        ("http://chat.example", "http", "chat.example", True),
        ("http://chat.example:80", "http", "chat.example", True),
        ("https://chat.example", "https", "chat.example", True),
        ("https://chat.example", "https", "chat.example:443", True),
        ("http://[::1]:8080", "http", "[::1]:8080", True),
        ("http://localhost:8081", "http", "localhost:8080", False),
        ("http://localhost", "http", "localhost:8080", False),
        ("https://localhost:8080", "http", "localhost:8080", False),
        ("http://chat.example", "https", "chat.example", False),
        ("http://evil.example:8080", "http", "localhost:8080", False),
        ("http://localhost:8080.evil.example", "http", "localhost:8080", False),
        ("http://evil.example@localhost:8080", "http", "localhost:8080", False),
        ("http://localhost:8080@evil.example", "http", "localhost:8080", False),
        ("null", "http", "localhost:8080", False),
        ("file://", "http", "localhost:8080", False),
        ("", "http", "localhost:8080", False),
        ("http://localhost:8080/x", "http", "localhost:8080", False),
        ("http://localhost:8080/", "http", "localhost:8080", False),
        ("http://localhost:8080, http://localhost:8080", "http", "localhost:8080", False),
    ],
)
def test_a_page_connects_to_the_server_that_it_is_from(
    origin: str, scheme: str, host: str, is_own: bool
) -> None:
    address = WebAddress.of(scheme, Host.parse(host))
    assert is_own_origin(origin, address, None) is is_own


def test_the_configured_address_is_an_own_origin_too() -> None:
    configured = WebAddress.parse("https://chat.example/prefix/")
    inside = WebAddress.of("http", Host.parse("127.0.0.1:8080"))
    assert is_own_origin("https://chat.example", inside, configured)
    assert not is_own_origin("http://chat.example", inside, configured)
    assert not is_own_origin("https://chat.example:8443", inside, configured)


@pytest.mark.parametrize(
    "url", ["chat.example", "ftp://chat.example", "https://", "https://a b", "https://a/?x", "//a"]
)
def test_the_configured_address_must_be_one(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address such as https://chat\.example/"):
        WebConfig(url=url)


# --- Proxies --------------------------------------------------------------------------------------

PROXIES = Proxies(["127.0.0.1", "10.0.0.0/24", "2001:db8::/64"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7:5555"], "203.0.113.7"),
        ("127.0.0.1", ["[2001:db9::7]:5555"], "2001:db9::7"),
        ("::ffff:127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7, 10.0.0.9"], "203.0.113.7"),
        ("127.0.0.1", ["10.0.0.8, 10.0.0.9"], "10.0.0.8"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7, unknown"], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
    ],
)
def test_the_client_is_the_last_address_that_is_not_a_trusted_proxy(
    peer: str, forwarded: list[str], client: str
) -> None:
    assert PROXIES.client(peer, forwarded, ["https"]) == Peer(client, "https", is_forwarded=True)


@pytest.mark.parametrize("peer", ["192.0.2.1", "10.0.1.1", "2001:db9::1", "", "x"])
def test_a_peer_that_is_not_a_trusted_proxy_cannot_claim_an_address(peer: str) -> None:
    assert PROXIES.client(peer, ["203.0.113.7"], ["https"]) == Peer(peer)


def test_a_scheme_is_http_or_https() -> None:
    for named, scheme in [
        (["gopher"], ""),
        ([], ""),
        (["http, https"], "https"),
        (["HTTPS"], "https"),
    ]:
        assert PROXIES.client("127.0.0.1", [], named).scheme == scheme


def test_a_proxy_is_an_address_or_a_network() -> None:
    with pytest.raises(ValueError, match="'nginx' is not an address such as"):
        WebConfig(proxies=("nginx",))


# --- The handshake --------------------------------------------------------------------------------

KEY = base64.b64encode(bytes(range(16))).decode()
UPGRADE = {
    "upgrade": "websocket",
    "connection": "keep-alive, Upgrade",
    "sec_websocket_version": "13",
    "sec_websocket_key": KEY,
}


@pytest.mark.parametrize(
    ("protocols", "lines"),
    [(None, False), ("multichat.lines", True), ("chat, multichat.lines", True), ("chat", False)],
)
def test_a_handshake_is_accepted(protocols: str | None, lines: bool) -> None:
    fields = UPGRADE if protocols is None else UPGRADE | {"sec_websocket_protocol": protocols}
    handshake = shake_hands(request("/ws", **fields), date="now")
    digest = hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    head = handshake.response.decode().split("\r\n")
    assert head[0] == "HTTP/1.1 101 Switching Protocols"
    assert f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}" in head
    assert ("Sec-WebSocket-Protocol: multichat.lines" in head) is lines
    assert handshake.lines is lines
    assert handshake.response.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"upgrade": "h2c"}, 426),
        ({"connection": "close"}, 426),
        ({"sec_websocket_version": "8"}, 426),
        ({"sec_websocket_key": ""}, 400),
        ({"sec_websocket_key": "abc"}, 400),
        ({"sec_websocket_key": base64.b64encode(bytes(15)).decode()}, 400),
        ({"sec_websocket_key": KEY + "!"}, 400),
        ({"content_length": "3"}, 400),
        ({"transfer_encoding": "chunked"}, 400),
    ],
)
def test_other_handshakes_are_refused(change: dict[str, str], status: int) -> None:
    with pytest.raises(HttpError) as refused:
        shake_hands(request("/ws", **(UPGRADE | change)), date="now")
    assert refused.value.status == status
    if status == 426:
        assert refused.value.headers["Sec-WebSocket-Version"] == "13"


# --- Files ----------------------------------------------------------------------------------------


def test_only_pages_with_tls_have_the_field_that_needs_it() -> None:
    files = PageFiles(FILES)
    field = "Cross-Origin-Opener-Policy"  # else browsers log an error at each load
    assert field not in files.answer(request("/"), "http").headers
    assert files.answer(request("/"), "https").headers[field] == "same-origin"


def test_files_have_types_validators_and_the_policy() -> None:
    files = PageFiles(FILES)
    answered = {path: files.answer(request(path)) for path in ("/", "/main.js", "/parts/a.css")}
    assert [each.headers["Content-Type"] for each in answered.values()] == [
        "text/html; charset=utf-8",
        "text/javascript; charset=utf-8",
        "text/css; charset=utf-8",
    ]
    assert files.answer(request("/icon.bin")).headers["Content-Type"] == "application/octet-stream"
    for response in answered.values():
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "frame-ancestors 'none'; require-trusted-types-for 'script'" in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["ETag"].startswith('"')


def test_a_file_that_has_not_changed_is_not_sent_again() -> None:
    files = PageFiles(FILES)
    tag = files.answer(request("/")).headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        response = files.answer(request("/", if_none_match=known))
        assert (response.status, response.body) == (304, b"")
        assert response.headers["ETag"] == tag
        assert "Content-Security-Policy" in response.headers
    assert files.answer(request("/", if_none_match='"other"')).status == 200


# --- The site -------------------------------------------------------------------------------------

TOKEN = "0123456789abcdef"


def route(asked: Request, *, url: str | None = None, scheme: str = "http") -> Route:
    config = WebConfig(url=url, webhook_tokens=(TOKEN,))
    return Site(PageFiles(FILES), config, ["box"]).route(asked, scheme)


def status(asked: Request, *, url: str | None = None) -> int:
    with pytest.raises(HttpError) as refused:
        route(asked, url=url)
    return refused.value.status


def test_the_purpose_of_each_path() -> None:
    page = route(request("/"))
    assert isinstance(page, Response)
    assert page.body == b"<p>page"
    assert isinstance(route(request("/index.html", "HEAD")), Response)
    assert route(request("/ws")) == Upgrade()
    assert route(request("/live")) is Health.LIVE
    assert route(request("/ready")) is route(request("/healthz", "HEAD")) is Health.READY
    assert route(request("/rooms/café/messages", "POST")) == Post("café")


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/nothing", "GET", 404),
        ("/rooms/lobby", "POST", 404),
        ("/rooms//messages", "POST", 404),
        ("/rooms/a/b/messages", "POST", 404),
        ("/", "POST", 405),
        ("/main.js", "DELETE", 405),
        ("/ws", "POST", 405),
        ("/healthz", "POST", 405),
        ("/live", "POST", 405),
        ("/live/", "GET", 404),
        ("/metrics", "GET", 404),
        ("/rooms/lobby/messages", "GET", 405),
        ("/rooms/lobby/messages", "OPTIONS", 405),
        ("/nothing", "TRACE", 405),
        ("/", "CONNECT", 405),
    ],
)
def test_other_addresses_and_methods_are_refused(path: str, method: str, expected: int) -> None:
    assert status(request(path, method)) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/../../etc/passwd",
        "//etc/passwd",
        "/./index.html",
        "/parts/../index.html",
        "/parts\\..\\index.html",
        "/index.html/",
        "/index.html\0",
        "/parts",
        "/parts/",
        "/INDEX.HTML",
    ],
)
def test_only_the_pages_files_can_be_requested(path: str) -> None:
    assert status(request(path)) == 404


def test_a_request_for_another_host_is_misdirected() -> None:
    for path, method in (("/", "GET"), ("/ws", "GET"), ("/rooms/lobby/messages", "POST")):
        assert status(request(path, method, host="evil.example")) == 421
        assert status(request(path, method, host="chat.example")) == 421
    chat = request("/ws", host="chat.example")
    assert route(chat, url="https://chat.example/") == Upgrade()
    for path in "/live", "/ready", "/healthz":
        assert isinstance(route(request(path, host="10-0-0-7.pods.cluster")), Health)
    assert status(request("/", host="local host")) == 400


def test_a_page_from_elsewhere_cannot_connect() -> None:
    evil = {"origin": "http://evil.example"}
    assert status(request("/ws", **evil)) == 403
    assert status(request("/rooms/lobby/messages", "POST", **evil)) == 403
    assert status(request("/ws", origin="null")) == 403
    assert route(request("/ws", origin="http://localhost:8080")) == Upgrade()
    own = request("/ws", origin="https://localhost:8080")
    assert route(own, scheme="https") == Upgrade()
    assert status(own) == 403
    assert route(own, url="https://localhost:8080") == Upgrade()


def test_a_page_can_ask_why_its_websocket_is_refused() -> None:
    answer = route(request("/ws", "OPTIONS", origin="http://localhost:8080"))
    assert isinstance(answer, Response)
    assert answer.status == 200
    assert not any("access-control" in name.lower() for name in answer.headers)
    with pytest.raises(HttpError, match="--web-url") as refused:
        route(request("/ws", "OPTIONS", origin="http://evil.example"))
    assert refused.value.status == 403


def test_without_tokens_there_is_no_webhook() -> None:
    site = Site(PageFiles({}), WebConfig())
    with pytest.raises(HttpError, match="has no webhook"):
        site.route(request("/rooms/lobby/messages", "POST"), "http")


@pytest.mark.parametrize("token", ["", "short", "0123456789abcde", "with space in it", "ü" * 20])
def test_a_token_that_can_be_guessed_or_sent_wrongly_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token has"):
        WebConfig(webhook_tokens=(token,))
    assert TOKEN not in repr(WebConfig(webhook_tokens=(TOKEN,)))
