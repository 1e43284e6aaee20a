"""A client with piped input always ends, and reports the lines that were not accepted."""

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from tests.support.processes import LOOPBACK, MULTICHAT, Command, ServerCommand, connect, serve

pytestmark = pytest.mark.process

# The commands, with shorter timeouts; the server and the protocol are arguments.
CLIENT = """
import json, sys, trio, typer
from functools import partial
from pathlib import Path
from multichat import ClientTimeouts
from multichat.client.connect import Endpoint, client_tls
from multichat.client.options import ChatOptions
from multichat.cli.log_client import (LogClient)
from multichat.stdio import (until_signal)
from multichat.cli.json_pipe import JsonPipe
from multichat.cli.send import send
from multichat.log import open_log
from multichat.cli.process import one_line_errors

command, where = sys.argv[1], json.loads(sys.argv[2])
seconds = where.pop("seconds")
timeouts = ClientTimeouts(progress=seconds, delivery=seconds, stuck=1.0, longest_retry=0.5)
if "tls" in where:
    where["tls"] = client_tls(Path(where["tls"]))
if "unix" in where:
    where["unix"] = Path(where["unix"])
endpoint = Endpoint(**where)
options = ChatOptions(plain=command.endswith("-plain"), timeouts=timeouts)
try:
    with one_line_errors(), open_log(1) as writer:
        if command.startswith("send"):
            trio.run(until_signal, partial(send, endpoint, options, None, input_fd=0))
        elif command == "json":
            trio.run(JsonPipe(endpoint, options, input_fd=0, output_fd=1).run)
        else:
            trio.run(LogClient(endpoint, options, writer=writer, input_fd=0).run)
except typer.Exit as status:
    sys.exit(status.exit_code)
"""

JSON_COMMANDS = ["send", "connect"]
TEXT_COMMANDS = ["send-plain", "connect-plain", "json"]
COMMANDS = [*JSON_COMMANDS, *TEXT_COMMANDS]

SECONDS = 3.0

# More than the sockets and the client hold for a server that takes nothing.
LINES = 16_000
LONG = "x" * 1000

LOST = "multichat: connection lost: "


def client(folder: Path, command: str, **where: Any) -> Command:
    place = json.dumps({"seconds": SECONDS, **where})
    return Command(folder, sys.executable, "-c", CLIENT, command, place)


def encode(command: str, text: str) -> str:
    return json.dumps({"type": "say", "text": text}) if command == "json" else text


async def pipe(one: Command, command: str, lines: int) -> None:
    """Write so many lines into a client, as long as it reads, and the end of input."""
    line = encode(command, "again" if command in JSON_COMMANDS else LONG)
    with suppress(BrokenPipeError):
        await one.type(f"{line}\n" * lines)
        one.end_input()


