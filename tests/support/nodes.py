"""Several servers in memory that are nodes of one chat."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from multichat import ServerConfig
from multichat.backend.base import Backend
from multichat.server.passphrases import Hasher
from multichat.testing import MemoryServer, memory_server

from .programs import JsonClient

__all__ = ["events_of", "nodes_on"]


@asynccontextmanager
async def nodes_on(
    *backends: Backend,
    config: ServerConfig | None = None,
    hasher: Hasher | None = None,
    seconds: float,
) -> AsyncGenerator[list[MemoryServer]]:
    """Run a server on each of *backends* while the block runs, which takes at most *seconds*.

    They are started in this order, and ended in the other.
    """
    with trio.fail_after(seconds):
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    memory_server(config, backend=backend, hasher=hasher)
                )
                for backend in backends
            ]


async def events_of(client: JsonClient, *, after: float) -> list[dict[str, Any]]:
    """Return the events that *client* has received *after* so many seconds."""
    await trio.sleep(after)
    events: list[dict[str, Any]] = []
    nonce = f"quiet {trio.current_time()}"
    await client.send({"type": "ping", "nonce": nonce})
    while (event := await client.hear_any()).get("nonce") != nonce:
        events.append(event)
    return events
