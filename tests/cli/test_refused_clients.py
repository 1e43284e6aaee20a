"""A client that cannot join prints one line on standard error, over TCP and over TLS.

Every way to start a client meets every way to be refused.  The servers run in the test's own
process, so that an error in one fails the test; the clients are real commands.
"""

import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
import trio.testing
import trustme

import multichat
from multichat import MultichatError, ServerConfig, ServerTimeouts
from multichat.client.connect import client_tls, connect
from multichat.net.certificates import server_tls
from multichat.server.bans import Ban, parse_target
from tests.support.log import LogRecorder
from tests.support.processes import BIN, LOOPBACK, MULTICHAT, Command, serve
from tests.support.terminals import Terminal

pytestmark = pytest.mark.process

PASSWORD = "correct horse"
REQUIRES_PASSWORD = "the server requires a password"
BAD_ROOM = "a room's name consists of letters, digits, '-', '_' and '.'"
ASKS_FOR_IT = b"a password is required"
CANNOT_CONNECT = "cannot connect to "
SPEAKS_TLS = "this server requires TLS: use multichat with --tls"

# Whether an error reaches a task that is suspended depends on timing: attempts in one process.
LIBRARY_ATTEMPTS = 4


@dataclass(frozen=True)
class Files:
    """PEM files and password files by name."""

    folder: Path

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    ca, other_ca = trustme.CA(), trustme.CA()
    ca.issue_cert(LOOPBACK).private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    other_ca.cert_pem.write_to_path(str(folder / "other-ca.pem"))
    for name, password in {"right": PASSWORD, "wrong": "incorrect"}.items():
        (folder / name).write_text(password)
        (folder / name).chmod(0o600)
    return Files(folder)


# --- Servers -------------------------------------------------------------------------------------


@asynccontextmanager
async def chat_server(files: Files, *, tls: bool) -> AsyncIterator[int]:
    """Run a server with a password; yields its port."""
    # Less than the second after which `--plain` clients give up on an answer.
    timeouts = ServerTimeouts(first_attempt_delay=0)
    config = ServerConfig(password=PASSWORD, auth_seconds=2.0, timeouts=timeouts)
    context = server_tls(Path(files["server.pem"])) if tls else None
    async with trio.open_nursery() as nursery:
        run = partial(multichat.serve, 0, host=LOOPBACK, tls=context, config=config)
        server: multichat.Server = await nursery.start(run)
        yield server.port
        nursery.cancel_scope.cancel(reason="the test is over")


Behavior: TypeAlias = Callable[[trio.abc.Stream], Awaitable[None]]


async def close_at_once(stream: trio.abc.Stream) -> None:
    """Close the connection before anything is read."""


async def close_after_one_read(stream: trio.abc.Stream) -> None:
    """Close after the first bytes: in the middle of a TLS handshake, or after the hello."""
    await stream.receive_some(4096)


async def send_half_a_server_hello(stream: trio.abc.Stream) -> None:
    """Begin the answer to a TLS handshake, and close."""
    await stream.receive_some(4096)
    await stream.send_all(b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(20))


async def close_after_the_hello(stream: trio.abc.Stream) -> None:
    """Close in order after the first bytes, which over TLS were encrypted."""
    await stream.receive_some(4096)
    await stream.aclose()


@asynccontextmanager
async def faulty_server(files: Files, behave: Behavior, *, tls: bool) -> AsyncIterator[int]:
    context = server_tls(Path(files["server.pem"]))

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await behave(trio.SSLStream(stream, context, server_side=True) if tls else stream)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, handle, 0, host=LOOPBACK)
        )
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel(reason="the test is over")


# --- Clients -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Client:
    """A way to start a client: its command, the words after the address, its standard input."""

    command: tuple[str, ...]
    words: tuple[str, ...] = ()
    input: str = ""
    program: str = MULTICHAT


SEND = Client(("send",), ("hello",))
WHO = Client(("who",))
PIPE = Client(("connect",), input="hello\n")
JSON = Client(("connect", "--json"))
COMMANDS = (SEND, WHO, PIPE, JSON)
PLAIN = Client((), input="hello\n", program=str(BIN / "multi_chat_tcp_client"))


