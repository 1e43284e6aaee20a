"""Waiting for slow clients: the members of a room whose send queues are full.

Decides how long a publish waits for them, and tries again when there is space.  The room decides
what happens to those that have not taken the batch then: it replays the batch to them.

Waiting is free while no member is delayed: while every live member but the sender still has data in
its send queue, and one of the slow ones has taken bytes within `slow_timeout_seconds`.  It is
free only within the first 30 s of a publish's waiting (`MAX_FREE_WAIT_SECONDS`).

All other waiting is charged to the room's wait budget, which all slow clients share.  It holds
`slow_timeout_seconds` and refills at 1/15 s per second.  After that, see `Room.start_replay` and
`replay`.
"""

from collections.abc import Mapping
from functools import partial

import trio

from multichat.net.send_queue import SendResult
from multichat.protocol.codec import Codec
from multichat.server.broadcast import Batch, Counts, Delivery
from multichat.server.config import MAX_FREE_WAIT_SECONDS
from multichat.server.member import Member
from multichat.server.token_bucket import TokenBucket

__all__ = ["SlowClients"]

_FULL, _CLOSED = SendResult.FULL, SendResult.CLOSED  # once: an enum's members are slow to look up

# The wait budget refills at this rate: slow clients take at most a fifteenth of the others' time in
# the long run, which leaves a margin below a tenth.  Its size is `slow_timeout_seconds`.
_REFILL_PER_SECOND = 1 / 15

# A shorter wait helps no client to catch up.
_SHORTEST_WAIT_SECONDS = 0.05

# How often the progress of slow clients is checked while waiting is free: no event reports it.
_CHECK_SECONDS = 0.02


class SlowClients:
    """The members that one room waits for, for one batch at a time.

    *live* are the room's live members by codec, *counts* are the server-wide delivery counters.
    Paid waiting takes at most *timeout_seconds* at a stretch.
    """

    def __init__(
        self,
        live: Mapping[Codec, Mapping[int, Member]],
        counts: Counts,
        *,
        timeout_seconds: float,
    ) -> None:
        self.waiting: dict[Member, Batch] = {}  # with what they have not taken
        self._live, self._counts = live, counts
        self._timeout = timeout_seconds
        self._budget = TokenBucket(_REFILL_PER_SECOND, timeout_seconds)  # of seconds
        self._closed = False
        self._over, self._is_free = trio.Event(), False

    async def wait(self, full: list[Member], batch: Batch, delivery: Delivery) -> None:
        """Wait until all of *full* have taken *batch*, or the wait budget is used up.

        Afterwards, even on cancellation, `waiting` holds the members that have not; call `discard`
        for each.
        """
        self.waiting = dict.fromkeys(full, batch)
        for member in full:
            self._call_when_space(member, batch, delivery)
        now = trio.current_time()
        if delivery.free_until is None:
            delivery.free_until = now + MAX_FREE_WAIT_SECONDS
        progress = {member: member.send_queue.progress for member in full}
        progress_at = now  # when one of them was last seen to have taken bytes
        while self.waiting and not self._closed:
            started = now
            is_free = now < min(delivery.free_until, progress_at + self._timeout)
            is_free = is_free and not self._somebody_is_idle(delivery.sender)
            self._is_free = is_free
            seconds = self._budget.available(now)
            if not is_free and seconds < _SHORTEST_WAIT_SECONDS:
                break
            self._over = trio.Event()
            try:
                with trio.move_on_after(_CHECK_SECONDS if is_free else seconds):
                    await self._over.wait()
            finally:
                now = trio.current_time()
                taken = {member: member.send_queue.progress for member in progress}
                if taken != progress:
                    progress, progress_at = taken, now
                # Charge even on cancellation, or senders that join, wait and leave could stall the
                # room for free.
                if not is_free:
                    self._budget.spend(now - started, now)

    def discard(self, member: Member) -> None:
        """Stop waiting for *member*, if it is waited for."""
        if self.waiting.pop(member, None) is not None and not self.waiting:
            self._over.set()

    def queue_ran_empty(self) -> None:
        """Note that a member's send queue has run empty: waiting is no longer free."""
        if self._is_free:
            self._over.set()

    def close(self) -> None:
        """Stop waiting for all members."""
        self._closed = True
        self._over.set()

    def _call_when_space(self, member: Member, batch: Batch, delivery: Delivery) -> None:
        member.send_queue.call_when_space(partial(self._try_again, member, batch, delivery))

    def _try_again(self, member: Member, batch: Batch, delivery: Delivery) -> None:
        """Queue *batch* for *member*, whose queue has space, if it is still waited for."""
        if self.waiting.get(member) is not batch:
            return
        result = member.send_queue.try_send(batch.encoded(member.client.codec))
        if result is _FULL:
            self._call_when_space(member, batch, delivery)
            return
        self.discard(member)
        if result is not _CLOSED:  # else its connection is broken, and it leaves soon
            delivery.queued += 1
            self._counts.deliveries += batch.messages

    def _somebody_is_idle(self, sender: Member | None) -> bool:
        """Return whether the send queue of a live member other than *sender* is empty."""
        speaker = None if sender is None else sender.client.number
        return any(
            not (member.send_queue.waiting_bytes or member.send_queue.closed) and client != speaker
            for members in self._live.values()
            for client, member in members.items()
        )
