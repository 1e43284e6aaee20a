"""A client of a server command that returns the answer to each of its messages."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from multichat.testing import ScriptedClient

from .processes import ServerCommand
from .sockets import open_client


@asynccontextmanager
async def speaking(server: ServerCommand) -> AsyncIterator["Speaker"]:
    client = await open_client(server.port)
    async with client.stream:
        await client.send('/json {"type":"hello","protocol":1}')
        while '"welcome"' not in await client.line():
            pass
        yield Speaker(client)


class Speaker:
    def __init__(self, client: ScriptedClient) -> None:
        self._client = client

    async def say(self, text: str, type_: str = "say") -> str:
        """Send *text*; return `accepted`, or the line of the error."""
        await self._client.send(f'{{"type":"{type_}","text":"{text}","nonce":"{text}"}}')
        while True:
            line = await self._client.line()
            if f'"nonce":"{text}"' in line and '"said"' not in line:
                return "accepted" if '"accepted"' in line else line
