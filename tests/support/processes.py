"""Runs the installed commands in processes, for end-to-end tests."""

import importlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest
import trio

LOOPBACK = "127.0.0.1"
BIN = Path(sys.executable).parent
MULTICHAT = str(BIN / "multichat")

# Generous, for shared machines; reached only if something is wrong.
WAIT_SECONDS = 60


def program(name: str) -> str:
    """Return the path of the program *name*; without it, skip the test, or fail it under CI."""
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not installed")
    return path


def missing(what: str) -> NoReturn:
    """Skip the test, or the module that is imported; fail it under CI, which has all of it."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what, allow_module_level=True)


def module(name: str) -> Any:
    """Return the module called *name*; without it, see `missing`."""
    if importlib.util.find_spec(name) is None:
        missing(f"{name} is not installed")
    return importlib.import_module(name)


# If available, this program makes the kernel kill a command when pytest is killed.
ENDS_WITH_US = [path, "--pdeathsig", "KILL"] if (path := shutil.which("setpriv")) else []


class Command:
    """A process whose output goes to files; it is ended by its own process id on exit."""

    def __init__(self, folder: Path, *argv: str, stdin: int | None = None) -> None:
        self.argv = argv
        number = len(list(folder.glob("*.out")))
        self._out = folder / f"{number}.out"
        self._err = folder / f"{number}.err"
        self._out.touch()
        self._err.touch()
        self._stdin = subprocess.PIPE if stdin is None else stdin
        self.passed: tuple[int, ...] = ()  # descriptors that it inherits

    async def __aenter__(self) -> Self:
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*ENDS_WITH_US, *self.argv],
                stdin=self._stdin,
                stdout=out,
                stderr=err,
                bufsize=0,
                pass_fds=self.passed,
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def out(self) -> str:
        return self._out.read_text("utf-8", "replace")

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8", "replace")

    @property
    def lines(self) -> list[str]:
        """The lines of output so far; log lines without the time."""
        return [re.sub(r"^\d{4}-\S+ \S+ ", "", line) for line in self.out.splitlines()]

    async def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until the output contains *text* *count* times; fail if the process ends before."""
        with trio.move_on_after(WAIT_SECONDS):
            ended, pause = False, 0.01
            while self.out.count(text) < count and not ended:
                ended = (
                    self.process.poll() is not None
                )  # before reading, so that the last output is read
                await trio.sleep(pause)
                pause = min(0.1, pause * 1.1)  # reading a long output repeatedly takes time
            if self.out.count(text) >= count:
                return
        pytest.fail(f"{self.argv} never printed {text!r}, but {self.out[-2000:]!r} {self.err!r}")

    async def type(self, text: str) -> None:
        """Write *text* to its standard input."""
        assert self.process.stdin is not None
        write = self.process.stdin.write
        await trio.to_thread.run_sync(write, text.encode(), abandon_on_cancel=True)

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Wait for it to end; return its exit status."""
        with trio.move_on_after(WAIT_SECONDS):
            while self.process.poll() is None:
                await trio.sleep(0.01)
            return self.process.returncode
        pytest.fail(f"{self.argv} never ended: {self.out[-2000:]!r} {self.err!r}")


class ServerCommand(Command):
    """`multichat serve` on a port chosen by the system."""

    port = 0

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self.wait_for("Listening on")
        found = re.search(r"server on port (\d+)", self.out)
        assert found
        self.port = int(found[1])
        return self

    async def web_port(self) -> int:
        """Return the port of its page, which must not have a configured address."""
        await self.wait_for("Web page at ")
        found = re.search(r"Web page at https?://[^/]+:(\d+)/", self.out)
        assert found
        return int(found[1])


def serve(folder: Path, *options: str, port: int = 0) -> ServerCommand:
    return ServerCommand(folder, MULTICHAT, "serve", str(port), "--host", LOOPBACK, *options)


def connect(folder: Path, server: ServerCommand, *options: str) -> Command:
    return Command(folder, MULTICHAT, "connect", LOOPBACK, str(server.port), *options)


@asynccontextmanager
async def tcp(server: ServerCommand) -> AsyncIterator[trio.SocketStream]:
    """Open a raw connection to *server*."""
    stream = await trio.open_tcp_stream(LOOPBACK, server.port)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[trio.SocketListener, int]]:
    """Open a raw listener, for tests that are the server; yields it and its port."""
    [listener] = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with listener:
        yield listener, listener.socket.getsockname()[1]
