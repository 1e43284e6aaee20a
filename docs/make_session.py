"""Writes docs/session.md from a real session: nc, `multichat connect` and a bot in terminals.

Run it:    python docs/make_session.py
It starts a server and a tmux server with three terminals of 60 columns, types, and writes what they
show.  Nothing in the page is written by hand.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).with_name("session.md")
MULTICHAT = str(Path(sys.executable).parent / "multichat")

BOT = """\
import multichat, trio


async def main():
    async with multichat.connect("127.0.0.1", 9000, name="parrot") as chat:
        async for event in chat:
            match event:
                case multichat.Said(name=name, text=text) if text.endswith("?"):
                    await chat.say(f"{name} asks: {text}")


trio.run(main)
"""

PANES = {
    "alice": "$ multichat connect --name alice 127.0.0.1 9000",
    "nc": "$ nc 127.0.0.1 9000",
    "parrot": "$ python parrot.py",
}

WAIT_SECONDS = 60


class Tmux:
    """A separate tmux server, with a terminal for each program."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", os.devnull]

    def run(self, *arguments: str) -> str:
        """Run a tmux command and return its output."""
        argv = [*self._tmux, *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout  # noqa: S603

    def open(self, name: str, *command: str) -> None:
        """Run *command* in a terminal."""
        # Without user settings.
        places = [f"MULTICHAT_{each}={self._folder / each}" for each in ("CONFIG", "HISTORY")]
        command = ("env", *places, *command)
        self.run("new-session", "-d", "-s", name, "-x", "60", "-y", "30", shlex.join(command))

    def type(self, name: str, text: str) -> None:
        """Type a line."""
        self.run("send-keys", "-t", name, "-l", text)
        self.run("send-keys", "-t", name, "Enter")

    def screen(self, name: str) -> str:
        """Return the screen of a terminal, with its line breaks."""
        return self.run("capture-pane", "-p", "-t", name).rstrip()

    def wait_for(self, name: str, text: str) -> None:
        """Wait until a terminal shows *text*, ignoring line breaks."""
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in self.run("capture-pane", "-p", "-J", "-t", name):
            if time.monotonic() > deadline:
                sys.exit(f"{name} never showed {text!r}:\n{self.screen(name)}")
            time.sleep(0.05)


def hold_session(folder: Path) -> dict[str, str]:
    """Run the conversation of the three; return their final screens."""
    tmux = Tmux(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    bot = folder / "parrot.py"
    bot.write_text(BOT.replace("9000", port), "utf-8")
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen([MULTICHAT, "serve", port, "--host", "127.0.0.1"], stdout=output)  # noqa: S603
    try:
        wait_for_log(log, "Listening")
        tmux.open("alice", MULTICHAT, "connect", "--name", "alice", "127.0.0.1", port)
        tmux.wait_for("alice", "you are alice")
        tmux.open("nc", "nc", "127.0.0.1", port)
        tmux.wait_for("alice", "Client 2 joined")
        tmux.open("parrot", sys.executable, str(bot))
        tmux.wait_for("alice", "parrot joined")
        tmux.type("nc", "/name bob")
        tmux.wait_for("alice", "Client 2 is now bob")
        tmux.type("alice", "Hello, 안녕, καλημέρα 👋")
        tmux.wait_for("nc", "Hello, 안녕")
        tmux.type("nc", "Lunch at noon?")
        tmux.wait_for("alice", "bob asks: Lunch at noon?")
        tmux.type("alice", "/me is hungry")
        tmux.wait_for("nc", "alice is hungry")
        tmux.type("nc", "/msg alice the usual place")
        tmux.wait_for("alice", "the usual place")
        tmux.type("nc", "/who")
        tmux.wait_for("nc", "parrot\n")
        return {name: tmux.screen(name).replace(port, "9000") for name in PANES}
    finally:
        subprocess.run([*tmux._tmux, "kill-server"], check=False, capture_output=True)  # noqa: S603, SLF001
        server.terminate()
        server.wait()


def wait_for_log(log: Path, text: str) -> None:
    """Wait until the server's log has *text*."""
    deadline = time.monotonic() + WAIT_SECONDS
    while text not in log.read_text("utf-8"):
        if time.monotonic() > deadline:
            sys.exit(f"the server never logged {text!r}")
        time.sleep(0.05)


def encode(screens: dict[str, str]) -> str:
    """Return the page."""
    introduction = (
        "`nc`, `multichat connect` and a bot in one room, in terminals of 60 columns.\n"
        "This page shows their real output, recorded by `python docs/make_session.py`."
    )
    # Times would change with every run.
    screens = {
        name: re.sub(r"^\d\d:\d\d ", "10:30 ", shown, flags=re.MULTILINE)
        for name, shown in screens.items()
    }
    sections = [f"# A session\n\n{introduction}\n"]
    for name, command in PANES.items():
        if name == "parrot":
            sections.append(f"The bot, `parrot.py`, which has no output:\n\n```python\n{BOT}```\n")
        else:
            sections.append(f"```text\n{command}\n{screens[name]}\n```\n")
    return "\n".join(sections)


def main() -> None:
    """Run the session and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(encode(hold_session(Path(folder))), "utf-8")


if __name__ == "__main__":
    main()
