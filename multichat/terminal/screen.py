"""The conversation above the input line, and how lines are added to it.

Owns the screen except for the last rows, which belong to the prompt.  Invariants:

1. The terminal stays in raw mode while lines are printed, so input typed meanwhile is neither
   echoed nor lost.  (prompt_toolkit's `run_in_terminal` and `patch_stdout` switch to cooked mode.)
2. New lines and the input line below them reach the terminal in one write.
3. Text is never interpreted.
4. A row of the conversation is erased only to be rewritten.  After a resize, only rows that are
   certain to be on the screen are rewritten; rows that may have moved into the terminal's
   scrollback are not touched.

Writes block on a stalled terminal: an interactive client has nothing else to do.
"""

import asyncio
import os
import sys
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from prompt_toolkit.application import Application
from prompt_toolkit.layout.screen import Screen as Cells
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.renderer import print_formatted_text
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth
from wcwidth import wcswidth

from multichat.terminal.cells import Cluster
from multichat.terminal.columns import Fragments
from multichat.terminal.graphemes import clusters
from multichat.terminal.wrap import wrap

if sys.platform != "win32":
    from prompt_toolkit.output.vt100 import Vt100_Output

    # Synchronized output, DEC private mode 2026.
    _BEGIN_PICTURE, _END_PICTURE = "\x1b[?2026h", "\x1b[?2026l"

    class _BufferedOutput(Vt100_Output):
        """Buffers output while `held` is set, so that a half-drawn screen is never shown."""

        held = False
        closed = False  # the terminal was closed

        def write(self, data: str) -> None:
            if isinstance(data, Cluster):
                self.write_raw(data.drawn())
            else:
                super().write(data)

        def flush(self) -> None:
            if self._buffer and not self.held:
                # Terminals that support these draw what is between them at once.
                self._buffer = [_BEGIN_PICTURE, *self._buffer, _END_PICTURE]
                try:
                    super().flush()
                except OSError:
                    self.closed = True
                    self._buffer = []
                    # Otherwise what the stream has buffered would fail again when Python exits.
                    with open(os.devnull, "wb") as null:  # noqa: PTH123
                        os.dup2(null.fileno(), self.fileno())


__all__ = ["STYLE", "Screen", "ScreenApplication"]

# Lines kept for a repaint: a screen of 200 rows, or fewer long lines.
_KEPT_LINES = 200
_KEPT_CHARACTERS = 64 * 1024

# Nothing is drawn until the size has been stable for this long: tmux reports sizes at most every
# 250 ms, and until then the actual size of the screen is unknown.  The rest is for a busy machine.
_SETTLE_SECONDS = 0.5

# If our own timer is late by more than this, the machine is so busy that tmux may be later still:
# then the size has to be stable for as long again, at most this often.
_LATE_SECONDS = 0.02
_MOST_WAITS = 5

# Styles for prompt_toolkit's own parts, readable on either background.
STYLE = Style(
    [
        ("completion-menu", "noinherit"),
        ("completion-menu.completion", "noinherit"),
        ("completion-menu.completion.current", "noinherit reverse"),
        ("scrollbar.background", "noinherit"),
        ("scrollbar.button", "reverse"),
    ]
)


def _make_output() -> Output:
    """Return standard output as a prompt_toolkit output that draws in single writes."""
    if sys.platform == "win32":
        return create_output(sys.stdout)
    sys.stdout.flush()
    # A separate stream: a thread that is stalled in a write keeps the stream's lock, and Python
    # flushes `sys.stdout` when it exits.  The descriptor stays open, like that of standard output.
    own = open(  # noqa: SIM115
        os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace", closefd=False
    )
    output = _BufferedOutput.from_pty(own, term=os.environ.get("TERM"))
    # Do not query the cursor position: we draw from where the cursor is.  The answer of a slow
    # terminal would arrive after we exit, as input to the shell.
    output.enable_cpr = False
    return output


def _reflows() -> bool:
    """Return whether the terminal reflows rows when it becomes narrower, as most do."""
    term = os.environ.get("TERM", "")
    is_tmux = "TMUX" in os.environ
    return is_tmux or not (term.startswith(("screen", "linux")) or "XTERM_VERSION" in os.environ)


class _PrintedLine(NamedTuple):
    """A printed line of the conversation, and the text of its rows."""

    line: Fragments
    rows: Sequence[str]


class ScreenApplication(Application[None]):
    """A prompt_toolkit application with a `screen`, which decides when to draw."""

    def __init__(self, *, wraps: bool, **options: Any) -> None:
        super().__init__(output=_make_output(), style=STYLE, **options)
        self.screen = Screen(self, wraps=wraps)

    def draw(self) -> None:
        """Draw the last rows now."""
        self._redraw()

    def _on_resize(self) -> None:
        self.screen.resized()

    def _redraw(self, render_as_done: bool = False) -> None:
        if render_as_done:
            self.screen.settle()
        if self.screen.is_settled():
            super()._redraw(render_as_done)


