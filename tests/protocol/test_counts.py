"""Numbers with a noun."""

import pytest

from multichat.protocol.counts import counted

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 rooms"),
        (1, "1 room"),
        (1.0, "1 room"),
        (1.5, "1.5 rooms"),
        (2, "2 rooms"),
        (12345678, "12345678 rooms"),
    ],
)
def test_only_one_has_the_noun_in_the_singular(number: float, shown: str) -> None:
    assert counted(number, "room") == shown
