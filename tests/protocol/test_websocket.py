"""WebSocket frames: cuts, fragments, control frames, what is refused, and the framed codecs."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from multichat.errors import LineTooLong
from multichat.protocol.codecs import (
    LINES,
    WEBSOCKET,
    WEBSOCKET_LINES,
    Codecs,
    close_frame,
)
from multichat.protocol.framing import LineDecoder, Part
from multichat.protocol.goodbyes import GOODBYES
from multichat.protocol.messages import Accepted, Act, Goodbye, Notice, Pong, SaidBlock, Who
from multichat.protocol.websocket import WebSocketDecoder
from tests.support.websockets import frame, open_peer

pytestmark = pytest.mark.unit

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

# Small, so that the limits are met.
LINE_BYTES, MESSAGE_BYTES = 40, 200

Outcome = tuple[list[str | type], str | None, bytes]


def new_decoder() -> WebSocketDecoder:
    return WebSocketDecoder(LINE_BYTES, MESSAGE_BYTES)


def lines_of(parts: Iterable[Part]) -> list[str | type]:
    lines: list[str | type] = []
    for part in parts:
        lines += [LineTooLong] if isinstance(part, LineTooLong) else part.split("\n")
    return lines


def decode(chunks: Iterable[bytes], decoder: WebSocketDecoder | None = None) -> Outcome:
    """Return the lines, and the reason and the last words of the ending."""
    decoder = decoder or new_decoder()
    lines = [line for chunk in chunks for line in lines_of(decoder.feed(chunk))]
    ending = decoder.ending
    lines += lines_of(decoder.finish())
    return lines, None if ending is None else ending.reason, ending.last_words if ending else b""


def code_of(last_words: bytes) -> int:
    """Return the code of a close frame, as the peer understands it."""
    peer = open_peer()
    peer.receive_data(last_words)
    assert peer.parser_exc is None
    assert peer.close_rcvd is not None
    return int(peer.close_rcvd.code)


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


cuts = st.lists(st.integers(0, 10_000), max_size=12)
texts = st.text(max_size=30) | st.text(alphabet="aé€😀\n\r", max_size=60)
controls = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """Messages in fragments that are cut anywhere, control frames between: bytes, and texts."""
    wire, messages = b"", []
    for text in draw(st.lists(texts, max_size=6)):
        data = text.encode()
        fragments = cut(data, draw(st.lists(st.integers(0, 200), max_size=4))) or [b""]
        for number, fragment in enumerate(fragments):
            for opcode, payload in draw(st.lists(controls, max_size=2)):
                wire += frame(opcode, payload)
            is_last = number == len(fragments) - 1
            wire += frame(CONTINUATION if number else TEXT, fragment, fin=is_last)
        messages.append(text)
    return wire, messages


@given(conversations(), cuts)
def test_messages_are_the_same_lines_however_they_are_cut_and_fragmented(
    conversation: tuple[bytes, list[str]], places: list[int]
) -> None:
    wire, messages = conversation
    lines = LineDecoder(LINE_BYTES)
    expected = lines_of(lines.feed("".join(f"{text}\n" for text in messages).encode()))
    assert decode(cut(wire, places)) == (expected, None, b"")


@given(st.binary(max_size=300), cuts)
def test_garbage_raises_nothing_and_its_cuts_change_nothing(data: bytes, places: list[int]) -> None:
    assert decode(cut(data, places)) == decode([data])


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame in which anything may be wrong."""
    first = draw(st.sampled_from([0x81, 0x01, 0x00, 0x80, 0x89, 0x8A, 0x88]) | st.integers(0, 255))
    payload = draw(texts.map(str.encode) | st.binary(max_size=140))
    masked = draw(st.integers(0, 9)) > 0
    whole = frame(TEXT, payload) if masked else Frame(Opcode.TEXT, payload).serialize(mask=False)
    return bytes((first,)) + whole[1:]


@given(st.lists(frames(), max_size=8), cuts)
def test_frames_with_any_fault_are_decoded_alike_however_they_are_cut(
    several: list[bytes], places: list[int]
) -> None:
    wire = b"".join(several)
    assert decode(cut(wire, places)) == decode([wire])


