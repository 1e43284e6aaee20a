"""The queue of writes to a SQLite journal.

Jobs are queued in the order of the calls.  Of each session only the newest state is queued, and
every transaction writes the changed sessions, so a message is never stored without its session.
"""

from collections.abc import Collection
from itertools import islice

from multichat.journal.sqlite.jobs import Job, SaidJob, SessionJob, subject_of

__all__ = ["JobQueue", "job_bytes"]

# The memory of a job besides its text; in the file it is less.
_JOB_BYTES = 300

# The most sessions that wait to be written, and to be deleted: as many as a server has in memory.
_MAX_SESSIONS = 20_000


def job_bytes(job: Job) -> int:
    """Return the approximate memory of *job* in bytes."""
    return job.size + _JOB_BYTES if isinstance(job, SaidJob) else _JOB_BYTES


class JobQueue:
    """Jobs and changed sessions; *bytes* is the approximate memory of the jobs.

    A transaction writes about *max_bytes* of jobs, and of sessions, at most; a single job may be
    larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._jobs: list[Job] = []
        self._kept: dict[bytes, SessionJob] = {}
        self._deleted: dict[bytes, SessionJob] = {}

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self._jobs or self._kept or self._deleted)

    def put(self, job: Job) -> None:
        """Append *job*."""
        self._jobs.append(job)
        self.bytes += job_bytes(job)

    def put_session(self, job: SessionJob) -> None:
        """Replace the queued state of that session, if any."""
        for waiting in (self._kept, self._deleted):
            waiting.pop(job.digest, None)  # the oldest change is written first
        self._waiting_with(job)[job.digest] = job

    def _waiting_with(self, job: SessionJob) -> dict[bytes, SessionJob]:
        return self._deleted if job.row is None else self._kept

    def session(self, digest: bytes) -> SessionJob | None:
        """Return the queued state of that session, if any."""
        return self._kept.get(digest) or self._deleted.get(digest)

    def kept_sessions(self) -> set[bytes]:
        """Return the digests of the sessions that are about to be written."""
        return set(self._kept)

    def first(self) -> list[Job | SessionJob]:
        """Return the contents of the next transaction.

        Sessions are written before their messages, and deleted, with their nonces, after all their
        messages.
        """
        most = max(1, self._max_bytes // _JOB_BYTES)
        kept = islice(self._kept.values(), most)
        if len(self._kept) > most:
            return [*kept]
        jobs = self._first_jobs()
        if len(jobs) < len(self._jobs):
            return [*kept, *jobs]
        return [*kept, *jobs, *islice(self._deleted.values(), most)]

    def _first_jobs(self) -> list[Job]:
        if self.bytes <= self._max_bytes:
            return self._jobs
        size = 0
        for number, job in enumerate(self._jobs):
            size += job_bytes(job)
            if size > self._max_bytes:
                return self._jobs[: max(1, number)]
        return self._jobs

    def remove(self, written: list[Job | SessionJob], refused: Collection[object]) -> list[Job]:
        """Remove the result of `first`, and all jobs of the *refused* subjects; return the jobs.

        Jobs and session states that were queued meanwhile stay.
        """
        jobs: list[Job] = []
        for job in written:
            if not isinstance(job, SessionJob):
                jobs.append(job)
            elif (waiting := self._waiting_with(job)).get(job.digest) is job:
                del waiting[job.digest]
        del self._jobs[: len(jobs)]
        if refused:
            jobs += [job for job in self._jobs if subject_of(job) in refused]
            self._jobs = [job for job in self._jobs if subject_of(job) not in refused]
        self.bytes -= sum(map(job_bytes, jobs))
        return jobs

    def clear(self) -> list[Job]:
        """Remove and return all jobs; the latest changed sessions stay."""
        jobs, self._jobs, self.bytes = self._jobs, [], 0
        for waiting in (self._kept, self._deleted):
            for digest in [*waiting][:-_MAX_SESSIONS]:
                del waiting[digest]
        return jobs
