"""One node's view of the cluster's directory: requests changes, and follows those of other nodes.

Owns the state that this node has reported to the engine, its clients, their sessions and its rooms,
so that it can report it again completely.  Uses one link at a time; between two links, pending
requests stay pending until `leave` is called because the engine is away.

Invariants:

1. Changes of other nodes, and this node's own topics and bans, are applied in the order of the
   feed; a decision is returned after everything that precedes it was applied.
2. After a reconnect the engine has exactly the clients that this node has.
3. A fenced run is never used again.
"""

import math
import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import trio

from multichat.backend.base import DirectFate
from multichat.backend.events import (
    BanRefused,
    ClientRecord,
    DirectReceived,
    Event,
    NodeFenced,
    Replaced,
)
from multichat.cluster.batches import Batch, Batches, Dropped
from multichat.cluster.changes import (
    Announce,
    Change,
    ClaimDirect,
    ClaimRoom,
    ForgetSession,
    Gone,
    PutBan,
    PutClient,
    ReadSession,
    RetainClients,
    SaveSession,
    SendDirect,
    Settings,
    TakeNumbers,
    TakeSession,
    pack,
    read_event,
    read_number,
    read_snapshot,
)
from multichat.cluster.decision import Decision
from multichat.cluster.directs import Directs
from multichat.cluster.errors import (
    EngineAway,
    EngineBusy,
    EngineRefused,
    FateUnknown,
    NotOurs,
    reading_answer,
)
from multichat.cluster.event_queue import EventQueue
from multichat.cluster.held_rooms import HeldRooms
from multichat.cluster.link import Link, Request
from multichat.cluster.replica import DirectAnswered, Replica, Update
from multichat.cluster.results import read_renewal, read_results, refusal_of
from multichat.errors import StorageFailed
from multichat.protocol.messages import Directed, Nonce

__all__ = ["CHANNEL", "Directory", "DirectoryConfig", "NodeInUse"]

CHANNEL = b"multichat:directory"

# Client numbers are taken from the engine in blocks: the first has one number, and each further
# block twice as many as the one before, up to this, so that a quiet server has small numbers.
_MAX_BLOCK = 64

# How many events are read at once: about 1 MiB.
_PAGE = 2000

# Digits of an event's number.
_MAX_DIGITS = 19

# The most calls in a row that renew the lease: each may remove some clients of nodes that are lost.
_MAX_RENEWALS = 1000

# Changes nothing: tests whether the engine accepts changes.
_TEST = ReadSession("")

# Pause before a refused call is repeated, for example while the engine's memory is full.
_REFUSED_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectoryConfig:
    """Settings of a node's use of the directory.

    *renew_seconds* is the interval at which the node renews its lease: a third of the lease, so
    that two renewals may be lost.  A private message waits *direct_seconds* for the recipient's
    node, which is longer than that node waits for a slow client.  An answer waits *follow_seconds*
    for the events that precede it, which is several renewals, because each reads events; after
    that, the link is given up.  Events that wait for the server may take *events_bytes*, as the
    engine sent them: only an engine that floods its nodes comes near.
    """

    settings: Settings
    renew_seconds: float = 3.0
    direct_seconds: float = 5.0
    follow_seconds: float = 15.0
    events_bytes: int = 32 * 1024 * 1024


class NodeInUse(Exception):
    """Another node runs under the same name."""


_Waiting: TypeAlias = Decision | DirectReceived
"""The waiter for a result; a private message waits until it may be delivered."""


