"""A quick benchmark for every commit: counts instructions now and at another revision.

Instruction counts, unlike times, are reproducible on a busy machine; valgrind counts them, because
virtual machines seldom have the counters that perf reads.  They include neither the kernel nor
cache misses, so an optimization must also be measured with the other benchmarks.

Each scenario is run a few times and many times, in separate processes, and the difference is
divided by the number of runs, so that the start of the interpreter cancels out.  All runs use the
same interpreter, dependencies and current scenarios; only the `multichat` package differs.

`python -m benchmarks.quick [--against REV]` exits with status 0, with 1 if a scenario exceeds
`WORST_RATIO` or fails, and with 2 if it cannot count or compare.
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

# Ten counts of the same code differed by at most 0.2 %, even beside a busy loop.  The rest is a
# margin for the reasonable cost of a feature, because a check that always warns is ignored.
WORST_RATIO = 1.05

# More than ten times the time of the slowest scenario.
CHILD_SECONDS = 120

VALGRIND = (
    # The fastest tool that reports a total: callgrind takes 1.6 times as long, lackey 5 times.
    "--tool=cachegrind",
    "--cache-sim=no",
    "--cachegrind-out-file=/dev/null",
    # One thread runs at a time.  By default the log's two threads race for that, which costs a
    # varying number of instructions; fair scheduling makes counts ten times more reproducible.
    "--fair-sched=yes",
)
# (Valgrind's memory layout is the same in each run, so there is no ASLR to disable.)

_TOTAL = re.compile(r"I +refs: +([0-9,]+)")


class CannotCompare(Exception):
    """Valgrind or the revision is missing; the message is for people."""


class ScenarioFailed(Exception):
    """A scenario failed; the message is its last line."""


Outcome: TypeAlias = float | ScenarioFailed
Counts: TypeAlias = dict[str, tuple[Outcome, Outcome]]  # by scenario: now, and at the revision


def run(against: str | None) -> int:
    """Count all scenarios in the work tree and at revision *against*; print a table.

    The default revision is HEAD if the work tree's `multichat` differs from it, otherwise HEAD~1.
    Returns the exit status.  A scenario that cannot run at the revision, because it uses something
    new, is not a failure.  Writes only into a temporary folder, which is removed at the end.
    """
    try:
        valgrind = _valgrind()
        with TemporaryDirectory(prefix="multichat-quick-") as folder:
            # Two identical trees, with names of equal length, so that only the code differs.
            now, then = Path(folder, "now"), Path(folder, "rev")
            revision = _unpack(against or _default_revision(), then)
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "multichat", now / "multichat", ignore=ignore)
            for tree in (now, then):
                (tree / "benchmarks").mkdir()
                for name in ("__init__.py", "scenarios.py"):
                    shutil.copy(ROOT / "benchmarks" / name, tree / "benchmarks")
                compileall.compile_dir(
                    tree, quiet=2
                )  # so that the first run does not count compiling
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
    # An archive instead of a worktree, which would leave data in .git after a `kill -9`.
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
    # In parallel, which does not affect instruction counts.
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
    # First in the path, before an installed multichat; the child verifies this.
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
    """Return the last line with text; the traceback of a group ends with a rule."""
    lines = [line.strip(" |+-") for line in stderr.decode(errors="replace").splitlines()]
    return next(filter(None, reversed(lines)), "")


def _report(revision: str, counts: Counts) -> int:
    """Print the table, and the reasons for missing figures; return the exit status."""
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
    # So that the temporary folder is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(run(parser.parse_args().against))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
