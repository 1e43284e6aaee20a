"""What a chat holds with a server: one connection after the other, and what outlives them.

Owns who we are and where, what was asked and not answered, and the way back.  Knows nothing of the
program: that is `Chat`.  Invariants:

1. What is asked in JSON stands in the outbox until it is answered.  A new connection begins with
   all of it, in order, each with the nonce that it had; nothing new goes before.
2. Of a room nothing is handed on twice, nor is anything left out without a `Missed` or an `Error`.
"""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from multichat.comeback import Backoff, Place, may_return
from multichat.connection import Bell
from multichat.errors import ConnectFailed, ConnectionLost, MultichatError, Refused
from multichat.link import Link
from multichat.messages import (
    Accepted,
    Disconnected,
    Error,
    Event,
    Goodbye,
    Hello,
    Join,
    Joined,
    Nonce,
    Quit,
    Reconnected,
    Rename,
    Renamed,
    Said,
    Welcome,
    WireRequest,
)
from multichat.names import fold_name
from multichat.outbox import Outbox
from multichat.voices import JSON, TEXT, Voice

__all__ = ["FINISH_AWAY_SECONDS", "Conversation", "Redial"]

# Who has welcomed us before speaks JSON; it may have much to do when all come back at once.
_WELCOME_AGAIN_SECONDS = 10.0

# How long the end waits, without a connection or with one by which nothing is accepted, for what
# was said to be accepted: a machine that starts anew is back by then, and a job that is run by
# nobody does not hang for ever.
FINISH_AWAY_SECONDS = 120.0

Redial = Callable[[], Awaitable[trio.abc.Stream]]
"""Connects to the same server once more; raises `ConnectFailed`."""


