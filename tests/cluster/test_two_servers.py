"""Two servers on one real engine, over memory streams: what clients see of each other.

The same is tested with a backend in memory, in every order of events, by
`tests/server/test_other_nodes.py`.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest
import trio

from multichat import ServerConfig
from multichat.cluster.backend import ValkeyBackend
from multichat.log import Log
from multichat.protocol.messages import MAX_UNACCEPTED
from multichat.server.bans import Ban
from multichat.server.config import AccountLimits
from multichat.testing import MemoryServer
from tests.support.nodes import events_of, nodes_on
from tests.support.processes import WAIT_SECONDS
from tests.support.programs import JsonClient, join

from .engine import Engine
from .running_backend import cluster_config

pytestmark = pytest.mark.process

_CONFIG = ServerConfig(away_seconds=5.0, accounts=AccountLimits(hash_kib=8, hash_passes=1))
_SECRET = "correct horse battery"


def _two_servers(
    engine: Engine, config: ServerConfig = _CONFIG
) -> AbstractAsyncContextManager[list[MemoryServer]]:
    log = Log("server")
    backends = [ValkeyBackend(cluster_config(engine, name), log) for name in ("one", "two")]
    return nodes_on(*backends, config=config, seconds=WAIT_SECONDS)


async def _names_in(client: JsonClient, expected: set[str], room: str = "lobby") -> None:
    """Wait until the node of *client* lists those names: others' reports take a moment."""
    with trio.fail_after(WAIT_SECONDS):
        while True:
            answer = await client.ask("who", room=room)
            if sorted(each["name"] for each in answer["members"]) == sorted(expected):
                return
            await trio.sleep(0.02)


async def _events_of(client: JsonClient) -> list[dict[str, Any]]:
    """Return what *client* receives until joins and leaves have been announced."""
    return await events_of(client, after=1.5)


async def test_messages_have_one_order_on_both(engine: Engine) -> None:
    async with _two_servers(engine) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        carol, dave = await join(one), await join(two)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.say, *(f"a{n}" for n in range(20)))
            nursery.start_soon(bob.say, *(f"b{n}" for n in range(20)))
        heard = [[(await each.said())[1] for _ in range(40)] for each in (carol, dave)]
        assert heard[0] == heard[1]
        assert sorted(heard[0]) == sorted(f"{who}{n}" for who in "ab" for n in range(20))
        assert carol.ids == dave.ids
        assert {**alice.ids, **bob.ids}.items() <= carol.ids.items()
        assert await alice.history() == await bob.history() == heard[0]


async def test_a_name_belongs_to_one_client_of_both(engine: Engine) -> None:
    async with _two_servers(engine) as (one, two):
        alice, other = await join(one, name="alice"), await join(two)
        assert (await other.ask("name", name="ALICE"))["code"] == "name-taken"
        assert (await other.ask("name", name="aIice"))["code"] == "name-taken"
        assert (await other.ask("name", name="bob"))["type"] == "renamed"
        assert (await alice.ask("name", name="bob"))["code"] == "name-taken"
        await alice.ask("name", name="al")
        await _names_in(other, {"al", "bob"})
        assert (await other.ask("name", name="alice"))["type"] == "renamed"
        await _names_in(alice, {"al", "alice"})
        await _names_in(other, {"al", "alice"})


async def test_a_resume_on_the_other_node_is_not_announced(engine: Engine) -> None:
    async with _two_servers(engine) as (one, two):
        alice = await join(one, name="alice", rooms={"den": {}, "attic": {}})
        bob, carol = await join(one, name="bob", room="den"), await join(two, room="den")
        await bob.say("1")
        assert await alice.said() == ("den", "1")
        await _events_of(bob), await _events_of(carol)
        await alice.reset()
        await bob.say("2", "3")
        session = alice.welcome["session"]
        rooms = {"den": {"since": bob.ids["1"]}, "attic": {}}
        again = await join(two, session=session, rooms=rooms)
        assert again.welcome["resumed"]
        assert again.welcome["name"] == "alice"
        assert [await again.said() for _ in range(2)] == [("den", "2"), ("den", "3")]
        assert await _events_of(bob) == []
        assert [each["type"] for each in await _events_of(carol)] == ["said", "said"]
        third = await join(one, session=session)
        assert (await again.hear("goodbye"))["code"] == "replaced"
        assert third.welcome["name"] == "alice"
        assert await _events_of(bob) == []


