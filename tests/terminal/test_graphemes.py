"""Grapheme clusters: the cursor, deletion, wrapping and drawing keep them whole."""

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text.utils import fragment_list_to_text
from prompt_toolkit.layout import BufferControl
from prompt_toolkit.layout.processors import TransformationInput
from prompt_toolkit.utils import get_cwidth

from multichat.terminal.cells import MAX_MARKS, Cluster, DrawnMarks, limit_marks
from multichat.terminal.columns import columns_of
from multichat.terminal.graphemes import clusters, end_of_cluster, start_of_cluster
from multichat.terminal.wrap import wrap
from tests.support.keyboard import Keyboard
from tests.support.processes import WAIT_SECONDS, serve
from tests.support.terminals import Terminal, connect_alice, wait_for_input

CLUSTERS = {
    "joined emoji": "👩\u200d👩\u200d👧",
    "skin tone": "👍🏽",
    "flag": "🇩🇪",
    "flag of a region": "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "keycap": "1\ufe0f\u20e3",
    "emoji style": "❤\ufe0f",
    "accents": "o\u0302\u0323",
    "jamo": "\u1112\u1161\u11ab",
    "Devanagari": "क्षि",
    "kana": "か\u3099",
}
every_cluster = pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS.keys())

# What joins to clusters, and what does not.
texts = st.text(st.sampled_from("".join(CLUSTERS.values()) + "a x\u200b\u0600中"), max_size=40)


@pytest.mark.unit
@given(texts)
def test_indices_are_moved_to_the_nearest_boundaries(text: str) -> None:
    boundaries, at = [0], 0
    for cluster in clusters(text):
        at += len(cluster)
        boundaries.append(at)
    for index in range(len(text) + 1):
        assert start_of_cluster(text, index) == max(b for b in boundaries if b <= index)
        assert end_of_cluster(text, index) == min(b for b in boundaries if b >= index)
    assert (start_of_cluster(text, -1), end_of_cluster(text, -1)) == (0, 0)
    assert start_of_cluster(text, at + 1) == end_of_cluster(text, at + 1) == at


@pytest.mark.unit
@every_cluster
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["left", "|"], "a{0}|{0}"),
        (["left", "left", "|"], "a|{0}{0}"),
        (["c-b", "c-b", "c-f", "|"], "a{0}|{0}"),
        (["home", "right", "right", "|"], "a{0}|{0}"),
        (["backspace"], "a{0}"),
        (["c-h", "backspace"], "a"),
        (["left", "backspace"], "a{0}"),
        (["left", "delete"], "a{0}"),
        (["left", "left", "c-d", "delete"], "a"),
        (["left", "left", "c-t", "|"], "{0}a|{0}"),
        (["backspace", "c-t", "|"], "{0}a|"),
    ],
    ids=str,
)
def test_keys_move_over_and_delete_whole_clusters(
    keys: list[str], expected: str, cluster: str, keyboard: Keyboard
) -> None:
    keyboard.type(f"a{cluster}{cluster}")
    keyboard.press(*keys)
    assert keyboard.text == expected.format(cluster)


@pytest.mark.unit
@every_cluster
@pytest.mark.parametrize("keys", [("c-w",), ("escape", "backspace"), ("c-left",), ("escape", "b")])
def test_keys_for_words_keep_clusters_whole(
    keys: tuple[str, ...], cluster: str, keyboard: Keyboard
) -> None:
    keyboard.type(f"{cluster}x{cluster}y")
    for _ in range(4):
        keyboard.press(*keys, "|", "backspace")
        assert "".join(clusters(keyboard.text)) == keyboard.text
        assert set(clusters(keyboard.text)) <= {cluster, "x", "y"}


@pytest.mark.unit
@every_cluster
@pytest.mark.parametrize("after", CLUSTERS.values(), ids=CLUSTERS.keys())
def test_a_cluster_typed_in_front_of_another_stays_in_order(
    cluster: str, after: str, keyboard: Keyboard
) -> None:
    keyboard.type(after)
    keyboard.press("home")
    keyboard.type(f"{cluster}x")
    assert keyboard.text == f"{cluster}x{after}"


@pytest.mark.unit
@every_cluster
def test_rows_break_between_clusters(cluster: str) -> None:
    for columns in range(16, 24):
        rows = wrap([("", cluster * 40)], columns)
        shown = ["".join(text for _, text in row).strip() for row in rows]
        assert "".join(shown) == cluster * 40
        assert all(set(clusters(row)) == {cluster} for row in shown)


@pytest.mark.unit
def test_a_cluster_that_is_wider_than_a_row_is_broken() -> None:
    for row in wrap([("", "👩\u200d" * 400)], 20):
        assert columns_of("".join(text for _, text in row)) <= 20


@pytest.mark.unit
@every_cluster
def test_a_drawn_cluster_ends_where_prompt_toolkit_expects(cluster: str) -> None:
    drawn = Cluster(cluster).drawn()
    assert drawn.endswith(f"\x1b8\x1b[{get_cwidth(cluster)}C")
    assert "\x1b\u0301" not in Cluster("\x1b\u0301").drawn()


@pytest.mark.unit
@given(
    st.lists(st.sampled_from([*CLUSTERS.values(), "x", "\u0301", "\u0301" * MAX_MARKS])).map(
        "".join
    )
)
def test_the_drawn_marks_of_a_character_are_limited(text: str) -> None:
    line = DrawnMarks().apply_transformation(
        TransformationInput(
            BufferControl(), Document(text), 0, lambda index: index, [("", text)], 80, 1
        )
    )
    drawn = fragment_list_to_text(line.fragments)
    assert drawn == limit_marks(text)
    zero_wide = "".join("m" if get_cwidth(character) == 0 else " " for character in drawn)
    assert max(map(len, zero_wide.split()), default=0) <= MAX_MARKS
    for index, character in enumerate(drawn):
        source = line.display_to_source(index)
        assert (text[source], line.source_to_display(source)) == (character, index)
    assert line.source_to_display(len(text)) == len(drawn)
    assert line.display_to_source(len(drawn)) == len(text)
    assert get_cwidth(drawn) == get_cwidth(text)


@pytest.mark.process
async def test_the_cursor_and_the_text_agree_on_a_terminal(
    terminal: Terminal, tmp_path: Path
) -> None:
    async with serve(tmp_path) as server:
        await connect_alice(terminal, server)
        for cluster in CLUSTERS.values():
            await terminal.type("t", f"{cluster}{cluster}x", "Left")
            await wait_for_cursor(terminal, 2 + 2 * get_cwidth(cluster))
            await terminal.press("t", "Left", "BSpace", "End")
            await wait_for_cursor(terminal, 3 + get_cwidth(cluster))
            # tmux drops the end of a long cluster.
            await terminal.wait_for_match("t", rf"^> {cluster[0]}[^\sx]* *x\s*\nalice in")
            await terminal.press("t", "C-a", "Delete", "Enter")
            await wait_for_input(terminal, "t", "")


async def wait_for_cursor(terminal: Terminal, column: int) -> None:
    shown = ""
    with trio.move_on_after(WAIT_SECONDS):
        while shown != str(column):
            await trio.sleep(0.05)
            answer = await terminal.run("display-message", "-p", "-t", "t", "#{cursor_x}")
            shown = answer.strip()
    assert shown == str(column), await terminal.screen("t")