@dataclass(frozen=True)
class Result:
    status: int | None
    errors: str
    output: str


async def run_command(folder: Path, client: Client, options: list[str], port: int) -> Result:
    argv = [*client.command, *options, LOOPBACK, str(port), *client.words]
    async with Command(folder, client.program, *argv) as command:
        if client.input:
            with suppress(BrokenPipeError):
                await command.type(client.input)
        command.end_input()
        status = await command.wait()
        return Result(status, command.err, command.out)


def check(result: Result, says: str, status: int = 1) -> None:
    """Check the exit status, and that *says* is all that was printed on standard error."""
    assert "Traceback" not in result.output + result.errors
    lines = result.errors.splitlines()
    assert (result.status, len(lines)) == (status, 1), result
    assert lines[0].startswith("multichat: ")
    assert says in lines[0]


async def run_in_library(options: list[str], port: int) -> Exception:
    """Connect as a program does, with what the command's *options* ask for."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    ca, password = given.get("--tls-ca"), given.get("--password-file")
    with pytest.raises(MultichatError) as caught:
        async with connect(
            LOOPBACK,
            port,
            tls=client_tls(Path(ca)) if ca else None,
            room=given.get("--room"),
            password=Path(password).read_text() if password else None,
        ) as chat:
            await chat.members()
    return caught.value


async def run_on_terminal(terminal: Terminal, name: str, options: list[str], port: int) -> Result:
    argv = (MULTICHAT, "connect", *options, LOOPBACK, str(port))
    await terminal.open(name, *argv, columns=200, rows=30)
    if (await terminal.wait_for_match(name, r"^status=\d+$|^(Password for )"))[1]:
        await terminal.press(name, "Enter")  # there is none
    status = await terminal.wait_for_match(name, r"^status=(\d+)$")
    screen = await terminal.screen(name)
    errors = [line for line in screen.splitlines() if line.startswith("multichat: ")]
    return Result(int(status[1]), "\n".join(errors), screen)


# --- Each refusal, for each client ---------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A reason to refuse a client, and the error that it gets: *says*."""

    says: str
    password: str = "right"
    room: str = ""
    authority: str = "ca.pem"


REFUSALS = {
    "wrong password": Refusal(password="wrong", says="wrong password"),
    "no password": Refusal(password="", says=REQUIRES_PASSWORD),
    "room": Refusal(room="two words", says=BAD_ROOM),
}
UNTRUSTED = Refusal(authority="other-ca.pem", says="its certificate is not accepted: ")


def options_of(files: Files, refusal: Refusal, *, tls: bool) -> list[str]:
    given = {
        "--tls-ca": files[refusal.authority] if tls else "",
        "--password-file": files[refusal.password] if refusal.password else "",
        "--room": refusal.room,
    }
    return [word for pair in given.items() for word in pair if pair[1]]


async def check_everywhere(
    folder: Path,
    terminal: Terminal | None,
    options: list[str],
    port: int,
    says: str,
    *clients: Client,
) -> None:
    """Start every kind of client at once; each must print one line with *says*."""

    async def check_command(client: Client) -> None:
        check(await run_command(folder, client, options, port), says)

    async def check_library() -> None:
        for _ in range(LIBRARY_ATTEMPTS):
            assert says in str(await run_in_library(options, port))

    async def check_terminal(terminal: Terminal) -> None:
        check(await run_on_terminal(terminal, "refused", options, port), says)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(check_library)
        for client in clients:
            nursery.start_soon(check_command, client)
        if terminal is not None:
            nursery.start_soon(check_terminal, terminal)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "tcp"])
@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refused_client_prints_one_line(
    name: str, tls: bool, files: Files, terminal: Terminal, log: LogRecorder, tmp_path: Path
) -> None:
    options = options_of(files, REFUSALS[name], tls=tls)
    says = REFUSALS[name].says
    # A JSON client gets the error about a refused room in JSON.
    clients = (SEND, SEND, WHO, PIPE) if name == "room" else (SEND, SEND, WHO, PIPE, JSON)
    async with chat_server(files, tls=tls) as port:
        await check_everywhere(tmp_path, terminal, options, port, says, *clients)
    assert not [line for line in log.lines if "crashed" in line]


