"""Names and rooms of a whole server, for any order of events."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio._core import _run as trio_run

from multichat import ServerConfig
from multichat.backend.local import LocalBackend
from multichat.errors import InvalidName, NameTaken, TooManyRooms
from multichat.journal.memory import MemoryJournal
from multichat.log import Log
from multichat.net.send_queue import SendQueue, SendResult
from multichat.protocol.codec import Codec
from multichat.protocol.json_codec import JSON
from multichat.protocol.lookalikes import lookalike_keys
from multichat.protocol.messages import (
    LOBBY,
    Accepted,
    MemberName,
    Members,
    Missed,
    RoomList,
    RoomSize,
    SayBlock,
)
from multichat.protocol.names import default_name
from multichat.protocol.text_codec import TEXT
from multichat.server.client import Client
from multichat.server.registry import Registry
from multichat.testing import memory_server, run_on_mock_clock
from tests.simulation.journal import Disk, Faults, FaultyJournal
from tests.simulation.surroundings import StandstillGuard
from tests.support.log import LogRecorder

pytestmark = pytest.mark.unit

MIXED = "a name cannot mix scripts, except Latin with Chinese, Japanese or Korean"


def make_client(number: int, address: str = "") -> Client:
    near, _ = trio.testing.memory_stream_pair()
    send_queue = SendQueue(
        near,
        max_batches=1,
        encode_missed=lambda missed: TEXT.encode(Missed(sum(missed.values()))),
    )
    return Client(number, default_name(number), send_queue, address, lambda _: None, lambda: None)


@asynccontextmanager
async def registry_of(
    *, members: int, **settings: int
) -> AsyncIterator[tuple[Registry, list[Client]]]:
    """A registry with members in its lobby, whose send queues are not emptied."""
    async with trio.open_nursery() as nursery:
        config = ServerConfig(**settings)  # type: ignore[arg-type]
        registry = Registry(
            config, Log("server"), nursery.start_soon, LocalBackend(MemoryJournal())
        )
        made: list[Client] = []
        for client in range(1, members + 1):
            made.append(make_client(client))
            registry.add(made[-1])
        yield registry, made
        nursery.cancel_scope.cancel()


def test_exactly_one_of_two_clients_gets_a_contested_name() -> None:
    """Under hundreds of schedules: trio shuffles the order of ready tasks."""
    winners = [trio.run(_race, seed) for seed in range(300)]
    # Each has won often, so the schedules did differ.
    assert 30 < winners.count(1) < 270


async def _race(seed: int) -> int:
    trio_run._r.seed(seed)
    async with memory_server() as network, trio.open_nursery() as nursery:
        first, second = await network.join(), await network.join()
        nursery.start_soon(first.send, "/name alice")
        nursery.start_soon(second.send, '/json {"name":"ALICE"}' if seed % 2 else "/name ALICE")
        lines = [await first.line(), await second.line()]
        names = [member.name for member in network.server.members]
        won = [name.casefold() == "alice" for name in names]
        assert sum(won) == 1
        assert ("is now alice" in lines[0]) == won[0]
        assert ("is now ALICE" in lines[1] or '"name":"ALICE"' in lines[1]) == won[1]
        return won.index(True) + 1


async def test_a_name_is_free_again_when_its_owner_leaves() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("/name alice")
        assert await a.line() == "[Server] Client 1 is now alice"
        await b.send("/name Alice")
        assert await b.line() == "[Server] the name 'Alice' is taken"
        await a.finish()
        assert await a.rest() == []
        await b.send("/name Alice")
        assert await b.line() == "[Server] Client 2 is now Alice"
        await b.send("/name alice")  # its own name in another spelling
        assert await b.line() == "[Server] Alice is now alice"


async def test_a_name_that_looks_like_one_in_use_is_refused() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("/name alice")
        assert await a.line() == "[Server] Client 1 is now alice"
        for name in ("аӏісе", "aIice", "ali\u0307ce", "AlIce"):
            await b.send(f"/name {name}")
            looks = " looks like 'alice', which" if name != "AlIce" else ""
            assert await b.line() == f"[Server] the name '{name}'{looks} is taken"
        await b.send("/msg ALICE hello", "/msg аӏісе hello")
        assert await a.line() == "[Client 2 → you] hello"
        assert await b.line() == "[Server] nobody here is called 'аӏісе'"
        await a.send("/name carol")  # which frees the name and its lookalikes
        assert await a.line() == "[Server] alice is now carol"
        await b.send("/name аӏісе")
        assert await b.line() == "[Server] Client 2 is now аӏісе"
        await a.send('/json {"name":"alice"}')
        assert '"name":"carol"' in await a.line()
        assert "the name 'alice' looks like 'аӏісе', which is taken" in await a.line()


async def test_a_client_may_change_to_a_lookalike_of_its_own_name() -> None:
    async with memory_server() as network:
        client = await network.join()
        await client.send("/name alice", "/name aIice", "/name ALICE")
        assert await client.lines(3) == [
            "[Server] Client 1 is now alice",
            "[Server] alice is now aIice",
            "[Server] aIice is now ALICE",
        ]
        assert network.server.find("alice") == 1
        assert network.server.find("aIice") is None


NAMES = st.sampled_from(
    ["alice", "аӏісе", "aIice", "ALICE", "bob", "b0b", "BOB", "mary", "rnary", "Server", "7", "zoe"]
)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["name", "leave", "lose", "wait"]), NAMES),
        max_size=30,
    )
)
def test_no_two_clients_ever_have_names_that_look_alike(
    steps: list[tuple[int, str, str]],
) -> None:
    async def run() -> None:
        async with registry_of(members=0, away_seconds=5) as (registry, _):
            clients: dict[int, Client] = {}
            next_client = 0
            for seat, step, name in steps:
                member = clients.get(seat)
                if member is None:
                    next_client += 1
                    address = f"192.0.2.{seat}:{next_client}"
                    member = clients[seat] = make_client(next_client, address)
                    registry.add(member)
                    registry.give_session(member)
                match step:
                    case "name":
                        with suppress(InvalidName, NameTaken):
                            registry.rename(member, name)
                            assert registry.find(name) is member
                    case "leave":
                        registry.leave(clients.pop(seat), for_good=True)
                    case "lose":
                        registry.leave(clients.pop(seat))
                    case "wait":
                        await trio.sleep(3)
                named = [
                    each.name for each in registry.clients if each.name != default_name(each.number)
                ]
                keys = [set(lookalike_keys(each)) for each in named]
                assert len(set().union(*keys)) == sum(map(len, keys))

    run_on_mock_clock(run)


async def test_recipients_are_found_by_name_and_number() -> None:
    async with registry_of(members=3) as (registry, [one, two, three]):
        registry.rename(one, "alice")
        registry.rename(two, "안녕")
        for who, member in (
            (1, one), ("1", one), ("alice", one), ("ALICE", one), ("client 1", one), ("안녕", two),
            ("Client 3", three), (3, three), ("Client 4", None), (4, None), ("", None), (-1, None),
            ("client", None), ("1" * 5000, None), ("a" * 5000, None), ("Client 03", three),
        ):  # fmt: skip
            assert registry.find(who) is member, who


async def test_a_room_exists_while_it_has_members(log: LogRecorder) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("/join kitchen", "/rooms")
        assert (await a.lines(4))[1:] == [
            "[Server] rooms and their members:",
            "[Server] lobby 1",
            "[Server] kitchen 1",
        ]
        assert network.server.statistics().rooms == 2
        await b.send("/join KITCHEN")
        assert await b.line() == "[Server] you are in kitchen; 2 are here"
        assert network.server.statistics().rooms == 1
        await a.send("hello")
        assert await b.line() == "[Client 1] hello"
        for client in (a, b):
            await client.finish()
            assert await client.rest() == []
        assert network.server.statistics().rooms == 0
    assert "[INFO] [server] [STATE] Client 1 joined kitchen" in log.lines
    assert "[INFO] [server] [BROADCAST] Broadcasting to 2 clients" in log.lines


async def test_a_room_that_is_empty_again_and_again_while_a_message_is_stored_is_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Regression: the tasks that wanted to close it let each other go first forever."""
    journal = FaultyJournal(Disk(), Faults(slow_seconds=100.0), Random(0))
    async with memory_server(journal=journal) as network:
        a, b = [await network.join() for _ in range(2)]
        for client in (b, a):
            await client.send("/join kitchen")
            assert "you are in kitchen" in await client.line()
        await b.send("/join lobby")
        await a.send("hello")
        await trio.testing.wait_all_tasks_blocked()
        network.server.kick(1)
        await b.send(*["/join kitchen", "/join lobby"] * 20)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            guard = StandstillGuard(scope)
            trio.lowlevel.add_instrument(guard)
            await trio.sleep(200.0)
            trio.lowlevel.remove_instrument(guard)
        assert not scope.cancelled_caught
        assert len(network.server._registry.rooms) == 1


