"""Clients that resume damaged sessions or nonces, in real processes.

Each gets a new session and continues; none retries forever, and each gets an answer.
"""

import json
import signal
from pathlib import Path

import pytest
import trio

from multichat.testing import ScriptedClient
from tests.support.journals import damage_table
from tests.support.processes import (
    LOOPBACK,
    MULTICHAT,
    WAIT_SECONDS,
    ServerCommand,
    connect,
    serve,
    tcp,
)
from tests.support.terminals import Terminal

pytestmark = pytest.mark.process

TABLES = pytest.mark.parametrize("table", ["nonces", "sessions"])


def serve_journal(folder: Path, port: int) -> ServerCommand:
    return serve(folder, "--journal", str(folder / "chat.db"), port=port)


async def end(server: ServerCommand) -> None:
    server.signal(signal.SIGTERM)
    assert await server.wait() == 0
    assert "crash" not in server.out


async def say(client: ScriptedClient, text: str, nonce: int) -> dict[str, object]:
    """Send it; return the answer."""
    await client.send(json.dumps({"type": "say", "text": text, "nonce": nonce}))
    while (event := json.loads(await client.line())).get("nonce") != nonce:
        pass
    return dict(event)


@TABLES
async def test_a_program_is_welcomed_and_can_talk(table: str, port: int, tmp_path: Path) -> None:
    with trio.fail_after(2 * WAIT_SECONDS):
        async with serve_journal(tmp_path, port) as server, tcp(server) as stream:
            client = ScriptedClient(stream)
            await client.send("/json")
            token = json.loads(await client.line())["session"]
            assert (await say(client, "before", 1))["type"] == "accepted"
            await end(server)
        damage_table(tmp_path / "chat.db", table)
        async with serve_journal(tmp_path, port) as server, tcp(server) as stream:
            client = ScriptedClient(stream)
            await client.send("/json " + json.dumps({"session": token}))
            welcome = json.loads(await client.line())
            assert (welcome["type"], welcome["resumed"]) == ("welcome", False)
            for nonce in (1, 2):  # the server has none of its nonces
                assert (await say(client, "after", nonce))["type"] == "accepted"
            await end(server)


@TABLES
async def test_connect_in_a_pipe_sends_and_ends(table: str, port: int, tmp_path: Path) -> None:
    async with (
        serve_journal(tmp_path, port) as server,
        connect(tmp_path, server, "--name", "alice") as client,
    ):
        await client.wait_for("you are alice")
        await client.type("before\n")
        await server.wait_for("[RX] [alice] before")
        await end(server)
        await client.wait_for("Connection lost")
        damage_table(tmp_path / "chat.db", table)
        await client.type("meanwhile\n")
        async with serve_journal(tmp_path, port) as again:
            await client.wait_for("Connected again, in a new session")
            await again.wait_for("[RX] [alice] meanwhile")
            async with tcp(again) as other:
                await other.send_all(b"welcome back\n")
                await client.wait_for("welcome back")
            client.end_input()
            assert await client.wait() == 0
            assert client.err == ""
            assert again.out.count("[alice] meanwhile") == 1
            await end(again)


@TABLES
async def test_connect_on_a_terminal_sends_messages(
    table: str, port: int, terminal: Terminal, tmp_path: Path
) -> None:
    async with serve_journal(tmp_path, port) as server:
        await terminal.open("t", MULTICHAT, "connect", "--name", "alice", LOOPBACK, str(port))
        await terminal.wait_for("t", "alice in lobby · 1 here")
        await terminal.type("t", "before")
        await server.wait_for("[RX] [alice] before")
        await end(server)
    await terminal.wait_for_match("t", r"! Connection lost: .*; reconnecting$")
    damage_table(tmp_path / "chat.db", table)
    async with serve_journal(tmp_path, port) as server:
        await terminal.wait_for("t", "Connected again, in a new session")
        await terminal.type("t", "and on")
        await server.wait_for("[RX] [alice] and on")
