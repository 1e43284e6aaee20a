"""Where a connection comes from, as far as limits are concerned.  Pure."""

from ipaddress import IPv6Network
from typing import NamedTuple

from multichat.bans import network_of

__all__ = ["Origin"]

# Many providers give a /48 to one customer who asks for it.  An address of this machine or link
# is in no /64 of a customer; see `network_of`.
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
        """Return the origin of a peer's *address* or of a local *user*; None without either.

        For the spelling of *address* see `network_of`.
        """
        network = network_of(address)
        if network is None:
            local = f"user {user}"
            return None if user is None else cls(local, local, is_user=True)
        name = site = str(network)
        if isinstance(network, IPv6Network) and network.prefixlen == _CUSTOMER_PREFIX:
            site = f"{int(network.network_address) >> _SITE_SHIFT:x}/48"
        return cls(name, site, network.is_loopback)
