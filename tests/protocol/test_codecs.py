"""Both codecs: what a line requests, how an event is encoded, and their bounds."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_args

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from multichat.errors import InvalidName
from multichat.protocol.codec import Codec, encoded_help
from multichat.protocol.fields import Passphrase, Topic
from multichat.protocol.framing import LineDecoder, clean
from multichat.protocol.ids import message_id
from multichat.protocol.json_codec import JSON, encode_hello, is_hello
from multichat.protocol.messages import (
    Accepted,
    Act,
    Announce,
    Ban,
    BanInfo,
    Bans,
    ChangePassphrase,
    Direct,
    Directed,
    Enter,
    Entered,
    Error,
    Event,
    Exit,
    Goodbye,
    Hello,
    Help,
    History,
    HistoryPage,
    Invalid,
    Join,
    Joined,
    Kick,
    Left,
    Limits,
    Login,
    Logout,
    MemberName,
    Members,
    Missed,
    Name,
    Nonce,
    Notice,
    Ping,
    Pong,
    Presence,
    Quit,
    Register,
    Rename,
    Renamed,
    Reply,
    Request,
    RoomList,
    Rooms,
    RoomSize,
    RoomState,
    Said,
    SaidBlock,
    Say,
    SayBlock,
    SetTopic,
    Unban,
    Welcome,
    Who,
    WireEvent,
    WireRequest,
)
from multichat.protocol.names import MAX_DECOMPOSED, default_name, parse_name
from multichat.protocol.text_codec import TEXT
from tests.support.messages import one_by_one, strings_in

pytestmark = pytest.mark.unit

T = TypeVar("T")

CODECS: list[Codec] = [TEXT, JSON]

# After a line that is not JSON each line is read alone; see `test_one_line_is_one_request`.
SPOILT = "no json"


NO_NONCE = "a nonce is a string of at most 128 characters, or a whole number from -2^53 to 2^53"


def invalid(text: str, code: str = "invalid-request", nonce: str | int | None = None) -> Invalid:
    return Invalid(Error(code, text, nonce=nonce))


def unknown(command: str) -> Invalid:
    return invalid(
        f"unknown command {command}; /help lists them; "
        "start with // to send a line that starts with /",
        "unknown-request",
    )


def shortened(line: str) -> str:
    return f"{line[:40]}-{len(line)}"


def decoded(wire: bytes) -> str:
    """The run of lines that the other side reads."""
    [block] = LineDecoder(10**6).feed(wire)
    assert isinstance(block, str)
    return block


def encode_requests(codec: Codec, requests: list[WireRequest]) -> str:
    block = "\n".join(map(codec.encode_request, requests))
    assert decoded(f"{block}\n".encode()) == block
    return block


def assert_clean(values: object) -> None:
    for each in strings_in(values):
        assert clean(each) == each


def is_name(name: str) -> bool:
    try:
        return parse_name(name) == name
    except InvalidName:
        return False


names = (
    st.sampled_from(["abcXYZ019-_.", "αβγΔ7_", "бвгД7-", "한국어1.", "हनददि7", "محمد5"])
    .flatmap(lambda alphabet: st.text(alphabet, min_size=1, max_size=32))
    .filter(is_name)
)
# Characters that often expose faults when input is mutated or cut.
texts = (
    st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('"\\\t/[]*{} →é\x1b\u202e')))
    .map(clean)
    .filter(bool)
)
visible_texts = texts.filter(str.strip)
tokens = st.text(max_size=128).map(lambda text: clean(text).replace("\ufffd", ""))
nonces = st.none() | tokens | st.integers(-(2**53), 2**53)
numbers = st.integers(0, 10**15 - 1)
lengths = st.integers(1, 10**15 - 1)
ban_seconds = st.integers(0, 253402300799)  # no ban ends after the year 9999

text_requests: st.SearchStrategy[WireRequest] = st.one_of(
    st.builds(Say, texts),
    st.builds(Act, visible_texts),
    st.builds(Direct, numbers | names.filter(lambda name: not name.isdecimal()), visible_texts),
    st.builds(Rename, names),
    st.builds(Join, names),
    st.builds(Ping, tokens),
    st.builds(History, st.integers(1, 10**15 - 1)),
    st.builds(Who, names),
    st.builds(Exit, names),
    st.builds(Register, visible_texts),
    st.builds(Login, names, visible_texts),
    st.builds(ChangePassphrase, visible_texts),
    st.builds(Unban, names),
    st.builds(Announce, visible_texts),
    st.sampled_from([Who(), Rooms(), Help(), Quit(), Logout(), Bans(), SetTopic()]),
)

BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "nonce": nonces,
    "token": tokens,
    "text": texts,
    "limit": st.integers(1, 10**15 - 1),
}
BY_TYPE: dict[object, st.SearchStrategy[Any]] = {
    str: tokens,
    Name: tokens.filter(lambda name: len(name) <= MAX_DECOMPOSED),
    str | None: st.none() | tokens,
    int: numbers,
    Annotated[int, msgspec.Meta(ge=0)]: numbers,
    Annotated[int, msgspec.Meta(ge=0, le=2**53)]: numbers,
    Passphrase: tokens,
    Topic: tokens,
    list[BanInfo]: st.lists(
        st.builds(BanInfo, tokens, st.none() | ban_seconds, tokens), max_size=3
    ),
    dict[Name, RoomState] | None: st.none()
    | st.dictionaries(
        tokens, st.builds(RoomState, numbers, st.none() | tokens, tokens), max_size=3
    ),
    int | str: numbers | tokens,
    bool: st.booleans(),
    bool | None: st.none() | st.booleans(),
    float | None: st.none() | st.floats(0, 3600),
    Limits: st.builds(Limits, lengths, lengths),
    list[MemberName]: st.lists(st.builds(MemberName, numbers, names), max_size=3),
    list[RoomSize]: st.lists(st.builds(RoomSize, names, numbers), max_size=3),
    list[Said]: st.lists(st.builds(Said, name=names, text=texts, act=st.booleans()), max_size=3),
}


def any_of(union: Any) -> st.SearchStrategy[Any]:
    """Every type of *union*, with anything clean in every field."""
    return st.sampled_from(get_args(union)).flatmap(
        lambda kind: st.builds(
            kind,
            **{
                field.name: BY_NAME[field.name] if field.name in BY_NAME else BY_TYPE[field.type]
                for field in msgspec.structs.fields(kind)
            },
        )
    )


json_requests = any_of(WireRequest)
events = any_of(WireEvent)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters()),  # lone surrogates too, which are written as escapes
        st.sampled_from(["say", "act", "direct", "who", "said", "welcome", "error", 10**400]),
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "text", "to", "name", "nonce", "members", "limits"])
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@st.composite
def hostile_lines(draw: st.DrawFn) -> str:
    """A line that is JSON, or nearly, or anything."""
    line = draw(
        st.one_of(
            json_values.map(json.dumps),
            json_values.map(lambda value: json.dumps(value, separators=(",", ":"))),
            json_requests.map(JSON.encode_request),
            events.map(lambda event: JSON.encode(event).decode()[:-1]),
            st.text(min_size=1),
        )
    )
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(line)))
        stop = draw(st.integers(start, min(start + 3, len(line))))
        put = draw(st.sampled_from(["", '"', "\\", "\\u001b", "\\ud800", "{", "}", "9" * 20, "\t"]))
        line = line[:start] + put + line[stop:]
    return clean(line) or SPOILT


# --- The text protocol
# -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "requests"),
    [
        (["hello", "again"], [SayBlock("hello\nagain")]),
        (["//usr is full", "ok"], [SayBlock("/usr is full\nok")]),
        (["///x"], [SayBlock("//x")]),
        (["//"], [SayBlock("/")]),
        (["a/b", "c"], [SayBlock("a/b\nc")]),
        ([" /usr/bin is full"], [SayBlock(" /usr/bin is full")]),
        (["a", "/ping", "b", "c"], [SayBlock("a"), Ping(), SayBlock("b\nc")]),
        (["/quit", "lost"], [Quit(), SayBlock("lost")]),
        (["/help"], [Help()]),
        (["/HELP me"], [Help()]),
        (["/who", "/Who den", "/names #den"], [Who(), Who("den"), Who("den")]),
        (["/rooms"], [Rooms()]),
        (["/ping 1 2 "], [Ping("1 2 ")]),
        (["/ping\tx"], [Ping("x")]),
        (["/ping " + "x" * 128], [Ping("x" * 128)]),
        (["/ping " + "x" * 129], [invalid("a token has at most 128 characters")]),
        (["/name alice"], [Rename("alice")]),
        (["/NICK  alice "], [Rename("alice")]),
        (["/name alice cooper"], [Rename("alice cooper")]),  # the check of names refuses it
        (["/join kitchen"], [Join("kitchen")]),
        (["/me waves"], [Act("waves")]),
        (["/me  waves "], [Act(" waves ")]),
        (["/msg bob hi there"], [Direct("bob", "hi there")]),
        (["/msg bob  hi "], [Direct("bob", " hi ")]),
        (["/msg 7 hi"], [Direct(7, "hi")]),
        (["/msg 007 hi"], [Direct(7, "hi")]),
        (["/msg Client 7 hi"], [Direct(7, "hi")]),
        (["/MSG  client\t7 hi"], [Direct(7, "hi")]),
        (["/msg Client 7 8 9"], [Direct(7, "8 9")]),
        (["/msg 999999999999999 hi"], [Direct(999999999999999, "hi")]),
        (["/msg 9999999999999999 hi"], [Direct("9999999999999999", "hi")]),
        (["/name"], [invalid("usage: /name NAME")]),
        (["/Nick "], [invalid("usage: /nick NAME")]),
        (["/join"], [invalid("usage: /join ROOM")]),
        (["/me \t"], [Act("\t")]),
        (["/msg"], [invalid("usage: /msg WHO TEXT")]),
        (["/msg bob"], [invalid("usage: /msg WHO TEXT")]),
        (["/msg Client 7 "], [invalid("usage: /msg WHO TEXT")]),
        (["/join #kitchen", "/j ##kitchen"], [Join("kitchen"), Join("kitchen")]),
        (["/part", "/leave #kitchen bye"], [Join("lobby"), Exit("kitchen")]),
        (["/list", "/exit"], [Rooms(), Quit()]),
        (["/msg @bob hi", "/query bob: hi"], [Direct("bob", "hi"), Direct("bob", "hi")]),
        (["/msg @Client 7 hi", "/w @7 hi"], [Direct(7, "hi"), Direct(7, "hi")]),
        (["/m bob  hi", "/tell bob hi"], [Direct("bob", " hi"), Direct("bob", "hi")]),
        (["/msg @ hi"], [invalid("usage: /msg WHO TEXT")]),
        (["/query bob"], [invalid("/query does not open a conversation; type /msg bob TEXT")]),
        (["/r hi there", "/reply ok"], [Reply("hi there"), Reply("ok")]),
        (["/r"], [invalid("usage: /r TEXT")]),
        (["/say  /msg bob hi", "/say //x"], [SayBlock(" /msg bob hi\n//x")]),
        (["/say"], [invalid("usage: /say TEXT")]),
        (["/topic x", "/topic"], [SetTopic("x"), SetTopic()]),
        (["/foo bar"], [unknown("/foo")]),
        (["/jsonx"], [unknown("/jsonx")]),
        (["/"], [unknown("/")]),
        (["/\tx"], [unknown("/")]),
        (["/" + "a" * 60_000], [unknown("/" + "a" * 39 + "…")]),
    ],
)
def test_a_text_line_is_decoded_as_a_request(lines: list[str], requests: list[Request]) -> None:
    assert list(TEXT.parse_requests("\n".join(lines))) == requests


@pytest.mark.parametrize(
    ("line", "hello"),
    [
        ("/json", Hello()),
        ("/JSON ", Hello()),
        ("/json {}", Hello()),
        ('/json\t{"protocol":1,"name":"alice","since":"?"}', Hello(1, "alice", since="?")),
        ('/json {"room":"den","protocol":2}', Hello(2, room="den")),
    ],
)
def test_lines_after_a_hello_are_decoded_as_json(line: str, hello: Hello) -> None:
    lines = ["in text", line, '{"type":"say","text":"in JSON"}', "/who", '{"type":"who"}']
    before, received, said, refused, who = TEXT.parse_requests("\n".join(lines))
    assert (before, received) == (SayBlock("in text"), hello)
    assert (said, who) == (SayBlock("in JSON"), Who())
    assert isinstance(refused, Invalid)


@pytest.mark.parametrize(
    "line",
    [
        "/json {",
        "/json 5",
        "/json []",
        '/json {"name":5}',
        '/json {"name":"\\ud800"}',
        '/json {"protocol":' + "9" * 60_000 + "}",
        '/json {"x":' + "[" * 60_000 + "]" * 60_000 + "}",
    ],
    ids=shortened,
)
def test_an_invalid_hello_is_answered_in_json(line: str) -> None:
    hello, refused, who = TEXT.parse_requests(f'{line}\n{{"type":"who"}}')
    assert (hello, who) == (Hello(), Who())
    assert isinstance(refused, Invalid)
    assert_clean(refused)


@given(st.builds(Hello, st.integers(0, 9), st.none() | names, st.none() | names))
def test_a_hello_is_encoded_and_decoded(hello: Hello) -> None:
    assert list(TEXT.parse_requests(encode_hello(hello))) == [hello]


def test_strings_in_a_hello_are_filtered() -> None:
    requests = TEXT.parse_requests('/json {"name":"\\u001b[2J","room":"\\n[Server] x"}')
    assert list(requests) == [Hello(name="␛[2J", room="␊[Server] x")]


@given(st.lists(text_requests, min_size=1))
@example([Direct("client-7", "8 9")])
@example([Act(" waves"), Say("//x"), Say(" "), Ping(" ")])
@example([Say(" /quit"), Say("\\msg bob hi"), Say("\u200b/me x"), Say("／help")])
def test_requests_survive_the_text_codec(requests: list[WireRequest]) -> None:
    assert one_by_one(TEXT.parse_requests(encode_requests(TEXT, requests))) == requests


@pytest.mark.parametrize("request_", [Say("x"), Act("x"), Direct(7, "x"), Who(), Ping("x")])
def test_nonces_are_left_out_of_the_text_protocol(request_: WireRequest) -> None:
    with_nonce = msgspec.structs.replace(request_, nonce="n")
    assert TEXT.encode_request(with_nonce) == TEXT.encode_request(request_)


@pytest.mark.parametrize(
    ("request_", "read"),
    [
        (Direct("42", "hi"), Direct(42, "hi")),
        (Direct("٤٢", "hi"), Direct(42, "hi")),
        (Direct(default_name(7), "hi"), Direct(7, "hi")),  # the same person
        (Direct(10**15, "hi"), Direct("1000000000000000", "hi")),
    ],
)
def test_events_that_the_text_protocol_cannot_express(request_: WireRequest, read: Request) -> None:
    assert list(TEXT.parse_requests(TEXT.encode_request(request_))) == [read]


@pytest.mark.parametrize("name", ["clıent", "clİent"])
def test_names_similar_to_client_are_allowed(name: str) -> None:
    assert list(TEXT.parse_requests(f"/msg {name} 7 x")) == [Direct(name, "7 x")]


def test_a_private_message_needs_a_text() -> None:
    assert list(TEXT.parse_requests("/msg Client 7")) == [invalid("usage: /msg WHO TEXT")]


commands = st.sampled_from(["/me ", "/MSG bob ", "/msg ", "/Ping", "/name ", "/who", "/", "//"])


@given(st.lists(st.builds(str.__add__, commands | st.just(""), texts), min_size=1))
def test_lines_mean_the_same_in_one_block_and_one_by_one(lines: list[str]) -> None:
    assume(not any(map(is_hello, lines)))  # what follows one is JSON
    requests = list(TEXT.parse_requests("\n".join(lines)))
    assert_clean(requests)
    alone = [request for line in lines for request in one_by_one(TEXT.parse_requests(line))]
    assert one_by_one(requests) == alone
    assert len(alone) == len(lines)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Said(name="Client 1", text="Hello"), "[Client 1] Hello"),
        (Said(name="Client 1", text="[bob] x"), "[Client 1] [bob] x"),
        (Said(name="", text="said by who does not tag"), "said by who does not tag"),
        (Said(name="", text="[not a tag"), "[not a tag"),
        (Said(name="", text="[] x"), "[] x"),
        (Said(name="", text="*"), "*"),
        (Said(name="alice", text="waves", act=True), "* alice waves"),
        (Said(name="Client 1", text="waves", act=True), "* Client 1 waves"),
        (Directed(name="alice", text="psst"), "[alice → you] psst"),
        (Directed(name="Client 7", text="psst"), "[Client 7 → you] psst"),
        (Notice("the server has to go"), "[Server] the server has to go"),
        (Goodbye("kicked"), "[Server] goodbye: kicked"),
        (Goodbye(""), "[Server] goodbye: "),
    ],
)
def test_events_are_encoded_and_decoded(event: Event, line: str) -> None:
    assert TEXT.format(event) == line
    assert TEXT.encode(event) == f"{line}\n".encode()
    assert list(TEXT.parse_events(line)) == [event]


@pytest.mark.parametrize(
    ("event", "lines"),
    [
        (
            Welcome(1, 7, "alice", "lobby", 2, Limits(9, 9), None, "multichat 1", False),
            ["you are alice in lobby; 2 are here"],
        ),
        (Joined(7, "alice"), ["alice joined"]),
        (Joined(7, "alice", "den", 3), ["alice joined"]),
        (Entered("den", 1), ["you are in den; nobody else is here"]),
        (Entered("den", 3, topic="stew"), ["you are in den; 3 are here", "topic: stew"]),
        (Left(7, "alice", ""), ["alice left"]),
        (Left(7, "alice", "too slow"), ["alice left (too slow)"]),
        (Renamed(7, "Client 7", "alice"), ["Client 7 is now alice"]),
        (Presence(20, 0, 3, 17), ["20 joined, 3 renamed; 17 are here"]),
        (Presence(0, 30, 0, 1), ["30 left; nobody else is here"]),
        (Missed(1), ["1 message skipped"]),
        (Missed(14), ["14 messages skipped"]),
        (
            Members("den", [MemberName(1, "alice"), MemberName(2, "Client 2")]),
            ["2 in den:", "1 alice", "2 Client 2"],
        ),
        (
            RoomList([RoomSize("lobby", 2), RoomSize("den", 1)]),
            ["rooms and their members:", "lobby 2", "den 1"],
        ),
        (Pong(""), ["pong"]),
        (Pong("42"), ["pong 42"]),
        (Error("name-taken", "the name 'alice' is taken", nonce=1), ["the name 'alice' is taken"]),
        (Accepted(id="a-1000000000", nonce=1), []),
    ],
)
def test_events_of_the_server_are_described_in_words(event: Event, lines: list[str]) -> None:
    assert TEXT.describe(event) == lines
    assert TEXT.encode(event) == "".join(f"[Server] {line}\n" for line in lines).encode()


@given(
    st.builds(Said, name=names | st.builds(default_name, numbers), text=texts, act=st.booleans())
)
def test_messages_survive_the_text_codec(said: Said) -> None:
    assert list(TEXT.parse_events(TEXT.format(said))) == [said]


@given(st.builds(Directed, name=names | st.builds(default_name, numbers), text=texts))
def test_private_messages_survive_the_text_codec(directed: Directed) -> None:
    assert list(TEXT.parse_events(TEXT.format(directed))) == [directed]


tags = st.sampled_from(["", "[Client 7] ", "[alice → you] ", "* alice ", "[Server] goodbye: "])


@given(st.lists(st.builds(str.__add__, tags, texts), min_size=1))
@example(["* Client 7", "* ", "[Server] ", "[a]", "[Server → you] x", "[ → you] x"])
def test_any_line_is_an_event_and_formatted_unchanged(lines: list[str]) -> None:
    assert [TEXT.format(event) for event in TEXT.parse_events("\n".join(lines))] == lines


@given(st.lists(texts, min_size=1), names | st.builds(default_name, numbers), st.booleans())
def test_a_publish_is_one_tagged_line_for_each_message(
    said: list[str], name: str, act: bool
) -> None:
    wire = TEXT.encode_said(SaidBlock("e", 0, "", "lobby", 1, name, "\n".join(said), act=act))
    block = decoded(wire)
    assert list(TEXT.parse_events(block)) == [Said(name=name, text=text, act=act) for text in said]
    assert len(wire) >= len(said) * TEXT.least_said_bytes + len("\n".join(said))


def test_help_names_every_command_and_fits_60_columns() -> None:
    lines = encoded_help(TEXT).decode().splitlines()
    assert all(line.startswith("[Server] ") and len(line) <= 60 for line in lines)
    requests: list[WireRequest] = [
        *(Say("/TEXT"), Act("x"), Direct(1, "x"), Rename("x"), Join("x")),
        *(Who(), Rooms(), History(), Ping(), Help(), Quit(), Enter("x"), Exit("x")),
        *(Register("x"), Login("x", "y"), Logout(), ChangePassphrase("x"), SetTopic("x")),
        *(Kick("x"), Ban("x"), Unban("x"), Bans(), Announce("x")),
    ]
    assert {type(request) for request in requests} == set(get_args(WireRequest))
    for request in requests:
        command = TEXT.encode_request(request).split()[0]
        assert any(command in line.split() for line in lines), command
    notices = list(JSON.parse_events(decoded(encoded_help(JSON, 7))))
    assert notices == [Notice(line.removeprefix("[Server] "), nonce=7) for line in lines]


# --- The JSON protocol
# -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "requests"),
    [
        (['{"type":"say","text":"hello"}'], [SayBlock("hello")]),
        (['{"text":"hello","type":"say"}'], [SayBlock("hello")]),
        ([' {"type" : "say", "text": "hello", "mood": {"glad": [1]}} '], [SayBlock("hello")]),
        (
            ['{"type":"say","text":"a"}', '{"type":"say","text":"b","nonce":7}'],
            [SayBlock("a\nb", (None, 7))],
        ),
        (
            ['{"type":"say","text":"a"}', '{"type":"who"}', '{"type":"say","text":"b"}'],
            [SayBlock("a"), Who(), SayBlock("b")],
        ),
        (
            ['{"type":"say","text":"a"}', '{"type":"say","text":"","nonce":"n"}'],
            [SayBlock("a"), invalid("an empty message cannot be sent", "empty-text", "n")],
        ),
        (
            ['{"type":"act","text":""}', '{"type":"direct","to":1,"text":"\\u202e"}'],
            [invalid("an empty message cannot be sent", "empty-text")] * 2,
        ),
        (['{"type":"act","text":"waves","nonce":""}'], [Act("waves", nonce="")]),
        (['{"type":"direct","to":"bob","text":"x"}'], [Direct("bob", "x")]),
        (['{"type":"direct","to":"7","text":"x"}'], [Direct("7", "x")]),  # a name, not a number
        (['{"type":"direct","to":7,"text":"x"}'], [Direct(7, "x")]),
        (['{"type":"name","name":"alice"}'], [Rename("alice")]),
        (['{"type":"join","room":"den"}'], [Join("den")]),
        (['{"type":"ping"}', '{"type":"ping","token":"t"}'], [Ping(), Ping("t")]),
        (['{"type":"who"}', '{"type":"rooms"}', '{"type":"help"}'], [Who(), Rooms(), Help()]),
        (['{"type":"quit","nonce":-9007199254740992}'], [Quit(nonce=-(2**53))]),
        (['{"type":"\\u0077ho","nonce":null}'], [Who()]),
        (['{"type":"hello"}'], [invalid("there is no request hello", "unknown-request")]),
        (
            ['{"type":"dance","nonce":"\\u202en"}'],
            [
                invalid(
                    "not a valid request: the nonce has a character that cannot be sent back "
                    "unchanged, such as a control"
                )
            ],
        ),
        (
            ['{"type":"\\u001b' + "x" * 60_000 + '"}'],
            [invalid("there is no request ␛" + "x" * 39 + "…", "unknown-request")],
        ),
    ],
)
def test_a_json_line_is_decoded_as_a_request(lines: list[str], requests: list[Request]) -> None:
    assert list(JSON.parse_requests("\n".join(lines))) == requests


@pytest.mark.parametrize(
    "line",
    [
        "?",
        "null",
        "5",
        "9" * 60_000,
        "[]",
        '"say"',
        "{}",
        "{",
        "\\",
        "GET / HTTP/1.1",
        "\ufeff{}",
        '{"type":"who"} trailing',
        '{"type":null}',
        '{"type":5}',
        '{"type":["say"],"text":"x"}',
        '{"type":"say"}',
        '{"type":"say","text":null}',
        '{"type":"say","text":"\\ud800"}',
        '{"type":"say","text":"\\u0041\\udc00x"}',
        '{"type":"say","text":"x","text":5}',
        '{"type":"say","text":"a\tb"}',
        '{"type":"say","text":"x","nonce":9007199254740993}',
        '{"type":"say","text":"x","nonce":1.5}',
        '{"type":"say","text":"x","nonce":true}',
        '{"type":"say","text":"x","nonce":"' + "x" * 129 + '"}',
        '{"type":"ping","token":"' + "x" * 129 + '"}',
        '{"type":"direct","to":1.5,"text":"x"}',
        '{"type":"direct","to":' + "9" * 60_000 + ',"text":"x"}',
        '{"type":"who","x":NaN}',
        "[" * 65_536,
        "{" * 65_536,
        '{"a":' * 13_000,
        '{"type":"who","x":' + "[" * 65_536 + "]" * 65_536 + "}",
        '{"type":"who","e":"\\n","x":' + "[" * 65_536 + "]" * 65_536 + "}",
        '{"type":' + "[" * 65_536 + "]" * 65_536 + "}",
    ],
    ids=shortened,
)
def test_an_invalid_request_is_answered_and_affects_no_other_client(line: str) -> None:
    around = '{"type":"say","text":"before"}', '{"type":"say","text":"after"}'
    before, refused, after = JSON.parse_requests(f"{around[0]}\n{line}\n{around[1]}")
    assert (before, after) == (SayBlock("before"), SayBlock("after"))
    assert isinstance(refused, Invalid)
    assert refused.error.code == "invalid-request"
    assert len(refused.error.text) < 120
    assert_clean(refused)


@pytest.mark.parametrize(
    ("line", "nonce"),
    [
        ('{"type":"say","nonce":7}', 7),
        ('{"nonce":"n","type":"say"}', "n"),
        ('{"nonce":"\\n[Server] x","type":5}', None),
        ('{"type":"ping","token":"\\u0000","nonce":"n"}', "n"),
        ('{"nonce":"n"}', "n"),
        ('{"type":"say","text":"","nonce":0}', 0),
        ('{"type":"dance","nonce":""}', ""),
        ('{"type":"say","nonce":1.0}', None),
        ('{"type":"say","nonce":[7]}', None),
        ('{"type":"say","nonce":true}', None),
        ('{"type":"say","nonce":9007199254740993}', None),
        ('{"type":"say","nonce":"' + "n" * 129 + '"}', None),
        ('{"nonce":"n"', None),
    ],
)
def test_the_error_for_an_invalid_request_repeats_its_nonce(
    line: str, nonce: str | int | None
) -> None:
    [refused] = JSON.parse_requests(line)
    assert isinstance(refused, Invalid)
    assert refused.error.nonce == nonce


@pytest.mark.parametrize(
    ("block", "kinds"),
    [
        (" ", [Invalid]),
        ('{"type":"who"}\n\t\n{"type":"who"}', [Who, Invalid, Who]),
        ('{"type":"who"}{"type":"who"}', [Invalid]),
        ('{"type":"who"\n}', [Invalid, Invalid]),
        ('{"type":"who"}{"type":"who"\n}', [Invalid, Invalid]),
    ],
)
def test_one_line_is_one_request(block: str, kinds: list[type[Request]]) -> None:
    assert [type(request) for request in JSON.parse_requests(block)] == kinds


@pytest.mark.parametrize(
    "field",
    ['"x":1e999', '"x":' + "9" * 5000, '"x":' + "[" * 31 + "]" * 31],
    ids=shortened,
)
@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        ("plain", "plain"),
        ("\\n", "␊"),
    ],
)
def test_unknown_fields_are_ignored_whatever_is_escaped(
    escaped: str, text: str, field: str
) -> None:
    line = f'{{"type":"say","text":"{escaped}",{field}}}'
    assert list(JSON.parse_requests(line)) == [SayBlock(text)]


NESTED = [
    pytest.param("[" * 31 + "]" * 31, False, id="32 levels"),
    pytest.param("[" * 32 + "]" * 32, True, id="33 levels"),
    pytest.param("[" * 900 + "]" * 900, True, id="901 levels"),
    pytest.param('{"a":[' * 16 + "]}" * 16, True, id="arrays and objects"),
    pytest.param("[" * 32 + "9" * 100, True, id="not closed"),
    pytest.param("[" + "[[]]," * 500 + "[]]", False, id="wide"),
    pytest.param('"' + "[{" * 500 + '"', False, id="in a string"),
    pytest.param('"' + r"\"[{\\\" " * 500 + '"', False, id="in a string with escaped quotes"),
]


def at_depth(frames: int, act: Callable[[], T]) -> T:
    """Return what *act* does with so many more frames on Python's stack."""
    return act() if frames == 0 else at_depth(frames - 1, act)


