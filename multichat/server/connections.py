"""Serves one connection each: admission, the client's number, the session, and what is refused.

Runs in the connection's own task, which is its boundary: nothing that goes wrong in it leaves it.
"""

import ssl
from collections.abc import Callable

import trio

from multichat.backend.base import Backend
from multichat.errors import StorageFailed
from multichat.log import Log
from multichat.net import transport
from multichat.net.turns import Meter, Turns, current_meter
from multichat.protocol.auth import SERVER_IS_FULL
from multichat.protocol.codecs import WEBSOCKET, WEBSOCKET_LINES
from multichat.protocol.framing import LineDecoder
from multichat.protocol.messages import LOBBY
from multichat.server import log_lines
from multichat.server.admin_commands import AdminCommands
from multichat.server.admission import (
    Admission,
    AdmissionRefused,
    AdmittedConnection,
    PendingSlot,
)
from multichat.server.authentication import Authentication
from multichat.server.bans import Bans
from multichat.server.config import ServerConfig
from multichat.server.filters import Filters
from multichat.server.origin import Origin
from multichat.server.proxied import Arrival, LoadBalancers
from multichat.server.refusals import RefusedFor
from multichat.server.registry import Registry
from multichat.server.room_claims import WantedRooms
from multichat.server.session import Session

__all__ = ["Connections"]

_LOBBY = WantedRooms(names=[LOBBY])  # which is not claimed

# A WebSocket message has at most as many bytes as this many lines of the greatest length: enough
# for a paste.  It is not collected, so this bounds only how long one message may go on.
_LINES_A_MESSAGE = 64


