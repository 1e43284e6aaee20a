"""`serve --cluster`: how it starts, what it warns of, and the one line with which it fails."""

import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from multichat.cli.cluster import parse_place
from multichat.cli.process import UsageMistake
from tests.support.processes import LOOPBACK, MULTICHAT, Command, ServerCommand, serve
from tests.support.sockets import open_client

from .engine import Engine, EngineConfig, Engines, certificates

pytestmark = pytest.mark.process


@asynccontextmanager
async def node(folder: Path, url: str, *options: str) -> AsyncGenerator[ServerCommand]:
    async with serve(folder, "--cluster", url, *options) as server:
        yield server


async def failure(folder: Path, url: str, *options: str) -> str:
    """Return the one line with which the start fails."""
    argv = (MULTICHAT, "serve", "0", "--host", LOOPBACK, "--cluster", url, *options)
    async with Command(folder, *argv) as command:
        assert await command.wait() in (1, 2), command.out
        [line] = command.err.splitlines()[-1:]
        assert "Traceback" not in command.err
        assert "Listening" not in command.out
        return line


async def works(server: ServerCommand) -> bool:
    client = await open_client(server.port)
    async with client.stream:
        await client.send("/name alice", "/who")
        with trio.fail_after(30):
            while "alice" not in await client.line():
                pass
    return True


async def test_an_engine_without_aof_or_with_evictions_is_warned_of(
    engines: Engines, tmp_path: Path
) -> None:
    careless = await engines.start(EngineConfig(maxmemory="100mb", maxmemory_policy="allkeys-lru"))
    async with node(tmp_path, careless.url) as server:
        assert await works(server)
        assert "[WARNING]" in server.out
        assert "its restart loses every message: set appendonly yes" in server.out
        assert "(allkeys-lru): set maxmemory-policy noeviction" in server.out
    careful = await engines.start(EngineConfig(aof="everysec"))
    async with node(tmp_path, careful.url) as server:
        assert await works(server)
        assert "[WARNING]" not in server.out
        first = re.search(r"\[start\] This is node (\w+) of a cluster, which has (\d+)", server.out)
        async with node(tmp_path, careful.url) as other:
            second = re.search(r"This is node (\w+) of a cluster, which has (\d+)", other.out)
        assert first
        assert second
        assert (first[2], second[2]) == ("1", "2")
        assert first[1] != second[1]


async def test_a_password_comes_from_a_file_or_the_environment(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await engines.start(EngineConfig(aof="no", password="hunter2", users={"me": "other"}))
    missing = await failure(tmp_path, engine.url)
    assert missing.endswith("it asks for a password: give --cluster-password-file")
    file = tmp_path / "password"
    file.write_text("hunter2\n", "utf-8")
    file.chmod(0o600)
    async with node(tmp_path, engine.url, "--cluster-password-file", str(file)) as server:
        assert await works(server)
        assert "hunter2" not in server.out
    monkeypatch.setenv("MULTICHAT_CLUSTER_PASSWORD", "other")
    user = engine.url.replace("://", "://me@")
    async with node(tmp_path, user) as server:
        assert await works(server)
    wrong = await failure(tmp_path, engine.url)
    assert wrong.endswith("it does not accept the user and password")
    in_url = await failure(tmp_path, engine.url.replace("://", "://me:hunter3@"))
    assert "must not contain a password" in in_url
    assert "hunter3" not in in_url


async def test_tls_with_an_authority_and_a_name(engines: Engines, tmp_path: Path) -> None:
    engine = await engines.start(EngineConfig(aof="no", tls=True))
    unknown = await failure(tmp_path, engine.url)
    assert "; trust it with --cluster-ca FILE" in unknown
    trusted = ("--cluster-ca", str(certificates().authority))
    async with node(tmp_path, engine.url, *trusted, "--cluster-tls-name", "localhost") as server:
        assert await works(server)
    other = await failure(tmp_path, engine.url, *trusted, "--cluster-tls-name", "other.example")
    assert "its certificate is not accepted" in other
    assert other.endswith("; expect another name in it with --cluster-tls-name NAME")
    plain = engine.url.replace("valkeys", "valkey")
    assert "write valkeys://" in await failure(tmp_path, plain)
    assert "need an address with valkeys://" in await failure(tmp_path, plain, *trusted)


async def test_a_primary_that_sentinels_know(engines: Engines, tmp_path: Path) -> None:
    primary = await engines.start(EngineConfig(aof="no"))
    replica = await engines.start(EngineConfig(replica_of=primary))
    sentinel = await engines.start_sentinel(primary)
    url = f"valkey+sentinel://{LOOPBACK}:{sentinel.port}"
    async with node(tmp_path, f"{url}/{Engine.name}") as server:
        assert await works(server)
    unnamed = await failure(tmp_path, url)
    assert "lacks the name of the primary" in unnamed
    other = await failure(tmp_path, f"{url}/other")
    assert "it knows no primary with the name other" in other
    assert "give the address of the primary" in await failure(tmp_path, replica.url)
    assert "write valkey+sentinel://" in await failure(
        tmp_path, f"valkey://{LOOPBACK}:{sentinel.port}"
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:6379", "valkey+sentinel://HOST:PORT/NAME with Sentinels"),
        ("http://localhost", "the address of a cluster is valkey://HOST:PORT, valkeys:// with TLS"),
        (f"valkey://{LOOPBACK}:1", "connection refused"),
        ("valkey://host.invalid", "host.invalid"),
    ],
)
async def test_addresses_that_cannot_be_used(url: str, reason: str, tmp_path: Path) -> None:
    assert reason in await failure(tmp_path, url)


