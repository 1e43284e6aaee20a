"""Responses that many clients ask for: encoded once for each codec, until they change.

Owns the encoded bytes until what they say changes.  Only the nonce is added for each request.
"""

from collections.abc import Callable

from multichat.protocol.codec import Codec
from multichat.protocol.messages import Event, Nonce

__all__ = ["CachedResponse"]


class CachedResponse:
    """The response that *make* returns, without a nonce; call `forget` when it has changed."""

    __slots__ = ("_encoded", "_make")

    def __init__(self, make: Callable[[], Event]) -> None:
        self._make = make
        self._encoded: dict[Codec, bytes] = {}

    def encode(self, codec: Codec, nonce: Nonce | None = None) -> bytes:
        """Return the response in *codec*, to the request with that *nonce*."""
        encoded = self._encoded.get(codec)
        if encoded is None:
            encoded = self._encoded[codec] = codec.encode(self._make())
        return codec.with_nonce(encoded, nonce)

    def forget(self) -> None:
        """Encode the response again the next time."""
        self._encoded.clear()
