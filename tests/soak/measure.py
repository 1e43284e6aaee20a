"""Samples the resources of a process once a second, and detects growth."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import trio

# The most growth between the medians of two windows.
GROWTH = 0.05

# Memory rises until every situation has occurred, and then stays: in a run of ten minutes it was
# 39 MiB after ten seconds, 53 after a minute, 55 after a minute and a half, 56 at the end.
_WARM_UP_SECONDS = 60

# The number of connecting or leaving clients varies by chance by this much.
_MORE_ON_THEIR_WAY = 60


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample."""

    seconds: float
    clients: int
    open_files: int
    threads: int
    memory_bytes: int


@dataclass
class Samples:
    """All samples in order, and the number of open files without clients.

    The first quarter is the warm-up, or the first minute if that is longer, but at most half of the
    samples.  The rest is divided into three windows, and the median of the last is compared with
    that of the first, which is independent of single samples and momentary stalls.  Growth of less
    than a twentieth is noise.
    """

    open_files_before: int
    open_files_after: int = 0
    all: list[Sample] = field(default_factory=list)

    def _warm_up(self) -> int:
        """Return the number of samples of the warm-up."""
        half = len(self.all) // 2
        minute = sum(each.seconds < _WARM_UP_SECONDS for each in self.all[:half])
        return max(len(self.all) // 4, minute)

    def windows(self) -> list[list[Sample]]:
        """Return the three windows."""
        rest = self.all[self._warm_up() :]
        third = len(rest) // 3
        return [rest[:third], rest[third : 2 * third], rest[2 * third :]]

    def growth(self) -> float:
        """Return the relative growth of memory from the first window to the last."""
        first, _, last = (median(each.memory_bytes for each in w) for w in self.windows())
        return last / first - 1

    def table(self) -> list[str]:
        """Return a readable table, as lines."""
        names = ["warm-up", "first", "middle", "last"]
        windows = [self.all[: self._warm_up()], *self.windows()]
        lines = [f"{'window':8} {'clients':>8} {'files':>7} {'threads':>8} {'MiB':>7} {'most':>7}"]
        lines += [
            f"{name:8} {median(s.clients for s in w):8.0f} {median(s.open_files for s in w):7.0f} "
            f"{max(s.threads for s in w):8} {median(s.memory_bytes for s in w) / 2**20:7.1f} "
            f"{max(s.memory_bytes for s in w) / 2**20:7.1f}"
            for name, w in zip(names, windows, strict=True)
        ]
        return [
            *lines,
            f"memory: {self.growth():+.1%} from the first window to the last",
            f"open files: {self.open_files_before} before, {self.open_files_after} after",
        ]

    def troubles(self) -> list[str]:
        """Return the problems that were found."""
        found = []
        if self.growth() > GROWTH:
            found.append(f"memory grew by {self.growth():.1%}; {GROWTH:.0%} are allowed")
        if self.open_files_after > self.open_files_before:
            found.append(
                f"{self.open_files_after} open files when all had left, "
                f"{self.open_files_before} before they came"
            )
        # Only the log has a thread, and one or two more may be accessing files.
        first, _, last = self.windows()
        if max(s.threads for s in last) > max(s.threads for s in first):
            found.append("more threads in the last window than in the first")
        # Leaving clients, whose server may be waiting for a slow client.
        early, late = (median(s.open_files - s.clients for s in w) for w in (first, last))
        if late > early + max(_MORE_ON_THEIR_WAY, GROWTH * early):
            found.append(f"{late:.0f} more files than clients in the end, {early:.0f} at first")
        return found


class Watch:
    """Takes samples of the process *pid*; *clients* says how many are connected."""

    def __init__(self, pid: int, clients: Callable[[], int]) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._clients = clients
        self.samples = Samples(self.open_files())

    def open_files(self) -> int:
        """Return the current number of open files."""
        return len(list((self._proc / "fd").iterdir()))

    async def run(self) -> None:
        """Take a sample each second until cancelled."""
        started = trio.current_time()
        while True:
            fields = dict(
                line.split(":", 1)
                for line in (self._proc / "status").read_text("ascii", "replace").splitlines()
            )
            sample = Sample(
                trio.current_time() - started,
                self._clients(),
                self.open_files(),
                int(fields["Threads"]),
                int(fields["VmRSS"].split()[0]) * 1024,
            )
            self.samples.all.append(sample)
            await trio.sleep(1)
