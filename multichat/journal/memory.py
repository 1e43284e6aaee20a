"""The journal in memory: what was said last, for those who were away for a moment.

Nothing is done per message: a run is kept as it came, beside those before it.  What is kept is
bounded for each room and for all of them; the room in which nothing was said for longest is the
first to lose what it had.
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

# A day of a lively room, or a thousand pasted stack traces.
MAX_ROOM_BYTES = 16 * 1024 * 1024

# An eighth of a small machine.
MAX_BYTES = 256 * 1024 * 1024

# What a run costs beside its text: its values and their places.  A room costs about as much as
# that, too.
_BLOCK_BYTES = 300


class MemoryJournal(Journal):
    """Keeps the last messages of each room until the server ends, bounded by bytes.

    At most *max_room_bytes* of a room and *max_bytes* of all, and if it is given, *max_messages* of
    a room.

    Sessions and nonces are the server's own business: it forgets them when this does.
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
        # Of those in which something was said; the one in which it was last is the last.
        self._rooms: OrderedDict[str, _MemoryRoom] = OrderedDict()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Say that it is open, and wait to be cancelled."""
        task_status.started()
        await trio.sleep_forever()

    def room(self, name: str) -> RoomJournal:
        """Return the part of that room, which is a new one if nothing of it is left."""
        room = self._rooms.get(name)
        if room is None:
            # A time, so that ids still rise when a room, or a server, begins anew.
            self._last_epoch = max(
                self._last_epoch + 1, min(int(time.time() * 1000), MAX_TIME_EPOCH)
            )
            room = _MemoryRoom(self, name, f"{self._last_epoch:011x}")
        return room

    def touched(self, room: "_MemoryRoom", more_bytes: int) -> None:
        """Note that *room* has so many bytes more, or fewer, and that something was said in it."""
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
        """Do nothing: numbers begin anew."""

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
        """Forget all messages; return how many bytes they were."""
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
