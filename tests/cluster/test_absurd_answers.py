"""Answers of an engine that no multichat has made: absurd numbers, wrong types."""

from typing import Any

import msgspec
import pytest

from multichat.cluster.calls import (
    Call,
    InvalidPacket,
    append,
    begin_era,
    parse_packet,
    parse_push,
    tails,
)
from multichat.cluster.errors import NotOurs
from multichat.cluster.library import VERSION_CALL

pytestmark = pytest.mark.unit

_HUGE = b"9" * 4000
_TAILS = tails([("lobby", "")])
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
def test_a_block_in_an_epoch_that_is_none_is_not_ours(epoch: str) -> None:
    call = append("node", "run", 1, [], nonce_seconds=1)
    reply = msgspec.msgpack.encode([(0, epoch, 0, 0, [])])
    with pytest.raises(NotOurs, match=r"no epoch|invalid literal"):
        call.read(reply)


def test_numbers_of_an_entry_are_those_that_an_engine_can_have() -> None:
    entry = b"%b 1 1a 0 run 1 0\n"
    assert parse_packet(entry % b"7").header.first == 7
    for number in (_HUGE, b"-" + _HUGE, b"%d" % (2**63 - 1)):
        with pytest.raises(InvalidPacket):
            parse_packet(entry % number)
        with pytest.raises(InvalidPacket):
            parse_push(b"trimmed %b" % (number + b"0"))
