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
5. Who speaks has been announced before, to everybody who is told of such things.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from multichat.clock import TimeSpeller
from multichat.config import Slow
from multichat.log import Log
from multichat.mailbox import Mailbox, Offer
from multichat.messages import Joined, Left, MemberName, Notice, Presence, Renamed, SaidRun
from multichat.names import SERVER_NAME
from multichat.presence import MAX_TOLD_ONE_BY_ONE, Changes
from multichat.voices import JSON, TEXT, Voice, message_id

__all__ = ["Batch", "Counts", "Member", "Receipt", "Room", "cut", "utc_now"]

_SENT, _QUEUED, _FULL, _CLOSED = Offer  # once: an enum's members are slow to look up

# What one publish may add to a mailbox in one piece; more is cut between two messages, so that
# members take turns and a mailbox's bound in bytes means something.
MAX_BATCH_BYTES = 256 * 1024

# Who comes in says hello next, and is announced by the name that it gives there.
PRESENCE_SECONDS = 0.1

# Not more often than this are members told who came and went.
PRESENCE_PAUSE_SECONDS = 1.0

_utc = TimeSpeller(time.gmtime, "%Y-%m-%dT%H:%M:%S", "Z")


def utc_now() -> str:
    """Spell the time as it stands on the wire: RFC 3339, in UTC, with milliseconds."""
    return _utc.spell(time.time())


class Batch:
    """Events that are delivered in one piece: spelled once for each voice, shared by all members.

    *messages* is what a member misses who does not get it.
    """

    __slots__ = ("_spell", "_spelled", "messages")

    def __init__(self, messages: int, spell: Callable[[Voice], bytes]) -> None:
        self.messages = messages
        self._spell = spell
        self._spelled: dict[Voice, bytes] = {}

    def spelled(self, voice: Voice) -> bytes:
        """Return its bytes in *voice*; none if that voice is not told of it."""
        data = self._spelled.get(voice)
        if data is None:
            self._spelled[voice] = data = self._spell(voice)
        return data


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What became of a publish: one for each member, and for each of the batches it was cut into.

    A single message is always one batch, so that for it these are members.

    *delivered*: the operating system has all of it.  *queued*: it waits in the member's mailbox.
    *dropped*: the member missed it, or had to go because of it.  *epoch* and *first* are what the
    messages' ids are made of; empty if nothing was said, or nothing that has an id.
    """

    delivered: int = 0
    queued: int = 0
    dropped: int = 0
    epoch: str = field(default="", compare=False)
    first: int = field(default=0, compare=False)

    def id_of(self, message: int) -> str:
        """Return the id of the publish's message of that number, from 0."""
        return message_id(self.epoch, self.first + message)

    def __add__(self, other: "Receipt") -> "Receipt":
        """Return what became of the same words in two rooms."""
        return Receipt(
            delivered=self.delivered + other.delivered,
            queued=self.queued + other.queued,
            dropped=self.dropped + other.dropped,
        )


@dataclass(slots=True)
class Counts:
    """What the rooms of a server have done since it began; see `ServerStatistics`."""

    messages: int = 0
    deliveries: int = 0
    skipped: int = 0
    too_slow: int = 0


@dataclass(eq=False, slots=True)
class Member:
    """A client as its room sees it.

    *on_leave* is called once, synchronously, when the member has left the server; it MUST NOT
    raise, nor change any room.
    """

    client: int
    name: str
    mailbox: Mailbox
    address: str
    on_leave: Callable[[str], None]
    voice: Voice = TEXT
    room: "Room" = field(init=False)


def cut(said: SaidRun, voices: Iterable[Voice]) -> Iterator[Batch]:
    """Make batches of at most `MAX_BATCH_BYTES`, in each of the *voices*, of what one publish says.

    A single message above that is a batch of its own.
    """
    messages = said.run.count("\n") + 1
    batch = Batch(messages, lambda voice: voice.spell_said(said))
    if messages == 1 or all(_fits(batch, voice, len(said.run)) for voice in voices):
        yield batch
    else:
        texts = said.run.split("\n")
        middle = messages // 2
        halves = (said.first, texts[:middle]), (said.first + middle, texts[middle:])
        for first, half in halves:
            part = msgspec.structs.replace(said, first=first, run="\n".join(half))
            yield from cut(part, voices)


def _fits(batch: Batch, voice: Voice, characters: int) -> bool:
    # Most that does not fit is seen without spelling it in vain.
    least_bytes = characters + batch.messages * voice.least_said_bytes
    return least_bytes <= MAX_BATCH_BYTES and len(batch.spelled(voice)) <= MAX_BATCH_BYTES


