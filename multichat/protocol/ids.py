"""The ids of messages: the epoch of a room and a number; their order is that of strings.  Pure."""

from collections.abc import Mapping
from typing import Protocol

__all__ = ["FIRST_ID", "MessageIds", "message_id", "message_number"]

# All numbers have the same count of digits, so that ids are ordered as strings, too.
FIRST_ID = 1_000_000_000

# Longer than any id; the rest of a string is ignored, so that no huge number is parsed.
_MAX_ID_CHARACTERS = 64


def message_id(epoch: str, number: int) -> str:
    """Return the id of message *number*, counted from 0, in *epoch*."""
    return f"{epoch}-{FIRST_ID + number}"


def message_number(epoch: str, id_: str) -> int | None:
    """Return the number of the message with the id *id_*; None if it is not one of *epoch*."""
    its_epoch, _, digits = id_[:_MAX_ID_CHARACTERS].partition("-")
    if its_epoch != epoch or not (digits.isascii() and digits.isdecimal()):
        return None
    number = int(digits) - FIRST_ID
    return number if number >= 0 and message_id(epoch, number) == id_ else None


class _Epochs(Protocol):
    @property
    def epoch(self) -> str: ...
    @property
    def next(self) -> int: ...
    @property
    def earlier(self) -> Mapping[str, int]: ...


class MessageIds:
    """The ids of a room's messages, for a class that knows the room's epochs.

    Its messages have numbers below *next*, which continue from one epoch to the next.  *epoch* is
    that of the next messages; *earlier* maps the epochs before it, oldest first, to the number at
    which the next one began.
    """

    __slots__ = ()

    def number_of(self: _Epochs, id_: str) -> int | None:
        """Return the number of the message with that id, or None if the id is unknown.

        An id of an earlier epoch is valid up to the number at which the next epoch began: after a
        journal was restored from a backup, the numbers assigned since the backup are assigned
        again, in a new epoch.
        """
        epoch = id_.partition("-")[0]
        number = message_number(epoch, id_)
        end = self.next if epoch == self.epoch else self.earlier.get(epoch, 0)
        return number if number is not None and number < end else None

    def id_of(self: _Epochs, number: int) -> str:
        """Return the id of the message with that number."""
        epoch = self.epoch
        for earlier in reversed(tuple(self.earlier)):
            if number >= self.earlier[earlier]:
                break
            epoch = earlier
        return message_id(epoch, number)