async def test_clients_of_a_node_that_ends_resume_together_without_announcements(
    engine: Engine,
) -> None:
    config = replace(_CONFIG, away_seconds=300.0)  # whatever the speed of the machine
    log = Log("server")
    one, two = (ValkeyBackend(cluster_config(engine, name), log) for name in ("one", "two"))
    async with nodes_on(two, config=config, seconds=WAIT_SECONDS) as [second]:
        bob = await join(second, name="bob")
        async with nodes_on(one, config=config, seconds=WAIT_SECONDS) as [first]:
            # No client of the other node is in the den.
            names = ("alice", "carol", "dave")
            rooms: dict[str, dict[str, object]] = {"lobby": {}, "den": {}}
            clients = [await join(first, name=name, rooms=rooms) for name in names]
            await _names_in(bob, {"bob", *names})
            await _events_of(bob)
            await first.server.close()
        resumed = []
        for each in clients:
            resumed.append(await join(second, session=each.welcome["session"]))
            await resumed[-1].ask("who")
            await trio.sleep(0.2)  # so that each could be announced alone
        for each in (bob, *resumed):
            kinds = [event["type"] for event in await _events_of(each)]
            assert not {"joined", "left", "presence"} & {*kinds}


@pytest.mark.parametrize(
    "nonce", ["x" * 128, "😀" * 128, "short", 7], ids=["long", "wide", "short", "number"]
)
async def test_a_message_sent_again_after_a_resume_on_the_other_is_published_once(
    engine: Engine, nonce: str | int
) -> None:
    """Also with a nonce that is too long for the engine, which has its digest."""
    to_bob = f"to bob {nonce}"[:128]
    async with _two_servers(engine) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        accepted = await alice.ask("say", text="hello", nonce=nonce)
        assert accepted["type"] == "accepted"
        assert (await alice.ask("direct", to="bob", text="psst", nonce=to_bob))["nonce"] == to_bob
        await alice.reset()
        again = await join(two, session=alice.welcome["session"])
        assert await again.ask("say", text="hello", nonce=nonce) == accepted
        assert (await again.ask("say", text="other", nonce=nonce))["code"] == "nonce-reused"
        answer = await again.ask("direct", to="bob", text="psst", nonce=to_bob)
        assert (answer["type"], answer["nonce"]) == ("accepted", to_bob)
        other = await again.ask("direct", to="bob", text="other", nonce=to_bob)
        assert other["code"] == "nonce-reused"
        assert await again.history() == ["hello"]
        heard = [each["type"] for each in await _events_of(bob)]
        assert heard.count("said") == heard.count("direct") == 1


async def test_a_nonce_that_only_the_engine_still_knows_is_refused_for_another_message(
    engine: Engine,
) -> None:
    """The engine keeps some nonces longer than the node does."""
    async with _two_servers(engine) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        accepted = await alice.ask("say", text="hello", nonce="said")
        await alice.ask("direct", to="bob", text="psst", nonce="direct")
        await alice.send(
            *({"type": "say", "text": "more", "nonce": number} for number in range(MAX_UNACCEPTED))
        )
        assert (await alice.answer(MAX_UNACCEPTED - 1))["type"] == "accepted"

        await alice.send(
            {"type": "say", "text": "other", "nonce": "said"},
            {"type": "say", "text": "new", "nonce": "new"},
            {"type": "say", "text": "psst", "nonce": "direct"},
        )
        assert (await alice.answer("said"))["code"] == "nonce-reused"
        assert (await alice.answer("new"))["type"] == "accepted"
        assert (await alice.answer("direct"))["code"] == "nonce-reused"
        assert (await alice.ask("say", text="other", nonce="said"))["code"] == "nonce-reused"
        await alice.ask("enter", room="kitchen")
        there = await alice.ask("say", text="hello", nonce="said", room="kitchen")
        assert there["code"] == "nonce-reused"
        assert await alice.ask("say", text="hello", nonce="said", room="lobby") == accepted

        heard = [each["text"] for each in await _events_of(bob) if each["type"] == "said"]
        assert heard == ["hello", *["more"] * MAX_UNACCEPTED, "new"]


async def test_a_client_that_quits_after_a_resume_on_the_other_has_no_session_left(
    engine: Engine,
) -> None:
    async with _two_servers(engine) as (one, two):
        watcher = await join(one)
        alice = await join(two)
        await alice.reset()
        session = alice.welcome["session"]
        again = await join(one, session=session)
        assert again.welcome["resumed"]
        await again.send({"type": "quit"})
        await again.hear("goodbye")
        for server in (one, two):
            assert not (await join(server, session=session)).welcome["resumed"]
        await watcher.send({"type": "quit"})
        await watcher.hear("goodbye")
    left = int(await engine.call("HLEN", "multichat:sessions"))
    assert left == int(await engine.call("ZCARD", "multichat:sessions:left")) == 2
    # The generation of a client that was resumed is kept for a while.
    assert len(await engine.call("ZRANGE", "multichat:generations:ended", 0, -1)) == 1
    assert int(await engine.call("HLEN", "multichat:generations")) == 2 + 1


