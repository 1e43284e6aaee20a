"""Presence: what the members of a room know of who is there, and what they are told next.  Pure.

They are told the difference between what they were told last and what is true now.  So a client
that joins and leaves in between is not mentioned, unless somebody has asked who is there, and two
changes of a name are one.  Many differences at once are told as numbers: N clients that join never
cost N lines for each of N members.
"""

from collections.abc import Iterable

from multichat.protocol.messages import Joined, Left, Presence, Renamed

__all__ = ["MAX_TOLD_ONE_BY_ONE", "PresenceChanges", "summarize"]

# Nobody reads more than this.
MAX_TOLD_ONE_BY_ONE = 16


class PresenceChanges:
    """The members of one room by client number: their names now, and as the others were told."""

    __slots__ = ("_changed", "_hidden", "_names", "_reasons", "_shown", "_told", "_unshown")

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._told: dict[int, str] = {}
        self._changed: dict[int, None] = {}  # in the order of the first change
        self._reasons: dict[int, str] = {}
        self._shown: dict[int, str] = {}  # names that somebody has seen without being told
        self._hidden: set[int] = set()  # told, but somebody has seen that they were not there
        self._unshown: set[int] = set()  # those that changed since `show` was called last

    def __contains__(self, client: int) -> bool:
        """Return whether something about *client* has not been told yet."""
        return client in self._changed

    def __bool__(self) -> bool:
        """Return whether anything has not been told yet."""
        return bool(self._changed)

    def enter(self, client: int, name: str) -> None:
        """Note that *client* is there, or has another *name*."""
        self._names[client] = name
        self._changed[client] = None
        self._unshown.add(client)

    def leave(self, client: int, reason: str) -> None:
        """Note that *client* has left."""
        del self._names[client]
        self._changed[client] = None
        self._unshown.add(client)
        self._reasons[client] = reason

    def announce(self, client: int, name: str) -> Joined | None:
        """Return what to tell of a client that has left before its first message is delivered.

        None if nothing.  That it has left is told after that message.
        """
        if client in self._names or client in self._told or client in self._shown:
            return None
        self._shown[client] = name
        return Joined(client, name, members=len(self._names))

    def show(self, to: int) -> None:
        """Note that client *to* was shown all members, with the names that they have now.

        Its own join stays untold, because the others have not seen it.  Each change is noted once,
        however often somebody asks.
        """
        itself = self._unshown & {to}
        for client in self._unshown - itself:
            if client in self._names:
                self._shown[client] = self._names[client]
            else:
                self._hidden.add(client)
        self._unshown = itself

    def forget(self) -> None:
        """Regard everything as told."""
        for client in self._changed:
            if client in self._names:
                self._told[client] = self._names[client]
            else:
                self._told.pop(client, None)
        self._changed.clear()
        self._reasons.clear()
        self._shown.clear()
        self._hidden.clear()
        self._unshown.clear()

    def take(self) -> list[tuple[int, Joined | Left | Renamed]]:
        """Return what to tell of which client, once for each; then it counts as told."""
        events: list[tuple[int, Joined | Left | Renamed]] = []
        for client in self._changed:
            told, name = self._told.get(client), self._names.get(client)
            shown = self._shown.get(client)
            if (told is None and name is None) or (told == name and shown is not None):
                told = shown
            if told == name and client in self._hidden:  # it is back, and was seen to be away
                told = None
            if told is None:
                if name is not None:
                    events.append((client, Joined(client, name, members=len(self._names))))
            elif name is None:
                reason, members = self._reasons[client], len(self._names)
                events.append((client, Left(client, told, reason, members)))
            elif name != told:
                events.append((client, Renamed(client, told, name)))
        self.forget()
        return events


def summarize(events: Iterable[Joined | Left | Renamed | Presence], members: int) -> Presence:
    """Return *events* as numbers, for a room that has *members* members now."""
    joined = left = renamed = 0
    for event in events:
        match event:
            case Joined():
                joined += 1
            case Left():
                left += 1
            case Renamed():
                renamed += 1
            case Presence():
                joined, left = joined + event.joined, left + event.left
                renamed += event.renamed
    return Presence(joined, left, renamed, members)
