"""Session store: resumable sessions and nonce deduplication.

Owns session tokens and which sessions are in memory.  A client resumes its session with the token;
a message that is sent again is recognized by its nonce, in `multichat.server.stored_session`.
Knows nothing of connections and rooms.

The sessions in memory are bounded; others are looked up in the backend.

1. A token is 128 random bits.  Only its digest is kept, so that the token cannot be read from
   memory or the storage, and the time of the answer reveals nothing about a guess.
2. The session of a connected client stays in memory.  The others are bounded in number and in
   bytes: above that, sessions of the addresses that use most are evicted, those that have been in
   memory for longest first.  Their nonces are stored by then.
3. The backend has each change of a session before any message that is accepted after the change.
4. Times come from a clock that cannot be set.
"""

import heapq
import hmac
import math
import re
import secrets
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from hashlib import sha256

import trio

from multichat.backend.base import Backend
from multichat.journal.base import SavedSession, SessionRecord
from multichat.protocol.messages import Nonce
from multichat.protocol.nonces import short_nonce
from multichat.server.stored_session import StoredSession, Submission

__all__ = ["SessionStore"]

# Evicting looks at all sessions, so this part of them is evicted at once.
_EVICTED_PART = 8

_TOKEN_BYTES = 16
_TOKEN = re.compile(f"[0-9a-f]{{{2 * _TOKEN_BYTES}}}")


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
        # A cancelled caller would not know whether to put it back.  The backend bounds the wait.
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
        """End *session*, which then cannot be resumed."""
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
