"""The pictures of a benchmark report, as SVG text.  Pure: no I/O, no clock, no dice.

Input is drawn in order, and identical input gives identical bytes, so a new report differs only
where a number does.  All panels of a picture share one axis, so their bars can be compared.  A
picture contains its colours for light and dark and its own background, because the browser's scheme
need not be that of the site.
"""

import html
import re
import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import ceil, floor, isfinite, log10

__all__ = ["Bar", "Group", "Range", "RangeGroup", "bars", "ranges"]

_WIDTH = 760
_MARGIN = 16
_ROW = 20
_BAR = 12
_LABEL = 190  # 26 letters of 12 pixels, also in a wide font such as DejaVu Sans
_LEFT = _MARGIN + _LABEL + 8  # where the plot begins

# The average width of a letter relative to the font size, in the widest of the usual fonts.
_LETTER = 0.6

# Below this, powers of ten are outside the range of a float.
_TINY = 1e-300

_SIZES = ((1e9, " G", " billion"), (1e6, " M", " million"), (1e3, " k", " thousand"))

# Text has a contrast of at least 4.5 to the background, shapes of at least 3 (WCAG 2.2, 1.4.3 and
# 1.4.11); the grid has less, because it need not be read.  The backgrounds are GitHub's.
_STYLE = """\
<style>
svg { --page: #ffffff; --text: #1f2328; --quiet: #59636e; --grid: #dde2e7;
  --ours: #0969da; --other: #87919f; --limit: #818b98; }
@media (prefers-color-scheme: dark) {
  svg { --page: #0d1117; --text: #e6edf3; --quiet: #9198a1; --grid: #2a313a;
    --ours: #4493f8; --other: #677383; --limit: #768390; }
}
text { font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums; fill: var(--text); }
text.title { font-size: 17px; font-weight: 600; }
text.heading { font-size: 13px; font-weight: 600; }
text.small { font-size: 11px; }
text.quiet, text.limit { fill: var(--quiet); }
text.ours { fill: var(--ours); font-weight: 600; }
.ours { --paint: var(--ours); }
.other { --paint: var(--other); }
.limit { --paint: var(--limit); }
rect, circle { fill: var(--paint); }
line { stroke: var(--paint); }
circle.limit { fill: var(--page); stroke: var(--paint); stroke-width: 1.5; }
rect.limit { fill: url(#hatch); stroke: var(--limit); }
rect.page { fill: var(--page); }
line.grid { stroke: var(--grid); }
path.runs { fill: none; stroke: var(--text); stroke-width: 1.25; }
</style>
<defs>
<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" \
patternTransform="rotate(45)"><line y2="5" stroke-width="2" class="limit"/></pattern>
</defs>"""


@dataclass(frozen=True)
class Bar:
    """One server under one workload: *values* are its runs; empty if it cannot do the workload.

    *ours* is drawn in the accent colour; a *limit*, which is not a server, is hatched.
    """

    label: str
    values: Sequence[float]
    ours: bool = False
    limit: bool = False


@dataclass(frozen=True)
class Group:
    """One panel of bars."""

    label: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Range:
    """The distribution of one server's latencies: *points* are p50, p99, p99.9 and the maximum.

    They ascend; the last one or two may be omitted.  Empty if it cannot do the workload.  *ours* is
    drawn in the accent colour; a *limit* has hollow dots.
    """

    label: str
    points: Sequence[float]
    ours: bool = False
    limit: bool = False


@dataclass(frozen=True)
class RangeGroup:
    """One panel of ranges."""

    label: str
    rows: Sequence[Range]


def bars(
    title: str, subtitle: str, groups: Sequence[Group], *, unit: str, log: bool = False
) -> str:
    """Draw a bar for each server: the median of its runs, with their range.

    The axis begins at zero or, with *log*, at a power of ten below the smallest run; then the ends
    of the bars can be compared, but not their lengths.

    Raises `ValueError` if a run is not finite, is negative, or is zero on a logarithmic axis.
    """
    runs = [value for group in groups for bar in group.bars for value in bar.values]
    right = _WIDTH - _MARGIN - 64
    axis = _log_axis(runs, right=right, base=True) if log else _linear_axis(runs, right=right)

    def drawn(bar: Bar) -> _Row:
        if not bar.values:
            return _Row(bar.label, _kind(bar))
        median = _median(bar.values)
        words = f"{_short(median, words=True)} {unit}"
        return _Row(bar.label, _kind(bar), _short(median), words, partial(_draw_bar, axis.x, bar))

    def legend(y: float) -> list[str]:
        shapes = [
            *_draw_bar(lambda part: _LEFT + 60 * part, Bar("", [0.75, 0.85, 0.95]), y),
            _text(_LEFT + 70, y + 4, "median; lowest and highest run", "small quiet"),
        ]
        if any(bar.limit for group in groups for bar in group.bars):
            shapes += [
                _rect(_LEFT + 270, y - _BAR / 2, 54, _BAR, "bar limit"),
                _text(_LEFT + 334, y + 4, "a limit, not a server", "small quiet"),
            ]
        return shapes

    panels = [_Panel(group.label, [drawn(bar) for bar in group.bars]) for group in groups]
    return _picture(title, subtitle, panels, axis, unit, legend)


