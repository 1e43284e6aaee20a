"""The admin socket: its protocol, its limits, and a client of it that misbehaves."""

import json
import math
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from multichat.errors import InvalidRequest
from multichat.log import Log
from multichat.net.listeners import listen_unix
from multichat.protocol.commands import ADMIN_COMMANDS
from multichat.protocol.control import (
    Code,
    ControlAnswer,
    ControlRequest,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from multichat.protocol.framing import clean
from multichat.protocol.messages import BanInfo
from multichat.server.admin_commands import AdminCommands
from multichat.server.client import MemberInfo
from multichat.server.config import LogMessages, ServerConfig
from multichat.server.control import Control, ControlLimits, open_control
from multichat.server.pace import Pace
from multichat.server.server import Server
from multichat.testing import MemoryServer, ScriptedClient, memory_server, run_on_mock_clock
from tests.support.log import LogRecorder
from tests.support.processes import WAIT_SECONDS

pytestmark = pytest.mark.unit


class Desk:
    """A server in memory, and its admin socket."""

    def __init__(
        self,
        network: MemoryServer,
        nursery: trio.Nursery,
        limits: ControlLimits,
        admin: type[AdminCommands],
    ) -> None:
        self.network, self.server = network, network.server
        log = Log("server", hides_messages=self.server.config.hides_messages)
        self.admin = admin(self.server, self.server._registry)  # as `Server` makes its own
        self.control = Control(self.admin, log, limits)
        self._nursery = nursery

    def connect(self, *, lockstep: bool = False) -> ScriptedClient:
        pair = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        ours, theirs = pair()
        self._nursery.start_soon(self.control.handle, ours)
        return ScriptedClient(theirs)

    def connect_socket(self) -> ScriptedClient:
        ours, theirs = map(trio.socket.from_stdlib_socket, socket.socketpair())
        self._nursery.start_soon(self.control.handle, trio.SocketStream(ours))
        return ScriptedClient(trio.SocketStream(theirs))

    async def run(self, command: str, arguments: str = "") -> dict[str, Any]:
        """Run a command on a connection of its own; return the answer."""
        client = self.connect()
        answer = await ask(client, command, arguments)
        await client.stream.aclose()
        return answer


async def ask(client: ScriptedClient, command: str, arguments: str = "") -> dict[str, Any]:
    await client.send(json.dumps({"command": command, "arguments": arguments}))
    answer: dict[str, Any] = json.loads(await client.line())
    return answer


@asynccontextmanager
async def open_desk(
    limits: ControlLimits | None = None,
    config: ServerConfig | None = None,
    *,
    admin: type[AdminCommands] = AdminCommands,
) -> AsyncIterator[Desk]:
    async with memory_server(config) as network, trio.open_nursery() as nursery:
        yield Desk(network, nursery, limits or ControlLimits(), admin)
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.fixture
async def desk(autojump_clock: trio.testing.MockClock) -> AsyncIterator[Desk]:
    async with open_desk() as made:
        yield made


# --- The protocol ---------------------------------------------------------------------------------


async def test_each_request_is_answered_in_order_on_one_connection(desk: Desk) -> None:
    await desk.network.join()
    client = desk.connect()
    await client.send('{"command":"rooms"}', '{"command":"kick","arguments":"1 too loud"}', "", "x")
    await client.send('{"command":"WHO"}')
    assert list(map(json.loads, await client.lines(4))) == [
        {"ok": True, "result": [{"room": "lobby", "clients": 1}]},
        {"ok": True, "lines": ["client 1 was disconnected"]},
        {
            "ok": False,
            "code": "usage",
            "error": 'that is not a request such as {"command":"who"}',
        },
        {"ok": True, "lines": ["nobody is connected"], "result": []},
    ]


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("[]", "usage", 'that is not a request such as {"command":"who"}'),
        ('{"command":7}', "usage", 'that is not a request such as {"command":"who"}'),
        ('{"arguments":"bob"}', "usage", 'that is not a request such as {"command":"who"}'),
        ("[" * 99, "usage", "that is nested too deeply: at most 32 levels"),
        ('{"command":"nope"}', "usage", "unknown command nope"),
        ('{"command":"\\u001b[2J"}', "usage", "unknown command ␛[2J"),
        ('{"command":""}', "usage", "unknown command"),
        ('{"command":"kick"}', "usage", "usage: kick WHO [REASON]"),
        ('{"command":"stats","arguments":"x"}', "usage", "usage: stats"),
        ('{"command":"kick","arguments":"7"}', "refused", "no client 7 is connected"),
        ('{"command":"ban","arguments":"bob 10x"}', "refused", "10x is not a duration; examples"),
        ('{"command":"unban","arguments":"bob"}', "refused", "there is no ban of name bob"),
        ('{"command":"account","arguments":"remove bob"}', "refused", "there is no account bob"),
    ],
)
async def test_a_request_that_cannot_be_done_is_answered_by_one_error(
    desk: Desk, line: str, code: str, error: str
) -> None:
    client = desk.connect()
    await client.send(line)
    answer = json.loads(await client.line())
    assert answer["ok"] is False
    assert answer["code"] == code
    assert answer["error"].startswith(error)
    assert (await ask(client, "bans"))["ok"]  # the connection stays


