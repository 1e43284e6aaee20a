"""`multichat connect` without an input line: standard input to the chat, the chat to the log.

Writes the client's log, and decides when it ends and with which error.  A terminal and a pipe are
read the same way.
"""

import logging
import os
from contextlib import aclosing
from itertools import groupby

import trio

from multichat.cli.notices import notify
from multichat.cli.piped import Piped, for_pipe
from multichat.client.connect import Endpoint
from multichat.client.descriptions import describe_event
from multichat.client.front_end import FrontEnd
from multichat.client.line_chat import LineChat
from multichat.client.options import ChatOptions
from multichat.client.typed_input import LocalCommand, Typed, parse_typed, room_command
from multichat.errors import (
    ConnectionLost,
    InputNotText,
    LineTooLong,
    MultichatError,
    OutputLost,
    Refused,
)
from multichat.log import Log, LogWriter
from multichat.protocol.commands import COMMANDS
from multichat.protocol.framing import Part
from multichat.protocol.json_codec import JSON
from multichat.protocol.messages import (
    Disconnected,
    Enter,
    Error,
    Event,
    Exit,
    Join,
    Joined,
    Left,
    Missed,
    Presence,
    Reconnected,
    Said,
    Welcome,
)
from multichat.protocol.text_codec import TEXT
from multichat.protocol.typed_lines import (
    disguised_command,
    may_be_disguised,
    may_hold_secret,
    why_not_said,
)
from multichat.stdio import read_input, until_signal, watch_output
from multichat.terminal.render import STATES

__all__ = ["LogClient"]

# How many bytes may wait for a slow standard output before we stop reading: well below where the
# log would skip lines, because no message may be lost.
_UNWRITTEN_BYTES = 2 * 1024 * 1024

# A server that closes its side first may still be reading (`ncat -l </dev/null`): the rest of a
# pipe is sent as long as more of it comes within this time.
_LAST_INPUT_SECONDS = 1.0

# How long after a goodbye the rest of a pipe is read, to count what was not sent.
_LEFT_INPUT_SECONDS = 0.25

# The events that our own client adds to the server's.
_OURS = (Disconnected, Reconnected)

# The events about a room that do not describe it themselves.
_IN_ROOM = (Joined, Left, Presence, Missed)

_LOCAL_COMMANDS = COMMANDS.local_names(terminal=False)


