"""Negotiation: which protocol a connection speaks, and whether the server admits us.  Pure.

The client asks for JSON with its hello, and sends nothing else until the server has answered.  A
hello with a passphrase is sent only after the answer to a `PROBE`: any other server might show that
line to everybody.

- A `welcome` settles JSON; one that is not valid is an error.
- Any other line settles text, for good: the other side is a plain line server.

Three kinds of lines may come before the answer and settle nothing: those about the password, a
goodbye, and chat.  A server delivers what is said in its lobby as soon as it has accepted the
connection, so a few messages may come before it has read the hello.  They are kept in case the
server turns out to speak text, and dropped when the welcome comes: before it the client was in no
room.
"""

import re
from collections.abc import Sequence

from multichat.errors import Remedy, RemoteProtocolError, UnknownId
from multichat.protocol.auth import PASSWORD_ACCEPTED, PASSWORD_REQUIRED, WRONG_PASSWORD
from multichat.protocol.codec import Codec
from multichat.protocol.framing import clean
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    PROTOCOL,
    Credentials,
    Error,
    Event,
    Goodbye,
    Hello,
    Join,
    Login,
    Notice,
    Rename,
    Said,
    Start,
    Welcome,
    room_of,
)
from multichat.protocol.names import fold_name
from multichat.protocol.text_codec import TEXT

__all__ = [
    "PROBE",
    "PROBE_ANSWER",
    "Negotiation",
    "check_welcome",
    "make_hello",
    "plain_hello",
    "settles_text",
]

PROBE = "/ping multichat"
"""What a client sends before a hello with a passphrase; no secret, and no message to anybody."""

PROBE_ANSWER = "[Server] pong multichat"
"""What only a server of ours answers to `PROBE`."""

# Recognizes a welcome of any server, whatever is wrong with the rest of it.
_WELCOME = re.compile(r'\{\s*"type"\s*:\s*"welcome"')

# A lobby has less chat than that while the server reads a hello.
_MAX_CHAT_CHARACTERS = 4 * 1024 * 1024
_MAX_CHAT_LINES = 20_000

_ABOUT_PASSWORD = (PASSWORD_REQUIRED, PASSWORD_ACCEPTED, WRONG_PASSWORD)


def make_hello(
    name: str | None = None,
    room: str | None = None,
    replay: int = 0,
    *,
    rooms: Sequence[str] = (),
    login: Credentials | None = None,
) -> Hello:
    """Return a hello that asks for these, which may hold any text.

    *room* is the current room, *rooms* are those to be in besides.  With *login* and without *name*
    the name is that of the account.
    """
    room = None if room is None else room_of(clean(room))
    others = [room_of(clean(each)) for each in rooms]
    if room is None and others:
        room = others.pop()
    # Empty if none is named: it still says that we understand events of several rooms.
    starts = {each: Start(replay=replay) for each in (*others, *filter(None, [room]))}
    return Hello(
        PROTOCOL,
        None if name is None else clean(name),
        room,
        replay=replay,
        rooms=starts,
        login=login,
    )


def plain_hello(hello: Hello) -> str:
    """Return the lines of the text protocol that ask for what *hello* asks for; maybe none."""
    requests: list[Login | Rename | Join] = []
    if hello.login is not None:
        requests.append(Login(hello.login.name, hello.login.passphrase))
    if hello.name is not None:
        requests.append(Rename(hello.name))
    if hello.room is not None:
        requests.append(Join(hello.room))
    return "\n".join(map(TEXT.encode_request, requests))


def settles_text(event: Event) -> bool:
    """Return whether a first line, decoded as text, can only come from a server that speaks it."""
    match event:
        case Notice(text=text):
            return text.startswith(("unknown command /json", "unknown command /ping"))
        case Said(name=name):
            return not name
    return False


def check_welcome(line: str) -> None:
    """Raise `RemoteProtocolError` if *line* is a welcome that is not valid."""
    if _WELCOME.match(line) and not isinstance(next(JSON.parse_events(line), None), Welcome):
        error = RemoteProtocolError("the server's welcome is not valid")
        error.remedy = Remedy.SPEAK_TEXT
        raise error


