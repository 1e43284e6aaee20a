"""Calls the embedding program's `on_join` for each client that joins a room."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import trio

from multichat.log import Log
from multichat.server.client import Client, MemberInfo
from multichat.server.presence_announcer import PRESENCE_SECONDS

__all__ = ["JoinHook", "OnJoin"]

OnJoin: TypeAlias = Callable[[MemberInfo], Awaitable[object]]
"""An async function that is called for each client that joins a room.

Called a tenth of a second after the join, when the client has sent its name, with the member's
current state; not called if the client has left by then, or has resumed its session.  Each call
runs in a task of its own, and nothing waits for it.  Exceptions are logged, with the traceback of
the first of each type.
"""


class JoinHook:
    """Calls *on_join*, if there is one; *start_soon* starts a task that outlives the call."""

    def __init__(
        self,
        on_join: OnJoin | None,
        log: Log,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._on_join, self._log, self._start_soon = on_join, log, start_soon
        self._joined: set[Client] = set()
        self._running: set[Client] = set()

    def joined(self, client: Client) -> None:
        """Note that *client* has joined a room."""
        if self._on_join is None:
            return
        self._joined.add(client)
        if client not in self._running:
            self._running.add(client)
            self._start_soon(partial(self._run, self._on_join, client))

    def discard(self, client: Client) -> None:
        """Do not call *on_join* for *client*: it has left, or has resumed its session."""
        self._joined.discard(client)

    async def _run(self, on_join: OnJoin, client: Client) -> None:
        try:
            while client in self._joined:
                await trio.sleep(PRESENCE_SECONDS)
                if client in self._joined:
                    self._joined.remove(client)
                    await on_join(client.info())
        except Exception as error:  # noqa: BLE001 - the program's own function
            self._log.fault(f"on_join raised {type(error).__name__}", error)
        finally:
            self._running.discard(client)
            self._joined.discard(client)
