"""Every exception that multichat raises on purpose.

The tree::

    MultichatError
    ├── LocalProtocolError      our caller asked for what the protocol cannot say
    │   └── UnknownClient       … of a client that is not there
    ├── RemoteProtocolError     the peer broke the protocol
    │   └── LineTooLong         … with a line above our limit
    ├── ConnectFailed           nobody could be reached at that address
    ├── ListenFailed            the system does not let us listen there
    ├── ConnectionLost          the conversation ended without a goodbye
    └── OutputLost              our own standard output is gone

Any other exception out of a decoder or a session is our own bug.
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "ConnectFailed",
    "ConnectionLost",
    "LineTooLong",
    "ListenFailed",
    "LocalProtocolError",
    "MultichatError",
    "OutputLost",
    "RemoteProtocolError",
    "UnknownClient",
    "lone_exception",
]


class MultichatError(Exception):
    """The root of multichat's own exceptions."""


class LocalProtocolError(MultichatError):
    """Our caller asked for something that the protocol has no way to say."""


class UnknownClient(LocalProtocolError):
    """Our caller named a client that is not connected (any more)."""

    def __init__(self, client: int) -> None:
        super().__init__(f"no client {client} is connected")
        self.client = client


class RemoteProtocolError(MultichatError):
    """The peer broke the protocol; the connection may go on all the same."""


class LineTooLong(RemoteProtocolError):
    """The peer sent a line above our limit; the decoder dropped it up to its end."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the line was longer than {limit_bytes} bytes and was dropped")
        self.limit_bytes = limit_bytes


class ConnectFailed(MultichatError):
    """Nobody could be reached: refused, unreachable, unresolvable or silent."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(f"cannot connect to {host} port {port}: {reason}")
        self.host, self.port, self.reason = host, port, reason


class ListenFailed(MultichatError):
    """The system does not let us listen: the address is in use, not ours, or no address at all."""

    def __init__(self, host: str | None, port: int, reason: str) -> None:
        where = f"{host} port {port}" if host else f"port {port}"
        super().__init__(f"cannot listen on {where}: {reason}")
        self.host, self.port, self.reason = host, port, reason


class ConnectionLost(MultichatError):
    """The conversation ended without a goodbye from the other side."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"connection lost: {reason}")
        self.reason = reason


class OutputLost(MultichatError):
    """Our standard output cannot be written to any more."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"cannot write to standard output: {reason}")
        self.reason = reason


@contextmanager
def lone_exception() -> Iterator[None]:
    """Give back as itself the only exception of a group that leaves the block.

    For round nurseries whose tasks are nobody's business: their caller sees `OSError`, not a
    group of one.  A group of several passes as it is.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__
