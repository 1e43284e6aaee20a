"""When a client tries to connect again: exponential backoff, and the delay that a goodbye asks for.

Pure: the time and the randomness are parameters.
"""

from collections.abc import Callable, Iterator
from random import random

from multichat.client.timeouts import ClientTimeouts
from multichat.protocol.messages import Goodbye

__all__ = ["Delays", "backoff"]

# The longest time that a server may ask us to wait before we reconnect.
_MAX_AFTER_SECONDS = 300.0

# Clients of a drained server return spread over this time, and not all at once.
_SPREAD_SECONDS = 1.0


def backoff(timeouts: ClientTimeouts, random: Callable[[], float] = random) -> Iterator[float]:
    """Yield the seconds to wait before each attempt.

    The backoff is exponential with jitter, so that a thousand clients do not reconnect at once.
    *random* returns a number in [0, 1).
    """
    seconds = timeouts.first_retry
    while True:
        yield seconds * (1 + random()) / 2
        seconds = min(2 * seconds, timeouts.longest_retry)


class Delays:
    """The delays of one chat before its attempts to reconnect.

    After a goodbye with `after` the next attempt waits for that time.  Not so after `draining`:
    another node may accept the client at once, and attempts cost a server nothing once it has
    closed its listeners.  Then attempts follow the usual backoff, and *after* says when the server
    may be back: at that time there is an attempt, with jitter, however long the backoff has become.
    """

    def __init__(self, timeouts: ClientTimeouts, random: Callable[[], float] = random) -> None:
        self._timeouts, self._random = timeouts, random
        self._back_at: float | None = None  # when a draining server may be back
        self.reset()

    def reset(self) -> None:
        """Begin again with the shortest delay, because a connection has lasted."""
        self._backoff = backoff(self._timeouts, self._random)
        self._back_at = None

    def lost(self, now: float, goodbye: Goodbye | None) -> float:
        """Return the seconds until the first attempt after a connection that *goodbye* ended.

        None means that it ended without a goodbye.
        """
        if goodbye is None or goodbye.after is None:
            return self.failed(now)
        after = min(goodbye.after, _MAX_AFTER_SECONDS)
        if goodbye.code != "draining":
            return max(next(self._backoff), after)
        self._back_at = now + after
        return self.failed(now)

    def failed(self, now: float) -> float:
        """Return the seconds until the next attempt, after one that has failed."""
        seconds = next(self._backoff)
        if self._back_at is None or now + seconds < self._back_at:
            return seconds
        left = self._back_at - now
        self.reset()
        return min(seconds, max(0.0, left) + self._random() * _SPREAD_SECONDS)
