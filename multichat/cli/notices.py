"""One-line notices of the commands, on standard error.

Writing a notice never fails and never waits for long: the notice is lost if standard error is
closed, full or not read.
"""

import os
import select
import sys

from multichat.protocol.framing import clean

__all__ = ["notify", "tell", "warn", "write_notice"]

# How long a notice waits until standard error can be written to.
_WAIT_SECONDS = 1.0

# A pipe that is ready for writing accepts this many bytes at once.
_PIECE_BYTES = 4096 if sys.platform == "win32" else select.PIPE_BUF


def tell(text: str) -> None:
    """Write one line to standard error; *text* is filtered, as parts may come from a peer."""
    write_notice(f"multichat: {clean(text)}\n")


def warn(text: str) -> None:
    """Write a warning of one line to standard error."""
    tell(f"warning: {text}")


async def notify(text: str) -> None:
    """Do the same as `tell` without blocking the event loop."""
    import trio  # not needed by commands that only print

    await trio.to_thread.run_sync(tell, text, abandon_on_cancel=True)


def write_notice(text: str) -> None:
    """Write *text*, lines that are clean, to standard error."""
    if sys.stderr is None:  # closed at the start; another file may have the descriptor now
        return
    try:
        fd = sys.stderr.fileno()
        rest = text.encode("utf-8", "backslashreplace")
        while rest and _is_ready(fd):
            rest = rest[os.write(fd, rest[:_PIECE_BYTES]) :]
    except OSError:  # nowhere to report it
        pass


def _is_ready(fd: int) -> bool:
    # Windows can only wait for sockets.
    return sys.platform == "win32" or bool(select.select([], [fd], [], _WAIT_SECONDS)[1])
