"""What one client says: rate limit, filters, nonce deduplication, and the room it is meant for.

Owns a message from its request to its room, and the answers to it.  Knows nothing of connections;
the reader of the client's requests calls it, for one request at a time.
"""

from contextlib import suppress

import trio

from multichat.errors import (
    NobodyThere,
    NonceReused,
    NotInRoom,
    Rejected,
    RemoteProtocolError,
    StorageFailed,
)
from multichat.journal.base import Keeping
from multichat.protocol.messages import (
    Accepted,
    Act,
    Direct,
    Directed,
    Error,
    Event,
    Invalid,
    Nonce,
    Notice,
    Said,
    SayBlock,
)
from multichat.protocol.names import fold_name
from multichat.server.broadcast import Receipt
from multichat.server.config import Message, ServerConfig
from multichat.server.filters import Filters
from multichat.server.limits import Bucket
from multichat.server.member import Member
from multichat.server.registry import Registry
from multichat.server.session_store import Taken, check_at, checks_of

__all__ = ["Speech"]

# How often a client that stays over its rate limit is told so.
_TELL_SLOWED_SECONDS = 60.0


class Speech:
    """Says what *member* asks to say.  Answers go to its send queue; it may have left meanwhile."""

    __slots__ = ("_config", "_filters", "_member", "_messages", "_registry", "_slowed_at")

    def __init__(
        self, member: Member, registry: Registry, config: ServerConfig, filters: Filters
    ) -> None:
        self._member, self._registry = member, registry
        self._config, self._filters = config, filters
        self._messages = Bucket(config.rate, config.burst) if config.rate is not None else None
        self._slowed_at = -_TELL_SLOWED_SECONDS

    async def say(self, said: SayBlock) -> None:
        """Say messages whose nonces are new, and answer them; see `say_new`."""
        if self._messages is None and not self._filters:
            await self._say_now(said)
        else:
            await self._say_in_time(said)

    async def _say_now(self, said: SayBlock, checks: bytes = b"") -> None:
        """Say it; *checks* are those of the original texts, if filters have changed them."""
        me, nonces = self._member, said.nonces
        try:
            self.require_room(said.room)
            if not nonces:
                await me.room.say(me, said.text)
                return
            receipt = await self._say_once(said.text, nonces, checks or checks_of(said.text))
        except (StorageFailed, NotInRoom) as error:
            await self._refuse(nonces, error)
        else:
            if receipt.epoch:
                await self._accept(nonces, receipt)

    def require_room(self, room: str | None) -> None:
        """Raise `NotInRoom` if this client is not in *room*, or its own room was refused."""
        me = self._member
        if room is None:
            if me.refused_room is not None:
                raise NotInRoom(me.refused_room)
        elif fold_name(room) != me.room.key:
            raise NotInRoom(room)

    async def _refuse(self, nonces: tuple[Nonce | None, ...], error: RemoteProtocolError) -> None:
        """Answer each of *nonces*, and once all messages without one, with *error*."""
        named = [nonce for nonce in nonces if nonce is not None]
        errors = [Invalid.because(error, nonce).error for nonce in named]
        if not nonces or len(named) < len(nonces):
            errors.append(Invalid.because(error).error)
        await self._answer(*errors)

    async def _say_once(
        self, block: str, nonces: tuple[Nonce | None, ...], checks: bytes, *, act: bool = False
    ) -> Receipt:
        """Say it, and remember its *nonces* from the step on in which it is numbered."""
        me, room = self._member, self._member.room
        taken: Taken | None = None

        def on_taken(epoch: str, first: int, keeping: Keeping | None) -> None:
            nonlocal taken
            if me.stored_session is not None:
                told = trio.Event()
                taken = Taken(
                    epoch, first, room=room.key, checks=checks, keeping=keeping, told=told
                )
                self._registry.session_store.take(me.stored_session, nonces, taken)

        try:
            return await room.say(
                me, block, act=act, nonces=nonces, checks=checks, on_taken=on_taken
            )
        finally:
            if taken is not None:
                taken.settle()

    async def say_new(self, said: SayBlock) -> None:
        """Say the messages whose nonces are new; repeated ones get the answer they had before."""
        stored_session = self._member.stored_session
        texts, nonces = said.text.split("\n"), said.nonces
        while texts:
            new = len(nonces) if stored_session is None else stored_session.count_new(nonces)
            if new:
                whole = new == len(said.nonces)
                block = said.text if whole else "\n".join(texts[:new])
                await self.say(SayBlock(block, nonces[:new], said.room))
            else:
                new, nonce = 1, nonces[0]
                answer: Accepted | Error | None
                try:
                    answer = await self._was_accepted(nonce, checks_of(texts[0]), said.room)
                except NonceReused as error:
                    answer = Invalid.because(error, nonce).error
                if answer is None:
                    continue
                await self.may_ask(1)
                await self._answer(answer)
            texts, nonces = texts[new:], nonces[new:]

    async def _was_accepted(
        self, nonce: Nonce | None, check: bytes, room: str | None = None
    ) -> Accepted | None:
        """Return the answer to the message that had this nonce before, once it is kept.

        None if there was none.  Raises `NonceReused` if it was another message.
        """
        stored_session = self._member.stored_session
        if nonce is None or stored_session is None:
            return None
        return await stored_session.answer(nonce, check, None if room is None else fold_name(room))

    async def _say_in_time(self, said: SayBlock) -> None:
        """Say as much as the rate limit allows now, through the filters, and then the rest."""
        texts, nonces = said.text.split("\n"), said.nonces
        while texts:
            some = await self.may_ask(len(texts))
            part = SayBlock("\n".join(texts[:some]), nonces[:some], said.room)
            if self._filters:
                await self._say_filtered(part)
            else:
                await self._say_now(part)
            texts, nonces = texts[some:], nonces[some:]

    async def _say_filtered(self, said: SayBlock) -> None:
        nonces = said.nonces
        try:
            self.require_room(said.room)
        except NotInRoom as error:
            await self._refuse(nonces, error)
            return
        results = await self._filters.apply([self._said(text) for text in said.text.split("\n")])
        kept = [i for i, result in enumerate(results) if result is not None]
        if kept:
            block = "\n".join(results[i].text for i in kept)  # type: ignore[union-attr]
            came = checks_of(said.text) if nonces else b""
            await self._say_now(
                SayBlock(block, tuple(nonces[i] for i in kept) if nonces else (), said.room),
                b"".join(check_at(came, i) for i in kept),
            )
        dropped = [i for i, result in enumerate(results) if result is None]
        named = [nonces[i] for i in dropped if nonces and nonces[i] is not None]
        errors = [Invalid.because(Rejected(), nonce).error for nonce in named]
        if len(dropped) > len(named):
            errors.append(Invalid.because(Rejected(len(dropped) - len(named))).error)
        if errors:
            await self._answer(*errors)

    def _said(self, text: str, *, act: bool = False) -> Said:
        me = self._member
        return Said(room=me.room.name, client=me.client, name=me.name, text=text, act=act)

    async def _filtered(self, message: Message) -> str:
        """Return its text after the filters; raises `Rejected` if they drop it."""
        [result] = await self._filters.apply([message])
        if result is None:
            raise Rejected
        return result.text

    async def may_ask(self, wanted: int) -> int:
        """Wait until at least one of *wanted* requests may be made; return how many."""
        if self._messages is None:
            return wanted
        while not (granted := self._messages.take(wanted, trio.current_time())):
            seconds = self._messages.seconds_until_one()
            await self.slow_down(seconds, f"{self._config.rate:g} messages")
        return granted

    async def slow_down(self, seconds: float, limit: str) -> None:
        """Do not read this client for so long, and tell it why now and then."""
        now = trio.current_time()
        if now - self._slowed_at >= _TELL_SLOWED_SECONDS:
            self._slowed_at = now
            await self._answer(Notice(f"slowed down: {limit} a second are taken from a client"))
        await trio.sleep(seconds)

    async def _accept(self, nonces: tuple[Nonce | None, ...], receipt: Receipt) -> None:
        await self._answer(
            *(
                Accepted(nonce=nonce, id=receipt.id_of(i))
                for i, nonce in enumerate(nonces)
                if nonce is not None
            )
        )

    async def act(self, request: Act) -> None:
        """Say an action (`/me`); raises `RemoteProtocolError`."""
        text, room, nonce = request.text, request.room, request.nonce
        check = checks_of(text, act=True)
        if (answer := await self._was_accepted(nonce, check, room)) is not None:
            await self._answer(answer)
            return
        self.require_room(room)
        if self._filters:
            text = await self._filtered(self._said(text, act=True))
        receipt = await self._say_once(text, (nonce,) if nonce is not None else (), check, act=True)
        if nonce is not None and receipt.epoch:
            await self._accept((nonce,), receipt)

    async def direct(self, request: Direct) -> None:
        """Send a private message; raises `RemoteProtocolError`."""
        me, registry = self._member, self._registry
        to, text, nonce = request.to, request.text, request.nonce
        check = checks_of(text, to=to)
        if (answer := await self._was_accepted(nonce, check)) is not None:
            await self._answer(answer)
            return
        recipient = registry.find(to)
        if recipient is None:
            raise NobodyThere(to)
        if self._filters:
            text = await self._filtered(Directed(client=me.client, name=me.name, text=text))
        await registry.direct(me, recipient, text)
        if nonce is None:
            return
        if me.stored_session is not None:
            with suppress(StorageFailed):  # the message has been delivered all the same
                await registry.session_store.take_private(me.stored_session, nonce, check)
        await self._answer(Accepted(nonce=nonce))

    async def _answer(self, *events: Event) -> None:
        """Answer this client, which is not read while its send queue is full."""
        await self._member.send_queue.put(b"".join(map(self._member.codec.encode, events)))
