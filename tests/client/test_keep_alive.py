"""A client detects a silent server, and retries to get a taken name."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from multichat import (
    Chat,
    ClientTimeouts,
    ConnectionLost,
    Disconnected,
    Notice,
    Reconnected,
    Refused,
    Renamed,
    Said,
    open_chat,
)
from multichat.server.config import ServerConfig
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.clients import open_line_chat

pytestmark = pytest.mark.unit

WELCOME = (
    '{"type":"welcome","protocol":1,"client":7,"name":"Client 7","room":"lobby","members":1,'
    '"limits":{"line":65536,"name":32},"last":null,"server":"scripted","resumed":false,'
    '"session":"token"}'
)
NOTICE = '{"type":"notice","text":"x"}'


@asynccontextmanager
async def scripted_server(
    welcome: str = WELCOME, **options: Any
) -> AsyncIterator[tuple[Chat, ScriptedClient]]:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    await server.send(welcome)
    async with open_chat(ours, **options) as chat:
        assert (await server.line()).startswith("/json")
        yield chat, server
        await trio.aclose_forcefully(theirs)
        with pytest.raises(ConnectionLost):
            while await chat.receive():
                pass


async def answer_pings(server: ScriptedClient) -> None:
    while True:
        request = json.loads(await server.line())
        if request["type"] == "ping":
            await server.send(f'{{"type":"pong","token":"","nonce":{request["nonce"]}}}')


# --- Pings ---------------------------------------------------------------------------------------


async def test_a_server_is_pinged_after_half_a_minute_of_silence(
    autojump_clock: MockClock,
) -> None:
    async with scripted_server() as (chat, server):
        for _ in range(3):
            before = trio.current_time()
            ping = json.loads(await server.line())
            assert ping["type"] == "ping"
            assert trio.current_time() - before == pytest.approx(30)
            await server.send(f'{{"type":"pong","token":"","nonce":{ping["nonce"]}}}')
        await server.send(NOTICE)
        assert await anext(chat) == Notice("x")  # and no pong is reported
        assert chat.unaccepted == 0


async def test_any_input_counts_as_a_sign_of_life(autojump_clock: MockClock) -> None:
    async with scripted_server() as (chat, server):
        for _ in range(20):
            await trio.sleep(25)
            await server.send(NOTICE)
            assert await anext(chat) == Notice("x")
        assert chat.connected
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat.members)
            asked = json.loads(await server.line())
            assert asked["type"] == "who"  # nothing was asked before it
            answer = {"type": "members", "room": "lobby", "members": [], "nonce": asked["nonce"]}
            await server.send(json.dumps(answer))


async def test_a_server_that_does_not_answer_is_lost(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    async with scripted_server(timeouts=ClientTimeouts(ping=5, pong=2)) as (chat, _):
        with pytest.raises(ConnectionLost, match="no answer in 2 s"):
            await anext(chat)
        assert trio.current_time() - started == pytest.approx(7)
        with pytest.raises(ConnectionLost):
            await chat.send("anybody?")


async def test_a_server_that_does_not_answer_is_reconnected_to_without_loss(
    autojump_clock: MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    first = ScriptedClient(theirs)
    await first.send(WELCOME)
    new: list[ScriptedClient] = []

    async def redial() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        near, far = trio.testing.memory_stream_pair()
        new.append(ScriptedClient(far))
        await new[-1].send(WELCOME.replace('"resumed":false', '"resumed":true'))
        return near

    async with open_chat(ours, redial=redial) as chat:
        await chat.send("into the void")
        lost = await anext(chat)
        assert isinstance(lost, Disconnected)
        assert lost.reason == "no answer in 30 s"
        assert trio.current_time() == pytest.approx(60)  # it might be waiting for a slow client
        assert await anext(chat) == Reconnected(resumed=True, again=1)
        [second] = new
        assert '"session":"token"' in await second.line()
        said = json.loads(await second.line())
        assert said["text"] == "into the void"
        await second.send(f'{{"type":"accepted","nonce":{said["nonce"]},"id":"x-1"}}')
        await second.finish()


async def test_a_server_that_waits_for_a_slow_client_is_not_dead(
    autojump_clock: MockClock,
) -> None:
    config = ServerConfig(slow_timeout_seconds=300, send_queue_batches=1)
    async with memory_server(config) as network:
        await network.stalled()
        async with network.chat() as chat, trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(chat.say, f"{number}{'x' * 60_000}")
            await trio.sleep(290)
            assert chat.connected
            assert chat.unaccepted > 0
            await trio.sleep(50)  # the slow client lags
            assert chat.unaccepted == 0


@pytest.mark.parametrize(("wait", "seconds"), [(2, 62), (300, 360), (1e9, 3660), (-50, 60)])
async def test_a_server_may_wait_as_long_as_its_welcome_says(
    wait: float, seconds: float, autojump_clock: MockClock
) -> None:
    welcome = WELCOME.replace('"name":32', f'"name":32,"wait":{wait}')
    async with scripted_server(welcome) as (chat, _):
        await chat.send("into the void")
        with pytest.raises(ConnectionLost, match="no answer in"):
            await anext(chat)
        assert trio.current_time() == pytest.approx(seconds)


async def test_a_program_that_does_not_receive_does_not_look_like_a_dead_server(
    autojump_clock: MockClock,
) -> None:
    async with scripted_server() as (chat, server), trio.open_nursery() as nursery:
        notices = [f'{{"type":"notice","text":"{"{" * 60_000}"}}'] * 20  # more than may wait

        async def flood() -> None:
            await server.send(*notices)
            await answer_pings(server)

        nursery.start_soon(flood)
        await trio.sleep(300)
        assert chat.connected
        received = 0
        while received < len(notices):
            received += len(await chat.receive())
        await trio.sleep(100)
        assert chat.connected
        nursery.cancel_scope.cancel()


async def test_a_plain_server_is_never_pinged(autojump_clock: MockClock) -> None:
    for plain in (True, False):
        ours, theirs = trio.testing.memory_stream_pair()
        server = ScriptedClient(theirs)
        await server.send("a banner")
        async with open_chat(ours, plain=plain) as chat:
            await trio.sleep(1000)
            assert chat.connected
            await server.finish()
        assert await server.rest() == ([] if plain else ['/json {"protocol":1,"rooms":{}}'])


async def test_an_idle_chat_with_our_server_stays_connected(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat(name="alice") as chat:
        await trio.sleep(3600)
        assert chat.connected
        async with network.chat() as other:
            await other.send("still there?")
            while not isinstance(event := await anext(chat), Said):
                pass
            assert event.text == "still there?"


# --- A name that is taken ------------------------------------------------------------------------


async def taken_and_freed(chat: Chat, name: str) -> None:
    with pytest.raises(Refused, match=f"the name '{name}' .*is taken"):
        await chat.rename(name)


@pytest.mark.parametrize("how", ["leaves", "breaks off", "is renamed"])
@pytest.mark.parametrize("held", ["alice", "AIice", "аӏісе"])
async def test_a_name_is_taken_over_when_its_holder_or_a_lookalikes_gives_it_up(
    held: str, how: str, autojump_clock: MockClock
) -> None:
    async with memory_server() as network, network.chat() as chat, trio.open_nursery() as nursery:
        stream = network.connect()
        holder = ScriptedClient(stream)
        await holder.send(f'/json {{"name":"{held}"}}')
        await holder.line()
        await taken_and_freed(chat, "alice")
        nursery.start_soon(chat.keep_name, "Alice")
        await trio.sleep(100)
        assert chat.name == "Client 1"
        freed_at = trio.current_time()
        match how:
            case "leaves":
                await holder.send('{"type":"quit"}')
            case "breaks off":
                await trio.aclose_forcefully(stream)
            case "is renamed":
                await holder.send('{"type":"name","name":"bob"}')
        while not isinstance(event := await anext(chat), Renamed) or event.client != chat.client:
            pass
        assert event == Renamed(1, "Client 1", "Alice")
        assert chat.name == "Alice"
        assert trio.current_time() - freed_at <= (8 if how == "breaks off" else 3)
        nursery.cancel_scope.cancel()


async def test_a_name_refused_in_the_hello_is_taken_over_when_a_lookalike_gives_it_up(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        holder = ScriptedClient(network.connect())
        await holder.send('/json {"name":"AIice"}')
        await holder.line()
        stream = network.connect()
        async with open_line_chat(stream, name="alice", name_required=False) as chat:
            assert chat.link.name_refusal is not None
            assert chat.link.name_refusal.code == "name-taken"
            assert chat.name == "Client 2"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chat.keep_name, "alice")
                await trio.sleep(1)
                freed_at = trio.current_time()
                await holder.send('{"type":"quit"}')
                while not isinstance(await anext(chat), Renamed):
                    pass
                assert trio.current_time() - freed_at <= 3
                nursery.cancel_scope.cancel()
            assert chat.name == "alice"


async def test_a_refused_room_is_an_error_also_where_the_name_is_not_required(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        for name in (None, "alice", "a b", "Server"):
            with pytest.raises(Refused, match="a room's name consists of letters"):
                async with open_line_chat(
                    network.connect(), name=name, room="c d", name_required=False
                ):
                    pass


async def hold_name(network: MemoryServer, name: str, seconds: float) -> None:
    async with network.chat(name=name, room="den"):
        await trio.sleep(seconds)


async def test_a_name_is_taken_over_also_from_another_room(autojump_clock: MockClock) -> None:
    timeouts = ClientTimeouts(name=7)
    async with (
        memory_server() as network,
        open_chat(network.connect(), timeouts=timeouts) as chat,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(hold_name, network, "alice", 100)
        await trio.sleep(1)
        nursery.start_soon(chat.keep_name, "alice")
        await trio.sleep(98)
        assert chat.name == "Client 1"
        await trio.sleep(8)
        assert chat.name == "alice"
        nursery.cancel_scope.cancel()


async def test_a_client_that_was_renamed_meanwhile_keeps_its_name(
    autojump_clock: MockClock,
) -> None:
    async with (
        memory_server() as network,
        network.chat() as chat,
        trio.open_nursery() as nursery,
    ):
        async with network.chat(name="alice"):
            nursery.start_soon(chat.keep_name, "alice")
            await trio.sleep(1)
            await chat.rename("carol")
        await trio.sleep(200)
        assert chat.name == "carol"
        nursery.cancel_scope.cancel()


async def test_keeping_a_name_ends_with_the_conversation(autojump_clock: MockClock) -> None:
    async with scripted_server() as (chat, server), trio.open_nursery() as nursery:
        nursery.start_soon(chat.keep_name, "alice")
        await trio.sleep(1)
        while json.loads(await server.line())["type"] != "name":
            pass
        await trio.aclose_forcefully(server.stream)


async def test_keeping_a_name_continues_while_the_program_does_not_receive(
    autojump_clock: MockClock,
) -> None:
    async with scripted_server() as (chat, server), trio.open_nursery() as nursery:
        notices = [f'{{"type":"notice","text":"{"{" * 60_000}"}}'] * 20  # more than may wait
        nursery.start_soon(server.send, *notices)
        nursery.start_soon(chat.keep_name, "alice")
        await trio.sleep(100)
        received = 0
        while received < len(notices):
            received += len(await chat.receive())
        asked: set[str] = set()
        while asked != {"name", "ping"}:
            asked.add(json.loads(await server.line())["type"])
        nursery.cancel_scope.cancel()


async def test_an_invalid_name_is_requested_once(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat() as chat:
        await chat.keep_name("no such name")  # returns
        assert chat.name == "Client 1"
