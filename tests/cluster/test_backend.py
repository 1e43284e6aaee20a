"""Nodes on a real engine: what they decide together, and which events of others each gets."""

import re
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import trio
import trio.testing

from multichat.backend.events import (
    AccountChanged,
    Announced,
    AvailabilityChanged,
    BanAdded,
    BanRecord,
    BanRefused,
    BanRemoved,
    ClientGone,
    ClientPut,
    DisconnectAsked,
    NameLost,
    NodeAdded,
    NodeFenced,
    NodeRemoved,
    Replaced,
    TopicChanged,
)
from multichat.cluster.address import ClusterAddress
from multichat.cluster.changes import PutClient, Settings, pack
from multichat.cluster.directory import CHANNEL, Directory, DirectoryConfig
from multichat.cluster.library import (
    LibraryDiffers,
    check_library,
    library_text,
    load_command,
    load_library,
)
from multichat.cluster.link import EngineTimeouts
from multichat.errors import JournalFailed, NameTaken, StorageFailed, lone_exception
from multichat.journal.base import AccountRecord, SavedNonce, SavedSession, SessionRecord
from multichat.server.claims import Claims
from tests.support.processes import LOOPBACK, WAIT_SECONDS

from .engine import Engine, EngineConfig, EngineError, Engines
from .functions import mutated
from .links import linked
from .nodes import draft
from .running_backend import Node, cluster_config, run_node
from .scripted_node import ScriptedNode, record

pytestmark = pytest.mark.process

_SESSION = SessionRecord(digest=b"d" * 32, client=1, name="alice", rooms=("lobby",))


async def test_changes_of_a_node_reach_the_other_and_one_that_joins_later(engine: Engine) -> None:
    async with (
        run_node(cluster_config(engine, "a")) as a,
        run_node(cluster_config(engine, "b")) as b,
    ):
        await a.claim(1, "alice")
        record = a.put(1, name="alice")
        account = AccountRecord(name="carol", hash="hash")
        await a.backend.save_account("carol", account, former=None)
        await a.backend.save_topic("lobby", "soup", 1, "alice")
        ban = BanRecord(target="name bob")
        a.backend.add_ban(ban)
        a.backend.announce("hello")
        await b.wait_for(Announced)
        assert b.heard == [
            ClientPut(record),
            AccountChanged("carol", "carol", "hash"),
            TopicChanged("lobby", "soup", 1, "alice"),
            BanAdded(ban),
        ]
        async with run_node(cluster_config(engine, "c")) as c:
            assert c.backend.clients == [record]
            assert c.backend.accounts == [account]
            assert c.backend.topics == {"lobby": "soup"}
            assert c.backend.bans == [ban]
        a.backend.remove_client(1, 1, "gone", keep_seconds=None)
        a.backend.remove_ban("name bob")
        await b.wait_for(BanRemoved)
        assert ClientGone(1, 1, "gone", False) in b.heard
        # Of its own changes a node gets those that all apply in one order: topics and bans.
        await a.wait_for(BanRemoved)
        assert a.heard == [
            NodeAdded("b"),
            TopicChanged("lobby", "soup", 1, "alice"),
            BanAdded(ban),
            NodeAdded("c"),
            NodeRemoved("c", in_order=True),
        ]


async def test_two_nodes_that_want_one_name_at_once_get_it_once(engine: Engine) -> None:
    winners: list[Node] = []

    async def claim(node: Node, client: int, name: str) -> None:
        try:
            await node.claim(client, name)
        except NameTaken:
            return
        winners.append(node)

    async with (
        run_node(cluster_config(engine, "a")) as a,
        run_node(cluster_config(engine, "b")) as b,
    ):
        for attempt in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(claim, a, 1, f"alice-{attempt}")
                nursery.start_soon(claim, b, 2, f"aIice-{attempt}")
        assert len(winners) == 20


