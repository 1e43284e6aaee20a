"""Packages import only lower layers; pure modules import nothing that blocks or reads a clock."""

import ast
import re
from pathlib import Path

import pytest

import multichat

pytestmark = pytest.mark.unit

# From bottom to top: a module may import its own package and lower layers.
LAYERS = (
    ("errors",),
    ("protocol",),
    ("log_format",),
    ("files", "log", "signals"),
    ("stdio",),
    ("net",),
    ("web",),
    ("journal",),
    ("backend",),
    ("client",),
    ("cluster",),  # needs the extra `cluster`, and dials as a client does
    ("server",),  # a bot in a server is a client
    ("terminal", "testing"),
    ("cli",),
    ("__main__",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# All their modules are pure; the others say that they are in the first paragraph of the docstring.
PURE_PACKAGES = ("errors", "protocol", "web")
# Reads the clock, for the times of messages.
IMPURE = ("protocol.timestamps",)
ALLOWED = {
    "base64",
    "binascii",
    "bisect",
    "collections",
    "collections.abc",
    "confusable_homoglyphs.categories",  # tables of Unicode
    "confusable_homoglyphs.confusables",
    "contextlib",
    "dataclasses",
    "datetime",
    "difflib",
    "enum",
    "functools",
    "h11",  # HTTP without I/O
    "hashlib",
    "heapq",
    "hiredis",  # RESP without I/O
    "hmac",
    "http",
    "ipaddress",
    "itertools",
    "math",
    "msgspec",
    "operator",
    "re",
    "typing",
    "unicodedata",
    "urllib.parse",
    "wcwidth",  # tables of Unicode
    "websockets.speedups",  # the mask of frames
    "websockets.utils",
}

PACKAGE = Path(multichat.__file__).parent
TESTS = Path(__file__).parent


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def says_pure(path: Path) -> bool:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return re.search(r"\bPure\b", docstring.partition("\n\n")[0]) is not None


PURE = {name for name, path in MODULES.items() if says_pure(path)}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            names.add(node.module)
            # `from package import module`
            names |= {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if f"{node.module}.{alias.name}".removeprefix("multichat.") in MODULES
            }
    return names


def test_each_layer_imports_only_those_below() -> None:
    for name, path in MODULES.items():
        package = name.partition(".")[0]
        if name == "__init__":  # imports its exports on first use
            continue
        for module in imported(path):
            if not module.startswith("multichat."):
                continue
            other = module.split(".")[1]
            assert other == package or RANKS[other] < RANKS[package], f"{name} imports {module}"


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_stay_pure(name: str) -> None:
    allowed = ALLOWED | {f"multichat.{other}" for other in PURE}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert imported(MODULES[name]) - {f"multichat.{package}" for package in packages} <= allowed


def test_all_modules_of_pure_packages_say_so() -> None:
    for name, path in MODULES.items():
        if name.partition(".")[0] in PURE_PACKAGES and path.name != "__init__.py":
            assert (name in PURE) is not (name in IMPURE), name


def test_the_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    module = tmp_path / "impure.py"
    module.write_text("def f():\n    from time import monotonic\n", "utf-8")
    assert imported(module) == {"time"}


def test_only_the_cli_package_imports_typer() -> None:
    for name, path in MODULES.items():
        assert name.startswith("cli.") or "typer" not in imported(path), name


def test_modules_stay_small() -> None:
    for name, path in MODULES.items():
        assert len(path.read_text("utf-8").splitlines()) <= 600, name


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


def test_tests_are_in_packages_like_the_modules() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    for path in TESTS.iterdir():
        if path.is_dir() and list(path.glob("test_*.py")):
            assert path.name in packages
