"""Texts about our rooms: the status line, and the list of rooms.  Pure.

`alice in lobby · 4 here · lobby · kitchen 3 · ops 1! · 127.0.0.1:9000`: three unread messages in
the kitchen, and one in ops that mentions us.  The rooms are in the order of entering, so that
the first can be shown with Alt+1; the one that is shown is bold.  A single room is not listed.

On a narrow terminal parts are left out, each as a whole: first the endpoint, then the number of
members, then the rooms with nothing unread, and then our name.  The line is never wider than the
terminal.
"""

from collections.abc import Iterator, Sequence

from multichat.protocol.messages import RoomSize
from multichat.protocol.names import fold_name
from multichat.terminal.columns import Fragments, columns_of
from multichat.terminal.render import DIM, WARNING
from multichat.terminal.rooms import Room, Rooms

__all__ = ["KEYS", "count_of", "list_rooms", "status_line"]

_BOLD = f"{DIM} bold"
_ALERT = f"{WARNING} bold"
_GAP = (DIM, " · ")

# The keys that show a room are Alt+1 to Alt+9.
KEYS = 9

# A larger number is of no use, and four digits are wide.
_MAX_COUNT = 999


def status_line(own_name: str, rooms: Rooms, endpoint: str, state: str, columns: int) -> Fragments:
    """Return the status line for a terminal that is *columns* wide.

    *state* is what the connection waits for; empty while there is one.
    """
    lines = _lines(own_name, rooms, endpoint, columns)
    return _fit(_behind(state, lines) if state else lines, columns)


def count_of(unread: int, mentions: int) -> str:
    """Return how many messages are unread, with a `!` if one of them mentions us."""
    count = str(unread) if unread <= _MAX_COUNT else f"{_MAX_COUNT}+"
    return count + "!" * bool(mentions)


def list_rooms(rooms: Rooms, sizes: Sequence[RoomSize]) -> list[str]:
    """Return the lines that list all rooms of the server, which have *sizes*; ours come first."""
    lines = ["rooms and their members:"]
    known = {fold_name(size.room): size.members for size in sizes}
    for number, room in enumerate(rooms, 1):
        line = f"{room.name} {known.get(fold_name(room.name), room.members)}"
        if number <= KEYS:
            line += f" (Alt+{number})"
        if room.unread:
            line += f": {room.unread} unread"
        if room.mentions:
            line += f", {room.mentions} mention{'s' * (room.mentions != 1)}"
        lines.append(line)
    return [*lines, *(f"{each.room} {each.members}" for each in sizes if each.room not in rooms)]


def _lines(own_name: str, rooms: Rooms, endpoint: str, columns: int) -> Iterator[Fragments]:
    """Yield the whole line, and then ever shorter ones.

    Those with more rooms than *columns* are left out: they do not fit.
    """
    shown, where = rooms.shown, (DIM, endpoint)
    if not shown.name:
        yield [where]
        return
    place, here = (DIM, f"{own_name} in {shown.name}"), (DIM, f"{shown.members} here")
    if len(rooms) < 2:
        yield _joined(place, here, where)
        yield _joined(place, here)
        yield [place]
        yield [(_BOLD, shown.name)]
        return
    if len(rooms) <= columns:
        tabs = [_tab(room, rooms) for room in rooms]
        yield _joined(place, here, *tabs, where)
        yield _joined(place, here, *tabs)
        yield _joined(place, *tabs)
    name = (_BOLD, shown.name)
    unread = [room for room in rooms if room.unread]
    if len(unread) <= columns:
        tabs = [_tab(room, rooms) for room in unread]
        yield _joined(place, *tabs)
        yield _joined(name, *tabs)
    if unread:
        count = count_of(*map(sum, zip(*((r.unread, r.mentions) for r in rooms), strict=True)))
        yield _joined(name, (_ALERT if count.endswith("!") else DIM, count))
    yield [name]


def _behind(state: str, lines: Iterator[Fragments]) -> Iterator[Fragments]:
    """Yield *lines* after the *state*, then the state alone, and its beginning."""
    for line in lines:
        yield [(_ALERT, state), _GAP, *line]
    yield [(_ALERT, state)]
    for end in " (", ", ":
        yield [(_ALERT, state.partition(end)[0])]


def _tab(room: Room, rooms: Rooms) -> tuple[str, str]:
    if room is rooms.shown:
        return (_BOLD, room.name)
    if not room.unread:
        return (DIM, room.name)
    style = _ALERT if room.mentions else DIM
    return (style, f"{room.name} {count_of(room.unread, room.mentions)}")


def _joined(*parts: tuple[str, str]) -> Fragments:
    return [each for part in parts for each in (_GAP, part)][1:]


def _fit(lines: Iterator[Fragments], columns: int) -> Fragments:
    """Return the first of *lines* that fits, or as much of the last as does."""
    line: Fragments = []
    for line in lines:
        if sum(columns_of(text) for _, text in line) <= columns:
            return line
    return _cut(line, columns)


def _cut(line: Sequence[tuple[str, str]], columns: int) -> Fragments:
    """Return the beginning of *line* in at most that many *columns*."""
    cut: list[tuple[str, str]] = []
    for style, text in line:
        end = len(text)
        while columns_of(text[:end]) > columns:
            end -= 1
        cut.append((style, text[:end]))
        columns -= columns_of(text[:end])
        if end < len(text):
            break
    return cut
