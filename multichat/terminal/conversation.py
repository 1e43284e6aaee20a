"""What a chat shows: turns its events, and our own messages, into lines of the rooms.

Owns the rooms, the ignored names, and the messages that have not been acknowledged.  Knows neither
the terminal nor the connection: `multichat.terminal.app` shows the lines that are returned here.

Our own messages are pending until the server acknowledges them, and then have their place in the
order of their room.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

import msgspec

from multichat.client.typed_input import parse_typed, room_command
from multichat.errors import LineTooLong
from multichat.protocol.messages import (
    Accepted,
    Act,
    Direct,
    Directed,
    Enter,
    Entered,
    Error,
    Event,
    Exited,
    HistoryPage,
    Members,
    Missed,
    Nonce,
    Reconnected,
    Renamed,
    RoomList,
    Said,
    SayBlock,
    TopicChanged,
    Welcome,
)
from multichat.protocol.names import fold_name
from multichat.terminal.completion import Completion, complete, expand_reply
from multichat.terminal.render import Fragments, Identity, Line, Renderer, mentions
from multichat.terminal.rooms import Heard, Meanwhile, Rooms
from multichat.terminal.status import list_rooms
from multichat.terminal.syntax import TypedLine

__all__ = ["ChatState", "Conversation", "Own"]

# The most names of clients that were renamed while they were ignored.
_MAX_RENAMED = 4096

# The most lines waiting for a connection that are formatted; fewer rows are shown.
_SHOWN_WAITING = 10

Own: TypeAlias = SayBlock | Act | Direct | Enter
"""A request of ours that waits for its answer: a message, or entering a room."""

_MESSAGES = SayBlock | Act | Direct


class ChatState(Protocol):
    """The properties of a `Chat` that a conversation reads."""

    @property
    def client(self) -> int: ...  # noqa: D102

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def welcome(self) -> Welcome | None: ...  # noqa: D102


class Conversation:
    """The conversation of one *chat*, which is None until the server has answered.

    *name* and *room* are those that we ask for, empty for none.  *all_rooms* are the rooms of the
    server, for completion.
    """

    def __init__(self, name: str, room: str) -> None:
        self.chat: ChatState | None = None
        self.rooms = Rooms()
        self.all_rooms: set[str] = set()
        self._name, self._room = name, room
        self._renderer = Renderer()
        self._unsent: Sequence[Own] = ()  # being sent now
        self._waiting: dict[Nonce, Own] = {}  # sent, not acknowledged; the oldest first
        self._early: dict[Nonce, bool] = {}  # answered while they were being sent: accepted?
        self._ignored: dict[str, str] = {}  # by folded name: as typed
        self._renamed: dict[int, str] = {}  # by client: the folded, ignored name that it had
        self._last_direct: Directed | None = None  # the last private message shown

    @property
    def identity(self) -> Identity:
        """Who we are."""
        chat = self.chat
        return Identity(name=self._name) if chat is None else Identity(chat.client, chat.name)

    @property
    def has_rooms(self) -> bool:
        """Whether the server lets us be in several rooms."""
        welcome = None if self.chat is None else self.chat.welcome
        return welcome is not None and welcome.rooms is not None

    # --- Events -----------------------------------------------------------------------------------

    def begin(self, welcome: Welcome) -> list[Line]:
        """Apply the first welcome and return the lines to show."""
        self.rooms.welcome(welcome)
        return self._render(welcome)

    def take(self, event: Event) -> list[Line]:
        """Apply an event and return the lines to show."""
        self.rooms.note(event)
        match event:
            case Accepted(nonce=nonce):
                return self._settle(nonce, is_accepted=True)
            case Error(nonce=nonce) if nonce is not None:
                return [*self._settle(nonce, is_accepted=False), *self._render(event)]
            case Error(code=LineTooLong.code):
                hint = "the line was not sent; press the up arrow to edit it"
                return [*self._render(event), *self.notice(hint, warning=True)]
            case Entered():
                return [*self._enter(event), *self._settle(event.nonce, is_accepted=True)]
            case Exited(room=room):
                return [*self._render(event), *self._leave(room)]
            case Reconnected():
                return [*self._render(event), *self._return(event)]
            case RoomList(rooms=sizes) if len(self.rooms) > 1:
                return [
                    line for text in list_rooms(self.rooms, sizes) for line in self.notice(text)
                ]
            case Said() | Directed():
                if self._is_ignored(event):
                    return []
                if isinstance(event, Directed) and event.client:  # 0 in the text protocol
                    self._last_direct = event
            case Renamed(client=client, old=old) if fold_name(old) in self._ignored:
                if len(self._renamed) < _MAX_RENAMED:
                    self._renamed[client] = fold_name(old)
            case HistoryPage(messages=messages):
                shown = [said for said in messages if not self._is_ignored(said)]
                event = msgspec.structs.replace(event, messages=shown)
        return self._show_or_keep(event)

    def _show_or_keep(self, event: Event) -> list[Line]:
        """Return the lines of an event, or keep it if it is from a room that is not shown."""
        room = self.rooms.find(getattr(event, "room", ""))
        if room is not None and isinstance(event, Error):
            event = msgspec.structs.replace(event, room="")  # shown in its room
        if room is None or room is self.rooms.shown or isinstance(event, Members):
            lines = self._render(event)
            if room is not None and isinstance(event, Said) and room.is_earlier(event):
                lines = [line._replace(is_alert=False) for line in lines]
            return lines
        match event:
            case Said(client=client, text=text):
                is_new = client != self.identity.client and not room.is_earlier(event)
                is_mention = is_new and mentions(text, self.identity.name)
                self.rooms.keep(room, Heard(event, _now()), is_new=is_new, is_mention=is_mention)
                return [Line((), is_alert=True)] if is_mention else []
            case Missed() | TopicChanged() | HistoryPage() | Error():
                self.rooms.keep(room, Heard(event, _now()), is_new=False)
        return []

    def _is_ignored(self, said: Said | Directed) -> bool:
        names = {fold_name(said.name), self._renamed.get(said.client)}
        return not self._ignored.keys().isdisjoint(names)

    def ignore(self, name: str) -> str:
        """Ignore *name*, or stop ignoring it; return what to tell the user."""
        if not name:
            return f"ignored: {', '.join(sorted(self._ignored.values())) or 'nobody'}"
        if self._ignored.pop(fold_name(name), None) is not None:
            return f"{name} is no longer ignored"
        self._ignored[fold_name(name)] = name
        return f"{name} is ignored; repeat the command to stop ignoring"

    # --- Our messages -----------------------------------------------------------------------------

    def begin_sending(self, requests: Iterable[Own]) -> None:
        """Show *requests* as pending; `end_sending` follows."""
        self._unsent = [self._with_name(request) for request in requests]

    def end_sending(self, nonces: Sequence[Nonce | None]) -> list[Line]:
        """Note the nonces of what has been sent, and return the lines of what was answered already.

        A request that was too long has None.  Without any nonces there is no acknowledgement.
        """
        sent, self._unsent = self._unsent, ()
        if not nonces:
            return [line for each in sent for line in self._typed(each)]
        lines: list[Line] = []
        for request, nonce in zip(sent, nonces, strict=False):
            if nonce is not None:
                self._waiting[nonce] = request
                if nonce in self._early:
                    lines += self._settle(nonce, is_accepted=self._early[nonce])
        self._early.clear()
        return lines

    def _settle(self, nonce: Nonce | None, *, is_accepted: bool) -> list[Line]:
        """Remove our request *nonce* from the pending ones and return its lines."""
        request = None if nonce is None else self._waiting.pop(nonce, None)
        if request is None:
            if nonce is not None and self._unsent:
                self._early[nonce] = is_accepted
            return []
        if isinstance(request, Enter):
            self.rooms.settle(request.room)
        if is_accepted and isinstance(request, SayBlock | Act) and request.room:
            client, name = self.identity
            is_act = isinstance(request, Act)
            text = request.text
            said = Said(room=request.room, client=client, name=name, text=text, act=is_act)
            return self._show_or_keep(said)
        return self._typed(request, refused=not is_accepted)

    @property
    def unaccepted(self) -> int:
        """How many of our messages have not been acknowledged."""
        return sum(isinstance(each, _MESSAGES) for each in self._own())

    def unaccepted_lines(self) -> list[Line]:
        """Return the lines of these messages."""
        return [line for each in self._own() for line in self._typed(each)]

    def pending(self, entered: Iterable[TypedLine]) -> list[Fragments]:
        """Return the lines of the pending messages in the room that is shown.

        *entered* are the lines that have not been sent.
        """
        here = [line.text for line in entered if self._is_shown(line.room)]
        first, last = here[:-_SHOWN_WAITING], here[-_SHOWN_WAITING:]
        own = [each for each in self._own() if self._is_shown(_room_of(each))]
        own += map(self._with_name, _said_by("\n".join(last)))
        lines = [line.fragments for each in own for line in self._typed(each, pending=True)]
        return [[] for _ in first] + lines  # the first ones are only counted

    def _is_shown(self, room: str) -> bool:
        """Return whether pending messages for *room* are shown, as for one not yet entered."""
        return self.rooms.find(room) in (None, self.rooms.shown)

    def _own(self) -> tuple[Own, ...]:
        return (*self._waiting.values(), *self._unsent)

    def _with_name(self, request: Own) -> Own:
        """Return *request* for display: a reply to a private message shows its sender's name."""
        last = self._last_direct
        if last is not None and isinstance(request, Direct) and request.to == last.client:
            return msgspec.structs.replace(request, to=last.name)
        return request

    # --- Rooms ------------------------------------------------------------------------------------

    def switch(self, number: int) -> list[Line]:
        """Show the room with that number; return the lines to show, none if it is shown."""
        room = self.rooms.at(number)
        if room is None or (room is self.rooms.shown and self.rooms.is_target(room.name)):
            return []
        return self._begin_room(self.rooms.show(room.name))

    def address(self, line: str) -> tuple[str, list[Line]]:
        """Return the room that a line is meant for, and the lines of the room that it shows.

        Lines that are entered after a command go to the room to which it leads.
        """
        room = self.rooms.target
        command, argument = room_command(line)
        if not self.has_rooms:
            return room, []
        if command == "/join" and argument in self.rooms:
            return room, self._begin_room(self.rooms.show(argument))
        if command == "/join" and argument:
            self.rooms.aim(argument)
        elif command == "/part":
            self.rooms.aim_back(argument or room)
        return room, []

    def _enter(self, entered: Entered) -> list[Line]:
        """Note that we have entered a room, and show it if it is the target."""
        if not self.has_rooms:
            self.rooms.keep_only(())
        self.rooms.enter(entered.room, entered.members, entered.last)
        if not self.rooms.is_target(entered.room):
            return []
        return [*self._render(entered), *self._list(self.rooms.show(entered.room))]

    def _leave(self, name: str) -> list[Line]:
        meanwhile = self.rooms.leave(name)
        return [] if meanwhile is None else self._begin_room(meanwhile)

    def _return(self, reconnected: Reconnected) -> list[Line]:
        """Note the rooms in which we are after a reconnect."""
        if not reconnected.resumed:
            self._last_direct = None
        welcome = None if self.chat is None else self.chat.welcome
        meanwhile = None if welcome is None else self.rooms.welcome(welcome)
        self.rooms.shown.is_stale = True
        return [] if meanwhile is None else self._begin_room(meanwhile)

    def _begin_room(self, meanwhile: Meanwhile) -> list[Line]:
        """Return the lines that begin the room that is shown now."""
        shown = self.rooms.shown
        return [*self._render(Entered(shown.name, shown.members)), *self._list(meanwhile)]

    def _list(self, meanwhile: Meanwhile) -> list[Line]:
        """Return the lines of the events that were kept meanwhile."""
        lines: list[Line] = []
        if count := meanwhile.left_out:
            lines += self.notice(f"{count} earlier message{'s' * (count != 1)} left out")
        for event, time in meanwhile.heard:
            shown = self._renderer.event(event, self.identity, time)
            lines += [line._replace(is_alert=False) for line in shown]
        return lines

    # --- Typing -----------------------------------------------------------------------------------

    def audience(self) -> str:
        """Return who receives the messages that are entered now."""
        room = self._room if self.chat is None else self.rooms.target
        return f"everybody in {room}" if room else "everybody"

    def complete(self, before: str) -> list[Completion]:
        """Return the completions of the text before the cursor; not our own name."""
        names = self.rooms.shown.names - {self.identity.name}
        own = {room.name for room in self.rooms}
        is_leaving = room_command(before)[0] == "/part"
        return complete(before, names, own if is_leaving else self.all_rooms | own)

    def expand(self, line: str) -> str:
        """Return *line* with `/r` replaced by the recipient."""
        return expand_reply(line, None if self._last_direct is None else self._last_direct.client)

    # --- Lines ------------------------------------------------------------------------------------

    def notice(self, text: str, *, warning: bool = False) -> list[Line]:
        """Return a line from the client itself."""
        return self._renderer.notice(text, _now(), warning=warning)

    def _render(self, event: Event) -> list[Line]:
        return self._renderer.event(event, self.identity, _now())

    def _typed(self, request: Own, *, pending: bool = False, refused: bool = False) -> list[Line]:
        return self._renderer.typed(
            request, self.identity, _now(), pending=pending, refused=refused
        )


def _room_of(request: Own) -> str:
    return "" if isinstance(request, Direct) else request.room or ""


def _said_by(block: str) -> list[Own]:
    """Return the messages in a block of typed lines."""
    requests = [typed.request for typed in parse_typed(block)] if block else []
    return [request for request in requests if isinstance(request, _MESSAGES)]


def _now() -> datetime:
    """Return the time for lines without one."""
    return datetime.now(UTC)
