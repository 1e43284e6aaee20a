"""Limits of password attempts: the delay of each client, and the total rate."""

import heapq
from collections import Counter
from collections.abc import Iterator
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multichat import ServerTimeouts
from multichat.server.origin import Origin
from multichat.server.password_attempts import PasswordAttempts, PasswordLimits

pytestmark = pytest.mark.unit

TIMEOUTS = ServerTimeouts()
LIMITS = PasswordLimits()
LONGEST = 10.0

# How many attempts all queues except that of known addresses allow in *seconds*.
RATE = sum(LIMITS.rates[1:])
BURST = LIMITS.burst * (len(LIMITS.rates) - 1)


def v4(number: int) -> Origin:
    origin = Origin.of(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:1")
    assert origin is not None
    return origin


def v6(site: int, number: int) -> Origin:
    origin = Origin.of(f"[2001:db8:{site:x}:{number:x}::1]:1")
    assert origin is not None
    return origin


HERE, ELSEWHERE = v4(1), v4(2)


class Attempts:
    """Attempts with a simulated clock, with the delays of `multichat.server.admission`."""

    def __init__(self, limits: PasswordLimits = LIMITS) -> None:
        self.limit = PasswordAttempts(TIMEOUTS, limits)
        self.now = 0.0
        self.made: list[tuple[float, Origin, bool]] = []
        self._order = count()
        self._waiting: list[tuple[float, int, Origin, bool, int | None]] = []

    def begin(self, origin: Origin, *, right: bool = False) -> bool:
        """Start an attempt; return False if it is rejected."""
        delay = self.limit.address_delay(origin, self.now, LONGEST)
        if delay is not None:
            self._wait(delay, origin, right, None)
        return delay is not None

    def _wait(self, delay: float, origin: Origin, right: bool, queue: int | None) -> None:
        at = self.now + delay
        heapq.heappush(self._waiting, (at, next(self._order), origin, right, queue))
        self.advance(0)

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self._waiting and self._waiting[0][0] <= until:
            self.now, _, origin, right, queue = heapq.heappop(self._waiting)
            if queue is None:
                turn = self.limit.server_delay(origin, self.now, LONGEST)
                if turn is not None:
                    queue, delay = turn
                    self._wait(delay, origin, right, queue)
                continue
            if right:
                self.limit.succeeded(origin, queue, self.now)
            else:
                self.limit.failed(origin, self.now)
            self.made.append((self.now, origin, right))
        self.now = max(self.now, until)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def seconds(self, origin: Origin, *, right: bool = False) -> float:
        """Return the delay of an attempt that is made now."""
        started, before = self.now, len(self.made)
        assert self.begin(origin, right=right)
        while not any(each[1:] == (origin, right) for each in self.made[before:]):
            assert self.now < started + 2 * LONGEST, "it was rejected"
            self.advance(0.05)
        return self.made[-1][0] - started

    def wrong(self) -> int:
        return sum(not right for _, _, right in self.made)


def fresh(numbers: Iterator[int] | None = None) -> Iterator[Origin]:
    return map(v4, numbers or count(1000))


# --- One address ---------------------------------------------------------------------------------


def test_each_wrong_password_doubles_the_delay_of_the_next() -> None:
    attempts = Attempts()
    took = [attempts.seconds(HERE) for _ in range(8)]
    assert took == pytest.approx([0, 0.5, 1, 2, 4, 8, 8, 8], abs=0.05)
    assert attempts.seconds(ELSEWHERE) == 0


def test_a_right_password_resets_the_delay() -> None:
    attempts = Attempts()
    for _ in range(5):
        attempts.seconds(HERE)
    assert attempts.seconds(HERE, right=True) == pytest.approx(8, abs=0.05)
    assert attempts.seconds(HERE) == 0


def test_wrong_passwords_are_forgotten_in_time() -> None:
    attempts = Attempts()
    for _ in range(6):
        attempts.seconds(HERE)
    attempts.advance(8 + TIMEOUTS.forget_attempts + 1)
    assert attempts.seconds(HERE) == 0
    assert attempts.seconds(HERE) == pytest.approx(0.5, abs=0.05)


def test_thousands_of_wrong_passwords_do_not_overflow_the_delay() -> None:
    limit = PasswordAttempts(TIMEOUTS)
    for _ in range(5000):
        limit.failed(HERE, 0.0)
    assert limit.address_delay(HERE, 0.0, LONGEST) == TIMEOUTS.max_attempt_delay


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), min_size=1, max_size=40))
def test_many_connections_from_one_address_try_hardly_more_than_one(
    visits: list[tuple[float, int]],
) -> None:
    """*visits*: pauses, and how many connections try after each."""
    attempts = Attempts()
    for pause, connections in visits:
        attempts.advance(pause)
        for _ in range(connections):
            attempts.begin(HERE)
    attempts.advance(2 * LONGEST)
    # Those that started before the first was known to be wrong, and one every eight seconds.
    assert len(attempts.made) <= 22 + attempts.now / TIMEOUTS.max_attempt_delay