async def test_every_command_of_the_table_is_answered(desk: Desk) -> None:
    for command in sorted(ADMIN_COMMANDS, key=lambda each: each.name == "/drain"):  # it is the end
        answer = await desk.run(command.name.removeprefix("/"))
        assert answer["ok"] or answer["error"].startswith(f"usage: {command.name[1:]} "), command
    assert desk.server.shutting_down


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("60", "draining: 1 client is told to reconnect within 60 s"),
        (" 7.9s ", "draining: 1 client is told to reconnect within 8 s"),
        ("0", "the server is shutting down"),
        ("", "the server is shutting down"),  # a server alone
    ],
)
async def test_a_drain_takes_its_seconds(desk: Desk, arguments: str, answer: str) -> None:
    await desk.network.join()
    assert await desk.run("drain", arguments) == {"ok": True, "lines": [answer]}
    assert desk.server.draining is answer.startswith("draining")
    if desk.server.draining:
        again = await desk.run("drain")
        assert again["lines"][0].startswith("draining already: ")


async def test_a_drain_of_no_valid_time_does_nothing(desk: Desk) -> None:
    for arguments, code in (
        ("soon", "usage"),
        ("-1", "usage"),
        ("nan", "usage"),
        ("1 2", "usage"),
        ("5m", "usage"),
        ("999999999", "refused"),
    ):
        assert (await desk.run("drain", arguments))["code"] == code
    assert not desk.server.draining
    assert not desk.server.shutting_down


async def test_who_lists_all_rooms_of_a_client_and_its_waiting_bytes(desk: Desk) -> None:
    client = await desk.network.join()
    await client.send('/json {"name":"alice","room":"attic","rooms":{"den":{}}}')
    await wait_all_tasks_blocked()
    assert (await desk.run("who"))["result"] == [
        {
            "client": 1,
            "name": "alice",
            "room": "attic",
            "rooms": ["den", "attic"],
            "address": "",
            "waiting_bytes": 0,
            "behind": 0,
        }
    ]
    assert (await desk.run("who", "#DEN"))["result"][0]["name"] == "alice"
    assert await desk.run("who", "cellar") == {
        "ok": True,
        "lines": ["nobody is in cellar"],
        "result": [],
    }


async def test_an_announcement_reaches_every_room(desk: Desk) -> None:
    alice, bob = await desk.network.join(), await desk.network.join()
    await bob.send("/join den")
    await wait_all_tasks_blocked()
    assert await desk.run("announce", "at noon") == {"ok": True, "lines": ["sent to 2 clients"]}
    assert await alice.line() == "[Server] at noon"
    assert (await bob.lines(2))[-1] == "[Server] at noon"


async def test_a_passphrase_may_have_spaces_and_is_not_logged(log: LogRecorder) -> None:
    """On the real clock, because passphrases are hashed in a thread."""
    async with open_desk() as desk:
        answer = await desk.run("account", "add bob correct horse ")
        assert answer == {"ok": True, "lines": ["bob has an account"]}
        assert desk.server.admin is not None
        client = await desk.network.join()
        await client.send("/login bob correct horse ")
        assert "logged in" in await client.line()
    text = "\n".join(log.lines)
    assert "Operator at the admin socket: account add bob" in text
    assert "horse" not in text


async def test_commands_that_change_something_are_logged_without_the_text_of_messages(
    desk: Desk, log: LogRecorder
) -> None:
    await desk.network.join()
    for command, arguments in (
        ("who", ""),
        ("stats", ""),
        ("bans", ""),
        ("ban", "bob 10m loud\x1b"),
        ("send", "1 psst"),
        ("announce", "hear"),
        ("kick", "1"),
    ):
        assert (await desk.run(command, arguments))["ok"]
    begin = "[INFO] [server] [STATE] Operator at the admin socket: "
    logged = [line.removeprefix(begin) for line in log.lines if line.startswith(begin)]
    assert logged == ["ban bob 10m loud␛", "send 1", "announce", "kick 1"]


