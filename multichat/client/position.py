"""Position: who a client is, its rooms, and the last message that it has received in each.  Pure.

It is what a new connection needs to resume the session.  Unanswered requests are in
`multichat.client.outbox`.
"""

from multichat.protocol.messages import PROTOCOL, Credentials, Hello, Renamed, Said, Start, Welcome
from multichat.protocol.names import default_name, fold_name

__all__ = ["EVERYTHING", "Position"]

# Replays all messages of a room that was empty when we entered it.
EVERYTHING = 2**31 - 1


class _Place:
    """Our position in the order of one room's messages."""

    __slots__ = ("last", "received", "since")

    def __init__(self, last: str | None) -> None:
        self.last = last  # the room's last message when we entered it, or were welcomed
        self.since = last  # the last message received, or else the last one before we came
        self.received: str | None = None

    def start(self) -> Start:
        """Return where a new connection begins."""
        return Start(self.since, EVERYTHING if self.since is None else 0)


class Position:
    """A client's identity, and its position in the order of each of its rooms' messages.

    *session* is empty until a server has given one.  *login* are the credentials of the account
    that we are logged in to, or want to be; *account* is its name once we are.  The events MUST be
    passed in the order in which they were received.
    """

    def __init__(self, login: Credentials | None = None) -> None:
        self.session = ""
        self.client = 0
        self.name = ""
        self.account = ""
        self.login = login
        self._places: dict[str, _Place] = {}  # in the order of entering

    @property
    def room(self) -> str:
        """The current room, the one entered last; empty before the first welcome."""
        return next(reversed(self._places), "")

    @property
    def rooms(self) -> tuple[str, ...]:
        """All our rooms, the current one last."""
        return tuple(self._places)

    @property
    def is_unnamed(self) -> bool:
        """Whether our name is the default one, which is derived from our number."""
        return fold_name(self.name) == fold_name(default_name(self.client))

    def find(self, room: str) -> str | None:
        """Return the name of our room *room*, in any case or form; None if we are not in it."""
        if room in self._places:
            return room
        folded = fold_name(room)
        return next((each for each in self._places if fold_name(each) == folded), None)

    def welcomed(self, welcome: Welcome) -> None:
        """Note how the server has welcomed us."""
        known = self._places if self.session else {}
        self.session, self.client, self.name = welcome.session, welcome.client, welcome.name
        self.account = welcome.account
        lasts = {room: state.last for room, state in (welcome.rooms or {}).items()}
        lasts.pop(welcome.room, None)
        lasts[welcome.room] = welcome.last
        places: dict[str, _Place] = {}
        for room, last in lasts.items():
            old = self.find(room) if known else None
            places[room] = _Place(last) if old is None else known[old]
            places[room].last = last
        self._places = places

    def joined(self, room: str, last: str | None) -> None:
        """Note that we have moved to *room*, and left the others."""
        place = self._places.get(room)
        self._places = {room: place or _Place(last)}

    def entered(self, room: str, last: str | None) -> None:
        """Note that we have entered *room* in addition, or that it is the current one now."""
        place = self._places.pop(room) if room in self._places else _Place(last)
        self._places[room] = place

    def exited(self, room: str) -> None:
        """Note that we have left *room*."""
        self._places.pop(room, None)

    def renamed(self, renamed: Renamed) -> None:
        """Update the name if it was us who changed it."""
        if renamed.client == self.client:
            self.name = renamed.name

    def restart(self, room: str) -> None:
        """Forget the last message received in *room*: the server does not know it."""
        if room in self._places:
            self._places[room] = _Place(self._places[room].last)

    def advance(self, said: Said) -> bool:
        """Note a message; return False if it was received before."""
        place = self._places.get(said.room)
        if not said.id or place is None:
            return True
        if place.received is not None and said.id <= place.received:
            return False
        place.since = place.received = said.id
        return True

    def hello(self, entering: dict[str, Start] | None = None) -> Hello:
        """Return the hello that resumes from here, or begins a session if the server has none.

        It also enters the rooms *entering*.
        """
        starts = {room: place.start() for room, place in self._places.items()}
        current = starts.pop(self.room)
        others = {
            room: start for room, start in (entering or {}).items() if self.find(room) is None
        }
        return Hello(
            PROTOCOL,
            None if self.is_unnamed else self.name,
            self.room,
            self.session,
            current.since,
            current.replay,
            starts | others | {self.room: current},
            self.login,
        )
