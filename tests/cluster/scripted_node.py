"""A node of a test: calls the directory's functions one at a time, on a real engine."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgspec

from multichat.backend.events import ClientRecord
from multichat.cluster.changes import (
    Change,
    ClaimName,
    Fed,
    FeedEvent,
    Gone,
    PutClient,
    ReadSession,
    SaveSession,
    Settings,
    Snapshot,
    TakeSession,
    pack,
    read_event,
    read_snapshot,
)
from tests.cluster.engine import Engine

__all__ = ["ScriptedNode", "digest", "events_of"]


@dataclass
class ScriptedNode:
    """One node.  `change` sends a batch, and returns the results."""

    engine: Engine
    name: str
    settings: Settings = field(default_factory=Settings)
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    sequence: int = 0

    async def join(self) -> int:
        """Start; return the number of the last event."""
        number: int = await self._call("multichat_join", pack(self.settings), self.sequence)
        return number

    async def renew(self) -> bool:
        """Renew the lease; return whether it is to be called again."""
        _, again = await self._call("multichat_renew", pack(self.settings))
        return bool(again)

    async def end(self, reason: str = "") -> None:
        await self._call("multichat_end_node", pack(self.settings), reason)

    async def change(self, *changes: Change) -> list[list[Any]]:
        self.sequence += 1
        return await self.repeat(*changes)

    async def repeat(self, *changes: Change) -> list[list[Any]]:
        """Send a batch with the number of the last one."""
        _, packed = await self._call(
            "multichat_change", self.sequence, pack(self.settings), pack(changes)
        )
        results: list[list[Any]] = msgspec.msgpack.decode(packed)
        return results

    async def one(self, change: Change) -> list[Any]:
        """Send a batch of one, and return its result."""
        [result] = await self.change(change)
        return result

    async def claim(
        self,
        client: int,
        name: str,
        generation: int = 1,
        *,
        account: str = "",
        login: bool = False,
        origin: str = "",
    ) -> list[Any]:
        origin = origin or f"of {client}"
        return await self.one(
            ClaimName.of(client, generation, name, account=account, login=login, origin=origin)
        )

    async def put(self, client: int, generation: int = 1, **fields: Any) -> list[Any]:
        return await self.one(PutClient.of(record(client, generation, **fields)))

    async def gone(
        self, client: int, generation: int = 1, reason: str = "", keep: int = -1
    ) -> list[Any]:
        return await self.one(Gone(client, generation, reason, keep))

    async def save_session(
        self, client: int, token: str, generation: int = 1, *, connected: bool = True
    ) -> list[Any]:
        stored = f"record {client}"
        return await self.one(SaveSession(digest(token), client, generation, stored, connected))

    async def take_session(self, token: str, generation: int = 1) -> list[Any]:
        return await self.one(TakeSession(digest(token), generation))

    async def session(self, token: str) -> list[Any]:
        return await self.one(ReadSession(digest(token)))

    async def events(self, after: int = 0) -> list[Fed]:
        """Return the events after that number."""
        flat = await self.engine.call("FCALL_RO", "multichat_events", 0, after, 10_000)
        assert flat[::2] == list(range(after + 1, after + 1 + len(flat) // 2))
        return [fed for event in flat[1::2] if (fed := read_event(event)) is not None]

    async def snapshot(self) -> Snapshot:
        return read_snapshot(await self.engine.call("FCALL_RO", "multichat_snapshot", 0))

    async def _call(self, function: str, *arguments: str | bytes | int) -> Any:
        return await self.engine.call("FCALL", function, 0, self.name, self.run, *arguments)


def record(client: int, generation: int = 1, **fields: Any) -> ClientRecord:
    """Return the record of a client, by default in the lobby."""
    fields = {"rooms": ("lobby",), "origin": f"of {client}", **fields}
    return ClientRecord(client=client, generation=generation, **fields)


def digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def events_of(feed: Sequence[Fed]) -> list[FeedEvent]:
    return [each.event for each in feed]
