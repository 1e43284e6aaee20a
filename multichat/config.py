"""How a server treats its clients: every setting, its default, and the reason for it.  Pure."""

import enum
from dataclasses import dataclass

__all__ = ["DEFAULT_PORT", "ServerConfig", "Slow"]

# The specification's.
DEFAULT_PORT = 9000


class Slow(enum.Enum):
    """What a room does about members whose mailbox is full."""

    WAIT = "wait"  # as long as their patience lasts; the sender is not read from meanwhile
    DROP = "drop"  # they miss the batch and are told how much they missed
    DISCONNECT = "disconnect"  # they have to go at once


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The settings of a server, with the defaults of the command line.

    Raises `ValueError` for a value that makes no sense.
    """

    # Room for a pasted stack trace, while a thousand clients stalled in mid-line fit in 64 MiB.
    max_line_bytes: int = 64 * 1024

    # A burst of 64 reads from one sender, or a word each from 64 people, before anybody waits.
    mailbox_batches: int = 64

    # Nothing is lost, and nobody waits for long.
    slow: Slow = Slow.WAIT

    # Long enough for a phone to change its cell, short enough that a conversation survives it.
    patience_seconds: float = 2.0

    # What an ordinary limit of open files allows, give or take the server's own.
    max_clients: int = 1024

    # More than anybody looks through; each costs what its members cost.
    max_rooms: int = 1024

    # In the text voice the server says nothing until there is something to say; programs, and
    # `multichat connect`, are always told who comes and goes.
    announce: bool = False

    # As long as a person waits for a program that was told to stop before telling it again.
    grace_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in ("max_line_bytes", "mailbox_batches", "max_clients", "max_rooms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("patience_seconds", "grace_seconds"):
            if not getattr(self, name) >= 0:  # NaN is not either
                raise ValueError(f"{name} must be 0 or more")
