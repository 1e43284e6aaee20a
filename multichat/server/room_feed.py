"""A room whose log is decided elsewhere: what was proposed, and applying what comes back.

One task (`RoomFeed.follow`) applies what the log hands out, in its order, from all nodes; a
publisher only waits for that.  If a publisher is cancelled, its messages are still applied if the
log has them.
"""

import itertools
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from dataclasses import replace
from functools import partial

import msgspec
import trio

from multichat.backend.base import Entry, Lost, Proposal, RoomLog, Skipped
from multichat.errors import StorageFailed
from multichat.protocol.ids import message_id, message_number
from multichat.protocol.messages import SayBlock
from multichat.server.broadcast import Delivery, Receipt
from multichat.server.stored_session import StoredSession, Submission

__all__ = ["RoomFeed"]


class _Proposed(msgspec.Struct, eq=False):
    """A *delivery* that was proposed, with this number of *messages*.

    *applied* is set when it is over, or never will be.  It *is_lost* if the log has lost it.
    """

    delivery: Delivery
    messages: int
    applied: trio.Event = msgspec.field(default_factory=trio.Event)
    is_lost: bool = False


_LOST = "the newest data of the storage was lost"


class RoomFeed:
    """What a room has proposed to *log*, which has a feed, and has not applied yet.

    *apply* delivers messages in the room, and *jump* continues where the log does, which has lost
    messages, or deleted some before they came.
    *start_soon* starts tasks that outlive the call.
    """

    def __init__(
        self,
        log: RoomLog,
        apply: Callable[[Delivery], Awaitable[object]],
        jump: Callable[[Lost | Skipped], None],
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._log, self._apply, self._jump = log, apply, jump
        self._start_soon = start_soon
        self._proposed: dict[Proposal, _Proposed] = {}
        self._scope = trio.CancelScope()

    @property
    def is_waiting(self) -> bool:
        """Whether the fate of something is unknown, or it is in the log and not applied yet."""
        return bool(self._proposed)

    async def wait_applied(self) -> None:
        """Wait until all that was proposed so far is applied, or never will be."""
        for proposed in list(self._proposed.values()):
            await proposed.applied.wait()

    def close(self, reason: str) -> None:
        """End `follow`."""
        self._scope.cancel(reason=reason)

    async def follow(self) -> None:
        """Apply what the log hands out until the room is closed; once, by one task."""
        with self._scope:
            while True:
                fed = await self._log.receive()
                match fed:
                    case Lost():
                        self._take_back(fed)
                    case Skipped():
                        self._skip(fed)
                    case Entry():
                        await self._take(fed)

    async def _take(self, entry: Entry) -> None:
        delivery = self._delivery_of(entry)
        try:
            await self._apply(delivery)
        finally:
            if entry.proposal is not None:
                self._settle(entry.proposal)

    def _delivery_of(self, entry: Entry) -> Delivery:
        """Return the delivery of *entry*, which has its numbers."""
        said, messages = entry.said, entry.said.text.count("\n") + 1
        proposed = None if entry.proposal is None else self._proposed.get(entry.proposal)
        if proposed is None:
            return Delivery(said, messages)
        delivery = proposed.delivery
        delivery.said, delivery.messages = said, messages
        if delivery.submission is not None:
            delivery.submission.number(said.epoch, said.first)
        return delivery

    def _skip(self, skipped: Skipped) -> None:
        for entry in skipped.entries:
            self._delivery_of(entry)
            if entry.proposal is not None:
                self._settle(entry.proposal)
        self._jump(skipped)

    def _take_back(self, lost: Lost) -> None:
        for proposal in lost.proposals:
            if (proposed := self._proposed.get(proposal)) is not None:
                proposed.is_lost = True
                if proposed.delivery.submission is not None:
                    proposed.delivery.submission.lose(_LOST)
                self._settle(proposal)
        self._jump(lost)

    def _settle(self, proposal: Proposal) -> None:
        """Note that *proposal* is applied, or never will be."""
        if (proposed := self._proposed.pop(proposal, None)) is not None:
            proposed.applied.set()
            if proposed.delivery.submission is not None:
                proposed.delivery.submission.settle()

    def note(self, proposal: Proposal, delivery: Delivery) -> None:
        """Note that *proposal* was made; its messages are to be applied as *delivery*."""
        self._proposed[proposal] = _Proposed(delivery, delivery.said.text.count("\n") + 1)

    async def wait(
        self,
        proposal: Proposal,
        delivery: Delivery,
        block: SayBlock,
        session: StoredSession | None,
    ) -> Receipt:
        """Wait until *proposal*, of *block*, by the client with *session*, is applied.

        Returns what became of it.  Cancelled, it does not wait.  Raises `StorageFailed` if it is
        not in the log.
        """
        proposed = self._proposed[proposal]
        try:
            await self._wait_decided(proposal)
        except trio.Cancelled:
            self._start_soon(partial(self._watch, proposal))
            raise
        await proposed.applied.wait()
        if proposed.is_lost:
            raise StorageFailed(_LOST)
        if not proposal.earlier:
            return delivery.receipt()
        numbers = itertools.count(delivery.said.first)
        ids = [
            proposal.earlier.get(i) or message_id(delivery.said.epoch, next(numbers))
            for i in range(block.text.count("\n") + 1)
        ]
        if session is not None and delivery.submission is not None:
            _remember(session, block, delivery.submission, ids, proposal.reused)
        return replace(delivery.receipt(), ids=tuple(ids), reused=proposal.reused)

    async def _wait_decided(self, proposal: Proposal) -> None:
        """Wait for the fate of *proposal*; settle it if nothing of it is to be applied."""
        if proposal.pending is not None:
            try:
                await proposal.pending.wait()
            except StorageFailed:
                self._settle(proposal)
                raise
        self._settle_known(proposal)

    def _settle_known(self, proposal: Proposal) -> None:
        """Settle *proposal* if the log had all its messages already: then no entry comes."""
        proposed = self._proposed.get(proposal)
        if proposed is not None and len(proposal.earlier) == proposed.messages:
            self._settle(proposal)

    async def _watch(self, proposal: Proposal) -> None:
        """Wait for the outcome of a proposal for which no other task waits."""
        with suppress(StorageFailed):
            await self._wait_decided(proposal)


def _remember(
    session: StoredSession,
    block: SayBlock,
    submission: Submission,
    ids: list[str],
    reused: Container[int],
) -> None:
    """Remember the *ids* of messages of which the log had some already, one by one.

    The nonces of those *reused* are the earlier messages', which only the log knows.
    """
    for i, (id_, nonce) in enumerate(zip(ids, block.nonces, strict=False)):
        if i in reused and nonce is not None:
            session.window.pop(nonce, None)
            continue
        epoch = id_.partition("-")[0]
        number = message_number(epoch, id_) or 0
        kept = Submission(epoch, number, room=submission.room, checks=submission.check_of(i))
        session.remember((nonce,), kept)