@pytest.mark.parametrize("frames", [0, 300, 600, 800])
@pytest.mark.parametrize(
    "beside",
    [
        "",
        '{"type":"who"}\n',
        "no json\n",
        '{"type":"who","x":"\\n"}\n',
        '{"type":"who","x":"[{[{"}\n' * 40,
    ],
)
@pytest.mark.parametrize(("value", "too_deep"), NESTED)
def test_the_nesting_limit_does_not_depend_on_the_stack(
    value: str, too_deep: bool, beside: str, frames: int
) -> None:
    refusal = "that is nested too deeply: at most 32 levels"
    request, event = f'{{"type":"who","x":{value}}}', f'{{"type":"pong","token":"","x":{value}}}'

    *_, read = at_depth(frames, lambda: list(JSON.parse_requests(beside + request)))
    assert read == invalid(refusal) if too_deep else read != invalid(refusal)
    *_, told = at_depth(frames, lambda: list(JSON.parse_events(beside + event)))
    assert told == (Said(name="", text=event) if too_deep else Pong(""))
    *_, hello = at_depth(frames, lambda: list(TEXT.parse_requests(f'/json {{"x":{value}}}')))
    assert hello == invalid(refusal) if too_deep else hello == Hello()


@pytest.mark.parametrize("field", ["name", "room"])
def test_an_event_with_a_name_that_is_too_long_is_left_out(field: str) -> None:
    for length in (128, 129):
        said = JSON.encode(Said(name="x", room="x", text="hi")).decode().rstrip("\n")
        said = said.replace(f'"{field}":"x"', f'"{field}":"{"é" * length}"')
        assert len(list(JSON.parse_events(said))) == (length == 128)
        tagged = list(TEXT.parse_events(f"[{'é' * length}] hi"))
        assert (tagged[0] == Said(name="é" * length, text="hi")) == (length == 128)


