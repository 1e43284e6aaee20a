"""A client's conversation with a server, whatever connections it takes.  Pure.

Lines in, events out: owns who we are and where, what was asked and not answered, and what of all
that the server tells is for the program.  Invariants:

1. What is asked in JSON stands in the outbox until it is answered.  A new connection begins with
   all of it, in order, each with the nonce that it had; nothing new goes before.
2. Of a room nothing is handed on twice, nor is anything left out without a `Missed` or an `Error`.
"""

from collections.abc import Iterable

import msgspec

from multichat.client.comeback import Position
from multichat.client.negotiation import Handshake
from multichat.client.unacknowledged import Outbox
from multichat.errors import LineTooLong
from multichat.protocol.codec import Codec
from multichat.protocol.framing import Part
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    Accepted,
    Act,
    Directed,
    Error,
    Event,
    Hello,
    Joined,
    Left,
    Nonce,
    Notice,
    Ping,
    Presence,
    Quit,
    Reconnected,
    Renamed,
    Said,
    Say,
    Welcome,
    WireRequest,
)
from multichat.protocol.names import default_name, fold_name, with_visible_names
from multichat.protocol.text_codec import TEXT

__all__ = ["Conversation", "memory_of"]

# What an event, or a member in a list of them, takes in memory besides its text: an object and the
# strings in it.
_OBJECT_BYTES = 200

# What is told where the server does not know the last message that we know.
_GAP = "messages that were said here meanwhile may be missing; /history shows the latest"


def memory_of(block: str) -> int:
    """Return about how many bytes the events of *run* take: one a line, or one a JSON object."""
    return len(block) + _OBJECT_BYTES * (1 + block.count("\n") + block.count("{"))


