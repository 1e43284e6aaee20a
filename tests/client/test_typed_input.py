"""The meaning of typed lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.client.typed_input import LocalCommand, Typed, parse_typed, room_command
from multichat.protocol.messages import Act, Direct, Hello, Invalid, Quit, SayBlock, Who

pytestmark = pytest.mark.unit

LOCAL = ("/quit", "/status")


def test_messages_between_two_commands_are_one_block() -> None:
    assert parse_typed("one\n//usr\n/who\n/me waves\ntwo") == [
        Typed("one\n//usr", SayBlock("one\n/usr")),
        Typed("/who", Who()),
        Typed("/me waves", Act("waves")),
        Typed("two", SayBlock("two")),
    ]


def test_local_commands_are_those_of_the_front_end() -> None:
    requests = [typed.request for typed in parse_typed("/exit\n/STATUS now\n/clear", LOCAL)]
    assert requests[:2] == [LocalCommand("/quit", ""), LocalCommand("/status", "now")]
    assert isinstance(requests[2], Invalid)
    assert parse_typed("/quit") == [Typed("/quit", Quit())]


def test_quit_with_an_argument_is_a_mistake() -> None:
    [typed] = parse_typed("/quit smoking", LOCAL)
    assert isinstance(typed.request, Invalid)


def test_a_hello_is_recognized() -> None:
    assert parse_typed('/json {"protocol":1}') == [Typed('/json {"protocol":1}', Hello())]


def test_in_a_pipe_a_path_is_a_message_and_a_disguised_command_is_not_sent() -> None:
    assert parse_typed("/usr/bin is full\n /msg bob psst\n/msg bob psst", piped=True) == [
        Typed("/usr/bin is full", SayBlock("/usr/bin is full")),
        Typed(" /msg bob psst", None),
        Typed("/msg bob psst", Direct("bob", "psst")),
    ]


@given(st.lists(st.sampled_from(["a", "//b", "/who", " /msg x y"]), min_size=1), st.integers(1, 9))
def test_pieces_have_the_same_lines(lines: list[str], most_lines: int) -> None:
    typed = parse_typed("\n".join(lines), piped=True)
    pieces = [piece for each in typed for piece in each.split(most_lines)]
    assert "\n".join(piece.lines for piece in pieces) == "\n".join(lines)
    assert all(piece.line_count <= most_lines for piece in pieces)
    for piece in pieces:
        if isinstance(piece.request, SayBlock):
            assert piece.request.text.count("\n") == piece.lines.count("\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/join #ops", ("/join", "ops")),
        ("/J ops", ("/join", "ops")),
        ("/leave", ("/part", "")),
        ("/part  부엌 ", ("/part", "부엌")),
        ("//join ops", ("", "ops")),
        ("join ops", ("", "")),
    ],
)
def test_commands_about_rooms_are_recognized(line: str, expected: tuple[str, str]) -> None:
    assert room_command(line) == expected
