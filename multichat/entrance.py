"""Who may come in: what stands between an accepted connection and its session.

Everything here is in the connection's own task and under a deadline: the TLS handshake, the
password, and the words for those who are sent away.  So the accept loop waits for nobody.

Invariants:

1. At most `MAX_AT_THE_DOOR` connections are neither in nor gone; of more, the oldest has to go of
   those from the address from which most come.
2. Nothing but the password is listened to before it was said, and nothing is told but that.
3. What a password, or a try at one, was is in no log, no error and no exception.
"""

import hashlib
import hmac
import ssl
import unicodedata
from collections import Counter
from collections.abc import Awaitable, Hashable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

import trio

from multichat import transport
from multichat.bans import network_of
from multichat.config import MAX_PASSWORD_CHARACTERS, ServerConfig
from multichat.errors import LineTooLong
from multichat.framing import LineDecoder, Part, clean
from multichat.limits import Attempts
from multichat.messages import SHUTTING_DOWN, Event, Goodbye, Notice
from multichat.preamble import (
    HTTP_ANSWER,
    PASSWORD_ACCEPTED,
    PASSWORD_REQUIRED,
    SPEAKS_NO_TLS,
    SPEAKS_TLS,
    TOO_MANY_FROM_ADDRESS,
    WRONG_PASSWORD,
    looks_like_http,
    looks_like_tls,
    read_password,
)
from multichat.voices import TEXT

__all__ = ["Entrance", "Greeted", "TurnedAway"]

T = TypeVar("T")

# Handshakes under way, people typing a password, and refusals being read, at any moment.  An honest
# handshake takes milliseconds, so that a flood of others would have to be of thousands a second to
# push it out.
MAX_AT_THE_DOOR = 256

MAX_TRIES = 3

# What may be said before the password: a hello, and what somebody pastes who has not looked.
_MAX_STRAY_LINES = 16

_READ_BYTES = 4096

_LEFT_WITHOUT = "it left without a password"

# With which whoever speaks TLS begins.
_TLS_RECORD = b"\x16"


class TurnedAway(Exception):
    """Somebody cannot come in; *reason* is for the log, *last_words* are what it is told."""

    def __init__(self, reason: str, last_words: bytes = b"") -> None:
        super().__init__(reason)
        self.reason, self.last_words = reason, last_words

    @classmethod
    def politely(cls, reason: str) -> "TurnedAway":
        """Make it of a reason that is for both."""
        return cls(reason, TEXT.spell(Goodbye(reason)))


class Greeted:
    """A connection that may come in: its stream, and what was read from it already."""

    def __init__(self, stream: trio.abc.Stream, decoder: LineDecoder, parts: list[Part]) -> None:
        self.stream, self.decoder, self.parts = stream, decoder, parts


