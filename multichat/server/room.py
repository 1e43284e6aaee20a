"""A room: its members, the one order of its messages, and their delivery.

Decides synchronously, then waits: membership and delivery change in functions without `await`.
Owns the order of its messages and the policy for slow members.  Knows nothing of sockets, and of
clients only what `Member` and `Client` hold.

Invariants:

1. All members get the same messages in the same order, except those reported as missed.
2. Messages are proposed to the room's log, and applied in its order.  A local log numbers them at
   once: they are applied in the task of their publisher, when they are stored and it is their turn.
   A log with a feed is decided elsewhere: see `multichat.server.room_feed`.  Then they
   are acknowledged to the sender.  Once they are in the log, every member gets them, is told that
   it missed them, or leaves, even if the sender is cancelled or leaves.
3. A member that leaves is out at once: no task waits for it, and nothing is queued for it.
4. A sender is announced before its first message to every live member that is told of joins; one
   whose send queue was full gets a `presence` summary later.
5. A member is *live*, or *lagging*: then the room's earlier messages are replayed to it, and nobody
   waits for it.  It becomes live again in the step in which it has all of them.
6. The room waits for slow members only within the limits of `multichat.server.slow_clients`.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import trio

from multichat.backend.base import Lost, Proposal, RoomLog, Skipped
from multichat.errors import UnknownId
from multichat.net.send_queue import SendResult
from multichat.protocol.codec import Codec
from multichat.protocol.goodbyes import TOO_SLOW
from multichat.protocol.messages import (
    Goodbye,
    HistoryPage,
    Nonce,
    Notice,
    SaidBlock,
    SayBlock,
    TopicChanged,
)
from multichat.protocol.names import SERVER_NAME, fold_name
from multichat.protocol.text_codec import TEXT
from multichat.server import history_pages
from multichat.server.broadcast import Batch, Block, Counts, Delivery, Receipt, encode_blocks
from multichat.server.client import Client
from multichat.server.config import ServerConfig, Slow
from multichat.server.lag import Lag
from multichat.server.member import Member
from multichat.server.page_cache import PageCache
from multichat.server.presence_announcer import PresenceAnnouncer
from multichat.server.proposals import Author, propose
from multichat.server.recent_messages import Ring, RingBudget
from multichat.server.remote_clients import RemoteClient
from multichat.server.replay import Replayer
from multichat.server.room_feed import RoomFeed
from multichat.server.slow_clients import SlowClients

__all__ = ["Room"]

_SENT, _QUEUED, _FULL, _CLOSED = SendResult  # once: an enum's members are slow to look up


class Room:
    """A room: members and one order of messages.

    Any task may call any method; only async methods wait.  *log* orders and stores the messages;
    *rings* bounds what all rooms keep in memory besides, and *pages* caches what replays read.
    *disconnect* disconnects a client, *start_soon* starts a task that outlives the call.  *remote*
    are its members on other nodes.

    *members*, by client id, are in the order in which they joined; only the room changes them.
    *presence* answers who is there, *slow_clients* does the waiting for full queues, *replayer*
    replays to members that lag.  *feed* applies what is decided elsewhere, None with a local log:
    its `follow` MUST be started.
    """

    def __init__(
        self,
        name: str,
        *,
        log: RoomLog,
        config: ServerConfig,
        rings: RingBudget,
        pages: PageCache,
        counts: Counts,
        disconnect: Callable[[Client, Goodbye], None],
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
        remote: Mapping[int, RemoteClient] = MappingProxyType({}),
    ) -> None:
        self.name, self.key, self.topic = name, fold_name(name), ""
        self._log = log
        self._rings, self._pages = rings, pages
        self._ring = Ring(rings, log.next)  # its `next` is delivered next
        self._slow = config.slow
        self._counts, self._disconnect, self._start_soon = counts, disconnect, start_soon
        self._closing: Goodbye | None = None
        self.members: dict[int, Member] = {}
        self._by_codec: dict[Codec, dict[int, Member]] = defaultdict(dict)
        self._order = trio.Lock()
        self._at_disk = False  # the publish whose turn it is waits for the disk
        self.feed = (
            RoomFeed(log, self._apply_in_turn, self._jump, start_soon) if log.has_feed else None
        )
        self.slow_clients = SlowClients(
            self._by_codec, counts, timeout_seconds=config.slow_timeout_seconds
        )
        self._delivery: Delivery | None = None  # set while it waits for slow members
        self.replayer = Replayer(
            log,
            self._ring,
            pages,
            counts,
            max_bytes=config.replay.queue_bytes,
            stall_timeout_seconds=config.stall_timeout_seconds,
            is_here=self.__contains__,
            go_live=self._go_live,
            too_slow=self._disconnect_slow,
        )
        self.presence = PresenceAnnouncer(
            name,
            self.members,
            self._by_codec,
            to_text=config.announce,
            away_seconds=config.away_seconds,
            start_soon=start_soon,
            remote=remote,
        )

    def __len__(self) -> int:
        """How many members there are, on all nodes."""
        return self.presence.count

    def __bool__(self) -> bool:
        """Return whether it has members on this node."""
        return bool(self.members)

    def __contains__(self, member: Member) -> bool:
        """Return whether *member* is in the room."""
        return self.members.get(member.client.number) is member

    @property
    def last_id(self) -> str | None:
        """The id of the last message that was delivered, if there is one."""
        return self.id_before(self.next)

    def id_before(self, number: int) -> str | None:
        """Return the id of the message before that *number*, if there is one."""
        return self._log.id_of(number - 1) if number else None

    @property
    def next(self) -> int:
        """The number of the message that is delivered next, counted from 0, also over restarts."""
        return self._ring.next

    def number_of(self, id_: str) -> int:
        """Return the number of the message that has that id; raises `UnknownId`."""
        number = self._log.number_of(id_)
        if number is None or number >= self.next:
            raise UnknownId
        return number

    def number_of_last(self, messages: int) -> int:
        """Return the number of the first of the last *messages* that are stored."""
        return max(self._log.first, self.next - messages)

    def join(self, client: Client) -> None:
        """Let *client* in: it gets every message from now on.  The room is its current one."""
        member = Member(client, self)
        self.members[client.number] = self._by_codec[client.codec][client.number] = member
        client.memberships[self.key] = client.current = member
        self.presence.entered(member)
        self.slow_clients.queue_ran_empty()
        if client.notices or self._closing:  # notices from a room in which it lagged
            self.start_replay(member, self.next)

    def leave(self, member: Member, reason: str = "", *, away: bool = False) -> None:
        """Take *member* out at once; *reason* is empty if it asked to leave.

        The room that its client entered last of the others, if there is one, is its current one.
        If it is *away* and may reconnect, the others are told only if it does not, after a while.
        """
        client = member.client
        del self.members[client.number], client.memberships[self.key]
        if client.current is member and client.memberships:
            client.current = next(reversed(client.memberships.values()))
        self._stop_delivery(member)
        member.lag = None
        member.missed_presence = None
        self.presence.left(member, reason, away=away and not self._closing)

    def _stop_delivery(self, member: Member) -> None:
        """Stop delivering to *member*, and stop waiting for it."""
        self._by_codec[member.client.codec].pop(member.client.number, None)
        self.slow_clients.discard(member)

    def stop_waiting_for(self, member: Member) -> None:
        """Make *member* lag if the room is waiting for it: it gets the rest at its own pace."""
        batch = self.slow_clients.waiting.get(member)
        if batch is not None and self._delivery is not None:
            self._fall_behind(member, batch, self._delivery)

    def close(self) -> None:
        """Release the memory of an empty room, which is not used after this."""
        if self.feed is not None:
            self.feed.close(f"the room {self.name} is closed")
        self._log.close()
        self._rings.discard(self._ring)

    def change_codec(self, member: Member, codec: Codec) -> None:
        """Deliver to *member* in *codec*, which its client is about to have, from now on."""
        client = member.client
        if self._by_codec[client.codec].pop(client.number, None) is not None:
            self._by_codec[codec][client.number] = member

    # --- Publishing -------------------------------------------------------------------------------

    def shut_down(self, goodbye: Goodbye) -> None:
        """Stop accepting messages and waiting; a lagging member gets *goodbye* once it is live."""
        self._closing = goodbye
        self.slow_clients.close()

    @property
    def is_delivering(self) -> bool:
        """Whether a message is being delivered, or will be as soon as it is decided."""
        return self._order.locked() or (self.feed is not None and self.feed.is_waiting)

    async def wait_delivered(self) -> None:
        """Wait until the messages under way are delivered.

        Once the room is closed, it does not wait for the disk, nor for what is not decided.
        """
        if not self._closing:
            if self.feed is not None:
                await self.feed.wait_applied()
            async with self._order:
                return
        while self._order.locked() and not self._at_disk:
            await trio.lowlevel.checkpoint()  # no member is waited for, so these are few

    async def publish(self, sender: Member, block: SayBlock, checks: bytes = b"") -> Receipt:
        """Publish the messages of *block*, clean and not empty, from *sender* to all others.

        Returns when they are stored and every live member of this node has them in its send queue
        or its socket, under `Slow.WAIT` after waiting for slow members.  With a local log, and if
        nobody has to be waited for, it returns at once, without a checkpoint; cancelled, it still
        waits until they are stored, and for nobody else.  With a log that has a feed it returns at
        once when it is cancelled, and they may be delivered later.  If the sender has left or the
        room is closed, nothing is published.

        If the messages have nonces, *checks* are theirs: the sender's session has them from the
        step in which the messages are proposed.  Raises `StorageFailed` if nothing was published.
        """
        if self._closing or sender not in self:
            await trio.lowlevel.checkpoint()
            return Receipt()
        client = sender.client
        author = Author(
            client.name, client.log, client.stored_session, client.number, client.generation
        )
        return await self._publish(author, block, checks, sender)

    async def post(self, author: Author, block: SayBlock, checks: bytes = b"") -> Receipt:
        """Publish *block* from *author*, which is not a client here; see `publish`."""
        if self._closing:
            await trio.lowlevel.checkpoint()
            return Receipt()
        return await self._publish(author, block, checks)

    async def _publish(
        self, author: Author, block: SayBlock, checks: bytes, sender: Member | None = None
    ) -> Receipt:
        delivery, proposal = self._propose(author, block, checks)
        if self.feed is not None:
            return await self.feed.wait(proposal, delivery, block, author.session)
        delivery.sender = sender
        try:
            self._order.acquire_nowait()
        except trio.WouldBlock:
            with trio.CancelScope(shield=True):  # it is in the log: it has to be delivered
                await self._order.acquire()
        try:
            if proposal.pending is not None:
                self._at_disk = True
                try:
                    with trio.CancelScope(shield=True):
                        await proposal.pending.wait()
                finally:
                    self._at_disk = False
            return await self._apply(delivery)
        finally:
            self._order.release()
            if delivery.submission is not None:
                delivery.submission.settle()

    def _propose(self, author: Author, block: SayBlock, checks: bytes) -> tuple[Delivery, Proposal]:
        delivery, proposal = propose(self._log, self.name, self.key, author, block, checks)
        if self.feed is not None:
            self.feed.note(proposal, delivery)
        return delivery, proposal

    def _apply(self, delivery: Delivery) -> Awaitable[Receipt]:
        """Deliver messages whose turn it is in the order of the log, which the caller holds."""
        said = delivery.said
        self.presence.introduce(said.client, said.name)
        codecs = [codec for codec, members in self._by_codec.items() if members]
        return self._deliver(encode_blocks(said, delivery.messages, codecs), delivery)

    async def _apply_in_turn(self, delivery: Delivery) -> None:
        """Deliver what the log hands out."""
        # The client may have resumed here, or elsewhere, since it said this.
        delivery.sender = self.members.get(delivery.said.client)
        async with self._order:
            self._skip_to(delivery.said.first)
            await self._apply(delivery)

    def _skip_to(self, first: int) -> None:
        """Have the members told of the messages before *first* that were deleted meanwhile.

        That happens while this node cannot reach the log.
        """
        if first > self.next:
            for members in self._by_codec.values():
                for member in list(members.values()):
                    self.replay_rest(member)

    def _jump(self, fed: Lost | Skipped) -> None:
        """Continue where the log does: it has lost messages, or deleted some before they came."""
        if isinstance(fed, Lost):
            self._lose(fed)
        else:
            self._skip_to(fed.next)
            self._ring.skip_to(fed.next)

    def _lose(self, lost: Lost) -> None:
        self._ring.truncate(lost.next)
        self._pages.forget(self._log.epoch)
        for member in self.members.values():
            if member.lag is not None:
                member.lag.go_back(lost.next)
        if lost.count:
            are = "1 message was" if lost.count == 1 else f"{lost.count} messages were"
            text = f"{are} lost in {self.name}: the newest data of the storage was lost"
            self._start_soon(partial(self._tell_all, text))

    async def _tell_all(self, text: str) -> None:
        await self.notify(text, set())

    # --- Delivery ---------------------------------------------------------------------------------

    async def notify(self, text: str, told: set[Client]) -> Receipt:
        """Send *text*, which is clean and not empty, to the members as the server; see `publish`.

        It has no id and is not counted as a message.  The clients in *told* have it from another
        room; the others are added.
        """
        async with self._order:
            if self._closing:
                return Receipt()
            notice = Notice(text)
            said = SaidBlock("", 0, "", self.name, 0, SERVER_NAME, text)
            batch = Batch(1, lambda codec: codec.encode(notice))
            to: dict[Codec, dict[int, Member]] = defaultdict(dict)
            lagging = 0
            for number, member in self.members.items():
                client = member.client
                if client in told:
                    continue
                told.add(client)
                if member.lag is None:
                    to[client.codec][number] = member
                else:  # notices are not in the journal, so a replay would omit them
                    client.keep_notice(notice)
                    lagging += 1
            if not (lagging or any(to.values())):
                return Receipt()
            delivery = Delivery(said, 1, notice=notice, to=to, lagging=lagging)
            return await self._deliver(iter([batch]), delivery)

    def set_topic(self, changed: TopicChanged, by: Client | None) -> None:
        """Note a new topic, and tell the members who know several rooms, but not *by*."""
        self.topic = changed.text
        for member in list(self.members.values()):
            client = member.client
            if client is by or not client.names_rooms:
                continue
            if member.lag is None:
                if member.send_queue.try_send(client.codec.encode(changed)) is not _FULL:
                    continue
                self.replay_rest(member)
            client.keep_notice(changed)

    async def _deliver(self, batches: Iterator[Batch], delivery: Delivery) -> Receipt:
        """Deliver to all live members; the others get a block by replay.

        Cancelled, it delivers the rest without waiting for anybody.
        """
        is_logged = False
        try:
            for batch in batches:
                full = self._try_send_to_all(batch, delivery)
                if not is_logged:  # before any wait, so that the log is in order
                    is_logged = True
                    self._log_delivery(delivery)
                if full:
                    await self._treat_slow(full, batch, delivery)
        finally:
            for batch in batches:  # cancelled: there are some left
                for member in self._try_send_to_all(batch, delivery):
                    self._fall_behind(member, batch, delivery)
        return delivery.receipt()

    def _log_delivery(self, delivery: Delivery) -> None:
        said = delivery.said
        if delivery.log is not None:  # the server's own is logged once for all rooms
            speaker = TEXT.format_sender(said.name, act=said.act)
            # The sender counts, also when it has left.
            away = bool(said.client) and said.client not in self.members
            clients = len(self.members) + away
            delivery.log.said(speaker, said, delivery.messages, clients)

    def _try_send_to_all(self, batch: Batch, delivery: Delivery) -> list[Member]:
        """Queue *batch* for every live member; return those whose send queue is full.

        Membership cannot change half-way, and members that keep up get the batch before the room
        waits for slow ones.
        """
        delivered = queued = broken = 0
        full: list[Member] = []
        sender, number = delivery.sender, 0
        if sender is not None:
            number = sender.client.number
            sender = self.members.get(number)  # it may have reconnected meanwhile
        for codec, members in (delivery.to or self._by_codec).items():
            if sender is not None and len(members) == 1 and number in members:
                continue
            if not members:
                continue
            data = batch.encoded(codec)
            for member in members.values():
                if member is sender:
                    continue
                result = member.send_queue.try_send(data)
                if result is _SENT:
                    delivered += 1
                elif result is _QUEUED:
                    queued += 1
                elif result is _FULL:
                    full.append(member)
                else:
                    broken += 1
        if isinstance(batch, Block):
            if sender is not None and sender.lag is not None:
                sender.lag.note_own(batch.said.first, batch.end)
            others = len(self.members) - (sender is not None)
            delivery.lagging += others - delivered - queued - broken - len(full)
            self._counts.messages += batch.messages
            self._ring.add(batch)
        delivery.delivered += delivered
        delivery.queued += queued
        delivery.dropped += broken
        self._counts.deliveries += batch.messages * (delivered + queued)
        return full

    async def _treat_slow(self, full: list[Member], batch: Batch, delivery: Delivery) -> None:
        """Apply the policy for slow members to *full*."""
        match self._slow:
            case Slow.WAIT:
                self._delivery = delivery
                try:
                    await self.slow_clients.wait(full, batch, delivery)
                finally:
                    for member in list(self.slow_clients.waiting):
                        self._fall_behind(member, batch, delivery)
                    self._delivery = None
            case Slow.DROP:
                for member in full:
                    member.send_queue.miss(batch.messages, self.name)
                    self._counts.skipped += batch.messages
                    delivery.dropped += 1
            case Slow.DISCONNECT:
                for member in full:
                    self._disconnect_slow(member)
                    delivery.dropped += 1

    def _fall_behind(self, member: Member, batch: Batch, delivery: Delivery) -> None:
        """Make *member* lag, from *batch* on, which it has not taken."""
        if isinstance(batch, Block):
            self.start_replay(member, batch.said.first)
        else:
            self.start_replay(member, self.next)
            if delivery.notice is not None:
                member.client.keep_notice(delivery.notice)
        delivery.lagging += 1

    def _disconnect_slow(self, member: Member) -> None:
        self._counts.too_slow += 1
        self._disconnect(member.client, self._closing or Goodbye.of("too-slow", TOO_SLOW))

    # --- History and replay -----------------------------------------------------------------------

    async def history(self, limit: int, before: str | None, nonce: Nonce | None) -> HistoryPage:
        """Return the last *limit* messages, or those before the id *before*, as far as a page goes.

        Raises `UnknownId` and `NotRead`.
        """
        stop = self.next if before is None else self.number_of(before)
        return await history_pages.read_history(self._log, self._ring, stop, limit, nonce)

    def start_replay(self, member: Member, position: int) -> None:
        """Replay messages to *member* from number *position* on, until it is live again.

        Until then the room does not wait for it.
        """
        self._stop_delivery(member)
        member.lag = Lag(position)
        member.client.on_lag()

    def replay_rest(self, member: Member) -> None:
        """Replay to *member* what it has not got, also what the room waits for it to take."""
        self.stop_waiting_for(member)
        if member.lag is None:
            self.start_replay(member, self.next)

    def replay_from(self, member: Member, position: int) -> None:
        """Replay to *member* from number *position* on; see `start_replay`.

        Deleted messages count as missed, except those that its session knows as its own.
        """
        self.start_replay(member, position)
        session = member.client.stored_session
        if member.lag is not None and session is not None:
            log = self._log
            # A message that is not delivered yet is noted on delivery.
            ends = {**log.earlier, log.epoch: self.next}
            for number in session.numbers(ends):
                member.lag.note_own(number, number + 1)

    def _go_live(self, member: Member) -> bool:
        """Make *member* live if its send queue has space for the notices that it gets then."""
        client = member.client
        if client.notices:
            notices = b"".join(map(client.codec.encode, client.notices))
            if member.send_queue.try_send(notices) is _FULL:
                return False
            client.notices = ()
        member.lag = None
        self._by_codec[client.codec][client.number] = member
        self.slow_clients.queue_ran_empty()
        self.presence.summarize_missed(member)
        if self._closing and not client.lagging():
            self._disconnect(client, self._closing)
        return True
