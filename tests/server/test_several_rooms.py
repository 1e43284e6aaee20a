"""A client in several rooms: each rule of docs/protocol.md, over memory streams."""

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from multichat import ServerConfig, Slow
from multichat.journal.sqlite.journal import SqliteJournal
from multichat.testing import MemoryServer, memory_server
from tests.support.programs import JsonClient, join

pytestmark = pytest.mark.unit

Clock = trio.testing.MockClock


async def until_quiet(client: JsonClient) -> list[dict[str, Any]]:
    """Return all events that *client* has received, up to the answer to a ping."""
    await trio.sleep(3)  # joins and leaves are announced by then
    events: list[dict[str, Any]] = []
    nonce = f"quiet {len(client.ids)} {trio.current_time()}"
    await client.send({"type": "ping", "nonce": nonce})
    while (event := await client.hear_any()).get("nonce") != nonce:
        events.append(event)
    return events


async def rooms_of(client: JsonClient, network: MemoryServer) -> tuple[str, ...]:
    [info] = [each for each in network.server.members if each.client == client.welcome["client"]]
    assert info.room == info.rooms[-1]
    return info.rooms


# --- enter, exit and join -------------------------------------------------------------------------


async def test_enter_joins_a_room_in_addition_to_the_others() -> None:
    async with memory_server() as network:
        alice = await join(network, name="alice")
        assert await alice.ask("enter", room="kitchen", nonce=1) == {
            "type": "joined",
            "client": 1,
            "name": "alice",
            "room": "kitchen",
            "members": 1,
            "nonce": 1,
        }
        bob, carol = await join(network), await join(network, room="kitchen")
        await bob.say("in the lobby")
        await carol.say("in the kitchen")
        assert [await alice.said(), await alice.said()] == [
            ("lobby", "in the lobby"),
            ("kitchen", "in the kitchen"),
        ]
        assert await rooms_of(alice, network) == ("lobby", "kitchen")


async def test_the_answer_to_enter_has_the_room_s_members_and_last_id() -> None:
    async with memory_server() as network:
        bob = await join(network, room="kitchen")
        await bob.say("one")
        alice = await join(network)
        answer = await alice.ask("enter", room="KITCHEN")
        assert answer["room"] == "kitchen"
        assert (answer["members"], answer["last"]) == (2, bob.ids["one"])


async def test_enter_replays_the_messages_after_since_or_the_last_ones() -> None:
    async with memory_server() as network:
        bob = await join(network, room="kitchen")
        await bob.say(*"12345")
        alice, carol = await join(network), await join(network)
        await alice.ask("enter", room="kitchen", since=bob.ids["3"])
        assert [await alice.said() for _ in range(2)] == [("kitchen", "4"), ("kitchen", "5")]
        await carol.ask("enter", room="kitchen", replay=1)
        assert await carol.said() == ("kitchen", "5")


async def test_an_unknown_since_is_an_error_after_the_answer() -> None:
    async with memory_server() as network:
        alice = await join(network)
        await alice.send({"type": "enter", "room": "kitchen", "since": "no id"})
        assert (await alice.hear("joined"))["room"] == "kitchen"
        error = await alice.hear("error")
        assert (error["code"], error["room"]) == ("unknown-id", "kitchen")


async def test_entering_a_room_again_makes_it_current_and_replays_nothing(
    autojump_clock: Clock,
) -> None:
    async with memory_server() as network:
        alice, bob = await join(network), await join(network)
        await bob.say("one")
        assert await alice.said() == ("lobby", "one")
        await alice.ask("enter", room="kitchen")
        again = await alice.ask("enter", room="Lobby", replay=5)
        assert (again["type"], again["room"], again["members"]) == ("joined", "lobby", 2)
        assert [e for e in await until_quiet(alice) if e["type"] == "said"] == []
        assert await rooms_of(alice, network) == ("kitchen", "lobby")
        await alice.say("two")
        assert await bob.said() == ("lobby", "two")