def ranges(title: str, subtitle: str, groups: Sequence[RangeGroup], *, unit: str) -> str:
    """Draw a line for each server on a logarithmic axis, which thins from p50 to the maximum.

    Raises `ValueError` if a row has one point or more than four, if they do not ascend, or if one
    is not finite or not above zero.
    """
    rows = [row for group in groups for row in group.rows]
    for row in rows:
        if len(row.points) not in (0, 2, 3, 4) or list(row.points) != sorted(row.points):
            raise ValueError(f"a range is two to four ascending points, not {row.points!r}")
    points = [point for row in rows for point in row.points]
    axis = _log_axis(points, right=_WIDTH - _MARGIN - 104, base=False)

    def drawn(item: Range) -> _Row:
        if not item.points:
            return _Row(item.label, _kind(item))
        p50, p99 = item.points[:2]
        words = f"median {_short(p50, words=True)}, p99 {_short(p99, words=True)} {unit}"
        value = f"{_short(p50)} / {_short(p99)}"
        return _Row(item.label, _kind(item), value, words, partial(_draw_range, axis.x, item))

    def legend(y: float) -> list[str]:
        names = {"p50": 10.0, "p99": 90.0, "p99.9": 150.0, "longest": 210.0}
        shapes = _draw_range(lambda part: _LEFT + part, Range("", list(names.values())), y - 4)
        for name, part in names.items():
            shapes.append(_text(_LEFT + part, y + 12, name, "small quiet", anchor="middle"))
        if any(row.limit for row in rows):
            sample = Range("", [280, 320], limit=True)
            shapes += [
                *_draw_range(lambda part: _LEFT + part, sample, y - 4),
                _text(_LEFT + 334, y, "a limit, not a server", "small quiet"),
            ]
        return shapes

    panels = [_Panel(group.label, [drawn(item) for item in group.rows]) for group in groups]
    return _picture(title, subtitle, panels, axis, f"p50 / p99, {unit}", legend)


@dataclass(frozen=True)
class _Row:
    """A label, a value and its shapes around a given y; the defaults are for missing results."""

    label: str
    kind: str
    value: str = "–"
    words: str = "no result"
    draw: Callable[[float], list[str]] = lambda _y: []