@pytest.mark.parametrize(
    "answer", ["'x'", "{}", "{0, 'x'}", "{0, cmsgpack.pack({})}", "{0, cmsgpack.pack({1})}"]
)
async def test_an_answer_that_is_not_ours_ends_no_node(engine: Engine, answer: str) -> None:
    library = mutated(
        (
            "        local context = {\n            node = node, run = run,",
            f"""        if call('EXISTS', 'strange') == 1 then
            call('INCR', 'asked')
            return {answer}
        end
        local context = {{
            node = node, run = run,""",
        ),
        (
            "        local again = sweep(settings, MAX_REMOVED, LOST)\n",
            f"""        if call('EXISTS', 'strange') == 1 then return {answer} end
        local again = sweep(settings, MAX_REMOVED, LOST)
""",
        ),
    )
    async with run_node(cluster_config(engine, "a")) as a:
        await engine.call("FUNCTION", "LOAD", "REPLACE", library)
        await engine.call("SET", "strange", 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.claim, 1, "alice")
            with trio.fail_after(WAIT_SECONDS):
                while int(await engine.call("GET", "asked") or 0) < 2:
                    await trio.sleep(0.01)
            await engine.call("DEL", "strange")
        await a.claim(2, "bob")


async def test_a_snapshot_never_replaces_a_later_one(engine: Engine) -> None:
    b = ScriptedNode(engine, "b")

    async def receive() -> None:
        while True:
            await directory.receive()

    async with linked(engine) as link, trio.open_nursery() as receiving:
        await link.call(*(load_command(None) or ()))
        await b.join()
        directory = Directory("a", DirectoryConfig(settings=Settings()))
        receiving.start_soon(receive)
        await link.subscribe(CHANNEL).reply()
        await directory.connect(link)
        for client in range(20):
            put = PutClient.of(record(client))
            words = (b.name, b.run, client + 1, pack(b.settings), pack([put]))
            engine.freeze()  # so that all answers come at once
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(directory._load, link)
                    await trio.testing.wait_all_tasks_blocked()
                    link.request("FCALL", "multichat_change", 0, *words)
                engine.thaw()
            assert client in directory.replica.clients
        receiving.cancel_scope.cancel(reason="the test has ended")


async def test_a_link_that_ends_before_it_is_served_leaves_nothing_to_wait_for(
    engine: Engine,
) -> None:
    """The engine may die between the step that connects and the one that serves."""
    directory = Directory("a", DirectoryConfig(settings=Settings()))
    async with linked(engine) as link:
        await link.call(*(load_command(None) or ()))
        await link.subscribe(CHANNEL).reply()
        await directory.connect(link)
    async with linked(engine) as link, trio.open_nursery() as nursery:
        await link.subscribe(CHANNEL).reply()
        await directory.connect(link)
        nursery.start_soon(directory.serve, link)
        with trio.fail_after(WAIT_SECONDS):
            assert await directory.give_client_number() == 1
        nursery.cancel_scope.cancel(reason="the test has ended")


async def test_numbers_of_clients_are_unique_over_all_nodes(engine: Engine) -> None:
    numbers: list[int] = []

    async def take(node: Node) -> None:
        numbers.extend([await node.backend.give_client_number() for _ in range(50)])

    async with (
        run_node(cluster_config(engine, "a")) as a,
        run_node(cluster_config(engine, "b")) as b,
        trio.open_nursery() as nursery,
    ):
        for node in (a, b, a, b):
            nursery.start_soon(take, node)
    assert len(set(numbers)) == len(numbers) == 200


