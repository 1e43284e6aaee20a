"""State for reconnecting: delays, the position in a room, unanswered requests."""

import json
from collections import deque
from itertools import cycle, islice, pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat.client.backoff import Delays, backoff
from multichat.client.descriptions import describe_event, describe_retry
from multichat.client.outbox import Outbox
from multichat.client.position import EVERYTHING, Position
from multichat.client.timeouts import ClientTimeouts
from multichat.protocol.messages import (
    MAX_UNACCEPTED,
    PROTOCOL,
    Disconnected,
    Goodbye,
    Hello,
    Limits,
    Reconnected,
    Renamed,
    RoomState,
    Said,
    Say,
    Start,
    Welcome,
    Who,
)

pytestmark = pytest.mark.unit


FIRST, LONGEST = 0.25, 30.0
TIMEOUTS = ClientTimeouts(first_retry=FIRST, longest_retry=LONGEST)


def welcome(
    *, client: int = 7, name: str = "Client 7", room: str = "lobby", last: str | None = None
) -> Welcome:
    return Welcome(
        PROTOCOL, client, name, room, 1, Limits(65536, 32), last, "x", session="token", resumed=True
    )


def said(number: int, room: str = "lobby") -> Said:
    return Said(id=f"e-{number}", room=room, client=1, name="bob", text="hi")


# --- When ----------------------------------------------------------------------------------------


def test_delays_double_up_to_a_maximum() -> None:
    pauses = list(islice(backoff(TIMEOUTS, lambda: 1.0), 10))
    assert pauses[:7] == [FIRST * 2**i for i in range(7)]
    assert pauses[7:] == [LONGEST] * 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_every_delay_is_positive_and_below_the_maximum(dice: list[float]) -> None:
    throws = iter(dice)
    for seconds in islice(backoff(TIMEOUTS, lambda: next(throws)), len(dice)):
        assert FIRST / 2 <= seconds <= LONGEST


DRAINING = Goodbye.of("draining", "the server is about to shut down", after=20.0)


def attempts(delays: Delays, goodbye: Goodbye | None, count: int) -> list[float]:
    """Return when the first attempts are made, if all fail."""
    times = [delays.lost(0.0, goodbye)]
    while len(times) < count:
        times.append(times[-1] + delays.failed(times[-1]))
    return times


def test_after_a_drain_another_node_is_tried_at_once_and_the_server_when_it_is_back() -> None:
    times = attempts(Delays(TIMEOUTS, lambda: 0.5), DRAINING, 10)
    assert times[0] < FIRST
    early = [each for each in times if each < 20]
    assert early == pytest.approx([0.1875 * (2**i - 1) for i in range(1, len(early) + 1)])
    back, again = [each for each in times if each >= 20][:2]
    assert back == pytest.approx(20.5)  # with jitter of a second
    assert again == pytest.approx(20.5 + 0.1875)  # and the backoff begins again


def test_clients_of_a_server_that_was_drained_come_back_over_a_second() -> None:
    back = []
    for number in range(100):
        times = attempts(Delays(TIMEOUTS, lambda n=number: n / 100), DRAINING, 10)  # type: ignore[misc]
        back.append(next(each for each in times if each >= 20))
    assert min(back) < 20.1
    assert max(back) > 20.9
    assert max(back) <= 21


@given(st.floats(0, 1e9), st.lists(st.floats(0, 1, exclude_max=True), min_size=1))
def test_no_attempt_after_a_drain_waits_longer_than_without_it(
    after: float, dice: list[float]
) -> None:
    throws = cycle(dice)
    delays = Delays(TIMEOUTS, lambda: next(throws))
    times = attempts(delays, Goodbye.of("draining", "x", after=after), 40)
    rounding = 1e-9
    assert all(0 <= late - early <= LONGEST + rounding for early, late in pairwise(times))


def test_other_goodbyes_say_before_when_no_attempt_is_made() -> None:
    full = Goodbye.of("full", "the server is full", after=20.0)
    assert attempts(Delays(TIMEOUTS, lambda: 0.5), full, 1) == [20.0]
    endless = Goodbye.of("full", "the server is full", after=1e9)
    assert attempts(Delays(TIMEOUTS, lambda: 0.5), endless, 1) == [300.0]


