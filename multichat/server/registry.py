"""The registry: connected clients, their numbers, names and rooms.

Owns what is unique on the whole server.  It changes only in functions without `await`, so that of
two clients that want the same name exactly one gets it.

Invariants:

1. A client is in exactly one room at a time, from `enter` to `leave`.
2. No two rooms have the same folded name (`multichat.protocol.names.fold_name`); for clients'
   names see `multichat.server.name_registry`.
3. A room exists while it has members: an empty one takes no memory except its journal's.
"""

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from multichat.errors import (
    InvalidName,
    NameAssigned,
    NotDelivered,
    RemoteProtocolError,
    TooManyRooms,
)
from multichat.journal.base import Journal
from multichat.log import Log
from multichat.net.memory_budget import MemoryBudget
from multichat.net.send_queue import SendResult
from multichat.protocol.address import is_loopback
from multichat.protocol.goodbyes import TAKEN_OVER, TOO_FAR_BEHIND
from multichat.protocol.json_codec import JSON
from multichat.protocol.lookalikes import NameIndex, lookalike_keys
from multichat.protocol.messages import (
    LOBBY,
    Directed,
    Goodbye,
    Members,
    Nonce,
    Notice,
    RoomList,
    RoomSize,
)
from multichat.protocol.names import (
    SERVER_NAME,
    default_name,
    fold_name,
    parse_person_name,
    parse_room_name,
)
from multichat.protocol.text_codec import TEXT
from multichat.server.broadcast import Counts, Receipt
from multichat.server.cached_response import CachedResponse
from multichat.server.config import ServerConfig, Slow
from multichat.server.join_hook import JoinHook, OnJoin
from multichat.server.log_rate import LogRates
from multichat.server.member import Member
from multichat.server.name_registry import NameRegistry
from multichat.server.page_cache import PageCache
from multichat.server.rate_limit import NewRoomLimit
from multichat.server.recent_messages import RingBudget
from multichat.server.room import Room
from multichat.server.session_store import SessionStore, StoredSession

__all__ = ["Registry"]

# How people write the name of an unnamed client; longer names are not looked up.
_UNNAMED = re.compile(r"(?:[Cc][Ll][Ii][Ee][Nn][Tt] )?(\d{1,15})")
_MAX_LOOKUP_CHARACTERS = 128


# When clients are disconnected because memory is full, those whose goodbye is still being written
# may hold this part of it.
_LEAVING_PART = 1 / 8


