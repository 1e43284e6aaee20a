"""Why connections are rejected and clients leave, as words for counters.  Pure.

Both sets are closed, so that the number of counters is bounded, whatever clients send.
"""

from enum import Enum

from multichat.protocol.auth import TOO_MANY_FROM_ADDRESS
from multichat.protocol.goodbyes import GOODBYES

__all__ = ["DISCONNECT_CODES", "RefusedFor"]

DISCONNECT_CODES = (
    *(code for code in GOODBYES if code != "wrong-password"),  # which is before admission
    "closed",
    "lost",
    "protocol-error",
    "aborted",
)
"""Why a client has left: the codes of a goodbye, and four for those that got none with a code.

`closed`: the client has closed the connection.  `lost`: the connection broke, or could not be
written to.  `protocol-error`: the client speaks another protocol, or breaks the rules of
WebSocket.  `aborted`: the server has ended the session without a goodbye, for instance because it
was cancelled.
"""


class RefusedFor(Enum):
    """Why a connection was rejected before it was a client; the value names its counter."""

    BANNED = "banned"
    FULL = "full"
    TOO_MANY_FROM_ADDRESS = "too-many-from-address"
    UNAVAILABLE = "unavailable"  # the engine of the cluster is away, or full
    SHUTDOWN = "shutdown"
    TOO_MANY_PENDING = "too-many-pending"  # a newer connection has taken the slot
    WRONG_PASSWORD = "wrong-password"  # noqa: S105 - a word, not one
    NO_PASSWORD = "no-password"  # noqa: S105
    TOO_MANY_ATTEMPTS = "too-many-attempts"
    NOT_AUTHENTICATED = "not-authenticated"  # by the program's `authenticate`
    TLS = "tls"
    PROXY_HEADER = "proxy-header"
    OTHER_PROTOCOL = "other-protocol"
    WEB_REQUEST = "web-request"  # of another origin, for another host, or without a right token

    @classmethod
    def too_many(cls, reason: str) -> "RefusedFor":
        """Return which of two limits *reason*, of `Admission.add_connection`, is about."""
        is_address = reason.startswith(TOO_MANY_FROM_ADDRESS)
        return cls.TOO_MANY_FROM_ADDRESS if is_address else cls.FULL