async def test_exit_leaves_one_room() -> None:
    async with memory_server() as network:
        alice = await join(network, name="alice", rooms={"kitchen": {}, "ops": {}})
        bob = await join(network, name="bob", room="kitchen")
        assert await alice.ask("exit", room="KITCHEN", nonce=1) == {
            "type": "left",
            "client": 1,
            "name": "alice",
            "reason": "",
            "members": 1,
            "room": "kitchen",
            "nonce": 1,
        }
        await bob.say("after")
        assert (await alice.ask("say", text="x", room="kitchen"))["code"] == "not-in-room"
        assert await rooms_of(alice, network) == ("ops",)


async def test_exiting_the_current_room_makes_the_one_entered_last_current() -> None:
    async with memory_server() as network:
        alice = await join(network, rooms={"a": {}, "b": {}, "c": {}})
        await alice.ask("enter", room="a")
        await alice.ask("exit", room="a")
        assert await rooms_of(alice, network) == ("b", "c")
        await alice.ask("exit", room="b")
        assert await rooms_of(alice, network) == ("c",)


async def test_the_last_room_cannot_be_exited() -> None:
    async with memory_server() as network:
        alice = await join(network, room="kitchen")
        refusal = await alice.ask("exit", room="kitchen")
        assert (refusal["type"], refusal["code"]) == ("error", "last-room")
        assert await rooms_of(alice, network) == ("kitchen",)


async def test_a_client_cannot_exit_a_room_that_it_is_not_in() -> None:
    async with memory_server() as network:
        alice = await join(network)
        assert (await alice.ask("exit", room="kitchen"))["code"] == "not-in-room"


async def test_join_leaves_all_other_rooms() -> None:
    async with memory_server() as network:
        alice = await join(network, rooms={"a": {}, "b": {}, "c": {}})
        assert (await alice.ask("join", room="b"))["room"] == "b"
        assert await rooms_of(alice, network) == ("b",)
        assert (await alice.ask("join", room="d"))["room"] == "d"
        assert await rooms_of(alice, network) == ("d",)
        assert network.server.statistics().rooms == 1


async def test_the_number_of_rooms_of_a_client_is_limited() -> None:
    async with memory_server(ServerConfig(max_rooms_per_client=3)) as network:
        alice = await join(network, rooms={"a": {}, "b": {}})
        assert (await alice.ask("enter", room="c"))["type"] == "joined"
        refusal = await alice.ask("enter", room="d")
        assert (refusal["code"], refusal["text"]) == (
            "too-many-rooms",
            "you are in too many rooms (limit: 3); leave one first",
        )
        assert (await alice.ask("enter", room="a"))["type"] == "joined"  # it is there
        assert (await alice.ask("exit", room="b"))["type"] == "left"
        assert (await alice.ask("enter", room="d"))["type"] == "joined"


async def test_rooms_that_are_entered_count_as_rooms_and_as_new_ones() -> None:
    config = ServerConfig(max_rooms=3, max_new_rooms=2)
    async with memory_server(config) as network:
        alice = await join(network)
        for room in ("a", "b"):
            assert (await alice.ask("enter", room=room))["type"] == "joined"
        assert (await alice.ask("enter", room="c"))["text"] == "too many rooms (limit: 3)"
        await alice.ask("exit", room="b")
        assert "too many new rooms" in (await alice.ask("enter", room="c"))["text"]


# --- Requests and events --------------------------------------------------------------------------


async def test_requests_name_any_of_the_rooms_and_otherwise_mean_the_one_entered_last() -> None:
    async with memory_server() as network:
        alice = await join(network, rooms={"a": {}, "b": {}})
        in_a, in_b = await join(network, room="a"), await join(network, room="b")
        for type_ in ("say", "act"):
            await alice.ask(type_, text="to a", room="A")
            assert await in_a.said() == ("a", "to a")
            await alice.ask(type_, text="to b")
            assert await in_b.said() == ("b", "to b")
        assert [each["room"] for each in (await alice.ask("history"))["messages"]] == ["b", "b"]
        page = await alice.ask("history", room="a")
        assert (page["room"], [each["text"] for each in page["messages"]]) == ("a", ["to a"] * 2)
        assert (await alice.ask("who"))["room"] == "b"
        assert (await alice.ask("who", room="a"))["room"] == "a"


