"""Attacks from separate processes, and their cost for honest clients.

The machine may be busy, and an attack itself takes processor time.  So an honest pair is measured
three times: undisturbed, while the same attack hits a second server (the control), and while it
hits the pair's own.  Only ratios count.  A clear result passes at once; a test repeats the
measurement several times before it fails.  `python -m tests.attacks` prints a table.
"""

import sys
from pathlib import Path
from statistics import median

import pytest
import trio

from .attacks.catalogue import ATTACKS, LOGIN_ATTACKS, SLOW_ATTACKS, Attack
from .attacks.links import MBIT, flood, pipe, private_messages
from .attacks.measure import Turn, answered, hostile, turns
from .support.processes import serve

pytestmark = pytest.mark.stress

# One measurement is enough if the pair keeps its share plus this margin; otherwise at least three.
MARGIN = 0.05
MIN_TURNS = 3
MOST_TURNS = 15
ATTEMPTS = 2
TURN_SECONDS = 0.25

# Long enough for the first logins of each address, which do not wait, and some that do.
LOGIN_SECONDS = 1.0

# Small, because slow clients may first use up a room's whole budget.
SLOW_TIMEOUT = 0.5
SLOW_SECONDS = 4.0
SLOW_TURNS = 3

# For readers on slow links.
LINK_SECONDS = 6.0


def show(attack: Attack, measured: list[Turn]) -> str:
    figures = "; ".join(
        f"{turn.undisturbed.rate:.0f} {turn.control.rate:.0f} {turn.attacked.rate:.0f} "
        f"({turn.stalled:.0%} stalled)"
        for turn in measured
    )
    line = f"{attack.name}: round trips a second undisturbed, control, attacked: {figures}"
    sys.stdout.write(f"{line}\n")  # with -rA
    return line


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_an_honest_pair_keeps_its_share_and_loses_nothing(
    attack: Attack, tmp_path: Path
) -> None:
    measured: list[Turn] = []

    def kept() -> float:
        return median(turn.kept for turn in measured)

    for attempt in range(ATTEMPTS):  # with new servers
        measured.clear()
        (folder := tmp_path / str(attempt)).mkdir()
        async with turns(attack, folder, seconds=TURN_SECONDS) as turn:
            measured.append(await turn())
            if kept() >= attack.kept + MARGIN:
                break
            while len(measured) < MIN_TURNS or (
                kept() < attack.kept and len(measured) < MOST_TURNS
            ):
                measured.append(await turn())
        if kept() >= attack.kept:
            break
    assert kept() >= attack.kept, show(attack, measured)
    show(attack, measured)


@pytest.mark.parametrize("attack", LOGIN_ATTACKS, ids=lambda attack: attack.name)
async def test_an_honest_pair_keeps_its_share_beside_logins(attack: Attack, tmp_path: Path) -> None:
    """Each turn has new servers, because the logins wait in them for a while."""
    measured: list[Turn] = []

    def kept() -> float:
        return median(turn.kept for turn in measured)

    for number in range(MOST_TURNS):
        (folder := tmp_path / str(number)).mkdir()
        async with turns(attack, folder, seconds=LOGIN_SECONDS) as turn:
            measured.append(await turn())
        is_enough = len(measured) >= MIN_TURNS and kept() >= attack.kept
        if is_enough or kept() >= attack.kept + MARGIN:
            break
    assert kept() >= attack.kept, show(attack, measured)
    show(attack, measured)


@pytest.mark.parametrize("attack", SLOW_ATTACKS, ids=lambda attack: attack.name)
async def test_slow_clients_cost_a_room_at_most_a_tenth_of_its_time(
    attack: Attack, tmp_path: Path
) -> None:
    """After the initially full wait budget is spent."""
    measured: list[Turn] = []
    options = f"--slow-timeout {SLOW_TIMEOUT}"
    async with turns(attack, tmp_path, seconds=SLOW_SECONDS, options=options) as turn:
        while len(measured) < SLOW_TURNS:
            measured.append(await turn())
            last = measured[-1]
            waited = last.stalled * last.attacked.seconds
            if waited <= SLOW_TIMEOUT + last.attacked.seconds / 10 and last.kept >= attack.kept:
                break
        else:
            pytest.fail(show(attack, measured))
    show(attack, measured)


async def test_new_clients_are_answered_while_hundreds_connect_and_hang_up(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, hostile(server, tmp_path, "come-and-go", ""):
        for _ in range(3):
            assert await trio.to_thread.run_sync(answered, server.port) == b"[Server] pong\n"


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")


async def test_readers_on_slow_links_get_the_history_during_a_flood(
    tmp_path: Path,
) -> None:
    trouble = await flood(
        tmp_path,
        links=[8 * MBIT, 32 * MBIT, 96 * MBIT],
        seconds=LINK_SECONDS,
        options="--keep-mib 4",
        show=print_line,
    )
    assert not trouble


async def test_a_flood_of_private_messages_disconnects_no_client(tmp_path: Path) -> None:
    trouble = await private_messages(tmp_path, link=8 * MBIT, seconds=LINK_SECONDS, show=print_line)
    assert not trouble


@pytest.mark.parametrize(
    ("links", "megabytes"),
    [([32 * MBIT], 32), ([i * 4 * MBIT for i in range(1, 11)], 48)],
    ids=["one", "ten"],
)
async def test_a_piped_file_arrives_whole_at_the_fastest_of_slow_readers(
    links: list[float], megabytes: int, tmp_path: Path
) -> None:
    trouble = await pipe(tmp_path, links=links, megabytes=megabytes, show=print_line)
    assert not trouble
