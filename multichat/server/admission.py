"""Admission: what stands between an accepted connection and its session.

The TLS handshake, the password and the goodbye of a rejected connection run in the connection's own
task, under a deadline, so that accepting waits for nobody.

Invariants:

1.  At most `MAX_IN_ADMISSION` connections are neither admitted nor closed.  Above this, the oldest
   is closed of the site and the address that have most of them; rejected ones count as one site.
   So one address takes no place that another one needs.  A client that waits in a queue of
   passwords takes none: `PasswordAttempts` bounds them.
2. At most `MAX_BYTES` are read before the TLS handshake is done, and as many before the password.
3. Before the password nothing but the password is read, and nothing is told but that.
4. No password, and no wrong one, is in a log, an error or an exception.
"""

import hashlib
import hmac
import ssl
import unicodedata
from collections import Counter
from collections.abc import Awaitable
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import trio

from multichat.errors import LineTooLong
from multichat.net import transport
from multichat.protocol.auth import (
    PASSWORD_ACCEPTED,
    PASSWORD_REQUIRED,
    SERVER_IS_FULL,
    TOO_MANY_ATTEMPTS,
    TOO_MANY_FROM_ADDRESS,
    TOO_MANY_WRONG,
    WRONG_PASSWORD,
    parse_password,
)
from multichat.protocol.framing import LineDecoder, Part, behind, clean
from multichat.protocol.messages import SHUTTING_DOWN, Event, Goodbye, Notice
from multichat.protocol.sniff import NO_TLS, TLS_RECORD, sniff_bytes, sniff_line
from multichat.protocol.text_codec import TEXT
from multichat.server.config import MAX_CLIENTS_PER_ADDRESS, MAX_PASSWORD_CHARACTERS, ServerConfig
from multichat.server.origin import Origin
from multichat.server.password_attempts import PasswordAttempts

__all__ = ["Admission", "AdmissionRefused", "Greeted"]

T = TypeVar("T")

# Handshakes under way, people typing a password, and goodbyes being read, at any moment.  An honest
# handshake takes milliseconds, so that only thousands of others a second could displace it.
MAX_IN_ADMISSION = 256

# A TLS handshake takes 2 KiB, a password at most 4.
MAX_BYTES = 8 * 1024

MAX_TRIES = 3

# What a rejected connection has sent is read this often, so that its goodbye is not lost to a
# reset; a peer that goes on sending is not read any more.
_LINGER_READS = 4

# All rejected connections together.
_REJECTED = Origin("rejected", "rejected")

# Lines that are answered before the password: a hello, and a paste of somebody who has not looked.
_MAX_STRAY_LINES = 16

_READ_BYTES = 4096

_LEFT_WITHOUT = "it left without a password"


class AdmissionRefused(Exception):
    """A connection is rejected; *reason* is for the log, *last_words* are sent before the close."""

    def __init__(self, reason: str, last_words: bytes = b"") -> None:
        super().__init__(reason)
        self.reason, self.last_words = reason, last_words

    @classmethod
    def politely(cls, reason: str) -> "AdmissionRefused":
        """Return one whose *reason* is sent as a goodbye, too."""
        return cls(reason, TEXT.encode(Goodbye(reason)))


class Greeted:
    """An admitted connection: its stream, and what was read from it already."""

    def __init__(self, stream: trio.abc.Stream, decoder: LineDecoder, parts: list[Part]) -> None:
        self.stream, self.decoder, self.parts = stream, decoder, parts


