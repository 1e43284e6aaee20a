"""Negotiation of the protocol: JSON, plain text or no answer, without guessing."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from multichat import (
    ClientTimeouts,
    ConnectFailed,
    ConnectionLost,
    Goodbye,
    Message,
    NoJson,
    Notice,
    NotPrivate,
    Refused,
    Said,
    ServerConfig,
    open_chat,
)
from multichat.client.line_chat import LineChat
from multichat.client.negotiation import PROBE, PROBE_ANSWER, Negotiation
from multichat.errors import Remedy
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import PROTOCOL, Credentials, Error, Hello, Limits, Welcome
from multichat.protocol.text_codec import TEXT
from multichat.server.config import Filtered
from multichat.testing import ScriptedClient, memory_server
from tests.support.clients import open_line_chat, type_lines

pytestmark = pytest.mark.unit

ASKED = "[Server] a password is required: /auth PASSWORD"
ACCEPTED = "[Server] password accepted"


def welcome(name: str = "Client 7", room: str = "lobby") -> Welcome:
    return Welcome(
        PROTOCOL, 7, name, room, 2, Limits(65536, 32), None, "multichat 1", resumed=False
    )


def line_of(event: Any) -> str:
    return JSON.encode(event).decode().removesuffix("\n")


WELCOME = line_of(welcome())
CHAT = ["[bob] hello", "* bob waves", "[bob → you] psst", "[Server] back at noon"]
FOREIGN = [
    "hello",
    "bob> hello",
    "{}",
    '{"type":"said","name":"x","text":"y"}',
    '/json {"protocol":1}',  # an echo
    "[Server] unknown command /json; /help lists them",
]
ALICE = Credentials("alice", "correct horse")


# --- Pure ----------------------------------------------------------------------------------------


def test_a_welcome_means_json() -> None:
    shake = Negotiation(Hello(PROTOCOL))
    assert not shake.settled
    assert shake.receive(WELCOME) == [welcome()]
    assert (shake.codec, shake.welcome, shake.settled) == (JSON, welcome(), True)


@pytest.mark.parametrize("line", FOREIGN)
def test_any_other_first_line_means_text_for_good(line: str) -> None:
    shake = Negotiation(Hello(PROTOCOL))
    [event] = shake.receive(line)
    assert TEXT.format(event) == line
    assert (shake.codec, shake.settled) == (TEXT, True)
    assert shake.receive(WELCOME) == [Said(name="", text=WELCOME)]
    assert shake.welcome is None


@pytest.mark.parametrize("line", [*CHAT, ASKED, ACCEPTED])
def test_chat_that_may_precede_a_welcome_settles_no_protocol(
    line: str,
) -> None:
    shake = Negotiation(Hello(PROTOCOL))
    assert shake.receive(line) == []
    assert not shake.settled
    assert shake.receive(WELCOME) == [welcome()]
    assert shake.settled


@pytest.mark.parametrize("knows_json", [True, False])
def test_input_after_a_goodbye_before_the_welcome_is_ignored(knows_json: bool) -> None:
    shake = Negotiation(Hello(PROTOCOL), knows_json=knows_json)
    assert shake.receive(f"[Server] goodbye: banned\n{WELCOME}") == [Goodbye("banned")]
    assert shake.receive(WELCOME) == []
    assert not shake.settled


@pytest.mark.parametrize("knows_json", [True, False])
def test_a_goodbye_in_json_before_the_welcome_is_understood(knows_json: bool) -> None:
    shake = Negotiation(Hello(PROTOCOL), knows_json=knows_json)
    goodbye = Goodbye.of("unavailable", "the server is not available now")
    assert shake.receive(f"{line_of(goodbye)}\n{WELCOME}") == [goodbye]
    assert shake.disconnected
    assert shake.receive(WELCOME) == []


def test_chat_before_a_welcome_is_dropped_and_before_text_delivered() -> None:
    shake = Negotiation(Hello(PROTOCOL))
    assert shake.receive("\n".join(CHAT)) == []
    assert shake.chatting
    told = Negotiation(Hello(PROTOCOL))
    assert told.receive("\n".join([*CHAT, WELCOME, line_of(Notice("x"))])) == [
        welcome(),
        Notice("x"),
    ]
    assert not told.chatting
    shake = Negotiation(Hello(PROTOCOL))
    shake.receive("\n".join(CHAT))
    assert [TEXT.format(event) for event in shake.receive("and this\nand that")] == [
        *CHAT,
        "and this",
        "and that",
    ]


def test_chat_before_the_welcome_is_bounded() -> None:
    for line, most in (("[b] x", 25_000), ("[b] " + "x" * 10_000, 500)):
        shake = Negotiation(Hello(PROTOCOL))
        received = 0
        for _ in range(most):
            received += len(shake.receive(line))
        assert shake.settled
        assert received == most


def test_in_text_a_welcome_is_a_line_like_any_other() -> None:
    shake = Negotiation(Hello(PROTOCOL), plain=True)
    assert shake.settled
    assert shake.receive(WELCOME) == [Said(name="", text=WELCOME)]


def test_a_known_json_server_is_never_addressed_in_text() -> None:
    shake = Negotiation(Hello(PROTOCOL, session="x"), knows_json=True)
    for line in (*CHAT, *FOREIGN):
        assert shake.receive(line) == []
        assert not shake.settled
    assert shake.receive(WELCOME) == [welcome()]


def test_refusals_of_a_name_or_room_are_distinguished_from_other_errors() -> None:
    taken = Error("name-taken", "the name 'alice' is taken")
    bad_room = Error("invalid-name", "a room has no such name")
    shake = Negotiation(Hello(PROTOCOL, "alice", "no such"))
    assert shake.receive(WELCOME) == [welcome()]
    assert (shake.settled, shake.refusals) == (False, [])
    assert shake.receive(f"{line_of(bad_room)}\n{line_of(taken)}\n{line_of(taken)}") == [taken]
    assert shake.refusals == [bad_room, taken]
    assert shake.settled
    shake = Negotiation(Hello(PROTOCOL, "a b", "c d"))
    assert shake.receive(f"{WELCOME}\n{line_of(bad_room)}\n{line_of(Notice('x'))}") == [
        welcome(),
        Notice("x"),
    ]
    assert shake.settled  # one refusal of name and room, for the same reason


told = map(line_of, (Error("x", "y"), Notice("x"), Goodbye("x")))
lines = st.sampled_from(
    [*CHAT, *FOREIGN, ASKED, ACCEPTED, WELCOME, *told, "[Server] goodbye: x", PROBE_ANSWER]
)


@given(
    st.lists(lines, min_size=1),
    st.booleans(),
    st.sampled_from([None, "alice"]),
    st.sampled_from([None, ALICE]),
)
def test_a_block_of_lines_equals_its_single_lines(
    said: list[str], knows_json: bool, name: str | None, login: Credentials | None
) -> None:
    hello = Hello(PROTOCOL, name, login=login)
    one, other = (Negotiation(hello, knows_json=knows_json) for _ in range(2))
    assert one.receive("\n".join(said)) == [event for line in said for event in other.receive(line)]
    assert vars(one) == vars(other)


# --- With a server that follows a script ---------------------------------------------------------


@asynccontextmanager
async def server_that_says(*said: str, **options: Any) -> AsyncIterator[tuple[LineChat, Any]]:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    await server.send(*said)
    async with open_line_chat(ours, **options) as chat:
        assert (await server.line()).startswith("/json")
        yield chat, server
        await server.stream.aclose()
        with pytest.raises(ConnectionLost):
            while await chat.receive():
                pass


@pytest.mark.parametrize("line", FOREIGN)
async def test_text_is_used_with_a_plain_server_at_once(
    line: str, autojump_clock: MockClock
) -> None:
    async with server_that_says(line) as (chat, server):
        assert trio.current_time() < 0.1
        assert chat.fell_back
        assert TEXT.format(await anext(chat)) == line
        await chat.send("/usr", "hi")
        assert await server.lines(2) == ["//usr", "hi"]
        await server.send(WELCOME)  # no late switch back
        assert await anext(chat) == Said(name="", text=WELCOME)
        await chat.send("still text")
        assert await server.line() == "still text"


async def test_a_server_that_speaks_only_text_gets_no_passphrase(
    autojump_clock: MockClock,
) -> None:
    async with server_that_says("hello") as (chat, server):
        await anext(chat)
        lines = "/login bob swordfish", "/register swordfish", "/logn bob swordfish", "hi"
        for line in lines:
            await type_lines(chat, line)
        assert await server.line() == "hi"
        for _ in lines[:-1]:
            refusal = await anext(chat)
            assert isinstance(refusal, Error)
            assert refusal.code == "insecure"
            assert "no accounts" in refusal.text
        with pytest.raises(NotPrivate):
            await chat.login("bob", "swordfish")


@pytest.mark.parametrize("line", [*FOREIGN, "[bob] hello", "[Server] unknown command /ping", PROBE])
async def test_a_passphrase_is_not_sent_before_a_server_of_ours_has_answered(
    line: str, autojump_clock: MockClock
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    await server.send(line)
    async with open_line_chat(ours, login=ALICE) as chat:
        assert chat.fell_back
        assert await server.line() == PROBE
        await chat.send("hi")
        assert await server.line() == "hi"
        await server.stream.aclose()


async def test_a_passphrase_is_sent_to_our_server_after_chat_and_a_password_too() -> None:
    for config in ServerConfig(), ServerConfig(password="sesame"):
        async with memory_server(config) as network:
            secret = config.password
            async with open_line_chat(network.connect(), password=secret, name="alice") as alice:
                await alice.register(ALICE.passphrase)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(alice.say, "hello")
                    stream = network.connect()
                    async with open_line_chat(stream, password=secret, login=ALICE) as again:
                        assert again.account == "alice"


async def test_a_plain_server_that_only_tags_chat_is_given_a_moment(
    autojump_clock: MockClock,
) -> None:
    timeouts = ClientTimeouts(lobby=3)
    async with server_that_says("[bob] hello", timeouts=timeouts) as (chat, server):
        assert trio.current_time() == pytest.approx(3)
        assert chat.fell_back
        assert await anext(chat) == Said(name="bob", text="hello")
        await chat.send("hi")
        assert await server.line() == "hi"


@pytest.mark.parametrize("timeouts", [ClientTimeouts(), ClientTimeouts(answer=3)])
async def test_silence_is_an_error(timeouts: ClientTimeouts, autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    words = f"the server did not answer in {timeouts.answer:g} s"
    with pytest.raises(NoJson, match=words) as error:
        async with open_line_chat(ours, timeouts=timeouts):
            pytest.fail("nobody answered")
    assert error.value.remedy is Remedy.PERHAPS_SPEAK_TEXT
    assert trio.current_time() == pytest.approx(timeouts.answer)
    assert await ScriptedClient(theirs).rest() == [
        '/json {"protocol":1,"rooms":{}}'
    ]  # and nothing else


async def test_a_server_that_closes_without_an_answer_is_lost(autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_eof()
    with pytest.raises(ConnectionLost, match="the server closed the connection"):
        async with open_line_chat(ours):
            pytest.fail("nobody answered")


async def test_a_welcome_may_take_as_long_as_the_timeout(autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)

    async def answer() -> None:
        await trio.sleep(9)
        await server.send(WELCOME)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        async with open_line_chat(ours) as chat:
            assert chat.codec is JSON
            await chat.send("hi")
            assert await server.line() == '/json {"protocol":1,"rooms":{}}'
            said = json.loads(await server.line())
            assert said["text"] == "hi"
            await server.send(f'{{"type":"accepted","nonce":{said["nonce"]},"id":"x-1"}}')
            nursery.start_soon(server.finish)


@pytest.mark.parametrize(
    ("goodbye", "code"),
    [
        ("the server is full (limit: 1)", "full"),
        ("too many clients from your address (at most 4)", "full"),
        ("banned for 9 min", "banned"),
        ("the server is shutting down", "shutdown"),
        ("you are not admitted", "refused"),
        ("this server requires TLS: use multichat with --tls", "refused"),
    ],
)
@pytest.mark.parametrize("closes", [False, True])
async def test_a_goodbye_instead_of_an_answer_is_a_refusal(
    goodbye: str, code: str, closes: bool, autojump_clock: MockClock
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    await server.send("[bob] hi", f"[Server] goodbye: {goodbye}")
    if closes:
        await server.finish()
    with pytest.raises(Refused) as caught:
        async with open_chat(ours):
            pass
    assert (caught.value.code, str(caught.value)) == (code, goodbye)
    assert trio.current_time() < 0.1


async def use_another(message: Filtered) -> Filtered:
    await trio.lowlevel.checkpoint()
    return message if isinstance(message, Message) else msgspec.structs.replace(message, text="b")


@pytest.mark.parametrize("password", [None, "secret"])
async def test_a_name_and_a_room_that_a_filter_changes_are_not_refused(
    password: str | None, autojump_clock: MockClock
) -> None:
    config = ServerConfig(filters=(use_another,), filter_joins=True, password=password)
    async with memory_server(config) as network:
        for name, room in (("a", None), (None, "a"), ("a", "a"), ("b", "b")):
            stream = network.connect()
            async with open_chat(stream, name=name, room=room, password=password) as chat:
                assert chat.name == ("b" if name else f"Client {chat.client}")
                assert chat.room == ("b" if room else "lobby")
                assert await chat.say("hello")
        assert trio.current_time() < 1


async def test_a_goodbye_after_the_answer_is_an_event(autojump_clock: MockClock) -> None:
    for answer in (WELCOME, "[Server] unknown command /json"):
        ours, theirs = trio.testing.memory_stream_pair()
        server = ScriptedClient(theirs)
        goodbye = line_of(Goodbye("kicked")) if answer == WELCOME else "[Server] goodbye: kicked"
        await server.send(answer, goodbye)
        await server.finish()
        async with open_chat(ours) as chat:
            assert [event async for event in chat][-1] == Goodbye("kicked")
            with pytest.raises(ConnectionLost, match="kicked"):
                await chat.members()
            if answer == WELCOME:
                with pytest.raises(ConnectionLost, match="kicked"):
                    await chat.say("hello")


async def test_a_name_and_a_room_refused_in_one_error_do_not_delay_the_client(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        with pytest.raises(Refused, match="consists of letters"):
            async with network.chat(name="a b", room="c d"):
                pytest.fail("both are no names")
        assert trio.current_time() < 1


async def test_a_busy_lobby_does_not_turn_a_json_client_into_a_text_client(
    autojump_clock: MockClock,
) -> None:
    """The lobby's chat reaches a client that is connected and whose hello has not been read."""
    async with memory_server() as network:
        talker = await network.join()
        for i in range(20):
            stream = network.connect()
            await trio.testing.wait_all_tasks_blocked()  # the client is in the lobby
            await talker.send(*["said before the hello"] * 10)
            await trio.testing.wait_all_tasks_blocked()
            async with open_line_chat(stream) as chat:
                assert chat.codec is JSON
                await talker.send(f"said after it {i}")
                event = await anext(chat)
                assert isinstance(event, Said)
                assert event.text == f"said after it {i}"


