"""Unix sockets: permissions, the path before and after, and conversations."""

import fcntl
import json
import os
import signal
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Self

import pytest
import trio
import trio.testing

import multichat
from multichat import ConnectFailed, ListenFailed, Server, ServerConfig, open_chat
from multichat.client.connect import Endpoint, dial_unix
from multichat.net.listeners import listen_unix, unlink_at_end
from multichat.server.log_rate import BURST_SECONDS
from multichat.testing import ScriptedClient
from tests.support.log import LogRecorder
from tests.support.processes import LOOPBACK, MULTICHAT, Command, program

pytestmark = pytest.mark.process

BURST = int((ServerConfig().log_rate or 0) * BURST_SECONDS)

IN_USE = "address already in use"


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    return short_path


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "chat"


@pytest.fixture(params=[0o000, 0o022, 0o077], ids="{:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    assert os.umask(before) == request.param  # it has not changed meanwhile


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def leave_a_stale_socket(path: Path) -> None:
    """As a server that was killed does."""
    with closing(socket.socket(socket.AF_UNIX)) as plain:
        plain.bind(str(path))
        plain.listen()


@asynccontextmanager
async def running(
    path: Path, config: ServerConfig | None = None, port: int | None = None, **options: object
) -> AsyncIterator[Server]:
    """A server at *path*, which is stopped when the block ends."""
    async with trio.open_nursery() as nursery:
        run = partial(Server(config).run, port, unix=path, **options)  # type: ignore[arg-type]
        server = await nursery.start(run)
        yield server
        server.shutdown()


# --- What stands at the path ---------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0o600, 0o660, 0o666, 0o777])
async def test_the_socket_has_the_requested_mode_whatever_the_umask(
    wanted: int, umask: int, path: Path
) -> None:
    async with running(path, unix_mode=wanted):
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert mode(path) == wanted
        assert await _ping(path) == "[Server] pong"
    assert not path.exists()


async def _ping(path: Path) -> str:
    stream = await dial_unix(path)
    async with stream:
        assert isinstance(stream, trio.SocketStream)
        client = ScriptedClient(stream)
        await client.send("/ping")
        return await client.line()


async def test_the_socket_is_private_from_the_first_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no moment in which it exists and is open to others."""
    seen: list[int] = []
    honest = socket.socket.bind

    def bind(self: socket.socket, address: str) -> None:
        honest(self, address)
        seen.append(mode(Path(address)))

    before = os.umask(0)
    try:
        monkeypatch.setattr(socket.socket, "bind", bind)
        async with running(path):
            assert seen == [0o600]
            assert mode(path) == 0o600
        assert os.umask(0) == 0
    finally:
        os.umask(before)


async def test_a_server_removes_its_socket_at_shutdown(path: Path, log: LogRecorder) -> None:
    async with running(path) as server:
        assert (server.port, server.addresses) == (0, [str(path)])
        stream = await dial_unix(path)
        async with open_chat(stream) as chat:
            await chat.send("hello")
            [member] = server.members
            assert member.address == ""
    assert not path.exists()
    assert log.lines[:2] == [
        f"[INFO] [server] [start] Starting multi-chat server on {path}",
        f"[INFO] [server] [start] Listening on {path}",
    ]
    assert not [line for line in log.lines if "Anybody in the network" in line]


async def test_a_cancelled_server_removes_its_socket(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(multichat.serve, None, unix=path))
        assert path.exists()
        nursery.cancel_scope.cancel(reason="it was seen")
    assert not path.exists()


async def test_a_file_put_in_place_of_the_socket_stays(path: Path) -> None:
    async with running(path):
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"
    path.unlink()
    async with running(path):
        path.unlink()
        leave_a_stale_socket(path)
        theirs = path.lstat()
    assert (path.lstat().st_dev, path.lstat().st_ino) == (theirs.st_dev, theirs.st_ino)
    path.unlink()
    async with running(path):
        path.unlink()  # and nothing in its place
    with unlink_at_end(path):
        path.write_text("not there before")
    assert path.exists()


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    leave_a_stale_socket(path)
    async with running(path):
        assert await _ping(path) == "[Server] pong"
        assert mode(path) == 0o600
    assert not path.exists()


async def test_of_servers_that_start_at_once_exactly_one_gets_the_socket(path: Path) -> None:
    """Also where a killed server has left one; a server at such a path would have no clients."""
    for _ in range(10):
        with closing(socket.socket(socket.AF_UNIX)) as stale:
            stale.bind(str(path))
        opened: list[trio.SocketListener] = []
        errors: list[str] = []

        async def start() -> None:
            try:
                opened.append(await listen_unix(path, 0o600))
            except ListenFailed as error:
                errors.append(error.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(start)
        assert (len(opened), errors) == (1, ["address already in use"] * 4)
        async with opened[0], await trio.open_unix_socket(str(path)):
            with trio.fail_after(60):
                await (await opened[0].accept()).aclose()
        path.unlink()


async def test_a_lock_that_another_process_keeps_does_not_prevent_the_start(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        async with await listen_unix(path, 0o600):
            assert stat.S_ISSOCK(path.stat().st_mode)
    finally:
        os.close(folder)
    path.unlink()


async def test_a_server_that_ends_leaves_the_socket_of_the_next_one(path: Path) -> None:
    """The file system may give the new socket the inode of the old one, which is free again."""
    for _ in range(3):
        before = await listen_unix(path, 0o600)
        with unlink_at_end(path):
            await before.aclose()  # as a drain does
            after = await listen_unix(path, 0o600)
        async with after:
            assert path.is_socket()


async def test_a_socket_with_a_listener_is_not_replaced(path: Path) -> None:
    async with running(path):
        before = path.lstat().st_ino
        with pytest.raises(ListenFailed) as failed:
            await Server().run(None, unix=path)
        assert str(failed.value) == f"cannot listen on {path}: {IN_USE}"
        assert path.lstat().st_ino == before
        assert await _ping(path) == "[Server] pong"


async def test_a_server_that_does_not_accept_is_still_a_listener(path: Path) -> None:
    """Its backlog is full, but that does not make it stale."""
    with (
        closing(socket.socket(socket.AF_UNIX)) as busy,
        closing(socket.socket(socket.AF_UNIX)) as a,
    ):
        busy.bind(str(path))
        busy.listen(0)
        a.connect(str(path))
        before = path.lstat().st_ino
        with trio.move_on_after(2), pytest.raises(ListenFailed):
            await listen_unix(path, 0o600)
        assert path.lstat().st_ino == before


@pytest.mark.parametrize("kind", ["file", "folder", "link to a file", "link to nothing", "pipe"])
async def test_a_file_that_is_not_a_socket_is_left_alone(kind: str, path: Path) -> None:
    other = path.with_name("other")
    match kind:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link to a file":
            other.write_text("precious")
            path.symlink_to(other)
        case _:
            path.symlink_to(other)
    before = path.lstat()
    with pytest.raises(ListenFailed) as failed:
        await listen_unix(path, 0o600)
    assert str(failed.value) == f"cannot listen on {path}: file exists"
    assert path.lstat().st_ino == before.st_ino
    if "file" in kind:
        assert path.read_text() == "precious"


async def test_a_link_to_a_living_socket_is_not_replaced(path: Path) -> None:
    link = path.with_name("link")
    async with running(path):
        link.symlink_to(path)
        with pytest.raises(ListenFailed):
            await listen_unix(link, 0o600)
        assert link.is_symlink()
        assert await _ping(link) == "[Server] pong"


@pytest.mark.parametrize(
    ("place", "of_server", "of_client"),
    [
        ("x" * 200, "path too long", "path too long"),
        ("no/such/folder", "there is no directory {}/no/such", "no such file or directory"),
        ("a file/chat", "not a directory", "not a directory"),
    ],
)
async def test_an_impossible_socket_path_is_one_line(
    place: str, of_server: str, of_client: str, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    for attempt, kind, reason in (
        (partial(listen_unix, tmp_path / place, 0o600), ListenFailed, of_server),
        (partial(dial_unix, tmp_path / place), ConnectFailed, of_client),
    ):
        with pytest.raises(kind) as failed:
            await attempt()
        assert str(failed.value).endswith(reason.format(tmp_path))
        assert "\n" not in str(failed.value)


async def test_an_unreachable_socket_is_an_error_with_its_reason(path: Path) -> None:
    for reason in ("no such file or directory", "connection refused"):
        with pytest.raises(ConnectFailed) as failed:
            await Endpoint(unix=path).dial()
        assert str(failed.value) == f"cannot connect to {path}: {reason}"
        if not path.exists():
            leave_a_stale_socket(path)


async def test_a_port_that_is_taken_leaves_no_socket_behind(path: Path) -> None:
    [taken] = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with taken:
        port = taken.socket.getsockname()[1]
        with pytest.raises(ListenFailed, match=IN_USE):
            await Server().run(port, host=LOOPBACK, unix=path)
    assert not path.exists()


# --- Who talks -----------------------------------------------------------------------------------


async def test_port_and_socket_together_are_one_chat(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        config = ServerConfig(max_clients_per_address=1)
        run = partial(Server(config).run, 0, host=LOOPBACK, unix=path)
        server = await nursery.start(run)
        assert server.addresses == [str(path), f"{LOOPBACK}:{server.port}"] or (
            server.addresses == [f"{LOOPBACK}:{server.port}", str(path)]
        )
        async with (
            multichat.connect(LOOPBACK, server.port, name="tcp") as a,
            open_chat(await dial_unix(path), name="unix") as b,
            open_chat(await dial_unix(path), name="another") as c,
        ):
            assert {member.name for member in await a.members()} == {"tcp", "unix", "another"}
            await b.send("hello")
            await c.say("hello")
            assert [member.address == "" for member in server.members] == [False, True, True]
        server.shutdown()
    assert not path.exists()


async def test_wrong_passwords_on_a_socket_that_others_may_open_are_slow(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        config = ServerConfig(password="swordfish")
        run = partial(Server(config).run, None, unix=path, unix_mode=0o666)
        server = await nursery.start(run)
        started = trio.current_time()
        for _ in range(4):  # each on a connection of its own
            async with await trio.open_unix_socket(str(path)) as stream:
                client = ScriptedClient(stream)
                await client.send("/auth mellon")
                assert (await client.lines(2))[1] == "[Server] wrong password"
        assert trio.current_time() - started >= 0.5 + 1 + 2
        server.shutdown()


async def test_the_socket_does_not_use_tls(path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    async with trio.open_nursery() as nursery:
        run = partial(Server().run, 0, host=LOOPBACK, unix=path, tls=context)
        server = await nursery.start(run)
        assert await _ping(path) == "[Server] pong"
        server.shutdown()


class UnixServer(Command):
    """`multichat serve` at a path; ready when it is entered."""

    def __init__(self, folder: Path, path: Path, *options: str) -> None:
        super().__init__(folder, MULTICHAT, "serve", *options, "--unix", str(path))

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self.wait_for("Listening on")
        return self


async def test_people_talk_through_a_socket(path: Path, tmp_path: Path) -> None:
    async with (
        UnixServer(tmp_path, path) as server,
        Command(tmp_path, program("nc"), "-U", str(path)) as nc,
    ):
        assert mode(path) == 0o600
        await server.wait_for("Client 1 connected")
        argv = (MULTICHAT, "connect", "--unix", str(path), "--name", "alice")
        async with Command(tmp_path, *argv) as alice:
            await alice.wait_for("you are alice in lobby")
            await nc.type("hello\n")
            await alice.wait_for("[RX] [Client 1] hello")
            assert alice.lines[0] == f"[INFO] [client] [start] Connecting to {path}"
            await alice.type("one\n/status\ntwo")
            alice.end_input()
            assert await alice.wait() == 0
            assert f"Connected to {path} for" in alice.out
        await nc.wait_for("[alice] one\n[alice] two\n")
        server.signal(signal.SIGINT)
        assert await server.wait() == 0
        assert server.err == ""
        await nc.wait_for("[Server] goodbye: the server is shutting down\n")
        assert server.lines[:2] == [
            f"[INFO] [server] [start] Starting multi-chat server on {path}",
            f"[INFO] [server] [start] Listening on {path}",
        ]
    assert not path.exists()


async def test_an_invalid_socket_path_is_one_line_of_the_command(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("precious")
    before = os.umask(0o022)
    try:
        server = UnixServer(tmp_path, path, "0", "--host", LOOPBACK, "--unix-mode", "0660")
        async with server, trio.open_nursery() as nursery:
            assert mode(path) == 0o660
            await server.wait_for(f"Listening on {LOOPBACK}:")
            await server.wait_for(f"Listening on {path}")

            async def check(status: int, error: str, *argv: str) -> None:
                async with Command(tmp_path, MULTICHAT, *argv) as command:
                    assert await command.wait() == status
                    assert command.err.endswith(error)
                    assert command.err.count("\n") == 1 or "Usage: " in command.err
                    assert "Traceback" not in command.err

            listen = "multichat: cannot listen on"
            for status, error, *argv in (
                (1, f"{listen} {path}: {IN_USE}\n", "serve", "--unix", str(path)),
                (1, f"{tmp_path / 'file'}: file exists\n", "serve", "--unix", f"{tmp_path}/file"),
                (1, "path too long\n", "serve", "--unix", str(tmp_path / ("x" * 200))),
                (2, "\n", "serve", "--unix", f"{tmp_path}/other", "--unix-mode", "rw"),
                (1, "no such file or directory\n", "connect", "--unix", f"{tmp_path}/none"),
            ):
                nursery.start_soon(check, status, error, *argv)
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "other").exists()


@pytest.mark.process
async def test_send_and_who_take_a_unix_socket(path: Path, tmp_path: Path) -> None:
    options = ("--unix", str(path))
    async with Command(tmp_path, MULTICHAT, "serve", *options) as server:
        await server.wait_for("Listening on")
        async with Command(tmp_path, MULTICHAT, "connect", *options, "--name", "alice") as alice:
            await alice.wait_for("you are alice")
            for text in (["hello"], ["9000", "people"], ["localhost:1", "you"]):
                async with Command(tmp_path, MULTICHAT, "send", *options, *text) as send:
                    assert await send.wait() == 0
                await alice.wait_for(f"] {' '.join(text)}\n")
            async with Command(tmp_path, MULTICHAT, "who", *options) as who:
                assert await who.wait() == 0
                assert who.out == "1 alice\n"


# --- Limits --------------------------------------------------------------------------------------


async def _visit(stream: trio.SocketStream, **fields: object) -> dict[str, object]:
    """Say hello as a program, leave, and return the welcome."""
    async with stream:
        client = ScriptedClient(stream)
        await client.send(f"/json {json.dumps(fields)}")
        welcome: dict[str, object] = json.loads(await client.line())
        assert welcome["type"] == "welcome"
        await client.finish()
        await client.rest()
    return welcome


async def test_a_local_user_who_fills_the_session_store_evicts_only_its_own_sessions(
    path: Path,
) -> None:
    config = ServerConfig(max_sessions=8)
    async with running(path, config=config, port=0, host=LOOPBACK) as server:
        other = await _visit(await trio.open_tcp_stream(LOOPBACK, server.port))
        for _ in range(20):
            await _visit(await trio.open_unix_socket(path))
        stream = await trio.open_tcp_stream(LOOPBACK, server.port)
        assert (await _visit(stream, session=other["session"]))["resumed"]


async def test_a_local_user_who_floods_the_log_does_not_affect_others(
    path: Path, log: LogRecorder
) -> None:
    async with running(path) as server, trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(_say_a_burst, await trio.open_unix_socket(path), "a")
        while not any("Client 1 disconnected" in line for line in log.lines):
            await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(server.handle, theirs)
        nursery.start_soon(_say_a_burst, ours, "b")
    assert sum(line.endswith("[Client 1] a") for line in log.lines) >= BURST
    assert sum(line.endswith("[Client 2] b") for line in log.lines) == BURST


async def _say_a_burst(stream: trio.abc.HalfCloseableStream, text: str) -> None:
    async with stream:
        client = ScriptedClient(stream)
        await client.send(*[text] * BURST)
        await client.finish()
        await client.rest()
