"""The child process in which atheris runs one target; instruments `multichat` during import.

    python -m tests.fuzz.guided TARGET [LIBFUZZER-OPTION-OR-FOLDER]…

Each target has its own process, because libFuzzer ends the process that it runs in.
Must not import `multichat` before atheris instruments imports.
"""

import importlib
import shlex
import sys
from typing import Any


def main() -> None:
    """Run libFuzzer; never returns."""
    _, name, *arguments = sys.argv
    # Imported by name, because atheris has no types and is often not installed.
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["multichat", "tests.fuzz.reference"]):
        targets = importlib.import_module("tests.fuzz.targets")
    # The command that libFuzzer passes to a shell to restart itself, for instance to merge.
    program = shlex.join([sys.executable, "-m", "tests.fuzz.guided", name])
    atheris.Setup([program, *arguments], targets.TARGETS[name].check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
