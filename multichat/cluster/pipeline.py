"""Matches the replies of one connection to its requests, in order.  Pure.

Invariants:

1. A request stays until its reply has arrived, even if nothing waits for it.
2. RESP3 answers a subscription with one push for each channel, or with one error.  Both come in the
   order of the requests, so they answer the first request in flight.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from multichat.cluster.errors import BadReply, EngineRefused
from multichat.cluster.resp import Push, ReplyDecoder, ReplyLimits, Value

__all__ = ["Answer", "Message", "Pipeline"]

_CONFIRMATIONS = frozenset((b"subscribe", b"unsubscribe"))

RequestT = TypeVar("RequestT")


@dataclass(frozen=True, slots=True)
class Answer(Generic[RequestT]):
    """The *reply* to a *request*, which is an `EngineRefused` if it is an error."""

    request: RequestT
    reply: Value


@dataclass(frozen=True, slots=True)
class Message:
    """A message that was published on a *channel*."""

    channel: bytes
    payload: bytes


class Pipeline(Generic[RequestT]):
    """The requests in flight on one connection, oldest first."""

    def __init__(self, decoder: ReplyDecoder | None = None) -> None:
        self._decoder = decoder or ReplyDecoder(ReplyLimits())
        self._in_flight: deque[tuple[RequestT, int]] = deque()
        self._confirmed = 0  # channels of the first request, if that is a subscription

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def oldest(self) -> RequestT | None:
        """The request that will be answered next."""
        return self._in_flight[0][0] if self._in_flight else None

    def add(self, request: RequestT, channels: int = 0) -> None:
        """Add a *request* that is sent next; a subscription has a number of *channels*."""
        self._in_flight.append((request, channels))

    def receive(self, data: bytes | bytearray) -> Iterator[Answer[RequestT] | Message]:
        """Yield the answers and messages that *data* completes; raises `BadReply`."""
        for reply in self._decoder.feed(data):
            if type(reply) is not Push:
                yield self._answer(reply)
            elif reply.kind == b"message":
                match reply.items:
                    case (bytes(channel), bytes(payload)):
                        yield Message(channel, payload)
                    case _:
                        raise BadReply("it sends an invalid message of a channel")
            elif reply.kind in _CONFIRMATIONS and (answer := self._confirm(reply)) is not None:
                yield answer
            # Other kinds are sent only to clients that requested them.

    def _answer(self, reply: Value) -> Answer[RequestT]:
        if not self._in_flight:
            # An engine that is full or shuts down sends an error before it closes.
            if isinstance(reply, EngineRefused):
                raise BadReply(str(reply))
            raise BadReply("it sends a reply to no request")
        request, channels = self._in_flight[0]
        if channels and not isinstance(reply, EngineRefused):
            raise BadReply("it replies to a subscription, which RESP3 does not")
        self._in_flight.popleft()
        self._confirmed = 0
        return Answer(request, reply)

    def _confirm(self, push: Push) -> Answer[RequestT] | None:
        request, channels = self._in_flight[0] if self._in_flight else (None, 0)
        if request is None or not channels:
            raise BadReply(f"it has changed a subscription by itself: {push.kind.decode()}")
        self._confirmed += 1
        if self._confirmed < channels:
            return None
        self._confirmed = 0
        self._in_flight.popleft()
        return Answer(request, None)

    def end(self) -> list[RequestT]:
        """Return the requests that will not be answered, because the connection has ended."""
        left = [request for request, _ in self._in_flight]
        self._in_flight.clear()
        return left
