"""Formats measurements for people: tables, pictures, and a comparison with the targets.

Writes only between `<!-- bench:NAME -->` and `<!-- /bench -->` in `docs/performance.md`.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import pictures
from benchmarks.servers import SERVERS, Server
from benchmarks.workloads import WORKLOADS, Workload

__all__ = ["BLOCKS", "DOCS", "Results", "draw", "encode", "targets", "write"]

DOCS = Path(__file__).parent.parent / "docs"


class Results:
    """The measurements of one run of the benchmark; `data` is the content of `results.json`."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self._runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for run in data["runs"]:
            self._runs.setdefault((run["workload"], run["server"]), []).append(run)

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return max((run["round"] for run in self.data["runs"]), default=0)

    @property
    def servers(self) -> list[Server]:
        """The servers that were measured, in the order of `SERVERS`."""
        names = {run["server"] for run in self.data["runs"]}
        return [server for server in SERVERS if server.name in names]

    @property
    def chats(self) -> list[Server]:
        """The measured servers that relay messages: all but the bare limits."""
        return [server for server in self.servers if not server.only_writes]

    def values(self, workload: str, server: str, figure: str) -> list[float]:
        """Return one figure of every completed run."""
        runs = self._runs.get((workload, server), [])
        return [float(run[figure]) for run in runs if figure in run]

    def median(self, workload: str, server: str, figure: str) -> float | None:
        """Return the median of a figure, or None if no run completed."""
        values = self.values(workload, server, figure)
        return statistics.median(values) if values else None

    def error(self, workload: str, server: str) -> str:
        """Return why there is no figure."""
        runs = self._runs.get((workload, server), [])
        return next((run["error"] for run in runs if "error" in run), "not measured")


def encode(value: float | None) -> str:
    """Format *value* with two or three significant digits, and k or M."""
    if value is None:
        return "–"
    for size, suffix in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{_digits(value / size)}{suffix}"
    return _digits(value)


def _digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float], rounds: int) -> str:
    """Format the median, lowest and highest value, and the number of runs if it is not *rounds*."""
    if not values:
        return "–"
    middle = encode(statistics.median(values))
    missing = "" if len(values) == rounds else f", {len(values)} of {rounds} runs"
    return f"{middle} ({encode(min(values))} … {encode(max(values))}{missing})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table; the first column is text, the others are figures."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _workloads(prefix: str) -> list[Workload]:
    return [workload for workload in WORKLOADS if workload.key.startswith(prefix)]


LIMIT = "limit: 64 KiB writes"


def throughput(results: Results) -> str:
    """Format deliveries per second and the share of the limit."""
    workloads = _workloads("throughput")
    rows = []
    for server in results.servers:
        row = [_name(server)]
        for workload in workloads:
            values = results.values(workload.key, server.name, "deliveries_per_second")
            share = _ratio(results, workload.key, "bytes_per_second", server.name, LIMIT)
            text = spread(values, results.rounds)
            row.append(text if share is None else f"{text} · {share:.2f}")
        rows.append(row)
    head = ["deliveries a second · share of the limit", *(w.title for w in workloads)]
    return table(head, rows)


def losses(results: Results) -> str:
    """Format the losses in all throughput runs of each server."""
    rows = []
    for server in results.chats:
        runs = [run for run in results.data["runs"] if run["server"] == server.name]
        runs = [run for run in runs if run["workload"].startswith("throughput") and "sent" in run]
        drained = [run for run in runs if run["drained"]]
        rows.append(
            [
                _name(server),
                f"{len(drained)} of {len(runs)}",
                # Can be negative if the server sent a ping of its own.
                f"{max(0, sum(run['lost'] for run in drained)):,.0f}",
                f"{sum(run['torn'] for run in runs):,}",
                f"{sum(run['disordered'] for run in runs):,}",
                f"{sum(run['dead'] for run in runs):,}",
            ]
        )
    head = ["", "runs that drained", "messages lost", "torn", "out of order", "disconnected"]
    return table(head, rows)


def latency(results: Results) -> str:
    """Format the milliseconds from the scheduled time to the arrival."""
    workloads = _workloads("latency")
    rows = []
    for server in results.chats:
        row = [_name(server)]
        for workload in workloads:
            figures = _percentiles(results, workload, server)
            lost = sum(results.values(workload.key, server.name, "lost"))
            text = " / ".join(encode(figure) for figure in figures)
            row.append("–" if figures[0] is None else text + (f", {lost:,.0f} lost" * (lost > 0)))
        rows.append(row)
    return table(["ms: p50 / p99 / p99.9 / max", *(w.title for w in workloads)], rows)


def _percentiles(results: Results, workload: Workload, server: Server) -> list[float | None]:
    names = ("p50", "p99", "p999", "max")
    return [results.median(workload.key, server.name, name) for name in names]


