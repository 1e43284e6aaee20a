"""`connect` and `send` while the server restarts, end to end."""

import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

import multichat
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
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

LOST = r"\[STATE\] Connection lost: [a-z ]+; reconnecting"


async def kill(server: ServerCommand) -> None:
    server.process.kill()
    await server.wait()


async def stop(server: ServerCommand, how: str) -> None:
    """End the server: `killed`, or `shut down` in order as by Ctrl+C."""
    if how == "killed":
        await kill(server)
    else:
        server.signal(signal.SIGINT)
        assert await server.wait() == 0


# An orderly restart of the server and its sudden death look alike to a client.
ENDS = pytest.mark.parametrize("how", ["killed", "shut down"])


@asynccontextmanager
async def left_alone(folder: Path, port: int, how: str = "killed") -> AsyncIterator[Command]:
    """A `connect` that was welcomed as Client 1, by a server on *port* that is gone."""
    async with serve(folder, port=port) as server, connect(folder, server) as client:
        await client.wait_for("you are Client 1")
        await stop(server, how)
        yield client


@ENDS
async def test_connect_logs_the_loss_and_the_reconnect_in_one_line_each(
    how: str, port: int, tmp_path: Path
) -> None:
    async with left_alone(tmp_path, port, how) as client:
        await client.wait_for("Connection lost")
        await client.type("said meanwhile\n/status\n")
        await client.wait_for("Not connected; 1 waiting to be sent; reconnecting (")
        async with serve(tmp_path, port=port) as server:
            await client.wait_for(
                "Connected again, in a new session: the server no longer has the old one"
            )
            await server.wait_for("[RX] [Client 1] said meanwhile")
            async with tcp(server) as other:
                await other.send_all(b"welcome back\n")
                await client.wait_for("[RX] [Client 2] welcome back")
            client.signal(signal.SIGINT)
            assert await client.wait() == 0
            await server.wait_for("Client 1 disconnected")
        assert client.err == ""
    assert "may be published twice" not in client.out  # it had not been sent before
    assert len(re.findall(LOST, client.out)) == 1
    states = [line for line in client.lines if "[STATE]" in line]
    assert not [line for line in states if "refused" in line]  # no line for each try
    assert client.lines[-1] == "[INFO] [client] [STATE] Disconnected"


@ENDS
async def test_a_restart_of_a_server_with_a_journal_loses_nothing_and_repeats_nothing(
    how: str, port: int, tmp_path: Path
) -> None:
    journal = ("--journal", str(tmp_path / "chat.db"))
    async with (
        serve(tmp_path, *journal, port=port) as server,
        connect(tmp_path, server, "--name", "alice") as alice,
        connect(tmp_path, server, "--name", "bob") as bob,
    ):
        await alice.wait_for("you are alice")
        await bob.wait_for("you are bob")
        await alice.type("before\n")
        await bob.wait_for("[RX] [alice] before")
        await stop(server, how)
        for client in (alice, bob):
            await client.wait_for("Connection lost")
        await alice.type("meanwhile\n")
        await bob.type("so do I\n")
        async with serve(tmp_path, *journal, port=port) as again:
            for client in (alice, bob):
                await client.wait_for("[STATE] Connected again\n")
            await bob.wait_for("[RX] [alice] meanwhile")
            await alice.wait_for("[RX] [bob] so do I")
            await alice.type("after\n")
            await bob.wait_for("[RX] [alice] after")
            for client in (alice, bob):
                client.end_input()
                assert await client.wait() == 0
                assert client.err == ""
            assert again.out.count("meanwhile") == again.out.count("so do I") == 1
        assert bob.out.count("[RX] [alice]") == 3


