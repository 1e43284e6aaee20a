"""The simulation: runs are reproducible, correct servers pass, and a broken one is caught."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from multichat import ServerConfig, Slow
from multichat.protocol.goodbyes import TOO_FAR_BEHIND
from multichat.protocol.messages import Goodbye
from multichat.testing import ScriptedClient, memory_server

from .simulation.broken import AT_SHUTDOWN, MUTATIONS, Break, echo
from .simulation.invariants import INVARIANTS
from .simulation.nodes.broken import NODES_MUTATIONS
from .simulation.nodes.plan import make_nodes_plan, make_owners_nodes_plan
from .simulation.nodes.world import simulate_nodes
from .simulation.plan import Plan, make_plan, with_slow_backend
from .simulation.rooms.broken import ROOMS_MUTATIONS
from .simulation.rooms.invariants import ROOMS_INVARIANTS
from .simulation.rooms.plan import about_accounts, make_owners_plan, make_rooms_plan
from .simulation.rooms.world import simulate_rooms
from .simulation.slow_broken import SLOW_MUTATIONS
from .simulation.wire import Connection, End
from .simulation.world import simulate
from .support.log import LogRecorder

pytestmark = pytest.mark.unit

# The number of seeds in each build; `python -m tests.simulation` runs more.
SEEDS = range(24)
SEEDS_OF_NODES = range(12)
SEEDS_OF_OWNERS = range(12)
SEEDS_OF_OWNERS_ON_NODES = range(3)

# In these a client that lags at the shutdown is told how many messages it missed, and reads that.
SEEDS_WITH_A_COUNT_AT_SHUTDOWN = (1334, 1380, 1836)

# In this one a client breaks its connection while its number is stored, and the server is killed:
# the number is given to another.
SEED_WITH_A_NUMBER_GIVEN_AGAIN = 21048

# In this one two tasks wanted to close one room.
SEED_WITH_A_ROOM_CLOSED_TWICE = 236

# In this one a session that knows one room comes back to that which was refused twice before.
SEED_WITH_A_ROOM_REFUSED_TWICE = 1501

# In these a client lags behind its own messages only at the shutdown; messages under way then, and
# one with the same nonce behind them; a bare `since` about a room that is refused again; and
# (the last three) messages with one nonce of which one names the room that is refused.
SEEDS_WITH_SEVERAL_ROOMS = (2446, 2527, 4601, 4648, 7583, 8148, 8937, 22007, 2511, 2689, 3566)

# In this one a client names its rooms while a page is read for its replay.
SEED_WITH_A_HELLO_DURING_A_READ = 11490

# In the first two a client changes to JSON while the lobby waits for it to take messages.  Then:
# somebody logs in to the account of a client that has resumed with its login, or while it resumes;
# a client resumes before its account is stored, or has left when its node hears where it was; a
# client is reported to the others while its name is being claimed; it has claimed its name, or has
# got it, and is not reported while it takes nothing; a client resumes with a login on a node that
# does not know the account yet.
SEEDS_WITH_SEVERAL_NODES = (381, 625, 741, 1379, 1317, 1362, 140, 828, 299, 1173)

# In the first two a node reports a client with a name that it does not know to be lost yet; in the
# last one a client keeps its name, as one that looks like it is registered while it is claimed.
SEEDS_WITH_OWNERS_ON_NODES = (43, 51, 132)

# Most mutations are caught by the first or second seed.
SEEDS_FOR_A_MUTATION = range(100, 1100)
MOST_PEOPLE = 12


@pytest.mark.parametrize("seed", SEEDS)
def test_no_schedule_violates_an_invariant(seed: int) -> None:
    plan = make_plan(seed)
    if len(plan.people) <= 30:  # crowds take long
        assert simulate(plan).violations == []


@pytest.mark.parametrize("seed", SEEDS)
def test_no_schedule_with_several_rooms_violates_an_invariant(seed: int) -> None:
    assert simulate_rooms(make_rooms_plan(seed)).violations == []


@pytest.mark.parametrize("seed", SEEDS)
def test_no_schedule_with_a_backend_that_decides_late_violates_an_invariant(seed: int) -> None:
    plan = with_slow_backend(make_plan(seed))
    if len(plan.people) <= 30:
        assert simulate(plan).violations == []
    assert simulate_rooms(with_slow_backend(make_rooms_plan(seed))).violations == []


@pytest.mark.parametrize("seed", SEEDS_OF_NODES)
def test_no_schedule_with_several_nodes_violates_an_invariant(seed: int) -> None:
    assert simulate_nodes(make_nodes_plan(seed)).violations == []


@pytest.mark.parametrize("seed", SEEDS_OF_OWNERS)
def test_no_schedule_in_which_owners_take_their_names_violates_an_invariant(seed: int) -> None:
    plan = make_owners_plan(seed)
    assert simulate_rooms(plan).violations == []
    assert simulate_rooms(with_slow_backend(plan)).violations == []


@pytest.mark.parametrize("seed", [*SEEDS_OF_OWNERS_ON_NODES, *SEEDS_WITH_OWNERS_ON_NODES])
def test_no_schedule_in_which_owners_are_on_other_nodes_violates_an_invariant(seed: int) -> None:
    assert simulate_nodes(make_owners_nodes_plan(seed)).violations == []


@pytest.mark.parametrize("seed", SEEDS_WITH_A_COUNT_AT_SHUTDOWN)
def test_a_count_of_missed_messages_at_shutdown_is_right(seed: int) -> None:
    assert simulate(make_plan(seed)).violations == []


def test_a_number_that_was_not_stored_when_the_server_was_killed_is_given_again() -> None:
    assert simulate(make_plan(SEED_WITH_A_NUMBER_GIVEN_AGAIN)).violations == []


def test_a_room_that_was_refused_twice_is_still_the_session_s() -> None:
    assert simulate_rooms(make_rooms_plan(SEED_WITH_A_ROOM_REFUSED_TWICE)).violations == []


@pytest.mark.parametrize("seed", [*SEEDS_WITH_SEVERAL_ROOMS, SEED_WITH_A_HELLO_DURING_A_READ])
def test_a_schedule_that_once_violated_an_invariant_does_not(seed: int) -> None:
    assert simulate_rooms(make_rooms_plan(seed)).violations == []


@pytest.mark.parametrize("seed", SEEDS_WITH_SEVERAL_NODES)
def test_a_schedule_of_nodes_that_once_violated_an_invariant_does_not(seed: int) -> None:
    assert simulate_nodes(make_nodes_plan(seed)).violations == []


def test_a_room_that_is_closed_twice_is_closed_once() -> None:
    plan = with_slow_backend(make_rooms_plan(SEED_WITH_A_ROOM_CLOSED_TWICE))
    assert simulate_rooms(plan).violations == []


# --- Reproducible runs ----------------------------------------------------------------------------


def test_a_seed_is_a_run() -> None:
    digests = [simulate(make_plan(seed)).digest for seed in (1, 2, 3, 1, 2, 3)]
    assert digests[:3] == digests[3:]
    assert len(set(digests)) == 3


def test_a_seed_is_a_run_with_a_backend_that_decides_late() -> None:
    digests = [simulate(with_slow_backend(make_plan(seed))).digest for seed in (1, 2, 1, 2)]
    assert digests[:2] == digests[2:]
    assert len(set(digests)) == 2


def test_a_seed_is_a_run_with_several_nodes() -> None:
    digests = [simulate_nodes(make_nodes_plan(seed)).digest for seed in (1, 2, 1, 2)]
    assert digests[:2] == digests[2:]
    assert len(set(digests)) == 2


def test_a_seed_is_a_run_with_several_rooms() -> None:
    digests = [simulate_rooms(make_rooms_plan(seed)).digest for seed in (8, 9, 8, 9)]
    assert digests[:2] == digests[2:]
    assert len(set(digests)) == 2


@pytest.mark.process
@pytest.mark.parametrize("backend", ["local", "slow"])
@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_seed_is_the_same_run_in_another_process(kind: str, backend: str) -> None:
    """Independent of the hash seed."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7", "--kind", kind]
    command += ["--backend", backend]
    outputs = [
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
        )
        for seed in ("1", "2")
    ]
    assert outputs[0].stderr == b""
    assert b"digest" in outputs[0].stdout
    assert outputs[0].stdout == outputs[1].stdout


