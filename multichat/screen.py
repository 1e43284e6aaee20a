"""What has scrolled by above the input line, and how more of it gets there.

Owns the screen but for the last rows, which are the prompt's, and the end of the conversation as
far as a screen can show it.  Rules it lives by:

1. The terminal stays in its raw mode while anything is shown: what is typed in that moment is
   neither echoed nor lost.  (prompt_toolkit's `run_in_terminal` and `patch_stdout` go back to
   cooked mode for it.)
2. What is shown and the input line beneath it reach the terminal in one write.
3. Nothing in a text is interpreted.

Where a terminal takes nothing, all waits: a client on a terminal has nobody else to serve.
"""

import os
import sys
from collections import deque
from collections.abc import Iterable, Sequence

from prompt_toolkit.application import Application
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.renderer import print_formatted_text
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from multichat.look import Fragments

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


__all__ = ["STYLE", "Screen", "make_output"]

# Of what has scrolled by, what a repaint can need: a screen of 200 rows, or fewer long lines.
_KEPT_LINES = 200
_KEPT_CHARACTERS = 64 * 1024

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


def make_output() -> Output:
    """Return standard output as a terminal that draws as one."""
    if sys.platform == "win32":
        return create_output(sys.stdout)
    output = _SteadyOutput.from_pty(sys.stdout, term=os.environ.get("TERM"))
    # It is not asked where its cursor is: we begin where it is and take what rows we need.  The
    # answer of a slow one would be typed into the shell after us.
    output.enable_cpr = False
    return output


class Screen:
    """The conversation on the screen of *app*, whose output is `make_output`'s."""

    def __init__(self, app: Application[None]) -> None:
        self._app, self._output = app, app.output
        self._kept: deque[Fragments] = deque()
        self._kept_characters = 0
        self._size: tuple[int, int] | None = None
        self._stale = False  # what stands there is not what we have written
        app.before_render += self._before_render

    @property
    def gone(self) -> bool:
        """Whether the terminal was closed: nothing can be shown any more."""
        return sys.platform != "win32" and getattr(self._output, "gone", False)

    def show(self, lines: Sequence[Fragments]) -> None:
        """Add *lines* to the conversation."""
        for line in lines:
            self._keep(line)
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
        self._stale = True
        self._app.invalidate()

    def _keep(self, line: Fragments) -> None:
        self._kept.append(line)
        self._kept_characters += _length(line)
        while len(self._kept) > 1 and (
            len(self._kept) > _KEPT_LINES or self._kept_characters > _KEPT_CHARACTERS
        ):
            self._kept_characters -= _length(self._kept.popleft())

    def _print(self, lines: Iterable[Fragments]) -> None:
        depth: ColorDepth = self._app.color_depth
        for line in lines:
            print_formatted_text(self._output, [*line, ("", "\n")], STYLE, color_depth=depth)

    def _hold(self, held: bool) -> None:
        if sys.platform != "win32" and isinstance(self._output, _SteadyOutput):
            self._output.held = held

    def _before_render(self, _: object) -> None:
        size = self._output.get_size()
        seen = (size.rows, size.columns)
        if self._stale or (self._size is not None and self._size != seen):
            self._repaint(*seen)
        self._stale, self._size = False, seen
        self._hold(False)

    def _repaint(self, rows: int, columns: int) -> None:
        """Draw the end of the conversation anew on a screen of that size.

        Every terminal has its own idea of what becomes of lines that were broken at another width,
        so that nothing that stands there can be relied on.
        """
        self._hold(True)
        self._app.renderer.reset()
        for row in range(rows, 0, -1):  # not all at once, which some would add to their scrollback
            self._output.cursor_goto(row, 1)
            self._output.erase_end_of_line()
        room = rows - self._app.layout.container.preferred_height(columns, rows).preferred
        shown: list[Fragments] = []
        for line in reversed(self._kept):
            width = sum(get_cwidth(text) for _, text in line)
            room -= max(1, -(-width // columns))
            if room < 0:
                break
            shown.append(line)
        self._print(reversed(shown))


def _length(line: Fragments) -> int:
    return sum(len(text) for _, text in line)
