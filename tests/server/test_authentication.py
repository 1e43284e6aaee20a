"""`authenticate` and `on_join`: a program's own admission and join callbacks."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from multichat import (
    AdmissionRequest,
    Authenticate,
    Chat,
    MemberInfo,
    Refused,
    Server,
    ServerConfig,
    connect,
    serve,
)
from multichat.server.config import Filtered, Joining, Renaming
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, Command
from tests.support.sockets import open_client

pytestmark = pytest.mark.unit

ASKED = "[Server] a password is required: /auth PASSWORD"
ACCEPTED = "[Server] password accepted"
WRONG = "[Server] wrong password"
NOT_ADMITTED = "[Server] goodbye: you are not admitted"
TOKENS = {"a-token": "alice", "b-token": "bob"}


async def by_token(request: AdmissionRequest) -> str | None:
    await trio.lowlevel.checkpoint()
    return TOKENS.get(request.password or "")


@asynccontextmanager
async def serving(authenticate: Authenticate, **settings: Any) -> AsyncGenerator[Server]:
    """Run a server on a real socket while the block runs."""
    config = ServerConfig(**settings)
    with trio.fail_after(WAIT_SECONDS):
        async with trio.open_nursery() as nursery:
            run = partial(serve, 0, host=LOOPBACK, config=config, authenticate=authenticate)
            server: Server = await nursery.start(run)
            yield server
            nursery.cancel_scope.cancel()


@pytest.mark.process
async def test_a_password_decides_under_which_name_a_client_is_admitted() -> None:
    async with (
        serving(by_token) as server,
        connect(LOOPBACK, server.port, password="a-token") as alice,
    ):
        client = await open_client(server.port)
        assert await client.line() == ASKED
        await client.send("/auth wrong")
        assert await client.line() == "[Server] wrong password"
        await client.send("/auth b-token", "hello", "/name mallory", "/name BOB")
        assert await client.lines(3) == [
            "[Server] password accepted",
            "[Server] your name on this server is 'bob'",
            "[Server] bob is now BOB",
        ]
        assert alice.welcome is not None
        assert alice.welcome.name == "alice"
        assert [member.name for member in server.members] == ["alice", "BOB"]
        await client.stream.aclose()


@pytest.mark.process
async def test_a_client_is_refused_at_once(log: LogRecorder) -> None:
    async def nobody(_: AdmissionRequest) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async with serving(nobody) as server:
        client = await open_client(server.port)
        assert await client.rest() == [NOT_ADMITTED]
        await client.stream.aclose()
        with pytest.raises(Refused, match="you are not admitted"):
            async with connect(LOOPBACK, server.port, name="alice"):
                pass
        assert server.statistics().refused == 2
    [line] = {line.partition("Refused ")[2].partition(": ")[2] for line in log.lines} - {""}
    assert line == "not authenticated"


@pytest.mark.process
async def test_a_request_contains_all_known_properties() -> None:
    requests: list[AdmissionRequest] = []

    async def note(request: AdmissionRequest) -> bool | None:
        await trio.lowlevel.checkpoint()
        requests.append(request)
        return True if request.password else None

    async with (
        serving(note) as server,
        connect(LOOPBACK, server.port, name="alice", password="secret"),
    ):
        pass
    first, second = requests
    host, _, port = first.address.rpartition(":")
    assert first == AdmissionRequest(address=f"{host}:{port}", encrypted=False)
    assert host == LOOPBACK
    assert second == AdmissionRequest(
        address=first.address, encrypted=False, name="alice", password="secret"
    )
    assert "secret" not in repr(second)


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "text"), [("connect", ()), ("connect --no-reconnect", ()), ("send", ("hello",))]
)
async def test_a_request_contains_the_name_that_a_command_asks_for(
    command: str, text: tuple[str, ...], tmp_path: Path
) -> None:
    requests: list[AdmissionRequest] = []
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)

    async def note(request: AdmissionRequest) -> bool | None:
        await trio.lowlevel.checkpoint()
        requests.append(request)
        return True if request.password else None

    async with serving(note) as server:
        options = ("--name", "alice", "--password-file", str(secret))
        argv = [*command.split(), *options, LOOPBACK, str(server.port), *text]
        async with Command(tmp_path, MULTICHAT, *argv) as client:
            client.end_input()
            assert await client.wait() == 0, client.err
    assert [(each.name, each.password) for each in requests] == [
        (None, None),
        ("alice", "secret"),
    ]


async def raises(_: AdmissionRequest) -> bool:
    await trio.lowlevel.checkpoint()
    raise LookupError("secret")


async def hangs(_: AdmissionRequest) -> bool:
    await trio.sleep_forever()


async def returns_nonsense(_: AdmissionRequest) -> Any:
    await trio.lowlevel.checkpoint()
    return 7


async def returns_no_name(_: AdmissionRequest) -> str:
    await trio.lowlevel.checkpoint()
    return "[Server]"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raises, "authenticate raised LookupError"),
        (hangs, "authenticate took more than 10 s"),
        (returns_nonsense, "authenticate returned a int"),
        (returns_no_name, "authenticate returned an invalid name"),
    ],
)
async def test_a_function_that_fails_refuses_the_client_with_one_log_line(
    function: Authenticate, reason: str, log: LogRecorder, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server(authenticate=function) as network:
        client = ScriptedClient(network.connect())
        assert await client.rest() == [NOT_ADMITTED]
        again = ScriptedClient(network.connect())
        assert await again.rest() == [NOT_ADMITTED]
    refused = f"[INFO] [server] [STATE] Refused a client: {reason}"
    assert [line for line in log.lines if "[ERROR]" not in line] == [refused] * 2
    traced = [line for line in log.lines if "[ERROR]" in line]
    if function is raises:  # where it did, once, and not what, which may hold a password
        assert traced[0] == "[ERROR] [server] [STATE] authenticate raised LookupError, in"
        assert traced[-2].endswith(", in raises")
        assert len([line for line in traced if ", in raises" in line]) == 1
    else:
        assert not traced


async def test_a_slow_decision_delays_no_other_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    calls = 0

    async def first_is_slow(_: AdmissionRequest) -> bool:
        nonlocal calls
        calls += 1
        await trio.sleep(5 if calls == 1 else 0)
        return True

    async with memory_server(authenticate=first_is_slow) as network:
        slow = await network.join()
        quick, other = await network.join(), await network.join()
        started = trio.current_time()
        await quick.send("hello")
        assert await other.line() == "[Client 1] hello"
        assert trio.current_time() == started
        await trio.sleep(5)
        await slow.send("hello")
        assert await other.line() == "[Client 3] hello"


async def test_with_a_fixed_password_the_function_is_called_once_it_was_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    passwords: list[str | None] = []

    async def only_once(request: AdmissionRequest) -> str | None:
        await trio.lowlevel.checkpoint()
        passwords.append(request.password)
        return "alice" if len(passwords) == 1 else None

    config = ServerConfig(password="right")
    async with memory_server(config, authenticate=only_once) as network:
        client = ScriptedClient(network.connect())
        await client.send("/auth wrong", "/auth right", "/who")
        assert (await client.lines(5))[3:] == ["[Server] 1 in lobby:", "[Server] 1 alice"]
        other = ScriptedClient(network.connect())
        await other.send("/auth right")
        assert await other.rest() == [ASKED, NOT_ADMITTED]
    assert passwords == ["right", "right"]


async def test_a_client_whose_name_is_taken_gets_it_with_its_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def always_alice(_: AdmissionRequest) -> str:
        await trio.lowlevel.checkpoint()
        return "alice"

    async with memory_server(authenticate=always_alice) as network:
        lost = ScriptedClient(network.connect())
        await lost.send('/json {"type":"hello","protocol":1}')
        welcome = msgspec.json.decode(await lost.line())
        assert (welcome["client"], welcome["name"]) == (1, "alice")
        other = await network.join()
        assert await other.line() == "[Server] the name 'alice' is taken"
        again = ScriptedClient(network.connect())
        await again.send(f'/json {{"type":"hello","protocol":1,"session":"{welcome["session"]}"}}')
        assert await again.line() == "[Server] the name 'alice' is taken"
        welcome = msgspec.json.decode(await again.line())
        assert (welcome["client"], welcome["name"], welcome["resumed"]) == (1, "alice", True)


async def test_a_session_of_another_name_cannot_be_resumed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(authenticate=by_token) as network:
        alice = ScriptedClient(network.connect())
        await alice.send("/auth a-token", '/json {"type":"hello","protocol":1}')
        session = msgspec.json.decode((await alice.lines(3))[-1])["session"]
        bob = ScriptedClient(network.connect())
        hello = f'/json {{"type":"hello","protocol":1,"session":"{session}"}}'
        await bob.send("/auth b-token", hello)
        welcome = msgspec.json.decode((await bob.lines(3))[-1])
        assert (welcome["name"], welcome["resumed"]) == ("bob", False)
        assert welcome["session"] != session


def hello(**fields: object) -> str:
    return f"/json {json.dumps({'type': 'hello', 'protocol': 1, **fields})}"


async def session_of(client: ScriptedClient) -> str:
    """Return the token in the next welcome."""
    while '"welcome"' not in (line := await client.line()):
        pass
    return str(json.loads(line)["session"])


@asynccontextmanager
async def after_a_change_of_the_password() -> AsyncIterator[
    tuple[MemoryServer, ScriptedClient, str]
]:
    """A server, a client that was admitted with its former password, and the client's session."""
    async with memory_server(ServerConfig(password="old")) as network:
        client = ScriptedClient(network.connect())
        await client.send("/auth old", hello(name="alice"))
        session = await session_of(client)
        network.server.settings.change_password("new")
        yield network, client, session