def test_a_loss_and_a_reconnect_are_one_line_each_and_failed_attempts_none() -> None:
    assert describe_event(Disconnected("connection reset", 0.26)) == [
        "Connection lost: connection reset; reconnecting"
    ]
    assert describe_event(Disconnected("connection refused", 30, 3)) == []
    assert describe_event(Reconnected(resumed=True, again=3)) == ["Connected again"]
    assert describe_event(Reconnected(resumed=False, again=3)) == [
        "Connected again, in a new session: the server no longer has the old one",
        "Unaccepted messages are sent again, and may be published twice",
    ]


@pytest.mark.parametrize(
    ("number", "seconds", "words"),
    [
        (1, 0.2, "reconnecting (1st try, next in 1 s)"),
        (2, 1.0, "reconnecting (2nd try, next in 1 s)"),
        (3, 3.2, "reconnecting (3rd try, next in 4 s)"),
        (11, 30, "reconnecting (11th try, next in 30 s)"),
        (22, 0, "reconnecting (22nd try)"),
        (113, -4, "reconnecting (113th try)"),
    ],
)
def test_the_status_shows_the_next_attempt(number: int, seconds: float, words: str) -> None:
    assert describe_retry(number, seconds) == words


# --- Where ---------------------------------------------------------------------------------------


def resume(name: str | None, room: str, since: str) -> Hello:
    return Hello(PROTOCOL, name, room, "token", since, rooms={room: Start(since)})


def test_a_resume_continues_after_the_last_event() -> None:
    place = Position()
    place.welcomed(welcome(last="e-1"))
    assert place.hello() == resume(None, "lobby", "e-1")
    assert place.advance(said(2))
    assert place.hello().since == "e-2"
    assert not place.advance(said(2))
    assert not place.advance(said(1))
    place.welcomed(welcome(last="e-9"))  # the messages between the two come now
    assert place.advance(said(3))
    assert place.hello().since == "e-3"


def test_a_resume_asks_for_name_and_room() -> None:
    place = Position()
    place.welcomed(welcome(last="e-1"))
    place.renamed(Renamed(7, "Client 7", "alice"))
    place.renamed(Renamed(8, "Client 8", "bob"))
    assert place.hello() == resume("alice", "lobby", "e-1")
    place.joined("den", "f-5")
    assert place.hello() == resume("alice", "den", "f-5")
    place.joined("den", "f-6")  # where it was already
    assert place.hello().since == "f-5"


def test_a_resume_continues_in_each_room() -> None:
    place = Position()
    place.welcomed(welcome(last="e-1"))
    place.entered("den", "f-5")
    place.entered("ops", None)
    assert place.advance(said(2))
    assert place.rooms == ("lobby", "den", "ops")
    everything = Start(replay=EVERYTHING)
    assert place.hello() == Hello(
        PROTOCOL,
        None,
        "ops",
        "token",
        replay=EVERYTHING,
        rooms={"lobby": Start("e-2"), "den": Start("f-5"), "ops": everything},
    )
    place.entered("den", "f-9")  # where it was already: it is the current one now
    assert (place.room, place.hello().since) == ("den", "f-5")
    place.exited("den")
    assert (place.room, place.hello().replay) == ("ops", EVERYTHING)


def test_the_rooms_of_a_welcome_are_ours() -> None:
    place = Position()
    place.welcomed(welcome(last="e-1"))
    place.entered("Den", "f-5")
    state = {"lobby": RoomState(1, "e-4"), "den": RoomState(1, "f-6"), "ops": RoomState(1, "g-1")}
    place.welcomed(msgspec.structs.replace(welcome(last="e-4"), rooms=state))
    assert place.rooms == ("den", "ops", "lobby")
    starts = {"den": Start("f-5"), "ops": Start("g-1"), "lobby": Start("e-1")}
    assert place.hello().rooms == starts


