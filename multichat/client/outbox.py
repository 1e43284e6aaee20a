"""Outbox: the requests of a client that have not been answered yet, in order.  Pure.

Owns the nonces of a chat, which outlives its connections: by its nonce the server recognizes a
request that is sent again.  On the next connection the unanswered requests are sent again, with
their nonces and before anything new.  A passphrase is never sent again: it was meant for one
connection.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    Act,
    ChangePassphrase,
    Direct,
    Enter,
    Exit,
    Join,
    Login,
    Nonce,
    Register,
    Say,
    Start,
    WireRequest,
)
from multichat.protocol.names import fold_name

__all__ = ["Outbox", "Pending"]


@dataclass(slots=True)
class Pending:
    """A request with its *nonce*, encoded as *line*.

    *is_sent* says that it was handed to a connection, so that it may have arrived.
    """

    nonce: int
    request: WireRequest
    line: str = field(repr=False)
    is_sent: bool = False

    @property
    def is_message(self) -> bool:
        """Whether it is a message, in a room or private."""
        return isinstance(self.request, Say | Act | Direct)

    @property
    def is_secret(self) -> bool:
        """Whether it holds a passphrase."""
        return isinstance(self.request, Register | Login | ChangePassphrase)


class Outbox:
    """The unanswered requests of one chat.

    There MUST NOT be more than `MAX_UNACCEPTED`.  `encode` a request, `add` it in the step in which
    it is handed to a connection or left to the next one, and `settle` it when it is answered.
    """

    def __init__(self) -> None:
        self._nonce = 0
        self._pending: dict[Nonce, Pending] = {}
        self._moves: dict[Nonce, Join | Enter | Exit] = {}  # those of them that change our rooms

    def __len__(self) -> int:
        """How many requests are unanswered."""
        return len(self._pending)

    def __contains__(self, nonce: Nonce | None) -> bool:
        """Return whether the request with that nonce is unanswered."""
        return nonce in self._pending

    @property
    def messages(self) -> int:
        """How many of them are messages."""
        return sum(each.is_message for each in self._pending.values())

    @property
    def messages_sent(self) -> int:
        """How many of the messages were sent, and so may have arrived."""
        return sum(each.is_message and each.is_sent for each in self._pending.values())

    def next_room(self, rooms: Sequence[str]) -> str:
        """Return the current room once everything is answered, given our present *rooms*."""
        if not self._moves:
            return rooms[-1] if rooms else ""
        rooms = list(rooms)
        for move in self._moves.values():
            others = [room for room in rooms if fold_name(room) != fold_name(move.room)]
            match move:
                case Join():
                    rooms = [move.room]
                case Enter():
                    rooms = [*others, move.room]
                case Exit():
                    rooms = others or rooms
        return rooms[-1] if rooms else ""

    def entering(self) -> dict[str, Start]:
        """Return the rooms that we may have entered: the request was sent and is unanswered."""
        return {
            move.room: Start(move.since, move.replay)
            for nonce, move in self._moves.items()
            if isinstance(move, Enter) and self._pending[nonce].is_sent
        }

    def encode(self, request: WireRequest) -> Pending:
        """Give a request the next nonce and encode it."""
        self._nonce += 1
        numbered = msgspec.structs.replace(request, nonce=self._nonce)
        return Pending(self._nonce, request, JSON.encode_request(numbered))

    def add(self, pending: Pending, *, is_sent: bool) -> None:
        """Keep an encoded request until it is settled; it *is_sent* now, or will be by `resend`."""
        pending.is_sent = is_sent
        self._pending[pending.nonce] = pending
        if isinstance(pending.request, Join | Enter | Exit):
            self._moves[pending.nonce] = pending.request

    def settle(self, nonce: Nonce | None) -> Pending | None:
        """Remove a request that has been answered; return it, if it was unanswered."""
        if nonce is None:
            return None
        self._moves.pop(nonce, None)
        return self._pending.pop(nonce, None)

    def withdraw(self, nonces: Iterable[Nonce]) -> None:
        """Remove requests that were not sent after all, or whose answer nobody needs any more."""
        for nonce in nonces:
            self.settle(nonce)

    def addressed_by_number(self) -> list[Nonce]:
        """Return the nonces of the private messages that are addressed by client number."""
        return [
            nonce
            for nonce, pending in self._pending.items()
            if isinstance(pending.request, Direct) and isinstance(pending.request.to, int)
        ]

    def secrets(self) -> list[Nonce]:
        """Return the nonces of the requests that hold a passphrase."""
        return [nonce for nonce, pending in self._pending.items() if pending.is_secret]

    def resend(self) -> list[str]:
        """Return the lines to send first on a new connection; from now on they count as sent."""
        for pending in self._pending.values():
            pending.is_sent = True
        return [pending.line for pending in self._pending.values()]