@given(st.lists(frames(), max_size=8))
def test_the_code_of_a_protocol_error_is_that_of_another_implementation(
    several: list[bytes],
) -> None:
    wire = b"".join(several)
    ours = WebSocketDecoder(10_000, 100_000)
    _, reason, last_words = decode([wire], ours)
    # What only we refuse: it leaves the text to its caller.
    if reason is not None and ("binary" in reason or "a message is not valid UTF-8" in reason):
        return
    peer = ServerProtocol(state=OPEN)
    peer.receive_data(wire)
    if peer.close_sent is None:
        assert reason is None
    elif str(peer.parser_exc) == "incomplete fragmented message":
        assert reason == "", "a client may close between fragments, too"
    elif peer.close_rcvd is not None and peer.parser_exc is None:
        assert reason == ""
        assert last_words[2:4] == (
            b"" if peer.close_sent.code == 1005 else peer.close_sent.code.to_bytes(2, "big")
        )
    else:
        assert reason
        assert code_of(last_words) == peer.close_sent.code


@pytest.mark.parametrize(
    ("wire", "code", "reason"),
    [
        (frame(TEXT, b"hi")[:1] + b"\x02hi", 1002, "a frame is not masked"),
        (b"\xc1" + frame(TEXT, b"hi")[1:], 1002, "a reserved bit is set"),
        (b"\xa1" + frame(TEXT, b"hi")[1:], 1002, "a reserved bit is set"),
        (b"\x83" + frame(TEXT, b"hi")[1:], 1002, "a frame has the opcode 3"),
        (b"\x8b" + frame(TEXT, b"hi")[1:], 1002, "a frame has the opcode 11"),
        (b"\x09" + frame(TEXT, b"hi")[1:], 1002, "a control frame is fragmented"),
        (b"\x89" + frame(TEXT, b"x" * 126)[1:], 1002, "a control frame is too long"),
        (frame(CONTINUATION, b"hi"), 1002, "a fragment belongs to no message"),
        (frame(TEXT, fin=False) + frame(TEXT), 1002, "a message begins within another"),
        (frame(BINARY, b"hi"), 1003, "messages are text, not binary"),
        (frame(TEXT, b"caf\xe9"), 1007, "a message is not valid UTF-8"),
        (frame(TEXT, "é".encode()[:1]), 1007, "a message is not valid UTF-8"),
        (frame(TEXT, b"\xed\xa0\x80"), 1007, "a message is not valid UTF-8"),
        (frame(TEXT, b"x" * (MESSAGE_BYTES + 1)), 1009, "a message is longer than 200 bytes"),
        (b"\x88" + frame(TEXT, b"x")[1:], 1002, "a close frame has no valid code"),
        (frame(CLOSE, b"\x03\xed"), 1002, "a close frame has no valid code"),
        (frame(CLOSE, b"\x00\x00"), 1002, "a close frame has no valid code"),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007, "the reason in a close frame is not valid UTF-8"),
    ],
)
def test_a_violation_of_the_protocol_closes_with_its_code(
    wire: bytes, code: int, reason: str
) -> None:
    before = frame(TEXT, b"before")
    single_bytes = [wire[i : i + 1] for i in range(len(wire))]
    for chunks in ([before + wire + frame(TEXT, b"after")], [before, *single_bytes]):
        lines, why, last_words = decode(chunks)
        assert lines[:1] == ["before"]
        assert "after" not in lines
        assert why == f"WebSocket: {reason}"
        assert code_of(last_words) == code


