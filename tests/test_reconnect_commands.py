"""`connect` and `send` while the server goes and comes back, end to end."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from .support.processes import (
    LOOPBACK,
    MULTICHAT,
    Command,
    ServerCommand,
    connect,
    listening,
    serve,
    tcp,
)

pytestmark = pytest.mark.process

WELCOME = (
    '{"type":"welcome","protocol":1,"client":5,"name":"Client 5","room":"lobby","members":1,'
    '"limits":{"line":65536,"name":32},"last":null,"server":"x","resumed":false,"session":"a"}\n'
)

LOST = r"\[STATE\] Connection lost: [a-z ]+; trying again in 0\.[0-9] s"


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody listens on, and that the system gives to nobody of its own accord."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as who will listen does
        kept.bind((LOOPBACK, 0))
        yield kept.getsockname()[1]


async def kill(server: ServerCommand) -> None:
    server.process.kill()
    await server.wait()


@asynccontextmanager
async def left_alone(folder: Path, port: int) -> AsyncIterator[Command]:
    """A `connect` that was welcomed as Client 1, by a server on *port* that was killed then."""
    async with serve(folder, port=port) as server, connect(folder, server) as client:
        await client.wait_for("you are Client 1")
        await kill(server)
        yield client


async def test_connect_comes_back_and_says_so_in_a_line_each(port: int, tmp_path: Path) -> None:
    async with left_alone(tmp_path, port) as client:
        await client.wait_for("Cannot connect: connection refused; trying again in 0.")
        await client.type("said meanwhile\n/status\n")
        await client.wait_for("Not connected; 1 wait to be sent")
        async with serve(tmp_path, port=port) as server:
            await client.wait_for("Connected again, as somebody new: the server has forgotten us")
            await client.wait_for("What was not accepted is sent again, and may be said twice")
            await server.wait_for("[RX] [Client 1] said meanwhile")
            async with tcp(server) as other:
                await other.send_all(b"welcome back\n")
                await client.wait_for("[RX] [Client 2] welcome back")
            client.signal(signal.SIGINT)
            assert await client.wait() == 0
            await server.wait_for("Client 1 disconnected")
        assert client.err == ""
    assert re.search(LOST, client.out)
    assert client.lines[-1] == "[INFO] [client] [STATE] Disconnected"


async def test_who_quits_while_the_server_is_away_is_told_why_it_stays(
    port: int, tmp_path: Path
) -> None:
    async with left_alone(tmp_path, port) as client:
        await client.wait_for("Cannot connect")
        await client.type("last words\n/quit\n")
        await client.wait_for("Not connected; 1 wait to be sent")
        await client.wait_for("Leaving when they are sent; Ctrl+C leaves at once")
        async with serve(tmp_path, port=port) as server:
            await server.wait_for("[RX] [Client 1] last words")
            assert await client.wait() == 0
        assert client.err == ""


async def test_connect_waits_for_a_place_in_a_server_that_is_full(
    port: int, tmp_path: Path
) -> None:
    async with left_alone(tmp_path, port) as client:
        client.signal(signal.SIGSTOP)  # until somebody else has the place
        async with serve(tmp_path, "--max-clients", "1", port=port) as server:
            async with tcp(server):
                await server.wait_for("Client 1 connected")
                client.signal(signal.SIGCONT)
                await client.wait_for("Cannot connect: the server is full (1 clients); trying")
            await client.wait_for("Connected again, as somebody new")
        assert client.err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_waiting_at_once(number: signal.Signals, tmp_path: Path) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server) as client:
        await client.wait_for("you are Client 1")
        await client.type("never said\n")
        await server.wait_for("never said")
        await kill(server)
        await client.wait_for("Cannot connect", 4)
        client.signal(number)
        assert await client.wait() == 0
        assert client.out.count("Cannot connect") == 4  # it did not wait for the next try
        assert client.err == ""


async def test_a_pipe_loses_nothing_to_a_server_that_is_killed(port: int, tmp_path: Path) -> None:
    journal = ("--journal", str(tmp_path / "chat.db"))
    async with serve(tmp_path, *journal, port=port) as server:
        await kill(server)
    script = f"printf 'one\\ndone\\n' | {MULTICHAT} connect --wait {LOOPBACK} {port}"
    async with Command(tmp_path, "/bin/sh", "-c", script) as client:
        await client.wait_for("[STATE] Cannot connect: connection refused; trying again in")
        async with serve(tmp_path, *journal, port=port) as server:
            await server.wait_for("done")
            assert await client.wait() == 0
            assert [line for line in server.lines if "[RX]" in line] == [
                "[INFO] [server] [RX] [Client 1] one",
                "[INFO] [server] [RX] [Client 1] done",
            ]


async def test_the_end_of_input_waits_for_the_next_connection(port: int, tmp_path: Path) -> None:
    """The first server takes what is said and is gone before it has accepted it."""
    [listener] = await trio.open_tcp_listeners(port, host=LOOPBACK)
    async with Command(tmp_path, MULTICHAT, "connect", LOOPBACK, str(port)) as client:
        await client.type("one\ndone\n")
        client.end_input()
        async with listener, await listener.accept() as stream:
            await stream.receive_some(10_000)
            await stream.send_all(WELCOME.encode())
            taken = b""
            while b"done" not in taken:
                taken += await stream.receive_some(10_000)
        async with serve(tmp_path, port=port) as server:
            assert await client.wait() == 0
            assert [line for line in server.lines if "[RX]" in line] == [
                "[INFO] [server] [RX] [Client 1] one",
                "[INFO] [server] [RX] [Client 1] done",
            ]
        assert client.err == ""


async def test_send_waits_and_says_it_once(port: int, tmp_path: Path) -> None:
    send = Command(tmp_path, MULTICHAT, "send", "--wait", LOOPBACK, str(port), "hello")
    async with send as client:
        await trio.sleep(1)
        async with serve(tmp_path, port=port) as server:
            assert await client.wait() == 0
            assert (client.out, client.err) == ("", "")
            assert server.out.count("[RX] [Client 1] hello") == 1


async def test_send_says_it_to_a_server_that_has_forgotten_it(port: int, tmp_path: Path) -> None:
    """Nobody knows what was said meanwhile, which is no reason to fail."""
    [listener] = await trio.open_tcp_listeners(port, host=LOOPBACK)
    command = Command(tmp_path, MULTICHAT, "send", LOOPBACK, str(port), "hello")
    async with command as client:
        async with listener, await listener.accept() as stream:
            await stream.receive_some(10_000)
            await stream.send_all(WELCOME.replace("null", '"x-1000000000"').encode())
            assert b"hello" in await stream.receive_some(10_000)
        async with serve(tmp_path, port=port) as server:
            assert await client.wait() == 0
            assert (client.out, client.err) == ("", "")
            assert server.out.count("[RX] [Client 1] hello") == 1


async def test_without_reconnecting_it_ends(tmp_path: Path) -> None:
    async with listening() as (listener, port):
        command = Command(tmp_path, MULTICHAT, "connect", "--no-reconnect", LOOPBACK, str(port))
        async with command as client, await listener.accept() as stream:
            await stream.receive_some(1000)
            await stream.aclose()
            assert await client.wait() == 1
            assert client.err == "multichat: connection lost: the server closed the connection\n"


def test_what_is_new_has_environment_variables() -> None:
    shown = subprocess.run([MULTICHAT, "connect", "--help"], capture_output=True, text=True).stdout
    for variable in ("WAIT", "REPLAY", "NO_RECONNECT"):
        assert f"[envvar:MULTICHAT_{variable}" in "".join(shown.split())


async def test_the_last_messages_are_shown_first(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server) as talker:
        await talker.type("one\ntwo\nthree\n")
        await server.wait_for("three")
        async with connect(tmp_path, server, "--replay", "2") as client:
            await client.wait_for("[RX] [Client 1] three")
            assert [line for line in client.lines if "[RX]" in line] == [
                "[INFO] [client] [RX] [Client 1] two",
                "[INFO] [client] [RX] [Client 1] three",
            ]
        command = [MULTICHAT, "connect", "--plain", "--replay", "2", LOOPBACK, str(server.port)]
        async with Command(tmp_path, *command) as client:
            assert await client.wait() == 2


# --- A server that is late -------------------------------------------------------------------


def impatient(folder: Path, command: str, port: int, *options: str) -> Command:
    """The real command, but for how long it waits for who says nothing at all."""
    code = "from multichat import cli, link; link.SILENCE_SECONDS = 2.5; cli.main()"
    return Command(folder, sys.executable, "-c", code, command, LOOPBACK, str(port), *options)


async def test_a_pipe_loses_nothing_to_a_server_that_is_late(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, tcp(server) as other:
        await server.wait_for("Client 1 connected")
        server.signal(signal.SIGSTOP)
        send = Command(tmp_path, MULTICHAT, "send", LOOPBACK, str(server.port), "sent")
        async with connect(tmp_path, server) as client, send:
            await client.type("deploy done\n")
            client.end_input()
            await client.wait_for("[TX] deploy done")
            await trio.sleep(5)  # after which it once had left
            assert client.process.poll() is None
            server.signal(signal.SIGCONT)
            assert await client.wait() == await send.wait() == 0
            assert client.err == send.err == ""
        heard = b""
        while heard.count(b"\n") < 2:
            heard += await other.receive_some()
        assert sorted(line.split(b"] ")[1] for line in heard.splitlines()) == [
            b"deploy done",
            b"sent",
        ]


async def test_who_does_not_answer_at_all_is_an_error(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        server.signal(signal.SIGSTOP)
        async with (
            impatient(tmp_path, "connect", server.port) as client,
            impatient(tmp_path, "send", server.port, "sent") as send,
        ):
            await client.type("deploy done\n")
            client.end_input()
            for command in (client, send):
                assert await command.wait() == 1
                assert command.err == (
                    "multichat: connection lost: "
                    "no answer, and whether what was said was heard is not known\n"
                )
            assert client.lines[-1] == "[INFO] [client] [STATE] Disconnected"
        server.signal(signal.SIGCONT)


@pytest.mark.parametrize("closes", [True, False])
async def test_a_listener_that_says_nothing_hears_everything(closes: bool, tmp_path: Path) -> None:
    """That it did is known only of the one that closes when it has heard the end."""
    async with listening() as (listener, port), impatient(tmp_path, "connect", port) as client:
        await client.type("one\ntwo\n")
        client.end_input()
        async with await listener.accept() as stream:
            heard = b""
            while data := await stream.receive_some():
                heard += data
            assert heard.endswith(b"\none\ntwo\n")
            if closes:
                await stream.aclose()
            assert await client.wait() == (0 if closes else 1)
            assert client.err.count("\n") == (0 if closes else 1)


@pytest.mark.parametrize("options", [(), ("--plain",)])
async def test_a_pipe_that_a_full_server_did_not_hear_is_an_error(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    async with serve(tmp_path, "--max-clients", "1") as server, tcp(server):
        await server.wait_for("Client 1 connected")
        command = f"{MULTICHAT} connect {' '.join(options)} {LOOPBACK} {server.port}"
        script = f"printf 'one\\ndone\\n' | {command}"
        async with Command(tmp_path, "/bin/sh", "-c", script) as client:
            assert await client.wait() == 1
            assert client.err == (
                "multichat: connection lost: the server is full (1 clients); "
                "not all of the input was heard\n"
            )
        async with Command(tmp_path, "/bin/sh", "-c", f"{command} </dev/null") as client:
            assert await client.wait() == 0
            assert client.err == ""
        async with Command(tmp_path, *command.split()) as client:  # a pipe in which nothing is
            assert await client.wait() == 0
            assert client.err == ""
