"""A message is published in the intended room or not at all; a nonce belongs to one message."""

from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from multichat import ServerConfig
from multichat.journal.sqlite.journal import Durability, SqliteJournal
from multichat.protocol.messages import Error
from multichat.server.config import Message
from multichat.testing import memory_server
from tests.support.clients import open_line_chat, type_lines
from tests.support.programs import JsonClient, join

pytestmark = pytest.mark.unit


async def test_a_request_for_another_room_is_refused_without_effect() -> None:
    async with memory_server() as network:
        alice = await join(network, room="Kitchen")
        bob, carol = await join(network, room="kitchen"), await join(network)
        for type_ in ("say", "act"):
            refusal = await alice.ask(type_, text="psst", room="lobby")
            assert (refusal["type"], refusal["code"]) == ("error", "not-in-room")
            assert refusal["text"] == "you are not in the room lobby"
        assert (await alice.ask("history", room="lobby"))["code"] == "not-in-room"
        await alice.send({"type": "say", "text": "without a nonce", "room": ""})
        assert (await alice.hear("error"))["code"] == "not-in-room"
        assert (await alice.ask("history", room="KITCHEN"))["messages"] == []
        # In one read, to both rooms.
        rooms = ["kitchen", "lobby", "lobby", None, "kitchen"]
        await alice.send(
            *(
                {"type": "say", "text": f"{n}", "nonce": n, **({"room": room} if room else {})}
                for n, room in enumerate(rooms)
            )
        )
        answers = [await alice.answer(n) for n in range(5)]
        assert [answer["type"] for answer in answers] == [
            *("accepted", "error", "error", "accepted", "accepted")
        ]
        assert [(await bob.hear("said"))["text"] for _ in range(3)] == ["0", "3", "4"]
        assert await carol.history() == []


@pytest.mark.parametrize(
    "room",
    [
        *(
            "",
            "#",
            "\x00",
            "lobby\x00",
            "lobby\n",
            "\u200blobby",
            "lobby\ufffd",
            "lobbу",
        ),
        *("x" * 60_000, "a" + "\u0301\u0323" * 5_000, 0, True, ["lobby"], {"lobby": 1}),
    ],
    ids=lambda room: ascii(room)[:20],
)
async def test_a_name_that_is_not_the_rooms_names_another_room(room: object) -> None:
    async with memory_server() as network:
        alice, bob = await join(network), await join(network)
        for type_ in ("say", "act", "history"):
            refusal = await alice.ask(type_, text="psst", room=room)
            assert refusal["type"] == "error"
            assert len(str(refusal["text"])) < 150
        assert (await alice.ask("say", text="in the lobby", room="LOBBY"))["type"] == "accepted"
        assert (await bob.hear("said"))["text"] == "in the lobby"


async def test_messages_for_a_room_that_cannot_be_reentered_are_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(max_rooms=2)) as network:
        alice = await join(network, room="kitchen")
        accepted = await alice.ask("say", text="one", nonce=1)
        lobby = await join(network)
        await alice.reset()
        other = await join(network, room="den")
        alice = await join(network, session=alice.welcome["session"], since=accepted["id"])
        assert (alice.welcome["resumed"], alice.welcome["room"]) == (True, "lobby")
        assert (await alice.hear("error"))["code"] == "too-many-rooms"
        # Repeated accepted messages are accepted again; nothing else is.
        assert await alice.ask("say", text="one", nonce=1) == accepted
        for type_ in ("say", "act"):
            refusal = await alice.ask(type_, text="two")
            assert refusal["text"] == "you are not in the room kitchen"
        assert (await alice.ask("history"))["code"] == "not-in-room"
        assert (await alice.ask("join", room="kitchen"))["code"] == "too-many-rooms"
        assert (await alice.ask("say", text="two"))["code"] == "not-in-room"
        # Unless it names a room that it is in.
        assert (await alice.ask("say", text="hello lobby", room="lobby"))["type"] == "accepted"
        assert (await lobby.hear("said"))["text"] == "hello lobby"
        # It is still the session's room, which it enters as soon as possible.
        await alice.reset()
        await other.reset()
        await trio.sleep(1)
        alice = await join(network, session=alice.welcome["session"], since=accepted["id"])
        assert alice.welcome["room"] == "kitchen"
        assert (await alice.ask("say", text="two"))["type"] == "accepted"
        assert await alice.history() == ["one", "two"]
        assert await lobby.history() == ["hello lobby"]


@pytest.mark.parametrize("room", ["lobby", "den"])
async def test_a_client_whose_room_was_refused_can_join_another_and_talk_there(room: str) -> None:
    async with memory_server(ServerConfig(max_rooms=2)) as network:
        alice = await join(network, room="kitchen")
        await alice.reset()
        await trio.testing.wait_all_tasks_blocked()
        await join(network), await join(network, room="den")
        alice = await join(network, session=alice.welcome["session"])
        assert (await alice.ask("say", text="x"))["code"] == "not-in-room"
        assert (await alice.ask("join", room=room))["type"] == "joined"
        assert (await alice.ask("say", text="hello"))["type"] == "accepted"
        await alice.reset()
        await trio.testing.wait_all_tasks_blocked()
        alice = await join(network, session=alice.welcome["session"])
        assert alice.welcome["room"] == room
        assert await alice.history() == ["hello"]


@pytest.mark.parametrize("room", ["kitchen", "no room"])
async def test_messages_for_a_room_refused_in_the_hello_are_refused(
    room: str,
) -> None:
    async with memory_server(ServerConfig(max_rooms=1)) as network:
        await join(network)
        alice = await join(network, room=room, replay=5)
        assert alice.welcome["room"] == "lobby"
        assert (await alice.hear("error"))["code"] in ("too-many-rooms", "invalid-name")
        assert (await alice.ask("say", text="x"))["code"] == "not-in-room"
        assert (await alice.ask("join", room="lobby"))["type"] == "joined"
        assert (await alice.ask("say", text="x"))["type"] == "accepted"


