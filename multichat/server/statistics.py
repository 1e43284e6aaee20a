"""The statistics of a server, as snapshots of its counters and state.

Everything is counted where it happens, per batch or less often, or looked up when a snapshot is
taken; a snapshot takes half a microsecond for each client.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from multichat.backend.base import Backend
from multichat.net.durations import Durations
from multichat.net.turns import Turns
from multichat.server.connections import Connections
from multichat.server.loop_watch import LoopWatch
from multichat.server.registry import Registry

__all__ = ["Durations", "ServerStatistics", "StatisticsSource"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerStatistics:
    """A server's counters since it started, and its present state.

    *clients* are connected, in *rooms* that have members here.  *clients_ever* is the number of
    admitted clients, and *refused* that of rejected connections.  *messages* counts accepted
    messages.  *deliveries* counts a message once for each member that got it live, *skipped* once
    for each that missed it under the `drop` policy, and *missed* once for each that was informed
    that it missed it, because the history no longer had it or because the server ended.  *too_slow*
    counts clients that were disconnected because they received nothing for the stall timeout,
    because they were slow under the `disconnect` policy, or because memory was full.

    *waiting_bytes* are in the send queues, and *lagging* clients are behind and get the history
    replayed.  *messages_per_second* and *deliveries_per_second* are means over the last ten
    seconds.

    *disconnects* has the number of clients that left, by code, and *refusals* the number of
    rejected connections, by reason.  Their keys never change; see `multichat.server.refusals`.

    *loop_lag* measures four times a second how late the event loop woke a task;
    *longest_loop_lag* is the worst of the last ten seconds, in seconds.  *turn_waits* measures how
    long connections waited for their turn at the loop, if they had to wait.  *journal_writes* is
    the duration of the journal's transactions, None without a journal file; *engine_round_trips*
    is the response time of a cluster's engine, None without a cluster.
    """

    clients: int
    rooms: int
    clients_ever: int
    refused: int
    messages: int
    deliveries: int
    skipped: int
    too_slow: int
    waiting_bytes: int
    missed: int = 0
    lagging: int = 0
    messages_per_second: float = 0.0
    deliveries_per_second: float = 0.0
    disconnects: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[str, int] = field(default_factory=dict)
    loop_lag: Durations = field(default_factory=Durations)
    longest_loop_lag: float = 0.0
    turn_waits: Durations = field(default_factory=Durations)
    journal_writes: Durations | None = None
    engine_round_trips: Durations | None = None


class StatisticsSource:
    """Takes the statistics of one server; `run` samples those that need sampling."""

    def __init__(
        self, registry: Registry, connections: Connections, turns: Turns, backend: Backend
    ) -> None:
        self._registry, self._connections = registry, connections
        self._turns, self._backend = turns, backend
        self._counts = registry.rooms.counts
        self._watch = LoopWatch(lambda: (self._counts.messages, self._counts.deliveries))

    async def run(self) -> None:
        """Sample until cancelled."""
        await self._watch.run()

    def take(self) -> ServerStatistics:
        """Return a snapshot; may be called inside and outside of trio, even before `run`."""
        registry, counts, watch = self._registry, self._counts, self._watch
        clients = registry.clients
        writes, trips = self._backend.journal_writes, self._backend.round_trips
        rates = watch.rates()
        waiting_bytes = lagging = 0
        for client in clients:
            waiting_bytes += client.send_queue.waiting_bytes
            for member in client.memberships.values():
                if member.lag is not None:
                    lagging += 1
                    break
        return ServerStatistics(
            clients=len(clients),
            rooms=sum(1 for _ in registry.rooms),
            clients_ever=self._connections.clients,
            refused=sum(self._connections.refusals.values()),
            messages=counts.messages,
            deliveries=counts.deliveries,
            skipped=counts.skipped,
            too_slow=counts.too_slow,
            waiting_bytes=waiting_bytes,
            missed=counts.missed,
            lagging=lagging,
            messages_per_second=rates.messages,
            deliveries_per_second=rates.deliveries,
            disconnects=dict(registry.disconnects),
            refusals={reason.value: count for reason, count in self._connections.refusals.items()},
            loop_lag=watch.lag.snapshot(),
            longest_loop_lag=watch.longest_lag,
            turn_waits=self._turns.waits.snapshot(),
            journal_writes=None if writes is None else writes.snapshot(),
            engine_round_trips=None if trips is None else trips.snapshot(),
        )
