"""Durations in buckets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.net.durations import BOUNDS, DurationRecorder, Durations

pytestmark = pytest.mark.unit


def recorded(*seconds: float) -> Durations:
    recorder = DurationRecorder()
    for each in seconds:
        recorder.note(each)
    return recorder.snapshot()


def test_a_bound_belongs_to_the_bucket_that_it_ends() -> None:
    assert recorded(*BOUNDS).buckets == (*(1 for _ in BOUNDS), 0)
    assert recorded(BOUNDS[-1] + 1, math.inf).buckets[-1] == 2


def test_a_clock_that_went_back_adds_nothing_to_the_sum() -> None:
    assert recorded(-5.0, 0.25) == Durations(recorded(0.0, 0.25).buckets, 0.25)


def test_a_snapshot_does_not_change() -> None:
    recorder = DurationRecorder()
    before = recorder.snapshot()
    recorder.note(1.0)
    assert (before.count, before.mean_seconds, before.at_most(0.99)) == (0, 0.0, 0.0)
    assert (recorder.snapshot().count, recorder.snapshot().mean_seconds) == (1, 1.0)


@given(st.lists(st.floats(0, 20), min_size=1), st.floats(0.01, 1))
def test_at_most_is_the_first_bound_that_enough_durations_do_not_exceed(
    seconds: list[float], part: float
) -> None:
    durations = recorded(*seconds)
    bound = durations.at_most(part)
    assert durations.count == len(seconds)
    assert durations.total_seconds == pytest.approx(sum(seconds))

    def covered(limit: float) -> int:
        return sum(each <= limit for each in seconds)

    assert covered(bound) >= part * len(seconds)
    for smaller in BOUNDS:
        if smaller < bound:
            assert covered(smaller) < part * len(seconds)
