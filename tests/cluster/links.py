"""Links and connections to the engines of the tests, and scripted peers that are no engines."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from multichat.client.connect import client_tls
from multichat.cluster.address import ClusterAddress
from multichat.cluster.connection import Connection, ConnectionConfig, Ready
from multichat.cluster.link import EngineTimeouts, Link, LinkLimits, Login, open_link
from tests.support.processes import LOOPBACK

from .engine import Engine, certificates

# Short, for tests in which the engine is silent on purpose; the others use the defaults.
IMPATIENT = EngineTimeouts(ping=0.1, silence=0.5, connect=1, answer=1, sentinel=0.2)


def login(engine: Engine, **more: object) -> Login:
    """Return a login with which *engine* admits us."""
    tls = client_tls(certificates().authority) if engine.config.tls else None
    return replace(Login(password=engine.config.password, tls=tls), **more)  # type: ignore[arg-type]


@asynccontextmanager
async def linked(
    engine: Engine,
    *,
    timeouts: EngineTimeouts | None = None,
    limits: LinkLimits | None = None,
    port: int | None = None,
) -> AsyncIterator[Link]:
    """Run a link to *engine*, or through a proxy at *port*."""
    link = await open_link(
        LOOPBACK, port or engine.port, login(engine), timeouts=timeouts, limits=limits
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        yield link
        nursery.cancel_scope.cancel(reason="the test has ended")


def config(
    engine: Engine, *, timeouts: EngineTimeouts | None = None, port: int | None = None
) -> ConnectionConfig:
    """Return how to connect to *engine*, or through a proxy at *port*."""
    address = ClusterAddress.parse(engine.url)
    return ConnectionConfig(
        address=replace(address, hosts=((LOOPBACK, port or engine.port),)),
        login=login(engine),
        timeouts=timeouts or EngineTimeouts(),
    )


async def ready(connection: Connection) -> Link:
    """Return the link of the next event, which must be `Ready`."""
    event = await connection.receive()
    assert isinstance(event, Ready), event
    return event.link


@asynccontextmanager
async def peer(handle: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """Listen on a port of loopback, which is yielded, with *handle* for each connection."""
    [listener] = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel(reason="the test has ended")
