"""Who the members of a room believe is there, and what they have not been told yet.  Pure.

Not every coming and going is told: what counts is the difference between what was told last and
what is so now.  Who comes and goes in between was never there, unless somebody has asked who is
there, and who changes names twice has changed once.  Many differences at once are told as numbers,
so that N who join cost N lines for each of N members at no time.
"""

from collections.abc import Iterable

from multichat.protocol.messages import Joined, Left, Presence, Renamed

__all__ = ["MAX_TOLD_ONE_BY_ONE", "PresenceChanges", "summarize"]

# A screenful is read by nobody.
MAX_TOLD_ONE_BY_ONE = 16


class PresenceChanges:
    """The members of one room: names as they are, and as they were told, by client number."""

    __slots__ = ("_changed", "_hidden", "_names", "_reasons", "_shown", "_told", "_unshown")

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._told: dict[int, str] = {}
        self._changed: dict[int, None] = {}  # in the order in which they changed first
        self._reasons: dict[int, str] = {}
        self._shown: dict[int, str] = {}  # names not told, and yet known to somebody
        self._hidden: set[int] = set()  # told, and yet not known to somebody
        self._unshown: set[int] = set()  # of those who changed, those that `show` has to note yet

    def __contains__(self, client: int) -> bool:
        """Say whether there is something about *client* that was not told yet."""
        return client in self._changed

    def __bool__(self) -> bool:
        """Say whether anything was not told yet."""
        return bool(self._changed)

    def enter(self, client: int, name: str) -> None:
        """Note that *client* is there, or has another *name*."""
        self._names[client] = name
        self._changed[client] = None
        self._unshown.add(client)

    def leave(self, client: int, reason: str) -> None:
        """Note that *client* is gone."""
        del self._names[client]
        self._changed[client] = None
        self._unshown.add(client)
        self._reasons[client] = reason

    def announce(self, client: int, name: str) -> Joined | None:
        """Return what is to be told of one who has left and is about to be heard, if anything is.

        Of its leaving will be told after it.
        """
        if client in self._names or client in self._told or client in self._shown:
            return None
        self._shown[client] = name
        return Joined(client, name, members=len(self._names))

    def show(self, to: int) -> None:
        """Note that client *to* was shown all members, by the names that they have now.

        Its own arrival stays unshown, because the others were not shown it.  Each change is noted
        once, however often somebody asks.
        """
        itself = self._unshown & {to}
        for client in self._unshown - itself:
            if client in self._names:
                self._shown[client] = self._names[client]
            else:
                self._hidden.add(client)
        self._unshown = itself

    def forget(self) -> None:
        """Take all as told: there is nobody to tell."""
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
        """Return what is to be told of whom, each client once; then it counts as told."""
        events: list[tuple[int, Joined | Left | Renamed]] = []
        for client in self._changed:
            told, name = self._told.get(client), self._names.get(client)
            shown = self._shown.get(client)
            if (told is None and name is None) or (told == name and shown is not None):
                told = shown
            if told == name and client in self._hidden:  # it is back, and was gone for somebody
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
    """Return *events* as numbers, in a room that has so many *members* now."""
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
