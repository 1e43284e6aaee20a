"""Connections that a load balancer passes on: their PROXY header, and whose they are.

The header is read in the connection's own task while that has an admission slot, within
`ServerConfig.handshake_seconds`, and before TLS.  Only the addresses in `ServerConfig.proxies` send
one; from everybody else it is what any other line is.
"""

from dataclasses import dataclass

import trio

from multichat.net import transport
from multichat.net.turns import Meter
from multichat.protocol.messages import Goodbye
from multichat.protocol.proxy_header import (
    MAX_PEEK,
    BadProxyHeader,
    HeaderReader,
    ProxyHeader,
)
from multichat.protocol.sniff import TLS_RECORD
from multichat.server.admission import Admission, AdmissionRefused, PendingSlot
from multichat.server.bans import host_of
from multichat.server.config import ServerConfig
from multichat.server.origin import Origin
from multichat.server.refusals import RefusedFor
from multichat.web.forwarded import Proxies

__all__ = ["Arrival", "LoadBalancers"]


@dataclass(slots=True)
class Arrival:
    """Whose a connection is, as far as is known.

    It is counted for *counted*, and for limits it comes from *origin*.  *is_private* says that
    nobody on the network can read it, *is_encrypted* that the client uses TLS, to this server or to
    the balancer.
    """

    address: str
    origin: Origin | None
    counted: Origin | None
    is_private: bool
    is_encrypted: bool = False
    too_many: str = ""


class LoadBalancers:
    """The load balancers of a server, and what their headers change."""

    def __init__(self, config: ServerConfig, admission: Admission) -> None:
        self._proxies = Proxies(config.proxies)
        self._config, self._admission = config, admission

    def sends_header(self, address: str) -> bool:
        """Return whether connections from *address* begin with a PROXY header."""
        return bool(self._config.proxies) and self._proxies.trusts(host_of(address))

    async def receive(
        self,
        stream: trio.abc.Stream,
        arrival: Arrival,
        slot: PendingSlot,
        meter: Meter,
        *,
        of_page: bool = False,
    ) -> ProxyHeader | None:
        """Read the header, and note in *arrival* whose connection it is.

        *of_page* tells that it is to the port of the web page.  Counts the connection for its
        client.  Returns None if the balancer has closed it without a header, as for a health check;
        raises `AdmissionRefused`.
        """
        seconds = self._config.handshake_seconds
        header: ProxyHeader | None = None
        with trio.move_on_after(seconds) as in_time:
            try:
                header = await _read_header(stream, of_page=of_page)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
        if in_time.cancelled_caught:
            raise _refusal(f"no PROXY header in {seconds:g} s", of_page=of_page)
        if header is None or not header.host:
            return header
        arrival.address = transport.format_address((header.host, header.port))
        arrival.is_encrypted = header.uses_tls
        # A client on the balancer's own machine is as private as the way from there.
        origin = Origin.of(arrival.address)
        is_local = origin is not None and origin.is_loopback
        arrival.is_private = header.uses_tls or (is_local and arrival.is_private)
        self._admission.remove_connection(arrival.counted)
        arrival.origin = arrival.counted = origin
        arrival.too_many = self._admission.add_connection(origin)
        slot.count_for(origin)
        meter.end()
        meter.address = origin and origin.address
        await meter.take()
        return header


async def _read_header(stream: trio.abc.Stream, *, of_page: bool) -> ProxyHeader | None:
    """Return the header, and read no byte behind it; None at the end of input before it."""
    reader = HeaderReader()
    while reader.header is None:
        seen = await transport.peek(stream, MAX_PEEK)
        data = await transport.receive_some(stream, reader.count(seen))
        if not data:
            if reader.is_empty:
                return None
            raise AdmissionRefused(RefusedFor.PROXY_HEADER, "a PROXY header that breaks off")
        try:
            reader.feed(data)
        except BadProxyHeader as error:
            if data[:1] == TLS_RECORD:  # it would not understand a goodbye
                more = f"; {_OF_PAGE}" if of_page else ""
                reason = f"{error} before TLS (--proxy){more}"
                raise AdmissionRefused(RefusedFor.PROXY_HEADER, reason) from None
            raise _refusal(str(error), of_page=of_page) from None
    return reader.header


# What the operator can do.
_PAST_BALANCER = "if this is no load balancer, remove its address from --proxy"
_OF_PAGE = "if it is a health check, or HTTP without such a header, give its address to --web-proxy"


def _refusal(reason: str, *, of_page: bool) -> AdmissionRefused:
    words = (
        f"{reason}: this server takes you for its load balancer (--proxy): connect through that, "
        "or ask its operator"
    )
    advice = f"{_OF_PAGE}; {_PAST_BALANCER}" if of_page else _PAST_BALANCER
    return AdmissionRefused(RefusedFor.PROXY_HEADER, f"{reason}: {advice}", Goodbye(words))
