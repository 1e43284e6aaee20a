"""One room's log as a node knows it, compared with a model of an engine that loses and repeats."""

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from multichat.cluster.calls import Header, Packet, Tail
from multichat.cluster.log_state import Handed, LostBlocks, Place, RoomState, SkippedBlocks
from multichat.protocol.ids import message_id
from multichat.protocol.messages import SaidBlock

pytestmark = pytest.mark.unit

OURS, THEIRS = "ours", "theirs"


def packet(
    first: int, count: int = 1, epoch: str = "e1", *, run: str = THEIRS, sequence: int = 0
) -> Packet:
    text = "\n".join(f"{run}{sequence}.{i}" for i in range(count))
    header = Header(first, count, epoch, 0, run, sequence, 0)
    return Packet(header, SaidBlock(epoch, first, "", "lobby", 1, run, text), 100)


def tail(next_: int, *epochs: tuple[str, int], first: int = 0) -> Tail:
    return Tail(first, next_, epochs[-1][0] if epochs else "", epochs)


def state_at(next_: int = 0, *, max_bytes: int = 10_000) -> RoomState[str]:
    epochs = (("e1", 0),) if next_ else ()
    return RoomState(tail(next_, *epochs), max_bytes=max_bytes)


def numbers(state: RoomState[str]) -> list[int]:
    handed = []
    while isinstance(fed := state.hand_out(), Handed):
        handed.append(fed.said.first)
    assert fed is None
    return handed


def test_pushes_are_handed_out_in_order_and_once() -> None:
    state = state_at(5)
    state.push(packet(4))
    state.push(packet(5, 2))
    state.push(packet(5, 2))
    state.push(packet(7))
    assert numbers(state) == [5, 7]
    assert (state.next, state.wanted) == (8, None)


def test_a_gap_is_read() -> None:
    state = state_at(5)
    state.push(packet(6))
    state.push(packet(7))
    assert numbers(state) == []
    assert state.wanted == (5, 8)
    assert not state.read(5, 8, [packet(5), packet(6), packet(7)])
    assert numbers(state) == [5, 6, 7]
    assert state.wanted is None


def test_a_packet_that_was_too_large_to_be_pushed_is_read() -> None:
    state = state_at()
    header = packet(0).header
    state.push(Packet(header, None, 50))
    assert state.wanted == (0, 1)
    state.read(0, 1, [packet(0)])
    assert numbers(state) == [0]


def test_waiting_packets_are_bounded_and_the_rest_is_read_later() -> None:
    state = state_at(max_bytes=2000)
    for number in range(100):
        state.push(packet(number))
    assert state.wanted is None  # enough waits
    assert numbers(state) == [0, 1, 2]
    assert state.wanted == (3, 100)


def test_an_own_block_waits_for_its_answer() -> None:
    state, place = state_at(), Place(OURS, 1, 0)
    own = packet(0, run=OURS, sequence=1)
    assert own.said is not None
    state.propose(place, own.said, "proposal")
    state.push(own)
    state.push(packet(1))
    assert not state.can_hand_out
    state.appended(place, own.header)
    assert state.hand_out() == Handed(own.said, "proposal")
    assert numbers(state) == [1]
    assert state.close() == []


def test_messages_that_were_left_out_are_not_in_the_entry() -> None:
    state, place = state_at(), Place(OURS, 1, 0)
    draft = SaidBlock("", 0, "", "lobby", 1, "a", "x\ny\nz")
    state.propose(place, draft, "proposal")
    state.appended(place, Header(0, 2, "e1", 0, OURS, 1, 0), [1])
    fed = state.hand_out()
    assert isinstance(fed, Handed)
    assert (fed.said.text, fed.said.epoch, fed.proposal) == ("x\nz", "e1", "proposal")


def test_a_refused_block_holds_nothing_up() -> None:
    state = state_at()
    draft = SaidBlock("", 0, "", "lobby", 1, "a", "x")
    state.propose(Place(OURS, 1, 0), draft, "proposal")
    state.refused(Place(OURS, 1, 0))
    state.push(packet(0))
    assert numbers(state) == [0]


