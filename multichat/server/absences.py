"""Absences: clients that have left a room that is not open here, and may still come back.

The presence of an open room knows its away members.  This is for the other rooms: when a server is
restarted, all members lose their connections at once.  A client that resumes its session in time
has not left, and the others that resume do not see it leave.

Changes only in functions without `await`.  Expired absences are removed by the next `add`, and are
never returned.
"""

from collections import deque
from typing import NamedTuple

__all__ = ["Absence", "Absences"]


class Absence(NamedTuple):
    """A client called *name* has left with that *reason*; it may come back before *until*."""

    name: str
    reason: str
    until: float


class Absences:
    """The absences of all rooms, by key and client number."""

    def __init__(self) -> None:
        self._rooms: dict[str, dict[int, Absence]] = {}
        self._by_time: deque[tuple[str, int, Absence]] = deque()  # about the order of `until`

    def add(self, key: str, client: int, absence: Absence, now: float) -> None:
        """Remember that *client* is away from the room *key*."""
        while self._by_time and self._by_time[0][2].until <= now:
            room, number, over = self._by_time.popleft()
            if self._rooms.get(room, {}).get(number) is over:
                self.discard(room, number)
        self._rooms.setdefault(key, {})[client] = absence
        self._by_time.append((key, client, absence))

    def discard(self, key: str, client: int) -> None:
        """Forget that *client* is away: it is back, or has left for good."""
        if (room := self._rooms.get(key)) is not None:
            room.pop(client, None)
            if not room:
                del self._rooms[key]

    def take(self, key: str, now: float) -> dict[int, Absence]:
        """Return the members that are away from the room *key*, and forget them here."""
        room = self._rooms.pop(key, {})
        return {client: absence for client, absence in room.items() if absence.until > now}
