"""How long to wait before each attempt to connect again."""

from collections.abc import Callable, Iterator
from random import random

from multichat.client.timeouts import ClientTimeouts

__all__ = ["backoff"]


def backoff(timeouts: ClientTimeouts, random: Callable[[], float] = random) -> Iterator[float]:
    """Yield the seconds to wait before each attempt.

    The backoff is exponential with jitter, so that a thousand clients do not reconnect at once.
    *random* returns a number in [0, 1).
    """
    seconds = timeouts.first_retry
    while True:
        yield seconds * (1 + random()) / 2
        seconds = min(2 * seconds, timeouts.longest_retry)
