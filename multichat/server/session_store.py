"""Session store: resumable sessions and nonce deduplication.

Owns session tokens and each session's nonces.  A client resumes its session with the token; a
message that is sent again is recognized by its nonce.  Knows nothing of connections and rooms.

The sessions in memory are bounded; others are looked up in the backend.

1. A token is 128 random bits.  Only its digest is kept, so that the token cannot be read from
   memory or the storage, and the time of the answer tells nothing to somebody who guesses.
2. The session of a connected client stays in memory.  The others are bounded in number and in
   bytes: above that, sessions of the addresses that use most are evicted, those that have been in
   memory for longest first.  Their nonces are stored by then.
3. A session keeps its last `MAX_UNACCEPTED` nonces, each from the step in which its message is
   numbered (a private one: delivered), with a checksum of the text: a nonce that is used
   again for another message is refused.
4. The backend has each change of a session before any message that is accepted after the change.
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

from multichat.backend.base import Backend
from multichat.errors import NonceReused, StorageFailed
from multichat.journal.base import PendingWrite, SavedSession, SessionRecord
from multichat.protocol.ids import message_id
from multichat.protocol.messages import MAX_UNACCEPTED, Accepted, Nonce
from multichat.protocol.nonces import short_nonce

__all__ = ["SessionStore", "StoredSession", "Submission", "check_at", "checks_of"]

# What a disconnected session takes in memory without its nonces; a nonce of a connected one takes
# `_NONCE_BYTES` besides its own size.  Both measured with CPython 3.11.
_SESSION_BYTES = 700
_ROOM_BYTES = 200  # of each room but the first
_NONCE_BYTES = 200

# Evicting looks at all sessions, so this part of them is evicted at once.
_EVICTED_PART = 8

_TOKEN_BYTES = 16
_TOKEN = re.compile(f"[0-9a-f]{{{2 * _TOKEN_BYTES}}}")

_CHECK_BYTES = 4

# Seed of the check of an action: a message, an action and a private message with the same text have
# different checks.
_ACT = 1


def checks_of(block: str, *, act: bool = False, to: str | int | None = None) -> bytes:
    """Return the checks of the messages of *block*: their CRC-32, `_CHECK_BYTES` for each.

    *to* is the recipient of a private message.  Of more than `MAX_UNACCEPTED` messages only the
    last are needed later; the others are zero.
    """
    seed = _ACT if act else 0 if to is None else crc32(repr(to).encode("utf-8", "replace"))
    texts = block.encode("utf-8", "replace").split(b"\n")
    start = max(0, len(texts) - MAX_UNACCEPTED)
    newest = texts[start:]
    sums = map(crc32, newest, repeat(seed)) if seed else map(crc32, newest)
    return bytes(_CHECK_BYTES * start) + struct.pack(f"<{len(newest)}I", *sums)


def check_at(checks: bytes, message: int) -> bytes:
    """Return the check of the message of that number, from 0; empty if it is not known."""
    return checks[_CHECK_BYTES * message : _CHECK_BYTES * (message + 1)]


class Submission:
    """Messages with nonces that were published together: their ids, and whether they are final.

    *epoch* is empty for messages that are not numbered yet (see `number`), and for a private one,
    which has no id and has been delivered.  *room* is the room's name, folded, empty if it is not
    known or there is none, and *checks* are those of the messages.  *pending* resolves when they
    are stored, or a private one's nonce.  `settle` sets *delivered* when the room has delivered
    them, which `accepted` means as well.
    """

    __slots__ = ("_delivered", "_is_private", "_pending", "checks", "epoch", "first", "room")

    def __init__(
        self,
        epoch: str = "",
        first: int = 0,
        *,
        room: str = "",
        checks: bytes = b"",
        pending: PendingWrite | None = None,
        delivered: trio.Event | None = None,
    ) -> None:
        self.epoch, self.first = epoch, first
        self.room, self.checks = room, checks
        self._is_private = not (epoch or room)
        self._pending, self._delivered = pending, delivered

    def number(self, epoch: str, first: int) -> None:
        """Note the numbers that they have in their room's log."""
        self.epoch, self.first = epoch, first

    def lose(self, reason: str) -> None:
        """Note that the log has lost them, after it had stored them."""
        self._pending = PendingWrite()
        self._pending.resolve(reason)

    async def wait_stored(self) -> bool:
        """Wait until they are stored and delivered; return whether they were published at all."""
        if self._pending is not None:
            try:
                await self._pending.wait()
            except StorageFailed:
                if not self._is_private:  # it has been delivered all the same
                    return False
            self._pending = None
        if self._delivered is not None:
            await self._delivered.wait()
            self._delivered = None
        return not self.has_failed

    def settle(self) -> None:
        """Note that they are delivered, or never will be, and release what is not needed."""
        if self._delivered is not None:
            self._delivered.set()
            self._delivered = None
        if self._pending is not None and self._pending.resolved and not self._pending.failed:
            self._pending = None

    @property
    def is_pending(self) -> bool:
        """Whether it is not known yet if they are stored, or they are not delivered yet."""
        return (self._pending is not None and not self._pending.resolved) or (
            self._delivered is not None and not self._delivered.is_set()
        )

    @property
    def has_failed(self) -> bool:
        """Whether they could not be stored, and so were not published."""
        return not self._is_private and self._pending is not None and self._pending.failed

    def check_of(self, message: int) -> bytes:
        """Return the check of the message of that number among them; empty if it is not known."""
        return check_at(self.checks, message)

    def id_of(self, message: int) -> str | None:
        """Return the id of the message of that number among them, from 0."""
        return message_id(self.epoch, self.first + message) if self.epoch else None


