"""Requests of clients and events for them, as typed values.  Pure.

Requests are imperative and come from a client; events are facts and go to one.  All are frozen.
How they are encoded is up to the codecs, `multichat.protocol.text_codec` and `json_codec`.  A
type's tag is its name in the JSON protocol and its fields are those of the object, which are
documented in `docs/protocol.md`.

Exports what `multichat.protocol.requests`, `events` and `fields` define, and owns their unions.  A
new field goes into its type, and into the text codec if people see it.  The JSON codec needs no
change, except for a field of `Said`: see `JsonCodec.encode_said`.

Every request may carry a *nonce*, which its answer repeats.
"""

from typing import TypeAlias

import msgspec

from multichat.errors import NameTaken, RemoteProtocolError
from multichat.protocol.events import (
    Accepted,
    BanInfo,
    BanList,
    Directed,
    Disconnected,
    Entered,
    Error,
    Exited,
    Goodbye,
    HistoryPage,
    Joined,
    Left,
    Limits,
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
    SaidBlock,
    TopicChanged,
    Welcome,
)
from multichat.protocol.fields import (
    HISTORY_MESSAGES,
    LOBBY,
    MAX_DECOMPOSED,
    MAX_NAME_CHARACTERS,
    MAX_PASSPHRASE_CHARACTERS,
    MAX_TOKEN_CHARACTERS,
    MAX_TOPIC_CHARACTERS,
    MAX_UNACCEPTED,
    MIN_PASSPHRASE_CHARACTERS,
    PROTOCOL,
    Name,
    Nonce,
    room_of,
)
from multichat.protocol.requests import (
    NO_SENDER,
    Act,
    Announce,
    Ban,
    Bans,
    ChangePassphrase,
    Credentials,
    Direct,
    Enter,
    Exit,
    Hello,
    Help,
    History,
    Join,
    Kick,
    Login,
    Logout,
    Ping,
    Quit,
    Register,
    Rename,
    Reply,
    Rooms,
    Say,
    SayBlock,
    SetTopic,
    Start,
    Unban,
    Who,
)

__all__ = [
    "HISTORY_MESSAGES",
    "LOBBY",
    "MAX_DECOMPOSED",
    "MAX_NAME_CHARACTERS",
    "MAX_PASSPHRASE_CHARACTERS",
    "MAX_TOKEN_CHARACTERS",
    "MAX_TOPIC_CHARACTERS",
    "MAX_UNACCEPTED",
    "MIN_PASSPHRASE_CHARACTERS",
    "NO_SENDER",
    "PROTOCOL",
    "Accepted",
    "Act",
    "Announce",
    "Ban",
    "BanInfo",
    "BanList",
    "Bans",
    "ChangePassphrase",
    "Credentials",
    "Direct",
    "Directed",
    "Disconnected",
    "Enter",
    "Entered",
    "Error",
    "Event",
    "Exit",
    "Exited",
    "Goodbye",
    "Hello",
    "Help",
    "History",
    "HistoryPage",
    "Invalid",
    "Join",
    "Joined",
    "Kick",
    "Left",
    "Limits",
    "LoggedIn",
    "LoggedOut",
    "Login",
    "Logout",
    "MemberName",
    "Members",
    "Missed",
    "Name",
    "Nonce",
    "Notice",
    "Ping",
    "Pong",
    "Presence",
    "Quit",
    "Reconnected",
    "Register",
    "Rename",
    "Renamed",
    "Reply",
    "Request",
    "RoomList",
    "RoomSize",
    "RoomState",
    "Rooms",
    "Said",
    "SaidBlock",
    "Say",
    "SayBlock",
    "SetTopic",
    "Start",
    "TopicChanged",
    "Unban",
    "Welcome",
    "Who",
    "WireEvent",
    "WireRequest",
    "room_of",
]


class Invalid(msgspec.Struct, frozen=True):
    """A line that is not a valid request, and the *error* to answer it with."""

    error: Error

    @classmethod
    def because(
        cls, error: RemoteProtocolError, nonce: Nonce | None = None, *, room: str = ""
    ) -> "Invalid":
        """Create it from the exception with the reason; for *room* see `Error`."""
        holder, registered = "", False
        if isinstance(error, NameTaken):
            holder, registered = error.holder, error.registered
        return cls(Error(error.code, str(error), holder, room, registered, nonce=nonce))


WireRequest: TypeAlias = (
    Say
    | Act
    | Direct
    | Rename
    | Join
    | Enter
    | Exit
    | Who
    | Rooms
    | History
    | Register
    | Login
    | Logout
    | ChangePassphrase
    | Kick
    | Ban
    | Unban
    | Bans
    | Announce
    | SetTopic
    | Ping
    | Help
    | Quit
)
"""The requests of both protocols."""

Request: TypeAlias = SayBlock | WireRequest | Hello | Reply | Invalid
"""What a server decodes: `Say` as part of a `SayBlock`, and invalid lines as `Invalid`."""

WireEvent: TypeAlias = (
    Welcome
    | Said
    | Directed
    | Accepted
    | Joined
    | Left
    | Renamed
    | Presence
    | Missed
    | Members
    | RoomList
    | HistoryPage
    | BanList
    | TopicChanged
    | LoggedIn
    | LoggedOut
    | Notice
    | Pong
    | Error
    | Goodbye
)
"""The events on the wire."""

Event: TypeAlias = WireEvent | Disconnected | Reconnected | Entered | Exited
"""The events of a client: those on the wire, and those of its own connection."""