@given(st.lists(st.floats(0, 30), min_size=1, max_size=30))
def test_consecutive_connections_wait_longer_and_longer(pauses: list[float]) -> None:
    attempts = Attempts()
    for pause in pauses:
        attempts.advance(pause)
        attempts.seconds(HERE)
    times = [at for at, _, _ in attempts.made]
    shortest = [0.5, 1, 2, 4, *[8] * len(times)]
    for (one, other), delay in zip(pairwise(times), shortest, strict=False):
        assert other - one >= delay - 1e-9


def test_one_wrong_password_does_not_keep_out_others_at_the_address() -> None:
    """Like when many clients of an office reconnect, and one of them has an old password."""
    attempts = Attempts()
    begun = [attempts.begin(HERE, right=i != 10) for i in range(30)]
    assert all(begun)
    attempts.advance(LONGEST)
    assert sum(right for _, _, right in attempts.made) == 29


def test_a_rejected_attempt_delays_no_other_client() -> None:
    attempts = Attempts()
    for _ in range(4):
        attempts.seconds(HERE)
    begun = [attempts.begin(HERE) for _ in range(100)]
    assert begun == [True] * 2 + [False] * 98
    attempts.advance(4 + 4 + 8)
    assert attempts.seconds(HERE, right=True) == 0


# --- The whole server ----------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.integers(0, 40), st.integers(1, 60), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_wrong_passwords_are_bounded_whatever_addresses_they_come_from(
    waves: list[tuple[float, int, int, bool]],
) -> None:
    """*waves*: pause, first address, number of simultaneous attempts, whether right."""
    attempts = Attempts()
    for pause, first, number, right in waves:
        attempts.advance(pause)
        for i in range(number):
            attempts.begin(v4(first + i), right=right and i % 5 == 0)
    attempts.advance(60)
    known = {origin for _, origin, right in attempts.made if right}
    times = [at for at, origin, right in attempts.made if not right and origin not in known]
    for i, start in enumerate(times):
        for j in range(i, len(times)):
            assert j - i + 1 <= BURST + RATE * (times[j] - start) + 1e-6


def test_addresses_without_end_make_a_bounded_number_of_attempts() -> None:
    attempts = Attempts()
    addresses = fresh()
    for _ in range(200):  # a thousand a second
        for _ in range(100):
            attempts.begin(next(addresses))
        attempts.advance(0.1)
    assert attempts.wrong() <= LIMITS.burst + LIMITS.rates[1] * 20
    assert attempts.waiting <= LIMITS.rates[1] * LONGEST + 1


@pytest.mark.parametrize("tries", [1, 3, 1000])
@pytest.mark.parametrize("attackers", [10, 50, 290])
def test_a_right_password_from_a_new_address_is_checked_within_seconds(
    attackers: int, tries: int
) -> None:
    """*attackers* try without pausing, each from another address after *tries* attempts."""
    attempts = Attempts()
    addresses = fresh()
    current = [next(addresses) for _ in range(attackers)]
    used = Counter[int]()
    busy: set[Origin] = set()

    def attack(seconds: float) -> None:
        for _ in range(int(seconds / 0.05)):
            busy.difference_update(origin for _, origin, _ in attempts.made[-100:])
            for i, origin in enumerate(current):
                if origin in busy:
                    continue
                if used[i] >= tries:
                    used[i], origin = 0, next(addresses)
                    current[i] = origin
                used[i] += 1
                busy.add(origin)
                attempts.begin(origin)
            attempts.advance(0.05)

    attack(30)
    attempts.begin(HERE, right=True)
    started = attempts.now
    while HERE not in {origin for _, origin, _ in attempts.made[-100:]}:
        assert attempts.now <= started + attackers / LIMITS.rates[1] + 0.2
        attack(0.05)
    assert attempts.wrong() <= BURST + RATE * attempts.now


def test_a_known_address_does_not_wait_for_others() -> None:
    attempts = Attempts()
    attempts.seconds(HERE, right=True)
    addresses = fresh()
    for _ in range(100):
        for _ in range(100):
            attempts.begin(next(addresses))
        attempts.advance(0.1)
    assert attempts.seconds(HERE, right=True) == 0
    attempts.begin(HERE)  # a wrong one, after which it is no longer trusted
    assert attempts.begin(HERE, right=True)
    attempts.advance(0.6)
    assert attempts.made[-1][1] != HERE or not attempts.made[-1][2]


