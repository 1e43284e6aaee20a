"""The files in deploy/: what compose.yaml starts is started as processes on loopback.

Each service runs the command that the file has, with the addresses and ports of its containers
replaced by those of the test.  The image itself is not built here.
"""

import json
import re
import signal
import socket
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from multichat import ServerConfig
from multichat.server.config import DRAIN_SECONDS
from multichat.testing import ScriptedClient
from tests.support.processes import (
    BIN,
    LOOPBACK,
    WAIT_SECONDS,
    Command,
    module,
    program,
    serve,
)
from tests.support.sockets import open_client
from tests.support.web import upgrade

from .engine import Kind

pytestmark = pytest.mark.process

DEPLOY = Path(__file__).parents[2] / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text("utf-8")
BALANCER = (DEPLOY / "haproxy.cfg").read_text("utf-8")
yaml = module("yaml")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NODES = ("chat-1", "chat-2")
ENGINE = "valkey"


@contextmanager
def kept_port() -> Iterator[int]:
    """Yield a port that no other process gets: it is bound, and does not listen."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((LOOPBACK, 0))
        yield bound.getsockname()[1]


class Ports:
    """The ports on loopback that stand for the ports of containers."""

    def __init__(self, stack: ExitStack) -> None:
        def port() -> int:
            return stack.enter_context(kept_port())

        self.engine, self.chat, self.page = port(), port(), port()
        self.nodes = {name: (port(), port()) for name in NODES}

    def engine_words(self) -> list[str]:
        """Return the command of the engine."""
        [name, *words] = SERVICES[ENGINE]["command"]
        assert name == "valkey-server"
        return [*words, "--port", str(self.engine), "--bind", LOOPBACK]

    def node_words(self, name: str) -> list[str]:
        """Return the command of a node."""
        chat, page = self.nodes[name]
        [entry] = re.findall(r'^ENTRYPOINT \["(.*)"\]$', CONTAINERFILE, re.MULTILINE)
        words = [str(BIN / entry), *SERVICES[name]["command"], "--host", LOOPBACK]
        balancer = SERVICES["balancer"]["networks"]["default"]["ipv4_address"]
        replaced = {
            "9000": str(chat),
            "8080": str(page),
            balancer: LOOPBACK,
            f"valkey://{ENGINE}:6379": f"valkey://{LOOPBACK}:{self.engine}",
        }
        assert replaced.keys() <= set(words)
        return [replaced.get(word, word) for word in words]

    def balancer_file(self) -> str:
        """Return the balancer's configuration."""
        text = BALANCER.replace("bind :9000", f"bind {LOOPBACK}:{self.chat}")
        text = text.replace("bind :8080", f"bind {LOOPBACK}:{self.page}")
        for name, (chat, page) in self.nodes.items():
            here = f"{LOOPBACK}:{chat} check port {page}"
            text = text.replace(f"{name}:9000", here)
            text = text.replace(f"{name}:8080", f"{LOOPBACK}:{page} check port {page}")
        return text


async def wait_listening(port: int, of: Command) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while True:
            try:
                stream = await trio.open_tcp_stream(LOOPBACK, port)
            except OSError:
                assert of.process.poll() is None, of.err
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return


async def wait_refused(port: int) -> None:
    """Wait until no process listens on *port* any more."""
    while True:
        try:
            stream = await trio.open_tcp_stream(LOOPBACK, port)
        except OSError:
            return
        await stream.aclose()
        await trio.sleep(0.01)


class Deployed:
    """The services, as processes."""

    def __init__(self, ports: Ports, nodes: dict[str, Command], engine: Command) -> None:
        self.ports, self.nodes, self.engine = ports, nodes, engine

    def chat_port(self, node: Command) -> int:
        """Return the port of *node* on which the balancer connects to it."""
        [name] = (name for name, each in self.nodes.items() if each is node)
        return self.ports.nodes[name][0]

    async def home(self, name: str) -> Command:
        """Return the node on which the client *name* is, once its log says so."""
        while True:
            for node in self.nodes.values():
                if f"is now called {name}" in node.out:
                    return node
            await trio.sleep(0.05)


@asynccontextmanager
async def deployed(folder: Path, kind: Kind) -> AsyncIterator[Deployed]:
    """Run all services of compose.yaml."""
    haproxy = program("haproxy")
    data = folder / "data"
    data.mkdir()
    with ExitStack() as stack:
        ports = Ports(stack)
        config = folder / "haproxy.cfg"
        config.write_text(ports.balancer_file(), "utf-8")
        engine = Command(folder, kind.program(), *ports.engine_words(), "--dir", str(data))
        async with engine:
            await wait_listening(ports.engine, engine)
            one, two = (Command(folder, *ports.node_words(name)) for name in NODES)
            async with one, two:
                for node in (one, two):
                    await node.wait_for("Listening on")
                async with Command(folder, haproxy, "-db", "-f", str(config)) as balancer:
                    for port in ports.chat, ports.page:  # it opens one after the other
                        await wait_listening(port, balancer)
                    yield Deployed(ports, dict(zip(NODES, (one, two), strict=True)), engine)


