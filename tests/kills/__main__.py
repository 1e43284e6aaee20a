"""Kills a server under load: `python -m tests.kills [--kills 30] [--durability full] [--seed N]`.

There are ten rooms, and two writers and one reader for each.  Each client is in one room or, with
--rooms, in so many.  The server is repeatedly killed with
SIGKILL and restarted with the same journal, and all clients resume.  Fails unless each message was
received exactly once by every other member of its room, by no other client, and in the same order.

Without --durability it runs once with `full` and once with `normal`.
"""

import argparse
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .checker import LOOPBACK, Rooms, Wrong

__all__ = ["journal", "run"]

LIFE_SECONDS = 0.3, 2.0

# Generous, for a shared machine.
START_SECONDS = 60.0
SETTLE_SECONDS = 180.0

_SERVER = str(Path(sys.executable).parent / "multichat")


def _start(port: int, folder: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    argv = [_SERVER, "serve", str(port), "--host", LOOPBACK, *options]
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(argv, stdout=log, stderr=log)


def journal(folder: Path, durability: str) -> list[str]:
    """Return the options of a server with a journal in *folder*."""
    return ["--journal", str(folder / "chat.db"), "--durability", durability]


def run(folder: Path, options: Sequence[str], *, kills: int, seed: int, rooms_each: int = 1) -> str:
    """Run a server with *options* and kill it; return a line of statistics.  Raises `Wrong`."""
    dice = random.Random(f"{seed} kills")
    with socket.socket() as kept:  # keeps the port from being assigned to another process
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind((LOOPBACK, 0))
        port = kept.getsockname()[1]
        rooms = Rooms(port, seed, rooms_each=rooms_each)
        server = _start(port, folder, options)
        try:
            rooms.start()
            rooms.wait_connected(START_SECONDS)
            for _ in range(kills):
                time.sleep(dice.uniform(*LIFE_SECONDS))
                server.kill()
                server.wait()
                for client in rooms.clients:
                    client.connected = False
                server = _start(port, folder, options)
                rooms.wait_connected(START_SECONDS)
            rooms.wait_heard(SETTLE_SECONDS)
            rooms.check()
        except Wrong as wrong:
            log = (folder / "server.log").read_text("utf-8", "replace")
            raise Wrong(f"{wrong}; the server's log ends with {log[-500:]!r}") from None
        finally:
            rooms.stop()
            server.kill()
            server.wait()
    return rooms.statistics()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--durability", choices=["full", "normal"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rooms", type=int, default=1, help="rooms that each client is in")
    options = parser.parse_args()
    for durability in [options.durability] if options.durability else ["full", "normal"]:
        with tempfile.TemporaryDirectory() as folder:
            what = f"{options.kills} kills with --durability {durability}, seed {options.seed}"
            what += f", clients in {options.rooms} rooms" if options.rooms > 1 else ""
            try:
                done = run(
                    Path(folder),
                    journal(Path(folder), durability),
                    kills=options.kills,
                    seed=options.seed,
                    rooms_each=options.rooms,
                )
            except Wrong as wrong:
                sys.exit(f"{what}: {wrong}")
            sys.stdout.write(f"{what}: {done}\n")


if __name__ == "__main__":
    main()
