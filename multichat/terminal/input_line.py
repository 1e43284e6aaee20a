"""The input line: its keys, pasted text, and how entered lines are submitted.

Owns the text until it is submitted, and the question in the row below.  Draws nothing.

Invariants:

1. Typed or pasted text never disappears silently.  It is in the line, in the input history, in
   what Ctrl+Y or Ctrl+_ restores, submitted, or reported in a warning.
2. While a question is shown, or a paste waits, ordinary keys still edit the line.  Only `_SAY_KEY`
   sends pasted lines, or a line that looks like a command, as messages.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import trio
from prompt_toolkit.application.current import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer
from prompt_toolkit.completion import Completion as MenuEntry
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.bindings.search import abort_search
from prompt_toolkit.keys import Keys
from prompt_toolkit.selection import SelectionType

from multichat.protocol.counts import counted
from multichat.protocol.framing import clean
from multichat.terminal.graphemes import end_of_cluster, start_of_cluster
from multichat.terminal.input_history import belongs_in_history
from multichat.terminal.syntax import Syntax, TypedLine

__all__ = ["InputLine"]

# Further lines are rejected: a paste of ten thousand lines should be sent as a file, and a server
# that has been down while so many lines were typed will not return soon.
MAX_WAITING_LINES = 10_000

_SAY_KEY, _SAY_KEY_NAME = "c-s", "Ctrl+S"

# Default key bindings that reinterpret the next key, or send more than the line: numeric arguments,
# keyboard macros, character search, "comment out and accept".
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


class _Paste(NamedTuple):
    """Lines pasted into a line of text: *around* is that text, *joined* the lines including it.

    *command* is the name of the first command among them, or of the first that looks like one.
    """

    lines: list[str]
    joined: list[str]
    around: str
    command: str | None


class InputLine:
    """A prompt's input line; its methods are called from trio or from key bindings and never wait.

    `typed` yields submitted lines, clean and not empty, until the line is closed.  *syntax* is that
    of the program that receives them.  *warn* rings the bell and shows its argument unless that is
    empty.  *history* holds earlier lines, the oldest first.
    """

    def __init__(
        self,
        syntax: Syntax,
        warn: Callable[[str], None],
        history: Sequence[str] = (),
        *,
        max_waiting_lines: int = MAX_WAITING_LINES,
    ) -> None:
        self._syntax, self._warn = syntax, warn
        self._max_waiting_lines = max_waiting_lines
        self._typed_in, self.typed = trio.open_memory_channel[TypedLine](max_waiting_lines)
        self._submitted: deque[TypedLine] = deque()  # the newest ones
        self._asked_about = ""  # the line that looked like a command when it was entered
        self._paste: _Paste | None = None  # waits for a key
        self._is_last = False
        self.is_asking = Condition(lambda: self._asks_about_line or self._paste is not None)
        self.buffer = _Buffer(
            completer=_Completer(syntax),
            history=_History(list(history)),
            enable_history_search=True,
            multiline=False,
            # For all keys that accept a line: without a handler, some of them discard the text.
            accept_handler=self._accept,
        )
        self.search_buffer = _Buffer(multiline=False)

    @property
    def question(self) -> list[tuple[str, str]]:
        """The question, as styled text."""
        audience = self._syntax.audience()
        if self._asks_about_line:
            name = self._syntax.looks_like(self.buffer.text)
            keys = f"Enter again runs it, {_SAY_KEY_NAME} sends it to {audience}, or edit it"
            return [("bold", f"looks like {name}: "), ("", keys)]
        if self._paste is None:
            return []
        text = counted(len(self._pasted_lines()), "pasted line")
        if self._paste.command:
            text += f", with {self._paste.command}"
        keys = (
            f"{_SAY_KEY_NAME} sends them to {audience}, Esc discards them (Ctrl+Y brings them back)"
        )
        return [("bold", f"{text}: "), ("", keys)]

    @property
    def _asks_about_line(self) -> bool:
        return bool(self._asked_about) and self.buffer.text == self._asked_about

    def _pasted_lines(self) -> list[str]:
        """Return the pasted lines, with the text around them if that has not changed."""
        if self._paste is None:
            return []
        return self._paste.joined if self._is_around_paste() else self._paste.lines

    def _is_around_paste(self) -> bool:
        return self._paste is not None and self.buffer.text == self._paste.around

    @property
    def is_begun(self) -> bool:
        """Whether the line contains text."""
        return bool(self.buffer.text or self._paste)

    @property
    def waiting(self) -> list[TypedLine]:
        """The lines that were submitted and not received yet."""
        count = self._typed_in.statistics().current_buffer_used
        while len(self._submitted) > count:
            self._submitted.popleft()
        return list(self._submitted)

    def close(self) -> None:
        """Stop submitting lines."""
        self._typed_in.close()

    def close_after_next(self) -> None:
        """Close after the next line that is entered, which may be empty."""
        self._is_last = True

    def take_unsent(self) -> list[str]:
        """Return and clear the lines that were not received, and the text in the line."""
        lines: list[str] = []
        with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                lines.append(self.typed.receive_nowait().text)
        lines += map(self._syntax.literally, self._pasted_lines())
        if self.buffer.text and not self._is_around_paste():
            lines.append(self.buffer.text)
        self._paste = None
        self._begin_next_line("")
        if self.buffer.text:
            lines.append(self.buffer.text)
        self.buffer.reset()
        return [line for line in map(clean, lines) if line]

    # --- Submitting -------------------------------------------------------------------------------

    def _accept(self, _: Buffer) -> bool:
        """Submit the line, or ask about it; return True to keep prompt_toolkit from clearing it."""
        line = self._syntax.expand(clean(self.buffer.text))
        command = self._syntax.disguised(line)
        if self._is_last:
            command = None
        elif command is not None and not self._asks_about_line:
            self._asked_about = self.buffer.text
            return True
        elif self._is_around_paste() and command is None:
            self._warn("")  # the line is sent with the paste
            return True
        if self._take([line if command is None else self._syntax.expand(command)]):
            self._begin_next_line(line)
        if self._is_last:
            self.close()
        return True

    def _take(self, lines: Sequence[str]) -> bool:
        """Submit *lines*; return False, after a warning, if there is no room for them."""
        lines = [line for line in lines if line]
        waiting = self._typed_in.statistics().current_buffer_used
        if waiting + len(lines) > self._max_waiting_lines:
            are = "1 line is" if waiting == 1 else f"{waiting} lines are"
            self._warn(f"not sent: {are} waiting, and the limit is {self._max_waiting_lines}")
            return False
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):  # we are leaving
            for line in lines:
                typed = TypedLine(line, self._syntax.address(line))
                self._typed_in.send_nowait(typed)
                self._submitted.append(typed)
                self.buffer.history.append_string(line)
            return True
        return False

    def _begin_next_line(self, sent: str) -> None:
        """Clear the line, but restore the draft that was there before *sent* was recalled.

        Text that was only the prefix to search the history for *sent* is not a draft.
        """
        self._asked_about = ""
        buffer = self.buffer
        index = buffer.working_index
        buffer.history_search_text = ""  # any line
        buffer.history_forward(count=len(buffer.history.get_strings()) + 1)
        begun = buffer.text if buffer.working_index != index else ""
        buffer.reset(Document("" if sent.startswith(begun) else begun))

    def _say(self) -> None:
        """Send the text in question as messages."""
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
                # There is no redo key; undone text can be yanked instead.
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
        """Insert the common prefix of the completions now, because the next key may be Enter."""
        document = self.buffer.document
        offers = list(self._syntax.complete(document.text_before_cursor))
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
        """Insert a single line, or a command's argument; hold several lines until a key is hit."""
        before = self.buffer.document.text_before_cursor
        after = self.buffer.document.text_after_cursor
        text = data.replace("\r\n", "\n").replace("\r", "\n")
        is_command = before.startswith("/") and not before.startswith("//")
        # Text pasted after a command is its argument: the other lines are not messages.
        if "\n" not in text.rstrip("\n") or is_command or self._syntax.disguised(clean(before)):
            self._insert(clean(text.rstrip("\n")))
            return
        if self._paste is not None:
            self._warn(f"not pasted: press {_SAY_KEY_NAME} or Esc for the previous paste first")
            return
        lines, joined = (
            [line for line in map(clean, pasted.split("\n")) if line]
            for pasted in (text, f"{before}{text}{after}")
        )
        if len(joined) > self._max_waiting_lines:
            self._warn(
                f"not pasted: {len(joined)} lines, and the limit is {self._max_waiting_lines}; "
                "to send a file: multichat send HOST PORT - <FILE"
            )
            return
        command = next(filter(None, map(self._syntax.looks_like, joined)), None)
        self._asked_about = ""
        self._paste = _Paste(lines, joined, before + after, command)


