"""Requests in both voices: any lines are some, clean, and the same when spelled and read again."""

from collections.abc import Iterable
from itertools import pairwise
from typing import get_args

from multichat.messages import Act, Direct, Hello, Invalid, Nonce, Reply, Request, Say, SayRun
from multichat.voices import JSON, TEXT, Voice, spell_hello
from tests.fuzz.targets.checks import (
    SPOILT,
    assert_as_the_standard_library_reads,
    assert_harmless,
    assert_same,
    from_deeper,
    run_of,
    strings_in,
)

__all__ = ["check_json_requests", "check_text_requests"]


def check_text_requests(data: bytes) -> None:
    """Lines of somebody who begins in the text voice."""
    if run := run_of(data):
        requests = list(TEXT.parse_requests(run))
        _check_requests(requests)
        assert_same(_apart(requests), _read_alone(run), "lines mean together what they mean alone")
        _check_spelled_again(requests, TEXT)


def check_json_requests(data: bytes) -> None:
    """Lines of somebody who has said hello."""
    if run := run_of(data):
        requests = list(JSON.parse_requests(run))
        _check_requests(requests)
        lines = run.split("\n")
        alone = [_apart(JSON.parse_requests(line)) for line in lines]
        assert all(len(each) == 1 for each in alone), f"a line is one request: {alone}"
        assert_same(_apart(requests), [each for [each] in alone], "together and alone")
        assert_same(
            from_deeper(lambda: list(JSON.parse_requests(run))),
            requests,
            "at any depth of the stack",
        )
        spoilt = _apart(JSON.parse_requests(f"{SPOILT}\n{run}"))
        assert_same(_apart(requests), spoilt[1:], "with and without one that is refused")
        _check_spelled_again(requests, JSON)
        for line, [request] in zip(lines, alone, strict=True):
            if not isinstance(request, Invalid):
                assert_as_the_standard_library_reads(line, request)


def _check_requests(requests: list[Request]) -> None:
    for request in requests:
        assert isinstance(request, get_args(Request)), f"{request} is no request"
        assert not isinstance(request, Say), "what is said is part of a run"
        for text in strings_in(request):
            assert_harmless(text)
        if isinstance(request, SayRun | Act | Direct):
            assert all(_texts_of(request)), f"something empty is said by {request}"
        if isinstance(request, Invalid):
            assert len(request.error.text) < 300, "a refusal is short, whatever is refused"
    for one, next_one in pairwise(requests):
        if isinstance(one, SayRun) and isinstance(next_one, SayRun):
            assert one.room != next_one.room, "two runs in a row"


def _texts_of(request: SayRun | Act | Direct) -> list[str]:
    return request.run.split("\n") if isinstance(request, SayRun) else [request.text]


def _apart(requests: Iterable[Request]) -> list[Request]:
    """Return the same requests with each run taken apart."""
    apart: list[Request] = []
    for request in requests:
        if isinstance(request, SayRun):
            texts = request.run.split("\n")
            nonces: tuple[Nonce | None, ...] = request.nonces or (None,) * len(texts)
            apart += [
                Say(text, room=request.room, nonce=n) for text, n in zip(texts, nonces, strict=True)
            ]
        else:
            apart.append(request)
    return apart


def _read_alone(run: str) -> list[Request]:
    voice: Voice = TEXT
    requests: list[Request] = []
    for line in run.split("\n"):
        asked = _apart(voice.parse_requests(line))
        if isinstance(asked[0], Hello):
            voice = JSON
        else:
            assert len(asked) == 1, f"a line is one request: {asked}"
        requests += asked
    return requests


def _check_spelled_again(requests: list[Request], voice: Voice) -> None:
    understood = [each for each in _apart(requests) if not isinstance(each, Invalid | Reply)]
    lines: list[str] = []
    speaking = voice
    for request in understood:
        if isinstance(request, Hello):
            lines.append(spell_hello(request))
            speaking = JSON
        else:
            assert not isinstance(request, SayRun)
            lines.append(speaking.spell_request(request))
    if lines:
        run = "\n".join(lines)
        assert_same(run_of(f"{run}\n".encode()), run, "a request survives framing")
        again = _apart(voice.parse_requests(run))
        assert_same(again, understood, f"spelled as {run!r} and read again")
