"""What every test lives with: bounded time, and the log at hand."""

import faulthandler
import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings

from multichat.log import LineFormatter

# A hanging test is a bug with a traceback, not a build that never ends.
TEST_SECONDS = 300

settings.register_profile("multichat", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("multichat")


_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # what pytest captures afterwards nobody would see


@pytest.fixture(autouse=True)
def _bounded(pytestconfig: pytest.Config) -> Iterator[None]:
    faulthandler.dump_traceback_later(TEST_SECONDS, exit=True, file=pytestconfig.stash[_STDERR])
    yield
    faulthandler.cancel_dump_traceback_later()


@contextmanager
def collector_off() -> Iterator[None]:
    """Have nothing but reference counting free what is let go of in the block."""
    gc.collect()  # what was there before
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class LogRecorder(logging.Handler):
    """Keeps the log's lines as the command would print them, without the time."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # "2025-01-15 10:30:45.123 [INFO] [server] [STATE] …" from the level on
        self.lines += [line[24:] for line in self.format(record).split("\n")]


@pytest.fixture
def log() -> Iterator[LogRecorder]:
    recorder = LogRecorder()
    logger = logging.getLogger("multichat")
    logger.addHandler(recorder)
    logger.setLevel(logging.INFO)
    yield recorder
    logger.removeHandler(recorder)
    logger.setLevel(logging.NOTSET)
