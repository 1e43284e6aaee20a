"""The server: listeners, the nursery tree, who may come in, and how it all ends.

Knows every client by its number; what they say to each other is the room's business, and how one
of them is spoken to the session's.
"""

import errno
import gc
import math
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from multichat import transport
from multichat.client import Chat, open_chat
from multichat.config import DEFAULT_PORT, ServerConfig
from multichat.directory import Directory
from multichat.errors import (
    ListenFailed,
    LocalProtocolError,
    Refused,
    UnknownClient,
    lone_exception,
)
from multichat.framing import clean
from multichat.log import Log
from multichat.messages import Goodbye
from multichat.room import Receipt
from multichat.session import Session
from multichat.voices import TEXT

__all__ = ["MemberInfo", "Server", "ServerStatistics", "serve", "serve_until_signal"]

# How a machine without IPv6 refuses to listen on it.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

# With Python's own threshold of 700 the collector runs for every dozen clients that come in: a
# fifth to a third of the time that 5,000 took.  Clients who leave don't wait for it.
_GARBAGE_OBJECTS = 50_000

# Listeners, the log, standard input and output, the loop itself, clients on their way out.
_FILES_OF_OUR_OWN = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberInfo:
    """A connected client, at the moment of asking; *address* is empty where there is none."""

    client: int
    name: str
    room: str
    address: str
    waiting_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerStatistics:
    """What a server has done since it began, and how much waits in its mailboxes now.

    *deliveries* counts a message once for each member that got it, *skipped* once for each that
    missed it under the `drop` policy, *too_slow* the members that had to go for that reason.
    """

    clients: int
    rooms: int
    clients_ever: int
    refused: int
    messages: int
    deliveries: int
    skipped: int
    too_slow: int
    waiting_bytes: int