@pytest.mark.parametrize("protocol", [(), ("--plain",)], ids=["json", "plain"])
async def test_a_delivery_over_tls_is_a_success(
    protocol: tuple[str, ...], files: Files, log: LogRecorder, tmp_path: Path
) -> None:
    """Over TLS the client has to send `/quit`, and gets a goodbye."""
    options = [*options_of(files, Refusal(says=""), tls=True), *protocol]
    async with chat_server(files, tls=True) as port:
        for client in (SEND, PIPE):
            result = await run_command(tmp_path, client, options, port)
            assert (result.status, result.errors) == (0, "")
    assert len([line for line in log.lines if line.endswith("] hello")]) == 2


async def admit_nobody(_: multichat.AdmissionRequest) -> bool:
    await trio.lowlevel.checkpoint()
    return False


@asynccontextmanager
async def closed_server(reason: str, files: Files, *, tls: bool) -> AsyncIterator[int]:
    """Run a server that admits no more clients, for this *reason*; yields its port."""
    config = ServerConfig(max_clients=1 if reason == "full" else 1024)
    authenticate = admit_nobody if reason == "refused" else None
    context = server_tls(Path(files["server.pem"])) if tls else None
    async with trio.open_nursery() as nursery:
        run = partial(
            multichat.serve, 0, host=LOOPBACK, tls=context, config=config, authenticate=authenticate
        )
        server: multichat.Server = await nursery.start(run)
        if reason == "full":
            theirs = trio.testing.memory_stream_pair()[1]
            nursery.start_soon(server.handle, theirs)
            await trio.testing.wait_all_tasks_blocked()
        if reason == "banned":
            server.ban(Ban(target=parse_target(LOOPBACK)))
        yield server.port
        nursery.cancel_scope.cancel(reason="the test is over")


NOT_ADMITTED = {
    "full": "the server is full (limit: 1)",
    "banned": "banned",
    "refused": "you are not admitted",
}


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "tcp"])
@pytest.mark.parametrize("reason", NOT_ADMITTED)
async def test_a_client_that_is_not_admitted_prints_one_line_and_sends_nothing(
    reason: str, tls: bool, files: Files, terminal: Terminal, log: LogRecorder, tmp_path: Path
) -> None:
    options = options_of(files, Refusal(password="", says=""), tls=tls)
    async with closed_server(reason, files, tls=tls) as port:
        await check_everywhere(tmp_path, terminal, options, port, NOT_ADMITTED[reason], *COMMANDS)
        piped = await run_command(tmp_path, PIPE, options, port)
        assert piped.errors.startswith(f"multichat: {NOT_ADMITTED[reason]}")
        assert "[TX]" not in piped.output
        error = await run_in_library(options, port)
        assert isinstance(error, multichat.Refused)
        assert error.code == reason
    assert not [line for line in log.lines if "crashed" in line]


@pytest.mark.parametrize("option", ["--plain", "--no-reconnect"])
async def test_a_line_after_the_goodbye_is_not_logged_as_sent(option: str, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        server: multichat.Server = await nursery.start(partial(multichat.serve, 0, host=LOOPBACK))
        argv = ("connect", option, LOOPBACK, str(server.port))
        async with Command(tmp_path, MULTICHAT, *argv) as client:
            await client.type("early\n")
            await client.wait_for("[TX] early")
            server.kick(1)
            await client.wait_for("goodbye: kicked")
            with suppress(BrokenPipeError):  # it ends soon
                await client.type("late\n")
            await client.wait()
            assert "[TX] late" not in client.out
            assert "Traceback" not in client.err
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_client_that_does_not_trust_the_certificate_prints_one_line(
    files: Files, terminal: Terminal, log: LogRecorder, tmp_path: Path
) -> None:
    options = options_of(files, UNTRUSTED, tls=True)
    async with chat_server(files, tls=True) as port:
        await check_everywhere(tmp_path, terminal, options, port, UNTRUSTED.says, *COMMANDS)
    assert not [line for line in log.lines if "crashed" in line]


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "tcp"])
async def test_a_client_whose_name_is_refused_reports_it_and_continues(
    tls: bool, files: Files, terminal: Terminal, log: LogRecorder, tmp_path: Path
) -> None:
    options = [*options_of(files, Refusal(says=""), tls=tls), "--name", "Server"]
    async with chat_server(files, tls=tls) as port:
        sent = await run_command(tmp_path, SEND, options, port)
        check(sent, "Server", status=0)
        piped = await run_command(tmp_path, PIPE, options, port)
        assert (piped.status, piped.errors) == (0, "")
        assert "[WARNING] [client] [STATE]" in piped.output
        argv = (MULTICHAT, "connect", *options, LOOPBACK, str(port))
        await terminal.open("named", *argv, columns=200)
        await terminal.wait_for("named", "you are Client 3")
        await terminal.press("named", "C-d")
        await terminal.wait_for("named", "status=0")
        assert "Traceback" not in piped.output + await terminal.screen("named")
    assert not [line for line in log.lines if "crashed" in line]


