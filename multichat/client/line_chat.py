"""A chat whose requests are typed: for the terminal, the console and pipes.

Adds to `Chat` the sending of typed lines, and what a front end shows of the connection.
"""

from collections.abc import Iterable

from multichat.client.chat import Chat
from multichat.client.reconnect import Link
from multichat.client.typed_input import LocalCommand, Typed
from multichat.errors import ConnectionLost, InvalidRequest, NoJson, NotPrivate
from multichat.protocol.codec import Codec
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    NO_SENDER,
    Direct,
    Error,
    Hello,
    Invalid,
    Nonce,
    Quit,
    Reply,
    Say,
    SayBlock,
)
from multichat.protocol.text_codec import TEXT
from multichat.protocol.typed_lines import may_hold_secret

__all__ = ["LineChat"]


class LineChat(Chat):
    """A `Chat` for a front end."""

    # --- Sending ----------------------------------------------------------------------------------

    async def send_typed(self, typed: Iterable[Typed]) -> list[Nonce | None]:
        """Send typed requests; in the text protocol, their lines as they are.

        An invalid command, a line that is too long, or a passphrase that others could read on its
        way, yields an `Error` event.  Returns each line's nonce, or None if it has none; an empty
        list in the text protocol.  For the rest see `Chat.send`.
        """
        if self.codec is TEXT:
            if lines := [each.lines for each in typed if self._is_safe(each)]:
                await self._link.send_lines("\n".join(lines))
            return []
        nonces: list[Nonce | None] = []
        with self._link.sending():
            for each in typed:
                nonces += await self._send_one(each) if self._is_safe(each) else [None]
        return nonces

    def _is_safe(self, typed: Typed) -> bool:
        try:
            self._requests.check_private(typed.request)
            is_command = isinstance(typed.request, Invalid | LocalCommand | None)
            if self.fell_back and is_command and may_hold_secret(typed.lines):  # a mistyped one
                raise NotPrivate(has_accounts=False)  # noqa: TRY301
        except NotPrivate as error:
            self._link.events.put([Error("insecure", str(error))])
            return False
        return True

    async def _send_one(self, typed: Typed) -> list[Nonce | None]:
        match typed.request:
            case SayBlock(text=text, room=room):
                says = [Say(line, room) for line in text.split("\n")]
                return await self._requests.send_pieces(says, typed=True)
            case Invalid(error=error):
                self._link.events.put([error])
            case Reply() if self._session.last_sender is None:
                self._link.events.put([Error(InvalidRequest.code, NO_SENDER)])
            case Reply(text=text):
                direct = Direct(self._session.last_sender or 0, text)
                return await self._requests.send_pieces([direct], typed=True)
            case Quit() as request:
                await self._link.send_lines(JSON.encode_request(request))
            case None | Hello() | LocalCommand():
                pass
            case request:
                return await self._requests.send_pieces([request], typed=True)
        return [None]

    def is_unaccepted(self, nonce: Nonce) -> bool:
        """Whether the request with this nonce is still unanswered."""
        return nonce in self._session.outbox

    def collect_refused(self) -> dict[Nonce, Error]:
        """Return where the messages that are refused are added from now on, by their nonces.

        The caller removes them.  An error is added in the step in which its message is no longer
        unaccepted.  From now on messages after a refused join are refused, too, until the next
        join: the program that wrote them to a pipe has not seen the refusal.
        """
        self._session.refused = {}
        return self._session.refused

    def report_accepted(self) -> None:
        """Include each `Accepted` in the events from now on.

        Its place among them is that of our message in the order of the room.
        """
        self._session.reports_accepted = True

    # --- The connection ---------------------------------------------------------------------------

    @property
    def link(self) -> Link:
        """The connections of the chat, for what a front end shows of them."""
        return self._link

    @property
    def codec(self) -> Codec:
        """The protocol that is spoken now."""
        return self._session.codec

    @property
    def next_room(self) -> str:
        """The current room once all requests are answered."""
        return self._session.outbox.next_room(self.rooms)

    @property
    def fell_back(self) -> bool:
        """Whether JSON was asked for and the server speaks text."""
        negotiation = self._session.negotiation
        return self.codec is TEXT and negotiation.settled and not negotiation.plain

    def check_ready(self, *, needs_json: bool = False) -> None:
        """Raise `Refused` after a goodbye, or `NoJson` if *needs_json* and it is text."""
        if self._link.goodbye is not None:
            raise self._link.refused(self._link.goodbye)
        if needs_json and self.welcome is None:
            raise NoJson if self.connected else ConnectionLost("the server closed the connection")
