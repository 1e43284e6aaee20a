"""Looks after a service while people chat: `python -m tests.operation [--systemd]`.

With --systemd the unit files of deploy/ run under a real systemd, which needs root; otherwise a
service manager of the tests' own does what they ask for.
"""

import argparse
import socket
import tempfile
from pathlib import Path

import trio

from tests.kills.checker import LOOPBACK

from .run import SETTINGS, operate
from .supervised import supervised
from .under_systemd import under_systemd


async def main(folder: Path, *, systemd: bool) -> None:
    """Run it once, with temporary files in *folder*."""
    if not systemd:
        run = folder / "run"
        run.mkdir()
        async with supervised(folder, run, *SETTINGS) as service:
            await operate(service, folder)
        return
    with socket.socket() as chat, socket.socket() as web:
        for kept in (chat, web):  # no other process gets these ports
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((LOOPBACK, 0))
        ports = chat.getsockname()[1], web.getsockname()[1]
        async with under_systemd(folder, *ports, *SETTINGS) as installed:
            await operate(installed, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.operation", description=__doc__)
    parser.add_argument("--systemd", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="multichat-") as name:
        trio.run(lambda: main(Path(name), systemd=arguments.systemd))