@pytest.mark.parametrize("size", [MESSAGE_BYTES + 1, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_a_message_that_is_too_long_is_refused_by_its_header(size: int) -> None:
    decoder = new_decoder()
    assert decoder.feed(b"\x81\xff" + size.to_bytes(8, "big") + b"mask") == []
    assert decoder.ending is not None
    assert code_of(decoder.ending.last_words) == 1009


def test_the_fragments_of_a_message_count_together() -> None:
    fragments = [frame(CONTINUATION, b"x" * 30 + b"\n", fin=False)] * 5
    wire = frame(TEXT, b"x" * 30 + b"\n", fin=False) + b"".join(fragments)
    assert decode([wire])[1] is None
    lines, reason, last_words = decode([wire, frame(CONTINUATION, b"x" * 30)])
    assert lines == ["x" * 30] * 6
    assert reason
    assert code_of(last_words) == 1009
    assert decode([frame(TEXT, b"x" * 30)] * 20)[1] is None, "each message begins anew"


def test_a_line_that_is_too_long_is_dropped_as_on_tcp() -> None:
    wire = frame(TEXT, b"x" * (LINE_BYTES + 1)) + frame(TEXT, b"next")
    assert decode([wire]) == ([LineTooLong, "next"], None, b"")


@given(st.integers(1000, 5100), st.text(max_size=20))
def test_a_close_is_answered_with_its_code(code: int, reason: str) -> None:
    decoder = new_decoder()
    payload = code.to_bytes(2, "big") + reason.encode()
    lines = lines_of(decoder.feed(frame(TEXT, b"bye") + frame(CLOSE, payload) + frame(TEXT, b"x")))
    assert lines == ["bye"]
    assert decoder.ending is not None
    try:
        Close(code, "").check()
    except Exception:  # noqa: BLE001 - the oracle's word
        assert code_of(decoder.ending.last_words) == 1002
    else:
        assert decoder.ending.reason == ""
        assert code_of(decoder.ending.last_words) == code
    assert decoder.feed(frame(TEXT, b"more")) == []


def test_a_close_without_a_code_is_answered_without_one() -> None:
    assert decode([frame(CLOSE)]) == ([], "", b"\x88\x00")


def test_control_frames_come_between_the_fragments_of_a_message() -> None:
    decoder = new_decoder()
    assert decoder.feed(frame(TEXT, "caf\u00e9".encode()[:-1], fin=False)) == []
    assert decoder.feed(frame(PING, b"still there?")) == []
    assert decoder.reply == b"\x8a\x0cstill there?"
    assert decoder.feed(frame(PONG, b"never asked")) == []
    assert decoder.reply == b""
    assert decoder.feed(frame(CONTINUATION, "\u00e9".encode()[-1:])) == ["caf\u00e9"]


@given(st.lists(st.binary(max_size=125), min_size=1, max_size=50))
def test_a_flood_of_pings_gets_one_answer_a_read_smaller_than_itself(pings: list[bytes]) -> None:
    decoder = new_decoder()
    wire = b"".join(frame(PING, data) for data in pings)
    assert decoder.feed(wire) == []
    assert len(decoder.reply) < len(wire)
    assert decoder.reply == bytes((0x8A, len(pings[-1]))) + pings[-1]
    assert decoder.feed(b"") == []
    assert decoder.reply == b""


@given(st.binary(max_size=2000), st.integers(1, 700))
def test_little_is_buffered_whatever_comes(data: bytes, size: int) -> None:
    decoder = new_decoder()
    for start in range(0, len(data), size):
        decoder.feed(data[start : start + size])
        assert decoder.buffered_bytes <= LINE_BYTES + 1 + 14 + 125


def test_a_message_without_its_end_is_dropped() -> None:
    decoder = new_decoder()
    assert decoder.feed(frame(TEXT, b"half of", fin=False)) == []
    assert decoder.finish() == []


# --- What the server sends ------------------------------------------------------------------------


def received(wire: bytes) -> list[str]:
    """Return the messages in *wire*, as another implementation understands them."""
    peer = open_peer()
    peer.receive_data(wire)
    assert peer.parser_exc is None
    events = [event for event in peer.events_received() if isinstance(event, Frame)]
    assert all(event.fin for event in events)
    return [bytes(event.data).decode() for event in events if event.opcode is Opcode.TEXT]


said_texts = st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=9)
LENGTHS = (1, 20, 124, 125, 126, 127, 1023, 1024, 65_535, 65_536, 70_000)


def said_block(messages: Sequence[str], *, act: bool = False) -> SaidBlock:
    time = "2026-01-01T00:00:00.000Z"
    return SaidBlock("abc", 998, time, "lobby", 1, "alice", "\n".join(messages), act)


@given(st.lists(said_texts, min_size=1, max_size=5), st.booleans())
def test_each_chat_message_is_a_websocket_message(texts: list[str], act: bool) -> None:
    for plain, framed in zip(LINES, WEBSOCKET, strict=True):
        lines = plain.encode_said(said_block(texts, act=act)).decode().splitlines()
        assert received(framed.encode_said(said_block(texts, act=act))) == lines


@pytest.mark.parametrize("codecs", [WEBSOCKET, WEBSOCKET_LINES])
def test_messages_of_any_length_are_framed(codecs: Codecs) -> None:
    texts = ["x" * length for length in LENGTHS]
    for plain, framed in zip(LINES, codecs, strict=True):
        lines = [line for text in texts for line in [plain.encode_said(said_block([text]))]]
        for text, line in zip(texts, lines, strict=True):
            assert received(framed.encode_said(said_block([text]))) == [line.decode()[:-1]]
            wire = framed.encode_said(said_block([text]))
            assert len(wire) >= len(text) + framed.least_said_bytes


@given(st.lists(said_texts, min_size=1, max_size=5))
def test_with_the_subprotocol_lines_sent_together_are_one_message(texts: list[str]) -> None:
    for plain, framed in zip(LINES, WEBSOCKET_LINES, strict=True):
        lines = plain.encode_said(said_block(texts)).decode()
        assert received(framed.encode_said(said_block(texts))) == [lines[:-1]]


@pytest.mark.parametrize("codecs", [WEBSOCKET, WEBSOCKET_LINES])
@given(token=st.text(max_size=130), nonce=st.none() | st.text(max_size=60) | st.integers(0, 99))
def test_an_answer_gets_its_nonce_in_a_frame(
    codecs: Codecs, token: str, nonce: str | int | None
) -> None:
    answer = Pong(token)
    for plain, framed in zip(LINES, codecs, strict=True):
        line = plain.with_nonce(plain.encode(answer), nonce).decode()[:-1]
        assert "\n".join(received(framed.with_nonce(framed.encode(answer), nonce))) == line


def test_an_event_that_a_protocol_cannot_express_is_not_encoded() -> None:
    assert LINES.text.encode(Accepted(id="x-1", nonce=1)) == b""
    for codecs in (WEBSOCKET, WEBSOCKET_LINES):
        assert codecs.text.encode(Accepted(id="x-1", nonce=1)) == b""


@pytest.mark.parametrize("codecs", [WEBSOCKET, WEBSOCKET_LINES])
@pytest.mark.parametrize("code", [*GOODBYES, ""])
def test_a_goodbye_is_followed_by_a_close_frame(codecs: Codecs, code: str) -> None:
    reason = "for a reason, " * 20 + "é" * 40
    goodbye = Goodbye.of(code, reason) if code else Goodbye(reason)
    expected = {
        "shutdown": 1001,
        "draining": 1012,
        "too-slow": 1013,
        "idle": 1001,
        "full": 1013,
        "unavailable": 1013,
        "replaced": 1000,
        "quit": 1000,
    }.get(code, 1008)
    for codec in codecs:
        peer = open_peer()
        peer.receive_data(codec.encode(goodbye))
        assert peer.parser_exc is None
        assert peer.close_rcvd is not None
        assert peer.close_rcvd.code == expected
        assert reason.startswith(peer.close_rcvd.reason)


@given(st.text(max_size=200))
def test_the_reason_of_a_close_frame_is_cut_between_characters(reason: str) -> None:
    wire = close_frame(1000, reason)
    assert len(wire) <= 2 + 125
    assert reason.startswith(wire[4:].decode())


def test_other_events_are_one_message_in_json() -> None:
    assert received(WEBSOCKET.json.encode(Notice("a\u240ab"))) == [
        LINES.json.encode(Notice("a\u240ab")).decode()[:-1]
    ]


def test_requests_are_parsed_as_on_tcp() -> None:
    for codecs in (WEBSOCKET, WEBSOCKET_LINES):
        assert list(codecs.text.parse_requests("/who")) == [Who()]
        assert list(codecs.text.parse_requests("/me waves")) == [Act("waves")]
        assert codecs.text.is_text
        assert not codecs.json.is_text
