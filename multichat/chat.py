"""A chat: one conversation with any line-based server, over any stream.

What we say is on its way when a call returns; what we are told is typed events, which wait for the
program in a bounded queue.  Neither waits for the other, so that a server which holds us back
because we do not read, and a program which does not read because it is saying something, cannot
lock each other up.
"""

import math
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial

import msgspec
import trio

from multichat.connection import Connection
from multichat.errors import (
    ConnectionLost,
    LineTooLong,
    LocalProtocolError,
    Refused,
)
from multichat.framing import Part, clean
from multichat.handshake import Handshake, make_hello
from multichat.messages import (
    Accepted,
    Act,
    Direct,
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
    Notice,
    Quit,
    Rename,
    Renamed,
    RoomList,
    Rooms,
    RoomSize,
    Say,
    SayRun,
    Welcome,
    Who,
    WireRequest,
)
from multichat.preamble import WRONG_PASSWORD, spell_password
from multichat.voices import JSON, TEXT, Voice, is_hello, spell_hello

__all__ = ["Chat"]

# How many reads wait for a program that is busy: 16 MiB as they came on the wire, after which we
# stop reading and the server's patience begins.
_WAITING_READS = 256

# The same while it waits for an answer, which stands behind what the server has for us.  Whoever
# falls behind by more than this while it asks is not held up any longer, so that it can hear.
_AWAITING_CHARACTERS = 64 * 1024 * 1024

# Who does not answer the hello within this time does not speak JSON, or is far away.
HELLO_SECONDS = 1.0

# How long, after that, the end of input waits for a welcome: once it is sent nothing can be said
# again.
LATE_WELCOME_SECONDS = 2.0

# A welcome that comes later than this is not taken for one.
_FORGET_SECONDS = 10.0

# How long a server may take to refuse the next of what it could not read.
_REFUSING_SECONDS = 5.0

# As many as a server remembers, so that none is accepted twice.
MAX_UNACCEPTED = 256

# Who has a password waits for a server that is far away to ask for it.
ASKING_SECONDS = 3.0

# Who was told a password is not given up on so soon: the server lets those wait from whose address
# wrong ones came.
PASSWORD_SECONDS = 30.0


