"""Measures the time of single operations: `python -m pytest benchmarks/micro`.

The operations are those of `benchmarks.scenarios`, without their setup.  Needs pytest-benchmark and
an idle machine; `benchmarks.quick` is reproducible on any machine.
"""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial

import pytest
import trio
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.scenarios import SCENARIOS

IN_ONE_THREAD = ("framing", "framing_unicode", "spelling_1", "spelling_1000")
WITH_A_THREAD = ("logging_1", "logging_1000")

PUBLISHED = [name for name in SCENARIOS if name.startswith(("alone", "publish"))]

# pytest-benchmark is not async, so a thread calls into trio for each round.  A call takes 150 µs,
# half as long as one publish.
PUBLISHES = 50


@pytest.mark.parametrize("name", [*IN_ONE_THREAD, *WITH_A_THREAD])
def test_one_piece_of_work(name: str, benchmark: BenchmarkFixture) -> None:
    prepared = SCENARIOS[name].prepare()
    assert isinstance(prepared, AbstractContextManager)
    with prepared as repeat:
        benchmark(repeat, 1)


@pytest.mark.parametrize("name", PUBLISHED)
async def test_fifty_publishes(name: str, benchmark: BenchmarkFixture) -> None:
    prepared = SCENARIOS[name].prepare()
    assert isinstance(prepared, AbstractAsyncContextManager)
    async with prepared as repeat:
        publish = partial(trio.from_thread.run, repeat, PUBLISHES)
        await trio.to_thread.run_sync(benchmark, publish)
