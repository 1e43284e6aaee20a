"""Requests in both protocols: any lines decode to clean requests, which round-trip."""

from itertools import pairwise

from multichat.protocol.codec import Codec
from multichat.protocol.json_codec import JSON, encode_hello
from multichat.protocol.messages import (
    Act,
    Direct,
    Hello,
    Invalid,
    Reply,
    Request,
    SayBlock,
)
from multichat.protocol.text_codec import TEXT
from tests.fuzz.targets.checks import (
    SPOILT,
    assert_as_the_standard_library_reads,
    assert_harmless,
    assert_same,
    block_of,
    from_deeper,
)
from tests.support.messages import one_by_one, strings_in

__all__ = ["check_json_requests", "check_text_requests"]


def check_text_requests(data: bytes) -> None:
    """Check lines of a client that begins in the text protocol."""
    if block := block_of(data):
        requests = list(TEXT.parse_requests(block))
        _check_requests(requests)
        assert_same(
            one_by_one(requests), _read_alone(block), "lines mean together what they mean alone"
        )
        _check_encoded_again(requests, TEXT)


def check_json_requests(data: bytes) -> None:
    """Check lines of a client after its hello."""
    if block := block_of(data):
        requests = list(JSON.parse_requests(block))
        _check_requests(requests)
        lines = block.split("\n")
        alone = [one_by_one(JSON.parse_requests(line)) for line in lines]
        assert all(len(each) == 1 for each in alone), f"a line is one request: {alone}"
        assert_same(one_by_one(requests), [each for [each] in alone], "together and alone")
        assert_same(
            from_deeper(lambda: list(JSON.parse_requests(block))),
            requests,
            "at any depth of the stack",
        )
        spoilt = one_by_one(JSON.parse_requests(f"{SPOILT}\n{block}"))
        assert_same(one_by_one(requests), spoilt[1:], "with and without one that is refused")
        _check_encoded_again(requests, JSON)
        for line, [request] in zip(lines, alone, strict=True):
            if not isinstance(request, Invalid):
                assert_as_the_standard_library_reads(line, request)


def _check_requests(requests: list[Request]) -> None:
    for request in requests:
        for text in strings_in(request):
            assert_harmless(text)
        if isinstance(request, SayBlock | Act | Direct):
            assert all(_texts_of(request)), f"something empty is said by {request}"
        if isinstance(request, Invalid):
            assert len(request.error.text) < 300, "a refusal is short, whatever is refused"
    for one, next_one in pairwise(requests):
        if isinstance(one, SayBlock) and isinstance(next_one, SayBlock):
            assert one.room != next_one.room, "two blocks of one room in a row"


def _texts_of(request: SayBlock | Act | Direct) -> list[str]:
    return request.text.split("\n") if isinstance(request, SayBlock) else [request.text]


def _read_alone(block: str) -> list[Request]:
    codec: Codec = TEXT
    requests: list[Request] = []
    for line in block.split("\n"):
        asked = one_by_one(codec.parse_requests(line))
        if isinstance(asked[0], Hello):
            codec = JSON
        else:
            assert len(asked) == 1, f"a line is one request: {asked}"
        requests += asked
    return requests


def _check_encoded_again(requests: list[Request], codec: Codec) -> None:
    understood = [each for each in one_by_one(requests) if not isinstance(each, Invalid | Reply)]
    lines: list[str] = []
    speaking = codec
    for request in understood:
        if isinstance(request, Hello):
            lines.append(encode_hello(request))
            speaking = JSON
        else:
            assert not isinstance(request, SayBlock)
            lines.append(speaking.encode_request(request))
    if lines:
        block = "\n".join(lines)
        assert_same(block_of(f"{block}\n".encode()), block, "a request survives framing")
        again = one_by_one(codec.parse_requests(block))
        assert_same(again, understood, f"encoded as {block!r} and decoded again")
