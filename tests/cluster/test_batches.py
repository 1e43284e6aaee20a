"""The batches of changes of a node: their order, and what is kept when the engine is away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.backend.events import BanRecord, ClientRecord
from multichat.cluster.batches import MAX_IN_FLIGHT, Batches, Dropped
from multichat.cluster.changes import (
    Announce,
    Change,
    DropBan,
    Gone,
    PutBan,
    PutClient,
    RetainClients,
    SaveSession,
)

pytestmark = pytest.mark.unit

_PUT = PutClient.of(ClientRecord(client=1, generation=1))


def _taken(batches: Batches[str]) -> list[list[Change]]:
    taken = []
    while (batch := batches.take()) is not None:
        taken.append(batch.wanted)
    return taken


def test_a_change_is_sent_at_once_and_many_go_together_while_enough_are_in_flight() -> None:
    batches: Batches[str] = Batches()
    for number in range(MAX_IN_FLIGHT):
        batches.add(Announce(str(number)))
        assert batches.take() is not None
    for number in range(5):
        batches.add(Announce(str(number)))
    assert batches.take() is None
    first = batches.take()
    assert first is None
    batches.repeat()
    again = [batches.take() for _ in range(MAX_IN_FLIGHT)]
    assert [batch.sequence for batch in again if batch] == list(range(1, MAX_IN_FLIGHT + 1))
    assert again[0] is not None
    assert batches.answered(again[0]) is not None
    together = batches.take()
    assert together is not None
    assert (together.sequence, len(together.changes)) == (MAX_IN_FLIGHT + 1, 5)


@given(st.lists(st.sampled_from(("add", "send", "answer", "break")), max_size=60))
def test_every_change_is_answered_once_in_order_however_often_the_connection_breaks(
    steps: list[str],
) -> None:
    batches: Batches[str] = Batches()
    added, answered, done = 0, [], 0
    wire = []  # sent on this connection, and not answered yet
    for step in [*steps, "break", *["send", "answer"] * 60]:
        if step == "add":
            added += 1
            batches.add(Announce(str(added)), str(added))
        elif step == "send" and (batch := batches.take()) is not None:
            wire.append(batch)
        elif step == "answer" and wire:
            batch = wire.pop(0)
            known = batches.answered(batch)
            if batch.sequence > done:  # the engine makes it once, and answers repetitions alike
                done = batch.sequence
            if known is not None:
                answered += [waiting for _, waiting in known.changes]
        elif step == "break":
            wire.clear()
            batches.repeat()
    assert answered == [str(number) for number in range(1, added + 1)]
    assert len(batches) == 0
    assert batches.answered_up_to == done


def test_while_the_engine_is_away_only_ends_are_kept() -> None:
    batches: Batches[str] = Batches()
    batches.add(Announce("in flight"), "a")
    assert _taken(batches) == [[Announce("in flight")]]
    batches.add(Announce("waiting"), "b")
    batches.add(_PUT)
    assert batches.leave() == Dropped(["a"], ["b"])
    gone, left = Gone(2, 1, "", -1), SaveSession("d", 2, 1, "", False)
    for change in (_PUT, gone, SaveSession("e", 1, 1, "", True), left):
        batches.add(change)
    batches.resume([_PUT, RetainClients((1,))])
    batches.repeat()
    assert _taken(batches) == [
        [Announce("in flight")],
        [gone, left, _PUT, RetainClients((1,))],
    ]


def test_another_run_begins_with_nothing_but_bans() -> None:
    batches: Batches[str] = Batches()
    batches.add(Announce("in flight"), "a")
    batches.take()
    lifted = DropBan("name eve")
    batches.add(lifted)
    batches.take()
    batches.add(Announce("waiting"), "b")
    ban = PutBan(BanRecord(target="name eve"), 10)
    batches.add(ban)
    assert batches.begin() == Dropped(["a"], ["b"])
    batches.add(Announce("new"))
    batch = batches.take()
    assert batch is not None
    assert batch.sequence == 1
    assert batch.wanted == [lifted, ban, Announce("new")]
