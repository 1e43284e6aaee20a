"""How often passwords may be tried: from one address, from one site, and in all.  Pure.

Invariants:

1. Attempts from one address take turns: many connections at once try hardly more passwords than one
   after the other.
2. An attempt waits behind those of origins with as many wrong attempts as its own, never behind
   those with more: guessing passwords delays other guessers, not people who log in.
3. A right password does not count; with the server's own, earlier wrong ones are forgotten.
"""

from dataclasses import dataclass
from typing import TypeVar

from multichat.server.config import ServerTimeouts
from multichat.server.origin import Origin
from multichat.server.token_bucket import TokenBucket

__all__ = ["PasswordAttempts", "PasswordLimits"]

V = TypeVar("V")


@dataclass(frozen=True, kw_only=True, slots=True)
class PasswordLimits:
    """How many wrong passwords a second the server accepts in all, and what it remembers.

    Raises `ValueError` for a value out of range.
    """

    # By what is known of the origin: the right password was sent from there lately; no wrong
    # attempt; one; two; more.  An attacker with any number of addresses makes 38 attempts a second,
    # which is enough for a list of common passwords only.  A new origin waits behind at most 300
    # others, ten seconds.
    rates: tuple[float, ...] = (30.0, 30.0, 5.0, 2.0, 1.0)

    # This many wrong passwords at the same moment cause no delay.
    burst: int = 10

    # Wrong attempts from an IPv6 /48 that count as one of each /64 in it: it has 65,536 of them,
    # which may be one customer's or many.
    site_attempts: int = 8

    # Origins that are remembered of each kind: a few MiB at most.
    max_origins: int = 10_000

    def __post_init__(self) -> None:
        if len(self.rates) < 2 or min(self.rates) <= 0:
            raise ValueError("rates are at least two, each more than 0")
        if min(self.burst, self.site_attempts, self.max_origins) < 1:
            raise ValueError("burst, site_attempts and max_origins must be at least 1")


class PasswordAttempts:
    """Decides how long an attempt has to wait.

    An attempt waits for `address_delay`, then for `server_delay`, and is compared; then call
    `succeeded` or `failed`.  The caller passes the time as `now`, in seconds, of any clock that
    does not go back.
    """

    def __init__(self, timeouts: ServerTimeouts, limits: PasswordLimits = PasswordLimits()) -> None:
        self._timeouts = timeouts
        self._limits = limits
        self._buckets = [TokenBucket(rate, limits.burst) for rate in limits.rates]
        self._wrong: dict[str, tuple[int, float]] = {}  # and when the next may be made
        self._trusted: dict[str, float] = {}  # since when

    def address_delay(self, origin: Origin, now: float, longest: float) -> float | None:
        """Return for how many seconds an attempt from *origin* waits for others from there.

        None if that would be longer than *longest*; then it does not count.
        """
        wrong, next_at = self._recall(origin.address, now)
        at = max(now, next_at)
        if at - now > longest:
            return None
        # Also without a wrong attempt: many may wait before the first turns out to be wrong.
        self._remember(self._wrong, origin.address, (wrong, at + self._pause(max(1, wrong))))
        return at - now

    def server_delay(self, origin: Origin, now: float, longest: float) -> tuple[int, float] | None:
        """Return the queue in which an attempt from *origin* waits, and for how many seconds.

        None if that would be longer than *longest*.
        """
        queue = self._queue_of(origin, now)
        delay = self._buckets[queue].spend(1, now)
        if delay > longest:
            self._buckets[queue].spend(-1, now)
            return None
        return queue, delay

    def succeeded(self, origin: Origin, queue: int, now: float, *, forgets: bool = True) -> None:
        """Note that the password was right: trust *origin*, and forget earlier failures.

        Not if it *forgets* none, as where each has a password of its own.
        """
        self._buckets[queue].spend(-1, now)
        if forgets or not self._recall(origin.address, now)[0]:
            self._wrong.pop(origin.address, None)
        self._remember(self._trusted, origin.address, now)

    def failed(self, origin: Origin, now: float) -> None:
        """Note that the password was wrong."""
        wrong, next_at = self._recall(origin.address, now)
        next_at = max(next_at, now + self._pause(wrong + 1))
        self._remember(self._wrong, origin.address, (wrong + 1, next_at))
        if origin.site != origin.address:
            self._remember(self._wrong, origin.site, (self._recall(origin.site, now)[0] + 1, now))

    def _queue_of(self, origin: Origin, now: float) -> int:
        wrong = self._recall(origin.address, now)[0]
        since = self._trusted.get(origin.address)
        if not wrong and since is not None and now - since <= self._timeouts.session:
            return 0
        if origin.site != origin.address:
            wrong += self._recall(origin.site, now)[0] // self._limits.site_attempts
        return min(wrong + 1, len(self._buckets) - 1)

    def _recall(self, key: str, now: float) -> tuple[int, float]:
        wrong, next_at = self._wrong.get(key, (0, now))
        return (0, now) if now > next_at + self._timeouts.forget_attempts else (wrong, next_at)

    def _remember(self, table: dict[str, V], key: str, value: V) -> None:
        table.pop(key, None)
        table[key] = value  # as the last one
        if len(table) > self._limits.max_origins:
            del table[next(iter(table))]

    def _pause(self, wrong: int) -> float:
        pause = self._timeouts.first_attempt_delay * 2.0 ** min(wrong - 1, 10)
        return min(self._timeouts.max_attempt_delay, pause)
