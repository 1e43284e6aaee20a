"""The load balancer of the tests, and links to the engine through its faults."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from multichat.cluster.connection import Connection, Lost, Ready
from multichat.cluster.errors import FateUnknown
from tests.support.processes import LOOPBACK, Command

from .balancer import Balancer, balancing
from .engine import Engine
from .links import IMPATIENT, config, linked, peer, ready

pytestmark = pytest.mark.process


class Node:
    """A server that records what it receives, and sends its own name back for each piece."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.received: list[bytes] = []

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            number = len(self.received)
            self.received.append(b"")
            try:
                async for data in stream:
                    self.received[number] += data
                    await stream.send_all(self.name)
            except trio.BrokenResourceError:
                pass

    async def has(self, data: bytes, number: int = 0) -> None:
        """Wait until connection *number* has received exactly *data*."""
        with trio.fail_after(30):
            while len(self.received) <= number or self.received[number] != data:
                await trio.sleep(0.01)


@asynccontextmanager
async def client(balancer: Balancer) -> AsyncIterator[trio.SocketStream]:
    stream = await trio.open_tcp_stream(LOOPBACK, balancer.port)
    async with stream:
        yield stream


async def test_round_robin_over_the_nodes_that_accept() -> None:
    first, second = Node("first"), Node("second")
    async with (
        peer(first.handle) as one,
        peer(second.handle) as two,
        balancing(one, two) as balancer,
    ):
        heard = []
        for _ in range(4):
            async with client(balancer) as stream:
                await stream.send_all(b"x")
                heard.append(await stream.receive_some())
        assert heard == [b"first", b"second"] * 2
        balancer.targets = [1, two]  # no process listens on port 1
        async with client(balancer) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"second"
        balancer.targets = [1]
        async with client(balancer) as stream:
            assert await stream.receive_some() == b""


@pytest.mark.parametrize(("version", "begins"), [(1, b"PROXY TCP4 127.0.0.1 "), (2, b"\r\n\r\n\0")])
async def test_a_proxy_header_comes_first(version: int, begins: bytes) -> None:
    node = Node("node")
    async with peer(node.handle) as port, balancing(port, proxy=version) as balancer:
        async with client(balancer) as stream:
            await stream.send_all(b"hello")
            await stream.receive_some()
        with trio.fail_after(30):
            while not node.received[0].endswith(b"hello"):
                await trio.sleep(0.01)
        assert node.received[0].startswith(begins)


async def test_faults() -> None:
    node = Node("node")
    async with peer(node.handle) as port, balancing(port) as balancer:
        async with client(balancer) as stream:
            await stream.send_all(b"a")
            assert await stream.receive_some() == b"node"
            [passage] = balancer.passages
            passage.stall()
            await stream.send_all(b"b")
            with trio.move_on_after(0.1) as waiting:
                await stream.receive_some()
            assert waiting.cancelled_caught
            passage.resume()
            assert await stream.receive_some() == b"node"
            passage.tear(2)
            await stream.send_all(b"cdef")
            while await stream.receive_some():
                pass
            await node.has(b"abcd")
        async with client(balancer) as stream:
            await stream.send_all(b"a")
            await stream.receive_some()
            balancer.passages[-1].reset()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        async with client(balancer) as stream:
            await stream.send_all(b"a")
            await stream.receive_some()
            balancer.passages[-1].cut()
            assert await stream.receive_some() == b""


async def test_the_bytes_of_an_old_connection_are_delivered_after_those_of_the_new_one() -> None:
    node = Node("node")
    async with peer(node.handle) as port, balancing(port) as balancer:
        async with client(balancer) as old:
            await old.send_all(b"1")
            await old.receive_some()
            [passage] = balancer.passages
            passage.hold()
            await old.send_all(b"2")
            await trio.sleep(0.05)
            passage.detach()
            assert await old.receive_some() == b""
        async with client(balancer) as new:
            await new.send_all(b"3")
            assert await new.receive_some() == b"node"
            assert node.received == [b"1", b"3"]
            assert await passage.deliver() == 1
            await node.has(b"12")


async def test_a_command_from_a_process(tmp_path: Path) -> None:
    node = Node("node")
    async with peer(node.handle) as port:
        argv = (sys.executable, "-m", "tests.cluster.balancer", str(port))
        async with Command(tmp_path, *argv) as process:
            await process.wait_for("Listening on port")
            there = int(process.lines[0].rpartition(" ")[2])
            stream = await trio.open_tcp_stream(LOOPBACK, there)
            async with stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"node"
                await process.type("cut\n")
                await process.wait_for("done: cut")
                assert await stream.receive_some() == b""
            process.end_input()
            assert await process.wait() == 0


# --- The node's connection to its engine ----------------------------------------------------------


async def test_a_late_request_on_an_old_link_is_done_after_the_new_link_is_ready(
    engine: Engine,
) -> None:
    """Why an append carries the node's run and sequence."""
    async with balancing(engine.port) as balancer:
        connection = Connection(config(engine, port=balancer.port))
        async with connection.open():
            link = await ready(connection)
            [passage] = balancer.passages
            passage.hold()
            request = link.request("RPUSH", "log", "old")
            await trio.sleep(0.05)
            passage.detach()
            assert isinstance(await connection.receive(), Lost)
            with pytest.raises(FateUnknown):
                await request.reply()
            event = await connection.receive()
            while not isinstance(event, Ready):
                event = await connection.receive()
            assert await event.link.call("RPUSH", "log", "new") == 1
            assert await passage.deliver() > 0
            with trio.fail_after(30):
                while await event.link.call("LLEN", "log") != 2:
                    await trio.sleep(0.01)
            assert await event.link.call("LRANGE", "log", 0, -1) == [b"new", b"old"]


async def test_a_stalled_link_is_given_up(engine: Engine) -> None:
    async with balancing(engine.port) as balancer:
        connection = Connection(config(engine, port=balancer.port, timeouts=IMPATIENT))
        async with connection.open():
            link = await ready(connection)
            balancer.passages[0].stall()
            request = link.request("INCR", "n")
            with trio.fail_after(30), pytest.raises(FateUnknown, match="did not answer"):
                await request.reply()
            with trio.fail_after(30):
                while not isinstance(await connection.receive(), Ready):
                    pass


@pytest.mark.parametrize("piece", [1, 11])
async def test_a_link_through_torn_pieces(engine: Engine, piece: int) -> None:
    async with balancing(engine.port) as balancer:
        balancer.piece = piece
        async with linked(engine, port=balancer.port) as link:
            requests = [link.request("ECHO", "x" * number) for number in range(30)]
            assert [len(await request.reply()) for request in requests] == list(range(30))


async def test_a_request_torn_in_the_middle_is_not_done(engine: Engine) -> None:
    async with balancing(engine.port) as balancer, linked(engine, port=balancer.port) as link:
        await link.call("PING")
        balancer.passages[0].tear(20)
        with pytest.raises(FateUnknown):
            await link.call("SET", "key", "value")
    assert await engine.call("GET", "key") is None
