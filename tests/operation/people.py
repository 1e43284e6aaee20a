"""People with `multichat connect`, who write in a room of their own while the service changes.

Each has the password of the beginning, and does nothing but write.
"""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.kills.checker import Wrong
from tests.support.processes import MULTICHAT, WAIT_SECONDS, Command

__all__ = ["NAMES", "People", "people"]

NAMES = ("anna", "otto")

_ROOM = "people"
_PAUSE_SECONDS = 0.1


class People:
    """Two people in one room; *written* is how many lines each has written."""

    def __init__(self, anna: Command, otto: Command) -> None:
        self._commands = (anna, otto)
        self.written = 0
        self._stopped = False

    async def write(self) -> None:
        """Write a line each, again and again, until `stop`."""
        while not self._stopped:
            for name, command in zip(NAMES, self._commands, strict=True):
                try:
                    await command.type(f"{name} {self.written}\n")
                except BrokenPipeError:
                    raise Wrong(f"{name} has gone: {command.out[-500:]} {command.err}") from None
            self.written += 1
            await trio.sleep(_PAUSE_SECONDS)

    def stop(self) -> None:
        """Write no more."""
        self._stopped = True

    def _heard(self) -> list[list[str]]:
        """Return what each has received from the other."""
        pattern = r"\[RX\] \[\w+\] (\w+ \d+)$"
        return [re.findall(pattern, each.out, re.MULTILINE) for each in self._commands]

    async def check(self) -> str:
        """Wait until both have received all; raise `Wrong` unless it came once and in order."""
        with trio.move_on_after(WAIT_SECONDS):
            while any(len(each) != self.written for each in self._heard()):
                await trio.sleep(0.1)
        for (who, other), heard in zip((NAMES, NAMES[::-1]), self._heard(), strict=True):
            expected = [f"{other} {number}" for number in range(self.written)]
            if heard != expected:
                missing = sorted(set(expected) - set(heard))[:5]
                raise Wrong(f"{who} heard {len(heard)} of {self.written}, not {missing}")
        if complaints := "".join(each.err for each in self._commands):
            raise Wrong(f"a client complained: {complaints[-500:]}")
        return f"two people {self.written} lines each"


@asynccontextmanager
async def people(
    folder: Path, password: Path, tls: Sequence[str], unix: Path
) -> AsyncIterator[People]:
    """Run two clients: one over *tls*, whose words are its server, and one over the socket."""

    def command(name: str, *server: str) -> Command:
        common = ("--name", name, "--room", _ROOM, "--password-file", str(password))
        return Command(folder, MULTICHAT, "connect", *common, *server)

    async with command("anna", *tls) as anna, command("otto", "--unix", str(unix)) as otto:
        for name, each in zip(NAMES, (anna, otto), strict=True):
            await each.wait_for(f"you are {name} in {_ROOM}")
        yield People(anna, otto)