async def test_ids_continue_when_a_room_is_opened_again() -> None:
    async with memory_server() as network:
        a = await network.join()
        await a.send('/json {"room":"den"}')
        ids: list[str] = []
        nonce = 0
        for _ in range(3):
            for _ in range(2):
                nonce += 1
                await a.send(f'{{"type":"say","text":"x","nonce":{nonce}}}')
            await a.send('{"type":"join","room":"lobby"}', '{"type":"join","room":"den"}')
            await trio.testing.wait_all_tasks_blocked()
        await a.finish()
        for line in await a.rest():
            accepted = [e for e in JSON.parse_events(line) if isinstance(e, Accepted)]
            ids += [event.id for event in accepted if event.id]
        assert len(ids) == 6
        assert ids == sorted(set(ids))


async def test_who_is_encoded_once_for_each_change_of_the_members_and_each_protocol() -> None:
    async with registry_of(members=3) as (registry, [a, b, c]):

        def encoded(*clients: Client) -> bytes:
            """Return the bytes that all of *clients* get, which must be the same object."""
            answers = [registry.encode_who(LOBBY, each) for each in clients]
            assert all(answer is answers[0] for answer in answers)
            there = [member.client for member in a.room.members.values()]
            names = [MemberName(each.number, each.name) for each in there]
            assert answers[0] == clients[0].codec.encode(Members(LOBBY, names))
            return answers[0]

        answers = [encoded(a, b, a)]
        c.set_codec(JSON)
        answers += [encoded(c, c), encoded(a, b)]
        assert answers[2] is answers[0]
        registry.rename(b, "bob")
        answers += [encoded(a, b)]
        registry.add(make_client(4))
        answers += [encoded(a, b), encoded(c)]
        registry.move(b, "den")
        answers += [encoded(a), encoded(c)]
        registry.leave(c)
        answers += [encoded(a)]
        assert len(set(answers)) == len(answers) - 1


