"""The functions of the log, called as nodes do, in real engines of both kinds.

Mutation checks run a changed copy of the library: what each of its rules is for is what goes wrong
without it.
"""

from collections.abc import AsyncIterator

import pytest
import trio

from multichat.cluster.calls import (
    Answer,
    Deleted,
    Packet,
    Status,
    parse_push,
    read,
    read_before,
    tails,
    trim,
)
from multichat.cluster.keys import LOG, room_channel
from multichat.cluster.library import VERSION_CALL, LibraryTooNew, Version, load_command

from .engine import Engine, EngineConfig, EngineError, Engines
from .functions import Caller, block, calling, mutated, room_stream

pytestmark = pytest.mark.process

MANY = 1_000_000_000


@pytest.fixture
async def caller(engine: Engine) -> AsyncIterator[Caller]:
    async with calling(engine) as made:
        await made.load()
        yield made


async def said(caller: Caller, room: str = "lobby") -> list[str]:
    """Return the room's messages, in order, each with its number."""
    packets = await caller.call(read(room, 0, MANY, max_bytes=MANY))
    return [line for packet in packets for line in lines(packet)]


def lines(packet: Packet) -> list[str]:
    assert packet.said is not None
    texts = packet.said.text.split("\n")
    assert len(texts) == packet.header.count
    assert packet.said.first == packet.header.first
    return [f"{packet.header.first + i} {text}" for i, text in enumerate(texts)]


def appended(answers: list[Answer]) -> list[int]:
    assert {answer.status for answer in answers} == {Status.APPENDED}, answers
    return [answer.first for answer in answers]


# --- The version ----------------------------------------------------------------------------------


async def test_the_library_is_loaded_only_where_it_is_missing_or_older(engine: Engine) -> None:
    async with calling(engine) as caller:
        with pytest.raises(EngineError, match="Function not found"):
            await caller.call(VERSION_CALL)
        command = load_command(None)
        assert command is not None
        await caller.command(*command)
        found = await caller.call(VERSION_CALL)
        assert load_command(found) is None
        assert load_command(Version(0, found.digest)) == command
        assert load_command(Version(found.number, "another text")) == command


def test_a_newer_library_is_refused_with_a_line_that_says_what_to_do() -> None:
    with pytest.raises(LibraryTooNew, match="upgrade this node") as error:
        load_command(Version(99, ""))
    assert "\n" not in str(error.value)


# --- Order and numbers ----------------------------------------------------------------------------


async def test_blocks_get_numbers_in_the_order_of_their_arguments(caller: Caller) -> None:
    answers = await caller.append(block("one\ntwo"), block("x", room="ops"), block("three"))
    assert appended(answers) == [0, 0, 2]
    assert await said(caller) == ["0 one", "1 two", "2 three"]
    assert await said(caller, "ops") == ["0 x"]
    assert answers[0].epoch == answers[2].epoch != answers[1].epoch


async def test_messages_are_read_back_unchanged(caller: Caller) -> None:
    text = "grüße \N{GRINNING FACE}\x00\n\t\nlast"
    await caller.append(block(text, name="Zoë", client=2**40))
    [packet] = await caller.call(read("lobby", 0, 3, max_bytes=MANY))
    assert packet.said is not None
    assert (packet.said.text, packet.said.name, packet.said.client) == (text, "Zoë", 2**40)
    assert packet.said.epoch == packet.header.epoch
    assert (packet.header.run, packet.header.sequence, packet.header.index) == ("run-a", 1, 0)


async def test_a_push_has_the_packet_or_only_its_numbers_if_it_is_large(
    engine: Engine, caller: Caller
) -> None:
    async with calling(engine, node="b", run="run-b") as other:
        await other.subscribe("lobby")
        await caller.append(block("small"), block("x" * 100_000))
        pushed = parse_push((await other.push())[2])
    assert isinstance(pushed, list)
    stored = await caller.call(read("lobby", 0, MANY, max_bytes=MANY))
    assert pushed[0] == stored[0]
    assert pushed[1].said is None
    assert pushed[1].header == stored[1].header


async def test_a_node_gets_the_pushes_of_its_own_calls(caller: Caller) -> None:
    await caller.subscribe("lobby")
    await caller.append(block("mine"))
    pushed = parse_push((await caller.push())[2])
    assert isinstance(pushed, list)
    assert [packet.header.sequence for packet in pushed] == [1]


