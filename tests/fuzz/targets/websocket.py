"""WebSocket: any bytes, split anywhere, give the same lines and the same end, as another's do."""

from collections.abc import Iterable
from typing import NamedTuple

from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from multichat.errors import LineTooLong
from multichat.protocol.websocket import WebSocketDecoder
from tests.fuzz.targets.checks import assert_harmless, assert_same
from tests.support.messages import cut
from tests.support.websockets import open_peer

__all__ = ["check_websocket"]

# A header, a control frame's payload, and the CR of a line.
_HELD_BYTES = 14 + 125 + 1

# What only we refuse: the library leaves it to its caller, or has another bound.
_OURS = ("binary", "a message is not valid UTF-8", "longer than")


class _Outcome(NamedTuple):
    lines: list[str | None]
    reason: str | None
    last_words: bytes


def check_websocket(data: bytes) -> None:
    """Check frames; the first four bytes are the line limit and three packet boundaries."""
    limit, *cuts = data[:4].ljust(4, b"\0")
    payload = data[4:]
    expected = _decoded([payload], limit)
    for chunks in (cut(payload, cuts), [bytes([byte]) for byte in payload]):
        assert_same(_decoded(chunks, limit), expected, f"outcome of {chunks}, limit {limit}")
    for line in expected.lines:
        if line is not None:
            assert line, "an empty line"
            assert_harmless(line)
    _check_end(expected, payload)


def _decoded(chunks: Iterable[bytes], limit: int) -> _Outcome:
    decoder = WebSocketDecoder(limit, 8 * limit)
    lines: list[str | None] = []
    for chunk in chunks:
        for part in decoder.feed(chunk):
            lines += [None] if isinstance(part, LineTooLong) else part.split("\n")
        assert decoder.buffered_bytes <= limit + _HELD_BYTES, "little is held back"
        assert len(decoder.reply) <= 127, "one answer a read"
        assert not (decoder.reply and decoder.ending), "nothing after the close frame but that"
    assert_same(decoder.finish(), [], "a message without its end is no message")
    if (ending := decoder.ending) is None:
        return _Outcome(lines, None, b"")
    return _Outcome(lines, ending.reason, ending.last_words)


def _check_end(outcome: _Outcome, payload: bytes) -> None:
    """Compare the end with another implementation's."""
    if outcome.reason is not None and any(each in outcome.reason for each in _OURS):
        return
    peer = ServerProtocol(state=OPEN, max_size=None)
    peer.receive_data(payload)
    if peer.close_sent is None:  # it looks at a frame when all of it has come
        assert outcome.reason != "", "closed in order, but there is no close frame"
        return
    if not outcome.reason and str(peer.parser_exc) == "incomplete fragmented message":
        return  # a client may close at any time: a control frame may come between fragments
    assert outcome.reason is not None, f"not closed with {peer.close_sent}"
    client = open_peer()
    client.receive_data(outcome.last_words)
    assert client.close_rcvd is not None
    assert_same(client.close_rcvd.code, peer.close_sent.code, "the code to close with")
    assert_same(bool(outcome.reason), peer.parser_exc is not None, "whether it is a fault")
