"""SIGHUP to a real server: its files are read again, and the clients stay connected throughout."""

import os
import re
import signal
import ssl
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

import multichat
from multichat import Chat, Goodbye, Refused, client_tls
from tests.support.crowd import Crowd
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    serve,
    tcp,
)
from tests.support.web import parse_answer, posting, read_all

pytestmark = pytest.mark.process

RELOADED = "[reload] Reloaded: "
DONE = "Reloaded: log file, certificate, password, operators, webhook tokens, bans"
TOKENS = "first-token-of-16-or-more", "second-token-of-16-or-more"
PASSPHRASE = "correct horse battery staple"


@dataclass
class Files:
    """The files of a server that has all of them, and its authority."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.certify()
        self.write("password", "first\n")
        self.write("operators", "# none yet\n")
        self.write("tokens", f"{TOKENS[0]}\n")
        self.write("bans", "# none yet\n")
        self.ca.cert_pem.write_to_path(str(self.path("ca")))

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, text: str) -> None:
        self.path(name).write_text(text, "utf-8")
        self.path(name).chmod(0o600)

    def certify(self, *, days: int = 90) -> None:
        """Make a new certificate, that is valid for so many days from now."""
        ends = datetime.now(UTC) + timedelta(days=days)
        leaf = self.ca.issue_cert(LOOPBACK, not_before=ends - timedelta(days=365), not_after=ends)
        text = leaf.private_key_and_cert_chain_pem.bytes().decode()
        self.write("chain.new", text)
        self.path("chain.new").replace(self.path("chain"))  # at once, as a program does

    @property
    def options(self) -> list[str]:
        named = {
            "tls-cert": "chain",
            "password-file": "password",
            "operators-file": "operators",
            "webhook-token-file": "tokens",
            "ban-file": "bans",
            "log-file": "log",
            "journal": "journal",
        }
        return [f"--{option}={self.path(name)}" for option, name in named.items()]

    def tls(self) -> ssl.SSLContext:
        return client_tls(self.path("ca"))

    def connect(
        self, server: ServerCommand, name: str, password: str
    ) -> AbstractAsyncContextManager[Chat]:
        """Connect a client that does not reconnect."""
        return multichat.connect(
            LOOPBACK,
            server.port,
            tls=self.tls(),
            name=name,
            password=password,
            reconnect=False,
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "files")


async def reload(server: ServerCommand) -> list[str]:
    """Send SIGHUP; return the lines about it, of which the last says what was reloaded."""
    before = server.out.count(RELOADED)
    server.signal(signal.SIGHUP)
    await server.wait_for(RELOADED, before + 1)
    lines = [line for line in server.lines if "[reload]" in line]
    ends = [0, *(n for n, line in enumerate(lines, 1) if RELOADED in line)]
    return lines[ends[before] : ends[before + 1]]


def served(port: int) -> bytes:
    """The certificate that a new connection is shown."""
    return ssl.get_server_certificate((LOOPBACK, port)).encode()


async def post(server: ServerCommand, files: Files, token: str) -> int:
    """Post a message; return the status of the answer."""
    stream = await trio.open_ssl_over_tcp_stream(
        LOOPBACK, await server.web_port(), ssl_context=files.tls(), https_compatible=True
    )
    async with stream:
        await stream.send_all(posting(b"posted", token=token, host=LOOPBACK))
        return parse_answer(await read_all(stream)).status


async def is_heard(speaker: Chat, listener: Chat, text: str) -> None:
    await speaker.send(text)
    with trio.fail_after(WAIT_SECONDS):
        async for event in listener:
            if getattr(event, "text", "") == text:
                return
    pytest.fail(f"the listener has left: {listener.goodbye}")


async def test_everything_is_reloaded_and_the_clients_stay(files: Files, tmp_path: Path) -> None:
    async with serve(tmp_path, "--web", "0", *files.options) as server:
        assert "expire" not in server.out
        async with (
            files.connect(server, "alice", "first") as alice,
            files.connect(server, "bob", "first") as bob,
            files.connect(server, "mallory", "first") as mallory,
        ):
            await bob.register(PASSPHRASE)
            with pytest.raises(Refused, match="only an operator"):
                await bob.bans()
            first = served(server.port)
            assert await post(server, files, TOKENS[0]) == 201
            assert await post(server, files, TOKENS[1]) == 401

            files.certify(days=3)
            files.write("password", "second\n")
            files.write("operators", "bob\n")
            files.write("tokens", f"{TOKENS[1]}\n")
            files.write("bans", "name mallory because spam\n")
            files.path("log").rename(files.path("log.1"))
            lines = await reload(server)

            assert re.search(r"\[WARNING\] .* expires on .*, in 2 days: renew it", lines[0])
            assert DONE in lines[1]
            assert len(lines) == 2
            # The certificate: for new connections.
            second = await trio.to_thread.run_sync(served, server.port)
            assert second != first
            # The password: for new connections.
            with pytest.raises(Refused, match="password"):
                async with files.connect(server, "carol", "first"):
                    pass
            async with files.connect(server, "carol", "second") as carol:
                await is_heard(carol, alice, "hello")
            # The tokens.
            assert await post(server, files, TOKENS[0]) == 401
            assert await post(server, files, TOKENS[1]) == 201
            # The operators.
            [ban] = await bob.bans()
            assert ban.what == "name mallory"
            # The bans.
            with trio.fail_after(WAIT_SECONDS):
                events = [event async for event in mallory]
            assert isinstance(events[-1], Goodbye)
            assert events[-1].code == "banned"
            files.write("bans", "")
            await reload(server)
            async with files.connect(server, "mallory", "second"):
                pass
            # Those who were there before are still there.
            await is_heard(alice, bob, "still here?")
            await is_heard(bob, alice, "yes")
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
        assert server.err == ""
    old, new = (files.path(name).read_text("utf-8") for name in ("log.1", "log"))
    assert old + new == server.out
    assert old
    assert RELOADED in new


# --- Invalid files -------------------------------------------------------------------------------


def break_file(path: Path, fault: str) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    match fault:
        case "empty":
            path.touch()
        case "a folder":
            path.mkdir()
        case "a FIFO without a writer":
            os.mkfifo(path)
        case "huge":
            path.touch()
            os.truncate(path, 1 << 40)
        case "binary":
            path.write_bytes(bytes(range(256)) * 16)


# Without a file there are no operators, and no bans.
WRONG = {
    "chain": ("certificate", "missing", "empty", "a folder", "a FIFO without a writer", "huge"),
    "password": ("password", "missing", "empty", "a folder", "huge", "binary"),
    "operators": ("operators", "missing", "a folder", "a FIFO without a writer", "huge", "binary"),
    "tokens": ("webhook tokens", "missing", "empty", "a FIFO without a writer", "huge", "binary"),
    "bans": ("bans", "missing", "a folder", "a FIFO without a writer", "huge", "binary"),
    "log": ("log file", "a folder", "a FIFO without a writer"),
}


async def test_an_invalid_file_is_one_line_and_its_old_contents_stay_in_force(
    files: Files, tmp_path: Path
) -> None:
    files.write("bans", "name mallory\n")
    async with (
        serve(tmp_path, "--web", "0", *files.options) as server,
        files.connect(server, "alice", "first") as alice,
    ):
        good = {name: files.path(name).read_bytes() for name in WRONG}
        first = await trio.to_thread.run_sync(served, server.port)
        for name, (part, *faults) in WRONG.items():
            for fault in faults:
                path = files.path(name)
                break_file(path, fault)
                *failed, done = await reload(server)
                context = f"{name} {fault}: {done} {failed}"
                assert len(failed) == 1, context
                assert (
                    f"[ERROR] [server] [reload] Could not reload the {part} (unchanged): "
                    in (failed[0])
                ), context
                assert str(path) in failed[0], context
                assert part not in done.partition(RELOADED)[2].split(", "), context
                assert done.count(",") == DONE.count(",") - 1, context
            break_file(path, "missing")  # the last fault is over
            path.write_bytes(good[name])
            path.chmod(0o600)
            assert len(await reload(server)) == 1, name
        # Nothing has changed.
        assert await trio.to_thread.run_sync(served, server.port) == first
        with pytest.raises(Refused, match="banned"):
            async with files.connect(server, "mallory", "first"):
                pass
        async with files.connect(server, "bob", "first") as bob:
            await is_heard(bob, alice, "all is well")
        assert await post(server, files, TOKENS[0]) == 201
        assert "Traceback" not in server.out


async def test_a_mistake_in_a_list_names_the_file_and_the_line(
    files: Files, tmp_path: Path
) -> None:
    async with serve(tmp_path, "--web", "0", *files.options) as server:
        for name, text in (
            ("operators", "# us\nbob\n\na/b\n"),
            ("tokens", f"# ours\n{TOKENS[0]}\n\nshort\n"),
            ("bans", "# theirs\nname bob\n\nname bob whatever\n"),
        ):
            good = files.path(name).read_text("utf-8")
            files.write(name, text)
            failed, _ = await reload(server)
            assert f" {files.path(name)} line 4: " in failed
            files.write(name, good)


async def test_a_key_of_another_certificate_and_an_expired_one_are_refused(
    files: Files, tmp_path: Path
) -> None:
    async with serve(tmp_path, "--web", "0", *files.options) as server:
        first = await trio.to_thread.run_sync(served, server.port)
        chain = files.path("chain").read_text("utf-8")
        files.certify()
        other = files.path("chain").read_text("utf-8")
        key, certificates = chain.index("-----BEGIN CERT"), other.index("-----BEGIN CERT")
        files.write("chain", chain[:key] + other[certificates:])
        failed, _ = await reload(server)
        assert "belongs to another certificate" in failed
        files.certify(days=-1)
        failed, _ = await reload(server)
        assert "the certificate expired on " in failed
        assert await trio.to_thread.run_sync(served, server.port) == first


async def test_a_pipe_that_gave_the_password_is_not_read_again(tmp_path: Path) -> None:
    """As from `--password-file <(pass show chat)`; the reload does not wait for long."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.Path(fifo).write_text, "secret\n")
        async with serve(tmp_path, f"--password-file={fifo}") as server:
            with trio.fail_after(WAIT_SECONDS):
                failed, _ = await reload(server)
            assert "Could not reload the password (unchanged)" in failed
            connect = partial(multichat.connect, LOOPBACK, server.port, password="secret")
            async with connect(name="alice") as alice:
                assert alice.name == "alice"


