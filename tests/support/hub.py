"""Several nodes of one chat in memory: a backend for each, and what they share.

Everything is decided in the hub, in the order in which it is asked; answers, entries and events
reach a node only after a checkpoint or, while the node is `held`, when it is released.
"""

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
import trio

from multichat.backend.base import (
    Backend,
    Claim,
    DirectFate,
    Entry,
    Fed,
    Lost,
    Proposal,
    RoomClaim,
    RoomLog,
)
from multichat.backend.events import (
    AccountChanged,
    Announced,
    AvailabilityChanged,
    BanAdded,
    BanRecord,
    BanRemoved,
    ClientGone,
    ClientPut,
    ClientRecord,
    DirectReceived,
    DisconnectAsked,
    Event,
    NameLost,
    NodeFenced,
    Replaced,
    TopicChanged,
)
from multichat.errors import (
    InvalidName,
    NameTaken,
    NotRead,
    StorageFailed,
    TooManyRooms,
)
from multichat.journal.base import (
    AccountRecord,
    PendingWrite,
    SavedNonce,
    SavedSession,
    SessionRecord,
    slice_block,
    take_first,
    take_newest,
)
from multichat.protocol.ids import message_id, message_number
from multichat.protocol.lookalikes import lookalike_keys
from multichat.protocol.messages import Directed, Nonce, SaidBlock
from multichat.protocol.names import fold_name, lookalike_room

AWAY = "the storage is away"

# Longer than a node may take to deliver a private message.
_ANSWER_SECONDS = 10.0


class _Room:
    """The messages of a room, for all nodes; *epochs* has each epoch and its first number."""

    def __init__(self, number: int) -> None:
        self.epochs = [(f"{number:011x}", 0)]
        self.blocks: list[SaidBlock] = []
        self.next = 0
        self.logs: list[_Log] = []


class _Held:
    """What the hub keeps of a client; *until* is when its names are free, if it has left."""

    def __init__(self, record: ClientRecord, node: str) -> None:
        self.record, self.node = record, node
        self.names: dict[str, str] = {}  # folded and as written
        self.until = math.inf


