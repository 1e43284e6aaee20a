"""Where what rooms say is kept: the interface, and what every journal promises.

A journal owns the numbers of a room's messages, the sessions of those who may come back, and the
numbers that clients have had.  It knows nothing of who is connected.

1. `RoomJournal.append` numbers a run of messages at once, and in the order of the calls; what it
   returns says when they are kept as durably as that journal promises.
2. Where one cannot be kept, none that was appended after it, and not been reported kept, is either:
   numbers have no gaps.
3. What is read was kept, in order, each once; what retention has taken is missing from the front.
4. A session that was kept before a message was appended is kept by the time that message is: it
   comes back into the room and under the name through which its messages were accepted.  While a
   journal cannot be written, more changes of sessions may come than it remembers; the oldest of
   these are lost.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import msgspec
import trio

from multichat.errors import NotKept
from multichat.ids import message_id, message_number
from multichat.messages import Nonce, SaidRun

__all__ = [
    "MAX_KEPT_EPOCH",
    "MAX_TIME_EPOCH",
    "Journal",
    "Keeping",
    "KeptNonce",
    "KeptSession",
    "RoomJournal",
    "SessionRecord",
    "backwards_from",
    "newest_of",
    "part_of",
    "within",
]

T = TypeVar("T")

# Epochs have eleven hexadecimal digits.  A clock that is ahead by centuries leaves half of them, an
# epoch that a file has leaves a sixteenth.
MAX_TIME_EPOCH = 1 << 43
MAX_KEPT_EPOCH = 0xF << 40


class Keeping:
    """Something on its way into a journal; whoever writes it calls `resolve` once."""

    __slots__ = ("_done", "_failure")

    def __init__(self) -> None:
        self._done = trio.Event()
        self._failure = ""

    @property
    def resolved(self) -> bool:
        """Whether it is known if it is kept."""
        return self._done.is_set()

    @property
    def failed(self) -> bool:
        """Whether it is known that it is not kept."""
        return bool(self._failure)

    def resolve(self, failure: str = "") -> None:
        """Say that it is kept, or in a few words why it never will be."""
        self._failure = failure
        self._done.set()

    async def wait(self) -> None:
        """Wait until it is kept; raises `NotKept` if it never will be."""
        await self._done.wait()
        if self._failure:
            raise NotKept(self._failure)


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRecord:
    """A session: the *digest* of its token, its *client*'s number, its *name*, and its *room*.

    *name* is empty where the client has none.
    """

    digest: bytes
    client: int
    name: str
    room: str


class KeptNonce(NamedTuple):
    """A nonce, and the id of the message that was said with it: its *epoch* and *number*.

    *room* is that message's, folded, and *check* the four bytes that were appended with it; both
    are empty where they are not known.  *epoch* and *room* of a private message are empty.
    """

    nonce: Nonce
    epoch: str
    number: int
    room: str
    check: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptSession:
    """A session as the journal has it, with its last *nonces*, the oldest first.

    It has been disconnected for *age_seconds* in which a server ran.
    """

    record: SessionRecord
    age_seconds: float
    nonces: list[KeptNonce]


class RoomJournal(ABC):
    """One room's part of a journal.

    Its messages have the numbers from *first*, the oldest that is left, up to *next*, which is the
    next one's; none is left where they are the same.  *epoch* and a number are a message's id (see
    `multichat.ids.message_id`): no other room has or had that epoch.

    *earlier* holds the epochs that the room had before, oldest first, and for each the number with
    which the next one began.  Numbers go on from one to the next.

    Not to be made but by `Journal.room`.
    """

    epoch: str
    first: int
    next: int
    earlier: Mapping[str, int] = MappingProxyType({})

    def number_of(self, id_: str) -> int | None:
        """Return the number of the message with that id; None if the room never had it.

        An id of an earlier epoch counts up to the number with which the next one began: a journal
        that was restored does not know what was said after the backup, and its server gave the
        same numbers again, but in another epoch.
        """
        epoch = id_.partition("-")[0]
        number = message_number(epoch, id_)
        end = self.next if epoch == self.epoch else self.earlier.get(epoch, 0)
        return number if number is not None and number < end else None

    def id_of(self, number: int) -> str:
        """Return the id of the message with that number."""
        epoch = self.epoch
        for earlier in reversed(tuple(self.earlier)):
            if number >= self.earlier[earlier]:
                break
            epoch = earlier
        return message_id(epoch, number)

    @abstractmethod
    def append(
        self, said: SaidRun, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> Keeping | None:
        """Take *said*, whose epoch and first number MUST be ours, and move *next* on, at once.

        Returns None if it is kept already.  *nonces* are those that its messages were said with, or
        none at all, and *checks* four bytes for each, by which a nonce that is used again for
        another message is noticed.  Raises `NotKept` if nothing can be kept now; then nothing has
        changed.
        """

    @abstractmethod
    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidRun]:
        """Return messages with numbers from *start* up to, and without, *stop*, oldest first.

        Of runs that are only partly asked for that part.  Ends early, between two messages, when
        more than *max_bytes* of text are read, but not before one message is.  What is not kept, or
        not kept any more, is left out.  Raises `NotRead` if it cannot be read.
        """

    @abstractmethod
    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidRun]:
        """Return the newest messages with numbers below *stop*, oldest first.

        At most *max_messages*, and at most *max_bytes* of text, but one message in any case.  Reads
        backwards and no further: what is read is at most one run more than what is returned.
        Raises `NotRead` if it cannot be read.
        """


class Journal(ABC):
    """What a server keeps.  Any task of one trio run may call anything, but for `run`: that is one.

    *clients_ever* is the highest number that a client may have had.  *place* is where people find
    what is kept; empty where it is nowhere but in memory.
    """

    clients_ever: int = 0
    place: str = ""

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open it, say that it is open, and keep what comes until cancelled.

        Nothing else may be called before it is open.  Cancelled, it first keeps what it has taken,
        for as long as that is bounded by the disk; then everything is resolved.  Raises
        `JournalFailed` if it cannot be opened; then it has changed nothing.
        """

    def before_shutdown(self) -> None:  # noqa: B027 - not every journal deletes
        """Delete nothing more, and log what was: the server is about to say that it shuts down."""

    @abstractmethod
    def room(self, name: str) -> RoomJournal:
        """Return the part of the room of that *name*, folded as names are; it may be a new one.

        While one room is there, asked once: two of one new room would not know of each other.
        Raises `TooManyRooms` for a new one where that would cost another one its messages.
        """

    @abstractmethod
    async def give_numbers(self, clients_ever: int) -> None:
        """Have no server, after a restart, give a client a number up to *clients_ever*.

        Raises `NotKept`.
        """

    @abstractmethod
    def keep_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Keep a session as it is now; what goes wrong shows in what is appended next.

        One that is not *connected* gets older from now on.
        """

    @abstractmethod
    def forget_session(self, digest: bytes) -> None:
        """Forget a session, if it is there, and the nonces of its client."""

    @abstractmethod
    def keep_nonce(self, client: int, nonce: Nonce, check: bytes) -> Keeping | None:
        """Keep that *client* sent a private message with *nonce*; of its text only the *check*.

        Returns None if there is nothing to wait for.  What goes wrong shows in what is returned.
        """

    @abstractmethod
    async def session(self, digest: bytes) -> KeptSession | None:
        """Return that session; None if it is not there, or the journal is in memory only.

        Messages whose fate was not known when it was asked may be missing from its nonces.  Raises
        `NotRead` if it cannot be read.
        """


def part_of(said: SaidRun, start: int, stop: int) -> SaidRun | None:
    """Return the messages of *said* with numbers from *start* up to *stop*; None if none has."""
    texts = said.run.split("\n")
    from_, to = max(0, start - said.first), min(len(texts), stop - said.first)
    if from_ >= to:
        return None
    if to - from_ == len(texts):
        return said
    return msgspec.structs.replace(said, first=said.first + from_, run="\n".join(texts[from_:to]))


def backwards_from(
    items: Sequence[T] | deque[T], stop: int, first: Callable[[T], int]
) -> Iterator[T]:
    """Yield those of *items* whose *first* number, in whose order they are, is below *stop*.

    The newest first.  Looks at few of the others, however many there are.
    """
    for index in range(bisect_left(items, stop, key=first) - 1, -1, -1):
        yield items[index]


def within(runs: Iterable[SaidRun], max_bytes: int) -> list[SaidRun]:
    """Return the first messages of *runs* with at most so many bytes of text, but one at least."""
    taken: list[SaidRun] = []
    for said in runs:
        size = len(said.run.encode())
        if size <= max_bytes:
            taken.append(said)
            max_bytes -= size
            continue
        texts = said.run.split("\n")
        count = 0
        for text in texts:
            max_bytes -= len(text.encode()) + 1
            if max_bytes < 0 and (taken or count):
                break
            count += 1
        if count and (part := part_of(said, said.first, said.first + count)):
            taken.append(part)
        break
    return taken


def newest_of(
    runs: Iterable[SaidRun], stop: int, *, max_messages: int, max_bytes: int
) -> list[SaidRun]:
    """Return what `RoomJournal.read_before` returns, given all runs from the newest to the oldest.

    Takes no more of *runs* than it needs.
    """
    found: list[SaidRun] = []
    for said in runs:
        count = said.run.count("\n") + 1
        end = min(count, stop - said.first)  # the messages of this run that are below *stop*
        if end <= 0:
            continue
        texts = said.run.rsplit("\n", count - end + max_messages)[: end - count or None]
        taken = 0
        for text in reversed(texts[-max_messages:]):
            max_bytes -= (len(text) if text.isascii() else len(text.encode())) + 1
            if max_bytes < 0 and (taken or found):
                break
            taken += 1
        if taken == count:
            found.append(said)
        elif taken:
            first, run = said.first + end - taken, "\n".join(texts[-taken:])
            found.append(msgspec.structs.replace(said, first=first, run=run))
        max_messages -= taken
        if max_bytes < 0 or not max_messages:
            break
    return found[::-1]
