"""The journal's interface, and the guarantees that every implementation gives.

A journal owns the numbers of a room's messages, the resumable sessions, the client numbers that
have been assigned, and the accounts and topics.  It does not know who is connected.

1. `RoomJournal.append` numbers a block of messages at once, in the order of the calls; the
   `PendingWrite` that it returns resolves once they are stored, as durably as that
   journal promises.
2. If a write fails, so do all later writes that are still pending: numbers have no gaps.
3. Reads return stored messages in order, each once; retention deletes only the oldest.
4. A session saved before a message was appended is stored no later than that message: it resumes
   in the rooms, and under the name, with which its messages were accepted.  While the journal
   cannot be written, only a bounded number of session changes is queued; the oldest are dropped.
5. Retention deletes no account and no topic.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import msgspec
import trio

from multichat.errors import StorageFailed
from multichat.net.durations import DurationRecorder
from multichat.protocol.ids import MessageIds
from multichat.protocol.messages import Nonce, SaidBlock

__all__ = [
    "MAX_STORED_EPOCH",
    "MAX_TIME_EPOCH",
    "AccountRecord",
    "Journal",
    "PendingWrite",
    "RoomJournal",
    "SavedNonce",
    "SavedSession",
    "SessionRecord",
    "iterate_backwards",
    "slice_block",
    "take_first",
    "take_newest",
]

T = TypeVar("T")

# Epochs have eleven hexadecimal digits.  Half of all values remain after a clock that is ahead by
# centuries, and a sixteenth after the largest epoch that a file may have.
MAX_TIME_EPOCH = 1 << 43
MAX_STORED_EPOCH = 0xF << 40


class PendingWrite:
    """A write that has been queued; the writer calls `resolve` exactly once."""

    __slots__ = ("_done", "_failure")

    def __init__(self) -> None:
        self._done = trio.Event()
        self._failure = ""

    @property
    def resolved(self) -> bool:
        """Whether the write has succeeded or failed."""
        return self._done.is_set()

    @property
    def failed(self) -> bool:
        """Whether the write has failed."""
        return bool(self._failure)

    def resolve(self, failure: str = "") -> None:
        """Mark the write as done or, with a short reason, as failed."""
        self._failure = failure
        self._done.set()

    async def wait(self) -> None:
        """Wait until it is stored; raises `StorageFailed` if it fails."""
        await self._done.wait()
        if self._failure:
            raise StorageFailed(self._failure)


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRecord:
    """A session: the *digest* of its token, its *client*'s number, its *name*, and its *rooms*.

    *name* is empty if the client has none.  The current room is the last.  *login* is its login
    to an account, empty without one; see `multichat.server.accounts`.  *generation* rises each time
    it is resumed, on any node of a cluster; a journal does not store it.
    """

    digest: bytes
    client: int
    name: str
    rooms: tuple[str, ...]
    login: str = ""
    generation: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountRecord:
    """An account: its *name* in its owner's spelling, and the *hash* of its passphrase.

    *hash* is empty if it is damaged: no passphrase matches, and the name stays reserved.
    """

    name: str
    hash: str = field(repr=False)


class SavedNonce(NamedTuple):
    """A nonce and the id of its message: *epoch* and *number*.

    *room* is the message's room, case-folded, and *check* the four bytes appended with it; both are
    empty if unknown.  *epoch* and *room* of a private message are empty.
    """

    nonce: Nonce
    epoch: str
    number: int
    room: str
    check: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedSession:
    """A stored session with its last *nonces*, the oldest first.

    *age_seconds* is the time since it disconnected, without the time in which no server ran.
    """

    record: SessionRecord
    age_seconds: float
    nonces: list[SavedNonce]


class RoomJournal(MessageIds, ABC):
    """One room's part of a journal.

    Its messages have the numbers from *first*, the oldest that is stored, up to but not including
    *next*; if the two are equal, there are none.  A message's id is made of *epoch* and its number
    (see `multichat.protocol.ids.message_id`); epochs are unique among rooms.

    *earlier* maps the room's earlier epochs, oldest first, to the number at which the next epoch
    began.  Numbers continue from one epoch to the next.

    Created by `Journal.room` only.
    """

    epoch: str
    first: int
    next: int
    earlier: Mapping[str, int] = MappingProxyType({})

    @abstractmethod
    def append(
        self, said: SaidBlock, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> PendingWrite | None:
        """Queue *said* for writing and advance *next*; does not wait.

        Its epoch and first number MUST be this room's.  Returns None if it is stored already.
        *nonces* has one nonce for each message, or is empty; *checks* has four bytes for each, to
        detect a nonce that is reused for another message.  Raises `StorageFailed`, with nothing
        changed, if the journal cannot store anything now.
        """

    @abstractmethod
    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        """Return the messages with numbers from *start* up to but not including *stop*.

        The oldest comes first.  Stops before a message that would exceed *max_bytes* of text, but
        returns at least one.  Messages that are not stored, or have been deleted, are left out.
        Raises `NotRead`.
        """

    @abstractmethod
    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        """Return the newest messages with numbers below *stop*, oldest first.

        At most *max_messages* and *max_bytes* of text, but at least one message.  Reads backwards,
        and at most one block more than is returned.  Raises `NotRead`.
        """


class Journal(ABC):
    """A server's storage.  Call `run` once; every task of that trio run may call the rest.

    *clients_ever* is the highest client number that may have been assigned.  *location* tells the
    operator where the data is stored; it is empty for a journal in memory.  *accounts* and
    *topics*, by room, case-folded, are those that it had when `run` opened it; *recent_sessions*
    the sessions that were seen last before that, without nonces, bounded in number.  *writes* is
    how long its transactions took, from the first attempt until they were stored; None in memory.
    """

    clients_ever: int = 0
    location: str = ""
    accounts: Sequence[AccountRecord] = ()
    topics: Mapping[str, str] = MappingProxyType({})
    recent_sessions: Sequence[SavedSession] = ()
    writes: DurationRecorder | None = None

    @property
    def fault(self) -> str:
        """Why nothing can be stored now, in a few words for clients; empty if it can."""
        return ""

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the journal, report that it has started, and write until cancelled.

        Nothing else may be called before that report.  On cancellation it writes what is queued and
        resolves every `PendingWrite` before it returns.  Raises `JournalFailed`, with nothing
        changed, if the journal cannot be opened.
        """

    def before_shutdown(self) -> None:  # noqa: B027 - not every journal deletes
        """Stop deleting and log what was deleted; called before the shutdown is announced."""

    @abstractmethod
    def room(self, name: str) -> RoomJournal:
        """Return the journal of the room *name*, case-folded; creates it if it is new.

        Call it once for each open room: two objects of one room would give the same numbers.
        Raises `TooManyRooms` if a new room would evict the messages of another.
        """

    @abstractmethod
    async def reserve_client_numbers(self, clients_ever: int) -> None:
        """Record that client numbers up to *clients_ever* are taken, also after a restart.

        Raises `StorageFailed`.
        """

    @abstractmethod
    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Queue the session's current state for writing; the next append reports a failure.

        A session that is not *connected* ages from now on.
        """

    @abstractmethod
    def forget_session(self, digest: bytes) -> None:
        """Delete a session, if it exists, and its client's nonces."""

    @abstractmethod
    def save_nonce(self, client: int, nonce: Nonce, check: bytes) -> PendingWrite | None:
        """Store the *nonce* of a private message of *client*, and the *check* of its text.

        Returns None if there is nothing to wait for.  The `PendingWrite` reports a failure.
        """

    @abstractmethod
    async def session(self, digest: bytes) -> SavedSession | None:
        """Return that session, or None if it does not exist or the journal is in memory.

        The nonces of writes that are still pending may be missing.  Raises `NotRead`.
        """

    @abstractmethod
    def save_account(self, name: str, record: AccountRecord | None) -> PendingWrite | None:
        """Store the account *name*, case-folded, or delete it if *record* is None.

        Returns None if there is nothing to wait for.  The `PendingWrite` reports a failure.
        """

    @abstractmethod
    def save_topic(self, room: str, topic: str) -> PendingWrite | None:
        """Store the *topic* of *room*, case-folded, or delete it if it is empty.

        Returns None if there is nothing to wait for.  The `PendingWrite` reports a failure.
        """


