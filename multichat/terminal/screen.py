"""The conversation above the input line, and how more of it gets there.

Owns the screen but for the last rows, which are the prompt's.  Its rules:

1. The terminal stays in its raw mode while anything is shown: what is typed in that moment is
   neither echoed nor lost.  (prompt_toolkit's `run_in_terminal` and `patch_stdout` go back to
   cooked mode for it.)
2. What is shown and the input line beneath it reach the terminal in one write.
3. Nothing in a text is interpreted.
4. A row of the conversation is erased only to be written again.  After a change of size, only rows
   that stand on the screen for certain are: whatever may have gone into the terminal's scrollback
   stays as it is.

Where a terminal takes nothing, all waits: a client on a terminal has nobody else to serve.
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

from multichat.terminal.wrap import Fragments, wrap

if sys.platform != "win32":
    from prompt_toolkit.output.vt100 import Vt100_Output

    # Synchronized output, DEC private mode 2026.
    _BEGIN_PICTURE, _END_PICTURE = "\x1b[?2026h", "\x1b[?2026l"

    class _SteadyOutput(Vt100_Output):
        """Keeps what is written while it is *held*, so that no screen is ever seen half drawn."""

        held = False
        gone = False  # the terminal was closed

        def flush(self) -> None:
            if self._buffer and not self.held:
                # A terminal that knows these shows what is between them at once; others ignore it.
                self._buffer = [_BEGIN_PICTURE, *self._buffer, _END_PICTURE]
                try:
                    super().flush()
                except OSError:
                    self.gone = True
                    self._buffer = []


__all__ = ["STYLE", "Screen", "ScreenApplication"]

# Of what has scrolled by, what a repaint can need: a screen of 200 rows, or fewer long lines.
_KEPT_LINES = 200
_KEPT_CHARACTERS = 64 * 1024

# Nothing is drawn until the size has been the same for so long: tmux tells of a size at most every
# 250 ms, and until then what is drawn lands on a screen of a size that we don't know.
_SETTLE_SECONDS = 0.3

# Our own styles are colours; these are for the parts that are prompt_toolkit's, so that they can be
# read on either background.
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
    """Return standard output as a terminal that draws as one."""
    if sys.platform == "win32":
        return create_output(sys.stdout)
    output = _SteadyOutput.from_pty(sys.stdout, term=os.environ.get("TERM"))
    # It is not asked where its cursor is: we begin where it is and take what rows we need.  The
    # answer of a slow one would be typed into the shell after us.
    output.enable_cpr = False
    return output


def _reflows() -> bool:
    """Say whether the terminal breaks rows anew when it becomes narrower, as most do."""
    term = os.environ.get("TERM", "")
    is_tmux = "TMUX" in os.environ
    return is_tmux or not (term.startswith(("screen", "linux")) or "XTERM_VERSION" in os.environ)


class _Shown(NamedTuple):
    """A line of the conversation, and the text of the rows as which it was written."""

    line: Fragments
    rows: Sequence[str]


class ScreenApplication(Application[None]):
    """prompt_toolkit's application with a `screen`, which decides when anything is drawn."""

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

    Unless it *wraps* lines, the terminal breaks them.
    """

    def __init__(self, app: ScreenApplication, *, wraps: bool) -> None:
        self._app, self._output = app, app.output
        self._wraps = wraps
        self._suspended = False
        self._kept: deque[_Shown] = deque()
        self._kept_characters = 0
        self._above = 0  # how many of the newest lines stand above the input line, nothing between
        self._reflows = _reflows()
        self._size = self._get_size()
        # From the first row of the input to the last one of the screen, at most.
        self._below = self._size[0]
        self._stale = False  # what stands there is not what we have written
        self._settling: asyncio.TimerHandle | None = None
        self._waiting: list[Fragments] = []  # until the size has settled
        app.before_render += self._before_render
        app.after_render += self._after_render

    @property
    def gone(self) -> bool:
        """Whether the terminal was closed: nothing can be shown any more."""
        return sys.platform != "win32" and getattr(self._output, "gone", False)

    def show(self, lines: Sequence[Fragments]) -> None:
        """Add *lines* to the conversation."""
        if not self.is_settled():
            self._waiting += lines
            return
        if self._app.is_running:
            self._hold(True)  # until the input line is drawn again
            self._app.renderer.erase()
        self._print(lines)
        self._app.invalidate()

    def clear(self) -> None:
        """Forget and erase all of it."""
        self._kept.clear()
        self._kept_characters = 0
        self.repaint()

    def repaint(self) -> None:
        """Draw all of it anew, because who knows what stands there."""
        self.settle()
        self._stale = True
        self._app.invalidate()

    def suspend(self) -> None:
        """Erase the last rows and draw nothing until `go_on`: somebody else gets the terminal."""
        self.settle()
        self._app.renderer.erase()
        self._suspended = True

    def go_on(self) -> None:
        """Draw the last rows where the cursor is now."""
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

    # --- Another size -----------------------------------------------------------------------------

    def resized(self) -> None:
        """Wait until the size does not change any more; nothing is drawn meanwhile."""
        if self._suspended:
            return
        if self._settling is not None:
            self._settling.cancel()
        self._settling = asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self.settle)

    def is_settled(self) -> bool:
        """Say whether one may draw, as far as we know the size."""
        if self._suspended:
            return False
        if self._app.is_running and not self._settling and self._size != self._get_size():
            self.resized()  # before the signal that tells of it
        return self._settling is None

    def settle(self) -> None:
        """Draw everything as it is at the size that there is now."""
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
        """Erase our rows, and those of the conversation that stand there broken; write these anew.

        The cursor is where it was in the text, also where the terminal has broken that anew.
        """
        old_rows, old_columns = self._size
        self._size = rows, columns = self._get_size()
        drawn = self._app.renderer.last_rendered_screen
        input_rows, to_cursor = ([""], 0) if drawn is None else self._drawn_rows(drawn, columns)
        height = sum(self._taken(row, columns) for row in input_rows)
        self._below += height - len(input_rows) + max(0, rows - old_rows)
        broken: list[_Shown] = []
        if columns != old_columns:
            broken = self._broken(columns, rows - self._below)
        taken = sum(self._taken(row, columns) for shown in broken for row in shown.rows)
        self._output.write_raw("\r")
        self._output.erase_down()
        # Row by row: tmux takes it for the scrollback's if the whole screen is erased at once.
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
        """Return our last rows as they were drawn, and how many stand above the cursor now."""
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

    def _broken(self, columns: int, room: int) -> list[_Shown]:
        """Return, of the newest lines that stand in *room* rows, those from which on all change."""
        found: list[_Shown] = []
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
        """Return how many rows a terminal makes of one that it was given, at least."""
        if not self._reflows or len(row) * 2 <= columns:
            return 1
        count, used = 1, 0
        for character in row:
            width = get_cwidth(character)
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
            self._keep(_Shown(line, _texts(rows)))
            self._below = max(1, self._below - len(rows))
            for row in rows if self._wraps else ():
                self._write(row)

    def _write(self, row: Fragments) -> None:
        depth = self._app.color_depth
        print_formatted_text(self._output, [*row, ("", "\n")], STYLE, color_depth=depth)

    def _keep(self, shown: _Shown) -> None:
        self._kept.append(shown)
        self._kept_characters += _length(shown)
        while len(self._kept) > 1 and (
            len(self._kept) > _KEPT_LINES or self._kept_characters > _KEPT_CHARACTERS
        ):
            self._forget(self._kept.popleft())
        self._above = min(self._above, len(self._kept))

    def _forget(self, shown: _Shown) -> None:
        self._kept_characters -= _length(shown)

    def _hold(self, held: bool) -> None:
        if sys.platform != "win32" and isinstance(self._output, _SteadyOutput):
            self._output.held = held

    def _before_render(self, _: object) -> None:
        if self._app.render_counter == 1:  # what was typed sooner was echoed here, and comes again
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
        """Erase the screen and draw the end of the conversation on it."""
        self._hold(True)
        self._app.renderer.reset()
        rows, columns = self._size
        for row in range(rows, 0, -1):  # not all at once, as in `_adapt`
            self._output.cursor_goto(row, 1)
            self._output.erase_end_of_line()
        room = rows - self._app.layout.container.preferred_height(columns, rows).preferred
        fitting: list[_Shown] = []
        while self._kept and (taken := len(self._wrap(self._kept[-1].line, columns))) <= room:
            room -= taken
            fitting.append(self._kept.pop())
            self._forget(fitting[-1])
        if self._kept and room > 0:  # the end of one whose beginning is in the scrollback
            for part in self._wrap(self._kept[-1].line, columns)[-room:]:
                self._write(part)
        self._above, self._below = 0, rows
        self._print([shown.line for shown in reversed(fitting)])


def _texts(rows: Sequence[Fragments]) -> list[str]:
    return list(map(_plain, rows))


def _plain(row: Fragments) -> str:
    return "".join(text for _, text in row)


def _length(shown: _Shown) -> int:
    return sum(map(len, shown.rows))
