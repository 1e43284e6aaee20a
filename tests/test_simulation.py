"""The simulation keeps its word: runs repeat, clean ones pass, a broken server is caught."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from multichat import ServerConfig, Slow
from multichat.batch import Batch, Receipt
from multichat.config import Message
from multichat.directory import Directory
from multichat.filters import Filters
from multichat.mailbox import Mailbox, Offer
from multichat.messages import SaidRun
from multichat.room import Member, Room
from multichat.testing import ScriptedClient, memory_server
from multichat.voices import JsonVoice, TextVoice

from .conftest import LogRecorder
from .simulation.invariants import INVARIANTS
from .simulation.plan import Plan, make_plan
from .simulation.wire import Connection, End
from .simulation.world import simulate

# In every build; `python -m tests.simulation` runs as many as one likes.
SEEDS = range(24)

# Most mutations are caught by the first or second.
SEEDS_FOR_A_MUTATION = range(100, 160)
MOST_PEOPLE = 12


@pytest.mark.parametrize("seed", SEEDS)
def test_no_schedule_violates_an_invariant(seed: int) -> None:
    plan = make_plan(seed)
    if len(plan.people) <= 30:  # the crowds take their time
        assert simulate(plan).violations == []


# --- A run is its seed ----------------------------------------------------------------------------


def test_a_seed_is_a_run() -> None:
    digests = [simulate(make_plan(seed)).digest for seed in (1, 2, 3, 1, 2, 3)]
    assert digests[:3] == digests[3:]
    assert len(set(digests)) == 3


def test_a_seed_is_the_same_run_in_another_process() -> None:
    """Whatever hashes strings have there."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7"]
    outputs = [
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            timeout=60,
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


# --- Schedules that failed once -------------------------------------------------------------------


async def be_sent_away_with(request: str) -> list[str]:
    """Have somebody be evicted while its session waits to answer, with *request* still unread.

    Returns what it was told, and checks that nothing of it is left.
    """
    config = ServerConfig(slow=Slow.DISCONNECT, mailbox_batches=1)
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
async def test_who_has_been_sent_away_is_not_asked_any_more(
    request_: str, autojump_clock: trio.testing.MockClock, log: LogRecorder
) -> None:
    """Seeds 65 and 103: the rest of its read was done, which crashed or left its name taken."""
    told = await be_sent_away_with(request_)
    assert told[-1] == "[Server] goodbye: too slow"
    assert {*told[:-1]} == {"[Server] pong"}
    assert not any("crashed" in line for line in log.lines)


@pytest.mark.parametrize("seed", [65, 103, 820])
def test_who_has_been_sent_away_does_nothing_more(seed: int) -> None:
    assert simulate(make_plan(seed)).violations == []


@pytest.mark.parametrize("seed", [97, 106])
def test_who_is_too_far_behind_is_told_on_a_line_of_its_own(seed: int) -> None:
    """The rest of a batch that was half written was forgotten with what waited."""
    assert simulate(make_plan(seed)).violations == []


def test_a_rate_is_kept_on_a_clock_that_does_not_go_on_by_itself() -> None:
    """A wait for a token was too short by a rounding error, and then there was none, for ever."""
    assert simulate(make_plan(10)).violations == []


async def test_what_is_half_written_is_not_forgotten() -> None:
    """Over real sockets, where a batch is begun at once; who has to go hears whole lines."""
    config = ServerConfig(memory_bytes=300_000, max_line_bytes=1_000_000)
    for _ in range(5):  # it depends on whether the writer or who dismisses comes first
        async with memory_server(config) as network:
            sender = await network.join()
            ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
            network.accept(ours)
            await trio.testing.wait_all_tasks_blocked()
            await sender.send("x" * 900_000)
            async with theirs:
                told = await ScriptedClient(theirs).rest()
            assert told == [f"[Client 1] {'x' * 900_000}", "[Server] goodbye: too far behind"]


# --- Broken servers -------------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def every(nth: int) -> Callable[[], bool]:
    """Return what says yes once in so many calls."""
    calls = count(1)
    return lambda: next(calls) % nth == 0


def wrap(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, wrapper: Any) -> None:
    """Put *wrapper*, which gets the original first, in the place of a method."""
    original = getattr(owner, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    monkeypatch.setattr(owner, name, replacement)


def reorder(monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[Mailbox, bytes] = {}
    now = every(3)

    def offer(original: Any, mailbox: Mailbox, data: bytes) -> Any:
        if mailbox in held:
            offered = original(mailbox, data)
            original(mailbox, held.pop(mailbox))
            return offered
        if now():
            held[mailbox] = data
            return Offer.QUEUED
        return original(mailbox, data)

    wrap(monkeypatch, Mailbox, "offer", offer)


def say_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(original: Any, room: Room, sender: Member, run: str, **kwargs: Any) -> Any:
        return original(room, sender, "\n".join(reversed(run.split("\n"))), **kwargs)

    wrap(monkeypatch, Room, "say", say)


def count_ids_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def spell_said(original: Any, voice: JsonVoice, said: SaidRun) -> Any:
        return original(voice, msgspec.structs.replace(said, first=100_000 - said.first))

    wrap(monkeypatch, JsonVoice, "spell_said", spell_said)


def lose(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(5)

    def offer(original: Any, mailbox: Mailbox, data: bytes) -> Any:
        return Offer.QUEUED if now() else original(mailbox, data)

    wrap(monkeypatch, Mailbox, "offer", offer)


def miscount_what_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, Mailbox, "miss", lambda original, box, count: original(box, count + 1))


def swallow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(3)

    async def say(original: Any, *args: Any, **kwargs: Any) -> Receipt:
        return Receipt() if now() else await original(*args, **kwargs)

    wrap(monkeypatch, Room, "say", say)


def accept_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(3)

    async def say(original: Any, *args: Any, **kwargs: Any) -> Receipt:
        return Receipt(epoch="0", first=1) if now() else await original(*args, **kwargs)

    wrap(monkeypatch, Room, "say", say)


def duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(5)

    def offer(original: Any, mailbox: Mailbox, data: bytes) -> Any:
        return original(mailbox, data * 2 if now() else data)

    wrap(monkeypatch, Mailbox, "offer", offer)


def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    def offer_to_all(original: Any, room: Room, batch: Batch, sender: Member | None) -> Any:
        return original(room, batch, None)

    wrap(monkeypatch, Room, "_offer_to_all", offer_to_all)


def forget_who_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(original: Any, room: Room, member: Member, *args: Any, **kwargs: Any) -> None:
        original(room, member, *args, **kwargs)
        room._by_voice[member.voice][member.client] = member

    wrap(monkeypatch, Room, "leave", leave)


def forge(monkeypatch: pytest.MonkeyPatch) -> None:
    def spell_said(original: Any, voice: TextVoice, said: SaidRun) -> Any:
        return original(voice, msgspec.structs.replace(said, name="Client 1"))

    wrap(monkeypatch, TextVoice, "spell_said", spell_said)


def filter_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def apply(original: Any, filters: Filters, messages: Sequence[Message]) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return list(messages)

    wrap(monkeypatch, Filters, "apply", apply)


def cut_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    def offer(original: Any, mailbox: Mailbox, data: bytes) -> Any:
        return original(mailbox, data[:-2] + data[-1:])

    wrap(monkeypatch, Mailbox, "offer", offer)


def evict_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    def dismiss(
        original: Any, directory: Directory, member: Member, reason: str, **kwargs: Any
    ) -> None:
        directory.leave(member, reason, **kwargs)

    wrap(monkeypatch, Directory, "dismiss", dismiss)


def blame_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(
        original: Any, directory: Directory, member: Member, reason: str = "", **kw: Any
    ) -> None:
        original(directory, member, reason or "connection reset", **kw)

    wrap(monkeypatch, Directory, "leave", leave)


def haunt(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(original: Any, directory: Directory, member: Member, *args: Any, **kw: Any) -> None:
        original(directory, member, *args, **kw)
        if not member.name.startswith("ghost"):
            directory.rename(member, f"ghost{member.client}")

    wrap(monkeypatch, Directory, "leave", leave)


def take_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(original: Any, *args: Any, max_batches: int, **kwargs: Any) -> None:
        original(*args, max_batches=1000 * max_batches, **kwargs)

    wrap(monkeypatch, Mailbox, "__init__", init)


def leave_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(original: Any, room: Room, member: Member) -> None:
        original(room, member)
        trio.lowlevel.spawn_system_task(trio.sleep_forever)

    wrap(monkeypatch, Room, "join", join)


def keep_empty_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, Directory, "_close_if_empty", lambda original, directory, room: None)


def hang_up_never(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang_up(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("multichat.transport.hang_up", hang_up)


def crash(monkeypatch: pytest.MonkeyPatch) -> None:
    now = every(5)

    async def say(original: Any, *args: Any, **kwargs: Any) -> Receipt:
        if now():
            raise RuntimeError("on purpose")
        return await original(*args, **kwargs)  # type: ignore[no-any-return]

    wrap(monkeypatch, Room, "say", say)


def count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say(original: Any, room: Room, *args: Any, **kwargs: Any) -> Receipt:
        room._counts.messages += 20
        return await original(room, *args, **kwargs)  # type: ignore[no-any-return]

    wrap(monkeypatch, Room, "say", say)


MUTATIONS: list[tuple[Break, str, dict[str, Any]]] = [
    (reorder, "one_order", {"slow": Slow.WAIT}),
    (say_backwards, "sender_order", {}),
    (count_ids_backwards, "ids_are_in_order", {}),
    (lose, "nothing_lost", {"slow": Slow.WAIT}),
    (lose, "skips_add_up", {"slow": Slow.DROP}),
    (miscount_what_was_missed, "skips_add_up", {"slow": Slow.DROP}),
    (swallow, "all_is_said", {}),
    (accept_in_vain, "accepted_is_said", {}),
    (duplicate, "nothing_twice", {}),
    (echo, "no_echo", {}),
    (forget_who_leaves, "only_members_hear", {}),
    (forge, "no_forged_tag", {}),
    (cut_texts, "texts_are_whole", {}),
    (filter_nothing, "texts_are_whole", {}),
    (evict_silently, "evicted_are_told", {}),
    (blame_the_connection, "nobody_goes_without_reason", {}),
    (haunt, "gone_is_gone", {}),
    (take_without_bound, "mailboxes_bounded", {"mailbox_batches": 1}),
    (leave_a_task, "nothing_left_behind", {}),
    (keep_empty_rooms, "nothing_left_behind", {}),
    (hang_up_never, "ends_in_time", {}),
    (crash, "nothing_crashes", {}),
    (count_twice, "counts_add_up", {}),
]


def small_plans(settings: dict[str, Any]) -> Iterator[Plan]:
    for plan in map(make_plan, SEEDS_FOR_A_MUTATION):
        if len(plan.people) <= MOST_PEOPLE:
            yield replace(plan, config=replace(plan.config, **settings))


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


def test_every_invariant_can_be_violated() -> None:
    assert {invariant for _, invariant, _ in MUTATIONS} == {each.__name__ for each in INVARIANTS}


# --- The network ----------------------------------------------------------------------------------


async def make_connection() -> tuple[End, End]:
    connection = Connection(to_server_bytes=1 << 20, to_client_bytes=1 << 20, rng=Random(0))
    return connection.server, connection.client


async def make_clogged_connection() -> tuple[End, End]:
    connection = Connection(to_server_bytes=10, to_client_bytes=10, rng=Random(0))
    await connection.server.send_all(bytes(10))
    await connection.client.send_all(bytes(10))
    return connection.server, connection.client


async def test_our_network_is_what_trio_takes_for_one() -> None:
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


async def test_who_writes_to_nobody_is_told_with_the_second_write() -> None:
    server, client = await make_connection()
    await client.aclose()
    assert await server.receive_some() == b""
    await server.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await server.send_all(b"x")
