"""What a client can ask and what a member can be told, as typed values.  Pure.

Requests are imperative and come from a client; events are facts and go to one.  All are frozen.
How they are encoded is up to the codecs, `multichat.protocol.text_codec` and `json_codec`.  A
type's tag is its name in the JSON protocol and its fields are those of the object, which are
documented in `docs/protocol.md`.

Every request may carry a *nonce*, which its answer repeats.
"""

from typing import Annotated, TypeAlias

import msgspec

from multichat.errors import NameTaken, RemoteProtocolError
from multichat.protocol.auth import (
    SERVER_IS_FULL,
    TOO_MANY_ATTEMPTS,
    TOO_MANY_FROM_ADDRESS,
    TOO_MANY_WRONG,
    WRONG_PASSWORD,
)

__all__ = [
    "ASKED_TO_LEAVE",
    "GOODBYES",
    "HISTORY_MESSAGES",
    "LOBBY",
    "MAX_DECOMPOSED",
    "MAX_NAME_CHARACTERS",
    "MAX_TOKEN_CHARACTERS",
    "MAX_UNACCEPTED",
    "NO_SENDER",
    "PROTOCOL",
    "SHUTTING_DOWN",
    "TAKEN_OVER",
    "TOO_FAR_BEHIND",
    "TOO_SLOW",
    "Accepted",
    "Act",
    "Direct",
    "Directed",
    "Disconnected",
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
"""The room that everybody is in at first."""


def room_of(text: str) -> str:
    """Return the room that somebody means; in other chats their names begin with a number sign."""
    return text.lstrip("#") or text


# A UUID with room to spare; whatever a client sends here it gets back.
MAX_TOKEN_CHARACTERS = 128

# A screenful, for who does not say how much.
HISTORY_MESSAGES = 20

# A client may have so many messages unaccepted, and a server remembers the nonces of so many of
# each session: none is accepted twice, however often the connection is lost.
MAX_UNACCEPTED = 256

# A tag of 32 leaves a line of 60 columns something to say.
MAX_NAME_CHARACTERS = 32

# The longest form of such a name, with each character decomposed.
MAX_DECOMPOSED = 4 * MAX_NAME_CHARACTERS

Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_DECOMPOSED)]
"""What a server calls a person or a room; an event with a longer one is left out.

To compare, or to draw, a name of a million marks takes quadratic time.
"""

# Numbers that a server tells us; an event with any other is left out.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Limit = Annotated[int, msgspec.Meta(ge=1, le=2**53)]

_Token = Annotated[str, msgspec.Meta(max_length=MAX_TOKEN_CHARACTERS)]

Nonce: TypeAlias = _Token | Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""What a client chooses to recognise an answer: a string, or a number that JSON can hold."""


class _Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True
):
    nonce: Nonce | None = None


# --- Requests -------------------------------------------------------------------------------------


class Say(_Message, frozen=True, tag="say"):
    """Say *text* to everybody else in the room, which is *room* if that is named."""

    text: str
    room: str | None = None


class Act(_Message, frozen=True, tag="act"):
    """Say in the third person what one does: `waves`; see `Say`."""

    text: str
    room: str | None = None


class Direct(_Message, frozen=True, tag="direct"):
    """Say *text* to one person: a name, or a client's number."""

    to: int | str
    text: str


class Rename(_Message, frozen=True, tag="name"):
    """Call me *name* from now on."""

    name: str


class Join(_Message, frozen=True, tag="join"):
    """Let me into *room*, out of mine; and tell me what was said there *since* that id."""

    room: str
    since: str | None = None


class Who(_Message, frozen=True, tag="who"):
    """Tell me who is in *room*, or in mine."""

    room: str | None = None


class Rooms(_Message, frozen=True, tag="rooms"):
    """Tell me which rooms there are."""


class History(_Message, frozen=True, tag="history"):
    """Tell me the last *limit* messages of my room, or the last *before* the one of that id.

    My room is *room* if that is named.
    """

    limit: Annotated[int, msgspec.Meta(ge=1)] = HISTORY_MESSAGES
    before: str | None = None
    room: str | None = None


class Ping(_Message, frozen=True, tag="ping"):
    """Answer me, repeating *token*."""

    token: _Token = ""


class Help(_Message, frozen=True, tag="help"):
    """Tell me what I can ask."""


