"""Requests of clients and events for them, as typed values.  Pure.

Requests are imperative and come from a client; events are facts and go to one.  All are frozen.
How they are encoded is up to the codecs, `multichat.protocol.text_codec` and `json_codec`.  A
type's tag is its name in the JSON protocol and its fields are those of the object, which are
documented in `docs/protocol.md`.

Every request may carry a *nonce*, which its answer repeats.
"""

from datetime import datetime
from typing import Annotated, TypeAlias

import msgspec

from multichat.errors import NameTaken, RemoteProtocolError
from multichat.protocol.goodbyes import GOODBYES, code_of_reason

__all__ = [
    "HISTORY_MESSAGES",
    "LOBBY",
    "MAX_DECOMPOSED",
    "MAX_NAME_CHARACTERS",
    "MAX_TOKEN_CHARACTERS",
    "MAX_UNACCEPTED",
    "NO_SENDER",
    "PROTOCOL",
    "Accepted",
    "Act",
    "Direct",
    "Directed",
    "Disconnected",
    "Entered",
    "Error",
    "Event",
    "Goodbye",
    "Hello",
    "Help",
    "History",
    "HistoryPage",
    "Invalid",
    "Join",
    "Joined",
    "Left",
    "Limits",
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
    "Rename",
    "Renamed",
    "Reply",
    "Request",
    "RoomList",
    "RoomSize",
    "Rooms",
    "Said",
    "SaidBlock",
    "Say",
    "SayBlock",
    "Welcome",
    "Who",
    "WireEvent",
    "WireRequest",
    "room_of",
]

# The version of the JSON protocol.
PROTOCOL = 1

LOBBY = "lobby"
"""The room in which every client starts."""


def room_of(text: str) -> str:
    """Return the name of a room without the number sign that other chats put before it."""
    return text.lstrip("#") or text


# More than a UUID needs; the server sends it back.
MAX_TOKEN_CHARACTERS = 128

# The default of a request for the history: a screenful.
HISTORY_MESSAGES = 20

# The most messages that a client may have unacknowledged, and the number of nonces that a server
# remembers for each session, so that no message is accepted twice after a reconnect.
MAX_UNACCEPTED = 256

# A tag of 32 leaves space for text on a line of 60 columns.
MAX_NAME_CHARACTERS = 32

# The most characters of such a name in a decomposed form.
MAX_DECOMPOSED = 4 * MAX_NAME_CHARACTERS

Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_DECOMPOSED)]
"""A name in an event; events with a longer name are dropped.

Comparing or drawing a name of a million marks takes quadratic time.
"""

# Numbers in events; events with other numbers are dropped.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Limit = Annotated[int, msgspec.Meta(ge=1, le=2**53)]

_Token = Annotated[str, msgspec.Meta(max_length=MAX_TOKEN_CHARACTERS)]

Nonce: TypeAlias = _Token | Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""A client's id for a request, repeated in the answer: a string, or a number exact in JSON."""


class _Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True
):
    nonce: Nonce | None = None


# --- Requests -------------------------------------------------------------------------------------


class Say(_Message, frozen=True, tag="say"):
    """Send the message *text* to *room*, by default to the current room."""

    text: str
    room: str | None = None


class Act(_Message, frozen=True, tag="act"):
    """Send an action in the third person, such as `waves`; see `Say`."""

    text: str
    room: str | None = None


class Direct(_Message, frozen=True, tag="direct"):
    """Send *text* to one person only: a name, or the number of a client."""

    to: int | str
    text: str


class Rename(_Message, frozen=True, tag="name"):
    """Change the name of the client to *name*."""

    name: str


class Join(_Message, frozen=True, tag="join"):
    """Move to *room*; with *since*, replay its messages after the one with that id."""

    room: str
    since: str | None = None


class Who(_Message, frozen=True, tag="who"):
    """List the members of *room*, by default of the current room."""

    room: str | None = None


class Rooms(_Message, frozen=True, tag="rooms"):
    """List the rooms."""


class History(_Message, frozen=True, tag="history"):
    """Return the last *limit* messages of *room*, by default of the current room.

    With *before*, those before the message with that id.
    """

    limit: Annotated[int, msgspec.Meta(ge=1)] = HISTORY_MESSAGES
    before: str | None = None
    room: str | None = None


class Ping(_Message, frozen=True, tag="ping"):
    """Check the connection; the answer repeats *token*."""

    token: _Token = ""


class Help(_Message, frozen=True, tag="help"):
    """List the commands."""


