"""What the log says of connections, with and without addresses, and of who has left."""

from pathlib import Path

import pytest

from multichat.testing import memory_server
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK, serve, tcp

STATE = "[INFO] [server] [STATE] "


@pytest.mark.unit
async def test_the_line_of_a_client_that_has_left_has_its_name_and_the_reason(
    log: LogRecorder,
) -> None:
    async with memory_server() as network:
        unnamed, alice, bob = [await network.join() for _ in range(3)]
        await alice.send("/name alice")
        await bob.send("/name bob")
        await bob.line()
        await alice.finish()
        await alice.rest()
        network.server.kick(3)
        network.server.kick(1, "bye")
        for each in (unnamed, bob):
            await each.rest()
    assert [line for line in log.lines if "disconnected" in line] == [
        STATE + "Client 2 disconnected (alice)",
        STATE + "Client 3 disconnected (bob) (kicked)",
        STATE + "Client 1 disconnected (bye)",
    ]


@pytest.mark.process
@pytest.mark.parametrize("shown", [False, True])
async def test_addresses_of_clients_are_logged_only_if_asked_for(
    tmp_path: Path, *, shown: bool
) -> None:
    options = ("--log-file", str(tmp_path / "log"), *(("--log-addresses",) if shown else ()))
    async with (
        serve(
            tmp_path, "--unix", str(tmp_path / "socket"), "--max-clients", "1", *options
        ) as server,
        tcp(server) as one,
    ):
        await server.wait_for("Client 1 connected")
        async with tcp(server) as other:
            await server.wait_for("Refused ")
            refused = other.socket.getsockname()[1]
        own = one.socket.getsockname()[1]
    assert server.out == (tmp_path / "log").read_text("utf-8")
    origin = f" from {LOOPBACK}:{own}" if shown else ""
    assert f"{STATE}Client 1 connected{origin}\n" in server.out
    assert (f":{own}" in server.out) == shown
    assert f"{STATE}Refused {LOOPBACK}:{refused}: the server is full" in server.out