async def test_a_session_is_resumed_on_another_node_and_replaced_on_the_first(
    engine: Engine,
) -> None:
    async with (
        run_node(cluster_config(engine, "a")) as a,
        run_node(cluster_config(engine, "b")) as b,
    ):
        await a.claim(1, "alice")
        a.put(1, name="alice")
        a.backend.save_session(_SESSION, connected=True)
        await a.said_to_itself(1, "seven", b"\0\1\2\3")
        await b.wait_for(ClientPut)
        found = await b.backend.session(_SESSION.digest)
        assert found is not None
        assert found.record == _SESSION
        assert found.nonces == [SavedNonce("seven", "", 0, "", b"\0\1\2\3")]
        taken = await b.backend.take_session(_SESSION.digest, 1)
        assert taken is not None
        assert taken.record.generation == 2
        assert taken.nonces == found.nonces
        assert await a.wait_for(Replaced) == Replaced(1, 1)
        assert await a.backend.take_session(_SESSION.digest, 1) is None
        # Later reports of the first change nothing.
        a.put(1, name="alice")
        a.backend.remove_client(1, 1, "gone", keep_seconds=None)
        a.backend.forget_session(_SESSION.digest)
        record = b.put(1, 2, name="alice")
        assert (await a.wait_for(ClientPut)).record == record
        assert await b.backend.session(_SESSION.digest) is not None
        with pytest.raises(NameTaken):
            await a.claim(2, "alice")


async def test_a_login_takes_the_name_from_a_client_on_another_node(engine: Engine) -> None:
    async with (
        run_node(cluster_config(engine, "a")) as a,
        run_node(cluster_config(engine, "b")) as b,
    ):
        await a.claim(1, "alice")
        a.put(1, name="alice")
        await b.backend.save_account("alice", AccountRecord(name="alice", hash="h"), former=None)
        await b.claim(2, "alice", login=True)  # type: ignore[arg-type]
        assert await a.wait_for(NameLost) == NameLost(1, 1, "alice")
        with pytest.raises(NameTaken, match="registered"):
            await a.claim(3, "aIice")


async def test_of_two_nodes_that_change_an_account_one_does(engine: Engine) -> None:
    old, new = (AccountRecord(name="alice", hash=hash_) for hash_ in ("old", "new"))
    async with (
        run_node(cluster_config(engine, "a")) as a,
        run_node(cluster_config(engine, "b")) as b,
    ):
        await a.backend.save_account("alice", old, former=None)
        with pytest.raises(NameTaken):
            await b.backend.save_account("alice", new, former=None)
        await b.backend.save_account("alice", new, former=old)
        with pytest.raises(NameTaken):
            await a.backend.save_account("alice", None, former=old)
        await a.backend.save_account("alice", None, former=new)
        assert (await b.wait_for(AccountChanged, lambda each: not each.name)).key == "alice"


async def test_a_kick_reaches_the_node_of_the_client(engine: Engine) -> None:
    async with (
        run_node(cluster_config(engine, "a")) as a,
        run_node(cluster_config(engine, "b")) as b,
    ):
        a.put(1)
        await b.wait_for(ClientPut)
        b.backend.disconnect(1, "kicked", "enough")
        assert await a.wait_for(DisconnectAsked) == DisconnectAsked(1, "kicked", "enough")


async def test_a_node_that_ends_tells_the_others_at_once(engine: Engine) -> None:
    async with run_node(cluster_config(engine, "a")) as a:
        async with run_node(cluster_config(engine, "b")) as b:
            for client in (1, 2):
                b.put(client)
            b.backend.save_session(_SESSION, connected=True)
            b.backend.remove_client(2, 1, "shutdown", keep_seconds=5)
        gone = [await a.wait_for(ClientGone) for _ in range(2)]
        nodes = [each for each in a.heard if isinstance(each, NodeAdded | NodeRemoved)]
        assert nodes == [NodeAdded("b"), NodeRemoved("b", True)]
        assert gone == [
            ClientGone(2, 1, "shutdown", True),
            ClientGone(1, 1, "the server shuts down", True),
        ]


