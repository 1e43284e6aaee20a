"""How a client connects to a server: over TCP, TLS or a Unix socket.

A stream that is returned is connected; the caller closes it.
"""

import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from multichat.client.backoff import backoff
from multichat.client.chat import Chat
from multichat.client.options import ChatOptions, list_of_rooms
from multichat.client.reconnect import Redial
from multichat.client.timeouts import DEFAULT_TIMEOUTS, ClientTimeouts
from multichat.errors import BadCertificate, ConnectFailed, Remedy
from multichat.net import transport
from multichat.protocol.messages import Credentials

__all__ = [
    "Endpoint",
    "client_tls",
    "connect",
    "dial",
    "dial_first",
    "dial_unix",
    "open_chat",
]


async def dial(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    tls_name: str | None = None,
    timeouts: ClientTimeouts = DEFAULT_TIMEOUTS,
) -> trio.abc.Stream:
    """Connect to *host* and *port*, with TLS if *tls* is given.

    The server's certificate must be valid for *tls_name*, by default for *host*.  Uses the timeouts
    `connect` and `handshake`.  Raises `ConnectFailed` if the server cannot be reached in time, or
    is not trusted.
    """
    stream = None
    try:
        with trio.move_on_after(timeouts.connect):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, ValueError) as error:  # a host that cannot be encoded is a ValueError
        lasting = isinstance(error, ValueError)
        raise ConnectFailed(host, port, transport.describe_error(error), lasting=lasting) from error
    if stream is None:
        raise ConnectFailed(host, port, f"no answer in {timeouts.connect:g} s")
    transport.keep_alive(stream)
    if tls is None:
        return stream
    try:
        encrypted = transport.encrypt(stream, tls, tls_name or host)
        with trio.fail_after(timeouts.handshake):
            await encrypted.do_handshake()
    except BaseException as error:
        await transport.close(stream)
        cause, remedy = error.__cause__, None
        lasting = isinstance(cause, ssl.SSLCertVerificationError)
        if transport.is_not_tls(error):
            reason, lasting, remedy = "the server does not use TLS", True, Remedy.OMIT_TLS
        elif isinstance(error, trio.TooSlowError):
            reason = f"no TLS handshake in {timeouts.handshake:g} s"
            remedy = Remedy.PERHAPS_OMIT_TLS
        elif isinstance(error, trio.BrokenResourceError | ValueError | ssl.SSLError):
            reason = transport.describe_error(error)
            if isinstance(cause, ssl.SSLEOFError | ConnectionError):
                remedy = Remedy.PERHAPS_OMIT_TLS
            elif transport.has_unknown_issuer(error):
                remedy = Remedy.TRUST_ISSUER
            elif transport.has_another_name(error):
                remedy = Remedy.NAME_CERTIFICATE
        else:
            raise
        raise ConnectFailed(host, port, reason, lasting=lasting, remedy=remedy) from error
    return encrypted


async def dial_unix(path: Path) -> trio.abc.Stream:
    """Connect to the Unix socket at *path*; raises `ConnectFailed`."""
    try:
        return await trio.open_unix_socket(str(path))
    except RuntimeError:
        raise ConnectFailed(str(path), None, "this system has no Unix sockets") from None
    except OSError as error:
        raise ConnectFailed(str(path), None, transport.describe_error(error)) from error


def client_tls(authority: Path | None = None) -> ssl.SSLContext:
    """Return a TLS context for a client that trusts *authority*, a PEM file, or the system's CAs.

    TLS 1.2 or later.  Raises `BadCertificate`.
    """
    if authority is not None:
        transport.check_pem_file(authority)
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        is_tls = isinstance(error, ssl.SSLError)
        reason = "no certificate in PEM form" if is_tls else transport.describe_error(error)
        raise BadCertificate(authority, reason) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """The address of a server: *host* and *port*, or the Unix socket at *unix*.

    *tls* trusts the certificates in *tls_ca*, a PEM file, if that is given.  They are read again
    for each connection, so that a long-running client notices when they are replaced.
    """

    host: str = ""
    port: int = 0
    tls: ssl.SSLContext | None = None
    tls_name: str | None = None
    tls_ca: Path | None = None
    unix: Path | None = None

    def __str__(self) -> str:
        return transport.format_address((self.host, self.port) if self.unix is None else self.unix)

    async def dial(self, timeouts: ClientTimeouts = DEFAULT_TIMEOUTS) -> trio.abc.Stream:
        """Connect to it; see the functions `dial` and `dial_unix`."""
        if self.unix is not None:
            return await dial_unix(self.unix)
        tls = self.tls
        if self.tls_ca is not None:
            with suppress(BadCertificate):  # such as while it is being replaced
                tls = client_tls(self.tls_ca)
        return await dial(self.host, self.port, tls=tls, tls_name=self.tls_name, timeouts=timeouts)


