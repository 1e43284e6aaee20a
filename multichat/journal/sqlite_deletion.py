"""What a SQLite journal deletes: messages that are too old or too many, old sessions, empty rooms.

For the thread that writes.  Each step is a transaction of its own and bounded.  A full disk can be
deleted from: see `multichat.journal.reserve`.
"""

import math
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass, field

from multichat.journal.reserve import Reserve
from multichat.journal.retention import MIN_BYTES, Deleted, Moment, Retention, format_seconds
from multichat.journal.sqlite_file import SQLITE_ERRORS, DamagedRow, typed
from multichat.journal.sqlite_limits import SqliteLimits
from multichat.journal.sqlite_rows import Rows
from multichat.log import Log

__all__ = ["STEP_RUNS", "DeletionLog", "Deletions", "Tidied"]

# Deleting reads what it deletes: some 10 ms.
STEP_RUNS = 500

# A file gets smaller when it holds that much of nothing; less is soon filled again.
_FREE_PART = 4

# Of a step, what may be moved to make the file smaller: other pages change with what is moved.
_MOVED_PART = 2

# How many epochs of a room stay when all their messages are gone.
_GONE_EPOCHS = 100

_SECOND = "%Y-%m-%dT%H:%M:%S"  # as a `SaidRun` has it, to the second

# What is dated further ahead than this was said while the clock was wrong.
_FUTURE_SECONDS = 60.0


@dataclass(slots=True)
class Tidied:
    """What a step of tidying did: which rooms begin where now, and whether there is *more* to do.

    *deleted* counts it.  *expired*: there are messages that are too old, should the clock be right.
    """

    firsts: dict[int, int] = field(default_factory=dict)
    deleted: Deleted = field(default_factory=Deleted)
    expired: bool = False
    more: bool = False


