"""A soak test: `python -m tests.soak [--minutes 10] [--clients 500] [--seed N]`.

Runs a server in a process of its own, hundreds of clients that connect, talk, stall, leave and
return, and twenty that stay.  It fails if the server leaks memory or files, loses or reorders
messages between the clients that stay, or does not stop in order.  A failed run is repeated with
the same seed, because a busy machine may have disturbed it; the exit status is 1 if it fails again.
"""

import argparse
import faulthandler
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import trio

from .measure import Samples, Watch
from .people import Circle, Visitor

STAYING = 20

# Small, so that it is full at the end of the warm-up.
KEPT = ("--keep-messages", "500", "--max-sessions", "500")

# Every client has connected at least once after the first quarter of a minute.
_ARRIVAL_SECONDS = 10.0

_PROGRESS_SECONDS = 10.0

# Time for the last messages to arrive and for connections to close.
_SETTLE_SECONDS = 60.0

# If it hangs, print the tracebacks.
_SPARE_SECONDS = 120.0

# The server's five seconds of grace, one second of lingering, and reserve for a shared machine.
_STOP_SECONDS = 60.0


def show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _progress(watch: Watch, circle: Circle, visitors: list[Visitor]) -> None:
    while True:
        await trio.sleep(_PROGRESS_SECONDS)
        now = watch.samples.all[-1]
        show(
            f"{now.seconds:6.0f} s  {now.clients:4} clients  {now.open_files:4} files  "
            f"{now.memory_bytes / 2**20:6.1f} MiB  {now.threads} threads  "
            f"{circle.said} said by those who stay, {circle.heard} heard; "
            f"{sum(each.visits for each in visitors)} visits"
        )


async def _live(
    port: int, process: "subprocess.Popen[bytes]", seconds: float, clients: int, seed: int
) -> tuple[Samples, list[str]]:
    """Return the measurements, and the errors of the clients that stayed."""
    chance = random.Random(seed)
    circle = Circle(port, STAYING)
    visitors = [
        Visitor(port, number, chance.randrange(2**32)) for number in range(clients - STAYING)
    ]
    watch = Watch(process.pid, lambda: STAYING + sum(each.here for each in visitors))
    async with trio.open_nursery() as nursery:
        await nursery.start(circle.run)
        nursery.start_soon(watch.run)
        nursery.start_soon(_progress, watch, circle, visitors)
        async with trio.open_nursery() as guests:
            for visitor in visitors:
                guests.start_soon(visitor.run, chance.uniform(0, _ARRIVAL_SECONDS))
            await trio.sleep(seconds)
            guests.cancel_scope.cancel(reason="the day is over")
        with trio.move_on_after(_SETTLE_SECONDS):
            await circle.finish()
        nursery.cancel_scope.cancel(reason="the day is over")
    troubles = circle.troubles()
    with trio.move_on_after(_SETTLE_SECONDS):
        while watch.open_files() > watch.samples.open_files_before:
            await trio.sleep(0.1)
    watch.samples.open_files_after = watch.open_files()
    return watch.samples, troubles


def _stop(process: "subprocess.Popen[bytes]", errors: Path, log: Path) -> list[str]:
    troubles = []
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        troubles.append(f"the server did not stop in {_STOP_SECONDS:g} s")
    else:
        if status:
            troubles.append(f"the server ended with status {status}")
    if said := errors.read_text("utf-8", "replace"):
        troubles.append(f"on standard error: {said[:500]}")
    with log.open(encoding="utf-8") as lines:
        crashes = [line.rstrip() for line in lines if "crashed" in line or "[ERROR]" in line]
    troubles += [f"in the log: {line}" for line in crashes[:5]]
    return troubles


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    if options.clients <= STAYING or options.minutes <= 0:
        parser.error(f"at least {STAYING + 1} clients, and some time")
    for attempt in ("", ", once more"):
        show(
            f"{options.clients} clients for {options.minutes:g} minutes, "
            f"--seed {options.seed}{attempt}"
        )
        troubles = _soak(60 * options.minutes, options.clients, options.seed)
        for trouble in troubles:
            show(f"FAILED: {trouble}")
        if not troubles:
            show("passed")
            return 0
    return 1


def _soak(seconds: float, clients: int, seed: int) -> list[str]:
    """Run a server and its clients for that long; return the errors."""
    with tempfile.TemporaryDirectory() as folder:
        log, errors = Path(folder) / "log", Path(folder) / "errors"
        argv = [sys.executable, "-m", "multichat", "serve", "0", "--host", "127.0.0.1"]
        with errors.open("wb") as err:
            process = subprocess.Popen(
                [*argv, "--log-file", str(log), "--max-clients", str(2 * clients), *KEPT],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
        try:
            port = _port(process, log)
            faulthandler.dump_traceback_later(seconds + 2 * _SETTLE_SECONDS + _SPARE_SECONDS)
            samples, troubles = trio.run(_live, port, process, seconds, clients, seed)
            troubles += samples.troubles()
            troubles += _stop(process, errors, log)
            faulthandler.cancel_dump_traceback_later()
            too_slow = log.read_text("utf-8").count("(too slow)")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    for line in samples.table():
        show(line)
    show(f"{too_slow} of those who stalled had to go")
    return troubles


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    async def wait() -> int:
        with trio.fail_after(_SETTLE_SECONDS):
            while not log.exists() or "Listening on" not in (text := log.read_text("utf-8")):
                if process.poll() is not None:
                    raise RuntimeError("the server did not start")
                await trio.sleep(0.05)
        return int(text.partition("server on port ")[2].partition("\n")[0])

    return trio.run(wait)


if __name__ == "__main__":
    sys.exit(main())
