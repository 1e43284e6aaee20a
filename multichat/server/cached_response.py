"""Answers that anybody may ask for again and again: encoded once for each protocol, then reused.

Owns the encoded bytes until what they say changes.  Only the nonce is added for each request.
"""

from collections.abc import Callable

from multichat.protocol.codec import Codec
from multichat.protocol.messages import Event, Nonce

__all__ = ["CachedResponse"]


class CachedResponse:
    """The answer that *make* returns, without a nonce; whoever changes it calls `forget`."""

    __slots__ = ("_encoded", "_make")

    def __init__(self, make: Callable[[], Event]) -> None:
        self._make = make
        self._encoded: dict[Codec, bytes] = {}

    def encode(self, codec: Codec, nonce: Nonce | None = None) -> bytes:
        """Return the answer in *codec*, to the request with that *nonce*."""
        encoded = self._encoded.get(codec)
        if encoded is None:
            encoded = self._encoded[codec] = codec.encode(self._make())
        return codec.with_nonce(encoded, nonce)

    def forget(self) -> None:
        """Encode the answer anew when it is asked for next: it has changed."""
        self._encoded.clear()
