"""The status line, what it says at which width, and the list of rooms."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.protocol.messages import RoomSize, Said
from multichat.terminal.columns import Fragments, columns_of
from multichat.terminal.render import WARNING
from multichat.terminal.rooms import Heard, Rooms
from multichat.terminal.status import count_of, list_rooms, status_line

pytestmark = pytest.mark.unit

PLACE = "127.0.0.1:9000"


def in_rooms(shown: str, **unread: tuple[int, int]) -> Rooms:
    """Rooms with so many unread messages and mentions."""
    rooms = Rooms()
    for name, (messages, mentions) in unread.items():
        room = rooms.enter(name, 4, None)
        heard = Heard(Said(name="bob", text="hello"), datetime.now(UTC))
        for number in range(messages):
            rooms.keep(room, heard, is_new=True, is_mention=number < mentions)
    rooms.show(shown)
    return rooms


def text(line: Fragments) -> str:
    return "".join(text for _, text in line)


THREE = {"lobby": (0, 0), "kitchen": (3, 0), "ops": (1, 1), "dev": (0, 0)}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            80,
            "alice in lobby · 4 here · lobby · kitchen 3 · ops 1! · dev · 127.0.0.1:9000",
        ),
        (60, "alice in lobby · 4 here · lobby · kitchen 3 · ops 1! · dev"),
        (50, "alice in lobby · lobby · kitchen 3 · ops 1! · dev"),
        (48, "alice in lobby · kitchen 3 · ops 1!"),
        (30, "lobby · kitchen 3 · ops 1!"),
        (20, "lobby · 4!"),
        (8, "lobby"),
        (3, "lob"),
        (0, ""),
    ],
)
def test_less_important_parts_go_first(columns: int, expected: str) -> None:
    assert text(status_line("alice", in_rooms("lobby", **THREE), PLACE, "", columns)) == expected


def test_one_room_is_shown_with_how_many_are_here() -> None:
    rooms = in_rooms("lobby", lobby=(0, 0))
    assert text(status_line("alice", rooms, PLACE, "", 60)) == f"alice in lobby · 4 here · {PLACE}"
    assert text(status_line("alice", rooms, PLACE, "", 30)) == "alice in lobby · 4 here"
    assert text(status_line("alice", rooms, PLACE, "", 20)) == "alice in lobby"
    assert text(status_line("alice", rooms, PLACE, "", 10)) == "lobby"
    assert text(status_line("alice", Rooms(), PLACE, "", 60)) == PLACE


def test_the_state_of_the_connection_comes_first() -> None:
    rooms = in_rooms("kitchen", lobby=(2, 0), kitchen=(0, 0))
    expected = "reconnecting · alice in kitchen · lobby 2 · kitchen"
    assert text(status_line("alice", rooms, PLACE, "reconnecting", 55)) == expected
    assert (
        text(status_line("alice", rooms, PLACE, "reconnecting", 26)) == "reconnecting · kitchen · 2"
    )
    assert text(status_line("alice", rooms, PLACE, "reconnecting", 10)) == "reconnecti"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (60, "not connected, reconnecting (2nd try, next in 3 s) · kitchen"),
        (59, "not connected, reconnecting (2nd try, next in 3 s)"),
        (49, "not connected, reconnecting"),
        (20, "not connected"),
    ],
)
def test_a_state_is_shortened_by_whole_parts(columns: int, expected: str) -> None:
    rooms = in_rooms("kitchen", kitchen=(0, 0))
    state = "not connected, reconnecting (2nd try, next in 3 s)"
    assert text(status_line("alice", rooms, PLACE, state, columns)) == expected


def test_the_room_that_is_shown_is_bold_and_a_mention_stands_out() -> None:
    line = status_line("alice", in_rooms("lobby", **THREE), PLACE, "", 80)
    styles = {text: style for style, text in line}
    assert "bold" in styles["lobby"]
    assert styles["ops 1!"] == f"{WARNING} bold"
    assert WARNING not in styles["kitchen 3"]
    assert "bold" not in styles["dev"]


def test_large_counts_are_cut() -> None:
    assert (count_of(999, 0), count_of(1000, 0), count_of(1000, 2)) == ("999", "999+", "999+!")


def test_the_list_of_rooms_begins_with_ours_and_their_unread_counts() -> None:
    rooms = in_rooms("lobby", **{**THREE, "ops": (5, 2), "dev": (2, 1)})
    sizes = [RoomSize("random", 9), RoomSize("ops", 1), RoomSize("Lobby", 3), RoomSize("dev", 2)]
    assert list_rooms(rooms, sizes) == [
        "rooms and their members:",
        "lobby 3 (Alt+1)",
        "kitchen 4 (Alt+2): 3 unread",
        "ops 1 (Alt+3): 5 unread, 2 mentions",
        "dev 2 (Alt+4): 2 unread, 1 mention",
        "random 9",
    ]


def test_only_nine_rooms_have_a_key() -> None:
    rooms = in_rooms("r1", **{f"r{number}": (0, 0) for number in range(1, 12)})
    assert list_rooms(rooms, [])[9:] == ["r9 4 (Alt+9)", "r10 4", "r11 4"]


NAMES = st.text(st.characters(categories=["L", "M", "N"]), min_size=1, max_size=32)
COUNTS = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(
    st.dictionaries(NAMES, COUNTS, min_size=1, max_size=12),
    NAMES,
    st.sampled_from(["", "reconnecting (3rd try, next in 5 s)"]),
    st.integers(0, 120),
)
def test_the_line_fits_at_any_width(
    unread: dict[str, tuple[int, int]], name: str, state: str, columns: int
) -> None:
    rooms = in_rooms(next(iter(unread)), **unread)
    line = text(status_line(name, rooms, PLACE, state, columns))
    assert columns_of(line) <= columns
    if not state and columns >= 32 * 2 + len(" · 36!"):
        assert rooms.shown.name in line
        total = sum(room.unread for room in rooms)
        counts = [total, *(room.unread for room in rooms if room.unread)]  # together, or of each
        assert not total or any(str(count) in line for count in counts)