class Admission:
    """Admission to one server."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._in_admission: dict[trio.CancelScope, Origin | None] = {}
        self._queued: set[trio.CancelScope] = set()
        self._closed = ""
        self._open = 0
        self._connections: Counter[str] = Counter()  # by address
        self._attempts = PasswordAttempts(config.timeouts)
        self._key = None if config.password is None else _digest(clean(config.password))

    def count(self, origin: Origin | None) -> str:
        """Count a connection from *origin*; `uncount` MUST be called when it is closed.

        Returns the reason to reject it if there are too many, in all or from its address, otherwise
        nothing.
        """
        self._open += 1
        too_many = self._open > self._config.max_connections
        full = f"{SERVER_IS_FULL} (memory for {self._config.max_connections} connections)"
        if origin is None or origin.is_user:  # a Unix socket has no address
            return full if too_many else ""
        self._connections[origin.address] += 1
        limit = self._config.max_clients_per_address
        if limit is None and not origin.is_loopback:
            limit = MAX_CLIENTS_PER_ADDRESS
        if limit and self._connections[origin.address] > limit:
            return f"{TOO_MANY_FROM_ADDRESS} (at most {limit})"
        return full if too_many else ""

    def uncount(self, origin: Origin | None) -> None:
        """Note that a connection from *origin* is closed."""
        self._open -= 1
        if origin is None or origin.is_user:
            return
        self._connections[origin.address] -= 1
        if not self._connections[origin.address]:
            del self._connections[origin.address]

    def in_admission(self, origin: Origin | None) -> "_InAdmission":
        """Take a place of a connection that is not admitted while the block runs.

        Raises `AdmissionRefused`, also at the end of the block if the place was needed for another.
        """
        return _InAdmission(self, origin)

    def add_waiting(self, scope: trio.CancelScope, origin: Origin | None) -> None:
        """Add *scope*; for `_InAdmission` alone, as are the next three."""
        self._check_open()
        if len(self._in_admission) >= MAX_IN_ADMISSION:
            self._make_room()
        self._in_admission[scope] = origin

    async def queue(self, scope: trio.CancelScope, origin: Origin | None, seconds: float) -> None:
        """Wait for so long without a place."""
        self.remove_waiting(scope)
        self._queued.add(scope)
        try:
            await trio.sleep(seconds)
        finally:
            self._queued.remove(scope)
        self.add_waiting(scope, origin)

    def remove_waiting(self, scope: trio.CancelScope) -> None:
        """Remove *scope*."""
        self._in_admission.pop(scope, None)

    def check(self, scope: trio.CancelScope) -> None:
        """Raise `AdmissionRefused` if *scope* was cancelled."""
        if scope.cancelled_caught:
            self._check_open()
            raise AdmissionRefused("too many connections wait for admission")

    def _check_open(self) -> None:
        if self._closed:
            raise AdmissionRefused(self._closed)

    def _make_room(self) -> None:
        """Close the oldest of the largest address of the largest site."""
        sites = Counter(origin and origin.site for origin in self._in_admission.values())
        [(site, _)] = sites.most_common(1)
        there = {
            scope: origin and origin.address
            for scope, origin in self._in_admission.items()
            if (origin and origin.site) == site
        }
        [(address, _)] = Counter(there.values()).most_common(1)
        oldest = next(scope for scope, each in there.items() if each == address)
        del self._in_admission[oldest]
        oldest.cancel(reason="a newer connection needs the place")

    def close(self) -> None:
        """Reject all connections that are not admitted, and those that come."""
        self._closed = SHUTTING_DOWN
        for scope in (*self._in_admission, *self._queued):
            scope.cancel(reason=self._closed)

    async def shake_hands(
        self, stream: trio.abc.Stream, context: ssl.SSLContext
    ) -> trio.abc.Stream:
        """Return the encrypted stream over *stream*; raises `AdmissionRefused`."""
        encrypted = transport.encrypt(
            stream,
            context,
            linger_seconds=self._config.timeouts.linger,
            linger_reads=_LINGER_READS,
        )
        try:
            with trio.move_on_after(self._config.handshake_seconds) as in_time:
                # A short line is less than TLS waits for.
                if await transport.peek(stream) not in (b"", TLS_RECORD):
                    raise AdmissionRefused(*NO_TLS)
                await transport.handshake(encrypted, MAX_BYTES)
        except transport.TooMuchData:
            raise AdmissionRefused(f"more than {MAX_BYTES} bytes and no TLS handshake") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if transport.is_no_tls(error):
                raise AdmissionRefused(*NO_TLS) from None
            if isinstance(error.__cause__, ssl.SSLEOFError):  # mostly without a word why
                raise AdmissionRefused(
                    "it broke off the TLS handshake: does it trust us?"
                ) from None
            raise AdmissionRefused(transport.reason_of(error)) from None
        if in_time.cancelled_caught:
            raise AdmissionRefused(f"no TLS handshake in {self._config.handshake_seconds:g} s")
        return encrypted

    @property
    def asks_password(self) -> bool:
        """Whether the server requires a password."""
        return self._key is not None

    async def turn_away(self, stream: trio.abc.Stream, last_words: bytes) -> None:
        """Send *last_words* and close, in a second; the peer may be gone."""
        seconds = self._config.timeouts.linger
        try:
            with self.in_admission(_REJECTED), trio.move_on_after(seconds):
                await transport.send_all(stream, last_words)
                await transport.hang_up(stream, seconds, _LINGER_READS)
        except (trio.BrokenResourceError, trio.ClosedResourceError, AdmissionRefused):
            pass  # it is gone, or its place was needed

    async def ask_password(self, stream: trio.abc.Stream, place: "_InAdmission") -> Greeted:
        """Return when the client has sent the password, with what came behind it.

        Reads for `auth_seconds` in all; the delay of wrong passwords does not count.  Raises
        `AdmissionRefused`.
        """
        decoder = LineDecoder(self._config.max_line_bytes)
        asking = _Asking(self._config.auth_seconds, stream, decoder)
        await asking.tell(Notice(PASSWORD_REQUIRED))
        tries = strays = 0
        while strays < _MAX_STRAY_LINES:
            try:
                password = await asking.hear()
            except AdmissionRefused as refusal:
                if tries:
                    raise AdmissionRefused("wrong password", refusal.last_words) from None
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
                    raise AdmissionRefused.politely(WRONG_PASSWORD)
                await asking.tell(Notice(WRONG_PASSWORD))
        raise AdmissionRefused.politely(PASSWORD_REQUIRED)

    async def _is_right(self, password: str, place: "_InAdmission") -> bool:
        """Return whether *password* is right, in time for the limits; raises `AdmissionRefused`."""
        assert self._key is not None  # noqa: S101 - a password is required
        right = hmac.compare_digest(_digest(password), self._key)
        if (origin := place.origin) is None:  # a stream of the program itself
            return right
        longest = self._config.auth_seconds
        delay = self._attempts.address_delay(origin, trio.current_time(), longest)
        if delay is None:
            await self._reject_later(TOO_MANY_WRONG)
        elif delay:
            await trio.sleep(delay)
        turn = self._attempts.server_delay(origin, trio.current_time(), longest)
        if turn is None:
            await self._reject_later(TOO_MANY_ATTEMPTS)
        queue, delay = turn
        if delay:
            await place.queue(delay)
        if right:
            self._attempts.succeeded(origin, queue, trio.current_time())
        else:
            self._attempts.failed(origin, trio.current_time())
        return right

    async def _reject_later(self, reason: str) -> NoReturn:
        """Reject an attempt that would wait too long; not at once, or it would be back at once."""
        await trio.sleep(self._config.auth_seconds)
        raise AdmissionRefused.politely(reason)


class _InAdmission:
    """The block of `Admission.in_admission`.

    Not a `contextmanager`: raising another error in one leaves a reference cycle behind; see
    `transport.receive_some`.
    """

    def __init__(self, admission: Admission, origin: Origin | None) -> None:
        self._admission, self.origin = admission, origin
        self._scope = trio.CancelScope()

    def __enter__(self) -> Self:
        self._admission.add_waiting(self._scope, self.origin)
        self._scope.__enter__()
        return self

    async def queue(self, seconds: float) -> None:
        """Wait for so long without the place; raises `AdmissionRefused`."""
        await self._admission.queue(self._scope, self.origin, seconds)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._scope.__exit__(kind, error, traceback)
        finally:
            self._admission.remove_waiting(self._scope)
        self._admission.check(self._scope)


def _digest(password: str) -> bytes:
    # A letter may be typed as one character or as several.  A longer password is wrong, and
    # normalizing takes quadratic time.
    if len(password) <= MAX_PASSWORD_CHARACTERS:
        password = unicodedata.normalize("NFC", password)
    # Of one length, so that the time of a comparison does not tell the password's.
    return hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest()


class _Asking:
    """Asks one connection for the password, and reads from it for *seconds* in all."""

    def __init__(self, seconds: float, stream: trio.abc.Stream, decoder: LineDecoder) -> None:
        self._seconds = self._left = seconds
        self._stream = stream
        self._decoder = decoder
        self._run = ""
        self._parts: list[Part] = []
        self._first = True
        self._over = False
        self._bytes_left = MAX_BYTES

    async def tell(self, event: Event) -> None:
        """Send *event*; raises `AdmissionRefused` if the client does not take it in time."""
        try:
            await self._in_time(transport.send_all(self._stream, TEXT.encode(event)))
        except AdmissionRefused as refusal:  # perhaps after half a line: nothing may follow
            raise AdmissionRefused(refusal.reason) from None

    async def hear(self) -> str | None:
        """Return the password of the next line, None without one; raises `AdmissionRefused`."""
        while not self._run:
            if self._parts:
                part = self._parts.pop(0)
                if isinstance(part, LineTooLong):
                    self._first = False
                    return None
                self._run = part
            elif self._over:
                raise AdmissionRefused(_LEFT_WITHOUT)
            else:
                await self._read()
        line, more, _ = self._run.partition("\n")
        self._run = behind(self._run, 1) if more else ""
        if self._first and (other := sniff_line(line)):
            raise AdmissionRefused(*other)
        self._first = False
        return parse_password(line)

    async def _read(self) -> None:
        data = await self._receive()
        if data == TLS_RECORD:  # the second byte is needed, too
            data += await self._receive()
        if self._first and (other := sniff_bytes(data)):
            raise AdmissionRefused(*other)
        self._over = not data
        self._parts = self._decoder.feed(data) if data else self._decoder.finish()
        if data and self._decoder.reply:
            await self._in_time(transport.send_all(self._stream, self._decoder.reply))

    async def _receive(self) -> bytes | bytearray:
        if not self._bytes_left:
            raise AdmissionRefused.politely(f"no password in the first {MAX_BYTES} bytes")
        wanted = min(_READ_BYTES, self._bytes_left)
        data = await self._in_time(transport.receive_some(self._stream, wanted))
        self._bytes_left -= len(data)
        return data

    async def _in_time(self, operation: Awaitable[T]) -> T:
        """Wait for *operation* in the time that is left; raises `AdmissionRefused`."""
        started = trio.current_time()
        try:
            with trio.move_on_after(max(0.0, self._left)):
                return await operation
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise AdmissionRefused(_LEFT_WITHOUT) from None
        finally:
            self._left -= trio.current_time() - started
        raise AdmissionRefused.politely(f"no password in {self._seconds:g} s")

    def rest(self) -> list[Part]:
        """Return what was read behind the password."""
        return [self._run, *self._parts] if self._run else self._parts
