"""One connection to the engine, from its handshake to its end.

A link is never repaired: when it ends, all its requests end, and `connection.Connection` opens the
next link.

Invariants:

1. Requests are sent and answered in the order of the calls of `request`, across all tasks.
2. A request whose caller was cancelled stays in flight, and its reply is read.
3. Reading never waits for a task: replies go to their requests, and messages to a bounded queue;
   messages that do not fit are dropped and counted.
4. What waits to be sent is bounded by `LinkLimits`.
"""

import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from multichat.client.connect import dial
from multichat.client.timeouts import ClientTimeouts
from multichat.cluster.address import format_host
from multichat.cluster.errors import (
    NO_PASSWORD,
    BadReply,
    EngineAway,
    EngineBusy,
    EngineRefused,
    EngineUnavailable,
    FateUnknown,
)
from multichat.cluster.handshake import EngineInfo, NotUsable, hello, judge, judge_error
from multichat.cluster.pipeline import Answer, Message, Pipeline
from multichat.cluster.resp import Push, ReplyDecoder, ReplyLimits, Value, Word, pack
from multichat.errors import ConnectFailed, Remedy
from multichat.net import transport
from multichat.net.durations import DurationRecorder

__all__ = [
    "Dial",
    "EngineTimeouts",
    "Link",
    "LinkLimits",
    "Login",
    "MessagesDropped",
    "Request",
    "ask",
    "open_link",
    "open_stream",
]

_RECEIVE_BYTES = 64 * 1024

# How often a link records that its process runs; and after which pause it counts as frozen, so that
# data which the engine has sent meanwhile may be unread.
_RUNNING_SECONDS = 0.25
_FROZEN_SECONDS = 1.0

