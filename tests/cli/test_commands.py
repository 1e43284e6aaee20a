"""End to end: the installed commands, in processes, over real sockets."""

import itertools
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from multichat.protocol.framing import clean
from tests.support.processes import (
    BIN,
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    connect,
    listening,
    program,
    serve,
    tcp,
)

pytestmark = pytest.mark.process

GOODBYE = "[Server] goodbye: the server is shutting down"


async def stop(server: ServerCommand, number: signal.Signals = signal.SIGINT) -> None:
    server.signal(number)
    assert await server.wait() == 0
    assert server.err == ""


# --- The specification -----------------------------------------------------------------------


async def test_the_specification_letter_for_letter(port: int, tmp_path: Path) -> None:
    """Its sample output, by its own commands; only the port and the time are others."""
    address = f"{LOOPBACK}:{port}"
    client = Command(tmp_path, str(BIN / "multi_chat_tcp_client"), LOOPBACK, str(port))
    async with (
        ServerCommand(tmp_path, str(BIN / "multi_chat_tcp_server"), str(port)) as server,
        Command(tmp_path, program("nc"), LOOPBACK, str(port)) as first,
    ):
        await server.wait_for("Client 1 connected")
        async with client as second:
            await second.wait_for("Connected")
            await server.wait_for("Client 2 connected")
            await first.type("Hello everyone!\n")
            await second.wait_for("Hello everyone!")
            await second.type("Hello back!\n")
            await second.wait_for("Hello back!")
            await first.wait_for("Hello back!")  # killed with unread input, it resets
            first.process.kill()
            await server.wait_for("Client 1 disconnected")
            await stop(server)
            assert await second.wait() == 0
    where = ("[start] Listening on", "[start] Reachable from other machines")
    assert [line for line in server.lines if not any(text in line for text in where)] == [
        f"[INFO] [server] [start] Starting multi-chat server on port {port}",
        "[INFO] [server] [STATE] Client 1 connected",
        "[INFO] [server] [STATE] Client 2 connected",
        "[INFO] [server] [RX] [Client 1] Hello everyone!",
        "[INFO] [server] [BROADCAST] Broadcasting to 2 clients",
        "[INFO] [server] [RX] [Client 2] Hello back!",
        "[INFO] [server] [BROADCAST] Broadcasting to 2 clients",
        "[INFO] [server] [STATE] Client 1 disconnected",
        "[INFO] [server] [stop] Shutting down multi-chat server",
        "[INFO] [server] [STATE] Client 2 disconnected (the server is shutting down)",
    ]
    assert second.lines == [
        f"[INFO] [client] [start] Connecting to {address}",
        "[INFO] [client] [STATE] Connected",
        "[INFO] [client] [RX] [Client 1] Hello everyone!",
        "[INFO] [client] [TX] Hello back!",
        f"[INFO] [client] [RX] {GOODBYE}",
        "[INFO] [client] [STATE] Disconnected",
    ]
    for line in (server.out + second.out).splitlines():
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[INFO\] \[(server|client)\] \[\w+\] .+", line
        )


async def test_the_default_port_is_the_specifications(tmp_path: Path) -> None:
    shown = subprocess.run([MULTICHAT, "serve", "--help"], capture_output=True, text=True)
    assert "[default: 9000]" in shown.stdout


async def test_the_server_listens_on_ipv6_too(tmp_path: Path) -> None:
    async with ServerCommand(tmp_path, MULTICHAT, "serve", "0") as server:
        await server.wait_for(f"[INFO] [server] [start] Listening on 0.0.0.0:{server.port}\n")
        await server.wait_for(f"[INFO] [server] [start] Listening on [::]:{server.port}\n")
        async with (
            Command(tmp_path, MULTICHAT, "connect", "::1", str(server.port)) as six,
            connect(tmp_path, server) as four,
        ):
            await four.wait_for("you are")
            await six.type("from six\n")
            await four.wait_for("from six")
            assert six.lines[0] == f"[INFO] [client] [start] Connecting to [::1]:{server.port}"
            await stop(server)


# --- Other programs --------------------------------------------------------------------------


async def test_nc_is_a_full_client(tmp_path: Path) -> None:
    nc = program("nc")
    async with (
        serve(tmp_path) as server,
        Command(tmp_path, nc, LOOPBACK, str(server.port)) as a,
        Command(tmp_path, nc, "-N", LOOPBACK, str(server.port)) as b,
    ):
        await server.wait_for("Client 2 connected")
        await a.type("Γειά σου 👋\n")
        await b.wait_for("Γειά σου 👋\n")
        assert re.fullmatch(r"\[Client [12]\] Γειά σου 👋\n", b.out)
        await b.type("bye")
        b.end_input()  # half-closes, so it leaves; its last input is still a line
        assert await b.wait() == 0
        await a.wait_for("bye\n")
        a.end_input()  # does not half-close, so it stays
        async with connect(tmp_path, server) as c:
            await c.type("still there?\n")
            await a.wait_for("still there?\n")
        await stop(server)
        await a.wait_for(GOODBYE)


