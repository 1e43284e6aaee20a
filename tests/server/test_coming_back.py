"""Clients that lose their server, or all lose the connection, and resume without leaving.

In memory; `tests/cluster/test_two_servers.py` has nodes on a real engine.
"""

import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from multichat import ServerConfig
from multichat.backend.local import LocalBackend
from multichat.journal.base import SavedSession
from multichat.journal.memory import MemoryJournal
from multichat.journal.sqlite.journal import SqliteJournal
from multichat.server.absences import Absence, Absences
from multichat.server.client import GREETING_SECONDS
from multichat.testing import MemoryServer, memory_server
from tests.support.hub import Hub
from tests.support.nodes import events_of, nodes_on
from tests.support.programs import JsonClient, join

pytestmark = pytest.mark.unit

Clock = trio.testing.MockClock

_CONFIG = ServerConfig(away_seconds=5.0)
_NAMES = ("alice", "bob", "carol", "dave")
_ROOMS: dict[str, dict[str, object]] = {"lobby": {}, "den": {}}


async def _heard(client: JsonClient) -> list[tuple[str, str]]:
    """Return the types of the events that *client* gets until all waits are over, and of whom."""
    events = await events_of(client, after=8.0)
    return [(each["type"], each.get("name", "")) for each in events]


async def _come(server: MemoryServer, names: Sequence[str] = _NAMES) -> list[JsonClient]:
    clients = [await join(server, name=name, rooms=_ROOMS) for name in names]
    for each in clients:
        await _heard(each)
    return clients


async def _resume(server: MemoryServer, clients: Sequence[JsonClient]) -> list[JsonClient]:
    """Resume one after the other; each lists the members, as a terminal does."""
    resumed = []
    for each in clients:
        again = await join(server, session=each.welcome["session"])
        assert again.welcome["resumed"]
        await again.ask("who")
        resumed.append(again)
        await trio.sleep(0.7)
    return resumed


async def _reset(clients: Sequence[JsonClient]) -> None:
    for each in clients:
        await trio.aclose_forcefully(each._client.stream)
    await trio.testing.wait_all_tasks_blocked()


async def test_clients_that_lose_the_connection_at_once_and_resume_are_not_announced(
    autojump_clock: Clock,
) -> None:
    async with memory_server(_CONFIG) as server:
        clients = await _come(server)
        await _reset(clients)
        assert len(server.server._registry.rooms) == 0
        for each in await _resume(server, clients):
            assert await _heard(each) == []


async def test_a_client_that_does_not_return_leaves_for_those_that_do(
    autojump_clock: Clock,
) -> None:
    async with memory_server(_CONFIG) as server:
        clients = await _come(server)
        await _reset(clients)
        alice, bob = await _resume(server, clients[:2])
        left = [("left", "carol"), ("left", "dave")] * 2  # in both rooms
        assert sorted(await _heard(alice)) == sorted(left)
        assert sorted(await _heard(bob)) == sorted(left)
        [dave] = await _resume(server, clients[3:])
        assert await _heard(dave) == []
        assert await _heard(alice) == [("joined", "dave")] * 2


async def _end(server: MemoryServer, folder: Path) -> Path:
    """End the server in order; return its journal."""
    server.server.shutdown()
    await server.server.close()
    return folder / "chat.db"


async def _kill(server: MemoryServer, folder: Path) -> Path:
    """Return the contents of the journal while the server runs."""
    (folder / "copy").mkdir()
    for path in folder.glob("chat.db*"):
        shutil.copy(path, folder / "copy")
    return folder / "copy" / "chat.db"


@pytest.mark.parametrize("end", [_end, _kill])
async def test_clients_that_resume_after_a_restart_are_not_announced(
    end: Callable[[MemoryServer, Path], Awaitable[Path]], tmp_path: Path
) -> None:
    config = replace(_CONFIG, away_seconds=300.0)  # the journal's threads need real time
    async with memory_server(config, journal=SqliteJournal(tmp_path / "chat.db")) as one:
        clients = [await join(one, name=name, rooms=_ROOMS) for name in _NAMES]
        await clients[0].say("stored")
        path = await end(one, tmp_path)
    async with memory_server(config, journal=SqliteJournal(path)) as two:
        expected = {number: absence.name for number, absence in _absent(two, "den").items()}
        assert expected == {each.welcome["client"]: each.welcome["name"] for each in clients}
        resumed = [await join(two, session=each.welcome["session"]) for each in clients]
        for each in resumed:
            assert each.welcome["resumed"]
            assert each.welcome["members"] == len(_NAMES)  # no client has left, and none will join
            await each.ask("who")
        for each in resumed:
            assert await events_of(each, after=0.3) == []


def _absent(server: MemoryServer, room: str) -> dict[int, Absence]:
    return server.server._registry.rooms._absences._rooms[room]


class _Recent(MemoryJournal):
    """Says that these sessions were there just before."""

    def __init__(self, sessions: Sequence[SavedSession]) -> None:
        super().__init__()
        self.recent_sessions = sessions


async def test_whose_session_is_old_has_left_before_the_restart(autojump_clock: Clock) -> None:
    backend = LocalBackend(MemoryJournal())
    async with memory_server(_CONFIG, backend=backend) as server:
        [alice, bob] = await _come(server, ("alice", "bob"))
        sessions = [
            SavedSession(record=session.record(), age_seconds=age, nonces=[])
            for session, age in zip(
                server.server._registry.session_store._connected.values(), (0.0, 6.0), strict=True
            )
        ]
    again = _Recent(sessions)

    async def session(digest: bytes) -> SavedSession | None:
        await trio.lowlevel.checkpoint()
        return next((each for each in sessions if each.record.digest == digest), None)

    again.session = session  # type: ignore[method-assign]
    async with memory_server(_CONFIG, journal=again) as server:
        [back] = await _resume(server, [alice])
        assert await _heard(back) == []
        await _resume(server, [bob])
        assert await _heard(back) == [("joined", "bob")] * 2


