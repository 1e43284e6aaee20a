"""Calls the functions of the library in an engine of the tests; and mutates the library."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import hiredis
import trio

from multichat.cluster.calls import Answer, Block, Call, append, begin_era
from multichat.cluster.keys import NODES, PREFIX, room_channel
from multichat.cluster.library import library_text
from multichat.protocol.messages import Nonce, SaidBlock
from tests.support.processes import LOOPBACK, WAIT_SECONDS

from .engine import Engine, EngineError

__all__ = ["Caller", "block", "calling", "mutated", "room_stream"]

T = TypeVar("T")


def room_stream(room: str) -> str:
    """Return the stream with the messages of the room with that key."""
    return f"{PREFIX}log:{room}"


def block(
    text: str,
    *,
    room: str = "lobby",
    client: int = 1,
    generation: int = 1,
    nonces: tuple[Nonce | None, ...] = (),
    checks: bytes | None = None,
    name: str = "alice",
) -> Block:
    """Return messages to append; each has a check of its own text unless others are given."""
    draft = SaidBlock("", 0, "2026-01-01T00:00:00.000Z", room, client, name, text)
    if checks is None and nonces:
        checks = b"".join(one.encode().ljust(4)[:4] for one in text.split("\n"))
    return Block.of(room, generation, draft, nonces, checks or b"")


def mutated(*changes: tuple[str, str]) -> str:
    """Return the library with each *old* text, which occurs once, replaced by *new*."""
    text = library_text()
    for old, new in changes:
        assert text.count(old) == 1, f"{text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text


class Caller:
    """One connection, on which a node's calls are made, and pushes arrive."""

    def __init__(self, stream: trio.abc.Stream, *, node: str = "a", run: str = "run-a") -> None:
        self._stream = stream
        self.reader = hiredis.Reader(notEnoughData=Ellipsis)
        self.node, self.run, self.sequence = node, run, 0
        self.pushes: list[Any] = []

    async def send(self, *words: str | bytes | int) -> None:
        await self._stream.send_all(hiredis.pack_command(words))  # type: ignore[arg-type]

    async def _next(self) -> Any:
        with trio.fail_after(WAIT_SECONDS):
            while (reply := self.reader.gets()) is Ellipsis:
                data = await self._stream.receive_some()
                if not data:
                    raise trio.BrokenResourceError("the engine has closed the connection")
                self.reader.feed(bytes(data))
        return reply

    async def command(self, *words: str | bytes | int) -> Any:
        """Send a command and return its reply; raises `EngineError`."""
        await self.send(*words)
        return await self.reply()

    async def reply(self) -> Any:
        while isinstance(reply := await self._next(), hiredis.PushNotification):
            self.pushes.append(list(reply))
        if isinstance(reply, hiredis.ReplyError):
            raise EngineError(str(reply))
        return reply

    async def push(self) -> list[Any]:
        """Return the next push."""
        while not self.pushes:
            reply = await self._next()
            assert isinstance(reply, hiredis.PushNotification), reply
            self.pushes.append(list(reply))
        push: list[Any] = self.pushes.pop(0)
        return push

    async def subscribe(self, room: str) -> None:
        """Get the pushes of *room* from now on."""
        await self.subscribe_to(room_channel(room))

    async def subscribe_to(self, channel: str) -> None:
        """Get what is published on *channel* from now on; what came before is dropped."""
        await self.send("SUBSCRIBE", channel)
        while (await self.push())[0] != b"subscribe":
            pass

    async def call(self, call: Call[T]) -> T:
        return call.decode(await self.command(*call.words))

    async def load(self, text: str | None = None) -> None:
        """Load the library, by default ours, and register this node's run."""
        await self.command("FUNCTION", "LOAD", "REPLACE", text or library_text())
        await self.register()

    async def register(self) -> None:
        await self.command("HSET", NODES, self.node, self.run)

    async def begin_era(self, primary: str, *, era: int = 0, epoch: str = "") -> int:
        return await self.call(begin_era(primary, era=era, epoch=epoch))

    def append_call(self, *blocks: Block, sequence: int | None = None) -> Call[list[Answer]]:
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        return append(self.node, self.run, sequence, blocks, nonce_seconds=600)

    async def append(self, *blocks: Block, sequence: int | None = None) -> list[Answer]:
        """Append blocks, as a new call, or again as that *sequence*."""
        return await self.call(self.append_call(*blocks, sequence=sequence))


@asynccontextmanager
async def calling(engine: Engine, *, node: str = "a", run: str = "run-a") -> AsyncIterator[Caller]:
    """Connect to *engine*, with RESP3."""
    async with await trio.open_tcp_stream(LOOPBACK, engine.port) as stream:
        caller = Caller(stream, node=node, run=run)
        await caller.command("HELLO", 3)
        yield caller
