"""Authentication: the server's password, and the program's own decision on each connection.

Runs in the connection's own task while that has an admission slot, so that no other client waits.

Invariants:

1. At most `MAX_BYTES` are read before the client is authenticated.
2. Until then only passwords are read, and the name in a hello; nothing else is answered.
3. No password, right or wrong, is in a log, an error or an exception.
"""

import hashlib
import hmac
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import NoReturn, TypeAlias, TypeVar

import trio

from multichat.errors import InvalidName, LineTooLong, MultichatError
from multichat.log import Log
from multichat.net import transport
from multichat.protocol.auth import (
    PASSWORD_ACCEPTED,
    PASSWORD_REQUIRED,
    TOO_MANY_ATTEMPTS,
    TOO_MANY_WRONG,
    WRONG_PASSWORD,
    parse_password,
)
from multichat.protocol.framing import Part, behind, clean
from multichat.protocol.messages import Event, Goodbye, Hello, Notice
from multichat.protocol.names import parse_person_name
from multichat.protocol.sniff import TLS_RECORD, sniff_bytes, sniff_line
from multichat.protocol.text_codec import TEXT
from multichat.server.admission import (
    MAX_BYTES,
    AdmissionRefused,
    AdmittedConnection,
    PendingSlot,
)
from multichat.server.config import MAX_PASSWORD_CHARACTERS, ServerConfig
from multichat.server.password_attempts import PasswordAttempts
from multichat.server.refusals import RefusedFor

__all__ = ["AdmissionRequest", "Authenticate", "Authentication"]

T = TypeVar("T")

MAX_TRIES = 3

# Lines that are answered before the password: a hello, and a paste into a terminal.
_MAX_STRAY_LINES = 16

_READ_BYTES = 4096

# A browser sends its request at once, and shows nothing of an answer that does not begin as HTTP
# does: so if there is a page to lead to, the prompt waits for a moment that is too short to notice.
_LOOK_SECONDS = 0.2

_LEFT_WITHOUT = "disconnected without a password"
_NOT_ADMITTED = "you are not admitted"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionRequest:
    """What is known of a client that wants to join, for `authenticate`.

    *address* is the peer's, such as `192.0.2.7:51234`; empty for a Unix socket or a stream of the
    program's own.  *encrypted* says that the connection uses TLS.  *password* is the one that the
    client sent; None before it was asked for one.

    *name* is the name in the hello that the client sent before the password; not validated.  None
    before it was asked for a password, and for a client that sends no such hello: one that speaks
    text, or `connect --json` or `--login`, which send their hello after the password.
    """

    address: str
    encrypted: bool
    name: str | None = None
    password: str | None = field(default=None, repr=False)


Authenticate: TypeAlias = Callable[[AdmissionRequest], Awaitable[str | bool | None]]
"""An async function that decides whether a client may join, and under which name.

Called when a client has connected, before anything is read from it and before it is in any room or
list.  Returns:

- True: the client is admitted and chooses its name.
- A name: the client is admitted under that name and cannot change it.  While another client has the
  name, it is called `Client N`.
- None: a password is required.  The client is prompted for one, and the function is called again
  with each password that it sends, at most three; None then means that the password is wrong.
- False: the client is refused.

With `ServerConfig.password`, it is called once that password was sent; None refuses then.

Runs in the client's own task, delays no other client, and has `ServerConfig.auth_seconds` for each
call.  If it takes longer, raises, or returns anything else, the client is refused and the reason is
logged; of what it raised the type and the places in the program, not the text: that may hold a
password.
"""