async def test_connect_works_with_nc_listening(port: int, tmp_path: Path) -> None:
    async with Command(tmp_path, program("nc"), "-l", LOOPBACK, str(port)) as nc:
        await _until_listening(nc, port)
        async with Command(
            tmp_path, MULTICHAT, "connect", "--plain", LOOPBACK, str(port)
        ) as client:
            await client.wait_for("Connected")
            await client.type("hello, nc\n")
            await nc.wait_for("hello, nc\n")
            await nc.type("hello, \x1bclient\n")
            await client.wait_for("[client] [RX] hello, ␛client\n")
            client.end_input()  # nc does not close: it is given two seconds
            assert await client.wait() == 0


async def _until_listening(command: Command, port: int) -> None:
    """Wait until *port* is taken, without connecting: some listen only once."""
    state_listen = f"{port:04X} 00000000:0000 0A"
    while state_listen not in Path("/proc/net/tcp").read_text("ascii"):
        assert command.process.poll() is None
        await trio.sleep(0.02)


async def test_connect_works_with_ncat_chat(port: int, tmp_path: Path) -> None:
    ncat = Command(tmp_path, program("ncat"), "-l", LOOPBACK, str(port), "--chat")
    async with ncat:
        await _until_listening(ncat, port)
        async with (
            Command(tmp_path, MULTICHAT, "connect", LOOPBACK, str(port)) as a,
            Command(tmp_path, MULTICHAT, "connect", LOOPBACK, str(port)) as b,
        ):
            await a.wait_for("Connected")
            await b.wait_for("Connected")
            await b.wait_for("<announce>")
            await a.type("hello, ncat\n")
            await b.wait_for("> hello, ncat\n")


async def test_a_peer_that_sends_eof_at_once_receives_everything(port: int, tmp_path: Path) -> None:
    """`ncat -l </dev/null` closes its side at once, and still reads."""
    ncat = Command(tmp_path, program("ncat"), "-l", LOOPBACK, str(port), stdin=subprocess.DEVNULL)
    async with ncat:
        await _until_listening(ncat, port)
        async with Command(
            tmp_path, MULTICHAT, "connect", "--plain", LOOPBACK, str(port)
        ) as client:
            await client.type("one\ntwo\n")
            client.end_input()
            assert await client.wait() == 0
        await ncat.wait_for("one\ntwo\n")


# --- The client ------------------------------------------------------------------------------


async def test_piped_input_is_sent_completely(tmp_path: Path) -> None:
    options = ("--listen", "--no-reconnect")
    async with serve(tmp_path) as server, connect(tmp_path, server, *options) as listener:
        await listener.wait_for("you are Client 1")
        async with connect(tmp_path, server) as client:
            await client.type("done\nno line end")
            client.end_input()
            assert await client.wait() == 0
            assert client.lines[2:] == [
                "[INFO] [client] [STATE] you are Client 2 in lobby; 2 are here",
                "[INFO] [client] [TX] done",
                "[INFO] [client] [TX] no line end",
                "[INFO] [client] [STATE] Disconnected",
            ]
        await listener.wait_for("[RX] [Client 2] done")
        await listener.wait_for("[RX] [Client 2] no line end")
        await stop(server)
        assert await listener.wait() == 0


async def test_a_hundred_thousand_lines_arrive_whole_and_in_order(tmp_path: Path) -> None:
    """At three receivers; one of them takes a while before it reads at all, and then little."""
    count = 100_000
    expected = b"".join(b"[Client 4] line %d\n" % i for i in range(count))
    received = [bytearray() for _ in range(3)]

    async def receive(stream: trio.SocketStream, into: bytearray, pause: float) -> None:
        await trio.sleep(pause * 100)
        while len(into) < len(expected):
            data = await stream.receive_some(16 * 1024 if pause else 1 << 20)
            assert data, into[-200:]
            into += data
            await trio.sleep(pause)

    options = ("--log-file", str(tmp_path / "log"), "--log-rate", "0", "--slow-timeout", "60")
    async with serve(tmp_path, *options) as server:
        async with (
            tcp(server) as a,
            tcp(server) as b,
            tcp(server) as c,
            trio.open_nursery() as nursery,
        ):
            await server.wait_for("Client 3 connected")
            for stream, into, pause in zip((a, b, c), received, (0, 0, 0.005), strict=True):
                nursery.start_soon(receive, stream, into, pause)
            async with connect(tmp_path, server) as client:
                await client.type("".join(f"line {i}\n" for i in range(count)))
                client.end_input()
                assert await client.wait() == 0
        assert [bytes(into) == expected for into in received] == [True] * 3
        await stop(server)
    log = (tmp_path / "log").read_text("utf-8")
    assert log.count("[RX] [Client 4] line ") == count
    assert log.count("[BROADCAST] Broadcasting to 4 clients") == count
    assert server.out == log


