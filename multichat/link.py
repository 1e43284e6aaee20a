"""A client's connection that has a voice, or is about to get one.

Owns what is settled anew with each connection: the hello, the password, which voice is spoken, and
what has to be said again when a welcome comes late.  What outlives a connection is `Chat`'s.
"""

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from multichat.connection import Bell, Connection
from multichat.errors import ConnectionLost, LineTooLong, Refused
from multichat.framing import Part
from multichat.handshake import WELCOME_BEGINS, Handshake
from multichat.messages import Event, Goodbye, Hello, Notice, Said, Welcome
from multichat.preamble import WRONG_PASSWORD, spell_password
from multichat.voices import TEXT, Voice, spell_hello

__all__ = ["HELLO_SECONDS", "LATE_WELCOME_SECONDS", "SILENCE_SECONDS", "Link"]

# Who does not answer the hello within this time does not speak JSON, or is far away.
HELLO_SECONDS = 1.0

# How long, after that, the end of input waits for a welcome: once it is sent nothing can be said
# again.
LATE_WELCOME_SECONDS = 2.0

# The same where nothing at all has come: that is a plain listener, which has read what it was sent
# by then, or a server that is late, which would refuse all of it when we have left.  As long as
# `who` and `send --room` wait.
SILENCE_SECONDS = 10.0

# A welcome that comes later than this is not taken for one, unless nothing came before it.
_FORGET_SECONDS = 10.0

# How long a server may take to refuse the next of what it could not read.
_REFUSING_SECONDS = 5.0

# Who has a password waits for a server that is far away to ask for it.
ASKING_SECONDS = 3.0

# Who was told a password is not given up on so soon: the server lets those wait from whose address
# wrong ones came.
PASSWORD_SECONDS = 30.0

# What is said before the welcome is hidden, as the past that we asked for repeats it.  Above this
# it is told after all: a server may send such lines for ever.
_MAX_EARLY = 10_000

# What an event, or a member in a list of them, takes in memory besides its text: an object and the
# strings in it.
_OBJECT_BYTES = 200


def _memory_of(run: str) -> int:
    """Return about how many bytes the events of *run* take: one a line, or one a JSON object."""
    return len(run) + _OBJECT_BYTES * (1 + run.count("\n") + run.count("{"))