async def dial_first(
    dial: Redial, options: ChatOptions, tell: Callable[[ConnectFailed], object] = lambda _: None
) -> trio.abc.Stream:
    """Dial; with `ChatOptions.wait`, retry until the server can be reached.

    In that case *tell* is called once, with the first failure.  Raises `ConnectFailed`; with
    *wait*, after `ClientTimeouts.wait` seconds, or for a permanent failure.
    """
    pauses = backoff(options.timeouts)
    told = False
    give_up_at = trio.current_time() + options.timeouts.wait
    while True:
        try:
            return await dial()
        except ConnectFailed as error:
            if not options.wait or error.lasting or trio.current_time() >= give_up_at:
                raise
            if not told:
                told = True
                tell(error)
        await trio.sleep(next(pauses))


@asynccontextmanager
async def open_chat(
    stream: trio.abc.Stream,
    *,
    name: str | None = None,
    room: str | None = None,
    rooms: Sequence[str] = (),
    login: Credentials | None = None,
    password: str | None = None,
    plain: bool = False,
    replay: int = 0,
    redial: Redial | None = None,
    wait: bool = False,
    timeouts: ClientTimeouts = DEFAULT_TIMEOUTS,
) -> AsyncGenerator[Chat]:
    """Open a chat over *stream*, which is closed at the end.

    Requests JSON, a *name* and a *room*; the block begins when the server has answered.  The chat
    also enters *rooms*; the current room is *room* or else the last of them.  With *login* it logs
    in to an account, and without *name* it uses the account's name.  If the server answers in text,
    the chat uses the text protocol, without name, rooms and account; if it does not answer within
    `ClientTimeouts.answer` seconds, raises `NoJson`.  With *plain*, the chat uses the text protocol
    from the start and sends no hello.  The *password* is sent only to a server that requires one.
    In JSON the last *replay* messages of each room are the first events.

    Raises `Refused` if the server does not admit us (it is full, we are banned, the required
    password is missing or wrong, …), or refuses the name, a room or the login; `NotPrivate` for a
    *login* over a stream that others can read; `LocalProtocolError` if *replay* is negative, or
    *rooms* is not a list of names.  With *plain* the block begins before the server has answered,
    unless it asks for the password: a goodbye is then an event.

    *redial* returns a new stream to the same server, which is also closed here: with it the chat
    reconnects, see `Chat`.  With *wait* it also reconnects if the first connection is lost before
    the server has answered or, in the text protocol, has accepted the password.

    Leaving the block calls `Chat.finish`; an exception or cancellation closes the connection
    immediately.
    """
    options = ChatOptions(
        name=name,
        room=room,
        rooms=list_of_rooms(rooms),
        login=login,
        password=password,
        plain=plain,
        replay=replay,
        wait=wait,
        timeouts=timeouts,
    )
    async with Chat(stream, options, redial=redial).open() as chat:
        yield chat


@asynccontextmanager
async def connect(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    tls_name: str | None = None,
    name: str | None = None,
    room: str | None = None,
    rooms: Sequence[str] = (),
    login: Credentials | None = None,
    password: str | None = None,
    plain: bool = False,
    replay: int = 0,
    reconnect: bool = True,
    wait: bool = False,
    timeouts: ClientTimeouts = DEFAULT_TIMEOUTS,
) -> AsyncGenerator[Chat]:
    """Connect to the server at *host* and *port*, and open a chat.

    For *tls* and *tls_name* see `dial`, which raises `ConnectFailed`; with *wait*, it is retried
    until the server can be reached.  Unless *reconnect* is false, the chat reconnects when the
    connection is lost, with `Disconnected` and `Reconnected` among the events.  For the other
    parameters see `open_chat`.
    """
    options = ChatOptions(
        name=name,
        room=room,
        rooms=list_of_rooms(rooms),
        login=login,
        password=password,
        plain=plain,
        replay=replay,
        reconnect=reconnect,
        wait=wait,
        timeouts=timeouts,
    )
    redial = partial(dial, host, port, tls=tls, tls_name=tls_name, timeouts=timeouts)
    async with Chat(await dial_first(redial, options), options, redial=redial).open() as chat:
        yield chat
