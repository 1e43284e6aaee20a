"""Bots under a flood, on real sockets: in their own process, and in the server's."""

import sys
from pathlib import Path

import pytest
import trio
import trio.testing

import multichat
from tests.support.processes import LOOPBACK, Command, serve, tcp

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"

# Far more than the sockets and a send queue can hold, in messages and bytes, sent without pauses.
FLOOD = 10_000
PADDING = "x" * 1000


async def echoed(stream: trio.SocketStream, count: int, start: str) -> list[str]:
    """Receive echoes until all have arrived."""
    received = bytearray()
    with trio.fail_after(120):
        while count > 0:
            data = await stream.receive_some(1 << 20)
            assert data, received[-200:]
            received += data
            count -= data.count(b"\n")
    assert count == 0
    lines = received.decode().splitlines()
    assert all(line.startswith(start) for line in lines)
    return [line.removeprefix(start) for line in lines]


async def flood(person: trio.SocketStream) -> list[str]:
    texts = [f"number {i} {PADDING}" for i in range(FLOOD)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(person.send_all, "".join(f"{text}\n" for text in texts).encode())
        heard = await echoed(person, FLOOD, "[echo] echo: ")
    assert heard == texts
    return heard


async def test_an_echo_bot_under_a_flood_keeps_up_and_loses_nothing(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, "--slow-timeout", "60") as server,
        Command(
            tmp_path, sys.executable, str(EXAMPLES / "echo_bot.py"), LOOPBACK, str(server.port)
        ) as bot,
    ):
        await server.wait_for("Client 1 is now called echo")
        async with tcp(server) as person:
            await flood(person)
        assert bot.process.poll() is None
        assert "too slow" not in server.out


async def test_an_echo_bot_in_the_server_keeps_up_and_loses_nothing() -> None:
    async def echo(chat: multichat.Chat) -> None:
        async for event in chat:
            if isinstance(event, multichat.Said):
                await chat.say(f"echo: {event.text}")

    async with trio.open_nursery() as nursery:
        server: multichat.Server = await nursery.start(multichat.serve, 0)
        await server.start_bot(echo, name="echo")
        async with await trio.open_tcp_stream(LOOPBACK, server.port) as person:
            await flood(person)
        assert server.statistics().too_slow == 0
        server.shutdown()
