"""Deletes from a SQLite journal: messages above the retention limits, old sessions, empty rooms.

Runs in the writer's thread.  Each step is bounded and is one transaction; in a damaged file it is
several, and rows that cannot be deleted are skipped.  Deleting also works on a full disk: see
`multichat.journal.sqlite.reserve`.
"""

import math
import sqlite3
import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from multichat.journal.retention import MIN_BYTES, Deleted, Retention, SteadyTime, format_seconds
from multichat.journal.sqlite.file import (
    DISK_FAILS,
    DISK_FULL,
    SQLITE_ERRORS,
    DamagedRow,
    describe_error,
    is_damage,
    typed,
)
from multichat.journal.sqlite.limits import SqliteLimits
from multichat.journal.sqlite.queries import Rows
from multichat.journal.sqlite.reserve import Reserve
from multichat.journal.sqlite.salvage import BLOCKS_OF_ROOM, behind, first_readable, is_readable
from multichat.log import Log

__all__ = ["NOT_DELETED", "STEP_BLOCKS", "DeletionLog", "DeletionResult", "Deletions"]

# The most blocks of a step; deleting reads them, which takes about 10 ms.
STEP_BLOCKS = 500

# The file shrinks when this part of it is unused; less is soon reused.
_FREE_PART = 4

# Sessions and nonces take at most this part of the file's size limit; the rest is for messages.
_SESSION_PART = 4

# If they take more, this part of them is deleted at once, so that they are counted less often.
_DELETED_PART = 8

# The part of a step's pages that are moved to shrink the file; each also changes other pages.
_MOVED_PART = 2

# Near damage, a step retries with fewer blocks, divided by this factor each time, down to one.
_FEWER = 8

# After this many failures a step of a damaged file leaves the rest to the next step.
_MAX_FAILURES = 50

NOT_DELETED = "The journal is damaged: messages or sessions on damaged pages are not deleted"

# How many epochs of a room are kept when all their messages are deleted.
_GONE_EPOCHS = 100

_SECOND = "%Y-%m-%dT%H:%M:%S"  # as a `SaidBlock` has it, to the second

# A message dated further ahead than this is from a time when the clock was wrong.
_FUTURE_SECONDS = 60.0


@dataclass(slots=True)
class DeletionResult:
    """The result of a step: the new first numbers of rooms, and whether there is *more* to delete.

    *deleted* counts what was deleted.  *expired* says that messages are too old if the clock is
    right.  *rooms* are the deleted rooms.  *damage* is a short reason why something cannot be
    deleted.
    """

    firsts: dict[int, int] = field(default_factory=dict)
    deleted: Deleted = field(default_factory=Deleted)
    expired: bool = False
    more: bool = False
    damage: str = ""
    rooms: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Place:
    """Where to continue in a damaged file: rows below *position* are skipped.

    *position* is a `seq` or, within a room, the number of a message.  At most *most* blocks are
    tried at once.
    """

    position: int = 0
    most: int = STEP_BLOCKS
    gone: bool = False  # no later row can be read


_Key: TypeAlias = int | str

# Parts of a step that delete no messages.
_NO_RUNS = ("sessions", "session size", "rooms")