class LogClient(FrontEnd):
    """One run of `connect`; `run` is called once.

    *writer* is where the log goes, *input_fd* what is read, None for nothing at all.  Neither is
    closed here.
    """

    def __init__(
        self, endpoint: Endpoint, options: ChatOptions, *, writer: LogWriter, input_fd: int | None
    ) -> None:
        self._is_piped = input_fd is not None and not os.isatty(input_fd)
        super().__init__(endpoint, for_pipe(options) if self._is_piped else options)
        self._writer = writer
        self._input_fd = input_fd
        self._input_over = trio.Event()
        self._log = Log("client")
        self._piped: Piped
        self._sending = 0  # lines that were read and not sent yet
        # Then `/join` enters another room and keeps the others, as on a terminal.
        self._in_rooms = bool(options.rooms)

    async def run(self) -> None:
        """Connect and chat until the input ends, the server closes, or SIGINT or SIGTERM comes.

        Raises `ConnectFailed`; `Refused` if the server, or the room, does not admit us;
        `ConnectionLost` if the chat ended neither by us nor by the server's goodbye and cannot be
        resumed, or if a goodbye came before all of a pipe was accepted; `Refused` if the server
        refused a message of a pipe; `OutputLost`.  Unless a signal came, all log lines have been
        written when it returns.
        """
        await until_signal(self._run)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_output, self._writer.fd)
            nursery.start_soon(self._watch_writer)
            try:
                await self._converse()
            finally:
                await self._wait_for_output(at_most_bytes=0)
            nursery.cancel_scope.cancel(reason="the chat is over and its log is written")

    async def _watch_writer(self) -> None:
        """End the chat when writing to the output has failed."""
        await trio.to_thread.run_sync(self._writer.wait_for_failure, abandon_on_cancel=True)
        self._check_output()

    async def _converse(self) -> None:
        self._log.line("start", f"Connecting to {self.endpoint}")
        stream = await self.dial()
        self._log.line("STATE", "Connected")
        try:
            await self.run_chat(stream)
        finally:
            self._log.line("STATE", "Disconnected")

    def tell(self, text: str, *, warning: bool = False) -> None:
        """Log a line."""
        self._log.line("STATE", text, logging.WARNING if warning else logging.INFO)

    def begin(self, chat: LineChat, welcome: Welcome | None) -> None:
        """Log who and where we are."""
        self._piped = Piped(chat, attended=not self._is_piped)
        if welcome is not None:
            self._log.lines("STATE", "\n".join(TEXT.describe(welcome)))

    def end(self, chat: LineChat) -> None:
        """Log what was not sent; raise what `run` raises."""
        if chat.unaccepted:
            self.tell(f"{chat.unaccepted} not accepted", warning=True)
        elif chat.link.connection.waiting_bytes:
            self.tell("What was typed last has not been sent", warning=True)
        if chat.goodbye is not None and isinstance(self.failure, ConnectionLost | None):
            if self._is_piped and (chat.unaccepted or self._is_undelivered(chat)):
                reason = f"{chat.goodbye}; not all of the input was delivered"
                if chat.link.rejection is not None:
                    raise Refused(chat.link.rejection.code, self._piped.explained(reason))
                raise self._piped.explain(ConnectionLost(reason))
            if chat.link.rejection is not None and chat.link.rejection.code == "full":
                raise chat.link.rejection
            # The goodbye was shown.
        elif self._is_piped and isinstance(self.failure, ConnectionLost):
            raise self._piped.explain(self.failure)
        else:
            super().end(chat)
        self._piped.check_refused()

    def _is_undelivered(self, chat: LineChat) -> bool:
        """Return whether lines are known to be lost in a chat that ended with a goodbye."""
        return bool(
            self._sending
            or (self.sent and (chat.link.rejection or chat.link.connection.waiting_bytes))
        )

    async def show_events(self, chat: LineChat) -> None:
        """Log the events; after them, wait for the rest of a pipe."""
        try:
            await self._show_events(chat)
        except ConnectionLost:
            if not await self._last_input_was_sent(chat):
                raise
        finally:
            if chat.goodbye is not None and self._is_piped:
                with trio.move_on_after(_LEFT_INPUT_SECONDS):
                    await self._input_over.wait()

    async def _show_events(self, chat: LineChat) -> None:
        while events := await chat.receive():
            self.received += sum(not isinstance(event, _OURS) for event in events)
            if any(isinstance(event, Reconnected) for event in events):
                self.connected_at = trio.current_time()
            for tag, some in groupby(events, _tag):
                if tag == "RX":
                    lines = list(filter(None, map(self._format, some)))
                else:
                    lines = [line for event in some for line in self._describe(event)]
                if lines:
                    self._log.lines(tag, "\n".join(lines))
            await self._wait_for_output()

    def _format(self, event: Event) -> str | None:
        """Return the line of a message or an error, with its room if we are in several."""
        line = TEXT.format(event)
        room = event.room if isinstance(event, Said | Error) else ""
        return f"{room}: {line}" if line and room and self._in_rooms else line

    def _describe(self, event: Event) -> list[str]:
        lines = describe_event(event)
        room = getattr(event, "room", "")
        if self._in_rooms and room and isinstance(event, _IN_ROOM):
            return [f"{room}: {line}" for line in lines]
        return lines

    async def _last_input_was_sent(self, chat: LineChat) -> bool:
        if not (self._is_piped and chat.link.can_send):
            return False
        while not self._input_over.is_set():
            moved = chat.link.connection.moved_bytes
            with trio.move_on_after(_LAST_INPUT_SECONDS):
                await self._input_over.wait()
            if chat.link.connection.moved_bytes == moved:
                break
        return self._input_over.is_set()

    async def send_input(self, chat: LineChat, scope: trio.CancelScope) -> None:
        """Send what is read; see `FrontEnd.send_input`."""
        if self._input_fd is None:
            return
        try:
            async with aclosing(read_input(self._input_fd)) as reads:
                async for parts in reads:
                    if not await self._take(chat, parts):
                        break
            self._piped.all_read = True
            await chat.finish()
        except MultichatError as error:
            self.failure = self.failure or error
            if isinstance(error, OutputLost | InputNotText):
                scope.cancel(reason=str(error))
        self._input_over.set()

    async def _take(self, chat: LineChat, parts: list[Part]) -> bool:
        """Send typed lines and run local commands; return False when it is time to leave."""
        requests: list[Typed] = []
        piped = self._is_piped and chat.welcome is not None
        for part in parts:
            self._piped.note_read(part)
            if isinstance(part, LineTooLong):
                await self._send(chat, requests)
                requests = []
                self._piped.note_sent(1)
                self.tell(str(part), warning=True)
                continue
            for typed in parse_typed(part, _LOCAL_COMMANDS, piped=piped):
                if isinstance(typed.request, Join) and self._in_rooms and chat.welcome is not None:
                    await self._send(chat, requests)
                    requests = [_moving(typed, typed.request, chat)]
                    continue
                if not isinstance(typed.request, LocalCommand):
                    requests.append(typed)
                    continue
                await self._send(chat, requests)
                requests = []
                self._piped.note_sent(1)
                if typed.request.name == "/quit":
                    self.tell_leaving(chat)
                    self._piped.discard_rest()
                    return False
                self.tell(self.describe(chat))
        await self._send(chat, requests)
        return True

    async def _send(self, chat: LineChat, typed: list[Typed]) -> None:
        left_out = [each.lines for each in typed if each.request is None]
        if left_out:
            reason = why_not_said(disguised_command(left_out[0]) or left_out[0])
            more = f"{len(left_out)} lines not said, the first: " if len(left_out) > 1 else ""
            await notify(f"{more}{reason}")
        # In the order of the input, by which `Piped` numbers them.
        for is_left_out, some in groupby(typed, lambda each: each.request is None):
            requests = list(some)
            if is_left_out:
                self._piped.note_sent(len(requests))
            else:
                await self._send_requests(chat, requests)

    async def _send_requests(self, chat: LineChat, typed: list[Typed]) -> None:
        self._sending = count = sum(each.line_count for each in typed)
        if chat.goodbye is not None and (chat.codec is JSON or chat.link.connection.over):
            return
        await self._piped.send(typed)
        if chat.goodbye is None:
            self._sending = 0
        self.sent += count
        lines = "\n".join(each.lines for each in typed)
        if may_be_disguised(lines):
            lines = "\n".join(line for line in lines.split("\n") if not may_hold_secret(line))
        if lines:
            self._log.lines("TX", lines)
        await self._wait_for_output()

    async def _wait_for_output(self, at_most_bytes: int = _UNWRITTEN_BYTES) -> None:
        if self._writer.waiting_bytes > at_most_bytes:
            await trio.to_thread.run_sync(
                self._writer.wait_below, at_most_bytes // 2, abandon_on_cancel=True
            )
        self._check_output()

    def _check_output(self) -> None:
        if (failure := self._writer.first_failure) is not None:
            raise OutputLost(failure)


def _tag(event: Event) -> str:
    """Return the tag of an event's log lines: joins and leaves are no messages."""
    return "STATE" if isinstance(event, STATES) else "RX"


def _moving(typed: Typed, join: Join, chat: LineChat) -> Typed:
    """Return what a command does that moves to another room, for a client in several rooms."""
    if room_command(typed.lines)[0] == "/part":
        return typed._replace(request=Exit(chat.next_room))
    return typed._replace(request=Enter(join.room))
