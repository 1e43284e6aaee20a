"""Earlier messages on a real terminal: the replay at the start, and /history."""

from pathlib import Path

import pytest
import trio

import multichat
from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS, connect, serve
from tests.support.terminals import Terminal, connect_alice

pytestmark = pytest.mark.process


async def test_a_terminal_begins_with_the_last_20_messages_and_rings_for_none(
    terminal: Terminal, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
    ):
        for number in range(25):
            await bob.say(f"alice, this is number {number}")
        await server.wait_for("number 24")
        command = (MULTICHAT, "connect", "--bell", "--name", "alice", LOOPBACK, str(server.port))
        await terminal.open("t", *command, columns=80, rows=40)
        await terminal.run("pipe-pane", "-t", "t", f"cat > {raw}")
        await terminal.wait_for("t", "bob  alice, this is number 24")
        screen = await terminal.screen("t")
        assert "number 5" in screen
        assert "number 4\n" not in screen
        assert b"\x07" not in raw.read_bytes()
        await bob.say("alice?")
        with trio.fail_after(WAIT_SECONDS):
            while b"\x07" not in raw.read_bytes():
                await trio.sleep(0.02)
        await terminal.open("u", MULTICHAT, "connect", "--replay", "0", LOOPBACK, str(server.port))
        await terminal.wait_for("u", "in lobby · 3 here")
        await bob.say("to all")
        await terminal.wait_for("u", "bob  to all")
        assert "number" not in await terminal.screen("u")


async def test_a_pipe_begins_with_nothing(tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
    ):
        await bob.say("before")
        await server.wait_for("before")
        async with connect(tmp_path, server) as client:
            await client.wait_for("2 are here")
            await bob.say("after")
            await client.wait_for("[RX] [bob] after")
            assert "before" not in client.out


async def test_history_shows_messages_as_they_were_shown(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as server,
        multichat.connect(LOOPBACK, server.port, name="bob") as bob,
        multichat.connect(LOOPBACK, server.port, name="carol") as carol,
    ):
        await connect_alice(terminal, server)
        await bob.say("hello")
        await terminal.wait_for("t", "bob  hello")
        await carol.say("nobody hears that")
        await bob.act("waves")
        await terminal.wait_for("t", "* bob waves")
        await terminal.type("t", "/ignore carol")
        await terminal.wait_for("t", "carol is ignored")
        await terminal.type("t", "/clear")
        await terminal.type("t", "/history 3")
        await terminal.wait_for_match(
            "t",
            r"\A\d\d:\d\d · the last 2 messages:\s*\n"
            r"\d\d:\d\d bob  hello\s*\n\d\d:\d\d \* bob waves\s*\n>",
        )
