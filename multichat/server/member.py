"""A client as its room sees it: its name, its send queue, and how far it lags.

Holds state and makes no decisions: the room decides, the session acts.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from multichat.net.send_queue import SendQueue
from multichat.protocol.codec import Codec
from multichat.protocol.messages import Event, Notice, Presence
from multichat.protocol.text_codec import TEXT
from multichat.server.lag import Lag
from multichat.server.log_rate import ClientLog
from multichat.server.session_store import StoredSession

if TYPE_CHECKING:
    from multichat.server.room import Room

__all__ = ["Member", "MemberInfo"]

# Most notices kept for a lagging member: it may lag for hours, and gets them in one piece.
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
class Member:
    """A client as its room sees it.

    *on_leave* is called once, synchronously, when the member has left the server, and *on_lag*
    whenever it begins to lag: the callee arranges that the room's `replayer` replays to it.
    Neither may raise or change a room.

    *refused_room* is the room that the client asked for, or was in before it reconnected, if it
    could not enter it: it is in the lobby, and its messages that name no room are refused until it
    joins one.  Empty if that is no valid room name.
    """

    client: int
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
    lag: Lag | None = None  # None for a live member
    notices: tuple[Notice, ...] = ()  # for when it is live again
    missed_presence: Presence | None = None  # presence events that it did not get
    undelivered_at: tuple[int, int] | None = None  # its progress when a private message failed
    room: "Room" = field(init=False)
    log: ClientLog = field(init=False)

    def send(self, *events: Event) -> Awaitable[object]:
        """Send *events* to this client alone; waits while its send queue is full."""
        # Not async: a coroutine would hold the events, as large as their encoding, while it waits.
        return self.send_queue.put(b"".join(map(self.codec.encode, events)))

    def info(self) -> MemberInfo:
        """Return a snapshot for the public API."""
        return MemberInfo(
            client=self.client,
            name=self.name,
            room=self.room.name,
            address=self.address,
            waiting_bytes=self.send_queue.waiting_bytes,
            behind=self.lag.behind(self.room.next) if self.lag else 0,
        )

    def keep_notice(self, notice: Notice) -> None:
        """Keep *notice* until the member is live; only the newest are kept."""
        self.notices = (*self.notices, notice)[-_MAX_NOTICES:]
