"""Framing: any bytes, split anywhere, give the same clean lines, and at most one is buffered."""

import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multichat.errors import LineTooLong
from multichat.protocol.framing import LineDecoder, clean
from tests.support.messages import cut

pytestmark = pytest.mark.unit

LIMIT = 40
TOO_LONG = "<too long>"


def decode(chunks: list[bytes], limit: int = LIMIT) -> list[str]:
    """All lines of *chunks*, with a mark in the place of each that was too long."""
    decoder = LineDecoder(limit)
    lines: list[str] = []
    parts = [part for chunk in chunks for part in decoder.feed(chunk)] + decoder.finish()
    for part in parts:
        if isinstance(part, LineTooLong):
            assert part.limit_bytes == limit
            lines.append(TOO_LONG)
        else:
            assert part, "a run of lines is never empty"
            lines += part.split("\n")
    assert decoder.buffered_bytes == 0
    return lines


# Bytes that matter to the decoder, more often than chance would have them.
noise = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [b"\n", b"\r\n", b"\r", b"\xff", b"\xff\xfa", b"\xff\xf0", b"\xff\xfb", b"\xff\xff"]
        ),
        st.text(max_size=20).map(lambda s: s.encode("utf-8", "surrogatepass")),
    ),
    max_size=20,
).map(b"".join)


@given(noise, st.lists(st.integers(min_value=0)))
@example(b"a" * LIMIT + b"\r\nb", [LIMIT, LIMIT + 1])
@example(b"a" * (LIMIT + 1) + b"\r\nb", [LIMIT + 1])
@example(b"\xff\xfa\xff\xff\xf0x\nafter", [3])
def test_lines_do_not_depend_on_how_the_input_is_split(data: bytes, cuts: list[int]) -> None:
    whole = decode([data])
    assert decode(cut(data, cuts)) == whole
    assert decode([data[i : i + 1] for i in range(len(data))]) == whole


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"]), min_size=1),
        max_size=20,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.integers(min_value=0)),
)
def test_ordinary_text_is_unchanged(lines: list[str], ending: str, cuts: list[int]) -> None:
    data = "".join(line + ending for line in lines).encode()
    assert decode(cut(data, cuts), limit=10_000) == lines


@given(noise, st.lists(st.integers(min_value=0)))
def test_at_most_one_line_within_the_limit_is_buffered(data: bytes, cuts: list[int]) -> None:
    decoder = LineDecoder(LIMIT)
    for chunk in cut(data, cuts):
        decoder.feed(chunk)
        assert decoder.buffered_bytes <= LIMIT + 1  # and the CR of its ending


@given(noise)
def test_decoded_lines_contain_no_harmful_character(data: bytes) -> None:
    for line in decode([data], limit=10_000):
        assert line
        assert clean(line) == line
        for character in line:
            assert character == "\t" or unicodedata.category(character) not in ("Cc", "Cs")
            assert character not in "\u2028\u2029\u202a\u202b\u202c\u202d\u202e"
            assert character not in "\u2066\u2067\u2068\u2069"


