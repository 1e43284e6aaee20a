"""`Chat`, the API of a client for programs, which works with any line-based server.

Calls return when their data is on its way; received lines become typed events, which wait for the
program in a bounded queue.  Sending and receiving do not wait for each other, so a server that
stops reading because the client does not read cannot deadlock with a program that sends without
receiving.

`multichat.client.requests` sends the requests and waits for their answers.
`multichat.client.reconnect` owns the connections, `multichat.client.session` the state of the
session, and `multichat.client.line_chat` the sending of typed lines.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import trio

from multichat.client.options import ChatOptions, check_count
from multichat.client.reconnect import Link, Redial
from multichat.client.requests import Requests
from multichat.errors import (
    ConnectionLost,
    LocalProtocolError,
    Refused,
    lone_exception,
)
from multichat.protocol.framing import clean
from multichat.protocol.messages import (
    HISTORY_MESSAGES,
    Accepted,
    Act,
    Announce,
    Ban,
    BanInfo,
    BanList,
    Bans,
    ChangePassphrase,
    Direct,
    Enter,
    Entered,
    Event,
    Exit,
    Exited,
    History,
    HistoryPage,
    Join,
    Kick,
    Login,
    Logout,
    MemberName,
    Members,
    Nonce,
    Register,
    Rename,
    Renamed,
    RoomList,
    Rooms,
    RoomSize,
    Say,
    SetTopic,
    TopicChanged,
    Unban,
    Welcome,
    Who,
)
from multichat.protocol.text_codec import TEXT

__all__ = ["Chat"]

# How long after the holder of a name has left we request the name: the server reserves it until
# about the time of the announcement.
_NAME_AGAIN_SECONDS = 1.0


class Chat:
    """A client in a chat; created by `multichat.client.connect.connect` or `open_chat`.

    Any number of tasks may call its methods; one task at a time may iterate.  Iteration yields
    typed events in the order in which the server sent them.  It ends when the server has sent a
    final goodbye or, after `finish`, has closed; otherwise it raises `ConnectionLost`, or another
    error with which the chat ended.  Responses to calls are not among the events.

    Made by `connect`, or by `open_chat` with *redial*, the chat reconnects when a connection is
    lost, or after a goodbye that allows it.  `Disconnected` and `Reconnected` are among the events,
    missed messages follow, and unanswered requests are sent again.  This works only in JSON, once
    there was a welcome, or from the start with *wait*.

    Properties are cheap and never wait; requests to the server are methods.
    """

    def __init__(
        self, stream: trio.abc.Stream, options: ChatOptions, *, redial: Redial | None = None
    ) -> None:
        self._link = Link(stream, options, redial)
        self._session = self._link.session
        self._requests = Requests(self._link)
        self._timeouts = options.timeouts
        self._events: deque[Event] = deque()  # of the read that is being iterated over

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Self]:
        """Run the chat while the block runs; the block begins when the server has answered.

        May be called once.  For exceptions and the end of the block see
        `multichat.client.connect.open_chat`.
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
        """Call `finish` for a program that no longer receives events."""
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
        """The reason of the server's goodbye, if that was the last event; otherwise None.

        Also None after a goodbye followed by a reconnect.
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
        """Our current room, the one that we entered last; empty in the text protocol."""
        return self._session.position.room

    @property
    def rooms(self) -> tuple[str, ...]:
        """The rooms that we are in, the current one last; empty in the text protocol."""
        return self._session.position.rooms

    @property
    def account(self) -> str:
        """The account that we are logged in to; empty if none."""
        return self._session.position.account

    @property
    def connected(self) -> bool:
        """Whether there is a connection that neither side has ended."""
        return self._link.connected and not self._link.connection.over

    @property
    def unaccepted(self) -> int:
        """How many messages were sent and not yet accepted; always 0 in the text protocol."""
        return self._session.outbox.messages

    # --- Messages ---------------------------------------------------------------------------------

    async def say(self, text: str, *, room: str | None = None) -> str:
        """Send *text* to *room*, by default the current one; wait until the server has accepted it.

        Returns the id of the message; in the text protocol, which has no acknowledgements, an empty
        string when the message is on its way, see `send`.  Control characters are replaced by
        pictures.  While there is no connection, it waits for the next one.

        Raises `LocalProtocolError` if the text is empty or too long, or if the queue of events is
        full before the response; `Refused` if the server does not accept it, as when we are not in
        *room*; `ConnectionLost` if there is no connection and will be none.  On cancellation, the
        message may have been sent.
        """
        return await self._say(Say(_sayable(text), _room(room)))

    async def act(self, text: str, *, room: str | None = None) -> str:
        """Send an action in the third person, shown as `* NAME TEXT`; see `say`."""
        return await self._say(Act(_sayable(text), _room(room)))

    async def _say(self, request: Say | Act) -> str:
        self._check_room(request.room)
        answer = await self._requests.ask(request)
        return (answer.id or "") if isinstance(answer, Accepted) else ""

    async def send(self, *texts: str, room: str | None = None) -> list[Nonce]:
        """Send *texts* as messages without waiting until the server has accepted them.

        They are sent together.  Returns when they are on their way: written to the system, queued
        for that, or waiting for the next connection.  While the server takes no more, or
        `MAX_UNACCEPTED` messages are unaccepted, it waits, at most for `ClientTimeouts.blocked`.

        Returns their nonces; none in the text protocol.  If the server does not accept a message,
        an `Error` with its nonce is among the events.  Raises the errors of `say` except `Refused`.
        On cancellation, messages that were still waiting have not been sent.
        """
        self._check_room(room)
        requests = [Say(_sayable(text), _room(room)) for text in texts]
        if self._session.codec is TEXT:
            await self._link.send_lines("\n".join(map(TEXT.encode_request, requests)))
            return []
        with self._link.sending():
            nonces = await self._requests.send_pieces(requests, typed=False)
            return [nonce for nonce in nonces if nonce is not None]

    def _check_room(self, room: str | None) -> None:
        """Raise `LocalProtocolError` for a *room* in the text protocol, which cannot name it."""
        if room is not None and self._session.codec is TEXT:
            raise LocalProtocolError("in the text protocol messages go to the current room")

    async def direct(self, to: str | int, text: str) -> None:
        """Send *text* as a private message to a client, by name or number.

        Returns when it is on its way to the recipient; in the text protocol, where numbers of
        clients are unknown, to the server.  Raises `Refused` if there is no such client, or it is
        too slow, and the errors of `say`.
        """
        if isinstance(to, str):
            to = clean(to)
            if self._session.codec is TEXT and len(to.split()) != 1:
                raise LocalProtocolError("a name is one word")
        await self._requests.ask(Direct(to, _sayable(text)))

    # --- Rooms ------------------------------------------------------------------------------------

    async def join(self, room: str) -> Entered | None:
        """Move to another room, and leave all others; raises `Refused`, `ConnectionLost`.

        Returns the new room with its number of members; None in the text protocol.  Later events
        are those of the new room.
        """
        answer = await self._requests.ask(Join(clean(room)))
        return answer if isinstance(answer, Entered) else None

    async def enter(self, room: str, *, since: str | None = None, replay: int = 0) -> Entered:
        """Enter *room* in addition to the others, and make it the current one.

        Its messages after the id *since*, or the last *replay* ones, are among the next events.
        Entering a room that we are in only makes it the current one.  Every event about a room says
        which one.

        Returns the room with its number of members.  Raises `LocalProtocolError` in the text
        protocol, which has one room at a time; `Refused` if the server does not allow it, or knows
        only one room; `ConnectionLost`.
        """
        check_count("replay", replay, 0)
        answer = await self._requests.ask(Enter(clean(room), since, replay))
        return self._requests.expect(Entered, answer, "several rooms")

    async def exit(self, room: str) -> Exited:
        """Leave *room*; the one entered last of the others becomes the current one.

        Raises `Refused` if we are not in it, or only in it, and the other errors of `enter`.
        """
        answer = await self._requests.ask(Exit(clean(room)))
        return self._requests.expect(Exited, answer, "several rooms")

    async def members(self, room: str | None = None) -> list[MemberName]:
        """Return the members of *room*, by default of the current room, including ourselves.

        Raises `LocalProtocolError` in the text protocol, whose response is only for people,
        `RemoteProtocolError` for an unexpected response, `Refused` and `ConnectionLost`.
        """
        return (await self._requests.ask_for(Members, Who(_room(room)), "list of members")).members

    async def list_rooms(self) -> list[RoomSize]:
        """Return all rooms of the server, with their sizes; raises the errors of `members`."""
        return (await self._requests.ask_for(RoomList, Rooms(), "list of rooms")).rooms

    async def history(
        self, limit: int = HISTORY_MESSAGES, *, before: str | None = None, room: str | None = None
    ) -> HistoryPage:
        """Return the last *limit* messages of *room*, or the last ones before the id *before*.

        The room is the current one by default.  The oldest message comes first.  The server limits
        the size of a page; `more` says whether there are older messages.  Raises
        `LocalProtocolError` if *limit* is less than 1 or not a whole number, and the errors of
        `members`.
        """
        check_count("the limit", limit, 1)
        request = History(limit, None if before is None else clean(before), _room(room))
        return await self._requests.ask_for(HistoryPage, request, "list of messages")

    async def topic(self, room: str | None = None) -> str:
        """Return the topic of *room*, by default of the current room; empty if it has none.

        Raises the errors of `members`.
        """
        request = SetTopic(room=_room(room))
        return (await self._requests.ask_for(TopicChanged, request, "topics")).text

    # --- Names and accounts -----------------------------------------------------------------------

    async def rename(self, name: str) -> None:
        """Change our name; raises `Refused` if the server does not allow it, `ConnectionLost`."""
        await self._requests.ask(Rename(clean(name)))

    async def register(self, passphrase: str) -> None:
        """Register our name as an account with this *passphrase*, and log in to it.

        Later connections log in again.  Raises `NotPrivate` if others could read the passphrase on
        its way, `Refused` if the server does not allow it, or if the connection is lost before the
        answer: a passphrase is never sent again.  In the text protocol it returns when the request
        is on its way.
        """
        await self._requests.ask(Register(passphrase))

    async def login(self, name: str, passphrase: str) -> None:
        """Log in to the account *name*, and take that name; see `register`."""
        await self._requests.ask(Login(clean(name), passphrase))

    async def logout(self) -> None:
        """Log out, and give up the name of the account; raises `Refused`, `ConnectionLost`."""
        await self._requests.ask(Logout())

    async def change_passphrase(self, passphrase: str) -> None:
        """Change the passphrase of our account, which ends its other sessions; see `register`."""
        await self._requests.ask(ChangePassphrase(passphrase))

    # --- For operators ----------------------------------------------------------------------------

    async def kick(self, who: str | int, reason: str = "") -> None:
        """Disconnect a client, by name or number; raises `Refused`, `ConnectionLost`."""
        await self._requests.ask(Kick(_who(who), clean(reason)))

    async def ban(self, what: str | int, time: str = "", reason: str = "") -> None:
        """Disconnect and keep out a name, an address or the client with that number.

        The ban lasts for *time*, such as `1h`; by default it is permanent.  Raises `Refused`,
        `ConnectionLost`.
        """
        await self._requests.ask(Ban(_who(what), clean(time), clean(reason)))

    async def unban(self, what: str) -> None:
        """Lift the ban on *what*; raises `Refused`, `ConnectionLost`."""
        await self._requests.ask(Unban(clean(what)))

    async def bans(self) -> list[BanInfo]:
        """Return the bans; raises the errors of `members`."""
        return (await self._requests.ask_for(BanList, Bans(), "list of bans")).bans

    async def announce(self, text: str) -> None:
        """Send *text* to everybody as the server; raises `Refused` and the errors of `say`."""
        await self._requests.ask(Announce(_sayable(text)))

    async def set_topic(self, text: str, *, room: str | None = None) -> None:
        """Set the topic of *room*, by default of the current room; empty for none.

        Raises `Refused`, `ConnectionLost`.
        """
        self._check_room(room)
        await self._requests.ask(SetTopic(clean(text), _room(room)))

    # --- Keeping a name ---------------------------------------------------------------------------

    async def keep_name(self, name: str) -> None:
        """Request *name* whenever it may be free; return when that is no longer useful.

        For a program whose `rename` was refused because another client has the name.  Requests it
        again when that client has left or changed its name, and at intervals, because the client
        may be in another room.  Continues while our name is the default one, even after a reconnect
        in a new session.  If we get or choose another name, that is requested from then on.
        Success is a `Renamed` event.
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
                    pass  # the program does not receive events: try again later
                else:
                    link.events.put([Renamed(self.client, old, self.name)])

    # --- Events -----------------------------------------------------------------------------------

    async def receive(self) -> list[Event]:
        """Wait for events, at most 1000 of one read; return an empty list when the chat has ended.

        Raises `ConnectionLost` if it ended without a goodbye and `finish` was not called; `Refused`
        or `ConnectFailed` if reconnecting failed for good.
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
        """Return the next event; no checkpoint between events of the same read."""
        if not self._events:
            self._events.extend(await self.receive())
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    # --- The end ----------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Wait until everything is accepted, send EOF, and wait for the server's EOF.

        Ends when the server closes.  Otherwise it gives up, across reconnects, after
        `ClientTimeouts.progress` seconds without progress or `delivery` seconds in all or, once
        everything is accepted, after `finish` seconds without input.  Events keep arriving, and
        some task MUST receive them: time in which the program does not receive does not count.
        In JSON the session ends too, so that other members see at once that we have left.

        Raises `ConnectionLost` if sent data did not arrive, as far as that is known; `Refused` if
        the server has required a password meanwhile.
        """
        await self._link.finish()


def _sayable(text: str) -> str:
    text = clean(text)
    if not text:
        raise LocalProtocolError("an empty message cannot be sent")
    return text


def _room(room: str | None) -> str | None:
    return None if room is None else clean(room)


def _who(who: str | int) -> str | int:
    return clean(who) if isinstance(who, str) else who
