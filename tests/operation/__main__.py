"""Looks after a service while people chat: `python -m tests.operation`, as root, with systemd."""

import socket
import tempfile
from pathlib import Path

import trio

from tests.kills.checker import LOOPBACK

from .run import SETTINGS, operate
from .under_systemd import under_systemd


async def main() -> None:
    """Run it once."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as chat, socket.socket() as web:
        for kept in (chat, web):
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((LOOPBACK, 0))
        ports = chat.getsockname()[1], web.getsockname()[1]
        async with under_systemd(Path(name), *ports, *SETTINGS) as service:
            await operate(service, Path(name))


trio.run(main)
