"""What waits to be written into a SQLite journal, and how it is written.

A transaction that fails because a part of the file is damaged is written once more without what
needs that part: damage in one room keeps no other from talking.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from multichat.journal import Keeping
from multichat.journal.sqlite_file import SQLITE_ERRORS, is_damage, reason_of
from multichat.journal.sqlite_rows import Rows, SessionRow
from multichat.messages import SaidRun

if TYPE_CHECKING:
    from multichat.journal.sqlite import SqliteRoom

__all__ = ["Job", "NonceJob", "NumbersJob", "SaidJob", "SessionJob", "subject_of", "write_jobs"]


@dataclass(slots=True, eq=False)
class SaidJob:
    """A run, of so many *messages* and bytes, that is said in *room*."""

    room: "SqliteRoom"
    said: SaidRun
    messages: int
    size: int
    nonces: str
    nonce_count: int
    checks: bytes
    keeping: Keeping = field(default_factory=Keeping)


@dataclass(slots=True, eq=False)
class SessionJob:
    """A session as it is now; None if it is forgotten, with the nonces of its client."""

    digest: bytes
    row: SessionRow | None


@dataclass(slots=True, eq=False)
class NonceJob:
    """*client* has sent a private message with that nonce, of which *check* is the check."""

    client: int
    nonce: str
    check: bytes
    keeping: Keeping = field(default_factory=Keeping)


@dataclass(slots=True, eq=False)
class NumbersJob:
    """Numbers up to *clients_ever* are somebody's."""

    clients_ever: int
    keeping: Keeping = field(default_factory=Keeping)


Job: TypeAlias = SaidJob | SessionJob | NonceJob | NumbersJob


def subject_of(job: Job) -> object:
    """Return what *job* is about: a room, a session, a client; None if all depend on it."""
    match job:
        case SaidJob(room=room):
            return room
        case SessionJob(digest=digest):
            return digest
        case NonceJob(client=client):
            return client
    return None


def write_jobs(rows: Rows, jobs: list[Job], clock: float, refused: dict[object, str]) -> None:
    """Write *jobs* in one transaction; raises one of `SQLITE_ERRORS`.

    *clock* is where the clock of the file stands now.

    What is not written because a part of the file is damaged is added to *refused*, by its subject
    and with the reason.
    """
    try:
        with rows.transaction(clock):
            _apply(rows, jobs)
    except SQLITE_ERRORS as error:
        if not is_damage(error):
            raise
    else:
        return
    parts: dict[object, list[Job]] = {}
    for job in jobs:
        parts.setdefault(subject_of(job), []).append(job)
    with rows.transaction(clock):
        for subject, part in parts.items():
            try:
                with rows.part():
                    _apply(rows, part)
            except SQLITE_ERRORS as error:
                if not is_damage(error):
                    raise
                refused[subject] = reason_of(error)


def _apply(rows: Rows, jobs: list[Job]) -> None:
    for job in jobs:
        match job:
            case SaidJob():
                rows.say(job.room, job.said, job.messages, job.size)
                if job.nonce_count:
                    id_ = job.said.client, job.said.epoch, job.said.first
                    rows.use_nonces(*id_, job.nonces, job.nonce_count, job.checks)
            case NonceJob():
                rows.use_nonces(job.client, "", 0, job.nonce, 1, job.check)
            case SessionJob(digest=digest, row=None):
                rows.forget_session(digest)
            case SessionJob(row=SessionRow() as row):
                rows.keep_session(row)
            case NumbersJob():
                rows.give_numbers(job.clients_ever)