# --- Under load ----------------------------------------------------------------------------------

RX = re.compile(r"\S+ \S+ \[INFO\] \[server\] \[RX\] \[Client 1\] (\d+) x+")
TAIL = re.compile(r"\S+ \S+ \[INFO\] \[server\] \[BROADCAST\] Broadcasting to \d+ clients")


async def test_a_log_that_is_rotated_under_a_flood_has_every_line(tmp_path: Path) -> None:
    log, rotations = tmp_path / "log", 20
    options = (f"--log-file={log}", "--log-rate", "0", "--slow-timeout", "60")
    async with serve(tmp_path, *options) as server, tcp(server) as stream:
        await server.wait_for("Client 1 connected")
        count, is_rotated, is_over = 0, False, trio.Event()

        async def flood() -> None:
            nonlocal count
            while not is_rotated:
                lines = [f"{number} {'x' * 60}\n" for number in range(count, count + 100)]
                await stream.send_all("".join(lines).encode())
                count += 100
            is_over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_discard, stream)
            nursery.start_soon(flood)
            for number in range(rotations):
                log.rename(tmp_path / f"log.{number:02}")
                server.signal(signal.SIGHUP)
                with trio.fail_after(WAIT_SECONDS):
                    while not log.exists() or not log.stat().st_size:
                        await trio.sleep(0.002)
            is_rotated = True
            with trio.fail_after(WAIT_SECONDS):
                await is_over.wait()
            await server.wait_for(f"[Client 1] {count - 1} ")
            nursery.cancel_scope.cancel(reason="all was logged")
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
    files = [*sorted(tmp_path.glob("log.*")), log]
    numbers: list[int] = []
    for file in files:
        data = file.read_bytes()
        assert data.endswith(b"\n")
        for line in data.decode().splitlines():
            assert "skipped" not in line
            assert "lost" not in line
            if (said := RX.fullmatch(line)) is not None:
                numbers.append(int(said[1]))
            else:
                assert TAIL.fullmatch(line) or "[RX]" not in line, line
    assert numbers == list(range(count))
    assert len(files) == rotations + 1
    assert sum("[RX]" in file.read_text("utf-8") for file in files) > rotations / 2


