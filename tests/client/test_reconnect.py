"""A chat that reconnects, against a scripted server."""

import json
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import multichat
from multichat import (
    ConnectFailed,
    ConnectionLost,
    Disconnected,
    Error,
    Event,
    Goodbye,
    Missed,
    Reconnected,
    Refused,
    Said,
)
from multichat.client.connect import dial_first
from multichat.client.descriptions import describe_event
from multichat.client.options import ChatOptions
from multichat.client.position import EVERYTHING
from multichat.client.timeouts import DEFAULT_TIMEOUTS
from multichat.errors import RemoteProtocolError
from multichat.protocol.goodbyes import GOODBYES
from multichat.protocol.messages import MAX_UNACCEPTED, Joined, MemberName, Renamed
from multichat.testing import memory_server
from tests.support.clients import open_line_chat, type_lines
from tests.support.scripted_server import Network, conversation, numbers

pytestmark = pytest.mark.unit


FIRST, LONGEST = DEFAULT_TIMEOUTS.first_retry, DEFAULT_TIMEOUTS.longest_retry


RECONNECT = [code for code, reconnect in GOODBYES.items() if reconnect]
FINAL = [code for code, reconnect in GOODBYES.items() if not reconnect]


CLOSED = "the server closed the connection"
REFUSED = ConnectFailed("x", 1, "connection refused")


# --- A connection is lost ------------------------------------------------------------------------


async def test_missed_messages_are_replayed_without_duplicates(
    autojump_clock: MockClock,
) -> None:
    async with conversation(name="alice") as (chat, network, peer):
        await peer.say(2, 3)
        assert await numbers(chat, 2) == [2, 3]
        await peer.reset()
        lost = await anext(chat)
        assert isinstance(lost, Disconnected)
        assert lost.reason == CLOSED
        assert FIRST / 2 <= lost.retry_seconds <= FIRST
        connected = [chat.connected]
        peer = await network.peer()
        await peer.send("[bob] this is received in text, and once more below")
        hello = await peer.welcome()
        assert hello == {
            "protocol": 1,
            "name": "alice",
            "room": "lobby",
            "session": "token",
            "since": "e-0003",
            "rooms": {"lobby": {"since": "e-0003"}},
        }
        await peer.tell("missed", count=5)
        await peer.say(3, 9, 10, 9)
        assert await anext(chat) == Reconnected(resumed=True)
        assert [*connected, chat.connected] == [False, True]
        assert await anext(chat) == Missed(5)
        assert await numbers(chat, 2) == [9, 10]
        await peer.say(11)
        assert await numbers(chat, 1) == [11]
        assert len(network.dialled) == 2


