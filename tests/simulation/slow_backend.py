"""A backend that decides late: a node of an engine that is reached over a simulated `Link`.

What is proposed is decided elsewhere, and comes back as entries of a feed and as answers, in either
order, late, in bursts, or after the link was cut and the calls were sent again.  While the engine
has been away for `AWAY_SECONDS`, new proposals are refused with `StorageFailed`; what was proposed
before stays pending until its fate is known.

The engine is in memory and decides in the step in which a call comes; see `engine`.
"""

from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import trio

from multichat.backend.base import (
    Backend,
    Claim,
    DirectFate,
    Entry,
    Fed,
    Proposal,
    RoomClaim,
    RoomLog,
)
from multichat.backend.events import (
    AvailabilityChanged,
    BanRecord,
    ClientRecord,
    DirectReceived,
    Event,
    NodeFenced,
)
from multichat.errors import MultichatError, NotRead, StorageFailed
from multichat.journal.base import (
    AccountRecord,
    PendingWrite,
    SavedSession,
    SessionRecord,
)
from multichat.protocol.messages import Directed, Nonce, SaidBlock

from .engine import Append, Ask, DirectSettled, Engine, Fenced, LogState, Stored
from .journal import Fate
from .link import Call, Link, LinkFaults
from .plan import AWAY_SECONDS

__all__ = ["SlowBackend"]

# How often a node renews its lease.
_RENEW_SECONDS = 3.0

# How long a private message waits for its fate: see docs/cluster.md.
_DIRECT_SECONDS = 15.0

# What a node reports again after it was considered dead: the others learn it only from this.
_ALWAYS_REPORTED = ("add_ban", "remove_ban")

# How long a node follows a log that it has closed, at least.
_LOADED_SECONDS = 10.0

_ENDED = "the server has ended"

# What is reported of an account: its key, what is stored, and the outcome of that.
NoteAccount = Callable[[str, AccountRecord | None, PendingWrite], None]


