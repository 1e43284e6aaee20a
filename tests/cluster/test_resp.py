"""RESP3: packing, decoding in any pieces, and bytes that are no replies."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multichat.cluster.errors import BadReply, EngineRefused
from multichat.cluster.resp import Push, ReplyDecoder, ReplyLimits, pack

from .hostile import encode

pytestmark = pytest.mark.unit


def same(one: Any, other: Any) -> bool:
    """Compare replies; errors have no equality, and NaN is not equal to itself."""
    match one, other:
        case EngineRefused(), EngineRefused():
            return (one.code, one.text) == (other.code, other.text)
        case (list(), list()) | (tuple(), tuple()):
            return len(one) == len(other) and all(map(same, one, other))
        case Push(), Push():
            return one.kind == other.kind and same(one.items, other.items)
        case dict(), dict():
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        case float(), float():
            return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and bool(one == other)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.binary(max_size=40)
    | st.sampled_from([b"\r\n", b"$5\r\n", b"*1000000000\r\n", b">3\r\n", b"\r", b"\n"])
)
WORDS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=8)
ERRORS = st.builds(EngineRefused, WORDS, WORDS)
VALUES = st.recursive(
    SCALARS | ERRORS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=4), inner),
    max_leaves=12,
)
PUSHES = st.builds(Push, st.binary(max_size=9), st.lists(SCALARS, max_size=4).map(tuple))
REPLIES = st.lists(VALUES | PUSHES, max_size=6)


def depth(value: Any) -> int:
    match value:
        case list():
            return 1 + max(map(depth, value), default=0)
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(REPLIES, st.data())
def test_any_split_of_the_bytes_gives_the_same_replies(replies: list[Any], data: Any) -> None:
    replies = [reply for reply in replies if depth(reply) <= 8]
    stream = b"".join(map(encode, replies))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    decoder, found = ReplyDecoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += list(decoder.feed(stream[start:end]))
    assert same(found, replies)


@given(REPLIES)
def test_single_bytes_give_the_same_replies(replies: list[Any]) -> None:
    replies = [reply for reply in replies if depth(reply) <= 8]
    decoder, found = ReplyDecoder(), []
    for byte in b"".join(map(encode, replies)):
        found += list(decoder.feed(bytes([byte])))
    assert same(found, replies)


@given(st.lists(st.binary(max_size=80) | st.sampled_from([b"*", b"$", b"%", b"\r\n", b"9", b"-1"])))
@example([b"$", b"\xa0\x00", b"\r\n"])
@example([b"%1\r\n*1\r\n:1\r\n+a\r\n"])  # a map whose key is a list
@example([b">0\r\n"])
@example([b"=1\r\na\r\n"])
@example([b":99999999999999999999999\r\n"])
@example([b"$-5\r\n"])
@example([b"$1_0\r\n"])
@example([b"\r\n"])
@example([b"$3\r\nabcde\r\n"])
def test_garbage_raises_only_bad_reply(pieces: list[bytes]) -> None:
    decoder = ReplyDecoder(ReplyLimits(bytes=1000, elements=50))
    try:
        for piece in pieces:
            list(decoder.feed(piece))
    except BadReply as error:
        assert str(error).isprintable()  # noqa: PT017


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"$1001\r\n", "more than 1000 bytes"),
        (b"*2\r\n$600\r\n" + b"x" * 600 + b"\r\n$600\r\n", "more than 1000 bytes"),
        (b"*51\r\n", "more than 50 elements"),
        (b"%26\r\n", "more than 50 elements"),
        (b">51\r\n", "more than 50 elements"),
        (b"~51\r\n", "more than 50 elements"),
        (b"*40\r\n*20\r\n", "more than 50 elements"),
        (b"*4294967295\r\n", "more than 50 elements"),
        (b"$99999999999999999999\r\n", "invalid reply"),
        (b"*1\r\n" * 9, "more than 8 levels"),
        (b"+" + b"x" * 20_000, "more than 16384 bytes"),
        (b"*2\r\n:1\r\n(" + b"9" * 4000 + b"\r\n", "a number of more than 64 bits"),
        (b"|1\r\n+a\r\n+b\r\n:1\r\n", "does not speak the protocol"),
        (b"HTTP/1.1 400 Bad Request\r\n", "it is a web server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it is an SSH server"),
        (b"\x15\x03\x03\x00\x02\x02\x16", "it uses TLS: write valkeys://"),
        (b"220 mail.example ESMTP\r\n", "does not speak the protocol"),
    ],
)
def test_a_reply_above_a_limit_is_refused_before_it_is_allocated(data: bytes, reason: str) -> None:
    with pytest.raises(BadReply, match=reason):
        list(ReplyDecoder(ReplyLimits(bytes=1000, elements=50)).feed(data))


def test_the_limits_are_for_one_reply_not_for_all() -> None:
    decoder = ReplyDecoder(ReplyLimits(bytes=100, elements=5))
    for _ in range(100):
        assert list(decoder.feed(encode([b"x" * 50, 1]))) == [[b"x" * 50, 1]]


def test_an_error_of_the_engine_is_cleaned_and_short() -> None:
    [error] = ReplyDecoder().feed(b"-ERR \x1b[2J\xff" + b"x" * 5000 + b"\r\n")
    assert isinstance(error, EngineRefused)
    assert error.code == "ERR"
    assert str(error).isprintable()
    assert len(str(error)) < 400


@given(
    st.lists(
        st.binary(max_size=40) | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20), min_size=1
    )
)
def test_a_request_is_a_list_of_its_words(words: list[Any]) -> None:
    expected = [
        each if isinstance(each, bytes) else str(each).encode("utf-8", "surrogatepass")
        for each in words
    ]
    try:
        packed = pack(tuple(words))
    except UnicodeEncodeError:
        return
    assert list(ReplyDecoder().feed(packed)) == [expected]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 16**4000], ids=["above", "below", "huge"])
def test_a_number_at_which_the_packer_would_end_the_process_is_refused(number: int) -> None:
    with pytest.raises(OverflowError, match="bits cannot be sent"):
        pack(("GET", number))
