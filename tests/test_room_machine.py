"""A model of the rooms: whatever people do, each has seen exactly what it should, in one order.

The directory and its rooms are the real ones, with real mailboxes and writer tasks, in a trio run
of its own thread; hypothesis decides who comes, goes to another room, changes names, says, stalls
and recovers.
"""

import math
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from trio._core import _run as trio_run

from multichat.config import ServerConfig, Slow
from multichat.directory import Directory
from multichat.errors import RemoteProtocolError
from multichat.log import Log
from multichat.mailbox import Mailbox
from multichat.member import Member
from multichat.messages import (
    LOBBY,
    Event,
    Goodbye,
    Joined,
    Left,
    MemberName,
    Members,
    Missed,
    Renamed,
)
from multichat.names import default_name, fold_name, parse_name
from multichat.voices import JSON, TEXT, Voice

pytestmark = pytest.mark.unit

T = TypeVar("T")

PATIENCE = 2.0


class Loop:
    """A trio run in a thread, with a clock that jumps; calls return when all is quiet again."""

    def __init__(self) -> None:
        self._started = threading.Event()
        self._clock = trio.testing.MockClock()
        self._thread = threading.Thread(
            target=trio.run, args=(self._main,), kwargs={"clock": self._clock}
        )
        self._thread.start()
        self._started.wait()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with trio.open_nursery() as self.nursery:
            self._started.set()
            await self._end.wait()
            self.nursery.cancel_scope.cancel(reason="the example is over")

    def toss_coins(self, seed: int) -> None:
        """Decide how trio tosses its coins for whose turn it is."""
        trio_run._r.seed(seed)

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        async def and_settle() -> T:
            # It jumps in here alone: between two calls, how far would be up to the threads.
            self._clock.autojump_threshold = 0
            result = await function()
            await trio.testing.wait_all_tasks_blocked()
            self._clock.autojump_threshold = math.inf
            return result

        return trio.from_thread.run(and_settle, trio_token=self._token)

    def close(self) -> None:
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join()


