"""Measures attacks and prints a table: `python -m tests.attacks [NAME...]`.

An honest pair plays ping-pong.  Its round trips per second are measured undisturbed, while the
attack hits a second server (the control), and while it hits the pair's own.  `kept` is the share of
the lower of the first two rates, `longest` the longest round trip under attack, and `stalled` the
additional share of the time spent in round trips of more than 50 ms, compared with the control.

Then follow readers on slow links: what each received and missed, and which errors were found.
"""

import argparse
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median

import trio

from tests.support.processes import MULTICHAT

from .catalogue import ATTACKS, LOGIN_ATTACKS, SLOW_ATTACKS, Attack
from .links import MBIT, flood, pipe, private_messages
from .measure import Turn, turns

_HEAD = (
    f"{'attack':24} {'alone':>7} {'control':>7} {'attacked':>8} {'kept':>6} {'longest':>9}  stalled"
)


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _measure(attack: Attack, seconds: float, count: int, command: str, options: str) -> None:
    measured: list[Turn] = []
    trouble = ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            while len(measured) < count:
                (servers := Path(folder, str(len(measured)))).mkdir()
                async with turns(
                    attack, servers, seconds=seconds, command=command, options=options
                ) as turn:
                    measured.append(await turn())
                    while len(measured) < count and not attack.lingers:
                        measured.append(await turn())
        except* (AssertionError, OSError, trio.TooSlowError) as errors:
            trouble = repr(errors.exceptions[0])[:200]
    row = f"{attack.name:24}"
    if measured:
        rates = [
            median(each.rate for each in column)
            for column in (
                [turn.undisturbed for turn in measured],
                [turn.control for turn in measured],
                [turn.attacked for turn in measured],
            )
        ]
        kept = median(turn.kept for turn in measured)
        row += f" {rates[0]:7.0f} {rates[1]:7.0f} {rates[2]:8.0f} {kept:6.0%}"
        row += f" {max(turn.attacked.longest for turn in measured) * 1000:6.0f} ms"
        row += f" {median(turn.stalled for turn in measured):8.0%}"
        if kept < attack.kept:
            row += f"  below {attack.kept:.0%}"
    _show(f"{row} {trouble}")


def _scenarios(seconds: float) -> dict[str, Callable[..., Awaitable[list[str]]]]:
    return {
        "slow-links": partial(flood, links=[8 * MBIT, 32 * MBIT, 96 * MBIT], seconds=seconds),
        "private-messages": partial(private_messages, link=8 * MBIT, seconds=seconds),
        "pipe-to-one": partial(pipe, links=[32 * MBIT], megabytes=80),
        "pipe-to-ten": partial(pipe, links=[i * 4 * MBIT for i in range(1, 11)], megabytes=100),
    }


async def _main(options: argparse.Namespace) -> None:
    _show(_HEAD)
    for attack in (*ATTACKS, *LOGIN_ATTACKS, *SLOW_ATTACKS):
        if options.names and attack.name not in options.names:
            continue
        slow = attack in SLOW_ATTACKS
        await _measure(
            attack,
            options.slow_seconds if slow else options.seconds,
            1 if slow else options.turns,
            options.command,
            options.options,
        )
    for name, scenario in _scenarios(options.slow_seconds).items():
        if options.names and name not in options.names:
            continue
        _show(f"{name}:")
        with tempfile.TemporaryDirectory() as folder:
            trouble = await scenario(
                Path(folder),
                command=options.command,
                options=options.options,
                show=lambda line: _show(f"  {line}"),
            )
        for line in trouble or ["passed"]:
            _show(f"  {line}")


def main() -> None:
    """Print the table."""
    names = [each.name for each in (*ATTACKS, *LOGIN_ATTACKS, *SLOW_ATTACKS)] + list(_scenarios(0))
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(names))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--slow-seconds", type=float, default=60.0, help="beside slow clients")
    parser.add_argument("--command", default=MULTICHAT, help="the multichat to attack")
    parser.add_argument("--options", default="", help="more options of its server")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    trio.run(_main, options)


if __name__ == "__main__":
    main()
