"""The server: listeners, the nursery tree, who may come in, and how it all ends.

Knows every client by its number; what they say to each other is the room's business, and how one
of them is spoken to the session's.
"""

import errno
import gc
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from multichat import transport
from multichat.config import DEFAULT_PORT, ServerConfig
from multichat.errors import ListenFailed, LocalProtocolError, UnknownClient, lone_exception
from multichat.framing import clean
from multichat.log import Log
from multichat.messages import Goodbye
from multichat.room import Receipt, Room
from multichat.session import Session
from multichat.voices import SERVER_NAME, TEXT

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
    address: str
    waiting_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerStatistics:
    """What a server has done since it began, and how much waits in its mailboxes now.

    *deliveries* counts a message once for each member that got it, *skipped* once for each that
    missed it under the `drop` policy, *too_slow* the members that had to go for that reason.
    """

    clients: int
    clients_ever: int
    refused: int
    messages: int
    deliveries: int
    skipped: int
    too_slow: int
    waiting_bytes: int


class Server:
    """A chat server; constructing it starts nothing.

    `run` serves TCP ports.  Somebody who has streams of their own gives each to `handle`, in a task
    of its own, and calls `close` in the end.  All other methods may be called by any task of the
    same trio run; `broadcast` alone waits.

    *port* is the first TCP port that is listened on and *addresses* are all of them, spelled
    `0.0.0.0:9000`, `[::]:9000`; 0 and none until it listens.
    """

    def __init__(self, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self.port = 0
        self.addresses: list[str] = []
        self._log = Log("server")
        self._room = Room(self._log, slow=self.config.slow)
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
        with lone_exception():
            async with trio.open_nursery() as clients:  # ends last
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
                address=member.address,
                waiting_bytes=member.mailbox.waiting_bytes,
            )
            for member in self._room.members
        ]

    def statistics(self) -> ServerStatistics:
        """Return a snapshot."""
        room = self._room
        return ServerStatistics(
            clients=len(room),
            clients_ever=self._clients_ever,
            refused=self._refused,
            messages=room.messages,
            deliveries=room.deliveries,
            skipped=room.skipped,
            too_slow=room.too_slow,
            waiting_bytes=sum(member.mailbox.waiting_bytes for member in room.members),
        )

    async def broadcast(self, text: str) -> Receipt:
        """Say *text* to everybody, as the server; one message, whatever it holds.

        Returns what became of it, in members.  Waits for slow members as for anybody's message;
        cancelled before its turn, it has not been said.  Raises `LocalProtocolError` if *text* is
        empty.
        """
        text = clean(text)
        if not text:
            raise LocalProtocolError("an empty message cannot be said")
        await trio.lowlevel.checkpoint()
        return await self._room.say(SERVER_NAME, text, tag="TX")

    def kick(self, client: int, reason: str = "kicked") -> None:
        """Have *client* leave at once; it is told the *reason*, and the log too.

        Raises `UnknownClient` if it is not connected.
        """
        member = self._room.find(client)
        if member is None:
            raise UnknownClient(client)
        self._room.dismiss(member, clean(reason) or "kicked")

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
        await self._room.close("the server is shutting down")

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one client on *stream* until it is gone; the stream is closed in the end.

        The boundary of one connection: whatever goes wrong in it is logged and stays here.
        """
        try:
            transport.keep_alive(stream)
            if len(self._room) >= self.config.max_clients:
                await self._refuse(stream)
                return
            self._clients_ever += 1
            session = Session(
                stream,
                self._room,
                self._clients_ever,
                max_line_bytes=self.config.max_line_bytes,
                mailbox_batches=self.config.mailbox_batches,
                patience_seconds=self.config.patience_seconds,
                grace_seconds=self.config.grace_seconds,
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