async def test_local_commands(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        for leave in ("/quit", "/exit"):
            async with connect(tmp_path, server) as client:
                await client.type(f"one\n/status\n/ping\n{leave}\nnever said\n")
                assert await client.wait() == 0
                assert client.lines[3] == "[INFO] [client] [TX] one"
                assert re.fullmatch(
                    r"\[INFO\] \[client\] \[STATE\] Connected to \S+ for \d+ s; "
                    r"1 sent, 0 received",
                    client.lines[4],
                )
                assert "[INFO] [client] [RX] [Server] pong" in client.lines
                assert client.lines[-1] == "[INFO] [client] [STATE] Disconnected"
        assert "never said" not in server.out


async def test_in_a_pipe_a_path_is_sent_and_a_disguised_command_is_not(tmp_path: Path) -> None:
    disguised = ["  /msg bob x", "\\who is this"]
    lines = ["/usr/bin/ld: no such file", "/quti", "//x", "/dev/null is full", " /dev is full"]
    async with serve(tmp_path) as server:
        async with connect(tmp_path, server) as client:
            await client.type("".join(f"{line}\n" for line in [*disguised, *lines, *disguised]))
            client.end_input()
            assert await client.wait() == 0
            assert [line for line in client.lines if "[TX]" in line] == [
                f"[INFO] [client] [TX] {line}" for line in lines
            ]
            assert "unknown command" not in client.out
            assert client.err == (
                "multichat: 4 lines not said, the first: "
                "not sent, because it looks like /msg: type /msg to run it, //msg to say it\n"
            )
        await server.wait_for("Client 1 disconnected")
        said = [line.partition("[Client 1] ")[2] for line in server.lines if "[RX]" in line]
        assert said == [*lines[:2], "/x", *lines[3:]]


async def test_send_sends_each_line_unchanged(tmp_path: Path) -> None:
    lines = ["/usr/bin/ld: no such file", "/quit", " /msg bob x", "//x", "\ufeffx /who", "/json {}"]
    async with serve(tmp_path) as server:
        async with Command(tmp_path, MULTICHAT, "send", LOOPBACK, str(server.port), "-") as client:
            await client.type("".join(f"{line}\n" for line in lines))
            client.end_input()
            assert await client.wait() == 0
        await server.wait_for("Client 1 disconnected")
        said = [line.partition("[Client 1] ")[2] for line in server.lines if "[RX]" in line]
        assert said == [clean(line) for line in lines]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
async def test_a_signal_leaves_at_once_with_status_0(
    number: signal.Signals, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        connect(tmp_path, server) as talking,
        connect(tmp_path, server, "--listen") as listening,
    ):
        for client in (talking, listening):
            await client.wait_for("Connected")
            client.signal(number)
        for client in (talking, listening):
            assert await client.wait() == 0
            assert client.err == ""
            assert client.lines[-1] == "[INFO] [client] [STATE] Disconnected"


async def test_listen_ignores_standard_input(tmp_path: Path) -> None:
    options = ("--listen", "--no-reconnect")
    async with serve(tmp_path) as server, connect(tmp_path, server, *options) as client:
        await client.type("not for you\n")
        client.end_input()
        await client.wait_for("you are Client 1")
        async with tcp(server) as other:
            await other.send_all(b"hello\n")
            await client.wait_for("[RX] [Client 2] hello")
        assert "not for you" not in server.out
        await stop(server)
        assert await client.wait() == 0


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (LOOPBACK, "connection refused"),
        ("no-such-host.invalid", "name or service not known"),
    ],
)
async def test_an_unreachable_server_is_one_line_of_error(
    host: str, reason: str, port: int, tmp_path: Path
) -> None:
    async with Command(tmp_path, MULTICHAT, "connect", host, str(port)) as client:
        assert await client.wait() == 1
        assert client.err == f"multichat: cannot connect to {host} port {port}: {reason}\n"
        assert client.lines == [f"[INFO] [client] [start] Connecting to {host}:{port}"]


async def test_a_server_that_is_killed_is_one_line(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server, "--no-reconnect") as client:
        await client.wait_for("you are Client 1")
        server.process.kill()
        assert await client.wait() == 1
        assert re.fullmatch(
            "multichat: connection lost: (the server closed the connection|connection reset)\n",
            client.err,
        )
        assert client.lines[-1] == "[INFO] [client] [STATE] Disconnected"


