"""Who may come back, and what they have said with which nonce.

Owns session tokens and the windows of nonces: what makes a client the one that it was, and a
message that is said again the one that was said.  Knows nothing of connections and rooms.

1. A token is 128 random bits; kept is only its digest, so that nobody can read it out of us, and
   whoever guesses learns nothing from how long the answer takes.
2. Who is connected is never forgotten; of the others whoever left first, but where there are many
   from one place whoever left it first makes room for those who leave it.
3. A nonce stands in its window from the moment in which its message was numbered.
"""

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import trio

from multichat.errors import NotKept
from multichat.ids import message_id
from multichat.journal import Journal, Keeping, SessionRecord
from multichat.messages import Accepted, Nonce

__all__ = ["MAX_NONCES", "Resumable", "Resumables", "Taken"]

# Four times what a client keeps that was not accepted, and so could say again.
MAX_NONCES = 1024

# Between two times that the journal is told of new names and rooms.
_PAUSE_SECONDS = 1.0

# How often the journal is told that who is connected still is.
REFRESH_SECONDS = 3600.0

# Of those who are away, together: 70 MiB at worst, where a full window for each were 2.5 GiB.
MAX_NONCES_AWAY = 256 * 1024

# From one place: of more, and where there is no room, only its own are forgotten.  Else one machine
# that comes and goes for long enough would have all others forgotten.
_SHARE_OF_A_PLACE = 0.1

_TOKEN_BYTES = 16


class Taken:
    """Where messages that were said with nonces stand: in their room's journal, or soon.

    *epoch* is empty for a private message, which is in none.  *told* is set when it has been told
    to the room: an answer says that, too.
    """

    __slots__ = ("_keeping", "_told", "epoch", "first")

    def __init__(
        self,
        epoch: str = "",
        first: int = 0,
        keeping: Keeping | None = None,
        told: trio.Event | None = None,
    ) -> None:
        self.epoch, self.first = epoch, first
        self._keeping, self._told = keeping, told

    async def is_kept(self) -> bool:
        """Wait until it is known whether they are kept, and told; return whether they are."""
        if self._keeping is not None:
            try:
                await self._keeping.wait()
            except NotKept:
                return False
            self._keeping = None
        if self._told is not None:
            await self._told.wait()
            self._told = None
        return True

    def id_of(self, message: int) -> str | None:
        """Return the id of the message of that number among them, from 0."""
        return message_id(self.epoch, self.first + message) if self.epoch else None


class Resumable:
    """One who may come back: *client* is its number, *name* is empty where it has none.

    *here* says whether it is connected, *place* where it was last.  *restored* that its window is
    all that there is: after a restart the journal has to be asked.
    """

    __slots__ = ("client", "digest", "here", "name", "place", "restored", "room", "seen", "window")

    def __init__(self, record: SessionRecord, *, restored: bool) -> None:
        self.digest, self.client = record.digest, record.client
        self.name, self.room, self.seen = record.name, record.room, record.seen
        self.here = False
        self.place: Hashable = None
        self.restored = restored
        self.window: dict[Nonce, tuple[Taken, int]] = {}

    def record(self) -> SessionRecord:
        """Return what a journal keeps of it."""
        return SessionRecord(
            digest=self.digest, client=self.client, name=self.name, room=self.room, seen=self.seen
        )

    def count_new(self, nonces: Sequence[Nonce | None]) -> int:
        """Return how many of them, from the first on, nothing was said with before."""
        window = self.window
        if window.keys().isdisjoint(nonces) and len(set(nonces)) == len(nonces):
            return len(nonces)  # mostly
        seen: set[Nonce] = set()
        for number, nonce in enumerate(nonces):
            if nonce is None:
                continue
            if nonce in seen or nonce in window:
                return number
            seen.add(nonce)
        return len(nonces)

    async def answer(self, nonce: Nonce) -> Accepted | None:
        """Return the answer to what was said with *nonce*, once it is kept.

        None for nothing: also if it cannot be kept, for then it was not said.
        """
        if nonce not in self.window:
            return None
        taken, number = self.window[nonce]
        if await taken.is_kept():
            return Accepted(nonce=nonce, id=taken.id_of(number))
        self.window.pop(nonce, None)
        return None


@dataclass(slots=True)
class _Crowd:
    """Those who are away and were at one place; *nonces* are in their windows."""

    members: OrderedDict[bytes, Resumable] = field(default_factory=OrderedDict)
    nonces: int = 0

    def is_large(self, max_away: int) -> bool:
        """Say whether these are more than their share of *max_away*, or have more nonces."""
        return (
            len(self.members) > _SHARE_OF_A_PLACE * max_away
            or self.nonces > _SHARE_OF_A_PLACE * MAX_NONCES_AWAY
        )


