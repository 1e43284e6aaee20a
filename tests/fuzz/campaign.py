"""Fuzzes one target for a time with either engine, and reports the result.

Owns the corpus on disk, the child process of the guided engine, the parsing of libFuzzer's output,
and the definition of a failure: any exception of a target, or taking far too long.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from random import Random

from tests.fuzz.mutation import MAX_INPUT_BYTES, mutants, shrunk
from tests.fuzz.targets import TARGETS, Target

__all__ = [
    "CORPUS",
    "SLOW_SECONDS",
    "Failure",
    "Report",
    "TookTooLong",
    "can_be_guided",
    "failure_of",
    "fuzz_guided",
    "fuzz_plainly",
    "read_corpus",
    "repeats",
]

CORPUS = Path(__file__).parent / "corpus"

_ROOT = CORPUS.parents[2]

# An input takes about a millisecond.  Five seconds of CPU time, whatever the load of the machine,
# indicate quadratic time.
SLOW_SECONDS = 5.0

# For importing, reading the corpus, and the last input.
_CHILD_SECONDS = 300


class TookTooLong(AssertionError):
    """A target took far too long."""


@dataclass(frozen=True)
class Failure:
    """A failing input and the reason; *data* is None if the engine itself failed."""

    data: bytes | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result for one target; *coverage* is libFuzzer's, before and after."""

    executions: int
    seconds: float
    corpus: int
    coverage: tuple[int, int] | None = None
    found: int = 0
    kept: int = 0
    failure: Failure | None = None


def can_be_guided() -> bool:
    """Return whether atheris is installed."""
    return find_spec("atheris") is not None


def read_corpus(folder: Path) -> dict[str, bytes]:
    """Return the inputs of one target by file name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


def failure_of(
    target: Target, data: bytes, *, slow_seconds: float = SLOW_SECONDS
) -> Exception | None:
    """Try one input; return the failure, if any."""
    began = time.process_time()
    try:
        target.check(data)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
        return error
    seconds = time.process_time() - began
    if seconds < slow_seconds:
        return None
    return TookTooLong(f"{len(data)} bytes took {seconds:.1f} s")


def fuzz_plainly(
    name: str,
    folder: Path,
    *,
    seconds: float,
    random: Random,
    max_executions: float = float("inf"),
    slow_seconds: float = SLOW_SECONDS,
) -> Report:
    """Try the corpus, then random mutations of it."""
    target = TARGETS[name]
    seeds = list(read_corpus(folder).values())
    began = time.perf_counter()
    for executions, data in enumerate(chain(seeds, mutants(seeds, target.words, random)), 1):
        failure = _shrunk_failure(target, data, slow_seconds)
        took = time.perf_counter() - began
        time_is_up = executions >= max_executions or (executions > len(seeds) and took >= seconds)
        if failure or time_is_up:
            break
    return Report(executions=executions, seconds=took, corpus=len(seeds), failure=failure)


def _shrunk_failure(
    target: Target, data: bytes, slow_seconds: float = SLOW_SECONDS
) -> Failure | None:
    error = failure_of(target, data, slow_seconds=slow_seconds)
    if error is None:
        return None
    if not isinstance(error, TookTooLong):  # shrinking such an input would take very long
        kind = type(error)
        data = shrunk(data, lambda smaller: type(failure_of(target, smaller)) is kind)
        error = failure_of(target, data)
    return Failure(data, f"{type(error).__name__}: {error}")


def repeats(name: str, path: Path) -> bool:
    """Try the input in *path* again in a new process; return whether it fails."""
    command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--replay", str(path)]
    try:
        ran = subprocess.run(
            command, cwd=_ROOT, capture_output=True, timeout=_CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return ran.returncode != 0


# --- Guided by coverage ---------------------------------------------------------------------------


def fuzz_guided(name: str, folder: Path, *, seconds: float, seed: int, keep: bool) -> Report:
    """Let atheris search for inputs that reach code which the corpus does not.

    With *keep*, add the smallest set of inputs that reaches all of it to the corpus.
    """
    with tempfile.TemporaryDirectory() as scratch:
        finds, dictionary = Path(scratch, "finds"), Path(scratch, "words")
        finds.mkdir()
        dictionary.write_text(_dictionary(TARGETS[name].words), "ascii")
        folder.mkdir(parents=True, exist_ok=True)
        prefix = Path(scratch, "artifact-")
        began = time.perf_counter()
        options = (f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}")
        ran = _run_child(
            name,
            (*options, f"-dict={dictionary}", f"-artifact_prefix={prefix}", finds, folder),
            seconds,
        )
        seconds = time.perf_counter() - began
        failure = _failure_of_child(name, ran, prefix) if ran.returncode else None
        found = len(list(finds.iterdir()))
        kept = _keep(name, finds, folder) if keep and found and not failure else 0
        return Report(
            executions=_last_number(r"stat::number_of_executed_units: (\d+)", ran.stderr),
            seconds=seconds,
            corpus=len(list(folder.iterdir())),
            coverage=(
                _last_number(r"INITED +cov: (\d+)", ran.stderr),
                _last_number(r" cov: (\d+)", ran.stderr),
            ),
            found=found,
            kept=kept,
            failure=failure,
        )


def _run_child(
    name: str, arguments: Sequence[str | Path], seconds: float
) -> subprocess.CompletedProcess[str]:
    options = (
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={round(SLOW_SECONDS)}",
        "-print_final_stats=1",
    )
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", name, *options, *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + _CHILD_SECONDS,
        check=False,
    )


def _failure_of_child(name: str, ran: subprocess.CompletedProcess[str], prefix: Path) -> Failure:
    said = f"{ran.stdout}\n{ran.stderr}".strip()
    # `slow-unit` is not a failure, and may accompany one.
    artifacts = list(prefix.parent.glob(f"{prefix.name}[!s]*"))
    if not artifacts:
        return Failure(None, f"the child ended with status {ran.returncode}:\n{said}")
    data = artifacts[0].read_bytes()
    # An input that hung the child would hang this process, so only exceptions are tried again.
    if artifacts[0].name.startswith(f"{prefix.name}crash"):
        return _shrunk_failure(TARGETS[name], data) or Failure(data, f"not repeatable:\n{said}")
    return Failure(data, said)


def _keep(name: str, finds: Path, folder: Path) -> int:
    """Add the smallest inputs that reach new code to the corpus; return how many."""
    before = set(read_corpus(folder))
    _run_child(name, ("-merge=1", "-use_counters=0", folder, finds), _CHILD_SECONDS)
    new = set(read_corpus(folder)) - before
    for file in new:
        path = folder / file
        path.rename(folder / f"found-{hashlib.sha1(path.read_bytes()).hexdigest()[:10]}")
    return len(new)


def _dictionary(words: Sequence[bytes]) -> str:
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in words)
    return "".join(f'"{word}"\n' for word in escaped)


def _last_number(pattern: str, text: str) -> int:
    numbers = re.findall(pattern, text)
    return int(numbers[-1]) if numbers else 0
