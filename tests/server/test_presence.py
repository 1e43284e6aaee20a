"""Presence: announcements add up to the actual members, and none is unnecessary."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.protocol.messages import Joined, Left, Presence, Renamed
from multichat.server.presence import MAX_TOLD_ONE_BY_ONE, PresenceChanges, summarize

pytestmark = pytest.mark.unit


def replay(told: dict[int, str], events: list[tuple[int, Joined | Left | Renamed]]) -> None:
    """Apply *events* to *told*, like a client that has no other information."""
    for client, event in events:
        assert event.client == client
        match event:
            case Joined():
                assert client not in told
                told[client] = event.name
            case Left():
                assert told.pop(client) == event.name
            case Renamed():
                assert told[client] == event.old != event.name
                told[client] = event.name


@dataclass(frozen=True)
class Enter:
    client: int
    name: str


@dataclass(frozen=True)
class Leave:
    client: int
    reason: str


@dataclass(frozen=True)
class Take:
    pass


@dataclass(frozen=True)
class Forget:
    pass


few_clients = st.integers(1, 4)
few_names = st.sampled_from(["", "alice", "bob", "carol"])
steps = st.one_of(
    st.builds(Enter, few_clients, few_names),
    st.builds(Leave, few_clients, st.sampled_from(["", "too slow", "kicked"])),
    st.builds(Take),
    st.builds(Forget),
)


@given(st.lists(steps, max_size=40))
def test_announced_changes_add_up_to_the_current_state(
    history: list[Enter | Leave | Take | Forget],
) -> None:
    changes = PresenceChanges()
    names: dict[int, str] = {}
    told: dict[int, str] = {}
    reasons: dict[int, str] = {}
    touched: list[int] = []
    for step in [*history, Take()]:
        match step:
            case Enter(client, name):
                changes.enter(client, name)
                names[client] = name
            case Leave(client, reason) if client in names:
                changes.leave(client, reason)
                del names[client]
                reasons[client] = reason
            case Take():
                before = told.copy()
                events = changes.take()
                replay(told, events)
                assert told == names
                mentioned = [client for client, _ in events]
                assert mentioned == [c for c in touched if before.get(c) != names.get(c)]
                for client, event in events:
                    if isinstance(event, Left):
                        assert event.reason == reasons[client]
                    if isinstance(event, Joined | Left):
                        assert event.members == len(names)
            case Forget():
                changes.forget()
                told = names.copy()
        if isinstance(step, Take | Forget):
            touched.clear()
        elif step.client not in touched and (isinstance(step, Enter) or step.client in changes):
            touched.append(step.client)
        assert bool(changes) == bool(touched)
        assert [client for client in range(6) if client in changes] == sorted(touched)


def test_a_join_is_announced_once() -> None:
    changes = PresenceChanges()
    assert not changes
    changes.enter(1, "Client 1")
    changes.enter(2, "Client 2")
    assert changes
    assert 1 in changes
    assert changes.take() == [
        (1, Joined(1, "Client 1", members=2)),
        (2, Joined(2, "Client 2", members=2)),
    ]
    assert not changes
    assert 1 not in changes
    assert changes.take() == []


def test_a_short_visit_between_two_announcements_is_not_announced() -> None:
    changes = PresenceChanges()
    changes.enter(1, "Client 1")
    changes.enter(1, "alice")
    changes.leave(1, "")
    assert changes.take() == []


def test_a_short_absence_between_two_announcements_is_not_announced() -> None:
    changes = PresenceChanges()
    changes.enter(1, "alice")
    changes.take()
    changes.leave(1, "joined den")
    changes.enter(1, "alice")
    assert changes.take() == []
    changes.leave(1, "joined den")
    changes.enter(1, "bob")
    assert changes.take() == [(1, Renamed(1, "alice", "bob"))]


def test_a_client_that_was_introduced_while_it_was_away_has_joined_once() -> None:
    """Its first message was delivered only after it had left, and then it returned."""
    changes = PresenceChanges()
    changes.enter(1, "alice")
    changes.leave(1, "connection reset")
    assert changes.announce(1, "alice") == Joined(1, "alice", members=0)
    changes.enter(1, "alice")
    assert changes.take() == []
    changes.leave(1, "")
    assert changes.take() == [(1, Left(1, "alice", "", 0))]


def test_a_client_missing_from_a_member_list_is_announced_when_it_returns() -> None:
    changes = PresenceChanges()
    changes.enter(1, "alice")
    changes.take()
    changes.leave(1, "joined den")
    changes.enter(2, "bob")
    changes.show(to=2)
    changes.enter(1, "alice")
    assert (1, Joined(1, "alice", members=2)) in changes.take()


def test_a_client_listed_only_to_itself_is_not_announced() -> None:
    changes = PresenceChanges()
    changes.enter(1, "alice")
    changes.show(to=1)
    changes.leave(1, "")
    assert changes.take() == []


def test_a_client_listed_to_another_is_announced_as_left() -> None:
    changes = PresenceChanges()
    changes.enter(2, "bob")
    changes.take()
    changes.enter(1, "alice")
    changes.show(to=2)
    changes.leave(1, "")
    assert changes.take() == [(1, Left(1, "alice", "", members=1))]


@pytest.mark.parametrize("is_listed_first", [True, False])
def test_a_client_that_was_listed_and_is_held_back_is_announced_as_left(
    is_listed_first: bool,
) -> None:
    changes = PresenceChanges()
    changes.enter(2, "bob")
    changes.take()
    changes.enter(1, "alice")
    if is_listed_first:
        changes.show(to=2)
    assert changes.take(held=[1]) == []
    if not is_listed_first:
        changes.show(to=2)
    assert changes.is_known(1)
    changes.leave(1, "")
    assert changes.take() == [(1, Left(1, "alice", "", members=1))]


def test_two_renames_are_announced_as_one() -> None:
    changes = PresenceChanges()
    changes.enter(1, "Client 1")
    changes.take()
    changes.enter(1, "alice")
    changes.enter(1, "bob")
    assert changes.take() == [(1, Renamed(1, "Client 1", "bob"))]
    changes.enter(1, "carol")
    changes.enter(1, "bob")
    assert changes.take() == []


def test_a_leave_is_announced_with_the_announced_name_and_the_last_reason() -> None:
    changes = PresenceChanges()
    changes.enter(1, "alice")
    changes.take()
    changes.leave(1, "joined den")
    changes.enter(1, "bob")
    changes.leave(1, "too slow")
    assert changes.take() == [(1, Left(1, "alice", "too slow"))]


def test_changes_are_announced_in_the_order_in_which_they_began() -> None:
    changes = PresenceChanges()
    changes.enter(1, "alice")
    changes.take()
    changes.leave(1, "")
    changes.enter(3, "carol")
    changes.enter(2, "bob")
    changes.enter(1, "eve")
    assert [client for client, _ in changes.take()] == [1, 3, 2]


def test_announcements_without_listeners_count_as_made() -> None:
    changes = PresenceChanges()
    changes.enter(1, "alice")
    changes.enter(2, "bob")
    changes.forget()
    assert not changes
    changes.leave(2, "kicked")
    assert changes.take() == [(2, Left(2, "bob", "kicked", members=1))]


def test_a_storm_of_changes_is_announced_as_counts() -> None:
    changes = PresenceChanges()
    for client in range(30):
        changes.enter(client, f"Client {client}")
    changes.take()
    for client in range(10):
        changes.leave(client, "")
    for client in range(10, 15):
        changes.enter(client, f"name-{client}")
    changes.enter(99, "Client 99")
    events = changes.take()
    assert len(events) == 16 == MAX_TOLD_ONE_BY_ONE
    told = [event for _, event in events]
    presence = summarize(told, members=21)
    assert presence == Presence(joined=1, left=10, renamed=5, members=21)
    assert summarize([presence, presence], members=7) == Presence(2, 20, 10, 7)
    assert summarize([], members=21) == Presence(joined=0, left=0, renamed=0, members=21)
