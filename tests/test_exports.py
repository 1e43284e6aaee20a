"""Names are public if and only if they have no underscore and are in `__all__`."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import multichat
from multichat.cli.main import COMMANDS

pytestmark = pytest.mark.unit

PACKAGE = Path(multichat.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if not path.stem.startswith("__")
)


def source_of(name: str) -> str:
    return PACKAGE.joinpath(*name.split(".")).with_suffix(".py").read_text("utf-8")


@pytest.mark.parametrize("name", MODULES)
def test_every_exported_name_exists(name: str) -> None:
    module = importlib.import_module(f"multichat.{name}")
    for public in module.__all__:
        assert not public.startswith("_")
        assert hasattr(module, public)


@pytest.mark.parametrize("name", MODULES)
def test_all_lists_the_public_names(name: str) -> None:
    tree = ast.parse(source_of(name))
    public = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
    }
    assert public <= set(importlib.import_module(f"multichat.{name}").__all__)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_and_function_is_documented(name: str) -> None:
    module = importlib.import_module(f"multichat.{name}")
    for public in module.__all__:
        value = getattr(module, public)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue
        assert inspect.getdoc(value), f"{name}.{public} has no docstring"
        members = vars(value) if inspect.isclass(value) else {}
        for member in members:
            if inspect.isfunction(members[member]) and not member.startswith("_"):
                # An overriding method inherits the docstring.
                documented = inspect.getdoc(getattr(value, member))
                assert documented, f"{name}.{public}.{member} has no docstring"


def test_the_package_exports_what_it_says_and_nothing_else() -> None:
    assert list(multichat.__all__) == sorted(multichat.__all__)
    for name in multichat.__all__:
        value = getattr(multichat, name)
        assert getattr(multichat, name) is value
        assert name in dir(multichat)
    with pytest.raises(AttributeError, match="module 'multichat' has no attribute 'SendQueue'"):
        multichat.SendQueue  # noqa: B018


def test_type_checkers_see_the_same_exports() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    told = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("multichat.")
        for alias in node.names
    }
    assert {name for _, name in told} == set(multichat.__all__)
    for module, name in told:
        assert getattr(multichat, name) is getattr(importlib.import_module(str(module)), name)


@pytest.mark.process
def test_without_a_web_port_nothing_of_http_and_without_bots_no_client_is_imported() -> None:
    code = (
        "import sys, multichat; from multichat.server.server import Server; Server(); "
        "has_client = 'multichat.client.chat' in sys.modules; multichat.connect; "
        "sys.exit(has_client or not {'h11', 'websockets'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.process
def test_a_program_that_is_a_client_imports_no_server() -> None:
    code = (
        "import sys, multichat; multichat.connect, multichat.Said, multichat.MultichatError; "
        "sys.exit('multichat.server.server' in sys.modules or 'multichat.journal' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def modules_after(*arguments: str) -> set[str]:
    """What `multichat` with these *arguments* has imported when it ends."""
    code = (
        "import sys\n"
        "from multichat.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    print(*sys.modules, file=sys.stderr)\n"
        "    raise\n"
    )
    argv = [sys.executable, "-c", code, *arguments]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True)
    return set(shown.stderr.split())


@pytest.mark.process
def test_asking_for_help_imports_nothing_that_waits() -> None:
    modules = modules_after("--help")
    assert {f"multichat.cli.{name}" for name in COMMANDS.values()} <= modules
    assert modules.isdisjoint({"trio", "rich"})


@pytest.mark.process
@pytest.mark.parametrize("command", ["serve", "connect", "ctl"])
def test_a_command_imports_no_other(command: str) -> None:
    others = set(COMMANDS.values()) - {COMMANDS[command], "config"}  # the file, for all
    if command == "ctl":
        others -= {"account"}  # asks for a passphrase in the same way
    assert modules_after(command, "--help").isdisjoint(f"multichat.cli.{name}" for name in others)
