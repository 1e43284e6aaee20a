"""A model of the rooms: whatever clients do, each gets exactly its messages in one order.

The registry and its rooms are real, with send queues, writers and replay tasks, in a trio run in a
separate thread; hypothesis decides which clients join, move, rename, send, stall and recover, and
when the journal can be read.

A second test covers one lagging client: at each `await` of its replay, and of the publish that it
lags behind, something happens to it.
"""

import math
import threading
from collections import deque
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
    precondition,
    rule,
    run_state_machine_as_test,
)
from trio._core import _run as trio_run

from multichat.backend.local import LocalBackend
from multichat.errors import RemoteProtocolError
from multichat.log import Log
from multichat.net.send_queue import SendQueue
from multichat.protocol.codec import Codec
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    LOBBY,
    Event,
    Goodbye,
    Joined,
    Left,
    MemberName,
    Members,
    Missed,
    Presence,
    Renamed,
    SayBlock,
)
from multichat.protocol.names import default_name, fold_name, parse_name
from multichat.protocol.text_codec import TEXT
from multichat.server.broadcast import Block
from multichat.server.client import Client
from multichat.server.config import ReplayLimits, ServerConfig, Slow
from multichat.server.registry import Registry
from multichat.server.replay import replay as replay_all
from tests.support.journals import LOTS, HeldJournal

pytestmark = pytest.mark.unit

T = TypeVar("T")

SLOW_TIMEOUT = 2.0
STALL_TIMEOUT = 40.0

# How many server notices a lagging client gets.
MAX_NOTICES = 16


class Loop:
    """A trio run in a thread, with a mock clock; calls return when all tasks are blocked again."""

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
        """Seed trio's random order of tasks."""
        trio_run._r.seed(seed)

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        async def and_settle() -> T:
            # The clock jumps only here: between two calls, the distance would depend on the
            # threads.
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
    """Accepts all data while the gate is open, and none while it is closed."""

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
    """A client's stay in a room, as positions in its messages."""

    room: str
    first: int
    last: int | None = None


