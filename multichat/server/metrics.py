"""The metrics of a server for Prometheus, computed from its statistics for each scrape.

The package `prometheus-client` is an extra, and is imported only inside the functions here.  Its
own HTTP server and its global registry are not used.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import trio

from multichat.net.durations import BOUNDS, Durations
from multichat.server.statistics import ServerStatistics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from multichat.server.server import Server

__all__ = ["ProcessMetrics", "ServerCollector", "make_registry", "render"]


class _Number(NamedTuple):
    name: str
    help: str
    value: Callable[[ServerStatistics], float]


class _Counts(NamedTuple):
    name: str
    help: str
    label: str
    values: Callable[[ServerStatistics], Mapping[str, int]]


class _Histogram(NamedTuple):
    name: str
    help: str
    durations: Callable[[ServerStatistics], Durations | None]


_GAUGES = (
    _Number("multichat_clients", "Connected clients.", lambda it: it.clients),
    _Number("multichat_rooms", "Rooms with members here.", lambda it: it.rooms),
    _Number(
        "multichat_send_queue_bytes",
        "Bytes in the send queues of all clients.",
        lambda it: it.waiting_bytes,
    ),
    _Number(
        "multichat_lagging_clients",
        "Clients that are behind, and get the history replayed.",
        lambda it: it.lagging,
    ),
)
_COUNTERS = (
    _Number(
        "multichat_admitted_clients", "Clients that were admitted.", lambda it: it.clients_ever
    ),
    _Number("multichat_messages", "Messages that rooms accepted.", lambda it: it.messages),
    _Number(
        "multichat_deliveries",
        "Messages that were delivered live, once for each member that got one.",
        lambda it: it.deliveries,
    ),
    _Number(
        "multichat_missed_messages",
        "Messages that members missed, once for each: skipped under --slow drop, or no longer in "
        "the history.",
        lambda it: it.missed + it.skipped,
    ),
)
_LABELLED = (
    _Counts(
        "multichat_disconnects",
        "Clients that have left, by the code of the goodbye, or of why they got none.",
        "code",
        lambda it: it.disconnects,
    ),
    _Counts(
        "multichat_admission_failures",
        "Connections that were rejected before they were clients, by reason.",
        "reason",
        lambda it: it.refusals,
    ),
)
_HISTOGRAMS = (
    _Histogram(
        "multichat_loop_lag_seconds",
        "How late the event loop woke a task, four times a second.",
        lambda it: it.loop_lag,
    ),
    _Histogram(
        "multichat_turn_wait_seconds",
        "How long connections waited for their turn at the event loop, where they had to.",
        lambda it: it.turn_waits,
    ),
    _Histogram(
        "multichat_journal_write_seconds",
        "How long transactions of the journal took; nothing without --journal.",
        lambda it: it.journal_writes,
    ),
    _Histogram(
        "multichat_engine_round_trip_seconds",
        "How long the engine of the cluster took for an answer; nothing without --cluster.",
        lambda it: it.engine_round_trips,
    ),
)


class ServerCollector:
    """The metrics of *server*, for a `CollectorRegistry` of the package `prometheus-client`.

    `registry.register(multichat.ServerCollector(server))` adds them to a program's own registry,
    which can have the metrics of one server.  They may be collected before, while and after the
    server runs, in the thread of its trio run: an exporter in another thread must use
    `trio.from_thread.run_sync`.  Collecting takes as long as `Server.statistics`, and blocks the
    event loop meanwhile.

    Collecting raises `ImportError` without that package, which is the extra
    `multichat-trio[metrics]`.
    """

    def __init__(self, server: "Server") -> None:
        self._server = server

    def describe(self) -> "Iterable[Metric]":
        """Return the metrics without values, for a registry to check their names."""
        return self._families(None)

    def collect(self) -> "Iterable[Metric]":
        """Return the metrics with their present values."""
        return self._families(self._server.statistics())

    def _families(self, now: ServerStatistics | None) -> "Iterator[Metric]":
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        import multichat

        info = GaugeMetricFamily("multichat_info", "The version.", labels=["version"])
        ready = GaugeMetricFamily("multichat_ready", "1 if the server should get new clients.")
        if now is not None:
            info.add_metric([multichat.__version__], 1)
            ready.add_metric([], not self._server.why_not_ready())
        yield from (info, ready)
        for kind, numbers in (GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS):
            for number in numbers:
                family = kind(number.name, number.help)
                if now is not None:
                    family.add_metric([], number.value(now))
                yield family
        for counts in _LABELLED:
            family = CounterMetricFamily(counts.name, counts.help, labels=[counts.label])
            for value, count in counts.values(now).items() if now is not None else ():
                family.add_metric([value], count)
            yield family
        for each in _HISTOGRAMS:
            histogram = HistogramMetricFamily(each.name, each.help)
            if now is not None and (durations := each.durations(now)) is not None:
                buckets = list(zip(_BUCKET_NAMES, accumulate(durations.buckets), strict=True))
                histogram.add_metric([], buckets, durations.total_seconds)
            yield histogram


_BUCKET_NAMES = (*(str(bound) for bound in BOUNDS), "+Inf")


def make_registry(server: "Server") -> "CollectorRegistry":
    """Return a new registry with the metrics of *server*; see `ServerCollector`."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(ServerCollector(server))
    return registry


class ProcessMetrics:
    """The metrics of this process, for a registry: memory, processor time and open files.

    Available on Linux only.  The values are those of the last `refresh`.
    """

    def __init__(self) -> None:
        from prometheus_client import ProcessCollector

        self._source = ProcessCollector(registry=None)
        self._families: list[Metric] = []

    async def refresh(self) -> None:
        """Read the values, in a thread: counting open files takes 2 µs for each."""
        self._families = await trio.to_thread.run_sync(
            lambda: list(self._source.collect()), abandon_on_cancel=True
        )

    def collect(self) -> "Iterable[Metric]":
        """Return the metrics."""
        return self._families


def render(registry: "CollectorRegistry", accept: str = "") -> tuple[bytes, str]:
    """Return the metrics in *registry* as text, and the content type.

    *accept* is the request's header, which may request the OpenMetrics format; invalid parts of it
    are ignored.
    """
    from prometheus_client.exposition import choose_encoder

    try:
        encode, content_type = choose_encoder(accept)
        content_type.encode("ascii")  # it contains a part of *accept*
    except Exception:  # noqa: BLE001 - an invalid version raises several kinds
        encode, content_type = choose_encoder("")
    data: bytes = encode(registry)
    return data, content_type
