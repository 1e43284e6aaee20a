"""The write jobs of a SQLite journal, and how they are written.

If a page is damaged, only the messages and sessions that need this page fail: damage in one room
does not affect others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from multichat.journal.base import AccountRecord, PendingWrite
from multichat.journal.sqlite.accounts import write_account, write_topic
from multichat.journal.sqlite.file import SQLITE_ERRORS, describe_error, is_damage
from multichat.journal.sqlite.queries import Rows, SessionRow
from multichat.protocol.messages import SaidBlock

if TYPE_CHECKING:
    from multichat.journal.sqlite.room import SqliteRoom

__all__ = [
    "AccountJob",
    "Job",
    "NonceJob",
    "NoncesOf",
    "NumbersJob",
    "SaidJob",
    "SessionJob",
    "TableOf",
    "TopicJob",
    "effect_on",
    "subject_of",
    "write_jobs",
]


@dataclass(slots=True, eq=False)
class SaidJob:
    """Append a block of *messages* messages and *size* bytes to *room*."""

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
    """Store a session's current state, or delete it with its client's nonces if *row* is None.

    In that case *client* is the client's number if the session may not have been written yet.
    """

    digest: bytes
    row: SessionRow | None
    client: int | None = None


@dataclass(slots=True, eq=False)
class NonceJob:
    """Store the *nonce* of a private message of *client*, and the *check* of its text."""

    client: int
    nonce: str
    check: bytes
    pending: PendingWrite = field(default_factory=PendingWrite)


@dataclass(slots=True, eq=False)
class NumbersJob:
    """Record that client numbers up to *clients_ever* are taken."""

    clients_ever: int
    pending: PendingWrite = field(default_factory=PendingWrite)


@dataclass(slots=True, eq=False)
class AccountJob:
    """Store the account *name*, or delete it if *record* is None."""

    name: str
    record: AccountRecord | None
    pending: PendingWrite = field(default_factory=PendingWrite)


@dataclass(slots=True, eq=False)
class TopicJob:
    """Store the *topic* of *room*, or delete it if it is empty."""

    room: str
    topic: str
    pending: PendingWrite = field(default_factory=PendingWrite)


# Awaited, unlike sessions.
Job: TypeAlias = SaidJob | NonceJob | NumbersJob | AccountJob | TopicJob


class NoncesOf(NamedTuple):
    """The nonces of *client*: a separate subject, as messages can be stored without them."""

    client: int


class TableOf(NamedTuple):
    """A *key* in a *table* of its own, on which nothing else depends."""

    table: str
    key: str


def subject_of(job: Job | SessionJob) -> object:
    """Return the subject of *job*: a room, a session or nonces; None if all jobs depend on it."""
    match job:
        case SaidJob(room=room):
            return room
        case SessionJob(digest=digest):
            return digest
        case NonceJob(client=client):
            return NoncesOf(client)
        case AccountJob(name=name):
            return TableOf("accounts", name)
        case TopicJob(room=room_name):
            return TableOf("topics", room_name)
    return None


def effect_on(subject: object, room: str, *, damaged: bool) -> str:
    """Describe to the operator the effect of a failure to write *subject* or *room*.

    The file is *damaged*; otherwise the disk is full or fails.
    """
    if room:
        return f"The journal cannot store messages of {room}"
    if isinstance(subject, NoncesOf):
        what = "nonces cannot be written, after a restart a client may send a message twice"
    elif isinstance(subject, TableOf):
        what = f"{subject.table} cannot be written, changes to them are refused"
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
    """Write *jobs* in one transaction; raises one of `SQLITE_ERRORS` if nothing was written.

    *clock* is the current time of the file's clock.

    The subjects of jobs that fail because of a damaged page are added to *refused*, with the
    reason.  The rest then takes several transactions, because SQLite does not commit one that has
    read a damaged page, even after a rollback to a savepoint.  A message is stored even if its
    nonce cannot be; until the server restarts, the nonces of its client are only in memory.
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
    # A message must not be stored without its session, nor a nonce without its message.
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
    """Write *parts* in as few transactions as possible; return whether any was written.

    A failing transaction is split in halves until the part that needs the damaged page is alone.
    Once anything was written (no *may_raise*), other errors also refuse parts, because the caller
    cannot retry them together with parts that are written already.
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
        case AccountJob():
            write_account(rows.connection, job.name, job.record)
        case TopicJob():
            write_topic(rows.connection, job.room, job.topic)


def _write_nonces(rows: Rows, job: Job | SessionJob) -> None:
    if isinstance(job, SaidJob) and job.nonce_count:
        client = job.said.client
        if client not in rows.unkept_nonces:
            id_ = client, job.said.epoch, job.said.first
            rows.use_nonces(*id_, job.nonces, job.nonce_count, job.checks)
