"""The checker of the chaos notices each violation."""

from collections.abc import Sequence

import pytest
import trio.testing

from .chaos.checker import Heard, Missed, Record, check_room
from .chaos.departures import Departure, Presence, check_departures
from .chaos.directs import Direct, Directs, Fate, check_directs
from .chaos.run import settled

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
    """Return the findings if alice sent three messages, and bob received them like this."""
    texts = [f"room alice {number}" for number in range(3)]
    ids = {text: f"e-{number}" for number, text in enumerate(texts)}
    alice = alice or Record("alice", said=texts, accepted=ids)
    bob = Record("bob", heard=list(bob_heard))
    stored = [each for each in heard(*history) if isinstance(each, Heard)]
    return check_room("room", [alice, bob], stored, lossy=lossy, retained=retained)[0]


def test_a_faultless_run_has_no_violations() -> None:
    assert found(*heard(0, 1, 2)) == []


def test_a_message_that_was_reported_as_missed_is_not_a_violation() -> None:
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
def test_the_messages_of_a_member_are_compared_with_the_history(
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


def test_a_message_that_was_deleted_before_its_delivery_may_be_reported_as_missed() -> None:
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
def test_a_message_that_was_sent_again_precedes_all_later_ones(
    repeated: dict[int, int], is_right: bool
) -> None:
    """The first message is stored after the second; the third was sent after both."""
    alice = Record("alice", said=[f"room alice {number}" for number in (1, 0, 2)])
    alice.accepted = {f"room alice {number}": f"e-{number}" for number in range(3)}
    alice.repeated = {alice.said[place]: count for place, count in repeated.items()}
    violations = found(*heard(0, 1, 2), alice=alice)
    assert (violations == []) is is_right, violations


def test_deleted_messages_are_checked_by_what_members_received() -> None:
    assert found(*heard(0, 1, 2), history=(2,), retained=True) == []
    assert found(Missed(1), *heard(1, 2), history=(2,), retained=True) == []
    assert "was not told" in found(*heard(1, 2), history=(2,), retained=True)[0]
    assert "the history is not" in found(*heard(0, 1, 2), history=(1,), retained=True)[0]


# --- Private messages -----------------------------------------------------------------------------


def found_directs(
    *heard: str, fate: Fate = "accepted", cuts: tuple[float, ...] = (), lossy: bool = False
) -> list[str]:
    """Return the findings if alice sent bob `hi`, with that *fate*, and bob *heard* this."""
    alice, bob = Directs(), Directs(heard=[*heard], cuts=[*cuts])
    alice.sent["1"] = Direct("hi", "bob", (10.0, 11.0), fate)
    return check_directs({"alice": alice, "bob": bob}, lossy=lossy)


@pytest.mark.parametrize(
    ("heard", "fate"),
    [(["hi"], "accepted"), ([], "refused"), ([], "unknown"), (["hi"], "unknown")],
)
def test_a_private_message_with_its_true_outcome_is_not_a_violation(
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


# --- Departures -----------------------------------------------------------------------------------

# It was away from 10 s to 13 s, and from 20 s to 27 s.
ALICE = Presence("alice", 1, [(10.0, 13.0), (20.0, 27.0)])
BOB = Presence("bob", 2)


def departures_found(*departures: Departure, strays: Sequence[float] = ()) -> list[str]:
    return check_departures(departures, [ALICE, BOB], strays)


def test_a_member_that_was_away_for_long_may_be_announced_as_left() -> None:
    assert departures_found(Departure(25.1, "room", "alice")) == []
    assert departures_found(Departure(25.1, "room", "alice-17"), Departure(26, "room")) == []


@pytest.mark.parametrize(
    "departure",
    [
        Departure(12.0, "room", "alice"),  # its absence was short
        Departure(18.0, "room", "alice"),  # of a short absence, late
        Departure(22.0, "room", "alice-17"),  # too early
        Departure(60.0, "room", "Client 1"),  # too late
        Departure(25.1, "room", "bob"),
        Departure(25.1, "room", "alice2"),
        Departure(25.1, "room", count=2),  # one of them was not away
        Departure(12.0, "room", count=1),
    ],
    ids=str,
)
def test_a_member_that_returns_in_time_is_never_announced_as_left(departure: Departure) -> None:
    [violation] = departures_found(departure, departure)
    assert violation == f"2 were told at {departure.at:.1f}: {departure}"


def test_a_connection_that_has_no_session_may_leave_when_it_ends() -> None:
    stranger, several = Departure(50.0, "room", "Client 9"), Departure(50.0, "room", count=2)
    assert departures_found(stranger, strays=[49.0]) == []
    assert departures_found(several, strays=[49.0, 51.0]) == []
    assert departures_found(stranger, strays=[10.0]) != []
    assert departures_found(several, strays=[49.0]) != []


def test_departures_are_read_from_events() -> None:
    left = {"type": "left", "room": "den", "name": "alice", "reason": "", "client": 1}
    assert Departure.of(left, 1.0) == Departure(1.0, "den", "alice")
    counts = {"type": "presence", "room": "den", "joined": 1, "left": 2, "renamed": 0}
    assert Departure.of(counts, 1.0) == Departure(1.0, "den", count=2)
    assert Departure.of(counts | {"left": 0}, 1.0) is None
    assert Departure.of({"type": "joined"}, 1.0) is None


# --- The wait for the last answers ----------------------------------------------------------------


class Answers:
    """Answers that come after *pauses*, one after the other."""

    def __init__(self, *pauses: float) -> None:
        self._started, self._pauses = trio.current_time(), pauses

    @property
    def decided(self) -> int:
        passed = trio.current_time() - self._started
        return sum(passed >= sum(self._pauses[: n + 1]) for n in range(len(self._pauses)))

    def missing(self) -> list[str]:
        return [f"answer {number}" for number in range(self.decided, len(self._pauses))]


async def test_answers_are_waited_for_as_long_as_they_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await settled(Answers(*[50.0] * 10), 60.0) == []
    assert await settled(Answers(50.0, 50.0, 70.0), 60.0) == ["answer 2"]
