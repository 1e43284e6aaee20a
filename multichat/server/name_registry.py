"""Which client has which name; the name of a client that may reconnect is reserved for a while.

Changes only in functions without `await`: of two clients that want one name exactly one gets it.

Invariants:

1. No two clients, on any node, have names that are the same
   (`multichat.protocol.names.fold_name`) or look alike (`multichat.protocol.lookalikes`).
2. The name of an account is given only to a client that is logged in to it, even while the owner
   is away, or if it has never been connected.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec
import trio

from multichat.errors import Banned, NameTaken
from multichat.protocol.lookalikes import NameIndex, lookalike_keys
from multichat.protocol.names import fold_name
from multichat.server.client import Client
from multichat.server.remote_clients import RemoteClient
from multichat.server.room import Room

__all__ = ["NameRegistry"]


class _Away(msgspec.Struct, frozen=True, eq=False):
    """A client that may reconnect, and *until* when its name is reserved for it.

    It was in *rooms*.
    """

    number: int
    name: str
    rooms: tuple[Room, ...]
    origin: str | None
    until: float

    def may_be_taken_by(self, other: Client, now: float) -> bool:
        """Return whether *other* may have the name: from one address it is likely the same client.

        A program that was killed and restarted asks for its name and has lost its session.
        """
        return other.number == self.number or other.origin == self.origin or self.until <= now


_Holder: TypeAlias = Client | _Away | RemoteClient


class NameRegistry:
    """The names of one server's clients; default names such as `Client 7` are not in it.

    A name is reserved for *keep_seconds* after its client has disconnected.  *is_banned* says
    whether a name is banned, and *check_account* raises `NameTaken` for a name that belongs to
    another account than the given one.  No client can have one of the *reserved* names.
    """

    def __init__(
        self,
        keep_seconds: float,
        is_banned: Callable[[str], bool],
        check_account: Callable[[str, str], None],
        reserved: Sequence[str] = (),
    ) -> None:
        self._reserved = frozenset(key for name in reserved for key in lookalike_keys(name))
        self._keep_seconds = keep_seconds
        self._is_banned, self._check_account = is_banned, check_account
        self._names: NameIndex[_Holder] = NameIndex()
        self._away: dict[_Away, None] = {}  # the one that disconnected first is first

    def find(self, name: str) -> Client | None:
        """Return the connected client of that name, in any case or form, if there is one."""
        holder = self._names.find(name)
        return holder if isinstance(holder, Client) else None

    def name_of(self, client: Client) -> str:
        """Return the name that *client* has here; empty if it has none."""
        return client.name if client in self._names else ""

    def find_elsewhere(self, name: str) -> RemoteClient | None:
        """Return the client of that name on another node, if there is one."""
        holder = self._names.find(name)
        return holder if isinstance(holder, RemoteClient) else None

    def check(self, client: Client, name: str) -> None:
        """Raise `NameTaken` or `Banned` if *client* cannot have that *name*.

        Of holders on other nodes the backend knows more, if the client has claimed the name.
        """
        is_claimed = fold_name(name) in client.claims
        if (refusal := client.claims.get(fold_name(name))) is not None:
            raise refusal
        if not self._reserved.isdisjoint(lookalike_keys(name)):
            raise NameTaken(name)
        self._check_account(name, client.account)
        now = trio.current_time()
        is_own = client.account == fold_name(name)
        for other in self._names.lookalikes(name):
            if other is client or (
                isinstance(other, _Away) and (is_own or other.may_be_taken_by(client, now))
            ):
                continue
            if isinstance(other, RemoteClient) and (is_claimed or other.number == client.number):
                continue
            is_same = fold_name(other.name) == fold_name(name)
            raise NameTaken(name, "" if is_same else other.name)
        self.check_banned(name)

    def check_author(self, name: str) -> None:
        """Raise `NameTaken` or `Banned` if a message of no client may not have that *name*."""
        self._check_account(name, "")
        now = trio.current_time()
        for other in self._names.lookalikes(name):
            if not isinstance(other, _Away) or other.until > now:
                is_same = fold_name(other.name) == fold_name(name)
                raise NameTaken(name, "" if is_same else other.name)
        self.check_banned(name)

    def check_banned(self, name: str) -> None:
        """Raise `Banned` if *name* is."""
        if self._is_banned(name):
            raise Banned(name)

    def holders(self, name: str) -> list[Client]:
        """Return the connected clients whose names are, or look like, *name*."""
        return [each for each in self._names.lookalikes(name) if isinstance(each, Client)]

    def take(self, client: Client, name: str) -> None:
        """Give *client* a *name* that it can have (see `check`)."""
        self._take_over(name, client.number)
        self._names.add(client, name)
        client.name = name

    def _take_over(self, name: str, number: int) -> None:
        """Take *name* from clients that are away, or on other nodes, for client *number*."""
        for other in self._names.lookalikes(name):
            if isinstance(other, _Away):
                self._give_up(other)
                if other.number != number:
                    for room in other.rooms:
                        room.presence.end_absence(other.number)
            elif isinstance(other, RemoteClient):  # its node hears of it, too
                self._names.discard(other)

    def put_elsewhere(self, client: RemoteClient, name: str) -> None:
        """Note the *name*, empty if it has none, of a client on another node."""
        self._names.discard(client)
        if name:
            self._take_over(name, client.number)
            # One of our clients that is called so loses the name in a moment, or the other does.
            if not isinstance(self._names.find(name), Client):
                self._names.add(client, name)

    def forget_elsewhere(self, client: RemoteClient) -> None:
        """Forget the name of a client that has left on another node."""
        self._names.discard(client)

    def release(self, client: Client, *, keep: bool) -> None:
        """Release the name of *client*, which disconnects; *keep* it if it may reconnect."""
        if client not in self._names:
            return
        self._names.discard(client)
        if keep:
            now = trio.current_time()
            while self._away and (oldest := next(iter(self._away))).until <= now:
                self._give_up(oldest)
            until = now + self._keep_seconds
            rooms = tuple(member.room for member in client.memberships.values())
            away = _Away(client.number, client.name, rooms, client.origin, until)
            self._away[away] = None
            self._names.add(away, away.name)

    def _give_up(self, away: _Away) -> None:
        del self._away[away]
        self._names.discard(away)
