"""The clients on other nodes: a replica of what their nodes report, by number, name and room.

Changes only in functions without `await`, when an event of another node is applied.  Holds no
connections: the backend sends to these clients.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from multichat.backend.events import ClientRecord
from multichat.protocol.names import default_name, fold_name

if TYPE_CHECKING:
    from multichat.server.name_registry import NameRegistry
    from multichat.server.open_rooms import OpenRooms
    from multichat.server.presence_announcer import PresenceAnnouncer

__all__ = ["RemoteClient", "RemoteClients", "RemoteRoom"]


class RemoteClient(msgspec.Struct, eq=False):
    """A client on another node; *rooms*, by key, are those that it is in, the current one last."""

    number: int
    generation: int
    name: str
    account: str = ""
    address: str = ""
    origin: str = ""
    rooms: "dict[str, RemoteRoom]" = msgspec.field(default_factory=dict)

    @property
    def room(self) -> str:
        """The name of its current room; empty if it is in none yet."""
        return next(reversed(self.rooms.values())).name if self.rooms else ""


class RemoteRoom(msgspec.Struct, eq=False):
    """A room with *members* on other nodes, by number; *presence* is set while it is open here."""

    name: str
    members: dict[int, RemoteClient] = msgspec.field(default_factory=dict)
    presence: "PresenceAnnouncer | None" = None


class RemoteClients:
    """All clients on other nodes; *names* and *rooms* are this server's, and know them, too."""

    def __init__(self, names: "NameRegistry", rooms: "OpenRooms") -> None:
        self._names, self._rooms = names, rooms
        self._clients: dict[int, RemoteClient] = {}
        self._logins: dict[str, RemoteClient] = {}  # by account

    def __iter__(self) -> Iterator[RemoteClient]:
        return iter(list(self._clients.values()))

    def find(self, number: int) -> RemoteClient | None:
        """Return the client with that number, if it is on another node."""
        return self._clients.get(number)

    def logged_in(self, account: str) -> RemoteClient | None:
        """Return the client that is logged in to *account*, case-folded."""
        return self._logins.get(account)

    def put(self, record: ClientRecord) -> None:
        """Note the present state of a client; a record of an older generation is ignored."""
        name = record.name or default_name(record.client)
        client = self._clients.get(record.client)
        if client is None:
            client = RemoteClient(record.client, record.generation, name)
            self._clients[client.number] = client
        elif record.generation < client.generation:
            return
        is_renamed = client.name != name
        self._forget_login(client)
        client.generation, client.name, client.account = record.generation, name, record.account
        client.address, client.origin = record.address, record.origin
        if client.account:
            self._logins[client.account] = client
        self._names.put_elsewhere(client, record.name)
        wanted = {fold_name(room): room for room in record.rooms}
        entered = [key for key in wanted if key not in client.rooms]
        reason = f"joined {record.rooms[-1]}" if entered else ""
        for key in [key for key in client.rooms if key not in wanted]:
            self._rooms.leave_elsewhere(client, key, reason, away=False)
        for key in entered:
            self._rooms.enter_elsewhere(client, key, wanted[key])
        for key in wanted:
            room = client.rooms[key] = client.rooms.pop(key)  # in their order
            if is_renamed and key not in entered and room.presence is not None:
                room.presence.entered_elsewhere(client)

    def remove(self, number: int, generation: int, reason: str, *, away: bool) -> None:
        """Note that a client has left, unless a later generation of it is known."""
        client = self._clients.get(number)
        if client is not None and client.generation <= generation:
            self._take_out(client, reason, away=away)

    def take_over(self, number: int) -> None:
        """Note that a client, if it is on another node, is about to enter here instead."""
        if (client := self._clients.get(number)) is not None:
            self._take_out(client, "", away=True)

    def _take_out(self, client: RemoteClient, reason: str, *, away: bool) -> None:
        del self._clients[client.number]
        self._forget_login(client)
        self._names.forget_elsewhere(client)
        for key in list(client.rooms):
            self._rooms.leave_elsewhere(client, key, reason, away=away)

    def _forget_login(self, client: RemoteClient) -> None:
        if self._logins.get(client.account) is client:
            del self._logins[client.account]
