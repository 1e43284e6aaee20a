"""A model of a room: whatever its members do, each has seen exactly what it should, in one order.

The room is the real one, with real mailboxes and writer tasks, in a trio run of its own thread;
hypothesis decides who joins, leaves, says, stalls and recovers.
"""

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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
    invariant,
    rule,
    run_state_machine_as_test,
)

from multichat.config import Slow
from multichat.log import Log
from multichat.mailbox import Mailbox
from multichat.room import Member, Room
from multichat.voices import TEXT

T = TypeVar("T")

PATIENCE = 2.0


class Loop:
    """A trio run in a thread, with a clock that jumps; calls return when all is quiet again."""

    def __init__(self) -> None:
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), kwargs={
            "clock": trio.testing.MockClock(autojump_threshold=0),
        })  # fmt: skip
        self._thread.start()
        self._started.wait()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with trio.open_nursery() as self.nursery:
            self._started.set()
            await self._end.wait()
            self.nursery.cancel_scope.cancel(reason="the example is over")

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        async def and_settle() -> T:
            result = await function()
            await trio.testing.wait_all_tasks_blocked()
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


@dataclass(eq=False)
class Guest:
    """A member, and from where to where in the one order it was in the room."""

    member: Member
    stream: GatedStream
    joined_at: int
    left_at: int | None = None
    goodbye: str = ""
    stalled: bool = False

    @property
    def lines(self) -> list[str]:
        return self.stream.received.decode().splitlines()


class RoomMachine(RuleBasedStateMachine):
    """Under `wait`: who recovers in time has everything, who doesn't is told to go."""

    guests = Bundle("guests")
    slow = Slow.WAIT

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.everybody: list[Guest] = []
        self.room = self.loop.call(self._open)
        # Someone who never stalls and never leaves: what it sees is the one order.
        self.witness = self.loop.call(partial(self._join, max_batches=10_000))

    async def _open(self) -> Room:
        return Room(Log("server"), slow=self.slow)

    async def _join(self, max_batches: int) -> Guest:
        client = len(self.everybody) + 1
        stream = GatedStream()
        mailbox = Mailbox(
            stream,
            max_batches=max_batches,
            patience_seconds=PATIENCE,
            spell_missed=TEXT.spell_missed,
        )

        def on_leave(reason: str) -> None:
            guest.left_at = self.room.messages
            guest.goodbye = reason

        member = Member(client, f"Client {client}", mailbox, "", on_leave)
        guest = Guest(member, stream, joined_at=self.room.messages)
        self.loop.nursery.start_soon(mailbox.run)
        self.room.join(member)
        self.everybody.append(guest)
        return guest

    @rule(target=guests)
    def join(self) -> Guest:
        return self.loop.call(partial(self._join, max_batches=1))

    @rule(guest=guests)
    def leave(self, guest: Guest) -> None:
        async def leave() -> None:
            self.room.leave(guest.member)

        self.loop.call(leave)

    @rule(guest=guests, reason=st.sampled_from(["kicked", "flooding"]))
    def dismiss(self, guest: Guest, reason: str) -> None:
        async def dismiss() -> None:
            self.room.dismiss(guest.member, reason)

        self.loop.call(dismiss)

    @rule(guest=guests)
    def stall(self, guest: Guest) -> None:
        guest.stalled = True
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
            for i in range(publishes):
                texts = [f"{len(self.everybody)}.{i}.{j}" for j in range(count)]
                await trio.lowlevel.checkpoint()  # as every session does before it reads on
                await self.room.say(sender.member.name, "\n".join(texts), sender=sender.member)

        async def say() -> float:
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                for guest, after in recovering:
                    nursery.start_soon(partial(self._recover, guest, after=after))
                async with trio.open_nursery() as saying:
                    for sender in senders:
                        saying.start_soon(say_all, sender)
                return trio.current_time() - started

        stalled = sum(guest.stalled and guest.left_at is None for guest in self.everybody)
        took = self.loop.call(say)
        # Each who stalls keeps the room for at most its patience, however much is said.
        assert took <= PATIENCE * stalled * (self.slow is Slow.WAIT) + 1e-6

    @rule(seconds=st.floats(0.1, 30))
    def pass_time(self, seconds: float) -> None:
        self.loop.call(partial(trio.sleep, seconds))

    @invariant()
    def everyone_has_seen_what_it_should(self) -> None:
        order = self.witness.lines
        assert len(order) == self.room.messages
        for guest in self.everybody:
            own = f"[{guest.member.name}] "
            heard = order[guest.joined_at : guest.left_at]
            expected = [line for line in heard if not line.startswith(own)]
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
            assert 0 < len(expected) - len(lines) <= 3
        else:
            assert lines == expected

    @invariant()
    def the_room_holds_who_has_not_left(self) -> None:
        assert [member.client for member in self.room.members] == [
            guest.member.client for guest in self.everybody if guest.left_at is None
        ]

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
def test_room(machine: type[RoomMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
