"""The client behind a proxy: its address and scheme, from trusted proxies only.  Pure.

Each proxy appends to `X-Forwarded-For` the address from which it was connected.  So the list is
read backwards, past the addresses of trusted proxies: the first other one is the client.  The
client may have invented everything before it.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple, TypeAlias

__all__ = ["Peer", "Proxies"]

_Address: TypeAlias = IPv4Address | IPv6Address


class Peer(NamedTuple):
    """The client of a request: its *host*, an address, and the *scheme* that it uses.

    *scheme* is empty if no proxy says it.  *is_forwarded* says that a trusted proxy has sent the
    request.
    """

    host: str
    scheme: str = ""
    is_forwarded: bool = False


class Proxies:
    """The proxies at *addresses*, which may be networks; raises `ValueError`."""

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        for each in addresses:
            try:
                self._networks.append(ip_network(each, strict=False))
            except ValueError:
                raise ValueError(
                    f"{each!r} is not an address such as 10.0.0.7 or 10.0.0.0/24"
                ) from None

    def trusts(self, host: str) -> bool:
        """Return whether *host*, an address, is one of them."""
        address = _parse(host)
        return address is not None and self._has(address)

    def _has(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)

    def client(self, host: str, forwarded: Sequence[str], protocols: Sequence[str]) -> Peer:
        """Return the client of a request from *host*.

        *forwarded* are the values of `X-Forwarded-For` in their order, *protocols* those of
        `X-Forwarded-Proto`.  If a proxy passes on something that is not an address, the proxy
        itself is the client: no limit applies, as to its own requests.
        """
        if not self.trusts(host):
            return Peer(host)
        named = [each for value in protocols for each in value.split(",")]
        scheme = named[-1].strip().lower() if named else ""
        client = host
        for each in reversed([each for value in forwarded for each in value.split(",")]):
            address = _parse(_without_port(each.strip()))
            if address is None:
                break
            client = str(address)
            if not self._has(address):
                break
        return Peer(client, scheme if scheme in ("http", "https") else "", is_forwarded=True)


def _parse(host: str) -> _Address | None:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _without_port(text: str) -> str:
    """Return the address in *text*, which some proxies write with a port."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, _, _ = text.partition(":")
    return host if text.count(":") == 1 else text