async def test_with_log_messages_none_the_log_has_nothing_that_people_read(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    config = ServerConfig(log_messages=LogMessages.NONE)
    async with open_desk(config=config) as desk:
        await desk.network.join()
        for command, arguments in (
            ("topic", "lobby secret"),
            ("send", "1 secret"),
            ("announce", "secret"),
            ("ban", "bob 10m secret"),
            ("ban", "name carol secret"),
            ("kick", "Client 1 secret"),
            ("kick", "1 secret"),
            ("kick", "1\tsecret"),
            ("kick", "1\u00a0secret"),
            ("send", "1\tsecret"),
            ("topic", "lobby\tsecret"),
            ("topic", "lobby\u2003secret"),
            ("ban", "bob\t10m\tsecret"),
        ):
            await desk.run(command, arguments)
    assert "secret" not in "\n".join(log.lines)
    begin = "[INFO] [server] [STATE] Operator at the admin socket: "
    assert [line.removeprefix(begin) for line in log.lines if line.startswith(begin)] == [
        "topic lobby",
        "send 1",
        "announce",
        "ban bob 10m",
        "ban name carol",
        "kick Client 1",
        "kick 1",
        "kick 1",
        "kick 1",
        "send 1",
        "topic lobby",
        "topic lobby",
        "ban bob 10m",
    ]


@pytest.mark.parametrize(
    ("arguments", "logged"),
    [
        ("horse", "account"),
        ("bob horse", "account"),
        ("addd bob horse", "account"),
        ("add bob\thorse", "account add bob"),
        ("add\u00a0bob\u00a0horse", "account add bob"),
        ("REMOVE bob horse", "account REMOVE bob"),
        ("list horse horse", "account list"),
    ],
)
async def test_a_passphrase_is_not_logged_however_the_command_is_mistyped(
    desk: Desk, log: LogRecorder, arguments: str, logged: str
) -> None:
    assert not (await desk.run("account", arguments))["ok"]
    assert log.lines[-1].endswith(f"Operator at the admin socket: {logged}")
    assert "horse" not in "\n".join(log.lines)


async def test_a_bug_in_a_command_ends_neither_the_server_nor_the_connection(
    autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    class Faulty(AdminCommands):
        def bans(self) -> list[BanInfo]:
            raise ZeroDivisionError

    async with open_desk(admin=Faulty) as desk:
        client = desk.connect()
        answer = await ask(client, "bans")
        assert answer["code"] == "failed"
        assert answer["error"] == "internal error; see the server's log"
        assert (await ask(client, "who"))["ok"]
    assert any("an operator command crashed: ZeroDivisionError(" in line for line in log.lines)


async def test_a_failed_reload_has_a_line_for_each_part(desk: Desk) -> None:
    def fail() -> str:
        raise ValueError("it is\nwrong")

    applied: list[str] = []
    desk.server.reloading.add("one", lambda: "new", applied.append)
    assert await desk.run("reload") == {"ok": True, "lines": ["Reloaded: one"]}
    desk.server.reloading.add("two", fail, applied.append)
    lines = ["Could not reload the two (unchanged): it is␊wrong", "Reloaded: one"]
    assert await desk.run("reload") == {
        "ok": False,
        "code": "refused",
        "lines": lines,
        "error": "; ".join(lines),
    }
    assert applied == ["new", "new"]


WORDS = st.sampled_from(
    ["1", "2", "bob", "name", "Client", "lobby", "10m", "forever", "203.0.113.0/24", "::/0", "0"]
)
COMMANDS = st.sampled_from(
    [each.name.removeprefix("/") for each in ADMIN_COMMANDS if each.name != "/account"]
)
ARGUMENTS = st.lists(WORDS | st.text(), max_size=4).map(" ".join)


@given(st.lists(st.tuples(COMMANDS, ARGUMENTS), max_size=8))
def test_no_arguments_of_any_command_are_a_bug(requests: list[tuple[str, str]]) -> None:
    async def run() -> None:
        async with open_desk() as desk:
            await desk.network.join()
            bob = await desk.network.join()
            await bob.send("/name bob")
            for command, arguments in requests:
                answer = await desk.run(command, arguments)
                assert answer["ok"] or answer["code"] in ("usage", "refused"), answer
                assert "\n" not in answer.get("error", "")

    run_on_mock_clock(run)


@given(st.text(), st.text())
def test_requests_survive_the_wire_with_their_text_cleaned(command: str, arguments: str) -> None:
    try:
        line = encode_request(ControlRequest(command, arguments)).decode()
    except UnicodeError:
        assert any("\ud800" <= each <= "\udfff" for each in command + arguments)
        return
    assert line.count("\n") == 1
    decoded = decode_request(line[:-1])
    assert (decoded.command, decoded.arguments) == (clean(command), clean(arguments))


@given(st.text())
def test_a_line_is_a_request_and_an_answer_or_an_error_of_the_protocol(line: str) -> None:
    for decode in (decode_request, decode_answer):
        try:
            decode(line)
        except InvalidRequest as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_an_answer_of_a_later_version_is_understood() -> None:
    answer = decode_answer('{"ok":true,"lines":["a"],"result":{"new":1},"warning":"?"}')
    assert answer == ControlAnswer(ok=True, lines=("a",), result={"new": 1})
    refused = ControlAnswer(ok=False, code=Code.BUSY, error="later")
    assert decode_answer(encode_answer(refused).decode()[:-1]) == refused


# --- Its limits -----------------------------------------------------------------------------------


async def test_a_line_that_is_too_long_is_an_error_and_costs_no_more_memory(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_desk(ControlLimits(max_line_bytes=100)) as desk:
        client = desk.connect()
        for _ in range(50):
            await client.stream.send_all(b"x" * 1000)
        await client.send("", '{"command":"bans"}')
        error, answer = map(json.loads, await client.lines(2))
        assert (error["code"], answer["ok"]) == ("usage", True)
        assert error["error"] == "the line was longer than 100 bytes and was dropped"


async def test_a_connection_without_a_whole_request_is_closed_after_the_idle_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_desk(ControlLimits(idle_seconds=60)) as desk:
        client = desk.connect()
        assert (await ask(client, "bans"))["ok"]
        started = trio.current_time()
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drip, client)
                assert await client.rest() == []
                nursery.cancel_scope.cancel(reason="it was closed")
        assert trio.current_time() - started == pytest.approx(60, abs=1)


async def _drip(client: ScriptedClient) -> None:
    """Send a byte of a request every ten seconds."""
    while True:
        await client.stream.send_all(b" ")
        await trio.sleep(10)


async def test_a_client_that_takes_no_answer_is_disconnected(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_desk(ControlLimits(send_seconds=10, max_connections=1)) as desk:
        silent = desk.connect(lockstep=True)
        with trio.fail_after(11), pytest.raises(trio.BrokenResourceError):
            await silent.send('{"command":"help"}')
            await trio.sleep(10.5)
            await silent.send('{"command":"help"}')
        assert (await desk.run("bans"))["ok"]


async def test_a_connection_above_the_limit_closes_the_one_that_was_idle_longest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_desk(ControlLimits(max_connections=3)) as desk:
        clients = []
        for _ in range(3):
            clients.append(desk.connect())
            await wait_all_tasks_blocked()
        assert (await ask(clients[0], "bans"))["ok"]
        await wait_all_tasks_blocked()
        for _ in range(5):
            assert (await desk.run("bans"))["ok"]
            await wait_all_tasks_blocked()
        assert await clients[1].rest() == []
        for client in (clients[0], clients[2]):
            assert (await ask(client, "bans"))["ok"]


class SlowFile:
    """A part of a server whose reload waits until it may proceed."""

    def __init__(self, server: Server) -> None:
        self.proceed = threading.Event()
        server.reloading.add("slow file", self._read, lambda _: None)

    def _read(self) -> None:
        assert self.proceed.wait(WAIT_SECONDS)


async def test_connections_that_wait_for_an_answer_are_not_closed_for_another() -> None:
    """On the real clock, because a thread waits."""
    async with open_desk(ControlLimits(max_connections=2, share=1.0)) as desk:
        file = SlowFile(desk.server)
        busy = [desk.connect(), desk.connect()]
        for client in busy:
            await client.send('{"command":"reload"}')
        await wait_all_tasks_blocked()
        client = desk.connect()
        answer = json.loads(await client.line())
        assert (answer["ok"], answer["code"]) == (False, "busy")
        assert await client.rest() == []
        file.proceed.set()
        for client in busy:
            assert json.loads(await client.line())["ok"]


async def test_a_command_that_waits_gives_its_place_up_if_its_client_has_left() -> None:
    """With all of the time, so that no connection waits for its pace on the real clock."""
    async with open_desk(ControlLimits(max_connections=2, share=1.0)) as desk:
        file = SlowFile(desk.server)
        gone, patient = desk.connect_socket(), desk.connect_socket()
        for client in (gone, patient):
            await client.send('{"command":"reload"}')
        await patient.finish()  # it reads on
        await wait_all_tasks_blocked()
        assert not (await desk.run("bans"))["ok"]
        await gone.stream.aclose()
        await wait_all_tasks_blocked()
        for _ in range(3):
            assert (await desk.run("bans"))["ok"]
            await wait_all_tasks_blocked()
        file.proceed.set()
        async with patient.stream:
            [answer] = await patient.rest()
            assert json.loads(answer)["ok"]


async def test_a_flood_of_requests_gets_its_share_of_the_time_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each request takes 10 ms of the event loop here: eight connections together get a quarter."""

    class Slow(AdminCommands):
        passed = 0.0

        def clients(self, room: str = "") -> list[MemberInfo]:
            self.passed += 0.01
            return super().clients(room)

    async with open_desk(ControlLimits(share=0.25), admin=Slow) as desk:
        slow = desk.admin
        assert isinstance(slow, Slow)

        def clock() -> float:
            return trio.current_time() + slow.passed

        desk.control = Control(slow, Log("server"), ControlLimits(share=0.25), clock=clock)
        started = clock()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(partial(_flood, desk.connect(), requests=10))
        # The last one waits for nothing.
        assert clock() - started == pytest.approx(80 * 0.04, abs=0.05)


class SlowPace(Pace):
    """Each block that it measures takes 10 ms of the event loop; *passed* is the sum."""

    def __init__(self, share: float) -> None:
        super().__init__(share, lambda: trio.current_time() + self.passed)
        self.passed = 0.0

    @contextmanager
    def measure(self) -> Iterator[None]:
        with super().measure():
            self.passed += 0.01
            yield


# The second has no answer before its end: what is measured is the decoding of each read.
@pytest.mark.parametrize("noise", [b"\n" * 8192, b"x" * 8192, b"\xc3\xa9" * 4095 + b"\r\n"])
async def test_invalid_input_gets_its_share_of_the_time_and_no_more(
    autojump_clock: trio.testing.MockClock, noise: bytes
) -> None:
    limits = ControlLimits(share=0.25, max_line_bytes=1000, idle_seconds=math.inf)
    async with open_desk(limits) as desk:
        desk.control.pace = pace = SlowPace(limits.share)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(_make_noise, desk.connect(), noise * 5)
            with trio.fail_after(60):
                while pace.passed < 8 * 5 * 0.01:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel(reason="that was long enough")
        assert trio.current_time() >= 2.9 * (pace.passed - 0.01)  # the time left for others


async def _make_noise(client: ScriptedClient, noise: bytes) -> None:
    await client.stream.send_all(noise)
    with suppress(trio.BrokenResourceError):
        while await client.stream.receive_some(65536):
            pass


@pytest.mark.process
async def test_a_flood_of_connections_is_accepted_at_a_pace(
    autojump_clock: trio.testing.MockClock, short_path: Path
) -> None:
    """Those that have left before they were accepted are dropped, and the next one is served."""
    path = short_path / "admin"
    async with memory_server() as network:
        listener = await listen_unix(path, 0o600)
        async with open_control([listener], network.server.admin, Log("server")):
            for _ in range(100):
                await (await trio.open_unix_socket(str(path))).aclose()
            started = trio.current_time()
            client = ScriptedClient(await trio.open_unix_socket(str(path)))
            assert (await ask(client, "rooms"))["ok"]
            assert 0.02 < trio.current_time() - started < 1
            await client.stream.aclose()


async def _flood(client: ScriptedClient, requests: int) -> None:
    await client.send(*['{"command":"who"}'] * requests)
    await client.lines(requests)


async def test_the_last_request_may_be_without_its_line_end(desk: Desk) -> None:
    for sent, codes in (
        ('{"command":"bans"}', [None]),
        ('{"command":"bans"}\n{"command":"kick"', [None, "usage"]),
        ("", []),
    ):
        client = desk.connect()
        await client.stream.send_all(sent.encode())
        await client.finish()
        answers = [json.loads(line) for line in await client.rest()]
        assert [answer.get("code") for answer in answers] == codes


async def test_clients_of_the_admin_socket_may_leave_at_any_time(
    desk: Desk, log: LogRecorder
) -> None:
    for sent in (b"", b"{", b'{"command":"who"}', b'{"command":"who"}\n{"comm'):
        for lockstep in (False, True):
            client = desk.connect(lockstep=lockstep)
            with trio.move_on_after(1):
                await client.stream.send_all(sent)
            await client.stream.aclose()
            await wait_all_tasks_blocked()
    assert (await desk.run("bans"))["ok"]
    assert not [line for line in log.lines if "crashed" in line]
