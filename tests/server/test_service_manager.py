"""The messages to the service manager when its variables or our settings are extreme."""

import math
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from multichat.server.config import ServerConfig
from multichat.server.systemd import ServiceManager
from multichat.testing import memory_server

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("watchdog_seconds", "seconds", "times"),
    [(1.0, 2.25, 5), (1e-6, 0.095, 10)],
    ids=["a second", "a microsecond, which leaves time for the clients"],
)
async def test_the_watchdog_is_fed_twice_in_its_time(
    watchdog_seconds: float,
    seconds: float,
    times: int,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    path = tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(path))
        service.setblocking(False)
        async with memory_server() as network:
            manager = ServiceManager(str(path), watchdog_seconds=watchdog_seconds)
            with trio.move_on_after(seconds):
                await manager.run(network.server)
        assert [datagram for datagram in _datagrams(service) if b"WATCHDOG=1" in datagram] == [
            b"WATCHDOG=1"
        ] * times


def _datagrams(service: socket.socket) -> Iterator[bytes]:
    with suppress(BlockingIOError):
        while True:
            yield service.recv(65536)


@pytest.mark.parametrize("grace", [5.0, 1e300, math.inf])
async def test_a_stop_is_announced_however_long_it_may_take(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, grace: float
) -> None:
    path = tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(path))
        service.setblocking(False)
        config = ServerConfig(grace_seconds=grace)
        async with memory_server(config) as network, trio.open_nursery() as nursery:
            nursery.start_soon(ServiceManager(str(path)).run, network.server)
            await trio.testing.wait_all_tasks_blocked()
            network.server.ending.begun.set()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the stop was announced")
        [stopping] = [each for each in _datagrams(service) if b"STOPPING=1" in each]
        fields = dict(line.split("=", 1) for line in stopping.decode().split("\n"))
        assert 15 < int(fields["EXTEND_TIMEOUT_USEC"]) / 1e6 <= 7 * 86400


async def test_a_state_is_sent_again_until_a_busy_service_manager_takes_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(path))
        service.setblocking(False)
        async with memory_server() as network, trio.open_nursery() as nursery:
            _fill(path)
            nursery.start_soon(ServiceManager(str(path)).run, network.server)
            for state in (b"READY=1", b"STOPPING=1"):
                await trio.sleep(2.5)
                assert set(_datagrams(service)) == {b"FULL=1"}
                await trio.sleep(2)
                [heard] = _datagrams(service)  # once
                assert heard.split(b"\n")[0] == state
                assert b"STATUS=" in heard
                _fill(path)
                network.server.ending.begun.set()
            nursery.cancel_scope.cancel(reason="both states were heard")


def _fill(path: Path) -> None:
    """Send to *path* until it takes nothing more."""
    sent = True
    while sent:  # each sender has a limit of its own
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sent = False
            with suppress(BlockingIOError):
                while sender.sendto(b"FULL=1", str(path)):
                    sent = True
