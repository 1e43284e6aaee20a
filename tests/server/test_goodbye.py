"""Goodbye codes: what the server tells a disconnected client, and what the client concludes."""

import json

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from multichat.protocol.goodbyes import GOODBYES
from multichat.protocol.messages import Goodbye
from multichat.server.bans import Ban
from multichat.server.config import ServerConfig, Slow
from multichat.testing import MemoryServer, ScriptedClient, memory_server

pytestmark = pytest.mark.unit


async def json_client(network: MemoryServer, hello: str = "/json") -> ScriptedClient:
    client = ScriptedClient(network.connect())
    await client.send(hello)
    assert json.loads(await client.line())["type"] == "welcome"
    return client


async def goodbye_of(client: ScriptedClient) -> tuple[str, bool]:
    last = json.loads((await client.rest())[-1])
    assert last["type"] == "goodbye"
    assert last["reason"]
    return last["code"], last["reconnect"]


async def test_a_kick_and_a_ban_are_final(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        kicked, banned = [await json_client(network) for _ in range(2)]
        await banned.send('{"type":"name","name":"bob"}')
        await banned.line()
        network.server.kick(1, "any words at all")
        network.server.ban(Ban(target="bob", reason="loud"))
        assert await goodbye_of(kicked) == ("kicked", False)
        assert await goodbye_of(banned) == ("banned", False)


async def test_a_shutdown_is_not_final(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        client = await json_client(network)
        await network.server.close()
        assert await goodbye_of(client) == ("shutdown", True)
        late = ScriptedClient(network.connect())
        assert await late.line() == "[Server] goodbye: the server is shutting down"


async def test_an_idle_disconnect_is_not_final(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(idle_seconds=60)) as network:
        client = await json_client(network)
        assert await goodbye_of(client) == ("idle", True)


async def test_the_pings_of_a_client_do_not_defeat_the_idle_limit(
    autojump_clock: MockClock,
) -> None:
    async with memory_server(ServerConfig(idle_seconds=60)) as network:
        idle, talker = await json_client(network), await json_client(network)
        started = trio.current_time()
        for _ in range(3):
            await trio.sleep(19)
            await idle.send('{"type":"ping"}')
            await talker.send('{"type":"who"}')
        assert await goodbye_of(idle) == ("idle", True)
        assert trio.current_time() - started == pytest.approx(60)
        assert len(network.server.members) == 1


async def test_a_text_ping_does_not_defeat_the_idle_limit(autojump_clock: MockClock) -> None:
    async with memory_server(ServerConfig(idle_seconds=60)) as network:
        idle, asking = await network.join(), await network.join()
        for _ in range(3):
            await trio.sleep(19)
            await idle.send("/ping")
            await asking.send("/who")
        assert (await idle.rest())[-1] == "[Server] goodbye: idle for 60 s"
        assert len(network.server.members) == 1


async def test_a_session_that_another_connection_takes_over_is_final(
    autojump_clock: MockClock,
) -> None:
    async with memory_server() as network:
        old = ScriptedClient(network.connect())
        await old.send("/json")
        session = json.loads(await old.line())["session"]
        await json_client(network, f'/json {{"session":"{session}"}}')
        assert await goodbye_of(old) == ("replaced", False)


async def test_a_client_that_asks_to_leave_gets_its_own_code(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        client = await json_client(network)
        await client.send('{"type":"quit"}')
        assert await goodbye_of(client) == ("quit", False)


async def test_a_slow_client_may_reconnect(autojump_clock: MockClock) -> None:
    config = ServerConfig(slow=Slow.DISCONNECT, send_queue_batches=1)
    async with memory_server(config) as network:
        ours, theirs = trio.testing.lockstep_stream_pair()
        slow, talker = ScriptedClient(theirs), await network.join()
        network.accept(ours)
        await slow.send("/json")
        assert "welcome" in await slow.line()
        for i in range(20):
            await trio.testing.wait_all_tasks_blocked()
            await talker.send(f"{i}")
        assert await goodbye_of(slow) == ("too-slow", True)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("the server is shutting down", "shutdown"),
        ("the server is about to shut down", "draining"),
        ("too slow", "too-slow"),
        ("too far behind", "too-slow"),
        ("idle for 60 s", "idle"),
        ("the server is full (limit: 1024)", "full"),
        ("too many clients from your address (at most 2)", "full"),
        ("kicked: too slow", "kicked"),
        ("banned for ever", "banned"),
        ("taken over by a new connection", "replaced"),
        ("wrong password", "wrong-password"),
        ("too many wrong passwords from your address; try again later", "full"),
        ("too many password attempts from other addresses; try again later", "full"),
        ("you asked to leave", "quit"),
        ("this server requires TLS: use multichat with --tls", ""),
        ("", ""),
    ],
)
def test_a_reason_without_a_code_is_understood(reason: str, code: str) -> None:
    known = Goodbye(reason).known()
    assert (known.reason, known.code, known.reconnect) == (reason, code, GOODBYES.get(code, False))


def test_the_servers_reconnect_flag_overrides_the_table() -> None:
    assert Goodbye("too slow", "too-slow", reconnect=False).known().reconnect is False
    assert Goodbye("x", "new-code", reconnect=True).known().reconnect is True
    assert Goodbye("the server is shutting down", "new-code").known().reconnect is False