class Hub:
    """What all nodes share; `node` makes the backend of one of them."""

    def __init__(self) -> None:
        self.nodes: dict[str, HubBackend] = {}
        self.rooms: dict[str, _Room] = {}
        self.clients: dict[int, _Held] = {}
        self.generations: dict[int, int] = {}
        self.sessions: dict[bytes, SessionRecord] = {}
        self.left_at: dict[bytes, float] = {}
        self.nonces: dict[int, dict[Nonce, SavedNonce]] = defaultdict(dict)
        self.accounts: dict[str, AccountRecord] = {}
        self.topics: dict[str, str] = {}
        self.bans: dict[str, BanRecord] = {}
        self.open: dict[str, tuple[str, set[str]]] = {}  # rooms by key: name, and their nodes
        self.claimed = 0  # how often a room was
        self.numbers = 0
        self.requests = 0

    def node(self, name: str) -> "HubBackend":
        """Return the backend of a new node."""
        backend = self.nodes[name] = HubBackend(self, name)
        return backend

    def room(self, key: str) -> _Room:
        """Return the shared part of a room."""
        if key not in self.rooms:
            self.rooms[key] = _Room(len(self.rooms) + 1)
        return self.rooms[key]

    def tell(self, event: Event, *, but: str = "", only: str = "") -> None:
        """Hand *event* to all nodes, or some of them."""
        for name, node in self.nodes.items():
            if name != but and (not only or name == only):
                node.events.append(event)
                node.wake()

    def is_fenced(self, client: int, generation: int) -> bool:
        """Whether that generation of a client is an old one."""
        return generation < self.generations.get(client, 0)

    def claim(self, claim: Claim, node: str) -> None:
        """Decide *claim*."""
        if self.is_fenced(claim.client, claim.generation):
            raise NameTaken(claim.name)
        wanted = set(lookalike_keys(claim.name))
        for number, held in list(self.clients.items()):
            if number == claim.client:
                continue
            logged_in = bool(claim.account) and held.record.account == claim.account
            if logged_in and not claim.login:
                raise NameTaken(claim.name)
            for key, name in list(held.names.items()):
                if wanted.isdisjoint(lookalike_keys(name)):
                    continue
                is_away = held.until < math.inf
                may_take = is_away and (
                    held.until <= trio.current_time()
                    or held.record.origin == claim.origin
                    or claim.account == fold_name(claim.name)
                )
                if not (claim.login or may_take):
                    raise NameTaken(claim.name, "" if key == fold_name(claim.name) else name)
                del held.names[key]
                if not is_away:
                    generation = held.record.generation
                    lost = NameLost(number, generation, name, login=logged_in)
                    self.tell(lost, only=held.node)
            if logged_in:
                held.record = msgspec.structs.replace(held.record, account="")
        own = self.clients.get(claim.client)
        if own is None:
            record = ClientRecord(client=claim.client, generation=claim.generation)
            own = self.clients[claim.client] = _Held(record, node)
        own.until = math.inf
        own.names[fold_name(claim.name)] = claim.name

    def claim_room(self, claim: RoomClaim, node: str) -> str:
        """Decide *claim*."""
        self.claimed += 1
        has_messages = claim.key in self.rooms and self.rooms[claim.key].next > 0
        if not (claim.valid or has_messages):
            raise InvalidName(claim.name)
        if claim.key not in self.open:
            closing = [key for key in claim.leaving if self.open.get(key, ("", {}))[1] == {node}]
            if len(self.open) - len(closing) >= claim.most:
                raise TooManyRooms(claim.most)
            for name, _ in self.open.values():
                if not (
                    has_messages or set(lookalike_keys(name)).isdisjoint(lookalike_keys(claim.name))
                ):
                    raise lookalike_room(claim.name, name)
        return self.hold_room(claim.key, claim.name, node)

    def hold_room(self, key: str, name: str, node: str) -> str:
        """Note that *node* has the room open."""
        name, nodes = self.open.setdefault(key, (name, set()))
        nodes.add(node)
        return name

    def release_room(self, key: str, node: str) -> None:
        """Note that *node* has it open no more."""
        if key in self.open:
            self.open[key][1].discard(node)
            if not self.open[key][1]:
                del self.open[key]

    def put_client(self, record: ClientRecord, node: str) -> None:
        """Note what *node* reports."""
        if self.is_fenced(record.client, record.generation):
            return
        self.generations[record.client] = record.generation
        held = self.clients.setdefault(record.client, _Held(record, node))
        held.record, held.node, held.until = record, node, math.inf
        kept = fold_name(record.name)
        held.names = {key: name for key, name in held.names.items() if key == kept}
        self.tell(ClientPut(record), but=node)

    def remove_client(
        self, client: int, generation: int, reason: str, keep_seconds: float | None, node: str
    ) -> None:
        """Note that a client has left."""
        held = self.clients.get(client)
        if held is None or generation < held.record.generation:
            return
        if self.is_fenced(client, generation):
            return
        if keep_seconds is None:
            del self.clients[client]
        else:
            held.until = trio.current_time() + keep_seconds
            held.record = msgspec.structs.replace(held.record, account="", rooms=())
        # Also to that node: it may have been about to resume a client of another one.
        self.tell(ClientGone(client, generation, reason, keep_seconds is not None))

    def disconnect(self, client: int, code: str, reason: str) -> None:
        """End the session of a client, and have its node disconnect it."""
        for digest, record in list(self.sessions.items()):
            if record.client == client:
                del self.sessions[digest]
        held = self.clients.get(client)
        if held is not None and held.until == math.inf:
            self.tell(DisconnectAsked(client, code, reason), only=held.node)

    def fail_over(self, key: str, next_: int) -> None:
        """Lose the messages of a room from number *next_* on, and continue in a new epoch."""
        room = self.rooms[key]
        kept = [slice_block(each, 0, next_) for each in room.blocks]
        room.blocks = [each for each in kept if each is not None]
        room.next = next_
        room.epochs.append((f"{int(room.epochs[-1][0], 16) + 1000:011x}", next_))
        for nonces in self.nonces.values():
            for nonce, saved in list(nonces.items()):
                if saved.room == key and saved.number >= next_:
                    del nonces[nonce]
        for log in room.logs:
            log.lose(next_)

    def fence(self, name: str) -> None:
        """Take the node *name* for dead: its clients are removed."""
        node = self.nodes[name]
        for number, held in list(self.clients.items()):
            if held.node == name and held.until == math.inf:
                generation = held.record.generation
                self.remove_client(number, generation, "connection lost", 60.0, name)
                self.generations[number] = generation + 1
        for digest, record in list(self.sessions.items()):
            generation = self.generations.get(record.client, record.generation)
            self.sessions[digest] = replace(record, generation=generation)
            self.left_at[digest] = min(self.left_at[digest], trio.current_time())
        node.events.append(NodeFenced())
        node.wake()


