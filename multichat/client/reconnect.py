"""The connections of one chat, and reconnecting when one is lost.

Decides when to reconnect and when to give up, and owns the queue of events for the program.  Each
connection has a writing and a receiving task.  `multichat.client.session` decodes received lines;
`multichat.client.chat` encodes requests and takes the events.
"""

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple, TypeAlias

import msgspec
import trio

from multichat.client.backoff import Delays
from multichat.client.connection import MAX_WAIT_SECONDS, Connection, Standstill
from multichat.client.event_queue import Condition, EventQueue, memory_of
from multichat.client.handshake import abort_after_goodbye, keep_alive, negotiate
from multichat.client.negotiation import make_hello, plain_hello
from multichat.client.options import ChatOptions
from multichat.client.outbox import Pending
from multichat.client.progress import Progress
from multichat.client.session import ClientSession
from multichat.errors import (
    ConnectFailed,
    ConnectionLost,
    Insecure,
    InvalidName,
    MultichatError,
    NoJson,
    Refused,
    TooManyAttempts,
    WrongPassphrase,
)
from multichat.protocol.auth import WRONG_PASSWORD
from multichat.protocol.framing import clean
from multichat.protocol.goodbyes import ASKED_TO_LEAVE
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    Disconnected,
    Error,
    Event,
    Goodbye,
    Quit,
)
from multichat.protocol.names import fold_name
from multichat.protocol.text_codec import TEXT

__all__ = ["Link", "Redial", "Retry"]

# A connection that is lost sooner does not reset the backoff: otherwise a client that is
# disconnected immediately would reconnect four times a second forever.
_STEADY_SECONDS = 1.0

# Why a login is refused.
_LOGIN_REFUSALS = frozenset((Insecure.code, TooManyAttempts.code, WrongPassphrase.code))

# How often progress is checked within a time limit.
_CHECKS = 20

Redial: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]
"""A function that connects to the same server again; raises `ConnectFailed`."""


class Retry(NamedTuple):
    """The next attempt to reconnect: its *number*, from 1 on, and its time on trio's clock."""

    number: int
    at: float


