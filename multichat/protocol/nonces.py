"""Nonces as a storage keeps them: long ones as digests.  Pure."""

from hashlib import sha256

import msgspec

from multichat.protocol.fields import Nonce

__all__ = ["short_nonce"]

# A UUID has 38 bytes in JSON; a nonce may have 128 characters, each up to six.
_MAX_BYTES = 64

_DIGITS = 32

# At most this many characters always fit into `_MAX_BYTES`.
_SHORT_CHARACTERS = (_MAX_BYTES - 2) // 6

_encode = msgspec.json.Encoder().encode


def short_nonce(nonce: Nonce) -> Nonce:
    """Return *nonce*, or a digest in place of a long one.

    Different nonces have different results, unless a client computes digests of its own nonces.
    """
    if isinstance(nonce, int) or len(nonce) <= _SHORT_CHARACTERS:
        return nonce
    encoded = _encode(nonce)
    if len(encoded) <= _MAX_BYTES:
        return nonce
    return f"#{sha256(encoded).hexdigest()[:_DIGITS]}"