class Screen:
    """The conversation on the screen of *app*.

    Without *wraps*, the terminal breaks long lines.
    """

    def __init__(self, app: ScreenApplication, *, wraps: bool) -> None:
        self._app, self._output = app, app.output
        self._wraps = wraps
        self._suspended = False
        self._kept: deque[_PrintedLine] = deque()
        self._kept_characters = 0
        self._above = 0  # how many of the newest lines are directly above the input line
        self._reflows = _reflows()
        self._size = self._get_size()
        # The most rows from the first row of the input to the bottom of the screen.
        self._below = self._size[0]
        self._stale = False  # the screen may not show what we have written
        self._settling: asyncio.TimerHandle | None = None
        self._waiting: list[Fragments] = []  # until the size has settled
        app.before_render += self._before_render
        app.after_render += self._after_render

    @property
    def closed(self) -> bool:
        """Whether the terminal was closed, so that nothing can be shown."""
        return sys.platform != "win32" and getattr(self._output, "closed", False)

    def show(self, lines: Sequence[Fragments]) -> None:
        """Add *lines* to the conversation."""
        if not lines:
            return
        if not self.is_settled():
            self._waiting += lines
            return
        if self._app.is_running:
            self._hold(True)  # until the input line is drawn again
            self._app.renderer.erase()
        self._print(lines)
        self._app.invalidate()

    def clear(self) -> None:
        """Erase the conversation and forget its lines."""
        self._kept.clear()
        self._kept_characters = 0
        self.repaint()

    def repaint(self) -> None:
        """Redraw everything, whatever the screen shows now."""
        self.settle()
        self._stale = True
        self._app.invalidate()

    def suspend(self) -> None:
        """Erase the last rows and draw nothing until `resume`: another program uses the screen."""
        self.settle()
        self._app.renderer.erase()
        self._suspended = True

    def resume(self) -> None:
        """Draw the last rows at the cursor's current position."""
        self.settle()
        self._suspended = False
        self._app.renderer.erase()
        self._size = self._get_size()
        self._above, self._below = 0, self._size[0]
        self._print(self._waiting)
        self._waiting.clear()
        self._app.invalidate()

    def _get_size(self) -> tuple[int, int]:
        size = self._output.get_size()
        return max(1, size.rows), max(1, size.columns)

    # --- Resizing ---------------------------------------------------------------------------------

    def resized(self) -> None:
        """Draw nothing until the size has been stable for `_SETTLE_SECONDS`, or for longer."""
        if not self._suspended:
            self._wait_stable(_MOST_WAITS)

    def _wait_stable(self, waits: int) -> None:
        if self._settling is not None:
            self._settling.cancel()
        loop = asyncio.get_running_loop()
        due = loop.time() + _SETTLE_SECONDS
        self._settling = loop.call_at(due, self._was_stable, due, waits - 1)

    def _was_stable(self, due: float, waits: int) -> None:
        if waits and asyncio.get_running_loop().time() - due > _LATE_SECONDS:
            self._wait_stable(waits)
        else:
            self.settle()

    def is_settled(self) -> bool:
        """Return whether the size is known, so that drawing is allowed."""
        if self._suspended:
            return False
        if self._app.is_running and not self._settling and self._size != self._get_size():
            self.resized()  # the size changed, and SIGWINCH has not arrived yet
        return self._settling is None

    def settle(self) -> None:
        """Draw everything for the current size."""
        if self._settling is None:
            return
        self._settling.cancel()
        self._settling = None
        self._hold(True)
        self._adapt()
        self._print(self._waiting)
        self._waiting.clear()
        self._app.draw()

    def _adapt(self) -> None:
        """Erase our rows and the rows that the resize has reflowed, and rewrite the latter.

        The cursor keeps its place in the text, even if the terminal has reflowed it.
        """
        old_rows, old_columns = self._size
        self._size = rows, columns = self._get_size()
        drawn = self._app.renderer.last_rendered_screen
        input_rows, to_cursor = ([""], 0) if drawn is None else self._drawn_rows(drawn, columns)
        height = sum(self._taken(row, columns) for row in input_rows)
        self._below += height - len(input_rows) + max(0, rows - old_rows)
        broken: list[_PrintedLine] = []
        if columns != old_columns:
            broken = self._broken(columns, rows - self._below)
        taken = sum(self._taken(row, columns) for shown in broken for row in shown.rows)
        self._output.write_raw("\r")
        self._output.erase_down()
        # Row by row: when the whole screen is erased at once, tmux moves it into the scrollback.
        for _ in range(to_cursor + taken):
            self._output.cursor_up(1)
            self._output.erase_end_of_line()
        self._app.renderer.reset()
        self._below = min(self._below, rows) + taken
        for _ in broken:
            self._forget(self._kept.pop())
        self._above -= len(broken)
        self._print([shown.line for shown in broken])

    def _drawn_rows(self, drawn: Cells, columns: int) -> tuple[list[str], int]:
        """Return our last rows as they were drawn, and how many are above the cursor now."""
        texts = []
        for y in range(drawn.height):
            cells = drawn.data_buffer[y]
            text = "".join(cells[x].char for x in range(max(cells, default=-1) + 1))
            texts.append(text.rstrip(" "))
        x, y = drawn.get_cursor_position(self._app.layout.current_window)
        cells = drawn.data_buffer[y]
        before = "".join(cells[each].char for each in range(x + 1)).rstrip(" ")
        above = sum(self._taken(text, columns) for text in texts[:y])
        return texts, above + self._taken(before, columns) - 1

    def _broken(self, columns: int, room: int) -> list[_PrintedLine]:
        """Return the newest lines that fit into *room* rows, starting at the first reflowed one."""
        found: list[_PrintedLine] = []
        for shown in islice(reversed(self._kept), self._above):
            room -= sum(self._taken(row, columns) for row in shown.rows)
            if room < 0:
                break
            found.append(shown)
        while found and _texts(self._wrap(found[-1].line, columns)) == found[-1].rows:
            found.pop()
        found.reverse()
        return found

    def _taken(self, row: str, columns: int) -> int:
        """Return the least number of rows that the terminal uses for *row*."""
        if not self._reflows or len(row) * 2 <= columns:
            return 1
        count, used = 1, 0
        for cluster in clusters(row):
            width = max(0, min(get_cwidth(cluster), wcswidth(cluster)))
            if used + width > columns:
                count, used = count + 1, 0
            used += width
        return count

    # --- Drawing ----------------------------------------------------------------------------------

    def _wrap(self, line: Fragments, columns: int) -> list[Fragments]:
        return wrap(line, columns) if self._wraps else [line]

    def _print(self, lines: Sequence[Fragments]) -> None:
        if not self._wraps:  # log lines, without styles: any number of them at once
            self._output.write("".join(f"{_plain(line)}\r\n" for line in lines))
            self._output.flush()
            lines = lines[-_KEPT_LINES:]
        for line in lines:
            rows = self._wrap(line, self._size[1])
            self._above += 1
            self._keep(_PrintedLine(line, _texts(rows)))
            self._below = max(1, self._below - len(rows))
            for row in rows if self._wraps else ():
                self._write(row)

    def _write(self, row: Fragments) -> None:
        depth = self._app.color_depth
        print_formatted_text(self._output, [*row, ("", "\n")], STYLE, color_depth=depth)

    def _keep(self, shown: _PrintedLine) -> None:
        self._kept.append(shown)
        self._kept_characters += _length(shown)
        while len(self._kept) > 1 and (
            len(self._kept) > _KEPT_LINES or self._kept_characters > _KEPT_CHARACTERS
        ):
            self._forget(self._kept.popleft())
        self._above = min(self._above, len(self._kept))

    def _forget(self, shown: _PrintedLine) -> None:
        self._kept_characters -= _length(shown)

    def _hold(self, held: bool) -> None:
        if sys.platform != "win32" and isinstance(self._output, _BufferedOutput):
            self._output.held = held

    def _before_render(self, _: object) -> None:
        if self._app.render_counter == 1:  # input typed before raw mode was echoed on this row
            self._output.write_raw("\r")
            self._output.erase_end_of_line()
        if self._stale:
            self._stale = False
            self._repaint()
        self._hold(False)

    def _after_render(self, _: object) -> None:
        drawn = self._app.renderer.last_rendered_screen
        if drawn is not None:
            self._below = min(max(self._below, drawn.height), self._size[0])

    def _repaint(self) -> None:
        """Erase the screen and redraw the end of the conversation."""
        self._hold(True)
        self._app.renderer.reset()
        rows, columns = self._size
        for row in range(rows, 0, -1):  # row by row, as in `_adapt`
            self._output.cursor_goto(row, 1)
            self._output.erase_end_of_line()
        room = rows - self._app.layout.container.preferred_height(columns, rows).preferred
        fitting: list[_PrintedLine] = []
        while self._kept and (taken := len(self._wrap(self._kept[-1].line, columns))) <= room:
            room -= taken
            fitting.append(self._kept.pop())
            self._forget(fitting[-1])
        if self._kept and room > 0:  # the end of a line that starts in the scrollback
            for part in self._wrap(self._kept[-1].line, columns)[-room:]:
                self._write(part)
        self._above, self._below = 0, rows
        self._print([shown.line for shown in reversed(fitting)])


def _texts(rows: Sequence[Fragments]) -> list[str]:
    return list(map(_plain, rows))


def _plain(row: Fragments) -> str:
    return "".join(text for _, text in row)


def _length(shown: _PrintedLine) -> int:
    return sum(map(len, shown.rows))