@dataclass(frozen=True)
class _Panel:
    label: str
    rows: Sequence[_Row]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Maps values to pixels; *low* and *high* are powers of ten on a logarithmic axis."""

    low: float
    high: float
    right: float
    ticks: Sequence[float]
    log: bool

    def x(self, value: float) -> float:
        place = log10(max(value, _TINY)) if self.log else value
        part = (place - self.low) / (self.high - self.low)
        return _LEFT + (self.right - _LEFT) * min(max(part, 0.0), 1.0)


def _linear_axis(values: Sequence[float], *, right: float) -> _Axis:
    if not all(isfinite(value) and value >= 0 for value in values):
        raise ValueError("a linear axis takes finite values from zero on")
    high = max(*values, _TINY) if any(values) else 1.0
    power = 10.0 ** floor(log10(high / 5))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= high / 5), 10 * power)
    ticks = [i * step for i in range(floor(high / step) + 1)]
    return _Axis(low=0.0, high=high, right=right, ticks=ticks, log=False)


def _log_axis(values: Sequence[float], *, right: float, base: bool) -> _Axis:
    """Return an axis from the smallest value or, for bars with a *base*, a power of ten below."""
    if not all(isfinite(value) and value > 0 for value in values):
        raise ValueError("a logarithmic axis takes finite values above zero")
    high = log10(max(max(values, default=1.0), _TINY))
    low = log10(max(min(values, default=1.0), _TINY))
    # The smallest bar is visible, no dot touches its label, and a decade has ticks.
    low = min(low - 0.1, high - 1)
    low = floor(low) if base else low
    # About seven labels fit side by side; for less than two decades, powers of ten are too few.
    powers = range(floor(low), floor(high) + 1, ceil((high - low) / 7))
    between = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [m * 10.0**i for i in powers for m in between if low <= log10(m) + i <= high]
    return _Axis(low=low, high=high, right=right, ticks=ticks, log=True)


def _draw_bar(x: Callable[[float], float], bar: Bar, y: float) -> list[str]:
    start, end = x(0.0), x(_median(bar.values))
    shapes = [_rect(start, y - _BAR / 2, end - start, _BAR, f"bar {_kind(bar)}")]
    if len(bar.values) > 1:
        low, high = _n(x(min(bar.values))), _n(x(max(bar.values)))
        whisker = f"M{low} {_n(y - 3)}v6M{low} {_n(y)}H{high}M{high} {_n(y - 3)}v6"
        shapes.append(f'<path d="{whisker}" class="runs"/>')
    return shapes


def _draw_range(x: Callable[[float], float], item: Range, y: float) -> list[str]:
    kind = _kind(item)
    shapes = [
        f'<line x1="{_n(x(start))}" y1="{_n(y)}" x2="{_n(x(end))}" y2="{_n(y)}"'
        f' stroke-width="{width}" class="{kind}"/>'
        for width, (start, end) in zip((5, 2.5, 1), pairwise(item.points), strict=False)
    ]
    dots = item.points[:2]
    return shapes + [f'<circle cx="{_n(x(v))}" cy="{_n(y)}" r="4.5" class="{kind}"/>' for v in dots]


def _picture(
    title: str,
    subtitle: str,
    panels: Sequence[_Panel],
    axis: _Axis,
    unit: str,
    legend: Callable[[float], list[str]],
) -> str:
    y = 12.0
    shapes: list[str] = []
    for text, css, font in ((title, "title", 17), (subtitle, "quiet", 12)):
        for line in textwrap.wrap(text, floor((_WIDTH - 2 * _MARGIN) / (font * _LETTER))):
            y += font + 5
            shapes.append(_text(_MARGIN, y, line, css))
        y += 4
    y += 22
    shapes += ['<g class="legend">', *legend(y), "</g>"]
    y += 10
    spoken = subtitle
    room = _WIDTH - _MARGIN - axis.right - 8  # for the values
    for panel in panels:
        y += 30
        shapes.append(_text(_MARGIN, y, panel.label, "heading", room=380))
        shapes.append(_text(_WIDTH - _MARGIN, y, unit, "small quiet", anchor="end", room=320))
        top, bottom = y + 8, y + 12 + _ROW * len(panel.rows)
        for tick in axis.ticks:
            x = axis.x(tick)
            ends = f'x1="{_n(x)}" y1="{_n(top)}" x2="{_n(x)}" y2="{_n(bottom)}"'
            label = _short(tick, exact=True)
            shapes += [
                f'<line {ends} class="grid"/>',
                _text(x, bottom + 14, label, "small quiet", anchor="middle"),
            ]
        y += 10
        for row in panel.rows:
            middle = y + _ROW / 2
            shapes += [
                _text(_LEFT - 8, middle + 4, row.label, row.kind, anchor="end", room=_LABEL),
                *row.draw(middle),
                _text(_WIDTH - _MARGIN, middle + 4, row.value, row.kind, anchor="end", room=room),
            ]
            y += _ROW
        y = bottom + 18
        results = "; ".join(f"{row.label} {row.words}" for row in panel.rows)
        spoken += f"\n{panel.label}: {results}."
    height = _n(y + 10)
    size = f'width="{_WIDTH}" height="{height}"'
    top_left = f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="title desc"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {top_left}>',
        f'<title id="title">{_escaped(title)}</title>',
        f'<desc id="desc">{_escaped(spoken)}</desc>',
        _STYLE,
        f'<rect {size} rx="6" class="page"/>',
        *shapes,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(
    x: float, y: float, text: str, css: str, *, anchor: str = "start", room: float | None = None
) -> str:
    """Return a text element, condensed if it does not fit in *room*."""
    fit = ""
    if room is not None and len(text) * 12 * _LETTER > room:
        fit = f' textLength="{_n(room)}" lengthAdjust="spacingAndGlyphs"'
    place = f'x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"'
    return f'<text {place}{fit} class="{css}">{_escaped(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, css: str) -> str:
    size = f'width="{_n(width)}" height="{_n(height)}"'
    return f'<rect x="{_n(x)}" y="{_n(y)}" {size} class="{css}"/>'


def _kind(item: Bar | Range) -> str:
    return "ours" if item.ours else "limit" if item.limit else "other"


def _median(values: Sequence[float]) -> float:
    # The sum of the two middle values may overflow a float.
    return min(statistics.median(values), max(values))


def _short(value: float, *, words: bool = False, exact: bool = False) -> str:
    """Format *value* like 31 M, 270 k, 7.9: two digits unless *exact*, "million" with *words*.

    Three digits before the decimal point are kept: 270 may have been 274.
    """
    if value and not 1e-4 <= value < 1e12:
        return f"{value:.2g}"
    if not exact:
        value = float(f"{value:.1e}")  # first, so that 999,600 is 1.0 M and not 1000 k
    size, letter, word = next((each for each in _SIZES if value >= each[0]), (1.0, "", ""))
    value /= size
    decimals = max(0, 1 - floor(log10(value))) if value else 0
    number = f"{value:g}" if exact else f"{value:.{decimals}f}"
    return number + (word if words else letter)


def _n(pixels: float) -> str:
    return f"{pixels:.2f}".rstrip("0").rstrip(".")


# Characters that XML 1.0 cannot contain, even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _escaped(text: str) -> str:
    return html.escape(_NOT_XML.sub("\ufffd", text))
