"""One session of the session store: its nonces, and what became of their messages.

A session keeps its last `MAX_UNACCEPTED` nonces, each from the step in which its message is
numbered (a private one: delivered), with a checksum of the text: a nonce that is used again for
another message is refused.
"""

import struct
import sys
from collections.abc import Hashable, Mapping, Sequence
from itertools import repeat
from zlib import crc32

import msgspec
import trio

from multichat.errors import NonceReused, StorageFailed
from multichat.journal.base import PendingWrite, SessionRecord
from multichat.protocol.ids import message_id
from multichat.protocol.messages import MAX_UNACCEPTED, Accepted, Nonce

__all__ = ["StoredSession", "Submission", "check_at", "checks_of"]

# What a disconnected session takes in memory without its nonces; a nonce of a connected one takes
# `_NONCE_BYTES` besides its own size.  Both measured with CPython 3.11.
_SESSION_BYTES = 700
_ROOM_BYTES = 200  # of each room but the first
_NONCE_BYTES = 200

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
                if not self._is_private:  # it has been delivered nevertheless
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
