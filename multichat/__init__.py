"""Group chat over plain TCP, and the trio toolkit underneath it."""

# `python -m multichat` imports this before `__main__` keeps the files of the working directory from
# standing in for modules of Python's: nothing is imported here but what `-m` itself has imported.
from importlib import import_module

TYPE_CHECKING = False

__version__ = "0.1.0"

if TYPE_CHECKING:
    from multichat.client.chat import Chat
    from multichat.client.connect import client_tls, connect, dial, dial_unix, open_chat
    from multichat.client.timeouts import ClientTimeouts
    from multichat.errors import (
        BadCertificate,
        Banned,
        ConnectFailed,
        ConnectionLost,
        DeliveryUnknown,
        EmptyText,
        InvalidBan,
        InvalidBanFile,
        InvalidName,
        InvalidRequest,
        JournalFailed,
        LineTooLong,
        ListenFailed,
        LocalProtocolError,
        MultichatError,
        NameAssigned,
        NameTaken,
        NobodyThere,
        NoJson,
        NotDelivered,
        NotPrivate,
        NotRead,
        Refused,
        Rejected,
        ReloadFailed,
        RemoteProtocolError,
        StorageFailed,
        TooManyBans,
        TooManyRooms,
        UnknownClient,
        UnknownId,
        UnknownRequest,
    )
    from multichat.journal.base import Journal
    from multichat.journal.memory import MemoryJournal
    from multichat.net.certificates import ServerTls, server_tls
    from multichat.protocol.messages import (
        Accepted,
        BanInfo,
        BanList,
        Credentials,
        Directed,
        Disconnected,
        Entered,
        Error,
        Event,
        Exited,
        Goodbye,
        HistoryPage,
        Joined,
        Left,
        LoggedIn,
        LoggedOut,
        MemberName,
        Members,
        Missed,
        Notice,
        Pong,
        Presence,
        Reconnected,
        Renamed,
        RoomList,
        RoomSize,
        RoomState,
        Said,
        TopicChanged,
        Welcome,
    )
    from multichat.server.authentication import AdmissionRequest, Authenticate
    from multichat.server.bans import Ban, parse_duration, parse_target
    from multichat.server.broadcast import Receipt
    from multichat.server.client import MemberInfo
    from multichat.server.config import (
        Filter,
        Filtered,
        Joining,
        LogMessages,
        Message,
        Renaming,
        ServerConfig,
        ServerTimeouts,
        Slow,
    )
    from multichat.server.join_hook import OnJoin
    from multichat.server.live_settings import LiveSettings
    from multichat.server.metrics import ServerCollector
    from multichat.server.reloading import Reloading
    from multichat.server.server import Server, serve
    from multichat.server.statistics import Durations, ServerStatistics
    from multichat.web.config import WebConfig

__all__ = [
    "Accepted",
    "AdmissionRequest",
    "Authenticate",
    "BadCertificate",
    "Ban",
    "BanInfo",
    "BanList",
    "Banned",
    "Chat",
    "ClientTimeouts",
    "ConnectFailed",
    "ConnectionLost",
    "Credentials",
    "DeliveryUnknown",
    "Directed",
    "Disconnected",
    "Durations",
    "EmptyText",
    "Entered",
    "Error",
    "Event",
    "Exited",
    "Filter",
    "Filtered",
    "Goodbye",
    "HistoryPage",
    "InvalidBan",
    "InvalidBanFile",
    "InvalidName",
    "InvalidRequest",
    "Joined",
    "Joining",
    "Journal",
    "JournalFailed",
    "Left",
    "LineTooLong",
    "ListenFailed",
    "LiveSettings",
    "LocalProtocolError",
    "LogMessages",
    "LoggedIn",
    "LoggedOut",
    "MemberInfo",
    "MemberName",
    "Members",
    "MemoryJournal",
    "Message",
    "Missed",
    "MultichatError",
    "NameAssigned",
    "NameTaken",
    "NoJson",
    "NobodyThere",
    "NotDelivered",
    "NotPrivate",
    "NotRead",
    "Notice",
    "OnJoin",
    "Pong",
    "Presence",
    "Receipt",
    "Reconnected",
    "Refused",
    "Rejected",
    "ReloadFailed",
    "Reloading",
    "RemoteProtocolError",
    "Renamed",
    "Renaming",
    "RoomList",
    "RoomSize",
    "RoomState",
    "Said",
    "Server",
    "ServerCollector",
    "ServerConfig",
    "ServerStatistics",
    "ServerTimeouts",
    "ServerTls",
    "Slow",
    "StorageFailed",
    "TooManyBans",
    "TooManyRooms",
    "TopicChanged",
    "UnknownClient",
    "UnknownId",
    "UnknownRequest",
    "WebConfig",
    "Welcome",
    "client_tls",
    "connect",
    "dial",
    "dial_unix",
    "open_chat",
    "parse_duration",
    "parse_target",
    "serve",
    "server_tls",
]

# Imported when first asked for: `multichat --help` needs no trio, and the command's own entry
# point has to be there before anything slow is imported, or Ctrl+C would meet a traceback.
_HOMES = (
    # What a client uses is first; of the server, a client imports only `server.bans`.
    "client.connect",
    "client.timeouts",
    "client.chat",
    "errors",
    "server.bans",  # before the messages, which have another `Ban`
    "protocol.messages",
    "server.authentication",
    "server.broadcast",
    "server.config",
    "journal.base",
    "journal.memory",
    "net.certificates",
    "server.join_hook",
    "server.client",
    "server.live_settings",
    "server.metrics",
    "server.reloading",
    "server.server",
    "server.statistics",
    "web.config",
)


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
