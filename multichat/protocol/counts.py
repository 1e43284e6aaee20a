"""Numbers with a noun, for people: `1 room`, `2 rooms`.  Pure."""

__all__ = ["counted"]


def counted(number: float, noun: str) -> str:
    """Return *number* and *noun*, which is in the singular, with an "s" unless the number is 1.

    A fraction has as many digits as it needs, at most 15.
    """
    return f"1 {noun}" if number == 1 else f"{number:.15g} {noun}s"
