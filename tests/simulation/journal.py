"""Journals for a run: a faulty one (slow, full or damaged), and a witness around any of them.

The log records when a message is delivered, which may be after its sender has left and its name
belongs to another client.  The sender, the number in the room, and whether it was stored are known
only in the journal: `Witness` records them between a server and any journal.

`FaultyJournal` writes to a `Disk`, in order and in groups.  The disk outlives it: after `kill` it
has everything that was reported as stored and the first part of the pending writes, like a file
that is written from front to back.  A copy of the disk is a backup.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from random import Random

import trio

from multichat.errors import NotRead, StorageFailed
from multichat.journal.base import (
    AccountRecord,
    Journal,
    PendingWrite,
    RoomJournal,
    SavedNonce,
    SavedSession,
    SessionRecord,
    slice_block,
    take_first,
    take_newest,
)
from multichat.protocol.messages import MAX_UNACCEPTED, Nonce, SaidBlock
from tests.support.journals import DelegatingRoom

__all__ = ["AccountSaved", "Disk", "Fate", "Faults", "FaultyJournal", "Pending", "Taken", "Witness"]

# Real epochs rise with time; here it is enough that no two rooms have the same.
_FIRST_EPOCH = 0x18BCFE56800


@dataclass(eq=False)
class Fate(PendingWrite):
    """What becomes of a write that is proposed to an engine.

    Once that *is_written*, *written* is the pending write there, None if it was stored at once.
    """

    is_written: bool = False
    written: PendingWrite | None = None

    @property
    def kept(self) -> bool | None:
        """Whether it is stored; None as long as that is not known."""
        if isinstance(self.written, Pending):
            return self.written.kept
        return True if self.is_written else None

    @property
    def known_seconds(self) -> float:
        """When that was known."""
        return self.written.known_seconds if isinstance(self.written, Pending) else 0.0


@dataclass(frozen=True)
class Taken:
    """Messages that a journal took together; *position* is the number of log records by then."""

    position: int
    said: SaidBlock
    nonces: tuple[Nonce | None, ...]
    pending: PendingWrite | None

    @property
    def kept(self) -> bool | None:
        """Whether the journal has reported them as stored."""
        return self.pending.kept if isinstance(self.pending, Pending) else True

    @property
    def known_seconds(self) -> float:
        """When that was reported; 0 if immediately."""
        return self.pending.known_seconds if isinstance(self.pending, Pending) else 0.0

    def as_of_backup(self) -> "Taken":
        """Return its state in a backup that is taken now, without pending messages."""
        if self.kept is not None:
            return self
        missing = Pending()
        missing.become(kept=False)
        return replace(self, pending=missing)


@dataclass(frozen=True)
class AccountSaved:
    """An account that a journal was to store; *position* is the number of log records by then."""

    position: int
    seconds: float
    key: str
    record: AccountRecord | None
    pending: PendingWrite | None

    @property
    def kept(self) -> bool | None:
        """Whether the journal has reported it as stored."""
        return self.pending.kept if isinstance(self.pending, Pending | Fate) else True

    @property
    def known_seconds(self) -> float:
        """When that was reported."""
        known = self.pending.known_seconds if isinstance(self.pending, Pending | Fate) else 0.0
        return max(self.seconds, known)

    def as_of_backup(self) -> "AccountSaved":
        """Return its state in a backup that is taken now, without pending writes."""
        if self.kept is not None:
            return self
        missing = Pending()
        missing.become(kept=False)
        return replace(self, pending=missing)


# --- Faults ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults of a journal.

    A write takes up to *slow_seconds*, a read half of that.  *full* has intervals in which nothing
    can be written: pending writes fail and, with *refuses*, new ones are rejected.  *max_messages*
    is the retention of each room.

    *damaged_reads* is the share of rows that are damaged whenever they are read: a block is left
    out, or the whole read fails; nonces fail; a session is not found after a restart.
    """

    slow_seconds: float = 0.0
    full: tuple[tuple[float, float], ...] = ()
    refuses: bool = False
    max_messages: int | None = None
    damaged_reads: float = 0.0


class Pending(PendingWrite):
    """A pending write; *kept* is whether it reached the disk, and when that was known."""

    __slots__ = ("kept", "known_seconds")

    def __init__(self) -> None:
        super().__init__()
        self.kept: bool | None = None
        self.known_seconds = inf

    def become(self, *, kept: bool) -> None:
        """Set the result."""
        self.kept, self.known_seconds = kept, trio.current_time()


