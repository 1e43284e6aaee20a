"""The terminal that one types in: an input line that stays, beneath a conversation that scrolls.

Owns the terminal while `open_prompt` is entered: its last rows, what is typed, the question before
many lines are pasted, and that it is as it was before on every way out and while we are stopped.
Knows nothing of chats.  Nothing wakes up while nothing happens.

It is prompt_toolkit's, on an asyncio loop on which trio is a guest: see `guest`.
"""

import asyncio
import contextvars
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import trio
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer
from prompt_toolkit.completion import Completion as Offer
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_completions, is_done, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.bindings.search import abort_search
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    Dimension,
    FormattedTextControl,
    HSplit,
    Layout,
    SearchBufferControl,
    VerticalAlign,
    Window,
)
from prompt_toolkit.layout.menus import CompletionsMenu
from prompt_toolkit.layout.processors import BeforeInput
from prompt_toolkit.output import ColorDepth

from multichat.framing import clean
from multichat.guest import TerminalModes
from multichat.look import DIM, Fragments
from multichat.recall import keeps
from multichat.screen import ScreenApplication

__all__ = ["Prompt", "Show", "open_prompt"]

# A line that is typed while so many wait to be sent is not taken: a paste of ten thousand lines is
# a file, and a server that has been away for so long is not coming back to read them.
MAX_WAITING_LINES = 10_000

# The last rows of a terminal of 15 are not all ours.
_MAX_INPUT_ROWS = 4
_MAX_PENDING_ROWS = 3
_MAX_MENU_ROWS = 5

# How long a terminal that hangs may hold up our end.
_CLOSE_SECONDS = 2.0

_YES = ("enter", "y", "Y")
_NO = ("escape", "n", "N", "c-g")

# prompt_toolkit would put an old line into the input, one Enter away from being sent.
_SCROLLING = [f"{held}{key}" for held in ("", "s-", "c-", "c-s-") for key in ("pageup", "pagedown")]


class Show(NamedTuple):
    """What the rows around the input line show, asked for whenever they are drawn."""

    status: Callable[[], Fragments]
    pending: Callable[[], Sequence[Fragments]]
    complete: Callable[[str], Iterable[tuple[str, int]]]


