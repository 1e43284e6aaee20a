"""Fixtures of the terminal's tests."""

from collections.abc import Iterator

import pytest

from tests.support.keyboard import Keyboard


@pytest.fixture
def keyboard(request: pytest.FixtureRequest) -> Iterator[Keyboard]:
    options = getattr(request, "param", {})
    made = Keyboard(options.get("history", []), options.get("max_waiting_lines", 100))
    yield made
    made.close()
