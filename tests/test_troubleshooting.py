"""The texts that docs/troubleshooting.md quotes are those of the program.

Each text is a literal of the package, where `…` stands for a value, or is printed by a library or
the system; then the test that has it printed is named here.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"

# Texts of trio and of systemd, and where they are seen; empty if no test has them.
PRINTED: dict[str, str] = {
    "accept returned EMFILE (Too many open files); retrying in … seconds": (
        "server/test_real_faults::test_with_64_open_files_some_clients_wait_and_the_others_are_served"
    ),
    "Result: oom-kill": "",
    "Result: watchdog": "",
    "Result: exit-code": "",
}

# Reasons that are the system's; the rest of the text is ours.
SYSTEMS_REASONS = (
    ": address already in use",
    ": connection refused",
    ": permission denied",
    ": timed out",
)


def rendered(node: ast.AST) -> str:
    """Return a literal's text, with `…` for each value; empty for anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(rendered, parts))
        case ast.FormattedValue():
            return "…"
    return ""


@cache
def literals() -> list[str]:
    """Return the texts of the package, from the longest on."""
    found = set()
    for path in (ROOT / "multichat").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        docstrings = {
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
        }  # no text of the program
        found |= {rendered(node) for node in ast.walk(tree) if id(node) not in docstrings}
    return sorted((text for text in found if len(text) > 5), key=len, reverse=True)


def pattern(text: str) -> str:
    """Return a regular expression for *text*, with a group for each `…`."""
    return "(.+)".join(map(re.escape, re.split("…+", text)))


def is_said(quoted: str) -> bool:
    """Return whether the package has *quoted* as a literal, or as one around others."""
    quoted = quoted.removeprefix("…: ").strip()
    if quoted in ("", "…"):
        return True
    for text in literals():
        if re.search(pattern(quoted), text):
            return True
        if len(text.replace("…", "")) > 7 and (values := re.fullmatch(pattern(text), quoted)):
            return all(map(is_said, values.groups()))
    parts = quoted.split("; ")
    return len(parts) > 1 and all(map(is_said, parts))


def quotes() -> Iterator[tuple[str, str]]:
    """Yield the texts in the first columns of the tables, and their sections."""
    section = ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| `"):
            for text in re.findall("`([^`]+)`", line.split(" | ")[0]):
                yield section, text


@pytest.mark.parametrize(("section", "quoted"), list(quotes()))
def test_each_quoted_text_occurs_in_the_program(section: str, quoted: str) -> None:
    for reason in SYSTEMS_REASONS:
        if quoted.endswith(reason):
            quoted = quoted.removesuffix(reason) + ": …"
    assert quoted in PRINTED or is_said(quoted), f"{section}: nothing says {quoted!r}"


def test_texts_that_nothing_says_are_found() -> None:
    assert not is_said("the certificate has run out on …")
    assert not is_said("cannot listen on …: the port is busy")
    assert not is_said("Refused …: bad weather")


def test_texts_of_others_are_printed_by_the_named_test() -> None:
    for text, where in PRINTED.items():
        assert text in PAGE.read_text("utf-8")
        if where:
            module, _, name = where.partition("::")
            source = (ROOT / "tests" / f"{module}.py").read_text("utf-8")
            body = source.partition(f"def {name}(")[2].partition("\nasync def ")[0]
            assert text.partition(" (")[0] in body
