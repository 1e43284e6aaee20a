"""How a grapheme cluster is drawn in the last rows: as one cell, of a known width.

Terminals disagree about the width of a cluster: one draws a family of three emoji in two columns,
another draws three emoji in six.  prompt_toolkit adds up the widths of the code points, and places
everything after them by that sum.  Here a cluster is one cell of that width, and the cursor is
placed behind the cell, however much of it the terminal fills.

prompt_toolkit takes quadratic time for the marks of one cell, so only a limited number is drawn.
"""

from bisect import bisect_left

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.formatted_text.utils import fragment_list_to_text
from prompt_toolkit.layout import HSplit
from prompt_toolkit.layout.mouse_handlers import MouseHandlers
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.screen import Char, Screen, WritePosition
from prompt_toolkit.layout.utils import explode_text_fragments
from prompt_toolkit.utils import get_cwidth

from multichat.terminal.graphemes import end_of_cluster

__all__ = ["Cluster", "DrawnMarks", "Rows", "limit_marks"]

# The most marks that are drawn on one character; no language needs a third of that.
MAX_MARKS = 32

# Makes the character before it an emoji, in two columns on some terminals and in one on others.
# Without it, all of them draw what prompt_toolkit expects.
_EMOJI_STYLE = "\ufe0f"


class Cluster(str):
    """The text of one cell, of more than one code point."""

    __slots__ = ()

    def drawn(self) -> str:
        """Return what draws the cluster in a blank cell and leaves the cursor behind that cell."""
        columns = get_cwidth(self)
        save, restore = "\x1b7", "\x1b8"
        forward = f"\x1b[{columns}C" if columns else ""
        text = self.replace("\x1b", "?").replace(_EMOJI_STYLE, "")
        return f"{save}{' ' * columns}{restore}{text}{restore}{forward}"


class Rows(HSplit):
    """Rows in which the cells of a cluster are joined to one cell."""

    def write_to_screen(
        self,
        screen: Screen,
        mouse_handlers: MouseHandlers,
        write_position: WritePosition,
        parent_style: str,
        erase_bg: bool,
        z_index: int | None,
    ) -> None:
        """Draw the rows on *screen*."""
        super().write_to_screen(
            screen, mouse_handlers, write_position, parent_style, erase_bg, z_index
        )
        for y in range(write_position.ypos, write_position.ypos + write_position.height):
            _join_clusters(screen.data_buffer[y])


def _join_clusters(row: dict[int, Char]) -> None:
    drawn = [(x, cell) for x, cell in sorted(row.items()) if cell.char]
    text = "".join(cell.char for _, cell in drawn)
    if text.isascii():
        return
    start = end = at = 0  # of the cluster; of the cell
    first = 0
    for x, cell in drawn:
        if at >= end:
            start, end, first = at, end_of_cluster(text, at + 1), x
        at += len(cell.char)
        if at - start > 1:
            row[x] = Char("")
            row[first] = Char(Cluster(text[start:at]), row[first].style)


def _drawn_indexes(text: str) -> list[int]:
    """Return the indexes in *text* of all characters but those beyond `MAX_MARKS` in a row."""
    indexes: list[int] = []
    marks = 0
    for index, character in enumerate(text):
        marks = 0 if get_cwidth(character) else marks + 1
        if marks <= MAX_MARKS:
            indexes.append(index)
    return indexes


def limit_marks(text: str) -> str:
    """Return *text* with at most `MAX_MARKS` marks on each character."""
    return text if text.isascii() else "".join(text[index] for index in _drawn_indexes(text))


class DrawnMarks(Processor):
    """Leaves out marks when the edited line is drawn; its text keeps them."""

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """Return the line to draw, and the mapping between its indexes and those of the text."""
        fragments = transformation_input.fragments
        text = fragment_list_to_text(fragments)
        if text.isascii():
            return Transformation(fragments)
        indexes = _drawn_indexes(text)
        if len(indexes) == len(text):
            return Transformation(fragments)
        exploded = explode_text_fragments(fragments)
        drawn: StyleAndTextTuples = [exploded[index] for index in indexes]
        return Transformation(
            drawn,
            source_to_display=lambda index: bisect_left(indexes, index),
            display_to_source=lambda index: indexes[index] if index < len(indexes) else len(text),
        )