async def test_a_malformed_call_changes_nothing(caller: Caller) -> None:
    malformed: list[list[str | int]] = [
        [],
        ["a", "run-a", "x", 1],
        ["a", "run-a", 1, 1, "lobby", 1, 1, 1],
    ]
    for words in malformed:
        with pytest.raises(EngineError, match="MALFORMED"):
            await caller.command("FCALL", "multichat_append", 0, *words)
    with pytest.raises(EngineError, match="MALFORMED"):
        await caller.command(
            "FCALL", "multichat_append", 0, *caller.append_call(block("x")).arguments, 1
        )
    assert await said(caller) == []
    assert appended(await caller.append(block("x"))) == [0]


# --- The run sequence -----------------------------------------------------------------------------


async def repeats_are_appended_once(caller: Caller) -> bool:
    first = await caller.append(block("one"), block("two"))
    again = await caller.append(block("one"), block("two"), sequence=1)
    return first == again and await said(caller) == ["0 one", "1 two"]


async def test_a_repeated_call_appends_nothing_and_gets_the_first_answer(caller: Caller) -> None:
    assert await repeats_are_appended_once(caller)
    await caller.append(block("three"))
    again = await caller.append(block("two"), block("three"), sequence=1)
    assert appended(again) == [0, 1]  # its first answer
    assert appended(await caller.append(block("four"), sequence=9)) == [3]  # after a loss


async def test_without_the_run_sequence_a_repeated_call_would_append_twice(engine: Engine) -> None:
    async with calling(engine) as caller:
        await caller.load(mutated(("if done[1] and sequence <=", "if false and sequence <=")))
        assert not await repeats_are_appended_once(caller)


async def test_the_first_answer_is_given_even_to_a_fenced_node(caller: Caller) -> None:
    first = await caller.append(block("one"))
    await caller.command("HSET", "multichat:nodes", "a", "another run")
    assert await caller.append(block("one"), sequence=1) == first


async def test_answers_are_kept_for_as_many_calls_as_may_be_in_flight(caller: Caller) -> None:
    for _ in range(65):
        await caller.append(block("x"))
    assert appended(await caller.append(block("x"), sequence=2)) == [1]
    with pytest.raises(EngineError, match="FORGOTTEN"):
        await caller.append(block("x"), sequence=1)
    assert len(await said(caller)) == 65
    assert await caller.command("HLEN", "multichat:run:run-a") == 65  # 64 and the last sequence
    assert await caller.command("PTTL", "multichat:run:run-a") > 3_500_000


# --- The fences -----------------------------------------------------------------------------------


async def fenced_node_is_refused(caller: Caller) -> bool:
    await caller.command("HDEL", "multichat:nodes", "a")
    try:
        await caller.append(block("late"))
    except EngineError as error:
        assert str(error).startswith("FENCED")  # noqa: PT017 - a mutation does not raise
        return True
    return False


async def test_a_node_that_was_expired_is_fenced(caller: Caller) -> None:
    assert await fenced_node_is_refused(caller)
    assert await said(caller) == []
    await caller.register()
    assert appended(await caller.append(block("again"))) == [0]


async def test_without_the_node_fence_a_frozen_node_would_append(engine: Engine) -> None:
    async with calling(engine) as caller:
        await caller.load(mutated(("if not is_current(node, run) then", "if false then")))
        assert not await fenced_node_is_refused(caller)


async def fenced_client_is_refused(caller: Caller) -> bool:
    await caller.command("HSET", "multichat:generations", 1, 3)
    answers = await caller.append(
        block("old", generation=2),
        block("new", generation=3),
        block("other", client=2),
    )
    return [answer.status for answer in answers] == [Status.FENCED, 0, 0] and await said(
        caller
    ) == ["0 new", "1 other"]


async def test_a_client_that_was_resumed_elsewhere_is_fenced(caller: Caller) -> None:
    assert await fenced_client_is_refused(caller)


async def test_without_the_fence_a_client_would_speak_on_two_nodes(engine: Engine) -> None:
    async with calling(engine) as caller:
        await caller.load(
            mutated(("if (from.generations[index] or 0) > block.generation", "if false"))
        )
        assert not await fenced_client_is_refused(caller)