# --- Nonces ---------------------------------------------------------------------------------------


async def test_a_nonce_that_is_used_for_another_message_is_refused() -> None:
    async with memory_server() as network:
        alice, bob = await join(network, name="alice"), await join(network, name="bob")
        requests: dict[str, dict[str, object]] = {
            "say": {"type": "say", "text": "x"},
            "act": {"type": "act", "text": "x"},
            "direct": {"type": "direct", "text": "x", "to": "bob"},
        }
        accepted = {}
        for nonce, request in requests.items():
            await alice.send({**request, "nonce": nonce})
            accepted[nonce] = await alice.answer(nonce)
            assert accepted[nonce]["type"] == "accepted"
        for nonce, its in requests.items():
            for request in (*requests.values(), {"type": "direct", "text": "x", "to": 2}):
                await alice.send({**request, "nonce": nonce})
                answer = await alice.answer(nonce)
                if request is its:
                    assert answer == accepted[nonce]
                else:
                    assert answer["code"] == "nonce-reused"
            await alice.send({**its, "text": "y", "nonce": nonce})
            assert (await alice.answer(nonce))["code"] == "nonce-reused"
        assert (await alice.ask("say", text="the end"))["type"] == "accepted"
        received = [(await bob.hear("said", "direct"))["text"] for _ in range(4)]
        assert received == ["x", "x", "x", "the end"]


@pytest.mark.parametrize("restart", [False, True], ids=["in memory", "from the file"])
async def test_after_a_reconnect_a_nonce_stands_for_its_text_and_room(
    restart: bool, tmp_path: Path
) -> None:
    """A reloaded page or a restarted bot counts from 1 again."""

    def journal() -> SqliteJournal:
        return SqliteJournal(tmp_path / "chat.db", durability=Durability.NORMAL)

    texts = [f"{n}" for n in range(300)]
    async with memory_server(journal=journal()) as network:
        alice = await join(network, room="den")
        await alice.send(
            *({"type": "say", "text": text, "nonce": n} for n, text in enumerate(texts))
        )
        accepted = [await alice.answer(n) for n in range(300)]
        await alice.reset()
        if not restart:
            await check_again(await join(network, session=alice.welcome["session"]), accepted)
    if restart:
        async with memory_server(journal=journal()) as network:
            await check_again(await join(network, session=alice.welcome["session"]), accepted)


async def check_again(alice: JsonClient, accepted: list[dict[str, object]]) -> None:
    for n in (299, 150, 44):
        same = {"type": "say", "text": f"{n}", "nonce": n}
        await alice.send(same)
        assert await alice.answer(n) == accepted[n]
        await alice.send({**same, "room": "DEN"})
        assert await alice.answer(n) == accepted[n]
        for changed in ({"text": "new"}, {"room": "lobby"}, {"type": "act"}):
            await alice.send({**same, **changed})
            assert (await alice.answer(n))["code"] == "nonce-reused"
    # In one read: known, reused and new nonces.
    await alice.send(
        {"type": "say", "text": "298", "nonce": 298},
        {"type": "say", "text": "other", "nonce": 297},
        {"type": "say", "text": "new", "nonce": "new"},
        {"type": "say", "text": "newer", "nonce": "new"},
    )
    assert await alice.answer(298) == accepted[298]
    assert (await alice.answer(297))["code"] == "nonce-reused"
    assert (await alice.answer("new"))["type"] == "accepted"
    assert (await alice.answer("new"))["code"] == "nonce-reused"
    assert (await alice.history())[-2:] == ["299", "new"]


async def test_a_nonce_matches_the_text_before_filtering() -> None:
    class Counting:
        """Changes each message differently."""

        calls = 0

        def __call__(self, message: Message) -> Message | None:
            self.calls += 1
            if message.text == "drop":
                return None
            return msgspec.structs.replace(message, text=f"{self.calls}: {message.text}")

    async with memory_server(ServerConfig(filters=(Counting(),))) as network:
        alice = await join(network)
        texts = ["a", "drop", "b"]
        await alice.send(*({"type": "say", "text": t, "nonce": t} for t in texts))
        first = [await alice.answer(t) for t in "ab"]
        await alice.send(*({"type": "say", "text": t, "nonce": t} for t in "ab"))
        assert [await alice.answer(t) for t in "ab"] == first
        assert (await alice.ask("say", text="1: a", nonce="a"))["code"] == "nonce-reused"
        assert await alice.history() == ["1: a", "3: b"]


# --- Our own client -------------------------------------------------------------------------------


async def test_messages_after_a_refused_join_are_not_published_in_the_old_room() -> None:
    """Both are sent before the answer to the first: the message was meant for the other room."""
    async with memory_server(ServerConfig(max_rooms=2)) as network:
        await join(network)
        bob = await join(network, room="den")
        async with open_line_chat(network.connect(), room="den") as chat:
            [_, said] = [
                *await type_lines(chat, "/join kitchen"),
                *await type_lines(chat, "for the kitchen"),
            ]
            async for event in chat:
                if isinstance(event, Error) and event.nonce == said:
                    assert event.code == "not-in-room"
                    break
            await type_lines(chat, "/join lobby")
            await type_lines(chat, "for the lobby")
            await type_lines(chat, "/join DEN")
            await chat.send("for the den")
            assert (await bob.hear("said"))["text"] == "for the den"
        reader = await join(network)
        assert await reader.history() == ["for the lobby"]
