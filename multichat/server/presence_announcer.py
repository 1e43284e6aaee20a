"""Announces joins, leaves and renames to the members of one room, and answers `who`.

Changes are collected for a moment and sent as the difference to the previous state (see
`multichat.server.presence`).  Nothing waits for a member: one that lags, or whose send queue is
full, gets a summary when it has caught up.
"""

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import trio

from multichat.net.send_queue import SendResult
from multichat.protocol.codec import Codec
from multichat.protocol.messages import Joined, Left, MemberName, Members, Nonce, Presence, Renamed
from multichat.server.absences import Absence
from multichat.server.broadcast import Batch
from multichat.server.cached_response import CachedResponse
from multichat.server.client import ARRIVING_SECONDS, Client
from multichat.server.member import Member
from multichat.server.presence import MAX_TOLD_ONE_BY_ONE, PresenceChanges, summarize
from multichat.server.remote_clients import RemoteClient

__all__ = ["PresenceAnnouncer"]

# Time for a program to send a hello after connecting, so that it is announced by the name in it.
PRESENCE_SECONDS = ARRIVING_SECONDS

# The minimum time between two announcements.
PRESENCE_PAUSE_SECONDS = 1.0


class _Away(NamedTuple):
    """Its leaving is announced at the time *until*; newcomers above *came* do not know it."""

    until: float
    reason: str
    came: int


