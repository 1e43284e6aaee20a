"""`multichat connect` without an input line: standard input to the chat, the chat to the log.

Owns what is local to a client: its commands, its log, and when it is time to leave and how that
is told to the shell.  A terminal and a pipe are read the same way.
"""

import logging
import os
from contextlib import aclosing
from itertools import groupby

import msgspec
import trio

from multichat.cli.notices import notify
from multichat.cli.piped import Piped, for_pipe
from multichat.client.chat import Chat
from multichat.client.connect import Endpoint, open_chat
from multichat.client.status import (
    LEAVES_WHEN_SENT,
    SPEAKING_TEXT,
    describe_connection,
    describe_retry,
    refused_name,
    waiting_for_server,
)
from multichat.errors import (
    ConnectFailed,
    ConnectionLost,
    InputNotText,
    LineTooLong,
    MultichatError,
    OutputLost,
)
from multichat.log import Log, LogWriter
from multichat.protocol.auth import parse_password
from multichat.protocol.commands import COMMANDS
from multichat.protocol.framing import Part
from multichat.protocol.messages import (
    ASKED_TO_LEAVE,
    Disconnected,
    Event,
    Goodbye,
    Reconnected,
)
from multichat.protocol.text_codec import TEXT
from multichat.protocol.typed_lines import (
    disguised_command,
    may_be_disguised,
    say_unless_command,
    why_not_said,
)
from multichat.stdio import read_input, until_signal
from multichat.terminal.render import STATES

__all__ = [
    "Console",
]

# How much may wait for a slow standard output before we stop reading: well below where the log
# would skip lines, because no message may be lost.
_UNWRITTEN_BYTES = 2 * 1024 * 1024

# A server that closes its side first may still be reading (`ncat -l </dev/null`): the rest of a
# pipe is sent as long as more of it comes within this time.
_LAST_INPUT_SECONDS = 1.0

# How long after a goodbye the rest of a pipe is read, to count what was not sent.
_LEFT_INPUT_SECONDS = 0.25

# The events that our own client adds to the server's.
_OURS = (Disconnected, Reconnected)

_LOCAL_COMMANDS = ("/quit", "/status")


