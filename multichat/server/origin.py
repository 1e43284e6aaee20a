"""The origin of a connection, for limits by address.  Pure."""

from functools import lru_cache
from ipaddress import IPv6Network
from typing import NamedTuple

from multichat.server.bans import host_of, network_of_host

__all__ = ["Origin"]

# Many providers give a /48 to a customer that asks for it.  Loopback and link-local addresses are
# in no customer's /64; see `network_of`.
_SITE_SHIFT = 128 - 48
_CUSTOMER_PREFIX = 64


class Origin(NamedTuple):
    """Where a connection comes from: an *address* in a *site*.

    The address is an IPv4 address, an IPv6 /64, or a user of this machine (a Unix socket).  The
    site is the /48 of an IPv6 address, and otherwise the address itself.
    """

    address: str
    site: str
    is_loopback: bool = False  # this machine, by TCP
    is_user: bool = False

    @classmethod
    def of(cls, address: str, user: int | None = None) -> "Origin | None":
        """Return the origin of a peer's *address*, or of a local *user*; None without either.

        For the form of *address* see `multichat.server.bans.network_of`.
        """
        if user is not None:
            local = f"user {user}"
            return cls(local, local, is_user=True)
        return _origin_of_host(host_of(address))


# Parsing an address takes longer than any other step of a new connection, and many connections come
# from one address.
@lru_cache(maxsize=1024)
def _origin_of_host(host: str) -> Origin | None:
    network = network_of_host(host)
    if network is None:
        return None
    name = site = str(network)
    if isinstance(network, IPv6Network) and network.prefixlen == _CUSTOMER_PREFIX:
        site = f"{int(network.network_address) >> _SITE_SHIFT:x}/48"
    return Origin(name, site, network.is_loopback)