# --- Nonces ---------------------------------------------------------------------------------------


async def test_a_message_whose_nonce_is_known_is_left_out(caller: Caller) -> None:
    [first] = await caller.append(block("one\ntwo", nonces=("a", 2)))
    [again] = await caller.append(block("two\nthree\none", nonces=(2, "c", "a")))
    assert (again.status, again.first) == (Status.APPENDED, 2)
    assert [(one.index, one.epoch, one.number, one.room, one.same) for one in again.known] == [
        (0, first.epoch, 1, "lobby", 1),
        (2, first.epoch, 0, "lobby", 1),
    ]
    [none] = await caller.append(block("three", nonces=("c",)))
    assert (none.status, none.known[0].number) == (Status.KNOWN, 2)
    assert await said(caller) == ["0 one", "1 two", "2 three"]


async def test_nonces_belong_to_a_client_and_2_is_not_the_string_2(caller: Caller) -> None:
    await caller.append(block("one", nonces=(2,)))
    assert appended(await caller.append(block("one", nonces=("2",)))) == [1]
    assert appended(await caller.append(block("one", nonces=(2,), client=7))) == [2]


async def test_a_nonce_of_another_text_is_distinguished(caller: Caller) -> None:
    await caller.append(block("one", nonces=("a",)))
    [answer] = await caller.append(block("other", nonces=("a",)))
    assert (answer.status, answer.known[0].same) == (Status.KNOWN, 0)


async def test_messages_without_a_nonce_beside_others_are_appended(caller: Caller) -> None:
    await caller.append(block("one", nonces=("a",)))
    [answer] = await caller.append(block("x\none\ny", nonces=(None, "a", None)))
    assert [one.index for one in answer.known] == [1]
    assert await said(caller) == ["0 one", "1 x", "2 y"]


async def test_nonces_are_bounded_and_end_with_the_session(caller: Caller) -> None:
    nonces = tuple(range(3000))
    await caller.append(block("\n".join(map(str, nonces)), nonces=nonces))
    [answer] = await caller.append(block("2743\n2744", nonces=(2743, 2744)))
    assert [one.index for one in answer.known] == [1]  # the last 256
    for number in range(3000, 3200):
        await caller.append(block("x", nonces=(number,)))
        assert await caller.command("HLEN", "multichat:nonces:1") <= 320
        assert await caller.command("LLEN", "multichat:nonce_order:1") <= 320
    for key in ("multichat:nonces:1", "multichat:nonce_order:1"):
        assert 600_000 < await caller.command("PTTL", key) <= 1_200_000


async def test_the_last_of_few_nonces_is_kept_as_long_as_that_of_many(caller: Caller) -> None:
    keys = ("multichat:nonces:1", "multichat:nonce_order:1")
    for number in range(3):
        await caller.append(block("x", nonces=(number,)))
        for key in keys:  # and then the client sends nothing for long
            assert 600_000 < await caller.command("PTTL", key) <= 1_200_000
            await caller.command("PEXPIRE", key, 599_000)


STORE = "  store(block, packet, number)\n"
NOTE_STORED = (
    "  -- It is stored, whatever fails now.\n  note_stored(meta, number, packet, line, from)\n"
)
NOTE_NONCES = "  pcall(note_nonces, block, number, from.nonce_ms)\n"


async def message_survives_a_failure_in_the_middle(caller: Caller) -> bool:
    """Append while the engine cannot store the message itself; then again, when it can."""
    await caller.command("SET", room_stream("lobby"), "something else")
    [answer] = await caller.append(block("one", nonces=("a",)))
    assert answer.status == Status.FAILED
    assert "WRONGTYPE" in answer.epoch
    await caller.command("DEL", room_stream("lobby"))
    [again] = await caller.append(block("one", nonces=("a",)))
    return again.status == Status.APPENDED and await said(caller) == ["0 one"]


async def test_a_message_that_was_not_stored_leaves_no_nonce(caller: Caller) -> None:
    assert await message_survives_a_failure_in_the_middle(caller)


async def test_with_nonces_before_xadd_a_message_would_be_lost(engine: Engine) -> None:
    async with calling(engine) as caller:
        await caller.load(
            mutated((STORE + NOTE_STORED + NOTE_NONCES, NOTE_NONCES + STORE + NOTE_STORED))
        )
        assert not await message_survives_a_failure_in_the_middle(caller)


