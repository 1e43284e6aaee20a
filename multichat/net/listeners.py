"""Listeners on TCP ports and Unix sockets.

The caller closes what is opened here.  All errors of the system are raised as `ListenFailed`.
"""

import errno
import os
import select
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import trio

from multichat.errors import ListenFailed
from multichat.files import missing_folder
from multichat.net import transport
from multichat.net.turns import Meter, Turns

__all__ = [
    "FairListener",
    "WaitingListener",
    "has_left",
    "is_abandoned",
    "is_reachable_remotely",
    "listen_tcp",
    "listen_unix",
    "unlink_at_end",
]

# The errors of a machine without IPv6.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

_BACKLOG = 1024

# How long a server waits while another one opens its socket, which takes milliseconds.
_LOCK_SECONDS = 5.0
_LOCK_RETRY_SECONDS = 0.01


class WaitingListener(trio.abc.Listener[trio.SocketStream]):
    """A *listener* that awaits *wait* before it accepts each connection.

    Until then, connections wait in the kernel's queue, where they cost nothing.  A connection that
    the peer closed there, without having sent anything, is dropped.  Closing this closes
    *listener*; a cancelled `accept` has accepted nothing.
    """

    def __init__(
        self,
        listener: trio.abc.Listener[trio.SocketStream],
        wait: Callable[[], Awaitable[None]],
    ) -> None:
        self._listener, self._wait = listener, wait

    async def accept(self) -> trio.SocketStream:
        """Return the next connection; raises the listener's errors."""
        while True:
            await self._wait()
            stream = await self._listener.accept()
            if not is_abandoned(stream.socket):
                return stream
            stream.socket.close()

    async def aclose(self) -> None:
        """Close the listener."""
        await self._listener.aclose()


class FairListener(WaitingListener):
    """A *listener* whose new connections take *turns* with the existing ones."""

    def __init__(self, listener: trio.abc.Listener[trio.SocketStream], turns: Turns) -> None:
        super().__init__(listener, self._take_turn)
        self._meter = Meter(turns, listener, accepts=True)

    async def accept(self) -> trio.SocketStream:
        """Return the next connection when it is its turn; raises the listener's errors."""
        return await self._meter.measure(super().accept())

    async def _take_turn(self) -> None:
        await self._meter.take()
        self._meter.end()  # otherwise the turn would last until the next connection


def is_abandoned(connection: trio.socket.SocketType) -> bool:
    """Return whether the peer has closed the connection without having sent anything."""
    # On a duplicate of the descriptor, because the `recv` of a trio socket would wait.
    plain = socket.socket(connection.family, connection.type, connection.proto, connection.fileno())
    try:
        return not plain.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        plain.detach()


def has_left(stream: trio.abc.Stream) -> bool:
    """Return whether the peer at the other end of the Unix socket *stream* has closed it.

    A peer that has only ended its input, and reads on, has not left.  False for other streams.
    """
    if not isinstance(stream, trio.SocketStream) or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(stream.socket.fileno(), 0)  # POLLHUP is always reported
    return any(events & select.POLLHUP for _, events in poll.poll(0))


async def listen_tcp(port: int, host: str | Sequence[str] | None) -> list[trio.SocketListener]:
    """Listen on TCP *port* of every *host*; None is every interface.

    With port 0 the system chooses a port for the first host, and the others share it.
    """
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
            opened = await trio.open_tcp_listeners(port, host=each)
            for listener in opened:  # accepted connections inherit this option
                listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            listeners += opened
        except (OSError, ValueError) as error:
            if everywhere and listeners and getattr(error, "errno", None) in _NO_IPV6:
                break
            for listener in listeners:
                listener.socket.close()
            raise ListenFailed(each, port, transport.describe_error(error)) from error
        port = port or listeners[0].socket.getsockname()[1]
    return listeners


async def listen_unix(path: Path, mode: int) -> trio.SocketListener:
    """Listen on a Unix socket at *path*, which has the permissions *mode* from the start.

    A stale socket of a server that has ended is replaced.  Raises `ListenFailed` if the socket is
    in use, or if *path* is anything but a socket.
    """
    where = str(path)
    try:
        async with _one_at_a_time(path.parent):
            await _remove_stale(path)
            # Not trio's `bind`: no other task may run while the umask is changed.
            plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                before = os.umask(0o777 & ~mode)
                try:
                    plain.bind(where)
                finally:
                    os.umask(before)
                plain.listen(_BACKLOG)
            except BaseException:
                plain.close()
                raise
    except AttributeError:
        raise ListenFailed(where, None, "this system has no Unix sockets") from None
    except OSError as error:
        missing = missing_folder(path) if isinstance(error, FileNotFoundError) else ""
        raise ListenFailed(where, None, missing or transport.describe_error(error)) from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(plain))


@asynccontextmanager
async def _one_at_a_time(folder: Path) -> AsyncGenerator[None]:
    """Keep other servers from examining the sockets in *folder* while the block runs.

    Of two servers that start at the same time, the second would consider the first one's socket
    stale before it listens, or remove it in place of the stale one.  If the folder cannot be
    locked, or another process keeps the lock, the block runs without it.
    """
    try:
        import fcntl

        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, OSError):
        yield
        return
    try:
        with trio.move_on_after(_LOCK_SECONDS):
            # Not in a thread, which could not be cancelled.
            while not _is_locked(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB):  # noqa: ASYNC110
                await trio.sleep(_LOCK_RETRY_SECONDS)
        yield
    finally:
        os.close(fd)  # with the lock


def _is_locked(flock: Callable[[int, int], None], fd: int, how: int) -> bool:
    """Return whether to stop waiting: the folder is locked now, or cannot be locked."""
    try:
        flock(fd, how)
    except BlockingIOError:
        return False
    except OSError:
        pass  # this file system has no locks
    return True


async def _remove_stale(path: Path) -> None:
    place = trio.Path(path)
    try:
        if not stat.S_ISSOCK((await place.lstat()).st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except FileNotFoundError:
        return
    try:
        stream = await trio.open_unix_socket(str(path))
    except ConnectionRefusedError:
        await place.unlink()
    else:
        await stream.aclose()
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


@contextmanager
def unlink_at_end(path: Path) -> Iterator[None]:
    """Remove the socket at *path* when the block ends, unless it has been replaced."""
    ours = _identity(path)
    try:
        yield
    finally:
        if ours is not None and _identity(path) == ours:
            with suppress(OSError):
                path.unlink()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what another file at *path* would not have, even with the same inode."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def is_reachable_remotely(listener: trio.SocketListener) -> bool:
    """Return whether other machines may be able to reach *listener*."""
    name = listener.socket.getsockname()
    return isinstance(name, tuple) and not ip_address(name[0].partition("%")[0]).is_loopback
