"""The input line, without a terminal: every key of prompt_toolkit's, pastes and questions."""

from collections.abc import Iterator

import pytest
from prompt_toolkit.key_binding.defaults import load_key_bindings

from tests.support.keyboard import Keyboard

pytestmark = pytest.mark.unit

TEXT = "some typed words"


def holds(text: str, letters: str) -> bool:
    """Return whether *letters* are in *text*, in order."""
    rest = iter(text)
    return all(letter in rest for letter in letters)


def default_sequences() -> Iterator[tuple[str, ...]]:
    """Return every sequence of keys that does something by default, whatever its condition."""
    for binding in load_key_bindings().bindings:
        names = tuple(str(getattr(key, "value", key)) for key in binding.keys)
        yield tuple("x" if name == "<any>" else name for name in names)


NO_KEYS = {"<sigint>", "<bracketed-paste>", "<cursor-position-response>", "<vt100-mouse-event>",
           "<windows-mouse-event>", "<scroll-up>", "<scroll-down>"}  # fmt: skip
SEQUENCES = sorted({each for each in default_sequences() if not NO_KEYS.intersection(each)})


@pytest.mark.parametrize("sequence", SEQUENCES, ids="+".join)
@pytest.mark.parametrize("keyboard", [{"history": ["an old line", "another"]}], indirect=True)
def test_no_key_discards_typed_text(sequence: tuple[str, ...], keyboard: Keyboard) -> None:
    keyboard.type(TEXT)
    keyboard.press("left", "left", *sequence)
    found = keyboard.sent()
    # It was sent, is there, or can be brought back: by undoing, by yanking, or in the history.
    undo, yank = [("c-_",)] * 3, [("c-y",), ("escape", "y")]
    for keys in ((), *undo, *yank, ("escape", ">")):
        keyboard.press(*keys)
        found.append(keyboard.text)
    assert any(holds(each, TEXT) for each in found), found


@pytest.mark.parametrize("sequence", SEQUENCES, ids="+".join)
def test_no_key_swallows_the_following_text(sequence: tuple[str, ...], keyboard: Keyboard) -> None:
    keyboard.press(*sequence)
    before = keyboard.text
    keyboard.sent()
    keyboard.type("2 words")
    if sequence in {("c-x",), ("escape",), ("c-q",)} or keyboard.app.layout.is_searching:
        return  # the first key of another sequence
    assert keyboard.text.endswith("2 words"), (before, keyboard.text)


@pytest.mark.parametrize("before", [(), ("c-r", "o"), ("tab",)], ids=["typing", "search", "menu"])
@pytest.mark.parametrize("keyboard", [{"history": ["an old line", "another"]}], indirect=True)
def test_after_any_key_text_is_inserted_and_enter_sends_it(
    before: tuple[str, ...], keyboard: Keyboard
) -> None:
    for sequence in SEQUENCES:
        keyboard.type("/m")
        keyboard.press("left", *before, *sequence)
        keyboard.press("x")  # ends a sequence of keys or a quoted insert
        if keyboard.app.layout.is_searching:
            keyboard.type("old")
            assert "old" in keyboard.line.search_buffer.text, sequence
            keyboard.press("escape")
        keyboard.type("next")
        assert "next" in keyboard.text, sequence
        keyboard.press("enter")
        assert "next" in keyboard.sent()[-1], sequence
        keyboard.press("end")
        keyboard.type("again")
        keyboard.press("enter")
        assert keyboard.sent()[-1].endswith("again"), sequence
        assert keyboard.text == "", sequence


def test_after_any_key_at_a_confirmation_the_line_can_be_edited_and_sent(
    keyboard: Keyboard,
) -> None:
    for sequence in SEQUENCES:
        keyboard.type(" /me waves")
        keyboard.press("enter", *sequence)
        assert all(line in ("/me waves", "/say  /me waves") for line in keyboard.sent()), sequence
        keyboard.press("x")  # ends a sequence of keys or a quoted insert
        if keyboard.app.layout.is_searching:
            keyboard.press("escape")
        keyboard.press("end", "!", "enter")
        if keyboard.question:
            assert keyboard.sent() == [], sequence
            keyboard.press("c-s")
        assert keyboard.sent()[-1].endswith("!"), sequence
        keyboard.press("c-a", "c-k")  # the line is there again after an old one


def test_an_arrow_key_with_shift_moves_the_cursor(keyboard: Keyboard) -> None:
    keyboard.type("ac")
    keyboard.press("s-left", "b", "s-home", ">", "s-end", "<", "c-s-home", "s-right", "-")
    assert keyboard.text == ">-abc<"


@pytest.mark.parametrize("key", ["enter", "c-o", "c-j"])
def test_sending_keys_send(key: str, keyboard: Keyboard) -> None:
    keyboard.type(TEXT)
    keyboard.press(key)
    assert (keyboard.sent(), keyboard.text) == ([TEXT], "")


