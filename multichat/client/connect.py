"""How a client gets to a server, and a conversation with it: over TCP, TLS or a Unix socket.

A stream that is returned is connected, and closed by whoever gets it.
"""

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from multichat.client.chat import Chat
from multichat.client.reconnect import Redial, backoff
from multichat.client.timeouts import DEFAULT_TIMEOUTS, ClientTimeouts
from multichat.errors import BadCertificate, ConnectFailed
from multichat.net import transport

__all__ = [
    "Endpoint",
    "client_tls",
    "connect",
    "dial",
    "dial_unix",
    "dial_until_there",
    "open_chat",
]

_PERHAPS_NO_TLS = "if the server does not speak TLS, leave out --tls"


async def dial(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    tls_name: str | None = None,
    timeouts: ClientTimeouts = DEFAULT_TIMEOUTS,
) -> trio.abc.Stream:
    """Connect to *host* and *port*, with *tls* if that is given.

    The server's certificate has to be for *tls_name*, or else for *host*.  Of *timeouts* `connect`
    and `handshake` are used.  Raises `ConnectFailed` if the server cannot be reached in time, or
    cannot be trusted.
    """
    stream = None
    try:
        with trio.move_on_after(timeouts.connect):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, ValueError) as error:  # a host that cannot be encoded is a ValueError
        lasting = isinstance(error, ValueError)
        raise ConnectFailed(host, port, transport.reason_of(error), lasting=lasting) from error
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
        lasting = isinstance(error.__cause__, ssl.SSLCertVerificationError)
        if transport.is_no_tls(error):
            reason, lasting = "the server does not speak TLS: leave out --tls", True
        elif isinstance(error, trio.TooSlowError):
            reason = f"no TLS handshake in {timeouts.handshake:g} s; {_PERHAPS_NO_TLS}"
        elif isinstance(error, trio.BrokenResourceError | ValueError | ssl.SSLError):
            reason = transport.reason_of(error)
            cause = error.__cause__
            if isinstance(cause, ssl.SSLEOFError | ConnectionError):
                reason += f"; {_PERHAPS_NO_TLS}"
        else:
            raise
        raise ConnectFailed(host, port, reason, lasting=lasting) from error
    return encrypted


async def dial_unix(path: Path) -> trio.abc.Stream:
    """Connect to the Unix socket at *path*; raises `ConnectFailed`."""
    try:
        return await trio.open_unix_socket(str(path))
    except RuntimeError:
        raise ConnectFailed(str(path), None, "this system has no Unix sockets") from None
    except OSError as error:
        raise ConnectFailed(str(path), None, transport.reason_of(error)) from error


def client_tls(authority: Path | None = None) -> ssl.SSLContext:
    """Return the TLS of a client that trusts *authority*, a PEM file, or else what the system does.

    TLS 1.2 and up.  Raises `BadCertificate`.
    """
    if authority is not None:
        transport.check_pem_file(authority)
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        is_tls = isinstance(error, ssl.SSLError)
        reason = "no certificate in PEM form" if is_tls else transport.reason_of(error)
        raise BadCertificate(authority, reason) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where a server is to be found, and how: *host* and *port*, or the socket at *unix*."""

    host: str = ""
    port: int = 0
    tls: ssl.SSLContext | None = None
    tls_name: str | None = None
    unix: Path | None = None
    timeouts: ClientTimeouts = DEFAULT_TIMEOUTS

    def __str__(self) -> str:
        return transport.format_address((self.host, self.port) if self.unix is None else self.unix)

    async def dial_until_there(
        self, tell: Callable[[ConnectFailed], object] = lambda _: None
    ) -> trio.abc.Stream:
        """Connect once the server is there; see `dial_until_there`."""
        return await dial_until_there(self.dial, tell, timeouts=self.timeouts)

    async def dial(self) -> trio.abc.Stream:
        """Connect; see `dial` and `dial_unix`."""
        if self.unix is not None:
            return await dial_unix(self.unix)
        return await dial(
            self.host, self.port, tls=self.tls, tls_name=self.tls_name, timeouts=self.timeouts
        )


async def dial_until_there(
    dial: Redial,
    tell: Callable[[ConnectFailed], object] = lambda _: None,
    *,
    timeouts: ClientTimeouts = DEFAULT_TIMEOUTS,
) -> trio.abc.Stream:
    """Dial until somebody is there; *tell* is called once, with the first failure.

    After `ClientTimeouts.wait` seconds the last failure is raised.

    Raises `ConnectFailed` where it would be no use to go on.
    """
    pauses = backoff(timeouts)
    told = False
    give_up_at = trio.current_time() + timeouts.wait
    while True:
        try:
            return await dial()
        except ConnectFailed as error:
            if error.lasting or trio.current_time() >= give_up_at:
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
    password: str | None = None,
    plain: bool = False,
    timeouts: ClientTimeouts = DEFAULT_TIMEOUTS,
    replay: int = 0,
    redial: Redial | None = None,
    wait: bool = False,
) -> AsyncGenerator[Chat]:
    """Hold a conversation over *stream*, which is closed in the end.

    Asks for JSON, a *name* and a *room*; the block begins when the other side has answered.  A
    server that does not answer in JSON is spoken to in text, and the wishes are forgotten; one that
    does not answer at all in `ClientTimeouts.answer` seconds is an error, `NoJson`.  *plain* speaks
    text from the start and never asks.  The *password* is said to a server that asks for one.
    Raises `Refused` if the server cannot grant a wish, or asks for a password and has not got it.
    The last *replay* messages of the room are told first, in JSON.

    *redial* returns another stream to the same server: with it the conversation continues after a
    connection is lost, as `Chat` says; with *wait*, also after one that is lost before the server
    has answered; with *plain* that is its answer to the password.  Those streams are closed here,
    too.

    Leaving the block sends what was said and the end of input, and waits for the server to have
    seen them as `Chat.finish` does; leaving it by an exception or cancellation closes at once.
    """
    chat = Chat(
        stream,
        name=name,
        room=room,
        password=password,
        plain=plain,
        timeouts=timeouts,
        replay=replay,
        redial=redial,
        wait=wait,
    )
    async with chat.open():
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
    password: str | None = None,
    plain: bool = False,
    timeouts: ClientTimeouts = DEFAULT_TIMEOUTS,
    replay: int = 0,
    reconnect: bool = True,
    wait: bool = False,
) -> AsyncGenerator[Chat]:
    """Connect to the server on *host* and *port* and hold a conversation.

    *timeouts* are for connecting and for the conversation.  For *tls* and *tls_name* see `dial`,
    which raises `ConnectFailed`, but not if we *wait* until the server is there; for the rest see
    `open_chat`.  Unless *reconnect* is false a connection
    that is lost is followed by another, and the program hears `Disconnected` and `Reconnected`.
    """
    endpoint = Endpoint(host=host, port=port, tls=tls, tls_name=tls_name, timeouts=timeouts)
    stream = await (endpoint.dial_until_there() if wait else endpoint.dial())
    async with open_chat(
        stream,
        name=name,
        room=room,
        password=password,
        plain=plain,
        timeouts=timeouts,
        replay=replay,
        redial=endpoint.dial if reconnect else None,
        wait=wait,
    ) as chat:
        yield chat