class Prompt:
    """What `open_prompt` yields; all of it is called from trio and nothing waits.

    *typed* gives the lines that are typed, clean and not empty, and ends with Ctrl+D or when the
    terminal goes away.  Ctrl+C is SIGINT.
    """

    def __init__(
        self,
        show: Show,
        history: Sequence[str],
        *,
        color: bool,
        wraps: bool,
        handles_signals: bool,
    ) -> None:
        self._handles_signals = handles_signals
        self._detached = ExitStack()  # of the terminal's input, while we are suspended
        self._typed_in, self.typed = trio.open_memory_channel[str](MAX_WAITING_LINES)
        self._show = show
        self._pasted: list[str] = []  # what the question is about
        self._modes = TerminalModes()
        self._buffer = Buffer(
            completer=_Completer(show.complete),
            history=InMemoryHistory(list(history)),
            enable_history_search=True,
            multiline=False,
        )
        self._app = ScreenApplication(
            wraps=wraps,
            layout=self._lay_out(),
            key_bindings=self._bind_keys(),
            include_default_pygments_style=False,
            input=create_input(sys.stdin),
            color_depth=ColorDepth.DEPTH_8_BIT if color else ColorDepth.DEPTH_1_BIT,
            erase_when_done=True,
            # Where the system tells of a new size, nobody has to ask twice a second.
            terminal_size_polling_interval=None if hasattr(signal, "SIGWINCH") else 1.0,
        )
        self._screen = self._app.screen
        self._app.after_render += self._after_render

    # --- What is seen -----------------------------------------------------------------------------

    def show(self, lines: Sequence[Fragments]) -> None:
        """Add *lines* to the conversation above the input line."""
        if lines:
            self._screen.show(lines)

    def refresh(self) -> None:
        """Have the status, what is pending and the input line drawn again."""
        self._app.invalidate()

    def clear(self) -> None:
        """Forget and erase what the screen shows."""
        self._screen.clear()

    def ring(self) -> None:
        """Ring the terminal's bell."""
        self._app.output.bell()
        self._app.output.flush()

    def _after_render(self, _: object) -> None:
        if self._app.render_counter == 1:
            self._modes.note()
        if self._screen.gone:
            self._typed_in.close()

    # --- The rows that are ours -------------------------------------------------------------------

    def _lay_out(self) -> Layout:
        asking = Condition(lambda: bool(self._pasted))
        has_pending = Condition(lambda: bool(self._show.pending()))
        self._asking = asking
        pending = Window(
            FormattedTextControl(self._pending),
            height=Dimension(max=_MAX_PENDING_ROWS),
            dont_extend_height=True,
        )
        search = SearchBufferControl(
            input_processors=[BeforeInput("search: ", style="bold")], ignore_case=True
        )
        typing = Window(
            BufferControl(self._buffer, search_buffer_control=search, preview_search=True),
            height=Dimension(min=1, max=_MAX_INPUT_ROWS),
            wrap_lines=True,
            dont_extend_height=True,
            get_line_prefix=lambda _, wrap: [(f"{DIM} bold", "> ")] if not wrap else "",
        )
        question = Window(
            FormattedTextControl(self._question, focusable=False, show_cursor=False),
            height=1,
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
        return Layout(HSplit(rows, align=VerticalAlign.TOP), focused_element=typing)

    def _status(self) -> StyleAndTextTuples:
        return list(self._show.status())

    def _pending(self) -> StyleAndTextTuples:
        lines = self._show.pending()
        shown = list(lines[-_MAX_PENDING_ROWS:])
        if len(lines) > len(shown):
            hidden = len(lines) - len(shown) + 1
            shown[0] = [(DIM, f"      … {hidden} more")]
        ends: StyleAndTextTuples = []
        for line in shown:
            ends += [*line, ("", "\n")]
        return ends[:-1]

    def _question(self) -> StyleAndTextTuples:
        return [("bold", f"send {len(self._pasted)} lines? "), ("", "y/n")]

    # --- Keys -------------------------------------------------------------------------------------

    def _bind_keys(self) -> KeyBindings:
        keys = KeyBindings()
        asking = self._asking
        typing = ~asking & ~is_searching

        @keys.add("enter", filter=typing)
        def _(_: KeyPressEvent) -> None:
            if self._take([self._buffer.text]):
                self._buffer.reset()

        @keys.add("tab", filter=typing & ~has_completions)
        def _(_: KeyPressEvent) -> None:
            self._begin_completion()

        @keys.add("c-d", filter=typing & Condition(lambda: not self._buffer.text))
        def _(_: KeyPressEvent) -> None:
            self._typed_in.close()

        @keys.add("c-c", eager=True)
        def _(_: KeyPressEvent) -> None:
            signal.raise_signal(signal.SIGINT)

        @keys.add("c-z", filter=Condition(lambda: hasattr(signal, "SIGTSTP")))
        def _(_: KeyPressEvent) -> None:
            # The whole job, as the system does where we don't read the key.
            self._stop(0) if self._handles_signals else os.kill(0, signal.SIGTSTP)

        @keys.add("c-l")
        def _(_: KeyPressEvent) -> None:
            self._screen.repaint()

        keys.add("escape", filter=is_searching, eager=True)(abort_search)

        for name in _SCROLLING:
            keys.add(name)(lambda _: None)

        @keys.add(Keys.BracketedPaste, filter=typing)
        def _(event: KeyPressEvent) -> None:
            self._paste(event.data)

        @keys.add(Keys.Any, filter=asking, eager=True)
        def _(_: KeyPressEvent) -> None:
            self.ring()

        for name in (*_YES, *_NO):
            keys.add(name, filter=asking, eager=True)(partial(self._answer, name in _YES))
        return keys

    def _answer(self, yes: bool, _: KeyPressEvent) -> None:
        pasted, self._pasted = self._pasted, []
        if yes and self._take(pasted):
            self._buffer.reset()

    def _begin_completion(self) -> None:
        """Complete as far as it is certain, in this very step: the next key may be Enter."""
        document = self._buffer.document
        offers = list(self._show.complete(document.text_before_cursor))
        if not offers:
            return
        length = offers[0][1]
        common = os.path.commonprefix([text for text, _ in offers])  # noqa: RUF071 - of words
        if len(offers) == 1 or len(common) > length:
            self._buffer.delete_before_cursor(length)
            self._buffer.insert_text(common)
        if len(offers) > 1:
            self._buffer.start_completion()

    def _paste(self, data: str) -> None:
        before, after = (
            self._buffer.document.text_before_cursor,
            (self._buffer.document.text_after_cursor),
        )
        text = data.replace("\r\n", "\n").replace("\r", "\n")
        if "\n" not in text.rstrip("\n"):
            self._buffer.insert_text(clean(text.rstrip("\n")))
            return
        # With what was typed around it, which stays where it is if nothing is to be sent.
        self._pasted = [line for line in f"{before}{text}{after}".split("\n") if line]
        self.refresh()

    def _take(self, lines: Sequence[str]) -> bool:
        """Pass on what was typed; return False if there is no room for it."""
        lines = [line for line in map(clean, lines) if line]
        waiting = self._typed_in.statistics().current_buffer_used
        if waiting + len(lines) > MAX_WAITING_LINES:
            self.ring()
            return False
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):  # we are leaving
            for line in lines:
                self._typed_in.send_nowait(line)
                if keeps(line):
                    self._buffer.history.append_string(line)
        return True

    # --- Being stopped and going on ---------------------------------------------------------------

    def _stop(self, process: int) -> None:
        """Stop, with the terminal as it was, until somebody has us go on."""
        if sys.platform == "win32":
            return
        self.suspend()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(process, signal.SIGTSTP)  # returns when we go on
        signal.signal(signal.SIGTSTP, handler)
        self.go_on()

    def suspend(self) -> None:
        """Leave the terminal to others, as it was, until `go_on`; nothing is read or drawn."""
        self._screen.suspend()
        self._detached.enter_context(self._app.input.detach())
        self._modes.restore()

    def go_on(self) -> None:
        """Take the terminal again."""
        self._detached.close()
        self._modes.take()
        self._screen.go_on()

    def resized(self) -> None:
        """Heed that the window has another size; for whoever handles the signals in our place."""
        self._screen.resized()

    def close(self) -> None:
        """End what is typed, as Ctrl+D does."""
        self._typed_in.close()

    async def _heed_stops(self) -> None:
        if sys.platform == "win32":
            return
        with trio.open_signal_receiver(signal.SIGTSTP, signal.SIGCONT) as signals:
            async for number in signals:
                if number == signal.SIGTSTP:
                    self._stop(os.getpid())
                else:  # after a stop that nobody can heed
                    self.go_on()

    # --- Its life ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Hold the terminal until cancelled; raises what goes wrong in drawing it."""
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
                with suppress(Exception):  # it was about to end by itself
                    self._app.exit()
                await finished.wait()
            running.cancel()
            self._modes.restore()
            self._typed_in.close()
        if failures:
            raise failures[0]
        with suppress(EOFError):  # the terminal is gone
            running.result()


