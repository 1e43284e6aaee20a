"""Times as they are formatted, against the standard library's own."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multichat.protocol.timestamps import TimeFormatter

pytestmark = pytest.mark.unit

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEXT_CENTURY = 2**32

FORM = "%Y-%m-%dT%H:%M:%S"


def rfc_3339() -> TimeFormatter:
    return TimeFormatter(time.gmtime, FORM, "Z")


def formatted_by_datetime(time_: datetime) -> str:
    return f"{time_.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


# In steps of a 1,024th, which a float holds exactly, so that nothing depends on rounding.
exact_seconds = st.integers(0, NEXT_CENTURY * 1024).map(lambda n: n / 1024)


@given(exact_seconds)
@example(0.0)
@example(1736937045.0)
@example(951782400.0)  # a leap day
@example(1e9 - 1 / 1024)
def test_times_are_formatted_in_utc_truncated_to_the_millisecond(seconds: float) -> None:
    expected = formatted_by_datetime(EPOCH + timedelta(seconds=seconds))
    assert rfc_3339().format(seconds) == expected


@given(st.floats(0, NEXT_CENTURY))
def test_formatted_times_are_exact_to_a_millisecond(seconds: float) -> None:
    formatted = datetime.fromisoformat(rfc_3339().format(seconds))
    assert abs(formatted - EPOCH - timedelta(seconds=seconds)) <= timedelta(milliseconds=1)


def test_the_example_of_the_protocol() -> None:
    assert rfc_3339().format(1736937045.123456) == "2025-01-15T10:30:45.123Z"


@given(st.lists(st.one_of(exact_seconds, st.integers(0, 3000).map(lambda n: n / 1024)), min_size=1))
@example([0.0, 1.0, 0.0])
@example([1.5, 0.5, 1.5, 1.0, 1.0])
def test_formatting_does_not_depend_on_earlier_times(times: list[float]) -> None:
    formatter = rfc_3339()
    assert [formatter.format(t) for t in times] == [rfc_3339().format(t) for t in times]


def test_each_second_is_converted_once_and_each_millisecond_formatted_once() -> None:
    asked: list[float] = []

    def convert(seconds: float) -> time.struct_time:
        asked.append(seconds)
        return time.gmtime(seconds)

    formatter = TimeFormatter(convert, FORM)
    first = formatter.format(5.25)
    assert formatter.format(5.2501) is first
    assert formatter.format(5.75) == "1970-01-01T00:00:05.750"
    assert asked == [5]
    formatter.format(6.75)
    assert asked == [5, 6]


def in_zone(hours: float) -> Callable[[float], time.struct_time]:
    zone = timezone(timedelta(hours=hours))
    return lambda seconds: datetime.fromtimestamp(seconds, zone).timetuple()


@given(exact_seconds, st.sampled_from([-9.5, 0, 5.75, 14]))
def test_two_formatters_keep_their_time_zones(seconds: float, hours: float) -> None:
    here, there = TimeFormatter(in_zone(0), FORM), TimeFormatter(in_zone(hours), FORM)
    difference = datetime.fromisoformat(there.format(seconds)) - datetime.fromisoformat(
        here.format(seconds)
    )
    assert difference == timedelta(hours=hours)


@pytest.mark.parametrize(
    ("form", "end", "formatted"),
    [
        ("%Y-%m-%d %H:%M:%S", "", "2025-01-15 10:30:45.007"),
        ("%H:%M:%S", " UTC", "10:30:45.007 UTC"),
    ],
)
def test_the_format_is_configurable(form: str, end: str, formatted: str) -> None:
    assert TimeFormatter(time.gmtime, form, end).format(1736937045.0078125) == formatted


@pytest.mark.parametrize(
    ("seconds", "formatted"),
    [(-1 / 1024, "1969-12-31T23:59:59.999Z"), (-1.0, "1969-12-31T23:59:59.000Z")],
)
def test_times_before_1970_are_formatted(seconds: float, formatted: str) -> None:
    assert rfc_3339().format(seconds) == formatted
