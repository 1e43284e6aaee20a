"""How requests and events are spelled on the wire: the text protocol and the JSON protocol.  Pure.

Both spell and read the same types, those of `multichat.protocol.messages`.  What is said to many is
encoded once for each protocol that is spoken, never once per member: what these functions return is
shared, immutable bytes.

Lines have been through `multichat.protocol.framing`, and strings inside of JSON go through the same
filter here, so that every text that leaves this module is clean.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol, get_args

import msgspec

from multichat.errors import EmptyText, InvalidRequest, UnknownRequest
from multichat.protocol.commands import (
    help_lines,
    may_be_disguised,
    parse_line,
    say_literally,
    shortened,
)
from multichat.protocol.framing import Filtered, behind, clean
from multichat.protocol.ids import FIRST_ID
from multichat.protocol.json_lines import JsonDecoder, NestedTooDeeply, NotExact, lone_surrogate
from multichat.protocol.messages import (
    MAX_TOKEN_CHARACTERS,
    Act,
    Direct,
    Directed,
    Error,
    Event,
    Goodbye,
    Hello,
    Help,
    History,
    HistoryPage,
    Invalid,
    Join,
    Joined,
    Left,
    MemberName,
    Members,
    Missed,
    Nonce,
    Notice,
    Ping,
    Pong,
    Presence,
    Quit,
    Rename,
    Renamed,
    Request,
    RoomList,
    Rooms,
    RoomSize,
    Said,
    SaidBlock,
    Say,
    SayBlock,
    Welcome,
    Who,
    WireEvent,
    WireRequest,
)
from multichat.protocol.names import MAX_DECOMPOSED, SERVER_NAME, visible_name

__all__ = [
    "JSON",
    "TEXT",
    "Codec",
    "JsonCodec",
    "TextCodec",
    "encode_hello",
    "encoded_help",
    "is_hello",
    "with_visible_names",
]


class Codec(Protocol):
    """A way to spell requests and events; there is one object of each."""

    name: ClassVar[str]
    least_said_bytes: ClassVar[int]  # what `encode_said` adds at least to each message

    def parse_requests(self, block: str) -> Iterator[Request]:
        """Yield what a client asks with a run of lines; nothing is raised on account of them."""

    def parse_events(self, block: str) -> Iterator[Event]:
        """Yield what a server tells us with a run of lines; nothing is raised either."""

    def encode_request(self, request: WireRequest) -> str:
        """Spell one request as a line, or a run of them, without the last LF."""

    def encode(self, event: Event) -> bytes:
        """Encode one event; empty where this protocol has no word for it."""

    def encode_said(self, said: SaidBlock) -> bytes:
        """Spell what one publish says."""

    def with_nonce(self, encoded: bytes, nonce: Nonce | None) -> bytes:
        """Add the request's *nonce* to an answer that was encoded without one."""


def with_visible_names(event: Event) -> Event:
    """Return *event* without invisible characters in its names: a server may be hostile."""
    changed: dict[str, object] = {}
    for field in ("name", "old", "room", "person_in"):
        name = getattr(event, field, "")
        if not name.isascii() and (visible := visible_name(name)) != name:
            changed[field] = visible
    match event:
        case Members(members=members):
            changed["members"] = [
                MemberName(each.client, visible_name(each.name)) for each in members
            ]
        case RoomList(rooms=rooms):
            changed["rooms"] = [RoomSize(visible_name(each.room), each.members) for each in rooms]
        case HistoryPage(messages=messages):
            changed["messages"] = list(map(with_visible_names, messages))
    return msgspec.structs.replace(event, **changed) if changed else event


# --- The text protocol
# -------------------------------------------------------------------------------

_GOODBYE = "goodbye: "


# What is longer than any name is none; see `multichat.protocol.messages`.
_DIRECTED = re.compile(rf"\[([^\]]{{1,{MAX_DECOMPOSED}}}) → you\] (.*)", re.DOTALL)
_TAGGED = re.compile(rf"\[([^\]]{{1,{MAX_DECOMPOSED}}})\] (.*)", re.DOTALL)
_ACTED = re.compile(rf"\* (Client \d{{1,15}}|\S{{1,{MAX_DECOMPOSED}}}) (.*)", re.DOTALL)