async def test_a_new_password_does_not_lock_out_clients_with_a_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with after_a_change_of_the_password() as (network, client, session):
        await client.send('{"type":"say","text":"still here","nonce":1}')
        while '"accepted"' not in await client.line():  # connected clients stay
            pass
        await trio.aclose_forcefully(client.stream)
        # As our clients do: the hello, and when the password is asked for, both.
        again = ScriptedClient(network.connect())
        await again.send(hello(session=session))
        assert await again.lines(2) == [ASKED, ASKED]
        await again.send("/auth old", hello(session=session))
        assert await again.line() == ACCEPTED
        assert json.loads(await again.line())["resumed"] is True
        # The token is the proof, not the old password.
        for token in ("", "f" * 32, session[:-1]):
            other = ScriptedClient(network.connect())
            await other.send(hello(session=token), "/auth old")
            assert (await other.lines(3))[2] == WRONG


async def test_a_session_that_was_kicked_needs_the_new_password(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with after_a_change_of_the_password() as (network, client, session):
        network.server.admin.kick("alice")
        await client.rest()
        again = ScriptedClient(network.connect())
        await again.send(hello(session=session), "/auth old")
        assert (await again.lines(3))[2] == WRONG


async def test_a_session_does_not_replace_the_decision_of_the_program(
    autojump_clock: trio.testing.MockClock,
) -> None:
    admits = True

    async def authenticate(request: AdmissionRequest) -> bool | None:
        await trio.lowlevel.checkpoint()
        return None if request.password is None else admits

    async with memory_server(authenticate=authenticate) as network:
        client = ScriptedClient(network.connect())
        await client.send("/auth anything", hello(name="alice"))
        session = await session_of(client)
        await trio.aclose_forcefully(client.stream)
        admits = False
        again = ScriptedClient(network.connect())
        await again.send(hello(session=session), "/auth anything")
        assert await again.rest() == [ASKED, ASKED, NOT_ADMITTED]


async def test_a_bot_of_the_server_needs_no_admission() -> None:
    async def stay(_: Chat) -> None:
        await trio.sleep_forever()

    async with memory_server(ServerConfig(password="x"), authenticate=by_token) as network:
        await network.server.start_bot(stay, name="robot")
        assert [member.name for member in network.server.members] == ["robot"]


# --- Joins ----------------------------------------------------------------------------------------


async def test_on_join_gets_the_client_and_its_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    joined: list[tuple[int, str, str]] = []

    async def note(member: MemberInfo) -> None:
        await trio.lowlevel.checkpoint()
        joined.append((member.client, member.name, member.room))

    async with memory_server(on_join=note) as network, network.chat(name="alice", room="kitchen"):
        text = await network.join()
        gone = await network.join()
        await gone.send("/quit")
        await trio.sleep(1)
        assert sorted(joined) == [(1, "alice", "kitchen"), (2, "Client 2", "lobby")]
        await text.send("/join attic")
        await trio.sleep(1)
        assert joined[2:] == [(2, "Client 2", "attic")]


async def test_a_resumed_session_is_not_a_join(autojump_clock: trio.testing.MockClock) -> None:
    joined: list[int] = []

    async def note(member: MemberInfo) -> None:
        await trio.lowlevel.checkpoint()
        joined.append(member.client)

    async with memory_server(on_join=note) as network:
        lost = ScriptedClient(network.connect())
        await lost.send('/json {"type":"hello","protocol":1}')
        session = msgspec.json.decode(await lost.line())["session"]
        await trio.sleep(1)
        again = ScriptedClient(network.connect())
        await again.send(f'/json {{"type":"hello","protocol":1,"session":"{session}"}}')
        assert msgspec.json.decode(await again.line())["resumed"]
        await trio.sleep(1)
    assert joined == [1]


async def test_a_join_function_that_fails_or_hangs_delays_no_client(
    log: LogRecorder, autojump_clock: trio.testing.MockClock
) -> None:
    async def fail(member: MemberInfo) -> None:
        if member.client == 1:
            raise LookupError("nothing there")
        await trio.sleep_forever()

    async with memory_server(on_join=fail) as network:
        first, second = await network.join(), await network.join()
        await trio.sleep(1)
        await first.send("hello")
        assert await second.line() == "[Client 1] hello"
    assert "[ERROR] [server] [STATE] on_join raised LookupError" in log.lines
    assert "[ERROR] [server] [STATE] LookupError: nothing there" in log.lines
    assert any(line.endswith(", in fail") for line in log.lines)


@pytest.mark.process
async def test_on_join_can_greet_a_client() -> None:
    """On real sockets."""

    async def greet(member: MemberInfo) -> None:
        await server.tell(member.client, f"welcome to {member.room}, {member.name}")

    server = Server(on_join=greet)
    with trio.fail_after(WAIT_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(server.run, 0, host=LOOPBACK))
            async with connect(LOOPBACK, server.port, name="alice") as chat:
                event = await anext(aiter(chat))
                assert getattr(event, "text", "") == "welcome to lobby, alice"
            nursery.cancel_scope.cancel()


# --- Filters of joins and renames -----------------------------------------------------------------


async def rules(item: Filtered) -> Filtered | None:
    await trio.lowlevel.checkpoint()
    match item:
        case Joining(text="secret"):
            return None
        case Renaming(text=text) if text.startswith("boss"):
            return msgspec.structs.replace(item, text=f"not-{text}")
        case Renaming(text="carol"):
            return None
    return item


async def test_filters_change_and_reject_joins_and_renames(
    autojump_clock: trio.testing.MockClock,
) -> None:
    config = ServerConfig(filters=(rules,), filter_joins=True)
    async with memory_server(config) as network:
        client = await network.join()
        await client.send("/name boss7", "/name carol", "/join secret", "/join open")
        assert await client.lines(4) == [
            "[Server] Client 1 is now not-boss7",
            "[Server] this was rejected by the server",
            "[Server] this was rejected by the server",
            "[Server] you are in open; nobody else is here",
        ]


async def test_the_name_and_the_rooms_of_a_hello_go_through_the_filters(
    autojump_clock: trio.testing.MockClock,
) -> None:
    config = ServerConfig(filters=(rules,), filter_joins=True)
    async with memory_server(config) as network:
        client = ScriptedClient(network.connect())
        hello = '{"type":"hello","protocol":1,"name":"boss","room":"secret"}'
        await client.send(f"/json {hello}", '{"type":"say","text":"a secret","nonce":1}')
        welcome, room, said = map(msgspec.json.decode, await client.lines(3))
        assert (welcome["name"], welcome["room"]) == ("not-boss", "lobby")
        assert room["code"] == "rejected"
        assert said["code"] == "not-in-room"


async def test_filters_get_joins_and_renames_only_if_configured(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(ServerConfig(filters=(rules,))) as network:
        client = await network.join()
        await client.send("/name boss7")
        assert await client.line() == "[Server] Client 1 is now boss7"
