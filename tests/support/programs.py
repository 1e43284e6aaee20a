"""JSON clients over any stream."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import trio

from multichat.testing import MemoryServer, ScriptedClient

from .processes import ServerCommand
from .sockets import open_client


class JsonClient:
    """A JSON client; *welcome* is the last welcome that it received.

    *ids* are those of the messages that it has sent, or received by `hear`, by text.
    """

    def __init__(self, client: ScriptedClient) -> None:
        self._client = client
        self._nonces = 0
        self.welcome: dict[str, Any] = {}
        self.ids: dict[str, str] = {}

    async def hello(self, **fields: object) -> Self:
        """Send a hello with these fields, and receive the welcome."""
        await self._client.send(f"/json {json.dumps(fields)}")
        self.welcome = await self.hear("welcome")
        return self

    async def send(self, *requests: Mapping[str, object]) -> None:
        """Send requests in one call of `send_all`."""
        await self._client.send(*map(json.dumps, requests))

    async def hear(self, *types: str) -> dict[str, Any]:
        """Return the next event of one of these types."""
        while True:
            line = await self._client.line()
            if line.startswith("{"):  # otherwise it is text from before the hello was read
                event: dict[str, Any] = json.loads(line)
                if event["type"] == "said":
                    self.ids[event["text"]] = event["id"]
                if event["type"] in types:
                    return event

    async def hear_any(self) -> dict[str, Any]:
        """Return the next event."""
        event: dict[str, Any] = json.loads(await self._client.line())
        return event

    async def said(self) -> tuple[str, str]:
        """Return the room and the text of the next message."""
        event = await self.hear("said")
        return event["room"], event["text"]

    async def answer(self, nonce: object) -> dict[str, Any]:
        """Return the next event with that nonce."""
        while True:
            event: dict[str, Any] = json.loads(await self._client.line())
            if event.get("nonce") == nonce:
                return event

    async def ask(self, type_: str, **fields: object) -> dict[str, Any]:
        """Send a request, with a new nonce unless one is given, and return the answer."""
        self._nonces += 1
        request = {"type": type_, "nonce": f"ask {self._nonces}", **fields}
        await self.send(request)
        return await self.answer(request["nonce"])

    async def say(self, *texts: str) -> None:
        """Say *texts*, one after the other is accepted."""
        for text in texts:
            self.ids[text] = (await self.ask("say", text=text))["id"]

    async def history(self) -> list[str]:
        """Return the history of its room."""
        page = await self.ask("history", limit=100)
        return [said["text"] for said in page["messages"]]

    async def reset(self) -> None:
        """Reset the connection."""
        await trio.aclose_forcefully(self._client.stream)


async def join(network: MemoryServer, **fields: object) -> JsonClient:
    """Connect to a server in memory, and send a hello with these fields."""
    return await JsonClient(await network.join()).hello(**fields)


@asynccontextmanager
async def program(server: ServerCommand, **fields: object) -> AsyncIterator[JsonClient]:
    """Connect to a server, and send a hello with these fields."""
    client = await open_client(server.port)
    async with client.stream:
        yield await JsonClient(client).hello(**fields)
