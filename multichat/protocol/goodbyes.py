"""The codes and reasons of a goodbye.  Pure."""

from multichat.protocol.auth import (
    SERVER_IS_FULL,
    TOO_MANY_ATTEMPTS,
    TOO_MANY_FROM_ADDRESS,
    TOO_MANY_WRONG,
    UNAVAILABLE,
    WRONG_PASSWORD,
)

__all__ = [
    "ASKED_TO_LEAVE",
    "DRAINING",
    "FENCED",
    "GOODBYES",
    "SHUTTING_DOWN",
    "TAKEN_OVER",
    "TOO_FAR_BEHIND",
    "TOO_SLOW",
    "code_of_reason",
]

ASKED_TO_LEAVE = "you asked to leave"
"""The reason of the goodbye that answers `Quit`."""

GOODBYES = {
    "shutdown": True,
    "draining": True,
    "too-slow": True,
    "idle": True,
    "full": True,
    "unavailable": True,
    "kicked": False,
    "banned": False,
    "replaced": False,
    "wrong-password": False,
    "quit": False,
}
"""The codes of a goodbye, and whether the client may reconnect after it."""

TOO_SLOW = "too slow"
TOO_FAR_BEHIND = "too far behind"
TAKEN_OVER = "taken over by a new connection"
SHUTTING_DOWN = "the server is shutting down"
DRAINING = "the server is about to shut down"

FENCED = "this server was out of reach of the others for too long"
"""The reason of a node of a cluster that the others consider dead."""

# How the reasons of a goodbye begin, for goodbyes without a code, from the text protocol or from
# older servers.  The first match counts.
_CODES_BY_REASON = {
    SHUTTING_DOWN: "shutdown",
    DRAINING: "draining",
    TOO_SLOW: "too-slow",
    TOO_FAR_BEHIND: "too-slow",
    "idle for": "idle",
    SERVER_IS_FULL: "full",
    TOO_MANY_FROM_ADDRESS: "full",
    TOO_MANY_ATTEMPTS: "full",
    UNAVAILABLE: "unavailable",
    "kicked": "kicked",
    "banned": "banned",
    TAKEN_OVER: "replaced",
    WRONG_PASSWORD: "wrong-password",
    TOO_MANY_WRONG: "full",
    ASKED_TO_LEAVE: "quit",
}


def code_of_reason(reason: str) -> str:
    """Return the code of a goodbye that gives only a reason; empty if it is unknown."""
    return next((code for start, code in _CODES_BY_REASON.items() if reason.startswith(start)), "")
