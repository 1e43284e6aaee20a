"""What CI runs: `nox` alone runs all of it.

nox -s lint      style
nox -s types     mypy --strict
nox -s tests     the tests on every Python from 3.11 on that is here, on one with coverage
nox -s install   the built wheel alone, in an environment of its own, doing its job
nox -s docs      the command reference and the documents' own tests
nox -s sim       500 simulated schedules of a whole server with its clients and faults
nox -s fuzz      a minute of hostile bytes for everything that reads them
nox -s soak      two minutes in which 500 clients come, talk, stall and go

Longer: nox -s sim -- --seeds 10000, nox -s fuzz -- --seconds 3600, nox -s soak -- --minutes 10

By hand, because it takes long and wants a quiet machine:

nox -s bench     multichat beside its peers, about 40 minutes: docs/performance.md
nox -s bench -- --quick     instructions for each piece of work, beside the previous commit's
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests", "install", "docs", "sim", "fuzz", "soak"]
nox.options.error_on_missing_interpreters = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
PROGRAMS = {"nc": "netcat-openbsd", "ncat": "ncat", "tmux": "tmux", "cc": "gcc"}


def pythons() -> list[str]:
    """Every CPython from 3.11 on that is here and runs, one for each version."""
    minor_versions = range(11, 30)
    found: dict[tuple[int, ...], str] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python3.{minor}") for minor in minor_versions]
    candidates += [str(path) for path in sorted(pyenv.glob("versions/3.*/bin/python"))]
    for python in [sys.executable, *filter(None, candidates)]:
        code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
        probe = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if probe.returncode == 0:  # a shim may stand for nothing
            version = tuple(map(int, probe.stdout.split()))
            if version >= (3, 11):
                found.setdefault(version, python)
    return [found[version] for version in sorted(found)]


def requirements(*groups: str) -> tuple[str, ...]:
    """Read a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, *groups)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, with the rules for async code."""
    session.install(*requirements("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", "--diff", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly."""
    session.install("-e", ".", *requirements("types", "test", "bench"), "nox")
    session.run("mypy")


@nox.session(python=pythons())
def tests(session: nox.Session) -> None:
    """All tests, on the first Python with the branch coverage, which takes twice the time."""
    missing = [
        f"{name} ({package})" for name, package in PROGRAMS.items() if not shutil.which(name)
    ]
    if missing:
        message = f"not installed (Debian's package in brackets): {', '.join(missing)}"
        if os.environ.get("CI"):
            session.error(message)
        session.warn(f"{message}; the tests that need them are skipped")
    session.install("-e", ".", *requirements("test"))
    if session.python != pythons()[0]:
        session.run("pytest", *session.posargs)
        return
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def install(session: nox.Session) -> None:
    """Install the built wheel alone, without development packages, and run its main job."""
    session.install("build")
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(dist), silent=True)
    [wheel] = dist.glob("*.whl")
    room = dist / "venv"
    session.run("python", "-m", "venv", str(room))
    session.run(str(room / "bin" / "pip"), "install", "--quiet", str(wheel), external=True)
    session.chdir(dist)  # nothing of the checkout is in reach
    _talk(session, room / "bin")


def _talk(session: nox.Session, bin_: Path) -> None:
    """Have a server and a client talk, by the names that the specification gives them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    log = Path("server.log")
    with log.open("wb") as output:
        server = subprocess.Popen([bin_ / "multi_chat_tcp_server", port], stdout=output)
    try:
        deadline = time.monotonic() + 30
        while "Listening" not in log.read_text("utf-8") and time.monotonic() < deadline:
            time.sleep(0.02)
        command = [bin_ / "multi_chat_tcp_client", "127.0.0.1", port]
        subprocess.run([*map(str, command)], input=b"Hello everyone!\n", check=True, timeout=30)
    finally:
        server.send_signal(signal.SIGINT)
        status = server.wait(30)
    text = log.read_text("utf-8")
    session.log(text)
    if status or not re.search(r"\[RX\] \[Client 1\] Hello everyone!\n", text):
        session.error("the installed commands did not talk")


@nox.session
def docs(session: nox.Session) -> None:
    """Check that the command reference is what `--help` says and the examples are true."""
    session.install("-e", ".", *requirements("test"))
    session.run("python", "docs/make_commands.py", *session.posargs or ["--check"])
    session.run("pytest", "-q", "tests/test_docs.py", "tests/test_examples.py")


@nox.session
def sim(session: nox.Session) -> None:
    """Simulate a server with hundreds of clients and faults, one schedule for each seed."""
    session.install("-e", ".", *requirements("test"))
    session.run("python", "-m", "tests.simulation", *session.posargs or ["--seeds", "500"])


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feed hostile bytes to everything that reads them, guided by coverage where it can."""
    session.install("-e", ".", *requirements("fuzz"))
    session.run("python", "-m", "tests.fuzz", *session.posargs or ["--seconds", "60"])


@nox.session
def soak(session: nox.Session) -> None:
    """Have clients come, talk, stall and go, and look at what the server keeps of them."""
    session.install("-e", ".", *requirements("test"))
    session.run("python", "-m", "tests.soak", *session.posargs or ["--minutes", "2"])


@nox.session
def bench(session: nox.Session) -> None:
    """Measure multichat side by side with what a user would pick instead, or count instructions."""
    session.install(".", *requirements("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)
    if "--quick" in session.posargs:
        session.run("python", "-m", "pytest", "-q", "benchmarks/micro")
