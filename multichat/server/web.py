"""The web port: the page, the WebSocket's handshake and the webhook, in front of the same server.

Reads one request of a connection, within the bounds and deadlines of `Admission`, and answers it,
or hands the connection on as a WebSocket.  The rules are `multichat.web`'s, which has no I/O.

Invariants:

1. A connection counts once, for the address of its client; a trusted proxy's own address has no
   limit.  Until the request is answered it has an admission slot.
2. A valid request of a banned address, or above the limits, gets the reason and nothing else.
3. A message is refused before its body is read if it comes from a page of another origin, or has no
   right token.
"""

import math
import socket
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from ssl import SSLContext
from typing import TYPE_CHECKING, NamedTuple

import trio

import multichat.protocol.websocket  # noqa: F401 - now, and not with the first WebSocket
from multichat.log import Log
from multichat.net import transport
from multichat.net.turns import Meter, Turns, current_meter
from multichat.protocol.messages import Goodbye
from multichat.protocol.sniff import NO_TLS
from multichat.protocol.text_codec import TEXT
from multichat.server.admission import Admission, AdmissionRefused, PendingSlot
from multichat.server.bans import host_of
from multichat.server.connections import Connections
from multichat.server.health import health_response
from multichat.server.http_io import READ_BYTES, http_date, read_head, send_response
from multichat.server.origin import Origin
from multichat.server.proxied import Arrival, LoadBalancers
from multichat.server.refusals import RefusedFor
from multichat.server.webhook import Poster, Webhook
from multichat.web.forwarded import Peer, Proxies
from multichat.web.handshake import Handshake, shake_hands
from multichat.web.hosts import own_names
from multichat.web.http import CONTINUE, HttpError, NotHttp, Request, RequestReader
from multichat.web.page_files import PageFiles
from multichat.web.site import WEBSOCKET, Health, Post, Site, Upgrade
from multichat.web.webhook import Posted, error_response, max_body, read_posted

if TYPE_CHECKING:
    from multichat.server.server import Server

__all__ = ["WebPort"]

_NOT_HTTP = "this is the web port: chat clients use the other port of the server"


