"""How events look: styles, colours, days, mentions; and that nothing in a text is interpreted."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.protocol.framing import clean
from multichat.protocol.messages import (
    Act,
    Direct,
    Directed,
    Disconnected,
    Error,
    Event,
    Goodbye,
    HistoryPage,
    Joined,
    Left,
    Limits,
    MemberName,
    Members,
    Missed,
    Notice,
    Presence,
    Reconnected,
    Renamed,
    Said,
    SayBlock,
    Welcome,
)
from multichat.terminal.render import (
    DIM,
    NAME_COLORS,
    WARNING,
    Fragments,
    Identity,
    Renderer,
    mentions,
    name_style,
)

pytestmark = pytest.mark.unit

NOW = datetime(2025, 1, 15, 10, 30, 45, tzinfo=UTC)
US = Identity(1, "alice")


def plain(fragments: Fragments) -> str:
    return "".join(text for _, text in fragments)


def shown(event: Event, us: Identity = US, now: datetime = NOW) -> list[str]:
    return [plain(line.fragments) for line in Renderer(UTC).event(event, us, now)]


# --- Messages -----------------------------------------------------------------------------


def test_rendering_of_messages() -> None:
    [line] = Renderer(UTC).event(Said(client=2, name="bob", text="Hello"), US, NOW)
    assert plain(line.fragments) == "10:30 bob  Hello"
    assert (f"{name_style('bob')} bold", "bob") in line.fragments
    assert line.fragments[0] == (DIM, "10:30 ")
    assert not line.is_alert


def test_the_servers_time_is_shown_in_the_local_zone() -> None:
    said = Said(timestamp="2025-01-15T08:05:59.999Z", client=2, name="bob", text="Hello")
    assert shown(said) == ["08:05 bob  Hello"]
    [line] = Renderer(timezone(timedelta(hours=5))).event(said, US, NOW)
    assert plain(line.fragments) == "13:05 bob  Hello"


@pytest.mark.parametrize("time", ["", "yesterday", "0001-01-01T00:00:00+14:00", "9" * 5000])
def test_an_invalid_time_is_rendered_as_now(time: str) -> None:
    assert shown(Said(timestamp=time, client=2, name="bob", text="Hello"))[-1] == "10:30 bob  Hello"


def test_rendering_of_actions() -> None:
    assert shown(Said(client=2, name="bob", text="waves", act=True)) == ["10:30 * bob waves"]


def test_a_private_message_is_an_alert() -> None:
    [line] = Renderer(UTC).event(Directed(client=2, name="bob", text="psst"), US, NOW)
    assert plain(line.fragments) == "10:30 bob → you  psst"
    assert line.is_alert


@pytest.mark.parametrize(
    "text", ["a line of no server of ours", "alice  hello", "· alice left (kicked)", "* bob waves"]
)
def test_a_line_without_a_name_cannot_imitate_a_named_one(text: str) -> None:
    assert shown(Said(name="", text=text)) == [f"10:30 | {text}"]


def test_own_messages_are_marked() -> None:
    [typed] = Renderer(UTC).typed(SayBlock("Hello, alice"), US, NOW)
    [heard] = Renderer(UTC).event(Said(client=1, name="alice", text="Hello, alice"), US, NOW)
    assert typed == heard, "as after a resume, or on another of our terminals"
    assert plain(typed.fragments) == "10:30 alice  Hello, alice"
    assert (f"{name_style('alice')} bold underline", "alice") in typed.fragments
    assert not typed.is_alert, "who says their own name calls nobody"


def test_rendering_of_own_messages() -> None:
    look = Renderer(UTC)
    requests = (SayBlock("one\ntwo"), Act("waves"), Direct("bob", "psst"), Direct(7, "psst"))
    lines = [plain(line.fragments) for each in requests for line in look.typed(each, US, NOW)]
    assert lines == [
        "10:30 alice  one",
        "10:30 alice  two",
        "10:30 * alice waves",
        "10:30 you → bob  psst",
        "10:30 you → 7  psst",
    ]
    [unnamed] = look.typed(SayBlock("one"), Identity(), NOW)
    assert plain(unnamed.fragments) == "10:30 you  one"


def test_pending_messages_are_dimmed() -> None:
    [line] = Renderer(UTC).typed(SayBlock("Hello"), US, NOW, pending=True)
    assert line.fragments == [(DIM, "10:30 alice  Hello")]


# --- Events ---------------------------------------------------------------------------------------

WELCOME = Welcome(
    protocol=1,
    client=1,
    name="alice",
    room="lobby",
    members=2,
    limits=Limits(line=1, name=1),
    last=None,
    server="",
    resumed=False,
)


@pytest.mark.parametrize(
    ("event", "style", "text"),
    [
        (WELCOME, DIM, "· you are alice in lobby; 2 are here"),
        (Joined(client=2, name="bob"), DIM, "· bob joined"),
        (Left(client=2, name="bob", reason="too slow"), DIM, "· bob left (too slow)"),
        (Renamed(client=2, old="bob", name="rob"), DIM, "· bob is now rob"),
        (
            Presence(joined=20, left=0, renamed=0, members=21),
            DIM,
            "· 20 joined; 21 are here",
        ),
        (
            Disconnected(reason="reset", retry_seconds=0.25),
            WARNING,
            "! Connection lost: reset; reconnecting",
        ),
        (Reconnected(resumed=True), DIM, "· Connected again"),
        (Missed(count=3), WARNING, "! 3 messages skipped"),
        (
            Error(code="name-taken", text="the name 'bob' is taken"),
            WARNING,
            "! the name 'bob' is taken",
        ),
        (Goodbye(reason="too slow"), WARNING, "! goodbye: too slow"),
        (Notice(text="/who  who is here", nonce=7), "", "· /who  who is here"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_joins_and_leaves_are_dimmed_and_errors_are_not(
    event: Event, style: str, text: str
) -> None:
    [line] = Renderer(UTC).event(event, US, NOW)
    assert line.fragments == [(DIM, "10:30 "), (style, text)]
    assert not line.is_alert


def test_server_notices_are_marked() -> None:
    [line] = Renderer(UTC).event(Notice(text="Lunch, alice?"), US, NOW)
    assert plain(line.fragments) == "10:30 Server  Lunch, alice?"
    assert ("bold", "Server") in line.fragments
    assert line.is_alert


def test_a_list_is_rendered_one_line_per_item() -> None:
    members = Members(room="lobby", members=[MemberName(1, "alice"), MemberName(2, "bob")])
    assert shown(members) == ["10:30 · 2 in lobby:", "10:30 · 1 alice", "10:30 · 2 bob"]


def test_history_is_rendered_like_live_messages() -> None:
    page = HistoryPage(
        messages=[
            Said(client=2, name="bob", text="hi alice", timestamp="2025-01-14T21:05:00.000Z"),
            Said(
                client=2, name="bob", text="waves", act=True, timestamp="2025-01-15T09:00:00.000Z"
            ),
        ],
        more=True,
        nonce=1,
    )
    look = Renderer(UTC)
    look.notice("connected", NOW)
    lines = look.event(page, US, NOW)
    assert [plain(line.fragments) for line in lines] == [
        "10:30 · the last 2 messages:",
        f"— {datetime(2025, 1, 14, tzinfo=UTC):%A, %x} —",
        "21:05 bob  hi alice",
        f"— {datetime(2025, 1, 15, tzinfo=UTC):%A, %x} —",
        "09:00 * bob waves",
    ]
    assert not any(line.is_alert for line in lines)
    assert shown(HistoryPage(messages=[], more=False)) == ["10:30 · no messages"]


def test_a_new_day_is_shown_once_before_its_first_line() -> None:
    look = Renderer(UTC)
    said = Said(client=2, name="bob", text="Hello")
    assert len(look.event(said, US, NOW)) == 1, "the first line of all needs no date"
    assert len(look.event(said, US, NOW + timedelta(hours=13, minutes=29))) == 1
    date, line = look.event(said, US, NOW + timedelta(hours=14))
    assert plain(date.fragments).startswith("— Thursday, ")
    assert {style for style, _ in date.fragments} == {DIM}
    assert plain(line.fragments) == "00:30 bob  Hello"
    assert len(look.typed(SayBlock("Hello"), US, NOW + timedelta(hours=14))) == 1
    assert len(look.notice("connected", NOW + timedelta(days=2))) == 2


# --- Names and mentions -----------------------------------------------------------------------


def luminance(color: str) -> float:
    """WCAG 2.1, relative luminance."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(c * weight for c, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