def connections(results: Results) -> str:
    """Format how long 5,000 clients take to connect, and the memory of each."""
    rows = []
    for server in results.chats:
        seconds = results.values("connections", server.name, "reached_seconds")
        memory = results.values("connections", server.name, "kib_per_client")
        if not seconds:
            rows.append([_name(server), results.error("connections", server.name), "", ""])
            continue
        rate = encode(5001 / statistics.median(seconds))
        rows.append(
            [_name(server), spread(seconds, results.rounds), rate, spread(memory, results.rounds)]
        )
    head = ["", "seconds until all had a broadcast", "clients a second", "KiB per idle client"]
    return table(head, rows)


def stalled(results: Results) -> str:
    """Format the runs with twenty receivers, with and without two that stop reading."""
    rows = []
    for server in results.chats:
        row = [_name(server)]
        for key in ("stalled-0", "stalled-2"):
            seconds = results.values(key, server.name, "seconds")
            least = results.median(key, server.name, "least_share")
            peak = results.median(key, server.name, "peak_kib")
            row.append(spread(seconds, results.rounds))
            row.append("–" if least is None else f"{min(least, 1):.1%}")
            row.append("–" if peak is None else f"{peak / 1024:.1f}")
        rows.append(row)
    head = ["", "all read: seconds", "got", "MiB", "two stopped: seconds", "others got", "MiB"]
    return table(head, rows)


def machine(results: Results) -> str:
    """Describe the machine and the software."""
    lines = [f"- {key}: {value}" for key, value in results.data["machine"].items()]
    missing = results.data["missing"]
    lines.append(f"- not installed and left out: {', '.join(missing) or 'nothing'}")
    return "\n".join(lines)


