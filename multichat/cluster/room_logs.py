"""The logs of a node's rooms in the engine: appending, following and reading them.

Owns the requests about logs on the node's link to the engine; `log_state` and `appends` interpret
the answers.  Knows neither how connections are made nor the directory: the backend passes in each
link with the node's run, and the messages of channels.

Invariants:

1. Everything is sent in one order on one link, and answers are handled in that order: a room is
   subscribed before its tail is requested, and tails come before repeated calls.
2. A proposal is pending until its outcome is known, no matter how many connections break and what
   the engine answers to a repetition.  A proposal that was never sent fails once the engine has
   been away for `LogConfig.away_seconds`, or refuses a repeated call before it.
3. Only rooms that are open here, or about to be, are followed; the memory for each is bounded.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import trio

from multichat.backend.base import RoomLog
from multichat.cluster.appends import AppendLimits, Appends, AppendsCall
from multichat.cluster.calls import (
    Answer,
    Block,
    Call,
    Header,
    InvalidPacket,
    Status,
    Trimmed,
    append,
    parse_push,
    read,
    tails,
)
from multichat.cluster.errors import EngineAway, EngineBusy, EngineRefused, FateUnknown, NotOurs
from multichat.cluster.keys import channel_room, room_channel
from multichat.cluster.link import Link, Request
from multichat.cluster.log_state import MAX_WAITING_BYTES, Place
from multichat.cluster.pipeline import Message
from multichat.cluster.room_log import EngineLog, Load, Sent
from multichat.errors import NotRead, StorageFailed
from multichat.journal.base import PendingWrite
from multichat.protocol.counts import counted
from multichat.protocol.ids import message_id

__all__ = ["AWAY", "LogConfig", "RoomLogs"]

T = TypeVar("T")

AWAY = "the engine of the cluster is away"
_FENCED = "this server was taken for dead by the others"
_REPLACED = "the session was resumed on another server"
_FULL = "the engine of the cluster does not keep up"
_STOPPED = "the server has stopped"
_NOT_LOADED = "the room is not loaded"

# How many rooms one request subscribes, or asks the tails of: the engine is busy for about 2 ms.
_ROOMS_AT_ONCE = 500

# The rooms that the log names when messages of more rooms are lost.
_LOST_ROOMS = 5

# Stands for the id of a message that was left out because a private message has its nonce.
_PRIVATE = "-"

# Refusals which mean that a call is not in the log: the engine looks for an earlier answer to the
# call before it refuses with one of these.
_NEVER_DONE = frozenset(("FENCED", "FORGOTTEN"))


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """Settings of the logs of *node*.

    A client's nonces expire *nonce_seconds* after its last one, which is later than its session.
    """

    node: str
    nonce_seconds: float = 86400.0
    appends: AppendLimits = field(default_factory=AppendLimits)

    # The time without the engine after which new messages are refused: people want an answer.
    away_seconds: float = 3.0

    # Limits of a room's data that waits to be applied, and of one read, in bytes.
    waiting_bytes: int = MAX_WAITING_BYTES
    reading_bytes: int = 256 * 1024

    # How many rooms are read at the same time.
    readings: int = 8

    # The interval at which tails are compared, in case a push was lost.
    poll_seconds: float = 10.0

    # How long a loaded room is kept if it is not opened.
    loaded_seconds: float = 15.0

    # The interval at which timeouts are checked and refused calls are repeated.
    watch_seconds: float = 0.5


@dataclass(frozen=True, slots=True)
class _Reading:
    """A read of a log, from number *start* up to *stop*."""

    log: EngineLog
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Tails:
    """A request for the tails of *logs*, which determine the targets of *loads*."""

    logs: tuple[EngineLog, ...]
    loads: tuple[tuple[Load, ...], ...]


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A request whose answer is handled next, and its purpose, which is None for a subscription."""

    link: Link
    request: Request
    decode: Callable[[Any], Any]
    purpose: "_Purpose | None"


