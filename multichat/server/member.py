"""A member: one client in one room, and how far it lags there.

Holds state and makes no decisions: the room decides.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from multichat.net.send_queue import SendQueue
from multichat.protocol.messages import Presence
from multichat.server.broadcast import Block
from multichat.server.lag import Lag

if TYPE_CHECKING:
    from multichat.server.client import Client
    from multichat.server.room import Room

__all__ = ["Member"]


@dataclass(eq=False, slots=True)
class Member:
    """A *client* in a *room*; *send_queue* is the client's."""

    client: "Client"
    room: "Room"
    send_queue: SendQueue = field(init=False)  # a publish looks it up for each member
    lag: Lag | None = None  # None for a live member
    missed_presence: Presence | None = None  # presence events that it did not get
    is_stand_in: bool = False  # it is in the lobby because another room was refused

    def __post_init__(self) -> None:
        self.send_queue = self.client.send_queue

    @property
    def named_room(self) -> str:
        """The room's name in events for the client; empty if these name no room."""
        return self.room.name if self.client.names_rooms else ""

    @property
    def last_id(self) -> str | None:
        """The id of the message before the next one that it gets, if there is one.

        It is the room's, unless it lags or the room waits for it.
        """
        if self.lag is not None:
            return self.room.id_before(self.lag.position)
        waiting = self.room.slow_clients.waiting.get(self)
        return self.room.id_before(
            waiting.said.first if isinstance(waiting, Block) else self.room.next
        )

    @property
    def behind(self) -> int:
        """How many messages are to be replayed to it."""
        return self.lag.behind(self.room.next) if self.lag is not None else 0