class HubBackend(Backend):
    """The backend of one node."""

    is_shared = True
    location = "the hub"

    def __init__(self, hub: Hub, name: str) -> None:
        self._hub, self.name = hub, name
        self.events: deque[Event] = deque()
        self._available, self._loses = True, False
        self._free = trio.Event()
        self._free.set()
        self._woken = trio.Event()
        self._loaded: set[str] = set()
        self._answers: dict[str, tuple[trio.Event, list[bool]]] = {}

    # --- The test's part --------------------------------------------------------------------------

    def hold(self) -> None:
        """Let nothing reach this node from now on."""
        self._free = trio.Event()

    def release(self) -> None:
        """Let everything reach this node again."""
        self._free.set()

    def lose_answers(self) -> None:
        """Let those fail that wait for a room, whose fate they do not learn."""
        self._loses = True
        self.release()

    def become(self, *, available: bool) -> None:
        """Change whether anything can be decided here."""
        self._available = available
        why = () if available else (AWAY, self.refusal, self.is_away)
        self.events.append(AvailabilityChanged(available, *why))
        self.wake()

    def wake(self) -> None:
        """Note that there is something to receive."""
        self._woken.set()
        self._woken = trio.Event()

    async def _reply(self) -> None:
        """Wait for an answer of the hub."""
        await trio.lowlevel.checkpoint()
        await self._free.wait()

    def _check(self) -> None:
        if not self._available:
            raise StorageFailed(AWAY)

    # --- The backend ------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        hub = self._hub
        self.accounts = list(hub.accounts.values())
        self.topics = dict(hub.topics)
        self.bans = list(hub.bans.values())
        self.clients = [each.record for each in hub.clients.values() if each.until == math.inf]
        self.events.clear()
        task_status.started()
        await trio.sleep_forever()

    refusal = AWAY

    @property
    def available(self) -> bool:
        return self._available

    def load_room(self, key: str) -> PendingWrite | None:
        if key in self._loaded:
            return None
        pending = PendingWrite()
        if not self._available:
            pending.resolve(AWAY)
            return pending
        self._loaded.add(key)
        pending.resolve()
        return pending

    def room(self, key: str) -> RoomLog:
        if key not in self._loaded:
            raise StorageFailed("it is not loaded")
        return _Log(self._hub, self, key)

    async def claim_room(self, claim: RoomClaim) -> str:
        self._check()
        self._loses = False
        try:
            return self._hub.claim_room(claim, self.name)
        finally:
            await self._reply()
            if self._loses:
                raise StorageFailed(AWAY)

    def hold_room(self, key: str, name: str) -> None:
        self._hub.hold_room(key, name, self.name)

    def release_room(self, key: str) -> None:
        self._hub.release_room(key, self.name)

    def unload(self, key: str) -> None:
        """Note that a room is closed."""
        self._loaded.discard(key)

    async def give_client_number(self) -> int:
        self._check()
        self._hub.numbers += 1
        number = self._hub.numbers
        await self._reply()
        return number

    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        stored = self._hub.sessions.get(record.digest)
        if stored is None or stored.generation <= record.generation:
            self._hub.sessions[record.digest] = record
            self._hub.left_at[record.digest] = math.inf if connected else trio.current_time()

    def forget_session(self, digest: bytes) -> None:
        self._hub.sessions.pop(digest, None)

    def _saved(self, digest: bytes) -> SavedSession | None:
        record = self._hub.sessions.get(digest)
        if record is None:
            return None
        age = max(0.0, trio.current_time() - self._hub.left_at[digest])
        nonces = list(self._hub.nonces[record.client].values())
        return SavedSession(record=record, age_seconds=age, nonces=nonces)

    async def session(self, digest: bytes) -> SavedSession | None:
        if not self._available:
            raise NotRead(AWAY)
        saved = self._saved(digest)
        await self._reply()
        return saved

    async def take_session(self, digest: bytes, generation: int) -> SavedSession | None:
        self._check()
        hub = self._hub
        record = hub.sessions.get(digest)
        saved = None
        if record is not None and record.generation == generation:
            hub.sessions[digest] = replace(record, generation=generation + 1)
            hub.left_at[digest] = math.inf
            hub.generations[record.client] = generation + 1
            held = hub.clients.get(record.client)
            if held is not None and held.node != self.name:
                hub.tell(Replaced(record.client, generation), only=held.node)
            if held is not None:
                held.node, held.until = self.name, math.inf
            saved = self._saved(digest)
        await self._reply()
        return saved

    async def claim(self, claim: Claim) -> None:
        self._check()
        try:
            self._hub.claim(claim, self.name)
        finally:
            await self._reply()

    def put_client(self, record: ClientRecord) -> None:
        self._hub.put_client(record, self.name)

    def remove_client(
        self, client: int, generation: int, reason: str, *, keep_seconds: float | None
    ) -> None:
        self._hub.remove_client(client, generation, reason, keep_seconds, self.name)

    async def save_account(
        self, key: str, record: AccountRecord | None, *, former: AccountRecord | None
    ) -> None:
        self._check()
        if self._hub.accounts.get(key) != former:
            raise NameTaken(key)
        if record is None:
            self._hub.accounts.pop(key)
            self._hub.tell(AccountChanged(key), but=self.name)
        else:
            self._hub.accounts[key] = record
            self._hub.tell(AccountChanged(key, record.name, record.hash), but=self.name)
        await self._reply()

    async def save_topic(self, room: str, topic: str, client: int, name: str) -> None:
        self._check()
        self._hub.topics[room] = topic
        self._hub.tell(TopicChanged(room, topic, client, name))
        await self._reply()

    def add_ban(self, ban: BanRecord) -> None:
        self._hub.bans[ban.target] = ban
        self._hub.tell(BanAdded(ban))

    def remove_ban(self, target: str) -> None:
        self._hub.bans.pop(target, None)
        self._hub.tell(BanRemoved(target))

    def disconnect(self, client: int, code: str, reason: str) -> None:
        self._hub.disconnect(client, code, reason)

    def announce(self, text: str) -> None:
        self._hub.tell(Announced(text), but=self.name)

    async def send_direct(
        self,
        to: int,
        message: Directed,
        *,
        generation: int,
        nonce: Nonce | None = None,
        check: bytes = b"",
    ) -> DirectFate:
        self._check()
        held, nonces = self._hub.clients.get(to), self._hub.nonces[message.client]
        if self._hub.is_fenced(message.client, generation):
            raise StorageFailed("fenced")
        if nonce is not None and nonce in nonces:
            return DirectFate.DELIVERED
        if held is None:
            return DirectFate.NOT_DELIVERED
        if nonce is not None:
            nonces[nonce] = SavedNonce(nonce, "", 0, "", check)
        self._hub.requests += 1
        request = f"{self.name} {self._hub.requests}"
        answered, answer = self._answers[request] = trio.Event(), []
        self._hub.tell(DirectReceived(request, to, message), only=held.node)
        with trio.move_on_after(_ANSWER_SECONDS):
            await answered.wait()
        del self._answers[request]
        await self._reply()
        if answer == [False] and nonce is not None:
            del nonces[nonce]
        if answer:
            return DirectFate.DELIVERED if answer[0] else DirectFate.NOT_DELIVERED
        return DirectFate.UNKNOWN

    def answer_direct(self, received: DirectReceived, *, delivered: bool) -> None:
        node = self._hub.nodes[received.request.partition(" ")[0]]
        if received.request in node._answers:
            answered, answer = node._answers[received.request]
            answer.append(delivered)
            answered.set()

    async def receive(self) -> Event:
        await trio.lowlevel.checkpoint()
        while not (self.events and self._free.is_set()):
            await self._free.wait()
            if not self.events:
                await self._woken.wait()
        return self.events.popleft()


