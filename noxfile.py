"""The checks of this project.

nox -l             list them
nox                the README's test command: lint, types, fast tests, install, docs, site
nox -s full        what CI runs besides: other Pythons, coverage, stress and random tests
nox -s lint types  single ones, by name

Sessions run in the environment in which nox itself is installed, which is prepared once per run.
Only other Pythons, the built wheel and the benchmark have environments of their own.

Arguments after `--` are passed to the session's program:

nox -s tests -- tests/protocol/test_framing.py
nox -s sim -- --seeds 10000
nox -s fuzz -- --seconds 3600
nox -s soak -- --minutes 10
nox -s docs -- --write
nox -s bench -- --quick
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["environment", "lint", "types", "tests", "install", "docs", "site"]

FULL = ["search", "sim", "fuzz", "soak", "stress"]

PYPROJECT = nox.project.load_toml("pyproject.toml")

# The programs that the tests run, and their Debian packages.
PROGRAMS = dict(map(str.split, Path(".ci/programs").read_text("utf-8").splitlines()))

# Two workers for each processor, because many tests wait for processes.
WORKERS = min(2 * (os.cpu_count() or 1), 8)
IN_PARALLEL = ("--numprocesses", str(WORKERS))
FAST_TIERS = "unit or process"


def requirements(group: str) -> tuple[str, ...]:
    """Read a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, group)


@cache
def _prepare() -> None:
    """Install the project and all development tools into the environment that nox runs in."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--editable", ".", *requirements("dev")], check=True)


def run(session: nox.Session, module: str, *arguments: str) -> None:
    """Run a Python module in the environment that nox runs in."""
    _prepare()
    session.run(sys.executable, "-m", module, *arguments)


@nox.session
def environment(session: nox.Session) -> None:
    """Install the project and the development tools."""
    session.log(f"into {sys.prefix}")
    _prepare()


@nox.session
def lint(session: nox.Session) -> None:
    """Style, with the rules for async code."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", "--diff", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly."""
    run(session, "mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the unit and process tests in parallel, or the named tests."""
    _check_programs(session)
    run(session, "pytest", *session.posargs or ("-m", FAST_TIERS, *IN_PARALLEL))


def _check_programs(session: nox.Session) -> None:
    missing = [f"{name} ({deb})" for name, deb in PROGRAMS.items() if not shutil.which(name)]
    if missing:
        message = f"not installed (Debian's package in brackets): {', '.join(missing)}"
        if os.environ.get("CI"):
            session.error(message)
        session.warn(f"{message}; the tests that need them are skipped")


@nox.session
def install(session: nox.Session) -> None:
    """Install the built wheel without development packages, and use it."""
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(dist), ".")
    [wheel] = dist.glob("*.whl")
    session.run(sys.executable, "-m", "venv", str(dist / "venv"))
    programs = dist / "venv" / "bin"
    session.run(str(programs / "pip"), "install", "--quiet", str(wheel))
    session.chdir(dist)  # outside of the checkout
    _talk(session, programs)


def _talk(session: nox.Session, programs: Path) -> None:
    """Run a server and a client by the specification's names."""
    log = Path("server.log")
    with log.open("wb") as output:
        server = subprocess.Popen([programs / "multi_chat_tcp_server", "0"], stdout=output)
    try:
        deadline = time.monotonic() + 60
        while "Listening" not in (text := log.read_text("utf-8")) and time.monotonic() < deadline:
            time.sleep(0.02)
        port = re.findall(r"server on port (\d+)", text)[0]
        command = [programs / "multi_chat_tcp_client", "127.0.0.1", port]
        subprocess.run([*map(str, command)], input=b"Hello everyone!\n", check=True, timeout=60)
    finally:
        server.send_signal(signal.SIGINT)
        status = server.wait(60)
    text = log.read_text("utf-8")
    session.log(text)
    if status or not re.search(r"\[RX\] \[Client 1\] Hello everyone!\n", text):
        session.error("the installed commands did not talk")


@nox.session
def docs(session: nox.Session) -> None:
    """Compare the command reference with `--help`; the tests check the other pages."""
    _prepare()
    session.run(sys.executable, "docs/make_command_line.py", *session.posargs or ["--check"])


@nox.session
def site(session: nox.Session) -> None:
    """Build the documentation site in build/site; a warning or a broken link is an error."""
    run(session, "pip", "install", "--quiet", *requirements("docs"))
    shutil.rmtree("build/site", ignore_errors=True)
    run(session, "sphinx", "--fail-on-warning", "--keep-going", "-q", "docs", "build/site")
    session.run(sys.executable, "docs/check_links.py", "build/site")


