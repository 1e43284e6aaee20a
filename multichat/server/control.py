"""The admin socket: a Unix socket over which `multichat ctl` runs the operator's commands.

The file's mode, 0600, is the only access control: a client that can connect may do everything that
the operator can do at the console.  Passwords, bans, limits and fair share do not apply; instead,
`ControlLimits` bounds what its clients can cost the server.  See `multichat.protocol.control` for
the protocol, and `multichat.server.admin_requests` for the commands.

1. A request is carried out once it has arrived completely, and gets exactly one answer.  A waiting
   command is abandoned only if its client has left and another connection needs the slot.
2. A connection that violates the protocol gets an error and stays open; nothing that it sends can
   end the server or another connection.
3. Commands that change something are logged, without the text of messages and without secrets.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from multichat.errors import LineTooLong, MultichatError, ReloadFailed, lone_exception
from multichat.log import Log
from multichat.net.listeners import has_left
from multichat.protocol.commands import (
    ADMIN_COMMANDS,
    Command,
    parse_ban,
    shortened,
    split_who,
    usage,
)
from multichat.protocol.control import (
    Code,
    ControlAnswer,
    decode_request,
    encode_answer,
)
from multichat.protocol.framing import LineDecoder, clean
from multichat.server import log_lines
from multichat.server.admin_commands import AdminCommands
from multichat.server.admin_requests import Answer, Task, run_command
from multichat.server.pace import Pace, PacedListener

__all__ = ["Control", "ControlLimits", "open_control"]

# Small enough that decoding any input of this size takes less than a millisecond.
_READ_BYTES = 8 * 1024

# These change nothing, and may be requested every second.
_NOT_LOGGED = ("/who", "/rooms", "/stats", "/bans", "/help")


# For commands with a secret, by their first word: how many words of the arguments are not secret.
_NAMED = {"add": 2, "remove": 2, "list": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlLimits:
    """What the clients of an admin socket can cost the server.

    At most *max_connections* are open at once: when another one comes, the connection that has
    waited longest for its next request is closed, or else one whose client left before it got its
    answer.  A request has at most *max_line_bytes* and must arrive within *idle_seconds* of the
    previous answer; an answer must be received within *send_seconds*.  All connections together use
    at most this *share* of the event loop's time.
    """

    max_connections: int = 16
    max_line_bytes: int = 1024 * 1024  # a message of 64 KiB, each byte of it escaped as \u0000
    idle_seconds: float = 60.0
    send_seconds: float = 10.0
    share: float = 0.25


class Control:
    """Serves the admin socket's connections, each with `handle` in a task of its own."""

    def __init__(
        self,
        admin: AdminCommands,
        log: Log,
        limits: ControlLimits | None = None,
        *,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._admin, self._log = admin, log
        self._limits = limits or ControlLimits()
        self.pace = Pace(self._limits.share, clock)
        self._connections = 0
        # The connections that wait for a request, the one that has waited longest first.
        self._idle: dict[trio.CancelScope, None] = {}
        # The connections whose commands wait.
        self._waiting: dict[trio.CancelScope, trio.abc.Stream] = {}

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Answer the requests on *stream* until it ends or exceeds a limit; closes the stream.

        Raises nothing: this is the boundary of one connection.  Cancelled, a command that waits is
        abandoned as `multichat.server.admin_commands` describes.
        """
        self._connections += 1
        try:
            async with stream:
                if self._connections > self._limits.max_connections and not self._evict():
                    error = "too many commands are waiting for their answers; try again"
                    await self._send(stream, _refusal(Code.BUSY, error))
                    return
                await self._serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the client has left, or does not read
        except Exception as error:  # noqa: BLE001 - the boundary of one connection
            self._log.crash("a connection of the admin socket crashed", error)
        finally:
            self._connections -= 1

    def _evict(self) -> bool:
        """Close the connection that has waited longest for a request; return whether one did.

        Otherwise, close one whose client has left.
        """
        left = (scope for scope, stream in self._waiting.items() if has_left(stream))
        scope = next(iter(self._idle), None) or next(left, None)
        if scope is None:
            return False
        self._idle.pop(scope, None)
        self._waiting.pop(scope, None)
        scope.cancel(reason="another client of the admin socket needs its place")
        return True

    async def _serve(self, stream: trio.abc.Stream) -> None:
        decoder = LineDecoder(self._limits.max_line_bytes)
        deadline = trio.current_time() + self._limits.idle_seconds
        while (data := await self._receive(stream, deadline)) is not None:
            if data:  # even if no request is complete
                await self.pace.wait()
            with self.pace.measure():
                # At the end, the last request may lack its LF; half of one is not valid JSON.
                parts = decoder.feed(data) if data else decoder.finish()
            for part in parts:
                for line in [part] if isinstance(part, LineTooLong) else part.split("\n"):
                    await self.pace.wait()
                    if (answer := await self._wait_for_answer(stream, line)) is None:
                        return
                    await self._send(stream, answer)
                    deadline = trio.current_time() + self._limits.idle_seconds
            if not data:
                return

    async def _receive(self, stream: trio.abc.Stream, deadline: float) -> bytes | bytearray | None:
        """Return received data, empty at the end; None after *deadline* or when evicted."""
        with trio.CancelScope(deadline=deadline) as scope:
            self._idle[scope] = None
            try:
                return await stream.receive_some(_READ_BYTES)
            finally:
                self._idle.pop(scope, None)
        return None

    async def _wait_for_answer(
        self, stream: trio.abc.Stream, line: str | LineTooLong
    ) -> ControlAnswer | None:
        """Return the answer to *line*; None if it is abandoned because its client has left."""
        with trio.CancelScope() as scope:
            self._waiting[scope] = stream
            try:
                return await self._answer(line)
            finally:
                self._waiting.pop(scope, None)
        return None

    async def _send(self, stream: trio.abc.Stream, answer: ControlAnswer) -> None:
        with self.pace.measure():
            data = encode_answer(answer)
        with trio.fail_after(self._limits.send_seconds):
            await stream.send_all(data)

    async def _answer(self, line: str | LineTooLong) -> ControlAnswer:
        try:
            if isinstance(line, LineTooLong):
                return _refusal(Code.USAGE, str(line))
            with self.pace.measure():
                begun = self._begin(line)
            answer = await begun() if callable(begun) else begun
            if isinstance(answer, ControlAnswer):
                return answer
            lines = tuple(map(clean, answer.lines))
            return ControlAnswer(ok=True, lines=lines, result=answer.result)
        except MultichatError as error:
            lines = error.lines if isinstance(error, ReloadFailed) else ()
            return _refusal(Code.REFUSED, str(error), *lines)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not end the server
            self._log.crash("an operator command crashed", error)
            return _refusal(Code.FAILED, "internal error; see the server's log")

    def _begin(self, line: str) -> Answer | ControlAnswer | Task:
        """Run the request in *line* up to where it must wait; raises like `run_command`."""
        try:
            request = decode_request(line)
        except MultichatError as error:
            return _refusal(Code.USAGE, str(error))
        command = ADMIN_COMMANDS.find(f"/{request.command}")
        if command is None:
            return _refusal(Code.USAGE, f"unknown command {shortened(request.command)}")
        if command.name not in _NOT_LOGGED:
            shown = _without_secrets(command, request.arguments.strip(), self._log)
            log_lines.controlled(self._log, f"{command.name.removeprefix('/')} {shown}".rstrip())
        answer = run_command(self._admin, command, request.arguments)
        if answer is None:
            return _refusal(Code.USAGE, f"usage: {usage(command).removeprefix('/')}")
        return answer


def _refusal(code: Code, error: str, *lines: str) -> ControlAnswer:
    return ControlAnswer(ok=False, code=code, error=clean(error), lines=tuple(map(clean, lines)))


def _without_secrets(command: Command, rest: str, log: Log) -> str:
    """Return *rest*, the arguments of *command*, without passphrases and the text of messages.

    If the log hides messages, the reasons of kicks and bans and topics are left out, too.  So are
    invalid arguments, because they may contain anything.
    """
    if command.has_secret:
        words = rest.split()
        shown = words[: _NAMED.get(words[0].lower(), 0)] if words else []
        return shortened(" ".join(shown))
    # A tab or a no-break space instead of a space must not make a text part of a name.
    rest = " ".join(rest.split())
    match command.name:
        case "/announce":
            return ""
        case "/send":
            return split_who(rest)[0]
        case "/kick" if log.hides_messages:
            return split_who(rest)[0]
        case "/ban" if log.hides_messages:
            ban = parse_ban(rest)
            return f"{ban.what} {ban.time}" if ban is not None else ""
        case "/topic" if log.hides_messages:
            return rest.partition(" ")[0]
    return shortened(rest)


@asynccontextmanager
async def open_control(
    listeners: Sequence[trio.SocketListener],
    admin: AdminCommands,
    log: Log,
    limits: ControlLimits | None = None,
) -> AsyncGenerator[None]:
    """Serve the admin sockets of *listeners*, which only their owner can use, until the block ends.

    Closes the listeners.  At the end, open connections are closed even if they are waiting.
    """
    control = Control(admin, log, limits)
    with lone_exception():
        async with trio.open_nursery() as nursery:
            paced = [PacedListener(each, control.pace) for each in listeners]
            await nursery.start(trio.serve_listeners, control.handle, paced)
            yield
            nursery.cancel_scope.cancel(reason="the server has ended")