class _Log(RoomLog):
    """One node's log of a room: it has what the hub has, up to what was handed out here."""

    has_feed = True

    def __init__(self, hub: Hub, node: HubBackend, key: str) -> None:
        self._hub, self._node, self._key = hub, node, key
        self._room = hub.room(key)
        self._room.logs.append(self)
        self._next = self._room.next
        self._epochs = len(self._room.epochs)  # so many are known here
        self._fed: deque[Fed] = deque()

    @property
    def epoch(self) -> str:
        return self._room.epochs[self._epochs - 1][0]

    @property
    def first(self) -> int:
        return self._room.blocks[0].first if self._room.blocks else self._room.next

    @property
    def next(self) -> int:
        return self._next

    @property
    def earlier(self) -> Mapping[str, int]:
        epochs = self._room.epochs[: self._epochs]
        return {epoch: end for (epoch, _), (_, end) in itertools.pairwise(epochs)}

    def number_of(self, id_: str) -> int | None:
        epoch = id_.partition("-")[0]
        end = self.earlier.get(epoch)
        number = message_number(epoch, id_)
        if end is not None and number is not None:
            return min(number, end - 1)
        return super().number_of(id_)

    def lose(self, next_: int) -> None:
        """Note that the hub has lost the messages from *next_* on."""
        lost: list[Proposal] = []
        kept: deque[Fed] = deque()
        for fed in self._fed:
            if isinstance(fed, Entry) and fed.said.first >= next_:
                lost += [] if fed.proposal is None else [fed.proposal]
            else:
                kept.append(fed)
        self._fed = kept
        self._fed.append(Lost(next_, max(0, self._next - next_), lost))
        self._node.wake()

    def propose(
        self,
        draft: SaidBlock,
        nonces: tuple[Nonce | None, ...] = (),
        checks: bytes = b"",
        generation: int = 1,
    ) -> Proposal:
        self._node._check()
        hub, room = self._hub, self._room
        proposal = Proposal(None, PendingWrite())
        assert proposal.pending is not None
        if draft.client and hub.is_fenced(draft.client, generation):
            proposal.pending.resolve("it was resumed elsewhere")
            return proposal
        known = hub.nonces[draft.client] if draft.client else {}
        texts = draft.text.split("\n")
        earlier: dict[int, str] = {}
        for i, nonce in enumerate(nonces):
            if nonce is not None and nonce in known:
                saved = known[nonce]
                earlier[i] = message_id(saved.epoch, saved.number)
        proposal.earlier = earlier
        new = [i for i in range(len(texts)) if i not in earlier]
        said = msgspec.structs.replace(
            draft, epoch=room.epochs[-1][0], first=room.next, text="\n".join(texts[i] for i in new)
        )
        for offset, i in enumerate(new if nonces else []):
            if (nonce := nonces[i]) is not None:
                check = checks[4 * i : 4 * i + 4]
                number = said.first + offset
                known[nonce] = SavedNonce(nonce, said.epoch, number, self._key, check)
        if not new:
            proposal.pending.resolve()
            return proposal
        room.blocks.append(said)
        room.next += len(new)
        for log in room.logs:
            log._fed.append(Entry(said, proposal if log is self else None))
            log._node.wake()
        return proposal

    async def receive(self) -> Fed:
        await trio.lowlevel.checkpoint()
        while not (self._fed and self._node._free.is_set()):
            await self._node._free.wait()
            if not self._fed:
                await self._node._woken.wait()
        entry = self._fed.popleft()
        if isinstance(entry, Lost):
            self._next, self._epochs = min(self._next, entry.next), len(self._room.epochs)
            for proposal in entry.proposals:
                if proposal.pending is not None:
                    proposal.pending.resolve()
            return entry
        assert isinstance(entry, Entry)  # nothing is deleted
        self._next = entry.said.first + entry.said.text.count("\n") + 1
        if entry.proposal is not None and entry.proposal.pending is not None:
            entry.proposal.pending.resolve()
        return entry

    async def read(self, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        await self._node._reply()
        found: Sequence[SaidBlock | None] = [
            slice_block(each, start, stop) for each in self._room.blocks
        ]
        return take_first([each for each in found if each is not None], max_bytes)

    async def read_before(self, stop: int, *, max_messages: int, max_bytes: int) -> list[SaidBlock]:
        await self._node._reply()
        blocks = reversed([each for each in self._room.blocks if each.first < stop])
        return take_newest(blocks, stop, max_messages=max_messages, max_bytes=max_bytes)

    def close(self) -> None:
        self._room.logs.remove(self)
        self._node.unload(self._key)
