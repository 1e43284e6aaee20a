"""The rooms that a node holds in the engine, so that it can tell it again as a whole.  Pure.

Invariant: a room is in the whole if the engine has given it to this node, or was told of it, and
was not told since that it is closed, also while the answer was under way.
"""

from multichat.cluster.changes import ClaimRoom, DropRoom, HoldRoom, RetainRooms

__all__ = ["HeldRooms"]


class HeldRooms:
    """The rooms that one node holds."""

    def __init__(self) -> None:
        self._held: dict[str, HoldRoom] = {}
        self._asked: dict[int, ClaimRoom] = {}  # by identity

    def ask(self, change: object) -> None:
        """Note that the engine is asked for *change*; only those of rooms matter."""
        match change:
            case ClaimRoom():
                self._asked[id(change)] = change
            case HoldRoom(key=key):
                self._held[key] = change
            case DropRoom(key=key):
                self._held.pop(key, None)
                for each in [each for each in self._asked.values() if each.key == key]:
                    del self._asked[id(each)]

    def answered(self, claim: ClaimRoom, name: str | None) -> None:
        """Note that the engine has granted *claim*: the room is called *name*; None if not."""
        is_wanted = self._asked.pop(id(claim), None) is not None
        if is_wanted and name is not None:
            self._held[claim.key] = HoldRoom(claim.key, name, claim.keys)

    def whole(self) -> RetainRooms:
        """Return what the engine has to know of them."""
        rooms = self._held.values()
        return RetainRooms(tuple((each.key, each.name, each.keys) for each in rooms))
