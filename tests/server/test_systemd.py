"""The server as a service of systemd: its messages to the service manager, and the watchdog."""

import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from multichat.server.systemd import ServiceManager
from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS
from tests.support.service_manager import Managed, Manager, managing
from tests.support.sockets import open_client

pytestmark = pytest.mark.process

# Blocks the event loop until the test closes its end of a FIFO.
BLOCKING = """
async def block(message):
    if "block" in message.text:
        open({fifo!r}).read()
    return message
"""


@asynccontextmanager
async def started(
    folder: Path, port: int, *options: str, address: str = "", **variables: str
) -> AsyncIterator[tuple[Managed, Manager]]:
    """A server on *port*, which has reported to its service manager that it is ready."""
    address = address or str(folder / "notify")
    words = (MULTICHAT, "serve", str(port), "--host", LOOPBACK, *options)
    with managing(address) as manager:
        async with Managed(
            folder, *words, variables={"NOTIFY_SOCKET": address, **variables}
        ) as server:
            await manager.wait_for("READY", "1")
            yield server, manager


@pytest.mark.parametrize("is_abstract", [False, True], ids=["path", "abstract"])
async def test_a_service_says_when_it_is_ready_what_it_does_and_when_it_stops(
    is_abstract: bool, tmp_path: Path, port: int
) -> None:
    address = f"@multichat-{secrets.token_hex(8)}" if is_abstract else ""
    async with started(tmp_path, port, address=address) as (server, manager):
        assert manager.said == [{"READY": "1", "STATUS": "0 clients in 0 rooms"}]
        client = await open_client(port)  # it listens already
        async with client.stream:
            await client.send("/ping")
            await manager.wait_for("STATUS", "1 client in 1 room")
            server.signal(signal.SIGTERM)
            stopping = await manager.wait_for("STOPPING", "1")
            assert stopping["STATUS"] == "shutting down: 1 client"
            assert int(stopping["EXTEND_TIMEOUT_USEC"]) >= 6_000_000
            assert await server.wait() == 0
        assert all("WATCHDOG" not in each for each in manager.said)
        assert server.err == ""


async def test_a_drain_is_a_stop_that_says_how_long_it_takes(tmp_path: Path, port: int) -> None:
    async with started(tmp_path, port, "--drain", "3", "--grace", "2") as (server, manager):
        client = await open_client(port)
        async with client.stream:
            await client.send("/ping")
            await manager.wait_for("STATUS", "1 client in 1 room")
            server.signal(signal.SIGTERM)
            stopping = await manager.wait_for("STOPPING", "1")
            assert stopping["STATUS"] == "draining: 1 client, 3 s are left"
            assert 6_000_000 <= int(stopping["EXTEND_TIMEOUT_USEC"]) <= 17_000_000
            assert (await client.rest())[-1] == "[Server] goodbye: the server is about to shut down"
            assert await server.wait() == 0


async def test_a_reload_is_reported_with_the_time_at_which_it_began(
    tmp_path: Path, port: int
) -> None:
    async with started(tmp_path, port, "--log-file", str(tmp_path / "log")) as (server, manager):
        before = time.monotonic_ns() // 1000
        server.signal(signal.SIGHUP)
        reloading = await manager.wait_for("RELOADING", "1")
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert await manager.wait_for("READY", "1") == {
            "READY": "1",
            "STATUS": "0 clients in 0 rooms",
        }


async def test_the_watchdog_is_fed_by_the_loop_and_not_while_that_is_blocked(
    tmp_path: Path, port: int
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "blocking.py").write_text(BLOCKING.format(fifo=str(fifo)))
    options = ("--filter", "blocking:block")
    async with started(
        tmp_path, port, *options, WATCHDOG_USEC="200000", PYTHONPATH=str(tmp_path)
    ) as (_, manager):
        for _ in range(3):
            await manager.wait_for("WATCHDOG", "1")
        client = await open_client(port)
        async with client.stream:
            await client.send("block")
            blocked = await _open_read_fifo(fifo)
            with pytest.raises(trio.TooSlowError):
                for _ in range(
                    50
                ):  # earlier messages; after that, nothing comes for ten times as long
                    await manager.hear(1)
            os.close(blocked)
            for _ in range(3):
                await manager.wait_for("WATCHDOG", "1")


async def _open_read_fifo(path: Path) -> int:
    """Open the FIFO at *path* to write to it, once another process reads it."""
    with trio.fail_after(WAIT_SECONDS):
        while True:
            with suppress(OSError):
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            await trio.sleep(0.01)


async def test_the_watchdog_of_another_process_is_not_fed(tmp_path: Path, port: int) -> None:
    variables = {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}
    async with started(tmp_path, port, **variables) as (_, manager):
        with trio.move_on_after(1):
            while True:
                await manager.hear()
        assert all("WATCHDOG" not in each for each in manager.said)


async def test_a_service_manager_that_is_gone_is_one_line(tmp_path: Path, port: int) -> None:
    address = str(tmp_path / "nobody")
    words = (MULTICHAT, "serve", str(port), "--host", LOOPBACK)
    variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}
    async with Managed(tmp_path, *words, variables=variables) as server:
        await server.wait_for("The service manager cannot be notified: no such file or directory")
        await trio.sleep(0.5)
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
        assert server.out.count("cannot be notified") == 1


async def test_child_processes_get_none_of_the_variables(tmp_path: Path, port: int) -> None:
    (tmp_path / "spying.py").write_text(
        "import os, subprocess\n"
        "def spy(message):\n"
        f"    subprocess.run(['sh', '-c', 'env > {tmp_path}/env'])\n"
        "    return message\n"
    )
    async with started(
        tmp_path, port, "--filter", "spying:spy", WATCHDOG_USEC="1000000", PYTHONPATH=str(tmp_path)
    ):
        client = await open_client(port)
        async with client.stream:
            await client.send("look", "/ping")
            with trio.fail_after(WAIT_SECONDS):
                assert await client.line() == "[Server] pong"
        found = (tmp_path / "env").read_text()
    assert "PYTHONPATH=" in found
    assert not [name for name in ("NOTIFY_SOCKET", "WATCHDOG_") if name in found]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "9" * 400}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
    ],
)
def test_the_variables_are_read_once(variables: dict[str, str], seconds: float | None) -> None:
    variables = {**variables, "NOTIFY_SOCKET": "vsock:2:1", "HOME": "/"}
    manager = ServiceManager.from_environment(variables, pid=7)
    assert manager.watchdog_seconds == seconds
    assert variables == {"HOME": "/"}
    manager.close()
    assert os.getpid() != 7