def test_rooms_that_may_have_been_entered_are_entered_again() -> None:
    place = Position()
    place.welcomed(welcome(last="e-1"))
    hello = place.hello({"den": Start(replay=20), "LOBBY": Start("e-7")})
    assert hello.rooms == {"den": Start(replay=20), "lobby": Start("e-1")}


def test_a_resume_of_an_empty_room_asks_for_everything() -> None:
    place = Position()
    place.welcomed(welcome(last=None))
    assert (place.hello().since, place.hello().replay) == (None, EVERYTHING)
    place.welcomed(welcome(last="e-4"))
    assert (place.hello().since, place.hello().replay) == (None, EVERYTHING)
    assert place.advance(said(1))
    assert (place.hello().since, place.hello().replay) == ("e-1", 0)


def test_messages_of_a_new_room_with_the_same_name_are_accepted() -> None:
    place = Position()
    place.welcomed(welcome(last="z-8"))
    assert place.advance(Said(id="z-9", room="lobby", name="bob", text="hi"))
    place.welcomed(welcome(last="e-3"))
    place.restart("lobby")
    assert place.hello().since == "e-3"
    assert place.advance(said(4))


def test_a_message_without_an_id_is_always_new() -> None:
    place = Position()
    place.welcomed(welcome())
    assert place.advance(Said(name="bob", text="hi"))
    assert place.advance(Said(name="bob", text="hi"))


# --- What ----------------------------------------------------------------------------------------


class Server:
    """Publishes each nonce once, as far as it remembers them."""

    def __init__(self) -> None:
        self.said: list[int] = []
        self._window: dict[int, None] = {}

    def take(self, line: str) -> int:
        request = json.loads(line)
        nonce: int = request["nonce"]
        if nonce not in self._window:
            self.said.append(int(request["text"]))
            self._window[nonce] = None
            if len(self._window) > MAX_UNACCEPTED:
                del self._window[next(iter(self._window))]
        return nonce


@given(st.data())
def test_every_message_is_published_once_in_order_whatever_is_cut(data: st.DataObject) -> None:
    outbox, server = Outbox(), Server()
    on_the_way: deque[str] = deque()
    answers: deque[int] = deque()
    connected, spoken = True, 0
    steps = st.lists(
        st.tuples(st.sampled_from(["say", "arrive", "answer", "cut", "again"]), st.integers(1, 90)),
        max_size=60,
    )
    for step, count in [*data.draw(steps), ("again", 1), ("arrive", 999), ("answer", 999)]:
        if step == "say":
            for _ in range(min(count, MAX_UNACCEPTED - len(outbox))):
                pending = outbox.encode(Say(str(spoken)))
                outbox.add(pending, is_sent=True)
                spoken += 1
                if connected:
                    on_the_way.append(pending.line)
        elif step == "arrive":
            for _ in range(min(count, len(on_the_way))):
                answers.append(server.take(on_the_way.popleft()))
        elif step == "answer":
            for _ in range(min(count, len(answers))):
                assert outbox.settle(answers.popleft()) is not None
        elif step == "cut":
            connected = False
            on_the_way.clear()
            answers.clear()
        elif not connected:
            connected = True
            on_the_way.extend(outbox.resend())
    assert server.said == list(range(spoken))
    assert not outbox


def test_nonces_increase_and_a_second_answer_is_ignored() -> None:
    outbox = Outbox()
    outbox.add(first := outbox.encode(Say("hi")), is_sent=True)
    outbox.add(second := outbox.encode(Who()), is_sent=True)
    assert (first.nonce, second.nonce, len(outbox), outbox.messages) == (1, 2, 2, 1)
    assert outbox.settle(1) is first
    assert outbox.settle(1) is None
    assert outbox.settle(None) is None
    outbox.withdraw([2, 9])
    assert not outbox
    assert outbox.encode(Who()).nonce == 3


@pytest.mark.parametrize("nonce", [None, "x", 5])
def test_an_answer_without_a_request_is_ignored(nonce: str | int | None) -> None:
    assert nonce not in Outbox()
