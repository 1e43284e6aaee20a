"""Events in both protocols, from any server: no output contains control characters."""

import json
from collections.abc import Callable
from typing import Any

from multichat.protocol.framing import clean
from multichat.protocol.json_codec import JSON
from multichat.protocol.json_lines import clean_json
from multichat.protocol.messages import Said
from multichat.protocol.text_codec import TEXT
from tests.fuzz.targets.checks import (
    SPOILT,
    assert_as_the_standard_library_reads,
    assert_harmless,
    assert_same,
    block_of,
    check_event,
    from_deeper,
)
from tests.support.messages import strings_in

__all__ = ["check_json_events", "check_json_passed_on", "check_text_events"]


def check_text_events(data: bytes) -> None:
    """Check lines from any server to a client of the text protocol."""
    if block := block_of(data):
        events = list(TEXT.parse_events(block))
        shown = [TEXT.format(event) for event in events]
        assert_same(shown, block.split("\n"), "any line is one event, shown as it came")
        for event in events:
            check_event(event)


def check_json_events(data: bytes) -> None:
    """Check lines from any server to a client of the JSON protocol."""
    if block := block_of(data):
        alone = [(line, event) for line in block.split("\n") for event in JSON.parse_events(line)]
        events = [event for _, event in alone]
        assert_same(list(JSON.parse_events(block)), events, "together and alone")
        assert_same(
            list(JSON.parse_events(f"{SPOILT}\n{block}"))[1:], events, "behind what is no JSON"
        )
        assert_same(
            from_deeper(lambda: list(JSON.parse_events(block))), events, "from a deeper stack"
        )
        for line, event in alone:
            check_event(event)
            if event != Said(name="", text=line):
                assert_as_the_standard_library_reads(line, event)


def check_json_passed_on(data: bytes) -> None:
    """Check lines from any server that are passed on to a program with its own decoder."""
    for line in block_of(data).split("\n"):
        passed = clean_json(line)
        assert_harmless(passed)
        assert_same(clean_json(passed), passed, "what is clean is passed on as it is")
        meant = _decoded_elsewhere(line, clean_key=clean)
        understood = _decoded_elsewhere(passed, clean_key=str)
        for text in strings_in(understood):
            assert_harmless(text)
        if meant is not None:
            # Compared by `repr`, because NaN differs from itself.
            assert_same(repr(understood), repr(_cleaned(meant)), f"{line!r} passed as {passed!r}")


def _decoded_elsewhere(line: str, *, clean_key: Callable[[str], str]) -> Any:
    """Decode a line with a decoder that accepts surrogates and NaN; None if it fails.

    Of keys that are equal after cleaning, the last one counts.
    """
    try:
        return json.loads(
            line, object_pairs_hook=lambda pairs: {clean_key(key): value for key, value in pairs}
        )
    except (ValueError, RecursionError):
        return None


def _cleaned(value: Any) -> Any:
    """Return *value*, whose keys are clean, with all strings in it cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(each) for each in value]
    if isinstance(value, dict):
        return {key: _cleaned(each) for key, each in value.items()}
    return value
