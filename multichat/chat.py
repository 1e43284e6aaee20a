"""A chat: a conversation as a program has it, with any line-based server.

What we say is on its way when a call returns; what we are told is typed events, which wait for the
program in a bounded queue.  Neither waits for the other, so that a server which holds us back
because we do not read, and a program which does not read because it is saying something, cannot
lock each other up.

Owns what a program can call.  The connections are `multichat.reconnect`'s, what is said over them
`multichat.conversation`'s.
"""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import groupby

import trio

from multichat.config import DEFAULT_TIMEOUTS, ClientTimeouts
from multichat.errors import (
    ConnectionLost,
    InvalidRequest,
    LineTooLong,
    LocalProtocolError,
    MultichatError,
    Refused,
    RemoteProtocolError,
)
from multichat.framing import clean
from multichat.handshake import make_hello
from multichat.messages import (
    MAX_UNACCEPTED,
    NO_SENDER,
    Act,
    Direct,
    Error,
    Event,
    Hello,
    Invalid,
    Join,
    MemberName,
    Members,
    Nonce,
    Quit,
    Rename,
    Renamed,
    Reply,
    Request,
    RoomList,
    Rooms,
    RoomSize,
    Say,
    SayRun,
    Welcome,
    Who,
    WireRequest,
)
from multichat.reconnect import ReconnectingConnection, Redial, Retry
from multichat.voices import JSON, TEXT, Voice, is_hello

__all__ = ["Chat"]

# After the holder of a name has left: the server keeps the name for it until about the moment in
# which it tells that.
_NAME_AGAIN_SECONDS = 1.0


