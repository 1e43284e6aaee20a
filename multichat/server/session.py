"""One client's session, over any stream.

Reads the client's requests, carries them out and answers them, and closes the connection so that
nothing that was written is lost.  One nursery: the reader is the task that called `run`; the writer
starts when the send queue has to wait for the first time, or with the goodbye.

It always ends in this order: the member leaves the room (synchronously; the send queue accepts
nothing more), the writer finishes within the grace period, EOF, input is discarded for a moment,
close.
"""

import trio

from multichat import __version__
from multichat.errors import (
    InvalidName,
    InvalidRequest,
    LineTooLong,
    NotRead,
    Rejected,
    RemoteProtocolError,
)
from multichat.net import transport
from multichat.net.send_queue import SendQueue
from multichat.net.turns import Meter, current_meter
from multichat.protocol.codec import encoded_help
from multichat.protocol.framing import Part
from multichat.protocol.goodbyes import ASKED_TO_LEAVE
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    NO_SENDER,
    PROTOCOL,
    Act,
    Direct,
    Error,
    Event,
    Goodbye,
    Hello,
    Help,
    History,
    Invalid,
    Join,
    Joined,
    Missed,
    Ping,
    Pong,
    Quit,
    Rename,
    Renamed,
    Reply,
    Request,
    Rooms,
    SayBlock,
    Welcome,
    Who,
)
from multichat.protocol.names import default_name, fold_name
from multichat.protocol.sniff import TLS_RECORD, sniff_bytes, sniff_line
from multichat.protocol.text_codec import TEXT
from multichat.server.admission import AdmittedConnection
from multichat.server.config import Joining, Renaming, ServerConfig
from multichat.server.filters import Filters
from multichat.server.member import Member
from multichat.server.message_pipeline import MessagePipeline
from multichat.server.origin import Origin
from multichat.server.rate_limit import ClientRateLimit
from multichat.server.registry import Registry
from multichat.server.session_store import StoredSession

__all__ = ["Session"]


# One read, one batch: large enough that a flood costs per batch and not per message; small enough
# that senders take turns, and that lines of 40 bytes and more fit, with their tags, into the 64 KiB
# that the kernel passes on as one piece: the excess would cost every member a second one.
_READ_BYTES = 48 * 1024

# The same while memory is tight, and under a rate limit: until everything read has been published,
# at the limit's pace, not even a disconnect is noticed.
_SHORT_READ_BYTES = 4096

# Memory for each byte that was read while its messages wait to be published: its text, its lines
# and the requests in them.  Measured 1 to 10.  Small reads are not counted.
_READ_COST = 6
_SMALL_READ_BYTES = 512

# The answer to a request that changes the client's room or protocol is smaller than this.
_ANSWER_BYTES = 4096


