"""A server that is repeatedly killed under load and restarted with the same journal.

MULTICHAT_KILL_SEED sets the seed, which determines the run as far as possible and is printed.
"""

import os
import random
import socket
import sys
from pathlib import Path

import pytest
import trio

from multichat.journal.sqlite.journal import SqliteJournal
from tests.kills.__main__ import journal, run
from tests.kills.checker import Member, Rooms, Wrong, check_room
from tests.support.crowd import LOOPBACK, Crowd
from tests.support.processes import MULTICHAT, Command

pytestmark = pytest.mark.stress

KILLS = 20
ROOMS, MEMBERS = 10, 5

# With half a second for each start, about a minute.
LIFE_SECONDS = (0.5, 3.0)

# Time for the last client to reconnect and to receive what it missed.
SETTLE_SECONDS = 180


def server(folder: Path, port: int, journal: Path) -> Command:
    return Command(
        folder, MULTICHAT, "serve", str(port), "--host", LOOPBACK, "--journal", str(journal)
    )


async def run_and_kill(
    folder: Path,
    port: int,
    crowd: Crowd,
    dice: random.Random,
    journal: Path,
    timeout: trio.CancelScope,
) -> None:
    """Run and kill servers that many times; the last one stays."""
    for kills in range(KILLS + 1):
        async with server(folder, port, journal) as one:
            await one.wait_for("Listening on")
            if kills == KILLS:
                crowd.hush()
                timeout.deadline = trio.current_time() + SETTLE_SECONDS
                await trio.sleep_forever()
            while not crowd.ready:
                await trio.sleep(0.05)
            await trio.sleep(dice.uniform(*LIFE_SECONDS))
            one.process.kill()


def seed_of_kills() -> int:
    seed = int(os.environ.get("MULTICHAT_KILL_SEED", "1"))
    sys.stdout.write(f"seed {seed}\n")
    return seed


async def said_in(path: Path, room: str) -> list[str]:
    """Return the messages of *room* in the journal."""
    journal = SqliteJournal(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        its = journal.room(room)
        runs = await its.read(its.first, its.next, max_bytes=1 << 40)
        nursery.cancel_scope.cancel(reason="all was read")
    return [text for run in runs for text in run.text.split("\n")]


async def test_accepted_messages_survive_a_killed_server(tmp_path: Path) -> None:
    seed = seed_of_kills()
    path = tmp_path / "chat.db"
    with socket.socket() as kept:  # keeps the port from being assigned to another process
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind((LOOPBACK, 0))
        port = kept.getsockname()[1]
        crowd = Crowd(port, seed, rooms=ROOMS, members=MEMBERS, burst=20, pause_seconds=0.05)
        async with trio.open_nursery() as nursery:
            dice = random.Random(f"{seed} kills")
            with trio.CancelScope() as timeout:
                nursery.start_soon(run_and_kill, tmp_path, port, crowd, dice, path, timeout)
                await crowd.run()
            sys.stdout.write(f"{crowd.statistics()}\n")
            if timeout.cancelled_caught:
                pytest.fail(f"seed {seed}: {crowd.waiting()}")
            nursery.cancel_scope.cancel(reason="all was heard")
    crowd.check()
    for room in {talker.room for talker in crowd.talkers}:
        texts = await said_in(path, room)
        for talker in crowd.talkers:
            if talker.room == room:
                theirs = [text for text in texts if text.startswith(f"{talker.name} ")]
                assert theirs == [f"{talker.name} {i}" for i in range(talker.said)]


# --- On raw sockets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("durability", "rooms_each", "kills"), [("full", 1, 8), ("normal", 1, 8), ("full", 3, 20)]
)
def test_each_message_arrives_once_in_its_room_and_in_one_order(
    durability: str, rooms_each: int, kills: int, tmp_path: Path
) -> None:
    """`python -m tests.kills` does the same for longer."""
    options = journal(tmp_path, durability)
    done = run(tmp_path, options, kills=kills, seed=seed_of_kills(), rooms_each=rooms_each)
    sys.stdout.write(done)


def test_the_checker_detects_a_server_that_stores_nothing(tmp_path: Path) -> None:
    with pytest.raises(Wrong, match="a new session is"):
        run(tmp_path, [], kills=1, seed=1)


def checked_room() -> tuple[list[Member], list[tuple[str, str]]]:
    """Return two members of a room that have each sent two lines, and its history."""
    rooms = Rooms(0, 1, rooms=1, writers=2, readers=1)
    a, b, _ = rooms.members
    a.said = b.said = 2
    texts = [f"{each.room} {each.name} {i}" for i in range(2) for each in (a, b)]
    history = [(f"id-{number}", text) for number, text in enumerate(texts)]
    for member in rooms.members:
        member.heard = [each for each in history if f" {member.name} " not in each[1]]
        member.accepted = {text: id_ for id_, text in history if f" {member.name} " in text}
    return rooms.members, history


@pytest.mark.unit
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("none", ""),
        ("lost", "each line of the history once"),
        ("twice", "each line of the history once"),
        ("another order", "each line of the history once"),
        ("not kept", "not what was said"),
        ("another id", "another id than the others"),
        ("an id twice", "an id was given twice"),
        ("own order", "in another order"),
        ("own order, sent again", "in another order"),
        ("own order, sent again, refused", ""),
    ],
)
def test_the_checker_notices(fault: str, found: str) -> None:
    members, history = checked_room()
    a, b, reader = members
    match fault:
        case "lost":
            del reader.heard[1]
        case "twice":
            reader.heard.append(reader.heard[-1])
        case "another order":
            reader.heard.reverse()
        case "not kept":
            del history[1]
        case "another id":
            a.accepted[next(iter(a.accepted))] = "id-9"
        case "an id twice":
            history[0] = history[1][0], history[0][1]
        case "own order" | "own order, sent again" | "own order, sent again, refused":
            a.repeated = {history[0][1]} if "again" in fault else set()
            a.was_refused = "refused" in fault
            texts = [history[number][1] for number in (2, 1, 0, 3)]
            history[:] = [(f"id-{number}", text) for number, text in enumerate(texts)]
            for member in members:
                member.heard = [each for each in history if f" {member.name} " not in each[1]]
                member.accepted = {text: id_ for id_, text in history if f" {member.name} " in text}
    if not found:
        check_room("room0", members, history)
        return
    with pytest.raises(Wrong, match=found):
        check_room("room0", members, history)
