"""The backend of a single server: decisions are made in the same step, and stored in a journal."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import trio

from multichat.backend.base import Backend, Proposal, RoomLog
from multichat.errors import StorageFailed
from multichat.journal.base import (
    AccountRecord,
    Journal,
    PendingWrite,
    RoomJournal,
    SavedSession,
    SessionRecord,
)
from multichat.net.durations import DurationRecorder
from multichat.protocol.messages import Nonce, SaidBlock

__all__ = ["LocalBackend", "LocalLog"]


class LocalBackend(Backend):
    """Makes all decisions itself; *journal* stores them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._given = 0  # the last client number

    @property
    def location(self) -> str:  # type: ignore[override]
        """Where the journal is."""
        return self._journal.location

    @property
    def accounts(self) -> Sequence[AccountRecord]:  # type: ignore[override]
        """The accounts that the journal had when it was opened."""
        return self._journal.accounts

    @property
    def topics(self) -> Mapping[str, str]:  # type: ignore[override]
        """The topics that the journal had when it was opened."""
        return self._journal.topics

    @property
    def recent_sessions(self) -> Sequence[SavedSession]:  # type: ignore[override]
        """The newest sessions that the journal had when it was opened."""
        return self._journal.recent_sessions

    @property
    def journal_writes(self) -> DurationRecorder | None:  # type: ignore[override]
        """How long the journal's transactions took; None in memory."""
        return self._journal.writes

    @property
    def fault(self) -> str:
        """Why the journal cannot store anything now."""
        return self._journal.fault

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the journal."""
        await self._journal.run(task_status=task_status)

    def before_shutdown(self) -> None:
        """Stop deleting from the journal."""
        self._journal.before_shutdown()

    def room(self, key: str) -> RoomLog:
        """Return the room's part of the journal, as a log."""
        return LocalLog(self._journal.room(key))

    async def give_client_number(self) -> int:
        """Return the next number; the journal stores that it is taken."""
        self._given = number = max(self._given, self._journal.clients_ever) + 1
        with suppress(StorageFailed):  # the journal has logged it; a full disk rejects no client
            await self._journal.reserve_client_numbers(number)
        return number

    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Queue the session for writing; the next append reports a failure."""
        self._journal.save_session(record, connected=connected)

    def forget_session(self, digest: bytes) -> None:
        """Delete the session from the journal."""
        self._journal.forget_session(digest)

    def save_nonce(self, client: int, nonce: Nonce, check: bytes) -> PendingWrite | None:
        """Queue the nonce for writing."""
        return self._journal.save_nonce(client, nonce, check)

    async def session(self, digest: bytes) -> SavedSession | None:
        """Read the session from the journal."""
        return await self._journal.session(digest)

    async def save_account(
        self, key: str, record: AccountRecord | None, *, former: AccountRecord | None
    ) -> None:
        """Write the account, and wait until it is stored."""
        await _stored(self._journal.save_account(key, record))

    async def save_topic(self, room: str, topic: str, client: int, name: str) -> None:
        """Write the topic, and wait until it is stored."""
        await _stored(self._journal.save_topic(room, topic))


async def _stored(pending: PendingWrite | None) -> None:
    if pending is not None:
        await pending.wait()


class LocalLog(RoomLog):
    """A room's part of a journal, which numbers messages at once."""

    __slots__ = ("_journal",)

    def __init__(self, journal: RoomJournal) -> None:
        self._journal = journal

    @property
    def epoch(self) -> str:
        """The journal's epoch."""
        return self._journal.epoch

    @property
    def first(self) -> int:
        """The number of the oldest message in the journal."""
        return self._journal.first

    @property
    def next(self) -> int:
        """The number after the last message that was appended."""
        return self._journal.next

    @property
    def earlier(self) -> Mapping[str, int]:
        """The journal's earlier epochs."""
        return self._journal.earlier

    def propose(
        self,
        draft: SaidBlock,
        nonces: tuple[Nonce | None, ...] = (),
        checks: bytes = b"",
        generation: int = 1,
    ) -> Proposal:
        """Append *draft*, which is already numbered, to the journal."""
        return Proposal(draft, self._journal.append(draft, nonces, checks))

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        """Read from the journal."""
        return await self._journal.read(start, stop, max_bytes=max_bytes)

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        """Read from the journal, backwards."""
        return await self._journal.read_before(stop, max_messages=max_messages, max_bytes=max_bytes)
