"""The interface of the two codecs, which encode requests and events as lines.  Pure.

Both codecs encode and decode the types of `multichat.protocol.messages`.  The lines that they
decode have been through `multichat.protocol.framing`.  For WebSocket see
`multichat.protocol.codecs`.  Encoded events are immutable bytes, which all their recipients share.
"""

from collections.abc import Iterator
from functools import cache
from typing import Protocol

from multichat.protocol.commands import COMMANDS
from multichat.protocol.messages import Event, Nonce, Notice, Request, SaidBlock, WireRequest

__all__ = ["Codec", "encoded_help"]


class Codec(Protocol):
    """A way to encode requests and events; each codec is a singleton."""

    @property
    def name(self) -> str:
        """The name of the protocol."""

    @property
    def is_text(self) -> bool:
        """Whether it is the text protocol."""

    @property
    def least_said_bytes(self) -> int:
        """The least that `encode_said` adds to each message."""

    def parse_requests(self, block: str) -> Iterator[Request]:
        """Yield the requests in a block of lines; raises nothing, whatever the lines hold."""

    def parse_events(self, block: str) -> Iterator[Event]:
        """Yield the events in a block of lines from a server; raises nothing either."""

    def encode_request(self, request: WireRequest) -> str:
        """Encode one request as a line, or several, without the last LF."""

    def encode(self, event: Event) -> bytes:
        """Encode one event; empty if this protocol cannot express it."""

    def encode_said(self, said: SaidBlock) -> bytes:
        """Encode the messages of one publish."""

    def with_nonce(self, encoded: bytes, nonce: Nonce | None) -> bytes:
        """Add the request's *nonce* to an answer that was encoded without one."""


def encoded_help(codec: Codec, nonce: Nonce | None = None) -> bytes:
    """Return the encoded answer to `Help`, one notice for each line, within 60 columns."""
    notices = _help_notices(codec)  # type: ignore[arg-type] # mypy thinks it has no hash
    return b"".join(codec.with_nonce(notice, nonce) for notice in notices)


@cache
def _help_notices(codec: Codec) -> list[bytes]:
    lines = ["commands, each on a line of its own:", *COMMANDS.help_lines()]
    return [codec.encode(Notice(line)) for line in lines]
