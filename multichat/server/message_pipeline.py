"""The pipeline of a client's messages, from a decoded request to its acknowledgement.

deduplicate → rate limit → filter → publish → acknowledge

Deduplication by nonce comes first: a message that is sent again gets the answer that it had, and no
filter sees it twice.  Numbering, the journal and delivery are the room's part (`Room.publish`).
"""

from contextlib import suppress

from multichat.errors import (
    NobodyThere,
    NonceReused,
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
from multichat.server.broadcast import Receipt
from multichat.server.filters import Filters
from multichat.server.member import Member
from multichat.server.rate_limit import ClientRateLimit
from multichat.server.registry import Registry
from multichat.server.session_store import check_at, checks_of

__all__ = ["MessagePipeline"]


class MessagePipeline:
    """Publishes what *member* sends and answers it; called by one task, for one request at a time.

    Answers go to the member's send queue.  The client may disconnect at any time meanwhile.
    """

    __slots__ = ("_filters", "_member", "_rate_limit", "_registry")

    def __init__(
        self, member: Member, registry: Registry, rate_limit: ClientRateLimit, filters: Filters
    ) -> None:
        self._member, self._registry = member, registry
        self._rate_limit, self._filters = rate_limit, filters

    async def send(self, block: SayBlock, *, act: bool = False) -> None:
        """Publish the messages of *block* in order and answer each that has a nonce.

        An error is the answer too; nothing is raised.
        """
        is_limited = self._rate_limit.limits_messages
        rest: SayBlock | None = block
        while rest is not None:
            # Counting takes as long as publishing to a few members: without a limit, one is all.
            total = len(rest.nonces) or (rest.text.count("\n") + 1 if is_limited else 1)
            new = self._count_new(rest.nonces) if rest.nonces else total
            allowed = await self._rate_limit.acquire(new or 1) if is_limited else new or 1
            part, rest = (rest, None) if allowed == total else _split(rest, allowed)
            if new or not await self._answer_again(part, act=act):
                await self._publish(part, act=act)

    def _count_new(self, nonces: tuple[Nonce | None, ...]) -> int:
        """Return how many of *nonces*, from the first on, are new."""
        session = self._member.stored_session
        return len(nonces) if session is None else session.count_new(nonces)

    async def _answer_again(self, message: SayBlock, *, act: bool) -> bool:
        """Answer one *message* whose nonce is not new; False if it was not published after all."""
        nonce = message.nonces[0]
        answer: Accepted | Error | None
        try:
            answer = await self._earlier_answer(
                nonce, checks_of(message.text, act=act), message.room
            )
        except NonceReused as error:
            answer = Invalid.because(error, nonce).error
        if answer is None:
            return False
        await self._member.send(answer)
        return True

    async def _earlier_answer(
        self, nonce: Nonce | None, check: bytes, room: str | None = None
    ) -> Accepted | None:
        """Return the answer to the message that had this *nonce* before, once it is stored.

        None if there is none.  Raises `NonceReused` if that was another message.
        """
        session = self._member.stored_session
        if nonce is None or session is None:
            return None
        return await session.answer(nonce, check, None if room is None else fold_name(room))

    async def _publish(self, block: SayBlock, *, act: bool) -> None:
        """Filter, publish and acknowledge messages that are new and within the rate limit."""
        member = self._member
        answers: list[Accepted | Error] = []
        rejections: list[Error] = []
        try:
            self.require_room(block.room)
            # Of the original texts, whatever filters make of them: the client may send those again.
            checks = checks_of(block.text, act=act) if block.nonces else b""
            if self._filters:
                block, checks, rejections = await self._filter(block, checks, act=act)
            if block.text:
                receipt = await member.room.publish(
                    member, block.text, act=act, nonces=block.nonces, checks=checks
                )
                if block.nonces and receipt.epoch:
                    answers += _acknowledgements(block.nonces, receipt)
        except (StorageFailed, NotInRoom) as error:
            answers += _refusals(block.nonces, error)
        if answers or rejections:
            await member.send(*answers, *rejections)

    def require_room(self, room: str | None) -> None:
        """Raise `NotInRoom` if this client is not in *room*, or its own room was refused."""
        member = self._member
        if room is None:
            if member.refused_room is not None:
                raise NotInRoom(member.refused_room)
        elif fold_name(room) != member.room.key:
            raise NotInRoom(room)

    async def _filter(
        self, block: SayBlock, checks: bytes, *, act: bool
    ) -> tuple[SayBlock, bytes, list[Error]]:
        """Return the messages that pass the filters, their *checks*, and errors for the others."""
        member, nonces = self._member, block.nonces
        results = await self._filters.apply(
            [
                Said(
                    room=member.room.name,
                    client=member.client,
                    name=member.name,
                    text=text,
                    act=act,
                )
                for text in block.text.split("\n")
            ]
        )
        texts = [result.text for result in results if result is not None]
        passed = [i for i, result in enumerate(results) if result is not None]
        rejected = [i for i, result in enumerate(results) if result is None]
        named = [nonces[i] for i in rejected if nonces and nonces[i] is not None]
        errors = [Invalid.because(Rejected(), nonce).error for nonce in named]
        if unnamed := len(rejected) - len(named):
            errors.append(Invalid.because(Rejected(unnamed)).error)
        kept = SayBlock("\n".join(texts), tuple(nonces[i] for i in passed if nonces), block.room)
        return kept, b"".join(check_at(checks, i) for i in passed), errors

    async def direct(self, request: Direct) -> None:
        """Filter, deliver and acknowledge a private message; raises `RemoteProtocolError`."""
        member, registry = self._member, self._registry
        to, text, nonce = request.to, request.text, request.nonce
        check = checks_of(text, to=to)
        if (answer := await self._earlier_answer(nonce, check)) is not None:
            await member.send(answer)
            return
        recipient = registry.find(to)
        if recipient is None:
            raise NobodyThere(to)
        if self._filters:
            message = Directed(client=member.client, name=member.name, text=text)
            [result] = await self._filters.apply([message])
            if result is None:
                raise Rejected
            text = result.text
        await registry.direct(member, recipient, text)
        if nonce is None:
            return
        if member.stored_session is not None:
            with suppress(StorageFailed):  # the message has been delivered all the same
                await registry.session_store.remember_private(member.stored_session, nonce, check)
        await member.send(Accepted(nonce=nonce))


def _split(block: SayBlock, messages: int) -> tuple[SayBlock, SayBlock]:
    """Return the first *messages* of *block*, which has more, and the rest."""
    *texts, rest = block.text.split("\n", messages)
    return (
        SayBlock("\n".join(texts), block.nonces[:messages], block.room),
        SayBlock(rest, block.nonces[messages:], block.room),
    )


def _acknowledgements(nonces: tuple[Nonce | None, ...], receipt: Receipt) -> list[Accepted]:
    return [
        Accepted(nonce=nonce, id=receipt.id_of(i))
        for i, nonce in enumerate(nonces)
        if nonce is not None
    ]


def _refusals(nonces: tuple[Nonce | None, ...], error: RemoteProtocolError) -> list[Error]:
    """Return *error* for each of *nonces*, and once for all messages that have none."""
    named = [nonce for nonce in nonces if nonce is not None]
    errors = [Invalid.because(error, nonce).error for nonce in named]
    if not nonces or len(named) < len(nonces):
        errors.append(Invalid.because(error).error)
    return errors
