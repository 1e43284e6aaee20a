"""The interactive terminal: a fixed input line below a scrolling conversation.

Owns the terminal while `open_prompt` is entered: it draws the last rows, and restores the
terminal's modes on every exit path and while the process is suspended.  `input_line` owns the typed
text.  This module knows nothing about chats.  It does not wake up while nothing happens.

It is built on prompt_toolkit, which runs on an asyncio loop with trio as its guest; see
`event_loop`.
"""

import asyncio
import contextvars
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import trio
from prompt_toolkit.filters import Condition, is_done, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    Dimension,
    FormattedTextControl,
    Layout,
    SearchBufferControl,
    VerticalAlign,
    Window,
)
from prompt_toolkit.layout.menus import CompletionsMenu
from prompt_toolkit.layout.processors import BeforeInput
from prompt_toolkit.output import ColorDepth

from multichat.terminal.cells import DrawnMarks, Rows, limit_marks
from multichat.terminal.event_loop import TerminalModes
from multichat.terminal.input_line import InputLine
from multichat.terminal.render import DIM, Fragments
from multichat.terminal.screen import ScreenApplication
from multichat.terminal.syntax import Syntax
from multichat.terminal.wrap import wrap

__all__ = ["Prompt", "open_prompt"]

# Small enough to leave room for the conversation on a terminal of 15 rows.
_MAX_INPUT_ROWS = 4
_MAX_PENDING_ROWS = 3
_MAX_QUESTION_ROWS = 3
_MAX_MENU_ROWS = 5

# The longest time that a stalled terminal may delay closing.
_CLOSE_SECONDS = 2.0

# By default these keys put an old line into the input, one Enter away from being sent.
_SCROLLING = [f"{held}{key}" for held in ("", "s-", "c-", "c-s-") for key in ("pageup", "pagedown")]


class Prompt:
    """The prompt that `open_prompt` yields; its methods are called from trio and never wait.

    Entered lines come from *line*, which also closes when the terminal is closed; the conversation
    above it is on *screen*.  Ctrl+C raises SIGINT.
    """

    def __init__(
        self,
        syntax: Syntax,
        history: Sequence[str],
        *,
        status: Callable[[int], Fragments],
        pending: Callable[[], Sequence[Fragments]],
        warn: Callable[[str], None],
        switch: Callable[[int], None],
        color: bool,
        wraps: bool,
        handles_signals: bool,
    ) -> None:
        self._handles_signals = handles_signals
        self._detached = ExitStack()  # detaches the terminal's input while suspended
        self._show_status, self._show_pending, self._show_warning = status, pending, warn
        self._switch = switch
        self._modes = TerminalModes()
        self.line = InputLine(syntax, self._warn, history)
        self._app = ScreenApplication(
            wraps=wraps,
            layout=self._lay_out(),
            key_bindings=self._bind_keys(),
            include_default_pygments_style=False,
            input=create_input(sys.stdin),
            color_depth=ColorDepth.DEPTH_8_BIT if color else ColorDepth.DEPTH_1_BIT,
            erase_when_done=True,
            # With SIGWINCH there is no need to poll the size.
            terminal_size_polling_interval=None if hasattr(signal, "SIGWINCH") else 1.0,
        )
        self.screen = self._app.screen
        self._app.after_render += self._after_render

    # --- Display ----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Redraw the status, the pending lines and the input line."""
        self._app.invalidate()

    def ring(self) -> None:
        """Ring the terminal's bell."""
        self._app.output.bell()
        self._app.output.flush()

    def _warn(self, text: str) -> None:
        self.ring()
        if text:
            self._show_warning(text)

    def discard_input(self) -> None:
        """Discard unread terminal input, so that the shell does not read it."""
        self._modes.discard_input()

    @property
    def is_gone(self) -> bool:
        """Whether the terminal was closed."""
        return self.screen.closed or not sys.stdout.isatty()

    def _after_render(self, _: object) -> None:
        if self._app.render_counter == 1:
            self._modes.note()
        if self.screen.closed:
            self.line.close()

    # --- Layout -----------------------------------------------------------------------------------

    def _lay_out(self) -> Layout:
        asking = self.line.is_asking
        has_pending = Condition(lambda: bool(self._show_pending()))
        pending = Window(
            FormattedTextControl(self._pending),
            height=Dimension(max=_MAX_PENDING_ROWS),
            dont_extend_height=True,
        )
        search = SearchBufferControl(
            self.line.search_buffer,
            input_processors=[DrawnMarks(), BeforeInput("search: ", style="bold")],
            ignore_case=True,
        )
        typing = Window(
            BufferControl(
                self.line.buffer,
                input_processors=[DrawnMarks()],
                search_buffer_control=search,
                preview_search=True,
            ),
            height=Dimension(min=1, max=_MAX_INPUT_ROWS),
            wrap_lines=True,
            dont_extend_height=True,
            get_line_prefix=lambda _, wrap: [(f"{DIM} bold", "> ")] if not wrap else "",
        )
        question = Window(
            FormattedTextControl(self._question, focusable=False, show_cursor=False),
            height=Dimension(min=1, max=_MAX_QUESTION_ROWS),
            dont_extend_height=True,
        )
        rows = [
            ConditionalContainer(pending, has_pending & ~is_done),
            typing,
            ConditionalContainer(question, asking & ~is_done),
            ConditionalContainer(Window(search, height=1), is_searching & ~is_done),
            CompletionsMenu(max_height=_MAX_MENU_ROWS, scroll_offset=1),
            Window(FormattedTextControl(self._status), height=1, dont_extend_height=True),
        ]
        return Layout(Rows(rows, align=VerticalAlign.TOP), focused_element=typing)

    def _status(self) -> StyleAndTextTuples:
        return list(self._show_status(self._app.output.get_size().columns))

    def _pending(self) -> StyleAndTextTuples:
        lines = self._show_pending()
        shown = list(lines[-_MAX_PENDING_ROWS:])
        if len(lines) > len(shown):
            hidden = len(lines) - len(shown) + 1
            shown[0] = [(DIM, f"      … {hidden} more")]
        return _joined(shown)

    def _question(self) -> StyleAndTextTuples:
        return _joined(wrap(self.line.question, self._app.output.get_size().columns, indent=0))

    # --- Keys -------------------------------------------------------------------------------------

    def _bind_keys(self) -> KeyBindings:
        keys = KeyBindings()
        self.line.bind(keys)

        for digit in range(1, 10):

            @keys.add("escape", str(digit))
            def _(event: KeyPressEvent) -> None:
                self._switch(int(event.data))

        @keys.add("c-c", eager=True)
        def _(_: KeyPressEvent) -> None:
            signal.raise_signal(signal.SIGINT)

        @keys.add("c-z", filter=Condition(lambda: hasattr(signal, "SIGTSTP")))
        def _(_: KeyPressEvent) -> None:
            # Suspend the whole process group, as the terminal does in cooked mode.
            self._stop(0) if self._handles_signals else os.kill(0, signal.SIGTSTP)

        @keys.add("c-l")
        def _(_: KeyPressEvent) -> None:
            self.screen.repaint()

        for name in _SCROLLING:
            keys.add(name)(lambda _: None)

        return keys

    # --- Suspending and resuming ------------------------------------------------------------------

    def _stop(self, process: int) -> None:
        """Suspend the process, with the terminal's modes restored, until SIGCONT."""
        if sys.platform == "win32":
            return
        self.suspend()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(process, signal.SIGTSTP)  # returns after SIGCONT
        signal.signal(signal.SIGTSTP, handler)
        self.resume()

    def suspend(self) -> None:
        """Restore the terminal's modes, and read and draw nothing until `resume`."""
        self.screen.suspend()
        self._detached.enter_context(self._app.input.detach())
        self._modes.restore()

    def resume(self) -> None:
        """Take the terminal back after `suspend`."""
        self._detached.close()
        self._modes.take()
        self.screen.resume()

    async def _handle_stops(self) -> None:
        if sys.platform == "win32":
            return
        with trio.open_signal_receiver(signal.SIGTSTP, signal.SIGCONT) as signals:
            async for number in signals:
                if number == signal.SIGTSTP:
                    self._stop(os.getpid())
                else:  # SIGCONT after SIGSTOP, which cannot be handled
                    self.resume()

    # --- Running ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Run prompt_toolkit's application until cancelled; raises the errors of drawing."""
        loop = asyncio.get_running_loop()
        ended = trio.Event()
        failures: list[BaseException] = []

        def fail(_: object, context: dict[str, Any]) -> None:
            error = context.get("exception")
            failures.append(error if error is not None else RuntimeError(context["message"]))
            ended.set()

        loop.set_exception_handler(fail)
        running = contextvars.Context().run(
            loop.create_task,
            self._app.run_async(handle_sigint=False, set_exception_handler=False),
        )
        running.add_done_callback(lambda _: ended.set())
        try:
            await ended.wait()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + _CLOSE_SECONDS, shield=True):
                finished = trio.Event()
                running.add_done_callback(lambda _: finished.set())
                with suppress(Exception):  # it may be ending by itself
                    self._app.exit()
                await finished.wait()
            running.cancel()
            self._modes.restore()
            self.line.close()
        if failures:
            raise failures[0]
        with suppress(EOFError):  # the terminal was closed
            running.result()