async def test_rooms_are_encoded_once_for_each_change_of_the_members_and_each_protocol() -> None:
    async with registry_of(members=3) as (registry, [a, b, c]):

        def encoded(codec: Codec) -> bytes:
            answer = registry.rooms.list.encode(codec)
            assert registry.rooms.list.encode(codec) is answer
            sizes = [RoomSize(room.name, len(room)) for room in registry.rooms]
            assert answer == codec.encode(RoomList(sizes))
            return answer

        answers = {encoded(TEXT), encoded(JSON)}
        registry.move(a, "den")
        answers |= {encoded(TEXT), encoded(JSON)}
        registry.move(b, "den")
        answers |= {encoded(TEXT), encoded(JSON)}
        registry.add(make_client(4))
        answers |= {encoded(TEXT), encoded(JSON)}
        registry.leave(c)
        registry.leave(b)
        answers |= {encoded(TEXT), encoded(JSON)}
        assert len(answers) == 10


async def test_the_number_of_rooms_is_limited() -> None:
    async with memory_server(ServerConfig(max_rooms=2)) as network:
        a, b, c = [await network.join() for _ in range(3)]
        await a.send("/join one")
        assert await a.line() == "[Server] you are in one; nobody else is here"
        await b.send("/join two")
        assert await b.line() == "[Server] too many rooms (limit: 2)"
        await a.send("/join two")  # which closes its own room
        assert await a.line() == "[Server] you are in two; nobody else is here"
        await c.send('/json {"room":"three","name":"carol"}')
        welcome = await c.line()
        assert '"name":"carol","room":"lobby"' in welcome
        assert '"code":"too-many-rooms"' in await c.line()
        for client in (b, c):
            await client.finish()
        await a.send("/join lobby")
        assert await a.line() == "[Server] you are in lobby; nobody else is here"


