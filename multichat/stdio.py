"""Standard streams, and ending on signals, for commands and consoles."""

import errno
import os
import select
import stat
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable

import trio

from multichat.errors import InputNotText, OutputLost, lone_exception
from multichat.protocol.framing import LineDecoder, Part
from multichat.signals import EndingSignals, receive_ending_signals

__all__ = ["MAX_LINE_BYTES", "read_input", "until_signal", "watch_output", "write_output"]

# The longest line that any server accepts or sends.
MAX_LINE_BYTES = 1024 * 1024

_READ_BYTES = 64 * 1024


async def read_input(fd: int) -> AsyncGenerator[list[Part]]:
    """Yield the lines of each read of *fd*, and at EOF the rest without a line end.

    Reads in a thread, which works for terminals, pipes and files.  On cancellation a pending read
    is abandoned; its thread does not keep the process alive.  Raises `InputNotText` for UTF-16.
    """
    decoder = LineDecoder(MAX_LINE_BYTES)
    first = True
    while data := await trio.to_thread.run_sync(_read_some, fd, abandon_on_cancel=True):
        if first and data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputNotText
        first = False
        yield decoder.feed(data)
    yield decoder.finish()


def _read_some(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _READ_BYTES)
        except BlockingIOError:
            # Another process shares this terminal or pipe and has made it non-blocking.
            select.select([fd], [], [], 1.0)
        except OSError:
            return b""  # closed, or a terminal that we have lost


def write_output(fd: int, data: bytes) -> None:
    """Write *data* to standard output, whose descriptor is *fd*; raises `OutputLost`.

    Blocks: an async program calls it from a thread.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [], 1.0)  # another process made it non-blocking
        except OSError as error:
            raise OutputLost(error) from error


async def watch_output(fd: int) -> None:
    """Raise `OutputLost` when the reader of *fd* has closed it, even while *fd* is idle.

    For pipes and Unix sockets only: a TCP socket does not report that its reader has closed.

    Sleeps in a thread, which is abandoned on cancellation and does not keep the process alive.
    Waits forever if *fd* is no pipe or socket, and on Windows: there, only writing fails.
    """
    mode = os.fstat(fd).st_mode
    if sys.platform == "win32" or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        await trio.sleep_forever()
    await trio.to_thread.run_sync(_wait_for_hangup, fd, abandon_on_cancel=True)
    raise OutputLost(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))


def _wait_for_hangup(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # errors and hangups are reported without being asked for
    poll.poll()


async def until_signal(main: Callable[[], Awaitable[object]]) -> bool:
    """Run *main* until one of `ending_signals` cancels it; return whether it finished."""
    finished = False
    with receive_ending_signals() as signals, lone_exception():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            await main()
            finished = True
            nursery.cancel_scope.cancel(reason="the work is done")
    return finished


async def _cancel_on_signal(signals: EndingSignals, scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel(reason="interrupted")