@pytest.mark.parametrize("color", [*NAME_COLORS, DIM, WARNING])
def test_every_colour_is_readable_on_black_and_on_white(color: str) -> None:
    on_black, on_white = (luminance(color) + 0.05) / 0.05, 1.05 / (luminance(color) + 0.05)
    assert min(on_black, on_white) >= 4


@pytest.mark.parametrize("color", NAME_COLORS)
def test_every_colour_is_one_of_256(color: str) -> None:
    assert {int(color[i : i + 2], 16) for i in (1, 3, 5)} <= {0, 95, 135, 175, 215, 255}


@pytest.mark.process
def test_a_name_has_the_same_colour_in_every_process_and_spelling() -> None:
    assert name_style("Alice") == name_style("ALICE") == name_style("Ａlice")
    code = "from multichat.terminal.render import name_style; print(name_style('καλή'))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {name_style("καλή")}


def test_colours_are_spread_over_names() -> None:
    count = dict.fromkeys(NAME_COLORS, 0)
    for number in range(1600):
        count[name_style(f"Client {number}")] += 1
    assert min(count.values()) > 50
    assert max(count.values()) < 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice", True),
        ("hello Alice!", True),
        ("@alice, hi", True),
        ("(ALICE)", True),
        ("malice", False),
        ("alices", False),
        ("al ice", False),
        ("", False),
    ],
)
def test_a_mention_is_a_word_of_its_own(text: str, expected: bool) -> None:
    assert mentions(text, "alice") is expected


