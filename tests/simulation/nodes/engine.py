"""An engine in memory that several nodes share; see `tests.simulation.slow_backend`.

It decides in one step what comes over the links, in the order in which it comes: the order of each
room's messages, client numbers, generations, names, logins, sessions, accounts, topics and bans.
Nodes that do not renew their lease are taken for dead.  It is a model of what
`multichat.backend.base` promises, written from that alone.

It notes in `NodesHistory.problems` what no node may ever send.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from random import Random
from typing import Any

import msgspec
import trio

from multichat.backend.base import Claim, DirectFate, RoomClaim
from multichat.backend.events import (
    AccountChanged,
    Announced,
    BanAdded,
    BanRecord,
    BanRemoved,
    ClientGone,
    ClientPut,
    ClientRecord,
    DirectReceived,
    DisconnectAsked,
    NameLost,
    NodeFenced,
    Replaced,
    TopicChanged,
)
from multichat.errors import (
    InvalidName,
    MultichatError,
    NameTaken,
    NonceReused,
    StorageFailed,
    TooManyRooms,
)
from multichat.journal.base import (
    AccountRecord,
    SavedNonce,
    SavedSession,
    SessionRecord,
    slice_block,
    take_first,
    take_newest,
)
from multichat.protocol.ids import message_id
from multichat.protocol.lookalikes import NameIndex, fold_name, lookalike_keys
from multichat.protocol.messages import MAX_UNACCEPTED, Directed, Nonce, SaidBlock
from multichat.protocol.names import lookalike_room
from tests.simulation.engine import (
    Append,
    Appended,
    Ask,
    DirectSettled,
    Engine,
    Fenced,
    LogState,
    Opened,
    Stored,
)
from tests.simulation.link import Call, Execution, Link
from tests.simulation.slow_backend import SlowBackend

from .checker import Line, NodesHistory
from .plan import LEASE_SECONDS, NodesPlan

__all__ = ["SharedEngine"]

_FIRST_EPOCH = 0x18BCFE56800

# How often leases are looked at, and how long a private message waits for its recipient's node.
_LOOK_SECONDS = 1.0
_DIRECT_SECONDS = 5.0


class _Answer(Execution):
    """A call that was carried out, with its answer."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    async def wait(self) -> Any:
        """Return the answer."""
        await trio.lowlevel.checkpoint()
        return self.answer


@dataclass
class _Room:
    epoch: str
    blocks: list[SaidBlock] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    @property
    def next(self) -> int:
        return len(self.lines)


@dataclass(eq=False)
class _Node:
    """A node: its link, its run, and when it has renewed its lease."""

    name: object
    link: Link
    run: int = 0
    renewed_at: float = 0.0
    is_dead: bool = False


@dataclass(eq=False)
class _Client:
    """A client with its last generation; *node* is None if it is not connected."""

    generation: int
    node: _Node | None = None
    record: ClientRecord | None = None
    names: "list[_Name]" = field(default_factory=list)
    # Names that it has lost, folded: its node may not know that, and report it with one of them.
    lost: set[str] = field(default_factory=set)
    lost_since_report: str = ""  # the name in its newest record; its node may not know that yet


@dataclass(eq=False)
class _Name:
    """A name of a client, which may be gone: then it is kept *until* a time for it."""

    name: str
    client: int
    origin: str
    until: float = inf


@dataclass(eq=False)
class _Direct:
    """A private message to a client of *node*; *sender* is told its *fate*, None while it is open.

    It is withdrawn unless *node* claims it in time; once it is claimed, it may be delivered.
    """

    sender: _Node
    node: _Node
    client: int
    nonce: Nonce | None
    check: bytes
    sent_at: float
    is_claimed: bool = False
    fate: DirectFate | None = None


@dataclass(eq=False)
class _OpenRoom:
    """A room that is open on *nodes*."""

    name: str
    nodes: set[object] = field(default_factory=set)


