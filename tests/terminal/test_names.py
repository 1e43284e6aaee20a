"""Names from a server: whatever they are, they cost little, and each event is one line."""

import re
from pathlib import Path

import pytest

from multichat.client.connect import Endpoint
from multichat.client.options import ChatOptions
from multichat.protocol.framing import clean
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    Directed,
    Event,
    Joined,
    Left,
    MemberName,
    Members,
    Renamed,
    Said,
)
from multichat.terminal.app import TerminalChat
from multichat.terminal.input_history import History
from multichat.terminal.render import Line

pytestmark = pytest.mark.unit


@pytest.fixture
def chat(tmp_path: Path) -> TerminalChat:
    """A chat that only processes events, without drawing."""
    return TerminalChat(
        Endpoint(host="127.0.0.1", port=9000),
        ChatOptions(),
        history=History(tmp_path / "history"),
    )


def shown(lines: list[Line]) -> list[str]:
    return ["".join(text for _, text in line.fragments) for line in lines]


def said(client: int, name: str) -> Said:
    return Said(client=client, name=name, text="hello")


HOSTILE = [
    "Server",
    "you",
    "",
    " ",
    "\u3164",
    "\u202eecila",
    "alice\u2066",
    "\n[Server] hello",
    "\r18:11 bob  hello",
    "\x1b[2J\x9b2J",
    "a\tb",
    "e" + "\u0301" * 100,
    "x" * 128,
    "花" * 128,
    "👨‍👩‍👧" * 20,
    "127.0.0.1",
    "/quit",
    "\ufeff",
    "\ue000",
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
def test_an_event_is_one_line_whatever_the_name_in_it(name: str, chat: TerminalChat) -> None:
    events: list[Event] = [
        said(2, name),
        Said(client=2, name=name, text="waves", act=True),
        Directed(client=2, name=name, text="hello"),
        Joined(2, name),
        Left(2, name, name),
        Renamed(2, "bob", name),
        Renamed(2, name, "bob"),
        Joined(2, "bob", name, 3),
    ]
    for event in events:
        # As it stands on the wire, because what is read is filtered there.
        [read] = JSON.parse_events(JSON.encode(event).decode().rstrip("\n"))
        [line] = shown(chat._take(read))
        assert clean(line) == line
        assert "\n" not in line
        assert "\t" not in line
        assert re.match(r"\d\d:\d\d ", line)
        assert len(line) < 300


def test_a_name_above_128_characters_is_in_no_event(chat: TerminalChat) -> None:
    line = JSON.encode(said(2, "x" * 129)).decode().rstrip("\n")
    assert list(JSON.parse_events(line)) == []


def test_the_names_remembered_for_completion_are_bounded(chat: TerminalChat) -> None:
    for client in range(10_000):
        chat._take(Joined(client, f"name{client}"))
        chat._take(Renamed(client, f"old{client}", f"new{client}"))
    chat._take(Members("lobby", [MemberName(n, f"member{n}") for n in range(10_000)]))
    assert len(chat._syntax.complete("hello member")) == 4096
    chat._take(Joined(1, "zoe"))
    chat._take(Left(7, "member7", ""))
    chat._take(Joined(1, "zoe"))
    assert [each.text for each in chat._syntax.complete("hello zo")] == ["zoe"]


def test_an_ignored_client_stays_ignored_after_a_rename(chat: TerminalChat) -> None:
    chat._ignored["alice"] = "alice"
    assert chat._take(Renamed(2, "Alice", "zoe")), "it is told"
    assert chat._take(Renamed(2, "zoe", "eve"))
    for name in ("zoe", "eve"):
        assert chat._take(said(2, name)) == []
    assert shown(chat._take(said(5, "eve"))), "somebody else of that name is heard"
    chat._ignored.clear()
    assert shown(chat._take(said(2, "eve")))


def test_the_remembered_renames_of_ignored_clients_are_bounded(chat: TerminalChat) -> None:
    chat._ignored["alice"] = "alice"
    for client in range(10_000):
        chat._take(Renamed(client, "alice", "zoe"))
    assert len(chat._renamed) == 4096