def _joined(rows: Iterable[Fragments]) -> StyleAndTextTuples:
    text: StyleAndTextTuples = []
    for row in rows:
        text += [*((style, limit_marks(part)) for style, part in row), ("", "\n")]
    return text[:-1]


@asynccontextmanager
async def open_prompt(
    syntax: Syntax,
    *,
    status: Callable[[int], Fragments],
    pending: Callable[[], Sequence[Fragments]],
    warn: Callable[[str], None],
    switch: Callable[[int], None] = lambda _: None,
    history: Sequence[str] = (),
    color: bool = True,
    wraps: bool = True,
    handles_signals: bool = True,
) -> AsyncGenerator[Prompt]:
    """Take over the terminal while the block runs, and restore it afterwards.

    Requires `event_loop.run_with_prompt`, and a terminal as standard input and output.  *syntax* is
    that of the receiver of the lines.  *status*, which is called with the width, and *pending*
    return the rows below and above the input line whenever they are drawn; *warn* shows one line in
    the conversation; *switch* is called with the digit that is typed together with Alt.  *history*
    holds earlier lines, the oldest first.  Without *wraps*, the terminal breaks long lines.
    *handles_signals* requires the main thread; without it, the handler of the signals calls
    `Prompt.suspend`, `Prompt.resume` and `Screen.resized`.  Errors of drawing, which are bugs of
    ours, cancel the block and are raised from it.
    """
    prompt = Prompt(
        syntax,
        history,
        status=status,
        pending=pending,
        warn=warn,
        switch=switch,
        color=color,
        wraps=wraps,
        handles_signals=handles_signals,
    )
    async with trio.open_nursery() as nursery:
        if handles_signals:
            nursery.start_soon(prompt._handle_stops)  # noqa: SLF001 - its own tasks
        nursery.start_soon(prompt._run)  # noqa: SLF001
        yield prompt
        nursery.cancel_scope.cancel(reason="the prompt is closed")
