"""The connections of one conversation: a lost one is followed by another.

Owns the hello and the password on each connection, the pings, when to reconnect, and the queue of
events that wait for the program.  `multichat.client.conversation` interprets the lines,
`multichat.client.chat` is the program's interface.
"""

import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple, TypeAlias

import trio

from multichat.client.comeback import Backoff
from multichat.client.connection import MAX_WAIT_SECONDS, Bell, Connection, Standstill
from multichat.client.conversation import Conversation, memory_of
from multichat.client.timeouts import ClientTimeouts
from multichat.errors import ConnectFailed, ConnectionLost, MultichatError, NoJson, Refused
from multichat.protocol.auth import WRONG_PASSWORD, encode_password
from multichat.protocol.framing import Part, clean
from multichat.protocol.json_codec import JSON, encode_hello
from multichat.protocol.messages import (
    Disconnected,
    Event,
    Goodbye,
    Hello,
    Join,
    Ping,
    Quit,
    Rename,
    WireRequest,
)
from multichat.protocol.names import fold_name
from multichat.protocol.text_codec import TEXT

__all__ = ["ReconnectingConnection", "Redial", "Retry"]

# How much memory the events that wait for a busy program may take.  Above this we stop reading, and
# the server waits for us.
_WAITING_BYTES = 32 * 1024 * 1024

# The same while the program waits for an answer, which comes behind these events.  Above this the
# call is given up, so that the program can receive.
_AWAITED_BYTES = 128 * 1024 * 1024

# A read of tiny lines holds 30,000 events.  They are queued in pieces, so that the program has
# checkpoints between them.
_EVENTS_AT_ONCE = 1000

# How often progress is checked within a time limit.
_LOOKS = 20

# A server may say when to reconnect; we do not wait longer than this.
_LONGEST_AFTER_SECONDS = 300.0

Redial: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]
"""Connects to the same server once more; raises `ConnectFailed`."""


class Retry(NamedTuple):
    """The next try to reconnect: its *number*, from 1 on, and *at* which time of trio's clock."""

    number: int
    at: float


class _Progress:
    """How much of what we sent has arrived.

    In JSON that is how many requests were answered, and how many bytes the server has taken since
    the last answer: taking the same bytes again on the next connection is no progress.  In text it
    is how many bytes the server has taken and, once it has taken all, also how many it sends.
    """

    def __init__(self) -> None:
        self._answered = self._most_bytes = 0

    def value(self, line: "ReconnectingConnection") -> tuple[int, int]:
        """Return a value that changes when there is progress."""
        conversation, connection = line.conversation, line.connection
        if conversation.codec is TEXT:
            is_taken = not connection.untaken_bytes
            return 0, connection.moved_bytes if is_taken else connection.acknowledged_bytes
        if conversation.answered != self._answered:
            self._answered, self._most_bytes = conversation.answered, 0
        self._most_bytes = max(self._most_bytes, connection.acknowledged_bytes)
        return self._answered, self._most_bytes


