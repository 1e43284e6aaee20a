"""The pictures of the benchmark report: true to the numbers, and fit to be seen."""

import re
import statistics
from collections.abc import Sequence
from itertools import chain, combinations, pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pictures import Bar, Group, Range, RangeGroup, bars, ranges

SVG = "{http://www.w3.org/2000/svg}"
FONTS = {"title": 17, "heading": 13, "small": 11}

GROUPS = [
    Group(
        "10 receivers",
        [
            Bar("multichat", [30e6, 31e6, 33e6], ours=True),
            Bar("redis", [5.4e6]),
            Bar("ncat --chat", [0.26e6, 0.28e6]),
            Bar("limit: 64 KiB writes", [60e6], limit=True),
        ],
    ),
    Group("1,000 receivers", [Bar("multichat", [7.9e6], ours=True), Bar("threads", [])]),
]
RANGE_GROUPS = [
    RangeGroup(
        "100 receivers",
        [
            Range("multichat", [0.31, 1.2, 3.0, 8.0], ours=True),
            Range("redis", [0.4, 2.0]),
            Range("limit: a bare pipe", [0.02, 0.03, 0.2], limit=True),
            Range("threads", []),
        ],
    )
]


def draw_bars(groups: Sequence[Group] = GROUPS, *, log: bool = False) -> str:
    return bars("Throughput", "Higher is better.", groups, unit="messages/s", log=log)


def draw_ranges(groups: Sequence[RangeGroup] = RANGE_GROUPS) -> str:
    return ranges("Latency", "Lower is better.", groups, unit="ms")


PICTURES = pytest.mark.parametrize(
    "svg", [draw_bars(), draw_bars(log=True), draw_ranges()], ids=["bars", "log", "ranges"]
)


def without_legend(svg: str) -> ET.Element:
    root = ET.fromstring(svg)
    root.remove(next(g for g in root.iter(f"{SVG}g") if g.get("class") == "legend"))
    return root


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in without_legend(svg).iter(f"{SVG}text")]


def lengths(svg: str) -> list[float]:
    rects = without_legend(svg).iter(f"{SVG}rect")
    return [float(r.attrib["width"]) for r in rects if r.attrib["class"].startswith("bar ")]


Box = tuple[float, float, float, float]


def box(element: ET.Element) -> Box:
    """Where a shape or a text is: left, top, right, bottom; a text is as wide as in a wide font."""
    # "nan", "inf" and "1e+300" are left out: then the number is missed below.
    numbers = {k: float(v) for k, v in element.items() if re.fullmatch(r"-?[\d.]+", v)}
    match element.tag.removeprefix(SVG):
        case "rect":
            x, y = numbers.get("x", 0.0), numbers.get("y", 0.0)
            return x, y, x + numbers["width"], y + numbers["height"]
        case "circle":
            x, y, r = numbers["cx"], numbers["cy"], numbers["r"]
            return x - r, y - r, x + r, y + r
        case "line":
            return numbers["x1"], numbers["y1"], numbers["x2"], numbers["y2"]
        case "path":
            whisker = r"M([\d.]+) ([\d.]+)v6M\1 [\d.]+H([\d.]+)M\3 \2v6"
            left, top, right = map(float, re.findall(whisker, element.attrib["d"])[0])
            return left, top, right, top + 6
        case "text":
            font = FONTS.get(element.attrib["class"].split()[0], 12)
            width = numbers.get("textLength", len(element.text or "") * font * 0.6)
            part = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.attrib["text-anchor"]]
            left = numbers["x"] - part * width
            return left, numbers["y"] - 0.8 * font, left + width, numbers["y"] + 0.2 * font
        case other:
            raise AssertionError(other)


def boxes(svg: str) -> dict[str, list[Box]]:
    root = ET.fromstring(svg)
    root.remove(next(root.iter(f"{SVG}defs")))
    return {
        tag: [box(element) for element in root.iter(SVG + tag)]
        for tag in ("rect", "circle", "line", "path", "text")
    }


def assert_all_inside(svg: str) -> None:
    width, height = map(float, ET.fromstring(svg).attrib["viewBox"].split()[2:])
    for left, top, right, bottom in chain.from_iterable(boxes(svg).values()):
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height


@PICTURES
def test_a_picture_says_what_it_shows_to_those_who_cannot_see_it(svg: str) -> None:
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root[0].tag == f"{SVG}title"
    assert root[1].tag == f"{SVG}desc"
    assert root.get("aria-labelledby") == f"{root[0].get('id')} {root[1].get('id')}"