def test_a_name_is_not_a_pattern_and_an_empty_one_never_matches() -> None:
    assert not mentions("abc", "a.c")
    assert mentions("a.c!", "a.c")
    assert not mentions("anything", "")


def test_a_mention_is_marked_and_is_an_alert() -> None:
    [line] = Renderer(UTC).event(Said(client=2, name="bob", text="hi Alice, alice"), US, NOW)
    assert line.is_alert
    marked = [text for style, text in line.fragments if "reverse" in style]
    assert marked == ["Alice", "alice"]
    assert plain(line.fragments) == "10:30 bob  hi Alice, alice"


# --- Whatever a text holds --------------------------------------------------------------------

ANY = st.text(alphabet=st.characters(), max_size=60)


@given(ANY, ANY, ANY, st.booleans())
def test_any_text_renders_as_one_clean_line_with_our_styles(
    name: str, text: str, own: str, act: bool
) -> None:
    """Also from a hostile server, whose strings are not filtered."""
    look = Renderer(UTC)
    us = Identity(1, own)
    events: list[Event] = [
        Said(client=2, name=name, text=text, act=act, timestamp=own),
        Directed(client=2, name=name, text=text),
        Joined(client=2, name=name),
        Notice(text=text),
        Error(code="x", text=text),
    ]
    lines = [line for event in events for line in look.event(event, us, NOW)]
    lines += look.typed(Direct(name, text), us, NOW)
    known = {"", "bold", DIM, WARNING, "bold reverse"}
    known |= {f"{color} bold" for color in NAME_COLORS}
    known |= {f"{color} bold underline" for color in NAME_COLORS}
    for line in lines:
        assert {style for style, _ in line.fragments} <= known
        whole = plain(line.fragments)
        assert "\n" not in whole
        assert "\t" not in whole
        assert clean(whole) == whole


def test_text_that_looks_like_markup_is_not_interpreted() -> None:
    text = "<b>bold</b> &amp; <ansired>no</ansired> \x1b[31mred"
    assert shown(Said(client=2, name="bob", text=text)) == [
        "10:30 bob  <b>bold</b> &amp; <ansired>no</ansired> ␛[31mred"
    ]


def test_an_endless_name_is_truncated() -> None:
    [line] = shown(Said(client=2, name="b" * 1000, text="Hello"))
    assert line == f"10:30 {'b' * 39}…  Hello"


def test_a_tab_has_a_fixed_width() -> None:
    assert shown(Said(client=2, name="bob", text="a\tb")) == ["10:30 bob  a   b"]
