"""How long one piece of work takes, by the clock: `python -m pytest benchmarks/micro`.

The work is that of `benchmarks.scenarios`; setting it up is not measured.  Needs pytest-benchmark
and a machine that has nothing else to do: `benchmarks.quick` is what repeats on any.
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

# pytest-benchmark has no async: a thread asks trio for a round.  Asking costs 150 µs, half as much
# as one publish.
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
