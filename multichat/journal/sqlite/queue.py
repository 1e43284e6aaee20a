"""What waits to be written into a SQLite journal.

Jobs wait in the order of the calls.  Of a session only its newest state waits, and each transaction
writes the sessions that have changed: so a message is never in the file without its session.
"""

from collections.abc import Collection
from itertools import islice

from multichat.journal.sqlite.jobs import Job, SaidJob, SessionJob, subject_of

__all__ = ["JobQueue", "job_bytes"]

# In memory, beside the text of a message; in the file it is less.
_JOB_BYTES = 300

# At most so many sessions wait to be written again, and as many to be deleted: as many as a server
# has in memory.
_MAX_SESSIONS = 20_000


def job_bytes(job: Job) -> int:
    """Return how much memory *job* takes, about."""
    return job.size + _JOB_BYTES if isinstance(job, SaidJob) else _JOB_BYTES


class JobQueue:
    """Jobs and changed sessions; *bytes* is how much memory the jobs take, about.

    A transaction writes no more than *max_bytes* of jobs, and of sessions, about; one job may be
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
        """Replace what waits of that session, if anything does."""
        for waiting in (self._kept, self._deleted):
            waiting.pop(job.digest, None)  # the oldest change is written first
        self._waiting_with(job)[job.digest] = job

    def _waiting_with(self, job: SessionJob) -> dict[bytes, SessionJob]:
        return self._deleted if job.row is None else self._kept

    def session(self, digest: bytes) -> SessionJob | None:
        """Return what waits of that session."""
        return self._kept.get(digest) or self._deleted.get(digest)

    def kept_sessions(self) -> set[bytes]:
        """Return the digests of the sessions that are about to be written."""
        return set(self._kept)

    def first(self) -> list[Job | SessionJob]:
        """Return what the next transaction writes.

        Sessions come before what was said through them, and are deleted, with their nonces, after
        all that was said through them is written.
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
        """Remove what `first` returned, and all jobs about the *refused* subjects; return the jobs.

        What has come meanwhile stays, also a newer state of a session.
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
        """Remove all jobs and return them; the sessions that changed last stay."""
        jobs, self._jobs, self.bytes = self._jobs, [], 0
        for waiting in (self._kept, self._deleted):
            for digest in [*waiting][:-_MAX_SESSIONS]:
                del waiting[digest]
        return jobs
