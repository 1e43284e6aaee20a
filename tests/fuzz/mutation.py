"""A simple mutation engine, used if atheris is not installed.

Owns the generation of inputs from others, at random but reproducibly, and the shrinking of failing
ones.  Without coverage it only finds inputs close to the corpus.
"""

from collections.abc import Callable, Iterator, Sequence
from random import Random

__all__ = ["MAX_INPUT_BYTES", "mutants", "shrunk"]

# Enough for several lines of any kind; longer inputs only take longer.
MAX_INPUT_BYTES = 2048

# The most attempts to shrink a failing input; a second or two.
_SHRINKING_ATTEMPTS = 2000


def mutants(seeds: Sequence[bytes], words: Sequence[bytes], random: Random) -> Iterator[bytes]:
    """Yield endless mutations of *seeds*, with the help of *words*."""
    while True:
        data = random.choice([*seeds, b""])
        for _ in range(random.randint(1, 6)):
            data = _mutated(data, seeds, words, random)
        yield data[:MAX_INPUT_BYTES]


def _mutated(data: bytes, seeds: Sequence[bytes], words: Sequence[bytes], random: Random) -> bytes:
    start, end = sorted(random.randint(0, len(data)) for _ in range(2))
    head, middle, tail = data[:start], data[start:end], data[end:]
    some = middle[:8]
    match random.randrange(7):
        case 0:  # a word more
            return head + random.choice(words) + data[start:]
        case 1:  # a word instead of a little
            return head + random.choice(words) + data[start + random.randint(0, 8) :]
        case 2:  # a few bytes less
            return head + middle[len(some) :] + tail
        case 3:  # any byte
            return head + random.randbytes(1) + data[start + random.randint(0, 1) :]
        case 4:  # one bit of one byte
            flipped = bytes(byte ^ 1 << random.randrange(8) for byte in data[start : start + 1])
            return head + flipped + data[start + 1 :]
        case 5:  # the same again
            return head + middle + middle + tail
        case _:  # the beginning of one and the end of another
            other = random.choice([*seeds, b""])
            return head + other[random.randint(0, len(other)) :]


def shrunk(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """Return a smaller failing input, or *data*, by removing spans while it still fails."""
    attempts = _SHRINKING_ATTEMPTS
    span = len(data) // 2
    while span and attempts > 0:
        start = 0
        while start < len(data) and attempts > 0:
            smaller = data[:start] + data[start + span :]
            attempts -= 1
            if fails(smaller):
                data = smaller
            else:
                start += span
        span //= 2
    return data
