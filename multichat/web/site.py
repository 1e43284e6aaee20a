"""The site: which requests are allowed, and what each path on the web port is for.  Pure.

`/` and the page's files, `/ws`, `/live`, `/ready` (also called `/healthz`), and
`/rooms/ROOM/messages`.  All links are relative: a proxy may have the site under a prefix, which it
strips.
"""

import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from multichat.web.config import WebConfig
from multichat.web.hosts import Host, Hosts
from multichat.web.http import HttpError, Request, Response
from multichat.web.origins import WebAddress, is_own_origin
from multichat.web.page_files import PageFiles

__all__ = [
    "HEALTH",
    "WEBSOCKET",
    "Health",
    "Post",
    "Route",
    "Site",
    "Upgrade",
    "check_method",
    "requested_host",
]

WEBSOCKET = "/ws"
_MESSAGES = re.compile("/rooms/([^/]+)/messages")
_PAGE_METHODS = ("GET", "HEAD")


class Upgrade(NamedTuple):
    """A request for a WebSocket."""


class Post(NamedTuple):
    """A message is posted to *room*, as its name is written."""

    room: str


class Health(Enum):
    """A request for the server's health: whether it runs, or whether it can take more clients."""

    LIVE = auto()
    READY = auto()


HEALTH = {"/live": Health.LIVE, "/ready": Health.READY, "/healthz": Health.READY}
"""The paths for the server's health, also on the port of the metrics."""


Route: TypeAlias = Response | Upgrade | Post | Health
"""What a request is for."""


class Site:
    """The site with the files of *page*, on a machine with these *names*; see `WebConfig`."""

    def __init__(self, page: PageFiles, config: WebConfig, names: Iterable[str] = ()) -> None:
        self._page = page
        self._configured = None if config.url is None else WebAddress.parse(config.url)
        self._has_webhook = bool(config.webhook_tokens)
        self._hosts = Hosts([*names, *([self._configured.host] if self._configured else [])])

    def route(self, request: Request, scheme: str) -> Route:
        """Return what *request*, which came over *scheme*, is for; raises `HttpError`."""
        path, method = request.path, request.method
        if (health := HEALTH.get(path)) is not None:  # under whatever name the server is known
            check_method(request, *_PAGE_METHODS)
            return health
        host = self._host(request)
        if path in self._page:
            check_method(request, *_PAGE_METHODS)
            return self._page.answer(request, scheme)
        if path == WEBSOCKET:
            self._check_origin(request, WebAddress.of(scheme, host))
            check_method(request, "GET", "OPTIONS")
            if request.method == "OPTIONS":
                # A page asks in this way why its WebSocket failed, which the browser does not tell
                # it.  Not with GET, for which the browser sends no origin.
                return Response.of_text(200, "a WebSocket", {"Allow": "GET, OPTIONS"})
            return Upgrade()
        if (found := _MESSAGES.fullmatch(path)) is not None:
            if not self._has_webhook:
                raise HttpError(404, "this server has no webhook: see --webhook-token-file")
            check_method(request, "POST")
            self._check_origin(request, WebAddress.of(scheme, host))
            return Post(found[1])
        if method not in (*_PAGE_METHODS, "POST"):
            raise HttpError(405, f"there is no {method} here", {"Allow": "GET, HEAD"})
        raise HttpError(404, "there is nothing here")

    def _host(self, request: Request) -> Host:
        host = requested_host(request)
        if host is None:
            raise HttpError(400, "the request has no Host")
        if not self._hosts.allows(host):
            raise HttpError(
                421,
                f"this server is not known as {host.name}: if it is, its operator can say so with "
                f"--web-url",
                logged=f"its page was asked for as {host.name}; if that is right, set --web-url",
            )
        return host

    def _check_origin(self, request: Request, address: WebAddress) -> None:
        origin = request.one("origin")
        if origin is None or is_own_origin(origin, address, self._configured):
            return
        raise HttpError(
            403,
            "a page from elsewhere cannot connect here: open the server's own page; if this is it, "
            "its operator can set --web-url to the address that you have opened",
            logged="a page of another origin; if it is this server's behind a proxy, set --web-url",
        )


def requested_host(request: Request) -> Host | None:
    """Return the host that *request* is for; None if it has no `Host`.  Raises `HttpError`."""
    text = request.one("host")
    try:
        return None if text is None else Host.parse(text)
    except ValueError:
        raise HttpError(400, "the Host of the request is invalid") from None


def check_method(request: Request, *allowed: str) -> None:
    """Raise `HttpError` unless the method of *request* is one of *allowed*."""
    if request.method not in allowed:
        raise HttpError(405, f"there is no {request.method} here", {"Allow": ", ".join(allowed)})