# An answer after a silence this long means that the engine is back: it can answer the other pending
# requests only now, so their waiting time starts again.
_SILENT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineTimeouts:
    """The timeouts of a connection to the engine, in seconds."""

    # Time limit for the TCP connection, and again for the TLS handshake.
    connect: float = 3.0

    # Time limit for the replies to the first requests.
    answer: float = 5.0

    # The interval at which a link without requests is pinged.
    ping: float = 3.0

    # Silence after which a link with requests in flight is given up.  An engine whose disk stalls
    # is silent for seconds, and a new connection would not help then.
    silence: float = 10.0

    # Time after which a link is given up if no request is answered, whatever else arrives.  The
    # largest answer takes less on a slow network.
    overdue: float = 60.0

    # Delay before the first attempt to reconnect; it doubles with each attempt.
    first_retry: float = 0.1

    # The maximum delay between attempts, which is short: there are few nodes, and all clients wait.
    longest_retry: float = 2.0

    # The interval at which the Sentinels are asked whether the primary is still the same.
    sentinel: float = 1.0

    # Time limit for the answer of one Sentinel: without it, one that hangs would delay a failover.
    sentinel_answer: float = 1.5

    def for_dialing(self) -> ClientTimeouts:
        """Return the timeouts that `dial` and `backoff` use."""
        return ClientTimeouts(
            connect=self.connect,
            handshake=self.connect,
            first_retry=self.first_retry,
            longest_retry=self.longest_retry,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkLimits:
    """Limits of a link's queues: *unsent* bytes, *requests* in flight, and received messages.

    At 100,000 messages a second, 4,000 requests are what is in flight within 40 ms.
    """

    unsent: int = 8 * 1024 * 1024
    requests: int = 4096
    messages: int = 10_000
    message_bytes: int = 16 * 1024 * 1024
    reply: ReplyLimits = field(default_factory=ReplyLimits)


@dataclass(frozen=True, kw_only=True, slots=True)
class Login:
    """How to log in: *user*, *password* and *database*; with TLS if *tls* is given.

    The certificate must be valid for *tls_name*, which defaults to the host.
    """

    user: str = ""
    password: str = ""
    database: int = 0
    tls: ssl.SSLContext | None = None
    tls_name: str | None = None

    def __repr__(self) -> str:
        """Return a representation without the password."""
        return f"Login(user={self.user!r}, database={self.database})"


Dial: TypeAlias = Callable[[str, int, Login, EngineTimeouts], Awaitable[trio.abc.Stream]]
"""Connects to a host and port; raises `EngineUnavailable`.  See `open_stream`."""


@dataclass(frozen=True, slots=True)
class MessagesDropped:
    """*count* messages of channels were dropped, because they were not received in time."""

    count: int


class Request:
    """A request on a link; `reply` returns the engine's answer."""

    __slots__ = ("_done", "_reply", "sent_at")

    def __init__(self, sent_at: float) -> None:
        self.sent_at = sent_at
        self._done = trio.Event()
        self._reply: Value | FateUnknown = None

    def finish(self, reply: Value | FateUnknown) -> None:
        """Set the reply, or the error if there will be none."""
        self._reply = reply
        self._done.set()

    async def reply(self) -> Value:
        """Return the reply.

        Raises `EngineRefused` for an error, and `FateUnknown` if the link has ended.  Cancelling
        this loses only the result.
        """
        await self._done.wait()
        # A new exception for each call: a raised one refers to the frames that it has passed.
        if isinstance(self._reply, EngineRefused):
            raise EngineRefused(self._reply.code, self._reply.text)
        if isinstance(self._reply, FateUnknown):
            raise FateUnknown(self._reply.reason)
        return self._reply


class Link:
    """An authenticated connection to the engine; `run` serves it.

    *round_trips* is called with the duration of each request, from `request` to reading its reply.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        engine: EngineInfo,
        decoder: ReplyDecoder,
        *,
        timeouts: EngineTimeouts,
        limits: LinkLimits,
        round_trips: DurationRecorder | None = None,
    ) -> None:
        self.engine = engine
        self._round_trips = round_trips or DurationRecorder()
        self._stream = stream
        self._timeouts = timeouts
        self._limits = limits
        self._pipeline: Pipeline[Request] = Pipeline(decoder)
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._more_to_send = trio.Event()
        self._has_room = trio.Event()
        self._messages: deque[Message] = deque()
        self._message_bytes = 0
        self._dropped = 0
        self._something_to_take = trio.Event()
        self._received_at = trio.current_time()
        self._ran_at = self._thawed_at = self._answered_at = self._received_at
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self.reason = ""  # why it ended

    # --- Requests ---------------------------------------------------------------------------------

    def request(self, *words: Word) -> Request:
        """Send a request without waiting; replies come in the order of the requests.

        If it raises `EngineAway` or `EngineBusy`, nothing was sent.
        """
        return self._request(words)

    def subscribe(self, *channels: Word) -> Request:
        """Subscribe to *channels*; the reply is None once all are confirmed."""
        return self._request(("SUBSCRIBE", *channels), len(channels))

    def unsubscribe(self, *channels: Word) -> Request:
        """End the subscription of *channels*; the reply is None."""
        return self._request(("UNSUBSCRIBE", *channels), len(channels))

    async def call(self, *words: Word) -> Value:
        """Send a request once there is room, and return the reply.

        Raises `EngineAway` if it was not sent; see also `Request.reply`.
        """
        while self._is_full and not self.reason:
            self._has_room = trio.Event() if self._has_room.is_set() else self._has_room
            await self._has_room.wait()
        return await self._request(words).reply()

    @property
    def unanswered_seconds(self) -> float:
        """How long the oldest request has waited for its reply; 0 if none waits.

        Excludes time in which this process was frozen or too busy to read, and any silence of the
        engine that has ended with a reply.
        """
        oldest, now = self._pipeline.oldest, trio.current_time()
        if oldest is None or now - self._ran_at > _FROZEN_SECONDS:
            return 0.0
        return max(0.0, now - max(oldest.sent_at, self._thawed_at))

    async def _note_running(self) -> None:
        while True:
            await trio.sleep(_RUNNING_SECONDS)
            now = trio.current_time()
            if now - self._ran_at > _FROZEN_SECONDS:
                self._thawed_at = now
            self._ran_at = now

    @property
    def _is_full(self) -> bool:
        limits = self._limits
        return len(self._pipeline) >= limits.requests or self._unsent_bytes >= limits.unsent

    def _request(self, words: tuple[Word, ...], channels: int = 0) -> Request:
        if self.reason:
            raise EngineAway(self.reason)
        if self._is_full:
            raise EngineBusy
        return self._send(words, channels)

    def _send(self, words: tuple[Word, ...], channels: int = 0) -> Request:
        data = pack(words)
        request = Request(trio.current_time())
        self._pipeline.add(request, channels)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        self._more_to_send.set()
        return request

    # --- Messages of channels ---------------------------------------------------------------------

    async def receive(self) -> Message | MessagesDropped:
        """Return the next message of a channel.

        If messages were dropped, returns `MessagesDropped` next.  Raises `EngineAway` once the link
        has ended; messages not yet received are then lost.  For one task at a time.
        """
        while not self._messages and not self._dropped and not self.reason:
            self._something_to_take = trio.Event()
            await self._something_to_take.wait()
        if self.reason:
            raise EngineAway(self.reason)
        if self._messages:
            message = self._messages.popleft()
            self._message_bytes -= len(message.payload)
            return message
        dropped, self._dropped = self._dropped, 0
        return MessagesDropped(dropped)

    def _take_message(self, message: Message) -> None:
        limits = self._limits
        # After a drop, everything is dropped until the caller knows.
        if self._dropped or (
            len(self._messages) >= limits.messages
            or self._message_bytes + len(message.payload) > limits.message_bytes
        ):
            self._dropped += 1
        else:
            self._messages.append(message)
            self._message_bytes += len(message.payload)
        self._something_to_take.set()

    # --- Running ----------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """End the link; its requests end with `FateUnknown`.  Does nothing if it has ended."""
        if self.reason:
            return
        self.reason = reason
        for request in self._pipeline.end():
            request.finish(FateUnknown(reason))
        self._messages.clear()
        self._unsent.clear()
        for event in self._has_room, self._something_to_take, self._ended:
            event.set()
        self._scope.cancel(reason=reason)

    async def run(self) -> str:
        """Serve the link until it ends, close it, and return the reason."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._note_running)
        finally:
            self.end("the node shuts down")
            await transport.close(self._stream)
        return self.reason

    async def _read(self) -> None:
        try:
            while data := await transport.receive_some(self._stream, _RECEIVE_BYTES):
                self._received_at = trio.current_time()
                was_full = self._is_full
                for event in self._pipeline.receive(data):
                    if isinstance(event, Message):
                        self._take_message(event)
                    else:
                        self._finish(event)
                if was_full and not self._is_full:
                    self._has_room.set()
            self.end("the engine has closed the connection")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.end(transport.describe_error(error))
        except BadReply as error:
            self.end(str(error))

    def _finish(self, answer: Answer[Request]) -> None:
        silent_since = max(answer.request.sent_at, self._answered_at)
        self._answered_at = self._received_at
        if self._answered_at - silent_since > _SILENT_SECONDS:
            self._thawed_at = self._answered_at
        answer.request.finish(answer.reply)
        self._round_trips.note(self._received_at - answer.request.sent_at)
        if isinstance(answer.reply, EngineRefused) and answer.reply.code == "READONLY":
            # The primary has changed: no write will succeed here again.
            self.end(judge_error(answer.reply).reason)

    async def _write(self) -> None:
        try:
            while True:
                await self._more_to_send.wait()
                self._more_to_send = trio.Event()
                data, self._unsent = b"".join(self._unsent), []
                was_full = self._is_full
                self._unsent_bytes = 0
                if was_full and not self._is_full:
                    self._has_room.set()
                await transport.send_all(self._stream, data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.end(transport.describe_error(error))

    async def _watch(self) -> None:
        """Ping the engine, and end the link if it is silent."""
        while True:
            await trio.sleep(self._timeouts.ping)
            oldest = self._pipeline.oldest
            if oldest is None:
                self._send(("PING",))
                continue
            now, since = trio.current_time(), max(oldest.sent_at, self._thawed_at)
            if now - max(since, self._received_at) >= self._timeouts.silence:
                self.end(f"the engine did not answer in {self._timeouts.silence:g} s")
            elif now - max(since, self._answered_at) >= self._timeouts.overdue:
                self.end(f"the engine did not answer a request in {self._timeouts.overdue:g} s")


async def open_link(
    host: str,
    port: int,
    login: Login,
    *,
    timeouts: EngineTimeouts | None = None,
    limits: LinkLimits | None = None,
    round_trips: DurationRecorder | None = None,
    dial: Dial | None = None,
) -> Link:
    """Connect to the primary at *host* and *port*; the caller runs the link.

    *dial* opens the stream, by default `open_stream`.  See `Link` for *round_trips*.  Raises
    `EngineUnavailable`.
    """
    timeouts, limits = timeouts or EngineTimeouts(), limits or LinkLimits()
    where = format_host(host, port)
    stream = await (dial or open_stream)(host, port, login, timeouts)
    decoder = ReplyDecoder(limits.reply)
    requests = hello(login.user, login.password, login.database)
    try:
        replies = await ask(stream, decoder, requests, timeouts.answer)
        engine = judge(where, replies)
    except BaseException as error:
        await transport.close(stream)
        if isinstance(error, NotUsable):
            has_none = error.code == "WRONGPASS" and not login.password  # only the user was given
            raise EngineUnavailable(
                where,
                NO_PASSWORD.reason if has_none else error.reason,
                lasting=error.lasting,
                is_loading=error.code == "LOADING",
            ) from None
        raise
    return Link(stream, engine, decoder, timeouts=timeouts, limits=limits, round_trips=round_trips)


async def open_stream(
    host: str, port: int, login: Login, timeouts: EngineTimeouts
) -> trio.abc.Stream:
    """Connect to *host* and *port*, with TLS if configured; raises `EngineUnavailable`."""
    try:
        return await dial(
            host, port, tls=login.tls, tls_name=login.tls_name, timeouts=timeouts.for_dialing()
        )
    except ConnectFailed as error:
        reason = error.reason + _REMEDIES.get(error.remedy, "")
        raise EngineUnavailable(format_host(host, port), reason, lasting=error.lasting) from None


_REMEDIES: dict[Remedy | None, str] = {
    Remedy.OMIT_TLS: ": write valkey:// instead of valkeys://",
    Remedy.PERHAPS_OMIT_TLS: "; if it does not use TLS, write valkey:// instead of valkeys://",
    Remedy.TRUST_ISSUER: "; trust it with --cluster-ca FILE",
    Remedy.NAME_CERTIFICATE: "; expect another name in it with --cluster-tls-name NAME",
}


async def ask(
    stream: trio.abc.Stream,
    decoder: ReplyDecoder,
    requests: Sequence[tuple[Word, ...]],
    seconds: float,
) -> list[Value]:
    """Send *requests* and return their replies, on a stream that nothing else uses.

    Raises `NotUsable` on the first error, if the peer is not an engine, and after *seconds*.
    """
    replies: list[Value] = []
    try:
        with trio.fail_after(seconds):
            await transport.send_all(stream, b"".join(map(pack, requests)))
            while len(replies) < len(requests):
                data = await transport.receive_some(stream, _RECEIVE_BYTES)
                if not data:
                    raise NotUsable(_closed(replies))
                for reply in decoder.feed(data):
                    if isinstance(reply, EngineRefused):
                        raise judge_error(reply)
                    if not isinstance(reply, Push):
                        replies.append(reply)
    except trio.TooSlowError:
        raise NotUsable(f"no answer in {seconds:g} s") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise NotUsable(_closed(replies)) from None
    except BadReply as error:
        raise NotUsable(str(error), lasting=True) from None
    return replies


def _closed(replies: Sequence[Value]) -> str:
    closed = "it closes the connection"
    return closed if replies else f"{closed}; if it uses TLS, write valkeys://"
