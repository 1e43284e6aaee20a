"""A chat: a conversation as a program has it, with any line-based server.

What we say is on its way when a call returns; what we are told is typed events, which wait for the
program in a bounded queue.  Neither waits for the other, so that a server which holds us back
because we do not read, and a program which does not read because it is saying something, cannot
lock each other up.
"""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from functools import partial

import trio

from multichat.conversation import Conversation, Redial
from multichat.errors import (
    InvalidRequest,
    LineTooLong,
    LocalProtocolError,
    Refused,
)
from multichat.framing import clean
from multichat.handshake import make_hello
from multichat.link import HELLO_SECONDS, LATE_WELCOME_SECONDS, SILENCE_SECONDS
from multichat.messages import (
    NO_SENDER,
    Accepted,
    Act,
    Direct,
    Directed,
    Error,
    Event,
    Goodbye,
    Hello,
    Invalid,
    Join,
    MemberName,
    Members,
    Nonce,
    Quit,
    Rename,
    Reply,
    RoomList,
    Rooms,
    RoomSize,
    Say,
    SayRun,
    Welcome,
    Who,
    WireRequest,
)
from multichat.outbox import MAX_UNACCEPTED
from multichat.voices import JSON, TEXT, Voice, is_hello

__all__ = [
    "HELLO_SECONDS",
    "LATE_WELCOME_SECONDS",
    "MAX_UNACCEPTED",
    "SILENCE_SECONDS",
    "Chat",
]

# How much memory (see `Link`) the events may take that wait for a busy program.  Above this we stop
# reading, and the server waits for us.
_WAITING_BYTES = 32 * 1024 * 1024

# The same while the program waits for an answer, which comes behind these events.  Above this the
# call is given up, so that the program can receive.
_AWAITING_BYTES = 128 * 1024 * 1024

