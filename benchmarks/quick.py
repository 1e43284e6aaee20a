"""The small set for every commit: how many instructions multichat takes, now and at a revision.

Instructions, because they repeat on a machine that is busy with something else, where seconds do
not; valgrind counts them, because virtual machines seldom have the counters that perf reads.  What
the kernel does, and how long memory keeps the processor waiting, is not in them: a change that
is meant to be faster needs the clock of the other benchmarks too.

Each scenario is done a few times and many times, in a process each, and what differs is divided:
the start of the interpreter is in both.  All runs of one call use the same interpreter, the same
dependencies and the scenarios as they are now; only the `multichat` package differs.

`python -m benchmarks.quick [--against REV]` exits with status 0; with 1 if a scenario got worse
than `WORST_RATIO` or does not run; with 2 if there was nothing to count with or to compare.
"""

import argparse
import compileall
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from benchmarks.scenarios import SCENARIOS, Scenario

__all__ = ["main", "run"]

ROOT = Path(__file__).resolve().parents[1]

# Ten counts of the same code stayed within 0.2 %, beside a busy loop too.  The rest is room for
# what a feature honestly costs: a check that cries at each of them is one that nobody reads.
WORST_RATIO = 1.05

# More than ten times what the slowest takes: whatever needs longer does not end.
CHILD_SECONDS = 120

VALGRIND = (
    # The quickest that tells a total: callgrind takes 1.6 times as long, lackey 5 times.
    "--tool=cachegrind",
    "--cache-sim=no",
    "--cachegrind-out-file=/dev/null",
    # One thread runs at a time.  Left alone the two of the log race for that, and how often one of
    # them has to wait costs some instructions: fairly scheduled they repeat ten times better.
    "--fair-sched=yes",
)
# (It lays out memory itself, the same in each run: there is no ASLR to switch off.)

_TOTAL = re.compile(r"I +refs: +([0-9,]+)")


class CannotCompare(Exception):
    """There is nothing to count with, or no such revision; the message is for people."""


class ScenarioFailed(Exception):
    """A scenario did not run; the message is its last word."""


Outcome: TypeAlias = float | ScenarioFailed
Counts: TypeAlias = dict[str, tuple[Outcome, Outcome]]  # by scenario: now, and at the revision


def run(against: str | None) -> int:
    """Count all scenarios in the work tree and at revision *against*; print a table.

    Without a revision it is HEAD where the work tree's `multichat` differs from it, and HEAD~1
    where it does not.  Returns the exit status.  A scenario that cannot run at the revision, for
    what it calls is new, is no failure.  Writes into a temporary folder alone, which is gone when
    it returns or raises.
    """
    try:
        valgrind = _valgrind()
        with TemporaryDirectory(prefix="multichat-quick-") as folder:
            # Two trees made alike, with names of one length: nothing but the code differs.
            now, then = Path(folder, "now"), Path(folder, "rev")
            revision = _unpack(against or _default_revision(), then)
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "multichat", now / "multichat", ignore=ignore)
            for tree in (now, then):
                (tree / "benchmarks").mkdir()
                for name in ("__init__.py", "scenarios.py"):
                    shutil.copy(ROOT / "benchmarks" / name, tree / "benchmarks")
                compileall.compile_dir(tree, quiet=2)  # or the first run would count its compiler
            return _report(revision, _count_all(valgrind, (now, then)))
    except CannotCompare as error:
        print(f"quick: {error}", file=sys.stderr)
        return 2


def _valgrind() -> str:
    if path := shutil.which("valgrind"):
        return path
    raise CannotCompare("valgrind is not installed (Debian's package: valgrind)")


def _default_revision() -> str:
    return "HEAD" if _git("status", "--porcelain", "--", "multichat") else "HEAD~1"