async def test_a_member_that_entered_while_another_was_away_gets_joined_at_its_return(
    autojump_clock: Clock,
) -> None:
    async with memory_server(_CONFIG) as server:
        alice, bob = await _come(server, ("alice", "bob"))
        await _reset([alice])
        eve = await join(server, name="eve")
        assert eve.welcome["members"] == 2
        assert [each["name"] for each in (await eve.ask("who"))["members"]] == ["bob", "eve"]
        [_again] = await _resume(server, [alice])
        assert ("joined", "alice") in await _heard(eve)
        assert await _heard(bob) == [("joined", "eve")]


async def test_a_client_that_sends_a_hello_is_not_announced_as_another_before(
    autojump_clock: Clock,
) -> None:
    """However long its hello takes while the storage looks up its session."""
    hub = Hub()
    backends = hub.node("one"), hub.node("two")
    async with nodes_on(*backends, config=_CONFIG, seconds=600) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        carol = await join(one, name="carol")
        for each in (alice, bob, carol):
            await _heard(each)
        await _reset([alice])
        hub.nodes["one"].hold()
        events: list[tuple[str, str]] = []
        async with trio.open_nursery() as nursery:

            async def come_back() -> None:
                await _resume(one, [alice])

            nursery.start_soon(come_back)
            await trio.sleep(2)
            for each in (bob, carol):
                names = [one["name"] for one in (await each.ask("who"))["members"]]
                assert sorted(names) == ["bob", "carol"]
            hub.nodes["one"].release()
        for each in (bob, carol):
            events += await _heard(each)
        assert events == []


async def test_a_client_whose_hello_never_ends_is_listed_and_announced(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    backends = hub.node("one"), hub.node("two")
    async with nodes_on(*backends, config=_CONFIG, seconds=600) as (one, two):
        alice, bob = await join(one, name="alice"), await join(two, name="bob")
        for each in (alice, bob):
            await _heard(each)
        lurker = await one.join()
        hub.nodes["one"].hold()
        await lurker.send('/json {"protocol":1,"session":"%s"}' % (32 * "0"))
        await trio.sleep(5)
        for each in (alice, bob):
            assert _names(await each.ask("who")) == ["alice", "bob"]
        await trio.sleep(GREETING_SECONDS)
        for each in (alice, bob):
            assert ("joined", "Client 3") in await _heard(each)
            assert _names(await each.ask("who")) == ["Client 3", "alice", "bob"]
        hub.nodes["one"].release()


async def test_a_client_that_was_announced_is_listed_while_its_hello_is_carried_out(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with nodes_on(hub.node("one"), config=_CONFIG, seconds=600) as [one]:
        alice = await join(one, name="alice")
        late = await one.join()
        assert await _heard(alice) == [("joined", "Client 2")]
        hub.nodes["one"].hold()
        await late.send('/json {"protocol":1,"session":"%s"}' % (32 * "0"))
        await trio.sleep(1)
        assert _names(await alice.ask("who")) == ["Client 2", "alice"]
        hub.nodes["one"].release()


def _names(members: Mapping[str, Any]) -> list[str]:
    return sorted(each["name"] for each in members["members"])


async def test_clients_of_a_node_that_ends_resume_on_another_without_announcements(
    autojump_clock: Clock,
) -> None:
    hub = Hub()
    async with AsyncExitStack() as stack:
        two, *_ = await stack.enter_async_context(
            nodes_on(hub.node("two"), config=_CONFIG, seconds=600)
        )
        bob = await join(two, name="bob")
        async with nodes_on(hub.node("one"), config=_CONFIG, seconds=600) as [one]:
            clients = await _come(one, ("alice", "carol", "dave"))
            await _heard(bob)
            await one.server.close()
        for each in await _resume(two, clients):  # no client was in the den there
            assert await _heard(each) == []
        assert await _heard(bob) == []


async def test_a_client_without_a_hello_is_announced_once_it_had_time_for_one(
    autojump_clock: Clock,
) -> None:
    async with memory_server(_CONFIG) as server:
        [alice] = await _come(server, ("alice",))
        await server.join()
        assert [*await _heard(alice)] == [("joined", "Client 2")]
        await _reset([alice])
        await server.join()
        await trio.sleep(1)
        [alice] = await _resume(server, [alice])
        members = (await alice.ask("who", room="lobby"))["members"]
        assert [each["name"] for each in members] == ["alice", "Client 2", "Client 3"]
        assert [kind for kind, _ in await _heard(alice)] == []


def test_absences_end_with_their_time() -> None:
    absences = Absences()
    absences.add("den", 1, Absence("alice", "", 5.0), 0.0)
    absences.add("den", 2, Absence("bob", "", 6.0), 1.0)
    absences.add("hall", 1, Absence("alice", "", 6.0), 1.0)
    absences.discard("den", 2)
    assert list(absences.take("den", 4.0)) == [1]
    assert absences.take("den", 4.0) == {}
    absences.add("den", 3, Absence("carol", "", 20.0), 15.0)
    assert absences.take("hall", 5.0) == {}  # it was forgotten at 15
    assert list(absences.take("den", 16.0)) == [3]
    absences.add("den", 4, Absence("dave", "", 20.0), 16.0)
    assert absences.take("den", 20.0) == {}
