"""The child in which atheris runs one target; `multichat` is instrumented as it is imported.

    python -m tests.fuzz.guided TARGET [LIBFUZZER-OPTION-OR-FOLDER]…

A process of its own for each target, because libFuzzer ends the one that it runs in.
Imports nothing of `multichat` before atheris looks on.
"""

import importlib
import shlex
import sys
from typing import Any


def main() -> None:
    """Fuzz until libFuzzer has had enough; never returns."""
    _, name, *arguments = sys.argv
    # By name: it has no types, and most environments in which these are checked do not have it.
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["multichat", "tests.fuzz.reference"]):
        targets = importlib.import_module("tests.fuzz.targets")
    # What libFuzzer has a shell run where it begins itself anew, as it does to merge.
    program = shlex.join([sys.executable, "-m", "tests.fuzz.guided", name])
    atheris.Setup([program, *arguments], targets.TARGETS[name].check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
