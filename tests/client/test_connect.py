"""The library's client, over memory streams and against servers that are not ours."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

import multichat
from multichat import (
    Chat,
    ConnectFailed,
    ConnectionLost,
    Goodbye,
    LocalProtocolError,
    Notice,
    Said,
    open_chat,
)
from multichat.client.line_chat import LineChat
from multichat.client.timeouts import DEFAULT_TIMEOUTS, ClientTimeouts
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.clients import open_line_chat, type_lines

pytestmark = pytest.mark.unit

LOOPBACK = "127.0.0.1"


@asynccontextmanager
async def chat_on(network: MemoryServer) -> AsyncIterator[LineChat]:
    async with open_line_chat(network.connect(), plain=True) as chat:
        await trio.testing.wait_all_tasks_blocked()
        yield chat


@asynccontextmanager
async def foreign_server() -> AsyncIterator[tuple[Chat, ScriptedClient]]:
    """Open a plain-text chat with a foreign server; yields it and the server's end."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_chat(ours, plain=True) as chat:
        yield chat, ScriptedClient(theirs)


async def test_sending_and_receiving() -> None:
    async with memory_server() as network, chat_on(network) as a, chat_on(network) as b:
        await a.send("Hello everyone!")
        await a.send("/usr is full")
        await a.send("two\nlines \x1b[2J")
        assert await anext(b) == Said(name="Client 1", text="Hello everyone!")
        assert await anext(b) == Said(name="Client 1", text="/usr is full")
        assert await anext(b) == Said(name="Client 1", text="two␊lines ␛[2J")


async def test_lines_are_sent_as_typed() -> None:
    async with memory_server() as network, chat_on(network) as a, chat_on(network) as b:
        await type_lines(a, "//usr\n/ping")
        assert await anext(b) == Said(name="Client 1", text="/usr")
        assert await anext(a) == Notice("pong")


async def test_an_empty_message_cannot_be_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with foreign_server() as (chat, _):
        with pytest.raises(LocalProtocolError, match="an empty message cannot be sent"):
            await chat.send("\u202e")


async def test_events_of_one_read_come_together_or_one_by_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with foreign_server() as (chat, server):
        await server.send("[Client 2] a", "b", "[Server] c")
        assert await anext(chat) == Said(name="Client 2", text="a")
        assert await chat.receive() == [Said(name="", text="b"), Notice("c")]
        await server.send("d")
        assert await chat.receive() == [Said(name="", text="d")]


async def test_iteration_ends_with_the_servers_goodbye() -> None:
    async with memory_server() as network, chat_on(network) as chat:
        network.server.kick(1, "enough")
        assert [event async for event in chat] == [Goodbye("enough")]
        assert chat.goodbye == "enough"
        assert [event async for event in chat] == []
        with pytest.raises(StopAsyncIteration):
            await anext(chat)


async def test_a_goodbye_counts_only_as_the_last_line() -> None:
    async with foreign_server() as (chat, server):
        await server.send("[Server] goodbye: see you tomorrow", "[Client 2] not yet")
        await server.finish()
        assert len(await chat.receive()) == 2
        assert chat.goodbye is None
        with pytest.raises(ConnectionLost):
            await anext(chat)


async def test_a_server_that_closes_without_a_goodbye_is_lost() -> None:
    async with foreign_server() as (chat, server):
        await server.send("last words")
        await server.finish()
        assert await anext(chat) == Said(name="", text="last words")
        with pytest.raises(ConnectionLost, match="the server closed the connection"):
            await anext(chat)


async def test_a_connection_that_breaks_is_lost_for_both_directions() -> None:
    lost = "connection lost: connection broken"
    with pytest.raises(ConnectionLost, match=lost):
        async with foreign_server() as (chat, server):
            await server.stream.aclose()
            with pytest.raises(ConnectionLost, match="the server closed the connection"):
                await anext(chat)
            while True:
                await chat.send("anybody?")


async def test_leaving_delivers_sent_messages() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    async with trio.open_nursery() as nursery:

        async def visit() -> None:
            async with open_chat(ours, plain=True) as chat:
                for i in range(100):
                    await chat.send(str(i))

        nursery.start_soon(visit)
        assert await server.rest() == [str(i) for i in range(100)]
        await server.finish()


async def test_leaving_a_server_that_stays_silent_takes_two_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    started = trio.current_time()
    async with foreign_server() as (chat, _):
        await chat.send("hello")
    finish = DEFAULT_TIMEOUTS.finish
    assert finish <= trio.current_time() - started <= finish + 1


async def test_leaving_reads_as_long_as_input_arrives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    started = trio.current_time()
    received: list[str] = []
    async with trio.open_nursery() as nursery, foreign_server() as (chat, server):

        async def talk_on() -> None:
            for i in range(5):
                await trio.sleep(1.5)
                await server.send(str(i))
            await server.finish()

        async def listen() -> None:
            received.extend([chat_event.text async for chat_event in chat])  # type: ignore[union-attr]

        nursery.start_soon(talk_on)
        nursery.start_soon(listen)
        await chat.finish()
    assert received == [str(i) for i in range(5)]
    assert trio.current_time() - started == 7.5


