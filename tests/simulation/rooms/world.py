"""Runs a plan with several rooms and accounts; see `..world`."""

from functools import partial

from tests.simulation.plan import Plan
from tests.simulation.world import Family, Outcome, simulate

from .clients import GuestClient, Keys, RoomsNotebook
from .history import RoomsHistory
from .invariants import rooms_violations

__all__ = ["simulate_rooms"]


def simulate_rooms(plan: Plan) -> Outcome:
    """Run *plan*, of `make_rooms_plan`, and return which invariants its history violates."""
    family = Family(
        make_history=RoomsHistory,
        make_client=GuestClient,
        make_notebook=partial(RoomsNotebook, keys=Keys(plan.given)),
        check=rooms_violations,
    )
    return simulate(plan, family)