class Deletions:
    """What has to go from the file of *rows*, whose list of rooms is loaded.

    Above the number of sessions that *limits* allows, the oldest go first: whose they are is not in
    the file, and a server has in its memory those of the clients from other addresses than who
    makes so many.

    *is_full*: the disk has no room for what was to be written.  *is_too_large*: more is in use than
    may be, by a step or more.
    """

    def __init__(
        self,
        rows: Rows,
        retention: Retention,
        reserve: Reserve,
        limits: SqliteLimits | None = None,
    ) -> None:
        self._limits = limits or SqliteLimits()
        self._sessions = self._limits.sessions + 1  # when they were counted; they never were
        self.is_full = self.is_too_large = False
        self._rows, self._retention, self._reserve = rows, retention, reserve
        self._connection = rows.connection
        self._first_dated = -1  # up to there, all runs are dated ahead
        self._page_bytes = self._pragma("page_size")
        # The WAL is written back when two steps are in it, and is as large as four after a burst.
        rows.long_wal_bytes = 2 * retention.step_bytes
        self._connection.execute(f"PRAGMA journal_size_limit={4 * retention.step_bytes}")

    def look(self) -> None:
        """See whether the file is too large."""
        most = self._retention.max_bytes
        with suppress(*SQLITE_ERRORS):
            self.is_too_large = (
                most is not None and self._bytes(used=True) > most + self._retention.step_bytes
            )

    def may_write(self) -> bool:
        """Return whether a message leaves the room that deleting needs."""
        self.is_full = not self._reserve.hold()
        return not self.is_full

    def step(self, full: dict[int, int], empty: list[int], now: Moment) -> Tidied | None:
        """Delete a bounded part of what has to go; None if that cannot be done now.

        *full* says for rooms, by their ids, before which number their messages have to go; *empty*
        are rooms without a message that have to go.
        """
        tidied = None if self.is_full else self._step(full, empty, now)
        if tidied is None:
            self._reserve.release()
            self._rows.write_back(truncate=True)  # deletions are written where the WAL begins anew
            tidied = self._step(full, empty, now, shrink=True)
            self._rows.write_back(truncate=True)  # gives back what was deleted
        self.look()
        return tidied

    def _step(
        self, full: dict[int, int], empty: list[int], now: Moment, *, shrink: bool = False
    ) -> Tidied | None:
        tidied = Tidied()
        kept = self._retention
        step = _Step(self._connection, tidied, kept.step_bytes)
        clock = self._rows.loaded_clock + now.run
        try:
            with self._rows.transaction(clock):
                for room, before in full.items():
                    step.delete(
                        f"above {kept.max_messages} a room",
                        "WHERE room = ? AND first < ? AND first + messages <= ? ORDER BY first",
                        (room, before, before),
                    )
                if kept.max_age_seconds is not None:
                    end = self._last_expired(kept.max_age_seconds, now)
                    if end is not None and now.wait:
                        tidied.expired = True
                    elif end is not None:
                        reason = f"older than {format_seconds(kept.max_age_seconds)}"
                        step.delete(reason, "WHERE seq <= ? ORDER BY seq", (end,))
                if kept.max_bytes is not None:
                    excess = self._bytes(used=True) - kept.max_bytes
                    if excess > 0:
                        reason = f"above {kept.max_bytes / 2**20:g} MiB"
                        step.delete(reason, "ORDER BY seq", (), most_bytes=excess)
                        step.is_over = True  # what it takes is known when it is done
                has_more_sessions = self._forget_sessions(clock)
                self._connection.executemany(
                    "DELETE FROM rooms WHERE id = ? AND first = next", [(room,) for room in empty]
                )
                self._connection.executemany(
                    "DELETE FROM epochs WHERE room = ? AND room NOT IN (SELECT id FROM rooms)",
                    [(room,) for room in empty],
                )
                self._connection.executemany(
                    "UPDATE rooms SET first = ? WHERE id = ?",
                    [(first, room) for room, first in tidied.firsts.items()],
                )
                # Whose messages are gone; the last ones still tell how much a client missed.
                self._connection.executemany(
                    "DELETE FROM epochs WHERE room = ? AND next <= min(?, coalesce((SELECT next "
                    "FROM epochs WHERE room = ? ORDER BY next DESC LIMIT 1 OFFSET ?), 0))",
                    [(room, first, room, _GONE_EPOCHS) for room, first in tidied.firsts.items()],
                )
            if step.deleted:
                self._rows.note_written(kept.step_bytes)
            tidied.more = (
                bool(step.deleted and step.is_over)
                or has_more_sessions
                or self._shrink(all_of_it=shrink)
            )
        except SQLITE_ERRORS:
            return None
        return tidied

    def _last_expired(self, max_age_seconds: float, now: Moment) -> int | None:
        """Return up to which run all are too old; None if the first is not.

        That goes by the order in which they were said, so that no room gets a gap.  What is dated
        ahead was said while the clock was wrong: it is as old as what follows it.  What this server
        has kept itself is no older than the server.
        """
        before, latest = (
            time.strftime(_SECOND, time.gmtime(max(0, seconds)))
            for seconds in (now.wall - max_age_seconds, now.wall + _FUTURE_SECONDS)
        )
        last = None
        for row in self._connection.execute(
            "SELECT seq, time FROM runs WHERE seq > ? AND time < ? AND typeof(time) = 'text' "
            "ORDER BY seq LIMIT ?",
            (self._first_dated, latest, STEP_RUNS),
        ):
            seq, said_at = row
            if type(said_at) is not str:  # damaged: it goes with what follows it
                continue
            if said_at >= before or (now.run < max_age_seconds and seq > self._rows.loaded_seq):
                if last is None:
                    self._first_dated = seq - 1  # what is dated ahead is not looked at each time
                break
            last = seq
        return last

    def _forget_sessions(self, clock: float) -> bool:
        """Forget the sessions of disconnected clients that are too old, or too many.

        Returns whether there are more of them.
        """
        execute = self._connection.execute
        max_sessions = self._limits.sessions
        before, most = clock - self._limits.session_seconds, STEP_RUNS
        if self._sessions + self._rows.new_sessions > max_sessions:
            [self._sessions] = execute("SELECT count(*) FROM sessions").fetchone()
            self._rows.new_sessions = 0
            if self._sessions > max_sessions:
                before, most = clock, min(self._sessions - max_sessions, STEP_RUNS)
        found = execute(
            "SELECT digest FROM sessions WHERE seen <= ? ORDER BY seen LIMIT ?", (before, most)
        ).fetchall()
        for (digest,) in found:
            self._rows.forget_session(digest)
        return len(found) == STEP_RUNS

    def _shrink(self, *, all_of_it: bool) -> bool:
        """Give some of what is free in the file back; return whether there may be more."""
        free = self._bytes(used=False)
        size = free + self._bytes(used=True)
        most = self._retention.max_bytes
        has_to = all_of_it or (most is not None and size > most)
        if not free or not (has_to or free > max(MIN_BYTES, size // _FREE_PART)):
            return False
        # As a script: `execute` takes a statement without rows one step far, which is one page.
        pages = self._retention.step_bytes // self._page_bytes // _MOVED_PART
        self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        self._rows.note_written(self._retention.step_bytes)
        return True

    def _bytes(self, *, used: bool) -> int:
        free = self._pragma("freelist_count")
        return (self._pragma("page_count") - free if used else free) * self._page_bytes

    def _pragma(self, what: str) -> int:
        return int(self._connection.execute(f"PRAGMA {what}").fetchone()[0])


class _Step:
    """One bounded step of taking runs away; *tidied* is told which."""

    def __init__(self, connection: sqlite3.Connection, tidied: Tidied, max_bytes: int) -> None:
        self.deleted = 0
        self.is_over = False
        self._max_bytes = max_bytes
        self._connection = connection
        self._tidied = tidied
        self._bytes = 0

    def delete(
        self, reason: str, which: str, parameters: tuple[object, ...], *, most_bytes: int = 1 << 62
    ) -> None:
        """Delete the first runs of *which*."""
        if self.is_over:
            return
        left = STEP_RUNS - self.deleted
        found = self._connection.execute(
            f"SELECT seq, room, first, messages, bytes FROM runs {which} LIMIT ?",  # noqa: S608 - our own words
            (*parameters, left),
        ).fetchall()
        gone: list[tuple[int]] = []
        count, rooms = 0, set()
        for row in found:
            if most_bytes <= 0:
                break
            try:
                seq, room, first, messages, size = typed(row, int, int, int, int, int)
            except DamagedRow:  # what cannot be read keeps nothing behind it
                gone.append((row[0],))
                continue
            if self._bytes > self._max_bytes:
                self.is_over = True
                break
            self._bytes += size
            most_bytes -= size
            gone.append((seq,))
            count += messages
            rooms.add(room)
            firsts = self._tidied.firsts
            firsts[room] = max(first + messages, firsts.get(room, 0))
        self._connection.executemany("DELETE FROM runs WHERE seq = ?", gone)
        self.deleted += len(gone)
        self.is_over |= len(gone) == left
        if gone:
            self._tidied.deleted.add(reason, count, rooms)


class DeletionLog:
    """Tells the operator what is deleted, and what is about to be.

    Of deletions there is a line when a round is over, but one in *seconds* at most.
    """

    def __init__(self, log: Log, retention: Retention, seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._max_age = retention.max_age_seconds
        self._deleted = Deleted()  # and not told yet
        self._tell_at = -math.inf
        self._is_wait_told = False

    def note(self, tidied: Tidied, moment: Moment, now: float) -> None:
        """Note what a step has done at that *moment*, which is *now* by the clock of the loop."""
        if self._max_age is not None and tidied.expired and not self._is_wait_told:
            age, wait = format_seconds(self._max_age), format_seconds(moment.wait)
            text = f"Messages older than {age} are deleted in {wait}"
            self._log.line("STATE", f"{text}, if the clock of this machine is not set meanwhile")
        self._is_wait_told = tidied.expired
        self._deleted.update(tidied.deleted)
        if not tidied.more and now >= self._tell_at and self.flush():
            self._tell_at = now + self._seconds

    def flush(self) -> bool:
        """Tell what was deleted since the last line; return whether anything was."""
        if not self._deleted:
            return False
        self._log.line("STATE", f"Deleted from the journal: {self._deleted}")
        self._deleted = Deleted()
        return True
