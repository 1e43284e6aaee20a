"""The operator's console: runs the commands that are typed at the server's terminal.

Passes the commands of `ADMIN_COMMANDS` to `multichat.server.admin_requests`, as `multichat ctl`
does, and shows the answers.

1. Commands run immediately, even if clients are slow.  Messages, and commands that wait, such as a
   shutdown that follows them, are queued in the order in which they were typed.
2. Every line gets a short answer.  An error is one line and ends neither console nor server.
3. All output is cleaned, because names and reasons come from other people.
"""

import os
import signal
import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from multichat.errors import LocalProtocolError, MultichatError, ReloadFailed
from multichat.log import Log
from multichat.protocol.commands import (
    ADMIN_COMMANDS,
    Command,
    split_command,
    unknown_command,
    usage,
)
from multichat.protocol.framing import Part, clean
from multichat.protocol.typed_lines import disguised_command, lacks_slash, why_not_said
from multichat.server.admin_requests import Answer, Task, run_command
from multichat.stdio import read_input
from multichat.terminal.admin_answers import format_answer

if TYPE_CHECKING:
    from multichat.server.server import Server

__all__ = ["AdminConsole", "background_access_fails", "console_fd", "run_console"]

# About ten pasted pages.  Each line can take two seconds while the server waits for a slow client.
MAX_WAITING_LINES = 1000

# Wider tables are truncated, to fit a narrow terminal.
_COLUMNS = 60

_HELP_HEADER = "What you type is sent to everybody. Commands:"
_HELP_ARGUMENTS = """\
WHO is a client's number or name. WHAT is that (then its
address is banned), an address, a network such as
203.0.113.0/24, or: name NAME. TIME is 90s, 10m, 2h, 1d, 3w
or forever, which is the default; a number is minutes."""


class AdminConsole:
    """The console of *server*; `run` may be called once.

    *show* is called with each cleaned line of an answer and must not block.
    """

    def __init__(self, server: "Server", show: Callable[[str], object]) -> None:
        self._server = server
        self._show_line = show
        self._queue, self._queued = trio.open_memory_channel[Callable[[], Awaitable[object]]](
            MAX_WAITING_LINES
        )

    async def run(self, lines: AsyncIterable[list[Part]]) -> None:
        """Run the commands in *lines*, and return when all messages have been sent.

        On cancellation, messages that are still queued are dropped.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work)
            with self._queue:
                async for parts in lines:
                    for part in parts:
                        if isinstance(part, str):
                            for line in part.split("\n"):
                                self._run_line(line)
                        else:
                            self._show(str(part))

    async def _work(self) -> None:
        async for task in self._queued:
            try:
                await task()
            except Exception as error:  # noqa: BLE001 - the boundary of a queued task
                self._fail(error)

    def _soon(self, task: Callable[[], Awaitable[object]]) -> None:
        try:
            self._queue.send_nowait(task)
        except trio.WouldBlock:
            raise LocalProtocolError("too many lines are waiting; this one was not sent") from None

    def _show(self, text: str) -> None:
        self._show_line(clean(text))

    def _run_line(self, line: str) -> None:
        try:
            if line.startswith("/") and not line.startswith("//"):
                self._run_command(line)
            elif (command := disguised_command(line, ADMIN_COMMANDS)) is not None:
                self._show(why_not_said(command, ADMIN_COMMANDS))
            elif lacks_slash(line):
                self._show("not sent, because it may hold a passphrase: a command begins with /")
            else:
                text = line.removeprefix("/") if line.startswith("//") else line
                self._soon(partial(self._server.broadcast, text))
        except Exception as error:  # noqa: BLE001 - the boundary of one line
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, ReloadFailed):
            self._show_all(*error.lines)
        elif isinstance(error, MultichatError):
            self._show(str(error))
        else:  # a bug, which must not end the console or the server
            log = Log("server", hides_messages=self._server.config.hides_messages)
            log.crash("an operator command crashed", error)
            self._show("internal error; see the log")

    def _run_command(self, line: str) -> None:
        name, rest = split_command(line)
        command = ADMIN_COMMANDS.find(name)
        if command is None:
            self._show(unknown_command(name, rest.strip(), ADMIN_COMMANDS))
        elif command.name == "/help":
            self._show_all(_HELP_HEADER, *ADMIN_COMMANDS.help_lines(), *_HELP_ARGUMENTS.split("\n"))
        else:
            match run_command(self._server.admin, command, rest):
                case None:
                    self._show(f"usage: {usage(command)}")
                case Answer() as answer:
                    self._show_answer(command, answer)
                case task:
                    self._soon(partial(self._finish, command, task))

    async def _finish(self, command: Command, task: Task) -> None:
        self._show_answer(command, await task())

    def _show_answer(self, command: Command, answer: Answer) -> None:
        self._show_all(*format_answer(command.name, answer.lines, answer.result, columns=_COLUMNS))

    def _show_all(self, *lines: str) -> None:
        for line in lines:
            self._show(line)


def console_fd() -> int | None:
    """Return the descriptor of standard input if it is a terminal and we are in its foreground.

    Otherwise return None: reading from a terminal in the background would stop the process.
    """
    try:
        fd = sys.stdin.fileno()
        if not os.isatty(fd):
            return None
        if sys.platform != "win32" and os.tcgetpgrp(fd) != os.getpgrp():
            return None
    except (AttributeError, OSError, ValueError):  # missing, closed, or not our terminal
        return None
    return fd


@contextmanager
def background_access_fails() -> Iterator[None]:
    """Ignore SIGTTIN and SIGTTOU: in the background, terminal I/O fails instead of stopping us."""
    if sys.platform == "win32":
        yield
        return
    numbers = signal.SIGTTIN, signal.SIGTTOU
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


async def run_console(server: "Server", show: Callable[[str], object]) -> None:
    """Run the commands that are typed at the terminal; return immediately if there is none.

    Main thread only.  *show* is the same as for `AdminConsole`.  Also returns at the end of input
    or when the process is in the background; the server keeps running.
    """
    fd = console_fd()
    if fd is None:
        await trio.lowlevel.checkpoint()
        return
    with background_access_fails():
        await AdminConsole(server, show).run(read_input(fd))
    show("The console has ended; the server keeps running")
