"""The interactive client: sends typed lines to the server and shows events on the screen.

Runs the local commands and those that enter and leave rooms.  `multichat.terminal.prompt` owns the
terminal itself, and `multichat.terminal.conversation` turns events into lines.
"""

import math
from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from multichat.client.connect import Endpoint
from multichat.client.descriptions import describe_retry
from multichat.client.front_end import FrontEnd
from multichat.client.line_chat import LineChat
from multichat.client.options import ChatOptions
from multichat.client.typed_input import LocalCommand, Typed, parse_typed, room_command
from multichat.errors import (
    ConnectionLost,
    LocalProtocolError,
    MultichatError,
    Refused,
    lone_exception,
)
from multichat.protocol.commands import COMMANDS
from multichat.protocol.counts import counted
from multichat.protocol.messages import (
    LOBBY,
    NO_SENDER,
    Act,
    Direct,
    Directed,
    Disconnected,
    Enter,
    Event,
    Exit,
    Help,
    Reconnected,
    Reply,
    Said,
    SayBlock,
    SetTopic,
    Welcome,
    Who,
)
from multichat.protocol.messages import History as GetHistory
from multichat.stdio import until_signal
from multichat.terminal.conversation import Conversation, Own
from multichat.terminal.event_loop import run_with_prompt
from multichat.terminal.input_history import History, belongs_in_history
from multichat.terminal.prompt import Prompt, open_prompt
from multichat.terminal.render import Fragments, Line
from multichat.terminal.status import status_line
from multichat.terminal.syntax import ChatSyntax, TypedLine

__all__ = ["TerminalChat"]

# After many joins and leaves at once the server sends only counts, and we request the names.  A
# thousand names take 30 KiB, and completion does not need them every second.
_ASK_AGAIN_SECONDS = 10.0

# Sooner if the members changed during the request: the response may be outdated.
_ASK_AGAIN_SOON_SECONDS = 1.0

# The most rooms kept for completion.
_MAX_ROOMS = 4096

# How often we check whether everything has been acknowledged, once the terminal is gone.
_LOOK_AGAIN_SECONDS = 0.1

# How often the status line updates its countdown to the next reconnect attempt.
_COUNT_DOWN_SECONDS = 1.0

# The most unsent lines that are shown at the end; all of them are in the input history.
_SHOWN_UNSENT = 10

_LOCAL_COMMANDS = COMMANDS.local_names(terminal=True)