async def test_two_nodes_at_once_open_no_more_rooms_than_the_limit(engine: Engine) -> None:
    most = 10
    async with _two_servers(engine, replace(_CONFIG, max_rooms=most)) as servers:
        clients = [await join(server) for server in servers for _ in range(most)]
        opened: dict[str, JsonClient] = {}

        async def enter(client: JsonClient, room: str) -> None:
            if (await client.ask("enter", room=room))["type"] == "joined":
                opened[room] = client

        async with trio.open_nursery() as nursery:
            for client, letter in zip(clients, "bcdfghjkmnpqrstvwxyz", strict=True):
                nursery.start_soon(enter, client, 4 * letter)
        assert len(opened) == most - 1  # and the lobby
        for client in (clients[0], clients[-1]):
            assert (await client.ask("enter", room="later"))["code"] == "too-many-rooms"
        room, member = opened.popitem()
        assert (await clients[0].ask("enter", room=room))["type"] == "joined"
        assert (await clients[-1].ask("enter", room=room))["type"] == "joined"
        for each in {member, clients[0], clients[-1]}:
            assert (await each.ask("exit", room=room))["type"] == "left"
        with trio.fail_after(WAIT_SECONDS):  # the other node may still be closing the room
            while (await clients[0].ask("enter", room="later"))["type"] != "joined":
                await trio.sleep(0.01)


async def test_two_nodes_at_once_open_no_rooms_that_look_alike(engine: Engine) -> None:
    async with _two_servers(engine) as (one, two):
        alice, bob = await join(one), await join(two)
        pairs = [("parade", "p\u0430rade"), ("bill", "biII"), ("roma", "rorna"), ("loud", "1oud")]
        for pair in pairs:
            answers: list[dict[str, Any]] = []

            async def enter(
                client: JsonClient, room: str, answers: list[dict[str, Any]] = answers
            ) -> None:
                answers.append(await client.ask("enter", room=room))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(enter, alice, pair[0])
                nursery.start_soon(enter, bob, pair[1])
            assert sorted(each["type"] for each in answers) == ["error", "joined"], (pair, answers)
            [refused] = [each for each in answers if each["type"] == "error"]
            assert refused["code"] == "invalid-name"


async def test_a_room_has_the_name_under_which_any_node_has_opened_it(engine: Engine) -> None:
    async with _two_servers(engine) as (one, two):
        alice, bob = await join(one), await join(two)
        rooms: list[str] = []

        async def enter(client: JsonClient, room: str) -> None:
            rooms.append((await client.ask("enter", room=room))["room"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(enter, alice, "Kitchen")
            nursery.start_soon(enter, bob, "KITCHEN")
        assert rooms[0] == rooms[1]


async def test_a_login_takes_name_and_login_from_a_client_of_the_other(engine: Engine) -> None:
    async with _two_servers(engine) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two)
        assert (await alice.ask("register", passphrase=_SECRET))["type"] == "logged-in"
        assert (await bob.ask("name", name="alice"))["code"] == "name-taken"
        answer = await bob.ask("login", name="alice", passphrase=_SECRET)
        assert answer["type"] == "logged-in"
        unnamed = (await alice.hear("logged-out"))["name"]
        assert unnamed.startswith("Client ")
        await _names_in(alice, {"alice", unnamed})
        await _names_in(bob, {"alice", unnamed})
        await alice.ask("login", name="alice", passphrase=_SECRET)
        await bob.hear("logged-out")


async def test_private_messages_and_operators_reach_clients_of_the_other(engine: Engine) -> None:
    async with _two_servers(engine) as (one, two):
        alice = await join(one, name="alice")
        bob = await join(two, name="bob", rooms={"lobby": {}})
        await _names_in(alice, {"alice", "bob"})
        assert (await alice.ask("direct", to="bob", text="psst"))["type"] == "accepted"
        assert (await bob.hear("direct"))["text"] == "psst"
        assert (await alice.ask("direct", to="nobody", text="?"))["code"] == "nobody-there"
        await one.server.admin.topic("lobby what we talk about")
        assert (await bob.hear("topic"))["text"] == "what we talk about"
        await one.server.broadcast("all of you")
        assert (await bob.hear("notice"))["text"] == "all of you"
        number = one.server.find("bob")
        assert number is not None
        await one.server.tell(number, "you alone")
        assert (await bob.hear("notice"))["text"] == "you alone"
        one.server.kick(number, "kicked: enough")
        assert (await bob.hear("goodbye"))["code"] == "kicked"
        again = await join(two, session=bob.welcome["session"])
        assert not again.welcome["resumed"]
        await again.ask("name", name="carol")
        await _names_in(alice, {"alice", "carol"})
        one.server.ban(Ban(target="carol"))
        assert (await again.hear("goodbye"))["code"] == "banned"
        assert (await join(two, name="carol")).welcome["name"] != "carol"


async def test_a_message_to_a_client_that_has_just_left_is_not_delivered(engine: Engine) -> None:
    async with _two_servers(engine) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        await _names_in(alice, {"alice", "bob"})
        await bob.send({"type": "quit"})
        answer = await alice.ask("direct", to="bob", text="psst")
        assert answer["code"] in ("nobody-there", "not-delivered")
