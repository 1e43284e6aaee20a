"""The part of a SQLite journal that belongs to one room."""

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from multichat.journal import Keeping, RoomJournal, newest_of, part_of, within
from multichat.journal.sqlite_jobs import SaidJob
from multichat.journal.sqlite_reading import first_missing, read_runs, read_runs_backwards
from multichat.journal.sqlite_rows import Head
from multichat.messages import Nonce, SaidRun

if TYPE_CHECKING:
    from multichat.journal.sqlite import SqliteJournal

__all__ = ["SqliteRoom"]


class SqliteRoom(RoomJournal):
    """A room's part of the file; made by its journal.

    *kept* is the number up to which everything is committed.

    *is_begun*: it has the epoch of this server, which is in the file from the first message on.
    """

    __slots__ = (
        *("_journal", "begins", "earlier", "epoch", "first"),
        *("id", "is_begun", "kept", "name", "next"),
    )

    def __init__(self, journal: "SqliteJournal", head: Head, *, is_begun: bool = True) -> None:
        self._journal = journal
        self.id, self.name, self.epoch = head.id, head.name, head.epoch
        self.first, self.earlier = head.first, head.earlier
        self.begins = self.next = self.kept = head.next
        self.is_begun = is_begun

    def begin(self, epoch: str) -> None:
        """Go on in another *epoch*.

        The file may be a restored backup, and clients may know messages that were said after it:
        their numbers are given again, their ids are not.
        """
        self.earlier = {**self.earlier, self.epoch: self.next}
        self.epoch, self.is_begun = epoch, True

    def append(
        self, said: SaidRun, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> Keeping | None:
        """See `RoomJournal.append`."""
        # What cannot be encoded fails here, for one caller, and not in the transaction, for all.
        run = said.run
        size = len(run) if run.isascii() else len(run.encode())
        count = len(nonces) - nonces.count(None)
        spelled = msgspec.json.encode(nonces).decode() if count else ""
        messages = run.count("\n") + 1
        keeping = self._journal.take(SaidJob(self, said, messages, size, spelled, count, checks))
        self.next += messages
        return keeping

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidRun]:
        """See `RoomJournal.read`."""
        kept = self.kept

        def read(reader: sqlite3.Connection, damaged: list[int]) -> list[SaidRun]:
            runs: list[SaidRun] = []
            left = max_bytes
            with closing(read_runs(reader, self.id, start, stop, damaged)) as found:
                for said in found:
                    if (part := part_of(said, start, stop)) is not None:
                        runs.append(part)
                        left -= len(part.run)  # at least
                        if left < 0:
                            break
            runs = within(runs, max_bytes)
            self._note_missing(reader, runs, start, min(stop, kept), damaged)
            return runs

        return await self._journal.read_room(self, read)

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidRun]:
        """See `RoomJournal.read_before`."""
        kept = self.kept

        def read(reader: sqlite3.Connection, damaged: list[int]) -> list[SaidRun]:
            with closing(read_runs_backwards(reader, self.id, stop, damaged)) as found:
                runs = newest_of(found, stop, max_messages=max_messages, max_bytes=max_bytes)
            start = runs[0].first if runs else 0
            self._note_missing(reader, runs, start, min(stop, kept), damaged)
            return runs

        return await self._journal.read_room(self, read)

    def _note_missing(
        self,
        reader: sqlite3.Connection,
        runs: list[SaidRun],
        start: int,
        stop: int,
        damaged: list[int],
    ) -> None:
        """Note which messages an index does not find, if no others are *damaged*."""
        if not damaged and (first := first_missing(reader, self.id, runs, start, stop)) is not None:
            damaged.append(first)
