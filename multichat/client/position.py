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
        self.since = last  # the last message received, or else the last one before we entered
        self.received: str | None = None

    def start(self) -> Start:
        """Return where a new connection begins."""
        return Start(self.since, EVERYTHING if self.since is None else 0)


class Position:
    """A client's identity, and its position in the order of each of its rooms' messages.

    *session* is empty until a server has given one.  *login* are the credentials of the account
    that we are logged in to, or want to be; *account* is its name once we are.  The events MUST be
    passed in the order in which they were received.

    A room that we were in and cannot enter again is no longer one of ours, but the next connections
    request it again, until we join another, or leave it.
    """

    def __init__(self, login: Credentials | None = None) -> None:
        self.session = ""
        self.client = 0
        self.name = ""
        self.account = ""
        self.login = login
        self._places: dict[str, _Place] = {}  # in the order of entering
        self._refused: dict[str, _Place] = {}  # those that we could not enter again

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

    def welcomed(self, welcome: Welcome) -> None:
        """Note the server's welcome."""
        known = {fold_name(room): room for room in self._places} if self.session else {}
        self.session, self.client, self.name = welcome.session, welcome.client, welcome.name
        self.account = welcome.account
        lasts = {room: state.last for room, state in (welcome.rooms or {}).items()}
        lasts.pop(welcome.room, None)
        lasts[welcome.room] = welcome.last
        known |= {fold_name(room): room for room in self._refused}
        asked = self._refused | self._places
        places: dict[str, _Place] = {}
        for room, last in lasts.items():
            old = known.pop(fold_name(room), None)
            places[room] = _Place(last) if old is None else asked[old]
            places[room].last = last
        # The next connection asks for the others again: a server without a journal that was
        # restarted does not know them.
        self._refused = {room: asked[room] for room in known.values()}
        self._places = places

    def joined(self, room: str, last: str | None) -> None:
        """Note that we have moved to *room*, and left the others."""
        place = self._places.get(room)
        self._places = {room: place or _Place(last)}
        self._refused = {}

    def entered(self, room: str, last: str | None) -> None:
        """Note that we have entered *room* in addition, or that it is the current one now."""
        place = self._places.pop(room) if room in self._places else _Place(last)
        self._places[room] = place
        self.give_up(room)

    def exited(self, room: str) -> None:
        """Note that we have left *room*."""
        self._places.pop(room, None)
        self.give_up(room)

    def give_up(self, room: str) -> None:
        """Stop requesting *room*, if it was refused."""
        folded = fold_name(room)
        for each in [each for each in self._refused if fold_name(each) == folded]:
            del self._refused[each]

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

        It also enters the rooms *entering*, and those that were refused on the last connection.
        """
        places = self._refused | self._places
        starts = {room: place.start() for room, place in places.items()}
        current = starts.pop(self.room, Start())  # a server may have removed us from all rooms
        folded = set(map(fold_name, places))
        others = {
            room: start for room, start in (entering or {}).items() if fold_name(room) not in folded
        }
        return Hello(
            PROTOCOL,
            None if self.is_unnamed else self.name,
            self.room or None,
            self.session,
            current.since,
            current.replay,
            starts | others | ({self.room: current} if self.room else {}),
            self.login,
        )
