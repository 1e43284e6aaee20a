"""The ids of messages: the epoch of a room and a number; their order is that of strings.  Pure."""

__all__ = ["FIRST_ID", "message_id", "message_number"]

# All numbers have the same count of digits, so that ids are ordered as strings, too.
FIRST_ID = 1_000_000_000

# Longer than any id; the rest of a longer string is ignored, so that no huge number is parsed.
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