async def test_unacknowledged_messages_are_sent_again_before_new_ones(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        await chat.send("one", "two", "three")
        await peer.accept()
        await peer.read()
        await trio.testing.wait_all_tasks_blocked()
        await peer.reset()  # with the second taken and not accepted, the third in the socket
        assert isinstance(await anext(chat), Disconnected)
        await chat.send("four")  # does not wait
        await type_lines(chat, "/me waves")
        await type_lines(chat, "five\n/name bob")
        assert chat.unaccepted == 5
        peer = await network.peer()
        await peer.welcome()
        requests = await peer.accept(5)
        assert [(each["type"], each["nonce"]) for each in requests] == [
            ("say", 2),
            ("say", 3),
            ("say", 4),
            ("act", 5),
            ("say", 6),
        ]
        rename = await peer.read()
        assert (rename["type"], rename["name"], rename["nonce"]) == ("name", "bob", 7)
        await chat.send("six")
        assert (await peer.accept())[0]["nonce"] == 8
        await trio.testing.wait_all_tasks_blocked()
        assert chat.unaccepted == 0


async def test_a_request_is_answered_by_the_next_connection(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer), trio.open_nursery() as nursery:
        answered: list[object] = []

        async def ask() -> None:
            answered.append(await chat.members())

        async def talk() -> None:
            await chat.direct("bob", "psst")
            answered.append("direct")

        nursery.start_soon(ask)
        asked = await peer.read()
        await peer.reset()
        assert isinstance(await anext(chat), Disconnected)
        nursery.start_soon(talk)
        peer = await network.peer()
        await peer.welcome()
        assert await peer.read() == asked
        await peer.tell("members", room="lobby", members=[], nonce=asked["nonce"])
        await peer.accept()
        await trio.testing.wait_all_tasks_blocked()
        assert answered == [[], "direct"]


async def test_waiting_messages_are_bounded_and_a_cancelled_one_is_not_sent(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        network.down = REFUSED
        await peer.reset()
        assert isinstance(await anext(chat), Disconnected)
        await chat.send(*["x"] * MAX_UNACCEPTED)
        with trio.move_on_after(5) as scope:
            await chat.send("one more")
        assert scope.cancelled_caught
        with trio.move_on_after(5) as scope:
            await chat.members()
        assert scope.cancelled_caught
        assert chat.unaccepted == MAX_UNACCEPTED
        network.down = None
        peer = await network.peer()
        await peer.welcome()
        requests = await peer.accept(MAX_UNACCEPTED)
        assert {request["text"] for request in requests} == {"x"}


async def test_each_failed_attempt_is_an_event_and_delays_grow(autojump_clock: MockClock) -> None:
    async with conversation() as (chat, network, peer):
        network.down = REFUSED
        await peer.reset()
        for failures in range(12):
            event = await anext(chat)
            assert isinstance(event, Disconnected)
            assert event.failures == failures
            most = min(FIRST * 2**failures, LONGEST)
            assert most / 2 <= event.retry_seconds <= most
            assert event.reason == ("connection refused" if failures else CLOSED)
        network.down = None
        peer = await network.peer()
        await peer.welcome()
        assert isinstance(await anext(chat), Reconnected)
        await trio.sleep(2)
        await peer.reset()
        event = await anext(chat)
        assert isinstance(event, Disconnected)
        assert (event.failures, event.retry_seconds <= FIRST) == (0, True)


async def test_a_connection_that_is_lost_at_once_does_not_reset_the_backoff(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        await trio.sleep(2)
        for most in (FIRST, 2 * FIRST):
            await peer.reset()
            event = await anext(chat)
            assert isinstance(event, Disconnected)
            assert most / 2 <= event.retry_seconds <= most
            peer = await network.peer()
            await peer.welcome()
            assert isinstance(await anext(chat), Reconnected)


@pytest.mark.parametrize("script", ["before the hello", "in the hello", "silent", "in the welcome"])
async def test_a_connection_that_ends_before_its_welcome_is_a_failed_attempt(
    script: str, autojump_clock: MockClock
) -> None:
    async with conversation() as (chat, network, peer):
        await chat.send("one")
        await peer.reset()
        event = await anext(chat)
        peer = await network.peer()
        match script:
            case "in the hello":
                await peer.stream.receive_some(5)
            case "silent":
                await trio.sleep(20)
            case "in the welcome":
                await peer.read()
                await peer.stream.send_all(b'{"type":"welcome","protocol":1,')
                await trio.testing.wait_all_tasks_blocked()
        await peer.reset()
        event = await anext(chat)
        assert isinstance(event, Disconnected)
        assert event.failures == 1
        peer = await network.peer()
        await peer.welcome()
        assert await anext(chat) == Reconnected(resumed=True, again=1)
        assert (await peer.accept())[0]["text"] == "one"


async def test_an_incomplete_line_is_ignored(autojump_clock: MockClock) -> None:
    async with conversation() as (chat, network, peer):
        line = '{"type":"said","id":"e-0002","room":"lobby","client":1,"name":"bob","text":"2"}\n'
        await peer.stream.send_all(line[:-5].encode())
        await trio.testing.wait_all_tasks_blocked()
        await peer.reset()
        peer = await network.peer()
        assert (await peer.welcome())["since"] == "e-0001"
        await peer.stream.send_all(line.encode())
        received: list[Event] = [await anext(chat) for _ in range(3)]
        assert [type(event) for event in received] == [Disconnected, Reconnected, Said]


async def test_an_interrupted_replay_continues_from_its_position(autojump_clock: MockClock) -> None:
    async with conversation() as (chat, network, peer):
        for first in (2, 5, 8):
            await peer.say(first, first + 1, first + 2)
            await trio.testing.wait_all_tasks_blocked()
            await peer.reset()
            peer = await network.peer()
            hello = await peer.welcome(last="e-0099")
            assert hello["since"] == f"e-{first + 2:04}"
        assert await numbers(chat, 9) == list(range(2, 11))


async def test_everything_is_replayed_of_a_room_that_was_empty(
    autojump_clock: MockClock,
) -> None:
    network = Network()
    stream = await network.dial()
    peer = await network.peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(peer.welcome, last=None))
        async with open_line_chat(stream, redial=network.dial) as chat:
            await peer.reset()
            peer = await network.peer()
            hello = await peer.welcome(last="e-0005")
            assert (hello.get("since"), hello["replay"]) == (None, EVERYTHING)
            await peer.reset()
            peer = await network.peer()
            await peer.welcome(last="e-0005")
            await peer.say(1, 2)
            assert await numbers(chat, 2) == [1, 2]
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(peer.finish)


@pytest.mark.parametrize(
    "goodbye",
    [
        *({"reason": "any words", "code": code, "reconnect": True} for code in RECONNECT),
        {"reason": "any words", "code": "not-known-yet", "reconnect": True},
        # The lines of servers of older versions.
        {"reason": "too slow"},
        {"reason": "too far behind"},
        {"reason": "idle for 60 s"},
        {"reason": "the server is shutting down"},
    ],
)
async def test_after_a_goodbye_that_allows_it_the_client_reconnects(
    goodbye: dict[str, Any], autojump_clock: MockClock
) -> None:
    async with conversation() as (chat, network, peer):
        await peer.tell("goodbye", **goodbye)
        await peer.finish()
        event = await anext(chat)
        assert isinstance(event, Disconnected)
        assert event.reason == goodbye["reason"]
        assert chat.goodbye is None
        peer = await network.peer()
        await peer.welcome()
        assert await anext(chat) == Reconnected(resumed=True)


@pytest.mark.parametrize(
    "goodbye",
    [
        *({"reason": "any words", "code": code, "reconnect": False} for code in FINAL),
        {"reason": "too slow", "code": "too-slow", "reconnect": False},
        {"reason": "kicked"},
        {"reason": "banned for 9 min"},
        {"reason": "taken over by a new connection"},
        {"reason": "words of another server"},
    ],
)
async def test_any_other_goodbye_is_final(
    goodbye: dict[str, Any], autojump_clock: MockClock
) -> None:
    async with conversation() as (chat, network, peer):
        await peer.tell("goodbye", **goodbye)
        await peer.finish()
        assert [event async for event in chat] == [Goodbye(**goodbye)]
        assert chat.goodbye == goodbye["reason"]
        assert len(network.dialled) == 1


async def test_an_event_of_our_own_after_a_final_goodbye_does_not_reconnect(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        await peer.tell("goodbye", reason="be nice", code="kicked", reconnect=False)
        assert isinstance(await anext(chat), Goodbye)
        await type_lines(chat, "/frobnicate")
        assert chat.goodbye == "be nice"
        await peer.finish()
        assert [type(event) async for event in chat] == [Error]
        assert len(network.dialled) == 1


async def test_an_answer_of_the_wrong_type_is_an_error_that_says_what_came(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, _, peer), trio.open_nursery() as nursery:

        async def answer() -> None:
            await peer.tell("rooms", rooms=[], nonce=(await peer.read())["nonce"])
            await peer.tell("accepted", nonce=(await peer.read())["nonce"])

        nursery.start_soon(answer)
        with pytest.raises(RemoteProtocolError, match="answered with `rooms` instead of `members`"):
            await chat.members()
        with pytest.raises(RemoteProtocolError, match="with `accepted` instead of `rooms`"):
            await chat.list_rooms()


async def test_invisible_characters_are_removed_from_names_but_not_from_texts(
    autojump_clock: MockClock,
) -> None:
    name, family = "al\u200b\u200d\u200f\u061c\U000e0041\u00adice", "👩\u200d👧 می\u200cخواهم"
    async with conversation() as (chat, _, peer), trio.open_nursery() as nursery:
        told = {"client": 8, "name": name}
        await peer.tell("said", id="e-0002", room="lobby", text=family, **told)
        await peer.tell("joined", **told)
        await peer.tell("renamed", client=8, old=name, name="al\u2060ice")
        said, joined, renamed = [await anext(chat) for _ in range(3)]
        assert isinstance(said, Said)
        assert (said.name, said.text) == ("alice", family)
        assert joined == Joined(8, "alice")
        assert renamed == Renamed(8, "alice", "alice")

        async def answer() -> None:
            nonce = (await peer.read())["nonce"]
            await peer.tell("members", room="lobby", members=[told], nonce=nonce)

        nursery.start_soon(answer)
        assert await chat.members() == [MemberName(8, "alice")]


GOODBYE = {"type": "goodbye", "reason": "any words"}


@pytest.mark.parametrize("code", RECONNECT)
async def test_the_client_reconnects_after_a_goodbye_although_the_server_does_not_close(
    code: str, autojump_clock: MockClock
) -> None:
    async with conversation() as (chat, network, peer):
        await peer.tell("goodbye", reason="any words", code=code, reconnect=True)
        started = trio.current_time()
        peer = await network.peer()
        assert trio.current_time() - started < DEFAULT_TIMEOUTS.finish + 1
        await peer.welcome()
        assert isinstance(await anext(chat), Disconnected)
        assert await anext(chat) == Reconnected(resumed=True)


@pytest.mark.parametrize("code", FINAL)
async def test_a_final_goodbye_ends_the_chat_although_the_server_does_not_close(
    code: str, autojump_clock: MockClock
) -> None:
    async with conversation() as (chat, network, peer):
        await peer.tell("goodbye", reason="any words", code=code, reconnect=False)
        started = trio.current_time()
        assert [event async for event in chat] == [Goodbye("any words", code, reconnect=False)]
        assert trio.current_time() - started <= DEFAULT_TIMEOUTS.finish
        assert not chat.connected
        assert len(network.dialled) == 1


async def test_a_chat_ends_as_soon_as_the_server_closes_after_its_goodbye(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, _, peer):
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat.finish)
            quit_ = await peer.read()
            await peer.tell("goodbye", reason="x", code="quit", nonce=quit_["nonce"])
            await peer.finish()
        assert trio.current_time() - started < DEFAULT_TIMEOUTS.finish / 2


@pytest.mark.parametrize("together", [True, False], ids=["one read", "two reads"])
@pytest.mark.parametrize(("code", "reconnect"), [("shutdown", True), ("kicked", False)])
async def test_lines_after_a_goodbye_are_ignored(
    code: str, reconnect: bool, together: bool, autojump_clock: MockClock
) -> None:
    async with conversation() as (chat, network, peer):
        goodbye = json.dumps(GOODBYE | {"code": code, "reconnect": reconnect})
        rest = ["x" * 1_100_000, '{"type":"notice","text":"one more thing"}']
        await peer.send(goodbye, *rest if together else ())
        if not together:
            await trio.testing.wait_all_tasks_blocked()
            await peer.send(*rest)
        if not reconnect:
            events = [event async for event in chat]
            assert events == [Goodbye("any words", code, reconnect=False)]
            assert len(network.dialled) == 1
            return
        peer = await network.peer()
        await peer.welcome()
        assert isinstance(await anext(chat), Disconnected)
        assert await anext(chat) == Reconnected(resumed=True)


async def test_a_full_server_that_does_not_close_is_retried(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        await peer.reset()
        peer = await network.peer()
        await peer.send("[Server] goodbye: the server is full (limit: 1)", "[bob] hello")
        peer = await network.peer()
        await peer.welcome()
        events = [await anext(chat) for _ in range(3)]
        assert [type(event) for event in events] == [Disconnected, Disconnected, Reconnected]


@pytest.mark.parametrize(("after", "least"), [(20, 20), (1e9, 300), (0, 0), (-1, 0)])
async def test_a_goodbye_may_set_the_delay(
    after: float, least: float, autojump_clock: MockClock
) -> None:
    async with conversation() as (chat, network, peer):
        await peer.tell("goodbye", reason="x", code="full", reconnect=True, after=after)
        await peer.finish()
        started = trio.current_time()
        peer = await network.peer()
        assert least <= trio.current_time() - started <= least + 1
        await peer.welcome()
        assert isinstance(await anext(chat), Disconnected)
        assert isinstance(await anext(chat), Reconnected)


@pytest.mark.parametrize("is_back", [True, False], ids=["another node", "one server"])
async def test_a_client_of_a_draining_server_reconnects_as_soon_as_possible(
    is_back: bool, autojump_clock: MockClock
) -> None:
    async with conversation() as (chat, network, peer):
        await peer.tell("goodbye", reason="x", code="draining", reconnect=True, after=60)
        await peer.finish()
        started = trio.current_time()
        if not is_back:
            network.down = REFUSED
            await trio.sleep(59)
            network.down = None
        peer = await network.peer()
        took = trio.current_time() - started
        assert took < 0.3 if is_back else 59 <= took <= 61
        await peer.welcome()
        while not isinstance(await anext(chat), Reconnected):
            pass


async def test_a_goodbye_instead_of_a_welcome_is_final(autojump_clock: MockClock) -> None:
    async with conversation() as (chat, network, peer):
        await peer.reset()
        peer = await network.peer()
        await peer.send("[Server] goodbye: banned")
        await peer.finish()
        events = [event async for event in chat]
        assert [type(event) for event in events] == [Disconnected, Goodbye]


async def test_a_full_server_is_retried(autojump_clock: MockClock) -> None:
    """It may be its own last connection that takes the place, which is not known to be gone."""
    full = "the server is full (limit: 1)"
    async with conversation() as (chat, network, peer):
        await peer.reset()
        for _ in range(3):
            peer = await network.peer()
            await peer.send(f"[Server] goodbye: {full}")
            await peer.finish()
        peer = await network.peer()
        await peer.welcome()
        events = [await anext(chat) for _ in range(5)]
        assert [type(event) for event in events] == [Disconnected] * 4 + [Reconnected]
        reasons = [event.reason for event in events if isinstance(event, Disconnected)]
        assert reasons == [CLOSED, full, full, full]
        assert chat.goodbye is None
        pauses = [after - before for before, after in pairwise(network.dialled)]
        assert pauses == sorted(pauses)  # longer each time, as without a server


async def test_a_certificate_that_is_not_accepted_is_reported_once_and_retried(
    autojump_clock: MockClock,
) -> None:
    """Whether it has another authority now, or is that of a hotel's network."""
    untrusted = "its certificate is not accepted"
    async with conversation() as (chat, network, peer):
        network.down = ConnectFailed("x", 1, untrusted, lasting=True)
        await peer.reset()
        events = [await anext(chat) for _ in range(2)]
        network.down = REFUSED
        events += [await anext(chat)]
        network.down = ConnectFailed("x", 1, untrusted, lasting=True)
        events += [await anext(chat)]
        network.down = None
        peer = await network.peer()
        await peer.welcome()
        events += [await anext(chat)]
        lost = events[:-1]
        assert [event.fault for event in lost if isinstance(event, Disconnected)] == [
            "",
            untrusted,
            "",
            "",
        ]
        assert isinstance(events[-1], Reconnected)
        assert [line for event in events for line in describe_event(event)] == [
            f"Connection lost: {CLOSED}; reconnecting",
            f"Cannot reconnect: {untrusted}; trying again",
            "Connected again",
        ]


# --- A server that no longer has the session -----------------------------------------------------


async def test_a_private_message_to_a_number_is_not_sent_to_a_server_that_was_restarted() -> None:
    """Because another client may have that number now."""
    async with conversation() as (chat, network, peer):
        await peer.tell("direct", time="", client=3, name="bob", text="hi")
        assert isinstance(await anext(chat), multichat.Directed)
        (nonce,) = await type_lines(chat, "/r a secret")
        request = await peer.read()
        assert (request["type"], request["to"], request["nonce"]) == ("direct", 3, nonce)
        failures: list[Refused] = []

        async def direct() -> None:
            try:
                await chat.direct(4, "another secret")
            except Refused as refused:
                failures.append(refused)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(direct)
            assert (await peer.read())["to"] == 4
            await chat.send("in public")
            await peer.read()
            await peer.reset()
            peer = await network.peer()
            await peer.welcome(client=9, name="Client 9", session="another", resumed=False)
        assert failures[0].code == "nobody-there"
        assert (await peer.read())["text"] == "in public"
        events = [await anext(chat) for _ in range(3)]
        assert isinstance(events[0], Disconnected)
        assert isinstance(events[1], Error)
        assert events[1].nonce == nonce
        assert events[2] == Reconnected(resumed=False, again=1)
        assert await type_lines(chat, "/r hello?") == [None]
        event = await anext(chat)
        assert isinstance(event, Error)
        assert event.text == "nobody has sent you a private message"


async def test_a_client_with_a_new_session_sends_unacknowledged_messages_again(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        await chat.send("one")
        await peer.reset()
        peer = await network.peer()
        await peer.welcome(client=9, name="Client 9", session="another", resumed=False)
        assert isinstance(await anext(chat), Disconnected)
        assert await anext(chat) == Reconnected(resumed=False, again=1)
        assert (chat.client, chat.name) == (9, "Client 9")
        await peer.accept()
        await trio.testing.wait_all_tasks_blocked()
        await peer.reset()
        peer = await network.peer()
        hello = await peer.welcome()
        assert (hello["session"], hello["since"]) == ("another", "e-0001")


async def test_a_first_transmission_does_not_count_as_sent_again(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        network.down = ConnectFailed("x", 1, "connection refused")
        await peer.reset()
        assert isinstance(await anext(chat), Disconnected)
        await chat.send("one", "two")
        network.down = None
        for again in (0, 2):  # by the second time they were sent
            peer = await network.peer()
            await peer.welcome(client=9, name="Client 9", session=f"s{again}", resumed=False)
            while not isinstance(event := await anext(chat), Reconnected):
                pass
            assert event == Reconnected(resumed=False, again=again)
            await trio.testing.wait_all_tasks_blocked()
            await peer.reset()


async def test_a_room_that_began_anew_is_reported(autojump_clock: MockClock) -> None:
    async with conversation() as (chat, network, peer):
        await peer.say(5)
        await trio.testing.wait_all_tasks_blocked()
        await peer.reset()
        peer = await network.peer()
        await peer.welcome(last="d-0003", resumed=False)
        await peer.tell("error", code="unknown-id", text="no message of this room has that id")
        await peer.tell("said", id="d-0004", room="lobby", client=1, name="bob", text="4")
        events = [await anext(chat) for _ in range(5)]
        assert events[2] == Reconnected(resumed=False)
        assert events[3] == Error(
            "unknown-id",
            "messages that were said here meanwhile may be missing; /history shows the latest",
        )
        assert isinstance(events[4], Said)
        await peer.reset()
        peer = await network.peer()
        assert (await peer.welcome())["since"] == "d-0004"


async def test_a_taken_name_does_not_prevent_a_resume(
    autojump_clock: MockClock,
) -> None:
    async with conversation(name="alice") as (chat, network, peer):
        await peer.reset()
        peer = await network.peer()
        await peer.welcome(name="Client 9", client=9, resumed=False)
        await peer.tell("error", code="name-taken", text="the name 'alice' is taken")
        events = [await anext(chat) for _ in range(3)]
        assert events[2] == Error("name-taken", "the name 'alice' is taken")
        assert chat.name == "Client 9"
        await chat.send("hi")
        await peer.accept()


async def test_a_message_is_published_only_in_its_room(autojump_clock: MockClock) -> None:
    async with conversation(room="den") as (chat, network, peer):
        await chat.send("for the den alone")
        await peer.reset()
        peer = await network.peer()
        await peer.welcome(room="lobby", resumed=False)
        await peer.tell("error", code="too-many-rooms", text="too many rooms")
        assert isinstance(await anext(chat), Disconnected)
        assert isinstance(await anext(chat), Reconnected)
        with pytest.raises(Refused, match="too many rooms"):
            await anext(chat)
        assert '"say"' not in "".join(await peer.rest())


# --- The end -------------------------------------------------------------------------------------


async def test_leaving_waits_for_acknowledgements_over_the_next_connection(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer), trio.open_nursery() as nursery:
        await chat.send("one", "two")
        nursery.start_soon(chat.finish)
        await trio.sleep(1)
        await peer.reset()
        peer = await network.peer()
        await peer.welcome()
        await peer.accept()
        await trio.testing.wait_all_tasks_blocked()
        await peer.reset()
        peer = await network.peer()
        await peer.welcome()
        assert [request["text"] for request in await peer.accept()] == ["two"]
        assert (await peer.read())["type"] == "quit"
        await peer.finish()


async def test_leaving_times_out_without_acknowledgements(autojump_clock: MockClock) -> None:
    async with conversation() as (chat, network, peer):
        await chat.send("one", "two")
        started = trio.current_time()
        network.down = REFUSED
        await peer.accept()
        await trio.sleep(1)
        await peer.reset()
        with pytest.raises(ConnectionLost):
            await chat.finish()
        assert trio.current_time() - started == pytest.approx(DEFAULT_TIMEOUTS.progress, rel=0.1)
        assert [event async for event in chat]  # and it ends


async def test_a_blocked_server_is_reconnected_to(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer), trio.open_nursery() as nursery:
        await chat.send("one")
        nursery.start_soon(chat.finish)
        peer = await network.peer()
        await peer.welcome()
        await peer.accept()
        assert (await peer.read())["type"] == "quit"
        await peer.finish()


async def test_leaving_does_not_reconnect_if_everything_is_acknowledged(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        network.down = REFUSED
        await peer.reset()
        assert isinstance(await anext(chat), Disconnected)
        await chat.finish()
        assert all(isinstance(event, Disconnected) for event in [event async for event in chat])
        with pytest.raises(ConnectionLost):
            await chat.send("too late")


async def test_cancelling_ends_the_waiting_at_once(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    with trio.move_on_after(100):
        async with conversation() as (chat, network, peer):
            network.down = REFUSED
            await peer.reset()
            async for _ in chat:
                pass
    assert trio.current_time() - started == 100


@pytest.mark.process
async def test_an_interrupted_client_sends_quit() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(multichat.serve, 0, host="127.0.0.1"))
        async with multichat.connect("127.0.0.1", server.port) as watcher:
            async with trio.open_nursery() as visiting:

                async def visit(task_status: trio.TaskStatus[None]) -> None:
                    async with multichat.connect("127.0.0.1", server.port) as chat:
                        await chat.send("hi")  # so that it is announced
                        await chat.members()
                        task_status.started()
                        await trio.sleep_forever()

                await visiting.start(visit)
                visiting.cancel_scope.cancel(reason="the visit is over")
            while True:
                if isinstance(await anext(watcher), multichat.Left):
                    break
        server.shutdown()


async def test_without_reconnect_a_lost_connection_is_an_error(autojump_clock: MockClock) -> None:
    network = Network()
    stream = await network.dial()
    peer = await network.peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.welcome)
        async with open_line_chat(stream) as chat:
            await peer.reset()
            with pytest.raises(ConnectionLost, match="the server closed the connection"):
                await anext(chat)


async def test_there_is_no_resume_in_the_text_protocol(autojump_clock: MockClock) -> None:
    network = Network()
    stream = await network.dial()
    peer = await network.peer()
    async with open_line_chat(stream, redial=network.dial, plain=True) as chat:
        await peer.reset()
        with pytest.raises(ConnectionLost):
            await anext(chat)
    assert len(network.dialled) == 1


@pytest.mark.parametrize("password", ["swordfish", "another"])
async def test_a_reconnect_sends_the_password_again(
    password: str, autojump_clock: MockClock
) -> None:
    network = Network()
    stream = await network.dial()
    peer = await network.peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.welcome)
        async with open_line_chat(stream, redial=network.dial, password="swordfish") as chat:
            await peer.reset()
            assert isinstance(await anext(chat), Disconnected)
            peer = await network.peer()
            await peer.read()
            await peer.send("[Server] a password is required: /auth PASSWORD")
            assert await peer.line() == "/auth swordfish"
            if password == "swordfish":
                await peer.send("[Server] password accepted")
                await peer.welcome()
                assert await anext(chat) == Reconnected(resumed=True)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(peer.finish)
            else:
                await peer.send("[Server] wrong password")
                with pytest.raises(Refused, match="wrong password"):
                    await anext(chat)


@pytest.mark.parametrize("how", ["lost", "shutdown", "lost after the password", "no answer"])
async def test_a_connection_that_ends_during_the_password_is_followed_by_another(
    how: str, autojump_clock: MockClock
) -> None:
    async with conversation(password="swordfish") as (chat, network, peer):
        await peer.reset()
        peer = await network.peer()
        await peer.read()
        await peer.send("[Server] a password is required: /auth PASSWORD")
        if how == "shutdown":
            await peer.send("[Server] goodbye: the server is shutting down")
        if how != "lost":
            assert await peer.line() == "/auth swordfish"
        if how != "no answer":
            await peer.finish()
        peer = await network.peer()
        await peer.welcome()
        events = [await anext(chat) for _ in range(3)]
        assert [type(event) for event in events] == [Disconnected, Disconnected, Reconnected]


async def test_leaving_during_the_password_is_not_a_refusal(
    autojump_clock: MockClock,
) -> None:
    async with conversation(password="swordfish") as (chat, network, peer):
        await chat.send("unheard")
        await peer.read()
        await peer.reset()
        async with trio.open_nursery() as nursery:
            peer = await network.peer()
            await peer.read()
            await peer.send("[Server] a password is required: /auth PASSWORD")
            assert await peer.line() == "/auth swordfish"
            nursery.start_soon(chat.finish)
            await trio.testing.wait_all_tasks_blocked()
            await peer.send("[Server] password accepted")
            await peer.welcome()
            assert [request["text"] for request in await peer.accept()] == ["unheard"]
            await peer.finish()


async def test_a_client_that_was_given_no_password_does_not_try_again(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        await peer.reset()
        peer = await network.peer()
        await peer.read()
        await peer.send("[Server] a password is required: /auth PASSWORD")
        await peer.finish()
        assert isinstance(await anext(chat), Disconnected)
        with pytest.raises(Refused, match="password"):
            await anext(chat)
        assert len(network.dialled) == 2


@pytest.mark.parametrize("end", ["lost", "shutdown"])
@pytest.mark.parametrize("plain", [False, True])
async def test_a_first_connection_that_ends_during_the_password_is_not_a_wrong_password(
    end: str, plain: bool, autojump_clock: MockClock
) -> None:
    network = Network()
    stream = await network.dial()
    peer = await network.peer()
    await peer.send("[Server] a password is required: /auth PASSWORD")
    if end == "shutdown":
        await peer.send("[Server] goodbye: the server is shutting down")
    else:
        await peer.finish()
    with pytest.raises((Refused, ConnectionLost)) as caught:
        async with open_line_chat(stream, password="swordfish", plain=plain):
            pass
    assert getattr(caught.value, "code", "lost") == end


# --- The first connection ------------------------------------------------------------------------


async def test_a_waiting_client_retries_after_connections_without_a_welcome(
    autojump_clock: MockClock,
) -> None:
    network = Network()
    stream = await network.dial()

    async def serve() -> None:
        for _ in range(3):  # as of a proxy whose server is not there yet
            await (await network.peer()).reset()
        peer = await network.peer()
        assert await peer.welcome() == {"protocol": 1, "name": "alice", "rooms": {}}
        await peer.say(2)
        await peer.read()
        await peer.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with open_line_chat(stream, redial=network.dial, wait=True, name="alice") as chat:
            assert chat.name == "alice"
            assert await numbers(chat, 1) == [2]


async def test_a_client_that_waited_for_its_server_reports_no_lost_connection(
    autojump_clock: MockClock,
) -> None:
    network = Network()
    stream = await network.dial()
    away = "the server is not available now: it cannot reach its storage"

    async def serve() -> None:
        for _ in range(2):
            peer = await network.peer()
            await peer.read()
            await peer.tell("goodbye", reason=away, code="unavailable", reconnect=True)
            await peer.finish()
        peer = await network.peer()
        await peer.welcome()
        await peer.say(1)
        await peer.read()
        await peer.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with open_line_chat(stream, redial=network.dial, wait=True) as chat:
            kinds: list[type] = []
            while Said not in kinds:
                kinds += map(type, await chat.receive())
    assert Disconnected not in kinds


async def test_with_plain_and_wait_a_client_reconnects_until_its_password_is_accepted(
    autojump_clock: MockClock,
) -> None:
    network = Network()
    stream = await network.dial()

    async def serve() -> None:
        for last in (False, False, True):
            peer = await network.peer()
            await peer.send("[Server] a password is required: /auth PASSWORD")
            assert await peer.line() == "/auth swordfish"
            if last:
                await peer.send("[Server] password accepted", "[bob] hi")
                assert await peer.line() == "hello"
            await peer.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with open_line_chat(
            stream, redial=network.dial, wait=True, plain=True, password="swordfish"
        ) as chat:
            assert not chat.fell_back
            await chat.send("hello")


@pytest.mark.parametrize("first", ["[bob] chat in a busy lobby", '{"type":"welcome"'])
async def test_a_waiting_client_retries_after_a_connection_without_an_answer(
    first: str, autojump_clock: MockClock
) -> None:
    network = Network()
    stream = await network.dial()

    async def serve() -> None:
        peer = await network.peer()
        await peer.stream.send_all(first.encode() + b"\n" * first.startswith("["))
        await peer.finish()
        peer = await network.peer()
        await peer.welcome()
        await peer.read()
        await peer.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with open_line_chat(stream, redial=network.dial, wait=True) as chat:
            assert chat.client == 7


async def test_a_client_that_does_not_wait_gets_the_error(autojump_clock: MockClock) -> None:
    network = Network()
    stream = await network.dial()
    await (await network.peer()).reset()
    with pytest.raises(ConnectionLost):
        async with open_line_chat(stream, redial=network.dial):
            pass
    assert len(network.dialled) == 1


async def test_a_server_that_grants_another_name_and_is_silent_does_not_answer(
    autojump_clock: MockClock,
) -> None:
    network = Network()
    stream = await network.dial()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial((await network.peer()).welcome, name="another"))
        with pytest.raises(ConnectionLost, match="the server does not answer"):
            async with open_line_chat(stream, redial=network.dial, name="alice"):
                pass


async def test_dialling_is_repeated_until_a_server_answers(autojump_clock: MockClock) -> None:
    network = Network()
    network.down = REFUSED
    told: list[ConnectFailed] = []

    async def come_up() -> None:
        await trio.sleep(60)
        network.down = None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_up)
        await dial_first(network.dial, ChatOptions(wait=True), told.append)
    assert told == [REFUSED]  # once, however often it was tried
    assert 5 <= len(network.dialled) <= 20
    network.down = ConnectFailed("x", 1, "no", lasting=True)
    with pytest.raises(ConnectFailed):
        await dial_first(network.dial, ChatOptions(wait=True))


async def test_the_last_messages_are_replayed_on_request(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat(name="bob") as bob:
        await bob.send(*map(str, range(10)))
        await bob.members()
        async with open_line_chat(network.connect(), replay=3) as chat:
            assert await numbers(chat, 3) == [7, 8, 9]
            await bob.send("10")
            assert await numbers(chat, 1) == [10]


# --- With a server of ours -----------------------------------------------------------------------


async def test_every_message_arrives_once_however_often_connections_are_cut(
    autojump_clock: MockClock,
) -> None:
    count = 200
    received: dict[str, list[str]] = {}
    async with memory_server() as network, trio.open_nursery() as nursery:
        streams: list[trio.abc.Stream] = []

        async def dial() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            streams.append(network.connect())
            return streams[-1]

        async def cut() -> None:
            for i in range(30):
                await trio.sleep(0.7)
                await trio.aclose_forcefully(streams[-1 - i % min(3, len(streams))])

        async def talk(name: str, names: int) -> None:
            texts: list[str] = received.setdefault(name, [])
            async with (
                open_line_chat(await dial(), name=name, redial=dial) as chat,
                trio.open_nursery() as mine,
            ):

                async def listen() -> None:
                    while events := await chat.receive():
                        texts.extend(event.text for event in events if isinstance(event, Said))

                mine.start_soon(listen)
                await trio.sleep(1)
                for i in range(count):
                    await chat.send(f"{name} {i}")
                    await trio.sleep(0.1)
                while len(texts) < count * (names - 1):
                    await trio.sleep(1)
                await trio.sleep(5)
                mine.cancel_scope.cancel(reason="all was received")

        nursery.start_soon(cut)
        for name in ("a", "b", "c"):
            nursery.start_soon(talk, name, 3)
    for name, texts in received.items():
        assert len(texts) == len(set(texts)) == 2 * count
        for other in {"a", "b", "c"} - {name}:
            theirs = [text for text in texts if text.startswith(other)]
            assert theirs == [f"{other} {i}" for i in range(count)]
    of_c = [[text for text in received[name] if text.startswith("c")] for name in ("a", "b")]
    assert of_c[0] == of_c[1]


@pytest.mark.parametrize("before", [0, 3])
async def test_a_client_cut_after_a_join_gets_exactly_the_messages_since(
    before: int, autojump_clock: MockClock
) -> None:
    async with memory_server() as network, network.chat(name="bob", room="den") as bob:
        streams: list[trio.abc.Stream] = []

        async def dial() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            streams.append(network.connect())
            return streams[-1]

        if before:
            await bob.send(*map(str, range(before)))
        await bob.members()
        async with open_line_chat(await dial(), redial=dial) as chat:
            await chat.join("den")
            await trio.aclose_forcefully(streams[-1])
            assert isinstance(await anext(chat), Disconnected)
            await bob.send("10", "11")
            assert await numbers(chat, 2) == [10, 11]
            await bob.send("12")
            assert await numbers(chat, 1) == [12]