def test_escape_and_a_digit_is_not_a_numeric_argument(keyboard: Keyboard) -> None:
    keyboard.press("escape")
    keyboard.type("2024 was a year")
    assert keyboard.text == "2024 was a year"


@pytest.mark.parametrize("keyboard", [{"history": ["old words", "newer"]}], indirect=True)
def test_an_unfinished_line_returns_after_an_old_one_was_sent(keyboard: Keyboard) -> None:
    keyboard.type("half a sentence")
    keyboard.press("escape", "<", "enter")
    assert keyboard.sent() == ["old words"]
    assert keyboard.text == "half a sentence"
    keyboard.press("c-a", "c-k")
    keyboard.type("old")  # the prefix by which an old line is found is not a line
    keyboard.press("escape", "<", "enter")
    assert keyboard.text == ""


# --- What looks like a command ----------------------------------------------------------------


ASKED = "looks like /msg: Enter again runs it, Ctrl+S sends it to everybody in den, or edit it"
PASTED = "{}: Ctrl+S sends them to everybody in den, Esc discards them (Ctrl+Y brings them back)"


@pytest.mark.parametrize(
    "line", [" /msg bob secret", "\u200b/msg bob secret", "／msg bob secret", "\\msg bob secret"]
)
def test_a_disguised_command_needs_confirmation(line: str, keyboard: Keyboard) -> None:
    keyboard.type(line)
    keyboard.press("enter")
    assert (keyboard.question, keyboard.text, keyboard.sent()) == (ASKED, line, [])
    keyboard.press("enter")
    assert (keyboard.question, keyboard.text) == ("", "")
    assert keyboard.sent() == ["/msg bob secret"]
    keyboard.type(line)
    keyboard.press("enter", "escape")
    assert (keyboard.question, keyboard.text) == ("", line)
    keyboard.press("enter", "c-s")
    assert (keyboard.question, keyboard.text) == ("", "")
    assert keyboard.sent() == [f"/say {line}"]


ORDINARY = [chr(code) for code in range(0x20, 0x7F)]


@pytest.mark.parametrize("key", [*ORDINARY, "é", "enter", "c-j", "c-o", "tab", "left"])
def test_no_ordinary_key_confirms_or_is_swallowed(key: str, keyboard: Keyboard) -> None:
    typed = key if len(key) == 1 else ""
    keyboard.type(" /msg bob secret")
    keyboard.press("enter", key)
    assert keyboard.sent() in ([], ["/msg bob secret"])
    if typed:
        assert (keyboard.question, keyboard.text) == ("", f" /msg bob secret{typed}")
    keyboard.press("c-a", "c-k")
    keyboard.paste("a\nb")
    keyboard.press(key)
    assert keyboard.sent() == []
    assert (keyboard.question, keyboard.text) == (PASTED.format("2 pasted lines"), typed)


def test_typing_continues_during_a_confirmation(keyboard: Keyboard) -> None:
    keyboard.type(" /msg bob secret")
    keyboard.press("enter")
    keyboard.type("was that right?")
    keyboard.press("enter")
    assert keyboard.text == " /msg bob secretwas that right?"
    assert keyboard.question == ASKED
    keyboard.press("c-a", "c-k")
    keyboard.paste("1\n2\n3")
    for line in ("oh, hey there", "/who"):
        keyboard.type(line)
        keyboard.press("enter")
        assert (keyboard.sent(), keyboard.text) == ([line], "")
    assert keyboard.question == PASTED.format("3 pasted lines")
    keyboard.type("/msg bob ")
    keyboard.press("c-s")
    assert (keyboard.sent(), keyboard.text) == (["1", "2", "3"], "/msg bob ")
    assert keyboard.question == ""


def test_a_paste_is_sent_with_the_text_around_it(keyboard: Keyboard) -> None:
    keyboard.type("look: end")
    keyboard.press("left", "left", "left")
    keyboard.paste("a\nb\n")
    keyboard.press("enter")
    assert keyboard.sent() == []
    assert keyboard.question.startswith("3 pasted lines")
    keyboard.press("c-s")
    assert (keyboard.sent(), keyboard.text) == (["look: a", "b", "end"], "")


def test_a_discarded_paste_can_be_brought_back(keyboard: Keyboard) -> None:
    keyboard.paste("a\nb\n")
    keyboard.press("escape")
    assert (keyboard.question, keyboard.text) == ("", "")
    keyboard.press("c-y")
    assert keyboard.question == PASTED.format("2 pasted lines")
    keyboard.press("c-s")
    assert keyboard.sent() == ["a", "b"]


@pytest.mark.parametrize("line", ["/msg bob secret", " /msg bob secret", "／msg bob secret"])
def test_a_paste_that_contains_a_command_is_marked(line: str, keyboard: Keyboard) -> None:
    keyboard.paste(f"{line}\nand more")
    assert keyboard.question == PASTED.format("2 pasted lines, with /msg")
    keyboard.press("escape")
    keyboard.paste(f"/usr/bin/x\n{line}\n")
    assert keyboard.question == PASTED.format("2 pasted lines, with /msg")


