"""Three real terminals, in tmux: the screens of a conversation."""

from pathlib import Path

import pytest

from tests.support.processes import LOOPBACK, MULTICHAT, serve
from tests.support.terminals import Terminal, wait_for_input

pytestmark = pytest.mark.process


async def test_three_terminals_talk(terminal: Terminal, tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        connect = (MULTICHAT, "connect", "--log-style", LOOPBACK, str(server.port))
        for number, command in enumerate((connect, connect, ("nc", LOOPBACK, str(server.port))), 1):
            await terminal.open(f"t{number}", *command)
            await server.wait_for(f"Client {number} connected")
            if command is connect:
                await terminal.wait_for(f"t{number}", "you are")
        await terminal.type("t1", "Hello from a terminal, καλημέρα 안녕 👋")
        said = "[Client 1] Hello from a terminal, καλημέρα 안녕 👋"
        await terminal.wait_for("t1", "[TX] Hello from a terminal, καλημέρα 안녕 👋")
        await terminal.wait_for("t2", f"[INFO] [client] [RX] {said}")
        await terminal.wait_for("t3", said)
        await terminal.type("t3", "Hello from nc")
        for name in ("t1", "t2"):
            await terminal.wait_for(name, "[RX] [Client 3] Hello from nc")

        await terminal.run("send-keys", "-t", "t1", "C-c")
        await terminal.wait_for("t1", "[STATE] Disconnected")
        await terminal.wait_for("t1", "status=0")
        await server.wait_for("Client 1 disconnected")
        await terminal.run("send-keys", "-t", "t2", "C-d")
        await terminal.wait_for("t2", "status=0")
        for name in ("t1", "t2"):
            assert "Traceback" not in await terminal.screen(name)


async def test_a_paste_of_500_lines_arrives_whole(terminal: Terminal, tmp_path: Path) -> None:
    pasted = tmp_path / "pasted"
    pasted.write_text("".join(f"pasted line {i}\n" for i in range(500)), "utf-8")
    async with serve(tmp_path) as server:
        await terminal.open("t1", MULTICHAT, "connect", LOOPBACK, str(server.port))
        await wait_for_input(terminal, "t1", "", name="Client 1")
        await terminal.run("load-buffer", str(pasted))
        await terminal.run("paste-buffer", "-t", "t1")
        await server.wait_for("[RX] [Client 1] pasted line 499\n")
        said = [line for line in server.lines if "[RX]" in line]
        assert [line.rsplit(" ", 1)[1] for line in said] == [str(i) for i in range(500)]


async def test_the_server_in_a_terminal_stops_on_ctrl_c(terminal: Terminal) -> None:
    await terminal.open("server", MULTICHAT, "serve", "0", "--host", LOOPBACK)
    await terminal.wait_for("server", "Listening on")
    await terminal.run("send-keys", "-t", "server", "C-c")
    await terminal.wait_for("server", "status=0")
    screen = await terminal.screen("server")
    assert "[stop] Shutting down multi-chat server" in screen
    assert "Traceback" not in screen
