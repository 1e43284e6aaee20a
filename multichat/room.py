"""A room: who is in it, in which order things are said there, and who gets them.

Decides synchronously, then waits: membership and who-receives-what change in functions without
`await`.  Owns the one order of its messages and the policy for members who are too slow; knows
nothing of sockets, and of clients only what a `Member` says.

Invariants:

1. All members see the same messages in the same order, but for what they were told they missed.
2. Once a publish has been logged, every member gets it, is told that it missed it, or leaves;
   cancelling the sender does not change that.
3. The room waits for full members together, and for each at most as long as its patience.
4. Who leaves is out at once: nobody waits for, and nothing is queued to, who is gone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import trio

from multichat.config import Slow
from multichat.log import Log
from multichat.mailbox import Mailbox, Offer
from multichat.messages import Goodbye
from multichat.voices import TEXT

__all__ = ["Batch", "Member", "Receipt", "Room", "cut"]

_SENT, _QUEUED, _FULL, _CLOSED = Offer  # once: an enum's members are slow to look up

# What one publish may add to a mailbox in one piece; more is cut between two messages, so that
# members take turns and a mailbox's bound in bytes means something.
MAX_BATCH_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages that are delivered in one piece: spelled once, shared by every member."""

    messages: int
    text: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What became of a publish: one for each member, and for each of the batches it was cut into.

    A single message is always one batch, so that for it these are members.

    *delivered*: the operating system has all of it.  *queued*: it waits in the member's mailbox.
    *dropped*: the member missed it, or had to go because of it.
    """

    delivered: int = 0
    queued: int = 0
    dropped: int = 0


@dataclass(eq=False, slots=True)
class Member:
    """A client as its room sees it.

    *on_leave* is called once, synchronously, when the member is out of the room; it MUST NOT
    raise, nor change the room.
    """

    client: int
    name: str
    mailbox: Mailbox
    address: str
    on_leave: Callable[[str], None]


def cut(name: str, run: str) -> Iterator[Batch]:
    """Spell the messages of *run* as said by *name*, in batches of at most `MAX_BATCH_BYTES`.

    A single message above that is a batch of its own.
    """
    spelled = TEXT.spell_said(name, run)
    messages = run.count("\n") + 1
    if len(spelled) <= MAX_BATCH_BYTES or messages == 1:
        yield Batch(messages, spelled)
    else:
        texts = run.split("\n")
        middle = messages // 2
        yield from cut(name, "\n".join(texts[:middle]))
        yield from cut(name, "\n".join(texts[middle:]))


class Room:
    """A conversation with one order.

    Any task may call anything; `say` and `close` wait for the room's order, the rest never waits.
    Closing a room ends nobody's connection: it has its members leave, and each session sees to
    its own.
    """

    def __init__(self, log: Log, *, slow: Slow = Slow.WAIT) -> None:
        self.closed = ""
        self.messages = self.deliveries = self.skipped = self.too_slow = 0
        self._log = log
        self._slow = slow
        self._members: dict[int, Member] = {}
        self._order = trio.Lock()
        self._deadlines: dict[Member, float] = {}  # of those who are being waited for

    @property
    def members(self) -> list[Member]:
        """Who is here now, in the order of their coming."""
        return list(self._members.values())

    def __len__(self) -> int:
        """How many are here now."""
        return len(self._members)

    def find(self, client: int) -> Member | None:
        """Return the member with that number, if it is here."""
        return self._members.get(client)

    def join(self, member: Member) -> None:
        """Let *member* in: it sees all that is said from now on.  A closed room sends it away."""
        self._members[member.client] = member
        self._log.line("STATE", f"Client {member.client} connected")
        if self.closed:
            self.dismiss(member, self.closed)

    def leave(self, member: Member, reason: str = "", *, last_words: bytes = b"") -> None:
        """Take *member* out at once.  Idempotent.

        *reason* is for the log, and empty if it was the member's own wish.  What waits in the
        mailbox, and then *last_words*, may still be written.
        """
        if self.find(member.client) is not member:
            return
        del self._members[member.client]
        member.mailbox.close(last_words)
        suffix = f" ({reason})" if reason else ""
        self._log.line("STATE", f"Client {member.client} disconnected{suffix}")
        member.on_leave(reason)

    def dismiss(self, member: Member, reason: str) -> None:
        """Have *member* leave against its wish, with a goodbye that gives the *reason*."""
        self.leave(member, reason, last_words=TEXT.spell(Goodbye(reason)))

    async def close(self, reason: str) -> None:
        """Let what is being said reach everyone, then dismiss all; nobody can join any more.

        Cancelled while it waits, it has done the same but for those who were being waited for:
        they are dismissed first.
        """
        try:
            async with self._order:
                pass
        finally:
            self.closed = reason  # from here on nobody is waited for
            for member in list(self._deadlines):
                self.dismiss(member, reason)
            with trio.CancelScope(shield=True):
                async with self._order:
                    for member in self.members:
                        self.dismiss(member, reason)

    async def say(
        self, name: str, run: str, *, sender: Member | None = None, tag: str = "RX"
    ) -> Receipt:
        """Publish a run of messages, clean and not empty, as said by *name*, to all but *sender*.

        Returns when every member has it in its mailbox or its socket, under `Slow.WAIT` after
        waiting for the slow ones.  Where nobody has to be waited for, that is at once, without a
        checkpoint.  Cancelled while it waits for its turn, nothing was said; after that it is
        finished first.  A sender that left meanwhile says nothing, and in a closed room nobody
        does.
        """
        try:
            self._order.acquire_nowait()
        except trio.WouldBlock:
            await self._order.acquire()
        try:
            if self.closed or (sender is not None and sender.client not in self._members):
                return Receipt()
            return await self._publish(name, run, sender, tag)
        finally:
            self._order.release()

    async def _publish(self, name: str, run: str, sender: Member | None, tag: str) -> Receipt:
        total_delivered = total_queued = total_dropped = 0
        clients = len(self._members)
        for i, batch in enumerate(cut(name, run)):
            delivered, queued, dropped, full = self._offer_to_all(batch, sender)
            self.messages += batch.messages
            if i == 0:  # nobody waits for the log, and yet it has this before all that follows
                self._log.said(name, run, clients, tag)
            if full:
                without = await self._treat_slow(full, batch)
                queued += len(full) - without
                dropped += without
            self.deliveries += batch.messages * (delivered + queued)
            total_delivered += delivered
            total_queued += queued
            total_dropped += dropped
        return Receipt(delivered=total_delivered, queued=total_queued, dropped=total_dropped)

    def _offer_to_all(
        self, batch: Batch, sender: Member | None
    ) -> tuple[int, int, int, list[Member]]:
        """Put *batch* in every mailbox that has room.

        Returns how many had it sent, how many have it queued, how many are broken off and take
        nothing any more, and whose mailbox was full.

        Membership cannot change half-way, and whoever keeps up has the batch before anybody is
        waited for.
        """
        delivered = queued = broken = 0
        full: list[Member] = []
        text = batch.text
        for member in self._members.values():
            if member is sender:
                continue
            offer = member.mailbox.offer(text)
            if offer is _SENT:
                delivered += 1
            elif offer is _QUEUED:
                queued += 1
            elif offer is _FULL:
                full.append(member)
            else:
                broken += 1
        return delivered, queued, broken, full

    async def _treat_slow(self, full: list[Member], batch: Batch) -> int:
        """Do what the policy says about *full*; return how many did not get *batch*."""
        match self._slow:
            case Slow.WAIT:
                with trio.CancelScope(shield=True):  # bounded by their patience
                    return await self._wait_for(full, batch)
            case Slow.DROP:
                for member in full:
                    member.mailbox.miss(batch.messages)
                    self.skipped += batch.messages
            case Slow.DISCONNECT:
                for member in full:
                    self._dismiss_slow(member)
        return len(full)

    async def _wait_for(self, full: list[Member], batch: Batch) -> int:
        """Wait for all of *full* together; return how many left before they took *batch*."""
        started = trio.current_time()
        deadlines = self._deadlines
        missed = 0
        freed: list[Member] = []
        woken = trio.Event()

        def wake(member: Member) -> None:
            freed.append(member)
            woken.set()

        for member in full:
            patience = 0 if self.closed else member.mailbox.patience.left_seconds
            deadlines[member] = started + patience
            member.mailbox.call_when_space(partial(wake, member))
        while deadlines:
            with trio.move_on_at(min(deadlines.values())):
                await woken.wait()
            woken = trio.Event()
            ready, freed = freed, []
            now = trio.current_time()
            for member in ready:
                if member not in deadlines:
                    continue
                offer = member.mailbox.offer(batch.text)
                if offer is _FULL:
                    member.mailbox.call_when_space(partial(wake, member))
                    continue
                del deadlines[member]
                missed += offer is _CLOSED
                member.mailbox.patience.spend(now - started)
            for member in [m for m, deadline in deadlines.items() if deadline <= now]:
                del deadlines[member]
                missed += 1
                self._dismiss_slow(member)
        return missed

    def _dismiss_slow(self, member: Member) -> None:
        self.too_slow += 1
        self.dismiss(member, self.closed or "too slow")
