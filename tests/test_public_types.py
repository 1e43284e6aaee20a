"""A user's program that uses every public name passes `mypy --strict`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import multichat
import multichat.testing
from tests.support.processes import module

PROGRAM = Path(__file__).with_name("user_program.py")


@pytest.mark.unit
def test_the_program_uses_every_public_name() -> None:
    tree = ast.parse(PROGRAM.read_text("utf-8"))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    public = {f"multichat.{name}" for name in multichat.__all__}
    public |= {f"multichat.testing.{name}" for name in multichat.testing.__all__}
    assert public - used == set()


@pytest.mark.process
def test_the_program_is_typed_strictly(tmp_path: Path) -> None:
    """Run outside of the project, without its configuration."""
    module("mypy")
    program = tmp_path / "program.py"
    program.write_bytes(PROGRAM.read_bytes())
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--warn-unreachable", program.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