def _unpack(revision: str, tree: Path) -> str:
    """Put the package at *revision* into *tree*; return the short name of the commit."""
    # An archive and no worktree: there is nothing in .git to clean up after a `kill -9`.
    commit = _git("rev-parse", "--verify", "--short", f"{revision}^{{commit}}").decode().strip()
    archive = io.BytesIO(_git("archive", "--format=zip", commit, "multichat"))
    with zipfile.ZipFile(archive) as package:
        package.extractall(tree)
    return commit


def _git(*arguments: str) -> bytes:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except OSError as error:
        raise CannotCompare(str(error)) from error
    except subprocess.CalledProcessError as error:
        message = f"git {' '.join(arguments)}: {_last_line(error.stderr)}"
        raise CannotCompare(message) from error


def _count_all(valgrind: str, trees: tuple[Path, Path]) -> Counts:
    # Instructions do not mind company, and whoever waits for them minds waiting.
    pool = ThreadPoolExecutor(2)
    try:
        counts = {
            name: [pool.submit(_count_unit, valgrind, tree, name, scenario) for tree in trees]
            for name, scenario in SCENARIOS.items()
        }
        return {name: (_outcome(now), _outcome(then)) for name, (now, then) in counts.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def _outcome(count: "Future[float]") -> Outcome:
    try:
        return count.result()
    except ScenarioFailed as failure:
        return failure


def _count_unit(valgrind: str, tree: Path, name: str, scenario: Scenario) -> float:
    total = _count(valgrind, tree, name, scenario.many)
    if scenario.few:
        total -= _count(valgrind, tree, name, scenario.few)
    return total / (scenario.many - scenario.few) / scenario.units


def _count(valgrind: str, tree: Path, name: str, n: int) -> int:
    log = tree / f"{name}-{n}.log"
    command = [valgrind, *VALGRIND, f"--log-file={log}", sys.executable, "-P"]
    command += ["-m", "benchmarks.scenarios", name, str(n)]
    # The first on the path, and so before a multichat that is installed; the child makes sure.
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    try:
        subprocess.run(
            command,
            env=environment,
            cwd=tree,
            check=True,
            capture_output=True,
            timeout=CHILD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ScenarioFailed(f"did not end within {CHILD_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        reason = _last_line(error.stderr) or f"exit status {error.returncode}"
        raise ScenarioFailed(reason) from None
    if (total := _TOTAL.search(log.read_text("utf-8", "replace"))) is None:
        raise ScenarioFailed("valgrind told no total")
    return int(total[1].replace(",", ""))


def _last_line(stderr: bytes) -> str:
    """Return the last line that says something: a group's traceback ends with a rule."""
    lines = [line.strip(" |+-") for line in stderr.decode(errors="replace").splitlines()]
    return next(filter(None, reversed(lines)), "")


def _report(revision: str, counts: Counts) -> int:
    """Print the table, and why what is missing is; return the exit status."""
    status = 0
    row = "{:<16} {:<9} {:>14} {:>14} {:>7}".format
    print("instructions per unit")
    print(row("scenario", "unit", "now", revision, "ratio"))
    for name, (now, then) in counts.items():
        ratio = "–"
        if isinstance(now, ScenarioFailed):
            status = 1
        elif not isinstance(then, ScenarioFailed):
            ratio = f"{now / then:.3f}"
            if now / then > WORST_RATIO:
                ratio += " worse"
                status = 1
        print(row(name, SCENARIOS[name].unit, _encode(now), _encode(then), ratio).rstrip())
    for name, outcomes in counts.items():
        for where, outcome in zip(("now", revision), outcomes, strict=True):
            if isinstance(outcome, ScenarioFailed):
                print(f"{name}, {where}: {outcome}", file=sys.stderr)
    return status


def _encode(count: Outcome) -> str:
    if isinstance(count, ScenarioFailed):
        return "–"
    return f"{count:,.0f}" if count >= 1000 else f"{count:,.2f}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quick", description="Count instructions, now and at a revision."
    )
    parser.add_argument(
        "--against",
        metavar="REV",
        help="default: HEAD where the work tree's multichat differs from it, else HEAD~1",
    )
    # Whoever stops us politely wants the temporary folder gone too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(run(parser.parse_args().against))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