class Quit(_Message, frozen=True, tag="quit"):
    """Let me go."""


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """From the next line on I speak and hear JSON; call me *name* and let me into *room*.

    I am who was given this *session*; tell me what was said *since* that id, or the last *replay*
    messages.  The one request that is asked in the text protocol only.
    """

    protocol: int = 0  # not said
    name: str | None = None
    room: str | None = None
    session: str | None = None
    since: str | None = None
    replay: Annotated[int, msgspec.Meta(ge=0)] = 0


NO_SENDER = "nobody has sent you a private message"
"""Why a `Reply` is refused."""


class Reply(msgspec.Struct, frozen=True):
    """Say *text* to whoever has sent a private message last; typed only.

    Not for programs: a private message that arrives meanwhile would change whom it is for.
    """

    text: str


class SayBlock(msgspec.Struct, frozen=True):
    """What several `Say` in a row are once they have been read: nothing is done per message.

    *run* is their texts, in order, with an LF between two; *nonces* are theirs, or nothing if
    none has one.  All name the same *room*, or none.
    """

    text: str
    nonces: tuple[Nonce | None, ...] = ()
    room: str | None = None


# --- Events ---------------------------------------------------------------------------------------


class Limits(msgspec.Struct, frozen=True):
    """What a server takes: bytes in a line, characters in a name.

    *wait* is for how many seconds at a time it may stop reading a client's messages, because it
    waits for a slow client.
    """

    line: _Limit
    name: _Limit
    wait: float = 0.0


class Welcome(_Message, frozen=True, tag="welcome"):
    """The answer to a hello: who we are, where, with how many *members*, and the *last* id there.

    *server* is the name and version of the program.  *session* is what we say in a hello to be who
    we are, should we lose the connection, empty where nobody can; *resumed* whether we are, by
    that, who we were.
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


class Said(_Message, frozen=True, kw_only=True, tag="said"):
    """Somebody said *text*, or did it if *act*.

    Over the text protocol *id*, *time*, *room* and *client* are unknown, and *name* is empty where
    the other side does not tag its lines.
    """

    id: str = ""
    time: str = ""
    room: Name = ""
    client: _Count = 0
    name: Name
    text: str
    act: bool = False


class Directed(_Message, frozen=True, kw_only=True, tag="direct"):
    """Somebody said *text* to us alone.

    Over the text protocol *time* and *client* are unknown.
    """

    time: str = ""
    client: _Count = 0
    name: Name
    text: str


class Accepted(_Message, frozen=True, kw_only=True, tag="accepted"):
    """What we said with that nonce is in its room's order, as *id*, or on its way to one person."""

    id: str | None = None


class Joined(_Message, frozen=True, tag="joined"):
    """Somebody has joined our room; as the answer to `Join`, we have joined *room*.

    *members* is how many are in the room now; 0 from a server of an older version, which says it
    only in the answer.  *last* is, in the answer, the id of the last message there, if any.
    """

    client: _Count
    name: Name
    room: Name = ""
    members: _Count = 0
    last: str | None = None


class Left(_Message, frozen=True, tag="left"):
    """Somebody has left our room; *reason* is empty if they chose to.

    *members* is how many are in the room now; 0 from a server of an older version.
    """

    client: _Count
    name: Name
    reason: str
    members: _Count = 0


class Renamed(_Message, frozen=True, tag="renamed"):
    """Somebody, or we, had the name *old* and has another."""

    client: _Count
    old: Name
    name: Name


class Presence(_Message, frozen=True, tag="presence"):
    """So many have come, gone and changed names at once; *members* are here now."""

    joined: _Count
    left: _Count
    renamed: _Count
    members: _Count


class Missed(_Message, frozen=True, tag="missed"):
    """We were too slow for so many messages."""

    count: _Count


class MemberName(msgspec.Struct, frozen=True):
    """One of the members of a room."""

    client: _Count
    name: Name


class Members(_Message, frozen=True, tag="members"):
    """The answer to `Who`.

    Where nobody is in *room* and a person is called so, *person_in* is the room of that person.
    """

    room: Name
    members: list[MemberName]
    person_in: Name = ""


class HistoryPage(_Message, frozen=True, tag="history"):
    """The answer to `History`, oldest first; *more* says whether there is something before it.

    *missed* is how many messages behind its first one cannot be read.
    """

    messages: list[Said]
    more: bool
    missed: _Count = 0


class RoomSize(msgspec.Struct, frozen=True):
    """A room, and how many are in it."""

    room: Name
    members: _Count


