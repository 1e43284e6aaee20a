"""Causes faults in a cluster under load: `python -m tests.cluster.chaos [--fault NAME…]`.

Two nodes (`multichat serve --cluster`), a real engine and a load balancer run as in production; six
clients chat in three rooms, reconnect and resume anywhere.  Each accepted message must arrive at
every member of its room exactly once, in one order; no ghost may remain in the end.  During short
faults a member that returns in time is never announced as left; a client of each node, which no
fault of clients' connections hits, watches that, too.  A private message arrives once, or its
sender gets `not-delivered` or `delivery-unknown`; an account has one holder; bans and topics that
were acknowledged hold on all nodes.  Prints a line of figures for each run, and every violation
with what was seen.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from tests.cluster.engine import Kind

from .cluster import Plan
from .faults import FAULTS
from .run import Outcome, run

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--fault", action="append", choices=list(FAULTS), help="may be repeated; default: all"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run (default: 20)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each fault (default: 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the first run (default: 1)")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--rooms", type=int, default=3)
    parser.add_argument("--engine", choices=[kind.value for kind in Kind], default="valkey")
    parser.add_argument("--verbose", action="store_true", help="also print the ends of logs")
    return parser


def main() -> int:
    """Run the command line; return its exit status."""
    chosen = _parser().parse_args()
    plan = Plan(
        kind=Kind(chosen.engine), nodes=chosen.nodes, clients=chosen.clients, rooms=chosen.rooms
    )
    failed = 0
    for name in chosen.fault or FAULTS:
        fault = FAULTS[name]
        for seed in range(chosen.seed, chosen.seed + chosen.repeat):
            with tempfile.TemporaryDirectory(prefix="multichat-chaos-") as folder:
                one = partial(
                    run, name, fault, replace(plan, seed=seed), Path(folder), seconds=chosen.seconds
                )
                outcome = trio.run(one)
            failed += bool(outcome.violations)
            _print(outcome, verbose=chosen.verbose or bool(outcome.violations))
    return 1 if failed else 0


def _print(outcome: Outcome, *, verbose: bool) -> None:
    lines = [str(outcome), *(f"  {each}" for each in outcome.violations)]
    if verbose:
        lines += [f"  {each}" for each in outcome.details]
    sys.stdout.write("\n".join((*lines, "")))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