class ReconnectingConnection:
    """The connections of one conversation: *stream*, and those that *redial* returns.

    For *hello*, *password*, *plain* and *wait* see `multichat.client.connect.open_chat`.  `begin`
    starts it, once.  *bell* is rung whenever anything may have changed.  *heard* is what waits for
    the program: events, and how many bytes of memory they take.

    *goodbye* is the server's last event, if that was a final goodbye; *failure* is the error with
    which the conversation ended; *told_lost* says that a caller was told that the connection is
    lost.  *connected* says that requests go to *connection*, and not only into the outbox; *retry*
    is the next try to reconnect, or the one that is under way.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        hello: Hello,
        *,
        password: str | None,
        plain: bool,
        redial: Redial | None,
        wait: bool,
        timeouts: ClientTimeouts,
    ) -> None:
        self._plain, self._redial, self._wait = plain, redial, wait
        self._password = None if password is None else clean(password)
        self._timeouts = timeouts
        self.conversation = Conversation(hello, plain=plain)
        self.bell = Bell()
        self.connection = Connection(stream, bell=self.bell, timeouts=timeouts)
        self._backoff = Backoff(
            random.random,
            first_seconds=timeouts.first_retry,
            most_seconds=timeouts.longest_retry,
        )
        self.heard: deque[tuple[int, list[Event]]] = deque()
        self.heard_bytes = 0
        self.goodbye: Goodbye | None = None
        self._sent_away: Goodbye | None = None  # a goodbye after which we may reconnect
        self.failure: MultichatError | None = None
        self.told_lost = False
        self.finished = False  # `finish` was called
        self._sending = 0  # calls of the program that are sending
        self._down = ""  # why there is no connection
        self.connected = True
        self._connected_at = 0.0
        self.retry: Retry | None = None
        self._begun = self._ended = False
        self._tasks = trio.CancelScope(shield=True)  # until `end`

    @property
    def can_send(self) -> bool:
        """Whether a message may still arrive: nothing has failed and `finish` was not called."""
        if self.failure is not None:
            return False
        return self.connection.can_send or (self.returns and not self.finished)

    @property
    def returns(self) -> bool:
        """Whether a connection that is lost now is followed by another."""
        return (
            self._redial is not None
            and bool(self.conversation.place.session or (self._wait and not self._begun))
            and self.goodbye is None
            and self.failure is None
            and not self._ended
            and not (self.finished and not self.conversation.outbox)
        )

    @property
    def over(self) -> bool:
        """Whether no more events will come."""
        return self._ended or (self.connection.over and not self.returns)

    def lost(self) -> ConnectionLost:
        """Return the exception for a caller that says why the connection is lost."""
        self.told_lost = True
        if isinstance(self.failure, ConnectionLost):
            return self.failure
        return self.connection.lost()

    async def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds or the conversation is over; meanwhile reading goes on."""
        await self.bell.wait_until(lambda: self.over or condition())

    def may_read(self, awaited: bool) -> bool:
        """Return whether more may be read; the limit is higher while an answer is *awaited*."""
        return self.heard_bytes < (_AWAITED_BYTES if awaited else _WAITING_BYTES)

    # --- Sending and receiving --------------------------------------------------------------------

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Count the block among the calls that `ClientTimeouts.blocked` is for."""
        self._sending += 1
        try:
            yield
        finally:
            self._sending -= 1

    async def put_kept(self, lines: dict[int, tuple[WireRequest, str]]) -> None:
        """Send numbered requests, and keep them until they are answered."""
        await trio.lowlevel.checkpoint_if_cancelled()
        outbox, connection = self.conversation.outbox, self.connection
        for nonce, (request, line) in lines.items():
            room = self.conversation.place.room
            outbox.keep(nonce, request, line, room, is_sent=self.connected)
        try:
            if self.connected:
                await connection.put("\n".join(line for _, line in lines.values()))
            elif not self.returns or self.finished:
                raise self.lost()  # noqa: TRY301
            else:  # they are sent first when we are connected again
                await trio.lowlevel.cancel_shielded_checkpoint()
        except ConnectionLost:
            if not self.returns or self.finished:
                outbox.take_back(lines)
                raise self.lost() from None
        except BaseException:
            if connection is self.connection:  # else the next one is sending them
                outbox.take_back(lines)
            raise

    async def put(self, block: str) -> None:
        """Send lines that get no answer; raises `ConnectionLost`."""
        if not self.connected:
            await self.wait_until(lambda: self.connected)
        try:
            await self.connection.put(block)
        except ConnectionLost:
            raise self.lost() from None

    def _hear(self, parts: Sequence[Part]) -> None:
        """Queue the events of a read for the program, except a goodbye after which we reconnect."""
        events = self.conversation.hear(parts, ended=self.connection.ended)
        last = events[-1] if events else None
        if isinstance(last, Goodbye) and self.returns and last.known().reconnect:
            self._sent_away = last.known()
            events.pop()
        elif last is not None:
            self.goodbye = last if isinstance(last, Goodbye) else None
        self.tell(events, sum(memory_of(part) for part in parts if isinstance(part, str)))

    def tell(self, events: list[Event], size: int = 0) -> None:
        """Queue *events*, which take about *size* bytes of memory, for the program."""
        if events:
            for start in range(0, len(events), _EVENTS_AT_ONCE):
                self.heard.append((size, events[start : start + _EVENTS_AT_ONCE]))
                self.heard_bytes += size
                size = 0  # counted with the first piece
            self.bell.ring()

    def take_heard(self) -> list[Event]:
        """Return the oldest events that wait for the program; there MUST be some."""
        size, events = self.heard.popleft()
        self.heard_bytes -= size
        self.bell.ring()
        return events

    # --- Connections ------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Hold one connection after the other until the conversation is over, or cancelled."""
        try:
            with self._tasks:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_progress)
                    await self._hold(self.connection)
                    while self.returns:
                        await self._dial_again()
                        if self.returns:
                            await self._hold(self.connection)
                    nursery.cancel_scope.cancel(reason="the conversation is over")
        finally:
            self._ended = True
            self.bell.ring()

    # --- Progress ---------------------------------------------------------------------------------

    async def _watch_progress(self) -> None:
        """Give the conversation up when a caller waits for it too long without progress."""
        timeouts = self._timeouts
        if timeouts.blocked == math.inf:
            while not self.finished:
                await self.bell.wait()
        standing, since_end, progress = Standstill(), Standstill(), _Progress()
        while self.failure is None:
            limit = timeouts.progress if self.finished else timeouts.blocked
            if self.conversation.welcome is not None:  # it may wait for slow clients
                wait = self.conversation.welcome.limits.wait
                limit = max(limit, timeouts.stuck + min(max(0.0, wait), MAX_WAIT_SECONDS))
            limit = min(limit, timeouts.delivery)
            step = limit / _LOOKS
            await trio.sleep(step)
            waits = (self.finished or self._sending) and self.may_read(False)
            value = progress.value(self) if waits else object()
            stood_seconds = standing.watch(value, at_most=step)
            since_end_seconds = since_end.watch(self.finished or object(), at_most=step)
            if stood_seconds >= limit:
                self._give_up(f"nothing was accepted in {limit:g} s")
                break
            if since_end_seconds >= timeouts.delivery:
                self._give_up(f"not everything was accepted in {timeouts.delivery:g} s")
                break

    def _give_up(self, reason: str) -> None:
        """End the conversation; that is a failure unless only the server's end was missing."""
        if self.conversation.codec is TEXT:
            reason = (
                self.connection.describe_untaken() or "the server does not end the conversation"
            )
        elif not self.connected and self._down:
            reason = f"{reason} ({self._down})"
        if self.conversation.codec is TEXT or self.conversation.outbox:
            self.failure = ConnectionLost(reason)
        self.connection.abort(reason)
        self._tasks.cancel(reason=reason)
        self.bell.ring()

    async def _hold(self, connection: Connection) -> None:
        """Hold one connection, from its hello on, until it is over."""
        pinging = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, connection)
            try:
                if self.conversation.place.session:
                    await self._greet_again(connection)
                else:
                    await self._greet(connection)
            except MultichatError as error:
                self.failure = error
                self.bell.ring()
            else:
                if self.conversation.codec is JSON:
                    nursery.start_soon(self._keep_alive, connection, pinging)
            while self.failure is None and not connection.over:
                await self.bell.wait()
            pinging.cancel(reason="the connection is over")
            if self.failure is not None or self.returns:  # nothing more is sent on it
                connection.abort("the conversation is over")
                await trio.aclose_forcefully(connection.stream)

    async def _serve(self, connection: Connection) -> None:
        """Send and receive over *connection* until both are over."""
        with connection.open():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.send)
                while not connection.over:
                    disconnected = self.conversation.handshake.disconnected
                    self._hear(await connection.receive())
                    self.bell.ring()
                    if self.conversation.handshake.disconnected and not disconnected:
                        nursery.start_soon(self._abort_disconnected, connection)
                    await self._wait_for_program(connection)

    async def _abort_disconnected(self, connection: Connection) -> None:
        """End a connection that the server does not close after its goodbye."""
        with trio.move_on_after(self._timeouts.finish) as timeout:
            while not connection.over:
                await self.bell.wait()
        if timeout.cancelled_caught:
            connection.abort("the server has said goodbye")

    async def _wait_for_program(self, connection: Connection) -> None:
        # An awaited answer may come behind many events that the program has not received.
        while not connection.over and not self.may_read(self.bell.awaited > 0):
            await self.bell.wait()

    async def _keep_alive(self, connection: Connection, scope: trio.CancelScope) -> None:
        """Ping a silent server, and give up the connection if it does not answer.

        Any input shows that the server is alive.  While messages of ours are not accepted, the
        server may have stopped reading for a slow client, and gets more time to answer.  While our
        own program does not receive events, nothing is read, and silence means nothing.
        """
        timeouts = self._timeouts
        with scope:
            while connection.can_send:
                heard_at = connection.heard_at
                await trio.sleep_until(heard_at + timeouts.ping)
                if self.finished:  # `Connection.finish` has its own time limit
                    return
                if connection.has_come_since(heard_at):
                    continue
                if connection.listening:
                    connection.try_send(self.conversation.number_ours(Ping()))
                unaccepted = len(self.conversation.outbox)
                seconds = connection.stuck_seconds if unaccepted else timeouts.pong
                with trio.move_on_after(seconds) as answer:
                    while not connection.has_come_since(heard_at):
                        await self.bell.wait()
                if answer.cancelled_caught and connection.listening:
                    connection.abort(f"no answer in {seconds:g} s")

    async def _greet(self, connection: Connection) -> None:
        """Settle which protocol is spoken."""
        hello, shake = self.conversation.handshake.hello, self.conversation.handshake
        timeouts = self._timeouts
        await self._say_hello(connection, timeouts.password_request if self._plain else None)
        if self._password is not None or not self._plain:
            self.check_admitted()
        if shake.refusals:
            raise Refused(shake.refusals[0].code, shake.refusals[0].text)
        admitted = shake.settled and (self._password is None or not shake.password_asked)
        if self.goodbye is None and not admitted:
            if connection.over and self.returns:
                return
            if connection.over:
                raise self.lost()
            raise NoJson(timeouts.answer)
        if self._plain and hello.name is not None:
            await self.put(TEXT.encode_request(Rename(hello.name)))
        if self._plain and hello.room is not None:
            await self.put(TEXT.encode_request(Join(hello.room)))
        self._begun = True
        self._note_connected()

    async def _greet_again(self, connection: Connection) -> None:
        """Resume the session, and send the unanswered requests first."""
        conversation, shake = self.conversation, self.conversation.handshake
        await self._say_hello(connection)
        self.check_admitted()
        if shake.welcome is None:
            connection.abort("the server does not answer")
            return
        shake.settled = True
        refusals = shake.refusals
        if refusals and fold_name(self.conversation.place.room) != fold_name(
            shake.hello.room or ""
        ):
            # Messages that were meant for a room are said nowhere else.
            raise Refused(refusals[0].code, refusals[0].text)
        self.tell(list(refusals))  # of a name that somebody else has now
        self._note_connected()
        if lines := conversation.outbox.again():
            with suppress(ConnectionLost):  # then the next connection sends them
                await connection.put("\n".join(lines))

    async def _say_hello(self, connection: Connection, seconds: float | None = None) -> None:
        """Say hello, and the password if the server wants it; wait for the answer.

        Returns when it has come, or too late, or the connection is over.  Raises
        `RemoteProtocolError` for a welcome that is not valid.
        """
        shake, timeouts = self.conversation.handshake, self._timeouts

        def is_answered() -> bool:
            asked = shake.password_asked or bool(shake.refusals) or self.goodbye is not None
            return asked or shake.failure is not None or (shake.settled and not self._plain)

        with suppress(ConnectionLost):  # the receiving task reports it
            if not self._plain:
                await connection.put(encode_hello(shake.hello))
            if not self._plain or self._password is not None:
                with trio.move_on_after(timeouts.answer if seconds is None else seconds):
                    await connection.wait_until(lambda: is_answered() or shake.chatting)
            if shake.chatting:
                with trio.move_on_after(timeouts.lobby):
                    await connection.wait_until(is_answered)
            if shake.password_asked and self._password is not None:
                with trio.move_on_after(timeouts.password) as scope:
                    await self._say_password(connection, self._password)
                if scope.cancelled_caught:
                    reason = f"the password was not accepted in {timeouts.password:g} s"
                    connection.abort(reason)
                    await connection.wait_until(lambda: False)
            elif shake.chatting and not is_answered() and not (connection.over and self.returns):
                self.tell(shake.settle_text())
        if shake.failure is not None:
            raise shake.failure

    async def _say_password(self, connection: Connection, password: str) -> None:
        shake = self.conversation.handshake
        shake.password_said = True
        said = encode_password(password)
        await connection.put(said if self._plain else f"{said}\n{encode_hello(shake.hello)}")
        await connection.wait_until(
            lambda: (
                shake.password_refused
                or self.goodbye is not None
                or shake.failure is not None
                or (not shake.password_asked and (shake.settled or shake.refusals))
            )
        )

    def check_admitted(self) -> None:
        """Raise `Refused` if the server wants a password and got none, or a wrong one."""
        shake = self.conversation.handshake
        if shake.password_refused:
            raise Refused("wrong-password", WRONG_PASSWORD)
        if shake.password_asked and not shake.password_said:
            reason = "the server asks for a password (--password-file, MULTICHAT_PASSWORD)"
            raise Refused("password-required", self.goodbye.reason if self.goodbye else reason)

    def _note_connected(self) -> None:
        self.connected, self._connected_at, self.retry = True, trio.current_time(), None
        if self.conversation.welcome is not None:
            self.connection.allow_waits(self.conversation.welcome.limits.wait)
        else:  # a text connection cannot be followed by another
            self.connection.stuck_seconds = self._timeouts.progress
        self.bell.ring()

    async def _dial_again(self) -> None:
        """Wait and dial until there is a connection, or reconnecting makes no sense any more."""
        goodbye, self._sent_away = self._sent_away, None
        reason = self.connection.lost().reason if goodbye is None else goodbye.reason
        if self.connected:
            self._backoff.held(trio.current_time() - self._connected_at)
        self.connected = False
        seconds = self._backoff.next_seconds()
        if goodbye is not None and goodbye.after is not None:
            seconds = max(seconds, min(goodbye.after, _LONGEST_AFTER_SECONDS))
        while self.returns:
            failures = 0 if self.retry is None else self.retry.number
            self.retry = Retry(failures + 1, trio.current_time() + seconds)
            self.tell([Disconnected(reason, seconds, failures)])
            self._down = reason
            await trio.sleep(seconds)
            try:
                stream = await self._redial()  # type: ignore[misc]  # or we would not return
            except ConnectFailed as error:
                reason = error.reason
                if error.lasting:
                    self.failure = error
                seconds = self._backoff.next_seconds()
                continue
            self.conversation.begin_again()
            self.connection = Connection(stream, bell=self.bell, timeouts=self._timeouts)
            return

    # --- The beginning and the end ----------------------------------------------------------------

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start the conversation in *nursery*; return when it is known which protocol is spoken.

        Raises `Refused`, `NoJson` if the server does not answer, `ConnectionLost`.  Called once, by
        `multichat.client.connect.open_chat`, as are `leave` and `end`.
        """
        nursery.start_soon(self._run)
        timeouts = self._timeouts
        with trio.move_on_after(timeouts.wait + timeouts.answer if self._wait else math.inf):
            await self.bell.wait_until(lambda: self._begun or self.failure or self._ended)
        if not self._begun:
            raise self.failure or self.lost()

    async def finish(self, end_line: str) -> None:
        """Have everything sent and accepted, then end the input; wait for the server's end.

        In text *end_line* asks for that where a stream has no end of input of its own.

        See `multichat.client.chat.Chat.finish`.
        """
        self.finished = True
        self.bell.ring()  # there may be no reason to reconnect any more
        self.check_admitted()
        try:
            await self._finish(end_line)
        except ConnectionLost:
            if self.conversation.codec is JSON and not self.conversation.outbox:
                return  # all was accepted, and how it ended does not matter
            self.told_lost = True
            self.check_admitted()  # a refusal may have come only now
            raise
        self.check_admitted()

    async def _finish(self, end_line: str) -> None:
        tried: Connection | None = None
        while True:
            if self.connected and self.connection is not tried:
                tried = self.connection
                try:
                    await self._finish_connection(tried, end_line)
                except ConnectionLost:
                    if not self.returns:
                        raise
                else:
                    return
            if not self.returns:
                break
            await self.wait_until(partial(self._has_another, tried))
        if self.conversation.outbox:
            raise self.failure or self.lost()

    def _has_another(self, connection: Connection | None) -> bool:
        return self.connected and self.connection is not connection

    async def _finish_connection(self, connection: Connection, end_line: str) -> None:
        """Have all answered, and end the connection; raises `ConnectionLost`."""
        last_line = self.conversation.number_ours(Quit())
        await connection.finish(
            lambda: not self.conversation.outbox,
            last_line if self.conversation.codec is JSON else "",
            end_line=end_line,
        )

    async def end(self) -> None:
        """End it at once; send a `quit`, which ends the session, if that needs no waiting."""
        if self.conversation.codec is JSON and self.connected and not self.connection.waiting_bytes:
            self.connection.try_send(JSON.encode_request(Quit()))
        self._tasks.cancel(reason="the chat was closed")
        await trio.aclose_forcefully(self.connection.stream)
