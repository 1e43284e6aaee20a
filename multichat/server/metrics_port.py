"""The metrics port: `/metrics`, `/live` and `/ready`, over plain HTTP.

It is for the operator's machines, and separate from the web port, which strangers can reach.

Invariants:

1. At most `MAX_CONNECTIONS` are open; a newer one closes the oldest, so that idle connections
   cannot block others.
2. Each connection takes turns at the event loop like all others, and has the web port's deadlines.
3. A browser on this machine never shows the metrics to foreign pages: see `multichat.web.hosts`.
4. It serves until the server has ended; during a drain or shutdown, `/ready` reports that.
"""

import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from logging import WARNING
from typing import TYPE_CHECKING

import trio

from multichat.errors import lone_exception
from multichat.log import Log
from multichat.net import transport
from multichat.net.activation import describe
from multichat.net.listeners import FairListener, is_reachable_remotely
from multichat.net.turns import Meter, Turns, current_meter
from multichat.server.config import ServerConfig
from multichat.server.health import health_response
from multichat.server.http_io import http_date, read_head, send_response
from multichat.server.metrics import ProcessMetrics, make_registry, render
from multichat.server.origin import Origin
from multichat.web.hosts import Hosts, own_names
from multichat.web.http import HttpError, NotHttp, Request, RequestReader, Response
from multichat.web.site import HEALTH, check_method, requested_host

if TYPE_CHECKING:
    from multichat.server.server import Server

__all__ = ["MAX_CONNECTIONS", "MetricsPort", "open_metrics"]

# Some scrapers, some health checks, and a person with a browser.
MAX_CONNECTIONS = 16

METRICS = "/metrics"


@asynccontextmanager
async def open_metrics(
    server: "Server", turns: Turns, log: Log, listeners: Sequence[trio.SocketListener]
) -> AsyncGenerator[str]:
    """Serve the metrics of *server* on *listeners* while the block runs; closes the listeners.

    Logs and yields the URL.  *turns* are the server's.  Raises `ImportError` without the package
    `prometheus-client`.
    """
    served = MetricsPort(server, turns, log)
    address = describe(listeners[0].socket)
    url = f"http://{address}{METRICS}"
    log.line("start", f"Metrics at {url}")
    if any(map(is_reachable_remotely, listeners)):
        warning = "The metrics can be read from other machines, without a password"
        log.line("start", warning, WARNING)
    with lone_exception():
        async with trio.open_nursery() as nursery:
            fair = [FairListener(each, turns) for each in listeners]
            nursery.start_soon(trio.serve_listeners, served.handle, fair)
            yield url
            nursery.cancel_scope.cancel(reason="the server has ended")


class MetricsPort:
    """Answers the connections to the metrics port of *server*; *turns* are the server's.

    Raises `ImportError` without the package `prometheus-client`.
    """

    def __init__(self, server: "Server", turns: Turns, log: Log) -> None:
        self._server, self._turns, self._log = server, turns, log
        self._config: ServerConfig = server.config
        self._process = ProcessMetrics()
        self._registry = make_registry(server)
        self._registry.register(self._process)
        self._hosts = Hosts(own_names(socket.gethostname()))
        self._open: dict[trio.CancelScope, None] = {}  # oldest first

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Answer one request on *stream*, and close it; raises nothing."""
        address = transport.peer_address(stream)
        origin = Origin.of(address, transport.peer_user(stream))
        meter = Meter(self._turns, origin and origin.address)
        current_meter.set(meter)
        scope = trio.CancelScope()
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel(reason="a newer connection needs the slot")
        self._open[scope] = None
        try:
            with scope:
                is_local = origin is not None and origin.is_loopback
                await meter.measure(self._handle(stream, meter, is_local=is_local))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # a client may leave at any time
        except* Exception as group:  # noqa: BLE001 - the boundary of one connection
            self._log.crash("a connection for metrics crashed", group)
        finally:
            self._open.pop(scope, None)
            await transport.close(stream)

    async def _handle(self, stream: trio.abc.Stream, meter: Meter, *, is_local: bool) -> None:
        await meter.take()
        config = self._config
        reader = RequestReader(config.web.max_head_bytes)
        request: Request | None = None
        try:
            request = await read_head(stream, reader, config.handshake_seconds)
            if request is None:
                return
            response = await self.answer(request, is_local=is_local)
        except HttpError as error:
            response = error.response
        except NotHttp:
            return
        with_body = request is None or request.method != "HEAD"
        await send_response(
            stream,
            response.encode(date=http_date(), with_body=with_body),
            seconds=config.web.transfer_seconds,
            linger=config.timeouts.linger,
        )

    async def answer(self, request: Request, *, is_local: bool) -> Response:
        """Return the response to *request*; *is_local* if it came from this machine over TCP.

        Raises `HttpError`.
        """
        if (health := HEALTH.get(request.path)) is not None:
            check_method(request, "GET", "HEAD")
            return health_response(self._server, health)
        if request.path != METRICS:
            raise HttpError(404, f"there are {METRICS}, /live and /ready here")
        check_method(request, "GET", "HEAD")
        host = requested_host(request)
        # Other machines may know this one by names that we do not know, but loopback has only its
        # own names: a page that requests another name has made it resolve to this machine.
        if is_local and host is not None and not self._hosts.allows(host):
            raise HttpError(421, f"ask for 127.0.0.1 or localhost, not for {host.name}")
        await self._process.refresh()
        body, content_type = render(self._registry, request.get("accept") or "")
        headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
        return Response(status=200, headers=headers, body=body)