class Connections:
    """The connections to one server; each is served by `handle` or `handle_websocket`.

    *admission* counts them, *turns* schedules them, and *authentication* decides who may join.
    *clock* returns the Unix time in seconds.
    *clients* is how many clients were admitted since the server started, *refusals* how many
    connections were rejected, by reason.
    """

    def __init__(
        self,
        config: ServerConfig,
        log: Log,
        backend: Backend,
        registry: Registry,
        admin: AdminCommands,
        bans: Bans,
        filters: Filters,
        *,
        admission: Admission,
        authentication: Authentication,
        turns: Turns,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._log, self._backend = config, log, backend
        self._registry, self._admin = registry, admin
        self._bans, self._filters = bans, filters
        self._admission, self._authentication = admission, authentication
        self._turns, self._clock = turns, clock
        self._balancers = LoadBalancers(config, admission)
        self.clients = 0
        self.refusals = dict.fromkeys(RefusedFor, 0)

    async def handle(
        self,
        stream: trio.abc.Stream,
        *,
        tls: ssl.SSLContext | None = None,
        trusted: bool = False,
    ) -> None:
        """Serve one client that speaks lines; see `Server.handle`."""
        address = transport.peer_address(stream)
        if not address and transport.is_disconnected(stream):
            # No limit and no ban would apply to what it has sent.
            await transport.close(stream)
            return
        origin = Origin.of(address, transport.peer_user(stream))
        meter = Meter(self._turns, origin and origin.address)
        current_meter.set(meter)
        arrival = Arrival(
            address,
            origin,
            counted=None if self._balancers.sends_header(address) else origin,
            is_private=transport.is_private(stream),
        )
        try:
            await meter.measure(self._handle(stream, arrival, meter, tls=tls, trusted=trusted))
        except* Exception as group:  # noqa: BLE001 - the boundary of one connection
            self._log.crash("a session crashed", group)
        finally:
            await transport.close(stream)

    async def _handle(
        self,
        stream: trio.abc.Stream,
        arrival: Arrival,
        meter: Meter,
        *,
        tls: ssl.SSLContext | None,
        trusted: bool,
    ) -> None:
        authenticates = self._authentication.is_required and not trusted
        is_passed_on = self._balancers.sends_header(arrival.address)
        await meter.take()
        transport.keep_alive(stream, self._config.stall_timeout_seconds)
        connection = AdmittedConnection(stream, LineDecoder(self._config.max_line_bytes))
        try:
            arrival.too_many = self._admission.add_connection(arrival.counted)
            try:
                if tls is not None or authenticates or is_passed_on:
                    with PendingSlot(self._admission, arrival.origin) as slot:
                        if is_passed_on:
                            header = await self._balancers.receive(stream, arrival, slot, meter)
                            if header is None or header.is_local:
                                return  # a check of health
                        if tls is not None:
                            connection.stream = await self._admission.tls_handshake(stream, tls)
                            arrival.is_private = arrival.is_encrypted = True
                        self.check(arrival.address, arrival.too_many)
                        if authenticates:
                            await self._authentication.authenticate(
                                connection,
                                slot,
                                arrival.address,
                                encrypted=arrival.is_encrypted,
                            )
                session = await self._admit(
                    connection,
                    arrival.address,
                    arrival.origin,
                    meter,
                    arrival.too_many,
                    is_private=arrival.is_private,
                    trusted=trusted,
                )
                await session.run()
            finally:
                self._admission.remove_connection(arrival.counted)
        except AdmissionRefused as refusal:
            await self._reject(connection, arrival.address, refusal)

    async def handle_websocket(
        self,
        stream: trio.abc.Stream,
        origin: Origin | None,
        meter: Meter,
        *,
        address: str,
        lines: bool,
        early: bytes,
        secure: bool,
        encrypted: bool,
    ) -> None:
        """Serve one client of WebSocket on *stream* until it has left, or is refused.

        For a request whose upgrade has been answered, the bytes *early* came behind.  With *lines*,
        the subprotocol `multichat.lines` was agreed.  The client has this *address*, and *origin*
        for limits; *secure* says that nobody on the network can read what it sends, *encrypted*
        that it uses TLS, to this server or to a proxy.

        MUST be called within `meter.measure`, by a caller that has counted the connection in the
        server's `Admission`, has kept it alive (`transport.keep_alive`), has checked its address
        (`check`), has left any `PendingSlot`, is the boundary for exceptions, and closes the stream
        at the end.  The client is authenticated here.
        """
        # Imported here, because only a server with a web port needs it.
        from multichat.protocol.websocket import WebSocketDecoder

        most = self._config.max_line_bytes
        decoder = WebSocketDecoder(most, _LINES_A_MESSAGE * most)
        codecs = WEBSOCKET_LINES if lines else WEBSOCKET
        connection = AdmittedConnection(stream, decoder, codecs, decoder.feed(early))
        try:
            if self._authentication.is_required:
                with PendingSlot(self._admission, origin) as slot:
                    await self._authentication.authenticate(
                        connection, slot, address, encrypted=encrypted
                    )
            session = await self._admit(
                connection, address, origin, meter, is_private=secure, trusted=False
            )
            await session.run()
        except AdmissionRefused as refusal:
            await self._reject(connection, address, refusal)

    async def _admit(
        self,
        connection: AdmittedConnection,
        address: str,
        origin: Origin | None,
        meter: Meter,
        too_many: str = "",
        *,
        is_private: bool,
        trusted: bool,
    ) -> Session:
        """Return a session for *connection*, to be run at once; raises `AdmissionRefused`."""
        self.check(address, too_many)
        try:
            number = await self._backend.give_client_number()  # which may wait for the disk
            await self._registry.rooms.prepare(_LOBBY, {})  # last: it holds for seconds only
        except StorageFailed:
            raise AdmissionRefused.unavailable(self._registry.claims.why_unavailable()) from None
        self.clients += 1
        self.check(address, too_many)  # nothing waits from here on
        session = Session(
            connection,
            self._registry,
            self._admin,
            number,
            self._config,
            self._filters,
            address,
            origin,
            meter,
            is_private=is_private,
            may_speak=trusted or not self._config.require_login,
        )
        session.client.is_trusted = trusted
        return session

    async def _reject(
        self, connection: AdmittedConnection, address: str, refusal: AdmissionRefused
    ) -> None:
        self.note_refused(address, refusal.why, refusal.reason)
        if refusal.last_words:
            await self._admission.reject(connection, refusal.last_words)

    def note_refused(self, address: str, why: RefusedFor, reason: str) -> None:
        """Count and log a connection from *address* that is refused."""
        self.refusals[why] += 1
        log_lines.refused(self._log, address, why, reason)

    def why_banned(self, address: str) -> str:
        """Return why *address* is banned; empty if it is not."""
        ban = self._bans.find_address(address, now := self._clock())
        return "" if ban is None else ban.refusal(now)

    def check(self, address: str, too_many: str = "") -> None:
        """Raise `AdmissionRefused` if a client from *address* cannot be admitted now.

        *too_many* is what `Admission.add_connection` has returned.
        """
        if reason := self.why_banned(address):
            raise AdmissionRefused.politely(RefusedFor.BANNED, reason)
        if reason := self._admission.refusing:
            raise AdmissionRefused.politely(RefusedFor.SHUTDOWN, reason)
        if not self._backend.available:
            raise AdmissionRefused.unavailable(self._registry.claims.why_unavailable())
        if too_many:
            raise AdmissionRefused.politely(RefusedFor.too_many(too_many), too_many)
        if len(self._registry) >= self._config.max_clients:
            reason = f"{SERVER_IS_FULL} (limit: {self._config.max_clients})"
            raise AdmissionRefused.politely(RefusedFor.FULL, reason)
