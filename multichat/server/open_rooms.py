"""The rooms that are open, by name: opens them, and closes those that are empty.

Changes only in functions without `await`.

Invariants:

1. No two rooms have the same folded name (`multichat.protocol.names.fold_name`).
2. A room exists while it has members: an empty one takes no memory except its log's.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import msgspec
import trio

from multichat.backend.base import Backend, RoomLog
from multichat.backend.events import MAX_TOPICS
from multichat.errors import (
    InvalidName,
    InvalidRequest,
    RemoteProtocolError,
    StorageFailed,
    TooManyRooms,
    lone_exception,
)
from multichat.journal.base import SessionRecord
from multichat.protocol.address import is_loopback
from multichat.protocol.framing import clean
from multichat.protocol.lookalikes import NameIndex
from multichat.protocol.messages import (
    LOBBY,
    MAX_TOPIC_CHARACTERS,
    Goodbye,
    RoomList,
    RoomSize,
    TopicChanged,
)
from multichat.protocol.names import (
    SERVER_NAME,
    default_name,
    fold_name,
    lookalike_room,
    parse_room_name,
)
from multichat.server.absences import Absence, Absences
from multichat.server.broadcast import Counts
from multichat.server.cached_response import CachedResponse
from multichat.server.client import Client
from multichat.server.config import ServerConfig
from multichat.server.member import Member
from multichat.server.page_cache import PageCache
from multichat.server.rate_limit import HourlyLimit
from multichat.server.recent_messages import RingBudget
from multichat.server.remote_clients import RemoteClient, RemoteRoom
from multichat.server.room import Room
from multichat.server.room_claims import RoomClaims, RoomGrants, WantedRooms, check_lobby

__all__ = ["OpenRooms"]

_NO_GRANTS: RoomGrants = {}

# The reason given for clients whose server has ended.
_LOST = "connection lost"


class OpenRooms:
    """The open rooms of one server; iterating yields those with members, the oldest first.

    *backend*, which is open, stores the messages and topics; *start_soon* starts tasks of the
    rooms, and *disconnect* disconnects a client.  *counts* is what all rooms have done, and *list*
    the answer to `rooms`.
    """

    def __init__(
        self,
        config: ServerConfig,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
        backend: Backend,
        disconnect: Callable[[Client, Goodbye], None],
    ) -> None:
        self.counts = Counts()
        self.list = CachedResponse(self._list)
        self._config, self._backend = config, backend
        self._start_soon, self._disconnect = start_soon, disconnect
        self._rooms: dict[str, Room] = {}
        self.claims = RoomClaims(backend, self._rooms, config.max_rooms)
        self._closing: Goodbye | None = None
        self._left: list[Room] | None = None  # while none is closed
        self._remote: dict[str, RemoteRoom] = {}  # with members on other nodes, or open here
        self._closing_later: set[Room] = set()
        self._absences = Absences()  # from rooms that are not open
        self._topics: dict[str, str] = {}  # by key, also of rooms that are not open
        # Without other nodes, and without the lobby, whose lookalikes are refused by another rule.
        self._names: NameIndex[Room] = NameIndex()
        self._rings = RingBudget(config.rings_bytes, config.replay.ring_bytes)
        self._pages = PageCache(config.replay.page_messages, config.max_pages)
        self._new_rooms = HourlyLimit(config.max_new_rooms)

    def load(self) -> None:
        """Load from the backend, which is open, the topics, and who was connected just now."""
        self._topics.update(self._backend.topics)
        # A drain, in which clients cannot come back, counts as no time.
        longest = self._config.away_seconds + (self._config.drain_seconds or 0.0)
        for session in self._backend.recent_sessions:
            if session.age_seconds <= longest:
                self._expect(session.record)

    def __iter__(self) -> Iterator[Room]:
        return iter([room for room in self._rooms.values() if room])

    def __len__(self) -> int:
        """How many rooms are in memory."""
        return len(self._rooms)

    def _list(self) -> RoomList:
        sizes = {room.key: RoomSize(room.name, len(room)) for room in self}
        for key, room in self._remote.items():
            if room.members and key not in sizes:
                sizes[key] = RoomSize(room.name, len(room.members))
        if self._backend.is_shared:  # so that all nodes list the same
            return RoomList([sizes[key] for key in sorted(sizes, key=lambda it: (it != LOBBY, it))])
        return RoomList(list(sizes.values()))

    async def prepare(self, wanted: WantedRooms, grants: RoomGrants) -> None:
        """Load and claim what is needed to `open` the rooms *wanted* in the same step.

        Waits for those that are open, too: a client from another node may know messages that
        are not delivered here yet.  Returns without a checkpoint if nothing is missing.  What was
        decided is in *grants*, for `open`; the caller MUST then call `settle` with them, also if
        this raises or is cancelled.  Raises `StorageFailed`.
        """
        if not self._backend.is_shared:
            return
        names = wanted.by_key()
        for pending in [self._backend.load_room(key) for key in names.keys() & self._rooms.keys()]:
            if pending is not None:
                await pending.wait()
        while True:
            missing = names.keys() - self._rooms.keys()
            loading = [each for key in missing if (each := self._backend.load_room(key))]
            unclaimed = sorted(missing - grants.keys() - {LOBBY})
            if not loading and not unclaimed:
                break
            with lone_exception():
                async with trio.open_nursery() as nursery:
                    for key in unclaimed:  # at the same time as they are loaded
                        nursery.start_soon(self.claims.make, key, names[key], wanted, grants)
                    for pending in loading:
                        await pending.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    def settle(self, grants: RoomGrants) -> None:
        """Give back the rooms that were claimed for a request, and that it has not opened."""
        if grants:
            self.claims.settle(grants)

    # --- Members on other nodes -------------------------------------------------------------------

    def enter_elsewhere(self, client: RemoteClient, key: str, name: str) -> None:
        """Note that *client* is in the room *key*, called *name*, on its node."""
        self.list.forget()
        self._absences.discard(key, client.number)
        room = self._remote.get(key)
        if room is None:
            room = self._remote[key] = RemoteRoom(name)
        room.members[client.number], client.rooms[key] = client, room
        if room.presence is not None:
            room.presence.entered_elsewhere(client)

    def leave_elsewhere(self, client: RemoteClient, key: str, reason: str, *, away: bool) -> None:
        """Note that *client* has left the room *key* on its node; see `Room.leave`."""
        self.list.forget()
        room = client.rooms.pop(key)
        del room.members[client.number]
        if room.presence is not None:
            room.presence.left_elsewhere(client.number, reason, away=away)
            return
        if away:
            self._note_absence(key, client.number, client.name, reason)
        if not room.members:
            del self._remote[key]

    def _note_absence(self, key: str, client: int, name: str, reason: str) -> None:
        now, seconds = trio.current_time(), self._config.away_seconds
        if seconds:
            self._absences.add(key, client, Absence(name, reason, now + seconds), now)

    def _expect(self, session: SessionRecord) -> None:
        """Note that the client of *session* was connected to a server that has ended just now."""
        name = session.name or default_name(session.client)
        for room in session.rooms:
            self._note_absence(fold_name(room), session.client, name, _LOST)

    def find_elsewhere(self, name: str) -> RemoteRoom | None:
        """Return the room of that name with members on other nodes, if there is one."""
        room = self._remote.get(fold_name(name))
        return room if room is not None and room.members else None

    # --- Opening and closing ----------------------------------------------------------------------

    def find(self, name: str) -> Room | None:
        """Return the open room of that name, in any case or form, if there is one."""
        return self._rooms.get(fold_name(name))

    def shut_down(self, goodbye: Goodbye) -> None:
        """Shut all rooms down, and those that are opened later; see `Room.shut_down`."""
        self._closing = goodbye
        for room in self:
            room.shut_down(goodbye)

    def open(
        self,
        name: str,
        *,
        opener: Client | str | None = None,
        closing: int = 0,
        resuming: bool = False,
        grants: RoomGrants = _NO_GRANTS,
    ) -> Room:
        """Return the room called *name*; raises `InvalidName` or `TooManyRooms`.

        If it is new, *opener* has opened it: a client, or who else counts as one.  *closing* is how
        many rooms are about to close.  With other nodes, `prepare` has noted in *grants* what was
        decided about it.

        The rules for names apply to new rooms: one with members or messages, or of a session that
        is *resuming*, may have a name that earlier rules allowed.
        """
        key = fold_name(name)
        room = self._rooms.get(key)
        if room is None:
            log = self._backend.room(key)
            try:
                name, remote = self._admit(
                    key, name, log, opener, closing=closing, resuming=resuming, grants=grants
                )
            except BaseException:
                log.close()  # no member follows it
                raise
            room = self._rooms[key] = Room(
                name,
                log=log,
                config=self._config,
                rings=self._rings,
                pages=self._pages,
                counts=self.counts,
                disconnect=self._disconnect,
                start_soon=self._start_soon,
                remote={} if remote is None else remote.members,
            )
            if remote is not None:
                remote.presence = room.presence
            elif name != LOBBY:
                self._names.add(room, name)
            room.topic = self._topics.get(key, "")
            if self._closing is not None:
                room.shut_down(self._closing)
            if room.feed is not None:
                self._start_soon(room.feed.follow)
        return room

    def _admit(
        self,
        key: str,
        name: str,
        log: RoomLog,
        opener: Client | str | None,
        *,
        closing: int,
        resuming: bool,
        grants: RoomGrants,
    ) -> tuple[str, RemoteRoom | None]:
        """Return the name of a room that may be opened; raises as `open` does.

        With other nodes, also its members there.
        """
        try:
            name = LOBBY if key == LOBBY else parse_room_name(name)
        except InvalidName:
            if not (log.next or resuming):
                raise
            name = key
        is_new = not log.next
        if not self._backend.is_shared:
            if key != LOBBY:
                self._check_new(name, closing, opener, is_new=is_new)
            return name, None
        if key != LOBBY:
            name = _granted(grants, key)
        if (remote := self._remote.get(key)) is None:
            if key != LOBBY and is_new:
                self._count_new_room(opener)
            remote = self._remote[key] = RemoteRoom(name)
        if key == LOBBY:
            self._backend.hold_room(key, name)
        return name, remote

    def topic_of(self, room: Room | RemoteRoom) -> str:
        """Return the topic of *room*; empty if it has none."""
        return self._topics.get(fold_name(room.name), "")

    async def set_topic(
        self, room: Room | RemoteRoom, topic: str, by: Client | None
    ) -> TopicChanged:
        """Give *room* a *topic*, empty for none; return that, once it is stored.

        *by* is the operator's client, None for the server's console.  Raises `InvalidRequest` or
        `StorageFailed`.
        """
        topic, key = clean(topic), fold_name(room.name)
        if len(topic) > MAX_TOPIC_CHARACTERS:
            raise InvalidRequest(f"a topic has at most {MAX_TOPIC_CHARACTERS} characters")
        if topic and key not in self._topics and len(self._topics) >= MAX_TOPICS:
            raise InvalidRequest(f"too many rooms have a topic (limit: {MAX_TOPICS})")
        number, name = (0, SERVER_NAME) if by is None else (by.number, by.name)
        with trio.CancelScope(shield=True):  # it may be stored: the room must have it, too
            try:
                await self._backend.save_topic(key, topic, number, name)
            except StorageFailed as error:
                raise error.about("the topic") from None
        changed = TopicChanged(room.name, topic, number, name)
        if not self._backend.is_shared:  # otherwise it comes in the order of those of all nodes
            self.put_topic(key, changed, by)
        return changed

    def put_topic(self, key: str, changed: TopicChanged, by: Client | None) -> None:
        """Note the topic of the room *key*, set by *by*; None for the console or another node."""
        self._topics[key] = changed.text
        if not changed.text:
            del self._topics[key]
        if (now_open := self._rooms.get(key)) is not None:
            now_open.set_topic(msgspec.structs.replace(changed, room=now_open.name), by)

    def _check_new(
        self, name: str, closing: int, opener: Client | str | None, *, is_new: bool
    ) -> None:
        """Raise `InvalidName` or `TooManyRooms` if a room that is not open cannot be opened.

        One that has messages, which is not *is_new*, is opened although it looks like another:
        otherwise opening a lookalike would lock its members out.
        """
        rooms = len(self._rooms) - sum(not room for room in self._left or ())
        if rooms - closing >= self._config.max_rooms:
            raise TooManyRooms(self._config.max_rooms)
        check_lobby(name)
        if is_new and (others := self._names.lookalikes(name)):
            raise lookalike_room(name, others[0].name)
        if is_new:
            self._count_new_room(opener)

    def _count_new_room(self, opener: Client | str | None) -> None:
        """Raise `TooManyRooms` if *opener*, or its address, has opened too many new rooms."""
        if opener is None:
            return
        creator = opener if isinstance(opener, str) else opener.origin
        # All clients behind a proxy or a tunnel share the address of this machine.
        if isinstance(opener, Client) and (
            creator is None or is_loopback(creator.partition("/")[0])
        ):
            creator = f"client {opener.number}"
        if seconds := self._new_rooms.take(creator, trio.current_time()):
            raise TooManyRooms(self._config.max_new_rooms, seconds)

    def join(self, client: Client, room: Room, *, resuming: bool = False) -> None:
        """Let *client* into *room*.

        A client that is *resuming* knows the members that the room had before.  Those that may
        still come back are announced as left only if they do not.
        """
        self.list.forget()
        if resuming:
            room.presence.expect(self._absences.take(room.key, trio.current_time()))
        else:
            self._absences.discard(room.key, client.number)
        room.join(client)

    def leave(self, member: Member, reason: str = "", *, away: bool = False) -> None:
        """Take *member* out of its room; see `Room.leave`."""
        self.list.forget()
        member.room.leave(member, reason, away=away)
        self.close_if_empty(member.room)

    def leave_all(self, client: Client, reason: str = "", *, away: bool = False) -> None:
        """Take *client* out of all its rooms."""
        for member in list(client.memberships.values()):
            self.leave(member, reason, away=away)

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Close no room during the block, which is one step: a client leaves and enters others.

        Where a log has to be loaded, it could not be opened again in that step.  Without other
        nodes, this does nothing.
        """
        if self._backend.is_shared:
            self._left = []
        try:
            yield
        finally:
            left, self._left = self._left, None
            for room in left or ():
                self.close_if_empty(room)

    def close_if_empty(self, room: Room) -> None:
        """Close *room* if it has no members, once its messages are delivered."""
        if room or self._rooms.get(room.key) is not room:
            return
        if self._left is not None:
            self._left.append(room)
            return
        if room.is_delivering and self._closing is None:  # a message under way is not delivered yet
            # One task for each room: two would give each other the turn to deliver forever.
            if room not in self._closing_later:
                self._closing_later.add(room)
                self._start_soon(partial(self._close_later, room))
        else:
            del self._rooms[room.key]
            for client, absence in room.presence.absences().items():
                self._absences.add(room.key, client, absence, trio.current_time())
            self._names.discard(room)
            if (remote := self._remote.get(room.key)) is not None:
                remote.presence = None
                if not remote.members:
                    del self._remote[room.key]
                self.claims.release([room.key])
            room.close()

    async def _close_later(self, room: Room) -> None:
        await room.wait_delivered()
        self._closing_later.discard(room)
        self.close_if_empty(room)


def _granted(grants: RoomGrants, key: str) -> str:
    """Return the name under which the room *key* is opened; raises what was decided."""
    granted = grants.get(key)
    if granted is None:
        raise StorageFailed("the room is not claimed")
    if isinstance(granted, RemoteProtocolError):
        raise granted
    return granted