class Authentication:
    """Authenticates the connections to one server, by password or by *authenticate*.

    *knows_session* says whether a token is that of a session that can be resumed: its client
    was admitted before, and is not locked out by a new password.  It may raise `MultichatError`.
    *web_url* is where the server's page is, empty without one.
    """

    def __init__(
        self,
        config: ServerConfig,
        log: Log,
        authenticate: Authenticate | None = None,
        *,
        knows_session: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self._config, self._log = config, log
        self._authenticate, self._knows_session = authenticate, knows_session
        self.web_url = ""
        self._attempts = PasswordAttempts(config.timeouts)
        self.change_password(config.password)

    def change_password(self, password: str | None) -> None:
        """Ask the clients that connect from now on for *password*, which is valid; None: for none.

        A client that is typing one at this moment needs the new one, too.
        """
        self._key = None if password is None else _digest(clean(password))

    @property
    def is_required(self) -> bool:
        """Whether a client needs more than a connection to be admitted."""
        return self._key is not None or self._authenticate is not None

    async def authenticate(
        self, connection: AdmittedConnection, slot: PendingSlot, address: str, *, encrypted: bool
    ) -> None:
        """Give *connection* its name once it is authenticated; raises `AdmissionRefused`."""
        request = AdmissionRequest(address=address, encrypted=encrypted)
        if self._key is None and (name := await self._decide(request)) is not None:
            connection.name = name
        else:
            connection.name = await self._ask_password(connection, slot, request)

    async def _decide(self, request: AdmissionRequest) -> str | None:
        """Return the name for a client that `authenticate` admits, empty for any; None if not yet.

        Raises `AdmissionRefused`.
        """
        if self._authenticate is None:
            return ""
        with trio.move_on_after(self._config.auth_seconds) as in_time:
            try:
                decision = await self._authenticate(request)
            except Exception as error:  # noqa: BLE001 - the program's own function
                self._log.fault("authenticate raised", error, is_secret=True)
                raise _not_admitted(f"authenticate raised {type(error).__name__}") from None
        if in_time.cancelled_caught:
            raise _not_admitted(f"authenticate took more than {self._config.auth_seconds:g} s")
        if decision is None or decision is True:
            return "" if decision else None
        if isinstance(decision, str):
            try:
                return parse_person_name(clean(decision))
            except InvalidName:
                raise _not_admitted("authenticate returned an invalid name") from None
        if decision is False:
            raise _not_admitted("not authenticated")
        raise _not_admitted(f"authenticate returned a {type(decision).__name__}")

    async def _ask_password(
        self, connection: AdmittedConnection, slot: PendingSlot, request: AdmissionRequest
    ) -> str:
        """Return the client's name, empty for any, once it has sent a right password.

        Reads for `auth_seconds` in all; the delay of wrong passwords does not count.  Raises
        `AdmissionRefused`.
        """
        prompt = _PasswordPrompt(self._config.auth_seconds, connection, self.web_url)
        await prompt.look()
        await prompt.send(Notice(PASSWORD_REQUIRED))
        await prompt.answer()  # to what came with the first bytes
        tries = strays = 0
        while strays < _MAX_STRAY_LINES:
            try:
                password = await prompt.read_password()
            except AdmissionRefused as refusal:
                if tries:
                    why, words = RefusedFor.WRONG_PASSWORD, refusal.last_words
                    raise AdmissionRefused(why, "wrong password", words) from None
                raise
            if password is None:
                strays += 1
                await prompt.send(Notice(PASSWORD_REQUIRED))
                continue
            request = replace(request, name=prompt.requested_name, password=password)
            if (name := await self._check(request, slot, prompt.session)) is not None:
                await prompt.send(Notice(PASSWORD_ACCEPTED))
                connection.parts = prompt.rest()
                return name
            tries += 1
            if tries == MAX_TRIES:
                raise AdmissionRefused.politely(RefusedFor.WRONG_PASSWORD, WRONG_PASSWORD)
            await prompt.send(Notice(WRONG_PASSWORD))
        raise AdmissionRefused.politely(RefusedFor.NO_PASSWORD, PASSWORD_REQUIRED)

    async def _check(
        self, request: AdmissionRequest, slot: PendingSlot, session: str
    ) -> str | None:
        """Return the client's name, empty for any, if its password is right, otherwise None.

        With the token of a *session* any password is.

        Waits as long as the limits of password attempts demand.  Raises `AdmissionRefused`.
        """
        if (origin := slot.origin) is None:  # a stream of the program itself
            return await self._compare(request, session)
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
            await slot.queue(delay)
        name = await self._compare(request, session)
        if name is not None:
            self._attempts.succeeded(origin, queue, trio.current_time())
        else:
            self._attempts.failed(origin, trio.current_time())
        return name

    async def _compare(self, request: AdmissionRequest, session: str) -> str | None:
        if self._key is None:
            return await self._decide(request)
        is_right = hmac.compare_digest(_digest(request.password or ""), self._key)
        if not is_right and not await self._was_admitted(session):
            return None
        if (name := await self._decide(request)) is None:
            raise _not_admitted("not authenticated")
        return name

    async def _was_admitted(self, session: str) -> bool:
        if not session or self._knows_session is None:
            return False
        try:
            return await self._knows_session(session)
        except MultichatError:  # the journal cannot be read
            return False

    async def _reject_later(self, reason: str) -> NoReturn:
        """Reject an attempt that would have to wait too long, after a while: it may come again."""
        await trio.sleep(self._config.auth_seconds)
        raise AdmissionRefused.politely(RefusedFor.TOO_MANY_ATTEMPTS, reason)


def _digest(password: str) -> bytes:
    # A letter may be typed as one character or as several.  A longer password is wrong, and
    # normalizing takes quadratic time.
    if len(password) <= MAX_PASSWORD_CHARACTERS:
        password = unicodedata.normalize("NFC", password)
    # Digests have a fixed length, so the time of a comparison does not reveal the password's.
    return hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest()


class _PasswordPrompt:
    """Prompts one client for the password, and reads its *connection* for *seconds* in all.

    *requested_name* is the name in the last hello that came instead, *session* its token, which may
    be empty.  *web_url* is where the
    server's page is, empty without one.
    """

    def __init__(self, seconds: float, connection: AdmittedConnection, web_url: str) -> None:
        self._web_url = web_url
        self._seconds = self._left = seconds
        self._stream = connection.stream
        self._decoder = connection.decoder
        self._encode = connection.codecs.text.encode
        self.requested_name: str | None = None
        self.session = ""
        self._block = ""
        self._parts = connection.parts
        self._first = connection.may_be_other_protocol
        self._ended = False
        self._bytes_left = MAX_BYTES

    async def look(self) -> None:
        """Lead a browser to the page, if there is one; raises `AdmissionRefused` for it, or TLS."""
        if not self._first or not self._web_url:
            return
        if not self._parts:
            data = None
            with trio.move_on_after(_LOOK_SECONDS):
                data = await self._receive()
            if data is not None:
                await self._take(data)
        if self._parts and isinstance(self._parts[0], str):
            self._refuse_http(self._parts[0].partition("\n")[0])

    async def send(self, event: Event) -> None:
        """Send *event*; raises `AdmissionRefused` if the client does not take it in time."""
        await self._send(self._encode(event))

    async def _send(self, data: bytes) -> None:
        try:
            await self._in_time(transport.send_all(self._stream, data))
        except AdmissionRefused as refusal:  # perhaps after half of it: nothing may follow
            raise AdmissionRefused(refusal.why, refusal.reason) from None

    async def read_password(self) -> str | None:
        """Return the password in the next line, None without one; raises `AdmissionRefused`."""
        while not self._block:
            if self._parts:
                part = self._parts.pop(0)
                if isinstance(part, LineTooLong):
                    self._first = False
                    return None
                self._block = part
            elif (ending := self._decoder.ending) is not None:
                if ending.reason:
                    raise AdmissionRefused(
                        RefusedFor.OTHER_PROTOCOL, ending.reason, ending.last_words
                    )
                raise AdmissionRefused(RefusedFor.NO_PASSWORD, _LEFT_WITHOUT, ending.last_words)
            elif self._ended:
                raise AdmissionRefused(RefusedFor.NO_PASSWORD, _LEFT_WITHOUT)
            else:
                await self._read()
        line, more, _ = self._block.partition("\n")
        self._block = behind(self._block, 1) if more else ""
        if self._first:
            self._refuse_http(line)
        self._first = False
        if (password := parse_password(line)) is None:
            for request in TEXT.parse_requests(line):
                if isinstance(request, Hello):
                    self.requested_name, self.session = request.name, request.session or ""
        return password

    def _refuse_http(self, line: str) -> None:
        if other := sniff_line(line, self._web_url):
            raise AdmissionRefused(RefusedFor.OTHER_PROTOCOL, *other)

    async def _read(self) -> None:
        await self._take(await self._receive())

    async def _take(self, data: bytes | bytearray) -> None:
        if self._first:
            if data == TLS_RECORD:  # the second byte is needed, too
                data += await self._receive()
            if other := sniff_bytes(data):
                raise AdmissionRefused(RefusedFor.OTHER_PROTOCOL, *other)
        self._ended = not data
        self._parts = self._decoder.feed(data) if data else self._decoder.finish()
        await self.answer()

    async def answer(self) -> None:
        """Send the answer to telnet commands or pings; raises `AdmissionRefused`."""
        reply, self._decoder.reply = self._decoder.reply, b""
        if reply:
            await self._send(reply)

    async def _receive(self) -> bytes | bytearray:
        if not self._bytes_left:
            reason = f"no password in the first {MAX_BYTES} bytes"
            raise AdmissionRefused.politely(RefusedFor.NO_PASSWORD, reason)
        wanted = min(_READ_BYTES, self._bytes_left)
        data = await self._in_time(transport.receive_some(self._stream, wanted))
        self._bytes_left -= len(data)
        return data

    async def _in_time(self, operation: Awaitable[T]) -> T:
        """Wait for *operation* for the time that is left; raises `AdmissionRefused`."""
        started = trio.current_time()
        try:
            with trio.move_on_after(max(0.0, self._left)):
                return await operation
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise AdmissionRefused(RefusedFor.NO_PASSWORD, _LEFT_WITHOUT) from None
        finally:
            self._left -= trio.current_time() - started
        reason = f"no password in {self._seconds:g} s"
        raise AdmissionRefused.politely(RefusedFor.NO_PASSWORD, reason)

    def rest(self) -> list[Part]:
        """Return what was read after the password."""
        return [self._block, *self._parts] if self._block else self._parts


def _not_admitted(reason: str) -> AdmissionRefused:
    """Return the refusal whose *reason* is for the log only."""
    return AdmissionRefused(RefusedFor.NOT_AUTHENTICATED, reason, Goodbye(_NOT_ADMITTED))