_Purpose: TypeAlias = AppendsCall[Sent] | _Reading | _Tails


class RoomLogs:
    """The logs of the rooms of one node; call `run` once, in the backend's nursery.

    *epoch* is the highest epoch that this node knows, of any room.
    """

    def __init__(self, config: LogConfig) -> None:
        self.config = config
        self.epoch = ""
        self._appends: Appends[Sent] = Appends(config.appends)
        self._link: Link | None = None
        self._linked = trio.Event()  # replaced when the link is lost
        self._is_fenced = False
        self.complaint = ""  # what is wrong with the engine, for its operator
        self._lost: Counter[str] = Counter()  # messages by room, until they are logged
        self._unreadable_since: float | None = None  # without an answer that is ours
        self._refused = ""  # why the engine has just refused a call that may be executed already
        self._was_refused = False  # whether it has refused messages, until `take_refused`
        self._away_since = 0.0
        self._logs: dict[str, EngineLog] = {}
        self._awaited: deque[_Awaited] = deque()
        self._something_awaited = trio.Event()
        self._something_to_send = trio.Event()
        self._reading: set[EngineLog] = set()
        self._to_read: dict[EngineLog, None] = {}
        self._to_ask: dict[EngineLog, None] = {}  # logs whose tails are to be requested

    # --- For the backend --------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then fail everything that is pending."""
        self._away_since = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_all)
                nursery.start_soon(self._take_answers)
                nursery.start_soon(self._watch)
                task_status.started()
        finally:
            for sent in self._appends.give_up():
                sent.fail(_STOPPED)
            for log in self._logs.values():
                log.stop(_STOPPED)

    def connected(self, link: Link, run: str) -> None:
        """Use *link*, whose engine has the library and knows *run* as the node's run.

        Also called with the same link after the node has begun a new run.
        """
        is_new = link is not self._link
        self._link, self._is_fenced, self._refused = link, False, ""
        self._appends.begin(run)
        if is_new:
            self._reading.clear()
            self._appends.reconnected()
            for log in self._logs.values():
                log.reconnected()
            self._subscribe(self._logs.values())
            self._ask_for_tails(self._logs.values())
        self._linked.set()
        self._something_to_send.set()

    def disconnected(self) -> None:
        """Record that the link has ended, and wait for the next one."""
        if self._link is not None:
            self._link = None
            self._linked = trio.Event()
            self._away_since = trio.current_time()

    def take(self, message: Message) -> bool:
        """Handle a message of a channel; return False if it is not the channel of a room."""
        room = channel_room(message.channel.decode("utf-8", "replace"))
        if room is None:
            return False
        log = self._logs.get(room)
        if log is not None and log.state is not None:
            try:
                pushed = parse_push(message.payload)
            except InvalidPacket:
                return True  # not from multichat: something else uses our channel
            if isinstance(pushed, Trimmed):
                log.state.trimmed(pushed.first)
            else:
                for packet in pushed:
                    self._note_epoch(packet.header.epoch)
                    log.state.push(packet)
            self.check(log)
        return True

    def messages_dropped(self) -> None:
        """Compare all tails, because messages of channels were dropped."""
        self._ask_for_tails(self._logs.values())

    def load(self, key: str) -> PendingWrite | None:
        """Prepare the log of the room *key*; see `Backend.load_room`.

        If it is open, the result also waits until everything that the log has now is applied: a
        client may know messages that have not arrived here yet.
        """
        load = Load(PendingWrite())
        if reason := self.refusal:
            load.pending.resolve(reason)
            return load.pending
        log = self._logs.get(key)
        if log is None:
            log = self._logs[key] = EngineLog(self, key, max_bytes=self.config.waiting_bytes)
            self._subscribe([log])
        log.loads.append(load)
        log.expires = trio.current_time() + self.config.loaded_seconds  # unless it is open
        self._ask_for_tails([log])
        return load.pending

    def room(self, key: str) -> RoomLog:
        """Return the log of the room *key*; raises `StorageFailed` if it is not loaded."""
        log = self._logs.get(key)
        if log is None or log.state is None:
            raise StorageFailed(_NOT_LOADED)
        log.is_open = True
        return log

    def is_loaded(self, key: str) -> bool:
        """Return whether the log of the room *key* is loaded but not yet open."""
        log = self._logs.get(key)
        return log is not None and log.state is not None and not log.is_open

    def is_open(self, key: str) -> bool:
        """Return whether `room` has returned the log of that room, and it was not closed since."""
        log = self._logs.get(key)
        return log is not None and log.is_open

    @property
    def refusal(self) -> str:
        """Why nothing new can be appended now; empty if it can."""
        if self._is_fenced:
            return _FENCED
        if self._link is None:
            away = trio.current_time() - self._away_since
        else:
            away = self._link.unanswered_seconds
        if self._unreadable_since is not None:  # each link that repeats it ends
            away = max(away, trio.current_time() - self._unreadable_since)
        if away >= self.config.away_seconds:
            return AWAY
        return _FULL if self._appends.is_full else ""

    # --- Appending --------------------------------------------------------------------------------

    def propose(self, block: Block, sent: Sent) -> None:
        """Append *block*; raises `StorageFailed`."""
        if reason := self.refusal or self._refused:
            raise StorageFailed(reason)
        self._appends.add(block, sent)
        self._something_to_send.set()

    async def _send_all(self) -> None:
        while True:
            await self._something_to_send.wait()
            self._something_to_send = trio.Event()
            self._send()

    def _send(self) -> None:
        """Send what can be sent now; the rest is sent after the next answer."""
        if self._link is not None and self._send_tails() and self._send_calls():
            self._send_reads()

    def _send_tails(self) -> bool:
        while self._to_ask:
            logs = tuple(islice(self._to_ask, _ROOMS_AT_ONCE))
            loads = tuple(tuple(log.loads) for log in logs)
            rooms = [(log.key, log.known_epoch) for log in logs]
            if not self._request(tails(rooms), _Tails(logs, loads)):
                return False
            for log in logs:
                del self._to_ask[log]
        return True

    def _send_calls(self) -> bool:
        if self._refused:
            return True  # `_watch` tries again
        config = self.config
        while (call := self._appends.next_call(only_repeat=self._is_fenced)) is not None:
            for index, (_, sent) in enumerate(call.entries):
                sent.log.loaded.propose(_place(call, index), sent.draft, sent.proposal)
            blocks = (block for block, _ in call.entries)
            request = append(
                config.node, call.run, call.sequence, blocks, nonce_seconds=config.nonce_seconds
            )
            if not self._request(request, call):
                self._appends.not_sent(call)
                return False
        return True

    def _send_reads(self) -> None:
        while self._to_read and len(self._reading) < self.config.readings:
            log = next(iter(self._to_read))
            if (wanted := log.loaded.wanted) is not None:
                request = read(log.key, *wanted, max_bytes=self.config.reading_bytes)
                if not self._request(request, _Reading(log, *wanted)):
                    return
                self._reading.add(log)
            del self._to_read[log]

    def _request(self, call: Call[Any], purpose: _Purpose) -> bool:
        """Send *call*; return False if it cannot be sent now."""
        if self._link is None:
            return False
        try:
            request = self._link.request(*call.words)
        except (EngineAway, EngineBusy):
            return False
        self._await(self._link, request, purpose, call.read)
        return True

    def _await(
        self,
        link: Link,
        request: Request,
        purpose: _Purpose | None = None,
        decode: Callable[[Any], Any] = lambda _: None,
    ) -> None:
        self._awaited.append(_Awaited(link, request, decode, purpose))
        self._something_awaited.set()

    # --- Answers ----------------------------------------------------------------------------------

    async def _take_answers(self) -> None:
        while True:
            while not self._awaited:
                self._something_awaited = trio.Event()
                await self._something_awaited.wait()
            awaited = self._awaited.popleft()
            reply: Any
            try:
                reply = await awaited.request.reply()
            except FateUnknown:
                continue  # `connected` repeats what is necessary
            except EngineRefused as error:
                reply = error
            if awaited.link is not self._link:
                continue  # the data it reports may be lost: it is repeated, too
            if not isinstance(reply, EngineRefused):
                try:
                    reply = awaited.decode(reply)
                except NotOurs as error:
                    reply = error
            if isinstance(reply, EngineRefused):
                self._take_refusal(awaited.purpose, reply)
            else:
                self._take_answer(awaited.purpose, reply)
            self._send()

    def _take_answer(self, purpose: _Purpose | None, reply: Any) -> None:
        match purpose:
            case AppendsCall():
                self._unreadable_since = None
                self._appends.answered(purpose)
                for index, ((_, sent), answer) in enumerate(
                    zip(purpose.entries, reply, strict=True)
                ):
                    self._settle(sent, _place(purpose, index), answer)
            case _Reading(log, start, stop):
                self._reading.discard(log)
                if log.loaded.read(start, stop, reply):
                    self._ask_for_tails([log])
                self.check(log)
            case _Tails(logs, loads):
                for log, waiting, tail in zip(logs, loads, reply, strict=True):
                    self._note_epoch(tail.epoch)
                    log.take_tail(tail, waiting)
                    self.check(log)

    def _settle(self, sent: Sent, place: Place, answer: Answer) -> None:
        """Apply the answer to a proposal."""
        proposal, state = sent.proposal, sent.log.loaded
        if answer.known:
            proposal.earlier = {
                known.index: message_id(known.epoch, known.number) if known.room else _PRIVATE
                for known in answer.known
            }
            proposal.reused = frozenset(
                known.index
                for known in answer.known
                if not known.same or known.room not in ("", sent.log.key)
            )
        if answer.status == Status.APPENDED:
            self._note_epoch(answer.epoch)
            count = sent.draft.text.count("\n") + 1 - len(answer.known)
            header = Header(answer.first, count, answer.epoch, answer.ms, *place)
            if state.appended(place, header, tuple(proposal.earlier)) is not None:
                sent.succeed()
            self.check(sent.log)
            return
        state.refused(place)
        if answer.status == Status.KNOWN:
            sent.succeed()
        else:
            sent.fail(_REPLACED if answer.status == Status.FENCED else self._told(answer.epoch))
        self.check(sent.log)

    def _told(self, failure: str) -> str:
        """Return the reason that clients get for the *failure* of one block."""
        error = EngineRefused.parse(failure)
        if not error.is_known:
            self.complaint = str(error)
        return error.meaning.told

    def _take_refusal(self, purpose: _Purpose | None, error: EngineRefused) -> None:
        match purpose:
            case AppendsCall():
                if error.code == "READONLY":
                    return  # the link ends, and the next one is to the primary
                if isinstance(error, NotOurs):  # its outcome is asked for on the next link
                    if self._unreadable_since is None:
                        self._unreadable_since = trio.current_time()
                    if self._link is not None:
                        self._link.end(str(error))
                    return
                if "Function not found" in error.text and self._link is not None:
                    self._link.end("the engine has lost its functions")  # the next one loads them
                    return
                self._was_refused = True
                reason = error.meaning.told
                if self._appends.may_be_done(purpose) and error.code not in _NEVER_DONE:
                    self._appends.repeat(purpose)
                    self._refused = reason
                    return
                self._appends.answered(purpose)
                if error.code == "FENCED":
                    reason = _FENCED
                    self._is_fenced = purpose.run == self._appends.run
                for index, (_, sent) in enumerate(purpose.entries):
                    sent.log.loaded.refused(_place(purpose, index))
                    sent.fail(reason)
                    self.check(sent.log)
            case _Reading(log):
                self._reading.discard(log)  # `_watch` repeats it
            case _Tails(logs):
                for log in logs:
                    log.fail_loads(error.meaning.told)

    def _note_epoch(self, epoch: str) -> None:
        self.epoch = max(self.epoch, epoch)

    # --- Following rooms --------------------------------------------------------------------------

    def check(self, log: EngineLog) -> None:
        """Hand out what *log* has, and read what it lacks."""
        state = log.state
        if state is None:
            return
        if state.can_hand_out:
            log.more.set()
        if state.wanted is not None and log not in self._reading and log not in self._to_read:
            self._to_read[log] = None
            self._something_to_send.set()

    def _subscribe(self, logs: Iterable[EngineLog]) -> None:
        channels = [room_channel(log.key) for log in logs]
        for start in range(0, len(channels), _ROOMS_AT_ONCE):
            if (link := self._link) is None:
                return
            try:
                request = link.subscribe(*channels[start : start + _ROOMS_AT_ONCE])
            except EngineAway:
                return  # `connected` does it
            except EngineBusy as error:
                link.end(str(error))
                return
            self._await(link, request)

    def _ask_for_tails(self, logs: Iterable[EngineLog]) -> None:
        self._to_ask.update(dict.fromkeys(logs))
        self._something_to_send.set()

    def note_lost(self, room: str, messages: int) -> None:
        """Count *messages* of *room* that this node has handed out, and the engine has lost."""
        if messages:
            self._lost[room] += messages

    def take_refused(self) -> bool:
        """Return whether the engine has refused messages since the last call."""
        was_refused, self._was_refused = self._was_refused, False
        return was_refused

    def take_lost(self) -> str:
        """Return what the engine has lost since the last call, for the log; empty if nothing."""
        if not self._lost:
            return ""
        rooms = [f"{count} in {room}" for room, count in self._lost.most_common(_LOST_ROOMS)]
        if more := len(self._lost) - len(rooms):
            rooms.append(f"the rest in {counted(more, 'other room')}")
        total, self._lost = self._lost.total(), Counter()
        messages = counted(total, "message")
        return f"the newest data of the engine was lost: {messages}, {', '.join(rooms)}"

    def closed(self, log: EngineLog) -> None:
        """Stop following *log*; loads of it that wait are resolved, and have to load it again."""
        log.release_loads()
        self._to_ask.pop(log, None)
        self._to_read.pop(log, None)
        if self._logs.get(log.key) is not log:
            return
        del self._logs[log.key]
        if (link := self._link) is not None:
            try:
                request = link.unsubscribe(room_channel(log.key))
            except (EngineAway, EngineBusy):
                return  # its pushes are ignored
            self._await(link, request)

    async def _watch(self) -> None:
        polled = trio.current_time()
        while True:
            await trio.sleep(self.config.watch_seconds)
            now = trio.current_time()
            reason = self.refusal
            # A queue that is only full empties by itself, but not while a refused call blocks it.
            if failure := self._refused if reason in ("", _FULL) else reason:
                for sent in self._appends.take_back():
                    sent.fail(failure)
            if reason:
                for log in self._logs.values():
                    log.fail_loads(reason)
            if reason in ("", _FULL):
                self._refused = ""
            if now - polled >= self.config.poll_seconds:
                polled = now
                self._ask_for_tails(self._logs.values())
            for log in list(self._logs.values()):
                if not log.is_open and not log.loads and log.expires <= now:
                    self.closed(log)
                else:
                    self.check(log)
            self._send()

    # --- Reading ----------------------------------------------------------------------------------

    async def call(self, call: Call[T]) -> T:
        """Return the answer to a *call*, which may be repeated; waits for a link.

        Raises `NotRead` if the engine refuses it.
        """
        while True:
            await self._linked.wait()
            link = self._link
            try:
                if link is not None:
                    return call.read(await link.call(*call.words))
            except EngineRefused as error:
                raise NotRead(error.meaning.told) from None
            except (EngineAway, FateUnknown):
                pass
            if link is self._link:  # `disconnected` will follow
                await trio.sleep(self.config.watch_seconds)


def _place(call: AppendsCall[Sent], index: int) -> Place:
    return Place(call.run, call.sequence, index)