@dataclass(eq=False)
class Guest:
    """A client and its stays in rooms.

    *notices* are the notices that it should have received, *later* those that it should receive
    when it is live; *may_miss* says whether the replay may have skipped messages.
    """

    client: Client
    stream: GatedStream
    stays: list[Stay] = field(default_factory=list)
    left: bool = False
    goodbye: str = ""
    stalled_at: float | None = None
    ever_behind: bool = False
    notices: list[str] = field(default_factory=list)
    later: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_NOTICES))
    known_at: int = 0  # how much it had received when it listed the members
    known: dict[int, str] = field(default_factory=dict)
    _events: list[Event] = field(default_factory=list)
    _lines: list[str] = field(default_factory=list)
    _heard_notices: list[str] = field(default_factory=list)

    @property
    def stalled(self) -> bool:
        """Whether it currently takes nothing."""
        return self.stalled_at is not None

    @property
    def events(self) -> list[Event]:
        """The events that it received, in either protocol."""
        self._take()
        return self._events

    @property
    def lines(self) -> list[str]:
        """Its messages, and the counts of missed ones."""
        self._take()
        return self._lines

    @property
    def heard_notices(self) -> list[str]:
        """The notices that it received."""
        self._take()
        return self._heard_notices

    def _take(self) -> None:
        block = self.stream.received.decode()
        self.stream.received.clear()  # parsing everything at every step would be slow
        for line in block.splitlines():
            for event in (JSON if line.startswith("{") else TEXT).parse_events(line):
                self._events.append(event)
                text = TEXT.format(event)
                if text.startswith("[Server] note "):
                    self._heard_notices.append(text)
                elif not isinstance(event, Joined | Left | Renamed | Presence):
                    self._lines += text.split("\n")

    def reached(self) -> int:
        """Return up to which message of its room it has received or queued everything."""
        room, lag = self.client.room, self.client.current.lag
        if lag is not None:
            return lag.position
        if (batch := room.slow_clients.waiting.get(self.client.current)) is not None:
            return batch.said.first if isinstance(batch, Block) else room.next
        return room.next


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
    """Under `wait`, no message is lost, and a member that stalls for long is disconnected."""

    guests = Bundle("guests")
    slow = Slow.WAIT
    room_bytes = LOTS  # the journal's limit
    limits = ReplayLimits(queue_bytes=200, ring_bytes=1500, page_messages=3)

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.loop.toss_coins(0)
        self.everybody: list[Guest] = []
        self.said = self.noted = 0
        self.waits: dict[str, list[tuple[float, float]]] = {room: [] for room in WITNESSED}
        self.loop.call(self._open)
        # Witnesses that never stall or leave: they see the order of their room.
        self.witnesses = {
            room: self.loop.call(partial(self._enter, TEXT, room, max_batches=10_000))
            for room in WITNESSED
        }

    @initialize(seed=st.integers(0, 99))
    def toss_coins(self, seed: int) -> None:
        self.loop.toss_coins(seed)

    async def _open(self) -> None:
        config = ServerConfig(
            slow=self.slow,
            slow_timeout_seconds=SLOW_TIMEOUT,
            stall_timeout_seconds=STALL_TIMEOUT,
            replay=self.limits,
        )
        self.journal = HeldJournal(max_room_bytes=self.room_bytes)
        self.registry = Registry(
            config, Log("server"), self.loop.nursery.start_soon, LocalBackend(self.journal)
        )

    def _order(self, room: str) -> list[str]:
        return self.witnesses[room].lines if room in self.witnesses else []

    async def _enter(self, codec: Codec, room: str = LOBBY, *, max_batches: int = 1) -> Guest:
        number = len(self.everybody) + 1
        stream = GatedStream()

        def on_empty() -> None:
            client.room.slow_clients.queue_ran_empty()

        send_queue = SendQueue(
            stream,
            max_batches=max_batches,
            encode_missed=lambda missed: client.codec.encode(Missed(sum(missed.values()))),
            on_empty=on_empty,
        )

        def on_leave(reason: str) -> None:
            guest.left = True
            if guest.stays[-1].last is None:
                guest.stays[-1].last = client.room.next
            guest.goodbye = reason

        replaying = False

        def on_lag() -> None:
            nonlocal replaying
            guest.ever_behind = True
            if not replaying:
                replaying = True
                self.loop.nursery.start_soon(replay)

        async def replay() -> None:
            nonlocal replaying
            await replay_all(client)
            replaying = False

        client = Client(number, default_name(number), send_queue, "", on_leave, on_lag, codec)
        guest = Guest(client, stream)
        self.loop.nursery.start_soon(send_queue.run)
        self.registry.add(client)
        if room != LOBBY:
            self.registry.move(client, room)
        self._arrive(guest)
        self.everybody.append(guest)
        return guest

    def _arrive(self, guest: Guest) -> None:
        room = guest.client.room
        guest.stays.append(Stay(room.name, room.next))
        self._learn_who_is_there(guest)

    def _learn_who_is_there(self, guest: Guest) -> None:
        room = guest.client.room
        guest.known_at = len(guest.events)
        others = sorted((each.client for each in room.members.values()), key=lambda it: it.number)
        names = [MemberName(other.number, other.name) for other in others]
        answer = guest.client.codec.encode(Members(room.name, names))
        assert room.presence.encode_who(guest.client, None) == answer
        guest.known = {each.client: each.name for each in names}

    @rule(target=guests, codec=st.sampled_from([TEXT, JSON]))
    def enter(self, codec: Codec) -> Guest:
        return self.loop.call(partial(self._enter, codec))

    @rule(guest=guests)
    def leave(self, guest: Guest) -> None:
        self.loop.call(partial(self._leave, guest))

    async def _leave(self, guest: Guest, *, after: float = 0, reason: str = "") -> None:
        """Let *guest* leave, or kick it, after a while."""
        await trio.sleep(after)
        if not guest.left:
            guest.stays[-1].last = guest.reached()
            if reason:
                self.registry.disconnect(guest.client, Goodbye.of("kicked", reason))
            else:
                self.registry.leave(guest.client)

    @rule(guest=guests, reason=st.sampled_from(["kicked", "flooding"]))
    def disconnect(self, guest: Guest, reason: str) -> None:
        self.loop.call(partial(self._leave, guest, reason=reason))

    @rule(guest=guests)
    def speak_json(self, guest: Guest) -> None:
        """Replays use JSON from now on, too."""

        async def speak() -> None:
            if guest.client.codec is not JSON:
                guest.client.set_codec(JSON)
                self._learn_who_is_there(guest)

        if not guest.left:
            self.loop.call(speak)

    @rule(guest=guests, name=st.sampled_from(NAMES))
    def rename(self, guest: Guest, name: str) -> None:
        """A rename succeeds if the name is valid and no other client has it, ignoring case."""
        if guest.left:
            return
        others = [other.client.name for other in self._present() if other is not guest]
        may = name in ("alice", "Alice", "ALICE", "bob", "안녕", "Σίσυφος", "ΣΊΣΥΦΟΣ") and (
            name.casefold() not in [other.casefold() for other in others]
        )

        async def rename() -> bool:
            try:
                self.registry.rename(guest.client, name)
            except RemoteProtocolError:
                return False
            return True

        old = guest.client.name
        assert self.loop.call(rename) == may
        assert guest.client.name == (parse_name(name) if may else old)

    @rule(guest=guests, room=st.sampled_from([*WITNESSED, "Dev", "den", "no room"]))
    def move(self, guest: Guest, room: str) -> None:
        if guest.left:
            return
        old = guest.client.room
        self.loop.call(partial(self._move, guest, room))
        expected = old.name if room == "no room" else room
        assert fold_name(guest.client.room.name) == fold_name(expected)

    async def _move(self, guest: Guest, room: str, *, after: float = 0) -> None:
        await trio.sleep(after)
        if guest.left:
            return
        old, reached = guest.client.room, guest.reached()
        try:
            self.registry.move(guest.client, room)
        except RemoteProtocolError:
            assert room == "no room"
        if guest.client.room is not old:
            guest.stays[-1].last = reached
            self._arrive(guest)

    @rule(guest=guests, back=st.integers(0, 12), move=st.sampled_from([None, *WITNESSED]))
    def ask_since(self, guest: Guest, back: int, move: str | None) -> None:
        """Request a replay from an earlier message on, which repeats received messages."""
        self.loop.call(partial(self._ask_since, guest, back, move))

    async def _ask_since(self, guest: Guest, back: int, move: str | None = None) -> None:
        if guest.left:
            return
        if move is not None:
            await self._move(guest, move)
        member = guest.client.current
        guest.stays[-1].last = guest.reached()
        position = max(0, member.room.next - back)
        member.room.start_replay(member, position)
        guest.stays.append(Stay(member.room.name, position))

    @rule()
    def hold_journal(self) -> None:
        """Block reads of messages that are not in the rings."""
        for held in self.journal.held.values():
            held.hold()

    @rule()
    def release_journal(self) -> None:
        self.loop.call(self._release_journal)

    async def _release_journal(self) -> None:
        for held in self.journal.held.values():
            held.release()

    @precondition(lambda self: self.slow is Slow.WAIT)
    @rule(room=st.sampled_from(WITNESSED), count=st.sampled_from([1, 1, 3, 20]))
    def announce(self, room: str, count: int) -> None:
        """Send a server notice; a lagging client gets the newest ones when it is live."""
        self.loop.call(partial(self._announce, room, count))

    async def _announce(self, room: str, count: int) -> None:
        witness = self.witnesses[room].client.room
        for _ in range(count):
            self.noted += 1
            notice = f"note {self.noted}"
            there = [guest for guest in self._present() if guest.client.room is witness]
            await witness.notify(notice, set())
            for guest in there:
                if guest.client.room is not witness:  # it moved meanwhile
                    continue
                if guest.client.current.lag is not None:
                    guest.later.append(f"[Server] {notice}")
                else:
                    self._settle_notices(guest)
                    guest.notices.append(f"[Server] {notice}")

    def _settle_notices(self, guest: Guest) -> None:
        if guest.client.current.lag is None:
            guest.notices += guest.later
            guest.later.clear()

    @rule(guest=guests)
    def stall(self, guest: Guest) -> None:
        async def stall() -> None:
            if not guest.stalled:
                guest.stalled_at, guest.ever_behind = trio.current_time(), True
                guest.stream.shut()

        self.loop.call(stall)

    @rule(guest=guests)
    def recover(self, guest: Guest) -> None:
        self.loop.call(partial(self._recover, guest, after=0))

    async def _recover(self, guest: Guest, *, after: float) -> None:
        await trio.sleep(after)
        guest.stalled_at = None
        guest.stream.open()

    _PAUSES = st.floats(0, 1.5 * SLOW_TIMEOUT)

    @rule(
        senders=st.lists(guests, min_size=1, max_size=3),
        publishes=st.integers(1, 4),
        count=st.integers(1, 3),
        recovering=st.lists(st.tuples(guests, _PAUSES), max_size=2),
        leaving=st.lists(st.tuples(guests, _PAUSES), max_size=1),
        moving=st.lists(st.tuples(guests, _PAUSES, st.sampled_from(WITNESSED)), max_size=1),
    )
    def say(
        self,
        senders: list[Guest],
        publishes: int,
        count: int,
        recovering: list[tuple[Guest, float]],
        leaving: list[tuple[Guest, float]],
        moving: list[tuple[Guest, float, str]],
    ) -> None:
        """Several clients send at the same time, while others recover, leave or move."""

        async def say_all(sender: Guest) -> None:
            room = sender.client.room
            for _ in range(publishes):
                if sender.left or sender.client.room is not room:
                    break
                first, self.said = self.said, self.said + count
                texts = [f"#{sender.client.number} {first + j}" for j in range(count)]
                await trio.lowlevel.checkpoint()  # as a session does before the next read
                await room.publish(sender.client.current, SayBlock("\n".join(texts)))

        async def say_in(room: str, them: list[Guest]) -> None:
            started = trio.current_time()
            async with trio.open_nursery() as saying:
                for sender in them:
                    saying.start_soon(say_all, sender)
            self.waits[room].append((started, trio.current_time()))

        async def say() -> None:
            async with trio.open_nursery() as nursery:
                for guest, after in recovering:
                    nursery.start_soon(partial(self._recover, guest, after=after))
                for guest, after in leaving:
                    nursery.start_soon(partial(self._leave, guest, after=after))
                for guest, after, room in moving:
                    nursery.start_soon(partial(self._move, guest, room, after=after))
                for room in WITNESSED:
                    them = [sender for sender in senders if sender.client.room.name == room]
                    if them := [sender for sender in them if not sender.left]:
                        nursery.start_soon(say_in, room, them)

        self.loop.call(say)

    @invariant()
    def rooms_wait_no_longer_than_their_budgets(self) -> None:
        """Waiting is never free, because a witness in each room is never slow."""
        for waits in self.waits.values():
            for i, (start, _) in enumerate(waits):
                waited = 0.0
                for begin, end in waits[i:]:
                    waited += end - begin
                    most = SLOW_TIMEOUT + (end - start) / 15 if self.slow is Slow.WAIT else 0.0
                    assert waited <= most + 1e-6

    @rule(seconds=st.floats(0.1, 30))
    def pass_time(self, seconds: float) -> None:
        self.loop.call(partial(trio.sleep, seconds))

    @rule()
    def everyone_knows_who_is_there(self) -> None:
        """After a while, clients that get presence events know the members of their room.

        A client that lagged got some events only as counts, the last of which is correct.
        """
        there: list[Client] = []
        while there != (there := self.registry.clients):  # until no more stalled members leave
            self.loop.call(partial(trio.sleep, 10))
        for guest in self._present():
            client = guest.client
            if client.codec is not JSON or guest.stalled or client.lagging():
                continue
            known, size = guest.known.copy(), len(guest.known)
            for event in guest.events[guest.known_at :]:
                if isinstance(event, Joined | Renamed):
                    assert event.client != client.number
                    known[event.client] = event.name
                elif isinstance(event, Left):
                    known.pop(event.client, None)
                if isinstance(event, Joined | Left | Presence):
                    size = event.members
            assert size == len(client.room)
            if not guest.ever_behind:
                me = {client.number: client.name}
                there = [member.client for member in client.room.members.values()]
                assert known | me == {each.number: each.name for each in there}

    @invariant()
    def everyone_has_seen_what_it_should(self) -> None:
        for room in WITNESSED:
            assert len(self._order(room)) == self.witnesses[room].client.room.next
        for guest in self.everybody:
            lag = guest.client.current.lag
            expected = [
                line
                for stay in guest.stays
                for line in self._order(stay.room)[
                    stay.first : lag.position
                    if lag is not None and stay is guest.stays[-1]
                    else stay.last
                ]
                if f"#{guest.client.number} " not in line
            ]
            if guest.goodbye:
                expected.append(f"[Server] goodbye: {guest.goodbye}")
            if not guest.stalled:
                self._check(guest, guest.lines, expected)
            elif not guest.goodbye:  # the rest is in its send queue
                self._check(guest, guest.lines, expected, whole=False)

    def _check(
        self, guest: Guest, lines: list[str], expected: list[str], *, whole: bool = True
    ) -> None:
        """Under `wait` and `disconnect`, no message that the journal has is missing."""
        if guest.goodbye == "too slow" and lines != expected:
            # The messages for which it was too slow are missing, just before the goodbye.
            assert lines[-1] == expected[-1]
            assert lines[:-1] == expected[: len(lines) - 1]
        else:
            assert lines == (expected if whole else expected[: len(lines)])

    @invariant()
    def notices_are_heard(self) -> None:
        for guest in self.everybody:
            self._settle_notices(guest)
            if guest.stalled or guest.left:
                assert guest.heard_notices == guest.notices[: len(guest.heard_notices)]
            else:
                assert guest.heard_notices == guest.notices

    @invariant()
    def nobody_is_disconnected_for_less_than_a_stall(self) -> None:
        async def now() -> float:
            return trio.current_time()

        current = self.loop.call(now)
        for guest in self.everybody:
            if self.slow is not Slow.DISCONNECT and guest.goodbye == "too slow":
                assert guest.stalled_at is not None
                assert current - guest.stalled_at >= STALL_TIMEOUT - 1e-6

    @invariant()
    def nobody_lags_without_a_reason(self) -> None:
        """A client that takes everything is live, unless the journal cannot be read."""
        held = any(not each._released.is_set() for each in self.journal.held.values())
        for guest in self._present():
            if not guest.stalled and not held:
                assert guest.client.current.lag is None

    def _present(self) -> list[Guest]:
        return [guest for guest in self.everybody if not guest.left]

    @invariant()
    def membership_is_true(self) -> None:
        present = self._present()
        assert self.registry.clients == [guest.client for guest in present]
        for guest in present:
            member = guest.client.current
            assert [member in room for room in self.registry.rooms].count(True) == 1
            assert member in guest.client.room
            assert guest.client.room.name == guest.stays[-1].room
            assert self.registry.find(guest.client.number) is guest.client
            assert self.registry.find(guest.client.name) is guest.client
        rooms = list(self.registry.rooms)
        assert sum(map(len, rooms)) == len(present)
        assert all(rooms)  # none is empty

    @invariant()
    def names_are_unique(self) -> None:
        for names in (self.registry.clients, list(self.registry.rooms)):
            folded = [fold_name(each.name) for each in names]
            assert len(set(folded)) == len(folded)

    def teardown(self) -> None:
        self.loop.close()