async def test_a_node_continues_after_its_connection_breaks(
    engine: Engine,
) -> None:
    async with (
        run_node(cluster_config(engine, "a", unavailable=10)) as a,
        run_node(cluster_config(engine, "b", unavailable=10)) as b,
    ):
        a.put(1)
        await b.wait_for(ClientPut)
        for client in range(2, 7):
            await engine.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await engine.call("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
            await a.claim(client, f"name-{client}-x")
            a.put(client, name=f"name-{client}-x")
        await b.wait_for(ClientPut, lambda each: each.record.client == 6)
        assert [each.record.client for each in b.heard if isinstance(each, ClientPut)] == list(
            range(2, 6)
        )
        assert not [each for each in (*a.heard, *b.heard) if isinstance(each, ClientGone)]
        with pytest.raises(NameTaken):
            await b.claim(99, "name-5-x")


@pytest.mark.parametrize("aof", ["always", None])
async def test_a_restarted_engine_gets_the_whole_state_again(
    engines: Engines, aof: str | None
) -> None:
    engine = await engines.start(EngineConfig(aof=aof))
    async with (
        run_node(cluster_config(engine, "a", unavailable=0.5)) as a,
        run_node(cluster_config(engine, "b", unavailable=0.5)) as b,
    ):
        numbers = {await node.backend.give_client_number() for node in (a, b)}
        for client in (1, 2):
            await a.claim(client, f"name-{client}-x")
            a.put(client, name=f"name-{client}-x")
        a.backend.save_session(_SESSION, connected=True)
        await b.wait_for(ClientPut, lambda each: each.record.client == 2)
        engine.kill()
        away = await a.wait_for(AvailabilityChanged)
        assert not away.available
        with pytest.raises(StorageFailed):
            await a.claim(3, "carol")
        a.backend.remove_client(2, 1, "gone", keep_seconds=None)
        a.put(4)
        await engine.start()
        assert (await a.wait_for(AvailabilityChanged)).available
        await b.wait_for(ClientPut, lambda each: each.record.client == 4)
        await b.wait_for(ClientGone, lambda each: each.client == 2)
        await b.wait_for(AvailabilityChanged, lambda each: each.available)
        with pytest.raises(NameTaken):
            await b.claim(5, "name-1-x")
        await b.claim(5, "name-2-x")
        assert await b.backend.session(_SESSION.digest) is not None
        numbers |= {await node.backend.give_client_number() for node in (a, b)}
        assert len(numbers) == 4


async def test_a_frozen_engine_makes_the_node_unavailable_until_it_wakes(engine: Engine) -> None:
    async with run_node(cluster_config(engine, "a", unavailable=1.5)) as a:
        a.put(1)
        await a.claim(1, "alice")
        engine.freeze()
        away = await a.wait_for(AvailabilityChanged)
        assert (away.available, a.backend.available) == (False, False)
        engine.thaw()
        assert (await a.wait_for(AvailabilityChanged)).available
        await a.claim(2, "carol")


async def test_lookups_of_a_session_during_an_outage_continue_after_it(engine: Engine) -> None:
    found: list[SavedSession | None] = []

    async def find(node: Node) -> None:
        found.append(await node.backend.session(_SESSION.digest))

    async with run_node(cluster_config(engine, "a", unavailable=1.5)) as a:
        engine.freeze()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(find, a)
                assert not (await a.wait_for(AvailabilityChanged)).available
                engine.thaw()
    assert found == [None] * 3


async def test_a_node_that_was_considered_dead_learns_which_clients_were_resumed(
    engine: Engine,
) -> None:
    async with (
        run_node(cluster_config(engine, "a", lease=0.3, renew=1.0)) as a,
        run_node(cluster_config(engine, "b", renew=0.1)) as b,
    ):
        for client in (1, 2):
            a.put(client)
        a.backend.save_session(_SESSION, connected=True)
        await b.wait_for(ClientGone)
        taken = await b.backend.take_session(_SESSION.digest, 1)
        assert taken is not None
        b.put(1, 2)
        await a.wait_for(NodeFenced)
        replaced = [each for each in a.heard if isinstance(each, Replaced)]
        assert set(replaced) == {Replaced(1, 1)}
        # It continues without them.
        a.put(3)
        await b.wait_for(ClientPut, lambda each: each.record.client == 3)


async def test_a_ban_on_a_node_that_was_taken_for_dead_reaches_the_others(
    engine: Engine,
) -> None:
    async with (
        run_node(cluster_config(engine, "a", lease=0.3, renew=1.0)) as a,
        run_node(cluster_config(engine, "b", renew=0.1)) as b,
    ):
        a.put(1)
        await b.wait_for(ClientGone)  # it was fenced, and does not know it
        ban = BanRecord(target="name eve")
        a.backend.add_ban(ban)
        assert await b.wait_for(BanAdded) == BanAdded(ban)
        assert [each.target for each in b.backend.bans] == ["name eve"]


def _other_library() -> str:
    """Return a library of our version with another text, as a changed multichat brings it."""
    text = library_text()
    return re.sub(r"DIGEST = '\w+'", "DIGEST = 'another text'", text)


async def test_nodes_with_other_functions_of_the_same_version_never_share_an_engine(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    load = ("FUNCTION", "LOAD", "REPLACE")
    async with run_node(cluster_config(engine, "a")):
        await engine.call(*load, _other_library())
        with (
            pytest.raises(JournalFailed, match="run the same multichat on all nodes"),
            lone_exception(),
        ):
            async with run_node(cluster_config(engine, "b")):
                pass
        await engine.call(*load, library_text())
        async with run_node(cluster_config(engine, "b")):
            pass
    # Once no node uses them, they are replaced, and the log says so.
    await engine.call(*load, _other_library())
    assert "loaded our functions" not in caplog.text
    async with run_node(cluster_config(engine, "c")):
        assert "loaded our functions, version 1, in place of version 1" in caplog.text
    found = (await engine.call("FCALL_RO", "multichat_version", 0))[1]
    assert found != b"another text"


async def test_a_node_that_reaches_its_engine_and_may_not_use_it_is_unavailable(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that never lasts counts as none: no caller must wait forever."""

    async def attempts() -> int:
        statistics = (await engine.info("commandstats"))["cmdstat_fcall_ro"]
        return int(statistics.removeprefix("calls=").partition(",")[0])

    load = ("FUNCTION", "LOAD", "REPLACE")
    timeouts = EngineTimeouts(longest_retry=0.2)
    async with run_node(cluster_config(engine, "a", unavailable=1.0, timeouts=timeouts)) as a:
        await engine.call(*load, re.sub(r"VERSION = \d+", "VERSION = 999", library_text()))
        before = await attempts()
        await engine.call("CLIENT", "KILL", "SKIPME", "yes")
        with trio.fail_after(WAIT_SECONDS):
            while await attempts() < before + 3:
                await trio.sleep(0.05)
        assert not (await a.wait_for(AvailabilityChanged)).available
        with pytest.raises(StorageFailed, match="the engine of the cluster is away"):
            await a.claim(1, "alice")
        assert caplog.text.count("The cluster cannot be used: a newer multichat") == 1
        await engine.call(*load, library_text())
        assert (await a.wait_for(AvailabilityChanged)).available
        await a.claim(1, "alice")


async def test_of_two_that_start_at_once_with_other_functions_one_is_refused(
    engine: Engine,
) -> None:
    """Neither knows of the other when it loads its functions: it looks again when it has joined."""
    async with linked(engine) as link:
        assert await load_library(link, "a") == ""
        await check_library(link)
        await engine.call("FUNCTION", "LOAD", "REPLACE", _other_library())
        with pytest.raises(LibraryDiffers):
            await check_library(link)


async def test_a_primary_that_is_back_before_sentinel_has_switched_is_used_again(
    engines: Engines,
) -> None:
    primary = await engines.start(EngineConfig(aof="always"))
    replica = await engines.start(EngineConfig(replica_of=primary))
    sentinel = await engines.start_sentinel(primary)  # which waits for two seconds
    url = f"valkey+sentinel://{LOOPBACK}:{sentinel.port}/{Engine.name}"
    config = cluster_config(primary, "a")
    address = ClusterAddress.parse(url)
    config = replace(config, connection=replace(config.connection, address=address))
    async with run_node(config) as a:
        await a.claim(1, "alice")
        a.put(1, name="alice")
        primary.kill()
        await primary.start()
        with trio.fail_after(WAIT_SECONDS):
            while True:
                try:
                    number = await a.backend.give_client_number()
                    break
                except StorageFailed:  # this machine is slow
                    await trio.sleep(0.1)
        assert int(await primary.call("GET", "multichat:clients:ever")) == number
        assert await primary.call("HEXISTS", "multichat:names", "alice") == 1
        assert (await replica.info("replication"))["role"] == "slave"
        assert not any(isinstance(each, NodeFenced) for each in a.heard)


async def test_a_ban_that_is_one_too_many_is_refused_to_the_node_that_gave_it(
    engine: Engine,
) -> None:
    config = replace(cluster_config(engine, "a"), max_bans=1)
    async with run_node(config) as a, run_node(cluster_config(engine, "b")) as b:
        a.backend.add_ban(BanRecord(target="name bob"))
        a.backend.add_ban(BanRecord(target="name eve"))
        assert await a.wait_for(BanRefused) == BanRefused("name eve", 1)
        for node in (a, b):
            assert (await node.wait_for(BanAdded)).ban.target == "name bob"
        assert [each.target for each in b.backend.bans] == ["name bob"]
        assert not any(isinstance(each, BanAdded | BanRefused) for each in (*a.heard, *b.heard))


async def test_an_unexpected_error_of_the_engine_is_logged_once(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_node(cluster_config(engine, "a")) as a:
        await engine.call("SET", "multichat:names:keys", "no hash")
        for client in (1, 2):
            with pytest.raises(StorageFailed, match="the engine of the cluster refuses it"):
                await a.claim(client, "alice")
        with trio.fail_after(WAIT_SECONDS):
            while "WRONGTYPE" not in caplog.text:
                await trio.sleep(0.05)
        await trio.sleep(0.5)
        assert caplog.text.count("The cluster: the engine says: WRONGTYPE") == 1


async def test_a_node_that_only_sends_messages_notices_a_full_engine(engine: Engine) -> None:
    async with run_node(cluster_config(engine, "a")) as a:
        if (loading := a.backend.load_room("lobby")) is not None:
            await loading.wait()
        log = a.backend.room("lobby")
        await engine.call("CONFIG", "SET", "maxmemory", "1mb")  # it has more than that
        refused = log.propose(draft("hello"), (), b"").pending
        assert refused is not None
        with pytest.raises(StorageFailed, match="the engine of the cluster is full"):
            await refused.wait()
        changed = await a.wait_for(AvailabilityChanged, lambda event: not event.available)
        assert changed.reason.startswith("the engine's memory is full: raise its maxmemory")
        assert a.backend.fault == "the engine of the cluster is full"
        claims = Claims(a.backend)
        assert claims.why_unavailable().endswith(": the engine of the cluster is full")
        await engine.call("CONFIG", "SET", "maxmemory", "0")
        await a.wait_for(AvailabilityChanged, lambda event: event.available)
        # A client that is refused next, before the node has noticed why, does not read that.
        assert claims.why_unavailable().endswith(": it cannot reach its storage")


async def test_with_a_full_engine_nodes_live_and_clients_leave(engines: Engines) -> None:
    engine = await engines.start()
    async with run_node(cluster_config(engine, "a", lease=1.0)) as a:
        a.put(1)
        a.backend.save_session(_SESSION, connected=True)
        assert await a.backend.session(_SESSION.digest) is not None
        await engine.call("CONFIG", "SET", "maxmemory", "1mb")  # it has more than that
        with pytest.raises(EngineError, match="OOM"):
            await engine.call("SET", "more", "x")
        a.put(2)
        changed = await a.wait_for(AvailabilityChanged, lambda event: not event.available)
        assert changed.reason.startswith("the engine's memory is full: raise its maxmemory")
        assert a.backend.refusal == a.backend.fault == "the engine of the cluster is full"
        assert not a.backend.is_away
        with pytest.raises(StorageFailed, match="the engine of the cluster is full"):
            await a.claim(3, "alice")
        a.backend.forget_session(_SESSION.digest)
        a.backend.remove_client(1, 1, "quit", keep_seconds=None)
        with trio.fail_after(WAIT_SECONDS):
            while await engine.call("HLEN", "multichat:sessions") or await engine.call(
                "HEXISTS", "multichat:clients", "1"
            ):
                await trio.sleep(0.05)
        renewed = await engine.call("GET", "multichat:renewed")
        with trio.fail_after(WAIT_SECONDS):
            while await engine.call("GET", "multichat:renewed") == renewed:
                await trio.sleep(0.05)
        await engine.call("CONFIG", "SET", "maxmemory", "0")
        await a.wait_for(AvailabilityChanged, lambda event: event.available)
        assert not any(isinstance(event, NodeFenced) for event in a.heard)
        async with run_node(cluster_config(engine, "b")) as b:
            with trio.fail_after(WAIT_SECONDS):
                while [each.client for each in b.backend.clients] != [2]:
                    await trio.sleep(0.05)


async def test_an_answer_with_an_absurd_number_blocks_nothing(engine: Engine) -> None:
    async with run_node(cluster_config(engine, "a", renew=60.0, follow=1.0)) as a:
        a.put(1)
        assert await a.backend.session(_SESSION.digest) is None
        count = await engine.call("GET", "multichat:directory:count")
        run = (await engine.call("HGET", "multichat:nodes", "a")).decode()
        answers = f"multichat:run:{run}:answer"
        last = await engine.call("HGET", answers, "last")
        await engine.call("SET", "multichat:directory:count", 1_000_000_000)
        with trio.fail_after(WAIT_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.backend.session, _SESSION.digest)
                while (number := await engine.call("HGET", answers, "last")) == last:
                    await trio.sleep(0.01)
                await engine.call("SET", "multichat:directory:count", count)
                # The result of a repeated call is complete.
                stored = await engine.call("HGET", answers, number)
                await engine.call("HSET", answers, number, b"\x92\x00" + stored[6:])


async def test_two_nodes_of_one_name_cannot_run_at_once(engine: Engine) -> None:
    async with run_node(cluster_config(engine, "a")):
        with pytest.raises(JournalFailed, match="another node is called a"):
            await _run_briefly(engine)


async def test_without_an_engine_a_node_does_not_start(engine: Engine) -> None:
    engine.kill()
    with pytest.raises(JournalFailed, match=re.escape(engine.url)):
        await _run_briefly(engine)


async def _run_briefly(engine: Engine) -> None:
    with lone_exception():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(run_node(cluster_config(engine, "a")))


async def test_noise_on_the_channel_of_the_directory_is_passed_over(engine: Engine) -> None:
    async with (
        run_node(cluster_config(engine, "a")) as a,
        run_node(cluster_config(engine, "b")) as b,
    ):
        for noise in ("", "noise", "1", "-1 x", "999999 x", "1 \xff", "9" * 5000 + " x"):
            await engine.call("PUBLISH", "multichat:directory", noise)
        a.backend.announce("hello")
        assert await b.wait_for(Announced) == Announced("hello")
        assert b.heard == []
