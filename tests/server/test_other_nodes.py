"""Two nodes of one chat, over memory streams and a hub: what clients see of each other."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from multichat import ServerConfig
from multichat.backend.events import (
    Announced,
    BanAdded,
    BanRecord,
    BanRefused,
    ClientGone,
    ClientPut,
    ClientRecord,
    DisconnectAsked,
    NodeAdded,
    NodeRemoved,
    TopicChanged,
)
from multichat.backend.local import LocalBackend
from multichat.errors import LocalProtocolError, StorageFailed
from multichat.journal.base import SavedSession, SessionRecord
from multichat.journal.memory import MemoryJournal
from multichat.server.bans import Ban
from multichat.server.config import AccountLimits
from multichat.server.passphrases import Hasher
from multichat.server.session_store import SessionStore
from multichat.testing import MemoryServer
from tests.support import nodes
from tests.support.hub import AWAY, Hub, HubBackend
from tests.support.log import LogRecorder
from tests.support.nodes import nodes_on
from tests.support.programs import JsonClient, join
from tests.support.websockets import join_websocket

pytestmark = pytest.mark.unit

T = TypeVar("T")
Clock = trio.testing.MockClock

_VIRTUAL_SECONDS = 600.0
_ANNOUNCED_SECONDS = 3.0

CONFIG = ServerConfig(away_seconds=5.0, accounts=AccountLimits(hash_kib=8, hash_passes=1))


class HasherWithoutThreads(Hasher):
    """Hashes at once: a virtual clock does not wait for threads."""

    async def run(self, work: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return work()


def two_nodes(
    hub: Hub | None = None, config: ServerConfig = CONFIG
) -> AbstractAsyncContextManager[list[MemoryServer]]:
    hub, hasher = hub or Hub(), HasherWithoutThreads(config.accounts)
    return nodes_on(
        hub.node("one"), hub.node("two"), config=config, hasher=hasher, seconds=_VIRTUAL_SECONDS
    )


async def settle() -> None:
    """Wait until joins and leaves are announced."""
    await trio.sleep(_ANNOUNCED_SECONDS)


async def events_of(client: JsonClient) -> list[dict[str, Any]]:
    """Return all events that *client* has received, once joins and leaves are announced."""
    return await nodes.events_of(client, after=_ANNOUNCED_SECONDS)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def names_in(client: JsonClient, room: str = "lobby") -> set[str]:
    answer = await client.ask("who", room=room)
    return {each["name"] for each in answer["members"]}


# --- Messages -------------------------------------------------------------------------------------


async def test_messages_have_one_order_and_reach_the_members_of_both_nodes_once(
    autojump_clock: Clock,
) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        carol, dave = await join(one), await join(two)
        await settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.say, *(f"a{n}" for n in range(20)))
            nursery.start_soon(bob.say, *(f"b{n}" for n in range(20)))
        heard = [[(await each.said())[1] for _ in range(40)] for each in (carol, dave)]
        assert heard[0] == heard[1]
        assert sorted(heard[0]) == sorted(f"{who}{n}" for who in "ab" for n in range(20))
        assert carol.ids == dave.ids
        assert {**alice.ids, **bob.ids}.items() <= carol.ids.items()
        assert await alice.history() == await bob.history() == heard[0]


async def test_a_message_is_accepted_when_it_is_delivered_here(autojump_clock: Clock) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob = await join(one), await join(two)
        hub.nodes["one"].hold()
        await alice.send({"type": "say", "text": "hi", "nonce": 1})
        assert await bob.said() == ("lobby", "hi")
        with trio.move_on_after(1):
            raise AssertionError(await alice.answer(1))
        hub.nodes["one"].release()
        assert (await alice.answer(1))["id"] == bob.ids["hi"]


async def test_a_message_whose_sender_leaves_before_the_decision_is_delivered_once(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob, carol = await join(one), await join(one), await join(two)
        await alice.say("before")
        hub.nodes["one"].hold()
        await alice.send({"type": "say", "text": "hi", "nonce": "n"})
        assert [await carol.said() for _ in range(2)] == [("lobby", "before"), ("lobby", "hi")]
        await alice.reset()
        await trio.sleep(1)
        hub.nodes["one"].release()
        assert [await bob.said() for _ in range(2)] == [("lobby", "before"), ("lobby", "hi")]
        # It asks on the other node what became of it.
        again = await join(two, session=alice.welcome["session"])
        assert again.welcome["resumed"]
        await again.send({"type": "say", "text": "hi", "nonce": "n"})
        assert (await again.answer("n"))["id"] == carol.ids["hi"]
        assert await carol.history() == ["before", "hi"]


async def test_messages_that_the_storage_has_lost_are_missed_and_the_room_continues(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        await alice.say("1", "2", "3")
        assert [await bob.said() for _ in range(3)] == [("lobby", each) for each in "123"]
        hub.fail_over("lobby", 1)
        for client in (alice, bob):
            assert "2 messages were lost in lobby" in (await client.hear("notice"))["text"]
        await alice.say("4")
        assert await bob.said() == ("lobby", "4")
        assert alice.ids["4"] > alice.ids["3"]
        assert await alice.history() == await bob.history() == ["1", "4"]
        for since in "123":
            again = await join(two, since=bob.ids[since])
            assert await again.said() == ("lobby", "4")


async def test_a_message_that_the_storage_has_lost_before_it_was_delivered_is_refused(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob = await join(one), await join(one)
        hub.nodes["one"].hold()
        await alice.send({"type": "say", "text": "lost", "nonce": 1})
        await trio.sleep(1)
        hub.fail_over("lobby", 0)
        hub.nodes["one"].release()
        assert (await alice.answer(1))["code"] == "storage-failed"
        assert (await alice.ask("say", text="lost", nonce=1))["type"] == "accepted"
        assert await bob.said() == ("lobby", "lost")
        assert await bob.history() == ["lost"]
        del two


async def test_a_block_that_is_partly_in_the_log_is_published_once(
    autojump_clock: Clock,
) -> None:
    """The nonces that a session has here may be fewer than the log knows."""
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two)
        known = {}
        for n, text in enumerate("abc"):
            known[text] = (await alice.ask("say", text=text, nonce=n))["id"]
        [client] = [each for each in one.server._registry.clients if each.name == "alice"]
        assert client.stored_session is not None
        client.stored_session.window.clear()
        says = [{"type": "say", "text": text, "nonce": n} for n, text in enumerate("abcd")]
        await alice.send(*says)
        ids = [(await alice.answer(n))["id"] for n in range(4)]
        assert ids[:3] == list(known.values())
        assert [(await bob.said())[1] for _ in range(4)] == list("abcd")
        assert ids[3] == bob.ids["d"]
        await alice.send(*says)
        assert [(await alice.answer(n))["id"] for n in range(4)] == ids
        assert await bob.history() == list("abcd")


# --- Presence -------------------------------------------------------------------------------------


async def test_members_on_other_nodes_are_counted_listed_and_announced(
    autojump_clock: Clock,
) -> None:
    async with two_nodes() as (one, two):
        alice = await join(one, name="alice", room="den")
        bob = await join(two, name="bob", room="den")
        assert bob.welcome["members"] == 2
        [joined] = [each for each in await events_of(alice) if each["type"] == "joined"]
        assert (joined["name"], joined["members"]) == ("bob", 2)
        assert await names_in(alice, "den") == await names_in(bob, "den") == {"alice", "bob"}
        await bob.ask("name", name="robert")
        assert kinds(await events_of(alice)) == ["renamed"]
        await bob.ask("join", room="attic")
        [left] = await events_of(alice)
        assert (left["type"], left["name"], left["members"]) == ("left", "robert", 1)
        assert left["reason"] == "joined attic"
        listed = (await alice.ask("rooms"))["rooms"]
        assert {(each["room"], each["members"]) for each in listed} >= {("den", 1), ("attic", 1)}


async def test_a_client_that_shares_several_rooms_gets_one_event_for_a_rename(
    autojump_clock: Clock,
) -> None:
    async with two_nodes() as (one, two):
        alice = await join(one, name="alice", rooms={"den": {}, "attic": {}})
        bob = await join(two, name="bob", rooms={"den": {}, "attic": {}})
        await events_of(alice)
        await bob.ask("name", name="robert")
        assert kinds(await events_of(alice)) == ["renamed"]


async def test_who_lists_a_room_that_only_other_nodes_have(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob", room="den")
        await trio.sleep(1)
        assert await names_in(alice, "den") == {"bob"}
        assert (await alice.ask("who", room="bob"))["person_in"] == "den"
        del bob


@pytest.mark.parametrize("is_shared", [False, True])
async def test_who_lists_members_in_the_same_order_on_all_nodes(
    is_shared: bool, autojump_clock: Clock
) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(one, name="bob")
        carol = await join(two, name="carol")
        for each in (carol, bob, alice) if is_shared else (bob, alice):
            await each.ask("join", room="den")
        await settle()
        listed = [(await each.ask("who", room="den"))["members"] for each in (alice, carol)]
        assert listed[0] == listed[1] == sorted(listed[0], key=lambda member: member["client"])
        assert len(listed[0]) == 2 + is_shared


async def test_rooms_are_listed_in_the_same_order_on_all_nodes(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice = await join(one, name="alice", rooms={"zoo": {}, "lobby": {}})
        bob = await join(two, name="bob", rooms={"attic": {}, "Lobster": {}, "lobby": {}})
        await settle()
        listed = [(await each.ask("rooms"))["rooms"] for each in (alice, bob)]
        assert listed[0] == listed[1]
        assert [each["room"] for each in listed[0]] == ["lobby", "attic", "Lobster", "zoo"]


async def test_a_client_that_leaves_another_node_is_gone_for_all(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        await events_of(alice)
        await bob.send({"type": "quit"})
        assert kinds(await events_of(alice)) == ["left"]
        assert await names_in(alice) == {"alice"}


# --- Names ----------------------------------------------------------------------------------------


async def test_a_name_belongs_to_one_client_of_all_nodes(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice, other = await join(one, name="alice"), await join(two)
        refused = await other.ask("name", name="ALICE")
        assert refused["code"] == "name-taken"
        assert (await other.ask("name", name="bob"))["type"] == "renamed"
        assert (await alice.ask("name", name="bob"))["code"] == "name-taken"
        await alice.ask("name", name="al")
        assert (await other.ask("name", name="alice"))["type"] == "renamed"


async def test_exactly_one_of_two_clients_gets_a_name_requested_at_once(
    autojump_clock: Clock,
) -> None:
    async with two_nodes() as (one, two):
        clients = [await join(each) for each in (one, two, one, two)]
        answers: list[dict[str, Any]] = []

        async def ask(client: JsonClient) -> None:
            answers.append(await client.ask("name", name="alice"))

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(ask, client)
        assert sorted(kinds(answers)) == ["error", "error", "error", "renamed"]
        assert {each.get("code") for each in answers} == {None, "name-taken"}


async def test_a_name_claimed_by_a_client_that_goes_meanwhile_is_free(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob = await join(one), await join(two)
        hub.nodes["one"].hold()
        await alice.send({"type": "name", "name": "queen"})
        await trio.sleep(1)
        await alice.reset()
        await trio.sleep(1)
        hub.nodes["one"].release()
        await trio.sleep(10)
        assert (await bob.ask("name", name="queen"))["type"] == "renamed"


async def test_a_claim_that_is_refused_leaves_the_former_name(autojump_clock: Clock) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        await join(one, name="alice")
        hub.nodes["two"].hold()  # it does not know it
        bob = JsonClient(await two.join())
        hub.nodes["two"].release()
        await bob.hello(name="alice")
        assert bob.welcome["name"] != "alice"
        assert (await bob.hear("error"))["code"] == "name-taken"
        assert (await bob.ask("name", name="bob"))["type"] == "renamed"


# --- Sessions -------------------------------------------------------------------------------------


async def test_a_resume_on_another_node_is_not_announced(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice = await join(one, name="alice", rooms={"den": {}, "attic": {}})
        bob, carol = await join(one, name="bob", room="den"), await join(two, room="den")
        await bob.say("1")
        assert await alice.said() == ("den", "1")
        await events_of(bob), await events_of(carol)
        await alice.reset()
        await bob.say("2", "3")
        again = await join(
            two,
            session=alice.welcome["session"],
            rooms={"den": {"since": bob.ids["1"]}, "attic": {}},
        )
        assert again.welcome["resumed"]
        assert (again.welcome["client"], again.welcome["name"]) == (1, "alice")
        assert [await again.said() for _ in range(2)] == [("den", "2"), ("den", "3")]
        await again.say("4")
        assert [each["type"] for each in await events_of(bob)] == []  # it sent that to the attic
        assert kinds(await events_of(carol)) == ["said", "said"]
        await trio.sleep(10)
        assert await events_of(bob) == await events_of(carol) == []
        assert "alice" in await names_in(bob, "den")


async def test_a_connection_whose_session_is_resumed_elsewhere_is_replaced(
    autojump_clock: Clock,
) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(one, name="bob")
        await events_of(bob)
        again = await join(two, session=alice.welcome["session"])
        assert again.welcome["name"] == "alice"
        goodbye = await alice.hear("goodbye")
        assert (goodbye["code"], goodbye["reconnect"]) == ("replaced", False)
        await again.say("here I am")
        assert await bob.said() == ("lobby", "here I am")
        assert [each["type"] for each in await events_of(bob)] == []
        third = await join(one, session=alice.welcome["session"])
        assert third.welcome["resumed"]
        assert (await again.hear("goodbye"))["code"] == "replaced"
        # It is the same session: its nonces count on, and one of them is known.
        used = await third.ask("say", text="and here", nonce="ask 1")
        assert used["code"] == "nonce-reused"
        assert (await third.ask("say", text="and here", nonce="new"))["type"] == "accepted"
        assert await bob.said() == ("lobby", "and here")


async def test_messages_of_a_replaced_connection_are_refused(autojump_clock: Clock) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        hub.nodes["one"].hold()  # it does not learn that the session was taken
        again = await join(two, session=alice.welcome["session"])
        await alice.send({"type": "say", "text": "from the grave", "nonce": 1})
        await again.say("alive")
        assert await bob.said() == ("lobby", "alive")
        hub.nodes["one"].release()
        await trio.sleep(1)
        assert await bob.history() == ["alive"]


async def test_a_session_that_is_taken_and_not_resumed_can_be_taken_again(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice = await join(one, name="alice")
        await alice.reset()
        await trio.sleep(0.1)
        raw = JsonClient(await two.join())
        hub.nodes["two"].hold()
        await raw._client.send(f'/json {{"session": "{alice.welcome["session"]}"}}')
        await trio.sleep(0.5)
        await raw.reset()
        await trio.sleep(0.5)
        hub.nodes["two"].release()
        again = await join(one, session=alice.welcome["session"])
        assert again.welcome["resumed"]
        assert again.welcome["name"] == "alice"
        await again.say("hello")


class TakesSlowly(HubBackend):
    """A node that gets the answer when it takes a session once *goes_on* is set."""

    def __init__(self, hub: Hub, name: str) -> None:
        super().__init__(hub, name)
        self.taken, self.goes_on = trio.Event(), trio.Event()

    async def take_session(self, digest: bytes, generation: int) -> SavedSession | None:
        taken = await super().take_session(digest, generation)
        self.taken.set()
        await self.goes_on.wait()
        return taken


@pytest.mark.parametrize("kicks_at", ["one", "two"])
async def test_a_client_that_is_kicked_while_it_resumes_elsewhere_is_disconnected_for_good(
    kicks_at: str, autojump_clock: Clock
) -> None:
    hub = Hub()
    slow = hub.nodes["two"] = TakesSlowly(hub, "two")
    async with nodes_on(
        hub.node("one"), slow, hub.node("three"), config=CONFIG, seconds=_VIRTUAL_SECONDS
    ) as (one, two, three):
        alice, bob, carol = await join(one, name="alice"), await join(two), await join(three)
        await events_of(bob), await events_of(carol)
        number, session = alice.welcome["client"], alice.welcome["session"]
        hub.nodes["one"].hold()  # it does not learn that the session is taken
        again = await two.join()
        await again.send(f'/json {{"session": "{session}"}}')
        await slow.taken.wait()
        server = one.server if kicks_at == "one" else two.server
        server.kick(number, "kicked: enough")
        await trio.sleep(0.1)
        slow.goes_on.set()
        assert await again.rest() == ["[Server] goodbye: kicked: enough"]
        hub.nodes["one"].release()
        assert (await alice.hear("goodbye"))["code"] == (
            "kicked" if kicks_at == "one" else "replaced"
        )
        await trio.sleep(CONFIG.away_seconds)
        for each in bob, carol:
            assert [(e["type"], e["client"]) for e in await events_of(each)] == [("left", number)]
            assert "alice" not in await names_in(each)
        third = await join(one, session=session)
        assert not third.welcome["resumed"]


async def test_a_client_that_is_kicked_when_it_has_just_lost_its_connection_cannot_resume(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two)
        await events_of(bob)
        hub.nodes["two"].hold()
        await alice.reset()
        await trio.sleep(0.1)
        two.server.kick(alice.welcome["client"])  # as far as that node knows, it is there
        hub.nodes["two"].release()
        again = await join(two, session=alice.welcome["session"])
        assert not again.welcome["resumed"]


async def test_who_is_cancelled_while_a_session_is_taken_knows_whether_it_was() -> None:
    class SlowBackend(LocalBackend):
        async def take_session(self, digest: bytes, generation: int) -> SavedSession | None:
            await trio.sleep(0.01)
            record = SessionRecord(digest=digest, client=1, name="", rooms=(), generation=2)
            return SavedSession(record=record, age_seconds=0.0, nonces=[])

    store = SessionStore(SlowBackend(MemoryJournal()), 10, 60.0, max_bytes=10_000)
    _, session = store.create(1, "", (), "")
    with trio.CancelScope() as scope:
        scope.cancel(reason="the client has disconnected")
        assert await store.take(session)
    assert session.generation == 2


async def test_a_session_that_ended_elsewhere_cannot_be_resumed(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice = await join(one, name="alice")
        await alice.reset()
        again = await join(two, session=alice.welcome["session"])
        await again.send({"type": "quit"})
        await again.hear("goodbye")
        third = await join(one, session=alice.welcome["session"])
        assert not third.welcome["resumed"]


async def test_a_node_that_was_taken_for_dead_lets_its_clients_come_back(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        await events_of(bob)
        hub.fence("one")
        goodbye = await alice.hear("goodbye")
        assert (goodbye["code"], goodbye["reconnect"]) == ("draining", True)
        again = await join(two, session=alice.welcome["session"])
        assert again.welcome["resumed"]
        assert [each["type"] for each in await events_of(bob)] == []
        assert await names_in(bob) == {"alice", "bob"}


# --- Accounts -------------------------------------------------------------------------------------

SECRET = "correct horse battery"


async def test_a_login_takes_the_name_and_the_login_from_clients_of_other_nodes(
    autojump_clock: Clock,
) -> None:
    async with two_nodes() as (one, two):
        alice = await join(one, name="alice")
        assert (await alice.ask("register", passphrase=SECRET))["type"] == "logged-in"
        bob = await join(two)
        assert (await bob.ask("name", name="alice"))["code"] == "name-taken"
        assert (await bob.ask("login", name="alice", passphrase=SECRET))["type"] == "logged-in"
        lost = await alice.hear("logged-out")
        assert lost["name"] == "Client 1"
        assert await names_in(bob) == await names_in(alice) == {"alice", "Client 1"}
        assert (await alice.ask("name", name="alice"))["code"] == "name-taken"
        assert (await alice.ask("login", name="alice", passphrase=SECRET))["type"] == "logged-in"
        assert (await bob.hear("logged-out"))["name"] == "Client 2"


async def test_a_hello_logs_in_to_an_account_of_another_node(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice = await join(one, name="alice")
        await alice.ask("register", passphrase=SECRET)
        login = {"name": "alice", "passphrase": SECRET}
        again = await join(two, login=login)
        assert (again.welcome["name"], again.welcome["account"]) == ("alice", "alice")
        assert (await alice.hear("logged-out"))["name"] == "Client 1"
        third = await join(one, session=again.welcome["session"])
        assert (third.welcome["name"], third.welcome["account"]) == ("alice", "alice")


# --- To other nodes' clients ----------------------------------------------------------------------


async def test_private_messages_reach_clients_of_other_nodes(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        answer = await alice.ask("direct", to="bob", text="psst")
        assert answer["type"] == "accepted"
        assert (await bob.hear("direct"))["text"] == "psst"
        assert (await bob.ask("direct", to=1, text="yes?"))["type"] == "accepted"
        assert (await alice.hear("direct"))["text"] == "yes?"
        assert (await alice.ask("direct", to="nobody", text="?"))["code"] == "nobody-there"


async def test_operators_reach_clients_of_other_nodes(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        await trio.sleep(1)
        number = two.server.find("bob")
        assert number is not None
        assert one.server.find("bob") == number
        await one.server.broadcast("all of you")
        assert (await alice.hear("notice"))["text"] == "all of you"
        assert (await bob.hear("notice"))["text"] == "all of you"
        one.server.kick(number, "kicked: enough")
        goodbye = await bob.hear("goodbye")
        assert (goodbye["code"], goodbye["reason"]) == ("kicked", "kicked: enough")
        carol = await join(two, name="carol")
        await trio.sleep(1)
        assert "carol" in one.server.admin.ban("carol")  # it has no address in memory
        assert (await carol.hear("goodbye"))["code"] == "banned"
        assert one.server.unban("carol")
        carol = await join(two, name="carol")
        await trio.sleep(1)
        assert len(one.server.ban(Ban(target="carol"))) == 1
        assert (await carol.hear("goodbye"))["code"] == "banned"
        dave = await join(two)
        assert (await dave.ask("name", name="carol"))["code"] == "banned"
        assert one.server.unban("carol")
        await trio.sleep(1)
        assert (await dave.ask("name", name="carol"))["type"] == "renamed"


async def test_a_ban_that_the_backend_refuses_is_undone_and_reported_to_operators(
    log: LogRecorder, autojump_clock: Clock
) -> None:
    hub, config = Hub(), replace(CONFIG, operators=("boss",))
    async with two_nodes(hub, config) as (one, _):
        await one.server.admin.account(f"add boss {SECRET}")
        root = await join(one, login={"name": "boss", "passphrase": SECRET})
        bob = await join(one)
        assert "eve" in (await root.ask("ban", what="name eve"))["text"]
        assert len(one.server.bans) == 1
        hub.tell(BanRefused("name eve", 10_000), only="one")
        expected = "the ban of name eve was taken back: the cluster has 10000; lift one with /unban"
        assert (await root.hear("notice"))["text"] == expected
        assert one.server.bans == []
        assert await events_of(bob) == []
    assert any("[ERROR]" in line and expected[1:] in line for line in log.lines)


async def test_bans_of_the_backend_are_not_logged_again_at_a_start(
    log: LogRecorder, autojump_clock: Clock
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, _):
        one.server.ban(Ban(target="eve"))
        await trio.sleep(1)
    banned = [line for line in log.lines if "Banned" in line]
    async with two_nodes(hub) as (one, _):
        assert [each.target for each in one.server.bans] == ["eve"]
        eve = await join(one)
        assert (await eve.ask("name", name="eve"))["code"] == "banned"
    assert [line for line in log.lines if "Banned" in line] == banned


async def test_bans_that_a_node_gets_again_after_its_start_are_not_logged(
    log: LogRecorder, autojump_clock: Clock
) -> None:
    """Also those that have expired, and those that are none."""
    hub = Hub()
    for record in (
        BanRecord(target="eve"),
        BanRecord(target="bob", until=1.0),
        BanRecord(target=""),
    ):
        hub.bans[record.target] = record
    async with two_nodes(hub) as (one, _):
        for record in list(hub.bans.values()):
            hub.tell(BanAdded(record))
        await trio.sleep(1)
        assert [each.target for each in one.server.bans] == ["eve"]
    assert [line for line in log.lines if "Banned" in line] == []
    assert len([line for line in log.lines if "is not in force" in line]) == 2  # one a node


async def test_a_topic_set_on_one_node_is_known_on_all(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        root = await join(one, name="other", room="den")
        bob = await join(two, rooms={"den": {}})
        await one.server.admin.topic("den what we talk about")
        assert (await bob.hear("topic"))["text"] == "what we talk about"
        carol = await join(two, rooms={"den": {}})
        assert carol.welcome["rooms"]["den"]["topic"] == "what we talk about"
        del root


async def test_the_topic_of_a_room_that_only_other_nodes_have_is_shown_and_set(
    autojump_clock: Clock,
) -> None:
    async with two_nodes() as (one, two):
        bob = await join(two, rooms={"Den": {}})
        await settle()
        assert await one.server.admin.topic("den") == "it has no topic"
        assert await one.server.admin.topic("den tea") == "the topic of Den is set"
        assert (await bob.hear("topic"))["text"] == "tea"
        assert await one.server.admin.topic("DEN") == "the topic of Den: tea"
        with pytest.raises(LocalProtocolError, match="nobody is in attic"):
            await one.server.admin.topic("attic")


async def test_the_answer_to_announce_says_that_it_reaches_other_nodes(
    autojump_clock: Clock,
) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        answer = await one.server.admin.announce("tea")
        assert answer == "sent to 1 client of this node, and to the other nodes"
        for each in (alice, bob):
            assert (await each.hear("notice"))["text"] == "tea"


async def test_an_operator_sends_a_notice_to_a_client_of_another_node(
    autojump_clock: Clock,
) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        await settle()
        admin = one.server.admin
        await admin.send(admin.find("bob"), "tea")
        notice = await bob.hear("notice")
        assert notice == {"type": "notice", "text": "tea"}
        assert (await bob.ask("direct", to="alice", text="and you?"))["type"] == "accepted"
        assert (await alice.hear("direct"))["text"] == "and you?"
        with pytest.raises(LocalProtocolError, match="no client 99 is connected"):
            await admin.send(99, "tea")


# --- While the storage is away, or full -----------------------------------------------------------


async def test_clients_read_whether_the_storage_is_away_or_full(autojump_clock: Clock) -> None:
    hub = Hub()
    async with two_nodes(hub) as (server, _):
        one, alice = hub.nodes["one"], await join(server)
        one.become(available=False)
        assert "cannot reach its storage" in (await alice.hear("notice"))["text"]
        one.become(available=True)
        one.is_away, one.refusal = False, "the engine of the cluster is full"
        one.become(available=False)
        notice = await alice.hear("notice")
        assert notice["text"] == "messages are not accepted now: the engine of the cluster is full"
        late = await server.join()
        assert await late.line() == (
            "[Server] goodbye: the server is not available now: the engine of the cluster is full"
        )


async def test_an_outage_that_is_over_before_it_is_reported_is_reported_with_its_reason(
    autojump_clock: Clock, log: LogRecorder
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (server, _):
        one, alice = hub.nodes["one"], await join(server)
        one.is_away, one.refusal = False, "the engine of the cluster is full"
        one.become(available=False)
        one.is_away, one.refusal = True, ""
        one.become(available=True)
        notice = await alice.hear("notice")
        assert notice["text"] == "messages are not accepted now: the engine of the cluster is full"
    assert "[INFO] [server] [STATE] Messages are accepted again" in log.lines


@pytest.mark.parametrize("first", ["nothing", "text", "hello"])
async def test_a_new_client_gets_unavailable_in_its_protocol_while_the_storage_is_away(
    first: str, autojump_clock: Clock
) -> None:
    hub = Hub()
    reason = "the server is not available now: it cannot reach its storage"
    goodbye = {"type": "goodbye", "reason": reason, "code": "unavailable", "reconnect": True}
    lines = {"nothing": [], "text": ["/name alice"], "hello": ['/json {"protocol":1}', "{}"]}
    async with two_nodes(hub) as (one, _):
        hub.nodes["one"].become(available=False)
        tcp = await one.join()
        with suppress(trio.BrokenResourceError):
            await tcp.send(*lines[first])
        told = await tcp.line()
        web = await join_websocket(one)
        with suppress(trio.BrokenResourceError):
            await web.send(*lines[first])
        [shown] = await web.rest()
        assert web.close is not None
        assert web.close.code == 1013
        if first == "hello":
            assert json.loads(told) == json.loads(shown) == goodbye
        else:
            assert told == shown == f"[Server] goodbye: {reason}"
        assert await tcp.rest() == []


async def test_a_client_whose_hello_cannot_be_carried_out_gets_the_error_in_json(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, _):
        client = await one.join()
        hub.nodes["one"].become(available=False)
        await client.send('/json {"protocol":1,"name":"alice"}')
        goodbye = json.loads(await client.line())
        assert (goodbye["code"], goodbye["reconnect"]) == ("unavailable", True)


async def test_while_the_storage_is_away_requests_fail_and_no_client_is_disconnected(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        await events_of(alice)
        hub.nodes["one"].become(available=False)
        assert "storage" in (await alice.hear("notice"))["text"]
        for type_, fields in {
            "say": {"text": "hi"},
            "name": {"name": "al"},
            "join": {"room": "den"},
            "enter": {"room": "den"},
            "direct": {"to": "bob", "text": "psst"},
        }.items():
            assert (await alice.ask(type_, **fields))["code"] == "storage-failed", type_
        assert (await alice.ask("ping", token="x"))["type"] == "pong"
        await bob.say("still here")
        assert await alice.said() == ("lobby", "still here")
        hub.nodes["one"].become(available=True)
        await trio.sleep(1)
        await alice.say("back again")
        assert (await alice.ask("enter", room="den"))["type"] == "joined"
        assert (await bob.said()) == ("lobby", "back again")


async def test_without_the_engine_a_name_and_a_private_message_are_refused_in_the_same_words(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, _ = await join(one, name="alice"), await join(two, name="bob")
        await events_of(alice)
        hub.nodes["one"].become(available=False)
        await alice.hear("notice")
        told = [
            (await alice.ask("name", name="al"))["text"],
            (await alice.ask("enter", room="den"))["text"],
            (await alice.ask("direct", to="bob", text="psst"))["text"],
        ]
        assert told == [f"messages cannot be stored now: {AWAY}"] * 3


async def test_without_the_engine_the_answer_to_an_operator_says_what_was_not_stored(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, _):
        await join(one, name="alice")
        admin = one.server.admin
        await admin.account(f"add bob {SECRET}")
        hub.nodes["one"].become(available=False)
        for act, what in (
            (partial(admin.topic, "lobby tea"), "the topic"),
            (partial(admin.account, f"add carol {SECRET}"), "the account"),
            (partial(admin.account, "remove bob"), "the removal of the account"),
        ):
            with pytest.raises(StorageFailed) as failed:
                await act()
            assert str(failed.value) == f"{what} cannot be stored now: {AWAY}"


async def test_a_session_that_changes_after_its_lookup_is_taken_in_its_new_state(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    store = SessionStore(hub.node("one"), 10, 100.0)
    token, session = store.create(1, "alice", ("lobby",))
    there = SessionStore(hub.node("two"), 10, 100.0)
    found = await there.find(token)
    assert found is not None
    store.update(session, "al", ("lobby", "den"))  # its old connection was still read
    assert await there.take(found)
    assert (found.name, found.rooms) == ("al", ("lobby", "den"))


async def test_clients_of_a_node_that_drains_continue_on_another_one(autojump_clock: Clock) -> None:
    async with two_nodes() as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        first = await alice.ask("say", text="before")
        assert await bob.said() == ("lobby", "before")
        await events_of(bob)
        one.server.drain(9)
        await alice.say("while it drains")
        assert await bob.said() == ("lobby", "while it drains")
        goodbye = await alice.hear("goodbye")
        assert (goodbye["code"], goodbye["reconnect"]) == ("draining", True)
        assert goodbye["after"] == pytest.approx(6, abs=0.2)
        await bob.say("meanwhile")
        again = await join(two, session=alice.welcome["session"], since=first["id"])
        assert again.welcome["resumed"]
        assert await again.said() == ("lobby", "meanwhile")
        assert await events_of(bob) == []  # for him she was never gone
        assert one.server.shutting_down
        assert not two.server.draining
        assert two.server.why_not_ready() == ""


# --- Rooms ----------------------------------------------------------------------------------------


async def test_a_room_that_is_open_here_is_entered_without_asking(autojump_clock: Clock) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob, carol = await join(one), await join(one), await join(two)
        await alice.ask("enter", room="den")
        asked = hub.claimed
        assert (await bob.ask("enter", room="DEN"))["room"] == "den"
        assert hub.claimed == asked
        assert (await carol.ask("enter", room="DEN"))["room"] == "den"
        assert hub.claimed == asked + 1  # not open on that node
        assert hub.open["den"] == ("den", {"one", "two"})
        for each in (alice, bob, carol):
            await each.ask("exit", room="den")
        assert set(hub.open) == {"lobby"}


async def test_a_room_that_was_refused_can_be_entered_when_it_is_open_elsewhere(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub, replace(CONFIG, max_rooms=2)) as (one, two):
        alice, bob = await join(one), await join(two)
        await alice.ask("enter", room="den")
        assert (await bob.ask("enter", room="hall"))["code"] == "too-many-rooms"
        assert (await bob.ask("enter", room="1obby"))["code"] == "invalid-name"
        assert set(hub.open) == {"lobby", "den"}
        await alice.ask("exit", room="den")
        await alice.ask("enter", room="hall")
        assert (await bob.ask("enter", room="hall"))["type"] == "joined"
        await bob.say("hi")
        assert await alice.said() == ("hall", "hi")


async def test_the_room_of_a_client_that_goes_before_it_enters_is_given_back(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, two):
        alice, bob, carol = await join(one), await join(one), await join(two)
        hub.nodes["one"].hold()
        await alice.send({"type": "enter", "room": "den"})
        await bob.send({"type": "enter", "room": "den", "nonce": 1})
        await trio.testing.wait_all_tasks_blocked()
        assert "den" in hub.open
        one.server.kick(alice.welcome["client"])
        await trio.testing.wait_all_tasks_blocked()
        assert "den" in hub.open  # the other one waits for it
        hub.nodes["one"].release()
        assert (await bob.answer(1))["type"] == "joined"
        hub.nodes["one"].hold()
        await bob.send({"type": "enter", "room": "hall"})
        await trio.testing.wait_all_tasks_blocked()
        one.server.kick(bob.welcome["client"])
        hub.nodes["one"].release()
        await settle()
        assert set(hub.open) == {"lobby"}
        assert (await carol.ask("enter", room="hal1"))["type"] == "joined"


async def test_a_client_that_reads_nothing_holds_no_room_that_it_cannot_enter(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with two_nodes(hub, replace(CONFIG, send_queue_batches=2)) as (one, _two):
        alice = await join(one)
        waiting = 0
        for answers in range(6):  # with one of these the queue is just full
            stalled = await one.stalled()
            lines = ["/help"] * answers + [f"/join den{answers}"]
            await stalled.stream.send_all("".join(f"{line}\n" for line in lines).encode())
            await settle()
            listed = {each["room"] for each in (await alice.ask("rooms"))["rooms"]}
            waiting += f"den{answers}" not in listed
            assert set(hub.open) == listed
        assert waiting


@pytest.mark.parametrize("requests", [("/name",), ("/name", "/register correct horse")])
async def test_a_client_that_reads_no_answers_has_its_true_state_on_other_nodes(
    requests: tuple[str, ...], autojump_clock: Clock
) -> None:
    """Once its request is carried out, the answer may wait for its send queue without limit."""
    hub = Hub()
    async with two_nodes(hub, replace(CONFIG, send_queue_batches=2)) as (one, two):
        bob = await join(two)
        carried_out = 0
        for answers in range(8):  # with one of these the queue is just full
            name = f"zoe{answers}"
            stalled = await one.stalled()
            lines = ["/help"] * answers + [
                each.replace("name", f"name {name}") for each in requests
            ]
            await stalled.stream.send_all("".join(f"{line}\n" for line in lines).encode())
            await settle()
            me = one.server._registry.find(name)
            assert (me is not None) is (name in await names_in(bob))
            if me is not None:
                assert hub.clients[me.number].record.account == me.account
                carried_out += 1
        assert 0 < carried_out < 8


async def test_the_only_member_of_a_room_can_move_when_there_are_too_many_rooms(
    autojump_clock: Clock,
) -> None:
    async with two_nodes(Hub(), replace(CONFIG, max_rooms=3)) as (one, two):
        alice, bob = await join(one), await join(two)
        await alice.ask("join", room="den")
        await bob.ask("enter", room="hall")
        assert (await bob.ask("enter", room="loft"))["code"] == "too-many-rooms"
        assert (await alice.ask("join", room="loft"))["type"] == "joined"
        assert (await alice.ask("enter", room="den"))["code"] == "too-many-rooms"


async def test_a_room_that_cannot_be_claimed_is_refused_and_not_kept(autojump_clock: Clock) -> None:
    hub = Hub()
    async with two_nodes(hub) as (one, _two):
        alice = await join(one)
        hub.nodes["one"].hold()
        await alice.send({"type": "enter", "room": "den", "nonce": 1})
        await trio.testing.wait_all_tasks_blocked()
        hub.nodes["one"].lose_answers()
        assert (await alice.answer(1))["code"] == "storage-failed"
        assert set(hub.open) == {"lobby"}
        assert (await alice.ask("enter", room="den"))["type"] == "joined"


async def test_nodes_that_join_and_leave_are_logged(
    log: LogRecorder, autojump_clock: Clock
) -> None:
    hub = Hub()
    async with two_nodes(hub):
        for event in NodeAdded("5f"), NodeRemoved("5f", True), NodeRemoved("6a", False):
            hub.tell(event, only="one")
        await settle()
    assert [line for line in log.lines if "] Node " in line] == [
        "[INFO] [server] [STATE] Node 5f has joined the cluster",
        "[INFO] [server] [STATE] Node 5f has left the cluster",
        "[INFO] [server] [STATE] Node 6a was taken for dead: its lease has ended",
    ]


async def test_texts_of_other_nodes_are_clean_for_clients_and_the_log(
    log: LogRecorder, autojump_clock: Clock
) -> None:
    raw, clean = "a\x1b[2J\r\x9b", "a␛[2J␍\ufffd"
    hub = Hub()
    async with two_nodes(hub) as (one, _):
        alice = await join(one, name="alice", rooms={"lobby": {}})
        number = alice.welcome["client"]
        record = ClientRecord(client=99, generation=1, name=raw, rooms=("lobby",))
        hub.tell(ClientPut(record), only="one")
        assert (await alice.hear("joined"))["name"] == clean
        hub.tell(ClientGone(99, 1, raw, False), only="one")
        left = await alice.hear("left")
        assert (left["name"], left["reason"]) == (clean, clean)
        hub.tell(Announced(raw), only="one")
        assert (await alice.hear("notice"))["text"] == clean
        hub.tell(TopicChanged("lobby", raw, 99, raw), only="one")
        topic = await alice.hear("topic")
        assert (topic["text"], topic["name"]) == (clean, clean)
        hub.tell(DisconnectAsked(number, "kicked", raw), only="one")
        assert (await alice.hear("goodbye"))["reason"] == clean
    assert not [line for line in log.lines if "\x1b" in line or "\r" in line]