@dataclass
class _DiskRoom:
    """A room on the disk; *earlier* has former epochs, and the number at which the next began."""

    epoch: str = ""
    earlier: dict[str, int] = field(default_factory=dict)
    first: int = 0
    next: int = 0
    blocks: list[SaidBlock] = field(default_factory=list)


@dataclass
class Disk:
    """The data that outlives a server."""

    clients_ever: int = 0
    epochs: int = 0  # ever created; a real epoch is a time, which no backup sets back
    rooms: dict[str, _DiskRoom] = field(default_factory=dict)
    # With the time since which each is disconnected; infinite while it is connected.
    sessions: dict[bytes, tuple[SessionRecord, float]] = field(default_factory=dict)
    nonces: dict[int, list[SavedNonce]] = field(default_factory=dict)
    accounts: dict[str, AccountRecord] = field(default_factory=dict)
    topics: dict[str, str] = field(default_factory=dict)

    def copy(self) -> "Disk":
        """Return a backup."""
        rooms = {
            name: replace(room, earlier={**room.earlier}, blocks=[*room.blocks])
            for name, room in self.rooms.items()
        }
        nonces = {client: [*known] for client, known in self.nonces.items()}
        return replace(
            self,
            rooms=rooms,
            sessions={**self.sessions},
            nonces=nonces,
            accounts={**self.accounts},
            topics={**self.topics},
        )

    def disconnect_sessions(self) -> None:
        """Mark all sessions as disconnected, from now on if they are connected."""
        now = trio.current_time()
        for digest, (record, since) in self.sessions.items():
            self.sessions[digest] = record, min(since, now)


@dataclass
class _Write:
    """One write; a *lasting* one is retried if it fails."""

    apply: Callable[[Disk], None]
    pending: Pending
    lasting: bool = False


