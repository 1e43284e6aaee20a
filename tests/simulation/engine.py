"""What goes over a `Link` between a node and its engine: calls, answers and pushes.

`SlowBackend` is the node's end, `local_engine` and `nodes.engine` have the engines.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from multichat.backend.base import DirectFate
from multichat.backend.events import BanRecord, ClientRecord
from multichat.journal.base import AccountRecord
from multichat.protocol.messages import Nonce, SaidBlock

from .link import Executor, Link

__all__ = [
    "Append",
    "Appended",
    "Ask",
    "DirectSettled",
    "Engine",
    "Fenced",
    "LogState",
    "Opened",
    "Stored",
]


@dataclass(frozen=True, kw_only=True)
class Append:
    """The call that proposes messages.

    *position* is the number of log records when they were proposed.
    """

    room: str
    draft: SaidBlock
    nonces: tuple[Nonce | None, ...]
    checks: bytes
    generation: int
    position: int


@dataclass(frozen=True)
class Appended:
    """The answer to `Append`: the ids of messages that were there *earlier*, or a *failure*."""

    earlier: Mapping[int, str] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class Stored:
    """A push: messages are in a room's log; *node* and *number* are those of the `Append`."""

    room: str
    said: SaidBlock
    node: object
    number: int
    earlier: Mapping[int, str]


@dataclass(frozen=True)
class Ask:
    """Any other call: a method of the engine with arguments; answered with what it returns."""

    method: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Fenced:
    """The answer to a call of a run of a node that was considered dead."""


@dataclass(frozen=True)
class DirectSettled:
    """The *fate* of a private message of a client of this node, which the engine called *id*."""

    id: str
    fate: DirectFate


@dataclass(frozen=True)
class LogState:
    """A room's log as the engine has it: what `RoomLog` says of it."""

    epoch: str
    next: int
    earlier: Mapping[str, int]


@dataclass(frozen=True)
class Opened:
    """What a node knows when it starts; see `Backend`."""

    accounts: Sequence[AccountRecord]
    topics: Mapping[str, str]
    bans: Sequence[BanRecord] = ()
    clients: Sequence[ClientRecord] = ()


class Engine(Executor):
    """What nodes call, and what they are told.

    With *is_shared*, other nodes may use it, too.
    """

    is_shared: bool = False

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""

    @abstractmethod
    def open(self, link: Link, node: object) -> Opened:
        """Let *node* in; it gets by *link* what happens from now on."""

    @abstractmethod
    def state(self, room: str) -> LogState:
        """Return the state of a room's log now."""

    @abstractmethod
    def first(self, room: str) -> int:
        """Return the number of the oldest message of a room."""

    @abstractmethod
    async def read(self, room: str, start: int, stop: int, *, max_bytes: int) -> list[SaidBlock]:
        """Read a room's messages; see `RoomLog.read`."""

    @abstractmethod
    async def read_before(
        self, room: str, stop: int, *, max_messages: int, max_bytes: int
    ) -> list[SaidBlock]:
        """Read a room's newest messages; see `RoomLog.read_before`."""
