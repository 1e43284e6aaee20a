"""Group chat over plain TCP, and the trio toolkit underneath it."""

from multichat.client import Chat, connect, open_chat
from multichat.errors import (
    ConnectFailed,
    ConnectionLost,
    LineTooLong,
    ListenFailed,
    LocalProtocolError,
    MultichatError,
    RemoteProtocolError,
    UnknownClient,
)
from multichat.messages import Event, Goodbye, Notice, Said
from multichat.room import Receipt, Slow
from multichat.server import MemberInfo, Server, ServerConfig, ServerStatistics, serve

__all__ = [
    "Chat",
    "ConnectFailed",
    "ConnectionLost",
    "Event",
    "Goodbye",
    "LineTooLong",
    "ListenFailed",
    "LocalProtocolError",
    "MemberInfo",
    "MultichatError",
    "Notice",
    "Receipt",
    "RemoteProtocolError",
    "Said",
    "Server",
    "ServerConfig",
    "ServerStatistics",
    "Slow",
    "UnknownClient",
    "connect",
    "open_chat",
    "serve",
]