# A read of tiny lines holds 30,000 events.  `receive` returns them in pieces, so that a program can
# be cancelled between two.
_EVENTS_AT_ONCE = 1000


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

    Where *tells_accepted* is set, each `Accepted` is among the events: what we said stands there in
    its room's order, and in the order in which we said it.

    *last_sender* is the number of the client that sent us a private message last, over JSON.
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
        self.tells_accepted = False
        self.last_sender: int | None = None
        self._plain = plain
        self._heard: deque[tuple[int, list[Event]]] = deque()  # events, and the memory they take
        self._heard_bytes = 0
        self._events: deque[Event] = deque()  # of the read that is being iterated over
        self._answers: dict[Nonce, Event | None] = {}
        self._abandoned: set[Nonce] = set()  # asked for, and nobody waits for the answer
        self._conversation = Conversation(
            stream,
            make_hello(name, room, replay),
            password=None if password is None else clean(password),
            plain=plain,
            hello_seconds=hello_seconds,
            redial=redial,
            wait=wait,
            tell=self._tell,
            sort=self._sort,
            send_typed=self._send_typed,
            may_read=self._may_read,
        )

    @property
    def goodbye(self) -> str | None:
        """Why the server has sent us away, if that was the last thing it said."""
        return self._conversation.goodbye

    @property
    def welcome(self) -> Welcome | None:
        """How the server greeted us last; None in the text voice."""
        return self._conversation.welcome

    @property
    def client(self) -> int:
        """Our number; 0 in the text voice."""
        return self._conversation.place.client

    @property
    def name(self) -> str:
        """What we are called, as we were told last; empty in the text voice."""
        return self._conversation.place.name

    @property
    def room(self) -> str:
        """The room that we are in, as we were told last; empty in the text voice."""
        return self._conversation.place.room

    @property
    def voice(self) -> Voice:
        """The voice that is spoken now."""
        return self._conversation.voice

    @property
    def fell_back(self) -> bool:
        """Whether JSON was asked for and text is spoken."""
        return self.voice is TEXT and not self._plain

    @property
    def connected(self) -> bool:
        """Whether there is a connection, by which both sides can be heard."""
        return self._conversation.connected

    @property
    def unaccepted(self) -> int:
        """How many messages were said and not yet accepted; always 0 in the text voice."""
        return self._conversation.outbox.messages

    @property
    def moved_bytes(self) -> int:
        """A number that changes as the peer takes and gives: twice the same, nothing moves."""
        return self._conversation.link.connection.moved_bytes

    @property
    def waiting_bytes(self) -> int:
        """How much was said and not yet handed to the system."""
        return self._conversation.link.connection.waiting_bytes

    @property
    def can_send(self) -> bool:
        """Whether what is said may still arrive: nothing has failed and `finish` was not called."""
        return self._conversation.can_send

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

    async def members(self, room: str | None = None) -> list[MemberName]:
        """Ask who is in *room*, or in ours, ourselves among them.

        Raises `LocalProtocolError` in the text voice, whose answer is for people; `ConnectionLost`.
        """
        answer = await self._ask(Who(None if room is None else clean(room)))
        if not isinstance(answer, Members):
            raise LocalProtocolError("the text voice has no list of members")
        return answer.members

    async def rooms(self) -> list[RoomSize]:
        """Ask which rooms there are; raises as `members` does."""
        answer = await self._ask(Rooms())
        if not isinstance(answer, RoomList):
            raise LocalProtocolError("the text voice has no list of rooms")
        return answer.rooms

    async def send(self, run: str) -> list[Nonce]:
        """Send a run of lines as if they had been typed, commands and all.

        They MUST be clean and not empty, as `multichat.framing` returns them.  A command that is
        none is answered by an `Error` among the events, as is what is too long.  Returns the nonces
        of the others, which their answers have too; none in the text voice.  For the rest see
        `say`.
        """
        await self._conversation.wait_until_ready()
        return await self._send_typed(run)

    async def _send_typed(self, run: str) -> list[Nonce]:
        nonces: list[Nonce] = []
        if self.voice is TEXT:
            await self._put_text(run)
            return nonces
        # There is nothing more to be changed by a hello, and what follows one is no JSON here.
        run = "\n".join(line for line in run.split("\n") if not is_hello(line))
        for request in TEXT.parse_requests(run) if run else ():
            if isinstance(request, SayRun):
                says = [Say(text) for text in request.run.split("\n")]
                nonces += await self._send_kept(says, typed=True)
            elif isinstance(request, Invalid):
                self._tell([request.error])
            elif isinstance(request, Reply):
                if self.last_sender is None:
                    self._tell([Error(InvalidRequest.code, NO_SENDER)])
                else:
                    direct = Direct(self.last_sender, request.text)
                    nonces += await self._send_kept([direct], typed=True)
            elif isinstance(request, Quit):
                await self._conversation.put(JSON.spell_request(request))
            elif not isinstance(request, Hello):  # which it cannot be
                nonces += await self._send_kept([request], typed=True)
        return nonces

    async def _send_messages(self, requests: Sequence[Say | Act]) -> None:
        await self._conversation.wait_until_ready()
        if self.voice is TEXT:
            await self._put_text("\n".join(map(TEXT.spell_request, requests)))
        else:
            await self._send_kept(requests)

    async def _send_kept(
        self, requests: Sequence[WireRequest], *, typed: bool = False
    ) -> list[Nonce]:
        """Send what the server answers, no more of it at a time than it may; return the nonces.

        One that is too long is an exception, or where it was *typed* left out and told of as the
        server would.
        """
        nonces: list[Nonce] = []
        for start in range(0, len(requests), MAX_UNACCEPTED):
            some = requests[start : start + MAX_UNACCEPTED]
            if len(self._conversation.outbox) + len(some) > MAX_UNACCEPTED:
                await self._conversation.wait_until(partial(self._may_send, len(some)))
            lines: dict[int, tuple[WireRequest, str]] = {}
            for request in some:
                nonce, line = self._conversation.outbox.number(request)
                try:
                    self._check_length(line)
                except LocalProtocolError as error:
                    if not typed:
                        raise
                    self._tell([Error(LineTooLong.code, str(error))])
                else:
                    lines[nonce] = request, line
            if lines:
                await self._conversation.put_kept(lines)
                nonces += lines
        return nonces

    def _may_read(self, awaited: bool) -> bool:
        return self._heard_bytes < (_AWAITING_BYTES if awaited else _WAITING_BYTES)

    def _may_send(self, messages: int) -> bool:
        return len(self._conversation.outbox) + messages <= MAX_UNACCEPTED or not self._may_read(
            True
        )

    async def _ask(self, request: WireRequest) -> Event | None:
        """Send a request and wait for its answer; None in the text voice, which has no nonces."""
        await self._conversation.wait_until_ready()
        if self.voice is TEXT:
            await self._put_text(TEXT.spell_request(request))
            return None
        nonce, line = self._conversation.outbox.number(request)
        self._check_length(line)
        self._answers[nonce] = None
        try:
            await self._conversation.put_kept({nonce: (request, line)})
            await self._conversation.wait_until(
                lambda: self._answers[nonce] is not None or not self._may_read(True)
            )
        finally:
            answer = self._answers.pop(nonce)
            if answer is None:
                self._conversation.outbox.take_back([nonce])
                self._abandoned.add(nonce)
        if answer is None and not self._conversation.over:
            raise LocalProtocolError("too much waits to be heard")
        if answer is None:
            raise self._conversation.lost()
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
        if await self._conversation.link.may_be_welcomed():  # and this was meant to be text
            await self._send_typed(run)
        else:
            await self._conversation.put(run)

    # --- Hearing ----------------------------------------------------------------------------------

    async def receive(self) -> list[Event]:
        """Wait for at most 1000 events of one read; an empty list when the conversation is over.

        Raises `ConnectionLost` when it ended without a goodbye and `finish` was not called; after a
        connection was lost, `Refused` or `ConnectFailed` if there can be no other.
        """
        await trio.lowlevel.checkpoint()
        if self._events:
            events = list(self._events)
            self._events.clear()
            return events
        while not self._heard and not self._conversation.over:
            await self._conversation.bell.wait()
        if self._heard:
            size, events = self._heard.popleft()
            self._heard_bytes -= size
            self._conversation.bell.ring()
            return events
        if (failure := self._conversation.failure) is not None:
            self._conversation.told_lost = True
            raise failure
        if self.goodbye is None and not self._conversation.finished:
            raise self._conversation.lost()
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

    def _tell(self, events: list[Event], size: int = 0) -> None:
        if events:
            last = events[-1]
            self._conversation.goodbye = last.reason if isinstance(last, Goodbye) else None
            for start in range(0, len(events), _EVENTS_AT_ONCE):
                self._heard.append((size, events[start : start + _EVENTS_AT_ONCE]))
                self._heard_bytes += size
                size = 0  # counted with the first piece
            self._conversation.bell.ring()

    def _sort(self, event: Event, ours: bool) -> Event | None:
        """Take what answers a call; return what is left for the program to hear."""
        nonce = event.nonce
        if isinstance(event, Directed):
            self.last_sender = event.client
        if nonce in self._abandoned:
            self._abandoned.discard(nonce)
            return None
        if nonce is not None and nonce in self._answers:
            self._answers[nonce] = event
            return None
        hidden = ours and isinstance(event, Accepted) and not self.tells_accepted
        return None if hidden else event

    # --- The beginning and the end ----------------------------------------------------------------

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start the conversation in *nursery*; return when the other side has answered, or has not.

        Raises `Refused`.  Called once, by `multichat.client.open_chat`, as are `leave` and `end`.
        """
        await self._conversation.begin(nursery)

    def check_admitted(self) -> None:
        """Raise `Refused` if the server wants a password and was not told the right one."""
        self._conversation.link.check_admitted(self.goodbye)

    async def finish(self) -> None:
        """Have what was said sent and accepted, then the end of input; wait for the server's.

        Waits until the server closes or nothing moves any more: for `STUCK_SECONDS` while there is
        something to send, then for `FINISH_SECONDS`; and over one connection after the other, for
        `FINISH_AWAY_SECONDS` in which nothing is accepted.  Events go on arriving and MUST be
        iterated meanwhile by some task: time in which the program does not hear does not count as
        silence.  In JSON we cannot come back after that: the others see at once that we have left.
        Raises `ConnectionLost` if something that was said did not arrive, as far as can be known,
        or if JSON was asked for and the other side neither says anything at all nor closes;
        `Refused` if the server has asked for a password meanwhile.
        """
        await self._conversation.finish()

    async def leave(self, nursery: trio.Nursery) -> None:
        """Finish on behalf of a program that has stopped listening."""
        nursery.start_soon(self._hear_out)
        nobody_listens = self.goodbye is not None or (
            self._conversation.told_lost and not self.can_send
        )
        if not nobody_listens:
            await self.finish()

    async def _hear_out(self) -> None:
        while not self._conversation.over:
            self._heard.clear()
            self._heard_bytes = 0
            await self._conversation.wait_until(lambda: self._heard)

    async def end(self) -> None:
        """End it at once; that it is for good the server hears, if that needs no waiting."""
        await self._conversation.end()


def _sayable(text: str) -> str:
    text = clean(text)
    if not text:
        raise LocalProtocolError("an empty message cannot be said")
    return text