class PresenceAnnouncer:
    """Announces to *members* of *room* (by client number) which of them join and leave.

    *by_codec* groups the live members by codec; the room owns and updates both mappings, before it
    calls a method here.  Clients of the text protocol get presence only with *to_text*.  If a
    member leaves and may reconnect, that is announced after *away_seconds*.  *start_soon* starts
    the announcing tasks.

    Members on other nodes are in *remote*, updated in the same way; they count and are listed;
    their own nodes send them presence.
    """

    def __init__(
        self,
        room: str,
        members: Mapping[int, Member],
        by_codec: Mapping[Codec, Mapping[int, Member]],
        *,
        to_text: bool,
        away_seconds: float,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
        remote: Mapping[int, RemoteClient] = MappingProxyType({}),
    ) -> None:
        self._room = room
        self._members, self._by_codec, self._remote = members, by_codec, remote
        self._who = CachedResponse(self._list_members)
        self._hidden: set[int] = set()  # members that it does not list
        self._to_text = to_text
        self._away_seconds = away_seconds
        self._start_soon = start_soon
        self._changes = PresenceChanges()
        self._telling = self._waiting_for_away = False
        self._told_at = -PRESENCE_PAUSE_SECONDS
        self._away: dict[int, _Away] = {}  # the first one has been away for longest
        # Members that came anew, with a rising number: they do not know the clients that were away
        # already when they came.
        self._newcomers: dict[int, int] = {}
        self._came = 0
        self._returned: dict[int, int] = {}  # to be announced to newcomers above that number
        # Arriving clients that joined while no member received presence, with their names then.
        self._passed_over: dict[int, str] = {}
        self._is_unheard = True  # since all changes were passed over, or treated as announced
        if remote:  # they were there before anybody here
            for client in remote.values():
                self._changes.enter(client.number, client.name)
            self._changes.forget()

    @property
    def count(self) -> int:
        """How many members there are, on all nodes."""
        return len(self._members) + len(self._remote)

    def count_for(self, client: int) -> int:
        """How many members the member with the number *client* knows.

        Those that are away count, if it was there before they left: their return is not announced
        to it.
        """
        came = self._newcomers.get(client, 0)
        return self.count + sum(away.came >= came for away in self._away.values())

    def entered(self, member: Member) -> None:
        """Record that *member* has joined, or has changed its name."""
        self._enter(member.client)

    def entered_elsewhere(self, client: RemoteClient) -> None:
        """Record that a client has joined on another node, or has changed its name there."""
        self._enter(client)

    def _enter(self, client: Client | RemoteClient) -> None:
        self._who.forget()
        number = client.number
        away = self._away.pop(number, None)
        if away is not None:
            if self._newcomers and next(reversed(self._newcomers.values())) > away.came:
                self._returned[number] = away.came
        elif number in self._members and self._changes.name_of(number) is None:
            self._came += 1
            self._newcomers[number] = self._came
        self._changes.enter(number, client.name)
        self._tell_soon(number)

    def arrived(self, client: int) -> None:
        """Note that *client* is not arriving any more: it is listed, and announced.

        If no member received presence when it joined, only a new name is.
        """
        if (name := self._passed_over.pop(client, None)) is not None:
            self._changes.forget_join(client, name)
        if client in self._changes:
            self._tell_soon(client)

    def expect(self, absences: Mapping[int, Absence]) -> None:
        """Note who was a member before this room was open, and may come back."""
        for client, absence in absences.items():
            if self._changes.name_of(client) is None and client not in self._changes:
                self._changes.expect(client, absence.name)
                self._be_away(client, _Away(absence.until, absence.reason, 0))

    def absences(self) -> dict[int, Absence]:
        """Return the members that are away."""
        return {
            client: Absence(self._changes.name_of(client) or "", away.reason, away.until)
            for client, away in self._away.items()
        }

    def left(self, member: Member, reason: str, *, away: bool) -> None:
        """Record that *member* has left; if it is *away*, that is announced later.

        A member that leaves before it was announced is not mentioned.
        """
        number, until = member.client.number, member.client.arriving_until
        if number in self._passed_over and until <= trio.current_time():
            self._changes.forget_join(number, self._passed_over.pop(number))
        self.left_elsewhere(number, reason, away=away)

    def left_elsewhere(self, client: int, reason: str, *, away: bool) -> None:
        """Record that the member with that number has left, on any node; see `left`."""
        self._who.forget()
        is_known = self._changes.is_known(client)
        if away and is_known and self._away_seconds:
            until = trio.current_time() + self._away_seconds
            self._be_away(client, _Away(until, reason, self._came))
        else:
            self._forget_member(client)
            self._changes.leave(client, reason)
            self._tell_soon(client)

    def _be_away(self, client: int, away: "_Away") -> None:
        self._away[client] = away
        if not self._waiting_for_away:
            self._waiting_for_away = True
            self._start_soon(self._tell_away)

    def _forget_member(self, client: int) -> None:
        self._newcomers.pop(client, None)
        self._returned.pop(client, None)
        self._passed_over.pop(client, None)

    async def _tell_away(self) -> None:
        try:
            while self._away:  # the first one has been away for longest
                client, away = next(iter(self._away.items()))
                if trio.current_time() < away.until:
                    await trio.sleep_until(away.until)
                else:
                    self.end_absence(client)
        finally:
            self._waiting_for_away = False

    def end_absence(self, client: int) -> None:
        """Announce that *client*, if it is away, has left."""
        if (away := self._away.pop(client, None)) is not None:
            self._forget_member(client)
            self._changes.leave(client, away.reason)
            self._tell_soon(client)

    def encode_who(self, to: Client, nonce: Nonce | None) -> bytes:
        """Return the encoded `Members`; from then on *to* gets a `Left` of each listed member."""
        hidden = {
            number
            for number in self._arriving()
            if number != to.number and self._members[number].client.is_greeting
        }
        self._changes.show(to.number, hidden)
        if hidden != self._hidden:  # they may resume a session, under another number
            self._hidden = hidden
            self._who.forget()
        return self._who.encode(to.codec, nonce)

    def _arriving(self) -> list[int]:
        """Return the clients with changes whose hello may follow, or is being carried out."""
        now = trio.current_time()
        return [each for each in self._changes.changed if self._is_arriving(each, now)]

    def _is_arriving(self, client: int, now: float) -> bool:
        member = self._members.get(client)
        return member is not None and member.client.arriving_until > now

    def _list_members(self) -> Members:
        clients: list[Client | RemoteClient] = [
            each.client for number, each in self._members.items() if number not in self._hidden
        ]
        clients += self._remote.values()
        clients.sort(key=lambda client: client.number)  # so that all nodes list the same
        return Members(self._room, [MemberName(each.number, each.name) for each in clients])

    def introduce(self, client: int, name: str) -> None:
        """Announce *client*, whose first message is about to be delivered, unless it has been."""
        if self._returned:
            self._tell_returned()
        if client not in self._changes:
            return
        if client in self._members or client in self._remote:
            self._tell_changes()
        elif (joined := self._changes.announce(client, name)) is not None:
            self._tell(self._members.values(), [joined])

    def summarize_missed(self, member: Member) -> None:
        """Send *member*, unless it lags, one summary of the events that it missed."""
        is_here = self._members.get(member.client.number) is member
        if member.lag is None and member.missed_presence is not None and is_here:
            summary = summarize([member.missed_presence], self.count)
            summary = msgspec.structs.replace(summary, room=member.named_room)
            if member.send_queue.try_send(member.client.codec.encode(summary)) is SendResult.FULL:
                member.send_queue.call_when_space(partial(self.summarize_missed, member))
            else:
                member.missed_presence = None

    def _has_listeners(self) -> bool:
        live = sum(map(len, self._by_codec.values()))
        return bool(
            (self._to_text and self._members)
            or live < len(self._members)
            or any(members and not codec.is_text for codec, members in self._by_codec.items())
        )

    def _tell_soon(self, changed: int) -> None:
        """Schedule an announcement; called after each change, with the client that has *changed*.

        While no member receives presence, only that client is looked at: all others were before.
        """
        if self._has_listeners():
            self._is_unheard = False
            self._settle_passed_over()
            if not self._telling:
                self._telling = True
                self._start_soon(self._keep_telling)
            return
        self._returned.clear()
        if self._is_unheard:
            if self._is_arriving(changed, trio.current_time()):
                self._passed_over[changed] = self._changes.name_of(changed) or ""
            else:
                self._passed_over.pop(changed, None)
                self._changes.forget_one(changed)
        else:
            self._is_unheard = True
            self._settle_passed_over()
            arriving = self._arriving()
            for client in arriving:
                self._passed_over[client] = self._changes.name_of(client) or ""
            self._changes.forget(arriving)

    async def _keep_telling(self) -> None:
        try:
            while self._changes or self._returned:
                soon = trio.current_time() + PRESENCE_SECONDS
                await trio.sleep_until(max(soon, self._told_at + PRESENCE_PAUSE_SECONDS))
                self._tell_changes()
        finally:
            self._telling = False

    def _tell_changes(self) -> None:
        self._told_at = trio.current_time()
        self._settle_passed_over()
        self._tell_returned()
        events = self._changes.take(self._arriving())
        if len(events) > MAX_TOLD_ONE_BY_ONE:
            told = [event for _, event in events]
            self._tell(self._members.values(), [summarize(told, self.count)])
            return
        for client, event in events:
            if isinstance(event, Renamed):
                self._tell_in_other_rooms(client)
        subjects = {client for client, _ in events}
        others = [member for client, member in self._members.items() if client not in subjects]
        self._tell(others, [event for _, event in events])
        for subject in subjects:  # no member gets its own events
            if (member := self._members.get(subject)) is not None:
                self._tell([member], [event for client, event in events if client != subject])

    def _settle_passed_over(self) -> None:
        """Treat clients in `_passed_over` as announced if they sent no hello in time."""
        if self._passed_over:
            arriving = set(self._arriving())
            for client in [each for each in self._passed_over if each not in arriving]:
                self._changes.forget_join(client, self._passed_over.pop(client))

    def _tell_returned(self) -> None:
        """Announce those who have come back to the members that came while they were away."""
        back, self._returned = self._returned, {}
        returned = [each for each in back if self._changes.name_of(each) is not None]
        if not returned:
            return
        returned.sort(key=back.__getitem__)
        left = [back[each] for each in returned]
        # Members by how many of those are new to them: thousands come and return after a restart.
        groups: dict[int, list[Member]] = {}
        for number, came in reversed(self._newcomers.items()):
            if came <= left[0]:
                break
            if (member := self._members.get(number)) is not None:
                groups.setdefault(bisect_left(left, came), []).append(member)
        for count, group in groups.items():  # none is announced to itself: it came before it left
            if count > MAX_TOLD_ONE_BY_ONE:
                self._tell(group, [Presence(count, 0, 0, self.count)])
            else:
                self._tell(group, [self._joined(client) for client in returned[:count]])

    def _joined(self, client: int) -> Joined:
        return Joined(client, self._changes.name_of(client) or "", members=self.count)

    def _tell_in_other_rooms(self, renamed: int) -> None:
        """Announce the new name of that client in its other rooms, too.

        All announce it in one step, so that a client that shares several rooms gets it once.
        """
        told = set(self._members)
        for other in self._all_rooms_of(renamed):
            if other is not self:
                told.update(other.tell_renamed(renamed, told))

    def _all_rooms_of(self, client: int) -> "list[PresenceAnnouncer]":
        if (member := self._members.get(client)) is not None:
            return [each.room.presence for each in member.client.memberships.values()]
        if (remote := self._remote.get(client)) is not None:
            return [each.presence for each in remote.rooms.values() if each.presence is not None]
        return []  # it may be away

    def tell_renamed(self, renamed: int, told: Collection[int]) -> Collection[int]:
        """Announce a new name now, except to the clients *told*; return who has it then."""
        event = self._changes.take_renamed(renamed)
        if event is None:
            return ()
        others = [m for n, m in self._members.items() if n != renamed and n not in told]
        self._tell(others, [event])
        return self._members.keys()

    def _tell(
        self, members: Iterable[Member], events: Sequence[Joined | Left | Renamed | Presence]
    ) -> None:
        if not events:
            return

        plain, naming = self._batch(events), self._batch(events, self._room)
        for member in members:
            batch = naming if member.client.names_rooms else plain
            if not (data := batch.encoded(member.client.codec)):
                continue
            missed = member.missed_presence
            if member.lag is None and missed is None:
                if member.send_queue.try_send(data) is not SendResult.FULL:
                    continue
                member.send_queue.call_when_space(partial(self.summarize_missed, member))
            so_far = [] if missed is None else [missed]
            member.missed_presence = summarize([*so_far, *events], self.count)

    def _batch(self, events: Sequence[Joined | Left | Renamed | Presence], room: str = "") -> Batch:
        """Return *events* as a batch; with *room*, all but `Renamed` name it."""

        def encode(codec: Codec) -> bytes:
            if codec.is_text and not self._to_text:
                return b""
            named = [
                msgspec.structs.replace(event, room=room)
                if room and not isinstance(event, Renamed)
                else event
                for event in events
            ]
            return b"".join(map(codec.encode, named))

        return Batch(0, encode)
