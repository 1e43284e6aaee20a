"""The backend of a cluster node: an engine that all nodes share makes every decision.

Owns the connection to the engine, and whether the engine is available.  The rooms' logs are in
`multichat.cluster.room_logs`, everything else in `multichat.cluster.directory`.

Without a working connection for `ClusterConfig.unavailable_seconds` nothing can be decided, and
pending calls fail with `StorageFailed`.  After a reconnect the node reports its complete state.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from logging import ERROR, WARNING
from operator import index
from typing import NamedTuple

import trio

from multichat.backend.base import Backend, Claim, DirectFate, RoomClaim, RoomLog
from multichat.backend.events import (
    AvailabilityChanged,
    BanRecord,
    ClientRecord,
    DirectReceived,
    Event,
)
from multichat.cluster.calls import begin_era
from multichat.cluster.changes import (
    Announce,
    ClaimName,
    ClaimRoom,
    DisconnectClient,
    DropBan,
    DropRoom,
    Gone,
    HoldRoom,
    PutBan,
    PutClient,
    ReadSession,
    SaveSession,
    SetTopic,
    StoreAccount,
    TakeSession,
)
from multichat.cluster.config import ClusterConfig
from multichat.cluster.connection import Connection, Lost, Ready, Retrying
from multichat.cluster.connection import Event as ConnectionEvent
from multichat.cluster.deletion import Deletion
from multichat.cluster.directory import CHANNEL, Directory, NodeInUse
from multichat.cluster.errors import (
    EngineAway,
    EngineRefused,
    EngineUnavailable,
    FateUnknown,
    NotOurs,
    Rejected,
    ResultNotOurs,
    reading_answer,
)
from multichat.cluster.keys import NODES
from multichat.cluster.library import LibraryRefused, check_library, load_library
from multichat.cluster.link import Link, MessagesDropped
from multichat.cluster.pipeline import Message
from multichat.cluster.room_logs import AWAY, LogConfig, RoomLogs
from multichat.cluster.saved_sessions import pack_session, read_session
from multichat.errors import (
    InvalidName,
    InvalidRequest,
    JournalFailed,
    MultichatError,
    NameTaken,
    StorageFailed,
    TooManyRegistrations,
    TooManyRooms,
    lone_exception,
)
from multichat.journal.base import (
    AccountRecord,
    PendingWrite,
    SavedSession,
    SessionRecord,
)
from multichat.log import Log
from multichat.net.durations import DurationRecorder
from multichat.protocol.framing import clean
from multichat.protocol.goodbyes import GOODBYES
from multichat.protocol.lookalikes import fold_name, lookalike_keys
from multichat.protocol.messages import Directed, Nonce
from multichat.protocol.names import lookalike_room

__all__ = ["ClusterConfig", "ValkeyBackend"]

# An engine that leaves requests unanswered for this long is in trouble.
_SLOW_SECONDS = 1.0

# The interval at which that is checked.
_WATCH_SECONDS = 0.25

# More rooms than are ever loaded at the same time.
_MAX_LOADING = 10_000

# How long the last reports may take at shutdown.
_END_SECONDS = 2.0


class _Trouble(NamedTuple):
    """What is wrong with the engine, worded for the operator and for clients, and *since* when."""

    reason: str
    told: str
    since: float


class ValkeyBackend(Backend):
    """A node's part of a cluster that shares the engine of *config*; *log* is the server's."""

    is_shared = True

    def __init__(self, config: ClusterConfig, log: Log) -> None:
        self._config, self._log = config, log
        self.round_trips = DurationRecorder()
        self._connection = Connection(config.connection, self.round_trips)
        node = config.node or secrets.token_hex(4)
        self._directory = Directory(node, config.directory)
        self._rooms = RoomLogs(
            LogConfig(
                node=node,
                nonce_seconds=config.directory.settings.nonces / 1000,
                away_seconds=config.unavailable_seconds,
            )
        )
        self._deletion = Deletion(self._rooms, config.retention, log)
        self._link: Link | None = None  # one that is prepared
        self._scope = trio.CancelScope()
        self._reason = self._lost_reason = "the engine cannot be reached"
        self._lost_at = 0.0  # when there was a link last, if there is none
        self._cannot_be_used = ""  # as it was logged
        self._available = True
        self._changed = trio.Event()
        self._stop = trio.Event()
        self._era = 0
        self._primary = ""  # the one whose warnings were logged
        self._complained = ""
        self._reconnected_to = ""  # the engine, until that was logged
        self._loading: dict[str, PendingWrite] = {}

    def change_password(self, password: str) -> None:
        """Use *password* from the next connection to the engine on."""
        self._connection.change_password(password)

    @property
    def location(self) -> str:  # type: ignore[override]
        """The URL of the engine."""
        return str(self._config.connection.address)

    @property
    def node(self) -> str:
        """The name of this node."""
        return self._directory.node

    @property
    def accounts(self) -> Sequence[AccountRecord]:  # type: ignore[override]
        """The current accounts."""
        accounts = self._directory.replica.accounts.values()
        return [AccountRecord(name=each.name, hash=each.hash) for each in accounts]

    @property
    def topics(self) -> Mapping[str, str]:  # type: ignore[override]
        """The current topics."""
        return self._directory.replica.topics

    @property
    def bans(self) -> Sequence[BanRecord]:  # type: ignore[override]
        """The current bans."""
        return list(self._directory.replica.bans.values())

    @property
    def clients(self) -> Sequence[ClientRecord]:  # type: ignore[override]
        """The clients on other nodes."""
        return list(self._directory.replica.clients.values())

    @property
    def available(self) -> bool:
        """Whether anything can be decided now."""
        return self._available

    @property
    def fault(self) -> str:
        """Why nothing can be decided now."""
        if self._available:
            return ""
        return "the engine of the cluster cannot be reached" if self.is_away else self.refusal

    # --- Running ----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect to the engine, join the cluster, report that, and serve until cancelled.

        On cancellation, report what is queued and leave the cluster, within two seconds.
        """
        with lone_exception():
            async with trio.open_nursery() as nursery:
                await nursery.start(self._run)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._stop.set()  # `_run` is shielded

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with trio.CancelScope() as scope:
                opened = self._connection.open(self._tell_waiting)
                async with opened, trio.open_nursery() as nursery:
                    await nursery.start(self._rooms.run)
                    await self._begin(nursery)
                    scope.shield = True
                    task_status.started()
                    nursery.start_soon(self._receive, nursery)
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._deletion.run)
                    await self._stop.wait()
                    with trio.move_on_after(_END_SECONDS):
                        await self._finish()
                    nursery.cancel_scope.cancel(reason="the server has ended")
        except EngineUnavailable as error:
            raise JournalFailed(self.location, error.reason) from None

    def _tell_waiting(self, reason: str) -> None:
        self._log.line("start", f"The cluster: {reason}", WARNING)

    async def _begin(self, nursery: trio.Nursery) -> None:
        """Take the first link; an error on it, or its loss, fails the start."""
        seconds = self._config.start_seconds
        reason = f"the engine answers, but this node could not join in {seconds:g} s"
        with trio.move_on_after(seconds):
            reason = await self._begin_on(await self._connection.receive(), nursery)
        if reason:
            raise JournalFailed(self.location, reason)

    async def _begin_on(self, event: ConnectionEvent, nursery: trio.Nursery) -> str:
        """Take the link of *event*, and return what is wrong with it; empty if nothing is."""
        try:
            match event:
                case Ready(link=link):
                    await self._prepare(nursery, link)
                case Lost(reason=reason) | Retrying(reason=reason):
                    return reason
        except (EngineAway, FateUnknown) as error:
            return error.reason
        except (EngineRefused, LibraryRefused) as error:
            return str(error)
        except NodeInUse:
            return f"another node is called {self.node}, or was until some seconds ago"
        return ""

    async def _receive(self, nursery: trio.Nursery) -> None:
        """Handle the connection's events in order."""
        while True:
            event = await self._connection.receive()
            try:
                match event:
                    case Ready(link=link):
                        await self._prepare_again(nursery, link)
                    case Lost(reason=reason) | Retrying(reason=reason):
                        self._lost(reason)
                    case Message() | MessagesDropped():
                        await self._take(event)
            except (EngineAway, FateUnknown):
                pass  # `Lost` comes next
            except EngineRefused as error:
                self._log.line("STATE", f"The cluster: {error}", ERROR)
                if self._link is not None:
                    self._link.end(str(error))

    async def _take(self, event: Message | MessagesDropped) -> None:
        if (link := self._link) is None:
            return
        if isinstance(event, MessagesDropped):
            await self._directory.catch_up(link)
            self._rooms.messages_dropped()
        elif event.channel == CHANNEL:
            await self._directory.take(link, event.payload)
        else:
            self._rooms.take(event)

    async def _prepare_again(self, nursery: trio.Nursery, link: Link) -> None:
        try:
            await self._prepare(nursery, link)
        except (EngineRefused, LibraryRefused, NodeInUse) as error:
            why = "another node has the name of this one" if isinstance(error, NodeInUse) else error
            if str(why) != self._cannot_be_used:  # logged once, and tried again and again
                self._cannot_be_used = str(why)
                self._log.line("STATE", f"The cluster cannot be used: {why}", ERROR)
            link.end(str(why))

    async def _prepare(self, nursery: trio.Nursery, link: Link) -> None:
        """Load the library, join the cluster and catch up; then use the link."""
        loaded = await load_library(link, self.node)
        await link.subscribe(CHANNEL).reply()
        primary = f"{link.engine.run_id}/{link.engine.replication_id}"
        is_first = not self._era
        call = begin_era(primary, era=self._era, epoch=self._rooms.epoch)
        self._era = call.read(await link.call(*call.words))
        await self._directory.connect(link)
        await check_library(link)
        if loaded:
            self._log.line("start" if is_first else "STATE", f"The cluster: {loaded}", WARNING)
        for warning in link.engine.warnings if primary != self._primary else ():
            self._log.line("start" if is_first else "STATE", f"The cluster: {warning}", WARNING)
        self._primary = primary
        self._link, self._cannot_be_used = link, ""
        self._scope = trio.CancelScope()
        self._rooms.connected(link, self._directory.run)
        if is_first:
            with reading_answer():
                nodes = index(await link.call("HLEN", NODES))
            self._log.line("start", f"This is node {self.node} of a cluster, which has {nodes} now")
        nursery.start_soon(self._serve, link, self._scope)
        if not is_first:
            self._reconnected_to = str(link.engine)
            if self._available:  # else it is logged once this is certain to be of use
                self._tell_reconnected()

    def _tell_reconnected(self) -> None:
        if self._reconnected_to:
            self._log.line("STATE", f"Connected to the cluster again: {self._reconnected_to}")
            self._reconnected_to = ""

    async def _serve(self, link: Link, scope: trio.CancelScope) -> None:
        with scope:
            await self._directory.serve(link)

    def _lost(self, reason: str) -> None:
        self._reason = f"the engine cannot be reached: {reason}"
        if self._link is not None:
            if self._available or reason != self._lost_reason:  # else it is lost again and again
                self._log.line("STATE", f"Lost the connection to the cluster: {reason}", WARNING)
            self._link, self._lost_reason, self._reconnected_to = None, reason, ""
            self._lost_at = trio.current_time() - self._connection.away_seconds
            self._scope.cancel(reason=reason)
            self._directory.disconnect()
            self._rooms.disconnected()

    async def _finish(self) -> None:
        """Report what is queued, and leave the cluster."""
        try:
            await self._directory.wait_sent()
            if self._link is not None:
                await self._directory.end(self._link, "the server shuts down")
        except MultichatError:
            pass  # the other nodes notice when the lease ends

    def before_shutdown(self) -> None:
        """Log what was deleted."""
        self._deletion.tell()

    # --- Availability -----------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Notice when the engine goes away and comes back."""
        while True:
            await trio.sleep(_WATCH_SECONDS)
            now = trio.current_time()
            self._complain()
            if self._rooms.take_refused():
                self._directory.test()
            reason, told, since = self._trouble(now)
            if not reason:
                self._back()
            elif now - since >= self._config.unavailable_seconds:
                self.refusal, self.is_away = told, told == AWAY
                if self._available:
                    self._available = False
                    self._changed.set()
                    self._directory.tell(AvailabilityChanged(False, reason, told, self.is_away))
                if not self._directory.is_away:  # a link may have been prepared since then
                    self._directory.leave(told)

    def _trouble(self, now: float) -> _Trouble:
        """Return what is wrong with the engine; its reason is empty if nothing is."""
        link, directory = self._link, self._directory
        failing_since = directory.failing_since
        if link is None:
            # A link that cannot be prepared, as while another node has our name, is none.
            return _Trouble(self._reason, AWAY, min(self._lost_at, failing_since))
        if failing_since < math.inf:
            return _Trouble(self._reason, AWAY, failing_since)
        if (waited := link.unanswered_seconds) > _SLOW_SECONDS:
            return _Trouble("the engine does not answer", AWAY, now - waited)
        since = now - self._config.unavailable_seconds
        return _Trouble(directory.refused, directory.told, since)

    def _complain(self) -> None:
        """Log what only the engine's operator can act on: refusals, and lost messages."""
        for complaint in dict.fromkeys((self._directory.complaint, self._rooms.complaint)):
            if complaint and complaint != self._complained:
                self._complained = complaint
                self._log.line("STATE", f"The cluster: {complaint}", ERROR)
        if lost := self._rooms.take_lost():
            self._log.line("STATE", f"The cluster: {lost}", ERROR)

    def _back(self) -> None:
        if not self._available:
            self._available = self.is_away = True  # until `refusal` says what else is wrong
            self._changed.set()
            self._directory.resume()
            self._tell_reconnected()
            self._directory.tell(AvailabilityChanged(True))

    async def _wait_available(self) -> None:
        while not self._available:
            if self._changed.is_set():  # otherwise others wait for it already
                self._changed = trio.Event()
            await self._changed.wait()

    # --- Rooms ------------------------------------------------------------------------------------

    def load_room(self, key: str) -> PendingWrite | None:
        """Prepare the log of the room *key*.

        Returns None if the caller has just waited for that, unless the room is open.
        """
        pending = self._loading.pop(key, None)
        if pending is not None and pending.resolved:
            if not pending.failed and self._rooms.is_loaded(key):
                return None
            pending = None
        pending = pending or self._rooms.load(key)
        if pending is not None and not self._rooms.is_open(key):
            self._loading[key] = pending
            if len(self._loading) > _MAX_LOADING:  # left by callers that were cancelled
                del self._loading[next(iter(self._loading))]
        return pending

    def room(self, key: str) -> RoomLog:
        """Return the log of the room *key*, which is loaded."""
        return self._rooms.room(key)

    async def claim_room(self, claim: RoomClaim) -> str:
        """Claim a room for this node; the engine decides."""
        change = ClaimRoom(
            claim.key,
            claim.name,
            lookalike_keys(claim.name),
            claim.leaving,
            claim.most,
            claim.valid,
        )
        try:
            granted = await self._directory.decide(change)
        except Rejected as error:
            if error.code == "too-many-rooms":
                raise TooManyRooms(claim.most) from None
            if error.code == "looks-like":
                raise lookalike_room(claim.name, clean(error.detail[0])) from None
            raise InvalidName(f"no room can be called {claim.name}") from None
        [name] = granted
        return name if fold_name(name) == claim.key else claim.name

    def hold_room(self, key: str, name: str) -> None:
        """Report that this node has opened a room."""
        self._directory.report(HoldRoom(key, name, ()))

    def release_room(self, key: str) -> None:
        """Report that this node has closed a room, or does not open it."""
        self._directory.report(DropRoom(key))

    # --- Client numbers, sessions -----------------------------------------------------------------

    async def give_client_number(self) -> int:
        """Return a client number that no node has ever used."""
        return await self._directory.give_client_number()

    def save_session(self, record: SessionRecord, *, connected: bool) -> None:
        """Report the state of a session."""
        packed = pack_session(record)
        digest = record.digest.hex()
        self._directory.report(
            SaveSession(digest, record.client, record.generation, packed, connected)
        )

    def forget_session(self, digest: bytes) -> None:
        """End a session, unless it was resumed elsewhere."""
        self._directory.forget_session(digest.hex())

    async def session(self, digest: bytes) -> SavedSession | None:
        """Return a session; waits while the engine is away."""
        while True:
            try:
                return read_session(digest, await self._directory.decide(ReadSession(digest.hex())))
            except (Rejected, NotOurs, ResultNotOurs):
                return None
            except StorageFailed:
                await self._wait_available()
                await trio.sleep(_WATCH_SECONDS)  # it may be refused without being away

    async def take_session(self, digest: bytes, generation: int) -> SavedSession | None:
        """Take over a session for this node, with a new generation."""
        try:
            taken = await self._directory.decide(TakeSession(digest.hex(), generation))
            return read_session(digest, taken)
        except (Rejected, NotOurs):
            return None

    # --- Names, logins, presence ------------------------------------------------------------------

    async def claim(self, claim: Claim) -> None:
        """Give a client a name, and a login."""
        change = ClaimName.of(
            claim.client,
            claim.generation,
            claim.name,
            account=claim.account,
            login=claim.login,
            origin=claim.origin,
        )
        try:
            await self._directory.decide(change)
        except Rejected as error:
            holder, registered = error.detail or ("", False)
            raise NameTaken(claim.name, holder, registered=registered) from None

    def put_client(self, record: ClientRecord) -> None:
        """Report the state of one of our clients."""
        self._directory.report(PutClient.of(record))

    def remove_client(
        self, client: int, generation: int, reason: str, *, keep_seconds: float | None
    ) -> None:
        """Report that one of our clients has left."""
        keep = -1 if keep_seconds is None else int(keep_seconds * 1000)
        self._directory.report(Gone(client, generation, reason, keep))

    # --- Accounts, topics, bans -------------------------------------------------------------------

    async def save_account(
        self, key: str, record: AccountRecord | None, *, former: AccountRecord | None
    ) -> None:
        """Store or remove an account, provided that *former* is what is stored."""
        name, hash_ = ("", "") if record is None else (record.name, record.hash)
        keys = lookalike_keys(name) if name else ()
        former_hash = "" if former is None else former.hash
        most = self._config.max_accounts
        try:
            await self._directory.decide(StoreAccount(key, name, hash_, keys, former_hash, most))
        except Rejected as error:
            if error.code == "too-many-accounts":
                raise TooManyRegistrations(most) from None
            holder = error.detail[0] if error.detail else ""
            raise NameTaken(name or key, holder, registered=True) from None

    async def save_topic(self, room: str, topic: str, client: int, name: str) -> None:
        """Store the topic of a room."""
        most = self._config.max_topics
        try:
            await self._directory.decide(SetTopic(room, topic, client, name, most))
        except Rejected:
            raise InvalidRequest(f"too many rooms have a topic (limit: {most})") from None

    def add_ban(self, ban: BanRecord) -> None:
        """Store a ban for all nodes."""
        self._directory.report(PutBan(ban, self._config.max_bans))

    def remove_ban(self, target: str) -> None:
        """Remove a ban on all nodes."""
        self._directory.report(DropBan(target))

    # --- To clients on other nodes ----------------------------------------------------------------

    def disconnect(self, client: int, code: str, reason: str) -> None:
        """Ask the node of *client* to disconnect it."""
        returns = GOODBYES.get(code, False)
        self._directory.report(DisconnectClient(client, code, reason, returns))

    def announce(self, text: str) -> None:
        """Announce *text* on the other nodes."""
        self._directory.report(Announce(text))

    async def send_direct(
        self,
        to: int,
        message: Directed,
        *,
        generation: int,
        nonce: Nonce | None = None,
        check: bytes = b"",
    ) -> DirectFate:
        """Send a private message to a client on any node."""
        return await self._directory.send_direct(
            to, message, generation=generation, nonce=nonce, check=check
        )

    def answer_direct(self, received: DirectReceived, *, delivered: bool) -> None:
        """Answer a private message that came to this node."""
        self._directory.answer_direct(received.request, delivered=delivered)

    async def receive(self) -> Event:
        """Return the next event, in order: a change made elsewhere, or of the engine's state."""
        return await self._directory.receive()
