"""A service is looked after while people chat; `python -m tests.operation` shows it."""

from pathlib import Path

import pytest

from .operation.run import SETTINGS, operate
from .operation.supervised import supervised
from .operation.under_systemd import under_systemd
from .support.processes import program

pytestmark = pytest.mark.process


async def test_operations_lose_no_message_and_no_client(tmp_path: Path, short_path: Path) -> None:
    async with supervised(tmp_path, short_path, *SETTINGS) as service:
        await operate(service, tmp_path)


async def test_operations_under_systemd_lose_no_message_and_no_client(
    tmp_path: Path, port: int, web_port: int
) -> None:
    program("logrotate")
    async with under_systemd(tmp_path, port, web_port, *SETTINGS) as service:
        await operate(service, tmp_path)
