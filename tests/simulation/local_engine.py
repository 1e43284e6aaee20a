"""An engine of one node: a journal, at the other end of a simulated link.

It numbers what arrives in the order in which it arrives, as the local backend does in the step in
which it is proposed, and answers and pushes it once the journal has stored it.
"""

from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec
import trio

from multichat.errors import MultichatError, StorageFailed
from multichat.journal.base import Journal, PendingWrite, RoomJournal
from multichat.protocol.messages import Nonce, SaidBlock

from .engine import Append, Appended, Ask, Engine, LogState, Opened, Stored
from .link import Call, Execution, Link

__all__ = ["LocalEngine"]

# What is told of the messages that the journal took, with the position at which they were proposed.
Note = Callable[[SaidBlock, tuple[Nonce | None, ...], PendingWrite | None, int], None]


class _Execution(Execution):
    """A call that was carried out; *answer* is final once *pending* is resolved."""

    def __init__(self, answer: Any = None, pending: PendingWrite | None = None) -> None:
        self.answer, self._pending = answer, pending
        self.done = trio.Event()
        if pending is None:
            self.done.set()

    async def wait(self) -> Any:
        """Return the answer."""
        await self.done.wait()
        return self.answer


class LocalEngine(Engine):
    """Decides for one node; *journal* stores what is decided, *note* is called with messages."""

    def __init__(self, journal: Journal, note: Note) -> None:
        self._journal, self._note = journal, note
        self._link: Link | None = None
        self._node: object = None
        self._executed: dict[int, _Execution] = {}
        self._rooms: dict[str, RoomJournal] = {}
        self._clients_ever = 0
        self._nursery: trio.Nursery
        # What the journal has not stored yet, in order.
        self._storing: deque[tuple[PendingWrite, _Execution, Stored]] = deque()
        self._more = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the journal, and tell what it has stored."""
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self._journal.run)
            self._clients_ever = self._journal.clients_ever
            task_status.started()
            while True:
                while not self._storing:
                    self._more = trio.Event()
                    await self._more.wait()
                pending, execution, stored = self._storing.popleft()
                try:
                    await pending.wait()
                except StorageFailed as error:
                    execution.answer = Appended(failure=str(error))
                else:
                    self._push(stored)
                execution.done.set()

    def _push(self, stored: Stored) -> None:
        if self._link is not None:
            self._link.push(stored)

    def open(self, link: Link, node: object) -> Opened:
        """Serve that node."""
        self._link, self._node = link, node
        journal = self._journal
        return Opened(journal.accounts, journal.topics)

    def execute(self, link: Link, call: Call) -> Execution:
        """Carry out *call* if it comes for the first time."""
        execution = self._executed.get(call.number)
        if execution is None:
            execution = self._executed[call.number] = self._execute(call)
        return execution

    def _execute(self, call: Call) -> _Execution:
        match call.request:
            case Append() as append:
                return self._append(append, call.number)
            case Ask("give_client_number"):
                return self._later(self._give_client_number())
            case Ask("session", (digest,)):
                return self._later(self._journal.session(digest))
            case Ask("save_session", (record, connected)):
                self._journal.save_session(record, connected=connected)
                return _Execution()
            case Ask("forget_session", (digest,)):
                self._journal.forget_session(digest)
                return _Execution()
            case Ask("save_nonce", (client, nonce, check)):
                return self._later(_stored(self._journal.save_nonce(client, nonce, check)))
            case Ask("save_account", (key, record, _, fate)):
                fate.written = self._journal.save_account(key, record)
                fate.is_written = True
                return self._later(_stored(fate.written))
            case Ask("save_topic", (room, topic, _, _)):
                return self._later(_stored(self._journal.save_topic(room, topic)))
        raise AssertionError(call.request)

    def _later(self, answer: Coroutine[Any, Any, Any]) -> _Execution:
        execution = _Execution()
        execution.done = trio.Event()
        self._nursery.start_soon(self._finish, answer, execution)
        return execution

    async def _finish(self, answer: Coroutine[Any, Any, Any], execution: _Execution) -> None:
        try:
            execution.answer = await answer
        except MultichatError as error:
            execution.answer = error
        execution.done.set()

    async def _give_client_number(self) -> int:
        self._clients_ever += 1
        number = self._clients_ever
        with suppress(StorageFailed):  # the journal has logged it
            await self._journal.reserve_client_numbers(number)
        return number

    def _append(self, append: Append, number: int) -> _Execution:
        room = self._room(append.room)
        said = msgspec.structs.replace(append.draft, epoch=room.epoch, first=room.next)
        try:
            if append.draft.client:
                pending = room.append(said, append.nonces, append.checks)
            else:
                pending = room.append(said)
        except StorageFailed as error:
            return _Execution(Appended(failure=str(error)))
        self._note(said, append.nonces, pending, append.position)
        stored = Stored(append.room, said, self._node, number, {})
        execution = _Execution(Appended(), pending)
        if pending is None:
            self._push(stored)
        else:
            self._storing.append((pending, execution, stored))
            self._more.set()
        return execution

    # --- Rooms ------------------------------------------------------------------------------------

    def _room(self, key: str) -> RoomJournal:
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = self._journal.room(key)
        return room

    def state(self, room: str) -> LogState:
        """Return what its journal says."""
        journal = self._room(room)
        return LogState(journal.epoch, journal.next, journal.earlier)

    def first(self, room: str) -> int:
        """Return what its journal says."""
        return self._room(room).first

    async def read(self, room: str, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        """Read the journal."""
        return await self._room(room).read(start, stop, max_bytes=max_bytes)

    async def read_before(
        self, room: str, stop: int, *, max_messages: int, max_bytes: int
    ) -> list[SaidBlock]:
        """Read the journal."""
        return await self._room(room).read_before(
            stop, max_messages=max_messages, max_bytes=max_bytes
        )


async def _stored(pending: PendingWrite | None) -> None:
    if pending is not None:
        await pending.wait()