class StoredSession:
    """A session: *client* is the client's number, *name* is empty if it has none.

    The last of its *rooms* is the current one.  *login* is its login to an account,
    empty if it has none; see `multichat.server.accounts`.

    If it is not connected, *address* is its last address, *left_at* when it disconnected, and
    *counted_bytes* what it takes in memory.
    """

    __slots__ = (
        "_longest",
        "_packed",
        "address",
        "client",
        "counted_bytes",
        "digest",
        "generation",
        "is_connected",
        "left_at",
        "login",
        "name",
        "rooms",
        "window",
    )

    def __init__(self, record: SessionRecord) -> None:
        self.digest, self.client = record.digest, record.client
        self.name, self.rooms, self.login = record.name, record.rooms, record.login
        self.generation = record.generation
        self.is_connected = False
        self.address: Hashable = None
        self.left_at = 0.0
        self.counted_bytes = 0
        self.window: dict[Nonce, tuple[Submission, int]] = {}
        self._longest = 0  # the size of the longest nonce, in bytes
        self._packed = b""

    @property
    def held_bytes(self) -> int:
        """How much memory it takes."""
        nonces = len(self.window) * (_NONCE_BYTES + self._longest) + len(self._packed)
        return _SESSION_BYTES + (len(self.rooms) - 1) * _ROOM_BYTES + nonces

    def remember(self, nonces: Sequence[Nonce | None], submission: Submission) -> None:
        """Remember the nonces of the messages in *submission*, one per message."""
        self.unpack()
        window = self.window
        if len(nonces) == 1 and nonces[0] is not None:  # mostly, in a quiet room
            window[nonces[0]] = submission, 0
            self._longest = max(self._longest, sys.getsizeof(nonces[0]))
            if len(window) > MAX_UNACCEPTED:
                del window[next(iter(window))]
            return
        if None in nonces:
            window.update({n: (submission, i) for i, n in enumerate(nonces) if n is not None})
        else:  # mostly all have one
            start = max(0, len(nonces) - MAX_UNACCEPTED)
            places = zip(repeat(submission), range(start, len(nonces)), strict=False)
            window.update(zip(nonces[start:], places, strict=False))  # type: ignore[arg-type]
        newest = nonces[-MAX_UNACCEPTED:]
        self._longest = max((self._longest, *map(sys.getsizeof, newest)))
        while len(window) > MAX_UNACCEPTED:
            del window[next(iter(window))]

    def numbers(self, ends: Mapping[str, int]) -> list[int]:
        """Return the numbers of its last messages in a room, in order.

        *ends* has the room's epochs, each with the number after its last message.
        """
        return [
            submission.first + i
            for submission, i in self.window.values()
            if submission.first + i < ends.get(submission.epoch, 0) and not submission.has_failed
        ]

    def pack(self) -> None:
        """Encode the nonces compactly, unless one of its messages is still pending."""
        window = self.window
        if not window or any(submission.is_pending for submission, _ in window.values()):
            return
        epochs: dict[tuple[str, str], int] = {}
        rows = [
            (
                nonce,
                epochs.setdefault((submission.epoch, submission.room), len(epochs)),
                submission.first + i,
                int.from_bytes(check, "little") if (check := submission.check_of(i)) else -1,
            )
            for nonce, (submission, i) in window.items()
            if not submission.has_failed
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
                self.window[nonce] = Submission(epoch, number, room=room, checks=known), 0

    def record(self) -> SessionRecord:
        """Return what a journal keeps of it."""
        return SessionRecord(
            digest=self.digest,
            client=self.client,
            name=self.name,
            rooms=self.rooms,
            login=self.login,
            generation=self.generation,
        )

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
        """Return the answer to the message with *nonce*, once it is stored.

        None if there is none, or it could not be stored and was not published.  Raises
        `NonceReused` if *check* is that of another message, or it was sent to another room than
        *room*.
        """
        if nonce not in self.window:
            return None
        submission, number = self.window[nonce]
        if not await submission.wait_stored():
            self.window.pop(nonce, None)
            return None
        if submission.check_of(number) not in (b"", check) or (
            room is not None and submission.room not in ("", room)
        ):
            raise NonceReused(nonce)
        return Accepted(nonce=nonce, id=submission.id_of(number))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    tuple[list[tuple[str, str]], list[tuple[Nonce, int, int, int]]]
).decode