class Quit(_Message, frozen=True, tag="quit"):
    """End the session."""


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """Change to JSON from the next line on, with *name*, in *room*.

    *session* is the token of the session to resume.  The messages after the id *since* are
    replayed, or the last *replay* messages.  The only request that is a line of the text protocol.
    """

    protocol: int = 0  # not given
    name: str | None = None
    room: str | None = None
    session: str | None = None
    since: str | None = None
    replay: Annotated[int, msgspec.Meta(ge=0)] = 0


NO_SENDER = "nobody has sent you a private message"
"""The reason for refusing a `Reply`."""


class Reply(msgspec.Struct, frozen=True):
    """Send *text* to the sender of the last private message.

    In the text protocol only: a private message that arrives meanwhile changes the recipient.
    """

    text: str


class SayBlock(msgspec.Struct, frozen=True):
    """Several `Say` in a row, so that nothing has to be done per message; or one `Act`, if *act*.

    *text* is their texts in order, with an LF between two; *nonces* are theirs, or empty if none
    has one.  All have the same *room*, or all have none.
    """

    text: str
    nonces: tuple[Nonce | None, ...] = ()
    room: str | None = None
    act: bool = False


# --- Events ---------------------------------------------------------------------------------------


class Limits(msgspec.Struct, frozen=True):
    """The limits of a server: bytes in a line, characters in a name.

    *wait* is the longest time, in seconds, for which it may stop reading from a client while it
    waits for a slow client.
    """

    line: _Limit
    name: _Limit
    wait: float = 0.0


class Welcome(_Message, frozen=True, tag="welcome"):
    """The answer to a hello: our number, name and room, its *members*, and its *last* id.

    *server* is the name and version of the program.  *session* is the token with which a later
    hello resumes this session, empty if the server cannot; *resumed* says that it was resumed.
    """

    protocol: _Count
    client: _Count
    name: Name
    room: Name
    members: _Count
    limits: Limits
    last: str | None
    server: str
    resumed: bool
    session: str = ""


