"""A backend of a test: one node on a real engine, with the events that it has received."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from multichat.backend.base import Claim, DirectFate
from multichat.backend.events import ClientRecord, DirectReceived, Event
from multichat.cluster.address import ClusterAddress
from multichat.cluster.backend import ClusterConfig, ValkeyBackend
from multichat.cluster.changes import Settings
from multichat.cluster.connection import ConnectionConfig
from multichat.cluster.directory import DirectoryConfig
from multichat.cluster.link import EngineTimeouts
from multichat.log import Log
from multichat.protocol.messages import Directed, Nonce
from tests.cluster.engine import Engine
from tests.support.processes import WAIT_SECONDS

__all__ = ["Node", "cluster_config", "run_node"]

EventT = TypeVar("EventT", bound=Event)


def cluster_config(
    engine: Engine,
    name: str = "",
    *,
    lease: float = 10.0,
    renew: float = 0.2,
    unavailable: float = 3.0,
    direct: float = 5.0,
    follow: float = 15.0,
    timeouts: EngineTimeouts | None = None,
) -> ClusterConfig:
    """Return the configuration of a node; times in seconds."""
    return ClusterConfig(
        connection=ConnectionConfig(
            address=ClusterAddress.parse(engine.url), timeouts=timeouts or EngineTimeouts()
        ),
        node=name,
        directory=DirectoryConfig(
            settings=Settings(lease=int(lease * 1000)),
            renew_seconds=renew,
            direct_seconds=direct,
            follow_seconds=follow,
        ),
        unavailable_seconds=unavailable,
    )


class Node:
    """A running node; *heard* are the events that it has received."""

    def __init__(self, backend: ValkeyBackend) -> None:
        self.backend = backend
        self.heard: list[Event] = []
        self._more = trio.Event()

    async def listen(self) -> None:
        while True:
            self.heard.append(await self.backend.receive())
            self._more.set()

    async def wait_for(
        self, kind: type[EventT], matches: Callable[[EventT], bool] = lambda _: True
    ) -> EventT:
        """Wait for such an event; remove and return it."""
        with trio.fail_after(WAIT_SECONDS):
            while True:
                for event in self.heard:
                    if isinstance(event, kind) and matches(event):
                        self.heard.remove(event)
                        return event
                self._more = trio.Event()
                await self._more.wait()

    async def claim(self, client: int, name: str, generation: int = 1, **options: str) -> None:
        options = {"origin": f"of {client}", **options}
        await self.backend.claim(
            Claim(client=client, generation=generation, name=name, **options)  # type: ignore[arg-type]
        )

    async def said_to_itself(self, client: int, nonce: Nonce, check: bytes) -> None:
        """Let *client* send itself a private message, which is delivered."""
        message = Directed(client=client, name="", text="to do")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.answer_direct)
            fate = await self.backend.send_direct(
                client, message, generation=1, nonce=nonce, check=check
            )
        assert fate is DirectFate.DELIVERED

    async def answer_direct(self, delivered: bool = True) -> DirectReceived:
        """Wait for a private message, and answer it."""
        received = await self.wait_for(DirectReceived)
        self.backend.answer_direct(received, delivered=delivered)
        return received

    def put(self, client: int, generation: int = 1, **fields: str) -> ClientRecord:
        fields = {"origin": f"of {client}", **fields}
        record = ClientRecord(client=client, generation=generation, rooms=("lobby",), **fields)
        self.backend.put_client(record)
        return record


@asynccontextmanager
async def run_node(config: ClusterConfig) -> AsyncGenerator[Node]:
    """Run a node in the block; it ends in order.  Raises as `Backend.run` does."""
    node = Node(ValkeyBackend(config, Log("server")))
    async with trio.open_nursery() as nursery:
        await nursery.start(node.backend.run)
        nursery.start_soon(node.listen)
        yield node
        nursery.cancel_scope.cancel(reason="the test has ended")