class FaultyJournal(Journal):
    """Stores everything on *disk*, in the order of the calls, with *faults*."""

    def __init__(self, disk: Disk, faults: Faults, rng: Random) -> None:
        self._disk = disk
        self._faults = faults
        self._rng = rng
        self._damage = Random(f"damage {rng.random()}" if faults.damaged_reads else 0)
        self._queue: deque[_Write] = deque()
        self._more = trio.Event()
        self._rooms: dict[str, _FaultyRoom] = {}
        self._dead = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write the queue in groups, and the rest at the end."""
        self.clients_ever = self._disk.clients_ever
        self.accounts, self.topics = [*self._disk.accounts.values()], {**self._disk.topics}
        task_status.started()
        try:
            while True:
                await self._more.wait()
                group = len(self._queue)
                await trio.sleep(self._rng.uniform(0, self._faults.slow_seconds))
                self._write(group)
                if not self._queue:
                    self._more = trio.Event()
                elif self.is_full:
                    await trio.sleep(0.1)
        finally:
            self._write(len(self._queue))
            self._dead = True

    @property
    def is_full(self) -> bool:
        """Whether nothing can be written now."""
        now = trio.current_time()
        return any(start <= now < end for start, end in self._faults.full)

    def _write(self, group: int) -> None:
        if self.is_full:
            self._fail("the disk is full")
            return
        for _ in range(min(group, len(self._queue))):
            write = self._queue.popleft()
            self._apply(write)
            write.pending.resolve()

    def _apply(self, write: _Write) -> None:
        write.apply(self._disk)
        write.pending.become(kept=True)

    def _fail(self, reason: str) -> None:
        """Fail all pending writes, except those that are retried."""
        lasting = [write for write in self._queue if write.lasting]
        failed = [write for write in self._queue if not write.lasting]
        self._queue = deque(lasting)
        for write in failed:
            write.pending.become(kept=False)
        for room in self._rooms.values():
            room.rewind()
        for write in failed:
            write.pending.resolve(reason)

    def kill(self) -> None:
        """Stop, as in a crash of the machine: some of the pending writes are on the disk."""
        self._dead = True
        for _ in range(self._rng.randint(0, len(self._queue))):
            self._apply(write := self._queue.popleft())
            write.pending.resolve("the server was killed")
        self._disk.disconnect_sessions()
        for write in self._queue:
            write.lasting = False
        self._fail("the server was killed")

    def take(self, apply: Callable[[Disk], None], *, lasting: bool = False) -> Pending:
        """Queue a write."""
        pending = Pending()
        if self._dead:
            pending.become(kept=False)
            pending.resolve("the server was killed")
        else:
            self._queue.append(_Write(apply, pending, lasting))
            self._more.set()
        return pending

    def check(self) -> None:
        """Raise `StorageFailed` if writes are rejected now."""
        if self._dead:
            raise StorageFailed("the journal is closing")
        if self._faults.refuses and self.is_full:
            raise StorageFailed("the disk is full")

    async def wait_to_read(self) -> None:
        """Wait for the duration of a read; raises `NotRead` if it fails."""
        await trio.sleep(self._rng.uniform(0, self._faults.slow_seconds / 2))
        if self._dead or (self.is_full and self._faults.refuses and self._rng.random() < 0.2):
            raise NotRead("it cannot be read")
        if self.is_damaged():
            raise NotRead("the file is damaged")

    def is_damaged(self) -> bool:
        """Whether the row that is read now is damaged."""
        share = self._faults.damaged_reads
        return bool(share) and self._damage.random() < share

    def room(self, name: str) -> RoomJournal:
        """Return the journal of that room."""
        room = self._rooms.get(name)
        if room is None or not room.next:
            self._disk.epochs += 1
            epoch = f"{_FIRST_EPOCH + self._disk.epochs:011x}"
            on_disk = self._disk.rooms.get(name) or _DiskRoom()
            room = _FaultyRoom(self, name, epoch, on_disk, self._faults.max_messages)
            self._rooms[name] = room
        return room

    async def reserve_client_numbers(self, clients_ever: int) -> None:
        """Store that number, and wait until it is stored."""
        self.check()

        def apply(disk: Disk) -> None:
            disk.clients_ever = max(disk.clients_ever, clients_ever)

        await self.take(apply).wait()

    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Keep it in its turn."""
        since = inf if connected else trio.current_time()

        def apply(disk: Disk) -> None:
            disk.sessions[record.digest] = record, since
            disk.clients_ever = max(disk.clients_ever, record.client)

        self.take(apply, lasting=True)

    def forget_session(self, digest: bytes) -> None:
        """Forget it in its turn."""

        def apply(disk: Disk) -> None:
            if (kept := disk.sessions.pop(digest, None)) is not None:
                disk.nonces.pop(kept[0].client, None)

        self.take(apply, lasting=True)

    def save_nonce(self, client: int, nonce: Nonce, check: bytes) -> PendingWrite | None:
        """Keep it in its turn."""

        def apply(disk: Disk) -> None:
            disk.nonces.setdefault(client, []).append(SavedNonce(nonce, "", 0, "", check))

        return self.take(apply)

    def save_account(self, name: str, record: AccountRecord | None) -> PendingWrite | None:
        """Keep it in its turn."""

        def apply(disk: Disk) -> None:
            if record is None:
                disk.accounts.pop(name, None)
            else:
                disk.accounts[name] = record

        return self.take(apply)

    def save_topic(self, room: str, topic: str) -> PendingWrite | None:
        """Keep it in its turn."""

        def apply(disk: Disk) -> None:
            if topic:
                disk.topics[room] = topic
            else:
                disk.topics.pop(room, None)

        return self.take(apply)

    async def session(self, digest: bytes) -> SavedSession | None:
        """Return the session once all earlier writes are on the disk."""
        asked = trio.current_time()
        disk = Disk(sessions=dict(self._disk.sessions))
        for write in self._queue:
            if write.lasting:
                write.apply(disk)
        await trio.sleep(self._rng.uniform(0, self._faults.slow_seconds / 2))
        if self.is_damaged():
            raise NotRead("the file is damaged")
        if digest not in disk.sessions:
            return None
        record, since = disk.sessions[digest]
        nonces = self._disk.nonces.get(record.client, [])[-MAX_UNACCEPTED:]
        return SavedSession(record=record, age_seconds=max(0.0, asked - since), nonces=nonces)


