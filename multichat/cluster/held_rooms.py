"""The rooms that a node holds in the engine, for reporting them again completely.  Pure.

Invariant: a room is held if the engine has granted a claim of it or the node has reported it, and
the node has not dropped it since.  A claim that is granted after its room was dropped does not
count.
"""

from multichat.cluster.changes import ClaimRoom, DropRoom, HoldRoom, RetainRooms

__all__ = ["HeldRooms"]


class HeldRooms:
    """The rooms that one node holds."""

    def __init__(self) -> None:
        self._held: dict[str, HoldRoom] = {}
        self._asked: dict[int, ClaimRoom] = {}  # by identity

    def ask(self, change: object) -> None:
        """Note that *change* is requested; only changes of rooms matter."""
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
        """Return the change that reports all of them."""
        rooms = self._held.values()
        return RetainRooms(tuple((each.key, each.name, each.keys) for each in rooms))