class TextCodec:
    """What `nc` speaks: one message a line, tagged with its sender; commands start with a slash."""

    name: ClassVar[str] = "text"
    least_said_bytes: ClassVar[int] = len("[a] ")

    def parse_requests(self, block: str) -> Iterator[Request]:
        """Yield what a client asks with a run of lines, chat between two commands as one run.

        What follows a `Hello` is read in the JSON protocol.
        """
        if not may_be_disguised(block):
            yield SayBlock(str(block))  # without what was sent, which would take as much again
            return
        said: list[str] = []
        lines = block.split("\n")
        for number, line in enumerate(lines, 1):
            request = None if is_hello(line) else parse_line(line)
            if isinstance(request, str):
                said.append(request)
                continue
            if said:
                yield SayBlock("\n".join(said))
                said.clear()
            if request is None:
                yield from _parse_hello(line[len("/json") :])
                if number < len(lines):
                    yield from JSON.parse_requests(behind(block, number))
                return
            yield request
        if said:
            yield SayBlock("\n".join(said))

    def encode_request(self, request: WireRequest) -> str:
        """Spell one request as the line that one would type; its nonce is left out."""
        match request:
            case Say(text=text):
                return say_literally(text)
            case Act(text=text):
                return f"/me {text}"
            case Direct(to=to, text=text):
                return f"/msg {to} {text}"
            case Rename(name=name):
                return f"/name {name}"
            case Join(room=room):
                return f"/join {room}"
            case Ping(token=token):
                return f"/ping {token}" if token else "/ping"
            case Who(room=room):
                return f"/who {room}" if room else "/who"
            case Rooms():
                return "/rooms"
            case History(limit=limit):
                return f"/history {limit}"
            case Help():
                return "/help"
            case Quit():
                return "/quit"

    def encode_said(self, said: SaidBlock) -> bytes:
        """Spell the messages of one publish, each on a line tagged with who said it."""
        tag = f"{self.speaker(said.name, act=said.act)} ".encode()
        return b"".join((tag, said.text.encode().replace(b"\n", b"\n" + tag), b"\n"))

    def with_nonce(self, encoded: bytes, nonce: Nonce | None) -> bytes:  # noqa: ARG002
        """Return *encoded*: the text protocol has no nonces."""
        return encoded

    def speaker(self, name: str, *, act: bool) -> str:
        """Spell what stands before something said, or done, by *name*."""
        return f"* {name}" if act else f"[{name}]"

    def lines(self, event: Event) -> str:
        """Spell one event as the run of lines that it is; empty if there is nothing to show."""
        match event:
            case Said(name="", text=text):
                return text
            case Said(name=name, text=text, act=act):
                return f"{self.speaker(name, act=act)} {text}"
            case Directed(name=name, text=text):
                return f"[{name} → you] {text}"
        return "\n".join(f"[{SERVER_NAME}] {text}" for text in self.describe(event))

    def describe(self, event: Event) -> list[str]:
        """Say in words, one line each, what the server itself tells with an event."""
        match event:
            case Welcome(name=name, room=room, members=members):
                return [f"you are {name} in {room}; {_are_here(members)}"]
            case Joined(room="", name=name):
                return [f"{name} joined"]
            case Joined(room=room, members=members):
                return [f"you are in {room}; {_are_here(members)}"]
            case Left(name=name, reason=reason):
                return [f"{name} left ({reason})" if reason else f"{name} left"]
            case Renamed(old=old, name=name):
                return [f"{old} is now {name}"]
            case Presence(members=members):
                kinds = ("joined", "left", "renamed")
                changes = [f"{n} {kind}" for kind in kinds if (n := getattr(event, kind))]
                return [f"{', '.join(changes)}; {_are_here(members)}"]
            case Missed(count=count):
                return [f"{_messages(count)} skipped"]
            case Members(room=room, members=[], person_in=person_in):
                if not person_in:
                    return [f"nobody is in {room}"]
                return [f"{room} is no room but a person, in {person_in}"]
            case Members(room=room, members=names):
                return [f"{len(names)} in {room}:", *(f"{m.client} {m.name}" for m in names)]
            case RoomList(rooms=rooms):
                return [
                    "rooms, with how many are there:",
                    *(f"{r.room} {r.members}" for r in rooms),
                ]
            case HistoryPage(messages=messages, missed=missed):
                unreadable = f" and {missed} that cannot be read" if missed else ""
                return [
                    f"{_messages(len(messages))}{unreadable}, times in UTC:",
                    *(f"{_format_time(said.time)} {self.lines(said)}" for said in messages),
                ]
            case Pong(token=token):
                return [f"pong {token}".rstrip(" ")]
            case Goodbye(reason=reason):
                return [f"{_GOODBYE}{reason}"]
            case Notice(text=text) | Error(text=text):
                return [text]
        return []

    def encode(self, event: Event) -> bytes:
        """Spell one event as it stands on the wire."""
        lines = self.lines(event)
        return f"{lines}\n".encode() if lines else b""

    def parse_events(self, block: str) -> Iterator[Event]:
        """Yield what a server tells us with a run of lines; any line at all is an event."""
        return map(self._parse_event, block.split("\n"))

    def _parse_event(self, line: str) -> Event:
        if directed := _DIRECTED.fullmatch(line):
            return Directed(name=directed[1], text=directed[2])
        if tagged := _TAGGED.fullmatch(line):
            name, text = tagged.groups()
            if name != SERVER_NAME:
                return Said(name=name, text=text)
            if text.startswith(_GOODBYE):
                return Goodbye(text.removeprefix(_GOODBYE))
            return Notice(text)
        if acted := _ACTED.fullmatch(line):
            return Said(name=acted[1], text=acted[2], act=True)
        return Said(name="", text=line)