class _FaultyRoom(RoomJournal):
    """A room of a server; its *epoch* is on the disk from the first message on."""

    def __init__(
        self,
        journal: FaultyJournal,
        name: str,
        epoch: str,
        on_disk: _DiskRoom,
        max_messages: int | None,
    ) -> None:
        self._journal = journal
        self._name = name
        self._on_disk = on_disk
        self._max_messages = max_messages
        self.epoch, self.next = epoch, on_disk.next
        if on_disk.next:
            self.earlier = {**on_disk.earlier, on_disk.epoch: on_disk.next}

    @property
    def first(self) -> int:  # type: ignore[override]
        return self._on_disk.first

    def rewind(self) -> None:
        """Continue after the last stored message."""
        self.next = self._on_disk.next

    def append(
        self, said: SaidBlock, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> PendingWrite | None:
        self._journal.check()
        if (said.epoch, said.first) != (self.epoch, self.next):
            raise AssertionError(f"{said.epoch}-{said.first} is not {self.epoch}-{self.next}")
        "".join((said.text, *(nonce for nonce in nonces if isinstance(nonce, str)))).encode()
        self.next += said.text.count("\n") + 1

        def apply(disk: Disk) -> None:
            room = self._on_disk
            disk.rooms[self._name] = room
            room.epoch, room.earlier = self.epoch, {**self.earlier}
            room.blocks.append(said)
            room.next = said.first + said.text.count("\n") + 1
            disk.clients_ever = max(disk.clients_ever, said.client)
            known = disk.nonces.setdefault(said.client, [])
            known += [
                SavedNonce(nonce, said.epoch, said.first + i, self._name, checks[4 * i : 4 * i + 4])
                for i, nonce in enumerate(nonces)
                if nonce is not None
            ]
            while (
                self._max_messages is not None
                and len(room.blocks) > 1
                and room.next - room.first > self._max_messages
            ):
                del room.blocks[0]
                room.first = room.blocks[0].first

        return self._journal.take(apply)

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        await self._journal.wait_to_read()
        parts = [slice_block(block, start, stop) for block in self._whole(start, stop)]
        return take_first([part for part in parts if part], max_bytes)

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        await self._journal.wait_to_read()
        blocks = reversed(self._whole(0, stop))
        return take_newest(blocks, stop, max_messages=max_messages, max_bytes=max_bytes)

    def _whole(self, start: int, stop: int) -> list[SaidBlock]:
        blocks = self._on_disk.blocks
        begin = bisect_right(blocks, start, key=_first_of) - 1
        end = bisect_left(blocks, stop, key=_first_of)
        return [block for block in blocks[max(0, begin) : end] if not self._journal.is_damaged()]


def _first_of(block: SaidBlock) -> int:
    return block.first


# --- The witness ----------------------------------------------------------------------------------


class Witness(Journal):
    """Passes everything to *journal* unchanged, and reports the messages and accounts it takes."""

    def __init__(
        self,
        journal: Journal,
        note: Callable[[SaidBlock, tuple[Nonce | None, ...], PendingWrite | None], None],
        note_account: Callable[[str, AccountRecord | None, PendingWrite | None], None],
    ) -> None:
        self._journal = journal
        self._note = note
        self._note_account = note_account

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the journal."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._journal.run)
            self.clients_ever = self._journal.clients_ever
            self.accounts, self.topics = self._journal.accounts, self._journal.topics
            task_status.started()

    def room(self, name: str) -> RoomJournal:
        """Return the journal of that room, with a witness."""
        return _WitnessedRoom(self._journal.room(name), self._note)

    async def reserve_client_numbers(self, clients_ever: int) -> None:
        """Pass it on."""
        await self._journal.reserve_client_numbers(clients_ever)

    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Pass it on."""
        self._journal.save_session(record, connected=connected)

    def forget_session(self, digest: bytes) -> None:
        """Pass it on."""
        self._journal.forget_session(digest)

    def save_nonce(self, client: int, nonce: Nonce, check: bytes) -> PendingWrite | None:
        """Pass it on."""
        return self._journal.save_nonce(client, nonce, check)

    async def session(self, digest: bytes) -> SavedSession | None:
        """Pass it on."""
        return await self._journal.session(digest)

    def save_account(self, name: str, record: AccountRecord | None) -> PendingWrite | None:
        """Pass it on."""
        pending = self._journal.save_account(name, record)
        self._note_account(name, record, pending)
        return pending

    def save_topic(self, room: str, topic: str) -> PendingWrite | None:
        """Pass it on."""
        return self._journal.save_topic(room, topic)


class _WitnessedRoom(DelegatingRoom):
    def __init__(
        self,
        room: RoomJournal,
        note: Callable[[SaidBlock, tuple[Nonce | None, ...], PendingWrite | None], None],
    ) -> None:
        super().__init__(room)
        self._note = note

    def append(
        self, said: SaidBlock, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> PendingWrite | None:
        pending = super().append(said, nonces, checks)
        self._note(said, nonces, pending)
        return pending
