"""What is fuzzed: one function for each target, `bytes -> None`, that checks what must be true.

Owns the properties and nothing of how inputs are found.  A target takes any bytes at all; what is
true of none of them is said by an `AssertionError`, and whatever else is raised is a bug as well.
None keeps anything from one call to the next.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz import words
from tests.fuzz.targets.conversation import check_conversation
from tests.fuzz.targets.events import check_json_events, check_json_passed_on, check_text_events
from tests.fuzz.targets.framing import check_framing
from tests.fuzz.targets.handshake import check_handshake
from tests.fuzz.targets.names import check_names
from tests.fuzz.targets.requests import check_json_requests, check_text_requests

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """*check* raises on account of a bug only; *words* are what its inputs are likely to hold."""

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
    "conversation": Target(
        check_conversation,
        (*words.COMMANDS, *words.REQUESTS, *words.CHARACTERS, *words.TELNET),
    ),
}
"""By name, in the order in which they are run."""
