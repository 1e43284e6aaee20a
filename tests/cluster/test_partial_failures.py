"""Functions that fail in the middle: their answer is what they have done.

A function is atomic, not transactional.  Each fault lets a command fail that comes after the
message was stored: a permission that is taken away, or a key that another program overwrote.
"""

import pytest

from multichat.backend.events import BanRecord
from multichat.cluster.calls import Status, read
from multichat.cluster.changes import PutBan
from multichat.cluster.library import library_text

from .engine import Engine, EngineError
from .functions import block, calling, mutated
from .scripted_node import ScriptedNode

pytestmark = pytest.mark.process

_FAULTS = {
    "pushes are denied": ("ACL", "SETUSER", "default", "resetchannels"),
    "ZADD is denied": ("ACL", "SETUSER", "default", "-zadd"),
    "PEXPIRE is denied": ("ACL", "SETUSER", "default", "-pexpire"),
    "the rooms by age are overwritten": ("SET", "multichat:oldest", "x"),
    "the bytes are overwritten": ("HSET", "multichat:log", "bytes", "x"),
    "the lineage is overwritten": ("SET", "multichat:epochs:lobby", "x"),
    "the nonces are overwritten": ("SET", "multichat:nonce_order:1", "x"),
}


async def _stored(engine: Engine) -> list[str]:
    async with calling(engine) as caller:
        packets = await caller.call(read("lobby", 0, 100, max_bytes=10_000))
    return [packet.said.text for packet in packets if packet.said is not None]


@pytest.mark.parametrize("fault", _FAULTS)
async def test_a_message_that_was_stored_is_never_reported_as_failed(
    engine: Engine, fault: str
) -> None:
    async with calling(engine) as caller:
        await caller.load()
        await engine.call(*_FAULTS[fault])
        for number in range(3):
            [answer] = await caller.append(block(f"{number}", nonces=(number,)))
            assert (answer.status, answer.first) == (Status.APPENDED, number)
            again = await caller.append(block(f"{number}"), sequence=caller.sequence)
            assert again == [answer]
        assert await _stored(engine) == ["0", "1", "2"]


async def test_if_a_failure_ended_the_call_a_stored_message_would_be_reported_as_failed(
    engine: Engine,
) -> None:
    count = "('HINCRBY', LOG, 'bytes', from.bytes)"
    unprotected = mutated((f"attempt{count}", f"call{count}"))
    async with calling(engine) as caller:
        await caller.load(unprotected)
        await engine.call(*_FAULTS["the bytes are overwritten"])
        with pytest.raises(EngineError):
            await caller.append(block("told as failed"))
        assert await _stored(engine) == ["told as failed"]


@pytest.mark.parametrize("fault", ["denied", "deleted"])
async def test_a_room_whose_numbers_are_behind_its_stream_continues(
    engine: Engine, fault: str
) -> None:
    async with calling(engine) as caller:
        await caller.load()
        await caller.append(block("0"), block("1"))
        if fault == "denied":
            await engine.call("ACL", "SETUSER", "default", "-hset")
            [answer] = await caller.append(block("2"))
            assert answer.status == Status.APPENDED
            await engine.call("ACL", "SETUSER", "default", "+hset")
        else:
            await engine.call("DEL", "multichat:room:lobby")
        [answer] = await caller.append(block("x"))
        assert answer.status == Status.FAILED
        count = len(await _stored(engine))
        [answer] = await caller.append(block("y"))
        assert (answer.status, answer.first) == (Status.APPENDED, count)
        assert (await _stored(engine))[-1] == "y"


async def test_a_change_whose_push_is_denied_is_made_and_read_by_others(engine: Engine) -> None:
    await engine.call("FUNCTION", "LOAD", library_text())
    a = ScriptedNode(engine, "a")
    await a.join()
    await engine.call(*_FAULTS["pushes are denied"])
    ban = BanRecord(target="name eve")
    assert await a.one(PutBan(ban, 10)) == ["ok"]
    assert (await a.snapshot()).bans == [ban]
    assert len(await a.events()) == 2