@given(st.lists(json_requests, min_size=1))
@example([Say("0"), Say("0", room="")])
def test_requests_survive_the_json_codec(requests: list[WireRequest]) -> None:
    read = list(JSON.parse_requests(encode_requests(JSON, requests)))
    assert one_by_one(read) == requests
    for one, next_one in pairwise(read):
        if isinstance(one, SayBlock) and isinstance(next_one, SayBlock):
            assert one.room != next_one.room


@given(st.lists(events, min_size=1))
def test_events_survive_the_json_codec(sent: list[Event]) -> None:
    wire = b"".join(map(JSON.encode, sent))
    block = decoded(wire)
    assert list(JSON.parse_events(block)) == sent
    assert all(line.startswith('{"type":"') for line in block.split("\n"))


# An event with a longer name is dropped.
@given(st.text(max_size=MAX_DECOMPOSED), st.booleans())
@example("\x1b[2J\n[Server] x\u202e\x9b\x00\x7f\u2028\r", True)
@example("\U0001f600", True)
@example("\\n", False)
def test_every_string_in_json_goes_through_the_filter(raw: str, escaped: bool) -> None:
    direct = {"type": "direct", "to": raw, "text": f"x{raw}"}
    line = json.dumps(direct, ensure_ascii=escaped)
    read = [Direct(clean(raw), clean(f"x{raw}"))]
    assert list(JSON.parse_requests(clean(line))) == read
    members = {"type": "members", "room": raw, "members": [{"client": 1, "name": raw}]}
    line = json.dumps(members, ensure_ascii=escaped)
    told = [Members(clean(raw), [MemberName(1, clean(raw))])]
    assert list(JSON.parse_events(clean(line))) == told