@asynccontextmanager
async def talking(
    folder: Path, commands: list[str], server: ServerCommand, **where: Any
) -> AsyncIterator[list[Command]]:
    """Clients from which the server has accepted a line."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(client(folder, command, **where))
            for command in commands
        ]
        for one, command in zip(clients, commands, strict=True):
            await one.type(encode(command, "first") + "\n")
        await server.wait_for("first\n", len(clients))
        yield clients


async def all_end(clients: list[Command], commands: list[str], lines: int) -> None:
    """Pipe *lines* into each of them; they fail, with one line each."""
    async with trio.open_nursery() as nursery:
        for one, command in zip(clients, commands, strict=True):
            nursery.start_soon(pipe, one, command, lines)
        for one, command in zip(clients, commands, strict=True):
            assert await one.wait() == 1, command
            assert one.err.startswith(LOST), command
            assert one.err.count("\n") == 1, command


@pytest.mark.parametrize("lines", [200, LINES])
@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
async def test_clients_of_a_frozen_server_end(
    transport: str, lines: int, short_path: Path, tmp_path: Path
) -> None:
    options: list[str] = []
    where: dict[str, Any] = {}
    if transport == "tls":
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        chain = authority.issue_cert(LOOPBACK).private_key_and_cert_chain_pem
        chain.write_to_path(str(tmp_path / "server.pem"))
        options, where = ["--tls-cert", str(tmp_path / "server.pem")], {"tls": f"{tmp_path}/ca.pem"}
    elif transport == "unix":
        options, where = ["--unix", str(short_path / "chat")], {"unix": str(short_path / "chat")}
    async with serve(tmp_path, *options) as server:
        if transport != "unix":
            where |= {"host": LOOPBACK, "port": server.port}
        # Text that a frozen server's kernel has taken counts as arrived: nothing else is known.
        commands = COMMANDS if lines == LINES else [*JSON_COMMANDS, "json"]
        async with talking(tmp_path, commands, server, **where) as clients:
            server.signal(signal.SIGSTOP)
            await all_end(clients, commands, lines)
            for one, command in zip(clients, commands, strict=True):
                if command in JSON_COMMANDS:
                    assert f"nothing was accepted in {SECONDS:g} s" in one.err
                    assert " lines were not accepted, the first is line 2 of" in one.err
                    assert (f" {lines} lines" in one.err) == (lines == 200)
                elif lines == LINES:
                    assert " bytes sent were not received; " in one.err
                    assert " lines were not sent, the first is line " in one.err


@pytest.mark.parametrize("heir", ["nobody", "a listener that accepts nothing"])
async def test_clients_of_a_server_that_is_gone_end(heir: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack, serve(tmp_path) as server:
        where = {"host": LOOPBACK, "port": server.port}
        async with talking(tmp_path, COMMANDS, server, **where) as clients:
            server.process.kill()
            server.process.wait()
            if heir != "nobody":
                for listener in await trio.open_tcp_listeners(server.port, host=LOOPBACK):
                    await stack.enter_async_context(listener)
            await all_end(clients, COMMANDS, LINES)
            for one, command in zip(clients, COMMANDS, strict=True):
                if command in JSON_COMMANDS:
                    assert f"nothing was accepted in {SECONDS:g} s" in one.err
                    assert " lines were not accepted, the first is line 2 of" in one.err


async def test_a_server_that_is_back_in_time_gets_everything(tmp_path: Path) -> None:
    journal = ("--journal", str(tmp_path / "chat.db"), "--log-rate", "0")
    async with AsyncExitStack() as stack, serve(tmp_path, *journal) as server:
        where = {"host": LOOPBACK, "port": server.port, "seconds": 60.0}
        async with (
            talking(tmp_path, JSON_COMMANDS, server, **where) as clients,
            trio.open_nursery() as nursery,
        ):
            server.process.kill()
            server.process.wait()
            for one, command in zip(clients, JSON_COMMANDS, strict=True):
                nursery.start_soon(pipe, one, command, 1000)
            again = serve(tmp_path, *journal, port=server.port)
            await stack.enter_async_context(again)
            for one in clients:
                assert await one.wait() == 0, one.err
            await again.wait_for("again\n", 2000)


async def test_the_timeout_limits_everything_after_the_end_of_input(tmp_path: Path) -> None:
    """The commands as they are: `--timeout` is how long a dead server may keep them."""
    async with serve(tmp_path) as server, AsyncExitStack() as stack:
        place = "--timeout", "6", LOOPBACK, str(server.port)
        argvs = {
            "send": ("send", *place, "-"),
            "connect": ("connect", *place),
            "send-plain": ("send", "--plain", *place, "-"),
            "connect-plain": ("connect", "--plain", *place),
            "json": ("connect", "--json", *place),
        }
        clients = [
            await stack.enter_async_context(Command(tmp_path, MULTICHAT, *argv))
            for argv in argvs.values()
        ]
        for one, command in zip(clients, argvs, strict=True):
            await one.type(encode(command, "first") + "\n")
        await server.wait_for("first\n", len(clients))
        server.signal(signal.SIGSTOP)
        with trio.fail_after(50):
            await all_end(clients, list(argvs), LINES)


# --- Refused lines --------------------------------------------------------------------------------


async def fails(one: Command, lines: str, error: str) -> None:
    """Pipe *lines* into a client; it fails with the one line *error*."""
    await one.type(lines)
    one.end_input()
    assert await one.wait() == 1, one.out
    assert one.err == f"multichat: {error} of the input (empty lines not counted)\n"


@pytest.mark.skipif(sys.platform != "linux", reason="an open file cannot be renamed everywhere")
async def test_lines_that_the_server_cannot_store_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    error = "messages cannot be stored now: the server cannot store messages; "
    async with serve(tmp_path, "--journal", str(path)) as server, AsyncExitStack() as stack:
        waiting = await stack.enter_async_context(connect(tmp_path, server))
        await waiting.type("stored\n")
        await server.wait_for("[RX] [Client 1] stored")
        path.rename(tmp_path / "away")
        await server.wait_for("The journal cannot store messages")
        await fails(waiting, "l2\n\nl3\n", f"{error}2 lines were not accepted, the first is line 2")
        assert waiting.out.count("[RX] [Server] messages cannot be stored now") == 2
        many = "".join(f"{i}\n" for i in range(1000))
        for argv in (
            ("connect", LOOPBACK, str(server.port)),
            ("send", LOOPBACK, str(server.port), "-"),
        ):
            one = await stack.enter_async_context(Command(tmp_path, MULTICHAT, *argv))
            await fails(one, many, f"{error}1000 lines were not accepted, the first is line 1")
        argv = ("send", LOOPBACK, str(server.port), "hello")
        one = await stack.enter_async_context(Command(tmp_path, MULTICHAT, *argv))
        assert await one.wait() == 1
        assert one.err == f"multichat: {error[:-2]}\n"


@pytest.mark.parametrize("last", ["", "/quit\n"])
async def test_messages_for_a_room_that_cannot_be_joined_are_an_error(
    last: str, tmp_path: Path
) -> None:
    lines = f"hello\n/join cellar\nsecret\n/me hides\n/join lobby\nhello again\n{last}"
    async with (
        serve(tmp_path, "--max-rooms", "1") as server,
        connect(tmp_path, server, "--listen") as listener,
        AsyncExitStack() as stack,
    ):
        await listener.wait_for("you are Client 1")
        one = await stack.enter_async_context(connect(tmp_path, server))
        error = "you are not in the room cellar; 2 lines were not accepted, the first is line 3"
        await fails(one, lines, error)
        assert "[RX] [Server] too many rooms (limit: 1)" in one.out
        await listener.wait_for("[RX] [Client 2] hello again")
        assert "secret" not in server.out


async def test_a_line_that_is_read_after_a_refused_join_is_not_sent_to_another_room(
    tmp_path: Path,
) -> None:
    async with (
        serve(tmp_path, "--max-rooms", "1") as server,
        connect(tmp_path, server, "--listen") as listener,
        connect(tmp_path, server) as one,
    ):
        await listener.wait_for("you are Client ")
        await one.wait_for("you are Client ")
        await one.type("/join cellar\n")
        await one.wait_for("[RX] [Server] too many rooms (limit: 1)")
        error = "you are not in the room cellar; 2 lines were not accepted, the first is line 2"
        await fails(one, "secret\n/me hides\n/part\nhello again\n", error)
        await listener.wait_for("] hello again")
        assert "secret" not in server.out


async def test_a_private_message_to_an_unknown_client_is_an_error(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server) as one:
        error = "nobody here is called 'bob'; 1 line was not accepted, the first is line 2"
        await fails(one, "hello\n/msg bob psst\n", error)


async def test_refused_commands_are_not_an_error(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, "--max-rooms", "1") as server,
        connect(tmp_path, server, "--name", "alice") as alice,
        connect(tmp_path, server) as one,
    ):
        await alice.wait_for("you are alice")
        await one.type("/name alice\n/join cellar\n/join lobby\n/who nowhere\n/name\nhello\n")
        one.end_input()
        assert await one.wait() == 0
        assert one.err == ""
        for answer in ("the name 'alice' is taken", "too many rooms (limit: 1)"):
            assert f"[RX] [Server] {answer}" in one.out
        await alice.wait_for("hello")


async def test_lines_that_were_refused_count_when_the_connection_is_lost(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, "--max-rooms", "1") as server,
        connect(tmp_path, server, "--listen") as listener,
        client(tmp_path, "connect", host=LOOPBACK, port=server.port) as one,
    ):
        await listener.wait_for("you are Client ")
        await one.type("/join cellar\nsecret\n/join lobby\nhello\n")
        await listener.wait_for("] hello")
        await one.wait_for("[RX] [Server] you are not in the room cellar")
        server.signal(signal.SIGSTOP)
        await all_end([one], ["connect"], 2)
        assert (
            f" in {SECONDS:g} s; 3 lines were not accepted, the first is line 2 of the input"
            in one.err
        )