async def test_messages_of_one_read_for_several_rooms_keep_their_order_in_each() -> None:
    async with memory_server() as network:
        alice = await join(network, rooms={"a": {}, "b": {}})
        in_a, in_b = await join(network, room="a"), await join(network, room="b")
        rooms = ["a", "b", "a", "a", "b"]
        await alice.send(
            *(
                {"type": "say", "text": str(n), "room": room, "nonce": n}
                for n, room in enumerate(rooms)
            )
        )
        assert [(await alice.answer(n))["type"] for n in range(5)] == ["accepted"] * 5
        assert [(await in_a.said())[1] for _ in range(3)] == ["0", "2", "3"]
        assert [(await in_b.said())[1] for _ in range(2)] == ["1", "4"]


async def test_events_about_others_name_the_room_after_enter_only(autojump_clock: Clock) -> None:
    async with memory_server() as network:
        old, new = await join(network, name="old"), await join(network, name="new")
        await new.ask("enter", room="lobby")
        await until_quiet(old), await until_quiet(new)
        bob = await join(network, name="bob")
        heard = [await until_quiet(each) for each in (old, new)]
        assert [[e.get("room") for e in each] for each in heard] == [[None], ["lobby"]]
        await bob.reset()
        await trio.sleep(10)
        heard = [await until_quiet(each) for each in (old, new)]
        assert [[(e["type"], e.get("room")) for e in each] for each in heard] == [
            [("left", None)],
            [("left", "lobby")],
        ]
        for _ in range(20):
            await join(network)
        heard = [await until_quiet(each) for each in (old, new)]
        assert [[(e["type"], e.get("room")) for e in each] for each in heard] == [
            [("presence", None)],
            [("presence", "lobby")],
        ]
        assert "room" not in await old.ask("history")
        assert (await new.ask("history"))["room"] == "lobby"


async def test_a_new_name_is_announced_once_and_without_a_room(autojump_clock: Clock) -> None:
    rooms: dict[str, object] = {"a": {}, "b": {}, "c": {}}
    async with memory_server() as network:
        alice, bob = [await join(network, name=n, rooms=rooms) for n in ("alice", "bob")]
        some = await join(network, name="some", rooms={"b": {}, "c": {}})
        one = await join(network, name="one", room="c")
        for each in (alice, bob, some, one):
            await until_quiet(each)
        await bob.ask("name", name="bert")
        renamed = {"type": "renamed", "client": 2, "old": "bob", "name": "bert"}
        for each in (alice, some, one):
            assert await until_quiet(each) == [renamed]
        await bob.ask("name", name="bill")
        await bob.ask("name", name="bob")
        for each in (alice, some, one):
            assert await until_quiet(each) == [{**renamed, "old": "bert", "name": "bob"}]


async def test_a_new_name_is_announced_once_by_rooms_that_announce_at_different_times(
    autojump_clock: Clock,
) -> None:
    """A room that has just announced something waits for a second before the next time."""
    rooms: dict[str, object] = {"a": {}, "b": {}}
    async with memory_server() as network:
        alice, bob = [await join(network, name=n, rooms=rooms) for n in ("alice", "bob")]
        in_b = await join(network, name="carol", room="b")
        for each in (alice, bob, in_b):
            await until_quiet(each)
        visitor = await join(network, name="dave", room="a")
        await trio.sleep(0.15)  # now a has announced dave, and b has not announced anything
        await bob.ask("name", name="bert")
        for each in (alice, in_b, visitor):
            events = [e for e in await until_quiet(each) if e["type"] == "renamed"]
            assert [e["name"] for e in events] == ["bert"]


async def test_a_client_that_has_just_joined_is_announced_with_its_new_name(
    autojump_clock: Clock,
) -> None:
    async with memory_server() as network:
        alice, bob = [await join(network, name=n, rooms={"a": {}}) for n in ("alice", "bob")]
        in_b = await join(network, room="b")
        for each in (alice, bob, in_b):
            await until_quiet(each)
        await alice.ask("enter", room="b")
        await until_quiet(alice), await until_quiet(in_b)
        await bob.ask("enter", room="b")
        await bob.ask("name", name="bert")
        types = [(e["type"], e["name"], e.get("room")) for e in await until_quiet(alice)]
        assert sorted(types) == [("joined", "bert", "b"), ("renamed", "bert", None)]
        assert [(e["type"], e["name"]) for e in await until_quiet(in_b)] == [("joined", "bert")]


