"""A scripted server for a client that reconnects."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from multichat import Chat, ConnectFailed, Said
from multichat.client.line_chat import LineChat
from multichat.client.negotiation import PROBE, PROBE_ANSWER
from multichat.testing import ScriptedClient
from tests.support.clients import open_line_chat

__all__ = ["Network", "Peer", "conversation", "numbers"]


class Peer(ScriptedClient):
    """The server's end of one connection."""

    async def read(self) -> dict[str, Any]:
        line = await self.line()
        value: dict[str, Any] = json.loads(line.removeprefix("/json "))
        return value

    async def tell(self, type_: str, **fields: object) -> None:
        await self.send(json.dumps({"type": type_, **fields}, separators=(",", ":")))

    async def admit_probe(self) -> None:
        """Receive what comes before a hello with a passphrase, and answer it as our server does."""
        assert await self.line() == PROBE
        await self.send(PROBE_ANSWER)

    async def welcome(self, **fields: object) -> dict[str, Any]:
        """Receive the hello, answer it, and return it."""
        hello = await self.read()
        answer: dict[str, object] = {
            "protocol": 1,
            "client": 7,
            "name": hello.get("name", "Client 7"),
            "room": hello.get("room", "lobby"),
            "members": 2,
            "limits": {"line": 65536, "name": 32},
            "last": "e-0001",
            "server": "scripted",
            "session": "token",
            "resumed": "session" in hello,
        }
        if len(rooms := hello.get("rooms", {})) > 1:
            answer["room"] = hello.get("room", list(rooms)[-1])
            answer["rooms"] = {room: {"members": 2, "last": "e-0001"} for room in rooms}
        await self.tell("welcome", **(answer | fields))
        return hello

    async def say(self, *numbers: int, room: str = "lobby") -> None:
        for number in numbers:
            await self.tell(
                "said", id=f"e-{number:04}", room=room, client=1, name="bob", text=str(number)
            )

    async def accept(self, count: int = 1) -> list[dict[str, Any]]:
        """Receive that many requests, accept them, and return them."""
        requests = [await self.read() for _ in range(count)]
        for request in requests:
            await self.tell("accepted", nonce=request["nonce"], id=f"e-{request['nonce']:02}00")
        return requests

    async def reset(self) -> None:
        await trio.aclose_forcefully(self.stream)


class Network:
    """A network in which the test controls the server's end of each dialled connection."""

    def __init__(self) -> None:
        self.down: ConnectFailed | None = None
        self.dialled: list[float] = []
        self._send, self._receive = trio.open_memory_channel[Peer](100)

    async def dial(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.dialled.append(trio.current_time())
        if self.down is not None:
            raise self.down
        ours, theirs = trio.testing.memory_stream_pair()
        self._send.send_nowait(Peer(theirs))
        return ours

    async def peer(self) -> Peer:
        """Return the server's end of the next connection."""
        return await self._receive.receive()


@asynccontextmanager
async def conversation(**options: Any) -> AsyncIterator[tuple[LineChat, Network, Peer]]:
    """Open a chat, after its first welcome."""
    network = Network()
    stream = await network.dial()
    peer = await network.peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.welcome)
        async with open_line_chat(stream, redial=network.dial, **options) as chat:
            yield chat, network, peer
            nursery.cancel_scope.cancel(reason="the test is over")


async def numbers(chat: Chat, count: int) -> list[int]:
    """Return the numbers in the next *count* messages; other events are dropped."""
    heard: list[int] = []
    while len(heard) < count:
        event = await anext(chat)
        if isinstance(event, Said):
            heard.append(int(event.text))
    return heard
