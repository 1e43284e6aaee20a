"""The logs of rooms on nodes, with real engines: faults of the connection, and of the engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio

from multichat.backend.base import Entry, Proposal
from multichat.cluster.appends import AppendLimits
from multichat.cluster.calls import trim
from multichat.cluster.keys import NODES
from multichat.cluster.room_logs import LogConfig, RoomLogs
from multichat.errors import StorageFailed
from tests.support.processes import LOOPBACK, WAIT_SECONDS

from .engine import Engine, EngineConfig, Engines
from .functions import mutated
from .links import config
from .nodes import Node, relayed_node, running_node, said, say
from .relay import Relay

pytestmark = pytest.mark.process


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(WAIT_SECONDS):
        while not condition():
            await trio.sleep(0.005)


# --- Saying and hearing ---------------------------------------------------------------------------


async def test_nodes_have_the_same_messages_in_the_same_order(engine: Engine) -> None:
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(said, here, f"a{number}\nmore")
                nursery.start_soon(said, there, f"b{number}")
        assert await here.until(150) == await there.until(150)
        assert here.said == there.said
        late = await b.open("ops")
        await said(late, "x")
        assert late.texts == ["x"]


async def test_a_proposal_is_handed_out_with_its_entry_once(engine: Engine) -> None:
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        proposal = await said(here, "one")
        await there.until(1)
        assert [fed.proposal for fed in here.fed if isinstance(fed, Entry)] == [proposal]
        assert [fed.proposal for fed in there.fed if isinstance(fed, Entry)] == [None]


async def test_a_room_that_is_opened_later_begins_where_the_log_ends(engine: Engine) -> None:
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here = await a.open()
        for number in range(20):
            await said(here, f"{number}")
        there = await b.open()
        assert (there.log.first, there.log.next) == (0, 20)
        assert there.log.id_of(19) == here.said[-1][0]
        assert there.log.number_of(here.said[5][0]) == 5
        read = await there.log.read(3, 7, max_bytes=10_000)
        assert [one.text for one in read] == ["3", "4", "5", "6"]
        read = await there.log.read_before(20, max_messages=2, max_bytes=10_000)
        assert [one.text for one in read] == ["18", "19"]


async def test_only_open_rooms_are_followed(engine: Engine) -> None:
    async with running_node(engine, "a") as a:
        room = await a.open()
        assert (await engine.call("PUBSUB", "NUMSUB", "multichat:room:lobby"))[1] == 1
        waiting = say(room, "one")
        room.log.close()
        assert waiting.pending is not None
        await waiting.pending.wait()  # it is stored nevertheless
        await until_async(engine, "PUBSUB", "NUMSUB", "multichat:room:lobby", wanted=0)
        again = await a.open()
        assert again.log.next == 1


async def until_async(engine: Engine, *words: str, wanted: int) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while (await engine.call(*words))[1] != wanted:
            await trio.sleep(0.01)


async def test_large_and_many_messages_come_whole(engine: Engine) -> None:
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        texts = [f"{number}" + "x" * 60_000 for number in range(40)]
        async with trio.open_nursery() as nursery:
            for text in texts:
                nursery.start_soon(said, here, text)
        assert sorted(await there.until(40)) == sorted(texts)
        assert here.said == there.said


async def test_a_room_that_is_slow_to_apply_keeps_little_and_gets_all(engine: Engine) -> None:
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here = await a.open()
        pending = b.logs.load("lobby")
        assert pending is not None
        await pending.wait()
        slow = b.logs.room("lobby")
        for number in range(100):
            await said(here, f"{number}" + "x" * 30_000)
        await trio.sleep(0.1)
        kept = slow.loaded._bytes  # type: ignore[attr-defined]
        assert 0 < kept < 1_500_000
        for number in range(100):
            with trio.fail_after(WAIT_SECONDS):
                fed = await slow.receive()
            assert isinstance(fed, Entry)
            assert fed.said.text.startswith(f"{number}x")


# --- The connection -------------------------------------------------------------------------------


async def test_a_message_whose_answer_was_lost_is_in_the_log_once(engine: Engine) -> None:
    async with relayed_node(engine) as (a, relay), running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        await said(here, "before")
        relay.hold_replies()
        proposals = [say(here, f"{number}", number) for number in range(20)]
        await there.until(21)  # the engine has them
        assert not any(one.pending is None or one.pending.resolved for one in proposals)
        relay.cut()
        for proposal in proposals:
            assert proposal.pending is not None
            with trio.fail_after(WAIT_SECONDS):
                await proposal.pending.wait()
            await here.entry_of(proposal)
        assert here.said == there.said
        assert len(here.said) == 21
        assert relay.connections > 1


_FULL_ENGINE = mutated(
    (
        "local function append(_, args)\n",
        """local function append(_, args)
  if redis.call('EXISTS', 'full') == 1 then
    redis.call('INCR', 'refusals')
    return redis.error_reply('OOM no memory is left')
  end
