"""The log of one room in the engine, as the room sees it.

Decides nothing: `multichat.cluster.log_state` determines what comes next, and `room_logs` makes all
requests on the node's link.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from multichat.backend.base import Entry, Fed, Lost, Proposal, RoomLog, Skipped
from multichat.cluster.calls import Block, Call, Packet, Tail, read, read_before
from multichat.cluster.log_state import Handed, LostBlocks, RoomState, SkippedBlocks
from multichat.journal.base import PendingWrite, slice_block, take_first, take_newest
from multichat.protocol.messages import Nonce, SaidBlock

__all__ = ["EngineLog", "Load", "Sent"]

T = TypeVar("T")

# How many entries are handed out before a checkpoint.
_HANDED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Sent:
    """What was proposed: the room's log, the *draft*, and the proposal."""

    log: "EngineLog"
    draft: SaidBlock
    proposal: Proposal

    def succeed(self) -> None:
        """Report that the messages are in the log."""
        _succeed(self.proposal)

    def fail(self, reason: str) -> None:
        """Report that the messages are not in the log and never will be."""
        assert self.proposal.pending is not None  # noqa: S101 - `propose` has made it
        self.proposal.pending.resolve(reason)


@dataclass(slots=True, eq=False)
class Load:
    """A wait until the log was applied up to *target*, which is infinite until it is known."""

    pending: PendingWrite
    target: float = math.inf


class _Logs(Protocol):
    """The logs of the node, of which this is one."""

    def propose(self, block: Block, sent: Sent) -> None: ...

    def check(self, log: "EngineLog") -> None: ...

    def closed(self, log: "EngineLog") -> None: ...

    def note_lost(self, room: str, messages: int) -> None: ...

    async def call(self, call: Call[T]) -> T: ...


class EngineLog(RoomLog):
    """The log of the room *key*; created and opened by `room_logs.RoomLogs`.

    *state* is None until the log is loaded; *more* is set when something can be handed out.
    """

    has_feed = True

    def __init__(self, logs: _Logs, key: str, *, max_bytes: int) -> None:
        self.key = key
        self.state: RoomState[Proposal] | None = None
        self.is_open = False
        self.loads: list[Load] = []
        self.more = trio.Event()
        self.expires = math.inf
        self._logs, self._max_bytes = logs, max_bytes
        self._handed = 0
        self._is_receiving = False

    @property
    def loaded(self) -> RoomState[Proposal]:
        """The state of a log that is loaded."""
        assert self.state is not None  # noqa: S101 - only such a log is read or appended to
        return self.state

    @property
    def known_epoch(self) -> str:
        """The epoch for the next tail; empty if all epochs are needed."""
        return self.state.known_epoch if self.state is not None and self.is_open else ""

    @property
    def epoch(self) -> str:
        """The epoch of the last message that was handed out."""
        return self.loaded.epoch

    @property
    def first(self) -> int:
        """The number of the oldest message that is stored."""
        return self.loaded.first

    @property
    def next(self) -> int:
        """The number after the last message that was handed out."""
        return self.loaded.next

    @property
    def earlier(self) -> Mapping[str, int]:
        """The earlier epochs, each with the number at which the next one began."""
        return self.loaded.earlier

    def number_of(self, id_: str) -> int | None:
        """Return the number of the message with that id; see `RoomState.number_of`."""
        return self.loaded.number_of(id_)

    # --- Loading ----------------------------------------------------------------------------------

    def reconnected(self) -> None:
        """Record that any of the known messages may be lost."""
        for load in self.loads:
            load.target = math.inf
        if self.state is not None:
            self.state.reconnected()

    def take_tail(self, tail: Tail, loads: Iterable[Load]) -> None:
        """Update the state from *tail*, which was requested after *loads* had begun to wait."""
        if self.state is None or not self.is_open:
            self.state = RoomState(tail, max_bytes=self._max_bytes)
        else:
            self.state.tail(tail)
        for load in loads:
            load.target = tail.next
        if not self.is_open or self._is_receiving:
            self._resolve_loads()

    def _resolve_loads(self) -> None:
        """Resolve the loads whose messages have all been applied."""
        for load in [load for load in self.loads if load.target <= self.next]:
            self.loads.remove(load)
            load.pending.resolve()

    def fail_loads(self, reason: str) -> None:
        """Fail all loads with *reason*."""
        loads, self.loads = self.loads, []
        for load in loads:
            load.pending.resolve(reason)

    def release_loads(self) -> None:
        """Resolve all loads: the log is closed, and has to be loaded again."""
        loads, self.loads = self.loads, []
        for load in loads:
            load.pending.resolve()

    def stop(self, reason: str) -> None:
        """Fail everything that is pending, because the node stops."""
        self.fail_loads(reason)
        if self.state is not None:
            for proposal in self.state.close():
                _succeed(proposal)

    # --- Appending and receiving ------------------------------------------------------------------

    def propose(
        self,
        draft: SaidBlock,
        nonces: tuple[Nonce | None, ...] = (),
        checks: bytes = b"",
        generation: int = 1,
    ) -> Proposal:
        """Propose messages; raises `StorageFailed` while the engine is away."""
        proposal = Proposal(None, PendingWrite())
        block = Block.of(self.key, generation, draft, nonces, checks)
        self._logs.propose(block, Sent(self, draft, proposal))
        return proposal

    async def receive(self) -> Fed:
        """Return the next part of the log."""
        # Handing out many entries in a row must not keep other tasks waiting.
        self._handed = (self._handed + 1) % _HANDED_AT_ONCE
        if self._handed:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        state = self.loaded
        self._is_receiving = True
        try:
            self._resolve_loads()
            while not state.can_hand_out:
                self.more = trio.Event()
                await self.more.wait()
        finally:
            self._is_receiving = False
        fed = state.hand_out()
        if state.wanted is not None:  # there is room for more
            self._logs.check(self)
        if isinstance(fed, LostBlocks):
            for proposal in fed.proposals:
                _succeed(proposal)
            self._logs.note_lost(self.key, fed.count)
            return Lost(fed.next, fed.count, fed.proposals)
        if isinstance(fed, SkippedBlocks):
            return Skipped(fed.next, [_entry(each) for each in fed.own])
        assert fed is not None  # noqa: S101 - `can_hand_out`
        return _entry(fed)

    def close(self) -> None:
        """Stop following the log."""
        for proposal in self.loaded.close():
            _succeed(proposal)
        self._logs.closed(self)

    # --- Reading ----------------------------------------------------------------------------------

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        """Return messages, oldest first; waits while the engine is away."""
        packets = await self._logs.call(read(self.key, start, stop, max_bytes=max_bytes))
        parts = (slice_block(said, start, stop) for said in _said(packets))
        return take_first(filter(None, parts), max_bytes)

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        """Return the newest messages below *stop*; waits while the engine is away."""
        call = read_before(self.key, stop, max_messages=max_messages, max_bytes=max_bytes)
        packets = await self._logs.call(call)
        return take_newest(_said(packets), stop, max_messages=max_messages, max_bytes=max_bytes)


def _said(packets: Iterable[Packet]) -> Iterator[SaidBlock]:
    return (packet.said for packet in packets if packet.said is not None)


def _entry(handed: Handed[Proposal]) -> Entry:
    if handed.proposal is not None:
        _succeed(handed.proposal)
    return Entry(handed.said, handed.proposal)


def _succeed(proposal: Proposal) -> None:
    assert proposal.pending is not None  # noqa: S101 - `propose` has made it
    proposal.pending.resolve()
