"""Session store: resumable sessions and nonce deduplication.

Owns session tokens and each session's nonces: by the token a client resumes its session, by the
nonce a message that is sent again is recognised.  Knows nothing of connections and rooms.

The sessions in memory are bounded; others are looked up in the journal, if it outlives the server.

1. A token is 128 random bits.  Only its digest is kept, so that the token cannot be read from
   memory or the journal, and the time of the answer tells nothing to somebody who guesses.
2. The session of a connected client stays in memory.  The others are bounded in number and in
   bytes: above that, sessions of the addresses that use most are evicted, those that have been in
   memory for longest first.  Their nonces are in the journal by then.
3. A session keeps its last `MAX_UNACCEPTED` nonces, each from the step in which its message is
   numbered (a private one: delivered), with a checksum of the text: a nonce that is used again for
   another message is refused.
4. The journal has each change of a session before any message that is accepted after the change.
5. Times come from a clock that cannot be set.
"""

import heapq
import hmac
import math
import re
import secrets
import struct
import sys
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from hashlib import sha256
from itertools import repeat
from zlib import crc32

import msgspec
import trio

from multichat.errors import NonceReused, NotKept
from multichat.ids import message_id
from multichat.journal import Journal, Keeping, KeptSession, SessionRecord
from multichat.messages import MAX_UNACCEPTED, Accepted, Nonce

__all__ = ["Resumable", "Resumables", "Taken", "check_at", "checks_of"]

# What a disconnected session takes in memory, without its nonces; a nonce of a connected one takes
# `_NONCE_BYTES` beside the nonce itself.  Both measured with CPython 3.11.
_SESSION_BYTES = 700
_NONCE_BYTES = 200

# Evicting looks at all sessions, so this part of them is evicted at once.
_EVICTED_PART = 8

_TOKEN_BYTES = 16
_TOKEN = re.compile(f"[0-9a-f]{{{2 * _TOKEN_BYTES}}}")

_CHECK_BYTES = 4

# Seeds the check of an action: the same text said, acted or sent privately has different checks.
_ACT = 1


def checks_of(run: str, *, act: bool = False, to: str | int | None = None) -> bytes:
    """Return the checks of the texts of *run*: their CRC-32, `_CHECK_BYTES` for each.

    *to* is the recipient of a private message.  Of more than `MAX_UNACCEPTED` only the last are
    needed later; the others are zero.
    """
    seed = _ACT if act else 0 if to is None else crc32(repr(to).encode("utf-8", "replace"))
    texts = run.encode("utf-8", "replace").split(b"\n")
    start = max(0, len(texts) - MAX_UNACCEPTED)
    newest = texts[start:]
    sums = map(crc32, newest, repeat(seed)) if seed else map(crc32, newest)
    return bytes(_CHECK_BYTES * start) + struct.pack(f"<{len(newest)}I", *sums)


def check_at(checks: bytes, message: int) -> bytes:
    """Return the check of the message of that number, from 0; empty if it is not known."""
    return checks[_CHECK_BYTES * message : _CHECK_BYTES * (message + 1)]


class Taken:
    """A run of messages with nonces: their ids, and whether they are kept and delivered yet.

    *epoch* is empty for a private message, which has no id and has been delivered.  *room* is the
    room's name, folded, empty where it is not known, and *checks* are those of the messages.
    *keeping* says when the journal has them, or a private one's nonce.  `settle` sets *told* when
    they have been delivered to the room: `accepted` means that, too.
    """

    __slots__ = ("_keeping", "_told", "checks", "epoch", "first", "room")

    def __init__(
        self,
        epoch: str = "",
        first: int = 0,
        *,
        room: str = "",
        checks: bytes = b"",
        keeping: Keeping | None = None,
        told: trio.Event | None = None,
    ) -> None:
        self.epoch, self.first = epoch, first
        self.room, self.checks = room, checks
        self._keeping, self._told = keeping, told

    async def is_kept(self) -> bool:
        """Wait until they are kept and delivered; return whether they were said at all."""
        if self._keeping is not None:
            try:
                await self._keeping.wait()
            except NotKept:
                if self.epoch:  # a private message has been delivered all the same
                    return False
            self._keeping = None
        if self._told is not None:
            await self._told.wait()
            self._told = None
        return True

    def settle(self) -> None:
        """Note that they have been delivered, or never will be, and release what is not needed."""
        if self._told is not None:
            self._told.set()
            self._told = None
        if self._keeping is not None and self._keeping.resolved and not self._keeping.failed:
            self._keeping = None

    @property
    def is_pending(self) -> bool:
        """Whether it is not known yet if they are kept, or they are not delivered yet."""
        return (self._keeping is not None and not self._keeping.resolved) or (
            self._told is not None and not self._told.is_set()
        )

    @property
    def has_failed(self) -> bool:
        """Whether it is known that they are not kept, and so were not said."""
        return bool(self.epoch) and self._keeping is not None and self._keeping.failed

    def check_of(self, message: int) -> bytes:
        """Return the check of the message of that number among them; empty if it is not known."""
        return check_at(self.checks, message)

    def id_of(self, message: int) -> str | None:
        """Return the id of the message of that number among them, from 0."""
        return message_id(self.epoch, self.first + message) if self.epoch else None


