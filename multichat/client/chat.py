"""Chat: a client as a program uses it, with any line-based server.

What is sent is on its way when a call returns; what the server sends becomes typed events, which
wait for the program in a bounded queue.  Neither waits for the other, so a server that stops
reading because we do not read, and a program that does not receive because it is sending, cannot
deadlock.

Owns the calls of a program.  Connections are `multichat.client.reconnect`'s, the state of the
session `multichat.client.session`'s; lines that people type, `multichat.client.line_chat`'s.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self, TypeVar

import trio

from multichat.client.options import ChatOptions
from multichat.client.outbox import Pending
from multichat.client.reconnect import Link, Redial
from multichat.errors import (
    ConnectionLost,
    LineTooLong,
    LocalProtocolError,
    Refused,
    RemoteProtocolError,
    lone_exception,
)
from multichat.protocol.framing import clean
from multichat.protocol.messages import (
    HISTORY_MESSAGES,
    MAX_UNACCEPTED,
    Accepted,
    Act,
    Direct,
    Entered,
    Error,
    Event,
    History,
    HistoryPage,
    Join,
    MemberName,
    Members,
    Nonce,
    Rename,
    Renamed,
    RoomList,
    Rooms,
    RoomSize,
    Say,
    Welcome,
    Who,
    WireRequest,
)
from multichat.protocol.text_codec import TEXT

__all__ = ["Chat"]

_Answer = TypeVar("_Answer", Members, RoomList, HistoryPage)

# After the holder of a name has left: the server keeps the name for it until about the moment in
# which it tells that.
_NAME_AGAIN_SECONDS = 1.0


class Chat:
    """A client in a chat; made by `multichat.client.connect.connect` or `open_chat`.

    Any number of tasks may call it, one at a time iterates.  Iteration gives typed events in the
    order in which the server sent them, and ends when the server has said a final goodbye or, after
    `finish`, has closed; it raises `ConnectionLost` if the chat ended otherwise, or whatever else
    it ended with.  Answers to calls are not among the events.

    With *redial* the chat continues over another connection when one is lost, or the server has
    said a goodbye after which clients may reconnect: `Disconnected` and `Reconnected` are among the
    events, what was missed meanwhile follows, and unanswered requests are sent again.  Only in
    JSON, once the server has welcomed us, or from the start with *wait*.

    Properties are cheap and never wait; what asks the server is a method.
    """

    def __init__(
        self, stream: trio.abc.Stream, options: ChatOptions, *, redial: Redial | None = None
    ) -> None:
        self._link = Link(stream, options, redial)
        self._session = self._link.session
        self._timeouts = options.timeouts
        self._events: deque[Event] = deque()  # of the read that is being iterated over

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Self]:
        """Run the chat while the block runs, which begins when the server has answered.

        For what is raised, and for the end of the block, see `multichat.client.connect.open_chat`.
        Called once.
        """
        with lone_exception():
            async with trio.open_nursery() as nursery:
                try:
                    await self._link.start(nursery)
                    yield self
                    await self._leave(nursery)
                finally:
                    await self._link.close()
                nursery.cancel_scope.cancel(reason="the chat was closed")

    async def _leave(self, nursery: trio.Nursery) -> None:
        """Finish for a program that does not receive any more."""
        nursery.start_soon(self._discard_events)
        link = self._link
        if link.goodbye is None and (link.can_send or not link.loss_reported):
            await self.finish()

    async def _discard_events(self) -> None:
        link = self._link
        while not link.over:
            while link.events:
                link.events.get()
            await link.wait_for(lambda: link.events)

    @property
    def goodbye(self) -> str | None:
        """The reason of the server's goodbye, if that was the last event.

        None after a goodbye that was followed, or will be, by another connection.
        """
        return None if self._link.goodbye is None else self._link.goodbye.reason

    @property
    def welcome(self) -> Welcome | None:
        """The server's last welcome; None in the text protocol."""
        return self._session.welcome

    @property
    def client(self) -> int:
        """Our number; 0 in the text protocol."""
        return self._session.position.client

    @property
    def name(self) -> str:
        """Our current name; empty in the text protocol."""
        return self._session.position.name

    @property
    def room(self) -> str:
        """Our current room; empty in the text protocol."""
        return self._session.position.room

    @property
    def connected(self) -> bool:
        """Whether there is a connection, which neither side has ended."""
        return self._link.connected and not self._link.connection.over

    @property
    def unaccepted(self) -> int:
        """How many messages were sent and not yet accepted; always 0 in the text protocol."""
        return self._session.outbox.messages

    # --- Messages ---------------------------------------------------------------------------------

    async def say(self, text: str) -> str:
        """Say *text* in our room; wait until the server has accepted it.

        Returns the id of the message.  In the text protocol nothing is accepted: returns an empty
        string when the message is on its way, as `send` does.  Control characters are replaced by
        pictures.  While there is no connection it waits for the next one.

        Raises `LocalProtocolError` if the text is empty or too long, or if the answer stands behind
        more events than may wait for the program; `Refused` if the server does not accept it;
        `ConnectionLost` if there is no connection and will be none.  Cancelled, the message may
        have been said.
        """
        return await self._say(Say(_sayable(text)))

    async def act(self, text: str) -> str:
        """Say in the third person what we do, as `* NAME TEXT`; see `say`."""
        return await self._say(Act(_sayable(text)))

    async def _say(self, request: Say | Act) -> str:
        answer = await self._ask(request)
        return (answer.id or "") if isinstance(answer, Accepted) else ""

    async def send(self, *texts: str) -> list[Nonce]:
        """Say each of *texts* without waiting for the server to accept them: for many messages.

        They are sent in one piece.  Returns when they are on their way: handed to the system, or to
        the task that does so next, or waiting for the next connection.  Waits while the server does
        not take more, or has not accepted `MAX_UNACCEPTED` messages of ours, for as long as that
        takes or `ClientTimeouts.blocked` says.

        Returns their nonces; none in the text protocol.  A message that the server does not accept
        is an `Error` with its nonce among the events.  Raises as `say` does, but not `Refused`.
        Cancelled, what has waited was not said.
        """
        requests = [Say(_sayable(text)) for text in texts]
        if self._session.codec is TEXT:
            await self._link.send_lines("\n".join(map(TEXT.encode_request, requests)))
            return []
        with self._link.sending():
            nonces = await self._send_pieces(requests, typed=False)
            return [nonce for nonce in nonces if nonce is not None]

    async def direct(self, to: str | int, text: str) -> None:
        """Say *text* to one person alone: a name, or a client's number.

        Returns when it is on its way to that person; in the text protocol, to the server, where
        people have no numbers that we know of.  Raises `Refused` if there is nobody, or nobody who
        takes it, and as `say` does.
        """
        if isinstance(to, str):
            to = clean(to)
            if self._session.codec is TEXT and len(to.split()) != 1:
                raise LocalProtocolError("a name is one word")
        await self._ask(Direct(to, _sayable(text)))

    # --- Requests ---------------------------------------------------------------------------------

    async def rename(self, name: str) -> None:
        """Change our name; raises `Refused` if the server does not allow it, `ConnectionLost`."""
        await self._ask(Rename(clean(name)))

    async def join(self, room: str) -> Entered | None:
        """Leave our room for another; raises `Refused` if that cannot be, `ConnectionLost`.

        Returns the room that we are in, with its number of members; None in the text protocol.
        Events that come after it returns are those of the new room.
        """
        answer = await self._ask(Join(clean(room)))
        return answer if isinstance(answer, Entered) else None

    async def members(self, room: str | None = None) -> list[MemberName]:
        """Ask who is in *room*, or in ours, ourselves among them.

        Raises `LocalProtocolError` in the text protocol, whose answer is for people,
        `RemoteProtocolError` if the server answers with something else, `Refused` and
        `ConnectionLost`.
        """
        request = Who(None if room is None else clean(room))
        return (await self._ask_for(Members, request, "members")).members

    async def rooms(self) -> list[RoomSize]:
        """Ask which rooms there are; raises as `members` does."""
        return (await self._ask_for(RoomList, Rooms(), "rooms")).rooms

    async def history(
        self, limit: int = HISTORY_MESSAGES, *, before: str | None = None
    ) -> HistoryPage:
        """Ask for the last *limit* messages of our room, or the last *before* that id.

        The oldest comes first; a server limits how many it returns at a time, and `more` says
        whether there are older ones.  Raises as `members` does.
        """
        return await self._ask_for(HistoryPage, History(limit, before), "messages")

    async def keep_name(self, name: str) -> None:
        """Ask for *name* whenever it may be free; returns when that is of no use any more.

        For a program whose `rename` was refused because another client has the name: it asks again
        when that client has left or has another name, and now and then, because the client may be
        in another room.  It goes on for as long as our name is the default one, also after a
        reconnect to a server that has forgotten us.  A name that we get, or choose, is the one that
        is kept from then on.  Success is a `Renamed` event.
        """
        session, link = self._session, self._link
        session.wanted_name = name
        pause = self._timeouts.name
        while not link.over:
            releases = session.name_releases
            with trio.move_on_after(pause):
                while session.name_releases == releases and not link.over:
                    await link.changed.wait()
            was_released = session.name_releases != releases
            pause = _NAME_AGAIN_SECONDS if was_released else self._timeouts.name
            if not session.position.is_unnamed:
                session.wanted_name = self.name
            elif self.connected:
                old = self.name
                loss_reported = link.loss_reported
                try:
                    await self.rename(session.wanted_name)
                except Refused as refused:
                    if refused.code != "name-taken":
                        return
                except ConnectionLost:
                    link.loss_reported = loss_reported  # not to the program
                except LocalProtocolError:
                    pass  # the program does not receive: try again later
                else:
                    link.events.put([Renamed(self.client, old, self.name)])

    async def _ask_for(self, kind: type[_Answer], request: WireRequest, what: str) -> _Answer:
        answer = await self._ask(request)
        if isinstance(answer, kind):
            return answer
        if self.goodbye is not None:
            raise ConnectionLost(self.goodbye)
        if self._link.over:
            raise self._link.lost()
        if answer is None:
            raise LocalProtocolError(f"the text protocol has no list of {what}")
        tag = type(answer).__struct_config__.tag
        expected = kind.__struct_config__.tag
        raise RemoteProtocolError(f"the server answered with `{tag}` instead of `{expected}`")

    async def _ask(self, request: WireRequest) -> Event | None:
        """Send a request and wait for its answer; None in the text protocol, without nonces."""
        session, link = self._session, self._link
        if session.codec is TEXT:
            await link.send_lines(TEXT.encode_request(request))
            return None
        with link.sending():
            if isinstance(request, Say | Act | Direct):
                await self._wait_to_send(1)
            pending = session.encode(request)
            self._check_length(pending.line)
            session.answers[pending.nonce] = None
            try:
                await link.send_requests([pending])
                await link.wait_for(
                    lambda: (
                        session.answers[pending.nonce] is not None
                        or not link.events.has_room(awaited=True)
                    )
                )
            finally:
                answer = session.take_answer(pending.nonce)
        if answer is None and not link.over:
            raise LocalProtocolError("too many events wait to be received")
        if answer is None:
            raise link.lost()
        if isinstance(answer, Error):
            raise Refused(answer.code, answer.text)
        return answer

    async def _send_pieces(
        self, requests: Sequence[WireRequest], *, typed: bool
    ) -> list[Nonce | None]:
        """Send requests, as many at a time as may be unanswered; return their nonces.

        One that is too long is an exception or, where it was *typed*, left out, with None for its
        nonce and an `Error` among the events.
        """
        nonces: list[Nonce | None] = []
        for start in range(0, len(requests), MAX_UNACCEPTED):
            piece = requests[start : start + MAX_UNACCEPTED]
            await self._wait_to_send(len(piece))
            encoded: list[Pending] = []
            for request in piece:
                pending = self._session.encode(request)
                try:
                    self._check_length(pending.line)
                except LocalProtocolError as error:
                    if not typed:
                        raise
                    self._link.events.put([Error(LineTooLong.code, str(error))])
                    nonces.append(None)
                else:
                    encoded.append(pending)
                    nonces.append(pending.nonce)
            if encoded:
                await self._link.send_requests(encoded)
        return nonces

    async def _wait_to_send(self, count: int) -> None:
        """Wait until so many more requests may be unanswered.

        Raises `LocalProtocolError` where that cannot come about: the answers stand behind events
        that the program does not receive.
        """
        outbox, link = self._session.outbox, self._link

        def may_send() -> bool:
            return len(outbox) + count <= MAX_UNACCEPTED or link.over

        if not may_send():
            await link.wait_for(lambda: may_send() or not link.events.has_room(awaited=True))
            if not may_send():
                raise LocalProtocolError(
                    f"{MAX_UNACCEPTED} messages are unacknowledged: receive events first"
                )

    def _check_length(self, line: str) -> None:
        """Raise `LocalProtocolError` for a line that the server would drop, and not answer."""
        if self.welcome is not None and 3 * len(line) > (limit := self.welcome.limits.line):
            excess = len(line.encode()) - limit
            if excess > 0:
                raise LocalProtocolError(
                    f"too long by {excess} bytes; the server takes lines of {limit}"
                )

    # --- Events -----------------------------------------------------------------------------------

    async def receive(self) -> list[Event]:
        """Wait for at most 1000 events of one read; an empty list when the chat is over.

        Raises `ConnectionLost` if it ended without a goodbye and `finish` was not called; after a
        connection was lost, `Refused` or `ConnectFailed` if there can be no other.
        """
        link = self._link
        await trio.lowlevel.checkpoint()
        if self._events:
            events = list(self._events)
            self._events.clear()
            return events
        while not link.events and not link.over:
            await link.changed.wait()
        if link.events:
            return link.events.get()
        raised_by_finish = link.finished and isinstance(link.failure, ConnectionLost)
        if link.failure is not None and not raised_by_finish:
            link.loss_reported = True
            raise link.failure
        if link.goodbye is None and not link.finished:
            raise link.lost()
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

    # --- The end ----------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Have what was sent accepted, then send the end of input; wait for the server's.

        Waits until the server closes or there is no more progress: over one connection after the
        other, until `ClientTimeouts.progress` seconds have brought no progress, or `delivery`
        seconds are over; when all is accepted, for `finish` seconds in which nothing comes.  Events
        go on arriving and MUST be received meanwhile by some task: time in which the program does
        not receive does not count.  In JSON we cannot reconnect after that: the others see at once
        that we have left.

        Raises `ConnectionLost` if something that was sent did not arrive, as far as can be known;
        `Refused` if the server has asked for a password meanwhile.
        """
        await self._link.finish()


def _sayable(text: str) -> str:
    text = clean(text)
    if not text:
        raise LocalProtocolError("an empty message cannot be sent")
    return text