class Resumables:
    """All of a server's, and what *journal* is to keep of them.

    Of those who are not connected there are at most *max_away*, each for *session_seconds*.
    """

    def __init__(self, journal: Journal, max_away: int, session_seconds: float) -> None:
        self._journal = journal
        self._session_seconds = session_seconds
        self._max_away = max_away
        self._here: dict[bytes, Resumable] = {}
        self._away: OrderedDict[bytes, Resumable] = OrderedDict()  # who left first is first
        self._dirty: dict[bytes, Resumable] = {}  # what the journal is to be told of
        self._changed = trio.Event()
        self._nonces = 0  # in the windows of those who are away
        self._crowds: dict[Hashable, _Crowd] = {}  # of those of whom it is known where they were

    async def load(self, now: float) -> None:
        """Take over those that the journal has kept; *now* is in seconds since 1970."""
        for record in await self._journal.sessions(now - self._session_seconds, self._max_away):
            self._away[record.digest] = Resumable(record, restored=False)

    def issue(self, client: int, name: str, room: str, now: float) -> tuple[str, Resumable]:
        """Make one for who has just come; return its token, too, which is kept nowhere."""
        token = secrets.token_hex(_TOKEN_BYTES)
        record = SessionRecord(digest=_digest(token), client=client, name=name, room=room, seen=now)
        one = self._here[record.digest] = Resumable(record, restored=True)
        one.here = True
        self._journal.keep_session(record)
        return token, one

    def find(self, token: str, now: float) -> Resumable | None:
        """Return whose that token is, if it is anybody's and not too old."""
        digest = _digest(token)
        one = self._here.get(digest) or self._away.get(digest)
        if one is None or not hmac.compare_digest(one.digest, digest):
            return None
        if not one.here and now - one.seen > self._session_seconds:
            self.forget(one)
            return None
        return one

    async def restore(self, one: Resumable) -> None:
        """Have the window of *one* hold what the journal knows of it."""
        if not one.restored:
            kept = await self._journal.nonces(one.client, MAX_NONCES)
            if not one.restored:  # nobody else has done it meanwhile
                one.restored = True
                one.window = {n: (Taken(epoch, number), 0) for n, epoch, number in kept}
                if one.digest in self._away:
                    self._count_nonces(one, len(one.window))

    def come(self, one: Resumable) -> None:
        """Note that *one* is connected."""
        self._leave_away(one)
        self._here[one.digest] = one
        one.here = True

    def changed(self, one: Resumable, name: str, room: str, now: float) -> None:
        """Note what *one* is called now, and where it is."""
        one.name, one.room, one.seen = name, room, now
        self._dirty[one.digest] = one
        self._changed.set()

    async def refresh(self) -> None:
        """Have the journal know, for ever, what changes, and that those who are here are seen.

        Names and rooms not more often than once a second, however often somebody changes them.
        """
        refresh_at = trio.current_time() + REFRESH_SECONDS
        while True:
            with trio.move_on_at(refresh_at):
                await self._changed.wait()
                await trio.sleep(_PAUSE_SECONDS)
            if trio.current_time() >= refresh_at:
                refresh_at = trio.current_time() + REFRESH_SECONDS
                self._dirty.update(self._here)
                for one in self._here.values():
                    one.seen = time.time()
            self._changed = trio.Event()
            for one in self._dirty.values():
                if one.here:
                    self._journal.keep_session(one.record())
            self._dirty.clear()

    def go(self, one: Resumable, place: Hashable, now: float) -> None:
        """Note that *one*, who was at *place*, is not connected any more, and may come back.

        None is no place: it is not known, or everybody may be there.
        """
        if self._here.pop(one.digest, None) is None:
            return
        one.here, one.place, one.seen = False, place, now
        self._away[one.digest] = one
        if place is not None:
            self._crowds.setdefault(place, _Crowd()).members[one.digest] = one
        self._count_nonces(one, len(one.window))
        self._journal.keep_session(one.record())
        self._make_room(place, now)

    def _make_room(self, place: Hashable, now: float) -> None:
        """Forget who was away for too long, and if there are too many, others for *place*."""
        away = self._away
        while away:
            victim = next(iter(away.values()))
            if now - victim.seen <= self._session_seconds:
                if len(away) <= self._max_away and self._nonces <= MAX_NONCES_AWAY:
                    return
                crowd = self._crowds.get(place)
                if crowd is not None and crowd.is_large(self._max_away):
                    victim = next(iter(crowd.members.values()))
            self.forget(victim)

    def _count_nonces(self, one: Resumable, more: int) -> None:
        self._nonces += more
        if (crowd := self._crowds.get(one.place)) is not None:
            crowd.nonces += more

    def forget(self, one: Resumable) -> None:
        """Let nobody come back as *one*."""
        self._here.pop(one.digest, None)
        self._leave_away(one)
        one.here = False
        self._journal.forget_session(one.digest)

    def _leave_away(self, one: Resumable) -> None:
        if self._away.pop(one.digest, None) is not None:
            self._count_nonces(one, -len(one.window))
            if (crowd := self._crowds.get(one.place)) is not None:
                del crowd.members[one.digest]
                if not crowd.members:
                    del self._crowds[one.place]

    def take(self, one: Resumable, nonces: Iterable[Nonce | None], taken: Taken) -> None:
        """Note with which *nonces* the messages of *taken* were said, one for each."""
        window = one.window
        for i, nonce in enumerate(nonces):
            if nonce is not None:
                window[nonce] = taken, i
        while len(window) > MAX_NONCES:
            del window[next(iter(window))]


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
