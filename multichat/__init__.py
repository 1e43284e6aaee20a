"""Group chat over plain TCP, and the trio toolkit underneath it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multichat.client import Chat, connect, open_chat
    from multichat.config import ServerConfig, Slow
    from multichat.errors import (
        ConnectFailed,
        ConnectionLost,
        EmptyText,
        InvalidName,
        InvalidRequest,
        LineTooLong,
        ListenFailed,
        LocalProtocolError,
        MultichatError,
        NameTaken,
        NobodyThere,
        NotDelivered,
        Refused,
        RemoteProtocolError,
        TooManyRooms,
        UnknownClient,
        UnknownRequest,
    )
    from multichat.messages import (
        Accepted,
        Directed,
        Error,
        Event,
        Goodbye,
        Joined,
        Left,
        MemberName,
        Members,
        Missed,
        Notice,
        Pong,
        Presence,
        Renamed,
        RoomList,
        RoomSize,
        Said,
        Welcome,
    )
    from multichat.room import Receipt
    from multichat.server import MemberInfo, Server, ServerStatistics, serve

__all__ = [
    "Accepted",
    "Chat",
    "ConnectFailed",
    "ConnectionLost",
    "Directed",
    "EmptyText",
    "Error",
    "Event",
    "Goodbye",
    "InvalidName",
    "InvalidRequest",
    "Joined",
    "Left",
    "LineTooLong",
    "ListenFailed",
    "LocalProtocolError",
    "MemberInfo",
    "MemberName",
    "Members",
    "Missed",
    "MultichatError",
    "NameTaken",
    "NobodyThere",
    "NotDelivered",
    "Notice",
    "Pong",
    "Presence",
    "Receipt",
    "Refused",
    "RemoteProtocolError",
    "Renamed",
    "RoomList",
    "RoomSize",
    "Said",
    "Server",
    "ServerConfig",
    "ServerStatistics",
    "Slow",
    "TooManyRooms",
    "UnknownClient",
    "UnknownRequest",
    "Welcome",
    "connect",
    "open_chat",
    "serve",
]

# Imported when first asked for: `multichat --help` needs no trio, and the command's own entry
# point has to be there before anything slow is imported, or Ctrl+C would meet a traceback.
_HOMES = ("client", "config", "errors", "messages", "room", "server")


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"multichat.{home}")
            if name in module.__all__:
                globals()[name] = value = getattr(module, name)
                return value
    raise AttributeError(f"module 'multichat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