def test_a_full_disk_under_the_log_changes_nothing_but_the_log() -> None:
    for seed in (1, 2, 3):
        plan = make_plan(seed)
        digests = {simulate(replace(plan, full_disk=full)).digest for full in (True, False)}
        assert len(digests) == 1


def test_a_failing_seed_says_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from .simulation import __main__ as command

    echo(monkeypatch)
    assert command.run_many(range(2, 5), jobs=1) == 1
    out = capsys.readouterr().out
    assert "seed 4: no_echo: c" in out
    assert "replay it: python -m tests.simulation --seed 4\n" in out
    assert "3 schedules, " in out


# --- Regressions ----------------------------------------------------------------------------------


async def be_sent_away_with(request: str) -> list[str]:
    """Disconnect a client while its session waits to answer, with *request* still unread.

    Returns what it received, and checks that nothing of it remains.
    """
    config = ServerConfig(slow=Slow.DISCONNECT, send_queue_batches=1)
    async with memory_server(config) as network:
        other = await network.join()
        slow = await network.join(lockstep=True)
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(slow.send, *["/ping"] * 4, request))
                await trio.testing.wait_all_tasks_blocked()
                await other.send("hello")
        told = await slow.rest()
        await other.send("/name zoe")
        assert await other.line() == "[Server] Client 1 is now zoe"
        assert network.server.statistics().rooms == 1
    return told