class Deletions:
    """Deletes from the file of *rows*, whose list of rooms is loaded.

    If sessions and their nonces take more than *limits* allows, or more than a quarter of the size
    limit in *retention*, the oldest are deleted.  The client's address does not matter: the file
    contains no addresses, and the server has sessions of other addresses in memory.

    *is_full*: the disk has no space for the last write.  *is_too_large*: the file exceeds its limit
    by a step or more.
    """

    def __init__(
        self,
        rows: Rows,
        retention: Retention,
        reserve: Reserve,
        limits: SqliteLimits | None = None,
    ) -> None:
        self._limits = limits or SqliteLimits()
        self._max_session_bytes = self._limits.session_bytes
        if retention.max_bytes is not None:
            part = retention.max_bytes // _SESSION_PART
            self._max_session_bytes = min(self._max_session_bytes, part)
        self._session_excess = 0.0  # bytes of sessions still to be deleted
        self.is_full = self.is_too_large = False
        self._rows, self._retention, self._reserve = rows, retention, reserve
        self._connection = rows.connection
        self._first_dated = -1  # all blocks up to here are dated ahead
        # The damaged places, by room or by reason.
        self._damaged: dict[_Key, _Place] = {}
        self._damage = ""
        self._page_bytes = self._pragma("page_size")
        # A checkpoint is made after two steps; after a burst the WAL is as large as four.
        rows.long_wal_bytes = 2 * retention.step_bytes
        self._connection.execute(f"PRAGMA journal_size_limit={4 * retention.step_bytes}")

    def check_size(self) -> None:
        """Update *is_too_large*."""
        most = self._retention.max_bytes
        with suppress(*SQLITE_ERRORS):
            self.is_too_large = (
                most is not None and self._bytes(used=True) > most + self._retention.step_bytes
            )

    def may_write(self) -> bool:
        """Return whether messages may be written without using the space that deleting needs."""
        self.is_full = not self._reserve.hold()
        return not self.is_full

    def step(
        self,
        full: dict[int, int],
        empty: list[int],
        now: SteadyTime,
        changed: Collection[bytes] = (),
    ) -> DeletionResult | None:
        """Delete a bounded number of expired rows; return None if that is not possible now.

        *full* maps the ids of rooms to the number before which messages are deleted; *empty* are
        rooms without messages to delete.  *changed* sessions, by digest, are about to be written
        and are not deleted.
        """
        result: DeletionResult | None = None
        is_full = self.is_full
        if not is_full:
            try:
                result = self._step(full, empty, now, changed)
            except SQLITE_ERRORS as error:
                # If another program has locked the file, releasing the reserve does not help.
                is_full = describe_error(error) in (DISK_FULL, DISK_FAILS)
        if is_full:
            self._reserve.release()
            # Deletions are written to the WAL, which starts from the beginning after a checkpoint.
            self._rows.checkpoint(truncate=True)
            with suppress(*SQLITE_ERRORS):
                result = self._step(full, empty, now, changed, shrink=True)
            self._rows.checkpoint(truncate=True)  # gives back what was deleted
        self.check_size()
        if not self._rows.is_marked:
            self._rows.checkpoint()
        return result

    def _step(
        self,
        full: dict[int, int],
        empty: list[int],
        now: SteadyTime,
        changed: Collection[bytes],
        *,
        shrink: bool = False,
    ) -> DeletionResult:
        """Like `step`; raises one of `SQLITE_ERRORS`, but not for damage."""
        result = DeletionResult()
        step = _Step(self._connection, result, self._retention.step_bytes)
        clock = self._rows.loaded_clock + now.run
        parts: dict[_Key, Callable[[], None]] = {
            "sessions": partial(self._forget_old_sessions, step, clock, changed),
            "session size": partial(self._forget_excess_sessions, step, clock, changed),
            **self._parts(step, full, empty, now),
        }
        if not self._damage:
            try:
                with self._rows.transaction(clock):
                    for part in parts.values():
                        part()
                    step.write_firsts()
            except SQLITE_ERRORS as error:
                self._note_damage(error)
                # Nothing was deleted; the next step handles the damage.
                result = DeletionResult(more=True)
                step = _Step(self._connection, result, self._retention.step_bytes)
        else:
            self._delete_around_damage(step, parts, clock)
        self._finish(step, result, shrink=shrink)
        result.damage = self._damage
        return result

    def _parts(
        self, step: "_Step", full: dict[int, int], empty: list[int], now: SteadyTime
    ) -> dict[_Key, Callable[[], None]]:
        """Return the deletions besides sessions: by room, by age, by size, and rooms."""
        kept = self._retention
        parts: dict[_Key, Callable[[], None]] = {}

        def delete_full(room: int, before: int) -> None:
            place = self._place(room)
            step.delete(
                f"above {kept.max_messages} a room",
                f"{BLOCKS_OF_ROOM} WHERE entry.room = ? AND entry.first >= ? AND entry.first < ? "
                "AND runs.first + runs.messages <= ? ORDER BY entry.first",
                (room, place.position, before, before),
                most=place.most,
            )

        def delete_old(max_age_seconds: float) -> None:
            place = self._place("age")
            end = self._last_expired(max_age_seconds, now, place)
            if end is not None and now.wait:
                step.result.expired = True
            elif end is not None:
                reason = f"older than {format_seconds(max_age_seconds)}"
                which = "runs WHERE seq BETWEEN ? AND ? ORDER BY seq"
                step.delete(reason, which, (place.position, end), most=place.most)

        def delete_excess(max_bytes: int) -> None:
            excess = self._bytes(used=True) - max_bytes - self._excess_of_sessions(step)
            if excess > 0:
                place = self._place("size")
                reason = f"above {max_bytes / 2**20:g} MiB"
                which = "runs WHERE seq >= ? ORDER BY seq"
                step.delete(reason, which, (place.position,), most_bytes=excess, most=place.most)
                step.is_over = True  # the size is known only after the step

        for room, before in full.items():
            parts[room] = partial(delete_full, room, before)
        if kept.max_age_seconds is not None:
            parts["age"] = partial(delete_old, kept.max_age_seconds)
        if kept.max_bytes is not None:
            parts["size"] = partial(delete_excess, kept.max_bytes)
        if empty:
            parts["rooms"] = partial(self._delete_rooms, step, empty)
        return parts

    def _delete_around_damage(
        self, step: "_Step", parts: dict[_Key, Callable[[], None]], clock: float
    ) -> None:
        """Run each part in a transaction of its own, and skip rows that fail."""
        failures = 0
        for key, part in parts.items():
            place = self._place(key)
            is_over = step.is_over and key not in _NO_RUNS
            if place.gone or is_over or failures >= _MAX_FAILURES:
                continue
            before = step.state()
            try:
                with self._rows.transaction(clock):
                    part()
                    step.write_firsts()
            except SQLITE_ERRORS as error:
                step.restore(before)
                if not is_damage(error) and (step.deleted or step.freed or step.result.rooms):
                    return  # the caller must learn what was deleted
                self._note_damage(error)
                failures += 1
                step.result.more = True
                self._leave_out(key, place)
            else:
                place.most = min(STEP_BLOCKS, place.most * _FEWER)

    def _note_damage(self, error: Exception) -> None:
        """Record damage; raises *error* if it has another cause."""
        if not is_damage(error):
            raise error
        self._damage = describe_error(error)

    def _place(self, key: _Key) -> _Place:
        return self._damaged.setdefault(key, _Place()) if self._damage else _Place()

    def _leave_out(self, key: _Key, place: _Place) -> None:
        """Continue with fewer blocks; if a single block cannot be deleted, continue after it."""
        if key in _NO_RUNS:
            place.gone = True
            return
        if place.most > 1:
            place.most = max(1, place.most // _FEWER)
            return
        column = which = "seq"
        if isinstance(key, int):
            column, which = "first", f"room = {key} AND first"

        def read_from(position: int) -> Any:
            return self._connection.execute(
                f"SELECT {column}, time FROM runs WHERE {which} >= ? ORDER BY {column} LIMIT 1",  # noqa: S608 - our own words
                (position,),
            ).fetchone()

        def can_read_from(position: int) -> bool:
            return is_readable(lambda: read_from(position))

        if can_read_from(place.position):
            row = read_from(place.position)
            found = None if row is None else behind(row[0])
        else:
            found = first_readable(place.position, can_read_from)
        if found is None:
            place.gone = True
        else:
            place.position = found

    def _finish(self, step: "_Step", result: DeletionResult, *, shrink: bool) -> None:
        """After messages were deleted, shrink the file and check whether there is more to do."""
        if step.deleted:
            self._rows.note_written(self._retention.step_bytes)
        self._rows.session_bytes -= step.freed
        self._session_excess -= step.freed
        result.more |= bool(step.deleted and step.is_over) or step.has_more_sessions
        if not result.more:
            place = self._place("shrink")
            try:
                result.more = not place.gone and self._shrink(all_of_it=shrink)
            except SQLITE_ERRORS as error:
                # The deletions are committed; other failures are retried.
                if is_damage(error):
                    self._note_damage(error)
                    self._place("shrink").gone = True

    def _delete_rooms(self, step: "_Step", empty: list[int]) -> None:
        self._connection.executemany(
            "DELETE FROM rooms WHERE id = ? AND first = next", [(room,) for room in empty]
        )
        self._connection.executemany(
            "DELETE FROM epochs WHERE room = ? AND room NOT IN (SELECT id FROM rooms)",
            [(room,) for room in empty],
        )
        step.result.rooms.update(empty)

    def _last_expired(self, max_age_seconds: float, now: SteadyTime, place: _Place) -> int | None:
        """Return the last block of those at the beginning that are too old; None if there is none.

        Messages are deleted in their order, so that no room gets a gap.  A message that is dated
        ahead is from a time when the clock was wrong: it counts as old as the next one.  Messages
        that this server has stored are not older than the server.
        """
        before, latest = (
            time.strftime(_SECOND, time.gmtime(max(0, seconds)))
            for seconds in (now.wall - max_age_seconds, now.wall + _FUTURE_SECONDS)
        )
        last = None
        for row in self._connection.execute(
            "SELECT seq, time FROM runs WHERE seq > ? AND time < ? AND typeof(time) = 'text' "
            "ORDER BY seq LIMIT ?",
            (max(self._first_dated, place.position - 1), latest, place.most),
        ):
            seq, said_at = row
            if type(said_at) is not str:  # damaged: it is deleted with the next one
                continue
            if said_at >= before or (now.run < max_age_seconds and seq > self._rows.loaded_seq):
                if last is None:
                    self._first_dated = seq - 1  # so that blocks dated ahead are not read each time
                break
            last = seq
        return last

    def _forget_old_sessions(self, step: "_Step", clock: float, changed: Collection[bytes]) -> None:
        """Delete expired sessions."""
        before = clock - self._limits.session_seconds
        self._forget_sessions(step, before, changed, math.inf)

    def _forget_excess_sessions(
        self, step: "_Step", clock: float, changed: Collection[bytes]
    ) -> None:
        """Delete the oldest sessions while all sessions and nonces exceed their limit.

        If only sessions of connected clients are left, delete the oldest nonces.
        """
        rows, most = self._rows, self._max_session_bytes
        if self._session_excess <= 0 and min(rows.session_bytes, self._bytes(used=True)) > most:
            rows.session_bytes = step.freed + rows.count_session_bytes()
            if rows.session_bytes > most:
                self._session_excess = rows.session_bytes - most + most / _DELETED_PART
        excess = self._session_excess - step.freed
        if excess <= 0:
            return
        size = min(excess, self._retention.step_bytes)
        reason = f"sessions above {most / 2**20:g} MiB"
        if sessions := self._forget_sessions(step, clock, changed, size):
            step.result.deleted.add(reason, sessions, noun="session")
        else:
            freed, nonces = rows.forget_oldest_nonces(size, STEP_BLOCKS)
            if nonces:
                step.result.deleted.add(reason, nonces, noun="nonce")
            step.freed += freed
            step.has_more_sessions |= bool(freed)
            if not freed:
                self._session_excess = 0.0

    def _excess_of_sessions(self, step: "_Step") -> int:
        """Return how many bytes of sessions are still to be deleted, instead of messages."""
        excess = self._rows.session_bytes - step.freed - self._max_session_bytes
        can_be_deleted = math.isfinite(excess) and not self._place("session size").gone
        return max(0, int(excess)) if can_be_deleted else 0

    def _forget_sessions(
        self, step: "_Step", before: float, changed: Collection[bytes], size: float
    ) -> int:
        """Delete sessions last seen *before*, about *size* bytes; return how many."""
        freed = 0.0
        gone: list[bytes] = []
        with closing(self._rows.oldest_sessions(before)) as found:
            for digest, bytes_ in found:
                if len(gone) == STEP_BLOCKS or freed >= min(size, self._retention.step_bytes):
                    step.has_more_sessions = True
                    break
                if digest not in changed:
                    gone.append(digest)
                    freed += bytes_
        for digest in gone:
            self._rows.forget_session(digest)
        step.freed += freed
        return len(gone)

    def _shrink(self, *, all_of_it: bool) -> bool:
        """Return unused pages to the disk; return whether there may be more."""
        free = self._bytes(used=False)
        size = free + self._bytes(used=True)
        most = self._retention.max_bytes
        has_to = all_of_it or (most is not None and size > most)
        if not free or not (has_to or free > max(MIN_BYTES, size // _FREE_PART)):
            return False
        # As a script: `execute` advances a statement without rows by one step, which is one page.
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
    """One bounded step of deleting blocks, recorded in *result*."""

    def __init__(
        self, connection: sqlite3.Connection, result: DeletionResult, max_bytes: int
    ) -> None:
        self.deleted = 0
        self.freed = 0.0  # bytes of deleted sessions
        self.is_over = self.has_more_sessions = False
        self._max_bytes = max_bytes
        self._connection = connection
        self.result = result
        self._bytes = 0

    def delete(
        self,
        reason: str,
        which: str,
        parameters: tuple[object, ...],
        *,
        most_bytes: int = 1 << 62,
        most: int = STEP_BLOCKS,
    ) -> None:
        """Delete the first blocks of *which*, at most *most*."""
        if self.is_over:
            return
        left = min(most, STEP_BLOCKS - self.deleted)
        found = self._connection.execute(
            "SELECT runs.seq, runs.room, runs.first, runs.messages, runs.bytes "  # noqa: S608 - our own words
            f"FROM {which} LIMIT ?",
            (*parameters, left),
        ).fetchall()
        gone: list[tuple[int]] = []
        count, rooms = 0, set()
        for row in found:
            if most_bytes <= 0:
                break
            try:
                seq, room, first, messages, size = typed(row, int, int, int, int, int)
            except DamagedRow:  # deleted, so that later rows can be deleted
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
            firsts = self.result.firsts
            firsts[room] = max(first + messages, firsts.get(room, 0))
        self._connection.executemany("DELETE FROM runs WHERE seq = ?", gone)
        self.deleted += len(gone)
        self.is_over |= len(gone) == left
        if gone:
            self.result.deleted.add(reason, count, rooms)

    def state(self) -> tuple[Any, ...]:
        """Return the state for `restore`."""
        deleted = Deleted()
        deleted.update(self.result.deleted)
        result = self.result.firsts.copy(), deleted, self.result.rooms.copy()
        return self.deleted, self.freed, self.is_over, self._bytes, result

    def restore(self, state: tuple[Any, ...]) -> None:
        """Return to a former `state`, after a transaction has failed."""
        self.deleted, self.freed, self.is_over, self._bytes, result = state
        self.result.firsts, self.result.deleted, self.result.rooms = result

    def write_firsts(self) -> None:
        """Write the new first numbers of rooms with deleted messages."""
        firsts = self.result.firsts
        self._connection.executemany(
            "UPDATE rooms SET first = ? WHERE id = ?",
            [(first, room) for room, first in firsts.items()],
        )
        # Delete epochs without messages; the last ones are needed to count missed messages.
        self._connection.executemany(
            "DELETE FROM epochs WHERE room = ? AND next <= min(?, coalesce((SELECT next "
            "FROM epochs WHERE room = ? ORDER BY next DESC LIMIT 1 OFFSET ?), 0))",
            [(room, first, room, _GONE_EPOCHS) for room, first in firsts.items()],
        )


class DeletionLog:
    """Logs deletions, and announces deletions by age.

    Deletions are logged when they have stopped, or have continued for *seconds*, at most one line
    in *seconds*.
    """

    def __init__(self, log: Log, retention: Retention, seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._max_age = retention.max_age_seconds
        self._deleted = Deleted()  # not logged yet
        self._tell_at = -math.inf
        self._tell_by = math.inf
        self._is_wait_told = False

    def note(self, result: DeletionResult, moment: SteadyTime, now: float) -> None:
        """Record the *result* of a step at that *moment*; *now* is the event loop's time."""
        if self._max_age is not None and result.expired and not self._is_wait_told:
            age, wait = format_seconds(self._max_age), format_seconds(moment.wait)
            text = f"Messages older than {age} are deleted in {wait}"
            self._log.line("STATE", f"{text}, if the clock of this machine is not set meanwhile")
        self._is_wait_told = result.expired
        if result.deleted and not self._deleted:
            self._tell_by = now + self._seconds
        self._deleted.update(result.deleted)
        is_over = not (result.deleted or result.more)
        if (now >= self._tell_by or (is_over and now >= self._tell_at)) and self.flush():
            self._tell_at = now + self._seconds

    def flush(self) -> bool:
        """Log what was deleted since the last line; return whether anything was."""
        if not self._deleted:
            return False
        self._log.line("STATE", f"Deleted from the journal: {self._deleted}")
        self._deleted = Deleted()
        return True
