"""Completion of words."""

import pytest

from multichat.protocol.commands import COMMANDS
from multichat.terminal.completion import complete

pytestmark = pytest.mark.unit

NAMES = {"alice", "Alina", "bob", "Client 7", "Ζωή"}
ROOMS = {"lobby", "Kitchen", "library"}


def completed(before: str) -> list[str]:
    """All that *before* may become, as a whole."""
    found = complete(before, NAMES, ROOMS)
    return [before[: len(before) - length] + text for text, length in found]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("/wh", ["/who"]),
        ("/WH", ["/who"]),
        ("/jo", ["/join "]),
        ("/ms", ["/msg "]),
        ("/hi", ["/history"]),
        ("/i", ["/ignore "]),
        ("/q", ["/quit"]),
        ("/nothing", []),
        ("/join ", ["/join Kitchen", "/join library", "/join lobby"]),
        ("/join k", ["/join Kitchen"]),
        ("/join lobby l", []),
        ("/j #ki", ["/j #Kitchen"]),
        ("/w @al", ["/w @alice ", "/w @Alina "]),
        ("/query b", ["/query bob "]),
        ("/msg a", ["/msg alice ", "/msg Alina "]),
        ("/MSG b", ["/MSG bob "]),
        ("/msg ", ["/msg 7 ", "/msg alice ", "/msg Alina ", "/msg bob ", "/msg Ζωή "]),
        ("/ignore bo", ["/ignore bob"]),
        ("/msg bob al", ["/msg bob alice", "/msg bob Alina"]),
        ("al", ["alice: ", "Alina: "]),
        ("ΖΩ", ["Ζωή: "]),
        ("hello al", ["hello alice", "hello Alina"]),
        ("hello @al", ["hello @alice", "hello @Alina"]),
        ("hello /wh", []),
        ("", []),
        ("hello ", []),
        ("xyz", []),
    ],
)
def test_completion_candidates(before: str, expected: list[str]) -> None:
    assert completed(before) == expected


def test_every_command_of_the_help_is_offered() -> None:
    offered = {each.text.strip() for each in complete("/", (), ())}
    assert offered == {each.name for each in COMMANDS if each.help}
    assert {"/ignore", "/msg", "/part", "/r"} <= offered
