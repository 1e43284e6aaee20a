"""Carries out one client's requests about accounts, topics, and those of operators.

Passphrases are accepted only over connections that others on the network cannot read, and are in no
log and no error.
"""

from typing import TYPE_CHECKING

import msgspec
import trio

from multichat.errors import Insecure, InvalidRequest, LocalProtocolError, NotOperator
from multichat.protocol.messages import (
    Announce,
    Ban,
    BanList,
    Bans,
    ChangePassphrase,
    Credentials,
    Event,
    Kick,
    LoggedIn,
    LoggedOut,
    Login,
    Logout,
    Nonce,
    Notice,
    Register,
    Request,
    SetTopic,
    TopicChanged,
    Unban,
)
from multichat.protocol.text_codec import TEXT
from multichat.server import log_lines
from multichat.server.accounts import Account
from multichat.server.client import Client
from multichat.server.origin import Origin
from multichat.server.registry import Registry

if TYPE_CHECKING:
    from multichat.server.admin_commands import AdminCommands

__all__ = ["AccountRequests"]

_NOT_LASTING = "the server keeps no journal: accounts last until it ends"


class AccountRequests:
    """The requests of *client*, which comes from *origin*.

    *is_private*: others on the network cannot read its connection.  *admin* are the operator's
    commands.
    """

    def __init__(
        self,
        client: Client,
        registry: Registry,
        admin: "AdminCommands",
        origin: Origin | None,
        *,
        is_private: bool,
    ) -> None:
        self._client, self._registry, self._admin = client, registry, admin
        self._origin, self._is_private = origin, is_private

    async def verify(self, credentials: Login | Credentials) -> Account:
        """Return the account with these *credentials*; raises `RemoteProtocolError`."""
        self._require_private()
        name, passphrase = credentials.name, credentials.passphrase
        account = await self._registry.accounts.log_in(name, passphrase, self._origin)
        await trio.lowlevel.checkpoint_if_cancelled()  # it may have been disconnected meanwhile
        return account

    def _require_private(self) -> None:
        if not self._is_private:
            raise Insecure

    async def carry_out(self, request: Request) -> None:
        """Carry out *request* and answer it; raises `RemoteProtocolError` if it is refused."""
        me, logins = self._client, self._registry.logins
        match request:
            case Register(passphrase=passphrase, nonce=nonce):
                self._require_private()
                account = await logins.register(me, passphrase, self._origin)
                self._registry.settle_claims(me)
                answer: list[Event] = [LoggedIn(account.name, nonce=nonce)]
                if not self._registry.accounts.are_lasting:
                    answer.append(Notice(_NOT_LASTING))
                await me.send(*answer)
            case Login(nonce=nonce):
                account = await self.verify(request)
                await logins.claim(me, account)
                logins.log_in(me, account)
                self._registry.settle_claims(me)
                await me.send(LoggedIn(account.name, nonce=nonce))
            case Logout(nonce=nonce):
                logins.log_out(me)
                await me.send(LoggedOut(me.name, nonce=nonce))
            case ChangePassphrase(passphrase=passphrase, nonce=nonce):
                self._require_private()
                await logins.change_passphrase(me, passphrase, self._origin)
                text = "your passphrase is changed, and your other sessions are logged out"
                await me.send(Notice(text, nonce=nonce))
            case _:
                try:
                    await self._operate(request)
                except LocalProtocolError as error:  # what the operator asked for
                    raise InvalidRequest(str(error)) from None

    async def _operate(self, request: Request) -> None:
        admin, me = self._admin, self._client
        if isinstance(request, SetTopic) and request.text is None:
            room = me.member_in(request.room).room
            await me.send(TopicChanged(room.name, room.topic, nonce=request.nonce))
            return
        if not self._registry.accounts.is_operator(me.account):
            raise NotOperator
        if not isinstance(request, SetTopic):
            log_lines.operated(me, self._logged(request))
        match request:
            case Kick(who=who, reason=reason, nonce=nonce):
                await self._answer(admin.kick(who, reason), nonce)
            case Ban(what=what, time=time, reason=reason, nonce=nonce):
                await self._answer(admin.ban(what, time, reason, by=me), nonce)
            case Unban(what=what, nonce=nonce):
                await self._answer(admin.unban(what), nonce)
            case Bans(nonce=nonce):
                await me.send(BanList(admin.bans(), nonce=nonce))
            case Announce(text=text, nonce=nonce):
                await admin.announce(text)
                await self._answer("the announcement was sent", nonce)
            case SetTopic(text=str() as text, room=room_name, nonce=nonce):
                room = me.member_in(room_name).room
                topic = "" if me.log.hides_messages else f" {text}"
                log_lines.operated(me, f"/topic{topic} (in {room.name})")
                changed = await self._registry.rooms.set_topic(room, text, me)
                await me.send(msgspec.structs.replace(changed, nonce=nonce))

    def _logged(self, request: Request) -> str:
        """Return *request* as it may be logged: perhaps without what somebody is to read."""
        if self._client.log.hides_messages:
            match request:
                case Kick() | Ban():
                    request = msgspec.structs.replace(request, reason="")
                case Announce():
                    request = msgspec.structs.replace(request, text="")
        return TEXT.encode_request(request).rstrip()  # type: ignore[arg-type]

    async def _answer(self, line: str, nonce: Nonce | None) -> None:
        await self._client.send(Notice(line, nonce=nonce))
