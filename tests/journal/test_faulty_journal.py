"""A server while its journal is slow, full, or being read."""

from random import Random

import pytest
import trio
import trio.testing

from multichat import ServerConfig
from multichat.server.session_store import SessionStore
from multichat.server.stored_session import StoredSession
from multichat.testing import memory_server
from tests.simulation.journal import Disk, Faults, FaultyJournal
from tests.support.programs import join

pytestmark = pytest.mark.unit


async def test_a_message_in_progress_is_not_replayed_to_a_client_that_reenters_the_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The next member opened it anew, and messages that were not stored counted as announced."""
    journal = FaultyJournal(Disk(), Faults(slow_seconds=1, full=((0, 60),)), Random(0))
    async with memory_server(ServerConfig(), journal=journal) as network:
        one = await join(network, room="den")
        other = await join(network)
        await one.send({"type": "say", "text": "lost"})
        await trio.testing.wait_all_tasks_blocked()
        network.server.kick(1)
        await other.send({"type": "join", "room": "den"})
        while "room" not in (joined := await other.hear("joined")):
            pass  # members that entered and left the lobby
        assert "last" not in joined
        await trio.sleep(60)
        accepted = await other.ask("say", text="kept")
        assert accepted["type"] == "accepted"
        third = await join(network, room="den", replay=10)
        assert third.welcome["last"] == accepted["id"]
        assert (await third.hear("said", "missed"))["text"] == "kept"


async def test_an_empty_room_is_closed_once_everything_is_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    journal = FaultyJournal(Disk(), Faults(slow_seconds=1), Random(0))
    async with memory_server(journal=journal) as network:
        one = await join(network, room="den")
        await one.send({"type": "say", "text": "the last word"})
        await trio.testing.wait_all_tasks_blocked()
        network.server.kick(1)
        assert network.server.statistics().rooms == 0
        await trio.sleep(2)
        assert not len(network.server._registry.rooms)


async def test_a_client_kicked_during_its_resume_does_not_resume(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_server() as network:
        welcome = (await join(network)).welcome

        find = SessionStore.find

        async def kick_and_find(session_store: SessionStore, token: str) -> StoredSession | None:
            network.server.kick(1)
            await trio.lowlevel.checkpoint()
            return await find(session_store, token)

        monkeypatch.setattr(SessionStore, "find", kick_and_find)
        again = (await join(network, session=welcome["session"])).welcome
        assert not again["resumed"]
        assert (again["client"], again["session"] != welcome["session"]) == (2, True)
