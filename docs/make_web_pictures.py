"""Writes docs/web-light.png, docs/web-dark.png and docs/web-phone-….png from the page in a browser.

Run it:    python docs/make_web_pictures.py
It starts a server, people who talk, and the page in chromium, which has to be installed.
"""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).parent
MULTICHAT = str(Path(sys.executable).parent / "multichat")

THEMES = "light", "dark"
SIZES = {"web": (1280, 800), "web-phone": (390, 844)}

# The messages of each room with their senders; "me" is the user of the page.
PEOPLE = "bob", "carol", "דנה"
TALK = [
    ("lobby", "carol", "Good morning! Release 2.4 is on the staging machine since eight."),
    ("lobby", "bob", "The build is green: https://ci.example/builds/1042"),
    ("lobby", "bob", "All 3,912 tests, both architectures"),
    ("lobby", "me", "Great. I write the changelog until ten"),
    ("lobby", "דנה", "בוקר טוב! אני בודקת את התרגום"),
    ("lobby", "bob", "@alice, can you look at the second migration? It takes 40 s on a copy."),
    ("lobby", "me", "On it. Is that with the index, or without?"),
    ("lobby", "bob", "Without. With it: two seconds 🎉"),
    ("lobby", "carol", "/me brings coffee"),
    ("kitchen", "carol", "Cake on the second floor"),
    ("kitchen", "bob", "How much is left?"),
    ("ops", "bob", "disk of db-3 at 81 %"),
    ("ops", "carol", "alice: db-3 is yours this week"),
]
PRIVATE = "Lunch at twelve?"

WAIT_SECONDS = 60


class Speaker:
    """Somebody with a plain connection."""

    def __init__(self, port: int, name: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)
        self._room = "lobby"
        self.send(f"/name {name}", "is now")

    def send(self, line: str, answer: str = "pong") -> None:
        """Send *line*, and wait for its *answer*."""
        self._socket.sendall(
            f"{line}\n/ping\n".encode() if answer == "pong" else f"{line}\n".encode()
        )
        received = b""
        while answer.encode() not in received:
            received += self._socket.recv(65536)

    def say(self, room: str, line: str) -> None:
        """Say *line* in *room*."""
        if room != self._room:
            self._room = room
            self.send(f"/join {room}", f"you are in {room}")
        self.send(line)

    def close(self) -> None:
        """Leave."""
        self._socket.close()


@contextmanager
def serving() -> Iterator[tuple[int, str]]:
    """Start a server; yields its port, and the address of the page."""
    with tempfile.TemporaryFile("w+") as log:
        argv = [MULTICHAT, "serve", "0", "--host", "127.0.0.1", "--web", "0"]
        server = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            text = ""
            while "Web page at" not in text and time.monotonic() < deadline:
                time.sleep(0.05)
                log.seek(0)
                text = log.read()
            yield (
                int(re.findall(r"server on port (\d+)", text)[0]),
                re.findall(r"Web page at (\S+)", text)[0],
            )
        finally:
            server.terminate()
            server.wait()


def converse(page: Page, port: int, url: str, stack: ExitStack) -> None:
    """Let everybody talk, and end in the lobby with something unread in the other rooms."""
    page.goto(url)
    page.fill("#join-name", "alice")
    page.click("#join-submit")
    page.wait_for_selector("#me .state.online", state="attached")

    def type_line(line: str) -> None:
        page.fill("#field", line)
        page.press("#field", "Enter")

    for room in "kitchen", "ops":
        type_line(f"/join {room}")
        page.wait_for_function("t => document.getElementById('title').textContent === t", arg=room)
    page.keyboard.press("Alt+1")
    speakers = {name: Speaker(port, name) for name in PEOPLE}
    for each in speakers.values():
        stack.callback(each.close)
    for room, who, text in TALK:
        if who == "me":
            type_line(text)
            page.wait_for_selector(".said.pending", state="detached")
        else:
            speakers[who].say(room, text)
        time.sleep(0.1)  # so that every message comes as one of its own
    for name, each in speakers.items():
        each.send("/join lobby", "you are in lobby")
        if name == "carol":
            each.send(f"/msg alice {PRIVATE}")
    page.wait_for_selector(".open .badge >> nth=2", state="attached")
    page.fill("#field", "")
    page.mouse.move(640, 20)
    page.wait_for_timeout(1500)  # until everybody's return is announced


def photograph(browser: Browser, theme: str, name: str) -> None:
    """Write one picture."""
    width, height = SIZES[name]
    with ExitStack() as stack:
        port, url = stack.enter_context(serving())
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            locale="en-GB",
        )
        stack.callback(context.close)
        page = context.new_page()
        converse(page, port, url, stack)
        page.screenshot(path=DOCS / f"{name}-{theme}.png")


def main() -> None:
    """Write all pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed")
    with sync_playwright() as playwright:
        argv = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=argv)
        for theme in THEMES:
            for name in SIZES:
                photograph(browser, theme, name)
        browser.close()


if __name__ == "__main__":
    main()