class Registry:
    """The members and rooms of one server.

    Any task may call any method; only async methods wait.  *start_soon* starts tasks of the rooms.
    *journal*, which is open, stores the messages.  *is_banned* says whether a name is banned, and
    *on_join* is told of joins.

    *room_list* is the answer to `rooms`.  *budget* is the memory for connected clients: above it,
    those that hold most are disconnected.
    """

    def __init__(
        self,
        config: ServerConfig,
        log: Log,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
        journal: Journal,
        *,
        is_banned: Callable[[str], bool] = lambda _: False,
        on_join: OnJoin | None = None,
    ) -> None:
        self._join_hook = JoinHook(on_join, log, start_soon)
        self._journal = journal
        self.session_store = SessionStore(
            self._journal,
            config.max_sessions,
            config.timeouts.session,
            max_bytes=config.sessions_bytes,
        )
        self.counts = Counts()
        self.closed = ""
        self._emptied = trio.Event()  # once closed
        self.budget = MemoryBudget(config.clients_bytes, self._shed_soon)
        self._shedding = False
        self._config = config
        self._log = log
        self._log_rates = LogRates(log, config.log_rate, start_soon)
        self._start_soon = start_soon
        self._members: dict[int, Member] = {}
        self._names = NameRegistry(config.away_seconds, is_banned)
        # Without the lobby, whose lookalikes are refused by another rule.
        self._room_names: NameIndex[Room] = NameIndex()
        self._rooms: dict[str, Room] = {}
        self.room_list = CachedResponse(self._list_rooms)
        self._rings = RingBudget(config.rings_bytes, config.replay.ring_bytes)
        self._pages = PageCache(config.replay.page_messages, config.max_pages)
        self._new_rooms = NewRoomLimit(config.max_new_rooms)

    @property
    def members(self) -> list[Member]:
        """The connected clients, in the order in which they connected."""
        return list(self._members.values())

    @property
    def rooms(self) -> list[Room]:
        """The rooms that have members, in the order in which they were opened."""
        return [room for room in self._rooms.values() if room]

    def __len__(self) -> int:
        """How many clients are connected."""
        return len(self._members)

    def find(self, who: str | int) -> Member | None:
        """Return the client with that number or name; None if there is none."""
        if isinstance(who, int):
            return self._members.get(who)
        if len(who) > _MAX_LOOKUP_CHARACTERS:
            return None
        if (member := self._names.find(who)) is not None:
            return member
        unnamed = _UNNAMED.fullmatch(who)
        return self._members.get(int(unnamed[1])) if unnamed else None

    def encode_who(self, room_name: str, to: Member, nonce: Nonce | None = None) -> bytes:
        """Return the encoded answer to *to*'s `Who`.  The room need not exist.

        Raises `InvalidName`.
        """
        room = self._rooms.get(fold_name(room_name))
        if room:
            return room.presence.encode_who(to, nonce)
        name = parse_room_name(room_name) if room is None else room.name
        person = self.find(name)
        person_in = "" if person is None else person.room.name
        return to.codec.encode(Members(name, [], person_in, nonce=nonce))

    def _list_rooms(self) -> RoomList:
        return RoomList([RoomSize(room.name, len(room)) for room in self.rooms])

    def _open(self, name: str, *, mover: Member | None = None, resuming: bool = False) -> Room:
        """Return the room called *name*; raises `InvalidName` or `TooManyRooms`.

        *mover* is about to leave its room for it.

        The rules for names apply to new rooms: one with members or messages, or of a session that
        is *resuming*, may have a name that earlier rules allowed.
        """
        key = fold_name(name)
        room = self._rooms.get(key)
        if room is None:
            journal = self._journal.room(key)
            try:
                name = LOBBY if key == LOBBY else parse_room_name(name)
            except InvalidName:
                if not (journal.next or resuming):
                    raise
                name = key
            rooms = len(self._rooms) - (mover is not None and len(mover.room) == 1)
            if rooms >= self._config.max_rooms and name != LOBBY:
                raise TooManyRooms(self._config.max_rooms)
            if name != LOBBY:
                self._check_room_name(name, is_new=not journal.next)
            if mover is not None and not journal.next and name != LOBBY:
                self._count_new_room(mover)
            room = self._rooms[key] = Room(
                name,
                journal=journal,
                log=self._log,
                config=self._config,
                rings=self._rings,
                pages=self._pages,
                counts=self.counts,
                disconnect=self.disconnect,
                start_soon=self._start_soon,
            )
            if name != LOBBY:
                self._room_names.add(room, name)
            if self.closed:
                room.shut_down(self._closing_goodbye)
        return room

    def _check_room_name(self, name: str, *, is_new: bool) -> None:
        """Raise `InvalidName` if *name* can be mistaken for that of another room.

        A room that has messages is always opened: otherwise opening a lookalike would lock its
        members out.
        """
        keys = lookalike_keys(name)
        if not set(keys).isdisjoint(lookalike_keys(LOBBY)):
            raise InvalidName(f"the room {name} would look like {LOBBY}")
        if is_new and (others := self._room_names.lookalikes(name)):
            raise InvalidName(f"the room {name} would look like {others[0].name}, which is open")

    def _count_new_room(self, member: Member) -> None:
        """Raise `TooManyRooms` if *member*, or its address, has opened too many new rooms."""
        creator = member.origin
        # All clients behind a proxy or a tunnel share the address of this machine.
        if creator is None or is_loopback(creator.partition("/")[0]):
            creator = f"client {member.client}"
        if seconds := self._new_rooms.take(creator, trio.current_time()):
            raise TooManyRooms(self._config.max_new_rooms, seconds)

    def _close_if_empty(self, room: Room) -> None:
        if room or self._rooms.get(fold_name(room.name)) is not room:
            return
        if room.is_delivering and not self.closed:  # a message under way is not delivered yet
            self._start_soon(partial(self._close_later, room))
        else:
            del self._rooms[fold_name(room.name)]
            self._room_names.discard(room)
            room.close()

    async def _close_later(self, room: Room) -> None:
        await room.wait_delivered()
        self._close_if_empty(room)

    def enter(self, member: Member) -> None:
        """Let *member* into the lobby.  A closed server disconnects it."""
        self._members[member.client] = member
        member.log = self._log_rates.open(member.client, member.origin)
        self._join(member, self._open(LOBBY))
        self._log.line("STATE", f"Client {member.client} connected")
        if self.closed:
            self.disconnect(member, self._closing_goodbye)

    def leave(
        self,
        member: Member,
        reason: str = "",
        *,
        last_words: bytes = b"",
        for_good: bool = False,
        taken_over: bool = False,
    ) -> None:
        """Take *member* out at once.  Idempotent.

        *reason* is for the other members and the log, and empty if the member asked to leave.  What
        is in the send queue, and then *last_words*, may still be written.  Its session, if it has
        one, ends if it leaves *for good*, and is already in use if it was *taken over*; otherwise
        the client may resume it.
        """
        if self._members.get(member.client) is not member:
            return
        stored_session = member.stored_session
        if stored_session is not None and for_good:
            self.session_store.end(stored_session)
            stored_session = None
        elif stored_session is not None and not taken_over:
            self.session_store.disconnect(stored_session, member.origin)
        member.send_queue.close(last_words)
        self._join_hook.discard(member)
        self._take_out(member, reason, away=stored_session is not None)
        self._log_rates.close(member.log)
        suffix = f" ({reason})" if reason else ""
        self._log.line("STATE", f"Client {member.client} disconnected{suffix}")
        member.on_leave(reason)
        if self.closed and not self._members:
            self._emptied.set()

    def _take_out(self, member: Member, reason: str, *, away: bool = False) -> None:
        del self._members[member.client]
        self._names.release(member, keep=away)
        self._leave_room(member, reason, away=away)

    def _join(self, member: Member, room: Room) -> None:
        self.room_list.forget()
        room.join(member)
        self._join_hook.joined(member)

    def _leave_room(self, member: Member, reason: str, *, away: bool = False) -> None:
        self.room_list.forget()
        member.room.leave(member, reason, away=away)
        self._close_if_empty(member.room)

    def disconnect(self, member: Member, goodbye: Goodbye) -> None:
        """Disconnect *member* with this *goodbye*.

        Its session ends if the goodbye does not allow it to reconnect.
        """
        for_good = not goodbye.reconnect
        last_words = member.codec.encode(goodbye)
        self.leave(member, goodbye.reason, last_words=last_words, for_good=for_good)

    @property
    def _closing_goodbye(self) -> Goodbye:
        return Goodbye.of("shutdown", self.closed)

    def give_session(self, member: Member) -> str:
        """Give *member* a session, which it can resume; return the token."""
        token, member.stored_session = self.session_store.create(
            member.client, self._names.name_of(member), member.room.name
        )
        return token

    def resume(self, member: Member, stored_session: StoredSession) -> list[RemoteProtocolError]:
        """Resume a session on *member*, a new connection: with its number, name and room.

        A connection that still has the session is replaced; the others are not told.  Returns
        errors for the name and the room if the client cannot have them any more; for the room see
        `Member.refused_room`.
        """
        errors: list[RemoteProtocolError] = []
        name, room_name = stored_session.name, stored_session.room
        old = self._members.get(stored_session.client)
        self._log.line("STATE", f"Client {member.client} is Client {stored_session.client} again")
        self._take_out(member, "")
        if old is not None:
            goodbye = Goodbye.of("replaced", TAKEN_OVER)
            words = old.codec.encode(goodbye)
            self.leave(old, goodbye.reason, last_words=words, taken_over=True)
        self.session_store.resume(stored_session)
        member.client, member.stored_session = stored_session.client, stored_session
        member.log.client = member.client
        member.name = default_name(member.client)
        self._members[member.client] = member
        try:
            room = self._open(room_name, resuming=True)
        except (InvalidName, TooManyRooms) as error:
            errors.append(error)
            room = self._open(LOBBY)
            member.refused_room = room_name
        if name:
            try:
                self._names.check(member, parse_person_name(name))  # the rules may have changed
            except RemoteProtocolError as error:
                errors.append(error)
            else:
                self._names.take(member, name)
        self._join(member, room)
        self._join_hook.discard(member)  # for the others it has not left
        self._note_change(member)
        return errors

    def _note_change(self, member: Member) -> None:
        if member.stored_session is not None:
            self.session_store.update(
                member.stored_session,
                self._names.name_of(member),
                member.refused_room or member.room.name,
            )

    def _shed_soon(self) -> None:
        # Not at once: this is called while a publish iterates over the members.
        if not self._shedding:
            self._shedding = True
            self._start_soon(self._shed)

    async def _shed(self) -> None:
        """Disconnect the largest client of the largest address until the rest fits the budget."""
        budget = self.budget
        leaving = 0  # bytes for clients that may still read them, within the grace period
        try:
            while budget.held_bytes - leaving > budget.limit_bytes and self._members:
                member = self._largest()
                if not member.send_queue.held_bytes:
                    return
                self.counts.too_slow += 1
                member.send_queue.forget()
                self.disconnect(member, Goodbye.of("too-slow", TOO_FAR_BEHIND))
                if leaving + member.send_queue.waiting_bytes <= budget.limit_bytes * _LEAVING_PART:
                    leaving += member.send_queue.waiting_bytes
                else:
                    await member.send_queue.abort()
                await trio.lowlevel.checkpoint()  # after this its memory is free
        finally:
            self._shedding = False

    def _largest(self) -> Member:
        """Return the client that holds most memory, of the address whose clients hold most."""
        held: Counter[str | int] = Counter()
        for member in self._members.values():
            held[member.origin or member.client] += member.send_queue.held_bytes

        def size(member: Member) -> tuple[int, int]:
            return held[member.origin or member.client], member.send_queue.held_bytes

        return max(self._members.values(), key=size)

    def rename(self, member: Member, name: str) -> str:
        """Give *member* a *name*, and return its former one.

        Raises `InvalidName`, `NameTaken`, `NameAssigned` or `Banned`.
        """
        name = parse_person_name(name)
        if member.assigned_name and fold_name(name) != fold_name(member.assigned_name):
            raise NameAssigned(member.assigned_name)
        self._names.check(member, name)
        old = member.name
        self._names.take(member, name)
        if name != old:
            member.log.line("STATE", f"Client {member.client} is now called {name}")
            member.room.presence.entered(member)
            self._note_change(member)
        return old

    def move(self, member: Member, room_name: str) -> None:
        """Move *member* to another room; do nothing if it is there already.

        Raises `InvalidName` or `TooManyRooms`.
        """
        old = member.room
        new = self._open(room_name, mover=member)
        was_refused, member.refused_room = member.refused_room is not None, None
        if new is old:
            if was_refused:
                self._note_change(member)
            return
        self._leave_room(member, f"joined {new.name}")
        self._join(member, new)
        member.log.line("STATE", f"Client {member.client} joined {new.name}")
        self._note_change(member)

    def refuse_room(self, member: Member, room_name: str) -> None:
        """Note that *member* cannot enter a room; see `Member.refused_room`."""
        member.refused_room = room_name
        self._note_change(member)

    async def tell(self, recipient: Member, event: Directed | Notice) -> None:
        """Deliver *event* to *recipient* alone; waits for it for at most `slow_timeout_seconds`.

        Returns when it is in the send queue or the socket.  Raises `NotDelivered`, at once if the
        recipient has taken nothing since the last private message that was not delivered.
        """
        send_queue = recipient.send_queue
        result = recipient.room.try_send_private(recipient, event)
        if result is SendResult.FULL and self._config.slow is Slow.WAIT:
            if send_queue.progress == recipient.undelivered_at:
                raise NotDelivered(recipient.name)
            with trio.move_on_after(self._config.slow_timeout_seconds):
                while result is SendResult.FULL:
                    await send_queue.wait_for_space()
                    result = recipient.room.try_send_private(recipient, event)
        if result in (SendResult.FULL, SendResult.CLOSED):
            recipient.undelivered_at = send_queue.progress
            raise NotDelivered(recipient.name)

    async def broadcast(self, text: str) -> Receipt:
        """Send *text* to every room as the server; see `Room.notify`."""
        receipts: list[Receipt] = []
        self.counts.messages += 1
        if not self.rooms:
            self._log.said(TEXT.format_sender(SERVER_NAME, act=False), text, 0, "TX")

        async def notify(room: Room) -> None:
            receipts.append(await room.notify(text))

        async with trio.open_nursery() as nursery:  # a slow room delays no other
            for room in self.rooms:
                nursery.start_soon(notify, room)
        return sum(receipts, Receipt())

    async def close(self, reason: str) -> None:
        """Deliver the messages under way, then disconnect all; no client can enter any more.

        Replays continue for at most half of the grace period; the other half is for what is queued.
        A member that still lags then is told how many messages it missed, unless it can reconnect
        for them: it speaks JSON, and they are in a file.

        Cancelled, it does the same, without the rest of the replays and what the journal has not
        stored by then.
        """
        try:
            await self._wait_delivered()
        finally:
            self.closed = reason  # from here on no member is waited for
            for room in self.rooms:
                room.shut_down(self._closing_goodbye)
            with trio.CancelScope(shield=True):
                await self._wait_delivered()
            for member in self.members:
                if member.lag is None:
                    self.disconnect(member, self._closing_goodbye)
            try:
                with trio.move_on_after(self._config.grace_seconds / 2):
                    if self._members:
                        await self._emptied.wait()
            finally:
                for member in self.members:
                    if member.lag is not None and not (
                        self._journal.location and member.codec is JSON
                    ):
                        member.send_queue.miss(member.lag.skip_to(member.room.next))
                    self.disconnect(member, self._closing_goodbye)

    async def _wait_delivered(self) -> None:
        async with trio.open_nursery() as nursery:
            for room in self.rooms:
                nursery.start_soon(room.wait_delivered)