class Room:
    """A conversation with one order.

    Any task may call anything; `say`, `notify` and `settle` wait for the room's order, the rest
    never waits.  *epoch* is the start of its messages' ids: no other room has or had the same.

    *dismiss* has a member leave the server against its wish.  *start_soon* starts a task that
    outlives the call: what tells members who came and went; *announce* has it told in the text
    voice, too.
    """

    def __init__(
        self,
        name: str,
        *,
        epoch: str,
        log: Log,
        slow: Slow,
        announce: bool,
        counts: Counts,
        dismiss: Callable[[Member, str], None],
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self.name = name
        self.epoch = epoch
        self.messages = 0
        self._log = log
        self._slow = slow
        self._announce = announce
        self._counts = counts
        self._dismiss = dismiss
        self._start_soon = start_soon
        self._closing = ""
        self._members: dict[int, Member] = {}
        self._by_voice: dict[Voice, dict[int, Member]] = {TEXT: {}, JSON: {}}
        self._order = trio.Lock()
        self._deadlines: dict[Member, float] = {}  # of those who are being waited for
        self._woken = trio.Event()
        self._changes = Changes()
        self._telling = False
        self._told_at = -PRESENCE_PAUSE_SECONDS

    @property
    def members(self) -> list[Member]:
        """Who is here now, in the order of their coming."""
        return list(self._members.values())

    def __len__(self) -> int:
        """How many are here now."""
        return len(self._members)

    def __contains__(self, member: Member) -> bool:
        """Say whether *member* is here now."""
        return self._members.get(member.client) is member

    def show_members(self) -> list[MemberName]:
        """Return who is here for somebody to be told; of whoever leaves it will be told, too."""
        self._changes.show()
        return [MemberName(member.client, member.name) for member in self._members.values()]

    @property
    def last_id(self) -> str | None:
        """The id of what was said last, if anything was."""
        return message_id(self.epoch, self.messages - 1) if self.messages else None

    def join(self, member: Member) -> None:
        """Let *member* in: it sees all that is said from now on."""
        self._members[member.client] = member
        self._by_voice[member.voice][member.client] = member
        member.room = self
        self._changes.enter(member.client, member.name)
        self._have_told()

    def leave(self, member: Member, reason: str = "") -> None:
        """Take *member* out at once; *reason* is empty if it was the member's own wish."""
        del self._members[member.client]
        del self._by_voice[member.voice][member.client]
        if self._deadlines.pop(member, None) is not None:
            self._woken.set()
        self._changes.leave(member.client, reason)
        self._have_told()

    def renamed(self, member: Member) -> None:
        """Have the others told that *member* has another name now."""
        self._changes.enter(member.client, member.name)
        self._have_told()

    def speak(self, member: Member, voice: Voice) -> None:
        """From now on *member* is told everything in *voice*."""
        del self._by_voice[member.voice][member.client]
        member.voice = voice
        self._by_voice[voice][member.client] = member

    # --- Who is here ------------------------------------------------------------------------------

    def _have_told(self) -> None:
        """Have the members told what changed, soon; each change of membership ends with this."""
        if not (self._by_voice[JSON] or (self._announce and self._members)):
            self._changes.forget()
        elif not self._telling:
            self._telling = True
            self._start_soon(self._tell_changes)

    async def _tell_changes(self) -> None:
        try:
            while self._changes:
                soon = trio.current_time() + PRESENCE_SECONDS
                await trio.sleep_until(max(soon, self._told_at + PRESENCE_PAUSE_SECONDS))
                async with self._order:
                    await self._tell_changes_now()
        finally:
            self._telling = False

    async def _tell_changes_now(self) -> None:
        self._told_at = trio.current_time()
        events = self._changes.take()
        if len(events) > MAX_TOLD_ONE_BY_ONE:
            await self._tell(self._members.values(), [self._changes.count(events)])
            return
        subjects = {client for client, _ in events}
        others = [member for client, member in self._members.items() if client not in subjects]
        await self._tell(others, [event for _, event in events])
        for subject in subjects:  # nobody is told of itself
            if (member := self._members.get(subject)) is not None:
                told = [event for client, event in events if client != subject]
                await self._tell([member], told)

    async def _tell(
        self, members: Iterable[Member], events: Sequence[Joined | Left | Renamed | Presence]
    ) -> None:
        if not events:
            return

        def spell(voice: Voice) -> bytes:
            if voice is TEXT and not self._announce:
                return b""
            return b"".join(map(voice.spell, events))

        batch = Batch(0, spell)
        full = [
            member
            for member in members
            if (data := batch.spelled(member.voice)) and member.mailbox.offer(data) is _FULL
        ]
        if full:
            await self._treat_slow(full, batch)

    # --- What is said -----------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """From now on nothing is said here and nobody waited for: who is full has to go."""
        self._closing = reason
        for member in list(self._deadlines):
            self._dismiss(member, reason)

    async def settle(self) -> None:
        """Wait until what is being said has reached everyone."""
        async with self._order:
            pass

    async def say(self, sender: Member, run: str, *, act: bool = False) -> Receipt:
        """Publish a run of messages, clean and not empty, as said by *sender*, to all others.

        Returns when every member has it in its mailbox or its socket, under `Slow.WAIT` after
        waiting for the slow ones.  Where nobody has to be waited for, that is at once, without a
        checkpoint.  Cancelled while it waits for its turn, nothing was said; after that it is
        finished first.  A sender that left meanwhile says nothing, and in a closed room nobody
        does.
        """
        await self._take_turn()
        try:
            if sender.client in self._changes:
                await self._tell_changes_now()
            if self._closing or sender not in self:
                return Receipt()
            now, client, name = utc_now(), sender.client, sender.name
            said = SaidRun(self.epoch, self.messages, now, self.name, client, name, run, act)
            batches = cut(said, [voice for voice, them in self._by_voice.items() if them])
            return await self._publish(batches, said, sender, "RX")
        finally:
            self._order.release()

    async def notify(self, text: str) -> Receipt:
        """Say *text*, which is clean and not empty, to all members as the server; see `say`.

        It has no id, and is not among the messages that are counted.
        """
        await self._take_turn()
        try:
            if self._closing:
                return Receipt()
            notice = Notice(text)
            said = SaidRun("", 0, "", self.name, 0, SERVER_NAME, text)
            batch = Batch(1, lambda voice: voice.spell(notice))
            return await self._publish([batch], said, None, "TX")
        finally:
            self._order.release()

    async def _take_turn(self) -> None:
        try:
            self._order.acquire_nowait()
        except trio.WouldBlock:
            await self._order.acquire()

    async def _publish(
        self, batches: Iterable[Batch], said: SaidRun, sender: Member | None, tag: str
    ) -> Receipt:
        total_delivered = total_queued = total_dropped = 0
        clients = len(self._members)
        counts = self._counts
        logged = False
        for batch in batches:
            delivered, queued, dropped, full = self._offer_to_all(batch, sender)
            if sender is not None:
                counts.messages += batch.messages
                self.messages += batch.messages
            if not logged:  # nobody waits for the log, and yet it has this before all that follows
                logged = True
                self._log.said(TEXT.speaker(said.name, act=said.act), said.run, clients, tag)
            if full:
                without = await self._treat_slow(full, batch)
                queued += len(full) - without
                dropped += without
            counts.deliveries += batch.messages * (delivered + queued)
            total_delivered += delivered
            total_queued += queued
            total_dropped += dropped
        return Receipt(
            delivered=total_delivered,
            queued=total_queued,
            dropped=total_dropped,
            epoch=said.epoch,
            first=said.first,
        )

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
        for voice, members in self._by_voice.items():
            if len(members) <= (sender is not None and sender.voice is voice):
                continue
            data = batch.spelled(voice)
            for member in members.values():
                if member is sender:
                    continue
                offer = member.mailbox.offer(data)
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
                    self._counts.skipped += batch.messages
            case Slow.DISCONNECT:
                for member in full:
                    self._dismiss_slow(member)
        return len(full)

    async def _wait_for(self, full: list[Member], batch: Batch) -> int:
        """Wait for all of *full* together; return how many left before they took *batch*."""
        started = trio.current_time()
        deadlines = self._deadlines
        got = 0
        freed: list[Member] = []
        self._woken = trio.Event()

        def wake(member: Member) -> None:
            freed.append(member)
            self._woken.set()

        for member in full:
            patience = 0 if self._closing else member.mailbox.patience.left_seconds
            deadlines[member] = started + patience
            member.mailbox.call_when_space(partial(wake, member))
        while deadlines:
            with trio.move_on_at(min(deadlines.values())):
                await self._woken.wait()
            self._woken = trio.Event()
            ready = freed.copy()
            freed.clear()
            now = trio.current_time()
            for member in ready:
                if member not in deadlines:
                    continue
                offer = member.mailbox.offer(batch.spelled(member.voice))
                if offer is _FULL:
                    member.mailbox.call_when_space(partial(wake, member))
                    continue
                del deadlines[member]
                got += offer is not _CLOSED
                member.mailbox.patience.spend(now - started)
            for member in [m for m, deadline in deadlines.items() if deadline <= now]:
                del deadlines[member]
                self._dismiss_slow(member)
        return len(full) - got

    def _dismiss_slow(self, member: Member) -> None:
        self._counts.too_slow += 1
        self._dismiss(member, self._closing or "too slow")
