"""Checks and parsing shared by several targets."""

import json
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import msgspec

from multichat.errors import InvalidName
from multichat.protocol.codec import Codec
from multichat.protocol.framing import LineDecoder, clean
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import Directed, Event, Said
from multichat.protocol.names import parse_name
from multichat.protocol.text_codec import TEXT
from tests.fuzz import reference
from tests.support.messages import strings_in

__all__ = [
    "SPOILT",
    "assert_as_the_standard_library_reads",
    "assert_harmless",
    "assert_same",
    "block_of",
    "check_event",
    "from_deeper",
    "kept",
    "told_by",
]

T = TypeVar("T")

SPOILT = "no json"
"""After a line that is not JSON, every line of a block is read alone."""

# The line limit of our client.
_CLIENT_LINE_BYTES = 1024 * 1024


def assert_same(got: object, expected: object, why: str) -> None:
    if got != expected:
        raise AssertionError(f"{why}:\n     got {got!r}\nexpected {expected!r}")


def assert_harmless(text: str) -> None:
    assert not (obeyed := reference.obeyed(text)), f"{obeyed} in {text!r}"


def block_of(data: bytes) -> str:
    """Return all lines of a connection as one block; empty if there are none."""
    decoder = LineDecoder(_CLIENT_LINE_BYTES)
    parts = decoder.feed(data) + decoder.finish()
    return "\n".join(part for part in parts if isinstance(part, str))


def from_deeper(act: Callable[[], T], frames: int = 200) -> T:
    """Call *act* with that many more frames on Python's stack; return its result."""
    return act() if frames == 0 else from_deeper(act, frames - 1)


def kept(requested: str, parse: Callable[[str], str] = parse_name) -> tuple[str, str]:
    """Return the normalized name for *requested*, or the reason why it is refused."""
    try:
        return parse(requested), ""
    except InvalidName as refused:
        return "", str(refused)


def check_event(event: Event) -> None:
    assert isinstance(event, get_args(Event)), f"{event} is no event"
    for text in strings_in(event):
        assert_harmless(text)
    lines = TEXT.format(event).split("\n")
    for line in lines:
        assert_harmless(line)
    if not isinstance(event, Said | Directed):
        assert_same(len(lines), max(1, len(TEXT.describe(event))), "an LF only between lines")
    assert_same(told_by(JSON, JSON.encode(event)), [event], "an event survives the JSON codec")


def told_by(codec: Codec, wire: bytes) -> list[Event]:
    """Return the events that our client decodes."""
    assert all(len(line) <= _CLIENT_LINE_BYTES for line in wire.split(b"\n")), "it is too long"
    block = block_of(wire)
    assert_same(f"{block}\n".encode(), wire, "a server's line survives framing")
    return list(codec.parse_events(block))


def assert_as_the_standard_library_reads(line: str, value: msgspec.Struct) -> None:
    try:
        said = json.loads(line)
    except json.JSONDecodeError as error:
        raise AssertionError(f"{value} was read from what is no JSON: {line!r}") from error
    except (ValueError, RecursionError):  # a number or a depth beyond what it takes
        return
    _assert_says(said, value)


def _assert_says(said: Any, value: Any) -> None:
    """Check that *value* consists of cleaned parts of *said* and nothing else."""
    if isinstance(value, msgspec.Struct):
        assert_same(type(said), dict, f"{value} was read from {said!r}")
        for field in msgspec.structs.fields(value):
            read = getattr(value, field.name)
            if field.encode_name in said:
                _assert_says(said[field.encode_name], read)
            else:
                made = field.default_factory
                default = field.default if made is msgspec.NODEFAULT else made()
                assert_same(read, default, f"{field.name} was not said")
    elif isinstance(value, list):
        for one_said, one in zip(said, value, strict=True):
            _assert_says(one_said, one)
    elif isinstance(value, str):
        assert_same(value, clean(said), "a string is read through the filter")
    else:
        assert_same((type(value), value), (type(said), said), "a value is read as it was said")
