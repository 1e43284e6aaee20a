"""The requests of a client that have not been answered yet, in order.  Pure.

Owns the nonces of a conversation, which outlives its connections: by them a server recognises a
request that is sent again.  On the next connection the unanswered requests are sent again, with
their nonces and before anything new.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import Act, Direct, Join, Nonce, Say, WireRequest

__all__ = ["Kept", "Outbox"]


@dataclass(slots=True)
class Kept:
    """A request, and the *room* in which it was made.

    *names_number* is set for a private message that is addressed by client number.
    """

    line: str
    room: str
    is_message: bool
    names_number: bool
    is_sent: bool


class Outbox:
    """The requests of one conversation that wait for their answer.

    There MUST NOT be more than `MAX_UNACCEPTED`.  `number` a request, `keep` it in the step in
    which it is handed to a connection or left to the next one, and `settle` it when it is answered.
    """

    def __init__(self) -> None:
        self._nonce = 0
        self._kept: dict[Nonce, Kept] = {}
        self._joins: dict[Nonce, str] = {}  # the rooms of those that are joins

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._kept)

    def __contains__(self, nonce: Nonce | None) -> bool:
        """Return whether the request with that nonce waits."""
        return nonce in self._kept

    @property
    def messages(self) -> int:
        """How many of them are messages."""
        return sum(kept.is_message for kept in self._kept.values())

    def meant_room(self, room: str) -> str:
        """Return the room that the next message is meant for.

        That is the room of the last join that is not answered yet, or else *room*, where we are.
        """
        return next(reversed(self._joins.values()), room)

    def number(self, request: WireRequest) -> tuple[int, str]:
        """Give a request the next nonce; return the nonce and the encoded request."""
        self._nonce += 1
        return self._nonce, JSON.encode_request(msgspec.structs.replace(request, nonce=self._nonce))

    @property
    def messages_sent(self) -> int:
        """How many of the messages were sent, and so may have arrived."""
        return sum(kept.is_message and kept.is_sent for kept in self._kept.values())

    def keep(
        self, nonce: int, request: WireRequest, line: str, room: str, *, is_sent: bool
    ) -> None:
        """Keep a numbered request until it is settled; it *is_sent* now, or will be by `again`."""
        names_number = isinstance(request, Direct) and isinstance(request.to, int)
        is_message = isinstance(request, Say | Act | Direct)
        self._kept[nonce] = Kept(line, room, is_message, names_number, is_sent)
        if isinstance(request, Join):
            self._joins[nonce] = request.room

    def settle(self, nonce: Nonce | None) -> Kept | None:
        """Forget a request that has been answered; return it, if it waited."""
        if nonce is None:
            return None
        self._joins.pop(nonce, None)
        return self._kept.pop(nonce, None)

    def take_back(self, nonces: Iterable[Nonce]) -> None:
        """Forget requests that were not sent after all, or are not wanted any more."""
        for nonce in nonces:
            self.settle(nonce)

    def to_numbers(self) -> list[Nonce]:
        """Return the nonces of the private messages that are addressed by client number."""
        return [nonce for nonce, kept in self._kept.items() if kept.names_number]

    def again(self) -> list[str]:
        """Return the lines to send first on a new connection; from now on they count as sent."""
        for kept in self._kept.values():
            kept.is_sent = True
        return [kept.line for kept in self._kept.values()]
