"""Where a server listens: opens its own listeners, and takes those that were passed to it."""

import socket
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import trio

from multichat.net.activation import PassedSockets
from multichat.net.listeners import listen_tcp, listen_unix, unlink_at_end

__all__ = ["Listeners", "Places", "open_listeners"]

# Only its owner can connect.
_ADMIN_MODE = 0o600


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen, as `Server.run` gets it, besides what is *passed*."""

    port: int | None = None
    host: str | Sequence[str] | None = None
    unix: Path | None = None
    unix_mode: int = 0o600
    web: int | None = None
    web_host: str | Sequence[str] | None = None
    admin: Path | None = None
    metrics: int | None = None
    metrics_host: str | Sequence[str] = "127.0.0.1"
    passed: PassedSockets = PassedSockets()


class Listeners(msgspec.Struct, frozen=True, kw_only=True):
    """Open listeners: *tcp* and *unix* of the chat, and those of the other ports."""

    tcp: Sequence[trio.SocketListener] = ()
    unix: Sequence[trio.SocketListener] = ()
    web: Sequence[trio.SocketListener] = ()
    admin: Sequence[trio.SocketListener] = ()
    metrics: Sequence[trio.SocketListener] = ()


@asynccontextmanager
async def open_listeners(places: Places) -> AsyncGenerator[Listeners]:
    """Open the listeners, and yield them with those that were passed; close all at the end.

    The files of our own Unix sockets are removed at the end.  Raises `ListenFailed` if the system
    refuses one, and `ValueError` without any.
    """
    passed = places.passed
    async with AsyncExitStack() as stack:
        stack.callback(passed.close)
        opened: dict[str, list[trio.SocketListener]] = {
            "tcp": _listeners(passed.chat_tcp),
            "unix": _listeners(passed.chat_unix),
            "web": _listeners(passed.web),
            "admin": _listeners(passed.admin),
            "metrics": _listeners(passed.metrics),
        }

        def add(kind: str, listeners: Iterable[trio.SocketListener]) -> None:
            for each in listeners:
                stack.callback(each.socket.close)
                opened[kind].append(each)

        for kind, path, mode in (
            ("unix", places.unix, places.unix_mode),
            ("admin", places.admin, _ADMIN_MODE),
        ):
            if path is not None:
                add(kind, [await listen_unix(path, mode)])
                stack.enter_context(unlink_at_end(path))
        if places.port is not None:
            add("tcp", await listen_tcp(places.port, places.host))
        if places.web is not None:
            add("web", await listen_tcp(places.web, places.web_host or places.host))
        if places.metrics is not None:
            add("metrics", await listen_tcp(places.metrics, places.metrics_host))
        if not any(opened[kind] for kind in ("tcp", "unix", "web")):
            raise ValueError("no port or Unix socket to listen on")
        yield Listeners(**opened)


def _listeners(passed: Iterable[socket.socket]) -> list[trio.SocketListener]:
    return [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in passed]
