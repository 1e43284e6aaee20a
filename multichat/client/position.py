"""Position: who a client is, its room, and the last message that it has received there.  Pure.

It is what a new connection needs to resume the session.  Unanswered requests are in
`multichat.client.outbox`.
"""

from multichat.protocol.messages import PROTOCOL, Hello, Joined, Renamed, Said, Welcome
from multichat.protocol.names import default_name, fold_name

__all__ = ["EVERYTHING", "Position"]

# Replays all messages of a room that was empty when we joined it.
EVERYTHING = 2**31 - 1


class Position:
    """A client's identity and its position in the order of its room's messages.

    *session* is empty until a server has given one.  The events MUST be passed in the order in
    which they were received.
    """

    def __init__(self) -> None:
        self.session = ""
        self.client = 0
        self.name = self.room = ""
        self._since: str | None = None  # the last message received, or the last one before we came
        self._received: str | None = None
        self._last: str | None = None  # the room's last message when we were welcomed

    @property
    def is_unnamed(self) -> bool:
        """Whether our name is the default one, which is derived from our number."""
        return fold_name(self.name) == fold_name(default_name(self.client))

    def welcomed(self, welcome: Welcome) -> None:
        """Note how the server has welcomed us."""
        stays = bool(self.session) and welcome.room == self.room
        self.session, self.client, self.name = welcome.session, welcome.client, welcome.name
        self._last = welcome.last
        if not stays:
            self._enter(welcome.room, welcome.last)

    def joined(self, joined: Joined) -> None:
        """Update the position if it was us who joined a room."""
        if joined.client == self.client and joined.room and joined.room != self.room:
            self._enter(joined.room, joined.last)

    def renamed(self, renamed: Renamed) -> None:
        """Update the name if it was us who changed it."""
        if renamed.client == self.client:
            self.name = renamed.name

    def _enter(self, room: str, last: str | None) -> None:
        self.room, self._since, self._received = room, last, None

    def restart(self) -> None:
        """Forget the last message received: the server does not know it in this room."""
        self._enter(self.room, self._last)

    def advance(self, said: Said) -> bool:
        """Note a message; return False if it was received before."""
        if not said.id or said.room != self.room:
            return True
        if self._received is not None and said.id <= self._received:
            return False
        self._since = self._received = said.id
        return True

    def hello(self) -> Hello:
        """Return the hello that resumes from here, or begins a session if the server has none."""
        return Hello(
            PROTOCOL,
            None if self.is_unnamed else self.name,
            self.room,
            self.session,
            self._since,
            EVERYTHING if self._since is None else 0,
        )
