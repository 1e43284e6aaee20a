"""A room: its members, the one order of its messages, and their delivery.

Decides synchronously, then waits: membership and delivery change in functions without `await`.
Owns the one order of its messages and the policy for slow members; knows nothing of sockets, and of
clients only their `Member`.

Invariants:

1. All members see the same messages in the same order, except those that they are told they missed.
2. The journal numbers a message at once and keeps it; then it is delivered to the members, then
   acknowledged to the sender.  Once it is numbered and kept, every member gets it, is told that it
   missed it, or leaves, even if the sender is cancelled or leaves.
3. A member that leaves is out at once: nobody waits for it, and nothing is queued for it.
4. A sender has been announced before its first message to every live member that is told of joins;
   one whose send queue was full gets a `presence` summary later.
5. A member is *live*, or *lagging*: then the room's earlier messages are replayed to it, and nobody
   waits for it.  It becomes live again in the step in which nothing lies between.
6. The room spends at most its wait budget on slow members, whoever they are, except while waiting
   delays nobody: every live member has something left in its send queue.  One publish waits for at
   most `MAX_FREE_WAIT_SECONDS` in that way.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import trio

from multichat.errors import UnknownId
from multichat.journal.base import Keeping, RoomJournal
from multichat.log import Log
from multichat.net.send_queue import SendResult
from multichat.protocol.codec import Codec
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    TOO_SLOW,
    Directed,
    Goodbye,
    HistoryPage,
    Nonce,
    Notice,
    SaidBlock,
)
from multichat.protocol.names import SERVER_NAME, fold_name
from multichat.protocol.text_codec import TEXT
from multichat.protocol.timestamps import utc_now
from multichat.server import history_pages as past
from multichat.server.announcer import Announcer
from multichat.server.broadcast import Batch, Block, Counts, Receipt, cut
from multichat.server.config import MAX_FREE_WAIT_SECONDS, Slow
from multichat.server.delivery import Delivery, Progress
from multichat.server.member import Member
from multichat.server.replay import Lag, PageCache, Ring, Rings
from multichat.server.replayer import Replayer
from multichat.server.session_store import Submission
from multichat.server.wait_budget import WaitBudget

__all__ = ["Room"]

_SENT, _QUEUED, _FULL, _CLOSED = SendResult  # once: an enum's members are slow to look up

# How often the send queues are checked while waiting is free.
_LOOK_SECONDS = 0.02

# Private messages may take this part of what a replay keeps queued; the rest is for the replay.
_ALONE_DIVISOR = 4


class Room:
    """A conversation with one order.

    Any task may call any method; only `publish`, `notify`, `settle`, `history` and `replay` wait.
    *journal* keeps the messages; *rings* bounds what all rooms keep in memory beside it, and
    *pages* caches what replays read.  The room waits for slow members at most
    *slow_timeout_seconds* at once; a lagging one that takes nothing for *stall_timeout_seconds* is
    disconnected.  A replay keeps at most *replay_bytes* in a send queue.

    *disconnect* disconnects a member.  *announce*, *away_seconds* and
    *start_soon* are for the `Announcer`.
    """

    def __init__(
        self,
        name: str,
        *,
        journal: RoomJournal,
        log: Log,
        rings: Rings,
        pages: PageCache,
        slow: Slow,
        slow_timeout_seconds: float,
        stall_timeout_seconds: float,
        replay_bytes: int,
        announce: bool,
        away_seconds: float,
        counts: Counts,
        disconnect: Callable[[Member, Goodbye], None],
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self.name, self.key = name, fold_name(name)
        self._journal = journal
        self._rings = rings
        self._ring = Ring(rings, journal.next)  # `_ring.next` is the number of what is told next
        self._log = log
        self._slow = slow
        self._slow_timeout = slow_timeout_seconds
        self._replay_bytes = replay_bytes
        self._wait_budget = WaitBudget(slow_timeout_seconds)
        self._counts, self._disconnect = counts, disconnect
        self._closing: Goodbye | None = None
        self._members: dict[int, Member] = {}
        self._by_codec: dict[Codec, dict[int, Member]] = {TEXT: {}, JSON: {}}
        self._order = trio.Lock()
        self._at_disk = False  # who has its turn
        self._waiting: dict[Member, Batch] = {}  # for these, to take what is being told
        self._delivery = Delivery()  # of that
        self._wait_over, self._waits_freely = trio.Event(), False
        self._replayer = Replayer(
            journal,
            self._ring,
            pages,
            max_bytes=replay_bytes,
            stall_timeout_seconds=stall_timeout_seconds,
            is_here=self.__contains__,
            go_live=self._go_live,
            too_slow=self._disconnect_slow,
        )
        self._announcer = Announcer(
            name,
            self._members,
            self._by_codec,
            to_text=announce,
            away_seconds=away_seconds,
            start_soon=start_soon,
        )

    @property
    def members(self) -> list[Member]:
        """The members, in the order in which they joined."""
        return list(self._members.values())

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._members)

    def __contains__(self, member: Member) -> bool:
        """Return whether *member* is in the room."""
        return self._members.get(member.client) is member

    def who(self, to: Member, nonce: Nonce | None = None) -> bytes:
        """Return the encoded answer to `who` for *to*, which is told from then on who leaves."""
        return self._announcer.who(to, nonce)

    @property
    def last_id(self) -> str | None:
        """The id of the last message that was delivered, if there is one."""
        return self._journal.id_of(self._told - 1) if self._told else None

    @property
    def _told(self) -> int:
        """The number of the message that is delivered next."""
        return self._ring.next

    @property
    def messages(self) -> int:
        """How many messages were delivered here, ever."""
        return self._told

    def number_of(self, id_: str) -> int:
        """Return the number of the message that has that id; raises `UnknownId`."""
        number = self._journal.number_of(id_)
        if number is None or number >= self._told:
            raise UnknownId
        return number

    def number_of_last(self, messages: int) -> int:
        """Return the number of the first of the last *messages* that are kept."""
        return max(self._journal.first, self._told - messages)

    def join(self, member: Member) -> None:
        """Let *member* in: it gets every message from now on."""
        self._members[member.client] = member
        self._by_codec[member.codec][member.client] = member
        member.room = self
        self._announcer.entered(member)
        self.queue_ran_empty()
        if member.notices or self._closing:  # notices from a room in which it lagged
            self.lag(member, self._told)

    def leave(self, member: Member, reason: str = "", *, away: bool = False) -> None:
        """Take *member* out at once; *reason* is empty if it asked to leave.

        If it is only *away*, the others are told when it has not come back after a while.
        """
        del self._members[member.client]
        self._forget_delivery(member)
        member.lag = None
        member.missed_presence = None
        self._announcer.left(member, reason, away=away and not self._closing)

    def _forget_delivery(self, member: Member) -> None:
        """Stop delivering to *member*, and stop waiting for it."""
        self._by_codec[member.codec].pop(member.client, None)
        self._end_wait_for(member)

    def stop_waiting_for(self, member: Member) -> None:
        """Make *member* lag if the room is waiting for it: it gets the rest at its own pace."""
        if (batch := self._waiting.get(member)) is not None:
            self._fall_behind(member, batch, self._delivery)

    def queue_ran_empty(self) -> None:
        """Note that a member's send queue has run empty: waiting is no longer free."""
        if self._waits_freely:
            self._wait_over.set()

    def close(self) -> None:
        """Release the memory of an empty room, which is not used after this."""
        self._rings.discard(self._ring)

    def renamed(self, member: Member) -> None:
        """Tell the others that *member* has a new name."""
        self._announcer.entered(member)

    def give_up(self, client: int) -> None:
        """Tell the others that *client* has left, if it is away."""
        self._announcer.give_up(client)

    def speak(self, member: Member, codec: Codec) -> None:
        """Encode everything for *member* in *codec* from now on."""
        live = self._by_codec[member.codec].pop(member.client, None)
        member.codec = codec
        if live is not None:
            self._by_codec[codec][member.client] = member

    # --- Publishing -------------------------------------------------------------------------------

    def shut_down(self, goodbye: Goodbye) -> None:
        """Accept nothing and wait for nothing more; a lagging member gets *goodbye* once live."""
        self._closing = goodbye
        self._wait_over.set()

    @property
    def busy(self) -> bool:
        """Whether a message is being delivered."""
        return self._order.locked()

    async def settle(self) -> None:
        """Wait until messages on their way are delivered; a closed room waits for no disk."""
        if not self._closing:
            async with self._order:
                return
        while self.busy and not self._at_disk:
            await trio.lowlevel.checkpoint()  # nobody is waited for here, so these are few

    @contextmanager
    def _waiting_for_disk(self) -> Iterator[None]:
        self._at_disk = True
        try:
            yield
        finally:
            self._at_disk = False

    async def publish(
        self,
        sender: Member,
        block: str,
        *,
        act: bool = False,
        nonces: tuple[Nonce | None, ...] = (),
        checks: bytes = b"",
    ) -> Receipt:
        """Publish the messages of *block*, clean and not empty, from *sender* to all others.

        Returns when the journal has stored them and every live member has them in its send queue or
        its socket, under `Slow.WAIT` after waiting for slow members.  If nobody has to be waited
        for, it returns at once, without a checkpoint.  Cancelled, it still waits for the journal,
        and for nobody else.  If the sender has left or the room is closed, nothing is published.

        *nonces* are those of the messages, if any has one, with their *checks*: the sender's
        session has them from the step in which the messages are numbered.  Raises `StorageFailed`
        if nothing was published.
        """
        if self._closing or sender not in self:
            await trio.lowlevel.checkpoint()
            return Receipt()
        journal = self._journal
        said = SaidBlock(
            journal.epoch,
            journal.next,
            utc_now(),
            self.name,
            sender.client,
            sender.name,
            block,
            act,
        )
        keeping = journal.append(said, nonces, checks)
        messages = journal.next - said.first
        submission: Submission | None = None
        if nonces and sender.stored_session is not None:
            submission = Submission(
                said.epoch,
                said.first,
                room=self.key,
                checks=checks,
                keeping=keeping,
                delivered=trio.Event(),
            )
            sender.stored_session.remember(nonces, submission)
        try:
            return await self._deliver_in_order(said, messages, sender, keeping)
        finally:
            if submission is not None:
                submission.settle()

    async def _deliver_in_order(
        self, said: SaidBlock, messages: int, sender: Member, keeping: Keeping | None
    ) -> Receipt:
        """Deliver messages that are numbered, once the journal has stored them and those before."""
        try:
            self._order.acquire_nowait()
        except trio.WouldBlock:
            with trio.CancelScope(shield=True):  # it is in the journal: it has to be delivered
                await self._order.acquire()
        try:
            if keeping is not None:
                with trio.CancelScope(shield=True), self._waiting_for_disk():
                    await keeping.wait()
            self._announcer.introduce(said.client, said.name)
            spoken = [codec for codec, them in self._by_codec.items() if them]
            blocks = cut(said, messages, spoken)
            return await self._publish(blocks, said, messages, sender, Delivery())
        finally:
            self._order.release()

    async def notify(self, text: str) -> Receipt:
        """Send *text*, which is clean and not empty, to all members as the server; see `publish`.

        It has no id and is not counted as a message.
        """
        async with self._order:
            if self._closing:
                return Receipt()
            notice = Notice(text)
            said = SaidBlock("", 0, "", self.name, 0, SERVER_NAME, text)
            batch = Batch(1, lambda codec: codec.encode(notice))
            lagging = [member for member in self._members.values() if member.lag is not None]
            for member in lagging:  # what is replayed to them has no notices
                member.keep_notice(notice)
            delivery = Delivery(notice, lagging=len(lagging))
            return await self._publish(iter([batch]), said, 1, None, delivery)

    async def _publish(
        self,
        batches: Iterator[Batch],
        said: SaidBlock,
        messages: int,
        sender: Member | None,
        delivery: Delivery,
    ) -> Receipt:
        """Deliver to all live members; the others get a block by replay.

        Cancelled, it delivers the rest without waiting for anybody.
        """
        clients = len(self._members) + (sender is not None and sender.client not in self._members)
        try:
            for batch in batches:
                full = self._try_send_to_all(batch, sender, delivery)
                if not delivery.logged:  # before any wait, so that the log is in order
                    delivery.logged = True
                    speaker = TEXT.format_sender(said.name, act=said.act)
                    if sender is None:
                        self._log.said(speaker, said.text, clients, "TX")
                    else:
                        sender.log.said(speaker, said.text, messages, clients)
                if full:
                    await self._treat_slow(full, batch, sender, delivery)
        finally:
            for batch in batches:  # cancelled: there are some left
                for member in self._try_send_to_all(batch, sender, delivery):
                    self._fall_behind(member, batch, delivery)
        return delivery.receipt(said)

    def _try_send_to_all(
        self, batch: Batch, sender: Member | None, delivery: Delivery
    ) -> list[Member]:
        """Queue *batch* for every live member; return those whose send queue is full.

        Membership cannot change half-way, and members that keep up get the batch before the room
        waits for slow ones.
        """
        delivered = queued = broken = 0
        full: list[Member] = []
        if sender is not None:
            sender = self._members.get(sender.client)  # it may have reconnected meanwhile
        for codec, members in self._by_codec.items():
            if sender is not None and len(members) == 1 and sender.client in members:
                continue
            if not members:
                continue
            data = batch.spelled(codec)
            for member in members.values():
                if member is sender:
                    continue
                try_send = member.send_queue.try_send(data)
                if try_send is _SENT:
                    delivered += 1
                elif try_send is _QUEUED:
                    queued += 1
                elif try_send is _FULL:
                    full.append(member)
                else:
                    broken += 1
        if isinstance(batch, Block):
            if sender is not None and sender.lag is not None:
                sender.lag.note_own(batch.said.first, batch.end)
            others = len(self._members) - (sender is not None)
            delivery.lagging += others - delivered - queued - broken - len(full)
            self._counts.messages += batch.messages
            self._ring.add(batch)
        delivery.delivered += delivered
        delivery.queued += queued
        delivery.dropped += broken
        self._counts.deliveries += batch.messages * (delivered + queued)
        return full

    async def _treat_slow(
        self, full: list[Member], batch: Batch, sender: Member | None, delivery: Delivery
    ) -> None:
        """Apply the policy for slow members to *full*."""
        match self._slow:
            case Slow.WAIT:
                await self._wait_for(full, batch, sender, delivery)
            case Slow.DROP:
                for member in full:
                    member.send_queue.miss(batch.messages)
                    self._counts.skipped += batch.messages
                    delivery.dropped += 1
            case Slow.DISCONNECT:
                for member in full:
                    self._disconnect_slow(member)
                    delivery.dropped += 1

    async def _wait_for(
        self, full: list[Member], batch: Batch, sender: Member | None, delivery: Delivery
    ) -> None:
        """Wait until all of *full* have taken *batch*, or the wait budget is spent.

        Those that have not taken it then, or when this is cancelled, become lagging.
        """
        self._waiting, self._delivery = dict.fromkeys(full, batch), delivery
        for member in full:
            member.send_queue.call_when_space(
                partial(self._try_send_again, member, batch, delivery)
            )
        now = trio.current_time()
        if delivery.free_until is None:
            delivery.free_until = now + MAX_FREE_WAIT_SECONDS
        progress = Progress(full, now)
        try:
            while self._waiting and not self._closing:
                started = now
                is_free = now < min(delivery.free_until, progress.at + self._slow_timeout)
                is_free = is_free and not self._somebody_is_dry(sender)
                seconds = _LOOK_SECONDS if is_free else self._wait_budget.left(now)
                self._waits_freely = is_free
                if not seconds:
                    break
                self._wait_over = trio.Event()
                try:
                    with trio.move_on_after(seconds):
                        await self._wait_over.wait()
                finally:  # also if the sender leaves: others could come and spend as much again
                    now = trio.current_time()
                    progress.look(now)
                    if not is_free:
                        self._wait_budget.spend(now - started, now)
        finally:
            for member in list(self._waiting):
                self._fall_behind(member, batch, delivery)

    def _try_send_again(self, member: Member, batch: Batch, delivery: Delivery) -> None:
        """Queue *batch* for *member*, whose queue has space again, if the room waits for it."""
        if self._waiting.get(member) is not batch:
            return
        try_send = member.send_queue.try_send(batch.spelled(member.codec))
        if try_send is _FULL:
            member.send_queue.call_when_space(
                partial(self._try_send_again, member, batch, delivery)
            )
            return
        self._end_wait_for(member)
        if try_send is not _CLOSED:  # else its connection is broken, and it leaves soon
            delivery.queued += 1
            self._counts.deliveries += batch.messages

    def _end_wait_for(self, member: Member) -> None:
        if self._waiting.pop(member, None) is not None and not self._waiting:
            self._wait_over.set()

    def _somebody_is_dry(self, sender: Member | None) -> bool:
        """Return whether the send queue of a live member other than *sender* is empty.

        Until then waiting delays nobody.
        """
        speaker = None if sender is None else sender.client
        return any(
            not (member.send_queue.waiting_bytes or member.send_queue.closed) and client != speaker
            for members in self._by_codec.values()
            for client, member in members.items()
        )

    def _fall_behind(self, member: Member, batch: Batch, delivery: Delivery) -> None:
        """Make *member* lag from *batch* on, which it has not taken."""
        if isinstance(batch, Block):
            self.lag(member, batch.said.first)
        else:
            self.lag(member, self._told)
            if delivery.notice is not None:
                member.keep_notice(delivery.notice)
        delivery.lagging += 1

    def _disconnect_slow(self, member: Member) -> None:
        self._counts.too_slow += 1
        self._disconnect(member, self._closing or Goodbye.of("too-slow", TOO_SLOW))

    def try_send_alone(self, member: Member, event: Directed | Notice) -> SendResult:
        """Queue *event* for *member* alone, unless that would delay the messages of the room.

        Half of its send queue may be for that, and a part of what a replay keeps there.
        """
        send_queue = member.send_queue
        if member.lag is None:
            may_be_queued = send_queue.is_half_empty()
        else:
            part = send_queue.fit(self._replay_bytes) // _ALONE_DIVISOR
            may_be_queued = send_queue.waiting_bytes <= part
        if send_queue.closed or may_be_queued:
            return send_queue.try_send(member.codec.encode(event))
        return _FULL

    # --- History and replay -----------------------------------------------------------------------

    async def history(self, limit: int, before: str | None, nonce: Nonce | None) -> HistoryPage:
        """Return the last *limit* messages, or those before that id, within the page's bounds.

        Raises `UnknownId` and `NotRead`.
        """
        stop = self._told if before is None else self.number_of(before)
        return await past.read_history(self._journal, self._ring, stop, limit, nonce)

    def lag(self, member: Member, position: int) -> None:
        """Replay delivered messages to *member* from number *position* on, until it is live again.

        Until then nobody waits for it.
        """
        self._forget_delivery(member)
        member.lag = Lag(position)
        member.on_lag()

    def replay_from(self, member: Member, position: int) -> None:
        """Replay to *member* from number *position* on; see `lag`.

        Deleted messages count as missed, except those that its session knows as its own.
        """
        self.lag(member, position)
        if member.lag is not None and member.stored_session is not None:
            journal = self._journal
            # A message that is not delivered yet is noted when it is.
            ends = {**journal.earlier, journal.epoch: self._told}
            for number in member.stored_session.numbers(ends):
                member.lag.note_own(number, number + 1)

    async def replay(self, member: Member) -> None:
        """Replay messages to *member* while it lags here; see `Replayer.replay`."""
        await self._replayer.replay(member)

    def _go_live(self, member: Member) -> bool:
        """Make *member* live if its send queue takes the notices that wait for that."""
        if member.notices:
            if (
                member.send_queue.try_send(b"".join(map(member.codec.encode, member.notices)))
                is _FULL
            ):
                return False
            member.notices = ()
        member.lag = None
        self._by_codec[member.codec][member.client] = member
        self.queue_ran_empty()
        self._announcer.make_up(member)
        if self._closing:
            self._disconnect(member, self._closing)
        return True