def repeated_in(request: Request, field: str) -> object:
    """Return the *field* that the answer to *request* repeats; None if it was refused."""
    match request:
        case SayBlock(nonces=[nonce]):
            return nonce
        case Ping(token=token) if field == "token":
            return token
        case Invalid(error=error):
            return error.nonce
    return getattr(request, field)


odd_values = (
    st.text(st.characters(exclude_categories=()), max_size=140)  # surrogates, too
    | st.text(
        'a\x00\n\x1b\x7f\x9b\u2028\u202e\u2066\ufeff\ufffd\ud800\udc00␀é\U0001f600"\\', max_size=5
    )
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)
)


@given(
    odd_values,
    st.sampled_from([{"type": "say", "text": "x"}, {"type": "rooms"}, {"type": "dance"}]),
    st.booleans(),
    st.booleans(),
)
@example("\x00", {"type": "rooms"}, False, True)
@example("a\u202eb", {"type": "say", "text": "x"}, False, False)
@example("a\u2028b", {"type": "say", "text": "\ufeff"}, True, False)
@example("\ufeff", {"type": "dance"}, False, False)
@example("\ud800\udc00", {"type": "say", "text": "x"}, False, True)
@example(2**53, {"type": "dance"}, False, False)
@example(2**53 + 1, {"type": "rooms"}, False, False)
def test_a_nonce_is_returned_unchanged_or_refused(
    nonce: object, request_: dict[str, str], behind_hello: bool, escaped: bool
) -> None:
    line = json.dumps({**request_, "nonce": nonce}, ensure_ascii=escaped)
    nonce = json.loads(line)["nonce"]  # an escaped pair of surrogates is one character
    wire = line.encode("utf-8", "surrogatepass")
    [block] = LineDecoder(100_000).feed((b"/json\n" if behind_hello else b"") + wire + b"\n")
    assert isinstance(block, str)
    *_, read = (TEXT if behind_hello else JSON).parse_requests(block)
    repeated = repeated_in(read, "nonce")
    assert repeated is None or (repeated == nonce and type(repeated) is type(nonce))
    if isinstance(nonce, str) and len(nonce) <= 128 and clean(nonce) == nonce:
        assert repeated == (None if "\ufffd" in nonce else nonce)


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("odd", ["\x00", "\x7f", "\x9b", "\u2028", "\u202e", "\ufeff", "\ufffd"])
def test_a_token_that_cannot_be_returned_unchanged_is_refused(odd: str, escaped: bool) -> None:
    line = json.dumps({"type": "ping", "token": f"a{odd}", "nonce": 1}, ensure_ascii=escaped)
    [block] = LineDecoder(1000).feed(f"{line}\n".encode())
    assert isinstance(block, str)
    assert list(JSON.parse_requests(block)) == [
        invalid(
            "not a valid request: the token has a character that cannot be sent back unchanged, "
            "such as a control",
            nonce=1,
        )
    ]


