"""What a run does about slow clients: who lagged from where to where, and how long rooms waited.

What a client should have heard follows from the log, but for what it had not got yet when it left,
and the log does not say who lags.  So the rooms are watched: `watch_rooms` writes down each lag and
each leaving, `WaitMeter` for how long each room waited while somebody else could have been served.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import trio

from multichat.server.broadcast import Batch, Block
from multichat.server.member import Member
from multichat.server.room import Room
from multichat.server.slow_clients import SlowClients

from .wire import End

if TYPE_CHECKING:
    from .history import History

__all__ = ["LagRecord", "Wait", "WaitMeter", "watch_rooms"]

# How often a room looks whether somebody takes bytes, and whether somebody has taken all.
_LOOK_SECONDS = 0.02


class LagRecord(NamedTuple):
    """A moment in which a client began to lag, became live, or left a room.

    *kind* is `lag`, `live` or `left`.  *connection* is the number that it got when it came,
    *client* that of who it is; *position* is where in the log.  It had everything up to the message
    of number *reached*, itself not; *told* had been told in the room.  *untaken* is whether the
    room was waiting for it to take a notice of the server, which has no number.
    """

    kind: str
    connection: int
    client: int
    room: str
    position: int
    seconds: float
    reached: int
    told: int
    untaken: bool = False


class Wait(NamedTuple):
    """A time in which a room waited for slow clients, at its budget's expense."""

    room: Room  # itself: one that is opened again, or after a restart, has another budget
    start: float
    end: float


def _reached(room: Room, member: Member, untaken: Batch | None) -> int:
    if member.lag is not None:
        return member.lag.position
    return untaken.said.first if isinstance(untaken, Block) else room.next


@contextlib.contextmanager
def watch_rooms(
    current_history: Callable[[], "History"], is_over: Callable[[], bool]
) -> Iterator[None]:
    """Write into the *current_history* who lags where, until its server *is_over*."""
    connections: dict[Member, int] = {}
    cut_off: dict[Member, Batch] = {}  # at which one, those whose send queue was closed meanwhile
    try_again = SlowClients._try_again
    lag, go_live, join, leave = Room.lag, Room._go_live, Room.join, Room.leave

    def note(kind: str, room: Room, member: Member) -> None:
        if not is_over():
            untaken = cut_off.pop(member, room.slow_clients.waiting.get(member))
            record = LagRecord(
                kind,
                connections[member],
                member.client,
                room.name.lower(),
                len(current_history().log),
                trio.current_time(),
                _reached(room, member, untaken),
                room.next,
                untaken is not None and not isinstance(untaken, Block),
            )
            current_history().lags.append(record)

    def watched_join(room: Room, member: Member) -> None:
        connections.setdefault(member, member.client)
        join(room, member)

    def watched_lag(room: Room, member: Member, position: int) -> None:
        note("lag", room, member)
        lag(room, member, position)

    def watched_go_live(room: Room, member: Member) -> bool:
        lags = current_history().lags
        before = len(lags)
        note("live", room, member)  # before it leaves, which it does where the server is closing
        is_live = go_live(room, member)
        if not is_live:
            del lags[before:]
        return is_live

    def watched_leave(room: Room, member: Member, *args: Any, **kwargs: Any) -> None:
        note("left", room, member)
        leave(room, member, *args, **kwargs)

    def watched_try_again(slow: SlowClients, member: Member, batch: Batch, delivery: Any) -> None:
        if member.send_queue.closed and slow.waiting.get(member) is batch:
            cut_off[member] = batch
        try_again(slow, member, batch, delivery)

    with (
        mock.patch.object(SlowClients, "_try_again", watched_try_again),
        mock.patch.object(Room, "join", watched_join),
        mock.patch.object(Room, "lag", watched_lag),
        mock.patch.object(Room, "_go_live", watched_go_live),
        mock.patch.object(Room, "leave", watched_leave),
    ):
        yield


class WaitMeter(trio.abc.Instrument):
    """Measures for how long each of *rooms* waits while it has somebody else to deliver to.

    Time goes on only while all tasks wait; so it is enough to look just before that.
    """

    def __init__(
        self, current_history: Callable[[], "History"], rooms: Callable[[], list[Room]]
    ) -> None:
        self._current_history = current_history
        self._rooms = rooms
        self._since: dict[Room, tuple[object, float]] = {}  # for which publish, and since when
        self._paying: dict[Room, float] = {}

    def before_io_wait(self, timeout: float) -> None:
        now = trio.current_time()
        rooms = self._rooms()
        for room, start in self._paying.items():
            if now > start:
                self._current_history().waits.append(Wait(room, start, now))
        before = self._since
        self._since = {
            room: (room.slow_clients.waiting, now) for room in rooms if room.slow_clients.waiting
        }
        for room, (waiting, since) in before.items():
            if room in self._since and room.slow_clients.waiting is waiting:
                self._since[room] = waiting, since
        self._paying = {room: now for room in self._since if not self._is_free(room, now)}

    def _is_free(self, room: Room, now: float) -> bool:
        """Say whether nobody has taken everything, but for the sender, and somebody reads."""
        boxes = [each.send_queue for them in room._by_codec.values() for each in them.values()]
        if sum(not (box.waiting_bytes or box.closed) for box in boxes) > 1:
            return False
        ends = [box._stream for box in boxes]
        taken = max((end.taken_at for end in ends if isinstance(end, End)), default=0.0)
        read_at = max(taken, self._since[room][1])
        return now - read_at < room.slow_clients._timeout + 2 * _LOOK_SECONDS
