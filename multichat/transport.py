"""What we ask of a stream beyond `trio.abc.Stream`, and what we do where it cannot answer.

Everything above this module runs on any stream.  Here stands what only sockets can do, each
behind a function with an honest answer for the rest.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable

import trio

__all__ = [
    "eager_fileno",
    "hang_up",
    "keep_alive",
    "peer_address",
    "pending_error",
    "reason_of",
    "spell_address",
    "unsent_bytes",
]

# A peer that vanished without a word is noticed after about four of these.
KEEP_ALIVE_SECONDS = 30

# How long we go on reading from somebody who has been told that we are closing: what arrives
# after a close makes the kernel send a reset, which throws away what the peer has not read yet.
LINGER_SECONDS = 1.0

_DISCARD_BYTES = 64 * 1024

_REASONS = {
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ETIMEDOUT: "connection timed out",
}


def reason_of(error: BaseException) -> str:
    """Say in a few lower-case words why the system, or a stream, refused.

    An exception group, as of several addresses that were tried, gives each reason once.
    """
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(dict.fromkeys(reason_of(each) for each in error.exceptions))
    if isinstance(error, socket.gaierror):
        return (error.strerror or str(error)).lower()
    if isinstance(error, OSError) and error.errno is not None:
        return _REASONS.get(error.errno) or os.strerror(error.errno).lower()
    if error.__cause__ is not None:
        return reason_of(error.__cause__)
    if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
        return "connection broken"
    return str(error)


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
    if isinstance(stream, trio.SocketStream):
        try:
            return spell_address(stream.socket.getpeername())
        except OSError:
            pass
    return ""


def spell_address(name: object) -> str:
    """Spell what `getsockname` returns: `127.0.0.1:9000`, `[::1]:9000`, or a path."""
    match name:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(name)


def keep_alive(stream: trio.abc.Stream) -> None:
    """Have the kernel ask a silent peer whether it is still there."""
    if not isinstance(stream, trio.SocketStream):
        return
    try:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
            if hasattr(socket, option):
                value = getattr(socket, option)
                stream.setsockopt(socket.IPPROTO_TCP, value, KEEP_ALIVE_SECONDS)
        if hasattr(socket, "TCP_KEEPCNT"):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    except OSError:
        pass  # a Unix socket, or a peer that has just left


def unsent_bytes(stream: trio.abc.Stream) -> int:
    """Return how much the kernel holds that the peer has not acknowledged; 0 if nobody knows."""
    try:
        import fcntl
        import termios
    except ImportError:  # Windows
        return 0
    if isinstance(stream, trio.SocketStream):
        try:
            answer = fcntl.ioctl(stream.socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            return int.from_bytes(answer, sys.byteorder)
        except (OSError, ValueError):
            pass
    return 0


def pending_error(stream: trio.abc.Stream) -> OSError | None:
    """Return what went wrong on a socket since the last call on it, and forget it."""
    if isinstance(stream, trio.SocketStream):
        try:
            number = stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError as error:
            return error
        if number:
            return OSError(number, os.strerror(number))
    return None


async def hang_up(stream: trio.abc.Stream) -> None:
    """Send EOF, read and discard until the peer closes too or `LINGER_SECONDS` are over, close.

    Never raises on account of the peer.  Cancelled, it has closed the stream.
    """
    try:
        with trio.move_on_after(LINGER_SECONDS):
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
                while await stream.receive_some(_DISCARD_BYTES):
                    pass
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        pass  # gone already
    finally:
        await trio.aclose_forcefully(stream)
