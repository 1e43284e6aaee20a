"""Sends the requests of a chat, and waits for their answers.

Invariants:

1. No message is sent while `MAX_UNACCEPTED` requests are unanswered: a server remembers as many.
2. A request with a passphrase is sent only where nobody on the network can read it.
3. A line that is longer than the server's limit is not sent.
"""

from collections.abc import Sequence
from typing import TypeVar

from multichat.client.outbox import Pending
from multichat.client.reconnect import Link
from multichat.errors import (
    LineTooLong,
    LocalProtocolError,
    NotPrivate,
    Refused,
    RemoteProtocolError,
)
from multichat.net import transport
from multichat.protocol.counts import counted
from multichat.protocol.messages import (
    MAX_UNACCEPTED,
    Act,
    BanList,
    ChangePassphrase,
    Direct,
    Entered,
    Error,
    Event,
    Exited,
    HistoryPage,
    Login,
    Members,
    Nonce,
    Register,
    RoomList,
    Say,
    TopicChanged,
    WireRequest,
)
from multichat.protocol.text_codec import TEXT

__all__ = ["Requests"]

_Answer = TypeVar("_Answer", Members, RoomList, HistoryPage, TopicChanged, BanList, Entered, Exited)


class Requests:
    """The requests of one chat, whose connections are those of *link*."""

    def __init__(self, link: Link) -> None:
        self._link, self._session = link, link.session

    async def ask_for(self, kind: type[_Answer], request: WireRequest, what: str) -> _Answer:
        """Send a request for *what*, and return its answer; see `ask` and `expect`."""
        return self.expect(kind, await self.ask(request), what)

    def expect(self, kind: type[_Answer], answer: Event | None, what: str) -> _Answer:
        """Return an *answer* of this *kind*; raises the errors of `Chat.members` for any other."""
        if isinstance(answer, kind):
            return answer
        if self._link.goodbye is not None or self._link.over:
            raise self._link.lost()
        if answer is None:
            raise LocalProtocolError(f"the text protocol has no {what}")
        raise RemoteProtocolError(
            f"the server answered with `{_tag(type(answer))}` instead of `{_tag(kind)}`"
        )

    async def ask(self, request: WireRequest) -> Event | None:
        """Send a request, and return its answer; None in the text protocol, which has no nonces.

        Raises the errors of `Chat.say`.
        """
        session, link = self._session, self._link
        self.check_private(request)
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

    async def send_pieces(
        self, requests: Sequence[WireRequest], *, typed: bool
    ) -> list[Nonce | None]:
        """Send requests, within the limit of unanswered ones; return their nonces.

        A request that is too long raises an exception or, if it was *typed*, is skipped, with None
        as its nonce and an `Error` among the events.
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
        """Wait until *count* more requests may be sent.

        Raises `LocalProtocolError` if that would wait forever, because the responses are behind
        events that the program does not receive.
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

    def check_private(self, request: object) -> None:
        """Raise `NotPrivate` for a passphrase over a connection that others can read, or none.

        Also if the server has answered our hello in text: it is another program.
        """
        link, is_secret = self._link, isinstance(request, Register | Login | ChangePassphrase)
        if is_secret and not (link.connected and not link.connection.over):
            raise NotPrivate(connected=False)
        if is_secret and not transport.is_private(link.connection.stream):
            raise NotPrivate
        if is_secret and self._session.codec is TEXT and not self._session.negotiation.plain:
            raise NotPrivate(has_accounts=False)

    def _check_length(self, line: str) -> None:
        """Raise `LocalProtocolError` for a line that the server would drop without a response."""
        welcome = self._session.welcome
        if welcome is not None and 3 * len(line) > (limit := welcome.limits.line):
            excess = len(line.encode()) - limit
            if excess > 0:
                raise LocalProtocolError(
                    f"too long by {counted(excess, 'byte')}; the server takes lines of {limit}"
                )


def _tag(kind: type[Event]) -> object:
    return {Entered: "joined", Exited: "left"}.get(kind) or kind.__struct_config__.tag
