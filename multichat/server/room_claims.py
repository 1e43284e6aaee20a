"""Claims of rooms: another node may be opening the same room, or one whose name looks like it.

A claim is made before the step in which a room is opened, and waits for the backend.  Without other
nodes nothing is claimed, and nothing waits.

1. A room that is open here, or claimed and not opened yet, is held for this node.  When neither is
   true any more, it is released in that step.
2. A claim belongs to a request: its outcome is in the `RoomGrants` of that until it is settled.
"""

from collections import Counter
from collections.abc import Collection, Container, Iterable
from typing import TypeAlias

import msgspec

from multichat.backend.base import Backend, RoomClaim
from multichat.errors import InvalidName, RemoteProtocolError, StorageFailed
from multichat.protocol.lookalikes import lookalike_keys
from multichat.protocol.messages import LOBBY
from multichat.protocol.names import fold_name, parse_room_name

__all__ = ["RoomClaims", "RoomGrants", "WantedRooms", "check_lobby"]

RoomGrants: TypeAlias = dict[str, str | RemoteProtocolError]
"""What was decided about rooms that a request opens, by key: the name of each, or a refusal."""


def check_lobby(name: str) -> None:
    """Raise `InvalidName` if *name* can be mistaken for the lobby, which has special rules."""
    if not set(lookalike_keys(name)).isdisjoint(lookalike_keys(LOBBY)):
        raise InvalidName(f"the room {name} would look like {LOBBY}")


class WantedRooms(msgspec.Struct, frozen=True, kw_only=True):
    """The rooms that a request opens: those called *names*, and the *former* ones of its session.

    It closes those with the keys *leaving*, in which its client is the only one of this node.
    """

    names: Collection[str]
    former: Collection[str] = ()
    leaving: tuple[str, ...] = ()

    def by_key(self) -> dict[str, str]:
        """Return the name of each, by key."""
        return {fold_name(name): name for name in (*self.former, *self.names)}


class RoomClaims:
    """The claims of one server, at *backend*, of rooms that are not in *is_open* yet.

    At most *max_rooms* are open on all nodes.
    """

    def __init__(self, backend: Backend, is_open: Container[str], max_rooms: int) -> None:
        self._backend, self._is_open, self._max_rooms = backend, is_open, max_rooms
        self._claimed: Counter[str] = Counter()  # by key: requests that have claimed it

    async def make(self, key: str, name: str, wanted: WantedRooms, grants: RoomGrants) -> None:
        """Claim the room *key*, called *name*, and note in *grants* what was decided.

        Raises `StorageFailed`.
        """
        try:
            claim = self._claim(key, name, wanted)
        except InvalidName as error:
            grants[key] = error
            return
        self._claimed[key] += 1
        try:
            grants[key] = await self._backend.claim_room(claim)
        except RemoteProtocolError as error:
            self._give_back(key)
            if isinstance(error, StorageFailed):
                raise
            grants[key] = error
        except BaseException:
            self._give_back(key)
            raise

    def _claim(self, key: str, name: str, wanted: WantedRooms) -> RoomClaim:
        valid = True
        try:
            name = parse_room_name(name)
        except InvalidName:  # a room with messages may have it, and one of a session
            valid = key in map(fold_name, wanted.former)
            name = key
        check_lobby(name)
        return RoomClaim(
            key=key, name=name, leaving=wanted.leaving, most=self._max_rooms, valid=valid
        )

    def settle(self, grants: RoomGrants) -> None:
        """Give back what is in *grants* and not open, and empty them."""
        for key, granted in list(grants.items()):
            if isinstance(granted, str):
                self._give_back(key)
        grants.clear()

    def _give_back(self, key: str) -> None:
        self._claimed[key] -= 1
        if not self._claimed[key]:
            del self._claimed[key]
        self.release([key])

    def release(self, keys: Iterable[str]) -> None:
        """Release the rooms *keys* that are neither open nor claimed."""
        for key in keys:
            if key not in self._is_open and key not in self._claimed:
                self._backend.release_room(key)
