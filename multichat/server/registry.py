"""The registry: connected clients, their numbers and names, and the rooms that they are in.

Owns what is unique on the whole server.  It changes only in functions without `await`, so that of
two clients that want the same name exactly one gets it.  For names see
`multichat.server.name_registry`, for rooms `multichat.server.open_rooms`.

Invariant: a client is in at least one room, from `add` to `leave`.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

import trio

from multichat.backend.base import Backend, DirectFate
from multichat.errors import (
    InvalidName,
    LastRoom,
    NameAssigned,
    NotInRoom,
    RemoteProtocolError,
    StorageFailed,
    TooManyRooms,
)
from multichat.log import Log
from multichat.protocol.goodbyes import TAKEN_OVER
from multichat.protocol.messages import LOBBY, Directed, Goodbye, MemberName, Members, Nonce
from multichat.protocol.names import (
    SERVER_NAME,
    default_name,
    fold_name,
    parse_person_name,
    parse_room_name,
)
from multichat.protocol.text_codec import TEXT
from multichat.server import log_lines
from multichat.server.accounts import Accounts
from multichat.server.broadcast import Receipt
from multichat.server.claims import Claims
from multichat.server.client import Client
from multichat.server.config import ServerConfig
from multichat.server.join_hook import JoinHook, OnJoin
from multichat.server.log_rate import LogRates
from multichat.server.logins import Logins
from multichat.server.member import Member
from multichat.server.name_registry import NameRegistry
from multichat.server.open_rooms import OpenRooms
from multichat.server.passphrases import Hasher
from multichat.server.refusals import DISCONNECT_CODES
from multichat.server.remote_clients import RemoteClient, RemoteClients
from multichat.server.reports import Reports
from multichat.server.resumptions import Resumptions
from multichat.server.room import Room
from multichat.server.room_claims import RoomGrants
from multichat.server.session_store import SessionStore
from multichat.server.shedding import Shedding
from multichat.server.stored_session import StoredSession
from multichat.web.config import WEBHOOK_NAME

__all__ = ["Refusal", "Registry"]

# How people write the name of an unnamed client; longer names are not looked up.
_UNNAMED = re.compile(r"(?:[Cc][Ll][Ii][Ee][Nn][Tt] )?(\d{1,15})")
_MAX_LOOKUP_CHARACTERS = 128


class Refusal(NamedTuple):
    """A field of a hello that was refused; *room* is the room that it was about, if it was."""

    error: RemoteProtocolError
    room: str = ""


class Registry:
    """The clients and rooms of one server.

    Any task may call any method; only async methods wait.  *start_soon* starts tasks of the rooms.
    *backend*, which is open, decides what nodes decide together.  *is_banned* says whether a name
    is banned, *on_join* is called for each join, and *hasher* hashes passphrases.

    *rooms* are the open rooms, *log_rates* the logs of all who speak.  *elsewhere* are the clients
    of other nodes, *claims* what clients claim before they get it.  *budget* is the memory for
    connected clients: above it, those that hold most are disconnected.  *disconnects* is how many
    clients left, by code.  *web_url* is where the server's page is, empty without one.
    """

    def __init__(
        self,
        config: ServerConfig,
        log: Log,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
        backend: Backend,
        *,
        is_banned: Callable[[str], bool] = lambda _: False,
        on_join: OnJoin | None = None,
        hasher: Hasher | None = None,
    ) -> None:
        self._join_hook = JoinHook(on_join, log, start_soon)
        self._backend = backend
        self.session_store = SessionStore(
            backend,
            config.max_sessions,
            config.timeouts.session,
            max_bytes=config.sessions_bytes,
        )
        self.disconnects = dict.fromkeys(DISCONNECT_CODES, 0)
        self.closed = ""
        self.web_url = ""
        self._emptied = trio.Event()  # once closed
        self._config = config
        self._log = log
        self.log_rates = LogRates(log, config.log_rate, start_soon)
        self._start_soon = start_soon
        self._clients: dict[int, Client] = {}
        self.accounts = Accounts(config, backend, hasher)
        self._names = NameRegistry(
            config.away_seconds,
            is_banned,
            self.accounts.check_name,
            reserved=(WEBHOOK_NAME,) if config.web.webhook_tokens else (),
        )
        self._reports = Reports(backend, self._names, self._is_here, start_soon)
        self.claims = Claims(backend)
        self.resumptions = Resumptions(backend, self.session_store, config.away_seconds)
        self.logins = Logins(self.accounts, self._names, self.claims, self._renamed, start_soon)
        self.rooms = OpenRooms(config, start_soon, backend, self.disconnect)
        self.elsewhere = RemoteClients(self._names, self.rooms)
        self.budget = Shedding(
            self._clients, config.clients_bytes, self.rooms.counts, self.disconnect, start_soon
        ).budget

    def load(self) -> None:
        """Load the accounts and topics from the backend, which is open."""
        self.accounts.load()
        self.rooms.load()

    @property
    def clients(self) -> list[Client]:
        """The connected clients, in the order in which they connected."""
        return list(self._clients.values())

    def __len__(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def _is_here(self, client: Client) -> bool:
        return self._clients.get(client.number) is client

    def find(self, who: str | int) -> Client | None:
        """Return the client with that number or name; None if there is none."""
        if isinstance(who, int):
            return self._clients.get(who)
        if len(who) > _MAX_LOOKUP_CHARACTERS:
            return None
        return self._names.find(who) or self._clients.get(_number_in(who))

    def find_elsewhere(self, who: str | int) -> RemoteClient | None:
        """Return the client with that number or name on another node; None if there is none."""
        if isinstance(who, int):
            return self.elsewhere.find(who)
        if len(who) > _MAX_LOOKUP_CHARACTERS:
            return None
        return self._names.find_elsewhere(who) or self.elsewhere.find(_number_in(who))

    def encode_who(self, room_name: str, to: Client, nonce: Nonce | None = None) -> bytes:
        """Return the encoded answer to *to*'s `Who`.  The room need not exist.

        Raises `InvalidName`.
        """
        room = self.rooms.find(room_name)
        if room:
            return room.presence.encode_who(to, nonce)
        if (remote := self.rooms.find_elsewhere(room_name)) is not None:
            members = sorted(remote.members.items())
            names = [MemberName(number, each.name) for number, each in members]
            return to.codec.encode(Members(remote.name, names, nonce=nonce))
        name = parse_room_name(room_name) if room is None else room.name
        person_in = ""
        if (person := self.find(name)) is not None:
            person_in = person.room.name
        elif (other := self.find_elsewhere(name)) is not None:
            person_in = other.room
        return to.codec.encode(Members(name, [], person_in, nonce=nonce))

    def add(self, client: Client) -> None:
        """Let *client* into the lobby.  A closed server disconnects it."""
        self._clients[client.number] = client
        client.log = self.log_rates.open(client.number, client.origin)
        self._join(client, self.rooms.open(LOBBY))
        address = client.address if self._config.log_addresses else ""
        log_lines.connected(self._log, client, address=address)
        self._reports.put_soon(client)
        if self.closed:
            self.disconnect(client, self._closing_goodbye)

    def leave(
        self,
        client: Client,
        reason: str = "",
        *,
        last_words: bytes = b"",
        code: str = "closed",
        for_good: bool = False,
        taken_over: bool = False,
    ) -> None:
        """Take *client* out at once.  Idempotent.

        *reason* is for the other members and the log, and empty if the client asked to leave.
        *code* is one of `DISCONNECT_CODES`, under which it is counted.  What
        is in the send queue, and then *last_words*, may still be written.  Its session, if it has
        one, ends if it leaves *for good*, and is already in use if it was *taken over*; otherwise
        the client may resume it.
        """
        if self._clients.get(client.number) is not client:
            return
        self.disconnects[code] += 1
        stored_session = client.stored_session
        if stored_session is not None and for_good:
            self.session_store.end(stored_session)
            stored_session = None
        elif stored_session is not None and not taken_over:
            self.session_store.disconnect(stored_session, client.origin)
        client.send_queue.close(last_words)
        self._join_hook.discard(client)
        name = self._names.name_of(client)
        self._take_out(client, reason, away=stored_session is not None)
        self.log_rates.close(client.log)
        log_lines.disconnected(self._log, client.number, name, code, reason)
        client.on_leave(reason)
        if self.closed and not self._clients:
            self._emptied.set()

    def _take_out(self, client: Client, reason: str, *, away: bool = False) -> None:
        del self._clients[client.number]
        self._names.release(client, keep=away)
        self.logins.forget(client)
        self.rooms.leave_all(client, reason, away=away)
        if self._backend.is_shared:
            keep_seconds = self._config.away_seconds if away else None
            self._backend.remove_client(
                client.number, client.generation, reason, keep_seconds=keep_seconds
            )

    @property
    def is_shared(self) -> bool:
        """Whether there may be other nodes."""
        return self._backend.is_shared

    def put_back(self, session: StoredSession, taker: Client) -> None:
        """Give *session* back, which was taken for *taker*, which has disconnected meanwhile."""
        holder = self._clients.get(session.client)
        if holder is not None and holder.stored_session is session:  # it keeps it
            holder.generation = session.generation
            self._reports.put(holder)
        else:
            self.resumptions.put_back(session, taker)

    def settle_claims(self, client: Client) -> None:
        """Give back what *client* has claimed and does not use."""
        self.rooms.settle(client.grants)
        if client.claims:
            client.claims.clear()
            self._reports.put(client)

    def arrived(self, client: Client) -> None:
        """Note that *client* has sent another request than a hello, or got the answer to one."""
        client.arriving_until, client.is_greeting = 0.0, False
        for member in client.memberships.values():
            member.room.presence.arrived(client.number)
        self._reports.put(client)

    def _join(self, client: Client, room: Room, *, resuming: bool = False) -> None:
        self.rooms.join(client, room, resuming=resuming)
        self._join_hook.joined(client)

    def kick(self, number: int, goodbye: Goodbye) -> None:
        """Disconnect client *number*, if it is here or resumes its session; see `disconnect`."""
        for taker in self.resumptions.end(number, goodbye.reason):
            self.disconnect(taker, goodbye)
        if (client := self._clients.get(number)) is not None:
            self.disconnect(client, goodbye)

    def disconnect(self, client: Client, goodbye: Goodbye) -> None:
        """Disconnect *client* with this *goodbye*.

        Its session ends if the goodbye does not allow it to reconnect.
        """
        for_good = not goodbye.reconnect
        words = client.codec.encode(goodbye)
        code, reason = goodbye.code, goodbye.reason
        self.leave(client, reason, last_words=words, code=code, for_good=for_good)

    @property
    def _closing_goodbye(self) -> Goodbye:
        return Goodbye.of("shutdown", self.closed)

    def give_session(self, client: Client) -> str:
        """Give *client* a session, which it can resume; return the token."""
        token, client.stored_session = self.session_store.create(
            client.number,
            self._names.name_of(client),
            client.session_rooms,
            self.logins.proof_of(client),
        )
        return token

    def resume(self, client: Client, stored_session: StoredSession) -> list[Refusal]:
        """Resume a session on *client*, a new connection: with its number, name and rooms.

        A connection that still has the session is replaced; the others are not told.  Returns
        errors for the name and the rooms if the client cannot have them any more; for the rooms see
        `Client.refused_room`.
        """
        with self.rooms.kept_open():
            return self._resume(client, stored_session)

    def _resume(self, client: Client, stored_session: StoredSession) -> list[Refusal]:
        refusals: list[Refusal] = []
        name, rooms = stored_session.name, stored_session.rooms
        old = self._clients.get(stored_session.client)
        log_lines.resumed(self._log, client.number, stored_session.client, name)
        self._take_out(client, "")
        self.elsewhere.take_over(stored_session.client)
        if old is not None:
            goodbye = Goodbye.of("replaced", TAKEN_OVER)
            words = old.codec.encode(goodbye)
            self.leave(old, goodbye.reason, last_words=words, code=goodbye.code, taken_over=True)
        self.session_store.resume(stored_session)
        client.number, client.stored_session = stored_session.client, stored_session
        client.generation = stored_session.generation
        client.log.client = client.number
        client.name = default_name(client.number)
        self._clients[client.number] = client
        self.logins.resume(client, stored_session.login)
        if name:
            try:
                self._names.check(client, parse_person_name(name))  # the rules may have changed
            except RemoteProtocolError as error:
                refusals.append(Refusal(error))
            else:
                self._names.take(client, name)
        opened, refused = self._reopen(rooms, client.grants)
        for room in opened:
            self._join(client, room, resuming=True)
        for refusal in refused:
            self.refuse_room(client, refusal.room, is_current=refusal.room is rooms[-1])
        refusals += refused
        if not client.memberships:
            self._join(client, self.rooms.open(LOBBY))
            client.current.is_stand_in = True
        self._join_hook.discard(client)  # for the others it has not left
        self.note_change(client)
        return refusals

    def _reopen(self, names: Sequence[str], grants: RoomGrants) -> tuple[list[Room], list[Refusal]]:
        """Open the rooms *names* of a session, and return them, and those that cannot be opened.

        If there are too many, the last ones have precedence: rooms that the client could not enter
        before are the first.
        """
        opened: list[Room] = []
        refused: list[Refusal] = []
        for name in reversed(names):
            try:
                self._check_number_of_rooms(len(opened))
                opened.append(self.rooms.open(name, resuming=True, grants=grants))
            except (InvalidName, TooManyRooms, StorageFailed) as error:
                refused.append(Refusal(error, name))
        return opened[::-1], refused[::-1]

    def note_change(self, client: Client) -> None:
        """Store the name, the rooms and the login of *client* in its session, if they differ.

        Other nodes get it, too.
        """
        self._reports.put(client)
        if (session := client.stored_session) is not None:
            name, rooms = self._names.name_of(client), client.session_rooms
            login = self.logins.proof_of(client)
            if (session.name, session.rooms, session.login) != (name, rooms, login):
                self.session_store.update(session, name, rooms, login)

    async def claim(self, client: Client, name: str) -> None:
        """Claim *name* for *client*, before `rename`; without other nodes, this does nothing.

        Raises as that does, and `StorageFailed`.
        """
        if self._backend.is_shared:
            name = self._check_name(client, name)
            await self.claims.make(
                client, client.number, client.generation, name, account=client.account
            )

    def _check_name(self, client: Client, name: str) -> str:
        name = parse_person_name(name)
        if client.assigned_name and fold_name(name) != fold_name(client.assigned_name):
            raise NameAssigned(client.assigned_name)
        self._names.check(client, name)
        return name

    def rename(self, client: Client, name: str) -> str:
        """Give *client* a *name*, and return its former one.

        Raises `InvalidName`, `NameTaken`, `NameAssigned` or `Banned`.
        """
        name = self._check_name(client, name)
        old = client.name
        self._names.take(client, name)
        self._renamed(client, old)
        return old

    def check_author(self, name: str) -> None:
        """Raise `NameTaken` or `Banned` if only a client may send messages under that *name*."""
        self._names.check_author(name)

    def _renamed(self, client: Client, old: str) -> None:
        """Announce the new name of *client*, which was *old*, and store name and login."""
        if client.name != old:
            log_lines.renamed(client, old)
            for member in client.memberships.values():
                member.room.presence.entered(member)
        self.note_change(client)

    def move(self, client: Client, room_name: str) -> None:
        """Move *client* to a room, and out of all others.

        Raises `InvalidName` or `TooManyRooms`.
        """
        self.claims.check_available()
        closing = _alone(client.memberships.values())
        room = self.rooms.open(room_name, opener=client, closing=closing, grants=client.grants)
        client.refused_room = None
        client.refused_rooms.clear()
        for member in list(client.memberships.values()):
            if member.room is not room:
                self.rooms.leave(member, f"joined {room.name}")
        self._enter(client, room)
        self._replay_notices(client)

    def enter(self, client: Client, room_name: str, *, leaving: Sequence[Member] = ()) -> bool:
        """Let *client* into a room in addition to its others, and make that its current one.

        Returns whether it was not there yet.  It is about to leave the rooms of *leaving*.  Raises
        `InvalidName` or `TooManyRooms`.
        """
        self.claims.check_available()
        if fold_name(room_name) not in client.memberships:
            self._check_number_of_rooms(len(client.memberships) - len(leaving))
        room = self.rooms.open(
            room_name, opener=client, closing=_alone(leaving), grants=client.grants
        )
        client.refused_room = None
        client.refused_rooms.pop(room.key, None)
        return self._enter(client, room)

    def _enter(self, client: Client, room: Room) -> bool:
        member = client.memberships.get(room.key)
        if member is None:
            self._join(client, room)
            log_lines.joined(client, room.name)
        else:
            member.is_stand_in = False
            client.make_current(member)
        self.note_change(client)
        return member is None

    def _check_number_of_rooms(self, rooms: int) -> None:
        """Raise `TooManyRooms` if a client in that number of *rooms* cannot enter another one."""
        most = self._config.max_rooms_per_client
        if rooms >= most:
            raise TooManyRooms(most, of_client=True)

    def exit(self, client: Client, room_name: str) -> Room:
        """Take *client* out of one of its rooms, and return that.

        Raises `NotInRoom`, or `LastRoom` if it would be in none.
        """
        member = client.memberships.get(fold_name(room_name))
        if member is None:
            raise NotInRoom(room_name)
        if len(client.memberships) == 1:
            raise LastRoom(member.room.name)
        self.leave_room(member)
        log_lines.left(client, member.room.name)
        return member.room

    def leave_room(self, member: Member, reason: str = "") -> None:
        """Take a client, which is in other rooms, out of one; for *reason* see `leave`."""
        client = member.client
        self.rooms.leave(member, reason)
        self._replay_notices(client)
        self.note_change(client)

    def _replay_notices(self, client: Client) -> None:
        """Send the notices that waited until *client* is live in a room that it has left."""
        if client.notices and not client.lagging():
            client.room.replay_rest(client.current)

    def refuse_room(self, client: Client, room_name: str, *, is_current: bool = True) -> None:
        """Note that *client* cannot enter a room; see `Client.refused_room`.

        Its session stores that with the next change, or with `note_change`.
        """
        if is_current:
            client.refused_room = room_name
        elif room_name:
            refused = client.refused_rooms
            refused[fold_name(room_name)] = room_name
            while len(refused) > self._config.max_rooms_per_client:
                del refused[next(iter(refused))]

    async def send_direct(
        self,
        sender: Client,
        to: int,
        message: Directed,
        nonce: Nonce | None,
        check: bytes,
    ) -> DirectFate:
        """Send *message* of *sender* to client *to* on any node; see `Backend.send_direct`."""
        self.claims.check_available()
        if sender.stored_session is None:  # it cannot be sent again
            nonce = None
        return await self._backend.send_direct(
            to, message, generation=sender.generation, nonce=nonce, check=check
        )

    async def broadcast(self, text: str) -> Receipt:
        """Send *text* to every client, in one of its rooms, as the server; see `Room.notify`."""
        receipts: list[Receipt] = []
        self.rooms.counts.messages += 1
        clients = 0 if self.closed else len(self._clients)
        speaker = TEXT.format_sender(SERVER_NAME, act=False)
        self._log.said(speaker, text, clients, "TX", fields={"event": "announced"})
        told: set[Client] = set()  # each client gets it in one of its rooms

        async def notify(room: Room) -> None:
            receipts.append(await room.notify(text, told))

        async with trio.open_nursery() as nursery:  # a slow room delays no other
            for room in self.rooms:
                nursery.start_soon(notify, room)
        return sum(receipts, Receipt())

    async def close(self, reason: str) -> None:
        """Deliver the messages under way, then disconnect all; no client can enter any more.

        Replays continue for at most half of the grace period; the other half is for what is queued.
        A member that still lags then is told how many messages it missed, unless it can reconnect
        for them: it speaks JSON, and they are in a file.

        Cancelled, it does the same, without the rest of the replays and what is not stored by then.
        """
        try:
            await self._wait_delivered()
        finally:
            self.closed = reason  # from here on no member is waited for
            self.rooms.shut_down(self._closing_goodbye)
            with trio.CancelScope(shield=True):
                await self._wait_delivered()
            for client in self.clients:
                if not client.lagging():
                    self.disconnect(client, self._closing_goodbye)
            try:
                with trio.move_on_after(self._config.grace_seconds / 2):
                    if self._clients:
                        await self._emptied.wait()
            finally:
                for client in self.clients:
                    if not (self._backend.location and not client.codec.is_text):
                        for member in client.lagging():
                            self.rooms.counts.missed += member.behind
                            client.send_queue.miss(member.behind, member.room.name)
                    self.disconnect(client, self._closing_goodbye)

    async def _wait_delivered(self) -> None:
        async with trio.open_nursery() as nursery:
            for room in self.rooms:
                nursery.start_soon(room.wait_delivered)


def _number_in(who: str) -> int:
    """Return the number in what may be the default name of a client; -1 if it has none."""
    unnamed = _UNNAMED.fullmatch(who)
    return int(unnamed[1]) if unnamed else -1


def _alone(members: Iterable[Member]) -> int:
    """Return how many rooms close when these *members* leave them."""
    return sum(len(member.room.members) == 1 for member in members)