@pytest.mark.parametrize("text", ["foo://x", "VALKEY://x", "file:///tmp/chat.db"])
def test_the_error_for_a_journal_at_an_unknown_url_names_the_allowed_schemes(text: str) -> None:
    with pytest.raises(UsageMistake) as caught:
        parse_place(text)
    scheme = text.partition("//")[0]
    assert caught.value.message == (
        f"JOURNAL: {scheme}// is unknown: give a file, or the engine of a cluster as "
        "valkey://HOST:PORT, valkeys:// with TLS"
    )


def test_a_path_is_not_a_url() -> None:
    for text in "chat.db", "./foo://x", "valkey:x", "a b://c":
        assert parse_place(text) == Path(text)


def test_without_the_extra_one_line_says_so() -> None:
    code = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: "
        "None if name == 'hiredis' else found(name, *more)\n"
        "sys.argv = ['multichat', 'serve', '0', '--cluster', 'valkey://127.0.0.1:1']\n"
        "from multichat.__main__ import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.endswith(
        "--cluster needs the extra multichat-trio[cluster]: pip install hiredis\n"
    )
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("history", "URL"), 0, ""),
        (("account", "list", "URL"), 1, "multichat: URL: interrupted\n"),
        (("serve", "0", "--host", LOOPBACK, "--cluster", "URL"), 0, ""),
    ],
)
async def test_a_signal_ends_a_command_that_waits_for_the_engine_without_a_traceback(
    words: tuple[str, ...], status: int, said: str, number: signal.Signals, tmp_path: Path
) -> None:
    [listener] = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with listener:
        url = f"valkey://{LOOPBACK}:{listener.socket.getsockname()[1]}"
        argv = [each.replace("URL", url) for each in words]
        async with Command(tmp_path, MULTICHAT, *argv) as command:
            with trio.fail_after(60):
                stream = await listener.accept()
                async with stream:
                    # It has sent a request, and no answer comes.
                    assert await stream.receive_some()
                    command.signal(number)
                    assert await command.wait() == status
            assert command.err == said.replace("URL", url)


async def test_a_changed_password_is_reloaded_while_the_node_runs(
    engines: Engines, tmp_path: Path
) -> None:
    """The order does not matter: the present connection stays until the next one is needed."""
    engine = await engines.start(EngineConfig(aof="no", password="first"))
    file = tmp_path / "password"
    file.write_text("first\n", "utf-8")
    file.chmod(0o600)
    async with node(tmp_path, engine.url, "--cluster-password-file", str(file)) as server:
        client = await open_client(server.port)
        async with client.stream:
            file.write_text("", "utf-8")
            server.signal(signal.SIGHUP)
            await server.wait_for("Could not reload the cluster password (unchanged)")
            file.write_text("second\n", "utf-8")
            server.signal(signal.SIGHUP)
            await server.wait_for("Reloaded: cluster password")
            await client.send("/name alice")
            await server.wait_for("alice")
            with suppress(trio.BrokenResourceError):  # ours is killed, too
                stream = await trio.open_tcp_stream(LOOPBACK, engine.port)
                async with stream:
                    words = "AUTH first", "CONFIG SET requirepass second", "CLIENT KILL TYPE normal"
                    for each in words:
                        await stream.send_all(f"{each}\r\n".encode())
                        await stream.receive_some()
            await client.send("hello again")  # only once the node is back in the cluster
            await server.wait_for("[RX] [alice] hello again")
        assert await works(server)
        assert "does not accept" not in server.out
        assert "second" not in server.out


async def test_the_password_of_an_acl_user_may_change_in_the_engine_first(
    engines: Engines, tmp_path: Path
) -> None:
    engine = await engines.start(EngineConfig(aof="no", users={"me": "first"}))
    file = tmp_path / "password"
    file.write_text("first\n", "utf-8")
    file.chmod(0o600)
    url = engine.url.replace("://", "://me@")
    async with node(tmp_path, url, "--cluster-password-file", str(file)) as server:
        assert await works(server)
        await engine.call("ACL", "SETUSER", "me", "resetpass", ">second")
        assert await works(server)  # its connection stays
        await engine.call("CLIENT", "KILL", "USER", "me")
        await server.wait_for("it does not accept the user and password")
        file.write_text("second\n", "utf-8")
        server.signal(signal.SIGHUP)
        await server.wait_for("Reloaded: cluster password")
        await server.wait_for("Messages are accepted again")
        assert "Connected to the cluster again: " in server.out
        assert await works(server)
