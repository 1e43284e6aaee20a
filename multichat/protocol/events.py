"""Events for clients, as typed values.  Pure.

Events are facts; a type's tag is its name in the JSON protocol.  See `multichat.protocol.messages`.
"""

from datetime import datetime

import msgspec

from multichat.protocol.fields import BanSeconds, Count, Limit, Name, Nonce, Tagged, Topic
from multichat.protocol.goodbyes import GOODBYES, code_of_reason

__all__ = [
    "Accepted",
    "BanInfo",
    "BanList",
    "Directed",
    "Disconnected",
    "Entered",
    "Error",
    "Exited",
    "Goodbye",
    "HistoryPage",
    "Joined",
    "Left",
    "Limits",
    "LoggedIn",
    "LoggedOut",
    "MemberName",
    "Members",
    "Missed",
    "Notice",
    "Pong",
    "Presence",
    "Reconnected",
    "Renamed",
    "RoomList",
    "RoomSize",
    "RoomState",
    "Said",
    "SaidBlock",
    "TopicChanged",
    "Welcome",
]


class Limits(msgspec.Struct, frozen=True):
    """The limits of a server: bytes in a line, characters in a name.

    *wait* is the longest time, in seconds, for which it may stop reading from a client while it
    waits for a slow client.
    """

    line: Limit
    name: Limit
    wait: float = 0.0


class RoomState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A room that we are in: its *members*, the id of its *last* message, and its *topic*."""

    members: Count
    last: str | None
    topic: Topic = ""


class Welcome(Tagged, frozen=True, tag="welcome"):
    """The answer to a hello: our number, name and room, its *members*, and its *last* id.

    *server* is the name and version of the program.  *session* is the token with which a later
    hello resumes this session, empty if the server does not support that; *resumed* says that the
    session was resumed.  *rooms* are all rooms that we are in, the one entered last at the end;
    None if the hello has no `rooms`.  *account* is the account that we are logged in to, if any.
    """

    protocol: Count
    client: Count
    name: Name
    room: Name
    members: Count
    limits: Limits
    last: str | None
    server: str
    resumed: bool
    session: str = ""
    rooms: dict[Name, RoomState] | None = None
    account: Name = ""


def _parse_time(timestamp: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(timestamp)
    except ValueError:  # a hostile server can send anything
        return None
    return None if time.tzinfo is None else time


class Said(Tagged, frozen=True, kw_only=True, tag="said"):
    """A message in a room, or an action if *act*.

    In the text protocol *id*, *time*, *room* and *client* are unknown, and *name* is empty if the
    server does not tag its lines.  *timestamp* is the time as it is on the wire.
    """

    id: str = ""
    timestamp: str = msgspec.field(default="", name="time")
    room: Name = ""
    # Not a plain default, which would be omitted: 0 is a message of the webhook.
    client: Count = msgspec.field(default_factory=int)
    name: Name
    text: str
    act: bool = False

    @property
    def time(self) -> datetime | None:
        """When it was said, with a time zone; None if that is unknown."""
        return _parse_time(self.timestamp)


class Directed(Tagged, frozen=True, kw_only=True, tag="direct"):
    """A private message to us.

    In the text protocol *time* and *client* are unknown.  *timestamp* is the time as it is on the
    wire.
    """

    timestamp: str = msgspec.field(default="", name="time")
    client: Count = 0
    name: Name
    text: str

    @property
    def time(self) -> datetime | None:
        """When it was said, with a time zone; None if that is unknown."""
        return _parse_time(self.timestamp)


class Accepted(Tagged, frozen=True, kw_only=True, tag="accepted"):
    """Acknowledges our message with that nonce; *id* is its id in its room, None if private."""

    id: str | None = None


class Joined(Tagged, frozen=True, tag="joined"):
    """A client has joined a room that we are in.

    *members* is the number of members now; 0 from older servers, which send it only in the answer
    to `Join`.  As the answer to `Join` and `Enter` it says that we have joined *room*, whose *last*
    message has that id, if there is one: the client turns it into `Entered`.  About others, *room*
    is given only to clients that have entered several rooms.
    """

    client: Count
    name: Name
    room: Name = ""
    members: Count = 0
    last: str | None = None
    topic: Topic = ""


class Left(Tagged, frozen=True, tag="left"):
    """A client has left a room that we are in; *reason* is empty if it chose to.

    *members* is the number of members now; 0 from older servers.  As the answer to `Exit` it says
    that we have left *room*: the client turns it into `Exited`.  For *room* see `Joined`.
    """

    client: Count
    name: Name
    reason: str
    members: Count = 0
    room: Name = ""


class Renamed(Tagged, frozen=True, tag="renamed"):
    """A client, perhaps ourselves, changed its name from *old* to *name*."""

    client: Count
    old: Name
    name: Name


class Presence(Tagged, frozen=True, tag="presence"):
    """Several changes at once, as counts; *members* is the number of members now.

    For *room* see `Joined`.
    """

    joined: Count
    left: Count
    renamed: Count
    members: Count
    room: Name = ""


class Missed(Tagged, frozen=True, tag="missed"):
    """*count* messages were not delivered to us, and will not be.

    We were too slow, or the history does not have them any more.  For *room* see `Joined`.
    """

    count: Count
    room: Name = ""


class MemberName(msgspec.Struct, frozen=True):
    """One of the members of a room."""

    client: Count
    name: Name


class Members(Tagged, frozen=True, tag="members"):
    """The answer to `Who`.

    If *room* is empty and a client has that name, *person_in* is the room of that client.
    """

    room: Name
    members: list[MemberName]
    person_in: Name = ""


class HistoryPage(Tagged, frozen=True, tag="history"):
    """The answer to `History`, oldest first; *more* says whether there are earlier messages.

    *missed* is the number of messages after its first one that cannot be read.  For *room* see
    `Joined`.
    """

    messages: list[Said]
    more: bool
    missed: Count = 0
    room: Name = ""


class RoomSize(msgspec.Struct, frozen=True):
    """A room and the number of its members."""

    room: Name
    members: Count


class RoomList(Tagged, frozen=True, tag="rooms"):
    """The answer to `Rooms`."""

    rooms: list[RoomSize]


class BanInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ban on *what*, for another *seconds*, or without end; *reason* may be empty."""

    what: str
    seconds: BanSeconds | None = None
    reason: str = ""


