"""Session store: resumable sessions and nonce deduplication.

Owns session tokens and each session's nonces: what makes a client the one that it was, and a
message that is sent again the one that was accepted.  Knows nothing of connections and rooms.

1. A token is 128 random bits; only its digest is kept, so that nobody can read it out of us, and
   whoever guesses learns nothing from how long the answer takes.
2. The session of a connected client stays.  The others are bounded in number and in bytes: above
   that, the oldest session of the address that has most is evicted.
3. A session keeps its last `MAX_UNACCEPTED` nonces for as long as it is there, each from the moment
   in which its message was numbered.
"""

import heapq
import hmac
import math
import secrets
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from hashlib import sha256

import msgspec
import trio

from multichat.errors import NotKept
from multichat.ids import message_id
from multichat.journal import Journal, Keeping, SessionRecord
from multichat.messages import MAX_UNACCEPTED, Accepted, Nonce

__all__ = ["Resumable", "Resumables", "Taken"]

# Between two times that the journal is told of new names and rooms.
_PAUSE_SECONDS = 1.0

# How often the journal is told that who is connected still is.
REFRESH_SECONDS = 3600.0

# What a disconnected session takes in memory, without its nonces; a nonce of a connected one takes
# `_NONCE_BYTES` beside the nonce itself.  Both measured with CPython 3.11.
_SESSION_BYTES = 700
_NONCE_BYTES = 200

# Evicting looks at all sessions, so this part of them is evicted at once.
_EVICTED_PART = 8

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

    @property
    def is_pending(self) -> bool:
        """Whether it is not known yet whether they are kept, or they are not told yet."""
        return (self._keeping is not None and not self._keeping.resolved) or (
            self._told is not None and not self._told.is_set()
        )

    @property
    def has_failed(self) -> bool:
        """Whether it is known that they are not kept."""
        return self._keeping is not None and self._keeping.failed

    def id_of(self, message: int) -> str | None:
        """Return the id of the message of that number among them, from 0."""
        return message_id(self.epoch, self.first + message) if self.epoch else None


class Resumable:
    """A session: *client* is the client's number, *name* is empty where it has none.

    *here* says whether it is connected, *place* where it was last.  *restored* is false while its
    nonces are only in the journal, after a restart.  *counted_bytes* is what it takes while it is
    not connected.
    """

    __slots__ = (
        "_longest",
        "_packed",
        "client",
        "counted_bytes",
        "digest",
        "here",
        "name",
        "place",
        "restored",
        "room",
        "seen",
        "window",
    )

    def __init__(self, record: SessionRecord, *, restored: bool) -> None:
        self.digest, self.client = record.digest, record.client
        self.name, self.room, self.seen = record.name, record.room, record.seen
        self.here = False
        self.place: Hashable = None
        self.restored = restored
        self.counted_bytes = 0
        self.window: dict[Nonce, tuple[Taken, int]] = {}
        self._longest = 0  # how many bytes the longest nonce takes
        self._packed = b""

    @property
    def held_bytes(self) -> int:
        """How much memory it takes."""
        nonces = len(self.window) * (_NONCE_BYTES + self._longest) + len(self._packed)
        return _SESSION_BYTES + nonces

    def take(self, nonces: Sequence[Nonce | None], taken: Taken) -> None:
        """Note with which *nonces* the messages of *taken* were said, one for each."""
        self.unpack()
        window = self.window
        for i, nonce in enumerate(nonces):
            if nonce is not None:
                window[nonce] = taken, i
        self._longest = max((self._longest, *map(sys.getsizeof, nonces)))
        while len(window) > MAX_UNACCEPTED:
            del window[next(iter(window))]

    def numbers(self, ends: Mapping[str, int]) -> list[int]:
        """Return the numbers of the messages that it said last in a room, in order.

        *ends* are the room's epochs, each with the number behind its last message.
        """
        return [
            taken.first + i
            for taken, i in self.window.values()
            if taken.first + i < ends.get(taken.epoch, 0) and not taken.has_failed
        ]

    def pack(self) -> None:
        """Keep the nonces in few bytes, unless the fate of one is not known yet."""
        window = self.window
        if not window or any(taken.is_pending for taken, _ in window.values()):
            return
        epochs: dict[str, int] = {}
        rows = [
            (nonce, epochs.setdefault(taken.epoch, len(epochs)), taken.first + i)
            for nonce, (taken, i) in window.items()
            if not taken.has_failed
        ]
        self._packed = _encode((list(epochs), rows))
        self.window = {}

    def unpack(self) -> None:
        """Undo `pack`; nothing if the nonces are not packed."""
        if self._packed:
            epochs, rows = _decode(self._packed)
            self._packed = b""
            self.window = {n: (Taken(epochs[epoch], number), 0) for n, epoch, number in rows}

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


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[str], list[tuple[Nonce, int, int]]]).decode