class Console:
    """One run of `connect`; `run` is called once.

    For *replay*, *reconnect* and *wait* see `multichat.client.connect.connect`.  *writer* is where
    the log goes, *input_fd* what is read, None for nothing at all.  Neither is closed here.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        writer: LogWriter,
        input_fd: int | None,
        name: str | None = None,
        room: str | None = None,
        password: str | None = None,
        plain: bool = False,
        replay: int = 0,
        reconnect: bool = True,
        wait: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._is_piped = input_fd is not None and not os.isatty(input_fd)
        self._timeouts = for_pipe(endpoint.timeouts) if self._is_piped else endpoint.timeouts
        self._replay, self._reconnect, self._wait = replay, reconnect, wait
        self._name, self._room, self._plain = name, room, plain
        self._password = password
        self._writer = writer
        self._input_fd = input_fd
        self._input_over = trio.Event()
        self._log = Log("client")
        self._sent = self._received = 0
        self._sending = 0  # lines that were read and not sent yet
        self._was_rejected = False  # the server's first event was a goodbye
        self._is_full = False  # and its code was `full`
        self._connected_at = 0.0
        self._failure: MultichatError | None = None

    async def run(self) -> None:
        """Connect and talk until the input ends, the server closes, or SIGINT or SIGTERM comes.

        Raises `ConnectFailed`; `Refused` if the room, or the server, is closed to us;
        `ConnectionLost` if the conversation ended otherwise than by our wish or the server's
        goodbye, and there is no way back, or if a goodbye came before all of a pipe was heard;
        `OutputLost`.  Unless a signal came, all that was logged has been written when it returns.
        """
        await until_signal(self._run)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_output)
            try:
                await self._converse()
            finally:
                await self._wait_for_output(at_most_bytes=0)
            nursery.cancel_scope.cancel(reason="all is said and written")

    async def _watch_output(self) -> None:
        """End the conversation when the output cannot be written any more."""
        await trio.to_thread.run_sync(self._writer.wait_for_failure, abandon_on_cancel=True)
        self._check_output()

    async def _converse(self) -> None:
        self._log.line("start", f"Connecting to {self._endpoint}")
        if self._wait:
            stream = await self._endpoint.dial_until_there(self._show_failure)
        else:
            stream = await self._endpoint.dial()
        self._connected_at = trio.current_time()
        self._log.line("STATE", "Connected")
        try:
            in_hello = self._name if self._plain else None  # else a refusal need not be the end
            async with open_chat(
                stream,
                name=in_hello,
                room=self._room,
                password=self._password,
                plain=self._plain,
                replay=self._replay,
                redial=self._endpoint.dial if self._reconnect else None,
                wait=self._wait,
                timeouts=self._timeouts,
            ) as chat:
                self._piped = Piped(chat)
                await self._introduce(chat)
                await self._talk(chat)
        finally:
            self._log.line("STATE", "Disconnected")

    def _show_failure(self, error: ConnectFailed) -> None:
        self._log.line("STATE", waiting_for_server(error))

    async def _introduce(self, chat: Chat) -> None:
        if chat.fell_back:
            self._log.line("STATE", SPEAKING_TEXT)
        if chat.welcome is None:
            return
        if self._name is not None:
            refused = await chat.try_rename(self._name, self._timeouts.answer)
            if refused is not None:
                self._log.line("STATE", refused_name(refused), logging.WARNING)
        here = msgspec.structs.replace(chat.welcome, name=chat.name)
        self._log.lines("STATE", "\n".join(TEXT.describe(here)))

    async def _talk(self, chat: Chat) -> None:
        async with trio.open_nursery() as nursery:
            if self._name is not None and chat.welcome is not None:
                nursery.start_soon(chat.keep_name, self._name)
            if self._input_fd is not None:
                nursery.start_soon(self._send_input, self._input_fd, chat, nursery.cancel_scope)
            try:
                await self._show_events(chat)
            except MultichatError as error:
                lost = isinstance(error, ConnectionLost)
                if not (lost and await self._last_input_was_sent(chat)):
                    self._fail(error)
            if chat.goodbye is not None and self._is_piped:
                with trio.move_on_after(_LEFT_INPUT_SECONDS):
                    await self._input_over.wait()
            nursery.cancel_scope.cancel(reason="the conversation is over")
        if chat.unaccepted:
            self._log.line("STATE", f"{chat.unaccepted} not accepted", logging.WARNING)
        elif chat.waiting_bytes:
            self._log.line("STATE", "What was typed last has not been sent", logging.WARNING)
        if chat.goodbye is not None and isinstance(self._failure, ConnectionLost | None):
            if self._is_piped and (chat.unaccepted or self._is_unsaid(chat)):
                reason = f"{chat.goodbye}; not all of the input was heard"
                raise self._piped.explain(ConnectionLost(reason))
            if self._is_full:
                raise ConnectionLost(chat.goodbye)
            return  # the goodbye was shown
        if self._is_piped and isinstance(self._failure, ConnectionLost):
            raise self._piped.explain(self._failure)
        if self._failure is not None:
            raise self._failure

    def _is_unsaid(self, chat: Chat) -> bool:
        """Return whether lines are known to be lost in a conversation that ended with a goodbye."""
        return bool(self._sending or (self._sent and (self._was_rejected or chat.waiting_bytes)))

    def _fail(self, error: MultichatError) -> None:
        self._failure = self._failure or error

    async def _show_events(self, chat: Chat) -> None:
        while events := await chat.receive():
            if not self._received and chat.welcome is None:
                first = events[0]
                self._was_rejected = isinstance(first, Goodbye) and first.reason != ASKED_TO_LEAVE
                self._is_full = isinstance(first, Goodbye) and first.known().code == "full"
            self._received += sum(not isinstance(event, _OURS) for event in events)
            if any(isinstance(event, Reconnected) for event in events):
                self._connected_at = trio.current_time()
            for tag, some in groupby(events, _tag):
                if tag == "RX":
                    lines = list(filter(None, map(TEXT.format, some)))
                else:
                    lines = [line for event in some for line in _describe(event)]
                if lines:
                    self._log.lines(tag, "\n".join(lines))
            await self._wait_for_output()

    async def _last_input_was_sent(self, chat: Chat) -> bool:
        if not (self._is_piped and chat.can_send):
            return False
        while not self._input_over.is_set():
            moved = chat.moved_bytes
            with trio.move_on_after(_LAST_INPUT_SECONDS):
                await self._input_over.wait()
            if chat.moved_bytes == moved:
                break
        return self._input_over.is_set()

    async def _send_input(self, fd: int, chat: Chat, scope: trio.CancelScope) -> None:
        try:
            async with aclosing(read_input(fd)) as reads:
                async for parts in reads:
                    if not await self._take(chat, parts):
                        break
            self._piped.all_read = True
            await chat.finish()
        except MultichatError as error:
            self._fail(error)
            if isinstance(error, OutputLost | InputNotText):
                scope.cancel(reason=str(error))
        self._input_over.set()

    async def _take(self, chat: Chat, parts: list[Part]) -> bool:
        """Send typed lines and obey local commands; return False when it is time to leave."""
        lines: list[str] = []
        for part in parts:
            self._piped.note_read(part)
            if isinstance(part, LineTooLong):
                await self._send(chat, lines)
                lines = []
                self._piped.note_sent(1)
                self._log.line("STATE", str(part), logging.WARNING)
                continue
            for line in part.split("\n"):
                command = COMMANDS.find(line.rstrip())
                if command is None or command.name not in _LOCAL_COMMANDS:
                    lines.append(line)
                    continue
                await self._send(chat, lines)
                self._piped.note_sent(1)
                lines = []
                if command.name == "/status":
                    self._show_status(chat)
                    continue
                if not chat.connected and chat.unaccepted:
                    self._show_status(chat)
                    self._log.line("STATE", LEAVES_WHEN_SENT)
                self._piped.discard_rest()
                return False
        await self._send(chat, lines)
        return True

    async def _send(self, chat: Chat, lines: list[str]) -> None:
        block = "\n".join(lines)
        if self._is_piped and chat.welcome is not None and may_be_disguised(block):
            meant = await _without_disguised(lines)
            # In the order of the input, by which `Piped` numbers them.
            for is_said, some in groupby(lines, lambda line: meant[line] is not None):
                part = list(some)
                if is_said:
                    await self._send_block(
                        chat, part, "\n".join(meant[line] or "" for line in part)
                    )
                else:
                    self._piped.note_sent(len(part))
        elif lines:
            await self._send_block(chat, lines, block)

    async def _send_block(self, chat: Chat, lines: list[str], block: str) -> None:
        """Send *run*, the requests that *lines* stand for, and log the lines."""
        self._sending = len(lines)
        await self._piped.send(block, chat.send)
        if chat.goodbye is None:
            self._sending = 0
        self._sent += len(lines)
        if shown := [line for line in lines if parse_password(line) is None]:
            self._log.lines("TX", "\n".join(shown))
        await self._wait_for_output()

    def _show_status(self, chat: Chat) -> None:
        if not chat.connected:
            retrying = (
                f"; {describe_retry(chat.retry.number, chat.retry.at - trio.current_time())}"
                if chat.retry
                else ""
            )
            self._log.line(
                "STATE", f"Not connected; {chat.unaccepted} waiting to be sent{retrying}"
            )
            return
        seconds = trio.current_time() - self._connected_at
        self._log.line(
            "STATE",
            f"Connected to {self._endpoint} for {seconds:.0f} s; "
            f"{self._sent} sent, {self._received} received",
        )

    async def _wait_for_output(self, at_most_bytes: int = _UNWRITTEN_BYTES) -> None:
        if self._writer.waiting_bytes > at_most_bytes:
            await trio.to_thread.run_sync(
                self._writer.wait_below, at_most_bytes // 2, abandon_on_cancel=True
            )
        self._check_output()

    def _check_output(self) -> None:
        if (failure := self._writer.first_failure) is not None:
            raise OutputLost((failure.strerror or "").lower())


async def _without_disguised(lines: list[str]) -> dict[str, str | None]:
    """Return what to send for each of *lines*: None for a disguised command.

    A notice tells of those.
    """
    meant = {line: say_unless_command(line) for line in lines}
    left_out = [line for line in lines if meant[line] is None]
    if left_out:
        reason = why_not_said(disguised_command(left_out[0]) or left_out[0])
        more = f"{len(left_out)} lines not said, the first: " if len(left_out) > 1 else ""
        await notify(f"{more}{reason}")
    return meant


def _tag(event: Event) -> str:
    """Return the tag of an event's log lines: joins and leaves are no messages."""
    return "STATE" if isinstance(event, STATES) else "RX"


def _describe(event: Event) -> list[str]:
    return describe_connection(event) if isinstance(event, _OURS) else TEXT.describe(event)