async def test_new_rooms_per_address_and_hour_are_limited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with registry_of(members=4, max_new_rooms=3) as (registry, members):
        a, b, c, local = members
        a.origin = b.origin = "203.0.113.7/32"
        c.origin = "203.0.113.8/32"
        for n in range(3):
            registry.move(a, f"room-{n}")
        for member in (a, b):
            with pytest.raises(TooManyRooms, match=r"limit: 3 an hour\); try again in 1200 s"):
                registry.move(member, "one-more")
        registry.move(b, "room-2")  # it is open
        registry.move(a, "lobby")
        registry.move(c, "another")
        await trio.sleep(1200)
        registry.move(b, "one-more")
        with pytest.raises(TooManyRooms):
            registry.move(a, "two-more")


async def test_over_loopback_the_limit_of_new_rooms_is_per_client() -> None:
    async with registry_of(members=2, max_new_rooms=1) as (registry, clients):
        for client in clients:
            client.origin = "127.0.0.1/32"
            registry.move(client, f"of-{client.number}")
            with pytest.raises(TooManyRooms):
                registry.move(client, "more")


async def test_a_room_with_messages_does_not_count_as_new() -> None:
    async with registry_of(members=1, max_new_rooms=1) as (registry, [a]):
        registry.move(a, "den")
        await a.room.publish(a.current, SayBlock("x"))
        for _ in range(3):
            registry.move(a, "lobby")
            registry.move(a, "den")


async def test_a_new_room_that_looks_like_an_open_one_is_refused() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("/join coco")
        assert await a.line() == "[Server] you are in coco; nobody else is here"
        for name in ("сосо", "c0co", "C0CO"):
            await b.send(f"/join {name}")
            assert await b.line() == (
                f"[Server] the room {name} would look like coco, which is open"
            )
        await b.send("/join COCO")
        assert await b.line() == "[Server] you are in coco; 2 are here"
        await a.finish()
        await b.send("/join lobby", "/join сосо")
        assert (await b.lines(2))[1] == "[Server] you are in сосо; nobody else is here"


async def test_no_room_looks_like_the_lobby() -> None:
    async with memory_server() as network:
        a = await network.join()
        await a.send("/join den", "/join 1obby", "/join lоbby")
        assert (await a.lines(3))[1:] == [
            "[Server] the room 1obby would look like lobby",
            "[Server] a room's name" + MIXED.removeprefix("a name"),
        ]


async def test_a_lookalike_room_does_not_lock_out_members() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("/join random", "it has a history", "/join lobby")
        await a.lines(2)
        await b.send("/join randorn")
        assert await b.line() == "[Server] you are in randorn; nobody else is here"
        await a.send("/join random", "/history 1")
        assert (await a.lines(3))[0] == "[Server] you are in random; nobody else is here"