""",
    )
)


@pytest.mark.parametrize("is_done", [True, False], ids=["done", "not-done"])
async def test_a_repeated_message_that_the_engine_refuses_waits_until_its_fate_is_known(
    engine: Engine, is_done: bool
) -> None:
    quick = LogConfig(node="a", watch_seconds=0.05)
    async with (
        relayed_node(engine, log_config=quick) as (a, relay),
        running_node(engine, "b") as b,
    ):
        here, there = await a.open(), await b.open()
        await engine.call("FUNCTION", "LOAD", "REPLACE", _FULL_ENGINE)
        await said(here, "before")
        relay.hold_replies()
        if is_done:
            waiting = say(here, "one", 1)
            await there.until(2)
            await engine.call("SET", "full", 1)
        else:
            await engine.call("SET", "full", 1)
            waiting = say(here, "one", 1)
            await until_refused(engine, 1)
        relay.cut()
        await until_refused(engine, 4)
        assert waiting.pending is not None
        assert not waiting.pending.resolved
        with pytest.raises(StorageFailed, match="engine of the cluster is full"):
            await said(here, "two", 2)
        await engine.call("DEL", "full")
        with trio.fail_after(WAIT_SECONDS):
            await waiting.pending.wait()
        await said(here, "three", 3)
        assert here.texts == await there.until(3) == ["before", "one", "three"]


async def test_a_full_queue_is_sent_after_a_repeated_message_was_refused(engine: Engine) -> None:
    limits = AppendLimits(calls=1, call_blocks=1, bytes=1000)
    quick = LogConfig(node="a", watch_seconds=0.05, away_seconds=60.0, appends=limits)
    async with relayed_node(engine, log_config=quick) as (a, relay):
        room = await a.open()
        await engine.call("FUNCTION", "LOAD", "REPLACE", _FULL_ENGINE)
        relay.hold_replies()
        first = say(room, "first", 1)
        queued: list[Proposal] = []
        while not a.logs.refusal:
            queued.append(say(room, f"{len(queued)}", 2 + len(queued)))
            await trio.sleep(0.01)  # the first one is sent, and makes room
        await engine.call("SET", "full", 1)
        relay.cut()
        await until_refused(engine, 1)
        await engine.call("DEL", "full")
        assert first.pending is not None
        with trio.fail_after(WAIT_SECONDS):
            await first.pending.wait()
            for each in queued:  # never sent, so it may be refused
                assert each.pending is not None
                with suppress(StorageFailed):
                    await each.pending.wait()
        await said(room, "last", 99)
        assert room.texts[0] == "first"
        assert room.texts[-1] == "last"


@pytest.mark.parametrize("answer", ["'x'", "cmsgpack.pack({})", "cmsgpack.pack({{0}})", "{}"])
async def test_an_answer_that_is_not_ours_ends_the_link_and_is_requested_again(
    engine: Engine, answer: str
) -> None:
    strange = mutated(
        (
            "local function append(_, args)\n",
            f"""local function append(_, args)
  if redis.call('EXISTS', 'full') == 1 then
    redis.call('INCR', 'refusals')
    return {answer}
  end