class SmallHistoryMachine(RoomMachine):
    """Under `wait` with a small journal, deleted messages are counted as missed."""

    room_bytes = 1200
    limits = ReplayLimits(queue_bytes=200, ring_bytes=700, page_messages=3)

    @precondition(lambda self: False)  # own messages from before a lag would count as missed
    @rule()
    def ask_since(self) -> None:
        pass

    def _check(
        self, guest: Guest, lines: list[str], expected: list[str], *, whole: bool = True
    ) -> None:
        _check_missed(guest, lines, expected, whole=whole)


class DropMachine(RoomMachine):
    """Under `drop`, rooms do not wait, and each `missed` counts the messages missing there."""

    slow = Slow.DROP

    def _check(
        self, guest: Guest, lines: list[str], expected: list[str], *, whole: bool = True
    ) -> None:
        # The last missed messages are reported with the next message, or with the goodbye.
        _check_missed(guest, lines, expected, whole=whole and bool(guest.goodbye))


def _check_missed(guest: Guest, lines: list[str], expected: list[str], *, whole: bool) -> None:
    """Each `missed` equals the number of messages missing in its place."""
    position = 0
    for line in lines:
        if line.endswith("skipped"):
            position += int(line.split()[1])
        elif guest.goodbye == "too slow" and line == expected[-1]:
            position = len(expected)
        else:
            assert line == expected[position]
            position += 1
    assert position <= len(expected)
    assert position == len(expected) or not whole


