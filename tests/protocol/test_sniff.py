"""Clients that speak another protocol are recognized by their first bytes."""

import pytest

from multichat.protocol.sniff import NO_TLS, sniff_bytes, sniff_line

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "line", ["GET / HTTP/1.1", "POST /a?b HTTP/1.0", "OPTIONS * HTTP/2", "PROPFIND /x HTTP/2"]
)
def test_http_gets_an_answer_that_a_browser_shows(line: str) -> None:
    other = sniff_line(line)
    assert other is not None
    assert other.reason == "the client speaks HTTP; this is a chat server"
    head, _, body = other.answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400 ")
    assert body.count(b"\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "GET it",
        "get / HTTP/1.1",
        "hello",
        "GET / HTTP/1.1 now",
        "GET / HTTP/1.1 is what browsers say",
        "PROXY",
        "PROXY TCP4 is a header",
        "",
    ],
)
def test_other_lines_are_chat(line: str) -> None:
    assert sniff_line(line) is None


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01", bytearray(b"\x16\x03\x01"), b"\x16\x03"]
)
def test_tls_gets_a_goodbye_in_plain_text(data: bytes | bytearray) -> None:
    other = sniff_bytes(data)
    assert other is not None
    assert other.reason == "the client uses TLS, which this port does not support"
    assert other.answer.startswith(b"[Server] goodbye: this server does not use TLS")
    assert other != NO_TLS


@pytest.mark.parametrize("data", [b"\x16", b"hello", b"", b"\x16\x04"])
def test_other_bytes_are_not_tls(data: bytes) -> None:
    assert sniff_bytes(data) is None


PROXIED = "its load balancer sends a PROXY header: give the balancer's address to --proxy"


@pytest.mark.parametrize(
    "line", ["PROXY UNKNOWN", "PROXY TCP4 1.2.3.4 5.6.7.8 9 10", "PROXY TCP6 ::1 ::1 9 9000"]
)
def test_a_proxy_header_of_version_1_is_recognized(line: str) -> None:
    other = sniff_line(line)
    assert other is not None
    assert other.reason == PROXIED
    assert other.answer.startswith(
        b"[Server] goodbye: this server does not expect the PROXY header"
    )


def test_a_proxy_header_of_version_2_is_recognized() -> None:
    other = sniff_bytes(b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")
    assert other is not None
    assert other.reason == PROXIED
    assert sniff_bytes(b"\r\n\r\nhello\n") is None
