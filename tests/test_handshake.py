"""The handshake: which voice is spoken, whenever and however a server answers a hello."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.handshake import Handshake
from multichat.messages import (
    PROTOCOL,
    Error,
    Event,
    Goodbye,
    Hello,
    Joined,
    Limits,
    Notice,
    Said,
    Welcome,
)
from multichat.voices import JSON, TEXT

pytestmark = pytest.mark.unit

UNKNOWN = "[Server] unknown command /json; /help lists them; start with // to say a line"


def welcome(name: str = "Client 7", room: str = "lobby") -> Welcome:
    return Welcome(
        PROTOCOL, 7, name, room, 2, Limits(65536, 32), None, "multichat 1", resumed=False
    )


def spelled(*events: Event) -> str:
    """The run of lines that a server spells *events* with in JSON."""
    return b"".join(map(JSON.spell, events)).decode().removesuffix("\n")


NO_JSON = Error("invalid-request", "that is no request")
EMPTY = Error("empty-text", "an empty message cannot be said")
NAME_TAKEN = Error("name-taken", "the name alice is taken")
BAD_ROOM = Error("invalid-name", "a room has no such name")


def given_up(hello: Hello | None = None, *, sent: str = "") -> Handshake:
    shake = Handshake(hello or Hello(PROTOCOL))
    shake.give_up()
    if sent:
        shake.sent(sent)
    return shake


def test_before_an_answer_nothing_may_be_sent() -> None:
    shake = Handshake(Hello(PROTOCOL))
    assert (shake.voice, shake.welcome, shake.ready) == (TEXT, None, False)
    assert not shake.resending
    assert not shake.unproven


def test_a_welcome_at_once_settles_it() -> None:
    shake = Handshake(Hello(PROTOCOL))
    assert shake.hear(spelled(welcome())) == [welcome()]
    assert (shake.voice, shake.welcome, shake.ready) == (JSON, welcome(), True)
    assert not shake.late
    assert not shake.resending
    assert shake.hear(spelled(NO_JSON)) == [NO_JSON], "an error is now somebody's own"


def test_what_others_said_before_the_welcome_is_text_and_what_follows_is_json() -> None:
    shake = Handshake(Hello(PROTOCOL))
    before = '[Client 1] {"type":"welcome"}\n* Client 2 waves\n{"type":"quit"}'
    after = spelled(Joined(8, "Client 8"), Goodbye("full"))
    assert shake.hear(f"{before}\n{spelled(welcome())}\n{after}") == [
        Said(name="Client 1", text='{"type":"welcome"}'),
        Said(name="Client 2", text="waves", act=True),
        Said(name="", text='{"type":"quit"}'),
        welcome(),
        Joined(8, "Client 8"),
        Goodbye("full"),
    ]
    assert shake.voice is JSON


@pytest.mark.parametrize(
    "line",
    [
        '{"type":"welcome"',
        '{"type":"welcome"}',
        '{"type":"welcome","protocol":"x"}',
        '{"type":"welcome"} ',
        f" {spelled(welcome())}",
        f"[Client 1] {spelled(welcome())}",
        f"[Server] {spelled(welcome())}",
    ],
)
def test_what_is_no_welcome_does_not_pass_for_one(line: str) -> None:
    shake = Handshake(Hello(PROTOCOL))
    run = f"{line}\nhello"
    assert [TEXT.lines(event) for event in shake.hear(run)] == run.split("\n")
    assert (shake.voice, shake.welcome, shake.ready) == (TEXT, None, False)
    assert shake.hear(spelled(welcome())) == [welcome()]


def test_without_an_answer_text_is_spoken() -> None:
    shake = given_up()
    assert (shake.voice, shake.ready) == (TEXT, True)
    assert shake.hear("[Client 1] hi") == [Said(name="Client 1", text="hi")]
    assert not shake.unproven
    shake.sent("hello")
    assert shake.unproven


def test_a_server_that_does_not_know_the_hello_speaks_text_at_once() -> None:
    shake = Handshake(Hello(PROTOCOL))
    run = f"[Client 1] a\n{UNKNOWN}\n[Client 1] b"
    said = [Said(name="Client 1", text="a"), Said(name="Client 1", text="b")]
    assert shake.hear(run) == said
    assert (shake.voice, shake.ready) == (TEXT, True)
    shake.sent("hello")
    assert not shake.unproven, "it will not be read as JSON"
    notice = Notice(UNKNOWN.removeprefix("[Server] "))
    assert shake.hear(UNKNOWN) == [notice], "the next one was typed"


def test_a_server_may_say_late_that_it_does_not_know_the_hello() -> None:
    shake = given_up(sent="hello")
    assert shake.hear(UNKNOWN) == []
    assert shake.ready
    assert not shake.unproven


def test_what_another_client_says_about_the_hello_is_chat() -> None:
    shake = Handshake(Hello(PROTOCOL))
    assert shake.hear("[Client 1] unknown command /json") != []
    assert not shake.ready


def test_a_welcome_after_the_hello_was_not_known_is_chat() -> None:
    shake = Handshake(Hello(PROTOCOL))
    shake.hear(UNKNOWN)
    assert shake.hear(spelled(welcome())) == [Said(name="", text=spelled(welcome()))]
    assert (shake.voice, shake.welcome) == (TEXT, None)


def test_a_welcome_after_the_hello_was_not_known_is_chat_in_the_same_read_too() -> None:
    shake = Handshake(Hello(PROTOCOL))
    run = f"{UNKNOWN}\n{spelled(welcome())}"
    assert shake.hear(run) == [Said(name="", text=spelled(welcome()))]
    assert (shake.voice, shake.welcome) == (TEXT, None)


def test_whoever_is_plain_takes_no_line_for_a_welcome() -> None:
    shake = Handshake(Hello(PROTOCOL), plain=True)
    assert (shake.voice, shake.ready) == (TEXT, True)
    shake.sent("hello")
    assert not shake.unproven
    assert shake.hear(spelled(welcome())) == [Said(name="", text=spelled(welcome()))]
    assert shake.hear(UNKNOWN) == [Notice(UNKNOWN.removeprefix("[Server] "))]
    assert (shake.voice, shake.welcome) == (TEXT, None)


def test_a_late_welcome_with_nothing_sent_meanwhile_settles_it() -> None:
    shake = given_up()
    assert shake.hear(spelled(welcome())) == [welcome()]
    assert (shake.voice, shake.ready, shake.late) == (JSON, True, True)
    assert not shake.resending


def test_after_a_late_welcome_what_was_typed_meanwhile_is_sent_again_as_it_is_refused() -> None:
    shake = given_up(sent="one\n/name alice")
    shake.sent("three")
    assert shake.hear(spelled(welcome())) == [welcome()]
    assert (shake.voice, shake.ready, shake.late) == (JSON, False, True)
    assert not shake.unproven
    assert shake.resending
    assert shake.again == []
    joined = Joined(8, "Client 8")
    assert shake.hear(spelled(NO_JSON, joined, NO_JSON)) == [joined]
    assert shake.again == ["one", "/name alice"]
    shake.again.clear()
    assert shake.hear(spelled(NO_JSON)) == []
    assert (shake.again, shake.resending) == (["three"], True)
    shake.again.clear()
    assert (shake.ready, shake.resending) == (False, False)
    shake.forgive()
    assert shake.ready
    assert shake.hear(spelled(NO_JSON)) == [NO_JSON]


def test_the_refusals_may_come_in_the_same_read_as_the_late_welcome() -> None:
    shake = given_up(sent="one\ntwo")
    assert shake.hear("[Client 1] x\n" + spelled(welcome(), NO_JSON, NO_JSON)) == [
        Said(name="Client 1", text="x"),
        welcome(),
    ]
    assert shake.again == ["one", "two"]


def test_what_was_a_request_in_json_too_is_not_sent_again() -> None:
    who, empty = '{"type":"who"}', '{"type":"say","text":""}'
    shake = given_up(sent=f"one\n{who}\n{empty}\nfour")
    shake.hear(spelled(welcome()))
    answer = Error("nobody-there", "nobody here is called x", nonce=7)
    assert shake.hear(spelled(NO_JSON, answer, EMPTY, NO_JSON)) == [answer]
    assert shake.again == ["one", empty, "four"]


def test_only_requests_in_json_leave_nothing_to_wait_for() -> None:
    shake = given_up(sent='{"type":"who"}\n{"type":"say","text":"x"}')
    shake.hear(spelled(welcome()))
    assert shake.ready
    assert not shake.resending


def test_a_blank_line_is_no_request_in_json_and_is_sent_again() -> None:
    shake = given_up(sent=" \nhello")
    assert shake.hear(spelled(welcome(), NO_JSON, NO_JSON)) == [welcome()]
    assert shake.again == [" ", "hello"]


def test_what_was_not_refused_in_time_counts_as_accepted() -> None:
    shake = given_up(sent="one\ntwo")
    shake.hear(spelled(welcome(), NO_JSON))
    shake.forgive()
    assert shake.ready
    assert shake.again == ["one"]
    assert shake.hear(spelled(NO_JSON)) == [NO_JSON]
    assert shake.again == ["one"]


def test_what_cannot_be_remembered_any_more_is_full_until_it_is_concluded() -> None:
    shake = given_up(sent="x" * (1024 * 1024 - 1))
    states = [shake.full]
    shake.sent("y")
    states.append(shake.full)
    shake.conclude()
    states.append(shake.full)
    assert states == [False, True, False]
    assert not shake.unproven
    run = spelled(welcome(), NO_JSON)
    assert shake.hear(run) == list(TEXT.parse_events(run))  # somebody's chat
    assert not shake.resending


def test_what_was_not_sent_after_all_is_not_owed() -> None:
    shake = given_up(sent="one")
    shake.sent("two\nthree")
    shake.not_sent("two\nthree")
    shake.hear(spelled(welcome(), NO_JSON, NO_JSON))
    assert shake.again == ["one"]


def test_a_line_that_was_too_long_is_refused_in_its_place() -> None:
    shake = given_up(sent="long\none\ntwo")
    too_long = Error("line-too-long", "the line was longer than 65536 bytes and was dropped")
    assert shake.hear(spelled(welcome(), too_long, NO_JSON, NO_JSON)) == [welcome()]
    assert shake.again == ["long", "one", "two"]


@pytest.mark.parametrize(
    ("hello", "answer", "errors"),
    [
        (Hello(PROTOCOL, "alice", "den"), welcome("alice", "den"), []),
        (Hello(PROTOCOL, "ＡＬＩＣＥ", "Den"), welcome("alice", "den"), []),
        (Hello(PROTOCOL, "alice"), welcome(), [NAME_TAKEN]),
        (Hello(PROTOCOL, room="*"), welcome(), [BAD_ROOM]),
        (Hello(PROTOCOL, "alice", "*"), welcome("alice"), [BAD_ROOM]),
        (Hello(PROTOCOL, "alice", "*"), welcome(), [BAD_ROOM, NAME_TAKEN]),
        (Hello(PROTOCOL, ""), welcome(), [Error("invalid-name", "at least one")]),
    ],
)
def test_wishes_that_are_not_granted_are_explained_after_the_welcome(
    hello: Hello, answer: Welcome, errors: list[Error]
) -> None:
    shake = Handshake(hello)
    assert shake.hear(spelled(answer)) == [answer]
    for error in errors:
        assert not shake.ready
        assert shake.hear(spelled(error)) == []
    assert shake.ready
    assert shake.refusals == errors
    assert shake.hear(spelled(NO_JSON)) == [NO_JSON]

    at_once = Handshake(hello)
    assert at_once.hear(spelled(answer, *errors, NO_JSON)) == [answer, NO_JSON]
    assert at_once.refusals == errors


def test_a_late_refusal_of_a_wish_is_not_taken_for_that_of_a_line() -> None:
    shake = given_up(Hello(PROTOCOL, "alice"), sent="hello")
    told = shake.hear(spelled(welcome(), NAME_TAKEN, NO_JSON))
    assert NO_JSON not in told
    assert NAME_TAKEN in [*told, *shake.refusals]
    assert shake.again == ["hello"]


def test_an_error_about_a_json_request_is_not_taken_for_the_refusal_of_a_line() -> None:
    shake = given_up(sent='{"type":"name","name":"alice"}\nhello')
    assert shake.hear(spelled(welcome(), NAME_TAKEN, NO_JSON)) == [welcome(), NAME_TAKEN]
    assert shake.again == ["hello"]


@pytest.mark.parametrize("in_one_read", [False, True])
def test_a_second_welcome_changes_nothing(in_one_read: bool) -> None:
    shake = given_up(sent="hello")
    first, second = welcome(), welcome("mallory", "elsewhere")
    if in_one_read:
        told = shake.hear(spelled(first, second, NO_JSON))
    else:
        told = [event for each in (first, second, NO_JSON) for event in shake.hear(spelled(each))]
    assert told == [first, second]
    assert (shake.voice, shake.welcome) == (JSON, first)
    assert shake.again == ["hello"]
    shake.forgive()
    assert shake.ready


FROM_A_SERVER = [
    "[Client 1] hi",
    "* Client 1 waves",
    '{"type":"welcome"}',
    "[Server] full",
    spelled(welcome()),
    spelled(welcome("mallory")),
    spelled(NO_JSON),
    spelled(NAME_TAKEN),
    spelled(Joined(8, "Client 8")),
    '{"type":"weather"}',
    "[" * 100,
]


@given(
    st.lists(st.sampled_from(FROM_A_SERVER), min_size=1, max_size=8),
    st.lists(st.integers(1, 7), max_size=4),
    st.booleans(),
    st.builds(Hello, st.just(PROTOCOL), st.sampled_from([None, "alice"])),
)
def test_what_is_heard_does_not_depend_on_how_the_lines_were_read(
    lines: list[str], cuts: list[int], late: bool, hello: Hello
) -> None:
    def begun() -> Handshake:
        return given_up(hello, sent="one\ntwo") if late else Handshake(hello)

    whole, cut = begun(), begun()
    edges = sorted({0, len(lines), *(each for each in cuts if each < len(lines))})
    heard = [event for a, b in pairwise(edges) for event in cut.hear("\n".join(lines[a:b]))]
    assert whole.hear("\n".join(lines)) == heard
    for shake in (whole, cut):
        assert (shake.voice is JSON) == (shake.welcome is not None)
        assert shake.again == ["one", "two"][: len(shake.again)]
    assert (whole.voice, whole.welcome, whole.late) == (cut.voice, cut.welcome, cut.late)
    assert (whole.ready, whole.again, whole.refusals) == (cut.ready, cut.again, cut.refusals)