def encoded_help(codec: Codec, nonce: Nonce | None = None) -> bytes:
    """Return the encoded answer to `Help`, a notice a line, within 60 columns."""
    notices = _encoded_help.get(codec)
    if notices is None:
        lines = ["commands, each on a line of its own:", *help_lines()]
        notices = _encoded_help[codec] = [codec.encode(Notice(line)) for line in lines]
    return b"".join(codec.with_nonce(notice, nonce) for notice in notices)


_encoded_help: dict[Codec, list[bytes]] = {}


def _are_here(members: int) -> str:
    return "nobody else is here" if members == 1 else f"{members} are here"


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"


def _format_time(time: str) -> str:
    """Return a time on the wire as people read it, without its fraction."""
    return f"{time[:10]} {time[11:19]}"


# --- The JSON protocol
# -------------------------------------------------------------------------------

_LAST_DIGITS = [f"{digits:03}" for digits in range(1000)]  # spelling a number takes its time

# Of what the decoder says is wrong; it may quote the line.
_REASON_CHARACTERS = 200

_NO_NONCE = (
    f"a nonce is a string of at most {MAX_TOKEN_CHARACTERS} characters, "
    "or a whole number from -2^53 to 2^53"
)


class _Kind(msgspec.Struct):
    """As much as can be known of an object that is no request."""

    type: Any = None
    nonce: Any = None


# What the answer to a request repeats.
_REPEATED = ("nonce", "token")

_REQUESTS = JsonDecoder(WireRequest, exact=_REPEATED)
_KIND = JsonDecoder(_Kind, exact=("nonce",))
_EVENTS = JsonDecoder(WireEvent)
_HELLO = JsonDecoder(Hello)
_REQUEST_TYPES = frozenset(kind.__struct_config__.tag for kind in get_args(WireRequest))
_encode = msgspec.json.Encoder().encode
_decode_kind = msgspec.json.Decoder(_Kind).decode


