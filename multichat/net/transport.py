"""What we ask of a stream beyond `trio.abc.Stream`, and what we do where it cannot answer.

Everything above this module runs on any stream.  Here stands what only sockets can do, each
behind a function with an honest answer for the rest.
"""

import errno
import math
import os
import select
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from multichat.errors import BadCertificate
from multichat.files import check_regular
from multichat.net.turns import Meter, current_meter

__all__ = [
    "TooMuchData",
    "check_pem_file",
    "close",
    "close_gracefully",
    "eager_fileno",
    "encrypt",
    "format_address",
    "handshake",
    "has_input",
    "is_no_tls",
    "keep_alive",
    "peek",
    "peer_address",
    "peer_user",
    "pending_error",
    "reason_of",
    "receive_some",
    "send_all",
    "unsent_bytes",
]

# A peer that vanished without a word is noticed after about four of these.
KEEP_ALIVE_SECONDS = 30

# So much later than we disconnect a client that takes nothing, the kernel does: whether anybody has
# noticed or not.
USER_TIMEOUT_SECONDS = 60

# After the end of output a connection is read for this long before it is closed: if data arrives
# after a close, the kernel sends a reset, which discards what the peer has not read yet.
LINGER_SECONDS = 1.0

_DISCARD_BYTES = 64 * 1024

# For a layer above a socket that does not say how much it wants.
_RECEIVE_BYTES = 64 * 1024

# Linux: the process, user and group at the other end of a Unix socket.
_CREDENTIALS = struct.Struct("3i")

_AF_UNIX = getattr(socket, "AF_UNIX", None)

_REASONS = {
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ENOTCONN: "connection reset",
    errno.ETIMEDOUT: "connection timed out",
}


def check_pem_file(path: Path) -> None:
    """Raise `BadCertificate` for what is no regular file.

    OpenSSL would wait for the other end of a FIFO, and no signal would end that.
    """
    try:
        check_regular(path)
    except OSError as error:
        raise BadCertificate(path, (error.strerror or "").lower()) from error


def reason_of(error: BaseException) -> str:
    """Say in a few lower-case words why the system, or a stream, refused.

    An exception group, as of several addresses that were tried, gives each reason once.
    """
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(dict.fromkeys(reason_of(each) for each in error.exceptions))
    if isinstance(error, socket.gaierror):
        return (error.strerror or str(error)).lower()
    if isinstance(error, ssl.SSLError):
        return _tls_reason(error)
    if isinstance(error, OSError) and error.errno is not None:
        return _REASONS.get(error.errno) or os.strerror(error.errno).lower()
    if error.__cause__ is not None:
        return reason_of(error.__cause__)
    if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
        return "connection broken"
    return str(error)


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message.rstrip(".").lower()
        hint = "; trust it with --tls-ca FILE" if error.verify_code in _UNKNOWN_ISSUER else ""
        return f"its certificate is not accepted: {reason}{hint}"
    if isinstance(error, ssl.SSLEOFError):
        return "the TLS connection broke off"
    said = (error.reason or str(error)).lower().replace("_", " ")
    _, alert, words = said.partition(" alert ")  # what the other side says of us
    return f"TLS: the other side says {words}" if alert else f"TLS: {said}"


# OpenSSL's numbers for a certificate, or an issuer, that nobody we trust has signed.
_UNKNOWN_ISSUER = (18, 19, 20, 21)

# What OpenSSL calls bytes that are no TLS, in its several versions.
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}


def is_no_tls(error: BaseException) -> bool:
    """Return whether a TLS handshake failed with *error* because the other side speaks no TLS."""
    return getattr(error.__cause__, "reason", None) in _NO_TLS


class TooMuchData(trio.BrokenResourceError):
    """A peer sent more than it may before the TLS handshake is done."""


class _HangingUp(trio.abc.Stream):
    """A stream that is closed as `close_gracefully` does, for the layer above it that closes it.

    Of what comes it hands out at most `max_bytes`, which may be changed, and then is broken.
    """

    def __init__(self, stream: trio.abc.Stream, linger_seconds: float, linger_reads: float) -> None:
        self.stream = stream
        self.max_bytes = math.inf
        self._linger_seconds = linger_seconds
        self._linger_reads = linger_reads

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Do as the stream does."""
        await send_all(self.stream, data)

    async def wait_send_all_might_not_block(self) -> None:
        """Do as the stream does."""
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Do as the stream does; raises `TooMuchData` after `max_bytes`."""
        wanted = min(max_bytes or _RECEIVE_BYTES, self.max_bytes)
        if not wanted:
            raise TooMuchData
        data = await receive_some(self.stream, int(wanted))
        self.max_bytes -= len(data)
        return data

    async def aclose(self) -> None:
        """Hang up."""
        await close_gracefully(self.stream, self._linger_seconds, self._linger_reads)