def test_a_nonce_is_exact_when_the_filter_changes_other_fields() -> None:
    lines = ['\ufeff{"type":"say","text":"a\u202eb\x1b","nonce":"n"}', "\ufeff", '{"type":"rooms"}']
    [block] = LineDecoder(1000).feed("\n".join([*lines, ""]).encode())
    assert isinstance(block, str)
    assert list(JSON.parse_requests(block)) == [SayBlock("ab␛", ("n",)), Rooms()]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (r'"\ud83d"', r"\ud83d is half of a surrogate pair, the other half is missing"),
        (r'"\\\ude00x"', r"\ude00 is half of a surrogate pair, the other half is missing"),
        (r'"\ud83dA"', r"\ud83d is half of a surrogate pair, the other half is missing"),
        (r'"\ud83d\u0041"', r"\ud83d is half of a surrogate pair, the other half is missing"),
        (r'"\ud83d\ude00"', None),
        ('"x', "Input data was truncated"),
        ("9007199254740993", NO_NONCE),
        ("-9007199254740993", NO_NONCE),
        ("1" * 5000, NO_NONCE),
        ("1.5", NO_NONCE),
        ("1e400", NO_NONCE),
        ("true", NO_NONCE),
        ("[1]", NO_NONCE),
        ("{}", NO_NONCE),
        (f'"{"x" * 129}"', NO_NONCE),
        ("null", None),
        ("-9007199254740992", None),
    ],
)
def test_an_invalid_nonce_is_an_error_with_the_reason(value: str, reason: str | None) -> None:
    [read] = JSON.parse_requests(f'{{"type":"rooms","nonce":{value}}}')
    assert (read == invalid(f"not a valid request: {reason}")) == (reason is not None)


