"""A client in several rooms, and its account: against a scripted server and a real one."""

import pytest
import trio
from trio.testing import MockClock

import multichat
from multichat import (
    Credentials,
    Disconnected,
    Entered,
    Error,
    Exited,
    Joined,
    LocalProtocolError,
    NotPrivate,
    Reconnected,
    Refused,
    RoomSize,
    Said,
    ServerConfig,
)
from multichat.client.outbox import Pending
from multichat.errors import Remedy
from multichat.protocol.messages import Login
from multichat.testing import MemoryServer, memory_server
from tests.support.clients import type_lines
from tests.support.scripted_server import Peer, conversation, numbers

pytestmark = pytest.mark.unit

PASSPHRASE = "correct horse battery"


def rooms_of(**lasts: str | None) -> dict[str, dict[str, object]]:
    return {room: {"members": 1, "last": last} for room, last in lasts.items()}


async def enter(peer: Peer, room: str, last: str | None = None) -> None:
    """Answer a request to enter *room*."""
    request = await peer.read()
    assert (request["type"], request["room"]) == ("enter", room)
    await peer.tell(
        "joined", client=7, name="x", room=room, members=1, last=last, nonce=request["nonce"]
    )


# --- Against a scripted server --------------------------------------------------------------------


async def test_each_room_is_resumed_from_its_own_last_message(autojump_clock: MockClock) -> None:
    async with conversation(room="den", rooms=("ops",)) as (chat, network, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(enter, peer, "kitchen")
            assert await chat.enter("kitchen") == Entered("kitchen", 1, nonce=1)
        await peer.say(2, room="ops")
        await peer.say(3, room="den")
        assert await numbers(chat, 2) == [2, 3]
        await peer.reset()
        assert isinstance(await anext(chat), Disconnected)
        again = await network.peer()
        hello = await again.welcome(
            room="kitchen", rooms=rooms_of(ops="e-0009", den="e-0009", kitchen=None)
        )
        everything = {"replay": 2**31 - 1}
        assert hello["rooms"] == {
            "ops": {"since": "e-0002"},
            "den": {"since": "e-0003"},
            "kitchen": everything,
        }
        assert (hello["room"], hello["replay"]) == ("kitchen", 2**31 - 1)
        await again.say(2, 4, room="ops")
        await again.say(3, 4, room="den")
        received = [await anext(chat) for _ in range(3)]
        assert received[0] == Reconnected(resumed=True)
        assert [(each.room, each.text) for each in received if isinstance(each, Said)] == [
            ("ops", "4"),
            ("den", "4"),
        ]


async def test_a_room_whose_entering_is_unanswered_is_entered_again(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer), trio.open_nursery() as nursery:
        nursery.start_soon(_enter_den, chat)
        assert (await peer.read())["replay"] == 20
        await peer.reset()
        again = await network.peer()
        hello = await again.welcome(rooms=rooms_of(den="e-0005", lobby="e-0001"))
        assert hello["rooms"] == {"den": {"replay": 20}, "lobby": {"since": "e-0001"}}
        await enter(again, "den", "e-0005")
        await trio.testing.wait_all_tasks_blocked()
        assert chat.rooms == ("lobby", "den")


async def _enter_den(chat: multichat.Chat) -> None:
    entered = await chat.enter("den", replay=20)
    assert (entered.room, entered.last) == ("den", "e-0005")


async def test_a_message_is_for_the_room_that_was_current_when_it_was_sent(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        await type_lines(chat, "one")
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat.enter, "den")
            await trio.testing.wait_all_tasks_blocked()
            await chat.send("two")
            await chat.send("three", room="lobby")
            await enter(peer, "den")
            says = await peer.accept(2)
        assert [(each["room"], each["text"]) for each in says] == [
            ("den", "two"),
            ("lobby", "three"),
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat.exit, "den")
            exit_ = await peer.read()
            await chat.send("four")
            [say] = await peer.accept()
            assert say["room"] == "lobby"
            left = {"client": 7, "name": "x", "reason": "", "members": 0, "room": "den"}
            await peer.tell("left", **left, nonce=exit_["nonce"])
        assert chat.rooms == ("lobby",)


async def test_a_room_that_cannot_be_entered_again_is_an_error_and_the_others_continue(
    autojump_clock: MockClock,
) -> None:
    async with conversation(rooms=("ops", "den")) as (chat, network, peer):
        await peer.reset()
        assert isinstance(await anext(chat), Disconnected)
        again = await network.peer()
        hello = await again.welcome(room="den", rooms=rooms_of(den="e-0001"))
        assert hello["rooms"] == {"ops": {"since": "e-0001"}, "den": {"since": "e-0001"}}
        await again.tell("error", code="too-many-rooms", text="too many rooms", room="ops")
        assert await anext(chat) == Reconnected(resumed=True)
        assert await anext(chat) == Error("too-many-rooms", "too many rooms", room="ops")
        assert chat.rooms == ("den",)


async def test_an_older_server_refuses_to_enter_a_second_room(autojump_clock: MockClock) -> None:
    async with conversation() as (chat, _, peer), trio.open_nursery() as nursery:
        nursery.start_soon(_refuse, peer, "unknown-request")
        with pytest.raises(Refused, match="refused") as refused:
            await chat.enter("den")
        assert refused.value.code == "unknown-request"
        assert chat.rooms == ("lobby",)


async def _refuse(peer: Peer, code: str) -> None:
    await peer.tell("error", code=code, text="refused", nonce=(await peer.read())["nonce"])


async def test_a_passphrase_is_never_sent_again(autojump_clock: MockClock) -> None:
    async with conversation() as (chat, network, peer), trio.open_nursery() as nursery:

        async def log_in() -> None:
            with pytest.raises(Refused, match="the connection was lost; try again"):
                await chat.login("alice", PASSPHRASE)

        nursery.start_soon(log_in)
        assert (await peer.read())["passphrase"] == PASSPHRASE
        await chat.send("hello")
        await peer.reset()
        again = await network.peer()
        assert "login" not in await again.welcome()
        [say] = await again.accept()
        assert say["text"] == "hello"


async def test_later_connections_log_in_again_until_we_are_logged_out(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat.login, "alice", PASSPHRASE)
            await peer.tell("logged-in", name="Alice", nonce=(await peer.read())["nonce"])
        assert (chat.name, chat.account) == ("Alice", "Alice")
        await peer.reset()
        assert isinstance(await anext(chat), Disconnected)
        again = await network.peer()
        await again.admit_probe()
        hello = await again.welcome(name="Alice", account="Alice")
        assert hello["login"] == {"name": "Alice", "passphrase": PASSPHRASE}
        assert await anext(chat) == Reconnected(resumed=True)
        await again.tell("logged-out", name="Client 7", reason="a newer login")
        await anext(chat)
        assert (chat.name, chat.account) == ("Client 7", "")
        await again.reset()
        assert isinstance(await anext(chat), Disconnected)
        again = await network.peer()
        assert "login" not in await again.welcome()


async def test_a_login_that_is_refused_after_a_reconnect_says_what_that_means(
    autojump_clock: MockClock,
) -> None:
    async with conversation() as (chat, network, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat.login, "alice", PASSPHRASE)
            await peer.tell("logged-in", name="alice", nonce=(await peer.read())["nonce"])
        await peer.reset()
        assert isinstance(await anext(chat), Disconnected)
        again = await network.peer()
        await again.admit_probe()
        await again.welcome(name="alice", resumed=False, rooms=rooms_of(lobby=None))
        await again.tell("error", code="wrong-passphrase", text="the passphrase is wrong")
        assert await anext(chat) == Reconnected(resumed=False)
        text = "you are not logged in any more: the passphrase is wrong"
        assert await anext(chat) == Error("wrong-passphrase", text)
        assert (chat.name, chat.account) == ("alice", "")


async def test_a_wrong_passphrase_ends_the_handshake(autojump_clock: MockClock) -> None:
    login = Credentials("alice", PASSPHRASE)
    async with trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        peer = Peer(theirs)

        async def serve() -> None:
            await peer.admit_probe()
            await peer.welcome(rooms=rooms_of(lobby=None))
            await peer.tell("error", code="wrong-passphrase", text="the passphrase is wrong")

        nursery.start_soon(serve)
        with pytest.raises(Refused, match="the passphrase is wrong"):
            async with multichat.open_chat(ours, login=login):
                pytest.fail("it is admitted")


async def test_a_server_without_accounts_is_an_error(autojump_clock: MockClock) -> None:
    login = Credentials("alice", PASSPHRASE)
    async with trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        peer = Peer(theirs)

        async def serve() -> None:
            await peer.admit_probe()
            await peer.welcome()

        nursery.start_soon(serve)
        with pytest.raises(Refused, match="this server has no accounts"):
            async with multichat.open_chat(ours, login=login):
                pytest.fail("it is admitted")


async def test_a_passphrase_is_not_sent_where_others_could_read_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multichat.net.transport.is_private", lambda _: False)
    async with conversation() as (chat, _, peer):
        with pytest.raises(NotPrivate, match="in plain text, where others") as error:
            await chat.login("alice", PASSPHRASE)
        assert error.value.remedy is Remedy.USE_TLS
        with pytest.raises(NotPrivate):
            await chat.register(PASSPHRASE)
        with pytest.raises(NotPrivate):
            await chat.change_passphrase(PASSPHRASE)
        assert await type_lines(chat, f"/login alice {PASSPHRASE}") == [None]
        event = await anext(chat)
        assert isinstance(event, Error)
        assert event.code == "insecure"
        await chat.send("hello")
        assert (await peer.read())["text"] == "hello"  # and nothing before


def test_no_repr_shows_a_passphrase() -> None:
    request = Login("alice", PASSPHRASE)
    shown = repr([request, Credentials("alice", PASSPHRASE), Pending(1, request, PASSPHRASE)])
    assert PASSPHRASE not in shown


# --- Against our server ---------------------------------------------------------------------------


async def test_a_client_talks_and_listens_in_several_rooms(autojump_clock: MockClock) -> None:
    async with (
        memory_server() as network,
        network.chat(name="alice") as alice,
        network.chat(name="bob", room="den") as bob,
    ):
        assert await alice.enter("den") == Entered("den", 2, nonce=1)
        assert alice.rooms == ("lobby", "den")
        await alice.say("to the den")
        await alice.say("to the lobby", room="lobby")
        with pytest.raises(Refused, match="you are not in the room ops"):
            await alice.say("to nobody", room="ops")
        await bob.say("hello")
        said = [event for event in await alice.receive() if isinstance(event, Said)]
        assert [(each.room, each.text) for each in said] == [("den", "hello")]
        history = await alice.history(room="lobby")
        assert [each.text for each in history.messages] == ["to the lobby"]
        assert await alice.list_rooms() == [RoomSize("lobby", 1), RoomSize("den", 2)]
        await alice.enter("lobby")
        assert alice.room == "lobby"
        assert await alice.exit("den") == Exited("den", nonce=8)
        with pytest.raises(Refused) as refused:
            await alice.exit("lobby")
        assert refused.value.code == "last-room"


async def test_a_client_begins_in_several_rooms(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat(name="bob") as bob:
        for room in "lobby", "den", "ops":
            await bob.join(room)
            await bob.say(f"in {room}")
        async with multichat.open_chat(
            network.connect(), rooms=("lobby", "den"), room="ops", replay=5
        ) as alice:
            assert alice.rooms == ("lobby", "den", "ops")
            said = [await anext(alice) for _ in range(3)]
            assert {each.room for each in said if isinstance(each, Said)} == set(alice.rooms)
        with pytest.raises(Refused):
            async with multichat.open_chat(network.connect(), rooms=("den", "no such room")):
                pass


async def test_the_text_protocol_has_one_room(autojump_clock: MockClock) -> None:
    async with memory_server() as network, network.chat(plain=True) as chat:
        for request in chat.say("hi", room="den"), chat.enter("den"), chat.exit("den"):
            with pytest.raises(LocalProtocolError):
                await request


# --- Restarts and hostile servers -----------------------------------------------------------------


async def test_a_server_that_was_restarted_without_a_journal_has_us_in_all_rooms_again(
    autojump_clock: MockClock,
) -> None:
    servers: list[MemoryServer] = []

    async def dial() -> trio.abc.Stream:
        return servers[-1].connect()

    async def serve(most: int, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with memory_server(ServerConfig(max_rooms=most)) as server:
                servers.append(server)
                task_status.started(scope)
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve, 1024)
        async with multichat.open_chat(
            await dial(), name="alice", room="den", rooms=("ops", "tea"), redial=dial
        ) as alice:
            await alice.say("hello", room="ops")
            await alice.enter("kitchen")
            # The second server has no place for all of them, the third has.
            for most, count in (2, 2), (1024, 4):
                running.cancel(reason="a restart")
                running = await nursery.start(serve, most)
                while not isinstance(await anext(alice), Reconnected):
                    pass
                await trio.testing.wait_all_tasks_blocked()
                [info] = servers[-1].server.members
                assert set(info.rooms) == set(alice.rooms)
                assert len(info.rooms) == count
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_room_that_is_refused_is_requested_until_it_is_left(
    autojump_clock: MockClock,
) -> None:
    async with conversation(rooms=("ops", "den", "tea")) as (chat, network, peer):
        await peer.reset()
        again = await network.peer()
        await again.welcome(room="tea", rooms=rooms_of(tea="e-0001"))
        await again.tell("error", code="too-many-rooms", text="too many rooms", room="ops")
        await again.tell("error", code="invalid-name", text="not a name", room="den")
        await again.say(2, room="tea")
        assert await numbers(chat, 1) == [2]
        await again.reset()
        again = await network.peer()
        hello = await again.welcome(room="tea", rooms=rooms_of(tea="e-0001"))
        assert hello["rooms"] == {"ops": {"since": "e-0001"}, "tea": {"since": "e-0002"}}
        await again.tell("error", code="too-many-rooms", text="too many rooms", room="ops")
        assert (await again.read())["type"] == "ping"  # after which no more refusals come
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_refuse, again, "not-in-room")
            with pytest.raises(Refused):
                await chat.exit("ops")
        await again.reset()
        assert set((await (await network.peer()).welcome())["rooms"]) == {"tea"}


async def test_a_client_that_loses_its_only_room_continues(autojump_clock: MockClock) -> None:
    async with conversation() as (chat, network, peer):
        await peer.tell("left", client=7, name="x", reason="", members=0, room="lobby")
        await peer.tell("joined", client=7, name="x", room="den", members=1)  # no answer
        assert await anext(chat) == Exited("lobby")
        assert isinstance(await anext(chat), Joined)
        assert (chat.room, chat.rooms) == ("", ())
        await chat.send("hello")
        assert "room" not in (await peer.accept())[0]
        await peer.reset()
        again = await network.peer()
        hello = await again.welcome(room="lobby")
        assert "room" not in hello
        assert "rooms" not in hello or hello["rooms"] == {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(enter, again, "den")
            await chat.enter("den")
        assert chat.rooms == ("lobby", "den")


async def test_rooms_that_are_not_a_list_of_names_are_refused() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    for rooms in "lobby", (1, 2):
        with pytest.raises(LocalProtocolError, match="rooms must be a list of names"):
            async with multichat.open_chat(ours, rooms=rooms):  # type: ignore[arg-type]
                pytest.fail("it is open")


async def test_the_error_of_one_of_several_rooms_names_it(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        with pytest.raises(Refused, match=r"^a b: a room's name consists of letters"):
            async with multichat.open_chat(network.connect(), rooms=("den", "a b", "ops")):
                pytest.fail("it is open")
