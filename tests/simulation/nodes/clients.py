"""Clients that connect to any of several nodes; see `..rooms.clients`."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from tests.simulation.plan import Ending
from tests.simulation.rooms.clients import GuestClient
from tests.simulation.rooms.plan import NAMES

from .checker import LAST_WHO

__all__ = ["NodesClient"]


class NodesClient(GuestClient):
    """One connection of a guest.

    Once *is_calm* is set it asks for nothing, and once *is_quiet* is set for who is in its rooms.
    """

    def __init__(
        self, *args: Any, is_calm: trio.Event, is_quiet: trio.Event, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._is_quiet = is_quiet
        actions = self._actions.items()
        self._actions = {name: partial(_unless, is_calm, action) for name, action in actions}

    def _first_hello(self) -> bytes:
        rng = self._rng
        wishes: dict[str, object] = {"name": rng.choice(NAMES)} if rng.random() < 0.4 else {}
        some = rng.sample(self._rooms, rng.randint(1, len(self._rooms)))
        wishes["rooms"] = {
            room: {"replay": rng.choice([1, 10])} if rng.random() < 0.3 else {} for room in some
        }
        return f"/json {json.dumps(wishes)}\n".encode()

    async def _talk(self) -> None:
        await super()._talk()
        if self._left is not None or self._plan.ending is not Ending.STAYS:
            return
        await self._is_quiet.wait()
        try:
            for i, room in enumerate(list(self._notes.rooms)):
                line = json.dumps({"type": "who", "room": room, "nonce": f"{LAST_WHO}{i}"})
                await self._send(self._line(line))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


def _unless(is_calm: trio.Event, action: Callable[[], bytes]) -> bytes:
    return b"" if is_calm.is_set() else action()
