"""What waits to be written into a SQLite journal, and how it is written.

Where a page is damaged, only the messages and sessions that need this page fail: damage in one
room keeps no other from talking.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from multichat.journal.base import PendingWrite
from multichat.journal.sqlite.file import SQLITE_ERRORS, describe_error, is_damage
from multichat.journal.sqlite.queries import Rows, SessionRow
from multichat.protocol.messages import SaidBlock

if TYPE_CHECKING:
    from multichat.journal.sqlite.room import SqliteRoom

__all__ = [
    "Job",
    "NonceJob",
    "NoncesOf",
    "NumbersJob",
    "SaidJob",
    "SessionJob",
    "effect_on",
    "subject_of",
    "write_jobs",
]


@dataclass(slots=True, eq=False)
class SaidJob:
    """A run, of so many *messages* and bytes, that is said in *room*."""

    room: "SqliteRoom"
    said: SaidBlock
    messages: int
    size: int
    nonces: str
    nonce_count: int
    checks: bytes
    pending: PendingWrite = field(default_factory=PendingWrite)


@dataclass(slots=True, eq=False)
class SessionJob:
    """A session as it is now; *row* is None if it is deleted, with the nonces of its client.

    That is *client* if the session may not have been written yet.
    """

    digest: bytes
    row: SessionRow | None
    client: int | None = None


@dataclass(slots=True, eq=False)
class NonceJob:
    """*client* has sent a private message with that nonce, of which *check* is the check."""

    client: int
    nonce: str
    check: bytes
    pending: PendingWrite = field(default_factory=PendingWrite)


@dataclass(slots=True, eq=False)
class NumbersJob:
    """Numbers up to *clients_ever* have been given to clients."""

    clients_ever: int
    pending: PendingWrite = field(default_factory=PendingWrite)


Job: TypeAlias = SaidJob | NonceJob | NumbersJob  # each is awaited, a session is not


class NoncesOf(NamedTuple):
    """The nonces of *client*: a subject of its own, because messages are kept without them."""

    client: int


def subject_of(job: Job | SessionJob) -> object:
    """Return what *job* is about: a room, a session, nonces; None if all depend on it."""
    match job:
        case SaidJob(room=room):
            return room
        case SessionJob(digest=digest):
            return digest
        case NonceJob(client=client):
            return NoncesOf(client)
    return None


def effect_on(subject: object, room: str, *, damaged: bool) -> str:
    """Say what follows for the operator where *subject*, or that *room*, cannot be written.

    The file is *damaged*, or else the disk is full or fails.
    """
    if room:
        return f"The journal does not keep messages of {room}"
    if isinstance(subject, NoncesOf):
        what = "nonces cannot be written, after a restart a client may send a message twice"
    elif isinstance(subject, bytes):
        what = "sessions cannot be written, their clients cannot resume after a restart"
    else:
        what = "numbers of new clients cannot be written, after a restart others may get them"
    return f"The journal is damaged: {what}" if damaged else what.capitalize()


class _Part(NamedTuple):
    subject: object
    jobs: list[Job | SessionJob]
    write: Callable[[Rows, Job | SessionJob], None]


def write_jobs(
    rows: Rows, jobs: list[Job | SessionJob], clock: float, refused: dict[object, str]
) -> None:
    """Write *jobs* in one transaction; raises one of `SQLITE_ERRORS`, then nothing is written.

    *clock* is where the clock of the file stands now.

    What is not written because a page is damaged is added to *refused*, by its subject and with the
    reason.  Then the rest takes several transactions: SQLite does not commit one that has read a
    damaged page, not even after it was rolled back to a savepoint.  A message is kept although its
    nonce cannot be; until the server restarts, the nonces of its client are in memory only.
    """
    try:
        with rows.transaction(clock):
            for job in jobs:
                _write(rows, job)
                _write_nonces(rows, job)
    except SQLITE_ERRORS as error:
        if not is_damage(error):
            raise
    else:
        return
    parts: dict[object, _Part] = {}
    nonces: dict[object, _Part] = {}
    for job in jobs:
        subject = subject_of(job)
        parts.setdefault(subject, _Part(subject, [], _write)).jobs.append(job)
        if isinstance(job, SaidJob) and job.nonce_count:
            client = NoncesOf(job.said.client)
            nonces.setdefault(client, _Part(client, [], _write_nonces)).jobs.append(job)
    # A message must not be there without its session, nor a nonce without its message.
    ordered = sorted(parts.values(), key=lambda part: isinstance(part.jobs[0], SaidJob))
    _write_parts(rows, ordered, clock, refused, may_raise=True)
    said = [
        part._replace(jobs=kept)
        for part in nonces.values()
        if (kept := [job for job in part.jobs if subject_of(job) not in refused])
    ]
    _write_parts(rows, said, clock, refused)
    rows.unkept_nonces.update(each.client for each in refused if isinstance(each, NoncesOf))


def _write_parts(
    rows: Rows,
    parts: Sequence[_Part],
    clock: float,
    refused: dict[object, str],
    *,
    may_raise: bool = False,
) -> bool:
    """Write *parts* in as few transactions as possible; return whether any is written.

    A failing transaction is split into halves until the part that needs the damaged page is alone.
    Without *may_raise*, which holds until something is written, other errors refuse the parts, too:
    they cannot be tried again together with what is written already.
    """
    if not parts:
        return False
    try:
        with rows.transaction(clock):
            for part in parts:
                for job in part.jobs:
                    part.write(rows, job)
    except SQLITE_ERRORS as error:
        if may_raise and not is_damage(error):
            raise
        if len(parts) == 1 or not is_damage(error):
            refused.update((part.subject, describe_error(error)) for part in parts)
            return False
    else:
        return True
    half = len(parts) // 2
    written = _write_parts(rows, parts[:half], clock, refused, may_raise=may_raise)
    may_raise = may_raise and not written
    return _write_parts(rows, parts[half:], clock, refused, may_raise=may_raise) or written


def _write(rows: Rows, job: Job | SessionJob) -> None:
    match job:
        case SaidJob():
            rows.say(job.room, job.said, job.messages, job.size)
        case SessionJob(row=None):
            rows.forget_session(job.digest, job.client)
        case SessionJob(row=SessionRow() as row):
            rows.save_session(row)
        case NonceJob():
            rows.use_nonces(job.client, "", 0, job.nonce, 1, job.check)
        case NumbersJob():
            rows.reserve_client_numbers(job.clients_ever)


def _write_nonces(rows: Rows, job: Job | SessionJob) -> None:
    if isinstance(job, SaidJob) and job.nonce_count:
        client = job.said.client
        if client not in rows.unkept_nonces:
            id_ = client, job.said.epoch, job.said.first
            rows.use_nonces(*id_, job.nonces, job.nonce_count, job.checks)