class SharedEngine(Engine):
    """The engine of a run of *plan*; records what it has stored in *history*."""

    is_shared = True

    def __init__(self, plan: NodesPlan, history: NodesHistory) -> None:
        self._plan, self._history = plan, history
        self._rooms: dict[str, _Room] = {}
        self._open: dict[str, _OpenRoom] = {}  # the rooms that nodes hold
        self._nodes: dict[object, _Node] = {}
        self._executed: dict[tuple[object, int], Execution] = {}
        self._clients_ever = 0
        self._clients: dict[int, _Client] = {}
        self._names: NameIndex[_Name] = NameIndex()
        self._logins: dict[str, int] = {}
        self._sessions: dict[bytes, tuple[SessionRecord, float]] = {}
        self._nonces: dict[int, OrderedDict[Nonce, SavedNonce]] = {}
        self._accounts: dict[str, AccountRecord] = {}
        self._topics: dict[str, str] = {}
        self._bans: dict[str, BanRecord] = {}
        self._directs: list[_Direct] = []

    def backend(self, node: int, start: int) -> SlowBackend:
        """Return the backend of that *start* of a node."""
        faults = self._plan.links[node]
        rng = Random(f"{self._plan.seed} link {node} {start}")
        return SlowBackend(self, faults, rng, node=(node, start), runs_engine=False)

    # --- Nodes ------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take nodes for dead that do not renew their lease, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(_LOOK_SECONDS)
            now = trio.current_time()
            if any(start <= now <= start + time for start, time in self._plan.away):
                for node in self._nodes.values():
                    node.renewed_at = now  # it is the engine that was away
            for node in list(self._nodes.values()):
                late = trio.current_time() - node.renewed_at > LEASE_SECONDS
                if late and not node.is_dead:
                    self._expire(node)
            for direct in self._directs:
                if not direct.is_claimed and now - direct.sent_at > _DIRECT_SECONDS:
                    self._settle(direct, DirectFate.NOT_DELIVERED)

    def _expire(self, node: _Node) -> None:
        """Remove the clients of *node*; it is told with its next call."""
        node.is_dead = True
        for key in list(self._open):
            self._release_room(node, key)
        for direct in self._directs:
            if direct.node is node:
                claimed = DirectFate.UNKNOWN
                self._settle(direct, claimed if direct.is_claimed else DirectFate.NOT_DELIVERED)
        for number, client in list(self._clients.items()):
            if client.node is node:
                self._remove(number, client, "connection lost", keep_seconds=0.0, away=True)

    def open(self, link: Link, node: object) -> Opened:
        """Let *node* in."""
        self._nodes[node] = _Node(node, link, renewed_at=trio.current_time())
        records = [each.record for each in self._clients.values() if each.record is not None]
        accounts, topics = list(self._accounts.values()), {**self._topics}
        return Opened(accounts, topics, list(self._bans.values()), records)

    def execute(self, link: Link, call: Call) -> Execution:
        """Carry out *call* if it comes for the first time, from a node that lives."""
        node = next(each for each in self._nodes.values() if each.link is link)
        key = node.name, call.number
        execution = self._executed.get(key)
        if execution is None:
            execution = self._executed[key] = self._execute(node, call)
        return execution

    def _execute(self, node: _Node, call: Call) -> Execution:
        if node.is_dead and call.run == node.run:
            node.run, node.is_dead = node.run + 1, False
            node.renewed_at = trio.current_time()
            node.link.push(NodeFenced())
            return _Answer(Fenced())
        if call.run < node.run:
            return _Answer(Fenced())
        request = call.request
        if isinstance(request, Append):
            return self._append(node, request, call.number)
        assert isinstance(request, Ask)
        try:
            answer = getattr(self, f"_{request.method}")(node, *request.arguments)
        except MultichatError as error:
            answer = error
        return answer if isinstance(answer, Execution) else _Answer(answer)

    def _tell_others(self, node: _Node | None, event: Any) -> None:
        for other in self._nodes.values():
            if other is not node:
                other.link.push(event)

    def _renew(self, node: _Node) -> None:
        node.renewed_at = trio.current_time()

    # --- Rooms ------------------------------------------------------------------------------------

    def _room(self, key: str) -> _Room:
        if key not in self._rooms:
            self._rooms[key] = _Room(f"{_FIRST_EPOCH + len(self._rooms):011x}")
        return self._rooms[key]

    def _append(self, node: _Node, append: Append, number: int) -> Execution:
        draft = append.draft
        client = self._clients.get(draft.client)
        if draft.client and (client is None or append.generation < client.generation):
            return _Answer(Appended(failure="fenced"))
        if client is not None:
            self._check_author(node, client, append)
        room, texts = self._room(append.room), draft.text.split("\n")
        nonces = append.nonces or (None,) * len(texts)
        known = self._nonces.setdefault(draft.client, OrderedDict())
        earlier: dict[int, str] = {}
        new: list[int] = []
        for i, nonce in enumerate(nonces):
            saved = None if nonce is None else known.get(nonce)
            if saved is None:
                new.append(i)
            else:
                earlier[i] = message_id(saved.epoch, saved.number)
        if not new:
            return _Answer(Appended(earlier))
        said = msgspec.structs.replace(
            draft, epoch=room.epoch, first=room.next, text="\n".join(texts[i] for i in new)
        )
        room.blocks.append(said)
        for i in new:
            at, check = room.next, append.checks[4 * i : 4 * i + 4]
            if (nonce := nonces[i]) is not None:
                known[nonce] = SavedNonce(nonce, room.epoch, at, append.room, check)
                while len(known) > MAX_UNACCEPTED:
                    known.popitem(last=False)
            room.lines.append(
                Line(
                    id=message_id(room.epoch, at),
                    client=draft.client,
                    name=draft.name,
                    text=texts[i],
                    act=draft.act,
                    nonce=nonce,
                    seconds=trio.current_time(),
                )
            )
        stored = Stored(append.room, said, node.name, number, earlier)
        for each in self._nodes.values():
            each.link.push(stored)
        return _Answer(Appended(earlier))

    def _check_author(self, node: _Node, client: _Client, append: Append) -> None:
        draft, record = append.draft, client.record
        if record is None or client.node is not node:
            return  # it has left since
        names = {record.name or f"Client {draft.client}", *(each.name for each in client.names)}
        names.add(client.lost_since_report)
        if draft.name not in names:
            self._problem(f"client {draft.client} said as {draft.name}, and is {names}")
        if append.room not in map(fold_name, record.rooms):
            self._problem(f"client {draft.client} said in {append.room}, it is in {record.rooms}")

    def _problem(self, what: str) -> None:
        self._history.problems.append(f"{trio.current_time():.3f}: {what}")

    def _load_room(self, node: _Node, key: str) -> LogState:
        return self.state(key)

    @property
    def open_rooms(self) -> list[str]:
        """The keys of the rooms that nodes hold."""
        return list(self._open)

    def _claim_room(self, node: _Node, claim: RoomClaim) -> str:
        has_messages = self._room(claim.key).next > 0
        if not (claim.valid or has_messages):
            raise InvalidName(claim.name)
        if claim.key not in self._open:
            left = [each for key in claim.leaving if (each := self._open.get(key)) is not None]
            closing = [each for each in left if each.nodes == {node.name}]
            if len(self._open) - len(closing) >= claim.most:
                raise TooManyRooms(claim.most)
            keys = set(lookalike_keys(claim.name))
            for other in self._open.values():
                if not (has_messages or keys.isdisjoint(lookalike_keys(other.name))):
                    raise lookalike_room(claim.name, other.name)
        return self._hold_room(node, claim.key, claim.name)

    def _hold_room(self, node: _Node, key: str, name: str) -> str:
        room = self._open.setdefault(key, _OpenRoom(name))
        room.nodes.add(node.name)
        return room.name

    def _release_room(self, node: _Node, key: str) -> None:
        if (room := self._open.get(key)) is not None:
            room.nodes.discard(node.name)
            if not room.nodes:
                del self._open[key]

    def state(self, room: str) -> LogState:
        """Return the state of the room's log now."""
        found = self._room(room)
        return LogState(found.epoch, found.next, {})

    def first(self, room: str) -> int:
        """Return 0: nothing is deleted."""
        return 0

    async def read(self, room: str, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        """Read the room's messages."""
        await trio.lowlevel.checkpoint()
        parts = [slice_block(block, start, stop) for block in self._room(room).blocks]
        return take_first([part for part in parts if part], max_bytes)

    async def read_before(
        self, room: str, stop: int, *, max_messages: int, max_bytes: int
    ) -> list[SaidBlock]:
        """Read the room's newest messages."""
        await trio.lowlevel.checkpoint()
        blocks = reversed(self._room(room).blocks)
        return take_newest(blocks, stop, max_messages=max_messages, max_bytes=max_bytes)

    # --- Clients and sessions ---------------------------------------------------------------------

    def _give_client_number(self, node: _Node) -> int:
        self._clients_ever += 1
        return self._clients_ever

    def _put_client(self, node: _Node, record: ClientRecord) -> None:
        client = self._clients.setdefault(record.client, _Client(record.generation))
        if record.generation < client.generation:
            return
        if client.node not in (None, node):
            self._problem(f"{record} is put by two nodes")
        if client.node is None and record.generation > 1:
            node.link.push(ClientGone(record.client, record.generation - 1, "", True))
        client.generation, client.node, client.record = record.generation, node, record
        key = fold_name(record.name)
        for name in list(client.names):
            if fold_name(name.name) != key:
                self._drop(client, name)
            else:
                name.name = record.name  # in another case
        self._history.early_holders.discard((record.account, record.client))
        if self._logins.get(record.account) != record.client:
            self._log_out(record.client)
            if record.account:
                record = self._keep_login(node, record)
        client.lost_since_report = ""
        if key in client.lost:
            client.lost_since_report = record.name
            node.link.push(NameLost(record.client, record.generation, record.name, False))
            record = msgspec.structs.replace(record, name="")
            client.record = record
        else:
            client.lost.clear()
        if record.name and not any(each.name == record.name for each in client.names):
            self._problem(f"{record} has a name that it was not given")
        self._tell_others(node, ClientPut(record))

    def _remove_client(
        self, node: _Node, number: int, generation: int, reason: str, keep_seconds: float | None
    ) -> None:
        client = self._clients.get(number)
        if client is None:  # it was never put
            client = self._clients[number] = _Client(generation)
        if generation >= client.generation and client.node in (None, node):
            away = keep_seconds is not None
            self._remove(number, client, reason, keep_seconds=keep_seconds or 0.0, away=away)

    def _remove(
        self, number: int, client: _Client, reason: str, *, keep_seconds: float, away: bool
    ) -> None:
        node, client.node, client.record = client.node, None, None
        for name in list(client.names):
            if away:
                name.until = trio.current_time() + keep_seconds
            else:
                self._drop(client, name)
        self._log_out(number)
        self._tell_others(node, ClientGone(number, client.generation, reason, away))

    def _save_session(self, node: _Node, record: SessionRecord, connected: bool) -> None:
        stored = self._sessions.get(record.digest)
        if stored is None or record.generation >= stored[0].generation:
            since = inf if connected else trio.current_time()
            self._sessions[record.digest] = record, since

    def _forget_session(self, node: _Node, digest: bytes) -> None:
        if (stored := self._sessions.pop(digest, None)) is not None:
            self._nonces.pop(stored[0].client, None)

    def _session(self, node: _Node, digest: bytes) -> SavedSession | None:
        if (stored := self._sessions.get(digest)) is None:
            return None
        record, since = stored
        nonces = list(self._nonces.get(record.client, {}).values())
        age = max(0.0, trio.current_time() - since)
        return SavedSession(record=record, age_seconds=age, nonces=nonces)

    def _take_session(self, node: _Node, digest: bytes, generation: int) -> SavedSession | None:
        stored = self._sessions.get(digest)
        if stored is None or stored[0].generation != generation:
            return None
        record = replace(stored[0], generation=generation + 1)
        self._sessions[digest] = record, inf
        client = self._clients.setdefault(record.client, _Client(generation))
        client.generation = record.generation
        if client.node is not None and client.node is not node:
            client.node.link.push(Replaced(record.client, generation))
        client.node = None
        self._note_unknown_account(node, record)
        return self._session(node, digest)

    def _note_unknown_account(self, node: _Node, record: SessionRecord) -> None:
        """Let a client resume without its login if *node* has not heard of its account yet.

        In a cluster it has: its answers come after all changes that precede them.
        """
        key = record.login.partition(" ")[2]
        if any(isinstance(each, AccountChanged) and each.key == key for each in node.link.unseen):
            self._history.early_holders.add((key, record.client))

    # --- Names and logins -------------------------------------------------------------------------

    def _claim(self, node: _Node, claim: Claim) -> None:
        client = self._clients.setdefault(claim.client, _Client(claim.generation))
        if claim.generation < client.generation:
            raise NameTaken(claim.name)
        client.generation = claim.generation
        if claim.login:
            self._log_in(claim)
        else:
            self._check_name(claim)
        for name in self._names.lookalikes(claim.name):
            holder = self._clients[name.client]
            if holder is not client:
                holder.lost.add(fold_name(name.name))
            elif fold_name(name.name) != fold_name(claim.name):
                continue  # its node may not take the new one
            self._drop(holder, name)
        client.lost.discard(fold_name(claim.name))
        taken = _Name(claim.name, claim.client, claim.origin)
        client.names.append(taken)
        self._names.add(taken, claim.name)

    def _check_name(self, claim: Claim) -> None:
        if claim.account and self._logins.get(claim.account, claim.client) != claim.client:
            raise NameTaken(claim.name)
        now, is_own = trio.current_time(), claim.account == fold_name(claim.name)
        for name in self._names.lookalikes(claim.name):
            if name.client == claim.client:
                continue
            is_away = name.until != inf
            may = name.until <= now or is_own or name.origin == claim.origin != ""
            if not (is_away and may):
                raise NameTaken(claim.name)

    def _log_in(self, claim: Claim) -> None:
        key = fold_name(claim.name)
        before = self._logins.get(key)
        if before is not None and before != claim.client:
            self._lose_name(before, claim.name, login=True)
        for name in self._names.lookalikes(claim.name):
            if name.client not in (claim.client, before):
                self._lose_name(name.client, name.name, login=False)
        holders = {each for each in self._history.early_holders if each[0] != key}
        self._history.early_holders = holders
        self._logins[key] = claim.client

    def _lose_name(self, number: int, name: str, *, login: bool) -> None:
        client = self._clients[number]
        if client.node is not None:
            client.node.link.push(NameLost(number, client.generation, name, login))

    def _keep_login(self, node: _Node, record: ClientRecord) -> ClientRecord:
        """Give a client that has resumed its login back; tell *node* if another has it."""
        if self._logins.setdefault(record.account, record.client) == record.client:
            return record
        lost = NameLost(record.client, record.generation, record.account, True)
        node.link.push(lost)
        return msgspec.structs.replace(record, account="")

    def _drop(self, client: _Client, name: _Name) -> None:
        client.names.remove(name)
        self._names.discard(name)

    def _log_out(self, number: int) -> None:
        for key in [key for key, client in self._logins.items() if client == number]:
            del self._logins[key]

    # --- Accounts, topics, bans -------------------------------------------------------------------

    def _save_account(
        self,
        node: _Node,
        key: str,
        record: AccountRecord | None,
        former: AccountRecord | None,
        _: Any,
    ) -> None:
        if self._accounts.get(key) != former:
            raise NameTaken(key)
        if record is None:
            self._accounts.pop(key, None)
            event = AccountChanged(key)
        else:
            if former is None:  # it may have resumed since it has asked for that
                holders = self._names.lookalikes(record.name)
                self._history.early_holders |= {(key, each.client) for each in holders}
            self._accounts[key] = record
            event = AccountChanged(key, record.name, record.hash)
        self._tell_others(node, event)

    def _save_topic(self, node: _Node, room: str, topic: str, client: int, name: str) -> None:
        self._topics[room] = topic
        self._tell_others(None, TopicChanged(room, topic, client, name))

    def _add_ban(self, node: _Node, ban: BanRecord) -> None:
        self._bans[ban.target] = ban
        self._tell_others(None, BanAdded(ban))

    def _remove_ban(self, node: _Node, target: str) -> None:
        self._bans.pop(target, None)
        self._tell_others(None, BanRemoved(target))

    # --- To other nodes ---------------------------------------------------------------------------

    def _disconnect(self, node: _Node, number: int, code: str, reason: str) -> None:
        client = self._clients.get(number)
        if client is not None and client.node is not None:
            client.node.link.push(DisconnectAsked(number, code, reason))

    def _announce(self, node: _Node, text: str) -> None:
        self._tell_others(node, Announced(text))

    def _send_direct(
        self,
        node: _Node,
        to: int,
        message: Directed,
        generation: int,
        nonce: Nonce | None,
        check: bytes,
    ) -> DirectFate | str:
        """Return the fate, or the id under which it is told later."""
        sender = self._clients.get(message.client)
        if sender is not None and generation < sender.generation:
            raise StorageFailed("fenced")
        if nonce is not None:
            for id_, direct in enumerate(self._directs):
                is_it = (direct.client, direct.nonce) == (message.client, nonce)
                if is_it and direct.fate is not DirectFate.NOT_DELIVERED:
                    if direct.check != check:
                        raise NonceReused(nonce)
                    direct.sender = node
                    return direct.fate or str(id_)
            if nonce in self._nonces.get(message.client, {}):
                raise NonceReused(nonce)
        client = self._clients.get(to)
        if client is None or client.node is None:
            return DirectFate.NOT_DELIVERED
        id_ = len(self._directs)
        now = trio.current_time()
        direct = _Direct(node, client.node, message.client, nonce, check, now)
        self._directs.append(direct)
        client.node.link.push(DirectReceived(str(id_), to, message))
        return str(id_)

    def _claim_direct(self, node: _Node, request: str) -> bool:
        direct = self._directs[int(request)]
        if direct.node is not node or direct.fate is not None or direct.is_claimed:
            return False
        direct.is_claimed = True
        return True

    def _answer_direct(self, node: _Node, request: str, delivered: bool) -> None:
        direct = self._directs[int(request)]
        if direct.node is node:
            self._settle(direct, DirectFate.DELIVERED if delivered else DirectFate.NOT_DELIVERED)

    def _settle(self, direct: _Direct, fate: DirectFate) -> None:
        """Decide the fate of a message, unless it is decided; a delivered one keeps its nonce."""
        if direct.fate is not None:
            return
        direct.fate = fate
        if fate is DirectFate.DELIVERED and direct.nonce is not None:
            known = self._nonces.setdefault(direct.client, OrderedDict())
            known[direct.nonce] = SavedNonce(direct.nonce, "", 0, "", direct.check)
        direct.sender.link.push(DirectSettled(str(self._directs.index(direct)), fate))

    # --- The run ----------------------------------------------------------------------------------

    def ends(self) -> dict[str, int]:
        """Return how many messages each room has now."""
        return {key: len(room.lines) for key, room in self._rooms.items()}

    def record(self) -> None:
        """Record what was stored, at the end of the run."""
        self._history.rooms = {key: room.lines for key, room in self._rooms.items()}

    @property
    def accounts(self) -> Mapping[str, AccountRecord]:
        """The accounts, by key."""
        return self._accounts

    @property
    def bans(self) -> frozenset[str]:
        """The targets of the bans."""
        return frozenset(self._bans)

    @property
    def topics(self) -> Mapping[str, str]:
        """The topics of the rooms."""
        return self._topics