async def test_a_message_that_could_not_be_written_is_an_error() -> None:
    with pytest.raises(ConnectionLost):
        async with foreign_server() as (chat, server):
            await server.stream.aclose()
            await chat.send("never arrives")


async def test_a_server_that_stops_reading_times_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    started = trio.current_time()
    with pytest.raises(ConnectionLost, match="the server has stopped reading"):
        async with open_chat(ours, plain=True) as chat:
            await chat.send("you hear this")
            await chat.send("and this never leaves")
            await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() - started == DEFAULT_TIMEOUTS.progress
    await theirs.aclose()


async def test_an_exception_leaves_the_block_unwrapped() -> None:
    with pytest.raises(KeyError) as caught:
        async with foreign_server() as (chat, _):
            raise KeyError("mine") from ValueError("because")
    assert isinstance(caught.value.__cause__, ValueError)


async def test_several_exceptions_stay_a_group() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with foreign_server():
            raise ExceptionGroup("two", [KeyError(), ValueError()])
    assert pytest.RaisesGroup(KeyError, ValueError).matches(caught.value)


async def test_cancelling_leaves_at_once(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        async with foreign_server() as (chat, _):
            await anext(chat)
    assert scope.cancelled_caught
    assert trio.current_time() - scope.deadline == 0


async def test_events_are_received_while_a_say_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A bot answers during a flood: it does not read while it sends, and there is no deadlock."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    server = ScriptedClient(theirs)
    async with open_chat(ours, plain=True) as chat, trio.open_nursery() as nursery:

        async def answer_everything() -> None:
            for _ in range(200):
                event = await anext(chat)
                assert isinstance(event, Said)
                await chat.send(f"re: {event.text}")

        nursery.start_soon(answer_everything)
        for i in range(200):  # the server writes all of it before it reads anything
            await server.send(str(i))
        assert await server.lines(200) == [f"re: {i}" for i in range(200)]
        nursery.start_soon(server.rest)
        nursery.start_soon(server.finish)
        await chat.finish()


async def test_waiting_events_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    sent = 0
    async with open_chat(ours, plain=True):
        with trio.move_on_after(1):
            while True:
                await theirs.send_all(b"x\n" * 10_000)
                sent += 10_000
        assert 100_000 <= sent <= 200_000


async def test_leaving_with_unreceived_events_loses_no_sent_message() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    async with trio.open_nursery() as nursery:
        async with open_chat(ours, plain=True) as chat:
            for i in range(300):
                await server.send(str(i))
                await trio.testing.wait_all_tasks_blocked()
            await chat.send("goodbye, all of you")
            nursery.start_soon(server.finish)
        assert await server.rest() == ["goodbye, all of you"]


async def test_lines_of_a_server_are_clean_and_may_be_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with foreign_server() as (chat, server):
        text = "x" * 900_000
        await server.stream.send_all(f"[Client 1] \x1b]52;c;{text}\n".encode())
        assert await anext(chat) == Said(name="Client 1", text=f"␛]52;c;{text}")
        await server.send("y" * 1_100_000)
        assert await anext(chat) == Notice("the line was longer than 1048576 bytes and was dropped")


@pytest.mark.process
async def test_connect_over_tcp() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(multichat.serve, 0, host=LOOPBACK))
        async with (
            multichat.connect(LOOPBACK, server.port, plain=True) as a,
            multichat.connect(LOOPBACK, server.port, plain=True) as b,
        ):
            while len(server.members) < 2:
                await trio.sleep(0.005)
            await a.send("hello")
            assert await anext(b) == Said(name="Client 1", text="hello")
        server.shutdown()


@pytest.mark.process
@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (LOOPBACK, "connection refused"),
        ("localhost", "connection refused"),
        ("no-such-host.invalid", "name or service not known"),
        ("x" * 70, "label"),
    ],
)
async def test_an_unreachable_server_is_a_connect_failed(host: str, reason: str) -> None:
    with trio.socket.socket() as unused:  # bound, but not listening
        await unused.bind((LOOPBACK, 0))
        port = unused.getsockname()[1]
        with pytest.raises(
            ConnectFailed, match=f"cannot connect to {host} port {port}: .*{reason}"
        ):
            async with multichat.connect(host, port):
                pass


@pytest.mark.process
async def test_a_host_that_does_not_answer_times_out() -> None:
    timeouts = ClientTimeouts(connect=0.2)
    async with AsyncExitStack() as stack:
        with trio.socket.socket() as listener:
            await listener.bind((LOOPBACK, 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            with pytest.raises(ConnectFailed, match=r"no answer in 0\.2 s"):
                # Linux does not answer any more when the queue of the listener is full.
                for _ in range(10):
                    stream = await multichat.dial(LOOPBACK, port, timeouts=timeouts)
                    stack.push_async_callback(trio.aclose_forcefully, stream)