class DisconnectMachine(RoomMachine):
    """Under `disconnect`, rooms do not wait, and members with full queues are disconnected."""

    slow = Slow.DISCONNECT


@pytest.mark.parametrize(
    "machine", [RoomMachine, SmallHistoryMachine, DropMachine, DisconnectMachine]
)
def test_rooms(machine: type[RoomMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )


# --- One lagging client ---------------------------------------------------------------------------


class At(trio.abc.Instrument):
    """Calls *action*, once, when a task of that *name* is suspended for the *step*-th time."""

    def __init__(self, name: str, step: int, action: Callable[[], object]) -> None:
        self._name, self._step, self._action = name, step, action
        self.reached = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith(self._name) and not self.reached:
            if self._step == 0:
                self.reached = True
                self._action()
            self._step -= 1


class OneLagging(RoomMachine):
    """A client that lags behind another, with small pages, rings and queues."""

    async def lag(self, name: str, step: int, what_happens: str) -> bool:
        """Let *what_happens* happen at that step of a task; return whether it was reached."""
        ann = await self._enter(TEXT)
        bob = self.bob = await self._enter(JSON)

        def act() -> None:
            # Synchronously, like the effects of other clients; tasks follow afterwards.
            stay, client = bob.stays[-1], bob.client
            if bob.left:
                return
            stay.last = bob.reached()
            match what_happens:
                case "leaves":
                    self.registry.leave(client)
                case "is kicked":
                    self.registry.disconnect(client, Goodbye.of("kicked", "enough"))
                case "moves":
                    self.registry.move(client, "dev")
                    self._arrive(bob)
                case "comes back":
                    self.registry.move(client, "dev")
                    self.registry.move(client, LOBBY)
                    self._arrive(bob)
                case "lags again":
                    position = max(0, client.room.next - 4)
                    client.room.start_replay(client.current, position)
                    bob.stays.append(Stay(LOBBY, position))
                case "speaks JSON":
                    stay.last = None
                    client.set_codec(JSON)
                case "stalls":
                    stay.last = None
                    bob.stream.shut()
                    self.loop.nursery.start_soon(partial(self._recover, bob, after=1))

        at = At(name, step, act)
        trio.lowlevel.add_instrument(at)
        try:
            bob.stalled_at = trio.current_time()
            bob.stream.shut()
            for _ in range(8):
                await self._say(ann, 3)
            await self._announce(LOBBY, 2)
            self.hold_journal()
            await self._recover(bob, after=1)
            await trio.sleep(1)
            await self._say(ann, 2)
            await self._release_journal()
            await trio.sleep(5)
            await self._say(ann, 1)
            await self._say(bob, 1)
            await self._say(ann, 2)
            await trio.sleep(5)
        finally:
            trio.lowlevel.remove_instrument(at)
        return at.reached

    async def _say(self, sender: Guest, count: int) -> None:
        room = sender.client.room
        if not sender.left and room.name in WITNESSED:
            first, self.said = self.said, self.said + count
            texts = [f"#{sender.client.number} {first + j} {'x' * 50}" for j in range(count)]
            await room.publish(sender.client.current, SayBlock("\n".join(texts)))


WHAT_HAPPENS = [
    "leaves",
    "is kicked",
    "moves",
    "comes back",
    "lags again",
    "speaks JSON",
    "stalls",
]


@pytest.mark.parametrize("what_happens", WHAT_HAPPENS)
@pytest.mark.parametrize("task", ["replay", "SendQueue.run", "and_settle"])
def test_a_client_gets_every_message_once_whatever_happens_at_each_await(
    what_happens: str, task: str
) -> None:
    step = 0
    while True:
        machine = OneLagging()
        try:
            reached = machine.loop.call(partial(machine.lag, task, step, what_happens))
            machine.everyone_has_seen_what_it_should()
            machine.notices_are_heard()
            machine.membership_is_true()
            machine.nobody_lags_without_a_reason()
        finally:
            machine.teardown()
        if not reached:
            break
        step += 1
    assert machine.journal.held[LOBBY].reads
    assert step >= 5


class OneLaggingBeyondTheHistory(OneLagging, SmallHistoryMachine):
    """A client that lags for longer than messages are kept, and sends messages meanwhile."""

    async def talk(self) -> Guest:
        """Let ann and bob send messages while bob takes nothing; return bob after its recovery."""
        ann, bob = await self._enter(TEXT), await self._enter(TEXT)
        bob.stalled_at = trio.current_time()
        bob.stream.shut()
        for _ in range(8):
            await self._say(ann, 2)
            await self._say(bob, 3)
        await self._recover(bob, after=1)
        await trio.sleep(1)
        await self._say(ann, 1)
        return bob


def test_own_messages_are_not_counted_as_missed_while_lagging() -> None:
    machine = OneLaggingBeyondTheHistory()
    try:
        bob = machine.loop.call(machine.talk)
        machine.everyone_has_seen_what_it_should()
        assert sum(line.endswith("skipped") for line in bob.lines) == 1
    finally:
        machine.teardown()
