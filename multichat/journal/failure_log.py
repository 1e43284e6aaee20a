"""Logs what a journal cannot keep or read, without a line for each message."""

import math
from logging import ERROR

from multichat.log import Log

__all__ = ["FailureLog"]

# How many different failures are remembered.
_MAX_FAILURES = 100


class FailureLog:
    """Logs the same failure once in *seconds*."""

    def __init__(self, log: Log, seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._logged: dict[str, float] = {}  # when, by the clock of the loop

    def note(self, text: str, now: float) -> None:
        """Log *text*, unless it was logged a short while ago."""
        if now - self._logged.get(text, -math.inf) < self._seconds:
            return
        if len(self._logged) >= _MAX_FAILURES:
            self._logged.clear()
        self._logged[text] = now
        self._log.line("STATE", text, ERROR)

    def note_once(self, text: str) -> None:
        """Log *text* the first time: it is about damage, which stays until the file is repaired."""
        if text not in self._logged:
            self.note(text, math.inf)