class BanList(Tagged, frozen=True, tag="bans"):
    """The answer to `Bans`."""

    bans: list[BanInfo]


class TopicChanged(Tagged, frozen=True, tag="topic"):
    """The topic of *room* is *text*, empty for none; the answer to `SetTopic`, too.

    It was set by the client *name*, which is empty if it was not set just now.
    """

    room: Name
    text: Topic
    client: Count = 0
    name: Name = ""


class LoggedIn(Tagged, frozen=True, tag="logged-in"):
    """We are logged in to the account *name*: the answer to `Register` and `Login`."""

    name: Name


class LoggedOut(Tagged, frozen=True, tag="logged-out"):
    """We are logged out of our account, and called *name* now.

    The answer to `Logout`, and sent when another connection has logged in to the account, or has
    changed its passphrase: *reason* says so.
    """

    name: Name
    reason: str = ""


class Notice(Tagged, frozen=True, tag="notice"):
    """A message from the server itself."""

    text: str


class Pong(Tagged, frozen=True, tag="pong"):
    """The answer to `Ping`."""

    token: str


class Error(Tagged, frozen=True, tag="error"):
    """A request was refused; *code* is the reason for programs, *text* for people.

    *holder* is the name in use that the requested name looks like, if that is the reason.  *room*
    is given in errors about one of several rooms, such as one of a hello that cannot be entered.
    *registered* says that the name in use is an account's, so that the requested one will not be
    free when its present holder leaves.
    """

    code: str
    text: str
    holder: Name = ""
    room: Name = ""
    registered: bool = False


class Goodbye(Tagged, frozen=True, tag="goodbye"):
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
    def of(
        cls, code: str, reason: str, *, after: float | None = None, nonce: Nonce | None = None
    ) -> "Goodbye":
        """Return the goodbye with this *code*, which MUST be one of `GOODBYES`."""
        return cls(reason, code, GOODBYES[code], after, nonce=nonce)

    def known(self) -> "Goodbye":
        """Return the same goodbye with the missing fields derived from its reason."""
        code, reconnect = self.code, self.reconnect
        if not code and reconnect is None:
            code = code_of_reason(self.reason)
        if reconnect is None:
            reconnect = GOODBYES.get(code, False)
        return msgspec.structs.replace(self, code=code, reconnect=reconnect)


class Disconnected(Tagged, frozen=True):
    """The connection is lost; the client tries again in *retry_seconds*.  Never on the wire.

    Emitted when the connection is lost (*failures* is 0) and after each failed attempt (*failures*
    counts them).  *fault* is a reason that lasts until it is repaired, such as a certificate that
    is not accepted; only the first event with this reason has it, so that it is shown once.
    """

    reason: str
    retry_seconds: float
    failures: int = 0
    fault: str = ""


class Reconnected(Tagged, frozen=True):
    """The client has reconnected.  Never on the wire.

    The missed messages follow, as `Said`.  *resumed* says that the session was resumed; otherwise
    *again* messages, which had been sent and not acknowledged, may be delivered twice.
    """

    resumed: bool
    again: int = 0


class Entered(Tagged, frozen=True):
    """We have joined *room*, which has *members* members and the *last* id; never on the wire.

    The client makes it from the `Joined` that answers `Join` or `Enter`.
    """

    room: str
    members: int = 0
    last: str | None = None
    topic: str = ""


class Exited(Tagged, frozen=True):
    """We have left *room*; never on the wire.

    The client makes it from the `Left` that answers `Exit`.
    """

    room: str


class SaidBlock(msgspec.Struct, frozen=True):
    """The messages of one publish in a room: several `Said` in a row, not yet encoded.

    *text* is their texts separated by LF; their ids are made of *epoch* and the numbers from
    *first* on (see `multichat.protocol.ids`).
    """

    epoch: str
    first: int
    time: str
    room: str
    client: int
    name: str
    text: str
    act: bool = False
