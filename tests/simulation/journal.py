"""What the journal of a run sees: the moment in which each message is numbered, and by whom.

The log says when a message is told, which may be after its sender has left, and its name is
somebody else's.  Whose it is, where it stands in its room, and whether it is kept, is known where
it is kept: `Witness` stands between a server and any journal, and writes that down.
"""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from multichat.journal import Journal, Keeping, RoomJournal, SessionRecord
from multichat.messages import Nonce, SaidRun

__all__ = ["Taken", "Witness"]


@dataclass(frozen=True)
class Taken:
    """Messages that a journal took, at once; *position* is how much had been logged by then."""

    position: int
    said: SaidRun
    nonces: tuple[Nonce | None, ...]
    keeping: Keeping | None


class Witness(Journal):
    """Has *note* told what *journal* takes, and changes nothing."""

    def __init__(
        self,
        journal: Journal,
        note: Callable[[SaidRun, tuple[Nonce | None, ...], Keeping | None], None],
    ) -> None:
        self._journal = journal
        self._note = note

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the other one."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._journal.run)
            self.clients_ever = self._journal.clients_ever
            task_status.started()

    def room(self, name: str) -> RoomJournal:
        """Return that room's part, watched."""
        return _WitnessedRoom(self._journal.room(name), self._note)

    async def give_numbers(self, clients_ever: int) -> None:
        """Pass it on."""
        await self._journal.give_numbers(clients_ever)

    def keep_session(self, record: SessionRecord) -> None:
        """Pass it on."""
        self._journal.keep_session(record)

    def forget_session(self, digest: bytes) -> None:
        """Pass it on."""
        self._journal.forget_session(digest)

    async def sessions(self, since: float, limit: int) -> list[SessionRecord]:
        """Pass it on."""
        return await self._journal.sessions(since, limit)

    async def nonces(self, client: int, limit: int) -> list[tuple[Nonce, str, int]]:
        """Pass it on."""
        return await self._journal.nonces(client, limit)


class _WitnessedRoom(RoomJournal):
    def __init__(
        self,
        room: RoomJournal,
        note: Callable[[SaidRun, tuple[Nonce | None, ...], Keeping | None], None],
    ) -> None:
        self._room = room
        self._note = note
        self.epoch = room.epoch

    @property
    def first(self) -> int:  # type: ignore[override]
        return self._room.first

    @property
    def next(self) -> int:  # type: ignore[override]
        return self._room.next

    def append(self, said: SaidRun, nonces: tuple[Nonce | None, ...] = ()) -> Keeping | None:
        keeping = self._room.append(said, nonces)
        self._note(said, nonces, keeping)
        return keeping

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidRun]:
        return await self._room.read(start, stop, max_bytes=max_bytes)
