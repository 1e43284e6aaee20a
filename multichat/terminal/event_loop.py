"""Runs trio as a guest of the asyncio loop that prompt_toolkit needs, and saves terminal modes.

Both loops run in one thread (a client's main thread, a server's console thread), so each can call
synchronous functions of the other.  The terminal's modes are restored at the end.  This module does
not know what is shown or typed.
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
    """Run *main* like `trio.run`, in a run in which `prompt.open_prompt` works.

    Raises what *main* raises.  The terminal's modes are always restored.
    """
    modes = TerminalModes()
    # Not `asyncio.run`: on Ctrl+C it would abandon the trio run halfway.
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
        host_uses_signal_set_wakeup_fd=True,  # asyncio does, for SIGWINCH
    )
    return await done


class TerminalModes:
    """Saves and restores the modes of standard input, and those that the prompt sets.

    Does nothing on Windows, where prompt_toolkit manages the console itself, and nothing if
    standard input is not, or is no longer, a terminal.
    """

    def __init__(self) -> None:
        self._before = _modes()
        self._ours: Any = None

    def note(self) -> None:
        """Save the current modes as the prompt's."""
        self._ours = _modes()

    def restore(self) -> None:
        """Restore the original modes."""
        _set_modes(self._before)

    def discard_input(self) -> None:
        """Discard input that was typed but not read."""
        if sys.platform != "win32":
            with suppress(termios.error, ValueError, AttributeError):
                termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)

    def take(self) -> None:
        """Set the prompt's modes again."""
        _set_modes(self._ours)


def _modes() -> Any:
    if sys.platform != "win32":
        with suppress(termios.error, ValueError, AttributeError):
            return termios.tcgetattr(sys.stdin.fileno())
    return None


def _set_modes(modes: Any) -> None:
    if sys.platform != "win32" and modes is not None:
        with suppress(termios.error, ValueError, AttributeError):
            # TCSANOW: waiting for pending output would hang on a stalled terminal.
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, modes)
