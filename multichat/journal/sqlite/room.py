"""One room of a SQLite journal."""

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from multichat.journal.base import PendingWrite, RoomJournal, slice_block, take_first, take_newest
from multichat.journal.sqlite.jobs import SaidJob
from multichat.journal.sqlite.queries import Head
from multichat.journal.sqlite.reading import first_missing, read_blocks, read_blocks_backwards
from multichat.protocol.messages import Nonce, SaidBlock

if TYPE_CHECKING:
    from multichat.journal.sqlite.journal import SqliteJournal

__all__ = ["SqliteRoom"]


class SqliteRoom(RoomJournal):
    """A room in the file; created by its journal.

    *kept* is the number up to which everything is committed.

    *is_begun*: it has an epoch of this server, which is stored with the first message.
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
        """Continue in a new *epoch*.

        The file may be a restored backup, and clients may know later messages: their numbers are
        reused, but not their ids.
        """
        self.earlier = {**self.earlier, self.epoch: self.next}
        self.epoch, self.is_begun = epoch, True

    def append(
        self, said: SaidBlock, nonces: tuple[Nonce | None, ...] = (), checks: bytes = b""
    ) -> PendingWrite | None:
        """See `RoomJournal.append`."""
        # Text that cannot be encoded fails here for one caller, not in the transaction for all.
        block = said.text
        size = len(block) if block.isascii() else len(block.encode())
        count = len(nonces) - nonces.count(None)
        encoded = msgspec.json.encode(nonces).decode() if count else ""
        messages = block.count("\n") + 1
        pending = self._journal.take(SaidJob(self, said, messages, size, encoded, count, checks))
        self.next += messages
        return pending

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        """See `RoomJournal.read`."""
        kept = self.kept

        def read(reader: sqlite3.Connection, damaged: list[int]) -> list[SaidBlock]:
            blocks: list[SaidBlock] = []
            left = max_bytes
            with closing(read_blocks(reader, self.id, start, stop, damaged)) as found:
                for said in found:
                    if (part := slice_block(said, start, stop)) is not None:
                        blocks.append(part)
                        left -= len(part.text)  # at least
                        if left < 0:
                            break
            blocks = take_first(blocks, max_bytes)
            self._note_missing(reader, blocks, start, min(stop, kept), damaged)
            return blocks

        return await self._journal.read_room(self, read)

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        """See `RoomJournal.read_before`."""
        kept = self.kept

        def read(reader: sqlite3.Connection, damaged: list[int]) -> list[SaidBlock]:
            with closing(read_blocks_backwards(reader, self.id, stop, damaged)) as found:
                blocks = take_newest(found, stop, max_messages=max_messages, max_bytes=max_bytes)
            start = blocks[0].first if blocks else 0
            self._note_missing(reader, blocks, start, min(stop, kept), damaged)
            return blocks

        return await self._journal.read_room(self, read)

    def _note_missing(
        self,
        reader: sqlite3.Connection,
        blocks: list[SaidBlock],
        start: int,
        stop: int,
        damaged: list[int],
    ) -> None:
        """Record which messages an index does not find, if no others are *damaged*."""
        if (
            not damaged
            and (first := first_missing(reader, self.id, blocks, start, stop)) is not None
        ):
            damaged.append(first)