def test_every_service_is_known_here() -> None:
    assert set(SERVICES) == {ENGINE, *NODES, "balancer"}
    # A file that is mounted exists.
    for volume in SERVICES["balancer"]["volumes"]:
        assert (DEPLOY / volume.partition(":")[0]).is_file()
    for name in NODES:
        assert (DEPLOY.parent / SERVICES[name]["build"]["dockerfile"]).is_file()
    for source in re.findall(r"^COPY (.*) \S+$", CONTAINERFILE, re.MULTILINE):
        assert all((DEPLOY.parent / each).exists() for each in source.split())
    stopping = int(SERVICES[NODES[0]]["stop_grace_period"].removesuffix("s"))
    config = ServerConfig()
    ending = DRAIN_SECONDS + config.grace_seconds + config.timeouts.linger
    assert stopping > ending + 10  # the engine's farewell


[HEALTH] = re.findall(r"^HEALTHCHECK .*?CMD (\[.*?\])$", CONTAINERFILE, re.MULTILINE | re.DOTALL)


def test_the_image_fits_its_health_check_and_its_volume() -> None:
    name, option, source = json.loads(HEALTH)
    assert (name, option) == ("python", "-c")
    assert "http://127.0.0.1:8080/live" in source
    [command] = re.findall(r"^CMD (\[.*\])$", CONTAINERFILE, re.MULTILINE)
    assert json.loads(command) == ["serve", "9000", "--web", "8080"]
    [volume] = re.findall(r"^VOLUME (.*)$", CONTAINERFILE, re.MULTILINE)
    assert f"install -d -o multichat -g multichat -m 0700 {volume}" in CONTAINERFILE
    extras = re.findall(r'".\[(.*)\]"', CONTAINERFILE)[0].split(",")
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(extras) <= set(project["optional-dependencies"])


async def test_the_check_of_health_of_the_image_fails_when_the_event_loop_stands_still(
    tmp_path: Path,
) -> None:
    async with serve(tmp_path, "--web", "0") as server:
        port = await server.web_port()

        async def status(seconds: int) -> int:
            source = json.loads(HEALTH)[2].replace("8080", str(port))
            source = source.replace("timeout=4", f"timeout={seconds}")
            argv = [sys.executable, "-c", source]
            return (await trio.run_process(argv, check=False, capture_stderr=True)).returncode

        assert await status(WAIT_SECONDS) == 0
        server.signal(signal.SIGSTOP)
        assert await status(1) == 1
        server.signal(signal.SIGCONT)
        assert await status(WAIT_SECONDS) == 0


@asynccontextmanager
async def client(port: int) -> AsyncIterator[ScriptedClient]:
    opened = await open_client(port)
    try:
        yield opened
    finally:
        await trio.aclose_forcefully(opened.stream)


@asynccontextmanager
async def served(port: int, line: str) -> AsyncIterator[tuple[ScriptedClient, str]]:
    """Yield a client that is served, and the first line of the answer to *line*.

    Until the balancer has seen that a node has ended, it may choose that, and then disconnects the
    client, which connects again, as people do.
    """
    while True:
        async with client(port) as opened:
            await opened.send(line)
            try:
                answer = await opened.line()
            except (EOFError, trio.BrokenResourceError):
                continue
            yield opened, answer
            return


async def test_clients_of_the_balancer_talk_across_nodes_and_survive_the_end_of_one(
    tmp_path: Path, engine_kind: Kind
) -> None:
    async with deployed(tmp_path, engine_kind) as services:
        port = services.ports.chat
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(client(port))
            await one.send('/json {"type":"hello","name":"one"}')
            session = json.loads(await one.line())["session"]
            with trio.fail_after(WAIT_SECONDS):
                home = await services.home("one")
                # The balancer takes the node with fewer connections, once it has seen that the
                # one of `wait_listening` has ended.
                for name in ("two", "three", "four"):
                    two = await stack.enter_async_context(client(port))
                    await two.send(f"/name {name}")
                    if await services.home(name) is not home:
                        break
                else:
                    pytest.fail("all are on one node")
                await two.send("hello")
                while '"hello"' not in (said := await one.line()):
                    pass
                assert json.loads(said)["name"] == name
                home.signal(signal.SIGTERM)
                assert json.loads((await one.rest())[-1])["reconnect"] is True
                assert await home.wait() == 0
        async with AsyncExitStack() as stack:
            with trio.fail_after(WAIT_SECONDS):
                hello = f'/json {{"type":"hello","session":"{session}"}}'
                again, answer = await stack.enter_async_context(served(port, hello))
                welcome = json.loads(answer)
                assert (welcome["name"], welcome["resumed"]) == ("one", True)
                two, _ = await stack.enter_async_context(served(port, "/who"))
                await two.send("still here")
                while '"still here"' not in await again.line():
                    pass


