"""`send` and `who`, and names and rooms on the command line."""

import json
import signal
import subprocess
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import trio

from tests.support.clients import HELLO, JSON_HELLO
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    listening,
    program,
    serve,
    tcp,
)

pytestmark = pytest.mark.process


def multichat(folder: Path, server: ServerCommand, name: str, *arguments: str) -> Command:
    options = [argument for argument in arguments if argument.startswith("--")]
    rest = [argument for argument in arguments if not argument.startswith("--")]
    return Command(folder, MULTICHAT, name, *options, LOOPBACK, str(server.port), *rest)


def objects(command: Command) -> list[dict[str, object]]:
    return [json.loads(line) for line in command.out.splitlines()]


# --- send ----------------------------------------------------------------------------------------


async def test_send_sends_one_message_and_exits(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, tcp(server) as listener:
        async with multichat(tmp_path, server, "send", "--name=ci", "build", "42:", "//ok") as send:
            assert await send.wait() == 0
            assert (send.out, send.err) == ("", "")
        assert await listener.receive_some() == b"[ci] build 42: //ok\n"
        await server.wait_for("Client 2 disconnected (ci)\n")
        assert "[RX] [ci] build 42: //ok" in server.out


async def test_send_sends_each_line_of_standard_input(tmp_path: Path) -> None:
    count = 5000
    async with serve(tmp_path) as server, multichat(tmp_path, server, "connect", "--listen") as ear:
        await ear.wait_for("you are Client 1")
        async with multichat(tmp_path, server, "send", "-") as send:
            await send.type("".join(f"/{i}\n" for i in range(count)) + "and no line end")
            send.end_input()
            assert await send.wait() == 0
        await ear.wait_for("[RX] [Client 2] and no line end")
        said = [line.rsplit(" ", 1)[1] for line in ear.lines if "[RX] [Client 2] /" in line]
        assert said == [f"/{i}" for i in range(count)]  # text, and no commands


async def test_send_sends_the_message_if_the_name_is_taken(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, tcp(server) as listener:
        await listener.send_all(b"/name ci\n")
        assert await listener.receive_some() == b"[Server] Client 1 is now ci\n"
        async with multichat(tmp_path, server, "send", "--name=CI", "done") as send:
            assert await send.wait() == 0
            assert send.err == "multichat: the name 'CI' is taken; speaking as Client 2\n"
        assert await listener.receive_some() == b"[Client 2] done\n"


async def test_a_message_that_is_refused_is_one_line(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, AsyncExitStack() as stack:
        commands: list[tuple[Command, str]] = []
        for arguments, error in (
            (
                ("--room=no such", "x"),
                "a room's name consists of letters, digits, '-', '_' and '.'",
            ),
            ((" ",), ""),
            (("",), "an empty message cannot be sent"),
            (("x" * 70_000,), "bytes; the server takes lines of 65536"),
        ):
            send = multichat(tmp_path, server, "send", *arguments)
            commands.append((await stack.enter_async_context(send), error))
        for send, error in commands:
            assert await send.wait() == (1 if error else 0), send.err
            assert error in send.err
            assert send.err.count("\n") == bool(error)
            assert "Traceback" not in send.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
@pytest.mark.parametrize("options", [(), ("--tls",)], ids=" ".join)
async def test_send_that_is_interrupted_is_one_line(
    options: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    async with listening() as (listener, port):
        argv = (MULTICHAT, "send", *options, LOOPBACK, str(port), "x")
        async with Command(tmp_path, *argv) as send, await listener.accept() as stream:
            await stream.receive_some()
            send.signal(number)
            assert await send.wait() == 1
            assert send.err == "multichat: interrupted before the server had accepted everything\n"


async def test_send_without_a_server_is_one_line(tmp_path: Path) -> None:
    async with Command(tmp_path, MULTICHAT, "send", LOOPBACK, "1", "x") as send:
        assert await send.wait() == 1
        assert send.err == f"multichat: cannot connect to {LOOPBACK} port 1: connection refused\n"


async def test_send_uses_the_text_protocol_with_a_server_without_json(
    port: int, tmp_path: Path
) -> None:
    async with Command(tmp_path, program("nc"), "-N", "-l", LOOPBACK, str(port)) as nc:
        while f"{port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text("ascii"):
            await trio.sleep(0.02)
        argv = (MULTICHAT, "send", LOOPBACK, str(port), "/usr is full")
        async with Command(tmp_path, *argv) as send:
            await nc.wait_for("/json")
            await nc.type("a person reads this\n")  # which proves that it is not a multichat server
            await nc.wait_for("//usr is full\n")
            nc.end_input()
            assert await send.wait() == 0
        assert nc.out == f"{HELLO}\n//usr is full\n"


async def test_a_full_server_is_an_error(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, "--max-clients", "1") as server,
        tcp(server),
        AsyncExitStack() as stack,
    ):
        await server.wait_for("Client 1 connected")
        errands: list[Command] = []
        for command in ("send", "send --plain", "who", "connect --json"):
            name, *options = command.split()
            text = ["x"] if name == "send" else []
            errand = multichat(tmp_path, server, name, *options, *text)
            errands.append(await stack.enter_async_context(errand))
        for errand in errands:
            assert await errand.wait() == 1, errand.argv
            assert errand.err == "multichat: the server is full (limit: 1)\n"
            assert errand.out == ""


async def test_waiting_for_a_full_server_is_reported_once(tmp_path: Path) -> None:
    async with serve(tmp_path, "--max-clients", "1") as server:
        async with tcp(server):
            await server.wait_for("Client 1 connected")
            async with multichat(tmp_path, server, "connect", "--wait", "--listen") as chat:
                await chat.wait_for("[STATE] The server is full (limit: 1); waiting\n")
        await server.wait_for("Client 1 disconnected")
        async with AsyncExitStack() as stack:
            async with tcp(server):
                await server.wait_for(" connected\n", 2)
                send = multichat(tmp_path, server, "send", "--wait", "x")
                await stack.enter_async_context(send)
                with trio.fail_after(WAIT_SECONDS):
                    while "waiting" not in send.err:
                        await trio.sleep(0.05)
            assert await send.wait() == 0
        assert send.err == "multichat: the server is full (limit: 1); waiting\n"


async def test_an_option_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, AsyncExitStack() as stack:
        errands: list[Command] = []
        for command in ("connect", "connect --json", "connect --plain", "send", "who"):
            text = "x" if command == "send" else ""
            to = f"{LOOPBACK} {server.port} {text}"
            script = f"exec {MULTICHAT} {command} --room '\udcff' {to} </dev/null"
            errand = Command(tmp_path, "/bin/sh", "-c", script)
            errands.append(await stack.enter_async_context(errand))
        for errand in errands:
            await errand.wait()
            assert "Traceback" not in errand.err, errand.argv
            assert errand.err.count("\n") <= 1, errand.argv


# --- who -----------------------------------------------------------------------------------------


async def test_who_lists_the_members(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, tcp(server) as a, tcp(server) as b:
        for client, lines in ((a, b"/name alice\n"), (b, b"/join kitchen\n/name bob\n")):
            await client.send_all(lines)
        await server.wait_for("is now called alice")
        await server.wait_for("is now called bob")
        for options, out in (
            ((), "1 alice\n"),
            (("--room=KITCHEN",), "2 bob\n"),
            (("--room=x",), ""),
        ):
            async with multichat(tmp_path, server, "who", *options) as who:
                assert await who.wait() == 0
                assert (who.out, who.err) == (out, "")
        async with multichat(tmp_path, server, "who", "--room=x y") as who:
            assert await who.wait() == 1
            assert who.err.startswith("multichat: a room's name consists of ")
        # It asks from the lobby: no room is opened.
        assert "joined x" not in server.out
        assert server.out.count(" joined ") == server.out.count(" joined kitchen") == 1


async def test_who_on_a_server_without_json_is_one_line(tmp_path: Path) -> None:
    async with await _silent() as listener:
        port = str(listener.socket.getsockname()[1])
        async with Command(tmp_path, MULTICHAT, "who", LOOPBACK, port) as who:
            async with await listener.accept() as stream:
                await stream.send_all(b"no json here\n")
                assert await who.wait() == 1
            assert who.err == "multichat: the server does not answer in JSON\n"


@pytest.mark.parametrize(
    "command", ["connect", "connect --log-style", "connect --json", "send - ", "send hi", "who"]
)
async def test_a_silent_server_is_one_line_that_names_plain(command: str, tmp_path: Path) -> None:
    name, *rest = command.split()
    options = [each for each in rest if each.startswith("--")]
    words = [each for each in rest if not each.startswith("--")]
    async with await _silent() as listener:
        port = str(listener.socket.getsockname()[1])
        argv = (MULTICHAT, name, *options, "--timeout", "0.5", LOOPBACK, port, *words)
        async with Command(tmp_path, *argv) as client, await listener.accept() as stream:
            await client.type("never said\n")
            assert await client.wait() == 1
            assert client.err == (
                "multichat: the server did not answer in 0.5 s; "
                "use --plain for one that only speaks plain text\n"
            )
            received = b""
            while data := await stream.receive_some():
                received += data
            hello = JSON_HELLO if "--json" in options else HELLO
            assert received == f"{hello}\n".encode()  # and nothing in another protocol


INVALID_WELCOMES = [
    '{"type":"welcome"}',
    '{"type": "welcome", "protocol": 1',
    (
        '{"type":"welcome","protocol":1,"client":7,"name":"a","room":"lobby","members":1,'
        '"limits":{"line":0,"name":32},"last":null,"server":"x","resumed":false}'
    ),
    '{"type":"welcome","protocol":1,"client":7,"name":"'
    + "\u0301" * 400_000
    + '","room":"lobby","members":1,"limits":{"line":9,"name":9},"last":null,"server":"x"}',
    '{"type":"welcome","x":' + "[" * 99 + "]" * 99 + "}",
]


@pytest.mark.parametrize("command", ["connect", "connect --json", "send hi", "who"])
async def test_an_invalid_welcome_is_one_line_and_nothing_is_sent(
    command: str, tmp_path: Path
) -> None:
    name, *rest = command.split()
    options = [each for each in rest if each.startswith("--")]
    words = [each for each in rest if not each.startswith("--")]
    for welcome in INVALID_WELCOMES:
        async with await _silent() as listener:
            port = str(listener.socket.getsockname()[1])
            argv = (MULTICHAT, name, *options, LOOPBACK, port, *words)
            async with Command(tmp_path, *argv) as client, await listener.accept() as stream:
                await client.type("never said\n")
                received = await stream.receive_some()
                await stream.send_all(f"{welcome}\n".encode())
                assert await client.wait() == 1
                said = "the server's welcome is not valid; use --plain to speak plain text"
                assert client.err == f"multichat: {said}\n"
                with suppress(trio.BrokenResourceError):
                    while data := await stream.receive_some():
                        received += data
                hello = JSON_HELLO if "--json" in options else HELLO
                assert received == f"{hello}\n".encode()


@pytest.mark.parametrize("command", ["connect", "connect --json", "send hi", "who"])
async def test_a_goodbye_instead_of_a_welcome_is_one_line(command: str, tmp_path: Path) -> None:
    name, *rest = command.split()
    options = [each for each in rest if each.startswith("--")]
    words = [each for each in rest if not each.startswith("--")]
    reason = "the server is not available now: it cannot reach its storage"
    goodbye = {"type": "goodbye", "reason": reason, "code": "unavailable", "reconnect": True}
    async with await _silent() as listener:
        port = str(listener.socket.getsockname()[1])
        argv = (MULTICHAT, name, *options, LOOPBACK, port, *words)
        async with Command(tmp_path, *argv) as client, await listener.accept() as stream:
            await stream.receive_some()
            await stream.send_all(f"{json.dumps(goodbye)}\n".encode())
            assert await client.wait() == 1
            assert client.err == f"multichat: {reason}\n"


async def test_send_reports_the_lines_not_accepted_at_its_timeout(
    tmp_path: Path,
) -> None:
    limits = {"line": 65536, "name": 32, "wait": 0}
    welcome = {"type": "welcome", "protocol": 1, "client": 7, "name": "x", "room": "lobby"}
    rest = {"members": 1, "limits": limits, "last": None, "server": "x", "session": "x"}
    async with await _silent() as listener:
        port = str(listener.socket.getsockname()[1])
        argv = (MULTICHAT, "send", "--timeout", "2", LOOPBACK, port, "-")
        async with Command(tmp_path, *argv) as client, await listener.accept() as stream:
            await client.type("one\ntwo\nthree\n")
            client.end_input()
            await stream.receive_some()
            await stream.send_all(json.dumps({**welcome, **rest, "resumed": False}).encode())
            await stream.send_all(b"\n")
            nonce = json.loads((await stream.receive_some()).partition(b"\n")[0])["nonce"]
            await stream.send_all(f'{{"type":"accepted","id":"x-1","nonce":{nonce}}}\n'.encode())
            assert await client.wait() == 1
            assert client.err.startswith("multichat: connection lost: ")
            assert "; 2 lines were not accepted, the first is line 2 of the input" in client.err


@pytest.mark.parametrize("command", [("connect", "--plain"), ("send", "--plain")])
async def test_with_plain_nothing_but_the_input_is_sent(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    async with await _silent() as listener:
        port = str(listener.socket.getsockname()[1])
        words = ("-",) if command[0] == "send" else ()
        argv = (MULTICHAT, *command, LOOPBACK, port, *words)
        async with Command(tmp_path, *argv) as client, await listener.accept() as stream:
            await client.type("one\n/two\n")
            client.end_input()
            received = b""
            while data := await stream.receive_some():
                received += data
            await stream.aclose()
            assert await client.wait() == 0
            assert received.replace(b"//", b"/") == b"one\n/two\n"


async def test_send_reports_in_one_line_that_it_uses_text(tmp_path: Path) -> None:
    async with await _silent() as listener:
        port = str(listener.socket.getsockname()[1])
        argv = (MULTICHAT, "send", LOOPBACK, port, "hello")
        async with Command(tmp_path, *argv) as client, await listener.accept() as stream:
            await stream.send_all(b"a banner\n")
            received = b""
            while data := await stream.receive_some():
                received += data
            await stream.aclose()
            assert await client.wait() == 0
            assert received == f"{HELLO}\nhello\n".encode()
            assert client.err.count("\n") == 1
            assert "does not answer in JSON" in client.err


async def _silent() -> trio.SocketListener:
    [listener] = await trio.open_tcp_listeners(0, host=LOOPBACK)
    return listener


# --- connect -------------------------------------------------------------------------------------


async def test_names_rooms_and_presence_in_the_log_of_connect(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat(tmp_path, server, "connect", "--name=alice", "--room=kitchen") as alice,
    ):
        await alice.wait_for("[STATE] you are alice in kitchen; nobody else is here")
        async with tcp(server) as nc:
            await nc.send_all(b"/join kitchen\n/name bob\n")
            await alice.wait_for("[STATE] bob joined")
            await nc.send_all(b"/me waves\n/msg alice psst\nhello\n/name rob\n")
            await alice.wait_for("[STATE] bob is now rob")
            await alice.type("/who\n/join lobby\n/frobnicate\n/name 7\n")
            await alice.wait_for("[STATE] you are in lobby; nobody else is here")
            await alice.wait_for("can be mistaken for a number")
            await alice.type("/join kitchen\n")
            await alice.wait_for("[STATE] you are in kitchen; 2 are here")
        await alice.wait_for("[STATE] rob left")
        alice.end_input()
        assert await alice.wait() == 0
        lines = [line.removeprefix("[INFO] [client] ") for line in alice.lines]
        for expected in (
            "[RX] * bob waves",
            "[RX] [bob → you] psst",
            "[RX] [bob] hello",
            "[RX] [Server] 2 in kitchen:",
            "[RX] [Server] 1 alice",
            "[RX] [Server] 2 rob",
            "[TX] /frobnicate",
        ):
            assert expected in lines


async def test_connect_reports_a_taken_name_and_continues(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, tcp(server) as nc:
        await nc.send_all(b"/name alice\n")
        await server.wait_for("is now called alice")
        async with multichat(tmp_path, server, "connect", "--name=alice") as client:
            await client.wait_for("[WARNING] [client] [STATE] the name 'alice' is taken")
            await client.wait_for("[STATE] you are Client 2 in lobby; 2 are here")


async def test_a_number_sign_before_a_room_is_removed(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat(tmp_path, server, "connect", "--name=bob", "--room=#kitchen") as bob,
        multichat(tmp_path, server, "connect", "--plain", "--room=##kitchen") as plain,
    ):
        await bob.wait_for("you are bob in kitchen")
        await plain.wait_for("you are in kitchen")
        async with multichat(tmp_path, server, "who", "--room=#kitchen") as who:
            assert await who.wait() == 0
            assert "bob" in who.out
        async with multichat(tmp_path, server, "send", "--room=#kitchen", "hi") as send:
            assert await send.wait() == 0
        await bob.wait_for("] hi\n")
        async with multichat(tmp_path, server, "connect", "--json", "--room=#kitchen") as json_:
            await json_.wait_for('"room":"kitchen"')


async def test_connect_ends_if_the_room_cannot_be_joined(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat(tmp_path, server, "connect", "--room=no such") as client,
    ):
        await client.type("said to nobody\n")
        assert await client.wait() == 1
        assert client.err == (
            "multichat: a room's name consists of letters, digits, '-', '_' and '.'\n"
        )
        assert "said to nobody" not in server.out


async def test_plain_supports_names_and_rooms(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat(tmp_path, server, "connect", "--plain", "--name=al", "--room=den") as client,
    ):
        await client.wait_for("[RX] [Server] Client 1 is now al")
        await client.wait_for("[RX] [Server] you are in den; nobody else is here")


async def test_connect_reports_that_it_uses_text(tmp_path: Path) -> None:
    async with await _silent() as listener:
        port = str(listener.socket.getsockname()[1])
        client = Command(tmp_path, MULTICHAT, "connect", LOOPBACK, port)
        async with client, await listener.accept() as stream:
            await client.type("hello\n")
            await stream.send_all(b"Welcome to another server\n")
            await client.wait_for("The server does not answer in JSON: speaking plain text")
            await client.wait_for("[RX] Welcome to another server")
            await client.wait_for("[TX] hello")
            received = b""
            while b"hello\n" not in received:
                received += await stream.receive_some()
            assert received == f"{HELLO}\nhello\n".encode()
            await stream.send_all(b"[bob] hi\n")
            await client.wait_for("[RX] [bob] hi")


# --- connect --json ------------------------------------------------------------------------------


async def test_json_lines_are_passed_through(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat(tmp_path, server, "connect", "--json", "--name=bot", "--room=den") as bot,
    ):
        await bot.wait_for('"room":"den"')
        async with tcp(server) as nc:
            await nc.send_all(b"/join den\nhello\n")
            await bot.wait_for('"text":"hello"')
            await bot.type('{"type":"say","text":"hi","nonce":1}\nnonsense\n')
            await bot.wait_for('"code":"invalid-request"')
            await bot.type('{"type":"ping"}')  # and no line end
            bot.end_input()
            assert await bot.wait() == 0
        assert bot.err == ""
        kinds = [each["type"] for each in objects(bot)]
        assert kinds == ["welcome", "joined", "said", "accepted", "error", "pong"]
        await server.wait_for("[RX] [bot] hi\n")  # accepted, and written a moment later


async def test_json_ends_with_the_servers_goodbye(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat(tmp_path, server, "connect", "--json", "--listen") as bot,
    ):
        await bot.wait_for("welcome")
        server.process.terminate()
        assert await bot.wait() == 0
        assert objects(bot)[-1] == {
            "type": "goodbye",
            "reason": "the server is shutting down",
            "code": "shutdown",
            "reconnect": True,
        }


async def test_json_of_a_server_that_is_killed_is_an_error(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat(tmp_path, server, "connect", "--json", "--listen") as bot,
    ):
        await bot.wait_for("welcome")
        server.process.kill()
        assert await bot.wait() == 1
        assert bot.err.startswith("multichat: connection lost: ")
        assert bot.err.count("\n") == 1


async def test_json_on_a_server_without_json_is_one_line(tmp_path: Path) -> None:
    async with await _silent() as listener:
        port = str(listener.socket.getsockname()[1])
        argv = (MULTICHAT, "connect", "--json", LOOPBACK, port)
        async with Command(tmp_path, *argv) as bot, await listener.accept() as stream:
            await stream.send_all(b"no json here\n")
            assert await bot.wait() == 1
            assert (bot.out, bot.err) == ("", "multichat: the server does not answer in JSON\n")


async def test_json_into_a_closed_pipe_is_one_line(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        command = f"{MULTICHAT} connect --json --listen {LOOPBACK} {server.port} | head -n 1"
        async with Command(tmp_path, "/bin/sh", "-c", command) as pipe, tcp(server) as nc:
            await pipe.wait_for("welcome")
            with trio.move_on_after(WAIT_SECONDS):
                while pipe.process.poll() is None:
                    await nc.send_all(b"hello\n")
                    await trio.sleep(0.05)
            assert pipe.err == "multichat: cannot write to standard output: broken pipe\n"


def test_json_and_plain_exclude_each_other() -> None:
    result = subprocess.run(
        [MULTICHAT, "connect", "--json", "--plain", LOOPBACK, "9"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "--json and --plain exclude each other" in result.stderr
