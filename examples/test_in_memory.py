"""How to test a chat program: in process, over memory streams, without ports or waiting.

Run it:    pytest examples/test_in_memory.py
What it leaves out: other servers; give `multichat.open_chat` one end of a
`trio.testing.memory_stream_pair` and act as the server with a `ScriptedClient` on the other.
"""

import trio
from dice import dice
from echo_bot import echo
from trio.testing import MockClock

import multichat
from multichat.testing import memory_server

# ruff: noqa: ARG001 - the clock works by being asked for: when all tasks wait, it jumps


async def test_the_bot_repeats_what_people_say(autojump_clock: MockClock) -> None:
    async with (
        memory_server() as network,
        trio.open_nursery() as nursery,
        network.chat(name="echo") as bot,
    ):
        nursery.start_soon(echo, bot)
        person = await network.join()  # like `nc`: raw lines
        await person.send("hello", "echo: hello", "bye")
        assert await person.lines(2) == ["[echo] echo: hello", "[echo] echo: bye"]


async def test_the_bot_answers_in_private(autojump_clock: MockClock) -> None:
    async with (
        memory_server() as network,
        trio.open_nursery() as nursery,
        network.chat(name="dice") as bot,
        network.chat(name="alice") as alice,  # a program: typed events
    ):
        nursery.start_soon(dice, bot)
        await alice.direct("dice", "2d1")
        event = await anext(alice)
        assert isinstance(event, multichat.Directed)
        assert (event.name, event.text) == ("dice", "2d1: 1 + 1 = 2")


async def test_the_bot_survives_who_takes_nothing(autojump_clock: MockClock) -> None:
    config = multichat.ServerConfig(send_queue_batches=1, slow_timeout_seconds=20)
    async with (
        memory_server(config) as network,
        trio.open_nursery() as nursery,
        network.chat(name="echo") as bot,
    ):
        nursery.start_soon(echo, bot)
        stalled = await network.stalled()
        person = await network.join()
        for number in range(5):  # the room waits for seconds of mock time
            await person.send(f"{number}")
            assert await person.line() == f"[echo] echo: {number}"
        stalled.recover()  # and gets the rest
        said = [text for n in range(5) for text in (f"[Client 3] {n}", f"[echo] echo: {n}")]
        assert await stalled.lines(10) == said