def peers(results: Results) -> str:
    """List every server with its version, package, and the reasons for its settings."""
    rows = []
    for server in results.servers:
        install = f"`apt-get install {server.package}`" if server.package else "here"
        version = results.data["versions"].get(server.name, "")
        rows.append([_name(server), version, install, server.why])
    lines = ["| server | version | from | settings |", "|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def generator(results: Results) -> str:
    """Show that the load generator is not the bottleneck."""
    rows = []
    for workload in _workloads("throughput"):
        used = results.median(workload.key, LIMIT, "load_cpu")
        drained = results.median(workload.key, LIMIT, "deliveries_per_second")
        ours = results.median(workload.key, "multichat", "load_cpu")
        if not used or drained is None:
            continue
        share = "–" if ours is None else f"{ours:.0%}"
        rows.append([workload.title, encode(drained), f"{used:.0%}", encode(drained / used), share])
    head = [
        "",
        "deliveries a second",
        "of its core",
        "estimated maximum",
        "of its core for multichat",
    ]
    return table(head, rows)


# --- Targets ------------------------------------------------------------------------------------


def _ratio(results: Results, key: str, figure: str, one: str, other: str) -> float | None:
    above, below = results.median(key, one, figure), results.median(key, other, figure)
    return above / below if above is not None and below else None


def _best(results: Results, key: str, names: Iterable[str]) -> float:
    rates = (results.median(key, name, "deliveries_per_second") for name in names)
    return max((rate for rate in rates if rate is not None), default=0.0)


def targets(results: Results) -> str:
    """List every target with the measured figure."""
    rows: list[list[str]] = []

    def add(what: str, wanted: float, got: float | None, *, at_least: bool) -> None:
        is_met = got is not None and (got >= wanted if at_least else got <= wanted)
        sign = "≥" if at_least else "≤"
        row = [what, f"{sign} {wanted:g}", encode(got), "yes" if is_met else "**no**"]
        rows.append(row)

    for key, wanted in (("100", 3.0), ("1000", 3.0), ("ten-senders", 3.0), ("10", 2.0)):
        workload = f"throughput-{key}"
        ours = results.median(workload, "multichat", "deliveries_per_second")
        framing = [s.name for s in results.servers if s.frames and s.package]
        best = _best(results, workload, framing)
        title = next(w.title for w in WORKLOADS if w.key == workload)
        got = ours / best if ours is not None and best else None
        add(f"throughput, {title}: times the best peer that frames", wanted, got, at_least=True)
    rate = "deliveries_per_second"
    got = _ratio(results, "throughput-100", rate, "multichat", "ncat --chat")
    add("throughput, 100 receivers: times `ncat --chat`", 1.5, got, at_least=True)
    json, web = "multichat, JSON", "multichat, WebSocket"
    got = _ratio(results, "throughput-100", rate, web, json)
    if got is not None:  # the results may be older
        what = "throughput, 100 receivers over WebSocket: times JSON over TCP"
        add(what, 0.8, got, at_least=True)
    more, usual = (results.median("connections", name, "kib_per_client") for name in (web, json))
    if more is not None and usual is not None:
        add("KiB more per idle client over WebSocket", 10.0, more - usual, at_least=False)
    for key in ("100", "1000"):
        share = _ratio(results, f"throughput-{key}", "bytes_per_second", "multichat", LIMIT)
        add(f"throughput, {int(key):,} receivers: share of the limit", 0.6, share, at_least=True)
    for key, figures, wanted in (
        ("100-100", ("p50", "p99"), 1.25),
        ("1000-20", ("p50", "p99"), 1.25),
        ("100-1000", ("p99",), 1.5),
    ):
        for figure in figures:
            workload = f"latency-{key}"
            title = next(w.title for w in WORKLOADS if w.key == workload)
            share = _ratio(results, workload, figure, "multichat", "C loop")
            add(f"latency, {title}: {figure} to the C loop's", wanted, share, at_least=False)
            if wanted == 1.25:
                share = _ratio(results, workload, figure, "multichat", "nats-server")
                add(f"latency, {title}: {figure} to nats-server's", 1.0, share, at_least=False)
    share = _ratio(results, "connections", "reached_seconds", "multichat", "nats-server")
    add("5,000 clients connected and reached: time to nats-server's", 1.0, share, at_least=False)
    memory = results.median("connections", "multichat", "kib_per_client")
    add("KiB per idle client", 10.0, memory, at_least=False)
    got = results.median("stalled-2", "multichat", "least_share")
    add("two of twenty stopped: share that the others got", 1.0, got, at_least=True)
    longer, usual = (results.median(f"stalled-{n}", "multichat", "seconds") for n in (2, 0))
    got = longer - usual if longer is not None and usual is not None else None
    add("two of twenty stopped: seconds longer (slow timeout: 2)", 2.0, got, at_least=False)
    peak = results.median("stalled-2", "multichat", "peak_kib")
    got = peak / 1024 if peak is not None else None
    add("two of twenty stopped: MiB above idle", 64.0, got, at_least=False)
    slow = results.median("throughput-1000", "multichat", rate)
    fast = results.median("throughput-100", "multichat", rate)
    got = fast / slow if fast and slow else None
    add("cost of a delivery, 1,000 receivers to 100", 1.5, got, at_least=False)
    return table(["", "target", "measured", "met"], rows)


# --- Pictures. ----------------------------------------------------------------------------------


def draw(results: Results) -> dict[str, str]:
    """Draw the pictures; by file name."""
    servers = results.servers

    def bar(server: Server, key: str, figure: str) -> pictures.Bar:
        values = [value for value in results.values(key, server.name, figure) if value > 0]
        return pictures.Bar(server.name, values, server.ours, server.limit)

    def sorted_bars(key: str, figure: str, chosen: list[Server], sign: int) -> list[pictures.Bar]:
        bars = [bar(server, key, figure) for server in chosen]
        return sorted(
            bars, key=lambda b: sign * statistics.median(b.values) if b.values else float("inf")
        )

    groups = [
        pictures.Group(w.title, sorted_bars(w.key, "deliveries_per_second", servers, -1))
        for w in _workloads("throughput")
    ]
    ranges = []
    for workload in _workloads("latency"):
        rows = []
        for server in results.chats:
            figures = _percentiles(results, workload, server)
            points = [max(f, 0.001) for f in figures if f is not None]
            points = [max(points[: i + 1]) for i in range(len(points))]
            rows.append(pictures.Range(server.name, points, server.ours, server.limit))
        rows.sort(key=lambda row: row.points[0] if row.points else float("inf"))
        ranges.append(pictures.RangeGroup(workload.title, rows))
    come_in = sorted_bars("connections", "reached_seconds", results.chats, 1)
    weights = sorted_bars("connections", "kib_per_client", results.chats, 1)
    return {
        "throughput.svg": pictures.bars(
            "Throughput",
            "messages of 64 bytes delivered a second; logarithmic; longer is better",
            groups,
            unit="deliveries/s",
            log=True,
        ),
        "latency.svg": pictures.ranges(
            "Latency",
            "from the time a message was due to its arrival; shorter is better",
            ranges,
            unit="ms",
        ),
        "connections.svg": pictures.bars(
            "5,000 clients connected and reached by a broadcast",
            "seconds; logarithmic; shorter is better",
            [pictures.Group("seconds", come_in)],
            unit="s",
            log=True,
        ),
        "memory.svg": pictures.bars(
            "Memory of an idle client",
            "resident memory of the server with 5,000 clients, less without, for each; "
            "what the kernel holds is not in it; shorter is better",
            [pictures.Group("KiB per client", weights)],
            unit="KiB",
        ),
    }


BLOCKS: dict[str, Callable[[Results], str]] = {
    "machine": machine,
    "targets": targets,
    "throughput": throughput,
    "losses": losses,
    "latency": latency,
    "connections": connections,
    "stalled": stalled,
    "generator": generator,
    "peers": peers,
}


def write(results: Results) -> None:
    """Put the tables into `docs/performance.md` and the pictures beside it."""
    page = DOCS / "performance.md"
    text = page.read_text("utf-8")
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench -->)", re.DOTALL)
        block = make(results)
        text, count = pattern.subn(lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{page.name} has {count} places for bench:{name}")
    page.write_text(text, "utf-8")
    for name, picture in draw(results).items():
        (DOCS / name).write_text(picture, "utf-8")


def _name(server: Server) -> str:
    name = f"**{server.name}**" if server.ours else server.name
    return f"*{name}*" if server.limit else name
