"""Hashes and verifies passphrases with argon2id: each call takes tens of milliseconds.

No passphrase is in an exception or a representation.
"""

import secrets
from functools import cache

from multichat.errors import InvalidRequest
from multichat.protocol.messages import MAX_PASSPHRASE_CHARACTERS, MIN_PASSPHRASE_CHARACTERS
from multichat.server.config import AccountLimits

__all__ = ["check_passphrase", "hash_passphrase", "is_passphrase"]


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


def _encoded(passphrase: str) -> bytes:
    return passphrase.encode("utf-8", "surrogatepass")
