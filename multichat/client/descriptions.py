"""The texts with which every front end describes events and the connection.  Pure."""

import math

from multichat.protocol.messages import Disconnected, Error, Event, Reconnected
from multichat.protocol.text_codec import TEXT

__all__ = ["SPEAKING_TEXT", "describe_event", "describe_retry"]

SPEAKING_TEXT = "The server does not answer in JSON: speaking plain text"


def describe_event(event: Event) -> list[str]:
    """Return the lines that describe an event of the chat or the connection.

    No lines for a failed attempt to reconnect, unless it has found a lasting fault: see
    `describe_retry`.
    """
    match event:
        case Disconnected(reason=reason, failures=failures):
            if event.fault:
                return [f"Cannot reconnect: {event.fault}; trying again"]
            return [] if failures else [f"Connection lost: {reason}; reconnecting"]
        case Reconnected(resumed=True):
            return ["Connected again"]
        case Reconnected(again=again):
            lines = ["Connected again, in a new session: the server no longer has the old one"]
            if again:
                lines.append("Unaccepted messages are sent again, and may be published twice")
            return lines
        case Error(text=text, room=room) if room and room not in text:
            return [f"{room}: {line}" for line in TEXT.describe(event)]
    return TEXT.describe(event)


def describe_retry(number: int, seconds: float) -> str:
    """Describe the next attempt to reconnect, in *seconds*; 0 for the current attempt."""
    last, last_two = number % 10, number % 100
    suffix = "th" if last_two in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    when = f", next in {math.ceil(seconds)} s" if seconds > 0 else ""
    return f"reconnecting ({number}{suffix} try{when})"
