"""`serve` is drained by SIGTERM, end to end: clients of all kinds, a restart, further signals."""

import json
import re
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import multichat
from multichat.testing import ScriptedClient
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    Command,
    ServerCommand,
    connect,
    serve,
    tcp,
)
from tests.support.sockets import open_client
from tests.support.web import upgrade
from tests.support.websockets import WebSocketClient

pytestmark = pytest.mark.process

REASON = "the server is about to shut down"
GOODBYE = f"[Server] goodbye: {REASON}"
SHUTDOWN = "[Server] goodbye: the server is shutting down"


class Numbers:
    """The numbers of *sender* that one client has received."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    async def run(self, chat: multichat.Chat) -> None:
        async for event in chat:
            if isinstance(event, multichat.Said) and event.name == "sender":
                self.heard.append(int(event.text))


async def say_numbers(chat: multichat.Chat, said: list[int], stop: trio.Event) -> None:
    while not stop.is_set():
        said.append(len(said))
        await chat.say(str(said[-1]))
        await trio.sleep(0.002)


async def until(condition: Any) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while not condition():
            await trio.sleep(0.02)


@asynccontextmanager
async def websocket(port: int, hello: str) -> AsyncIterator[WebSocketClient]:
    async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
        await stream.send_all(upgrade(host=f"{LOOPBACK}:{port}"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        assert b" 101 " in head
        client = WebSocketClient(stream)
        await client.send(f"/json {hello}")
        yield client


async def welcome(client: WebSocketClient) -> dict[str, Any]:
    """Return the welcome; messages that precede it are in the text protocol."""
    while True:
        line = await client.line()
        if line.startswith("{"):
            event: dict[str, Any] = json.loads(line)
            assert event["type"] == "welcome"
            return event


def numbers_in(events: list[str]) -> list[int]:
    """Return the messages of *sender* among the events of a JSON client."""
    said = [json.loads(line) for line in events]
    return [int(each["text"]) for each in said if each["type"] == "said"]


async def test_clients_of_all_kinds_come_back_after_a_drain_and_miss_and_hear_nothing_twice(
    port: int, tmp_path: Path
) -> None:
    journal = str(tmp_path / "chat.db")
    options = ("--journal", journal, "--drain", "4", "--web", "0", "--log-rate", "0")
    said: list[int] = []
    numbers, stop = Numbers(), trio.Event()
    async with trio.open_nursery() as nursery, serve(tmp_path, *options, port=port) as server:
        opened = partial(multichat.connect, LOOPBACK, port)
        sender = await nursery.start(_hold, partial(opened, name="sender"))
        reader = await nursery.start(_hold, partial(opened, name="reader"))
        nursery.start_soon(numbers.run, reader)
        async with (
            connect(tmp_path, server, "--name", "tina", "--listen") as tina,
            connect(tmp_path, server, "--name", "pete") as pete,
            Command(tmp_path, MULTICHAT, "connect", "--json", LOOPBACK, str(port)) as program,
            tcp(server) as nc,
            websocket(await server.web_port(), '{"type":"hello","name":"page"}') as page,
        ):
            session = (await welcome(page))["session"]
            await tina.wait_for("you are tina")
            await pete.wait_for("you are pete")
            await program.wait_for("welcome")
            await ScriptedClient(nc).send("/ping")
            assert await ScriptedClient(nc).line() == "[Server] pong"
            nursery.start_soon(say_numbers, sender, said, stop)
            await server.wait_for("[RX] [sender] 100\n")
            server.signal(signal.SIGTERM)
            text, events = await ScriptedClient(nc).rest(), await page.rest()
            assert await server.wait() == 0
            assert server.err == ""
            # To text clients nothing is replayed: they have all up to their goodbye.
            assert text[-1] == GOODBYE
            heard = [int(line.removeprefix("[sender] ")) for line in text[:-1]]
            assert heard == list(range(heard[0], heard[-1] + 1))
            goodbye = json.loads(events[-1])
            assert (goodbye["code"], goodbye["reason"]) == ("draining", REASON)
            assert goodbye["reconnect"] is True
            assert 0 < goodbye["after"] < 3
            said_to_page = [event for event in events if '"said"' in event]
            last = json.loads(said_to_page[-1])["id"]  # a client may have left since
            heard_by_page = numbers_in(said_to_page)
            assert await program.wait() == 0
            goodbye = json.loads(program.lines[-1])
            assert (goodbye["code"], goodbye["reconnect"]) == ("draining", True)
            async with serve(tmp_path, *options, port=port) as again:
                resume = {"type": "hello", "session": session, "since": last}
                web = await again.web_port()
                async with websocket(web, json.dumps(resume)) as back:
                    assert (await welcome(back))["resumed"] is True
                    before = len(said)
                    await until(lambda: len(said) > before + 100)
                    stop.set()
                    await until(lambda: numbers.heard and numbers.heard[-1] == said[-1])
                    while heard_by_page[-1] < said[-1]:
                        heard_by_page += numbers_in(
                            [line] if '"said"' in (line := await back.line()) else []
                        )
                for client in (tina, pete):
                    await client.wait_for(f"[RX] [sender] {said[-1]}\n")
                    assert f"Connection lost: {REASON}; reconnecting" in client.out
                    assert client.out.count("Connected again\n") == 1
                    words = [line for line in client.lines if "[RX] [sender]" in line]
                    shown = [int(line.rpartition(" ")[2]) for line in words]
                    assert shown == list(range(shown[0], said[-1] + 1))
                await pete.type("I am back\n")
                await again.wait_for("[RX] [pete] I am back")
                nursery.cancel_scope.cancel(reason="the test is over")
    assert numbers.heard == list(range(len(said)))
    assert heard_by_page == list(range(heard_by_page[0], len(said)))
    with sqlite3.connect(journal) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def _hold(opened: Any, task_status: trio.TaskStatus[multichat.Chat]) -> None:
    async with opened() as chat:
        task_status.started(chat)
        await trio.sleep_forever()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_a_second_signal_in_a_drain_ends_it_at_once_and_in_order(
    second: signal.Signals, tmp_path: Path
) -> None:
    journal = tmp_path / "chat.db"
    options = ("--journal", str(journal), "--drain", "600", "--grace", "600")
    async with serve(tmp_path, *options, "--log-rate", "0") as server:
        client = await open_client(server.port)
        stalled = await trio.open_tcp_stream(LOOPBACK, server.port)
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with client.stream, stalled:
            await server.wait_for("Client 2 connected")
            for number in range(120):
                await client.send(f"{number} {'x' * 50_000}")
            await server.wait_for("[RX] [Client 1] 119")
            server.signal(signal.SIGTERM)
            await server.wait_for("Draining: 2 clients are told to reconnect within 600 s")
            await trio.sleep(0.3)
            assert server.process.poll() is None
            started = trio.current_time()
            server.signal(second)
            assert await client.rest() == [SHUTDOWN]
            assert await server.wait() == 0
            assert trio.current_time() - started < 5
        assert server.err == ""
    assert not Path(f"{journal}-wal").exists(), "the journal was not closed"
    async with Command(tmp_path, MULTICHAT, "history", str(journal), "--limit", "1000") as history:
        assert await history.wait() == 0, history.err
        stored = re.findall(r"\[Client 1\] (\d+) x{50000}\n", history.out)
        assert stored == [str(number) for number in range(120)]


async def test_sigint_shuts_down_without_a_drain(tmp_path: Path) -> None:
    async with serve(tmp_path, "--drain", "600") as server:
        client = await open_client(server.port)
        async with client.stream:
            await server.wait_for("Client 1 connected")
            server.signal(signal.SIGINT)
            assert await client.rest() == [SHUTDOWN]
        assert await server.wait() == 0
        assert "Draining" not in server.out


async def test_without_a_drain_sigterm_shuts_down_as_sigint_does(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        client = await open_client(server.port)
        async with client.stream:
            await server.wait_for("Client 1 connected")
            server.signal(signal.SIGTERM)
            assert await client.rest() == [SHUTDOWN]
        assert await server.wait() == 0


@pytest.mark.parametrize("later", [None, signal.SIGTERM, signal.SIGINT])
async def test_a_drain_by_ctl_continues_after_sigterm_and_ends_with_sigint(
    later: signal.Signals | None, tmp_path: Path
) -> None:
    admin = tmp_path / "admin.sock"
    async with serve(tmp_path, "--admin", str(admin)) as server:
        client = await open_client(server.port)
        async with client.stream:
            await server.wait_for("Client 1 connected")
            ctl = (MULTICHAT, "ctl", "--socket", str(admin), "drain", "3")
            async with Command(tmp_path, *ctl) as command:
                assert await command.wait() == 0, command.err
            await server.wait_for("Draining: 1 client is told to reconnect within 3 s")
            if later is not None:
                server.signal(later)
            expected = SHUTDOWN if later == signal.SIGINT else GOODBYE
            assert await client.rest() == [expected]
        assert await server.wait() == 0
        assert server.err == ""


async def test_a_drain_is_set_by_the_environment_and_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[serve]\ndrain = 600.0\n")
    for words in (f"MULTICHAT_CONFIG={tmp_path}/config.toml", "MULTICHAT_DRAIN=600"):
        script = f"{words} exec {MULTICHAT} serve 0 --host {LOOPBACK}"
        async with ServerCommand(tmp_path, "/bin/sh", "-c", script) as server, tcp(server):
            await server.wait_for("Client 1 connected")
            server.signal(signal.SIGTERM)
            await server.wait_for("told to reconnect within 600 s")
