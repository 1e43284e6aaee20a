"""A node's room logs on a real connection to an engine, without a server around them."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from multichat.backend.base import Entry, Fed, Lost, Proposal, RoomLog
from multichat.cluster.calls import begin_era
from multichat.cluster.connection import Connection, ConnectionConfig, Ready
from multichat.cluster.connection import Lost as LinkLost
from multichat.cluster.errors import EngineAway, EngineRefused, FateUnknown
from multichat.cluster.keys import NODES
from multichat.cluster.library import VERSION_CALL, load_command
from multichat.cluster.link import Link, MessagesDropped
from multichat.cluster.pipeline import Message
from multichat.cluster.room_logs import LogConfig, RoomLogs
from multichat.protocol.messages import Nonce, SaidBlock
from tests.support.processes import LOOPBACK, WAIT_SECONDS

from .engine import Engine
from .links import config
from .relay import Relay

__all__ = ["Follower", "Node", "relayed_node", "running_node"]


class Follower:
    """Applies what a log hands out, as a room does: *said* is what its members have."""

    def __init__(self, log: RoomLog) -> None:
        self.log = log
        self.said: list[tuple[str, str]] = []  # id and text
        self.start = log.next
        self.fed: list[Fed] = []
        self.lost = 0
        self._changed = trio.Event()

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.said]

    async def run(self) -> None:
        while True:
            fed = await self.log.receive()
            self.fed.append(fed)
            if isinstance(fed, Lost):
                self.lost += fed.count
                del self.said[max(0, fed.next - self.start) :]
                self.start = min(self.start, fed.next)
            elif isinstance(fed, Entry):
                said = fed.said
                assert said.first >= self.start + len(self.said)
                self.said += [
                    (self.log.id_of(said.first + i), text)
                    for i, text in enumerate(said.text.split("\n"))
                ]
                assert self.log.next == said.first + said.text.count("\n") + 1
            self._changed.set()

    async def until(self, messages: int) -> list[str]:
        """Wait until there are that many messages; return their texts."""
        with trio.fail_after(WAIT_SECONDS):
            while len(self.said) < messages:
                self._changed = trio.Event()
                await self._changed.wait()
        return self.texts

    async def until_lost(self) -> Lost:
        with trio.fail_after(WAIT_SECONDS):
            while not (lost := [fed for fed in self.fed if isinstance(fed, Lost)]):
                self._changed = trio.Event()
                await self._changed.wait()
        return lost[-1]

    async def entry_of(self, proposal: Proposal) -> Entry:
        with trio.fail_after(WAIT_SECONDS):
            while True:
                for fed in self.fed:
                    if isinstance(fed, Entry) and fed.proposal is proposal:
                        return fed
                self._changed = trio.Event()
                await self._changed.wait()


class Node:
    """A node called *name*: its logs, its *run*, and the link that it has now."""

    def __init__(self, name: str, logs: RoomLogs, nursery: trio.Nursery) -> None:
        self.name, self.logs = name, logs
        self.run = secrets.token_hex(8)
        self.link: Link | None = None
        self.era = 0
        self.ready = trio.Event()
        self._nursery = nursery

    async def follow(self, connection: Connection) -> None:
        """Do what a backend does with the events of its connection."""
        while True:
            match await connection.receive():
                case Ready(link):
                    try:
                        await self._open(link)
                    except (EngineAway, FateUnknown):
                        continue
                    self.link = link
                    self.logs.connected(link, self.run)
                    self.ready.set()
                case LinkLost():
                    self.link = None
                    self.ready = trio.Event()
                    self.logs.disconnected()
                case Message() as message:
                    assert self.logs.take(message)
                case MessagesDropped():
                    self.logs.messages_dropped()

    async def _open(self, link: Link) -> None:
        try:
            found = VERSION_CALL.decode(await link.call(*VERSION_CALL.words))
        except EngineRefused:
            found = None
        if (command := load_command(found)) is not None:
            await link.call(*command)
        engine = link.engine
        call = begin_era(
            f"{engine.run_id}/{engine.replication_id}", era=self.era, epoch=self.logs.epoch
        )
        self.era = call.decode(await link.call(*call.words))
        await link.call("HSET", NODES, self.name, self.run)

    async def open(self, room: str = "lobby") -> Follower:
        """Open a room, and follow its log."""
        pending = self.logs.load(room)
        if pending is not None:
            await pending.wait()
        follower = Follower(self.logs.room(room))
        self._nursery.start_soon(follower.run)
        return follower


def draft(text: str, *, client: int = 1, room: str = "lobby", name: str = "alice") -> SaidBlock:
    return SaidBlock("", 0, "2026-01-01T00:00:00.000Z", room, client, name, text)


def say(
    follower: Follower, text: str, *nonces: Nonce, client: int = 1, generation: int = 1
) -> Proposal:
    """Propose a message; its checks are those of its text."""
    checks = b"".join(one.encode().ljust(4)[:4] for one in text.split("\n")) if nonces else b""
    return follower.log.propose(draft(text, client=client), nonces, checks, generation)


async def said(
    follower: Follower, text: str, *nonces: Nonce, client: int = 1, generation: int = 1
) -> Proposal:
    """Propose a message, and wait until it is stored."""
    proposal = say(follower, text, *nonces, client=client, generation=generation)
    assert proposal.pending is not None
    with trio.fail_after(WAIT_SECONDS):
        await proposal.pending.wait()
    return proposal


@asynccontextmanager
async def running_node(
    engine: Engine,
    name: str = "a",
    *,
    log_config: LogConfig | None = None,
    connection: ConnectionConfig | None = None,
) -> AsyncIterator[Node]:
    """Run a node, connected to *engine* or as *connection* says."""
    made = Connection(connection or config(engine))
    logs = RoomLogs(log_config or LogConfig(node=name))
    async with made.open(), trio.open_nursery() as nursery:
        node = Node(name, logs, nursery)
        await nursery.start(logs.run)
        nursery.start_soon(node.follow, made)
        with trio.fail_after(WAIT_SECONDS):
            await node.ready.wait()
        yield node
        nursery.cancel_scope.cancel(reason="the test has ended")


@asynccontextmanager
async def relayed_node(
    engine: Engine, name: str = "a", *, log_config: LogConfig | None = None
) -> AsyncIterator[tuple[Node, Relay]]:
    """Run a node whose connection to *engine* is a relay."""
    relay = Relay(engine)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        made = config(engine)
        address = replace(made.address, hosts=((LOOPBACK, relay.port),))
        connection = replace(made, address=address)
        async with running_node(engine, name, log_config=log_config, connection=connection) as node:
            yield node, relay
        nursery.cancel_scope.cancel(reason="the test has ended")
