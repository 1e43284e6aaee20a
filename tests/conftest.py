"""Configuration of the tests: tiers, a time limit, and shared fixtures."""

import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

from .support.log import LogRecorder
from .support.processes import LOOPBACK
from .support.terminals import Terminal

# Every test belongs to one of these tiers; see pyproject.toml.
TIERS = {"unit", "process", "stress"}

# A hanging test ends the run with the traceback of every thread.
TEST_SECONDS = 600

# Fixed inputs, so that the tests of a commit always have the same result; `nox -s search` tries new
# ones.  Neither has a deadline.
_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", _ANY_SPEED, derandomize=True, database=None)
settings.register_profile("random", _ANY_SPEED, max_examples=500, print_blob=True)
settings.load_profile("fixed")


_STDERR = pytest.StashKey[int]()


# Processes inherit ignored signals: a shell ignores SIGINT and SIGQUIT for background commands, and
# `nohup` ignores SIGHUP.  Handlers, even those that do nothing, are not inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


# Hundreds of commands are started, and each would compile the modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# Commands must not see the developer's settings; these variables are for the tests themselves.
for _name in list(os.environ):
    if _name.startswith("MULTICHAT_") and not _name.startswith(
        ("MULTICHAT_KILL_", "MULTICHAT_PROXY_")
    ):
        del os.environ[_name]
os.environ["MULTICHAT_CONFIG"] = os.devnull


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # before pytest captures it


@pytest.hookimpl(tryfirst=True)  # before pytest selects by `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test exactly one tier: its own, or that of its module."""
    tiers = {
        item: next((mark.name for mark in item.iter_markers() if mark.name in TIERS), None)
        for item in items
    }
    if missing := sorted({item.nodeid.split("[")[0] for item, tier in tiers.items() if not tier}):
        names = ", ".join(sorted(TIERS))
        raise pytest.UsageError(f"mark these tests with one of {names}: {' '.join(missing)}")
    for item, tier in tiers.items():
        for node in item.iter_parents():
            node.own_markers[:] = [mark for mark in node.own_markers if mark.name not in TIERS]
        item.own_markers = [mark for mark in item.own_markers if mark.name not in TIERS]
        item.add_marker(str(tier))


# Unit tests must not start processes or connect sockets.
_PROCESS_EVENTS = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.spawn",
    "socket.bind",
    "socket.connect",
    "subprocess.Popen",
}
_unit_test_did: list[str] | None = None


def _audit(event: str, _: tuple[object, ...]) -> None:
    if _unit_test_did is not None and event in _PROCESS_EVENTS:
        _unit_test_did.append(event)


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def _stays_in_its_tier(request: pytest.FixtureRequest) -> Iterator[None]:
    global _unit_test_did  # noqa: PLW0603 - an audit hook cannot be removed
    _unit_test_did = [] if request.node.get_closest_marker("unit") else None
    yield
    did, _unit_test_did = _unit_test_did, None
    assert not did, f"a unit test did {did}: mark it with `process`"


@pytest.fixture(autouse=True)
def _time_limit(pytestconfig: pytest.Config) -> Iterator[None]:
    faulthandler.dump_traceback_later(TEST_SECONDS, exit=True, file=pytestconfig.stash[_STDERR])
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def thread_clock() -> MockClock:
    """Like `autojump_clock`, for tests with worker threads, such as those that write a journal.

    Without a threshold, hours would pass on the mock clock while a thread writes one page.
    """
    return MockClock(autojump_threshold=0.01)


@pytest.fixture
def log() -> Iterator[LogRecorder]:
    recorder = LogRecorder()
    logger = logging.getLogger("multichat")
    logger.addHandler(recorder)
    logger.setLevel(logging.INFO)
    yield recorder
    logger.removeHandler(recorder)
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for Unix sockets, whose path has at most 107 bytes; `tmp_path` may be longer."""
    with TemporaryDirectory(prefix="multichat-") as folder:
        yield Path(folder)


@pytest.fixture
def port() -> Iterator[int]:
    """A port without a listener, which the system does not assign by itself."""
    yield from kept_port()


@pytest.fixture
def web_port() -> Iterator[int]:
    """Another one."""
    yield from kept_port()


def kept_port() -> Iterator[int]:
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the listener does
        kept.bind((LOOPBACK, 0))
        yield kept.getsockname()[1]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """Run a tmux server for this test alone."""
    made = Terminal(tmp_path)
    yield made
    made.end()