@given(st.text())
def test_clean_is_idempotent_and_encodable(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    once.encode()


def test_every_unicode_character_is_kept_or_made_harmless() -> None:
    dropped = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF}

    def harmless(code: int) -> str:
        if code in dropped:
            return ""
        if code == 0x7F:
            return "␡"
        if code < 0x20 and code != 0x09:
            return chr(0x2400 + code)
        if 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000:
            return "\ufffd"
        return " " if code in (0x2028, 0x2029) else chr(code)

    for code in range(0x10000):
        assert clean(chr(code)) == harmless(code)
    # And the other planes, where one is like the other, in larger pieces.
    for start in range(0x10000, sys.maxunicode + 1, 0x100):
        codes = range(start, start + 0x100)
        assert clean("".join(map(chr, codes))) == "".join(map(harmless, codes))


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n\r\n\n", []),
        (b"one", ["one"]),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\r\r\n", ["one␍"]),  # one CR, not all of them
        (b"one\rtwo\n", ["one␍two"]),
        (b"  padded \t\n", ["  padded \t"]),
        (b" \n", [" "]),
        (b"\x00\x01\x07\x1b[31m\x7f\n", ["␀␁␇␛[31m␡"]),
        (b"\x9b31m\xc2\x9b\n", ["\ufffd31m\ufffd"]),
        (
            "naïve Ελλάδα 한국어 👩\u200d👩\u200d👧\n".encode(),
            ["naïve Ελλάδα 한국어 👩\u200d👩\u200d👧"],
        ),
        ("a\u2028b\u2029c\u202ed\u2066e\n".encode(), ["a b cde"]),
        ("\ufeff/name bob\n\ufeff\n".encode(), ["/name bob"]),
        ("\u202e\u2069\n".encode(), []),  # nothing is left of it
        (b"\xe2\x82\nnext\n", ["\ufffd", "next"]),  # a character cut off by the line's end
        (b"\xed\xa0\x80\n", ["\ufffd\ufffd\ufffd"]),  # a surrogate in bytes
    ],
)
def test_examples(data: bytes, lines: list[str]) -> None:
    assert decode([data], limit=100) == lines


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"\xff\xfb\x1f\xff\xfd\x18hello\r\n", ["hello"]),
        (b"he\xff\xf1llo\n", ["hello"]),
        (b"\xff\xf4\xff\xfd\x06hello\n", ["hello"]),  # Ctrl+C in a telnet client
        (b"a\xff\xffb\n", ["ab"]),
        (b"a\xff\xfa\x18\x00xterm\xff\xf0b\n", ["ab"]),
        (b"a\xff\xfa\x1f\xff\xff\xf0\xff\xf0b\n", ["ab"]),  # 255 columns, escaped
        (b"a\xff\xfa never ended\nnext\n", ["a", "next"]),
        (b"a\xff\xfb\nnext\n", ["a", "next"]),  # an option that the line's end cut off
        (b"a\xff\nnext\n", ["a\ufffd", "next"]),
        (b"\xffA\n", ["\ufffdA"]),  # not a command
        (b"\xff\xfb\x0a\n", []),  # LF is LF, even as option 10
    ],
)
def test_telnet_negotiation_is_removed_however_it_is_split(data: bytes, lines: list[str]) -> None:
    assert decode([data]) == lines
    assert decode([data[i : i + 1] for i in range(len(data))]) == lines


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_line_may_be_as_long_as_the_limit(ending: bytes, split: bool) -> None:
    fits, over = b"x" * LIMIT, b"y" * (LIMIT + 1)
    data = b"before\n" + fits + ending + over + ending + b"after\n"
    chunks = [data[i : i + 1] for i in range(len(data))] if split else [data]
    assert decode(chunks) == ["before", fits.decode(), TOO_LONG, "after"]


def test_the_limit_counts_bytes_and_not_characters() -> None:
    assert decode(["é".encode() * 20 + b"\n"]) == ["é" * 20]
    assert decode(["é".encode() * 21 + b"\n"]) == [TOO_LONG]


def test_an_endless_line_is_reported_once_and_never_buffered() -> None:
    decoder = LineDecoder(LIMIT)
    parts = [part for _ in range(1000) for part in decoder.feed(b"z" * 1000)]
    assert [type(part) for part in parts] == [LineTooLong]
    assert decoder.buffered_bytes == 0
    assert decoder.feed(b"end\nhello\n") == ["hello"]


def test_text_after_the_last_lf_is_a_line_at_the_end_of_input() -> None:
    decoder = LineDecoder(LIMIT)
    assert decoder.feed(b"one\ntw") == ["one"]
    assert decoder.feed(b"o\r") == []
    assert decoder.finish() == ["two"]
    assert decoder.finish() == []


def test_a_line_over_the_limit_is_dropped_at_the_end_of_input() -> None:
    decoder = LineDecoder(LIMIT)
    assert [str(part) for part in decoder.feed(b"z" * 41)] == [
        "the line was longer than 40 bytes and was dropped"
    ]
    assert decoder.finish() == []
    assert decoder.feed(b"new\n") == ["new"]