# --- Run by CI in addition ------------------------------------------------------------------------


@nox.session(default=False)
def full(session: nox.Session) -> None:
    """Run everything that the README's test command does not."""
    for name in ("other_pythons" if _other_pythons() else "coverage", *FULL):
        session.notify(name)


def _other_pythons() -> list[str]:
    """Return every other CPython from 3.11 on that is installed and runs."""
    minor_versions = range(11, 30)
    found: dict[tuple[int, ...], str] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python3.{minor}") for minor in minor_versions]
    candidates += [str(path) for path in sorted(pyenv.glob("versions/3.*/bin/python"))]
    for python in filter(None, candidates):
        code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
        probe = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if probe.returncode == 0:  # pyenv also has commands for versions that are not installed
            version = tuple(map(int, probe.stdout.split()))
            if version >= (3, 11):
                found.setdefault(version, python)
    found.pop(sys.version_info[:2], None)
    return [found[version] for version in sorted(found)]


@nox.session(default=False)
def other_pythons(session: nox.Session) -> None:
    """Run the unit tests on every other Python, on the newest with coverage."""
    pythons = _other_pythons()
    for python in pythons:
        folder = Path(session.create_tmp()).resolve() / Path(python).name
        session.run(python, "-m", "venv", "--clear", str(folder), external=True)
        own = str(folder / "bin" / "python")
        session.run(own, "-m", "pip", "install", "-q", "-e", ".", *requirements("test"))
        if python == pythons[-1]:
            # Line coverage, native from Python 3.12 on; branch coverage takes twice as long.
            _measure_coverage(session, own, "unit", env={"COVERAGE_CORE": "sysmon"})
        else:
            session.run(own, "-m", "pytest", "-m", "unit", *IN_PARALLEL)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Run the unit and process tests with branch coverage, and print it."""
    _prepare()
    _measure_coverage(session, sys.executable, FAST_TIERS, "--branch")


def _measure_coverage(
    session: nox.Session, python: str, tiers: str, *options: str, env: dict[str, str] | None = None
) -> None:
    session.run(python, "-m", "coverage", "erase")
    pytest = "-m", "pytest", "-m", tiers, *IN_PARALLEL
    session.run(python, "-m", "coverage", "run", *options, *pytest, env=env)
    session.run(python, "-m", "coverage", "combine", "--quiet")
    session.run(python, "-m", "coverage", "report")


@nox.session(default=False)
def stress(session: nox.Session) -> None:
    """Run kills, soak and long simulations, then the tests that compare rates, by themselves."""
    _check_programs(session)
    if session.posargs:
        run(session, "pytest", "-m", "stress", *session.posargs)
        return
    alone = ("tests/test_attacks.py", "tests/net/test_stalled_peers.py")
    run(session, "pytest", "-m", "stress", *(f"--ignore={each}" for each in alone), *IN_PARALLEL)
    run(session, "pytest", "-m", "stress", *alone)


@nox.session(default=False)
def search(session: nox.Session) -> None:
    """Try the properties with random inputs; fail if a failure is reproducible."""
    properties = (
        "pytest",
        "-o",
        f"cache_dir={session.create_tmp()}",
        "-m",
        "hypothesis",
        "--hypothesis-profile",
        "random",
    )
    try:
        run(session, *properties, *IN_PARALLEL, "--cache-clear", *session.posargs)
    except CommandFailed:
        session.log("what failed is tried again with the same inputs")
        run(session, *properties, "--last-failed")


@nox.session(default=False)
def sim(session: nox.Session) -> None:
    """Simulate a server with hundreds of clients and faults, one schedule for each seed."""
    run(session, "tests.simulation", *session.posargs or ["--seeds", "1000"])


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Feed hostile bytes to all parsers, guided by coverage if possible."""
    run(session, "pip", "install", "--quiet", *requirements("fuzz"))
    run(session, "tests.fuzz", *session.posargs or ["--seconds", "60"])


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Run clients that connect, talk, stall and leave, and check the server for leaks."""
    run(session, "tests.soak", *session.posargs or ["--minutes", "1"])


# --- Manual: takes long, and needs a quiet machine ------------------------------------------------


@nox.session(default=False, venv_backend="venv")
def bench(session: nox.Session) -> None:
    """Measure multichat and its alternatives, or count instructions."""
    session.install(".", *requirements("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)
    if "--quick" in session.posargs:
        session.run("python", "-m", "pytest", "-q", "benchmarks/micro")
