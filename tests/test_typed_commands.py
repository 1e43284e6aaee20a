"""Commands that people type: which lines are commands, look like one, and habits of other chats."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.commands import (
    COMMANDS,
    UNAVAILABLE,
    disguised_command,
    find_command,
    help_lines,
    may_be_disguised,
    parse_line,
    say_literally,
    say_unless_command,
)
from multichat.framing import clean
from multichat.messages import Direct, Invalid, Say, SayRun
from multichat.testing import memory_server
from multichat.voices import TEXT

pytestmark = pytest.mark.unit

NOT_SAID = "[Server] not said, because it looks like /msg: type /msg to run it, //msg to say it"

DISGUISES = [
    " /msg",
    "\t/msg",
    "   /MSG",
    "\u00a0/msg",  # no-break space
    "\u3000/msg",  # ideographic space
    "\u200b/msg",  # zero-width space
    "\u2060\u200d/msg",
    "\u00ad/msg",  # soft hyphen
    "\u200e/msg",  # left-to-right mark
    "\u3164/msg",  # Hangul filler
    "\u2800/msg",  # blank Braille pattern
    "\ufe0f/msg",
    "\U000e0020/msg",
    "\ufffd/msg",  # a byte that is not UTF-8
    "␛[D/msg",  # an arrow key in front of nc
    "␛[1;5C ␛OA/msg",
    "␀/msg",
    "\\msg",
    "／msg",
    "⁄msg",
    "∕msg",
    "╱msg",
    "⧸msg",
    "＼msg",
    " / msg",
    "／ｍｓｇ",
    " /w",
    "\u200b／tell",
]


@pytest.mark.parametrize("disguise", DISGUISES, ids=ascii)
async def test_what_looks_like_a_command_is_answered_and_not_said(disguise: str) -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await a.send("before", f"{disguise} bob a secret", "behind")
        [answer] = await a.lines(1)
        assert answer.startswith("[Server] not said, because it looks like /")
        assert await b.lines(2) == ["[Client 1] before", "[Client 1] behind"]
        assert TEXT.spell_request(Say(f"{disguise} x")) == f"/say {disguise} x"
        assert disguised_command(f"{disguise} bob x") in ("/msg bob x", "/w bob x", "/tell bob x")


async def test_a_byte_order_mark_does_not_make_a_command_a_message() -> None:
    assert disguised_command("\ufeff/msg bob x") == "/msg bob x"
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        for stream in (a, await network.join()):
            await stream.send("\ufeff/msg bob a secret", "\ufeff/msg bob a secret", "said")
        assert await b.lines(2) == ["[Client 1] said", "[Client 3] said"]


@pytest.mark.parametrize(
    "text",
    [
        " /usr/bin/python3 is broken",
        "/usr/bin/python3",
        "//msg bob",
        "  // comment",
        " /* comment */",
        "  / 2 = 4",
        "msg bob",
        "either/msg or",
        "see /msg bob",
        r"\w+ matches a word",
        r"\part{One}",
        r"\\server\share",
        "/msgs",
        " /message",
        "··· /msg",
        "￥/msg",
    ],
)
def test_what_only_has_a_slash_is_no_disguise(text: str) -> None:
    assert disguised_command(text) is None
    assert say_literally(text) == (f"/{text}" if text.startswith("/") else text)


any_line = st.text().map(clean).filter(bool)


@given(
    st.lists(
        any_line | st.builds("".join, st.tuples(st.sampled_from(DISGUISES), any_line)), min_size=1
    ).map("\n".join)
)
def test_lines_that_need_a_look_are_found_whatever_stands_around_them(run: str) -> None:
    lines = run.split("\n")
    special = any(line[0] == "/" or disguised_command(line) for line in lines)
    assert may_be_disguised(run) or not special
    if not may_be_disguised(run):
        assert list(TEXT.parse_requests(run)) == [SayRun(run)]


@given(st.sampled_from(DISGUISES) | st.text().map(clean).filter(bool), st.text().map(clean))
def test_what_is_said_literally_is_said(start: str, rest: str) -> None:
    text = start + rest
    assert list(TEXT.parse_requests(say_literally(text))) == [SayRun(text)]


@pytest.mark.parametrize("blank", [" ", "\u200b", "␛", "␛[D", "\\", "a/", "\t/"])
def test_the_longest_line_is_looked_at_in_linear_time(blank: str) -> None:
    line = blank * (65_536 // len(blank))
    started = time.process_time()
    for run in (line, "\n".join([line] * 4), f"{line}/msg"):
        may_be_disguised(run)
        disguised_command(run)
    assert time.process_time() - started < 5  # a quadratic pattern takes minutes


def test_no_name_is_a_command_twice() -> None:
    names = [name for each in COMMANDS for name in (each.name, *each.aliases)]
    assert len({*names, *UNAVAILABLE}) == len(names) + len(UNAVAILABLE)
    assert all(name == name.lower() and name.startswith("/") for name in names)


def test_the_help_has_every_name_of_every_command_on_a_screen() -> None:
    lines = help_lines() + help_lines(local=True)
    words = " ".join(lines).split()
    for command in COMMANDS:
        if command.purpose:
            assert {command.name, *command.aliases} <= set(words)
    assert len(help_lines()) <= 16
    assert max(map(len, help_lines())) <= 51  # 60 columns, with the tag


@pytest.mark.parametrize("name", sorted(UNAVAILABLE))
def test_commands_of_other_chats_say_what_there_is_instead(name: str) -> None:
    answer = parse_line(f"{name} something")
    assert isinstance(answer, Invalid)
    assert answer.error.text == UNAVAILABLE[name]


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("/usr/bin/ld: not found", "//usr/bin/ld: not found"),
        ("/msg bob hi", "/msg bob hi"),
        ("/QUIT", "/QUIT"),
        ("//usr", "//usr"),
        (" /msg bob", " /msg bob"),
        ("\\msg bob", "\\msg bob"),
        ("/quti", "//quti"),
        ("  x", "  x"),
    ],
)
def test_in_a_pipe_only_a_command_is_one(line: str, sent: str) -> None:
    assert say_unless_command(line) == sent


async def test_a_reply_goes_to_the_last_sender_whatever_it_is_called_now() -> None:
    async with memory_server() as network:
        a, b, c = [await network.join() for _ in range(3)]
        await a.send("/r hello?")
        assert await a.line() == "[Server] nobody has sent you a private message"
        await b.send("/msg 1 from b")
        assert await a.line() == "[Client 2 → you] from b"
        await c.send("/msg 1 from c")
        assert await a.line() == "[Client 3 → you] from c"
        await c.send("/name carol")
        await c.line()
        await b.send("/name Client3")
        await b.line()
        await a.send("/r to c", "/reply and again")
        assert await c.lines(2) == ["[Client 1 → you] to c", "[Client 1 → you] and again"]
        await c.finish()
        await c.rest()
        await a.send("/r too late", "/ping")
        assert await a.lines(2) == ["[Server] there is no client 3", "[Server] pong"]
        await b.send("/ping")
        assert await b.line() == "[Server] pong"


async def test_habits_of_irc_do_what_people_mean() -> None:
    async with memory_server() as network:
        a, b = [await network.join() for _ in range(2)]
        await b.send("/nick bob", "/join #kitchen")
        assert await b.lines(2) == [
            "[Server] Client 2 is now bob",
            "[Server] you are in kitchen; nobody else is here",
        ]
        await a.send("/query @bob hi", "/w bob: hi", "/who #kitchen", "/names")
        assert await b.lines(2) == ["[Client 1 → you] hi", "[Client 1 → you] hi"]
        assert await a.lines(4) == [
            "[Server] 1 in kitchen:",
            "[Server] 2 bob",
            "[Server] 1 in lobby:",
            "[Server] 1 Client 1",
        ]
        await a.send("/who attic", "/who not a room", "/list")
        answers = await a.lines(5)
        assert answers[0] == "[Server] nobody is in attic"
        assert answers[1].startswith("[Server] a room's name consists of")
        assert answers[2:] == [
            "[Server] rooms, with how many are there:",
            "[Server] lobby 1",
            "[Server] kitchen 1",
        ]
        await b.send("/msg #lobby hi", "/join bad room")
        answers = await b.lines(2)
        assert answers[0] == (
            "[Server] nobody here is called #lobby; a room is talked in after /join lobby"
        )
        assert answers[1].startswith("[Server] a room's name consists of")
        await b.send("/part", "/topic", "/exit")
        assert await b.rest() == [
            "[Server] you are in lobby; 2 are here",
            "[Server] rooms have no topic",
            "[Server] goodbye: you asked to leave",
        ]


def test_every_alias_asks_what_its_command_asks() -> None:
    for command in COMMANDS:
        for alias in command.aliases:
            for rest in ("", " bob hi", " kitchen"):
                of_alias, of_command = parse_line(alias + rest), parse_line(command.name + rest)
                if not isinstance(of_command, Invalid):
                    assert of_alias == of_command
    assert parse_line("/M bob x") == Direct("bob", "x")
    assert find_command("/LIST") is find_command("/rooms")
