"""Nonces as a storage remembers them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.protocol.nonces import short_nonce

pytestmark = pytest.mark.unit

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=128)


@given(st.one_of(_TEXTS, st.integers(-(2**53), 2**53)))
def test_a_nonce_takes_at_most_64_bytes_and_a_usual_one_stays_as_it_is(nonce: str | int) -> None:
    short = short_nonce(nonce)
    encoded = msgspec.json.encode(nonce)
    assert len(msgspec.json.encode(short)) <= 64
    assert (short == nonce) == (len(encoded) <= 64)
    assert short_nonce(short) == short


def test_long_nonces_that_differ_stay_different() -> None:
    long = ["x" * 128, "x" * 127 + "y", "y" * 128, "x" * 127]
    assert len(set(map(short_nonce, long))) == 4
