"""The node's connection: visible reconnects, Sentinels, and the first connection."""

from collections import Counter

import pytest
import trio

from multichat.cluster.address import ClusterAddress
from multichat.cluster.connection import Connection, ConnectionConfig, Event, Lost, Ready, Retrying
from multichat.cluster.errors import EngineUnavailable, FateUnknown
from multichat.cluster.link import EngineTimeouts, Link, Login
from multichat.cluster.pipeline import Message
from tests.support.processes import LOOPBACK

from .engine import Engine, EngineConfig, Engines
from .links import IMPATIENT, config, peer, ready

pytestmark = pytest.mark.process

# Much more than any of these tests waits for; a busy machine may be slow.
SECONDS = 60


async def next_link(connection: Connection) -> tuple[Link, list[Event]]:
    """Return the next link, and the events before it."""
    before: list[Event] = []
    with trio.fail_after(SECONDS):
        while True:
            event = await connection.receive()
            if isinstance(event, Ready):
                return event.link, before
            before.append(event)


async def test_a_restart_of_the_engine_is_visible(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(aof="always"))
    connection = Connection(config(engine))
    async with connection.open():
        link = await ready(connection)
        first = link.engine
        assert first.aof
        assert first.program == engines.kind.value
        await link.call("SET", "a", "1")
        await link.subscribe("c").reply()
        assert connection.away_seconds == 0
        engine.kill()
        with trio.fail_after(SECONDS):
            assert isinstance(await connection.receive(), Lost)
        assert connection.away_seconds > 0
        assert await connection.receive() == Retrying("connection refused")
        await engine.start()
        link, _ = await next_link(connection)
        assert connection.away_seconds == 0
        assert link.engine.run_id != first.run_id
        assert await link.call("GET", "a") == b"1"
        assert await link.call("PUBLISH", "c", "nobody has subscribed again") == 0


async def test_events_come_in_order_and_calls_are_possible_while_receiving(
    engine: Engine,
) -> None:
    connection = Connection(config(engine))
    async with connection.open():
        link = await ready(connection)
        await link.subscribe("c").reply()
        for number in range(10):
            await link.call("PUBLISH", "c", number)
        for number in range(10):
            assert await connection.receive() == Message(b"c", str(number).encode())
            assert await link.call("PING") == b"PONG"


async def test_a_link_that_was_lost_before_it_was_taken_is_not_mentioned(engine: Engine) -> None:
    connection = Connection(config(engine))
    async with connection.open():
        first = await ready(connection)
        for _ in range(3):
            await engine.call("CLIENT", "KILL", "TYPE", "normal")
            await wait_for_client(engine)
        link, before = await next_link(connection)
        assert [type(event) for event in before] in ([Lost], [Lost, Retrying])
        assert link is not first
        assert await link.call("PING") == b"PONG"


async def wait_for_client(engine: Engine) -> None:
    with trio.fail_after(SECONDS):
        while b"name=multichat" not in await engine.call("CLIENT", "LIST"):
            await trio.sleep(0.02)


async def test_the_first_link_may_be_lost_before_it_is_taken(engine: Engine) -> None:
    connection = Connection(config(engine))
    async with connection.open():
        await engine.call("CLIENT", "KILL", "TYPE", "normal")
        await wait_for_client(engine)
        link, before = await next_link(connection)
        assert await link.call("PING") == b"PONG"
        assert not any(isinstance(event, Lost) for event in before)


async def test_a_frozen_engine_is_lost_and_found(engine: Engine) -> None:
    connection = Connection(config(engine, timeouts=IMPATIENT))
    async with connection.open():
        link = await ready(connection)
        engine.freeze()
        request = link.request("INCR", "n")
        with trio.fail_after(SECONDS), pytest.raises(FateUnknown):
            await request.reply()
        lost = await connection.receive()
        assert lost == Lost("the engine did not answer in 0.5 s")
        with trio.fail_after(SECONDS):
            assert await connection.receive() == Retrying("no answer in 1 s")
        engine.thaw()
        link, _ = await next_link(connection)
        # It was done after all: only the engine knows.
        assert await link.call("GET", "n") == b"1"