async def test_a_client_that_leaves_is_announced_in_each_room(autojump_clock: Clock) -> None:
    rooms: dict[str, object] = {"a": {}, "b": {}}
    async with memory_server() as network:
        alice, bob = [await join(network, name=n, rooms=rooms) for n in ("alice", "bob")]
        await until_quiet(alice), await until_quiet(bob)
        await bob.reset()
        left = [e for e in await until_quiet(alice) if e["type"] == "left"]
        assert left == []  # it may come back
        await trio.sleep(5)
        left = await until_quiet(alice)
        assert sorted((e["type"], e["name"], e["room"]) for e in left) == [
            ("left", "bob", "a"),
            ("left", "bob", "b"),
        ]


async def test_a_notice_reaches_each_client_once() -> None:
    async with memory_server() as network:
        alice = await join(network, rooms={"a": {}, "b": {}})
        bob, carol = await join(network, room="b"), await join(network)
        receipt = await network.server.broadcast("Dinner is ready")
        assert receipt.delivered + receipt.queued == 3
        for client in (alice, bob, carol):
            events = await now(client)
            assert [e["text"] for e in events if e["type"] == "notice"] == ["Dinner is ready"]


async def now(client: JsonClient) -> list[dict[str, Any]]:
    """Return the events that *client* has received by now."""
    events: list[dict[str, Any]] = []
    await client.send({"type": "ping", "nonce": "now"})
    while (event := await client.hear_any()).get("nonce") != "now":
        events.append(event)
    return events


async def test_a_private_message_reaches_a_client_in_several_rooms_once() -> None:
    async with memory_server() as network:
        alice = await join(network, name="alice", rooms={"a": {}, "b": {}})
        bob = await join(network, name="bob")
        assert (await bob.ask("direct", to="alice", text="psst"))["type"] == "accepted"
        assert [e["text"] for e in await now(alice) if e["type"] == "direct"] == ["psst"]


async def test_a_nonce_belongs_to_the_session() -> None:
    async with memory_server() as network:
        alice = await join(network, rooms={"a": {}, "b": {}})
        accepted = await alice.ask("say", text="x", room="a", nonce=1)
        assert await alice.ask("say", text="x", room="a", nonce=1) == accepted
        for fields in ({"text": "x", "room": "b"}, {"text": "y", "room": "a"}):
            assert (await alice.ask("say", nonce=1, **fields))["code"] == "nonce-reused"
        await alice.ask("exit", room="a")
        assert await alice.ask("say", text="x", room="a", nonce=1) == accepted


# --- hello.rooms ----------------------------------------------------------------------------------


async def test_a_hello_enters_its_rooms_and_the_last_is_the_current_one() -> None:
    async with memory_server() as network:
        bob = await join(network, room="b")
        await bob.say("one")
        alice = await join(network, rooms={"a": {}, "b": {}})
        assert alice.welcome["rooms"] == {
            "a": {"members": 1, "last": None},
            "b": {"members": 2, "last": bob.ids["one"]},
        }
        assert list(alice.welcome["rooms"]) == ["a", "b"]
        assert (alice.welcome["room"], alice.welcome["members"]) == ("b", 2)
        assert await rooms_of(alice, network) == ("a", "b")  # not in the lobby


async def test_the_current_room_of_a_hello_is_its_room() -> None:
    async with memory_server() as network:
        alice = await join(network, rooms={"a": {}, "b": {}, "c": {}}, room="A")
        assert (alice.welcome["room"], list(alice.welcome["rooms"])) == ("a", ["b", "c", "a"])
        bob = await join(network, rooms={"a": {}}, room="d")
        assert (bob.welcome["room"], list(bob.welcome["rooms"])) == ("d", ["a", "d"])


async def test_only_a_hello_with_rooms_gets_them_in_the_welcome() -> None:
    async with memory_server() as network:
        alice = await join(network, room="a")
        assert "rooms" not in alice.welcome
        bob = await join(network, rooms={})
        assert list(bob.welcome["rooms"]) == ["lobby"]


