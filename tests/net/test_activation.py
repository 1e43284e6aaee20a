"""Socket activation: a server on listeners that the service manager has opened."""

import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from multichat import Server
from multichat.errors import JournalFailed, ListenFailed
from multichat.journal.sqlite.journal import SqliteJournal
from multichat.net.activation import PassedSockets, take_passed_sockets
from multichat.testing import ScriptedClient
from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, Command, serve
from tests.support.service_manager import Managed
from tests.support.sockets import open_client
from tests.support.web import http

pytestmark = pytest.mark.process


@contextmanager
def tcp_listener(host: str = LOOPBACK) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if family == socket.AF_INET6:  # as systemd does
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        listener.listen(100)
        yield listener


@contextmanager
def unix_listener(path: Path | str, mode: int = 0o600) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        if isinstance(path, Path):
            path.chmod(mode)
        listener.listen(100)
        yield listener


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def activated(
    folder: Path, sockets: Sequence[socket.socket], names: str = "", *options: str, **more: str
) -> Managed:
    variables = {**({"LISTEN_FDNAMES": names} if names else {}), **more}
    return Managed(folder, MULTICHAT, "serve", *options, variables=variables, sockets=sockets)


async def pinged(client: ScriptedClient) -> bool:
    with trio.fail_after(WAIT_SECONDS):
        await client.send("/ping")
        return await client.line() == "[Server] pong"


async def unix_client(path: Path | str) -> ScriptedClient:
    stream = trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    await stream.connect(str(path))
    return ScriptedClient(trio.SocketStream(stream))


async def test_all_kinds_of_listeners_are_passed_by_their_names(tmp_path: Path) -> None:
    chat_path, admin_path = tmp_path / "chat.sock", tmp_path / "admin.sock"
    with ExitStack() as stack:
        chat, web = stack.enter_context(tcp_listener()), stack.enter_context(tcp_listener())
        local = stack.enter_context(unix_listener(chat_path, 0o666))
        admin = stack.enter_context(unix_listener(admin_path))
        metrics = stack.enter_context(tcp_listener())
        passed = [chat, web, local, admin, metrics]
        names = "chat:web:multichat-local.socket:admin:metrics"
        async with activated(tmp_path, passed, names) as server:
            await server.wait_for("Listening on", 3)
            await server.wait_for("Metrics at")
            assert [line.removeprefix("[INFO] [server] [start] ") for line in server.lines[:6]] == [
                f"Starting multi-chat server on port {port_of(chat)}",
                f"Listening on {LOOPBACK}:{port_of(chat)}",
                f"Listening on {chat_path}",
                f"Web page at http://{LOOPBACK}:{port_of(web)}/",
                f"Listening on {admin_path} for the operator's commands",
                f"Metrics at http://{LOOPBACK}:{port_of(metrics)}/metrics",
            ]
            one = await open_client(port_of(chat))
            assert await pinged(one)  # it is Client 1: the listeners accept independently
            two = await unix_client(chat_path)
            async with one.stream, two.stream:
                assert await pinged(two)
                await two.send("hello")
                assert await one.line() == "[Client 2] hello"
            for listener, path in ((web, "/"), (metrics, "/metrics")):
                async with await trio.open_tcp_stream(LOOPBACK, port_of(listener)) as page:
                    await page.send_all(http(path))
                    assert b" 200 OK" in await page.receive_some()
            ctl = (MULTICHAT, "ctl", "--socket", str(admin_path), "who")
            async with Command(tmp_path, *ctl) as command:
                assert await command.wait() == 0, command.err
            server.signal(signal.SIGTERM)
            assert await server.wait() == 0
            assert server.err == ""
        # They are not ours: their files stay, and connections wait for the next server.
        assert chat_path.is_socket()
        assert admin_path.is_socket()
        waiting = await open_client(port_of(chat))
        async with waiting.stream, activated(tmp_path, passed, names) as server:
            assert await pinged(waiting)
            server.signal(signal.SIGTERM)
            assert await server.wait() == 0


async def test_an_abstract_socket_is_enough_for_a_chat(tmp_path: Path) -> None:
    name = f"\0multichat-{os.getpid()}-{tmp_path.name}"
    with unix_listener(name) as local:
        async with activated(tmp_path, [local]) as server:
            await server.wait_for(f"Starting multi-chat server on @{name[1:]}")
            client = await unix_client(name)
            async with client.stream:
                assert await pinged(client)
            assert "port" not in server.out


async def test_clients_of_a_socket_for_both_protocols_have_their_own_addresses(
    tmp_path: Path,
) -> None:
    with tcp_listener("::") as chat:
        options = ("--log-addresses",)
        async with activated(tmp_path, [chat], "chat", *options) as server:
            await server.wait_for(f"Listening on [::]:{port_of(chat)}")
            client = await open_client(port_of(chat))
            async with client.stream:
                assert await pinged(client)
            await server.wait_for(f"Client 1 connected from {LOOPBACK}:")