class WebPort:
    """The web port of *server*; starts nothing.

    *connections*, *admission*, *turns* and *webhook* are the server's.  It is known by *names*,
    besides the machine's own.  *contents* are the page's files by their paths, by default those of
    the package.
    """

    def __init__(
        self,
        server: "Server",
        connections: Connections,
        admission: Admission,
        turns: Turns,
        log: Log,
        webhook: Webhook,
        *,
        names: Sequence[str] = (),
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        self._server, self._connections = server, connections
        self._admission, self._turns, self._log = admission, turns, log
        self._config = server.config
        self._proxies = Proxies(self._config.web.proxies)
        self._balancers = LoadBalancers(self._config, admission)
        page = PageFiles(_read_page() if contents is None else contents)
        own = (*own_names(socket.gethostname()), *names)
        self._site = Site(page, self._config.web, own)
        self._webhook = webhook

    async def handle(self, stream: trio.abc.Stream, *, tls: SSLContext | None = None) -> None:
        """Serve one connection until it is closed; see `Server.handle_web`."""
        address = transport.peer_address(stream)
        if not address and transport.is_disconnected(stream):
            # No limit and no ban would apply to what it has sent.
            await transport.close(stream)
            return
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
        # A proxy of the page says it in the request.
        is_passed_on = not is_proxy and self._balancers.sends_header(connection.address)
        connection.counted = None if is_proxy or is_passed_on else connection.origin
        connection.too_many = self._admission.add_connection(connection.counted)
        try:
            with PendingSlot(self._admission, connection.origin) as slot:
                if is_passed_on and not await self._receive_header(connection, slot):
                    return
                todo = await self._receive(connection, slot, tls)
                if isinstance(todo, bytes):
                    await self._send(connection, todo)
                    return
            match todo:
                case Handshake():
                    early = connection.reader.rest
                    del connection.reader  # the memory of the request, for as long as it lasts
                    await self._connections.handle_websocket(
                        connection.stream,
                        connection.origin,
                        connection.meter,
                        address=connection.address,
                        lines=todo.lines,
                        early=early,
                        secure=connection.is_private,
                        encrypted=connection.scheme == "https",
                    )
                case _Posting():
                    await self._post(connection, todo)
        except AdmissionRefused as refusal:
            self._refuse(connection, refusal.why, refusal.reason)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # a browser may leave at any time
        finally:
            self._admission.remove_connection(connection.counted)

    async def _receive_header(self, connection: "_Connection", slot: PendingSlot) -> bool:
        """Read the PROXY header of a load balancer; return whether a connection follows it.

        Raises `AdmissionRefused`.
        """
        header = await self._balancers.receive(
            connection.stream, connection, slot, connection.meter, of_page=True
        )
        if header is None:
            return False
        if connection.is_encrypted:
            connection.scheme = "https"
        if self._proxies.trusts(host_of(connection.address)):  # a proxy between balancer and server
            self._admission.remove_connection(connection.counted)
            connection.counted = None
            connection.too_many = self._admission.add_connection(None)
        return True

    async def _receive(
        self, connection: "_Connection", slot: PendingSlot, tls: SSLContext | None
    ) -> "bytes | Handshake | _Posting | None":
        """Read the request of *connection*, and return what is still to do.

        That are bytes to send, a WebSocket to serve whose handshake was sent, or a message to post;
        nothing if the client has left.  Raises `AdmissionRefused` and the errors of the stream.
        """
        request: Request | None = None
        is_post = False
        try:
            if tls is not None:
                await self._encrypt(connection, tls)
            connection.reader = RequestReader(self._config.web.max_head_bytes)
            request = await read_head(
                connection.stream, connection.reader, self._config.handshake_seconds
            )
            if request is None:
                return None
            await self._know_client(connection, slot, request)
            self._check(connection)
            route = self._site.route(request, connection.scheme)
            self._check_open(request)
            if isinstance(route, Upgrade):
                return await self._shake_hands(connection, request)
            if isinstance(route, Post):
                is_post = True
                return await self._read_posting(connection, request, route.room)
            response = health_response(self._server, route) if isinstance(route, Health) else route
        except HttpError as error:
            if error.logged:
                why = error.why if isinstance(error, _Refused) else RefusedFor.WEB_REQUEST
                self._refuse(connection, why, error.logged)
            response = error_response(error) if is_post else error.response
        except NotHttp:
            reason = "the client does not speak HTTP"
            self._refuse(connection, RefusedFor.OTHER_PROTOCOL, reason)
            return TEXT.encode(Goodbye(_NOT_HTTP))
        with_body = request is None or request.method != "HEAD"
        return response.encode(date=http_date(), with_body=with_body)

    async def _shake_hands(self, connection: "_Connection", request: Request) -> Handshake | None:
        handshake = shake_hands(request, date=http_date())
        with trio.move_on_after(self._config.web.transfer_seconds):
            await transport.send_all(connection.stream, handshake.response)
            return handshake
        return None

    async def _read_posting(
        self, connection: "_Connection", request: Request, room: str
    ) -> "_Posting":
        """Return the message that *request* posts; raises `HttpError`."""
        poster = self._webhook.authorize(request)
        if poster is None:
            challenge = {"WWW-Authenticate": 'Bearer realm="multichat"'}
            text = "the token is missing or wrong: send Authorization: Bearer TOKEN"
            raise HttpError(401, text, challenge, logged="a message without a right token")
        most, reader = self._config.max_line_bytes, connection.reader
        seconds = self._config.web.transfer_seconds
        with trio.move_on_after(seconds):
            reader.start_body(max_body(request, most))
            if reader.expects_continue:
                await transport.send_all(connection.stream, CONTINUE)
            while reader.body is None:
                data = await transport.receive_some(connection.stream, READ_BYTES)
                if data:
                    reader.feed(data)
                else:
                    reader.feed_eof()
            return _Posting(poster, room, read_posted(request, reader.body, most))
        raise HttpError(408, f"no message in {seconds:g} s")

    async def _post(self, connection: "_Connection", posting: "_Posting") -> None:
        try:
            response = await self._webhook.post(*posting, connection.origin)
        except HttpError as error:
            response = error_response(error)
        await self._send(connection, response.encode(date=http_date()))

    async def _encrypt(self, connection: "_Connection", tls: SSLContext) -> None:
        try:
            connection.stream = await self._admission.tls_handshake(connection.stream, tls)
        except AdmissionRefused as refusal:
            if refusal.reason != NO_TLS.reason:
                raise
            text = "this port uses TLS: begin the address with https://"
            raise _Refused(refusal.why, 400, text, logged=refusal.reason) from None
        connection.scheme, connection.is_private = "https", True

    async def _know_client(
        self, connection: "_Connection", slot: PendingSlot, request: Request
    ) -> None:
        """Note the client of *request* if it comes from a trusted proxy."""
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
        slot.count_for(connection.origin)
        connection.meter.end()
        connection.meter.address = connection.origin and connection.origin.address
        await connection.meter.take()

    def _check(self, connection: "_Connection") -> None:
        """Raise `HttpError` if the client of *connection* is banned, or one too many."""
        if reason := self._connections.why_banned(connection.address):
            raise _Refused(RefusedFor.BANNED, 403, reason, logged=reason)
        if reason := connection.too_many:
            why, headers = RefusedFor.too_many(reason), {"Retry-After": "60"}
            raise _Refused(why, 503, reason, headers, logged=reason)

    def _check_open(self, request: Request) -> None:
        """Raise `HttpError` for a WebSocket, or the question whether there may be one, in a drain.

        Messages of the webhook are still published: all but the clients is as before.
        """
        if request.path == WEBSOCKET and (reason := self._admission.refusing):
            after = math.ceil(self._server.ending.seconds_left) or 1
            headers = {"Retry-After": str(after)}
            raise _Refused(RefusedFor.SHUTDOWN, 503, reason, headers, logged=reason)

    async def _send(self, connection: "_Connection", data: bytes) -> None:
        await send_response(
            connection.stream,
            data,
            seconds=self._config.web.transfer_seconds,
            linger=self._config.timeouts.linger,
        )

    def _refuse(self, connection: "_Connection", why: RefusedFor, reason: str) -> None:
        self._connections.note_refused(connection.address, why, reason)


class _Refused(HttpError):
    """A connection is rejected; counted under *why*."""

    def __init__(
        self,
        why: RefusedFor,
        status: int,
        text: str,
        headers: Mapping[str, str] | None = None,
        *,
        logged: str,
    ) -> None:
        super().__init__(status, text, headers, logged=logged)
        self.why = why


class _Posting(NamedTuple):
    """A message to post, for *poster*."""

    poster: Poster
    room: str
    posted: Posted


class _Connection(Arrival):
    """What is known of a connection so far."""

    def __init__(
        self, stream: trio.abc.Stream, address: str, origin: Origin | None, meter: Meter
    ) -> None:
        super().__init__(address, origin, counted=None, is_private=transport.is_private(stream))
        self.stream, self.meter = stream, meter
        self.scheme = "http"
        self.reader: RequestReader


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
