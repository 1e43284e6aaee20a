"""The texts with which every front end describes the connection.  Pure."""

import math

from multichat.errors import ConnectFailed, Refused
from multichat.protocol.messages import Disconnected, Reconnected

__all__ = [
    "LEAVES_WHEN_SENT",
    "SPEAKING_TEXT",
    "describe_connection",
    "describe_retry",
    "describe_status",
    "describe_waiting",
    "refused_name",
    "waiting_for_server",
]

SPEAKING_TEXT = "The server does not answer in JSON: speaking plain text"

LEAVES_WHEN_SENT = "Leaving when they are sent; Ctrl+C leaves at once"


def describe_connection(event: Disconnected | Reconnected) -> list[str]:
    """Return the lines that say that the connection was lost, or is there again.

    None for a try that has failed: see `describe_retry`.
    """
    if isinstance(event, Disconnected):
        return [] if event.failures else [f"Connection lost: {event.reason}; reconnecting"]
    if event.resumed:
        lines = ["Connected again"]
    else:
        lines = ["Connected again, in a new session: the server has forgotten us"]
        if event.again:
            lines.append("What was not accepted is sent again, and may be said twice")
    return lines


def describe_retry(number: int, seconds: float) -> str:
    """Return which try is next, and in how many *seconds*; with none left it is under way."""
    last, last_two = number % 10, number % 100
    suffix = "th" if last_two in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    when = f", next in {math.ceil(seconds)} s" if seconds > 0 else ""
    return f"reconnecting ({number}{suffix} try{when})"


def describe_status(
    endpoint: object, seconds: float, *, sent: int, received: int, unaccepted: int = 0
) -> str:
    """Return the line that says for how long we are connected, and what was sent and received."""
    waiting = f", {unaccepted} not accepted" if unaccepted else ""
    return f"Connected to {endpoint} for {seconds:.0f} s; {sent} sent, {received} received{waiting}"


def describe_waiting(unaccepted: int, retry: tuple[int, float] | None = None) -> str:
    """Return the line that says that we are not connected, and what waits until we are.

    *retry* is the number of the next try, and in how many seconds it is.
    """
    retrying = "" if retry is None else f"; {describe_retry(*retry)}"
    return f"Not connected; {unaccepted} waiting to be sent{retrying}"


def waiting_for_server(error: ConnectFailed) -> str:
    """Return the line that says that we wait for a server that is not there."""
    return f"Cannot connect: {error.reason}; waiting for the server"


def refused_name(refused: Refused) -> str:
    """Return the line that says why our name was refused, and whether we ask for it again."""
    again = "; asking again when it is free" if refused.code == "name-taken" else ""
    return f"{refused}{again}"