async def test_each_room_of_a_hello_is_replayed_from_its_own_since() -> None:
    async with memory_server() as network:
        in_a, in_b = await join(network, room="a"), await join(network, room="b")
        await in_a.say("a1", "a2")
        await in_b.say("b1", "b2", "b3")
        alice = await join(
            network,
            rooms={"a": {"since": in_a.ids["a1"]}, "b": {"replay": 2}, "c": {}},
        )
        heard = sorted([await alice.said() for _ in range(3)])
        assert heard == [("a", "a2"), ("b", "b2"), ("b", "b3")]


@pytest.mark.parametrize("bare", ["since", "replay"])
async def test_a_bare_since_or_replay_belongs_to_the_current_room(bare: str) -> None:
    async with memory_server() as network:
        in_a, in_b = await join(network, room="a"), await join(network, room="b")
        await in_a.say("a1")
        await in_b.say("b1", "b2")
        start: dict[str, object] = {bare: in_b.ids["b1"] if bare == "since" else 1}
        alice = await join(network, rooms={"b": {}, "a": {}}, room="b", **start)
        await in_a.say("live")
        assert [await alice.said(), await alice.said()] == [("b", "b2"), ("a", "live")]


async def test_a_session_resumes_all_of_its_rooms() -> None:
    async with memory_server() as network:
        alice = await join(network, name="alice", rooms={"a": {}, "b": {}, "c": {}})
        await alice.ask("exit", room="b")
        await alice.ask("enter", room="a")
        in_a, in_c = await join(network, room="a"), await join(network, room="c")
        await alice.reset()
        await trio.testing.wait_all_tasks_blocked()
        await in_a.say("a1")
        await in_c.say("c1")
        again = await join(network, session=alice.welcome["session"])
        assert again.welcome["resumed"]
        assert (again.welcome["name"], again.welcome["room"]) == ("alice", "a")
        assert "rooms" not in again.welcome  # which the hello did not name
        assert await rooms_of(again, network) == ("c", "a")


async def test_a_session_s_room_without_a_since_is_entered_without_replay() -> None:
    async with memory_server() as network:
        alice = await join(network, rooms={"a": {}, "b": {}, "c": {}})
        others = {room: await join(network, room=room) for room in "abc"}
        for room, other in others.items():
            await other.say(f"{room}1")
        assert [await alice.said() for _ in range(3)] == [("a", "a1"), ("b", "b1"), ("c", "c1")]
        ids = {each: other.ids[f"{each}1"] for each, other in others.items()}
        await alice.reset()
        await trio.testing.wait_all_tasks_blocked()
        for room, other in others.items():
            await other.say(f"{room}2")
        again = await join(
            network,
            session=alice.welcome["session"],
            rooms={"b": {"since": ids["b"]}, "a": {"since": ids["a"]}},
        )
        assert list(again.welcome["rooms"]) == ["c", "b", "a"]
        await others["c"].say("live")
        heard = [await again.said() for _ in range(3)]
        assert sorted(heard) == [("a", "a2"), ("b", "b2"), ("c", "live")]


async def test_an_old_hello_moves_a_session_to_another_room_or_keeps_them_all() -> None:
    async with memory_server() as network:
        alice = await join(network, rooms={"a": {}, "b": {}})
        token = alice.welcome["session"]
        await alice.reset()
        again = await join(network, session=token, room="a")
        assert await rooms_of(again, network) == ("b", "a")
        await again.reset()
        again = await join(network, session=token, room="d")
        assert await rooms_of(again, network) == ("d",)


async def test_a_session_keeps_its_rooms_in_a_journal(tmp_path: Path) -> None:
    async with memory_server(journal=SqliteJournal(tmp_path / "history")) as network:
        alice = await join(network, rooms={"a": {}, "b": {}})
        in_a = await join(network, room="a")
        await in_a.say("one")
        await alice.said()
        await alice.ask("say", text="two", room="a", nonce=7)
        await alice.ask("enter", room="c")
    async with memory_server(journal=SqliteJournal(tmp_path / "history")) as network:
        again = await join(
            network,
            session=alice.welcome["session"],
            rooms={"a": {"since": in_a.ids["one"]}},
        )
        assert again.welcome["resumed"]
        assert list(again.welcome["rooms"]) == ["b", "c", "a"]
        assert (await again.ask("say", text="two", room="b", nonce=7))["code"] == "nonce-reused"
        assert (await again.ask("say", text="two", room="a", nonce=7))["type"] == "accepted"
        assert len((await again.ask("history", room="a"))["messages"]) == 2


