"""The pure modules import nothing that could wait, tell the time or roll dice."""

import ast
import re
from pathlib import Path

import pytest

import multichat

pytestmark = pytest.mark.unit

PURE = (
    "protocol.address",
    "server.bans",
    "protocol.commands",
    "client.comeback",
    "terminal.completion",
    "server.config",
    "client.conversation",
    "errors",
    "net.fair_share",
    "protocol.framing",
    "client.negotiation",
    "protocol.ids",
    "protocol.json_lines",
    "server.limits",
    "terminal.render",
    "protocol.lookalikes",
    "terminal.mention",
    "protocol.messages",
    "protocol.names",
    "server.origin",
    "client.unacknowledged",
    "server.password_attempts",
    "protocol.auth",
    "server.presence",
    "protocol.telnet",
    "protocol.codecs",
    "terminal.wrap",
)
ALLOWED = {
    "collections",
    "collections.abc",
    "confusable_homoglyphs.categories",  # tables of Unicode
    "confusable_homoglyphs.confusables",
    "contextlib",
    "dataclasses",
    "datetime",
    "enum",
    "functools",
    "heapq",
    "ipaddress",
    "itertools",
    "math",
    "msgspec",
    "re",
    "typing",
    "unicodedata",
    *(f"multichat.{name}" for name in PURE),
}

PACKAGE = Path(multichat.__file__).parent


TESTS = Path(__file__).parent


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            names.add(node.module)
    return names


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_stay_pure(module: str) -> None:
    assert imported(PACKAGE / f"{module.replace('.', '/')}.py") <= ALLOWED


def test_the_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    module = tmp_path / "impure.py"
    module.write_text("def f():\n    from time import monotonic\n", "utf-8")
    assert imported(module) == {"time"}


def test_only_the_command_line_knows_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("main.py", "config.py", "serve.py", "process.py"):
            assert "typer" not in imported(path), path.name


def test_modules_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 600, path.name


def test_no_test_module_imports_from_another_one() -> None:
    for path in TESTS.rglob("*.py"):
        modules: list[str] = []
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                modules += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for module in modules:
            for part in module.split("."):
                assert not re.match(r"test_|conftest$", part), f"{path} imports {module}"