class GatedStream(trio.abc.Stream):
    """Takes everything while the gate is open and nothing while it is shut."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._open = trio.Event()
        self._open.set()

    def shut(self) -> None:
        if self._open.is_set():
            self._open = trio.Event()

    def open(self) -> None:
        self._open.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._open.wait()
        self.received += data

    async def wait_send_all_might_not_block(self) -> None:
        await self._open.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@dataclass
class Stay:
    """How long somebody was in a room, counted in what was said there."""

    room: str
    first: int
    last: int | None = None


@dataclass(eq=False)
class Guest:
    """A member, and from where to where in the order of which rooms it was there."""

    member: Member
    stream: GatedStream
    stays: list[Stay] = field(default_factory=list)
    left: bool = False
    goodbye: str = ""
    stalled: bool = False
    ever_stalled: bool = False
    known_at: int = 0  # how much it had been told when it learned who was in its room
    known: dict[int, str] = field(default_factory=dict)
    _events: list[Event] = field(default_factory=list)
    _lines: list[str] = field(default_factory=list)

    @property
    def events(self) -> list[Event]:
        """What it was told, in whichever voice."""
        self._take()
        return self._events

    @property
    def lines(self) -> list[str]:
        """What was said to it, and what it missed."""
        self._take()
        return self._lines

    def _take(self) -> None:
        run = self.stream.received.decode().removesuffix("\n")
        self.stream.received.clear()  # all of it at every step would take most of the time
        for event in self.member.voice.parse_events(run) if run else ():
            self._events.append(event)
            if not isinstance(event, Joined | Left | Renamed):
                self._lines += TEXT.lines(event).split("\n")


WITNESSED = (LOBBY, "dev", "ops")
NAMES = (
    "alice",
    "Alice",
    "ALICE",
    "bob",
    "안녕",
    "Σίσυφος",
    "ΣΊΣΥΦΟΣ",
    "Server",
    "client 7",
    "a b",
    "7",
)


class RoomMachine(RuleBasedStateMachine):
    """Under `wait`: who recovers in time has everything, who doesn't is told to go."""

    guests = Bundle("guests")
    slow = Slow.WAIT

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.loop.toss_coins(0)
        self.everybody: list[Guest] = []
        self.said = 0
        self.loop.call(self._open)
        # Some who never stall and never leave: what they see is the one order of their room.
        self.witnesses = {
            room: self.loop.call(partial(self._enter, TEXT, room, max_batches=10_000))
            for room in WITNESSED
        }

    @initialize(seed=st.integers(0, 99))
    def toss_coins(self, seed: int) -> None:
        self.loop.toss_coins(seed)

    async def _open(self) -> None:
        config = ServerConfig(slow=self.slow, slow_timeout_seconds=PATIENCE)
        self.directory = Directory(config, Log("server"), self.loop.nursery.start_soon)

    def _order(self, room: str) -> list[str]:
        return self.witnesses[room].lines if room in self.witnesses else []

    async def _enter(self, voice: Voice, room: str = LOBBY, *, max_batches: int = 1) -> Guest:
        client = len(self.everybody) + 1
        stream = GatedStream()
        mailbox = Mailbox(
            stream,
            max_batches=max_batches,
            spell_missed=lambda count: voice.spell(Missed(count)),
        )

        def on_leave(reason: str) -> None:
            guest.left = True
            guest.stays[-1].last = member.room.messages
            guest.goodbye = reason

        member = Member(client, default_name(client), mailbox, "", on_leave, lambda: None, voice)
        guest = Guest(member, stream)
        self.loop.nursery.start_soon(mailbox.run)
        self.directory.enter(member)
        if room != LOBBY:
            self.directory.move(member, room)
        self._arrive(guest)
        self.everybody.append(guest)
        return guest

    def _arrive(self, guest: Guest) -> None:
        room = guest.member.room
        guest.stays.append(Stay(room.name, room.messages))
        guest.known_at = len(guest.events)
        names = [MemberName(other.client, other.name) for other in room.members]
        answer = guest.member.voice.spell(Members(room.name, names))
        assert room.who(guest.member) == answer
        guest.known = {each.client: each.name for each in names}

    @rule(target=guests, voice=st.sampled_from([TEXT, JSON]))
    def enter(self, voice: Voice) -> Guest:
        return self.loop.call(partial(self._enter, voice))

    @rule(guest=guests)
    def leave(self, guest: Guest) -> None:
        async def leave() -> None:
            self.directory.leave(guest.member)

        self.loop.call(leave)

    @rule(guest=guests, reason=st.sampled_from(["kicked", "flooding"]))
    def dismiss(self, guest: Guest, reason: str) -> None:
        async def dismiss() -> None:
            self.directory.dismiss(guest.member, Goodbye.of("kicked", reason))

        self.loop.call(dismiss)

    @rule(guest=guests, name=st.sampled_from(NAMES))
    def rename(self, guest: Guest, name: str) -> None:
        """A name is given if it may be and nobody else has it, whatever its letters' case."""
        if guest.left:
            return
        others = [other.member.name for other in self._present() if other is not guest]
        may = name in ("alice", "Alice", "ALICE", "bob", "안녕", "Σίσυφος", "ΣΊΣΥΦΟΣ") and (
            name.casefold() not in [other.casefold() for other in others]
        )

        async def rename() -> bool:
            try:
                self.directory.rename(guest.member, name)
            except RemoteProtocolError:
                return False
            return True

        old = guest.member.name
        assert self.loop.call(rename) == may
        assert guest.member.name == (parse_name(name) if may else old)

    @rule(guest=guests, room=st.sampled_from([*WITNESSED, "Dev", "den", "no room"]))
    def move(self, guest: Guest, room: str) -> None:
        if guest.left:
            return
        old = guest.member.room

        async def move() -> None:
            messages = old.messages
            try:
                self.directory.move(guest.member, room)
            except RemoteProtocolError:
                assert room == "no room"
            if guest.member.room is not old:
                guest.stays[-1].last = messages
                self._arrive(guest)

        self.loop.call(move)
        expected = old.name if room == "no room" else room
        assert fold_name(guest.member.room.name) == fold_name(expected)

    @rule(guest=guests)
    def stall(self, guest: Guest) -> None:
        guest.stalled = guest.ever_stalled = True
        guest.stream.shut()

    @rule(guest=guests)
    def recover(self, guest: Guest) -> None:
        self.loop.call(partial(self._recover, guest, after=0))

    async def _recover(self, guest: Guest, *, after: float) -> None:
        await trio.sleep(after)
        guest.stalled = False
        guest.stream.open()

    @rule(
        senders=st.lists(guests, min_size=1, max_size=3),
        publishes=st.integers(1, 4),
        count=st.integers(1, 3),
        recovering=st.lists(st.tuples(guests, st.floats(0, 1.5 * PATIENCE)), max_size=2),
    )
    def say(
        self,
        senders: list[Guest],
        publishes: int,
        count: int,
        recovering: list[tuple[Guest, float]],
    ) -> None:
        """Some say something at the same time, while some others recover."""

        async def say_all(sender: Guest) -> None:
            for _ in range(publishes):
                first, self.said = self.said, self.said + count
                texts = [f"#{sender.member.client} {first + j}" for j in range(count)]
                await trio.lowlevel.checkpoint()  # as every session does before it reads on
                await sender.member.room.say(sender.member, "\n".join(texts))

        async def say() -> float:
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                for guest, after in recovering:
                    nursery.start_soon(partial(self._recover, guest, after=after))
                async with trio.open_nursery() as saying:
                    for sender in senders:
                        if sender.member.room.name in WITNESSED:
                            saying.start_soon(say_all, sender)
                return trio.current_time() - started

        stalled = sum(guest.stalled and not guest.left for guest in self.everybody)
        took = self.loop.call(say)
        # Each who stalls keeps the room for at most its patience, however much is said.
        assert took <= PATIENCE * stalled * (self.slow is Slow.WAIT) + 1e-6

    @rule(seconds=st.floats(0.1, 30))
    def pass_time(self, seconds: float) -> None:
        self.loop.call(partial(trio.sleep, seconds))

    @rule()
    def everyone_knows_who_is_there(self) -> None:
        """After a while, who hears of comings and goings has heard of all that matter."""
        self.loop.call(partial(trio.sleep, 10))
        for guest in self._present():
            if guest.member.voice is not JSON or guest.ever_stalled:
                continue
            known = guest.known.copy()
            for event in guest.events[guest.known_at :]:
                if isinstance(event, Joined | Renamed):
                    assert event.client != guest.member.client
                    known[event.client] = event.name
                elif isinstance(event, Left):
                    known.pop(event.client, None)
            me = {guest.member.client: guest.member.name}
            assert known | me == {m.client: m.name for m in guest.member.room.members}

    @invariant()
    def everyone_has_seen_what_it_should(self) -> None:
        for room in WITNESSED:
            assert len(self._order(room)) == self.witnesses[room].member.room.messages
        for guest in self.everybody:
            expected = [
                line
                for stay in guest.stays
                for line in self._order(stay.room)[stay.first : stay.last]
                if f"#{guest.member.client} " not in line
            ]
            if guest.goodbye:
                expected.append(f"[Server] goodbye: {guest.goodbye}")
            if not guest.stalled:
                self._check(guest, guest.lines, expected)
            elif self.slow is not Slow.DROP and not guest.goodbye:
                # The rest waits for it in a mailbox.
                assert guest.lines == expected[: len(guest.lines)]

    def _check(self, guest: Guest, lines: list[str], expected: list[str]) -> None:
        if guest.goodbye == "too slow":
            # Only the publish that it was too slow for is missing, just before the goodbye.
            assert lines[-1] == expected[-1]
            assert lines[:-1] == expected[: len(lines) - 1]
            assert 0 <= len(expected) - len(lines) <= 3
        else:
            assert lines == expected

    def _present(self) -> list[Guest]:
        return [guest for guest in self.everybody if not guest.left]

    @invariant()
    def membership_is_true(self) -> None:
        present = self._present()
        assert self.directory.members == [guest.member for guest in present]
        for guest in present:
            assert [guest.member in room for room in self.directory.rooms].count(True) == 1
            assert guest.member in guest.member.room
            assert guest.member.room.name == guest.stays[-1].room
            assert self.directory.find(guest.member.client) is guest.member
            assert self.directory.find(guest.member.name) is guest.member
        rooms = self.directory.rooms
        assert sum(map(len, rooms)) == len(present)
        assert all(rooms)  # an empty one is none

    @invariant()
    def names_are_unique(self) -> None:
        for names in (self.directory.members, self.directory.rooms):
            folded = [fold_name(each.name) for each in names]
            assert len(set(folded)) == len(folded)

    def teardown(self) -> None:
        self.loop.close()


class DropMachine(RoomMachine):
    """Under `drop`: nobody waits, and each notice stands for what is missing in its place."""

    slow = Slow.DROP

    def _check(self, guest: Guest, lines: list[str], expected: list[str]) -> None:
        position = 0
        for line in lines:
            if line.endswith("skipped"):
                position += int(line.split()[1])
            else:
                assert line == expected[position]
                position += 1
        # What it missed last it is told with the next message, or with the goodbye.
        assert position <= len(expected)
        assert position == len(expected) or not guest.goodbye


class DisconnectMachine(RoomMachine):
    """Under `disconnect`: nobody waits, and who was full has to go."""

    slow = Slow.DISCONNECT


@pytest.mark.parametrize("machine", [RoomMachine, DropMachine, DisconnectMachine])
def test_rooms(machine: type[RoomMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
