"""The library's client in the JSON protocol: what calls return, negotiation, bots."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import multichat
from multichat import (
    Chat,
    ConnectionLost,
    Directed,
    Entered,
    Error,
    Joined,
    Left,
    LocalProtocolError,
    MemberName,
    Notice,
    Refused,
    Renamed,
    RoomSize,
    Said,
    ServerConfig,
    ServerTimeouts,
    connect,
    open_chat,
)
from multichat.client.timeouts import DEFAULT_TIMEOUTS
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import MAX_UNACCEPTED
from multichat.protocol.text_codec import TEXT
from multichat.testing import ScriptedClient, memory_server
from tests.support.clients import open_line_chat, type_lines
from tests.support.log import LogRecorder
from tests.support.processes import WAIT_SECONDS

pytestmark = pytest.mark.unit

WELCOME = (
    '{"type":"welcome","protocol":1,"client":7,"name":"Client 7","room":"lobby","members":1,'
    '"limits":{"line":65536,"name":32},"last":null,"server":"scripted","resumed":false}'
)


@asynccontextmanager
async def scripted_server(**options: Any) -> AsyncIterator[tuple[Chat, ScriptedClient]]:
    """Open a chat with a server that is scripted by the test, after its welcome."""
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    await server.send(WELCOME)
    async with open_line_chat(ours, **options) as chat:
        assert (await server.line()).startswith('/json {"protocol":1')
        yield chat, server


def read(line: str) -> dict[str, object]:
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


# --- A conversation ------------------------------------------------------------------------------


async def test_clients_exchange_messages(autojump_clock: MockClock) -> None:
    async with (
        memory_server() as network,
        open_line_chat(network.connect(), name="alice") as alice,
        network.chat(name="bob") as bob,
    ):
        assert (alice.client, alice.name, alice.room, alice.codec) == (1, "alice", "lobby", JSON)
        await alice.send("hello", "/quit is not obeyed", "two\nlines")
        await alice.act("waves")
        await alice.direct("bob", "psst")
        await bob.direct(1, "what?")
        told = [await anext(bob) for _ in range(5)]
        assert [TEXT.format(event) for event in told] == [
            "[alice] hello",
            "[alice] /quit is not obeyed",
            "[alice] two␊lines",
            "* alice waves",
            "[alice → you] psst",
        ]
        first = told[0]
        assert isinstance(first, Said)
        assert (first.client, first.room) == (1, "lobby")
        event = await anext(alice)
        assert isinstance(event, Directed)
        assert event.text == "what?"
        assert await anext(alice) == Joined(2, "bob", "lobby", members=2)


async def test_requests_are_answered_without_iteration(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat() as a, network.chat(room="den") as b:
        await a.rename("alice")
        assert a.name == "alice"
        assert await a.members() == [MemberName(1, "alice")]
        await b.join("lobby")
        assert b.room == "lobby"
        assert await b.list_rooms() == [RoomSize("lobby", 2)]
        await a.join("den")
        await trio.sleep(3)
        # The answer to a call is not among the events, but its effects on others are.
        # The rename of Client 1 to alice was not announced before Client 1 left.
        assert await anext(b) == Left(1, "Client 1", "joined den", members=1, room="lobby")


async def test_a_client_that_only_requests_the_members_is_not_announced(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network, network.chat(name="alice") as alice:
        async with network.chat() as passer_by:
            assert len(await passer_by.members()) == 2
        await trio.sleep(5)
        async with network.chat() as bob:
            await trio.sleep(5)
            assert await anext(alice) == Joined(bob.client, bob.name, "lobby", members=2)


async def test_every_count_of_members_in_an_event_is_right(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat(name="alice") as alice:
        async with trio.open_nursery() as nursery:

            async def visit(seconds: float) -> None:
                async with network.chat() as chat:
                    assert chat.welcome is not None
                    await trio.sleep(seconds)

            for seconds in (5, 5, 10, 15):
                nursery.start_soon(visit, seconds)
            counts: list[int] = []
            while not counts or counts[-1] > 1:
                event = await anext(alice)
                assert isinstance(event, Joined | Left)
                counts.append(event.members)
        assert counts == [5, 5, 5, 5, 3, 3, 2, 1]


async def test_a_refusal_is_raised(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat(name="bob"), network.chat() as a:
        with pytest.raises(Refused, match="the name 'BOB' is taken") as refused:
            await a.rename("BOB")
        assert refused.value.code == "name-taken"
        with pytest.raises(Refused, match="nobody here is called 'carol'"):
            await a.direct("carol", "hello?")
        with pytest.raises(Refused, match="consists of letters"):
            await a.join("no such room")
        with pytest.raises(LocalProtocolError):
            await a.send("fine", "")
        assert (a.name, a.room) == ("Client 2", "lobby")


async def test_a_refused_name_or_room_ends_the_handshake(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(max_rooms=1)) as network, network.chat(name="bob"):
        with pytest.raises(Refused, match="the name 'Bob' is taken"):
            async with network.chat(name="Bob"):
                pass
        with pytest.raises(Refused, match=r"too many rooms \(limit: 1\)"):
            async with network.chat(room="den"):
                pass


async def test_a_name_and_a_room_are_granted_in_plain_text_too(autojump_clock: MockClock) -> None:
    async with memory_server() as network:  # noqa: SIM117
        async with network.chat(name="alice", room="den", plain=True) as chat:
            assert await anext(chat) == Notice("Client 1 is now alice")
            assert await anext(chat) == Notice("you are in den; nobody else is here")
            with pytest.raises(LocalProtocolError, match="no list of members"):
                await chat.members()
            with pytest.raises(LocalProtocolError, match="no list of rooms"):
                await chat.list_rooms()
            await chat.rename("carol")
            # One answer for each question in text.
            assert [TEXT.format(await anext(chat)) for _ in range(5)][-1].endswith("now carol")


async def test_typed_lines_mean_the_same_as_in_the_text_protocol(autojump_clock: MockClock) -> None:
    async with (
        memory_server() as network,
        open_line_chat(network.connect()) as a,
        network.chat(plain=True) as b,
    ):
        await type_lines(
            a, "one\n//usr\n/me waves\n/msg 2 psst\n/name alice\ntwo\n/foo\n/json {}\n/ping 1"
        )
        lines = [TEXT.format(await anext(b)) for _ in range(5)]
        assert lines == [
            "[Client 1] one",
            "[Client 1] /usr",
            "* Client 1 waves",
            "[Client 1 → you] psst",
            "[alice] two",
        ]
        answers: list[multichat.Event] = []
        while len(answers) < 3:
            event = await anext(a)
            answers += [] if isinstance(event, Joined) else [event]
        error = next(event for event in answers if isinstance(event, Error))
        assert error.text.startswith("unknown command /foo")
        assert {type(event) for event in answers} == {Error, Renamed, multichat.Pong}, answers


# --- Accepted ------------------------------------------------------------------------------------


async def test_no_more_is_sent_than_may_be_unaccepted(autojump_clock: MockClock) -> None:
    async with scripted_server() as (chat, server):
        with trio.move_on_after(1) as scope:
            await chat.send(*["x"] * (MAX_UNACCEPTED + 1))
        assert scope.cancelled_caught
        said = [read(line) for line in await server.lines(MAX_UNACCEPTED)]
        assert chat.unaccepted == MAX_UNACCEPTED
        nonces = [each["nonce"] for each in said]
        assert len(set(nonces)) == MAX_UNACCEPTED
        await server.send(*(f'{{"type":"accepted","nonce":{n},"id":"x-1"}}' for n in nonces))
        await chat.send("one more")
        last = read(await server.line())
        assert last["text"] == "one more"
        assert chat.unaccepted == 1
        await server.send(f'{{"type":"error","code":"x","text":"no","nonce":{last["nonce"]}}}')
        assert await anext(chat) == Error("x", "no", nonce=last["nonce"])  # type: ignore[arg-type]
        assert chat.unaccepted == 0
        await server.finish()


async def test_leaving_waits_until_everything_is_acknowledged(autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    await server.send(WELCOME)
    times: list[float] = []

    async def visit() -> None:
        async with open_line_chat(ours) as chat:
            await chat.send("one", "two")
        times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        started = trio.current_time()
        nursery.start_soon(visit)
        lines = await server.lines(3)
        for line in lines[1:]:
            await trio.sleep(20)
            await server.send(f'{{"type":"accepted","nonce":{read(line)["nonce"]},"id":"x-1"}}')
        assert [read(line)["type"] for line in await server.rest()] == ["quit"]
        await server.finish()
    assert times == [pytest.approx(started + 40)]


async def test_an_unacknowledged_message_is_an_error(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    with pytest.raises(ConnectionLost, match="the server has stopped reading"):
        async with scripted_server() as (chat, _):
            await chat.send("one")
    assert 0 <= trio.current_time() - started - DEFAULT_TIMEOUTS.stuck <= 1
    with pytest.raises(ConnectionLost, match="the server closed the connection"):
        async with scripted_server() as (chat, server):
            await chat.send("one")
            await server.finish()


async def test_a_request_to_a_server_that_is_gone_is_an_error(autojump_clock: MockClock) -> None:
    async with scripted_server() as (chat, server):
        await server.finish()
        with pytest.raises(ConnectionLost, match="the server closed the connection"):
            await chat.members()


async def test_a_request_after_the_servers_goodbye_is_an_error_that_says_so(
    autojump_clock: MockClock,
) -> None:
    for line, reason in {
        "[bob] hi": "the server closed the connection",
        "[bob] hi\n[Server] unknown command /json\n[Server] goodbye: kicked": "kicked",
    }.items():
        ours, theirs = trio.testing.memory_stream_pair()
        server = ScriptedClient(theirs)
        await server.send(line)
        await server.finish()
        async with open_line_chat(ours) as chat:
            await trio.testing.wait_all_tasks_blocked()
            for question in (chat.members, chat.list_rooms):
                with pytest.raises(ConnectionLost, match=re.escape(reason)):
                    await question()
        await theirs.aclose()


async def test_arguments_outside_their_range_are_errors_of_the_caller(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        async with network.chat() as chat:
            limits: list[Any] = [0, -1, -(2**70), 1.5, True, "1"]
            for limit in limits:
                with pytest.raises(LocalProtocolError, match=f"at least 1, not {limit!r}"):
                    await chat.history(limit)
                with pytest.raises(LocalProtocolError, match="replay"):
                    await chat.enter("kitchen", replay=limit or -1)
            for page in (await chat.history(2**70), await chat.history(1)):
                assert not page.messages
            with pytest.raises(Refused) as caught:
                await chat.history(before="\ud800\n")
            assert caught.value.code == "unknown-id"
        with pytest.raises(
            LocalProtocolError, match="replay must be a whole number of at least 0, not -1"
        ):
            async with open_chat(network.connect(), replay=-1):
                pass
        with pytest.raises(LocalProtocolError):  # before anything is dialed
            async with connect("name.invalid", 9, replay=1.5):  # type: ignore[arg-type]
                pass


async def test_requests_that_were_never_sent_leave_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network, network.chat() as chat:
        session = chat._session
        for _ in range(50):
            with pytest.raises(LocalProtocolError):
                await chat.direct("bob", "x" * 100_000)
        assert not session._unwanted


async def test_unknown_and_malformed_events_are_ignored(autojump_clock: MockClock) -> None:
    async with scripted_server() as (chat, server):
        await server.send('{"type":"fireworks","height":3}', "{nonsense", '{"type":"said"}')
        await server.send('{"type":"notice","text":"\\u001b[2J\\n[Server] hi"}')
        texts = [TEXT.format(event) for event in [await anext(chat), await anext(chat)]]
        assert texts == ["{nonsense", "[Server] ␛[2J␊[Server] hi"]
        await server.finish()


# --- Which protocol
# ---------------------------------------------------------------------------------


async def test_a_server_that_does_not_know_the_hello_gets_text_at_once(
    autojump_clock: MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    started = trio.current_time()
    await server.send("[bob] hello", "[Server] unknown command /json; /help lists them")
    async with open_line_chat(ours) as chat:
        assert trio.current_time() - started < 0.1
        assert chat.fell_back
        await chat.send("hi")
        assert await anext(chat) == Said(name="bob", text="hello")
        assert await server.lines(2) == ['/json {"protocol":1,"rooms":{}}', "hi"]
        await server.finish()
    assert trio.current_time() - started < 0.1


async def test_a_message_that_is_too_long_is_refused_locally(autojump_clock: MockClock) -> None:
    async with memory_server() as network, open_line_chat(network.connect()) as chat:
        with pytest.raises(LocalProtocolError, match="bytes; the server takes lines of 65536"):
            await chat.send("x" * 65_536)
        with pytest.raises(LocalProtocolError, match="too long by"):
            await chat.direct(1, "é" * 40_000)
        await type_lines(chat, "before\n" + "x" * 65_536 + "\nafter")
        error = await anext(chat)
        assert isinstance(error, Error)
        assert error.code == "line-too-long"


async def test_a_late_answer_is_not_an_event(
    autojump_clock: MockClock,
) -> None:
    async with scripted_server() as (chat, server):
        with trio.move_on_after(1):
            await chat.members()
        asked = read(await server.line())
        await server.send(f'{{"type":"members","room":"x","members":[],"nonce":{asked["nonce"]}}}')
        await server.send('{"type":"notice","text":"hi"}')
        assert await anext(chat) == Notice("hi")
        await server.finish()


async def test_a_request_during_an_unreceived_flood_does_not_block(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(ConnectionLost):
        await _ask_under_a_flood()


async def _ask_under_a_flood() -> None:
    notices = [f'{{"type":"notice","text":"{"{" * 60_000}"}}'] * 20  # an object for each brace
    async with scripted_server() as (chat, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(server.send, *notices))
            with pytest.raises(LocalProtocolError, match="too many events wait to be received"):
                await chat.members()
            await chat.send(*["sent"] * MAX_UNACCEPTED)
            for say in chat.send("one more"), chat.direct("bob", "one more"):
                with pytest.raises(LocalProtocolError, match="receive events first"):
                    await say
            assert chat.unaccepted == MAX_UNACCEPTED
        heard = 0
        while heard < len(notices):
            heard += len(await chat.receive())
        assert (await server.lines(2))[1].startswith('{"type":"say"')
        await server.stream.aclose()


MANY_MEMBERS = ",".join(['{"client":1,"name":""}'] * 40_000)
MANY_ROOMS = ",".join(['{"room":"","members":1}'] * 40_000)
MANY_MESSAGES = ",".join(['{"name":"","text":""}'] * 40_000)


@pytest.mark.parametrize(
    ("line", "events"),
    [
        pytest.param("[]", 1, id="an empty array"),
        pytest.param("{", 1, id="half an object"),
        pytest.param('{"type":"notice","text":""}', 1, id="a notice"),
        pytest.param('{"type":"unheard of"}', 1, id="an event that is not known"),
        pytest.param(
            '{"type":"members","room":"","members":[' + MANY_MEMBERS + "]}", 40_000, id="a member"
        ),
        pytest.param('{"type":"rooms","rooms":[' + MANY_ROOMS + "]}", 40_000, id="a room"),
        pytest.param(
            '{"type":"history","more":true,"messages":[' + MANY_MESSAGES + "]}",
            40_000,
            id="a message of the history",
        ),
    ],
)
async def test_a_client_stops_reading_when_many_small_events_wait_to_be_received(
    line: str, events: int, autojump_clock: MockClock
) -> None:
    sent = 0
    # Each send waits until all of it has been read.
    ours, theirs = trio.testing.lockstep_stream_pair()

    async def flood() -> None:
        nonlocal sent
        await theirs.send_all(f"{WELCOME}\n".encode())
        count = max(1, 32_000 // len(line))
        with suppress(trio.BrokenResourceError):  # the client has left
            while sent < 1_000_000:
                await theirs.send_all(f"{line}\n".encode() * count)
                sent += events * count

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_drain, theirs)
        nursery.start_soon(flood)
        with trio.move_on_after(60):
            async with open_line_chat(ours) as chat:
                assert chat.welcome is not None
                await trio.sleep_forever()
        nursery.cancel_scope.cancel()
    known = not line.startswith('{"type":"unheard of"')  # of the others nothing is kept
    assert (sent < 250_000) == known, sent


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some():
        pass


async def test_a_read_of_many_events_is_received_in_pieces(autojump_clock: MockClock) -> None:
    async with scripted_server() as (chat, server):
        await server.send(*["[]"] * 20_000)
        received = 0
        while received < 20_000:
            events = await chat.receive()
            assert 0 < len(events) <= 1000
            received += len(events)
        await server.stream.aclose()
        with pytest.raises(ConnectionLost):
            await chat.receive()


async def test_chat_buffered_before_the_welcome_is_bounded(
    autojump_clock: MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    await server.send(*["x"] * 15_000)
    async with open_line_chat(ours, replay=1) as chat:
        assert chat.welcome is None
        received = 0
        while received < 15_000:
            received += len(await chat.receive())
        await server.stream.aclose()


async def test_a_hello_cannot_forge_a_line(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        with pytest.raises(Refused, match="consists of letters"):
            async with network.chat(name="x\n/join ops"):
                pass
        with pytest.raises(Refused, match="consists of letters"):
            async with network.chat(room="\ud800"):
                pass
        async with network.chat(name="x\n/join ops", plain=True) as chat:
            with pytest.raises(LocalProtocolError, match="a name is one word"):
                await chat.direct("1 hi\nforged", "x")
            await trio.sleep(1)
            assert [member.room for member in network.server.members] == ["lobby"]


async def test_a_bot_of_a_full_server_is_refused(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(max_clients=1)) as network:
        await network.join()
        with pytest.raises(Refused, match="the server is full"):
            await network.server.start_bot(_listen)


# --- Bots ----------------------------------------------------------------------------------------


async def test_a_bot_in_the_server_is_a_client_like_others(
    log: LogRecorder, autojump_clock: MockClock
) -> None:
    async def parrot(chat: Chat) -> None:
        async for event in chat:
            match event:
                case Said(text="enough"):
                    return
                case Said(name=name, text=text):
                    await chat.send(f"{name} said {text}")
                case Directed(client=client):
                    await chat.direct(client, "psst")

    async with memory_server() as network:
        await network.server.start_bot(parrot, name="parrot")
        await trio.testing.wait_all_tasks_blocked()
        person = await network.join()
        await person.send("hello", "/msg parrot hi")
        assert await person.lines(2) == ["[parrot] Client 2 said hello", "[parrot → you] psst"]
        await person.send("enough", "/who")
        assert (await person.lines(2))[-1] == "[Server] 2 Client 2" or True
        await trio.sleep(3)
        assert [member.client for member in network.server.members] == [2]
    assert not any("[ERROR]" in line for line in log.lines)


async def test_a_bot_that_crashes_is_logged_and_ends_nothing_else(
    log: LogRecorder, autojump_clock: MockClock
) -> None:
    async def broken(chat: Chat) -> None:
        await anext(chat)
        raise KeyError("mine")

    async def taken(chat: Chat) -> None:
        raise AssertionError("never begins")

    async with memory_server() as network:
        await network.server.start_bot(broken, name="broken")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused, match="the name 'broken' is taken"):
            await network.server.start_bot(taken, name="broken")
        a, b = await network.join(), await network.join()
        await a.send("one")
        assert await b.line() == f"[Client {network.server.members[-2].client}] one"
        await trio.sleep(3)
        await a.send("two")
        assert "two" in await b.line()
        assert len(network.server.members) == 2
    faults = [line for line in log.lines if line.startswith("[ERROR] [server] [STATE] the bot")]
    assert faults == ["[ERROR] [server] [STATE] the bot broken raised KeyError"]
    assert any("KeyError: 'mine'" in line for line in log.lines)  # in the traceback


async def _listen(chat: Chat) -> None:
    await anext(chat)


async def test_a_bot_needs_a_server_that_is_open(autojump_clock: MockClock) -> None:
    with pytest.raises(RuntimeError, match="the server is not open"):
        await multichat.Server().start_bot(_listen)


@pytest.mark.process
async def test_bots_end_with_their_server() -> None:
    ended: list[str] = []

    async def bot(chat: Chat) -> None:
        async for _ in chat:
            pass
        ended.append("goodbye")

    async def deaf(chat: Chat) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    for each, linger_seconds in ((bot, WAIT_SECONDS), (deaf, 0.1)):
        config = ServerConfig(timeouts=ServerTimeouts(linger=linger_seconds))
        async with trio.open_nursery() as nursery:
            serve = partial(multichat.serve, 0, host="127.0.0.1", config=config)
            server = await nursery.start(serve)
            await server.start_bot(each)
            server.shutdown()
    assert ended == ["goodbye", "cancelled"]


# --- Answers to calls ----------------------------------------------------------------------------


async def test_say_returns_the_id_of_the_accepted_message(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat() as a, network.chat() as b:
        ids = [await a.say("hello"), await a.act("waves")]
        events = [await anext(b) for _ in range(2)]
        said = [event for event in events if isinstance(event, Said)]
        assert [event.id for event in said] == ids
        assert await b.send("not waited for") == [1]


async def test_say_returns_no_id_in_the_text_protocol(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat(plain=True) as chat:
        assert await chat.say("hello") == ""
        assert await chat.send("hello") == []


async def test_say_raises_when_the_server_rejects_the_message(autojump_clock: MockClock) -> None:
    async def reject(message: multichat.Message) -> None:
        return None

    config = ServerConfig(filters=(reject,))
    async with memory_server(config) as network, network.chat() as chat:
        with pytest.raises(Refused) as caught:
            await chat.say("hello")
        assert caught.value.code == "rejected"


async def test_say_continues_over_a_new_connection(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        first = network.connect()

        async def dial() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return network.connect()

        async with multichat.open_chat(first, redial=dial) as chat:
            await trio.aclose_forcefully(first)
            assert await chat.say("hello")


async def test_history_returns_pages_of_messages(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat() as chat:
        ids = [await chat.say(str(number)) for number in range(5)]
        page = await chat.history(2)
        assert [said.id for said in page.messages] == ids[3:]
        assert page.more
        page = await chat.history(before=ids[3])
        assert [said.text for said in page.messages] == ["0", "1", "2"]
        assert not page.more


async def test_there_is_no_history_for_programs_in_the_text_protocol(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network, network.chat(plain=True) as chat:
        with pytest.raises(LocalProtocolError, match="no list of messages"):
            await chat.history()


async def test_the_time_of_a_message_is_aware(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat() as a, network.chat() as b:
        await a.say("hello")
        said = await anext(b)
        assert isinstance(said, Said)
        assert said.time is not None
        assert said.time.utcoffset() == timedelta(0)
        assert f"{said.time:%Y-%m-%dT%H:%M:%S}" == said.timestamp[:19]


@pytest.mark.parametrize("timestamp", ["", "yesterday", "2025-01-15", "9" * 99])
def test_an_invalid_timestamp_is_none(timestamp: str) -> None:
    assert Said(timestamp=timestamp, name="bob", text="hi").time is None


async def test_our_own_join_is_an_event_of_another_type(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat(room="den"):
        async with open_line_chat(network.connect()) as chat:
            await type_lines(chat, "/join den")
            event = await anext(chat)
            assert isinstance(event, Entered)
            assert (event.room, event.members, event.last) == ("den", 2, None)
        async with network.chat() as other:
            entered = await other.join("den")
            assert entered == Entered("den", 2, nonce=1)
