"""A room: who is in it, in which order things are said there, and who gets them.

Decides synchronously, then waits: membership and who-receives-what change in functions without
`await`.  Owns the one order of its messages and the policy for members who are too slow; knows
nothing of sockets, and of clients only what a `Member` says.

Invariants:

1. All members see the same messages in the same order, but for what they were told they missed.
2. What is said is numbered by the journal at once, and told when that has kept it: first the
   journal, then the members, then the sender.  From the first of the three on, neither cancelling
   the sender nor its leaving changes that every member gets it, is told that it missed it, or
   leaves.
3. The room waits for full members together, and for each at most as long as its patience.
4. Who leaves is out at once: nobody waits for, and nothing is queued to, who is gone.
5. Who speaks has been announced before, to everybody who is told of such things.
6. A member is *live*, or being told what was said before: it becomes live in the step in which
   nothing lies between the two.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from multichat import past
from multichat.batch import MAX_BATCH_BYTES, Batch, Counts, Receipt, cut
from multichat.clock import utc_now
from multichat.config import Slow
from multichat.errors import NotKept, UnknownId
from multichat.ids import message_id, message_number
from multichat.journal import Keeping, RoomJournal
from multichat.log import Log
from multichat.mailbox import Mailbox, Offer
from multichat.messages import (
    TOO_SLOW,
    Error,
    Event,
    Goodbye,
    HistoryPage,
    Joined,
    Left,
    MemberName,
    Missed,
    Nonce,
    Notice,
    Presence,
    Renamed,
    SaidRun,
)
from multichat.names import SERVER_NAME
from multichat.presence import MAX_TOLD_ONE_BY_ONE, Changes
from multichat.resume import Resumable
from multichat.voices import JSON, TEXT, Voice

__all__ = ["Member", "Room"]

_SENT, _QUEUED, _FULL, _CLOSED = Offer  # once: an enum's members are slow to look up

# Who comes in says hello next, and is announced by the name that it gives there.
PRESENCE_SECONDS = 0.1

# Not more often than this are members told who came and went.
PRESENCE_PAUSE_SECONDS = 1.0

# So much is told while nobody else says anything: it takes one read of the journal.
_HAND_OVER_MESSAGES = 256


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
    resumable: Resumable | None = None  # by which it may come back
    last_sender: int | None = None  # of a private message
    room: "Room" = field(init=False)


class Room:
    """A conversation with one order.

    Any task may call anything; `say`, `notify`, `settle`, `history` and `catch_up` wait, the rest
    never does.  *journal* is where what is said here is kept.

    *dismiss* has a member leave the server against its wish.  *start_soon* starts a task that
    outlives the call: what tells members who came and went; *announce* has it told in the text
    voice, too.  Who leaves and may come back is told to have left after *away_seconds*.
    """

    def __init__(
        self,
        name: str,
        *,
        journal: RoomJournal,
        log: Log,
        slow: Slow,
        announce: bool,
        away_seconds: float,
        counts: Counts,
        dismiss: Callable[[Member, Goodbye], None],
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self.name = name
        self._journal = journal
        self._told = journal.next  # the number of what is told next
        self._log = log
        self._slow = slow
        self._announce = announce
        self._away_seconds = away_seconds
        self._counts = counts
        self._dismiss = dismiss
        self._start_soon = start_soon
        self._closing: Goodbye | None = None
        self._members: dict[int, Member] = {}
        self._by_voice: dict[Voice, dict[int, Member]] = {TEXT: {}, JSON: {}}
        self._order = trio.Lock()
        self._at_disk = False  # who has its turn
        self._deadlines: dict[Member, float] = {}  # of those who are being waited for
        self._woken = trio.Event()
        self._passed = trio.Event()  # when some of them need not be waited for any more
        self._changes = Changes()
        self._telling = False
        self._told_at = -PRESENCE_PAUSE_SECONDS
        self._away: dict[int, tuple[float, str]] = {}  # until when, and why they left then

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

    def show_members(self, to: Member) -> list[MemberName]:
        """Return who is here, for *to* to be told, who will also be told when they leave."""
        self._changes.show(to.client)
        return [MemberName(member.client, member.name) for member in self._members.values()]

    @property
    def last_id(self) -> str | None:
        """The id of what was told last, if anything was."""
        return message_id(self._journal.epoch, self._told - 1) if self._told else None

    @property
    def messages(self) -> int:
        """How many messages were told here, ever."""
        return self._told

    def number_of(self, id_: str) -> int:
        """Return the number of the message that has that id; raises `UnknownId`."""
        number = message_number(self._journal.epoch, id_)
        if number is None or number >= self._told:
            raise UnknownId
        return number

    def number_of_last(self, messages: int) -> int:
        """Return the number of the first of the last *messages* that are kept."""
        return max(self._journal.first, self._told - messages)

    def join(self, member: Member) -> None:
        """Let *member* in: it is told all that is said from now on."""
        self._members[member.client] = member
        self._by_voice[member.voice][member.client] = member
        member.room = self
        self._away.pop(member.client, None)
        self._changes.enter(member.client, member.name)
        self._have_told()

    def pause(self, member: Member) -> None:
        """From now on *member* is told nothing that is said, until it has caught up."""
        self._by_voice[member.voice].pop(member.client, None)

    def leave(self, member: Member, reason: str = "", *, away: bool = False) -> None:
        """Take *member* out at once; *reason* is empty if it was the member's own wish.

        If it is only *away* the others hear of that when it has not come back after a while.
        """
        del self._members[member.client]
        self._by_voice[member.voice].pop(member.client, None)
        if self._deadlines.pop(member, None) is not None:
            self._woken.set()
        if away and self._away_seconds and self._listeners and not self._closing:
            if not self._away:
                self._start_soon(self._tell_away)
            self._away[member.client] = (trio.current_time() + self._away_seconds, reason)
            return
        self._changes.leave(member.client, reason)
        self._have_told()

    async def _tell_away(self) -> None:
        """Have the others told of those who were away for too long."""
        while self._away:  # the first is who has to be told of first: all have the same time
            client, (deadline, _) = next(iter(self._away.items()))
            if trio.current_time() < deadline:
                await trio.sleep_until(deadline)
            else:
                self.give_up(client)

    def give_up(self, client: int) -> None:
        """Have the others told of one who is away that it left, if it is away."""
        if (away := self._away.pop(client, None)) is not None:
            self._changes.leave(client, away[1])
            self._have_told()

    def renamed(self, member: Member) -> None:
        """Have the others told that *member* has another name now."""
        self._changes.enter(member.client, member.name)
        self._have_told()

    def speak(self, member: Member, voice: Voice) -> None:
        """From now on *member* is told everything in *voice*."""
        live = self._by_voice[member.voice].pop(member.client, None)
        member.voice = voice
        if live is not None:
            self._by_voice[voice][member.client] = member

    # --- Who is here ------------------------------------------------------------------------------

    @property
    def _listeners(self) -> bool:
        """Whether there is anybody who is told who comes and goes."""
        return bool(self._by_voice[JSON] or (self._announce and self._members))

    def _have_told(self) -> None:
        """Have the members told what changed, soon; each change of membership ends with this."""
        if not self._listeners:
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
        # Who takes its time over the past is not waited for: what it misses of this `who` tells.
        full = [member for member in full if self._is_live(member)]
        if full:
            await self._treat_slow(full, batch)

    # --- What is said -----------------------------------------------------------------------------

    def close(self, goodbye: Goodbye) -> None:
        """From now on nothing is said here and nobody waited for: who is full has to go."""
        self._closing = goodbye
        for member in list(self._deadlines):
            self._dismiss(member, goodbye)

    @property
    def busy(self) -> bool:
        """Whether something is being said, or on its way."""
        return self._order.locked()

    async def settle(self) -> None:
        """Wait until what is being said has reached everyone; a closed room waits for no disk."""
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

    async def say(
        self,
        sender: Member,
        run: str,
        *,
        act: bool = False,
        nonces: tuple[Nonce | None, ...] = (),
        on_taken: Callable[[str, int, Keeping | None], object] | None = None,
    ) -> Receipt:
        """Publish a run of messages, clean and not empty, as said by *sender*, to all others.

        Returns when the journal has kept it, and every member has it in its mailbox or its socket,
        under `Slow.WAIT` after waiting for the slow ones.  Where nobody has to be waited for, that
        is at once, without a checkpoint.  Cancelled before that, it is finished first.  A sender
        that has left says nothing, and in a closed room nobody does.

        *nonces* are those of the messages, if any has one.  *on_taken* is called in the step in
        which they are numbered, with the epoch, the first number, and what says when they are kept
        (see `RoomJournal.append`).  Raises `NotKept`: then nothing was said.
        """
        if self._closing or sender not in self:
            await trio.lowlevel.checkpoint()
            return Receipt()
        journal, client, name = self._journal, sender.client, sender.name
        said = SaidRun(journal.epoch, journal.next, utc_now(), self.name, client, name, run, act)
        keeping = journal.append(said, nonces)
        messages = journal.next - said.first
        if on_taken is not None:
            on_taken(said.epoch, said.first, keeping)
        try:
            self._order.acquire_nowait()
        except trio.WouldBlock:
            with trio.CancelScope(shield=True):  # it is in the journal, and has to be told
                await self._order.acquire()
        try:
            if keeping is not None:
                with trio.CancelScope(shield=True), self._waiting_for_disk():
                    await keeping.wait()
            if client in self._changes:
                await self._introduce(said)
            spoken = [voice for voice, them in self._by_voice.items() if them]
            batches = cut(said, messages, spoken)
            return await self._publish(batches, said, sender, "RX")
        finally:
            self._order.release()

    async def _introduce(self, said: SaidRun) -> None:
        """Have who is about to speak told of before."""
        if said.client in self._members:
            await self._tell_changes_now()
        elif (joined := self._changes.announce(said.client, said.name)) is not None:
            await self._tell(self._members.values(), [joined])

    async def notify(self, text: str) -> Receipt:
        """Say *text*, which is clean and not empty, to all members as the server; see `say`.

        It has no id, and is not among the messages that are counted.
        """
        async with self._order:
            if self._closing:
                return Receipt()
            notice = Notice(text)
            said = SaidRun("", 0, "", self.name, 0, SERVER_NAME, text)
            batch = Batch(1, lambda voice: voice.spell(notice))
            # The past that some are being told of has no notices in it.
            past = [member for member in self._members.values() if not self._is_live(member)]
            receipt = await self._publish([batch], said, None, "TX")
            dropped = self._offer_past(past, batch)
            return receipt + Receipt(queued=len(past) - dropped, dropped=dropped)

    def _offer_past(self, members: list[Member], batch: Batch) -> int:
        """Offer *batch* to those who are not live; return how many do not get it.

        They are not waited for: they are told that they missed it.
        """
        missed = 0
        for member in members:
            offer = member.mailbox.offer(batch.spelled(member.voice))
            if offer is _FULL:
                member.mailbox.miss(batch.messages)
            missed += offer in (_FULL, _CLOSED)
        return missed

    async def _publish(
        self, batches: Iterable[Batch], said: SaidRun, sender: Member | None, tag: str
    ) -> Receipt:
        total_delivered = total_queued = total_dropped = 0
        clients = len(self._members) + (sender is not None and sender.client not in self._members)
        counts = self._counts
        logged = False
        for batch in batches:
            delivered, queued, dropped, full = self._offer_to_all(batch, sender)
            if sender is not None:
                counts.messages += batch.messages
                self._told += batch.messages
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
        if sender is not None:
            sender = self._members.get(sender.client)  # who may have come back meanwhile
        for voice, members in self._by_voice.items():
            if sender is not None and len(members) == 1 and sender.client in members:
                continue
            if not members:
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
            self._passed.set()
            self._passed = trio.Event()
        return len(full) - got

    def is_waiting_for(self, member: Member) -> bool:
        """Say whether *member* has still to take what was told last."""
        return member in self._deadlines

    async def wait_passed(self, member: Member) -> None:
        """Wait until *member* has taken what was told last, or is gone."""
        while member in self._deadlines:
            await self._passed.wait()

    def _dismiss_slow(self, member: Member) -> None:
        self._counts.too_slow += 1
        self._dismiss(member, self._closing or Goodbye.of("too-slow", TOO_SLOW))

    # --- What was said ----------------------------------------------------------------------------

    def _is_live(self, member: Member) -> bool:
        return member.client in self._by_voice[member.voice]

    async def history(self, limit: int, before: str | None, nonce: Nonce | None) -> HistoryPage:
        """Return the last *limit* messages, or those before that id, within the page's bounds.

        Raises `UnknownId` and `NotKept`.
        """
        stop = self._told if before is None else self.number_of(before)
        return await past.read_history(self._journal, stop, limit, nonce)

    async def catch_up(self, member: Member, position: int) -> None:
        """Tell *member*, who is here and not live, what was said from number *position* on.

        Waits for it alone, and for nobody while the others talk; returns when it is live, or gone.
        What it said itself is left out; what the journal has no more it is told that it missed.
        """
        mailbox = member.mailbox
        while member in self and not mailbox.closed:
            # What is not told yet may be gone from the journal already: it is told all the same.
            first = min(self._journal.first, self._told)
            if position < first:
                await mailbox.put(member.voice.spell(Missed(first - position)))
                position = first
                continue
            if position >= self._told or self._is_live(member):
                self._go_live(member)
                return
            try:
                if self._told - position > _HAND_OVER_MESSAGES:
                    page, position = await self._page(member, position)
                    await mailbox.put(page)
                elif not mailbox.has_room(2 * MAX_BATCH_BYTES):  # more than a page is
                    await mailbox.wait_for_space()
                else:
                    async with self._order:  # nobody says anything meanwhile
                        with self._waiting_for_disk():
                            page, reached = await self._page(member, position)
                        if not page or mailbox.offer(page) is not _FULL:
                            position = reached
                        if position >= self._told:
                            self._go_live(member)
            except NotKept as error:
                missed: list[Event] = [
                    Error(error.code, str(error)),
                    Missed(self._told - position),
                ]
                self._go_live(member)
                await mailbox.put(b"".join(map(member.voice.spell, missed)))
                return

    async def _page(self, member: Member, position: int) -> tuple[bytes, int]:
        stop = min(self._told, position + past.PAGE_MESSAGES)
        return await past.spell_page(self._journal, position, stop, member.voice, member.client)

    def _go_live(self, member: Member) -> None:
        if member in self:
            self._by_voice[member.voice][member.client] = member
