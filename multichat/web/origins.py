"""Which pages may connect: the rule against cross-site WebSockets.  Pure.

A browser lets every page open a WebSocket to every server, and sends the page's origin.  It must be
the server's own: the scheme, host and port of the request itself, or those of the address that the
operator has configured.  A program that is not a browser sends no origin, and may connect as it may
over TCP.
"""

from typing import NamedTuple
from urllib.parse import urlsplit

from multichat.web.hosts import Host

__all__ = ["WebAddress", "is_own_origin"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


class WebAddress(NamedTuple):
    """A scheme, a host and a port, and the *path* that was with them."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def of(cls, scheme: str, host: Host) -> "WebAddress":
        """Return that of a request for *host*."""
        return cls(scheme, host.name, host.port or _DEFAULT_PORTS[scheme])

    @classmethod
    def parse(cls, url: str) -> "WebAddress":
        """Return the address in *url*, such as `https://chat.example/`; raises `ValueError`."""
        try:
            parts = urlsplit(url)
            host = Host.parse(parts.netloc)
        except ValueError:
            raise ValueError(f"{url!r} is not an address such as https://chat.example/") from None
        if parts.scheme not in _DEFAULT_PORTS or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is not an address such as https://chat.example/")
        return cls.of(parts.scheme, host)._replace(path=parts.path)

    @property
    def origin(self) -> "WebAddress":
        """The same without a path."""
        return self._replace(path="")


def is_own_origin(origin: str, request: WebAddress, configured: WebAddress | None) -> bool:
    """Return whether a page of *origin* may make that *request*.

    *request* is the address to which it was sent, *configured* that of the operator, if any.
    """
    try:
        address = WebAddress.parse(origin)
    except ValueError:  # also `null`: a sandboxed frame, a file
        return False
    if address.path:
        return False
    return address == request or (configured is not None and address == configured.origin)
