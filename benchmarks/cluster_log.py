"""Measures the log in a cluster's engine: the engine's time, the way to another node, idle rooms.

`python -m benchmarks.cluster_log [--engine valkey|redis] [--aof always|everysec|no]` starts an
engine of the tests and two nodes in this process, and prints:

- the engine's microseconds a message, for blocks of one and of a hundred messages, with a nonce
  each, and for a hundred blocks in one call: elapsed in the function, from `INFO commandstats`, and
  its processor time for everything, from `INFO cpu`;
- the milliseconds from proposing a message on one node until the other one has it, and until the
  first node has it stored;
- messages a second with a hundred senders on a node, each waiting for its last message;
- how long it takes to follow a thousand idle rooms, how much memory they take here, and the
  engine's time for comparing their tails.

On a busy machine, only the processor time is stable.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median, quantiles

import trio

from tests.cluster.engine import Engine, EngineConfig, Kind, running_engines
from tests.cluster.functions import Caller, block, calling
from tests.cluster.nodes import Follower, Node, running_node, said

_CALLS = 300
_LATENCY_MESSAGES = 2000
_RATE = 1000
_SENDERS = 100
_SENDER_MESSAGES = 100
_ROOMS = 1000


async def _cpu_seconds(engine: Engine) -> float:
    fields = await engine.info("cpu")
    return float(fields["used_cpu_user"]) + float(fields["used_cpu_sys"])


async def _engine_time(
    engine: Engine, caller: Caller, blocks: int, messages: int
) -> tuple[float, float]:
    """Return the engine's microseconds a message in calls of so many blocks and messages each."""
    await caller.append(block("warm up"))
    cpu = await _cpu_seconds(engine)
    await engine.call("CONFIG", "RESETSTAT")
    texts = [f"a message of a usual length, number {number}" for number in range(messages)]
    for call in range(_CALLS):
        await caller.append(
            *(
                block(
                    "\n".join(texts),
                    client=1 + index,
                    nonces=tuple(call * messages + number for number in range(messages)),
                )
                for index in range(blocks)
            )
        )
    stats = await engine.info("commandstats")
    fields = dict(field.split("=") for field in stats["cmdstat_fcall"].split(","))
    total = int(fields["calls"]) * blocks * messages
    cpu = await _cpu_seconds(engine) - cpu
    return float(fields["usec"]) / total, cpu * 1e6 / total


async def _latency(here: Follower, there: Follower) -> None:
    """Print the milliseconds from proposing until the other node has it, at a steady rate."""
    proposed: list[float] = []
    stored: list[float] = []
    arrived: list[float] = []

    async def listen() -> None:
        seen = len(there.said)
        while len(arrived) < _LATENCY_MESSAGES:
            await there.until(seen + 1)
            now = time.perf_counter()
            arrived.extend([now] * (len(there.said) - seen))
            seen = len(there.said)

    async def send(number: int) -> None:
        await said(here, f"{number}")
        stored.append((time.perf_counter() - proposed[number]) * 1000)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        for number in range(_LATENCY_MESSAGES):
            await trio.sleep_until(start + number / _RATE)
            proposed.append(time.perf_counter())
            nursery.start_soon(send, number)
    took = [(b - a) * 1000 for a, b in zip(proposed, arrived, strict=False)]
    for name, values in (("to the other node", took), ("stored", stored)):
        p50, p99 = median(values), quantiles(values, n=100)[98]
        print(f"{name} at {_RATE}/s: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


async def _throughput(here: Follower, there: Follower, first_client: int = 1000) -> None:
    async def talk(who: int) -> None:
        for number in range(_SENDER_MESSAGES):
            await said(here, f"{who}.{number}", number, client=first_client + who)

    before, start = len(there.said), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for who in range(_SENDERS):
            nursery.start_soon(talk, who)
    messages = _SENDERS * _SENDER_MESSAGES
    await there.until(before + messages)
    seconds = time.perf_counter() - start
    print(f"{_SENDERS} senders, each waiting for its last message: {messages / seconds:,.0f}/s")


async def _idle_rooms(engine: Engine, node: Node) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(_ROOMS):
            nursery.start_soon(node.open, f"room {number}")
    seconds = time.perf_counter() - start
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{_ROOMS} rooms followed in {seconds:.2f} s, {kib / _ROOMS:.1f} KiB each")
    await engine.call("CONFIG", "RESETSTAT")
    node.logs.messages_dropped()
    await trio.sleep(1)
    stats = await engine.info("commandstats")
    fields = dict(field.split("=") for field in stats["cmdstat_fcall_ro"].split(","))
    ms, calls = float(fields["usec"]) / 1000, fields["calls"]
    print(f"comparing their tails: {ms:.1f} ms of the engine in {calls} calls")


@asynccontextmanager
async def _nodes(engine: Engine) -> AsyncIterator[tuple[Node, Node]]:
    async with running_node(engine, "a") as a, running_node(engine, "b") as b:
        yield a, b


async def _run(kind: Kind, aof: str | None, folder: Path) -> None:
    with running_engines(kind, folder) as engines:
        engine = await engines.start(EngineConfig(aof=aof))
        async with calling(engine, node="bench", run="bench") as caller:
            await caller.load()
            cpu = await _cpu_seconds(engine)
            for _ in range(_CALLS):
                await caller.command("PING")
            cpu = (await _cpu_seconds(engine) - cpu) * 1e6 / _CALLS
            print(f"engine, a PING, as a control: processor {cpu:.1f} µs")
            for blocks, messages in ((1, 1), (1, 100), (100, 1)):
                took, cpu = await _engine_time(engine, caller, blocks, messages)
                name = f"{blocks} block(s) of {messages}"
                print(f"engine, a call of {name}: {took:.1f} µs a message, processor {cpu:.1f} µs")
        await engine.call("FLUSHALL")
        async with _nodes(engine) as (a, b):
            here, there = await a.open(), await b.open()
            await _latency(here, there)
            await _throughput(here, there)
            await _idle_rooms(engine, b)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Measures the log in a cluster's engine.")
    parser.add_argument("--engine", choices=[kind.value for kind in Kind], default="valkey")
    parser.add_argument("--aof", choices=["always", "everysec", "no"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trio.run(_run, Kind(options.engine), options.aof, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
