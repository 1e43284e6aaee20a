"""Fair share of the event loop: scripted turns in simulated time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multichat.net.fair_share import Account, FairShare, Shares

pytestmark = pytest.mark.unit

SHARES = Shares()

MS = 0.001

# Between a client's turn and its next line: the way there and back.
FLIGHT = 0.07 * MS

# How long one poll of the sockets takes.
POLL = 0.01 * MS


@dataclass(eq=False)
class Client:
    """*turns* are the lengths of its turns, each *pause* after the last one ended."""

    turns: Iterator[float]
    account: Account
    pause: float = 0.0
    ready_at: float = 0.0
    asked_at: float | None = None
    taken: list[tuple[float, float]] = field(default_factory=list)  # when, and how long each was
    waits: list[float] = field(default_factory=list)
    lane_turns_seen: int = 0  # of others, when it asked

    def count(self, since: float) -> int:
        return sum(at >= since for at, _ in self.taken)

    def used(self, since: float, until: float) -> float:
        return sum(seconds for at, seconds in self.taken if since <= at < until)


class Loop:
    """An event loop that does nothing but turns, one at a time, in time of its own."""

    def __init__(self) -> None:
        self.fair = FairShare()
        self.now = 0.0
        self.clients: list[Client] = []
        self.lane_turns = 0
        self.most_lane_turns_waited_for = 0

    def client(
        self, turns: Iterator[float], place: str = "", *, pause: float = 0.0, known: bool = True
    ) -> Client:
        """Add a client; one that is not *known* is a new connection."""
        account = Account(place, SHARES)
        if known:
            account.is_new, account.is_long = False, False
            account.credit = account.excess = 0.0
        added = Client(turns, account, pause=pause, ready_at=self.now)
        self.clients.append(added)
        return added

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self._poll()
            for account in self.fair.next(self.now):
                self._take(next(each for each in self.clients if each.account is account))
            soonest = min(
                chain(
                    (each.ready_at for each in self.clients if each.asked_at is None),
                    [self.fair.next_at(self.now)],
                )
            )
            self.now = max(self.now + POLL, min(soonest, until))

    def _poll(self) -> None:
        self.fair.asked_at = None
        for each in self.clients:
            if each.asked_at is None and each.ready_at <= self.now:
                each.asked_at = self.now
                each.lane_turns_seen = self.lane_turns
                if self.fair.ask(each.account, self.now):
                    self._take(each)

    def _take(self, client: Client) -> None:
        assert client.asked_at is not None
        in_lane = self.fair._in_lane is client.account
        if not in_lane:
            waited_for = self.lane_turns - client.lane_turns_seen
            self.most_lane_turns_waited_for = max(self.most_lane_turns_waited_for, waited_for)
        self.lane_turns += in_lane
        client.waits.append(self.now - client.asked_at)
        seconds = next(client.turns)
        client.taken.append((self.now, seconds))
        self.now += seconds
        client.asked_at = None
        client.ready_at = self.now + client.pause
        self.fair.end(client.account, seconds, self.now)


def pair(loop: Loop) -> tuple[Client, Client]:
    """Two who answer each other: each has half of the turns, the other's in between."""
    own, flight = 0.06 * MS, FLIGHT
    one, other = (loop.client(repeat(own), "pair", pause=own + 2 * flight) for _ in range(2))
    other.ready_at += own + flight
    return one, other


def rate(clients: tuple[Client, ...], loop: Loop, seconds: float = 1.0) -> float:
    """Turns a second, once everything is as it will be."""
    loop.run(1.0)
    since = loop.now
    loop.run(seconds)
    return sum(each.count(since) for each in clients) / seconds


@pytest.fixture
def loop() -> Loop:
    return Loop()


UNDISTURBED = rate(pair(quiet := Loop()), quiet)