async def test_a_node_that_drains_gets_no_new_client_and_keeps_the_others_until_their_goodbye(
    tmp_path: Path,
) -> None:
    async with deployed(tmp_path, Kind.REDIS) as services:
        ports = services.ports
        with trio.fail_after(WAIT_SECONDS):
            async with client(ports.chat) as one:
                await one.send("/name one")
                assert "is now one" in await one.line()
                home = await services.home("one")
                home.signal(signal.SIGTERM)
                await home.wait_for("Draining: 1 client is told to reconnect within 15 s")
                # Connections between the log line and the end of the listener are refused or reset.
                await wait_refused(services.chat_port(home))
                for number in range(4):  # at once, whichever node the balancer tries first
                    async with client(ports.chat) as other:
                        await other.send("/ping")
                        assert await other.line() == "[Server] pong", number
                    async with client(ports.page) as browser:
                        request = upgrade(host=f"{LOOPBACK}:{ports.page}").decode()
                        await browser.send(request.removesuffix("\n"))
                        assert (await browser.line()).strip() == "HTTP/1.1 101 Switching Protocols"
                await one.send("/ping")
                assert await one.line() == "[Server] pong"
                # The balancer, which checks every second, does not cut it off.
                assert await one.rest() == ["[Server] goodbye: the server is about to shut down"]
            assert await home.wait() == 0


async def test_clients_of_a_frozen_node_are_disconnected_by_the_balancer(tmp_path: Path) -> None:
    async with deployed(tmp_path, Kind.REDIS) as services:
        with trio.fail_after(WAIT_SECONDS):
            async with client(services.ports.chat) as one:
                await one.send("/name frozen")
                assert "is now frozen" in await one.line()
                (await services.home("frozen")).signal(signal.SIGSTOP)
                assert await one.rest() == []
            async with client(services.ports.chat) as two:
                await two.send("/name other")
                assert "is now other" in await two.line()


async def test_the_page_is_behind_the_balancer(tmp_path: Path) -> None:
    async with deployed(tmp_path, Kind.REDIS) as services:
        port = services.ports.page
        with trio.fail_after(WAIT_SECONDS):
            async with client(port) as browser:
                await browser.send(
                    f"GET / HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\n\r"
                )
                answer = await browser.rest()
        assert answer[0].strip() == "HTTP/1.1 200 OK"
        assert any("<title>" in line for line in answer)


async def readiness(page: int) -> int:
    """Return the status of a node's `/ready`."""
    async with client(page) as check:
        await check.send("GET /ready HTTP/1.1\r\nHost: check\r\n\r")
        return int((await check.line()).split()[1])


async def test_while_the_engine_is_away_the_balancer_disconnects_no_client(tmp_path: Path) -> None:
    """No node is ready, for longer than the balancer waits for one that does not answer."""
    async with deployed(tmp_path, Kind.REDIS) as services:
        port = services.ports.chat
        pages = [page for _, page in services.ports.nodes.values()]
        with trio.fail_after(2 * WAIT_SECONDS):
            async with client(port) as one:
                await one.send("/name one")
                assert "is now one" in await one.line()
                services.engine.signal(signal.SIGSTOP)
                try:
                    for page in pages:
                        while await readiness(page) != 503:
                            await trio.sleep(0.1)
                    assert "cannot reach its storage" in await one.line()
                    await trio.sleep(6)  # twice that time
                    async with client(port) as late:
                        assert "it cannot reach its storage" in (await late.rest())[-1]
                finally:
                    services.engine.signal(signal.SIGCONT)
                for page in pages:
                    while await readiness(page) != 200:
                        await trio.sleep(0.1)
                await one.send("/ping")
                while "pong" not in await one.line():
                    pass
                async with served(port, "/name two") as (_, answer):
                    assert "is now two" in answer


def test_the_guide_names_the_options_that_nodes_need_behind_the_balancer() -> None:
    guide = (DEPLOY.parent / "docs" / "cluster.md").read_text("utf-8")
    [command] = re.findall(r"start the nodes with `([^`]*BALANCER[^`]*)`", guide)
    given = {word for word in SERVICES["chat-1"]["command"] if word.startswith("--")}
    assert {word for word in command.split() if word.startswith("--")} == given - {"--cluster"}