async def test_a_block_that_fails_takes_no_other_with_it(caller: Caller) -> None:
    await caller.command("SET", room_stream("ops"), "something else")
    answers = await caller.append(block("one"), block("x", room="ops"), block("two"))
    assert [answer.status for answer in answers] == [0, Status.FAILED, 0]
    assert answers == await caller.append(*map(block, ("one", "x", "two")), sequence=1)
    assert await said(caller) == ["0 one", "1 two"]


async def test_a_stored_message_is_accepted_even_if_its_nonce_cannot_be_stored(
    caller: Caller,
) -> None:
    await caller.command("SET", "multichat:nonce_order:1", "something else")
    assert appended(await caller.append(block("one", nonces=("a",)))) == [0]
    assert appended(await caller.append(block("two"))) == [1]


async def test_a_full_engine_refuses_a_batch_as_a_whole(engines: Engines) -> None:
    engine = await engines.start(EngineConfig(maxmemory="6mb"))
    async with calling(engine) as caller:
        await caller.load()
        text = "x" * 60_000
        for number in range(1000):
            try:
                await caller.append(block(text, nonces=(number,)))
            except EngineError as error:
                assert str(error).startswith("OOM")  # noqa: PT017
                break
        else:
            pytest.fail("never full")
        stored = len(await said(caller))
        assert stored == number
        # Deleting still works, and after that the same call does.
        await caller.call(trim("0", max_messages=5))
        [answer] = await caller.append(block(text, nonces=(number,)), sequence=caller.sequence)
        assert (answer.status, answer.first) == (Status.APPENDED, stored)


# --- Eras and epochs ------------------------------------------------------------------------------


async def test_an_era_begins_with_each_primary(caller: Caller) -> None:
    assert await caller.begin_era("p1") == 1
    assert await caller.begin_era("p1") == 1
    assert await caller.begin_era("p2") == 2
    await caller.command("DEL", LOG)  # an engine that has lost everything
    assert await caller.begin_era("p3", era=2) == 3


async def test_a_rooms_epoch_begins_with_its_first_message_in_an_era(caller: Caller) -> None:
    await caller.begin_era("p1")
    [one] = await caller.append(block("one"))
    [two] = await caller.append(block("two"))
    await caller.append(block("x", room="ops"))
    await caller.begin_era("p2", epoch="7" * 11)
    [before] = await caller.call(tails([("lobby", "")]))
    [three] = await caller.append(block("three"))
    [tail, same, none] = await caller.call(
        tails([("lobby", one.epoch), ("lobby", three.epoch), ("new", "")])
    )
    assert one.epoch == two.epoch < three.epoch
    assert three.epoch > "7" * 11  # above the highest that any node knew
    assert before.epochs == ((one.epoch, 0),)
    assert tail.epochs == ((one.epoch, 0), (three.epoch, 2))
    assert (tail.first, tail.next, tail.epoch) == (0, 3, three.epoch)
    assert (same.next, same.epochs) == (3, ())
    assert (none.first, none.next, none.epoch, none.epochs) == (0, 0, "", ())


async def test_epochs_are_those_of_the_journals(caller: Caller) -> None:
    [answer] = await caller.append(block("one"))
    assert len(answer.epoch) == 11
    assert abs(int(answer.epoch, 16) - answer.ms) < 1000


async def test_the_lineage_is_bounded(caller: Caller) -> None:
    for number in range(105):
        await caller.begin_era(f"p{number}")
        await caller.append(block("x"))
    [tail] = await caller.call(tails([("lobby", "")]))
    assert [number for _, number in tail.epochs] == list(range(5, 105))


# --- Reading --------------------------------------------------------------------------------------