async def test_nothing_is_queued_for_a_member_that_has_moved(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not even the message for which the room was waiting."""
    async with registry_of(members=3) as (registry, [sender, slow, quick]):
        while slow.send_queue.try_send(b"x\n") is not SendResult.FULL:
            pass
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.room.publish, sender.current, SayBlock("too late"))
            await trio.sleep(0.5)
            registry.move(slow, "kitchen")
        assert trio.current_time() - started == pytest.approx(0.5)
        slow.send_queue.close()
        await slow.send_queue.run()
        assert slow.send_queue.drained
        assert registry.rooms.counts.too_slow == 0
        assert registry.rooms.counts.deliveries == 1  # the quick one's


async def test_private_messages_wait_for_their_recipient_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(send_queue_batches=1)) as network:
        a, b = [await network.join() for _ in range(2)]
        stalled = await network.stalled()
        await a.send(*["/msg 3 are you there?"] * 3)
        # One is being written and one waits; for the third the sender waits.
        started = trio.current_time()
        assert await a.line() == "[Server] Client 3 is too slow: the message was not delivered"
        assert trio.current_time() - started == pytest.approx(ServerConfig().slow_timeout_seconds)
        await a.send("hello")
        assert await b.line() == "[Client 1] hello"
        stalled.recover()
        assert await stalled.lines(2) == ["[Client 1 → you] are you there?"] * 2


async def test_private_texts_are_not_logged(log: LogRecorder) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("/msg 2 my secret", '/json {"name":"alice"}')
        await a.send('{"type":"direct","to":2,"text":"my other secret"}')
        assert "secret" in await b.line()
        assert "secret" in await b.line()
    assert not any("secret" in line or "json" in line for line in log.lines)


async def test_a_client_is_announced_before_its_first_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server() as network:
        witness = await network.join()
        await witness.send("/json")
        assert "welcome" in await witness.line()
        await trio.sleep(2)
        guest = await network.join()
        await guest.send("/name guest", "hello", "/name gast", "again")
        kinds = [JSON.parse_events(await witness.line()) for _ in range(4)]
        assert [next(iter(kind)).__class__.__name__ for kind in kinds] == [
            "Joined",
            "Said",
            "Renamed",
            "Said",
        ]


async def test_a_delayed_private_message_uses_the_recipients_current_protocol(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(send_queue_batches=1)) as network:
        stalled = await network.stalled()
        whisperers = [await network.join() for _ in range(5)]
        for whisperer in whisperers:
            await whisperer.send("/msg 1 psst")
        await stalled.send("/json")
        await trio.sleep(1)
        stalled.recover()
        lines = await stalled.lines(6)
        welcome = next(i for i, line in enumerate(lines) if "welcome" in line)
        assert all(line.startswith("[") for line in lines[:welcome])
        assert all(line.startswith("{") for line in lines[welcome:])


async def test_the_lobby_is_named_lobby(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_server(ServerConfig(max_rooms=1)) as network:
        a = await network.join()
        await a.send("/join den", "/join LOBBY")
        assert (await a.lines(2))[1] == "[Server] you are in lobby; nobody else is here"
        await network.server.broadcast("x")
        await a.finish()
        await a.rest()
        await network.server.broadcast("nobody is here")
        assert network.server.statistics().rooms == 0


@pytest.mark.parametrize("codec", ["json", "text"])
async def test_a_storm_of_joins_is_reported_in_a_few_lines(
    codec: str, autojump_clock: trio.testing.MockClock
) -> None:
    count = 300
    async with memory_server(ServerConfig(announce=True)) as network:
        clients = []
        for _ in range(count):
            clients.append(await network.join())
            if codec == "json":
                await clients[-1].send("/json")
            await trio.sleep(0.01)
        await trio.sleep(5)
        assert network.server.statistics().clients == count
        lines = 0
        last = []
        for client in clients:
            await client.finish()
            told = [line for line in await client.rest() if '"welcome"' not in line]
            lines += len(told)
            last.append(told[-1] if told else "")
        # Three seconds of joins, then of leaves: far fewer than one line for each pair.
        assert lines < 60 * count
        assert sum("are here" in line or '"presence"' in line for line in last) > count / 2


async def test_a_closing_server_says_goodbye_in_every_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server() as network:
        clients = [await network.join() for _ in range(4)]
        for number, client in enumerate(clients):
            await client.send(f"/join room{number % 3}")
            await client.line()
        await network.server.close()
        for client in clients:
            assert await client.rest() == ["[Server] goodbye: the server is shutting down"]
        late = await network.join()
        assert await late.rest() == ["[Server] goodbye: the server is shutting down"]


async def test_a_broadcast_reaches_every_room(log: LogRecorder) -> None:
    async with memory_server() as network:
        clients = [await network.join() for _ in range(3)]
        for number, client in enumerate(clients):
            await client.send(f"/join room{number}")
            await client.line()
        receipt = await network.server.broadcast("Dinner is ready")
        assert receipt.delivered + receipt.queued == 3
        for client in clients:
            assert await client.line() == "[Server] Dinner is ready"
    assert log.lines.count("[INFO] [server] [TX] [Server] Dinner is ready") == 1
    assert log.lines.count("[INFO] [server] [BROADCAST] Broadcasting to 3 clients") == 1


async def test_a_client_may_leave_during_an_announcement(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with registry_of(members=3) as (registry, [stalled, second, third]):
        room = stalled.room
        stalled.set_codec(JSON)
        while stalled.send_queue.try_send(b"x\n") is not SendResult.FULL:
            pass
        registry.rename(stalled, "stalled")
        registry.rename(second, "second")
        registry.rename(third, "third")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                room.publish, second.current, SayBlock("hello")
            )  # waits for the stalled
            await trio.sleep(0.5)
            registry.leave(third)
        assert registry.clients == [stalled, second]
        assert stalled.lagging()
        assert room.next == 1
