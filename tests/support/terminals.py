"""Terminals in tmux, for end-to-end tests."""

import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from .documents import load
from .processes import BIN, LOOPBACK, MULTICHAT, WAIT_SECONDS, ServerCommand, program

_parse = load("make_pictures").parse

# The input line and the status below it, anywhere on the screen.
INPUT = r"^> ?{}\s*\n{} in {} · \d+ here · "

# The grey of dimmed text, in the 256-colour palette.
GREY = 243


# Ends the tmux server by its process id when standard input is closed: by `Terminal.end`, or by the
# kernel when pytest is killed.  Ignores Ctrl+C, which is for pytest.
_KEEPER = 'trap "" INT; "$@" -D & read _; kill $!; wait $!; rm -r "$FOLDER"'


class Terminal:
    """A separate tmux server; each of its sessions is a terminal.

    Programs start in the folder *home*, so that tests can use relative paths: the length of an
    absolute path, and with it the line breaks, depends on the machine.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "config.toml").touch()
        tmux = program("tmux")
        # The path of a socket has at most 107 bytes; the folder of a test may be longer.
        self._folder = Path(tempfile.mkdtemp(prefix="tmux-"))
        self._socket = self._folder / "socket"
        self._tmux = [tmux, "-S", str(self._socket), "-f", os.devnull]
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, "sh", *self._tmux],
            stdin=subprocess.PIPE,
            env={**os.environ, "FOLDER": str(self._folder)},
        )
        self._wait_for_server()

    def _wait_for_server(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while subprocess.run([*self._tmux, "list-sessions"], capture_output=True).returncode:
            assert time.monotonic() < deadline, "tmux does not start"
            time.sleep(0.01)

    def end(self) -> None:
        """End the tmux server and its terminals."""
        self._keeper.communicate()

    async def run(self, *arguments: str) -> str:
        result = await trio.run_process(
            [*self._tmux, *arguments], capture_stdout=True, capture_stderr=True
        )
        return result.stdout.decode()

    async def open(
        self, name: str, *command: str, columns: int = 60, rows: int = 15, before: str = ""
    ) -> None:
        """Run *command* without a shell, and then print its exit status."""
        places = {"MULTICHAT_CONFIG": "config.toml", "MULTICHAT_HISTORY": "history"}
        variables = [f"{key}={self.home / value}" for key, value in places.items()]
        line = shlex.join(["env", *variables, *command])
        shell = f"{before}{line}; echo status=$?; exec sleep 600"
        await self._new(name, columns, rows, shell)

    async def open_shell(self, name: str, *, columns: int = 60, rows: int = 15) -> None:
        """Run a shell with job control, the prompt `$ `, and our commands in its path.

        Not bash, which repairs the terminal's modes after a program that did not restore them.
        """
        variables = {
            "PS1": "$ ",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "MULTICHAT_CONFIG": str(self.home / "config.toml"),
            "MULTICHAT_HISTORY": str(self.home / "history"),
        }
        shell = ["env", *(f"{key}={value}" for key, value in variables.items())]
        await self._new(name, columns, rows, shlex.join([*shell, program("dash"), "-i"]))
        await self.wait_for(name, "$ ")

    async def _new(self, name: str, columns: int, rows: int, shell: str) -> None:
        size = ("-x", str(columns), "-y", str(rows))
        await self.run("new-session", "-d", "-s", name, "-c", str(self.home), *size, shell)

    async def type(self, name: str, text: str, key: str = "Enter") -> None:
        await self.run("send-keys", "-t", name, "-l", text)
        await self.press(name, key)

    async def press(self, name: str, *keys: str) -> None:
        await self.run("send-keys", "-t", name, *keys)

    async def resize(self, name: str, columns: int, rows: int) -> None:
        await self.run("resize-window", "-t", name, "-x", str(columns), "-y", str(rows))

    async def resize_at_once(self, name: str, sizes: Sequence[tuple[int, int]]) -> None:
        """Give the terminal these *sizes*, columns and rows, one after the other in one step.

        So a busy machine does not decide which of them a program sees.
        """
        commands: list[str] = []
        for columns, rows in sizes:
            commands += [";", "resize-window", "-t", name, "-x", str(columns), "-y", str(rows)]
        await self.run(*commands[1:])

    async def screen(self, name: str) -> str:
        # Joined, so that a wrapped line is one line again.
        joined = await self.run("capture-pane", "-p", "-J", "-t", name)
        return re.sub(r"\n {8}(?=\S)", " ", joined)

    async def scrollback(self, name: str) -> str:
        """Return the scrollback and the screen; rows that the terminal wrapped are joined."""
        return await self.run("capture-pane", "-p", "-J", "-S", "-", "-t", name)

    async def rows(self, name: str) -> list[str]:
        """Return the rows of the screen, without blank ones at the end."""
        shown = await self.run("capture-pane", "-p", "-t", name)
        return shown.rstrip("\n").split("\n")

    async def colors_of(self, name: str, text: str) -> set[int | None]:
        """Return the colours of the rows that contain *text*; None for the default colour."""
        rows = _parse(await self.run("capture-pane", "-p", "-e", "-t", name))
        return {
            run.style.color
            for row in rows
            if text in "".join(run.text for run in row)
            for run in row
            if run.text.strip()
        }

    async def reversed(self, name: str) -> list[str]:
        """Return the highlighted text."""
        rows = _parse(await self.run("capture-pane", "-p", "-e", "-t", name))
        return [run.text for row in rows for run in row if run.style.reverse]

    async def wait_for(self, name: str, text: str) -> None:
        await self.wait_for_match(name, re.escape(text))

    async def wait_for_match(
        self, name: str, pattern: str, *, scrollback: bool = False
    ) -> re.Match[str]:
        """Wait until *pattern* matches on the screen or, with *scrollback*, in the scrollback.

        In the scrollback only rows that the terminal wrapped are joined.
        """
        look = self.scrollback if scrollback else self.screen
        with trio.move_on_after(WAIT_SECONDS):
            while not (match := re.search(pattern, await look(name), re.MULTILINE)):
                await trio.sleep(0.05)
            return match
        pytest.fail(f"{name} never showed {pattern!r}, but {await look(name)!r}")


async def connect_alice(
    terminal: Terminal, server: ServerCommand, *, columns: int = 60, rows: int = 15
) -> None:
    """Connect alice in the terminal `t`; return when she is in the lobby."""
    command = (MULTICHAT, "connect", "--name", "alice", LOOPBACK, str(server.port))
    await terminal.open("t", *command, columns=columns, rows=rows)
    await terminal.wait_for("t", "alice in lobby")


async def wait_for_input(
    terminal: Terminal,
    session: str,
    typed: str,
    *,
    asked: str = "",
    name: str = "alice",
    room: str = "lobby",
) -> None:
    """Wait until the input line shows exactly *typed*, and the row below it *asked*."""
    if asked:
        await terminal.wait_for_match(session, rf"^> ?{re.escape(typed)}\s*\n{re.escape(asked)}")
    else:
        await terminal.wait_for_match(session, INPUT.format(re.escape(typed), name, room))


async def paste(terminal: Terminal, file: Path) -> None:
    """Paste the contents of *file* as a bracketed paste."""
    await terminal.run("load-buffer", str(file))
    await terminal.run("paste-buffer", "-p", "-t", "t")