class _Buffer(Buffer):
    """A buffer of grapheme clusters, without selections.

    The cursor never stops inside a cluster, and a cluster is deleted as a whole.  Only inserted
    text may leave the cursor inside of one: the first code point of a flag, typed before another
    flag, forms a cluster with half of that until the second one follows.

    During a selection, prompt_toolkit neither inserts typed text nor accepts the line.  Here,
    Ctrl+Space does nothing, and Shift has no effect on the arrow keys.
    """

    @property
    def cursor_position(self) -> int:
        """The index in the text."""
        return super().cursor_position

    @cursor_position.setter
    def cursor_position(self, value: int) -> None:
        bound = start_of_cluster if value < self.cursor_position else end_of_cluster
        # `super()` reads properties, and does not set them.
        Buffer.cursor_position.__set__(self, bound(self.text, value))  # type: ignore[attr-defined]

    def delete(self, count: int = 1) -> str:
        """Delete and return *count* code points after the cursor, to the end of a cluster."""
        at = self.cursor_position
        return super().delete(end_of_cluster(self.text, at + count) - at)

    def delete_before_cursor(self, count: int = 1) -> str:
        """Delete and return *count* code points before the cursor, from the start of a cluster."""
        at = self.cursor_position
        return super().delete_before_cursor(at - start_of_cluster(self.text, at - count))

    def swap_characters_before_cursor(self) -> None:
        """Swap the last two clusters before the cursor."""
        text, end = self.text, self.cursor_position
        middle = start_of_cluster(text, end - 1)
        start = start_of_cluster(text, middle - 1)
        self.text = text[:start] + text[middle:end] + text[start:middle] + text[end:]

    def start_selection(self, selection_type: SelectionType = SelectionType.CHARACTERS) -> None:
        """Do nothing."""


class _History(InMemoryHistory):
    """The input history in memory, to which prompt_toolkit also adds lines."""

    def append_string(self, string: str) -> None:
        """Add a line, unless it does not belong in the history."""
        if belongs_in_history(string):
            super().append_string(string)


class _Completer(Completer):
    def __init__(self, syntax: Syntax) -> None:
        self._syntax = syntax

    def get_completions(self, document: Document, _: CompleteEvent) -> Iterator[MenuEntry]:
        """Yield the entries of the completion menu."""
        for text, length in self._syntax.complete(document.text_before_cursor):
            yield MenuEntry(text, start_position=-length)