class SlowBackend(Backend):
    """The backend of one node, called *node*, of *engine*, with the *faults* of its link.

    With *runs_engine*, the engine is this node's alone, and ends with it.  *position* returns the
    number of log records now, and *note_account* is told of the accounts that are to be stored.

    *handed_out* has the messages that rooms were given, by room and first number; *undecided* are
    the rooms of proposals that were neither handed out nor refused when it ended.
    """

    def __init__(
        self,
        engine: Engine,
        faults: LinkFaults,
        rng: Random,
        *,
        node: object = 0,
        runs_engine: bool = True,
        position: Callable[[], int] = lambda: 0,
        note_account: NoteAccount = lambda *_: None,
    ) -> None:
        self._engine, self._faults, self._rng = engine, faults, rng
        self._node, self._runs_engine, self._position = node, runs_engine, position
        self._note_account = note_account
        self._run = 0
        self.handed_out: set[tuple[str, int]] = set()
        self.undecided: set[str] = set()
        self.link = Link(
            engine, faults, rng, answered=self._answered, pushed=self._pushed, changed=self._changed
        )
        self._waiting: dict[int, PendingWrite] = {}  # by the number of the call
        # Those that may still be handed out, with their rooms, by the number of the call.
        self._proposals: dict[int, tuple[Proposal, str]] = {}
        self._logs: dict[str, _SlowLog] = {}
        # The states of logs that were opened or loaded, and the pushes for those being loaded.
        self._states: dict[str, LogState] = {}
        self._loading: dict[str, list[SaidBlock]] = {}
        self._needed_at: dict[str, float] = {}
        self._held: dict[str, str] = {}  # rooms, by key, with their names
        self._send_events, self._events = trio.open_memory_channel[Event](1_000_000)
        self._owed: list[Ask] = []  # what a run that was fenced had to report
        self._settled: dict[str, DirectFate] = {}  # of private messages, by the engine's id
        self._something_settled = trio.Event()
        self._was_available = True
        self._is_over = False
        self._link_changed = trio.Event()

    @property
    def is_shared(self) -> bool:  # type: ignore[override]
        """As the engine."""
        return self._engine.is_shared

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the engine, and carry what is called until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                if self._runs_engine:
                    await nursery.start(self._engine.run)
                opened = self._engine.open(self.link, self._node)
                self.accounts, self.topics = opened.accounts, opened.topics
                self.bans, self.clients = opened.bans, opened.clients
                nursery.start_soon(self.link.run)
                nursery.start_soon(self._watch_availability)
                if self.is_shared:
                    nursery.start_soon(self._renew)
                task_status.started()
        finally:
            self.end(_ENDED)

    def end(self, failure: str, *, arriving: bool = False) -> None:
        """Stop at once: what is pending fails here, whatever its fate is in the engine.

        Some of what is *arriving* may still reach the engine.
        """
        if not self._is_over:
            self.undecided = {room for _, room in self._proposals.values()}
        self._is_over = True
        self.link.drop(arriving=arriving)
        for waiting in list(self._waiting.values()):
            if not waiting.resolved:
                waiting.resolve(failure)
        self._waiting.clear()

    # --- The link ---------------------------------------------------------------------------------

    @property
    def available(self) -> bool:
        """Whether the link is up, or has been down for a moment only."""
        since = self.link.away_since
        return since is None or trio.current_time() - since < AWAY_SECONDS

    def _check(self) -> None:
        if self._is_over or not self.available:
            raise StorageFailed("the engine cannot be reached")

    async def _watch_availability(self) -> None:
        while True:
            changed = self._link_changed
            timeout = AWAY_SECONDS if self.link.away_since is not None and self.available else None
            with trio.move_on_after(float("inf") if timeout is None else timeout):
                await changed.wait()
            if self.available != self._was_available:
                self._was_available = self.available
                reason = "" if self.available else "the engine cannot be reached"
                self._tell(AvailabilityChanged(self.available, reason))

    def _changed(self) -> None:
        self._link_changed.set()
        self._link_changed = trio.Event()

    async def _renew(self) -> None:
        while True:
            await trio.sleep(_RENEW_SECONDS)
            self._ask("renew")

    def _answered(self, call: Call) -> None:
        waiting, answer = self._waiting.pop(call.number), call.answer
        if isinstance(waiting, _Answer):
            if isinstance(answer, Fenced) and call.request.method in _ALWAYS_REPORTED:
                self._owed.append(call.request)
                if call.run < self._run:
                    self._report_owed()
            waiting.answer = StorageFailed("fenced") if isinstance(answer, Fenced) else answer
            if waiting.claimed is not None and answer is True:
                self._tell(waiting.claimed)
            if isinstance(answer, LogState):
                self._load(call.request.arguments[0], answer)
            waiting.resolve(
                str(waiting.answer) if isinstance(waiting.answer, StorageFailed) else ""
            )
            return
        failure = "fenced" if isinstance(answer, Fenced) else answer.failure
        earlier = {} if isinstance(answer, Fenced) else answer.earlier
        if call.number in self._proposals:  # else it was handed out already
            self._proposals[call.number][0].earlier = earlier
            if failure or len(earlier) == _messages(call.request.draft):
                del self._proposals[call.number]  # no entry comes
        if not waiting.resolved:
            waiting.resolve(failure)

    def _pushed(self, item: Any) -> None:
        if isinstance(item, Stored):
            self._put(item)
            return
        if isinstance(item, DirectReceived):
            claim = self._ask("claim_direct", item.request)
            claim.claimed = item
            return
        if isinstance(item, DirectSettled):
            self._settled[item.id] = item.fate
            self._something_settled.set()
            self._something_settled = trio.Event()
            return
        if isinstance(item, NodeFenced):
            self._run += 1
            self._report_owed()
            for key, name in self._held.items():
                self._ask("hold_room", key, name)
        self._tell(item)

    def _report_owed(self) -> None:
        owed, self._owed = self._owed, []
        for each in owed:
            self._ask(each.method, *each.arguments)

    def _put(self, stored: Stored) -> None:
        said, key, proposal = stored.said, stored.room, None
        if stored.node == self._node:
            proposal, _ = self._proposals.pop(stored.number, (None, ""))
            if proposal is not None:
                proposal.earlier = stored.earlier
        if (loading := self._loading.get(key)) is not None:
            loading.append(said)
        if key in self._states and said.first == self._states[key].next:
            self._states[key] = _after(self._states[key], said)
            if (log := self._logs.get(key)) is not None:
                log.put(Entry(said, proposal))

    def _load(self, key: str, state: LogState) -> None:
        for said in self._loading.pop(key, ()):
            if said.first == state.next:
                state = _after(state, said)
        self._states.setdefault(key, state)
        self._needed_at[key] = trio.current_time()

    def _tell(self, event: Event) -> None:
        self._send_events.send_nowait(event)

    def _ask(self, method: str, *arguments: Any) -> "_Answer":
        answer = _Answer()
        call = self.link.call(Ask(method, arguments), self._run)
        self._waiting[call.number] = answer
        if self._is_over:
            answer.resolve(_ENDED)
        return answer

    async def _get(self, method: str, *arguments: Any) -> Any:
        """Ask the engine, and return its answer; raises what it answers with, `StorageFailed`."""
        self._check()
        return await self._ask(method, *arguments).get()

    # --- Rooms ------------------------------------------------------------------------------------

    def load_room(self, key: str) -> PendingWrite | None:
        """Ask the engine for the state of the log, if this node does not follow it any more."""
        if not self.is_shared:
            return None
        now = trio.current_time()
        if key in self._states and (
            key in self._logs or now - self._needed_at[key] <= _LOADED_SECONDS
        ):
            self._needed_at[key] = now
            return None
        self._states.pop(key, None)
        self._check()
        self._loading.setdefault(key, [])
        return self._ask("load_room", key)

    async def claim_room(self, claim: RoomClaim) -> str:
        """Ask the engine."""
        self._check()
        name: str = await self._ask("claim_room", claim).get()
        self._held[claim.key] = name
        return name

    def hold_room(self, key: str, name: str) -> None:
        """Call the engine."""
        self._held[key] = name
        self._ask("hold_room", key, name)

    def release_room(self, key: str) -> None:
        """Call the engine."""
        self._held.pop(key, None)
        self._ask("release_room", key)

    def room(self, key: str) -> RoomLog:
        """Return the log as this node knows it."""
        if key not in self._states:
            if self.is_shared:
                raise StorageFailed("the room is not loaded")
            self._states[key] = self._engine.state(key)
        log = self._logs[key] = _SlowLog(self, key, self._states[key])
        return log

    def propose(
        self,
        key: str,
        draft: SaidBlock,
        nonces: tuple[Nonce | None, ...],
        checks: bytes,
        generation: int,
    ) -> Proposal:
        """See `RoomLog.propose`."""
        self._check()
        pending = PendingWrite()
        call = self.link.call(
            Append(
                room=key,
                draft=draft,
                nonces=nonces,
                checks=checks,
                generation=generation,
                position=self._position(),
            ),
            self._run,
        )
        self._waiting[call.number] = pending
        proposal = Proposal(None, pending)
        self._proposals[call.number] = proposal, key
        return proposal

    def closed(self, log: "_SlowLog") -> None:
        """Note that *log* is closed."""
        if self._logs.get(log.key) is log:
            del self._logs[log.key]
            self._needed_at[log.key] = trio.current_time()

    async def wait_up(self) -> None:
        """Wait as long as a read takes to come to the engine and back."""
        faults = self._faults
        while True:
            await trio.sleep(self._rng.uniform(0, faults.up_seconds + faults.down_seconds))
            if self.link.away_since is None:
                return
            await self._link_changed.wait()

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self._engine

    # --- Clients, sessions, and the rest ----------------------------------------------------------

    async def give_client_number(self) -> int:
        """Ask the engine for a number; if it is not shared, wait for it as long as it takes."""
        if self.is_shared:
            self._check()
        try:
            number: int = await self._ask("give_client_number").get()
        except StorageFailed:
            if self.is_shared:
                raise
            await trio.sleep_forever()  # the server has ended
            raise
        return number

    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Call the engine."""
        self._ask("save_session", record, connected)

    def forget_session(self, digest: bytes) -> None:
        """Call the engine."""
        self._ask("forget_session", digest)

    def save_nonce(self, client: int, nonce: Nonce, check: bytes) -> PendingWrite | None:
        """Call the engine."""
        self._check()
        return self._ask("save_nonce", client, nonce, check)

    async def session(self, digest: bytes) -> SavedSession | None:
        """Ask the engine, once it can be reached."""
        try:
            found: SavedSession | None = await self._ask("session", digest).get()
        except StorageFailed as error:
            raise NotRead(str(error)) from None
        return found

    async def take_session(self, digest: bytes, generation: int) -> SavedSession | None:
        """Ask the engine."""
        taken: SavedSession | None = await self._get("take_session", digest, generation)
        return taken

    async def claim(self, claim: Claim) -> None:
        """Ask the engine."""
        await self._get("claim", claim)

    def put_client(self, record: ClientRecord) -> None:
        """Call the engine."""
        self._ask("put_client", record)

    def remove_client(
        self, client: int, generation: int, reason: str, *, keep_seconds: float | None
    ) -> None:
        """Call the engine."""
        self._ask("remove_client", client, generation, reason, keep_seconds)

    async def save_account(
        self, key: str, record: AccountRecord | None, *, former: AccountRecord | None
    ) -> None:
        """Ask the engine."""
        self._check()
        fate = Fate()
        self._note_account(key, record, fate)
        await self._get("save_account", key, record, former, fate)

    async def save_topic(self, room: str, topic: str, client: int, name: str) -> None:
        """Ask the engine."""
        await self._get("save_topic", room, topic, client, name)

    def add_ban(self, ban: BanRecord) -> None:
        """Call the engine."""
        self._ask("add_ban", ban)

    def remove_ban(self, target: str) -> None:
        """Call the engine."""
        self._ask("remove_ban", target)

    def disconnect(self, client: int, code: str, reason: str) -> None:
        """Call the engine."""
        self._ask("disconnect", client, code, reason)

    def announce(self, text: str) -> None:
        """Call the engine."""
        self._ask("announce", text)

    async def send_direct(
        self,
        to: int,
        message: Directed,
        *,
        generation: int,
        nonce: Nonce | None = None,
        check: bytes = b"",
    ) -> DirectFate:
        """Ask the engine, and wait for the fate, which it pushes."""
        try:
            found = await self._get("send_direct", to, message, generation, nonce, check)
        except StorageFailed:
            if self._is_over:
                return DirectFate.UNKNOWN
            raise
        if isinstance(found, DirectFate):
            return found
        with trio.move_on_after(_DIRECT_SECONDS):
            while found not in self._settled:
                await self._something_settled.wait()
            return self._settled[found]
        return DirectFate.UNKNOWN

    def answer_direct(self, received: DirectReceived, *, delivered: bool) -> None:
        """Call the engine."""
        self._ask("answer_direct", received.request, delivered)

    async def receive(self) -> Event:
        """Return what came next."""
        return await self._events.receive()


class _Answer(PendingWrite):
    """The answer to an `Ask`, once it came."""

    __slots__ = ("answer", "claimed")

    def __init__(self) -> None:
        super().__init__()
        self.answer: Any = None
        self.claimed: DirectReceived | None = None  # it is delivered if the answer is True

    async def get(self) -> Any:
        """Return the answer; raises it if it is an error."""
        await self.wait()
        if isinstance(self.answer, MultichatError):
            raise self.answer
        return self.answer


def _messages(said: SaidBlock) -> int:
    return said.text.count("\n") + 1


def _after(state: LogState, said: SaidBlock) -> LogState:
    """Return the state of a log after *said*."""
    end = said.first + _messages(said)
    earlier = state.earlier
    if said.epoch != state.epoch:
        earlier = {**earlier, state.epoch: said.first} if said.first else {}
    return LogState(said.epoch, end, earlier)


class _SlowLog(RoomLog):
    """A room's log as one node knows it; entries wait until the room receives them."""

    has_feed = True

    def __init__(self, backend: SlowBackend, key: str, state: LogState) -> None:
        self.key = key
        self._backend, self._state = backend, state
        self._fed: deque[Entry] = deque()
        self._more = trio.Event()

    @property
    def epoch(self) -> str:
        return self._state.epoch

    @property
    def first(self) -> int:
        return min(self._backend.engine.first(self.key), self._state.next)

    @property
    def next(self) -> int:
        return self._state.next

    @property
    def earlier(self) -> Mapping[str, int]:
        return self._state.earlier

    def propose(
        self,
        draft: SaidBlock,
        nonces: tuple[Nonce | None, ...] = (),
        checks: bytes = b"",
        generation: int = 1,
    ) -> Proposal:
        return self._backend.propose(self.key, draft, nonces, checks, generation)

    def put(self, entry: Entry) -> None:
        """Hand out *entry*, after what is waiting."""
        self._fed.append(entry)
        self._more.set()

    async def receive(self) -> Fed:
        await trio.lowlevel.checkpoint()
        while not self._fed:
            self._more = trio.Event()
            await self._more.wait()
        entry = self._fed.popleft()
        assert entry.said.first == self.next, f"{self.key}: {entry.said} after {self.next}"
        self._state = _after(self._state, entry.said)
        self._backend.handed_out.add((self.key, entry.said.first))
        pending = None if entry.proposal is None else entry.proposal.pending
        if pending is not None and not pending.resolved:
            pending.resolve()
        return entry

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        await self._backend.wait_up()
        return await self._backend.engine.read(self.key, start, stop, max_bytes=max_bytes)

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        await self._backend.wait_up()
        return await self._backend.engine.read_before(
            self.key, stop, max_messages=max_messages, max_bytes=max_bytes
        )

    def close(self) -> None:
        self._backend.closed(self)
