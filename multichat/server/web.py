"""The web port: the page, the WebSocket's handshake and the webhook, in front of the same server.

Reads one request of a connection, within the bounds and deadlines of `Admission`, and answers it,
or hands the connection on as a WebSocket.  The rules are `multichat.web`'s, which has no I/O.

Invariants:

1. A connection counts once, for the address of its client; a trusted proxy's own address has no
   limit.  Until the request is answered it has an admission slot.
2. Nothing is answered to a banned address, or above the limits, but why.
3. A request that is not the page's own is refused before its body is read.
"""

import socket
import time
from collections.abc import Mapping
from email.utils import formatdate
from importlib.resources import files
from importlib.resources.abc import Traversable
from ssl import SSLContext
from typing import TYPE_CHECKING

import trio

from multichat.log import Log
from multichat.net import transport
from multichat.net.turns import Meter, Turns, current_meter
from multichat.protocol.messages import Goodbye
from multichat.protocol.sniff import NO_TLS
from multichat.protocol.text_codec import TEXT
from multichat.server.admission import Admission, AdmissionRefused, PendingSlot
from multichat.server.bans import host_of
from multichat.server.connections import Connections
from multichat.server.origin import Origin
from multichat.web.forwarded import Peer, Proxies
from multichat.web.handshake import Handshake, shake_hands
from multichat.web.hosts import own_names
from multichat.web.http import HttpError, NotHttp, Request, RequestReader, Response
from multichat.web.page_files import PageFiles
from multichat.web.site import Health, Site, Upgrade

if TYPE_CHECKING:
    from multichat.server.server import Server

__all__ = ["WebPort"]

# A head of a browser comes in one read.
_READ_BYTES = 16 * 1024

# How often a connection is read after its response, so that this is not lost to a reset.
_LINGER_READS = 4

_NOT_HTTP = "this is the web port: chat clients use the other port of the server"


