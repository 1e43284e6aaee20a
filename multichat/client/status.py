"""What a client tells the person at it about the connection, in words.  Pure."""

import math

from multichat.errors import ConnectFailed, Refused
from multichat.protocol.messages import Disconnected, Reconnected

__all__ = [
    "LEAVES_WHEN_SENT",
    "SPEAKING_TEXT",
    "describe_connection",
    "describe_retry",
    "refused_name",
    "waiting_for_server",
]

SPEAKING_TEXT = "The server does not answer in JSON: speaking plain text"

LEAVES_WHEN_SENT = "Leaving when they are sent; Ctrl+C leaves at once"


def describe_connection(event: Disconnected | Reconnected) -> list[str]:
    """Say in words, one line each, what has become of our connection.

    Of a try that has failed nothing: that is a matter for `describe_retry`, where it is in place.
    """
    if isinstance(event, Disconnected):
        return [] if event.failures else [f"Connection lost: {event.reason}; reconnecting"]
    if event.resumed:
        lines = ["Connected again"]
    else:
        lines = ["Connected again, as somebody new: the server has forgotten us"]
        if event.again:
            lines.append("What was not accepted is sent again, and may be said twice")
    return lines


def describe_retry(number: int, seconds: float) -> str:
    """Say in a few words which try is next and in how many *seconds*; none are left: it goes on."""
    last, last_two = number % 10, number % 100
    suffix = "th" if last_two in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    when = f", next in {math.ceil(seconds)} s" if seconds > 0 else ""
    return f"reconnecting ({number}{suffix} try{when})"


def waiting_for_server(error: ConnectFailed) -> str:
    """Return the line that says that we wait for a server that is not there."""
    return f"Cannot connect: {error.reason}; waiting for the server"


def refused_name(refused: Refused) -> str:
    """Return the line that says why our name was refused, and whether we ask for it again."""
    again = "; asking again when it is free" if refused.code == "name-taken" else ""
    return f"{refused}{again}"