@pytest.mark.parametrize("request_", ["/join den", "/name zoe", "/json", "/msg 1 boo"])
async def test_requests_of_a_disconnected_client_are_not_processed(
    request_: str, autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    """Seeds 65 and 103: the rest of its read was processed, which crashed or kept its name."""
    told = await be_sent_away_with(request_)
    assert told[-1] == "[Server] goodbye: too slow"
    assert {*told[:-1]} == {"[Server] pong"}
    assert not any("crashed" in line for line in log.lines)


@pytest.mark.parametrize("seed", [65, 103, 820])
def test_a_disconnected_client_does_nothing_more(seed: int) -> None:
    assert simulate(make_plan(seed)).violations == []


@pytest.mark.parametrize("seed", [97, 106])
def test_the_goodbye_for_a_client_that_is_too_far_behind_is_a_separate_line(seed: int) -> None:
    """Regression: the rest of a partly written batch was discarded with the queue."""
    assert simulate(make_plan(seed)).violations == []


def test_a_rate_is_kept_on_a_clock_that_does_not_advance_by_itself() -> None:
    """Regression: because of rounding, a wait was too short for a token, again and again."""
    assert simulate(make_plan(10)).violations == []


async def test_a_batch_that_was_partly_written_is_completed() -> None:
    """On real sockets, part of a batch is written at once; the client gets whole lines."""
    config = ServerConfig(max_line_bytes=200_000)
    for _ in range(5):  # depends on the order of the writer and the disconnect
        async with memory_server(config) as network:
            sender = await network.join()
            ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
            network.accept(ours)
            await trio.testing.wait_all_tasks_blocked()
            await sender.send(*["x" * 100_000] * 20)
            await trio.testing.wait_all_tasks_blocked()
            registry = network.server._registry
            member = registry.clients[-1]
            assert member.send_queue.waiting_bytes > 1_000_000
            member.send_queue.forget()  # as when memory is full
            registry.disconnect(member, Goodbye.of("too-slow", TOO_FAR_BEHIND))
            async with theirs:
                with trio.fail_after(60):
                    *told, goodbye = await ScriptedClient(theirs).rest()
            assert set(told) == {f"[Client 1] {'x' * 100_000}"}
            assert goodbye == "[Server] goodbye: too far behind"


# --- Broken servers -------------------------------------------------------------------------------


def small_plans(settings: dict[str, Any]) -> Iterator[Plan]:
    """Yield plans of few clients with *settings* of the server, and `damaged_reads` of the disk.

    With `restores`, only plans in which a backup is restored.
    """
    config = dict(settings)
    faults = {"damaged_reads": config.pop("damaged_reads")} if "damaged_reads" in config else {}
    restores = config.pop("restores", False)
    for plan in map(make_plan, SEEDS_FOR_A_MUTATION):
        if len(plan.people) <= MOST_PEOPLE and (plan.restores or not restores):
            plan = replace(plan, faults=replace(plan.faults, **faults))
            yield replace(plan, config=replace(plan.config, **config))


@pytest.mark.stress  # some mutations need many schedules
@pytest.mark.parametrize(
    ("break_it", "invariant", "settings"),
    [pytest.param(*each, id=f"{each[0].__name__}-{each[1]}") for each in MUTATIONS],
)
def test_a_broken_server_is_caught(
    break_it: Break, invariant: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    for plan in small_plans(settings):
        if invariant in {violation.invariant for violation in simulate(plan).violations}:
            return
    pytest.fail(f"{break_it.__name__} was not noticed")


@pytest.mark.parametrize("seed", SEEDS_WITH_A_COUNT_AT_SHUTDOWN)
@pytest.mark.parametrize("break_it", AT_SHUTDOWN)
def test_a_wrong_count_at_shutdown_is_caught(
    break_it: Break, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    found = {violation.invariant for violation in simulate(make_plan(seed)).violations}
    assert found & {"nothing_lost", "skips_add_up"}


def small_slow_plans(settings: dict[str, Any]) -> Iterator[Plan]:
    """Yield plans with a backend that decides late; for *settings* see `SLOW_MUTATIONS`."""
    config = dict(settings)
    cuts, full = config.pop("cuts", None), config.pop("full", False)
    for plan in map(with_slow_backend, small_plans(config)):
        if cuts is not None and plan.link is not None:
            plan = replace(plan, link=replace(plan.link, cuts=cuts))
        if plan.faults.full or not full:
            yield plan


@pytest.mark.stress
@pytest.mark.parametrize(
    ("break_it", "invariant", "settings"),
    [pytest.param(*each, id=f"{each[0].__name__}-{each[1]}") for each in SLOW_MUTATIONS],
)
def test_a_broken_server_with_a_backend_that_decides_late_is_caught(
    break_it: Break, invariant: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    for plan in small_slow_plans(settings):
        if invariant in {violation.invariant for violation in simulate(plan).violations}:
            return
    pytest.fail(f"{break_it.__name__} was not noticed")


@pytest.mark.stress
@pytest.mark.parametrize(
    ("break_it", "invariant", "freezes"),
    [pytest.param(*each, id=f"{each[0].__name__}-{each[1]}") for each in NODES_MUTATIONS],
)
def test_broken_nodes_are_caught(
    break_it: Break, invariant: str, freezes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    about_owners = invariant == "registered_names_have_one_holder"
    make = make_owners_nodes_plan if about_owners else make_nodes_plan
    for plan in map(make, SEEDS_FOR_A_MUTATION):
        if freezes:
            plan = replace(plan, freezes=((plan.seconds / 2, 0, 15.0),))
        if invariant in {violation.invariant for violation in simulate_nodes(plan).violations}:
            return
    pytest.fail(f"{break_it.__name__} was not noticed")


def small_rooms_plans(settings: dict[str, Any]) -> Iterator[Plan]:
    """Yield plans with *settings* of the server; for the others see `ROOMS_MUTATIONS`."""
    config = dict(settings)
    restores, accounts = config.pop("restores", False), config.pop("accounts", False)
    make = make_owners_plan if config.pop("owners", False) else make_rooms_plan
    for plan in map(make, SEEDS_FOR_A_MUTATION):
        if plan.restores or not restores:
            plan = about_accounts(plan) if accounts else plan
            yield replace(plan, config=replace(plan.config, **config))


@pytest.mark.stress
@pytest.mark.parametrize(
    ("break_it", "invariant", "settings"),
    [pytest.param(*each, id=f"{each[0].__name__}-{each[1]}") for each in ROOMS_MUTATIONS],
)
def test_a_broken_server_with_several_rooms_is_caught(
    break_it: Break, invariant: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    for plan in small_rooms_plans(settings):
        if invariant in {violation.invariant for violation in simulate_rooms(plan).violations}:
            return
    pytest.fail(f"{break_it.__name__} was not noticed")


def test_every_mutation_applies_to_the_current_code() -> None:
    """A quick check that the mutated code still exists, without the long stress tests."""
    every = [break_it for break_it, _, _ in [*MUTATIONS, *ROOMS_MUTATIONS, *SLOW_MUTATIONS]]
    every += [break_it for break_it, _, _ in NODES_MUTATIONS]
    for break_it in [*every, *AT_SHUTDOWN]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            break_it(monkeypatch)


def test_every_invariant_can_be_violated() -> None:
    violated = {invariant for _, invariant, _ in [*MUTATIONS, *SLOW_MUTATIONS]}
    assert violated == {each.__name__ for each in INVARIANTS}
    violated |= {invariant for _, invariant, _ in ROOMS_MUTATIONS}
    assert violated >= {each.__name__ for each in ROOMS_INVARIANTS}


# --- The network ----------------------------------------------------------------------------------


async def make_connection() -> tuple[End, End]:
    connection = Connection(to_server_bytes=1 << 20, to_client_bytes=1 << 20, rng=Random(0))
    return connection.server, connection.client


async def make_clogged_connection() -> tuple[End, End]:
    connection = Connection(to_server_bytes=10, to_client_bytes=10, rng=Random(0))
    await connection.server.send_all(bytes(10))
    await connection.client.send_all(bytes(10))
    return connection.server, connection.client


async def test_the_simulated_network_passes_trios_stream_checks() -> None:
    await trio.testing.check_half_closeable_stream(make_connection, make_clogged_connection)


async def test_a_write_waits_for_room_and_a_reset_leaves_a_part() -> None:
    connection = Connection(to_server_bytes=10, to_client_bytes=10, rng=Random(1))
    server, client = connection.server, connection.client
    with trio.move_on_after(0.01):
        await client.send_all(b"0123456789abcdef")
    assert client.cut_off_at is not None
    assert await server.receive_some(4) == b"0123"
    client.abort()
    rest = bytearray()
    with pytest.raises(trio.BrokenResourceError):
        while True:
            rest += await server.receive_some()
    assert b"456789".startswith(rest)
    with pytest.raises(trio.BrokenResourceError):
        await server.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")


async def test_closing_over_unread_input_resets() -> None:
    server, client = await make_connection()
    await client.send_all(b"x")
    await server.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()


async def test_writing_to_a_closed_peer_fails_on_the_second_write() -> None:
    server, client = await make_connection()
    await client.aclose()
    assert await server.receive_some() == b""
    await server.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await server.send_all(b"x")
