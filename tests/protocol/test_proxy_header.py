"""PROXY headers: both versions, in any pieces, and bytes that are none."""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multichat.protocol.proxy_header import BadProxyHeader, HeaderReader, ProxyHeader
from tests.support.proxy_headers import SIGNATURE, packet, tlv, v1, v2, v2_local

pytestmark = pytest.mark.unit


def read(data: bytes, sizes: list[int] | None = None) -> tuple[ProxyHeader | None, bytes]:
    """Read a header from a stream that shows *sizes* bytes at once; return the rest, too."""
    reader, position = HeaderReader(), 0
    steps = iter(sizes or [])
    while reader.header is None and position < len(data):
        seen = data[position : position + next(steps, 552)]
        count = reader.count(seen)
        assert 1 <= count <= len(seen)
        reader.feed(data[position : position + count])
        position += count
    return reader.header, data[position:]


ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6)
SIZES = st.lists(st.integers(1, 40))
PORTS = st.integers(0, 65535)
MORE = st.lists(st.builds(tlv, st.integers(0x21, 0xFF), st.binary(max_size=60)), max_size=4)


def host(address: IPv4Address | IPv6Address) -> str:
    return str(getattr(address, "ipv4_mapped", None) or address)


@given(ADDRESSES, PORTS, SIZES, st.binary(max_size=30))
def test_version_1(address: Any, port: int, sizes: list[int], behind: bytes) -> None:
    header, rest = read(v1(str(address), port) + behind, sizes)
    assert header == ProxyHeader(host(address), port)
    assert rest == behind


@given(ADDRESSES, PORTS, st.booleans(), MORE, SIZES, st.binary(max_size=30))
def test_version_2(
    address: Any, port: int, tls: bool, more: list[bytes], sizes: list[int], behind: bytes
) -> None:
    data = v2(str(address), port, tls=tls, more=b"".join(more)) + behind
    header, rest = read(data, sizes)
    assert header == ProxyHeader(host(address), port, uses_tls=tls)
    assert rest == behind


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (b"PROXY UNKNOWN\r\n", ProxyHeader()),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", ProxyHeader()),
        (v2_local(), ProxyHeader(is_local=True)),
        (packet(0x20, 0x11, v2("192.0.2.7")[16:]), ProxyHeader(is_local=True)),
        (packet(0x21, 0x00, b""), ProxyHeader()),
        (packet(0x21, 0x31, b"/run/haproxy".ljust(216, b"\0")), ProxyHeader()),
        (v1("::ffff:192.0.2.7", 7), ProxyHeader("192.0.2.7", 7)),
        (v2("192.0.2.7", more=tlv(0x20, b"\0" * 5)), ProxyHeader("192.0.2.7", 50000)),
        (v2("192.0.2.7", more=tlv(0x20, b"\xfe" * 5)), ProxyHeader("192.0.2.7", 50000)),
    ],
)
def test_other_headers(data: bytes, header: ProxyHeader) -> None:
    assert read(data + b"behind") == (header, b"behind")
    assert read(data + b"behind", [1] * 1000) == (header, b"behind")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "no PROXY header"),
        (b"\x16\x03\x01", "no PROXY header"),
        (b"PUT / HTTP/1.1\r\n", "no PROXY header"),
        (b"PROXX", "no PROXY header"),
        (b"\r\nhello", "no PROXY header"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\n", "an invalid PROXY header"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "an invalid PROXY header"),
        (b"PROXY TCP6 192.0.2.7 192.0.2.8 1 2\r\n", "an invalid PROXY header"),
        (b"PROXY TCP4 192.0.2.7 ::1 1 2\r\n", "an invalid PROXY header"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 1 65536\r\n", "an invalid PROXY header"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 1\r\n", "an invalid PROXY header"),
        (b"PROXY TCP4  192.0.2.7 192.0.2.8 1 2\r\n", "an invalid PROXY header"),
        (b"PROXY TCP4 192.0.2.999 192.0.2.8 1 2\r\n", "an invalid PROXY header"),
        (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "an invalid PROXY header"),
        (b"PROXY \r\n", "an invalid PROXY header"),
        (b"PROXY UNKNOWN " + b"x" * 200, "more than 107 bytes"),
        (b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n", "more than 107 bytes"),
        (SIGNATURE + b"\x11\x11\0\0", "an unknown version"),
        (SIGNATURE + b"\x22\x11\0\0", "an unknown version"),
        (packet(0x21, 0x11, b"\0" * 11), "an invalid PROXY header"),
        (packet(0x21, 0x21, b"\0" * 35), "an invalid PROXY header"),
        (packet(0x21, 0x41, b"\0" * 35), "an invalid PROXY header"),
        (packet(0x21, 0x11, b"\0" * 5000), "more than 4096 bytes"),
        (SIGNATURE + b"\x21\x11\xff\xff", "more than 4096 bytes"),
        (v2("192.0.2.7", more=b"\x20\0"), "an invalid PROXY header"),
        (v2("192.0.2.7", more=b"\x20\0\x05abcd"), "an invalid PROXY header"),
        (v2("192.0.2.7", more=tlv(0x20, b"\x01")), "an invalid PROXY header"),
    ],
)
def test_bytes_that_are_not_a_header(data: bytes, reason: str) -> None:
    for sizes in [], [1] * 6000, [5] * 1200:
        with pytest.raises(BadProxyHeader, match=reason):
            read(data, sizes)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda rest: SIGNATURE + rest), SIZES)
@example(SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 0), [])
def test_garbage_raises_only_bad_proxy_header(data: bytes, sizes: list[int]) -> None:
    try:
        read(data, sizes)
    except BadProxyHeader as error:
        assert str(error)  # noqa: PT017


@given(SIZES, st.integers(0, 200))
def test_an_incomplete_header_gives_no_result_yet(sizes: list[int], cut: int) -> None:
    for data in v1("192.0.2.7"), v2("2001:db8::1", tls=True), v2_local():
        assert read(data[: min(cut, len(data) - 1)], sizes) == (None, b"")
