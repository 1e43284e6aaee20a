"""The interactive client: sends typed lines to the server and shows events on the screen.

Owns the local commands, the ignored names, the names and rooms for completion, and the messages
that have not been acknowledged.  `multichat.terminal.prompt` owns the terminal itself, and
`multichat.terminal.render` formats events.

Our own messages are shown as pending until the server acknowledges them, and then in the order of
the room.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec
import trio

from multichat.client.connect import Endpoint
from multichat.client.descriptions import describe_retry
from multichat.client.front_end import FrontEnd
from multichat.client.line_chat import LineChat
from multichat.client.options import ChatOptions
from multichat.client.typed_input import LocalCommand, Typed, parse_typed
from multichat.errors import (
    ConnectionLost,
    LineTooLong,
    LocalProtocolError,
    MultichatError,
    Refused,
    lone_exception,
)
from multichat.protocol.commands import COMMANDS
from multichat.protocol.messages import (
    NO_SENDER,
    Accepted,
    Act,
    Direct,
    Directed,
    Disconnected,
    Entered,
    Error,
    Event,
    Help,
    HistoryPage,
    Joined,
    Left,
    Members,
    Nonce,
    Presence,
    Reconnected,
    Renamed,
    Reply,
    Request,
    Said,
    SayBlock,
    Welcome,
)
from multichat.protocol.names import fold_name
from multichat.protocol.text_codec import TEXT
from multichat.stdio import until_signal
from multichat.terminal.event_loop import run_with_prompt
from multichat.terminal.input_history import History, belongs_in_history
from multichat.terminal.prompt import Prompt, open_prompt
from multichat.terminal.render import DIM, WARNING, Fragments, Identity, Line, Renderer
from multichat.terminal.syntax import ChatSyntax

__all__ = ["TerminalChat"]

# After many joins and leaves at once the server sends only counts, and we request the names.  A
# thousand names take 30 KiB, and completion does not need them every second.
_ASK_AGAIN_SECONDS = 10.0

# Sooner if the members changed during the request: the response may be outdated.
_ASK_AGAIN_SOON_SECONDS = 1.0

# The most names, and the most rooms, kept for completion.
_MAX_NAMES = 4096

# How often we check whether everything has been acknowledged, once the terminal is gone.
_LOOK_AGAIN_SECONDS = 0.1

# How often the status line updates its countdown to the next reconnect attempt.
_COUNT_DOWN_SECONDS = 1.0

# The most lines waiting for a connection that are formatted; fewer rows are shown.
_SHOWN_WAITING = 10

# The most unsent lines that are shown at the end; all of them are in the input history.
_SHOWN_UNSENT = 10

_LOCAL_COMMANDS = COMMANDS.local_names(terminal=True)

_Said = SayBlock | Act | Direct


class TerminalChat(FrontEnd):
    """One run of `connect` on a terminal; `run` may be called once.

    *history* stores the typed lines.  With *bell*, mentions and private messages ring the bell.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: ChatOptions,
        *,
        history: History,
        color: bool = True,
        bell: bool = False,
    ) -> None:
        super().__init__(endpoint, options)
        self._history = history
        self._color, self._bell = color, bell
        self._renderer = Renderer()
        self._syntax = ChatSyntax(options.room)
        self._prompt: Prompt
        self._chat: LineChat | None = None
        self._state = "connecting"  # empty while connected
        self._retrying = ""  # the next reconnect attempt, while the connection is lost
        self._first_room = self._last = ""  # where we joined, and the last message there then
        self._unsent: Sequence[Request] = ()  # being sent now
        self._waiting: dict[Nonce, Request] = {}  # sent, not acknowledged; the oldest first
        self._early: set[Nonce] = set()  # acknowledged before `send_typed` returned
        self._ignored: dict[str, str] = {}  # by folded name: as typed
        self._renamed: dict[int, str] = {}  # by client: the folded, ignored name that it had
        self._members = 0
        self._changes = 0  # how many events have changed the members
        self._names_stale = trio.Event()
        self._lost = trio.Event()  # set on each failed attempt to reconnect
        self._leaving = False  # the user quit
        self._typed_late: list[str] = []  # entered after the chat had ended

    def run(self) -> None:
        """Connect and chat until we leave, the server closes, or a signal ends it.

        Starts and ends its own trio run.  Raises the same errors as `LogClient.run`.  Restores the
        terminal.
        """
        run_with_prompt(partial(until_signal, self._run))

    async def _run(self) -> None:
        history = await trio.to_thread.run_sync(self._history.load)
        async with open_prompt(
            self._syntax,
            status=self._status,
            pending=self._pending,
            warn=partial(self.tell, warning=True),
            history=history,
            color=self._color,
        ) as self._prompt:
            try:
                try:
                    await self._converse()
                finally:
                    self._show_unaccepted()
            except MultichatError:
                await self._wait_for_line()
                raise
            else:
                await self._wait_for_line()
            finally:
                self._show_unsent()

    async def _wait_for_line(self) -> None:
        """If the chat ends while a line is being typed, keep the shell from reading that line."""
        if self._leaving:
            return
        if self._prompt.line.is_begun:
            self.tell("The chat has ended; press Enter to leave", warning=True)
            self._state = "not connected"
            self._prompt.line.close_after_next()
            self._typed_late += [line async for line in self._prompt.line.typed]
        self._prompt.discard_input()

    async def _converse(self) -> None:
        self.tell(f"Connecting to {self.endpoint}")
        await self.run_chat(await self.dial())

    def begin(self, chat: LineChat, welcome: Welcome | None) -> None:
        """Show our name and room."""
        self._chat = self._syntax.chat = chat
        self._state = ""
        chat.report_accepted()
        if welcome is None:
            self.tell("Connected")
        else:
            self._first_room, self._last = welcome.room, welcome.last or ""
            self._show(self._take(welcome))

    def end(self, chat: LineChat) -> None:
        """Raise the error that ended the run, except for a goodbye, which has been shown."""
        if chat.goodbye is None or not isinstance(self.failure, ConnectionLost):
            super().end(chat)

    def _show_unaccepted(self) -> None:
        for request in (*self._waiting.values(), *self._unsent):
            for line in self._renderer.typed(request, self._identity, _now()):
                text = "".join(text for _, text in line.fragments)
                self.tell(f"not accepted: {text}", warning=True)

    def _show_unsent(self) -> None:
        """Show the lines that were not sent, and add them to the input history."""
        lines = [
            line
            for line in (*self._typed_late, *self._prompt.line.take_unsent())
            if belongs_in_history(line)
        ]
        for line in lines[:_SHOWN_UNSENT]:
            self.tell(f"not sent: {line}", warning=True)
        if len(lines) > _SHOWN_UNSENT:
            self.tell(f"not sent: {len(lines) - _SHOWN_UNSENT} more lines", warning=True)
        self._history.append(*lines)

    # --- Events -----------------------------------------------------------------------------------

    async def show_events(self, chat: LineChat) -> None:
        """Show events; meanwhile, refresh the names and the countdown to the next attempt."""
        with lone_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_names, chat)
                nursery.start_soon(self._count_down, chat)
                while events := await chat.receive():
                    lines: list[Line] = []
                    for event in events:
                        lines += self._take(event)
                    self._show(lines)
                nursery.cancel_scope.cancel(reason="the chat has ended")

    def _take(self, event: Event) -> list[Line]:
        """Apply an event and return the lines to show."""
        self._note(event)
        before: list[Line] = []
        match event:
            case Accepted(nonce=nonce):
                return self._settle(nonce)
            case Error(nonce=nonce) if nonce is not None:
                before = self._settle(nonce)
            case Error(code=LineTooLong.code):
                hint = "the line was not sent; press the up arrow to edit it"
                return [
                    *self._renderer.event(event, self._identity, _now()),
                    *self._renderer.notice(hint, _now(), warning=True),
                ]
            case Said() | Directed():
                self.received += 1
                if self._is_ignored(event):
                    return []
                if isinstance(event, Directed) and event.client:  # 0 in the text protocol
                    self._syntax.last_direct = event
            case Reconnected(resumed=False):
                self._syntax.last_direct = None
            case Renamed(client=client, old=old) if fold_name(old) in self._ignored:
                if len(self._renamed) < _MAX_NAMES:
                    self._renamed[client] = fold_name(old)
            case HistoryPage(messages=messages):
                heard = [said for said in messages if not self._is_ignored(said)]
                event = msgspec.structs.replace(event, messages=heard)
        lines = self._renderer.event(event, self._identity, _now())
        if isinstance(event, Said) and self._is_replayed(event):
            lines = [line._replace(is_alert=False) for line in lines]
        return [*before, *lines]

    def _is_replayed(self, said: Said) -> bool:
        """Return whether *said* is from before we joined, as opposed to missed later."""
        return said.room == self._first_room and "" < said.id <= self._last

    def _is_ignored(self, said: Said | Directed) -> bool:
        names = {fold_name(said.name), self._renamed.get(said.client)}
        return not self._ignored.keys().isdisjoint(names)

    def _settle(self, nonce: Nonce | None) -> list[Line]:
        """Remove our message *nonce* from the pending ones and return its lines."""
        if nonce in self._waiting:
            return self._renderer.typed(self._waiting.pop(nonce), self._identity, _now())
        if nonce is not None and self._unsent:
            self._early.add(nonce)
        return []

    def _note(self, event: Event) -> None:
        """Update the status line and the names for completion."""
        self._changes += isinstance(event, Entered | Joined | Left | Renamed)
        match event:
            case Welcome(members=members):
                self._members = members
                self._names_stale.set()
            case Joined(name=name, members=members):
                self._members = members or self._members + 1
                self._add_name(name)
            case Entered(members=members):
                self._members = members
                self._names_stale.set()
            case Left(name=name, members=members):
                self._members = members or max(1, self._members - 1)
                self._syntax.names.discard(name)
            case Renamed(old=old, name=name):
                self._syntax.names.discard(old)
                self._add_name(name)
            case Presence(members=members):
                self._members = members
                self._names_stale.set()
            case Disconnected():
                self._lost.set()
            case Reconnected():
                self._retrying, self.connected_at = "", trio.current_time()
                self._names_stale.set()
            case Members(room=room, members=members) if self._is_here(room):
                self._members = len(members)
                self._syntax.names = {member.name for member in members[:_MAX_NAMES]}

    def _add_name(self, name: str) -> None:
        if len(self._syntax.names) < _MAX_NAMES:
            self._syntax.names.add(name)

    async def _count_down(self, chat: LineChat) -> None:
        """While the connection is lost, show the number and time of the next reconnect attempt."""
        while True:
            await self._lost.wait()
            self._lost = trio.Event()
            while (retry := chat.link.retry) is not None:
                self._retrying = describe_retry(retry.number, retry.at - trio.current_time())
                self._prompt.refresh()
                with trio.move_on_after(_COUNT_DOWN_SECONDS):
                    await self._lost.wait()
                self._lost = trio.Event()
            self._retrying = ""
            self._prompt.refresh()

    async def _ask_names(self, chat: LineChat) -> None:
        """Request members and rooms when they may have changed without an event."""
        while chat.welcome is not None:
            await self._names_stale.wait()
            self._names_stale = trio.Event()
            before = self._changes
            try:
                members, rooms = await chat.members(), await chat.list_rooms()
            except (ConnectionLost, LocalProtocolError, Refused):
                continue  # the receiving task reports what matters
            self._syntax.names = {member.name for member in members[:_MAX_NAMES]}
            self._members = len(members)
            self._syntax.rooms = {room.room for room in rooms[:_MAX_NAMES]}
            self._prompt.refresh()
            if self._changes == before:
                await trio.sleep(_ASK_AGAIN_SECONDS)
            else:
                self._names_stale.set()
                await trio.sleep(_ASK_AGAIN_SOON_SECONDS)

    # --- Input ------------------------------------------------------------------------------------

    async def send_input(self, chat: LineChat, scope: trio.CancelScope) -> None:
        """Send typed lines; see `FrontEnd.send_input`."""
        try:
            async for line in self._prompt.line.typed:
                if not await self._run_line(chat, line):
                    break
                await trio.to_thread.run_sync(self._history.append, line)
            self._leaving = True
            self._state = "leaving"
            self._prompt.refresh()
            gone = self._prompt.is_gone
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as end:
                    nursery.start_soon(self._limit_end, chat, end, gone)
                    await chat.finish()
                nursery.cancel_scope.cancel(reason="the conversation has ended")
            if end.cancelled_caught:
                if gone:
                    self.failure = ConnectionLost("the terminal is gone")
                await chat.link.close()
                scope.cancel(reason="the server did not close the connection")
        except MultichatError as error:
            self.failure = self.failure or error

    async def _limit_end(self, chat: LineChat, end: trio.CancelScope, gone: bool) -> None:
        """Limit the wait for a server that keeps sending after everything is acknowledged.

        The text protocol has no acknowledgements; there, Ctrl+C ends the wait, unless the terminal
        is *gone*.
        """
        timeouts, is_text = self.options.timeouts, chat.welcome is None
        if is_text and not gone:
            return
        with trio.move_on_after(timeouts.progress if gone else math.inf):
            # There is no event for bytes that have been written to the kernel.
            while chat.unaccepted or (is_text and chat.link.connection.waiting_bytes):  # noqa: ASYNC110
                await trio.sleep(_LOOK_AGAIN_SECONDS)
        end.deadline = trio.current_time() + timeouts.finish

    async def _run_line(self, chat: LineChat, line: str) -> bool:
        """Run or send a typed line; return False to leave."""
        [typed] = parse_typed(line, _LOCAL_COMMANDS)
        match typed.request:
            case LocalCommand(name="/quit"):
                self.tell_leaving(chat, self._unaccepted)
                return False
            case LocalCommand(name="/status"):
                self.tell(self.describe(chat, self._unaccepted))
            case LocalCommand(name="/clear"):
                self._prompt.screen.clear()
            case LocalCommand(name="/ignore", argument=name):
                self._ignore(name.removeprefix("@"))
            case Reply() if chat.welcome is not None:
                # `expand_reply` replaces `/r` if anyone has written to us, so nobody has.
                # Ignored senders do not count.
                self.tell(NO_SENDER, warning=True)
            case request:
                if isinstance(request, Help):
                    for each in COMMANDS.help_lines(local=True):
                        self.tell(each)
                await self._send(chat, typed)
        return True

    async def _send(self, chat: LineChat, typed: Typed) -> None:
        said = [self._with_name(typed.request)] if isinstance(typed.request, _Said) else []
        self._unsent = said
        self._prompt.refresh()
        nonces = await chat.send_typed([typed])
        self._unsent = ()
        self.sent += len(said)
        for request, nonce in zip(said, nonces, strict=False):
            if nonce is None:  # too long
                continue
            self._waiting[nonce] = request
            if nonce in self._early:
                self._show(self._settle(nonce))
        self._early.clear()
        if chat.codec is TEXT:  # which has no acknowledgements
            self._show(
                [
                    line
                    for each in said
                    for line in self._renderer.typed(each, self._identity, _now())
                ]
            )

    @property
    def _unaccepted(self) -> int:
        return len(self._waiting) + len(self._unsent)

    def _with_name(self, request: SayBlock | Act | Direct) -> SayBlock | Act | Direct:
        """Return *request* for display: a reply to a private message shows its sender's name."""
        last = self._syntax.last_direct
        if last is not None and isinstance(request, Direct) and request.to == last.client:
            return msgspec.structs.replace(request, to=last.name)
        return request

    def _ignore(self, name: str) -> None:
        if not name:
            listed = ", ".join(sorted(self._ignored.values())) or "nobody"
            self.tell(f"ignored: {listed}")
        elif self._ignored.pop(fold_name(name), None) is not None:
            self.tell(f"{name} is no longer ignored")
        else:
            self._ignored[fold_name(name)] = name
            self.tell(f"{name} is ignored; repeat the command to stop ignoring")

    # --- Display ----------------------------------------------------------------------------------

    @property
    def _identity(self) -> Identity:
        if self._chat is None:
            return Identity(name=self.options.name or "")
        return Identity(self._chat.client, self._chat.name)

    def tell(self, text: str, *, warning: bool = False) -> None:
        """Show a line from the client itself."""
        self._show(self._renderer.notice(text, _now(), warning=warning))

    def _show(self, lines: Sequence[Line]) -> None:
        self._prompt.screen.show([line.fragments for line in lines])
        if self._bell and any(line.is_alert for line in lines):
            self._prompt.ring()
        self._prompt.refresh()

    def _is_here(self, room: str) -> bool:
        return self._chat is None or fold_name(room) == fold_name(self._chat.room)

    def _status(self) -> Fragments:
        parts = [str(self.endpoint)]
        if self._chat is not None and self._chat.room:
            parts = [f"{self._identity.name} in {self._chat.room}", f"{self._members} here", *parts]
        where = " · ".join(parts)
        state = ", ".join(filter(None, (self._state, self._retrying)))
        if not state:
            return [(DIM, where)]
        # The state comes first, because a narrow terminal truncates the end.
        return [(f"{WARNING} bold", state), (DIM, f" · {where}")]

    def _pending(self) -> list[Fragments]:
        now, me = _now(), self._identity
        entered = self._prompt.line.waiting
        first, last = entered[:-_SHOWN_WAITING], entered[-_SHOWN_WAITING:]
        requests = (
            *self._waiting.values(),
            *self._unsent,
            *map(self._with_name, _said_by("\n".join(last))),
        )
        lines = [
            line.fragments
            for request in requests
            for line in self._renderer.typed(request, me, now, pending=True)
        ]
        return [[] for _ in first] + lines  # the first ones are only counted


def _said_by(block: str) -> list[SayBlock | Act | Direct]:
    """Return the messages in a block of typed lines."""
    requests = [typed.request for typed in parse_typed(block)] if block else []
    return [request for request in requests if isinstance(request, _Said)]


def _now() -> datetime:
    return datetime.now(UTC)