async def _discard(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


# Runs `multichat` with the arguments after the first two.  Before it imports the command line, it
# closes the descriptor that is the first, and sends itself the signal that is the second.
INTERRUPTED_START = """
import os, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == "multichat.cli":
            if closed >= 0:
                os.close(closed)
            os.kill(os.getpid(), number)
closed, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
sys.meta_path.insert(0, Finder)
from multichat.__main__ import main
main()
"""


def interrupted_start(
    tmp_path: Path, *argv: str, closed: int = -1, stdin: int | None = None
) -> Command:
    code = sys.executable, "-c", INTERRUPTED_START, str(closed), str(int(signal.SIGHUP))
    return Command(tmp_path, *code, *argv, stdin=stdin)


async def test_a_sighup_before_the_server_has_imported_anything_reloads_it(tmp_path: Path) -> None:
    async with interrupted_start(tmp_path, "serve", "0", "--host", LOOPBACK) as server:
        await server.wait_for(RELOADED)
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
        assert server.err == ""


async def test_a_sighup_ends_a_client_that_starts(tmp_path: Path) -> None:
    async with interrupted_start(tmp_path, "connect", LOOPBACK, "1") as client:
        assert await client.wait() == -signal.SIGHUP


async def test_a_server_ends_whose_terminal_closes_while_it_starts(tmp_path: Path) -> None:
    master, slave = os.openpty()
    start = interrupted_start(
        tmp_path, "serve", "0", "--host", LOOPBACK, closed=master, stdin=slave
    )
    start.passed = (master,)
    async with start as server:
        os.close(master)
        os.close(slave)
        await server.wait_for("Listening on")
        assert await server.wait() == 0


async def test_fifty_reloads_under_load_lose_no_message_and_no_client(
    files: Files, tmp_path: Path
) -> None:
    files.write("password", "unused\n")
    options = [each for each in files.options if "tls" not in each and "password" not in each]
    async with serve(tmp_path, "--web", "0", *options) as server:
        crowd = Crowd(server.port, 20, rooms=2, members=3, burst=20, pause_seconds=0.02)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.run)
            with trio.fail_after(WAIT_SECONDS):
                while not crowd.ready:
                    await trio.sleep(0.01)
            for number in range(50):
                files.write("bans", f"192.0.2.{number}\n")
                server.signal(signal.SIGHUP)
                await trio.sleep(0.02)
            files.write("bans", "192.0.2.99\n")
            await reload(server)
            crowd.hush()
        crowd.check()
        assert all(not talker.told["Disconnected"] for talker in crowd.talkers)
        assert server.out.count("Unbanned") >= 1
        assert "[ERROR]" not in server.out
        # The bans of the last file are in force, and no others.
        assert files.path("bans").read_text("utf-8") == "192.0.2.99\n"
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0