async def test_a_room_that_cannot_be_entered_is_an_error_after_the_welcome() -> None:
    async with memory_server(ServerConfig(max_rooms=3)) as network:
        await join(network)
        alice = await join(network, rooms={"a": {}, "no room": {}, "b": {}, "c": {}, "lobby": {}})
        assert list(alice.welcome["rooms"]) == ["a", "b", "lobby"]
        errors = [await alice.hear("error") for _ in range(2)]
        assert [(each["room"], each["code"]) for each in errors] == [
            ("no room", "invalid-name"),
            ("c", "too-many-rooms"),
        ]
        assert (await alice.ask("say", text="x", room="c"))["code"] == "not-in-room"
        assert (await alice.ask("say", text="x"))["type"] == "accepted"


async def test_messages_for_a_refused_current_room_are_not_published() -> None:
    async with memory_server(ServerConfig(max_rooms=2)) as network:
        bob = await join(network)
        alice = await join(network, rooms={"a": {}, "b": {}}, since="1")
        assert (alice.welcome["room"], list(alice.welcome["rooms"])) == ("a", ["a"])
        assert (await alice.hear("error"))["room"] == "b"
        refusal = await alice.ask("say", text="x")
        assert (refusal["code"], refusal["text"]) == ("not-in-room", "you are not in the room b")
        assert (await alice.ask("say", text="x", room="a"))["type"] == "accepted"
        assert (await alice.ask("enter", room="a"))["type"] == "joined"
        assert (await alice.ask("say", text="x"))["type"] == "accepted"
        assert await bob.history() == []


async def test_a_hello_whose_rooms_are_all_refused_leaves_the_client_in_the_lobby() -> None:
    async with memory_server(ServerConfig(max_rooms=1)) as network:
        await join(network)
        alice = await join(network, rooms={"a": {}, "b": {}})
        assert list(alice.welcome["rooms"]) == ["lobby"]
        assert [(await alice.hear("error"))["room"] for _ in range(2)] == ["a", "b"]
        assert (await alice.ask("say", text="x"))["code"] == "not-in-room"


async def test_a_session_enters_refused_rooms_as_soon_as_possible(autojump_clock: Clock) -> None:
    async with memory_server(ServerConfig(max_rooms=2)) as network:
        bob = await join(network, room="taken")
        alice = await join(network, rooms={"a": {}, "b": {}})
        token = alice.welcome["session"]
        await bob.reset()
        await alice.reset()
        await trio.sleep(1)
        again = await join(network, session=token, rooms={})
        assert sorted(again.welcome["rooms"]) == ["a", "b"]


async def test_rooms_of_a_session_come_before_those_that_were_refused() -> None:
    """A room that the client could not enter takes the place of none in which it was."""
    async with memory_server(ServerConfig(max_rooms_per_client=2)) as network:
        wanted: dict[str, object] = {"shed": {}, "lobby": {}, "den": {}, "attic": {}}
        alice = await join(network, rooms=wanted)
        was_in = list(alice.welcome["rooms"])
        assert len(was_in) == 2
        session = alice.welcome["session"]
        await alice.ask("enter", room=was_in[-1])  # which is current then
        await alice.reset()
        named: dict[str, object] = {room: {} for room in was_in}
        for rooms in ({}, named):
            again = await join(network, session=session, rooms=rooms)
            assert list(again.welcome["rooms"]) == was_in
            await again.reset()


async def test_the_rooms_of_a_hello_are_limited_without_the_lobby_that_it_leaves() -> None:
    async with memory_server(ServerConfig(max_rooms_per_client=2)) as network:
        alice = await join(network, rooms={"a": {}, "b": {}, "c": {}}, room="b")
        assert list(alice.welcome["rooms"]) == ["a", "c"]
        error = await alice.hear("error")
        assert (error["room"], error["code"]) == ("b", "too-many-rooms")