async def test_text_chosen_after_chat_is_final(
    autojump_clock: MockClock,
) -> None:
    dials = 0

    async def redial() -> trio.abc.Stream:
        nonlocal dials
        dials += 1
        raise ConnectFailed("chat.example", 9000, "nobody is there")

    async with server_that_says("[bob] hi", redial=redial) as (chat, server):
        assert chat.fell_back
        assert await anext(chat) == Said(name="bob", text="hi")
        await server.send("[bob] more", WELCOME, "[bob] and more")
        said = [await anext(chat) for _ in range(3)]
        assert list(map(TEXT.format, said)) == ["[bob] more", WELCOME, "[bob] and more"]
        await chat.send("still text")
        assert await server.line() == "still text"
    assert not dials


async def test_an_incomplete_welcome_is_not_an_answer(autojump_clock: MockClock) -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(WELCOME.encode())
    await far.send_eof()
    with pytest.raises(ConnectionLost, match="closed the connection"):
        async with open_line_chat(near):
            pytest.fail("it came in")


# --- The password --------------------------------------------------------------------------------


async def test_a_password_request_does_not_prove_a_plain_server(autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)

    async def admit() -> None:
        await server.send(ASKED)
        assert (await server.line()).startswith("/json")
        await server.send(ASKED)  # the server treated the hello as a wrong password
        assert await server.line() == "/auth swordfish"
        await trio.sleep(20)
        await server.send(ACCEPTED, "[bob] in the lobby")
        await trio.sleep(5)
        await server.send(WELCOME)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(admit)
        async with open_line_chat(ours, password="swordfish") as chat:
            assert chat.codec is JSON
            nursery.start_soon(server.finish)
