"""Breaking lines into the rows of a terminal: words, widths, and rows that cannot imitate lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.terminal.columns import Fragments, columns_of
from multichat.terminal.wrap import wrap

pytestmark = pytest.mark.unit


def rows(text: str, columns: int) -> list[str]:
    return [plain(row) for row in wrap([("", text)], columns)]


def plain(row: Fragments) -> str:
    return "".join(text for _, text in row)


def test_a_line_that_fits_stays_as_it_is() -> None:
    line = [("a", "10:30 "), ("b", "bob"), ("", "  two  spaces ")]
    assert wrap(line, 24) == [line]


def test_a_line_breaks_at_words_and_the_next_rows_are_indented() -> None:
    assert rows("10:30 bob  one two three four five", 20) == [
        "10:30 bob  one two",
        "     three four five",
    ]


@pytest.mark.parametrize(("columns", "indent"), [(80, 8), (32, 8), (20, 5), (8, 2), (4, 1)])
def test_the_indent_leaves_room_on_a_narrow_terminal(columns: int, indent: int) -> None:
    for row in rows("x" * 200, columns)[1:]:
        assert len(row) - len(row.lstrip()) == indent


def test_a_word_longer_than_a_row_breaks_anywhere() -> None:
    url = "https://example.org/" + "path/" * 12
    broken = rows(f"10:30 bob  see {url} there", 40)
    assert broken[0] == f"10:30 bob  see {url[:25]}"
    assert "".join(row.strip() for row in broken) == f"10:30 bob  see {url} there"


def test_a_word_that_fits_in_the_next_row_is_not_broken() -> None:
    assert rows("10:30 bob  see https://example.org/", 32)[1] == "        https://example.org/"


def test_padding_with_spaces_forges_no_line() -> None:
    padded = "10:30 bob  hello" + " " * 64 + "18:11 · alice left (kicked)"
    assert rows(padded, 80) == ["10:30 bob  hello", "        18:11 · alice left (kicked)"]


def test_spaces_alone_take_one_row() -> None:
    assert rows("10:30 bob  " + " " * 5000, 80) == ["10:30 bob"]
    assert rows("10:30 bob  " + "\u3000\u00a0" * 5000 + "x", 80) == ["10:30 bob", "        x"]


def test_chinese_breaks_between_characters_and_korean_between_words() -> None:
    assert rows("10:30 bob  这是一个很长的句子", 18) == ["10:30 bob  这是一", "    个很长的句子"]
    assert rows("10:30 bob  안녕하세요 여러분", 22) == ["10:30 bob  안녕하세요", "     여러분"]


def test_marks_and_emoji_stay_whole() -> None:
    accented = "e\u0301" * 30
    assert [row.strip() for row in rows(accented, 10)] == [
        "e\u0301" * 10,
        *["e\u0301" * 8] * 2,
        "e\u0301" * 4,
    ]
    for row in rows("❤\ufe0f" * 40, 11):
        assert not row.strip().startswith("\ufe0f")
        assert not row.endswith("❤")


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("abc", 3),
        ("안녕", 4),
        ("e\u0301", 1),
        ("👋", 2),
        ("❤\ufe0f", 2),  # one column to some terminals
        ("\U0001fae9", 2),  # newer than some tables
        ("दीप", 3),
        ("\u200b\u00ad", 2),
        ("ᄒ\u1161\u11ab", 4),  # two where jamo are joined
    ],
)
def test_ambiguous_characters_count_as_wide(text: str, columns: int) -> None:
    assert columns_of(text) == columns


def test_styles_stay_with_their_text() -> None:
    line = [("dim", "10:30 "), ("name", "bob"), ("", "  hello "), ("hit", "alice"), ("", ", hi")]
    assert wrap(line, 20) == [
        [("dim", "10:30 "), ("name", "bob"), ("", "  hello")],
        [("", "     "), ("hit", "alice"), ("", ", hi")],
    ]


@given(
    st.lists(st.tuples(st.sampled_from(["", "bold"]), st.text(max_size=80)), max_size=4),
    st.integers(2, 90),
)
def test_any_text_fits_and_loses_only_white_space(
    line: list[tuple[str, str]], columns: int
) -> None:
    broken = wrap(line, columns)
    assert (
        "".join(plain(broken[0]).split())
        == "".join(plain(line).split())[: len("".join(plain(broken[0]).split()))]
    )
    assert "".join("".join(map(plain, broken)).split()) == "".join(plain(line).split())
    for number, row in enumerate(broken):
        # Who writes nothing but selectors gets rows that no terminal fills.
        assert columns_of(plain(row).replace("\ufe0f", "")) <= columns
        assert not number or columns < 4 or plain(row).startswith(" ")


@given(st.text(max_size=200))
def test_a_terminal_of_width_zero_is_not_an_error(text: str) -> None:
    assert "".join("".join(rows(text, 1)).split()) == "".join(text.split())
