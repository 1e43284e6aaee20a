"""A real client of `websockets`, over sockets, beside clients of TCP; for TLS see `tests.web`."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from multichat import ServerConfig
from multichat.server.server import Server
from multichat.testing import ScriptedClient
from tests.support.processes import LOOPBACK
from tests.support.sockets import open_client

pytestmark = pytest.mark.process


@asynccontextmanager
async def running(config: ServerConfig | None = None) -> AsyncGenerator[Server]:
    server = Server(config)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):

            async def run(task_status: trio.TaskStatus[Server]) -> None:
                await server.run(0, host=LOOPBACK, web=0, task_status=task_status)

            await nursery.start(run)
            yield server
            server.shutdown()


def address_of(server: Server) -> str:
    return server.web_url.replace("http", "ws", 1) + "ws"


async def told(client: ClientConnection, type_: str) -> dict[str, str]:
    """Return the next event of that type."""
    while (event := json.loads(await client.recv()))["type"] != type_:
        pass
    return event  # type: ignore[no-any-return]


async def pong(client: ScriptedClient) -> None:
    await client.send("/ping")
    assert await client.line() == "[Server] pong"


@pytest.mark.parametrize("lines", [False, True])
async def test_a_library_talks_to_clients_of_tcp(lines: bool) -> None:
    protocols = ["multichat.lines"] if lines else None
    async with (
        running() as server,
        connect(address_of(server), subprotocols=protocols) as web,  # type: ignore[arg-type]
    ):
        assert web.subprotocol == ("multichat.lines" if lines else None)
        await web.send('/json {"name":"zoe"}')
        assert (await told(web, "welcome"))["name"] == "zoe"
        tcp = await open_client(server.port)
        await pong(tcp)
        await web.send(json.dumps({"type": "say", "text": "from a browser", "nonce": 1}))
        await told(web, "accepted")
        assert await tcp.line() == "[zoe] from a browser"
        await tcp.send(*map(str, range(1000)))
        texts: list[str] = []
        while len(texts) < 1000:
            message = await web.recv()
            assert isinstance(message, str)
            events = [json.loads(line) for line in message.split("\n")]
            assert lines or len(events) == 1
            texts += [event["text"] for event in events if event["type"] == "said"]
        assert texts == [str(number) for number in range(1000)]
        assert await web.ping() is not None
        await tcp.stream.aclose()


async def test_a_message_in_fragments_and_a_ping_between_them() -> None:
    async with running() as server, connect(address_of(server)) as web:
        tcp = await open_client(server.port)
        await pong(tcp)

        async def parts() -> AsyncGenerator[str]:
            for part in ("in ", "several ", "parts 😀"):
                await (await web.ping()).wait()
                yield part

        await web.send(parts())
        assert (await tcp.line()).endswith("] in several parts 😀")
        await tcp.stream.aclose()


async def test_a_library_sees_the_goodbye_and_the_code() -> None:
    async with running(ServerConfig(password="a secret")) as server:
        async with connect(address_of(server)) as web:
            assert "password" in str(await web.recv())
            await web.send("/auth a secret")
            assert await web.recv() == "[Server] password accepted"
            await web.send("/json")
            await told(web, "welcome")
            server.kick(1)
            assert (await told(web, "goodbye"))["code"] == "kicked"
            with pytest.raises(ConnectionClosed) as closed:
                await web.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
        async with connect(address_of(server)) as web:
            await web.recv()
            await web.send(b"\x00binary")
            with pytest.raises(ConnectionClosed) as closed:
                await web.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1003
