"""A user's program that uses every public name passes `mypy --strict`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import multichat

PROGRAM = Path(__file__).with_name("user_program.py")


@pytest.mark.unit
def test_the_program_uses_every_public_name() -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(PROGRAM.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "multichat"
    }
    assert used == set(multichat.__all__)


@pytest.mark.process
def test_the_program_is_typed_strictly(tmp_path: Path) -> None:
    """Run outside of the project, without its configuration."""
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_bytes(PROGRAM.read_bytes())
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--warn-unreachable", program.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