class Chat:
    """A conversation; made by `multichat.client.connect` or `open_chat`.

    Any number of tasks may `say` and ask, one at a time iterates.  Iteration gives typed events in
    the order of the wire and ends when the server has said goodbye or, after `finish`, has closed;
    it raises `ConnectionLost` when the conversation ended otherwise.  What answers a call of ours
    is not among them.

    *client*, *name* and *room* are ours as we were told last, 0 and empty in the text voice.
    Where *tells_accepted* is set, each `Accepted` is among the events: what we said stands there in
    its room's order, and in the order in which we said it.
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
    ) -> None:
        self.client = 0
        self.name = self.room = ""
        self.tells_accepted = False
        self.goodbye: str | None = None
        self._plain = plain
        self._password = None if password is None else clean(password)
        self._hello = make_hello(name, room)
        self._handshake = Handshake(self._hello, plain=plain)
        self._connection = Connection(stream, hear=self._hear, may_read=self._may_read)
        self._heard: deque[tuple[int, list[Event]]] = deque()  # what each read told, in so much
        self._heard_characters = 0
        self._events: deque[Event] = deque()  # of the read that is being iterated over
        self._finished = self._told_lost = self._resending = False
        self._nonce = 0
        self._unaccepted: dict[Nonce, None] = {}
        self._answers: dict[Nonce, Event | None] = {}
        self._abandoned: set[Nonce] = set()  # asked for, and nobody waits for the answer
        self._hello_seconds = hello_seconds
        self._forget_at = math.inf

    @property
    def voice(self) -> Voice:
        """The voice that is spoken now."""
        return self._handshake.voice

    @property
    def welcome(self) -> Welcome | None:
        """How the server greeted us; None in the text voice."""
        return self._handshake.welcome

    @property
    def fell_back(self) -> bool:
        """Whether JSON was asked for and text is spoken."""
        return self.voice is TEXT and not self._plain

    @property
    def unaccepted(self) -> int:
        """How many messages were sent and not yet accepted; always 0 in the text voice."""
        return len(self._unaccepted)

    @property
    def moved_bytes(self) -> int:
        """A number that changes as the peer takes and gives: twice the same, nothing moves."""
        return self._connection.moved_bytes

    @property
    def waiting_bytes(self) -> int:
        """How much was said and not yet handed to the system."""
        return self._connection.waiting_bytes

    @property
    def can_send(self) -> bool:
        """Whether what is said may still arrive: nothing has failed and `finish` was not called."""
        return self._connection.can_send

    # --- Saying and asking ------------------------------------------------------------------------

    async def say(self, *texts: str) -> None:
        """Say each of *texts* as one message, whatever it holds; control characters are pictures.

        Several are sent in one piece.  Returns when they are on their way: handed to the system, or
        to the task that does so next.  Waits while the server does not take more, or has not
        accepted `MAX_UNACCEPTED` of ours.  Cancelled, what waited was not said.  Raises
        `LocalProtocolError` if a text is empty or too long, `ConnectionLost` if nobody is there any
        more.
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
        if not self._handshake.ready:
            await self._connection.wait_until(lambda: self._handshake.ready)

    async def _send_typed(self, run: str) -> None:
        if self.voice is TEXT:
            await self._put(run)
            return
        # There is nothing more to be changed by a hello, and what follows one is no JSON here.
        run = "\n".join(line for line in run.split("\n") if not is_hello(line))
        for request in TEXT.parse_requests(run) if run else ():
            if isinstance(request, SayRun):
                says = [Say(text) for text in request.run.split("\n")]
                await self._send_accepted(says, typed=True)
            elif isinstance(request, Act | Direct):
                await self._send_accepted([request], typed=True)
            elif isinstance(request, Invalid):
                self._tell([request.error])
            elif not isinstance(request, Hello):  # which it cannot be
                await self._put(JSON.spell_request(request))

    async def _send_messages(self, requests: Sequence[Say | Act]) -> None:
        await self._until_ready()
        if self.voice is TEXT:
            await self._put("\n".join(map(TEXT.spell_request, requests)))
        else:
            await self._send_accepted(requests)

    async def _send_accepted(
        self, requests: Sequence[Say | Act | Direct], *, typed: bool = False
    ) -> None:
        """Send what the server answers with `Accepted`, no more of it at a time than it may.

        One that is too long is an exception, or where it was *typed* left out and told of as the
        server would.
        """
        for start in range(0, len(requests), MAX_UNACCEPTED):
            some = requests[start : start + MAX_UNACCEPTED]
            if len(self._unaccepted) + len(some) > MAX_UNACCEPTED:
                await self._connection.wait_until(partial(self._may_send, len(some)))
            lines: dict[Nonce, str] = {}
            for request in some:
                self._nonce += 1
                line = _spell_with_nonce(request, self._nonce)
                try:
                    self._check_length(line)
                except LocalProtocolError as error:
                    if not typed:
                        raise
                    self._tell([Error(LineTooLong.code, str(error))])
                else:
                    lines[self._nonce] = line
            if not lines:
                continue
            self._unaccepted.update(dict.fromkeys(lines))
            try:
                await self._put("\n".join(lines.values()))
            except BaseException:  # they were not sent
                for nonce in lines:
                    self._unaccepted.pop(nonce, None)
                raise

    def _may_read(self, awaited: bool) -> bool:
        if awaited:
            return self._heard_characters < _AWAITING_CHARACTERS
        return len(self._heard) < _WAITING_READS

    def _may_send(self, messages: int) -> bool:
        return len(self._unaccepted) + messages <= MAX_UNACCEPTED or not self._may_read(True)

    async def _ask(self, request: WireRequest) -> Event | None:
        """Send a request and wait for its answer; None in the text voice, which has no nonces."""
        await self._until_ready()
        if self.voice is TEXT:
            await self._put(TEXT.spell_request(request))
            return None
        self._nonce += 1
        nonce = self._nonce
        line = _spell_with_nonce(request, nonce)
        self._check_length(line)
        self._answers[nonce] = None
        try:
            await self._put(line)
            await self._connection.wait_until(
                lambda: self._answers[nonce] is not None or not self._may_read(True)
            )
        finally:
            answer = self._answers.pop(nonce)
            if answer is None:
                self._abandoned.add(nonce)
        if answer is None and not self._connection.over:
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

    async def _put(self, run: str) -> None:
        shake = self._handshake
        if shake.full and await self._was_welcomed():  # and this was meant to be text
            await self._send_typed(run)
            return
        in_text = self.voice is TEXT
        if in_text:
            shake.sent(run)
        try:
            await self._connection.put(run)
        except BaseException as error:
            if in_text:
                shake.not_sent(run)
            self._told_lost = self._told_lost or isinstance(error, ConnectionLost)
            raise

    async def _was_welcomed(self) -> bool:
        """Wait, before more is sent than could be sent again, for as long as one may come."""
        with trio.move_on_at(self._forget_at):
            await self._connection.wait_until(lambda: self.welcome)
        if self.welcome is None:
            self._handshake.conclude()
            return False
        await self._until_ready()
        return True

    def _connection_lost(self) -> ConnectionLost:
        self._told_lost = True
        return self._connection.lost()

    # --- Hearing ----------------------------------------------------------------------------------

    async def receive(self) -> list[Event]:
        """Wait for the events of one read; an empty list when the conversation is over.

        Raises `ConnectionLost` when it ended without a goodbye and `finish` was not called.
        """
        await trio.lowlevel.checkpoint()
        if self._events:
            events = list(self._events)
            self._events.clear()
            return events
        while not self._heard and not self._connection.over:
            await self._connection.wait_changed()
        if self._heard:
            characters, events = self._heard.popleft()
            self._heard_characters -= characters
            self._connection.change()
            return events
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

    def _hear(self, parts: list[Part]) -> None:
        events: list[Event] = []
        characters = 0
        if trio.current_time() > self._forget_at:
            self._handshake.conclude()
            self._forget_at = math.inf
        for part in parts:
            if isinstance(part, LineTooLong):
                events.append(Notice(str(part)))
            else:
                characters += len(part)
                heard = self._handshake.hear(part)
                events += heard if self.voice is TEXT else filter(self._is_news, heard)
        if self._handshake.resending and not self._resending:
            self._resending = True
            self._connection.nursery.start_soon(self._send_again)
        self._tell(events, characters)

    def _tell(self, events: list[Event], characters: int = 0) -> None:
        if events:
            last = events[-1]
            self.goodbye = last.reason if isinstance(last, Goodbye) else None
            self._heard.append((characters, events))
            self._heard_characters += characters
            self._connection.change()

    def _is_news(self, event: Event) -> bool:
        """Take what an event tells about ourselves; say whether the program is to hear of it."""
        match event:
            case Accepted(nonce=nonce) if nonce in self._unaccepted:
                del self._unaccepted[nonce]
                return self.tells_accepted
            case Welcome(client=client, name=name, room=room):
                self.client, self.name, self.room = client, name, room
                return self._handshake.late
            case Renamed(client=client, name=name) if client == self.client:
                self.name = name
            case Joined(client=client, room=room) if client == self.client and room:
                self.room = room
            case Error(nonce=nonce) if nonce in self._unaccepted:
                del self._unaccepted[nonce]
        if event.nonce in self._abandoned:
            self._abandoned.discard(event.nonce)
            return False
        if event.nonce is not None and event.nonce in self._answers:
            self._answers[event.nonce] = event
            return False
        return True

    # --- The beginning and the end ----------------------------------------------------------------

    async def _greet(self) -> None:
        """Settle which voice is spoken, and say the password if the server wants it."""
        shake, hello = self._handshake, self._hello
        seconds = self._hello_seconds
        if self._password is not None:
            seconds = max(seconds, ASKING_SECONDS)
        # Of a connection that is lost whoever receives will hear.
        with suppress(ConnectionLost):
            with trio.move_on_after(seconds):
                if not self._plain:
                    await self._connection.put(spell_hello(hello))
                if self._password is not None or not self._plain:
                    await self._connection.wait_until(self._is_answered)
            if shake.password_asked and self._password is not None:
                with trio.move_on_after(PASSWORD_SECONDS):
                    await self._say_password(self._password)
        if self._password is not None or not self._plain:
            self.check_admitted()
        if self._plain:
            if hello.name is not None:
                await self._put(TEXT.spell_request(Rename(hello.name)))
            if hello.room is not None:
                await self._put(TEXT.spell_request(Join(hello.room)))
            return
        if shake.refusals:
            raise Refused(shake.refusals[0].code, shake.refusals[0].text)
        if shake.welcome is not None:
            shake.forgive()
        elif not shake.ready:
            shake.give_up()
            self._forget_at = trio.current_time() + _FORGET_SECONDS

    def _is_answered(self) -> bool:
        shake = self._handshake
        return shake.password_asked or (shake.ready and not self._plain)

    async def _say_password(self, password: str) -> None:
        shake = self._handshake
        said = spell_password(password)
        await self._connection.put(said if self._plain else f"{said}\n{spell_hello(self._hello)}")
        await self._connection.wait_until(
            lambda: (
                shake.password_refused
                or (not shake.password_asked and (shake.ready or self._plain))
            )
        )

    def check_admitted(self) -> None:
        """Raise `Refused` if the server wants a password and was not told the right one."""
        shake = self._handshake
        if shake.password_refused:
            raise Refused("wrong-password", WRONG_PASSWORD)
        if shake.password_asked:
            reason = "the server asks for a password (--password-file, MULTICHAT_PASSWORD)"
            raise Refused("password-required", self.goodbye or reason)

    async def _send_again(self) -> None:
        """Send again what the server refuses for being no JSON; nothing new is sent before that."""
        shake = self._handshake
        with suppress(ConnectionLost):  # as who says more, or receives, will hear
            while shake.resending and not self._connection.over:
                with trio.move_on_after(_REFUSING_SECONDS):
                    await self._connection.wait_until(lambda: shake.again)
                if not shake.again:
                    break
                run, shake.again = "\n".join(shake.again), []
                await self._send_typed(run)
        shake.forgive()
        self._connection.change()

    async def finish(self) -> None:
        """Have what was said sent and accepted, then the end of input; wait for the server's.

        Waits until the server closes or nothing moves any more: for `STUCK_SECONDS` while there is
        something to send, then for `FINISH_SECONDS`.  Events go on arriving and MUST be iterated
        meanwhile by some task: time in which the program does not hear does not count as silence.
        Raises `ConnectionLost` if something that was said did not arrive, as far as can be known;
        `Refused` if the server has asked for a password meanwhile.
        """
        self._finished = True
        self.check_admitted()
        shake, connection = self._handshake, self._connection
        if shake.unproven:  # who knows what it is read as; once our side has ended, it is too late
            with trio.move_on_after(LATE_WELCOME_SECONDS):
                await connection.wait_until(lambda: not shake.unproven)
        try:
            await connection.finish(
                lambda: shake.ready and not self._unaccepted, self.voice.spell_request(Quit())
            )
        except ConnectionLost:
            self._told_lost = True
            self.check_admitted()  # which may be known only now
            raise
        self.check_admitted()

    async def _leave(self, nursery: trio.Nursery) -> None:
        """Finish on behalf of a program that has stopped listening."""
        nursery.start_soon(self._hear_out)
        nobody_listens = self.goodbye is not None or (self._told_lost and not self.can_send)
        if not nobody_listens:
            await self.finish()

    async def _hear_out(self) -> None:
        while not self._connection.over:
            self._heard.clear()
            self._heard_characters = 0
            await self._connection.wait_until(lambda: self._heard)


def _sayable(text: str) -> str:
    text = clean(text)
    if not text:
        raise LocalProtocolError("an empty message cannot be said")
    return text


def _spell_with_nonce(request: WireRequest, nonce: int) -> str:
    return JSON.spell_request(msgspec.structs.replace(request, nonce=nonce))