def test_after_a_reconnect_nothing_is_handed_out_before_the_tail() -> None:
    state = state_at()
    state.push(packet(0))
    state.reconnected()
    state.push(packet(1))
    assert not state.can_hand_out
    state.tail(tail(2, ("e1", 0)))
    assert numbers(state) == [0]
    assert state.wanted == (1, 2)


def test_messages_lost_in_a_failover_are_counted_before_a_new_epoch_begins() -> None:
    state = state_at(10)
    state.reconnected()
    state.tail(tail(7, ("e1", 0)))
    assert state.hand_out() == LostBlocks(7, 3, [])
    assert (state.next, state.epoch) == (7, "e1")
    assert state.number_of(message_id("e1", 5)) == 5
    assert state.number_of(message_id("e1", 8)) == 6  # everything from 7 on comes
    state.push(packet(7, 1, "e2"))
    assert numbers(state) == [7]
    assert state.earlier == {"e1": 7}
    assert state.number_of(message_id("e1", 8)) == 6
    assert state.number_of(message_id("e2", 7)) == 7


def test_messages_lost_in_a_failover_are_counted_even_if_the_log_is_longer_again() -> None:
    state = state_at(10)
    state.reconnected()
    state.tail(tail(20, ("e1", 0), ("e2", 7)))
    assert state.hand_out() == LostBlocks(7, 3, [])
    assert state.wanted == (7, 20)
    state.read(7, 20, [packet(7, 13, "e2")])
    assert numbers(state) == [7]
    assert state.earlier == {"e1": 7}


def test_an_epoch_that_was_lost_as_a_whole_ends_where_the_log_continues() -> None:
    state = RoomState[str](tail(20, ("e1", 0), ("e2", 10)))
    state.reconnected()
    state.tail(tail(9, ("e1", 0), ("e3", 8)))  # a replica that had only eight
    assert state.hand_out() == LostBlocks(8, 12, [])
    assert state.epochs == [("e1", 0)]
    state.read(8, 9, [packet(8, 1, "e3")])
    assert numbers(state) == [8]
    assert state.number_of(message_id("e2", 15)) == 7
    assert state.number_of(message_id("e1", 9)) == 7
    assert state.number_of(message_id("e4", 9)) is None


def test_an_epoch_that_was_lost_while_this_node_was_away_ends_where_the_next_one_begins() -> None:
    state = RoomState[str](tail(20, ("e1", 0), ("e3", 12)))
    assert state.number_of(message_id("e2", 15)) == 11
    assert state.number_of(message_id("e2", 5)) == 5
    assert state.number_of(message_id("e0", 5)) is None  # of another room, or forgotten
    assert state.number_of(message_id("e4", 15)) is None


def test_an_engine_that_has_lost_everything() -> None:
    state = state_at(10)
    state.reconnected()
    state.tail(tail(0))
    assert state.hand_out() == LostBlocks(0, 10, [])
    assert (state.next, state.first, state.epoch) == (0, 0, "")
    assert state.number_of(message_id("e1", 5)) is None


def test_a_lineage_whose_oldest_epochs_are_forgotten_has_lost_nothing() -> None:
    state = RoomState[str](tail(20, ("e1", 0), ("e2", 10)))
    state.reconnected()
    state.tail(tail(21, ("e2", 10), ("e3", 20)))
    assert state.hand_out() is None
    assert state.wanted == (20, 21)


def test_an_own_block_that_was_lost_before_it_was_handed_out() -> None:
    state, place = state_at(5), Place(OURS, 1, 0)
    own = packet(6, run=OURS, sequence=1)
    assert own.said is not None
    state.propose(place, own.said, "proposal")
    state.appended(place, own.header)  # behind a gap
    state.reconnected()
    state.tail(tail(5, ("e1", 0)))
    assert state.hand_out() == LostBlocks(5, 0, ["proposal"])
    assert state.close() == []


