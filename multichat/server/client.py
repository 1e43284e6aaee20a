"""A connected client: what the server keeps for one connection, whatever rooms it is in.

Holds state and makes no decisions: the registry and the rooms decide, the session acts.  For what
it has in each of its rooms see `multichat.server.member`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from multichat.errors import NameTaken, NotInRoom
from multichat.net.send_queue import SendQueue
from multichat.protocol.codec import Codec
from multichat.protocol.codecs import LINES, Codecs
from multichat.protocol.messages import Event, Notice, TopicChanged
from multichat.protocol.names import fold_name
from multichat.protocol.text_codec import TEXT
from multichat.server.log_rate import ClientLog
from multichat.server.member import Member
from multichat.server.room_claims import RoomGrants
from multichat.server.stored_session import StoredSession

if TYPE_CHECKING:
    from multichat.server.room import Room

__all__ = ["ARRIVING_SECONDS", "GREETING_SECONDS", "Client", "MemberInfo"]

# Time for a client to send its hello, before it is announced to others.
ARRIVING_SECONDS = 0.1

# The same while its hello is carried out: longer than a storage is waited for.  A client that reads
# nothing can delay its own hello without limit, and must not stay in a room unseen.
GREETING_SECONDS = 10.0

# Most notices kept for a lagging client: it may lag for hours, and gets them in one piece.
_MAX_NOTICES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberInfo:
    """A snapshot of a connected client; *address* is empty if it has none.

    *room* is the current one of its *rooms*, the one that it entered last, and the last of them.
    *waiting_bytes* are in its send queue; *behind* is how many messages are to be replayed to it.
    """

    client: int
    name: str
    room: str
    rooms: tuple[str, ...]
    address: str
    waiting_bytes: int
    behind: int = 0


@dataclass(eq=False, slots=True)
class Client:
    """A connected client; *number* is its own on this server.

    *on_leave* is called once, synchronously, when the client has left the server, and *on_lag*
    whenever it begins to lag in a room: the callee arranges that the rooms' `replayer`s replay to
    it.  Neither may raise or change a room.

    *memberships*, by the rooms' keys, are in the order in which they were entered.  *current* is
    the last of them, which requests without a room mean; it stays when the client has left.  With
    *names_rooms*, events about others name their room.

    *refused_room* is the current room that the client asked for, or was in before it reconnected,
    if it could not enter it: its messages that name no room are refused until it joins or enters
    one.  Empty if that is no valid room name.  *refused_rooms*, by key, are the others.

    *codecs* are those of its connection's framing, *codec* is the one that it uses.

    It is arriving until *arriving_until* on trio's clock, unless it sends something before: a hello
    may follow, with which it resumes a session or takes a name.  While one is carried out it
    *is_greeting*, and has more time.  It is announced when it has arrived.

    It *is_trusted* if it was not authenticated: a bot in the server, which no drain disconnects.

    *account* is the one that it is logged in to, case-folded, empty if there is none; changed by
    `multichat.server.logins` only.  *may_speak* if it needs none to speak.

    *generation* rises with each resume of its session; *claims* are the names that it has asked
    for, folded, with the refusal if there is one; see `multichat.server.claims`.  *grants* are
    the rooms that its request opens; see `multichat.server.room_claims`.
    """

    number: int
    name: str
    send_queue: SendQueue
    address: str
    on_leave: Callable[[str], None]
    on_lag: Callable[[], None]
    codec: Codec = TEXT
    codecs: Codecs = LINES
    origin: str | None = None  # the address for limits; see `Origin`
    stored_session: StoredSession | None = None  # set once it can be resumed
    assigned_name: str = ""  # by `authenticate`: it can have no other
    account: str = ""
    may_speak: bool = True
    is_trusted: bool = False
    names_rooms: bool = False
    refused_room: str | None = None
    refused_rooms: dict[str, str] = field(default_factory=dict)
    last_sender: int | None = None  # of a private message
    notices: tuple[Notice | TopicChanged, ...] = ()  # for when it no longer lags
    undelivered_at: tuple[int, int] | None = None  # its progress when a private message failed
    arriving_until: float = 0.0
    is_greeting: bool = False
    generation: int = 1
    claims: dict[str, NameTaken | None] = field(default_factory=dict)
    grants: RoomGrants = field(default_factory=dict)
    memberships: dict[str, Member] = field(default_factory=dict)
    current: Member = field(init=False)
    log: ClientLog = field(init=False)

    @property
    def room(self) -> "Room":
        """The current room."""
        return self.current.room

    @property
    def session_rooms(self) -> tuple[str, ...]:
        """The rooms with which it resumes its session, the current one last."""
        entered = [each.room.name for each in self.memberships.values() if not each.is_stand_in]
        rooms = [*self.refused_rooms.values(), *entered]
        if self.refused_room:
            rooms.append(self.refused_room)
        return tuple(rooms or [self.room.name])

    def member_in(self, room: str | None) -> Member:
        """Return its membership in *room*, by default in its current room.

        Raises `NotInRoom` if it is not there, or could not enter what would be its current room.
        """
        if room is None:
            if self.refused_room is not None:
                raise NotInRoom(self.refused_room)
            return self.current
        member = self.memberships.get(fold_name(room))
        if member is None:
            raise NotInRoom(room)
        return member

    def rooms_alone(self) -> tuple[str, ...]:
        """Return the keys of the rooms that close on this server when it leaves them."""
        return tuple(key for key, each in self.memberships.items() if len(each.room.members) == 1)

    def make_current(self, member: Member) -> None:
        """Make *member*, one of its memberships, the current one."""
        self.memberships[member.room.key] = self.memberships.pop(member.room.key)
        self.current = member

    def lagging(self) -> list[Member]:
        """Return its memberships in the rooms in which it lags."""
        return [member for member in self.memberships.values() if member.lag is not None]

    def send(self, *events: Event) -> Awaitable[object]:
        """Send *events* to this client alone; waits while its send queue is full."""
        # Not async: a coroutine would hold the events, as large as their encoding, while it waits.
        return self.send_queue.put(b"".join(map(self.codec.encode, events)))

    def set_codec(self, codec: Codec) -> None:
        """Encode everything for this client in *codec* from now on."""
        for member in self.memberships.values():
            member.room.change_codec(member, codec)
        self.codec = codec

    def info(self) -> MemberInfo:
        """Return a snapshot for the public API."""
        return MemberInfo(
            client=self.number,
            name=self.name,
            room=self.room.name,
            rooms=tuple(member.room.name for member in self.memberships.values()),
            address=self.address,
            waiting_bytes=self.send_queue.waiting_bytes,
            behind=sum(member.behind for member in self.memberships.values()),
        )

    def keep_notice(self, notice: Notice | TopicChanged) -> None:
        """Keep *notice* until the client no longer lags; only the newest are kept."""
        self.notices = (*self.notices, notice)[-_MAX_NOTICES:]
