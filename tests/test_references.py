"""Modules, classes and attributes that docstrings, comments and documents name exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "multichat"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PAGES = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *ROOT.glob("*.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))

# Names on the wire that look like modules.
SUBPROTOCOLS = {"multichat.lines"}

# Of systemd, in deploy/.
UNITS = {path.name for path in (ROOT / "deploy").glob("multichat.*")}


def classes() -> dict[str, tuple[set[str], set[str]]]:
    """Return the attributes and the bases of each class of the package."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                attributes, bases = found.setdefault(node.name, (set(), set()))
                attributes.update(attributes_of(node))
                bases.update(ast.unparse(base).rpartition(".")[2] for base in node.bases)
    return found


def attributes_of(defined: ast.ClassDef) -> Iterator[str]:
    for node in defined.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Assign() | ast.AnnAssign():
                yield from (each.id for each in ast.walk(node) if isinstance(each, ast.Name))
    for each in ast.walk(defined):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
            yield each.attr


CLASSES = classes()


def has(name: str, attribute: str) -> bool:
    """Return whether the class *name*, or a base of it, has *attribute*; true for others."""
    if name not in CLASSES:
        return True
    attributes, bases = CLASSES[name]
    return attribute in attributes or any(has(base, attribute) for base in bases)


def is_module_or_name(dotted: str) -> bool:
    """Return whether *dotted*, below `multichat`, is a module, or a name in one."""
    path = PACKAGE.joinpath(*dotted.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module, _, name = dotted.rpartition(".")
    if name in CLASSES.get(module.rpartition(".")[2], (set(),))[0]:
        return is_module_or_name(module)
    path = PACKAGE.joinpath(*filter(None, module.split(".")))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return source.is_file() and re.search(rf"\b{name}\b", source.read_text("utf-8")) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_docstrings_and_documents_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    modules = set(re.findall(r"`(multichat\.[\w.]+)`", text)) - SUBPROTOCOLS - UNITS
    attributes = re.findall(r"`(?:[a-z]\w*\.)*([A-Z]\w+)\.(\w+)(?:\(\))?`", text)
    missing = [each for each in modules if not is_module_or_name(each.removeprefix("multichat."))]
    missing += [f"{owner}.{name}" for owner, name in attributes if not has(owner, name)]
    assert missing == []


def test_names_that_do_not_exist_are_found() -> None:
    assert not is_module_or_name("terminal.status_line")
    assert not is_module_or_name("server.accounts.Accounts.no_method")
    assert is_module_or_name("server.accounts.Accounts.log_in")
    assert is_module_or_name("client.connect.open_chat")
    assert has("LineChat", "say")  # of its base
    assert not has("LineChat", "says")
