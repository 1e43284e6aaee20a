"""Real faults on real sockets, which must not affect two clients that chat meanwhile.

Every test has a server process, and checks it at the end: it still runs and serves new clients,
nothing is on standard error, its log has no crash, and it leaks neither files nor memory.
"""

import errno
import os
import random
import re
import resource
import shlex
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import multichat
from multichat.log import open_log
from multichat.net import transport
from multichat.net.listeners import listen_tcp
from multichat.protocol.auth import PASSWORD_ACCEPTED
from tests.support.processes import (
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

MIB = 1024 * 1024

# Tolerance for memory that the allocator keeps, and for up to a thousand sessions.
KEPT_MEMORY = 24 * MIB

# The pause between two lines of the pair.
PAUSE_SECONDS = 0.005

# The same for tests with thousands of clients.
LEISURE_SECONDS = 0.1


def open_files(process: subprocess.Popen[bytes]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def memory_bytes(process: subprocess.Popen[bytes], field: str = "VmRSS") -> int:
    status = Path(f"/proc/{process.pid}/status").read_text("ascii")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while not condition():
            await trio.sleep(0.05)


class Pair:
    """Two honest clients, which `talk` until stopped: each line is sent when the last has arrived.

    Messages of others are collected in `overheard`; each line must be whole and clean.
    """

    def __init__(self, a: trio.SocketStream, b: trio.SocketStream) -> None:
        self._streams = {"ann": a, "ben": b}
        self._halves = dict.fromkeys(self._streams, b"")
        self._lines: dict[str, list[str]] = {name: [] for name in self._streams}
        self.overheard: list[str] = []
        self.said = 0
        self.pause = PAUSE_SECONDS
        self.enough = False

    async def _next(self, listener: str) -> str:
        while not self._lines[listener]:
            data = await self._streams[listener].receive_some(MIB)
            assert data, f"{listener} was disconnected"
            whole, end, half = (self._halves[listener] + data).rpartition(b"\n")
            self._halves[listener] = half
            if end:
                text = whole.decode()  # strict: output is always valid UTF-8
                assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", text)
                self._lines[listener] += text.split("\n")
        return self._lines[listener].pop(0)

    async def introduce(self) -> None:
        for name, stream in self._streams.items():
            await stream.send_all(f"/name {name}\n".encode())
            assert await self._next(name) >= "[Server]"

    async def exchange(self) -> None:
        """Each sends a line, which the other must receive once, whole, and in order."""
        for speaker, listener in (("ann", "ben"), ("ben", "ann")):
            self.said += 1
            await self._streams[speaker].send_all(f"number {self.said}\n".encode())
            with trio.fail_after(WAIT_SECONDS):
                while (line := await self._next(listener)) != f"[{speaker}] number {self.said}":
                    assert not line.startswith(f"[{speaker}]"), line
                    self.overheard.append(line)

    async def talk(self) -> None:
        while not self.enough:
            await self.exchange()
            await trio.sleep(self.pause)


@asynccontextmanager
async def beside(server: ServerCommand, *, password: str = "") -> AsyncIterator[Pair]:
    """Run a talking pair during the block, and check the server afterwards."""
    async with tcp(server) as a, tcp(server) as b:
        pair = Pair(a, b)
        if password:
            for stream in (a, b):
                await log_in(stream, password)
        await pair.introduce()
        await pair.exchange()
        files, memory = open_files(server.process), memory_bytes(server.process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.talk)
            yield pair
            pair.enough = True
        async with tcp(server) as newcomer:
            if password:
                await log_in(newcomer, password)
            await newcomer.send_all(b"/ping\n")
            lines = b""
            with trio.fail_after(WAIT_SECONDS):
                # The last lines of others may still come, before it or after it.
                while b"[Server] pong" not in lines.split(b"\n")[:-1]:
                    data = await newcomer.receive_some()
                    assert data, lines
                    lines += data
        await until(lambda: open_files(server.process) <= files)
        await pair.exchange()
        assert memory_bytes(server.process) - memory < KEPT_MEMORY
    assert server.process.poll() is None
    server.signal(signal.SIGTERM)
    assert await server.wait() == 0
    assert server.err == ""
    assert "Traceback" not in server.out
    assert "crashed" not in server.out


async def log_in(stream: trio.SocketStream, password: str) -> None:
    await stream.send_all(f"/auth {password}\n".encode())
    answer = b""
    with trio.fail_after(WAIT_SECONDS):
        while PASSWORD_ACCEPTED.encode() not in answer:
            data = await stream.receive_some()
            assert data, answer
            answer += data


async def hear_pong(stream: trio.SocketStream) -> bytes:
    """Return everything received up to the answer to a ping, and possibly more."""
    heard = b""
    with trio.fail_after(WAIT_SECONDS):
        while b"[Server] pong\n" not in heard:
            data = await stream.receive_some()
            assert data, heard[-1000:]
            heard += data
    return heard


async def reset(stream: trio.SocketStream) -> None:
    """Close with a reset, like a machine that has restarted."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


async def at_once(count: int, together: int, task: Callable[[int], Awaitable[None]]) -> None:
    """Run *task* for each number below *count*, *together* at a time."""
    limit = trio.CapacityLimiter(together)

    async def one(number: int) -> None:
        async with limit:
            await task(number)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)


# --- Lost connections --------------------------------------------------------------------------


async def test_clients_that_are_killed_in_mid_line(tmp_path: Path) -> None:
    nc = program("nc")
    async with serve(tmp_path) as server, beside(server), AsyncExitStack() as stack:
        victims = [
            connect(tmp_path, server) if i % 5 == 0 else nc_to(tmp_path, nc, server)
            for i in range(20)
        ]
        for victim in victims:
            await stack.enter_async_context(victim)
        await server.wait_for(" connected", 22)
        for victim in victims:
            await victim.type("a whole line\nhalf a li")
        await server.wait_for("] a whole line\n", 20)
        for victim in victims:
            victim.process.kill()
        await server.wait_for(" disconnected", 20)


def nc_to(folder: Path, nc: str, server: ServerCommand) -> Command:
    return Command(folder, nc, LOOPBACK, str(server.port))


async def test_a_storm_of_resets(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, beside(server):

        async def come_and_reset(number: int) -> None:
            stream = await trio.open_tcp_stream(LOOPBACK, server.port)
            if number % 3:
                await stream.send_all(b"half a li" if number % 3 == 1 else b"/who\n/who\n/wh")
            await reset(stream)

        await at_once(1000, 50, come_and_reset)


async def test_five_thousand_connections_opened_and_dropped(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, beside(server) as pair:
        pair.pause = LEISURE_SECONDS

        def come_and_go() -> None:
            for _ in range(5000):
                socket.create_connection((LOOPBACK, server.port)).close()

        await trio.to_thread.run_sync(come_and_go)
    # Connections closed before admission were no clients, and all clients have left.
    assert server.out.count(" connected") == server.out.count(" disconnected")


async def test_two_thousand_connections_that_never_send_the_password(tmp_path: Path) -> None:
    """At most 256 of them are pending at any time: newer ones displace the oldest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2500:
        pytest.skip("not enough open files are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    password = tmp_path / "password"
    password.write_text("open sesame")
    async with (
        serve(tmp_path, "--password-file", str(password)) as server,
        beside(server, password="open sesame"),
        AsyncExitStack() as stack,
    ):

        async def come_and_wait(number: int) -> None:
            stream = await stack.enter_async_context(tcp(server))
            await stream.send_all(b"/auth open sesa")

        await at_once(2000, 50, come_and_wait)
        # On a busy machine some reach the time limit.
        reasons = re.compile("too many connections wait for admission|no password in")
        await until(lambda: len(reasons.findall(server.out)) >= 2000 - 256)
        assert open_files(server.process) < 256 + 64


# --- Invalid input ------------------------------------------------------------------------------


async def test_a_byte_at_a_time(tmp_path: Path) -> None:
    line = b"all good things come to those who wait\n"
    async with serve(tmp_path) as server, beside(server) as pair:

        async def drip(number: int) -> None:
            async with tcp(server) as stream:
                pause = 1.0 if number == 0 else 0.02
                for byte in line[-4:] if number == 0 else line:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(pause)

        await at_once(100, 100, drip)
        await until(lambda: len(pair.overheard) == 2 * 100)
    said = [line.partition("] ")[2] for line in pair.overheard]
    assert sorted(set(said)) == ["ait", "all good things come to those who wait"]


async def test_a_hundred_megabytes_without_a_line_end(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, beside(server) as pair, tcp(server) as stream:
        before = memory_bytes(server.process, "VmHWM")
        block = b"x" * MIB
        for _ in range(100):
            await stream.send_all(block)
        await stream.send_all(b"\nthe next line\n/ping\n")
        heard = await hear_pong(stream)
        told, pong, *half = re.sub(rb"\[(ann|ben)\] number \d+\n", b"", heard).decode().split("\n")
        assert len(half) == 1  # of the messages that the pair keeps sending
        assert told == "[Server] the line was longer than 65536 bytes and was dropped"
        assert pong == "[Server] pong"
        assert memory_bytes(server.process, "VmHWM") - before < 8 * MIB
        await until(lambda: len(pair.overheard) == 2)
        assert pair.overheard == ["[Client 3] the next line"] * 2


def client_hello() -> bytes:
    """Return the first bytes of a browser on an https URL."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="chat.test")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


async def test_clients_of_other_protocols(tmp_path: Path) -> None:
    """TLS, also byte by byte, and HTTP: each is only one line in the log."""
    hello = client_hello()
    post = b"POST /api HTTP/1.1\r\nHost: chat\r\nContent-Length: 21\r\n\r\nnothing for the others"
    get = b"GET / HTTP/1.1\r\nHost: chat\r\n\r\n"
    async with serve(tmp_path) as server, beside(server) as pair:
        for pieces in ([hello], [hello[:1], hello[1:2], hello[2:]], [post], [get]):
            async with tcp(server) as stream:
                for piece in pieces:
                    await stream.send_all(piece)
                    await trio.sleep(0.05)
                heard = b""
                with trio.fail_after(WAIT_SECONDS), suppress(trio.BrokenResourceError):
                    while data := await stream.receive_some():
                        heard += data
            heard = re.sub(rb"\[(ann|ben)\] number \d+\n", b"", heard)
            if pieces[0].startswith(b"\x16"):
                assert b"omit --tls" in heard
            else:
                assert heard.startswith(b"HTTP/1.0 400 Bad Request\r\n")
                assert b"not a web server" in heard
        await server.wait_for(" disconnected", 4)
    assert pair.overheard == []
    assert (
        server.out.count("disconnected (the client uses TLS, which this port does not support)\n")
        == 2
    )
    assert server.out.count("disconnected (the client speaks HTTP; this is a chat server)\n") == 2


async def test_a_telnet_client_negotiates_and_talks(tmp_path: Path) -> None:
    negotiation = b"\xff\xfb\x1f\xff\xfd\x03\xff\xfa\x18\x00xterm\xff\xf0\xff\xf1"
    async with serve(tmp_path) as server, beside(server) as pair, tcp(server) as stream:
        await stream.send_all(negotiation + b"hello \xff\xf1from telnet\r\n")
        await until(lambda: len(pair.overheard) == 2)
    assert pair.overheard == ["[Client 3] hello from telnet"] * 2


async def test_noise_of_every_byte_value(tmp_path: Path) -> None:
    """The pair checks its input: complete lines of text without control characters."""
    async with serve(tmp_path) as server, beside(server) as pair:

        async def make_noise(number: int) -> None:
            noise = random.Random(number).randbytes(300_000)
            assert len(set(noise)) == 256
            async with tcp(server) as stream, trio.open_nursery() as nursery:

                async def listen() -> None:
                    while await stream.receive_some(MIB):
                        pass

                nursery.start_soon(listen)
                await stream.send_all(noise)
                await stream.send_eof()

        await at_once(5, 5, make_noise)
    assert len(pair.overheard) > 5000
    for line in pair.overheard:
        assert re.match(r"\[Client [3-7]\] .|\* Client [3-7] ", line), line


# --- Missing resources --------------------------------------------------------------------------


async def test_with_64_open_files_some_clients_wait_and_the_others_are_served(
    tmp_path: Path,
) -> None:
    script = f"ulimit -n 64; exec {MULTICHAT} serve 0 --host {LOOPBACK}"
    async with (
        ServerCommand(tmp_path, "/bin/sh", "-c", script) as server,
        beside(server) as pair,
    ):
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(tcp(server)) for _ in range(100)]
            await server.wait_for("[ERROR] [server] [STATE] accept returned EMFILE")
            assert open_files(server.process) <= 64
            pair.pause = 0.25  # to measure the cost of waiting connections
            spent, said = processor_seconds(server.process), pair.said
            await trio.sleep(2)
            # Ten attempts a second; a busy loop would take all of the two seconds.
            assert processor_seconds(server.process) - spent < 0.5
            assert pair.said > said
            pair.pause = PAUSE_SECONDS
            for stream in streams[:60]:
                await stream.aclose()
            await streams[-1].send_all(b"/ping\n")
            await hear_pong(streams[-1])
        assert server.out.count("accept returned") == 1
        assert "The system allows 64 open files, and 1024 clients need 1536: raise" in server.out


class Scarce(trio.abc.Listener[trio.SocketStream]):
    """A listener whose accept fails a few times with each error of missing resources."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.socket = listener.socket
        self._listener = listener
        self.refusals = [
            number for number in (errno.ENFILE, errno.ENOMEM, errno.ENOBUFS) for _ in range(3)
        ]

    async def accept(self) -> trio.SocketStream:
        if self.refusals:
            number = self.refusals.pop()
            raise OSError(number, os.strerror(number))
        return await self._listener.accept()

    async def aclose(self) -> None:
        await self._listener.aclose()


async def test_a_failing_accept_is_retried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stub, because a test cannot exhaust the files or the memory of the system."""
    listeners: list[Scarce] = []

    async def listen(*args: Any) -> list[Scarce]:
        listeners.extend(map(Scarce, await listen_tcp(*args)))
        return listeners

    monkeypatch.setattr("multichat.server.listening.listen_tcp", listen)
    log = tmp_path / "log"
    with log.open("wb") as output, open_log(output.fileno()):
        async with trio.open_nursery() as nursery:
            serve = partial(multichat.serve, 0, host=LOOPBACK)
            server: multichat.Server = await nursery.start(serve)
            stream = await trio.open_tcp_stream(LOOPBACK, server.port)
            async with stream:
                await stream.send_all(b"/ping\n")
                with trio.fail_after(WAIT_SECONDS):
                    assert await stream.receive_some() == b"[Server] pong\n"
            server.shutdown()
    assert [listener.refusals for listener in listeners] == [[]]
    said = log.read_text("utf-8")
    assert said.count("accept returned") == 1
    assert "Traceback" not in said


class Elsewhere(ServerCommand):
    """A server whose log is read from its log file, because its standard output is special."""

    def __init__(self, folder: Path, stdout: str) -> None:
        self._log = folder / "log"
        self._log.touch()
        argv = [MULTICHAT, "serve", "0", "--host", LOOPBACK, "--log-file", str(self._log)]
        script = f"exec {shlex.join(argv)} > {shlex.quote(stdout)}"
        super().__init__(folder, "/bin/sh", "-c", script)

    @property
    def out(self) -> str:
        return self._log.read_text("utf-8", "replace")


async def test_a_server_survives_a_closed_standard_output(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    async with Elsewhere(tmp_path, str(pipe)) as server, beside(server) as pair:
        os.close(reader)
        said = pair.said
        await until(lambda: pair.said > said + 20)


async def test_a_server_survives_a_full_standard_output(tmp_path: Path) -> None:
    async with Elsewhere(tmp_path, "/dev/full") as server, beside(server) as pair:
        await until(lambda: pair.said > 20)


async def test_a_server_survives_a_full_log_file(tmp_path: Path) -> None:
    async with serve(tmp_path, "--log-file", "/dev/full") as server, beside(server) as pair:
        await until(lambda: pair.said > 20)


@pytest.mark.parametrize(
    ("stdout", "log_file"), [("/dev/full", "log"), ("out", "/dev/full")], ids=["stdout", "file"]
)
async def test_the_working_log_reports_the_failing_one_once(
    stdout: str, log_file: str, tmp_path: Path
) -> None:
    argv = [MULTICHAT, "serve", "0", "--host", LOOPBACK, "--log-file", log_file]
    script = f"cd {shlex.quote(str(tmp_path))}; exec {shlex.join(argv)} > {stdout}"
    log = tmp_path / (log_file if stdout == "/dev/full" else stdout)
    log.touch()
    async with Command(tmp_path, "/bin/sh", "-c", script) as server:
        await until(lambda: "Listening on" in log.read_text("utf-8"))
        found = re.search(r"server on port (\d+)", log.read_text("utf-8"))
        assert found
        for _ in range(10):
            async with await trio.open_tcp_stream(LOOPBACK, int(found[1])) as stream:
                await stream.send_all(b"/ping\n")
                assert await stream.receive_some() == b"[Server] pong\n"
            await trio.sleep(0.02)  # so that it is a batch of its own
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
    assert log.read_text("utf-8").count("no space left on device") == 1


async def test_sigpipe_is_ignored(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, beside(server) as pair:
        server.signal(signal.SIGPIPE)
        said = pair.said
        await until(lambda: pair.said > said + 10)


# --- Silent peers -------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has all of these")
async def test_tcp_keepalive_is_enabled() -> None:
    server = multichat.Server(multichat.ServerConfig(stall_timeout_seconds=5))
    async with (
        listening() as (listener, port),
        server.open(),
        await trio.open_tcp_stream(LOOPBACK, port) as client,
        trio.open_nursery() as nursery,
    ):
        accepted = await listener.accept()
        nursery.start_soon(server.handle, accepted)
        await client.send_all(b"/ping\n")
        assert await client.receive_some() == b"[Server] pong\n"

        def option(name: str) -> int:
            number = accepted.socket.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            assert isinstance(number, int)
            return number

        assert accepted.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        # Probes after 30 s of silence, every 30 s; gives up a minute after the stall timeout.
        assert (option("TCP_KEEPIDLE"), option("TCP_KEEPINTVL"), option("TCP_KEEPCNT")) == (
            transport.KEEP_ALIVE_SECONDS,
            transport.KEEP_ALIVE_SECONDS,
            3,
        )
        # Not before the server disconnects a lagging client that takes nothing.
        assert option("TCP_USER_TIMEOUT") == (transport.USER_TIMEOUT_SECONDS + 5) * 1000
        await client.aclose()


async def test_idle_disconnects_a_silent_client(tmp_path: Path) -> None:
    async with serve(tmp_path, "--idle", "0.2") as server, tcp(server) as silent:
        heard = b""
        with trio.fail_after(WAIT_SECONDS):
            while data := await silent.receive_some():
                heard += data
        assert heard == b"[Server] goodbye: idle for 0.2 s\n"
        await server.wait_for("Client 1 disconnected (idle for 0.2 s)\n")
