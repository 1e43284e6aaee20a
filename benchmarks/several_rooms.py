"""Measures clients in several rooms: memory, entering, and a message beside one in one room.

    python -m benchmarks.several_rooms [--clients 1000] [--rooms 20]

Two servers get the same clients: in one they are in one room, in the other in all *rooms*.  A
message is timed until every member has read it, in both in turns, so that only the ratio counts.
"""

import argparse
import contextlib
import json
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

_WAIT_SECONDS = 60.0
_MESSAGES = 50


@contextlib.contextmanager
def _server(rooms: int) -> Iterator[tuple[int, int]]:
    """Run a server; yield its port and its process id."""
    options = ["--host", "127.0.0.1", "--max-rooms-per-client", str(rooms + 1)]
    options += ["--max-clients", "5000", "--max-new-rooms", "100000"]
    command = [sys.executable, "-m", "multichat", "serve", "0", *options]
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + _WAIT_SECONDS
            while not (started := re.search(r"on port (\d+)", Path(log.name).read_text())):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {Path(log.name).read_text()}")
                time.sleep(0.1)
            yield int(started[1]), process.pid
        finally:
            process.kill()


def _kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) if found else 0


class _Crowd:
    """The connections of one process, which read everything."""

    def __init__(self, port: int, clients: int) -> None:
        self._selector = selectors.DefaultSelector()
        self.sockets = []
        for _ in range(clients):
            connection = socket.create_connection(("127.0.0.1", port), _WAIT_SECONDS)
            connection.sendall(b'/json {"rooms":{"r0":{}}}\n')
            self.sockets.append(connection)
            self._selector.register(connection, selectors.EVENT_READ)

    def ask(self, line: bytes, answer: bytes) -> float:
        """Send *line* from each client, wait for the *answer* of each; return the seconds."""
        started = time.perf_counter()
        for connection in self.sockets:
            connection.sendall(line)
        self.wait(answer, len(self.sockets))
        return time.perf_counter() - started

    def wait(self, marker: bytes, clients: int) -> None:
        """Read until so many *clients* have received *marker*."""
        seen: set[int] = set()
        tails: dict[int, bytes] = {}
        deadline = time.monotonic() + _WAIT_SECONDS
        while len(seen) < clients:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{marker!r} reached {len(seen)} of {clients} clients")
            for key, _ in self._selector.select(1):
                data = tails.get(key.fd, b"") + key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                if marker in data:
                    seen.add(key.fd)
                tails[key.fd] = data[-len(marker) :]

    def say(self, number: int) -> float:
        """Let the first client say something in `r0`; return the seconds until all have it."""
        text = f"message {number};"
        line = json.dumps({"type": "say", "room": "r0", "text": text}).encode() + b"\n"
        started = time.perf_counter()
        self.sockets[0].sendall(line)
        self.wait(text.encode(), len(self.sockets) - 1)
        return time.perf_counter() - started


def _measure(clients: int, rooms: int) -> None:
    with contextlib.ExitStack() as stack:
        crowds = []
        for several in (False, True):
            port, pid = stack.enter_context(_server(rooms))
            crowd = _Crowd(port, clients)
            crowd.ask(b'{"type":"ping","token":"here"}\n', b'"here"')
            before, seconds = _kib(pid), 0.0
            for number in range(1, rooms if several else 1):
                nonce = f"e{number}."
                enter = {"type": "enter", "room": f"r{number}", "nonce": nonce}
                seconds += crowd.ask(json.dumps(enter).encode() + b"\n", f'"{nonce}"'.encode())
            if several:
                entered = clients * (rooms - 1)
                sys.stdout.write(
                    f"{entered} memberships more: {(_kib(pid) - before) / entered:.2f} KiB each, "
                    f"{entered / seconds:.0f} enters a second\n"
                )
            crowds.append(crowd)
        time.sleep(3)  # joins are announced for a while
        times = [[crowd.say(number) for crowd in crowds] for number in range(_MESSAGES)]
        one, several_ = (median(column) for column in zip(*times, strict=True))
        ratio = median(each[1] / each[0] for each in times)
        sys.stdout.write(
            f"a message until {clients - 1} members have read it: {one * 1e3:.1f} ms in one room, "
            f"{several_ * 1e3:.1f} ms beside {rooms - 1} others; {ratio:.2f} times as long\n"
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.several_rooms")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rooms", type=int, default=20)
    options = parser.parse_args()
    _measure(options.clients, options.rooms)


if __name__ == "__main__":
    main()