async def test_reading_begins_and_ends_within_blocks(caller: Caller) -> None:
    for text in ("a\nb\nc", "d", "e\nf"):
        await caller.append(block(text))

    async def forward(start: int, stop: int, max_bytes: int = MANY) -> list[int]:
        packets = await caller.call(read("lobby", start, stop, max_bytes=max_bytes))
        return [packet.header.first for packet in packets]

    assert await forward(0, 6) == [0, 3, 4]
    assert await forward(2, 4) == [0, 3]
    assert await forward(3, 5) == [3, 4]
    assert await forward(5, 9) == [4]
    assert await forward(6, 9) == []
    assert await forward(3, 3) == []
    assert await forward(0, 6, 1) == [0]
    assert await forward(0, 6, 200) == [0, 3]

    async def backward(stop: int, messages: int, max_bytes: int = MANY) -> list[int]:
        call = read_before("lobby", stop, max_messages=messages, max_bytes=max_bytes)
        return [packet.header.first for packet in await caller.call(call)]

    assert await backward(6, 100) == [4, 3, 0]
    assert await backward(5, 100) == [4, 3, 0]
    assert await backward(5, 1) == [4]
    assert await backward(5, 2) == [4, 3]
    assert await backward(4, 100) == [3, 0]
    assert await backward(1, 100) == [0]
    assert await backward(0, 100) == []
    assert await backward(99, 2) == [4]
    assert await backward(99, 3, 1) == [4]


async def test_long_logs_are_read_in_pages(caller: Caller) -> None:
    await caller.append(*(block(f"{i}") for i in range(100)))
    assert await said(caller) == [f"{i} {i}" for i in range(100)]
    packets = await caller.call(read_before("lobby", 90, max_messages=50, max_bytes=MANY))
    assert [packet.header.first for packet in packets] == list(range(89, 39, -1))


# --- Retention ------------------------------------------------------------------------------------


def counts(deleted: Deleted) -> list[tuple[int, int]]:
    return [(messages, len(rooms)) for messages, rooms in deleted.counts]


async def tail_of(caller: Caller, room: str = "lobby") -> tuple[int, int]:
    [tail] = await caller.call(tails([(room, "")]))
    return tail.first, tail.next


async def test_messages_above_the_number_are_deleted_in_whole_blocks(caller: Caller) -> None:
    for text in ("a\nb\nc", "d", "e\nf"):
        await caller.append(block(text))
    await caller.append(block("only", room="ops"))
    deleted = await caller.call(trim("0", max_messages=4))
    assert counts(deleted) == [(0, 0), (0, 0), (0, 0)]  # it would leave three
    deleted = await caller.call(trim("0", max_messages=3))
    assert counts(deleted) == [(0, 0), (3, 1), (0, 0)]
    assert await tail_of(caller) == (3, 6)
    assert await said(caller) == ["3 d", "4 e", "5 f"]
    assert await said(caller, "ops") == ["0 only"]
    assert appended(await caller.append(block("g"))) == [6]


async def test_old_messages_are_deleted_and_numbers_continue(caller: Caller) -> None:
    await caller.append(block("a\nb"), block("x", room="ops"))
    assert counts(await caller.call(trim("0", max_age_seconds=600)))[0] == (0, 0)
    # As if it were later: the time is in the packets and in the index of rooms.
    await caller.command(
        "FUNCTION",
        "LOAD",
        "REPLACE",
        mutated(
            (
                "  local ms = now_ms()\n  local deleted",
                "  local ms = now_ms() + 700000\n  local deleted",
            )
        ),
    )
    deleted = await caller.call(trim("0", max_age_seconds=600))
    assert (counts(deleted)[0], deleted.more) == ((3, 2), False)
    assert await tail_of(caller) == (2, 2)
    assert await caller.command("HGET", LOG, "bytes") == b"0"
    assert await caller.command("HGET", LOG, "deleted") == b"3"
    assert await caller.command("ZCARD", "multichat:oldest") == 0
    assert appended(await caller.append(block("c"))) == [2]
    assert await said(caller) == ["2 c"]
    assert await caller.command("ZCARD", "multichat:oldest") == 1


