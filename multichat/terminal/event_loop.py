"""trio as a guest of the loop that a terminal's prompt needs, and the terminal's modes.

Both loops run in one thread, the main thread of a client or the console's thread of a server, so
that each can call functions of the other that do not wait.  Restores the terminal's modes at the
end.  Knows nothing of what is shown or typed.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import outcome
import trio

if sys.platform != "win32":
    import termios

__all__ = ["TerminalModes", "run_with_prompt"]

_T = TypeVar("_T")


def run_with_prompt(main: Callable[[], Awaitable[_T]]) -> _T:
    """Run *main* in trio, as `trio.run` does, where `prompt.open_prompt` can be entered.

    Raises what it raises.  The modes of the terminal are what they were before, whatever happened.
    """
    modes = TerminalModes()
    # Not `asyncio.run`, which answers Ctrl+C by leaving trio's run in the middle.
    loop = asyncio.new_event_loop()
    try:
        result = loop.run_until_complete(_run_guest(main))
    finally:
        modes.restore()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    return result.unwrap()


async def _run_guest(main: Callable[[], Awaitable[_T]]) -> outcome.Outcome[_T]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[outcome.Outcome[_T]] = loop.create_future()
    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        run_sync_soon_not_threadsafe=loop.call_soon,
        done_callback=done.set_result,
        host_uses_signal_set_wakeup_fd=True,  # asyncio does, to hear of the terminal's size
    )
    return await done


class TerminalModes:
    """The modes of standard input as they are now, and later those of the prompt.

    Does nothing on Windows, where prompt_toolkit alone looks after its console, nor where standard
    input is no terminal or none any more.
    """

    def __init__(self) -> None:
        self._before = _modes()
        self._ours: Any = None

    def note(self) -> None:
        """Remember how the prompt has them."""
        self._ours = _modes()

    def restore(self) -> None:
        """Make them what they were in the beginning."""
        _set_modes(self._before)

    def discard_input(self) -> None:
        """Forget what was typed and not read."""
        if sys.platform != "win32":
            with suppress(termios.error, ValueError, AttributeError):
                termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)

    def take(self) -> None:
        """Make them those of the prompt."""
        _set_modes(self._ours)


def _modes() -> Any:
    if sys.platform != "win32":
        with suppress(termios.error, ValueError, AttributeError):
            return termios.tcgetattr(sys.stdin.fileno())
    return None


def _set_modes(modes: Any) -> None:
    if sys.platform != "win32" and modes is not None:
        with suppress(termios.error, ValueError, AttributeError):
            # At once: waiting for what is still to be written would hang on a terminal that does.
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, modes)
