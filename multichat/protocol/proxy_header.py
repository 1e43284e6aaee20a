"""The PROXY header, in which a load balancer names the client of a connection.  Pure.

Versions 1 (text) and 2 (binary), as HAProxy specifies them.  The header precedes everything else,
including TLS; no byte after it is consumed.

Of version 2, the extension about TLS is read; the others are skipped, and so is the checksum.
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

__all__ = ["MAX_PEEK", "BadProxyHeader", "HeaderReader", "ProxyHeader"]

# The longest header of version 1, with its line end.
_MAX_LINE = 107

# Of version 2, after its first 16 bytes.  Addresses and what balancers add are below 536 bytes; a
# client's certificate in an extension takes more.
_MAX_EXTENDED = 4096

# How many bytes to peek at, so that a header is read in few steps.
MAX_PEEK = 16 + 536

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED_BYTES = 16

_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?"
    rb"|TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (\d{1,5}) (\d{1,5}))"
)

_LOCAL, _PROXY = 0, 1

# The families of addresses, and the bytes of source and destination: none, IPv4, IPv6, Unix.
_IPV4, _IPV6 = 1, 2
_ADDRESS_BYTES = {0: 0, _IPV4: 12, _IPV6: 36, 3: 216}

# PP2_TYPE_SSL, and the flag in its first byte: the client is connected over TLS.
_TLS = 0x20
_CLIENT_TLS = 0x01


_NONE = "no PROXY header"
_INVALID = "an invalid PROXY header"


class BadProxyHeader(Exception):
    """The bytes are not a valid PROXY header."""


class ProxyHeader(NamedTuple):
    """The client of a connection, at *host* and *port*.

    *host* is empty if the balancer does not name it.  *is_local* means that the connection is the
    balancer's own, such as a health check; *uses_tls* that the client uses TLS up to the balancer.
    """

    host: str = ""
    port: int = 0
    is_local: bool = False
    uses_tls: bool = False


class HeaderReader:
    """Reads the header at the beginning of a connection, however it is split.

    `header` is None until it is complete.
    """

    def __init__(self) -> None:
        self.header: ProxyHeader | None = None
        self._data = b""

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been fed."""
        return not self._data

    def count(self, seen: bytes) -> int:
        """Return how many of the next bytes belong to the header, at least 1.

        *seen* are those bytes, as far as they are known.
        """
        data = self._data + seen
        if data[:1] == b"P":
            end = data.find(b"\n") + 1
            return max(1, end - len(self._data) if end else len(seen))
        if data[:1] == _SIGNATURE[:1]:
            return max(1, min(self._length(data) - len(self._data), len(seen)))
        return 1

    def _length(self, data: bytes) -> int:
        """Return the length of a binary header, as far as *data* tells it."""
        if len(data) < _FIXED_BYTES:
            return _FIXED_BYTES
        return _FIXED_BYTES + int.from_bytes(data[14:16], "big")

    def feed(self, data: bytes | bytearray) -> None:
        """Add *data*, as many bytes as `count` has allowed; raises `BadProxyHeader`."""
        self._data += data
        if self._data[:1] == b"P":
            self._read_text()
        else:
            self._read_binary()

    def _read_text(self) -> None:
        data = self._data
        start = b"PROXY "
        if not data.startswith(start[: len(data)]):
            raise BadProxyHeader(_NONE)
        is_whole = data.endswith(b"\n")
        if len(data) > _MAX_LINE or (len(data) == _MAX_LINE and not is_whole):
            raise BadProxyHeader(f"a PROXY header of more than {_MAX_LINE} bytes")
        if not is_whole:
            return
        line = _LINE.fullmatch(data.removesuffix(b"\r\n"))
        if line is None:
            raise BadProxyHeader(_INVALID)
        version, source, target, *ports = line.groups()
        if version is None:
            self.header = ProxyHeader()
            return
        try:
            addresses = [ip_address(each.decode()) for each in (source, target)]
        except ValueError:
            raise BadProxyHeader(_INVALID) from None
        port, target_port = map(int, ports)
        if {each.version for each in addresses} != {int(version)} or max(port, target_port) > 65535:
            raise BadProxyHeader(_INVALID)
        self.header = ProxyHeader(_host(addresses[0]), port)

    def _read_binary(self) -> None:
        data = self._data
        if not data.startswith(_SIGNATURE[: len(data)]):
            raise BadProxyHeader(_NONE)
        if len(data) < _FIXED_BYTES:
            return
        version, command = divmod(data[12], 16)
        family = data[13] >> 4
        if version != 2 or command not in (_LOCAL, _PROXY):
            raise BadProxyHeader("a PROXY header of an unknown version")
        length = self._length(data)
        if length > _FIXED_BYTES + _MAX_EXTENDED:
            raise BadProxyHeader(f"a PROXY header of more than {_MAX_EXTENDED} bytes")
        if len(data) < length:
            return
        rest = data[_FIXED_BYTES:length]
        if command == _LOCAL:
            self.header = ProxyHeader(is_local=True)
            return
        if family not in _ADDRESS_BYTES or len(rest) < _ADDRESS_BYTES[family]:
            raise BadProxyHeader(_INVALID)
        host, port = "", 0
        if family in (_IPV4, _IPV6):
            size = 4 if family == _IPV4 else 16
            host = _host(ip_address(rest[:size]))
            port = int.from_bytes(rest[2 * size : 2 * size + 2], "big")
        self.header = ProxyHeader(host, port, uses_tls=_uses_tls(rest[_ADDRESS_BYTES[family] :]))


def _uses_tls(extensions: bytes) -> bool:
    """Return whether one of the *extensions* says that the client uses TLS."""
    uses_tls = False
    while extensions:
        if len(extensions) < 3:
            raise BadProxyHeader(_INVALID)
        kind, length = extensions[0], int.from_bytes(extensions[1:3], "big")
        value, extensions = extensions[3 : 3 + length], extensions[3 + length :]
        if len(value) < length:
            raise BadProxyHeader(_INVALID)
        if kind == _TLS:
            if length < 5:
                raise BadProxyHeader(_INVALID)
            uses_tls = bool(value[0] & _CLIENT_TLS)
    return uses_tls


def _host(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
