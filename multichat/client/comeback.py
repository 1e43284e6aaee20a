"""What a client knows to come back after its connection was lost: when to try, and as whom.  Pure.

Owns the pauses between two tries, and the place in a conversation from which it goes on.  What was
asked and not answered is in `multichat.client.unacknowledged`.
"""

from collections.abc import Callable

from multichat.protocol.messages import (
    PROTOCOL,
    Hello,
    Joined,
    Renamed,
    Said,
    Welcome,
)
from multichat.protocol.names import default_name, fold_name

__all__ = [
    "EVERYTHING",
    "Backoff",
    "Position",
]

# A connection that did not hold for that long is no success: whoever is sent away as soon as it
# has come would else come four times a second for ever.
STEADY_SECONDS = 1.0

# Whatever was said in a room in which nothing had been said when we came.
EVERYTHING = 2**31 - 1


class Backoff:
    """How long to wait before each try: twice as long each time, up to a bound, and not exactly.

    *random* returns numbers from 0 to 1; by them a thousand clients that lost the same server do
    not come back in the same moment.
    """

    def __init__(
        self,
        random: Callable[[], float],
        *,
        first_seconds: float,
        most_seconds: float,
    ) -> None:
        self._random = random
        self._first_seconds, self._most_seconds = first_seconds, most_seconds
        self._seconds = first_seconds

    def next_seconds(self) -> float:
        """Return how long to wait now: between a half and all of what it is this time."""
        seconds = self._seconds
        self._seconds = min(2 * seconds, self._most_seconds)
        return seconds * (1 + self._random()) / 2

    def held(self, seconds: float) -> None:
        """Note that there was a conversation for so long; after a steady one it begins anew."""
        if seconds >= STEADY_SECONDS:
            self._seconds = self._first_seconds


class Position:
    """Where a client is in its conversation: who it is, in which room, what it has heard there.

    *session* is empty until a server has given one.  What is told here is what the server told, in
    its order.
    """

    def __init__(self) -> None:
        self.session = ""
        self.client = 0
        self.name = self.room = ""
        self._since: str | None = None  # the last that we have heard, or that we came after
        self._heard: str | None = None
        self._last: str | None = None  # what was the room's last when we were welcomed

    def welcomed(self, welcome: Welcome) -> None:
        """Note how the server greeted us."""
        came_back = bool(self.session) and welcome.room == self.room
        self.session, self.client, self.name = welcome.session, welcome.client, welcome.name
        self._last = welcome.last
        if not came_back:
            self._enter(welcome.room, welcome.last)

    def joined(self, joined: Joined) -> None:
        """Note that we are in another room; of others it is none of our business."""
        if joined.client == self.client and joined.room and joined.room != self.room:
            self._enter(joined.room, joined.last)

    def renamed(self, renamed: Renamed) -> None:
        """Note that we have another name, if it is us."""
        if renamed.client == self.client:
            self.name = renamed.name

    def _enter(self, room: str, last: str | None) -> None:
        self.room, self._since, self._heard = room, last, None

    def begin_anew(self) -> None:
        """Note that the room does not know what we have heard there: it is another one."""
        self._enter(self.room, self._last)

    def hear(self, said: Said) -> bool:
        """Note a message; return False if it has been heard before."""
        if not said.id or said.room != self.room:
            return True
        if self._heard is not None and said.id <= self._heard:
            return False
        self._since = self._heard = said.id
        return True

    def hello(self) -> Hello:
        """Return what to say to go on from here, also to a server that has forgotten us."""
        unnamed = fold_name(self.name) == fold_name(default_name(self.client))
        return Hello(
            PROTOCOL,
            None if unnamed else self.name,
            self.room,
            self.session,
            self._since,
            EVERYTHING if self._since is None else 0,
        )