async def test_a_client_without_standard_input_leaves(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        command = [MULTICHAT, "connect", LOOPBACK, str(server.port)]
        script = f"exec {' '.join(command)} <&-"
        async with Command(tmp_path, "/bin/sh", "-c", script) as client:
            assert await client.wait() == 0
            assert client.err == ""


async def test_a_client_whose_output_is_closed_ends_at_the_next_message(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, tcp(server) as other:
        await server.wait_for("Client 1 connected")
        script = f"{MULTICHAT} connect --listen {LOOPBACK} {server.port} | head -n 2; true"
        async with Command(tmp_path, "/bin/sh", "-c", script) as client:
            await server.wait_for("Client 2 connected")
            await client.wait_for("Connected")
            while client.process.poll() is None:
                await other.send_all(b"hello\n")
                await trio.sleep(0.05)
            assert client.err == "multichat: cannot write to standard output: broken pipe\n"


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["--listen"], "Connected"),
        ([], "Connected"),
        (["--plain"], "Connected"),
        (["--json", "--listen"], "welcome"),
        (["--json"], "welcome"),
    ],
    ids=" ".join,
)
async def test_a_client_whose_output_is_closed_ends_even_if_no_message_comes(
    options: list[str], first: str, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        connect = f"{MULTICHAT} connect {shlex.join(options)} {LOOPBACK} {server.port}"
        script = f"{{ {connect}; echo status=$? >&2; }} | grep -m 1 -o {first}"
        async with Command(tmp_path, "/bin/sh", "-c", script) as client:
            await client.wait_for(first)
            assert await client.wait() == 0
            assert client.err == (
                "multichat: cannot write to standard output: broken pipe\nstatus=1\n"
            )


@contextmanager
def slow_output(*argv: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A client whose output is a pipe, to be read; killed at the end, so that its reader ends."""
    read, write = os.pipe()
    client = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=write)
    os.close(write)
    try:
        yield client, read
    finally:
        client.kill()
        client.wait()
        os.close(read)


async def test_a_slow_output_of_the_client_loses_nothing(tmp_path: Path) -> None:
    """More than a pipe and a log hold: the client stops reading until its lines are taken."""
    count, text = 20_000, "x" * 1000
    async with (
        serve(tmp_path, "--log-rate", "0", "--slow-timeout", "60") as server,
        tcp(server) as sender,
        AsyncExitStack() as stack,
    ):
        options = ("--listen", "--no-reconnect", "--name", "ann")
        argv = (MULTICHAT, "connect", *options, LOOPBACK, str(server.port))
        client, read = stack.enter_context(slow_output(*argv))
        await server.wait_for("Client 2 is now called ann")
        chunks: list[bytes] = []

        def read_all() -> None:
            while data := os.read(read, 1 << 20):
                chunks.append(data)

        async with trio.open_nursery() as nursery:

            async def send(start: int, end: int) -> None:
                for i in range(start, end, 100):
                    lines = (f"{j} {text}\n" for j in range(i, i + 100))
                    await sender.send_all("".join(lines).encode())

            await send(0, 2000)
            await server.wait_for("[RX] [Client 1] 1999 ")
            in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
            nursery.start_soon(in_thread, read_all)
            await send(2000, count)
            await server.wait_for(f"[RX] [Client 1] {count - 1} ")
            await stop(server)
        assert client.wait(WAIT_SECONDS) == 0
    lines = b"".join(chunks).decode().splitlines()
    said = [line.rpartition("[Client 1] ")[2] for line in lines if "[Client 1]" in line]
    assert said == [f"{i} {text}" for i in range(count)]


async def test_a_typed_line_that_is_too_long_is_reported(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, connect(tmp_path, server) as client:
        await client.type("before\n" + "x" * 1_100_000 + "\nafter\n")
        client.end_input()
        assert await client.wait() == 0
        assert client.lines[3:6] == [
            "[INFO] [client] [TX] before",
            "[WARNING] [client] [STATE] the line was longer than 1048576 bytes and was dropped",
            "[INFO] [client] [TX] after",
        ]


async def test_an_unreadable_input_counts_as_the_end_of_input(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        with Path(os.devnull).open("wb") as write_only:
            argv = [MULTICHAT, "connect", LOOPBACK, str(server.port)]
            async with Command(tmp_path, *argv, stdin=write_only.fileno()) as client:
                assert await client.wait() == 0
                assert client.err == ""


async def test_messages_unsent_at_a_goodbye_are_reported(tmp_path: Path) -> None:
    async with (
        listening() as (listener, port),
        Command(tmp_path, MULTICHAT, "connect", "--plain", LOOPBACK, str(port)) as client,
    ):
        server = await listener.accept()
        await client.type("x" * 1000 + "\n")
        assert await server.receive_some()

        async def type_on() -> None:
            with suppress(BrokenPipeError):
                await client.type(("x" * 1000 + "\n") * 20_000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(type_on)
            await client.wait_for("[TX]", 2000)
            await server.send_all(b"[Server] goodbye: enough of this\n")
            await server.send_eof()
            status = await client.wait()
        assert status == 1
        await server.aclose()
        assert client.err.count("\n") == 1
        assert "multichat: enough of this; not all of the input was delivered; " in client.err
        assert " lines were not sent, the first is line " in client.err
        assert client.lines[-2:] == [
            "[WARNING] [client] [STATE] What was typed last has not been sent",
            "[INFO] [client] [STATE] Disconnected",
        ]


IMPATIENT = """
import sys, trio, typer
from multichat import ClientTimeouts
from multichat.client.connect import Endpoint
from multichat.client.options import ChatOptions
from multichat.cli.log_client import LogClient
from multichat.log import open_log
from multichat.cli.process import one_line_errors

timeouts = ClientTimeouts(progress=1.0, finish=0.5)
endpoint = Endpoint(host=sys.argv[1], port=int(sys.argv[2]))
try:
    with one_line_errors(), open_log(1) as writer:
        options = ChatOptions(plain=True, timeouts=timeouts)
        trio.run(LogClient(endpoint, options, writer=writer, input_fd=0).run)
except typer.Exit as status:
    sys.exit(status.exit_code)
"""


def impatient(port: int) -> list[str]:
    """`connect --plain`, but for how long it waits for a server that has stopped."""
    return [sys.executable, "-c", IMPATIENT, LOOPBACK, str(port)]


async def test_a_server_that_stops_reading_times_out(tmp_path: Path) -> None:
    async with (
        listening() as (listener, port),
        Command(tmp_path, *impatient(port)) as client,
        await listener.accept(),
    ):
        await client.type("".join(f"{i}\n" for i in range(600_000)))
        client.end_input()
        assert await client.wait() == 1
        assert "connection lost: the server has stopped reading; the last " in client.err


async def test_data_that_only_fits_into_socket_buffers_is_not_a_success(
    tmp_path: Path,
) -> None:
    async with listening() as (listener, port):
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with Command(tmp_path, *impatient(port)) as client, await listener.accept():
            await client.type("x" * 999 + "\n" + ("y" * 999 + "\n") * 40)
            client.end_input()
            assert await client.wait() == 1
            assert "connection lost: the server has stopped reading; the last " in client.err


async def test_a_server_that_closes_before_the_first_message_is_a_lost_connection(
    tmp_path: Path,
) -> None:
    async with (
        listening() as (listener, port),
        Command(tmp_path, MULTICHAT, "connect", LOOPBACK, str(port)) as client,
    ):
        await (await listener.accept()).aclose()
        await client.wait_for("Connected")
        await client.type("done\n")
        client.end_input()
        assert await client.wait() == 1
        assert client.err.startswith("multichat: connection lost: ")


async def test_a_repeated_sighup_does_not_cut_the_goodbyes_short(tmp_path: Path) -> None:
    """A terminal that closes sends it from the shell and from the system."""
    master, slave = os.openpty()
    journal = ("--journal", str(tmp_path / "journal"))
    argv = (MULTICHAT, "serve", "0", "--host", LOOPBACK, *journal)
    async with ServerCommand(tmp_path, *argv, stdin=slave) as server, tcp(server) as a:
        os.close(slave)
        await server.wait_for("Client 1 connected")
        os.close(master)
        for _ in range(3):
            server.signal(signal.SIGHUP)
        data = b""
        while piece := await a.receive_some():
            data += piece
        assert data.decode() == f"{GOODBYE}\n"
        assert await server.wait() == 0
        assert server.err == ""
    assert not (tmp_path / "journal-wal").exists(), "the journal was not closed"


async def test_a_server_under_nohup_ignores_sighup(tmp_path: Path) -> None:
    argv = (program("nohup"), MULTICHAT, "serve", "0", "--host", LOOPBACK)
    async with ServerCommand(tmp_path, *argv) as server, tcp(server) as stream:
        await server.wait_for("Client 1 connected")
        server.signal(signal.SIGHUP)
        await stream.send_all(b"still there?\n")
        await server.wait_for("[RX] [Client 1] still there?")
        server.signal(signal.SIGINT)
        assert await server.wait() == 0


async def test_more_than_two_signals_change_nothing(tmp_path: Path) -> None:
    """However late they arrive: the last ones while the interpreter exits."""
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(_send_many_signals, tmp_path / str(number), number * 0.008)


async def _send_many_signals(folder: Path, pause: float) -> None:
    folder.mkdir()
    async with serve(folder) as server, tcp(server):
        await server.wait_for("Client 1 connected")
        for _ in range(10):
            server.signal(signal.SIGTERM)
            await trio.sleep(pause)
        assert await server.wait() == 0
        assert server.err == ""


async def test_a_server_that_reads_and_stays_is_left_after_two_seconds(tmp_path: Path) -> None:
    async with (
        listening() as (listener, port),
        Command(tmp_path, MULTICHAT, "connect", "--plain", LOOPBACK, str(port)) as client,
    ):
        await client.type("x\n")
        client.end_input()
        async with await listener.accept() as stream:
            assert await stream.receive_some() == b"x\n"
            assert await stream.receive_some() == b""
            assert await client.wait() == 0


async def test_messages_are_shown_even_if_the_output_is_read_late(tmp_path: Path) -> None:
    """At the end of its own input, after the server has gone, with megabytes still to print."""
    count, text = 30_000, "x" * 1000
    async with listening() as (listener, port), AsyncExitStack() as stack:
        client, read = stack.enter_context(slow_output(*impatient(port)))
        async with await listener.accept() as stream, trio.open_nursery() as nursery:

            async def tell() -> None:
                for i in range(0, count, 100):
                    lines = (f"{j} {text}\n" for j in range(i, i + 100))
                    await stream.send_all("".join(lines).encode())
                await stream.send_eof()

            nursery.start_soon(tell)
            assert await stream.receive_some() == b""
            await trio.sleep(2)  # more than it would wait for a silent server
            assert client.poll() is None
            read_text = Path(f"/dev/fd/{read}").read_text
            out = await trio.to_thread.run_sync(read_text, "utf-8", abandon_on_cancel=True)
        assert client.wait(WAIT_SECONDS) == 0
    said = [line.rpartition("[RX] ")[2] for line in out.splitlines() if "[RX]" in line]
    assert said == [f"{i} {text}" for i in range(count)]


async def test_input_made_non_blocking_by_another_process_is_waited_for(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    async with serve(tmp_path) as server:
        argv = [MULTICHAT, "connect", LOOPBACK, str(server.port)]
        async with Command(tmp_path, *argv, stdin=read) as client:
            await client.wait_for("Connected")
            os.write(write, b"patience\n")
            os.close(write)
            assert await client.wait() == 0
            assert "[INFO] [client] [TX] patience" in client.lines
        os.close(read)


# Sends itself the signal of Ctrl+C when the module is imported that is the first argument.
INTERRUPTED_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
module = sys.argv.pop(1)
sys.meta_path.insert(0, Finder)
from multichat.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("typer", "who"),
        ("multichat.cli.commands", "who"),
        ("multichat.cli.who", "who"),
        ("multichat.cli.send", "send"),
        ("multichat.cli.log_client", "connect"),
        ("multichat.server.server", "serve"),
    ],
)
def test_ctrl_c_during_the_imports_ends_quietly_with_the_status_of_a_shell(
    module: str, command: str
) -> None:
    words = {"serve": ["0"], "send": [LOOPBACK, "1", "x"]}.get(command, [LOOPBACK, "1"])
    argv = [sys.executable, "-c", INTERRUPTED_IMPORT, module, command, *words]
    result = subprocess.run(argv, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


# --- The server ------------------------------------------------------------------------------


async def test_two_hundred_clients_at_once(tmp_path: Path) -> None:
    count = 200
    async with serve(tmp_path) as server:
        done = 0
        all_there = trio.Event()

        async def live(number: int) -> None:
            nonlocal done
            async with tcp(server) as stream:
                # Sent once all are there, so that each receives the messages of all others.
                await all_there.wait()
                await stream.send_all(f"hello from {number}\n".encode())
                received = bytearray()
                while received.count(b"\n") < count - 1:
                    data = await stream.receive_some()
                    assert data
                    received += data
                said = {line.split(b"] ", 1)[1] for line in bytes(received).splitlines()}
                assert said == {b"hello from %d" % i for i in range(count) if i != number}
            done += 1

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(live, number)
            await server.wait_for(" connected", count)
            all_there.set()
        assert done == count
        await server.wait_for("disconnected", count)
        await stop(server)
    assert server.out.count("Broadcasting to 200 clients") == count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
async def test_stopped_under_load_it_delivers_all_that_it_had_accepted(
    number: signal.Signals, tmp_path: Path
) -> None:
    limits = ("--log-rate", "0", "--grace", "60", "--slow-timeout", "60")
    async with serve(tmp_path, "--log-file", str(tmp_path / "log"), *limits) as server:
        received: list[bytearray] = [bytearray() for _ in range(3)]

        async def flood(stream: trio.SocketStream) -> None:
            i = 0
            try:
                while True:
                    await stream.send_all(b"".join(b"%d\n" % j for j in range(i, i + 100)))
                    i += 100
            except trio.BrokenResourceError:
                pass

        async def listen(stream: trio.SocketStream, into: bytearray) -> None:
            while data := await stream.receive_some():
                into += data

        async with (
            tcp(server) as a,
            tcp(server) as b,
            tcp(server) as c,
            tcp(server) as sender,
            trio.open_nursery() as nursery,
        ):
            await server.wait_for("Client 4 connected")
            nursery.start_soon(flood, sender)
            for stream, into in zip((a, b, c), received, strict=True):
                nursery.start_soon(listen, stream, into)
            await server.wait_for("[RX] [Client 4] 9999\n")
            await stop(server, number)
    log = (tmp_path / "log").read_text("utf-8")
    accepted = re.findall(r"\[RX\] (\[Client 4\] \d+)\n", log)
    assert accepted == [f"[Client 4] {i}" for i in range(len(accepted))]
    for into in received:
        assert into.decode().splitlines() == [*accepted, GOODBYE]


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with (
        serve(
            tmp_path, "--grace", "600", "--slow", "drop", "--send-queue", "1", "--log-rate", "0"
        ) as server,
        tcp(server) as stalled,
    ):
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await server.wait_for("Client 1 connected")
        async with tcp(server) as sender:  # more than the stalled one's sockets and send queue hold
            for _ in range(200):
                await sender.send_all(b"x" * 60_000 + b"\n")
            await server.wait_for("[BROADCAST]", 200)
        server.signal(signal.SIGINT)
        await server.wait_for("Shutting down")
        await trio.sleep(0.5)
        assert server.process.poll() is None
        server.signal(signal.SIGINT)
        assert await server.wait() == 0
        assert server.err == ""
        await stalled.aclose()


async def test_stopped_while_idle_it_ends_without_the_grace_period(tmp_path: Path) -> None:
    async with serve(tmp_path, "--grace", "600") as server, connect(tmp_path, server) as client:
        await client.wait_for("you are Client 1")
        await stop(server)
        await client.wait_for("Connection lost: the server is shutting down; reconnecting")


async def test_the_limit_of_open_files_is_raised_as_far_as_it_goes(tmp_path: Path) -> None:
    script = f"ulimit -Sn 64; exec {MULTICHAT} serve 0 --host {LOOPBACK}"
    async with ServerCommand(tmp_path, "/bin/sh", "-c", script) as server:
        async with AsyncExitStack() as stack:
            for _ in range(100):
                await stack.enter_async_context(tcp(server))
            await server.wait_for(" connected", 100)
        await stop(server)


async def test_without_free_file_descriptors_the_server_continues_and_reports_it(
    tmp_path: Path,
) -> None:
    script = f"ulimit -n 24; exec {MULTICHAT} serve 0 --host {LOOPBACK}"
    async with ServerCommand(tmp_path, "/bin/sh", "-c", script) as server:
        async with AsyncExitStack() as stack:
            for _ in range(30):
                await stack.enter_async_context(tcp(server))
            await server.wait_for("[ERROR] [server] [STATE] accept returned")
        assert "Traceback" not in server.out
        async with tcp(server) as late:  # clients that left freed their places
            await late.send_all(b"/ping\n")
            assert await late.receive_some() == b"[Server] pong\n"
        await stop(server)


async def test_a_log_on_a_full_disk_continues_when_there_is_space_again(tmp_path: Path) -> None:
    """A limit of the size of files stands for a full disk: writing fails, in mid-line."""
    log = tmp_path / "log"
    async with (
        serve(tmp_path, "--log-file", str(log)) as server,
        tcp(server) as a,
        tcp(server) as b,
    ):

        async def say(text: str) -> None:
            await a.send_all(f"{text}\n".encode())
            assert (await b.receive_some()).decode().endswith(f"] {text}\n")

        async def fill(number: int) -> None:
            size = log.stat().st_size + 8192
            limit = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, limit[1]))
            for i in range(20):
                await say(f"{i} " + "x" * 1000)  # the chat does not care
            while log.stat().st_size < size:
                await trio.sleep(0.01)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limit)
            await say(f"room again {number}")
            while f"] room again {number}\n" not in log.read_text("utf-8"):
                await trio.sleep(0.01)

        await server.wait_for("Client 2 connected")
        with trio.fail_after(WAIT_SECONDS):
            for number in itertools.count():
                await fill(number)
                # The limit may be raised before a write has failed: then try again.
                if "[LOG]" in log.read_text("utf-8"):
                    break
        await stop(server)
    lines = log.read_text("utf-8").splitlines()
    notice = next(i for i, line in enumerate(lines) if "[LOG]" in line)
    assert re.search(r"\[WARNING\] \[server\] \[LOG\] \d+ lines lost: file too", lines[notice])
    # A whole line is all that follows the notice, also where the last one had been torn.
    assert all(re.match(r"\d{4}-\d\d-\d\d .* \[server\] \[", line) for line in lines[notice:])
    assert any("] room again" in line for line in lines[notice:])


async def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        port = str(server.port)
        async with Command(tmp_path, MULTICHAT, "serve", port, "--host", LOOPBACK) as second:
            assert await second.wait() == 1
            assert second.out == ""
            assert second.err == (
                f"multichat: cannot listen on {LOOPBACK} port {port}: address already in use\n"
            )


@pytest.mark.parametrize("option", ["--log-file", "--ban-file", "--journal", "--unix", "--admin"])
async def test_a_file_in_a_missing_directory_is_one_line_that_names_it(
    tmp_path: Path, option: str
) -> None:
    missing = tmp_path / "missing" / "file"
    async with Command(tmp_path, MULTICHAT, "serve", "0", option, str(missing)) as server:
        assert await server.wait() == 1
        assert server.err.endswith(f"{missing}: there is no directory {missing.parent}\n")
        assert server.err.count("\n") == 1


async def test_usage_errors_have_status_2(tmp_path: Path) -> None:
    commands: list[Command] = []
    async with AsyncExitStack() as stack:
        for arguments in (
            ("serve", "70000"),
            ("serve", "--slow", "maybe"),
            ("serve", "--send-queue", "0"),
            ("serve", "--slow-timeout", "nan"),
            ("connect",),
            ("connect", LOOPBACK, "0"),
            ("nonsense",),
        ):
            command = Command(tmp_path, MULTICHAT, *arguments)
            commands.append(await stack.enter_async_context(command))
        for command in commands:
            assert await command.wait() == 2, command.argv
            assert "Traceback" not in command.err, command.argv
            assert command.err.startswith(("Usage: ", "multichat: ")), command.argv


async def test_options_have_environment_variables(tmp_path: Path) -> None:
    shown = subprocess.run([MULTICHAT, "serve", "--help"], capture_output=True, text=True).stdout
    options = set(re.findall(r"^  --([a-z-]+) <", shown, re.MULTILINE))
    assert options == {
        "host", "unix", "unix-mode", "tls-cert", "tls-key", "proxy", "password-file", "max-line",
        "send-queue", "slow", "slow-timeout", "stall-timeout", "max-clients",
        "max-clients-per-address", "rate", "burst", "byte-rate", "memory", "idle", "filter",
        "ban-file", "max-rooms", "max-rooms-per-client", "max-new-rooms", "grace",
        "operators", "operators-file", "registration",
        "log-file", "log-level", "log-format", "log-messages", "log-rate",
        "journal", "durability", "keep-messages", "keep-days", "keep-mib", "max-sessions", "away",
        "drain", "metrics", "metrics-host",
        "cluster", "cluster-password-file", "cluster-ca", "cluster-tls-name",
        "web", "web-host", "web-url", "web-proxy", "webhook-token-file",
    }  # fmt: skip
    together = "".join(shown.split())
    for option in options:
        assert f"[envvar:MULTICHAT_{option.upper().replace('-', '_')}" in together
    script = f"MULTICHAT_MAX_CLIENTS=1 exec {MULTICHAT} serve 0 --host {LOOPBACK}"
    async with ServerCommand(tmp_path, "/bin/sh", "-c", script) as server:
        async with tcp(server), tcp(server) as second:
            assert (
                await second.receive_some() == b"[Server] goodbye: the server is full (limit: 1)\n"
            )
        await stop(server)


async def test_log_levels(port: int, tmp_path: Path) -> None:
    for level, lines in (("warning", 0), ("info", 2)):
        options = ("--host", LOOPBACK, "--log-level", level)
        async with Command(tmp_path, MULTICHAT, "serve", str(port), *options) as server:
            while True:
                try:
                    stream = await trio.open_tcp_stream(LOOPBACK, port)
                except OSError:
                    await trio.sleep(0.02)
                else:
                    break
            await stream.aclose()
            server.signal(signal.SIGTERM)
            assert await server.wait() == 0
            assert len([line for line in server.lines if "start" in line]) == lines


async def test_a_server_whose_standard_output_was_closed_before_it_began(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = f"exec {MULTICHAT} serve 0 --host {LOOPBACK} --log-file {log} >&-"
    async with Command(tmp_path, "/bin/sh", "-c", script) as server:
        with trio.fail_after(WAIT_SECONDS):
            while not log.exists() or "Listening" not in log.read_text("utf-8"):
                await trio.sleep(0.02)
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
        assert server.err == ""


async def test_version(tmp_path: Path) -> None:
    async with Command(tmp_path, MULTICHAT, "--version") as command:
        assert await command.wait() == 0
        assert re.fullmatch(r"multichat \d+\.\d+\.\d+\n", command.out)


async def test_an_unread_log_delays_no_client(port: int, tmp_path: Path) -> None:
    """Standard output is a full pipe: the chat continues, and the server still stops."""
    read, write = os.pipe()
    argv = [MULTICHAT, "serve", str(port), "--host", LOOPBACK]
    process = subprocess.Popen(argv, stdout=write, stderr=subprocess.PIPE)
    try:
        os.close(write)
        first = await trio.to_thread.run_sync(os.read, read, 1000)
        assert b"Starting multi-chat server" in first
        while True:
            try:
                a = await trio.open_tcp_stream(LOOPBACK, port)
            except OSError:
                await trio.sleep(0.02)
            else:
                break
        async with a, await trio.open_tcp_stream(LOOPBACK, port) as b:
            line = b"x" * 1000 + b"\n"
            count = 20_000
            received = 0

            async def listen() -> None:
                nonlocal received
                while received < count * len(b"[Client 1] " + line):
                    received += len(await b.receive_some())

            await b.send_all(b"/ping\n")
            assert await b.receive_some() == b"[Server] pong\n"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                for _ in range(count // 50):
                    await a.send_all(line * 50)
        process.send_signal(signal.SIGINT)
        with trio.fail_after(WAIT_SECONDS):
            while process.poll() is None:
                await trio.sleep(0.02)
        assert process.returncode == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        os.close(read)
        if process.stderr is not None:
            process.stderr.close()
