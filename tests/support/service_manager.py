"""A service manager for tests: starts a command as systemd would, and gets its notifications.

As systemd does, it passes sockets as the descriptors from 3 on, and sets LISTEN_PID in the process
itself, because no other process knows its id before.
"""

import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.support.processes import WAIT_SECONDS, Command

__all__ = ["Managed", "Manager", "managing"]

# Runs in the process that becomes the command, which keeps its id.
_LAUNCH = """
import os, sys
passed, variables = (eval(each) for each in sys.argv[1:3])
words = sys.argv[3:]
copies = [os.dup2(fd, 100 + i) for i, fd in enumerate(passed)]
for fd in passed:
    os.close(fd)
for i, fd in enumerate(copies):
    os.dup2(fd, 3 + i)
    os.close(fd)
own = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(passed))} if passed else {}
os.environ |= {"WATCHDOG_PID": str(os.getpid())} | own | variables
os.execv(words[0], words)
"""


class Managed(Command):
    """A command that was started with *variables* and *sockets*, as descriptors from 3 on."""

    def __init__(
        self,
        folder: Path,
        *argv: str,
        variables: Mapping[str, str],
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        passed = tuple(each.fileno() for each in sockets)
        launch = (sys.executable, "-c", _LAUNCH, repr(passed), repr(dict(variables)))
        super().__init__(folder, *launch, *argv)
        self.passed = passed


class Manager:
    """Receives the notifications of a command at *address*; *said* are all of them."""

    def __init__(self, receiver: socket.socket, address: str) -> None:
        self._receiver = trio.socket.from_stdlib_socket(receiver)
        self.address = address
        self.said: list[dict[str, str]] = []

    async def hear(self, seconds: float = WAIT_SECONDS) -> dict[str, str]:
        """Return the next notification, as its fields."""
        with trio.fail_after(seconds):
            data = await self._receiver.recv(4096)
        fields = dict(line.split("=", 1) for line in data.decode().split("\n"))
        self.said.append(fields)
        return fields

    async def wait_for(self, name: str, value: str | None = None) -> dict[str, str]:
        """Return the next notification that has the field *name*, with that value if given."""
        with trio.move_on_after(WAIT_SECONDS):
            while True:
                fields = await self.hear()
                if name in fields and value in (None, fields[name]):
                    return fields
        pytest.fail(f"never heard {name}={value}, but {self.said}")


@contextmanager
def managing(address: str) -> Iterator[Manager]:
    """Receive notifications at *address*: a path, or `@` and an abstract name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        receiver.setblocking(False)
        yield Manager(receiver, address)