def test_half_a_surrogate_pair_is_named_in_an_unknown_request() -> None:
    [read] = JSON.parse_requests(r'{"type":"dance","nonce":"\ud83d"}')
    reason = r"\ud83d is half of a surrogate pair, the other half is missing"
    assert read == invalid(f"not a valid request: {reason}")


@given(st.lists(hostile_lines(), max_size=5), st.lists(json_requests, max_size=3))
def test_each_line_is_one_request_at_any_position(
    hostile: list[str], honest: list[WireRequest]
) -> None:
    lines = [SPOILT, *hostile, *map(JSON.encode_request, honest), *hostile]
    requests = list(JSON.parse_requests("\n".join(lines)))
    assert_clean(requests)
    alone = one_by_one(
        request
        for line in lines
        for request in [*JSON.parse_requests(f"{SPOILT}\n{line}")][1:]  # without the one before
    )
    assert one_by_one(requests) == alone
    assert len(alone) == len(lines)
    middle = alone[1 + len(hostile) : len(lines) - len(hostile)]
    assert middle == honest


@given(st.lists(hostile_lines(), min_size=1))
def test_a_client_survives_anything_that_a_server_sends(lines: list[str]) -> None:
    for codec in CODECS:
        told = list(codec.parse_events("\n".join(lines)))
        assert all(isinstance(event, get_args(Event)) for event in told)
        assert_clean(told)