class RoomList(_Message, frozen=True, tag="rooms"):
    """The answer to `Rooms`."""

    rooms: list[RoomSize]


class Notice(_Message, frozen=True, tag="notice"):
    """The server itself has something to say to us."""

    text: str


class Pong(_Message, frozen=True, tag="pong"):
    """The answer to `Ping`."""

    token: str


class Error(_Message, frozen=True, tag="error"):
    """We cannot have what we asked for; *code* is why for programs, *text* for people.

    *holder* is the name in use that the name we asked for looks like, if that is why.
    """

    code: str
    text: str
    holder: Name = ""


ASKED_TO_LEAVE = "you asked to leave"
"""The reason of a goodbye that answers `Quit`."""


GOODBYES = {
    "shutdown": True,
    "draining": True,
    "too-slow": True,
    "idle": True,
    "full": True,
    "kicked": False,
    "banned": False,
    "replaced": False,
    "wrong-password": False,
    "quit": False,
}
"""The codes of a goodbye, and whether the client may reconnect after it."""

TOO_SLOW = "too slow"
TOO_FAR_BEHIND = "too far behind"
TAKEN_OVER = "taken over by a new connection"
SHUTTING_DOWN = "the server is shutting down"

# How the reasons of a goodbye begin: the text protocol, and a server of an older version, give a
# reason and no code.  The first that fits counts.
_CODES_BY_REASON = {
    SHUTTING_DOWN: "shutdown",
    TOO_SLOW: "too-slow",
    TOO_FAR_BEHIND: "too-slow",
    "nothing said for": "idle",
    SERVER_IS_FULL: "full",
    TOO_MANY_FROM_ADDRESS: "full",
    TOO_MANY_ATTEMPTS: "full",
    "kicked": "kicked",
    "banned": "banned",
    TAKEN_OVER: "replaced",
    WRONG_PASSWORD: "wrong-password",
    TOO_MANY_WRONG: "full",
    ASKED_TO_LEAVE: "quit",
}


class Goodbye(_Message, frozen=True, tag="goodbye"):
    """The server is about to close the connection.

    *reason* is for people, *code* is one of `GOODBYES`, and *reconnect* says whether the client may
    come back, not before *after* seconds if that is given.  A server of an older version sends the
    reason alone; see `known`.
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
        """Return the same goodbye with what can be concluded where it does not say it."""
        code, reconnect = self.code, self.reconnect
        if not code and reconnect is None:
            known = (c for start, c in _CODES_BY_REASON.items() if self.reason.startswith(start))
            code = next(known, "")
        if reconnect is None:
            reconnect = GOODBYES.get(code, False)
        return msgspec.structs.replace(self, code=code, reconnect=reconnect)


class Disconnected(_Message, frozen=True):
    """The connection is lost, and will be tried again in so many seconds; is on no wire.

    Told for the loss, with 0 *failures*, and for each try that failed, with their number.
    """

    reason: str
    retry_seconds: float
    failures: int = 0


class Reconnected(_Message, frozen=True):
    """The conversation goes on over a new connection; is on no wire.

    What was missed meanwhile follows, as `Said`.  *resumed* says that we are who we were; else the
    server has forgotten us, and *again* messages, which had been sent and not accepted, may come to
    be said twice.
    """

    resumed: bool
    again: int = 0


class SaidBlock(msgspec.Struct, frozen=True):
    """What one publish says in a room: several `Said` in a row, not yet spelled.

    *run* is their texts with an LF between two; their ids are *epoch* and the numbers from *first*
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
    """What is no request is answered with *error*."""

    error: Error

    @classmethod
    def because(cls, error: RemoteProtocolError, nonce: Nonce | None = None) -> "Invalid":
        """Make it of the exception that says why."""
        holder = error.holder if isinstance(error, NameTaken) else ""
        return cls(Error(error.code, str(error), holder, nonce=nonce))


WireRequest: TypeAlias = (
    Say | Act | Direct | Rename | Join | Who | Rooms | History | Ping | Help | Quit
)
"""What a client can ask in either protocol."""

Request: TypeAlias = SayBlock | WireRequest | Hello | Reply | Invalid
"""What a server reads: `Say` as part of a `SayBlock`, and what was no request as `Invalid`."""

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
"""What a server can tell a member."""

Event: TypeAlias = WireEvent | Disconnected | Reconnected
"""What a member can be told, by its server or by its own client."""
