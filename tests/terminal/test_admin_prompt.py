"""The operator's input line on a real terminal: intact below the log, never delaying the server."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import multichat
from tests.support.processes import LOOPBACK, MULTICHAT, WAIT_SECONDS
from tests.support.terminals import Terminal

pytestmark = pytest.mark.process

SERVE = f"multichat serve 0 --host {LOOPBACK}"
STATUS = "what you type is sent to everybody"
# Takes the terminal at standard input for its own, and becomes another program.
IN_FRONT = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
# A server whose event loop stands still after SIGUSR1 until a named pipe is written to.
BUSY = """
import os, signal
from pathlib import Path
from multichat.cli.main import main

def stand_still(*_):
    Path("busy").touch()
    Path("continue").read_bytes()

signal.signal(signal.SIGUSR1, stand_still)
Path("pid").write_text(str(os.getpid()))
main()
"""
INPUT = r"^> ?{}\s*\nwhat you type is sent"


async def open_server(terminal: Terminal, options: str = "", *, columns: int = 80) -> int:
    """Start a server from a shell; return its port."""
    await terminal.open_shell("t", columns=columns, rows=24)
    await terminal.type("t", f"{SERVE} {options}")
    found = await terminal.wait_for_match("t", r"Listening on 127\.0\.0\.1:(\d+)")
    return int(found[1])


async def modes(terminal: Terminal) -> str:
    """The modes of the terminal of a shell, whose screen is empty afterwards."""
    await terminal.type("t", "clear; stty -g; echo end=$?", "C-j")
    found = await terminal.wait_for_match("t", r"^([0-9a-f:]+)\nend=0")
    await terminal.type("t", "clear", "C-j")
    await terminal.wait_for_match("t", r"\A\$\s*\Z")
    return found[1]


async def pid_of_server(port: int) -> int:
    """The process that listens on *port*, by what it was started with and its socket."""
    with trio.fail_after(WAIT_SECONDS):
        while True:
            inodes = {
                line.split()[9]
                for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
                if line.split()[1].endswith(f":{port:04X}")
            }
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    links = {os.readlink(fd) for fd in (folder / "fd").iterdir()}  # noqa: PTH115
                except OSError:
                    continue
                if links & {f"socket:[{inode}]" for inode in inodes}:
                    return int(folder.name)
            await trio.sleep(0.02)


@pytest.mark.parametrize("columns", [80, 60, 20])
async def test_log_lines_leave_the_typed_line_whole(columns: int, terminal: Terminal) -> None:
    port = await open_server(terminal, columns=columns)
    await terminal.wait_for("t", STATUS[:19])
    typed = ""
    async with multichat.connect(LOOPBACK, port, name="bob") as bob:
        for number, word in enumerate(["good", "evening", "안녕", "καλή", "👋"]):
            await bob.say(f"line {number} " + "안녕 x " * 20)
            for character in f"{word} ":
                typed += character
                await terminal.run("send-keys", "-t", "t", "-l", character)
                rows = await terminal.rows("t")
                shown = [row for row in rows if row.startswith(">")]
                assert len(shown) == 1, rows
                assert typed.startswith(shown[0][2:].rstrip()), rows
        await terminal.press("t", "Enter")
        async for event in bob:
            if isinstance(event, multichat.Notice):
                assert event.text == typed
                break
        # Each line of the log as it always was, however wide the terminal is.
        for number in range(5):
            text = f"[INFO] [server] [RX] [bob] line {number} " + "안녕 x " * 20
            line = rf"^\d{{4}}-\S+ \S+ {re.escape(text)}$"
            await terminal.wait_for_match("t", line, scrollback=True)
    await terminal.type("t", "/quit")
    await terminal.wait_for_match("t", r"^\$\s*\Z")


async def test_console_commands_are_completed_echoed_and_answered(terminal: Terminal) -> None:
    await open_server(terminal)
    await terminal.wait_for("t", STATUS)
    await terminal.run("send-keys", "-t", "t", "-l", "/wh")
    await terminal.press("t", "Tab", "Enter")
    await terminal.wait_for_match("t", r"^> /who\s*\nnobody is connected\s*\n>\s*\nwhat")
    await terminal.press("t", "Up")
    await terminal.wait_for_match("t", INPUT.format("/who"))


@pytest.mark.parametrize("way", ["C-c", "C-d", "/quit", "SIGTERM", "SIGINT", "SIGQUIT"])
async def test_every_way_out_leaves_the_terminal_as_it_was(way: str, terminal: Terminal) -> None:
    await terminal.open_shell("t", columns=80, rows=24)
    before = await modes(terminal)
    await terminal.type("t", SERVE)
    found = await terminal.wait_for_match("t", r"Listening on 127\.0\.0\.1:(\d+)")
    await terminal.wait_for("t", STATUS)
    match way:
        case "C-d":
            await terminal.press("t", "C-d")
            await terminal.wait_for("t", "The console has ended; the server keeps running")
            assert STATUS not in await terminal.screen("t")
            async with multichat.connect(LOOPBACK, int(found[1]), name="bob"):
                await terminal.wait_for("t", "Client 1 is now called bob")
            await terminal.press("t", "C-c")
        case "C-c":
            await terminal.press("t", way)
        case "/quit":
            await terminal.type("t", way)
        case _:
            os.kill(await pid_of_server(int(found[1])), signal.Signals[way])
    await terminal.wait_for("t", "[stop] Shutting down multi-chat server")
    await terminal.wait_for_match("t", r"^\$\s*\Z")
    assert STATUS not in await terminal.screen("t")
    assert "Traceback" not in await terminal.screen("t")
    assert await modes(terminal) == before


async def test_sighup_reloads_and_leaves_the_input_line_as_it_was(terminal: Terminal) -> None:
    port = await open_server(terminal, "--ban-file bans", columns=100)
    await terminal.run("send-keys", "-t", "t", "-l", "half a sen")
    await terminal.wait_for_match("t", INPUT.format("half a sen"))
    os.kill(await pid_of_server(port), signal.SIGHUP)
    await terminal.wait_for("t", "[reload] Reloaded: bans")
    await terminal.wait_for_match("t", INPUT.format("half a sen"))
    await trio.sleep(1.2)  # after which a closing terminal would have closed
    assert "Shutting down" not in await terminal.screen("t")


async def test_a_terminal_that_closes_ends_the_server_in_order(terminal: Terminal) -> None:
    port = await open_server(terminal, "--log-file log")
    async with multichat.connect(LOOPBACK, port, name="bob", reconnect=False) as bob:
        await bob.members()
        await terminal.run("kill-session", "-t", "t")
        with trio.fail_after(WAIT_SECONDS):
            events = [event async for event in bob]
        assert isinstance(events[-1], multichat.Goodbye)
        assert events[-1].code == "shutdown"
    with trio.fail_after(WAIT_SECONDS):  # the log has a thread of its own
        while "Shutting down" not in (terminal.home / "log").read_text("utf-8"):
            await trio.sleep(0.02)


async def test_stop_background_and_foreground(terminal: Terminal) -> None:
    await terminal.open_shell("t", columns=80, rows=24)
    before = await modes(terminal)
    await terminal.type("t", SERVE)
    found = await terminal.wait_for_match("t", r"Listening on 127\.0\.0\.1:(\d+)")
    await terminal.run("send-keys", "-t", "t", "-l", "half a sen")
    await terminal.wait_for_match("t", INPUT.format("half a sen"))
    await terminal.press("t", "C-z")
    await terminal.wait_for("t", "Stopped")
    assert await modes(terminal) == before
    await terminal.type("t", "bg")
    async with multichat.connect(LOOPBACK, int(found[1]), name="bob") as bob:
        await terminal.wait_for("t", "Client 1 is now called bob")  # the log continues
        assert STATUS not in await terminal.screen("t")
        assert await modes(terminal) == before
        await terminal.type("t", "fg")
        await terminal.wait_for_match("t", INPUT.format("half a sen"))
        await terminal.type("t", "tence")
        async for event in bob:
            if isinstance(event, multichat.Notice):
                assert event.text == "half a sentence"
                break
    await terminal.resize("t", 60, 12)
    await terminal.run("send-keys", "-t", "t", "-l", "more")
    await terminal.wait_for_match("t", INPUT.format("more"))
    await terminal.press("t", "C-c")
    await terminal.wait_for_match("t", r"^\$\s*\Z")


async def test_a_redirected_log_leaves_the_terminal_alone(
    terminal: Terminal, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    await terminal.open_shell("t")
    await terminal.type("t", f"{SERVE} > log")
    with trio.fail_after(WAIT_SECONDS):
        while not log.exists() or "Listening" not in log.read_text("utf-8"):
            await trio.sleep(0.02)
    await terminal.type("t", "/clients")
    await terminal.wait_for("t", "nobody is connected")
    assert STATUS not in await terminal.screen("t")
    await terminal.type("t", "/quit")
    await terminal.wait_for_match("t", r"^\$\s*\Z")
    assert "\x1b" not in log.read_text("utf-8")


async def test_a_blocked_terminal_does_not_delay_the_server(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    argv = [MULTICHAT, "serve", "0", "--host", LOOPBACK, "--log-rate", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", IN_FRONT, *argv, "--log-file", str(log)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    try:
        seen = b""
        with trio.fail_after(WAIT_SECONDS):
            while STATUS.encode() not in seen:
                seen += await trio.to_thread.run_sync(os.read, ours, 65536, abandon_on_cancel=True)
        found = re.search(rb"Listening on 127\.0\.0\.1:(\d+)", seen)
        assert found
        with trio.fail_after(2 * WAIT_SECONDS):  # from here on the terminal is not read
            async with (
                multichat.connect(LOOPBACK, int(found[1]), name="alice") as alice,
                multichat.connect(LOOPBACK, int(found[1]), name="bob") as bob,
            ):
                for number in range(200):
                    await bob.say(f"{number} " + "x" * 10_000)
                async for event in alice:
                    if isinstance(event, multichat.Said) and event.text.startswith("199 "):
                        break
            process.send_signal(signal.SIGTERM)
            await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        assert process.returncode == 0
        assert "Shutting down" in log.read_text("utf-8")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


async def test_lines_typed_while_the_server_is_busy_are_all_sent(
    terminal: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "busy.py").write_text(BUSY, "utf-8")
    os.mkfifo(tmp_path / "continue")
    await terminal.open_shell("t", columns=80, rows=24)
    await terminal.type("t", f"{sys.executable} busy.py serve 0 --host {LOOPBACK}")
    found = await terminal.wait_for_match("t", r"Listening on 127\.0\.0\.1:(\d+)")
    await terminal.wait_for("t", STATUS)
    async with multichat.connect(LOOPBACK, int(found[1]), name="bob") as bob:
        await terminal.wait_for("t", "now called bob")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
        with trio.fail_after(WAIT_SECONDS):
            while not (tmp_path / "busy").exists():
                await trio.sleep(0.01)
        for text in ("one", "two", "three"):
            await terminal.type("t", text)
        await terminal.wait_for_match("t", INPUT.format(""))
        assert "> two" not in await terminal.rows("t")  # it is shown when it is handed over
        (tmp_path / "continue").write_bytes(b"")
        heard: list[str] = []
        async for event in bob:
            if isinstance(event, multichat.Notice):
                heard.append(event.text)
                if event.text == "three":
                    break
        assert heard == ["one", "two", "three"]
    await terminal.type("t", "/quit")
    await terminal.wait_for_match("t", r"^\$\s*\Z")


def test_a_server_without_a_terminal_imports_no_prompt() -> None:
    code = (
        "import sys, multichat.cli.main, multichat.cli.serve, multichat.terminal.admin_prompt, "
        "multichat.server.server; "
        "sys.exit(any(name.startswith(('prompt_toolkit', 'wcwidth', 'asyncio'))"
        " for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
