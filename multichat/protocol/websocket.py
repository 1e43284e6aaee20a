"""Decodes a client's WebSocket frames (RFC 6455) to lines, incrementally.  Pure.

Owns which frames of a client are valid, the answers to pings and closes, and the reasons to close a
connection.  The handshake has happened before; `multichat.protocol.codecs` makes the frames for a
client.

The text of messages is not collected: it goes to a `LineDecoder` as it arrives, with an LF after
each message, so that a message is one line, or several separated by LF, exactly as over TCP.  A
parser that collects whole frames and messages would need a bound for them, and copies.

1. The output does not depend on how the input was split or a message fragmented.
2. At most one line within the limit is buffered, and a frame's header or a control frame.
3. Of several pings in one read, the last is answered, as RFC 6455 allows (section 5.5.3): answers
   are never larger than their requests.
4. Any bytes are valid input; none raise an exception.
"""

from multichat.protocol.codecs import CloseCode, close_frame
from multichat.protocol.framing import Ending, LineDecoder, Part

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform for which there is no wheel
    from websockets.utils import apply_mask

__all__ = ["WebSocketDecoder"]

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

_FINAL, _RESERVED, _OPCODE = 0x80, 0x70, 0x0F  # of a frame's first byte
_MASKED, _LENGTH = 0x80, 0x7F  # of its second one
_LENGTH_OF_2, _LENGTH_OF_8 = 126, 127
_MASK_BYTES = 4
_MAX_CONTROL_BYTES = 125
_WHOLE_TEXT = _FINAL | _TEXT

# The codes that a peer may send, besides 3000 to 4999; RFC 6455, section 7.4, and IANA's list.
_CLOSE_CODES = {*range(1000, 1004), *range(1007, 1015)}
_PRIVATE_CODES = range(3000, 5000)


