"""One connection to a real engine: requests, channels, limits, and its end."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import coredis
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multichat.cluster.errors import (
    EngineAway,
    EngineBusy,
    EngineRefused,
    EngineUnavailable,
    FateUnknown,
)
from multichat.cluster.link import EngineTimeouts, LinkLimits, Login, MessagesDropped, open_link
from multichat.cluster.pipeline import Message
from multichat.cluster.resp import ReplyLimits
from tests.support.processes import LOOPBACK, WAIT_SECONDS

from .engine import Engine, EngineConfig, Engines
from .links import IMPATIENT, linked, login, peer

pytestmark = pytest.mark.process


async def test_requests_of_many_tasks_are_pipelined_and_each_gets_its_reply(
    engine: Engine,
) -> None:
    got: dict[int, bytes] = {}

    async def echo(number: int) -> None:
        got[number] = await link.call("ECHO", number)

    async with linked(engine) as link:
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(echo, number)
        assert link.unanswered_seconds == 0
    assert got == {number: str(number).encode() for number in range(500)}


async def test_a_request_is_sent_without_waiting_and_in_order(engine: Engine) -> None:
    async with linked(engine) as link:
        requests = [link.request("RPUSH", "list", number) for number in range(100)]
        assert [await request.reply() for request in requests] == list(range(1, 101))
        assert await requests[0].reply() == 1


async def test_an_error_quotes_no_arguments(engine: Engine) -> None:
    async with linked(engine) as link:
        for words in (("NOSUCH", "a message"), ("FCALL", "nosuch", "0", "a message")):
            with pytest.raises(EngineRefused) as caught:
                await link.call(*words)
            assert "a message" not in str(caught.value) + caught.value.text


async def test_an_error_is_that_of_its_request_alone(engine: Engine) -> None:
    async with linked(engine) as link:
        bad, good = link.request("LPUSH"), link.request("PING")
        for _ in range(2):
            with pytest.raises(EngineRefused, match="wrong number of arguments") as caught:
                await bad.reply()
            assert caught.value.code == "ERR"
        assert await good.reply() == b"PONG"


async def test_the_reply_of_a_cancelled_request_is_read(engine: Engine) -> None:
    async with linked(engine) as link:
        engine.freeze()
        with trio.move_on_after(0.1):
            await link.call("SET", "a", "1")
        after = link.request("GET", "a")
        assert link.unanswered_seconds > 0
        engine.thaw()
        assert await after.reply() == b"1"


async def test_messages_of_channels(engine: Engine) -> None:
    async with linked(engine) as link, linked(engine) as other:
        assert await link.subscribe("a", "b").reply() is None
        assert await link.subscribe("c").reply() is None
        assert await other.call("PUBLISH", "b", b"\r\n\xff") == 1
        assert await other.call("PUBLISH", "c", "2") == 1
        assert await link.receive() == Message(b"b", b"\r\n\xff")
        assert await link.receive() == Message(b"c", b"2")
        # Its own messages come before the reply, or after it; both arrive.
        assert await link.call("PUBLISH", "a", "3") == 1
        assert await link.receive() == Message(b"a", b"3")
        assert await link.unsubscribe("b").reply() is None
        assert await link.unsubscribe("c").reply() is None
        assert await other.call("PUBLISH", "b", "4") == 0


async def test_a_function_that_publishes_to_its_caller_keeps_the_replies_in_order(
    engine: Engine,
) -> None:
    script = "redis.call('PUBLISH', 'a', ARGV[1]); return {ARGV[1], redis.call('INCR', 'n')}"
    async with linked(engine) as link:
        await link.subscribe("a").reply()
        requests = [link.request("EVAL", script, 0, number) for number in range(50)]
        for number, request in enumerate(requests):
            assert await request.reply() == [str(number).encode(), number + 1]
            assert await link.receive() == Message(b"a", str(number).encode())


async def test_a_subscription_without_the_right_is_refused(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(users={"chat": "secret"}))
    await engine.call("ACL", "SETUSER", "chat", "resetchannels")
    link = await open_link(LOOPBACK, engine.port, Login(user="chat", password="secret"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        refused, after = link.subscribe("a", "b"), link.request("PING")
        with pytest.raises(EngineRefused, match="channel") as caught:
            await refused.reply()
        assert caught.value.code == "NOPERM"
        assert await after.reply() == b"PONG"
        nursery.cancel_scope.cancel()


async def test_the_send_buffer_is_bounded_and_calls_wait_for_room(engine: Engine) -> None:
    limits = LinkLimits(requests=10, unsent=100_000)
    async with linked(engine, limits=limits) as link:
        engine.freeze()
        for _ in range(10):
            link.request("PING")
        with pytest.raises(EngineBusy):
            link.request("PING")
        with trio.move_on_after(0.1) as waiting:
            await link.call("PING")
        assert waiting.cancelled_caught
        replies = []
        async with trio.open_nursery() as nursery:
            for number in range(100):

                async def echo(number: int = number) -> None:
                    replies.append(int(await link.call("ECHO", number)))

                nursery.start_soon(echo)
            await trio.sleep(0.05)
            engine.thaw()
        assert sorted(replies) == list(range(100))
        engine.freeze()
        link.request("SET", "a", b"x" * 200_000)
        with pytest.raises(EngineBusy):
            link.request("PING")
        engine.thaw()
        assert await link.call("STRLEN", "a") == 200_000


async def test_messages_that_are_not_received_are_dropped_and_counted(engine: Engine) -> None:
    limits = LinkLimits(messages=10, message_bytes=1000)
    async with linked(engine, limits=limits) as link, linked(engine) as other:
        await link.subscribe("a").reply()
        for number in range(30):
            await other.call("PUBLISH", "a", number)
        await link.call("PING")
        assert await link.receive() == Message(b"a", b"0")
        await other.call("PUBLISH", "a", "not even now")
        await link.call("PING")
        for number in range(1, 10):
            assert await link.receive() == Message(b"a", str(number).encode())
        assert await link.receive() == MessagesDropped(21)
        await other.call("PUBLISH", "a", "x" * 600)
        await other.call("PUBLISH", "a", "x" * 600)
        assert await link.receive() == Message(b"a", b"x" * 600)
        await link.call("PING")
        assert await link.receive() == MessagesDropped(1)


async def test_a_killed_engine_ends_all_requests_with_an_unknown_fate(engine: Engine) -> None:
    async with linked(engine) as link:
        engine.freeze()
        requests = [link.request("INCR", "n") for _ in range(3)]
        engine.kill()
        for request in requests:
            for _ in range(2):
                with pytest.raises(FateUnknown, match="ended before its reply"):
                    await request.reply()
        assert link.reason in ("the engine has closed the connection", "connection reset")
        with pytest.raises(EngineAway):
            link.request("PING")
        with pytest.raises(EngineAway):
            await link.call("PING")
        with pytest.raises(EngineAway):
            await link.receive()


async def test_a_frozen_engine_ends_the_link_after_the_silence(engine: Engine) -> None:
    async with linked(engine, timeouts=IMPATIENT) as link:
        await trio.sleep(1)  # pings keep an idle link
        assert await link.call("PING") == b"PONG"
        engine.freeze()
        with trio.fail_after(30), pytest.raises(EngineAway, match=r"did not answer in 0\.5 s"):
            await link.receive()
        engine.thaw()


async def test_calls_that_wait_for_room_end_with_the_link(engine: Engine) -> None:
    async with linked(engine, limits=LinkLimits(requests=1)) as link:
        engine.freeze()
        link.request("PING")
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(EngineAway):
                    await link.call("PING")

            for _ in range(3):
                nursery.start_soon(wait)
            await trio.sleep(0.05)
            engine.kill()


async def test_a_primary_that_became_a_replica_ends_the_link(engines: Engines) -> None:
    primary, other = await engines.start(), await engines.start()
    async with linked(primary) as link:
        await primary.call("REPLICAOF", LOOPBACK, other.port)
        with pytest.raises(EngineRefused, match="is a replica now"):
            await link.call("SET", "a", "1")
        assert link.reason == "it is a replica now"


async def test_tls(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(tls=True, password="secret"))
    async with linked(engine) as link:
        value = b"x" * 5_000_000
        assert await link.call("SET", "a", value) == b"OK"
        assert await link.call("GET", "a") == value


async def test_a_database_of_its_own(engine: Engine) -> None:
    link = await open_link(LOOPBACK, engine.port, Login(database=3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await link.call("SET", "a", "1")
        nursery.cancel_scope.cancel()
    assert await engine.call("GET", "a") is None


# --- Engines that cannot be used ------------------------------------------------------------------


async def refusal(engine: Engine, chosen: Login) -> EngineUnavailable:
    with pytest.raises(EngineUnavailable) as caught:
        await open_link(LOOPBACK, engine.port, chosen, timeouts=IMPATIENT)
    assert str(caught.value).startswith(f"cannot use the engine at {LOOPBACK}:{engine.port}: ")
    assert "secret" not in str(caught.value)
    return caught.value


async def test_passwords_that_the_engine_does_not_accept(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(password="right", users={"chat": "other"}))
    missing = await refusal(engine, Login())
    assert missing.reason == "it asks for a password: give --cluster-password-file"
    for wrong in Login(password="secret"), Login(user="chat", password="right"):
        error = await refusal(engine, wrong)
        assert error.reason == "it does not accept the user and password"
        assert error.lasting
    link = await open_link(LOOPBACK, engine.port, Login(user="chat", password="other"))
    await link._stream.aclose()


async def test_a_user_without_a_password_is_never_the_default_user(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(users={"chat": "other"}))
    error = await refusal(engine, Login(user="chat"))
    assert error.reason == "it asks for a password: give --cluster-password-file"
    assert error.lasting
    await engine.call("ACL", "SETUSER", "chat", "nopass")
    link = await open_link(LOOPBACK, engine.port, Login(user="chat"))
    await link._stream.aclose()


async def test_a_replica_is_refused_with_the_address_of_its_primary(engines: Engines) -> None:
    primary = await engines.start()
    replica = await engines.start(EngineConfig(replica_of=primary))
    error = await refusal(replica, Login())
    assert error.reason.startswith(f"it is a replica of {LOOPBACK}:{primary.port}: give the add")
    assert not error.lasting


async def test_a_sentinel_is_not_an_engine(engines: Engines) -> None:
    sentinel = await engines.start_sentinel(await engines.start())
    assert "it is a Sentinel: write valkey+sentinel://" in (await refusal(sentinel, Login())).reason


async def test_a_user_without_rights(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(users={"chat": "other"}))
    await engine.call("ACL", "SETUSER", "chat", "-info")
    error = await refusal(engine, Login(user="chat", password="other"))
    assert "its user lacks a right" in error.reason


async def test_a_redis_cluster_is_refused(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(more={"cluster-enabled": "yes"}))
    assert "part of a Redis Cluster" in (await refusal(engine, Login())).reason


async def test_a_full_engine_says_so(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(more={"maxclients": "1"}))
    async with linked(engine):
        error = await refusal(engine, Login())
    assert "max number of clients reached" in error.reason or "closes the connec" in error.reason


async def test_tls_and_plain_are_distinguished(engines: Engines) -> None:
    encrypted = await engines.start(EngineConfig(tls=True))
    assert "valkeys://" in (await refusal(encrypted, Login())).reason
    plain = await engines.start()
    assert "valkey://" in (await refusal(plain, login(encrypted))).reason
    wrong_name = await refusal(encrypted, login(encrypted, tls_name="other.example"))
    assert "its certificate is not accepted" in wrong_name.reason


async def test_a_port_without_a_server(engine: Engine) -> None:
    engine.kill()
    error = await refusal(engine, Login())
    assert error.reason == "connection refused"


def answering(
    data: bytes, *, stays: bool = False
) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(data)
            if stays:
                await trio.sleep_forever()

    return handle


@pytest.mark.parametrize(
    ("data", "stays", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "it is a web server"),
        (b"", False, "it closes the connection; if it uses TLS, write valkeys://"),
        (b"", True, "no answer in 1 s"),
        (b"Welcome\r\n", True, "does not speak the protocol"),
        (b"-ERR unknown command `HELLO`, with args\r\n", True, "Redis 7 or later, is needed"),
        (b"-NOPROTO sorry\r\n", True, "Redis 7 or later, is needed"),
        (b"-LOADING Redis is loading\r\n", True, "it is loading its data"),
        (b"-DENIED Redis is running in protected mode because\r\n", True, "protected-mode"),
        (b":1\r\n:2\r\n", True, "Redis 7 or later, is needed"),
        (b"%0\r\n$11\r\nrole:master\r\n", True, "Redis 7 or later, is needed"),
        (b"%0\r\n$23\r\nredis_version:6.2\r\nab:c\r\n", True, "it is Redis 6.2: "),
        (b"%0\r\n$99999999\r\n", True, "a reply of more than"),
    ],
)
async def test_peers_that_are_not_an_engine(data: bytes, stays: bool, reason: str) -> None:
    async with peer(answering(data, stays=stays)) as port:
        with pytest.raises(EngineUnavailable, match=reason):
            await open_link(LOOPBACK, port, Login(), timeouts=IMPATIENT)


HELLO = b"%0\r\n"
INFO = b"redis_version:7.2\r\nrole:master\r\n"
ADMITTED = HELLO + b"$%d\r\n%s\r\n" % (len(INFO), INFO)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xfe garbage", "does not speak the protocol"),
        (b":1\r\n" * 5, "a reply to no request"),
        (b"*1000000000\r\n", "more than 1000 elements"),
        (b"$1000000000\r\n", "more than 10000 bytes"),
        (b"+" + b"x" * 100_000, "more than 16384 bytes"),
        (b"", "the engine has closed the connection"),
    ],
)
async def test_hostile_bytes_end_the_link_with_one_line(data: bytes, reason: str) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(ADMITTED)
            await stream.receive_some()  # the first ping
            await stream.send_all(data)

    limits = LinkLimits(reply=ReplyLimits(bytes=10_000, elements=1000))
    async with peer(handle) as port:
        link = await open_link(LOOPBACK, port, Login(), timeouts=IMPATIENT, limits=limits)
        with trio.fail_after(30):
            assert reason in await link.run()


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_torn_bytes_are_put_together(engine: Engine, size: int) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        async def pass_on(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):  # the link has closed meanwhile
                while data := await source.receive_some(size):
                    await sink.send_all(data)
                await sink.send_eof()

        below = await trio.open_tcp_stream(LOOPBACK, engine.port)
        async with stream, below, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, stream, below)
            nursery.start_soon(pass_on, below, stream)

    # A busy machine needs more than the default for some thousand steps, one for each byte.
    patient = EngineTimeouts(answer=WAIT_SECONDS, silence=WAIT_SECONDS)
    async with peer(handle) as port, linked(engine, port=port, timeouts=patient) as link:
        await link.subscribe("a").reply()
        requests = [link.request("ECHO", b"\r\n" * number) for number in range(20)]
        published = link.request("PUBLISH", "a", b"$3\r\n")
        assert [await request.reply() for request in requests] == [b"\r\n" * n for n in range(20)]
        assert await published.reply() == 1
        assert await link.receive() == Message(b"a", b"$3\r\n")


# --- coredis as the oracle ------------------------------------------------------------------------

LUA = st.recursive(
    st.integers(-(2**53), 2**53) | st.binary(max_size=20) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


def lua(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case bytes():
            return '"' + "".join(f"\\{byte:03}" for byte in value) + '"'
    return "{" + ",".join(map(lua, value)) + "}"


async def test_values_written_by_one_client_are_read_by_the_other(engine: Engine) -> None:
    oracle = coredis.Redis(host=LOOPBACK, port=engine.port)
    async with oracle, linked(engine) as link:

        async def check(key: bytes, value: bytes, number: int) -> None:
            await link.call("SET", b"k" + key, value)
            assert await oracle.get(b"k" + key) == value
            await oracle.set(b"k" + key, value + b"!")
            assert await link.call("GET", b"k" + key) == value + b"!"
            await link.call("DEL", "h", "s")
            await link.call("HSET", "h", key, value, "number", number)
            assert await oracle.hgetall("h") == await link.call("HGETALL", "h")
            await link.call("XADD", "s", "1-0", key, value, "number", number)
            [entry] = await oracle.xrange("s")
            [[identifier, fields]] = await link.call("XRANGE", "s", "-", "+")
            assert identifier == entry.identifier
            assert dict(zip(fields[::2], fields[1::2], strict=True)) == dict(entry.field_values)

        await for_examples(
            check, st.binary(max_size=20), st.binary(max_size=300), st.integers(-(2**63), 2**63 - 1)
        )


async def test_replies_are_those_of_another_client(engine: Engine) -> None:
    oracle = coredis.Redis(host=LOOPBACK, port=engine.port)
    async with oracle, linked(engine) as link:

        async def check(value: Any) -> None:
            script = f"redis.setresp(3) return {lua(value)}"
            assert await link.call("EVAL", script, 0) == await oracle.eval(script)

        await for_examples(check, LUA)


async def for_examples(
    check: Callable[..., Awaitable[None]], *strategies: st.SearchStrategy[Any]
) -> None:
    """Call *check* with generated values, on the connections of the test."""
    examples: list[tuple[Any, ...]] = []

    @given(st.tuples(*strategies))
    @settings(suppress_health_check=list(HealthCheck), max_examples=100)
    def collect(values: tuple[Any, ...]) -> None:
        examples.append(values)

    collect()
    for values in examples:
        await check(*values)


async def test_time_in_which_the_node_was_frozen_is_not_the_engines_silence(engine: Engine) -> None:
    """The engine's answers are not read yet when the node wakes up."""
    async with linked(engine) as link:
        request = link.request("PING")
        time.sleep(1.5)  # as a SIGSTOP: no task runs
        assert link.unanswered_seconds == 0
        assert await request.reply() == b"PONG"
        engine.freeze()
        link.request("PING")
        with trio.fail_after(WAIT_SECONDS):
            while link.unanswered_seconds < 0.5:
                await trio.sleep(0.05)
        engine.thaw()
