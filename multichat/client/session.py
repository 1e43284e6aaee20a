"""A client's session across its connections: lines in, events out.  Pure.

Owns our identity and rooms, the unanswered requests, and the selection of events for the program.
Invariants:

1. A JSON request stays in the outbox until it is answered.  A new connection begins with all of
   them, in order, each with the nonce that it had; nothing new is sent before.
2. No message of a room is returned twice, and none is left out without a `Missed` or an `Error`.
"""

from collections.abc import Iterable

import msgspec

from multichat.client.negotiation import Negotiation
from multichat.client.outbox import Outbox, Pending
from multichat.client.position import Position
from multichat.errors import LineTooLong, NotInRoom
from multichat.protocol.codec import Codec
from multichat.protocol.framing import Part
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    Accepted,
    Act,
    ChangePassphrase,
    Credentials,
    Directed,
    Enter,
    Entered,
    Error,
    Event,
    Exit,
    Exited,
    Hello,
    Join,
    Joined,
    Left,
    LoggedIn,
    LoggedOut,
    Login,
    Nonce,
    Notice,
    Ping,
    Presence,
    Quit,
    Reconnected,
    Register,
    Renamed,
    Said,
    Say,
    Welcome,
    WireRequest,
)
from multichat.protocol.names import fold_name, with_visible_names
from multichat.protocol.text_codec import TEXT

__all__ = ["ClientSession"]

_GAP = "messages that were said here meanwhile may be missing; /history shows the latest"


