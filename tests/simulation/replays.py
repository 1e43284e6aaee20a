"""Records when clients entered, left and lagged, and how long rooms waited.

What a client should have received follows from the log, except for a client that lagged when it
left, and lags are not logged.  So `watch_rooms` records each lag and leave, and when a notice is
delivered, which is logged once for all rooms, before it has its turn in each.  `WaitMeter`
measures how long each room waited while it could have delivered to others.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import trio

from multichat.server import hello
from multichat.server.broadcast import Batch, Block, Delivery
from multichat.server.client import Client
from multichat.server.member import Member
from multichat.server.registry import Registry
from multichat.server.room import Room
from multichat.server.slow_clients import SlowClients

from .chronicle import LogEntry
from .wire import End

if TYPE_CHECKING:
    from .history import History

__all__ = ["NOTICE", "LagRecord", "Wait", "WaitMeter", "watch_rooms"]

# How the log begins a notice of the server; the log of a run has it when it is delivered.
NOTICE = "[TX] [Server] "

# How often a room checks whether a client takes bytes, and whether one has taken everything.
_LOOK_SECONDS = 0.02


class LagRecord(NamedTuple):
    """The moment at which a client entered a room, began to lag, became live, or left.

    *kind* is `entered`, `lag`, `live` or `left`, or `passed` if it left while its hello was carried
    out: what it received there was before the welcome.  *connection* is the number that it got
    first, *client* its current number, and *position* the position in the log.  It had received all
    messages before number *reached*; *told* had been delivered in the room.  *untaken* says whether
    the room was waiting for it to take a notice of the server, which has no number, and *is_gone*
    whether it left the server, too.
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
    is_gone: bool = False


class Wait(NamedTuple):
    """A time in which a room waited for slow clients and spent its budget."""

    room: Room  # the object: a room that is reopened has a new budget
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
    """Record lags in *current_history*, until its server *is_over*."""
    connections: dict[Client, int] = {}
    cut_off: dict[Member, Batch] = {}  # members whose send queue was closed, and at which batch
    try_again = SlowClients._try_again
    start_replay, go_live = Room.start_replay, Room._go_live
    join, leave, greet = Room.join, Room.leave, vars(hello)["greet"]
    take_out = Registry._take_out
    log_delivery = Room._log_delivery
    greeted: set[Client] = set()
    going: set[Client] = set()

    def note(kind: str, room: Room, member: Member) -> None:
        if not is_over():
            untaken = cut_off.pop(member, room.slow_clients.waiting.get(member))
            record = LagRecord(
                kind,
                connections[member.client],
                member.client.number,
                room.name.lower(),
                len(current_history().log),
                trio.current_time(),
                _reached(room, member, untaken),
                room.next,
                untaken is not None and not isinstance(untaken, Block),
                member.client in going,
            )
            current_history().lags.append(record)

    def watched_join(room: Room, client: Client) -> None:
        connections.setdefault(client, client.number)
        join(room, client)
        note("entered", room, client.memberships[room.key])

    def watched_start_replay(room: Room, member: Member, position: int) -> None:
        note("lag", room, member)
        start_replay(room, member, position)

    def watched_go_live(room: Room, member: Member) -> bool:
        lags = current_history().lags
        before = len(lags)
        note("live", room, member)  # first, because it leaves at once if the server is closing
        is_live = go_live(room, member)
        if not is_live:
            del lags[before:]
        return is_live

    def watched_leave(room: Room, member: Member, *args: Any, **kwargs: Any) -> None:
        note("passed" if member.client in greeted else "left", room, member)
        leave(room, member, *args, **kwargs)

    def watched_greet(client: Client, *args: Any, **kwargs: Any) -> Any:
        greeted.add(client)
        try:
            return greet(client, *args, **kwargs)
        finally:
            greeted.remove(client)

    def watched_take_out(registry: Registry, client: Client, *args: Any, **kwargs: Any) -> None:
        going.add(client)
        take_out(registry, client, *args, **kwargs)
        going.remove(client)

    def watched_log_delivery(room: Room, delivery: Delivery) -> None:
        log_delivery(room, delivery)
        if delivery.log is None and not is_over():  # a notice, which is logged before its turn
            text = f"{NOTICE}{delivery.said.text}"
            entry = LogEntry(trio.current_time(), logging.INFO, text)
            current_history().log.append(entry)

    def watched_try_again(slow: SlowClients, member: Member, batch: Batch, delivery: Any) -> None:
        if member.send_queue.closed and slow.waiting.get(member) is batch:
            cut_off[member] = batch
        try_again(slow, member, batch, delivery)

    with (
        mock.patch.object(SlowClients, "_try_again", watched_try_again),
        mock.patch.object(Room, "join", watched_join),
        mock.patch.object(Room, "start_replay", watched_start_replay),
        mock.patch.object(Room, "_go_live", watched_go_live),
        mock.patch.object(Room, "leave", watched_leave),
        mock.patch.object(Room, "_log_delivery", watched_log_delivery),
        mock.patch.object(Registry, "_take_out", watched_take_out),
        mock.patch.object(hello, "greet", watched_greet),
    ):
        yield


class WaitMeter(trio.abc.Instrument):
    """Measures how long each of *rooms* waits while it could deliver to others.

    The clock moves only while all tasks wait, so it is enough to check just before that.
    """

    def __init__(
        self, current_history: Callable[[], "History"], rooms: Callable[[], list[Room]]
    ) -> None:
        self._current_history = current_history
        self._rooms = rooms
        self._since: dict[Room, tuple[object, float]] = {}  # the publish, and the start of the wait
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
        """Return whether waiting is free: only the sender may be idle, and a slow member reads."""
        boxes = [each.send_queue for them in room._by_codec.values() for each in them.values()]
        if sum(not (box.waiting_bytes or box.closed) for box in boxes) > 1:
            return False
        ends = [box._stream for box in boxes]
        taken = max((end.taken_at for end in ends if isinstance(end, End)), default=0.0)
        read_at = max(taken, self._since[room][1])
        return now - read_at < room.slow_clients._timeout + 2 * _LOOK_SECONDS
