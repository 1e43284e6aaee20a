"""The journal in memory: keeps the latest messages of each room.

Nothing is done per message: blocks are stored as they are.  Memory is bounded for each room and for
all rooms together; above that, the room that has been silent longest loses its messages first.
"""

import math
import sys
import time
from bisect import bisect_right
from collections import OrderedDict, deque
from itertools import takewhile
from operator import attrgetter

import trio

from multichat.journal.base import (
    MAX_TIME_EPOCH,
    AccountRecord,
    Journal,
    PendingWrite,
    RoomJournal,
    SavedSession,
    SessionRecord,
    iterate_backwards,
    slice_block,
    take_first,
    take_newest,
)
from multichat.protocol.messages import Nonce, SaidBlock

__all__ = ["MemoryJournal"]

# A day of a busy room, or a thousand pasted stack traces.
MAX_ROOM_BYTES = 16 * 1024 * 1024

# An eighth of a small machine's memory.
MAX_BYTES = 256 * 1024 * 1024

# The memory of a block besides its text.  An empty room takes about as much.
_BLOCK_BYTES = 300


class MemoryJournal(Journal):
    """Stores the latest messages of each room until the server ends, bounded by bytes.

    Stores at most *max_room_bytes*, and *max_messages* if given, of each room, and *max_bytes* in
    all.

    Does not store sessions, nonces, accounts and topics: the server has them in memory as well.
    """

    def __init__(
        self,
        *,
        max_messages: int | None = None,
        max_room_bytes: int = MAX_ROOM_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.max_messages, self.max_room_bytes = max_messages, min(max_room_bytes, max_bytes)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._last_epoch = 0
        # Rooms with messages; the room of the latest message is last.
        self._rooms: OrderedDict[str, _MemoryRoom] = OrderedDict()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Report that it has started, and wait until cancelled."""
        task_status.started()
        await trio.sleep_forever()

    def room(self, name: str) -> RoomJournal:
        """Return the journal of that room; a new one if none of its messages are left."""
        room = self._rooms.get(name)
        if room is None:
            # The epoch is a time, so that ids also rise across a new room or server.
            self._last_epoch = max(
                self._last_epoch + 1, min(int(time.time() * 1000), MAX_TIME_EPOCH)
            )
            room = _MemoryRoom(self, name, f"{self._last_epoch:011x}")
        return room

    def touched(self, room: "_MemoryRoom", more_bytes: int) -> None:
        """Note that *room* has grown by *more_bytes*, and has the latest message."""
        self._bytes += more_bytes
        rooms = self._rooms
        if room.name not in rooms:
            rooms[room.name] = room
            self._bytes += _BLOCK_BYTES
        rooms.move_to_end(room.name)
        while self._bytes > self._max_bytes and len(rooms) > 1:
            _, oldest = rooms.popitem(last=False)
            self._bytes -= oldest.clear() + _BLOCK_BYTES

    async def reserve_client_numbers(self, clients_ever: int) -> None:
        """Do nothing: numbers start from 1 with each server."""

    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Do nothing."""

    def forget_session(self, digest: bytes) -> None:
        """Do nothing."""

    def save_nonce(self, client: int, nonce: Nonce, check: bytes) -> PendingWrite | None:
        """Return None."""
        return None

    async def session(self, digest: bytes) -> SavedSession | None:
        """Return None."""
        return None

    def save_account(self, name: str, record: AccountRecord | None) -> PendingWrite | None:
        """Return None."""
        return None

    def save_topic(self, room: str, topic: str) -> PendingWrite | None:
        """Return None."""
        return None


class _MemoryRoom(RoomJournal):
    __slots__ = ("_bytes", "_journal", "_runs", "epoch", "first", "name", "next")

    def __init__(self, journal: MemoryJournal, name: str, epoch: str) -> None:
        self.name, self.epoch = name, epoch
        self.first = self.next = 0
        self._journal = journal
        self._runs: deque[SaidBlock] = deque()
        self._bytes = 0

    def append(
        self, said: SaidBlock, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> PendingWrite | None:
        before = self._bytes
        self._runs.append(said)
        self.next += said.text.count("\n") + 1
        self._bytes += _size(said)
        journal = self._journal
        most = journal.max_messages or math.inf
        while len(self._runs) > 1 and (
            self.next - self.first > most or self._bytes > journal.max_room_bytes
        ):
            self._bytes -= _size(self._runs.popleft())
            self.first = self._runs[0].first
        journal.touched(self, self._bytes - before)
        return None

    def clear(self) -> int:
        """Drop all messages; return how many bytes they took."""
        cleared, self._bytes = self._bytes, 0
        self._runs.clear()
        self.first = self.next
        return cleared

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        await trio.lowlevel.checkpoint()
        blocks = self._runs
        begin = max(0, bisect_right(blocks, start, key=attrgetter("first")) - 1)
        found = (blocks[index] for index in range(begin, len(blocks)))
        wanted = takewhile(lambda said: said.first < stop, found)
        return take_first(
            filter(None, (slice_block(said, start, stop) for said in wanted)), max_bytes
        )

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        await trio.lowlevel.checkpoint()
        blocks = iterate_backwards(self._runs, stop, attrgetter("first"))
        return take_newest(blocks, stop, max_messages=max_messages, max_bytes=max_bytes)


def _size(said: SaidBlock) -> int:
    return sys.getsizeof(said.text) + _BLOCK_BYTES
