"""The ways in which the checker's clients connect: TLS, a Unix socket, and WebSocket over TLS."""

import socket
import ssl
from pathlib import Path

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from tests.kills.checker import LOOPBACK, SocketLink

__all__ = ["WebSocketLink", "dial_tls", "dial_unix", "dial_websocket"]

# Longer than a restart: meanwhile connections wait.
_SECONDS = 60.0


def dial_tls(port: int, context: ssl.SSLContext) -> SocketLink:
    """Connect to a TCP port of loopback with TLS."""
    plain = socket.create_connection((LOOPBACK, port), _SECONDS)
    try:
        return SocketLink(context.wrap_socket(plain, server_hostname=LOOPBACK))
    except BaseException:
        plain.close()
        raise


def dial_unix(path: Path) -> SocketLink:
    """Connect to a Unix socket."""
    plain = socket.socket(socket.AF_UNIX)
    try:
        plain.connect(str(path))
    except BaseException:
        plain.close()
        raise
    return SocketLink(plain)


class WebSocketLink:
    """A connection to the page's port, as browsers make it: a message is a line."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def send(self, data: bytes) -> None:
        """Send *data*, which is whole lines."""
        try:
            for line in data.decode().splitlines():
                self._connection.send(line)
        except ConnectionClosed as error:
            raise ConnectionResetError(str(error)) from error

    def receive(self, seconds: float) -> bytes | None:
        """Return the next message."""
        try:
            return f"{self._connection.recv(seconds)!s}\n".encode()
        except TimeoutError:
            return None
        except ConnectionClosed:
            return b""

    def close(self) -> None:
        """Close it, without waiting for the other side."""
        self._connection.close_socket()


def dial_websocket(port: int, context: ssl.SSLContext) -> WebSocketLink:
    """Connect to the page's port of loopback with TLS."""
    try:
        opened = connect(
            f"wss://{LOOPBACK}:{port}/ws",
            ssl=context,
            legacy=True,  # not as a context manager
            proxy=None,
            compression=None,
            ping_interval=None,
            open_timeout=_SECONDS,
        )
    except WebSocketException as error:  # as from a server that drains, and answers 503
        raise ConnectionResetError(str(error)) from error
    return WebSocketLink(opened)