class Link:
    """A conversation's connection over *stream*, which is not closed here.

    One task runs `connection.run`, once, and one calls `ask`, once.  *news* is called with each
    event in JSON and returns what the program is to hear of it, *tell* with what a read told and
    about how many bytes of memory that takes; *say_again* has `send_again` called.  For *may_read*
    and *bell* see `Connection`.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        hello: Hello,
        *,
        password: str | None,
        plain: bool,
        news: Callable[[Event], Event | None],
        tell: Callable[[list[Event], int], None],
        say_again: Callable[["Link"], None],
        may_read: Callable[[bool], bool],
        bell: Bell,
    ) -> None:
        self.stream = stream
        self.hello = hello
        self.handshake = Handshake(hello, plain=plain)
        self.connection = Connection(stream, hear=self._hear, may_read=may_read, bell=bell)
        self._password, self._plain = password, plain
        self._news, self._tell, self._say_again = news, tell, say_again
        self._bell = bell
        self._resending = False
        self._heard = False  # anything at all
        self._in_doubt = False  # something was said in text, which a late server would refuse
        self._unsaid = False  # and it has
        # What is said in the lobby before our hello is read is among the past that we ask for.
        self._asks_for_past = bool(hello.session or hello.replay)
        self._resumes = bool(hello.session)
        self._early: list[Event] = []
        self._forget_at = math.inf

    @property
    def voice(self) -> Voice:
        """The voice that is spoken now."""
        return self.handshake.voice

    @property
    def welcome(self) -> Welcome | None:
        """How the server greeted us; None in the text voice."""
        return self.handshake.welcome

    def _hear(self, parts: list[Part]) -> None:
        events: list[Event] = []
        size = 0
        if self._heard and trio.current_time() > self._forget_at:
            self.handshake.conclude()
            self._forget_at = math.inf
        if parts and not self._heard:
            self._heard = True
            first = parts[0]
            is_welcome = isinstance(first, str) and first.startswith(WELCOME_BEGINS)
            # Of more than can be remembered nothing is said again.
            self._unsaid = is_welcome and self._in_doubt and not self.handshake.unproven
        for part in parts:
            if isinstance(part, LineTooLong):
                events.append(Notice(str(part)))
            else:
                size += _memory_of(part)
                events += self._read(part)
        if self.handshake.resending and not self._resending:
            self._resending = True
            self._say_again(self)
        self._tell(events, size)

    def _read(self, run: str) -> list[Event]:
        welcomed = self.welcome is not None
        heard = self.handshake.hear(run)
        if self._asks_for_past and not welcomed and not self._speaks_text_for_good():
            count = len(heard)
            if self.welcome is not None:
                count = next(i for i, event in enumerate(heard) if isinstance(event, Welcome))
            self._early += [event for event in heard[:count] if not isinstance(event, Goodbye)]
            heard = [*(e for e in heard[:count] if isinstance(e, Goodbye)), *heard[count:]]
            if len(self._early) > _MAX_EARLY:
                self._asks_for_past = False
                heard, self._early = [*self._early, *heard], []
        if self.voice is TEXT:
            return heard
        if self.connection.ended:  # half a line: it comes whole by the next connection
            heard = [event for event in heard if not isinstance(event, Said) or event.id]
        return list(filter(None, map(self._news, heard)))

    def _speaks_text_for_good(self) -> bool:
        """Say whether no past comes any more: nobody has answered our hello, and none resumes."""
        return self.handshake.ready and not self._resumes

    async def put(self, run: str) -> None:
        """Send a run of lines in the voice that is spoken; see `Connection.put`."""
        in_text = self.voice is TEXT
        if in_text:
            self.handshake.sent(run)
            self._in_doubt = self._in_doubt or not self._plain
        try:
            await self.connection.put(run)
        except BaseException:
            if in_text:
                self.handshake.not_sent(run)
            raise

    # --- The beginning ----------------------------------------------------------------------------

    async def ask(self, seconds: float) -> None:
        """Say hello, and the password if the server wants it; wait *seconds* for the answer.

        Returns when there is one, or it is too late, or the connection is over.
        """
        shake = self.handshake
        if self._password is not None:
            seconds = max(seconds, ASKING_SECONDS)
        # Of a connection that is lost whoever receives will hear.
        with suppress(ConnectionLost):
            with trio.move_on_after(seconds):
                if not self._plain:
                    await self.connection.put(spell_hello(self.hello))
                if self._password is not None or not self._plain:
                    await self.connection.wait_until(self._is_answered)
            if shake.password_asked and self._password is not None:
                with trio.move_on_after(PASSWORD_SECONDS):
                    await self._say_password(self._password)

    def _is_answered(self) -> bool:
        shake = self.handshake
        return shake.password_asked or (shake.ready and not self._plain)

    async def _say_password(self, password: str) -> None:
        shake = self.handshake
        said = spell_password(password)
        await self.connection.put(said if self._plain else f"{said}\n{spell_hello(self.hello)}")
        await self.connection.wait_until(
            lambda: (
                shake.password_refused
                or (not shake.password_asked and (shake.ready or self._plain))
            )
        )

    def check_admitted(self, goodbye: str | None) -> None:
        """Raise `Refused` if the server wants a password and was not told the right one.

        *goodbye* is why it sent us away, if it did.
        """
        if self.handshake.password_refused:
            raise Refused("wrong-password", WRONG_PASSWORD)
        if self.handshake.password_asked:
            reason = "the server asks for a password (--password-file, MULTICHAT_PASSWORD)"
            raise Refused("password-required", goodbye or reason)

    def settle(self) -> None:
        """Speak JSON if the server has welcomed us, else text until it does."""
        shake = self.handshake
        if shake.welcome is not None:
            shake.forgive()
            return
        self._tell(self._early, 0)
        if not shake.ready:
            shake.give_up()
            self._forget_at = trio.current_time() + _FORGET_SECONDS

    # --- A welcome that comes late ----------------------------------------------------------------

    async def may_be_welcomed(self) -> bool:
        """Wait, before more is sent than could be sent again, for as long as a welcome may come.

        Returns at once where there is no such danger; says whether it came.
        """
        if not self.handshake.full:
            return False
        with trio.move_on_at(self._forget_at):
            await self.connection.wait_until(lambda: self.welcome)
        if self.welcome is None:
            self.handshake.conclude()
            return False
        await self.connection.wait_until(lambda: self.handshake.ready)
        return True

    async def wait_until_proven(self) -> None:
        """Wait for a late welcome as long as the end of input may."""
        if not self.handshake.unproven:
            return
        if not self._heard:
            with trio.move_on_after(SILENCE_SECONDS):
                await self.connection.wait_until(lambda: self._heard)
        if self._heard:  # what others say may come before the answer to a hello
            with trio.move_on_after(LATE_WELCOME_SECONDS):
                await self.connection.wait_until(lambda: not self.handshake.unproven)

    def check_heard(self) -> None:
        """Raise `ConnectionLost` if what was said was refused, or nobody knows; after the end.

        Who answers nothing and does not close either may be a server that has not read us yet, and
        then refuses what was meant as text.
        """
        if self._unsaid:
            raise ConnectionLost("the server answered too late, and has not heard what was said")
        if self._in_doubt and not self._heard and not self.connection.ended:
            raise ConnectionLost("no answer, and whether what was said was heard is not known")

    async def send_again(self, send: Callable[[str], Awaitable[object]]) -> None:
        """Send again what the server refuses for being no JSON; nothing new is sent before that.

        *send* sends a run of lines as if it had been typed.
        """
        shake = self.handshake
        try:
            while shake.resending and not self.connection.over:
                with trio.move_on_after(_REFUSING_SECONDS):
                    await self.connection.wait_until(lambda: shake.again)
                if not shake.again:
                    break
                run, shake.again = "\n".join(shake.again), []
                await send(run)
        except ConnectionLost:  # as who says more, or receives, will hear
            self._unsaid = True
        self._unsaid = self._unsaid or (shake.resending and self.connection.over)
        shake.forgive()
        self._bell.ring()
