"""Hashes and verifies passphrases with argon2id: each call takes tens of milliseconds.

No passphrase is in an exception or a representation.
"""

import os
import secrets
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from typing import TypeVar

import trio

from multichat.errors import InvalidRequest
from multichat.protocol.messages import MAX_PASSPHRASE_CHARACTERS, MIN_PASSPHRASE_CHARACTERS
from multichat.server.config import AccountLimits

__all__ = ["Hasher", "check_passphrase", "hash_passphrase", "is_passphrase"]

T = TypeVar("T")

# One of two processors: the other one serves the chat.
_HASHES_AT_ONCE = max(1, (os.cpu_count() or 1) // 2)


def check_passphrase(passphrase: str) -> None:
    """Raise `InvalidRequest` if *passphrase* is too short or too long for a new one."""
    if len(passphrase) < MIN_PASSPHRASE_CHARACTERS:
        raise InvalidRequest(f"a passphrase has at least {MIN_PASSPHRASE_CHARACTERS} characters")
    if len(passphrase) > MAX_PASSPHRASE_CHARACTERS:
        raise InvalidRequest(f"a passphrase has at most {MAX_PASSPHRASE_CHARACTERS} characters")


def hash_passphrase(passphrase: str, limits: AccountLimits) -> str:
    """Return the hash of *passphrase*, with its salt and parameters."""
    from argon2.low_level import Type, hash_secret

    return hash_secret(
        _encoded(passphrase),
        secrets.token_bytes(16),
        time_cost=limits.hash_passes,
        memory_cost=limits.hash_kib,
        parallelism=1,
        hash_len=32,
        type=Type.ID,
    ).decode()


def is_passphrase(passphrase: str, hash_: str, limits: AccountLimits) -> bool:
    """Return whether *passphrase* has that hash.

    Without one, it is compared with the hash of nothing, so that it takes as long.
    """
    from argon2.exceptions import InvalidHashError, VerificationError
    from argon2.low_level import Type, verify_secret

    try:
        verify_secret((hash_ or _hash_of_nothing(limits)).encode(), _encoded(passphrase), Type.ID)
    except (VerificationError, InvalidHashError, UnicodeEncodeError):
        return False
    return bool(hash_)


@cache
def _hash_of_nothing(limits: AccountLimits) -> str:
    return hash_passphrase(secrets.token_hex(), limits)


class Hasher:
    """Hashes and compares passphrases in worker threads, few at once, with the cost in *limits*.

    A simulation on a virtual clock, which has no threads, overrides `run`.
    """

    def __init__(self, limits: AccountLimits) -> None:
        self._limits = limits
        self._limiter = trio.CapacityLimiter(_HASHES_AT_ONCE)

    async def hash(self, passphrase: str) -> str:
        """Return the hash of *passphrase*; see `hash_passphrase`."""
        return await self.run(partial(hash_passphrase, passphrase, self._limits))

    async def is_passphrase(self, passphrase: str, hash_: str) -> bool:
        """Return whether *passphrase* has that hash; see `is_passphrase`."""
        return await self.run(partial(is_passphrase, passphrase, hash_, self._limits))

    async def run(self, work: Callable[[], T]) -> T:
        """Return what *work* returns, when its turn has come."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _encoded(passphrase: str) -> bytes:
    # A letter may be typed as one character or as several.  Normalizing takes quadratic time, and a
    # longer passphrase is wrong.
    if len(passphrase) <= MAX_PASSPHRASE_CHARACTERS:
        passphrase = unicodedata.normalize("NFC", passphrase)
    return passphrase.encode("utf-8", "surrogatepass")
