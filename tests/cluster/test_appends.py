"""Calls that append: their order, what is repeated, and what is bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.cluster.appends import AppendLimits, Appends, AppendsCall
from multichat.cluster.calls import Block

pytestmark = pytest.mark.unit


def block(size: int = 10) -> Block:
    return Block("lobby", 1, 1, 1, b"x" * size)


def appends(**limits: int) -> Appends[int]:
    made: Appends[int] = Appends(AppendLimits(**limits))
    made.begin("run")
    return made


def tags(call: AppendsCall[int] | None) -> list[int]:
    assert call is not None
    return [tag for _, tag in call.entries]


def test_blocks_that_are_appended_together_are_one_call() -> None:
    made = appends()
    for number in range(3):
        made.add(block(), number)
    call = made.next_call()
    assert call is not None
    assert (call.run, call.sequence, tags(call)) == ("run", 1, [0, 1, 2])
    assert made.next_call() is None


def test_a_call_is_bounded_by_blocks_and_bytes_but_has_at_least_one() -> None:
    made = appends(call_blocks=2, call_bytes=1000)
    for number, size in enumerate((10, 10, 10, 900, 5000)):
        made.add(block(size), number)
    assert [tags(made.next_call()) for _ in range(4)] == [[0, 1], [2], [3], [4]]


def test_so_many_calls_are_in_flight_and_no_more() -> None:
    made = appends(calls=2, call_blocks=1)
    for number in range(3):
        made.add(block(), number)
    first, second = made.next_call(), made.next_call()
    assert made.next_call() is None
    assert first is not None
    made.answered(first)
    assert tags(made.next_call()) == [2]
    assert second is not None


def test_a_reconnect_repeats_what_is_in_flight_before_anything_new() -> None:
    made = appends(call_blocks=1)
    for number in range(3):
        made.add(block(), number)
    calls = [made.next_call() for _ in range(3)]
    assert calls[1] is not None
    made.answered(calls[1])
    made.add(block(), 3)
    made.reconnected()
    assert [made.next_call(), made.next_call()] == [calls[0], calls[2]]
    new = made.next_call()
    assert new is not None
    assert (new.sequence, tags(new)) == (4, [3])


def test_a_call_that_could_not_be_sent_is_the_next_one() -> None:
    made = appends(call_blocks=1)
    made.add(block(), 0)
    made.add(block(), 1)
    call = made.next_call()
    assert call is not None
    made.not_sent(call)
    assert made.next_call() is call
    assert tags(made.next_call()) == [1]


def test_calls_of_a_former_run_are_repeated_as_they_were() -> None:
    made = appends()
    made.add(block(), 0)
    old = made.next_call()
    made.add(block(), 1)
    made.begin("another")
    made.reconnected()
    assert made.next_call(only_repeat=True) is old
    assert made.next_call(only_repeat=True) is None
    new = made.next_call()
    assert new is not None
    assert (new.run, new.sequence, tags(new)) == ("another", 1, [1])
    assert old is not None
    made.answered(old)
    made.reconnected()
    assert made.next_call() is new


def test_blocks_that_were_never_sent_can_be_taken_back() -> None:
    made = appends(call_blocks=1, calls=1)
    for number in range(3):
        made.add(block(), number)
    made.next_call()
    assert made.take_back() == [1, 2]
    assert made.give_up() == [0]
    assert len(made) == 0


def test_it_says_when_too_much_waits() -> None:
    made = appends(bytes=1000)
    states = [made.is_full]
    for number in range(2):
        made.add(block(400), number)
        states.append(made.is_full)
    made.next_call()
    assert [*states, made.is_full] == [False, False, True, False]


def test_more_calls_than_the_engine_keeps_answers_of_are_refused() -> None:
    with pytest.raises(ValueError, match="calls"):
        AppendLimits(calls=65)


@given(st.lists(st.sampled_from(["add", "send", "answer", "reconnect", "new run"])), st.data())
def test_every_block_is_in_one_call_in_order_until_it_is_answered(
    steps: list[str], data: st.DataObject
) -> None:
    made = appends(call_blocks=2, calls=3)
    added = runs = 0
    sent: dict[tuple[str, int], list[int]] = {}
    open_calls: list[AppendsCall[int]] = []
    for step in steps:
        match step:
            case "add":
                made.add(block(), added)
                added += 1
            case "send":
                if (call := made.next_call()) is not None:
                    place = call.run, call.sequence
                    assert sent.setdefault(place, tags(call)) == tags(call)
                    open_calls = [one for one in open_calls if one is not call] + [call]
                    assert len(open_calls) <= 3
            case "answer" if open_calls:
                made.answered(open_calls.pop(data.draw(st.integers(0, len(open_calls) - 1))))
            case "reconnect" | "new run":
                if step == "new run":
                    runs += 1
                    made.begin(f"run {runs}")
                made.reconnected()
    in_calls = [tag for call in sent.values() for tag in call]
    assert in_calls == list(range(len(in_calls)))
    assert len(made) == added - len(in_calls) + sum(len(one.entries) for one in open_calls)


def test_a_call_whose_fate_is_known_is_not_repeated() -> None:
    made = appends()
    made.add(block(), 0)
    call = made.next_call()
    assert call is not None
    made.reconnected()
    made.answered(call)
    assert made.next_call() is None
    assert not len(made)


def test_a_call_that_may_be_done_is_repeated_in_its_place() -> None:
    made = appends(call_blocks=1)
    for number in range(3):
        made.add(block(), number)
    first, second = made.next_call(), made.next_call()
    assert first is not None
    assert second is not None
    assert not made.may_be_done(first)
    made.reconnected()
    assert made.may_be_done(first)
    assert made.next_call() is first
    made.repeat(first)  # it was refused, before the second was sent again
    assert [made.next_call() for _ in range(2)] == [first, second]
    made.answered(second)
    made.repeat(first)
    assert made.next_call() is first
    made.answered(first)
    assert not made.may_be_done(first)
    assert tags(made.next_call()) == [2]