class Resumable:
    """A session: *client* is the client's number, *name* is empty where it has none.

    *here* says whether it is connected; if not, *place* is its last address, *left_at* when it
    disconnected, and *counted_bytes* what the session takes in memory.
    """

    __slots__ = (
        "_longest",
        "_packed",
        "client",
        "counted_bytes",
        "digest",
        "here",
        "left_at",
        "name",
        "place",
        "room",
        "window",
    )

    def __init__(self, record: SessionRecord) -> None:
        self.digest, self.client = record.digest, record.client
        self.name, self.room = record.name, record.room
        self.here = False
        self.place: Hashable = None
        self.left_at = 0.0
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
        """Note the *nonces* of the messages of *taken*, one for each message."""
        self.unpack()
        window = self.window
        if None in nonces:
            window.update({n: (taken, i) for i, n in enumerate(nonces) if n is not None})
        else:  # mostly all have one
            start = max(0, len(nonces) - MAX_UNACCEPTED)
            places = zip(repeat(taken), range(start, len(nonces)), strict=False)
            window.update(zip(nonces[start:], places, strict=False))  # type: ignore[arg-type]
        newest = nonces[-MAX_UNACCEPTED:]
        self._longest = max((self._longest, *map(sys.getsizeof, newest)))
        while len(window) > MAX_UNACCEPTED:
            del window[next(iter(window))]

    def numbers(self, ends: Mapping[str, int]) -> list[int]:
        """Return the numbers of its last messages in a room, in order.

        *ends* has the room's epochs, each with the number behind its last message.
        """
        return [
            taken.first + i
            for taken, i in self.window.values()
            if taken.first + i < ends.get(taken.epoch, 0) and not taken.has_failed
        ]

    def pack(self) -> None:
        """Encode the nonces compactly, unless one is still pending."""
        window = self.window
        if not window or any(taken.is_pending for taken, _ in window.values()):
            return
        epochs: dict[tuple[str, str], int] = {}
        rows = [
            (
                nonce,
                epochs.setdefault((taken.epoch, taken.room), len(epochs)),
                taken.first + i,
                int.from_bytes(check, "little") if (check := taken.check_of(i)) else -1,
            )
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
            for nonce, index, number, check in rows:
                epoch, room = epochs[index]
                known = check.to_bytes(_CHECK_BYTES, "little") if check >= 0 else b""
                self.window[nonce] = Taken(epoch, number, room=room, checks=known), 0

    def record(self) -> SessionRecord:
        """Return what a journal keeps of it."""
        return SessionRecord(digest=self.digest, client=self.client, name=self.name, room=self.room)

    def count_new(self, nonces: Sequence[Nonce | None]) -> int:
        """Return how many of them, from the first on, have not been used before."""
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

    async def answer(self, nonce: Nonce, check: bytes, room: str | None = None) -> Accepted | None:
        """Return the answer to the message with *nonce*, once it is kept.

        None if there is none, or it could not be kept and was not said.  Raises `NonceReused` if
        *check* is that of another message, or *room* is given and it was not said there.
        """
        if nonce not in self.window:
            return None
        taken, number = self.window[nonce]
        if not await taken.is_kept():
            self.window.pop(nonce, None)
            return None
        if taken.check_of(number) not in (b"", check) or (
            room is not None and taken.room not in ("", room)
        ):
            raise NonceReused(nonce)
        return Accepted(nonce=nonce, id=taken.id_of(number))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    tuple[list[tuple[str, str]], list[tuple[Nonce, int, int, int]]]
).decode


