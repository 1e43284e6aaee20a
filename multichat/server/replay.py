"""Replays to lagging members of one room: part by part, at the pace of each.

One task replays to a client, in all rooms in which it lags, and these take turns: see `replay`.
Reads from the room's ring, or from its log.  A replay has no rate: it refills its share of the
send queue whenever there is space.  Never acquires the room's order lock; membership is decided by
the room.
"""

from collections.abc import Callable

import trio

from multichat.backend.base import RoomLog
from multichat.errors import NotRead
from multichat.net.send_queue import SendQueue, SendResult
from multichat.net.turns import end_turn, next_turn
from multichat.protocol.messages import Error, Missed
from multichat.server.broadcast import Block, Counts
from multichat.server.client import Client
from multichat.server.lag import Lag, encode_next
from multichat.server.member import Member
from multichat.server.page_cache import PageCache
from multichat.server.recent_messages import Ring

__all__ = ["Replayer", "replay"]

# How many times per stall timeout a member is checked for progress.
_CHECKS = 4


class Replayer:
    """Replays the messages of one room, to any number of its members at once.

    *ring* has the newest messages, *log* all that are stored, read through *pages*.  A replay
    keeps at most *max_bytes* in a send queue.

    *is_here* returns whether a member is in the room.  *go_live* makes a fully caught-up member
    live again; returns whether it succeeded.  *too_slow* disconnects one that has taken nothing for
    *stall_timeout_seconds*.  *counts* are the server-wide delivery counters.
    """

    def __init__(
        self,
        log: RoomLog,
        ring: Ring,
        pages: PageCache,
        counts: Counts,
        *,
        max_bytes: int,
        stall_timeout_seconds: float,
        is_here: Callable[[Member], bool],
        go_live: Callable[[Member], bool],
        too_slow: Callable[[Member], None],
    ) -> None:
        self._log, self._ring, self._pages, self._counts = log, ring, pages, counts
        self._max_bytes = max_bytes
        self._stall_timeout = stall_timeout_seconds
        self._is_here, self._go_live, self._too_slow = is_here, go_live, too_slow

    async def replay_part(self, member: Member) -> None:
        """Replay the next part to *member*, if it lags here, or make it live.

        Waits until its send queue has space.  If cancelled, the member keeps lagging.
        """
        send_queue = member.send_queue
        while (lag := self._lag_of(member)) is not None and self._is_full(send_queue):
            await self._wait_for_space(member)
        if lag is None:
            return
        await next_turn()
        if member.lag is not lag:
            return
        start, gap_end, missed = lag.position, lag.gap_end, lag.missed
        try:
            data = await self._next_part(member, lag)
        except NotRead as error:
            if member.lag is not lag:
                return
            # One error for several pages in a row that cannot be read.
            is_first = gap_end <= start
            event = Error(error.code, str(error), room=member.named_room)
            data = member.client.codec.encode(event) if is_first else b""
            self._skip_page(lag)
        # The queue filled up during the await, or this is one message larger than its free
        # space: retry.
        if data and send_queue.try_send(data) is SendResult.FULL:
            lag.position, lag.gap_end, lag.missed = start, gap_end, missed
            await self._wait_for_space(member)
            return
        self._counts.missed += lag.missed - missed
        if (
            lag.position < self._ring.next
            or member.lag is not lag
            or (send_queue.is_half_empty() and self._go_live(member))
        ):
            return
        await self._wait_for_space(member)

    def _lag_of(self, member: Member) -> Lag | None:
        """Return how *member* lags here; None if it does not, has left, or is disconnected."""
        return member.lag if self._is_here(member) and not member.send_queue.closed else None

    def _is_full(self, send_queue: SendQueue) -> bool:
        bound = send_queue.replay_bound(self._max_bytes)
        return send_queue.waiting_bytes >= bound or not send_queue.has_room(0)

    async def _next_part(self, member: Member, lag: Lag) -> bytes:
        """Return what *member* gets next, and advance *lag*; empty if *lag* is not current."""
        ring = self._ring
        start = max(lag.position, lag.gap_end, min(self._log.first, ring.first))
        blocks: list[Block] | None = None
        if start < ring.first:
            blocks = await self._pages.read(self._log, start, ring.next)
            if member.lag is not lag:
                return b""
        # Only now: during the read the client may have changed to JSON, or named rooms.
        client, room = member.client, member.named_room
        codec, max_bytes = client.codec, member.send_queue.replay_bound(self._max_bytes)
        if blocks is None:
            missed = lag.skip_to(ring.first) if lag.position < ring.first else 0
            lag.missed += missed
            data = codec.encode(Missed(missed, room)) if missed else b""
            return data + ring.encode(lag, codec, client.number, max_bytes=max_bytes, room=room)
        if blocks:  # encoded now, not while others wait for the same page
            return encode_next(blocks, lag, codec, client.number, max_bytes=max_bytes, room=room)
        self._skip_page(lag)
        return b""

    def _skip_page(self, lag: Lag) -> None:
        """Advance *lag* past its page, of which nothing can be read."""
        start = max(lag.position, lag.gap_end, self._log.first)
        lag.gap_end = min(self._ring.first, self._pages.page_end(start))

    async def _wait_for_space(self, member: Member) -> None:
        """Wait until *member* has taken something; disconnect it if that takes too long."""
        end_turn()
        send_queue = member.send_queue
        progress, since = send_queue.progress, trio.current_time()
        while True:
            with trio.move_on_after(self._stall_timeout / _CHECKS) as check:
                await send_queue.wait_for_space()
            if not check.cancelled_caught:
                return
            if send_queue.progress != progress:
                progress, since = send_queue.progress, trio.current_time()
            elif trio.current_time() - since >= self._stall_timeout:
                if self._is_here(member):
                    self._too_slow(member)
                return


async def replay(client: Client) -> None:
    """Replay to *client* in all rooms in which it lags, a part of each in turn.

    Returns when it is live in all of them, or is disconnected.
    """
    while not client.send_queue.closed and (lagging := client.lagging()):
        for member in lagging:  # a busy room does not keep another from catching up
            await member.room.replayer.replay_part(member)