async def test_a_hello_with_too_many_rooms_enters_the_last_of_them() -> None:
    async with memory_server() as network:
        rooms: dict[str, object] = {f"r{n}": {} for n in range(2000)}
        alice = await join(network, rooms=rooms)
        assert len(alice.welcome["rooms"]) == 32
        errors = [event for event in await now(alice) if event["type"] == "error"]
        assert [error["code"] for error in errors] == ["too-many-rooms"] * (32 + 1)
        assert alice.welcome["room"] == "r1967"
        [rest] = [error for error in errors if "room" not in error]
        assert rest["text"] == "you are in too many rooms (limit: 32); leave one first"


async def test_a_hello_with_too_many_rooms_misses_nothing_in_the_rooms_of_its_session(
    autojump_clock: Clock,
) -> None:
    """They are among the first, which it does not enter; it is there by its session."""
    async with memory_server(ServerConfig(max_rooms_per_client=2)) as network:
        alice = await join(network, rooms={"lobby": {}, "a": {}})
        bob = await join(network, rooms={"lobby": {}, "a": {}})
        session, since = alice.welcome["session"], {}
        for room in ("lobby", "a"):
            since[room] = (await bob.ask("say", room=room, text="one", nonce=room))["id"]
        await alice.reset()
        for room in since:
            await bob.ask("say", room=room, text="two", nonce=f"{room} 2")
        starts: dict[str, object] = {room: {"since": id_} for room, id_ in since.items()}
        others: dict[str, object] = {f"r{n}": {} for n in range(4)}
        alice = await join(network, session=session, rooms={**starts, **others})
        assert sorted(alice.welcome["rooms"]) == ["a", "lobby"]
        said = [event for event in await until_quiet(alice) if event["type"] == "said"]
        assert sorted((each["room"], each["text"]) for each in said) == [
            ("a", "two"),
            ("lobby", "two"),
        ]


@pytest.mark.parametrize("start", [{"replay": 2}, {"since": "0-1000000000"}])
async def test_a_hello_with_too_many_rooms_gets_the_replay_of_the_lobby_if_it_stays_there(
    start: dict[str, object], autojump_clock: Clock
) -> None:
    async with memory_server(ServerConfig(max_rooms_per_client=1, max_rooms=1)) as network:
        bob = await join(network)
        await bob.say("one")
        alice = await join(network, rooms={"lobby": start, "a": {}, "b": {}})
        assert list(alice.welcome["rooms"]) == ["lobby"]
        events = await until_quiet(alice)
        said = [event["text"] for event in events if event["type"] == "said"]
        unknown = [event["room"] for event in events if event.get("code") == "unknown-id"]
        assert (said, unknown) == ((["one"], []) if "replay" in start else ([], ["lobby"]))


async def test_refused_rooms_do_not_accumulate_over_resumes() -> None:
    async with memory_server(ServerConfig(max_rooms_per_client=2)) as network:
        alice = await join(network, rooms={f"a{n}": {} for n in range(4)})
        session = alice.welcome["session"]
        for letter in "bcd":
            rooms: dict[str, object] = {f"{letter}{n}": {} for n in range(4)}
            alice = await join(network, rooms=rooms, session=session)
            refused = [each for each in await now(alice) if each["type"] == "error"]
            assert len(refused) <= 4 + 2 + 1


# --- Slow clients ---------------------------------------------------------------------------------


async def test_missed_messages_are_counted_for_each_room(autojump_clock: Clock) -> None:
    config = ServerConfig(slow=Slow.DROP, send_queue_batches=1)
    async with memory_server(config) as network:
        slow = await JsonClient(await network.join(lockstep=True)).hello(rooms={"a": {}, "b": {}})
        in_a, in_b = await join(network, room="a"), await join(network, room="b")
        for n in range(5):
            await in_a.say(f"a{n}")
            await in_b.say(f"b{n}")
        await in_a.say("a5")
        counts: dict[str, int] = {"a": 0, "b": 0}
        heard: list[tuple[str, str]] = []
        await slow.send({"type": "ping", "nonce": "end"})
        while (event := await slow.hear_any()).get("nonce") != "end":
            if event["type"] == "missed":
                counts[event["room"]] += event["count"]
            elif event["type"] == "said":
                heard.append((event["room"], event["text"]))
        by_room = {room: sum(1 for r, _ in heard if r == room) for room in "ab"}
        assert (counts["a"] + by_room["a"], counts["b"] + by_room["b"]) == (6, 5)
        assert min(counts.values()) > 0


