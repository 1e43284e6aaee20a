"""The JSON protocol, for programs: one object on each line, its `type` first.  Pure.

The only module that writes JSON, including its escaping.  Every decoded string goes through the
filter of `multichat.protocol.framing`, in `multichat.protocol.json_lines`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, get_args

import msgspec

from multichat.errors import EmptyText, InvalidRequest, UnknownRequest
from multichat.protocol.commands import shortened
from multichat.protocol.framing import Filtered, clean
from multichat.protocol.ids import FIRST_ID
from multichat.protocol.json_lines import JsonDecoder, NestedTooDeeply, NotExact, lone_surrogate
from multichat.protocol.messages import (
    MAX_TOKEN_CHARACTERS,
    Act,
    Direct,
    Event,
    Hello,
    Invalid,
    Nonce,
    Request,
    Said,
    SaidBlock,
    Say,
    SayBlock,
    WireEvent,
    WireRequest,
)

__all__ = [
    "JSON",
    "JsonCodec",
    "decode_hello",
    "encode_fields",
    "encode_hello",
    "encode_lines",
    "is_hello",
]

# Formatting a number takes longer than looking one up.
_LAST_DIGITS = [f"{digits:03}" for digits in range(1000)]

# An error of the decoder may quote the line.
_REASON_CHARACTERS = 200

_NO_NONCE = (
    f"a nonce is a string of at most {MAX_TOKEN_CHARACTERS} characters, "
    "or a whole number from -2^53 to 2^53"
)


class _Kind(msgspec.Struct):
    """The fields that are read of an object that is not a valid request."""

    type: Any = None
    nonce: Any = None


# The answer to a request repeats these.
_REPEATED = ("nonce", "token")

_REQUESTS = JsonDecoder(WireRequest, exact=_REPEATED)
_KIND = JsonDecoder(_Kind, exact=("nonce",))
_EVENTS = JsonDecoder(WireEvent)
_HELLO = JsonDecoder(Hello)
_REQUEST_TYPES = frozenset(kind.__struct_config__.tag for kind in get_args(WireRequest))
_encode = msgspec.json.Encoder().encode
_decode_kind = msgspec.json.Decoder(_Kind).decode


class JsonCodec:
    """Encodes each request and each event as a JSON object on a line."""

    name: ClassVar[str] = "json"
    is_text: ClassVar[bool] = False
    least_said_bytes: ClassVar[int] = 100

    def parse_requests(self, block: str) -> Iterator[Request]:
        """Yield the requests in a block of lines; consecutive messages are one `SayBlock`."""
        requests: Iterable[Request | Say] | None = _REQUESTS.decode_block(block)
        if requests is None:
            raw = block.raw if isinstance(block, Filtered) else block
            requests = map(self._parse_request, block.split("\n"), raw.split("\n"))
        texts: list[str] = []
        nonces: list[Nonce | None] = []
        room: str | None = None
        for request in requests:
            if type(request) is Say and request.text:
                if request.room != room:
                    if texts:
                        yield _say_block(texts, nonces, room)
                        texts, nonces = [], []
                    room = request.room
                texts.append(request.text)
                nonces.append(request.nonce)
                continue
            if texts:
                yield _say_block(texts, nonces, room)
                texts, nonces = [], []
            if isinstance(request, Say | Act | Direct) and not request.text:
                yield Invalid.because(EmptyText(), request.nonce)
            else:
                yield request
        if texts:
            yield _say_block(texts, nonces, room)

    def _parse_request(self, line: str, raw: str) -> Request | Say:
        try:
            return _REQUESTS.decode(line, raw)  # type: ignore[no-any-return]
        except NestedTooDeeply as error:
            return Invalid.because(InvalidRequest(str(error)))
        except (msgspec.MsgspecError, NotExact) as error:
            reason = _reason(error, line)
        nonce = None
        try:
            kind = _KIND.decode(line, raw)
        except (msgspec.MsgspecError, NotExact) as error:
            reason = _reason(error, line)
        else:
            nonce = kind.nonce if _is_nonce(kind.nonce) else None
            if isinstance(kind.type, str) and kind.type not in _REQUEST_TYPES:
                unknown = UnknownRequest(f"there is no request {shortened(kind.type)}")
                return Invalid.because(unknown, nonce)
        return Invalid.because(InvalidRequest(reason), nonce)

    def encode_request(self, request: WireRequest) -> str:
        """Encode one request as a line."""
        return _encode(request).decode()

    def encode(self, event: Event) -> bytes:
        """Encode one event."""
        return _encode(event) + b"\n"

    def with_nonce(self, encoded: bytes, nonce: Nonce | None) -> bytes:
        """Add *nonce* as the last field of an answer that was encoded without one."""
        if nonce is None:
            return encoded
        return b"".join((encoded.removesuffix(b"}\n"), b',"nonce":', _encode(nonce), b"}\n"))

    def said_bytes(self, said: Said) -> int:
        """Return the length of the encoded *said*, which is clean, without encoding its text."""
        text = said.text
        size = len(text) if text.isascii() else len(text.encode())
        escapes = text.count('"') + text.count("\\") + text.count("\t")
        return len(self.encode(msgspec.structs.replace(said, text=""))) + size + escapes

    def encode_said(self, said: SaidBlock) -> bytes:
        """Encode the messages of one publish, each as a `Said` of its own.

        What the messages have in common is encoded once: the encoder would take nearly three times
        as long.
        """
        fields = said.epoch, said.time, said.room, said.name, said.text
        epoch, time, room, name, *texts = _escape("\n".join(fields)).split("\n")
        head = f'{{"type":"said","id":"{epoch}-'
        between = (
            f'","time":"{time}","room":"{room}","client":{said.client},"name":"{name}","text":"'
        )
        tail = '","act":true}\n' if said.act else '"}\n'
        number = FIRST_ID + said.first
        if len(texts) == 1:
            return f"{head}{number}{between}{texts[0]}{tail}".encode()
        pieces: list[str] = []
        while texts:  # a thousand ids have all but their last digits in common
            thousands, digits = divmod(number, 1000)
            some, texts = texts[: 1000 - digits], texts[1000 - digits :]
            # Four pieces for each message, two of them put in all at once.
            filled = [f"{tail}{head}{thousands}", "", between, ""] * len(some)
            filled[1::4] = _LAST_DIGITS[digits : digits + len(some)]
            filled[3::4] = some
            pieces += filled
            number += len(some)
        pieces[0] = pieces[0].removeprefix(tail)
        pieces.append(tail)
        return "".join(pieces).encode()

    def parse_events(self, block: str) -> Iterator[Event]:
        """Yield the events in a block of lines from a server.

        Events of unknown types are left out.  A line that is not an event is returned as a `Said`
        without a name.
        """
        events = _EVENTS.decode_block(block)
        if events is not None:
            yield from events
            return
        for line in block.split("\n"):
            try:
                yield _EVENTS.decode(line)
            except NestedTooDeeply:
                yield Said(name="", text=line)
            except msgspec.MsgspecError:
                if not _has_type(line):
                    yield Said(name="", text=line)


def _escape(text: str) -> str:
    """Escape clean *text* for a JSON string; an LF stays one."""
    if '"' in text or "\\" in text or "\t" in text:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    return text


def encode_fields(fields: Mapping[str, object]) -> bytes:
    """Encode one object with these *fields*, in this order, without a line end."""
    return _encode(fields)


def encode_lines(fields: Mapping[str, object], block: str) -> bytes:
    """Encode one object, on a line of its own, for each line of *block*, which is clean.

    Each has all *fields*, and as its last one `text`, the line.  What they have in common is
    encoded once.
    """
    head, tail = _encode({**fields, "text": ""})[: -len(b'"}')], b'"}\n'
    return b"".join((head, _escape(block).encode().replace(b"\n", tail + head), tail))


def _has_type(line: str) -> bool:
    try:
        return isinstance(_decode_kind(line).type, str)
    except msgspec.MsgspecError:
        return False


def _say_block(texts: list[str], nonces: list[Nonce | None], room: str | None) -> SayBlock:
    answered = any(nonce is not None for nonce in nonces)
    return SayBlock("\n".join(texts), tuple(nonces) if answered else (), room)


def is_hello(line: str) -> bool:
    """Return whether *line*, of the text protocol, is a hello."""
    return line[:5].lower() == "/json" and not line[5:6].strip()


def encode_hello(hello: Hello) -> str:
    """Encode the hello, a line of the text protocol that changes the connection to JSON."""
    return f"/json {_encode(hello).decode()}"


def decode_hello(line: str) -> Iterator[Request]:
    """Yield the `Hello` of *line*, followed by an `Invalid` if its object is not valid."""
    fields = line[len("/json") :]
    if not fields.strip():
        yield Hello()
        return
    try:
        yield _HELLO.decode(fields)
    except NestedTooDeeply as error:
        yield Hello()
        yield Invalid.because(InvalidRequest(str(error)))
    except msgspec.MsgspecError as error:
        yield Hello()
        yield Invalid.because(InvalidRequest(_reason(error, fields)))


def _reason(error: Exception, line: str) -> str:
    reason = clean(str(error))[:_REASON_CHARACTERS]
    if reason.endswith("`$.nonce`"):
        reason = _NO_NONCE
    elif ("surrogate" in reason or "truncated" in reason) and (escape := lone_surrogate(line)):
        reason = f"{escape} is half of a surrogate pair, the other half is missing"
    return f"not a valid request: {reason}"


def _is_nonce(value: object) -> bool:
    try:
        msgspec.convert(value, Nonce)
    except msgspec.ValidationError:
        return False
    return True


JSON = JsonCodec()
