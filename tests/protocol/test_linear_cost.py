"""Processing a line takes time in proportion to its length, whatever it contains."""

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import islice

import pytest

from multichat.client.negotiation import make_hello
from multichat.client.session import ClientSession
from multichat.protocol.framing import LineDecoder, clean
from multichat.protocol.json_lines import clean_json
from multichat.protocol.messages import Notice, Said, SayBlock
from multichat.protocol.names import fold_name, visible_name
from multichat.protocol.text_codec import TEXT
from multichat.protocol.typed_lines import disguised_command, looks_like, parse_line, say_literally
from multichat.terminal.completion import complete, expand_reply
from multichat.terminal.mention import find_mentions
from multichat.terminal.render import Identity, Renderer
from multichat.terminal.rooms import Rooms
from multichat.terminal.status import status_line
from multichat.terminal.wrap import wrap

pytestmark = pytest.mark.unit

CHARACTERS = (
    " \t\u00a0\u0301\u200d\u4e2dx1\u05d0\U0001f600\ufe0f/\\[-␛\u3164\u1160\uac00\u2028\ufeff\ufffd"
)

PLACES: dict[str, Callable[[str], str]] = {
    "alone": lambda many: many,
    "at the start": lambda many: f"{many} x y",
    "in the middle": lambda many: f"xx {many} xx",
    "at the end": lambda many: f"x y {many}",
    "between words": lambda many: many.replace(many[0], f"{many[0]}x\u0301 ")[: len(many)],
}

US, NOW = Identity(1, "xx"), datetime.now(UTC)

ACTIONS: dict[str, Callable[[str], object]] = {
    "clean": clean,
    "decode": lambda text: LineDecoder(2**20).feed(f"{text}\n".encode()),
    "clean JSON": lambda text: clean_json(f'{{"type":"notice","text":"{text}"}}'),
    "fold": fold_name,
    "leave out what is invisible": visible_name,
    "wrap": lambda text: wrap([("", "10:30 bob  "), ("", text)], 80),
    "wrap on a narrow terminal": lambda text: wrap([("", f"10:30 bob  {text}")], 9),
    "show what was said": lambda text: Renderer().event(Said(name="bob", text=text), US, NOW),
    "show a name": lambda text: Renderer().event(Said(name=text, text="x"), US, NOW),
    "show a notice": lambda text: Renderer().event(Notice(text), US, NOW),
    "show what was typed": lambda text: Renderer().typed(SayBlock(text), US, NOW),
    "find a Latin mention": lambda text: list(find_mentions(text, "xx")),
    "find a Korean mention": lambda text: list(find_mentions(text, "\uac00\uac00")),
    "find a Hebrew mention": lambda text: list(find_mentions(text, "\u05d0\u05d0")),
    "complete": lambda text: complete(text, ["bob"], ["den"]),
    "complete a name": lambda text: complete(f"/msg {text}", ["bob"], ["den"]),
    "expand a reply": lambda text: expand_reply(f"/r {text}", 7),
    "see a disguised command": disguised_command,
    "see one at the end": lambda text: disguised_command(f"{text}/msg bob x"),
    "see one at the start": lambda text: looks_like(f" /msg {text}x"),
    "parse": parse_line,
    "parse a command": lambda text: parse_line(f"/msg client 7{text}"),
    "parse another": lambda text: parse_line(f"/msg @{text}x"),
    "parse an unknown command": lambda text: parse_line(f"/{text}"),
    "say literally": say_literally,
    "parse an event": lambda text: list(TEXT.parse_events(text)),
    "parse a tagged event": lambda text: list(TEXT.parse_events(f"[{text}] x")),
    "parse an action": lambda text: list(TEXT.parse_events(f"* Client {text}")),
}

SHORT, LONG = 1_000, 8_000

# In the length 8 times, and 64 times if it is quadratic.
MOST_TIMES = 8 * 3
LEAST_SECONDS = 0.02


def seconds(action: Callable[[str], object], text: str) -> float:
    begin = time.thread_time()
    action(text)
    return time.thread_time() - begin


@pytest.mark.parametrize("action", ACTIONS.values(), ids=list(ACTIONS))
def test_time_is_linear_in_the_length_of_a_line(action: Callable[[str], object]) -> None:
    for place in PLACES.values():
        for character in CHARACTERS:
            short, long = place(character * SHORT), place(character * LONG)
            measured: list[tuple[float, float]] = []
            while len(measured) < 5:
                measured.append((seconds(action, short), seconds(action, long)))
                one, eight = map(min, zip(*measured, strict=True))
                if eight <= MOST_TIMES * one + LEAST_SECONDS:
                    break
            else:
                pytest.fail(f"{character!r}: {one:.4f} s, and {eight:.4f} s for 8 times as many")


def be_welcomed(rooms: Mapping[str, object]) -> float:
    """Return the seconds that a client on a terminal needs for a server's *rooms*, and for none."""
    welcome: dict[str, object] = {
        "type": "welcome", "protocol": 1, "client": 7, "name": "x", "room": "0", "members": 1,
        "limits": {"line": 65536, "name": 32}, "last": None, "server": "x", "resumed": True,
        "session": "x",
    }  # fmt: skip
    lines = [json.dumps(welcome | {"rooms": some}) for some in (rooms, {}) * 2]
    session, shown = ClientSession(make_hello(), plain=False), Rooms()
    begin = time.thread_time()
    for line in lines:
        session.receive([line])
        assert session.welcome is not None
        shown.welcome(session.welcome)
        status_line("x", shown, "here", "", 80)
        session.reconnect()
    return time.thread_time() - begin


def test_time_is_linear_in_the_number_of_rooms_of_a_welcome() -> None:
    rooms = {f"{number:x}": {"members": 1, "last": None} for number in range(8 * SHORT)}
    few = dict(islice(rooms.items(), SHORT))
    measured: list[tuple[float, float]] = []
    while len(measured) < 5:
        measured.append((be_welcomed(few), be_welcomed(rooms)))
        one, eight = map(min, zip(*measured, strict=True))
        if eight <= MOST_TIMES * one + LEAST_SECONDS:
            return
    pytest.fail(f"{one:.4f} s, and {eight:.4f} s for 8 times as many")
