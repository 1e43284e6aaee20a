"""A connected client: what the server keeps for one connection, whatever rooms it is in.

Holds state and makes no decisions: the registry and the rooms decide, the session acts.  For what
it has in each of its rooms see `multichat.server.member`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from multichat.net.send_queue import SendQueue
from multichat.protocol.codec import Codec
from multichat.protocol.messages import Event, Notice
from multichat.protocol.text_codec import TEXT
from multichat.server.log_rate import ClientLog
from multichat.server.member import Member
from multichat.server.session_store import StoredSession

if TYPE_CHECKING:
    from multichat.server.room import Room

__all__ = ["Client", "MemberInfo"]

# Most notices kept for a lagging client: it may lag for hours, and gets them in one piece.
_MAX_NOTICES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberInfo:
    """A snapshot of a connected client; *address* is empty if it has none.

    *waiting_bytes* are in its send queue; *behind* is how many messages are to be replayed to it.
    """

    client: int
    name: str
    room: str
    address: str
    waiting_bytes: int
    behind: int = 0


@dataclass(eq=False, slots=True)
class Client:
    """A connected client; *number* is its own on this server.

    *on_leave* is called once, synchronously, when the client has left the server, and *on_lag*
    whenever it begins to lag in a room: the callee arranges that the rooms' `replayer`s replay to
    it.  Neither may raise or change a room.

    *memberships*, by the rooms' keys, are changed by the rooms only.  *current* is the membership
    that requests without a room mean; the last one, once the client has left.

    *refused_room* is the room that the client asked for, or was in before it reconnected, if it
    could not enter it: it is in the lobby, and its messages that name no room are refused until it
    joins one.  Empty if that is no valid room name.
    """

    number: int
    name: str
    send_queue: SendQueue
    address: str
    on_leave: Callable[[str], None]
    on_lag: Callable[[], None]
    codec: Codec = TEXT
    origin: str | None = None  # the address for limits; see `Origin`
    stored_session: StoredSession | None = None  # set once it can be resumed
    assigned_name: str = ""  # by `authenticate`: it can have no other
    refused_room: str | None = None
    last_sender: int | None = None  # of a private message
    notices: tuple[Notice, ...] = ()  # for when it no longer lags
    undelivered_at: tuple[int, int] | None = None  # its progress when a private message failed
    memberships: dict[str, Member] = field(default_factory=dict)
    current: Member = field(init=False)
    log: ClientLog = field(init=False)

    @property
    def room(self) -> "Room":
        """The current room."""
        return self.current.room

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
            address=self.address,
            waiting_bytes=self.send_queue.waiting_bytes,
            behind=sum(member.behind for member in self.memberships.values()),
        )

    def keep_notice(self, notice: Notice) -> None:
        """Keep *notice* until the client no longer lags; only the newest are kept."""
        self.notices = (*self.notices, notice)[-_MAX_NOTICES:]