class ClientSession:
    """The state of one client, which begins with *hello*, or in *plain* text.

    *negotiation* is that of the current, or else the last, connection.  *answers* maps the nonce of
    each request that a call is waiting on to its answer, or None until it arrives; *answered*
    counts all answers.  If *reports_accepted* is set, each `Accepted` is among the events.  If
    *refused* is set, it gets the error of each message that is refused, in the step in which the
    message leaves the outbox; and after a refused join, messages are still meant for that room, and
    so are refused, until we have joined or entered another.
    *last_sender* is the client that sent us the last private message.
    """

    def __init__(self, hello: Hello, *, plain: bool) -> None:
        self.position = Position(hello.login)
        self.outbox = Outbox()
        self.welcome: Welcome | None = None
        self.negotiation = Negotiation(hello, plain=plain)
        self.reports_accepted = False
        self.refused: dict[Nonce, Error] | None = None
        self._refused_room = ""
        self.answers: dict[Nonce, Event | None] = {}
        self.answered = 0
        self.last_sender: int | None = None
        self.wanted_name = ""
        self.name_releases = 0  # how often the wanted name may have become free
        self._holder = ""  # the name in use that the wanted one looks like
        self._has_begun = False  # on an earlier connection, in either protocol
        # Requests on this connection whose answer is dropped.
        self._unwanted: dict[Nonce, WireRequest] = {}

    @property
    def codec(self) -> Codec:
        """The current protocol; always JSON once there was a welcome."""
        return TEXT if self.welcome is None else JSON

    def reconnect(self) -> None:
        """Begin a new connection, with a hello that resumes the session."""
        self._unwanted.clear()
        self._has_begun = self._has_begun or self.negotiation.settled or bool(self.position.session)
        if self.position.session:
            hello = self.position.hello(self.outbox.entering())
            self.negotiation = Negotiation(hello, knows_json=True)
        else:
            self.negotiation = Negotiation(self.negotiation.hello, plain=self.negotiation.plain)

    # --- Requests ---------------------------------------------------------------------------------

    def encode(self, request: WireRequest) -> Pending:
        """Give a request its nonce, and a message the room that it is meant for.

        So a message cannot be published elsewhere: not in the old room if a join is refused, nor in
        another room after a reconnect.
        """
        if isinstance(request, Say | Act) and request.room is None:
            rooms = (self._refused_room,) if self._refused_room else self.position.rooms
            room = self.outbox.next_room(rooms)
            request = msgspec.structs.replace(request, room=room or None)
        return self.outbox.encode(request)

    def encode_unanswered(self, request: Ping | Quit) -> str:
        """Return the line of a request whose response is dropped."""
        pending = self.outbox.encode(request)
        self._unwanted[pending.nonce] = request
        return pending.line

    def take_answer(self, nonce: int) -> Event | None:
        """Return the answer to a request of *answers*; without one, stop waiting for it."""
        answer = self.answers.pop(nonce)
        if answer is None and (pending := self.outbox.settle(nonce)):  # else it was never sent
            self._unwanted[nonce] = pending.request
        return answer

    # --- Events -----------------------------------------------------------------------------------

    def receive(self, parts: Iterable[Part], *, ended: bool = False) -> list[Event]:
        """Return the events of one read for the program.

        *ended* says that it was the last, so that it may end within a line.
        """
        events: list[Event] = []
        for part in parts:
            if self.negotiation.disconnected:
                break
            if isinstance(part, LineTooLong):
                events.append(Notice(str(part)))
            elif not (ended and not self.negotiation.settled and part.startswith("{")):
                events += self._receive_block(part, ended=ended)  # else half a welcome
        return events

    def _receive_block(self, block: str, *, ended: bool) -> list[Event]:
        decoded = self.negotiation.receive(block)
        # A block without these cannot have invisible characters in a name.
        if not block.isascii() or "\\u" in block:
            decoded = list(map(with_visible_names, decoded))
        if self.negotiation.codec is TEXT:
            return decoded
        events: list[Event] = []
        for event in decoded:
            if isinstance(event, Said):
                # A partial last line without an id is dropped; the next connection resends the
                # whole message.
                if self.position.advance(event) and (event.id or not ended):
                    events.append(event)
                continue
            if isinstance(event, Welcome):
                events += self._refuse_unsendable(event)
            if (shown := self._apply(event)) is not None:
                events.append(shown)
        return events

    def _refuse_unsendable(self, welcome: Welcome) -> list[Event]:
        """Answer the requests that must not be sent again with an error.

        These are requests with a passphrase, and private messages to client numbers: a server that
        does not know our session may have given these numbers to other clients.
        """
        refused = [
            Error("connection-lost", "the connection was lost; try again", nonce=nonce)
            for nonce in self.outbox.secrets()
        ]
        if not welcome.resumed:
            self.last_sender = None
            reason = "not sent: the server was restarted, and its clients have new numbers"
            refused += [
                Error("nobody-there", reason, nonce=nonce)
                for nonce in self.outbox.addressed_by_number()
            ]
        answers = map(self._apply, refused)
        return [answer for answer in answers if answer is not None]

    def _apply(self, event: Event) -> Event | None:
        """Update the state by an event; return the event for the program, if any."""
        pending = self.outbox.settle(event.nonce)
        self.answered += pending is not None
        request = None if pending is None else pending.request
        if request is None and event.nonce is not None:
            request = self._unwanted.get(event.nonce)
        match event:
            case Welcome():
                return self._welcomed(event)
            case Renamed(client=client, old=old):
                self.position.renamed(event)
                if client != self.position.client:
                    self._note_released(old)
            case Joined(client=self.position.client, room=room) if room and isinstance(
                request, Join | Enter
            ):
                event = self._joined(event, request)
            case Left(client=self.position.client, room=room) if room:
                self.position.exited(room)
                event = Exited(room, nonce=event.nonce)
            case Left(name=name):
                self._note_released(name)
            case Presence():
                self.name_releases += 1
            case Directed(client=client):
                self.last_sender = client
            case LoggedIn(name=name):
                self._logged_in(name, request)
            case LoggedOut(name=name):
                self.position.name, self.position.account = name, ""
                self.position.login = None
            case Error(code="name-taken", holder=holder):
                self._holder = holder
            case Error(code=NotInRoom.code) if isinstance(request, Exit):
                self.position.give_up(request.room)
            case Error(code="unknown-id", nonce=None):
                self.position.restart(event.room or self.position.room)
                return Error(event.code, _GAP, room=event.room)
            case Error() if pending is not None and self.refused is not None:
                if pending.is_message:
                    self.refused[pending.nonce] = event
                elif isinstance(request, Join | Enter):
                    self._refused_room = request.room
        return self._for_program(event, is_answer=pending is not None)

    def _joined(self, joined: Joined, request: Join | Enter) -> Event:
        """Update the position, as it was us who joined a room."""
        self._refused_room = ""
        if isinstance(request, Enter):
            self.position.entered(joined.room, joined.last)
        else:
            self.position.joined(joined.room, joined.last)
        return Entered(joined.room, joined.members, joined.last, joined.topic, nonce=joined.nonce)

    def _logged_in(self, name: str, request: WireRequest | None) -> None:
        """Note the account, and what later connections log in with."""
        position = self.position
        position.account = name
        match request:
            case Login(passphrase=passphrase):
                position.name = name
                position.login = Credentials(name, passphrase)
            case Register(passphrase=passphrase) | ChangePassphrase(passphrase=passphrase):
                position.login = Credentials(name, passphrase)

    def _note_released(self, name: str) -> None:
        holders = self.wanted_name, self._holder, *(e.holder for e in self.negotiation.refusals)
        if self.wanted_name and fold_name(name) in map(fold_name, holders):
            self.name_releases += 1

    def _welcomed(self, welcome: Welcome) -> Event | None:
        self.welcome = welcome
        self.position.welcomed(welcome)
        if not welcome.account:  # the login was refused: the passphrase is another one now
            self.position.login = None
        if not self._has_begun:
            return None
        return Reconnected(welcome.resumed, again=self.outbox.messages_sent)

    def _for_program(self, event: Event, *, is_answer: bool) -> Event | None:
        nonce = event.nonce
        if nonce is None:
            return event
        if nonce in self._unwanted:
            del self._unwanted[nonce]
            return None
        if nonce in self.answers:
            self.answers[nonce] = event
            return None
        hidden = is_answer and isinstance(event, Accepted) and not self.reports_accepted
        return None if hidden else event