class Conversation:
    """What a client knows of its conversation, which begins with *hello*, or in *plain* text.

    *handshake* is that of the connection that there is, or was.  *answers* has what was asked by a
    call that waits for it, and the answer once it has come; *answered* counts all answers.  Where
    *tells_accepted* is set each `Accepted` is for the program.  *last_sender* is the client that
    sent us a private message last.
    """

    def __init__(self, hello: Hello, *, plain: bool) -> None:
        self._plain = plain
        self.place = Position()
        self.outbox = Outbox()
        self.welcome: Welcome | None = None
        self.handshake = Handshake(hello, plain=plain)
        self.tells_accepted = False
        self.answers: dict[Nonce, Event | None] = {}
        self.answered = 0
        self.last_sender: int | None = None
        self.wanted_name = ""
        self.name_releases = 0  # how often the wanted name may have become free
        self._holder = ""  # the name that looks like the wanted one, and is in its way
        self._abandoned: set[Nonce] = set()  # nobody waits for the answer any more
        self._has_begun = False  # on an earlier connection, whichever protocol was spoken
        self._our_own: set[Nonce] = set()  # of pings and of the last quit

    @property
    def codec(self) -> Codec:
        """The protocol that is spoken; JSON for good once the server has welcomed us."""
        return TEXT if self.welcome is None else JSON

    @property
    def is_unnamed(self) -> bool:
        """Whether we are called by our number."""
        return fold_name(self.place.name) == fold_name(default_name(self.place.client))

    def begin_again(self) -> None:
        """Begin another connection, with a hello that continues where the last one ended."""
        self._our_own.clear()
        self._abandoned.clear()
        self._has_begun = self._has_begun or self.handshake.settled or bool(self.place.session)
        if self.place.session:
            self.handshake = Handshake(self.place.hello(), knows_json=True)
        else:
            self.handshake = Handshake(self.handshake.hello, plain=self._plain)

    # --- What we ask ------------------------------------------------------------------------------

    def ask(self, request: WireRequest) -> tuple[int, str]:
        """Return the nonce and the line of a *request* whose answer a call waits for."""
        nonce, line = self.outbox.number(request)
        self.answers[nonce] = None
        return nonce, line

    def take_answer(self, nonce: int) -> Event | None:
        """Return the answer to what was asked; if there is none, it is not waited for any more."""
        answer = self.answers.pop(nonce)
        if answer is None and nonce in self.outbox:  # else it was never sent
            self.outbox.take_back([nonce])
            self._abandoned.add(nonce)
        return answer

    def in_room(self, request: WireRequest) -> WireRequest:
        """Return *request* with the room in which it is meant to be heard, if it says something.

        So it is heard nowhere else: not where we are when a join is refused, and not where another
        connection ends up.
        """
        if isinstance(request, Say | Act) and request.room is None:
            room = self.outbox.meant_room(self.place.room)
            return msgspec.structs.replace(request, room=room or None)
        return request

    def number_ours(self, request: Ping | Quit) -> str:
        """Return the line for a request whose answer is not for the program."""
        nonce, line = self.outbox.number(request)
        self._our_own.add(nonce)
        return line

    # --- What we are told -------------------------------------------------------------------------

    def hear(self, parts: Iterable[Part], *, ended: bool = False) -> list[Event]:
        """Return what the program is to hear of what a read brought.

        *ended* says that it was the last, and what stands in it may be half a line.
        """
        events: list[Event] = []
        for part in parts:
            if self.handshake.disconnected:
                break
            if isinstance(part, LineTooLong):
                events.append(Notice(str(part)))
            else:
                events += self._hear_block(part, ended=ended)
        return events

    def _hear_block(self, block: str, *, ended: bool) -> list[Event]:
        if ended and not self.handshake.settled and block.startswith("{"):
            return []  # half a welcome
        heard = list(map(with_visible_names, self.handshake.hear(block)))
        if self.handshake.codec is TEXT:
            return heard
        if ended:  # the message comes whole by the next connection
            heard = [event for event in heard if not isinstance(event, Said) or event.id]
        events: list[Event | None] = []
        for event in heard:
            if isinstance(event, Welcome) and not event.resumed:
                events += self._forget_numbers()
            events.append(self._hear_event(event))
        return list(filter(None, events))

    def _forget_numbers(self) -> list[Event | None]:
        """Forget the client numbers of a server that does not know us: others may have them now.

        Private messages to them must not be sent again; each is answered by an error.
        """
        self.last_sender = None
        reason = "not sent: the server was restarted, and its clients have new numbers"
        return [
            self._hear_event(Error("nobody-there", reason, nonce=nonce))
            for nonce in self.outbox.to_numbers()
        ]

    def _hear_event(self, event: Event) -> Event | None:
        """Take what an event tells about ourselves; return what is left for the program."""
        kept = self.outbox.settle(event.nonce)
        self.answered += kept is not None
        match event:
            case Said() if not self.place.hear(event):
                return None
            case Welcome():
                return self._be_welcomed(event)
            case Renamed(client=client, old=old):
                self.place.renamed(event)
                if client != self.place.client:
                    self._note_freed(old)
            case Joined():
                self.place.joined(event)
            case Left(name=name):
                self._note_freed(name)
            case Presence():
                self.name_releases += 1
            case Directed(client=client):
                self.last_sender = client
            case Error(code="name-taken", holder=holder):
                self._holder = holder
            case Error(code="unknown-id", nonce=None):
                self.place.begin_anew()
                return Error(event.code, _GAP)
        return self._for_program(event, ours=kept is not None)

    def _note_freed(self, name: str) -> None:
        if self.wanted_name and fold_name(name) in map(fold_name, (self.wanted_name, self._holder)):
            self.name_releases += 1

    def _be_welcomed(self, welcome: Welcome) -> Event | None:
        self.welcome = welcome
        self.place.welcomed(welcome)
        if not self._has_begun:
            return None
        return Reconnected(welcome.resumed, again=self.outbox.messages_sent)

    def _for_program(self, event: Event, *, ours: bool) -> Event | None:
        nonce = event.nonce
        if nonce is None:
            return event
        if nonce in self._our_own:
            self._our_own.discard(nonce)
            return None
        if nonce in self._abandoned:
            self._abandoned.discard(nonce)
            return None
        if nonce in self.answers:
            self.answers[nonce] = event
            return None
        hidden = ours and isinstance(event, Accepted) and not self.tells_accepted
        return None if hidden else event
