"""The directory's functions in the engine: what several nodes can and cannot do to each other."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
import trio

from multichat.backend.events import BanRecord
from multichat.cluster.calls import Block, Status
from multichat.cluster.changes import (
    Account,
    AccountStored,
    Announce,
    Announcement,
    Banned,
    ClaimRoom,
    ClientLeft,
    Disconnect,
    DisconnectClient,
    DropBan,
    DropRoom,
    ForgetSession,
    Gone,
    HoldRoom,
    Lost,
    NodeJoined,
    NodeLost,
    Put,
    PutBan,
    PutClient,
    RetainClients,
    RetainRooms,
    Settings,
    SetTopic,
    StoreAccount,
    Taken,
    TakeNumbers,
    TopicSet,
    Unbanned,
    pack,
)
from multichat.cluster.library import library_text
from multichat.protocol.lookalikes import fold_name, lookalike_keys

from .engine import Engine, EngineError
from .functions import block, calling
from .scripted_node import ScriptedNode, digest, events_of, record

pytestmark = pytest.mark.process

Join: TypeAlias = Callable[..., Awaitable[ScriptedNode]]

_FENCED = ["refused", "fenced"]
_TAKEN = ["refused", "name-taken", "", False]
_REGISTERED = ["refused", "name-taken", "", True]
_NO_SESSION = ["refused", "unknown-session"]


@pytest.fixture
async def join(engine: Engine) -> Join:
    """Start nodes on one engine that has the library."""
    await engine.call("FUNCTION", "LOAD", library_text())

    async def start(name: str, **settings: int) -> ScriptedNode:
        node = ScriptedNode(engine, name, Settings(**settings))
        await node.join()
        return node

    return start


def _account(name: str, hash_: str, former: str = "", most: int = 10) -> StoreAccount:
    return StoreAccount(fold_name(name), name, hash_, lookalike_keys(name), former, most)


# Nodes and batches --------------------------------------------------------------------------------


async def test_numbers_of_clients_are_given_once_and_skip_some_after_a_loss(join: Join) -> None:
    a, b = await join("a"), await join("b")
    assert await a.one(TakeNumbers(64)) == ["ok", 1]
    assert await b.one(TakeNumbers(64)) == ["ok", 65]
    assert await a.one(TakeNumbers(64, 128)) == ["ok", 129]
    await a.engine.call("DEL", "multichat:clients:ever")
    assert await a.one(TakeNumbers(64, 128)) == ["ok", 100_129]
    assert await b.one(TakeNumbers(64, 64)) == ["ok", 100_193]


async def test_a_repeated_batch_gets_its_first_answer_and_changes_nothing(join: Join) -> None:
    a = await join("a")
    first = await a.change(TakeNumbers(64), Announce("hello"))
    assert await a.repeat(TakeNumbers(64), Announce("hello")) == first
    assert events_of(await a.events()) == [NodeJoined("a"), Announcement("hello")]
    a.sequence += 1
    assert await a.repeat(TakeNumbers(64)) == [["ok", 65]]
    a.sequence += 2
    with pytest.raises(EngineError, match="ORDER"):  # the one before it was refused
        await a.repeat(TakeNumbers(64))
    a.sequence -= 2
    for _ in range(64):
        await a.change()
    a.sequence = 1
    with pytest.raises(EngineError, match="FORGOTTEN"):
        await a.repeat(TakeNumbers(64))


async def test_a_change_that_fails_takes_no_other_with_it(join: Join) -> None:
    a = await join("a")
    wrong = TakeNumbers("many")  # type: ignore[arg-type]
    results = await a.change(TakeNumbers(1), wrong, TakeNumbers(1))
    assert [result[:2] for result in results] == [["ok", 1], ["refused", "error"], ["ok", 2]]


async def test_the_clients_of_a_node_whose_lease_ends_leave_once(join: Join) -> None:
    a = await join("a", lease=1)
    b, c = await join("b"), await join("c")
    for client in (1, 2):
        await a.put(client)
    await a.save_session(1, "token")
    before = len(await b.events())
    await trio.sleep(0.01)
    for node in (b, c, b):
        assert not await node.renew()
    after = events_of(await b.events(before))
    assert after[0] == NodeLost("a")
    assert set(after[1:]) == {
        ClientLeft(1, 1, "connection lost", True),
        ClientLeft(2, 1, "connection lost", False),
    }
    assert len(after) == 3
    # The session is there, on another node.
    assert (await b.take_session("token"))[:3] == ["ok", 1, 2]


async def test_a_frozen_node_that_wakes_is_fenced_until_it_joins_with_a_new_run(
    join: Join,
) -> None:
    a, b = await join("a", lease=1), await join("b")
    await a.put(1)
    await a.save_session(1, "token")
    await trio.sleep(0.01)
    await b.renew()
    await b.take_session("token")
    await b.put(1, 2)
    before = len(await b.events())
    with pytest.raises(EngineError, match="FENCED"):
        await a.gone(1)
    with pytest.raises(EngineError, match="FENCED"):
        await a.renew()
    with pytest.raises(EngineError, match="FENCED"):
        await a.join()  # never again with that run
    assert len(await b.events()) == before
    again = ScriptedNode(a.engine, "a")
    await again.join()
    assert await again.gone(1) == _FENCED
    assert await again.one(TakeNumbers(1)) == ["ok", 1]


async def test_an_engine_that_was_away_takes_no_node_for_dead(join: Join) -> None:
    """All leases end while it is away; the first node that is back must not end the others."""
    a, b = await join("a"), await join("b")
    await a.put(1)
    await a.engine.call("DEL", "multichat:lease:a", "multichat:lease:b")
    await a.engine.call("SET", "multichat:renewed", "1")  # long ago
    assert not await b.renew()
    assert await a.one(TakeNumbers(1)) == ["ok", 1]
    assert not await a.renew()


async def test_a_second_node_cannot_run_under_the_name_of_one_that_is_alive(join: Join) -> None:
    a = await join("a")
    second = ScriptedNode(a.engine, "a")
    with pytest.raises(EngineError, match="INUSE"):
        await second.join()
    await a.put(1)
    await a.end("shutting down")
    await second.join()
    assert events_of(await second.events(2))[:2] == [
        NodeLost("a"),
        ClientLeft(1, 1, "shutting down", False),
    ]


async def test_a_large_node_is_removed_in_steps(join: Join) -> None:
    a, b = await join("a", lease=1), await join("b")
    await a.change(*(PutClient.of(record(client)) for client in range(1, 1201)))
    await trio.sleep(0.01)
    steps = 1
    while await b.renew():
        steps += 1
    assert steps == 3
    gone = [each for each in await b.events() if isinstance(each.event, ClientLeft)]
    assert len(gone) == 1200


async def test_an_engine_that_lost_its_data_asks_a_node_to_join_again(join: Join) -> None:
    a = await join("a")
    await a.put(1, name="alice")
    await a.engine.call("FLUSHALL")
    with pytest.raises(EngineError, match="UNREGISTERED"):
        await a.put(1, name="alice")
    await a.join()
    assert await a.put(1, name="alice") == ["ok"]
    assert await a.save_session(1, "token") == ["ok"]
    assert await a.claim(2, "alice") == _TAKEN
    assert (await a.take_session("token"))[:3] == ["ok", 1, 2]


async def test_the_clients_that_a_node_has_no_longer_after_a_reconnect_leave(join: Join) -> None:
    a, b = await join("a"), await join("b")
    for client in (1, 2, 3):
        await a.put(client)
        await a.save_session(client, f"token {client}")
    await b.take_session("token 3")
    before = len(await a.events())
    put = [PutClient.of(record(client)) for client in (1, 3)]
    assert await a.change(*put, RetainClients((1,))) == [["ok"], _FENCED, ["ok"]]
    assert events_of(await a.events(before)) == [ClientLeft(2, 1, "connection lost", True)]


# Names --------------------------------------------------------------------------------------------


async def test_two_nodes_that_want_one_name_or_a_lookalike_get_it_once(join: Join) -> None:
    a, b = await join("a"), await join("b")
    assert await a.claim(1, "alice") == ["ok"]
    assert await b.claim(2, "ALICE") == _TAKEN
    assert await b.claim(2, "aIice") == ["refused", "name-taken", "alice", False]
    assert await b.claim(2, "bob") == ["ok"]
    assert await a.claim(1, "Alice") == ["ok"]  # its own, spelt in another way
    assert await b.claim(2, "alice") == _TAKEN


async def test_a_client_keeps_the_name_that_it_reports_and_gives_the_others_back(
    join: Join,
) -> None:
    a, b = await join("a"), await join("b")
    await a.claim(1, "alice")
    await a.put(1, name="alice")
    for name in ("carol", "aIice"):  # one of them shares a key with the one that it has
        assert await a.claim(1, name) == ["ok"]
        assert await b.claim(2, name) != ["ok"]
    assert await a.put(1, name="alice") == ["ok"]
    assert await b.claim(2, "carol") == ["ok"]
    assert (await b.claim(2, "aIice"))[:2] == ["refused", "name-taken"]
    assert await b.claim(2, "alice") == _TAKEN
    await a.put(1)
    assert await b.claim(2, "alice") == ["ok"]


async def test_the_name_of_a_client_that_is_away_is_kept_for_it_and_its_address(
    join: Join,
) -> None:
    a, b = await join("a"), await join("b")
    for client, name in ((1, "alice"), (2, "bob"), (3, "carol"), (4, "dave")):
        await a.put(client, name=name, origin="192.0.2.1")
        await a.save_session(client, f"token {client}", connected=False)
        await a.gone(client, keep=1 if name == "bob" else 60_000)
    await trio.sleep(0.01)
    assert await b.claim(9, "alice", origin="192.0.2.9") == _TAKEN
    assert await b.claim(9, "alice", origin="192.0.2.1") == ["ok"]
    assert await b.claim(9, "bob", origin="192.0.2.9") == ["ok"]
    assert await b.claim(9, "dave", account="dave") == ["ok"]
    await b.take_session("token 3")
    assert await b.claim(3, "carol", 2) == ["ok"]


async def test_a_client_that_leaves_for_good_gives_its_name_back_at_once(join: Join) -> None:
    a, b = await join("a"), await join("b")
    await a.put(1, name="alice")
    await a.gone(1, reason="quit")
    assert await b.claim(2, "alice") == ["ok"]
    assert await a.engine.call("HLEN", "multichat:generations") == 1


async def test_a_client_whose_name_was_taken_while_its_node_was_away_loses_it(join: Join) -> None:
    a, b = await join("a"), await join("b")
    await b.put(2, name="alice")
    before = len(await a.events())
    await a.put(1, name="aIice")
    assert events_of(await a.events(before)) == [
        Lost(1, 1, "aIice", False, "a"),
        Put(record(1)),
    ]


# Presence and sessions ----------------------------------------------------------------------------


async def test_the_state_of_clients_is_in_the_feed_once(join: Join) -> None:
    a, b = await join("a"), await join("b")
    await a.put(1, name="alice")
    await b.put(2)
    await b.put(2)  # again: no event
    await b.put(2, rooms=("lobby", "Kitchen"))
    await a.gone(1, reason="gone")
    await a.gone(1, reason="gone")
    assert [(each.actor, each.event) for each in await a.events(2)] == [
        ("a", Put(record(1, name="alice"))),
        ("b", Put(record(2))),
        ("b", Put(record(2, rooms=("lobby", "Kitchen")))),
        ("a", ClientLeft(1, 1, "gone", False)),
    ]


async def test_a_resume_on_another_node_fences_the_connection_that_had_the_session(
    join: Join,
) -> None:
    a, b = await join("a"), await join("b")
    await a.put(1, name="alice")
    await a.save_session(1, "token")
    before = len(await a.events())
    assert await b.session("token") == ["ok", 1, 1, "record 1", [], 0]
    assert await b.take_session("token") == ["ok", 1, 2, "record 1", []]
    assert await a.take_session("token") == _NO_SESSION  # it was found with the old generation
    # Nothing of the old connection has an effect.
    assert await a.gone(1) == _FENCED
    assert await a.put(1, rooms=("kitchen",)) == _FENCED
    assert await a.claim(1, "mallory") == _FENCED
    assert await a.save_session(1, "token") == _FENCED
    assert await a.one(ForgetSession(digest("token"), 1, 1)) == _FENCED
    assert [(each.actor, each.event) for each in await a.events(before)] == [
        ("b", Taken(1, 1, "a"))
    ]
    # The new one continues, in its rooms and with its name.
    assert await b.put(1, 2, name="alice") == ["ok"]
    assert events_of(await b.events(before + 1)) == [Put(record(1, 2, name="alice"))]
    assert (await b.take_session("token", 2))[:3] == ["ok", 1, 3]


async def test_a_session_is_resumed_after_its_client_has_gone(join: Join) -> None:
    a, b = await join("a"), await join("b")
    await a.put(1)
    await a.save_session(1, "token")
    await a.save_session(1, "token", connected=False)
    await a.gone(1, keep=60_000)
    await trio.sleep(0.01)
    assert (await b.session("token"))[5] >= 10
    assert (await b.take_session("token"))[:3] == ["ok", 1, 2]
    assert await b.session("token") == ["ok", 1, 2, "record 1", [], 0]
    assert await b.one(ForgetSession(digest("token"), 1, 2)) == ["ok"]
    assert await a.session("token") == _NO_SESSION
    assert await a.take_session("token", 2) == _NO_SESSION


def _said(generation: int) -> Block:
    return block("one", generation=generation, nonces=("n",))


async def test_a_client_that_has_left_for_good_stays_fenced_on_the_node_where_it_was_first(
    join: Join, engine: Engine
) -> None:
    a, b = await join("a"), await join("b")
    await a.put(1)
    await a.save_session(1, "token")
    await b.take_session("token")
    async with calling(engine, node="b", run=b.run) as caller:
        assert [each.status for each in await caller.append(_said(2))] == [Status.APPENDED]
    assert await b.change(ForgetSession(digest("token"), 1, 2), Gone(1, 2, "", -1)) == [["ok"]] * 2
    # The node was cut off meanwhile, and its requests in flight arrive now.
    async with calling(engine, node="a", run=a.run) as caller:
        late = await caller.append(_said(1))
    assert [each.status for each in late] == [Status.FENCED]
    assert await a.put(1) == _FENCED
    # Afterwards nothing is left of the client.
    await b.renew()
    assert await engine.call("HLEN", "multichat:generations") == 1
    await engine.call("ZADD", "multichat:generations:ended", 1, 1)
    await b.renew()
    assert await engine.call("EXISTS", "multichat:generations", "multichat:generations:ended") == 0


async def test_sessions_end_after_their_time_and_are_limited(join: Join) -> None:
    a = await join("a", session=1)
    await a.save_session(1, "old", connected=False)
    await trio.sleep(0.01)
    assert await a.session("old") == _NO_SESSION
    assert await a.take_session("old") == _NO_SESSION
    b = await join("b", max_sessions=2)
    for client in range(2, 8):
        await b.put(client)
        await b.save_session(client, f"token {client}", connected=False)
        await b.gone(client, keep=1000)
        await trio.sleep(0.002)  # they are ordered by milliseconds
    await b.renew()
    taken = [(await b.take_session(f"token {n}"))[0] for n in range(2, 8)]
    assert taken == ["refused"] * 4 + ["ok"] * 2
    # A session that does not exist leaves nothing of its client.
    assert await b.engine.call("HLEN", "multichat:sessions") == 2
    assert await b.engine.call("HLEN", "multichat:generations") == 2


# Accounts -----------------------------------------------------------------------------------------


async def test_of_two_nodes_that_create_an_account_or_a_lookalike_one_does(join: Join) -> None:
    a, b = await join("a"), await join("b")
    assert await a.one(_account("alice", "hash")) == ["ok"]
    assert await b.one(_account("Alice", "other")) == _REGISTERED
    assert await b.one(_account("aIice", "other")) == ["refused", "name-taken", "alice", True]
    assert await b.claim(2, "alice") == _REGISTERED
    assert await b.claim(2, "aIice") == ["refused", "name-taken", "alice", True]
    assert await b.one(_account("bob", "hash", most=1)) == ["refused", "too-many-accounts"]


async def test_of_two_changes_of_one_passphrase_one_is_made(join: Join) -> None:
    a, b = await join("a"), await join("b")
    await a.one(_account("alice", "old"))
    assert await a.one(_account("alice", "new", "old")) == ["ok"]
    assert await b.one(_account("alice", "other", "old")) == _REGISTERED
    remove = StoreAccount("alice", "", "", (), "new", 10)
    assert await b.one(remove) == ["ok"]
    assert await b.one(remove) == _TAKEN
    assert events_of(await a.events(2)) == [
        AccountStored("alice", "alice", "old"),
        AccountStored("alice", "alice", "new"),
        AccountStored("alice", "", ""),
    ]
    assert await b.claim(2, "aIice") == ["ok"]


async def test_a_login_takes_name_and_login_from_those_who_have_them_on_other_nodes(
    join: Join,
) -> None:
    a, b, c = await join("a"), await join("b"), await join("c")
    await a.put(1, name="alice")
    await a.one(_account("alice", "hash"))
    before = len(await a.events())
    assert await b.claim(2, "alice", login=True) == ["ok"]
    await b.put(2, name="alice", account="alice")
    assert await c.claim(3, "alice", login=True) == ["ok"]
    await c.put(3, name="alice", account="alice")
    assert [(each.actor, each.event) for each in await a.events(before)] == [
        ("", Lost(1, 1, "alice", False, "a")),
        ("b", Put(record(2, name="alice", account="alice"))),
        ("", Lost(2, 1, "alice", True, "b")),
        ("c", Put(record(3, name="alice", account="alice"))),
    ]
    # A report that was under way then changes nothing for the new holder.
    before = len(await a.events())
    await b.put(2, name="alice", account="alice", rooms=("kitchen",))
    assert events_of(await b.events(before)) == [
        Lost(2, 1, "alice", True, "b"),
        Lost(2, 1, "alice", False, "b"),
        Put(record(2, rooms=("kitchen",))),
    ]
    assert await b.claim(1, "alice") == _REGISTERED
    assert await b.claim(1, "dave", login=True) == _TAKEN  # no such account


async def test_a_login_of_a_client_that_is_called_otherwise_is_lost_without_its_name(
    join: Join,
) -> None:
    a, b = await join("a"), await join("b")
    await a.one(_account("alice", "hash"))
    await a.claim(1, "alice", login=True)
    await a.put(1, name="bob", account="alice")
    await b.claim(2, "alice", login=True)
    assert (await a.events())[-1].event == Lost(1, 1, "alice", True, "a")
    assert await a.put(1, name="bob") == ["ok"]
    assert await b.claim(3, "bob") == _TAKEN


async def test_a_login_is_given_back_with_the_client_and_the_account(join: Join) -> None:
    a, b = await join("a"), await join("b")
    await a.one(_account("alice", "hash"))
    for leave in ("put", "gone", "removed"):
        await a.claim(1, "alice", login=True)
        await a.put(1, name="alice", account="alice")
        before = len(await a.events())
        if leave == "put":
            await a.put(1)
        elif leave == "gone":
            await a.gone(1)
        else:
            await a.one(StoreAccount("alice", "", "", (), "hash", 10))
            await a.one(_account("alice", "hash"))
        await b.claim(2, "alice", login=True)
        lost = [each.event for each in await a.events(before) if isinstance(each.event, Lost)]
        # The removed account's name stays, until the new account's owner logs in.
        assert lost == ([Lost(1, 1, "alice", False, "a")] if leave == "removed" else [])
        await b.gone(2)


# Topics, bans, and events -------------------------------------------------------------------------


async def test_topics_and_bans_reach_all_nodes_and_are_limited(join: Join) -> None:
    a, b = await join("a"), await join("b")
    assert await a.one(SetTopic("lobby", "soup", 1, "alice", 1)) == ["ok"]
    assert await b.one(SetTopic("kitchen", "x", 1, "", 1)) == ["refused", "too-many-topics"]
    assert await b.one(SetTopic("lobby", "", 1, "alice", 1)) == ["ok"]
    ban, longer = (BanRecord(target="name bob", until=until) for until in (9e9, None))
    assert await b.one(PutBan(ban, 1)) == ["ok"]
    assert await a.one(PutBan(BanRecord(target="eve"), 1)) == ["refused", "too-many-bans"]
    assert await a.one(PutBan(longer, 1)) == ["ok"]
    assert (await a.snapshot()).bans == [longer]
    assert await a.one(DropBan("name bob")) == ["ok"]
    assert await a.one(DropBan("name bob")) == ["refused", "not-banned"]
    assert await a.one(Announce("hello")) == ["ok"]
    assert events_of(await b.events(2)) == [
        TopicSet("lobby", "soup", 1, "alice"),
        TopicSet("lobby", "", 1, "alice"),
        Banned(ban),
        Banned(longer),
        Unbanned("name bob"),
        Announcement("hello"),
    ]


async def test_bans_that_have_ended_do_not_count_for_the_limit(join: Join) -> None:
    a = await join("a")
    later = BanRecord(target="name carol", until=9e9)
    for ban in (BanRecord(target="name bob", until=5.5), later, BanRecord(target="name eve")):
        assert await a.one(PutBan(ban, 2)) == ["ok"]
    assert await a.one(PutBan(BanRecord(target="name dave"), 2)) == ["refused", "too-many-bans"]
    assert (await a.snapshot()).bans == [later, BanRecord(target="name eve")]


async def test_a_kick_reaches_the_client_on_its_node_and_ends_its_session(join: Join) -> None:
    a, b = await join("a"), await join("b")
    await a.put(1)
    await a.save_session(1, "token")
    kick = DisconnectClient(1, "kicked", "enough", False)
    unknown = DisconnectClient(7, "kicked", "", False)
    assert await b.one(unknown) == ["refused", "unknown-client"]
    assert await b.one(kick) == ["ok"]
    assert (await a.events())[-1].event == Disconnect(1, "a", "kicked", "enough")
    assert await b.session("token") == _NO_SESSION
    assert await a.save_session(1, "token") == ["ok"]  # the node does not know it yet
    assert await b.session("token") == _NO_SESSION
    assert await a.gone(1, reason="kicked") == ["ok"]


async def test_a_snapshot_has_a_kick_until_the_node_has_disconnected_the_client(join: Join) -> None:
    a, b = await join("a"), await join("b")
    await a.put(1)
    await a.claim(2, "bob")
    for client in (1, 2):
        assert await b.one(DisconnectClient(client, "kicked", "enough", False)) == ["ok"]
    await a.put(1, name="alice")  # it does not know it yet
    kicks = [Disconnect(client, "a", "kicked", "enough") for client in (1, 2)]
    assert sorted((await b.snapshot()).disconnects, key=lambda each: each.client) == kicks
    for client in (1, 2):
        await a.gone(client, reason="kicked")
    assert (await b.snapshot()).disconnects == []


async def test_a_kick_ends_the_session_of_a_client_that_has_just_disconnected(join: Join) -> None:
    a, b = await join("a"), await join("b")
    await a.put(1)
    await a.save_session(1, "token")
    await a.save_session(1, "token", connected=False)
    await a.gone(1, keep=5000)
    kick = DisconnectClient(1, "kicked", "enough", False)
    assert await b.one(kick) == ["ok"]
    assert await b.session("token") == _NO_SESSION
    assert await b.one(kick) == ["refused", "unknown-client"]


# Reading ------------------------------------------------------------------------------------------


async def test_events_that_are_kept_no_longer_are_a_gap(join: Join) -> None:
    a = await join("a")
    await a.change(*(Announce(str(number)) for number in range(3)))
    assert len(await a.events(4)) == 0
    assert len(await a.events(1)) == 3
    await a.engine.call("XTRIM", "multichat:directory:log", "MINID", "3-0")
    assert len(await a.events(2)) == 2
    for after in (0, 1, 5):  # also of an engine that has lost the last ones
        with pytest.raises(EngineError, match="GAP"):
            await a.events(after)


async def test_the_snapshot_has_everything(join: Join) -> None:
    a = await join("a")
    await a.put(1, name="alice")
    await a.claim(2, "bob")  # it has not been reported yet
    await a.one(_account("carol", "hash"))
    await a.one(SetTopic("lobby", "soup", 1, "alice", 10))
    bans = [BanRecord(target=f"name n{number}") for number in range(20)]
    await a.change(*(PutBan(ban, 100) for ban in bans))
    snapshot = await a.snapshot()
    assert snapshot.number == len(await a.events())
    assert snapshot.clients == {1: ("a", record(1, name="alice"))}
    assert snapshot.accounts == {"carol": Account(name="carol", hash="hash")}
    assert snapshot.topics == {"lobby": "soup"}
    assert snapshot.bans == bans


def test_text_with_lone_surrogates_is_packed_with_question_marks() -> None:
    assert pack(Announce("a\udc80b")) == pack(Announce("a?b"))
    surrogate = PutClient.of(record(1, rooms=("a\udc80b",)))
    assert pack(surrogate) == pack(PutClient.of(record(1, rooms=("a?b",))))


# Rooms --------------------------------------------------------------------------------------------


def _room(name: str, *leaving: str, most: int = 3, valid: bool = True) -> ClaimRoom:
    return ClaimRoom(fold_name(name), name, lookalike_keys(name), leaving, most, valid)


_TOO_MANY_ROOMS = ["refused", "too-many-rooms"]


async def _rooms_left(engine: Engine) -> list[int]:
    keys = await engine.call("KEYS", "multichat:run:*:rooms")
    names = ("multichat:rooms", "multichat:rooms:keys")
    return [len(keys), *[int(await engine.call("HLEN", name)) for name in names]]


async def test_rooms_are_limited_over_all_nodes_and_free_when_no_node_has_them(
    engine: Engine, join: Join
) -> None:
    a, b = await join("a"), await join("b")
    assert await a.one(_room("Den")) == ["ok", "Den"]
    assert await b.one(_room("DEN")) == ["ok", "Den"]
    await a.one(_room("attic"))
    await b.one(_room("hall"))
    assert await b.one(_room("porch")) == _TOO_MANY_ROOMS
    assert await b.one(_room("den")) == ["ok", "Den"]  # it is open
    await a.one(DropRoom("den"))
    await a.one(DropRoom("den"))
    assert await a.one(_room("porch")) == _TOO_MANY_ROOMS  # b has it
    await b.one(DropRoom("den"))
    assert await a.one(_room("porch")) == ["ok", "porch"]
    for node, key in ((a, "attic"), (a, "porch"), (b, "hall")):
        await node.one(DropRoom(key))
    assert await _rooms_left(engine) == [0, 0, 0]


async def test_a_room_that_its_last_member_leaves_for_another_does_not_count(join: Join) -> None:
    a, b = await join("a"), await join("b")
    for name in ("den", "attic", "hall"):
        await a.one(_room(name))
    assert await b.one(_room("porch", "den")) == _TOO_MANY_ROOMS  # it is not b's
    assert await a.one(_room("porch", "den")) == ["ok", "porch"]
    await b.one(_room("hall"))
    await a.one(DropRoom("den"))
    assert await a.one(_room("loft", "hall")) == _TOO_MANY_ROOMS  # b has it, too


async def test_a_new_room_looks_like_no_other_that_is_open(engine: Engine, join: Join) -> None:
    a, b = await join("a"), await join("b")
    assert await a.one(_room("bill")) == ["ok", "bill"]
    assert await b.one(_room("biII")) == ["refused", "looks-like", "bill"]
    # One with messages can still be opened: its members would be locked out otherwise.
    await engine.call("HSET", "multichat:room:biii", "next", 1)
    assert await b.one(_room("biII")) == ["ok", "biII"]
    await a.one(DropRoom("bill"))
    assert await a.one(_room("bill")) == ["refused", "looks-like", "biII"]
    await b.one(DropRoom("biii"))
    assert await a.one(_room("bill")) == ["ok", "bill"]
    # A name that the rules of today refuse.
    assert await a.one(_room("x y", valid=False)) == ["refused", "invalid-name"]
    await engine.call("HSET", "multichat:room:x y", "next", 1)
    assert await a.one(_room("x y", valid=False)) == ["ok", "x y"]


async def test_the_rooms_of_a_node_whose_lease_ends_are_free(engine: Engine, join: Join) -> None:
    a = await join("a", lease=1)
    b = await join("b")
    for name in ("den", "attic", "hall"):
        await a.one(_room(name))
    await b.one(_room("hall"))
    await trio.sleep(0.01)
    assert not await b.renew()
    assert await b.one(_room("porch", most=2)) == ["ok", "porch"]
    await b.end()
    assert await _rooms_left(engine) == [0, 0, 0]


async def test_after_a_reconnect_the_engine_has_the_rooms_of_the_node(
    engine: Engine, join: Join
) -> None:
    a = await join("a")
    for name in ("den", "attic"):
        await a.one(_room(name))
    await a.one(HoldRoom("lobby", "lobby", ()))
    held = tuple((fold_name(name), name, lookalike_keys(name)) for name in ("Den", "bill"))
    await a.one(RetainRooms(held))
    rooms = await engine.call("HKEYS", "multichat:rooms")
    assert sorted(rooms) == [b"bill", b"den"]
    assert await a.one(_room("biII")) == ["refused", "looks-like", "bill"]
    await a.one(RetainRooms(()))
    assert await _rooms_left(engine) == [0, 0, 0]
