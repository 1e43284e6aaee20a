"""Hashes and verifies passphrases with argon2id: each call takes tens of milliseconds.

They are made in threads of their own, at a low scheduling priority: in a flood of logins the event
loop keeps nine tenths of a processor that it shares with one of them.

No passphrase is in an exception or a representation.
"""

import os
import secrets
import sys
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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

# Each step of niceness costs about a fifth: 10 steps leave a tenth of the share of the event loop.
# The lowest priority, 19, leaves a seventieth: where other programs keep all processors busy, one
# login took half a minute.
_NICENESS = 10


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
    """Hashes and compares passphrases in threads of its own, few at once, with *limits*' cost.

    A simulation on a virtual clock, which has no threads, overrides `run`.
    """

    def __init__(self, limits: AccountLimits) -> None:
        self._limits = limits
        self._limiter = trio.CapacityLimiter(_HASHES_AT_ONCE)
        # Not trio's threads: a thread cannot have its priority back, and others use those.
        self._threads = ThreadPoolExecutor(
            _HASHES_AT_ONCE, thread_name_prefix="passphrases", initializer=_lower_priority
        )

    async def hash(self, passphrase: str) -> str:
        """Return the hash of *passphrase*; see `hash_passphrase`."""
        return await self.run(partial(hash_passphrase, passphrase, self._limits))

    async def is_passphrase(self, passphrase: str, hash_: str) -> bool:
        """Return whether *passphrase* has that hash; see `is_passphrase`."""
        return await self.run(partial(is_passphrase, passphrase, hash_, self._limits))

    async def run(self, work: Callable[[], T]) -> T:
        """Return what *work* returns, when its turn has come.

        Once it has begun it ends, also if the caller is cancelled.
        """
        async with self._limiter:
            done, token = trio.Event(), trio.lowlevel.current_trio_token()
            future = self._threads.submit(work)

            def wake(_: Future[T]) -> None:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(done.set)

            future.add_done_callback(wake)
            with trio.CancelScope(shield=True):
                await done.wait()
            return future.result()


def _lower_priority() -> None:
    """Lower the priority of this thread, where a thread has one."""
    if sys.platform == "linux":
        with suppress(OSError):  # not allowed, in some sandboxes
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _encoded(passphrase: str) -> bytes:
    # A letter may be typed as one character or as several.  Normalizing takes quadratic time, and a
    # longer passphrase is wrong.
    if len(passphrase) <= MAX_PASSPHRASE_CHARACTERS:
        passphrase = unicodedata.normalize("NFC", passphrase)
    return passphrase.encode("utf-8", "surrogatepass")
