"""What a server exports for Prometheus, as the parser of `prometheus-client` reads it."""

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import trio
from prometheus_client.parser import text_string_to_metric_families

from multichat import Server
from multichat.server.metrics import make_registry, render

from .processes import LOOPBACK, WAIT_SECONDS, ServerCommand
from .web import Answer, http, parse_answer, read_all

__all__ = ["Metrics", "ask_metrics", "metrics_of", "metrics_port", "scrape", "scrape_until"]


class Metrics:
    """The samples of one scrape, by name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: dict[str, str] = {}
        self._samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        families: Iterable[Any] = text_string_to_metric_families(text)
        for family in families:
            assert family.name not in self.kinds, f"{family.name} is there twice"
            assert family.documentation, f"{family.name} has no help"
            self.kinds[family.name] = family.type
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self._samples, f"{key} is there twice"
                self._samples[key] = sample.value

    def __getitem__(self, name: str) -> float:
        """Return the value of the metric without labels of that name."""
        return self._samples[name, frozenset()]

    def by(self, label: str, name: str) -> dict[str, float]:
        """Return the values that are not 0 of the metric *name*, by its only *label*."""
        found = {
            dict(labels)[label]: value
            for (each, labels), value in self._samples.items()
            if each == name
        }
        assert found, f"there is no {name}"
        return {key: value for key, value in found.items() if value}

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {name for name, _ in self._samples}

    def labels(self, name: str) -> list[dict[str, str]]:
        """Return the labels of each sample of that name."""
        return [dict(labels) for each, labels in self._samples if each == name]

    def buckets(self, name: str) -> list[tuple[float, float]]:
        """Return the bounds and counts of a histogram, whose counts rise to that of all."""
        found = sorted(
            (float(dict(labels)["le"]), value)
            for (each, labels), value in self._samples.items()
            if each == f"{name}_bucket"
        )
        counts = [count for _, count in found]
        assert counts == sorted(counts)
        assert found[-1] == (math.inf, self[f"{name}_count"])
        return found


def metrics_of(server: Server) -> Metrics:
    """Return what *server* would export now."""
    data, content_type = render(make_registry(server))
    assert content_type.startswith("text/plain; version=")
    return Metrics(data.decode())


async def metrics_port(server: ServerCommand) -> int:
    """Return the port of the metrics of *server*, which has `--metrics 0`."""
    await server.wait_for("/metrics")
    return int(server.out.partition("Metrics at http://")[2].partition("/")[0].rpartition(":")[2])


async def ask_metrics(
    port: int, path: str = "/metrics", *fields: str, method: str = "GET", host: str = LOOPBACK
) -> Answer:
    """Return the answer of a port of metrics."""
    with trio.fail_after(WAIT_SECONDS):
        stream = await trio.open_tcp_stream(LOOPBACK, port)
        async with stream:
            await stream.send_all(http(path, *fields, method=method, host=host))
            return parse_answer(await read_all(stream))


async def scrape(port: int) -> Metrics:
    """Return what the server with that port of metrics exports now."""
    answer = await ask_metrics(port)
    assert answer.status == 200
    return Metrics(answer.body.decode())


async def scrape_until(port: int, **expected: float) -> Metrics:
    """Scrape until the metrics without labels have the *expected* values; fail if they never do.

    The names are without `multichat_`.
    """
    metrics: Metrics | None = None
    with suppress(trio.TooSlowError), trio.fail_after(WAIT_SECONDS):
        while True:
            metrics = await scrape(port)
            if all(metrics[f"multichat_{name}"] == value for name, value in expected.items()):
                return metrics
            await trio.sleep(0.05)
    found = metrics and {name: metrics[f"multichat_{name}"] for name in expected}
    raise AssertionError(f"{found} instead of {expected}")
