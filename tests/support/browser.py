"""The page in a real browser: Debian's chromium, driven by playwright.

A `Visitor` is one page of one person.  It collects what the browser complains about, and the test
fails for it: errors of scripts, and everything that the content security policy has blocked.
"""

import random
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.support.processes import ENDS_WITH_US, LOOPBACK, MULTICHAT, WAIT_SECONDS, missing

__all__ = [
    "CHROMIUM",
    "Line",
    "Switch",
    "Visitor",
    "WebServer",
    "chromium",
    "open_visitor",
    "wait_until",
]

CHROMIUM = "chromium"

# The machine may be busy with other tests.
PAGE_MILLISECONDS = 45_000

# A connection that the test has cut, or a server that it has ended.
_CONNECTION_FAILED = re.compile(
    "WebSocket connection to .* failed|Failed to load resource: net::ERR_|ERR_CONNECTION_REFUSED"
)


def wait_until(what: Callable[[], Any], reason: str = "") -> None:
    """Wait until *what* returns something true; fail with *reason* if it never does."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not what():
        if time.monotonic() > deadline:
            pytest.fail(f"it never happened: {reason or what}")
        time.sleep(0.02)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start chromium; without it, skip the test, or fail it under CI."""
    path = shutil.which(CHROMIUM)
    if path is None:
        missing(f"{CHROMIUM} is not installed")
    with sync_playwright() as playwright:
        # Without a sandbox, because tests may run as root in a container.
        argv = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        # Refusing other sites is the server's task, in browsers that do not help it.
        argv.append("--disable-features=LocalNetworkAccessChecks")
        browser = playwright.chromium.launch(executable_path=path, args=argv)
        try:
            yield browser
        finally:
            browser.close()


class WebServer:
    """`multichat serve --web` as a process; ended by its own process id on exit."""

    port = 0
    web = 0

    def __init__(self, folder: Path, *options: str, port: int = 0, web: int = 0) -> None:
        self._options = options
        self._ports = port, web
        self._log = folder / f"serve-{len(list(folder.glob('serve-*')))}.log"

    def __enter__(self) -> Self:
        port, web = map(str, self._ports)
        argv = [MULTICHAT, "serve", port, "--host", LOOPBACK, "--web", web, *self._options]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*ENDS_WITH_US, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: "Web page at" in self.log or self.process.poll() is not None, self.log)
        self.port = int(re.findall(r"server on port (\d+)", self.log)[0])
        self.web = int(re.findall(r"Web page at https?://[^:]+:(\d+)/", self.log)[0])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill it, as a crash would."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let it shut down in order."""
        self.process.terminate()
        self.process.wait(WAIT_SECONDS)

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.web}/"


class Line:
    """A client of the text protocol on a plain socket, as `nc` is."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((LOOPBACK, port), WAIT_SECONDS)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def say(self, *lines: str) -> None:
        self._socket.sendall("".join(f"{line}\n" for line in lines).encode())

    def hears(self, text: str) -> None:
        """Wait for *text*, and forget what came until then."""
        sought = text.encode()
        while sought not in self._received:
            data = self._socket.recv(65536)
            assert data, f"the end came before {text!r}: {self._received!r}"
            self._received += data
        self._received = self._received.partition(sought)[2]

    def named(self, name: str) -> Self:
        """Take *name*, and wait until it is there."""
        self.say(f"/name {name}")
        self.hears(f"is now {name}")
        return self


class Switch:
    """Listens on `port` and passes on to the loopback port *target*, until it is switched off."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.is_on = True
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.is_on = False
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/"

    def cut(self, *, reset: bool = False) -> None:
        """End all connections; with *reset*, what is on its way is lost, too."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for each in pair:
                with suppress(OSError):
                    if reset:
                        linger = struct.pack("ii", 1, 0)
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    each.shutdown(socket.SHUT_RDWR)

    def off(self) -> None:
        """Cut all connections, and refuse new ones."""
        self.is_on = False
        self.cut()

    def on(self) -> None:
        self.is_on = True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self.is_on:
                client.close()
                continue
            try:
                server = socket.create_connection((LOOPBACK, self.target), WAIT_SECONDS)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = client, server
            with self._lock:
                self._pairs.add(pair)
            left = [2]
            for source, sink in (pair, (server, client)):
                thread = threading.Thread(target=self._pass, args=(source, sink, pair, left))
                self._threads.append(thread)
                thread.start()

    def _pass(
        self,
        source: socket.socket,
        sink: socket.socket,
        pair: tuple[socket.socket, socket.socket],
        left: list[int],
    ) -> None:
        with suppress(OSError):
            while data := source.recv(random.choice([7, 300, 65536])):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        with self._lock:
            left[0] -= 1
            if left[0] == 0:
                self._pairs.discard(pair)
                for each in pair:
                    each.close()


class Visitor:
    """A user with the page open; `page` is playwright's."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        page.set_default_timeout(PAGE_MILLISECONDS)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"{error}"))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not _CONNECTION_FAILED.search(message.text):
            self.complaints.append(message.text)

    def open(self) -> Self:
        self.page.goto(self.url)
        return self

    def join(self, name: str = "", passphrase: str = "") -> Self:
        """Open the page and enter the chat."""
        self.open()
        self.page.fill("#join-name", name)
        if passphrase:
            self.page.click("#join-account")
            self.page.fill("#join-passphrase-field", passphrase)
        self.page.click("#join-submit")
        return self

    def online(self) -> Self:
        """Wait for the connection, and for the names of the members."""
        self.page.wait_for_selector("#me .state.online", state="attached")
        self.page.wait_for_selector("#people-list .me", state="attached")
        return self

    def try_now(self) -> None:
        """Press "Try now", which may have gone meanwhile."""
        self.page.evaluate("() => document.getElementById('banner-button').click()")

    def say(self, *lines: str) -> None:
        for line in lines:
            self.page.fill("#field", line)
            self.page.press("#field", "Enter")

    def show(self, title: str) -> None:
        """Go to the conversation called *title*."""
        self.page.locator(".open", has_text=title).first.click()
        self.page.wait_for_function(
            "t => document.getElementById('title').textContent === t", arg=title
        )

    def texts(self) -> list[str]:
        """Return the messages that are drawn."""
        script = (
            "() => [...document.querySelectorAll('#rows .said .text')].map((e) => e.textContent)"
        )
        found = self.page.evaluate(script)
        assert isinstance(found, list)
        return found

    def hears(self, text: str) -> None:
        """Wait until the message *text* is drawn, and acknowledged if it is our own."""
        self.page.wait_for_function(
            "t => [...document.querySelectorAll('#rows .said:not(.pending) .text')]"
            ".some((e) => e.textContent === t)",
            arg=text,
        )

    def badge(self, title: str) -> str:
        """Return what is unread in the conversation *title*: `3`, `@1`, or nothing."""
        badge = self.page.locator(".open", has_text=title).locator(".badge > [aria-hidden]")
        return badge.first.text_content() or "" if badge.count() else ""


@contextmanager
def open_visitor(context: BrowserContext, url: str) -> Iterator[Visitor]:
    """Open a page; at the end the browser must have had nothing to complain about."""
    page = context.new_page()
    visitor = Visitor(page, url)
    try:
        yield visitor
    finally:
        page.close()
    if visitor.complaints:
        pytest.fail(f"the browser complained: {visitor.complaints}")