@ENDS
async def test_a_bot_reconnects(how: str, port: int, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        received: list[str] = []

        async def echo(chat: multichat.Chat) -> None:
            async for event in chat:
                received.append(type(event).__name__)
                if isinstance(event, multichat.Said):
                    await chat.say(f"echo: {event.text}")

        async with AsyncExitStack() as stack:
            async with serve(tmp_path, port=port) as server:
                bot = await stack.enter_async_context(
                    multichat.connect(LOOPBACK, port, name="echo")
                )
                nursery.start_soon(echo, bot)
                await stop(server, how)
            async with serve(tmp_path, port=port) as server, tcp(server) as person:
                await server.wait_for("called echo")
                await person.send_all(b"hello\n")
                assert await person.receive_some() == b"[echo] echo: hello\n"
                assert "Reconnected" in received
                assert bot.name == "echo"
                nursery.cancel_scope.cancel()


async def test_a_stopped_server_is_detected_and_reconnected_to(tmp_path: Path) -> None:
    timeouts = multichat.ClientTimeouts(ping=0.5, pong=0.5)
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="alice", timeouts=timeouts) as chat,
    ):
        server.signal(signal.SIGSTOP)
        with trio.fail_after(WAIT_SECONDS):
            while not isinstance(event := await anext(chat), multichat.Disconnected):
                pass
            assert event.reason == "no answer in 0.5 s"
            await chat.send("said meanwhile")
            server.signal(signal.SIGCONT)
            while not isinstance(event := await anext(chat), multichat.Reconnected):
                pass
            await server.wait_for("[RX] [alice] said meanwhile\n")
            await chat.members()
        assert server.out.count("said meanwhile") == 1


async def test_a_pipe_whose_lines_are_all_accepted_does_not_wait_for_a_server_that_shut_down(
    port: int, tmp_path: Path
) -> None:
    async with serve(tmp_path, port=port) as server, connect(tmp_path, server) as client:
        await client.wait_for("you are Client 1")
        await client.type("hi\n")
        await server.wait_for("[RX] [Client 1] hi")
        await stop(server, "shut down")
        await client.wait_for("Connection lost")
        client.end_input()
        assert await client.wait() == 0  # nothing is left to send
        assert client.err == ""


@pytest.mark.parametrize("goes", ["/quit", "/name bob"])
async def test_a_name_that_was_taken_is_taken_over_when_it_is_free(
    goes: str, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server, "--name", "alice") as holder:
        await holder.wait_for("you are alice")
        async with connect(tmp_path, server, "--name", "alice") as client:
            await client.wait_for("the name 'alice' is taken; asking again when it is free")
            await client.wait_for("you are Client 2")
            await holder.type(f"{goes}\n")
            await client.wait_for("[STATE] Client 2 is now alice")
            assert client.out.count("is taken") == 1


@ENDS
async def test_quit_while_the_server_is_away_says_what_it_waits_for(
    how: str, port: int, tmp_path: Path
) -> None:
    async with left_alone(tmp_path, port, how) as client:
        await client.wait_for("Connection lost")
        await client.type("last words\n/quit\n")
        await client.wait_for("Not connected; 1 waiting to be sent")
        await client.wait_for("Leaving when they are sent; Ctrl+C leaves at once")
        async with serve(tmp_path, port=port) as server:
            await server.wait_for("[RX] [Client 1] last words")
            assert await client.wait() == 0
        assert client.err == ""


async def test_connect_waits_until_a_full_server_has_a_free_place(
    port: int, tmp_path: Path
) -> None:
    async with left_alone(tmp_path, port) as client:
        client.signal(signal.SIGSTOP)  # until another client has taken the place
        async with serve(tmp_path, "--max-clients", "1", port=port) as server:
            async with tcp(server):
                await server.wait_for("Client 1 connected")
                client.signal(signal.SIGCONT)
                await server.wait_for(": the server is full")
            await client.wait_for("Connected again, in a new session")
        assert client.err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_waiting_at_once(number: signal.Signals, tmp_path: Path) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server) as client:
        await client.wait_for("you are Client 1")
        await client.type("never said\n")
        await server.wait_for("never said")
        await kill(server)
        await client.wait_for("Connection lost")
        await client.type("/status\n")
        await client.wait_for("reconnecting (")
        client.signal(number)
        assert await client.wait() == 0
        assert "Connected again" not in client.out
        assert client.err == ""


