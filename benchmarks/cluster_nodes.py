"""Measures a server alone, one node of a cluster, and two nodes, in turns in one run.

    python -m benchmarks.cluster_nodes [--engine valkey|redis] [--aof always|everysec|no]

All three run at the same time, on one engine, with the same clients; of two nodes each has half of
them.  Only the ratios count: the machine is shared by servers, engine and clients.

- throughput: one sender, and ten, send lines as fast as they can; the time until every receiver has
  all of them;
- latency: messages at a steady rate, from the sender to a receiver, on the other node if there is
  one;
- idle: memory and processor time of a server with 1,000 rooms with a member each, in which nothing
  is said, and of the engine.
"""

import argparse
import contextlib
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles

from tests.cluster.engine import Kind

_WAIT_SECONDS = 120.0
_LINE = b"x" * 63 + b"\n"
_ROUNDS = 5
_RECEIVERS = 20
_LINES = 20_000
_LATENCY_MESSAGES = 300
_RATE = 100
_ROOMS = 1000
_ROOMS_OF_A_CLIENT = 25
_IDLE_SECONDS = 10.0


@contextlib.contextmanager
def _process(*command: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run *command*; yield it and the file with its output."""
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            yield process, Path(log.name)
        finally:
            process.kill()


@contextlib.contextmanager
def _engine(kind: Kind, aof: str) -> Iterator[tuple[int, int]]:
    """Run an engine; yield its port and its process id."""
    with socket.socket() as kept, tempfile.TemporaryDirectory() as folder:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        words += ["--appendonly", "yes", "--appendfsync", aof]
        with _process(kind.program(), *words) as (process, _):
            _wait_for(port)
            yield port, process.pid


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def _server(engine: int | None) -> Iterator[tuple[int, int]]:
    """Run a server, as a node if there is an engine; yield its port and its process id."""
    options = ["--host", "127.0.0.1", "--max-new-rooms", "100000", "--log-rate", "1"]
    options += ["--max-rooms", "3000"]
    if engine is not None:
        options += ["--cluster", f"valkey://127.0.0.1:{engine}"]
    command = (sys.executable, "-m", "multichat", "serve", "0", *options)
    with _process(*command) as (process, log):
        deadline = time.monotonic() + _WAIT_SECONDS
        while not (started := re.search(r"on port (\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            time.sleep(0.1)
        yield int(started[1]), process.pid


def _join(port: int, room: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), _WAIT_SECONDS)
    connection.sendall(f"/join {room}\n".encode())
    data = b""
    while b"you are in" not in data:
        data += connection.recv(1 << 16)
    return connection


class _Chat:
    """A room on one or two servers, with its senders and receivers."""

    def __init__(self, ports: Sequence[int], room: str, senders: int) -> None:
        self.senders = [_join(ports[0], room) for _ in range(senders)]
        self.receivers = [_join(ports[-1 - i % len(ports)], room) for i in range(_RECEIVERS)]
        self._selector = selectors.DefaultSelector()
        for connection in (*self.senders, *self.receivers):
            self._selector.register(connection, selectors.EVENT_READ)
        time.sleep(1)

    def flood(self, lines: int) -> float:
        """Send so many lines; return the seconds until every receiver has them."""
        each = lines // len(self.senders)
        started = time.perf_counter()
        tasks = [
            threading.Thread(target=sender.sendall, args=(_LINE * each,)) for sender in self.senders
        ]
        for task in tasks:
            task.start()
        missing = dict.fromkeys((each.fileno() for each in self.receivers), each * len(tasks))
        open_ = set(missing)
        while open_:
            ready = self._selector.select(_WAIT_SECONDS)
            if not ready:
                lacking = sorted(missing[each] for each in open_)
                raise TimeoutError(f"receivers lack these numbers of lines: {lacking}")
            for key, _ in ready:
                data = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]
                if key.fd in open_:
                    missing[key.fd] -= data.count(b"\n")
                    if missing[key.fd] <= 0:
                        open_.discard(key.fd)
        seconds = time.perf_counter() - started
        for task in tasks:
            task.join()
        return seconds

    def ping(self) -> float:
        """Send one line; return the seconds until the first receiver has it."""
        marker = os.urandom(8).hex().encode()
        started = time.perf_counter()
        self.senders[0].sendall(marker + b"\n")
        data = b""
        while marker not in data:
            data += self.receivers[0].recv(1 << 16)
        return time.perf_counter() - started

    def drain(self) -> None:
        """Read what has come."""
        while ready := self._selector.select(0.2):
            for key, _ in ready:
                key.fileobj.recv(1 << 18)  # type: ignore[union-attr]


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


_NAMES = ("alone", "one node", "two nodes")


def _speed(chats: Sequence[_Chat], what: str) -> None:
    rates: list[list[float]] = [[] for _ in chats]
    for turn in range(_ROUNDS + 1):
        for chat, mine in zip(chats, rates, strict=True):
            chat.drain()
            seconds = chat.flood(_LINES)
            if turn:  # the first warms up
                mine.append(_LINES / seconds)
    for name, mine in zip(_NAMES, rates, strict=True):
        ratio = median(one / alone for one, alone in zip(mine, rates[0], strict=True))
        _write(f"{what}, {name}: {median(mine):,.0f} messages/s, {ratio:.2f} of alone")


def _latency(chats: Sequence[_Chat]) -> None:
    times: list[list[float]] = [[] for _ in chats]
    for chat in chats:
        chat.drain()
    for _ in range(_LATENCY_MESSAGES):
        for chat, mine in zip(chats, times, strict=True):
            mine.append(chat.ping() * 1000)
        time.sleep(1 / _RATE)
    for name, mine in zip(_NAMES, times, strict=True):
        p99 = quantiles(mine, n=100)[98]
        _write(f"latency, {name}: p50 {median(mine):.2f} ms, p99 {p99:.2f} ms")


def _idle(servers: Sequence[tuple[int, int]], engine: int) -> None:
    """Compare a server alone with a node, each with as many rooms."""
    before = [_kib(pid) for _, pid in servers]
    engine_before = _kib(engine)
    connections = []
    for port, _ in servers:
        for number in range(0, _ROOMS, _ROOMS_OF_A_CLIENT):
            rooms: dict[str, object] = {
                f"r{port}-{number + i}": {} for i in range(_ROOMS_OF_A_CLIENT)
            }
            connection = socket.create_connection(("127.0.0.1", port), _WAIT_SECONDS)
            hello = {"type": "hello", "rooms": rooms}
            connection.sendall(b"/json " + json.dumps(hello).encode() + b"\n")
            connections.append(connection)
            data = b""
            while b'"welcome"' not in data:
                data += connection.recv(1 << 16)
    time.sleep(3)  # presence is announced for a while
    used = [_cpu(pid) for _, pid in servers] + [_cpu(engine)]
    after = [_kib(pid) for _, pid in servers]
    time.sleep(_IDLE_SECONDS)
    used = [
        now - then
        for now, then in zip([*(_cpu(pid) for _, pid in servers), _cpu(engine)], used, strict=True)
    ]
    for name, then, now, busy in zip(("alone", "one node"), before, after, used, strict=False):
        each = (now - then) / _ROOMS
        share = busy / _IDLE_SECONDS
        _write(f"{_ROOMS} idle rooms, {name}: {each:.1f} KiB each, {share:.1%} of a core")
    each = (_kib(engine) - engine_before) / _ROOMS
    _write(
        f"{_ROOMS} idle rooms, the engine: {each:.1f} KiB each, "
        f"{used[-1] / _IDLE_SECONDS:.1%} of a core, with all nodes"
    )
    for connection in connections:
        connection.close()


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--engine", choices=[kind.value for kind in Kind], default="valkey")
    parser.add_argument("--aof", choices=["always", "everysec", "no"], default="everysec")
    arguments = parser.parse_args()
    _write(f"{arguments.engine}, AOF {arguments.aof}; load {os.getloadavg()[0]:.1f}")
    with contextlib.ExitStack() as stack:
        engine, pid = stack.enter_context(_engine(Kind(arguments.engine), arguments.aof))
        other, _ = stack.enter_context(_engine(Kind(arguments.engine), arguments.aof))
        alone = stack.enter_context(_server(None))
        one = stack.enter_context(_server(other))
        two = [stack.enter_context(_server(engine)) for _ in range(2)]
        ports = ((alone[0],), (one[0],), [port for port, _ in two])
        for senders in (1, 10):
            room = f"of{senders}"
            chats = [_Chat(each, room, senders) for each in ports]
            word = "sender" if senders == 1 else "senders"
            _speed(chats, f"{senders} {word}, {_RECEIVERS} receivers")
            if senders == 1:
                _latency(chats)
        _idle((alone, two[0]), pid)
    _write(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
