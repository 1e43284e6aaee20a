"""Carries out a hello: first all that has to be waited for, then one step with the welcome.

What is waited for: filters, the hash of a passphrase, the session, space for the answer, and with
other nodes the logs of the rooms and the claims.  The step is in `multichat.server.greeting`.
"""

from contextlib import suppress

import trio

from multichat.errors import (
    InvalidName,
    NameTaken,
    NotRead,
    RemoteProtocolError,
    StorageFailed,
    TooManyRooms,
)
from multichat.protocol.messages import LOBBY, Hello, Invalid
from multichat.protocol.names import fold_name, parse_person_name
from multichat.server.account_requests import AccountRequests
from multichat.server.accounts import Account
from multichat.server.client import Client
from multichat.server.config import Joining, Renaming, ServerConfig
from multichat.server.filters import Filters
from multichat.server.greeting import WantedRoom, greet, wanted_rooms
from multichat.server.registry import Registry
from multichat.server.room_claims import WantedRooms
from multichat.server.stored_session import StoredSession

__all__ = ["HelloHandler", "Unavailable", "filtered"]

# The welcome is smaller than this, without what it and an error have for each of several rooms.
_WELCOME_BYTES = 4096
_ROOM_BYTES = 1536


class Unavailable(Exception):
    """The hello cannot be carried out now, here; the client may come back."""


async def filtered(
    filters: Filters, client: Client, kind: type[Joining | Renaming], text: str
) -> str | None:
    """Return the room or name that *client* asks for, as filtered; None if a filter rejects it."""
    return await filters.apply_to_request(
        kind(client=client.number, name=client.name, room=client.room.name, text=text)
    )


