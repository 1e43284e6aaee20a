"""The server: listeners, the nursery tree, admission of connections, bans, and shutdown.

Each connection is served in a task of its own.  Rooms deliver messages; sessions handle requests.
"""

import ssl
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property, partial
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import trio

from multichat.backend.base import Backend
from multichat.backend.local import LocalBackend
from multichat.errors import (
    LocalProtocolError,
    UnknownClient,
    lone_exception,
)
from multichat.journal.base import Journal
from multichat.journal.memory import MemoryJournal
from multichat.log import Log
from multichat.net.activation import PassedSockets
from multichat.net.fair_share import Shares
from multichat.net.listeners import FairListener
from multichat.net.turns import Turns
from multichat.protocol.address import DEFAULT_PORT
from multichat.protocol.framing import clean
from multichat.protocol.goodbyes import SHUTTING_DOWN
from multichat.protocol.messages import Goodbye, Notice
from multichat.protocol.names import load_tables
from multichat.server.admin_commands import AdminCommands
from multichat.server.admission import (
    Admission,
)
from multichat.server.authentication import Authenticate, Authentication
from multichat.server.ban_keeper import BanKeeper
from multichat.server.bans import Ban, Bans
from multichat.server.bots import Bot, Bots
from multichat.server.broadcast import Receipt
from multichat.server.client import Client, MemberInfo
from multichat.server.config import ServerConfig
from multichat.server.connections import Connections
from multichat.server.ending import Ending
from multichat.server.filters import Filters
from multichat.server.join_hook import OnJoin
from multichat.server.listening import Listeners, Places, open_listeners
from multichat.server.live_settings import LiveSettings
from multichat.server.other_nodes import OtherNodes
from multichat.server.passphrases import Hasher
from multichat.server.private_messages import tell, tell_elsewhere
from multichat.server.registry import Registry
from multichat.server.reloading import Reloading
from multichat.server.start_log import Starting, log_start
from multichat.server.statistics import ServerStatistics, StatisticsSource

if TYPE_CHECKING:
    from multichat.server.web import WebPort
    from multichat.server.webhook import Webhook

__all__ = ["Server", "serve"]

_Handler: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]