class _Completer(Completer):
    def __init__(self, complete: Callable[[str], Iterable[tuple[str, int]]]) -> None:
        self._complete = complete

    def get_completions(self, document: Document, _: CompleteEvent) -> Iterator[Offer]:
        """Yield what the menu shows."""
        for text, length in self._complete(document.text_before_cursor):
            yield Offer(text, start_position=-length)


@asynccontextmanager
async def open_prompt(
    show: Show,
    *,
    history: Sequence[str] = (),
    color: bool = True,
    wraps: bool = True,
    handles_signals: bool = True,
) -> AsyncGenerator[Prompt]:
    """Take the terminal for as long as the block runs, and give it back as it was.

    Only inside of `guest.run_beside_prompt`, with standard input and output on a terminal.
    *history* is what was typed before, the oldest first.  Unless it *wraps* lines the terminal
    breaks them.  Unless it *handles_signals*, which only the main thread can, whoever does calls
    `Prompt.suspend`, `go_on` and `resized`.  Raises in the block's place what goes
    wrong in drawing the terminal, which is our own bug.
    """
    prompt = Prompt(show, history, color=color, wraps=wraps, handles_signals=handles_signals)
    async with trio.open_nursery() as nursery:
        if handles_signals:
            nursery.start_soon(prompt._heed_stops)  # noqa: SLF001 - its tasks are its own
        nursery.start_soon(prompt._run)  # noqa: SLF001
        yield prompt
        nursery.cancel_scope.cancel(reason="the prompt is closed")
