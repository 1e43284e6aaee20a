"""Measures the time until a message is accepted, with each journal in alternation.

`python -m benchmarks.acceptance [--rounds 3] [--rate 100]`: one client in a room with nine others
sends a hundred messages a second; the time is from sending one until reading its `accepted`, for
each journal and for the one in memory.  On a shared machine, only the comparison counts.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import trio

import multichat

_JOURNALS = {
    "memory": [],
    "normal": ["--journal", "chat.db", "--durability", "normal"],
    "full": ["--journal", "chat.db", "--durability", "full"],
}
_OTHERS = 9
_MESSAGES = 500
_START_SECONDS = 20


async def _measure(port: int, rate: float) -> list[float]:
    """Return the milliseconds of each message."""
    took: list[float] = []
    async with trio.open_nursery() as nursery:
        for _ in range(_OTHERS):
            nursery.start_soon(_listen, port)
        async with multichat.connect("127.0.0.1", port) as chat:
            next_at = trio.current_time()
            for number in range(_MESSAGES):
                next_at += 1 / rate
                await trio.sleep_until(next_at)
                started = trio.current_time()
                await chat.send(f"message {number}")
                while chat.unaccepted:
                    await trio.lowlevel.checkpoint()
                took.append((trio.current_time() - started) * 1000)
        nursery.cancel_scope.cancel(reason="all is said")
    return took


async def _listen(port: int) -> None:
    async with multichat.connect("127.0.0.1", port) as chat:
        async for _ in chat:
            pass


def _run(options: list[str], rate: float) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        argv = [sys.executable, "-m", "multichat", "serve", "0", "--host", "127.0.0.1", *options]
        log = Path(folder) / "log"
        with log.open("wb") as output:
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
            server = subprocess.Popen(argv, stdout=output, cwd=folder, env=environment)
        try:
            return trio.run(_measure, _port(log), rate)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def _port(log: Path) -> int:
    give_up_at = time.monotonic() + _START_SECONDS
    while "Listening on" not in (text := log.read_text("utf-8")):
        if time.monotonic() > give_up_at:
            raise RuntimeError("the server does not start")
        time.sleep(0.02)
    return int(text.partition("server on port ")[2].partition("\n")[0])


def main() -> None:
    """Run the command line: measure, and print a line for each journal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acceptance", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100)
    options = parser.parse_args()
    medians: dict[str, list[float]] = {name: [] for name in _JOURNALS}
    slowest: dict[str, list[float]] = {name: [] for name in _JOURNALS}
    for _ in range(options.rounds):
        for name, arguments in _JOURNALS.items():
            took = _run(arguments, options.rate)
            medians[name].append(median(took))
            slowest[name].append(quantiles(took, n=100)[98])
    for name in _JOURNALS:
        p50, p99 = median(medians[name]), median(slowest[name])
        beside = p50 / median(medians["memory"])
        print(f"{name:8} p50 {p50:6.2f} ms ({beside:4.1f} times memory's)   p99 {p99:6.2f} ms")


if __name__ == "__main__":
    main()