class HelloHandler:
    """The hellos of *client*, one at a time; *accounts* verifies their passphrases."""

    def __init__(
        self,
        client: Client,
        registry: Registry,
        filters: Filters,
        accounts: AccountRequests,
        config: ServerConfig,
    ) -> None:
        self._client, self._registry, self._filters = client, registry, filters
        self._accounts, self._config = accounts, config

    async def carry_out(self, hello: Hello) -> None:
        """Change to JSON: resume or begin a session, rename and enter, answer with the welcome.

        Raises `Unavailable`.
        """
        me = self._client
        most = 2 * self._config.max_rooms_per_client  # entering them is one step
        rooms = wanted_rooms(hello)
        excess, rooms = rooms[:-most], rooms[-most:]
        for wanted in rooms:
            wanted.passed = wanted.name and await self._filter(Joining, wanted.name)
        name = hello.name and await self._filter(Renaming, hello.name)
        if hello.name is None and me.assigned_name:  # its own session may have held it so far
            name = me.assigned_name
        told = 0 if hello.rooms is None else len(rooms) + most
        size = _WELCOME_BYTES + told * _ROOM_BYTES
        login = None if hello.login is None else await self._verify(hello)
        stored = await self._find_session(hello.session or "", size)
        if self._registry.is_shared:
            stored = await self._claim_all(hello, rooms, name, login, stored, size)
        # From here on nothing waits: all this happens in one step with the welcome.
        missed = me.send_queue.take_missed()  # in the protocol before the change
        answer = greet(
            me,
            self._registry,
            hello,
            rooms=rooms,
            excess=excess,
            name=name,
            login=login,
            stored=stored,
            limits=self._config.limits,
        )
        self._registry.arrived(me)
        if excess:
            limit = self._config.max_rooms_per_client
            answer.append(Invalid.because(TooManyRooms(limit, of_client=True)).error)
        await me.send_queue.put(missed + b"".join(map(me.codec.encode, answer)))

    async def _filter(self, kind: type[Joining | Renaming], text: str) -> str | None:
        return await filtered(self._filters, self._client, kind, text)

    async def _verify(self, hello: Hello) -> Account | RemoteProtocolError | None:
        """Return the account to which *hello* logs in, or why it does not.

        None if its session is logged in to that account: then the token proves as much.
        """
        assert hello.login is not None  # noqa: S101 - the caller has asked
        stored = await self._find_session(hello.session or "", 0)
        login = "" if stored is None else stored.login
        account = self._registry.accounts.logged_in(login)
        if account is not None and account.key == fold_name(hello.login.name):
            return None
        try:
            return await self._accounts.verify(hello.login)
        except RemoteProtocolError as error:
            return error

    async def _find_session(self, token: str, size: int) -> StoredSession | None:
        """Return the session with that *token*, once *size* bytes can be queued in that step."""
        send_queue = self._client.send_queue
        while True:
            try:
                stored = await self._registry.session_store.find(token)
            except NotRead:  # the client sees `resumed`, see docs/journal.md
                if self._registry.is_shared:  # in a moment it can be read, here or elsewhere
                    raise Unavailable from None
                stored = None
            if send_queue.has_room(size):
                break
            await send_queue.wait_for_space()  # the session may end meanwhile
        await trio.lowlevel.checkpoint_if_cancelled()
        name = self._client.assigned_name
        if stored is not None and name and fold_name(stored.name or name) != fold_name(name):
            return None  # somebody else's
        return stored

    # --- With other nodes -------------------------------------------------------------------------

    async def _claim_all(
        self,
        hello: Hello,
        rooms: list[WantedRoom],
        name: str | None,
        login: Account | RemoteProtocolError | None,
        stored: StoredSession | None,
        size: int,
    ) -> StoredSession | None:
        """Load the rooms, take the session, and claim the names; return the session.

        Then *size* bytes can be queued in that step.  A claim that is refused is no error: the
        hello is carried out without it, and its answer says so.
        """
        passed = [wanted.passed for wanted in rooms if wanted.passed]
        kept = set(map(fold_name, passed)) if passed or stored else self._client.memberships.keys()
        registry, send_queue = self._registry, self._client.send_queue
        try:
            while True:
                former = stored.rooms if stored is not None else ()
                leaving = tuple(key for key in self._client.rooms_alone() if key not in kept)
                wanted = WantedRooms(names=[LOBBY, *passed], former=former, leaving=leaving)
                await registry.rooms.prepare(wanted, self._client.grants)
                if stored is None:
                    await self._claim_rest(name, login, None, wanted, size)
                    return None
                if send_queue.peer_has_ended:
                    # A node that was frozen reads what a client sent long ago, which is connected
                    # elsewhere by now: it would be replaced by a connection that it has closed.
                    raise Unavailable
                with registry.resumptions.taking(self._client, stored.client):
                    if await registry.session_store.take(stored):
                        try:
                            await self._claim_rest(name, login, stored, wanted, size)
                        except BaseException:
                            registry.put_back(stored, self._client)
                            raise
                        return stored
                stored = await self._find_session(hello.session or "", size)
        except StorageFailed:
            raise Unavailable from None

    async def _claim_rest(
        self,
        name: str | None,
        login: Account | RemoteProtocolError | None,
        stored: StoredSession | None,
        wanted: WantedRooms,
        size: int,
    ) -> None:
        """Claim the names and the rooms, once the session is taken; see `_claim_all`."""
        account = login if isinstance(login, Account) else None
        while True:
            await self._claim_names(name, account, stored)
            await self._registry.rooms.prepare(wanted, self._client.grants)
            if self._client.send_queue.has_room(size):
                return
            # It may wait without limit: until then other nodes have it as it is.
            self._registry.settle_claims(self._client)
            await self._client.send_queue.wait_for_space()

    async def _claim_names(
        self, name: str | None, login: Account | None, stored: StoredSession | None
    ) -> None:
        client, registry = self._client, self._registry
        number, generation = client.number, client.generation
        wanted: list[str] = []
        account = login
        if stored is not None:
            number, generation = stored.client, stored.generation
            former = registry.accounts.logged_in(stored.login) if stored.login else None
            wanted += [stored.name] if former is None else [former.name, stored.name]
            account = account or former
        with suppress(InvalidName):
            wanted += [parse_person_name(name)] if name else []
        key = "" if account is None else account.key
        for each in {fold_name(each): each for each in wanted if each}.values():
            with suppress(NameTaken):
                await registry.claims.make(client, number, generation, each, account=key)
        if login is not None:
            with suppress(NameTaken):
                await registry.claims.make(
                    client, number, generation, login.name, account=key, login=True
                )