@given(st.binary(max_size=300) | st.lists(hostile_lines()).map(lambda x: "\n".join(x).encode()))
@example(b'{"type":"say","text":"\xff\xfe\xed\xa0\x80"}\n')
@example(b'{"type":"say","text":"\x00\x1b\r\r\n')
def test_any_bytes_are_decoded_by_both_codecs(data: bytes) -> None:
    decoder = LineDecoder(100)
    for block in decoder.feed(data) + decoder.finish():
        if isinstance(block, str):
            for codec in CODECS:
                requests = list(codec.parse_requests(block))
                one_by_one(requests)
                assert_clean([requests, list(codec.parse_events(block))])


WELCOME = (
    JSON.encode(Welcome(1, 7, "alice", "lobby", 2, Limits(65536, 32), None, "x", resumed=False))
    .decode()
    .rstrip()
)
MISSED = JSON.encode(Missed(3)).decode().rstrip()


@pytest.mark.parametrize("number", [0, -5, 2**60, 10**399], ids=["0", "-5", "2^60", "400 digits"])
def test_an_event_with_an_impossible_number_is_left_out(number: int) -> None:
    changed = WELCOME.replace("65536", str(number)), WELCOME.replace('e":32', f'e":{number}')
    assert all(line != WELCOME and not list(JSON.parse_events(line)) for line in changed)
    missed = MISSED.replace("3", str(number))
    assert len(list(JSON.parse_events(missed))) == (number == 0)