def encrypt(
    stream: trio.abc.Stream,
    context: ssl.SSLContext,
    server_hostname: str | None = None,
    *,
    linger_seconds: float = LINGER_SECONDS,
    linger_reads: float = math.inf,
) -> "trio.SSLStream[trio.abc.Stream]":
    """Return TLS over *stream*: a client's if it has a *server_hostname*, else a server's.

    The caller calls `do_handshake`.  Closing it sends TLS's own goodbye and closes *stream* as
    `close_gracefully` does, with *linger_seconds* and *linger_reads*.
    """
    return trio.SSLStream(
        _HangingUp(stream, linger_seconds, linger_reads),
        context,
        server_hostname=server_hostname,
        server_side=server_hostname is None,
    )


async def handshake(stream: "trio.SSLStream[trio.abc.Stream]", max_bytes: int) -> None:
    """Do the handshake of a *stream* of `encrypt`, for which at most *max_bytes* are read.

    Raises as `do_handshake`, and `TooMuchData`.
    """
    below = stream.transport_stream
    assert isinstance(below, _HangingUp)  # noqa: S101
    below.max_bytes = max_bytes
    await stream.do_handshake()
    below.max_bytes = math.inf


def _socket_of(stream: trio.abc.Stream) -> trio.SocketStream | None:
    """Return the socket beneath a stream, if there is one."""
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, _HangingUp):
        stream = stream.stream
    return stream if isinstance(stream, trio.SocketStream) else None


def eager_fileno(stream: trio.abc.Stream) -> Callable[[], int] | None:
    """Return what says the number to hand bytes to at once, with `os.write`; None if there is none.

    It MUST be asked anew for each write: it is -1 once the stream is closed, and a number that was
    kept may be somebody else's by then.  The socket does not block: a write takes what fits, and an
    `OSError` means that it took nothing.  One MUST NOT write while a task is in `send_all` of the
    same stream, or while bytes that were meant to go first still wait.
    """
    if type(stream) is not trio.SocketStream or sys.platform == "win32":
        return None  # there, a socket is no file
    return stream.socket.fileno


def peer_address(stream: trio.abc.Stream) -> str:
    """Return where *stream* comes from, as people write it; empty if it cannot be known.

    Taken once, at accept: a peer that has just left has no address any more.
    """
    if (below := _socket_of(stream)) is not None and below.socket.family != _AF_UNIX:
        try:
            return format_address(below.socket.getpeername())
        except OSError:
            pass
    return ""


def peer_user(stream: trio.abc.Stream) -> int | None:
    """Return the number of the user at the other end of a Unix socket; None if it is no such.

    -1 where the system does not say who it is.
    """
    below = _socket_of(stream)
    if below is None or below.socket.family != _AF_UNIX:
        return None
    try:
        credentials = below.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(credentials)[1])
    except (OSError, AttributeError):
        return -1


async def receive_some(stream: trio.abc.Stream, max_bytes: int) -> bytes | bytearray:
    """Do as `stream.receive_some`, but leave no reference cycle behind a broken connection.

    Trio translates a socket's errors in a `contextlib.contextmanager`.  Since Python 3.12 such an
    error and the frame that it passed through refer to each other, so that everything that its
    callers held would stay in memory until the collector runs.

    In a task that serves a connection, what came is returned when it is that connection's turn.
    """
    meter = current_meter.get()
    if type(stream) is trio.SocketStream:
        try:
            if meter is None or sys.platform == "win32":  # there, a socket is no file
                return await stream.socket.recv(max_bytes)
            return await _receive_in_turn(stream.socket, max_bytes, meter)
        except OSError as error:
            raise _stream_error(error) from error
    if meter is None or type(stream) is trio.SSLStream:  # which calls this for what it decrypts
        return await stream.receive_some(max_bytes)
    meter.end()
    data = await stream.receive_some(meter.most_bytes(max_bytes))
    await meter.take()
    return data