def test_an_own_block_without_an_answer_is_not_lost_but_repeated() -> None:
    state, place = state_at(5), Place(OURS, 1, 0)
    own = packet(5, run=OURS, sequence=1)
    assert own.said is not None
    state.propose(place, own.said, "proposal")
    state.push(own)
    state.reconnected()
    state.tail(tail(5, ("e1", 0)))
    assert state.hand_out() is None
    again = packet(5, 1, "e2", run=OURS, sequence=1)
    state.appended(place, again.header)
    fed = state.hand_out()
    assert isinstance(fed, Handed)
    assert (fed.said.epoch, fed.proposal) == ("e2", "proposal")


def test_messages_deleted_before_they_were_read_are_skipped() -> None:
    state = state_at(5)
    state.push(packet(20))
    assert state.read(5, 21, [packet(10)])  # the engine has no 5
    state.tail(tail(21, ("e1", 0), first=10))
    assert state.wanted == (10, 21)
    state.read(10, 21, [packet(10, 11)])
    assert numbers(state) == [10]
    assert state.first == 10


def test_all_messages_deleted_before_they_were_read() -> None:
    state = state_at(5)
    state.reconnected()
    state.tail(tail(9, ("e1", 0), first=9))
    assert state.wanted is None
    assert state.hand_out() == SkippedBlocks(9, [])
    assert (state.next, state.can_hand_out) == (9, False)
    state.push(packet(9))
    assert numbers(state) == [9]


@pytest.mark.parametrize("answered_first", [True, False])
def test_an_own_block_that_was_deleted_before_it_was_handed_out_is_skipped(
    answered_first: bool,
) -> None:
    state, place = state_at(5), Place(OURS, 1, 0)
    draft = SaidBlock("", 0, "", "lobby", 1, "a", "x")
    state.propose(place, draft, "proposal")
    header = packet(7, run=OURS, sequence=1).header
    if answered_first:
        state.appended(place, header)
        assert not state.can_hand_out
    state.tail(tail(12, ("e1", 0), first=10))
    state.push(packet(12))
    if not answered_first:
        state.appended(place, header)
    state.read(10, 13, [packet(10, 2), packet(12)])
    fed = state.hand_out()
    assert isinstance(fed, SkippedBlocks)
    assert [(each.said.first, each.proposal) for each in fed.own] == [(7, "proposal")]
    assert numbers(state) == [10, 12]
    assert state.close() == []


def test_completely_deleted_epochs_are_known_after_the_skip() -> None:
    state = state_at(5)
    state.reconnected()
    state.tail(tail(9, ("e1", 0), ("e2", 6), ("e3", 8), first=9))
    assert state.hand_out() == SkippedBlocks(9, [])
    assert (state.epoch, state.earlier) == ("e3", {"e1": 6, "e2": 8})
    assert state.number_of(message_id("e3", 8)) == 8


def test_an_entry_that_the_engine_does_not_have_is_not_requested_repeatedly() -> None:
    state = state_at(5)
    state.push(packet(7))
    assert state.read(5, 8, [])
    assert state.wanted is None
    state.tail(tail(8, ("e1", 0)))
    assert state.wanted is None
    assert state.hand_out() == SkippedBlocks(8, [])
    state.push(packet(8))
    assert numbers(state) == [8]


def test_a_closed_room_hands_nothing_out_and_its_proposals_are_done() -> None:
    state = state_at()
    for sequence in (1, 2):
        draft = SaidBlock("", 0, "", "lobby", 1, "a", "x")
        state.propose(Place(OURS, sequence, 0), draft, f"proposal {sequence}")
    state.appended(Place(OURS, 1, 0), packet(0, run=OURS, sequence=1).header)
    assert state.close() == ["proposal 1"]
    header = packet(1, run=OURS, sequence=2).header
    assert state.appended(Place(OURS, 2, 0), header) == "proposal 2"
    assert state.appended(Place(OURS, 2, 0), header) is None  # it is known no more


# --- The model ------------------------------------------------------------------------------------


