"""Reports the names and rooms of this server's clients to other nodes.

Without other nodes nothing is reported.  A client that has just connected is reported when it has
arrived: before, it may be about to resume a session, under another number.
"""

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from multichat.backend.base import Backend
from multichat.backend.events import ClientRecord
from multichat.server.client import Client
from multichat.server.name_registry import NameRegistry

__all__ = ["Reports"]


class Reports:
    """Reports to *backend* the clients for which *is_here* is true, with their *names*.

    *start_soon* starts tasks that outlive the call.
    """

    def __init__(
        self,
        backend: Backend,
        names: NameRegistry,
        is_here: Callable[[Client], bool],
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._backend, self._names, self._is_here = backend, names, is_here
        self._start_soon = start_soon

    def put(self, client: Client) -> None:
        """Report the present state of *client*, unless it is arriving or has open claims."""
        if not self._backend.is_shared or client.claims or not self._is_here(client):
            return
        if client.arriving_until > trio.current_time():
            return
        rooms = [member.room.name for member in client.memberships.values()]
        record = ClientRecord(
            client=client.number,
            generation=client.generation,
            name=self._names.name_of(client),
            account=client.account,
            rooms=tuple(rooms),
            address=client.address,
            origin=client.origin or "",
        )
        self._backend.put_client(record)

    def put_soon(self, client: Client) -> None:
        """Report *client*, which has just connected, when it has had time for a hello."""
        if self._backend.is_shared:
            self._start_soon(partial(self._put_later, client))

    async def _put_later(self, client: Client) -> None:
        await trio.sleep_until(client.arriving_until)
        if client.is_greeting:  # it has more time
            await trio.sleep_until(client.arriving_until)
        if client.arriving_until:  # else it was reported
            self.put(client)