@pytest.mark.parametrize("seconds", ["1e30", "-1", "1e400", "9" * 400])
def test_a_ban_of_impossible_length_is_left_out(seconds: str) -> None:
    line = f'{{"type":"bans","bans":[{{"what":"name bob","seconds":{seconds}}}]}}'
    assert list(JSON.parse_events(line)) == []


@pytest.mark.parametrize(
    ("line", "events"),
    [
        ('{"type":"notice","text":"\\u001bx"}', [Notice("␛x")]),
        ('{"type":"missed","count":3,"why":"slow"}', [Missed(3)]),
        ('{"type":"weather","rain":true}', []),  # from a newer server
        ('{"type":"weather","text":"\\n"}', []),
        ('{"text":"of no type"}', [Said(name="", text='{"text":"of no type"}')]),
        ("[Server] goodbye: full", [Said(name="", text="[Server] goodbye: full")]),
        ("[" * 65_536, [Said(name="", text="[" * 65_536)]),
    ],
)
def test_lines_that_are_not_events_are_shown_and_unknown_events_are_not(
    line: str, events: list[Event]
) -> None:
    assert list(JSON.parse_events(line)) == events
    block = f'{{"type":"missed","count":1}}\n{line}\n{{"type":"missed","count":2}}'
    assert list(JSON.parse_events(block)) == [Missed(1), *events, Missed(2)]


@given(
    st.lists(texts, min_size=1),
    st.builds(
        SaidBlock,
        st.just("e4"),
        st.integers(0, 10**9),
        st.just("2025-01-15T10:30:45.123Z"),
        names,
        numbers,
        names | st.builds(default_name, numbers),
        st.just(""),
        st.booleans(),
    ),
)
@example(
    ['"', "\\", "\t", "\\n", "é", "a\u2029b"], SaidBlock("e", 0, "", "r", 1, "n", "", act=True)
)
def test_a_publish_is_one_object_a_line_for_each_message(said: list[str], block: SaidBlock) -> None:
    said = [clean(text) for text in said]
    wire = JSON.encode_said(msgspec.structs.replace(block, text="\n".join(said)))
    lines = decoded(wire)
    shown = [("act", True)] if block.act else []
    assert [json.loads(line, object_pairs_hook=list) for line in lines.split("\n")] == [
        [
            ("type", "said"),
            ("id", message_id(block.epoch, block.first + number)),
            ("time", block.time),
            ("room", block.room),
            ("client", block.client),
            ("name", block.name),
            ("text", text),
            *shown,
        ]
        for number, text in enumerate(said)
    ]
    assert list(JSON.parse_events(lines)) == [
        Said(
            id=message_id(block.epoch, block.first + number),
            timestamp=block.time,
            room=block.room,
            client=block.client,
            name=block.name,
            text=text,
            act=block.act,
        )
        for number, text in enumerate(said)
    ]


def test_a_message_of_the_webhook_has_its_client_in_a_history_too() -> None:
    said = Said(id="e-1", timestamp="t", room="lobby", client=0, name="webhook", text="built")
    [message] = json.loads(JSON.encode(HistoryPage([said], more=False)))["messages"]
    live = json.loads(JSON.encode_said(SaidBlock("e", 1, "t", "lobby", 0, "webhook", "built")))
    assert message == {**live, "id": "e-1"}
    assert message["client"] == 0


@given(
    st.builds(Members, names, st.lists(st.builds(MemberName, numbers, names)))
    | st.builds(RoomList, st.lists(st.builds(RoomSize, names, numbers))),
    st.none() | st.integers(-(2**53), 2**53) | texts,
)
def test_a_nonce_is_added_to_an_encoded_answer(
    answer: Members | RoomList, nonce: Nonce | None
) -> None:
    encoded = JSON.encode(msgspec.structs.replace(answer, nonce=nonce))
    assert JSON.with_nonce(JSON.encode(answer), nonce) == encoded
    assert TEXT.with_nonce(TEXT.encode(answer), nonce) == TEXT.encode(answer)


@given(texts, names, numbers, st.booleans())
@example('"\\\t é😀', "a", 1, False)
def test_the_size_of_a_message_is_known_without_encoding_its_text(
    text: str, name: str, number: int, act: bool
) -> None:
    said = Said(id="e-1", room="den", client=number, name=name, text=clean(text), act=act)
    assert JSON.said_bytes(said) == len(JSON.encode(said))


def test_a_message_takes_at_least_the_documented_bytes() -> None:
    time = "2025-01-15T10:30:45.123Z"
    for act in (False, True):
        wire = JSON.encode_said(SaidBlock("0", 0, time, "a", 1, "a", "x", act=act))
        assert len(wire) >= JSON.least_said_bytes + len("x")


@given(st.lists(texts.map(clean), min_size=1), texts.map(clean), st.booleans())
@example(['"\\\t', "\\n", ""], '"\\', True)
def test_every_string_of_a_block_is_escaped(lines: list[str], field: str, act: bool) -> None:
    said = SaidBlock(field, 7, field, field, 1, field, "\n".join(lines), act=act)
    messages = [json.loads(line) for line in JSON.encode_said(said).splitlines()]
    assert [message["text"] for message in messages] == lines
    assert {message[key] for message in messages for key in ("time", "room", "name")} == {field}
    assert messages[0]["id"] == message_id(field, 7)


@given(st.integers(0, 10**9), st.integers(1, 10**9))
@example(0, 1)
@example(999, 1)
@example(8_999_999_998, 1)
def test_ids_increase_as_strings_do(number: int, step: int) -> None:
    assert message_id("e", number) < message_id("e", number + step)
