"""Logs failures of a journal, without a line for each message."""

import math
from collections.abc import Hashable
from logging import ERROR

from multichat.log import Log

__all__ = ["FailureLog"]

# The most kinds of failures that are remembered.
_MAX_KINDS = 100


class FailureLog:
    """Logs at most one failure of each kind in *seconds*."""

    def __init__(self, log: Log, seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._logged: dict[Hashable, float] = {}  # when, on the event loop's clock

    def note(self, text: str, now: float, kind: Hashable = None) -> None:
        """Log *text*, unless one of its *kind* was logged within the last *seconds*.

        Without a *kind*, texts that are equal are of one kind.
        """
        kind = text if kind is None else kind
        if now - self._logged.get(kind, -math.inf) < self._seconds:
            return
        if len(self._logged) >= _MAX_KINDS:
            self._logged.clear()
        self._logged[kind] = now
        self._log.line("STATE", text, ERROR)

    def note_once(self, text: str) -> None:
        """Log *text* only once: for damage, which stays until the file is repaired."""
        if text not in self._logged:
            self.note(text, math.inf)
