"""The line that one types: its keys, what is pasted into it, and how it is passed on.

Owns the text until it is passed on, and what the row beneath asks about it.  Draws nothing.

Invariants:

1. Nothing typed or pasted disappears without a word.  It is in the line, in the input history, in
   what Ctrl+Y or Ctrl+_ bring back, passed on, or a warning says what became of it.
2. A question takes no key of ordinary text, and neither does a paste: letters go into the line, and
   only `_SAY_KEY` says to everybody what looks like a command or was pasted.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import trio
from prompt_toolkit.application.current import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer
from prompt_toolkit.completion import Completion as SendResult
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.bindings.search import abort_search
from prompt_toolkit.keys import Keys
from prompt_toolkit.selection import SelectionType

from multichat.protocol.framing import clean
from multichat.terminal.input_history import keeps

__all__ = ["InputLine", "Syntax"]

# A line that is typed while so many wait to be sent is not taken: a paste of ten thousand lines is
# a file, and a server that has been away for so long is not coming back to read them.
MAX_WAITING_LINES = 10_000

_SAY_KEY, _SAY_KEY_NAME = "c-s", "Ctrl+S"

# Default keys that take what is typed next for something else, or send more than the line: numeric
# arguments, keyboard macros, a search for a character, "comment out and accept".
_DISABLED = [
    ("c-x", "("),
    ("c-x", ")"),
    ("c-x", "e"),
    ("c-]",),
    ("escape", "c-]"),
    ("escape", "#"),
    ("escape", "-"),
    ("escape", "*"),
]


class Syntax(NamedTuple):
    """What commands look like to whoever receives the lines.

    *disguised* returns the command that a line looks like without being one, or None; *looks_like*
    the name of the command that a line is or looks like, or None; *literally* the line that says a
    text, whatever that begins with.  *audience* names who receives messages.  *expand* returns a
    line with its abbreviations written out, as soon as they are typed: what they stand for may
    change later.
    """

    disguised: Callable[[str], str | None]
    looks_like: Callable[[str], str | None]
    literally: Callable[[str], str]
    audience: Callable[[], str]
    expand: Callable[[str], str] = str


class _Paste(NamedTuple):
    """Lines that were pasted into the line, which was *around* them; *joined* are both together.

    *command* is the name of the first command among them, or what looks like one.
    """

    lines: list[str]
    joined: list[str]
    around: str
    command: str | None


class InputLine:
    """The line of a prompt; all of it is called from trio or from its keys, and nothing waits.

    *typed* gives the lines that were passed on, clean and not empty; it ends when the line is
    closed.  *complete* gives what the text before the cursor may become.  *warn* rings, and
    tells something in one line unless that is empty.  *history* is what was typed before, the
    oldest first.
    """

    def __init__(
        self,
        complete: Callable[[str], Iterable[tuple[str, int]]],
        syntax: Syntax,
        warn: Callable[[str], None],
        history: Sequence[str] = (),
        *,
        max_waiting_lines: int = MAX_WAITING_LINES,
    ) -> None:
        self._complete, self._syntax, self._warn = complete, syntax, warn
        self._max_waiting_lines = max_waiting_lines
        self._typed_in, self.typed = trio.open_memory_channel[str](max_waiting_lines)
        self._passed_on: deque[str] = deque()  # the last of them
        self._asked_about = ""  # the line that looked like a command when it was entered
        self._paste: _Paste | None = None  # which waits for a key
        self._is_last = False
        self.is_asking = Condition(lambda: self._asks_about_line or self._paste is not None)
        self.buffer = _Buffer(
            completer=_Completer(complete),
            history=_History(list(history)),
            enable_history_search=True,
            multiline=False,
            # Of whatever key accepts a line: without it some would throw the text away.
            accept_handler=self._accept,
        )
        self.search_buffer = _Buffer(multiline=False)

    @property
    def question(self) -> list[tuple[str, str]]:
        """What is asked, as styled text."""
        audience = self._syntax.audience()
        if self._asks_about_line:
            name = self._syntax.looks_like(self.buffer.text)
            keys = f"Enter again runs it, {_SAY_KEY_NAME} says it to {audience}, or edit it"
            return [("bold", f"looks like {name}: "), ("", keys)]
        if self._paste is None:
            return []
        text = f"{len(self._pasted_lines())} pasted lines"
        if self._paste.command:
            text += f", with {self._paste.command}"
        keys = f"{_SAY_KEY_NAME} says them to {audience}, Esc discards them (Ctrl+Y: back again)"
        return [("bold", f"{text}: "), ("", keys)]

    @property
    def _asks_about_line(self) -> bool:
        return bool(self._asked_about) and self.buffer.text == self._asked_about

    def _pasted_lines(self) -> list[str]:
        """Return the lines of the paste, with what was typed around it if that still stands."""
        if self._paste is None:
            return []
        return self._paste.joined if self._is_around_paste() else self._paste.lines

    def _is_around_paste(self) -> bool:
        return self._paste is not None and self.buffer.text == self._paste.around

    @property
    def is_begun(self) -> bool:
        """Whether something stands in the line that was not passed on."""
        return bool(self.buffer.text or self._paste)

    @property
    def waiting(self) -> list[str]:
        """The lines that were passed on and not received yet."""
        count = self._typed_in.statistics().current_buffer_used
        while len(self._passed_on) > count:
            self._passed_on.popleft()
        return list(self._passed_on)

    def close(self) -> None:
        """Pass on no more lines."""
        self._typed_in.close()

    def close_after_next(self) -> None:
        """Close with the next line that is entered, which may be empty."""
        self._is_last = True

    def take_unsent(self) -> list[str]:
        """Return, and forget, the lines that nobody received and what stands in the line."""
        lines: list[str] = []
        with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                lines.append(self.typed.receive_nowait())
        lines += map(self._syntax.literally, self._pasted_lines())
        if self.buffer.text and not self._is_around_paste():
            lines.append(self.buffer.text)
        self._paste = None
        self._begin_next_line("")
        if self.buffer.text:
            lines.append(self.buffer.text)
        self.buffer.reset()
        return [line for line in map(clean, lines) if line]

    # --- Passing on -------------------------------------------------------------------------------

    def _accept(self, _: Buffer) -> bool:
        """Pass on the line, or ask about it; return that prompt_toolkit has nothing left to do."""
        line = self._syntax.expand(clean(self.buffer.text))
        command = self._syntax.disguised(line)
        if self._is_last:
            command = None
        elif command is not None and not self._asks_about_line:
            self._asked_about = self.buffer.text
            return True
        elif self._is_around_paste() and command is None:
            self._warn("")  # it goes with the paste
            return True
        if self._take([line if command is None else self._syntax.expand(command)]):
            self._begin_next_line(line)
        if self._is_last:
            self.close()
        return True

    def _take(self, lines: Sequence[str]) -> bool:
        """Pass on *lines*; return False, having said so, if there is no room for them."""
        lines = [line for line in lines if line]
        waiting = self._typed_in.statistics().current_buffer_used
        if waiting + len(lines) > self._max_waiting_lines:
            self._warn(
                f"not sent: {waiting} lines wait already, and at most {self._max_waiting_lines} may"
            )
            return False
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):  # we are leaving
            for line in lines:
                self._typed_in.send_nowait(line)
                self._passed_on.append(line)
                self.buffer.history.append_string(line)
            return True
        return False

    def _begin_next_line(self, sent: str) -> None:
        """Empty the line, but for what was begun before an old line was brought up to be *sent*.

        What an old line was found by, because it begins with that, was not a line of its own.
        """
        self._asked_about = ""
        buffer = self.buffer
        index = buffer.working_index
        buffer.history_search_text = ""  # any line
        buffer.history_forward(count=len(buffer.history.get_strings()) + 1)
        begun = buffer.text if buffer.working_index != index else ""
        buffer.reset(Document("" if sent.startswith(begun) else begun))

    def _say(self) -> None:
        """Say to everybody what is asked about."""
        if self._asks_about_line:
            line = self._syntax.literally(clean(self.buffer.text))
            if self._take([line]):
                self._begin_next_line(line)
            return
        lines = list(map(self._syntax.literally, self._pasted_lines()))
        if self._take(lines):
            if self._is_around_paste():
                self._begin_next_line(lines[0])
            self._paste = None

    # --- Keys -------------------------------------------------------------------------------------

    def bind(self, keys: KeyBindings) -> None:
        """Add the keys of the line to *keys*."""
        typing = ~is_searching
        asking = self.is_asking & typing

        @keys.add("tab", filter=typing & ~has_completions)
        def _(_: KeyPressEvent) -> None:
            self._begin_completion()

        @keys.add(" ", filter=typing)
        def _(event: KeyPressEvent) -> None:
            self._insert(event.data)

        @keys.add("c-d", filter=typing & Condition(lambda: not self.buffer.text))
        def _(_: KeyPressEvent) -> None:
            self.close()

        @keys.add("c-o", filter=typing)
        def _(_: KeyPressEvent) -> None:
            self.buffer.validate_and_handle()

        keys.add("escape", filter=is_searching, eager=True)(abort_search)

        @keys.add(Keys.BracketedPaste, filter=typing, eager=True)  # also after Ctrl+Q
        def _(event: KeyPressEvent) -> None:
            event.app.quoted_insert = False
            self._insert_pasted(event.data)

        @keys.add("c-y", filter=typing & Condition(self._is_clipboard_of_lines))
        def _(event: KeyPressEvent) -> None:
            self._insert_pasted(event.app.clipboard.get_data().text)

        for undo in (("c-_",), ("c-x", "c-u")):

            @keys.add(*undo, save_before=lambda _: False)
            def _(event: KeyPressEvent) -> None:
                # There is no key to redo: what is undone can be yanked.
                if not event.is_repeat:
                    event.app.clipboard.set_text(event.current_buffer.text)
                event.current_buffer.undo()

        for sequence in _DISABLED:
            keys.add(*sequence, eager=len(sequence) == 1)(lambda _: None)
        for digit in "0123456789":

            @keys.add("escape", digit, filter=typing)
            def _(event: KeyPressEvent) -> None:
                self.buffer.insert_text(event.data)

        @keys.add(_SAY_KEY, filter=asking, eager=True)
        def _(_: KeyPressEvent) -> None:
            self._say()

        for key in ("escape", "c-g"):

            @keys.add(key, filter=asking, eager=True)
            def _(event: KeyPressEvent) -> None:
                if not self._asks_about_line and self._paste is not None:
                    event.app.clipboard.set_text("\n".join(self._paste.lines))
                    self._paste = None
                self._asked_about = ""

    @staticmethod
    def _is_clipboard_of_lines() -> bool:
        return "\n" in get_app().clipboard.get_data().text

    def _insert(self, text: str) -> None:
        self.buffer.insert_text(text)
        before = self.buffer.document.text_before_cursor
        expanded = self._syntax.expand(before)
        if expanded != before:
            self.buffer.delete_before_cursor(len(before))
            self.buffer.insert_text(expanded)

    def _begin_completion(self) -> None:
        """Complete as far as it is certain, in this very step: the next key may be Enter."""
        document = self.buffer.document
        offers = list(self._complete(document.text_before_cursor))
        if not offers:
            return
        length = offers[0][1]
        common = os.path.commonprefix([text for text, _ in offers])  # noqa: RUF071 - of words
        if len(offers) == 1 or len(common) > length:
            self.buffer.delete_before_cursor(length)
            self.buffer.insert_text(common)
        if len(offers) > 1:
            self.buffer.start_completion()

    def _insert_pasted(self, data: str) -> None:
        """Insert one line, or what belongs to a command; have other lines wait for a key."""
        before = self.buffer.document.text_before_cursor
        after = self.buffer.document.text_after_cursor
        text = data.replace("\r\n", "\n").replace("\r", "\n")
        is_command = before.startswith("/") and not before.startswith("//")
        # What is pasted behind a command belongs to it: its other lines are not for everybody.
        if "\n" not in text.rstrip("\n") or is_command or self._syntax.disguised(clean(before)):
            self._insert(clean(text.rstrip("\n")))
            return
        if self._paste is not None:
            self._warn(f"not pasted: {_SAY_KEY_NAME} or Esc first, for the lines pasted before")
            return
        lines, joined = (
            [line for line in map(clean, pasted.split("\n")) if line]
            for pasted in (text, f"{before}{text}{after}")
        )
        if len(joined) > self._max_waiting_lines:
            self._warn(
                f"not pasted: {len(joined)} lines, and at most {self._max_waiting_lines} may wait; "
                "multichat send HOST PORT - <FILE sends a file"
            )
            return
        command = next(filter(None, map(self._syntax.looks_like, joined)), None)
        self._asked_about = ""
        self._paste = _Paste(lines, joined, before + after, command)


class _Buffer(Buffer):
    """A buffer without selections.

    While something is selected prompt_toolkit neither inserts what is typed nor accepts the line.
    Ctrl+Space does nothing here, and the arrow keys do with Shift what they do without it.
    """

    def start_selection(self, selection_type: SelectionType = SelectionType.CHARACTERS) -> None:
        """Select nothing."""


class _History(InMemoryHistory):
    """The input history, to which prompt_toolkit adds lines, too."""

    def append_string(self, string: str) -> None:
        """Add a line, unless it is one that is not kept."""
        if keeps(string):
            super().append_string(string)


class _Completer(Completer):
    def __init__(self, complete: Callable[[str], Iterable[tuple[str, int]]]) -> None:
        self._complete = complete

    def get_completions(self, document: Document, _: CompleteEvent) -> Iterator[SendResult]:
        """Yield what the menu shows."""
        for text, length in self._complete(document.text_before_cursor):
            yield SendResult(text, start_position=-length)
