"""Private messages in transit through the engine, each delivered at most once.

The engine accepts a message and records its nonce in one step.  The recipient's node, which may be
the sender's, claims the message, delivers it, and reports the delivery.

Invariants:

1. A message that may have been delivered is never delivered again, whichever node its sender has
   resumed on: a repetition with the same nonce waits for the outcome of the first one.
2. The answers "delivered" and "not delivered" are certain.  Everything else is "unknown".
3. A report that the engine has lost in a failover is repeated: otherwise the message would stay
   claimed, and each repetition of it be answered with "unknown", until its recipient's node ends.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import trio

from multichat.backend.base import DirectFate
from multichat.backend.events import Event
from multichat.cluster.calls import encode_nonce
from multichat.cluster.changes import (
    Change,
    FinishDirect,
    SendDirect,
    WithdrawDirect,
    read_direct,
)
from multichat.cluster.errors import PerhapsMade, Rejected
from multichat.errors import NonceReused, StorageFailed
from multichat.protocol.messages import Directed, Nonce

__all__ = ["Directs"]

# The latest reports, which are kept to be repeated: more than a node makes in the seconds that an
# engine may lose.
_MAX_REPORTS = 5000

_REPLACED = "the session was resumed on another server"

_FATES = {each.value: each for each in DirectFate}


class _Directory(Protocol):
    """The directory of the node."""

    run: str

    async def decide(self, change: Change) -> Sequence[Any]: ...

    def report(self, change: Change) -> None: ...

    def tell(self, event: Event) -> None: ...


class _Direct:
    """A private message whose sender waits for its *fate*, which is None until it is known."""

    __slots__ = ("done", "fate")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.fate: DirectFate | None = None


class Directs:
    """The private messages that clients of this node have sent, and the reports of received ones.

    A message waits *wait_seconds* for the recipient's node to claim it, and then *claimed_seconds*
    for the result: by then that node has answered, or counts as dead.
    """

    def __init__(
        self, directory: _Directory, *, wait_seconds: float, claimed_seconds: float
    ) -> None:
        self._directory = directory
        self._wait_seconds, self._claimed_seconds = wait_seconds, claimed_seconds
        self._waiting: dict[str, _Direct] = {}  # by the id of the message
        self._last = 0
        self._reports: deque[FinishDirect] = deque(maxlen=_MAX_REPORTS)

    async def send(
        self, to: int, message: Directed, *, generation: int, nonce: Nonce | None, check: bytes
    ) -> DirectFate:
        """Send a private message; see `Backend.send_direct`."""
        self._last += 1
        change = SendDirect(
            id=f"{self._directory.run}-{self._last}",
            to=to,
            message=msgspec.json.encode(message).decode(),
            client=message.client,
            generation=generation,
            nonce="" if nonce is None else encode_nonce(nonce).decode(),
            check=check.hex() or "-",
        )
        direct = self._waiting[change.id] = _Direct()
        try:
            return await self._send(change, direct, nonce)
        finally:
            for id_ in [id_ for id_, each in self._waiting.items() if each is direct]:
                del self._waiting[id_]

    async def _send(self, change: SendDirect, direct: _Direct, nonce: Nonce | None) -> DirectFate:
        try:
            id_, _ = await self._directory.decide(change)
        except PerhapsMade:
            return direct.fate or DirectFate.UNKNOWN
        except Rejected as error:
            if error.code == "fenced":
                raise StorageFailed(_REPLACED) from None
            if error.code == "nonce-reused":
                raise NonceReused(nonce or "") from None
            return _FATES.get(error.code, DirectFate.NOT_DELIVERED)  # or it has left
        with trio.move_on_after(self._wait_seconds):
            await direct.done.wait()
        if direct.fate is None and await self._withdraw(id_):
            return DirectFate.NOT_DELIVERED
        if direct.fate is None:  # the recipient's node is about to deliver it, or is frozen
            with trio.move_on_after(self._claimed_seconds):
                await direct.done.wait()
        return direct.fate or DirectFate.UNKNOWN

    async def _withdraw(self, id_: str) -> bool:
        """Withdraw the message; return False if it was claimed, and so may be delivered."""
        try:
            await self._directory.decide(WithdrawDirect(id_))
        except (Rejected, StorageFailed):
            return False
        return True

    def sent(self, change: SendDirect, result: Sequence[Any]) -> None:
        """Handle the *result* of a *change*; called in the step in which it becomes known.

        The engine may have the message with that nonce under another id.  This node delivers a
        message for one of its own clients as if it came from another node.
        """
        _, id_, is_here = result
        if (direct := self._waiting.get(change.id)) is not None:
            self._waiting[id_] = direct
        if is_here and (received := read_direct(id_, change.to, change.message)) is not None:
            self._directory.tell(received)

    def settled(self, id_: str, fate: str) -> None:
        """Record the *fate* of a message that this node has sent."""
        if (direct := self._waiting.get(id_)) is not None:
            direct.fate = _FATES.get(fate, DirectFate.UNKNOWN)
            direct.done.set()

    def answer(self, id_: str, *, delivered: bool) -> None:
        """Report the outcome of a message that this node was to deliver."""
        report = FinishDirect(id_, delivered)
        self._reports.append(report)
        self._directory.report(report)

    def reports(self) -> Sequence[FinishDirect]:
        """Return the latest reports, for an engine that may lack some of them."""
        return tuple(self._reports)