async def test_a_client_lags_per_room_and_gets_each_message_of_each_once(
    autojump_clock: Clock,
) -> None:
    config = ServerConfig(slow_timeout_seconds=0, send_queue_batches=1)
    async with memory_server(config) as network:
        rooms: dict[str, object] = {"a": {}, "b": {}, "c": {}}
        slow = await JsonClient(await network.join(lockstep=True)).hello(rooms=rooms)
        others = {room: await join(network, room=room) for room in rooms}
        for n in range(20):
            for room, other in others.items():
                if room != "c" or n < 1:
                    await other.say(f"{room}{n}")
        [info] = [each for each in network.server.members if len(each.rooms) > 1]
        assert info.behind > 20
        await network.server.broadcast("a notice")
        heard: dict[str, list[str]] = {room: [] for room in rooms}
        notices = 0
        while sum(map(len, heard.values())) < 41 or not notices:
            event = await slow.hear("said", "notice")
            if event["type"] == "notice":
                notices += 1
            else:
                heard[event["room"]].append(event["text"])
        assert heard["a"] == [f"a{n}" for n in range(20)]
        assert heard["b"] == [f"b{n}" for n in range(20)]
        assert heard["c"] == ["c0"]
        await trio.sleep(1)
        [info] = [each for each in network.server.members if len(each.rooms) > 1]
        assert (info.behind, notices) == (0, 1)


async def test_a_busy_room_does_not_keep_another_from_catching_up() -> None:
    """The rooms in which a client lags take turns, a part of the replay each."""
    async with memory_server() as network:
        busy, quiet = await join(network, room="busy"), await join(network, room="quiet")
        for n in range(300):
            await busy.send({"type": "say", "text": "x" * 10_000, "nonce": n})
            await busy.answer(n)
        await quiet.say("hello")
        alice = await JsonClient(await network.join(lockstep=True)).hello(
            rooms={"busy": {"replay": 300}, "quiet": {"replay": 1}}
        )
        before = 0
        while (await alice.said())[0] == "busy":
            before += 1
        assert before <= 60  # about a part, and what was queued with it


async def test_notices_that_wait_come_when_the_lagging_room_is_left(
    autojump_clock: Clock,
) -> None:
    config = ServerConfig(slow_timeout_seconds=0, send_queue_batches=1)
    async with memory_server(config) as network:
        slow = await JsonClient(await network.join(lockstep=True)).hello(
            rooms={"quiet": {}, "busy": {}}
        )
        busy = await join(network, room="busy")
        for n in range(10):
            await busy.say(str(n))
        await network.server.broadcast("a notice")
        await slow.send({"type": "exit", "room": "busy"})
        assert (await slow.hear("notice"))["text"] == "a notice"


# --- The text protocol ----------------------------------------------------------------------------


async def test_the_text_protocol_stays_with_one_room() -> None:
    async with memory_server() as network:
        text = await network.join()
        await text.send("/join a", "/join b", "/leave a", "/leave b", "/leave lobby")
        assert await text.lines(5) == [
            "[Server] you are in a; nobody else is here",
            "[Server] you are in b; nobody else is here",
            "[Server] you are not in the room a",
            "[Server] you are in lobby; nobody else is here",
            "[Server] lobby is your only room; join another one first",
        ]
        assert [each.rooms for each in network.server.members] == [("lobby",)]


async def test_text_clients_get_no_events_of_other_rooms() -> None:
    async with memory_server() as network:
        text = await network.join()
        alice = await join(network, rooms={"lobby": {}, "a": {}})
        await alice.ask("say", text="in a", room="a")
        await alice.ask("say", text="in the lobby", room="lobby")
        assert await text.line() == "[Client 2] in the lobby"