async def _receive_in_turn(
    connection: trio.socket.SocketType, max_bytes: int, meter: Meter
) -> bytes:
    """Return what comes when it is its turn, which goes on while more has come already.

    Cancelled, it has read nothing, also while it waits for the turn.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    if meter.has_short_turn:
        data = _read_at_once(connection, meter.most_bytes(max_bytes))
        if data is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return data
    while True:
        meter.end()
        await trio.lowlevel.wait_readable(connection)
        await meter.take()
        data = _read_at_once(connection, meter.most_bytes(max_bytes))
        if data is not None:
            return data


def _read_at_once(connection: trio.socket.SocketType, max_bytes: int) -> bytes | None:
    """Return what has come; None if nothing has."""
    try:
        return os.read(connection.fileno(), max_bytes)
    except BlockingIOError:  # caught here: a coroutine's frame takes more memory afterwards
        return None


def has_input(stream: trio.abc.Stream) -> bool:
    """Return whether bytes, or the end of input, wait to be read from the socket beneath."""
    below = _socket_of(stream)
    if below is None:
        return False
    if not hasattr(select, "poll"):  # on Windows, where the next line has no limit of numbers
        return bool(select.select([below.socket], [], [], 0)[0])
    poll = select.poll()
    poll.register(below.socket, select.POLLIN)
    return bool(poll.poll(0))


async def send_all(stream: trio.abc.Stream, data: bytes | bytearray | memoryview) -> None:
    """Do as `stream.send_all`, but leave no reference cycle behind; see `receive_some`."""
    if type(stream) is not trio.SocketStream:
        await stream.send_all(data)
        return
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[await stream.socket.send(rest) :]
    except OSError as error:
        raise _stream_error(error) from error


def _stream_error(error: OSError) -> Exception:
    closed_by_us = error.errno in (errno.EBADF, errno.ENOTSOCK)  # the latter on Windows
    return (trio.ClosedResourceError if closed_by_us else trio.BrokenResourceError)(str(error))


async def peek(stream: trio.abc.Stream) -> bytes:
    """Wait for the first byte that comes, and leave it there; nothing where nobody can, or at EOF.

    Raises `trio.BrokenResourceError`.
    """
    if (below := _socket_of(stream)) is None:
        await trio.lowlevel.checkpoint()
        return b""
    if (meter := current_meter.get()) is not None:
        meter.end()
    try:
        return await below.socket.recv(1, socket.MSG_PEEK)
    except OSError as error:
        raise trio.BrokenResourceError from error


def format_address(name: object) -> str:
    """Spell what `getsockname` returns: `127.0.0.1:9000`, `[::1]:9000`, or a path."""
    match name:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(name)


def keep_alive(stream: trio.abc.Stream, stall_seconds: float = 60.0) -> None:
    """Have the kernel ask a silent peer whether it is there, and give up on one that is not.

    Nor does it wait for one that takes nothing for *stall_seconds* and `USER_TIMEOUT_SECONDS` more.
    """
    below = _socket_of(stream)
    if below is None or below.socket.family == _AF_UNIX:
        return
    try:
        below.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
            if hasattr(socket, option):
                value = getattr(socket, option)
                below.setsockopt(socket.IPPROTO_TCP, value, KEEP_ALIVE_SECONDS)
        if hasattr(socket, "TCP_KEEPCNT"):
            below.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(min(2**31 - 1, (USER_TIMEOUT_SECONDS + stall_seconds) * 1000))
            below.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    except OSError:
        pass  # a peer that has just left


def unsent_bytes(stream: trio.abc.Stream) -> int:
    """Return how much the kernel holds that the peer has not acknowledged; 0 if nobody knows.

    Also 0 after a reset: Linux goes on counting what was not acknowledged, but nothing will be.
    """
    try:
        import fcntl
        import termios
    except ImportError:  # Windows
        return 0
    if (below := _socket_of(stream)) is not None:
        try:
            below.socket.getpeername()  # raises once the connection was reset
            answer = fcntl.ioctl(below.socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            return int.from_bytes(answer, sys.byteorder)
        except (OSError, ValueError):
            pass
    return 0


def pending_error(stream: trio.abc.Stream) -> OSError | None:
    """Return what went wrong on a socket since the last call on it, and forget it."""
    if (below := _socket_of(stream)) is not None:
        try:
            number = below.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError as error:
            return error
        if number:
            return OSError(number, os.strerror(number))
    return None


async def close_gracefully(
    stream: trio.abc.Stream,
    linger_seconds: float = LINGER_SECONDS,
    linger_reads: float = math.inf,
) -> None:
    """Send EOF, read and discard until the peer closes too or *linger_seconds* are over, close.

    After *linger_reads* nothing more is read, so that a peer that goes on sending costs nothing;
    a TLS stream has a number of its own, see `encrypt`.  Never raises on account of the peer.
    Cancelled, it has closed the stream.
    """
    try:
        with trio.move_on_after(linger_seconds):
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await _send_eof(stream)
                while await receive_some(stream, _DISCARD_BYTES):
                    linger_reads -= 1
                    if linger_reads <= 0:
                        await trio.sleep_forever()
            else:
                await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        pass  # it is gone already
    finally:
        await close(stream)


async def _send_eof(stream: trio.abc.HalfCloseableStream) -> None:
    """Do as `stream.send_eof`, but leave no reference cycle behind; see `receive_some`."""
    if type(stream) is not trio.SocketStream:
        await stream.send_eof()
        return
    await trio.lowlevel.checkpoint()
    try:
        stream.socket.shutdown(socket.SHUT_WR)
    except OSError as error:
        raise _stream_error(error) from error


async def close(stream: trio.abc.Stream) -> None:
    """Close *stream* at once, also where the caller was cancelled.  Idempotent.

    Trio's own way does it for every kind of stream, by cancelling; that costs a twentieth of a
    client's whole visit each time, and every layer closes what it was given.
    """
    if type(stream) is trio.SocketStream:
        stream.socket.close()
    else:
        await trio.aclose_forcefully(stream)
