"""Measures what being scraped costs a server that is flooded.

`python -m benchmarks.metrics [--rounds 20] [--receivers 100] [--more 20]`: one server, one flood,
and windows of a second in turn: one that is scraped at its ends only, and one that is scraped
*more* times besides.  The ratio of the deliveries in two windows side by side is what so many
scrapes cost; Prometheus makes one in 15 s, or in a second at most.  Servers in turn would not do:
on a shared machine, one is twice as fast as the next.
"""

import argparse
import re
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.servers import SERVERS, Server
from benchmarks.workloads import Tools, Workload, measure

__all__ = ["main"]

_WINDOW_SECONDS = 1.0

# Until the flood has begun, and what it may last beyond the last window.
_MARGIN_SECONDS = 4.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _scrape(port: int) -> float:
    """Return how many deliveries there were."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(r"^multichat_deliveries_total (\S+)$", text, re.MULTILINE)
    assert found is not None  # noqa: S101 - it is always there
    return float(found[1])


def _window(port: int, more: int) -> float:
    """Return the deliveries a second in a window that is scraped *more* times within it."""
    started, before = time.perf_counter(), _scrape(port)
    for number in range(1, more + 1):
        due = started + number * _WINDOW_SECONDS / (more + 1)
        time.sleep(max(0.0, due - time.perf_counter()))
        _scrape(port)
    time.sleep(max(0.0, started + _WINDOW_SECONDS - time.perf_counter()))
    after = _scrape(port)
    return (after - before) / (time.perf_counter() - started)


def _with_metrics(server: Server, port: int) -> Server:
    def command(folder: Path, chat: int, clients: int) -> list[str]:
        return [*server.command(folder, chat, clients), "--metrics", str(port)]

    return replace(server, command=command)


def _measure(rounds: int, more: int, port: int) -> list[float]:
    """Return the ratio of each round, once there is a flood and as long as it lasts."""
    ratios: list[float] = []
    while True:
        try:
            if _window(port, 0) > 0:
                break
        except OSError:
            time.sleep(0.1)  # it has not started
    for number in range(rounds):
        wanted = (0, more) if number % 2 else (more, 0)
        try:
            found = {each: _window(port, each) for each in wanted}
        except OSError:  # a busy machine has made the windows longer than the flood
            break
        ratios.append(found[more] / found[0])
        print(
            f"{found[0] / 1e6:6.2f} M deliveries a second, {found[more] / 1e6:6.2f} with {more} "
            f"scrapes: {ratios[-1]:5.3f}",
            flush=True,
        )
    return ratios


def main() -> None:
    """Run the command line: measure, and print a line for each round and the median."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--receivers", type=int, default=100)
    parser.add_argument("--more", type=int, default=20)
    options = parser.parse_args()
    seconds = 2 * options.rounds * _WINDOW_SECONDS + _MARGIN_SECONDS
    workload = Workload(
        key="metrics",
        title=f"{options.receivers:,} receivers",
        mode="throughput",
        receivers=options.receivers,
        arguments=(f"seconds={seconds:g}",),
    )
    port = _free_port()
    plain = next(server for server in SERVERS if server.name == "multichat")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        tools = Tools(Path(folder))

        def flood() -> None:
            figures.update(measure(_with_metrics(plain, port), workload, tools))

        flooding = threading.Thread(target=flood)
        flooding.start()
        ratios = _measure(options.rounds, options.more, port)
        flooding.join()
    if "error" in figures:
        sys.exit(f"metrics: {figures['error']}")
    if not ratios:
        sys.exit("metrics: the flood ended before the first round")
    ratio = median(ratios)
    print(
        f"median of {len(ratios)} rounds: {ratio:5.3f} with {options.more} scrapes a second, so "
        f"one costs {(1 - ratio) / options.more:.2%}"
    )


if __name__ == "__main__":
    main()