class Resumables:
    """All sessions of a server, and what *journal* is to keep of them.

    Of those that are not connected at most *max_away* are in memory, which take at most
    *max_bytes*.  They can be resumed for *session_seconds*.
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
        self._away: OrderedDict[bytes, Resumable] = OrderedDict()  # the one added last is last
        self._looking = trio.Lock()  # into the journal
        self.away_bytes = 0  # what those that are not connected take

    def issue(self, client: int, name: str, room: str) -> tuple[str, Resumable]:
        """Make a session for a new client; return it and its token, which is kept nowhere."""
        token = secrets.token_hex(_TOKEN_BYTES)
        record = SessionRecord(digest=_digest(token), client=client, name=name, room=room)
        one = self._here[record.digest] = Resumable(record)
        one.here = True
        self._journal.keep_session(record, connected=True)
        return token, one

    async def find(self, token: str) -> Resumable | None:
        """Return the session with that *token*; None if there is none, or it is too old.

        It stays in memory until the caller's next checkpoint.  Raises `NotRead` if the journal
        cannot be read.
        """
        digest = _digest(token)
        if (one := self._in_memory(digest)) is None and _TOKEN.fullmatch(token):
            async with self._looking:  # one at a time, so that no session is loaded twice
                if (one := self._in_memory(digest)) is None:
                    one = self._restored(await self._journal.session(digest))
        if one is None or one.here or trio.current_time() - one.left_at <= self._session_seconds:
            return one
        return None

    def _in_memory(self, digest: bytes) -> Resumable | None:
        one = self._here.get(digest) or self._away.get(digest)
        return None if one is None or not hmac.compare_digest(one.digest, digest) else one

    def _restored(self, kept: KeptSession | None) -> Resumable | None:
        """Take over a session from the journal."""
        if kept is None or kept.age_seconds > self._session_seconds:
            return None
        one = Resumable(kept.record)
        one.left_at = trio.current_time() - kept.age_seconds
        for nonce, epoch, number, room, check in kept.nonces:
            one.take((nonce,), Taken(epoch, number, room=room, checks=check))
        self._make_room()
        self._add_away(one)
        return one

    def come(self, one: Resumable) -> None:
        """Note that *one* is connected."""
        self._leave_away(one)
        one.unpack()
        self._here[one.digest] = one
        one.here = True

    def changed(self, one: Resumable, name: str, room: str) -> None:
        """Note the present name and room of *one*."""
        one.name, one.room = name, room
        self._journal.keep_session(one.record(), connected=True)

    def go(self, one: Resumable, place: Hashable) -> None:
        """Note that *one*, which was at address *place*, has disconnected and may reconnect.

        *place* is None if the address is not known.
        """
        if self._here.pop(one.digest, None) is None:
            return
        one.here, one.place, one.left_at = False, place, trio.current_time()
        self._add_away(one)
        self._journal.keep_session(one.record(), connected=False)
        self._make_room()

    def _make_room(self) -> None:
        """Evict expired sessions, and if there are too many, those of the largest addresses."""
        away, expired = self._away, trio.current_time() - self._session_seconds
        while away and (oldest := next(iter(away.values()))).left_at < expired:
            self._leave_away(oldest)
        if len(away) <= self._max_away and self.away_bytes <= self._max_bytes:
            return
        places: dict[Hashable, deque[Resumable]] = {}
        for one in away.values():  # one without an address counts as an address of its own
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
            self._count(victim)
            if not victim.window:  # else some of its nonces are not in the journal yet
                self._leave_away(victim)

    def take(self, one: Resumable, nonces: Sequence[Nonce | None], taken: Taken) -> None:
        """Do as `Resumable.take`; *one* may have disconnected meanwhile."""
        one.take(nonces, taken)
        self._count(one)

    async def take_private(self, one: Resumable, nonce: Nonce, check: bytes) -> None:
        """Note that *one* has sent a private message with *nonce*; return when the journal has it.

        Raises `NotKept`: then the nonce is known for as long as the session is in memory.
        """
        keeping = self._journal.keep_nonce(one.client, nonce, check)
        taken = Taken(checks=check, keeping=keeping)
        self.take(one, (nonce,), taken)
        if keeping is not None:
            await keeping.wait()
            taken.settle()

    def _add_away(self, one: Resumable) -> None:
        self._away[one.digest] = one
        self._count(one)

    def _count(self, one: Resumable) -> None:
        """Update *away_bytes* with what *one* takes now, unless it is connected."""
        if not one.here and one.digest in self._away:
            one.pack()
            self.away_bytes += one.held_bytes - one.counted_bytes
            one.counted_bytes = one.held_bytes

    def forget(self, one: Resumable) -> None:
        """End the session *one*: nobody can resume it."""
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
