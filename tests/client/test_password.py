"""The password on the client's side: the library, and every command that sends one."""

import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import multichat
from multichat import (
    Notice,
    Refused,
    Server,
    ServerConfig,
    ServerTimeouts,
)
from multichat.cli.json_pipe import JsonPipe
from multichat.cli.process import read_password_file
from multichat.cli.send import send
from multichat.client.connect import Endpoint
from multichat.client.options import ChatOptions
from multichat.client.timeouts import DEFAULT_TIMEOUTS, ClientTimeouts
from multichat.errors import BadPasswordFile
from multichat.protocol.json_codec import JSON
from multichat.protocol.text_codec import TEXT
from multichat.testing import MemoryServer, ScriptedClient, memory_server
from tests.support.clients import open_line_chat, type_lines
from tests.support.log import LogRecorder
from tests.support.processes import (
    BIN,
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    program,
)

pytestmark = pytest.mark.unit

SECRET = "pässwörd of theirs"
WRONG = "mellon, friend"
ASKED = "[Server] a password is required: /auth PASSWORD"
WELCOME = (
    '{"type":"welcome","protocol":1,"client":7,"name":"Client 7","room":"lobby","members":1,'
    '"limits":{"line":65536,"name":32},"last":null,"server":"scripted","resumed":false}'
)
REQUIRES = "the server requires a password"


# --- The library ---------------------------------------------------------------------------------


@asynccontextmanager
async def asking() -> AsyncIterator[MemoryServer]:
    async with memory_server(ServerConfig(password=SECRET)) as network:
        yield network


async def test_the_right_password_is_accepted(autojump_clock: MockClock) -> None:
    async with asking() as network:
        a = open_line_chat(network.connect(), password=SECRET, name="alice", room="den")
        b = open_line_chat(network.connect(), password=SECRET, room="den", plain=True)
        async with a as alice, b as bob:
            assert trio.current_time() == 0  # neither waited for anything
            assert (alice.codec, alice.name, alice.room) == (JSON, "alice", "den")
            assert not alice.fell_back
            await bob.send("one", "two")
            received = [TEXT.format(await anext(alice)) for _ in range(3)]
            assert received == ["[Server] Client 2 joined", "[Client 2] one", "[Client 2] two"]
            await alice.send("three")
            while TEXT.format(await anext(bob)) != "[alice] three":
                pass  # in plain text the server's lines about the password are events, too


@pytest.mark.parametrize("plain", [False, True])
async def test_a_wrong_password_is_refused(plain: bool, autojump_clock: MockClock) -> None:
    async with asking() as network:
        with pytest.raises(Refused, match=r"^wrong password$") as refused:
            async with open_line_chat(network.connect(), password=WRONG, plain=plain):
                pytest.fail("it came in")
        assert refused.value.code == "wrong-password"
        assert WRONG not in repr(refused.value)
        await trio.testing.wait_all_tasks_blocked()
        assert network.server.members == []


async def test_the_error_of_a_client_without_a_password_says_that_one_is_required(
    autojump_clock: MockClock,
) -> None:
    async with asking() as network:
        with pytest.raises(Refused) as refused:
            async with open_line_chat(network.connect()):
                pytest.fail("it came in")
        assert (refused.value.code, str(refused.value)) == ("password-required", REQUIRES)
        assert trio.current_time() == 0


async def test_the_password_may_be_typed_in_plain_text(autojump_clock: MockClock) -> None:
    async with asking() as network, open_line_chat(network.connect(), plain=True) as chat:
        assert await anext(chat) == Notice("a password is required: /auth PASSWORD")
        await type_lines(chat, f"/auth {WRONG}")
        assert await anext(chat) == Notice("wrong password")
        await type_lines(chat, f"/auth {SECRET}\n/who")
        assert await anext(chat) == Notice("password accepted")
        assert await anext(chat) == Notice("1 in lobby:")


