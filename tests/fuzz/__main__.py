"""Fuzzes the modules that parse untrusted bytes, each for its share of the time.

    python -m tests.fuzz                                   a minute for all of them
    python -m tests.fuzz --seconds 600 --target names      one of them, for longer
    python -m tests.fuzz --seconds 3600 --keep             and store what was found
    python -m tests.fuzz --target names --replay FILE      one input again, with its traceback

Guided by coverage if atheris is installed; otherwise inputs are mutated at random.
A failing input is written to a file in `.fuzz` and tried again in a new process.
The exit status is 1 if that fails, too.
"""

import argparse
import hashlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from tests.fuzz.campaign import (
    CORPUS,
    Failure,
    Report,
    can_be_guided,
    failure_of,
    fuzz_guided,
    fuzz_plainly,
    repeats,
)
from tests.fuzz.targets import TARGETS


def main(
    arguments: Sequence[str] | None = None, *, repeats: Callable[[str, Path], bool] = repeats
) -> int:
    """Run the command line; *repeats* returns whether a target fails again on a stored input."""
    options = _parse(arguments)
    if options.replay:
        return _replay(options.target, options.replay)
    names = [options.target] if options.target else [*TARGETS]
    seed = Random().getrandbits(31) if options.seed is None else options.seed
    guided = can_be_guided() and not options.plain
    _say(_engine(guided, seed))
    failed = False
    for name in names:
        share, folder = options.seconds / len(names), options.corpus / name
        if guided:
            report = fuzz_guided(name, folder, seconds=share, seed=seed, keep=options.keep)
        else:
            report = fuzz_plainly(name, folder, seconds=share, random=Random(seed))
        _say(_summary(name, report))
        if report.failure:
            path = _store(name, report.failure, options.crashes)
            _say(_account(name, report.failure, path))
            if path is None or repeats(name, path):
                failed = True
            else:
                _say("it did not fail again, which is no failure: see how it could")
    return int(failed)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60, help="for all targets (60)")
    parser.add_argument("--target", choices=[*TARGETS], metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder of folders")
    parser.add_argument("--crashes", type=Path, default=Path(".fuzz"), help="for what fails")
    parser.add_argument("--keep", action="store_true", help="store what is found in the corpus")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--seed", type=int, help="to do the same again")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="only this input of a target")
    options = parser.parse_args(arguments)
    if options.replay and not options.target:
        parser.error("--replay needs --target")
    if options.keep and (options.plain or not can_be_guided()):
        parser.error("--keep needs atheris: only coverage tells what is worth keeping")
    return options


def _replay(name: str, path: Path) -> int:
    error = failure_of(TARGETS[name], path.read_bytes())
    if error is None:
        _say(f"{name}: {path} is fine")
        return 0
    sys.excepthook(type(error), error, error.__traceback__)
    return 1


def _engine(guided: bool, seed: int) -> str:
    if guided:
        version = importlib.metadata.version("atheris")
        return f"guided by coverage (atheris {version}), seed {seed}"
    return f"plain mutations (no atheris), seed {seed}"


def _summary(name: str, report: Report) -> str:
    parts = [
        f"{report.executions:,} executions in {report.seconds:.1f} s",
        f"{report.corpus} in the corpus",
    ]
    if report.coverage:
        before, after = report.coverage
        parts.append(f"coverage {before} to {after}, {report.found} new inputs")
    if report.kept:
        parts.append(f"{report.kept} kept")
    if report.failure:
        parts.append("FAILED")
    return f"{name}: {', '.join(parts)}"


def _store(name: str, failure: Failure, folder: Path) -> Path | None:
    """Write a failing input to a file; return its path, or None without an input."""
    if failure.data is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", "ascii")
    path = folder / f"{name}-{hashlib.sha1(failure.data).hexdigest()[:10]}"
    path.write_bytes(failure.data)
    return path


def _account(name: str, failure: Failure, path: Path | None) -> str:
    """Describe a failure and how to replay it."""
    if path is None:
        return failure.why
    return (
        f"{failure.why}\n"
        f"input: {failure.data!r}\n"
        f"replay it: python -m tests.fuzz --target {name} --replay {path}"
    )


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command


if __name__ == "__main__":
    sys.exit(main())