class Chat:
    """A conversation; made by `multichat.client.connect` or `open_chat`.

    Any number of tasks may `say` and ask, one at a time iterates.  Iteration gives typed events in
    the order of the wire and ends when the server has said a final goodbye or, after `finish`, has
    closed; it raises `ConnectionLost` when the conversation ended otherwise, or whatever else it
    ended with.  What answers a call of ours is not among them.

    With *redial* the conversation continues over another connection when one is lost, or the server
    has said a goodbye after which we may reconnect: `Disconnected` and `Reconnected` are among the
    events, what was missed meanwhile follows, and what was asked and not answered is asked again.
    Only in JSON, once the server has welcomed us, or from the start if we *wait* for that.

    Where *tells_accepted* is set, each `Accepted` is among the events: what we said stands there in
    its room's order, and in the order in which we said it.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        name: str | None = None,
        room: str | None = None,
        password: str | None = None,
        plain: bool = False,
        replay: int = 0,
        redial: Redial | None = None,
        wait: bool = False,
        timeouts: ClientTimeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._line = ReconnectingConnection(
            stream,
            make_hello(name, room, replay),
            password=password,
            plain=plain,
            redial=redial,
            wait=wait,
            timeouts=timeouts,
        )
        self._conversation = self._line.conversation
        self._plain, self._timeouts = plain, timeouts
        self._events: deque[Event] = deque()  # of the read that is being iterated over

    @property
    def goodbye(self) -> str | None:
        """The reason of the server's goodbye, if that was the last thing that it said.

        None after a goodbye that was followed, or will be, by another connection.
        """
        return None if self._line.goodbye is None else self._line.goodbye.reason

    @property
    def welcome(self) -> Welcome | None:
        """How the server greeted us last; None in the text protocol."""
        return self._conversation.welcome

    @property
    def client(self) -> int:
        """Our number; 0 in the text protocol."""
        return self._conversation.place.client

    @property
    def name(self) -> str:
        """What we are called, as we were told last; empty in the text protocol."""
        return self._conversation.place.name

    @property
    def room(self) -> str:
        """The room that we are in, as we were told last; empty in the text protocol."""
        return self._conversation.place.room

    @property
    def voice(self) -> Voice:
        """The protocol that is spoken now."""
        return self._conversation.voice

    @property
    def fell_back(self) -> bool:
        """Whether JSON was asked for and the server speaks text."""
        return self.voice is TEXT and not self._plain and self._conversation.handshake.settled

    @property
    def last_sender(self) -> int | None:
        """The number of the client that sent us a private message last, over JSON."""
        return self._conversation.last_sender

    @property
    def connected(self) -> bool:
        """Whether there is a connection, by which both sides can be heard."""
        return self._line.connected and not self._line.connection.over

    @property
    def retry(self) -> Retry | None:
        """The next try to reconnect, or the one that is under way; None while connected."""
        return self._line.retry

    @property
    def unaccepted(self) -> int:
        """How many messages were said and not yet accepted; always 0 in the text protocol."""
        return self._conversation.outbox.messages

    @property
    def moved_bytes(self) -> int:
        """A number that changes as the peer takes and gives: twice the same, nothing moves."""
        return self._line.connection.moved_bytes

    @property
    def waiting_bytes(self) -> int:
        """How much was said and not yet handed to the system."""
        return self._line.connection.waiting_bytes

    @property
    def ended(self) -> bool:
        """Whether the server has ended the last connection there was."""
        return self._line.connection.ended

    def is_unaccepted(self, nonce: Nonce) -> bool:
        """Whether what has that nonce was said and is not answered yet."""
        return nonce in self._conversation.outbox

    @property
    def can_send(self) -> bool:
        """Whether a message may still arrive: nothing has failed and `finish` was not called."""
        return self._line.can_send

    @property
    def tells_accepted(self) -> bool:
        """Whether each `Accepted` is among the events."""
        return self._conversation.tells_accepted

    @tells_accepted.setter
    def tells_accepted(self, value: bool) -> None:
        """Say whether each `Accepted` is to be among the events."""
        self._conversation.tells_accepted = value

    # --- Saying and asking ------------------------------------------------------------------------

    async def say(self, *texts: str) -> list[Nonce | None]:
        """Say each of *texts* as one message, whatever it holds; control characters are pictures.

        Several are sent in one piece.  Returns when they are on their way: handed to the system, or
        to the task that does so next, or waiting for the next connection.  Waits while the server
        does not take more, or has not accepted `MAX_UNACCEPTED` of ours, for as long as that takes
        or `ClientTimeouts.blocked` says.  Returns their nonces; none in the text protocol.
        Cancelled, what waited was not said.  Raises `LocalProtocolError` if a text is empty or too
        long, or if there is no room because the program does not receive events; `ConnectionLost`
        if nobody is there any more.
        """
        return await self._send_messages([Say(_sayable(text)) for text in texts])

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

        Raises `LocalProtocolError` in the text protocol, whose answer is for people,
        `RemoteProtocolError` if the server answers with something else, and `ConnectionLost`.
        """
        answer = await self._ask(Who(None if room is None else clean(room)))
        if not isinstance(answer, Members):
            raise self._no_list("members", answer)
        return answer.members

    async def rooms(self) -> list[RoomSize]:
        """Ask which rooms there are; raises as `members` does."""
        answer = await self._ask(Rooms())
        if not isinstance(answer, RoomList):
            raise self._no_list("rooms", answer)
        return answer.rooms

    def _no_list(self, of: str, answer: Event | None) -> MultichatError:
        if self.goodbye is not None:
            return ConnectionLost(self.goodbye)
        if self._line.over:
            return self._line.lost()
        if answer is None:
            return LocalProtocolError(f"the text protocol has no list of {of}")
        tag = type(answer).__struct_config__.tag
        return RemoteProtocolError(f"the server answered with `{tag}` instead of `{of}`")

    async def send(self, run: str) -> list[Nonce | None]:
        """Send a run of lines as if they had been typed, commands and all.

        They MUST be clean and not empty, as `multichat.framing` returns them.  A command that is
        none is answered by an `Error` among the events, as is what is too long.  Returns for each
        line the nonce, which its answer has too, or None for such a one; nothing in the text
        protocol.  For the rest see `say`.
        """
        with self._line.sending():
            if self.voice is TEXT:
                await self._line.put(run)
                return []
            return await self._send_typed(run)

    async def _send_typed(self, run: str) -> list[Nonce | None]:
        nonces: list[Nonce | None] = []
        for is_greeting, lines in groupby(run.split("\n"), is_hello):
            if is_greeting:  # there is nothing left that a hello could change
                nonces += [None for _ in lines]
                continue
            for request in TEXT.parse_requests("\n".join(lines)):
                nonces += await self._send_request(request)
        return nonces

    async def _send_request(self, request: Request) -> list[Nonce | None]:
        if isinstance(request, SayRun):
            says = [Say(text) for text in request.run.split("\n")]
            return await self._send_kept(says, typed=True)
        if isinstance(request, Invalid):
            self._line.tell([request.error])
        elif isinstance(request, Reply):
            if self.last_sender is not None:
                direct = Direct(self.last_sender, request.text)
                return await self._send_kept([direct], typed=True)
            self._line.tell([Error(InvalidRequest.code, NO_SENDER)])
        elif isinstance(request, Quit):
            await self._line.put(JSON.spell_request(request))
        elif not isinstance(request, Hello):  # which it cannot be
            return await self._send_kept([request], typed=True)
        return [None]

    async def _send_messages(self, requests: Sequence[Say | Act]) -> list[Nonce | None]:
        with self._line.sending():
            if self.voice is TEXT:
                await self._line.put("\n".join(map(TEXT.spell_request, requests)))
                return []
            return await self._send_kept(requests)

    async def _send_kept(
        self, requests: Sequence[WireRequest], *, typed: bool = False
    ) -> list[Nonce | None]:
        """Send what the server answers, no more of it at a time than it may; return the nonces.

        One that is too long is an exception, or where it was *typed* left out, with None for its
        nonce, and told of as the server would.
        """
        outbox = self._conversation.outbox
        nonces: list[Nonce | None] = []
        for start in range(0, len(requests), MAX_UNACCEPTED):
            some = requests[start : start + MAX_UNACCEPTED]
            await self._wait_to_send(len(some))
            lines: dict[int, tuple[WireRequest, str]] = {}
            for request in some:
                nonce, line = outbox.number(self._conversation.in_room(request))
                try:
                    self._check_length(line)
                except LocalProtocolError as error:
                    if not typed:
                        raise
                    self._line.tell([Error(LineTooLong.code, str(error))])
                    nonces.append(None)
                else:
                    lines[nonce] = request, line
                    nonces.append(nonce)
            if lines:
                await self._line.put_kept(lines)
        return nonces

    async def _wait_to_send(self, messages: int) -> None:
        """Wait until so many more *messages* may be unaccepted.

        Raises `LocalProtocolError` where that cannot come about: the answers stand behind events
        for which the program has no time.
        """
        outbox, line = self._conversation.outbox, self._line
        while len(outbox) + messages > MAX_UNACCEPTED and not line.over:
            if not line.may_read(True):
                raise LocalProtocolError(
                    f"{MAX_UNACCEPTED} messages are not accepted yet: receive events first"
                )
            await line.wait_until(
                lambda: len(outbox) + messages <= MAX_UNACCEPTED or not line.may_read(True)
            )

    async def _ask(self, request: WireRequest) -> Event | None:
        """Send a request and wait for its answer; None in the text protocol, without nonces."""
        conversation = self._conversation
        if self.voice is TEXT:
            await self._line.put(TEXT.spell_request(request))
            return None
        if isinstance(request, Direct):
            await self._wait_to_send(1)
        nonce, line = conversation.ask(request)
        try:
            self._check_length(line)
            with self._line.sending():
                await self._line.put_kept({nonce: (request, line)})
                await self._line.wait_until(
                    lambda: conversation.answers[nonce] is not None or not self._line.may_read(True)
                )
        finally:
            answer = conversation.take_answer(nonce)
        if answer is None and not self._line.over:
            raise LocalProtocolError("too much waits to be heard")
        if answer is None:
            raise self._line.lost()
        if isinstance(answer, Error):
            raise Refused(answer.code, answer.text)
        return answer

    def _check_length(self, line: str) -> None:
        """Raise `LocalProtocolError` for a line that the server would drop, and not answer."""
        if self.welcome is not None and 3 * len(line) > (limit := self.welcome.limits.line):
            excess = len(line.encode()) - limit
            if excess > 0:
                raise LocalProtocolError(
                    f"too long by {excess} bytes; the server takes lines of {limit}"
                )

    # --- A name that somebody else has ------------------------------------------------------------

    async def keep_name(self, name: str) -> None:
        """Try to be called *name* whenever it may be free; returns when that is of no use.

        For a program whose `rename` was refused because somebody has the name: it tries when that
        client has left or has another name, and now and then, because the client may be in another
        room.  It goes on for as long as we are called by our number, also after a reconnect to a
        server that has forgotten us.  A name that we get, or choose, is the one that is wanted from
        then on.  Success is told as a `Renamed` event.
        """
        conversation = self._conversation
        conversation.wanted_name = name
        pause = self._timeouts.name
        while not self._line.over:
            freed = conversation.name_releases
            with trio.move_on_after(pause):
                while conversation.name_releases == freed and not self._line.over:
                    await self._line.bell.wait()
            was_freed = conversation.name_releases != freed
            pause = _NAME_AGAIN_SECONDS if was_freed else self._timeouts.name
            if not conversation.is_unnamed:
                conversation.wanted_name = self.name
            elif self.connected:
                old = self.name
                told_lost = self._line.told_lost
                try:
                    await self.rename(conversation.wanted_name)
                except Refused as refused:
                    if refused.code != "name-taken":
                        return
                except ConnectionLost:
                    self._line.told_lost = told_lost  # the program was not told
                except LocalProtocolError:
                    pass  # the program does not receive: try again later
                else:
                    self._line.tell([Renamed(self.client, old, self.name)])

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
        while not self._line.heard and not self._line.over:
            await self._line.bell.wait()
        if self._line.heard:
            return self._line.take_heard()
        told_by_finish = self._line.finished and isinstance(self._line.failure, ConnectionLost)
        if self._line.failure is not None and not told_by_finish:
            self._line.told_lost = True
            raise self._line.failure
        if self._line.goodbye is None and not self._line.finished:
            raise self._line.lost()
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

    # --- The beginning and the end ----------------------------------------------------------------

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start the conversation in *nursery*; return when it is known which protocol is spoken.

        Raises `Refused`, `NoJson` if the server does not answer, `ConnectionLost`.  Called once, by
        `multichat.client.open_chat`, as are `leave` and `end`.
        """
        await self._line.begin(nursery)

    def check_admitted(self) -> None:
        """Raise `Refused` if the server wants a password and was told none, or a wrong one."""
        self._line.check_admitted()

    async def finish(self, *, end_line: str = TEXT.spell_request(Quit())) -> None:
        """Have what was said sent and accepted, then the end of input; wait for the server's.

        Waits until the server closes or nothing moves any more: over one connection after the
        other, until `ClientTimeouts.progress` seconds have brought no progress, or `delivery`
        seconds are over; when all is accepted, for `finish` seconds in which nothing comes.  Events
        go on arriving and MUST be iterated meanwhile by some task: time in which the program does
        not receive does not count.  In JSON we cannot reconnect after that: the others see at once
        that we have left.  Raises `ConnectionLost` if something that was said did not arrive, as
        far as can be known; `Refused` if the server has asked for a password meanwhile.

        Where a stream has no end of input of its own, as TLS has none, *end_line* asks the server
        to end; in JSON a request to quit does always.
        """
        await self._line.finish(end_line)

    async def leave(self, nursery: trio.Nursery) -> None:
        """Finish on behalf of a program that has stopped listening."""
        nursery.start_soon(self._discard_events)
        nobody_listens = self._line.goodbye is not None or (
            self._line.told_lost and not self.can_send
        )
        if not nobody_listens:
            await self.finish()

    async def _discard_events(self) -> None:
        while not self._line.over:
            while self._line.heard:
                self._line.take_heard()
            await self._line.wait_until(lambda: self._line.heard)

    async def end(self) -> None:
        """End it at once; that it is for good the server hears, if that needs no waiting."""
        await self._line.end()


def _sayable(text: str) -> str:
    text = clean(text)
    if not text:
        raise LocalProtocolError("an empty message cannot be said")
    return text