@pytest.mark.parametrize("milliseconds", [0.3, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("attackers", [1, 10, 100])
def test_long_turns_leave_a_pair_most_of_its_rate(
    milliseconds: float, attackers: int, loop: Loop
) -> None:
    talkers = pair(loop)
    for _ in range(attackers):
        loop.client(repeat(milliseconds * MS), "attackers")
    assert rate(talkers, loop) >= 0.6 * UNDISTURBED


def test_turns_as_short_as_a_pairs_own_leave_it_its_share(loop: Loop) -> None:
    talkers = pair(loop)
    for _ in range(10):
        loop.client(repeat(0.06 * MS), "attackers")
    assert rate(talkers, loop) >= 2 / 12 * UNDISTURBED


def test_a_long_turn_among_short_ones_is_followed_by_a_pause(loop: Loop) -> None:
    """Short turns in between do not make long ones short."""
    talkers = pair(loop)
    for _ in range(10):
        loop.client(chain.from_iterable(repeat([20 * MS] + [0.01 * MS] * 30)), "attackers")
    assert rate(talkers, loop, 5.0) >= 0.6 * UNDISTURBED


def test_a_single_long_turn_of_an_active_client_has_no_lasting_effect(loop: Loop) -> None:
    """The collector may have run in it."""
    talkers = pair(loop)
    for _ in range(10):
        loop.client(repeat(5 * MS), "attackers")
    loop.run(1.0)
    talkers[0].turns = chain([7 * MS], talkers[0].turns)
    since = loop.now
    loop.run(0.5)
    assert sum(each.count(since) for each in talkers) >= 0.5 * 0.5 * UNDISTURBED


def test_long_turns_get_all_the_time_while_there_are_no_short_ones(loop: Loop) -> None:
    flooders = [loop.client(repeat(5 * MS)) for _ in range(3)]
    loop.run(3.0)
    assert sum(each.used(0.0, math.inf) for each in flooders) >= 0.99 * 3.0


def test_an_occasional_line_in_a_large_room_does_not_wait_in_the_long_lane(loop: Loop) -> None:
    pair(loop)
    speakers = [loop.client(repeat(0.5 * MS), "people", pause=0.1) for _ in range(5)]
    for _ in range(10):
        loop.client(repeat(5 * MS), "attackers")
    loop.run(3.0)
    for speaker in speakers:
        speaker.waits.clear()
    loop.run(5.0)
    for speaker in speakers:
        assert len(speaker.waits) >= 45
        assert max(speaker.waits) <= 5.5 * MS  # one long turn


def test_credits_are_bounded_together(loop: Loop) -> None:
    pair(loop)
    flooders = [loop.client(repeat(1 * MS), "attackers") for _ in range(50)]
    loop.run(2.0)
    since = loop.now
    loop.run(5.0)
    used = sum(each.used(since, loop.now) for each in flooders)
    assert used <= (SHARES.long_lane + SHARES.credits_per_second) * 5.0 * 1.1


@pytest.mark.parametrize("milliseconds", [0.05, 0.5, 3.0])
def test_new_connections_have_their_share_of_the_time(milliseconds: float, loop: Loop) -> None:
    """Each takes one turn and goes; a listener accepts them in turns of its own."""
    talkers = pair(loop)
    listener = Account("listener", SHARES, accepts=True)
    visits: list[Client] = []

    def accept() -> Iterator[float]:
        while True:
            once = chain([milliseconds * MS], repeat(0.0))
            visits.append(loop.client(once, "churn", pause=math.inf, known=False))
            yield 0.05 * MS

    loop.clients.append(Client(accept(), listener))
    loop.run(1.0)
    since = loop.now
    loop.run(2.0)
    used = sum(each.used(since, loop.now) for each in (*visits, loop.clients[2]))
    assert used <= SHARES.new_lane * 2.0 * 1.1
    assert sum(each.count(since) for each in talkers) / 2.0 >= 0.6 * UNDISTURBED


def test_a_new_connection_is_served_beside_floods(loop: Loop) -> None:
    pair(loop)
    for place in range(10):
        loop.client(repeat(20 * MS), str(place))
    loop.run(1.0)
    newcomer = loop.client(repeat(0.4 * MS), "newcomer", pause=10 * MS, known=False)
    loop.run(1.0)
    assert newcomer.count(0.0) >= 20
    assert max(newcomer.waits) <= 25 * MS


def test_the_long_lane_rotates_over_the_addresses(loop: Loop) -> None:
    pair(loop)
    crowd = [loop.client(repeat(2 * MS), "crowd") for _ in range(50)]
    alone = loop.client(repeat(2 * MS), "alone")
    loop.run(5.0)
    since = loop.now
    loop.run(10.0)
    assert alone.count(since) >= 0.4 * sum(each.count(since) for each in crowd)


def test_a_long_turn_that_blocks_holds_up_the_lane_only_briefly() -> None:
    fair = FairShare()
    blocked, next_one, third = (Account("", SHARES) for _ in range(3))
    assert fair.ask(blocked, 1.0)
    assert not fair.ask(next_one, 1.0)
    assert fair.next(1.0) == []
    assert fair.next_at(1.0) == 1.0 + SHARES.longest_seconds
    assert fair.next(1.0 + SHARES.longest_seconds) == [next_one]
    assert not fair.ask(third, 1.03)
    fair.end(next_one, 0.0, 1.03)
    assert fair.next(1.03) == [third]
    fair.end(blocked, 0.0, 1.04)  # at last, which changes nothing
    assert fair.next_at(1.04) == math.inf


def test_a_connection_that_stopped_waiting_gets_no_turn() -> None:
    fair = FairShare()
    in_lane, also = Account("", SHARES), Account("", SHARES)
    short = Account("", SHARES)
    short.excess, short.is_long = 0.0, False
    fair.asked_at = 0.0  # the sockets were not polled for long
    for account in (in_lane, also, short):
        assert not fair.ask(account, 1.0)
    for account in (in_lane, short):
        fair.withdraw(account)
    assert fair.next(1.0) == [also]
    fair.end(also, 0.0, 1.0)
    assert fair.next(1.0) == []
    assert fair.next_at(1.0) == math.inf
    assert not fair.has_waiting


def test_a_turn_begins_at_once_if_no_other_connection_waits(loop: Loop) -> None:
    pair(loop)
    loop.run(0.1)
    assert all(max(each.waits) == 0 for each in loop.clients)


def test_a_client_alone_is_not_paused_for_its_own_short_turns(loop: Loop) -> None:
    turns = chain.from_iterable(repeat([0.1 * MS] * 50 + [2 * MS] * 10))
    alone = loop.client(turns)
    loop.run(1.0)
    assert max(alone.waits) <= POLL
    pair(loop)
    loop.run(1.0)
    assert max(alone.waits) > 2 * MS  # the same client, paused for others


def test_a_flood_without_competition_is_not_paused_for_it_later(loop: Loop) -> None:
    flood = loop.client(repeat(2 * MS))
    loop.run(10.0)
    pair(loop)
    since = loop.now
    loop.run(1.0)
    assert 0.05 < flood.used(since, loop.now) < 0.15


def test_new_connections_that_say_hello_do_not_hold_up_others(loop: Loop) -> None:
    def connect(count: int) -> float:
        coming = [
            loop.client(repeat(0.2 * MS), f"{i}", pause=0.02, known=False) for i in range(count)
        ]
        since = loop.now
        while coming:
            loop.run(MS)
            for each in [each for each in coming if len(each.taken) == 2]:
                coming.remove(each)
                loop.clients.remove(each)
        return loop.now - since

    alone = connect(500)
    pair(loop)
    loop.run(1.0)
    assert connect(500) > 2 * alone  # they have a fifth of the time while others talk


lengths = st.sampled_from([0.01, 0.06, 0.2, 0.3, 1.0, 5.0, 30.0])
scripts = st.tuples(
    st.lists(lengths, min_size=1, max_size=6),
    st.sampled_from([0.0, 0.1, 1.0, 20.0]),
    st.booleans(),
    st.sampled_from("abc"),
)


def forever(script: list[float]) -> Callable[[], Iterator[float]]:
    return lambda: chain.from_iterable(repeat([each * MS for each in script]))


@settings(max_examples=30)
@given(st.lists(scripts, min_size=2, max_size=12))
def test_a_short_turn_waits_for_at_most_one_long_one_and_every_turn_comes(
    clients: list[tuple[list[float], float, bool, str]],
) -> None:
    loop = Loop()
    for script, pause, known, place in clients:
        if sum(script) < len(script):  # else there are hundreds of thousands of turns
            pause = max(pause, 3.0)
        loop.client(forever(script)(), place, pause=pause * MS, known=known)
    loop.run(5.0)
    assert all(each.taken for each in loop.clients)
    assert loop.most_lane_turns_waited_for <= 1
