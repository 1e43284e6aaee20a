"""Fixtures of the tests of the cluster: engines of both kinds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .engine import Engine, Engines, Kind, running_engines


@pytest.fixture(params=list(Kind), ids=lambda kind: kind.value)
def engine_kind(request: pytest.FixtureRequest) -> Kind:
    """Run the test once with each kind of engine."""
    kind: Kind = request.param
    kind.program()
    return kind


@pytest.fixture
def engines(engine_kind: Kind, tmp_path: Path) -> Iterator[Engines]:
    """Make engines of a kind; all are ended with the test."""
    with running_engines(engine_kind, tmp_path) as made:
        yield made


@pytest.fixture
async def engine(engines: Engines) -> Engine:
    """Run one engine that stores nothing on disk."""
    return await engines.start()
