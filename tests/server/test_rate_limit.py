"""Budgets: waiting time, messages, memory, and new rooms."""

import math
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multichat.net.memory_budget import MemoryBudget
from multichat.server.rate_limit import HourlyLimit
from multichat.server.token_bucket import TokenBucket

pytestmark = pytest.mark.unit


def wait_budget(seconds: float) -> TokenBucket:
    """Create the wait budget of a room, in seconds."""
    return TokenBucket(1 / 15, seconds)


def test_a_room_waits_for_as_long_as_its_budget_lasts() -> None:
    budget = wait_budget(2.0)
    assert budget.available(100.0) == 2.0
    budget.spend(1.5, 101.5)
    assert budget.available(101.5) == pytest.approx(0.5)
    budget.spend(0.5, 102.0)
    assert budget.available(102.0) == pytest.approx(0.5 / 15)


def test_a_wait_budget_is_refilled_at_a_fifteenth_of_real_time_up_to_its_size() -> None:
    budget = wait_budget(2.0)
    budget.spend(2.0, 2.0)
    assert budget.available(17.0) == pytest.approx(1.0)
    assert budget.available(32.0) == pytest.approx(2.0)
    assert budget.available(1e9) == 2.0


def test_the_time_that_a_room_waits_does_not_refill_its_budget() -> None:
    budget = wait_budget(30.0)
    assert budget.available(0.0) == 30.0
    budget.spend(15.0, 15.0)
    assert budget.available(15.0) == 15.0


def test_a_room_without_a_budget_never_waits() -> None:
    budget = wait_budget(0.0)
    assert budget.available(0.0) == budget.available(1e9) == 0.0


@given(
    full=st.floats(0, 10),
    steps=st.lists(st.tuples(st.floats(0, 60), st.floats(0, 2)), max_size=40),
)
def test_a_room_never_waits_for_more_than_its_budget_and_a_fifteenth_of_the_time(
    full: float, steps: list[tuple[float, float]]
) -> None:
    """In any window of time, however the waits are distributed in it."""
    budget, now = wait_budget(full), 0.0
    waits: list[tuple[float, float]] = []
    for pause, wanted in steps:
        now += pause
        seconds = min(wanted, budget.available(now))
        waits.append((now, seconds))
        now += seconds
        budget.spend(seconds, now)
    for i, (start, _) in enumerate(waits):
        paid = 0.0
        for at, seconds in waits[i:]:
            paid += seconds
            assert paid <= full + (at - start) / 15 + 1e-9


# --- TokenBucket ----------------------------------------------------------------------------------

# Powers of two, to avoid rounding, so that bounds are exact.
rates = st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0, 64.0])
pauses = st.integers(0, 80).map(lambda eighths: eighths / 8)


