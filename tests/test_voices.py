"""The text voice: what a line asks, and how an event is spelled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.framing import LineDecoder, clean
from multichat.messages import (
    Event,
    Goodbye,
    Help,
    Notice,
    Ping,
    Quit,
    Request,
    Said,
    Say,
    Unknown,
)
from multichat.voices import TEXT, looks_like_http, looks_like_tls

clean_lines = st.text(min_size=1).map(clean).filter(bool)


@pytest.mark.parametrize(
    ("lines", "requests"),
    [
        (["hello", "again"], [Say("hello\nagain")]),
        (["//usr is full", "ok"], [Say("/usr is full\nok")]),
        (["///x"], [Say("//x")]),
        (["a", "/ping", "b", "c"], [Say("a"), Ping(), Say("b\nc")]),
        (["/ping 1 2 "], [Ping("1 2 ")]),
        (["/HELP"], [Help()]),
        (["/help me"], [Help()]),
        (["/quit", "lost"], [Quit(), Say("lost")]),
        (["/foo bar"], [Unknown("/foo")]),
        (["/"], [Unknown("/")]),
        (["/\tx"], [Unknown("/")]),
        ([" /help"], [Say(" /help")]),
    ],
)
def test_requests(lines: list[str], requests: list[Request]) -> None:
    assert list(TEXT.parse_requests("\n".join(lines))) == requests


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Said("Client 1", "Hello"), "[Client 1] Hello"),
        (Said("", "said by something that does not tag"), "said by something that does not tag"),
        (Notice("pong"), "[Server] pong"),
        (Goodbye("kicked"), "[Server] goodbye: kicked"),
    ],
)
def test_events_are_spelled_and_read_back(event: Event, line: str) -> None:
    assert TEXT.line(event) == line
    assert TEXT.spell(event) == f"{line}\n".encode()
    assert TEXT.parse_event(line) == event


@given(clean_lines)
def test_any_line_is_an_event_that_is_shown_as_it_came(line: str) -> None:
    assert TEXT.line(TEXT.parse_event(line)) == line


@given(st.lists(clean_lines, min_size=1))
def test_whatever_is_said_arrives_as_one_request_and_unchanged(texts: list[str]) -> None:
    run = "\n".join(TEXT.spell_say(text) for text in texts)
    assert list(TEXT.parse_requests(run)) == [Say("\n".join(texts))]


@given(st.lists(clean_lines, min_size=1))
def test_a_publish_is_one_tagged_line_for_each_message(texts: list[str]) -> None:
    wire = TEXT.spell_said("Client 1", "\n".join(texts))
    assert LineDecoder(10_000).feed(wire) == ["\n".join(f"[Client 1] {text}" for text in texts)]


def test_answers() -> None:
    assert TEXT.spell_pong("") == b"[Server] pong\n"
    assert TEXT.spell_pong("42") == b"[Server] pong 42\n"
    assert TEXT.spell_missed(14) == b"[Server] 14 messages skipped\n"
    assert TEXT.spell_missed(1) == b"[Server] 1 message skipped\n"
    assert TEXT.spell_unknown("/foo") == (
        b"[Server] unknown command /foo; /help lists them; "
        b"start with // to say a line that starts with /\n"
    )
    assert len(TEXT.spell_unknown("/" + "a" * 60_000)) < 200


def test_help_fits_60_columns() -> None:
    lines = TEXT.spell_help().decode().splitlines()
    assert all(line.startswith("[Server] ") and len(line) <= 60 for line in lines)
    for command in ("/help", "/ping", "/quit", "//TEXT"):
        assert any(line.startswith(f"[Server] {command}") for line in lines)


@pytest.mark.parametrize("line", ["GET / HTTP/1.1", "POST /a?b HTTP/1.0", "OPTIONS * HTTP/2"])
def test_http_is_recognised(line: str) -> None:
    assert looks_like_http(line)


@pytest.mark.parametrize("line", ["GET it", "get / HTTP/1.1", "hello", "GET / HTTP/1.1 now"])
def test_what_is_no_http_is_chat(line: str) -> None:
    assert not looks_like_http(line)


def test_tls_is_recognised() -> None:
    assert looks_like_tls(b"\x16\x03\x01\x02\x00\x01")
    assert not looks_like_tls(b"\x16")
    assert not looks_like_tls(b"hello")
