"""The beginning of a client's connection: the hello, the password, and which protocol is spoken.

Pure.  The client asks for JSON with its hello, and nothing else is sent until the server has
answered:

- A `welcome` settles JSON; one that is not valid is an error.
- Any other line settles text, for good: the other side is a plain line server.

Three kinds of lines come before the answer and settle nothing: those about the password, a goodbye,
and chat.  A server delivers what is said in its lobby from the moment at which it has accepted the
connection, so a few messages may come before it has read the hello.  They are kept in case that the
other side turns out to speak text, and dropped when the welcome comes: before it the client was in
no room.
"""

import re

from multichat.errors import RemoteProtocolError
from multichat.protocol.auth import PASSWORD_ACCEPTED, PASSWORD_REQUIRED, WRONG_PASSWORD
from multichat.protocol.codec import Codec
from multichat.protocol.framing import clean
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    PROTOCOL,
    Error,
    Event,
    Goodbye,
    Hello,
    Notice,
    Said,
    Welcome,
    room_of,
)
from multichat.protocol.names import fold_name
from multichat.protocol.text_codec import TEXT

__all__ = ["Handshake", "check_welcome", "make_hello", "settles_text"]

# A welcome as any server spells it, whatever is wrong with the rest.
_WELCOME = re.compile(r'\{\s*"type"\s*:\s*"welcome"')

# A lobby says less than that while the server reads a hello.
_MAX_CHAT_CHARACTERS = 4 * 1024 * 1024
_MAX_CHAT_LINES = 20_000

_ABOUT_PASSWORD = (PASSWORD_REQUIRED, PASSWORD_ACCEPTED, WRONG_PASSWORD)


def make_hello(name: str | None = None, room: str | None = None, replay: int = 0) -> Hello:
    """Return a hello with these wishes, which may hold anything."""
    return Hello(
        PROTOCOL,
        None if name is None else clean(name),
        None if room is None else room_of(clean(room)),
        replay=replay,
    )


def settles_text(event: Event) -> bool:
    """Say whether a first line, read as text, can only come from a server that speaks text."""
    match event:
        case Notice(text=text):
            return text.startswith("unknown command /json")
        case Said(name=name):
            return not name
    return False


def check_welcome(line: str) -> None:
    """Raise `RemoteProtocolError` if *line* is a welcome that is not valid."""
    if _WELCOME.match(line) and not isinstance(next(JSON.parse_events(line), None), Welcome):
        raise RemoteProtocolError(
            "the server's welcome is not valid; use --plain to speak plain text"
        )


class Handshake:
    """The state of one connection's beginning.

    *settled* says that the protocol is known, and new lines may be sent; *welcome* is the server's
    answer, and *refusals* say why wishes of the hello were not granted.  *chatting* says that chat
    has come and no answer yet.

    *password_asked* says that the server wants a password and has not accepted one,
    *password_said* that it was sent one, *password_refused* that this is wrong.

    *failure* is what is wrong with the server's answer.

    *disconnected* says that the server has said goodbye: lines behind that are ignored.  In text
    that is settled it never is: another server may pass on such a line that anybody has typed.

    With *plain* text is settled from the start.  With *knows_json* the server has welcomed us on an
    earlier connection: whatever comes before its welcome is dropped, and text is never settled.
    """

    def __init__(self, hello: Hello, *, plain: bool = False, knows_json: bool = False) -> None:
        self.hello = hello
        self.settled = plain
        self.welcome: Welcome | None = None
        self.refusals: list[Error] = []
        self.password_asked = self.password_said = self.password_refused = False
        self.failure: RemoteProtocolError | None = None
        self.disconnected = False
        self._knows_json = knows_json
        self._chat: list[str] = []
        self._chat_characters = 0
        self._wishes_refused = 0  # refusals that the welcome is followed by, and that have not come

    @property
    def codec(self) -> Codec:
        """The protocol that is spoken now."""
        return TEXT if self.welcome is None else JSON

    @property
    def chatting(self) -> bool:
        """Whether chat has come, and no answer yet."""
        return bool(self._chat)

    def hear(self, block: str) -> list[Event]:
        """Return what the server tells with a run of lines, except what only concerns this."""
        settled = self.settled
        if settled:
            return self._hear_settled(block)
        events: list[Event] = []
        lines = block.split("\n")
        for number, line in enumerate(lines, 1):
            if self.disconnected or self.failure is not None:
                break
            events += self._hear_line(line)
            if self.settled:
                rest = "\n".join(lines[number:])
                return events + self._hear_settled(rest) if rest else events
        return events

    def _hear_settled(self, block: str) -> list[Event]:
        if self.disconnected:
            return []
        events = list(self.codec.parse_events(block))
        if self.codec is JSON:
            for number, event in enumerate(events, 1):
                if isinstance(event, Goodbye):
                    self.disconnected = True
                    return events[:number]
        elif "password" in block:
            for event in events:
                self._hear_of_password(event)
        return events

    def _hear_line(self, line: str) -> list[Event]:
        if self.welcome is not None:
            return self._hear_refusals(line)
        event = next(JSON.parse_events(line), None) if line.startswith("{") else None
        if isinstance(event, Welcome):
            self._be_welcomed(event)
            return [event]
        try:
            check_welcome(line)
        except RemoteProtocolError as error:
            self.failure = error
            return []
        event = next(iter(TEXT.parse_events(line)))
        if isinstance(event, Goodbye):
            self.disconnected = True
            return [*self._take_chat(), event]
        if isinstance(event, Notice) and event.text in _ABOUT_PASSWORD:
            self._hear_of_password(event)
            return []
        if self._knows_json:
            return []
        self._chat.append(line)
        self._chat_characters += len(line)
        if settles_text(event):
            return self.settle_text()
        if self._chat_characters > _MAX_CHAT_CHARACTERS or len(self._chat) > _MAX_CHAT_LINES:
            return self.settle_text()
        return []

    def _hear_of_password(self, event: Event) -> None:
        match event:
            case Notice(text=text) if text == PASSWORD_REQUIRED:
                self.password_asked = True
            case Notice(text=text) if text == PASSWORD_ACCEPTED:
                self.password_asked = self.password_refused = False
            case Notice(text=text) if text == WRONG_PASSWORD and self.password_asked:
                self.password_refused = True

    def _be_welcomed(self, welcome: Welcome) -> None:
        self.welcome = welcome
        self._chat.clear()
        wishes = (self.hello.room, welcome.room), (self.hello.name, welcome.name)
        self._wishes_refused = sum(
            wish is not None and fold_name(wish) != fold_name(granted) for wish, granted in wishes
        )
        self.settled = not self._wishes_refused

    def _hear_refusals(self, line: str) -> list[Event]:
        events: list[Event] = []
        for event in JSON.parse_events(line):
            if isinstance(event, Error) and event.nonce is None:
                self.refusals.append(event)
                self._wishes_refused -= 1
                self.settled = not self._wishes_refused
            else:  # two wishes that were refused for the same reason have one refusal
                self.settled = True
                self.disconnected = isinstance(event, Goodbye)
                events.append(event)
        return events

    def settle_text(self) -> list[Event]:
        """Speak text from now on; return the chat that has come."""
        self.settled = True
        return self._take_chat()

    def _take_chat(self) -> list[Event]:
        chat, self._chat = self._chat, []
        return list(TEXT.parse_events("\n".join(chat))) if chat else []
