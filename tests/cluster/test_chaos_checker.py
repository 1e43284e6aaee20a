"""The checker of the chaos notices each violation."""

import pytest

from .chaos.checker import Heard, Missed, Record, check_room
from .chaos.directs import Direct, Directs, Fate, check_directs

pytestmark = pytest.mark.unit


def heard(*numbers: int) -> list[Heard | Missed]:
    return [Heard(f"e-{number}", f"room alice {number}") for number in numbers]


def found(
    *bob_heard: Heard | Missed,
    history: tuple[int, ...] = (0, 1, 2),
    alice: Record | None = None,
    lossy: bool = False,
    retained: bool = False,
) -> list[str]:
    """Return what is found if alice has said three messages, which bob has heard like this."""
    texts = [f"room alice {number}" for number in range(3)]
    ids = {text: f"e-{number}" for number, text in enumerate(texts)}
    alice = alice or Record("alice", said=texts, accepted=ids)
    bob = Record("bob", heard=list(bob_heard))
    stored = [each for each in heard(*history) if isinstance(each, Heard)]
    return check_room("room", [alice, bob], stored, lossy=lossy, retained=retained)[0]


def test_a_faultless_run_has_no_violations() -> None:
    assert found(*heard(0, 1, 2)) == []


def test_a_message_that_was_told_as_missed_is_no_violation() -> None:
    assert found(*heard(0), Missed(1), *heard(2)) == []


@pytest.mark.parametrize(
    ("bob", "words"),
    [
        (heard(0, 2), "was not told 1 messages"),
        (heard(0, 1), "was not told 1 messages"),
        ([*heard(0), Missed(2), *heard(2)], "and of 2"),
        ([*heard(0, 1, 2), Missed(1)], "and of 1"),
        ([Missed(1), *heard(0, 2)], "and of 1"),
        (heard(0, 1, 1, 2), "heard twice"),
        (heard(1, 0, 2), "do not rise"),
        ([*heard(0, 1, 2), Heard("e-3", "room alice 3")], "heard what is not stored"),
        ([*heard(0, 1), Heard("f-2", "room alice 2")], "heard with another id"),
    ],
)
def test_what_a_member_heard_is_compared_with_the_history(
    bob: list[Heard | Missed], words: str
) -> None:
    assert any(words in each for each in found(*bob)), found(*bob)


def test_an_acknowledged_message_that_is_not_stored_is_lost() -> None:
    assert "acknowledged and lost" in found(*heard(0, 1), history=(0, 1))[0]
    assert found(*heard(0, 1), history=(0, 1), lossy=True) == []


def test_a_refused_message_that_is_stored_is_a_violation() -> None:
    alice = Record("alice", said=[f"room alice {number}" for number in range(3)])
    alice.refused = set(alice.said)
    assert any("refused and published" in each for each in found(*heard(0, 1, 2), alice=alice))


def test_a_message_without_an_answer_is_a_violation() -> None:
    alice = Record("alice", said=[f"room alice {number}" for number in range(3)])
    assert any("never answered" in each for each in found(*heard(0, 1, 2), alice=alice))


def test_the_order_of_a_sender_is_compared() -> None:
    alice = Record("alice", said=[f"room alice {number}" for number in (1, 0, 2)])
    alice.accepted = {f"room alice {number}": f"e-{number}" for number in range(3)}
    assert any("another order" in each for each in found(*heard(0, 1, 2), alice=alice))
    alice.late = {"room alice 1"}
    assert found(*heard(0, 1, 2), alice=alice) == []


def test_a_message_that_was_deleted_before_anybody_was_told_of_it_may_be_told_as_missed() -> None:
    alice = Record("alice", said=[f"room alice {number}" for number in range(3)])
    alice.unsure = set(alice.said)
    bob = *heard(0), Missed(1), *heard(2)
    assert found(*bob, history=(0, 2), alice=alice, retained=True) == []
    alice.unsure = {"room alice 0", "room alice 2"}
    alice.refused = {"room alice 1"}
    assert any("and of 1" in e for e in found(*bob, history=(0, 2), alice=alice, retained=True))
    alice.unsure, alice.refused = set(alice.said), set()
    assert any("and of 1" in e for e in found(*bob, history=(0, 2), alice=alice))


@pytest.mark.parametrize(
    ("repeated", "is_right"), [({0: 3}, True), ({0: 2}, True), ({0: 1}, False), ({1: 3}, False)]
)
def test_a_message_that_was_sent_again_comes_before_all_that_were_said_later(
    repeated: dict[int, int], is_right: bool
) -> None:
    """The first message is stored after the second; the third was said after both."""
    alice = Record("alice", said=[f"room alice {number}" for number in (1, 0, 2)])
    alice.accepted = {f"room alice {number}": f"e-{number}" for number in range(3)}
    alice.repeated = {alice.said[place]: count for place, count in repeated.items()}
    violations = found(*heard(0, 1, 2), alice=alice)
    assert (violations == []) is is_right, violations


def test_what_is_not_kept_any_more_is_known_by_what_was_told_of_it() -> None:
    assert found(*heard(0, 1, 2), history=(2,), retained=True) == []
    assert found(Missed(1), *heard(1, 2), history=(2,), retained=True) == []
    assert "was not told" in found(*heard(1, 2), history=(2,), retained=True)[0]
    assert "the history is not" in found(*heard(0, 1, 2), history=(1,), retained=True)[0]


# --- Private messages -----------------------------------------------------------------------------


def found_directs(
    *heard: str, fate: Fate = "accepted", cuts: tuple[float, ...] = (), lossy: bool = False
) -> list[str]:
    """Return what is found if alice sent bob `hi`, with that *fate*, and bob has *heard* this."""
    alice, bob = Directs(), Directs(heard=[*heard], cuts=[*cuts])
    alice.sent["1"] = Direct("hi", "bob", (10.0, 11.0), fate)
    return check_directs({"alice": alice, "bob": bob}, lossy=lossy)


@pytest.mark.parametrize(
    ("heard", "fate"),
    [(["hi"], "accepted"), ([], "refused"), ([], "unknown"), (["hi"], "unknown")],
)
def test_a_private_message_whose_fate_is_told_as_it_is_is_no_violation(
    heard: list[str], fate: Fate
) -> None:
    assert found_directs(*heard, fate=fate) == []


@pytest.mark.parametrize(
    ("heard", "fate", "words"),
    [
        (["hi", "hi"], "accepted", "heard twice"),
        (["hi"], "refused", "told as not delivered"),
        ([], "accepted", "has not got it"),
        (["hi"], "open", "never answered"),
        (["hi", "for carol"], "accepted", "not for it"),
    ],
)
def test_a_private_message_that_is_lost_repeated_or_misreported_is_found(
    heard: list[str], fate: Fate, words: str
) -> None:
    [violation] = found_directs(*heard, fate=fate)
    assert words in violation


def test_a_private_message_may_be_lost_with_its_recipients_connection_only() -> None:
    assert found_directs(cuts=(12.0,)) == []
    assert found_directs(cuts=(9.0, 100.0)) != []
    assert found_directs("hi", "hi", lossy=True) == []
