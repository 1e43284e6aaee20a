"""Each fault once in a cluster of real processes under load.

`python -m tests.cluster.chaos` does the same for longer, and with the other engine.
"""

from pathlib import Path

import pytest

from .chaos.cluster import Plan
from .chaos.faults import FAULTS
from .chaos.run import run
from .engine import Kind

pytestmark = pytest.mark.stress

# They find nothing that the others do not find, or take long.
_BY_HAND = ("nothing", "several", "node-freeze-half-minute")


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in _BY_HAND])
async def test_nothing_is_lost_repeated_or_left_over_after(name: str, tmp_path: Path) -> None:
    Kind.VALKEY.program()
    outcome = await run(name, FAULTS[name], Plan(), tmp_path, seconds=0)
    assert not outcome.violations, "\n".join((str(outcome), *outcome.violations, *outcome.details))