# Requests about the room in which they are typed.
_Addressed = SayBlock | Act | Who | GetHistory | SetTopic


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
        self._conversation = Conversation(options.name or "", options.room or "")
        self._prompt: Prompt
        self._state = "connecting"  # empty while connected
        self._retrying = ""  # the next reconnect attempt, while the connection is lost
        self._stale = trio.Event()  # set when the names of the room may be outdated
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
            ChatSyntax(self._conversation, self._show),
            status=self._status,
            pending=self._pending,
            warn=partial(self.tell, warning=True),
            switch=self._switch,
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
        """If the chat ends while a line is being typed, wait: the shell must not read that line."""
        if self._leaving:
            return
        if self._prompt.line.is_begun:
            self.tell("The chat has ended; press Enter to leave", warning=True)
            self._state = "not connected"
            self._prompt.line.close_after_next()
            self._typed_late += [line.text async for line in self._prompt.line.typed]
        self._prompt.discard_input()

    async def _converse(self) -> None:
        self.tell(f"Connecting to {self.endpoint}")
        await self.run_chat(await self.dial())

    def begin(self, chat: LineChat, welcome: Welcome | None) -> None:
        """Show our name and rooms."""
        self._conversation.chat = chat
        self._state = ""
        chat.report_accepted()
        if welcome is None:
            self.tell("Connected")
        else:
            self._show(self._conversation.begin(welcome))

    def end(self, chat: LineChat) -> None:
        """Raise the error that ended the run, except for a goodbye, which has been shown."""
        if chat.goodbye is None or not isinstance(self.failure, ConnectionLost):
            super().end(chat)

    def _show_unaccepted(self) -> None:
        for line in self._conversation.unaccepted_lines():
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
            more = counted(len(lines) - _SHOWN_UNSENT, "more line")
            self.tell(f"not sent: {more}", warning=True)
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
        match event:
            case Said() | Directed():
                self.received += 1
            case Disconnected():
                self._lost.set()
            case Reconnected():
                self._retrying, self.connected_at = "", trio.current_time()
        return self._conversation.take(event)

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
        conversation = self._conversation
        while chat.welcome is not None:
            room = conversation.rooms.shown
            if not room.is_stale:
                await self._stale.wait()
                continue
            room.is_stale, before = False, room.changes
            try:
                members, rooms = await chat.members(room.name), await chat.list_rooms()
            except (ConnectionLost, LocalProtocolError, Refused):
                continue  # the receiving task reports what matters
            room.list_members(members)
            conversation.all_rooms = {each.room for each in rooms[:_MAX_ROOMS]}
            self._prompt.refresh()
            room.is_stale |= room.changes != before
            with trio.move_on_after(
                _ASK_AGAIN_SOON_SECONDS if room.is_stale else _ASK_AGAIN_SECONDS
            ):
                while conversation.rooms.shown is room:
                    await self._stale.wait()

    # --- Input ------------------------------------------------------------------------------------

    async def send_input(self, chat: LineChat, scope: trio.CancelScope) -> None:
        """Send typed lines; see `FrontEnd.send_input`."""
        try:
            async for line in self._prompt.line.typed:
                if not await self._run_line(chat, line):
                    break
                await trio.to_thread.run_sync(self._history.append, line.text)
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

    async def _run_line(self, chat: LineChat, line: TypedLine) -> bool:
        """Run or send a typed line; return False to leave."""
        if self._conversation.has_rooms and await self._run_in_rooms(chat, line):
            return True
        [typed] = parse_typed(line.text, _LOCAL_COMMANDS)
        match typed.request:
            case LocalCommand(name="/quit"):
                self.tell_leaving(chat, self._conversation.unaccepted)
                return False
            case LocalCommand(name="/status"):
                self.tell(self.describe(chat, self._conversation.unaccepted))
            case LocalCommand(name="/clear"):
                self._prompt.screen.clear()
            case LocalCommand(name="/ignore", argument=name):
                self.tell(self._conversation.ignore(name.removeprefix("@")))
            case Reply() if chat.welcome is not None:
                # `expand_reply` replaces `/r` once there was a private message to us, so there was
                # none.  Those of ignored senders do not count.
                self.tell(NO_SENDER, warning=True)
            case request:
                if isinstance(request, Help):
                    for each in COMMANDS.help_lines(local=True):
                        self.tell(each)
                    if self._conversation.has_rooms:
                        self.tell("Alt+1 … Alt+9  show one of your rooms")
                await self._send(chat, typed, line.room)
        return True

    async def _run_in_rooms(self, chat: LineChat, line: TypedLine) -> bool:
        """Run a command that enters, shows or leaves a room; return False if it is none."""
        command, argument = room_command(line.text)
        rooms = self._conversation.rooms
        if command == "/join" and argument:
            if argument not in rooms:  # otherwise it was shown at once
                await self._send(chat, Typed(line.text, self._entering(argument)))
        elif command == "/part":
            room = argument or line.room
            if len(rooms) == 1 and room in rooms:  # it cannot be left
                if LOBBY in rooms:
                    self.tell("this is your only room; /join ROOM enters another, /quit leaves")
                    return True
                await self._send(chat, Typed(line.text, self._entering(LOBBY)))
            await self._send(chat, Typed(line.text, Exit(room)))
        else:
            return False
        return True

    def _entering(self, room: str) -> Enter:
        return Enter(room, replay=self.options.replay)

    async def _send(self, chat: LineChat, typed: Typed, room: str = "") -> None:
        """Send a request; one that names no room is meant for *room*."""
        request, conversation = typed.request, self._conversation
        if conversation.has_rooms and isinstance(request, _Addressed) and request.room is None:
            request = msgspec.structs.replace(request, room=room or None)
            typed = typed._replace(request=request)
        conversation.begin_sending([request] if isinstance(request, Own) else [])
        self._prompt.refresh()
        nonces = await chat.send_typed([typed])
        self.sent += isinstance(request, SayBlock | Act | Direct)
        self._show(conversation.end_sending(nonces))

    # --- Display ----------------------------------------------------------------------------------

    def tell(self, text: str, *, warning: bool = False) -> None:
        """Show a line from the client itself."""
        self._show(self._conversation.notice(text, warning=warning))

    def _show(self, lines: Sequence[Line]) -> None:
        self._prompt.screen.show([line.fragments for line in lines if line.fragments])
        if self._bell and any(line.is_alert for line in lines):
            self._prompt.ring()
        if self._conversation.rooms.shown.is_stale:
            self._stale.set()
            self._stale = trio.Event()
        self._prompt.refresh()

    def _status(self, columns: int) -> Fragments:
        state = ", ".join(filter(None, (self._state, self._retrying)))
        conversation = self._conversation
        name = conversation.identity.name
        return status_line(name, conversation.rooms, str(self.endpoint), state, columns)

    def _pending(self) -> list[Fragments]:
        return self._conversation.pending(self._prompt.line.waiting)

    def _switch(self, number: int) -> None:
        self._show(self._conversation.switch(number))
