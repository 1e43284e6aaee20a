"""Builds PROXY headers as a load balancer sends them, from the specification of HAProxy."""

import struct
from ipaddress import ip_address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

_TLS = 0x20
_LOCAL, _PROXY = 0x20, 0x21


def v1(source: str, port: int = 50000, *, to: str | None = None, to_port: int = 9000) -> bytes:
    """Return a header in text for a client at *source*."""
    version = ip_address(source).version
    to = to or ("127.0.0.1" if version == 4 else "::1")
    return f"PROXY TCP{version} {source} {to} {port} {to_port}\r\n".encode()


def tlv(kind: int, value: bytes) -> bytes:
    """Return an extension of version 2."""
    return struct.pack("!BH", kind, len(value)) + value


def tls_tlv(*, client_flags: int = 1, verify: int = 1, version: str = "TLSv1.3") -> bytes:
    """Return the extension that says that the client uses TLS (PP2_TYPE_SSL)."""
    return tlv(_TLS, struct.pack("!BI", client_flags, verify) + tlv(0x21, version.encode()))


def v2(source: str, port: int = 50000, *, tls: bool = False, more: bytes = b"") -> bytes:
    """Return a binary header for a client at *source*; *more* are extensions."""
    here = ip_address(source)
    to = ip_address("127.0.0.1" if here.version == 4 else "::1")
    family = 0x11 if here.version == 4 else 0x21
    addresses = here.packed + to.packed + struct.pack("!HH", port, 9000)
    return packet(_PROXY, family, addresses + (tls_tlv() if tls else b"") + more)


def v2_local() -> bytes:
    """Return the header of a connection of the balancer's own, such as a health check."""
    return packet(_LOCAL, 0, b"")


def packet(command: int, family: int, rest: bytes) -> bytes:
    """Return a header of version 2 with any contents."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest
