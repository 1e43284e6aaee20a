"""Admission: limits of connections, TLS handshakes and rejections, before a session starts.

The handshake, authentication and the goodbye of a rejected connection run in the connection's own
task, with a deadline, so that accepting waits for no client.

Invariants:

1. At most `MAX_PENDING` connections are neither admitted nor closed.  Above this, of the site with
   most of them, the oldest of the address with most is closed; rejected ones count as one site.  So
   one address takes no slot from another.  A client that waits in a queue of password attempts has
   no slot: `PasswordAttempts` bounds those.
2. At most `MAX_BYTES` are read before the TLS handshake is done.
"""

import ssl
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec
import trio

from multichat.net import transport
from multichat.net.certificates import explain_handshake
from multichat.protocol.auth import SERVER_IS_FULL, TOO_MANY_FROM_ADDRESS
from multichat.protocol.codecs import LINES, Codecs
from multichat.protocol.counts import counted
from multichat.protocol.framing import Decoder, Part
from multichat.protocol.goodbyes import SHUTTING_DOWN
from multichat.protocol.json_codec import is_hello
from multichat.protocol.messages import Goodbye
from multichat.protocol.sniff import NO_TLS, TLS_RECORD, sniff_bytes
from multichat.server.config import MAX_CLIENTS_PER_ADDRESS, ServerConfig
from multichat.server.origin import Origin
from multichat.server.refusals import RefusedFor

__all__ = ["Admission", "AdmissionRefused", "AdmittedConnection", "PendingSlot"]

# Handshakes under way, people typing a password, and goodbyes being read, at any moment.  An honest
# handshake takes milliseconds: only thousands of others a second could displace it.
MAX_PENDING = 256

# A TLS handshake takes 2 KiB, a password at most 4.
MAX_BYTES = 8 * 1024

# Those that tell what a client on a port with TLS speaks.
_SNIFFED_BYTES = 5

# How often a rejected connection is read, so that its goodbye is not lost to a reset.
_LINGER_READS = 4

# A program sends its hello at once.  A person who waits for as long for a goodbye does not mind.
_FIRST_LINE_SECONDS = 0.5

# All rejected connections together.
_REJECTED = Origin("rejected", "rejected")


class AdmissionRefused(Exception):
    """A connection is rejected; *reason* is logged, *last_words* are sent before the close.

    These are a goodbye in the connection's own framing, or bytes for another protocol.  It is
    counted under *why*.
    """

    def __init__(self, why: RefusedFor, reason: str, last_words: bytes | Goodbye = b"") -> None:
        super().__init__(reason)
        self.why, self.reason, self.last_words = why, reason, last_words

    @classmethod
    def politely(cls, why: RefusedFor, reason: str) -> "AdmissionRefused":
        """Return one whose *reason* is also sent as a goodbye."""
        return cls(why, reason, Goodbye(reason))

    @classmethod
    def unavailable(cls, reason: str) -> "AdmissionRefused":
        """Return one for as long as the backend cannot decide anything, with the *reason*."""
        return cls(RefusedFor.UNAVAILABLE, reason, Goodbye.of("unavailable", reason))


class AdmittedConnection(msgspec.Struct):
    """An admitted connection: its *stream*, and the *parts* that were already read from it.

    *codecs* are those of its framing, which *decoder* decodes.  *name* is the one that
    `authenticate` gave it; empty if it gave none.
    """

    stream: trio.abc.Stream
    decoder: Decoder
    codecs: Codecs = LINES
    parts: list[Part] = msgspec.field(default_factory=list)
    name: str = ""

    @property
    def may_be_other_protocol(self) -> bool:
        """Whether the peer may speak TLS or HTTP by mistake: no upgrade has said what it speaks."""
        return self.codecs is LINES


class Admission:
    """The connections to one server that are not admitted yet, and the number of all of them.

    *refusing* is the reason for which no client is admitted any more; empty while they are.

    *clock* returns the Unix time in seconds.
    """

    def __init__(self, config: ServerConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self.pending: dict[PendingSlot, None] = {}  # the oldest is first
        self.queued: set[PendingSlot] = set()  # they wait without a slot
        self._closed = ""
        self.refusing = ""
        self._open = 0
        self._connections: Counter[str] = Counter()  # by address

    def add_connection(self, origin: Origin | None) -> str:
        """Count a connection from *origin*; `remove_connection` MUST be called when it is closed.

        Returns the reason to reject it if there are too many, in all or from its address, otherwise
        nothing.
        """
        self._open += 1
        too_many = self._open > self._config.max_connections
        most = counted(self._config.max_connections, "connection")
        full = f"{SERVER_IS_FULL} (memory for {most})"
        if origin is None or origin.is_user:  # a Unix socket has no address
            return full if too_many else ""
        self._connections[origin.address] += 1
        limit = self._config.max_clients_per_address
        if limit is None and not origin.is_loopback:
            limit = MAX_CLIENTS_PER_ADDRESS
        if limit and self._connections[origin.address] > limit:
            return f"{TOO_MANY_FROM_ADDRESS} (at most {limit})"
        return full if too_many else ""

    def remove_connection(self, origin: Origin | None) -> None:
        """Note that a connection from *origin* is closed."""
        self._open -= 1
        if origin is None or origin.is_user:
            return
        self._connections[origin.address] -= 1
        if not self._connections[origin.address]:
            del self._connections[origin.address]

    def add_pending(self, slot: "PendingSlot") -> None:
        """Give a connection its *slot*; raises `AdmissionRefused` if the server is closed."""
        self.check_open()
        if len(self.pending) >= MAX_PENDING:
            self._evict_one()
        self.pending[slot] = None

    def check_open(self) -> None:
        """Raise `AdmissionRefused` if the server is closed."""
        if self._closed:
            raise AdmissionRefused(RefusedFor.SHUTDOWN, self._closed)

    def _evict_one(self) -> None:
        """Close the oldest of the largest address of the largest site."""
        sites = Counter(slot.site for slot in self.pending)
        [(site, _)] = sites.most_common(1)
        there = [slot for slot in self.pending if slot.site == site]
        [(address, _)] = Counter(slot.address for slot in there).most_common(1)
        oldest = next(slot for slot in there if slot.address == address)
        del self.pending[oldest]
        oldest.scope.cancel(reason="a newer connection needs the slot")

    def refuse(self, reason: str) -> None:
        """Admit no client from now on, but tell it the *reason*."""
        self.refusing = reason

    def close(self) -> None:
        """Reject all connections that are not admitted, and those that come."""
        self._closed = SHUTTING_DOWN
        for slot in (*self.pending, *self.queued):
            slot.scope.cancel(reason=self._closed)

    async def tls_handshake(
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
                first = await transport.peek(stream, _SNIFFED_BYTES)
                if first[:1] not in (b"", TLS_RECORD):
                    raise AdmissionRefused(RefusedFor.TLS, *(sniff_bytes(first) or NO_TLS))
                await transport.handshake(encrypted, MAX_BYTES)
        except transport.TooMuchData:
            reason = f"more than {MAX_BYTES} bytes without a TLS handshake"
            raise AdmissionRefused(RefusedFor.TLS, reason) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if transport.is_not_tls(error):
                raise AdmissionRefused(RefusedFor.TLS, *NO_TLS) from None
            reason = explain_handshake(error, context, self._clock())
            raise AdmissionRefused(RefusedFor.TLS, reason) from None
        if in_time.cancelled_caught:
            reason = f"no TLS handshake in {self._config.handshake_seconds:g} s"
            raise AdmissionRefused(RefusedFor.TLS, reason)
        return encrypted

    async def reject(self, connection: AdmittedConnection, last_words: bytes | Goodbye) -> None:
        """Send *last_words* and close, within the linger timeout; the peer may be gone.

        A goodbye with a code, after which every program is to come again, is in the protocol that
        the client's first line asks for.
        """
        stream, codecs = connection.stream, connection.codecs
        seconds = self._config.timeouts.linger
        try:
            with PendingSlot(self, _REJECTED), trio.move_on_after(seconds):
                if isinstance(last_words, Goodbye):
                    asks = last_words.code and await _asks_for_json(connection)
                    last_words = (codecs.json if asks else codecs.text).encode(last_words)
                await transport.send_all(stream, last_words)
                await transport.close_gracefully(stream, seconds, _LINGER_READS)
        except (trio.BrokenResourceError, trio.ClosedResourceError, AdmissionRefused):
            pass  # it is gone, or its slot was needed


async def _asks_for_json(connection: AdmittedConnection) -> bool:
    """Return whether the first line that comes within a moment is a hello."""
    parts = connection.parts
    with trio.move_on_after(_FIRST_LINE_SECONDS):
        for _ in range(_LINGER_READS):
            if parts:
                break
            data = await transport.receive_some(connection.stream, MAX_BYTES)
            if not data:
                return False
            parts = connection.decoder.feed(data)
    first = parts[0] if parts else ""
    return isinstance(first, str) and is_hello(first.partition("\n")[0])


class PendingSlot:
    """A slot in *admission* for a connection that is not admitted yet, while the block runs.

    Raises `AdmissionRefused`, also at the end of the block if the slot was needed for another.

    Not a `contextmanager`: raising another error in one leaves a reference cycle; see
    `transport.receive_some`.
    """

    def __init__(self, admission: Admission, origin: Origin | None) -> None:
        self._admission = admission
        self.count_for(origin)
        self.scope = trio.CancelScope()

    def __enter__(self) -> Self:
        self._admission.add_pending(self)
        self.scope.__enter__()
        return self

    def count_for(self, origin: Origin | None) -> None:
        """Count it for *origin*, which turned out to be the client's, from now on."""
        self.origin = origin
        self.address = None if origin is None else origin.address
        self.site = None if origin is None else origin.site

    async def queue(self, seconds: float) -> None:
        """Wait for *seconds* without the slot; raises `AdmissionRefused`."""
        admission = self._admission
        admission.pending.pop(self, None)
        admission.queued.add(self)
        try:
            await trio.sleep(seconds)
        finally:
            admission.queued.remove(self)
        admission.add_pending(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.scope.__exit__(kind, error, traceback)
        finally:
            self._admission.pending.pop(self, None)
        if self.scope.cancelled_caught:
            self._admission.check_open()
            raise AdmissionRefused(
                RefusedFor.TOO_MANY_PENDING, "too many connections wait for admission"
            )
