"""The fuzz targets: functions from bytes to None that check properties.

A target accepts any bytes.  An `AssertionError` reports a violated property, and any other
exception is a bug too.  Targets keep no state between calls, and do not know how inputs are found.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz import words
from tests.fuzz.targets.control import check_control
from tests.fuzz.targets.conversation import check_conversation
from tests.fuzz.targets.events import check_json_events, check_json_passed_on, check_text_events
from tests.fuzz.targets.framing import check_framing
from tests.fuzz.targets.handshake import check_handshake
from tests.fuzz.targets.names import check_names
from tests.fuzz.targets.requests import check_json_requests, check_text_requests
from tests.fuzz.targets.websocket import check_websocket

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """A target: *check* raises only for a bug; *words* are likely parts of its inputs."""

    check: Callable[[bytes], None]
    words: tuple[bytes, ...]


TARGETS = {
    "framing": Target(check_framing, (*words.CHARACTERS, *words.TELNET)),
    "text-requests": Target(
        check_text_requests, (*words.COMMANDS, *words.REQUESTS, *words.CHARACTERS)
    ),
    "json-requests": Target(check_json_requests, (*words.REQUESTS, *words.CHARACTERS)),
    "text-events": Target(check_text_events, (*words.TAGS, *words.CHARACTERS)),
    "json-events": Target(check_json_events, (*words.EVENTS, *words.CHARACTERS)),
    "json-passed-on": Target(check_json_passed_on, (*words.EVENTS, *words.CHARACTERS)),
    "names": Target(check_names, words.LETTERS),
    "handshake": Target(check_handshake, (*words.STEPS, *words.TAGS, *words.EVENTS)),
    "websocket": Target(check_websocket, (*words.FRAMES, *words.CHARACTERS)),
    "control": Target(check_control, (*words.CONTROL, *words.CHARACTERS)),
    "conversation": Target(
        check_conversation,
        (*words.COMMANDS, *words.REQUESTS, *words.CHARACTERS, *words.TELNET),
    ),
}
"""By name, in the order in which they are run."""
