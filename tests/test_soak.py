"""The clients of the soak test and a server in one process, to count leaks."""

import random
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from trio.lowlevel import current_statistics

import multichat
from multichat.client.connect import client_tls
from multichat.net.send_queue import SendQueue
from multichat.server.session import Session

from .soak.people import Circle, Visitor
from .support.collector import collector_off, in_cycles
from .support.processes import LOOPBACK, WAIT_SECONDS, serve

pytestmark = pytest.mark.stress

VISITORS = 60
STAYING = 5
SECONDS = 5.0

TLS_CLIENTS = 400  # at a time


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.issue_cert(LOOPBACK).private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    return folder


async def test_the_memory_of_a_server_is_bounded_while_tls_clients_connect_and_leave(
    certificates: Path, tmp_path: Path
) -> None:
    """TLS streams are freed only by garbage collection, so memory first grows, but is bounded."""
    context = client_tls(certificates / "ca.pem")

    def visit(port: int) -> None:
        with ExitStack() as stack:
            clients = []
            for _ in range(TLS_CLIENTS):
                plain = stack.enter_context(socket.create_connection((LOOPBACK, port)))
                encrypted = context.wrap_socket(plain, server_hostname=LOOPBACK)
                clients.append(stack.enter_context(encrypted))
            for client in clients:
                client.sendall(b"/ping\n")
            for client in clients:
                assert client.recv(4096)

    async def memory_mib_after(visits: int) -> float:
        for _ in range(visits // TLS_CLIENTS):
            await trio.to_thread.run_sync(visit, server.port)
        status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    async with serve(tmp_path, "--tls-cert", str(certificates / "server.pem")) as server:
        before = await memory_mib_after(2400)
        # Measured: 14 MiB; with thresholds of 50,000, 10 and 10 it was 49.
        assert await memory_mib_after(2400) - before < 30


async def test_disconnected_clients_leave_no_tasks_and_no_garbage() -> None:
    with collector_off():
        await _come_and_go()
        # The server collects garbage seldom, so reference cycles would keep memory of old clients.
        assert in_cycles(Session, SendQueue) == []


async def _come_and_go() -> None:
    chance = random.Random(3)
    async with trio.open_nursery() as nursery:
        serve = partial(multichat.serve, 0, host="127.0.0.1")
        server: multichat.Server = await nursery.start(serve)
        await trio.testing.wait_all_tasks_blocked()
        before = current_statistics().tasks_living
        circle = Circle(server.port, STAYING)
        visitors = [Visitor(server.port, i, chance.randrange(2**32)) for i in range(VISITORS)]
        async with trio.open_nursery() as people:
            await people.start(circle.run)
            async with trio.open_nursery() as guests:
                for visitor in visitors:
                    guests.start_soon(visitor.run, chance.random())
                await trio.sleep(SECONDS)
                guests.cancel_scope.cancel()
            with trio.fail_after(WAIT_SECONDS):
                await circle.finish()
            assert circle.troubles() == []
            people.cancel_scope.cancel()
        with trio.fail_after(WAIT_SECONDS):
            while current_statistics().tasks_living > before:
                await trio.sleep(0.05)
        statistics = server.statistics()
        assert (statistics.clients, statistics.waiting_bytes) == (0, 0)
        assert statistics.clients_ever >= VISITORS + STAYING
        server.shutdown()