def test_the_description_has_the_medians_in_words() -> None:
    desc = ET.fromstring(draw_bars())[1].text
    assert desc == (
        "Higher is better.\n"
        "10 receivers: multichat 31 million messages/s; redis 5.4 million messages/s; "
        "ncat --chat 270 thousand messages/s; limit: 64 KiB writes 60 million messages/s.\n"
        "1,000 receivers: multichat 7.9 million messages/s; threads no result."
    )
    assert ET.fromstring(draw_ranges())[1].text == (
        "Lower is better.\n"
        "100 receivers: multichat median 0.31, p99 1.2 ms; redis median 0.40, p99 2.0 ms; "
        "limit: a bare pipe median 0.020, p99 0.030 ms; threads no result."
    )


def test_every_label_and_every_value_is_written() -> None:
    written = texts(draw_bars())
    for group in GROUPS:
        assert {group.label, *(bar.label for bar in group.bars)} <= set(written)
    assert {"Throughput", "Higher is better.", "messages/s"} <= set(written)
    assert {"31 M", "5.4 M", "270 k", "60 M", "7.9 M"} <= set(written)
    written = texts(draw_ranges())
    assert {row.label for row in RANGE_GROUPS[0].rows} <= set(written)
    assert {"100 receivers", "p50 / p99, ms", "0.31 / 1.2", "0.020 / 0.030"} <= set(written)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (0.0, "0"),
        (0.00042, "0.00042"),
        (0.1, "0.10"),
        (0.42, "0.42"),
        (0.999, "1.0"),
        (7.9, "7.9"),
        (9.96, "10"),
        (274, "270"),
        (999.6, "1.0 k"),
        (999_600, "1.0 M"),
        (31_499_999, "31 M"),
        (2e9, "2.0 G"),
        (3e-5, "3e-05"),
        (1.7e308, "1.7e+308"),
    ],
)
def test_a_value_is_spelled_with_two_digits(value: float, spelled: str) -> None:
    assert spelled in texts(draw_bars([Group("", [Bar("x", [value]), Bar("y", [1.0])])]))


def test_a_linear_bar_is_as_long_as_its_median() -> None:
    medians = [statistics.median(b.values) for g in GROUPS for b in g.bars if b.values]
    drawn = lengths(draw_bars())
    assert len(drawn) == len(medians)
    for length, median in zip(drawn, medians, strict=True):
        assert length == pytest.approx(drawn[3] * median / 60e6, abs=0.02)


@given(st.lists(st.floats(1e-3, 1e12), min_size=2))
def test_a_logarithmic_axis_keeps_the_order(values: list[float]) -> None:
    drawn = lengths(draw_bars([Group("g", [Bar("x", [value]) for value in values])], log=True))
    in_order = [length for _, length in sorted(zip(values, drawn, strict=True))]
    assert all(shorter <= longer for shorter, longer in pairwise(in_order))
    assert min(drawn) > 0


def test_the_axes_have_few_and_round_ticks() -> None:
    def ticks(svg: str) -> list[str]:
        small = [e for e in without_legend(svg) if e.get("text-anchor") == "middle"]
        return [element.text or "" for element in small]

    assert ticks(draw_bars()) == ["0", "20 M", "40 M", "60 M"] * 2
    assert ticks(draw_bars(log=True)) == ["100 k", "1 M", "10 M"] * 2
    assert ticks(draw_ranges()) == ["0.1", "1"]
    near = [RangeGroup("g", [Range("x", [0.3, 0.9])])]
    assert ticks(draw_ranges(near)) == ["0.1", "0.2", "0.5"]