class Entrance:
    """The door of one server."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._at_the_door: dict[trio.CancelScope, Hashable] = {}  # and where each comes from
        self._closed = ""
        self._connections: Counter[Hashable] = Counter()
        self._attempts = Attempts(config.timeouts)
        self._key = None if config.password is None else _digest(clean(config.password))

    @contextmanager
    def counted(self, address: str) -> Iterator[str]:
        """Count a connection from *address* while the block runs.

        Yields why that is one too many, if it is.
        """
        limit = self._config.max_clients_per_address
        place = None if limit is None else network_of(address)
        if limit is None or place is None:  # a Unix socket, or memory
            yield ""
            return
        self._connections[place] += 1
        try:
            too_many = self._connections[place] > limit
            yield f"{TOO_MANY_FROM_ADDRESS} (at most {limit})" if too_many else ""
        finally:
            self._connections[place] -= 1
            if not self._connections[place]:
                del self._connections[place]

    def at_the_door(self, address: str) -> "_AtTheDoor":
        """Be one of those who are not in yet while the block runs; raises `TurnedAway`."""
        return _AtTheDoor(self, network_of(address))

    def add_waiting(self, scope: trio.CancelScope, place: Hashable) -> None:
        """Add *scope* to the clients that wait; for `_AtTheDoor` alone, as are the next two."""
        self._check_open()
        if len(self._at_the_door) >= MAX_AT_THE_DOOR:
            self._make_room()
        self._at_the_door[scope] = place

    def remove_waiting(self, scope: trio.CancelScope) -> None:
        """Remove *scope* from the clients that wait."""
        self._at_the_door.pop(scope, None)

    def check(self, scope: trio.CancelScope) -> None:
        """Raise `TurnedAway` if it was cancelled."""
        if scope.cancelled_caught:
            self._check_open()
            raise TurnedAway("too many others wait to come in")

    def _check_open(self) -> None:
        if self._closed:
            raise TurnedAway(self._closed)

    def _make_room(self) -> None:
        """Send away the oldest of those who are from where most are."""
        [(crowd, _)] = Counter(self._at_the_door.values()).most_common(1)
        oldest = next(scope for scope, place in self._at_the_door.items() if place == crowd)
        del self._at_the_door[oldest]
        oldest.cancel(reason="somebody newer is at the door")

    def close(self) -> None:
        """Send away who is not in yet, and whoever comes."""
        self._closed = SHUTTING_DOWN
        for scope in list(self._at_the_door):
            scope.cancel(reason=self._closed)

    async def shake_hands(
        self, stream: trio.abc.Stream, context: ssl.SSLContext
    ) -> trio.abc.Stream:
        """Return the encrypted stream over *stream*; raises `TurnedAway`."""
        linger_seconds = self._config.timeouts.linger
        encrypted = transport.encrypt(stream, context, linger_seconds=linger_seconds)
        try:
            with trio.move_on_after(self._config.handshake_seconds) as in_time:
                # A line of a word is shorter than what TLS waits for.
                if await transport.peek(stream) not in (b"", _TLS_RECORD):
                    raise _plain_on_tls()
                await encrypted.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if transport.is_no_tls(error):
                raise _plain_on_tls() from None
            if isinstance(error.__cause__, ssl.SSLEOFError):  # mostly without a word why
                raise TurnedAway("it broke off the TLS handshake: does it trust us?") from None
            raise TurnedAway(transport.reason_of(error)) from None
        if in_time.cancelled_caught:
            raise TurnedAway(f"no TLS handshake in {self._config.handshake_seconds:g} s")
        return encrypted

    @property
    def asks_password(self) -> bool:
        """Whether one has to be said."""
        return self._key is not None

    async def ask_password(self, stream: trio.abc.Stream, address: str) -> Greeted:
        """Return once the password was said, with what came behind it; raises `TurnedAway`.

        Waits for what is said for `auth_seconds` in all; the delay of wrong ones does not count.
        """
        decoder = LineDecoder(self._config.max_line_bytes)
        asking = _Asking(self._config.auth_seconds, stream, decoder)
        await asking.tell(Notice(PASSWORD_REQUIRED))
        place = network_of(address)
        tries = strays = 0
        while strays < _MAX_STRAY_LINES:
            try:
                password = await asking.hear()
            except TurnedAway as refusal:
                if tries:
                    raise TurnedAway("wrong password", refusal.last_words) from None
                raise
            if password is None:
                strays += 1
                await asking.tell(Notice(PASSWORD_REQUIRED))
            elif await self._is_right(password, place):
                await asking.tell(Notice(PASSWORD_ACCEPTED))
                return Greeted(stream, decoder, asking.rest())
            else:
                tries += 1
                if tries == MAX_TRIES:
                    raise TurnedAway.politely(WRONG_PASSWORD)
                await asking.tell(Notice(WRONG_PASSWORD))
        raise TurnedAway.politely(PASSWORD_REQUIRED)

    async def _is_right(self, password: str, place: Hashable) -> bool:
        """Say whether that is it, no sooner than those from there may try again."""
        assert self._key is not None  # noqa: S101 - else nobody is asked
        if place is None:  # by a Unix socket, whose permissions say who may try
            return hmac.compare_digest(_digest(password), self._key)
        now = trio.current_time()
        if self._attempts.waiting_seconds(place, now) > self._config.auth_seconds:
            raise TurnedAway.politely("too many wrong passwords from your address; try again later")
        if delay := self._attempts.reserve(place, now):
            await trio.sleep(delay)
        if hmac.compare_digest(_digest(password), self._key):
            self._attempts.succeeded(place)
            return True
        self._attempts.failed(place, trio.current_time())
        return False


class _AtTheDoor:
    """The block of `Entrance.at_the_door`.

    Not a `contextmanager`: raising another error in one leaves a reference cycle behind; see
    `transport.receive_some`.
    """

    def __init__(self, entrance: Entrance, place: Hashable) -> None:
        self._entrance, self._place = entrance, place
        self._scope = trio.CancelScope()

    def __enter__(self) -> None:
        self._entrance.add_waiting(self._scope, self._place)
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._scope.__exit__(kind, error, traceback)
        finally:
            self._entrance.remove_waiting(self._scope)
        self._entrance.check(self._scope)


def _digest(password: str) -> bytes:
    # A letter may be typed as one character or as several.  Longer ones are wrong, and the time
    # that this takes grows with their square.
    if len(password) <= MAX_PASSWORD_CHARACTERS:
        password = unicodedata.normalize("NFC", password)
    # Of one length, so that a comparison in constant time does not tell it.
    return hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest()


class _Asking:
    """A conversation in which nothing but passwords counts, for *seconds* of listening."""

    def __init__(self, seconds: float, stream: trio.abc.Stream, decoder: LineDecoder) -> None:
        self._seconds = self._left = seconds
        self._stream = stream
        self._decoder = decoder
        self._lines: list[str] = []
        self._parts: list[Part] = []
        self._first = True
        self._over = False

    async def tell(self, event: Event) -> None:
        """Tell the other side; raises `TurnedAway` if it does not take it."""
        try:
            await self._in_time(transport.send_all(self._stream, TEXT.spell(event)))
        except TurnedAway as refusal:  # with half a line on its way, which is the last
            raise TurnedAway(refusal.reason) from None

    async def hear(self) -> str | None:
        """Return the next line's password, or None if it holds none; raises `TurnedAway`."""
        while not self._lines:
            if self._parts:
                part = self._parts.pop(0)
                self._lines = [""] if isinstance(part, LineTooLong) else part.split("\n")[::-1]
            elif self._over:
                raise TurnedAway(_LEFT_WITHOUT)
            else:
                await self._read()
        line = self._lines.pop()
        if self._first and looks_like_http(line):
            raise TurnedAway("it speaks HTTP, this is a chat server", HTTP_ANSWER)
        self._first = False
        return read_password(line)

    async def _read(self) -> None:
        data = await self._in_time(transport.receive_some(self._stream, _READ_BYTES))
        if data == b"\x16":  # the first byte of a TLS record, cut off from its second
            data += await self._in_time(transport.receive_some(self._stream, _READ_BYTES))
        if self._first and looks_like_tls(data):
            raise TurnedAway(
                "it speaks TLS, this port does not", TEXT.spell(Goodbye(SPEAKS_NO_TLS))
            )
        self._over = not data
        self._parts = self._decoder.feed(data) if data else self._decoder.finish()
        if data and self._decoder.reply:
            await self._in_time(transport.send_all(self._stream, self._decoder.reply))

    async def _in_time(self, operation: Awaitable[T]) -> T:
        """Wait for *operation*, for as long as is left; raises `TurnedAway`."""
        started = trio.current_time()
        try:
            with trio.move_on_after(max(0.0, self._left)):
                return await operation
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise TurnedAway(_LEFT_WITHOUT) from None
        finally:
            self._left -= trio.current_time() - started
        raise TurnedAway.politely(f"no password in {self._seconds:g} s")

    def rest(self) -> list[Part]:
        """Return what was read and not heard."""
        lines = "\n".join(reversed(self._lines))
        return [lines, *self._parts] if lines else self._parts


def _plain_on_tls() -> TurnedAway:
    return TurnedAway("it does not speak TLS, this port does", TEXT.spell(Goodbye(SPEAKS_TLS)))