async def test_every_handshake_succeeds_while_the_certificate_is_renewed_fifty_times(
    files: Files, tmp_path: Path
) -> None:
    shown: set[bytes] = set()
    async with serve(tmp_path, f"--tls-cert={files.path('chain')}") as server:
        is_renewed = False

        async def connect() -> None:
            while not is_renewed:
                stream = await multichat.dial(LOOPBACK, server.port, tls=files.tls())
                async with stream:
                    await stream.send_all(b"/who\n")
                    assert await stream.receive_some()
                    shown.add(stream.getpeercert(binary_form=True))  # type: ignore[attr-defined]

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(connect)
            for _ in range(50):
                await trio.to_thread.run_sync(files.certify)
                server.signal(signal.SIGHUP)
                await trio.sleep(0.02)
            await reload(server)
            is_renewed = True
        assert len(shown) > 3
        assert "[ERROR]" not in server.out
        assert "Refused" not in server.out


# --- At the start and at the end -----------------------------------------------------------------

SLOW_START = """
import time
from pathlib import Path

Path("starting").touch()
while not Path("continue").exists():
    time.sleep(0.01)

async def same(message):
    return message
"""


@asynccontextmanager
async def starting(folder: Path, *options: str) -> AsyncGenerator[Command]:
    """A server in the middle of its start; it continues when `continue` exists."""
    (folder / "slow_start.py").write_text(SLOW_START, "utf-8")
    line = 'cd "$FOLDER" && exec "$@"'
    serving = (MULTICHAT, "serve", "0", "--host", LOOPBACK, "--filter", "slow_start:same")
    argv = ("env", f"FOLDER={folder}", "/bin/sh", "-c", line, "sh", *serving, *options)
    async with Command(folder, *argv) as server:
        with trio.fail_after(WAIT_SECONDS):
            while not (folder / "starting").exists():
                await trio.sleep(0.01)
        yield server


async def test_a_sighup_during_the_start_reloads_after_it(tmp_path: Path) -> None:
    async with starting(tmp_path, "--ban-file=bans") as server:
        for _ in range(3):
            server.signal(signal.SIGHUP)
        (tmp_path / "bans").write_text("192.0.2.1\n", "utf-8")
        (tmp_path / "continue").touch()
        await server.wait_for("Listening on")
        await server.wait_for("Reloaded: bans")
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
        assert server.err == ""


async def test_sighups_while_it_stops_change_nothing(files: Files, tmp_path: Path) -> None:
    options = [each for each in files.options if "tls" not in each and "password" not in each]
    async with serve(tmp_path, "--web", "0", *options) as server, tcp(server) as stream:
        await server.wait_for("Client 1 connected")
        server.signal(signal.SIGTERM)
        for _ in range(20):
            if server.process.poll() is None:
                server.signal(signal.SIGHUP)
            await trio.sleep(0.005)
        data = b""
        while piece := await stream.receive_some():
            data += piece
        assert b"goodbye: the server is shutting down" in data
        assert await server.wait() == 0
        assert server.err == ""


async def test_without_files_nothing_is_reloaded_and_no_client_is_disconnected(
    tmp_path: Path,
) -> None:
    async with serve(tmp_path) as server, tcp(server) as stream:
        await server.wait_for("Client 1 connected")
        assert await reload(server) == ["[INFO] [server] [reload] Reloaded: nothing"]
        await stream.send_all(b"hello\n")
        await server.wait_for("[RX] [Client 1] hello")