def slice_block(said: SaidBlock, start: int, stop: int) -> SaidBlock | None:
    """Return the messages of *said* numbered from *start* up to *stop*, or None without any."""
    texts = said.text.split("\n")
    from_, to = max(0, start - said.first), min(len(texts), stop - said.first)
    if from_ >= to:
        return None
    if to - from_ == len(texts):
        return said
    return msgspec.structs.replace(said, first=said.first + from_, text="\n".join(texts[from_:to]))


def iterate_backwards(
    items: Sequence[T] | deque[T], stop: int, first: Callable[[T], int]
) -> Iterator[T]:
    """Yield the *items* whose *first* number is below *stop*, newest first.

    *items* is sorted by *first*; the end is found by bisection.
    """
    for index in range(bisect_left(items, stop, key=first) - 1, -1, -1):
        yield items[index]


def take_first(blocks: Iterable[SaidBlock], max_bytes: int) -> list[SaidBlock]:
    """Return the first messages of *blocks*: at least one, at most *max_bytes* of text."""
    taken: list[SaidBlock] = []
    for said in blocks:
        size = len(said.text.encode())
        if size <= max_bytes:
            taken.append(said)
            max_bytes -= size
            continue
        texts = said.text.split("\n")
        count = 0
        for text in texts:
            max_bytes -= len(text.encode()) + 1
            if max_bytes < 0 and (taken or count):
                break
            count += 1
        if count and (part := slice_block(said, said.first, said.first + count)):
            taken.append(part)
        break
    return taken


def take_newest(
    blocks: Iterable[SaidBlock], stop: int, *, max_messages: int, max_bytes: int
) -> list[SaidBlock]:
    """Return what `RoomJournal.read_before` does, from *blocks* ordered from newest to oldest.

    Consumes no more of *blocks* than it needs.
    """
    found: list[SaidBlock] = []
    for said in blocks:
        count = said.text.count("\n") + 1
        end = min(count, stop - said.first)  # the messages of this block that are below *stop*
        if end <= 0:
            continue
        texts = said.text.rsplit("\n", count - end + max_messages)[: end - count or None]
        taken = 0
        for text in reversed(texts[-max_messages:]):
            max_bytes -= (len(text) if text.isascii() else len(text.encode())) + 1
            if max_bytes < 0 and (taken or found):
                break
            taken += 1
        if taken == count:
            found.append(said)
        elif taken:
            first, block = said.first + end - taken, "\n".join(texts[-taken:])
            found.append(msgspec.structs.replace(said, first=first, text=block))
        max_messages -= taken
        if max_bytes < 0 or not max_messages:
            break
    return found[::-1]
