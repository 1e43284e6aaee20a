"""The codecs of a connection: text and JSON, each in the framing of its transport.  Pure.

Over TCP, encoded events are lines.  Over WebSocket the same lines are the messages, in frames as a
server sends them (RFC 6455, section 5.2): not masked, not fragmented, no extension.  Framing is a
part of the codec, so that what a room sends is encoded and framed once and shared by all members
with the same codec.  For the other direction see `multichat.protocol.websocket`.

Invariants:

1. A framed codec encodes whole frames, and its results can be joined.
2. After a goodbye there is a close frame, and nothing is sent after it.
"""

from typing import NamedTuple

from multichat.protocol.codec import Codec
from multichat.protocol.goodbyes import code_of_reason
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import Event, Goodbye, Nonce, SaidBlock
from multichat.protocol.text_codec import TEXT

__all__ = ["LINES", "WEBSOCKET", "WEBSOCKET_LINES", "CloseCode", "Codecs", "close_frame"]


class Codecs(NamedTuple):
    """The two codecs that a client may use on its connection."""

    text: Codec
    json: Codec


class CloseCode:
    """The codes of close frames that a server sends; RFC 6455, section 7.4.1, and IANA's list."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_TEXT = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    RESTART = 1012
    TRY_AGAIN_LATER = 1013


# By the code of the goodbye before the close frame.  The goodbye says whether to reconnect; the
# close code is for programs that look at nothing else.
_CLOSE_CODES = {
    "shutdown": CloseCode.GOING_AWAY,
    "draining": CloseCode.RESTART,
    "too-slow": CloseCode.TRY_AGAIN_LATER,
    "idle": CloseCode.GOING_AWAY,
    "full": CloseCode.TRY_AGAIN_LATER,
    "unavailable": CloseCode.TRY_AGAIN_LATER,
    "kicked": CloseCode.POLICY_VIOLATION,
    "banned": CloseCode.POLICY_VIOLATION,
    "replaced": CloseCode.NORMAL,
    "wrong-password": CloseCode.POLICY_VIOLATION,
    "quit": CloseCode.NORMAL,
}

_TEXT_FRAME, _CLOSE_FRAME = 0x81, 0x88

# A control frame has at most 125 bytes, two of them the code.
_MAX_REASON_BYTES = 123

_MAX_SHORT, _MAX_MEDIUM = 125, 0xFFFF


def _make_header(size: int) -> bytes:
    if size <= _MAX_SHORT:
        return bytes((_TEXT_FRAME, size))
    if size <= _MAX_MEDIUM:
        return bytes((_TEXT_FRAME, 126)) + size.to_bytes(2, "big")
    return bytes((_TEXT_FRAME, 127)) + size.to_bytes(8, "big")


# The headers of messages of the usual lengths: a look-up takes a fifth of the time of making one.
_HEADERS = [_make_header(size) for size in range(1024)]


_header_of_short = _HEADERS.__getitem__


def _header(size: int) -> bytes:
    return _HEADERS[size] if size < len(_HEADERS) else _make_header(size)


def _frame_as_one(lines: bytes) -> bytes:
    """Return *lines* as one message, separated by LF."""
    return _header(len(lines) - 1) + lines[:-1] if lines else b""


def _frame_each(lines: bytes) -> bytes:
    """Return each of *lines* as a message."""
    if lines.find(b"\n") == len(lines) - 1:
        return _frame_as_one(lines)
    messages = lines.split(b"\n")
    messages.pop()
    sizes = list(map(len, messages))
    pieces = [b""] * (2 * len(messages))
    pieces[0::2] = map(_header_of_short if max(sizes) < len(_HEADERS) else _header, sizes)
    pieces[1::2] = messages
    return b"".join(pieces)


def _payload_at(frame: bytes) -> int:
    """Return where the payload of *frame*, one of the above, begins."""
    return {126: 4, 127: 10}.get(frame[1], 2)


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Return a close frame; a long *reason* is cut.  Without a *code* it is empty."""
    if code is None:
        return bytes((_CLOSE_FRAME, 0))
    words = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore").encode()
    return bytes((_CLOSE_FRAME, 2 + len(words))) + code.to_bytes(2, "big") + words


class _FramedCodec:
    """Encodes as *codec* does, in WebSocket messages; with *many*, of several lines each."""

    def __init__(self, codec: Codec, *, many: bool) -> None:
        self._codec = codec
        self.name = codec.name
        self.is_text = codec.is_text
        self._frame = _frame_as_one if many else _frame_each
        self.least_said_bytes = codec.least_said_bytes
        self.parse_requests = codec.parse_requests
        self.parse_events = codec.parse_events
        self.encode_request = codec.encode_request

    def encode(self, event: Event) -> bytes:
        """Encode one event; a goodbye with the close frame that follows it."""
        framed = self._frame(self._codec.encode(event))
        if type(event) is Goodbye:
            code = event.code or code_of_reason(event.reason)
            framed += close_frame(_CLOSE_CODES.get(code, CloseCode.POLICY_VIOLATION), event.reason)
        return framed

    def encode_said(self, said: SaidBlock) -> bytes:
        """Encode the messages of one publish."""
        return self._frame(self._codec.encode_said(said))

    def with_nonce(self, encoded: bytes, nonce: Nonce | None) -> bytes:
        """Add *nonce* to an answer, which is one message in JSON."""
        if nonce is None or self.is_text:
            return encoded
        line = encoded[_payload_at(encoded) :] + b"\n"
        return self._frame(self._codec.with_nonce(line, nonce))


LINES = Codecs(TEXT, JSON)
"""Lines on a stream: TCP, TLS, a Unix socket."""

WEBSOCKET = Codecs(_FramedCodec(TEXT, many=False), _FramedCodec(JSON, many=False))
"""A WebSocket message for each line."""

WEBSOCKET_LINES = Codecs(_FramedCodec(TEXT, many=True), _FramedCodec(JSON, many=True))
"""WebSocket messages of one or more lines, for the subprotocol `multichat.lines`."""