async def test_the_port_of_a_passed_socket_may_be_given_and_other_ports_are_opened(
    tmp_path: Path, port: int
) -> None:
    local = tmp_path / "own.sock"
    with tcp_listener() as chat:
        options = (str(port_of(chat)), "--unix", str(local), "--web", str(port))
        async with activated(tmp_path, [chat], "chat", *options) as server:
            await server.wait_for("Web page at")
            for client in (await open_client(port_of(chat)), await unix_client(local)):
                async with client.stream:
                    assert await pinged(client)
            server.signal(signal.SIGTERM)
            assert await server.wait() == 0
        assert not local.exists()


@pytest.mark.parametrize(
    ("names", "options", "status", "error"),
    [
        ("chat", ("1", "--journal", "new.db"), 2, "PORT is 1, but systemd listens on "),
        ("chat", ("--host", "::1"), 2, "--host has no effect, because systemd listens: see Li"),
        ("web", ("--web", "1"), 2, "--web is 1, but systemd listens on 127.0.0.1:"),
        ("wbe", (), 1, "FileDescriptorName=wbe is none of chat, web, admin, metrics"),
        ("chat:web", (), 1, "LISTEN_FDNAMES has 2 names, but LISTEN_FDS is 1"),
        (
            "admin",
            (),
            1,
            "cannot listen on descriptor 3 (admin): it is no Unix socket: anybody on",
        ),
    ],
)
async def test_a_socket_that_does_not_fit_its_purpose_is_refused_with_one_line(
    names: str, options: tuple[str, ...], status: int, error: str, tmp_path: Path
) -> None:
    with tcp_listener() as passed:
        async with activated(tmp_path, [passed], names, *options) as server:
            assert await server.wait() == status
            assert error in server.err
            assert server.err.count("\n") == 1
            assert server.out == ""
    assert not Path("new.db").exists()


async def test_a_socket_of_another_kind_is_one_line(tmp_path: Path) -> None:
    with ExitStack() as stack:
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        connection, other = map(stack.enter_context, socket.socketpair())
        shared = stack.enter_context(unix_listener(tmp_path / "a", 0o660))
        abstract = stack.enter_context(unix_listener(f"\0multichat-{tmp_path.name}"))
        for passed, names, error in (
            (datagrams, "chat", "it is a socket for datagrams: use ListenStream="),
            (connection, "chat", "it is a connection, and does not listen: set Accept=no"),
            (shared, "admin", "it can be used by others, at "),
            (abstract, "admin", "it is an abstract socket, which everybody on the machine can use"),
        ):
            async with activated(tmp_path, [passed], names) as server:
                assert await server.wait() == 1
                assert re.fullmatch(
                    r"multichat: cannot listen on descriptor 3 \(\w+\): "
                    f"{error}.*\n",
                    server.err,
                ), server.err


async def test_sockets_passed_to_another_process_are_left_alone(tmp_path: Path) -> None:
    with tcp_listener() as passed:
        options = ("0", "--host", LOOPBACK)
        async with activated(tmp_path, [passed], "wbe", *options, LISTEN_PID="1") as server:
            await server.wait_for("Listening on")
            assert f":{port_of(passed)}\n" not in server.out
            inherited = Path(f"/proc/{server.process.pid}/fd/3").resolve()
            assert inherited.name.startswith("socket:")


@pytest.mark.unit
def test_the_variables_are_removed_in_any_case() -> None:
    for owner in ("1", "7", "", "x"):
        variables = {"LISTEN_FDS": "0", "LISTEN_PID": owner, "LISTEN_FDNAMES": "chat", "HOME": "/"}
        try:
            assert not take_passed_sockets(variables, pid=7).chat
        except ListenFailed:
            assert owner == "7"  # no descriptor, but a name
        assert variables == {"HOME": "/"}
    for number in ("three", "-1", "\u0663", "1" * 12, "9" * 5000):
        with pytest.raises(ListenFailed, match="LISTEN_FDS is not a number"):
            take_passed_sockets({"LISTEN_FDS": number, "LISTEN_PID": "7"}, pid=7)


async def test_a_server_without_a_service_manager_is_as_before(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        client = await open_client(server.port)
        async with client.stream:
            assert await pinged(client)


async def test_a_server_that_fails_to_start_closes_the_passed_sockets(tmp_path: Path) -> None:
    with tcp_listener() as listener:
        passed = PassedSockets(chat=(listener,))
        server = Server(journal=SqliteJournal(tmp_path / "no folder" / "chat.db"))
        with pytest.raises(JournalFailed):
            await server.run(None, passed=passed)
        assert listener.fileno() == -1
