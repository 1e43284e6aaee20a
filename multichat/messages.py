"""What a client can ask and what a member can be told, as typed values.  Pure.

Requests are imperative and come from a client; events are facts and go to one.  Both are frozen
and know nothing of how they are spelled: that is `multichat.voices`.
"""

from typing import TypeAlias

import msgspec

__all__ = [
    "Event",
    "Goodbye",
    "Help",
    "Notice",
    "Ping",
    "Quit",
    "Request",
    "Said",
    "Say",
    "Unknown",
]


class Say(msgspec.Struct, frozen=True, tag="say"):
    """Say something to everybody else in the room.

    *run* is the messages that came in one read, in order, with an LF between two: they are one
    request, so that nothing down the line has to be done per message.
    """

    run: str


class Help(msgspec.Struct, frozen=True, tag="help"):
    """Tell me what I can ask."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Answer me, repeating *token*."""

    token: str = ""


class Quit(msgspec.Struct, frozen=True, tag="quit"):
    """Let me go."""


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """Something that looks like a request and is none that we know."""

    command: str


Request: TypeAlias = Say | Help | Ping | Quit | Unknown


class Said(msgspec.Struct, frozen=True, tag="said"):
    """Somebody said *text*; *name* is empty where the other side does not tag its lines."""

    name: str
    text: str


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """The server itself has something to say to us."""

    text: str


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    """The server is about to close the connection, and says why."""

    reason: str


Event: TypeAlias = Said | Notice | Goodbye