class _Violation(Exception):
    """The peer's input cannot be accepted; *code* is for the close frame."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class WebSocketDecoder:
    """One client's input: frames in, clean lines of text out; the interface of `LineDecoder`.

    *max_line_bytes* bounds a line, *max_message_bytes* a message.

    *reply* is the answer to the pings of the last `feed`, mostly empty.  *ending* is set once the
    client has closed the connection or has broken the protocol; all later input is ignored.

    For one task at a time; there is nothing to close.
    """

    __slots__ = (
        "_buffer",
        "_final",
        "_in_message",
        "_left",
        "_lines",
        "_mask",
        "_max_message_bytes",
        "_max_short_bytes",
        "_message_bytes",
        "_utf8",
        "ending",
        "reply",
    )

    def __init__(self, max_line_bytes: int, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_short_bytes = min(_MAX_CONTROL_BYTES, max_message_bytes)
        self._lines = LineDecoder(max_line_bytes)
        self._buffer = b""  # an incomplete header, or control frame
        self._left = 0  # bytes of the current frame that have not come yet
        self._mask = b""  # for these
        self._final = False
        self._in_message = False
        self._message_bytes = 0
        self._utf8 = b""  # an incomplete character
        self.ending: Ending | None = None
        self.reply = b""

    @property
    def buffered_bytes(self) -> int:
        """The bytes buffered of an incomplete line or frame."""
        return self._lines.buffered_bytes + len(self._buffer)

    def feed(self, data: bytes | bytearray) -> list[Part]:
        """Take the next bytes and return the lines that they complete; see `LineDecoder.feed`."""
        self.reply = b""
        if self.ending is not None:
            return []
        # In a quiet room mostly exactly one whole message.
        if (
            6 < len(data) <= 6 + _MAX_CONTROL_BYTES
            and data[0] == _WHOLE_TEXT
            and data[1] == _MASKED | (len(data) - 6)
            and not (self._in_message or self._buffer)
            and len(data) - 6 <= self._max_message_bytes
        ):
            return self._take_text(apply_mask(data[6:], bytes(data[2:6])) + b"\n")
        pieces: list[bytes] = []
        try:
            self._take_frames(self._buffer + data, pieces)
        except _Violation as violation:
            self._fail(violation)
        return self._take_text(b"".join(pieces))

    def forget(self) -> None:
        """Drop the buffered part of an incomplete line."""
        self._lines.forget()

    def finish(self) -> list[Part]:
        """Return what is left at the end of the input: nothing; an incomplete message is lost."""
        return []

    def _fail(self, violation: _Violation) -> None:
        text = str(violation)
        self.reply = self._buffer = b""
        self.ending = Ending(f"WebSocket: {text}", close_frame(violation.code, text))

    def _take_frames(self, data: bytes, pieces: list[bytes]) -> None:
        """Append the text in *data* to *pieces*, with an LF after each message.

        Raises `_Violation`.
        """
        at, end = 0, len(data)
        while self.ending is None:
            if self._in_message and (self._left or self._final):  # in the payload of a data frame
                piece = data[at : at + self._left]
                if self._left and not piece:
                    break
                pieces.append(apply_mask(piece, self._mask))
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    turn = len(piece) % _MASK_BYTES
                    self._mask = self._mask[turn:] + self._mask[:turn]
                    break
                if self._final:
                    pieces.append(b"\n")
                    self._in_message = self._final = False
                continue
            if end - at < 2:
                break
            # In a flood of messages, most are short frames that have arrived as a whole.
            size = data[at + 1] - _MASKED
            if (
                data[at] == _WHOLE_TEXT
                and not self._in_message
                and 0 <= size <= self._max_short_bytes
                and size <= end - at - 6
            ):
                text_at = at + 6
                at = text_at + size
                pieces.append(apply_mask(data[text_at:at], data[text_at - _MASK_BYTES : text_at]))
                pieces.append(b"\n")
                continue
            header, size = self._check_start(data[at], data[at + 1])
            if end - at < header:
                break
            if size > _MAX_CONTROL_BYTES:
                size = int.from_bytes(data[at + 2 : at + header - _MASK_BYTES], "big")
            mask = data[at + header - _MASK_BYTES : at + header]
            opcode = data[at] & _OPCODE
            if opcode >= _CLOSE:
                if end - at < header + size:
                    break
                payload = apply_mask(data[at + header : at + header + size], mask)
                self._take_control(opcode, payload)
                at += header + size
                continue
            if opcode == _TEXT:
                self._message_bytes = 0
            self._message_bytes += size
            if self._message_bytes > self._max_message_bytes:
                reason = f"a message is longer than {self._max_message_bytes} bytes"
                raise _Violation(CloseCode.TOO_BIG, reason)
            self._in_message = True
            self._left, self._mask, self._final = size, mask, bool(data[at] & _FINAL)
            at += header
        self._buffer = data[at:]

    def _check_start(self, first: int, second: int) -> tuple[int, int]:
        """Return the sizes of a frame's header, and of its payload as far as two bytes tell it.

        Raises `_Violation`.
        """
        opcode, size = first & _OPCODE, second & _LENGTH
        if first & _RESERVED:
            raise _Violation(CloseCode.PROTOCOL_ERROR, "a reserved bit is set")
        if not second & _MASKED:
            raise _Violation(CloseCode.PROTOCOL_ERROR, "a frame is not masked")
        if opcode >= _CLOSE:
            if opcode > _PONG:
                raise _Violation(CloseCode.PROTOCOL_ERROR, f"a frame has the opcode {opcode}")
            if not first & _FINAL:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a control frame is fragmented")
            if size > _MAX_CONTROL_BYTES:
                raise _Violation(CloseCode.PROTOCOL_ERROR, "a control frame is too long")
        elif opcode > _BINARY:
            raise _Violation(CloseCode.PROTOCOL_ERROR, f"a frame has the opcode {opcode}")
        elif opcode == _CONTINUATION and not self._in_message:
            raise _Violation(CloseCode.PROTOCOL_ERROR, "a fragment belongs to no message")
        elif opcode != _CONTINUATION and self._in_message:
            raise _Violation(CloseCode.PROTOCOL_ERROR, "a message begins within another")
        elif opcode == _BINARY:
            raise _Violation(CloseCode.UNSUPPORTED_DATA, "messages are text, not binary")
        more = {_LENGTH_OF_2: 2, _LENGTH_OF_8: 8}.get(size, 0)
        return 2 + more + _MASK_BYTES, size

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self.reply = bytes((_FINAL | _PONG, len(payload))) + payload
        elif opcode == _CLOSE:
            code = _check_close(payload)
            self.reply = b""
            self.ending = Ending("", close_frame(code))

    def _take_text(self, text: bytes) -> list[Part]:
        """Return the lines that *text* completes, up to the first byte that is not valid UTF-8."""
        if self._utf8 or not text.isascii():
            text, self._utf8 = self._utf8 + text, b""
            try:
                text.decode()
            except UnicodeDecodeError as error:
                # An LF follows each message, so that one cannot end within a character.
                if error.end == len(text) and error.reason == "unexpected end of data":
                    self._utf8 = text[error.start :]
                else:
                    reason = "a message is not valid UTF-8"
                    self._fail(_Violation(CloseCode.INVALID_TEXT, reason))
                text = text[: error.start]
        return self._lines.feed(text) if text else []


def _check_close(payload: bytes) -> int | None:
    """Return the code in a close frame's *payload*, None without one; raises `_Violation`."""
    if not payload:
        return None
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        reason = "the reason in a close frame is not valid UTF-8"
        raise _Violation(CloseCode.INVALID_TEXT, reason) from None
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (code in _CLOSE_CODES or code in _PRIVATE_CODES):
        raise _Violation(CloseCode.PROTOCOL_ERROR, "a close frame has no valid code")
    return code