class Server:
    """A chat server; constructing it starts nothing.

    `run` serves TCP ports.  Somebody who has streams of their own opens the server with `open`,
    gives each stream to `handle`, in a task of its own, and calls `close` in the end.  All other
    methods may be called by any task of the same trio run; `broadcast` alone waits.

    *port* is the first TCP port that is listened on and *addresses* are all of them, spelled
    `0.0.0.0:9000`, `[::]:9000`; 0 and none until it listens.
    """

    def __init__(self, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self.port = 0
        self.addresses: list[str] = []
        self._log = Log("server")
        self._directory = Directory(self.config, self._log, self._start_soon)
        self._nursery: trio.Nursery | None = None
        self._bots: trio.Nursery | None = None
        self._shutdown = trio.Event()
        self._clients_ever = self._refused = 0

    async def run(
        self,
        port: int = DEFAULT_PORT,
        *,
        host: str | Sequence[str] | None = None,
        task_status: trio.TaskStatus["Server"] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve clients on TCP *port* until `shutdown` is called; once.

        *host* is an address or name, or several; None is every interface, IPv4 and IPv6.  With
        port 0 the system chooses one for the first address, and further hosts share it.  Hands the
        server itself to `task_status` when connections are accepted.

        Ends in two phases after `shutdown`: it stops accepting; what is being said reaches
        everyone; all are told goodbye and get what waits for them, for at most the grace period.
        Cancelled, it ends at once and what waits is lost.

        Raises `ListenFailed` if the system does not let us listen.
        """
        listeners = await self._listen(port, host)
        names = [listener.socket.getsockname() for listener in listeners]
        self.port = names[0][1]
        self.addresses = [transport.spell_address(name) for name in names]
        # Before anybody can connect: these are the first lines of the log.
        self._log.line("start", f"Starting multi-chat server on port {self.port}")
        for address in self.addresses:
            self._log.line("start", f"Listening on {address}")
        async with self.open(), trio.open_nursery() as clients:  # ends last
            async with trio.open_nursery() as acceptors:  # stops first
                accept = partial(trio.serve_listeners, handler_nursery=clients)
                await acceptors.start(accept, self.handle, listeners)
                task_status.started(self)
                await self._shutdown.wait()
                acceptors.cancel_scope.cancel(reason="the server is shutting down")
            self._log.line("stop", "Shutting down multi-chat server")
            deadline = trio.current_time() + self.config.grace_seconds
            with trio.move_on_at(deadline):
                await self.close()
            clients.cancel_scope.deadline = deadline + transport.LINGER_SECONDS

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Server"]:
        """Have the tasks that are nobody's: bots, and who tells rooms who came and went.

        Clients are handled, and bots started, while the block runs.  At its end bots that have been
        told goodbye may come to theirs; otherwise they are cancelled.  `run` does this itself.
        """
        with lone_exception():
            async with trio.open_nursery() as self._nursery:
                try:
                    async with trio.open_nursery() as self._bots:
                        yield self
                        if not self._directory.closed:
                            self._bots.cancel_scope.cancel(reason="the server has ended")
                finally:
                    self._nursery.cancel_scope.cancel(reason="the server has ended")
                    self._nursery = self._bots = None

    def _start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:  # else it has ended, and there is nobody to tell anything
            self._nursery.start_soon(self._guard, task)

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except* Exception as group:  # noqa: BLE001 - our own bug, and no reason to end
            self._log.crash("a task crashed", group)

    async def start_bot(
        self,
        bot: Callable[[Chat], Awaitable[object]],
        *,
        name: str | None = None,
        room: str | None = None,
    ) -> None:
        """Start *bot*, a task of this server's that talks as a client among the others.

        Returns when it is in its room.  It gets a `Chat` as `connect` gives it, and leaves when it
        returns.  What it raises is logged and ends nobody else; if it falls behind it has to go, as
        anybody; a moment after it has left it is cancelled.  Raises `RuntimeError` if the server is
        not open, `Refused` if it cannot have that name or room, or the server is full.
        """
        if self._bots is None:
            raise RuntimeError("the server is not open")
        await self._bots.start(self._run_bot, bot, name, room)

    async def _run_bot(
        self,
        bot: Callable[[Chat], Awaitable[object]],
        name: str | None,
        room: str | None,
        task_status: trio.TaskStatus[None],
    ) -> None:
        started = False
        try:
            # Real sockets: bounded, and offered to as everybody's.
            ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
            with lone_exception():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._handle_bot, theirs, nursery.cancel_scope)
                    wishes = partial(open_chat, name=name, room=room, hello_seconds=math.inf)
                    async with wishes(ours) as chat:
                        if chat.welcome is None:
                            reason = chat.goodbye or "the server has ended"
                            raise Refused("refused", reason)  # noqa: TRY301 - for who started it
                        started = True
                        task_status.started()
                        await bot(chat)
        except Exception as error:  # the boundary of one bot
            if not started:
                raise
            called = name or getattr(bot, "__name__", "without a name")
            self._log.crash(f"the bot {called} crashed", error)

    async def _handle_bot(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        await self.handle(stream)
        scope.deadline = trio.current_time() + transport.LINGER_SECONDS

    async def _listen(
        self, port: int, host: str | Sequence[str] | None
    ) -> list[trio.SocketListener]:
        everywhere = host is None
        if host is None:
            hosts: Sequence[str | None] = ("0.0.0.0", "::") if port == 0 else (None,)  # noqa: S104
        else:
            hosts = (host,) if isinstance(host, str) else host
        if not hosts:
            raise ValueError("there is no host to listen on")
        listeners: list[trio.SocketListener] = []
        for each in hosts:
            try:
                listeners += await trio.open_tcp_listeners(port, host=each)
            except (OSError, ValueError) as error:
                if everywhere and listeners and getattr(error, "errno", None) in _NO_IPV6:
                    break
                for listener in listeners:
                    listener.socket.close()
                raise ListenFailed(each, port, transport.reason_of(error)) from error
            port = port or listeners[0].socket.getsockname()[1]
        return listeners

    @property
    def members(self) -> list[MemberInfo]:
        """Who is connected now, in the order of their coming."""
        return [
            MemberInfo(
                client=member.client,
                name=member.name,
                room=member.room.name,
                address=member.address,
                waiting_bytes=member.mailbox.waiting_bytes,
            )
            for member in self._directory.members
        ]

    def statistics(self) -> ServerStatistics:
        """Return a snapshot."""
        directory, counts = self._directory, self._directory.counts
        return ServerStatistics(
            clients=len(directory),
            rooms=len(directory.rooms),
            clients_ever=self._clients_ever,
            refused=self._refused,
            messages=counts.messages,
            deliveries=counts.deliveries,
            skipped=counts.skipped,
            too_slow=counts.too_slow,
            waiting_bytes=sum(member.mailbox.waiting_bytes for member in directory.members),
        )

    async def broadcast(self, text: str) -> Receipt:
        """Say *text* to everybody in every room, as the server; one message, whatever it holds.

        Returns what became of it, in members.  Waits for slow members as for anybody's message;
        cancelled before its turn, it has not been said.  Raises `LocalProtocolError` if *text* is
        empty.
        """
        text = clean(text)
        if not text:
            raise LocalProtocolError("an empty message cannot be said")
        await trio.lowlevel.checkpoint()
        return await self._directory.broadcast(text)

    def kick(self, client: int, reason: str = "kicked") -> None:
        """Have *client* leave at once; it is told the *reason*, and the log too.

        Raises `UnknownClient` if it is not connected.
        """
        member = self._directory.find(client)
        if member is None:
            raise UnknownClient(client)
        self._directory.dismiss(member, clean(reason) or "kicked")

    def shutdown(self) -> None:
        """Ask the server to end: `run` goes through its shutdown and returns.  Idempotent."""
        self._shutdown.set()

    @property
    def shutting_down(self) -> bool:
        """Whether somebody has called `shutdown`."""
        return self._shutdown.is_set()

    async def close(self) -> None:
        """Let what is being said reach everyone, then say goodbye to all.

        Cancelled, it no longer waits for the slow ones, and has done the rest all the same.
        Sessions end by themselves, in the tasks that called `handle`, within the grace period
        and what it takes to hang up.
        """
        await self._directory.close("the server is shutting down")

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one client on *stream* until it is gone; the stream is closed in the end.

        The server MUST be open.  The boundary of one connection: whatever goes wrong in it is
        logged and stays here.
        """
        try:
            transport.keep_alive(stream)
            if len(self._directory) >= self.config.max_clients:
                await self._refuse(stream)
                return
            self._clients_ever += 1
            session = Session(
                stream,
                self._directory,
                self._clients_ever,
                self.config,
            )
            await session.run()
        except* Exception as group:  # noqa: BLE001 - the boundary of one connection
            self._log.crash("a session crashed", group)
        finally:
            await trio.aclose_forcefully(stream)

    async def _refuse(self, stream: trio.abc.Stream) -> None:
        self._refused += 1
        reason = f"the server is full ({self.config.max_clients} clients)"
        address = transport.peer_address(stream) or "a client"
        self._log.line("STATE", f"Refused {address}: {reason}")
        try:
            with trio.move_on_after(transport.LINGER_SECONDS):
                await stream.send_all(TEXT.spell(Goodbye(reason)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        await transport.hang_up(stream)


async def serve(
    port: int = DEFAULT_PORT,
    *,
    host: str | Sequence[str] | None = None,
    config: ServerConfig | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a chat server on TCP *port* until it is told to shut down; for `nursery.start`.

    Hands its `Server` to `task_status` when connections are accepted.  For the rest see
    `Server.run`.
    """
    await Server(config).run(port, host=host, task_status=task_status)


async def serve_until_signal(
    port: int, *, host: Sequence[str] | None, config: ServerConfig
) -> None:
    """Run a chat server as a process of its own: SIGINT or SIGTERM shuts it down.

    A second signal ends it at once.  Raises as `Server.run` does.
    """
    _allow_files(config.max_clients)
    gc.freeze()  # what has been imported stays
    gc.set_threshold(_GARBAGE_OBJECTS)
    server = Server(config)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, lone_exception():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, signals, server, nursery.cancel_scope)
            await server.run(port, host=host)
            nursery.cancel_scope.cancel(reason="the server has ended")


async def _obey_signals(
    signals: AsyncIterator[int], server: Server, scope: trio.CancelScope
) -> None:
    async for _ in signals:
        if server.shutting_down:
            scope.cancel(reason="a second signal")
        server.shutdown()


def _allow_files(clients: int) -> None:
    """Raise our limit of open files, where the system lets us, so that so many *clients* fit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + _FILES_OF_OUR_OWN
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
