"""Which hosts a request may be for: the rule against DNS rebinding.  Pure.

The owner of a foreign web page can make its host name resolve to this server, and the page would
then have the same origin as the server.  Its requests still name that host.  So a request is
answered only if it is for an address, which no name server can redirect, for `localhost`, or for a
name that the server knows to be its own.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

__all__ = ["Host", "Hosts", "own_names"]

# A name, an IPv4 address or an IPv6 address in brackets, and perhaps a port.  Browsers send names
# in ASCII.
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")


class Host(NamedTuple):
    """The value of a `Host` field: *name* in lower case without a final dot, and *port* if given.

    An IPv6 address has no brackets here.
    """

    name: str
    port: int | None
    is_address: bool

    @classmethod
    def parse(cls, text: str) -> "Host":
        """Return the host in *text*; raises `ValueError`."""
        found = _HOST.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not a host")
        bracketed, name, port = found.groups()
        number = int(port) if port else None
        if number is not None and not 0 < number < 1 << 16:
            raise ValueError(f"{text!r} has no valid port")
        if bracketed:
            return cls(str(IPv6Address(bracketed)), number, is_address=True)
        name = name.lower().removesuffix(".")
        if not name:
            raise ValueError(f"{text!r} is not a host")
        return cls(name, number, is_address=_is_ipv4(name))


def _is_ipv4(name: str) -> bool:
    try:
        IPv4Address(name)
    except ValueError:
        return False
    return True


class Hosts:
    """The hosts that requests may be for: every address, `localhost`, and *names*."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = {"localhost", *(name.lower().removesuffix(".") for name in names if name)}

    def allows(self, host: Host) -> bool:
        """Return whether a request for *host* is answered."""
        return host.is_address or host.name in self._names


def own_names(host_name: str) -> tuple[str, ...]:
    """Return the names of the machine *host_name*, including the short one and that of mDNS."""
    short = host_name.partition(".")[0]
    return tuple(dict.fromkeys((host_name, short, f"{short}.local"))) if short else ()
