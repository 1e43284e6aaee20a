"""The history of the input line on a real terminal: arrows, Ctrl+R, and keys that are not its."""

from pathlib import Path

import pytest

from tests.support.processes import LOOPBACK, MULTICHAT, ServerCommand, serve
from tests.support.terminals import Terminal, connect_alice

pytestmark = pytest.mark.process


async def open_with_history(terminal: Terminal, server: ServerCommand, *lines: str) -> None:
    (terminal.home / "history").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    await connect_alice(terminal, server)


async def test_page_up_and_down_leave_the_input_line_alone(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await open_with_history(terminal, server, "an old secret", "another one")
        for key in ("PPage", "NPage", "S-PPage", "S-NPage", "C-PPage", "C-NPage"):
            await terminal.press("t", key)
        await terminal.type("t", "hello")
        await server.wait_for("[RX] [alice] hello\n")
        await terminal.run("send-keys", "-t", "t", "-l", "half")
        await terminal.press("t", "PPage", "NPage", "PPage")
        await terminal.type("t", " a sentence")
        await server.wait_for("[RX] [alice] half a sentence\n")
        assert "secret" not in server.out
        assert "another" not in server.out
        await terminal.press("t", "Up", "Up", "Up")
        await terminal.wait_for_match("t", "^> another one$")


async def test_ctrl_r_finds_an_old_line_and_enter_does_not_send_it(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        lines = ("the build is RED", "lunch at noon", "the build is green", "see you")
        await open_with_history(terminal, server, *lines)
        await terminal.press("t", "C-r")
        await terminal.run("send-keys", "-t", "t", "-l", "build")
        found = r"^> {}\s*\n *search: build\s*\nalice in lobby"
        await terminal.wait_for_match("t", found.format("the build is green"))
        await terminal.press("t", "C-r")
        await terminal.wait_for_match("t", found.format("the build is RED"))
        await terminal.press("t", "Enter")
        await terminal.wait_for_match("t", r"^> the build is RED\s*\nalice in lobby")
        assert "[RX]" not in server.out
        await terminal.press("t", "C-e")
        await terminal.type("t", " again")
        await server.wait_for("[RX] [alice] the build is RED again\n")


@pytest.mark.parametrize("key", ["Escape", "C-g"])
async def test_a_search_is_cancelled_with_the_line_as_it_was(
    key: str, terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await open_with_history(terminal, server, "lunch at noon")
        await terminal.run("send-keys", "-t", "t", "-l", "half a sen")
        await terminal.press("t", "C-r")
        await terminal.run("send-keys", "-t", "t", "-l", "LUNCH")
        await terminal.wait_for_match("t", r"^> lunch at noon\s*\n *search: LUNCH")
        await terminal.press("t", key)
        await terminal.wait_for_match("t", r"^> half a sen\s*\nalice in lobby")
        await terminal.type("t", "tence")
        await server.wait_for("[RX] [alice] half a sentence\n")


async def test_messages_are_shown_during_a_history_search(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await open_with_history(terminal, server, "lunch at noon")
        await terminal.press("t", "C-r")
        await terminal.run("send-keys", "-t", "t", "-l", "lun")
        await terminal.wait_for("t", "search: lun")
        await terminal.open("u", MULTICHAT, "connect", "--name", "bob", LOOPBACK, str(server.port))
        await terminal.wait_for_match("t", r"bob joined\s*\n> lunch at noon\s*\n *search: lun\s*\n")
