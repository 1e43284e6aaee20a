"""A chat: one conversation with any line-based server, over one stream after the other.

What we say is on its way when a call returns; what we are told is typed events, which wait for the
program in a bounded queue.  Neither waits for the other, so that a server which holds us back
because we do not read, and a program which does not read because it is saying something, cannot
lock each other up.

Where there is a way to a new stream, a connection that is lost is no end: the program hears of it,
and goes on saying and hearing.  Invariants of that:

1. What is asked in JSON stands in the outbox until it is answered.  A new connection begins with
   all of it, in order, each with the nonce that it had; nothing new goes before.
2. Of a room nothing is handed on twice, nor is anything left out without a `Missed` or an `Error`.
"""

import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import trio

from multichat.comeback import Backoff, Place, may_return
from multichat.connection import Bell
from multichat.errors import (
    ConnectFailed,
    ConnectionLost,
    LineTooLong,
    LocalProtocolError,
    MultichatError,
    Refused,
)
from multichat.framing import clean
from multichat.handshake import make_hello
from multichat.link import HELLO_SECONDS, LATE_WELCOME_SECONDS, Link
from multichat.messages import (
    Accepted,
    Act,
    Direct,
    Disconnected,
    Error,
    Event,
    Goodbye,
    Hello,
    Invalid,
    Join,
    Joined,
    MemberName,
    Members,
    Nonce,
    Quit,
    Reconnected,
    Rename,
    Renamed,
    RoomList,
    Rooms,
    RoomSize,
    Said,
    Say,
    SayRun,
    Welcome,
    Who,
    WireRequest,
)
from multichat.names import fold_name
from multichat.outbox import MAX_UNACCEPTED, Outbox
from multichat.voices import JSON, TEXT, Voice, is_hello

__all__ = ["HELLO_SECONDS", "LATE_WELCOME_SECONDS", "MAX_UNACCEPTED", "Chat", "Redial"]

# How many reads wait for a program that is busy: 16 MiB as they came on the wire, after which we
# stop reading and the server's patience begins.
_WAITING_READS = 256

# The same while it waits for an answer, which stands behind what the server has for us.  Whoever
# falls behind by more than this while it asks is not held up any longer, so that it can hear.
_AWAITING_CHARACTERS = 64 * 1024 * 1024

# Who has welcomed us before speaks JSON; it may have much to do when all come back at once.
_WELCOME_AGAIN_SECONDS = 10.0

# How long the end waits, without a connection or with one by which nothing is accepted, for what
# was said to be accepted: a machine that starts anew is back by then, and a job that is run by
# nobody does not hang for ever.
FINISH_AWAY_SECONDS = 120.0

Redial = Callable[[], Awaitable[trio.abc.Stream]]
"""Connects to the same server once more; raises `ConnectFailed`."""


