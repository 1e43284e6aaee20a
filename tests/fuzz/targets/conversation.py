"""The whole path from one client's socket to the terminals of the others."""

from multichat.errors import LineTooLong
from multichat.protocol.codec import Codec
from multichat.protocol.framing import LineDecoder
from multichat.protocol.ids import message_id
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    Act,
    Direct,
    Directed,
    Error,
    Event,
    Hello,
    Invalid,
    Join,
    Joined,
    Ping,
    Pong,
    Rename,
    Renamed,
    Request,
    Said,
    SaidBlock,
    SayBlock,
)
from multichat.protocol.names import default_name, parse_person_name
from multichat.protocol.text_codec import TEXT
from tests.fuzz.targets.checks import assert_harmless, assert_same, check_event, kept, told_by
from tests.support.messages import cut

__all__ = ["check_conversation"]

_EPOCH, _TIME, _CLIENT = "e4", "2025-01-15T10:30:45.123Z", 7


def check_conversation(data: bytes) -> None:
    """Check what one client sends, from its socket to the terminals of the others.

    The first four bytes are the line limit, a multiple of 16, and three packet boundaries.
    """
    limit, *cuts = data[:4].ljust(4, b"\0")
    sender = _Sender()
    decoder = LineDecoder(16 * limit)
    parts = [part for chunk in cut(data[4:], cuts) for part in decoder.feed(chunk)]
    for part in [*parts, *decoder.finish()]:
        if isinstance(part, LineTooLong):
            _check_heard(Invalid.because(part).error)
        else:
            for request in sender.codec.parse_requests(part):
                sender.ask(request)


class _Sender:
    """The part of a session that needs no other client: the name and the codec of the sender."""

    def __init__(self) -> None:
        self.codec: Codec = TEXT
        self.name = default_name(_CLIENT)
        self.room = "lobby"

    def ask(self, request: Request) -> None:
        match request:
            case SayBlock(text=block):
                self._say(block, act=False)
            case Act(text=text):
                self._say(text, act=True)
            case Direct(text=text):
                directed = Directed(timestamp=_TIME, client=_CLIENT, name=self.name, text=text)
                _check_heard(directed)
                assert_same(TEXT.format(directed), f"[{self.name} → you] {text}", "as it is shown")
            case Rename(name=name):
                self._rename(name)
            case Ping(token=token, nonce=nonce):
                _check_heard(Pong(token, nonce=nonce))
            case Invalid(error=error):
                _check_heard(error)
            case Join(room=room):
                self._join(room)
            case Hello(name=name, room=room):
                self.codec = JSON
                if room is not None:
                    self._join(room)
                if name is not None:
                    self._rename(name)

    def _join(self, requested: str) -> None:
        room, refusal = kept(requested)
        if room:
            self.room = room
            _check_heard(Joined(_CLIENT, self.name, room, 2))
        else:
            _check_heard(Error("invalid-name", refusal))

    def _rename(self, requested: str) -> None:
        name, refusal = kept(requested, parse_person_name)
        if name:
            old, self.name = self.name, name
            _check_heard(Renamed(_CLIENT, old, name))
            _check_heard(Joined(_CLIENT, name))
        else:
            _check_heard(Error("invalid-name", refusal))

    def _say(self, block: str, *, act: bool) -> None:
        said = SaidBlock(_EPOCH, 998, _TIME, self.room, _CLIENT, self.name, block, act=act)
        texts = block.split("\n")
        for codec in (TEXT, JSON):
            wire = codec.encode_said(said)
            assert len(wire) >= len(texts) * codec.least_said_bytes + len(block), "as is promised"
            told = told_by(codec, wire)
            expected = [
                self._said(codec, number, text, act=act) for number, text in enumerate(texts, 998)
            ]
            assert_same(told, expected, f"what is said in the {codec.name} protocol")
            tag = f"* {self.name} " if act else f"[{self.name}] "
            shown = [TEXT.format(event) for event in told]
            assert_same(shown, [f"{tag}{text}" for text in texts], "every line has its tag")
            for line in shown:
                assert_harmless(line)

    def _said(self, codec: Codec, number: int, text: str, *, act: bool) -> Said:
        if codec is TEXT:
            return Said(name=self.name, text=text, act=act)
        return Said(
            id=message_id(_EPOCH, number),
            timestamp=_TIME,
            room=self.room,
            client=_CLIENT,
            name=self.name,
            text=text,
            act=act,
        )


def _check_heard(event: Event) -> None:
    check_event(event)
    if wire := TEXT.encode(event):
        shown = [TEXT.format(each) for each in told_by(TEXT, wire)]
        assert_same(shown, TEXT.format(event).split("\n"), "what is told is shown")