class WebPort:
    """The web port of *server*, with its *connections*, *admission* and *turns*; starts nothing.

    *contents* are the page's files by their paths, by default those of the package.
    """

    def __init__(
        self,
        server: "Server",
        connections: Connections,
        admission: Admission,
        turns: Turns,
        log: Log,
        *,
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        self._server, self._connections = server, connections
        self._admission, self._turns, self._log = admission, turns, log
        self._config = server.config
        self._proxies = Proxies(self._config.web.proxies)
        page = PageFiles(_read_page() if contents is None else contents)
        self._site = Site(page, self._config.web, own_names(socket.gethostname()))

    async def handle(self, stream: trio.abc.Stream, *, tls: SSLContext | None = None) -> None:
        """Serve one connection until it is closed; see `Server.handle_web`."""
        address = transport.peer_address(stream)
        origin = Origin.of(address, transport.peer_user(stream))
        meter = Meter(self._turns, origin and origin.address)
        current_meter.set(meter)
        connection = _Connection(stream, address, origin, meter)
        try:
            await meter.measure(self._handle(connection, tls))
        except* Exception as group:  # noqa: BLE001 - the boundary of one connection
            self._log.crash("a web connection crashed", group)
        finally:
            await transport.close(connection.stream)

    async def _handle(self, connection: "_Connection", tls: SSLContext | None) -> None:
        await connection.meter.take()
        transport.keep_alive(connection.stream, self._config.stall_timeout_seconds)
        is_proxy = self._proxies.trusts(host_of(connection.address))
        connection.counted = None if is_proxy else connection.origin
        connection.too_many = self._admission.add_connection(connection.counted)
        try:
            if (handshake := await self._serve_request(connection, tls)) is not None:
                await self._server.handle_websocket(
                    connection.stream,
                    connection.origin,
                    connection.meter,
                    address=connection.address,
                    lines=handshake.lines,
                    early=connection.reader.rest,
                    secure=connection.is_private,
                )
        except AdmissionRefused as refusal:
            self._refuse(connection, refusal.reason)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # a browser may leave at any time
        finally:
            self._admission.remove_connection(connection.counted)

    async def _serve_request(
        self, connection: "_Connection", tls: SSLContext | None
    ) -> Handshake | None:
        """Answer the request of *connection*; return the handshake if it is a WebSocket now.

        Raises `AdmissionRefused` and the errors of the stream.
        """
        with PendingSlot(self._admission, connection.origin):
            request: Request | None = None
            try:
                if tls is not None:
                    await self._encrypt(connection, tls)
                request = await self._read_head(connection)
                if request is None:  # it has left, or has waited for too long
                    return None
                await self._know_client(connection, request)
                self._check(connection)
                route = self._site.route(request, connection.scheme)
                if isinstance(route, Upgrade):
                    handshake = shake_hands(request, date=_now())
                    with trio.move_on_after(self._config.web.transfer_seconds):
                        await transport.send_all(connection.stream, handshake.response)
                        return handshake
                    return None
                response = await self._respond(route)
            except HttpError as error:
                if error.logged:
                    self._refuse(connection, error.logged)
                response = error.response
            except NotHttp:
                self._refuse(connection, "the client does not speak HTTP")
                await self._send(connection, TEXT.encode(Goodbye(_NOT_HTTP)))
                return None
            with_body = request is None or request.method != "HEAD"
            await self._send(connection, response.encode(date=_now(), with_body=with_body))
        return None

    async def _encrypt(self, connection: "_Connection", tls: SSLContext) -> None:
        try:
            connection.stream = await self._admission.tls_handshake(connection.stream, tls)
        except AdmissionRefused as refusal:
            if refusal.reason != NO_TLS.reason:
                raise
            text = "this port uses TLS: begin the address with https://"
            raise HttpError(400, text, logged=refusal.reason) from None
        connection.scheme, connection.is_private = "https", True

    async def _read_head(self, connection: "_Connection") -> Request | None:
        """Return the request; None if there is none.  Raises `HttpError` or `NotHttp`."""
        reader = connection.reader = RequestReader(self._config.web.max_head_bytes)
        seconds = self._config.handshake_seconds
        with trio.move_on_after(seconds):
            while reader.request is None:
                data = await transport.receive_some(connection.stream, _READ_BYTES)
                if not data:
                    return None
                reader.feed(data)
            return reader.request
        raise HttpError(408, f"no request in {seconds:g} s")

    async def _know_client(self, connection: "_Connection", request: Request) -> None:
        """Note who has sent *request* if it comes from a trusted proxy."""
        peer: Peer = self._proxies.client(
            host_of(connection.address),
            request.all("x-forwarded-for"),
            request.all("x-forwarded-proto"),
        )
        if not peer.is_forwarded:
            return
        connection.scheme = peer.scheme or connection.scheme
        connection.is_private = peer.scheme == "https"
        connection.address = f"[{peer.host}]:0" if ":" in peer.host else f"{peer.host}:0"
        if self._proxies.trusts(peer.host):
            return  # the proxy's own, such as a check of its health
        self._admission.remove_connection(connection.counted)
        connection.origin = connection.counted = Origin.of(connection.address)
        connection.too_many = self._admission.add_connection(connection.counted)
        connection.meter.end()
        connection.meter.address = connection.origin and connection.origin.address
        await connection.meter.take()

    def _check(self, connection: "_Connection") -> None:
        """Raise `HttpError` if the client of *connection* is banned, or one too many."""
        if reason := self._connections.why_banned(connection.address):
            raise HttpError(403, reason, logged=reason)
        if reason := connection.too_many:
            raise HttpError(503, reason, {"Retry-After": "60"}, logged=reason)

    async def _respond(self, route: object) -> Response:
        match route:
            case Response():
                return route
            case Health():
                if self._server.shutting_down:
                    return Response.of_text(503, "shutting down")
                return Response.of_text(200, "ok")
        raise HttpError(404, "there is nothing here")

    async def _send(self, connection: "_Connection", data: bytes) -> None:
        with trio.move_on_after(self._config.web.transfer_seconds):
            await transport.send_all(connection.stream, data)
            await transport.close_gracefully(
                connection.stream, self._config.timeouts.linger, _LINGER_READS
            )

    def _refuse(self, connection: "_Connection", reason: str) -> None:
        self._connections.note_refused(connection.address, reason)


class _Connection:
    """What is known of a connection so far; *counted* is the origin that it counts for."""

    def __init__(
        self, stream: trio.abc.Stream, address: str, origin: Origin | None, meter: Meter
    ) -> None:
        self.stream, self.address, self.origin, self.meter = stream, address, origin, meter
        self.scheme = "http"
        self.is_private = transport.is_private(stream)
        self.counted: Origin | None = None
        self.too_many = ""
        self.reader: RequestReader


def _now() -> str:
    return formatdate(time.time(), usegmt=True)


def _read_page() -> dict[str, bytes]:
    """Return the files of the page in the package, by their paths."""
    return _read_folder(files("multichat.web") / "page")


def _read_folder(folder: Traversable, prefix: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    if folder.is_dir():
        for each in folder.iterdir():
            if each.is_dir():
                found |= _read_folder(each, f"{prefix}{each.name}/")
            else:
                found[prefix + each.name] = each.read_bytes()
    return found
