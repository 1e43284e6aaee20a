"""Budgets of time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.limits import Patience

seconds = st.floats(min_value=0, max_value=1000)


def test_patience_is_spent_and_earned_back_at_a_tenth() -> None:
    patience = Patience(2.0)
    patience.spend(1.5)
    assert patience.left_seconds == pytest.approx(0.5)
    patience.earn(5.0)
    assert patience.left_seconds == pytest.approx(1.0)
    patience.earn(math.inf)
    assert patience.left_seconds == 2.0


@given(st.lists(st.tuples(st.sampled_from(["spend", "earn"]), seconds)))
def test_a_reader_that_trickles_cannot_set_the_pace_for_ever(
    steps: list[tuple[str, float]],
) -> None:
    patience = Patience(2.0)
    spent = earned = 0.0
    for step, amount in steps:
        getattr(patience, step)(amount)
        spent += amount * (step == "spend")
        earned += amount * (step == "earn")
        assert patience.left_seconds <= 2.0
        assert spent <= 2.0 + earned / 10 - patience.left_seconds + 1e-6


def test_who_waits_together_spends_the_same_time() -> None:
    patience = Patience(2)
    patience.spend_together(10, 11)
    patience.spend_together(10.5, 11)
    patience.spend_together(10.5, 11.5)
    assert patience.left_seconds == 0.5
    patience.spend_together(12, 20)
    assert patience.left_seconds == 0