class Conversation:
    """With whoever is at the other end of *stream*, and of those that *redial* returns.

    Begins with *hello*, whose answer is waited for *hello_seconds*; for *password*, *plain* and
    *wait* see `multichat.client.open_chat`.  *tell* is called with what a read told and about
    how many bytes of memory that takes, *sort* with each event in JSON, and whether it answers
    something of ours: it returns what the program is to hear of it.  *send_typed* sends a run of
    lines as if it had been typed.  For *may_read* see `Connection`.

    *goodbye* is whoever *tell*s to set.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        hello: Hello,
        *,
        password: str | None,
        plain: bool,
        hello_seconds: float,
        redial: Redial | None,
        wait: bool,
        tell: Callable[[list[Event], int], None],
        sort: Callable[[Event, bool], Event | None],
        send_typed: Callable[[str], Awaitable[object]],
        may_read: Callable[[bool], bool],
    ) -> None:
        self.goodbye: str | None = None
        self.welcome: Welcome | None = None
        self.failure: MultichatError | None = None  # with which it ended
        self.finished = False  # by us, or about to be
        self.told_lost = False  # somebody has been told that nobody is there any more
        self.place = Place()
        self.outbox = Outbox()
        self.bell = Bell()
        self._first_hello, self._hello_seconds = hello, hello_seconds
        self._password, self._plain = password, plain
        self._redial, self._wait = redial, wait
        self._tell, self._sort, self._send_typed = tell, sort, send_typed
        self._may_read = may_read
        self._backoff = Backoff(random.random)
        self._quit_nonce: Nonce | None = None
        self._progress_at = 0.0  # when something was answered last
        # Of the connection that there is, or was: whether what we say goes there.
        self.link = self._make_link(stream, hello)
        self._connected = True
        self._connected_at = 0.0
        self._sent_away = ""  # why, by a server that may be called again
        self._failures = 0  # to connect, since then
        self._unsure = 0  # messages of which nobody knows whether they were said
        self._begun = self._ended = False
        self._nursery: trio.Nursery
        self._tasks = trio.CancelScope(shield=True)  # until our end has been said

    def _make_link(self, stream: trio.abc.Stream, hello: Hello) -> Link:
        return Link(
            stream,
            hello,
            password=self._password,
            plain=self._plain,
            news=self._news,
            tell=self._tell_rest,
            say_again=self._say_again,
            may_read=self._may_read,
            bell=self.bell,
        )

    @property
    def voice(self) -> Voice:
        """The voice that is spoken now."""
        return JSON if self.welcome is not None else TEXT

    @property
    def connected(self) -> bool:
        """Whether there is a connection, by which both sides can be heard."""
        return self._connected and not self.link.connection.over

    @property
    def can_send(self) -> bool:
        """Whether what is said may still arrive: nothing has failed and `finish` was not called."""
        if self.failure is not None:
            return False
        return self.link.connection.can_send or (self._returns and not self.finished)

    @property
    def _returns(self) -> bool:
        """Whether a connection that is lost now is followed by another."""
        return (
            self._redial is not None
            and bool(self.place.session or (self._wait and not self._begun))
            and self.goodbye is None
            and self.failure is None
            and not self._ended
            and not (self.finished and not self.outbox)
        )

    @property
    def over(self) -> bool:
        """Whether nothing more will be heard."""
        return self._ended or (self.link.connection.over and not self._returns)

    def lost(self) -> ConnectionLost:
        """Return, for somebody to be told, the exception that says why nobody is there any more."""
        self.told_lost = True
        return self.link.connection.lost()

    async def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds or the conversation is over; meanwhile reading goes on."""
        await self.bell.wait_until(lambda: self.over or condition())

    # --- Asking and hearing -----------------------------------------------------------------------

    async def wait_until_ready(self) -> None:
        """Wait until it is known which voice is spoken."""
        if not self._is_ready():
            await self.wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        return self.link.handshake.ready or not self._connected

    def _say_again(self, link: Link) -> None:
        self._nursery.start_soon(link.send_again, self._send_typed)

    async def put_kept(self, lines: dict[int, tuple[WireRequest, str]]) -> None:
        """Send, and keep until they are answered, requests that were numbered."""
        await trio.lowlevel.checkpoint_if_cancelled()
        for nonce, (request, line) in lines.items():
            self.outbox.keep(nonce, request, line, self.place.room)
        link = self.link
        try:
            if self._connected:
                await link.put("\n".join(line for _, line in lines.values()))
            elif not self._returns or self.finished:
                raise self.lost()  # noqa: TRY301
            else:  # they go first where we are connected again
                await trio.lowlevel.cancel_shielded_checkpoint()
        except ConnectionLost:
            if not self._returns or self.finished:
                self.outbox.take_back(lines)
                self.told_lost = True
                raise
        except BaseException:
            if link is self.link:  # else they are on their way by the next one
                self.outbox.take_back(lines)
            raise

    async def put(self, run: str) -> None:
        """Send lines that nothing answers; raises `ConnectionLost`."""
        if not self._connected:
            await self.wait_until(lambda: self._connected)
        try:
            await self.link.put(run)
        except ConnectionLost:
            self.told_lost = True
            raise

    def _news(self, event: Event) -> Event | None:
        """Take what an event tells about ourselves; return what the program is to hear of it."""
        kept = self.outbox.settle(event.nonce)
        if kept is not None:
            self._progress_at = trio.current_time()
            self.bell.ring()
        match event:
            case Accepted(id=str(id_)) if kept is not None:
                self.place.accepted(id_, kept.room)
            case Said() if not self.place.hear(event):
                return None
            case Welcome():
                return self._welcomed(event)
            case Renamed():
                self.place.renamed(event)
            case Joined():
                self.place.joined(event)
            case Error(code="unknown-id", nonce=None):
                self.place.begin_anew()
                return Error(event.code, "what was said here meanwhile is not known any more")
            case Goodbye(nonce=nonce) if nonce is not None and nonce == self._quit_nonce:
                return None
        return self._sort(event, kept is not None)

    def _tell_rest(self, events: list[Event], characters: int) -> None:
        """Tell the program what a read told, but for a goodbye that is none: we come back."""
        last = events[-1] if events else None
        if isinstance(last, Goodbye) and self._returns and may_return(last.reason):
            self._sent_away = last.reason
            events = events[:-1]
        self._tell(events, characters)

    def _welcomed(self, welcome: Welcome) -> Event | None:
        came_back = bool(self.place.session)
        self.welcome = welcome
        self.place.welcomed(welcome)
        if not came_back:
            return welcome if self.link.handshake.late else None
        unsure, self._unsure = self._unsure + self.outbox.forget_unsure(), 0
        return Reconnected(welcome.resumed, len(self.outbox), unsure)

    # --- One connection after the other -----------------------------------------------------------

    async def _run(self) -> None:
        """Hold one connection after the other until the conversation is over, or cancelled."""
        try:
            with self._tasks:
                async with trio.open_nursery() as self._nursery:
                    await self._hold(self.link)
                    while self._returns:
                        await self._dial_again()
                        if self._returns:
                            await self._hold(self.link)
                    self._nursery.cancel_scope.cancel(reason="the conversation is over")
        finally:
            self._ended = True
            self.bell.ring()

    async def _hold(self, link: Link) -> None:
        """Hold one connection, from its hello on, until it is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.connection.run)
            try:
                await (self._greet_again(link) if self.place.session else self._greet(link))
            except (Refused, ConnectionLost) as error:
                self.failure = error
                self.bell.ring()
            while self.failure is None and not link.connection.over:
                await self.bell.wait()
            if self.failure is not None or self._returns:  # nobody reads what we would say there
                link.connection.abort("the conversation is over")
                await trio.aclose_forcefully(link.stream)

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
            await self.put(TEXT.spell_request(Rename(hello.name)))
        if self._plain and hello.room is not None:
            await self.put(TEXT.spell_request(Join(hello.room)))
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
        if refusals and fold_name(self.place.room) != fold_name(link.hello.room or ""):
            # What was meant for a room is said nowhere else.
            raise Refused(refusals[0].code, refusals[0].text)
        self._tell(list(refusals), 0)  # of a name that somebody else has now
        self._note_connected()
        if lines := self.outbox.again():
            with suppress(ConnectionLost):  # then they go by the next one
                await link.connection.put("\n".join(lines))

    def _note_connected(self) -> None:
        self._connected, self._connected_at, self._failures = True, trio.current_time(), 0
        self.bell.ring()

    async def _dial_again(self) -> None:
        """Wait and dial until there is a connection, or no use in it."""
        link = self.link
        reason = self._sent_away or link.connection.lost().reason
        if self._connected:
            self._backoff.held(trio.current_time() - self._connected_at)
        self._connected, self._sent_away = False, ""
        while self._returns:
            seconds = self._backoff.next_seconds()
            self._tell([Disconnected(reason, seconds, self._failures)], 0)
            self._failures += 1
            await trio.sleep(seconds)
            try:
                stream = await self._redial()  # type: ignore[misc]  # or we would not return
            except ConnectFailed as error:
                reason = error.reason
                if error.lasting:
                    self.failure = error
                continue
            self._unsure += link.handshake.unsaid
            hello = self.place.hello() if self.place.session else self._first_hello
            self.link = self._make_link(stream, hello)
            return

    # --- The beginning and the end ----------------------------------------------------------------

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start the conversation in *nursery*; return when the other side has answered, or has not.

        Raises `Refused`.  Called once, by `multichat.client.open_chat`, as are `leave` and `end`.
        """
        nursery.start_soon(self._run)
        await self.bell.wait_until(lambda: self._begun or self.failure or self._ended)
        if not self._begun:
            raise self.failure or self.lost()

    async def finish(self) -> None:
        """Have all answered, then end it, and wait for the other side's end; see `Chat.finish`."""
        self.finished = True
        self.bell.ring()  # there may be nothing to come back for
        self.link.check_admitted(self.goodbye)
        await self.link.wait_until_proven()
        self._progress_at = trio.current_time()
        try:
            await self._finish()
        except ConnectionLost:
            if self.voice is JSON and not self.outbox and self.link.handshake.ready:
                return  # all was accepted, and how it ended does not matter
            self.told_lost = True
            self.link.check_admitted(self.goodbye)  # which may be known only now
            raise
        self.link.check_admitted(self.goodbye)
        try:
            self.link.check_heard()
        except ConnectionLost:
            self.told_lost = True
            raise

    async def _finish(self) -> None:
        tried: Link | None = None
        while True:
            if self._connected and self.link is not tried:
                tried = self.link
                try:
                    await self._finish_link(tried)
                except ConnectionLost:
                    if not self._returns:
                        raise
                else:
                    return
            if not self._returns:
                break
            with trio.move_on_at(self._progress_at + FINISH_AWAY_SECONDS) as patience:
                await self.wait_until(partial(self._has_another, tried))
            if patience.cancelled_caught:
                self._tasks.cancel(reason="what was said is not accepted")
                break
        if self.outbox:
            raise self.failure or self.lost()

    def _has_another(self, link: Link | None) -> bool:
        return self._connected and self.link is not link

    async def _finish_link(self, link: Link) -> None:
        """Have all answered, and end the connection; raises `ConnectionLost`."""
        self._quit_nonce, last_line = self.outbox.number(Quit())
        await link.connection.finish(
            lambda: link.handshake.ready and not self.outbox,
            last_line if self.voice is JSON else "",
            end_line=TEXT.spell_request(Quit()),
        )

    async def end(self) -> None:
        """End the conversation at once; that it is for good the server hears if nobody waits."""
        connection = self.link.connection
        if self.voice is JSON and self.connected and not connection.waiting_bytes:
            connection.offer(JSON.spell_request(Quit()))
        self._tasks.cancel(reason="the chat was closed")
        await trio.aclose_forcefully(self.link.stream)