class Resumables:
    """All sessions of a server, and what *journal* is to keep of them.

    Of those that are not connected there are at most *max_away*, which take at most *max_bytes*,
    each for *session_seconds*.
    """

    def __init__(
        self,
        journal: Journal,
        max_away: int,
        session_seconds: float,
        max_bytes: float = math.inf,
    ) -> None:
        self._journal = journal
        self._session_seconds = session_seconds
        self._max_away, self._max_bytes = max_away, max_bytes
        self._here: dict[bytes, Resumable] = {}
        self._away: OrderedDict[bytes, Resumable] = OrderedDict()  # who left first is first
        self._dirty: dict[bytes, Resumable] = {}  # what the journal is to be told of
        self._changed = trio.Event()
        self.away_bytes = 0  # what those that are not connected take

    async def load(self, now: float) -> None:
        """Take over those that the journal has kept; *now* is in seconds since 1970."""
        for record in await self._journal.sessions(now - self._session_seconds, self._max_away):
            self._add_away(Resumable(record, restored=False))

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
            kept = await self._journal.nonces(one.client, MAX_UNACCEPTED)
            if not one.restored:  # nobody else has done it meanwhile
                one.restored = True
                for nonce, epoch, number in kept:
                    one.take((nonce,), Taken(epoch, number))
                self._count(one)

    def come(self, one: Resumable) -> None:
        """Note that *one* is connected."""
        self._leave_away(one)
        one.unpack()
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

        None is no place: it is not known.
        """
        if self._here.pop(one.digest, None) is None:
            return
        one.here, one.place, one.seen = False, place, now
        self._add_away(one)
        self._journal.keep_session(one.record())
        self._make_room(now)

    def _make_room(self, now: float) -> None:
        """Forget sessions that are too old; of too many, those of the largest addresses."""
        away = self._away
        while away and now - (oldest := next(iter(away.values()))).seen > self._session_seconds:
            self.forget(oldest)
        if len(away) <= self._max_away and self.away_bytes <= self._max_bytes:
            return
        places: dict[Hashable, deque[Resumable]] = {}
        for one in away.values():  # of an unknown place, each is one of its own
            place = one.digest if one.place is None else one.place
            places.setdefault(place, deque()).append(one)
        largest = [
            (-sum(one.counted_bytes for one in each), order, each)
            for order, each in enumerate(places.values())
        ]
        heapq.heapify(largest)
        most = self._max_away - self._max_away // _EVICTED_PART
        most_bytes = self._max_bytes * (1 - 1 / _EVICTED_PART)
        while largest and (len(away) > most or self.away_bytes > most_bytes):
            size, order, sessions = heapq.heappop(largest)
            victim = sessions.popleft()
            if sessions:
                heapq.heappush(largest, (size + victim.counted_bytes, order, sessions))
            self.forget(victim)

    def take(self, one: Resumable, nonces: Sequence[Nonce | None], taken: Taken) -> None:
        """Do as `Resumable.take`; *one* may have disconnected meanwhile."""
        one.take(nonces, taken)
        self._count(one)

    def _add_away(self, one: Resumable) -> None:
        self._away[one.digest] = one
        self._count(one)

    def _count(self, one: Resumable) -> None:
        """Have *away_bytes* include what *one* takes now, unless it is connected."""
        if not one.here and one.digest in self._away:
            one.pack()
            self.away_bytes += one.held_bytes - one.counted_bytes
            one.counted_bytes = one.held_bytes

    def forget(self, one: Resumable) -> None:
        """Let nobody come back as *one*."""
        self._here.pop(one.digest, None)
        self._leave_away(one)
        one.here = False
        self._journal.forget_session(one.digest)

    def _leave_away(self, one: Resumable) -> None:
        if self._away.pop(one.digest, None) is not None:
            self.away_bytes -= one.counted_bytes
            one.counted_bytes = 0


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