class SessionStore:
    """All sessions of a server; *backend* stores them, too.

    At most *max_disconnected* that are not connected are in memory, and take at most *max_bytes*.
    They can be resumed for *session_seconds*.
    """

    def __init__(
        self,
        backend: Backend,
        max_disconnected: int,
        session_seconds: float,
        max_bytes: float = math.inf,
    ) -> None:
        self._backend = backend
        self._session_seconds = session_seconds
        self._max_disconnected, self._max_bytes = max_disconnected, max_bytes
        self._connected: dict[bytes, StoredSession] = {}
        # The one that was added last is last.
        self._disconnected: OrderedDict[bytes, StoredSession] = OrderedDict()
        self._lookup = trio.Lock()
        self.disconnected_bytes = 0

    def create(
        self, client: int, name: str, rooms: tuple[str, ...], login: str = ""
    ) -> tuple[str, StoredSession]:
        """Create a session for a new client.

        Return its token, which is never stored, and the session.
        """
        token = secrets.token_hex(_TOKEN_BYTES)
        record = SessionRecord(
            digest=_digest(token), client=client, name=name, rooms=rooms, login=login
        )
        session = self._connected[record.digest] = StoredSession(record)
        session.is_connected = True
        self._backend.save_session(record, connected=True)
        return token, session

    async def find(self, token: str) -> StoredSession | None:
        """Return the session with that *token*; None if there is none, or it is too old.

        It stays in memory until the caller's next checkpoint.  Raises `NotRead` if the journal
        cannot be read.
        """
        digest = _digest(token)
        if self._backend.is_shared:
            session = await self._find_shared(digest) if _TOKEN.fullmatch(token) else None
        elif (session := self._in_memory(digest)) is None and _TOKEN.fullmatch(token):
            async with self._lookup:  # so that no session is loaded twice
                if (session := self._in_memory(digest)) is None:
                    session = self._restored(await self._backend.session(digest))
        if (
            session is None
            or session.is_connected
            or trio.current_time() - session.left_at <= self._session_seconds
        ):
            return session
        return None

    async def is_known(self, token: str) -> bool:
        """Return whether a session has that *token*; raises as `find` does."""
        return await self.find(token) is not None

    async def _find_shared(self, digest: bytes) -> StoredSession | None:
        """Return the session as the backend has it: another node may have changed it since.

        If not, the one in memory knows more: of messages that are still pending.
        """
        kept = await self._backend.session(digest)
        session = self._in_memory(digest)
        if session is not None and kept is not None:
            if session.generation >= kept.record.generation:
                return session
            self.drop(session)
        return self._restored(kept)

    async def take(self, session: StoredSession) -> bool:
        """Take *session*, which was found, for this node; False if it is not as it was found.

        Only with other nodes.  The caller MUST then resume it, or call `put_back`.  Raises
        `StorageFailed`.  Not cancelled before that is decided.
        """
        # Who is cancelled would not know whether to put it back.  The backend bounds the wait.
        with trio.CancelScope(shield=True):
            kept = await self._backend.take_session(session.digest, session.generation)
        if kept is None:
            return False
        record = kept.record  # it may have changed since it was found
        session.generation = record.generation
        session.name, session.rooms, session.login = record.name, record.rooms, record.login
        session.unpack()
        known = set(map(short_nonce, session.window))  # a shared backend shortens them
        for nonce, epoch, number, room, check in kept.nonces:
            if nonce not in known:
                session.remember((nonce,), Submission(epoch, number, room=room, checks=check))
        return True

    def put_back(self, session: StoredSession) -> None:
        """Note that *session*, which was taken, is not resumed after all."""
        self._backend.save_session(session.record(), connected=False)

    def drop(self, session: StoredSession) -> None:
        """Forget *session* here: another node has it."""
        if self._connected.get(session.digest) is session:
            del self._connected[session.digest]
        if self._disconnected.get(session.digest) is session:
            self._remove(session)
        session.is_connected = False

    def _in_memory(self, digest: bytes) -> StoredSession | None:
        session = self._connected.get(digest) or self._disconnected.get(digest)
        is_it = session is not None and hmac.compare_digest(session.digest, digest)
        return session if is_it else None

    def _restored(self, kept: SavedSession | None) -> StoredSession | None:
        """Load a session from the journal."""
        if kept is None or kept.age_seconds > self._session_seconds:
            return None
        session = StoredSession(kept.record)
        session.left_at = trio.current_time() - kept.age_seconds
        for nonce, epoch, number, room, check in kept.nonces:
            session.remember((nonce,), Submission(epoch, number, room=room, checks=check))
        self._evict()
        self._add(session)
        return session

    def resume(self, session: StoredSession) -> None:
        """Note that *session* is connected."""
        self._remove(session)
        session.unpack()
        self._connected[session.digest] = session
        session.is_connected = True

    def update(
        self, session: StoredSession, name: str, rooms: tuple[str, ...], login: str = ""
    ) -> None:
        """Store the present name, rooms and login of *session*."""
        session.name, session.rooms, session.login = name, rooms, login
        self._backend.save_session(session.record(), connected=True)

    def disconnect(self, session: StoredSession, address: Hashable) -> None:
        """Note that *session*, which was connected from *address*, has disconnected.

        *address* is None if the address is not known.
        """
        if self._connected.pop(session.digest, None) is None:
            return
        session.is_connected, session.address, session.left_at = False, address, trio.current_time()
        self._add(session)
        self._backend.save_session(session.record(), connected=False)
        self._evict()

    def _evict(self) -> None:
        """Evict expired sessions, and if there are too many, those of the largest addresses."""
        away, expired = self._disconnected, trio.current_time() - self._session_seconds
        while away and (oldest := next(iter(away.values()))).left_at < expired:
            self._remove(oldest)
        if len(away) <= self._max_disconnected and self.disconnected_bytes <= self._max_bytes:
            return
        places: dict[Hashable, deque[StoredSession]] = {}
        for session in away.values():  # one without an address counts as an address of its own
            place = session.digest if session.address is None else session.address
            places.setdefault(place, deque()).append(session)
        largest = [
            (-sum(session.counted_bytes for session in each), order, each)
            for order, each in enumerate(places.values())
        ]
        heapq.heapify(largest)
        most = self._max_disconnected - self._max_disconnected // _EVICTED_PART
        most_bytes = self._max_bytes * (1 - 1 / _EVICTED_PART)
        while largest and (len(away) > most or self.disconnected_bytes > most_bytes):
            size, order, sessions = heapq.heappop(largest)
            victim = sessions.popleft()
            if sessions:
                heapq.heappush(largest, (size + victim.counted_bytes, order, sessions))
            self._count(victim)
            if not victim.window:  # otherwise some of its nonces are not in the journal yet
                self._remove(victim)

    def remember(
        self, session: StoredSession, nonces: Sequence[Nonce | None], submission: Submission
    ) -> None:
        """Like `StoredSession.remember`, for a *session* that may have disconnected meanwhile."""
        session.remember(nonces, submission)
        self._count(session)

    async def remember_private(self, session: StoredSession, nonce: Nonce, check: bytes) -> None:
        """Note that *session* has sent a private message with *nonce*.

        Returns when the journal has stored that.  Raises `StorageFailed`: then the nonce is
        known for as long as the session is in memory.  A shared backend has stored it already.
        """
        pending = None
        if not self._backend.is_shared:
            pending = self._backend.save_nonce(session.client, nonce, check)
        submission = Submission(checks=check, pending=pending)
        self.remember(session, (nonce,), submission)
        if pending is not None:
            await pending.wait()
            submission.settle()

    def _add(self, session: StoredSession) -> None:
        self._disconnected[session.digest] = session
        self._count(session)

    def _count(self, session: StoredSession) -> None:
        """Update *disconnected_bytes* with what *session* takes now, unless it is connected."""
        if not session.is_connected and session.digest in self._disconnected:
            session.pack()
            self.disconnected_bytes += session.held_bytes - session.counted_bytes
            session.counted_bytes = session.held_bytes

    def end(self, session: StoredSession) -> None:
        """End *session*: nobody can resume it."""
        self._connected.pop(session.digest, None)
        self._remove(session)
        session.is_connected = False
        self._backend.forget_session(session.digest)

    def _remove(self, session: StoredSession) -> None:
        if self._disconnected.pop(session.digest, None) is not None:
            self.disconnected_bytes -= session.counted_bytes
            session.counted_bytes = 0


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
