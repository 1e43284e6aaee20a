"""One client's session, over any stream.

Reads the client's requests, carries them out and answers them, and closes the connection so that
nothing that was written is lost.  One nursery: the reader is the task that called `run`; the writer
starts when the send queue has to wait for the first time, or with the goodbye.

It always ends in this order: the member leaves the room (synchronously; the send queue accepts
nothing more), the writer finishes within the grace period, EOF, input is discarded for a moment,
close.
"""

from collections.abc import Mapping

import msgspec
import trio

from multichat.errors import (
    InvalidRequest,
    LastRoom,
    LineTooLong,
    NotInRoom,
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
    LOBBY,
    NO_SENDER,
    Act,
    Direct,
    Enter,
    Entered,
    Error,
    Exit,
    Goodbye,
    Hello,
    Help,
    History,
    Invalid,
    Join,
    Joined,
    Left,
    Missed,
    Nonce,
    Ping,
    Pong,
    Quit,
    Rename,
    Renamed,
    Reply,
    Request,
    Rooms,
    SayBlock,
    Start,
    Who,
)
from multichat.protocol.names import default_name, fold_name
from multichat.protocol.sniff import TLS_RECORD, sniff_bytes, sniff_line
from multichat.server.account_requests import AccountRequests
from multichat.server.admin_commands import AdminCommands
from multichat.server.admission import AdmittedConnection
from multichat.server.client import ARRIVING_SECONDS, GREETING_SECONDS, Client
from multichat.server.config import Joining, Renaming, ServerConfig
from multichat.server.filters import Filters, passed
from multichat.server.greeting import start_from
from multichat.server.hello import HelloHandler, Unavailable, filtered
from multichat.server.message_pipeline import MessagePipeline
from multichat.server.origin import Origin
from multichat.server.rate_limit import ClientRateLimit
from multichat.server.registry import Registry
from multichat.server.replay import replay
from multichat.server.room_claims import WantedRooms

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

# The answer to a request that changes the client's room is smaller than this.
_ANSWER_BYTES = 4096


class _Leave(Exception):
    """The client leaves; *reason* is for the log, *last_words* are sent to the client.

    *code* is one of `DISCONNECT_CODES`.  If it leaves *for good*, it cannot resume its session.
    """

    def __init__(
        self, code: str, reason: str = "", last_words: bytes = b"", *, for_good: bool = False
    ) -> None:
        super().__init__(reason)
        self.code, self.reason, self.last_words = code, reason, last_words
        self.for_good = for_good