def _parse_time(timestamp: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(timestamp)
    except ValueError:  # a hostile server can send anything
        return None
    return None if time.tzinfo is None else time


class Said(_Message, frozen=True, kw_only=True, tag="said"):
    """A message in a room, or an action if *act*.

    In the text protocol *id*, *time*, *room* and *client* are unknown, and *name* is empty if the
    server does not tag its lines.  *timestamp* is the time as it is on the wire.
    """

    id: str = ""
    timestamp: str = msgspec.field(default="", name="time")
    room: Name = ""
    client: _Count = 0
    name: Name
    text: str
    act: bool = False

    @property
    def time(self) -> datetime | None:
        """When it was said, with a time zone; None if that is unknown."""
        return _parse_time(self.timestamp)


class Directed(_Message, frozen=True, kw_only=True, tag="direct"):
    """A private message to us.

    In the text protocol *time* and *client* are unknown.  *timestamp* is the time as it is on the
    wire.
    """

    timestamp: str = msgspec.field(default="", name="time")
    client: _Count = 0
    name: Name
    text: str

    @property
    def time(self) -> datetime | None:
        """When it was said, with a time zone; None if that is unknown."""
        return _parse_time(self.timestamp)


class Accepted(_Message, frozen=True, kw_only=True, tag="accepted"):
    """Acknowledges our message with that nonce: it has the *id* in its room, or None if private."""

    id: str | None = None


class Joined(_Message, frozen=True, tag="joined"):
    """A client has joined our room.

    *members* is the number of members now; 0 from older servers, which send it only in the answer
    to `Join`.  As that answer it says that we have joined *room*, whose *last* message has that id,
    if there is one: the client turns it into `Entered`.
    """

    client: _Count
    name: Name
    room: Name = ""
    members: _Count = 0
    last: str | None = None


class Left(_Message, frozen=True, tag="left"):
    """A client has left our room; *reason* is empty if it chose to.

    *members* is the number of members now; 0 from older servers.
    """

    client: _Count
    name: Name
    reason: str
    members: _Count = 0


class Renamed(_Message, frozen=True, tag="renamed"):
    """A client, or we, changed the name from *old* to *name*."""

    client: _Count
    old: Name
    name: Name


class Presence(_Message, frozen=True, tag="presence"):
    """Several changes at once, as counts; *members* is the number of members now."""

    joined: _Count
    left: _Count
    renamed: _Count
    members: _Count


class Missed(_Message, frozen=True, tag="missed"):
    """*count* messages were not delivered to us, because we were too slow."""

    count: _Count


class MemberName(msgspec.Struct, frozen=True):
    """One of the members of a room."""

    client: _Count
    name: Name


class Members(_Message, frozen=True, tag="members"):
    """The answer to `Who`.

    If nobody is in *room* and a person has that name, *person_in* is the room of that person.
    """

    room: Name
    members: list[MemberName]
    person_in: Name = ""


class HistoryPage(_Message, frozen=True, tag="history"):
    """The answer to `History`, oldest first; *more* says whether there are earlier messages.

    *missed* is the number of messages after its first one that cannot be read.
    """

    messages: list[Said]
    more: bool
    missed: _Count = 0


class RoomSize(msgspec.Struct, frozen=True):
    """A room and the number of its members."""

    room: Name
    members: _Count


class RoomList(_Message, frozen=True, tag="rooms"):
    """The answer to `Rooms`."""

    rooms: list[RoomSize]


class Notice(_Message, frozen=True, tag="notice"):
    """A message from the server itself."""

    text: str


class Pong(_Message, frozen=True, tag="pong"):
    """The answer to `Ping`."""

    token: str


class Error(_Message, frozen=True, tag="error"):
    """A request was refused; *code* is the reason for programs, *text* for people.

    *holder* is the name in use that the requested name looks like, if that is the reason.
    """

    code: str
    text: str
    holder: Name = ""


class Goodbye(_Message, frozen=True, tag="goodbye"):
    """The server is about to close the connection.

    *reason* is for people, *code* is one of `GOODBYES`, and *reconnect* says whether the client may
    reconnect, not before *after* seconds if that is given.  An older server sends only the reason;
    see `known`.
    """

    reason: str
    code: str = ""
    reconnect: bool | None = None
    after: float | None = None

    @classmethod
    def of(cls, code: str, reason: str, *, nonce: Nonce | None = None) -> "Goodbye":
        """Return the goodbye with this *code*, which MUST be one of `GOODBYES`."""
        return cls(reason, code, GOODBYES[code], nonce=nonce)

    def known(self) -> "Goodbye":
        """Return the same goodbye with the missing fields derived from its reason."""
        code, reconnect = self.code, self.reconnect
        if not code and reconnect is None:
            code = code_of_reason(self.reason)
        if reconnect is None:
            reconnect = GOODBYES.get(code, False)
        return msgspec.structs.replace(self, code=code, reconnect=reconnect)


class Disconnected(_Message, frozen=True):
    """The connection is lost; the client tries again in *retry_seconds*.  Never on the wire.

    Emitted when the connection is lost (*failures* is 0) and after each failed attempt (*failures*
    counts them).
    """

    reason: str
    retry_seconds: float
    failures: int = 0


class Reconnected(_Message, frozen=True):
    """The client has reconnected.  Never on the wire.

    The missed messages follow, as `Said`.  *resumed* says that the session was resumed; otherwise
    *again* messages, which had been sent and not acknowledged, may be delivered twice.
    """

    resumed: bool
    again: int = 0


class Entered(_Message, frozen=True):
    """We have joined *room*, which has *members* members and the *last* id; never on the wire.

    The client makes it from the `Joined` that answers `Join`.
    """

    room: str
    members: int = 0
    last: str | None = None


class SaidBlock(msgspec.Struct, frozen=True):
    """The messages of one publish in a room: several `Said` in a row, not yet encoded.

    *text* is their texts with an LF between two; their ids are *epoch* and the numbers from *first*
    on (see `multichat.protocol.ids`).
    """

    epoch: str
    first: int
    time: str
    room: str
    client: int
    name: str
    text: str
    act: bool = False


class Invalid(msgspec.Struct, frozen=True):
    """A line that is not a valid request, and the *error* to answer it with."""

    error: Error

    @classmethod
    def because(cls, error: RemoteProtocolError, nonce: Nonce | None = None) -> "Invalid":
        """Create it from the exception with the reason."""
        holder = error.holder if isinstance(error, NameTaken) else ""
        return cls(Error(error.code, str(error), holder, nonce=nonce))


WireRequest: TypeAlias = (
    Say | Act | Direct | Rename | Join | Who | Rooms | History | Ping | Help | Quit
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
    | Notice
    | Pong
    | Error
    | Goodbye
)
"""The events on the wire."""

Event: TypeAlias = WireEvent | Disconnected | Reconnected | Entered
"""The events of a client: those on the wire, and those of its own connection."""
