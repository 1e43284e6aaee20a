"""A model of a room: whatever its members do, each has seen exactly what it should, in one order.

The room is the real one, with real mailboxes and writer tasks, in a trio run of its own thread;
hypothesis decides who joins, leaves, says, stalls and recovers.
"""

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from multichat.log import Log
from multichat.mailbox import Mailbox
from multichat.room import Member, Room, Slow
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


class GatedStream(trio.abc.SendStream):
    """Takes everything while the gate is open and nothing while it is shut."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._open = trio.Event()
        self._open.set()

    def shut(self) -> None:
        self._open = trio.Event()

    def open(self) -> None:
        self._open.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._open.wait()
        self.received += data

    async def wait_send_all_might_not_block(self) -> None:
        await self._open.wait()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@dataclass(eq=False)
class Guest:
    """A member and what the model knows of it."""

    member: Member
    stream: GatedStream
    joined_at: int  # how much had been said by then
    left_at: int | None = None
    goodbye: str = ""
    stalled: bool = False
    missed: list[tuple[int, int]] = field(default_factory=list)


class RoomMachine(RuleBasedStateMachine):
    guests = Bundle("guests")
    slow = Slow.WAIT

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.said: list[tuple[int, str]] = []  # (client, text), in the one order
        self.everybody: list[Guest] = []

    @initialize()
    def open(self) -> None:
        async def make() -> Room:
            return Room(Log("server"), slow=self.slow)

        self.room = self.loop.call(make)

    @rule(target=guests)
    def join(self) -> Guest:
        async def join() -> Guest:
            stream = GatedStream()
            mailbox = Mailbox(
                stream,  # type: ignore[arg-type] - only its sending half is used
                max_batches=2,
                patience_seconds=PATIENCE,
                spell_missed=TEXT.spell_missed,
            )
            client = len(self.everybody) + 1

            def on_leave(reason: str) -> None:
                guest.left_at = len(self.said)
                guest.goodbye = reason

            member = Member(
                client=client,
                name=f"Client {client}",
                mailbox=mailbox,
                address="",
                on_leave=on_leave,
            )
            guest = Guest(member, stream, joined_at=len(self.said))
            self.loop.nursery.start_soon(mailbox.run)
            self.room.join(member)
            return guest

        guest = self.loop.call(join)
        self.everybody.append(guest)
        return guest

    @rule(guest=consumes(guests))
    def leave(self, guest: Guest) -> None:
        async def leave() -> None:
            self.room.leave(guest.member)

        self.loop.call(leave)

    @rule(guest=consumes(guests), reason=st.sampled_from(["kicked", "flooding"]))
    def dismiss(self, guest: Guest, reason: str) -> None:
        async def dismiss() -> None:
            self.room.dismiss(guest.member, reason)

        self.loop.call(dismiss)

    @rule(target=guests, guest=consumes(guests))
    def stall(self, guest: Guest) -> Guest:
        guest.stalled = True
        guest.stream.shut()
        return guest

    @rule(target=guests, guest=consumes(guests))
    def recover(self, guest: Guest) -> Guest:
        async def recover() -> None:
            guest.stalled = False
            guest.stream.open()

        self.loop.call(recover)
        return guest

    @rule(target=guests, guest=consumes(guests), count=st.integers(1, 3))
    def say(self, guest: Guest, count: int) -> Guest:
        start = len(self.said)
        texts = [str(start + i) for i in range(count)]
        present = guest.left_at is None

        async def say() -> float:
            # What is said is part of the order from the moment that anybody may have it.
            if present:
                self.said += [(guest.member.client, text) for text in texts]
            started = trio.current_time()
            await self.room.say(guest.member.name, texts, sender=guest.member)
            return trio.current_time() - started

        took = self.loop.call(say)
        assert took <= PATIENCE
        if not any(each.stalled for each in self.everybody):
            assert took == 0
        return guest

    @rule(seconds=st.floats(0.1, 30))
    def pass_time(self, seconds: float) -> None:
        async def sleep() -> None:
            await trio.sleep(seconds)

        self.loop.call(sleep)

    @invariant()
    def everyone_has_seen_what_it_should(self) -> None:
        for guest in self.everybody:
            lines = guest.stream.received.decode().splitlines()
            expected = self._expected(guest)
            if guest.stalled:
                # A part of it, from the beginning; the rest waits in a mailbox within its bound.
                assert lines == expected[: len(lines)] or self.slow is Slow.DROP
            else:
                self._check_whole(guest, lines, expected)

    def _expected(self, guest: Guest) -> list[str]:
        said = self.said[guest.joined_at : guest.left_at]
        own = guest.member.client
        lines = [f"[Client {client}] {text}" for client, text in said if client != own]
        if guest.goodbye:
            lines.append(f"[Server] goodbye: {guest.goodbye}")
        return lines

    def _check_whole(self, guest: Guest, lines: list[str], expected: list[str]) -> None:
        if guest.goodbye == "too slow":
            # The publish that it was too slow for is what it does not have.
            assert lines[-1] == expected[-1]
            assert lines[:-1] == expected[: len(lines) - 1]
            assert len(expected) - len(lines) <= 3
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
    slow = Slow.DROP

    def _check_whole(self, guest: Guest, lines: list[str], expected: list[str]) -> None:
        """Each notice stands for exactly as many messages as are missing in its place."""
        position = 0
        for line in lines:
            if line.endswith("skipped"):
                position += int(line.split()[1])
            else:
                assert line == expected[position]
                position += 1
        # What it missed last it is told with the next message that fits.
        assert position == len(expected) or not guest.goodbye


class DisconnectMachine(RoomMachine):
    slow = Slow.DISCONNECT


@pytest.mark.parametrize("machine", [RoomMachine, DropMachine, DisconnectMachine])
def test_room(machine: type[RoomMachine]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
