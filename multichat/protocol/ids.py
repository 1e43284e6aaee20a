"""The ids of messages: the epoch of a room and a number, and their order.  Pure."""

__all__ = ["FIRST_ID", "message_id", "message_number"]

# Ids of a room are ordered as strings too: numbers of as many digits from the first on.
FIRST_ID = 1_000_000_000

# Longer than any id; of what is longer still nothing is read as a number.
_MAX_ID_CHARACTERS = 64


def message_id(epoch: str, number: int) -> str:
    """Return the id of the message with that *number*, from 0, in the room of that *epoch*."""
    return f"{epoch}-{FIRST_ID + number}"


def message_number(epoch: str, id_: str) -> int | None:
    """Return the number of the message with that id; None if it is no id of that *epoch*."""
    its_epoch, _, digits = id_[:_MAX_ID_CHARACTERS].partition("-")
    if its_epoch != epoch or not (digits.isascii() and digits.isdecimal()):
        return None
    number = int(digits) - FIRST_ID
    return number if number >= 0 and message_id(epoch, number) == id_ else None
