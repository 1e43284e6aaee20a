"""A client as its room sees it: who it is, how it is reached, and how far behind it is.

Owns no behaviour: the room decides, the session acts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from multichat.net.send_queue import SendQueue
from multichat.protocol.codec import Codec
from multichat.protocol.messages import Notice, Presence
from multichat.protocol.text_codec import TEXT
from multichat.server.log_rate import ClientLog
from multichat.server.replay import Lag
from multichat.server.session_store import StoredSession

if TYPE_CHECKING:
    from multichat.server.room import Room

__all__ = ["Member"]

# Server notices for a member that lags.
_MAX_NOTICES = 16


@dataclass(eq=False, slots=True)
class Member:
    """A client as its room sees it.

    *on_leave* is called once, synchronously, when the member has left the server, and *on_lag*
    whenever it begins to lag: then something calls `Room.replay`.  They MUST NOT raise, nor change
    any room.

    *refused_room* is the room that it asked for, or in which it was, where it could not enter that:
    it hears the lobby, and what it says without naming a room is refused until it joins one.  Empty
    where that cannot be a room.
    """

    client: int
    name: str
    send_queue: SendQueue
    address: str
    on_leave: Callable[[str], None]
    on_lag: Callable[[], None]
    codec: Codec = TEXT
    origin: str | None = None  # the address that limits count it at; see `Origin`
    stored_session: StoredSession | None = None  # by which it may come back
    refused_room: str | None = None
    last_sender: int | None = None  # of a private message
    lag: Lag | None = None  # None for a live member
    notices: tuple[Notice, ...] = ()  # for when it is live again
    missed_presence: Presence | None = None  # what it was not told, if anything
    undelivered_at: tuple[int, int] | None = None  # its progress when a private message failed
    room: "Room" = field(init=False)
    log: ClientLog = field(init=False)

    def keep_notice(self, notice: Notice) -> None:
        """Keep *notice* until the member is live, if it is among the newest then."""
        self.notices = (*self.notices, notice)[-_MAX_NOTICES:]
