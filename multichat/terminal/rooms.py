"""The rooms of a terminal client: which one is shown, and the unread events of the others.  Pure.

Owns what the client knows of each room, and what is unread there.  Rooms are numbered in the order
of entering.  Does not format anything; see `multichat.terminal.status`.

Invariants:

1. The room that is shown has nothing unread, and no events are kept for it.
2. For each room the newest events are kept, at most `max_kept` of them and `max_kept_characters` of
   text.  `left_out` counts the messages before them, and `unread` includes those.
3. Lines go to the room that was meant when they were entered: `target` changes at once, whereas
   another room is shown when the server has let us in.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from multichat.protocol.messages import (
    Event,
    Joined,
    Left,
    MemberName,
    Members,
    Presence,
    Renamed,
    RoomState,
    Said,
    Welcome,
)
from multichat.protocol.names import fold_name

__all__ = ["Heard", "Meanwhile", "Room", "Rooms"]

# Several screens.
_MAX_KEPT = 200

# As many of our server's longest messages would take ten times as much.
_MAX_KEPT_CHARACTERS = 1024 * 1024

# The most names of a room that are kept for completion.
_MAX_NAMES = 4096


class Heard(NamedTuple):
    """An *event* of a room, and when it was received."""

    event: Event
    time: datetime


class Meanwhile(NamedTuple):
    """The events *heard* in a room while another was shown; *left_out* earlier ones are dropped."""

    heard: list[Heard]
    left_out: int


@dataclass(eq=False, slots=True)
class Room:
    """A room that we are in, *last* being the id of its last message when we entered.

    *names* are those of the members, for completion; *is_stale* says that they may be outdated, and
    *changes* counts the known changes.  *unread* counts the messages since the room was shown, and
    *mentions* those of them that mention us.  *shown_at* orders the rooms by when each was shown
    last, 0 for never.
    """

    name: str
    members: int = 0
    last: str = ""
    names: set[str] = field(default_factory=set)
    is_stale: bool = True
    changes: int = 0
    unread: int = 0
    mentions: int = 0
    left_out: int = 0
    kept: deque[Heard] = field(default_factory=deque)
    kept_characters: int = 0
    shown_at: int = 0

    def list_members(self, members: Sequence[MemberName]) -> None:
        """Note the answer to a request for the members."""
        self.members = len(members)
        self.names = {member.name for member in members[:_MAX_NAMES]}

    def add_name(self, name: str) -> None:
        """Add a name for completion."""
        if len(self.names) < _MAX_NAMES:
            self.names.add(name)

    def is_earlier(self, said: Said) -> bool:
        """Return whether *said* is from before we entered, as opposed to missed later."""
        return "" < said.id <= self.last


class Rooms:
    """The rooms of one chat, by name, in any case or form; iterating yields them as entered.

    Before the first room, and in the text protocol, where rooms are unknown, a room without a name
    is `shown`.
    """

    def __init__(
        self, *, max_kept: int = _MAX_KEPT, max_kept_characters: int = _MAX_KEPT_CHARACTERS
    ) -> None:
        self._max_kept, self._max_kept_characters = max_kept, max_kept_characters
        self._rooms: dict[str, Room] = {}
        self._shown_count = 0
        self._target = ""
        self.shown = Room("")

    def __iter__(self) -> Iterator[Room]:
        return iter(tuple(self._rooms.values()))

    def __len__(self) -> int:
        return len(self._rooms)

    def __contains__(self, name: str) -> bool:
        return fold_name(name) in self._rooms

    def find(self, name: str) -> Room | None:
        """Return our room of that name; the one that is shown for an empty name."""
        return self._rooms.get(fold_name(name)) if name else self.shown

    def at(self, number: int) -> Room | None:
        """Return the room with that *number*, counted from 1."""
        return next((room for each, room in enumerate(self, 1) if each == number), None)

    @property
    def target(self) -> str:
        """The name of the room that lines entered now go to."""
        room = self._rooms.get(fold_name(self._target))
        return self._target if room is None else room.name

    # --- Entering, leaving, showing ---------------------------------------------------------------

    def enter(self, name: str, members: int, last: str | None) -> Room:
        """Note that we are in a room; show it if it is our only one."""
        key = fold_name(name)
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = Room(name, last=last or "")
            if len(self._rooms) == 1:
                self.show(name)
        room.members = members
        return room

    def welcome(self, welcome: Welcome) -> Meanwhile | None:
        """Note the rooms of a new connection, which may differ from those of the last one.

        Returns what was kept for the room that is shown now, if it is another one.
        """
        is_first = not self._rooms
        states = welcome.rooms or {welcome.room: RoomState(welcome.members, welcome.last)}
        for name, state in states.items():
            self.enter(name, state.members, state.last).is_stale = True
        if is_first and welcome.room in self:
            return self.show(welcome.room)
        return self.keep_only(states)

    def show(self, name: str) -> Meanwhile:
        """Show our room of that *name*, make it the target, and return what was kept for it."""
        room = self.shown = self._rooms[fold_name(name)]
        self._target = room.name
        self._shown_count += 1
        room.shown_at = self._shown_count
        meanwhile = Meanwhile(list(room.kept), room.left_out)
        room.unread = room.mentions = room.left_out = room.kept_characters = 0
        room.kept.clear()
        return meanwhile

    def leave(self, name: str) -> Meanwhile | None:
        """Forget a room; if it is shown, show the one shown before, and return what was kept there.

        A room that is the only one stays shown, under its name, until the next one is entered.
        """
        key = fold_name(name)
        room = self._rooms.pop(key, None)
        if room is None:
            return None
        is_target = fold_name(self._target) == key
        if room is self.shown and self._rooms:
            target = self._target
            meanwhile = self.show(_last_shown(self._rooms.values()).name)
            if not is_target:
                self._target = target
            return meanwhile
        if is_target:
            self._target = self.shown.name
        return None

    def keep_only(self, names: Collection[str]) -> Meanwhile | None:
        """Forget all rooms but those with *names*; see `leave`."""
        kept = set(map(fold_name, names))
        gone = [room for room in self if fold_name(room.name) not in kept]
        gone.sort(key=lambda room: room is self.shown)  # the one that is shown is the last
        left = [self.leave(room.name) for room in gone]
        return left[-1] if left else None

    # --- The target -------------------------------------------------------------------------------

    def aim(self, name: str) -> None:
        """Make *name*, a room that we are about to enter, the target."""
        self._target = name

    def aim_back(self, name: str) -> None:
        """Make another room the target if it is *name*, which we are about to leave."""
        if fold_name(self._target) == fold_name(name):
            others = [room for key, room in self._rooms.items() if key != fold_name(name)]
            self._target = _last_shown(others or [self.shown]).name

    def is_target(self, name: str) -> bool:
        """Return whether lines entered now go to the room *name*."""
        return fold_name(name) == fold_name(self._target)

    def settle(self, name: str) -> None:
        """Make the room shown the target if *name* is and could not be entered."""
        if name not in self and self.is_target(name):
            self._target = self.shown.name

    # --- Events -----------------------------------------------------------------------------------

    def keep(self, room: Room, heard: Heard, *, is_new: bool, is_mention: bool = False) -> None:
        """Keep what was *heard* in a *room* that is not shown, until it is shown.

        A message that *is_new* counts as unread.
        """
        room.unread += is_new
        room.mentions += is_new and is_mention
        room.kept.append(heard)
        room.kept_characters += _characters(heard)
        while len(room.kept) > self._max_kept or (
            room.kept_characters > self._max_kept_characters and len(room.kept) > 1
        ):
            oldest = room.kept.popleft()
            room.kept_characters -= _characters(oldest)
            room.left_out += isinstance(oldest.event, Said)

    def note(self, event: Event) -> None:
        """Update the members of the rooms, and their names."""
        match event:
            case Joined(name=name, members=members):
                if room := self.find(event.room):
                    room.members = members or room.members + 1
                    room.changes += 1
                    room.add_name(name)
            case Left(name=name, members=members):
                if room := self.find(event.room):
                    room.members = members or max(1, room.members - 1)
                    room.changes += 1
                    room.names.discard(name)
            case Renamed(old=old, name=name):
                for room in self:
                    room.changes += 1
                    if old in room.names:
                        room.names.discard(old)
                        room.add_name(name)
            case Presence(members=members):
                if room := self.find(event.room):
                    room.members = members
                    room.is_stale = True
            case Members(members=members):
                if room := self.find(event.room):
                    room.list_members(members)


def _last_shown(rooms: Iterable[Room]) -> Room:
    """Return the room that was shown last; if none was, the one that was entered first."""
    return max(rooms, key=lambda room: room.shown_at)


def _characters(heard: Heard) -> int:
    return len(heard.event.text) if isinstance(heard.event, Said) else 0