class Negotiation:
    """The decoder of one connection: it settles the protocol, then decodes with its codec.

    *settled* says that the protocol is known, and that requests may be sent; *welcome* is the
    server's answer, and *refusals* say why a name, room or login was not granted.  *chatting*
    says that chat has come and no answer yet.  *failure* says what is wrong with the answer.

    *password_asked* says that the server requires a password and has not accepted one,
    *password_sent* that it was sent one, *password_refused* that this is wrong, *password_accepted*
    that one was accepted, also one that the user sent.

    *asks_first* says that `PROBE` has to be sent before the hello, *is_ours* that it was answered.

    *said_goodbye* says that the last event was a goodbye; *disconnected*, that lines after it are
    ignored.  Once text is settled no line is ignored: another server may relay a line of any user
    that looks like a goodbye.

    With *plain*, text is settled from the start.  With *knows_json* the server has welcomed us on
    an earlier connection: whatever comes before its welcome is dropped, and text is never settled.
    The same holds once `PROBE` was answered.
    """

    def __init__(self, hello: Hello, *, plain: bool = False, knows_json: bool = False) -> None:
        self.hello = hello
        self.settled = self.plain = plain
        self.asks_first = hello.login is not None and not plain
        self.is_ours = False
        self.welcome: Welcome | None = None
        self.refusals: list[Error] = []
        self.password_asked = self.password_sent = self.password_refused = False
        self.password_accepted = False
        self.failure: RemoteProtocolError | None = None
        self.said_goodbye = self.disconnected = False
        self._knows_json = knows_json
        self._chat: list[str] = []
        self._chat_characters = 0
        self._refusals_left = 0  # that follow the welcome and have not come yet

    @property
    def codec(self) -> Codec:
        """The protocol that is spoken now."""
        return TEXT if self.welcome is None else JSON

    @property
    def chatting(self) -> bool:
        """Whether chat has come, and no answer yet."""
        return bool(self._chat)

    @property
    def answered(self) -> bool:
        """Whether the server has answered the hello, in any way; with *plain* there is no hello."""
        return (
            self.password_asked
            or self.welcome is not None
            or self.said_goodbye
            or self.failure is not None
            or (self.settled and not self.plain)
        )

    @property
    def may_be_refused(self) -> bool:
        """Whether the welcome has another name or room than the hello, and errors may still come.

        No refusal comes if a filter of the server has changed the name or the room.
        """
        return self.welcome is not None and not self.settled

    @property
    def password_answered(self) -> bool:
        """Whether the server has answered the password that it was sent."""
        return (
            self.password_refused
            or self.said_goodbye
            or self.failure is not None
            or (not self.password_asked and (self.settled or self.welcome is not None))
        )

    def receive(self, block: str) -> list[Event]:
        """Return the events of a block of lines, except those that concern only the negotiation."""
        events: list[Event] = []
        lines = block.split("\n") if not self.settled else []
        for number, line in enumerate(lines, 1):
            if self.disconnected or self.failure is not None:
                break
            events += self._receive_line(line)
            if self.settled:
                block = "\n".join(lines[number:])
                break
        if self.settled and block and not self.disconnected:
            events += self._decode(block)
        if events:
            self.said_goodbye = isinstance(events[-1], Goodbye)
        return events

    def _decode(self, block: str) -> list[Event]:
        events = list(self.codec.parse_events(block))
        if self.codec is TEXT:
            if "password" in block:
                for event in events:
                    self._note_password(event)
        elif "goodbye" in block or "\\u" in block:  # an escape may be part of the word
            for number, event in enumerate(events, 1):
                if isinstance(event, Goodbye):
                    self.disconnected = True
                    return events[:number]
        return events

    def _receive_line(self, line: str) -> list[Event]:
        if self.welcome is not None:
            return self._receive_refusals(line)
        if self.asks_first and line == PROBE_ANSWER:
            self.is_ours = self._knows_json = True
            self._chat.clear()
            return []
        event = next(JSON.parse_events(line), None) if line.startswith("{") else None
        if isinstance(event, Welcome):
            self._be_welcomed(event)
            return [event]
        if isinstance(event, Goodbye):  # a server that is not available says so in JSON
            self.disconnected = True
            return [*self._take_chat(), event]
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
            self._note_password(event)
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

    def _note_password(self, event: Event) -> None:
        match event:
            case Notice(text=text) if text == PASSWORD_REQUIRED:
                self.password_asked = True
            case Notice(text=text) if text == PASSWORD_ACCEPTED:
                self.password_asked = self.password_refused = False
                self.password_accepted = True
            case Notice(text=text) if text == WRONG_PASSWORD and self.password_asked:
                self.password_refused = True

    def _be_welcomed(self, welcome: Welcome) -> None:
        self.welcome = welcome
        self._chat.clear()
        hello = self.hello
        granted = (welcome.room,) if welcome.rooms is None else welcome.rooms
        asked = () if hello.rooms is None or welcome.rooms is None else hello.rooms
        missing = set(map(fold_name, asked or filter(None, (hello.room,))))
        self._refusals_left = len(missing - set(map(fold_name, granted)))
        if hello.name is not None and fold_name(hello.name) != fold_name(welcome.name):
            self._refusals_left += 1
        if hello.login is not None and fold_name(hello.login.name) != fold_name(welcome.account):
            if welcome.rooms is None:  # an older server, which has not read the login
                self.refusals.append(Error("unknown-request", "this server has no accounts"))
            else:
                self._refusals_left += 1
        self.settled = not self._refusals_left

    def _receive_refusals(self, line: str) -> list[Event]:
        events: list[Event] = []
        for event in JSON.parse_events(line):
            if isinstance(event, Error) and event.code == UnknownId.code:
                events.append(event)  # the room was entered, after another message
            elif isinstance(event, Error) and event.nonce is None:
                self.refusals.append(event)
                self._refusals_left -= 1
                self.settled = not self._refusals_left
            else:  # name and room were refused for the same reason, in one error
                self.settled = True
                self.disconnected = isinstance(event, Goodbye)
                events.append(event)
        return events

    def settle_text(self) -> list[Event]:
        """Use the text protocol from now on; return the chat that has come."""
        self.settled = True
        return self._take_chat()

    def _take_chat(self) -> list[Event]:
        chat, self._chat = self._chat, []
        return list(TEXT.parse_events("\n".join(chat))) if chat else []