async def test_a_tls_client_of_a_plain_server_prints_one_line(
    files: Files, terminal: Terminal, log: LogRecorder, tmp_path: Path
) -> None:
    options = options_of(files, Refusal(says=""), tls=True)
    async with chat_server(files, tls=False) as port:
        await check_everywhere(tmp_path, terminal, options, port, CANNOT_CONNECT, *COMMANDS)
    assert not [line for line in log.lines if "crashed" in line]


async def test_a_plain_client_of_a_tls_server_prints_one_line(
    files: Files, terminal: Terminal, log: LogRecorder, tmp_path: Path
) -> None:
    async with chat_server(files, tls=True) as port:
        for client in COMMANDS:
            check(await run_command(tmp_path, client, [], port), SPEAKS_TLS)
        plain = await run_command(tmp_path, PLAIN, [], port)
        shown = await run_on_terminal(terminal, "plain", [], port)
        for result in (plain, shown):
            assert SPEAKS_TLS in result.output
            assert "Traceback" not in result.output + result.errors
    assert not [line for line in log.lines if "crashed" in line]


@pytest.mark.parametrize("behave", [close_at_once, close_after_one_read, send_half_a_server_hello])
async def test_a_server_that_closes_during_the_tls_handshake_is_one_line(
    behave: Behavior, files: Files, terminal: Terminal, tmp_path: Path
) -> None:
    options = options_of(files, Refusal(says=""), tls=True)
    async with faulty_server(files, behave, tls=False) as port:
        await check_everywhere(tmp_path, terminal, options, port, CANNOT_CONNECT, *COMMANDS)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "tcp"])
@pytest.mark.parametrize("behave", [close_after_one_read, close_after_the_hello])
async def test_a_server_that_closes_after_the_hello_is_one_line(
    behave: Behavior, tls: bool, files: Files, tmp_path: Path
) -> None:
    options = options_of(files, Refusal(says=""), tls=tls)
    async with faulty_server(files, behave, tls=tls) as port:
        await check_everywhere(tmp_path, None, options, port, "", *COMMANDS)


async def test_a_server_shuts_down_with_clients_in_the_handshake(
    files: Files, tmp_path: Path
) -> None:
    options = ("--tls-cert", files["server.pem"], "--password-file", files["right"])
    async with serve(tmp_path, *options) as server, AsyncExitStack() as stack:
        context = client_tls(Path(files["ca.pem"]))
        streams = []
        for _ in range(4):
            streams.append(await trio.open_tcp_stream(LOOPBACK, server.port))
            stack.push_async_callback(trio.aclose_forcefully, streams[-1])
        # One sends nothing, one half a record, one a whole hello, one does not send its password.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            context.wrap_bio(incoming, outgoing, server_hostname=LOOPBACK).do_handshake()
        hello = outgoing.read()
        await streams[1].send_all(hello[: len(hello) // 2])
        await streams[2].send_all(hello)
        assert await streams[2].receive_some()
        asked = trio.SSLStream(streams[3], context, server_hostname=LOOPBACK)
        assert ASKS_FOR_IT in await asked.receive_some()
        server.signal(signal.SIGINT)
        assert await server.wait() == 0
        assert server.err == ""
        assert "Traceback" not in server.out
        assert server.out.count(": the server is shutting down") == 4
