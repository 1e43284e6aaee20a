"""Names from a server: whatever they are, they cost little, and each event is one line."""

import re

import pytest

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
from multichat.terminal.conversation import Conversation
from multichat.terminal.render import Line
from tests.support.conversations import begun

pytestmark = pytest.mark.unit


@pytest.fixture
def chat() -> Conversation:
    return begun("lobby")


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
def test_an_event_is_one_line_whatever_the_name_in_it(name: str, chat: Conversation) -> None:
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
        # In the form of the wire, because input is filtered there.
        [read] = JSON.parse_events(JSON.encode(event).decode().rstrip("\n"))
        [line] = shown(chat.take(read))
        assert clean(line) == line
        assert "\n" not in line
        assert "\t" not in line
        assert re.match(r"\d\d:\d\d ", line)
        assert len(line) < 300


def test_a_name_above_128_characters_is_in_no_event(chat: Conversation) -> None:
    line = JSON.encode(said(2, "x" * 129)).decode().rstrip("\n")
    assert list(JSON.parse_events(line)) == []


def test_the_names_remembered_for_completion_are_bounded(chat: Conversation) -> None:
    for client in range(10_000):
        chat.take(Joined(client, f"name{client}"))
        chat.take(Renamed(client, f"old{client}", f"new{client}"))
    chat.take(Members("lobby", [MemberName(n, f"member{n}") for n in range(10_000)]))
    assert len(chat.complete("hello member")) == 4096
    chat.take(Joined(1, "zoe"))
    chat.take(Left(7, "member7", ""))
    chat.take(Joined(1, "zoe"))
    assert [each.text for each in chat.complete("hello zo")] == ["zoe"]


def test_an_ignored_client_stays_ignored_after_a_rename(chat: Conversation) -> None:
    chat.ignore("alice")
    assert chat.take(Renamed(2, "Alice", "zoe")), "it is told"
    assert chat.take(Renamed(2, "zoe", "eve"))
    for name in ("zoe", "eve"):
        assert chat.take(said(2, name)) == []
    assert shown(chat.take(said(5, "eve"))), "somebody else of that name is heard"
    chat.ignore("alice")
    assert shown(chat.take(said(2, "eve")))


def test_the_remembered_renames_of_ignored_clients_are_bounded(chat: Conversation) -> None:
    chat.ignore("alice")
    for client in range(10_000):
        chat.take(Renamed(client, "alice", "zoe"))
    assert len(chat._renamed) == 4096