""",
        ),
        (
            "local function tails(_, args)\n",
            f"""local function tails(_, args)
  if redis.call('EXISTS', 'strange') == 1 then return {answer} end
""",
        ),
    )
    async with running_node(engine) as a:
        await engine.call("FUNCTION", "LOAD", "REPLACE", strange)
        room = await a.open()
        await engine.call("SET", "full", 1)
        waiting = say(room, "one", 1)
        await until_refused(engine, 2)
        await engine.call("DEL", "full")
        assert waiting.pending is not None
        with trio.fail_after(WAIT_SECONDS):
            await waiting.pending.wait()
        await engine.call("SET", "strange", 1)
        load = a.logs.load("ops")
        assert load is not None
        with trio.fail_after(WAIT_SECONDS), pytest.raises(StorageFailed, match="refuses it"):
            await load.wait()
        await engine.call("DEL", "strange")
        assert (await a.open("ops")).log.next == 0
        assert room.texts == ["one"]


async def until_refused(engine: Engine, times: int) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while int(await engine.call("GET", "refusals") or 0) < times:
            await trio.sleep(0.01)


async def test_messages_of_others_while_the_connection_was_cut_come_in_order(
    engine: Engine,
) -> None:
    async with relayed_node(engine) as (a, relay), running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        for round_ in range(5):
            relay.hold_replies()
            for number in range(10):
                await said(there, f"{round_}.{number}")
            relay.cut()
            await said(there, f"{round_} after")
        assert await here.until(55) == there.texts
        assert here.lost == 0


async def test_cuts_at_any_time_neither_lose_nor_repeat(engine: Engine) -> None:
    async with relayed_node(engine) as (a, relay), running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()

        async def cut() -> None:
            for number in range(12):
                await trio.sleep(0.03)
                if number % 2:
                    relay.hold_replies()
                    await trio.sleep(0.02)
                relay.cut()

        async def talk(who: int) -> None:
            follower = here if who < 5 else there
            for number in range(30):
                await said(follower, f"{who}.{number}", number, client=who)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            for who in range(10):
                nursery.start_soon(talk, who)
        await here.until(300)
        await there.until(300)
        assert here.said == there.said
        for who in range(10):
            own = [text for text in here.texts if text.startswith(f"{who}.")]
            assert own == [f"{who}.{number}" for number in range(30)]
        assert relay.connections > 3


async def test_without_a_connection_new_messages_are_refused_after_a_while(
    engines: Engines,
) -> None:
    engine = await engines.start()
    quick = LogConfig(node="a", away_seconds=0.3, watch_seconds=0.05)
    async with running_node(engine, log_config=quick) as a:
        room = await a.open()
        await said(room, "before")
        engine.kill()
        await until(lambda: a.link is None)
        unsent = say(room, "unsent")
        assert unsent.pending is not None
        with trio.fail_after(WAIT_SECONDS), pytest.raises(StorageFailed, match="engine"):
            await unsent.pending.wait()
        with pytest.raises(StorageFailed, match="engine"):
            say(room, "refused")
        load = a.logs.load("ops")
        assert load is not None
        with pytest.raises(StorageFailed, match="engine"):
            await load.wait()


async def test_a_frozen_engine_keeps_what_is_in_flight_and_refuses_the_rest(
    engine: Engine,
) -> None:
    quick = LogConfig(node="a", away_seconds=0.3, watch_seconds=0.05, appends=AppendLimits(calls=1))
    async with running_node(engine, log_config=quick) as a:
        room = await a.open()
        engine.freeze()
        sent = say(room, "in flight")
        await trio.sleep(0.05)
        unsent = say(room, "unsent")
        assert sent.pending is not None
        assert unsent.pending is not None
        with trio.fail_after(WAIT_SECONDS), pytest.raises(StorageFailed):
            await unsent.pending.wait()
        assert not sent.pending.resolved
        engine.thaw()
        with trio.fail_after(WAIT_SECONDS):
            await sent.pending.wait()
        await said(room, "after")
        assert room.texts == ["in flight", "after"]


# --- Fences and nonces ----------------------------------------------------------------------------


async def test_a_fenced_node_is_refused_until_it_has_a_new_run(engine: Engine) -> None:
    async with running_node(engine) as a:
        room = await a.open()
        await said(room, "before")
        await engine.call("HDEL", NODES, "a")
        with pytest.raises(StorageFailed, match="taken for dead"):
            await said(room, "late")
        with pytest.raises(StorageFailed, match="taken for dead"):
            say(room, "later")
        a.run = "another"
        await engine.call("HSET", NODES, "a", a.run)
        assert a.link is not None
        a.logs.connected(a.link, a.run)
        await said(room, "again")
        assert room.texts == ["before", "again"]


async def test_a_run_knows_the_outcome_of_appends_of_the_previous_run(engine: Engine) -> None:
    async with relayed_node(engine) as (a, relay), running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        relay.hold_replies()
        done = say(here, "done")
        await there.until(1)
        await engine.call("HSET", NODES, "a", "none")
        fenced = say(here, "fenced")
        await trio.sleep(0.05)
        a.run = "another"
        relay.cut()
        assert done.pending is not None
        assert fenced.pending is not None
        with trio.fail_after(WAIT_SECONDS):
            await done.pending.wait()
            with pytest.raises(StorageFailed, match="taken for dead"):
                await fenced.pending.wait()
        await a.ready.wait()
        await said(here, "again")
        assert here.texts == ["done", "again"]


async def test_a_client_that_was_resumed_elsewhere_says_nothing_here(engine: Engine) -> None:
    async with running_node(engine) as a:
        room = await a.open()
        await said(room, "one", 1, generation=1)
        await engine.call("HSET", "multichat:generations", 1, 2)
        with pytest.raises(StorageFailed, match="another server"):
            await said(room, "two", 2, generation=1)
        await said(room, "two", 2, generation=2)
        assert room.texts == ["one", "two"]


async def test_a_message_that_is_sent_again_elsewhere_gets_its_first_id(engine: Engine) -> None:
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        await said(here, "one\ntwo", 1, 2)
        again = await said(there, "two\nthree", 2, 3, generation=2)
        assert again.earlier == {0: here.said[1][0]}
        only = await said(there, "one", 1, generation=2)
        assert only.earlier == {0: here.said[0][0]}
        await there.until(3)
        entry = await there.entry_of(again)
        assert entry.said.text == "three"
        assert await here.until(3) == ["one", "two", "three"]


# --- The engine -----------------------------------------------------------------------------------


async def test_with_an_aof_nothing_that_was_stored_is_lost_by_a_kill(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(aof="always"))
    async with running_node(engine, "a") as a:
        room = await a.open()
        await said(room, "one")
        epoch = room.log.epoch
        engine.kill()
        await until(lambda: a.link is None)
        waiting = say(room, "two")
        await engine.start()
        assert waiting.pending is not None
        with trio.fail_after(WAIT_SECONDS):
            await waiting.pending.wait()
        assert room.texts == ["one", "two"]
        assert room.lost == 0
        assert room.log.epoch > epoch
        assert room.log.earlier == {epoch: 1}
        assert room.log.number_of(room.said[0][0]) == 0


async def test_without_an_aof_all_is_lost_and_counted(engines: Engines) -> None:
    engine = await engines.start()
    async with running_node(engine, "a") as a:
        room = await a.open()
        for number in range(7):
            await said(room, f"{number}")
        before = room.said[-1][0]
        engine.kill()
        await until(lambda: a.link is None)
        await engine.start()
        lost = await room.until_lost()
        assert (lost.count, lost.next) == (7, 0)
        await said(room, "new")
        assert room.log.next == 1
        assert room.said[0][0] > before  # ids rise


@asynccontextmanager
async def failed_over(engines: Engines) -> AsyncIterator[tuple[Node, list[str], Engine]]:
    """Yield a node with ten messages, of which the new primary has seven; and their ids."""
    primary = await engines.start()
    replica = await engines.start(EngineConfig(replica_of=primary))
    relay = Relay(primary)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        made = config(primary)
        address = replace(made.address, hosts=((LOOPBACK, relay.port),))
        async with running_node(primary, connection=replace(made, address=address)) as node:
            room = await node.open()
            for number in range(7):
                await said(room, f"{number}")
            await replica.in_sync()
            await replica.promote()
            for number in range(7, 10):
                await said(room, f"{number}")
            ids = [id_ for id_, _ in room.said]
            primary.kill()
            relay.engine = replica
            relay.cut()
            await room.until_lost()
            yield node, ids, replica
            nursery.cancel_scope.cancel(reason="the test has ended")


async def test_messages_lost_in_a_failover_are_counted_and_numbers_reused_in_a_new_epoch(
    engines: Engines,
) -> None:
    async with failed_over(engines) as (node, ids, replica):
        log = node.logs.room("lobby")
        assert log.next == 7
        assert log.number_of(ids[6]) == 6
        assert log.number_of(ids[9]) == 6  # a client that has it gets all from 7 on
        async with running_node(replica, "b") as b:
            other = await b.open()
            await said(other, "after")
            await until(lambda: log.next == 8)
            assert other.said[0][0] > ids[9]
            assert log.id_of(7) == other.said[0][0] != ids[7]
            for one in (log, other.log):
                assert one.number_of(ids[3]) == 3
                assert one.number_of(ids[8]) == 6
                assert list(one.earlier.values()) == [7]


async def test_without_a_lineage_an_old_id_would_name_another_message(engines: Engines) -> None:
    """With one epoch forever, the ids of lost messages are given again: a since skips new ones."""
    library = mutated(
        ("if meta.epoch and meta.era == from.era then", "if meta.epoch then"),
    )
    primary = await engines.start()
    replica = await engines.start(EngineConfig(replica_of=primary))
    async with running_node(primary) as node:
        await primary.call("FUNCTION", "LOAD", "REPLACE", library)
        room = await node.open()
        await said(room, "kept")
        await replica.in_sync()
        await replica.promote()
        await said(room, "lost")
        lost = room.said[1][0]
    primary.kill()
    async with running_node(replica) as node:
        await replica.call("FUNCTION", "LOAD", "REPLACE", library)
        room = await node.open()
        await said(room, "new")
        # "new" has the id of "lost": a client that has received "lost" would never get "new".
        assert room.log.number_of(lost) == 1
        assert room.said[0][0] == lost


# --- Retention and loading ------------------------------------------------------------------------


async def test_deletions_move_the_first_number_on_all_nodes(engine: Engine) -> None:
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        for number in range(10):
            await said(here, f"{number}")
        await engine.call(*trim("0", max_messages=4).words)
        await until(lambda: here.log.first == there.log.first == 6)
        read = await there.log.read(0, 10, max_bytes=10_000)
        assert [one.text for one in read] == ["6", "7", "8", "9"]


async def test_a_node_that_was_away_while_messages_were_deleted_continues_with_the_rest(
    engine: Engine,
) -> None:
    async with relayed_node(engine) as (a, relay), running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        await said(here, "one")
        relay.hold_replies()
        for number in range(10):
            await said(there, f"{number}")
        await engine.call(*trim("0", max_messages=3).words)
        relay.cut()
        with trio.fail_after(WAIT_SECONDS):
            while here.log.next < 11:
                await trio.sleep(0.01)
        firsts = [fed.said.first for fed in here.fed if isinstance(fed, Entry)]
        assert firsts == [0, 8, 9, 10]
        assert here.log.first == 8


async def test_loading_an_open_room_waits_for_the_messages_of_others(engine: Engine) -> None:
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        for number in range(20):
            await said(there, f"{number}")
            pending = a.logs.load("lobby")
            assert pending is not None
            with trio.fail_after(WAIT_SECONDS):
                await pending.wait()
            assert len(here.said) == number + 1


async def test_waiting_for_an_open_room_ends_when_it_is_closed(
    engine: Engine,
) -> None:
    async with running_node(engine, "a") as a:
        here = await a.open()
        pending = a.logs.load("lobby")
        assert pending is not None
        here.log.close()
        with trio.fail_after(WAIT_SECONDS):
            await pending.wait()
        with pytest.raises(StorageFailed, match="not loaded"):
            a.logs.room("lobby")
        await said(await a.open(), "one")


async def test_a_room_that_is_loaded_and_not_opened_is_released(engine: Engine) -> None:
    quick = LogConfig(node="a", loaded_seconds=0.2, watch_seconds=0.05)
    async with running_node(engine, log_config=quick) as a:
        pending = a.logs.load("lobby")
        assert pending is not None
        await pending.wait()
        await until_async(engine, "PUBSUB", "NUMSUB", "multichat:room:lobby", wanted=0)
        with pytest.raises(StorageFailed):
            a.logs.room("lobby")


async def test_a_push_that_was_lost_is_found_by_comparing_tails(engine: Engine) -> None:
    quick = LogConfig(node="a", poll_seconds=0.2, watch_seconds=0.05)
    async with running_node(engine, "a", log_config=quick) as a, running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        assert a.link is not None
        await a.link.unsubscribe("multichat:room:lobby").reply()
        await said(there, "one")
        assert await here.until(1) == ["one"]


# --- Kills of the engine --------------------------------------------------------------------------


@pytest.mark.parametrize("aof", ["always", "everysec"])
async def test_kills_of_the_engine_under_load_lose_only_what_its_aof_may(
    engines: Engines, aof: str
) -> None:
    """Two nodes agree on the log; with `always` nothing is lost, else what is lost is counted."""
    engine = await engines.start(EngineConfig(aof=aof))
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        here, there = await a.open(), await b.open()
        stored: list[str] = []
        stop = trio.Event()

        async def talk(who: int) -> None:
            follower = here if who % 2 else there
            number = 0
            while not stop.is_set():
                text = f"{who}.{number}"
                try:
                    await said(follower, text, number, client=who)
                except StorageFailed:  # it was never sent
                    await trio.sleep(0.05)
                    continue
                stored.append(text)
                number += 1
                await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            for who in range(6):
                nursery.start_soon(talk, who)
            for _ in range(2):
                await trio.sleep(0.3)
                engine.kill()
                await engine.start()
                await trio.sleep(0.4)
            stop.set()
        await said(here, "end", client=99)
        for follower in (here, there):
            with trio.fail_after(WAIT_SECONDS):
                while follower.texts[-1:] != ["end"]:
                    await trio.sleep(0.01)
        assert here.said == there.said
        read = await here.log.read(0, here.log.next, max_bytes=10**9)
        assert [text for one in read for text in one.text.split("\n")] == here.texts
        missing = set(stored) - set(here.texts)
        assert len(set(here.texts)) == len(here.texts)
        assert len(here.log.earlier) == 2
        if aof == "always":
            assert not missing
            assert here.lost == there.lost == 0
        else:
            assert len(missing) <= max(here.lost, there.lost)


def test_the_losses_of_an_engine_are_summed_up_once() -> None:
    logs = RoomLogs(LogConfig(node="a"))
    assert logs.take_lost() == ""
    for number, room in enumerate("abcdefg"):
        logs.note_lost(room, number)
    logs.note_lost("g", 1000)
    assert logs.take_lost() == (
        "the newest data of the engine was lost: 1021 messages, "
        "1006 in g, 5 in f, 4 in e, 3 in d, 2 in c, the rest in 1 other room"
    )
    assert logs.take_lost() == ""
