"""Nodes of a cluster as processes, for tests: `multichat serve --cluster`, each on a kept port.

Imports nothing from multichat.
"""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.support.processes import ENDS_WITH_US, LOOPBACK, MULTICHAT, WAIT_SECONDS

from .engine import Engine

__all__ = ["NodeProcess", "names_in"]


class NodeProcess:
    """A node on a port that it keeps over restarts; `close` ends it."""

    def __init__(self, folder: Path, name: str, engine: Engine, *options: str) -> None:
        self.name = name
        self._options = ("--cluster", engine.url, *options)
        self._log = folder / f"node-{name}.log"
        # Bound but not listening: no other process gets the port while the node is away.
        self._kept = socket.socket()
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind((LOOPBACK, 0))
        self.port: int = self._kept.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def start(self) -> None:
        """Start it; return when it accepts connections."""
        argv = [MULTICHAT, "serve", str(self.port), "--host", LOOPBACK, *self._options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*ENDS_WITH_US, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                socket.create_connection((LOOPBACK, self.port)).close()
            except OSError:
                assert self._process.poll() is None, self.log
                assert time.monotonic() < until, self.log
                time.sleep(0.05)
            else:
                return

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        assert self._process is not None
        return self._process.wait(WAIT_SECONDS)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End it, and release the port."""
        self.kill()
        self._kept.close()


def names_in(port: int, room: str) -> list[str]:
    """Return the names of those in *room*, as the node on *port* lists them."""
    with socket.create_connection((LOOPBACK, port), WAIT_SECONDS) as connection:
        asked: list[dict[str, Any]] = [{"protocol": 1}, {"type": "who", "room": room}]
        first, second = (json.dumps(each) for each in asked)
        connection.sendall(f"/json {first}\n{second}\n".encode())
        for line in connection.makefile("rb"):
            event = json.loads(line) if line.startswith(b"{") else {}
            if event.get("type") == "members":
                return [each["name"] for each in event["members"]]
    raise AssertionError("the connection was closed")
