"""Addresses of servers: parsing, and whether one is this machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.protocol.address import is_loopback, parse_port, split_address

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chat.example", ("chat.example", None)),
        ("chat.example:9000", ("chat.example", 9000)),
        ("127.0.0.1", ("127.0.0.1", None)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("::1", ("::1", None)),
        ("::1:9000", ("::1:9000", None)),  # an address, all of it
        ("[::1]", ("::1", None)),
        ("[::1]:65535", ("::1", 65535)),
        ("fe80::1%eth0", ("fe80::1%eth0", None)),
        ("[fe80::1%eth0]:9000", ("fe80::1%eth0", 9000)),
        ("::ffff:192.0.2.1", ("::ffff:192.0.2.1", None)),
        ("bücher.example:9000", ("bücher.example", 9000)),
    ],
)
def test_an_address_may_contain_a_port(text: str, expected: tuple[str, int | None]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' has no host"),
        (" ", "' ' has no host"),
        (":9000", "':9000' has no host"),
        ("host:", "'' is not a port: 1 to 65535"),
        ("host:0", "'0' is not a port"),
        ("host:65536", "'65536' is not a port"),
        ("host:-1", "'-1' is not a port"),
        ("host:٣", "is not a port"),
        ("http://host", "'//host' is not a port"),
        ("http://host:9000", "is not an address such as chat.example:9000"),
        ("a:b:c", "a:b:c is not an address such as chat.example:9000 or"),
        ("[::1", r"\[::1 is not an address such as \[::1\]:9000"),
        ("[::1]9000", "is not an address"),
        ("[chat.example]:9000", "is not an address"),
        ("[]:9000", "is not an address"),
        ("[::1]:", "'' is not a port"),
    ],
)
def test_an_invalid_address_is_an_error_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        split_address(text)


@given(st.integers(1, 65535), st.from_regex(r"[a-z0-9.-]+", fullmatch=True))
def test_host_and_port_are_parsed_back(port: int, host: str) -> None:
    assert split_address(f"{host}:{port}") == (host, port)
    assert parse_port(str(port)) == port


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LocalHost.", True),
        ("chat.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("fe80::1%eth0", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_only_an_address_that_is_certainly_this_machine_is_loopback(
    host: str, expected: bool
) -> None:
    assert is_loopback(host) is expected