class Link:
    """The connections of one chat: *stream*, and those that *redial* returns.

    `start` is called once.  *changed* is notified of each change; *events* holds events until the
    program takes them.

    *goodbye* is the server's last event, if that was a final goodbye; *rejection* is the error for
    the server's first event, if that was a goodbye instead of a welcome; *name_refusal* says why
    the server did not give us the name of the hello, if that was not required; *failure* is the
    error with which the chat ended; *loss_reported* is true once a call has raised the error for
    the lost connection.  *connected* is true while requests can be sent on *connection*, not just
    queued in the outbox; *tell_waiting* is called once if the server is full and `start` waits for
    it; *retry* is the next or current attempt to reconnect, None once connected.
    """

    def __init__(
        self, stream: trio.abc.Stream, options: ChatOptions, redial: Redial | None
    ) -> None:
        self._wait = options.wait
        self._name_required = options.name_required
        self._redial = redial if options.reconnect else None
        self._password = None if options.password is None else clean(options.password)
        self._timeouts = options.timeouts
        hello = make_hello(
            options.name, options.room, options.replay, rooms=options.rooms, login=options.login
        )
        self.session = ClientSession(hello, plain=options.plain)
        self.changed = Condition()
        self.events = EventQueue(self.changed)
        self.connection = Connection(stream, changed=self.changed, timeouts=self._timeouts)
        self.goodbye: Goodbye | None = None
        self.rejection: Refused | None = None
        self.name_refusal: Error | None = None
        self.failure: MultichatError | None = None
        self.loss_reported = False
        self.finished = False  # `finish` was called
        self.connected = True
        self.retry: Retry | None = None
        self._retryable_goodbye: Goodbye | None = None
        self.tell_waiting: Callable[[Refused], object] | None = None
        self._retried: Refused | None = None  # why the last connection is tried again
        self._connected_at = 0.0
        self._delays = Delays(self._timeouts)
        self._down_reason = ""  # why there is no connection
        self._sending = 0  # calls of the program that are sending
        self._begun = self._ended = self._has_received = False
        self._tasks = trio.CancelScope(shield=True)  # until `close`

    @property
    def can_send(self) -> bool:
        """Whether sending is possible: nothing has failed, and `finish` was not called."""
        if self.failure is not None:
            return False
        return self.connection.can_send or (self.can_reconnect and not self.finished)

    @property
    def can_reconnect(self) -> bool:
        """Whether the chat reconnects if the connection is lost now."""
        return (
            self._redial is not None
            and bool(self.session.position.session or (self._wait and not self._begun))
            and self.goodbye is None
            and self.failure is None
            and not self._ended
            and not (self.finished and not self.session.outbox)
        )

    @property
    def over(self) -> bool:
        """Whether no more events will come."""
        return self._ended or (self.connection.over and not self.can_reconnect)

    def lost(self) -> ConnectionLost:
        """Return the exception that tells a caller why the connection was lost.

        Also sets *loss_reported*, as the caller is about to raise it.
        """
        self.loss_reported = True
        if isinstance(self.failure, ConnectionLost):
            return self.failure
        return (
            self.connection.lost() if self.goodbye is None else ConnectionLost(self.goodbye.reason)
        )

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until *predicate* holds or the chat is over; events are read meanwhile."""
        await self.changed.wait_for(lambda: self.over or predicate())

    # --- Sending ----------------------------------------------------------------------------------

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Apply `ClientTimeouts.blocked` to the block."""
        self._sending += 1
        try:
            yield
        finally:
            self._sending -= 1

    async def send_requests(self, requests: Sequence[Pending]) -> None:
        """Send encoded requests, and keep them in the outbox until they are answered."""
        await trio.lowlevel.checkpoint_if_cancelled()
        outbox, connection = self.session.outbox, self.connection
        for request in requests:
            outbox.add(request, is_sent=self.connected)
        try:
            if self.connected:
                await connection.send("\n".join(request.line for request in requests))
            elif not self.can_reconnect or self.finished:
                raise self.lost()  # noqa: TRY301
            else:  # they are sent first after the reconnect
                await trio.lowlevel.cancel_shielded_checkpoint()
        except ConnectionLost:
            if not self.can_reconnect or self.finished:
                outbox.withdraw(request.nonce for request in requests)
                raise self.lost() from None
        except BaseException:
            if connection is self.connection:  # otherwise the next one sends them
                outbox.withdraw(request.nonce for request in requests)
            raise

    async def send_lines(self, block: str) -> None:
        """Send lines without keeping them for a reconnect; raises `ConnectionLost`."""
        with self.sending():
            if not self.connected:
                await self.wait_for(lambda: self.connected)
            try:
                await self.connection.send(block)
            except ConnectionLost:
                raise self.lost() from None

    # --- One connection after the other -----------------------------------------------------------

    async def _run(self) -> None:
        try:
            with self._tasks:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_progress)
                    await self._hold(self.connection)
                    while await self._reconnect():
                        await self._hold(self.connection)
                    nursery.cancel_scope.cancel(reason="the chat has ended")
        finally:
            self._ended = True
            self.changed.notify()

    async def _reconnect(self) -> bool:
        """Dial until there is a new connection; return False if that is no longer possible."""
        goodbye, self._retryable_goodbye = self._retryable_goodbye, None
        self._retried = None if goodbye is None else self.refused(goodbye)
        if self._retried is not None and not self._begun and self.tell_waiting is not None:
            self.tell_waiting(self._retried)
            self.tell_waiting = None
        reason = self.connection.lost().reason if goodbye is None else goodbye.reason
        if self.connected and trio.current_time() >= self._connected_at + _STEADY_SECONDS:
            self._delays.reset()
        self.connected = False
        seconds = self._delays.lost(trio.current_time(), goodbye)
        fault = told = ""
        while self.can_reconnect:
            failures = 0 if self.retry is None else self.retry.number
            self.retry = Retry(failures + 1, trio.current_time() + seconds)
            news = fault if fault != told else ""
            told = fault or told
            if self._begun:  # else there was no connection yet: `tell_waiting` says why we wait
                self.events.put([Disconnected(reason, seconds, failures, news)])
            self._down_reason = reason
            await trio.sleep(seconds)
            try:
                stream = await self._redial()  # type: ignore[misc]  # `can_reconnect` says so
            except ConnectFailed as error:
                reason, self._retried = error.reason, None
                # A certificate may be replaced, or be that of a foreign network, such as a hotel's.
                fault = error.reason if error.lasting else ""
                seconds = self._delays.failed(trio.current_time())
            else:
                self.session.reconnect()
                self.connection = Connection(stream, changed=self.changed, timeouts=self._timeouts)
                return self.can_reconnect
        return False

    async def _hold(self, connection: Connection) -> None:
        """Run one connection from its hello to its end."""
        pinging = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._transfer, connection)
            try:
                if self.session.position.session:
                    await self._resume(connection)
                else:
                    await self._begin(connection)
            except MultichatError as error:
                await self._end_session(connection)
                self.failure = error
                self.changed.notify()
            else:
                if self.session.codec is JSON:
                    nursery.start_soon(self._ping, connection, pinging)
            while self.failure is None and not connection.over:
                await self.changed.wait()
            pinging.cancel(reason="the connection is over")
            if self.failure is not None or self.can_reconnect:  # nothing more is sent on it
                connection.abort("the chat has ended")
                await trio.aclose_forcefully(connection.stream)

    async def _end_session(self, connection: Connection) -> None:
        """End the session of a client that was admitted, but without the name or room it requires.

        Otherwise the server would keep the session, and announce the client to the others.
        """
        if self.session.negotiation.welcome is None or connection.over:
            return
        with suppress(ConnectionLost), trio.move_on_after(self._timeouts.finish):
            await connection.finish(lambda: True, JSON.encode_request(Quit()), end_line="")

    async def _ping(self, connection: Connection, scope: trio.CancelScope) -> None:
        with scope:
            await keep_alive(connection, self.session, self.changed, self._timeouts)

    async def _transfer(self, connection: Connection) -> None:
        """Write and receive over *connection* until both are over."""
        with connection.open():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.write_queued)
                while not connection.over:
                    parts = await connection.receive()
                    negotiation = self.session.negotiation
                    was_disconnected = negotiation.disconnected
                    had_password = negotiation.password_accepted or not self._begun
                    events = self.session.receive(parts, ended=connection.ended)
                    self._take_goodbye(events)
                    size = sum(memory_of(part) for part in parts if isinstance(part, str))
                    self.events.put(events, size)
                    self.changed.notify()
                    if negotiation.password_accepted and not had_password:
                        self._greet_again(connection)
                    if negotiation.disconnected and not was_disconnected:
                        nursery.start_soon(abort_after_goodbye, connection, self._timeouts)
                    await self._wait_for_program(connection)

    def _greet_again(self, connection: Connection) -> None:
        """In plain text, request name and room again after the user has typed the password.

        The first requests came before it, and the server answered them with its prompt.
        """
        if self.session.negotiation.plain and (
            lines := plain_hello(self.session.negotiation.hello)
        ):
            connection.try_send(lines)

    async def _wait_for_program(self, connection: Connection) -> None:
        # An awaited answer may come after many events that the program has not taken.
        while not connection.over and not self.events.has_room(awaited=self.changed.waiters > 0):
            await self.changed.wait()

    def _take_goodbye(self, events: list[Event]) -> None:
        """Note whether the last event is a goodbye; remove it if we reconnect after it."""
        last = events[-1] if events else None
        if isinstance(last, Goodbye) and self.can_reconnect and last.known().reconnect:
            self._retryable_goodbye = last.known()
            self.session.negotiation.said_goodbye = False  # the next connection has the answer
            events.pop()
        elif last is not None:
            self.goodbye = last if isinstance(last, Goodbye) else None
            first, is_first = events[0], not (self._has_received or self.session.welcome)
            if is_first and isinstance(first, Goodbye) and first.reason != ASKED_TO_LEAVE:
                self.rejection = self.refused(first)
            self._has_received = True

    async def _begin(self, connection: Connection) -> None:
        """Negotiate the protocol, on the first connection that reaches this step."""
        negotiation, timeouts = self.session.negotiation, self._timeouts
        refusals = negotiation.refusals
        await self._negotiate(
            connection, timeouts.password_request if negotiation.plain else timeouts.answer
        )
        if self._password is not None or not negotiation.plain:
            self.check_admitted()
        if negotiation.may_be_refused and not connection.over:
            raise ConnectionLost("the server does not answer")
        is_logged_in = negotiation.hello.login is None or bool(self.session.position.account)
        if refusals and (self._name_required or self._refused_rooms() or not is_logged_in):
            raise self._refusal(refusals[0])
        self.name_refusal = refusals[0] if refusals else None
        admitted = negotiation.settled and not (
            negotiation.password_asked and self._password is not None
        )
        if not admitted:
            if self.goodbye is not None:
                raise self.refused(self.goodbye)
            if connection.over and self.can_reconnect:
                return
            if connection.over:
                raise self.lost()
            if negotiation.is_ours:
                raise ConnectionLost("the server does not answer")
            raise NoJson(timeouts.answer)
        if negotiation.plain and (lines := plain_hello(negotiation.hello)):
            await self.send_lines(lines)
        self._begun = True
        self._note_connected()

    async def _resume(self, connection: Connection) -> None:
        """Resume the session, and send the unanswered requests first."""
        negotiation = self.session.negotiation
        await self._negotiate(connection, self._timeouts.answer)
        self.check_admitted()
        if negotiation.welcome is None:
            connection.abort("the server does not answer")
            return
        negotiation.settled = True
        refusals = negotiation.refusals
        if refusals and self._refused_rooms() and not self._is_in_a_room():
            # Messages that were meant for a room must not be published elsewhere.
            raise self._refusal(refusals[0])
        for error in refusals:
            if error.code == InvalidName.code:  # which will not change
                self.session.position.give_up(error.room)
        # Our name has been taken meanwhile, or our account or one of our rooms is gone.
        self.events.put(list(map(_explained, refusals)))
        self._note_connected()
        if lines := self.session.outbox.resend():
            with suppress(ConnectionLost):  # the next connection sends them
                await connection.send("\n".join(lines))

    def _refusal(self, error: Error) -> Refused:
        """Return the exception for *error*; it names the room, if that was one of several."""
        is_unclear = error.room and error.room not in error.text and len(self._asked_rooms()) > 1
        return Refused(error.code, f"{error.room}: {error.text}" if is_unclear else error.text)

    def _asked_rooms(self) -> set[str]:
        """Return the rooms of the hello, folded."""
        hello = self.session.negotiation.hello
        rooms = [*(hello.rooms or ()), *filter(None, [hello.room])]
        return set(map(fold_name, rooms))

    def _refused_rooms(self) -> set[str]:
        """Return the rooms of the hello for which the server has sent an error, folded.

        An older server does not say what an error is about: there it is each room that we are not
        in, although a filter may only have changed its name.
        """
        negotiation = self.session.negotiation
        if negotiation.welcome is not None and negotiation.welcome.rooms is not None:
            return {fold_name(error.room) for error in negotiation.refusals if error.room}
        return self._asked_rooms() - set(map(fold_name, self.session.position.rooms))

    def _is_in_a_room(self) -> bool:
        """Return whether the server has not refused one of the rooms of the hello."""
        return len(self._refused_rooms()) < len(self._asked_rooms())

    async def _negotiate(self, connection: Connection, answer_seconds: float) -> None:
        negotiation = self.session.negotiation
        await negotiate(
            connection,
            self.session,
            password=self._password,
            timeouts=self._timeouts,
            answer_seconds=answer_seconds,
        )
        is_silent = negotiation.chatting and not negotiation.answered
        if is_silent and not (connection.over and self.can_reconnect):
            self.events.put(negotiation.settle_text())

    def refused(self, goodbye: Goodbye) -> Refused:
        """Return the exception for a server that answers *goodbye* instead of admitting us."""
        return Refused(goodbye.known().code or "refused", goodbye.reason)

    def check_admitted(self) -> None:
        """Raise `Refused` if the server requires a password and got none, or a wrong one."""
        negotiation = self.session.negotiation
        if negotiation.password_refused:
            raise Refused("wrong-password", WRONG_PASSWORD)
        if negotiation.password_asked and not negotiation.password_sent:
            reason = "the server requires a password"
            raise Refused("password-required", self.goodbye.reason if self.goodbye else reason)

    def _note_connected(self) -> None:
        self.connected, self._connected_at, self.retry = True, trio.current_time(), None
        if self.session.welcome is not None:
            self.connection.allow_waits(self.session.welcome.limits.wait)
        else:  # in the text protocol we cannot reconnect
            self.connection.stuck_seconds = self._timeouts.progress
        self.changed.notify()

    # --- Progress ---------------------------------------------------------------------------------

    async def _watch_progress(self) -> None:
        """End the chat when a call waits for too long without progress."""
        timeouts = self._timeouts
        if timeouts.blocked == math.inf:
            while not self.finished:
                await self.changed.wait()
        standing, since_end, progress = Standstill(), Standstill(), Progress()
        while self.failure is None:
            limit = timeouts.progress if self.finished else timeouts.blocked
            if self.session.welcome is not None:  # it may wait for slow clients
                wait = self.session.welcome.limits.wait
                limit = max(limit, timeouts.stuck + min(max(0.0, wait), MAX_WAIT_SECONDS))
            limit = min(limit, timeouts.delivery)
            step = limit / _CHECKS
            await trio.sleep(step)
            waits = (self.finished or self._sending) and self.events.has_room()
            value = progress.value(self.session, self.connection) if waits else object()
            stood_seconds = standing.watch(value, at_most=step)
            since_end_seconds = since_end.watch(self.finished or object(), at_most=step)
            if stood_seconds >= limit:
                self._give_up(f"nothing was accepted in {limit:g} s")
                break
            if since_end_seconds >= timeouts.delivery:
                self._give_up(f"not everything was accepted in {timeouts.delivery:g} s")
                break

    def _give_up(self, reason: str) -> None:
        """End the chat.

        It is a failure unless everything was accepted and only the server's EOF is missing.
        """
        if self.session.codec is TEXT:
            reason = (
                self.connection.describe_undelivered() or "the server does not close the connection"
            )
        elif not self.connected and self._down_reason:
            reason = f"{reason} ({self._down_reason})"
        if self.session.codec is TEXT or self.session.outbox:
            self.failure = ConnectionLost(reason)
        self.connection.abort(reason)
        self._tasks.cancel(reason=reason)
        self.changed.notify()

    # --- The beginning and the end ----------------------------------------------------------------

    async def start(self, nursery: trio.Nursery) -> None:
        """Start the tasks in *nursery*; return when the protocol is settled.

        Raises `Refused`, `NoJson` if the server does not answer, `ConnectionLost`.
        """
        nursery.start_soon(self._run)
        timeouts = self._timeouts
        with trio.move_on_after(timeouts.wait + timeouts.answer if self._wait else math.inf):
            await self.changed.wait_for(lambda: self._begun or self.failure or self._ended)
        if not self._begun:
            raise self.failure or self._retried or self.lost()

    async def finish(self, end_line: str = TEXT.encode_request(Quit())) -> None:
        """Wait until everything is acknowledged, send EOF, and wait for the server's EOF.

        In the text protocol *end_line* is sent instead if the stream cannot be half-closed.  See
        `multichat.client.chat.Chat.finish`.
        """
        self.finished = True
        self.changed.notify()  # reconnecting may have become pointless
        self.check_admitted()
        try:
            await self._finish(end_line)
        except ConnectionLost:
            if self.session.codec is JSON and not self.session.outbox:
                return  # everything was acknowledged, so the way in which it ended does not matter
            self.loss_reported = True
            self.check_admitted()  # a refusal may have come only now
            raise
        self.check_admitted()

    async def _finish(self, end_line: str) -> None:
        tried: Connection | None = None
        while True:
            if self.connected and self.connection is not tried:
                tried = self.connection
                last_line = self.session.encode_unanswered(Quit())
                try:
                    await tried.finish(
                        lambda: not self.session.outbox,
                        last_line if self.session.codec is JSON else "",
                        end_line=end_line,
                    )
                except ConnectionLost:
                    if not self.can_reconnect:
                        raise
                else:
                    return
            if not self.can_reconnect:
                break
            await self.wait_for(partial(self._has_another, tried))
        if self.session.outbox:
            raise self.failure or self.lost()

    def _has_another(self, connection: Connection | None) -> bool:
        return self.connected and self.connection is not connection

    async def close(self) -> None:
        """Close immediately; send a `quit`, which ends the session, if that needs no waiting."""
        if self.session.codec is JSON and self.connected and not self.connection.waiting_bytes:
            self.connection.try_send(JSON.encode_request(Quit()))
        self._tasks.cancel(reason="the chat was closed")
        await trio.aclose_forcefully(self.connection.stream)


def _explained(error: Error) -> Error:
    """Return the *error* for a part of the hello with which we resume, explained for the user.

    A refused login rarely means a wrong passphrase: a server without a journal forgets accounts.
    """
    if error.code not in _LOGIN_REFUSALS:
        return error
    return msgspec.structs.replace(error, text=f"you are not logged in any more: {error.text}")