async def test_name_and_room_are_requested_once_the_typed_password_is_accepted(
    autojump_clock: MockClock,
) -> None:
    async with (
        asking() as network,
        open_line_chat(network.connect(), plain=True, name="alice", room="den") as chat,
    ):
        await trio.testing.wait_all_tasks_blocked()
        await type_lines(chat, f"/auth {SECRET}")
        await trio.testing.wait_all_tasks_blocked()
        [info] = network.server.members
        assert (info.name, info.room) == ("alice", "den")


async def test_a_password_is_sent_only_on_request(autojump_clock: MockClock) -> None:
    async with memory_server() as network:
        for plain in (False, True):
            async with open_line_chat(network.connect(), password=SECRET, plain=plain) as chat:
                await chat.send("hello")
                assert (chat.codec is TEXT) == plain
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)
    async with open_line_chat(ours, password=SECRET, plain=True) as chat:
        assert trio.current_time() >= DEFAULT_TIMEOUTS.password_request  # the server asks for none
        await chat.send("hello")
        assert await server.line() == "hello"
        await theirs.aclose()
        with pytest.raises(multichat.ConnectionLost):
            await anext(chat)


async def test_a_delay_by_wrong_passwords_of_others_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    """A server makes all clients wait from an address that has sent wrong ones."""
    ours, theirs = trio.testing.memory_stream_pair()
    server = ScriptedClient(theirs)

    async def answer() -> None:
        await server.send(ASKED)
        await server.line()
        assert await server.line() == f"/auth {SECRET}"
        await server.send(ASKED)  # for the hello
        await trio.sleep(DEFAULT_TIMEOUTS.password - 1)
        await server.send("[Server] password accepted", WELCOME)
        assert (await server.line()).startswith("/json")
        await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        async with open_line_chat(ours, password=SECRET) as chat:
            assert chat.client == 7


