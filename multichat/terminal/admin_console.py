"""The operator's console: runs the commands that are typed at the server's terminal.

Maps the commands of `ADMIN_COMMANDS` to `multichat.server.admin_commands`, and shows the answers.

1. Commands run immediately, even if clients are slow.  Messages, and a shutdown that follows them,
   are queued in the order in which they were typed.
2. Every line gets a short answer.  An error is one line and ends neither console nor server.
3. All output is cleaned, because names and reasons come from other people.
"""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from multichat.errors import LocalProtocolError, MultichatError
from multichat.log import Log
from multichat.protocol.commands import (
    ADMIN_COMMANDS,
    parse_ban,
    parse_kick,
    split_command,
    split_who,
    unknown_command,
    usage,
)
from multichat.protocol.framing import Part, clean
from multichat.protocol.messages import room_of
from multichat.protocol.names import fold_name
from multichat.protocol.typed_lines import disguised_command, lacks_slash, why_not_said
from multichat.server.bans import host_of
from multichat.stdio import read_input
from multichat.terminal.columns import columns_of

if TYPE_CHECKING:  # the server imports this module
    from multichat.server.client import MemberInfo
    from multichat.server.server import Server

__all__ = ["AdminConsole", "background_access_fails", "console_fd", "run_console"]

# About ten pasted pages.  Each line can take two seconds while the server waits for a slow client.
MAX_WAITING_LINES = 1000

# Wider tables are truncated, to fit a narrow terminal.
_COLUMNS = 60
_GAP = "  "
_LEAST_COLUMN = 8

_HELP_HEADER = "What you type is sent to everybody. Commands:"
_HELP_ARGUMENTS = """\
WHO is a client's number or name. WHAT is that (then its
address is banned), an address, a network such as
203.0.113.0/24, or: name NAME. TIME is 90s, 10m, 2h, 1d, 3w
or forever, which is the default; a number is minutes."""


class AdminConsole:
    """The console of *server*; `run` may be called once.

    *show* is called with each cleaned line of an answer and must not block.  *clock* returns the
    Unix time in seconds.
    """

    def __init__(
        self,
        server: "Server",
        show: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._server = server
        self._commands = server.admin
        self._commands.clock = clock
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
        if isinstance(error, MultichatError):
            self._show(str(error))
        else:  # a bug, which must not end the console or the server
            Log("server").crash("an operator command crashed", error)
            self._show("internal error; see the log")

    def _run_command(self, line: str) -> None:
        name, rest = split_command(line)
        rest = rest.strip()
        command = ADMIN_COMMANDS.find(name)
        match command and command.name:
            case "/clients":
                self._show_clients(room_of(rest))
            case "/rooms":
                self._show_rooms()
            case "/send" if split_who(rest)[1]:
                who, text = split_who(rest)
                self._soon(partial(self._server.tell, self._commands.find(who), text))
            case "/kick" if (kick := parse_kick(rest)) is not None:
                self._show(self._commands.kick(kick.who, kick.reason))
            case "/ban" if (ban := parse_ban(rest)) is not None:
                self._show(self._commands.ban(ban.what, ban.time, ban.reason))
            case "/unban" if rest:
                self._show(self._commands.unban(rest))
            case "/bans":
                for text in self._commands.describe_bans():
                    self._show(text)
            case "/topic" if rest:
                self._soon(partial(self._set_topic, rest))
            case "/account" if rest:
                # Its end is a passphrase, of which spaces are a part.
                self._soon(partial(self._account, split_command(line)[1].lstrip()))
            case "/help":
                lines = [_HELP_HEADER, *ADMIN_COMMANDS.help_lines(), *_HELP_ARGUMENTS.split("\n")]
                for text in lines:
                    self._show(text)
            case "/quit":
                self._soon(self._shut_down)
            case None:
                self._show(unknown_command(name, rest, ADMIN_COMMANDS))
            case _:
                assert command is not None  # noqa: S101 - it has a name
                self._show(f"usage: {usage(command)}")

    async def _set_topic(self, rest: str) -> None:
        self._show(await self._commands.topic(rest))

    async def _account(self, rest: str) -> None:
        for text in await self._commands.account(rest):
            self._show(text)

    async def _shut_down(self) -> None:
        await trio.lowlevel.checkpoint()
        self._server.shutdown()

    def _show_rooms(self) -> None:
        sizes = Counter(room for member in self._server.members for room in member.rooms)
        if not sizes:
            self._show("nobody is connected")
            return
        rows = [(room, str(members)) for room, members in sorted(sizes.items())]
        for line in _table([("room", "clients"), *rows]):
            self._show(line)

    def _show_clients(self, room: str) -> None:
        members = self._server.members
        if room:
            key = fold_name(room)
            members = [each for each in members if key in map(fold_name, each.rooms)]
        if not members:
            self._show(f"nobody is in {room[:40]}" if room else "nobody is connected")
            return
        for line in _table([("#", "name", "room", "address", "waiting"), *map(_row, members)]):
            self._show(line)


def _row(member: "MemberInfo") -> tuple[str, ...]:
    host = host_of(member.address) or member.address or "-"
    waiting = _format_bytes(member.waiting_bytes)
    if member.behind:
        waiting = f"{member.behind:,} behind"
    return str(member.client), member.name, member.room, host, waiting


def _format_bytes(count: int) -> str:
    for unit, size in (("MiB", 1024 * 1024), ("KiB", 1024)):
        if count >= size:
            return f"{count // size} {unit}"
    return f"{count} B"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Format *rows* as a table, with numbers right-aligned and the widest columns truncated."""
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > _COLUMNS:
        widest = max(widths)
        if widest <= _LEAST_COLUMN:
            break
        widths[widths.index(widest)] -= 1
    lines: list[str] = []
    for row in rows:
        cells = [_fit(text, width) for text, width in zip(row, widths, strict=True)]
        for right in (0, -1) if len(cells) > 2 else (-1,):
            cells[right] = cells[right].rstrip().rjust(widths[right])
        lines.append(_GAP.join(cells))
    return lines


def _fit(text: str, width: int) -> str:
    if columns_of(text) > width:
        while columns_of(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - columns_of(text))


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