async def test_rooms_without_messages_are_forgotten_once_they_are_closed(
    engine: Engine, caller: Caller
) -> None:
    await caller.begin_era("p1")
    [one] = await caller.append(block("a\nb"))
    await caller.append(block("x", room="ops"))
    later = "  local ms = now_ms()\n  local deleted"
    soon = mutated(
        (later, later.replace("now_ms()", "now_ms() + 700000")),
        ("local FORGET_MS, FORGET_ROOMS = 86400000,", "local FORGET_MS, FORGET_ROOMS = -1000000,"),
    )
    await caller.command("FUNCTION", "LOAD", "REPLACE", soon)
    rooms = [room_channel("lobby"), room_channel("ops")]
    async with calling(engine, node="b", run="run-b") as other:
        await other.subscribe("lobby")
        await caller.call(trim("0", max_age_seconds=600))
        assert await tail_of(caller) == (2, 2)
        assert await caller.command("EXISTS", *rooms) == 2  # the node that is away may have both
        await other.subscribe_to("multichat:directory")
        await caller.call(trim("0", max_age_seconds=600))
        assert await caller.command("EXISTS", *rooms) == 1
    await caller.subscribe_to("multichat:directory")
    await caller.call(trim("0", max_age_seconds=600))
    assert await caller.command("EXISTS", *rooms, room_stream("ops"), "multichat:epochs:ops") == 0
    assert await caller.command("ZCARD", "multichat:empty") == 0
    await caller.load()
    [again] = await caller.append(block("c"))
    assert again.first == 0
    assert again.epoch > one.epoch
    assert await said(caller) == ["0 c"]


async def test_above_the_bytes_the_oldest_of_all_rooms_are_deleted(caller: Caller) -> None:
    for number in range(10):
        for room in ("a", "b"):
            await caller.append(block(f"{number}" * 1000, room=room))
            await trio.sleep(0.002)  # the engine's times are those of milliseconds
    size = int(await caller.command("HGET", LOG, "bytes"))
    deleted = await caller.call(trim("0", max_bytes=size // 2))
    left = int(await caller.command("HGET", LOG, "bytes"))
    assert size // 2 - 2000 < left <= size // 2
    firsts = [(await tail_of(caller, room))[0] for room in ("a", "b")]
    assert counts(deleted)[2] == (sum(firsts), 2)
    assert all(4 <= first <= 6 for first in firsts)
    assert left == sum([int(await caller.command("HGET", room_channel(r), "bytes")) for r in "ab"])


@pytest.mark.parametrize("limit", ["age", "messages", "bytes"])
async def test_a_room_whose_stream_is_gone_keeps_no_other_from_being_deleted(
    caller: Caller, limit: str
) -> None:
    await caller.append(block("a\nb", room="broken"), block("c" * 1000, room="broken"))
    await trio.sleep(0.002)  # the engine's times are those of milliseconds
    await caller.append(block("d"), block("e"))
    await caller.command("DEL", room_stream("broken"))
    later = "  local ms = now_ms()\n  local deleted"
    await caller.command(
        "FUNCTION",
        "LOAD",
        "REPLACE",
        mutated((later, later.replace("now_ms()", "now_ms() + 700000"))),
    )
    call = {
        "age": trim("0", max_age_seconds=600),
        "messages": trim("0", max_messages=1),
        "bytes": trim("0", max_bytes=1),
    }[limit]
    await caller.call(call)
    assert await tail_of(caller, "broken") == (3, 3)
    first, next_ = await tail_of(caller)
    assert (first, next_) == ((1, 2) if limit == "messages" else (2, 2))
    left = [
        int(await caller.command("HGET", room_channel(r), "bytes")) for r in ("lobby", "broken")
    ]
    assert left[1] == 0
    assert int(await caller.command("HGET", LOG, "bytes")) == sum(left)
    assert await caller.command("ZSCORE", "multichat:oldest", "broken") is None
    assert appended(await caller.append(block("f", room="broken"))) == [3]
    assert await said(caller, "broken") == ["3 f"]


async def test_a_step_of_deleting_is_bounded(caller: Caller) -> None:
    await caller.append(*(block(f"{i}") for i in range(50)))
    deleted = await caller.call(trim("0", max_messages=10, max_blocks=15))
    assert (counts(deleted)[1], deleted.more) == ((15, 1), True)
    deleted = await caller.call(trim(deleted.cursor, max_messages=10, max_blocks=100))
    assert (counts(deleted)[1], deleted.more) == ((25, 1), False)
    assert await tail_of(caller) == (40, 50)


async def test_nodes_learn_which_messages_were_deleted(caller: Caller) -> None:
    await caller.append(block("a"), block("b"))
    await caller.subscribe("lobby")
    await caller.call(trim("0", max_messages=1))
    assert (await caller.push())[2] == b"trimmed 1"