async def test_a_changed_password_is_reported_and_a_new_one_is_tried(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(password="first"))
    connection = Connection(config(engine))
    async with connection.open():
        link = await ready(connection)
        await link.call("CONFIG", "SET", "requirepass", "second")
        assert await link.call("PING") == b"PONG"  # it stays admitted
        link.end("the test wants it")
        assert await connection.receive() == Lost("the test wants it")
        with trio.fail_after(SECONDS):
            refused = await connection.receive()
        assert refused == Retrying("it does not accept the user and password")
        stream = await trio.open_tcp_stream(LOOPBACK, engine.port)
        async with stream:
            await stream.send_all(b"AUTH second\r\nCONFIG SET requirepass first\r\n")
            await stream.receive_some()
            await next_link(connection)


async def test_an_engine_that_closes_at_once_is_not_asked_without_a_pause(
    engine: Engine,
) -> None:
    links: Counter[str] = Counter()
    connection = Connection(config(engine))
    async with connection.open():
        await ready(connection)
        with trio.move_on_after(2):
            while True:
                await engine.call("CLIENT", "KILL", "TYPE", "normal")
                await next_link(connection)
                links["made"] += 1
    # 0.1, 0.2, 0.4, 0.8 …, each at least half of that.
    assert links["made"] <= 5


async def test_the_first_connection_fails_with_one_line(engine: Engine) -> None:
    engine.kill()
    with pytest.raises(EngineUnavailable, match="connection refused"):
        async with Connection(config(engine)).open():
            pytest.fail("it is open")


async def test_the_first_connection_waits_for_an_engine_that_loads() -> None:
    attempts: Counter[str] = Counter()

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            attempts["made"] += 1
            await stream.receive_some()
            info = b"redis_version:7.2\r\nrole:master\r\nloading:1\r\n"
            if attempts["made"] == 2:
                await stream.send_all(b"-LOADING it is loading\r\n")
                return
            if attempts["made"] == 3:
                info = info.replace(b"1", b"0")
            await stream.send_all(b"%%0\r\n$%d\r\n%s\r\n" % (len(info), info))
            await trio.sleep_forever()

    async with peer(handle) as port:
        address = ClusterAddress.parse(f"valkey://{LOOPBACK}:{port}")
        connection = Connection(ConnectionConfig(address=address))
        with trio.fail_after(SECONDS):
            async with connection.open():
                await ready(connection)
    assert attempts["made"] == 3


async def test_a_password_is_in_no_text(engine: Engine) -> None:
    chosen = ConnectionConfig(
        address=ClusterAddress.parse(engine.url), login=Login(password="hunter2", user="me")
    )
    assert "hunter2" not in f"{chosen!r} {chosen} {chosen.login!r}"


# --- Sentinels ------------------------------------------------------------------------------------


def watched(*sentinels: Engine, timeouts: EngineTimeouts = IMPATIENT) -> ConnectionConfig:
    hosts = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in sentinels)
    return ConnectionConfig(
        address=ClusterAddress.parse(f"valkey+sentinel://{hosts}/{Engine.name}"),
        timeouts=timeouts,
    )


async def test_a_failover_by_a_sentinel_leads_to_the_new_primary(engines: Engines) -> None:
    primary = await engines.start()
    replica = await engines.start(EngineConfig(replica_of=primary))
    sentinel = await engines.start_sentinel(primary)
    gone = await engines.start_sentinel(primary)
    gone.kill()  # one of several may be away
    connection = Connection(watched(gone, sentinel))
    async with connection.open():
        link = await ready(connection)
        first = link.engine
        assert first.where == f"{LOOPBACK}:{primary.port}"
        assert first.replicas == 1
        await link.call("SET", "a", "1")
        await replica.in_sync()
        with trio.fail_after(SECONDS):
            while not await sentinel.call("SENTINEL", "REPLICAS", primary.name):
                await trio.sleep(0.1)
        primary.kill()
        with trio.fail_after(SECONDS):
            assert isinstance(await connection.receive(), Lost)
        link, _ = await next_link(connection)
        assert link.engine.where == f"{LOOPBACK}:{replica.port}"
        assert link.engine.replication_id != first.replication_id
        assert link.engine.previous_replication_id == first.replication_id
        assert link.engine.previous_offset > 0
        assert await link.call("GET", "a") == b"1"


