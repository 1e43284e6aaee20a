"""Answers of an engine that no multichat has made: absurd numbers, wrong types."""

from typing import Any

import msgspec
import pytest

from multichat.cluster.calls import (
    Block,
    Call,
    InvalidPacket,
    append,
    begin_era,
    pack_block,
    parse_packet,
    parse_push,
    read,
    read_before,
    tails,
)
from multichat.cluster.errors import NotOurs
from multichat.cluster.library import VERSION_CALL
from multichat.protocol.messages import SaidBlock

pytestmark = pytest.mark.unit

_HUGE = b"9" * 4000
_TAILS = tails([("lobby", "")])
_SAID = SaidBlock("", 0, "2026-01-01T00:00:00.000Z", "lobby", 1, "alice", "one\ntwo")
_APPEND = append("node", "run", 1, [Block.of("lobby", 1, _SAID)], nonce_seconds=1)
_ERA = begin_era("primary", era=0, epoch="")


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        # The epoch and the era are sent back when the next era begins.
        (_TAILS, [[0, 1, _HUGE, []]]),
        (_TAILS, [[0, 1, b"null", []]]),
        (_TAILS, [[0, 1, b"-1", []]]),
        (_TAILS, [[0, 1, 7, []]]),
        (_TAILS, [[0, 1, b"1a", [_HUGE + b" 0"]]]),
        (_TAILS, [[0, 1, b"1a", [b"x 0"]]]),
        (_ERA, _HUGE),
        (_ERA, float("inf")),
        (VERSION_CALL, [b"1", b"digest"]),
        (VERSION_CALL, [None, b"digest"]),
        (VERSION_CALL, [float("inf"), b"digest"]),
    ],
)
def test_an_answer_that_could_not_be_sent_back_is_not_ours(call: Call[Any], reply: Any) -> None:
    with pytest.raises(NotOurs):
        call.read(reply)


@pytest.mark.parametrize("epoch", [_HUGE.decode(), "null"])
def test_a_block_in_an_invalid_epoch_is_not_ours(epoch: str) -> None:
    with pytest.raises(NotOurs, match=r"no epoch|invalid literal"):
        _APPEND.read(msgspec.msgpack.encode([(0, epoch, 0, 0, [])]))


@pytest.mark.parametrize(
    "answer",
    [
        (0, "1a", -1, 0, []),
        (0, "1a", 2**63 - 1, 0, []),
        (0, "1a", 0, 0, [(2, "1a", 0, "lobby", 1)]),  # the block has two messages
        (0, "1a", 0, 0, [(-1, "1a", 0, "lobby", 1)]),
        (0, "1a", 0, 0, [(0, "1a", 0, "lobby", 1), (1, "1a", 0, "lobby", 1)]),
        (0, "1a", 0, 0, [(0, "x" * 20, 0, "lobby", 1)]),
        (3, "", 0, 0, []),
        (3, "", 0, 0, [(0, "1a", 0, "lobby", 1)]),
        (3, "", 0, 0, [(0, "1a", 0, "lobby", 1), (0, "1a", 0, "lobby", 1)]),
    ],
)
def test_an_answer_about_messages_that_were_not_sent_is_not_ours(answer: tuple[Any, ...]) -> None:
    with pytest.raises(NotOurs):
        _APPEND.read(msgspec.msgpack.encode([answer]))


def test_blocks_that_do_not_follow_are_left_out_of_a_read() -> None:
    payload = pack_block(_SAID)
    blocks = [b"%d 2 1a 0 run 1 0\n%b" % (first, payload) for first in (0, 0, 1, 2, 8, 4, 20)]
    forward = read("lobby", 1, 10, max_bytes=1000).read(blocks)
    assert [each.header.first for each in forward] == [0, 2, 8]
    back = read_before("lobby", 10, max_messages=9, max_bytes=1000).read(blocks[::-1])
    assert [each.header.first for each in back] == [4, 2, 1, 0]
    assert read("lobby", 0, 10, max_bytes=1000).read([b"0 3 1a 0 run 1 0\n" + payload]) == []


def test_numbers_of_an_entry_are_those_that_an_engine_can_have() -> None:
    entry = b"%b 1 1a 0 run 1 0\n"
    assert parse_packet(entry % b"7").header.first == 7
    for number in (_HUGE, b"-" + _HUGE, b"%d" % (2**63 - 1)):
        with pytest.raises(InvalidPacket):
            parse_packet(entry % number)
        with pytest.raises(InvalidPacket):
            parse_push(b"trimmed %b" % (number + b"0"))