@dataclass
class Engine:
    """A log with all that a primary replicates: blocks, epochs, and answers to our calls."""

    blocks: list[Packet] = field(default_factory=list)
    epochs: list[tuple[str, int]] = field(default_factory=list)
    answers: dict[int, Header] = field(default_factory=dict)
    first: int = 0
    next: int = 0
    era: int = 1
    era_of_room: int = 0

    def append(self, count: int, run: str, sequence: int, new_epoch: Callable[[], str]) -> Packet:
        if self.era_of_room != self.era:
            self.era_of_room = self.era
            self.epochs.append((new_epoch(), self.next))
        made = packet(self.next, count, self.epochs[-1][0], run=run, sequence=sequence)
        self.blocks.append(made)
        self.next += count
        return made

    def tail(self, known: str) -> Tail:
        epoch = self.epochs[-1][0] if self.epochs else ""
        return Tail(self.first, self.next, epoch, () if epoch == known else tuple(self.epochs))


class LogMachine(RuleBasedStateMachine):
    """Our node and others on one engine, whose connection, memory and replicas are unreliable."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()
        self.replica = copy.deepcopy(self.engine)
        self.state: RoomState[int] = RoomState(self.engine.tail(""), max_bytes=3000)
        # What the engine has sent and we have not received, in order; each is one step.
        self.link: deque[Callable[[], None]] = deque()
        self.epoch = self.sequence = self.others = 0
        self.drafts: dict[int, SaidBlock] = {}
        self.unanswered: list[int] = []
        self.is_reading = False
        self.applied: list[Packet | SaidBlock] = []
        self.next = 0  # where what we have applied ends
        self.texts: list[tuple[int, str, str]] = []  # number, epoch, text: what members have
        self.done: dict[int, str] = {}
        self.deleted = 0  # what was before this may be missing, also if a replica has it

    def new_epoch(self) -> str:
        self.epoch += 1
        return f"{self.epoch:011x}"

    def publish(self, made: Packet, kind: str) -> None:
        if kind == "dropped":
            return
        pushed = made if kind == "whole" else Packet(made.header, None, 50)
        self.link.append(lambda: self.state.push(pushed))

    @rule(count=st.integers(1, 3), kind=st.sampled_from(["whole", "header", "dropped"]))
    def another_node_appends(self, count: int, kind: str) -> None:
        self.others += 1
        self.publish(self.engine.append(count, THEIRS, self.others, self.new_epoch), kind)

    @rule(count=st.integers(1, 3), kind=st.sampled_from(["whole", "header", "dropped"]))
    def we_append(self, count: int, kind: str) -> None:
        self.sequence += 1
        said = packet(0, count, run=OURS, sequence=self.sequence).said
        assert said is not None
        self.drafts[self.sequence] = said
        self.unanswered.append(self.sequence)
        self.state.propose(Place(OURS, self.sequence, 0), said, self.sequence)
        self.call(self.sequence, kind)

    def call(self, sequence: int, kind: str) -> None:
        header = self.engine.answers.get(sequence)
        if header is None:
            count = self.drafts[sequence].text.count("\n") + 1
            made = self.engine.append(count, OURS, sequence, self.new_epoch)
            header = self.engine.answers[sequence] = made.header
            self.publish(made, kind)
        answer = header

        def answered() -> None:
            self.unanswered.remove(sequence)
            self.state.appended(Place(OURS, sequence, 0), answer)

        self.link.append(answered)

    @precondition(lambda self: self.link)
    @rule(many=st.integers(1, 5))
    def we_receive(self, many: int) -> None:
        for _ in range(min(many, len(self.link))):
            self.link.popleft()()

    @precondition(lambda self: self.state.wanted and not self.is_reading)
    @rule(many=st.integers(1, 4))
    def we_read(self, many: int) -> None:
        wanted = self.state.wanted
        assert wanted is not None
        start, stop = wanted
        found = [one for one in self.engine.blocks if start < one.header.end]
        found = [one for one in found if one.header.first < stop][:many]
        self.is_reading = True

        def answered() -> None:
            self.is_reading = False
            if self.state.read(start, stop, found):
                self.ask_for_tail()

        self.link.append(answered)

    def ask_for_tail(self) -> None:
        answer = self.engine.tail(self.state.known_epoch)
        self.link.append(lambda: self.state.tail(answer))

    @rule()
    def we_ask_for_the_tail(self) -> None:
        self.ask_for_tail()

    @rule()
    def the_connection_breaks(self) -> None:
        self.link.clear()
        self.is_reading = False
        self.state.reconnected()
        self.ask_for_tail()
        for sequence in self.unanswered:
            self.call(sequence, "whole")

    @rule()
    def the_replica_catches_up(self) -> None:
        self.replica = copy.deepcopy(self.engine)

    @rule(more=st.integers(0, 3))
    def the_replica_becomes_the_primary(self, more: int) -> None:
        era = self.engine.era + 1
        self.engine = copy.deepcopy(self.replica)
        self.engine.era = era
        for _ in range(more):
            self.another_node_appends(1, "dropped")
        self.the_connection_breaks()

    @rule(many=st.integers(1, 3), told=st.booleans())
    def the_oldest_are_deleted(self, many: int, told: bool) -> None:
        del self.engine.blocks[:many]
        blocks = self.engine.blocks
        first = self.engine.first = blocks[0].header.first if blocks else self.engine.next
        self.deleted = max(self.deleted, first)
        if told:
            self.link.append(lambda: self.state.trimmed(first))

    @rule()
    def the_room_applies(self) -> None:
        while (fed := self.state.hand_out()) is not None:
            if isinstance(fed, LostBlocks):
                assert self.next - fed.count == fed.next
                self.next = fed.next
                self.texts = [one for one in self.texts if one[0] < fed.next]
                for sequence in fed.proposals:
                    self.settle(sequence, "lost")
                continue
            if isinstance(fed, SkippedBlocks):
                assert self.next <= fed.next <= max(self.next, self.deleted)
                assert all(number < self.next for number, *_ in self.texts)
                self.next = fed.next
                for each in fed.own:
                    assert each.said.first < self.deleted
                    assert each.proposal is not None
                    self.settle(each.proposal, "skipped")
                continue
            said = fed.said
            texts = said.text.split("\n")
            assert said.first >= self.next
            assert all(number not in range(self.next, said.first) for number, *_ in self.texts)
            self.next = said.first + len(texts)
            self.texts += [(said.first + i, said.epoch, text) for i, text in enumerate(texts)]
            if fed.proposal is not None:
                self.settle(fed.proposal, "handed out")
                assert said.text == self.drafts[fed.proposal].text
            else:
                assert said.name == THEIRS

    def settle(self, sequence: int, how: str) -> None:
        assert sequence not in self.done
        self.done[sequence] = how

    @invariant()
    def numbers_are_consistent(self) -> None:
        assert self.state.first <= self.state.next
        assert list(self.state.earlier.values()) == sorted(self.state.earlier.values())

    def teardown(self) -> None:
        """Let everything arrive: then members have what the engine has, and every fate is known."""
        self.ask_for_tail()
        for _ in range(10_000):
            if self.link:
                self.we_receive(1)
            elif self.state.wanted and not self.is_reading:
                self.we_read(2)
            elif self.state.can_hand_out:
                self.the_room_applies()
            else:
                break
        else:
            raise AssertionError("it never ends")
        stored = [
            (one.header.first + i, one.header.epoch, text)
            for one in self.engine.blocks
            if one.said is not None
            for i, text in enumerate(one.said.text.split("\n"))
        ]
        assert [one for one in self.texts if one[0] >= self.deleted] == [
            one for one in stored if one[0] >= self.deleted
        ]
        assert not self.unanswered
        assert self.done.keys() == self.drafts.keys()
        assert self.state.next == self.engine.next
        for number, epoch, _ in self.texts:
            assert self.state.number_of(message_id(epoch, number)) == number


TestLog = LogMachine.TestCase
TestLog.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
