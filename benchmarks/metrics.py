"""Measures what metrics cost: throughput with `--metrics`, scraped every second, and without.

`python -m benchmarks.metrics [--rounds 8] [--receivers 100] [--seconds 5]`: the two servers take
turns, beginning with either in alternation.  Each round gives two ratios: of deliveries a second,
and of the server's processor time for a delivery.  On a busy machine the second one counts, because
waiting for a processor does not change it.
"""

import argparse
import socket
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.servers import SERVERS, Server
from benchmarks.workloads import Tools, Workload, measure

__all__ = ["main"]

_SCRAPE_SECONDS = 1.0

_NAMES = ("without", "with")


class _Figures(NamedTuple):
    """What one run gave: deliveries a second, and processor time in ns for each."""

    deliveries: float
    cpu_ns: float


class _Scraper:
    """Asks for the metrics on *port* every second; *scrapes* is how often it got them."""

    def __init__(self, port: int) -> None:
        self.scrapes = 0
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask while the block runs."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_SCRAPE_SECONDS):
            try:
                with urllib.request.urlopen(self._url, timeout=10) as answer:  # noqa: S310 - loopback
                    self.scrapes += b"multichat_clients" in answer.read()
            except OSError:
                pass  # there is no server between two rounds


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _with_metrics(server: Server, port: int) -> Server:
    def command(folder: Path, chat: int, clients: int) -> list[str]:
        return [*server.command(folder, chat, clients), "--metrics", str(port)]

    return replace(server, command=command)


def _measure(server: Server, workload: Workload, tools: Tools) -> _Figures:
    figures = measure(server, workload, tools)
    if "error" in figures:
        sys.exit(f"metrics: {figures['error']}")
    deliveries = figures["deliveries_per_second"]
    return _Figures(deliveries, figures["server_cpu"] / deliveries * 1e9)


def main() -> None:
    """Run the command line: measure, and print a line for each round and the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--receivers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    workload = Workload(
        key="metrics",
        title=f"{options.receivers:,} receivers",
        mode="throughput",
        receivers=options.receivers,
        arguments=(f"seconds={options.seconds:g}",),
    )
    plain = next(server for server in SERVERS if server.name == "multichat")
    port = _free_port()
    servers = {"without": plain, "with": _with_metrics(plain, port)}
    found: dict[str, list[_Figures]] = {name: [] for name in _NAMES}
    scraper = _Scraper(port)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, scraper.running():
        tools = Tools(Path(folder))
        for number in range(options.rounds):
            for name in _NAMES if number % 2 else reversed(_NAMES):
                found[name].append(_measure(servers[name], workload, tools))
            without, beside = found["without"][-1], found["with"][-1]
            print(
                f"{without.deliveries / 1e6:6.2f} and {beside.deliveries / 1e6:6.2f} M/s with metrics: "
                f"{beside.deliveries / without.deliveries:5.3f}; "
                f"{without.cpu_ns:5.1f} ns of processor time for a delivery, {beside.cpu_ns:5.1f}: "
                f"{beside.cpu_ns / without.cpu_ns:5.3f}",
                flush=True,
            )
    rounds = list(zip(found["without"], found["with"], strict=True))
    print(
        f"medians of {options.rounds} rounds, {scraper.scrapes} scrapes: deliveries a second "
        f"{median(b.deliveries / a.deliveries for a, b in rounds):5.3f}, processor time for each "
        f"{median(b.cpu_ns / a.cpu_ns for a, b in rounds):5.3f}"
    )


if __name__ == "__main__":
    main()
