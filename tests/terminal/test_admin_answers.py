"""How the answers to the operator's commands are shown, at the console and by `ctl`."""

import sys
from types import FrameType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.net.durations import BOUNDS, Durations
from multichat.server.statistics import ServerStatistics
from multichat.terminal.admin_answers import format_answer
from multichat.terminal.columns import columns_of

pytestmark = pytest.mark.unit

BUSY = ServerStatistics(
    clients=1234,
    rooms=56,
    clients_ever=123_456,
    refused=77,
    messages=123_456_789,
    deliveries=12_345_678_901,
    skipped=2,
    too_slow=5,
    waiting_bytes=5 << 20,
    missed=10,
    lagging=1,
    messages_per_second=7.25,
    deliveries_per_second=123_456.7,
    disconnects={"quit": 10, "kicked": 2, "lost": 333, "idle": 0, "too-slow": 5, "full": 12},
    refusals={"banned": 70, "tls": 7, "full": 0},
    loop_lag=Durations((0, 0, 0, 1000, 20, *(0,) * 7), 2.0),
    longest_loop_lag=0.0123,
    turn_waits=Durations((5,) * (len(BOUNDS) + 1), 120.0),
    journal_writes=Durations((0, 0, 100, *(0,) * 9), 0.05),
)


def test_the_statistics_of_a_busy_server_fit_a_narrow_terminal() -> None:
    assert format_answer("/stats", (), BUSY, columns=60) == [
        "clients      1,234 now, 123,456 ever",
        "rooms        56",
        "messages     7.2/s, 123,456,789 ever",
        "deliveries   123,457/s, 12,345,678,901 ever",
        "send queues  5 MiB waiting",
        "lagging      1 client",
        "missed       12 messages",
        "loop lag     12.3 ms at most in the last 10 s, mean 1.96 ms",
        "turn waits   60, mean 2 s, 99 % in more than 10 s",
        "journal      100, mean 0.5 ms, 99 % in 1 ms",
        "left         362: quit 10, kicked 2, lost 333, too-slow 5,",
        "             full 12",
        "refused      77: banned 70, tls 7",
    ]


def test_an_answer_looks_the_same_after_json() -> None:
    through_json = msgspec.json.decode(msgspec.json.encode(BUSY))
    for columns in (60, None):
        direct = format_answer("/stats", (), BUSY, columns=columns)
        assert format_answer("/stats", (), through_json, columns=columns) == direct


def test_statistics_of_a_server_of_another_version_are_shown_as_far_as_they_are_known() -> None:
    lines = format_answer("/stats", (), {"clients": 3, "new": [1]}, columns=60)
    assert lines[0] == "clients      3 now, 0 ever"


@pytest.mark.parametrize("command", ["/who", "/rooms", "/stats"])
@pytest.mark.parametrize("result", [[7], [{}], 7, [[]], "x", {"clients": "x"}])
def test_a_result_of_another_form_is_an_error_that_its_caller_can_show(
    command: str, result: object
) -> None:
    with pytest.raises(msgspec.ValidationError):
        format_answer(command, (), result, columns=60)


COUNTS = st.dictionaries(st.sampled_from(["quit", "too-slow", "protocol-error"]), st.integers(0))


@given(COUNTS, st.integers(40, 200))
def test_lines_of_statistics_fit_where_their_parts_do(counts: dict[str, int], columns: int) -> None:
    shown = format_answer("/stats", (), {"disconnects": counts}, columns=columns)
    longest = max(
        (len(f"{sum(counts.values()):,}: {k} {v:,},") for k, v in counts.items()), default=0
    )
    if longest < columns - 13:
        assert max(map(len, shown)) <= max(columns, 55)
    joined = " ".join(line.strip() for line in shown)
    for name, count in counts.items():
        assert not count or f"{name} {count:,}" in joined


NAMES = st.text(st.sampled_from("ab é漢😀\u0301"), min_size=1, max_size=40)


@given(st.lists(st.tuples(NAMES, st.lists(NAMES, max_size=32)), max_size=5), st.integers(40, 100))
def test_a_table_fits_whatever_clients_call_themselves_and_their_rooms(
    clients: list[tuple[str, list[str]]], columns: int
) -> None:
    result = [
        {"client": number, "name": name, "rooms": rooms}
        for number, (name, rooms) in enumerate(clients)
    ]
    lines = format_answer("/who", (), result, columns=columns)
    assert len({columns_of(line) for line in lines}) <= 1
    assert not lines or columns_of(lines[0]) <= columns
    for line, (name, rooms) in zip(lines[1:], clients, strict=False):
        cut = "…" in line
        assert cut or (name.strip() in line and ", ".join(rooms).strip() in line)


@pytest.mark.parametrize("room", ["r" * 61, "漢" * 61, "e" + "\u0301" * 60])
def test_text_that_a_table_does_not_show_takes_no_time(room: str) -> None:
    """Counts calls, not seconds: clients in many rooms with long names must not block a console."""

    def calls(rooms: int) -> int:
        count = 0

        def called(frame: FrameType, event: str, _: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        names = [f"{room}{number:03}" for number in range(rooms)]
        result = [{"client": 1, "name": "bob", "rooms": names}] * 10
        sys.setprofile(called)
        try:
            format_answer("/who", (), result, columns=80)
        finally:
            sys.setprofile(None)
        return count

    assert calls(320) <= 2 * calls(32)
