"""The engines of the tests do what the tests of the cluster need."""

import pytest
import trio

from .engine import Engine, EngineConfig, EngineError, Engines

pytestmark = pytest.mark.process


async def test_an_engine_answers_on_its_port(engine: Engine) -> None:
    assert await engine.call("SET", "a", "1") == b"OK"
    assert await engine.call("GET", "a") == b"1"


async def test_after_a_kill_an_aof_has_everything_and_the_port_is_the_same(
    engines: Engines,
) -> None:
    engine = await engines.start(EngineConfig(aof="always"))
    port = engine.port
    await engine.call("SET", "a", "1")
    engine.kill()
    assert not engine.is_running
    with pytest.raises(OSError, match="connect"):
        await engine.call("PING")
    await engine.start()
    assert engine.port == port
    assert await engine.call("GET", "a") == b"1"
    await engine.stop()
    await engine.start()
    assert await engine.call("GET", "a") == b"1"


async def test_a_frozen_engine_answers_after_it_is_thawed(engine: Engine) -> None:
    engine.freeze()
    with trio.move_on_after(0.2) as waiting:
        await engine.call("PING")
    assert waiting.cancelled_caught
    engine.thaw()
    assert await engine.call("PING") == b"PONG"


async def test_password_users_and_memory_limit(engines: Engines) -> None:
    engine = await engines.start(
        EngineConfig(password="secret", users={"chat": "other"}, maxmemory="3mb")
    )
    assert await engine.call("ACL", "WHOAMI") == b"default"
    assert await engine.call("AUTH", "chat", "other") == b"OK"
    with pytest.raises(EngineError, match="WRONGPASS"):
        await engine.call("AUTH", "chat", "secret")
    with pytest.raises(EngineError, match="OOM"):
        for number in range(20):
            await engine.call("SET", f"k{number}", b"x" * 500_000)


async def test_tls(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(tls=True))
    assert await engine.call("PING") == b"PONG"
    assert engine.url == f"valkeys://127.0.0.1:{engine.port}"


async def test_unix_socket(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(unix=True))
    stream = await trio.open_unix_socket(str(engine.socket_path))
    async with stream:
        await stream.send_all(b"PING\r\n")
        assert await stream.receive_some() == b"+PONG\r\n"


async def test_a_replica_follows_and_is_promoted(engines: Engines) -> None:
    primary = await engines.start(EngineConfig(password="secret"))
    replica = await engines.start(EngineConfig(password="secret", replica_of=primary))
    await primary.call("SET", "a", "1")
    await replica.in_sync()
    assert await replica.call("GET", "a") == b"1"
    with pytest.raises(EngineError, match="READONLY"):
        await replica.call("SET", "a", "2")
    primary.kill()
    await replica.promote()
    assert await replica.call("SET", "a", "2") == b"OK"


async def test_a_sentinel_promotes_the_replica_of_a_killed_primary(engines: Engines) -> None:
    primary = await engines.start()
    replica = await engines.start(EngineConfig(replica_of=primary))
    sentinel = await engines.start_sentinel(primary)
    question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", primary.name)
    assert (await sentinel.call(*question))[1] == str(primary.port).encode()
    with trio.fail_after(60):
        # It learns of replicas by asking the primary, every ten seconds.
        while not await sentinel.call("SENTINEL", "REPLICAS", primary.name):
            await trio.sleep(0.1)
        primary.kill()
        while (await sentinel.call(*question))[1] != str(replica.port).encode():
            await trio.sleep(0.1)
        while (await replica.info("replication"))["role"] != "master":
            await trio.sleep(0.1)