@pytest.mark.parametrize("plain", [False, True])
async def test_a_server_that_never_answers_the_password_times_out(
    plain: bool, autojump_clock: MockClock
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await ScriptedClient(theirs).send(ASKED)
    with pytest.raises(multichat.ConnectionLost, match="the password was not accepted in 30 s"):
        async with open_line_chat(ours, password=SECRET, plain=plain):
            pytest.fail("it came in")
    assert trio.current_time() == DEFAULT_TIMEOUTS.password


# --- The file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "password"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b" secret \n", " secret "),
        ("pässwörd\n".encode(), "pässwörd"),
        (b"secret\n\r\n", "secret"),
    ],
)
def test_a_file_holds_one_line(data: bytes, password: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(data)
    assert read_password_file(file) == password


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    file = tmp_path / "password"
    with pytest.raises(BadPasswordFile, match=r"password: no such file or directory$"):
        read_password_file(file)
    with pytest.raises(BadPasswordFile, match=r"is a directory$"):
        read_password_file(tmp_path)
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(BadPasswordFile, match=r"password: not UTF-8$"):
        read_password_file(file)
    file.write_bytes(b"two\nlines\n")
    with pytest.raises(BadPasswordFile, match=r"password: a password must be one line$"):
        read_password_file(file)


def test_the_environment_variable_is_used_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MULTICHAT_PASSWORD", raising=False)
    assert read_password_file(None) is None
    monkeypatch.setenv("MULTICHAT_PASSWORD", "")
    assert read_password_file(None) is None
    monkeypatch.setenv("MULTICHAT_PASSWORD", SECRET)
    assert read_password_file(None) == SECRET
    file = tmp_path / "password"
    file.write_text("another\n")
    assert read_password_file(file) == "another"


# --- The commands --------------------------------------------------------------------------------


@asynccontextmanager
async def running() -> AsyncIterator[Server]:
    """Run a server with a password in this process, without delays after wrong ones."""
    async with trio.open_nursery() as nursery:
        timeouts = ServerTimeouts(first_attempt_delay=0)
        config = ServerConfig(password=SECRET, timeouts=timeouts)
        yield await nursery.start(partial(multichat.serve, 0, host=LOOPBACK, config=config))
        nursery.cancel_scope.cancel(reason="the block is over")


def command(
    folder: Path, port: int, line: str, *, password: str | None = None, file: Path | None = None
) -> Command:
    """Run a command with the *password* in the environment, or in a *file*."""
    name, *options = line.split()
    argv = [str(BIN / name)] if name.startswith("multi_") else [MULTICHAT, name, *options]
    if file is not None:
        argv += ["--password-file", str(file)]
    argv += [LOOPBACK, str(port), *(["done"] if name == "send" else [])]
    if password is not None:
        argv = [program("env"), f"MULTICHAT_PASSWORD={password}", *argv]
    return Command(folder, *argv)


COMMANDS = [
    "connect",
    "connect --plain",
    "connect --json",
    "send",
    "send --plain",
    "who",
    "multi_chat_tcp_client",
]


def forgets(server: Server) -> bool:
    return SECRET not in repr(vars(server)) and SECRET not in repr(vars(server._admission))


@pytest.mark.process
async def test_every_command_reads_the_password_from_a_file_or_the_environment(
    log: LogRecorder, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n", "utf-8")

    async def come_in(line: str, secret: str | None) -> None:
        path = file if secret is None else None
        async with command(tmp_path, server.port, line, password=secret, file=path) as client:
            if line.startswith(("connect", "multi_")):
                said = '{"type":"say","text":"done"}' if "--json" in line else "done"
                await client.type(f"{said}\n")
                client.end_input()
            assert await client.wait() == 0
            assert client.err == ""
            assert SECRET not in client.out

    async with running() as server, trio.open_nursery() as nursery:
        for number, line in enumerate(COMMANDS):
            # By the file and by the variable in turn; the specification's client has no options.
            from_file = number % 2 == 0 and not line.startswith("multi_")
            nursery.start_soon(come_in, line, None if from_file else SECRET)
    said = [line for line in log.lines if line.endswith("] done")]
    assert len(said) == len(COMMANDS) - 1  # `who` sends nothing
    assert not [line for line in log.lines if SECRET in line or "Refused" in line]
    assert forgets(server)


@pytest.mark.process
async def test_a_wrong_password_is_one_line_in_every_command(
    log: LogRecorder, tmp_path: Path
) -> None:
    async def be_refused(line: str) -> None:
        async with command(tmp_path, server.port, line, password=WRONG) as client:
            assert await client.wait() == 1
            assert client.err == "multichat: wrong password\n"
            assert WRONG not in client.out

    async with running() as server, trio.open_nursery() as nursery:
        for line in COMMANDS:
            nursery.start_soon(be_refused, line)
    assert server.statistics().clients_ever == 0
    assert not [line for line in log.lines if WRONG in line]


@pytest.mark.process
async def test_a_missing_password_is_one_line_in_every_command(
    log: LogRecorder, tmp_path: Path
) -> None:
    """Except in plain text on a terminal, where it can be typed."""

    async def be_refused(line: str) -> None:
        async with command(tmp_path, server.port, line) as client:
            assert await client.wait() == 1
            assert client.err.startswith("multichat: ")
            assert client.err.count("\n") == 1
            assert "password (--password-file, MULTICHAT_PASSWORD)" in client.err

    async def type_it(line: str) -> None:
        async with command(tmp_path, server.port, line) as client:
            await client.wait_for(f"[RX] {ASKED}")
            await client.type(f"/auth {WRONG}\n")
            await client.wait_for("[RX] [Server] wrong password")
            await client.type(f"/auth {SECRET}\n")
            await client.wait_for("[RX] [Server] password accepted")
            await client.type("typed\n")
            client.end_input()
            assert await client.wait() == 0
            assert "[TX] typed" in client.out
            assert SECRET not in client.out
            assert WRONG not in client.out

    async with running() as server, trio.open_nursery() as nursery:
        for line in COMMANDS:
            if line in ("send --plain", "connect --json"):
                continue  # see below
            typed = line in ("connect --plain", "multi_chat_tcp_client")
            nursery.start_soon(type_it if typed else be_refused, line)
    assert len([line for line in log.lines if line.endswith("] typed")]) == 2


@pytest.mark.process
@pytest.mark.parametrize("text", ["done", None])
async def test_plain_text_to_a_server_with_a_password_is_not_a_success(
    text: str | None,
) -> None:
    read, write = os.pipe()
    os.write(write, b"done\n")
    os.close(write)
    async with running() as server:
        endpoint = Endpoint(host=LOOPBACK, port=server.port)
        try:
            with pytest.raises(Refused, match="password"):
                await send(endpoint, ChatOptions(plain=True), text, input_fd=read)
        finally:
            os.close(read)


@pytest.mark.process
async def test_json_lines_are_refused_at_once_by_a_server_with_a_password(
    tmp_path: Path,
) -> None:
    with (tmp_path / "out").open("wb") as out:
        async with running() as server:
            endpoint = Endpoint(host=LOOPBACK, port=server.port)
            patient = ChatOptions(timeouts=ClientTimeouts(answer=math.inf))
            pipe = JsonPipe(endpoint, patient, input_fd=None, output_fd=out.fileno())
            with trio.fail_after(WAIT_SECONDS), pytest.raises(Refused, match="password"):
                await pipe.run()


@pytest.mark.process
async def test_a_password_is_in_no_log_process_list_or_error(tmp_path: Path) -> None:
    """Neither in a log, at its most talkative, nor in a list of processes, nor in an output."""
    file = tmp_path / "password"
    file.write_text(SECRET, "utf-8")
    env = program("env")
    options = ["--host", LOOPBACK, "--log-level", "debug", "--log-file", str(tmp_path / "log")]
    server = ServerCommand(
        tmp_path, env, f"MULTICHAT_PASSWORD={SECRET}", MULTICHAT, "serve", "0", *options
    )
    async with server, AsyncExitStack() as stack:
        clients = [
            command(tmp_path, server.port, "connect --json", file=file),
            command(tmp_path, server.port, "connect", password=SECRET),
            command(tmp_path, server.port, "connect --plain"),
        ]
        for client in clients:
            await stack.enter_async_context(client)
        await server.wait_for("connected", 2)
        await clients[2].wait_for(ASKED)
        await clients[2].type(f"/auth {WRONG}\n/Auth {SECRET}\n")
        await server.wait_for("connected", 3)
        # Once more, in each protocol, when the server does not ask for it any more.
        await clients[0].type(f"/auth {SECRET}\n")
        await clients[1].type(f"/auth {SECRET}\n")
        await clients[2].type(f"/auth {SECRET}\n")
        await clients[0].wait_for('"type":"error"')
        await clients[1].wait_for("no password is required")
        await clients[2].wait_for("no password is required")
        for each in (server, *clients):
            line = Path(f"/proc/{each.process.pid}/cmdline").read_bytes().decode()
            assert "multichat" in line
            assert SECRET not in line
            assert WRONG not in line
        server.signal(signal.SIGINT)
        assert await server.wait() == 0
        clients[1].signal(signal.SIGINT)  # it would reconnect
        for client in clients:
            assert await client.wait() == 0
    written = [(tmp_path / "log").read_text("utf-8")]
    for each in (server, *clients):
        written += [each.out, each.err]
    for text in written:
        assert "pässwörd" not in text
        assert "p\\u00e4" not in text
        assert "mellon" not in text


@pytest.mark.process
async def test_an_unusable_password_file_is_one_clear_line(
    tmp_path: Path,
) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.write_bytes(b"\n")
    cases = {
        ("serve", "0", "--password-file", str(missing)): "no such file or directory",
        ("serve", "0", "--password-file", str(empty)): "it contains no password",
        ("send", "--password-file", str(missing), LOOPBACK, "1", "x"): "no such file or directory",
    }
    async with trio.open_nursery() as nursery:

        async def check(argv: tuple[str, ...], reason: str) -> None:
            async with Command(tmp_path, MULTICHAT, *argv) as mistaken:
                assert await mistaken.wait() == 1
                assert reason in " ".join(mistaken.err.split())
                assert "Traceback" not in mistaken.err

        for argv, reason in cases.items():
            nursery.start_soon(check, argv, reason)