class Server:
    """A chat server; constructing it starts nothing.

    *journal* stores the messages; without one, they are in memory until the server ends.  The
    server runs the journal, which no other may use.  With a *backend* instead, this server is a
    node of a cluster.  *authenticate* decides who may join, and
    *on_join* is called for each client that joins; see `Authenticate` and `OnJoin`.  *shares* is
    how its connections share the event loop's time, and *hasher* how passphrases are hashed.
    *clock* returns the Unix time in seconds, by which bans and certificates expire.

    `run` serves TCP ports and Unix sockets.  For other streams, open the server with `open`, call
    `handle` or `handle_web` for each stream in a task of its own, and call `close` at the end.  All
    other methods may be called by any task of the same trio run.

    *ending* knows whether and how it ends.  *admin* are the operator's commands.  *settings* are
    those that may change while it runs, and *reloading* has those that `reload` reads again from
    their files; *config* is how it began.

    *port* is the first TCP port that it listens on and *addresses* are all of them, such as
    `0.0.0.0:9000` and `[::]:9000`; 0 and empty until it listens.  *web_url* is where its page is,
    and *metrics_url* where its metrics are, empty without one.
    """

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        journal: Journal | None = None,
        backend: Backend | None = None,
        authenticate: Authenticate | None = None,
        on_join: OnJoin | None = None,
        shares: Shares | None = None,
        hasher: Hasher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config or ServerConfig()
        if journal is not None and backend is not None:
            raise ValueError("a backend stores the messages itself: no journal beside it")
        self._backend = backend or LocalBackend(
            journal or MemoryJournal(max_bytes=self.config.history_bytes)
        )
        self.port = 0
        self.addresses: list[str] = []
        self.web_url = self.metrics_url = ""
        self._web_names: tuple[str, ...] = ()
        self._log = Log("server", hides_messages=self.config.hides_messages)
        self._bans = Bans()
        self._registry = Registry(
            self.config,
            self._log,
            self._start_soon,
            self._backend,
            is_banned=lambda name: self._bans.find_name(name, clock()) is not None,
            on_join=on_join,
            hasher=hasher,
        )
        self._ban_keeper = BanKeeper(
            self._bans, self._registry, self._backend, self._log, self._start_soon, clock
        )
        self._other_nodes = OtherNodes(
            self._backend,
            self._registry,
            self._ban_keeper,
            self.config,
            self._log,
            self._start_soon,
        )
        self._admission = Admission(self.config)
        self._authentication = Authentication(
            self.config,
            self._log,
            authenticate,
            knows_session=self._registry.session_store.is_known,
        )
        self.settings = LiveSettings(
            self.config,
            self._authentication,
            self._registry.accounts,
            lambda: self._webhook,
            clock=clock,
        )
        self.reloading = Reloading(self._log)
        self._turns = Turns(shares)
        self.admin = AdminCommands(self, self._registry, clock=clock)
        self._filters = Filters(
            self.config.filters,
            self.config.filter_seconds,
            self._log,
            joins=self.config.filter_joins,
        )
        self._connections = Connections(
            self.config,
            self._log,
            self._backend,
            self._registry,
            self.admin,
            self._bans,
            self._filters,
            admission=self._admission,
            authentication=self._authentication,
            turns=self._turns,
            clock=clock,
        )
        self._statistics = StatisticsSource(
            self._registry, self._connections, self._turns, self._backend
        )
        self._nursery: trio.Nursery | None = None
        self._bots = Bots(
            partial(self.handle, trusted=True), self._log, linger=self.config.timeouts.linger
        )
        self.ending = Ending(
            self.config,
            self._registry,
            self._admission,
            self._log,
            self._start_soon,
            is_node=self._backend.is_shared,
        )

    async def run(
        self,
        port: int | None = DEFAULT_PORT,
        *,
        host: str | Sequence[str] | None = None,
        tls: ssl.SSLContext | None = None,
        unix: Path | None = None,
        unix_mode: int = 0o600,
        web: int | None = None,
        web_host: str | Sequence[str] | None = None,
        admin: Path | None = None,
        metrics: int | None = None,
        metrics_host: str | Sequence[str] = "127.0.0.1",
        passed: PassedSockets = PassedSockets(),  # noqa: B008 - immutable
        task_status: trio.TaskStatus["Server"] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve clients on TCP *port*, a *unix* socket, or both, until `shutdown` is called; once.

        With *web*, also serve the page, WebSockets and the webhook on that port, on *web_host* or
        else on *host*.  At *admin* is the Unix socket of `multichat ctl`, for this user alone.
        With *metrics*, serve them and checks of health on that port of *metrics_host* until the
        server has ended; needs the extra `multichat-trio[metrics]`.

        *host* is an address or name, or several; None is every interface, IPv4 and IPv6.  With
        port 0 the system chooses one for the first address, and further hosts share it.  With
        *tls*, clients on that port must use TLS.  The socket at *unix* has *unix_mode* and is
        removed at the end.  It serves the listeners that were *passed*, too, and closes them.
        Passes the server to `task_status` once connections are accepted.

        After `shutdown` it stops accepting, delivers the messages under way, and says goodbye to
        all clients, which get what is queued within the grace period; a client that lags gets the
        rest, too, or is told how many messages it missed.  Cancelled, it ends at once and what is
        queued is lost.

        Raises `ListenFailed` if the system refuses to listen.
        """
        places = Places(
            port=port,
            host=host,
            unix=unix,
            unix_mode=unix_mode,
            web=web,
            web_host=web_host,
            admin=admin,
            metrics=metrics,
            metrics_host=metrics_host,
            passed=passed,
        )
        self.settings.tls = tls
        given = web_host or host or ()
        self._web_names = (given,) if isinstance(given, str) else tuple(given)
        async with AsyncExitStack() as stack:
            stack.callback(passed.close)  # also if the server cannot be opened
            await stack.enter_async_context(self.open())
            listeners = await stack.enter_async_context(open_listeners(places))
            if listeners.admin:
                from multichat.server.control import open_control  # few servers have one

                control = open_control(listeners.admin, self.admin, self._log)
                await stack.enter_async_context(control)
            starting = Starting(listeners, is_encrypted=tls is not None)
            self.port, self.addresses = starting.port, starting.addresses
            self.web_url = starting.web_url(self.config.web.url)
            # So that the chat port can tell browsers.
            self._registry.web_url = self._authentication.web_url = self.web_url
            # Before the first connection is accepted.
            log_start(self._log, starting, self.config, self._backend.location, self.web_url)
            if advice := self.settings.certificate_advice():
                self._log.line("start", advice, WARNING)
            if listeners.metrics:
                from multichat.server.metrics_port import open_metrics  # imports h11 and others

                opened = open_metrics(self, self._turns, self._log, listeners.metrics)
                self.metrics_url = await stack.enter_async_context(opened)
            self._start_soon(partial(trio.to_thread.run_sync, load_tables))
            await self._serve(listeners, task_status)

    async def _serve(self, listeners: Listeners, task_status: trio.TaskStatus["Server"]) -> None:
        ending = self.ending
        async with trio.open_nursery() as clients:  # ends last
            async with trio.open_nursery() as web_acceptors:  # a balancer asks whether we are ready
                async with trio.open_nursery() as acceptors:  # stops first
                    accept = partial(trio.serve_listeners, handler_nursery=clients)
                    served = [
                        (acceptors, self._with_tls(self._connections.handle), listeners.tcp),
                        (acceptors, self._connections.handle, listeners.unix),
                    ]
                    if listeners.web:  # made now: its imports and files take a tenth of a second
                        handle_web = self._with_tls(self._web.handle)
                        served.append((web_acceptors, handle_web, listeners.web))
                    for nursery, handle, opened in served:
                        if opened:
                            fair = [FairListener(each, self._turns) for each in opened]
                            await nursery.start(accept, handle, fair)
                    task_status.started(self)
                    await ending.begun.wait()
                    acceptors.cancel_scope.cancel(reason="the server is ending")
                await ending.shut_down.wait()
                web_acceptors.cancel_scope.cancel(reason="the server is shutting down")
            self._backend.before_shutdown()
            stopping = "Shutting down multi-chat server"
            self._log.line("stop", stopping, fields={"event": "stopping"})
            deadline = trio.current_time() + self.config.grace_seconds
            ending.limit_clients(clients.cancel_scope, deadline + self.config.timeouts.linger)
            with trio.CancelScope() as closing:
                ending.limit_closing(closing, deadline)
                await self.close()

    def _with_tls(self, handle: Callable[..., Awaitable[None]]) -> _Handler:
        """Return a handler that passes to *handle* the TLS context of the moment."""

        def handle_stream(stream: trio.SocketStream) -> Awaitable[None]:
            return handle(stream, tls=self.settings.tls)

        return handle_stream

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Server"]:
        """Run the tasks that belong to no client: the backend, announcements, bots.

        Clients may be handled and bots started while the block runs.  At its end, bots may finish
        if `close` was called, and are cancelled otherwise.  `run` does this itself.

        Raises `JournalFailed`.
        """
        with lone_exception():
            async with trio.open_nursery() as self._nursery:
                await self._nursery.start(self._backend.run)
                try:
                    self._registry.load()
                    if self._backend.is_shared:
                        self._other_nodes.load()
                        self._nursery.start_soon(self._other_nodes.follow)
                    for advice in self.settings.operators_advice():
                        self._log.line("start", advice, WARNING)
                    self._start_soon(self._turns.run)
                    self._start_soon(self._statistics.run)
                    async with self._bots.open():
                        yield self
                        if not self._registry.closed:
                            self._bots.cancel()
                finally:
                    self._nursery.cancel_scope.cancel(reason="the server has ended")
                    self._nursery = None

    def _start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:  # otherwise the server has ended
            self._nursery.start_soon(self._guard, task)

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except* Exception as group:  # noqa: BLE001 - a bug of ours must not end the server
            self._log.crash("a task crashed", group)

    async def start_bot(
        self,
        bot: Bot,
        *,
        name: str | None = None,
        room: str | None = None,
    ) -> None:
        """Start *bot*, a client that runs as a task of this server.

        Returns when it is in its room.  It gets a `Chat` as `connect` yields it, and leaves when it
        returns.  An exception of the bot's is logged.  If it is slow it lags, as any client.  When
        its connection has ended, it is cancelled after the linger timeout.  Raises `RuntimeError`
        if the server is not open, `Refused` if it cannot have that name or room, or is not
        admitted.
        """
        await self._bots.start(bot, name=name, room=room)

    @property
    def members(self) -> list[MemberInfo]:
        """The connected clients, in the order in which they connected."""
        return [client.info() for client in self._registry.clients]

    def find(self, who: str | int) -> int | None:
        """Return the number of the client with that name or number; None if there is none.

        It may be on another node of a cluster.
        """
        client = self._registry.find(who) or self._registry.find_elsewhere(who)
        return None if client is None else client.number

    def statistics(self) -> ServerStatistics:
        """Return a snapshot; takes a time proportional to the number of clients."""
        return self._statistics.take()

    def why_not_ready(self) -> str:
        """Return why this server should get no new clients now; empty if it should.

        A few words for everybody, also for strangers: they name no file and no address.  The
        connected clients are served as well as possible.
        """
        if self._nursery is None:
            return "not running"
        if self.shutting_down or self._registry.closed:
            return "shutting down"
        return "draining" if self.draining else self._backend.fault

    async def broadcast(self, text: str) -> Receipt:
        """Send *text* to all clients in all rooms, as the server; one message, also with LF in it.

        Returns what became of it, in members.  Waits for slow members as any message does.
        Cancelled before its turn in a room, it is not sent there.  Raises `LocalProtocolError` if
        *text* is empty.
        """
        await trio.lowlevel.checkpoint()
        message = _message(text)
        if self._backend.is_shared:
            self._backend.announce(message)
        return await self._registry.broadcast(message)

    async def tell(self, client: int, text: str) -> None:
        """Send *text* to *client* alone, as the server; waits as for any private message.

        Raises `UnknownClient`, `NotDelivered` if the client is too slow, and `LocalProtocolError`
        if *text* is empty; for a client of another node also `DeliveryUnknown` and `StorageFailed`.
        """
        await trio.lowlevel.checkpoint()
        message = _message(text)
        if (elsewhere := self._registry.find_elsewhere(client)) is not None:
            await tell_elsewhere(elsewhere, message, self._backend)
        else:
            await tell(self._client(client), Notice(message), self.config)

    def kick(self, client: int, reason: str = "kicked") -> None:
        """Disconnect *client* at once; the *reason* is sent to it and logged.

        Raises `UnknownClient` if it is not connected.
        """
        goodbye = Goodbye.of("kicked", clean(reason) or "kicked")
        if self._registry.find_elsewhere(client) is None:
            self._client(client)
        self._registry.kick(client, goodbye)
        if self._backend.is_shared:  # it may be on another node by now
            self._backend.disconnect(client, goodbye.code, goodbye.reason)

    def _client(self, number: int) -> Client:
        client = self._registry.find(number)
        if client is None:
            raise UnknownClient(number)
        return client

    @property
    def bans(self) -> list[Ban]:
        """The bans in force now."""
        return self._ban_keeper.current()

    def ban(self, ban: Ban) -> list[int]:
        """Add *ban*, and disconnect the clients that it covers; return their numbers.

        Raises `TooManyBans`.
        """
        return self._ban_keeper.add(ban)

    def unban(self, target: str) -> bool:
        """Remove the ban of exactly that target; return whether it existed.

        For targets see `multichat.server.bans`.  Raises `InvalidBan` if *target* is not valid.
        """
        return self._ban_keeper.remove(target)

    def keep_bans(self, path: Path) -> None:
        """Load the bans from the file at *path*, and save all changes to it from now on.

        From now on, `reload` puts what was changed in the file in force.  Raises `OSError` if it
        cannot be read, `InvalidBanFile` if a line is not valid.
        """
        self._ban_keeper.keep_in(path)
        self.reloading.add("bans", self._ban_keeper.read_again, self._ban_keeper.merge)

    async def reload(self) -> list[str]:
        """Read the files again of all that was added to `reloading`; see `Reloading.reload`.

        Returns lines for the operator.  Raises `ReloadFailed`.
        """
        return await self.reloading.reload()

    def drain(self, seconds: float | None = None) -> None:
        """Start to drain: within *seconds*, all clients are told to reconnect; then, `shutdown`.

        By default, *seconds* are `ServerConfig.drain_seconds`.  `run` stops accepting clients at
        once; the web port continues to answer requests, and refuses WebSockets.  After a pause (see
        `ServerTimeouts.drain_pause`) each client gets the goodbye `draining`, evenly spread over
        the rest of the time.  It ends as soon as no client is left; bots stay until the shutdown.

        Does nothing if the server drains already, or shuts down.  Raises `LocalProtocolError` if
        *seconds* is negative or more than a day.
        """
        if self._nursery is None:
            self.shutdown()  # it is not open, and has no clients
        else:
            self.ending.drain(seconds)

    @property
    def draining(self) -> bool:
        """Whether the server drains, and does not shut down yet."""
        return self.ending.draining

    def shutdown(self) -> None:
        """Start the shutdown: `run` delivers what is queued and returns.  Idempotent.

        Ends a drain.
        """
        self.ending.shutdown()

    def abort(self) -> None:
        """Shut down at once: `run` says goodbye to the clients and returns.  Idempotent.

        What is accepted is stored; what is queued for slow clients is lost.
        """
        self.ending.abort()

    @property
    def shutting_down(self) -> bool:
        """Whether the shutdown has begun."""
        return self.ending.shut_down.is_set()

    async def close(self) -> None:
        """Deliver the messages under way, then say goodbye to all clients.

        Cancelled, it does the same without waiting for slow clients.  Sessions end by themselves,
        in the tasks that called `handle`, within the grace and linger timeouts.
        """
        self._admission.close()
        await self._registry.close(SHUTTING_DOWN)

    async def handle(
        self,
        stream: trio.abc.Stream,
        *,
        tls: ssl.SSLContext | None = None,
        trusted: bool = False,
    ) -> None:
        """Serve one client on *stream* until it has left; closes the stream.

        With *tls*, the client must use TLS.  A *trusted* client is not authenticated.  The server
        MUST be open.  Raises nothing: this is the boundary of one connection, and logs what goes
        wrong in it.
        """
        await self._connections.handle(stream, tls=tls, trusted=trusted)

    @cached_property
    def _webhook(self) -> "Webhook":
        from multichat.server.webhook import Webhook

        return Webhook(self.config, self._registry, self._filters)

    @cached_property
    def _web(self) -> "WebPort":
        # They import h11, which other servers do not need.
        from multichat.server.web import WebPort

        return WebPort(
            self,
            self._connections,
            self._admission,
            self._turns,
            self._log,
            self._webhook,
            names=self._web_names,
        )

    async def handle_web(
        self, stream: trio.abc.Stream, *, tls: ssl.SSLContext | None = None
    ) -> None:
        """Serve one connection of the web port on *stream* until it is closed; closes the stream.

        Answers one HTTP request, or serves a WebSocket.  See `handle`.
        """
        await self._web.handle(stream, tls=tls)


async def serve(
    port: int | None = DEFAULT_PORT,
    *,
    host: str | Sequence[str] | None = None,
    tls: ssl.SSLContext | None = None,
    unix: Path | None = None,
    web: int | None = None,
    config: ServerConfig | None = None,
    journal: Journal | None = None,
    authenticate: Authenticate | None = None,
    on_join: OnJoin | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a chat server on TCP *port* until `Server.shutdown` is called; for `nursery.start`.

    With *web*, that port has the page in the browser.  Passes its `Server` to `task_status` once
    connections are accepted.  For *config*, *journal*, *authenticate* and *on_join* see `Server`,
    for the rest `Server.run`.
    """
    server = Server(config, journal=journal, authenticate=authenticate, on_join=on_join)
    await server.run(port, host=host, tls=tls, unix=unix, web=web, task_status=task_status)


def _message(text: str) -> str:
    """Return *text* as it is sent; raises `LocalProtocolError` if it is empty."""
    text = clean(text)
    if not text:
        raise LocalProtocolError("an empty message cannot be sent")
    return text
