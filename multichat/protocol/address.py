"""Parses addresses of servers: HOST, HOST:PORT, [IPV6]:PORT or an IPv6 address.  Pure."""

from ipaddress import IPv6Address, ip_address

__all__ = ["DEFAULT_PORT", "is_loopback", "parse_port", "split_address"]

_MAX_PORT = 65535

# The port of the specification's examples.
DEFAULT_PORT = 9000


def split_address(text: str) -> tuple[str, int | None]:
    """Return the host in *text*, and the port if there is one; raises `ValueError`.

    Text with several colons and no brackets is an IPv6 address: `::1:9000` has no port.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (rest and not rest.startswith(":")):
            raise ValueError(f"{text} is not an address such as [::1]:9000")
        return host, parse_port(rest[1:]) if rest else None
    if text.count(":") > 1:
        if not _is_ipv6(text):
            raise ValueError(f"{text} is not an address such as chat.example:9000 or [::1]:9000")
        return text, None
    host, colon, port = text.partition(":")
    if not host.strip():
        raise ValueError(f"{text!r} has no host")
    return host, parse_port(port) if colon else None


def parse_port(text: str) -> int:
    """Return *text* as a TCP port; raises `ValueError`."""
    if text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_PORT)):
        port = int(text)
        if 0 < port <= _MAX_PORT:
            return port
    raise ValueError(f"{text!r} is not a port: 1 to {_MAX_PORT}")


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether *host*, an address or a name, is certainly this machine."""
    if host.rstrip(".").lower().rpartition(".")[2] == "localhost":  # RFC 6761, section 6.3
        return True
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified
