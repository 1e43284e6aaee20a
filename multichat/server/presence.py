"""Presence: tracks what a room's members know about each other, and computes updates.  Pure.

Members are sent the difference between the last update and the current state.  So a client that
joins and leaves in between is not mentioned, unless a member has listed the members meanwhile, and
successive renames are merged.  Many differences at once are sent as numbers: N joining clients
never cost N lines for each of N members.
"""

from collections.abc import Collection, Iterable

from multichat.protocol.messages import Joined, Left, Presence, Renamed

__all__ = ["MAX_TOLD_ONE_BY_ONE", "PresenceChanges", "summarize"]

# More than people read.
MAX_TOLD_ONE_BY_ONE = 16


class PresenceChanges:
    """The members of one room by client number: their current names, and those sent to others."""

    __slots__ = (
        "_announced",
        "_changed",
        "_listed",
        "_missing_from_listing",
        "_names",
        "_not_listed",
        "_reasons",
    )

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._announced: dict[int, str] = {}
        self._changed: dict[int, None] = {}  # in the order of the first change
        self._reasons: dict[int, str] = {}
        self._listed: dict[int, str] = {}  # names that were listed, but not announced
        self._missing_from_listing: set[int] = set()  # announced, but then missing from a listing
        self._not_listed: set[int] = set()  # changed since the last call of `show`

    def __contains__(self, client: int) -> bool:
        """Return whether *client* has a change that has not been announced."""
        return client in self._changed

    def __bool__(self) -> bool:
        """Return whether any change has not been announced."""
        return bool(self._changed)

    def is_known(self, client: int) -> bool:
        """Return whether the others know *client*: it was announced to them, or listed."""
        return client in self._announced or client in self._listed

    def enter(self, client: int, name: str) -> None:
        """Record that *client* has joined, or has changed its *name*."""
        self._names[client] = name
        self._changed[client] = None
        self._not_listed.add(client)

    def expect(self, client: int, name: str) -> None:
        """Note that *client*, which is away, was a member called *name*: the others know it."""
        self._names[client] = self._announced[client] = name

    def name_of(self, client: int) -> str | None:
        """Return the name of *client*, which is a member or away; None if it is neither."""
        return self._names.get(client)

    @property
    def changed(self) -> Collection[int]:
        """The clients that have a change which has not been announced."""
        return self._changed.keys()

    def leave(self, client: int, reason: str) -> None:
        """Note that *client* has left."""
        del self._names[client]
        self._changed[client] = None
        self._not_listed.add(client)
        self._reasons[client] = reason

    def announce(self, client: int, name: str) -> Joined | None:
        """Return the late `Joined` of a client that left before its first message was delivered.

        None if it has been announced.  Its `Left` follows that message, unless it is back by then.
        """
        if client in self._names or client in self._announced or client in self._listed:
            return None
        self._announced[client] = name
        return Joined(client, name, members=len(self._names))

    def show(self, to: int, hidden: Collection[int] = ()) -> None:
        """Record that all members, with their current names, were listed to client *to*.

        Except those that are *hidden*.  Its own join is still to be announced, because the others
        have not seen it.  Each change is recorded once, no matter how often members are listed.
        """
        itself = self._not_listed & {to, *hidden}
        for client in self._not_listed - itself:
            if client in self._names:
                self._listed[client] = self._names[client]
            else:
                self._missing_from_listing.add(client)
        self._not_listed = itself

    def forget(self, held: Collection[int] = ()) -> None:
        """Treat all changes as announced, except those of the clients *held*."""
        for client in self._changed:
            if client in held:
                continue
            if client in self._names:
                self._announced[client] = self._names[client]
            else:
                self._announced.pop(client, None)
        self._changed = {client: None for client in held if client in self._changed}
        kept = self._changed.keys()  # others may know these from a listing
        self._reasons.clear()
        self._listed = {client: name for client, name in self._listed.items() if client in kept}
        self._missing_from_listing &= kept
        self._not_listed &= kept

    def forget_one(self, client: int) -> None:
        """Treat the change of *client* as announced, if it has one; like `forget` of all others."""
        if client not in self._changed:
            return
        if client in self._names:
            self._announced[client] = self._names[client]
        else:
            self._announced.pop(client, None)
        del self._changed[client]
        self._reasons.pop(client, None)
        self._listed.pop(client, None)
        self._missing_from_listing.discard(client)
        self._not_listed.discard(client)

    def forget_join(self, client: int, name: str) -> None:
        """Treat as announced that *client*, if it is a member, has joined under that *name*."""
        if client in self._changed and client in self._names:
            self._announced[client] = name
            if self._names[client] == name:
                del self._changed[client]

    def take(self, held: Collection[int] = ()) -> list[tuple[int, Joined | Left | Renamed]]:
        """Return each changed client with the event to announce; they count as announced then.

        The changes of the clients *held*, which are members, are kept for the next time.
        """
        events = [
            (client, self._event_of(client)) for client in self._changed if client not in held
        ]
        self.forget(held)
        return [(client, event) for client, event in events if event is not None]

    def take_renamed(self, client: int) -> Renamed | None:
        """Return the event to announce for *client*, if it has only changed its name.

        It counts as announced then.
        """
        event = self._event_of(client) if client in self._changed else None
        if not isinstance(event, Renamed):
            return None
        self._announced[client] = event.name
        del self._changed[client]
        self._listed.pop(client, None)
        self._missing_from_listing.discard(client)
        self._not_listed.discard(client)
        return event

    def _event_of(self, client: int) -> Joined | Left | Renamed | None:
        """Return what is to be announced of a changed *client*."""
        told, name = self._announced.get(client), self._names.get(client)
        shown = self._listed.get(client)
        if (told is None and name is None) or (told == name and shown is not None):
            told = shown
        if told == name and client in self._missing_from_listing:  # it is back
            told = None
        if told is None:
            return None if name is None else Joined(client, name, members=len(self._names))
        if name is None:
            return Left(client, told, self._reasons[client], len(self._names))
        return None if name == told else Renamed(client, told, name)


def summarize(events: Iterable[Joined | Left | Renamed | Presence], members: int) -> Presence:
    """Summarize *events* as numbers, for a room that now has *members* members."""
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
