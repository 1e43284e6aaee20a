"""The node's connection to the engine: one link at a time, with visible reconnects.

Every change is reported to the caller.  Nothing is resubscribed, repeated or made up for here,
because only the caller knows what it missed.

Invariants:

1. There is at most one link.  `Ready` contains it, and `Lost` comes before the next `Ready`.
2. What `receive` has not yet returned is bounded: the messages of a link by its limits; and a link
   that was lost before its `Ready` was received is not reported at all.
"""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import trio

from multichat.client.backoff import backoff
from multichat.cluster.address import ClusterAddress, format_host
from multichat.cluster.errors import EngineAway, EngineUnavailable
from multichat.cluster.link import (
    Dial,
    EngineTimeouts,
    Link,
    LinkLimits,
    Login,
    MessagesDropped,
    open_link,
    open_stream,
)
from multichat.cluster.pipeline import Message
from multichat.cluster.sentinel import Primary, find_primary
from multichat.errors import lone_exception
from multichat.net.durations import DurationRecorder

__all__ = ["Connection", "ConnectionConfig", "Event", "Lost", "Ready", "Retrying"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionConfig:
    """The address of the engine, and how to connect to it.

    *address* also has the user, the database and whether TLS is used; *login* has the rest.  *dial*
    opens the stream to the engine; Sentinels are always asked over TCP.
    """

    address: ClusterAddress
    login: Login = field(default_factory=Login)
    timeouts: EngineTimeouts = field(default_factory=EngineTimeouts)
    limits: LinkLimits = field(default_factory=LinkLimits)
    dial: Dial = open_stream


@dataclass(frozen=True, slots=True)
class Ready:
    """A new *link* is ready; nothing is subscribed on it."""

    link: Link


@dataclass(frozen=True, slots=True)
class Lost:
    """The link has ended, and with it its requests (with `FateUnknown`) and subscriptions."""

    reason: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """The engine is still away, for this *reason*; sent whenever the reason changes."""

    reason: str


Event = Ready | Lost | Retrying | Message | MessagesDropped


class Connection:
    """A connection to the primary that *config* describes; see `open`.

    *round_trips* is called with the duration of each request.
    """

    def __init__(
        self, config: ConnectionConfig, round_trips: DurationRecorder | None = None
    ) -> None:
        self._config = config
        self._round_trips = round_trips or DurationRecorder()
        self._notes: deque[Ready | Lost | Retrying] = deque()
        self._noted = trio.Event()
        self._taken: Link | None = None  # the link whose messages are received
        self._lost_at: float | None = None
        self._primary: Primary | None = None  # the latest that the Sentinels reported
        self._login = replace(
            config.login, user=config.address.user, database=config.address.database
        )

    def change_password(self, password: str) -> None:
        """Use *password* from the next link on; the current link stays."""
        self._login = replace(self._login, password=password)

    @asynccontextmanager
    async def open(self, tell: Callable[[str], None] = lambda _: None) -> AsyncGenerator[None]:
        """Connect, and stay connected while the block runs.

        The first event is `Ready`, unless that link is lost before it is received.  Waits while
        the engine is loading its data, and calls *tell* once with the reason; otherwise raises
        `EngineUnavailable` if the first attempt fails.
        """
        link = await self._open_first(tell)
        with lone_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run, link)
                yield
                nursery.cancel_scope.cancel(reason="the connection is not needed any more")

    async def receive(self) -> Event:
        """Return the next event, in order.  For one task at a time.

        That task may make requests itself: replies do not depend on it calling `receive`.
        """
        while True:
            if self._notes:
                note = self._notes.popleft()
                self._taken = note.link if isinstance(note, Ready) else None
                await trio.lowlevel.checkpoint()
                return note
            if self._taken is None:
                self._noted = trio.Event()
                await self._noted.wait()
                continue
            try:
                return await self._taken.receive()
            except EngineAway:
                self._taken = None  # the note of its loss follows

    @property
    def away_seconds(self) -> float:
        """How long there has been no link; 0 if there is one."""
        return 0.0 if self._lost_at is None else trio.current_time() - self._lost_at

    def _note(self, note: Ready | Lost | Retrying) -> None:
        notes = self._notes
        if isinstance(note, Lost) and notes and isinstance(notes[-1], Ready):
            notes.pop()  # it was not received yet
            note = Retrying(note.reason)
        if isinstance(note, Retrying) and notes and isinstance(notes[-1], Retrying):
            notes.pop()
        notes.append(note)
        self._noted.set()

    async def _run(self, link: Link) -> None:
        timeouts = self._config.timeouts
        pauses = backoff(timeouts.for_dialing())
        while True:
            self._lost_at = None
            self._note(Ready(link))
            started = trio.current_time()
            reason = await self._serve(link)
            self._lost_at = trio.current_time()
            self._note(Lost(reason))
            # An engine that accepts us and closes at once must not be tried ten times a second.
            if self._lost_at - started > timeouts.longest_retry:
                pauses = backoff(timeouts.for_dialing())
            link = await self._reconnect(reason, pauses)

    async def _serve(self, link: Link) -> str:
        """Run *link* and return the reason why it ended."""
        async with trio.open_nursery() as nursery:
            if self._config.address.sentinel_name:
                nursery.start_soon(self._watch_sentinels, link)
            reason = await link.run()
            nursery.cancel_scope.cancel(reason=reason)
        return reason

    async def _watch_sentinels(self, link: Link) -> None:
        """End *link* when the Sentinels report another primary."""
        while True:
            await trio.sleep(self._config.timeouts.sentinel)
            with suppress(EngineUnavailable):  # a link that works needs no Sentinels
                await self._ask_sentinels()
            assert self._primary is not None  # noqa: S101
            where = format_host(self._primary.host, self._primary.port)
            if where != link.engine.where:
                link.end(f"the primary is now {where}")

    async def _reconnect(self, lost: str, pauses: Iterator[float]) -> Link:
        told = lost
        while True:
            await trio.sleep(next(pauses))
            try:
                return await self._open_link()
            except EngineUnavailable as error:
                if error.reason != told:
                    told = error.reason
                    self._note(Retrying(error.reason))

    async def _open_first(self, tell: Callable[[str], None]) -> Link:
        pauses = backoff(self._config.timeouts.for_dialing())
        is_told = False
        while True:
            try:
                return await self._open_link()
            except EngineUnavailable as error:
                if not error.is_loading:
                    raise
                if not is_told:
                    is_told = True
                    tell(f"waiting for the engine at {error.where}: {error.reason}")
            await trio.sleep(next(pauses))

    async def _open_link(self) -> Link:
        config = self._config
        host, port = config.address.hosts[0]
        if config.address.sentinel_name:
            primary = await self._ask_sentinels()
            host, port = primary.host, primary.port
        try:
            return await open_link(
                host,
                port,
                self._login,
                timeouts=config.timeouts,
                limits=config.limits,
                round_trips=self._round_trips,
                dial=config.dial,
            )
        except EngineUnavailable:
            self._primary = None  # believe the Sentinels that can be reached
            raise

    async def _ask_sentinels(self) -> Primary:
        """Return the latest primary that a Sentinel reported; raises `EngineUnavailable`."""
        address = self._config.address
        found = await find_primary(
            address.hosts, address.sentinel_name, self._login, self._config.timeouts
        )
        if self._primary is None or found.epoch >= self._primary.epoch:
            self._primary = found
        return self._primary