class _Leave(Exception):
    """The client leaves; *reason* is for the log, *last_words* are sent to the client.

    If it leaves *for good*, it cannot resume its session.
    """

    def __init__(
        self, reason: str = "", last_words: bytes = b"", *, for_good: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.last_words, self.for_good = reason, last_words, for_good


class Session:
    """A client in *registry*; constructing it starts nothing and sends nothing.

    *connection* comes from *address*; its use counts towards the limits of *origin*; *meter*
    schedules its turns.  `run` is called once, by one task.  The stream is closed when it returns
    or raises.
    """

    __slots__ = (
        "_active_at",
        "_config",
        "_connection",
        "_filters",
        "_first_line",
        "_meter",
        "_nursery",
        "_pipeline",
        "_rate_limit",
        "_read_bytes",
        "_reading",
        "_registry",
        "_replay_meter",
        "_replayed",
        "_send_queue",
        "_stream",
        "_unhandled_bytes",
        "_writing",
        "member",
    )

    def __init__(
        self,
        connection: AdmittedConnection,
        registry: Registry,
        client: int,
        config: ServerConfig,
        filters: Filters,
        address: str,
        origin: Origin | None,
        meter: Meter,
    ) -> None:
        self._connection = connection
        self._stream = connection.stream
        self._registry = registry
        self._config = config
        self._filters = filters
        self._read_bytes = _READ_BYTES if config.rate is None else _SHORT_READ_BYTES
        self._unhandled_bytes = 0
        self._active_at: float | None = trio.current_time()
        self._reading = trio.CancelScope()
        self._first_line = True
        self._nursery: trio.Nursery
        self._meter = meter
        self._replay_meter: Meter | None = None
        self._writing = False
        self._replayed: trio.Event | None = None  # while the client lags
        self._send_queue = SendQueue(
            self._stream,
            max_batches=config.send_queue_batches,
            encode_missed=lambda count: self.member.codec.encode(Missed(count)),
            on_waiting=self._start_writing,
            on_empty=self._queue_ran_empty,
            budget=registry.budget,
        )
        self.member = Member(
            client=client,
            name=default_name(client),
            send_queue=self._send_queue,
            address=address,
            origin=origin and origin.address,
            on_leave=self._stop_reading,
            on_lag=self._start_replaying,
        )
        self._rate_limit = ClientRateLimit(config, self.member, burst_bytes=_READ_BYTES)
        self._pipeline = MessagePipeline(self.member, registry, self._rate_limit, filters)

    def _queue_ran_empty(self) -> None:
        self.member.room.slow_clients.queue_ran_empty()  # of the room that it is in now

    def _stop_reading(self, reason: str) -> None:
        self._start_writing()  # the last words: this task may be waiting for a slow member
        self._connection.decoder.forget()
        self._nursery.cancel_scope.deadline = trio.current_time() + self._config.grace_seconds
        self._reading.cancel(reason=reason or "the client left")

    async def run(self) -> None:
        """Serve the client until either side ends the session.

        Nothing that the client does raises.  If it is cancelled, the member has left the room, the
        stream is closed, and what was still queued is lost.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    self._registry.enter(self.member)
                    with self._reading:
                        await self._assign_name(self._connection.name)
                        await self._read()
                    if self._send_queue.failure:  # writing failed, and no more input came
                        self._registry.leave(self.member, self._send_queue.failure)
                finally:  # while the nursery is open: leaving may start the writer
                    self._registry.leave(self.member, "the server ended the session")
            if self._send_queue.drained:
                await transport.close_gracefully(self._stream, self._config.timeouts.linger)
        finally:
            # They refer to this session: without these cycles its memory is freed at once.
            del self.member, self._pipeline, self._rate_limit
            del self._send_queue, self._nursery, self._connection
            await transport.close(self._stream)

    async def _assign_name(self, name: str) -> None:
        """Give the client the name that `authenticate` returned, if any."""
        if name:
            self.member.assigned_name = name
            try:
                self._registry.rename(self.member, name)
            except RemoteProtocolError as error:  # a name of its own session, perhaps
                await self.member.send(Invalid.because(error).error)

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        current_meter.set(None)  # inherited from the client that filled the send queue
        await self._send_queue.run()
        # If writing failed, what the client sent before is still read, within the grace period.
        self._reading.deadline = trio.current_time() + self._config.grace_seconds

    def _start_replaying(self) -> None:
        if self._replayed is None:
            self._replayed = trio.Event()
            self._nursery.start_soon(self._replay)

    async def _replay(self) -> None:
        # A replay takes its own turns; all replays of a client share one meter.
        if self._replay_meter is None:
            self._replay_meter = self._meter.another()
        # The inherited one is that of the client whose message made this one lag.
        current_meter.set(self._replay_meter)
        await self._replay_meter.measure(self._replay_rooms())

    async def _replay_rooms(self) -> None:
        member = self.member
        while member.lag is not None and not self._send_queue.closed:
            await member.room.replayer.replay(member)
        self._note_memory()
        replayed, self._replayed = self._replayed, None
        assert replayed is not None  # noqa: S101 - there is one replay task
        replayed.set()

    async def _read(self) -> None:
        try:
            await self._read_requests()
            # A client that has half-closed the connection still reads.
            self.member.room.stop_waiting_for(self.member)
            if self._replayed is not None:
                await self._replayed.wait()
        except _Leave as leave:
            self._registry.leave(
                self.member, leave.reason, last_words=leave.last_words, for_good=leave.for_good
            )
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._registry.leave(self.member, transport.describe_error(error))
        else:
            self._registry.leave(self.member)

    async def _read_requests(self) -> None:
        receive, decoder = self._receive, self._connection.decoder
        await self._handle(self._connection.parts)
        data = await receive()
        if data == TLS_RECORD:  # the second byte is needed, too
            data += await receive()
        if other := sniff_bytes(data):
            raise _Leave(other.reason, other.answer)
        while data:
            parts, size, data = decoder.feed(data), len(data), b""
            if size > _SMALL_READ_BYTES:
                self._unhandled_bytes = size * _READ_COST
                self._note_memory()
            await self._handle(parts)
            self._unhandled_bytes = 0
            self._note_memory()
            if decoder.reply and self.member.codec is TEXT:
                await self._send_queue.put(decoder.reply)
            data = await receive()
        await self._handle(decoder.finish())

    def _note_memory(self) -> None:
        session, lag = self.member.stored_session, self.member.lag
        held = self._unhandled_bytes + self._connection.decoder.buffered_bytes
        held += (session.held_bytes if session else 0) + (lag.held_bytes if lag else 0)
        self._send_queue.note(held)

    async def _receive(self) -> bytes | bytearray:
        size = _SHORT_READ_BYTES if self._registry.budget.tight else self._read_bytes
        if self._active_at is None:  # there was a request since the last read
            self._active_at = trio.current_time()
        if self._config.idle_seconds is None:
            data = await transport.receive_some(self._stream, size)
        else:
            with trio.move_on_at(self._active_at + self._config.idle_seconds) as idle:
                data = await transport.receive_some(self._stream, size)
            if idle.cancelled_caught and transport.has_input(self._stream):
                # Not idle: its turn has not come yet.
                data = await transport.receive_some(self._stream, size)
            elif idle.cancelled_caught:
                reason = f"idle for {self._config.idle_seconds:g} s"
                raise _Leave(reason, self.member.codec.encode(Goodbye.of("idle", reason)))
        if self._rate_limit.limits_bytes:
            await self._rate_limit.spend_bytes(len(data))
        return data

    async def _handle(self, parts: list[Part]) -> None:
        take_turn = self._meter.take
        for part in parts:
            if isinstance(part, LineTooLong):
                await take_turn()
                await self._rate_limit.acquire(1)
                await self.member.send(Invalid.because(part).error)
                continue
            if self._first_line:
                self._first_line = False
                if other := sniff_line(part.partition("\n")[0]):
                    raise _Leave(other.reason, other.answer)
            for request in self.member.codec.parse_requests(part):
                await take_turn()
                # A keep-alive does not count as activity.
                if type(request) is not Ping:
                    self._active_at = None
                if type(request) is Act:
                    request = _block_of(request)
                if type(request) is SayBlock:  # mostly
                    await self._pipeline.send(request)
                    continue
                await self._rate_limit.acquire(1)
                try:
                    await self._carry_out(request)
                except RemoteProtocolError as error:
                    nonce = getattr(request, "nonce", None)
                    await self.member.send(Invalid.because(error, nonce).error)

    async def _carry_out(self, request: Request) -> None:
        """Carry out a request and answer it; raises `RemoteProtocolError` if it is refused."""
        await trio.lowlevel.checkpoint_if_cancelled()  # it may have been disconnected meanwhile
        me, registry = self.member, self._registry
        match request:
            case Direct():
                await self._pipeline.direct(request)
            case Rename(name=name, nonce=nonce):
                old = registry.rename(me, _passed(await self._filter(Renaming, name)))
                await self.member.send(Renamed(me.client, old, me.name, nonce=nonce))
            case Join(room=room, since=since, nonce=nonce):
                room = _passed(await self._filter(Joining, room))
                await self._wait_for_room()
                registry.move(me, room)
                refused = self._start_from(since, 0)
                at = me.room
                joined = Joined(me.client, me.name, at.name, len(at), at.last_id, nonce=nonce)
                await self.member.send(joined, *refused)
            case Reply(text=text):
                if me.last_sender is None:
                    raise InvalidRequest(NO_SENDER)
                await self._pipeline.direct(Direct(me.last_sender, text))
            case Who(room=room, nonce=nonce):
                await self._send_queue.put(registry.encode_who(room or me.room.name, me, nonce))
            case Rooms(nonce=nonce):
                await self._send_queue.put(registry.room_list.encode(me.codec, nonce))
            case History(limit=limit, before=before, room=room, nonce=nonce):
                self._pipeline.require_room(room)
                await self.member.send(await me.room.history(limit, before, nonce))
            case Ping(token=token, nonce=nonce):
                await self.member.send(Pong(token, nonce=nonce))
            case Help(nonce=nonce):
                await self._send_queue.put(encoded_help(me.codec, nonce))
            case Hello():
                await self._greet(request)
            case Invalid(error):
                await self.member.send(error)
            case Quit(nonce=nonce):
                goodbye = Goodbye.of("quit", ASKED_TO_LEAVE, nonce=nonce)
                raise _Leave(last_words=me.codec.encode(goodbye), for_good=True)

    async def _greet(self, hello: Hello) -> None:
        """Change to JSON: resume or begin a session, rename and join, answer with the welcome."""
        me, registry = self.member, self._registry
        room = hello.room and await self._filter(Joining, hello.room)
        name = hello.name and await self._filter(Renaming, hello.name)
        if hello.name is None and me.assigned_name:  # its own session may have held it so far
            name = me.assigned_name
        resumed = await self._find_session(hello.session or "")
        # From here on nothing waits: all this happens in one step with the welcome.
        refusals: list[RemoteProtocolError] = []
        if resumed is not None:
            token = hello.session or ""
            refusals += registry.resume(me, resumed)
        else:
            token = registry.give_session(me)
        if hello.room is not None:
            try:
                registry.move(me, _passed(room))
            except RemoteProtocolError as error:
                refusals.append(error)
                registry.refuse_room(me, "" if isinstance(error, InvalidName) else hello.room)
        if hello.name is not None or name:
            try:
                registry.rename(me, _passed(name))
            except RemoteProtocolError as error:
                refusals.append(error)
        missed = self._send_queue.take_missed()  # in the protocol before the change
        me.room.set_codec(me, JSON)
        # If the hello asks for the session's name, there is one error for both.
        refused = list(dict.fromkeys(Invalid.because(error).error for error in refusals))
        if me.refused_room is None:  # else `since` and `replay` are about that room
            refused += self._start_from(hello.since, hello.replay)
        welcome = Welcome(
            PROTOCOL,
            me.client,
            me.name,
            me.room.name,
            len(me.room),
            self._config.limits,
            me.room.last_id,
            f"multichat {__version__}",
            resumed=resumed is not None,
            session=token,
        )
        events: list[Event] = [welcome, *refused]
        await self._send_queue.put(missed + b"".join(map(JSON.encode, events)))

    async def _find_session(self, token: str) -> StoredSession | None:
        """Return the session with that *token*, once an answer can be queued in the same step."""
        while True:
            try:
                stored = await self._registry.session_store.find(token)
            except NotRead:  # the client sees `resumed`, see docs/journal.md
                stored = None
            if self._send_queue.has_room(_ANSWER_BYTES):
                break
            await self._send_queue.wait_for_space()  # the session may end meanwhile
        await trio.lowlevel.checkpoint_if_cancelled()
        name = self.member.assigned_name
        if stored is not None and name and fold_name(stored.name or name) != fold_name(name):
            return None  # somebody else's
        return stored

    async def _filter(self, kind: type[Joining | Renaming], text: str) -> str | None:
        """Return the requested room or name, as changed by the filters; None if rejected."""
        me = self.member
        return await self._filters.apply_to_request(
            kind(client=me.client, name=me.name, room=me.room.name, text=text)
        )

    def _start_from(self, since: str | None, replay: int) -> list[Error]:
        """Replay messages after *since*, or the last *replay* ones, to this client.

        They follow the answer that is queued in the same step.

        Returns an error if *since* is no id of the room.
        """
        room = self.member.room
        if since is not None:
            try:
                position = room.number_of(since) + 1
            except RemoteProtocolError as error:
                return [Invalid.because(error).error]
            room.replay_from(self.member, position)
        elif replay:
            room.replay_from(self.member, room.number_of_last(replay))
        return []

    async def _wait_for_room(self) -> None:
        """Wait until an answer can be queued without waiting, in one step with what it reports."""
        while not self._send_queue.has_room(_ANSWER_BYTES):
            await self._send_queue.wait_for_space()
        await trio.lowlevel.checkpoint_if_cancelled()  # it may have been disconnected meanwhile


def _block_of(act: Act) -> SayBlock:
    nonces = () if act.nonce is None else (act.nonce,)
    return SayBlock(act.text, nonces, act.room, act=True)


def _passed(filtered: str | None) -> str:
    """Return *filtered*, the result of a filter; raises `Rejected` if it is None."""
    if filtered is None:
        raise Rejected
    return filtered
