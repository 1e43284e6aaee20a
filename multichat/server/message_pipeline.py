"""The pipeline of a client's messages, from a decoded request to its acknowledgement.

deduplicate → rate limit → filter → publish → acknowledge

Deduplication by nonce comes first: a message that is sent again gets the answer that it had, and no
filter sees it twice.  Numbering, the journal and delivery are the room's part (`Room.publish`).
"""

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from multichat.backend.base import NOBODY, DirectFate
from multichat.errors import (
    DeliveryUnknown,
    LoginRequired,
    NobodyThere,
    NonceReused,
    NotDelivered,
    NotInRoom,
    Rejected,
    RemoteProtocolError,
    StorageFailed,
)
from multichat.protocol.messages import (
    Accepted,
    Direct,
    Directed,
    Error,
    Invalid,
    Nonce,
    Said,
    SayBlock,
)
from multichat.protocol.names import fold_name
from multichat.protocol.timestamps import utc_now
from multichat.server.client import Client
from multichat.server.config import ServerConfig
from multichat.server.filters import Filters
from multichat.server.member import Member
from multichat.server.private_messages import tell
from multichat.server.rate_limit import ClientRateLimit
from multichat.server.registry import Registry
from multichat.server.stored_session import check_at, checks_of

__all__ = ["MessagePipeline"]


