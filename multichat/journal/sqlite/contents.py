"""Everything that a journal holds, read once to be copied elsewhere.

The journal's server must have stopped, and the file must have the current version of the tables;
nothing is written to it.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from multichat.errors import JournalFailed
from multichat.journal.base import AccountRecord, SavedSession
from multichat.journal.sqlite.accounts import read_accounts_and_topics
from multichat.journal.sqlite.file import (
    SQLITE_ERRORS,
    DamagedRow,
    describe_error,
    open_for_reading,
)
from multichat.journal.sqlite.file_lock import is_locked
from multichat.journal.sqlite.reader import Reader
from multichat.journal.sqlite.reading import read_session
from multichat.journal.sqlite.schema import MIGRATIONS
from multichat.protocol.messages import SaidBlock

__all__ = ["Contents", "RoomContents", "open_contents"]


@dataclass(frozen=True, slots=True)
class RoomContents:
    """A room: its *name*, case-folded, and the numbers of its messages; see `RoomJournal`.

    *epochs* are all its epochs, the oldest first, each with the number from which it is valid.
    """

    name: str
    first: int
    next: int
    epochs: Sequence[tuple[str, int]]


class Contents:
    """The contents of the journal at *path*; for one thread.

    *damaged* counts the parts that cannot be read.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.damaged = 0
        self._reader = Reader(path, connection)
        self._connection = connection
        found = read_accounts_and_topics(connection)
        self.accounts: Sequence[AccountRecord] = list(found[0])
        self.topics: Mapping[str, str] = dict(found[1])
        [row] = connection.execute("SELECT clients_ever, last_epoch, clock FROM heads")
        self.clients_ever, self.last_epoch, self._clock = row

    def rooms(self) -> list[RoomContents]:
        """List the rooms."""
        return [
            RoomContents(name, first, next_, self._epochs(id_, epoch))
            for id_, name, epoch, first, next_ in self._connection.execute(
                "SELECT id, name, epoch, first, next FROM rooms ORDER BY id"
            ).fetchall()
        ]

    def _epochs(self, room: int, last: str) -> list[tuple[str, int]]:
        start, epochs = 0, []
        for epoch, end in self._connection.execute(
            "SELECT epoch, next FROM epochs WHERE room = ? ORDER BY next", (room,)
        ).fetchall():
            epochs.append((epoch, start))
            start = end
        return [*epochs, (last, start)]

    def blocks(self, room: str) -> Iterator[SaidBlock]:
        """Yield the messages of *room*, the oldest first."""
        yield from self._reader.read(room=room)
        self.damaged, self._reader.damaged = self.damaged + self._reader.damaged, 0

    def sessions(self) -> Iterator[SavedSession]:
        """Yield the sessions, those that disconnected last at the end."""
        digests = self._connection.execute("SELECT digest FROM sessions ORDER BY seen").fetchall()
        for [digest] in digests:
            try:
                session = read_session(self._connection, digest, None, self._clock)
            except DamagedRow:
                self.damaged += 1
            else:
                if session is not None:
                    yield session


@contextmanager
def open_contents(path: Path) -> Iterator[Contents]:
    """Open the journal at *path*; raises `JournalFailed`, also from the block."""
    if path.exists() and is_locked(path.resolve()):
        raise JournalFailed(path, "its server is running: stop it first")
    with closing(open_for_reading(path).connection) as connection:
        try:
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version != len(MIGRATIONS):
                reason = "an older multichat wrote it: start and stop a server with it once"
                raise JournalFailed(path, reason)
            yield Contents(path, connection)
        except SQLITE_ERRORS as error:
            raise JournalFailed(path, describe_error(error)) from error