async def test_a_primary_that_the_sentinels_replace_is_left_though_it_still_answers(
    engines: Engines,
) -> None:
    old = await engines.start()
    sentinel = await engines.start_sentinel(old)
    connection = Connection(watched(sentinel))
    async with connection.open():
        await ready(connection)
        new = await engines.start()
        await sentinel.call("SENTINEL", "REMOVE", Engine.name)
        await sentinel.call("SENTINEL", "MONITOR", Engine.name, LOOPBACK, new.port, 1)
        with trio.fail_after(SECONDS):
            lost = await connection.receive()
        assert lost == Lost(f"the primary is now {LOOPBACK}:{new.port}")
        link, _ = await next_link(connection)
        assert link.engine.where == f"{LOOPBACK}:{new.port}"


async def test_a_sentinel_with_a_password_gets_that_of_the_engine(engines: Engines) -> None:
    primary = await engines.start(EngineConfig(password="secret"))
    sentinel = await engines.start_sentinel(primary, config=EngineConfig(password="secret"))
    where = f"{LOOPBACK}:{sentinel.port}"
    with pytest.raises(EngineUnavailable, match=f"Sentinel {where}: it asks for a password"):
        async with Connection(watched(sentinel)).open():
            pass
    chosen = ConnectionConfig(
        address=ClusterAddress.parse(f"valkey+sentinel://{where}/{Engine.name}"),
        login=Login(password="secret"),
    )
    connection = Connection(chosen)
    async with connection.open():
        assert await (await ready(connection)).call("PING") == b"PONG"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("chat", "it is not a Sentinel: write valkey://"), ("other", "it is not a Sentinel")],
)
async def test_an_engine_is_not_a_sentinel(engine: Engine, name: str, reason: str) -> None:
    address = ClusterAddress.parse(f"valkey+sentinel://{LOOPBACK}:{engine.port}/{name}")
    with pytest.raises(EngineUnavailable, match=reason):
        async with Connection(ConnectionConfig(address=address)).open():
            pass


async def test_sentinels_that_do_not_know_the_primary(engines: Engines) -> None:
    sentinel = await engines.start_sentinel(await engines.start())
    where = f"{LOOPBACK}:{sentinel.port}"
    address = ClusterAddress.parse(f"valkey+sentinel://{where}/other")
    with pytest.raises(EngineUnavailable, match="it knows no primary with the name other"):
        async with Connection(ConnectionConfig(address=address)).open():
            pass
    sentinel.freeze()
    with pytest.raises(EngineUnavailable, match=rf"Sentinel {where}: no answer in 1\.5 s"):
        async with Connection(ConnectionConfig(address=address)).open():
            pass


@pytest.mark.parametrize(
    "answer",
    [
        b"*2\r\n$2\r\nip\r\n$1\r\na\r\n",
        b"*3\r\n$2\r\nip\r\n$1\r\na\r\n:1\r\n",
        b"*6\r\n+ip\r\n+\xff\r\n+port\r\n+1\r\n+config-epoch\r\n+1\r\n",
        b"*6\r\n+ip\r\n+a\r\n+port\r\n+99999\r\n+config-epoch\r\n+1\r\n",
        b":1\r\n",
        b"*100000000\r\n",
        b"garbage\r\n",
    ],
)
async def test_hostile_sentinels_are_one_line(answer: bytes) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)
            await trio.sleep_forever()

    async with peer(handle) as port:
        address = ClusterAddress.parse(f"valkey+sentinel://{LOOPBACK}:{port}/chat")
        with pytest.raises(EngineUnavailable) as caught:
            async with Connection(ConnectionConfig(address=address)).open():
                pass
    assert str(caught.value).isprintable()
