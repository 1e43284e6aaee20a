"""Checks that each row of the tables in docs/abuse.md names an existing test."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "abuse.md"

SAID, HEADING, _ = PAGE.read_text("utf-8").partition("\n## Figures\n")
ROWS = [
    line
    for line in SAID.splitlines()
    if line.startswith("|") and not re.match(r"\|[-|]+$|\| (attack|fault)", line)
]


def names_of_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in tree.body if isinstance(node, kinds)}


def test_there_are_rows() -> None:
    assert HEADING
    assert len(ROWS) > 40
    assert len(set(ROWS)) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_each_row_names_an_existing_test(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 5
    attack, happens, setting, _, test = cells
    assert attack
    assert happens
    assert setting
    for each in test.split(", "):
        named = re.fullmatch(r"`((?:\w+/)*test_\w+)::(test_\w+)`", each)
        assert named, test
        assert named[2] in names_of_tests(TESTS / f"{named[1]}.py")
