"""The server's input line, shown below its scrolling log when it runs in the foreground.

It uses the client's `prompt` in a thread of its own, because drawing blocks on a stalled terminal
and the server must not block.  The log's thread passes its lines to the prompt and waits until they
are shown, so the log's memory stays bounded.  prompt_toolkit is imported in that thread too, so
that it does not delay the start.

While the server is suspended or in the background, nothing is read or drawn, and log lines go
directly to the terminal.  The input line returns when the server is in the foreground again.
"""

import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from multichat.log import Log, LogWriter
from multichat.protocol.framing import Part
from multichat.protocol.typed_lines import masked
from multichat.terminal.admin_console import (
    AdminConsole,
    background_access_fails,
    console_fd,
)
from multichat.terminal.syntax import AdminSyntax

if TYPE_CHECKING:
    import asyncio

    from multichat.server.server import Server
    from multichat.terminal.prompt import Prompt

__all__ = ["run_prompted_console"]

_STATUS = "what you type is sent to everybody; /help lists the commands"

# The longest time that a stalled terminal may delay a suspend, and the server's shutdown.
_SUSPEND_SECONDS = 1.0
_CLOSE_SECONDS = 2.0


async def run_prompted_console(server: "Server", writer: LogWriter, *, color: bool = True) -> None:
    """Run operator commands for *server*, with an input line below *writer*'s log.

    Like `admin_console.run_console`, but continues when a background process returns to the
    foreground.
    """
    if console_fd() is None:
        await trio.lowlevel.checkpoint()
        return
    with background_access_fails():
        log = Log("server", hides_messages=server.config.hides_messages)
        async with _InputLine(writer, log, color=color).open() as lines:
            await AdminConsole(server, writer.show).run(lines)
    writer.show("The console has ended; the server keeps running")


class _InputLine:
    """The prompt's thread and the channels to it; created in a trio task and opened once."""

    def __init__(self, writer: LogWriter, log: Log, *, color: bool) -> None:
        self._writer, self._log, self._color = writer, log, color
        self._token = trio.lowlevel.current_trio_token()
        self._typed_in, self._typed = trio.open_memory_channel[str](1)
        self._line_done = trio.Event()  # belongs to the thread's own trio run
        self._thread = threading.Thread(target=self._work, name="multichat console", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prompt: Prompt | None = None
        self._suspended = self._closing = False

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterator[list[Part]]]:
        """Yield typed lines until Ctrl+D; the terminal's modes are restored on exit."""
        self._thread.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._handle_signals)
            try:
                yield self._receive()
            finally:
                nursery.cancel_scope.cancel(reason="the console has ended")
                await self._close()

    async def _receive(self) -> AsyncGenerator[list[Part]]:
        async for line in self._typed:
            yield [line]
            self._call(lambda _: self._line_done.set())

    async def _close(self) -> None:
        self._closing = True
        if self._suspended:  # another program has the terminal, and its modes are restored
            return
        self._call(self._close_prompt)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, _CLOSE_SECONDS)

    def _close_prompt(self, prompt: "Prompt") -> None:
        prompt.line.close()
        self._line_done.set()

    def _call(self, function: Callable[["Prompt"], object]) -> None:
        """Call *function* in the thread, if its loop is running."""
        if self._loop is not None and self._prompt is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, self._prompt)

    # --- In the thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        from multichat.terminal.event_loop import run_with_prompt

        try:
            run_with_prompt(self._read)
        except Exception as error:  # noqa: BLE001 - a bug of ours, which ends only the console
            self._log.crash("the console crashed", error)
        finally:
            self._writer.sink = None
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._typed_in.close)

    async def _read(self) -> None:
        import asyncio

        from multichat.terminal.prompt import open_prompt
        from multichat.terminal.render import DIM

        async with open_prompt(
            AdminSyntax(),
            status=lambda _: [(DIM, _STATUS)],
            pending=lambda: (),
            warn=self._warn,
            color=self._color,
            wraps=False,
            handles_signals=False,
        ) as self._prompt:
            self._loop = asyncio.get_running_loop()
            self._writer.sink = self._show
            # One line at a time: while the server is busy, further lines wait in the prompt, which
            # warns when there are too many.
            while not self._closing:
                typed = await anext(self._prompt.line.typed, None)
                if typed is None or self._closing:
                    return
                line = typed.text
                self._prompt.screen.show([[("", f"> {masked(line)}")]])  # as a terminal echoes it
                self._line_done = trio.Event()
                self._token.run_sync_soon(self._submit, line)
                await self._line_done.wait()

    def _warn(self, text: str) -> None:
        if self._prompt is not None:
            self._prompt.screen.show([[("", text)]])

    def _submit(self, line: str) -> None:
        with suppress(trio.BrokenResourceError):  # the server has shut down
            self._typed_in.send_nowait(line)

    # --- In the log's thread ----------------------------------------------------------------------

    def _show(self, data: bytes) -> bool:
        """Show complete lines above the input line; return False if it is not shown."""
        loop, prompt = self._loop, self._prompt
        if self._suspended or loop is None or prompt is None:
            return False
        lines = data.decode("utf-8", "replace").removesuffix("\n").split("\n")
        shown = threading.Event()

        def show() -> None:
            prompt.screen.show([[("", line)] for line in lines])
            shown.set()

        try:
            loop.call_soon_threadsafe(show)
        except RuntimeError:  # the loop has ended
            return False
        while not shown.wait(1):
            if loop.is_closed():
                return shown.is_set()
        return True

    # --- Signals, which only the main thread receives ---------------------------------------------

    async def _handle_signals(self) -> None:
        if sys.platform == "win32":
            return
        numbers = signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH
        with trio.open_signal_receiver(*numbers) as signals:
            async for number in signals:
                match number:
                    case signal.SIGTSTP:
                        await self._stop()
                    case signal.SIGCONT if console_fd() is not None:
                        self._suspended = False
                        self._call(lambda prompt: prompt.resume())
                    case signal.SIGWINCH:
                        self._call(lambda prompt: prompt.screen.resized())

    async def _stop(self) -> None:
        """Suspend the process, with the terminal's modes restored, until SIGCONT."""
        done = trio.Event()

        def suspend(prompt: "Prompt") -> None:
            prompt.suspend()
            self._token.run_sync_soon(done.set)

        if self._loop is not None and not self._suspended:
            self._suspended = True
            self._call(suspend)
            with trio.move_on_after(_SUSPEND_SECONDS):
                await done.wait()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # returns after SIGCONT, which is handled above
        signal.signal(signal.SIGTSTP, handler)