def test_the_panels_share_one_axis() -> None:
    root = without_legend(draw_bars())
    grid = [e.attrib["x1"] for e in root.iter(f"{SVG}line") if e.get("class") == "grid"]
    assert grid[: len(grid) // 2] == grid[len(grid) // 2 :]


def test_a_range_runs_from_point_to_point_and_thins() -> None:
    root = without_legend(draw_ranges())
    ours = [e.attrib for e in root.iter(f"{SVG}line") if e.get("class") == "ours"]
    assert [line["stroke-width"] for line in ours] == ["5", "2.5", "1"]
    assert all(one["x2"] == following["x1"] for one, following in pairwise(ours))
    dots = [e.attrib["cx"] for e in root.iter(f"{SVG}circle") if e.get("class") == "ours"]
    assert dots == [ours[0]["x1"], ours[0]["x2"]]


def test_what_could_not_be_done_is_a_dash_and_no_bar() -> None:
    nothing = Group("g", [Bar("threads", [])])
    for log in (False, True):
        svg = draw_bars([nothing], log=log)
        assert lengths(svg) == []
        assert texts(svg).count("–") == 1
    svg = draw_ranges([RangeGroup("g", [Range("threads", [])])])
    assert texts(svg).count("–") == 1
    assert not list(without_legend(svg).iter(f"{SVG}circle"))


def test_a_bar_of_nothing_has_no_length() -> None:
    assert lengths(draw_bars([Group("g", [Bar("x", [0.0]), Bar("y", [0, 0])])])) == [0, 0]


def test_what_comes_from_outside_is_escaped() -> None:
    nasty = "<b>&amp;\"'</b>\x00\ud800"
    shown = nasty.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    for svg in (
        bars(nasty, nasty, [Group(nasty, [Bar(nasty, [1.0])])], unit=nasty),
        ranges(nasty, nasty, [RangeGroup(nasty, [Range(nasty, [1, 2])])], unit=nasty),
    ):
        assert "<b>" not in svg
        assert ET.fromstring(svg)[0].text == shown
        assert texts(svg).count(shown) >= 4


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@PICTURES
def test_both_colour_schemes_can_be_read(svg: str) -> None:
    style = next(ET.fromstring(svg).iter(f"{SVG}style")).text or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for scheme, page in ((light, "#ffffff"), (dark, "#0d1117")):
        colours = dict(re.findall(r"--(\w+): (#\w{6});", scheme))
        assert colours["page"] == page
        for name, enough in (("text", 4.5), ("quiet", 4.5), ("ours", 4.5), ("other", 3)):
            low, high = sorted((luminance(colours[name]), luminance(page)))
            assert (high + 0.05) / (low + 0.05) >= enough, name


def test_the_same_input_gives_the_same_bytes() -> None:
    assert draw_bars() == draw_bars()
    assert draw_ranges() == draw_ranges()


@PICTURES
def test_nothing_is_fetched_or_run(svg: str) -> None:
    assert "script" not in svg
    assert "href" not in svg
    assert re.findall(r"\w+://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]


def test_a_full_picture_has_room_for_every_text() -> None:
    label = "limit: one message a write"
    row = [Bar(label, [0.1e6 * 1.8**i, 0.11e6 * 1.8**i]) for i in range(14)]
    range_row = [Range(label, [1.1**i * k for k in (0.011, 0.12, 13, 140)]) for i in range(14)]
    for svg in (
        draw_bars([Group("ten senders, 100 receivers", row)] * 4),
        draw_bars([Group("ten senders, 100 receivers", row)] * 4, log=True),
        draw_ranges([RangeGroup("ten senders, 100 receivers", range_row)] * 4),
    ):
        assert "textLength" not in svg  # nothing had to be squeezed
        assert_all_inside(svg)
        for one, other in combinations(boxes(svg)["text"], 2):
            beside = one[2] <= other[0] or other[2] <= one[0]
            assert beside or one[3] <= other[1] or other[3] <= one[1]


def test_what_is_too_long_is_squeezed_or_wrapped_but_never_cut() -> None:
    long = "a server of a very long name, which goes on " * 4
    assert_all_inside(bars(long, long, [Group(long, [Bar(long, [1e300, 1])])], unit=long))
    assert_all_inside(ranges(long, long, [RangeGroup(long, [Range(long, [1, 2])])], unit=long))


POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
LABEL = st.text(max_size=24)


@given(
    st.lists(
        st.builds(
            Group,
            LABEL,
            st.lists(st.builds(Bar, LABEL, st.lists(POSITIVE, max_size=4)), max_size=4),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_any_values_give_bars_inside_of_the_picture(groups: list[Group], log: bool) -> None:
    assert_all_inside(draw_bars(groups, log=log))


POINTS = st.lists(POSITIVE, max_size=4).filter(lambda points: len(points) != 1).map(sorted)


@given(
    st.lists(
        st.builds(RangeGroup, LABEL, st.lists(st.builds(Range, LABEL, POINTS), max_size=4)),
        max_size=4,
    )
)
def test_any_values_give_ranges_inside_of_the_picture(groups: list[RangeGroup]) -> None:
    assert_all_inside(draw_ranges(groups))


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_what_has_no_place_on_an_axis_is_refused(value: float) -> None:
    groups = [Group("g", [Bar("x", [1.0, value])])]
    with pytest.raises(ValueError, match="a linear axis takes finite values from zero on"):
        draw_bars(groups)
    with pytest.raises(ValueError, match="a logarithmic axis takes finite values above zero"):
        draw_bars(groups, log=True)


def test_zero_has_no_place_on_a_logarithmic_axis() -> None:
    with pytest.raises(ValueError, match="a logarithmic axis takes finite values above zero"):
        draw_bars([Group("g", [Bar("x", [0.0])])], log=True)
    with pytest.raises(ValueError, match="a logarithmic axis takes finite values above zero"):
        draw_ranges([RangeGroup("g", [Range("x", [0.0, 1.0])])])


@pytest.mark.parametrize("points", [[1.0], [2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_a_range_is_two_to_four_ascending_points(points: list[float]) -> None:
    with pytest.raises(ValueError, match="a range is two to four ascending points, not "):
        draw_ranges([RangeGroup("g", [Range("x", points)])])