def test_a_known_address_is_remembered_for_a_day() -> None:
    attempts = Attempts(PasswordLimits(rates=(20.0, 1e-3)))
    attempts.seconds(HERE, right=True)
    attempts.seconds(ELSEWHERE, right=True)
    addresses = fresh()
    attempts.advance(TIMEOUTS.session - 1)
    for _ in range(LIMITS.burst):
        attempts.begin(next(addresses))
    assert attempts.seconds(HERE, right=True) == 0
    attempts.advance(2)
    attempts.begin(ELSEWHERE, right=True)
    attempts.advance(LONGEST)
    assert attempts.made[-1][1] == HERE


def test_right_passwords_are_not_limited() -> None:
    """Like when all clients reconnect after a restart, many of them from one address."""
    attempts = Attempts()
    for i in range(5000):
        assert attempts.seconds(v4(i % 700), right=True) == 0
    assert attempts.seconds(v6(1, 1), right=True) == 0


# --- A site --------------------------------------------------------------------------------------


def test_a_site_with_addresses_without_end_ends_in_the_slowest_queue() -> None:
    attempts = Attempts()
    for i in range(6_000):
        attempts.begin(v6(7, i))
        attempts.advance(0.1)
    first = (len(LIMITS.rates) - 2) * LIMITS.site_attempts
    assert attempts.wrong() <= first + LIMITS.burst + LIMITS.rates[-1] * attempts.now + 1
    # Other sites do not wait for that.
    assert attempts.seconds(v6(8, 1), right=True) == 0


def test_people_of_one_site_do_not_slow_each_other_down() -> None:
    attempts = Attempts()
    for i in range(1000):
        assert attempts.seconds(v6(7, i), right=True) == 0
    assert attempts.seconds(v6(7, 2000)) == 0
    assert attempts.limit.server_delay(v6(7, 2001), attempts.now, LONGEST) == (1, 0)


# --- Memory --------------------------------------------------------------------------------------


def test_remembered_origins_are_bounded_and_the_quietest_is_forgotten_first() -> None:
    limit = PasswordAttempts(TIMEOUTS, PasswordLimits(max_origins=3))
    for number in (1, 2, 3, 1, 4):  # 2 has been quiet for longest
        limit.failed(v4(number), 0.0)
    delays = [limit.address_delay(v4(number), 0.0, LONGEST) for number in (1, 3, 4)]
    assert delays == [1, 0.5, 0.5]
    assert limit.address_delay(v4(2), 0.0, LONGEST) == 0
    for origin, _ in zip(fresh(), range(1000), strict=False):
        limit.succeeded(origin, 1, 0.0)
        limit.failed(origin, 0.0)
    assert len(limit._wrong) == len(limit._trusted) == 3


def test_attackers_do_not_displace_known_addresses() -> None:
    attempts = Attempts(PasswordLimits(max_origins=3))
    attempts.seconds(HERE, right=True)
    for origin, _ in zip(fresh(), range(1000), strict=False):
        attempts.begin(origin)
    assert attempts.seconds(HERE, right=True) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"rates": ()}, {"rates": (1.0,)}, {"rates": (1.0, 0.0)}, {"burst": 0}, {"max_origins": 0}],
)
def test_invalid_limits_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="at least"):
        PasswordLimits(**wrong)  # type: ignore[arg-type]


# --- Origins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("203.0.113.7:51234", ("203.0.113.7/32", "203.0.113.7/32")),
        ("[::ffff:203.0.113.7]:1", ("203.0.113.7/32", "203.0.113.7/32")),
        ("[2001:db8:1:2:3::4]:1", ("2001:db8:1:2::/64", "20010db80001/48")),
        ("[::1]:1", ("::1/128", "::1/128")),
        ("[fe80::1%eth0]:1", ("fe80::1/128", "fe80::1/128")),
    ],
)
def test_an_origin_is_an_address_and_its_site(address: str, origin: tuple[str, str]) -> None:
    found = Origin.of(address)
    assert found is not None
    assert (found.address, found.site) == origin
    assert found.is_loopback == (address == "[::1]:1")


def test_the_origin_of_a_unix_socket_is_the_user() -> None:
    assert Origin.of("", 7) == Origin("user 7", "user 7", is_user=True)
    assert Origin.of("", 7) != Origin.of("", 8)
    assert Origin.of("") is None