class Directory:
    """The directory as the node called *node* uses it."""

    def __init__(self, node: str, config: DirectoryConfig) -> None:
        self.node = node
        self.run = _new_run()
        self.replica = Replica(node)
        self._config = config
        self._settings = pack(config.settings)
        self._batches: Batches[_Waiting] = Batches()
        self._link: Link | None = None  # batches are sent on it
        self._awaited: deque[tuple[Batch[_Waiting], Request]] = deque()
        self._sent = trio.Event()
        self._emptied = trio.Event()
        self._applied = trio.Event()
        self._clients: dict[int, ClientRecord] = {}
        self._sessions: dict[str, SaveSession] = {}
        self._rooms = HeldRooms()
        self._events = EventQueue(config.events_bytes)
        self._data = ""  # the id of the data that the replica follows
        self._numbers: deque[int] = deque()
        self._number_lock = trio.Lock()
        self._load_lock = trio.Lock()
        self._block = 1
        self._highest = 0
        self._directs = Directs(
            self,
            wait_seconds=config.direct_seconds,
            claimed_seconds=config.settings.lease / 1000,
        )
        self._away = ""
        self._owes_whole = False  # some reports were refused
        self.refused = ""  # why the engine refuses everything now, worded for clients
        self.told = ""
        self.complaint = ""  # what is wrong with the engine, for its operator
        self.failing_since = math.inf  # no answer could be used since

    # --- Events -----------------------------------------------------------------------------------

    async def receive(self) -> Event:
        """Return the next event; if cancelled, it stays the next one."""
        return await self._events.receive()

    def tell(self, event: Event) -> None:
        """Queue *event* for `receive`."""
        self._events.put(event)

    def _hear(self, updates: Sequence[Update], size: int = 0) -> None:
        for update in updates:
            match update:
                case DirectAnswered(id=id_, fate=fate):
                    self._directs.settled(id_, fate)
                case DirectReceived():
                    self._add(ClaimDirect(update.request), update)
                case Replaced():
                    self._replaced(update)
                case _:
                    self.tell(update)
        self._events.spend(size)
        self._applied.set()

    def _replaced(self, event: Replaced) -> None:
        record = self._clients.get(event.client)
        if record is not None and record.generation <= event.generation:
            del self._clients[event.client]
            for digest, session in list(self._sessions.items()):
                if session.client == event.client and session.generation <= event.generation:
                    del self._sessions[digest]
        self.tell(event)

    # --- What this node asks for ------------------------------------------------------------------

    async def decide(self, change: Change) -> Sequence[Any]:
        """Request *change* and return the result.

        Raises `Rejected`; `StorageFailed` if the engine is away; or `PerhapsMade` if the change may
        be made nevertheless.
        """
        if self._away:
            raise StorageFailed(self._away)
        decision = Decision()
        self._add(change, decision)
        return await decision.wait()

    def report(self, change: Change) -> None:
        """Request *change* without waiting for the result."""
        match change:
            case PutClient(record=record):
                self._clients[record.client] = record
                self._highest = max(self._highest, record.client)
            case Gone(client=client, generation=generation):
                known = self._clients.get(client)
                if known is not None and known.generation <= generation:
                    del self._clients[client]
            case SaveSession(digest=digest, connected=True):
                self._sessions[digest] = change
            case SaveSession(digest=digest):
                self._sessions.pop(digest, None)
        self._add(change)

    def forget_session(self, digest: str) -> None:
        """End the session of a client of this node, unless it was resumed elsewhere."""
        if (session := self._sessions.pop(digest, None)) is not None:
            self._add(ForgetSession(digest, session.client, session.generation))

    def _add(self, change: Change, waiting: _Waiting | None = None) -> None:
        self._rooms.ask(change)
        self._batches.add(change, waiting)
        self._flush()

    def test(self) -> None:
        """Test whether the engine accepts changes; `refused` is set if it refuses them."""
        if not self._away and not len(self._batches):  # otherwise their answers say it
            self._add(_TEST)

    async def give_client_number(self) -> int:
        """Return a client number that no node has ever used; raises `StorageFailed`."""
        async with self._number_lock:
            while not self._numbers:
                floor = max((self._highest, *self._clients, *self.replica.clients))
                count = self._block
                [first] = await self.decide(TakeNumbers(count, floor))
                self._block = min(2 * count, _MAX_BLOCK)
                self._numbers.extend(range(first, first + count))
            number = self._numbers.popleft()
            self._highest = max(self._highest, number)
            return number

    async def send_direct(
        self, to: int, message: Directed, *, generation: int, nonce: Nonce | None, check: bytes
    ) -> DirectFate:
        """Send a private message; see `Backend.send_direct`."""
        return await self._directs.send(
            to, message, generation=generation, nonce=nonce, check=check
        )

    def answer_direct(self, id_: str, *, delivered: bool) -> None:
        """Answer a private message that came to this node."""
        self._directs.answer(id_, delivered=delivered)

    async def wait_sent(self) -> None:
        """Wait until the engine has answered all requests."""
        while len(self._batches):
            self._emptied = trio.Event()
            await self._emptied.wait()

    # --- On a link --------------------------------------------------------------------------------

    async def connect(self, link: Link) -> None:
        """Join on *link*, which is subscribed to `CHANNEL`, and catch up with the feed.

        Begins another run if this one was fenced.  Raises `NodeInUse` and the errors of a link.
        """
        data = f"{link.engine.run_id} {link.engine.replication_id}"
        self._settings = pack(self._config.settings.within(link.engine.maxmemory))
        if not await self._join(link):
            await self._begin_run(link)
            if not await self._join(link):
                raise NotOurs("it has fenced a run that is new")
        reports: Sequence[Change] = ()
        if data == self._data:
            await self.catch_up(link)
        else:  # it may lack the latest changes
            self._numbers.clear()
            reports = self._directs.reports()
            await self._load(link)
        self._data = data
        self._away = ""
        self.disconnect()  # the last link may have ended before it was served
        self._link = link
        self._batches.repeat()
        self._batches.resume([*reports, *self._whole()])
        self._flush()

    async def _join(self, link: Link) -> bool:
        """Join as the present run; return False if it was fenced."""
        try:
            last = self._batches.answered_up_to
            await self._call(link, "multichat_join", self._settings, last)
        except EngineRefused as error:
            if error.code == "INUSE":
                raise NodeInUse from None
            if error.code != "FENCED":
                raise
            return False
        return True

    def resume(self) -> None:
        """Record that the engine answers again on the same link, after `leave`."""
        if self._away:
            self._away = ""
            self._batches.resume(self._whole())
            self._flush()

    def _whole(self) -> list[Change]:
        """Return the complete state of this node, as changes."""
        return [
            *map(PutClient.of, self._clients.values()),
            *self._sessions.values(),
            RetainClients(tuple(self._clients)),
            self._rooms.whole(),
        ]

    async def _begin_run(self, link: Link) -> None:
        """Begin another run: our clients were removed, and some were resumed on other nodes."""
        clients = list(self._clients.values())
        if clients:
            numbers = [record.client for record in clients]
            reply = await link.call("HMGET", "multichat:generations", *numbers)
            with reading_answer():
                newest = [0 if each is None else int(each) for each in reply]
                known = list(zip(clients, newest, strict=True))
            for record, generation in known:
                if generation > record.generation:
                    self.tell(Replaced(record.client, record.generation))
        self.run = _new_run()
        self._clients.clear()
        self._sessions.clear()
        self._numbers.clear()
        self._fail(self._batches.begin(), "this node was taken for dead")
        self.tell(NodeFenced())

    @property
    def is_away(self) -> bool:
        """Whether `leave` was called, and nothing waits for the engine."""
        return bool(self._away)

    def leave(self, reason: str) -> None:
        """Record that the engine is away, and resolve everything that waits for it."""
        self._away = reason
        # Otherwise nothing would report the outcome of what is in flight.
        self.replica.echoes = self.replica.echoes or self._batches.is_in_flight
        self._fail(self._batches.leave(), reason)

    def _fail(self, dropped: Dropped[_Waiting], reason: str) -> None:
        for waiting, is_sent in (dropped.sent, True), (dropped.unsent, False):
            for each in waiting:
                if isinstance(each, Decision):
                    each.fail(reason, is_sent=is_sent)
                else:  # this node may have claimed it, and does not deliver it: report that
                    self.answer_direct(each.request, delivered=False)

    async def serve(self, link: Link) -> None:
        """Send this node's changes and renew its lease, until *link* has ended."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_answers, link)
                nursery.start_soon(self._renew, link)
        except* (EngineAway, FateUnknown):
            pass

    def disconnect(self) -> None:
        """Record that the link has ended: what is in flight is repeated on the next link."""
        self._link = None
        self._awaited.clear()

    def _flush(self) -> None:
        """Send what can be sent now."""
        while self._link is not None and (batch := self._batches.take()) is not None:
            words = (batch.sequence, self._settings, pack(batch.wanted))
            try:
                request = self._link.request(
                    "FCALL", "multichat_change", 0, self.node, self.run, *words
                )
            except (EngineAway, EngineBusy):
                self._batches.not_sent(batch)
                return
            self._awaited.append((batch, request))
            self._sent.set()

    async def _take_answers(self, link: Link) -> None:
        while True:
            if not self._awaited:
                if not len(self._batches):
                    self._emptied.set()
                self._sent = trio.Event()
                await self._sent.wait()
            batch, request = self._awaited.popleft()
            try:
                number, results = read_results(await request.reply(), batch.wanted)
            except NotOurs as error:
                self._end(link, str(error))
                return
            except EngineRefused as error:
                if not self._ends(link, error):
                    await self._wait_refused(error)
                continue
            self.refused, self.failing_since = "", math.inf
            if self._owes_whole and not self._away:
                self._batches.resume(self._whole())
            self._owes_whole = False
            with trio.move_on_after(self._config.follow_seconds):
                while self.replica.number < number:  # apply the preceding events first
                    self._applied = trio.Event()
                    await self._applied.wait()
            if self.replica.number < number:
                link.end("the engine's answer follows what never came")
                return  # it is repeated on the next link
            if (answered := self._batches.answered(batch)) is not None:
                self._answered(answered, results)
            if not self._batches.is_in_flight:
                self.replica.echoes = False
            self._flush()

    async def _wait_refused(self, error: EngineRefused) -> None:
        """Wait while the engine refuses everything, e.g. with full memory, then repeat it all."""
        self.refused, self.told = str(error), error.meaning.told
        is_full = error.code == "OOM"
        self._fail(self._batches.drop_waiting(also_sent=not is_full), self.told)
        link, self._link = self._link, None  # nothing is sent meanwhile
        while self._awaited:  # these were refused, too
            _, request = self._awaited.popleft()
            with suppress(EngineRefused):
                await request.reply()
        if is_full and link is not None:
            await self._relieve(link)  # this tells what is not made, or was made before
            self._fail(self._batches.drop_waiting(), self.told)
        await trio.sleep(_REFUSED_SECONDS)
        self._link = link
        self._batches.repeat()
        self._flush()

    async def _relieve(self, link: Link) -> None:
        """Send the changes in flight that free memory to the engine, whose memory is full."""
        self._batches.repeat()
        owed: list[Change] = []
        while (batch := self._batches.take()) is not None:
            words = (batch.sequence, self._settings, pack(batch.wanted))
            try:
                reply = await self._call(link, "multichat_relieve", *words)
                _, results = read_results(reply, batch.wanted)
            except EngineRefused:
                self._batches.not_sent(batch)
                break
            if (answered := self._batches.answered(batch)) is not None:
                self._answered(answered, results)
            for (change, _), result in zip(batch.changes, results, strict=True):
                if result[0] != "ok" and isinstance(change, Announce | PutBan):
                    owed.append(change)
        for change in owed:
            self._batches.add(change)
        self._owes_whole = True  # the rest is part of the complete state
        self._batches.add(_TEST)

    def _answered(self, batch: Batch[_Waiting], results: list[list[Any]]) -> None:
        for (change, waiting), result in zip(batch.changes, results, strict=True):
            is_done = result[0] == "ok"
            if (refusal := refusal_of(result)) is not None and not refusal.is_known:
                self.complaint = str(refusal)
            if is_done and isinstance(change, SendDirect):
                self._directs.sent(change, result)
            elif is_done and isinstance(change, ClaimRoom):
                self._rooms.answered(change, result[1])
            elif isinstance(change, ClaimRoom):
                self._rooms.answered(change, None)
            if isinstance(waiting, Decision):
                if is_done and isinstance(change, TakeSession):  # it is ours from now on
                    client, generation, record = result[1:4]
                    self._sessions[change.digest] = SaveSession(
                        change.digest, client, generation, record, connected=True
                    )
                waiting.resolve(result)
            elif isinstance(waiting, DirectReceived):
                if is_done:
                    self.tell(waiting)
            elif isinstance(change, PutClient) and not is_done and result[1] == "fenced":
                self._replaced(Replaced(change.record.client, change.record.generation))
            elif isinstance(change, PutBan) and result[1:2] == ["too-many-bans"]:
                self.tell(BanRefused(change.ban.target, change.most))

    async def _renew(self, link: Link) -> None:
        while True:
            await trio.sleep(self._config.renew_seconds)
            for _ in range(_MAX_RENEWALS):
                try:
                    reply = await self._call(link, "multichat_renew", self._settings)
                    number, again = read_renewal(reply)
                    if number > self.replica.number:
                        await self.catch_up(link)
                except NotOurs as error:
                    self._end(link, str(error))
                    return
                except EngineRefused as error:
                    if not self._ends(link, error):
                        self.refused, self.told = str(error), error.meaning.told
                    break
                if not len(self._batches):  # otherwise their answers say it
                    self.refused, self.failing_since = "", math.inf
                if not again:
                    break

    def _end(self, link: Link, reason: str) -> None:
        """End *link*, on which no answer can be used; all in flight is repeated on the next one."""
        self.failing_since = min(self.failing_since, trio.current_time())
        link.end(reason)

    def _ends(self, link: Link, error: EngineRefused) -> bool:
        """Return whether *error* ends the link, so that this node joins again on another one."""
        if error.code == "FENCED":
            self._end(link, "this node was taken for dead")
        elif error.code == "UNREGISTERED":
            self._end(link, "the engine has lost its data")
        return error.code in ("FENCED", "UNREGISTERED")

    async def end(self, link: Link, reason: str) -> None:
        """Leave the cluster; clients that are still connected leave with *reason*."""
        again = True
        while again:
            again = bool(await self._call(link, "multichat_end_node", self._settings, reason))

    # --- The feed ---------------------------------------------------------------------------------

    async def take(self, link: Link, payload: bytes) -> None:
        """Apply a push on `CHANNEL`, and read any events that are missing before it.

        While the events that wait for the server take too much, it is read later, at a renewal.
        """
        if self._events.is_full:
            return
        number, _, packed = payload.partition(b" ")
        updates = None
        # Anybody with the engine's password can publish here, including invalid numbers.
        if number.isdigit() and len(number) <= _MAX_DIGITS:
            updates = self.replica.apply(int(number), read_event(packed))
        if updates is None:
            await self.catch_up(link)
        else:
            self._hear(updates, len(payload))

    async def catch_up(self, link: Link) -> None:
        """Read the missing events, or a snapshot; some of them later if too much waits."""
        while not self._events.is_full:
            after = self.replica.number
            try:
                flat = await link.call("FCALL_RO", "multichat_events", 0, after, _PAGE)
            except EngineRefused as error:
                if error.code != "GAP":
                    raise
                await self._load(link)
                return
            with reading_answer():
                numbers, events = map(read_number, flat[::2]), map(read_event, flat[1::2])
                read = list(zip(numbers, events, map(len, flat[1::2]), strict=True))
            for number, event, size in read:
                self._hear(self.replica.apply(number, event) or (), size)
            if len(flat) < 2 * _PAGE:
                return
            if self.replica.number <= after:
                raise NotOurs("events that do not follow")

    async def _load(self, link: Link) -> None:
        """Load a snapshot, one at a time; it never replaces a later snapshot or later events."""
        async with self._load_lock:
            if self._events.has_snapshot:  # another one would come on top of it
                await self._events.wait_empty()
            before = self.replica.number
            reply = await link.call("FCALL_RO", "multichat_snapshot", 0)
            with reading_answer():
                snapshot = read_snapshot(reply)
            if snapshot.number < self.replica.number != before:
                return  # the feed has advanced beyond it
            self._hear(self.replica.load(snapshot, self._clients))
            self._events.has_snapshot = True

    async def _call(self, link: Link, function: str, *arguments: str | bytes | int) -> Any:
        return await link.call("FCALL", function, 0, self.node, self.run, *arguments)


def _new_run() -> str:
    return secrets.token_hex(8)