class Session:
    """A client in *registry*; constructing it starts nothing and sends nothing.

    *admin* are the commands of operators.

    *connection* comes from *address*, and *is_private* if nobody on the network can read it; the
    client *may_speak* if it needs no account for that.  Its use counts towards the limits of
    *origin*; *meter* schedules its turns.  `run` is called once, by one task.  The stream is closed
    when it returns or raises.
    """

    __slots__ = (
        "_accounts",
        "_active_at",
        "_config",
        "_connection",
        "_filters",
        "_first_line",
        "_hello",
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
        "client",
    )

    def __init__(
        self,
        connection: AdmittedConnection,
        registry: Registry,
        admin: AdminCommands,
        number: int,
        config: ServerConfig,
        filters: Filters,
        address: str,
        origin: Origin | None,
        meter: Meter,
        *,
        is_private: bool,
        may_speak: bool,
    ) -> None:
        self._connection = connection
        self._stream = connection.stream
        self._registry = registry
        self._config = config
        self._filters = filters
        self._read_bytes = _READ_BYTES if config.rate is None else _SHORT_READ_BYTES
        self._unhandled_bytes = 0
        now = trio.current_time()
        self._active_at: float | None = now
        self._reading = trio.CancelScope()
        self._first_line = connection.may_be_other_protocol
        self._nursery: trio.Nursery
        self._meter = meter
        self._replay_meter: Meter | None = None
        self._writing = False
        self._replayed: trio.Event | None = None  # while the client lags
        self._send_queue = SendQueue(
            self._stream,
            max_batches=config.send_queue_batches,
            encode_missed=self._encode_missed,
            on_waiting=self._start_writing,
            on_empty=self._queue_ran_empty,
            budget=registry.budget,
        )
        self.client = Client(
            number=number,
            name=default_name(number),
            send_queue=self._send_queue,
            address=address,
            codec=connection.codecs.text,
            codecs=connection.codecs,
            origin=origin and origin.address,
            may_speak=may_speak,
            arriving_until=now + ARRIVING_SECONDS,
            on_leave=self._stop_reading,
            on_lag=self._start_replaying,
        )
        self._rate_limit = ClientRateLimit(config, self.client, burst_bytes=_READ_BYTES)
        self._pipeline = MessagePipeline(self.client, registry, self._rate_limit, filters, config)
        self._accounts = AccountRequests(
            self.client, registry, admin, origin, is_private=is_private
        )
        self._hello = HelloHandler(self.client, registry, filters, self._accounts, config)

    def _encode_missed(self, missed: Mapping[str, int]) -> bytes:
        encode = self.client.codec.encode
        if not self.client.names_rooms:
            return encode(Missed(sum(missed.values())))
        return b"".join(encode(Missed(count, room)) for room, count in missed.items())

    def _queue_ran_empty(self) -> None:
        for member in self.client.memberships.values():
            member.room.slow_clients.queue_ran_empty()

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
                    self._registry.add(self.client)
                    with self._reading:
                        await self._assign_name(self._connection.name)
                        await self._read()
                    if self._send_queue.failure:  # writing failed, and no more input came
                        self._registry.leave(self.client, self._send_queue.failure, code="lost")
                finally:  # while the nursery is open: leaving may start the writer
                    reason = "the server ended the session"
                    self._registry.leave(self.client, reason, code="aborted")
                    self._registry.rooms.settle(self.client.grants)
            if self._send_queue.drained:
                await transport.close_gracefully(self._stream, self._config.timeouts.linger)
        finally:
            # They refer to this session, or to each other: without these cycles the memory is freed
            # at once.
            del self.client.current, self.client, self._pipeline, self._rate_limit, self._accounts
            del self._hello, self._send_queue, self._nursery, self._connection
            await transport.close(self._stream)

    async def _assign_name(self, name: str) -> None:
        """Give the client the name that `authenticate` returned, if any."""
        if name:
            self.client.assigned_name = name
            try:
                await self._rename(name)
            except RemoteProtocolError as error:  # a name of its own session, perhaps
                self._registry.settle_claims(self.client)
                await self.client.send(Invalid.because(error).error)

    async def _rename(self, name: str) -> str:
        await self._registry.claim(self.client, name)
        old = self._registry.rename(self.client, name)
        self._registry.settle_claims(self.client)
        return old

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
        await replay(self.client)
        self._note_memory()
        replayed, self._replayed = self._replayed, None
        assert replayed is not None  # noqa: S101 - there is one replay task
        replayed.set()

    async def _read(self) -> None:
        try:
            await self._read_requests()
            # A client that has half-closed the connection still reads.
            for member in self.client.memberships.values():
                member.room.stop_waiting_for(member)
            if self._replayed is not None:
                await self._replayed.wait()
        except _Leave as leave:
            self._registry.leave(
                self.client,
                leave.reason,
                last_words=leave.last_words,
                code=leave.code,
                for_good=leave.for_good,
            )
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._registry.leave(self.client, transport.describe_error(error), code="lost")
        else:
            if self._send_queue.was_reset:  # a write has taken the error; reading saw the end
                self._registry.leave(self.client, self._send_queue.failure, code="lost")
            self._registry.leave(self.client, code="closed")

    async def _read_requests(self) -> None:
        receive, decoder = self._receive, self._connection.decoder
        await self._handle(self._connection.parts)
        await self._reply()
        data = await receive()
        if self._first_line:
            if data == TLS_RECORD:  # the second byte is needed, too
                data += await receive()
            if other := sniff_bytes(data):
                raise _Leave("protocol-error", other.reason, other.answer)
        while data:
            parts, size, data = decoder.feed(data), len(data), b""
            if size > _SMALL_READ_BYTES:
                self._unhandled_bytes = size * _READ_COST
                self._note_memory()
            await self._handle(parts)
            self._unhandled_bytes = 0
            self._note_memory()
            if decoder.reply or decoder.ending is not None:
                await self._reply()
            data = await receive()
        await self._handle(decoder.finish())

    async def _reply(self) -> None:
        """Send what the decoder answers to telnet commands or pings, and leave if it has ended.

        While the send queue is full nothing more is read: there is one answer for each read.
        """
        decoder = self._connection.decoder
        if decoder.reply and self.client.codec is not JSON:  # a program knows no telnet
            await self._send_queue.put(decoder.reply)
        if decoder.ending is not None:
            ending = decoder.ending
            code = "protocol-error" if ending.reason else "closed"
            raise _Leave(code, ending.reason, ending.last_words)

    def _note_memory(self) -> None:
        session = self.client.stored_session
        held = self._unhandled_bytes + self._connection.decoder.buffered_bytes
        held += session.held_bytes if session else 0
        for member in self.client.memberships.values():
            held += member.lag.held_bytes if member.lag else 0
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
                goodbye = Goodbye.of("idle", reason)
                raise _Leave(goodbye.code, reason, self.client.codec.encode(goodbye))
        if self._rate_limit.limits_bytes:
            await self._rate_limit.spend_bytes(len(data))
        return data

    async def _handle(self, parts: list[Part]) -> None:
        take_turn = self._meter.take
        for part in parts:
            if isinstance(part, LineTooLong):
                await take_turn()
                await self._rate_limit.acquire(1)
                await self.client.send(Invalid.because(part).error)
                continue
            if self._first_line:
                self._first_line = False
                if other := sniff_line(part.partition("\n")[0], self._registry.web_url):
                    raise _Leave("protocol-error", other.reason, other.answer)
            for request in self.client.codec.parse_requests(part):
                await take_turn()
                # A keep-alive does not count as activity.
                if type(request) is not Ping:
                    self._active_at = None
                if self.client.arriving_until:
                    self._note_arrival(request)
                if type(request) is Act:
                    request = _block_of(request)
                if type(request) is SayBlock:  # mostly
                    await self._pipeline.send(request)
                    continue
                await self._rate_limit.acquire(1)
                try:
                    await self._carry_out(request)
                except RemoteProtocolError as error:
                    self._registry.settle_claims(self.client)
                    nonce = getattr(request, "nonce", None)
                    await self.client.send(Invalid.because(error, nonce).error)
                if self.client.claims or self.client.grants:
                    self._registry.settle_claims(self.client)

    async def _carry_out(self, request: Request) -> None:
        """Carry out a request and answer it; raises `RemoteProtocolError` if it is refused."""
        await trio.lowlevel.checkpoint_if_cancelled()  # it may have been disconnected meanwhile
        me, registry = self.client, self._registry
        match request:
            case Direct():
                await self._pipeline.direct(request)
            case Rename(name=name, nonce=nonce):
                old = await self._rename(passed(await self._filter(Renaming, name)))
                await self.client.send(Renamed(me.number, old, me.name, nonce=nonce))
            case Join(room=room, since=since, nonce=nonce):
                await self._join(room, nonce, since)
            case Enter():
                await self._enter(request)
            case Exit(room=room, nonce=nonce):
                await self._exit(room, nonce)
            case Reply(text=text):
                if me.last_sender is None:
                    raise InvalidRequest(NO_SENDER)
                await self._pipeline.direct(Direct(me.last_sender, text))
            case Who(room=room, nonce=nonce):
                await self._send_queue.put(registry.encode_who(room or me.room.name, me, nonce))
            case Rooms(nonce=nonce):
                await self._send_queue.put(registry.rooms.list.encode(me.codec, nonce))
            case History(limit=limit, before=before, room=room, nonce=nonce):
                member = me.member_in(room)
                page = await member.room.history(limit, before, nonce)
                await me.send(msgspec.structs.replace(page, room=member.named_room))
            case Ping(token=token, nonce=nonce):
                await self.client.send(Pong(token, nonce=nonce))
            case Help(nonce=nonce):
                await self._send_queue.put(encoded_help(me.codec, nonce))
            case Hello():
                await self._greet(request)
            case Invalid(error):
                await self.client.send(error)
            case Quit(nonce=nonce):
                goodbye = Goodbye.of("quit", ASKED_TO_LEAVE, nonce=nonce)
                words = me.codec.encode(goodbye)
                raise _Leave(goodbye.code, last_words=words, for_good=True)
            case _:
                await self._accounts.carry_out(request)

    async def _join(self, room: str, nonce: Nonce | None, since: str | None = None) -> None:
        """Move to *room*, and answer."""
        me = self.client
        room = passed(await self._filter(Joining, room))
        await self._prepare_room(room, leaving=me.rooms_alone())
        self._registry.move(me, room)
        await self._answer_entered(start_from(me.current, Start(since)), nonce)

    async def _enter(self, request: Enter) -> None:
        me = self.client
        me.names_rooms = True
        room = passed(await self._filter(Joining, request.room))
        await self._prepare_room(room)
        is_new = self._registry.enter(me, room)
        start = Start(request.since, request.replay) if is_new else Start()
        await self._answer_entered(start_from(me.current, start), request.nonce)

    async def _answer_entered(self, errors: list[Error], nonce: Nonce | None) -> None:
        me, at = self.client, self.client.room
        members, last = len(at), at.last_id
        answer = (
            Entered(at.name, members, last, at.topic)
            if me.codec.is_text
            else Joined(me.number, me.name, at.name, members, last, at.topic, nonce=nonce)
        )
        self._registry.settle_claims(me)
        await me.send(answer, *errors)

    async def _exit(self, room: str, nonce: Nonce | None) -> None:
        """Leave *room*; in the text protocol, which has one room at a time, for the lobby."""
        me = self.client
        if me.codec.is_text:
            if fold_name(room) != me.room.key:
                raise NotInRoom(room)
            if me.room.key == LOBBY:
                raise LastRoom(me.room.name)
            await self._join(LOBBY, nonce)
        else:
            left = self._registry.exit(me, room)
            await me.send(Left(me.number, me.name, "", len(left), left.name, nonce=nonce))

    def _note_arrival(self, request: Request) -> None:
        if type(request) is Hello:  # it may resume a session, as another client
            self.client.is_greeting = True
            self.client.arriving_until = trio.current_time() + GREETING_SECONDS
        else:
            self._registry.arrived(self.client)

    async def _greet(self, hello: Hello) -> None:
        try:
            await self._hello.carry_out(hello)
        except Unavailable:
            goodbye = Goodbye.of("unavailable", self._registry.claims.why_unavailable())
            words = self.client.codecs.json.encode(goodbye)  # as the hello asks for
            raise _Leave(goodbye.code, goodbye.reason, words) from None
        finally:
            if self.client.arriving_until:  # it was refused
                self._registry.arrived(self.client)

    async def _filter(self, kind: type[Joining | Renaming], text: str) -> str | None:
        return await filtered(self._filters, self.client, kind, text)

    async def _prepare_room(self, room: str, *, leaving: tuple[str, ...] = ()) -> None:
        """Wait until *room* can be entered, and the answer queued, in one step."""
        wanted = WantedRooms(names=[room], leaving=leaving)
        while True:
            await self._registry.rooms.prepare(wanted, self.client.grants)
            if self._send_queue.has_room(_ANSWER_BYTES):
                break
            self._registry.rooms.settle(self.client.grants)  # it may wait without limit
            await self._send_queue.wait_for_space()
        await trio.lowlevel.checkpoint_if_cancelled()  # it may have been disconnected meanwhile


def _block_of(act: Act) -> SayBlock:
    nonces = () if act.nonce is None else (act.nonce,)
    return SayBlock(act.text, nonces, act.room, act=True)