@given(rates, st.integers(1, 20), st.lists(st.tuples(pauses, st.integers(0, 30)), max_size=40))
def test_a_bucket_never_grants_more_than_its_rate(
    rate: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    """In any period, at most the burst and the refill are granted, and no less."""
    bucket = TokenBucket(rate, burst)
    now = 0.0
    granted: list[tuple[float, int]] = []
    for pause, wanted in steps:
        now += pause
        taken = bucket.take(wanted, now)
        assert 0 <= taken <= wanted
        granted.append((now, taken))
        left = math.inf  # for the period with the least
        total = 0
        for since, some in reversed(granted):
            total += some
            left = min(left, burst + rate * (now - since) - total)
        assert left >= 0
        assert taken == wanted or left < 1  # one more would have been too much


@given(rates, st.integers(1, 20), st.lists(st.tuples(pauses, st.integers(0, 200)), max_size=40))
def test_an_overdrawn_bucket_refills_at_the_rate(
    rate: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    """A caller that waits as told never exceeds the rate by more than the burst."""
    bucket = TokenBucket(rate, burst)
    now = 0.0
    spent: list[tuple[float, int]] = []
    for pause, tokens in steps:
        now += pause
        spent.append((now, tokens))
        wait = bucket.spend(tokens, now)
        now += wait
        total, left = 0, math.inf
        for since, some in reversed(spent):
            total += some
            left = min(left, burst + rate * (now - since) - total)
        assert left >= 0
        assert wait == 0 or left == 0  # not longer than necessary
        if wait:
            assert bucket.take(1, now) == 0
            assert bucket.seconds_until_one() == 1 / rate


def test_nothing_can_be_taken_from_an_overdrawn_bucket() -> None:
    bucket = TokenBucket(10, 5)
    assert bucket.spend(5, 100.0) == 0
    assert bucket.spend(5, 100.0) == 0.5
    assert bucket.spend(5, 100.0) == 1.0
    assert bucket.take(5, 100.0) == 0
    assert bucket.seconds_until_one() == pytest.approx(1.1)
    assert bucket.take(5, 101.0) == 0
    assert bucket.take(5, 101.25) == 2
    assert bucket.take(100, 1e9) == 5


def test_a_bucket_is_full_at_first_whatever_the_clock_says() -> None:
    for now in (-1e9, 0.0, 1e9):
        assert TokenBucket(1e-3, 7).take(100, now) == 7


@example(3.0, 1, 1.0, [1, 1])
@given(st.floats(1e-3, 1e6), st.integers(1, 1000), st.floats(0, 1e6), st.lists(st.integers(1, 50)))
def test_a_waiter_gets_the_next_token(
    rate: float, burst: int, now: float, takes: list[int]
) -> None:
    """Rounding of the clock costs at most one or two more waits."""
    bucket = TokenBucket(rate, burst)
    for wanted in takes:
        turns = 0
        while not bucket.take(wanted, now):
            # Like trio: a deadline at the current time has passed.
            now = max(now + bucket.seconds_until_one(), now)
            turns += 1
            assert turns < 10


# --- MemoryBudget
# --------------------------------------------------------------------------------------


@given(
    st.lists(st.binary(min_size=2, max_size=20), min_size=1, max_size=5),
    st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=60),
    st.integers(0, 60),
)
def test_a_budget_counts_shared_bytes_once(
    datas: list[bytes], steps: list[tuple[bool, int]], limit: int
) -> None:
    datas = [bytes(bytearray(data)) for data in datas]  # objects of their own
    told: list[int] = []
    budget = MemoryBudget(limit, lambda: told.append(budget.held_bytes))
    holders = Counter[int]()
    for hold, which in steps:
        data = datas[which % len(datas)]
        before = budget.held_bytes
        told.clear()
        if hold:
            holders[id(data)] += 1
            budget.hold(data)
        elif holders[id(data)]:
            holders[id(data)] -= 1
            budget.release(data)
        distinct = {id(each): len(each) for each in datas if holders[id(each)]}
        assert budget.held_bytes == sum(distinct.values())
        assert budget.over == (budget.held_bytes > limit)
        # Called whenever it has grown above the limit.
        grown = budget.held_bytes > before
        assert told == ([budget.held_bytes] if budget.over and grown else [])


def test_equal_blocks_are_counted_separately() -> None:
    one, other = bytes(bytearray(b"xx")), bytes(bytearray(b"xx"))
    budget = MemoryBudget()
    budget.hold(one)
    budget.hold(one)
    assert budget.held_bytes == 2
    budget.hold(other)
    assert budget.held_bytes == 4
    budget.release(one)
    assert budget.held_bytes == 4
    budget.release(one)
    budget.release(other)
    assert budget.held_bytes == 0
    assert not budget.over


def test_memory_may_be_released_as_soon_as_the_limit_is_exceeded() -> None:
    data = bytes(1000)
    budget = MemoryBudget(999, lambda: budget.release(data))
    budget.hold(data)
    assert (budget.held_bytes, budget.over) == (0, False)


def test_only_creators_of_rooms_are_limited() -> None:
    rooms = HourlyLimit(60)
    assert [rooms.take("a", 1000.0) for _ in range(61)] == [0] * 60 + [60]
    assert rooms.take("b", 1000.0) == 0
    assert rooms.take("a", 1060.0) == 0
    assert rooms.take("a", 1061.0) == pytest.approx(59)


def test_creators_of_rooms_are_remembered_within_a_bound() -> None:
    rooms = HourlyLimit(1)
    for n in range(2 * HourlyLimit.MAX_CREATORS):
        assert rooms.take(n, 0.0) == 0
    assert len(rooms._buckets) == HourlyLimit.MAX_CREATORS
    assert rooms.take(n, 0.0) > 0