class JsonCodec:
    """What programs speak: one JSON object per line, both ways, its `type` first."""

    name: ClassVar[str] = "json"
    least_said_bytes: ClassVar[int] = 100

    def parse_requests(self, block: str) -> Iterator[Request]:
        """Yield what a client asks with a run of lines, what is said between two others as one."""
        requests: Iterable[Request | Say] | None = _REQUESTS.read_block(block)
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
            return _REQUESTS.read(line, raw)  # type: ignore[no-any-return]
        except NestedTooDeeply as error:
            return Invalid.because(InvalidRequest(str(error)))
        except (msgspec.MsgspecError, NotExact) as error:
            reason = _reason(error, line)
        nonce = None
        try:
            kind = _KIND.read(line, raw)
        except (msgspec.MsgspecError, NotExact) as error:
            reason = _reason(error, line)
        else:
            nonce = kind.nonce if _is_nonce(kind.nonce) else None
            if isinstance(kind.type, str) and kind.type not in _REQUEST_TYPES:
                unknown = UnknownRequest(f"there is no request {shortened(kind.type)}")
                return Invalid.because(unknown, nonce)
        return Invalid.because(InvalidRequest(reason), nonce)

    def encode_request(self, request: WireRequest) -> str:
        """Spell one request as a line."""
        return _encode(request).decode()

    def encode(self, event: Event) -> bytes:
        """Spell one event as it stands on the wire."""
        return _encode(event) + b"\n"

    def with_nonce(self, encoded: bytes, nonce: Nonce | None) -> bytes:
        """Add *nonce* as the last field of an answer that was encoded without one."""
        if nonce is None:
            return encoded
        return b"".join((encoded.removesuffix(b"}\n"), b',"nonce":', _encode(nonce), b"}\n"))

    def said_bytes(self, said: Said) -> int:
        """Return how long `spell` makes *said*, which is clean, without encoding its text."""
        text = said.text
        size = len(text) if text.isascii() else len(text.encode())
        escapes = text.count('"') + text.count("\\") + text.count("\t")
        return len(self.encode(msgspec.structs.replace(said, text=""))) + size + escapes

    def encode_said(self, said: SaidBlock) -> bytes:
        """Spell the messages of one publish, each as a `Said` of its own.

        Not by the encoder, which takes nearly three times as long: what all of them have in common
        is spelled once.
        """
        texts = said.text.split("\n")
        # What has to be escaped in clean text; a pattern would take as long as all the rest.
        if '"' in said.text or "\\" in said.text or "\t" in said.text:
            texts = [_encode(text).decode()[1:-1] for text in texts]
        head = f'{{"type":"said","id":"{said.epoch}-'
        between = (
            f'","time":"{said.time}","room":"{said.room}",'
            f'"client":{said.client},"name":"{said.name}","text":"'
        )
        tail = '","act":true}\n' if said.act else '"}\n'
        pieces: list[str] = []
        number = FIRST_ID + said.first
        while texts:  # a thousand ids have all but their last digits in common
            thousands, digits = divmod(number, 1000)
            some, texts = texts[: 1000 - digits], texts[1000 - digits :]
            # Four pieces for each message, two of them put in all at once.
            spelled = [f"{tail}{head}{thousands}", "", between, ""] * len(some)
            spelled[1::4] = _LAST_DIGITS[digits : digits + len(some)]
            spelled[3::4] = some
            pieces += spelled
            number += len(some)
        pieces[0] = pieces[0].removeprefix(tail)
        pieces.append(tail)
        return "".join(pieces).encode()

    def parse_events(self, block: str) -> Iterator[Event]:
        """Yield what a server tells us with a run of lines.

        What has the form of an event and is none that we know is left out; any other line comes
        back as something said by nobody.
        """
        events = _EVENTS.read_block(block)
        if events is not None:
            yield from events
            return
        for line in block.split("\n"):
            try:
                yield _EVENTS.read(line)
            except NestedTooDeeply:
                yield Said(name="", text=line)
            except msgspec.MsgspecError:
                if not _has_type(line):
                    yield Said(name="", text=line)


def _has_type(line: str) -> bool:
    try:
        return isinstance(_decode_kind(line).type, str)
    except msgspec.MsgspecError:
        return False


def _say_block(texts: list[str], nonces: list[Nonce | None], room: str | None) -> SayBlock:
    answered = any(nonce is not None for nonce in nonces)
    return SayBlock("\n".join(texts), tuple(nonces) if answered else (), room)


def _parse_hello(rest: str) -> Iterator[Request]:
    if not rest.strip():
        yield Hello()
        return
    try:
        yield _HELLO.read(rest)
    except NestedTooDeeply as error:
        yield Hello()
        yield Invalid.because(InvalidRequest(str(error)))
    except msgspec.MsgspecError as error:
        yield Hello()
        yield Invalid.because(InvalidRequest(_reason(error, rest)))


def is_hello(line: str) -> bool:
    """Whether *line*, of the text protocol, is a hello."""
    return line[:5].lower() == "/json" and not line[5:6].strip()


def encode_hello(hello: Hello) -> str:
    """Spell the hello, which is a line of the text protocol; every server of ours takes it."""
    return f"/json {_encode(hello).decode()}"


def _reason(error: Exception, line: str) -> str:
    reason = clean(str(error))[:_REASON_CHARACTERS]
    if reason.endswith("`$.nonce`"):
        reason = _NO_NONCE
    elif ("surrogate" in reason or "truncated" in reason) and (escape := lone_surrogate(line)):
        reason = f"{escape} is half of a surrogate pair, the other half is missing"
    return f"that is no request: {reason}"


def _is_nonce(value: object) -> bool:
    try:
        msgspec.convert(value, Nonce)
    except msgspec.ValidationError:
        return False
    return True


TEXT = TextCodec()
JSON = JsonCodec()