class MessagePipeline:
    """Publishes what *client* sends and answers it; called by one task, for one request at a time.

    Answers go to the client's send queue.  The client may disconnect at any time meanwhile.
    """

    __slots__ = ("_client", "_config", "_filters", "_rate_limit", "_registry")

    def __init__(
        self,
        client: Client,
        registry: Registry,
        rate_limit: ClientRateLimit,
        filters: Filters,
        config: ServerConfig,
    ) -> None:
        self._client, self._registry, self._config = client, registry, config
        self._rate_limit, self._filters = rate_limit, filters

    async def send(self, block: SayBlock) -> None:
        """Publish the messages of *block* in order and answer each that has a nonce.

        An error is the answer too; nothing is raised.
        """
        is_limited, session = self._rate_limit.limits_messages, self._client.stored_session
        rest: SayBlock | None = block
        while rest is not None:
            # Counting takes as long as publishing to a few members: without a limit, one is all.
            total = len(rest.nonces) or (rest.text.count("\n") + 1 if is_limited else 1)
            new = total if session is None or not rest.nonces else session.count_new(rest.nonces)
            allowed = await self._rate_limit.acquire(new or 1) if is_limited else new or 1
            part, rest = (rest, None) if allowed == total else _split(rest, allowed)
            if new or not await self._answer_again(part):
                await self._publish(part)

    async def _answer_again(self, message: SayBlock) -> bool:
        """Answer one *message* whose nonce is not new; False if it was not published after all."""
        nonce, check = message.nonces[0], checks_of(message.text, act=message.act)
        answer: Accepted | Error | None
        try:
            answer = await self._earlier_answer(nonce, check, message.room)
        except NonceReused as error:
            answer = Invalid.because(error, nonce).error
        if answer is not None:
            await self._client.send(answer)
        return answer is not None

    async def _earlier_answer(
        self, nonce: Nonce | None, check: bytes, room: str | None = None
    ) -> Accepted | None:
        """Return the answer to the message that had this *nonce* before, once it is stored.

        None if there is none.  Raises `NonceReused` if that was another message.
        """
        session = self._client.stored_session
        if nonce is None or session is None:
            return None
        return await session.answer(nonce, check, None if room is None else fold_name(room))

    async def _publish(self, block: SayBlock) -> None:
        """Filter, publish and acknowledge messages that are new and within the rate limit."""
        client = self._client
        answers: list[Accepted | Error] = []
        rejections: list[Error] = []
        try:
            self._require_login()
            member = client.member_in(block.room)
            # Of the original texts, whatever filters make of them: the client may send those again.
            checks = checks_of(block.text, act=block.act) if block.nonces else b""
            if self._filters:
                block, checks, rejections = await self._filter(member, block, checks)
            if block.text:
                receipt = await member.room.publish(member, block, checks)
                if receipt.epoch or receipt.ids:
                    answers += [
                        Invalid.because(NonceReused(nonce), nonce).error
                        if i in receipt.reused
                        else Accepted(nonce=nonce, id=receipt.id_of(i))
                        for i, nonce in enumerate(block.nonces)
                        if nonce is not None
                    ]
        except (StorageFailed, NotInRoom, LoginRequired) as error:
            answers += _refusals(block.nonces or [None], error)
        if answers or rejections:
            await client.send(*answers, *rejections)

    def _require_login(self) -> None:
        if not self._client.account and not self._client.may_speak:
            raise LoginRequired

    async def _filter(
        self, member: Member, block: SayBlock, checks: bytes
    ) -> tuple[SayBlock, bytes, list[Error]]:
        """Return the messages that pass the filters, their *checks*, and errors for the others."""
        client = self._client
        results = await self._filters.apply(
            [
                Said(
                    room=member.room.name,
                    client=client.number,
                    name=client.name,
                    text=text,
                    act=block.act,
                )
                for text in block.text.split("\n")
            ]
        )
        texts = [result.text for result in results if result is not None]
        passed = [i for i, result in enumerate(results) if result is not None]
        nonces = block.nonces or [None] * len(results)
        rejected = [nonces[i] for i, result in enumerate(results) if result is None]
        kept = msgspec.structs.replace(
            block,
            text="\n".join(texts),
            nonces=tuple(nonces[i] for i in passed) if block.nonces else (),
        )
        errors = _refusals(rejected, Rejected(), Rejected(rejected.count(None)))
        return kept, b"".join(check_at(checks, i) for i in passed), errors

    async def direct(self, request: Direct) -> None:
        """Filter, deliver and acknowledge a private message; raises `RemoteProtocolError`."""
        client, registry = self._client, self._registry
        to, text, nonce = request.to, request.text, request.nonce
        check = checks_of(text, to=to)
        if (answer := await self._earlier_answer(nonce, check)) is not None:
            await client.send(answer)
            return
        self._require_login()
        recipient = registry.find(to) or registry.find_elsewhere(to)
        if recipient is None:
            if nonce is None or not await self._was_delivered(nonce, check):
                raise NobodyThere(to)
            await client.send(Accepted(nonce=nonce))
            return
        if self._filters:
            message = Directed(client=client.number, name=client.name, text=text)
            [result] = await self._filters.apply([message])
            if result is None:
                raise Rejected
            text = result.text
        message = Directed(timestamp=utc_now(), client=client.number, name=client.name, text=text)
        if isinstance(recipient, Client) and not (nonce is not None and registry.is_shared):
            await tell(recipient, message, self._config)
            recipient.last_sender = client.number
        else:
            fate = await registry.send_direct(client, recipient.number, message, nonce, check)
            if fate is DirectFate.UNKNOWN:
                raise DeliveryUnknown(recipient.name)
            if fate is DirectFate.NOT_DELIVERED:
                raise NotDelivered(recipient.name)
        if nonce is None:
            return
        if client.stored_session is not None:
            with suppress(StorageFailed):  # the message has been delivered nevertheless
                await registry.session_store.remember_private(client.stored_session, nonce, check)
        await client.send(Accepted(nonce=nonce))

    async def _was_delivered(self, nonce: Nonce, check: bytes) -> bool:
        """Return whether a private message whose recipient is gone was sent before, and delivered.

        Raises `DeliveryUnknown`.
        """
        client, registry = self._client, self._registry
        if not registry.is_shared or client.stored_session is None:
            return False
        message = Directed(client=client.number, name=client.name, text="")
        fate = await registry.send_direct(client, NOBODY, message, nonce, check)
        if fate is DirectFate.UNKNOWN:
            raise DeliveryUnknown("the recipient")
        return fate is DirectFate.DELIVERED


def _split(block: SayBlock, messages: int) -> tuple[SayBlock, SayBlock]:
    """Return the first *messages* of *block*, which has more, and the rest."""
    *texts, rest = block.text.split("\n", messages)
    first, others = block.nonces[:messages], block.nonces[messages:]
    return (
        msgspec.structs.replace(block, text="\n".join(texts), nonces=first),
        msgspec.structs.replace(block, text=rest, nonces=others),
    )


def _refusals(
    nonces: Sequence[Nonce | None],
    error: RemoteProtocolError,
    without_nonce: RemoteProtocolError | None = None,
) -> list[Error]:
    """Return *error* for each nonce, and one error for all messages *without_nonce*."""
    errors = [Invalid.because(error, nonce).error for nonce in nonces if nonce is not None]
    if len(errors) < len(nonces):
        errors.append(Invalid.because(without_nonce or error).error)
    return errors