def test_a_pasted_line_is_never_a_command(keyboard: Keyboard) -> None:
    lines = ["/usr/bin/python3 x.py", "/quit", " /msg bob x", "//x", "plain", "\x1b/me"]
    keyboard.paste("\n".join(lines) + "\n")
    assert keyboard.question == PASTED.format("6 pasted lines, with /quit")
    keyboard.press("c-s")
    assert keyboard.sent() == [
        "//usr/bin/python3 x.py",
        "//quit",
        "/say  /msg bob x",
        "///x",
        "plain",
        "/say ␛/me",
    ]


@pytest.mark.parametrize("command", ["/msg bob ", " /msg bob ", "/me reads "])
def test_lines_pasted_after_a_command_belong_to_it(command: str, keyboard: Keyboard) -> None:
    keyboard.type(command)
    keyboard.paste("a secret\r\nof two lines\n")
    assert keyboard.text == f"{command}a secret␊of two lines"
    assert (keyboard.question, keyboard.sent()) == ("", [])


@pytest.mark.parametrize("command", ["/r", "/reply", "/R"])
def test_the_recipient_of_a_reply_is_fixed_when_the_space_is_typed(
    command: str, keyboard: Keyboard
) -> None:
    keyboard.type(f"{command} h")
    assert keyboard.text == "/msg 7 h"
    keyboard.set_last_sender(8)
    keyboard.type("i /r x")
    keyboard.press("enter")
    assert keyboard.sent() == ["/msg 7 hi /r x"]


def test_the_recipient_of_a_pasted_reply_is_fixed_when_it_is_pasted(keyboard: Keyboard) -> None:
    keyboard.paste("/r a secret")
    keyboard.set_last_sender(8)
    assert keyboard.text == "/msg 7 a secret"


def test_a_disguised_reply_that_is_run_has_a_recipient(keyboard: Keyboard) -> None:
    keyboard.type(" /r a secret")
    keyboard.press("enter")
    keyboard.press("enter")
    assert keyboard.sent() == ["/msg 7 a secret"]


def test_a_reply_without_a_private_message_is_left_as_it_is(keyboard: Keyboard) -> None:
    keyboard.set_last_sender(None)
    keyboard.type("/r hi")
    keyboard.press("enter")
    assert keyboard.sent() == ["/r hi"]


# --- What does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("keyboard", [{"max_waiting_lines": 3}], indirect=True)
def test_input_that_cannot_be_accepted_is_kept_or_reported(keyboard: Keyboard) -> None:
    keyboard.paste("1\n2\n3\n4")
    assert keyboard.warnings.pop().startswith("not pasted: 4 lines, and the limit is 3; ")
    assert keyboard.question == ""
    for text in ("1", "2"):
        keyboard.type(text)
        keyboard.press("enter")
    keyboard.paste("a\nb")
    keyboard.press("c-s")
    assert keyboard.warnings.pop() == "not sent: 2 lines are waiting, and the limit is 3"
    assert keyboard.question.startswith("2 pasted lines: "), "it can be answered again"
    keyboard.paste("c\nd")
    assert keyboard.warnings.pop().startswith("not pasted: ")
    assert keyboard.sent() == ["1", "2"]
    keyboard.press("c-s")
    assert keyboard.sent() == ["a", "b"]
    for text in ("3", "4", "5", "6"):
        keyboard.type(text)
        keyboard.press("enter")
    assert keyboard.text == "6"
    assert len(keyboard.warnings) == 1


@pytest.mark.parametrize("keyboard", [{"history": ["old"]}], indirect=True)
def test_unsent_text_is_returned_at_the_end(keyboard: Keyboard) -> None:
    keyboard.type("one")
    keyboard.press("enter")
    keyboard.type("two")
    keyboard.press("enter")
    keyboard.type("half")
    keyboard.press("escape", "<")
    assert keyboard.line.is_begun
    assert keyboard.line.take_unsent() == ["one", "two", "old", "half"]
    assert keyboard.text == ""
    keyboard.paste("a\n/b")
    assert keyboard.line.is_begun
    assert keyboard.line.take_unsent() == ["a", "//b"]
    assert keyboard.line.take_unsent() == []


@pytest.mark.parametrize("text", ["", "half a line", " /quit"])
def test_the_last_line_closes(text: str, keyboard: Keyboard) -> None:
    keyboard.line.close_after_next()
    keyboard.type(text)
    keyboard.press("enter")
    assert keyboard.sent() == ([text] if text else [])
    assert keyboard.line.typed.statistics().open_send_channels == 0


@pytest.mark.parametrize("line", [" /auth secret", "\\auth secret", "/auth secret"])
def test_a_password_is_not_in_the_input_history(line: str, keyboard: Keyboard) -> None:
    keyboard.type(line)
    keyboard.press("enter")
    keyboard.press("enter")
    assert "secret" not in "".join(keyboard.line.buffer.history.get_strings())