class Chat:
    """A conversation; made by `multichat.client.connect` or `open_chat`.

    Any number of tasks may `say` and ask, one at a time iterates.  Iteration gives typed events in
    the order of the wire and ends when the server has said goodbye or, after `finish`, has closed;
    it raises `ConnectionLost` when the conversation ended otherwise, or whatever else it ended
    with.  What answers a call of ours is not among them.

    With *redial* a lost connection is followed by others until there is one again, and by the same
    conversation: the events `Disconnected` and `Reconnected` tell of that, what was missed
    meanwhile follows, and what was asked and not answered is asked again.  Only where the server
    speaks JSON, once it has welcomed us, or if we *wait* for that; a goodbye is an end, but for one
    that says that we were too slow.

    *client*, *name* and *room* are ours as we were told last, 0 and empty in the text voice.
    *goodbye* is the server's reason, if that was the last thing it said.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        name: str | None = None,
        room: str | None = None,
        password: str | None = None,
        plain: bool = False,
        hello_seconds: float = HELLO_SECONDS,
        replay: int = 0,
        redial: Redial | None = None,
        wait: bool = False,
    ) -> None:
        self.goodbye: str | None = None
        self.welcome: Welcome | None = None
        self._plain = plain
        self._password = None if password is None else clean(password)
        self._hello_seconds = hello_seconds
        self._first_hello = make_hello(name, room, replay)
        self._redial = redial
        self._wait = wait
        self._place = Place()
        self._outbox = Outbox()
        self._backoff = Backoff(random.random)
        self._bell = Bell()
        self._heard: deque[tuple[int, list[Event]]] = deque()  # what each read told, in so much
        self._heard_characters = 0
        self._events: deque[Event] = deque()  # of the read that is being iterated over
        self._finished = self._told_lost = False
        self._answers: dict[Nonce, Event | None] = {}
        self._abandoned: set[Nonce] = set()  # asked for, and nobody waits for the answer
        self._quit_nonce: Nonce | None = None
        self._progress_at = -1.0  # when something was answered last
        # Of the connection that there is, or was: whether what we say goes there.
        self._link = self._make_link(stream, self._first_hello)
        self._connected = True
        self._connected_at = 0.0
        self._sent_away = ""  # why, by a server that may be called again
        self._failures = 0  # to connect, since then
        self._unsure = 0  # messages of which nobody knows whether they were said
        self._begun = self._ended = False
        self._failure: MultichatError | None = None  # with which the conversation ended
        self._tasks = trio.CancelScope(shield=True)  # until our end has been said

    def _make_link(self, stream: trio.abc.Stream, hello: Hello) -> Link:
        return Link(
            stream,
            hello,
            password=self._password,
            plain=self._plain,
            news=self._news,
            tell=self._tell,
            say_again=self._say_again,
            may_read=self._may_read,
            bell=self._bell,
        )

    @property
    def client(self) -> int:
        """Our number."""
        return self._place.client

    @property
    def name(self) -> str:
        """What we are called."""
        return self._place.name

    @property
    def room(self) -> str:
        """The room that we are in."""
        return self._place.room

    @property
    def voice(self) -> Voice:
        """The voice that is spoken now."""
        return JSON if self.welcome is not None else TEXT

    @property
    def fell_back(self) -> bool:
        """Whether JSON was asked for and text is spoken."""
        return self.voice is TEXT and not self._plain

    @property
    def connected(self) -> bool:
        """Whether there is a connection, by which both sides can be heard."""
        return self._connected and not self._link.connection.over

    @property
    def unaccepted(self) -> int:
        """How many messages were said and not yet accepted; always 0 in the text voice."""
        return self._outbox.messages

    @property
    def moved_bytes(self) -> int:
        """A number that changes as the peer takes and gives: twice the same, nothing moves."""
        return self._link.connection.moved_bytes

    @property
    def waiting_bytes(self) -> int:
        """How much was said and not yet handed to the system."""
        return self._link.connection.waiting_bytes

    @property
    def can_send(self) -> bool:
        """Whether what is said may still arrive: nothing has failed and `finish` was not called."""
        return self._link.connection.can_send or (self._returns and not self._finished)

    @property
    def _returns(self) -> bool:
        """Whether a connection that is lost now is followed by another."""
        return (
            self._redial is not None
            and bool(self._place.session or (self._wait and not self._begun))
            and self.goodbye is None
            and self._failure is None
            and not self._ended
            and not (self._finished and not self._outbox)
        )

    @property
    def _over(self) -> bool:
        """Whether nothing more will be heard."""
        return self._ended or (self._link.connection.over and not self._returns)

    async def _wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds or the conversation is over; meanwhile reading goes on."""
        await self._bell.wait_until(lambda: self._over or condition())

    # --- Saying and asking ------------------------------------------------------------------------

    async def say(self, *texts: str) -> None:
        """Say each of *texts* as one message, whatever it holds; control characters are pictures.

        Several are sent in one piece.  Returns when they are on their way: handed to the system, or
        to the task that does so next, or waiting for the next connection.  Waits while the server
        does not take more, or has not accepted `MAX_UNACCEPTED` of ours.  Cancelled, what waited
        was not said.  Raises `LocalProtocolError` if a text is empty or too long, `ConnectionLost`
        if nobody is there any more.
        """
        await self._send_messages([Say(_sayable(text)) for text in texts])

    async def act(self, text: str) -> None:
        """Say in the third person what we do, as `* NAME TEXT`; see `say`."""
        await self._send_messages([Act(_sayable(text))])

    async def direct(self, to: str | int, text: str) -> None:
        """Say *text* to one person alone: a name, or a client's number.

        Returns when it is on its way to that person; in the text voice, to the server, where people
        have no numbers that we know of.  Raises `Refused` if there is nobody, or nobody who takes
        it, and as `say` does.
        """
        if isinstance(to, str):
            to = clean(to)
            if self.voice is TEXT and len(to.split()) != 1:
                raise LocalProtocolError("a name is one word")
        await self._ask(Direct(to, _sayable(text)))

    async def rename(self, name: str) -> None:
        """Be called *name*; raises `Refused` if that cannot be, `ConnectionLost`."""
        await self._ask(Rename(clean(name)))

    async def join(self, room: str) -> None:
        """Go to another room; raises `Refused` if that cannot be, `ConnectionLost`.

        What is told after it returns is told in that room.
        """
        await self._ask(Join(clean(room)))

    async def members(self) -> list[MemberName]:
        """Ask who is in our room, ourselves among them.

        Raises `LocalProtocolError` in the text voice, whose answer is for people; `ConnectionLost`.
        """
        answer = await self._ask(Who())
        if not isinstance(answer, Members):
            raise LocalProtocolError("the text voice has no list of members")
        return answer.members

    async def rooms(self) -> list[RoomSize]:
        """Ask which rooms there are; raises as `members` does."""
        answer = await self._ask(Rooms())
        if not isinstance(answer, RoomList):
            raise LocalProtocolError("the text voice has no list of rooms")
        return answer.rooms

    async def send(self, run: str) -> None:
        """Send a run of lines as if they had been typed, commands and all.

        They MUST be clean and not empty, as `multichat.framing` returns them.  A command that is
        none is answered by an `Error` among the events.  For the rest see `say`.
        """
        await self._until_ready()
        await self._send_typed(run)

    async def _until_ready(self) -> None:
        """Wait until it is known which voice is spoken."""
        if not self._is_ready():
            await self._wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        return self._link.handshake.ready or not self._connected

    def _say_again(self, link: Link) -> None:
        self._nursery.start_soon(link.send_again, self._send_typed)

    async def _send_typed(self, run: str) -> None:
        if self.voice is TEXT:
            await self._put_text(run)
            return
        # There is nothing more to be changed by a hello, and what follows one is no JSON here.
        run = "\n".join(line for line in run.split("\n") if not is_hello(line))
        for request in TEXT.parse_requests(run) if run else ():
            if isinstance(request, SayRun):
                says = [Say(text) for text in request.run.split("\n")]
                await self._send_kept(says, typed=True)
            elif isinstance(request, Invalid):
                self._tell([request.error])
            elif isinstance(request, Quit):
                await self._put(JSON.spell_request(request))
            elif not isinstance(request, Hello):  # which it cannot be
                await self._send_kept([request], typed=True)

    async def _send_messages(self, requests: Sequence[Say | Act]) -> None:
        await self._until_ready()
        if self.voice is TEXT:
            await self._put_text("\n".join(map(TEXT.spell_request, requests)))
        else:
            await self._send_kept(requests)

    async def _send_kept(self, requests: Sequence[WireRequest], *, typed: bool = False) -> None:
        """Send what the server answers, no more of it at a time than it may.

        One that is too long is an exception, or where it was *typed* left out and told of as the
        server would.
        """
        for start in range(0, len(requests), MAX_UNACCEPTED):
            some = requests[start : start + MAX_UNACCEPTED]
            if len(self._outbox) + len(some) > MAX_UNACCEPTED:
                await self._wait_until(partial(self._may_send, len(some)))
            lines: dict[int, tuple[WireRequest, str]] = {}
            for request in some:
                nonce, line = self._outbox.number(request)
                try:
                    self._check_length(line)
                except LocalProtocolError as error:
                    if not typed:
                        raise
                    self._tell([Error(LineTooLong.code, str(error))])
                else:
                    lines[nonce] = request, line
            if lines:
                await self._put_kept(lines)

    async def _put_kept(self, lines: dict[int, tuple[WireRequest, str]]) -> None:
        """Send, and keep until they are answered, requests that were numbered."""
        await trio.lowlevel.checkpoint_if_cancelled()
        for nonce, (request, line) in lines.items():
            self._outbox.keep(nonce, request, line, self.room)
        link = self._link
        try:
            if self._connected:
                await link.put("\n".join(line for _, line in lines.values()))
            elif not self._returns or self._finished:
                raise self._connection_lost()  # noqa: TRY301
            else:  # they go first where we are connected again
                await trio.lowlevel.cancel_shielded_checkpoint()
        except ConnectionLost:
            if not self._returns or self._finished:
                self._outbox.take_back(lines)
                self._told_lost = True
                raise
        except BaseException:
            if link is self._link:  # else they are on their way by the next one
                self._outbox.take_back(lines)
            raise

    def _may_read(self, awaited: bool) -> bool:
        if awaited:
            return self._heard_characters < _AWAITING_CHARACTERS
        return len(self._heard) < _WAITING_READS

    def _may_send(self, messages: int) -> bool:
        return len(self._outbox) + messages <= MAX_UNACCEPTED or not self._may_read(True)

    async def _ask(self, request: WireRequest) -> Event | None:
        """Send a request and wait for its answer; None in the text voice, which has no nonces."""
        await self._until_ready()
        if self.voice is TEXT:
            await self._put_text(TEXT.spell_request(request))
            return None
        nonce, line = self._outbox.number(request)
        self._check_length(line)
        self._answers[nonce] = None
        try:
            await self._put_kept({nonce: (request, line)})
            await self._wait_until(
                lambda: self._answers[nonce] is not None or not self._may_read(True)
            )
        finally:
            answer = self._answers.pop(nonce)
            if answer is None:
                self._outbox.take_back([nonce])
                self._abandoned.add(nonce)
        if answer is None and not self._over:
            raise LocalProtocolError("too much waits to be heard")
        if answer is None:
            raise self._connection_lost()
        if isinstance(answer, Error):
            raise Refused(answer.code, answer.text)
        return answer

    def _check_length(self, line: str) -> None:
        """Raise `LocalProtocolError` for a line that the server would drop, and not answer."""
        if self.welcome is not None and 3 * len(line) > (limit := self.welcome.limits.line):
            length = len(line.encode())
            if length > limit:
                raise LocalProtocolError(f"{length} bytes in one line; the server takes {limit}")

    async def _put_text(self, run: str) -> None:
        if await self._link.may_be_welcomed():  # and this was meant to be text
            await self._send_typed(run)
        else:
            await self._put(run)

    async def _put(self, run: str) -> None:
        if not self._connected:
            await self._wait_until(lambda: self._connected)
        try:
            await self._link.put(run)
        except ConnectionLost:
            self._told_lost = True
            raise

    def _connection_lost(self) -> ConnectionLost:
        self._told_lost = True
        return self._link.connection.lost()

    # --- Hearing ----------------------------------------------------------------------------------

    async def receive(self) -> list[Event]:
        """Wait for the events of one read; an empty list when the conversation is over.

        Raises `ConnectionLost` when it ended without a goodbye and `finish` was not called; after a
        connection was lost, `Refused` or `ConnectFailed` if there can be no other.
        """
        await trio.lowlevel.checkpoint()
        if self._events:
            events = list(self._events)
            self._events.clear()
            return events
        while not self._heard and not self._over:
            await self._bell.wait()
        if self._heard:
            characters, events = self._heard.popleft()
            self._heard_characters -= characters
            self._bell.ring()
            return events
        if self._failure is not None:
            self._told_lost = True
            raise self._failure
        if self.goodbye is None and not self._finished:
            raise self._connection_lost()
        return []

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over the events as they come."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event; several that came in one read do not checkpoint in between."""
        if not self._events:
            self._events.extend(await self.receive())
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    def _tell(self, events: list[Event], characters: int = 0) -> None:
        if events:
            last = events[-1]
            self.goodbye = last.reason if isinstance(last, Goodbye) else None
            self._heard.append((characters, events))
            self._heard_characters += characters
            self._bell.ring()

    def _news(self, event: Event) -> Event | None:
        """Take what an event tells about ourselves; return what the program is to hear of it."""
        nonce = event.nonce
        kept = self._outbox.settle(nonce)
        if kept is not None:
            self._progress_at = trio.current_time()
            self._bell.ring()
        match event:
            case Accepted(id=id_) if kept is not None and nonce not in self._answers:
                if id_ is not None:
                    self._place.accepted(id_, kept.room)
                return None
            case Said() if not self._place.hear(event):
                return None
            case Welcome():
                return self._welcomed(event)
            case Renamed():
                self._place.renamed(event)
            case Joined():
                self._place.joined(event)
            case Error(code="unknown-id", nonce=None):
                self._place.begin_anew()
                return Error(event.code, "what was said here meanwhile is not known any more")
            case Goodbye(reason=reason) if nonce is not None and nonce == self._quit_nonce:
                return None
            case Goodbye(reason=reason) if self._returns and may_return(reason):
                self._sent_away = reason
                return None
        if nonce in self._abandoned:
            self._abandoned.discard(nonce)
            return None
        if nonce is not None and nonce in self._answers:
            self._answers[nonce] = event
            return None
        return event

    def _welcomed(self, welcome: Welcome) -> Event | None:
        came_back = bool(self._place.session)
        self.welcome = welcome
        self._place.welcomed(welcome)
        if not came_back:
            return welcome if self._link.handshake.late else None
        unsure, self._unsure = self._unsure + self._outbox.forget_unsure(), 0
        return Reconnected(welcome.resumed, len(self._outbox), unsure)

    # --- One connection after the other -----------------------------------------------------------

    async def _run(self) -> None:
        """Hold one connection after the other until the conversation is over, or cancelled."""
        try:
            with self._tasks:
                async with trio.open_nursery() as self._nursery:
                    await self._hold(self._link)
                    while self._returns:
                        await self._dial_again()
                        if self._returns:
                            await self._hold(self._link)
                    self._nursery.cancel_scope.cancel(reason="the conversation is over")
        finally:
            self._ended = True
            self._bell.ring()

    async def _hold(self, link: Link) -> None:
        """Hold one connection, from its hello on, until it is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.connection.run)
            try:
                await (self._greet_again(link) if self._place.session else self._greet(link))
            except (Refused, ConnectionLost) as error:
                self._failure = error
                self._bell.ring()
            while self._failure is None and not link.connection.over:
                await self._bell.wait()
            if self._failure is not None or self._returns:  # nobody reads what we would say there
                link.connection.abort("the conversation is over")

    async def _greet(self, link: Link) -> None:
        """Settle with which voice the conversation begins."""
        await link.ask(self._hello_seconds)
        if self._password is not None or not self._plain:
            link.check_admitted(self.goodbye)
        if link.connection.over and link.welcome is None and self._returns:
            return
        hello, refusals = link.hello, link.handshake.refusals
        if refusals:
            raise Refused(refusals[0].code, refusals[0].text)
        if not self._plain:
            link.settle()
        if self._plain and hello.name is not None:
            await self._put(TEXT.spell_request(Rename(hello.name)))
        if self._plain and hello.room is not None:
            await self._put(TEXT.spell_request(Join(hello.room)))
        self._begun = True
        self._note_connected()

    async def _greet_again(self, link: Link) -> None:
        """Go on where we were, with what was not answered first."""
        await link.ask(_WELCOME_AGAIN_SECONDS)
        link.check_admitted(self.goodbye)
        if link.welcome is None:
            link.connection.abort("the server does not answer")
            return
        link.settle()
        refusals = link.handshake.refusals
        if refusals and fold_name(self.room) != fold_name(link.hello.room or ""):
            # What was meant for a room is said nowhere else.
            raise Refused(refusals[0].code, refusals[0].text)
        self._tell(list(refusals))  # of a name that somebody else has now
        self._note_connected()
        if lines := self._outbox.again():
            with suppress(ConnectionLost):  # then they go by the next one
                await link.connection.put("\n".join(lines))

    def _note_connected(self) -> None:
        self._connected, self._connected_at, self._failures = True, trio.current_time(), 0
        self._bell.ring()

    async def _dial_again(self) -> None:
        """Wait and dial until there is a connection, or no use in it."""
        link = self._link
        reason = self._sent_away or link.connection.lost().reason
        if self._connected:
            self._backoff.held(trio.current_time() - self._connected_at)
        self._connected, self._sent_away = False, ""
        await trio.aclose_forcefully(link.stream)
        while self._returns:
            seconds = self._backoff.next_seconds()
            self._tell([Disconnected(reason, seconds, self._failures)])
            self._failures += 1
            await trio.sleep(seconds)
            try:
                stream = await self._redial()  # type: ignore[misc]  # or we would not return
            except ConnectFailed as error:
                reason = error.reason
                if error.lasting:
                    self._failure = error
                continue
            self._unsure += link.handshake.unsaid
            self._abandoned.clear()
            hello = self._place.hello() if self._place.session else self._first_hello
            self._link = self._make_link(stream, hello)
            return

    # --- The beginning and the end ----------------------------------------------------------------

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start the conversation in *nursery*; return when the other side has answered, or has not.

        Raises `Refused`.  Called once, by `multichat.client.open_chat`, as are `leave` and `end`.
        """
        nursery.start_soon(self._run)
        await self._bell.wait_until(lambda: self._begun or self._failure or self._ended)
        if not self._begun:
            raise self._failure or self._connection_lost()

    async def finish(self) -> None:
        """Have what was said sent and accepted, then the end of input; wait for the server's.

        Waits until the server closes or nothing moves any more: for `STUCK_SECONDS` while there is
        something to send, then for `FINISH_SECONDS`; and over one connection after the other, for
        `FINISH_AWAY_SECONDS` in which nothing is accepted.  Events go on arriving and MUST be
        iterated meanwhile by some task: time in which the program does not hear does not count as
        silence.  In JSON we cannot come back after that: the others see at once that we have left.
        Raises `ConnectionLost` if something that was said did not arrive, as far as can be known;
        `Refused` if the server has asked for a password meanwhile.
        """
        self._finished = True
        self._link.check_admitted(self.goodbye)
        await self._link.wait_until_proven()
        self._progress_at = trio.current_time()
        try:
            while self._connected or self._returns:
                if self._connected:
                    try:
                        await self._finish_link(self._link)
                        break
                    except ConnectionLost:
                        if not self._returns:
                            raise
                deadline = self._progress_at + FINISH_AWAY_SECONDS
                with trio.move_on_at(deadline) as patience:
                    link = self._link
                    await self._wait_until(lambda: self._connected and self._link is not link)
                if patience.cancelled_caught:
                    self._tasks.cancel(reason="what was said is not accepted")
                    break
            if self._outbox:
                raise self._failure or self._connection_lost()
        except ConnectionLost:
            if self.voice is JSON and not self._outbox and self._link.handshake.ready:
                return  # all was accepted, and how it ended does not matter
            self._told_lost = True
            self._link.check_admitted(self.goodbye)  # which may be known only now
            raise
        self._link.check_admitted(self.goodbye)

    async def _finish_link(self, link: Link) -> None:
        """Have all answered, and end the connection; raises `ConnectionLost`."""
        self._quit_nonce, last_line = self._outbox.number(Quit())
        await link.connection.finish(
            lambda: link.handshake.ready and not self._outbox,
            last_line if self.voice is JSON else "",
            end_line=TEXT.spell_request(Quit()),
        )

    async def leave(self, nursery: trio.Nursery) -> None:
        """Finish on behalf of a program that has stopped listening."""
        nursery.start_soon(self._hear_out)
        nobody_listens = self.goodbye is not None or (self._told_lost and not self.can_send)
        if not nobody_listens:
            await self.finish()

    async def _hear_out(self) -> None:
        while not self._over:
            self._heard.clear()
            self._heard_characters = 0
            await self._wait_until(lambda: self._heard)

    async def end(self) -> None:
        """End the conversation at once; that it is for good the server hears if nobody waits."""
        connection = self._link.connection
        if self.voice is JSON and self.connected and not connection.waiting_bytes:
            connection.offer(JSON.spell_request(Quit()))
        self._tasks.cancel(reason="the chat was closed")
        await trio.aclose_forcefully(self._link.stream)


def _sayable(text: str) -> str:
    text = clean(text)
    if not text:
        raise LocalProtocolError("an empty message cannot be said")
    return text
