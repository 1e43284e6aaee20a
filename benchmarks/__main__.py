"""`nox -s bench`: measures multichat and its alternatives.

A complete run, five rounds of every server in turn, takes about 40 minutes and writes
`docs/performance.md`, its pictures and `benchmarks/results.json`.  With `--only` or `--servers` the
tables are only printed.  `--quick` counts instructions instead.
"""

import argparse
import fnmatch
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import quick, report
from benchmarks.servers import SERVERS, Server
from benchmarks.workloads import WORKLOADS, Tools, Workload, measure
from multichat import __version__

RESULTS = Path(__file__).parent / "results.json"


def main() -> int:
    """Run the command line; return the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers are ended
    if options.quick:
        return quick.run(options.against)
    if options.report:
        report.write(report.Results(json.loads(RESULTS.read_text("utf-8"))))
        return 0
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # for the peers too
    servers, missing = _installed(options.servers)
    for server in missing:
        print(f"not installed, left out: {server.name} (apt-get install {server.package})")
    if missing and options.require_all:
        return 1
    workloads = [w for w in WORKLOADS if _matches(w.key, options.only)]
    if not servers or not workloads:
        print("bench: nothing to measure", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            tools = Tools(Path(folder))
        except FileNotFoundError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
        data = {
            "machine": _machine(options.rounds),
            "versions": {server.name: _version(server) for server in servers},
            "missing": [server.name for server in missing],
            "runs": _measure_all(servers, workloads, options.rounds, tools),
        }
    results = report.Results(data)
    if options.only or options.servers:
        for name in ("throughput", "latency", "connections", "stalled", "losses"):
            if name == "losses" or any(w.key.startswith(name) for w in workloads):
                print(f"\n{report.BLOCKS[name](results)}")
        return 0
    RESULTS.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    report.write(results)
    print(report.targets(results))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of every server in turn (5)")
    parser.add_argument("--only", action="append", metavar="GLOB", help="workloads by their keys")
    parser.add_argument("--servers", action="append", metavar="GLOB", help="servers by their names")
    parser.add_argument("--require-all", action="store_true", help="fail if one is not installed")
    parser.add_argument("--report", action="store_true", help="write the page from results.json")
    parser.add_argument("--quick", action="store_true", help="count instructions, for each commit")
    parser.add_argument("--against", metavar="REV", help="with --quick: the commit to compare with")
    return parser.parse_args()


def _matches(name: str, globs: list[str] | None) -> bool:
    return not globs or any(fnmatch.fnmatch(name, glob) for glob in globs)


def _installed(globs: list[str] | None) -> tuple[list[Server], list[Server]]:
    chosen = [server for server in SERVERS if _matches(server.name, globs)]
    here = [server for server in chosen if server.program == "reference" or server.path]
    return here, [server for server in chosen if server not in here]


def _measure_all(
    servers: list[Server], workloads: list[Workload], rounds: int, tools: Tools
) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    started = time.monotonic()
    for number in range(1, rounds + 1):
        for workload in workloads:
            for server in servers:
                if server.only_writes and not workload.key.startswith("throughput"):
                    continue
                figures = measure(server, workload, tools)
                run = {"round": number, "workload": workload.key, "server": server.name, **figures}
                runs.append(run)
                minutes = (time.monotonic() - started) / 60
                print(f"{minutes:5.1f} min  {number}/{rounds}  {_line(run)}", flush=True)
    return runs


def _line(run: dict[str, Any]) -> str:
    what = f"{run['workload']:24} {run['server']:28}"
    for name in ("error", "deliveries_per_second", "p50", "reached_seconds"):
        if name in run:
            value = run[name]
            return f"{what} {value if isinstance(value, str) else report.encode(value)}"
    return what


def _version(server: Server) -> str:
    if server.ours:
        return f"{__version__} at {_commit()}"
    if not server.version:
        return ""
    answer = subprocess.run(
        [server.path or server.program, *server.version],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    found = re.search(r"\d+(\.\d+)+", answer.stdout + answer.stderr)
    return found[0] if found else ""


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + " and changes" * bool(git("status", "--short"))


def _machine(rounds: int) -> dict[str, str]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "measured on": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}, "
        f"{memory:.0f} GiB; virtual and shared: read orders of magnitude",
        "system": f"Linux {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
        "trio": version("trio"),
        "rounds": f"{rounds}, every server in turn in each; medians, and in brackets the lowest "
        "and the highest",
    }


if __name__ == "__main__":
    sys.exit(main())