async def test_a_pipe_loses_nothing_to_a_server_that_is_killed(port: int, tmp_path: Path) -> None:
    journal = ("--journal", str(tmp_path / "chat.db"))
    async with serve(tmp_path, *journal, port=port) as server:
        await kill(server)
    script = f"printf 'one\\ndone\\n' | {MULTICHAT} connect --wait {LOOPBACK} {port}"
    async with Command(tmp_path, "/bin/sh", "-c", script) as client:
        await client.wait_for("[STATE] Cannot connect: connection refused; waiting for the server")
        async with serve(tmp_path, *journal, port=port) as server:
            await server.wait_for("done")
            assert await client.wait() == 0
            await server.wait_for("disconnected")
            assert [line for line in server.lines if "[RX]" in line] == [
                "[INFO] [server] [RX] [Client 1] one",
                "[INFO] [server] [RX] [Client 1] done",
            ]


async def test_the_end_of_input_waits_for_the_next_connection(port: int, tmp_path: Path) -> None:
    """The first server receives the messages and is gone before it has accepted them."""
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
            await server.wait_for("disconnected")
            assert [line for line in server.lines if "[RX]" in line] == [
                "[INFO] [server] [RX] [Client 1] one",
                "[INFO] [server] [RX] [Client 1] done",
            ]
        assert client.err == ""


async def test_send_waits_and_sends_the_message_once(port: int, tmp_path: Path) -> None:
    send = Command(tmp_path, MULTICHAT, "send", "--wait", LOOPBACK, str(port), "hello")
    async with send as client:
        await trio.sleep(1)
        async with serve(tmp_path, port=port) as server:
            assert await client.wait() == 0
            assert (client.out, client.err) == ("", "")
            await server.wait_for("disconnected")
            assert server.out.count("[RX] [Client 1] hello") == 1


async def test_send_sends_again_to_a_server_without_the_session(port: int, tmp_path: Path) -> None:
    """It is unknown which messages were sent meanwhile, but that is not a failure."""
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
            await server.wait_for("disconnected")
            assert server.out.count("[RX] [Client 1] hello") == 1


async def test_without_reconnect_a_lost_connection_ends_connect(tmp_path: Path) -> None:
    async with listening() as (listener, port):
        command = Command(tmp_path, MULTICHAT, "connect", "--no-reconnect", LOOPBACK, str(port))
        async with command as client, await listener.accept() as stream:
            await stream.receive_some(1000)
            await stream.aclose()
            assert await client.wait() == 1
            assert client.err == "multichat: connection lost: the server closed the connection\n"


def test_the_reconnect_options_have_environment_variables() -> None:
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


# --- A server that is full -------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--plain",)])
async def test_piped_input_to_a_full_server_is_an_error(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    async with serve(tmp_path, "--max-clients", "1") as server, tcp(server):
        await server.wait_for("Client 1 connected")
        command = f"{MULTICHAT} connect {' '.join(options)} {LOOPBACK} {server.port}"
        script = f"printf 'one\\ndone\\n' | {command}"
        async with Command(tmp_path, "/bin/sh", "-c", script) as client:
            assert await client.wait() == 1
            rest = "; not all of the input was delivered" if options else ""
            assert client.err.startswith(f"multichat: the server is full (limit: 1){rest}")
            assert client.err.count("\n") == 1
            if not options:
                assert "[TX]" not in client.out
        full = "multichat: the server is full (limit: 1)\n"
        if not options:  # in plain text it may have hung up before the server has looked
            async with Command(tmp_path, "/bin/sh", "-c", f"{command} </dev/null") as client:
                assert await client.wait() == 1
                assert client.err == full
        async with Command(tmp_path, *command.split()) as client:  # an empty pipe
            assert await client.wait() == 1
            assert client.err == full
        async with Command(tmp_path, *command.split(), "--listen") as client:
            assert await client.wait() == 1
            assert client.err == full


@pytest.mark.parametrize("option", ["--plain", "--no-reconnect"])
async def test_a_client_that_does_not_reconnect_exits_with_status_0_when_the_server_shuts_down(
    option: str, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server, option) as client:
        await server.wait_for("Client 1 connected")
        await stop(server, "shut down")
        assert await client.wait() == 0
        assert client.err == ""
